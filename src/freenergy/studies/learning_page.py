"""The page of the study "learning"."""

from __future__ import annotations

import numpy as np

from freenergy.report import Block, LineChart, Page, Section, Table, Verdict
from freenergy.studies.assessment_page import assessment_sections
from freenergy.studies.blocks import (
    FILTERS_NOTE,
    SAMPLES_NOTE,
    band,
    filter_grid,
    provenance,
    reading_section,
    sample_grid,
    temperature_sections,
    thermodynamics_section,
)
from freenergy.studies.learning import LearningStudy

__all__ = ["learning_page", "verdict"]

_SAMPLING = "PCD"
_MEAN_FIELD = "EMF (TAP2)"
_MARGIN = 1.0
"""Nats by which a likelihood may be lower, for sure, and still count as keeping up."""


def learning_page(study: LearningStudy) -> Page:
    """Compose the report of a study from its result."""
    return Page(
        title="Learning with and without samples",
        question="Can an RBM learn without sampling, along the gradient of a free energy?",
        verdict=verdict(study),
        sections=[
            _summary(study),
            _likelihood(study),
            *_assessments(study),
            *temperature_sections(*study.methods),
            *map(thermodynamics_section, study.methods),
            *_pictures(study),
            reading_section(study.exact),
        ],
        provenance=provenance(study.data, study.versions, study.command, study.settings.seeds),
    )


def _assessments(study: LearningStudy) -> list[Section]:
    return [
        section
        for method in study.methods
        if method.assessment is not None
        for section in assessment_sections(method.assessment, method.name)
    ]


def verdict(study: LearningStudy) -> Verdict:
    """What the figures say of mean field against sampling, in words that follow from them."""
    names = [method.name for method in study.methods]
    if _SAMPLING not in names or _MEAN_FIELD not in names:
        return Verdict("info", "The study did not run both PCD and EMF (TAP2).")
    gap, width = study.difference(_MEAN_FIELD, _SAMPLING)
    measure = "log-likelihood" if study.exact else "pseudo-likelihood"
    kind = "exact " if study.exact else ""
    if len(study.settings.seeds) < 2:
        facts = (
            f"On {study.data['name']}, the held-out {kind}{measure} after learning with "
            f"{_MEAN_FIELD} is {gap:+.2f} nats from that after {_SAMPLING} (one seed, so the "
            "chance of the training is not known)."
        )
        return Verdict("undecided", facts + " Run more seeds to decide.")
    if not study.exact:
        return Verdict(
            "undecided",
            f"On {study.data['name']}, the held-out pseudo-likelihood after learning with "
            f"{_MEAN_FIELD} differs from that after {_SAMPLING} by {gap:+.2f} ± {width:.2f} nats; "
            "the pseudo-likelihood can rank models differently from the likelihood, so this "
            "decides nothing.",
        )
    low, high = gap - width, gap + width
    facts = (
        f"On {study.data['name']}, the held-out {kind}{measure} after learning with {_MEAN_FIELD} "
        f"differs from that after {_SAMPLING} by {gap:+.2f} nats (95 % interval {low:+.2f} to "
        f"{high:+.2f}, over {len(study.settings.seeds)} paired seeds)."
    )
    if low > -_MARGIN:
        return Verdict("supported", f"Yes. {facts} Mean field keeps up without sampling the model.")
    if high < 0:
        return Verdict("contradicted", f"No, not here: mean field falls behind. {facts}")
    return Verdict("undecided", f"These runs cannot tell. {facts}")


def _summary(study: LearningStudy) -> Section:
    columns = ["method"]
    if study.exact:
        columns += ["held-out ln p", "train ln p"]
    columns += ["held-out pseudo-lh.", "F gap", "accuracy (%)", "‖W‖", "converged (%)", "time (s)"]
    rows: list[list[object]] = []
    for method in study.methods:
        row: list[object] = [method.name]
        keys = ["log_likelihood_held_out", "log_likelihood"] if study.exact else []
        for key in [*keys, "pseudo_likelihood_held_out", "free_energy_gap"]:
            row.append(_with_spread(method.final(key)))
        row.append("–" if method.accuracy is None else round(100 * method.accuracy, 1))
        row.append(float(method.final("weight_norm").mean()))
        row.append(round(100 * float(method.final("tap2_converged").mean()), 1))
        row.append(round(method.seconds, 2))
        rows.append(row)
    data, settings = study.data, study.settings
    note = (
        "Likelihoods are exact and, like the pseudo-likelihood (lh.), in nats for a row. "
        if study.exact
        else "The pseudo-likelihood (lh.) is in nats for a row. "
    )
    note += (
        "F gap: mean free energy of held-out rows less that of training rows. Accuracy: logistic "
        "regression on the hidden activations. Converged: share of the TAP2 states that started "
        "at the data. Time: of training alone."
    )
    if len(settings.seeds) > 1:
        note += " ± is the standard deviation over seeds."
    if study.pixel_accuracy is not None:
        note += f" Logistic regression on the pixels reaches {100 * study.pixel_accuracy:.1f} %."
    return Section(
        "The methods side by side",
        [Table(columns, rows, note=note)],
        intro=(
            f"{data['name']}: {data['n_train']} rows to learn from, {data['n_held_out']} held "
            f"out, {data['n_visible']} visible and {settings.n_hidden} hidden units, "
            f"{settings.n_epochs} epochs, batches of {settings.batch_size}. All methods start "
            "from the same weights and see the rows in the same order."
        ),
    )


def _with_spread(values: np.ndarray) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"


def _likelihood(study: LearningStudy) -> Section:
    charts: list[Block] = []
    wanted = [
        ("log_likelihood_held_out", "Held-out log-likelihood, exact", "ln p (nats)"),
        ("log_likelihood", "Training log-likelihood, exact", "ln p (nats)"),
        ("pseudo_likelihood_held_out", "Held-out pseudo-likelihood", "nats"),
        ("pseudo_likelihood", "Training pseudo-likelihood", "nats"),
        ("free_energy_gap", "Free-energy gap, held out − train", "ΔF"),
        ("weight_norm", "Norm of the weights, an inverse temperature", "‖W‖"),
    ]
    for key, title, label in wanted:
        curves = [curve for m in study.methods for curve in band(m.name, m, key)]
        if curves:
            charts.append(LineChart(title, "epoch", label, curves))
    return Section(
        "How learning goes",
        charts,
        intro=(
            "Lines are means over seeds, bands their range. The free-energy gap grows when a "
            "model learns its rows by heart. The pseudo-likelihood has no common scale with the "
            "likelihood and can rank models differently."
        ),
    )


def _pictures(study: LearningStudy) -> list[Section]:
    filters = [block for m in study.methods for block in filter_grid(m, study.image_shape)]
    samples = [block for m in study.methods for block in sample_grid(m, study.image_shape)]
    if not filters:
        return []
    return [
        Section("What the hidden units look for", filters, intro=FILTERS_NOTE),
        Section("What the models dream", samples, intro=SAMPLES_NOTE),
    ]

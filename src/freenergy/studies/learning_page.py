"""The page of the study "learning"."""

from __future__ import annotations

from collections.abc import Sequence

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
from freenergy.studies.run_data import rows_in_words

__all__ = ["learning_page", "verdict"]

_SAMPLING = "PCD"
_MEAN_FIELD = "EMF (TAP2)"
_METHODS = {
    "CD": "by short chains that start at the rows of each batch",
    "PCD": "by chains that go on from update to update",
    "PTT": "by chains at several stages of the training, which swap their states",
    "EMF": (
        "without samples, by a free energy of mean fields to first (naive), second (TAP2) or "
        "third order (TAP3)"
    ),
}
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
    measure = "exact log-likelihood" if study.exact else "pseudo-likelihood"
    higher = "higher" if gap >= 0 else "lower"
    low, high = gap - width, gap + width
    facts = (
        f"On {study.data['name']}, the {measure} of held-out rows is {abs(gap):.2f} nats {higher} "
        f"after learning with {_MEAN_FIELD}, a mean field, than after {_SAMPLING}, which samples"
    )
    if len(study.settings.seeds) < 2:
        return Verdict(
            "undecided",
            f"{facts}. This is one seed: how much of it is the chance of a training is not known. "
            "Run more seeds to decide.",
        )
    facts += (
        f" (difference {gap:+.2f}, 95 % interval {low:+.2f} to {high:+.2f}, over "
        f"{len(study.settings.seeds)} seeds that both methods had)."
    )
    if not study.exact:
        return Verdict(
            "undecided",
            f"{facts} A pseudo-likelihood can rank models otherwise than the likelihood, so this "
            "decides nothing.",
        )
    if low > -_MARGIN:
        apart = "" if low * high > 0 else "The runs do not tell the two apart. "
        words = f"Yes. {facts} {apart}Mean field keeps up, and draws no samples."
        return Verdict("supported", words)
    if high < 0:
        return Verdict("contradicted", f"No, not here: mean field falls behind. {facts}")
    return Verdict("undecided", f"These runs cannot tell. {facts}")


def _summary(study: LearningStudy) -> Section:
    columns = ["method"]
    if study.exact:
        columns += ["held-out ln p", "train ln p"]
    columns += ["held-out pseudo", "F gap", "accuracy (%)", "‖W‖", "converged (%)", "time (s)"]
    rows: list[list[object]] = []
    for method in study.methods:
        row: list[object] = [method.name]
        keys = ["log_likelihood_held_out", "log_likelihood"] if study.exact else []
        for key in [*keys, "pseudo_likelihood_held_out", "free_energy_gap"]:
            row.append(_with_spread(method.final(key)))
        row.append("–" if method.accuracy is None else f"{100 * method.accuracy:.1f}")
        row.append(f"{method.final('weight_norm').mean():.2f}")
        row.append(f"{100 * method.final('tap2_converged').mean():.1f}")
        row.append(f"{method.seconds:.2f}")
        rows.append(row)
    data, settings = study.data, study.settings
    note = (
        "ln p: mean log-likelihood of a row in nats, exact. Pseudo: the pseudo-likelihood, "
        if study.exact
        else "Pseudo: mean log pseudo-likelihood of a row in nats, "
    )
    note += (
        "each unit given all others. F gap: mean free energy of held-out rows less that of "
        "training rows. Accuracy: of a logistic regression on the hidden activations, on held-out "
        "rows. ‖W‖: norm of the weights. Converged: share of the mean-field states (TAP2), started "
        "at rows of the data, that came to rest. Time: of training alone."
    )
    if len(settings.seeds) > 1:
        note += " ± is the standard deviation over seeds."
    if study.pixel_accuracy is not None:
        note += f" Logistic regression on the pixels reaches {100 * study.pixel_accuracy:.1f} %."
    return Section(
        "The methods side by side",
        [Table(columns, rows, note=note)],
        intro=(
            f"{data['name']}: {rows_in_words(data)}, {data['n_visible']} visible and "
            f"{settings.n_hidden} hidden units, "
            f"{settings.n_epochs} epochs, batches of {settings.batch_size}. All methods start "
            "from the same weights and see the rows in the same order. They differ in how they "
            f"average over the model: {_how([method.name for method in study.methods])}."
        ),
    )


def _how(names: Sequence[str]) -> str:
    """What each method does, in a few words."""
    families = {name.split(" ")[0]: None for name in names}
    return "; ".join(f"**{name}** {_METHODS[name]}" for name in families if name in _METHODS)


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
            "Lines are means over seeds, bands their range. Held-out rows are not learned from. "
            "The free-energy gap grows when a model learns its rows by heart. The "
            "pseudo-likelihood is on a scale of its own: compare it only with itself."
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

"""The page of a single training run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from freenergy.models import RBM
from freenergy.report import Block, LineChart, Page, Section, Table, Text, Verdict
from freenergy.studies.assessment import Assessment
from freenergy.studies.assessment_page import (
    advice_words,
    assessment_sections,
    reason_words,
    state_words,
)
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
from freenergy.studies.results import MethodResult, filters, samples
from freenergy.training import RunConfig

__all__ = ["run_page"]


def run_page(
    config: RunConfig,
    history: list[dict[str, Any]],
    model: RBM,
    image_shape: Sequence[int] | None = None,
    *,
    assessment: Assessment | None = None,
    certificate: dict[str, Any] | None = None,
) -> Page:
    """Compose the report of one training run."""
    options = config.options
    name = options.method.upper()
    method = MethodResult(name, [history], None, filters(model), samples(model, options.beta))
    charts: list[Block] = []
    pairs = [
        ("Log-likelihood, exact", "nats", "log_likelihood"),
        ("Pseudo-likelihood", "nats", "pseudo_likelihood"),
    ]
    for title, label, key in pairs:
        curves = band("train", method, key) + band("held out", method, f"{key}_held_out")
        if curves:
            charts.append(LineChart(title, "epoch", label, curves))
    for key, title, label in (
        ("free_energy_gap", "Free-energy gap, held out − train", "ΔF"),
        ("weight_norm", "Norm of the weights", "‖W‖"),
    ):
        charts.append(LineChart(title, "epoch", label, band(name, method, key)))
    sections = [Section("How learning goes", charts), thermodynamics_section(method)]
    sections += temperature_sections(method)
    if assessment is not None:
        sections += assessment_sections(assessment)
    if certificate is not None:
        words = [
            f"**Gibbs chains are {state_words(certificate)}.** {reason_words(certificate)}",
            advice_words(certificate),
        ]
        sections.append(Section("Were the chains in equilibrium?", [Text(words)]))
    pictures = filter_grid(method, image_shape) + sample_grid(method, image_shape)
    if pictures:
        sections.append(Section("What was learned", pictures, f"{FILTERS_NOTE} {SAMPLES_NOTE}"))
    last = history[-1] if history else {}
    sections.append(reading_section("log_likelihood" in last))
    settings = {k: v for k, v in options.to_dict().items() if v is not None}
    sections.append(
        Section("Options", [Table(["option", "value"], list(map(list, settings.items())))])
    )
    return Page(
        title=f"RBM on {config.data['name']}",
        question=f"How did {name} train this RBM?",
        verdict=Verdict("info", _verdict(config, len(history), last)),
        sections=sections,
        provenance=provenance(config.data, config.versions, config.command, [config.seed]),
    )


def _verdict(config: RunConfig, n_done: int, last: dict[str, Any]) -> str:
    done = f"{n_done} of {config.options.n_epochs} epochs"
    parts = [f"{config.n_visible} visible and {config.n_hidden} hidden units, {done}."]
    if "log_likelihood_held_out" in last:
        parts.append(f"Exact held-out log-likelihood {last['log_likelihood_held_out']:.2f} nats.")
    elif "pseudo_likelihood_held_out" in last:
        parts.append(f"Held-out pseudo-likelihood {last['pseudo_likelihood_held_out']:.2f} nats.")
    alarms = [n for n in (2, 3) if last.get(f"tap{n}_entropy", 0.0) < 0]
    stuck = [n for n in (1, 2, 3) if last.get(f"tap{n}_converged", 1.0) < 0.9]
    if alarms:
        parts.append(f"The entropy of order {alarms[0]} mean field is negative: do not trust it.")
    if stuck:
        parts.append(f"Mean-field states of order {stuck[0]} often did not converge.")
    return " ".join(parts)

"""The section "How good is it really?" of a report."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from freenergy.report import (
    Block,
    Curve,
    HistogramChart,
    LineChart,
    Section,
    Table,
    Text,
)
from freenergy.studies.assessment import Assessment, Estimate

__all__ = [
    "advice_words",
    "assessment_sections",
    "reason_words",
    "state_words",
    "verdict_words",
]

# Advice speaks of the library's parameters; more chains and steps of a certificate are only there.
_OPTIONS = (
    (r"Certify again with", "Certify again (freenergy.inference.certify) with"),
    (r"method='(\w+)' or '(\w+)'", r"--method \1 or \2"),
    (r"method='(\w+)'", r"--method \1"),
    (r"n_steps of", "--steps"),
    (r"\(n_steps\)", "(--steps)"),
    (r"\blearning_rate_decay", "--learning-rate-decay"),
    (r"\blearning_rate\b", "--learning-rate"),
    (r"\bweight_constraint", "--weight-constraint"),
)


def assessment_sections(assessment: Assessment, name: str = "") -> list[Section]:
    """Likelihoods by every method, work histograms, equilibrium, temperature and entropy."""
    suffix = f": {name}" if name else ""
    return [
        Section(
            f"How good is it really?{suffix}",
            [_estimates(assessment), _band(assessment), _works(assessment)],
            intro=verdict_words(assessment),
        ),
        Section(
            f"Equilibrium, temperature and entropy{suffix}",
            [*_curves(assessment), _states_table(assessment), Text(_certificate(assessment))],
            intro=_temperature_words(assessment),
        ),
    ]


def verdict_words(assessment: Assessment) -> str:
    """One paragraph that follows from the numbers alone."""
    best = assessment.best
    label = state_words(assessment.certificate)
    if best is None:
        reasons = sorted({r for e in assessment.estimates for r in e.reasons if _sampled(e)})
        return (
            "No estimate of the likelihood can be trusted here: "
            + "; ".join(reasons or ["those that pass their own checks contradict each other"])
            + f". Gibbs chains of the model are {label}."
        )
    words = (
        f"The held-out log-likelihood is {_interval(best)} nats for a row ({best.label}"
        + _kind(best)
        + "). "
    )
    gap = best.log_likelihood_train - best.log_likelihood
    words += f"On training rows it is {abs(gap):.2f} nats {'higher' if gap >= 0 else 'lower'}. "
    doubtful = [e.label for e in assessment.estimates if not e.trusted and e is not best]
    if doubtful:
        words += f"Not to be trusted: {', '.join(doubtful)}. "
    if assessment.rounded:
        words += "Grey values of the rows were rounded: only states have a likelihood. "
    return words + f"Gibbs chains of the model are {label}."


def _kind(estimate: Estimate) -> str:
    if estimate.name == "exact":
        return ", without error"
    return ", 95 % interval" if _sampled(estimate) else ", a heuristic interval"


def _sampled(estimate: Estimate) -> bool:
    return not estimate.name.startswith("tap")


def _interval(estimate: Estimate) -> str:
    if estimate.lower == estimate.upper:
        return f"{estimate.log_likelihood:.2f}"
    low, high = estimate.log_likelihood_lower, estimate.log_likelihood_upper
    return f"{estimate.log_likelihood:.2f} ({low:.2f} to {high:.2f})"


def _estimates(assessment: Assessment) -> Table:
    rows: list[list[object]] = []
    for e in assessment.estimates:
        interval = (
            "–"
            if not math.isfinite(e.lower)
            else f"{e.log_likelihood_lower:.2f} … {e.log_likelihood_upper:.2f}"
        )
        rows.append(
            [
                e.label,
                f"{e.log_partition:.2f}",
                f"{e.log_likelihood:.2f}",
                interval,
                "yes" if e.trusted else "no",
                "; ".join(e.reasons),
            ]
        )
    return Table(
        ["method", "ln Z", "held-out ln p", "95 % interval", "trusted", "why not"],
        rows,
        note=(
            "Annealing from below gives ln Z too low on average and so flatters the likelihood; "
            "from above, too high. Only where both ends agree can either be believed."
        ),
    )


def _band(assessment: Assessment) -> Block:
    """Each method's interval beside the others."""
    shown = [e for e in assessment.estimates if math.isfinite(e.log_likelihood)]
    place = list(range(1, len(shown) + 1))
    rows = [
        Curve(
            e.label,
            [p - 0.3, p + 0.3],
            [e.log_likelihood] * 2,
            lower=[_or(e.log_likelihood_lower, e.log_likelihood)] * 2,
            upper=[_or(e.log_likelihood_upper, e.log_likelihood)] * 2,
            dash=not e.trusted,
        )
        for p, e in zip(place, shown, strict=True)
    ]
    return LineChart(
        "Held-out log-likelihood by every method",
        "method, in the order of the table",
        "nats",
        rows,
        note="Bands are 95 % intervals; dashed lines are not trusted.",
    )


def _or(value: float, default: float) -> float:
    return value if math.isfinite(value) else default


def _works(assessment: Assessment) -> Block:
    best = assessment.best
    return HistogramChart(
        "Work of annealing, up and down",
        "ln Z from a single chain (nats)",
        {
            "up, from the independent model": assessment.works["up"],
            "down, from the model": assessment.works["down"],
        },
        markers={} if best is None else {f"ln Z ({best.label})": best.log_partition},
        note=(
            "By Crooks' theorem the two histograms cross at ln Z. Where they do not overlap, "
            "neither end is worth much."
        ),
    )


def _curves(assessment: Assessment) -> list[Block]:
    curves = assessment.curves
    temperature = [1.0 / (b / assessment.beta) for b in curves["beta"]]
    blocks: list[Block] = []
    for key, title, unit in (
        ("free_energy", "Free energy F", "units of the energy"),
        ("energy", "Energy U", "units of the energy"),
        ("entropy", "Entropy S", "nats"),
        ("heat_capacity", "Heat capacity C", ""),
    ):
        value, error = curves[key], curves[f"{key}_stderr"]
        order = sorted(range(len(temperature)), key=lambda i: temperature[i])
        blocks.append(
            LineChart(
                title,
                "temperature, that of the training = 1",
                unit,
                [_with_error(key, temperature, value, error, order)],
                log_x=True,
            )
        )
    return blocks


def _with_error(
    name: str,
    x: Sequence[float],
    value: Sequence[float],
    error: Sequence[float],
    order: Sequence[int],
) -> Curve:
    half = [1.96 * _or(error[i], 0.0) for i in order]
    y = [value[i] for i in order]
    return Curve(
        name.replace("_", " "),
        [x[i] for i in order],
        y,
        lower=[a - h for a, h in zip(y, half, strict=True)],
        upper=[a + h for a, h in zip(y, half, strict=True)],
    )


def _states_table(assessment: Assessment) -> Table:
    rows: list[list[object]] = []
    for method, found in assessment.temperature.items():
        interval = f"{found['lower']:.3g} … {found['upper']:.3g}"
        trust = "yes" if found["trusted"] else "no"
        words = f"effective temperature, {method.replace('_', ' ')}"
        rows.append([words, f"{found['temperature']:.3g}", interval, trust])
    states = assessment.landscape
    doubtful = states["beyond_plefka"] > 0 or states["converged"] < states["starts"]
    for key, words in (
        ("states", "distinct TAP 2 states that hold data"),
        ("within_entropy", "entropy within them (nats)"),
        ("complexity", "entropy over them: complexity (nats)"),
    ):
        rows.append([words, f"{states[key]:.4g}", "", "no" if doubtful else "yes"])
    curves = assessment.curves
    why = "; ".join(curves["reasons"])
    rows.append(
        ["F, U, S and C over temperature", "above", why, "yes" if curves["trusted"] else "no"]
    )
    return Table(["quantity", "value", "95 % interval", "trusted"], rows)


def _temperature_words(assessment: Assessment) -> str:
    found = assessment.temperature["pseudo_likelihood"]
    words = (
        "Temperatures are relative to that of the training. At "
        f"T = {found['temperature']:.3g} ({found['lower']:.3g} to {found['upper']:.3g}) the model "
        "explains the held-out rows best"
    )
    if found["lower"] <= 1.0 <= found["upper"]:
        return words + ": it is as warm as the data."
    colder = found["temperature"] > 1.0
    return words + (
        ": as trained it is too cold, too sure of its training rows."
        if colder
        else ": as trained it is too warm, its couplings are too weak."
    )


def state_words(certificate: dict[str, Any]) -> str:
    """Where the chains are, to follow "the chains are"."""
    label = str(certificate["label"])
    return f"in {label}" if label == "equilibrium" else label


def advice_words(certificate: dict[str, Any]) -> str:
    """What follows from a certificate, in the names of the command line's options.

    Examples
    --------
    >>> advice_words({"advice": "Train with method='pcd' or 'ptt', or with n_steps of 5."})
    'What to do: Train with --method pcd or ptt, or with --steps 5.'
    """
    words = str(certificate["advice"])
    for pattern, option in _OPTIONS:
        words = re.sub(pattern, option, words)
    return f"What to do: {words}"


def reason_words(certificate: dict[str, Any]) -> str:
    """The numbers of a certificate of equilibrium, in a sentence."""
    c = certificate
    return (
        f"Autocorrelation time {_number(c['autocorrelation_time'])} Gibbs steps, against "
        f"{c['n_steps_per_update']} for each update of the training; R-hat {_number(c['r_hat'])}; "
        f"mean free energy {_number(c['energy_from_data'])} from starts at the data and "
        f"{_number(c['energy_from_random'])} from random starts, after {c['n_steps']} steps."
    )


def _number(value: float | None) -> str:
    return "unknown" if value is None or not math.isfinite(value) else f"{value:.4g}"


def _certificate(assessment: Assessment) -> list[str]:
    c = assessment.certificate
    return [
        f"**Gibbs chains are {state_words(c)}.** {reason_words(c)}",
        advice_words(c),
    ]

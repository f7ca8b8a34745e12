"""What a watch found as plain values, and as text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from freenergy._version import __version__
from freenergy.thermodynamics.watching.diffusion import Diffusion
from freenergy.thermodynamics.watching.expectation import domain, expect
from freenergy.thermodynamics.watching.findings import Finding
from freenergy.thermodynamics.watching.history import History
from freenergy.thermodynamics.watching.readings import QUANTITIES

__all__ = [
    "Cost",
    "as_dict",
    "as_text",
    "cost_words",
    "headline",
    "is_of_the_start",
    "layer_domain",
]


@dataclass(frozen=True)
class Cost:
    """What a watch took of the training's time, by its own clock.

    Attributes
    ----------
    n_steps, n_read : int
        Passes of the training, and those that were read.
    own_seconds, training_seconds : float
        Time of the watch, and of the training without it.
    share : float
        One over the other; NaN before the second step.
    budget : float
    """

    n_steps: int
    n_read: int
    own_seconds: float
    training_seconds: float
    share: float
    budget: float


def is_of_the_start(history: History, cost: Cost) -> bool:
    """Whether most of the training came after the last pass that was read."""
    read = [record.step for record in history.records if record.whole]
    return bool(read) and cost.n_steps > 2 * read[-1]


def headline(history: History, findings: Sequence[Finding], cost: Cost) -> str:
    """The verdict in a sentence or two."""
    if cost.n_steps and not history.layers:
        return "The module has no linear or convolutional layers with real weights to read."
    if not history.records:
        return (
            "No training pass was seen. Call the module that is watched itself, in training mode, "
            "and call backward on its loss."
        )
    n = len(history.called)
    if not findings:
        layers = "layer" if n == 1 else "layers"
        words = f"Nothing was found wrong in {n} {layers}"
        if is_of_the_start(history, cost):
            last = max(record.step for record in history.records if record.whole)
            words += (
                f" up to step {last} of {cost.n_steps}. The rest could not be read: no gradient "
                "came back from those passes"
            )
        return words + "."
    first, more = findings[0], len(findings) - 1
    words = f"{first.title()}."
    if more:
        words += f" {more} more finding{'s' if more > 1 else ''} below."
    return words


def cost_words(cost: Cost) -> str:
    """What was measured of the cost."""
    words = f"{cost.n_read} of {cost.n_steps} training passes were read"
    if math.isnan(cost.share):
        return words + "."
    words += (
        f", in {cost.own_seconds:.2g} s: {100 * cost.share:.1f} % of the "
        f"{cost.training_seconds:.3g} s that training took without it "
        f"(budget {100 * cost.budget:g} %"
    )
    if cost.share > cost.budget:
        return words + "; the run was short, and some passes are read whatever they cost)."
    return words + ")."


def as_text(history: History, findings: Sequence[Finding], cost: Cost, diffusion: Diffusion) -> str:
    """A short text for a terminal."""
    parts = [headline(history, findings, cost)]
    for rank, finding in enumerate(findings, 1):
        parts.append(f"{rank}. [{finding.severity}] {finding.title()}")
        parts.append(_wrapped(finding.evidence))
        parts.append(_wrapped("→ " + finding.suggestion))
    if history.records:
        parts.append(diffusion.words)
        if history.never_called:
            parts.append(f"Never called: {', '.join(history.never_called)}.")
        if history.unwatched:
            parts.append(f"Not watched: {', '.join(history.unwatched)}.")
    parts.append(cost_words(cost))
    return "\n".join(parts)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 96, initial_indent="   ", subsequent_indent="   ")


def layer_domain(history: History, layer: int, record: int) -> str:
    """The domain of a SELU layer at one record, empty for other layers."""
    if history.layers[layer].activation != "SELU":
        return ""
    reading = history.records[record].readings[layer]
    return domain(
        reading.input_mean, reading.input_variance, reading.weight_sum, reading.weight_square_sum
    )


def as_dict(
    history: History, findings: Sequence[Finding], cost: Cost, diffusion: Diffusion
) -> dict[str, Any]:
    """Everything, ready for JSON once what is not finite is None."""
    layers = []
    for i, layer in enumerate(history.layers):
        predicted = expect(history, i)
        layers.append(
            {
                "name": layer.name,
                "kind": layer.kind,
                "n_units": layer.n_units,
                "fan_in": layer.fan_in,
                "activation": layer.activation,
                "normalization": layer.normalization,
                "order": layer.order,
                "trainable": layer.trainable,
                "measured": {name: history.series(i, name) for name in QUANTITIES},
                "predicted": {f.name: getattr(predicted, f.name) for f in fields(predicted)},
                "domain": [layer_domain(history, i, k) for k in range(len(history.records))],
                "not_finite": [record.readings[i].infinite for record in history.records],
            }
        )
    return {
        "freenergy": __version__,
        "verdict": headline(history, findings, cost),
        "findings": [asdict(finding) for finding in findings],
        "steps": [record.step for record in history.records],
        "layers": layers,
        "diffusion": asdict(diffusion) | {"words": diffusion.words},
        "cost": asdict(cost),
        "gradient_sums": [
            {
                "step": seen.step,
                "carried": {history.layers[i].name: ratio for i, ratio in seen.carried.items()},
                "cleared": [history.layers[i].name for i in seen.cleared],
            }
            for seen in history.sums
        ],
        "never_called": history.never_called,
        "unwatched": history.unwatched,
    }

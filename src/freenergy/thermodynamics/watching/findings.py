"""What is wrong with a net, in words: thresholds with their reasons, and the ranking.

Every judgement is made at the start (the first readings) and at the end (the last ones), on
medians, so that a single batch decides nothing. How a signal or a gradient fares is judged over
the whole net, because depth multiplies what no single layer shows; the finding then names the
layer where it goes wrong first. What follows from a graver finding is not reported beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from freenergy.normalization import critical_weight_square_sum
from freenergy.report.text import number
from freenergy.thermodynamics.watching.history import History, Record
from freenergy.thermodynamics.watching.layers import WatchedLayer

__all__ = ["KINDS", "Finding", "diagnose"]

Array = NDArray[np.float64]

WINDOW = 5
"""Readings of which a median is taken, at the start and at the end."""

MIN_FOR_TWO_WINDOWS = 8
"""Readings from which the last ones are another matter than the first."""

VANISHING = 1e-4
"""Ratio of variances over the whole net: an amplitude of one part in a hundred. Torch's own
initialisation costs a ReLU net a factor of 6 a layer. Nets of four hidden layers (1e-3) train with
it as a matter of course; in those of eight (1e-6) biases drown the signal at the start."""

EXPLODING = 1e4
"""The same upwards. SELU nets of 32 layers that train have a gradient that grows by 9."""

SPREAD = 5.0
"""A layer of *n* units multiplies the second moment by :math:`1 \\pm \\sqrt{5/n}` by chance (ReLU;
less for the others). Two standard deviations of the sum over layers are allowed for."""

BATCH_NORM_GROWTH = math.pi / (math.pi - 1)
"""Factor of a gradient's variance on its way back through a layer with batch normalisation and
ReLU, which is theirs by nature (Yang et al. 2019, arXiv:1902.08129) and allowed for."""

DEAD_SHARE = 0.8
"""Of a layer's units. Far down a deep ReLU net all rows look alike, so that up to half of the units
are silent for all of them by chance, and a net that has learned may have lost some more (two in
three, in 32 layers of 32 units); where four in five are silent, a fifth of the width is left."""

WHOLLY_DEAD = 0.95
"""Share from which a layer lets nothing through."""

MIN_RECORDS_DEAD = 3
"""Readings of other rows in which a unit must have been silent."""

SATURATED_SHARE = 0.8
"""Of rows times units with less than a twentieth of the largest slope. Where four in five are, the
layer's gradient is carried by the fifth that is left. A tanh net on digits that nobody scaled has
three in four, and learns them."""

LARGE_SQUARE_SUM = 100.0
"""Mean squared norm of a unit's weights. A signal survives at 1 (tanh, SELU), 2 (ReLU) or 16
(sigmoid); at 100 a layer multiplies amplitudes by ten. Healthy nets that were trained to the end
stayed below 12."""

GROWN_VARIANCE = 1e4
"""Growth of the variance of pre-activations since the start, or beyond order one: amplitudes of a
hundred times what the net was made for."""

LARGE_UPDATE = 0.5
"""Norm of an update over that of the weights, at the end. A layer that is replaced by half with
every step keeps nothing of what it learned; 1e-3 is usual, a few hundredths at the start."""

SMALL_UPDATE = 1e-6
"""The same for every layer and every reading. A million steps in one direction would be needed to
learn a layer anew, and single precision has a resolution of 6e-8."""

MIN_SELU_LAYERS = 4
"""SELU layers from which weights below the critical squared sum are a fault on their own."""

MOST_LAYERS = 0.75
"""Share of the SELU layers that must be so: one of them alone is made up for by the next."""

MIN_SUMS = 3
"""Pairs of updates in all of which the gradient of the first was in that of the second."""

MIN_SUMMED_ROWS = 8
"""Rows of a batch from which it matters whether their losses are added up or averaged."""

KINDS = (
    "gradient never cleared",
    "not finite",
    "dead units",
    "saturation",
    "exploding weights",
    "exploding signal",
    "vanishing signal",
    "exploding gradient",
    "vanishing gradient",
    "updates too large",
    "not learning",
    "summed loss",
)
"""Kinds of findings in the order of their rank, causes ahead of what follows from them."""

_OF_ALL_LAYERS = ("gradient never cleared", "summed loss")
_OVER_DEPTH = ("vanishing signal", "vanishing gradient", "exploding signal", "exploding gradient")
_MANY = 3
_END_LAYERS = 3


@dataclass(frozen=True)
class Finding:
    """Something wrong, where, how it shows, and what to try.

    Attributes
    ----------
    layer : str
        Where it goes wrong first, or is seen, where it concerns all layers.
    kind : str
        One of :data:`KINDS`.
    severity : {"fault", "warning"}
    evidence : str
        What was measured.
    suggestion : str
        What to change.
    """

    layer: str
    kind: str
    severity: str
    evidence: str
    suggestion: str

    def __str__(self) -> str:
        return f"{self.title()}: {self.evidence} {self.suggestion}"

    def title(self, quote: str = "") -> str:
        """What is wrong, and in which layer, unless it concerns them all."""
        if self.kind in _OF_ALL_LAYERS:
            return self.kind.capitalize()
        return f"{self.kind.capitalize()} in layer {quote}{self.layer}{quote}"


@dataclass(frozen=True, eq=False)
class _Window:
    """Readings that are judged together."""

    when: str
    records: tuple[Record, ...]


def diagnose(history: History) -> tuple[Finding, ...]:
    """Judge what was read.

    Parameters
    ----------
    history : History

    Returns
    -------
    tuple of Finding
        The gravest and the first cause ahead; empty for a net that is well.
    """
    found = _not_finite(history)
    whole = [record for record in history.records if record.whole]
    for window in _windows(whole):
        heavy = _exploding_weights(history, window)
        silent = _dead(history, window) + _saturated(history, window)
        silent = _without_consequences(history, silent, heavy)
        found += silent + heavy
        blocked = silent + heavy
        # Behind a layer that lets nothing through, signals and gradients are gone too.
        if not blocked:
            for chain in history.chains:
                found += _signal(history, window, chain[:-1])
                found += _gradient(history, window, chain[:-1])
            found += _explosion(history, window, whole)
    found += _updates(history, whole, found)
    if whole and not found:
        found += _exploding_weights(history, _Window("at the end", (history.records[-1],)))
    found += _not_cleared(history) + _summed(history, whole)
    return _ranked(_collapsed(_once(history, found)))


def _windows(whole: Sequence[Record]) -> list[_Window]:
    if not whole:
        return []
    if len(whole) < MIN_FOR_TWO_WINDOWS:
        return [_Window("at the start", tuple(whole[:WINDOW]))]
    return [
        _Window("at the start", tuple(whole[:WINDOW])),
        _Window("at the end", tuple(whole[-WINDOW:])),
    ]


# ---- order ---------------------------------------------------------------------------------------


def _once(history: History, found: Sequence[Finding]) -> list[Finding]:
    """What holds at the start and at the end is said once, in the words of the start."""
    parts = {layer.name: layer.part for layer in history.layers}
    kept: dict[tuple[str, ...], Finding] = {}
    for finding in found:
        key: tuple[str, ...] = (finding.kind, finding.layer, "itself")
        if finding.kind in _OVER_DEPTH:
            key = (finding.kind, parts[finding.layer])
        if key not in kept or (kept[key].severity, finding.severity) == ("warning", "fault"):
            kept[key] = finding
    return list(kept.values())


def _collapsed(found: Sequence[Finding]) -> list[Finding]:
    """Many findings of one kind are one, at the first layer."""
    result = []
    for kind in KINDS:
        alike = [finding for finding in found if finding.kind == kind]
        if len(alike) > _MANY:
            names = ", ".join(finding.layer for finding in alike[1:9])
            rest = f" and {len(alike) - 9} more" if len(alike) > 9 else ""
            words = f"{alike[0].evidence} Likewise in {names}{rest}."
            alike = [replace(alike[0], evidence=words)]
        result += alike
    return result


def _ranked(found: Sequence[Finding]) -> tuple[Finding, ...]:
    order = {"fault": 0, "warning": 1}
    # Within a kind they stand as the layers do.
    return tuple(sorted(found, key=lambda f: (order[f.severity], KINDS.index(f.kind))))


def _without_consequences(
    history: History, silent: list[Finding], heavy: list[Finding]
) -> list[Finding]:
    """Units that are dead behind exploding weights died of those."""
    if not heavy:
        return silent
    layers = {history.layers[i].name: history.layers[i] for i in history.called}
    first = min(layers[finding.layer].order for finding in heavy)
    bounded = [f for f in silent if layers[f.layer].activation in ("Sigmoid", "Tanh")]
    kept = [f for f in silent if layers[f.layer].order < first or f in bounded]
    # A bounded activation turns large weights into saturation, which is what stops learning.
    saturated = {finding.layer for finding in bounded}
    heavy[:] = [finding for finding in heavy if finding.layer not in saturated]
    return kept


# ---- single judgements ---------------------------------------------------------------------------


def _not_cleared(history: History) -> list[Finding]:
    """Gradients that were used by an update and are in the next one's too."""
    if not history.sums:
        return []
    for i in history.called:
        carried = [seen for seen in history.sums if i in seen.carried]
        if len(carried) < MIN_SUMS or any(i in seen.cleared for seen in history.sums):
            continue
        first, last = carried[0], carried[-1]
        words = (
            f"Each of {len(carried)} updates that were followed, from step {first.step} to "
            f"{last.step}, used the gradient of the update before once more: what backward added "
            f"was added to it. At the last of them the old one was {_n(last.carried[i])} times as "
            "large as what was new."
        )
        advice = (
            "Call optimizer.zero_grad() between an update and the next backward pass. (Passes that "
            "are gathered for one update are no fault, and were told apart.)"
        )
        name = history.layers[i].name
        return [Finding(name, "gradient never cleared", "fault", words, advice)]
    return []


def _not_finite(history: History) -> list[Finding]:
    for place, record in enumerate(history.records):
        wrong = [i for i, r in enumerate(record.readings) if r.infinite]
        if not wrong:
            continue
        forward = [i for i in wrong if record.readings[i].infinite != "gradients"]
        by_order = sorted(forward or wrong, key=lambda i: history.layers[i].order)
        # Forward the first layer is the origin, on the way back the last one.
        i = by_order[0] if forward else by_order[-1]
        layer, what = history.layers[i], record.readings[i].infinite
        before = history.records[place - 1] if place else None
        words = f"At step {record.step} {what} of this layer are not finite"
        if before is None:
            words += ", from the first reading on."
        else:
            words += f"; at step {before.step}, the reading before, everything was."
            words += _growth_words(history, i, before)
        advice = _advice_for_infinite(what, drawn_so=before is None)
        return [Finding(layer.name, "not finite", "fault", words, advice)]
    return []


def _growth_words(history: History, i: int, before: Record) -> str:
    first = history.records[0].readings[i].variance
    last = before.readings[i].variance
    if not (math.isfinite(first) and math.isfinite(last)) or last < 10 * first:
        return ""
    return f" The variance of its pre-activations had grown from {_n(first)} to {_n(last)}."


def _advice_for_infinite(what: str, *, drawn_so: bool) -> str:
    if what == "weights" and drawn_so:
        return (
            "No update has been made yet: check how the weights are drawn, or the file that they "
            "were loaded from."
        )
    if what == "inputs":
        return "Look for missing or infinite values in the data, or in what comes before the layer."
    return (
        "Lower the learning rate or clip the norm of the gradient; in half precision, scale the "
        "loss. Look for a logarithm or a division by zero in the loss."
    )


def _dead(history: History, window: _Window) -> list[Finding]:
    found: list[Finding] = []
    for i in history.hidden:
        masks = [r.readings[i].positive for r in window.records]
        present = [mask for mask in masks if mask is not None]
        if len(present) < MIN_RECORDS_DEAD:
            continue
        share = float((~np.any(present, axis=0)).mean())
        if share < DEAD_SHARE or (found and _unmoved(history, i, window)):
            continue
        layer = history.layers[i]
        median = float(np.nanmedian(history.series(i, "p50", window.records)))
        bias = float(np.nanmedian(history.series(i, "bias_mean", window.records)))
        words = (
            f"{window.when.capitalize()} {100 * share:.0f} % of its units were zero for every row "
            f"of {len(present)} readings (median pre-activation {_n(median)}, mean bias "
            f"{_n(bias)}). They pass on nothing and get no gradient."
        )
        severity = "fault" if share >= WHOLLY_DEAD else "warning"
        advice = (
            "Start the layer anew with biases of zero and He's weights, lower the learning rate, "
            "or use a leaky ReLU or SELU, whose units come back."
        )
        found.append(Finding(layer.name, "dead units", severity, words, advice))
    return found


def _unmoved(history: History, i: int, window: _Window) -> bool:
    """Whether all rows look alike to a layer, as they do behind a dead one."""
    return bool(np.nanmedian(history.series(i, "input_signal", window.records)) == 0)


def _saturated(history: History, window: _Window) -> list[Finding]:
    shares = history.middle(history.hidden, "saturated", window.records)
    found = []
    for i, share in zip(history.hidden, shares, strict=True):
        if not share >= SATURATED_SHARE:
            continue
        layer = history.layers[i]
        low, high, tau, nu = (
            float(np.nanmedian(history.series(i, name, window.records)))
            for name in ("p15", "p85", "weight_square_sum", "input_variance")
        )
        words = (
            f"{window.when.capitalize()} {100 * share:.0f} % of its units and rows lie where the "
            f"slope of {layer.activation} is below a twentieth of its largest (pre-activations "
            f"from {_n(low)} to {_n(high)} in the middle 70 %; τ = {_n(tau)}, inputs of "
            f"variance {_n(nu)})."
        )
        advice = (
            "Draw smaller weights (Glorot's), set the biases to zero, standardise the inputs, or "
            "put batch normalisation ahead of the activation."
        )
        found.append(Finding(layer.name, "saturation", "fault", words, advice))
    return found


def _exploding_weights(history: History, window: _Window) -> list[Finding]:
    taus = history.middle(history.called, "weight_square_sum", window.records)
    found = []
    for i, tau in zip(history.called, taus, strict=True):
        layer = history.layers[i]
        # Batch normalisation takes the scale of the weights out again.
        if not tau > LARGE_SQUARE_SUM or layer.normalization:
            continue
        start = history.series(i, "weight_square_sum")[0]
        grown = f", {_n(tau / start)} times that of the start" if tau > 4 * start > 0 else ""
        when = window.when
        if grown and when == "at the start":
            when = f"within the first {window.records[-1].step} steps"
        words = (
            f"{when.capitalize()} the weights of its units have a squared norm of "
            f"τ = {_n(tau)} on average{grown} (temperature 1/√τ = {_n(tau**-0.5)}); signals keep "
            f"their size at {_n(_sustaining(history, i))}."
        )
        advice = (
            "Draw weights of variance 1/fan-in (2/fan-in for ReLU)"
            if not grown
            else "Lower the learning rate, clip the norm of the gradient"
        ) + ", or bound the norm of each unit's weights (max-norm)."
        advice += _advice_for_targets(history, window)
        found.append(Finding(layer.name, "exploding weights", "fault", words, advice))
    return found


def _sustaining(history: History, i: int) -> float:
    name = history.layers[i].activation
    return {"Sigmoid": 16.0, "ReLU": 2.0, "LeakyReLU": 2.0}.get(name, 1.0)


def _explosion(history: History, window: _Window, whole: Sequence[Record]) -> list[Finding]:
    """Pre-activations that have grown beyond all that the net was made for."""
    hidden = history.hidden
    if not hidden or window.when != "at the end":
        return []
    first = history.middle(hidden, "variance", tuple(whole[:1]))
    data = history.series(hidden[0], "input_variance", whole[:1])[0]
    last = history.middle(hidden, "variance", window.records)
    floor = np.maximum(np.nan_to_num(first), max(1.0, float(np.nan_to_num(data))))
    for i, was, now, least in zip(hidden, first, last, floor, strict=True):
        if now > GROWN_VARIANCE * least:
            words = (
                f"At the end the variance of its pre-activations is {_n(now)}, after {_n(was)} at "
                "the start."
            )
            advice = "Lower the learning rate, clip the norm of the gradient, or use max-norm."
            advice += _advice_for_targets(history, window)
            name = history.layers[i].name
            return [Finding(name, "exploding signal", "fault", words, advice)]
    return []


def _advice_for_targets(history: History, window: _Window) -> str:
    """A net that has to reach large numbers grows without being ill."""
    outputs = float(history.middle(history.called[-1:], "variance", window.records)[0])
    if window.when != "at the end" or not outputs > GROWN_VARIANCE:
        return ""
    return (
        f" The outputs have a variance of {_n(outputs)}: if the targets of a regression are that "
        "large, standardise them."
    )


# ---- signal and gradient over the depth ----------------------------------------------------------


def _signal(history: History, window: _Window, hidden: Sequence[int]) -> list[Finding]:
    signal = history.middle(hidden, "signal", window.records)
    ends = _ends(signal)
    if ends is None:
        return []
    factor, slack = _log_ratio(ends[1], ends[0]), _slack(history, hidden)
    entry = history.series(hidden[0], "input_signal", window.records)
    steps = np.diff(_logs(signal), prepend=_logs(np.array([np.nanmedian(entry)])))
    where = _culprit(steps, factor / (len(hidden) - 1))
    layer = history.layers[hidden[where]]
    tau = float(np.nanmedian(history.series(hidden[where], "weight_square_sum", window.records)))
    last = history.layers[hidden[-1]].name
    words = (
        f"{window.when.capitalize()} the variance of pre-activations between rows goes from "
        f"{_n(ends[0])} to {_n(ends[1])} over {len(hidden)} layers, by a factor of "
        f"{_n(math.exp(factor))} down to layer {last}; chance alone explains "
        f"{_n(math.exp(math.copysign(slack, factor)))} (two standard deviations). "
        f"Weights of this layer: τ = {_n(tau)}."
    )
    small = _below_critical(history, window, hidden)
    if small is not None:
        layer, reason = small
        words = f"{reason} {words}"
    if small is not None or factor < math.log(VANISHING) - slack:
        kind = "vanishing signal"
        return [Finding(layer.name, kind, "fault", words, _signal_advice(layer.activation))]
    if factor > math.log(EXPLODING) + slack:
        advice = "Draw smaller weights, of variance 1/fan-in (2/fan-in for ReLU), or normalise."
        advice += _advice_for_targets(history, window)
        return [Finding(layer.name, "exploding signal", "fault", words, advice)]
    return []


def _below_critical(
    history: History, window: _Window, hidden: Sequence[int]
) -> tuple[WatchedLayer, str] | None:
    """SELU layers whose weights are too small for the fixed point that they are there for."""
    selu = [
        i
        for i in hidden
        if history.layers[i].activation == "SELU" and not history.layers[i].normalization
    ]
    if len(selu) < MIN_SELU_LAYERS or window.when != "at the start":
        return None
    critical = critical_weight_square_sum("selu")
    taus = history.middle(selu, "weight_square_sum", window.records)
    small = [i for i, tau in zip(selu, taus, strict=True) if tau < critical]
    if len(small) < MOST_LAYERS * len(selu):
        return None
    return history.layers[small[0]], (
        f"{len(small)} of {len(selu)} SELU layers start with weights whose squared sum is below "
        f"{critical:.3f}, where SELU has no fixed point but zero: every layer erases some of its "
        "input."
    )


def _signal_advice(activation: str) -> str:
    if activation == "SELU":
        return (
            "Draw LeCun's normal weights, of variance 1/fan-in, with biases of zero: "
            "`nn.init.kaiming_normal_(weight, nonlinearity='linear')`."
        )
    if activation in ("ReLU", "LeakyReLU", "ELU"):
        return (
            "Draw He's weights, of variance 2/fan-in, with biases of zero "
            "(`nn.init.kaiming_normal_`), or normalise each layer."
        )
    if activation == "Sigmoid":
        return "Use tanh or SELU, or batch normalisation: a sigmoid's slope is 1/4 at most."
    return "Draw weights of variance 1/fan-in (`nn.init.xavier_normal_`), or normalise each layer."


def _gradient(history: History, window: _Window, hidden: Sequence[int]) -> list[Finding]:
    gradient = history.middle(hidden, "gradient_square", window.records)
    ends = _ends(gradient)
    if ends is None:
        return []
    factor, slack = _log_ratio(ends[0], ends[1]), _slack(history, hidden)
    # A mean over k places, as pooling takes it, divides the square of a gradient by up to k on its
    # way back; repeating a value multiplies it.
    sites = history.middle(hidden, "n_sites", window.records)
    pooled = _log_ratio(float(sites[0]), float(sites[-1]))
    normalised = sum(bool(history.layers[i].normalization) for i in hidden)
    natural = normalised * math.log(BATCH_NORM_GROWTH)
    # On the way back the layers come in the opposite order.
    steps = np.append(np.diff(_logs(gradient)[::-1]), 0.0)[::-1]
    where = len(hidden) - 1 - _culprit(steps[::-1], factor / (len(hidden) - 1))
    where = min(where, len(hidden) - 2)
    layer = history.layers[hidden[where]]
    words = (
        f"{window.when.capitalize()} the squared norm of the loss's gradient goes from "
        f"{_n(ends[1])} "
        f"at layer {history.layers[hidden[-1]].name} to {_n(ends[0])} at layer "
        f"{history.layers[hidden[0]].name} on its way back, by a factor of "
        f"{_n(math.exp(factor))} over {len(hidden)} layers."
    )
    if factor < math.log(VANISHING) - slack - max(pooled, 0.0):
        advice = _signal_advice(layer.activation)
        return [Finding(layer.name, "vanishing gradient", "fault", words, advice)]
    if factor > math.log(EXPLODING) + slack + natural + max(-pooled, 0.0):
        advice = "Draw smaller weights, clip the norm of the gradient, or use residual connections."
        return [Finding(layer.name, "exploding gradient", "fault", words, advice)]
    return []


def _ends(values: Array) -> tuple[float, float] | None:
    """The largest of a few first and of a few last layers: single ones may be small.

    A branch that starts at zero, as in residual nets, is no fault.
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    few = min(max(len(values) // 4, 1), _END_LAYERS)
    first, last = float(values[:few].max()), float(values[-few:].max())
    return (first, last) if max(first, last) > 0 else None


def _slack(history: History, layers: Sequence[int]) -> float:
    return 2 * math.sqrt(sum(SPREAD / history.layers[i].n_units for i in layers))


def _culprit(steps: Array, average: float) -> int:
    """The first layer that does at least half of an average layer's share of the whole change."""
    half = 0.5 * average
    guilty = steps <= half if average < 0 else steps >= half
    guilty &= np.isfinite(steps)
    return int(np.argmax(guilty)) if guilty.any() else 0


def _logs(values: Array) -> Array:
    logs: Array = np.log(np.maximum(values, 1e-300))
    return logs


def _log_ratio(a: float, b: float) -> float:
    return float(math.log(max(a, 1e-300)) - math.log(max(b, 1e-300)))


# ---- updates -------------------------------------------------------------------------------------


def _updates(history: History, whole: Sequence[Record], found: Sequence[Finding]) -> list[Finding]:
    learning = [i for i in history.called if history.layers[i].trainable]
    if len(whole) < MIN_RECORDS_DEAD or not learning:
        return []
    table = np.array([history.series(i, "update_ratio", whole) for i in learning])
    if not np.isfinite(table).any():
        return []
    largest = np.array([np.max(row[np.isfinite(row)], initial=-np.inf) for row in table])
    result = []
    # A net with another fault may not learn for that reason.
    if largest.max() < SMALL_UPDATE and not found:
        result.append(_no_learning(history, learning, float(largest.max())))
    for i, most in zip(learning, largest, strict=True):
        if most == 0 and not found and not result:
            words = (
                f"Its weights have not changed in {len(whole)} readings, while those of other "
                "layers have."
            )
            advice = (
                "Hand its parameters to the optimiser, or freeze it with requires_grad_(False)."
            )
            result.append(Finding(history.layers[i].name, "not learning", "warning", words, advice))
    if len(whole) >= MIN_FOR_TWO_WINDOWS:
        for i, row in zip(learning, table[:, -WINDOW:], strict=True):
            if np.isfinite(row).any() and np.nanmedian(row) >= LARGE_UPDATE:
                words = (
                    f"At the end each update changes its weights by {np.nanmedian(row):.2g} of "
                    "their norm."
                )
                advice = "Lower the learning rate: a thousandth is usual."
                name = history.layers[i].name
                result.append(Finding(name, "updates too large", "fault", words, advice))
    return result


def _no_learning(history: History, learning: Sequence[int], largest: float) -> Finding:
    words = (
        "No update changed the weights of any layer by more than "
        f"{_n(largest)} of their norm: they stay as they were drawn."
        if largest > 0
        else "The weights of no layer have changed."
    )
    advice = (
        "Raise the learning rate, and see that the optimiser holds the parameters of this module."
    )
    return Finding(history.layers[learning[0]].name, "not learning", "fault", words, advice)


def _summed(history: History, whole: Sequence[Record]) -> list[Finding]:
    """A loss whose rows are added up, where that can be read off its gradient."""
    for chain in history.chains:
        i = chain[-1]
        rows, weights = (history.series(i, name, whole) for name in ("n_rows", "row_weight"))
        known = np.isfinite(weights) & (rows >= MIN_SUMMED_ROWS)
        if known.sum() < MIN_RECORDS_DEAD or not np.allclose(weights[known], 1.0, rtol=0.01):
            continue
        n = _n(float(np.median(rows[known])))
        words = (
            f"In {known.sum()} readings the gradient of the loss for a row is p − y, with weight 1 "
            f"instead of 1/{n}: the losses of the {n} rows of a batch are added up, not averaged."
        )
        advice = (
            "Average them (`reduction='mean'`). Where the sum is meant it is no fault: plain SGD "
            f"does the same with a learning rate {n} times as small. But rate, clipping and weight "
            "decay then mean another thing for every size of the batch."
        )
        return [Finding(history.layers[i].name, "summed loss", "warning", words, advice)]
    return []


def _n(value: float) -> str:
    """Three digits."""
    return number(float(value), 3)

"""The page of a watched training: findings first, then a figure for every quantity."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from freenergy._version import __version__
from freenergy.report import Block, Curve, LineChart, Page, Section, Table, Text, Verdict
from freenergy.thermodynamics.watching.diffusion import Diffusion
from freenergy.thermodynamics.watching.expectation import DOMAINS, Expectation, expect
from freenergy.thermodynamics.watching.findings import WINDOW, Finding
from freenergy.thermodynamics.watching.history import History
from freenergy.thermodynamics.watching.layers import SATURATED_SLOPE
from freenergy.thermodynamics.watching.results import (
    Cost,
    cost_words,
    headline,
    is_of_the_start,
    layer_domain,
)

__all__ = ["watch_page"]

Array = NDArray[np.float64]
Values = Callable[[int], Array]
"""Numbers of a layer, one for each record."""

_WIDEST = 34  # characters of a cell that stays on one line
_N_SHOWN = 6  # layers that are followed step by step; more curves cannot be told apart


def watch_page(
    history: History, findings: Sequence[Finding], cost: Cost, diffusion: Diffusion
) -> Page:
    """Compose the page of a watched training."""
    view = _View(history)
    sections = [_findings_section(findings, cost)]
    if view.whole:
        sections += [
            _depth_section(view),
            _weights_section(view),
            _percentile_section(view, findings),
            _steps_section(view, findings),
            _diffusion_section(history, diffusion),
            _table_section(view),
        ]
    sections.append(_reading_section(history))
    return Page(
        title="A training, watched",
        question="Does every layer of this net take part in learning?",
        verdict=_verdict(history, findings, cost),
        sections=sections,
        provenance={
            "readings": f"{cost.n_read} of {cost.n_steps} training passes",
            "layers": len(history.layers),
            "freenergy": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )


class _View:
    """The records as figures show them: the first one, the last few, and all of them."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.layers = history.called
        self.places = np.arange(1, len(self.layers) + 1)
        self.whole = [k for k, record in enumerate(history.records) if record.whole]
        self._expected: dict[int, Expectation] = {}

    @property
    def phases(self) -> list[tuple[str, list[int]]]:
        """Records of the start and of the end, by name."""
        phases = [("start", self.whole[:1])]
        if len(self.whole) > 1:
            phases.append(("end", self.whole[1:][-WINDOW:]))
        return phases

    def measured(self, quantity: str) -> Values:
        return lambda layer: self.history.series(layer, quantity)

    def predicted(self, quantity: str) -> Values:
        def values(layer: int) -> Array:
            if layer not in self._expected:
                self._expected[layer] = expect(self.history, layer)
            found: Array = getattr(self._expected[layer], quantity)
            return found

        return values

    def over_layers(self, values: Values, records: list[int]) -> Array:
        """Medians over records, one for each layer."""
        return np.array([_median(values(layer)[records]) for layer in self.layers])

    def name(self, layer: int) -> str:
        """Number and path of a layer."""
        return f"{self.history.layers[layer].order + 1} · {self.history.layers[layer].name}"

    def shown(self, findings: Sequence[Finding]) -> list[int]:
        """A few layers: those of findings, and others evenly from the first to the last."""
        if len(self.layers) <= _N_SHOWN:
            return self.layers
        named = {finding.layer for finding in findings}
        chosen = [i for i in self.layers if self.history.layers[i].name in named][: _N_SHOWN // 2]
        for n in range(_N_SHOWN, 0, -1):
            even = [
                self.layers[k] for k in np.linspace(0, len(self.layers) - 1, n).round().astype(int)
            ]
            union = sorted({*chosen, *even}, key=self.layers.index)
            if len(union) <= _N_SHOWN:
                return union
        return chosen


def _median(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")


# ---- words ---------------------------------------------------------------------------------------


def _verdict(history: History, findings: Sequence[Finding], cost: Cost) -> Verdict:
    words = headline(history, findings, cost)
    if not history.records or (not findings and is_of_the_start(history, cost)):
        return Verdict("undecided", words)
    if not findings:
        return Verdict("supported", f"Yes. {words}")
    first = findings[0]
    status = "contradicted" if first.severity == "fault" else "undecided"
    words = words.replace(f"{first.title()}.", f"**{first.title('`')}.**")
    return Verdict(status, f"{words} {first.suggestion}")  # type: ignore[arg-type]


def _findings_section(findings: Sequence[Finding], cost: Cost) -> Section:
    paragraphs = []
    for rank, finding in enumerate(findings, 1):
        title = f"{rank}. {finding.title('`')}"
        paragraphs.append(
            f"**{title}** ({finding.severity}). {finding.evidence} **→** {finding.suggestion}"
        )
    if not findings:
        paragraphs.append(
            "In the passes that were read no layer is dead or saturated, no signal and no gradient "
            "is lost or out of bounds on its way through the layers, and updates have a usual size."
        )
    return Section("What was found", [Text([*paragraphs, cost_words(cost)])])


def _reading_section(history: History) -> Section:
    paragraphs = [
        "**Start and end.** The start is the first training pass, before any update; the end is "
        f"the median of the last {WINDOW} readings. Layers are numbered as the data goes through "
        "them; the table has their names.",
        "**Predicted** is what the moment map makes of the mean and variance of a layer's inputs, "
        "and of the sums ω and squared sums τ of its weights as they are. It holds when weights "
        "and inputs know nothing of each other, which is so at the start. How far the end is from "
        "it tells how much the weights have learned of their inputs.",
        "**The variance between rows** is the part of the variance that depends on the input. The "
        "rest comes from units that differ, in their biases for instance, whatever the input.",
        "**Temperature** is 1/√τ: a unit's field is the length of its weight vector times what "
        "comes along that vector's direction, so that larger weights make a colder net, whose "
        "units are surer.",
        f"**Saturated** is where an activation's slope is below {SATURATED_SLOPE:g} of its "
        "largest; **silent** units were zero for every row of the readings.",
    ]
    if history.unwatched:
        names = ", ".join(f"`{name}`" for name in history.unwatched)
        paragraphs.append(
            f"**Not watched**, as they are neither linear nor convolutional: {names}."
        )
    if history.never_called and history.records:
        names = ", ".join(f"`{name}`" for name in history.never_called)
        paragraphs.append(f"**Never called** in the passes that were read: {names}.")
    computed = [layer.name for layer in history.layers if not layer.readable_weights]
    if computed:
        names = ", ".join(f"`{name}`" for name in computed)
        paragraphs.append(
            f"**Weights not read**, as a parametrization computes them and may change when "
            f"looked at: {names}."
        )
    return Section("How to read this page", [Text(paragraphs)])


# ---- figures over layers -------------------------------------------------------------------------


def _against_depth(
    view: _View,
    title: str,
    label: str,
    measured: str,
    predicted: str | None = None,
    *,
    log: bool = False,
    spread: str | None = None,
    note: str = "",
) -> list[Block]:
    """One quantity over the layers, at the start and at the end, beside its prediction."""
    curves = []
    for phase, records in view.phases:
        y = view.over_layers(view.measured(measured), records)
        if not np.isfinite(y).any():
            continue
        width = None if spread is None else _deviation(view, spread, records)
        group = None if predicted is None else phase
        name = phase if predicted is None else "measured"
        lower, upper = (None, None) if width is None else (y - width, y + width)
        curves.append(Curve(name, view.places, y, lower, upper, group=group))
        if predicted is not None:
            expected = view.over_layers(view.predicted(predicted), records)
            if np.isfinite(expected).any():
                curves.append(Curve("predicted", view.places, expected, group=group, dash=True))
    if not curves:
        return []
    return [LineChart(title, "layer", label, curves, log_y=log, note=note)]


def _deviation(view: _View, quantity: str, records: list[int]) -> Array:
    values = view.over_layers(view.measured(quantity), records)
    # Of the sum the variance is read, of the squared sum the deviation.
    return np.sqrt(values) if quantity.endswith("_variance") else values


def _depth_section(view: _View) -> Section:
    blocks = [
        *_against_depth(
            view, "Variance of pre-activations", "Var z", "variance", "variance", log=True
        ),
        *_against_depth(
            view, "Variance between rows: the signal", "⟨Var z⟩ over rows", "signal", log=True,
            note="Where this falls to nothing, all inputs look alike to the layers above.",
        ),
        *_against_depth(view, "Mean of pre-activations", "E z", "mean", "mean"),
        *_against_depth(
            view, "Variance of the gradient", "Var ∂L/∂z", "gradient_variance",
            "gradient_variance", log=True, note="Gradients come from the right.",
        ),
        *_shares(view),
    ]  # fmt: skip
    return Section(
        "Through the layers",
        blocks,
        intro=(
            "What becomes of a signal on its way up, and of the gradient on its way back, beside "
            "what the moment map predicts layer by layer."
        ),
    )


def _shares(view: _View) -> list[Block]:
    """Saturated units and silent ones."""
    blocks = _against_depth(view, "Saturated", "share of units and rows", "saturated")
    curves = []
    for phase, records in view.phases:
        used = view.whole[:WINDOW] if phase == "start" else records
        y = np.array([_silent(view, layer, used) for layer in view.layers])
        if np.isfinite(y).any():
            curves.append(Curve(phase, view.places, y))
    if curves:
        blocks.append(LineChart("Silent units", "layer", "share of units", curves))
    return blocks


def _silent(view: _View, layer: int, records: list[int]) -> float:
    masks = [view.history.records[k].readings[layer].positive for k in records]
    present = [mask for mask in masks if mask is not None]
    if not present or view.history.layers[layer].order == len(view.layers) - 1:
        return float("nan")
    return float((~np.any(present, axis=0)).mean())


def _weights_section(view: _View) -> Section:
    blocks = [
        *_against_depth(
            view, "Squared sum of a unit's weights, τ", "τ, with its spread over units",
            "weight_square_sum", spread="weight_square_sum_spread",
        ),
        *_against_depth(
            view, "Sum of a unit's weights, ω", "ω, with its spread over units",
            "weight_sum", spread="weight_sum_variance",
        ),
        *_against_depth(view, "Temperature", "1/√τ", "temperature"),
        *_against_depth(
            view, "Size of an update", "‖Δw‖ / ‖w‖", "update_ratio", log=True,
            note="A thousandth is usual, a few hundredths at the start.",
        ),
    ]  # fmt: skip
    return Section("The weights", blocks)


# ---- figures over steps --------------------------------------------------------------------------


def _percentile_section(view: _View, findings: Sequence[Finding]) -> Section:
    records = view.whole
    steps = view.history.steps[records]
    charts: list[Block] = []
    for layer in view.shown(findings):
        low, middle, high = (
            view.history.series(layer, name)[records] for name in ("p15", "p50", "p85")
        )
        curve = Curve("median", steps, middle, low, high)
        title = f"Layer {view.name(layer)}"
        activation = view.history.layers[layer].activation
        note = f"Goes into {activation}." if activation != "unknown" else ""
        charts.append(LineChart(title, "step", "pre-activation z", [curve], note=note))
    return Section(
        "Pre-activations, step by step",
        charts,
        intro="Lines are medians, bands hold the middle 70 % (percentiles 15 to 85)."
        + (
            f" {len(charts)} of {len(view.layers)} layers ({len(view.history.hidden)} hidden "
            "ones and the outputs), those of the findings among them."
            if len(charts) < len(view.layers)
            else ""
        ),
    )


def _steps_section(view: _View, findings: Sequence[Finding]) -> Section:
    records = view.whole
    steps = view.history.steps[records]
    charts: list[Block] = []
    for title, label, quantity in (
        ("Signal", "⟨Var z⟩ over rows", "signal"),
        ("Variance of the gradient", "Var ∂L/∂z", "gradient_variance"),
        ("Size of an update", "‖Δw‖ / ‖w‖", "update_ratio"),
        ("Temperature", "1/√τ", "temperature"),
    ):
        curves = [
            Curve(view.name(layer), steps, view.history.series(layer, quantity)[records])
            for layer in view.shown(findings)
        ]
        curves = [curve for curve in curves if np.isfinite(curve.y).any()]
        if curves:
            log = quantity != "temperature"
            charts.append(LineChart(f"{title} over the steps", "step", label, curves, log_y=log))
    return Section("Everything else, step by step", charts)


def _diffusion_section(history: History, diffusion: Diffusion) -> Section:
    times, distances = history.distances()
    curves = [Curve("distance", times, distances)]
    if np.isfinite(diffusion.exponent):
        t = np.geomspace(times.min(), times.max(), 60)
        log_fit = diffusion.log_offset + diffusion.log_slope * np.log(t)
        curves.append(Curve("p + q ln t", t, log_fit, dash=True))
        power = diffusion.power_factor * t**diffusion.exponent
        curves.append(Curve(f"c t^{diffusion.exponent:.2f}", t, power, dash=True))
    return Section(
        "How far the weights have gone",
        [
            LineChart("Distance from the start", "updates", "‖w_t − w_0‖", curves, log_x=True),
            Text(
                [
                    diffusion.words,
                    "A distance that grows as the logarithm of time is that of a walk in a "
                    "landscape whose barriers grow with the distance (Hoffer et al. 2017); one "
                    "that grows as the square root of time is a free walk.",
                ]
            ),
        ],
    )


def _table_section(view: _View) -> Section:
    history, last = view.history, view.phases[-1][1]
    first, end = view.whole[0], last[-1]
    with_domain = any(layer_domain(history, i, first) for i in view.layers)
    columns = ["layer", "what it is", "units", "Var z, start", "end", "Var ∂L/∂z, end",
               "τ, start", "end", "update", "idle"]  # fmt: skip
    rows: list[list[object]] = []
    for i in view.layers:
        layer = history.layers[i]
        parts = (layer.kind, layer.normalization, layer.activation)
        silent, saturated = _silent(view, i, last), _median(history.series(i, "saturated")[last])
        share = saturated if np.isfinite(saturated) else silent
        row: list[object] = [
            _unbroken(view.name(i)),
            _unbroken(" → ".join(part for part in parts if part and part != "unknown")),
            layer.n_units,
            float(history.series(i, "variance")[first]),
            _median(history.series(i, "variance")[last]),
            _median(history.series(i, "gradient_variance")[last]),
            float(history.series(i, "weight_square_sum")[first]),
            _median(history.series(i, "weight_square_sum")[last]),
            _median(history.series(i, "update_ratio")[last]),
            f"{100 * share:.0f}\N{NO-BREAK SPACE}%" if np.isfinite(share) else "",
        ]
        if with_domain:
            domains = [layer_domain(history, i, k) for k in (first, end)]
            row.append(_unbroken(" → ".join(dict.fromkeys(domains))))
        rows.append(row)
    note = "Idle: units that are silent, or saturated, at the end."
    if with_domain:
        columns.append("domain")
        meanings = "; ".join(f"{name}: {meaning}" for name, meaning in DOMAINS.items())
        note += (
            " Domains of Klambauer et al. (2017), by the mean and variance of a layer's inputs and "
            f"by the means of ω and τ over its units. {meanings}."
        )
    return Section("Every layer", [Table(columns, rows, note=note)])


def _unbroken(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}") if len(text) <= _WIDEST else text

"""Charts as Plotly figures: plain dictionaries, ready for JSON.

A figure holds no colour. A trace names its place in the palette as ``meta["series"]``, and the
script on the page looks the colour up in the style sheet, so that figures follow the light or
dark theme.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from freenergy.report.charts import BarChart, Curve, HistogramChart, LineChart
from freenergy.report.text import number

__all__ = ["N_COLOURS", "Chart", "Drawing", "LegendEntry", "Palette", "Style", "draw"]

Chart: TypeAlias = LineChart | BarChart | HistogramChart
Vector: TypeAlias = NDArray[np.float64]

N_COLOURS = 8
"""Colours in the palette of ``page.css``, ``--series-0`` to ``--series-7``."""

MAX_POINTS = 2000
"""Points of a curve beyond which only the extremes of each stretch are drawn."""

_FEW_DECADES = 2.5  # up to which there is room for the ticks 1, 2 and 5
_MOST_WHOLE = 10

_SYMBOLS = (
    "circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "hexagon", "x",
)  # fmt: skip
_TURNS = ("solid", "dot", "dashdot")  # the palette once more, and once more again
_MAX_MARKED = 40  # more points than this merge into a line of beads
_MAX_UPRIGHT = 40  # characters of tick labels that stand side by side on a phone


@dataclass(frozen=True, slots=True)
class Style:
    """How a name is drawn everywhere on a page."""

    colour: int
    symbol: str
    dash: str = "solid"

    def dashed(self) -> Style:
        """Give the same style with a dashed line."""
        return replace(self, dash="dash" if self.dash == "solid" else "longdashdot")


class Palette:
    """One style for each name, in the order in which the page mentions them.

    The first eight names have a colour to themselves. Further ones share it with names that stand
    in other charts, and only a chart of more than eight names needs dotted lines as well.

    Parameters
    ----------
    charts : iterable of LineChart, BarChart or HistogramChart
        All charts of the page.

    Examples
    --------
    >>> palette = Palette([LineChart("", "", "", [Curve("CD", [], []), Curve("PCD", [], [])])])
    >>> palette["PCD"]
    Style(colour=1, symbol='square', dash='solid')
    """

    def __init__(self, charts: Iterable[Chart]) -> None:
        charts = tuple(charts)
        together = [set(_names(chart)) for chart in charts]
        self._styles: dict[str, Style] = {}
        counts = [0] * N_COLOURS
        for name in dict.fromkeys(name for c in charts for name in _names(c) if _gives_colour(c)):
            neighbours = set().union(*(names for names in together if name in names))
            taken = [self._styles[other] for other in neighbours if other in self._styles]
            self._styles[name] = style = _free_style(taken, counts)
            counts[style.colour] += 1

    def __getitem__(self, name: str) -> Style:
        return self._styles[name]

    def get(self, name: str) -> Style | None:
        """Give the style of a name, or ``None`` for one that no curve has."""
        return self._styles.get(name)


def _free_style(taken: Sequence[Style], counts: Sequence[int]) -> Style:
    """Find the style for a new name: not taken in its charts, its colour the least used so far."""
    used = {(style.dash, style.colour) for style in taken}
    styles = (
        Style(colour, _SYMBOLS[(colour + turn) % len(_SYMBOLS)], dash)
        for turn, dash in enumerate(_TURNS)
        for colour in sorted(range(N_COLOURS), key=lambda colour: counts[colour])
    )
    # A chart of more than 24 names repeats itself; nobody can tell that many lines apart.
    return next((s for s in styles if (s.dash, s.colour) not in used), Style(0, _SYMBOLS[0]))


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """A name in a legend, with the traces that it shows and hides."""

    name: str
    traces: tuple[int, ...]
    style: Style
    group: str | None = None
    marked: bool = False


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart as the page shows it; ``figure`` is ``None`` where there is nothing to draw."""

    figure: dict[str, Any] | None
    description: str
    legend: tuple[LegendEntry, ...] = ()
    notes: tuple[str, ...] = ()
    height: int | None = None


def draw(chart: Chart, palette: Palette) -> Drawing:
    """Draw a chart.

    Parameters
    ----------
    chart : LineChart, BarChart or HistogramChart
        What to draw.
    palette : Palette
        The styles of all names on the page.

    Examples
    --------
    >>> chart = LineChart("Loss", "epoch", "nats", [Curve("CD", [1, 2, 3], [3.5, np.nan, 1.5])])
    >>> drawing = draw(chart, Palette([chart]))
    >>> drawing.figure["data"][0]["y"]
    [3.5, None, 1.5]
    >>> drawing.description
    'Line chart of nats against epoch. Curves: CD.'
    """
    if isinstance(chart, LineChart):
        return _draw_lines(chart, palette)
    if isinstance(chart, BarChart):
        return _draw_bars(chart, palette)
    return _draw_histogram(chart, palette)


def _names(chart: Chart) -> list[str]:
    """List the names that should look different in a chart."""
    if isinstance(chart, LineChart):
        return [_family(curve) for curve in chart.curves]
    if isinstance(chart, HistogramChart):
        return [*chart.series, *chart.markers]
    return list(chart.labels)


def _gives_colour(chart: Chart) -> bool:
    """Tell whether names have a colour of their own here; bars only borrow those of curves."""
    return not isinstance(chart, BarChart)


# ---------------------------------------------------------------------------------------- lines


@dataclass(slots=True)
class _Line:
    """The points of a curve as its axes can show them: NaN for every gap."""

    x: Vector
    y: Vector
    lower: Vector | None
    upper: Vector | None

    def take(self, index: NDArray[np.intp]) -> _Line:
        lower = None if self.lower is None else self.lower[index]
        upper = None if self.upper is None else self.upper[index]
        return _Line(self.x[index], self.y[index], lower, upper)


def _draw_lines(chart: LineChart, palette: Palette) -> Drawing:
    lines = [_visible(curve, chart) for curve in chart.curves]
    drawn = [(c, line) for c, line in zip(chart.curves, lines, strict=True) if _any(line.y)]
    description = f"Line chart of {chart.y_label} against {chart.x_label}."
    if not drawn:
        return Drawing(None, description)
    drawn = [(curve, _thinned(line)) for curve, line in drawn]
    styles = [_curve_style(curve, palette) for curve, _ in drawn]
    # Bands go below all lines: a translucent shade over a line would dull its colour.
    traces: list[dict[str, Any]] = []
    bands: list[tuple[int, ...]] = []
    for (_, line), style in zip(drawn, styles, strict=True):
        bands.append(() if line.lower is None else (len(traces),))
        if line.lower is not None:
            traces.append(_band_trace(line, style))
    legend = []
    for (curve, line), style, band in zip(drawn, styles, bands, strict=True):
        trace = _line_trace(curve, line, style)
        marked = trace["mode"] == "lines+markers"
        legend.append(LegendEntry(curve.name, (*band, len(traces)), style, curve.group, marked))
        traces.append(trace)
    layout = _layout(
        _axis(chart.x_label, _values(traces, "x"), log=chart.log_x) | _hover_title(chart.x_label),
        _axis(chart.y_label, _values(traces, "y"), log=chart.log_y),
        hover="x unified",
    )
    curves = ", ".join(_full_name(curve) for curve, _ in drawn)
    return Drawing(
        {"data": traces, "layout": layout},
        f"{description} Curves: {curves}.",
        tuple(legend),
        tuple(_line_notes(chart, lines)),
    )


def _visible(curve: Curve, chart: LineChart) -> _Line:
    """Turn what the axes cannot show into gaps, and intervals without an end into whole ones."""
    x = _shown(curve.x, chart.log_x)
    y = np.where(np.isnan(x), np.nan, _shown(curve.y, chart.log_y))
    if curve.lower is None and curve.upper is None:
        return _Line(x, y, None, None)
    lower = np.asarray(curve.y if curve.lower is None else curve.lower, dtype=float)
    upper = np.asarray(curve.y if curve.upper is None else curve.upper, dtype=float)
    if chart.log_y:
        lower = np.where(lower <= 0, _smallest_positive(chart), lower)
    lower, upper = _shown(lower, chart.log_y), _shown(upper, chart.log_y)
    gap = np.isnan(x) | np.isnan(lower) | np.isnan(upper)
    return _Line(x, y, np.where(gap, np.nan, lower), np.where(gap, np.nan, upper))


def _shown(values: ArrayLike, log: bool) -> Vector:
    vector = np.asarray(values, dtype=float)
    return np.where(np.isfinite(vector) & ((vector > 0) | (not log)), vector, np.nan)


def _smallest_positive(chart: LineChart) -> float:
    """Find the lowest value that a logarithmic axis shows: where intervals down to zero end."""
    columns = [column for c in chart.curves for column in (c.y, c.lower, c.upper)]
    values = np.concatenate([np.asarray(v, dtype=float) for v in columns if v is not None])
    return float(np.min(values, where=np.isfinite(values) & (values > 0), initial=np.inf))


def _thinned(line: _Line) -> _Line:
    """Keep the extremes of each stretch of a long curve, and its gaps.

    What is left looks the same at any width that a page has, and a page with a hundred curves
    stays small.
    """
    n = len(line.x)
    if n <= MAX_POINTS:
        return line
    edges = np.linspace(0, n, MAX_POINTS // 4 + 1).astype(int)
    keep = {0, n - 1}
    for start, stop in pairwise(edges.tolist()):
        gaps = np.flatnonzero(np.isnan(line.y[start:stop]))
        if len(gaps):
            keep.add(start + int(gaps[0]))
        for column in (line.y, line.lower, line.upper):
            if column is not None and _any(column[start:stop]):
                keep.add(start + int(np.nanargmin(column[start:stop])))
                keep.add(start + int(np.nanargmax(column[start:stop])))
    return line.take(np.array(sorted(keep), dtype=np.intp))


def _line_trace(curve: Curve, line: _Line, style: Style) -> dict[str, Any]:
    present = np.isfinite(line.y)
    # A point between two gaps has no line to show it.
    beads = present.sum() <= _MAX_MARKED or bool(_isolated(present).any())
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers" if beads else "lines",
        "name": _plain(_full_name(curve)),
        "x": _numbers(line.x),
        "y": _numbers(line.y),
        "line": {"width": 2.25, "dash": style.dash},
        "marker": {"size": 6, "symbol": style.symbol},
        "hovertemplate": "%{y:.5~g}",
        "meta": {"series": style.colour},
    }
    if line.lower is not None and line.upper is not None:
        trace["text"] = [
            _interval_text(*point) for point in zip(line.y, line.lower, line.upper, strict=True)
        ]
        trace["hovertemplate"] = "%{text}"
        lonely = _isolated(np.isfinite(line.lower))
        if lonely.any():  # a band of one point has no width
            trace["error_y"] = {
                "type": "data",
                "symmetric": False,
                "array": _numbers(np.where(lonely, np.maximum(line.upper - line.y, 0), np.nan)),
                "arrayminus": _numbers(
                    np.where(lonely, np.maximum(line.y - line.lower, 0), np.nan)
                ),
            }
    return trace


def _band_trace(line: _Line, style: Style) -> dict[str, Any]:
    """Draw a band as one polygon for each stretch without a gap."""
    assert line.lower is not None and line.upper is not None
    present = np.isfinite(line.lower)
    stretches = np.split(np.arange(len(present)), np.flatnonzero(np.diff(present)) + 1)
    x: list[Vector] = []
    y: list[Vector] = []
    for stretch in stretches:
        if len(stretch) and present[stretch[0]]:
            x += [line.x[stretch], line.x[stretch][::-1], np.array([np.nan])]
            y += [line.upper[stretch], line.lower[stretch][::-1], np.array([np.nan])]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": _numbers(np.concatenate(x)[:-1]) if x else [],
        "y": _numbers(np.concatenate(y)[:-1]) if y else [],
        "fill": "toself",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "meta": {"series": style.colour, "fill": 0.2},
    }


def _line_notes(chart: LineChart, lines: Sequence[_Line]) -> list[str]:
    notes = []
    empty = [_full_name(c) for c, line in zip(chart.curves, lines, strict=True) if not _any(line.y)]
    if empty:
        notes.append(f"No data: {', '.join(empty)}.")
    lost = sum(
        int((np.isfinite(c.x) & np.isfinite(c.y) & np.isnan(line.y)).sum())
        for c, line in zip(chart.curves, lines, strict=True)
    )
    if lost:
        points = "1 point" if lost == 1 else f"{number(lost)} points"
        notes.append(f"{points} at or below zero cannot be shown on a logarithmic axis.")
    lows = [np.asarray(c.lower, dtype=float) for c in chart.curves if c.lower is not None]
    if chart.log_y and any((low <= 0).any() for low in lows):
        notes.append("Intervals that reach zero end at the lowest value shown.")
    if any(len(line.x) > MAX_POINTS for line in lines):
        notes.append("Long curves are thinned to the extremes of each stretch.")
    return notes


def _curve_style(curve: Curve, palette: Palette) -> Style:
    style = palette[_family(curve)]
    return style.dashed() if curve.dash else style


def _family(curve: Curve) -> str:
    return curve.name if curve.group is None else curve.group


def _full_name(curve: Curve) -> str:
    return curve.name if curve.group is None else f"{curve.group} · {curve.name}"


# ----------------------------------------------------------------------------------------- bars


def _draw_bars(chart: BarChart, palette: Palette) -> Drawing:
    values = _shown(chart.values, log=False)
    lower = values if chart.lower is None else _shown(chart.lower, log=False)
    upper = values if chart.upper is None else _shown(chart.upper, log=False)
    texts = [_interval_text(*bar) for bar in zip(values, lower, upper, strict=True)]
    description = f"Bar chart of {chart.y_label}."
    if not _any(values):
        return Drawing(None, description)
    amounts = [number(value) for value in values.tolist()]
    pairs = list(zip(chart.labels, amounts, strict=True))
    upright = len(pairs) * max(len(text) for pair in pairs for text in pair) <= _MAX_UPRIGHT
    styles = [palette.get(label) for label in chart.labels]
    places = list(range(len(values)))
    traces: list[dict[str, Any]] = [
        {
            "type": "bar",
            **_oriented(upright, places, _numbers(values)),
            "orientation": "v" if upright else "h",
            "width": 0.62,
            "customdata": [
                f"<b>{_plain(label)}</b><br>{text}"
                for label, text in zip(chart.labels, texts, strict=True)
            ],
            "hovertemplate": "%{customdata}<extra></extra>",
            "meta": {"bars": [None if style is None else style.colour for style in styles]},
        }
    ]
    if chart.lower is not None or chart.upper is not None:
        traces.append(_whiskers(upright, places, lower, upper))
    # The amounts stand beside the labels: bars of nearly equal length can still be told apart,
    # and no number covers an interval.
    ticks = {
        "tickvals": places,
        "ticktext": [_plain(label, 20) + ("<br>" if upright else "  ") + a for label, a in pairs],
        "type": "linear",
        "tickangle": 0,
        "automargin": True,
        "showgrid": False,
        "zeroline": False,
        "range": [-0.6, len(places) - 0.4],
    }
    measure = _axis(chart.y_label) | {"zeroline": True}
    if upright:
        layout = _layout(ticks, measure, hover="closest")
    else:
        ticks["range"] = [len(places) - 0.4, -0.6]  # the first label at the top
        layout = _layout(measure, ticks, hover="closest")
    bars = ", ".join(f"{label} {text}" for label, text in zip(chart.labels, texts, strict=True))
    return Drawing(
        {"data": traces, "layout": layout},
        f"{description} {bars}.",
        height=None if upright else 26 * len(places) + 80,
    )


def _whiskers(
    upright: bool, places: Sequence[int], lower: np.ndarray, upper: np.ndarray
) -> dict[str, Any]:
    """Intervals, drawn around their middle, which need not be the value."""
    errors = {
        "type": "data",
        "array": _numbers((upper - lower) / 2),
        "thickness": 1.5,
        "width": 5,
    }
    return {
        "type": "scatter",
        "mode": "markers",
        **_oriented(upright, places, _numbers((upper + lower) / 2)),
        "error_y" if upright else "error_x": errors,
        "marker": {"size": 1, "opacity": 0},
        "hoverinfo": "skip",
        "meta": {"ink": True},
    }


def _oriented(upright: bool, places: Sequence[int], amounts: Sequence[object]) -> dict[str, Any]:
    return {"x": places, "y": amounts} if upright else {"x": amounts, "y": places}


# --------------------------------------------------------------------------------- distributions


def _draw_histogram(chart: HistogramChart, palette: Palette) -> Drawing:
    series = {name: _finite(values) for name, values in chart.series.items()}
    markers = {name: x for name, x in chart.markers.items() if np.isfinite(x)}
    description = f"Distribution of {chart.x_label}."
    pooled = np.concatenate([*series.values(), np.array([])])
    if not len(pooled):
        return Drawing(None, description)
    sizes = [len(values) for values in series.values() if len(values)]
    # The Rice rule at the geometric mean of the sizes; rules that look at the spread of the
    # values ask for millions of bins where one of them lies far out.
    n_bins = int(np.clip(2 * np.exp(np.mean(np.log(sizes)) / 3), 10, 60))
    edges = np.histogram_bin_edges(pooled, bins=n_bins)
    width = edges[1] - edges[0]
    # One empty bin at either end brings the outline back down to zero.
    centres = np.concatenate([edges[:1] - width, edges]) + width / 2
    traces: list[dict[str, Any]] = []
    legend: list[LegendEntry] = []
    tallest = 0.0
    for name, values in series.items():
        if not len(values):
            continue
        fractions = np.histogram(values, bins=edges)[0] / len(values)
        tallest = max(tallest, float(fractions.max()))
        style = palette[name]
        legend.append(LegendEntry(name, (len(traces),), style))
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": _plain(name),
                "x": _numbers(centres),
                "y": _numbers(np.concatenate([[0.0], fractions, [0.0]])),
                "fill": "tozeroy",
                # Steps change half-way between the centres of bins, at their edges.
                "line": {"shape": "hvh", "width": 1.75, "dash": style.dash},
                "hovertemplate": "%{y:.3~g}",
                "meta": {"series": style.colour, "fill": 0.18},
            }
        )
    for name, position in markers.items():
        style = palette[name].dashed()
        legend.append(LegendEntry(f"{name}: {number(position)}", (len(traces),), style))
        traces.append(_upright_line(name, position, 1.05 * tallest, style))
    layout = _layout(
        _axis(chart.x_label) | _hover_title(chart.x_label),
        _axis("fraction of values") | {"rangemode": "tozero"},
        hover="x unified",
    )
    return Drawing(
        {"data": traces, "layout": layout},
        f"{description} {', '.join(entry.name for entry in legend)}.",
        tuple(legend),
        tuple(_histogram_notes(chart)),
    )


def _upright_line(name: str, position: float, height: float, style: Style) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": _plain(name),
        "x": _numbers([position, position]),
        "y": _numbers([0.0, height]),
        "line": {"width": 2.25, "dash": style.dash},
        "hoverinfo": "skip",
        "meta": {"series": style.colour},
    }


def _histogram_notes(chart: HistogramChart) -> list[str]:
    notes = []
    for name, values in chart.series.items():
        lost = int((~np.isfinite(values)).sum())
        if not np.size(values):
            notes.append(f"No data: {name}.")
        elif lost:
            notes.append(f"{name}: {number(lost)} of {number(np.size(values))} values not finite.")
    notes += [f"{name}: {number(x)}." for name, x in chart.markers.items() if not np.isfinite(x)]
    return notes


# --------------------------------------------------------------------------------------- common


def _layout(x_axis: dict[str, Any], y_axis: dict[str, Any], hover: str) -> dict[str, Any]:
    return {
        "xaxis": x_axis,
        "yaxis": y_axis,
        "hovermode": hover,
        "showlegend": False,  # the page has its own, which wraps and never covers the data
        "margin": {"l": 8, "r": 18, "t": 14, "b": 8},
    }


def _axis(label: str, values: Sequence[float] = (), *, log: bool = False) -> dict[str, Any]:
    """Describe an axis, with ticks that fit the values where Plotly's own would not."""
    axis: dict[str, Any] = {
        "title": {"text": _plain(label, 46), "standoff": 10},
        "type": "log" if log else "linear",
        "automargin": True,
        "zeroline": False,
        "exponentformat": "power",
    }
    decades = np.log10(max(values) / min(values)) if log else 0.0
    if _FEW_DECADES <= decades <= 7:
        axis["dtick"] = 1  # by itself Plotly puts a small 2 and 5 between such powers
    elif log and decades < _FEW_DECADES:
        ticks = _ones_twos_and_fives(min(values), max(values))
        if len(ticks) > 1:  # by itself Plotly writes the last digit: 5 for one half as for five
            axis |= {"tickvals": ticks, "ticktext": [f"{tick:.9g}" for tick in ticks]}
    elif not log and _few_whole(values):
        axis["dtick"] = 1
    return axis


def _ones_twos_and_fives(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{m}e{k}") for k in powers for m in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def _few_whole(values: Sequence[float]) -> bool:
    """Whether all are whole, and so few that Plotly would put ticks between them."""
    whole = all(float(value).is_integer() for value in values)
    return bool(values) and whole and 1 <= max(values) - min(values) <= _MOST_WHOLE


def _values(traces: Sequence[dict[str, Any]], axis: str) -> list[float]:
    return [value for trace in traces for value in trace[axis] if value is not None]


def _hover_title(label: str) -> dict[str, Any]:
    return {"unifiedhovertitle": {"text": f"{_plain(label)}: %{{x:.6~g}}"}}


def _plain(text: str, width: int | None = None) -> str:
    """Escape text for Plotly, which reads some HTML in labels, and break long lines."""
    lines = textwrap.wrap(text, width) if width else [text]
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def _numbers(values: ArrayLike) -> list[float | None]:
    """Round to nine digits, enough for any zoom and half the size; NaN becomes a gap."""
    return [
        float(f"{value:.9g}") if np.isfinite(value) else None
        for value in np.asarray(values, dtype=float).tolist()
    ]


def _interval_text(value: float, lower: float, upper: float) -> str:
    middle, low, high = (number(float(amount), 5) for amount in (value, lower, upper))
    known = np.isfinite([lower, upper]).all() and lower != upper
    return f"{middle} [{low}, {high}]" if known else middle


def _any(values: Vector) -> bool:
    return bool(np.isfinite(values).any())


def _finite(values: ArrayLike) -> Vector:
    vector = np.asarray(values, dtype=float)
    finite: Vector = vector[np.isfinite(vector)]
    return finite


def _isolated(present: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Find the points without a neighbour on either side."""
    padded = np.concatenate([[False], present, [False]])
    alone: NDArray[np.bool_] = present & ~padded[:-2] & ~padded[2:]
    return alone

"""What a chart says: curves, bars and distributions, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["BarChart", "Curve", "HistogramChart", "LineChart"]


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A line, with the interval around it where there is one.

    A point that is NaN or infinite becomes a gap in the line.

    Parameters
    ----------
    name : str
        The name in the legend. A name has one colour everywhere on a page.
    x, y : array-like of shape (n,)
        The points, in the order in which they are joined.
    lower, upper : array-like of shape (n,), optional
        Ends of an interval at each point, drawn as a translucent band. With only one of them the
        band lies between that end and the line.
    group : str, optional
        The family of the curve. The curves of a family stand together in the legend and take the
        colour of the *family's* name, so ``Curve("test", ..., group="CD", dash=True)`` has the
        colour of a curve named ``"CD"``.
    dash : bool, default=False
        Draw the line dashed.

    Examples
    --------
    >>> Curve("PCD", x=[1, 2, 3], y=[-95.0, -91.2, -89.9]).y
    array([-95. , -91.2, -89.9])
    >>> Curve("PCD", x=[1, 2, 3], y=[-95.0])
    Traceback (most recent call last):
        ...
    ValueError: Curve 'PCD': y has 1 values where x has 3
    """

    name: str
    x: ArrayLike
    y: ArrayLike
    lower: ArrayLike | None = None
    upper: ArrayLike | None = None
    group: str | None = None
    dash: bool = False

    def __post_init__(self) -> None:
        owner = f"Curve {self.name!r}"
        arrays = {
            name: _vector(owner, name, value)
            for name in ("x", "y", "lower", "upper")
            if (value := getattr(self, name)) is not None
        }
        _check_lengths(owner, arrays, reference="x")
        _check_interval(owner, arrays.get("lower"), arrays.get("upper"))
        for name, array in arrays.items():
            object.__setattr__(self, name, array)


@dataclass(frozen=True, slots=True, eq=False)
class LineChart:
    """Curves over a common pair of axes.

    Parameters
    ----------
    title : str
        The title above the chart.
    x_label, y_label : str
        The axes, with their units: ``"log-likelihood (nats)"``.
    curves : sequence of Curve
        The curves, in the order of the legend.
    log_x, log_y : bool, default=False
        Logarithmic axes. A point at or below zero becomes a gap there, and the page says so.
    note : str, default=""
        A remark below the chart.

    Examples
    --------
    >>> LineChart("Learning", "epoch", "nats", [Curve("CD", [1, 2], [-120.0, -101.0])]).title
    'Learning'
    """

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    log_x: bool = False
    log_y: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "curves", tuple(self.curves))
        for curve in self.curves:
            if not isinstance(curve, Curve):
                raise TypeError(f"LineChart {self.title!r}: {curve!r} is not a Curve")


@dataclass(frozen=True, slots=True, eq=False)
class BarChart:
    """One bar for each label, with the interval around its end where there is one.

    Parameters
    ----------
    title : str
        The title above the chart.
    y_label : str
        What the bars measure, with its unit.
    labels : sequence of str
        The names of the bars. One that names a curve of the page takes its colour.
    values : array-like of shape (n,)
        The lengths of the bars; a value that is not finite leaves its place empty.
    errors : array-like of shape (n,), optional
        Half-widths of symmetric intervals.
    lower, upper : array-like of shape (n,), optional
        Ends of the intervals, in the unit of the values; instead of ``errors``.
    note : str, default=""
        A remark below the chart.

    Examples
    --------
    >>> chart = BarChart("Test set", "nats", ["CD", "PCD"], [-101.3, -89.9], errors=[0.4, 0.3])
    >>> chart.lower
    array([-101.7,  -90.2])
    """

    title: str
    y_label: str
    labels: Sequence[str]
    values: ArrayLike
    errors: ArrayLike | None = None
    lower: ArrayLike | None = None
    upper: ArrayLike | None = None
    note: str = ""

    def __post_init__(self) -> None:
        owner = f"BarChart {self.title!r}"
        labels = tuple(str(label) for label in self.labels)
        arrays = {
            name: _vector(owner, name, value)
            for name in ("values", "errors", "lower", "upper")
            if (value := getattr(self, name)) is not None
        }
        _check_lengths(owner, {"labels": labels, **arrays}, reference="labels")
        if "errors" in arrays:
            if "lower" in arrays or "upper" in arrays:
                raise ValueError(f"{owner}: give errors, or lower and upper, not both")
            if (arrays["errors"] < 0).any():
                raise ValueError(f"{owner}: errors has a negative value")
            arrays["lower"] = arrays["values"] - arrays["errors"]
            arrays["upper"] = arrays["values"] + arrays["errors"]
        _check_interval(owner, arrays.get("lower"), arrays.get("upper"))
        object.__setattr__(self, "labels", labels)
        for name, array in arrays.items():
            object.__setattr__(self, name, array)


@dataclass(frozen=True, slots=True, eq=False)
class HistogramChart:
    """Distributions of several sets of values, in common bins.

    Each is drawn as the fraction of its own values in a bin, so sets of different sizes compare.
    Values that are not finite are left out, and the page says how many.

    Parameters
    ----------
    title : str
        The title above the chart.
    x_label : str
        What was measured, with its unit.
    series : mapping of str to array-like
        The sets of values by name, coloured as curves of that name are.
    markers : mapping of str to float, optional
        Positions to point out by a vertical line, by name.
    note : str, default=""
        A remark below the chart.

    Examples
    --------
    >>> chart = HistogramChart("Energies", "energy", {"data": [1.0, 2.0]}, markers={"mean": 1.5})
    >>> chart.markers["mean"]
    1.5
    """

    title: str
    x_label: str
    series: Mapping[str, ArrayLike]
    markers: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        owner = f"HistogramChart {self.title!r}"
        series = {
            str(name): _vector(owner, f"series {name!r}", np.ravel(np.asarray(values)))
            for name, values in self.series.items()
        }
        markers = {str(name): float(position) for name, position in (self.markers or {}).items()}
        object.__setattr__(self, "series", series)
        object.__setattr__(self, "markers", markers)


def _vector(owner: str, name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Copy values into a vector of floats that nobody can write to (``None`` becomes NaN)."""
    try:
        vector = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{owner}: {name} is not a sequence of real numbers") from error
    if vector.ndim != 1:
        raise ValueError(f"{owner}: {name} has {vector.ndim} dimensions where one is expected")
    vector.flags.writeable = False
    return vector


def _check_lengths(
    owner: str, columns: Mapping[str, Sequence[str] | NDArray[np.float64]], reference: str
) -> None:
    expected = len(columns[reference])
    for name, column in columns.items():
        if len(column) != expected:
            raise ValueError(
                f"{owner}: {name} has {len(column)} values where {reference} has {expected}"
            )


def _check_interval(
    owner: str, lower: NDArray[np.float64] | None, upper: NDArray[np.float64] | None
) -> None:
    if lower is not None and upper is not None and (lower > upper).any():
        place = int(np.argmax(lower > upper))
        raise ValueError(
            f"{owner}: lower is above upper at index {place}: {lower[place]:g} > {upper[place]:g}"
        )

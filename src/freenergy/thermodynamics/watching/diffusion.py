r"""How the distance from the start grows: as the logarithm of time, or as a power of it.

A random walk in a random potential whose height grows with the distance moves as
:math:`\lVert w_t - w_0 \rVert \sim \log t`, ultra-slow diffusion; free diffusion as
:math:`t^{1/2}`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from torch import nn
from torch.nn.utils import parameters_to_vector

from freenergy.thermodynamics.watching.schedule import GROWTH

__all__ = ["Diffusion", "Distance", "compare_growth"]

Array = NDArray[np.float64]

MIN_POINTS = 8
"""Points below which two curves of two parameters each cannot be told apart."""

MIN_SPAN = 20.0
"""Last time over first time: over less than that, a logarithm and a power bend too little."""

MIN_RATIO = 2.0
"""Ratio of the root mean square deviations from which one fit counts as better. Points of one
trajectory are not independent, so that a test that takes them for it would always decide."""

_N_POINTS = 24


class Distance:
    r"""How far all parameters of a module are from their start, :math:`\lVert w_t - w_0 \rVert`.

    Measured at updates that are spread evenly in :math:`\ln t`, and exactly, where a watch
    estimates the distance of each layer from some of its units.

    Parameters
    ----------
    module : nn.Module

    Attributes
    ----------
    readings : list of tuple
        Numbers of updates, and the distances after them.

    Examples
    --------
    >>> import torch
    >>> layer = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.zeros_(layer.weight)
    >>> distance = Distance(layer)
    >>> for _ in range(9):
    ...     with torch.no_grad():
    ...         _ = layer.weight.add_(0.5)
    ...     distance.read()
    >>> distance.readings
    [(1, 0.5), (2, 1.0), (3, 1.5), (5, 2.5), (8, 4.0)]
    """

    def __init__(self, module: nn.Module) -> None:
        self.readings: list[tuple[int, float]] = []
        self._module = module
        self._start = parameters_to_vector(module.parameters()).detach().clone()
        self._updates, self._next = 0, 1.0

    def read(self, n_rows: int = 0) -> None:
        """Count an update, and measure where it is time; the rows of its batch do not matter."""
        self._updates += 1
        if self._updates >= self._next:
            now = parameters_to_vector(self._module.parameters()).detach()
            self.readings.append((self._updates, float((now - self._start).norm())))
            self._next = self._updates * GROWTH


@dataclass(frozen=True)
class Diffusion:
    r"""Both fits to the distance from the start.

    Attributes
    ----------
    winner : {"log", "power", "undecided"}
    exponent : float
        :math:`a` of the power law :math:`c\,t^a`; 0.5 is free diffusion.
    log_offset, log_slope : float
        Of :math:`p + q \ln t`.
    power_factor : float
        :math:`c`.
    log_deviation, power_deviation : float
        Root mean square deviation of each fit, as a share of the largest distance.
    n_points : int
        Points that were used, evenly spread in the logarithm of time.
    span : float
        Last time over first.
    """

    winner: str
    exponent: float = math.nan
    log_offset: float = math.nan
    log_slope: float = math.nan
    power_factor: float = math.nan
    log_deviation: float = math.nan
    power_deviation: float = math.nan
    n_points: int = 0
    span: float = math.nan

    @property
    def words(self) -> str:
        """The comparison in a sentence."""
        if self.n_points < MIN_POINTS or self.span < MIN_SPAN:
            return (
                "It cannot be told whether the weights move away as log t or as a power of t: "
                f"{self.n_points} readings over a factor of {self.span:.3g} in time, where "
                f"{MIN_POINTS} readings over a factor of {MIN_SPAN:g} are needed."
            )
        facts = (
            f"deviations of {100 * self.log_deviation:.2g} % of the distance for log t and of "
            f"{100 * self.power_deviation:.2g} % for t^{self.exponent:.2f}"
        )
        if self.winner == "undecided":
            return f"Log t and a power of t fit the distance from the start alike: {facts}."
        if self.winner == "log":
            return f"The weights move away from their start as log t, ultra-slowly: {facts}."
        return f"The weights move away from their start as t^{self.exponent:.2f}: {facts}."


def compare_growth(times: ArrayLike, distances: ArrayLike) -> Diffusion:
    r"""Fit :math:`D = p + q \ln t` and :math:`D = c\,t^a` by least squares, and compare.

    Both have two parameters and are fitted to the distance itself, so that their root mean square
    deviations compare. One wins where its own is smaller by a factor of two.

    Parameters
    ----------
    times : array-like of shape (n,)
        Updates since the start, positive.
    distances : array-like of shape (n,)
        :math:`\lVert w_t - w_0 \rVert`.

    Returns
    -------
    Diffusion

    References
    ----------
    Hoffer, Hubara, Soudry, *Train longer, generalize better*, arXiv:1705.08741, section 3;
    Bouchaud and Georges, *Anomalous diffusion in disordered media*, Physics Reports 195, 1990.

    Examples
    --------
    >>> import numpy as np
    >>> t = np.arange(1, 1001)
    >>> compare_growth(t, 0.3 * np.log(t) + 1).winner
    'log'
    >>> found = compare_growth(t, 0.1 * np.sqrt(t))
    >>> found.winner, round(found.exponent, 3)
    ('power', 0.5)
    """
    t, d = np.asarray(times, dtype=np.float64), np.asarray(distances, dtype=np.float64)
    usable = (t > 0) & np.isfinite(d) & (d > 0)
    t, d = t[usable], d[usable]
    if len(t) == 0:
        return Diffusion("undecided", n_points=0, span=1.0)
    span = float(t.max() / t.min())
    if len(t) < MIN_POINTS or span < MIN_SPAN:
        return Diffusion("undecided", n_points=len(t), span=span)
    t, d = _evenly(t, d)
    design = np.stack([np.ones_like(t), np.log(t)], axis=1)
    (offset, slope), *_ = np.linalg.lstsq(design, d, rcond=None)
    scale = float(d.max())
    log_deviation = float(np.sqrt(np.mean((d - design @ [offset, slope]) ** 2))) / scale
    exponent, factor = _fit_power(t, d)
    power_deviation = float(np.sqrt(np.mean((d - factor * t**exponent) ** 2))) / scale
    # What rounding leaves of a perfect fit is no evidence.
    better = max(log_deviation, 1e-9) / max(power_deviation, 1e-9)
    winner = "undecided"
    if len(t) >= MIN_POINTS and better >= MIN_RATIO:
        winner = "power"
    elif len(t) >= MIN_POINTS and better <= 1 / MIN_RATIO:
        winner = "log"
    return Diffusion(
        winner,
        exponent,
        float(offset),
        float(slope),
        factor,
        log_deviation,
        power_deviation,
        len(t),
        span,
    )


def _evenly(t: Array, d: Array) -> tuple[Array, Array]:
    """At most so many points, the nearest to times that are even in the logarithm."""
    wanted = np.geomspace(t.min(), t.max(), _N_POINTS)
    order = np.argsort(t)
    places = np.unique([int(np.abs(np.log(t[order] / w)).argmin()) for w in wanted])
    return t[order][places], d[order][places]


def _fit_power(t: Array, d: Array) -> tuple[float, float]:
    """The exponent and factor with the least squares; the factor is linear."""

    def factor(exponent: float) -> float:
        shape = t**exponent
        return float(d @ shape / (shape @ shape))

    def loss(exponent: float) -> float:
        return float(np.sum((d - factor(exponent) * t**exponent) ** 2))

    found = minimize_scalar(loss, bounds=(0.0, 2.0), method="bounded", options={"xatol": 1e-8})
    exponent = float(found.x)
    return exponent, factor(exponent)

r"""How many states there are, by how often some starts found those that they found.

Starts fall into basins of unequal size, so that their number of distinct ends grows with the
number of starts. What is unseen is estimated from the states found once and twice, as ecologists
estimate the species of a forest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln

from freenergy.random import RandomStream

__all__ = ["DistinctCount"]

Array = NDArray[np.float64]

_N_BOOTSTRAP = 500
# Draws that are made at once, at 8 bytes.
_MAX_DRAWS = 2**20


@dataclass(frozen=True)
class DistinctCount:
    r"""How many distinct states some starts found, and how many there may be.

    The number found grows with the number of starts as long as there are states left to find:
    it compares landscapes only at equal numbers of starts.
    A state of which no start was likely to hear leaves no trace: where a few states take nearly
    all starts, the intervals are those of the states found, and too narrow for a rare one more.

    Attributes
    ----------
    found : int
        Distinct states found.
    lower, upper : float
        Interval for the number that as many starts find on average.
    chao1, chao1_lower, chao1_upper : float
        Chao's estimate of the number of all states that such starts can reach, found or not,
        :math:`S + \frac{n-1}{n} \frac{f_1^2}{2 f_2}` with :math:`f_k` the number of states found
        by *k* starts, and its interval. On average it is a lower bound.
    unseen : float
        Share of further starts that would lead to a new state (Good and Turing), :math:`f_1/n`.
        Near 1 neither number says more than that there are many.
    n_starts : int
        Starts that led to a state.
    """

    found: int
    lower: float
    upper: float
    chao1: float
    chao1_lower: float
    chao1_upper: float
    unseen: float
    n_starts: int


@dataclass(frozen=True, eq=False)
class _Basins:
    """Basins that were found, with their shares as estimated, and those that were not.

    The shares found are lowered by what further starts would find, which is divided evenly among
    the states that Chao1 says are missing.
    """

    share: Array
    n_missing: int

    @classmethod
    def of(cls, basin: NDArray[np.int64]) -> _Basins:
        n = int(basin.sum())
        f1, f2 = int((basin == 1).sum()), int((basin == 2).sum())
        # The share of a missing state, from those found once and twice.
        if f1 == 0:
            deficit = 0.0
        elif f2 > 0:
            deficit = f1 / n * (n - 1) * f1 / ((n - 1) * f1 + 2 * f2)
        else:
            deficit = f1 / n * (n - 1) * (f1 - 1) / ((n - 1) * (f1 - 1) + 2)
        raw = basin / n
        missed = raw * (1 - raw) ** n
        share = raw - (deficit / missed.sum() * missed if deficit else 0.0)
        return cls(share, math.ceil(_chao1(basin) - len(basin)))

    def replicas(self, n: int, random: RandomStream) -> tuple[Array, Array]:
        """Distinct states that ``n`` starts find, and Chao1 of these, in many repetitions."""
        rows = max(1, _MAX_DRAWS // n)
        parts = [
            _tally(self._draw(min(rows, _N_BOOTSTRAP - done), n, random))
            for done in range(0, _N_BOOTSTRAP, rows)
        ]
        found, f1, f2 = np.concatenate(parts, axis=1)
        return found, found + _missing(n, f1, f2)

    def _draw(self, n_rows: int, n: int, random: RandomStream) -> NDArray[np.int64]:
        """The state that each start leads to, shape (n_rows, n); those not found count up."""
        draws = random.uniform_(torch.empty(n_rows, n, dtype=torch.float64, device=random.device))
        u, edge = draws.cpu().numpy(), np.cumsum(self.share)
        if not self.n_missing:
            # The last edge is 1 only up to rounding.
            return np.searchsorted(edge[:-1], u, side="right")
        state = np.searchsorted(edge, u, side="right")
        part = np.maximum(u - edge[-1], 0.0) / (1.0 - edge[-1])
        return state + (part * self.n_missing).astype(np.int64)


def _tally(states: NDArray[np.int64]) -> Array:
    """For each row, how many values it has, and how many of them once and twice."""
    states = np.sort(states, axis=1)
    first = np.ones(states.shape, dtype=bool)
    first[:, 1:] = states[:, 1:] != states[:, :-1]
    begin = np.flatnonzero(first)
    times, row = np.diff(begin, append=states.size), begin // states.shape[1]
    kinds = (row, row[times == 1], row[times == 2])
    return np.stack([np.bincount(x, minlength=len(states)).astype(float) for x in kinds])


def _missing(n: Array | int, f1: Array | int, f2: Array | int) -> Array:
    """States that Chao expects beyond those found, bias-corrected where none was found twice."""
    twice = np.maximum(f2, 1)
    return (n - 1) / n * np.where(f2 == 0, f1 * (f1 - 1.0) / 2, f1 * f1 / (2.0 * twice))


def _chao1(basin: NDArray[np.int64]) -> float:
    """Chao's lower bound on the number of states."""
    f1, f2 = int((basin == 1).sum()), int((basin == 2).sum())
    return len(basin) + float(_missing(int(basin.sum()), f1, f2))


def count_distinct(
    basin: NDArray[np.int64], confidence: float, random: RandomStream
) -> DistinctCount:
    """The numbers of distinct states, from how many starts led to each of those found."""
    n, found = int(basin.sum()), len(basin)
    if n == 0:
        nan = math.nan
        return DistinctCount(0, nan, nan, nan, nan, nan, nan, 0)
    numbers, estimates = _Basins.of(basin).replicas(n, random)
    chao1 = _chao1(basin)
    # A sample of a sample finds fewer: the spread is right, but not the middle.
    lower, upper = _interval(numbers - numbers.mean() + found, found, confidence)
    chao1_lower, chao1_upper = _interval(estimates - estimates.mean() + chao1, chao1, confidence)
    return DistinctCount(
        found=found,
        lower=max(lower, 1.0),
        upper=min(upper, float(n)),
        chao1=chao1,
        chao1_lower=max(chao1_lower, float(found)),
        chao1_upper=chao1_upper,
        unseen=int((basin == 1).sum()) / n,
        n_starts=n,
    )


def _interval(replicas: Array, value: float, confidence: float) -> tuple[float, float]:
    """Percentiles, with the value itself inside: a mean rounds where replicas hardly differ."""
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(replicas, [tail, 1 - tail])
    return min(float(lower), value), max(float(upper), value)


def smoothing_ratio(
    minima: NDArray[np.int64], points: NDArray[np.int64], confidence: float, random: RandomStream
) -> tuple[float, float, float]:
    """Fixed points per minimum of the energy at equal numbers of starts, and its interval."""
    n = int(points.sum())
    if n == 0:
        return math.nan, math.nan, math.nan
    value = len(points) / _rarefied(minima, n)
    smooth, rough = (_Basins.of(basin).replicas(n, random)[0] for basin in (points, minima))
    ratio = smooth / rough
    return value, *_interval(ratio * (value / ratio.mean()), value, confidence)


def _rarefied(basin: NDArray[np.int64], k: int) -> float:
    r"""States that ``k`` of the starts find on average, :math:`\sum_i 1 - C(n-x_i,k)/C(n,k)`."""
    n = int(basin.sum())
    left = n - basin[n - basin >= k]
    log_missed = gammaln(left + 1) - gammaln(left - k + 1) - gammaln(n + 1) + gammaln(n - k + 1)
    return float(len(basin) - np.exp(log_missed).sum())

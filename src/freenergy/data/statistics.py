"""Moments of columns, block by block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ColumnStatistics",
    "Standardization",
    "counted",
    "counts_of_all",
    "moments",
    "pooled",
    "standardization",
]

Array = NDArray[Any]


@dataclass(frozen=True)
class Standardization:
    r"""Means and scales of columns: :math:`x \to (x - m) / s`.

    Attributes
    ----------
    mean, scale : float64 array of shape (n_features,)
        A constant column has a scale of 1.
    """

    mean: Array
    scale: Array


@dataclass(frozen=True)
class ColumnStatistics:
    """Moments of the columns over the rows that were read.

    Attributes
    ----------
    n_rows : int
    mean : float64 array of shape (n_features,)
    variance : float64 array of shape (n_features,)
        NaN where they were not asked for.
    labels : tuple of ndarray
        Distinct labels and their numbers of rows; empty where they were not counted.
    """

    n_rows: int
    mean: Array
    variance: Array
    labels: tuple[Array, ...] = ()


def moments(
    rows: Array, labels: Array | None = None, *, variances: bool = True
) -> ColumnStatistics:
    """The statistics of one block, in double precision."""
    mean = rows.mean(0, dtype=np.float64)
    variance = np.full_like(mean, np.nan)
    if variances:
        variance = np.square(rows.astype(np.float64, copy=False) - mean).mean(0)
    counts = () if labels is None else np.unique(labels, return_counts=True)
    return ColumnStatistics(len(rows), mean, variance, tuple(counts))


def pooled(parts: Iterable[ColumnStatistics]) -> ColumnStatistics:
    """Statistics of all parts together; of no part, those of no row.

    References
    ----------
    Chan, Golub, LeVeque, *Algorithms for computing the sample variance*, 1983.

    Examples
    --------
    >>> x = np.arange(10.0).reshape(5, 2)
    >>> found = pooled([moments(x[:2]), moments(x[2:])])
    >>> found.n_rows, found.mean, found.variance
    (5, array([4., 5.]), array([8., 8.]))
    """
    n, mean, spread = 0, np.zeros(1), np.zeros(1)
    counts: Counter[Any] = Counter()
    for part in parts:
        both, shift = n + part.n_rows, part.mean - mean
        spread = spread + part.n_rows * part.variance + np.square(shift) * (n * part.n_rows / both)
        mean = mean + shift * (part.n_rows / both)
        n = both
        if part.labels:
            _add(counts, *part.labels)
    return ColumnStatistics(n, mean, spread / max(1, n), _as_arrays(counts) if counts else ())


def counted(parts: Iterable[Array]) -> tuple[Array, Array]:
    """Distinct labels of all parts together, and how often each is there.

    Examples
    --------
    >>> counted([np.array(["a", "b"]), np.array(["b"])])
    (array(['a', 'b'], dtype='<U1'), array([1, 2]))
    """
    counts: Counter[Any] = Counter()
    for part in parts:
        _add(counts, *np.unique(part, return_counts=True))
    return _as_arrays(counts)


def counts_of_all(parts: Iterable[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Distinct labels and how often each is there, from the same of each part.

    Examples
    --------
    >>> counts_of_all([(np.array([0, 2]), np.array([5, 1])), (np.array([2]), np.array([3]))])
    (array([0, 2]), array([5, 4]))
    """
    counts: Counter[Any] = Counter()
    for labels, numbers in parts:
        _add(counts, labels, numbers)
    return _as_arrays(counts)


def _add(counts: Counter[Any], labels: Array, numbers: Array) -> None:
    counts.update(dict(zip(labels.tolist(), numbers.tolist(), strict=True)))


def _as_arrays(counts: Counter[Any]) -> tuple[Array, Array]:
    found = sorted(counts)
    return np.array(found), np.array([counts[label] for label in found])


def standardization(found: ColumnStatistics) -> Standardization:
    """What brings the rows of these statistics to mean 0 and variance 1."""
    rounding = np.finfo(np.float64).eps * found.n_rows
    constant = found.variance <= rounding * found.variance + np.square(rounding * found.mean)
    return Standardization(found.mean, np.where(constant, 1.0, np.sqrt(found.variance)))

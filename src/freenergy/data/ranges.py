"""Which rows of many are read: ranges of them, parts of these, and places drawn among them."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from freenergy.random import RandomStream

__all__ = ["SPREAD", "Ranges", "divided", "drawn", "few_of", "within"]

Array: TypeAlias = NDArray[Any]
Ranges: TypeAlias = tuple[tuple[int, int], ...]
"""Pairs of a first row and an end."""

SPREAD = 16
"""Places over which a few rows are spread."""


def few_of(ranges: Ranges, least: int) -> Array:
    """Places of evenly spaced ranges: at least so many of them, and sixteen where there are.

    Examples
    --------
    >>> few_of(((0, 5),) * 100, 20).tolist()[:4]
    [2, 7, 12, 17]
    """
    k = min(len(ranges), max(SPREAD, least))
    return ((np.arange(k) + 0.5) * len(ranges) / k).astype(np.int64)


def divided(ranges: Ranges, n_held_out: int) -> tuple[Ranges, Ranges]:
    """Rows that are kept, and rows held out: the ends of some ranges, evenly spaced.

    Few ranges are touched, and half of each at most, where that is enough.

    Examples
    --------
    >>> divided(((0, 10), (10, 20)), 4)
    (((0, 8), (10, 18)), ((8, 10), (18, 20)))
    """
    lengths = np.array([stop - start for start, stop in ranges])
    chosen = few_of(ranges, -(-2 * n_held_out * len(ranges) // int(lengths.sum())))
    if lengths[chosen].sum() < n_held_out:
        chosen = np.arange(len(lengths))
    reached = np.cumsum(lengths[chosen])
    share = np.zeros(len(lengths), dtype=np.int64)
    share[chosen] = np.diff(reached * n_held_out // reached[-1], prepend=0)
    pairs = list(zip(ranges, share.tolist(), strict=True))
    kept = tuple((a, b - k) for (a, b), k in pairs if b - k > a)
    return kept, tuple((b - k, b) for (_, b), k in pairs if k)


def within(ranges: Ranges, start: int, stop: int) -> Ranges:
    """What positions within some ranges are, as ranges.

    Examples
    --------
    >>> within(((10, 15), (20, 25)), 3, 7)
    ((13, 15), (20, 22))
    """
    found, done = [], 0
    for a, b in ranges:
        first, last = max(a, a + start - done), min(b, a + stop - done)
        if first < last:
            found.append((first, last))
        done += b - a
    return tuple(found)


def drawn(n: int, n_drawn: int, random: RandomStream) -> Array:
    """So many of ``range(n)``, drawn without replacement, in their order; memory for those only."""
    few = min(n_drawn, n - n_drawn)
    found = np.empty(0, dtype=np.int64)
    while len(found) < few:
        # Those that were drawn before are drawn again: no set of numbers is preferred.
        found = np.union1d(found, random.integers(0, n, few - len(found)).numpy())
    return found if few == n_drawn else np.setdiff1d(np.arange(n), found, assume_unique=True)

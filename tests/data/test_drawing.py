"""Rows drawn from a stream: each set of so many is as likely as any other."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy.stats import chisquare

from freenergy.data import DataError, stream
from freenergy.data.sources import ArraySource
from freenergy.random import RandomStream


def numbered(n, n_buffered=64, **options):
    """A stream of rows that are their own numbers, and their labels too."""
    x = np.arange(n, dtype=np.float32)[:, None]
    return stream(x, labels=np.arange(n), buffer_bytes=4 * n_buffered, **options)


def test_every_kind_of_file_gives_the_same_rows(stored, rows, labels):
    what, names = stored
    found = stream(what, labels=names, buffer_bytes=40 * 24).draw(50, RandomStream(3))
    expected = stream(rows, labels=labels).draw(50, RandomStream(3))
    assert_array_equal(found.rows, expected.rows)
    assert_array_equal(found.labels, expected.labels)
    assert len(found.rows) == 50


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 500),
    share=st.floats(0, 1.2),
    n_buffered=st.sampled_from([1, 64, 2000]),
    is_divisible=st.booleans(),
)
def test_drawn_rows_are_distinct_and_in_their_order(n, share, n_buffered, is_divisible):
    found = numbered(n, n_buffered)
    found.source.is_divisible = is_divisible
    n_drawn = max(1, int(share * n))
    rows, labels = found.draw(n_drawn, RandomStream(n))
    assert len(rows) == min(n, n_drawn)
    assert (np.diff(labels) > 0).all()
    assert_array_equal(rows[:, 0], labels)


@pytest.mark.parametrize(("n", "n_drawn"), [(6, 2), (5, 3), (6, 5)])
def test_each_set_of_rows_is_as_likely_as_any_other(n, n_drawn):
    found, random = numbered(n), RandomStream(0)
    sets = Counter(tuple(found.draw(n_drawn, random).labels.tolist()) for _ in range(900))
    assert set(sets) == set(combinations(range(n), n_drawn))
    assert chisquare(list(sets.values())).pvalue > 1e-3


def test_rows_of_a_part_are_drawn_from_that_part():
    kept, held_out = numbered(1000).split(300)
    labels = kept.draw(700, RandomStream(0)).labels
    assert not set(labels) & set(held_out.draw(300, RandomStream(0)).labels)
    few = kept.draw(100, RandomStream(0)).labels
    assert set(few) < set(labels)


class Noted(ArraySource):
    """An array that notes what was read of it."""

    def read(self, start, stop):
        self.__dict__.setdefault("read_rows", []).append((start, stop))
        return super().read(start, stop)


@pytest.mark.parametrize("is_divisible", [True, False])
def test_few_rows_of_many_are_read_one_by_one_where_that_is_possible(is_divisible):
    found = numbered(100_000, 32 * 1000)
    found.source.rows = source = Noted(np.arange(100_000.0)[:, None], "array")
    found.source.is_divisible = is_divisible
    found.draw(200, RandomStream(0))
    n_read = sum(stop - start for start, stop in source.read_rows)
    assert n_read == (200 if is_divisible else 1000 * len(source.read_rows))
    assert len(source.read_rows) == 200 if is_divisible else len(source.read_rows) < 100


def test_drawn_rows_are_checked_and_transformed():
    pixels = np.arange(200, dtype=np.uint8).reshape(100, 2)
    rows = stream(pixels, binarize=0.5).draw(60, RandomStream(0)).rows
    assert set(np.unique(rows)) == {0.0, 1.0}
    x = np.zeros((100, 2))
    x[70, 1] = 3.0
    with pytest.raises(DataError, match="value 3 in column 1, row 70"):
        stream(x).within(0.0, 1.0).draw(100, RandomStream(0))


def test_rows_that_nobody_has_counted_cannot_be_drawn():
    class Items(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(np.eye(3))

    with pytest.raises(DataError, match="no rows of Items can be drawn: it has no known length"):
        stream(Items()).draw(2, RandomStream(0))
    with pytest.raises(DataError, match=r"300000000 rows of .* together take 1\.2 GB"):
        stream(np.broadcast_to(np.float32(0), (400_000_000, 1))).draw(300_000_000, RandomStream(0))

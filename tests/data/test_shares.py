"""Several processes learn from one stream: the batches of one process, each row read by one."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from freenergy.data import DataError, stream
from freenergy.data.shares import Held, own_part
from freenergy.data.sources import ArraySource, Block, Shards
from freenergy.data.statistics import counts_of_all, pooled
from freenergy.random import RandomStream


def portions(n_processes):
    """As the processes of a group divide whatever they divide."""

    def own(rank, n):
        return slice(n * rank // n_processes, n * (rank + 1) // n_processes)

    return [partial(own, rank) for rank in range(n_processes)]


def numbered(n, n_buffered, **options):
    """A stream of rows that are their own numbers, and their labels too."""
    x = np.arange(n, dtype=np.float32)[:, None]
    found = stream(x, labels=np.arange(n), buffer_bytes=4 * n_buffered, **options)
    return found.encoded(lambda y: y)


def assert_shared(found, n_processes, size, limit=None):
    """Each batch of one process is the union of the parts; the sizes of the parts."""
    shares = [found.parts(size, own, RandomStream(3), limit) for own in portions(n_processes)]
    sizes = []
    for batch, *parts in zip(found.batches(size, RandomStream(3), limit), *shares, strict=True):
        assert {n for _, n in parts} == {len(batch.rows)}
        rows = np.concatenate([part.rows for part, _ in parts])
        labels = np.concatenate([part.labels for part, _ in parts])
        here, there = np.argsort(batch.labels, stable=True), np.argsort(labels, stable=True)
        assert_array_equal(labels[there], batch.labels[here])
        if len(np.unique(labels)) == len(labels):
            assert_array_equal(rows[there], batch.rows[here])
        sizes.append([len(part.rows) for part, _ in parts])
    return np.array(sizes)


class Counted(ArraySource):
    """An array that knows how many of its rows were read."""

    def __init__(self, array, name="array"):
        super().__init__(array, name)
        self.n_read, self.blocks, self.lock = 0, [], threading.Lock()

    def read(self, start, stop):
        with self.lock:
            self.n_read += stop - start
            self.blocks.append((start, stop))
        return super().read(start, stop)


# ---- the same batches ----------------------------------------------------------------------------


@pytest.mark.parametrize("n_processes", [2, 3])
def test_the_parts_of_any_data_are_the_batches_of_one_process(stored, n_processes):
    what, names = stored
    found = stream(what, labels=names, buffer_bytes=40 * 24).encoded(lambda y: y)
    assert len(assert_shared(found, n_processes, 32)) == 8


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 3000),
    n_buffered=st.sampled_from([1, 40, 300, 700, 9000]),
    n_processes=st.integers(1, 5),
    size=st.integers(1, 400),
    limit=st.none() | st.integers(1, 5),
)
def test_the_parts_are_the_batches_whatever_the_sizes(n, n_buffered, n_processes, size, limit):
    assert_shared(numbered(n, n_buffered), n_processes, size, limit)


def test_blocks_that_are_divided_give_equal_parts_but_for_chance():
    """3125 rows in a block; a part of 100 of a batch of 400 has a deviation of √75."""
    sizes = assert_shared(numbered(200_000, 100_000), 4, 400)
    deviation = np.sqrt(400 * 0.25 * 0.75)
    assert_allclose(sizes.mean(0), 100, atol=5 * deviation / np.sqrt(len(sizes)))
    assert_allclose(sizes.std(0), deviation, rtol=0.15)


def test_one_process_alone_takes_all():
    found = numbered(2000, 600)
    batches = found.batches(64, RandomStream(0))
    parts = found.parts(64, lambda n: slice(0, n), RandomStream(0))
    for batch, (part, n) in zip(batches, parts, strict=True):
        assert n == len(batch.rows)
        assert_array_equal(part.rows, batch.rows)


def test_rows_in_order_and_rows_without_numbers_are_divided_batch_by_batch():
    found = numbered(2000, 600)
    parts = [list(found.parts(64, own)) for own in portions(3)]
    for k, batch in enumerate(found.batches(64)):
        assert_array_equal(np.concatenate([p[k][0].rows for p in parts]), batch.rows)


# ---- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("n_buffered", [32 * 600, 10**6], ids=["mixed", "held whole"])
@pytest.mark.parametrize("n_processes", [2, 4, 5])
def test_each_process_reads_its_share_and_no_row_is_read_twice(n_processes, n_buffered):
    n = 100_000
    read = []
    for own in portions(n_processes):
        source = Counted(np.arange(n, dtype=np.float32)[:, None])
        found = numbered(n, n_buffered)
        found = replace(found, source=source, encode=None)
        source.n_read = 0
        batches = found.parts(500, own, RandomStream(0))
        assert sum(len(block.rows) for block, _ in batches) == source.n_read
        read.append(source.n_read)
    assert sum(read) == n
    assert_allclose(read, n / n_processes, rtol=2e-3)


def test_blocks_that_cannot_be_divided_are_dealt_out_whole():
    """As row groups and chunks are: 300 blocks of 100 rows."""
    source = Counted(np.arange(30_000, dtype=np.float32)[:, None])
    source.is_divisible = False
    found = numbered(30_000, 3200)
    found = replace(found, source=source, encode=None)
    assert len(found.ranges) == 300
    shares = []
    for own in portions(4):
        source.blocks = []
        list(found.parts(100, own, RandomStream(0)))
        assert set(source.blocks) <= set(found.ranges)
        shares.append(len(source.blocks))
    assert sum(shares) == 300
    assert_allclose(shares, 75, atol=2)


@pytest.mark.parametrize("n_processes", range(2, 40, 5))
def test_turns_are_even_over_every_stretch(n_processes):
    """Of 32 blocks in a row, which a buffer holds, each process has as many, give or take two."""
    turns = np.array(
        [
            [
                np.diff(own_part(0, 9, k, own, is_divisible=False))[0] == 9
                for own in portions(n_processes)
            ]
            for k in range(200)
        ]
    )
    assert_array_equal(turns.sum(1), 1)
    stretches = np.lib.stride_tricks.sliding_window_view(turns, 32, axis=0).sum(-1)
    assert abs(stretches - 32 / n_processes).max() < 2.5


def test_labels_that_lie_apart_are_read_for_the_own_rows_only():
    found = numbered(30_000, 32 * 600)
    labels = Counted(np.arange(30_000))
    found.source.labels = labels
    list(found.parts(500, portions(3)[1], RandomStream(0)))
    assert labels.n_read == pytest.approx(10_000, rel=2e-3)


def test_a_limit_ends_the_reading_of_all():
    source = Counted(np.arange(100_000, dtype=np.float32)[:, None])
    found = numbered(100_000, 32 * 600)
    found = replace(found, source=source, encode=None)
    list(found.parts(100, portions(2)[0], RandomStream(0), limit=10))
    assert source.n_read <= 1200


def test_each_process_holds_its_share_of_the_buffer(monkeypatch):
    used = set()
    put = Held.put

    def noted(self, block):
        numbers = put(self, block)
        used.update(numbers.tolist())
        return numbers

    monkeypatch.setattr(Held, "put", noted)
    list(numbered(200_000, 40_000).parts(400, portions(4)[2], RandomStream(0)))
    # Of 40 000 rows, with the block and the batch at hand.
    assert len(used) < 11_500


def test_what_is_held_comes_back_once_and_its_place_is_used_again():
    held = Held(6, lambda: Block(np.zeros((1, 2)), np.zeros(1)))
    assert held.take(np.array([], dtype=int)).rows.shape == (0, 2)
    first = held.put(Block(np.ones((4, 2)), np.arange(4)))
    assert_array_equal(held.take(first[1:]).labels, [1, 2, 3])
    second = held.put(Block(np.full((3, 2), 2.0), np.arange(3) + 10))
    assert sorted(second) == sorted(first[1:])
    assert_array_equal(held.take(np.append(second, first[0])).labels, [10, 11, 12, 0])


def test_who_reads_a_broken_row_says_so(tmp_path):
    x = np.zeros((3000, 2), dtype=np.float32)
    x[1700, 1] = np.nan
    for k in range(3):
        np.save(tmp_path / f"{k}.npy", x[1000 * k : 1000 * k + 1000])
    found = stream(tmp_path, buffer_bytes=32 * 500 * 8)
    first, second = portions(2)
    list(found.parts(100, second, RandomStream(0)))
    with pytest.raises(DataError, match=r"1\.npy has NaN in column 1, row 700"):
        list(found.parts(100, first, RandomStream(0)))
    assert not any(t.name.startswith("freenergy-read") for t in threading.enumerate())


# ---- statistics ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_processes", [2, 3, 7])
@pytest.mark.parametrize("n_rows", [None, 4000])
def test_statistics_of_the_parts_are_those_of_all(n_processes, n_rows):
    x = np.random.default_rng(0).normal(3.0, 2.0, (20_000, 3))
    source = Shards([Counted(part) for part in np.split(x, [500, 12_000])])
    found = stream(x, buffer_bytes=32 * 700 * 24)
    found = replace(found, source=source)
    whole = found.statistics(n_rows=n_rows, variances=True)
    before = sum(s.n_read for s in source.sources)
    parts = [
        found.statistics(n_rows=n_rows, variances=True, portion=own)
        for own in portions(n_processes)
    ]
    together = pooled(part for part in parts if part.n_rows)
    assert sum(s.n_read for s in source.sources) == 2 * before
    assert together.n_rows == whole.n_rows == before
    assert_allclose(together.mean, whole.mean, rtol=1e-13)
    assert_allclose(together.variance, whole.variance, rtol=1e-12)


def test_a_process_without_a_row_has_statistics_of_none():
    found = stream(np.eye(3)).statistics(portion=portions(9)[4])
    assert found.n_rows == 0


@pytest.mark.parametrize("n_processes", [2, 5])
def test_labels_are_counted_by_parts(stored, n_processes, labels):
    what, names = stored
    found = stream(what, labels=names, buffer_bytes=40 * 24)
    parts = [found.label_counts(own) for own in portions(n_processes)]
    assert sum(counts.sum() for _, counts in parts) == 230
    for one, other in zip(counts_of_all(parts), found.label_counts(), strict=True):
        assert_array_equal(one, other)
    assert_array_equal(counts_of_all(parts)[1], np.bincount(labels))

"""Streamed rows train as rows in memory do, epoch by epoch, and leave nothing behind."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array

from freenergy.data import DataError, stream
from freenergy.data.sources import ArraySource
from freenergy.distributed import ALONE
from freenergy.random import RandomStream
from freenergy.training import LabelledBatch, LabelledRows, StreamedRows, as_rows
from freenergy.training.rows import label_counts, rows_in

DOUBLE = torch.empty(0, dtype=torch.float64)


def streamed(x, **options):
    """Blocks of two rows, 64 rows in the buffer."""
    x = np.asarray(x)
    return StreamedRows(stream(x, buffer_bytes=64 * x[0].nbytes, **options), DOUBLE)


# ---- rows in memory keep their order -------------------------------------------------------------


@pytest.mark.parametrize("size", [7, 60, 61])
@pytest.mark.parametrize("make", [torch.from_numpy, csr_array], ids=["dense", "sparse"])
def test_rows_in_memory_come_in_the_order_of_one_permutation(make, size):
    """The order that every run so far was trained in."""
    x = np.arange(120.0).reshape(60, 2)
    rows, order, drawn = as_rows(make(x), DOUBLE), RandomStream(5), RandomStream(5)
    for _ in range(2):
        found = [batch.numpy() for batch in rows.batches(size, order)]
        expected = drawn.permutation(60).numpy() if size < 60 else np.arange(60)
        assert_array_equal(np.concatenate(found), x[expected])
        assert [len(batch) for batch in found[:-1]] == [size] * (len(found) - 1)
    assert order.state() == drawn.state()
    assert_array_equal(np.concatenate(list(rows.batches(size))), x)


def test_a_limit_ends_an_epoch_and_leaves_the_order_as_it_is():
    x = torch.arange(50.0)[:, None]
    whole = list(as_rows(x, DOUBLE).batches(8, RandomStream(0)))
    some = list(as_rows(x, DOUBLE).batches(8, RandomStream(0), limit=3))
    assert len(some) == 3
    for one, other in zip(some, whole[:3], strict=True):
        assert_array_equal(one, other)
    assert len(list(as_rows(x, DOUBLE).batches(8, RandomStream(0), limit=99))) == 7


def test_labelled_rows_come_with_their_labels():
    x = torch.arange(20.0)[:, None]
    rows = LabelledRows(as_rows(x, x), torch.arange(20))
    for batch in rows.batches(6, RandomStream(0)):
        assert_array_equal(batch.rows[:, 0], batch.labels)
    assert (rows.n_rows, rows.total, rows_in(rows.some(5)), rows_in(x)) == (20, 20.0, 5, 20)


# ---- streamed rows -------------------------------------------------------------------------------


def test_streamed_rows_are_those_in_memory(data):
    x = data(97).numpy()
    rows, whole = streamed(x), as_rows(x, DOUBLE)
    assert (len(rows), rows.n_rows, rows.width, rows.total) == (97, 97, 6, 97.0)
    assert_allclose(rows.mean(), whole.mean(), rtol=1e-14)
    assert_array_equal(rows.take(slice(3, 40)), whole.take(slice(3, 40)))
    assert_array_equal(rows.take(slice(0, len(rows))), x)
    batches = list(rows.batches(10, RandomStream(0)))
    assert [len(batch) for batch in batches] == [10] * 9 + [7]
    assert sorted(map(tuple, torch.cat(batches).tolist())) == sorted(map(tuple, x.tolist()))
    assert len(rows.some(12)) == 12
    kept, held_out = rows.split(20)
    assert (len(kept), len(held_out)) == (77, 20)


def test_labels_and_shares_of_classes_come_with_the_stream():
    x, y = np.arange(40.0)[:, None], np.arange(40) % 4
    rows = StreamedRows(stream(x, labels=y, buffer_bytes=64 * 8).encoded(lambda y: y), DOUBLE)
    for batch in rows.batches(7, RandomStream(0)):
        assert isinstance(batch, LabelledBatch)
        assert_array_equal(batch.rows[:, 0] % 4, batch.labels)
    assert_allclose(rows.class_shares(4), np.full(4, 0.25))
    assert_allclose(rows.class_shares(5), np.array([11, 11, 11, 11, 1]) / 45)


def test_single_rows_of_a_stream_cannot_be_asked_for():
    rows = streamed(np.eye(6))
    for ask in (rows.take, rows.part):
        with pytest.raises(TypeError, match="stream"):
            ask(torch.tensor([3, 1]))


# ---- training ------------------------------------------------------------------------------------


def test_the_start_is_that_of_the_rows_in_memory(data, start):
    x = data(97)
    here, there = start(as_rows(x, DOUBLE)), start(streamed(x))
    for p, q in zip(here.model.parameters(), there.model.parameters(), strict=True):
        assert_allclose(p.detach(), q.detach(), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("batch_size", [10, 20, 97, 200])
def test_what_the_buffer_holds_trains_to_the_bits_of_rows_in_memory(data, start, batch_size):
    x = data(97)
    whole = StreamedRows(stream(x.numpy(), buffer_bytes=97 * 48), DOUBLE)
    assert len(whole.stream.ranges) == 33
    memory = as_rows(x, DOUBLE)
    there, here = (start(memory, n_epochs=3, batch_size=batch_size) for _ in range(2))
    here.fit(memory)
    there.fit(whole)
    for p, q in zip(here.model.parameters(), there.model.parameters(), strict=True):
        assert_array_equal(p.detach(), q.detach())
    assert here.order.state() == there.order.state()


@pytest.mark.parametrize("n_readers", [1, 4])
def test_training_depends_on_the_seed_and_not_on_the_threads(data, start, same_state, n_readers):
    x = data(300)
    one, other = streamed(x, n_readers=1), streamed(x, n_readers=n_readers)
    trainers = [start(rows, n_epochs=3) for rows in (one, other)]
    for trainer, rows in zip(trainers, (one, other), strict=True):
        trainer.fit(rows)
    same_state(trainers[0].state(), trainers[1].state())


def test_a_stream_is_resumed_to_the_same_bits(data, start, same_state):
    rows = streamed(data(300))
    whole, first, second = (start(rows, n_epochs=n) for n in (5, 2, 5))
    whole.fit(rows)
    first.fit(rows)
    second.restore(*first.state())
    second.fit(rows)
    same_state(whole.state(), second.state())


@pytest.mark.parametrize("make", [streamed, lambda x: as_rows(x, DOUBLE)], ids=["stream", "memory"])
def test_an_epoch_ends_after_its_updates(data, start, make):
    rows, seen = make(data(300)), []
    trainer = start(rows, n_epochs=3, updates_per_epoch=4)
    trainer.fit(rows, on_batch=seen.append)
    assert seen == [10] * 12
    assert [record["updates"] for record in trainer.history] == [4] * 3


def test_an_epoch_ends_with_its_rows_whatever_the_updates_asked_for(data, start):
    trainer = start(streamed(data(300)), n_epochs=2, updates_per_epoch=1000)
    trainer.fit(streamed(data(300)))
    assert [record["updates"] for record in trainer.history] == [30] * 2


def test_the_rate_falls_over_a_limited_epoch(data, start):
    rows, rates = as_rows(data(300), DOUBLE), []
    trainer = start(rows, n_epochs=2, updates_per_epoch=4, schedule="cosine")
    trainer.fit(rows, on_batch=lambda n: rates.append(trainer.optimizer.param_groups[0]["lr"]))
    assert_allclose(rates, 0.05 * (1 + np.cos(np.pi * np.arange(8) / 8)))


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        rng = np.random.default_rng(0)
        while True:
            yield (rng.random(6) < [0.1, 0.9, 0.5, 0.5, 0.2, 0.8]).astype(np.float32)


def test_rows_without_end_are_learned_from(start):
    rows = StreamedRows(stream(Endless()), DOUBLE, start_rows=500)
    trainer = start(rows, n_epochs=3, updates_per_epoch=5)
    assert_allclose(rows.mean(), [0.1, 0.9, 0.5, 0.5, 0.2, 0.8], atol=0.08)
    trainer.fit(rows)
    assert trainer.epoch == 3
    assert rows.n_rows is None
    with pytest.raises(ValueError, match="nobody knows how many rows Endless has"):
        len(rows)


def test_a_shard_that_breaks_midway_leaves_the_last_epoch(data, start, same_state, tmp_path):
    x = data(300).numpy()
    for k in range(3):
        np.save(tmp_path / f"{k}.npy", x[100 * k : 100 * k + 100])
    rows = StreamedRows(stream(tmp_path, buffer_bytes=64 * 48), DOUBLE)
    trainer = start(rows, n_epochs=4)
    kept = []

    def on_epoch(trainer):
        kept.append(trainer.state())
        if trainer.epoch == 2:
            np.save(tmp_path / "1.npy", np.where(x[100:200] > 0, np.nan, 0.0))

    with pytest.raises(DataError, match=r"1\.npy has NaN in column"):
        trainer.fit(rows, on_epoch=on_epoch)
    same_state(trainer.state(), kept[-1])
    assert trainer.epoch == 2
    assert not any(t.name.startswith("freenergy-read") for t in threading.enumerate())


# ---- several processes ---------------------------------------------------------------------------


@pytest.fixture
def in_processes(together, monkeypatch):
    """``in_processes(size, work)``, what ``work()`` gives in each process of a group."""
    here = threading.local()
    for module in ("trainer", "rows"):
        monkeypatch.setattr(
            f"freenergy.training.{module}.group_now", lambda: getattr(here, "group", ALONE)
        )

    def run(size, work):
        def member(group):
            here.group = group if size > 1 else ALONE
            return work()

        return together(size, member)

    return run


class Counted(ArraySource):
    """An array that counts the rows that are read of it."""

    n_read = 0

    def read(self, start, stop):
        self.n_read += stop - start
        return super().read(start, stop)


def counted(x, n_buffered=32 * 400, **options):
    rows = stream(x.numpy(), buffer_bytes=n_buffered * x[0].nbytes, n_readers=1, **options)
    return StreamedRows(replace(rows, source=Counted(x.numpy(), "rows")), DOUBLE)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("n_buffered", [32 * 400, 10**6], ids=["mixed", "held whole"])
def test_several_processes_read_their_shares_and_learn_the_model_of_one(
    data, start, in_processes, size, n_buffered
):
    x = data(20_000)

    def work():
        rows = counted(x, n_buffered)
        trainer = start(rows, method="emf", batch_size=400, n_epochs=2)
        trainer.fit(rows)
        return trainer, rows.stream.source.n_read

    ((one, n_all),) = in_processes(1, work)
    several = in_processes(size, work)
    assert n_all == 3 * 20_000, "the means, and two epochs"
    assert sum(n for _, n in several) == n_all
    assert_allclose([n for _, n in several], n_all / size, rtol=6e-3)
    for member, _ in several:
        for p, q in zip(member.model.parameters(), one.model.parameters(), strict=True):
            assert_allclose(p.detach(), q.detach(), rtol=0, atol=1e-13)


def test_a_value_that_one_process_finds_stops_the_start_in_all(data, start, in_processes):
    x = data(20_000)
    x[7, 2] = torch.nan

    def work():
        with pytest.raises(DataError, match="rows has NaN in column 2, row 7"):
            start(counted(x))
        return True

    assert in_processes(3, work) == [True] * 3


def test_a_part_without_a_row_is_a_labelled_batch_of_none(threads):
    rows = StreamedRows(stream(np.eye(20), labels=np.arange(20)).encoded(lambda y: y), DOUBLE)
    parts = [list(rows.parts(4, group.portion, RandomStream(0))) for group in threads(3)]
    for shares in zip(*parts, strict=True):
        # One block of so few rows is read by one process.
        assert sorted(len(part.batch.rows) for part in shares) == [0, 0, 4]
        for part in shares:
            assert part.batch.rows.shape[1] == 20
            assert len(part.batch.labels) == len(part.batch.rows)


def test_the_means_are_not_asked_of_other_processes_where_rows_have_no_numbers(in_processes):
    def work():
        rows = StreamedRows(stream(Endless()), DOUBLE, start_rows=100)
        return rows.mean().tolist()

    assert len(set(map(tuple, in_processes(2, work)))) == 1


def test_labels_are_counted_by_all_processes_together(in_processes):
    y = np.resize([0, 1, -1], 3000)

    def work():
        labelled = stream(np.zeros((3000, 2)), labels=y, buffer_bytes=2**14).encoded(lambda y: y)
        rows = StreamedRows(labelled, DOUBLE)
        return label_counts(labelled)[1].tolist(), rows.labelled_only().n_rows

    assert in_processes(3, work) == [([1000] * 3, 2000)] * 3

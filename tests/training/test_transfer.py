"""Where rows lie, and that the next batch is on its way while one is in use."""

from __future__ import annotations

from contextlib import contextmanager
from unittest.mock import MagicMock, call

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from numpy.testing import assert_array_equal

from freenergy.data import stream
from freenergy.random import RandomStream
from freenergy.training import as_rows, transfer
from freenergy.training.rows import LabelledBatch, LabelledRows, Part
from freenergy.training.transfer import ahead, placed, sent

GPU = torch.device("meta")
"""A device that is not the host; what lies there has a shape, and no numbers."""


@pytest.fixture
def free_bytes(monkeypatch):
    """``free_bytes(n)`` is the free memory of every device from now on."""
    return lambda n: monkeypatch.setattr(transfer, "_free_bytes", lambda device: n)


def test_rows_that_take_up_to_half_of_the_free_memory_lie_on_the_device(free_bytes):
    data, like = torch.ones(10, 5, dtype=torch.float64), torch.empty(0, device=GPU)
    free_bytes(2 * 10 * 5 * 4)
    assert (placed(data, like).device, placed(data, like).dtype) == (GPU, torch.float32)
    free_bytes(2 * 10 * 5 * 4 - 1)
    assert (placed(data, like).device.type, placed(data, like).dtype) == ("cpu", torch.float32)


def test_rows_that_lie_there_already_stay(free_bytes):
    free_bytes(0)
    there = torch.ones(10, 5, device=GPU)
    assert placed(there, torch.empty(0, device=GPU)) is there
    here = torch.ones(10, 5)
    assert placed(here, torch.empty(0)) is here


def test_batches_of_rows_on_the_host_come_to_the_device(free_bytes):
    like = torch.empty(0, device=GPU)
    data = np.arange(60.0, dtype=np.float32).reshape(12, 5)
    free_bytes(np.inf)
    assert as_rows(data, like).resident
    free_bytes(10)
    rows = as_rows(data, like)
    assert not rows.resident
    assert_array_equal(rows.data, data)
    assert [b.device for b in rows.batches(5, RandomStream(0))] == [GPU] * 3
    assert rows.some(3).device == rows.part(torch.tensor([1, 2])).take(slice(0, 1)).device == GPU
    for kind in (sp.csr_array(data), stream(data)):
        other = as_rows(kind, like)
        assert not other.resident
        assert [b.device for b in other.batches(5)] == [GPU] * 3
    assert as_rows(data, torch.empty(0)).resident


def test_the_order_of_an_epoch_is_brought_to_the_rows_once(monkeypatch):
    """One copy, whatever the number of batches: for each of them the host would wait."""
    order = RandomStream(0)
    expected = order.permutation(12)
    order = RandomStream(0)
    moved = []

    class Order(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is torch.Tensor.to:
                moved.append((len(args[0]), args[1]))
            return super().__torch_function__(func, types, args, kwargs or {})

    monkeypatch.setattr(order, "permutation", lambda n: expected.as_subclass(Order))
    rows = as_rows(torch.arange(12.0)[:, None], torch.empty(0))
    labelled = LabelledRows(rows, torch.arange(12))
    assert (rows.home, labelled.home) == (rows.data.device, labelled.labels.device)
    list(rows.batches(5, order))
    assert moved[0] == (12, rows.home)
    # Labels that lie elsewhere are looked up by the host.
    apart = LabelledRows(as_rows(torch.ones(3, 2), torch.empty(0, device=GPU)), torch.ones(3))
    assert apart.home == torch.device("cpu")


def test_a_tensor_is_sent_from_memory_that_the_device_can_read():
    like = MagicMock(is_cuda=True, dtype=torch.float32, device="cuda:0")
    tensor = MagicMock(is_cuda=False)
    sent(tensor, like)
    assert tensor.mock_calls == [
        call.to(torch.float32),
        call.to().pin_memory(),
        call.to().pin_memory().to("cuda:0", non_blocking=True),
    ]
    there = MagicMock(is_cuda=True)
    sent(there, like)
    assert there.mock_calls == [call.to(like)]


def test_free_memory_counts_what_torch_keeps_for_later(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert transfer._free_bytes(torch.device("cuda", 0)) == 1300
    assert transfer._free_bytes(torch.device("cpu")) == np.inf


# ---- one batch ahead -----------------------------------------------------------------------------


class Log:
    """A lane that writes down what comes when."""

    def __init__(self):
        self.calls = []

    def fetch(self, batches):
        batch = next(batches, None)
        self.calls.append(f"fetch {batch}")
        return batch

    def arrived(self, coming):
        self.calls.append(f"arrived {coming}")
        return coming


def counting(n, closed):
    try:
        yield from range(1, n + 1)
    finally:
        closed.append(True)


def test_the_next_batch_is_fetched_before_one_is_used():
    lane, closed = Log(), []
    for batch in ahead(counting(3, closed), GPU, lane):
        lane.calls.append(f"use {batch}")
    expected = "fetch 1, arrived 1, fetch 2, use 1, arrived 2, fetch 3, use 2, arrived 3"
    assert ", ".join(lane.calls) == f"{expected}, fetch None, use 3"
    assert closed == [True]


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_all_batches_come_in_their_order(n):
    assert list(ahead(counting(n, []), GPU, Log())) == list(range(1, n + 1))


def test_what_reads_ahead_is_closed_with_an_epoch_that_ends_early():
    closed = []
    reading = counting(9, closed)
    batches = ahead(reading, GPU, Log())
    next(batches)
    batches.close()
    assert closed == [True]
    assert next(reading, None) is None


def test_training_from_the_host_is_training_from_the_device(
    data, start, same_state, monkeypatch, free_bytes
):
    x = data(47)
    whole = start(x, n_epochs=3)
    whole.fit(as_rows(x, x))
    monkeypatch.setattr(
        "freenergy.training.trainer.ahead", lambda batches, device: ahead(batches, device, Log())
    )
    for rows in (sp.csr_array(x.numpy()), stream(x.numpy())):
        other = start(x, n_epochs=3, shuffle=False)
        other.fit(as_rows(rows, x))
        plain = start(x, n_epochs=3, shuffle=False)
        plain.fit(as_rows(x, x))
        same_state(other.state(), plain.state())


def test_a_cuda_lane_orders_the_streams(monkeypatch):
    calls, current = [], ["main"]

    class Stream:
        def __init__(self, device=None, name="lane"):
            self.name = name

        def wait_stream(self, other):
            calls.append(f"{self.name} waits for {other.name}")

        def record_event(self):
            calls.append(f"event on {self.name}")
            return "event"

        def wait_event(self, event):
            calls.append(f"{self.name} waits for {event}")

    @contextmanager
    def on(found):
        current.append(found.name)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(name="main"))

    def batches():
        for i in range(2):
            calls.append(f"gather {i} on {current[-1]}")
            yield i

    for i in ahead(batches(), torch.device("cuda", 0)):
        calls.append(f"use {i} on {current[-1]}")
    assert calls == [
        "lane waits for main",
        "gather 0 on lane",
        "event on lane",
        "main waits for event",
        "gather 1 on lane",
        "event on lane",
        "use 0 on main",
        "main waits for event",
        "use 1 on main",
    ]


def test_memory_of_a_batch_is_kept_while_it_is_in_use():
    class OnDevice(torch.Tensor):
        @property
        def is_cuda(self):
            return True

    rows, labels = (torch.ones(3).as_subclass(OnDevice) for _ in range(2))
    found = transfer._tensors(Part(LabelledBatch(rows, labels, None), 7))
    assert [id(t) for t in found] == [id(rows), id(labels)]
    assert transfer._tensors(torch.ones(3)) == []

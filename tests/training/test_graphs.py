"""Updates recorded once and replayed, on a tape that stands for a CUDA graph.

The tape keeps what a graph keeps: which kernels ran, on which tensors, with which numbers. What a
graph forbids it forbids as well. So a replay gives the update of the plain way only where nothing
that changes from update to update was a number of the host, or another tensor.
"""

from __future__ import annotations

import copy
import logging
import pickle
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from freenergy.models import RBM, Binomial
from freenergy.random import RandomStream
from freenergy.training import Trainer, TrainingOptions, as_rows, graphs, initialize
from freenergy.training.graphs import N_REHEARSALS, CudaRecorder, RecordedUpdate, recorder_for

aten = torch.ops.aten
ANSWERS = (
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.item,
    aten.masked_select,
    aten.nonzero,
    aten._unique2,
)
"""Operations with which a host waits for what a device has computed."""


class NoAnswers(TorchDispatchMode):
    """A device that answers no question, as while a CUDA graph is recorded."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in ANSWERS:
            raise RuntimeError(f"operation not permitted while recording: {func}")
        return func(*args, **(kwargs or {}))


class Recording(NoAnswers):
    """What is done to which tensors, undone at the end."""

    def __init__(self):
        super().__init__()
        self.steps, self._before, self._own = [], {}, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for tensor in self._written(func, args, kwargs):
            pointer = tensor.untyped_storage().data_ptr()
            if pointer not in self._own and pointer not in self._before:
                whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
                self._before[pointer] = whole, whole.clone()
        found = super().__torch_dispatch__(func, types, args, kwargs)
        self.steps.append((func, args, kwargs, found))
        if _is_new(func):
            self._own |= {t.untyped_storage().data_ptr() for t in _tensors(found)}
        return found

    @staticmethod
    def _written(func, args, kwargs):
        schema = func._schema.arguments
        given = dict(zip((a.name for a in schema), args, strict=False)) | kwargs
        for argument in schema:
            if argument.alias_info is not None and argument.alias_info.is_write:
                yield from _tensors(given.get(argument.name))

    def undo(self):
        for whole, before in self._before.values():
            whole.copy_(before)

    def replay(self):
        for func, args, kwargs, found in self.steps:
            again = func(*args, **kwargs)
            if _is_new(func):
                for tensor, value in zip(_tensors(found), _tensors(again), strict=True):
                    tensor.copy_(value)


def _is_new(func):
    return all(r.alias_info is None for r in func._schema.returns)


def _tensors(tree):
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


class Tape:
    """A recorder on the CPU."""

    def __init__(self, fails: str = ""):
        self.fails = fails
        self.n_rehearsed = self.n_recorded = self.n_replayed = 0

    def rehearse(self, work):
        self.n_rehearsed += 1
        work()

    def record(self, work, random):
        self.n_recorded += 1
        state, recording = random.generator.get_state(), Recording()
        if self.fails:
            try:
                raise RuntimeError(self.fails + "\nand a trace of the stack")
            finally:
                raise RuntimeError("operation failed due to a previous error during capture")
        with torch.no_grad():
            try:
                with recording:
                    work()
            finally:
                recording.undo()
                random.generator.set_state(state)

        def replay():
            self.n_replayed += 1
            with torch.no_grad():
                recording.replay()

        return replay


class DeviceStream(RandomStream):
    """A stream whose draws are torch's, as on a GPU."""

    def __init__(self, seed=None, device="cpu"):
        super().__init__(seed, device)
        self._device_generator = torch.Generator().manual_seed(int(self.integers(0, 2**31, 1)))


@pytest.fixture
def tape(monkeypatch):
    """``tape(...)`` puts a tape where the device's recorder is looked up, and returns it."""

    def put(**options):
        found = Tape(**options)
        monkeypatch.setattr("freenergy.training.trainer.recorder_for", lambda device: found)
        return found

    # Torch knows these optimisers to be recordable on GPUs only.
    for name in ("adam", "adamw", "rmsprop"):
        module, place = import_module(f"torch.optim.{name}"), "_get_capturable_supported_devices"
        monkeypatch.setattr(module, place, lambda **_: ["cpu"], raising=False)
    return put


def trainer_on(data: Tensor, *, unit="bernoulli", dtype=torch.float32, **options) -> Trainer:
    given = {"batch_size": 10, "learning_rate": 0.1, "n_epochs": 3, **options}
    model = RBM(data.shape[1], 5, visible=unit, hidden=unit, dtype=dtype)
    random = DeviceStream(3)
    initialize(model, as_rows(data, model.weight.detach()), random)
    return Trainer(model, TrainingOptions(**given), random, order=RandomStream(4))


def rows_of(data: Tensor, dtype=torch.float32):
    return as_rows(data, torch.empty(0, dtype=dtype))


@contextmanager
def never_recorded(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(graphs, "N_REHEARSALS", 10**9)
        yield


VARIANTS = [
    {"method": "pcd"},
    {"method": "pcd", "n_steps": 3, "n_chains": 7, "momentum": 0.9, "schedule": "cosine"},
    {"method": "pcd", "centered": False, "l1": 1e-3, "l2": 1e-2, "learning_rate_decay": 1.0},
    {"method": "pcd", "optimizer": "adam", "schedule": "cosine"},
    {"method": "pcd", "precision": "bf16", "schedule": "cosine"},
    {"method": "cd", "n_steps": 2, "weight_constraint": "l2", "max_norm": 0.5},
    {"method": "cd", "optimizer": "adamw", "l2": 0.1, "shuffle": False},
    {"method": "emf", "n_steps": 3, "schedule": "cosine"},
    {"method": "emf", "centered": False, "sparsity_target": 0.2, "sparsity_cost": 0.5},
    {"method": "emf", "mean_field_order": 1, "persistent": False, "momentum": 0.5},
    {"method": "emf", "mean_field_order": 3, "optimizer": "rmsprop", "momentum": 0.5},
    {"method": "emf", "optimizer": "rmsprop", "schedule": "cosine", "l1": 1e-3},
]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(map(str, o.values())))
def test_replays_are_the_updates_of_the_plain_way(data, tape, monkeypatch, same_state, options):
    """Chains, averages, momenta and rates go on, and the smaller last batch stands between."""
    x = data(47)
    with never_recorded(monkeypatch):
        tape()
        plain = trainer_on(x, **options)
        plain.fit(rows_of(x))
    recorder = tape()
    recorded = trainer_on(x, **options)
    recorded.fit(rows_of(x))
    assert (recorder.n_rehearsed, recorder.n_recorded) == (N_REHEARSALS, 1)
    assert recorder.n_replayed == 3 * 4 - N_REHEARSALS
    same_state(recorded.state(), plain.state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", ["pcd", "emf"])
@pytest.mark.parametrize("unit", ["spin", Binomial(3)], ids=str)
def test_all_units_are_recorded_in_both_precisions(
    data, tape, monkeypatch, same_state, unit, method, dtype
):
    x = data(47)
    options = {"unit": unit, "method": method, "dtype": dtype, "learning_rate": 0.01}
    with never_recorded(monkeypatch):
        tape()
        plain = trainer_on(x, **options)
        plain.fit(rows_of(x, dtype))
    recorder = tape()
    recorded = trainer_on(x, **options)
    recorded.fit(rows_of(x, dtype))
    assert recorder.n_replayed == 3 * 4 - N_REHEARSALS
    same_state(recorded.state(), plain.state())


@pytest.mark.parametrize("method", ["pcd", "cd", "emf"])
def test_an_update_asks_the_device_for_nothing(data, tape, method):
    x = data(47)
    tape()
    trainer = trainer_on(x, method=method, momentum=0.5, l1=1e-3, schedule="cosine")
    rows = rows_of(x)
    with NoAnswers():
        for i, batch in enumerate(rows.batches(10, trainer.order)):
            trainer.use_rate(0.1 / (1 + i))
            trainer.update(batch)


def test_a_device_that_is_asked_says_so():
    with NoAnswers(), pytest.raises(RuntimeError, match="not permitted"):
        float(torch.ones(1) + 1)


def test_replays_stay_at_their_addresses(data, tape):
    x = data(47)
    tape()
    trainer = trainer_on(x, momentum=0.5)
    trainer.fit(rows_of(x))
    (gradient, gradients, kept) = trainer._recording._kept
    full = gradient["_visible"]
    # The last batch of an epoch has put smaller buffers in their place.
    assert trainer.gradient._visible.shape != full.shape
    assert full.shape == (20, 6)
    for parameter, grad, state in zip(trainer.model.parameters(), gradients, kept, strict=True):
        assert parameter.grad is grad
        assert trainer.optimizer.state[parameter]["momentum_buffer"] is state["momentum_buffer"]
    assert trainer.gradient.chain is gradient["chain"]


def test_the_rate_is_written_only_where_it_changes(data, tape):
    tape()
    trainer = trainer_on(data(20))
    (rate,) = {id(group["lr"]) for group in trainer.optimizer.param_groups}
    trainer.use_rate(0.25)
    lr = trainer.optimizer.param_groups[0]["lr"]
    version = lr._version
    trainer.use_rate(0.25)
    assert (float(lr), id(lr), lr._version) == (0.25, rate, version)
    trainer.use_rate(0.5)
    assert float(lr) == 0.5


@pytest.mark.parametrize("method", ["pcd", "emf"])
def test_training_stops_and_goes_on(data, tape, same_state, method):
    """A restored state has other tensors, which the old recording does not know."""
    x = data(47)
    tape()
    options = {"method": method, "momentum": 0.9, "n_epochs": 4}
    whole = trainer_on(x, **options)
    whole.fit(rows_of(x))
    first = trainer_on(x, **options | {"n_epochs": 2})
    first.fit(rows_of(x))
    second = trainer_on(x, **options)
    second.restore(*first.state())
    second.fit(rows_of(x))
    same_state(second.state(), whole.state())
    # Back by two epochs, in a trainer that has a recording.
    whole.restore(*first.state())
    whole.fit(rows_of(x))
    again = whole.state()
    again[1]["options"] = second.state()[1]["options"]
    same_state(again, second.state())


def test_another_size_of_batches_is_recorded_anew(data, tape):
    x = data(60)
    recorder = tape()
    trainer = trainer_on(x, n_epochs=1, n_chains=4)
    trainer.fit(rows_of(x))
    trainer.options = TrainingOptions(**trainer.options.to_dict() | {"n_epochs": 2})
    trainer.fit(rows_of(x))
    assert recorder.n_recorded == 1
    trainer.options = TrainingOptions(
        **trainer.options.to_dict() | {"n_epochs": 3, "batch_size": 6}
    )
    trainer.fit(rows_of(x))
    assert (recorder.n_recorded, recorder.n_rehearsed) == (2, 2 * N_REHEARSALS)


def test_rows_fewer_than_a_batch_are_recorded_too(data, tape):
    x = data(7)
    recorder = tape()
    trainer_on(x, n_epochs=6).fit(rows_of(x))
    assert (recorder.n_rehearsed, recorder.n_recorded, recorder.n_replayed) == (3, 1, 3)


def test_where_recording_fails_updates_go_on_one_by_one(
    data, tape, monkeypatch, same_state, caplog
):
    x = data(47)
    with never_recorded(monkeypatch):
        tape()
        plain = trainer_on(x)
        plain.fit(rows_of(x))
    recorder = tape(fails="operation not permitted when stream is capturing")
    trainer = trainer_on(x)
    trainer.fit(rows_of(x))
    same_state(trainer.state(), plain.state())
    assert recorder.n_recorded == 1
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "not permitted when stream is capturing" in record.getMessage()
    assert "trace" not in record.getMessage()


def test_what_asks_the_device_is_not_recorded(data, tape, caplog):
    """As a unit that looks at its own draws would."""
    x = data(40)
    tape()
    trainer = trainer_on(x)
    compute = trainer.gradient.compute

    def curious(batch):
        compute(batch)
        assert float(trainer.model.weight.detach().sum()) < 1e9

    trainer.gradient.compute = curious
    trainer.fit(rows_of(x))
    assert "not permitted" in trainer._recording.failure


def test_a_ladder_that_grows_is_not_recorded(data, tape, caplog):
    tape()
    x = data(40)
    trainer = trainer_on(x, method="ptt", n_epochs=1)
    assert trainer._recording is None
    with caplog.at_level(logging.INFO, "freenergy"):
        trainer.fit(rows_of(x))
    (line,) = [r.getMessage() for r in caplog.records]
    assert "TrajectoryTempering on cpu" in line


def test_processes_that_add_up_are_not_recorded(data, tape):
    tape()
    trainer = trainer_on(data(40))
    assert trainer._way(40) != trainer.update
    trainer.group = SimpleNamespace(size=2)
    assert trainer._way(40) == trainer.update


def test_the_cpu_records_nothing(data, start):
    assert recorder_for(torch.device("cpu")) is None
    trainer = start(data(20))
    assert trainer._recording is None
    assert isinstance(trainer.optimizer.param_groups[0]["lr"], float)


def test_trainers_are_copied_and_stored_without_their_recording(data, tape, same_state):
    x = data(47)
    tape()
    trainer = trainer_on(x, momentum=0.5, n_epochs=2)
    trainer.fit(rows_of(x))
    others = copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer))
    trainer.options = TrainingOptions(**trainer.options.to_dict() | {"n_epochs": 4})
    trainer.fit(rows_of(x))
    for other in others:
        assert other._recording is not trainer._recording
        other.options = trainer.options
        other.fit(rows_of(x))
        same_state(other.state(), trainer.state())
    with pytest.raises(TypeError, match="cannot be stored"):
        pickle.dumps(RecordedUpdate(print, list, Tape(), DeviceStream()))


# ---- the calls to CUDA, on a stand-in ------------------------------------------------------------


class FakeCuda:
    """Writes down what it is asked, in order."""

    def __init__(self, monkeypatch, fails=False):
        self.calls, self.current, self.fails = [], "main", fails
        fake = self

        class Stream(str):
            def __new__(cls, device=None):
                return str.__new__(cls, "side")

            def wait_stream(self, other):
                fake.calls.append(f"{self} waits for {other}")

        class Main(Stream):
            def __new__(cls):
                return str.__new__(cls, "main")

        class Graph:
            def register_generator_state(self, generator):
                fake.calls.append(f"register on {fake.current}")

            def replay(self):
                fake.calls.append("replay")

        @contextmanager
        def on(stream):
            before, fake.current = fake.current, str(stream)
            yield
            fake.current = before

        @contextmanager
        def graph(found, stream, capture_error_mode):
            fake.current = str(stream)  # as torch's, which a failing end of a capture leaves so
            fake.calls.append(f"begin {capture_error_mode}")
            yield
            if fake.fails:
                raise RuntimeError("capture failed")
            fake.calls.append("end")
            fake.current = "main"

        cuda = {
            "Stream": Stream,
            "CUDAGraph": Graph,
            "graph": graph,
            "stream": on,
            "device": lambda device: on(self.current),
            "current_stream": lambda device: Main() if self.current == "main" else Stream(),
            "set_stream": lambda stream: setattr(self, "current", str(stream)),
        }
        for name, value in cuda.items():
            monkeypatch.setattr(torch.cuda, name, value)


def test_cuda_rehearses_and_records_on_one_stream(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    recorder = CudaRecorder(torch.device("cuda", 0))
    recorder.rehearse(lambda: cuda.calls.append(f"work on {cuda.current}"))
    assert cuda.calls == ["side waits for main", "work on side", "main waits for side"]
    cuda.calls.clear()
    replay = recorder.record(lambda: cuda.calls.append(f"work on {cuda.current}"), DeviceStream(0))
    assert cuda.calls == ["register on main", "begin thread_local", "work on side", "end"]
    replay()
    assert cuda.calls[-1] == "replay"


def test_a_capture_that_fails_gives_the_stream_and_the_draws_back(monkeypatch):
    cuda = FakeCuda(monkeypatch, fails=True)
    random, like = DeviceStream(0), DeviceStream(0)
    held = random.generator
    with pytest.raises(RuntimeError, match="capture failed"):
        CudaRecorder(torch.device("cuda", 0)).record(
            lambda: random.uniform_(torch.empty(5)), random
        )
    assert cuda.current == "main"
    assert random.generator is not held
    # The draws of the work that came to nothing are drawn again.
    np.testing.assert_array_equal(random.uniform_(torch.empty(8)), like.uniform_(torch.empty(8)))

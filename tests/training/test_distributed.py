"""Several processes train the model that one would: parts of batches and chains that add up.

In most tests the processes are threads; those that start processes go through torchrun.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from numpy.testing import assert_allclose, assert_array_equal

from freenergy.cli import app
from freenergy.data import stream
from freenergy.distributed import ALONE, Group, launch
from freenergy.models import RBM, DiscriminativeRBM
from freenergy.models.mlp import initialize_perceptron, multilayer_perceptron
from freenergy.models.vae import VAE
from freenergy.random import RandomStream
from freenergy.training import (
    DiscriminativeGradient,
    DiscriminativeOptions,
    LabelledRows,
    PerceptronOptions,
    PerceptronTrainer,
    RunConfig,
    RunDirectory,
    RunError,
    TrainingOptions,
    VariationalGradient,
    VariationalOptions,
    as_rows,
    initialize,
    initialize_variational,
    load_checkpoint,
    trainer,
)
from freenergy.training.backprop import Backpropagation, mean_cross_entropy
from freenergy.training.members import Members, derived_seed, pooled
from freenergy.training.options import LoopOptions
from freenergy.training.perceptron import PerceptronGradient
from freenergy.training.rows import rows_in
from freenergy.training.stopping import StopTraining
from freenergy.training.trainer import DivergenceError, Trainer


@pytest.fixture
def fit(together, monkeypatch) -> Callable[..., list[Trainer]]:
    """``fit(size, make, rows, **hooks)``: trainers that several processes end with."""
    here = threading.local()
    monkeypatch.setattr(trainer, "group_now", lambda: getattr(here, "group", ALONE))

    def run(size: int, make: Callable[[], Trainer], rows: Any, **hooks: Any) -> list[Trainer]:
        def work(group: Group) -> Trainer:
            here.group = group if size > 1 else ALONE
            member = make()
            member.fit(rows, **hooks)
            return member

        return together(size, work)

    return run


def rbm_trainer(start, data, **options) -> Trainer:
    settings = {"n_epochs": 4, "batch_size": 16, "momentum": 0.5, "l1": 1e-3, **options}
    return start(data, 5, **settings)


def parameters(of: Trainer) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in of.model.parameters()]).numpy()


# ---- parts of batches, sums of records -----------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("shuffled", [True, False], ids=["shuffled", "in order"])
@pytest.mark.parametrize("kind", ["dense", "sparse", "labelled", "streamed"])
def test_the_parts_of_all_processes_are_the_batches_of_one(threads, kind, shuffled, limit):
    X = np.random.default_rng(0).integers(0, 3, (53, 4)) / 2.0
    like = torch.empty(0, dtype=torch.float64)
    rows = {
        "dense": lambda: as_rows(X, like),
        "sparse": lambda: as_rows(sp.csr_array(X), like),
        "labelled": lambda: LabelledRows(as_rows(X, like), torch.arange(53), torch.rand(53)),
        "streamed": lambda: as_rows(stream(X, buffer_bytes=800), like),
    }[kind]()

    def order() -> RandomStream | None:
        return RandomStream(3) if shuffled else None

    shares = zip(
        rows.batches(10, order(), limit),
        *(rows.parts(10, group.portion, order(), limit) for group in threads(3)),
        strict=True,
    )
    for batch, *parts in shares:
        assert {part.n_rows for part in parts} == {rows_in(batch)}
        whole = [batch] if isinstance(batch, torch.Tensor) else list(batch)
        own = [[p.batch] if isinstance(batch, torch.Tensor) else list(p.batch) for p in parts]
        for tensor, *pieces in zip(whole, *own, strict=True):
            found, expected = torch.cat(pieces).numpy(), tensor.numpy()
            if kind == "streamed" and shuffled:
                # Each process has those that it reads; their order makes no difference.
                found, expected = (a[np.lexsort(a.T)] for a in (found, expected))
            assert_array_equal(found, expected)


def test_pooled_records_weigh_by_rows_and_pass_over_a_process_without_any():
    records = [{}, {"energy": 1.0, "kind": "a"}, {"energy": 4.0, "kind": "b"}]
    assert pooled(records, [0, 2, 1]) == {"energy": 2.0, "kind": "a"}


def test_derived_seeds_depend_on_the_state_and_on_every_number():
    state, other = RandomStream(0).state(), RandomStream(1).state()
    seeds = [derived_seed(state, 1, 2, 0), derived_seed(state, 2, 1, 0), derived_seed(other, 1, 2)]
    seeds += [derived_seed(state, 1, 2, 1)]
    assert len({str(RandomStream(seed).state()) for seed in seeds}) == len(seeds)


# ---- the gradient and the training are those of one process --------------------------------------

EMF = [
    {"mean_field_order": order, "persistent": persistent, "centered": centered}
    for order in (1, 2, 3)
    for persistent in (True, False)
    for centered in (True, False)
]
EMF += [
    {"sparsity_target": 0.1, "sparsity_cost": 2.0, "centered": centered}
    for centered in (True, False)
]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("options", EMF, ids=str)
def test_mean_field_training_does_not_depend_on_the_number_of_processes(
    fit, start, data, options, size
):
    # 53 rows: the last batch of 5 and the chains divide into unequal parts.
    X = data(53)
    make = partial(rbm_trainer, start, X, method="emf", n_chains=13, **options)
    rows = as_rows(X, torch.empty(0, dtype=torch.float64))
    (one,), several = fit(1, make, rows), fit(size, make, rows)
    assert one.epoch == 4
    for member in several:
        assert_allclose(parameters(member), parameters(one), rtol=0, atol=1e-13)
        assert member.gradient.group.size == 1


def test_a_batch_with_fewer_rows_than_processes_counts_as_it_is(fit, start, data):
    X = data(11)
    make = partial(rbm_trainer, start, X, method="emf", batch_size=5, persistent=False)
    rows = as_rows(X, torch.empty(0, dtype=torch.float64))
    (one,), several = fit(1, make, rows), fit(4, make, rows)
    assert_allclose(parameters(several[3]), parameters(one), rtol=0, atol=1e-13)


@pytest.mark.parametrize("method", ["cd", "pcd", "ptt"])
def test_sampling_goes_through_batches_with_fewer_rows_than_processes(fit, start, data, method):
    X = data(11)
    make = partial(rbm_trainer, start, X, method=method, batch_size=5)
    several = fit(4, make, as_rows(X, torch.empty(0, dtype=torch.float64)))
    assert np.isfinite(parameters(several[0])).all()
    assert_array_equal(parameters(several[0]), parameters(several[3]))


def labelled(n: int, n_classes: int, *, weighted: bool, unlabelled: bool = False) -> LabelledRows:
    rng = np.random.default_rng(n)
    X = torch.from_numpy(rng.normal(size=(n, 4)))
    y = torch.from_numpy(rng.integers(-1 if unlabelled else 0, n_classes, n))
    weights = torch.from_numpy(rng.uniform(0.1, 2.0, n)) if weighted else None
    return LabelledRows(as_rows(X, X), y, weights)


def net(n_outputs: int) -> torch.nn.Sequential:
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, n_outputs)
    ).double()
    # Not by torch's global stream, which the threads have in common.
    random = RandomStream(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(random.normal(tuple(parameter.shape), 0.5))
    return model


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("size", [2, 5])
def test_a_perceptron_and_its_loss_do_not_depend_on_the_number_of_processes(fit, weighted, size):
    rows = labelled(53, 3, weighted=weighted)

    def make() -> Trainer:
        model = net(3)
        options = PerceptronOptions(
            n_epochs=3, batch_size=10, learning_rate=0.3, momentum=0.9, alpha=0.1
        )
        gradient = PerceptronGradient(model, "softmax", options.alpha)
        return PerceptronTrainer(model, options, RandomStream(0), gradient=gradient)

    (one,), several = fit(1, make, rows), fit(size, make, rows)
    for member in several:
        assert_allclose(parameters(member), parameters(one), rtol=0, atol=1e-13)
        losses = [record["loss"] for record in member.history]
        assert_allclose(losses, [record["loss"] for record in one.history], rtol=1e-12)


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize(("n", "size"), [(53, 2), (53, 5), (51, 2)])
def test_batch_normalisation_is_that_of_the_whole_batch(fit, n, size, weighted):
    # A last batch of 3 rows leaves two of five processes without any, and one of 1 has no variance.
    rows = labelled(n, 3, weighted=weighted)

    def make() -> Trainer:
        model = multilayer_perceptron(4, (6, 5), 3, activation="tanh", normalization="batch")
        initialize_perceptron(model.double(), RandomStream(0), activation="tanh")
        options = PerceptronOptions(n_epochs=3, batch_size=10, learning_rate=0.3, momentum=0.9)
        gradient = PerceptronGradient(model, "softmax", alpha=0.1)
        return PerceptronTrainer(model, options, RandomStream(0), gradient=gradient)

    (one,), several = fit(1, make, rows), fit(size, make, rows)
    for member in several:
        assert_allclose(parameters(member), parameters(one), rtol=0, atol=1e-12)
        for own, expected in zip(member.model.buffers(), one.model.buffers(), strict=True):
            assert_allclose(own, expected, rtol=0, atol=1e-12)
        losses = [record["loss"] for record in member.history]
        assert_allclose(losses, [record["loss"] for record in one.history], rtol=1e-12)
    for member in several[1:]:
        assert_array_equal(parameters(member), parameters(several[0]))


def test_rows_without_a_label_do_not_weigh(fit):
    rows = labelled(53, 3, weighted=True, unlabelled=True)

    def make() -> Trainer:
        model = net(3)
        options = LoopOptions(n_epochs=3, batch_size=10, learning_rate=0.3)
        gradient = Backpropagation(model, mean_cross_entropy)
        return Trainer(model, options, RandomStream(0), gradient=gradient, order=RandomStream(1))

    (one,), several = fit(1, make, rows), fit(3, make, rows)
    assert_allclose(parameters(several[2]), parameters(one), rtol=0, atol=1e-13)


def test_a_discriminative_rbm_does_not_depend_on_the_number_of_processes(fit):
    rows = labelled(53, 3, weighted=True, unlabelled=True)

    def make(**options: Any) -> Trainer:
        model, random = DiscriminativeRBM(4, 3, 5, dtype=torch.float64), RandomStream(0)
        initialize(model, rows, random)
        settings = DiscriminativeOptions(n_epochs=3, batch_size=10, learning_rate=0.3, **options)
        gradient = DiscriminativeGradient(model, settings, random)
        return Trainer(model, settings, random, gradient=gradient, order=RandomStream(1))

    (one,), several = fit(1, make, rows), fit(3, make, rows)
    assert_allclose(parameters(several[1]), parameters(one), rtol=0, atol=1e-13)
    # Where chains are drawn, it is the same model in all processes.
    several = fit(3, partial(make, objective="hybrid", n_chains=7), rows)
    assert_array_equal(parameters(several[2]), parameters(several[0]))
    assert several[2].gradient.state()["chain"].shape == (7, 5)


def test_an_autoencoder_measures_the_rows_of_all_processes(fit, data):
    X = data(53)
    rows = as_rows(X, X)

    def make() -> Trainer:
        model = VAE(6, 2, latent="bernoulli", dtype=torch.float64)
        random = RandomStream(0)
        initialize_variational(model, rows, random)
        options = VariationalOptions(n_epochs=3, batch_size=10, optimizer="sgd", learning_rate=0.1)
        gradient = VariationalGradient(model, options, random)
        return Trainer(model, options, random, gradient=gradient, order=RandomStream(1))

    # Two Bernoulli latents are enumerated, so that nothing is drawn.
    (one,), several = fit(1, make, rows), fit(3, make, rows)
    assert_allclose(parameters(several[1]), parameters(one), rtol=0, atol=1e-13)
    for record, expected in zip(several[1].history, one.history, strict=True):
        assert record["free_energy"] == pytest.approx(expected["free_energy"], rel=1e-12)


# ---- random numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cd", "pcd", "emf", "ptt"])
def test_the_same_seed_and_number_of_processes_give_the_same_bits(
    fit, start, data, same_state, method
):
    X = data(53)
    make = partial(rbm_trainer, start, X, method=method)
    rows = as_rows(X, torch.empty(0, dtype=torch.float64))
    several, again = fit(3, make, rows), fit(3, make, rows)
    for member in (*several[1:], *again):
        same_state(member.state(), several[0].state())


def test_chains_of_processes_are_independent(fit, start, data):
    X = data(64)
    make = partial(rbm_trainer, start, X, n_chains=200)
    chain = fit(2, make, as_rows(X, torch.empty(0, dtype=torch.float64)))[0].gradient.chain
    assert chain.shape == (200, 5)
    first, second = chain[:100], chain[100:]
    # Two halves that draw the same numbers would be equal in most places.
    assert (first == second).double().mean() < 0.8


def test_the_order_of_rows_is_common_where_it_has_no_stream_of_its_own(fit, start, data):
    X = data(53)

    def make() -> Trainer:
        # Unequal numbers of chains draw unequally often.
        member = rbm_trainer(start, X, n_chains=13)
        member.order = member.random
        return member

    seen: dict[int, list] = {}

    def note(member: Trainer) -> None:
        seen.setdefault(member.group.rank, []).append(str(member.order.state()))

    fit(2, make, as_rows(X, torch.empty(0, dtype=torch.float64)), on_epoch=note)
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == 4


# ---- states --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cd", "pcd", "emf", "ptt"])
def test_a_stored_state_goes_on_to_the_bits_of_an_undisturbed_training(
    fit, start, data, same_state, method
):
    X = data(53)
    rows = as_rows(X, torch.empty(0, dtype=torch.float64))
    make = partial(rbm_trainer, start, X, method=method, n_chains=13)
    stored = {}

    def keep(member: Trainer) -> None:
        if member.group.rank == 1 and member.epoch == 2:
            stored["state"] = copy.deepcopy(member.state())

    whole = fit(3, make, rows, on_epoch=keep)

    def resumed() -> Trainer:
        member = make()
        member.restore(*copy.deepcopy(stored["state"]))
        return member

    assert resumed().epoch == 2
    same_state(fit(3, resumed, rows)[2].state(), whole[0].state())


@pytest.mark.parametrize("sizes", [(3, 2), (2, 1), (1, 3)], ids=str)
def test_another_number_of_processes_goes_on(fit, start, data, sizes):
    X = data(53)
    rows = as_rows(X, torch.empty(0, dtype=torch.float64))
    make = partial(rbm_trainer, start, X, method="emf", n_chains=13)
    (one,) = fit(1, make, rows)
    first = fit(sizes[0], partial(make, n_epochs=2), rows)[0]
    state = first.state()

    def resumed() -> Trainer:
        member = make()
        member.restore(*copy.deepcopy(state))
        return member

    last = fit(sizes[1], resumed, rows)[0]
    assert last.epoch == 4
    assert last.gradient.hidden_state.shape == (13, 5)
    # The mean field draws nothing, so that even here the model is that of one process.
    assert_allclose(parameters(last), parameters(one), rtol=0, atol=1e-13)


def test_the_processes_begin_at_the_state_of_the_first(fit, start, data):
    X = data(53)
    seeds = iter(range(100))
    lock = threading.Lock()

    def make() -> Trainer:
        with lock:
            seed = next(seeds)
        return rbm_trainer(start, X, seed=seed)

    several = fit(3, make, as_rows(X, torch.empty(0, dtype=torch.float64)))
    for member in several[1:]:
        assert_array_equal(parameters(member), parameters(several[0]))


def test_the_ladder_is_one_for_all_processes_and_measures_as_one_process_does(fit, start, data):
    X = data(200)
    options = {"method": "ptt", "n_chains": 40, "n_epochs": 12, "learning_rate": 0.5, "l1": 0.0}
    make = partial(rbm_trainer, start, X, **options)
    several = fit(2, make, as_rows(X, torch.empty(0, dtype=torch.float64)))
    states = [member.gradient.state() for member in several]
    for name, tensor in states[0].items():
        assert_array_equal(tensor, states[1][name])
    assert states[0]["ladder_visible"].shape[1] == 40
    # Beside replicas, only what each process counts of its own exchanges is its own.
    own = {name.split(".")[-1] for name in several[0].state()[0] if name.startswith("rank.")}
    assert own == {"ladder_counts"}
    record = several[0].history[-1]
    assert record["ladder_rungs"] == len(several[0].gradient.ladder) > 2
    model = several[0].model
    exact = float(log_partition_of(model))
    assert abs(record["log_partition"] - exact) < 5 * record["log_partition_stderr"]


def log_partition_of(model: RBM) -> torch.Tensor:
    """By the sum over all visible states."""
    d = model.n_visible
    states = (torch.arange(2**d)[:, None] >> torch.arange(d)) & 1
    return torch.logsumexp(-model.free_energy(states.to(model.weight)).detach(), 0)


def test_members_of_a_stored_state_are_read_back(threads):
    chains = {"chain": torch.arange(6.0).reshape(3, 2)}
    others = [{"draws": torch.tensor([1])}, {"draws": torch.tensor([2])}]
    members = Members(chains, others, [RandomStream(k).state() for k in range(2)])
    group = threads(2)[1]
    local = {"gradient.chain": torch.zeros(1, 2), "gradient.draws": torch.tensor([2])}
    tensors, values = members.complete(local, {"random": members.random[1]}, group)
    assert_array_equal(tensors["gradient.draws"], [1])
    assert values["random"] == members.random[0]
    found = Members.read(tensors, values, ["chain"])
    assert_array_equal(found.chains["chain"], chains["chain"])
    assert [own["draws"].item() for own in found.others] == [1, 2]
    assert found.random == members.random


# ---- what ends a training ------------------------------------------------------------------------


def test_the_first_process_decides_on_the_end(fit, start, data):
    X = data(53)

    def stop(member: Trainer) -> None:
        if member.group.rank == 0 and member.epoch == 2:
            raise StopTraining

    several = fit(
        2,
        partial(rbm_trainer, start, X),
        as_rows(X, torch.empty(0, dtype=torch.float64)),
        on_epoch=stop,
    )
    assert [member.epoch for member in several] == [2, 2]


def test_a_failure_leaves_the_state_of_the_last_epoch_with_all_chains(fit, start, data):
    X = data(53)
    members: list[Trainer] = []

    def make() -> Trainer:
        members.append(rbm_trainer(start, X, n_chains=13, learning_rate=1e300))
        return members[-1]

    with pytest.raises(DivergenceError, match="epoch 1"):
        fit(2, make, as_rows(X, torch.empty(0, dtype=torch.float64)))
    for member in members:
        assert (member.epoch, member.group.size) == (0, 1)
        assert member.gradient.chain.shape == (13, 5)


def test_fewer_chains_than_processes_are_refused(fit, start, data):
    X = data(53)
    make = partial(rbm_trainer, start, X, n_chains=2)
    with pytest.raises(ValueError, match="2 chains cannot be divided among 3 processes"):
        fit(3, make, as_rows(X, torch.empty(0, dtype=torch.float64)))


def test_monitors_are_read_once_and_told_to_all(fit, start, data):
    X = data(53)
    calls = []

    def make() -> Trainer:
        member = rbm_trainer(start, X)
        member.monitors = (lambda model: calls.append(1) or {"number": float(len(calls))},)
        return member

    several = fit(2, make, as_rows(X, torch.empty(0, dtype=torch.float64)))
    assert len(calls) == 4
    assert [r["number"] for r in several[1].history] == [1.0, 2.0, 3.0, 4.0]


# ---- starting again ------------------------------------------------------------------------------


def test_the_same_command_goes_on_with_its_run_and_another_is_refused(tmp_path):
    config = RunConfig({"name": "x"}, 6, 4, TrainingOptions(), seed=0, command="one")
    assert RunDirectory.create_or_open(tmp_path, config).config() == config
    same = dataclasses.replace(config, command="two", versions={"torch": "next"})
    assert RunDirectory.create_or_open(tmp_path, same).config() == config
    for other in ({"seed": 1}, {"n_hidden": 5}, {"options": TrainingOptions(n_steps=2)}):
        with pytest.raises(RunError, match="already holds a run"):
            RunDirectory.create_or_open(tmp_path, dataclasses.replace(config, **other))


def test_under_torchrun_the_folder_has_to_be_named(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ValueError, match="give --out"):
        app(["train", "--data", "digits"], standalone_mode=False)


# ---- sampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cd", "pcd"])
def test_sampling_reaches_the_same_likelihoods_with_two_processes(fit, start, data, method):
    X = data(200)
    rows = as_rows(X, torch.empty(0, dtype=torch.float64))
    options = {"method": method, "n_epochs": 6, "batch_size": 20, "l1": 0.0}

    def likelihood(size: int, seed: int) -> float:
        model = fit(size, partial(rbm_trainer, start, X, seed=seed, **options), rows)[0].model
        free_energy = model.free_energy(X).detach().mean()
        return float(-free_energy - log_partition_of(model))

    found = np.array([[likelihood(size, seed) for seed in range(8)] for size in (1, 2)])
    # The same seed begins at the same model and visits the same batches: the pairs are compared.
    difference = found[1] - found[0]
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    assert abs(difference.mean()) < 4 * error
    # Small beside what was learned.
    independent = -float(np.log(2) * X.shape[1])
    assert error < 0.02 * (found.mean() - independent)


# ---- real processes ------------------------------------------------------------------------------

MODEL = ["--data", "digits", "--hidden", "24", "--batch-size", "90"]


def torchrun(n_processes: int, *arguments: str) -> list[str]:
    """The command that trains on so many processes of this machine."""
    own = ["--standalone", f"--nproc-per-node={n_processes}", "--max-restarts=9"]
    own += ["--monitor-interval=0.1", "-m", "freenergy"]
    return [sys.executable, "-m", "torch.distributed.run", *own, "train", *arguments]


def of_two_machines(port: int, *arguments: str) -> list[str]:
    """The command that trains on one process of each of two machines, both of them this one."""
    own = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--local-addr=localhost"]
    own += [f"--rdzv-endpoint=localhost:{port}", f"--rdzv-id={port}", "--monitor-interval=0.1"]
    return [sys.executable, "-m", "torch.distributed.run", *own, "-m", "freenergy", *arguments]


def run(command: list[str]) -> None:
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def start(command: list[str]) -> subprocess.Popen:
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def end(agent: subprocess.Popen) -> None:
    """All that runs of it, at once, as when a machine loses its power."""
    workers = workers_of(agent.pid)
    agent.kill()
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    agent.communicate()


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return load_checkpoint(folder / "model.safetensors")


@pytest.mark.slow
def test_torchrun_trains_the_mean_field_model_of_one_process(tmp_path):
    options = [*MODEL, "--method", "emf", "--epochs", "3", "--chains", "51"]
    run(torchrun(2, *options, "--out", str(tmp_path / "two")))
    app(["train", *options, "--out", str(tmp_path / "one")], standalone_mode=False)
    (two, _), (one, _) = checkpoint(tmp_path / "two"), checkpoint(tmp_path / "one")
    assert (tmp_path / "two" / "report.html").exists()
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 3
    for name, tensor in one.items():
        assert_allclose(two[name], tensor, rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_two_machines_train_the_mean_field_model_of_one_process(tmp_path):
    options = [*MODEL, "--method", "emf", "--epochs", "3", "--chains", "51", "--dtype", "float64"]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    # The same command on both, which have to agree on who is first.
    command = of_two_machines(port, "train", *options, "--out", str(tmp_path / "two"))
    machines = [start(command) for _ in range(2)]
    try:
        for machine in machines:
            _, errors = machine.communicate(timeout=300)
            assert machine.returncode == 0, errors
    finally:
        for machine in machines:
            end(machine)
    app(["train", *options, "--out", str(tmp_path / "one")], standalone_mode=False)
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 3
    (two, values), (one, _) = checkpoint(tmp_path / "two"), checkpoint(tmp_path / "one")
    assert len(values["processes"]["random"]) == 2
    for name, tensor in one.items():
        assert_allclose(two[name], tensor, rtol=0, atol=1e-11, err_msg=name)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pgrep") is None, reason="workers are found by pgrep")
@pytest.mark.parametrize("method", ["emf", "pcd"])
def test_a_killed_run_goes_on_with_other_numbers_of_processes(tmp_path, method):
    options = [*MODEL, "--method", method, "--epochs", "36", "--chains", "51"]
    options += ["--dtype", "float64"]
    folder = tmp_path / "run"
    for n_processes in (2, 3):
        aim = n_epochs(folder) + 3
        with start(torchrun(n_processes, *options, "--out", str(folder))) as agent:
            try:
                while n_epochs(folder) < aim:
                    assert agent.poll() is None, agent.communicate()[1]
                    time.sleep(0.02)
            finally:
                end(agent)
        assert aim <= n_epochs(folder) < 36
        _, values = checkpoint(folder)
        assert len(values["processes"]["random"]) == n_processes
    app(["train", "--resume", str(folder)], standalone_mode=False)
    tensors, values = checkpoint(folder)
    assert values["epoch"] == n_epochs(folder) == 36
    assert "processes" not in values
    name = "gradient.hidden_state" if method == "emf" else "gradient.chain"
    assert tensors[name].shape == (51, 24)
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    if method == "emf":
        app(["train", *options, "--out", str(tmp_path / "whole")], standalone_mode=False)
        for name, tensor in checkpoint(tmp_path / "whole")[0].items():
            assert_allclose(tensors[name], tensor, rtol=0, atol=1e-10, err_msg=name)


JOB = """
import numpy as np
import freenergy as fe

def fit(folder):
    X = np.random.default_rng(0).integers(0, 2, (101, 8)).astype(float)
    y = X[:, 0] + X[:, 1]
    own = dict(batch_size=20, random_state=0)
    rbm = fe.BernoulliRBM(5, method="emf", n_iter=3, checkpoint_dir=folder, **own).fit(X)
    net = fe.MLPClassifier((6,), max_iter=3, **own).fit(X, y)
    normal = fe.MLPClassifier((6, 5), normalization="batch", max_iter=3, **own).fit(X, y)
    rbm.save(f"{folder}/rank{fe.distributed.group_now().rank}.safetensors")
    found = [rbm.components_, rbm.h_samples_, *net.coefs_, np.array(net.loss_curve_)]
    found += [*normal.coefs_, np.array(normal.loss_curve_), normal.predict_proba(X)]
    with fe.distributed.alone():
        found.append(fe.BernoulliRBM(5, n_iter=1, **own).fit(X).components_)
    return found
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*onverge")
def test_estimators_in_launched_processes_learn_what_they_learn_alone(tmp_path, monkeypatch):
    (tmp_path / "job_of_estimators.py").write_text(JOB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    job = importlib.import_module("job_of_estimators")
    first, second = launch(job.fit, 2, str(tmp_path / "two"))
    alone = job.fit(str(tmp_path / "one"))
    for one, other, expected in zip(first, second, alone, strict=True):
        assert_array_equal(one, other)
        assert_allclose(one, expected, rtol=0, atol=1e-12)
    # Either process can save the whole: the second went on to save without the first.
    saved = [load_checkpoint(tmp_path / "two" / f"rank{k}.safetensors")[0] for k in range(2)]
    assert saved[0].keys() == saved[1].keys()
    for name, tensor in saved[0].items():
        assert_array_equal(saved[1][name], tensor, err_msg=name)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pgrep") is None, reason="workers are found by pgrep")
def test_a_run_whose_workers_are_killed_ends_with_the_bits_of_an_undisturbed_one(tmp_path):
    options = [*MODEL, "--epochs", "24", "--method", "pcd"]
    run(torchrun(2, *options, "--out", str(tmp_path / "whole")))
    rng, folder = np.random.default_rng(0), tmp_path / "killed"
    command = torchrun(2, *options, "--out", str(folder))
    with start(command) as agent:
        try:
            killed: set[int] = set()
            for kill in range(5):
                # At first while they train, then perhaps before they have begun to.
                lines = 3 + 4 * kill if kill % 2 == 0 else 0
                while n_epochs(folder) < lines:
                    assert agent.poll() is None, agent.communicate()[1]
                    time.sleep(0.1)
                killed |= kill_one(agent, killed, rng)
            _, errors = agent.communicate(timeout=300)
        finally:
            agent.kill()
    assert agent.returncode == 0, errors
    (tensors, values), (expected, whole) = checkpoint(folder), checkpoint(tmp_path / "whole")
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_array_equal(tensors[name], tensor, err_msg=name)
    for name in ("epoch", "random", "order", "processes"):
        assert values[name] == whole[name], name


def kill_one(agent: subprocess.Popen, before: set[int], rng: np.random.Generator) -> set[int]:
    """Kill one of the two workers that have begun since those before; the numbers of both."""
    while True:
        assert agent.poll() is None, agent.communicate()[1]
        time.sleep(rng.uniform(0.1, 1.0))
        alive = workers_of(agent.pid) - before
        # The agent starts one after the other, and stops the rest of a group that it gives up.
        if len(alive) == 2:
            with contextlib.suppress(ProcessLookupError):
                os.kill(sorted(alive)[int(rng.integers(2))], signal.SIGKILL)
                return alive


def workers_of(agent: int) -> set[int]:
    command = ["pgrep", "-P", str(agent), "-f", "freenergy"]
    return set(map(int, subprocess.run(command, capture_output=True, text=True).stdout.split()))


def n_epochs(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0

"""A group divides things into parts that are the whole, and agrees on what must be one."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch.distributed import HashStore

from freenergy import distributed
from freenergy.cli import app
from freenergy.distributed import ALONE, Group, Processes, alone, group_now, launch, session
from freenergy.inference import exact
from freenergy.random import RandomStream
from freenergy.studies.assessment import Assessment

# ---- parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 2, 6, 7, 100])
def test_the_portions_of_all_processes_are_the_whole_and_differ_by_one_at_most(threads, n, size):
    groups = threads(size)
    assert [i for group in groups for i in range(n)[group.portion(n)]] == list(range(n))
    shares = [group.share(n) for group in groups]
    assert shares == [len(range(n)[group.portion(n)]) for group in groups]
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("axis", [0, 1])
def test_parts_are_joined_in_the_order_of_the_ranks(together, axis):
    whole = torch.arange(35.0).reshape(5, 7)

    def work(group: Group) -> torch.Tensor:
        own = group.portion(whole.shape[axis])
        return group.join(whole.narrow(axis, own.start, group.share(whole.shape[axis])), axis)

    for size in (1, 3, 6):
        for found in together(size, work):
            assert_array_equal(found, whole)
    assert ALONE.join(whole) is whole


def test_means_are_weighted_and_a_process_without_weight_does_not_count(together):
    values, weights = [torch.tensor([1.0, 2.0]), torch.tensor([4.0, 5.0])], [2.0, 1.0]

    def work(group: Group) -> tuple[torch.Tensor, ...]:
        own = values[group.rank].clone() if group.rank < 2 else torch.full((2,), torch.nan)
        scalar = own.sum()
        weight = weights[group.rank] if group.rank < 2 else 0.0
        total = group.average_([own, scalar], weight)
        return own, scalar, total

    for mean, scalar, total in together(3, work):
        assert_allclose(mean, [2.0, 3.0])
        assert_allclose(scalar, 5.0)
        assert total == 3.0
    # As of a batch in which no row has a label.
    weights = [0.0, 0.0]
    for mean, scalar, total in together(3, work):
        assert_array_equal(mean, [0.0, 0.0])
        assert (scalar, total) == (0.0, 0.0)


# ---- random numbers ------------------------------------------------------------------------------


def draws(random: RandomStream) -> np.ndarray:
    return random.uniform_(torch.empty(8, dtype=torch.float64)).numpy()


@pytest.mark.parametrize("legacy", [False, True])
def test_each_process_draws_numbers_of_its_own_that_follow_from_those_of_the_first(
    together, legacy
):
    def work(group: Group) -> list[np.ndarray]:
        # The others' streams may stand elsewhere.
        random = RandomStream(np.random.RandomState(group.rank) if legacy else group.rank)
        return [draws(group.stream(random)) for _ in range(2)]

    found = np.array(together(3, work))
    assert_array_equal(found, together(3, work))
    assert len(np.unique(found)) == found.size, "neither ranks nor calls share a number"
    assert not np.isin(together(2, work), found).any()


def test_one_process_alone_draws_from_the_stream_itself():
    random = RandomStream(0)
    assert ALONE.stream(random) is random
    assert random.state() == RandomStream(0).state()


# ---- which group ---------------------------------------------------------------------------------


def test_without_a_process_group_each_process_is_alone():
    with session() as group, alone():
        assert (group.rank, group.size, group_now()) == (0, 1, ALONE)
    with pytest.raises(RuntimeError, match="there is no process group: start the program with"):
        Processes()


def test_processes_that_start_again_meet_without_the_words_of_the_dead(together):
    store = HashStore()

    def meet(group: Group, address: str) -> bytes:
        # The first one comes late: the others must not take the address of an earlier attempt.
        time.sleep(0.05 if group.rank == 0 else 0.0)
        fresh = distributed._fresh(store, group.rank, group.size)
        if group.rank == 0:
            fresh.set("address", address)
        return fresh.get("address")

    for address in ("one", "two", "three"):
        assert together(4, partial(meet, address=address)) == [address.encode()] * 4


def test_different_models_are_refused_in_all_processes(together):
    def work(group: Group, different: bool) -> str:
        model = torch.nn.Linear(3, 2).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(1.0)
            if different and group.rank == 2:
                model.bias[1] += 1e-15
        try:
            group.check_same(model)
        except ValueError as error:
            return str(error)
        return ""

    assert together(3, partial(work, different=False)) == [""] * 3
    for message in together(3, partial(work, different=True)):
        assert "the processes have different models" in message


def test_an_error_of_one_process_is_told_and_nobody_waits_for_it(together):
    def work(group: Group) -> list[int]:
        if group.rank == 1:
            raise ValueError("of the second")
        return group.collect(group.rank)

    with pytest.raises(ValueError, match="of the second"):
        together(3, work)


# ---- real processes ------------------------------------------------------------------------------

JOB = """
import torch
import freenergy as fe
from freenergy.distributed import alone, group_now
from freenergy.inference import log_partition
from freenergy.models import RBM
from freenergy.random import RandomStream
from freenergy.training import Trainer, TrainingOptions, as_rows

OPTIONS = dict(n_chains=33, n_temperatures=200, random=0)

def model():
    rbm, random = RBM(9, 6, dtype=torch.float64), RandomStream(7)
    with torch.no_grad():
        for parameter in rbm.parameters():
            parameter.copy_(random.normal(tuple(parameter.shape), 0.7))
    return rbm

def describe(found):
    works = found.diagnostics.get("forward_work", [])
    return found.value, found.stderr, list(works)

def estimates(*methods):
    rbm = model()
    return [describe(log_partition(rbm, m, group=group_now(), **OPTIONS)) for m in methods]

def both():
    return estimates("bar", "ptt"), monitored(), fitted()

def fitted():
    states = (torch.arange(40)[:, None] // 2 ** torch.arange(9) % 2).double()
    rbm = fe.BernoulliRBM(4, n_iter=1, batch_size=20, random_state=0).fit(states)
    options = dict(method="ptt", n_chains=33, group=group_now())
    score = rbm.log_likelihood(states, **options)
    return score.mean, score.lower, score.upper, rbm.log_likelihood(states, method="exact").mean

def monitored():
    # Neither a monitor, which one process reads, nor what one does by itself waits for the other.
    states = (torch.arange(40)[:, None] // 2 ** torch.arange(9) % 2).double()
    own = dict(OPTIONS, samples=states)
    monitor = lambda rbm: {"log_partition": log_partition(rbm, "bar", **own).value}
    trainer = Trainer(model(), TrainingOptions(n_epochs=2), RandomStream(0), monitors=[monitor])
    trainer.fit(as_rows(states, states))
    if group_now().rank == 0:
        log_partition(trainer.model, "bar", **own)
        with alone():
            log_partition(trainer.model, "bar", group=group_now(), **own)
    return [record["log_partition"] for record in trainer.history]
"""


@pytest.mark.slow
def test_launched_processes_divide_chains_where_they_are_told_to(tmp_path, monkeypatch):
    (tmp_path / "job_of_chains.py").write_text(JOB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    job = importlib.import_module("job_of_chains")
    first, second = launch(job.both, 2)
    assert first == second
    truth = exact(job.model()).log_partition
    ((value, stderr, works), ladder), _, (mean, lower, upper, exact_mean) = first
    assert len(set(works)) == 33
    for found, error in ((value, stderr), ladder[:2]):
        assert abs(found - truth) < 4.5 * error
    assert mean != exact_mean
    assert abs(mean - exact_mean) < upper - lower


@pytest.mark.slow
def test_evaluate_divides_its_chains_and_prints_once(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = tmp_path / "run"
    train = ["train", "--data", "digits", "--hidden", "6", "--epochs", "1", "--out", str(folder)]
    app(train, standalone_mode=False)
    own = ["--standalone", "--nproc-per-node=2", "-m", "freenergy", "evaluate", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *own, "--json", "--time-budget", "1"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = Assessment.from_json(done.stdout)
    assert done.stdout == (folder / "assessment.json").read_text()
    exact_value = found.estimate("exact").log_partition
    assert len(found.works["up"]) == len(set(found.works["up"])) == 64
    for name in ("tempering", "bar"):
        estimate = found.estimate(name)
        # The interval is of 95 %; twice as wide it misses once in ten thousand times.
        half = estimate.upper - estimate.lower
        assert abs(estimate.log_partition - exact_value) < half

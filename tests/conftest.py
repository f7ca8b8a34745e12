"""References written from the energy alone, in NumPy, and models to hold against them.

Pytest runs with ``--import-mode=importlib``, so that what tests share is handed out by fixtures.
"""

from __future__ import annotations

import copy
import itertools
import signal
import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from freenergy.distributed import Group
from freenergy.models import RBM, Unit
from freenergy.random import RandomStream

# The same examples in every run, and no clock: a failure is a fact about the code.
settings.register_profile("freenergy", derandomize=True, deadline=None, database=None)
settings.load_profile("freenergy")

# Models this small gain nothing from more threads, and lose much where others share the cores.
torch.set_num_threads(1)

# Whatever is started in the background of a shell ignores Ctrl-C, and so do its children.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

VALUES = {"bernoulli": (0.0, 1.0), "spin": (-1.0, 1.0), "ternary": (-1.0, 0.0, 1.0)}


class JointTable:
    """Every joint state (v, h) of an RBM with its energy and probability, in double precision.

    Written from E(v, h) = -a.v - b.h - v.W.h and p = exp(-beta E) / Z, without a line of
    freenergy: whatever a closed form promises must be a plain sum over this table.
    """

    def __init__(self, model: RBM, beta: float = 1.0) -> None:
        self.beta = beta
        self.W, self.a, self.b = (
            p.detach().double().cpu().numpy()
            for p in (model.weight, model.visible_bias, model.hidden_bias)
        )
        self.v, self.h = (
            np.array(list(itertools.product(VALUES[unit.name], repeat=n)))
            for unit, n in ((model.visible, len(self.a)), (model.hidden, len(self.b)))
        )
        self.energy = -(self.v @ self.a)[:, None] - self.h @ self.b - self.v @ self.W @ self.h.T
        log_weight = -beta * self.energy
        self.log_partition = float(log_sum_exp(log_weight, (0, 1)))
        self.log_probability = log_weight - self.log_partition
        self.probability = np.exp(self.log_probability)

    def mean(self, values: np.ndarray) -> float:
        return float((self.probability * values).sum())

    @cached_property
    def mean_energy(self) -> float:
        return self.mean(self.energy)

    @cached_property
    def heat_capacity(self) -> float:
        return self.beta**2 * self.mean((self.energy - self.mean_energy) ** 2)

    @cached_property
    def entropy(self) -> float:
        return -self.mean(self.log_probability)

    @cached_property
    def visible(self) -> np.ndarray:
        return self.probability.sum(1) @ self.v

    @cached_property
    def hidden(self) -> np.ndarray:
        return self.probability.sum(0) @ self.h

    @cached_property
    def correlation(self) -> np.ndarray:
        return self.v.T @ self.probability @ self.h

    @cached_property
    def log_marginal(self) -> np.ndarray:
        """ln p(v), for the rows of ``v``."""
        return log_sum_exp(self.log_probability, 1)

    @cached_property
    def free_energy(self) -> np.ndarray:
        return -log_sum_exp(-self.beta * self.energy, 1) / self.beta

    @cached_property
    def hidden_free_energy(self) -> np.ndarray:
        return -log_sum_exp(-self.beta * self.energy, 0) / self.beta

    @cached_property
    def hidden_mean(self) -> np.ndarray:
        """<h> given each row of ``v``."""
        return np.exp(self.log_probability - self.log_marginal[:, None]) @ self.h

    @cached_property
    def visible_mean(self) -> np.ndarray:
        """<v> given each row of ``h``."""
        return np.exp(self.log_probability - log_sum_exp(self.log_probability, 0)).T @ self.v


def log_sum_exp(x: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    top = x.max(axis=axis, keepdims=True)
    return np.log(np.exp(x - top).sum(axis=axis)) + np.squeeze(top, axis=axis)


class Ternary(Unit):
    """A user's own unit, -1, 0 or 1: every method but the sampler is a sum over the support."""

    name = "ternary"
    support = (-1.0, 0.0, 1.0)

    def _moment(self, n: int, field, tilt=None):
        x = torch.tensor(self.support, dtype=field.dtype)
        exponent = field[..., None] * x
        if tilt is not None:
            exponent = exponent - 0.5 * tilt[..., None] * x**2
        return (torch.softmax(exponent, -1) * x**n).sum(-1)

    def log_partition(self, field, tilt=None):
        rest = torch.zeros_like(field) if tilt is None else -0.5 * tilt
        return torch.logsumexp(torch.stack([rest - field, 0 * field, rest + field], -1), -1)

    def mean(self, field, tilt=None, out=None):
        value = self._moment(1, field, tilt)
        return value if out is None else out.copy_(value)

    def variance(self, field, tilt=None):
        return self._moment(2, field, tilt) - self._moment(1, field, tilt) ** 2

    def sample(self, field, random, out=None):
        draw = random.uniform_(torch.empty_like(field))
        log_z = torch.logaddexp(field, torch.logaddexp(-field, torch.zeros_like(field)))
        up, down = torch.exp(field - log_z), torch.exp(-field - log_z)
        value = (draw >= 1 - up).to(field) - (draw < down).to(field)
        return value if out is None else out.copy_(value)

    def field(self, mean):
        low, high = torch.full_like(mean, -50.0), torch.full_like(mean, 50.0)
        for _ in range(70):
            middle = (low + high) / 2
            below = self.mean(middle) < mean
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def entropy(self, mean):
        field = self.field(mean)
        return self.log_partition(field) - field * mean

    def cumulant2(self, mean):
        return self.variance(self.field(mean))

    def cumulant3(self, mean):
        # <x³> = <x> on this support.
        return mean - 3 * mean * self._moment(2, self.field(mean)) + 2 * mean**3

    def cumulant2_slope(self, mean):
        return self.cumulant3(mean) / self.cumulant2(mean)

    def cumulant3_slope(self, mean):
        q = self._moment(2, self.field(mean))
        kappa4 = q - 4 * mean**2 - 3 * q**2 + 12 * mean**2 * q - 6 * mean**4
        return kappa4 / (q - mean**2)


def make_unit(name: str) -> str | Unit:
    return Ternary() if name == "ternary" else name


def make_rbm(
    n_visible: int,
    n_hidden: int,
    *,
    visible: str = "bernoulli",
    hidden: str = "bernoulli",
    scale: float = 0.5,
    bias: float = 0.5,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> RBM:
    """An RBM with normal weights and biases of these standard deviations."""
    rng = np.random.default_rng([seed, n_visible, n_hidden])
    model = RBM(
        n_visible, n_hidden, visible=make_unit(visible), hidden=make_unit(hidden), dtype=dtype
    )
    with torch.no_grad():
        for parameter, spread in (
            (model.weight, scale),
            (model.visible_bias, bias),
            (model.hidden_bias, bias),
        ):
            parameter.copy_(torch.from_numpy(rng.normal(0, spread, tuple(parameter.shape))))
    return model


# ---- several processes, as threads ---------------------------------------------------------------

PATIENCE = 60
"""Seconds that one of them waits for the others."""


class Threads(Group):
    """A group whose processes are threads that meet at a barrier."""

    def __init__(self, rank: int, size: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, size
        self._board, self._barrier = board, barrier

    def collect(self, value):
        self._board[self.rank] = copy.deepcopy(value)
        self._barrier.wait(PATIENCE)
        found = copy.deepcopy(self._board)
        self._barrier.wait(PATIENCE)
        return found

    def agree(self, value):
        return self.collect(value)[0]

    def sum_(self, tensor):
        parts = self.collect(tensor)
        return tensor.copy_(sum(parts[1:], parts[0]))

    def abort(self) -> None:
        """Let nobody wait for this one."""
        self._barrier.abort()

    def __deepcopy__(self, memo):
        return self


def make_threads(size: int) -> list[Threads]:
    """A group of so many."""
    board, barrier = [None] * size, threading.Barrier(size)
    return [Threads(rank, size, board, barrier) for rank in range(size)]


def work_together(size: int, work: Callable[[Group], Any]) -> list[Any]:
    """What each of several threads gives that work as a group."""
    groups = make_threads(size)
    found: list[Any] = [None] * size
    errors: list[BaseException] = []

    def member(rank: int) -> None:
        try:
            found[rank] = work(groups[rank])
        except threading.BrokenBarrierError as error:
            # Another one failed, which says more, or did not come.
            errors.append(error)
        except BaseException as error:
            errors.insert(0, error)
            groups[rank].abort()

    threads = [threading.Thread(target=member, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    if errors:
        raise errors[0]
    return found


# ---- fixtures ------------------------------------------------------------------------------------

N_RANDOM_MODELS = 100


def random_case(seed: int) -> tuple[RBM, float]:
    """One of the random models, and a β: all unit types and mixtures, sizes, scales."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 13), rng.integers(1, 9)
    n_visible, n_hidden = sizes if seed % 3 else sizes[::-1]
    units = list(itertools.product(("bernoulli", "spin"), repeat=2))[seed % 4]
    model = make_rbm(
        int(n_visible),
        int(n_hidden),
        visible=units[0],
        hidden=units[1],
        scale=float(rng.choice([0.1, 0.5, 1.0, 3.0])),
        bias=float(rng.choice([0.0, 0.5, 2.0])),
        seed=seed,
    )
    return model, float(rng.choice([0.3, 1.0, 2.5]))


@pytest.fixture(scope="session", params=range(N_RANDOM_MODELS), ids=lambda seed: f"model{seed}")
def case(request) -> tuple[RBM, JointTable]:
    """A random model of at most 12 + 8 units and the table of its states at some β."""
    model, beta = random_case(request.param)
    return model, JointTable(model, beta)


@pytest.fixture(scope="session")
def rbm() -> Callable[..., RBM]:
    """``rbm(n_visible, n_hidden, ...)``, a model with normal parameters."""
    return make_rbm


@pytest.fixture(scope="session")
def table() -> Callable[..., JointTable]:
    """``table(model, beta)``, every joint state of a small model."""
    return JointTable


@pytest.fixture(scope="session")
def ternary() -> Unit:
    """A unit type that the package does not know."""
    return Ternary()


@pytest.fixture
def random() -> RandomStream:
    """A freshly seeded stream."""
    return RandomStream(0)


@pytest.fixture(scope="session")
def threads() -> Callable[[int], list[Threads]]:
    """``threads(size)``, a group whose processes are threads."""
    return make_threads


@pytest.fixture(scope="session")
def together() -> Callable[[int, Callable[[Group], Any]], list[Any]]:
    """``together(size, work)``, what ``work(group)`` gives in each of several threads."""
    return work_together

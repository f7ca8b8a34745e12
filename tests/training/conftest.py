"""Rows to learn from, and references for what training does with them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from freenergy.models import RBM
from freenergy.random import RandomStream
from freenergy.training import Rows, Trainer, TrainingOptions, as_rows, initialize


def make_data(
    n: int = 60, d: int = 6, *, unit: str = "bernoulli", seed: int = 0, n_patterns: int = 3
) -> Tensor:
    """Noisy copies of a few patterns."""
    rng = np.random.default_rng([seed, n, d])
    patterns = rng.random((n_patterns, d)) < 0.5
    rows = patterns[rng.integers(0, n_patterns, n)] ^ (rng.random((n, d)) < 0.1)
    low, high = (-1.0, 1.0) if unit == "spin" else (0.0, 1.0)
    return torch.from_numpy(np.where(rows, high, low))


def make_trainer(
    data: Tensor | Rows, n_hidden: int = 4, *, seed: int = 0, unit: str = "bernoulli", **options
) -> Trainer:
    """A trainer at its start, with an order of its own; the model has the data's precision."""
    dtype = data.dtype if isinstance(data, Tensor) else torch.float64
    settings = TrainingOptions(**{"batch_size": 10, "learning_rate": 0.1, **options})
    rows = as_rows(data, torch.empty(0, dtype=dtype)) if isinstance(data, Tensor) else data
    model = RBM(rows.width, n_hidden, visible=unit, hidden=unit, dtype=dtype)
    random = RandomStream(seed)
    initialize(model, rows, random, settings.beta)
    return Trainer(model, settings, random, order=RandomStream([seed, 1]))


def as_numpy(state: tuple) -> tuple[dict[str, np.ndarray], dict]:
    tensors, values = state
    return {name: t.numpy().copy() for name, t in tensors.items()}, values


def assert_same_state(state: tuple, other: tuple) -> None:
    """Equal to the bit, but for the clock."""
    (tensors, values), (other_tensors, other_values) = as_numpy(state), as_numpy(other)
    assert tensors.keys() == other_tensors.keys()
    for name in tensors:
        np.testing.assert_array_equal(tensors[name], other_tensors[name], err_msg=name)
    for name in ("epoch", "random", "order"):
        assert values[name] == other_values[name], name
    records, other_records = (
        [{k: v for k, v in record.items() if k != "seconds"} for record in v["history"]]
        for v in (values, other_values)
    )
    assert records == other_records


@pytest.fixture(scope="session")
def data() -> Callable[..., Tensor]:
    return make_data


@pytest.fixture(scope="session")
def start() -> Callable[..., Trainer]:
    """``start(data, n_hidden, ...)``, a trainer at its start."""
    return make_trainer


@pytest.fixture(scope="session")
def same_state() -> Callable[[tuple, tuple], None]:
    """An assertion that two states of trainers are equal to the bit."""
    return assert_same_state

"""Zeros and ones to fit, and a look at everything that an estimator holds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import freenergy as fe


def make_binary(n: int = 60, d: int = 6, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, n, d])
    patterns = rng.random((3, d)) < 0.5
    return (patterns[rng.integers(0, 3, n)] ^ (rng.random((n, d)) < 0.1)).astype(float)


def make_small(**parameters: Any) -> fe.BernoulliRBM:
    """A quick estimator."""
    return fe.BernoulliRBM(**{"n_components": 4, "n_iter": 3, "random_state": 0, **parameters})


def everything_in(estimator: fe.BernoulliRBM) -> dict[str, Any]:
    """Copies of the parameters, the attributes and the inner state."""
    found = copy.deepcopy({k: v for k, v in vars(estimator).items() if not k.startswith("_")})
    found["model_"] = {k: v.detach().numpy().copy() for k, v in estimator.model_.named_parameters()}
    tensors, values = estimator._trainer.state()
    return found | {"state": {k: v.numpy() for k, v in tensors.items()}, "values": values}


def assert_same(found: Any, expected: Any) -> None:
    """Equal to the bit, but for the clock."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected.keys() - {"seconds"}:
            assert_same(found[name], expected[name])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, np.ndarray | torch.Tensor):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, np.random.RandomState):
        assert_same(list(found.get_state()), list(expected.get_state()))
    else:
        # A reading may be NaN, before anything was there to read: NaN is the same as NaN.
        assert found == expected or (found != found and expected != expected)


@pytest.fixture(scope="session")
def binary() -> Callable[..., np.ndarray]:
    return make_binary


@pytest.fixture(scope="session")
def small() -> Callable[..., fe.BernoulliRBM]:
    return make_small


@pytest.fixture(scope="session")
def contents() -> Callable[[fe.BernoulliRBM], dict[str, Any]]:
    return everything_in


@pytest.fixture(scope="session")
def same() -> Callable[[Any, Any], None]:
    return assert_same

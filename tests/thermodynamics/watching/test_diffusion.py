"""Log t against a power law: each is recognised, and where nothing can be told it is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from freenergy.thermodynamics import compare_growth
from freenergy.thermodynamics.watching.diffusion import Distance

T = np.arange(1, 2001, 7)


def noise(seed: int) -> np.ndarray:
    return 0.01 * np.random.default_rng(seed).normal(size=len(T))


@given(st.floats(0.3, 1.0), st.floats(1e-6, 1e6), st.integers(0, 9))
def test_a_power_law_is_recognised_at_any_scale(exponent, scale, seed):
    d = scale * T**exponent * (1 + noise(seed))
    found = compare_growth(T, d)
    assert found.winner == "power"
    assert found.exponent == pytest.approx(exponent, abs=0.05)


@given(st.floats(0.0, 0.3), st.floats(1e-6, 1e6), st.integers(0, 9))
def test_ultra_slow_diffusion_is_recognised_at_any_scale(offset, scale, seed):
    d = scale * (offset + np.log(T)) * (1 + noise(seed))
    found = compare_growth(T, d)
    assert found.winner == "log"
    assert found.log_slope == pytest.approx(scale, rel=0.1)


def test_a_random_walk_diffuses_freely():
    steps = np.random.default_rng(0).normal(size=(2000, 400))
    d = np.linalg.norm(np.cumsum(steps, axis=0), axis=1)
    found = compare_growth(np.arange(1, 2001), d)
    assert found.winner == "power"
    assert found.exponent == pytest.approx(0.5, abs=0.05)


def test_a_small_power_cannot_be_told_from_a_logarithm():
    found = compare_growth(T, T**0.05 * (1 + noise(0)))
    assert found.winner == "undecided"
    assert "alike" in found.words


@pytest.mark.parametrize(
    ("t", "d"),
    [([], []), ([1, 2], [1, 2]), (np.arange(50, 100), np.arange(50, 100)), (T, 0 * T)],
)
def test_too_little_decides_nothing(t, d):
    found = compare_growth(t, d)
    assert found.winner == "undecided"
    assert found.words.startswith("It cannot be told")


def test_what_is_not_finite_is_passed_over():
    d = np.sqrt(T)
    d[5] = np.nan
    assert compare_growth(T, d).winner == "power"


def test_distance_is_read_at_times_that_are_even_in_the_logarithm():
    layer = nn.Linear(1, 1, bias=False)
    distance = Distance(layer)
    for _ in range(100):
        with torch.no_grad():
            layer.weight += 0.5
        distance.read(7)
    times, values = np.array(distance.readings).T
    np.testing.assert_allclose(values, 0.5 * times, rtol=1e-6)
    assert times[0] == 1
    assert (times[1:] / times[:-1] <= 2).all()

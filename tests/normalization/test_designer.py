"""Activations made for a fixed point, and dropout that keeps it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.special import erfc

from freenergy.normalization import (
    SELU_ALPHA,
    SELU_SCALE,
    alpha_dropout,
    design_selu,
    fixed_point,
    moment_map,
)


def test_zero_mean_and_unit_variance_give_the_constants_of_selu():
    """Equation 14 of the paper, whose two constants are known in closed form."""
    found = design_selu()
    assert found.alpha == pytest.approx(SELU_ALPHA, abs=1e-12)
    assert found.scale == pytest.approx(SELU_SCALE, abs=1e-12)
    bend = erfc(np.sqrt(0.5)) * np.exp(0.5) - 1
    assert found.alpha == pytest.approx(-np.sqrt(2 / np.pi) / bend, rel=1e-14)


@given(
    st.floats(-0.3, 0.5),
    st.floats(-8, 6).map(lambda e: 10.0**e),
    st.floats(-0.5, 0.5),
    st.floats(0.3, 3.0),
)
def test_the_wanted_point_is_a_fixed_point(k, variance, omega, tau):
    """For means of −0.3 to 0.5 deviations, whenever there is a solution."""
    mean = k * np.sqrt(variance)
    try:
        found = design_selu(mean, variance, omega, tau)
    except ValueError:
        # The range of means is that between a function of one side and one of the other.
        assert omega * mean < 0 or k * omega < 0 or abs(k) > 0.1
        return
    moments = moment_map(found.activation, mean, variance, omega, tau)
    assert_allclose(moments.mean, mean, atol=1e-11 * np.sqrt(variance))
    assert_allclose(moments.variance, variance, rtol=1e-11)


def test_a_designed_point_attracts():
    found = design_selu(0.2, 2.0, 0.1, 1.3)
    point = fixed_point(found.activation, 0.1, 1.3, start=(0.0, 1.0))
    assert_allclose([point.mean, point.variance], [0.2, 2.0], rtol=1e-11)
    assert point.stable


def test_a_larger_mean_needs_a_smaller_alpha():
    alphas = [design_selu(mean).alpha for mean in (-0.3, -0.1, 0.0, 0.1, 0.3, 0.6)]
    assert (np.diff(alphas) < 0).all()


def test_relu_has_the_largest_mean():
    """E z₊ / √(E z₊²) = 1/√π: beyond it there is nothing."""
    limit = 1 / np.sqrt(np.pi)
    mean = limit / np.sqrt(1 - limit**2)
    assert design_selu(mean * (1 - 1e-9)).alpha < 1e-7
    with pytest.raises(ValueError, match=r"no scaled ELU has the mean 0\.7 at the variance 1"):
        design_selu(0.7)


def test_a_variance_must_be_positive():
    with pytest.raises(ValueError, match="variance must be positive, got 0"):
        design_selu(0.0, 0.0)
    with pytest.raises(ValueError, match="weight_square_sum must be positive, got -1"):
        design_selu(weight_square_sum=-1)


# Alpha dropout


def test_alpha_dropout_has_the_published_correction():
    found = alpha_dropout(0.9)
    assert found.a == pytest.approx(0.92128, abs=5e-6)
    assert found.b == pytest.approx(0.16197, abs=5e-6)
    assert found.dropped == pytest.approx(-1.7580993408473766, abs=1e-15)


@given(st.floats(0.05, 1.0), st.floats(-1, 1), st.floats(0.1, 5))
def test_alpha_dropout_keeps_mean_and_variance(keep, mean, variance):
    """Of a mixture: q of N(μ, ν), and 1 − q of the lowest value."""
    found = alpha_dropout(keep, mean=mean, variance=variance)
    mixed = keep * mean + (1 - keep) * found.dropped
    square = keep * (variance + mean**2) + (1 - keep) * found.dropped**2
    assert_allclose(found.a * mixed + found.b, mean, atol=1e-12)
    assert_allclose(found.a**2 * (square - mixed**2), variance, rtol=1e-11)


def test_alpha_dropout_is_that_of_the_framework():
    """Of ones, torch makes a + b where a unit is kept, and a α' + b where it is dropped."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = torch.nn.AlphaDropout(0.3)(torch.ones(1000, dtype=torch.float64))
    found = alpha_dropout(0.7)
    expected = [found.a * found.dropped + found.b, found.a + found.b]
    assert_allclose(np.unique(made.numpy().round(12)), expected, atol=1e-11)


def test_nothing_dropped_is_nothing_corrected():
    found = alpha_dropout(1.0)
    assert (found.a, found.b) == (1.0, 0.0)


@pytest.mark.parametrize("keep", [0.0, 1.1, np.nan])
def test_a_keep_rate_must_be_a_probability(keep):
    with pytest.raises(ValueError, match=f"keep must be above 0 and at most 1, got {keep}"):
        alpha_dropout(keep)
    with pytest.raises(ValueError, match="variance must be positive, got 0"):
        alpha_dropout(0.5, variance=0)

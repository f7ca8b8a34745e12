"""Unit types against direct sums over their values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from freenergy.models import Bernoulli, Spin, Unit, get_unit
from freenergy.random import RandomStream

UNITS = [Bernoulli(), Spin()]
FIELDS = np.linspace(-6, 6, 49)
TILTS = [None, -1.3, 0.0, 0.7, 4.0]
MEANS = {"bernoulli": np.linspace(0.02, 0.98, 25), "spin": np.linspace(-0.98, 0.98, 25)}
BOTH = pytest.mark.parametrize("unit", UNITS, ids=repr)

reals = st.floats(-30, 30)


def tensor(x) -> torch.Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


def sums(unit: Unit, field, tilt=None) -> dict[str, np.ndarray]:
    """ln z and the cumulants, by summing over the unit's values (0, 1) or (-1, 1)."""
    values = np.array({"bernoulli": (0, 1), "spin": (-1, 1)}[unit.name])
    field = np.asarray(field, dtype=float)[..., None]
    weight = np.exp(field * values - 0.5 * (0 if tilt is None else tilt) * values**2)
    z = weight.sum(-1)
    p = weight / z[..., None]
    mean = (p * values).sum(-1)
    deviation = values - mean[..., None]
    k2, k3, m4 = ((p * deviation**n).sum(-1) for n in (2, 3, 4))
    return {
        "log_z": np.log(z),
        "mean": mean,
        "k2": k2,
        "k3": k3,
        "k4": m4 - 3 * k2**2,
        "entropy": -(p * np.log(p)).sum(-1),
    }


@BOTH
@pytest.mark.parametrize("tilt", TILTS)
def test_statistics_in_a_tilted_field_are_sums_over_the_values(unit, tilt):
    expected = sums(unit, FIELDS, tilt)
    field = tensor(FIELDS)
    tilts = None if tilt is None else torch.full_like(field, tilt)
    assert_allclose(unit.log_partition(field, tilts), expected["log_z"], rtol=0, atol=1e-14)
    assert_allclose(unit.mean(field, tilts), expected["mean"], rtol=0, atol=1e-15)
    assert_allclose(unit.variance(field, tilts), expected["k2"], rtol=1e-13)


@BOTH
@pytest.mark.parametrize("tilt", TILTS)
def test_mean_and_variance_are_derivatives_of_log_partition(unit, tilt):
    field = tensor(FIELDS).requires_grad_()
    tilts = None if tilt is None else torch.full_like(field, tilt).detach()
    log_z = unit.log_partition(field, tilts).sum()
    (first,) = torch.autograd.grad(log_z, field, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), field)
    assert_allclose(unit.mean(field, tilts).detach(), first.detach(), rtol=0, atol=1e-15)
    assert_allclose(unit.variance(field, tilts).detach(), second, rtol=0, atol=1e-15)


@BOTH
def test_log_partition_keeps_double_precision_at_every_field(unit):
    field = np.linspace(-60, 60, 481)
    low, high = unit.support
    expected = np.logaddexp(low * field, high * field)
    assert_allclose(unit.log_partition(tensor(field)), expected, rtol=1e-15, atol=1e-16)


@BOTH
def test_variance_keeps_its_relative_accuracy_in_single_precision(unit):
    field = torch.tensor([-15.0, 15.0, 30.0])
    span = unit.support[1] - unit.support[0]
    expected = span**2 * np.exp(-span * np.abs(field.double().numpy()))
    assert_allclose(unit.variance(field), expected, rtol=1e-5)


@BOTH
def test_cumulants_are_functions_of_the_mean(unit):
    expected = sums(unit, unit.field(tensor(MEANS[unit.name])).numpy())
    mean = tensor(expected["mean"])
    assert_allclose(unit.cumulant2(mean), expected["k2"], rtol=1e-12)
    assert_allclose(unit.cumulant3(mean), expected["k3"], rtol=1e-12, atol=1e-15)
    ratio = expected["k4"] / expected["k2"]
    assert_allclose(unit.cumulant3_slope(mean), ratio, rtol=1e-11, atol=1e-13)


@BOTH
def test_cumulant2_slope_is_its_derivative(unit):
    mean = tensor(MEANS[unit.name]).requires_grad_()
    (slope,) = torch.autograd.grad(unit.cumulant2(mean).sum(), mean)
    assert_allclose(unit.cumulant2_slope(mean).detach(), slope, rtol=1e-13, atol=1e-15)


@BOTH
def test_cumulant3_slope_is_its_derivative(unit):
    mean = tensor(MEANS[unit.name]).requires_grad_()
    (slope,) = torch.autograd.grad(unit.cumulant3(mean).sum(), mean)
    assert_allclose(unit.cumulant3_slope(mean).detach(), slope, rtol=1e-13, atol=1e-15)


@BOTH
def test_field_inverts_mean(unit):
    mean = tensor(MEANS[unit.name])
    assert_allclose(unit.mean(unit.field(mean)), mean, rtol=0, atol=1e-15)
    field = tensor(FIELDS)
    assert_allclose(unit.field(unit.mean(field)), field, rtol=0, atol=1e-10)


@BOTH
def test_entropy_is_that_of_the_free_unit(unit):
    mean = tensor(MEANS[unit.name])
    field = unit.field(mean)
    assert_allclose(unit.entropy(mean), sums(unit, field.numpy())["entropy"], rtol=1e-13)
    legendre = unit.log_partition(field) - field * mean
    assert_allclose(unit.entropy(mean), legendre, rtol=0, atol=1e-14)


@BOTH
def test_the_slope_of_the_entropy_is_minus_the_field(unit):
    mean = tensor(MEANS[unit.name]).requires_grad_()
    (slope,) = torch.autograd.grad(unit.entropy(mean).sum(), mean)
    assert_allclose(slope, -unit.field(mean).detach(), rtol=1e-12, atol=1e-13)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_units_are_exact_and_finite(unit, dtype):
    low, high = unit.support
    field = torch.tensor([-1e4, 1e4], dtype=dtype)
    mean = unit.mean(field)
    assert mean.tolist() == [low, high]
    assert unit.mean(field, torch.ones_like(field)).tolist() == [low, high]
    assert unit.log_partition(field).tolist() == [-1e4 * low, 1e4 * high]
    assert unit.variance(field).tolist() == [0, 0]
    assert unit.entropy(mean).tolist() == [0, 0]
    assert unit.cumulant2(mean).tolist() == [0, 0]
    assert unit.cumulant3(mean).tolist() == [0, 0]
    assert unit.cumulant3_slope(mean).tolist() == [(high - low) ** 2] * 2
    assert unit.field(mean).tolist() == [-math.inf, math.inf]
    draws = unit.sample(field.repeat(1000, 1), RandomStream(0))
    assert bool((draws == torch.tensor([low, high])).all())


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_have_the_frequency_of_the_mean(unit, dtype, random):
    n = 200_000
    field = torch.tensor([-3.0, -0.7, 0.0, 0.4, 2.0], dtype=dtype)
    draws = unit.sample(field.repeat(n, 1), random)
    assert draws.dtype == dtype
    assert set(draws.unique().tolist()) == set(unit.support)
    expected = sums(unit, field.double().numpy())
    z = (draws.double().mean(0).numpy() - expected["mean"]) / np.sqrt(expected["k2"] / n)
    assert np.abs(z).max() < 4


@BOTH
def test_results_can_take_the_place_of_the_field(unit):
    field = torch.linspace(-3, 3, 1000, dtype=torch.float64)
    mean, draws = unit.mean(field), unit.sample(field, RandomStream(1))
    assert field[0] == -3, "without out the field is left alone"

    in_place = field.clone()
    assert unit.mean(in_place, out=in_place) is in_place
    assert bool((in_place == mean).all())

    tilt = torch.full_like(field, 0.8)
    out = torch.empty_like(field)
    assert unit.mean(field, tilt, out=out) is out
    assert bool((out == unit.mean(field, tilt)).all())

    in_place = field.clone()
    assert unit.sample(in_place, RandomStream(1), in_place) is in_place
    assert bool((in_place == draws).all())


@given(field=reals, tilt=st.one_of(st.none(), st.floats(-5, 5)))
def test_a_spin_is_symmetric_in_its_field(field, tilt):
    unit = Spin()
    plus, minus = tensor(field), tensor(-field)
    tilt = None if tilt is None else tensor(tilt)
    assert_allclose(unit.log_partition(plus, tilt), unit.log_partition(minus, tilt), rtol=1e-14)
    assert_allclose(unit.mean(plus, tilt), -unit.mean(minus, tilt), rtol=0, atol=1e-15)
    assert_allclose(unit.variance(plus, tilt), unit.variance(minus, tilt), rtol=1e-14)


@given(mean=st.floats(-1, 1))
def test_a_spin_is_symmetric_in_its_mean(mean):
    unit, plus, minus = Spin(), tensor(mean), tensor(-mean)
    assert_allclose(unit.entropy(plus), unit.entropy(minus), rtol=0, atol=1e-14)
    assert_allclose(unit.cumulant2(plus), unit.cumulant2(minus), rtol=0, atol=1e-15)
    assert_allclose(unit.cumulant3(plus), -unit.cumulant3(minus), rtol=0, atol=1e-15)


@given(field=reals)
def test_a_spin_is_a_stretched_bernoulli_unit(field):
    spin, bernoulli, f = Spin(), Bernoulli(), tensor(field)
    assert_allclose(
        spin.log_partition(f), bernoulli.log_partition(2 * f) - f, rtol=1e-14, atol=1e-14
    )
    assert_allclose(spin.mean(f), 2 * bernoulli.mean(2 * f) - 1, rtol=0, atol=1e-15)
    assert_allclose(spin.variance(f), 4 * bernoulli.variance(2 * f), rtol=1e-14)


@given(mean=st.floats(0.001, 0.999))
def test_the_entropy_of_a_unit_is_highest_in_no_field(mean):
    for unit, m in ((Bernoulli(), mean), (Spin(), 2 * mean - 1)):
        assert float(unit.entropy(tensor(m))) <= math.log(2) + 1e-15
        assert float(unit.entropy(unit.mean(tensor(0.0)))) == pytest.approx(math.log(2), abs=1e-15)


def test_a_unit_of_three_values_keeps_the_contract(ternary):
    """The unit that other tests use, against its derivatives and its Legendre transform."""
    field = torch.linspace(-3, 3, 13, dtype=torch.float64).requires_grad_()
    for tilt in (None, torch.full_like(field, 0.9).detach()):
        log_z = ternary.log_partition(field, tilt)
        (first,) = torch.autograd.grad(log_z.sum(), field, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), field)
        assert_allclose(ternary.mean(field, tilt).detach(), first.detach(), atol=1e-14)
        assert_allclose(ternary.variance(field, tilt).detach(), second, atol=1e-14)
    mean = ternary.mean(field.detach())
    assert_allclose(ternary.field(mean), field.detach(), atol=1e-12)
    step = 1e-5
    difference = ternary.cumulant3(mean + step) - ternary.cumulant3(mean - step)
    assert_allclose(ternary.cumulant3_slope(mean), difference / (2 * step), atol=1e-8)


def test_units_are_found_by_name_or_passed_through(ternary):
    assert get_unit("bernoulli") == Bernoulli()
    assert get_unit("spin") == Spin()
    assert get_unit(ternary) is ternary
    with pytest.raises(ValueError, match=r"unknown unit type 'gauss'.*'bernoulli', 'spin'"):
        get_unit("gauss")


def test_units_compare_by_type():
    assert Bernoulli() == Bernoulli()
    assert Bernoulli() != Spin()
    assert len({Bernoulli(), Bernoulli(), Spin()}) == 2
    assert repr(Spin()) == "Spin()"

"""Unit types against direct sums over their values."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from freenergy.inference import exact, gibbs, mean_field
from freenergy.models import RBM, Bernoulli, Binomial, Spin, Unit, get_unit
from freenergy.models.units import draw_category
from freenergy.random import RandomStream
from freenergy.training import TrainingOptions, gradient_estimator

BINARY = [Bernoulli(), Spin()]
UNITS = [*BINARY, Binomial(1), Binomial(3), Binomial(6)]
FIELDS = np.linspace(-6, 6, 49)
TILTS = [None, -1.3, 0.0, 0.7, 4.0]
EVERY = pytest.mark.parametrize("unit", UNITS, ids=repr)
BOTH = pytest.mark.parametrize("unit", BINARY, ids=repr)

reals = st.floats(-30, 30)


def tensor(x) -> torch.Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


def means(unit: Unit) -> np.ndarray:
    low, high = min(unit.support), max(unit.support)
    return low + (high - low) * np.linspace(0.02, 0.98, 25)


def rounding(unit: Unit) -> float:
    """Of a binary unit 1e-15; exponents f x - A x²/2 and their own rounding grow as x²."""
    return 1e-15 * max(unit.support) ** 2


def sums(unit: Unit, field, tilt=None) -> dict[str, np.ndarray]:
    """ln z and the cumulants, by summing over the unit's values."""
    n = getattr(unit, "n", 1)
    values = np.array([-1, 1]) if unit.name == "spin" else np.arange(n + 1)
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


@EVERY
@pytest.mark.parametrize("tilt", TILTS)
def test_statistics_in_a_tilted_field_are_sums_over_the_values(unit, tilt):
    expected = sums(unit, FIELDS, tilt)
    field = tensor(FIELDS)
    tilts = None if tilt is None else torch.full_like(field, tilt)
    assert_allclose(
        unit.log_partition(field, tilts), expected["log_z"], rtol=0, atol=10 * rounding(unit)
    )
    assert_allclose(unit.mean(field, tilts), expected["mean"], rtol=0, atol=rounding(unit))
    assert_allclose(unit.variance(field, tilts), expected["k2"], rtol=1e-13)


@EVERY
@pytest.mark.parametrize("tilt", TILTS)
def test_mean_and_variance_are_derivatives_of_log_partition(unit, tilt):
    field = tensor(FIELDS).requires_grad_()
    tilts = None if tilt is None else torch.full_like(field, tilt).detach()
    log_z = unit.log_partition(field, tilts).sum()
    (first,) = torch.autograd.grad(log_z, field, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), field)
    assert_allclose(unit.mean(field, tilts).detach(), first.detach(), rtol=0, atol=rounding(unit))
    assert_allclose(unit.variance(field, tilts).detach(), second, rtol=0, atol=rounding(unit))


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


@EVERY
def test_cumulants_are_functions_of_the_mean(unit):
    expected = sums(unit, unit.field(tensor(means(unit))).numpy())
    mean = tensor(expected["mean"])
    assert_allclose(unit.cumulant2(mean), expected["k2"], rtol=1e-12)
    assert_allclose(unit.cumulant3(mean), expected["k3"], rtol=1e-12, atol=rounding(unit))
    ratio = expected["k4"] / expected["k2"]
    assert_allclose(unit.cumulant3_slope(mean), ratio, rtol=1e-11, atol=1e-13)


@EVERY
def test_cumulant2_slope_is_its_derivative(unit):
    mean = tensor(means(unit)).requires_grad_()
    (slope,) = torch.autograd.grad(unit.cumulant2(mean).sum(), mean)
    assert_allclose(unit.cumulant2_slope(mean).detach(), slope, rtol=1e-13, atol=rounding(unit))


@EVERY
def test_cumulant3_slope_is_its_derivative(unit):
    mean = tensor(means(unit)).requires_grad_()
    (slope,) = torch.autograd.grad(unit.cumulant3(mean).sum(), mean)
    assert_allclose(unit.cumulant3_slope(mean).detach(), slope, rtol=1e-13, atol=rounding(unit))


@EVERY
def test_field_inverts_mean(unit):
    mean = tensor(means(unit))
    assert_allclose(unit.mean(unit.field(mean)), mean, rtol=0, atol=rounding(unit))
    field = tensor(FIELDS)
    assert_allclose(unit.field(unit.mean(field)), field, rtol=0, atol=1e-10)


@EVERY
def test_entropy_is_that_of_the_free_unit(unit):
    mean = tensor(means(unit))
    field = unit.field(mean)
    assert_allclose(unit.entropy(mean), sums(unit, field.numpy())["entropy"], rtol=1e-13)
    legendre = unit.log_partition(field) - field * mean
    assert_allclose(unit.entropy(mean), legendre, rtol=0, atol=1e-14)


@EVERY
def test_the_slope_of_the_entropy_is_minus_the_field(unit):
    mean = tensor(means(unit)).requires_grad_()
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


@EVERY
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


@EVERY
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


SIZES = pytest.mark.parametrize("n", [1, 2, 7, 255])


@given(field=st.floats(-1e4, 1e4), k=st.integers(1, 6))
def test_a_binomial_unit_is_the_number_that_bits_write(field, k):
    """0, ..., 2^k - 1 once each: ln z(f) is the sum of ln(1 + exp(2^i f)) over the bits."""
    unit, bit, f = Binomial(2**k - 1), Bernoulli(), tensor(field)
    places = [2.0**i for i in range(k)]
    log_z = sum(bit.log_partition(place * f) for place in places)
    assert_allclose(unit.log_partition(f), log_z, rtol=1e-14, atol=1e-15)
    mean = sum(place * bit.mean(place * f) for place in places)
    assert_allclose(unit.mean(f), mean, rtol=1e-14)
    variance = sum(place**2 * bit.variance(place * f) for place in places)
    assert_allclose(unit.variance(f), variance, rtol=1e-11, atol=1e-300)


@SIZES
def test_the_log_partition_of_a_binomial_unit_is_the_geometric_sum(n):
    top = 700 / (n + 1)
    field = np.concatenate([-np.geomspace(1e-3, 700, 40), np.geomspace(1e-3, top, 40)])
    expected = np.log(np.expm1((n + 1) * field) / np.expm1(field))
    assert_allclose(Binomial(n).log_partition(tensor(field)), expected, rtol=1e-12, atol=1e-15)


@SIZES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_binomial_unit_is_smooth_where_its_closed_form_is_0_over_0(n, dtype):
    unit, eps = Binomial(n), torch.finfo(dtype).eps
    field = torch.tensor([-1e-12, 0.0, 1e-12], dtype=dtype, requires_grad=True)
    log_z = unit.log_partition(field)
    # To second order in the field: ln(n + 1) + n f / 2.
    expected = math.log(n + 1) + n / 2 * field.detach().double()
    assert_allclose(log_z.detach(), expected, rtol=8 * eps)
    (slope,) = torch.autograd.grad(log_z.sum(), field)
    expected = n / 2 + n * (n + 2) / 12 * field.detach().double()
    assert_allclose(slope, expected, rtol=8 * eps)
    mean = torch.full((1,), n / 2, dtype=dtype)
    assert unit.field(mean).tolist() == [0]
    assert_allclose(unit.variance(torch.zeros_like(mean)), [n * (n + 2) / 12], rtol=8 * eps)


@SIZES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saturated_binomial_unit_is_exact_and_finite(n, dtype):
    unit = Binomial(n)
    field = torch.tensor([-1e4, 1e4], dtype=dtype, requires_grad=True)
    log_z = unit.log_partition(field)
    assert log_z.tolist() == [0, 1e4 * n]
    assert torch.autograd.grad(log_z.sum(), field)[0].tolist() == [0, n]
    field = field.detach()
    mean = unit.mean(field)
    assert mean.tolist() == [0, n]
    for zero in (unit.variance(field), *(f(mean) for f in (unit.cumulant2, unit.cumulant3))):
        assert zero.tolist() == [0, 0]
    assert unit.entropy(mean).tolist() == [0, 0]
    assert unit.cumulant2_slope(mean).tolist() == [1, -1]
    assert unit.cumulant3_slope(mean).tolist() == [1, 1]
    assert unit.field(mean).tolist() == [-math.inf, math.inf]
    draws = unit.sample(field.repeat(1000, 1), RandomStream(0))
    assert bool((draws == torch.tensor([0, n])).all())


@SIZES
def test_the_field_of_a_binomial_unit_is_found_at_every_mean(n):
    unit = Binomial(n)
    share = np.concatenate([np.geomspace(1e-300, 0.5, 200), np.linspace(0.001, 0.5, 50)])
    mean = tensor(n * share)
    field = unit.field(mean)
    assert_allclose(unit.mean(field), mean, rtol=1e-12)
    assert_allclose(unit.field(n - mean)[-50:], -field[-50:], rtol=1e-12, atol=1e-14)
    # Both sides of n/2 are one calculation: nothing is lost where n - m is exact.
    exact_mean = tensor(0.5 ** np.arange(2, 40))
    assert_allclose(unit.entropy(n - exact_mean), unit.entropy(exact_mean), rtol=1e-15)
    # So rare that only the value 1 competes with 0.
    assert_allclose(field[:20], np.log(n * share[:20]), rtol=1e-14)


@SIZES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_mean_of_a_binomial_unit_has_a_field(n, dtype):
    """Next to saturation too, where rounding must not take the mean out of the unit's range."""
    unit, field = Binomial(n), torch.linspace(-40, 40, 5001, dtype=dtype)
    mean = unit.mean(field)
    assert float(mean.min()) >= 0
    assert float(mean.max()) <= n
    assert not unit.field(mean).isnan().any()
    tiny = torch.tensor([1e-3, 1.0, 1e3], dtype=dtype) * torch.finfo(dtype).tiny
    assert_allclose(unit.field(tiny), tiny.log(), rtol=torch.finfo(dtype).eps)


@given(field=st.floats(0, 30), n=st.integers(1, 9))
def test_a_binomial_unit_turned_upside_down_is_one_in_the_opposite_field(field, n):
    unit, plus, minus = Binomial(n), tensor(field), tensor(-field)
    assert_allclose(unit.log_partition(plus), unit.log_partition(minus) + n * plus, rtol=1e-14)
    assert_allclose(unit.mean(plus), n - unit.mean(minus), rtol=0, atol=1e-14 * n)
    mean = unit.mean(plus)
    assert_allclose(unit.entropy(mean), unit.entropy(n - mean), rtol=0, atol=1e-12)
    assert_allclose(unit.cumulant3(mean), -unit.cumulant3(n - mean), rtol=0, atol=1e-12 * n**3)


def in_bits(model: RBM) -> RBM:
    """The same machine with hidden 0/1 units: each of 0 to 3 is written with two of them."""
    bits = RBM(model.n_visible, 2 * model.n_hidden, dtype=torch.float64)
    with torch.no_grad():
        bits.visible_bias.copy_(model.visible_bias)
        bits.weight.copy_(torch.cat([model.weight, 2 * model.weight], 1))
        bits.hidden_bias.copy_(torch.cat([model.hidden_bias, 2 * model.hidden_bias]))
    return bits


@pytest.mark.parametrize("sizes", [(5, 3), (9, 4)])
@pytest.mark.parametrize("beta", [0.6, 1.7])
def test_an_rbm_of_binomial_units_is_enumerated(rbm, sizes, beta):
    model = rbm(*sizes, scale=0.4)
    model.hidden = Binomial(3)
    bits = in_bits(model)
    found, expected = exact(model, beta), exact(bits, beta)
    assert found.log_partition == pytest.approx(expected.log_partition, rel=1e-13)
    assert found.heat_capacity == pytest.approx(expected.heat_capacity, rel=1e-11)
    assert_allclose(found.visible, expected.visible, rtol=1e-12)
    low, high = expected.correlation.split(sizes[1], 1)
    assert_allclose(found.correlation, low + 2 * high, rtol=1e-12)
    assert_allclose(
        model.free_energy(torch.eye(sizes[0]).double(), beta).detach(),
        bits.free_energy(torch.eye(sizes[0]).double(), beta).detach(),
        rtol=1e-13,
    )


@pytest.mark.parametrize("units", [("bernoulli", "binomial(3)"), ("binomial(2)", "binomial(4)")])
def test_chains_of_binomial_units_meet_enumeration(units, random):
    torch.manual_seed(0)
    model, n = RBM(4, 3, visible=units[0], hidden=units[1], dtype=torch.float64), 40_000
    torch.nn.init.normal_(model.weight, std=0.15)
    torch.nn.init.normal_(model.hidden_bias, std=0.5)
    truth, state = exact(model, 1.3), gibbs(model, n, 30, beta=1.3, random=random)
    values = state.visible[:, :, None] * state.hidden[:, None, :]
    error = values.std(0) / n**0.5
    assert float(((values.mean(0) - truth.correlation) / error).abs().max()) < 4
    assert set(state.hidden.unique().tolist()) == set(model.hidden.support)


@pytest.mark.parametrize("method", ["cd", "pcd"])
def test_training_an_rbm_of_binomial_units_follows_the_exact_gradient(rbm, method, random):
    model, beta, n = rbm(5, 3, scale=0.25), 1.3, 20_000
    model.hidden = Binomial(3)
    distinct = torch.eye(5, dtype=torch.float64)
    options = TrainingOptions(method=method, n_steps=20, n_chains=n, beta=beta, centered=False)
    gradient_estimator(model, options, random).compute(distinct.repeat(n // 5, 1))
    data = distinct.T @ model.hidden_mean(distinct, beta).detach() / 5
    expected = -beta * (data - exact(model, beta).correlation)
    # Means of n independent values that span 3.
    assert float((model.weight.grad - expected).abs().max()) < 4.5 * beta * 1.5 / n**0.5
    assert float(expected.abs().max()) > 0.2


def test_the_reaction_of_binomial_units_brings_mean_field_nearer_to_enumeration(rbm):
    model = rbm(6, 4, visible="spin", scale=0.05)
    model.hidden = Binomial(4)
    truth = exact(model)
    errors = [
        float((mean_field(model, order).hidden[0] - truth.hidden).abs().max())
        for order in (1, 2, 3)
    ]
    assert errors[2] < errors[1] / 5 < errors[0] / 50


def test_categories_are_drawn_in_proportion_to_their_weights(random):
    weight, n = torch.tensor([0.1, 0.0, 2.0, 0.7, 1.2]), 200_000
    for dim in (0, 1):
        logit = weight.log().expand(n, 5)
        draws = draw_category(logit if dim else logit.T, random, dim)
        assert draws.shape == (n,)
        assert draws.dtype == torch.int64
        p = weight / weight.sum()
        z = (torch.bincount(draws, minlength=5) / n - p) / (p * (1 - p) / n).sqrt().clamp(min=1e-9)
        assert float(z.abs().max()) < 4


class Extreme(RandomStream):
    """The lowest or the largest draw of every kind of stream."""

    def __init__(self, lowest: bool) -> None:
        super().__init__(0)
        self.lowest = lowest

    def uniform_(self, out):
        return out.fill_(0 if self.lowest else 1 - torch.finfo(out.dtype).eps / 2)


@pytest.mark.parametrize("n", [2, 7, 100, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_category_without_weight_is_never_drawn_for_a_rounding_error(n, dtype):
    logit = torch.linspace(0, 1, 50, dtype=dtype)[:, None] * torch.arange(n, dtype=dtype).cos()
    first, last = logit.clone(), logit.clone()
    first[:, 0] = last[:, -1] = -math.inf
    assert set(draw_category(first, Extreme(lowest=True)).tolist()) == {1}
    assert set(draw_category(last, Extreme(lowest=False)).tolist()) == {n - 2}


def test_units_are_found_by_name_or_passed_through(ternary):
    assert get_unit("bernoulli") == Bernoulli()
    assert get_unit("spin") == Spin()
    assert get_unit("binomial(4)") == Binomial(4)
    assert get_unit(Binomial(4).name) == Binomial(4)
    assert get_unit(ternary) is ternary
    with pytest.raises(ValueError, match=r"unknown unit type 'gauss'.*'bernoulli', 'spin'"):
        get_unit("gauss")
    for name in ("binomial", "binomial()", "binomial(-1)", "binomial(2.5)", "binomial(3) "):
        with pytest.raises(ValueError, match=r"unknown unit type .*'binomial\(n\)'"):
            get_unit(name)


@pytest.mark.parametrize("n", [0, -3, 256, 2.5, True, "4"])
def test_a_binomial_unit_needs_a_largest_value(n):
    with pytest.raises(ValueError, match=rf"whole number from 1 to 255, got {n!r}"):
        Binomial(n)
    with pytest.raises(ValueError, match="from 1 to 255, got 1000000"):
        get_unit("binomial(1000000)")


def test_units_compare_by_type():
    assert Bernoulli() == Bernoulli()
    assert Bernoulli() != Spin()
    assert len({Bernoulli(), Bernoulli(), Spin()}) == 2
    assert repr(Spin()) == "Spin()"


def test_binomial_units_compare_by_their_largest_value():
    assert Binomial(3) == Binomial(3)
    assert Binomial(3) != Binomial(4)
    assert Binomial(1) != Bernoulli()
    assert len({Binomial(3), Binomial(3), Binomial(4), Bernoulli()}) == 3
    assert repr(Binomial(3)) == "Binomial(3)"
    assert pickle.loads(pickle.dumps(Binomial(3))) == Binomial(3)

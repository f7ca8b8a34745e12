"""Exact statistics against the table of all joint states, and against thermodynamics."""

from __future__ import annotations

import importlib
import itertools
import math

import pytest
import torch
from numpy.testing import assert_allclose

from freenergy.inference import exact
from freenergy.models import RBM

# The function of the same name hides the module from an import statement.
enumeration = importlib.import_module("freenergy.inference.exact")
UNIT_PAIRS = list(itertools.product(("bernoulli", "spin"), repeat=2))
UNITS = pytest.mark.parametrize("units", UNIT_PAIRS, ids="-".join)


def test_statistics_are_sums_over_all_joint_states(case):
    model, reference = case
    result = exact(model, reference.beta)
    assert result.beta == reference.beta
    assert result.log_partition == pytest.approx(reference.log_partition, rel=1e-14, abs=1e-10)
    assert result.energy == pytest.approx(reference.mean_energy, rel=1e-12, abs=1e-11)
    assert result.entropy == pytest.approx(reference.entropy, rel=1e-11, abs=1e-10)
    assert result.heat_capacity == pytest.approx(reference.heat_capacity, rel=1e-9, abs=1e-9)
    assert_allclose(result.visible, reference.visible, rtol=0, atol=1e-12)
    assert_allclose(result.hidden, reference.hidden, rtol=0, atol=1e-12)
    assert_allclose(result.correlation, reference.correlation, rtol=0, atol=1e-12)
    temperature = 1 / reference.beta
    assert result.free_energy == pytest.approx(-temperature * reference.log_partition, abs=1e-10)
    assert result.free_energy == pytest.approx(
        result.energy - temperature * result.entropy, rel=1e-12, abs=1e-11
    )


@UNITS
@pytest.mark.parametrize("beta", [0.3, 1.0, 2.5])
def test_energy_entropy_and_heat_capacity_are_derivatives_of_log_partition(rbm, units, beta):
    model = rbm(7, 5, visible=units[0], hidden=units[1], scale=0.8)
    result = exact(model, beta)
    assert result.energy == pytest.approx(
        -slope(lambda b: exact(model, b).log_partition, beta), abs=1e-9
    )
    assert result.heat_capacity == pytest.approx(
        -(beta**2) * slope(lambda b: exact(model, b).energy, beta), abs=1e-8
    )
    # S = -dF/dT, with the temperature 1 / beta.
    assert result.entropy == pytest.approx(
        -slope(lambda t: exact(model, 1 / t).free_energy, 1 / beta), abs=1e-8
    )


def slope(f, x: float) -> float:
    """Derivative, to fourth order in the step."""
    d = 1e-3 * x
    a, b, c, e = (f(x + k * d) for k in (-2, -1, 1, 2))
    return (a - 8 * b + 8 * c - e) / (12 * d)


@UNITS
def test_moments_are_derivatives_of_log_partition_in_the_parameters(rbm, units):
    """By autograd through a plain log-sum-exp over the joint states."""
    model, beta = rbm(4, 3, visible=units[0], hidden=units[1], scale=1.0), 0.7
    v = torch.tensor(list(itertools.product(model.visible.support, repeat=4))).double()
    h = torch.tensor(list(itertools.product(model.hidden.support, repeat=3))).double()
    torch.logsumexp(-model.energy(v[:, None], h[None], beta).flatten(), 0).backward()
    result = exact(model, beta)
    assert_allclose(beta * result.visible, model.visible_bias.grad, atol=1e-13)
    assert_allclose(beta * result.hidden, model.hidden_bias.grad, atol=1e-13)
    assert_allclose(beta * result.correlation, model.weight.grad, atol=1e-13)


@pytest.mark.parametrize("sizes", [(3, 9), (9, 3), (1, 1), (1, 8), (8, 1), (6, 6)])
@UNITS
def test_either_layer_may_be_the_smaller_one(rbm, table, sizes, units):
    model = rbm(*sizes, visible=units[0], hidden=units[1], scale=1.0)
    reference, result = table(model, 0.7), exact(model, 0.7)
    assert result.log_partition == pytest.approx(reference.log_partition, abs=1e-12)
    assert result.visible.shape == (sizes[0],)
    assert result.hidden.shape == (sizes[1],)
    assert_allclose(result.visible, reference.visible, atol=1e-13)
    assert_allclose(result.hidden, reference.hidden, atol=1e-13)
    assert_allclose(result.correlation, reference.correlation, atol=1e-13)


@UNITS
@pytest.mark.parametrize("elements", [1, 40, 100])
def test_the_chunks_do_not_matter(rbm, units, elements, monkeypatch):
    """Strong couplings, so that the largest weight moves from chunk to chunk."""
    model = rbm(8, 7, visible=units[0], hidden=units[1], scale=3.0)
    whole = exact(model, 1.3)
    monkeypatch.setattr(enumeration, "_CHUNK_ELEMENTS", elements)
    parts = exact(model, 1.3)
    for name in ("log_partition", "free_energy", "energy", "entropy"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), abs=1e-12), name
    # A small difference of large squares.
    assert parts.heat_capacity == pytest.approx(whole.heat_capacity, rel=1e-10)
    for name in ("visible", "hidden", "correlation"):
        assert_allclose(getattr(parts, name), getattr(whole, name), rtol=0, atol=1e-13)


def test_at_infinite_temperature_every_state_counts_alike(rbm):
    for units in UNIT_PAIRS:
        model = rbm(5, 4, visible=units[0], hidden=units[1], scale=2.0)
        result = exact(model, beta=0.0)
        assert result.log_partition == pytest.approx(9 * math.log(2), abs=1e-13)
        assert result.entropy == pytest.approx(9 * math.log(2), abs=1e-13)
        assert result.free_energy == -math.inf
        assert result.heat_capacity == 0
        middle_v, middle_h = (sum(u.support) / 2 for u in (model.visible, model.hidden))
        assert_allclose(result.visible, [middle_v] * 5, atol=1e-14)
        assert_allclose(result.correlation, [[middle_v * middle_h] * 4] * 5, atol=1e-14)
        with torch.no_grad():
            mean = model.energy(
                torch.full((5,), middle_v).double(), torch.full((4,), middle_h).double()
            )
        assert result.energy == pytest.approx(float(mean), abs=1e-12)


@UNITS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_weights_leave_the_ground_state(rbm, table, units, dtype):
    model = rbm(6, 5, visible=units[0], hidden=units[1], scale=1e3, dtype=dtype)
    reference, result = table(model), exact(model)
    assert result.log_partition == pytest.approx(reference.log_partition, rel=1e-12)
    assert result.energy == pytest.approx(reference.mean_energy, rel=1e-12)
    assert result.energy == pytest.approx(reference.energy.min(), rel=1e-3)
    assert result.entropy == pytest.approx(reference.entropy, abs=1e-8)
    assert result.heat_capacity >= 0
    assert_allclose(result.correlation, reference.correlation, atol=1e-9)


def test_a_ground_state_twice_has_entropy_ln_2(rbm):
    """A ferromagnet of spins without field, cold: all up or all down."""
    model = rbm(5, 4, visible="spin", hidden="spin", scale=0.0, bias=0.0)
    with torch.no_grad():
        model.weight.fill_(1.0)
    result = exact(model, beta=20.0)
    assert result.entropy == pytest.approx(math.log(2), abs=1e-10)
    assert result.energy == pytest.approx(-20, abs=1e-10)
    assert_allclose(result.visible, [0] * 5, atol=1e-12)
    assert_allclose(result.correlation, [[1.0] * 4] * 5, atol=1e-12)


@UNITS
def test_a_model_in_single_precision_is_summed_in_double(rbm, table, units):
    model = rbm(7, 5, visible=units[0], hidden=units[1], scale=1.0, dtype=torch.float32)
    reference, result = table(model, 2.5), exact(model, 2.5)
    assert result.log_partition == pytest.approx(reference.log_partition, abs=1e-11)
    assert result.visible.dtype == result.correlation.dtype == torch.float64
    assert_allclose(result.correlation, reference.correlation, atol=1e-12)


def test_without_couplings_the_units_are_free(rbm):
    model, beta = rbm(6, 30, hidden="spin", scale=0.0), 0.7
    result = exact(model, beta)
    a, b = (p.detach() for p in (model.visible_bias, model.hidden_bias))
    log_z = torch.log1p(torch.exp(beta * a)).sum() + torch.log(2 * torch.cosh(beta * b)).sum()
    assert result.log_partition == pytest.approx(float(log_z), abs=1e-12)
    assert_allclose(result.visible, torch.sigmoid(beta * a), atol=1e-14)
    assert_allclose(result.hidden, torch.tanh(beta * b), atol=1e-14)
    assert_allclose(result.correlation, torch.outer(result.visible, result.hidden), atol=1e-14)


def test_units_that_a_user_defines_are_enumerated(rbm, table):
    for units in (("ternary", "bernoulli"), ("spin", "ternary"), ("ternary", "ternary")):
        model = rbm(5, 4, visible=units[0], hidden=units[1], scale=1.0)
        reference, result = table(model, 0.7), exact(model, 0.7)
        assert result.log_partition == pytest.approx(reference.log_partition, abs=1e-12)
        assert result.energy == pytest.approx(reference.mean_energy, abs=1e-12)
        assert result.heat_capacity == pytest.approx(reference.heat_capacity, abs=1e-10)
        assert_allclose(result.correlation, reference.correlation, atol=1e-12)


def test_the_layer_with_fewer_states_is_summed_not_the_one_with_fewer_units(rbm, monkeypatch):
    model = rbm(5, 4, hidden="ternary")  # 32 visible states, 81 hidden ones
    monkeypatch.setattr(enumeration, "MAX_STATES", 32)
    assert math.isfinite(exact(model).log_partition)


def test_too_many_states_are_refused_with_their_number(ternary):
    with pytest.raises(ValueError, match=r"30 units and 1\.07e\+09 states; .*about 25 binary"):
        exact(RBM(40, 30))
    with pytest.raises(ValueError, match=r"30 units and 1\.07e\+09 states"):
        exact(RBM(30, 40))
    for unit in ("bernoulli", ternary):
        with pytest.raises(ValueError, match="900 units"):
            exact(RBM(1000, 900, visible=unit, hidden=unit))
    with pytest.raises(ValueError, match="2000 units and inf states"):
        exact(RBM(2000, 2000))


def test_the_limit_is_the_number_of_states(rbm, monkeypatch):
    model = rbm(6, 5)
    monkeypatch.setattr(enumeration, "MAX_STATES", 32)
    exact(model)
    monkeypatch.setattr(enumeration, "MAX_STATES", 31)
    with pytest.raises(ValueError, match="5 units and 32 states"):
        exact(model)


@pytest.mark.parametrize("beta", [-1.0, math.inf, math.nan])
def test_an_impossible_temperature_is_refused(rbm, beta):
    with pytest.raises(ValueError, match="beta must be finite and not negative"):
        exact(rbm(3, 2), beta)


def test_the_result_is_readable_and_frozen(rbm):
    result = exact(rbm(3, 2), 0.5)
    assert repr(result).startswith("ExactStatistics(beta=0.5, log_partition=")
    assert f"heat_capacity={result.heat_capacity:.6g}" in repr(result)
    with pytest.raises(AttributeError):
        result.energy = 0.0
    assert not result.visible.requires_grad

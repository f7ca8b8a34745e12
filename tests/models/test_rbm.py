"""The RBM against the table of all its joint states."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from freenergy.inference import exact
from freenergy.models import RBM
from freenergy.random import RandomStream


def tensor(x) -> torch.Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


def test_the_table_of_states_is_the_sum_written_out(rbm, table):
    """The reference itself, on a model small enough for four plain loops."""
    model, beta = rbm(3, 2, hidden="spin", scale=1.0), 0.7
    W, a, b = (p.tolist() for p in (model.weight, model.visible_bias, model.hidden_bias))
    z = energies = 0.0
    for v in itertools.product((0, 1), repeat=3):
        for h in itertools.product((-1, 1), repeat=2):
            energy = -sum(a[i] * v[i] for i in range(3)) - sum(b[j] * h[j] for j in range(2))
            energy -= sum(v[i] * W[i][j] * h[j] for i in range(3) for j in range(2))
            z += math.exp(-beta * energy)
            energies += energy * math.exp(-beta * energy)
    reference = table(model, beta)
    assert reference.log_partition == pytest.approx(math.log(z), abs=1e-14)
    assert reference.mean_energy == pytest.approx(energies / z, abs=1e-14)
    assert reference.probability.sum() == pytest.approx(1, abs=1e-14)


def test_energies_are_those_of_the_table(case):
    model, reference = case
    with torch.no_grad():
        v, h = tensor(reference.v)[:, None, :], tensor(reference.h)[None, :, :]
        assert_allclose(model.energy(v, h), reference.energy, rtol=1e-12, atol=1e-12)
        scaled = model.energy(v, h, reference.beta)
    assert_allclose(scaled, reference.beta * reference.energy, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_free_energies_are_partial_sums_of_the_table(case):
    model, reference = case
    v, h, beta = tensor(reference.v), tensor(reference.h), reference.beta
    assert_allclose(model.free_energy(v, beta), reference.free_energy, rtol=1e-12, atol=1e-12)
    assert_allclose(
        model.hidden_free_energy(h, beta), reference.hidden_free_energy, rtol=1e-12, atol=1e-12
    )


@torch.no_grad()
def test_conditional_means_are_those_of_the_table(case):
    model, reference = case
    v, h, beta = tensor(reference.v), tensor(reference.h), reference.beta
    assert_allclose(model.hidden_mean(v, beta), reference.hidden_mean, rtol=0, atol=1e-12)
    assert_allclose(model.visible_mean(h, beta), reference.visible_mean, rtol=0, atol=1e-12)


@torch.no_grad()
def test_free_energy_and_log_partition_give_the_probability_of_a_state(case):
    model, reference = case
    beta = reference.beta
    log_p = -beta * model.free_energy(tensor(reference.v), beta) - reference.log_partition
    assert_allclose(log_p, reference.log_marginal, rtol=1e-11, atol=1e-11)
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-11)


@torch.no_grad()
@pytest.mark.parametrize("beta", [0.3, 2.5])
def test_beta_times_the_free_energy_at_beta_1_is_another_model(rbm, table, beta):
    """The wrong rule, met in a published package: F(v; 1) in place of F(v; beta)."""
    model = rbm(8, 5, scale=1.0)
    reference = table(model, beta)
    wrong = torch.softmax(-beta * model.free_energy(tensor(reference.v)), 0).numpy()
    right = torch.softmax(-beta * model.free_energy(tensor(reference.v), beta), 0).numpy()
    truth = np.exp(reference.log_marginal)
    assert 0.5 * np.abs(right - truth).sum() < 1e-13
    assert 0.5 * np.abs(wrong - truth).sum() > 0.05


@torch.no_grad()
def test_a_model_colder_by_beta_is_one_with_couplings_larger_by_beta(rbm):
    model = rbm(6, 4, hidden="spin", scale=1.0)
    strong = copy.deepcopy(model)
    for parameter in strong.parameters():
        parameter.mul_(2.5)
    v = torch.bernoulli(torch.full((10, 6), 0.5, dtype=torch.float64), generator=seeded())
    assert_allclose(2.5 * model.free_energy(v, 2.5), strong.free_energy(v), rtol=1e-14)
    assert_allclose(model.hidden_mean(v, 2.5), strong.hidden_mean(v), rtol=1e-14)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@given(
    seed=st.integers(0, 10**6),
    n_visible=st.integers(1, 6),
    n_hidden=st.integers(1, 6),
    beta=st.floats(0.05, 3),
)
@torch.no_grad()
def test_an_rbm_of_spins_is_one_of_bits_up_to_a_constant(rbm, seed, n_visible, n_hidden, beta):
    r"""With s = 2t − 1: W' = 4W, a' = 2a − 2W1, b' = 2b − 2Wᵀ1, E = E' + Σa + Σb − ΣW."""
    spins = rbm(n_visible, n_hidden, visible="spin", hidden="spin", scale=1.0, seed=seed)
    bits = RBM(n_visible, n_hidden, dtype=torch.float64)
    bits.weight.copy_(4 * spins.weight)
    bits.visible_bias.copy_(2 * spins.visible_bias - 2 * spins.weight.sum(1))
    bits.hidden_bias.copy_(2 * spins.hidden_bias - 2 * spins.weight.sum(0))
    constant = float(spins.visible_bias.sum() + spins.hidden_bias.sum() - spins.weight.sum())

    t, u = torch.ones(7, n_visible).double(), torch.ones(7, n_hidden).double()
    t.bernoulli_(0.5, generator=seeded())
    u.bernoulli_(0.5, generator=seeded())
    energy = spins.energy(2 * t - 1, 2 * u - 1)
    assert_allclose(energy, bits.energy(t, u) + constant, rtol=0, atol=1e-12)

    a, b = exact(spins, beta), exact(bits, beta)
    assert a.log_partition == pytest.approx(b.log_partition - beta * constant, abs=1e-11)
    assert a.entropy == pytest.approx(b.entropy, abs=1e-11)
    assert a.heat_capacity == pytest.approx(b.heat_capacity, abs=1e-10)
    assert_allclose(a.visible, 2 * b.visible - 1, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_leading_dimensions_are_kept(rbm, shape):
    model = rbm(5, 4)
    v = torch.ones(*shape, 5, dtype=torch.float64)
    h = torch.ones(*shape, 4, dtype=torch.float64)
    assert model.energy(v, h).shape == shape
    assert model.free_energy(v, 0.7).shape == shape
    assert model.hidden_free_energy(h, 0.7).shape == shape
    assert model.hidden_mean(v).shape == (*shape, 4)
    assert model.visible_mean(h).shape == (*shape, 5)
    flat = model.hidden_field(v.reshape(-1, 5), 0.7).reshape(*shape, 4)
    assert_allclose(model.hidden_field(v, 0.7), flat, rtol=1e-15)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_draws_go_to_the_tensor_that_out_names(rbm, shape):
    model = rbm(5, 4, scale=2.0)
    v = torch.ones(*shape, 5, dtype=torch.float64)
    h = torch.full((*shape, 4), 7.0, dtype=torch.float64)
    assert model.sample_hidden(v, RandomStream(3), 0.8, out=h) is h
    assert bool((h == model.sample_hidden(v, RandomStream(3), 0.8)).all())
    w = torch.full((*shape, 5), 7.0, dtype=torch.float64)
    assert model.sample_visible(h, RandomStream(4), 0.8, out=w) is w
    assert bool((w == model.sample_visible(h, RandomStream(4), 0.8)).all())


@torch.no_grad()
@pytest.mark.parametrize("units", [("bernoulli", "spin"), ("spin", "bernoulli")])
@pytest.mark.parametrize("beta", [0.3, 2.5])
def test_draws_have_the_conditional_means(rbm, random, units, beta):
    model, n = rbm(5, 4, visible=units[0], hidden=units[1], scale=1.0), 100_000
    v, h = torch.ones(1, 5).double(), torch.ones(1, 4).double()
    for draws, mean, variance in (
        (
            model.sample_hidden(v.expand(n, 5), random, beta),
            model.hidden_mean(v, beta),
            model.hidden.variance(model.hidden_field(v, beta)),
        ),
        (
            model.sample_visible(h.expand(n, 4), random, beta),
            model.visible_mean(h, beta),
            model.visible.variance(model.visible_field(h, beta)),
        ),
    ):
        z = (draws.mean(0) - mean) / (variance / n).sqrt()
        assert float(z.abs().max()) < 4


def test_sampling_needs_no_guard_against_autograd(rbm, random):
    model = rbm(5, 4)
    h = model.sample_hidden(torch.ones(2, 5).double(), random)
    v = model.sample_visible(h, random)
    assert not h.requires_grad
    assert not v.requires_grad


def test_the_gradient_of_the_free_energy_is_minus_the_conditional_mean(rbm):
    model, beta = rbm(5, 4, hidden="spin", scale=1.0), 0.7
    v = torch.tensor([[1.0, 0, 1, 1, 0]], dtype=torch.float64)
    model.free_energy(v, beta).sum().backward()
    with torch.no_grad():
        mean = model.hidden_mean(v, beta)
    assert_allclose(model.weight.grad, -(v.T @ mean), rtol=0, atol=1e-14)
    assert_allclose(model.hidden_bias.grad, -mean[0], rtol=0, atol=1e-14)
    assert_allclose(model.visible_bias.grad, -v[0], rtol=0, atol=1e-14)


@torch.no_grad()
def test_huge_weights_stay_finite(rbm):
    for units in itertools.product(("bernoulli", "spin"), repeat=2):
        for dtype in (torch.float32, torch.float64):
            model = rbm(6, 5, visible=units[0], hidden=units[1], scale=1e3, dtype=dtype)
            v = torch.ones(1, 6, dtype=dtype)
            free_energy, local = model.free_energy(v), model.hidden_field(v)
            top = (local if units[1] == "bernoulli" else local.abs()).clamp(min=0).sum()
            # At such fields only the best hidden state counts.
            expected = float(-(v @ model.visible_bias) - top)
            assert float(free_energy) == pytest.approx(expected, rel=1e-6)
            low, high = model.hidden.support
            assert_allclose(model.hidden_mean(v), torch.where(local > 0, high, low), atol=1e-6)


def test_a_user_defined_unit_works_in_both_layers(rbm, table, random):
    for units in (("ternary", "bernoulli"), ("spin", "ternary"), ("ternary", "ternary")):
        model = rbm(4, 3, visible=units[0], hidden=units[1], scale=1.0)
        reference = table(model, 0.7)
        v, h = tensor(reference.v), tensor(reference.h)
        with torch.no_grad():
            assert_allclose(model.free_energy(v, 0.7), reference.free_energy, atol=1e-13)
            assert_allclose(
                model.hidden_free_energy(h, 0.7), reference.hidden_free_energy, atol=1e-13
            )
            assert_allclose(model.hidden_mean(v, 0.7), reference.hidden_mean, atol=1e-13)
            assert_allclose(model.visible_mean(h, 0.7), reference.visible_mean, atol=1e-13)
        draws = model.sample_visible(h, random)
        assert set(draws.unique().tolist()) <= set(model.visible.support)


def test_a_new_model_has_small_couplings_and_no_biases():
    torch.manual_seed(0)
    model = RBM(200, 100)
    assert float(model.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert abs(float(model.weight.detach().mean())) < 4 * 0.01 / math.sqrt(20_000)
    assert not model.visible_bias.any()
    assert not model.hidden_bias.any()
    assert RBM(2, 2, dtype=torch.float64).weight.dtype == torch.float64


def test_a_model_says_what_it_is():
    model = RBM(7, 3, hidden="spin")
    assert (model.n_visible, model.n_hidden) == (7, 3)
    assert repr(model) == "RBM(n_visible=7, n_hidden=3, visible='bernoulli', hidden='spin')"


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0)])
def test_a_layer_needs_a_unit(sizes):
    with pytest.raises(ValueError, match="at least one visible and one hidden unit"):
        RBM(*sizes)


def test_an_unknown_unit_type_is_named():
    with pytest.raises(ValueError, match="unknown unit type 'relu'"):
        RBM(3, 2, hidden="relu")

"""Ladders of models: every rung is a model whose inverse temperature is in its parameters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from freenergy.inference import exact
from freenergy.inference.ladder import (
    Ladder,
    annealing_ladder,
    independent_model,
    temperature_ladder,
)
from freenergy.models import RBM

PAIRS = [("bernoulli", "bernoulli"), ("spin", "spin"), ("bernoulli", "spin"), ("ternary", "spin")]
UNITS = pytest.mark.parametrize("units", PAIRS, ids="-".join)
BETAS = [0.0, 0.25, 1.0, 2.5]


def visible_states(reference, n_rungs: int) -> torch.Tensor:
    """Every visible state, on each rung."""
    return torch.from_numpy(reference.v).expand(n_rungs, -1, -1)


def log_marginal(ladder: Ladder, reference, rung: int) -> np.ndarray:
    """ln p(v) of all visible states on a rung, by its free energies alone."""
    weight = -ladder.free_energy(visible_states(reference, len(ladder)))[rung]
    return (weight - torch.logsumexp(weight, 0)).numpy()


# ---- rungs ---------------------------------------------------------------------------------------


@UNITS
def test_a_rung_weighs_every_state_as_the_model_does_at_its_temperature(rbm, table, units):
    """At strong coupling, where a β outside the softplus would be another model."""
    model = rbm(6, 4, visible=units[0], hidden=units[1], scale=2.0)
    ladder = temperature_ladder(model, BETAS)
    for rung, beta in enumerate(BETAS):
        reference = table(model, beta)
        assert_allclose(log_marginal(ladder, reference, rung), reference.log_marginal, atol=1e-10)
        # The weights themselves, not only up to a factor: their sum is Z.
        free_energy = ladder.free_energy(visible_states(reference, len(BETAS)))[rung]
        log_z = float(torch.logsumexp(-free_energy, 0))
        assert log_z == pytest.approx(reference.log_partition, abs=1e-10)
        if beta > 0:
            v = torch.from_numpy(reference.v)
            expected = beta * model.free_energy(v, beta).detach()
            assert_allclose(free_energy.numpy(), expected.numpy(), atol=1e-11)


def test_beta_times_the_free_energy_at_one_is_another_model(rbm, table):
    """What the test above would have to see: the difference is nats, not rounding."""
    model, beta = rbm(6, 4, scale=2.0), 0.25
    reference = table(model, beta)
    wrong = -beta * table(model, 1.0).free_energy
    wrong -= float(torch.logsumexp(torch.from_numpy(wrong), 0))
    found = log_marginal(temperature_ladder(model, [beta]), reference, 0)
    assert np.abs(wrong - reference.log_marginal).max() > 0.3
    assert np.abs(found - reference.log_marginal).max() < 1e-10


def test_a_temperature_is_not_rounded_more_than_the_model_is(rbm):
    """0.3 in single precision is 1.2e-8 off, and ln Z with it, where exact sums hold 1e-13."""
    model = rbm(6, 4, scale=2.0)
    rung = temperature_ladder(model, [0.3]).model(0)
    assert exact(rung).log_partition == pytest.approx(exact(model, 0.3).log_partition, abs=1e-11)


@UNITS
def test_the_energy_of_a_rung_is_that_of_the_joint_state(rbm, table, units):
    model = rbm(4, 3, visible=units[0], hidden=units[1], scale=2.0)
    ladder = temperature_ladder(model, BETAS)
    reference = table(model)
    n_v, n_h = len(reference.v), len(reference.h)
    v = torch.from_numpy(np.repeat(reference.v, n_h, 0)).expand(len(BETAS), -1, -1)
    h = torch.from_numpy(np.tile(reference.h, (n_v, 1))).expand(len(BETAS), -1, -1)
    # The terms b·h and v·W·h come through the field that v puts on h.
    energy = ladder.energy(v, h, ladder.hidden_field(v)).view(-1, n_v, n_h)
    for rung, beta in enumerate(BETAS):
        assert_allclose(energy[rung].numpy(), beta * reference.energy, atol=1e-12)
    # The free energy of v is minus the logarithm of the sum over h of the joint weights.
    expected = -torch.logsumexp(-energy, -1)
    found = ladder.free_energy(visible_states(reference, len(BETAS)))
    assert_allclose(found.numpy(), expected.numpy(), atol=1e-11)


@UNITS
def test_fields_on_a_rung_are_those_of_its_model(rbm, units):
    models = [rbm(5, 3, visible=units[0], hidden=units[1], seed=seed) for seed in range(3)]
    ladder, rng = Ladder.of(models, beta=1.7), np.random.default_rng(0)
    v, h = (torch.from_numpy(rng.integers(0, 2, (3, 7, n)).astype(float)) for n in (5, 3))
    for rung, model in enumerate(models):
        hidden = ladder.hidden_field(v)[rung]
        visible = ladder.visible_field(h)[rung]
        assert_allclose(hidden.numpy(), model.hidden_field(v[rung], 1.7).detach(), atol=1e-13)
        assert_allclose(visible.numpy(), model.visible_field(h[rung], 1.7).detach(), atol=1e-13)
    given = ladder.free_energy(v, ladder.hidden_field(v))
    assert bool((given == ladder.free_energy(v)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@UNITS
def test_a_rung_read_back_as_a_model_is_that_model_with_beta_in_it(rbm, units, dtype):
    model = rbm(5, 3, visible=units[0], hidden=units[1], dtype=dtype)
    ladder = temperature_ladder(model, BETAS)
    for rung, beta in enumerate(BETAS):
        copy = ladder.model(rung)
        assert (copy.visible, copy.hidden) == (model.visible, model.hidden)
        assert copy.weight.dtype == dtype
        expected = exact(model, beta).log_partition
        assert exact(copy).log_partition == pytest.approx(expected, rel=1e-6)
    assert not isinstance(ladder.weight, torch.nn.Parameter)
    assert not ladder.weight.requires_grad


def test_a_ladder_of_models_is_a_copy(rbm):
    models = [rbm(5, 3, seed=seed) for seed in range(3)]
    ladder = Ladder.of(models)
    before = ladder.weight.clone()
    with torch.no_grad():
        models[1].weight.add_(1.0)
    ladder.model(0).weight.data.zero_()
    assert bool((ladder.weight == before).all())
    assert not ladder.weight.requires_grad


# ---- building a ladder ---------------------------------------------------------------------------


def test_appending_a_model_leaves_the_rungs_below_as_they_were(rbm):
    models = [rbm(5, 3, seed=seed) for seed in range(3)]
    ladder = Ladder.of(models[:2], beta=0.7)
    longer = ladder.append(models[2], beta=0.7)
    whole = Ladder.of(models, beta=0.7)
    assert [len(ladder), len(longer)] == [2, 3]
    for name in ("weight", "visible_bias", "hidden_bias"):
        assert bool((getattr(longer, name) == getattr(whole, name)).all())


def test_the_top_rung_follows_a_model_and_no_other_rung_does(rbm):
    models = [rbm(5, 3, seed=seed) for seed in range(3)]
    ladder = Ladder.of(models[:2])
    ladder.set_top(models[2], beta=1.3)
    expected = Ladder.of([models[0]]).append(models[2], 1.3)
    for name in ("weight", "visible_bias", "hidden_bias"):
        assert_allclose(getattr(ladder, name), getattr(expected, name), rtol=1e-15)


def test_a_slice_of_a_ladder_is_a_ladder(rbm):
    models = [rbm(5, 3, seed=seed) for seed in range(5)]
    part = Ladder.of(models)[1::2]
    assert len(part) == 2
    assert bool((part.weight == Ladder.of(models[1::2]).weight).all())
    assert bool((part.hidden_bias == Ladder.of(models[1::2]).hidden_bias).all())


def test_rungs_between_rungs_lie_on_straight_lines(rbm):
    models = [rbm(5, 3, seed=seed) for seed in range(3)]
    ladder = Ladder.of(models)
    positions = [0.0, 0.25, 1.0, 1.9, 2.0]
    finer = ladder.at(positions)
    assert len(finer) == 5
    for name in ("weight", "visible_bias", "hidden_bias"):
        first, middle, last = getattr(ladder, name)
        expected = [
            first,
            0.75 * first + 0.25 * middle,
            middle,
            0.1 * middle + 0.9 * last,
            last,
        ]
        for rung, value in zip(getattr(finer, name), expected, strict=True):
            assert_allclose(rung.numpy(), value.numpy(), atol=1e-14)
        # The ladder's own rungs come back to the bit.
        assert bool((getattr(finer, name)[[0, 2, 4]] == getattr(ladder, name)).all())
    only = ladder[:1].at([0.0])
    assert bool((only.weight == ladder.weight[:1]).all())


def test_the_middle_of_a_straight_line_has_the_geometric_mean_of_the_joint_weights(rbm, table):
    """Energies are interpolated; the free energies of v are not."""
    ends = [rbm(5, 3, seed=seed, scale=2.0) for seed in range(2)]
    middle = Ladder.of(ends).at([0.5])
    tables = [table(model) for model in (*ends, middle.model(0))]
    mean = (tables[0].energy + tables[1].energy) / 2
    assert_allclose(tables[2].energy, mean, atol=1e-12)
    mean_free_energy = (tables[0].free_energy + tables[1].free_energy) / 2
    assert np.abs(tables[2].free_energy - mean_free_energy).max() > 0.1


@UNITS
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_an_annealing_ladder_ends_at_the_model_at_its_temperature(rbm, table, units, beta):
    model, base = (rbm(5, 3, visible=units[0], hidden=units[1], seed=seed) for seed in (0, 1))
    with torch.no_grad():
        base.weight.zero_()
    ladder = annealing_ladder(model, base, beta)
    assert len(ladder) == 2
    # The base has no temperature of its own.
    for rung, reference in enumerate((table(base), table(model, beta))):
        found = log_marginal(ladder, reference, rung)
        assert_allclose(found, reference.log_marginal, atol=1e-11)
    assert bool((base.visible_bias == ladder.visible_bias[0]).all())


# ---- the solvable end ----------------------------------------------------------------------------


@UNITS
def test_the_log_partition_function_of_the_first_rung_is_exact(rbm, table, units):
    model = rbm(5, 4, visible=units[0], hidden=units[1], scale=0.0, bias=2.0)
    ladder = annealing_ladder(rbm(5, 4, visible=units[0], hidden=units[1]), model)
    assert ladder.base_log_partition() == pytest.approx(table(model).log_partition, abs=1e-12)
    values = (len(model.visible.support), len(model.hidden.support))
    hot = temperature_ladder(rbm(5, 4, visible=units[0], hidden=units[1]), [0.0, 1.0])
    count = 5 * math.log(values[0]) + 4 * math.log(values[1])
    assert hot.base_log_partition() == pytest.approx(count, abs=1e-12)


def test_the_log_partition_function_of_the_first_rung_is_summed_in_double_precision(rbm, table):
    model = rbm(9, 8, scale=0.0, bias=2.0, dtype=torch.float32)
    found = Ladder.of([model]).base_log_partition()
    assert found == pytest.approx(table(model).log_partition, abs=1e-12)


def test_a_coupled_first_rung_has_no_known_partition_function(rbm):
    model = rbm(5, 3, scale=0.0)
    ladder = Ladder.of([model, rbm(5, 3)])
    ladder.base_log_partition()
    ladder.weight[0, 4, 2] = -1e-6
    with pytest.raises(ValueError, match="couples its units"):
        ladder.base_log_partition()


@UNITS
def test_an_independent_model_has_the_means_that_it_was_given(rbm, units):
    """Drawn by a hundredth of the way to the middle, which keeps the biases finite."""
    model = rbm(5, 3, visible=units[0], hidden=units[1])
    rng = np.random.default_rng(0)
    means, middles = [], []
    for unit, n in ((model.visible, 5), (model.hidden, 3)):
        low, high = min(unit.support), max(unit.support)
        mean = torch.from_numpy(low + (high - low) * rng.random(n))
        mean[0], mean[1] = low, high  # a unit that was always off, one always on
        means.append(mean)
        middles.append(sum(unit.support) / len(unit.support))
    base = independent_model(model, *means)
    assert not bool(base.weight.any())
    assert all(bool(torch.isfinite(p).all()) for p in base.parameters())
    statistics = exact(base)
    for mean, middle, found in zip(
        means, middles, (statistics.visible, statistics.hidden), strict=True
    ):
        assert_allclose(found.numpy(), (0.99 * mean + 0.01 * middle).numpy(), atol=1e-9)


def test_an_independent_model_keeps_the_precision_of_the_model(rbm):
    model = rbm(5, 3, dtype=torch.float32)
    base = independent_model(model, torch.full((5,), 0.5), torch.full((3,), 0.25))
    assert base.weight.dtype == base.visible_bias.dtype == torch.float32
    assert_allclose(base.hidden_bias.detach().numpy(), math.log(0.2525 / 0.7475), rtol=1e-6)


# ---- refusals ------------------------------------------------------------------------------------


def test_models_that_do_not_fit_together_are_refused(rbm):
    with pytest.raises(ValueError, match="at least one model"):
        Ladder.of([])
    with pytest.raises(ValueError, match="same numbers of units"):
        Ladder.of([rbm(5, 3), rbm(5, 4)])
    with pytest.raises(ValueError, match="same numbers of units"):
        Ladder.of([RBM(5, 3), RBM(3, 5)])
    for units in ({"visible": "spin"}, {"hidden": "spin"}):
        with pytest.raises(ValueError, match="same types of units"):
            Ladder.of([rbm(5, 3), rbm(5, 3, **units)])
        with pytest.raises(ValueError, match="same types of units"):
            annealing_ladder(rbm(5, 3), rbm(5, 3, **units))


@pytest.mark.parametrize("betas", [[], [0.5, -0.1], [math.nan], [0.0, math.inf]])
def test_impossible_temperatures_are_refused(rbm, betas):
    with pytest.raises(ValueError, match="betas must be finite and not negative"):
        temperature_ladder(rbm(5, 3), betas)


def test_an_appended_model_must_have_the_size_of_the_ladder(rbm):
    with pytest.raises((ValueError, RuntimeError)):
        Ladder.of([rbm(5, 3)]).append(rbm(5, 4))


def test_an_appended_model_must_have_the_units_of_the_ladder(rbm):
    """A spin model read as one of 0/1 units has another partition function."""
    with pytest.raises(ValueError, match="same types of units"):
        Ladder.of([rbm(5, 3)]).append(rbm(5, 3, hidden="spin"))


@pytest.mark.parametrize("position", [-0.1, 1.1])
def test_positions_beyond_the_ends_are_refused(rbm, position):
    with pytest.raises(ValueError, match="position"):
        Ladder.of([rbm(5, 3), rbm(5, 3, seed=1)]).at([position])

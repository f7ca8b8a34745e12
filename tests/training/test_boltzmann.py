"""Learning in Boltzmann machines by mean field: against exact gradients, and what it learns."""

from __future__ import annotations

import dataclasses
import math
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from freenergy.inference import MeanFieldWarning, anneal_mean_field, exact_boltzmann
from freenergy.models import BoltzmannMachine
from freenergy.random import RandomStream
from freenergy.training import (
    BoltzmannOptions,
    MeanFieldBoltzmannGradient,
    Trainer,
    as_rows,
    initialize_boltzmann,
)

UNITS = pytest.mark.parametrize("unit", ["spin", "bernoulli"])
ORDERS = pytest.mark.parametrize("order", [1, 2])
CORRELATIONS = pytest.mark.parametrize("correlation", ["linear_response", "free_energy"])


def random_machine(n_visible, n_hidden=0, *, scale=0.1, unit="spin", seed=0) -> BoltzmannMachine:
    n = n_visible + n_hidden
    rng = np.random.default_rng([seed, n])
    upper = np.triu(rng.normal(0, scale * (4 if unit == "bernoulli" else 1), (n, n)), 1)
    bias = torch.from_numpy(rng.normal(0, 0.4, n))
    return BoltzmannMachine.from_coupling(
        torch.from_numpy(upper + upper.T), bias, n_hidden=n_hidden, unit=unit
    )


def rows_of(model: BoltzmannMachine, n: int = 12, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.choice(model.unit.support, (n, model.n_visible)))


def gradient(model, rows, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of weight and bias; precise states, unless told otherwise."""
    settings = {"n_states": 2, "tolerance": 1e-10, "max_iter": 500, **options}
    MeanFieldBoltzmannGradient(model, BoltzmannOptions(**settings), RandomStream(0)).compute(rows)
    return model.weight.grad.clone(), model.bias.grad.clone()


def exact_gradient(model, rows, beta=1.0, n_inputs=0) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the mean negative log-likelihood, by enumerating both phases."""

    def phase(n_held: int) -> tuple[torch.Tensor, torch.Tensor]:
        states = []
        for row in rows:
            clamp = torch.full((model.n_units,), math.nan).double()
            clamp[:n_held] = row[:n_held]
            states.append(exact_boltzmann(model, beta, clamp=clamp))
        moments = torch.stack([s.second_moment for s in states]).mean(0)
        return moments, torch.stack([s.mean for s in states]).mean(0)

    clamped, free = phase(model.n_visible), phase(n_inputs)
    return beta * (free[0] - clamped[0]) * model.pairs, beta * (free[1] - clamped[1])


def error(found, truth) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(found, truth, strict=True))


# The gradient


@UNITS
@pytest.mark.parametrize("n_inputs", [0, 2])
@pytest.mark.parametrize("n_hidden", [0, 3])
def test_the_gradient_approaches_the_exact_one(unit, n_hidden, n_inputs):
    """Naive response < Onsager response; half the couplings, an eighth of the error."""
    errors = []
    for scale in (0.04, 0.02):
        model = random_machine(5, n_hidden, scale=scale, unit=unit)
        rows = rows_of(model, 4)
        truth = exact_gradient(model, rows, n_inputs=n_inputs)
        errors.append(
            [
                error(gradient(model, rows, mean_field_order=n, n_inputs=n_inputs), truth)
                for n in (1, 2)
            ]
        )
    (naive, tap), (_, weaker) = errors
    assert float(truth[0].abs().max()) > 0.1
    assert tap < naive / 3
    assert weaker < tap / 6
    assert tap < 2e-3


@ORDERS
@CORRELATIONS
def test_free_energy_and_response_agree_where_couplings_are_weak(order, correlation):
    """To first order in J both are β J c c at order 2; at order 1 only the response knows it."""
    model = random_machine(6, scale=0.01)
    rows = rows_of(model)
    found = gradient(model, rows, mean_field_order=order, correlation=correlation)
    off = error(found, exact_gradient(model, rows))
    blind = order == 1 and correlation == "free_energy"
    assert off > 5e-3 if blind else off < 1e-3


def test_naive_correlations_are_products_of_means():
    model = random_machine(5, scale=0.2)
    rows = rows_of(model)
    found, _ = gradient(model, rows, mean_field_order=1, correlation="free_energy")
    m = anneal_mean_field(model, [10.0, 1.0], order=1).final
    expected = (m.T @ m - rows.T @ rows / len(rows)) * model.pairs
    assert_allclose(found, expected, atol=1e-8)


def test_without_hidden_units_the_clamped_phase_is_the_data():
    """In a machine without couplings the free phase is exact too, so the gradient is."""
    model = random_machine(6, scale=0.0)
    rows = rows_of(model)
    m = torch.tanh(model.bias.detach())
    weight, bias = gradient(model, rows)
    assert_allclose(weight, (torch.outer(m, m) - rows.T @ rows / 12) * model.pairs, atol=1e-9)
    assert_allclose(bias, m - rows.mean(0), atol=1e-9)


@CORRELATIONS
@ORDERS
def test_temperature_only_scales_the_parameters(order, correlation):
    """At β the machine is that with parameters βJ, βb at β = 1; its gradient gains a factor β."""
    model, beta = random_machine(4, 2, scale=0.3), 0.6
    twin = BoltzmannMachine.from_coupling(
        beta * model.coupling.detach(), beta * model.bias.detach(), n_hidden=2
    )
    rows, options = rows_of(model), {"mean_field_order": order, "correlation": correlation}
    cold = gradient(model, rows, beta=beta, **options)
    for a, b in zip(cold, gradient(twin, rows, **options), strict=True):
        assert_allclose(a, beta * b, atol=1e-8)


def test_inputs_and_pairs_that_are_not_connected_get_no_gradient():
    connected = ~torch.eye(6, dtype=torch.bool)
    connected[2, 5] = connected[5, 2] = False
    model = BoltzmannMachine(5, 1, connected=connected, dtype=torch.float64)
    weight, bias = gradient(model, rows_of(model), n_inputs=2)
    assert float(weight[2, 5]) == 0.0
    assert float(weight[0, 1]) == 0.0
    assert not bool(bias[:2].any())
    assert not bool(weight.tril().any())
    assert float(weight[2, 3]) != 0.0


def test_persistent_states_stay_in_the_minima_they_are_in():
    """A cold ferromagnet: states of both signs, whose average has no magnetisation."""
    model = BoltzmannMachine.from_coupling((1 - torch.eye(8).double()) / 2)
    options = BoltzmannOptions(n_states=20, persistent=True, mean_field_order=1)
    estimator = MeanFieldBoltzmannGradient(model, options, RandomStream(0))
    for _ in range(3):
        estimator.compute(torch.ones(2, 8).double())
        signs = estimator.state()["states"].mean(1).sign()
        assert set(signs.tolist()) == {-1.0, 1.0}
    restored = MeanFieldBoltzmannGradient(model, options, RandomStream(5))
    restored.restore({name: t.clone() for name, t in estimator.state().items()})
    assert torch.equal(restored.state()["states"], estimator.state()["states"])


def test_the_estimator_says_how_many_states_converged_and_are_stable():
    model = random_machine(4, 2, scale=0.1)
    estimator = MeanFieldBoltzmannGradient(model, BoltzmannOptions(), RandomStream(0))
    estimator.compute(rows_of(model))
    assert estimator.measure() == {"mean_field_converged": 1.0, "mean_field_stable": 1.0}
    assert estimator.measure() == {}
    hurried = BoltzmannOptions(max_iter=1, n_temperatures=1, correlation="free_energy")
    estimator = MeanFieldBoltzmannGradient(model, hurried, RandomStream(0))
    estimator.compute(rows_of(model))
    assert estimator.measure() == {"mean_field_converged": 0.0}


@ORDERS
@CORRELATIONS
@UNITS
@pytest.mark.parametrize("strength", [1e4, -1e4])
def test_huge_couplings_one_row_and_constant_columns_stay_finite(
    order, correlation, unit, strength
):
    coupling = strength * (1 - torch.eye(6, dtype=torch.float64))
    bias = torch.tensor([1e4, -1e4, 0.0, 0.0, 1e4, 0.0]).double()
    model = BoltzmannMachine.from_coupling(coupling, bias, n_hidden=2, unit=unit)
    options = {"mean_field_order": order, "correlation": correlation, "max_iter": 20}
    for rows in (torch.ones(1, 4), torch.ones(5, 4)):
        for n_inputs in (0, 1):
            for grad in gradient(model, rows.double(), n_inputs=n_inputs, **options):
                assert bool(grad.isfinite().all())


# Learning


def train(model, rows, *, seed=0, **options) -> Trainer:
    settings = BoltzmannOptions(batch_size=len(rows), **options)
    random = RandomStream(seed)
    trainer = Trainer(
        model, settings, random, gradient=MeanFieldBoltzmannGradient(model, settings, random)
    )
    trainer.fit(as_rows(rows, like=torch.empty(0, dtype=torch.float64)))
    return trainer


def population(model: BoltzmannMachine, n: int = 4000) -> torch.Tensor:
    """Every state as often as the machine has it among ``n``, rounded."""
    states = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * model.n_units)
    probability = torch.softmax(-model.energy(states).detach(), 0)
    return states.repeat_interleave((n * probability).round().long(), 0)


def test_planted_couplings_are_recovered():
    """Weakly coupled spins: Onsager response beats naive response; products of means fail."""
    errors = {}
    planted = random_machine(6, scale=0.15, seed=1)
    rows = population(planted)
    for name, options in {
        "tap response": {},
        "tap": {"correlation": "free_energy"},
        "naive response": {"mean_field_order": 1},
        "naive": {"mean_field_order": 1, "correlation": "free_energy"},
    }.items():
        model = BoltzmannMachine(6, dtype=torch.float64)
        initialize_boltzmann(model, as_rows(rows, like=rows), RandomStream(0))
        options = {"n_states": 1, "persistent": True, "damping": 0.0, "tolerance": 1e-4, **options}
        train(model, rows, n_epochs=50, learning_rate=0.4, momentum=0.8, **options)
        difference = (model.coupling - planted.coupling).detach()[model.pairs]
        errors[name] = float(difference.square().mean().sqrt())
    assert errors["tap response"] < 0.005
    assert errors["tap response"] < errors["naive response"] / 3
    assert errors["tap response"] < errors["tap"] / 5
    assert errors["naive"] > 0.15, "no better than couplings of zero"


def layered(n_inputs: int, n_outputs: int, n_hidden: int) -> BoltzmannMachine:
    """Inputs and outputs coupled to the hidden units, and nothing else."""
    n = n_inputs + n_outputs
    connected = torch.zeros(n + n_hidden, n + n_hidden, dtype=torch.bool)
    connected[:n, n:] = connected[n:, :n] = True
    return BoltzmannMachine(n, n_hidden, connected=connected, dtype=torch.float64)


def answers(model: BoltzmannMachine, inputs: torch.Tensor) -> torch.Tensor:
    """Magnetisations of the outputs, annealed with the inputs held."""
    clamp = torch.full((len(inputs), model.n_units), math.nan, dtype=torch.float64)
    clamp[:, : inputs.shape[1]] = inputs
    state = anneal_mean_field(
        model, [5.0, 2.0, 1.0], clamp=clamp, order=1, random=RandomStream(9), tolerance=1e-6
    )
    return state.final[:, inputs.shape[1] : model.n_visible]


XOR = torch.tensor([[-1.0, -1, -1], [-1, 1, 1], [1, -1, 1], [1, 1, -1]]).double()
ENCODER = (2 * torch.eye(4).double() - 1).repeat(1, 2)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("rows", "n_inputs", "n_hidden"), [(XOR, 2, 4), (ENCODER, 4, 2)], ids=["xor", "encoder 4-2-4"]
)
def test_problems_of_the_paper_are_learned(rows, n_inputs, n_hidden, seed):
    """Peterson and Anderson 1987: naive mean field, inputs held in both phases.

    Of 12 starts 11 learn XOR; the other one ends in a local minimum.
    """
    model = layered(n_inputs, rows.shape[1] - n_inputs, n_hidden)
    with torch.no_grad():
        draws = RandomStream(seed).normal(tuple(model.weight.shape), scale=0.6)
        model.weight.copy_(draws * model.pairs)
    train(
        model,
        rows,
        seed=seed,
        n_epochs=80,
        learning_rate=0.3,
        mean_field_order=1,
        correlation="free_energy",
        n_inputs=n_inputs,
        hottest=5.0,
        n_temperatures=3,
        max_iter=20,
        tolerance=1e-3,
    )
    assert float((answers(model, rows[:, :n_inputs]) * rows[:, n_inputs:]).min()) > 0.7


def test_learning_raises_the_likelihood_of_a_machine_with_hidden_units():
    model = random_machine(4, 2, scale=0.05, seed=2)
    rows = torch.tensor([[1.0, 1, -1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).double()

    def log_likelihood() -> float:
        clamp = torch.cat([rows, torch.full((3, 2), math.nan).double()], 1)
        clamped = np.mean([exact_boltzmann(model, clamp=row).log_partition for row in clamp])
        return float(clamped) - exact_boltzmann(model).log_partition

    before = log_likelihood()
    train(model, rows, n_epochs=15, learning_rate=0.1, n_states=2, n_temperatures=3)
    assert log_likelihood() > before + 0.3


def test_a_trainer_goes_on_to_the_same_bits():
    rows = rows_of(random_machine(5), 8)
    options = {"n_epochs": 4, "n_states": 3, "persistent": True, "learning_rate": 0.1}
    model = random_machine(5)
    whole = train(model, rows, **options)
    part = train(random_machine(5), rows, **{**options, "n_epochs": 2})
    twin = random_machine(5)
    resumed = train(twin, rows, seed=7, **{**options, "n_epochs": 0})
    resumed.restore(*part.state())
    resumed.options = dataclasses.replace(resumed.options, n_epochs=4)
    resumed.fit(as_rows(rows, like=rows))
    assert torch.equal(twin.weight, model.weight)
    assert torch.equal(twin.bias, model.bias)
    assert whole.history[-1]["mean_field_converged"] == resumed.history[-1]["mean_field_converged"]


def test_an_epoch_that_is_undone_does_not_count_in_the_next_one():
    rows = rows_of(random_machine(4, 1), 8)
    trainer = train(random_machine(4, 1), rows, n_epochs=0)
    trainer.options = dataclasses.replace(trainer.options, n_epochs=1)

    def interrupt(_n_rows):
        assert trainer.gradient.state()["tally"].any()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.fit(as_rows(rows, like=rows), on_batch=interrupt)
    assert trainer.gradient.measure() == {}


# Starts, options and errors


@UNITS
def test_a_machine_starts_with_the_means_of_its_data(unit):
    model = random_machine(5, 2, unit=unit)
    rows = rows_of(model, 500)
    rows[:, 0] = 1.0
    initialize_boltzmann(model, as_rows(rows, like=rows), RandomStream(0), beta=2.0)
    assert_allclose(model.unit.mean(2.0 * model.bias.detach())[1:5], rows.mean(0)[1:], atol=5e-3)
    constant = float(model.unit.mean(2.0 * model.bias.detach())[0])
    assert constant == pytest.approx((500 + sum(model.unit.support)) / 502, abs=1e-12)
    assert not bool(model.bias[5:].any())
    assert float(model.weight.detach()[model.pairs].std()) == pytest.approx(0.01, rel=0.5)
    assert not bool(model.weight.detach().tril().any())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean_field_order": 3}, "mean_field_order must be one of 1, 2, got 3"),
        ({"correlation": "exact"}, "correlation must be one of 'linear_response', 'free_energy'"),
        ({"n_states": 0}, "n_states must be a whole number of at least 1, got 0"),
        ({"n_inputs": -1}, "n_inputs must be a whole number of at least 0, got -1"),
        ({"n_temperatures": 2.0}, "n_temperatures must be a whole number"),
        ({"hottest": 0.5}, "hottest must be at least 1, got 0.5"),
        ({"hottest": math.inf}, "hottest must be a finite number"),
        ({"damping": 1.0}, r"damping must lie in \[0, 1\), got 1.0"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
        ({"persistent": True, "n_inputs": 1}, "persistent has no effect with n_inputs"),
        ({"weight_constraint": "l2", "max_norm": 1.0}, "weight_constraint must be one of None"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BoltzmannOptions(**options)


def test_a_machine_of_inputs_alone_is_refused():
    with pytest.raises(ValueError, match="n_inputs=3 leaves none of the 3 visible units"):
        MeanFieldBoltzmannGradient(
            BoltzmannMachine(3), BoltzmannOptions(n_inputs=3), RandomStream()
        )


def test_a_batch_of_another_width_is_refused():
    estimator = MeanFieldBoltzmannGradient(BoltzmannMachine(3), BoltzmannOptions(), RandomStream(0))
    with pytest.raises(ValueError, match=r"shape \(n, 3\), got \(5, 4\)"):
        estimator.compute(torch.ones(5, 4))


def test_the_schedule_ends_at_the_temperature_of_training():
    options = BoltzmannOptions(beta=2.0, hottest=8.0, n_temperatures=4)
    assert_allclose(options.inverse_temperatures, [0.25, 0.5, 1.0, 2.0])
    quench = BoltzmannOptions(beta=2.0, n_temperatures=1)
    assert quench.inverse_temperatures == [2.0]


def test_options_survive_a_round_trip():
    options = BoltzmannOptions(mean_field_order=1, n_inputs=2, beta=0.5)
    assert BoltzmannOptions.from_dict(options.to_dict()) == options


def test_training_is_silent():
    """Alarms of single updates are in the history, not in warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", MeanFieldWarning)
        gradient(random_machine(4, 1, scale=2.0), torch.ones(2, 4).double(), max_iter=1)

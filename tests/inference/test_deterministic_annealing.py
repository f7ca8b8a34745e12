"""Annealed mean field against enumeration, closed forms and what annealing is for."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import brentq
from scipy.special import gammaln, logsumexp

from freenergy.inference import (
    MeanFieldWarning,
    NegativeEntropyWarning,
    NotConvergedWarning,
    anneal_mean_field,
    exact_boltzmann,
    linear_response,
    mean_field,
    mean_field_gradient,
)
from freenergy.inference.deterministic_annealing import PairExpansion
from freenergy.models import BoltzmannMachine
from freenergy.random import RandomStream

UNITS = pytest.mark.parametrize("unit", ["spin", "bernoulli"])
ORDERS = pytest.mark.parametrize("order", [1, 2])
NAN = math.nan


@pytest.fixture(autouse=True)
def unexpected_warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", MeanFieldWarning)
        yield


def random_machine(n: int, scale: float, *, unit="spin", bias=0.5, seed=0) -> BoltzmannMachine:
    """Couplings of one energy scale, whatever the two values of a unit are."""
    rng = np.random.default_rng([seed, n])
    upper = np.triu(rng.normal(0, scale * (4 if unit == "bernoulli" else 1), (n, n)), 1)
    return BoltzmannMachine.from_coupling(
        torch.from_numpy(upper + upper.T), torch.from_numpy(rng.normal(0, bias, n)), unit=unit
    )


def ferromagnet(n: int, field: float = 0.0) -> BoltzmannMachine:
    """Curie-Weiss: every pair coupled with 1/n, so that the critical temperature is 1."""
    coupling = (1.0 - torch.eye(n, dtype=torch.float64)) / n
    return BoltzmannMachine.from_coupling(coupling, torch.full((n,), field, dtype=torch.float64))


def off_diagonal(matrix: torch.Tensor) -> torch.Tensor:
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)]


def errors(model: BoltzmannMachine, order: int) -> tuple[float, float, float]:
    """Largest errors of magnetisations, ln Z and covariances against enumeration."""
    state, truth = anneal_mean_field(model, [1.0], order=order), exact_boltzmann(model)
    covariance = linear_response(model, state.final, order=order).covariance[0]
    return (
        float((state.final[0] - truth.mean).abs().max()),
        abs(float(state.log_partition[0, 0]) - truth.log_partition),
        float(off_diagonal(covariance - truth.covariance).abs().max()),
    )


# Against enumeration


@UNITS
def test_errors_fall_with_the_coupling_at_the_order_of_the_first_term_left_out(unit):
    """Half the coupling: naive errors fall fourfold (J²), those of TAP eightfold (J³)."""
    found = np.array(
        [
            [
                np.mean([errors(random_machine(8, s, unit=unit, seed=i), n) for i in range(8)], 0)
                for s in (0.02, 0.01)
            ]
            for n in (1, 2)
        ]
    )
    naive, tap = found[:, 0] / found[:, 1]
    assert_allclose(naive[:2], 4, rtol=0.1)
    assert_allclose(tap, 8, rtol=0.1)
    assert (found[1, 1] < found[0, 1] / 4).all()


@ORDERS
@UNITS
def test_without_couplings_mean_field_is_exact(unit, order):
    model = random_machine(7, 0.0, unit=unit, bias=2.0)
    states = anneal_mean_field(model, [3.0, 0.7], order=order)
    for t, temperature in enumerate((3.0, 0.7)):
        truth = exact_boltzmann(model, 1 / temperature)
        assert_allclose(states.magnetization[t, 0], truth.mean, atol=1e-10)
        assert float(states.free_energy[t, 0]) == pytest.approx(truth.free_energy, abs=1e-12)
        assert float(states.energy[t, 0]) == pytest.approx(truth.energy, abs=1e-9)
        assert float(states.entropy[t, 0]) == pytest.approx(truth.entropy, abs=1e-9)


@ORDERS
@UNITS
def test_a_hot_machine_has_free_units_and_the_entropy_of_coins(unit, order):
    model = random_machine(10, 1.0, unit=unit)
    hot = anneal_mean_field(model, [1e6], order=order)
    middle = sum(model.unit.support) / 2
    assert_allclose(hot.final, middle, atol=1e-5)
    assert float(hot.entropy[0, 0]) == pytest.approx(10 * math.log(2), abs=1e-9)
    truth = exact_boltzmann(model, 1e-6)
    assert float(hot.energy[0, 0]) == pytest.approx(truth.energy, abs=1e-4)


def test_naive_mean_field_never_exceeds_the_partition_function():
    for seed in range(10):
        model = random_machine(8, 0.7, seed=seed)
        truth = exact_boltzmann(model).log_partition
        assert float(anneal_mean_field(model, [5.0, 1.0], order=1).log_partition[-1, 0]) < truth


@ORDERS
def test_clamped_units_act_as_fields_on_the_others(order):
    """Held at any values, against enumeration of the others; kicks do not move them."""
    model = random_machine(8, 0.05, seed=3)
    clamp = torch.tensor(
        [[1.0, -0.1, NAN, NAN, NAN, NAN, NAN, 0.4], [-1, NAN, NAN, NAN, NAN, NAN, 0.2, 0]]
    )
    states = anneal_mean_field(model, [2.0, 1.0], clamp=clamp, order=order, random=RandomStream(0))
    covariance = linear_response(model, states.final, order=order, clamp=clamp).covariance
    for row, held in enumerate(clamp):
        truth = exact_boltzmann(model, clamp=held)
        error = 2e-2 if order == 1 else 2e-3
        assert_allclose(states.final[row], truth.mean, atol=error)
        assert float(states.log_partition[-1, row]) == pytest.approx(
            truth.log_partition, abs=4 * error
        )
        assert torch.equal(states.final[row][~held.isnan()], held[~held.isnan()].double())
        assert_allclose(off_diagonal(covariance[row]), off_diagonal(truth.covariance), atol=error)
        assert not bool(covariance[row][~held.isnan()].any())


@UNITS
def test_clamping_every_unit_leaves_its_energy_alone(unit):
    model = random_machine(5, 0.5, unit=unit)
    rows = torch.tensor([[1.0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]).double()
    states = anneal_mean_field(model, [1.0], clamp=rows)
    assert_allclose(states.energy[0], model.energy(rows).detach(), rtol=1e-14)
    assert_allclose(states.free_energy[0], states.energy[0], rtol=1e-14)
    assert not bool(states.entropy.any())


# The expansion


@UNITS
@ORDERS
def test_the_fixed_point_is_stationary_and_its_response_the_inverse_hessian(unit, order):
    model, beta = random_machine(7, 0.15, unit=unit), 1.3
    state = anneal_mean_field(model, [1 / beta], order=order, tolerance=1e-13)
    expansion = PairExpansion(model, order)

    def free_energy(m: torch.Tensor) -> torch.Tensor:
        return expansion.terms(m[None], beta).sum()

    m = state.final[0]
    assert float(torch.autograd.functional.jacobian(free_energy, m).abs().max()) < 1e-10
    hessian = torch.autograd.functional.hessian(free_energy, m)
    response = linear_response(model, state.final, beta, order=order)
    assert_allclose(response.covariance[0], torch.linalg.inv(hessian), atol=1e-12)
    assert bool(response.stable[0])


@ORDERS
def test_the_response_is_how_magnetisations_answer_to_a_field(order):
    model, d = random_machine(6, 0.2), 1e-5
    state = anneal_mean_field(model, [1.0], order=order, tolerance=1e-13)
    covariance = linear_response(model, state.final, order=order).covariance[0]
    for j in (0, 4):
        answers = []
        for step in (d, -d):
            with torch.no_grad():
                model.bias[j] += step
                moved = anneal_mean_field(model, [1.0], order=order, tolerance=1e-13)
                model.bias[j] -= step
            answers.append(moved.final[0])
        assert_allclose((answers[0] - answers[1]) / (2 * d), covariance[j], atol=1e-8)


@ORDERS
@UNITS
def test_energy_and_entropy_are_derivatives_of_the_free_energy(unit, order):
    """U = ∂(βΓ)/∂β and S = −∂Γ/∂T, the fixed point solved afresh at each temperature."""
    model, t, d = random_machine(7, 0.15, unit=unit), 1.2, 1e-4
    up, middle, down = (
        anneal_mean_field(model, [x], order=order, tolerance=1e-13) for x in (t + d, t, t - d)
    )
    entropy = -(up.free_energy - down.free_energy) / (2 * d)
    assert_allclose(middle.entropy, entropy, atol=1e-6)
    assert_allclose(middle.free_energy, middle.energy - t * middle.entropy, rtol=1e-13)
    betas = 1 / (t + d), 1 / (t - d)
    energy = (betas[0] * up.free_energy - betas[1] * down.free_energy) / (betas[0] - betas[1])
    assert_allclose(middle.energy, energy, atol=1e-6)


@ORDERS
@UNITS
def test_on_two_layers_it_is_the_mean_field_of_an_rbm(rbm, unit, order):
    model = rbm(6, 4, visible=unit, hidden=unit, scale=0.2)
    machine, beta = BoltzmannMachine.from_rbm(model), 1.3
    one = mean_field(model, order, beta=beta, tolerance=1e-12)
    other = anneal_mean_field(machine, [1 / beta], order=order, tolerance=1e-12)
    assert_allclose(other.final[0], torch.cat([one.visible, one.hidden], 1)[0], atol=1e-11)
    for name in ("free_energy", "energy", "entropy"):
        assert_allclose(getattr(other, name)[0], getattr(one, name), atol=1e-10)
    expansion, m = PairExpansion(machine, order), other.final
    moment = expansion.reaction_covariance(m, beta) + m.T @ m
    assert_allclose(beta * moment[:6, 6:], mean_field_gradient(model, one).weight, atol=1e-9)


@ORDERS
def test_mean_field_is_the_same_for_spins_and_for_bits(order):
    """s = 2x − 1 makes couplings 4J and biases 2b − 2ΣJ: neither state nor entropy may change."""
    spins = random_machine(7, 0.15)
    coupling, bias = spins.coupling.detach(), spins.bias.detach()
    bits = BoltzmannMachine.from_coupling(
        4 * coupling, 2 * bias - 2 * coupling.sum(0), unit="bernoulli"
    )
    a, b = (anneal_mean_field(m, [2.0, 1.1], order=order, tolerance=1e-13) for m in (spins, bits))
    assert_allclose(a.magnetization, 2 * b.magnetization - 1, atol=1e-12)
    assert_allclose(a.entropy, b.entropy, atol=1e-11)
    first, second = (
        linear_response(m, r.final, 1 / 1.1, order=order).covariance
        for m, r in ((spins, a), (bits, b))
    )
    assert_allclose(first, 4 * second, atol=1e-11)


def test_naive_sweeps_never_raise_the_free_energy():
    model = random_machine(12, 1.0, bias=0.2, seed=5)
    expansion = PairExpansion(model, 1)
    m = 2 * RandomStream(0).uniform_(torch.empty(20, 12).double()) - 1
    before = expansion.terms(m, 2.0).sum(-1)
    for _ in range(10):
        expansion.sweep(m, 2.0)
        after = expansion.terms(m, 2.0).sum(-1)
        assert bool((after <= before + 1e-12).all())
        before = after


# The ferromagnet


@pytest.mark.parametrize("field", [1e-3, -1e-3])
def test_a_ferromagnet_follows_the_branch_of_its_field(field):
    """m = tanh(β(m (n−1)/n + h)) on the side of the field, above and below T = 1."""
    n, temperatures = 60, [2.0, 1.3, 0.9, 0.6, 0.3]
    states = anneal_mean_field(ferromagnet(n, field), temperatures, order=1)
    for m, t in zip(states.magnetization[:, 0], temperatures, strict=True):
        root = brentq(lambda x, t=t: x - math.tanh(((n - 1) / n * x + abs(field)) / t), 1e-6, 1.0)
        assert_allclose(m, math.copysign(root, field), atol=1e-8)


def test_a_ferromagnet_orders_below_its_critical_temperature_of_one():
    model = ferromagnet(60)
    states = anneal_mean_field(model, [1.2, 1.05, 0.9], order=1, n_starts=8, random=RandomStream(0))
    m = states.magnetization.mean(-1)
    assert_allclose(m[:2], 0, atol=1e-8)
    root = brentq(lambda x: x - math.tanh(59 / 60 * x / 0.9), 0.1, 1.0)
    assert_allclose(m[2].abs(), root, atol=1e-8)
    assert set(m[2].sign().tolist()) == {-1.0, 1.0}, "either side may be chosen"


def test_without_kicks_a_state_stays_on_the_symmetric_point_which_is_then_unstable():
    model = ferromagnet(50)
    state = anneal_mean_field(model, [2.0, 0.5], order=1)
    assert not bool(state.final.any())
    assert bool(linear_response(model, state.final, 1 / 2.0, order=1).stable)
    response = linear_response(model, state.final, 1 / 0.5, order=1)
    assert not bool(response.stable)
    assert not bool(response.covariance.any())
    assert repr(response) == "LinearResponse(n_states=1, n_units=50, stable=0/1)"


def test_the_onsager_term_of_a_large_ferromagnet_is_small_and_an_improvement():
    """Exact ln Z from the n + 1 total magnetisations: ln n!/(k!(n−k)!) + β(M² − n)/2n."""
    n, t = 100, 1.5
    k = np.arange(n + 1)
    binomial = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    truth = logsumexp(binomial + ((2 * k - n) ** 2 - n) / (2 * n * t))
    naive, tap = (
        abs(float(anneal_mean_field(ferromagnet(n), [t], order=o).log_partition[0, 0]) - truth)
        for o in (1, 2)
    )
    assert naive < math.log(n)
    assert tap < naive / 1.5


# Annealing


def test_annealing_finds_ground_states_that_a_quench_misses():
    """Spin glasses of 16 spins from the same 8 random starts, at 16 temperatures or at one.

    Over 40 glasses 0.83 ± 0.06 of the annealed states and 0.39 ± 0.04 of the quenched ones are
    ground states.
    """
    annealed, quenched = [], []
    for seed in range(16):
        model = random_machine(16, 1 / math.sqrt(16), bias=0.0, seed=seed)
        ground = exact_boltzmann(model).ground_energy
        start = 2 * RandomStream(seed).uniform_(torch.empty(8, 16).double()) - 1
        for found, schedule in ((annealed, np.geomspace(2.0, 0.1, 16)), (quenched, [0.1])):
            states = anneal_mean_field(
                model, schedule, order=1, start=start, random=RandomStream(seed), tolerance=1e-3
            )
            energy = model.energy(states.final.sign()).detach()
            found.append(float((energy < ground + 1e-9).double().mean()))
    assert np.mean(annealed) > 0.65
    assert np.mean(annealed) > np.mean(quenched) + 0.2


def test_cooling_lowers_the_entropy_and_the_energy():
    model = random_machine(10, 0.3, seed=1)
    states = anneal_mean_field(model, np.geomspace(10, 0.2, 15), order=1, random=RandomStream(0))
    assert bool((states.entropy[:, 0].diff() < 0).all())
    assert bool((states.energy[:, 0].diff() < 0).all())
    assert float(states.entropy[-1, 0]) >= 0


def test_the_best_state_has_the_lowest_free_energy():
    model = random_machine(12, 0.5, bias=0.1, seed=2)
    start = 2 * RandomStream(0).uniform_(torch.empty(30, 12).double()) - 1
    states = anneal_mean_field(model, [0.3], order=1, start=start)
    assert len(set(states.free_energy[0].numpy().round(6))) > 1
    assert float(states.free_energy[0, states.best]) == float(states.free_energy.min())


def test_one_seed_gives_one_annealing():
    model = random_machine(10, 0.5)
    a, b = (
        anneal_mean_field(model, [2.0, 0.8], order=1, n_starts=5, random=RandomStream(3))
        for _ in range(2)
    )
    assert torch.equal(a.magnetization, b.magnetization)


# Extremes, alarms and errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("strength", [1e4, -1e4])
@ORDERS
@UNITS
def test_huge_couplings_and_fields_stay_finite(unit, order, strength, dtype):
    coupling = strength * (1 - torch.eye(4, dtype=dtype))
    bias = torch.tensor([1e4, -1e4, 0.0, 1.0], dtype=dtype)
    model = BoltzmannMachine.from_coupling(coupling, bias, unit=unit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MeanFieldWarning)
        states = anneal_mean_field(
            model, [1e5, 10.0, 1.0], order=order, random=RandomStream(0), max_iter=50
        )
    for name in ("magnetization", "free_energy", "energy", "entropy"):
        assert bool(getattr(states, name).isfinite().all()), name
    response = linear_response(model, states.final, order=order)
    assert bool(response.covariance.isfinite().all())


@pytest.mark.parametrize("strength", [1e4, -1e4])
def test_a_huge_coupling_aligns_or_opposes_a_pair(strength):
    coupling = torch.tensor([[0.0, strength], [strength, 0.0]], dtype=torch.float64)
    pair = BoltzmannMachine.from_coupling(coupling)
    states = anneal_mean_field(pair, [1e5, 1.0], order=1, n_starts=4, random=RandomStream(0))
    assert_allclose(states.final[:, 0] * states.final[:, 1], math.copysign(1, strength))
    assert_allclose(states.energy[-1], -1e4)
    assert_allclose(states.entropy[-1], 0, atol=1e-12)


def test_a_state_that_does_not_converge_is_reported():
    with pytest.warns(NotConvergedWarning, match="did not converge"):
        states = anneal_mean_field(random_machine(6, 0.5), [1.0], max_iter=2)
    assert not bool(states.converged.any())
    assert states.n_iter.tolist() == [[2]]


def test_a_negative_entropy_is_reported():
    """TAP takes the symmetric state to be cold, S₀ − β²/4 Σ J² c c, where it is not one."""
    with pytest.warns(NegativeEntropyWarning, match="entropy of some states is negative"):
        states = anneal_mean_field(ferromagnet(4), [0.1])
    assert float(states.entropy[0, 0]) == pytest.approx(4 * math.log(2) - 100 / 4 * 12 / 16)


def test_results_show_themselves():
    state = anneal_mean_field(random_machine(5, 0.0, bias=0.0), [2.0, 1.0], n_starts=3)
    assert repr(state) == (
        "AnnealedMeanField(order=2, temperature=2 to 1, n_states=3, free_energy=-3.46574, "
        "energy=0, entropy=3.46574, converged=6/6)"
    )
    assert repr(exact_boltzmann(ferromagnet(1, 1.0))) == (
        "ExactBoltzmann(beta=1, log_partition=1.12693, free_energy=-1.12693, energy=-0.761594, "
        "entropy=0.365334, ground_energy=-1)"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperatures": []}, "at least one temperature"),
        ({"temperatures": [1.0, 0.0]}, r"positive and finite, got \[1.0, 0.0\]"),
        ({"temperatures": [math.inf]}, "positive and finite"),
        ({"order": 3}, "order must be 1 or 2, got 3"),
        ({"damping": 1.0}, r"\[0, 1\), got 1.0"),
        ({"kick": -0.1}, r"kick must lie in \[0, 1\), got -0.1"),
        ({"max_iter": 0}, "at least 1, got 0"),
        ({"clamp": torch.zeros(4)}, r"shape \(3,\) or \(n_states, 3\), got \(4,\)"),
        ({"clamp": torch.full((3,), 2.0)}, r"values in \[-1, 1\]"),
        ({"clamp": torch.zeros(2, 3), "n_starts": 5}, "5 states do not fit 2 rows"),
        ({"start": torch.zeros(3)}, r"shape \(n_states, 3\), got \(3,\)"),
        ({"start": torch.zeros(2, 3), "n_starts": 2}, "not both"),
        ({"n_starts": 0}, "0 states"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        anneal_mean_field(BoltzmannMachine(3), **{"temperatures": [1.0], **options})


# ---- several processes ---------------------------------------------------------------------------


@ORDERS
@pytest.mark.parametrize("size", [2, 6])
def test_states_of_several_processes_are_those_of_one(together, order, size):
    model = random_machine(6, 0.15)
    rows = torch.full((5, 6), NAN, dtype=torch.float64)
    rows[:, :2] = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1], [1, NAN]])
    one = anneal_mean_field(model, [2.0, 1.0], clamp=rows, order=order, tolerance=1e-13)
    several = together(
        size,
        lambda group: anneal_mean_field(
            model, [2.0, 1.0], clamp=rows, order=order, tolerance=1e-13, group=group
        ),
    )
    for states in several:
        assert bool(states.converged.all())
        # What has converged moves on while others have not, within the tolerance.
        assert_allclose(states.magnetization, one.magnetization, rtol=0, atol=1e-11)
        for name in ("free_energy", "energy", "entropy"):
            assert_allclose(getattr(states, name), getattr(one, name), rtol=0, atol=1e-11)
            assert_array_equal(getattr(states, name), getattr(several[0], name))
        assert_array_equal(states.n_iter, one.n_iter)


def test_starts_of_several_processes_are_kicked_apart(together):
    """Below its critical temperature a ferromagnet has two states, and each start finds one."""

    def work(group):
        return anneal_mean_field(
            ferromagnet(50),
            [1.5, 0.8],
            order=1,
            n_starts=12,
            random=RandomStream(0),
            group=group,
        )

    found = together(3, work)
    m = found[0].final.mean(-1)
    side = brentq(lambda x: math.tanh((1 - 1 / 50) * x / 0.8) - x, 0.1, 1.0)
    assert_allclose(m.abs(), side, rtol=1e-6)
    # All on one side once in two thousand times; the same sides in all processes likewise.
    assert len(m.sign().unique()) == 2
    assert len(m.sign().reshape(3, 4).unique(dim=0)) > 1
    for states in (*found[1:], together(3, work)[0]):
        assert_array_equal(states.magnetization, found[0].magnetization)

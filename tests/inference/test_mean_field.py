"""The mean-field expansion against enumeration, its own derivatives and the equations on paper."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from freenergy.inference import (
    MeanFieldWarning,
    NegativeEntropyWarning,
    NotConvergedWarning,
    exact,
    mean_field,
    mean_field_gradient,
)
from freenergy.inference.mean_field import PlefkaExpansion
from freenergy.models import RBM, Bernoulli

PAIRS = list(itertools.product(("bernoulli", "spin"), repeat=2))
UNITS = pytest.mark.parametrize("units", PAIRS, ids="-".join)
ORDERS = pytest.mark.parametrize("order", [1, 2, 3])
BETAS = pytest.mark.parametrize("beta", [0.6, 1.0, 1.7])
# A spin spans twice the range of a bit: at these couplings all pairs of units have like energies.
SPAN = {"bernoulli": 1, "spin": 2, "ternary": 2}


@pytest.fixture(autouse=True)
def unexpected_warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", MeanFieldWarning)
        yield


def models(rbm, units, scale, sizes=(12, 8), n=30):
    for seed in range(n):
        yield rbm(
            *sizes,
            visible=units[0],
            hidden=units[1],
            scale=scale / (SPAN[units[0]] * SPAN[units[1]]),
            seed=seed,
        )


def errors(model: RBM, order: int) -> tuple[float, float]:
    """Largest magnetisation error, and error of ln Z, against enumeration."""
    state, truth = mean_field(model, order), exact(model)
    magnetisation = max(
        float((state.visible[0] - truth.visible).abs().max()),
        float((state.hidden[0] - truth.hidden).abs().max()),
    )
    return magnetisation, abs(float(state.log_partition[0]) - truth.log_partition)


def kappa(m: np.ndarray, unit) -> tuple[np.ndarray, np.ndarray]:
    """Second and third cumulant of a unit with this mean, as written in the papers."""
    if unit.name == "bernoulli":
        c = m * (1 - m)
        return c, 2 * c * (0.5 - m)
    return 1 - m**2, -2 * m * (1 - m**2)


# Against enumeration


@UNITS
@pytest.mark.parametrize("scale", [0.1, 0.05])
def test_each_order_is_closer_to_enumeration(rbm, units, scale):
    """30 models of 12 × 8 units: mean of the largest magnetisation error, and of ln Z's."""
    found = [[errors(model, n) for n in (1, 2, 3)] for model in models(rbm, units, scale)]
    magnetisation, log_z = np.mean(found, axis=0).T
    naive, tap2, tap3 = magnetisation / SPAN[units[0]]
    assert tap2 < naive / 30
    assert tap3 < tap2 / (3 if scale == 0.1 else 6)
    assert tap2 < (1e-4 if scale == 0.1 else 1e-5)
    assert tap3 < (1e-5 if scale == 0.1 else 1e-6)
    assert log_z[1] < log_z[0] / 500
    assert log_z[2] < log_z[1]


@pytest.mark.parametrize(
    ("scale", "naive", "tap2", "tap3"),
    [
        (0.3, (1.7e-2, 0.21), (1.1e-3, 1.0e-3), (2.4e-4, 1.2e-3)),
        (0.1, (1.6e-3, 2.6e-2), (2.9e-5, 2.0e-5), (3.9e-6, 1.4e-5)),
        (0.05, (3.7e-4, 6.6e-3), (3.6e-6, 1.9e-6), (2.1e-7, 8.5e-7)),
    ],
)
def test_errors_have_the_known_size(rbm, scale, naive, tap2, tap3):
    """Within a factor of 1.5, over other random models than those of the note."""
    found = [
        [errors(m, n) for n in (1, 2, 3)] for m in models(rbm, ("bernoulli", "bernoulli"), scale)
    ]
    ratio = np.mean(found, axis=0) / np.array([naive, tap2, tap3])
    assert ratio.min() > 1 / 1.5
    assert ratio.max() < 1.5


class FourThirds(Bernoulli):
    """A trap: 4/3 for 2/3 in the third-order term, as one library had it."""

    def cumulant3(self, mean):
        return math.sqrt(2) * super().cumulant3(mean)

    def cumulant3_slope(self, mean):
        return math.sqrt(2) * super().cumulant3_slope(mean)


class NoOneHalf(Bernoulli):
    """A trap: m²(1 − m) for c(½ − m), as a widely copied code has it."""

    def cumulant3(self, mean):
        return 2 * mean**2 * (1 - mean)

    def cumulant3_slope(self, mean):
        return 4 * mean - 6 * mean**2


@pytest.mark.parametrize("trap", [FourThirds, NoOneHalf])
def test_a_wrong_third_order_loses_what_the_right_one_gains(rbm, trap):
    right, second, wrong = [], [], []
    for model in models(rbm, ("bernoulli", "bernoulli"), 0.05, n=10):
        right.append(errors(model, 3)[0])
        second.append(errors(model, 2)[0])
        model.visible = model.hidden = trap()
        wrong.append(errors(model, 3)[0])
    assert np.mean(right) < np.mean(second) / 10
    assert np.mean(wrong) > np.mean(second) / 1.5


@pytest.mark.parametrize("units", [("ternary", "ternary"), ("ternary", "bernoulli")], ids="-".join)
def test_units_that_a_user_defines_get_the_reaction_term_too(rbm, table, units):
    found = []
    for model in models(rbm, units, 0.2, sizes=(5, 4), n=4):
        reference, row = table(model), []
        for order in (1, 2, 3):
            state = mean_field(model, order)
            row.append(
                (
                    np.abs(state.visible[0].numpy() - reference.visible).max(),
                    np.abs(state.hidden[0].numpy() - reference.hidden).max(),
                    abs(float(state.log_partition[0]) - reference.log_partition),
                )
            )
        found.append(row)
    naive, tap2, tap3 = np.mean(found, axis=0)
    assert (tap2 < naive / 10).all()
    assert (tap3[:2] < tap2[:2] / 2).all()
    assert tap3[2] < tap2[2]


@ORDERS
@UNITS
def test_without_couplings_every_order_is_exact(rbm, units, order):
    model = rbm(12, 8, visible=units[0], hidden=units[1], scale=0.0, bias=2.0)
    state, truth = mean_field(model, order, beta=1.3), exact(model, 1.3)
    assert float(state.log_partition[0]) == pytest.approx(truth.log_partition, abs=1e-13)
    assert float(state.energy[0]) == pytest.approx(truth.energy, abs=1e-13)
    assert float(state.entropy[0]) == pytest.approx(truth.entropy, abs=1e-12)
    assert_allclose(state.hidden[0], truth.hidden, atol=1e-14)


def test_naive_mean_field_is_a_lower_bound_and_the_others_are_not(rbm):
    overshoots = 0
    for model in models(rbm, ("bernoulli", "bernoulli"), 0.5, n=10):
        truth = exact(model).log_partition
        assert float(mean_field(model, 1).log_partition[0]) < truth
        overshoots += float(mean_field(model, 2).log_partition[0]) > truth
    assert overshoots > 0


# At the fixed point


@ORDERS
@UNITS
@BETAS
def test_the_fixed_point_is_stationary(rbm, units, order, beta):
    for model in models(rbm, units, 0.8, sizes=(9, 7), n=3):
        state = mean_field(model, order, beta=beta)
        v, h = state.visible.clone().requires_grad_(), state.hidden.clone().requires_grad_()
        terms = PlefkaExpansion(model, order, beta).terms(v, h)
        for slope in torch.autograd.grad(terms.sum(), (v, h)):
            assert float(slope.abs().max()) < 1e-8
        assert bool(state.converged.all())


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_fixed_point_of_any_unit_type_is_stationary(rbm, order):
    """Central differences, as the ternary unit's own inverse has no automatic derivative."""
    model = rbm(4, 3, scale=0.5, visible="ternary", hidden="ternary")
    state = mean_field(model, order)
    expansion = PlefkaExpansion(model, order)
    for i in range(4):
        step = torch.zeros_like(state.visible)
        step[0, i] = 1e-4
        up = expansion.terms(state.visible + step, state.hidden).sum().detach()
        down = expansion.terms(state.visible - step, state.hidden).sum().detach()
        assert abs(float(up - down)) / 2e-4 < 1e-7


@pytest.mark.parametrize("unit", ["bernoulli", "spin"])
def test_second_order_is_the_tilt_of_a_binary_unit(rbm, unit):
    """m = mean(B, A) with A = −β² Σ W² κ₂ and B = β(b + Σ W m') + A m (Tramel et al. 2017)."""
    beta = 1.3
    model = rbm(6, 5, scale=0.4, visible=unit, hidden=unit)
    state = mean_field(model, 2, beta=beta)
    with torch.no_grad():
        tilt = -(beta**2) * (model.hidden.cumulant2(state.hidden) @ (model.weight**2).T)
        field = model.visible_field(state.hidden, beta) + tilt * state.visible
        assert_allclose(model.visible.mean(field, tilt), state.visible, rtol=0, atol=1e-9)


@pytest.mark.parametrize("order", [2, 3])
def test_the_fixed_point_solves_the_equation_on_paper(rbm, order):
    """0/1 units: m = σ(a + Wm + (½−m) W²c + (⅓−2c) W³c(½−m))."""
    model = rbm(9, 7, scale=0.6)
    state = mean_field(model, order)
    W, a, b = (p.detach().numpy() for p in model.parameters())
    m, n = state.visible[0].numpy(), state.hidden[0].numpy()
    for mine, other, bias, w in ((m, n, a, W), (n, m, b, W.T)):
        c, d = mine * (1 - mine), other * (1 - other)
        field = bias + w @ other + (0.5 - mine) * (w**2 @ d)
        if order == 3:
            field += (1 / 3 - 2 * c) * (w**3 @ (d * (0.5 - other)))
        assert_allclose(mine, 1 / (1 + np.exp(-field)), rtol=0, atol=2e-10)


@UNITS
@BETAS
def test_contributions_are_the_terms_of_the_expansion_by_order(rbm, units, beta):
    model = rbm(9, 7, visible=units[0], hidden=units[1], scale=0.2)
    state = mean_field(model, 3, beta=beta)
    W, a, b = (p.detach().numpy() for p in model.parameters())
    m, n = state.visible[0].numpy(), state.hidden[0].numpy()
    entropy = 0.0
    for unit, mean in ((model.visible, m), (model.hidden, n)):
        p = mean if unit.name == "bernoulli" else (1 + mean) / 2
        entropy -= (p * np.log(p) + (1 - p) * np.log(1 - p)).sum()
    (c, k), (d, q) = kappa(m, model.visible), kappa(n, model.hidden)
    expected = [
        -entropy,
        -beta * (a @ m + b @ n + m @ W @ n),
        -(beta**2) / 2 * c @ W**2 @ d,
        -(beta**3) / 6 * k @ W**3 @ q,
    ]
    assert_allclose(state.contributions[0], expected, rtol=1e-12)
    for order in (1, 2):
        terms = PlefkaExpansion(model, order, beta).terms(state.visible, state.hidden)
        assert_allclose(terms.detach(), state.contributions[:, : order + 1], rtol=1e-14)


@UNITS
@BETAS
@ORDERS
def test_free_energy_is_energy_minus_temperature_times_entropy(rbm, units, beta, order):
    model = rbm(9, 7, visible=units[0], hidden=units[1], scale=0.2)
    state = mean_field(model, order, beta=beta)
    assert_allclose(state.free_energy, state.energy - state.entropy / beta, rtol=1e-14)
    assert_allclose(state.log_partition, -beta * state.free_energy, rtol=1e-15)
    assert_allclose(state.log_partition, -state.contributions.sum(-1), rtol=1e-14)


def slope(f, x: float) -> float:
    """Derivative, to fourth order in the step."""
    d = 1e-3
    a, b, c, e = (f(x + k * d) for k in (-2, -1, 1, 2))
    return (a - 8 * b + 8 * c - e) / (12 * d)


@UNITS
@BETAS
@ORDERS
def test_energy_and_entropy_are_derivatives_of_the_free_energy(rbm, units, beta, order):
    """U = ∂(βΓ)/∂β and S = −∂Γ/∂T, the fixed point solved afresh at each temperature."""
    model = rbm(9, 7, visible=units[0], hidden=units[1], scale=0.15, seed=1)

    def free_energy(b: float) -> float:
        return float(mean_field(model, order, beta=b, tolerance=1e-13).free_energy[0])

    state = mean_field(model, order, beta=beta, tolerance=1e-13)
    u = slope(lambda b: b * free_energy(b), beta)
    s = -slope(lambda t: free_energy(1 / t), 1 / beta)
    assert float(state.energy[0]) == pytest.approx(u, abs=1e-8)
    assert float(state.entropy[0]) == pytest.approx(s, abs=1e-8)
    if order > 1:
        naive = float(state.contributions[0, 1]) / beta
        assert abs(naive - u) > 1e-3, "U is not the energy of the first order alone"


@ORDERS
@BETAS
def test_mean_field_is_the_same_for_spins_and_for_bits(rbm, order, beta):
    """The expansion must not depend on what the two values of a unit are called."""
    spins = rbm(8, 6, visible="spin", hidden="spin", scale=0.2)
    bits = RBM(8, 6, dtype=torch.float64)
    with torch.no_grad():
        bits.weight.copy_(4 * spins.weight)
        bits.visible_bias.copy_(2 * spins.visible_bias - 2 * spins.weight.sum(1))
        bits.hidden_bias.copy_(2 * spins.hidden_bias - 2 * spins.weight.sum(0))
        constant = spins.visible_bias.sum() + spins.hidden_bias.sum() - spins.weight.sum()
    a, b = (mean_field(m, order, beta=beta, tolerance=1e-13) for m in (spins, bits))
    assert_allclose(a.visible, 2 * b.visible - 1, atol=1e-12)
    assert_allclose(a.log_partition, b.log_partition - beta * float(constant), atol=1e-12)
    assert_allclose(a.energy, b.energy + float(constant), atol=1e-10)
    assert_allclose(a.entropy, b.entropy, atol=1e-10)


# The gradient


@ORDERS
@UNITS
@BETAS
def test_the_closed_gradient_is_that_of_autograd(rbm, units, order, beta):
    """Also averaged over several states, here ones that a few sweeps leave anywhere."""
    model = rbm(9, 7, visible=units[0], hidden=units[1], scale=0.5)
    start = torch.rand(5, 9, generator=torch.Generator().manual_seed(0)).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MeanFieldWarning)
        state = mean_field(model, order, beta=beta, start=start, max_iter=2)
    closed = mean_field_gradient(model, state)
    auto = mean_field_gradient(model, state, autograd=True)
    for name in ("weight", "visible_bias", "hidden_bias"):
        assert_allclose(getattr(closed, name), getattr(auto, name), rtol=0, atol=1e-12)
    assert repr(closed) == "MeanFieldGradient(n_visible=9, n_hidden=7)"
    assert all(p.grad is None for p in model.parameters())


@UNITS
@BETAS
def test_the_gradient_approaches_the_exact_one(rbm, units, beta):
    found = []
    for model in models(rbm, units, 0.1, n=10):
        truth, row = exact(model, beta), []
        for order in (1, 2, 3):
            gradient = mean_field_gradient(model, mean_field(model, order, beta=beta))
            row.append(
                (
                    float((gradient.weight - beta * truth.correlation).abs().max()),
                    float((gradient.visible_bias - beta * truth.visible).abs().max()),
                    float((gradient.hidden_bias - beta * truth.hidden).abs().max()),
                )
            )
        found.append(row)
    naive, tap2, tap3 = np.mean(found, axis=0)
    assert (tap2 < naive / 10).all()
    assert (tap3 < tap2 / 1.5).all()


@ORDERS
@UNITS
def test_the_gradient_is_the_slope_of_log_partition_in_each_parameter(rbm, units, order):
    """The fixed point solved afresh: its own motion must not contribute."""
    beta, d = 1.3, 1e-4
    model = rbm(6, 5, visible=units[0], hidden=units[1], scale=0.3, seed=2)

    def log_partition() -> float:
        return float(mean_field(model, order, beta=beta, tolerance=1e-13).log_partition[0])

    gradient = mean_field_gradient(
        model, mean_field(model, order, beta=beta, tolerance=1e-13), autograd=False
    )
    for name, index in (
        ("weight", (0, 0)),
        ("weight", (3, 2)),
        ("weight", (5, 4)),
        ("visible_bias", (1,)),
        ("hidden_bias", (4,)),
    ):
        parameter = getattr(model, name).data
        value = parameter[index].item()
        parameter[index] = value + d
        above = log_partition()
        parameter[index] = value - d
        below = log_partition()
        parameter[index] = value
        numerical = (above - below) / (2 * d)
        assert float(getattr(gradient, name)[index]) == pytest.approx(numerical, abs=2e-8)


def test_the_gradient_of_several_states_is_their_mean(rbm):
    model = rbm(9, 7, scale=0.5)
    start = torch.eye(9).double()[:4]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MeanFieldWarning)
        together = mean_field_gradient(model, mean_field(model, 3, start=start, max_iter=2))
        alone = [
            mean_field_gradient(model, mean_field(model, 3, start=row[None], max_iter=2))
            for row in start
        ]
    for name in ("weight", "visible_bias", "hidden_bias"):
        mean = sum(getattr(g, name) for g in alone) / 4
        assert_allclose(getattr(together, name), mean, rtol=0, atol=1e-14)


# The iteration


@ORDERS
@pytest.mark.parametrize("damping", [0.0, 0.5, 0.8])
def test_one_sweep_updates_hidden_then_visible_units(rbm, order, damping):
    model, beta = rbm(6, 5, scale=0.5), 0.8
    start = torch.rand(3, 6, generator=torch.Generator().manual_seed(0)).double()
    with pytest.warns(NotConvergedWarning):
        state = mean_field(model, order, beta=beta, start=start, damping=damping, max_iter=1)
    W, a, b = (p.detach().numpy() for p in model.parameters())

    def target(mine, other, bias, w):
        """Stationarity on paper, at β; the odd powers of β are with the powers of W."""
        c, d = mine * (1 - mine), other * (1 - other)
        field = beta * (bias + other @ w)
        if order > 1:
            field = field + beta**2 * (0.5 - mine) * (d @ w**2)
        if order > 2:
            field = field + beta**3 * (1 / 3 - 2 * c) * ((d * (0.5 - other)) @ w**3)
        return 1 / (1 + np.exp(-field))

    v = start.numpy()
    h = 1 / (1 + np.exp(-beta * (b + v @ W)))
    new_h = target(h, v, b, W)
    kept = damping * h + (1 - damping) * new_h
    new_v = target(v, kept, a, W.T)
    assert_allclose(state.hidden, kept, atol=1e-14)
    assert_allclose(state.visible, damping * v + (1 - damping) * new_v, atol=1e-14)
    residual = np.maximum(np.abs(new_h - h).max(1), np.abs(new_v - v).max(1))
    assert_allclose(state.residual, residual, atol=1e-14)


def test_the_default_start_is_the_field_of_the_biases(rbm):
    model = rbm(9, 7, scale=0.3, visible="spin")
    default = mean_field(model, 2, beta=1.4)
    start = torch.tanh(1.4 * model.visible_bias.detach())[None]
    explicit = mean_field(model, 2, beta=1.4, start=start)
    assert_allclose(default.visible, explicit.visible, atol=1e-14)
    assert torch.equal(default.n_iter, explicit.n_iter)


def test_the_start_is_left_as_it_was(rbm):
    start = torch.ones(3, 9).double()
    mean_field(rbm(9, 7), 2, start=start)
    assert bool((start == 1).all())


@ORDERS
def test_starts_in_a_batch_are_solved_as_if_alone(rbm, order):
    model = rbm(9, 7, scale=0.8)
    start = torch.rand(6, 9, generator=torch.Generator().manual_seed(0)).double()
    batch = mean_field(model, order, start=start)
    for i, row in enumerate(start):
        alone = mean_field(model, order, start=row[None])
        assert_allclose(batch.visible[i], alone.visible[0], rtol=0, atol=1e-9)
        assert_allclose(batch.hidden[i], alone.hidden[0], rtol=0, atol=1e-9)
        assert_allclose(batch.contributions[i], alone.contributions[0], rtol=0, atol=1e-8)
        assert int(batch.n_iter[i]) == int(alone.n_iter[0])
        assert bool(batch.converged[i])
    assert len(set(batch.n_iter.tolist())) > 1, "the starts are no test if all take as long"


def test_n_iter_is_where_the_tolerance_is_reached(rbm):
    model = rbm(9, 7, scale=0.8)
    start = torch.rand(4, 9, generator=torch.Generator().manual_seed(0)).double()
    state = mean_field(model, 2, start=start, tolerance=1e-6)
    assert bool((state.residual <= 1e-6).all())
    for row, n in zip(start, state.n_iter.tolist(), strict=True):
        done = mean_field(model, 2, start=row[None], tolerance=1e-6, max_iter=n)
        assert bool(done.converged)
        assert float(done.residual) <= 1e-6
        with pytest.warns(NotConvergedWarning):
            early = mean_field(model, 2, start=row[None], tolerance=1e-6, max_iter=n - 1)
        assert not bool(early.converged)
        assert float(early.residual) > 1e-6
        assert int(early.n_iter) == n - 1


@ORDERS
def test_a_converged_state_stays_where_it_is(rbm, order):
    model = rbm(9, 7, scale=0.5)
    state = mean_field(model, order, beta=1.2)
    expansion = PlefkaExpansion(model, order, 1.2)
    with torch.no_grad():
        h = expansion.hidden_update(state.visible, state.hidden)
        v = expansion.visible_update(state.visible, state.hidden)
    assert float((h - state.hidden).abs().max()) <= 1e-10
    assert float((v - state.visible).abs().max()) <= 1e-10


def test_damping_leaves_the_fixed_point_alone(rbm):
    model = rbm(9, 7, scale=0.5)
    states = [mean_field(model, 3, damping=d).visible for d in (0.0, 0.5, 0.9)]
    assert_allclose(states[0], states[1], atol=1e-9)
    assert_allclose(states[2], states[1], atol=1e-8)


def test_sweeps_of_the_expansion_reach_the_same_point(rbm):
    model = rbm(9, 7, scale=0.5)
    v, h = torch.full((2, 9), 0.5).double(), torch.full((2, 7), 0.5).double()
    expansion = PlefkaExpansion(model, 3, 1.2)
    with torch.no_grad():
        for _ in range(100):
            expansion.sweep(v, h)
    state = mean_field(model, 3, beta=1.2)
    assert_allclose(v, state.visible.expand(2, 9), atol=1e-9)
    assert_allclose(h, state.hidden.expand(2, 7), atol=1e-9)


@torch.no_grad()
def test_an_expansion_follows_the_weights_when_refreshed(rbm):
    model = rbm(9, 7, scale=0.5)
    v, h = torch.full((2, 9), 0.3).double(), torch.full((2, 7), 0.6).double()
    expansion = PlefkaExpansion(model, 3)
    model.weight.mul_(0.5)
    expansion.refresh()
    fresh = PlefkaExpansion(model, 3)
    assert torch.equal(expansion.hidden_update(v, h), fresh.hidden_update(v, h))
    assert torch.equal(expansion.weight_gradient(v, h), fresh.weight_gradient(v, h))


@torch.no_grad()
def test_corrections_can_be_added_to_a_gradient(rbm):
    model = rbm(9, 7, scale=0.5)
    v, h = torch.rand(4, 9).double(), torch.rand(4, 7).double()
    expansion = PlefkaExpansion(model, 3, 0.8)
    first = PlefkaExpansion(model, 1, 0.8).weight_gradient(v, h)
    whole = expansion.weight_gradient(v, h)
    assert_allclose(expansion.add_corrections(first, v, h), whole, rtol=1e-12)


def test_single_precision_converges_too(rbm):
    model = rbm(30, 20, scale=0.1, dtype=torch.float32)
    state = mean_field(model, 3)
    assert state.visible.dtype == torch.float32
    double = mean_field(model.double(), 3)
    assert_allclose(state.log_partition, double.log_partition, rtol=1e-5)


# Breakdown


def test_what_did_not_converge_is_flagged_and_warned_of_once(rbm):
    model = rbm(9, 7, scale=0.5)
    start = torch.rand(5, 9, generator=torch.Generator().manual_seed(0)).double()
    with pytest.warns(MeanFieldWarning) as record:
        state = mean_field(model, 2, start=start, max_iter=1)
    assert [w.category for w in record] == [NotConvergedWarning]
    assert "did not converge" in str(record[0].message)
    assert record[0].filename == __file__, "the warning points at the caller"
    assert not state.converged.any()
    assert state.n_iter.tolist() == [1] * 5


def test_only_some_states_of_a_batch_may_fail(rbm):
    model = rbm(9, 7, scale=0.5)
    start = torch.cat([mean_field(model, 2).visible, torch.ones(1, 9).double()])
    fast, slow = mean_field(model, 2, start=start).n_iter.tolist()
    assert fast < slow
    with pytest.warns(NotConvergedWarning, match="did not converge"):
        state = mean_field(model, 2, start=start, max_iter=fast)
    assert state.converged.tolist() == [True, False]
    assert f"converged=1/2, n_iter={fast}" in repr(state)


def test_a_negative_entropy_is_warned_of_once(rbm):
    model = rbm(8, 6, scale=4.0, seed=1)
    start = torch.rand(5, 8, generator=torch.Generator().manual_seed(0)).double()
    with pytest.warns(MeanFieldWarning) as record:
        state = mean_field(model, 2, start=start)
    assert [w.category for w in record].count(NegativeEntropyWarning) == 1
    message = next(str(w.message) for w in record if w.category is NegativeEntropyWarning)
    assert bool((state.entropy < 0).any())
    assert "entropy of some states is negative" in message
    assert all(w.filename == __file__ for w in record)
    assert exact(model).entropy > 0


def test_a_weak_coupling_gives_no_warning(rbm):
    model = rbm(8, 6, scale=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for order in (1, 2, 3):
            mean_field(model, order, start=torch.ones(5, 8).double())


def test_warnings_can_be_filtered_by_class(rbm):
    model = rbm(8, 6, scale=4.0, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", MeanFieldWarning)
        mean_field(model, 2, max_iter=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        warnings.simplefilter("error", NegativeEntropyWarning)
        with pytest.raises(NegativeEntropyWarning):
            mean_field(model, 2)
    assert issubclass(NotConvergedWarning, UserWarning)


@pytest.mark.parametrize("coupling", [0.2, 0.3])
def test_a_cold_ferromagnet_has_two_states_whose_weights_add(rbm, coupling):
    """Spins without field: from two starts the two signs, and ln Σ e^{−βΓ} near ln Z."""
    model = rbm(10, 10, visible="spin", hidden="spin", scale=0.0, bias=0.0)
    with torch.no_grad():
        model.weight.fill_(coupling)
    start = torch.tensor([[0.9] * 10, [-0.9] * 10]).double()
    truth, error = exact(model), []
    for order in (1, 2, 3):
        state = mean_field(model, order, start=start)
        up, down = state.visible
        assert bool(state.converged.all())
        assert float(up.min()) > 0.9
        assert_allclose(up, -down, atol=1e-9)
        assert_allclose(state.hidden[0], up, atol=1e-9)
        assert_allclose(state.log_partition[0], state.log_partition[1], atol=1e-9)
        together = float(torch.logsumexp(state.log_partition, 0))
        error.append(abs(together - truth.log_partition))
    assert error[2] < error[1] / 2 < error[0] / 4
    assert error[1] < 0.01
    # Each state alone knows nothing of the other, ln 2 of the entropy.
    assert float(state.entropy[0]) == pytest.approx(truth.entropy - math.log(2), abs=0.03)
    assert_allclose(truth.visible, [0] * 10, atol=1e-12)


def test_above_the_transition_a_ferromagnet_has_one_state(rbm):
    model = rbm(10, 10, visible="spin", hidden="spin", scale=0.0, bias=0.0)
    with torch.no_grad():
        model.weight.fill_(0.08)
    state = mean_field(model, 1, start=torch.tensor([[0.9] * 10, [-0.9] * 10]).double())
    assert_allclose(state.visible, np.zeros((2, 10)), atol=1e-8)


# The interface


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 0}, "order must be 1, 2 or 3, got 0"),
        ({"order": 4}, "order must be 1, 2 or 3, got 4"),
        ({"order": "2"}, "order must be 1, 2 or 3, got '2'"),
        ({"damping": -0.1}, r"damping must lie in \[0, 1\), got -0.1"),
        ({"damping": 1.0}, r"damping must lie in \[0, 1\), got 1.0"),
        ({"beta": 0.0}, "beta must be positive, got 0.0"),
        ({"beta": -1.0}, "beta must be positive"),
        ({"beta": math.nan}, "beta must be positive"),
        ({"max_iter": 0}, "max_iter must be at least 1, got 0"),
        ({"start": torch.zeros(9)}, r"start must have shape \(n_starts, 9\), got \(9,\)"),
        ({"start": torch.zeros(2, 7)}, r"start must have shape \(n_starts, 9\), got \(2, 7\)"),
    ],
)
def test_impossible_options_are_refused(rbm, options, message):
    with pytest.raises(ValueError, match=message):
        mean_field(rbm(9, 7), **options)


def test_the_result_is_readable_and_frozen(rbm):
    state = mean_field(rbm(9, 7), 3, beta=0.5, start=torch.zeros(2, 9))
    text = repr(state)
    assert text.startswith("MeanField(order=3, beta=0.5, n_starts=2, free_energy=")
    assert f"entropy={float(state.entropy.mean()):.6g}, converged=2/2, n_iter=" in text
    for name in ("free_energy", "energy", "entropy", "converged", "n_iter", "residual"):
        assert getattr(state, name).shape == (2,)
    assert state.contributions.shape == (2, 4)
    assert not state.visible.requires_grad
    with pytest.raises(AttributeError):
        state.order = 2


def test_a_start_may_be_an_array(rbm):
    model = rbm(6, 4, scale=0.3)
    rows = np.eye(6)[:2]
    from_array = mean_field(model, 2, start=rows)
    from_tensor = mean_field(model, 2, start=torch.from_numpy(rows))
    assert bool((from_array.visible == from_tensor.visible).all())
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        mean_field(model, 2, start=2 * rows)


def test_a_place_warns_once_by_class(rbm):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for seed in range(4):
            mean_field(rbm(6, 4, scale=1.0 + seed), 2, max_iter=1)
    kinds = [w.category for w in caught if issubclass(w.category, NotConvergedWarning)]
    assert len(kinds) == 1

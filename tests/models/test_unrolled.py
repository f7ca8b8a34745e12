"""A net of mean-field sweeps against the sweeps, the equations on paper and finite differences."""

from __future__ import annotations

import copy
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch import nn

from freenergy.inference import MeanFieldWarning, mean_field
from freenergy.models import RBM, Spin, UnrolledRBM, fold, unroll

PAIRS = list(itertools.product(("bernoulli", "spin"), repeat=2))
UNITS = pytest.mark.parametrize("units", PAIRS, ids="-".join)
ORDERS = pytest.mark.parametrize("order", [1, 2, 3])
BETAS = pytest.mark.parametrize("beta", [0.6, 1.7])
DAMPINGS = pytest.mark.parametrize("damping", [0.0, 0.3])
TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
# A spin spans twice the range of a bit: at these couplings all pairs of units have like energies.
SPAN = {"bernoulli": 1, "spin": 2}


def machine(rbm, units=("bernoulli", "bernoulli"), scale=1.0, sizes=(9, 7), **options) -> RBM:
    scale /= SPAN[units[0]] * SPAN[units[1]]
    return rbm(*sizes, visible=units[0], hidden=units[1], scale=scale, **options)


def magnetisations(model: RBM, n: int) -> torch.Tensor:
    """Uncertain inputs, where the reaction of the visible units does not vanish."""
    low, high = model.visible.support
    draw = torch.rand(n, model.n_visible, generator=torch.Generator().manual_seed(0))
    return low + (high - low) * draw.to(model.weight.dtype)


def corners(model: RBM, n: int) -> torch.Tensor:
    """Inputs in the support of the visible units."""
    low, high = model.visible.support
    return low + (high - low) * (magnetisations(model, n) > (low + high) / 2).to(model.weight.dtype)


def sweeps(model: RBM, v, n: int, order=1, beta=1.0, damping=0.0) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MeanFieldWarning)
        state = mean_field(
            model, order, beta=beta, start=v, damping=damping, tolerance=0, max_iter=n
        )
    return state.hidden


def released(model: RBM, depth: int, **options) -> UnrolledRBM:
    """An untied net whose machines have gone ways of their own."""
    net = unroll(model, depth, tied=False, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.machines.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.3 * noise)
    return net


def uneven(output: torch.Tensor) -> torch.Tensor:
    """A scalar to which every entry contributes differently."""
    weight = torch.linspace(-1, 2, output.numel(), dtype=output.dtype)
    return (output * weight.view_as(output)).sum()


def gradients(net: UnrolledRBM, v) -> dict[str, torch.Tensor]:
    """Of a scalar of the output, summed over the machines."""
    net.zero_grad()
    uneven(net(v)).backward()
    total: dict[str, torch.Tensor] = {}
    for name, parameter in net.machines.named_parameters():
        if parameter.grad is not None:
            short = name.split(".")[1]
            total[short] = total.get(short, 0) + parameter.grad
    return total


# The function


@TIED
@UNITS
@ORDERS
@BETAS
@DAMPINGS
@torch.no_grad()
def test_depth_n_is_n_sweeps_of_mean_field(rbm, units, order, beta, damping, tied):
    model = machine(rbm, units)
    v = magnetisations(model, 4)
    net = unroll(model, 5, tied=tied, order=order, beta=beta, damping=damping)
    for n, hidden in enumerate(net.layers(v), start=1):
        reference = sweeps(model, v, n, order, beta, damping)
        assert_allclose(hidden, reference, rtol=0, atol=1e-13)
        alone = unroll(model, n, tied=tied, order=order, beta=beta, damping=damping)
        assert torch.equal(alone(v), hidden), "a net is the beginning of any deeper one"
    assert torch.equal(net.hidden(v), hidden)
    assert torch.equal(net(v), hidden)


@torch.no_grad()
def test_the_sweeps_differ_by_more_than_what_the_comparison_allows(rbm):
    """What the test above compares must depend on all that it varies."""
    model = machine(rbm)
    v = magnetisations(model, 4)
    found = [
        unroll(model, depth, order=order, beta=beta, damping=damping)(v)
        for depth, order, beta, damping in itertools.product(
            (4, 5), (1, 2, 3), (0.6, 1.7), (0.0, 0.3)
        )
    ]
    assert min(float((a - b).abs().max()) for a, b in itertools.combinations(found, 2)) > 1e-4


@torch.no_grad()
def test_the_default_is_the_sigmoid_network_on_paper(rbm):
    model = machine(rbm)
    v = magnetisations(model, 4)
    W, a, b = (p.detach().numpy() for p in model.parameters())

    def sigma(x):
        return 1 / (1 + np.exp(-x))

    h = sigma(b + v.numpy() @ W)
    for depth in (1, 2, 3):
        assert_allclose(unroll(model, depth)(v), h, rtol=0, atol=1e-14)
        h = sigma(b + sigma(a + h @ W.T) @ W)


def mean(field: np.ndarray, unit) -> np.ndarray:
    return 1 / (1 + np.exp(-field)) if unit.name == "bernoulli" else np.tanh(field)


def kappa(m: np.ndarray, unit) -> tuple[np.ndarray, ...]:
    """κ₂, κ₃ and their derivatives in the mean, as written in the papers."""
    if unit.name == "bernoulli":
        c = m * (1 - m)
        return c, 2 * c * (0.5 - m), 1 - 2 * m, 1 - 6 * c
    return 1 - m**2, -2 * m * (1 - m**2), -2 * m, 6 * m**2 - 2


@UNITS
@ORDERS
@torch.no_grad()
def test_a_layer_runs_its_own_machine_down_and_up(rbm, units, order):
    """On paper: f = β(b + Σ W m') + ½β² κ₂' Σ W² κ₂ + ⅙β³ κ₃' Σ W³ κ₃."""
    beta, damping = 1.3, 0.2
    net = released(machine(rbm, units), 4, order=order, beta=beta, damping=damping)
    model = net.machines[0]
    v = magnetisations(model, 5)

    def update(m, unit, bias, w, other, other_unit):
        field = beta * (bias + other @ w)
        _, _, slope2, slope3 = kappa(m, unit)
        kappa2, kappa3, _, _ = kappa(other, other_unit)
        if order > 1:
            field = field + beta**2 / 2 * slope2 * (kappa2 @ w**2)
        if order > 2:
            field = field + beta**3 / 6 * slope3 * (kappa3 @ w**3)
        return damping * m + (1 - damping) * mean(field, unit)

    parameters = [[p.detach().numpy() for p in m.parameters()] for m in net.machines]
    W, _, b = parameters[0]
    m = v.numpy()
    h = mean(beta * (b + m @ W), model.hidden)
    expected = [h := update(h, model.hidden, b, W, m, model.visible)]
    for W, a, b in parameters[1:]:
        m = update(m, model.visible, a, W.T, h, model.hidden)
        h = update(h, model.hidden, b, W, m, model.visible)
        expected.append(h)
    assert_allclose(torch.stack(net.layers(v)), expected, rtol=0, atol=1e-13)


@UNITS
@ORDERS
@torch.no_grad()
def test_the_first_layer_is_the_conditional_mean_of_a_certain_input(rbm, units, order):
    """Units that are certain do not react; uncertain ones do, beyond first order."""
    model = machine(rbm, units)
    v = corners(model, 6)
    net = unroll(model, 1, order=order, beta=1.3, damping=0.3)
    assert_allclose(net(v), model.hidden_mean(v, 1.3), rtol=0, atol=1e-15)
    v = magnetisations(model, 6)
    moved = float((net(v) - model.hidden_mean(v, 1.3)).abs().max())
    assert moved == 0 if order == 1 else moved > 1e-3


@UNITS
@ORDERS
@BETAS
@torch.no_grad()
def test_a_deep_net_ends_in_a_mean_field_state(rbm, units, order, beta):
    """At couplings with one state it forgets its input, and its output is stationary."""
    model = machine(rbm, units, scale=0.4)
    hidden = unroll(model, 120, order=order, beta=beta, damping=0.2)(magnetisations(model, 4))
    state = mean_field(model, order, beta=beta, tolerance=1e-13)
    assert_allclose(hidden, state.hidden.expand_as(hidden), rtol=0, atol=1e-11)


@UNITS
@BETAS
@torch.no_grad()
def test_every_naive_layer_lowers_the_mean_field_free_energy(rbm, units, beta):
    """Γ at these hidden magnetisations, the visible ones at their best: F(h) − S(h)/β."""
    model = machine(rbm, units, scale=3.0)
    free_energy = torch.stack(
        [
            model.hidden_free_energy(h, beta) - model.hidden.entropy(h).sum(-1) / beta
            for h in unroll(model, 12, beta=beta).layers(magnetisations(model, 20))
        ]
    )
    fall = -free_energy.diff(dim=0)
    assert float(fall.min()) > -1e-12
    assert float(fall[0].min()) > 1e-3


@ORDERS
@DAMPINGS
@torch.no_grad()
def test_the_net_is_the_same_for_spins_and_for_bits(rbm, order, damping):
    """What the two values of a unit are called must not matter: m = 2p − 1 in every layer."""
    spins = machine(rbm, ("spin", "spin"))
    bits = RBM(9, 7, dtype=torch.float64)
    bits.weight.copy_(4 * spins.weight)
    bits.visible_bias.copy_(2 * spins.visible_bias - 2 * spins.weight.sum(1))
    bits.hidden_bias.copy_(2 * spins.hidden_bias - 2 * spins.weight.sum(0))
    v = magnetisations(spins, 4)
    options = {"order": order, "beta": 1.2, "damping": damping}
    up = unroll(spins, 6, **options).layers(v)
    ones = unroll(bits, 6, **options).layers((1 + v) / 2)
    for m, p in zip(up, ones, strict=True):
        assert_allclose(m, 2 * p - 1, rtol=0, atol=1e-12)


@given(
    beta=st.floats(0.1, 3.0),
    order=st.sampled_from([1, 2, 3]),
    depth=st.integers(1, 8),
    damping=st.floats(0.0, 0.9),
    units=st.sampled_from(PAIRS),
)
@torch.no_grad()
def test_temperature_is_a_scale_of_the_parameters(rbm, beta, order, depth, damping, units):
    model = machine(rbm, units, scale=0.7)
    cold = copy.deepcopy(model)
    for parameter in cold.parameters():
        parameter.mul_(beta)
    v = magnetisations(model, 3)
    by_beta = unroll(model, depth, order=order, beta=beta, damping=damping)(v)
    by_scale = unroll(cold, depth, order=order, damping=damping)(v)
    assert_allclose(by_beta, by_scale, rtol=0, atol=1e-11)


@ORDERS
@torch.no_grad()
def test_leading_dimensions_are_a_batch(rbm, order):
    model = machine(rbm)
    v = magnetisations(model, 6)
    net = unroll(model, 3, order=order, head=4)
    with torch.no_grad():
        nn.init.normal_(net.head.weight, generator=torch.Generator().manual_seed(0))
    whole = net(v)
    assert whole.shape == (6, 4)
    assert_allclose(net(v.view(2, 3, 9)), whole.view(2, 3, 4), rtol=0, atol=1e-13)
    assert_allclose(net(v[2]), whole[2], rtol=0, atol=1e-13)
    assert net(v[:0]).shape == (0, 4)
    assert_allclose(net(v[:1]), whole[:1], rtol=0, atol=1e-13)


def test_units_that_a_user_defines_can_be_unrolled(rbm):
    model = rbm(5, 4, visible="ternary", hidden="ternary", scale=0.4)
    v = torch.linspace(-0.9, 0.9, 15).double().view(3, 5)
    with torch.no_grad():
        for order in (1, 2, 3):
            net = unroll(model, 4, order=order)
            assert_allclose(net(v), sweeps(model, v, 4, order), rtol=0, atol=1e-12)
    unroll(model, 4)(v).sum().backward()


# Gradients


@TIED
@ORDERS
@pytest.mark.parametrize("units", [("bernoulli", "bernoulli"), ("bernoulli", "spin")], ids="-".join)
def test_gradients_are_those_of_finite_differences(rbm, units, order, tied):
    net = unroll(
        machine(rbm, units, sizes=(4, 3)),
        3,
        tied=tied,
        order=order,
        beta=1.2,
        damping=0.2,
        head=2,
    )
    nn.init.normal_(net.head.weight, generator=torch.Generator().manual_seed(0))
    read = {name: p for name, p in net.named_parameters() if p.requires_grad}
    v = magnetisations(net.machines[0], 2).requires_grad_()

    def output(v, *values):
        return torch.func.functional_call(net, dict(zip(read, values, strict=True)), (v,))

    values = [p.detach().clone().requires_grad_() for p in read.values()]
    assert torch.autograd.gradcheck(output, (v, *values))


@UNITS
@ORDERS
@DAMPINGS
def test_untied_gradients_add_up_to_the_tied_one(rbm, units, order, damping):
    model = machine(rbm, units)
    v = magnetisations(model, 4)
    tied = unroll(model, 6, order=order, beta=1.3, damping=damping)
    untied = tied.untie()
    whole, parts = gradients(tied, v), gradients(untied, v)
    assert set(whole) == set(parts) == {"weight", "visible_bias", "hidden_bias"}
    for name, gradient in whole.items():
        assert float(gradient.abs().max()) > 1e-4
        assert_allclose(parts[name], gradient, rtol=0, atol=1e-12)
    for layer, own in enumerate(untied.machines):
        for name, parameter in own.named_parameters():
            reached = parameter.grad is not None and bool((parameter.grad != 0).any())
            assert reached == (layer > 0 or name != "visible_bias")


@pytest.mark.parametrize("depth", [1, 2])
@TIED
def test_every_parameter_that_is_not_frozen_has_a_gradient(rbm, depth, tied):
    net = unroll(machine(rbm), depth, tied=tied, order=2, head=3)
    net(magnetisations(net.machines[0], 4)).sum().backward()
    for parameter in net.parameters():
        assert parameter.requires_grad == (parameter.grad is not None)
    frozen = [name for name, p in net.named_parameters() if not p.requires_grad]
    assert frozen == ([] if tied and depth > 1 else ["machines.0.visible_bias"])


@ORDERS
def test_the_gradient_of_a_reaction_reaches_the_powers_of_the_weights(rbm, order):
    """Detached, W² and W³ would leave only the first-order part of the gradient."""
    model = machine(rbm)
    v = magnetisations(model, 4)
    net = unroll(model, 2, order=order)
    auto = gradients(net, v)["weight"]
    step = 1e-5
    ends = []
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            moved.weight[3, 2] += sign * step
        ends.append(float(uneven(sweeps(moved, v, 2, order))))
    assert float(auto[3, 2]) == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-8)


class Hyperbolic(Spin):
    """A spin whose mean keeps its field for the gradient."""

    def mean(self, field, tilt=None, out=None):
        return field.sinh() / field.cosh()


@ORDERS
def test_a_unit_may_need_its_field_for_the_gradient(rbm, order):
    model = machine(rbm, ("spin", "spin"))
    v = magnetisations(model, 4)
    plain = gradients(unroll(model, 3, order=order), v)
    model.visible = model.hidden = Hyperbolic()
    for name, gradient in gradients(unroll(model, 3, order=order), v).items():
        assert_allclose(gradient, plain[name], rtol=0, atol=1e-12)


@TIED
def test_backpropagation_lowers_a_loss_and_leaves_the_machine_alone(rbm, tied):
    model = machine(rbm, scale=0.3)
    before = copy.deepcopy(model.state_dict())
    v = corners(model, 40)
    label = v[:, 0].long()
    net = unroll(model, 2, tied=tied, order=2, head=2)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
    for _ in range(100):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(net(v), label)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.05
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert (fold(net).weight - model.weight).abs().max().item() > 0.1


# Untying and folding


@ORDERS
def test_untying_leaves_the_function_as_it_was(rbm, order):
    net = unroll(machine(rbm), 5, order=order, beta=1.3, damping=0.2, head=3)
    nn.init.normal_(net.head.weight, generator=torch.Generator().manual_seed(0))
    free = net.untie()
    v = magnetisations(net.machines[0], 4)
    assert torch.equal(free(v), net(v))
    assert (net.tied, len(net.machines)) == (True, 1)
    assert (free.tied, len(free.machines)) == (False, 5)
    again = free.untie()
    assert torch.equal(again(v), net(v))
    with torch.no_grad():
        for other in (free, again):
            for parameter in other.parameters():
                parameter.zero_()
    for parameter in (net.machines[0].weight, net.head.weight):
        assert bool((parameter != 0).all()), "the copies share nothing with the net"


def test_a_released_net_stays_released(rbm):
    net = released(machine(rbm), 3)
    again = net.untie()
    v = magnetisations(net.machines[0], 4)
    assert torch.equal(again(v), net(v))
    assert not torch.equal(again.machines[0].weight, again.machines[1].weight)


@TIED
@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_folding_undoes_unrolling_to_the_bit(rbm, depth, dtype, tied):
    model = machine(rbm, ("spin", "bernoulli"), dtype=dtype)
    folded = fold(unroll(model, depth, tied=tied, head=3))
    assert type(folded) is RBM
    assert (folded.visible, folded.hidden) == (model.visible, model.hidden)
    for name, parameter in folded.named_parameters():
        original = model.get_parameter(name)
        assert torch.equal(parameter, original)
        assert parameter.dtype == dtype
        assert parameter.requires_grad
        assert parameter.data_ptr() != original.data_ptr()
    assert all(p.grad is None for p in folded.parameters())


def test_folding_averages_what_each_layer_has_learned(rbm):
    """The visible biases over the layers that come down, which the first does not."""
    net = released(machine(rbm), 4)
    folded = fold(net)
    for name, layers in (
        ("weight", range(4)),
        ("hidden_bias", range(4)),
        ("visible_bias", (1, 2, 3)),
    ):
        copies = [net.machines[n].get_parameter(name).detach().numpy() for n in layers]
        assert_allclose(folded.get_parameter(name).detach(), np.mean(copies, 0), rtol=1e-14)
    with torch.no_grad():
        folded.weight.zero_()
    assert bool((net.machines[0].weight != 0).any()), "the folded machine is a copy"


def test_a_trained_tied_net_folds_into_its_machine(rbm):
    net = unroll(machine(rbm), 3)
    with torch.no_grad():
        net.machines[0].weight.mul_(-2)
    for name, parameter in fold(net).named_parameters():
        assert torch.equal(parameter, net.machines[0].get_parameter(name))


# Extremes


@ORDERS
@UNITS
@TIED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_deep_nets_and_huge_weights_stay_finite(rbm, units, order, dtype, scale, tied):
    model = machine(rbm, units, scale=scale, bias=scale, dtype=dtype)
    net = unroll(model, 30, tied=tied, order=order, head=3)
    nn.init.normal_(net.head.weight, generator=torch.Generator().manual_seed(0))
    v = torch.cat([magnetisations(model, 3), corners(model, 3)])
    low, high = model.hidden.support
    for hidden in net.layers(v):
        assert bool(((hidden >= low) & (hidden <= high)).all())
    nn.functional.cross_entropy(net(v), torch.arange(6) % 3).backward()
    for parameter in net.parameters():
        assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all())


@ORDERS
def test_saturated_units_keep_the_sign_of_their_field(rbm, order):
    """Biases of ±1e4 decide, whatever the couplings add: nothing reacts, nothing learns."""
    model = machine(rbm)
    sign = torch.tensor([1.0, -1.0]).double().repeat(5)
    with torch.no_grad():
        model.visible_bias.copy_(1e4 * sign[:9])
        model.hidden_bias.copy_(-1e4 * sign[:7])
    net = unroll(model, 30, order=order)
    v = magnetisations(model, 3)
    hidden = net(v)
    assert torch.equal(hidden, (sign[:7] < 0).double().expand(3, 7))
    hidden.sum().backward()
    assert all(bool((p.grad == 0).all()) for p in net.parameters())


@ORDERS
@torch.no_grad()
def test_without_couplings_every_layer_is_the_same(rbm, order):
    model = rbm(9, 7, scale=0.0, bias=2.0)
    for hidden in unroll(model, 4, order=order).layers(magnetisations(model, 3)):
        assert_allclose(hidden, torch.sigmoid(model.hidden_bias).expand(3, 7), rtol=1e-15)


@ORDERS
@torch.no_grad()
def test_single_precision_follows_double(rbm, order):
    model = machine(rbm, scale=0.5)
    v = magnetisations(model, 4)
    double = unroll(model, 30, order=order)(v)
    single = unroll(model, 30, order=order).float()(v.float())
    assert single.dtype == torch.float32
    assert_allclose(single, double, rtol=0, atol=2e-6)


# The interface


@TIED
def test_a_state_dict_carries_the_net(rbm, tied):
    net = unroll(machine(rbm), 3, tied=tied, order=2, head=4)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    other = unroll(machine(rbm, seed=5), 3, tied=tied, order=2, head=4)
    v = magnetisations(net.machines[0], 4)
    assert not torch.equal(other(v), net(v))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(v), net(v))
    storages = [t.data_ptr() for t in net.state_dict().values()]
    assert len(set(storages)) == len(storages), "safetensors refuses shared memory"


def test_a_linear_head_starts_at_equal_logits(rbm):
    model = machine(rbm, dtype=torch.float32)
    state = torch.get_rng_state()
    net = unroll(model, 2, head=np.int64(10))
    assert torch.equal(torch.get_rng_state(), state), "torch's own stream is not drawn from"
    v = magnetisations(model, 4)
    assert isinstance(net.head, nn.Linear)
    assert torch.equal(net(v), torch.zeros(4, 10))
    loss = nn.functional.cross_entropy(net(v), torch.arange(4))
    assert loss.item() == pytest.approx(math.log(10), abs=1e-6)
    assert torch.equal(net.hidden(v), unroll(model, 2)(v))


def test_a_head_may_be_any_module(rbm):
    head = nn.Sequential(nn.Linear(7, 5, dtype=torch.float64), nn.ReLU())
    net = unroll(machine(rbm), 2, head=head)
    v = magnetisations(net.machines[0], 4)
    assert torch.equal(net(v), head(net.hidden(v)))
    assert net.head is head
    assert set(head.parameters()) <= set(net.parameters())


def test_everything_is_made_where_the_machine_is():
    model = RBM(6, 4, device="meta", dtype=torch.float64)
    net = unroll(model, 3, tied=False, order=3, head=2)
    for parameter in net.parameters():
        assert parameter.device.type == "meta"
        assert parameter.dtype == torch.float64
    assert net(torch.empty(5, 6, device="meta", dtype=torch.float64)).shape == (5, 2)
    assert fold(net).weight.device.type == "meta"


def test_frozen_parameters_of_the_machine_learn_in_the_net(rbm):
    model = machine(rbm).requires_grad_(False)
    assert all(p.requires_grad for p in unroll(model, 2).parameters())
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"depth": 0}, ValueError, "depth must be at least 1, got 0"),
        ({"depth": -3}, ValueError, "depth must be at least 1, got -3"),
        ({"depth": 2.0}, TypeError, r"depth must be a number of layers, got 2\.0"),
        ({"depth": True}, TypeError, "depth must be a number of layers, got True"),
        ({"order": 0}, ValueError, "order must be 1, 2 or 3, got 0"),
        ({"order": 4}, ValueError, "order must be 1, 2 or 3, got 4"),
        ({"beta": 0.0}, ValueError, r"beta must be positive, got 0\.0"),
        ({"beta": math.nan}, ValueError, "beta must be positive, got nan"),
        ({"damping": 1.0}, ValueError, r"damping must lie in \[0, 1\), got 1\.0"),
        ({"damping": -0.1}, ValueError, r"damping must lie in \[0, 1\), got -0\.1"),
        ({"head": 0}, ValueError, "a head needs at least one class, got 0"),
        ({"head": "linear"}, TypeError, "head must be a number of classes, .* got 'linear'"),
        ({"head": True}, TypeError, "head must be a number of classes, .* got True"),
        ({"head": nn.Linear}, TypeError, "head must be a number of classes"),
        ({"rbm": nn.Linear(3, 2)}, TypeError, "only an RBM can be unrolled, got Linear"),
    ],
)
def test_impossible_options_are_refused(rbm, options, error, message):
    with pytest.raises(error, match=message):
        unroll(**{"rbm": machine(rbm), "depth": 3} | options)


def test_only_an_unrolled_machine_can_be_folded(rbm):
    with pytest.raises(TypeError, match="only an UnrolledRBM can be folded, got RBM"):
        fold(machine(rbm))


def test_the_net_is_readable(rbm):
    net = unroll(machine(rbm), 5, tied=False, order=2, beta=0.5, damping=0.25)
    text = repr(net)
    assert "depth=5, tied=False, order=2, beta=0.5, damping=0.25" in text
    assert "5 x RBM(n_visible=9, n_hidden=7" in text

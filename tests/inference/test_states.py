"""The states of models whose landscape is known, and the alarms where it cannot be found."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from freenergy.inference import MeanFieldWarning, NotConvergedWarning, exact, mean_field
from freenergy.inference.states import mean_field_states
from freenergy.models import RBM
from freenergy.random import RandomStream

ORDERS = pytest.mark.parametrize("order", [1, 2, 3])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def blocks(
    n: int,
    n_blocks: int,
    coupling: float,
    *,
    unit: str = "spin",
    field: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> RBM:
    """Independent blocks of ``n`` visible spins that follow one hidden spin, up or down.

    In 0/1 units the same energies, so that both have the same landscape.
    """
    model = RBM(n * n_blocks, n_blocks, visible=unit, hidden=unit, dtype=dtype)
    scale = 1 if unit == "spin" else 4
    with torch.no_grad():
        model.weight.copy_(scale * coupling * torch.eye(n_blocks).double().repeat_interleave(n, 0))
        model.hidden_bias.fill_(field * math.sqrt(scale))
        if unit == "bernoulli":  # W s s' and b s' at s = 2v − 1
            model.visible_bias.fill_(-2 * coupling)
            model.hidden_bias.sub_(2 * coupling * n)
    return model


def uniform(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)).double()


def complexity_of_blocks(n_blocks: int, field: float, beta: float = 1.0) -> float:
    """Every block chooses for itself, up with weight e^{βb}: by hand."""
    p = 1 / (1 + math.exp(-2 * beta * field))
    return -n_blocks * (p * math.log(p) + (1 - p) * math.log(1 - p))


# Against what is known


@DTYPES
@pytest.mark.parametrize("unit", ["spin", "bernoulli"])
@pytest.mark.parametrize(
    ("n", "n_blocks", "coupling", "order"),
    [(4, 3, 2.0, 1), (4, 3, 2.0, 2), (6, 3, 1.5, 2), (12, 1, 3.0, 2), (12, 1, 3.0, 3)],
)
def test_independent_blocks_have_two_states_each(unit, n, n_blocks, coupling, order, dtype):
    model = blocks(n, n_blocks, coupling, unit=unit, dtype=dtype)
    states, truth = mean_field_states(model, order), exact(model)
    assert states.n_states == 2**n_blocks
    assert states.n_converged == states.n_starts == int(states.basin.sum()) == 100
    assert_allclose(states.weight, 1 / states.n_states, rtol=1e-3)
    assert states.complexity == pytest.approx(n_blocks * math.log(2), abs=1e-5)
    assert states.log_partition == pytest.approx(truth.log_partition, abs=1e-4)
    assert states.total_entropy == pytest.approx(truth.entropy, abs=2e-3)
    assert states.mean_energy == pytest.approx(truth.energy, abs=2e-3)
    assert states.within_entropy == pytest.approx(truth.entropy - states.complexity, abs=2e-3)
    low, high = model.visible.support
    sides = (states.hidden > (low + high) / 2).tolist()
    assert len({tuple(side) for side in sides}) == 2**n_blocks, "every choice of sides, once"
    assert states.negative_entropy == states.beyond_plefka == states.unseen == 0


@pytest.mark.parametrize("beta", [0.8, 1.0, 1.5])
@pytest.mark.parametrize("unit", ["spin", "bernoulli"])
def test_a_field_weighs_the_states(unit, beta):
    field = 0.3 / beta
    model = blocks(5, 2, 2.0 / beta, unit=unit, field=field)
    states, truth = mean_field_states(model, beta=beta), exact(model, beta)
    assert states.n_states == 4
    p = 1 / (1 + math.exp(-2 * beta * field))
    expected = [p * p, p * (1 - p), p * (1 - p), (1 - p) ** 2]
    assert_allclose(states.weight, expected, rtol=1e-5)
    assert states.complexity == pytest.approx(complexity_of_blocks(2, field, beta), abs=1e-5)
    assert states.log_partition == pytest.approx(truth.log_partition, abs=1e-5)
    assert states.total_entropy == pytest.approx(truth.entropy, abs=1e-3)
    means = states.weight @ states.visible
    assert_allclose(means, truth.visible, atol=1e-5)


def test_the_total_entropy_is_that_of_the_sum_over_states(rbm):
    """S = βU + ln Z, and both are derivatives of ln Σ e^{−βΓ}."""
    model, beta, step = blocks(4, 2, 1.8, field=0.2), 1.1, 1e-4
    states = mean_field_states(model, beta=beta)
    assert states.n_states == 4
    identity = beta * states.mean_energy + states.log_partition
    assert states.total_entropy == pytest.approx(identity, abs=1e-10)
    up, down = (mean_field_states(model, beta=beta + s).log_partition for s in (step, -step))
    assert states.mean_energy == pytest.approx((down - up) / (2 * step), rel=1e-6)


@ORDERS
@pytest.mark.parametrize("units", [("bernoulli", "spin"), ("spin", "bernoulli")])
def test_at_weak_coupling_there_is_one_state(rbm, units, order):
    model = rbm(12, 8, visible=units[0], hidden=units[1], scale=0.1)
    states, single = mean_field_states(model, order, beta=1.2), mean_field(model, order, beta=1.2)
    assert states.n_states == 1
    assert states.complexity == 0
    assert states.weight.tolist() == [1]
    assert states.basin.tolist() == [100]
    assert states.log_partition == pytest.approx(float(single.log_partition[0]), abs=1e-9)
    assert states.total_entropy == pytest.approx(float(single.entropy[0]), abs=1e-7)
    assert_allclose(states.visible, single.visible, atol=1e-8)
    assert_allclose(states.hidden, single.hidden, atol=1e-8)


def test_a_user_defined_unit_has_a_landscape_too(rbm):
    model = rbm(5, 4, visible="ternary", hidden="ternary", scale=0.2)
    states = mean_field_states(model, starts=10)
    assert states.n_states == 1
    assert states.log_partition == pytest.approx(exact(model).log_partition, abs=0.01)


def test_the_states_of_mixed_couplings_are_stationary_and_apart(rbm):
    """Strong random couplings: states are fixed points, apart, sorted, and weighed by Γ."""
    model = rbm(12, 8, visible="spin", hidden="spin", scale=1.5, bias=0.1, seed=3)
    states = mean_field_states(model, 1, starts=300)
    assert states.n_states > 1
    again = mean_field(model, 1, start=states.visible)
    assert_allclose(again.visible, states.visible, atol=1e-8)
    assert_allclose(again.free_energy, states.free_energy, atol=1e-8)
    assert_allclose(again.entropy, states.entropy, atol=1e-6)
    distance = torch.cdist(states.visible, states.visible, p=math.inf)
    assert float(distance.fill_diagonal_(1).min()) > 0.01
    gamma = states.free_energy.numpy()
    assert (np.diff(gamma) > 0).all(), "the heaviest first"
    assert_allclose(states.weight, np.exp(-gamma) / np.exp(-gamma).sum(), rtol=1e-10)
    assert states.complexity == pytest.approx(
        -float((states.weight * states.weight.log()).sum()), abs=1e-12
    )
    assert states.log_partition < exact(model).log_partition, "at order 1 one state is a bound"


# The ridge, the middle, and how to get past both


@pytest.mark.parametrize("unit", ["spin", "bernoulli"])
def test_a_start_on_the_ridge_does_not_stay_there(unit):
    """As many spins up as down: the naive iteration stays at m = 0, which is no minimum."""
    model = blocks(4, 1, 2.0, unit=unit)
    low, high = model.visible.support
    ridge = torch.tensor([[low, low, high, high], [high, low, high, low]] * 10)
    stuck = mean_field(model, 1, start=ridge)
    assert_allclose(stuck.visible, torch.full((20, 4), (low + high) / 2), atol=1e-6)
    states = mean_field_states(model, 1, starts=ridge)
    assert states.n_states == 2
    assert states.basin.min() >= 3


def test_the_reaction_term_alone_finds_a_state_that_is_not_there():
    """m = 0 is always a minimum of TAP for a block, here above ln Z, and with entropy left."""
    model = blocks(12, 1, 1.0)
    truth = exact(model)
    start = 2 * uniform(20, 12) - 1
    direct = mean_field(model, 2, start=start, damping=0.9)
    assert_allclose(direct.visible, np.zeros((20, 12)), atol=1e-6)
    assert float(direct.log_partition.min()) > truth.log_partition + 0.5
    assert float(direct.entropy.min()) > 0
    for damping in (0.5, 0.9):
        states = mean_field_states(model, starts=start, damping=damping)
        assert states.n_states == 2
        assert states.log_partition == pytest.approx(truth.log_partition, abs=1e-3)
        assert states.beyond_plefka == 0


# The alarms


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_plefkas_norm_is_the_largest_singular_value(rbm, beta):
    model = rbm(9, 7, scale=1.0)
    states = mean_field_states(model, beta=beta, starts=20)
    v, h = (m * (1 - m) for m in (states.visible[0], states.hidden[0]))
    matrix = beta**2 * v[:, None] * model.weight.detach() ** 2 * h
    expected = float(torch.linalg.matrix_norm(matrix, ord=2))
    assert float(states.plefka[0]) == pytest.approx(expected, rel=1e-6)


def test_the_norm_of_a_free_block_is_known():
    """At m = 0: β² W² √n."""
    states = mean_field_states(blocks(9, 1, 0.2), beta=1.3)
    assert float(states.plefka[0]) == pytest.approx(1.3**2 * 0.2**2 * 3, rel=1e-9)


def test_what_lies_beyond_plefkas_condition_is_said_to():
    model = blocks(12, 1, 1.0)
    states = mean_field_states(model, 3)
    assert abs(states.log_partition - exact(model).log_partition) > 1
    assert states.negative_entropy == 0, "the entropy does not tell"
    assert states.beyond_plefka == 1
    assert float(states.plefka.min()) > 1


def test_a_negative_entropy_is_told_without_a_warning():
    states = mean_field_states(blocks(6, 3, 1.5), 3, damping=0.9)
    assert states.n_states > 0
    assert states.negative_entropy == states.beyond_plefka == 1
    assert states.within_entropy < 0


def test_without_any_converged_start_the_landscape_is_empty_and_warns(rbm):
    model = rbm(9, 7)
    with pytest.warns(NotConvergedWarning, match="no mean-field state converged") as record:
        states = mean_field_states(model, starts=5, max_iter=1)
    assert len(record) == 1
    assert record[0].filename == __file__, "the warning points at the caller"
    assert issubclass(NotConvergedWarning, MeanFieldWarning)
    assert states.n_states == states.n_converged == 0
    assert states.n_starts == 5
    assert states.visible.shape == (0, 9)
    assert states.hidden.shape == (0, 7)
    assert states.basin.shape == states.weight.shape == states.plefka.shape == (0,)
    for name in ("log_partition", "complexity", "within_entropy", "total_entropy", "mean_energy"):
        assert math.isnan(getattr(states, name)), name
    for name in ("unseen", "negative_entropy", "beyond_plefka"):
        assert math.isnan(getattr(states, name)), name
    assert "n_states=0" in repr(states)
    assert "converged=0/5" in repr(states)


def test_a_model_that_is_not_a_number_has_no_states(rbm):
    model = rbm(6, 4)
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    for order in (1, 2):
        with pytest.warns(NotConvergedWarning):
            assert mean_field_states(model, order, starts=7, max_iter=5).n_states == 0


def test_starts_that_fail_are_left_out_and_counted(rbm):
    model = rbm(12, 8, visible="spin", hidden="spin", scale=1.5, bias=0.1, seed=3)
    single = mean_field(model, 1, start=mean_field_states(model, 1).visible[:1])
    start = torch.cat([single.visible, 2 * uniform(30, 12) - 1])
    whole = mean_field_states(model, 1, starts=start)
    few = mean_field_states(model, 1, starts=start, max_iter=60)
    assert 0 < few.n_converged < 31 == whole.n_converged
    assert int(few.basin.sum()) == few.n_converged
    assert f"converged={few.n_converged}/31" in repr(few)


def test_states_seen_once_are_the_estimate_of_the_unseen():
    model = blocks(4, 5, 2.0)
    few, many = mean_field_states(model, starts=20), mean_field_states(model, starts=500)
    assert few.n_states < many.n_states == 32
    assert few.unseen == int((few.basin == 1).sum()) / 20 > 0.2
    assert many.unseen == 0


# Starts


def test_starts_at_rows_find_the_states_of_the_rows():
    model = blocks(4, 3, 2.0)
    rows = torch.tensor([[1.0] * 12] * 5 + [[-1.0] * 12] * 2)
    states = mean_field_states(model, starts=rows)
    assert states.n_states == 2
    assert sorted(states.basin.tolist()) == [2, 5]
    up = states.visible[states.basin == 5]
    assert float(up.min()) > 0.9
    from_array = mean_field_states(model, starts=rows.numpy())
    assert bool((from_array.visible == states.visible).all())
    assert bool((rows.abs() == 1).all()), "the rows are left as they were"


def test_the_order_of_the_starts_makes_no_difference(rbm):
    model = rbm(12, 8, visible="spin", hidden="spin", scale=1.5, bias=0.1, seed=3)
    rows = 2 * uniform(60, 12).round() - 1
    first, second = (mean_field_states(model, 1, starts=r) for r in (rows, rows.flip(0)))
    assert_allclose(first.visible, second.visible, atol=1e-7)
    assert first.n_states == second.n_states > 1


def test_one_start_gives_one_state(rbm):
    for starts in (1, np.int64(1), torch.ones(1, 9)):
        states = mean_field_states(rbm(9, 7), starts=starts)
        assert (states.n_states, states.n_starts, states.complexity) == (1, 1, 0)
        assert states.unseen == 1


def test_nearly_identical_starts_give_one_state():
    rows = 0.9 * torch.ones(20, 12).double() + 0.01 * uniform(20, 12)
    states = mean_field_states(blocks(4, 3, 2.0), starts=rows)
    assert states.basin.tolist() == [20]


def test_a_model_reads_the_same_twice_and_a_stream_can_be_given(rbm):
    model = rbm(12, 8, visible="spin", hidden="spin", scale=1.5, bias=0.1, seed=3)
    first, second = mean_field_states(model, 1), mean_field_states(model, 1)
    assert bool((first.visible == second.visible).all())
    assert first.basin.tolist() == second.basin.tolist()
    stream = RandomStream(5)
    before = stream.state()
    other = mean_field_states(model, 1, random=stream)
    assert stream.state() != before
    assert other.basin.tolist() != first.basin.tolist()
    assert all(p.grad is None for p in model.parameters())


def test_separation_decides_what_is_one_state():
    model = blocks(6, 1, 0.5)  # order 1: two states at m = ±0.6 in the visible spins
    states = mean_field_states(model, 1)
    gap = float((states.visible[0] - states.visible[1]).abs().max()) / 2
    assert states.n_states == 2
    assert 0.3 < gap < 0.9
    hidden_gap = float((states.hidden[0] - states.hidden[1]).abs().max()) / 2
    wide = max(gap, hidden_gap)
    assert mean_field_states(model, 1, separation=0.99 * wide).n_states == 2
    assert mean_field_states(model, 1, separation=1.01 * wide).n_states == 1


# Extremes


@DTYPES
@ORDERS
def test_without_couplings_the_landscape_is_exact(rbm, order, dtype):
    model = rbm(12, 8, scale=0.0, bias=2.0, dtype=dtype)
    states, truth = mean_field_states(model, order, starts=10), exact(model)
    assert states.n_states == 1
    assert states.log_partition == pytest.approx(truth.log_partition, rel=1e-5)
    assert states.total_entropy == pytest.approx(truth.entropy, rel=1e-5)
    assert float(states.plefka[0]) == 0


@DTYPES
def test_at_high_temperature_every_unit_is_free(rbm, dtype):
    model = rbm(12, 8, dtype=dtype)
    states = mean_field_states(model, beta=1e-6, starts=10)
    assert states.n_states == 1
    assert states.total_entropy == pytest.approx(20 * math.log(2), rel=1e-6)
    assert states.log_partition == pytest.approx(20 * math.log(2), rel=1e-5)


@DTYPES
def test_at_low_temperature_a_block_is_saturated(dtype):
    model = blocks(4, 2, 2.0, dtype=dtype)
    states = mean_field_states(model, beta=200.0)
    assert states.n_states == 4
    assert states.within_entropy == pytest.approx(0, abs=1e-4)
    assert states.negative_entropy == 0
    assert states.total_entropy == pytest.approx(math.log(4), abs=1e-4)
    assert states.log_partition == pytest.approx(200 * 16 + math.log(4), rel=1e-6)
    assert float(states.plefka.max()) < 1e-6


def test_a_state_that_weighs_nothing_does_not_spoil_the_sums():
    states = mean_field_states(blocks(4, 1, 500.0, field=500.0))
    assert states.n_states == 2
    assert states.weight.tolist() == [1, 0]
    assert states.complexity == 0
    assert math.isfinite(states.log_partition)


# The interface


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 4}, "order must be 1, 2 or 3, got 4"),
        ({"beta": 0.0}, "beta must be positive and finite, got 0.0"),
        ({"beta": math.inf}, "beta must be positive and finite, got inf"),
        ({"beta": math.nan}, "beta must be positive and finite, got nan"),
        ({"damping": 1.0}, r"damping must lie in \[0, 1\), got 1.0"),
        ({"max_iter": 0}, "max_iter must be at least 1, got 0"),
        ({"separation": 0.0}, "separation must lie between 0 and 1, got 0.0"),
        ({"separation": 1.0}, "separation must lie between 0 and 1"),
        ({"separation": math.nan}, "separation must lie between 0 and 1"),
        ({"starts": 0}, "starts must be at least 1, got 0"),
        ({"starts": torch.zeros(0, 9)}, r"starts must have shape \(n_starts, 9\), got \(0, 9\)"),
        ({"starts": torch.zeros(2, 7)}, r"starts must have shape \(n_starts, 9\), got \(2, 7\)"),
        ({"starts": torch.zeros(9)}, r"starts must have shape \(n_starts, 9\), got \(9,\)"),
        ({"starts": 2.5}, r"starts must have shape \(n_starts, 9\), got \(\)"),
        ({"starts": 2 * torch.ones(2, 9)}, r"magnetisations, in \[0, 1\]"),
    ],
)
def test_impossible_options_are_refused(rbm, options, message):
    with pytest.raises(ValueError, match=message):
        mean_field_states(rbm(9, 7), **options)


def test_the_result_is_readable_and_frozen():
    states = mean_field_states(blocks(4, 2, 2.0), beta=1.5)
    text = repr(states)
    assert text.startswith("MeanFieldStates(order=2, beta=1.5, n_states=4, log_partition=")
    assert f"complexity={states.complexity:.6g}, unseen=0, negative_entropy=0" in text
    assert text.endswith("beyond_plefka=0, converged=100/100)")
    assert not states.visible.requires_grad
    with pytest.raises(AttributeError):
        states.order = 1

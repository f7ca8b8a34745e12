"""Models whose minima are known by hand or by enumeration, cold, warm and at the extremes."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from freenergy.inference import mean_field
from freenergy.models import RBM
from freenergy.random import RandomStream
from freenergy.thermodynamics import barrier, descend, free_energy_barrier, landscape
from freenergy.thermodynamics.counts import (
    _Basins,
    _chao1,
    _rarefied,
    _tally,
    count_distinct,
)
from freenergy.thermodynamics.landscape import _pairs

UNITS = pytest.mark.parametrize(
    "units", [("bernoulli", "bernoulli"), ("spin", "spin"), ("bernoulli", "spin"), ("spin",) * 2]
)


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def corners(unit: str, n: int) -> np.ndarray:
    low = {"bernoulli": 0.0, "spin": -1.0}[unit]
    return np.array(list(itertools.product((low, 1.0), repeat=n)))


def joint(visible, hidden) -> np.ndarray:
    return np.concatenate([np.asarray(visible), np.asarray(hidden)], -1)


def as_set(states: np.ndarray) -> set[tuple[float, ...]]:
    return {tuple(state) for state in states.tolist()}


class Graph:
    """Every joint state, its energy from the definition, and its neighbours by one flip."""

    def __init__(self, model: RBM) -> None:
        W, a, b = (p.detach().double().numpy() for p in model.parameters())
        v, h = corners(model.visible.name, len(a)), corners(model.hidden.name, len(b))
        self.states = np.array([np.concatenate(pair) for pair in itertools.product(v, h)])
        energy = -(v @ a)[:, None] - h @ b - v @ W @ h.T
        self.energy = energy.reshape(-1)
        n = self.states.shape[1]
        # In the order of itertools.product, a flip of unit i is one of bit n - 1 - i.
        self.neighbours = np.arange(2**n)[:, None] ^ (1 << np.arange(n))

    @property
    def minima(self) -> np.ndarray:
        return self.states[(self.energy[:, None] < self.energy[self.neighbours]).all(-1)]

    def index(self, state: np.ndarray) -> int:
        return int((self.states == state).all(-1).argmax())

    def pass_energy(self, a: int, b: int) -> float:
        """Lowest peak of all paths: let the water rise until both stand in one lake."""
        lake = np.arange(len(self.energy))
        for i in self.energy.argsort():
            for j in self.neighbours[i]:
                if self.energy[j] <= self.energy[i]:
                    lake[lake == lake[j]] = lake[i]
            if lake[a] == lake[b]:
                return float(self.energy[i])
        raise AssertionError("a graph of flips is connected")


def blocks(n: int, n_blocks: int, coupling: float, **options) -> RBM:
    """Independent blocks of ``n`` visible spins that follow one hidden spin, up or down."""
    model = RBM(
        n * n_blocks, n_blocks, visible="spin", hidden="spin", dtype=torch.float64, **options
    )
    with torch.no_grad():
        model.weight.copy_(coupling * torch.eye(n_blocks).repeat_interleave(n, 0))
    return model


def two_patterns() -> tuple[RBM, np.ndarray]:
    r"""Ten spins that know two patterns, each held by a hidden unit with threshold 7.

    E = -Σ_μ h_μ (ξ_μ·v - 7) + 0.1 Σ v: the patterns differ on four sites, so that with both
    units on neither keeps its 7, and the minima are three: each pattern, and silence.
    """
    one = np.array([1, 1, 1, -1, -1, -1, 1, 1, -1, -1.0])
    two = np.array([1, 1, 1, -1, -1, -1, -1, -1, 1, 1.0])
    model = RBM(10, 2, visible="spin", dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(np.stack([one, two], 1)))
        model.hidden_bias.fill_(-7)
        model.visible_bias.fill_(-0.1)
    silence = np.concatenate([-np.ones(10), [0, 0]])
    return model, np.stack([np.append(one, [1, 0]), np.append(two, [0, 1]), silence])


# The descent


@UNITS
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_descents_from_everywhere_end_in_all_the_minima_that_enumeration_knows(
    rbm, units, seed, scale
):
    model = rbm(6, 4, visible=units[0], hidden=units[1], scale=scale, bias=scale / 3, seed=seed)
    end = descend(model, corners(units[0], 6))
    assert bool(end.converged.all())
    assert not end.flat.any()
    graph = Graph(model)
    assert as_set(joint(end.visible, end.hidden)) == as_set(graph.minima)
    expected = [graph.energy[graph.index(s)] for s in joint(end.visible, end.hidden)]
    assert_allclose(end.energy, expected, rtol=1e-12, atol=1e-12)


@given(
    seed=st.integers(0, 2**31),
    sizes=st.tuples(st.integers(1, 30), st.integers(1, 20)),
    scale=st.sampled_from([1e-8, 0.1, 1.0, 1e4]),
    spins=st.booleans(),
)
def test_no_single_flip_lowers_the_energy_at_the_end(seed, sizes, scale, spins):
    rng = np.random.default_rng(seed)
    unit, low = ("spin", -1.0) if spins else ("bernoulli", 0.0)
    model = RBM(*sizes, visible=unit, hidden=unit, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(0, scale, tuple(parameter.shape))))
    W, a, b = (p.detach().numpy() for p in model.parameters())
    end = descend(model, np.where(rng.random((8, sizes[0])) < 0.5, low, 1.0))
    v, h = end.visible.numpy(), end.hidden.numpy()
    other_v, other_h = 1 + low - v, 1 + low - h
    assert (-(other_v - v) * (a + h @ W.T) >= 0).all()
    assert (-(other_h - h) * (b + v @ W) >= 0).all()
    assert bool(end.converged.all())


@UNITS
def test_the_energy_never_rises_on_the_way(rbm, units):
    model = rbm(60, 40, visible=units[0], hidden=units[1], scale=1.0, bias=0.1)
    low = min(model.visible.support)
    start = np.where(np.random.default_rng(0).random((20, 60)) < 0.5, low, 1.0)
    whole = descend(model, start)
    longest = int(whole.n_sweeps.max())
    assert longest > 3, "too short a way to test"
    way = np.stack([descend(model, start, max_sweeps=n).energy for n in range(1, longest + 2)])
    assert (np.diff(way, axis=0) <= 1e-12 * np.abs(way[1:])).all()
    for i, n in enumerate(whole.n_sweeps.tolist()):
        assert (way[max(n, 1) - 1 :, i] == way[-1, i]).all(), "n_sweeps is where it ends"
        assert n < 2 or way[n - 2, i] > way[-1, i]
    early = descend(model, start, max_sweeps=1)
    assert not early.converged.all()


def test_a_batch_descends_as_its_rows_alone(rbm):
    model = rbm(30, 20, scale=1.0)
    start = corners("bernoulli", 5).repeat(6, axis=1)
    batch = descend(model, start)
    for i, row in enumerate(start):
        alone = descend(model, row[None])
        assert torch.equal(alone.visible[0], batch.visible[i])
        assert torch.equal(alone.hidden[0], batch.hidden[i])
        assert int(alone.n_sweeps) == int(batch.n_sweeps[i])


def test_without_couplings_every_unit_follows_its_bias(rbm):
    model = rbm(8, 5, visible="spin", scale=0.0, bias=1.0)
    end = descend(model, corners("spin", 8))
    assert_allclose(end.visible, model.visible_bias.detach().sign().expand(256, 8))
    assert_allclose(end.hidden, (model.hidden_bias.detach() > 0).double().expand(256, 5))


@pytest.mark.parametrize("unit", ["spin", "bernoulli"])
def test_a_model_without_any_energy_is_one_flat_state(unit):
    model = RBM(5, 3, visible=unit, hidden=unit)
    torch.nn.init.zeros_(model.weight)
    end = descend(model, corners(unit, 5))
    low = min(model.visible.support)
    assert bool((end.visible == low).all())
    assert bool((end.hidden == low).all())
    assert bool(end.flat.all())
    assert bool(end.converged.all())
    assert end.energy.abs().max() == 0


def test_a_field_that_is_only_rounding_is_a_tie():
    """0.1 + 0.2 - 0.3 is 5e-17 in double precision."""
    model = RBM(3, 1, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.1], [0.2], [-0.3]], dtype=torch.float64))
        model.visible_bias.copy_(torch.tensor([1.0, 1.0, 1.0]))
    end = descend(model, [[1.0, 1.0, 1.0]])
    assert end.visible.tolist() == [[1.0, 1.0, 1.0]]
    assert end.hidden.tolist() == [[0.0]]
    assert end.flat.tolist() == [True]


def test_two_patterns_are_the_minima_of_their_memory():
    model, known = two_patterns()
    end = descend(model, corners("spin", 10))
    assert as_set(joint(end.visible, end.hidden)) == as_set(known)
    assert not end.flat.any()
    by_hand = {tuple(s): e for s, e in zip(known.tolist(), [-3.0, -3.0, -1.0], strict=True)}
    for state, energy in zip(joint(end.visible, end.hidden).tolist(), end.energy, strict=True):
        assert float(energy) == pytest.approx(by_hand[tuple(state)], abs=1e-12)


@pytest.mark.parametrize("scale", [1e4, 1e-30])
def test_the_descent_knows_no_scale(rbm, scale):
    model = rbm(12, 8, scale=1.0)
    before = descend(model, corners("bernoulli", 12)[::16])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    after = descend(model, corners("bernoulli", 12)[::16])
    assert torch.equal(after.visible, before.visible)
    assert torch.equal(after.hidden, before.hidden)
    assert_allclose(after.energy, scale * before.energy, rtol=1e-12)


def test_a_users_own_unit_descends_to_its_ends(rbm):
    model = rbm(5, 3, visible="ternary", hidden="ternary", scale=1.0)
    end = descend(model, np.zeros((1, 5)))
    assert set(end.visible.flatten().tolist()) | set(end.hidden.flatten().tolist()) <= {-1.0, 1.0}


# The barrier of the energy


@UNITS
@pytest.mark.parametrize("seed", range(4))
def test_the_barrier_is_a_bound_on_the_lowest_pass(rbm, units, seed):
    model = rbm(5, 4, visible=units[0], hidden=units[1], scale=2.0, bias=0.2, seed=seed)
    graph = Graph(model)
    pairs = list(itertools.combinations(range(len(graph.minima)), 2))
    for i, j in pairs:
        a, b = graph.minima[i], graph.minima[j]
        path = barrier(
            model,
            (torch.tensor(a[None, :5]), torch.tensor(a[None, 5:])),
            (torch.tensor(b[None, :5]), torch.tensor(b[None, 5:])),
        )
        exact = graph.pass_energy(graph.index(a), graph.index(b))
        assert float(path.peak) >= exact - 1e-12
        assert float(path.height) > 0, "strict minima are apart"
        assert_allclose(path.start, graph.energy[graph.index(a)], atol=1e-12)
        assert_allclose(path.end, graph.energy[graph.index(b)], atol=1e-12)


def test_the_bound_is_the_lowest_pass_itself_in_nearly_half_of_the_pairs(rbm):
    """Of random models, and never below it."""
    excess = []
    for seed in range(12):
        model = rbm(5, 4, visible="spin", hidden="spin", scale=1.0, bias=0.3, seed=seed)
        graph = Graph(model)
        for a, b in itertools.combinations(torch.tensor(graph.minima), 2):
            path = barrier(model, (a[None, :5], a[None, 5:]), (b[None, :5], b[None, 5:]))
            exact = graph.pass_energy(graph.index(a.numpy()), graph.index(b.numpy()))
            excess.append(float(path.peak) - exact)
    assert len(excess) > 10
    assert min(excess) > -1e-12
    assert np.mean(np.array(excess) < 1e-12) > 0.4


@pytest.mark.parametrize("n", [3, 4, 7, 8])
def test_a_block_of_spins_turns_over_a_known_barrier(n):
    """Half of the spins turn, then the hidden one: an odd one out costs its coupling."""
    model = blocks(n, 1, 1.5)
    up = torch.ones(1, n).double(), torch.ones(1, 1).double()
    path = barrier(model, up, (-up[0], -up[1]))
    known = 1.5 if n % 2 else 0.0
    assert_allclose(path.start, -1.5 * n)
    assert_allclose(path.peak, known, atol=1e-12)
    graph = Graph(model)
    assert graph.pass_energy(0, len(graph.energy) - 1) == pytest.approx(float(path.peak), abs=1e-12)


def test_the_path_is_the_cheapest_next_flip_from_the_better_end(rbm):
    """Written out flip by flip, on pairs of minima."""
    model = rbm(7, 5, visible="spin", scale=1.5, seed=3)
    W, a, b = (p.detach().numpy() for p in model.parameters())

    def energy(s: np.ndarray) -> float:
        return float(-s[:7] @ a - s[7:] @ b - s[:7] @ W @ s[7:])

    def peak(start: np.ndarray, goal: np.ndarray) -> float:
        here, highest = start.copy(), energy(start)
        while left := np.flatnonzero(here != goal).tolist():
            tries = []
            for k in left:
                there = here.copy()
                there[k] = goal[k]
                tries.append((energy(there), there))
            value, here = min(tries, key=lambda pair: pair[0])
            highest = max(highest, value)
        return highest

    rng = np.random.default_rng(0)
    ends = [descend(model, rng.choice([-1.0, 1.0], (60, 7))) for _ in range(2)]
    a_states, b_states = ((end.visible, end.hidden) for end in ends)
    starts, goals = joint(*a_states), joint(*b_states)
    same = (starts == goals).all(-1)
    assert 0 < same.sum() < 50
    path, back = barrier(model, a_states, b_states), barrier(model, b_states, a_states)
    ways = [(peak(s, g), peak(g, s)) for s, g in zip(starts, goals, strict=True)]
    assert any(there > back + 0.1 for there, back in ways), "both directions matter"
    assert any(there < back - 0.1 for there, back in ways)
    assert_allclose(path.peak, [min(way) for way in ways], atol=1e-12)
    assert torch.equal(path.peak, back.peak)
    assert_allclose(path.height[same], 0, atol=0)


def test_barriers_of_strong_models_are_finite(rbm):
    model = rbm(20, 10, scale=1e4, bias=1e4)
    v, h = (torch.from_numpy(np.random.default_rng(0).integers(0, 2, (5, n))) for n in (20, 10))
    path = barrier(model, (v, h), (1 - v, 1 - h))
    assert bool(path.height.isfinite().all())
    assert bool((path.height >= 0).all())


# The barrier of the free energy


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("beta", [0.7, 1.6])
def test_the_line_is_followed_in_magnetisation(rbm, order, beta):
    model = rbm(6, 4, scale=1.5, seed=1)
    W, a, b = (p.detach().numpy() for p in model.parameters())

    def free_energy(v: np.ndarray, h: np.ndarray) -> float:
        entropy = sum(float(-(m * np.log(m) + (1 - m) * np.log(1 - m)).sum()) for m in (v, h))
        value = -v @ a - h @ b - v @ W @ h - entropy / beta
        if order == 2:
            value -= beta / 2 * (v * (1 - v)) @ W**2 @ (h * (1 - h))
        return float(value)

    rng = np.random.default_rng(0)
    va, vb, ha, hb = (rng.uniform(0.01, 0.99, n) for n in (6, 6, 4, 4))
    line = [free_energy(va + t * (vb - va), ha + t * (hb - ha)) for t in np.linspace(0, 1, 9)]
    states = [(torch.tensor(v)[None], torch.tensor(h)[None]) for v, h in ((va, ha), (vb, hb))]
    path = free_energy_barrier(model, *states, beta=beta, order=order, n_points=9)
    assert_allclose(path.peak, max(line), rtol=1e-12)
    assert_allclose(path.start, line[0], rtol=1e-12)
    assert_allclose(path.end, line[-1], rtol=1e-12)
    assert_allclose(path.height, max(line) - max(line[0], line[-1]), atol=1e-12)


def test_at_infinite_beta_the_line_is_that_of_the_energy():
    """From up to down E = -nW (1 - 2t)², and cold enough the free energy is the same."""
    model = blocks(8, 1, 1.5)
    up = torch.ones(1, 8).double(), torch.ones(1, 1).double()
    down = -up[0], -up[1]
    frozen = free_energy_barrier(model, up, down, beta=math.inf)
    assert_allclose(frozen.height, 12.0)
    cold = free_energy_barrier(model, up, down, beta=1e6, order=1)
    assert_allclose(cold.height, 12.0, rtol=1e-5)


def test_the_barrier_falls_as_the_temperature_rises_and_is_gone_above_the_transition():
    """Naive mean field of a block of 9 with W = 1.5 is critical at T = W √9 = 4.5."""
    model, heights = blocks(9, 1, 1.5), []
    for temperature in (0.1, 1.0, 2.0, 3.0, 4.0):
        state = mean_field(model, 1, beta=1 / temperature, start=torch.ones(1, 9), max_iter=10_000)
        up, down = (state.visible, state.hidden), (-state.visible, -state.hidden)
        path = free_energy_barrier(model, up, down, beta=1 / temperature, order=1)
        heights.append(float(path.height))
    assert (np.diff(heights) < 0).all()
    assert heights[-1] > 0
    assert [
        landscape(model, [t], order=1, n_starts=20).fixed_points[0].count.found for t in (4.0, 5.0)
    ] == [2, 1]


# Counting


@pytest.mark.parametrize(("n", "n_pairs"), [(0, 5), (1, 5), (4, 6), (4, 5), (100, 2000)])
def test_pairs_are_of_two_states_all_or_drawn_evenly(n, n_pairs):
    i, j = (index.numpy() for index in _pairs(n, n_pairs, RandomStream(0)))
    assert len(i) == len(j) == min(n_pairs, n * (n - 1) // 2)
    assert (i != j).all()
    if n == 100:
        counts = np.bincount(np.append(i, j), minlength=100)
        assert abs(counts - 40).max() < 5 * math.sqrt(40)
    elif n_pairs == 6:
        assert len(set(zip(i.tolist(), j.tolist(), strict=True))) == 6


def test_rarefaction_is_the_mean_over_all_choices_of_starts():
    basin = np.array([4, 2, 1, 1])
    starts = np.repeat(np.arange(4), basin)
    for k in range(1, 9):
        choices = itertools.combinations(starts.tolist(), k)
        assert _rarefied(basin, k) == pytest.approx(np.mean([len(set(c)) for c in choices]))


@pytest.mark.parametrize(
    ("basin", "expected"),
    [
        ([5, 3], 2.0),
        ([6, 2, 1, 1], 4 + 0.9 * 2**2 / (2 * 1)),
        ([7, 1, 1, 1], 4 + 0.9 * 3 * 2 / 2),
        ([1], 1.0),
    ],
)
def test_chaos_estimate_by_hand(basin, expected):
    assert _chao1(np.array(basin)) == pytest.approx(expected)


def test_a_tally_counts_what_was_found_once_and_twice():
    states = np.array([[7, 7, 3, 1], [2, 2, 2, 2], [4, 0, 4, 0], [0, 1, 2, 3]])
    assert _tally(states).tolist() == [[3, 1, 2, 4], [2, 0, 0, 4], [1, 0, 2, 0]]


@pytest.mark.parametrize("n_states", [20, 60, 1000])
def test_intervals_hold_what_other_starts_would_find(n_states, monkeypatch):
    """Basins of unequal size, known: how often the interval has what 100 starts find on average."""
    monkeypatch.setitem(count_distinct.__globals__, "_N_BOOTSTRAP", 100)
    rng = np.random.default_rng(n_states)
    share = rng.exponential(size=n_states)
    share /= share.sum()
    truth = float((1 - (1 - share) ** 100).sum())
    held, held_all = [], []
    for seed in range(60):
        basin = np.unique(rng.choice(n_states, 100, p=share), return_counts=True)[1]
        count = count_distinct(basin, 0.95, RandomStream(seed))
        held.append(count.lower <= truth <= count.upper)
        held_all.append(count.chao1_lower <= n_states)
        assert count.found <= count.chao1_lower <= count.chao1_upper
        assert count.unseen == pytest.approx((basin == 1).mean() * len(basin) / 100)
    assert np.mean(held) >= 0.85
    assert np.mean(held_all) >= 0.95, "Chao's estimate is a lower bound"


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30))
def test_the_shares_of_basins_are_a_distribution(basin):
    basins = _Basins.of(np.array(basin))
    assert (basins.share >= -1e-12).all()
    total = basins.share.sum()
    assert total == pytest.approx(1.0) if basins.n_missing == 0 else total < 1
    n = sum(basin)
    found, chao1 = basins.replicas(n, RandomStream(0))
    assert ((found >= 1) & (found <= min(n, len(basin) + basins.n_missing))).all()
    assert (chao1 >= found).all()


# The landscape


@pytest.mark.parametrize("order", [1, 2])
@UNITS
@pytest.mark.parametrize("seed", range(3))
def test_cold_fixed_points_are_the_minima_of_the_energy(rbm, units, seed, order):
    """From every corner: the same states, and F is E."""
    model = rbm(6, 4, visible=units[0], hidden=units[1], scale=2.0, bias=0.3, seed=seed)
    everywhere = corners(units[0], 6)
    found = landscape(model, [1e-4], order=order, rows=everywhere, n_starts=64, n_pairs=1000)
    (points,) = found.fixed_points
    minima = found.minima
    assert as_set(joint(minima.visible, minima.hidden)) == as_set(Graph(model).minima)
    cold = joint(points.states.visible, points.states.hidden).round(6) + 0.0
    assert as_set(cold) == as_set(Graph(model).minima)
    assert_allclose(points.free_energy, minima.energy, atol=1e-6)
    assert_allclose(points.rounded_energy, minima.energy, atol=1e-12)
    assert_allclose(points.barriers, minima.line_barriers, atol=0.02)
    assert found.smoothing.tolist() == [1.0]
    assert points.converged == 1


def test_two_patterns_merge_as_the_temperature_rises():
    model, known = two_patterns()
    found = landscape(model, [0.05, 0.5, 20.0], order=1, rows=corners("spin", 10), n_starts=1024)
    assert found.minima.count.found == 3
    assert as_set(joint(found.minima.visible, found.minima.hidden)) == as_set(known)
    assert [points.count.found for points in found.fixed_points] == [3, 3, 1]
    assert_allclose(found.smoothing, [1, 1, 1 / 3])
    assert int(found.minima.basin.sum()) == 1024
    assert_allclose(found.minima.energy, [-3, -3, -1], atol=1e-12)


def test_independent_units_have_one_minimum_at_every_temperature(rbm):
    model = rbm(20, 10, scale=0.0, bias=1.0)
    found = landscape(model, [0.1, 1.0, 10.0], n_starts=30)
    assert found.minima.count.found == 1
    assert found.smoothing.tolist() == [1, 1, 1]
    assert found.smoothing_lower.tolist() == found.smoothing_upper.tolist() == [1, 1, 1]
    assert found.trusted
    assert found.reasons == ()
    for points in found.fixed_points:
        t = points.temperature
        log_z = sum(
            float(torch.nn.functional.softplus(bias / t).sum().detach())
            for bias in (model.visible_bias, model.hidden_bias)
        )
        assert points.free_energy[0] == pytest.approx(-t * log_z, rel=1e-9)


def test_blocks_have_two_minima_each_until_they_melt():
    """Naive mean field: W √n = 3 is the critical temperature of every block."""
    found = landscape(blocks(4, 3, 1.5), [0.1, 2.5, 3.5], order=1)
    assert found.minima.count.found == 8
    assert [points.count.found for points in found.fixed_points] == [8, 8, 1]
    assert_allclose(found.minima.energy, -18.0)
    assert_allclose(found.minima.share.sum(), 1)
    assert_allclose(found.minima.barriers.min(), 6.0)
    assert_allclose(found.smoothing, [1, 1, 1 / 8])


def test_a_rough_landscape_is_smoothed_step_by_step(rbm):
    model = rbm(60, 40, visible="spin", hidden="spin", scale=0.15, bias=0.0)
    found = landscape(model, [0.01, 0.3, 0.7, 1.0, 3.0], order=1, n_starts=60)
    counts = [points.count.found for points in found.fixed_points]
    assert found.minima.count.found > 50
    assert counts[0] > 50
    assert counts[-1] == 1
    assert (np.diff(counts) <= 0).all()
    assert found.fixed_points[2].mean_rounded_energy < found.minima.mean_energy - 1, (
        "the smoother landscape leads lower"
    )
    assert not found.trusted
    assert any("another minimum of the energy" in reason for reason in found.reasons)


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_only_the_ratio_of_energy_and_temperature_matters(rbm, scale):
    model, temperatures = rbm(20, 12, visible="spin", scale=1.0), np.array([0.1, 0.6, 2.0])
    before = landscape(model, temperatures, order=1, n_starts=50)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    after = landscape(model, scale * temperatures, order=1, n_starts=50)
    assert after.smoothing.tolist() == before.smoothing.tolist()
    assert_allclose(after.minima.energy, scale * before.minima.energy, rtol=1e-12)
    for cold, warm in zip(before.fixed_points, after.fixed_points, strict=True):
        assert_allclose(warm.free_energy, scale * cold.free_energy, rtol=1e-8)
        assert_allclose(warm.barriers, scale * cold.barriers, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_couplings_of_ten_thousand_are_no_trouble(rbm, dtype):
    model = rbm(12, 8, scale=1e4, bias=1e4, dtype=dtype)
    found = landscape(model, [1.0, 1e8], n_starts=40)
    hot, cold = found.fixed_points[1], found.fixed_points[0]
    assert hot.count.found == 1
    assert hot.converged == 1
    assert cold.count.found >= 1
    assert np.isfinite(cold.free_energy).all()
    assert np.isfinite(found.minima.energy).all()
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_model_without_couplings_or_fields_is_one_degenerate_minimum():
    model = RBM(6, 3)
    torch.nn.init.zeros_(model.weight)
    found = landscape(model, [1.0], n_starts=10)
    assert found.minima.count.found == found.fixed_points[0].count.found == 1
    assert found.minima.flat.tolist() == [True]
    assert not found.trusted
    assert "degenerate" in found.reasons[0]
    assert found.fixed_points[0].free_energy[0] == pytest.approx(-9 * math.log(2), rel=1e-5)


def test_one_start_finds_one_state(rbm):
    found = landscape(rbm(8, 5, scale=3.0), [0.5], n_starts=1, order=1)
    assert found.n_starts == found.minima.count.found == 1
    assert found.minima.count.unseen == 1, "one start says nothing about others"
    assert not found.trusted
    assert found.minima.barriers.shape == (0,)
    assert "barriers=none" in repr(found.minima)
    assert found.smoothing.tolist() == [1.0]


def test_starts_that_did_not_converge_do_not_make_the_landscape_smooth(rbm):
    """The minima are then those that as many starts find."""
    model = rbm(30, 20, visible="spin", hidden="spin", scale=1.0, bias=0.0, seed=1)
    found = landscape(model, [1.5], order=1, n_starts=50, max_iter=40)
    (points,) = found.fixed_points
    k = points.states.n_converged
    assert 0 < k < 50
    assert points.count.n_starts == k
    assert found.smoothing[0] == pytest.approx(
        points.count.found / _rarefied(found.minima.basin, k)
    )
    assert points.count.found / found.minima.count.found < found.smoothing[0]
    assert any("of the starts converged" in reason for reason in found.reasons)


def test_without_any_fixed_point_there_is_no_curve(rbm):
    found = landscape(rbm(8, 5, scale=2.0), [1.0], n_starts=5, max_iter=1)
    (points,) = found.fixed_points
    assert points.converged == points.count.found == 0
    assert np.isnan(found.smoothing).all()
    assert math.isnan(points.mean_rounded_energy)
    assert not found.trusted
    assert found.to_dict()["smoothing"] == [None]
    assert "free_energy=none" in repr(points)


def test_states_beyond_the_expansion_are_told(rbm):
    model = blocks(12, 1, 1.0)
    found = landscape(model, [1.0], order=3, damping=0.5, n_starts=10)
    assert found.fixed_points[0].states.beyond_plefka == 1
    assert any("T = 1 100% of the fixed points lie beyond" in r for r in found.reasons)


def test_rows_are_drawn_without_repetition(rbm):
    model = rbm(8, 5, scale=1.0)
    rows = corners("bernoulli", 8)
    assert landscape(model, [1.0], rows=rows[:7]).n_starts == 7
    few = landscape(model, [1.0], rows=rows, n_starts=20)
    assert few.n_starts == int(few.minima.basin.sum()) == 20
    grey = landscape(model, [1.0], rows=0.3 * rows[:9])
    assert grey.n_starts == 9


def test_one_seed_gives_the_same_bits_and_leaves_torch_alone(rbm):
    model = rbm(20, 12, visible="spin", scale=1.0)
    before = torch.get_rng_state()
    options = {"n_starts": 30, "n_pairs": 5, "order": 1}
    first = landscape(model, [1.0, 0.1], **options, random=3)
    again = landscape(model, [1.0, 0.1], **options, random=RandomStream(3))
    alone = landscape(model, [0.1], **options, random=3)
    assert torch.equal(before, torch.get_rng_state())
    assert first.to_dict() == again.to_dict()
    assert alone.fixed_points[0].count.found > 5
    assert first.to_dict()["fixed_points"][1] == alone.to_dict()["fixed_points"][0]
    other = landscape(model, [1.0, 0.1], **options, random=4)
    assert first.to_dict() != other.to_dict()


def test_the_model_is_left_as_it_was(rbm):
    model = rbm(8, 5, dtype=torch.float32)
    before = [p.clone() for p in model.parameters()]
    landscape(model, [1.0], n_starts=5)
    assert model.weight.dtype == torch.float32
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_the_result_is_readable_and_goes_into_json(rbm):
    found = landscape(blocks(4, 3, 1.5), [0.1, 3.5], order=1, n_pairs=4)
    assert "energy_minima=8, fixed_points={0.1: 8, 3.5: 1}, smoothing=0.125..1" in repr(found)
    assert repr(found.minima).startswith("EnergyMinima(found=8, energy=-18..-18, mean_energy=-18")
    assert repr(found.fixed_points[1]).startswith("FixedPoints(temperature=3.5, found=1, ")
    text = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert text["smoothing"] == [1.0, 0.125]
    assert text["temperatures"] == [0.1, 3.5]
    assert text["minima"]["count"]["found"] == 8
    assert len(text["minima"]["barriers"]) == len(text["minima"]["line_barriers"]) == 4
    assert text["fixed_points"][0]["converged"] == 1
    with pytest.raises(AttributeError):
        found.order = 2
    end = descend(blocks(4, 3, 1.5), torch.ones(2, 12))
    assert repr(end) == "Descent(n_starts=2, energy=-18..-18, converged=2/2, flat=0, n_sweeps=0)"
    path = barrier(blocks(4, 3, 1.5), (end.visible, end.hidden), (-end.visible, -end.hidden))
    assert repr(path) == "Barrier(n_pairs=2, height=6..6)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperatures": []}, r"at least one temperature, got shape \(0,\)"),
        ({"temperatures": 1.0}, r"sequence of at least one temperature, got shape \(\)"),
        ({"temperatures": [1.0, 0.0]}, "finite and positive, got 0"),
        ({"temperatures": [-2.0]}, "finite and positive, got -2"),
        ({"temperatures": [math.inf]}, "finite and positive, got inf"),
        ({"n_starts": 0}, "n_starts must be at least 1, got 0"),
        ({"n_pairs": -1}, "n_pairs must not be negative, got -1"),
        ({"confidence": 1.0}, "confidence must lie between 0 and 1, got 1.0"),
        ({"separation": 0.0}, "separation must lie between 0 and 1, got 0.0"),
        ({"order": 4}, "order must be 1, 2 or 3, got 4"),
        ({"damping": 1.0}, r"damping must lie in \[0, 1\)"),
        ({"rows": np.zeros((3, 4))}, r"shape \(n_starts, 8\), got \(3, 4\)"),
        ({"rows": np.full((3, 8), 2.0)}, r"start must hold states, in \[0, 1\]"),
        ({"rows": np.full((3, 8), math.nan)}, r"start must hold states, in \[0, 1\]"),
    ],
)
def test_impossible_options_are_refused(rbm, options, message):
    options = {"temperatures": [1.0]} | options
    with pytest.raises(ValueError, match=message):
        landscape(rbm(8, 5), **options)


def test_impossible_states_are_refused(rbm):
    model = rbm(8, 5)
    good = torch.zeros(2, 8), torch.zeros(2, 5)
    with pytest.raises(ValueError, match="max_sweeps must be at least 1, got 0"):
        descend(model, good[0], max_sweeps=0)
    for path in (barrier, free_energy_barrier):
        with pytest.raises(ValueError, match=r"b must be states of shapes \(n_pairs, 8\)"):
            path(model, good, (good[0], good[0]))
        with pytest.raises(ValueError, match="as many states, got 2 and 1"):
            path(model, good, (good[0][:1], good[1][:1]))
    with pytest.raises(ValueError, match="beta must be positive, got 0"):
        free_energy_barrier(model, good, good, beta=0)
    with pytest.raises(ValueError, match="n_points must be at least 2"):
        free_energy_barrier(model, good, good, n_points=1)
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="parameters that are not finite"):
        descend(model, good[0])

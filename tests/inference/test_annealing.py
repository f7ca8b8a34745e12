"""Annealing forth and back: Jarzynski's equality, Crooks' theorem, and the bias of either end."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from freenergy.inference import annealing, exact
from freenergy.inference.annealing import (
    anneal,
    divide,
    even_positions,
    length_profile,
    sample_base,
)
from freenergy.inference.bridge import bennett, jarzynski
from freenergy.inference.ladder import (
    Ladder,
    annealing_ladder,
    temperature_ladder,
)
from freenergy.random import RandomStream

PAIRS = [("bernoulli", "bernoulli"), ("spin", "spin"), ("spin", "bernoulli")]
UNITS = pytest.mark.parametrize("units", PAIRS, ids="-".join)


def straight(rbm, units=("bernoulli", "bernoulli"), scale: float = 1.0) -> Ladder:
    """From independent units with biases of their own to a coupled model."""
    kind = {"visible": units[0], "hidden": units[1]}
    base = rbm(7, 4, scale=0.0, seed=1, **kind)
    return annealing_ladder(rbm(7, 4, scale=scale / (2 if "spin" in units else 1), **kind), base)


def bent(rbm, units=("bernoulli", "bernoulli"), coupled: bool = False) -> Ladder:
    """Three models, the middle one far from the straight line between the others."""
    kind = {"visible": units[0], "hidden": units[1]}
    scale = 0.5 if "spin" in units else 1.0
    return Ladder.of(
        [
            rbm(7, 4, scale=0.5 * scale if coupled else 0.0, seed=1, **kind),
            rbm(7, 4, scale=0.8 * scale, seed=2, **kind),
            rbm(7, 4, scale=scale, seed=3, **kind),
        ]
    )


LADDERS = {
    "straight": straight,
    "bent": bent,
    "coupled": lambda rbm, units: bent(rbm, units, coupled=True),
}


def difference(table, ladder: Ladder, start: int = 0, stop: int = -1) -> float:
    """−ln(Z_stop / Z_start) by enumeration."""
    tables = [table(ladder.model(rung % len(ladder))) for rung in (start, stop)]
    return tables[0].log_partition - tables[1].log_partition


def exact_samples(table, model, n: int, seed: int = 0) -> torch.Tensor:
    reference = table(model)
    rng = np.random.default_rng([seed, n])
    rows = rng.choice(len(reference.v), n, p=np.exp(reference.log_marginal))
    return torch.from_numpy(reference.v[rows])


def both_ways(table, ladder: Ladder, positions, n: int, seed: int = 0):
    """Works up from exact samples of the first rung, and down from those of the last."""
    random = RandomStream(seed)
    first = exact_samples(table, ladder.model(0), n, seed)
    last = exact_samples(table, ladder.model(len(ladder) - 1), n, seed + 1)
    up, _ = anneal(ladder, positions, first, random)
    down, _ = anneal(ladder, positions[::-1], last, random)
    return up, down


def assert_mean_is_one(values: np.ndarray) -> None:
    error = values.std() / math.sqrt(len(values))
    assert error < 0.05
    assert abs(values.mean() - 1.0) < 4 * error


# ---- Jarzynski: no bias in Z, in either direction ------------------------------------------------


@UNITS
@pytest.mark.parametrize("name", LADDERS)
def test_the_mean_exponential_of_the_work_is_the_ratio_of_partition_functions(
    rbm, table, name, units
):
    """At any speed: six steps are far from quasi-static."""
    ladder = LADDERS[name](rbm, units)
    expected = difference(table, ladder)
    positions = np.linspace(0, len(ladder) - 1, 7)
    up, down = both_ways(table, ladder, positions, 40_000)
    assert_mean_is_one(np.exp(expected - up))
    assert_mean_is_one(np.exp(-expected - down))
    # The test has power: the work is dissipated, and each direction has a difference of its own.
    assert up.mean() > expected + 0.03
    assert down.mean() > -expected + 0.03
    assert up.std() > 0.25
    assert abs(expected) > 0.3


@pytest.mark.parametrize("name", LADDERS)
def test_a_single_step_is_importance_sampling(rbm, table, name):
    """Positions are the rungs alone, and work is a difference of free energies."""
    ladder = LADDERS[name](rbm, PAIRS[0])
    v = exact_samples(table, ladder.model(0), 50)
    work, after = anneal(ladder[:2], [0.0, 1.0], v, RandomStream(0))
    both = ladder[:2].free_energy(v.expand(2, -1, -1))
    assert_allclose(work, (both[1] - both[0]).numpy(), atol=1e-12)
    assert bool((after == v).all()), "the last step is work alone"
    back, _ = anneal(ladder[:2], [1.0, 0.0], v, RandomStream(0))
    assert_allclose(back, -work, atol=1e-12)


def test_each_step_is_the_work_between_two_mixtures_of_rungs(rbm, table):
    """Step by step against the ladder of all positions, at the states that the chains had."""
    ladder = bent(rbm)
    positions = [0.0, 0.3, 1.0, 1.2, 1.9, 2.0]
    v = exact_samples(table, ladder.model(0), 40)
    for order in (positions, positions[::-1]):
        seen: list[tuple[float, np.ndarray]] = []
        total, _ = anneal(
            ladder, order, v, RandomStream(3), observe=lambda p, w, seen=seen: seen.append((p, w))
        )
        assert [position for position, _ in seen] == order[1:]
        assert_allclose(total, sum(work for _, work in seen), atol=1e-12)
        for stop in range(2, len(order) + 1):
            part, before = anneal(ladder, order[:stop], v, RandomStream(3))
            rungs = ladder.at(order[stop - 2 : stop])
            free_energy = rungs.free_energy(before.expand(2, -1, -1))
            assert_allclose(
                seen[stop - 2][1], (free_energy[1] - free_energy[0]).numpy(), atol=1e-12
            )
            assert_allclose(part, sum(work for _, work in seen[: stop - 1]), atol=1e-12)


def test_waiting_at_a_position_takes_no_work_and_brings_its_equilibrium(rbm, table):
    """The Gibbs step at a position leaves that position's model as it is, and no other."""
    ladder, position = bent(rbm), 1.6
    reference = table(ladder.at([position]).model(0))
    v = torch.zeros(40_000, 7, dtype=torch.float64)
    work, after = anneal(ladder, [position] * 22, v, RandomStream(0))
    assert_allclose(work, 0.0, atol=1e-12)
    error = np.sqrt(reference.visible * (1 - reference.visible) / len(v))
    z = (after.mean(0).numpy() - reference.visible) / error
    assert np.abs(z).max() < 4
    for other in (0.6, 1.0, 2.0):
        elsewhere = table(ladder.at([other]).model(0)).visible
        assert np.abs((after.mean(0).numpy() - elsewhere) / error).max() > 10


# ---- Crooks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LADDERS)
def test_the_histograms_of_both_works_differ_by_a_boltzmann_factor(rbm, table, name):
    """ln P_F(w) − ln P_R(−w) = w − ΔF, bin by bin: slope 1, and a crossing at ΔF."""
    ladder = LADDERS[name](rbm, PAIRS[0])
    expected = difference(table, ladder)
    up, down = both_ways(table, ladder, np.linspace(0, len(ladder) - 1, 5), 60_000)
    edges = expected + np.linspace(-2.5, 2.5, 26)
    forward, backward = (np.histogram(w, edges)[0].astype(float) for w in (up, -down))
    # Within a bin P_F(w) e^-(w - ΔF) varies like P_R(-w): compare its sum, not the bin's middle.
    inside = (up > edges[0]) & (up < edges[-1])
    weight = np.exp(expected - up)
    moved, square = (
        np.histogram(up[inside], edges, weights=weight[inside] ** power)[0] for power in (1, 2)
    )
    enough = (forward > 100) & (backward > 100)
    assert enough.sum() >= 10
    z = ((moved - backward) / np.sqrt(square + backward))[enough]
    assert np.abs(z).max() < 4
    assert 0.5 < z.std() < 1.6
    # The plain histograms cross once, and at ΔF: left of it the backward works prevail.
    middle = ((edges[1:] + edges[:-1]) / 2)[enough] - expected
    log_ratio = np.log(forward[enough] / backward[enough])
    slope, offset = np.polyfit(middle, log_ratio, 1)
    assert slope == pytest.approx(1.0, abs=0.1)
    assert offset == pytest.approx(0.0, abs=0.05)


@UNITS
@pytest.mark.parametrize("name", LADDERS)
def test_bennett_on_both_works_finds_the_difference_with_a_true_error(rbm, table, name, units):
    ladder = LADDERS[name](rbm, units)
    expected = difference(table, ladder)
    positions = np.linspace(0, len(ladder) - 1, 5)
    up, down = both_ways(table, ladder, positions, 60 * 200)
    found = [bennett(*w) for w in zip(up.reshape(60, 200), down.reshape(60, 200), strict=True)]
    z = np.array([(f.value - expected) / f.stderr for f in found])
    assert 0.7 < z.std() < 1.35
    assert abs(z.mean()) < 4 / math.sqrt(60)


def test_fast_annealing_is_low_forth_and_high_back_in_the_log_partition_function(rbm, table):
    """ln Z from few chains: forward below on average, reverse above; slower is nearer."""
    ladder = straight(rbm, scale=3.0)
    log_ratio = -difference(table, ladder)
    gaps = []
    for n_positions in (3, 15):
        up, down = both_ways(table, ladder, np.linspace(0, 1, n_positions), 5 * 1000)
        forward = np.array([-jarzynski(w).value for w in up.reshape(1000, 5)])
        reverse = np.array([jarzynski(w).value for w in down.reshape(1000, 5)])
        below, above = log_ratio - forward.mean(), reverse.mean() - log_ratio
        assert below > 3 * forward.std() / math.sqrt(1000)
        assert above > 3 * reverse.std() / math.sqrt(1000)
        gaps.append(below + above)
    assert gaps[1] < gaps[0] / 2


def test_slow_annealing_dissipates_in_proportion_to_its_speed(rbm, table):
    """Linear response: the mean dissipated work falls as one over the number of steps."""
    ladder = straight(rbm)
    expected = difference(table, ladder)
    lost = []
    for n_steps in (20, 80):
        up, down = both_ways(table, ladder, np.linspace(0, 1, n_steps + 1), 10_000)
        lost.append((up.mean() - expected, down.mean() + expected))
        # Near equilibrium the variance is twice the loss, in both directions.
        assert up.var() == pytest.approx(2 * lost[-1][0], rel=0.25)
    for slow, fast in zip(lost[1], lost[0], strict=True):
        assert slow == pytest.approx(fast / 4, rel=0.2)


# ---- positions -----------------------------------------------------------------------------------


def test_states_of_the_first_rung_are_independent_and_have_its_means(rbm):
    ladder = straight(rbm, ("spin", "spin"))
    v = sample_base(ladder, 40_000, RandomStream(0))
    statistics = exact(ladder.model(0))
    error = (1 - statistics.visible**2).sqrt() / 200
    assert float(((v.mean(0) - statistics.visible) / error).abs().max()) < 4
    covariance = torch.cov(v.T)
    assert_allclose(covariance.numpy(), torch.diag(covariance.diagonal()).numpy(), atol=0.025)
    assert bool((ladder.visible_bias == straight(rbm, ("spin", "spin")).visible_bias).all())


@pytest.mark.parametrize(("name", "n"), [*itertools.product(("straight", "bent"), (2, 10, 101))])
def test_even_positions_rise_from_end_to_end_over_every_rung(rbm, name, n):
    ladder = LADDERS[name](rbm, PAIRS[0])
    positions = even_positions(ladder, n, RandomStream(0))
    assert (np.diff(positions) > 0).all()
    assert set(range(len(ladder))) <= set(positions.tolist())
    assert (positions[0], positions[-1]) == (0.0, len(ladder) - 1)
    assert n <= len(positions) <= n + len(ladder) - 2


def test_even_positions_find_the_difference_in_both_directions(rbm, table):
    ladder = bent(rbm)
    positions = even_positions(ladder, 12, RandomStream(1))
    expected = difference(table, ladder)
    up, down = both_ways(table, ladder, positions, 20_000)
    assert_mean_is_one(np.exp(expected - up))
    assert_mean_is_one(np.exp(-expected - down))


@pytest.mark.parametrize("direction", [1, -1])
def test_a_step_that_would_pass_a_rung_stops_there(rbm, table, direction):
    """The path bends at the rung: an extrapolated segment would be another path."""
    ladder, positions = bent(rbm), [0.0, 0.3, 0.7, 1.5, 2.0][::direction]
    start = exact_samples(table, ladder.model(0 if direction == 1 else 2), 20_000)
    work, _ = anneal(ladder, positions, start, RandomStream(0))
    assert_mean_is_one(np.exp(direction * difference(table, ladder) - work))
    # In one step from end to end, too, which is then two.
    steps: list[float] = []
    ends = [positions[0], positions[-1]]
    work, _ = anneal(ladder, ends, start, RandomStream(0), observe=lambda p, _: steps.append(p))
    assert steps == [1.0, ends[1]]
    error = np.exp(direction * difference(table, ladder) - work)
    assert abs(error.mean() - 1) < 4 * error.std() / math.sqrt(len(error))


def test_rungs_that_are_passed_are_passed_in_order(rbm):
    ladder = Ladder.of([rbm(7, 4, seed=seed) for seed in range(4)])
    v, steps = torch.zeros(3, 7, dtype=torch.float64), []
    for ends in ([0.5, 3.0], [3.0, 0.5]):
        anneal(ladder, ends, v, RandomStream(0), observe=lambda p, _: steps.append(p))
    assert steps == [1.0, 2.0, 3.0, 2.0, 1.0, 0.5]


def test_positions_are_dense_where_the_work_spreads(rbm):
    """Where the work spreads nine times as much there are nine times as many, but for a fifth."""
    grid = np.linspace(0.0, 1.0, 11)
    spread = np.where(np.arange(10) < 5, 1.0, 9.0)
    positions = divide(grid, spread, 1001)
    assert np.mean(positions < 0.5) == pytest.approx(0.1 + 0.8 * 0.1, abs=0.003)
    assert_allclose(divide(grid, 0 * spread, 6), np.linspace(0, 1, 6), atol=1e-12)
    assert_allclose(divide(grid, 1 + 0 * spread, 6), np.linspace(0, 1, 6), atol=1e-12)


def test_the_pilot_measures_the_spread_of_the_work_along_the_path(rbm, table):
    """du/dt of a temperature ladder is the energy: its spread is the root of C/β²."""
    model = rbm(7, 4, scale=0.5)
    ladder = temperature_ladder(model, [0.0, 1.0])
    grid, spread = length_profile(ladder, RandomStream(0), 50)
    assert len(grid) == len(spread) + 1
    lengths = []
    for seed in range(20):
        _, spread = length_profile(ladder, RandomStream(seed), 50)
        lengths.append(float((spread * np.diff(grid)).sum()))
    # The work of a short step is dβ times the mean energy given v: its spread is a little less
    # than that of the energy itself.
    expected = []
    for beta in (grid[1:] + grid[:-1]) / 2:
        reference = table(model, beta)
        given = reference.probability / reference.probability.sum(1, keepdims=True)
        mean = (given * reference.energy).sum(1)
        p = reference.probability.sum(1)
        expected.append(math.sqrt(p @ mean**2 - (p @ mean) ** 2))
    assert np.mean(lengths) == pytest.approx(np.mean(expected), rel=0.05)


def test_even_positions_lose_less_than_a_straight_schedule(rbm, table):
    """Down to a low temperature most work spreads at the hot end of the path.

    The gain is small: at the cold end the chains lag behind, whatever the positions.
    """
    ladder = temperature_ladder(rbm(7, 4, scale=1.0), [0.0, 20.0])
    expected = difference(table, ladder)
    lost = {}
    for name, positions in (
        ("even", even_positions(ladder, 40, RandomStream(0), 200)),
        ("straight", np.linspace(0, 1, 40)),
    ):
        up, down = both_ways(table, ladder, positions, 10_000)
        lost[name] = up.mean() - expected, down.mean() + expected
    assert sum(lost["even"]) < 0.95 * sum(lost["straight"])


# ---- what is left alone --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_states_given_are_left_as_they_were_and_the_precision_is_the_models(rbm, dtype):
    models = [rbm(7, 4, scale=s, dtype=dtype, seed=i) for i, s in enumerate((0.0, 1.0, 0.5))]
    ladder = Ladder.of(models)
    v = sample_base(ladder, 50, RandomStream(0))
    assert v.dtype == dtype
    before, parameters = v.clone(), ladder.weight.clone()
    work, after = anneal(ladder, np.linspace(0, 2, 9), v, RandomStream(1))
    assert bool((v == before).all())
    assert bool((ladder.weight == parameters).all())
    assert after.dtype == dtype
    assert work.dtype == np.float64
    assert not bool((after == before).all())
    again, _ = anneal(ladder, np.linspace(0, 2, 9), v, RandomStream(1))
    assert (again == work).all()


# ---- several processes ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 5])
def test_the_pilot_run_of_several_processes_is_that_of_all_their_chains(
    rbm, together, monkeypatch, size
):
    monkeypatch.setattr(annealing, "_PILOT_CHAINS", 3)
    ladder, works = straight(rbm), {}

    def work(group):
        # What it draws is drawn again here, by hand.
        random, n = RandomStream(group.rank), group.share(3)
        works[group.rank] = []
        anneal(
            ladder,
            np.linspace(0.0, 1.0, 6),
            sample_base(ladder, n, random),
            random,
            observe=lambda _, done: works[group.rank].append(done),
        )
        return length_profile(ladder, RandomStream(group.rank), 5, group)

    profiles = together(size, work)
    of_all = np.concatenate([works[rank] for rank in range(size)], axis=1)
    assert of_all.shape == (5, 3)
    for grid, spread in profiles:
        assert_allclose(grid, np.linspace(0.0, 1.0, 6))
        assert_allclose(spread, of_all.std(1) / 0.2, rtol=1e-12)


def test_positions_are_the_same_in_all_processes(rbm, together):
    ladder = bent(rbm)
    found = together(3, lambda g: even_positions(ladder, 20, g.stream(RandomStream(0)), group=g))
    for positions in found[1:]:
        assert_array_equal(positions, found[0])
    assert found[0][0] == 0.0
    assert found[0][-1] == 2.0
    assert (np.diff(found[0]) > 0).all()

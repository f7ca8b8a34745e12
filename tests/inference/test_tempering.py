"""Replica exchange against enumeration: what it leaves alone, what it carries, what it measures."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from freenergy.inference import log_partition
from freenergy.inference.annealing import sample_base
from freenergy.inference.ladder import Ladder, temperature_ladder
from freenergy.inference.tempering import Exchange, Tempering, adapt_ladder, estimate, temper
from freenergy.models import RBM
from freenergy.random import RandomStream

RULES = pytest.mark.parametrize("rule", ["free_energy", "energy"])
BETAS = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def strong(rbm):
    """8 × 5 units, coupled so strongly that a rung by itself is slow."""
    return rbm(8, 5, scale=2.0, bias=1.0)


def unrelated(rbm) -> Ladder:
    """Models that share their size alone, from independent units on: a crude trajectory."""
    scales = enumerate((0.0, 0.4, 0.7, 0.6))
    return Ladder.of([rbm(6, 4, scale=scale, bias=0.6, seed=seed) for seed, scale in scales])


def exact_samples(table, ladder: Ladder, n: int, seed: int = 0) -> torch.Tensor:
    """Independent states of every rung, each in equilibrium."""
    rng, rows = np.random.default_rng(seed), []
    for rung in range(len(ladder)):
        reference = table(ladder.model(rung))
        p = np.exp(reference.log_marginal)
        rows.append(reference.v[rng.choice(len(p), n, p=p / p.sum())])
    return torch.from_numpy(np.stack(rows))


def index(v: torch.Tensor, low: float = 0.0) -> np.ndarray:
    """Row of the table in which each state of binary units stands."""
    powers = 2 ** torch.arange(v.shape[-1] - 1, -1, -1)
    return ((v > low).long() @ powers).numpy()


def log_partitions(table, ladder: Ladder) -> np.ndarray:
    return np.array([table(ladder.model(rung)).log_partition for rung in range(len(ladder))])


# ---- the top rung is the model -------------------------------------------------------------------


class Multiplied(Ladder):
    """The rule of a published package: β times the free energy at β = 1 decides the exchange."""

    def __init__(self, model, betas) -> None:
        rungs = temperature_ladder(model, betas.tolist())
        super().__init__(
            rungs.weight, rungs.visible_bias, rungs.hidden_bias, rungs.visible, rungs.hidden
        )
        self.model_at_one, self.betas = model, betas

    def __getitem__(self, rungs):
        return Multiplied(self.model_at_one, self.betas[rungs])

    def free_energy(self, v, hidden_field=None):
        return self.betas[:, None] * self.model_at_one.free_energy(v).detach()


def distance_of_the_top(table, model, ladder: Ladder, rule: str, low: float = 0.0) -> float:
    """Total variation between the visible states of the last rung and the model.

    All systems start at one state. With N independent draws over K states the distance of a
    perfect sampler is about Σ sqrt(p(1 − p) / 2πN) ≤ sqrt(K / 2πN) = 0.010.
    """
    start = torch.full((len(ladder), 4000, model.n_visible), model.visible.support[0])
    system = Tempering(ladder, start, RandomStream(1), rule)
    counts = np.zeros(2**model.n_visible)
    for i in range(150):
        system.round()
        if i >= 50:
            counts += np.bincount(index(system.visible[-1], low), minlength=len(counts))
    assert counts.sum() == 400_000
    return 0.5 * float(np.abs(counts / counts.sum() - np.exp(table(model).log_marginal)).sum())


@RULES
def test_the_last_rung_has_the_distribution_of_the_model(rbm, table, rule):
    model = strong(rbm)
    ladder = temperature_ladder(model, BETAS)
    assert distance_of_the_top(table, model, ladder, rule) < 0.01


def test_exchange_by_beta_times_the_free_energy_at_one_is_seen_to_be_wrong(rbm, table):
    """So the test above would see it."""
    model = strong(rbm)
    ladder = Multiplied(model, torch.tensor(BETAS, dtype=torch.float64))
    assert distance_of_the_top(table, model, ladder, "free_energy") > 0.02


@RULES
def test_the_last_rung_of_a_ladder_of_unrelated_models_is_the_last_model(rbm, table, rule):
    ladder = unrelated(rbm)
    assert distance_of_the_top(table, ladder.model(3), ladder, rule) < 0.01
    for rung in range(3):
        p, q = (np.exp(table(ladder.model(r)).log_marginal) for r in (rung, 3))
        assert 0.5 * np.abs(p - q).sum() > 0.3


@RULES
def test_spins_temper_as_well(rbm, table, rule):
    model = rbm(6, 4, visible="spin", hidden="spin", scale=0.8)
    ladder = temperature_ladder(model, BETAS)
    assert distance_of_the_top(table, model, ladder, rule) < 0.01


def test_tempering_reaches_states_that_the_model_alone_does_not(rbm, table):
    """Two valleys apart: a chain of the top rung keeps to its own, exchanges do not."""
    model = rbm(6, 4, visible="spin", hidden="spin", scale=0.0, bias=0.0)
    with torch.no_grad():
        model.weight.fill_(0.9)
        model.visible_bias.fill_(0.05)
    reference = table(model)
    up = float(np.exp(reference.log_marginal)[reference.v.sum(1) > 0].sum())
    assert 0.6 < up < 0.9
    shares = []
    for betas in ([0.999, 1.0], BETAS):
        ladder = temperature_ladder(model, betas)
        system = Tempering(ladder, -torch.ones(len(betas), 2000, 6), RandomStream(0))
        for _ in range(60):
            system.round()
        shares.append(float((system.visible[-1].sum(-1) > 0).double().mean()))
    assert shares[0] < up / 4
    assert shares[1] == pytest.approx(up, abs=0.05)


# ---- detailed balance of one exchange ------------------------------------------------------------


def pair_of(rbm) -> Ladder:
    return Ladder.of([rbm(2, 2, scale=0.8, bias=0.5, seed=seed) for seed in (3, 4)])


def all_pairs(reference, copies: int) -> torch.Tensor:
    """Each of the 16 pairs of visible states on two rungs, many times."""
    low, high = np.repeat(reference.v, 4, 0), np.tile(reference.v, (4, 1))
    return torch.from_numpy(np.stack([np.repeat(v, copies, 0) for v in (low, high)]))


def acceptance_by_enumeration(tables, rule: str) -> np.ndarray:
    """A[i, j]: chance to exchange state i of the lower rung with j of the upper, from energies."""
    if rule == "free_energy":
        f, g = (-t.log_marginal for t in tables)
        work = (g - f)[:, None] + (f - g)[None, :]
        return np.exp(np.minimum(0, -work))
    given = [np.exp(t.log_probability - t.log_marginal[:, None]) for t in tables]
    energy = [t.energy for t in tables]
    accepted = np.zeros((4, 4))
    for i, j in np.ndindex(4, 4):
        for x, y in np.ndindex(4, 4):  # the hidden states drawn at i on the lower, j on the upper
            work = energy[1][i, x] - energy[0][i, x] + energy[0][j, y] - energy[1][j, y]
            accepted[i, j] += given[0][i, x] * given[1][j, y] * math.exp(min(0.0, -work))
    return accepted


@RULES
def test_an_exchange_satisfies_detailed_balance(rbm, table, rule):
    """π(i, j) A(i, j) = π(j, i) A(j, i) by enumeration, and the exchanges happen at these rates."""
    ladder, copies = pair_of(rbm), 8000
    tables = [table(ladder.model(rung)) for rung in (0, 1)]
    accept = acceptance_by_enumeration(tables, rule)
    joint = np.exp(tables[0].log_marginal[:, None] + tables[1].log_marginal[None, :])
    flow = joint * accept
    assert_allclose(flow, flow.T, atol=1e-15)
    start = all_pairs(tables[0], copies)
    system = Tempering(ladder, start, RandomStream(0), rule)
    system.round(n_steps=0)
    i, j = (index(v).reshape(16, copies) for v in start)
    low, high = (index(v).reshape(16, copies) for v in system.visible)
    kept, swapped = (low == i) & (high == j), (low == j) & (high == i)
    assert bool((kept | swapped).all()), "an exchange moves states and makes none"
    rate = (low != i).mean(1).reshape(4, 4)
    apart = ~np.eye(4, dtype=bool)
    error = np.sqrt(accept * (1 - accept) / copies) + 1e-12
    assert np.abs((rate - accept) / error)[apart].max() < 4.5
    assert 0.01 < accept[apart].min() < 0.5
    # All accepted exchanges are counted, also of equal states.
    expected = accept.mean()
    assert system.acceptance[0] == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(16 * copies))


@RULES
@pytest.mark.parametrize("n_steps", [0, 1])
def test_a_round_leaves_the_joint_distribution_of_two_rungs_as_it_is(rbm, table, rule, n_steps):
    """From exact samples of both rungs to exact samples of both, still independent."""
    ladder, n = pair_of(rbm), 100_000
    tables = [table(ladder.model(rung)) for rung in (0, 1)]
    joint = np.exp(tables[0].log_marginal[:, None] + tables[1].log_marginal[None, :]).ravel()
    system = Tempering(ladder, exact_samples(table, ladder, n), RandomStream(0), rule)
    before = system.visible.clone()
    system.round(n_steps)
    assert float((before != system.visible).double().mean()) > 0.02
    low, high = (index(v) for v in system.visible)
    counts = np.bincount(4 * low + high, minlength=16)
    chi_square = float(((counts - n * joint) ** 2 / (n * joint)).sum())
    assert chi_square < 40  # 15 degrees of freedom: p = 5e-4
    # One rung's distribution on the other would be far off.
    swapped = joint.reshape(4, 4).T.ravel()
    assert float(((counts - n * swapped) ** 2 / (n * swapped)).sum()) > 4000


@RULES
def test_long_ladders_exchange_even_and_odd_pairs_in_turn(rbm, table, rule):
    """And every round leaves all rungs in equilibrium."""
    ladder, n = unrelated(rbm), 40_000
    system = Tempering(ladder, exact_samples(table, ladder, n), RandomStream(0), rule)
    lowers = [system.round().lower for _ in range(4)]
    pairs = [list(range(3)[lower]) for lower in lowers]
    assert pairs == [[0, 2], [1], [0, 2], [1]]
    assert system.attempts.tolist() == [2 * n, 2 * n, 2 * n]
    for rung in range(4):
        p = np.exp(table(ladder.model(rung)).log_marginal)
        counts = np.bincount(index(system.visible[rung]), minlength=64)
        chi_square = float(((counts - n * p) ** 2 / (n * p)).sum())
        assert chi_square < 63 + 4.5 * math.sqrt(2 * 63)


def test_the_works_of_an_exchange_are_those_of_the_states_before_it(rbm, table):
    ladder = unrelated(rbm)
    for rule in ("free_energy", "energy"):
        system = Tempering(ladder, exact_samples(table, ladder, 50), RandomStream(0), rule)
        for _ in range(3):
            before = system.visible.clone()
            exchange = system.round(n_steps=0)
            if rule == "energy":
                continue
            for i, pair in enumerate(range(3)[exchange.lower]):
                low, high = (ladder[r : r + 1] for r in (pair, pair + 1))
                v, w = before[pair : pair + 1], before[pair + 1 : pair + 2]
                forward = (high.free_energy(v) - low.free_energy(v))[0]
                backward = (low.free_energy(w) - high.free_energy(w))[0]
                assert_allclose(exchange.forward[i], forward, atol=1e-11)
                assert_allclose(exchange.backward[i], backward, atol=1e-11)


def test_the_free_energy_rule_accepts_more(rbm, table):
    ladder = temperature_ladder(strong(rbm), BETAS)
    shares = []
    for rule in ("free_energy", "energy"):
        system = Tempering(ladder, exact_samples(table, ladder, 4000), RandomStream(0), rule)
        temper(system, 10)
        shares.append(system.acceptance)
    assert (shares[0] > shares[1] + 0.01).all()


# ---- the flow of replicas ------------------------------------------------------------------------


@pytest.mark.parametrize("n_rungs", [2, 3, 4, 7])
def test_where_every_exchange_succeeds_replicas_climb_one_rung_a_round(rbm, n_rungs):
    """Equal rungs: the even-odd scheme is a conveyor belt.

    A replica that leaves the first rung arrives at the last after n_rungs − 1 rounds, and then
    one comes every other round. Two rungs exchange in every round.
    """
    model = rbm(5, 3)
    system = Tempering(Ladder.of([model] * n_rungs), torch.zeros(n_rungs, 3, 5), RandomStream(0))
    arrivals = []
    for _ in range(20):
        before = system.arrivals.copy()
        system.round()
        arrivals.append(system.arrivals - before)
    assert all(len(set(a)) == 1 for a in arrivals)
    every = 1 if n_rungs == 2 else 2
    expected = [float(r >= n_rungs - 2 and (r - n_rungs + 2) % every == 0) for r in range(20)]
    assert [a[0] for a in arrivals] == expected
    assert system.acceptance.tolist() == [1.0] * (n_rungs - 1)
    total = sum(expected)
    assert system.arrivals.tolist() == [total] * 3
    assert system.arrival_time == pytest.approx(20 / total)
    assert (system.n_rounds, system.rounds_counted) == (20, 20.0)


class Watched(Tempering):
    """Tempering that gives every replica a name, and keeps the book of where each one was."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        n_rungs, n = self.visible.shape[:2]
        self.name = np.arange(n_rungs)[:, None].repeat(n, 1)
        self.paths: list[np.ndarray] = []

    def _exchange(self, parity):
        before = self.visible.clone()
        exchange = super()._exchange(parity)
        for pair in range(len(self.ladder) - 1)[exchange.lower]:
            # States are made distinct below, so that an exchange shows.
            moved = (self.visible[pair] != before[pair]).any(-1).numpy()
            both = (self.visible[pair + 1] != before[pair + 1]).any(-1).numpy()
            assert (moved == both).all()
            self.name[pair], self.name[pair + 1] = (
                np.where(moved, self.name[pair + 1], self.name[pair]),
                np.where(moved, self.name[pair], self.name[pair + 1]),
            )
        self.paths.append(self.name.copy())
        return exchange


def test_arrivals_are_those_of_replicas_followed_by_name(rbm):
    """The count of the flow against each replica's whole path."""
    n_rungs, n = 4, 200
    ladder = temperature_ladder(rbm(20, 10, scale=0.4), np.linspace(0, 1, n_rungs))
    rng = np.random.default_rng(0)
    start = torch.from_numpy(rng.integers(0, 2, (n_rungs, n, 20)).astype(float))
    system = Watched(ladder, start, RandomStream(0))
    for _ in range(60):
        system.round()
    arrivals = np.zeros(n)
    for s in range(n):
        for name in range(n_rungs):
            # A replica counts as one of the base if an exchange began while it was there.
            rung_before, from_base = name, False
            for path in system.paths:
                from_base = from_base or rung_before == 0
                rung = int(np.flatnonzero(path[:, s] == name)[0])
                if rung == n_rungs - 1:
                    arrivals[s] += from_base
                    from_base = False
                rung_before = rung
    assert arrivals.sum() > 3 * n
    assert arrivals.std() > 0
    # Two replicas that happen to be in the same state hide their exchange: 2^-20 likely.
    assert (system.arrivals == arrivals).all()
    assert system.arrival_time == pytest.approx(60 * n / arrivals.sum())


def test_before_an_arrival_the_time_is_infinite_and_acceptance_unknown(rbm):
    ladder = unrelated(rbm)
    system = Tempering(ladder, torch.zeros(4, 5, 6), RandomStream(0))
    assert system.arrival_time == math.inf
    assert np.isnan(system.acceptance).all()
    system.round()
    assert np.isnan(system.acceptance).tolist() == [False, True, False]


def test_what_is_forgotten_keeps_the_rates(rbm):
    ladder = unrelated(rbm)
    system = Tempering(ladder, torch.zeros(4, 50, 6), RandomStream(0))
    temper(system, 30)
    before, arrival_time, rounds = system.acceptance, system.arrival_time, system.n_rounds
    attempts = system.attempts.copy()
    system.forget(0.25)
    assert_allclose(system.acceptance, before)
    assert system.arrival_time == pytest.approx(arrival_time)
    assert system.n_rounds == rounds
    assert_allclose(system.attempts, attempts / 4)


def test_states_placed_on_the_top_are_those_exchanged(rbm, table):
    """Stale fields would draw the next hidden states of the old ones."""
    ladder = unrelated(rbm)
    n = 40_000
    start = exact_samples(table, ladder, n)
    wrong = start.clone()
    wrong[-1] = 0
    system = Tempering(ladder, wrong, RandomStream(0))
    system.place_top(start[-1])
    hidden = system.draw_top_hidden()
    reference = table(ladder.model(3))
    error = np.sqrt(reference.hidden * (1 - reference.hidden) / n)
    assert np.abs((hidden.mean(0).numpy() - reference.hidden) / error).max() < 4
    v, h = start[-1].numpy(), hidden.numpy()
    assert_allclose(v.T @ h / n, reference.correlation, atol=4.5 * 0.5 / math.sqrt(n))


# ---- log-partition functions ---------------------------------------------------------------------


def estimates(table, ladder, n_seeds: int, n_systems: int, n_rounds: int, **options):
    """From systems in equilibrium, once for each seed."""
    base = log_partitions(table, ladder)[0]
    found = []
    for seed in range(n_seeds):
        start = exact_samples(table, ladder, n_systems, seed)
        system = Tempering(ladder, start, RandomStream(seed))
        found.append(estimate(temper(system, n_rounds, **options), len(ladder), base))
    return found


@pytest.mark.parametrize("kind", ["temperatures", "unrelated", "spins"])
def test_the_log_partition_functions_of_all_rungs_are_right_within_their_errors(rbm, table, kind):
    ladder = {
        "temperatures": lambda: temperature_ladder(rbm(6, 4, scale=1.5), [0.0, 0.25, 0.5, 1.0]),
        "unrelated": lambda: unrelated(rbm),
        "spins": lambda: temperature_ladder(
            rbm(5, 4, visible="spin", hidden="spin"), [0.0, 0.5, 1.0]
        ),
    }[kind]()
    expected = log_partitions(table, ladder)
    found = estimates(table, ladder, 40, 40, 30)
    value = np.array([f.log_partition for f in found])
    error = np.array([f.stderr for f in found])
    assert (value[:, 0] == expected[0]).all()
    assert (error[:, 0] == 0).all()
    z = (value[:, 1:] - expected[1:]) / error[:, 1:]
    assert (np.abs(z) < 5).all()
    assert ((z.std(0) > 0.7) & (z.std(0) < 1.35)).all()
    assert (np.abs(z.mean(0)) < 0.65).all()  # 40 seeds: four errors of the mean
    # Small errors, so that the numbers mean something.
    assert (error < 0.15).all()
    assert (np.abs(np.diff(expected)) > 0.2).all()


def test_the_overlap_is_the_acceptance_of_the_exchange(rbm, table):
    ladder = unrelated(rbm)
    system = Tempering(ladder, exact_samples(table, ladder, 2000), RandomStream(0))
    exchanges = temper(system, 20)
    found = estimate(exchanges, 4, 0.0)
    assert_allclose(found.overlap, system.acceptance, atol=0.01)
    for pair in range(3):
        tables = [table(ladder.model(rung)) for rung in (pair, pair + 1)]
        f, g = (-t.log_marginal for t in tables)
        accept = np.exp(np.minimum(0, -((g - f)[:, None] + (f - g)[None, :])))
        expected = np.exp(-f) @ accept @ np.exp(-g)
        assert found.overlap[pair] == pytest.approx(expected, abs=0.02)


def test_errors_of_the_rungs_come_from_systems_that_are_all_the_same_below(rbm, table):
    """The influence on a rung is that of the rung below and one difference more."""
    found = estimates(table, unrelated(rbm), 1, 30, 20)[0]
    assert found.influence.shape == (4, 30)
    assert_allclose(found.influence.mean(1), 0.0, atol=1e-9)
    assert not found.influence[0].any()
    expected = np.sqrt((found.influence**2).sum(1) / (30 * 29))
    assert_allclose(found.stderr, expected)


def test_the_drift_is_of_the_order_of_one_in_equilibrium_and_large_out_of_it(rbm, table):
    """|z| of a normal variable: 0.8 on average, and above 3 once in 400."""
    ladder = unrelated(rbm)
    drift = np.array([f.drift for f in estimates(table, ladder, 40, 40, 32)])
    assert 0.5 < drift.mean() < 1.1
    assert (drift > 3).sum() <= 1
    # Far from equilibrium, on a ladder too sparse to forget it: the estimate moves.
    model = rbm(6, 4, visible="spin", hidden="spin", scale=0.0, bias=0.0)
    with torch.no_grad():
        model.weight.fill_(0.6)
        model.visible_bias.fill_(0.3)
    betas = [0.0, 0.1, 0.4, 1.0]
    frozen = Tempering(temperature_ladder(model, betas), -torch.ones(4, 400, 6), RandomStream(0))
    assert estimate(temper(frozen, 16), 4, 0.0).drift > 4


def test_the_drift_is_seen_against_systems_that_differ_but_move_alike():
    """Slow systems keep their differences in both halves: these are no error of the change."""
    rng = np.random.default_rng(0)
    level, move = 3 * rng.normal(size=50), 1 + 0.1 * rng.normal(size=50)
    exchanges = []
    for i in range(8):
        work = torch.from_numpy(level + (move if i >= 4 else 0.0))[None]
        exchanges.append(Exchange(slice(0, 1), work + 0.5, 0.5 - work))
    # One apart, against an error of 0.1 / √50; the spread of the systems would allow for 0.6.
    assert estimate(exchanges, 2, 0.0).drift > 20


def test_systems_that_keep_to_their_valleys_are_told_by_the_works(rbm, table):
    """R-hat is 1 where all systems see the same, and large where each sees its own."""
    assert estimates(table, unrelated(rbm), 1, 100, 200)[0].r_hat < 1.1
    model = rbm(6, 4, visible="spin", hidden="spin", scale=0.0, bias=0.0)
    with torch.no_grad():
        model.weight.fill_(1.5)
        model.visible_bias.fill_(0.2)
    ladder = temperature_ladder(model, [0.95, 1.0])
    start = torch.ones(2, 100, 6, dtype=torch.float64)
    start[:, ::2] = -1
    apart = Tempering(ladder, start, RandomStream(0))
    assert estimate(temper(apart, 200), 2, 0.0).r_hat > 1.5


@pytest.mark.parametrize("n_rounds", [2, 3])
def test_few_rounds_have_an_estimate_but_no_drift(rbm, table, n_rounds):
    found = estimates(table, unrelated(rbm), 1, 30, n_rounds)[0]
    assert np.isfinite(found.log_partition).all()
    assert np.isfinite(found.stderr).all()
    assert math.isnan(found.drift)


def test_one_system_has_no_error(rbm, table):
    found = estimates(table, unrelated(rbm), 1, 1, 40)[0]
    assert found.stderr.tolist()[1:] == [math.inf] * 3
    assert np.isfinite(found.log_partition).all()


def test_thinned_records_have_the_same_mean(rbm, table):
    """A tenth of the rounds, both parities among them."""
    ladder = unrelated(rbm)
    expected = log_partitions(table, ladder)
    system = Tempering(ladder, exact_samples(table, ladder, 500), RandomStream(0))
    exchanges = temper(system, 400, max_records=40)
    assert system.n_rounds == 400
    assert 40 <= len(exchanges) <= 42
    assert [e.lower.start for e in exchanges] == [0, 1] * (len(exchanges) // 2)
    found = estimate(exchanges, 4, expected[0])
    assert (np.abs(found.log_partition - expected)[1:] < 4 * found.stderr[1:]).all()
    assert found.stderr.max() < 0.05


# ---- runs that end early -------------------------------------------------------------------------


def test_a_deadline_ends_a_run_after_two_rounds_at_least(rbm):
    ladder = unrelated(rbm)
    system = Tempering(ladder, torch.zeros(4, 5, 6), RandomStream(0))
    assert len(temper(system, 1000, deadline=time.monotonic() - 1)) == 2
    assert system.n_rounds == 2
    assert len(temper(system, 11, deadline=time.monotonic() + 3600)) == 11
    slow = Tempering(ladder, torch.zeros(4, 5, 6), RandomStream(0))
    begin = time.monotonic()
    n = len(temper(slow, 10**6, max_records=10**6, deadline=begin + 0.05))
    assert 2 <= n < 10**5
    assert n % 2 == 0


def test_the_same_seed_gives_the_same_run(rbm):
    ladder = unrelated(rbm)
    runs = []
    for _ in range(2):
        system = Tempering(ladder, torch.zeros(4, 5, 6), RandomStream(3))
        runs.append((temper(system, 20)[-1].forward, system.visible, system.accepts))
    assert bool((runs[0][0] == runs[1][0]).all())
    assert bool((runs[0][1] == runs[1][1]).all())
    assert (runs[0][2] == runs[1][2]).all()


def test_the_states_given_are_left_as_they_were(rbm):
    ladder = unrelated(rbm)
    start = torch.zeros(4, 5, 6, dtype=torch.float64)
    temper(Tempering(ladder, start, RandomStream(0)), 10)
    assert not bool(start.any())


# ---- adapted ladders -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["temperatures", "models"])
def test_an_adapted_ladder_exchanges_every_second_time(rbm, table, kind):
    if kind == "temperatures":
        ends = temperature_ladder(rbm(12, 8, scale=1.5), [0.0, 1.0])
    else:
        scales = enumerate((0.0, 0.7, 1.5))
        ends = Ladder.of([rbm(12, 8, scale=scale, seed=seed) for seed, scale in scales])
    system = adapt_ladder(ends, 200, RandomStream(0), n_passes=4)
    ladder = system.ladder
    for name in ("weight", "visible_bias", "hidden_bias"):
        assert bool((getattr(ladder, name)[[0, -1]] == getattr(ends, name)[[0, -1]]).all())
    assert len(ladder) == system.visible.shape[0] > 4
    assert system.n_rounds == 0, "nothing counted on rungs that are new"
    temper(system, 60)
    assert 0.4 < system.acceptance.mean() < 0.65
    assert system.acceptance.min() > 0.25
    assert system.acceptance.max() < 0.8
    # Rejections add up to what the ladder needs, whatever the number of rungs.
    finer = adapt_ladder(ends, 200, RandomStream(1), rejection=0.25)
    temper(finer, 60)
    assert finer.acceptance.mean() == pytest.approx(0.75, abs=0.08)
    assert len(finer.ladder) > 1.5 * len(ladder)


def test_an_adapted_ladder_measures_the_partition_function(rbm, table):
    ends = temperature_ladder(rbm(8, 5, scale=1.5), [0.0, 1.0])
    system = adapt_ladder(ends, 200, RandomStream(0))
    found = estimate(temper(system, 100), len(system.ladder), ends.base_log_partition())
    expected = table(ends.model(1)).log_partition
    assert abs(found.log_partition[-1] - expected) < 4 * found.stderr[-1]
    assert found.stderr[-1] < 0.05


def test_systems_start_at_the_first_rung_at_given_rows_and_far_from_both(rbm):
    ends = temperature_ladder(rbm(30, 5), [0.0, 1.0])
    rows = torch.from_numpy(np.eye(3, 30))
    system = adapt_ladder(ends, 400, RandomStream(0), n_passes=0, start=rows)
    assert system.n_systems == 400
    assert bool((system.visible == system.visible[:1]).all()), "on all rungs alike"
    given, drawn = system.visible[0, ::4], system.visible[0, 1::2]
    counts = [int((given == row).all(1).sum()) for row in rows]
    assert sum(counts) == 100
    assert min(counts) > 15
    assert float(drawn.mean()) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(200 * 30))
    alone = adapt_ladder(ends, 400, RandomStream(0), n_passes=0)
    drawn = alone.visible[0, 1::2]
    assert float(drawn.mean()) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(200 * 30))


def test_a_heavy_valley_far_from_data_and_base_is_not_missed_in_silence():
    """Data and base at zero, nearly all of the weight at one: ln Z is 20, and looks like 0."""
    model = RBM(60, 40, dtype=torch.float64)
    with torch.no_grad():
        model.weight.fill_(0.5)
        model.visible_bias.fill_(-10.0)
        model.hidden_bias.fill_(-14.5)
    data = torch.zeros(50, 60, dtype=torch.float64)
    for method in ("tap", "ptt", "bar", "auto"):
        found = log_partition(model, method, data=data, time_budget=0.5)
        assert not found.trusted
        assert found.reasons


def test_a_deadline_ends_the_adaptation(rbm):
    ends = temperature_ladder(rbm(12, 8, scale=1.5), [0.0, 1.0])
    begin = time.monotonic()
    system = adapt_ladder(ends, 50, RandomStream(0), n_rounds=10**6, deadline=begin + 0.2)
    assert time.monotonic() - begin < 10
    for name in ("weight", "visible_bias", "hidden_bias"):
        assert bool((getattr(system.ladder, name)[[0, -1]] == getattr(ends, name)).all())


def test_the_number_of_rungs_is_bounded(rbm):
    ends = temperature_ladder(rbm(12, 8, scale=3.0), [0.0, 1.0])
    system = adapt_ladder(ends, 20, RandomStream(0), max_rungs=5, n_passes=2, n_rounds=4)
    assert len(system.ladder) == 5
    equal = Ladder.of([rbm(5, 3, scale=0.0)] * 2)
    system = adapt_ladder(equal, 20, RandomStream(0), n_passes=2, n_rounds=4)
    assert 2 <= len(system.ladder) <= 3
    temper(system, 4)
    assert (system.acceptance == 1).all()


# ---- refusals ------------------------------------------------------------------------------------


def test_impossible_systems_are_refused(rbm):
    ladder = unrelated(rbm)
    with pytest.raises(ValueError, match="rule must be 'free_energy' or 'energy', got 'beta'"):
        Tempering(ladder, torch.zeros(4, 5, 6), RandomStream(0), "beta")
    with pytest.raises(ValueError, match="at least two rungs"):
        Tempering(ladder[:1], torch.zeros(1, 5, 6), RandomStream(0))
    with pytest.raises(ValueError, match="a ladder of 4 rungs needs states for each, got 3"):
        Tempering(ladder, torch.zeros(3, 5, 6), RandomStream(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_states_have_the_precision_of_the_ladder(rbm, dtype):
    ladder = temperature_ladder(rbm(6, 4, dtype=dtype), BETAS)
    start = sample_base(ladder, 10, RandomStream(0)).expand(6, -1, -1)
    system = Tempering(ladder, start.double(), RandomStream(0))
    temper(system, 4)
    assert system.visible.dtype == system.draw_top_hidden().dtype == dtype


# ---- several processes ---------------------------------------------------------------------------


def independent_start(ladder: Ladder, n: int) -> torch.Tensor:
    return sample_base(ladder, n, RandomStream(9)).expand(len(ladder), -1, -1).clone()


@pytest.mark.parametrize("n_rungs", [2, 4, 5])
@pytest.mark.parametrize(("size", "n_systems"), [(2, 7), (3, 2)])
def test_the_systems_of_several_processes_are_those_of_one_run_side_by_side(
    rbm, together, n_rungs, size, n_systems
):
    """Even and odd rounds have as many pairs or one less; a process may have no system."""
    ladder = temperature_ladder(strong(rbm), np.linspace(0.0, 1.0, n_rungs))
    start = independent_start(ladder, n_systems)

    def system_of(group) -> Tempering:
        own = start[:, group.portion(n_systems)]
        return Tempering(ladder, own, RandomStream(group.rank))

    def work(group):
        system = system_of(group)
        exchanges = temper(system, 21, max_records=12, group=group)
        return exchanges, system.flow(group)

    def by_itself(group):
        system = system_of(group)
        return temper(system, 21, max_records=12), system

    parts, systems = zip(*together(size, by_itself), strict=True)
    for exchanges, flow in together(size, work):
        assert len(exchanges) == len(parts[0])
        for found, *own in zip(exchanges, *parts, strict=True):
            assert {part.lower.start for part in own} == {found.lower.start}
            assert_array_equal(found.forward, torch.cat([part.forward for part in own], 1))
            assert_array_equal(found.backward, torch.cat([part.backward for part in own], 1))
        assert_array_equal(flow.arrivals, np.concatenate([s.arrivals for s in systems]))
        accepted, tried = (sum(getattr(s, x) for s in systems) for x in ("accepts", "attempts"))
        assert_array_equal(flow.acceptance, accepted / tried)
        came = flow.arrivals.sum()
        assert flow.arrival_time == (21 * n_systems / came if came else math.inf)


def test_rounds_that_not_all_processes_made_are_left_out(rbm, together, monkeypatch):
    ladder = temperature_ladder(rbm(6, 4), [0.0, 0.5, 1.0])
    whole_round = Tempering.round

    def late(self, n_steps=1):
        time.sleep(0.02 if self.n_systems == 1 else 0.0)
        return whole_round(self, n_steps)

    monkeypatch.setattr(Tempering, "round", late)

    def work(group):
        n = group.share(3)
        system = Tempering(ladder, torch.zeros(3, n, 6), group.stream(RandomStream(0)))
        found = temper(system, 10_000, deadline=time.monotonic() + 0.2, group=group)
        return found, system.n_rounds

    (first, short), (second, long) = together(2, work)
    assert 2 <= short < long
    assert len(first) == len(second) == 2 * math.ceil(short / 2 / 10)
    assert {exchange.forward.shape[1] for exchange in first} == {3}


def test_all_processes_adapt_one_ladder(rbm, together):
    model = strong(rbm)
    ends = temperature_ladder(model, [0.0, 1.0])

    def work(group):
        random = group.stream(RandomStream(0))
        system = adapt_ladder(ends, 11, random, start=torch.ones(3, 8), group=group)
        return system.ladder, system.visible, system.acceptance

    found = together(3, work)
    for ladder, visible, _ in found:
        assert_array_equal(ladder.weight, found[0][0].weight)
        assert visible.shape[:2] == (len(ladder), visible.shape[1])
    assert [visible.shape[1] for _, visible, _ in found] == [3, 4, 4]
    # As long as that of one process, but for the noise.
    one = adapt_ladder(ends, 11, RandomStream(0), start=torch.ones(3, 8))
    assert abs(len(one.ladder) - len(found[0][0])) <= 1


def test_where_a_system_starts_does_not_depend_on_the_number_of_processes(rbm, together):
    """Every fourth system of all starts at the data, even if each process has but one system."""
    ends = temperature_ladder(rbm(40, 4), [0.0, 1.0])
    data = torch.ones(1, 40)

    def work(group):
        random = group.stream(RandomStream(0))
        system = adapt_ladder(ends, 9, random, start=data, n_passes=0, group=group)
        return group.join(system.visible, axis=1)

    for size in (1, 2, 9, 12):
        at_data = (together(size, work)[0] == 1).all(-1).all(0)
        assert at_data.nonzero()[:, 0].tolist() == [0, 4, 8]

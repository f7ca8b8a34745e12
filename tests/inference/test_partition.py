"""ln Z by every method: intervals that cover the exact value, and no trust where it is wrong."""

from __future__ import annotations

import itertools
import math
import time
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.stats import binom

from freenergy.inference import MeanFieldWarning, exact
from freenergy.inference.bridge import bennett, jarzynski
from freenergy.inference.ladder import Ladder, annealing_ladder, temperature_ladder
from freenergy.inference.partition import METHODS, LogPartition, log_partition
from freenergy.inference.tempering import Tempering
from freenergy.models import RBM
from freenergy.random import RandomStream
from freenergy.training import Trainer, TrainingOptions, as_rows, initialize

N_MODELS = 40
SAMPLED = ("ais", "reverse_ais", "bar", "ptt")
UNITS = pytest.mark.parametrize("unit", ["bernoulli", "spin"])


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MeanFieldWarning)
        yield


def random_model(seed: int) -> RBM:
    """As in benchmarks/partition_coverage.py: weak to very strong, one in three is planted."""
    random = np.random.default_rng(seed)
    n_visible, n_hidden = int(random.integers(6, 15)), int(random.integers(3, 11))
    spin = seed % 2 == 1
    unit = "spin" if spin else "bernoulli"
    scale = np.exp(random.uniform(np.log(0.05), np.log(4.0))) / (4.0 if spin else 1.0)
    weight = random.normal(size=(n_visible, n_hidden)) * scale
    if seed % 3 == 0:
        n_patterns = int(random.integers(1, 4))
        left = random.choice([-1.0, 1.0], (n_visible, n_patterns))
        right = random.choice([-1.0, 1.0], (n_patterns, n_hidden))
        weight = 0.1 * weight + scale * left @ right / np.sqrt(n_patterns)
    model = RBM(n_visible, n_hidden, visible=unit, hidden=unit, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(weight))
        model.visible_bias.copy_(torch.from_numpy(random.normal(0.0, 0.5, n_visible)))
        model.hidden_bias.copy_(torch.from_numpy(random.normal(0.0, 0.5, n_hidden)))
        if seed % 3 == 0 and not spin:
            model.visible_bias.sub_(model.weight.sum(1) / 2)
            model.hidden_bias.sub_(model.weight.sum(0) / 2)
    return model


@torch.no_grad()
def true_samples(model: RBM, n: int, seed: int = 0, beta: float = 1.0) -> torch.Tensor:
    """Independent states of a small model, drawn from the table of all of them."""
    support = model.visible.support
    states = torch.tensor(list(itertools.product(support, repeat=model.n_visible))).to(model.weight)
    weights = torch.softmax(-beta * model.free_energy(states, beta), 0).numpy()
    index = np.random.default_rng(seed).choice(len(states), n, p=weights / weights.sum())
    return states[torch.from_numpy(index)]


@pytest.fixture(scope="module")
def models() -> list[tuple[RBM, float]]:
    """The random models with their exact ln Z."""
    found = [random_model(seed) for seed in range(N_MODELS)]
    return [(model, exact(model).log_partition) for model in found]


def covers(result: LogPartition, truth: float) -> bool:
    return result.lower - 1e-9 <= truth <= result.upper + 1e-9


def never_wrong(result: LogPartition, truth: float) -> None:
    """What is trusted is right to a nat, and what is not says why."""
    assert result.trusted == (not result.reasons)
    assert result.lower <= result.value <= result.upper or math.isnan(result.value)
    if result.trusted:
        assert abs(result.value - truth) < 1.0, (result, truth)


# ---- coverage ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "least"), [("exact", 40), ("tap", 20), ("ais", 20), ("reverse_ais", 20), ("bar", 20)]
)
def test_intervals_cover_the_truth(models, method, least):
    """With true samples for the backward direction, so that annealing alone is judged."""
    trusted = missed = 0
    for seed, (model, truth) in enumerate(models):
        samples = None if method in ("exact", "tap") else true_samples(model, 64, seed)
        result = log_partition(model, method, samples=samples, n_chains=64, random=seed)
        never_wrong(result, truth)
        trusted += result.trusted
        missed += result.trusted and not covers(result, truth)
    assert trusted >= least, "a method that trusts nothing would pass the rest"
    # Of 40 intervals of 95 % two miss on average; more than 5 once in 70 such sets of models.
    assert missed <= binom.ppf(0.99, trusted, 0.05)


def test_intervals_of_replica_exchange_cover_the_truth(models):
    trusted = missed = 0
    for seed, (model, truth) in enumerate(models):
        result = log_partition(model, "ptt", n_chains=64, random=seed, time_budget=20.0)
        never_wrong(result, truth)
        trusted += result.trusted
        missed += result.trusted and not covers(result, truth)
    assert trusted >= 30
    assert missed <= binom.ppf(0.99, trusted, 0.05)


@pytest.mark.parametrize("method", SAMPLED)
def test_the_hard_planted_model_is_never_trusted_and_wrong(method):
    """Seed 2157 has valleys that chains do not leave: all may sit in one, and agree."""
    model = random_model(2157)
    truth = exact(model).log_partition
    for seed in range(2):
        result = log_partition(model, method, random=seed, n_chains=64, time_budget=0.7)
        never_wrong(result, truth)


@pytest.mark.parametrize("seed", [0, 3, 6, 33])
def test_samples_are_found_where_none_are_given(models, seed):
    model, truth = models[seed]
    for method in ("bar", "ais", "reverse_ais"):
        result = log_partition(model, method, n_chains=64, random=seed, time_budget=2.0)
        never_wrong(result, truth)
        diagnostics = result.diagnostics
        assert {"ladder_log_partition", "r_hat", "acceptance", "seconds"} <= diagnostics.keys()
        if result.trusted:
            assert abs(result.value - truth) < 4 * result.stderr + 1e-9


# ---- temperature, units, data --------------------------------------------------------------------


@UNITS
@pytest.mark.parametrize("beta", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("method", [m for m in METHODS if m != "tap"])
def test_every_method_is_right_at_every_temperature(rbm, unit, beta, method):
    scale = 0.4 if unit == "bernoulli" else 0.1
    model = rbm(7, 4, visible=unit, hidden=unit, scale=scale)
    truth = exact(model, beta).log_partition
    data = true_samples(model, 100, beta=beta)
    result = log_partition(model, method, beta=beta, data=data, n_chains=64, random=1)
    assert result.trusted, result
    assert result.beta == beta
    assert result.value == pytest.approx(truth, abs=4 * result.stderr + 1e-9)
    assert result.upper - result.lower < 1.0
    assert result.method == ("exact" if method == "auto" else method)


@UNITS
@pytest.mark.parametrize("beta", [0.4, 1.0])
def test_mean_field_holds_where_couplings_are_weak(rbm, unit, beta):
    scale = 0.3 if unit == "bernoulli" else 0.05
    model = rbm(7, 4, visible=unit, hidden=unit, scale=scale)
    truth = exact(model, beta).log_partition
    for data in (None, true_samples(model, 30, beta=beta)):
        result = log_partition(model, "tap", beta=beta, data=data)
        assert result.trusted, result
        assert math.isnan(result.stderr)
        assert covers(result, truth)
        orders = result.diagnostics["orders"]
        assert result.value == orders[3]
        assert abs(orders[3] - truth) <= abs(orders[1] - truth)


def test_mean_field_is_not_trusted_where_couplings_are_strong():
    model = random_model(2157)
    result = log_partition(model, "tap")
    never_wrong(result, exact(model).log_partition)
    assert not result.trusted


def test_units_may_differ(rbm):
    model = rbm(7, 4, visible="spin", hidden="bernoulli", scale=0.3)
    truth = exact(model).log_partition
    for method in SAMPLED:
        result = log_partition(model, method, n_chains=64)
        assert result.value == pytest.approx(truth, abs=4 * result.stderr), method


def test_single_precision_is_enough(rbm):
    model = rbm(7, 4, scale=0.4, dtype=torch.float32)
    truth = exact(model).log_partition
    for method in ("bar", "ptt"):
        result = log_partition(model, method, data=torch.zeros(3, 7, dtype=torch.float64))
        assert result.value == pytest.approx(truth, abs=4 * result.stderr + 1e-5)


def test_auto_takes_what_is_feasible(rbm):
    assert log_partition(rbm(7, 4)).method == "exact"
    weak, strong = rbm(60, 60, scale=0.02), rbm(60, 60, scale=0.4)
    found = log_partition(weak)
    assert (found.method, found.trusted) == ("tap", True)
    found = log_partition(strong, time_budget=0.5)
    assert found.method == "ptt"
    with pytest.raises(ValueError, match="too large for enumeration: use method='auto'"):
        log_partition(weak, "exact")


# ---- annealing -----------------------------------------------------------------------------------


def test_one_direction_is_low_and_the_other_high(rbm):
    """In a single step: forward annealing misses states, backward overrates them."""
    model = rbm(8, 6, visible="spin", hidden="spin", scale=0.7)
    truth = exact(model).log_partition
    # The means for the independent model must not be those of the same few samples.
    options = {"data": true_samples(model, 500, 999), "n_temperatures": (0.0, 1.0), "n_chains": 4}
    low, high = [], []
    for seed in range(200):
        samples = true_samples(model, 4, seed)
        result = log_partition(model, "bar", samples=samples, random=seed, **options)
        works = result.diagnostics
        low.append(works["forward"] - truth)
        high.append(works["backward"] - truth)
        # Single works scatter about their own end to the same side (Jensen).
        assert np.mean(works["forward_work"]) >= works["base_log_partition"] - works["forward"]
        assert np.mean(works["backward_work"]) <= works["base_log_partition"] - works["backward"]
    for sign, gaps in ((-1, low), (1, high)):
        assert sign * np.mean(gaps) > 4 * np.std(gaps) / math.sqrt(len(gaps))


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_the_temperatures_can_be_given(rbm, beta):
    model = rbm(7, 4, scale=0.5)
    truth = exact(model, beta).log_partition
    samples = true_samples(model, 64, beta=beta)
    options = {"beta": beta, "samples": samples, "n_chains": 64}
    for asked in (
        1,
        80,
        np.linspace(0, 1, 80),
        [*np.linspace(0, 1, 79) ** 2, 1.0],
        tuple(range(2)),
    ):
        result = log_partition(model, "bar", n_temperatures=asked, **options)
        n = asked if isinstance(asked, int) else len(asked)
        assert result.diagnostics["n_temperatures"] == pytest.approx(n, abs=2)
        assert result.value == pytest.approx(truth, abs=4 * result.stderr)


def test_a_number_of_temperatures_may_be_of_numpy(rbm):
    model = rbm(7, 4)
    options = {"samples": true_samples(model, 128)}
    found = log_partition(model, "bar", n_temperatures=np.int64(80), **options)
    assert found.value == log_partition(model, "bar", n_temperatures=80, **options).value


@pytest.mark.parametrize(
    "asked",
    [
        0,
        -3,
        [],
        [0.0],
        [0.0, 0.5],
        [0.5, 1.0],
        [0.0, 2.0],
        [-1.0, 1.0],
        [1.0, 0.0],
        [0.0, math.nan, 1.0],
    ],
    ids=str,
)
def test_temperatures_that_lead_nowhere_are_refused(rbm, asked):
    with pytest.raises(ValueError, match="n_temperatures"):
        log_partition(rbm(7, 4), "bar", n_temperatures=asked, samples=true_samples(rbm(7, 4), 128))


@UNITS
@pytest.mark.parametrize("method", ["ais", "reverse_ais", "bar"])
@pytest.mark.parametrize("kind", ["constant", "of another model"])
def test_samples_of_something_else_are_seen(rbm, unit, kind, method):
    scale = 1.0 if unit == "bernoulli" else 0.4
    model = rbm(9, 6, visible=unit, hidden=unit, scale=scale)
    truth = exact(model).log_partition
    samples = torch.full((64, 9), model.visible.support[0], dtype=torch.float64)
    if kind == "of another model":
        samples = true_samples(rbm(9, 6, visible=unit, hidden=unit, scale=4 * scale, seed=5), 64)
    result = log_partition(model, method, samples=samples, n_chains=64, n_temperatures=(0.0, 1.0))
    assert not result.trusted
    assert any("disagree" in r or "rests on" in r for r in result.reasons)
    # Chains that take many steps forget where they started, and may then be right.
    never_wrong(log_partition(model, method, samples=samples, n_chains=64), truth)


@UNITS
def test_samples_of_one_valley_of_many_are_seen(unit):
    """Chains that stay in the valley they start in see less than the model."""
    spin = unit == "spin"
    rng = np.random.default_rng(0)
    left, right = (rng.choice([-1.0, 1.0], n) for n in (12, 8))
    model = RBM(12, 8, visible=unit, hidden=unit, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy((0.6 if spin else 2.4) * np.outer(left, right)))
        # The other valley, which no sample shows, is the deeper one.
        model.visible_bias.copy_(torch.from_numpy((0.15 if spin else 0.3) * left))
        model.hidden_bias.zero_()
        if not spin:
            model.visible_bias.sub_(model.weight.sum(1) / 2)
            model.hidden_bias.sub_(model.weight.sum(0) / 2)
    low, high = model.visible.support
    samples = torch.from_numpy(np.where(left > 0, low, high)).expand(64, -1).clone()
    truth = exact(model).log_partition
    for method in ("ais", "reverse_ais", "bar"):
        result = log_partition(model, method, samples=samples, n_chains=64)
        assert not result.trusted, (truth, result)


def test_too_few_samples_are_refused(rbm):
    with pytest.raises(ValueError, match="samples has 5 rows, fewer than the 64 chains"):
        log_partition(rbm(7, 4), "bar", samples=torch.zeros(5, 7), n_chains=64)


def test_too_few_chains_are_not_trusted(rbm):
    """Two or four chains cannot see that they are all wrong."""
    model = rbm(9, 6, scale=1.0)
    truth = exact(model).log_partition
    for n in (2, 4):
        for method in ("ais", "reverse_ais", "bar"):
            result = log_partition(model, method, n_chains=n, samples=true_samples(model, n))
            assert not result.trusted
            assert any(f"of {n} chains" in reason for reason in result.reasons)
        result = log_partition(model, "ptt", n_chains=n, time_budget=1.0)
        never_wrong(result, truth)


# ---- a badly trained model -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def overdone() -> tuple[RBM, torch.Tensor]:
    """Trained by PCD-1 with a rate far too high: deep valleys that no chain crosses."""
    rng = np.random.default_rng(0)
    patterns = rng.random((6, 24)) < 0.5
    flips = rng.random((300, 24)) < 0.02
    data = torch.from_numpy((patterns[rng.integers(0, 6, 300)] ^ flips).astype(float))
    model, random = RBM(24, 12, dtype=torch.float64), RandomStream(0)
    rows = as_rows(data, like=data)
    initialize(model, rows, random)
    options = TrainingOptions(method="pcd", n_epochs=60, batch_size=20, learning_rate=1.0)
    Trainer(model, options, random).fit(rows)
    return model, data


@pytest.mark.parametrize("seed", range(3))
def test_naive_annealing_of_a_badly_trained_model_is_not_trusted(overdone, seed):
    model, data = overdone
    truth = exact(model).log_partition
    # As it is often done: few temperatures, and the data where the chains of the model should be.
    for n in (4, 30):
        naive = log_partition(
            model, "ais", samples=data, n_temperatures=n, n_chains=64, random=seed
        )
        assert not naive.trusted
        assert any("disagree" in reason for reason in naive.reasons)
    for method in SAMPLED:
        result = log_partition(model, method, data=data, time_budget=0.7, random=seed)
        never_wrong(result, truth)


# ---- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [m for m in METHODS if m != "exact"])
def test_little_time_gives_an_answer_soon(rbm, method):
    model = rbm(40, 30, scale=0.5)
    begin = time.monotonic()
    result = log_partition(model, method, time_budget=1e-3)
    assert time.monotonic() - begin < 15.0
    assert result.lower <= result.value <= result.upper
    assert result.trusted == (not result.reasons)
    assert result.diagnostics["seconds"] == pytest.approx(time.monotonic() - begin, abs=0.5)


def test_little_time_is_never_trusted_and_wrong(models):
    for seed, (model, truth) in enumerate(models[:15]):
        for method in ("bar", "ptt"):
            result = log_partition(model, method, time_budget=1e-3, n_chains=32, random=seed)
            never_wrong(result, truth)


@pytest.mark.parametrize("method", SAMPLED)
def test_a_width_that_is_not_reached_is_told(rbm, method):
    model = rbm(7, 4, scale=0.5)
    result = log_partition(model, method, width=1e-7, time_budget=0.2, n_chains=32)
    assert not result.trusted
    wide = [reason for reason in result.reasons if "nats wide, more than the 1e-07" in reason]
    assert len(wide) == 1
    assert "raise time_budget or n_chains" in wide[0]
    assert result.upper - result.lower > 1e-7


def test_a_width_that_mean_field_does_not_reach_is_told(rbm):
    result = log_partition(rbm(7, 4, scale=0.3), "tap", width=1e-9)
    assert not result.trusted
    assert "differ by more than" in result.reasons[-1]


def test_a_narrower_width_is_worked_for(rbm):
    model = rbm(12, 8, scale=1.0)
    narrow = log_partition(model, "ptt", width=0.02, n_chains=32)
    wide = log_partition(model, "ptt", width=2.0, n_chains=32)
    assert narrow.trusted
    assert narrow.upper - narrow.lower <= 0.02
    assert narrow.diagnostics["n_rounds"] > wide.diagnostics["n_rounds"]


def test_more_confidence_is_a_wider_interval(rbm):
    model = rbm(7, 4, scale=0.5)
    options = {"n_chains": 32, "samples": true_samples(model, 32)}
    some, more = (log_partition(model, "bar", confidence=c, **options) for c in (0.5, 0.99))
    assert some.value == more.value
    assert some.upper - some.lower < more.upper - more.lower
    assert (some.confidence, more.confidence) == (0.5, 0.99)


# ---- ladders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "beta"), [("bernoulli", 1.0), ("bernoulli", 2.0), ("spin", 1.0)])
def test_the_ladder_of_a_training_gives_the_exact_value(unit, beta):
    rng = np.random.default_rng(1)
    patterns = rng.random((4, 12)) < 0.5
    data = patterns[rng.integers(0, 4, 200)] ^ (rng.random((200, 12)) < 0.05)
    data = torch.from_numpy(data.astype(float))
    if unit == "spin":
        data = 2 * data - 1
    model = RBM(12, 6, visible=unit, hidden=unit, dtype=torch.float64)
    random, rows = RandomStream(0), as_rows(data, like=data)
    initialize(model, rows, random, beta)
    options = TrainingOptions(
        method="ptt",
        n_epochs=40,
        batch_size=20,
        learning_rate=0.05 if unit == "spin" else 0.2,
        beta=beta,
        n_chains=50,
    )
    trainer = Trainer(model, options, random)
    trainer.fit(rows)
    ladder = trainer.gradient.ladder
    assert len(ladder) > 2
    truth = exact(model, beta).log_partition
    result = log_partition(model, "ptt", beta=beta, ladder=ladder, data=data)
    assert result.trusted, result
    assert result.value == pytest.approx(truth, abs=4 * result.stderr)
    assert result.stderr < 0.1


def test_a_given_ladder_stays_as_it_was(rbm):
    model = rbm(7, 4, scale=0.5)
    ladder = temperature_ladder(model, [0.0, 0.5, 1.0])
    before = ladder.weight.clone(), ladder.visible_bias.clone()
    result = log_partition(model, "ptt", ladder=ladder)
    assert result.value == pytest.approx(exact(model).log_partition, abs=4 * result.stderr)
    assert bool((ladder.weight == before[0]).all())
    assert bool((ladder.visible_bias == before[1]).all())


def test_a_ladder_to_another_model_is_refused(rbm):
    model, base = rbm(7, 4, scale=0.5), rbm(7, 4, scale=0.0)
    other, wide = rbm(7, 4, scale=0.5, seed=1), rbm(8, 4)
    message = "the last rung of the ladder is not this model at this beta"
    wrong = (
        annealing_ladder(other, base),
        annealing_ladder(wide, rbm(8, 4, scale=0.0)),
        annealing_ladder(model, base, 2.0),
        annealing_ladder(model, base)[:1],
    )
    for ladder in wrong:
        with pytest.raises(ValueError, match=message):
            log_partition(model, "ptt", ladder=ladder)
    with pytest.raises(ValueError, match="coupl"):
        log_partition(model, "ptt", ladder=Ladder.of([other, model]))


@pytest.mark.parametrize("name", ["visible_bias", "hidden_bias"])
def test_a_ladder_to_a_model_of_other_biases_is_refused(rbm, name):
    model, base = rbm(7, 4, scale=0.5), rbm(7, 4, scale=0.0)
    ladder = annealing_ladder(model, base)
    getattr(ladder, name)[-1] += 1.0
    with pytest.raises(ValueError, match="the last rung of the ladder is not this model"):
        log_partition(model, "ptt", ladder=ladder, time_budget=0.2)


def test_a_ladder_of_other_units_is_refused(rbm):
    model, base = rbm(7, 4, scale=0.5), rbm(7, 4, scale=0.0)
    ladder = annealing_ladder(model, base)
    spins = rbm(1, 1, visible="spin", hidden="spin")
    ladder = Ladder(
        ladder.weight, ladder.visible_bias, ladder.hidden_bias, spins.visible, spins.hidden
    )
    with pytest.raises(ValueError, match="unit"):
        log_partition(model, "ptt", ladder=ladder, time_budget=0.2)


# ---- the interface -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_value(rbm, method):
    model = rbm(9, 5, scale=0.4)
    options = {"n_chains": 32, "width": 2.0}
    same = [
        log_partition(model, method, random=random, **options) for random in (3, RandomStream(3), 3)
    ]
    assert len({(r.value, r.lower, r.upper, r.trusted) for r in same}) == 1
    if method in SAMPLED:
        assert log_partition(model, method, random=4, **options).value != same[0].value


def test_the_global_streams_and_the_model_stay_as_they_were(rbm):
    model = rbm(7, 4)
    before = torch.get_rng_state(), [p.detach().clone() for p in model.parameters()]
    log_partition(model, "bar", n_chains=16)
    assert bool((torch.get_rng_state() == before[0]).all())
    for parameter, old in zip(model.parameters(), before[1], strict=True):
        assert bool((parameter == old).all())
        assert parameter.grad is None


def test_a_result_is_described():
    good = LogPartition(12.3456789, 12.0, 12.5, 0.1, "bar", True)
    assert repr(good) == (
        "LogPartition(value=12.3457, lower=12, upper=12.5, method='bar', trusted=True)"
    )
    bad = LogPartition(1.0, 0.0, 2.0, 0.1, "ais", False, ("why",))
    assert repr(bad) == (
        "LogPartition(value=1, lower=0, upper=2, method='ais', trusted=False, reasons=('why',))"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "guess"}, "method must be one of auto, exact, tap, ais, .*, got 'guess'"),
        ({"beta": 0.0}, "beta must be positive"),
        ({"beta": math.inf}, "beta must be positive and finite"),
        ({"beta": math.nan}, "beta must be positive"),
        ({"n_chains": 1}, "n_chains must be at least 2"),
        ({"width": 0.0}, "width must be positive"),
        ({"width": math.nan}, "width must be positive"),
        ({"time_budget": 0.0}, "time_budget must be positive"),
        ({"confidence": 1.0}, "confidence must lie between 0 and 1"),
        ({"confidence": 0.0}, "confidence must lie between 0 and 1"),
        ({"data": torch.zeros(3, 5)}, r"data must have shape \(n, 7\), got \(3, 5\)"),
        ({"data": torch.zeros(7)}, r"data must have shape \(n, 7\)"),
        ({"data": torch.zeros(0, 7)}, "data is empty"),
        ({"samples": torch.zeros(3, 5)}, r"samples must have shape \(n, 7\)"),
        ({"samples": torch.zeros(0, 7)}, "samples is empty"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(rbm, options, message):
    with pytest.raises(ValueError, match=message):
        log_partition(rbm(7, 4), **options)


@pytest.mark.parametrize("name", ["weight", "visible_bias", "hidden_bias"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("method", ["auto", "bar"])
def test_parameters_that_are_not_finite_are_refused(rbm, name, value, method):
    model = rbm(7, 4)
    with torch.no_grad():
        getattr(model, name).view(-1)[2] = value
    with pytest.raises(ValueError, match="parameters that are not finite"):
        log_partition(model, method)


@pytest.mark.parametrize("name", ["data", "samples"])
def test_rows_that_are_not_finite_are_refused_by_name(rbm, name):
    rows = torch.zeros(64, 7)
    rows[3, 2] = math.nan
    with pytest.raises(ValueError, match=name):
        log_partition(rbm(7, 4), "bar", n_chains=64, time_budget=0.5, **{name: rows})


# ---- several processes ---------------------------------------------------------------------------


def estimates(together, size: int, model: RBM, method: str, **options) -> list[LogPartition]:
    return together(size, lambda group: log_partition(model, method, group=group, **options))


def same(one: LogPartition, other: LogPartition) -> bool:
    """To the bit, with all that it rests on."""
    numbers = [
        [np.asarray(value).tolist() for name, value in x.diagnostics.items() if name != "seconds"]
        for x in (one, other)
    ]
    return repr((one, one.stderr, numbers[0])) == repr((other, other.stderr, numbers[1]))


@pytest.mark.parametrize("method", SAMPLED)
@pytest.mark.parametrize("seed", [1, 6, 10])
def test_one_and_three_processes_find_the_exact_value(models, together, method, seed):
    model, truth = models[seed]
    # Fewer than one in a thousand intervals of these miss.
    options = {"random": seed, "n_chains": 64, "confidence": 0.999}
    if method != "ptt":
        options |= {"samples": true_samples(model, 64, seed), "n_temperatures": 400}
    one = log_partition(model, method, **options)
    three = estimates(together, 3, model, method, **options)
    for result in (one, three[0]):
        assert result.trusted, result.reasons
        assert covers(result, truth)
    assert one.value != three[0].value
    assert all(same(result, three[0]) for result in three[1:])


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_and_number_of_processes_give_the_same_bits(rbm, together, method):
    model = rbm(6, 4, scale=0.3)
    options = {"n_chains": 9, "n_temperatures": 60, "width": 9.0}
    one = log_partition(model, method, **options)
    assert same(estimates(together, 1, model, method, **options)[0], one)
    found = estimates(together, 2, model, method, **options)
    for other in estimates(together, 2, model, method, **options):
        assert same(other, found[0])


@pytest.mark.parametrize("size", [2, 3])
def test_the_works_of_all_chains_make_the_estimate(rbm, together, size):
    model = rbm(8, 5, scale=0.7)
    options = {"n_chains": 31, "n_temperatures": 50, "samples": true_samples(model, 40)}
    result = estimates(together, size, model, "bar", **options)[1]
    works, base = result.diagnostics, result.diagnostics["base_log_partition"]
    forward, backward = works["forward_work"], -works["backward_work"]
    # Chains that drew the same numbers would have done the same work.
    assert len(np.unique(forward)) == len(np.unique(backward)) == 31
    both, low = bennett(forward, backward), jarzynski(forward)
    assert result.value == pytest.approx(base - both.value, rel=1e-12)
    assert result.stderr == pytest.approx(both.stderr, rel=1e-12)
    assert works["forward"] == pytest.approx(base - low.value, rel=1e-12)
    assert works["effective_samples"][0] == pytest.approx(31 * low.overlap, rel=1e-12)


def test_every_sample_is_used_once_by_one_process(rbm, together):
    model = rbm(5, 4)
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=5))).to(model.weight)
    # In a single step the work follows from the sample alone.
    options = {"samples": every, "n_chains": 32, "n_temperatures": [0.0, 1.0], "data": every}
    one, three = (estimates(together, n, model, "bar", **options)[0] for n in (1, 3))
    works = [np.sort(result.diagnostics["backward_work"]) for result in (one, three)]
    assert len(np.unique(works[0])) == 32
    assert_allclose(*works, rtol=1e-12)


@pytest.mark.parametrize("method", ["bar", "ptt"])
def test_a_process_may_be_left_without_chains(rbm, together, method):
    model = rbm(6, 4, scale=0.3)
    options = {"n_chains": 3, "n_temperatures": 60, "confidence": 0.999}
    with pytest.warns(UserWarning, match="3 chains leave 2 of 5 processes without any: raise"):
        found = estimates(together, 5, model, method, **options)
    assert covers(found[4], exact(model).log_partition)


@pytest.mark.parametrize("method", ["bar", "ptt"])
def test_processes_of_unequal_speed_stop_together(rbm, together, monkeypatch, method):
    whole_round = Tempering.round

    def late(self, n_steps=1):
        time.sleep(0.01 if self.n_systems == 3 else 0.0)
        return whole_round(self, n_steps)

    monkeypatch.setattr(Tempering, "round", late)
    begin = time.monotonic()
    found = estimates(together, 2, rbm(6, 4), method, n_chains=7, width=1e-6, time_budget=0.5)
    assert time.monotonic() - begin < 10.0
    assert same(found[0], found[1])
    assert not found[0].trusted


def test_what_is_wrong_is_refused_in_every_process(rbm, together):
    model = rbm(6, 4)
    with pytest.raises(ValueError, match="samples has 5 rows, fewer than the 64 chains"):
        estimates(together, 2, model, "bar", samples=true_samples(model, 5))

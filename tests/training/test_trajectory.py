"""Training by trajectory tempering: chains in equilibrium, and ln Z on the way, held to sums."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.flop_counter import FlopCounterMode

from freenergy.inference import exact
from freenergy.inference.tempering import Tempering, temper
from freenergy.models import RBM
from freenergy.random import RandomStream
from freenergy.thermodynamics import RBMMonitor
from freenergy.training import (
    RunConfig,
    RunDirectory,
    Trainer,
    TrainingOptions,
    as_rows,
    gradient_estimator,
    initialize,
    load_checkpoint,
)
from freenergy.training.trajectory import TrajectoryTempering, ladder_of

VARIANTS = [
    {},
    {"beta": 2.0, "learning_rate": 0.1},
    {"beta": 0.5, "learning_rate": 2.0},
    {"unit": "spin", "learning_rate": 0.05},
    {"unit": "spin", "beta": 0.5, "learning_rate": 0.2, "n_chains": 60},
    {"n_chains": 15},
    {"n_chains": 60, "n_steps": 2},
    {"momentum": 0.5, "centered": False},
]


def name_of(options: dict) -> str:
    return "-".join(f"{k}={v}" for k, v in options.items()) or "plain"


@pytest.fixture(scope="module")
def begin(data, start):
    """``begin(**options)``: a trainer at its start and its rows, patterns of ten units."""

    def build(dtype=torch.float64, **options):
        settings = {"n_epochs": 30, "batch_size": 20, "learning_rate": 0.3, **options}
        x = data(200, 10, unit=settings.get("unit", "bernoulli"), n_patterns=4).to(dtype)
        return start(x, 6, method="ptt", **settings), as_rows(x, x)

    return build


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    """8 × 8 images of black and white."""
    return torch.from_numpy((load_digits().data > 7.5).astype(np.float32))


def small_run(digits, seed: int, monitors=(), n_epochs: int = 40) -> tuple[Trainer, object]:
    rows = as_rows(digits[:1400], like=torch.empty(0))
    model, random = RBM(64, 8), RandomStream(seed)
    options = TrainingOptions(method="ptt", n_epochs=n_epochs, batch_size=50, learning_rate=0.1)
    initialize(model, rows, random)
    return Trainer(model, options, random, monitors=monitors), rows


def log_z(model, beta: float = 1.0) -> float:
    return exact(model, beta).log_partition


def rungs_of(gradient) -> list[torch.Tensor]:
    return [w.clone() for w in gradient.ladder.weight]


# ---- ln Z along the way --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_the_log_partition_function_follows_the_exact_one_through_training(digits, seed):
    """Forty epochs on digits, in which ln Z grows by many nats and rungs are added."""
    trainer, rows = small_run(digits, seed)
    truth: list[float] = []
    trainer.fit(rows, on_epoch=lambda t: truth.append(log_z(t.model)))
    found, error, rungs = (
        np.array([record[name] for record in trainer.history])
        for name in ("log_partition", "log_partition_stderr", "ladder_rungs")
    )
    z = (found - np.array(truth)) / error
    assert np.mean(np.abs(z) < 4) >= 0.95
    assert np.mean(np.abs(z) < 2) > 0.75
    assert np.median(np.abs(z)) > 0.2, "errors are not blown up either"
    assert np.abs(found - truth).max() < 0.5
    assert truth[-1] - truth[0] > 3
    assert rungs[0] == 2
    assert rungs[-1] >= 3
    assert (np.diff(rungs) >= 0).all()
    assert error.max() < 0.2


@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_the_log_partition_function_is_right_for_every_kind_of_training(begin, options):
    trainer, rows = begin(**options)
    beta, truth = trainer.options.beta, []
    trainer.fit(rows, on_epoch=lambda t: truth.append(log_z(t.model, beta)))
    found, error = (
        np.array([record[name] for record in trainer.history])
        for name in ("log_partition", "log_partition_stderr")
    )
    z = (found - truth) / error
    assert np.mean(np.abs(z) < 4) >= 0.9
    # The largest error is that of a single noisy epoch; the middle one is the method's.
    assert np.median(np.abs(found - truth)) < 0.5
    assert np.ptp(truth) > 1
    # At another temperature it would be nats away.
    if beta != 1.0:
        assert abs(found[-1] - log_z(trainer.model)) > 1
    assert trainer.history[-1]["arrival_time"] < 30


def test_making_a_rung_of_the_model_does_not_make_its_partition_function_known(begin):
    """Nothing was measured in between, so the error can hardly fall."""
    trainer, rows = begin(n_epochs=8)
    trainer.fit(rows)
    before = trainer.gradient.measure()
    trainer.gradient.add_rung()
    after = trainer.gradient.measure()
    assert after["ladder_rungs"] > before["ladder_rungs"]
    assert abs(after["log_partition"] - before["log_partition"]) < 0.5
    assert after["log_partition_stderr"] > before["log_partition_stderr"] / 3


def test_a_new_rung_moves_the_estimate_within_its_error(begin):
    """Some rounds later the value is known as well as before, and is the same."""
    trainer, rows = begin(n_epochs=8, n_chains=200)
    trainer.fit(rows)
    gradient, truth = trainer.gradient, log_z(trainer.model)
    gradient.add_rung()
    for _ in range(60):
        gradient._climb()
    after = gradient.measure()
    assert abs(after["log_partition"] - truth) < 4 * after["log_partition_stderr"] < 0.5


def test_a_still_model_is_measured_with_the_errors_that_are_claimed(rbm):
    """Chains only, no updates, in thirty trainings."""
    model = rbm(8, 5, scale=0.8)
    expected, z = log_z(model), []
    options = TrainingOptions(method="ptt", batch_size=40)
    batch = torch.zeros(40, 8, dtype=torch.float64)
    for seed in range(30):
        gradient = gradient_estimator(model, options, RandomStream(seed))
        for _ in range(120 + seed):
            gradient.compute(batch)
        record = gradient.measure()
        z.append((record["log_partition"] - expected) / record["log_partition_stderr"])
    assert 0.65 < np.std(z) < 1.4
    assert abs(np.mean(z)) < 0.75


def test_trainings_of_different_seeds_are_measured_with_noise_of_their_own(rbm):
    """A mean over seeds should be better than each: the errors must not be common."""
    model = rbm(8, 5, scale=0.8)
    options, z = TrainingOptions(method="ptt", batch_size=40), []
    for seed in range(30):
        gradient = gradient_estimator(model, options, RandomStream(seed))
        for _ in range(40):
            gradient.compute(torch.zeros(40, 8, dtype=torch.float64))
        record = gradient.measure()
        z.append((record["log_partition"] - log_z(model)) / record["log_partition_stderr"])
    assert np.std(z) > 0.6


def test_errors_that_compensate_in_every_system_compensate_in_the_sum(rbm, monkeypatch):
    """ln Z rises with the works below and falls with those at the top: one sign for each system.

    Two independent errors would add in squares, whatever their signs.
    """
    model, n = rbm(6, 4, scale=0.0), 40
    options = TrainingOptions(method="ptt", batch_size=n)
    gradient = gradient_estimator(model, options, RandomStream(0))
    gradient.add_rung()
    noise = 0.02 * torch.from_numpy(np.random.default_rng(0).normal(size=n))
    gradient._constant.zero_()
    gradient._sums[:, 0], gradient._sums[:, 1] = torch.exp(noise), 1.0
    errors = []
    for sign in (1, -1):
        works = 10 * [(sign * noise, -sign * noise)]  # ΔF of the top pair, without any dissipation
        monkeypatch.setattr(gradient, "_works", lambda *_, works=works: works)
        errors.append(gradient.measure()["log_partition_stderr"])
    single = float(noise.std()) / math.sqrt(n)
    assert errors[0] < 0.1 * single
    assert errors[1] == pytest.approx(2 * single, rel=0.05)


def test_what_the_last_rounds_say_otherwise_is_in_the_error(rbm):
    """Replicas still on their way move the shorter memory before the longer one."""
    gradient = gradient_estimator(
        rbm(6, 4, scale=0.0), TrainingOptions(method="ptt", batch_size=40), RandomStream(0)
    )
    gradient.add_rung()
    gradient._sums[:] = 1.0
    at_rest = gradient.measure()
    gradient._sums[1, 0] *= math.exp(0.7)
    moving = gradient.measure()
    assert moving["log_partition"] == at_rest["log_partition"]
    assert at_rest["log_partition_stderr"] < 1e-6
    assert moving["log_partition_stderr"] == pytest.approx(0.7, rel=1e-6)


@pytest.mark.parametrize(("sign", "left"), [(1, 0.0), (-1, 2.0)])
def test_drifts_of_ln_z_add_with_their_signs(rbm, monkeypatch, sign, left):
    """What rises below the last rung and falls at it leaves ln Z where it is."""
    gradient = gradient_estimator(
        rbm(6, 4, scale=0.0), TrainingOptions(method="ptt", batch_size=40), RandomStream(0)
    )
    gradient.add_rung()
    gradient._sums[:] = 1.0
    shift = 0.3
    gradient._sums[1, 0] *= math.exp(sign * shift)
    zero = torch.zeros(40, dtype=torch.float64)
    # ΔF of the top pair: zero in the first half of the steps, twice the shift in the second.
    works = 5 * [(zero, zero)] + 5 * [(zero + 2 * shift, zero - 2 * shift)]
    monkeypatch.setattr(gradient, "_works", lambda *_: works)
    assert gradient.measure()["log_partition_stderr"] == pytest.approx(left * shift, abs=1e-6)


# ---- the chains ----------------------------------------------------------------------------------


def test_chains_cross_between_valleys_where_persistent_chains_alone_stay(rbm, table):
    """Most of a cold ferromagnet lies in a valley that the chains start outside of."""
    model = rbm(6, 4, visible="spin", hidden="spin", scale=0.0, bias=0.0)
    with torch.no_grad():
        model.weight.fill_(0.6)
        model.visible_bias.fill_(0.15)
    reference = table(model)
    up = float(np.exp(reference.log_marginal)[reference.v.sum(1) > 0].sum())
    assert 0.8 < up < 0.95
    # As a teacher of its own: with the parameters still, only the chains matter.
    options, shares = {"batch_size": 500}, {}
    batch = torch.ones(500, 6, dtype=torch.float64)
    for method in ("pcd", "ptt"):
        random = RandomStream(0)
        gradient = gradient_estimator(model, TrainingOptions(method=method, **options), random)
        gradient.chain.fill_(-1.0)
        for _ in range(1600):
            gradient.compute(batch)
        v = model.sample_visible(gradient.chain, random)
        shares[method] = float((v.sum(1) > 0).double().mean())
    assert shares["pcd"] < up / 2
    assert shares["ptt"] == pytest.approx(up, abs=0.07)  # 4 errors


@pytest.mark.parametrize("unit", ["bernoulli", "spin"])
def test_the_chains_of_a_still_model_have_its_distribution(rbm, table, unit):
    beta = 1.3
    model = rbm(6, 4, visible=unit, hidden=unit, scale=0.8 if unit == "spin" else 2.0)
    reference, n = table(model, beta), 10_000
    options = TrainingOptions(method="ptt", batch_size=n, beta=beta)
    gradient = gradient_estimator(model, options, RandomStream(0))
    batch = torch.from_numpy(reference.v[[5] * n])
    for _ in range(200):
        gradient.compute(batch)
    assert len(gradient.ladder) > 2
    h = gradient.chain.numpy()
    low = model.hidden.support[0]
    index = (h > low) @ (2 ** np.arange(3, -1, -1))
    p = reference.probability.sum(0)
    counts = np.bincount(index, minlength=16)
    chi_square = float(((counts - n * p) ** 2 / (n * p)).sum())
    assert chi_square < 15 + 4.5 * math.sqrt(30)
    at_one = table(model).probability.sum(0)
    assert float(((counts - n * at_one) ** 2 / (n * at_one)).sum()) > 200


def test_the_gradient_is_that_of_persistent_chains(begin):
    """Before the first round on the ladder there is no difference but the start of the chains."""
    trainer, rows = begin(n_epochs=0)
    persistent = gradient_estimator(
        trainer.model, TrainingOptions(method="pcd", batch_size=20), RandomStream(3)
    )
    tempered = trainer.gradient
    assert isinstance(tempered, TrajectoryTempering)
    persistent.chain = tempered.chain.clone()
    tempered.random.restore(persistent.random.state())
    assert tempered.period > 1
    batch, gradients = rows.take(slice(0, 20)), []
    for gradient in (persistent, tempered):
        gradient.compute(batch)
        gradients.append([p.grad.clone() for p in trainer.model.parameters()])
    assert all(bool((a == b).all()) for a, b in zip(*gradients, strict=True))
    assert bool((persistent.chain == tempered.chain).all())


# ---- the ladder ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_the_ladder_leads_from_independent_units_to_the_model(begin, options):
    trainer, rows = begin(**options, n_epochs=12)
    beta, bases = trainer.options.beta, []

    def look(t):
        ladder = t.gradient.ladder
        assert len(ladder) == t.history[-1]["ladder_rungs"]
        bottom, top = ladder.model(0), ladder.model(len(ladder) - 1)
        assert not bool(bottom.weight.any())
        assert ladder.base_log_partition() == pytest.approx(log_z(bottom), abs=1e-10)
        assert log_z(top) == pytest.approx(log_z(t.model, beta), abs=1e-10)
        bases.append(bottom.visible_bias.detach().clone())

    trainer.fit(rows, on_epoch=look)
    assert all(bool((base == bases[0]).all()) for base in bases)


def test_the_first_rung_has_the_means_of_the_data(begin):
    """It is where the training started: at the data's means."""
    for options in ({}, {"unit": "spin"}, {"beta": 2.0}):
        trainer, rows = begin(n_epochs=0, **options)
        base = exact(trainer.gradient.ladder.model(0))
        expected = exact(trainer.model, trainer.options.beta)
        span = 2.0 if "unit" in options else 1.0
        assert float((base.visible - expected.visible).abs().max()) < 0.02 * span
        assert float((base.hidden - expected.hidden).abs().max()) < 0.02 * span
        assert float((base.visible - rows.mean()).abs().max()) < 0.03 * span


def test_finished_rungs_stay_and_new_ones_lie_on_the_way(begin):
    """Checkpoints do not change; a gap is filled on the straight line."""
    trainer, rows = begin(unit="spin", learning_rate=0.05, momentum=0.5)
    seen: list[list[torch.Tensor]] = []
    trainer.fit(rows, on_epoch=lambda t: seen.append(rungs_of(t.gradient)))
    assert len(seen[-1]) >= 4
    for before, after in itertools.pairwise(seen):
        for rung in range(len(before) - 1):
            assert bool((before[rung] == after[rung]).all())
        assert not bool((before[-1] == after[-1]).all()), "the top is the model itself"
    # Norms grow along the trajectory, at the start at least.
    norms = [float(w.norm()) for w in seen[-1]]
    assert norms[0] == 0 < norms[1] < norms[2]


def test_a_wide_gap_is_filled_until_neighbours_exchange(rbm):
    """From independent units to a cold model at once: the straight line between takes rungs."""
    model = rbm(12, 8, scale=2.0)
    options = TrainingOptions(method="ptt", batch_size=200)
    gradient = gradient_estimator(model, options, RandomStream(0))
    batch = torch.zeros(200, 12, dtype=torch.float64)
    for _ in range(400):
        gradient.compute(batch)
    ladder = gradient.ladder
    assert len(ladder) > 4
    weight = ladder.weight
    whole = model.weight.detach()
    share = (weight * whole).sum((1, 2)) / (whole**2).sum()
    straight = share[:, None, None] * whole
    assert float((weight - straight).abs().max()) < 1e-10
    assert (np.diff(share.numpy()) >= -1e-12).all()
    system = Tempering(ladder, gradient._system.visible, RandomStream(1))
    temper(system, 30)
    assert system.acceptance.min() > 0.1
    assert math.isfinite(system.arrival_time)
    record = gradient.measure()
    assert abs(record["log_partition"] - log_z(model)) < 4 * record["log_partition_stderr"]


# ---- the cost ------------------------------------------------------------------------------------


def period_of(n_rungs: int, **options) -> tuple[int, TrainingOptions]:
    settings = TrainingOptions(method="ptt", batch_size=20, **options)
    model = RBM(10, 100)
    gradient = gradient_estimator(model, settings, RandomStream(0))
    ladder = gradient.ladder.at(np.linspace(0, 1, n_rungs))
    gradient._build(ladder, gradient._system.visible[:1].expand(n_rungs, -1, -1).clone())
    return gradient, settings


COSTS = [
    *({"n_rungs": n} for n in (2, 5, 30)),
    {"n_rungs": 5, "n_steps": 4},
    {"n_rungs": 5, "n_chains": 60},
    {"n_rungs": 30, "n_chains": 4},
]


def products(act) -> int:
    """Multiplications of rows with the weights, in rows, of a model of 10 × 100 units."""
    with FlopCounterMode(display=False) as counter:
        act()
    return counter.get_total_flops() // (2 * 10 * 100)


def counted_share(case: dict) -> float:
    """Products of two rounds on the ladder, one of each parity, over those of the updates."""
    gradient, options = period_of(**case)
    gradient._updates = 10**9 * gradient.period  # so that one update makes no round
    gradient._acceptance = 1e9  # nor these rounds a rung
    batch = torch.zeros(options.batch_size, 10)
    update = products(lambda: gradient.compute(batch))
    ladder = products(gradient._climb) + products(gradient._climb)
    return ladder / (2 * gradient.period * update)


@pytest.mark.parametrize("case", COSTS, ids=name_of)
def test_rounds_take_three_tenths_of_the_products_of_the_updates_between_them(case):
    """0.3 of them at most, and hardly less where a round comes in every few updates."""
    share = counted_share(case)
    assert share <= 0.3
    assert share > (0.24 if period_of(**case)[0].period > 10 else 0.2)


def test_rounds_come_with_the_period(begin):
    trainer, rows = begin(n_epochs=3)
    trainer.gradient._acceptance = 1e9
    trainer.fit(rows)
    assert trainer.gradient._updates == 30
    assert trainer.gradient._system.n_rounds == 30 // trainer.gradient.period


# ---- the record ----------------------------------------------------------------------------------


def test_held_out_rows_have_a_likelihood(digits):
    held = digits[1400:]
    monitors = (RBMMonitor(digits[:1400], held, orders=(), enumerate=False),)
    trainer, rows = small_run(digits, 2, monitors, n_epochs=10)
    trainer.fit(rows)
    z, values = log_z(trainer.model), []
    for record in trainer.history:
        for suffix in ("", "_held_out"):
            expected = -record[f"free_energy{suffix}"] - record["log_partition"]
            assert record[f"log_likelihood{suffix}"] == pytest.approx(expected)
        values.append(record["log_likelihood_held_out"])
    truth = -float(trainer.model.free_energy(held).detach().mean()) - z
    assert values[-1] == pytest.approx(truth, abs=5 * record["log_partition_stderr"])
    assert values[-1] > values[0]


def test_the_likelihood_is_at_the_temperature_of_the_training(begin):
    """-β F(v; β) - ln Z(β), when the monitor reads free energies at that β."""
    trainer, rows = begin(beta=2.0, learning_rate=0.1, n_epochs=6)
    x = rows.take(slice(0, 200))
    trainer.monitors = (RBMMonitor(x, beta=2.0, orders=(), enumerate=False),)
    trainer.fit(rows)
    record = trainer.history[-1]
    weight = -2.0 * trainer.model.free_energy(x, 2.0).detach()
    truth = float(weight.mean()) - log_z(trainer.model, 2.0)
    assert record["log_likelihood"] == pytest.approx(truth, abs=5 * record["log_partition_stderr"])


def test_an_exact_monitor_has_the_last_word(begin):
    trainer, rows = begin(n_epochs=3)
    x = rows.take(slice(0, 200))
    trainer.monitors = (RBMMonitor(x, x[:50], orders=(), enumerate=True),)
    trainer.fit(rows)
    record = trainer.history[-1]
    assert record["log_partition"] == pytest.approx(log_z(trainer.model), abs=1e-9)
    assert record["log_partition_stderr"] == 0
    expected = -record["free_energy_held_out"] - record["log_partition"]
    assert record["log_likelihood_held_out"] == pytest.approx(expected)


def test_the_record_is_of_plain_numbers(begin):
    trainer, rows = begin(n_epochs=3)
    trainer.fit(rows)
    json.dumps(trainer.history)
    record = trainer.history[-1]
    assert 0 < record["log_partition_stderr"] < 1
    assert 0 < record["exchange_acceptance"] <= 1
    assert record["arrival_time"] >= 1
    assert isinstance(record["ladder_rungs"], int)


# ---- going on ------------------------------------------------------------------------------------


def assert_same_state(state: tuple, other: tuple) -> None:
    """Equal to the bit, but for the clock; what is unknown (NaN) in one is so in the other."""
    (tensors, values), (others, other_values) = state, other
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.numpy(), others[name].numpy(), err_msg=name)
    for name in ("epoch", "random", "order"):
        assert values[name] == other_values[name], name
    histories = [
        repr([{k: v for k, v in record.items() if k != "seconds"} for record in v["history"]])
        for v in (values, other_values)
    ]
    assert histories[0] == histories[1]


STATES = [{}, {"unit": "spin", "learning_rate": 0.05, "momentum": 0.5}, {"n_chains": 15}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("options", STATES, ids=name_of)
def test_a_restored_training_goes_on_to_the_same_bits(begin, options, dtype):
    whole, rows = begin(dtype, n_epochs=24, **options)
    whole.fit(rows)
    first, _ = begin(dtype, n_epochs=14, **options)
    first.fit(rows)
    tensors, values = first.state()
    second, _ = begin(dtype, seed=99, n_epochs=24, **options)
    second.restore(tensors, json.loads(json.dumps(values)))
    assert_same_state(second.state(), first.state())
    second.fit(rows)
    assert_same_state(second.state(), whole.state())
    assert len(whole.gradient.ladder) >= 2
    assert whole.history[-1]["log_partition"] == second.history[-1]["log_partition"]
    assert whole.model.weight.dtype == dtype


def test_a_restored_training_draws_in_the_same_fields():
    """Sizes that are no multiple of a vector's, where a product depends on its shape."""
    options = TrainingOptions(method="ptt", batch_size=50, n_chains=51)
    differ = 0
    for dtype, n_hidden in ((torch.float32, 5), (torch.float64, 5), (torch.float32, 9)):
        random = RandomStream(0)
        model = RBM(64, n_hidden, dtype=dtype)
        with torch.no_grad():
            model.weight.copy_(random.normal((64, n_hidden), 0.5))
        gradient, again = (gradient_estimator(model, options, random) for _ in range(2))
        for _ in range(60):
            gradient.compute(torch.zeros(50, 64, dtype=dtype))
        again.restore(gradient.state())
        # The field of the top is made afresh in any case.
        differ += int((gradient._system._field[:-1] != again._system._field[:-1]).sum())
    assert differ == 0


def test_a_state_is_a_copy_with_the_ladder_in_it(begin):
    trainer, rows = begin(n_epochs=14)
    trainer.fit(rows)
    tensors, _ = trainer.state()
    before = {name: t.clone() for name, t in tensors.items()}
    gradient = {k.removeprefix("gradient."): t for k, t in tensors.items() if "gradient." in k}
    ladder = ladder_of(gradient, trainer.model)
    assert bool((ladder.weight == trainer.gradient.ladder.weight).all())
    assert log_z(ladder.model(len(ladder) - 1)) == pytest.approx(log_z(trainer.model))
    ladder.weight.zero_()
    longer, _ = begin(n_epochs=20)
    longer.restore(tensors, trainer.state()[1])
    longer.fit(rows)
    trainer.gradient.measure()
    trainer.gradient._climb()
    assert all(bool((tensors[name] == before[name]).all()) for name in tensors)


def test_an_epoch_that_is_cut_short_is_undone_with_its_new_rungs(begin):
    options = {"unit": "spin", "learning_rate": 0.05, "momentum": 0.5, "n_epochs": 12}
    undisturbed, rows = begin(**options)
    rungs = [2]
    undisturbed.fit(rows, on_epoch=lambda t: rungs.append(len(t.gradient.ladder)))
    grown = 1 + int(np.flatnonzero(np.diff(rungs))[0])  # the first epoch that made a rung
    assert grown < 12
    trainer, _ = begin(**options)
    batches = []

    def interrupt(n):
        batches.append(n)
        if len(batches) == 10 * grown:  # after its last batch
            assert len(trainer.gradient.ladder) > rungs[grown - 1]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.fit(rows, on_batch=interrupt)
    assert trainer.epoch == grown - 1 == len(trainer.history)
    assert len(trainer.gradient.ladder) == rungs[grown - 1]
    trainer.fit(rows, on_batch=interrupt)
    assert_same_state(trainer.state(), undisturbed.state())


def test_an_interrupt_in_the_middle_of_a_round_is_undone(begin, monkeypatch):
    """Some rungs have made their step and others not when Ctrl-C comes."""
    undisturbed, rows = begin(n_epochs=6)
    undisturbed.fit(rows)
    trainer, _ = begin(n_epochs=6)
    sample, calls = type(trainer.model.visible).sample, []

    def broken(self, field, random, out=None):
        if field.dim() == 3:
            calls.append(1)
            if len(calls) == 50:
                raise KeyboardInterrupt
        return sample(self, field, random, out)

    with monkeypatch.context() as patch:
        patch.setattr(type(trainer.model.visible), "sample", broken)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(rows)
    assert 0 < trainer.epoch < 6
    trainer.fit(rows)
    assert_same_state(trainer.state(), undisturbed.state())


class Killed(BaseException):
    """As by a signal: nothing is saved on the way out."""


def directory(path, n_epochs: int = 16, **options) -> RunDirectory:
    settings = {"method": "ptt", "batch_size": 10, "learning_rate": 0.4, **options}
    config = RunConfig(
        {"name": "patterns"}, 10, 6, TrainingOptions(n_epochs=n_epochs, **settings), seed=1
    )
    return RunDirectory.create(path, config)


def train(run: RunDirectory, data, monitor_every: int = 1, **hooks) -> Trainer:
    x = data(200, 10, n_patterns=4)
    rows = as_rows(x, torch.empty(0))
    monitor = RBMMonitor(x[:150], x[150:], orders=(), enumerate=False)
    trainer = run.config().build(rows, (monitor,), monitor_every)
    run.train(trainer, rows, **hooks)
    return trainer


def assert_same_checkpoint(run: RunDirectory, other: RunDirectory) -> None:
    (tensors, values), (others, other_values) = (
        load_checkpoint(r.checkpoint_path) for r in (run, other)
    )
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, others[name], err_msg=name)
    for record in (*values["history"], *other_values["history"]):
        del record["seconds"]
    assert repr(values) == repr(other_values)


@pytest.mark.parametrize("monitor_every", [1, 3])
def test_a_run_that_is_killed_goes_on_to_the_same_bits(tmp_path, data, monitor_every):
    whole = directory(tmp_path / "whole", momentum=0.5)
    last = train(whole, data, monitor_every)
    assert len(last.gradient.ladder) > 2
    run = directory(tmp_path / "run", momentum=0.5)

    def die(epoch):
        def hook(trainer):
            if trainer.epoch == epoch:
                raise Killed

        return hook

    for epoch in (1, 7, 8, 13):
        with pytest.raises(Killed):
            train(run, data, monitor_every, on_epoch=die(epoch))

    def die_inside(_n, left=[25]):  # noqa: B006
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    with pytest.raises(Killed):
        train(run, data, monitor_every, on_batch=die_inside)
    train(run, data, monitor_every)
    assert_same_checkpoint(run, whole)
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 17))
    assert "log_likelihood_held_out" in lines[-1]


@pytest.mark.parametrize("monitor_every", [1, 3])
def test_a_run_that_is_extended_is_the_longer_run(tmp_path, data, monitor_every):
    whole = directory(tmp_path / "whole", 8)
    train(whole, data, monitor_every)
    run = directory(tmp_path / "run", 4)
    train(run, data, monitor_every)
    run.config_path.write_text(whole.config_path.read_text())
    train(run, data, monitor_every)
    for name in ("model.weight", "gradient.chain", "gradient.ladder_weight"):
        tensors = (load_checkpoint(r.checkpoint_path)[0][name] for r in (run, whole))
        np.testing.assert_array_equal(*tensors, err_msg=name)


def test_watching_does_not_change_what_is_learned(begin):
    weights = []
    for every in (1, 4):
        trainer, rows = begin(n_epochs=8)
        trainer.monitor_every = every
        trainer.fit(rows)
        weights.append(trainer.model.weight.detach().clone())
    assert bool((weights[0] == weights[1]).all())


def test_watching_with_monitors_does_not_change_what_is_learned(begin):
    trainers = []
    for monitors in ((), (lambda model: {"norm": float(model.weight.detach().norm())},)):
        trainer, rows = begin(n_epochs=6)
        trainer.monitors = monitors
        trainer.fit(rows)
        trainer.history = []
        trainers.append(trainer)
    assert_same_state(trainers[0].state(), trainers[1].state())


# ---- few chains ----------------------------------------------------------------------------------


def test_one_chain_trains_and_knows_that_it_knows_no_error(begin):
    trainer, rows = begin(n_chains=1, n_epochs=3)
    trainer.fit(rows)
    assert math.isfinite(trainer.history[-1]["log_partition"])
    assert trainer.history[-1]["log_partition_stderr"] == math.inf


def test_the_number_of_rungs_does_not_grow_with_noise(begin):
    """Each rung should mean that the model moved on; a still model needs no more of them."""
    counts = []
    for n_chains in (1, 50):
        trainer, rows = begin(n_chains=n_chains, n_epochs=20)
        trainer.fit(rows)
        counts.append(len(trainer.gradient.ladder))
    assert counts[0] <= 3 * counts[1]

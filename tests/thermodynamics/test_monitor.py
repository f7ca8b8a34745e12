"""What the monitor records, against enumeration."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from freenergy.inference import exact, mean_field, pseudo_log_likelihood
from freenergy.thermodynamics import RBMMonitor

TAP = ("free_energy", "energy", "entropy", "converged", "log_partition")


def rows(n: int, seed: int = 0, d: int = 6) -> torch.Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed)).round().double()


def test_the_names_are_those_of_the_table(rbm):
    model = rbm(6, 4)
    alone = {"weight_norm", "pseudo_likelihood", "free_energy"}
    watched = {"pseudo_likelihood_held_out", "free_energy_held_out", "free_energy_gap"}
    summed = {"log_partition", "log_partition_stderr", "log_likelihood"}
    summed |= {"exact_free_energy", "exact_energy", "exact_entropy"}
    assert set(RBMMonitor(rows(9), orders=(), enumerate=False)(model)) == alone
    pair = RBMMonitor(rows(9), rows(5, 1), orders=(), enumerate=False)
    assert set(pair(model)) == alone | watched
    assert set(RBMMonitor(rows(9), orders=(), enumerate=True)(model)) == alone | summed
    assert set(RBMMonitor(rows(9), orders=())(model)) == alone | summed, "small enough"
    tap = {f"tap{n}_{name}" for n in (1, 2, 3) for name in TAP}
    everything = RBMMonitor(rows(9), rows(5, 1), enumerate=True)(model)
    assert set(everything) == alone | watched | summed | tap | {"log_likelihood_held_out"}
    assert all(type(value) is float and math.isfinite(value) for value in everything.values())
    json.dumps(everything)


@pytest.mark.parametrize("beta", [0.6, 1.0, 1.8])
@pytest.mark.parametrize("unit", ["bernoulli", "spin"])
def test_likelihoods_and_thermodynamics_are_those_of_enumeration(rbm, table, beta, unit):
    model = rbm(6, 4, visible=unit, scale=1.0)
    reference = table(model, beta)
    index = {tuple(v): log_p for v, log_p in zip(reference.v, reference.log_marginal, strict=True)}
    low, high = model.visible.support
    parts = {"": low + (high - low) * rows(30), "_held_out": low + (high - low) * rows(20, 1)}
    record = RBMMonitor(parts[""], parts["_held_out"], beta=beta, orders=(), enumerate=True)(model)
    for suffix, part in parts.items():
        mean = np.mean([index[tuple(v)] for v in part.tolist()])
        assert record[f"log_likelihood{suffix}"] == pytest.approx(mean, abs=1e-12)
        pseudo = float(pseudo_log_likelihood(model, part, beta).mean())
        assert record[f"pseudo_likelihood{suffix}"] == pytest.approx(pseudo, abs=1e-12)
    assert record["log_partition"] == pytest.approx(reference.log_partition, abs=1e-12)
    free_energy = -reference.log_partition / beta
    assert record["exact_free_energy"] == pytest.approx(free_energy, abs=1e-12)
    assert record["exact_energy"] == pytest.approx(reference.mean_energy, abs=1e-12)
    assert record["exact_entropy"] == pytest.approx(reference.entropy, abs=1e-12)
    norm = float(np.sqrt((reference.W**2).sum()))
    assert record["weight_norm"] == pytest.approx(norm, rel=1e-12)


def test_the_free_energy_gap_is_that_of_the_log_likelihoods(rbm):
    """β (⟨F⟩ held out − ⟨F⟩ train) = ⟨ln p⟩ train − ⟨ln p⟩ held out: Z drops out."""
    model = rbm(6, 4, scale=1.0)
    record = RBMMonitor(rows(30), rows(20, 1), beta=1.4, orders=(), enumerate=True)(model)
    gain = record["log_likelihood"] - record["log_likelihood_held_out"]
    assert abs(gain) > 0.01
    assert 1.4 * record["free_energy_gap"] == pytest.approx(gain, abs=1e-12)


def test_the_gap_is_positive_where_the_training_rows_are_the_likelier_ones(rbm):
    model = rbm(6, 4, scale=0.0)
    with torch.no_grad():
        model.visible_bias.fill_(2.0)
    on, off = torch.ones(5, 6).double(), torch.zeros(5, 6).double()
    gap = RBMMonitor(on, off, orders=())(model)["free_energy_gap"]
    assert gap == pytest.approx(12.0)
    assert RBMMonitor(off, on, orders=())(model)["free_energy_gap"] == pytest.approx(-12.0)


def test_mean_field_is_started_at_the_first_rows(rbm):
    model, train = rbm(6, 4, scale=0.8), rows(30)
    record = RBMMonitor(train, beta=1.3, orders=(1, 3), n_states=7)(model)
    for order in (1, 3):
        state = mean_field(model, order, beta=1.3, start=train[:7], max_iter=200, tolerance=1e-4)
        for name in ("free_energy", "energy", "entropy"):
            expected = float(getattr(state, name).mean())
            assert record[f"tap{order}_{name}"] == pytest.approx(expected, abs=1e-12)
        highest = float(state.log_partition.max())
        assert record[f"tap{order}_log_partition"] == pytest.approx(highest, abs=1e-12)
        assert record[f"tap{order}_converged"] == 1
    assert "tap2_energy" not in record


def test_mean_field_log_partitions_approach_the_exact_one(rbm):
    record = RBMMonitor(rows(30), enumerate=True)(rbm(6, 4, scale=0.3))
    error = [abs(record[f"tap{n}_log_partition"] - record["log_partition"]) for n in (1, 2, 3)]
    # The states are solved to 1e-4 only, but the free energy is stationary there.
    assert error[1] < error[0] / 20
    assert error[2] < 1e-3


def test_a_breakdown_is_recorded_and_not_warned_of(rbm):
    model = rbm(8, 6, scale=4.0, seed=1)
    start = rows(20, d=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short = RBMMonitor(start, orders=(2,), max_iter=1)(model)
        long = RBMMonitor(start, orders=(2,))(model)
    assert short["tap2_converged"] == 0
    assert long["tap2_entropy"] < 0


def test_the_share_of_converged_states_is_recorded(rbm):
    model, train = rbm(6, 4, scale=0.8), rows(30)
    n_iter = mean_field(model, 2, start=train, tolerance=1e-4).n_iter
    limit = int(n_iter.median())
    share = float((n_iter <= limit).double().mean())
    assert 0 < share < 1
    record = RBMMonitor(train, orders=(2,), max_iter=limit)(model)
    assert record["tap2_converged"] == pytest.approx(share)


def test_at_most_n_rows_of_each_part_are_watched(rbm):
    model = rbm(6, 4, scale=1.0)
    train, held_out = rows(30), rows(20, 1)
    few = RBMMonitor(train, held_out, orders=(2,), enumerate=True, n_rows=5)(model)
    same = RBMMonitor(train[:5], held_out[:5], orders=(2,), enumerate=True)(model)
    assert few == same
    assert few != RBMMonitor(train, held_out, orders=(2,), enumerate=True)(model)


def test_reading_leaves_the_model_and_the_data_alone(rbm):
    model, train = rbm(6, 4, dtype=torch.float32), rows(30)
    before = [p.detach().clone() for p in model.parameters()]
    copy = train.clone()
    monitor = RBMMonitor(train, rows(9, 1), enumerate=True)
    assert monitor(model) == monitor(model), "nothing is drawn at random"
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
        assert parameter.grad is None
    assert torch.equal(train, copy)


def test_the_monitor_follows_the_model(rbm):
    model = rbm(6, 4)
    monitor = RBMMonitor(rows(30), orders=(), enumerate=True)
    first = monitor(model)
    with torch.no_grad():
        model.weight.mul_(2)
    second = monitor(model)
    assert second["weight_norm"] == pytest.approx(2 * first["weight_norm"], rel=1e-12)
    assert second["log_partition"] == pytest.approx(exact(model).log_partition)


def test_a_mean_field_that_diverged_is_not_a_number_and_no_error(rbm):
    model = rbm(6, 4)
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    record = RBMMonitor(rows(10), orders=(2,))(model)
    assert math.isnan(record["tap2_log_partition"])
    assert record["tap2_converged"] == 0
    assert_allclose(record["weight_norm"], math.nan)

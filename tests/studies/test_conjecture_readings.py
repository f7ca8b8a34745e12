"""What is read of a station, against enumeration and differences of free energies."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from freenergy.inference import exact, mean_field_states
from freenergy.random import RandomStream
from freenergy.studies.conjecture_readings import (
    Reader,
    centred,
    cosine,
    exact_descent,
    mean_field_descent,
    random_spread,
    random_step,
)
from freenergy.studies.stations import STATIONS, Station, StationOptions, Step
from freenergy.training import LabelledBatch, LabelledRows, as_rows

OPTIONS = StationOptions(
    learning_rate=1e-3, likelihood_rate=1e-3, batch_size=20, depth=3, damping=0.5
)


def rows_of(model, n=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (n, model.n_visible), generator=generator).double()


def labelled(model, n=40, seed=0):
    rows = rows_of(model, n, seed)
    return LabelledRows(as_rows(rows, rows), (2 * rows[:, 0] + rows[:, 1]).long())


def whole(rows: LabelledRows) -> LabelledBatch:
    return rows.take(slice(None))


def exact_difference(model, rows):
    with torch.no_grad():
        return float(model.free_energy(rows).mean()) + exact(model).log_partition


def mean_field_difference(model, rows):
    states = mean_field_states(model, 2, starts=rows[:10], tolerance=1e-13)
    with torch.no_grad():
        return float(model.free_energy(rows).mean()) + states.log_partition


def moved(model, step, by):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, part in step._asdict().items():
            other.get_parameter(name).add_(part, alpha=by)
    return other


def slope(difference, model, rows, step, h=1e-5):
    """How fast a difference falls along a step."""
    ends = [difference(moved(model, step, sign * h), rows) for sign in (1, -1)]
    return (ends[1] - ends[0]) / (2 * h)


def dot(one, other):
    return sum(float((x * y).sum()) for x, y in zip(one, other, strict=True))


# ---- directions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("sizes", [(6, 4), (4, 6), (1, 1)])
def test_the_exact_step_is_the_slope_of_the_exact_difference(rbm, sizes, scale):
    model = rbm(*sizes, scale=scale)
    rows = rows_of(model)
    step = exact_descent(model, rows, exact(model))
    for seed in range(3):
        direction = random_step(step, RandomStream(seed))
        expected = slope(exact_difference, model, rows, direction)
        assert dot(step, direction) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_mean_field_step_is_the_slope_of_the_mean_field_difference(rbm):
    """States move with the parameters; at a stationary point that makes no difference."""
    model = rbm(8, 5, scale=0.6)
    rows = rows_of(model)
    step = mean_field_descent(
        model, rows, mean_field_states(model, 2, starts=rows[:10], tolerance=1e-13)
    )
    for seed in range(3):
        direction = random_step(step, RandomStream(seed))
        expected = slope(mean_field_difference, model, rows, direction)
        assert dot(step, direction) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_several_mean_field_states_share_in_the_step_by_their_weight(rbm):
    model = rbm(8, 3, scale=0.0, bias=0.0)
    with torch.no_grad():
        # All units are up together or down together; the fields favour down a little.
        model.weight.fill_(2.0)
        model.visible_bias.fill_(-3.05)
        model.hidden_bias.fill_(-8.0)
    rows = rows_of(model)
    starts = torch.cat([torch.zeros(2, 8), torch.ones(2, 8)]).double()

    def difference(model, rows):
        states = mean_field_states(model, 2, starts=starts, tolerance=1e-13)
        assert states.n_states == 2
        with torch.no_grad():
            return float(model.free_energy(rows).mean()) + states.log_partition

    step = mean_field_descent(
        model, rows, mean_field_states(model, 2, starts=starts, tolerance=1e-13)
    )
    expected = slope(difference, model, rows, step)
    assert dot(step, step) == pytest.approx(expected, rel=1e-6)


def test_mean_field_and_exact_steps_agree_at_weak_coupling(rbm):
    found = []
    for scale in (0.05, 0.2, 0.8):
        model = rbm(8, 5, scale=scale)
        rows = rows_of(model)
        step = mean_field_descent(model, rows, mean_field_states(model, 2, starts=rows[:5]))
        found.append(1 - cosine(step, exact_descent(model, rows, exact(model))))
    assert found[0] < found[1] < found[2]
    assert found[0] < 1e-8


def test_without_a_state_the_mean_field_has_no_step(rbm):
    model = rbm(4, 3)
    empty = copy.copy(mean_field_states(model, 2, starts=5))
    for name in ("visible", "hidden", "free_energy"):
        object.__setattr__(empty, name, getattr(empty, name)[:0])
    step = mean_field_descent(model, rows_of(model), empty)
    assert all(bool(part.isnan().all()) for part in step)
    assert math.isnan(cosine(step, step))


@given(st.floats(-300, 300), st.floats(-300, 300), st.integers(0, 50))
def test_the_cosine_knows_directions_not_lengths(log_x, log_y, seed):
    x, y = RandomStream(seed).normal((2, 7))
    expected = float(x @ y / x.norm() / y.norm())
    assert cosine(x * 10.0**log_x, y * 10.0**log_y) == pytest.approx(expected, abs=1e-12)
    assert cosine(x, -y) == pytest.approx(-expected, abs=1e-12)
    assert cosine(x, x) == pytest.approx(1.0)


def test_what_does_not_move_has_no_direction():
    assert math.isnan(cosine(torch.zeros(3), torch.ones(3)))
    assert math.isnan(cosine(torch.ones(3), torch.zeros(3)))


def test_centring_takes_out_the_common_mean_and_nothing_else():
    random = RandomStream(0)
    rows = random.normal((30, 6)) + 1.0
    mean = rows.mean(0)
    outer = torch.outer(mean, random.normal((4,)))
    alike = random.normal((6,))[:, None].expand(6, 4)
    for common in (outer, alike):
        assert_close(centred(common, rows), torch.zeros(6, 4).double(), rtol=0, atol=1e-13)
    weight = random.normal((6, 4))
    found = centred(weight, rows)
    assert_close(centred(found, rows), found, rtol=0, atol=1e-13)
    assert_close(centred(weight + outer + alike, rows), found, rtol=0, atol=1e-13)
    assert_close(mean @ found, torch.zeros(4).double(), rtol=0, atol=1e-13)
    assert_close(found.sum(1), torch.zeros(6).double(), rtol=0, atol=1e-13)


def test_rows_of_zeros_have_no_mean_direction():
    weight = RandomStream(0).normal((3, 2))
    assert_close(centred(weight, torch.zeros(5, 3)), weight - weight.mean(1, keepdim=True))


def test_gradients_of_rows_that_are_all_alike_are_common_through_and_through():
    rows = torch.ones(10, 3).double() * torch.tensor([1.0, 0.0, 1.0])
    gradient = rows.T @ RandomStream(0).normal((10, 4))
    assert float(centred(gradient, rows).abs().max()) < 1e-14


def test_a_random_step_is_as_long_in_each_parameter():
    step = Step(torch.ones(3, 2), torch.zeros(3), torch.full((2,), 1e-8))
    found = random_step(step, RandomStream(0))
    for one, other in zip(found, step, strict=True):
        assert_close(one.norm(), other.norm())


def test_random_directions_scatter_as_foretold():
    stream = RandomStream(0)
    step = Step(stream.normal((5, 4)), 3 * stream.normal((5,)), stream.normal((4,)))
    reference = Step(stream.normal((5, 4)), stream.normal((5,)), 5 * stream.normal((4,)))
    draws = [cosine(random_step(step, stream), reference) for _ in range(4000)]
    spread = random_spread(step, reference)
    assert np.std(draws) == pytest.approx(spread, rel=4 / math.sqrt(2 * 4000))
    assert abs(np.mean(draws)) < 4 * spread / math.sqrt(4000)
    alone = Step(step.weight, torch.zeros(5), torch.zeros(4))
    assert random_spread(alone, alone) == pytest.approx(1 / math.sqrt(20))


# ---- the instrument ------------------------------------------------------------------------------


def reader(model, **options):
    return Reader(labelled(model), labelled(model, 30, 1), RandomStream(0), **options)


def test_free_energies_are_those_of_enumeration(rbm, table):
    model = rbm(6, 4, scale=1.0)
    found, truth = reader(model).model(model), table(model)
    held_out = whole(labelled(model, 30, 1)).rows
    states = [tuple(state) for state in truth.v]
    log_p = truth.log_marginal[[states.index(tuple(row)) for row in held_out.numpy()]]
    assert found["exact_difference"] == pytest.approx(-log_p.mean(), rel=1e-10)
    assert found["exact_energy"] == pytest.approx(truth.mean_energy, rel=1e-10)
    assert found["exact_entropy"] == pytest.approx(truth.entropy, rel=1e-10)
    assert found["data_free_energy"] == pytest.approx(
        found["exact_difference"] + found["exact_free_energy"], rel=1e-10
    )


def emf(model):
    return STATIONS["EMF (TAP2)"].build(model, 4, OPTIONS, RandomStream(0))


@pytest.mark.parametrize("source", ["exact", "tap"])
def test_free_energy_is_energy_less_entropy(rbm, source):
    model = rbm(6, 4, scale=0.5)
    found = reader(model).station(emf(model))
    expected = found[f"{source}_energy"] - found[f"{source}_entropy"]
    assert found[f"{source}_free_energy"] == pytest.approx(expected, rel=1e-6)
    assert found["tap_trusted"] == 1.0


def test_the_mean_field_is_close_to_the_truth_where_it_is_trusted_and_not_trusted_beyond(rbm):
    for scale, trusted in ((0.2, 1.0), (4.0, 0.0)):
        model = rbm(30, 8, scale=scale, bias=0.0)
        found = reader(model).station(emf(model))
        gap = abs(found["tap_difference"] - found["exact_difference"])
        assert (gap < 0.01) == bool(trusted)
        assert found["tap_trusted"] == trusted


def test_large_models_are_read_by_the_mean_field_alone(rbm):
    model = rbm(21, 21, scale=0.05)
    found = reader(model).model(model)
    assert not [key for key in found if key.startswith("exact")]
    assert found["tap_trusted"] == 1.0
    assert found["tap_difference"] > 0


@pytest.mark.parametrize("name", STATIONS)
def test_a_short_step_does_what_its_slope_promises(rbm, name):
    model = rbm(6, 4, scale=1.0)
    station = STATIONS[name].build(copy.deepcopy(model), 4, OPTIONS, RandomStream(0))
    found = reader(model).station(station)
    assert found["drop"] == pytest.approx(found["predicted_drop"], rel=0.02)
    assert math.copysign(1, found["exact_cosine"]) == math.copysign(1, found["drop"])


class Along(Station):
    """Steps by a multiple of the step that lowers ΔF most steeply."""

    def __init__(self, model, sign):
        super().__init__(1e-3)
        self.model, self.sign = model, sign

    def update(self, rows, labels):
        raise NotImplementedError

    def steps(self, rows, labels):
        step = exact_descent(self.model, rows.double(), exact(self.model))
        return [Step(*(self.sign * part for part in step))]

    def rbm(self):
        return copy.deepcopy(self.model)


def test_the_steepest_step_has_cosine_one_and_its_opposite_minus_one(rbm):
    model = rbm(6, 4, scale=0.7)
    for sign in (1, -1):
        found = reader(model).station(Along(model, sign))
        for part in ("", "_weight", "_visible_bias", "_hidden_bias", "_centred", "_shuffled"):
            assert found[f"exact_cosine{part}"] == pytest.approx(sign, abs=1e-12)
        assert sign * found["drop"] > 0
        assert abs(found["exact_cosine_random"]) < 5 * found["exact_spread"]
        assert found["tap_cosine"] == pytest.approx(sign * found["tap_fidelity"], abs=1e-12)


def test_untied_nets_are_read_layer_by_layer(rbm):
    model = rbm(6, 4)
    for name in ("Tied unrolled net", "Untied unrolled net"):
        station = STATIONS[name].build(copy.deepcopy(model), 4, OPTIONS, RandomStream(0))
        found = reader(model).station(station)
        layers = [key for key in found if key.startswith("exact_cosine_layer")]
        assert len(layers) == (OPTIONS.depth if name.startswith("Untied") else 0)


def test_accuracy_and_cross_entropy_are_those_of_held_out_rows(rbm):
    model = rbm(6, 4)
    station = STATIONS["Discriminative RBM"].build(model, 4, OPTIONS, RandomStream(0))
    held_out = whole(labelled(model, 30, 1))
    found = reader(model).outcome(station)
    log_p = station.logits(held_out.rows).log_softmax(-1)
    right = log_p.argmax(-1) == held_out.labels
    assert found["accuracy"] == pytest.approx(float(right.double().mean()))
    expected = -log_p[torch.arange(30), held_out.labels].mean()
    assert found["cross_entropy"] == pytest.approx(float(expected), rel=1e-10)


def test_labels_that_training_did_not_meet_count_as_wrong(rbm):
    model = rbm(6, 4)
    station = STATIONS["Discriminative RBM"].build(model, 4, OPTIONS, RandomStream(0))
    held_out = labelled(model, 30, 1)
    unknown = LabelledRows(held_out.rows, torch.full((30,), -1))
    found = Reader(labelled(model), unknown, RandomStream(0)).outcome(station)
    assert found["accuracy"] == 0.0
    assert math.isnan(found["cross_entropy"])


def test_a_readout_finds_labels_that_the_hidden_units_hold(rbm):
    model = rbm(6, 2, scale=0.0, bias=0.0)
    held = reader(model).model(model)["accuracy"]
    with torch.no_grad():
        # Each hidden unit follows one of the two pixels that make the label.
        model.weight[0, 0] = model.weight[1, 1] = 10.0
        model.hidden_bias.fill_(-5.0)
    assert held < 0.6
    assert reader(model).model(model)["accuracy"] > 0.7

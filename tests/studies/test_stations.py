"""Stations: their steps are what they do, and what their own loss asks for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from freenergy.random import RandomStream
from freenergy.studies.stations import STATIONS, StationOptions, Step, fold_steps

OPTIONS = StationOptions(learning_rate=0.5, likelihood_rate=0.1, batch_size=8, depth=3, damping=0.5)
BACKPROPAGATION = [name for name, kind in STATIONS.items() if kind.backpropagation]
ALL = pytest.mark.parametrize("name", STATIONS)
LEARNERS = pytest.mark.parametrize("name", BACKPROPAGATION)
N_CLASSES = 3


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 2, (8, 6), generator=generator).double()
    return rows, torch.randint(0, N_CLASSES, (8,), generator=generator)


@pytest.fixture
def station(rbm):
    def build(name, model=None):
        model = rbm(6, 4) if model is None else model
        return STATIONS[name].build(model, N_CLASSES, OPTIONS, RandomStream(0))

    return build


def parameters(model):
    return Step(*(model.get_parameter(name).detach().clone() for name in Step._fields))


@ALL
def test_an_update_moves_the_rbm_by_the_rate_times_the_step(station, batch, name):
    learner = station(name)
    for _ in range(3):
        before = parameters(learner.rbm())
        step = fold_steps(learner.steps(*batch))
        learner.update(*batch)
        for old, new, move in zip(before, parameters(learner.rbm()), step, strict=True):
            assert_close(new - old, learner.learning_rate * move, rtol=1e-9, atol=1e-15)


@ALL
def test_every_station_starts_at_the_rbm_it_is_given(station, rbm, name):
    given, learner = rbm(6, 4), station(name)
    for mine, start in zip(parameters(learner.rbm()), parameters(given), strict=True):
        assert_close(mine, start, rtol=0, atol=0)


@ALL
def test_looking_at_a_step_changes_nothing(station, batch, name):
    seen, unseen = station(name), station(name)
    for _ in range(2):
        first = seen.steps(*batch)
        assert_close(list(first[0]), list(seen.steps(*batch)[0]), rtol=0, atol=0)
        seen.update(*batch)
        unseen.update(*batch)
    assert_close(list(parameters(seen.rbm())), list(parameters(unseen.rbm())), rtol=0, atol=0)


@LEARNERS
def test_backpropagation_follows_the_slope_of_the_cross_entropy(station, batch, name):
    """The loss rises along a copy's parameter as the step, reversed, says."""
    learner, (rows, labels), h = station(name), batch, 1e-6

    def loss():
        return float(cross_entropy(learner.logits(rows), labels))

    for part, step in zip(learner.copies, learner.steps(rows, labels), strict=True):
        for field, direction in step._asdict().items():
            parameter = part.get_parameter(field)
            slopes = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.add_(direction, alpha=sign * h)
                slopes.append(sign * loss())
                with torch.no_grad():
                    parameter.sub_(direction, alpha=sign * h)
            expected = -float((direction**2).sum())
            assert sum(slopes) / (2 * h) == pytest.approx(expected, rel=1e-4, abs=1e-9)


@LEARNERS
def test_backpropagation_learns_labels_that_can_be_learned(station, name):
    rows = torch.eye(6, dtype=torch.float64).repeat(4, 1)
    labels = torch.arange(6).repeat(4) % N_CLASSES
    learner = station(name)
    for _ in range(1500):
        learner.update(rows, labels)
    assert bool((learner.logits(rows).argmax(-1) == labels).all())


def test_the_discriminative_loss_does_not_know_the_visible_biases(station, rbm, batch):
    learner = station("Discriminative RBM")
    (step,) = learner.steps(*batch)
    assert bool((step.visible_bias == 0).all())
    for _ in range(3):
        learner.update(*batch)
    assert_close(learner.rbm().visible_bias, rbm(6, 4).visible_bias, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["EMF (TAP2)", "PCD"])
def test_the_likelihood_does_not_look_at_labels(station, batch, name):
    learner, (rows, labels) = station(name), batch
    (one,), (other,) = learner.steps(rows, labels), learner.steps(rows, labels.flip(0))
    assert_close(list(one), list(other), rtol=0, atol=0)
    assert learner.logits(rows) is None


def test_only_the_untied_net_has_weights_for_each_sweep(station, batch):
    counts = {name: len(station(name).steps(*batch)) for name in STATIONS}
    assert counts == dict.fromkeys(STATIONS, 1) | {"Untied unrolled net": OPTIONS.depth}


def test_tied_steps_are_the_sum_of_the_untied_ones(station, batch):
    """At equal weights the tied gradient collects what the copies get."""
    (tied,), untied = (station(f"{kind} unrolled net").steps(*batch) for kind in ("Tied", "Untied"))
    for mine, *parts in zip(tied, *untied, strict=True):
        assert_close(mine, torch.stack(parts).sum(0), rtol=1e-9, atol=1e-15)


def test_the_rbm_of_a_station_is_a_copy(station, batch):
    for name in STATIONS:
        learner = station(name)
        model = learner.rbm()
        before = copy.deepcopy(model)
        learner.update(*batch)
        assert_close(model.weight, before.weight, rtol=0, atol=0)

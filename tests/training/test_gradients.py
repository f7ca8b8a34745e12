"""Gradient estimators against enumeration, and against the two phases computed apart."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from freenergy.inference import exact, mean_field, mean_field_gradient
from freenergy.models.units import Binomial
from freenergy.random import RandomStream
from freenergy.training import TrainingOptions, as_rows, gradient_estimator

PARAMETERS = ("weight", "visible_bias", "hidden_bias")
METHODS = ("cd", "pcd", "emf")
UNITS = [("bernoulli", "bernoulli"), ("spin", "spin"), ("bernoulli", "spin")]
BETAS = (0.6, 1.0, 1.7)


def gradient(model) -> dict[str, np.ndarray]:
    return {name: getattr(model, name).grad.numpy().copy() for name in PARAMETERS}


def estimator(model, seed: int = 0, **options):
    options = {"centered": False, **options}
    return gradient_estimator(model, TrainingOptions(**options), RandomStream(seed))


def exact_gradient(table, model, beta: float, batch) -> dict[str, np.ndarray]:
    """Of -<ln p(v)> in the model: -beta (<x>_data - <x>_model), from the table of all states."""
    reference = table(model, beta)
    v = batch.numpy()
    index = [int(np.flatnonzero((reference.v == row).all(1))[0]) for row in v]
    h = reference.hidden_mean[index]
    return {
        "weight": -beta * (v.T @ h / len(v) - reference.correlation),
        "visible_bias": -beta * (v.mean(0) - reference.visible),
        "hidden_bias": -beta * (h.mean(0) - reference.hidden),
    }


def centred(g: dict[str, np.ndarray], mu: np.ndarray, lam: np.ndarray) -> dict[str, np.ndarray]:
    """The centred gradient of an uncentred one: its weights, carried over to the biases."""
    weight = (
        g["weight"] - np.outer(mu, g["hidden_bias"]) - np.outer(g["visible_bias"], lam)
    )  # = <(v - mu)(h - lam)'>_data - <(v - mu)(h - lam)'>_model, up to the sign and beta
    return {
        "weight": weight,
        "visible_bias": g["visible_bias"] - weight @ lam,
        "hidden_bias": g["hidden_bias"] - weight.T @ mu,
    }


def test_the_table_gives_the_gradient_of_the_likelihood(rbm, table, data):
    """The reference of this file against finite differences of ln p and against ``exact``."""
    model, batch, beta, step = rbm(6, 4), data(8), 1.7, 1e-5

    def loss() -> float:
        reference = table(model, beta)
        rows = [int(np.flatnonzero((reference.v == row).all(1))[0]) for row in batch.numpy()]
        return -float(reference.log_marginal[rows].mean())

    expected = exact_gradient(table, model, beta, batch)
    for name in PARAMETERS:
        flat = getattr(model, name).detach().view(-1)
        for i in range(0, len(flat), 3):
            value = float(flat[i])
            flat[i] = value + step
            above = loss()
            flat[i] = value - step
            below = loss()
            flat[i] = value
            slope = (above - below) / (2 * step)
            assert expected[name].flat[i] == pytest.approx(slope, abs=1e-8)
    statistics = exact(model, beta)
    h = model.hidden_mean(batch, beta).detach()
    assert_allclose(
        expected["weight"], -beta * (batch.T @ h / 8 - statistics.correlation).numpy(), atol=1e-12
    )


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("units", UNITS, ids="-".join)
@pytest.mark.parametrize("method", ["cd", "pcd"])
def test_long_chains_give_the_exact_gradient(rbm, table, data, method, units, beta, centered):
    model = rbm(6, 4, visible=units[0], hidden=units[1], scale=0.4)
    distinct, n = data(8, unit=units[0]), 20_000
    batch = distinct.repeat(n // 8, 1)
    estimate = estimator(model, method=method, n_steps=40, n_chains=n, beta=beta, centered=centered)
    estimate.compute(batch)
    expected = exact_gradient(table, model, beta, distinct)
    if centered:
        offsets = estimate.state()
        mu, lam = offsets["offset_visible"].numpy(), offsets["offset_hidden"].numpy()
        expected = centred(expected, mu, lam)
    # The chains are independent: a mean of n values, each of a standard deviation of at most 1
    # (½ for 0/1 units), and up to (1 + |offset|²) times that in the centred biases.
    error = beta * (1.0 if "spin" in units else 0.5) / n**0.5 * (3 if centered else 1)
    for name, value in gradient(model).items():
        assert np.abs(value - expected[name]).max() < 4.5 * error, name
    # The gradient is far above the error: neither a sign nor a phase can be missing.
    assert max(np.abs(g).max() for g in expected.values()) > 10 * error


def test_one_step_of_cd_is_biased_and_more_steps_less(rbm, table, data):
    model = rbm(6, 4, scale=1.5)
    distinct = data(8)
    batch = distinct.repeat(2000, 1)
    expected = exact_gradient(table, model, 1.0, distinct)["weight"]
    errors = []
    for n_steps in (1, 2, 30):
        estimator(model, method="cd", n_steps=n_steps).compute(batch)
        errors.append(np.abs(gradient(model)["weight"] - expected).max())
    assert errors[0] > 2 * errors[1] > 8 * errors[2]


def test_persistent_chains_need_no_steps_of_their_own_to_equilibrate(rbm, table, data):
    """One step an update is enough where the parameters stand still."""
    model, distinct, n = rbm(6, 4, scale=0.4), data(8), 16_000
    estimate = estimator(model, method="pcd", n_chains=n, n_steps=1)
    expected = exact_gradient(table, model, 1.0, distinct)["weight"]
    estimate.compute(distinct)
    first = np.abs(gradient(model)["weight"] - expected).max()
    for _ in range(30):
        estimate.compute(distinct)
    assert np.abs(gradient(model)["weight"] - expected).max() < 4.5 * 0.5 / n**0.5 < first / 2


@pytest.mark.parametrize("method", ["pcd", "emf"])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("units", UNITS, ids="-".join)
def test_the_data_phase_has_no_noise(rbm, table, data, method, beta, units):
    """With the same negative phase, two batches differ by their exact data phases."""
    model = rbm(6, 4, visible=units[0], hidden=units[1])
    batches = [data(n, unit=units[0], seed=n) for n in (7, 12)]
    found = []
    for batch in batches:
        estimator(model, method=method, beta=beta, n_chains=5, n_steps=2).compute(batch)
        found.append(gradient(model))
    expected = [exact_gradient(table, model, beta, batch) for batch in batches]
    for name in PARAMETERS:
        difference = expected[0][name] - expected[1][name]
        assert np.abs(difference).max() > 0.05
        assert_allclose(found[0][name] - found[1][name], difference, atol=1e-13)


def phases(method, model, batch, beta, n_steps, n_chains, seed=0):
    """(v, h) of the data and of the model in one update, with the stream of the estimator."""
    random = RandomStream(seed)
    data_phase = batch, model.hidden_mean(batch, beta)
    if method == "cd":
        h = model.sample_hidden(batch, random, beta)
    else:
        low = model.hidden.support[0]
        h = torch.full((n_chains, model.n_hidden), low, dtype=torch.float64)
    for step in range(n_steps):
        if step:
            h = model.sample_hidden(v, random, beta)  # noqa: F821
        v = model.sample_visible(h, random, beta)
    model_phase = v, model.hidden_mean(v, beta)
    return [tuple(x.detach().numpy() for x in phase) for phase in (data_phase, model_phase)]


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("beta", [1.0, 1.7])
@pytest.mark.parametrize("units", UNITS, ids="-".join)
@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("method", ["cd", "pcd"])
def test_the_gradient_is_that_of_its_phases(rbm, data, method, n_steps, units, beta, centered):
    """<(v - mu)(h - lam)'>_data - <.>_model and its biases, computed row by row."""
    model = rbm(6, 4, visible=units[0], hidden=units[1])
    batch = data(9, unit=units[0])
    estimate = estimator(
        model, method=method, n_steps=n_steps, n_chains=5, beta=beta, centered=centered
    )
    before = {name: t.numpy().copy() for name, t in estimate.state().items()}
    estimate.compute(batch)
    found = gradient(model)
    (vd, hd), (vm, hm) = phases(method, model, batch, beta, n_steps, 5)
    mu, lam = np.zeros(6), np.zeros(4)
    if centered:
        mu = 0.99 * before["offset_visible"] + 0.01 * vd.mean(0)
        lam = 0.99 * before["offset_hidden"] + 0.01 * hd.mean(0)
        after = estimate.state()
        assert_allclose(after["offset_visible"].numpy(), mu, atol=1e-14)
        assert_allclose(after["offset_hidden"].numpy(), lam, atol=1e-14)
    weight = np.zeros((6, 4))
    for v, h in zip(vd, hd, strict=True):
        weight += np.outer(v - mu, h - lam) / len(vd)
    for v, h in zip(vm, hm, strict=True):
        weight -= np.outer(v - mu, h - lam) / len(vm)
    expected = {
        "weight": weight,
        "visible_bias": vd.mean(0) - vm.mean(0) - weight @ lam,
        "hidden_bias": hd.mean(0) - hm.mean(0) - weight.T @ mu,
    }
    for name, value in expected.items():
        assert np.abs(value).max() > 0.01
        assert_allclose(found[name], -beta * value, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_centred_mean_field_gradient_is_the_uncentred_one_transformed(rbm, data, order):
    batch, found = data(9), {}
    for centered in (False, True):
        model = rbm(6, 4, scale=1.0)
        options = {"method": "emf", "mean_field_order": order, "n_chains": 5, "beta": 1.3}
        estimate = estimator(model, centered=centered, **options)
        estimate.compute(batch)
        found[centered] = gradient(model)
    offsets = estimate.state()
    mu, lam = offsets["offset_visible"].numpy(), offsets["offset_hidden"].numpy()
    for name, value in centred(found[False], mu, lam).items():
        assert_allclose(found[True][name], value, atol=1e-13, err_msg=name)
        assert np.abs(value - found[False][name]).max() > 0.01


def relative_entropy(target, activity):
    return (
        target * torch.log(target / activity)
        + (1 - target) * torch.log((1 - target) / (1 - activity))
    ).sum()


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("beta", [0.6, 1.7])
@pytest.mark.parametrize("units", [*UNITS, ("bernoulli", Binomial(3))], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_sparsity_adds_the_derivative_of_its_penalty(rbm, data, method, units, beta, centered):
    """Of c KL(p | q) by autograd, where the running activities are those of the batch."""
    model = rbm(6, 4, visible=units[0], hidden=units[1])
    batch, target, cost = data(9, unit=units[0]), 0.2, 3.0
    low, high = min(model.hidden.support), max(model.hidden.support)
    found = []
    for options in ({}, {"sparsity_target": target, "sparsity_cost": cost}):
        estimate = estimator(model, method=method, beta=beta, centered=centered, **options)
        with torch.no_grad():
            estimate.state()["offset_hidden"].copy_(model.hidden_mean(batch, beta).mean(0))
        estimate.compute(batch)
        found.append(gradient(model))
    mu, lam = (estimate.state()[f"offset_{layer}"].numpy() for layer in ("visible", "hidden"))
    activity = (model.hidden_mean(batch, beta).mean(0) - low) / (high - low)
    slopes = torch.autograd.grad(
        cost * relative_entropy(target, activity), [model.weight, model.hidden_bias]
    )
    expected = {
        "weight": slopes[0].numpy(),
        "visible_bias": np.zeros(6),
        "hidden_bias": slopes[1].numpy(),
    }
    if centered:
        expected = centred(expected, mu, lam)
    for name, value in expected.items():
        assert_allclose(found[1][name] - found[0][name], value, atol=1e-12, err_msg=name)
    assert np.abs(expected["weight"]).max() > 0.01


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_sparsity_stays_finite_for_units_that_are_always_off_or_on(rbm, data, scale):
    model = rbm(6, 4, scale=0.0)
    with torch.no_grad():
        model.hidden_bias.copy_(scale * torch.tensor([1.0, -1.0, 1.0, -1.0]))
    estimate = estimator(model, sparsity_target=0.2, sparsity_cost=1.0)
    with torch.no_grad():
        estimate.state()["offset_hidden"].copy_(torch.tensor([0.0, 1.0, 1.0, 0.0]))
    estimate.compute(data(9))
    assert all(np.isfinite(value).all() for value in gradient(model).values())


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_activities_that_sparsity_sees_are_running_means(rbm, data, method, centered):
    model, batch = rbm(6, 4), data(9)
    options = {"sparsity_target": 0.2, "sparsity_cost": 1.0, "centered": centered}
    estimate = estimator(model, method=method, **options)
    before = estimate.state()["offset_hidden"].clone()
    estimate.compute(batch)
    now = model.hidden_mean(batch).detach().mean(0)
    assert_allclose(estimate.state()["offset_hidden"], 0.99 * before + 0.01 * now, atol=1e-14)


def test_offsets_start_at_the_means_of_the_model_without_couplings(rbm):
    model = rbm(6, 4, visible="spin", scale=0.0)
    offsets = estimator(model, beta=1.7).state()
    a, b = model.visible_bias.detach().numpy(), model.hidden_bias.detach().numpy()
    assert_allclose(offsets["offset_visible"].numpy(), np.tanh(1.7 * a), rtol=1e-12)
    assert_allclose(offsets["offset_hidden"].numpy(), 1 / (1 + np.exp(-1.7 * b)), rtol=1e-12)


def flipped(model):
    """The same distribution for units 1 - v: E(1 - v, h) written in the model's parameters."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.hidden_bias.add_(model.weight.sum(0))
        other.visible_bias.neg_()
        other.weight.neg_()
    return other


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_centred_gradient_does_not_know_what_is_called_one(
    start, data, rbm, table, order, persistent
):
    """Training on X and on 1 - X gives one model up to the flip; uncentred, it does not."""
    x = data(55, seed=3)
    x[:, 0] = (x[:, 0] > 2).double()  # a column that is always off
    distance = {}
    for centered in (True, False):
        options = {
            "method": "emf",
            "mean_field_order": order,
            "persistent": persistent,
            "centered": centered,
            "n_epochs": 20,
            "momentum": 0.5,
            "learning_rate": 0.2,
        }
        trainer, mirror = start(x, **options), start(x, **options)
        trainer.model.load_state_dict(rbm(6, 4, scale=1.0).state_dict())
        mirror.model.load_state_dict(flipped(trainer.model).state_dict())
        mirror.gradient = gradient_estimator(mirror.model, mirror.options, RandomStream(7))
        trainer.gradient = gradient_estimator(trainer.model, trainer.options, RandomStream(7))
        before = trainer.model.weight.detach().clone()
        trainer.fit(as_rows(x, x))
        mirror.fit(as_rows(1 - x, x))
        assert float((trainer.model.weight.detach() - before).abs().max()) > 0.2
        p, q = table(trainer.model).log_marginal, table(flipped(mirror.model)).log_marginal
        distance[centered] = np.abs(p - q).max()
    assert distance[True] < 1e-10
    assert distance[False] > 0.1


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("units", UNITS, ids="-".join)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_mean_field_gradient_is_that_of_the_free_energy(
    rbm, table, data, order, units, beta, persistent
):
    """At converged states: data phase minus the derivative of -beta Gamma, by autograd."""
    model = rbm(6, 4, visible=units[0], hidden=units[1], scale=0.3)
    batch = data(8, unit=units[0])
    estimate = estimator(
        model,
        method="emf",
        mean_field_order=order,
        n_steps=300,
        n_chains=5,
        beta=beta,
        persistent=persistent,
    )
    starts = estimate.state()["visible_state"].clone() if persistent else batch
    estimate.compute(batch)
    state = mean_field(model, order, beta=beta, start=starts, tolerance=1e-14, max_iter=2000)
    reference = table(model, beta)
    index = [int(np.flatnonzero((reference.v == row).all(1))[0]) for row in batch.numpy()]
    h = reference.hidden_mean[index]
    data_phase = {
        "weight": batch.numpy().T @ h / 8,
        "visible_bias": batch.numpy().mean(0),
        "hidden_bias": h.mean(0),
    }
    for autograd in (False, True):
        model_phase = mean_field_gradient(model, state, autograd=autograd)
        for name, value in gradient(model).items():
            expected = getattr(model_phase, name).numpy() - beta * data_phase[name]
            assert_allclose(value, expected, atol=1e-11, err_msg=name)
    if persistent:
        assert_allclose(estimate.state()["visible_state"].numpy(), state.visible, atol=1e-11)


def test_each_order_of_the_expansion_brings_the_gradient_nearer_to_the_exact_one(rbm, table, data):
    errors = np.zeros(3)
    for seed in range(5):
        model, batch = rbm(6, 4, scale=0.3, seed=seed), data(8)
        expected = exact_gradient(table, model, 1.0, batch)
        for order in (1, 2, 3):
            options = {"mean_field_order": order, "n_steps": 200, "n_chains": 1}
            estimator(model, method="emf", **options).compute(batch)
            found = gradient(model)
            errors[order - 1] += max(np.abs(found[n] - expected[n]).max() for n in PARAMETERS)
    assert errors[2] < errors[1] / 1.3 < errors[0] / 20


def test_mean_field_states_start_apart_and_move_by_sweeps(rbm, data):
    model = rbm(6, 4, scale=2.0)
    estimate = estimator(model, method="emf", n_chains=6, n_steps=1, damping=0.9)
    first = {name: t.clone() for name, t in estimate.state().items()}
    assert len(torch.unique(first["visible_state"], dim=0)) > 1
    estimate.compute(data(8))
    moved = (estimate.state()["hidden_state"] - first["hidden_state"]).abs().max()
    quick = estimator(model, method="emf", n_chains=6, n_steps=1, damping=0.0)
    quick.compute(data(8))
    leap = (quick.state()["hidden_state"] - first["hidden_state"]).abs().max()
    assert_allclose(float(moved), 0.1 * float(leap), rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_only_what_the_next_update_needs_is_kept(rbm, data, method):
    kept = {"cd": set(), "pcd": {"chain"}, "emf": {"visible_state", "hidden_state"}}[method]
    estimate = estimator(rbm(6, 4), method=method, n_chains=3)
    assert set(estimate.state()) == {"offset_visible", "offset_hidden"} | kept
    assert set(estimator(rbm(6, 4), method="emf", persistent=False).state()) == {
        "offset_visible",
        "offset_hidden",
    }
    if method == "pcd":
        estimate.compute(data(5))
        assert set(torch.unique(estimate.state()["chain"]).tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("method", METHODS)
def test_the_batch_is_left_as_it_was(rbm, data, method):
    batch = data(8)
    before = batch.clone()
    for persistent in (True, False):
        estimate = estimator(rbm(6, 4), method=method, persistent=persistent, n_steps=3)
        estimate.compute(batch)
        estimate.compute(batch)
    assert bool((batch == before).all())

"""Losses of perceptrons against closed forms, the penalty, and the projection on max_norm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from freenergy.models import initialize_perceptron, multilayer_perceptron
from freenergy.random import RandomStream
from freenergy.training.perceptron import (
    LOSSES,
    PerceptronGradient,
    PerceptronOptions,
    PerceptronTrainer,
    minimize_lbfgs,
)
from freenergy.training.rows import LabelledBatch, LabelledRows, as_rows


def outputs(n=20, k=3, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, k)))


# ---- losses --------------------------------------------------------------------------------------


def test_the_softmax_loss_is_the_log_loss_of_one_class():
    f, y = outputs(), torch.arange(20) % 3
    p = np.exp(f.numpy()) / np.exp(f.numpy()).sum(1, keepdims=True)
    expected = -np.log(p[np.arange(20), y.numpy()])
    np.testing.assert_allclose(LOSSES["softmax"](f, y).numpy(), expected, rtol=1e-12)


def test_the_logistic_loss_is_that_of_independent_labels():
    f, y = outputs(), (outputs(seed=1) > 0).double()
    p = 1.0 / (1.0 + np.exp(-f.numpy()))
    expected = -stats.bernoulli.logpmf(y.numpy(), p).sum(1)
    np.testing.assert_allclose(LOSSES["logistic"](f, y).numpy(), expected, rtol=1e-12)


def test_the_squared_error_is_halved():
    f, y = outputs(), outputs(seed=1)
    expected = -stats.norm.logpdf(y, f).sum(1) - 3 * 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(LOSSES["identity"](f, y).numpy(), expected, rtol=1e-10)


def test_the_poisson_loss_is_the_log_likelihood_below_the_best_one():
    f = outputs()
    y = np.random.default_rng(2).poisson(2.0, (20, 3)).astype(float)
    assert (y == 0).any()
    best = stats.poisson.logpmf(y, y)
    expected = (best - stats.poisson.logpmf(y, np.exp(f.numpy()))).sum(1)
    found = LOSSES["exp"](f, torch.from_numpy(y)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    assert (found >= 0).all()


@pytest.mark.parametrize("name", ["softmax", "logistic"])
def test_log_losses_are_finite_and_linear_in_a_field_of_1e4(name):
    f = torch.tensor([[1e4, 0.0], [-1e4, 0.0]], dtype=torch.float64)
    y = torch.tensor([1, 0]) if name == "softmax" else torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    y = y if name == "softmax" else y.double()
    extra = 0.0 if name == "softmax" else np.log(2.0)
    np.testing.assert_allclose(LOSSES[name](f, y).numpy(), 1e4 + extra, rtol=1e-12)


# ---- the gradient and its count ------------------------------------------------------------------


def problem(weights=None, out="identity"):
    net = multilayer_perceptron(4, (5,), 2, activation="tanh").double()
    initialize_perceptron(net, RandomStream(0), activation="tanh")
    rows = as_rows(outputs(12, 4), like=torch.empty(0, dtype=torch.float64))
    return net, LabelledRows(rows, outputs(12, 2, seed=3), weights)


def test_weights_of_rows_count_as_rows():
    counts = torch.tensor([0, 1, 2, 3] * 3)
    net, rows = problem(counts.double())
    index = torch.repeat_interleave(torch.arange(12), counts)
    found = []
    for batch in (rows.take(slice(0, 12)), LabelledBatch(*rows.take(index)[:2], None)):
        gradient = PerceptronGradient(net, "identity", alpha=0.7)
        gradient.compute(batch)
        slopes = [p.grad.clone() for p in net.parameters()]
        found.append((slopes, float(gradient.objective), gradient.batch_weight))
    (a, objective, weight), (b, expected, n) = found
    assert objective == pytest.approx(expected, rel=1e-12)
    assert weight == n == int(counts.sum())
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-13)


def test_the_count_of_an_epoch_is_the_mean_over_rows_and_starts_anew():
    net, rows = problem()
    gradient = PerceptronGradient(net, "identity", alpha=0.5)
    losses = []
    for part in (slice(0, 8), slice(8, 12)):
        gradient.compute(rows.take(part))
        losses.append(float(gradient.batch_loss))
    assert gradient.measure()["loss"] == pytest.approx((8 * losses[0] + 4 * losses[1]) / 12)
    gradient.compute(rows.take(slice(0, 8)))
    assert gradient.measure()["loss"] == pytest.approx(losses[0])


def test_one_step_follows_the_gradient_of_the_objective():
    """Central differences of data term and penalty, parameter by parameter, against SGD's step."""
    net, rows = problem()
    batch, options = rows.take(slice(0, 12)), PerceptronOptions(learning_rate=1.0, alpha=0.9)
    gradient = PerceptronGradient(net, "identity", alpha=0.9)
    trainer = PerceptronTrainer(net, options, RandomStream(0), gradient=gradient)

    def objective():
        gradient.compute(batch)
        return float(gradient.objective)

    before = [p.detach().clone() for p in net.parameters()]
    slopes, eps = [torch.zeros_like(p) for p in before], 1e-6
    for p, slope in zip(net.parameters(), slopes, strict=True):
        for k in range(p.numel()):
            with torch.no_grad():
                p.view(-1)[k] += eps
                up = objective()
                p.view(-1)[k] -= 2 * eps
                down = objective()
                p.view(-1)[k] += eps
            # The penalty is one of the weights alone, and objective() counts it likewise.
            slope.view(-1)[k] = (up - down) / (2 * eps)
    trainer.update(batch)
    for p, old, slope in zip(net.parameters(), before, slopes, strict=True):
        torch.testing.assert_close(old - p.detach(), slope, rtol=1e-6, atol=1e-8)


# ---- training ------------------------------------------------------------------------------------


def test_max_norm_holds_after_every_update_and_leaves_the_outputs_free():
    net, rows = problem()
    with torch.no_grad():
        net[0].weight.mul_(10.0)
        net[2].weight.mul_(10.0)
    options = PerceptronOptions(learning_rate=0.1, weight_constraint="l2", max_norm=0.5)
    gradient = PerceptronGradient(net, "identity", alpha=0.0)
    trainer = PerceptronTrainer(net, options, RandomStream(0), gradient=gradient)
    for _ in range(3):
        trainer.update(rows.take(slice(0, 12)))
        norms = torch.linalg.vector_norm(net[0].weight.detach(), dim=1)
        assert float(norms.max()) <= 0.5 * (1 + 1e-12)
    assert float(torch.linalg.vector_norm(net[2].weight.detach(), dim=1).max()) > 0.5


def test_momentum_goes_on_as_far_when_the_rate_changes():
    net, rows = problem()
    options = PerceptronOptions(learning_rate=0.1, momentum=0.9, nesterov=False, alpha=0.0)
    gradient = PerceptronGradient(net, "identity", alpha=0.0)
    trainer = PerceptronTrainer(net, options, RandomStream(0), gradient=gradient)
    trainer.update(rows.take(slice(0, 12)))
    way = 0.9 * 0.1 * net[0].weight.grad.clone()
    trainer.set_rate(0.025)
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.025
    before = net[0].weight.detach().clone()
    trainer.update(rows.take(slice(0, 12)))
    step = before - net[0].weight.detach()
    torch.testing.assert_close(step, way + 0.025 * net[0].weight.grad, rtol=1e-10, atol=1e-14)


def test_lbfgs_finds_the_solution_of_ridge_regression():
    net = multilayer_perceptron(4, (), 2).double()
    initialize_perceptron(net, RandomStream(0))
    _, rows = problem()
    gradient = PerceptronGradient(net, "identity", alpha=3.0)
    found = minimize_lbfgs(net, gradient, rows, max_iter=500, max_fun=5000, tol=1e-10)
    assert found.status == 0
    X, Y = rows.rows.data.numpy(), rows.labels.numpy()
    Xc, Yc = X - X.mean(0), Y - Y.mean(0)
    expected = np.linalg.solve(Xc.T @ Xc + 3.0 * np.eye(4), Xc.T @ Yc)
    np.testing.assert_allclose(net[0].weight.detach().numpy().T, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        net[0].bias.detach().numpy(), Y.mean(0) - X.mean(0) @ expected, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("option", "value"), [("alpha", -1.0), ("beta_1", 1.0), ("beta_2", -0.1), ("epsilon", 0.0)]
)
def test_impossible_options_are_refused_by_name(option, value):
    with pytest.raises(ValueError, match=option):
        PerceptronOptions(**{option: value})


def test_restoring_starts_a_new_count():
    net, rows = problem()
    gradient = PerceptronGradient(net, "identity", alpha=0.0)
    state = gradient.state()
    gradient.compute(rows.take(slice(0, 6)))
    gradient.restore(state)
    gradient.compute(rows.take(slice(6, 12)))
    assert gradient.measure()["loss"] == pytest.approx(float(gradient.batch_loss))
    assert isinstance(net[0], nn.Linear)

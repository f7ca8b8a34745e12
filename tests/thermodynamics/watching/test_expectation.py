"""Measured beside predicted: the moment map holds at initialisation, in both directions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from freenergy.normalization import moment_map
from freenergy.thermodynamics import watch
from freenergy.thermodynamics.watching.expectation import domain, expect


def read_once(module: nn.Module, x: torch.Tensor):
    generator = torch.Generator().manual_seed(4)
    with watch(module, n_rows=256, n_units=512) as run:
        y = module(x)
        # A gradient that is independent of the signal, as the theory has it.
        y.backward(torch.randn(y.shape, generator=generator))
    return run.history


@pytest.mark.parametrize("activation", [nn.SELU, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU])
def test_a_wide_net_at_its_start_does_what_the_moment_map_predicts(net, activation):
    module = net(activation, 6, 400)
    history = read_once(module, torch.randn(256, 20, generator=torch.Generator().manual_seed(0)))
    for i in history.hidden:
        predicted, reading = expect(history, i), history.records[0].readings[i]
        tolerance = 0.3 if i == 0 else 0.1  # the first layer has 20 inputs alone
        assert reading.variance == pytest.approx(predicted.variance[0], rel=tolerance)
        scale = np.sqrt(reading.variance)
        assert reading.mean == pytest.approx(predicted.mean[0], abs=0.2 * scale)
        if i != history.hidden[-1]:
            after = history.records[0].readings[i + 1]
            wanted = predicted.activation_variance[0]
            assert after.input_variance == pytest.approx(wanted, rel=1.5 * tolerance)
            assert after.input_mean == pytest.approx(predicted.activation_mean[0], abs=0.1)
        gradient = predicted.gradient_variance[0]
        assert reading.gradient_variance == pytest.approx(gradient, rel=2 * tolerance)


def test_the_prediction_is_the_moment_map_of_what_was_read(net):
    history = read_once(net(nn.SELU, 3, 50), torch.randn(64, 20))
    r = history.records[0].readings[1]
    after = moment_map(
        "selu",
        r.input_mean,
        r.input_variance,
        r.weight_sum,
        r.weight_square_sum,
        r.weight_sum_variance,
    )
    predicted = expect(history, 1)
    # The biases are zero.
    assert predicted.activation_mean[0] == pytest.approx(float(after.mean), rel=1e-6)
    assert predicted.activation_variance[0] == pytest.approx(float(after.variance), rel=1e-6)


def test_behind_batch_norm_its_scale_and_shift_predict(net):
    module = net(nn.ReLU, 3, between=nn.BatchNorm1d)
    nn.init.constant_(module[1].weight, 2.0)
    nn.init.constant_(module[1].bias, -1.0)
    history = read_once(module, torch.randn(256, 20))
    predicted, reading = expect(history, 0), history.records[0].readings[0]
    assert predicted.variance[0] == 4.0
    assert predicted.mean[0] == -1.0
    assert reading.variance == pytest.approx(4.0, rel=0.05)
    assert np.isnan(predicted.gradient_variance[0])  # a batch norm lies above


@pytest.mark.parametrize("activation", [nn.SELU, nn.ReLU])
def test_dropout_above_raises_the_gradient_that_comes_back(net, activation):
    torch.manual_seed(0)
    history = read_once(net(activation, 4, 400, dropout=0.3).train(), torch.randn(256, 20))
    for i in history.hidden[1:]:
        predicted = expect(history, i).gradient_variance[0]
        measured = history.records[0].readings[i].gradient_variance
        assert measured == pytest.approx(predicted, rel=0.2)


def test_gradients_through_a_convolution_with_a_stride():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv1d(16, 32, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv1d(32, 64, 4, stride=2, padding=1, bias=False),
    )
    history = read_once(module, torch.randn(64, 16, 128))
    predicted = expect(history, 0).gradient_variance[0]
    measured = history.records[0].readings[0].gradient_variance
    assert measured == pytest.approx(predicted, rel=0.15)


def test_an_unknown_activation_is_predicted_by_quadrature():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(300, 300), nn.GELU(), nn.Linear(300, 300), nn.SiLU())
    module.append(nn.Linear(300, 1))
    history = read_once(module, torch.randn(256, 300))
    after = expect(history, 0).activation_variance[0]
    assert history.records[0].readings[1].input_variance == pytest.approx(after, rel=0.1)


def test_a_sum_in_between_breaks_the_way_back():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.f = nn.Linear(5, 5), nn.Linear(5, 5), nn.ReLU()

        def forward(self, x):
            return self.b(x + self.f(self.a(x)))

    history = read_once(Residual(), torch.randn(8, 5))
    assert np.isnan(expect(history, 0).gradient_variance[0])
    assert np.isfinite(expect(history, 1).variance[0])


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ((0.0, 1.0, 0.0, 1.0), "theorem 1"),
        ((0.1, 1.5, -0.1, 1.1), "theorem 1"),
        ((0.11, 1.0, 0.0, 1.0), "outside"),
        ((0.0, 1.0, 0.2, 1.0), "outside"),
        ((-1.0, 16.0, 0.0, 1.25), "theorem 2"),
        ((0.0, 2.0, 0.0, 1.0), "outside"),
        ((0.0, 0.16, 0.0, 0.8), "theorem 3"),
        ((0.0, 0.24, 0.0, 0.8), "outside"),
        ((0.0, 0.24, 0.0, 0.9), "theorem 3"),
        ((0.0, float("nan"), 0.0, 1.0), "outside"),
    ],
)
def test_the_domains_of_the_theorems(values, name):
    assert domain(*values) == name

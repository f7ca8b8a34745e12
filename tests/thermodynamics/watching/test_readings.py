"""The numbers of a reading are those that the whole tensors give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import relu

from freenergy.thermodynamics import watch
from freenergy.thermodynamics.watching.probe import probe
from freenergy.thermodynamics.watching.readings import PERCENTILES


def one_pass(module: nn.Module, x: torch.Tensor, loss=lambda y: y.square().mean(), **options):
    """The readings of a single pass of which everything is read, and an update of SGD."""
    options = {"n_rows": 10**6, "n_units": 10**6, "budget": 1e3} | options
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with watch(module, **options) as run:
        loss(module(x)).backward()
        optimizer.step()
    return run


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_reading_is_that_of_the_whole_pass(x):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 3)).double()
    weight, bias = (p.detach().clone() for p in module[0].parameters())
    z = (x @ weight.T + bias).requires_grad_()
    module[2](torch.tanh(z)).square().mean().backward()
    run = one_pass(module, x)
    reading = run.history.records[0].readings[0]
    flat, gradient = z.detach().numpy(), z.grad.numpy()
    expected = {
        "mean": flat.mean(),
        "variance": flat.var(),
        "signal": flat.var(axis=0).mean(),
        "saturated": (1 - np.tanh(flat) ** 2 < 0.05).mean(),
        "gradient_variance": gradient.var(),
        "gradient_square": (gradient**2).sum(),
        "n_sites": 40,
        "input_mean": x.numpy().mean(),
        "input_variance": x.numpy().var(),
        "weight_sum": weight.sum(1).mean(),
        "weight_sum_variance": weight.sum(1).var(correction=0),
        "weight_square_sum": weight.square().sum(1).mean(),
        "weight_norm": weight.norm(),
        "temperature": math.sqrt(30) / weight.norm(),
        "bias_mean": bias.mean(),
        "update_ratio": (module[0].weight.detach() - weight).norm() / weight.norm(),
        "distance": 0.0,
    }
    for name, value in expected.items():
        assert getattr(reading, name) == pytest.approx(float(value), rel=1e-10, abs=1e-15), name
    for name, share in (("p15", 0.15), ("p50", 0.5), ("p85", 0.85)):
        below = (flat < getattr(reading, name)).mean()
        assert below == pytest.approx(share, abs=0.01)


def test_the_last_look_tells_how_far_the_weights_went(x):
    module = nn.Sequential(nn.Linear(6, 3)).double()
    before = module[0].weight.detach().clone()
    run = one_pass(module, x)
    moved = float((module[0].weight.detach() - before).norm())
    assert run.history.records[-1].readings[0].distance == pytest.approx(moved, rel=1e-12)
    assert moved > 0


def test_batch_norm_belongs_to_the_layer(x):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 2))
    module = module.double()
    module[1].weight.data.fill_(3.0)
    reading = one_pass(module, x).history.records[0].readings[0]
    assert reading.signal == pytest.approx(9.0, rel=1e-3)
    assert reading.norm_scale == pytest.approx(9.0)


def test_the_gradient_is_that_behind_batch_norm(x):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).double()
    y = module[1](module[0](x))
    y.retain_grad()
    module[3](module[2](y)).square().mean().backward()
    module.zero_grad()
    reading = one_pass(module, x).history.records[0].readings[0]
    assert reading.gradient_variance == pytest.approx(float(y.grad.var(correction=0)), rel=1e-10)


def test_an_activation_in_place_leaves_the_pre_activation_its_own(x):
    torch.manual_seed(0)
    layers = nn.Linear(6, 20).double(), nn.Linear(20, 2).double()
    apart = one_pass(nn.Sequential(layers[0], nn.ReLU(), layers[1]), x)
    for layer in layers:
        layer.reset_parameters()
    torch.manual_seed(0)
    layers = nn.Linear(6, 20).double(), nn.Linear(20, 2).double()
    inside = one_pass(nn.Sequential(layers[0], nn.ReLU(inplace=True), layers[1]), x)
    a, b = (run.history.records[0].readings[0] for run in (apart, inside))
    assert a.to_dict() == pytest.approx(b.to_dict(), nan_ok=True)
    assert a.mean < 0.5 * math.sqrt(a.variance)


def test_behind_a_functional_activation_the_output_is_the_pre_activation(x):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 9), nn.Linear(9, 2)

        def forward(self, x):
            return self.second(relu(self.first(x), inplace=True))

    module = Net().double()
    z = module.first(x).detach()
    run = one_pass(module, x)
    reading = run.history.records[0].readings[0]
    assert reading.variance == pytest.approx(float(z.var(correction=0)), rel=1e-12)
    assert run.history.layers[0].activation == "unknown"
    assert reading.positive is None
    assert math.isnan(reading.saturated)


def test_channels_are_the_units_of_a_convolution():
    torch.manual_seed(0)
    x = torch.randn(9, 2, 5, 5, dtype=torch.float64)
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)).double()
    with torch.no_grad():
        module[0].bias[:2] = -50.0
    weight = module[0].weight.detach().clone()
    run = one_pass(module, x)
    reading = run.history.records[0].readings[0]
    assert reading.positive.tolist() == [False, False, True, True]
    assert reading.weight_square_sum == pytest.approx(float(weight.square().sum() / 4))
    assert run.history.layers[1].below == 0


@pytest.mark.parametrize("groups", [1, 2])
def test_the_units_of_a_transposed_convolution_are_its_outputs(groups):
    torch.manual_seed(0)
    module = nn.ConvTranspose1d(4, 6, 3, groups=groups, bias=False).double()
    with torch.no_grad():
        module.weight[:2].zero_()
    shown = module(torch.eye(4, dtype=torch.float64)[:, :, None])
    run = one_pass(nn.Sequential(module), torch.randn(5, 4, 7, dtype=torch.float64))
    tau = shown.detach().square().sum((0, 2))
    assert run.history.records[0].readings[0].weight_square_sum == pytest.approx(float(tau.mean()))


def test_few_rows_and_units_estimate_the_whole():
    torch.manual_seed(0)
    x = torch.randn(512, 100)
    module = nn.Sequential(nn.Linear(100, 400), nn.ReLU(), nn.Linear(400, 1))
    z = (x @ module[0].weight.T + module[0].bias).detach()
    norm = float(module[0].weight.detach().norm())
    run = one_pass(module, x, n_rows=64, n_units=64)
    reading = run.history.records[0].readings[0]
    assert len(reading.positive) == 64
    assert reading.variance == pytest.approx(float(z.var()), rel=0.1)
    assert reading.weight_norm == pytest.approx(norm, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_precision_is_read(dtype):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)
    run = one_pass(module, torch.randn(16, 6).to(dtype))
    reading = run.history.records[0].readings[0]
    assert reading.variance > 0
    assert reading.gradient_variance > 0
    assert reading.update_ratio > 0
    assert run.findings == ()


def test_extreme_values_are_finite_numbers_or_said_not_to_be():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    with torch.no_grad():
        module[0].weight.fill_(1e30)
    run = one_pass(module, torch.full((5, 3), 1e4))
    assert run.history.records[0].readings[0].infinite == ""
    assert run.history.records[0].readings[0].saturated == 1.0


def test_one_row_and_one_unit():
    run = one_pass(nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)), torch.ones(1, 1))
    assert run.history.records[0].readings[0].variance == 0
    assert run.findings == ()


def test_batch_norm_behind_the_activation_does_not_belong_to_the_layer(x):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.BatchNorm1d(20), nn.Linear(20, 2))
    module = module.double()
    z = module[0](x).detach()
    run = one_pass(module, x)
    reading = run.history.records[0].readings[0]
    assert run.history.layers[0].normalization == ""
    assert reading.variance == pytest.approx(float(z.var(correction=0)), rel=1e-10)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.SELU])
def test_a_probe_reads_all_rows_and_units_of_a_net_as_it_stands(activation):
    torch.manual_seed(0)
    rows = torch.randn(150, 6).double()
    net = nn.Sequential(nn.Linear(6, 200), activation(), nn.Linear(200, 140), nn.BatchNorm1d(140))
    net = net.append(activation()).append(nn.Linear(140, 2)).double().eval()
    found = probe(net, rows)
    assert list(found) == ["0", "2", "5"]
    with torch.no_grad():
        for name, end in (("0", 1), ("2", 4)):
            z = net[:end](rows).numpy()
            assert [found[name].p15, found[name].p50, found[name].p85] == pytest.approx(
                np.percentile(z, PERCENTILES), rel=1e-12
            )
            assert found[name].variance == pytest.approx(z.var(), rel=1e-10)
            centred = z - z.mean(0)
            assert found[name].signal == pytest.approx(np.mean(centred**2), rel=1e-10)
    assert math.isnan(found["0"].gradient_variance)
    assert math.isnan(found["0"].update_ratio)
    assert not any(module._forward_hooks for module in net.modules())
    assert not net.training


def test_a_probe_whose_rows_do_not_fit_leaves_no_hook():
    net = nn.Sequential(nn.Linear(6, 3))
    with pytest.raises(RuntimeError):
        probe(net, torch.ones(2, 5))
    assert not any(module._forward_hooks for module in net.modules())

"""Nets with and without faults, and a short training of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from freenergy.thermodynamics import Watch, watch

N_FEATURES, N_CLASSES = 20, 4
GAINS = {nn.ReLU: 2.0, nn.LeakyReLU: 2.0, nn.SELU: 1.0, nn.Tanh: 1.0, nn.Sigmoid: 1.0}


def make_net(
    activation: type[nn.Module],
    depth: int = 6,
    width: int = 64,
    *,
    torch_default: bool = False,
    between: Callable[[int], nn.Module] | None = None,
    dropout: float = 0.0,
    seed: int = 0,
) -> nn.Sequential:
    """Hidden layers with the weights that suit their activation, or with torch's own."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    n_in = N_FEATURES
    for n_out in (*[width] * depth, N_CLASSES):
        layer = nn.Linear(n_in, n_out)
        with torch.no_grad():
            if torch_default:
                for p in (layer.weight, layer.bias):
                    p.uniform_(-(n_in**-0.5), n_in**-0.5, generator=generator)
            else:
                layer.weight.normal_(0, (GAINS[activation] / n_in) ** 0.5, generator=generator)
                layer.bias.zero_()
        layers.append(layer)
        if n_out == N_CLASSES:
            break
        if between is not None:
            layers.append(between(n_out))
        layers.append(activation())
        if dropout:
            layers.append((nn.AlphaDropout if activation is nn.SELU else nn.Dropout)(dropout))
        n_in = n_out
    return nn.Sequential(*layers)


def make_rows(n: int = 256) -> tuple[Tensor, Tensor]:
    """Standardised rows in classes that a plane or two tell apart."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(n, N_FEATURES, generator=generator)
    labels = (rows[:, 0] > 0).long() + 2 * (rows[:, 1] * rows[:, 2] > 0).long()
    return rows, labels


def fit(
    net: nn.Module,
    n_steps: int = 12,
    *,
    rate: float = 1e-3,
    adam: bool = True,
    rows: Tensor | None = None,
    **options: object,
) -> Watch:
    """Train for some steps, all of them read."""
    x, y = make_rows()
    x = x if rows is None else rows
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = (
        torch.optim.Adam(parameters, lr=rate) if adam else torch.optim.SGD(parameters, lr=rate)
    )
    generator = torch.Generator().manual_seed(2)
    with watch(net, **({"budget": 1e3} | options)) as run:
        for _ in range(n_steps):
            batch = torch.randint(0, len(x), (64,), generator=generator)
            optimizer.zero_grad()
            cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    return run


@pytest.fixture(scope="session")
def net() -> Callable[..., nn.Sequential]:
    return make_net


@pytest.fixture(scope="session")
def train() -> Callable[..., Watch]:
    return fit


@pytest.fixture(scope="session")
def rows() -> tuple[Tensor, Tensor]:
    return make_rows()

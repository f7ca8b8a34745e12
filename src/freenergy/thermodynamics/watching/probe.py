"""Readings of a net as it stands: one pass forward, all rows and all units."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from freenergy.random import RandomStream
from freenergy.thermodynamics.watching.layers import find_layers
from freenergy.thermodynamics.watching.readings import Reading, read
from freenergy.thermodynamics.watching.sampling import LayerSampler, SiteSampler
from freenergy.thermodynamics.watching.tracing import Pass

__all__ = ["probe"]


@torch.no_grad()
def probe(module: nn.Module, rows: Tensor) -> dict[str, Reading]:
    """What a watch would read of the layers, without training and without chance.

    The module is left in its mode. What layers keep of the data in training mode, as batch
    normalisation does, is theirs to change.

    Parameters
    ----------
    module : nn.Module
    rows : Tensor of shape (n, ...)

    Returns
    -------
    dict of str to Reading
        By the paths of the layers, in the order of their calls; of all rows and units. What needs
        a loss or an update is NaN.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> _ = nn.init.ones_(net[0].weight), nn.init.zeros_(net[0].bias)
    >>> found = probe(net, torch.tensor([[1.0], [2.0], [3.0]]))
    >>> list(found), found["0"].p50
    (['0', '2'], 2.0)
    """
    random = RandomStream(0)
    samplers = [
        LayerSampler.choose(part, layer, sys.maxsize, random) for part, layer in find_layers(module)
    ]
    current = Pass(0, samplers, SiteSampler(sys.maxsize, random), lambda hook: hook)
    current.begin(module, module)
    try:
        module(rows)
    finally:
        current.drop()
    called = [pair for pair in zip(current.traces, samplers, strict=True) if pair[1].layer.calls]
    called.sort(key=lambda pair: pair[1].layer.order)
    return {
        sampler.layer.name: read(trace, sampler, max_sorted=sys.maxsize)
        for trace, sampler in called
    }

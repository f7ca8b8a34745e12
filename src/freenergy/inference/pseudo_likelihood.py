"""Pseudo-likelihood: how well each unit is predicted by all the others."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import logsigmoid

from freenergy.arrays import as_matrix
from freenergy.models import RBM
from freenergy.random import RandomStream

__all__ = ["pseudo_log_likelihood", "stochastic_pseudo_log_likelihood"]

# Small enough to stay in cache: larger blocks cost more in page faults than they save in calls.
_CHUNK_ELEMENTS = 2**17


def _flipped(model: RBM, values: Tensor) -> Tensor:
    """The other value of a binary unit; 1 − v for a grey value of a 0/1 unit."""
    if len(model.visible.support) != 2:
        raise ValueError(f"pseudo-likelihood by flips needs binary units, not {model.visible}")
    return sum(model.visible.support) - values


@torch.no_grad()
def pseudo_log_likelihood(model: RBM, v: ArrayLike | Tensor, beta: float = 1.0) -> Tensor:
    r"""Exact log pseudo-likelihood of each row.

    .. math:: \sum_i \ln p(v_i \mid v_{\setminus i})
              = \sum_i \ln \sigma\big(\beta [F(v^{(i)}; \beta) - F(v; \beta)]\big)

    with :math:`v^{(i)}` the state whose unit *i* is flipped. Each row costs
    ``n_visible * n_hidden`` evaluations of the hidden log-partition.

    Parameters
    ----------
    model : RBM
        With binary visible units.
    v : array-like or Tensor of shape (n_samples, n_visible)
    beta : float, default=1
        Inverse temperature.

    Returns
    -------
    Tensor of shape (n_samples,), in nats.

    Raises
    ------
    ValueError
        When the units are not binary, or ``v`` has another shape.

    References
    ----------
    Besag, *Statistical analysis of non-lattice data*, 1975.

    Examples
    --------
    >>> import torch
    >>> rbm = RBM(4, 3, dtype=torch.float64)
    >>> _ = torch.nn.init.zeros_(rbm.weight)
    >>> pseudo_log_likelihood(rbm, torch.zeros(1, 4).double()) / torch.log(torch.tensor(2.0))
    tensor([-4.0000], dtype=torch.float64)
    """
    v = as_matrix(v, "v", model.n_visible, model.weight, empty=True)
    change = _flipped(model, v) - v
    field = model.hidden_field(v, beta)
    log_z = model.hidden.log_partition(field).sum(-1)
    total = torch.zeros_like(log_z)
    block = max(1, _CHUNK_ELEMENTS // max(1, v.shape[0] * model.n_hidden))
    for start in range(0, model.n_visible, block):
        units = slice(start, start + block)
        step = change[:, units]
        moved = field[:, None, :] + beta * step[:, :, None] * model.weight[units]
        gain = model.hidden.log_partition(moved).sum(-1) - log_z[:, None]
        # ln p(flipped) − ln p(v), up to the partition function that both share.
        log_ratio = beta * step * model.visible_bias[units] + gain
        total += logsigmoid(-log_ratio).sum(-1)
    return total


def _unit_of_each_row(v: Tensor, n: int, random: RandomStream) -> Tensor:
    """A random unit for each row: uniform over seeds, but fixed by the seed and the row's values.

    A hash of the row (random multiples of its entries, summed modulo 2⁶⁴) replaces one draw for
    each row, so that the score of a row depends neither on its place nor on its neighbours.
    """
    bits = (v.double() + 0.0).cpu().contiguous().numpy().view(np.uint64)
    # The entropy of 0.0 and 1.0 is in the high bits, which a multiplication would push out.
    keys = (bits >> np.uint64(48)) | (bits << np.uint64(16))
    draws = random.integers(-(2**63), 2**63, v.shape[1] + 1).numpy().view(np.uint64)
    hashes = (keys * draws[:-1]).sum(axis=1, dtype=np.uint64) + draws[-1]
    # The unsigned high half, scaled to 0 … n − 1.
    unit = ((hashes >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32)
    return torch.from_numpy(unit.astype(np.int64)).to(v.device)


@torch.no_grad()
def stochastic_pseudo_log_likelihood(
    model: RBM, v: ArrayLike | Tensor, random: RandomStream, beta: float = 1.0
) -> Tensor:
    r"""Unbiased estimate of the log pseudo-likelihood from one random unit of each row.

    .. math:: n_v \ln \sigma\big(\beta [F(v^{(i)}; \beta) - F(v; \beta)]\big), \quad
              i \sim \text{uniform}

    The unit follows from the stream's state and the values in the row, so that equal rows get
    equal scores in any order.

    Parameters
    ----------
    model : RBM
        With binary visible units.
    v : array-like or Tensor of shape (n_samples, n_visible)
    random : RandomStream
    beta : float, default=1
        Inverse temperature.

    Returns
    -------
    Tensor of shape (n_samples,), in nats.

    Raises
    ------
    ValueError
        When the units are not binary, or ``v`` has another shape.

    Examples
    --------
    >>> import torch
    >>> rbm = RBM(4, 3)
    >>> _ = torch.nn.init.zeros_(rbm.weight)
    >>> stochastic_pseudo_log_likelihood(rbm, torch.zeros(1, 4), RandomStream(0))
    tensor([-2.7726])
    """
    v = as_matrix(v, "v", model.n_visible, model.weight, empty=True)
    rows = torch.arange(v.shape[0], device=v.device)
    unit = _unit_of_each_row(v, model.n_visible, random)
    corrupted = v.clone()
    corrupted[rows, unit] = _flipped(model, v[rows, unit])
    difference = model.free_energy(corrupted, beta) - model.free_energy(v, beta)
    return model.n_visible * logsigmoid(beta * difference)

"""Block Gibbs sampling: parallel chains that alternate between the layers."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from freenergy.arrays import as_tensor
from freenergy.models import RBM
from freenergy.random import RandomStream

__all__ = ["ChainState", "gibbs", "random_hidden"]


@dataclass(frozen=True, eq=False)
class ChainState:
    """Where a batch of chains stands.

    Attributes
    ----------
    visible : Tensor of shape (n_chains, n_visible)
    hidden : Tensor of shape (n_chains, n_hidden)
        Drawn given ``visible``.
    """

    visible: Tensor
    hidden: Tensor

    def __repr__(self) -> str:
        n_chains, n_visible = self.visible.shape
        return (
            f"ChainState(n_chains={n_chains}, n_visible={n_visible}, "
            f"n_hidden={self.hidden.shape[1]})"
        )


def random_hidden(model: RBM, n_chains: int, random: RandomStream) -> Tensor:
    """Hidden states of chains that know nothing yet: every unit in zero field.

    Parameters
    ----------
    model : RBM
    n_chains : int
    random : RandomStream
        On the model's device.

    Returns
    -------
    Tensor of shape (n_chains, n_hidden)

    Examples
    --------
    >>> random_hidden(RBM(3, 2), 10, RandomStream(0)).shape
    torch.Size([10, 2])
    """
    return model.hidden.sample(model.weight.new_zeros(n_chains, model.n_hidden), random)


@torch.no_grad()
def gibbs(
    model: RBM,
    start: ArrayLike | Tensor | ChainState | int,
    n_steps: int = 1,
    *,
    beta: float = 1.0,
    random: RandomStream,
) -> ChainState:
    r"""Run parallel Gibbs chains for ``n_steps`` full steps at inverse temperature ``beta``.

    A full step draws :math:`v \sim p(v \mid h)` and then :math:`h \sim p(h \mid v)`. From a
    visible start the hidden units are drawn first, so one step is v → h → v (→ h).

    Parameters
    ----------
    model : RBM
    start : array-like or Tensor of shape (n_chains, n_visible), ChainState or int
        Visible states, chains to continue, or a number of chains to start at random.
    n_steps : int, default=1
        Full steps; 0 only draws the hidden units.
    beta : float, default=1
        Inverse temperature.
    random : RandomStream
        Source of the draws, on the model's device.

    Returns
    -------
    ChainState
        New tensors; the start is left as it was.

    Raises
    ------
    ValueError
        When ``n_steps`` or ``beta`` is negative, there is no chain, or ``start`` has another
        width.

    Examples
    --------
    >>> from freenergy.models import RBM
    >>> from freenergy.random import RandomStream
    >>> gibbs(RBM(6, 4), 10, n_steps=5, random=RandomStream(0))
    ChainState(n_chains=10, n_visible=6, n_hidden=4)
    """
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(f"beta must be finite and not negative, got {beta}")
    if n_steps < 0:
        raise ValueError(f"n_steps must not be negative, got {n_steps}")
    if isinstance(start, numbers.Integral):
        if start < 1:
            raise ValueError(f"at least one chain is needed, got {start}")
        hidden = random_hidden(model, int(start), random)
        visible = model.sample_visible(hidden, random, beta)
        hidden = model.sample_hidden(visible, random, beta)
    elif isinstance(start, ChainState):
        visible, hidden = start.visible.clone(), start.hidden.clone()
    else:
        visible = as_tensor(start, "start", model.weight).clone()
        if visible.shape[-1:] != (model.n_visible,) or len(visible) == 0:
            raise ValueError(
                f"start must have shape (n_chains, {model.n_visible}) with n_chains > 0, got "
                f"{tuple(visible.shape)}"
            )
        hidden = model.sample_hidden(visible, random, beta)
    for _ in range(n_steps):
        model.sample_visible(hidden, random, beta, out=visible)
        model.sample_hidden(visible, random, beta, out=hidden)
    return ChainState(visible, hidden)

"""Bounds from above on the passes between two states, of the energy and of the free energy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from freenergy.arrays import as_tensor
from freenergy.inference.mean_field import PlefkaExpansion
from freenergy.models import RBM
from freenergy.thermodynamics.descent import in_double

__all__ = ["Barrier", "barrier", "free_energy_barrier"]

State = tuple[Tensor, Tensor]
Given = tuple[ArrayLike | Tensor, ArrayLike | Tensor]

_POINTS_OF_A_LINE = 33


@dataclass(frozen=True, eq=False)
class Barrier:
    """Highest point of a path between two states, for each of some pairs.

    Attributes
    ----------
    peak : Tensor of shape (n_pairs,)
        The largest value on the path, its ends included.
    start, end : Tensor of shape (n_pairs,)
        The values at the ends.
    """

    peak: Tensor
    start: Tensor
    end: Tensor

    @property
    def height(self) -> Tensor:
        """From the higher of the two ends to the peak, shape (n_pairs,)."""
        return self.peak - torch.maximum(self.start, self.end)

    def __repr__(self) -> str:
        return f"Barrier(n_pairs={len(self.peak)}, height={spread(self.height.numpy(force=True))})"


@torch.no_grad()
def barrier(model: RBM, a: Given, b: Given) -> Barrier:
    r"""Bound the energy barrier between two states from above, along a path of single flips.

    The path flips the units in which the states differ, each once, the cheapest next one first.
    It is made from either end, and the lower peak counts. The true barrier, the lowest peak of
    all paths of single flips, may be lower: the best path may flip a unit to and fro.

    Parameters
    ----------
    model : RBM
        Its parameters are used in double precision.
    a, b : pair of array-likes or Tensors, of shape (n_pairs, n_visible) and (n_pairs, n_hidden)
        Visible and hidden states at the ends.

    Returns
    -------
    Barrier
        In units of the energy.

    Raises
    ------
    ValueError
        When the shapes do not fit, or parameters are not finite.

    Examples
    --------
    From all spins up to all down, half of them must turn before the hidden spin does:

    >>> from freenergy.models import RBM
    >>> rbm = RBM(8, 1, visible="spin", hidden="spin")
    >>> _ = torch.nn.init.constant_(rbm.weight, 1.5)
    >>> up = torch.ones(1, 8), torch.ones(1, 1)
    >>> path = barrier(rbm, up, (-up[0], -up[1]))
    >>> path.start.tolist(), path.peak.tolist()
    ([-12.0], [0.0])
    """
    model = in_double(model)
    a, b = _check_states(model, a, "a"), _check_states(model, b, "b")
    if len(a[0]) != len(b[0]):
        raise ValueError(f"a and b must hold as many states, got {len(a[0])} and {len(b[0])}")
    peak = torch.minimum(_greedy_peak(model, a, b), _greedy_peak(model, b, a))
    return Barrier(peak, model.energy(*a), model.energy(*b))


def _check_states(model: RBM, states: Given, name: str) -> State:
    visible, hidden = (as_tensor(x, name, model.weight) for x in states)
    expected = (len(visible), model.n_visible), (len(visible), model.n_hidden)
    if (tuple(visible.shape), tuple(hidden.shape)) != expected:
        raise ValueError(
            f"{name} must be states of shapes (n_pairs, {model.n_visible}) and "
            f"(n_pairs, {model.n_hidden}), got {tuple(visible.shape)} and {tuple(hidden.shape)}"
        )
    return visible, hidden


def _greedy_peak(model: RBM, start: State, goal: State) -> Tensor:
    """Highest energy on the way, by the flip that costs least, for all pairs at once."""
    n = model.n_visible
    step = torch.cat(goal, -1) - torch.cat(start, -1)
    field = torch.cat([model.visible_field(start[1]), model.hidden_field(start[0])], -1)
    energy = model.energy(*start)
    peak = energy.clone()
    rows, columns = model.weight.detach(), model.weight.detach().T.contiguous()
    for _ in range(int((step != 0).sum(-1).amax()) if len(step) else 0):
        cost, unit = torch.where(step != 0, -step * field, torch.inf).min(-1)
        moving = cost.isfinite()
        # A pair that has arrived takes no step: its choice, any unit, moves by zero.
        energy = torch.where(moving, energy + cost, energy)
        peak = torch.maximum(peak, energy)
        size = step.gather(-1, unit[:, None])
        seen = unit < n
        field[seen, n:] += size[seen] * rows[unit[seen]]
        field[~seen, :n] += size[~seen] * columns[unit[~seen] - n]
        step.scatter_(-1, unit[:, None], 0.0)
    return torch.maximum(peak, model.energy(*goal))


@torch.no_grad()
def free_energy_barrier(
    model: RBM,
    a: Given,
    b: Given,
    *,
    beta: float = 1.0,
    order: int = 1,
    n_points: int = _POINTS_OF_A_LINE,
) -> Barrier:
    r"""Bound the barrier of the mean-field free energy, along straight lines of magnetisation.

    .. math:: \max_{0 \le t \le 1} F\big((1 - t)\,m_a + t\,m_b,\; T\big)

    on a grid of ``n_points`` of *t*, both layers moving together. The lowest pass between the two
    states lies below the line, as far as the grid resolves it.

    Parameters
    ----------
    model : RBM
        Its parameters are used in double precision.
    a, b : pair of array-likes or Tensors, of shape (n_pairs, n_visible) and (n_pairs, n_hidden)
        Magnetisations at the ends.
    beta : float, default=1
        Inverse temperature. Infinite: the energy itself, :math:`E(m)`.
    order : {1, 2, 3}, default=1
        Of the expansion. At order 1 :math:`F` bounds the free energy at any magnetisation; the
        higher terms hold near the states, and between cold ones they lower it without limit.
    n_points : int, default=33
        Points of the line, its ends included.

    Returns
    -------
    Barrier
        In units of the energy.

    Raises
    ------
    ValueError
        When an option or a shape is impossible.

    Examples
    --------
    Eight spins that follow one hidden spin: the barrier between up and down falls with the
    temperature.

    >>> from freenergy.inference import mean_field
    >>> from freenergy.models import RBM
    >>> rbm = RBM(8, 1, visible="spin", hidden="spin", dtype=torch.float64)
    >>> _ = torch.nn.init.constant_(rbm.weight, 1.5)
    >>> for beta in (0.5, 1.0, math.inf):
    ...     state = mean_field(rbm, 1, beta=min(beta, 99), start=torch.ones(1, 8))
    ...     up, down = (state.visible, state.hidden), (-state.visible, -state.hidden)
    ...     path = free_energy_barrier(rbm, up, down, beta=beta)
    ...     print(round(float(path.height), 2))
    2.75
    6.15
    12.0
    """
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    if n_points < 2:
        raise ValueError(f"n_points must be at least 2, for the ends of the line, got {n_points}")
    model = in_double(model)
    a, b = _check_states(model, a, "a"), _check_states(model, b, "b")
    if len(a[0]) != len(b[0]):
        raise ValueError(f"a and b must hold as many states, got {len(a[0])} and {len(b[0])}")
    height: Callable[[Tensor, Tensor], Tensor] = model.energy
    if not math.isinf(beta):
        expansion = PlefkaExpansion(model, order, beta)

        def height(v: Tensor, h: Tensor) -> Tensor:
            return expansion.terms(v, h).sum(-1) / beta

    start, end = height(*a), height(*b)
    peak = torch.maximum(start, end)
    for t in torch.linspace(0, 1, n_points, dtype=torch.float64).tolist()[1:-1]:
        peak = torch.maximum(peak, height(a[0].lerp(b[0], t), a[1].lerp(b[1], t)))
    return Barrier(peak, start, end)


def spread(values: NDArray[np.float64]) -> str:
    """Smallest and largest of some values, for a ``repr``."""
    return f"{values.min():.5g}..{values.max():.5g}" if len(values) else "none"

"""Annealing: chains carried along a ladder of models, and the work that it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from freenergy.distributed import ALONE, Group
from freenergy.inference.ladder import Ladder
from freenergy.random import RandomStream

__all__ = ["anneal", "even_positions", "sample_base"]

Array = NDArray[np.float64]
_PILOT_CHAINS = 64
_UNIFORM_SHARE = 0.2


@torch.no_grad()
def sample_base(ladder: Ladder, n_chains: int, random: RandomStream) -> Tensor:
    """Independent visible states of the first rung, whose units must not be coupled.

    Parameters
    ----------
    ladder : Ladder
    n_chains : int
    random : RandomStream

    Returns
    -------
    Tensor of shape (n_chains, n_visible)

    Examples
    --------
    >>> from freenergy.inference.ladder import temperature_ladder
    >>> from freenergy.models import RBM
    >>> sample_base(temperature_ladder(RBM(6, 4), [0.0, 1.0]), 10, RandomStream(0)).shape
    torch.Size([10, 6])
    """
    field = ladder.visible_bias[0].expand(n_chains, -1).clone()
    return ladder.visible.sample(field, random, field)


@torch.no_grad()
def anneal(
    ladder: Ladder,
    positions: Sequence[float] | Array,
    visible: Tensor,
    random: RandomStream,
    *,
    observe: Callable[[float, Array], None] | None = None,
) -> tuple[Array, Tensor]:
    r"""Carry chains along positions of a ladder, one Gibbs step at each, and add up the work.

    At each step from :math:`p` to :math:`q` the work is :math:`f_q(v) - f_p(v)`, with the hidden
    units summed out; then :math:`v` makes one Gibbs step at :math:`q`. Done from samples of the
    last position back to the first, this is the exact time reversal.

    Parameters
    ----------
    ladder : Ladder
    positions : sequence of float
        From 0, the first rung, to ``len(ladder) - 1``, the last; rising or falling. A step that
        would pass a rung stops there.
    visible : Tensor of shape (n_chains, n_visible)
        Samples of the model at the first of the positions.
    random : RandomStream
    observe : callable, default=None
        Called with each position and the chains' work of the step to it.

    Returns
    -------
    work : ndarray of shape (n_chains,)
    visible : Tensor of shape (n_chains, n_visible)
        The chains at the last position but one: the last step is work alone.

    Examples
    --------
    >>> from freenergy.inference.ladder import temperature_ladder
    >>> from freenergy.models import RBM
    >>> ladder, random = temperature_ladder(RBM(6, 4), [0.0, 1.0]), RandomStream(0)
    >>> work, chains = anneal(ladder, [0.0, 0.5, 1.0], sample_base(ladder, 10, random), random)
    >>> work.shape, chains.shape
    ((10,), torch.Size([10, 6]))
    """
    positions = _stopping_at_rungs(positions)
    place = _Place(ladder)
    work = np.zeros(len(visible))
    visible = visible.to(ladder.weight)
    for step in range(1, len(positions)):
        start, stop = float(positions[step - 1]), float(positions[step])
        place.enter(start, stop)
        fields = place.hidden_fields(visible)
        change = place.free_energy(visible, fields, stop) - place.free_energy(
            visible, fields, start
        )
        done = change.double().cpu().numpy()
        work += done
        if observe is not None:
            observe(stop, done)
        if step < len(positions) - 1:
            visible = place.step(fields, stop, random)
    return work, visible


def _stopping_at_rungs(positions: Sequence[float] | Array) -> list[float]:
    """The positions, with every rung between two of them."""
    path = [float(positions[0])]
    for stop in map(float, positions[1:]):
        low, high = sorted((path[-1], stop))
        between = [float(rung) for rung in range(math.floor(low) + 1, math.ceil(high))]
        path += (between if stop > path[-1] else between[::-1]) + [stop]
    return path


class _Place:
    """The segment of the ladder on which the chains are: its two rungs, and mixtures of them."""

    def __init__(self, ladder: Ladder) -> None:
        self.ladder = ladder
        self.low = 0
        self._free = not bool((ladder.weight[0] != 0).any())

    def enter(self, start: float, stop: float) -> None:
        self.low = min(int(np.floor(min(start, stop))), max(0, len(self.ladder) - 2))

    def _bias(self, share: float) -> Tensor:
        bias = self.ladder.visible_bias
        return torch.lerp(bias[self.low], bias[self.low + 1], share)

    def hidden_fields(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Fields on the hidden units at both ends of the segment."""
        ladder, low = self.ladder, self.low
        high = torch.addmm(ladder.hidden_bias[low + 1], v, ladder.weight[low + 1])
        if low == 0 and self._free:
            return ladder.hidden_bias[0].expand_as(high), high
        return torch.addmm(ladder.hidden_bias[low], v, ladder.weight[low]), high

    def free_energy(self, v: Tensor, fields: tuple[Tensor, Tensor], position: float) -> Tensor:
        share = position - self.low
        bias = self._bias(share)
        field = torch.lerp(fields[0], fields[1], share)
        return -(v @ bias) - self.ladder.hidden.log_partition(field).sum(-1)

    def step(self, fields: tuple[Tensor, Tensor], position: float, random: RandomStream) -> Tensor:
        """A Gibbs step v → h → v at a position; the fields are those of the old state."""
        ladder, low, share = self.ladder, self.low, position - self.low
        h = ladder.hidden.sample(torch.lerp(fields[0], fields[1], share), random)
        field = torch.addmm(self._bias(share), h, ladder.weight[low + 1].T, alpha=share)
        if not (low == 0 and self._free):
            field.addmm_(h, ladder.weight[low].T, alpha=1.0 - share)
        return ladder.visible.sample(field, random, field)


def even_positions(
    ladder: Ladder,
    n_positions: int,
    random: RandomStream,
    n_pilot: int | None = None,
    group: Group = ALONE,
) -> Array:
    r"""Positions at which each step of an annealing takes about the same spread of work.

    A pilot run measures the standard deviation of :math:`du/dt` along the ladder; its integral is
    the thermodynamic length, and the positions divide it evenly (a fifth of them is spread evenly
    over the ladder itself, since the pilot is an estimate). The ladder's own rungs are among them.

    Parameters
    ----------
    ladder : Ladder
    n_positions : int
    random : RandomStream
    n_pilot : int, default=None
        Steps of the pilot run; None takes some for each position.
    group : Group, default=ALONE
        Processes that divide the chains of the pilot run; all of them call this.

    Returns
    -------
    ndarray of shape (n_positions,)
        From 0 to ``len(ladder) - 1``, rising.

    References
    ----------
    Crooks, *Measuring thermodynamic length*, Phys. Rev. Lett. 99, 100602, 2007.

    Examples
    --------
    >>> from freenergy.inference.ladder import independent_model, annealing_ladder
    >>> from freenergy.models import RBM
    >>> rbm = RBM(6, 4)
    >>> base = independent_model(rbm, torch.full((6,), 0.5), torch.full((4,), 0.5))
    >>> positions = even_positions(annealing_ladder(rbm, base), 10, RandomStream(0))
    >>> len(positions), float(positions[0]), float(positions[-1])
    (10, 0.0, 1.0)
    """
    n_pilot = n_pilot or min(200, max(20, n_positions // 5))
    grid, spread = length_profile(ladder, random, n_pilot, group)
    return np.union1d(divide(grid, spread, n_positions), np.arange(float(len(ladder))))


def length_profile(
    ladder: Ladder, random: RandomStream, n_steps: int, group: Group = ALONE
) -> tuple[Array, Array]:
    """The standard deviation of the work for a unit step, along the ladder, by a pilot run."""
    n_segments = len(ladder) - 1
    grid = np.linspace(0.0, n_segments, n_segments * max(1, n_steps // n_segments) + 1)
    works: list[Array] = []
    anneal(
        ladder,
        grid,
        sample_base(ladder, group.share(_PILOT_CHAINS), random),
        random,
        observe=lambda _, work: works.append(work),
    )
    of_all = np.concatenate(group.collect(np.array(works)), axis=1)
    width = grid[1] - grid[0]
    return grid, np.array([float(work.std()) / width for work in of_all])


def divide(grid: Array, spread: Array, n_positions: int) -> Array:
    """Positions that divide the integral of ``spread`` (constant between grid points) evenly."""
    width = np.diff(grid)
    span = grid[-1] - grid[0]
    length = spread * width
    total = length.sum()
    share = length / total if total > 0 else width / span
    density = (1 - _UNIFORM_SHARE) * share + _UNIFORM_SHARE * width / span
    cumulative = np.concatenate([[0.0], np.cumsum(density)])
    positions = np.interp(np.linspace(0.0, cumulative[-1], n_positions), cumulative, grid)
    positions[0], positions[-1] = grid[0], grid[-1]
    return positions

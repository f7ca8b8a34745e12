r"""Ladders of models: what annealing and replica exchange climb, from a solvable model up.

The energy is linear in the parameters, so a straight line between the parameters of two models is
a path of models. A temperature ladder is the line from zero to the parameters themselves, an
annealing ladder the line from an independent model, and the checkpoints of a training run are a
broken line. Inverse temperatures are part of the rungs' parameters: the weight of a state on a
rung is :math:`e^{-E(v, h)}` with the rung's own energy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.utils import skip_init

from freenergy.arrays import as_tensor
from freenergy.models import RBM, Unit

__all__ = ["Ladder", "annealing_ladder", "independent_model", "temperature_ladder"]


class Ladder:
    r"""Models of one shape, in order, from one with independent units to the one of interest.

    Parameters
    ----------
    weight : Tensor of shape (n_rungs, n_visible, n_hidden)
        Couplings of the rungs, their inverse temperature included.
    visible_bias : Tensor of shape (n_rungs, n_visible)
    hidden_bias : Tensor of shape (n_rungs, n_hidden)
    visible, hidden : Unit

    Examples
    --------
    >>> import torch
    >>> from freenergy.models import RBM
    >>> ladder = temperature_ladder(RBM(6, 4), [0.0, 0.5, 1.0])
    >>> len(ladder), round(ladder.base_log_partition() / math.log(2), 6)
    (3, 10.0)
    >>> ladder.free_energy(torch.ones(3, 7, 6)).shape  # seven states on each rung
    torch.Size([3, 7])
    """

    def __init__(
        self,
        weight: Tensor,
        visible_bias: Tensor,
        hidden_bias: Tensor,
        visible: Unit,
        hidden: Unit,
    ) -> None:
        self.weight = weight
        self.visible_bias = visible_bias
        self.hidden_bias = hidden_bias
        self.visible = visible
        self.hidden = hidden

    @classmethod
    @torch.no_grad()
    def of(cls, models: Sequence[RBM], beta: float = 1.0) -> Self:
        """A ladder whose rungs are copies of models, all at one inverse temperature.

        Raises
        ------
        ValueError
            When there is no model, or their shapes or unit types differ.
        """
        if not models:
            raise ValueError("a ladder needs at least one model")
        first = models[0]
        for model in models:
            if model.weight.shape != first.weight.shape:
                raise ValueError("the models of a ladder must have the same numbers of units")
            if (model.visible, model.hidden) != (first.visible, first.hidden):
                raise ValueError("the models of a ladder must have the same types of units")
        return cls(
            torch.stack([beta * model.weight for model in models]),
            torch.stack([beta * model.visible_bias for model in models]),
            torch.stack([beta * model.hidden_bias for model in models]),
            first.visible,
            first.hidden,
        )

    def __len__(self) -> int:
        return len(self.weight)

    def __getitem__(self, rungs: slice) -> Ladder:
        return Ladder(
            self.weight[rungs],
            self.visible_bias[rungs],
            self.hidden_bias[rungs],
            self.visible,
            self.hidden,
        )

    def append(self, model: RBM, beta: float = 1.0) -> Ladder:
        """A new ladder with a copy of a model as one more rung."""
        if (model.visible, model.hidden) != (self.visible, self.hidden):
            raise ValueError("the models of a ladder must have the same types of units")
        top = Ladder.of([model], beta)
        return Ladder(
            torch.cat([self.weight, top.weight]),
            torch.cat([self.visible_bias, top.visible_bias]),
            torch.cat([self.hidden_bias, top.hidden_bias]),
            self.visible,
            self.hidden,
        )

    @torch.no_grad()
    def set_top(self, model: RBM, beta: float = 1.0) -> None:
        """Overwrite the last rung with the parameters of a model."""
        torch.mul(model.weight, beta, out=self.weight[-1])
        torch.mul(model.visible_bias, beta, out=self.visible_bias[-1])
        torch.mul(model.hidden_bias, beta, out=self.hidden_bias[-1])

    def at(self, positions: Sequence[float] | np.ndarray) -> Ladder:
        """The ladder with rungs at positions between those of this one (0 the first rung).

        Parameters
        ----------
        positions : sequence of float
            From 0 to ``len(self) - 1``; the parameters are interpolated linearly.

        Raises
        ------
        ValueError
            When a position lies beyond the ends.
        """
        if not all(0 <= position <= len(self) - 1 for position in positions):
            raise ValueError(f"every position must lie in [0, {len(self) - 1}]")
        place = torch.as_tensor(np.asarray(positions, dtype=float), device=self.weight.device)
        low = place.floor().long().clamp(0, max(0, len(self) - 2))
        share = (place - low).to(self.weight)
        high = (low + 1).clamp(max=len(self) - 1)

        def mix(rungs: Tensor) -> Tensor:
            return torch.lerp(rungs[low], rungs[high], share.view(-1, *([1] * (rungs.dim() - 1))))

        return Ladder(
            mix(self.weight),
            mix(self.visible_bias),
            mix(self.hidden_bias),
            self.visible,
            self.hidden,
        )

    def model(self, rung: int) -> RBM:
        """A copy of one rung, a model at inverse temperature 1."""
        weight = self.weight[rung]
        model = skip_init(
            RBM,
            *weight.shape,
            visible=self.visible,
            hidden=self.hidden,
            dtype=weight.dtype,
            device=weight.device,
        )
        with torch.no_grad():
            model.weight.copy_(weight)
            model.visible_bias.copy_(self.visible_bias[rung])
            model.hidden_bias.copy_(self.hidden_bias[rung])
        return model

    def hidden_field(self, v: Tensor) -> Tensor:
        """Fields on the hidden units of each rung, for states (n_rungs, n, n_visible)."""
        return torch.baddbmm(self.hidden_bias[:, None], v, self.weight)

    def visible_field(self, h: Tensor) -> Tensor:
        """Fields on the visible units of each rung, for states (n_rungs, n, n_hidden)."""
        return torch.baddbmm(self.visible_bias[:, None], h, self.weight.transpose(1, 2))

    def free_energy(self, v: Tensor, hidden_field: Tensor | None = None) -> Tensor:
        r"""Free energy of visible states on their rungs, minus their log-weight.

        .. math:: f_r(v) = -a_r^\top v - \sum_j \ln z_j\big(b_{rj} + (v^\top W_r)_j\big)

        Parameters
        ----------
        v : Tensor of shape (n_rungs, n, n_visible)
        hidden_field : Tensor of shape (n_rungs, n, n_hidden), optional
            Where it is known already.

        Returns
        -------
        Tensor of shape (n_rungs, n)
        """
        if hidden_field is None:
            hidden_field = self.hidden_field(v)
        linear = torch.bmm(v, self.visible_bias[:, :, None]).squeeze(-1)
        return -linear - self.hidden.log_partition(hidden_field).sum(-1)

    def energy(self, v: Tensor, h: Tensor, hidden_field: Tensor) -> Tensor:
        """Energy of joint states on their rungs, from the fields that ``v`` puts on ``h``."""
        linear = torch.bmm(v, self.visible_bias[:, :, None]).squeeze(-1)
        return -linear - (hidden_field * h).sum(-1)

    def base_log_partition(self) -> float:
        """The exact log-partition function of the first rung, whose units must be independent.

        Raises
        ------
        ValueError
            When the first rung couples its units.
        """
        if bool((self.weight[0] != 0).any()):
            raise ValueError(
                "the first rung of the ladder couples its units, so its partition function is not "
                "known; start the ladder at independent_model(...)"
            )
        visible = self.visible.log_partition(self.visible_bias[0].double()).sum()
        return float(visible + self.hidden.log_partition(self.hidden_bias[0].double()).sum())


def temperature_ladder(model: RBM, betas: Sequence[float] | np.ndarray) -> Ladder:
    """The model at each of several inverse temperatures.

    Parameters
    ----------
    model : RBM
    betas : sequence of float
        Not negative. At 0, a good first rung, every state has the same weight.

    Returns
    -------
    Ladder

    Raises
    ------
    ValueError
        When there is none, or one is negative or not finite.

    Examples
    --------
    >>> ladder = temperature_ladder(RBM(3, 2), [0.0, 0.5, 1.0])
    >>> len(ladder), round(ladder.base_log_partition() / math.log(2), 6)
    (3, 5.0)
    """
    betas = [float(beta) for beta in betas]
    if not betas or not all(math.isfinite(beta) and beta >= 0 for beta in betas):
        raise ValueError(f"betas must be finite and not negative, got {betas}")
    weight = model.weight.detach()
    scale = torch.tensor(betas, dtype=torch.float64).to(weight)[:, None]
    return Ladder(
        scale[:, :, None] * weight,
        scale * model.visible_bias.detach(),
        scale * model.hidden_bias.detach(),
        model.visible,
        model.hidden,
    )


@torch.no_grad()
def independent_model(
    model: RBM, visible_mean: ArrayLike | Tensor, hidden_mean: ArrayLike | Tensor
) -> RBM:
    """A model of the same shape without couplings, whose units have the given means.

    The means are drawn a little towards the middle of the units' values, so that a unit that was
    always off in a finite sample can still be on.

    Parameters
    ----------
    model : RBM
    visible_mean : array-like or Tensor of shape (n_visible,)
    hidden_mean : array-like or Tensor of shape (n_hidden,)

    Returns
    -------
    RBM

    Raises
    ------
    ValueError
        When there are not as many means as units.

    Examples
    --------
    >>> base = independent_model(RBM(3, 2), [0.0, 0.5, 1.0], [0.5, 0.5])
    >>> base.visible_mean(torch.zeros(1, 2)).round(decimals=3).tolist()
    [[0.004999999888241291, 0.5, 0.9950000047683716]]
    """
    base = skip_init(
        RBM,
        model.n_visible,
        model.n_hidden,
        visible=model.visible,
        hidden=model.hidden,
        dtype=model.weight.dtype,
        device=model.weight.device,
    )
    base.weight.zero_()
    for unit, mean, bias, name in (
        (model.visible, visible_mean, base.visible_bias, "visible_mean"),
        (model.hidden, hidden_mean, base.hidden_bias, "hidden_mean"),
    ):
        mean = as_tensor(mean, name, like=bias.double())
        if mean.shape != bias.shape:
            raise ValueError(f"{name} must have shape ({len(bias)},), got {tuple(mean.shape)}")
        middle = sum(unit.support) / len(unit.support)
        bias.copy_(unit.field(mean + 0.01 * (middle - mean)))
    return base


def annealing_ladder(model: RBM, base: RBM, beta: float = 1.0) -> Ladder:
    """The two ends of the straight line from a base model to a model at inverse temperature beta.

    Rungs between them are made by :meth:`Ladder.at`.

    Parameters
    ----------
    model, base : RBM
    beta : float, default=1
        Inverse temperature of ``model``; that of ``base`` is 1.

    Returns
    -------
    Ladder

    Examples
    --------
    >>> rbm = RBM(3, 2)
    >>> line = annealing_ladder(rbm, independent_model(rbm, [0.1, 0.5, 0.9], [0.5, 0.5]), 2.0)
    >>> halfway = line.at([0.5]).model(0)
    >>> torch.allclose(halfway.weight, rbm.weight)
    True
    """
    ends = Ladder.of([base, model])
    for rungs in (ends.weight, ends.visible_bias, ends.hidden_bias):
        rungs[1] *= beta
    return ends

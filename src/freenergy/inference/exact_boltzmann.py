"""Exact statistics of a small Boltzmann machine, by summing over every state of its free units."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from freenergy.arrays import as_tensor
from freenergy.models import BoltzmannMachine

__all__ = ["ExactBoltzmann", "exact_boltzmann"]

_MAX_STATES = 2**20


@dataclass(frozen=True, eq=False)
class ExactBoltzmann:
    r"""Thermodynamics and moments of a Boltzmann machine at one temperature, without error.

    Attributes
    ----------
    beta : float
        Inverse temperature.
    log_partition : float
        :math:`\ln Z(\beta)`, over the free units.
    free_energy, energy, entropy : float
        :math:`F = -\ln Z / \beta` and :math:`U = \langle E \rangle` in units of the energy,
        :math:`S = \beta (U - F)` in nats.
    ground_energy : float
        The lowest energy of all states.
    mean : Tensor of shape (n_units,)
        :math:`\langle s_i \rangle`.
    second_moment : Tensor of shape (n_units, n_units)
        :math:`\langle s_i s_j \rangle`.
    """

    beta: float
    log_partition: float
    free_energy: float
    energy: float
    entropy: float
    ground_energy: float
    mean: Tensor
    second_moment: Tensor

    @property
    def covariance(self) -> Tensor:
        r""":math:`\langle s_i s_j \rangle - \langle s_i \rangle \langle s_j \rangle`."""
        return self.second_moment - torch.outer(self.mean, self.mean)

    def __repr__(self) -> str:
        return (
            f"ExactBoltzmann(beta={self.beta:g}, log_partition={self.log_partition:.6g}, "
            f"free_energy={self.free_energy:.6g}, energy={self.energy:.6g}, "
            f"entropy={self.entropy:.6g}, ground_energy={self.ground_energy:.6g})"
        )


@torch.no_grad()
def exact_boltzmann(
    model: BoltzmannMachine, beta: float = 1.0, *, clamp: ArrayLike | Tensor | None = None
) -> ExactBoltzmann:
    r"""Enumerate a small Boltzmann machine, in double precision.

    Parameters
    ----------
    model : BoltzmannMachine
    beta : float, default=1
        Inverse temperature, positive.
    clamp : array-like or Tensor of shape (n_units,), default=None
        Values at which units are held, NaN where a unit is free.

    Returns
    -------
    ExactBoltzmann

    Raises
    ------
    ValueError
        When ``beta`` is not positive and finite, ``clamp`` does not fit the units, or the free
        ones have more than about a million states (20 binary units).

    Examples
    --------
    >>> from freenergy.models import BoltzmannMachine
    >>> round(exact_boltzmann(BoltzmannMachine(5), beta=1e-9).entropy / math.log(2), 6)
    5.0
    """
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta must be positive and finite, got {beta}")
    states = _states(model, clamp)
    coupling, bias = model.coupling.double(), model.bias.double()
    energy = -(states @ bias) - 0.5 * ((states @ coupling) * states).sum(-1)
    log_partition = float(torch.logsumexp(-beta * energy, 0))
    probability = torch.softmax(-beta * energy, 0)
    return ExactBoltzmann(
        beta=beta,
        log_partition=log_partition,
        free_energy=-log_partition / beta,
        energy=float(probability @ energy),
        # Not ln Z + βU, which at strong couplings is a small difference of large numbers.
        entropy=float(torch.special.entr(probability).sum()),
        ground_energy=float(energy.min()),
        mean=probability @ states,
        second_moment=states.T @ (states * probability[:, None]),
    )


def _states(model: BoltzmannMachine, clamp: ArrayLike | Tensor | None) -> Tensor:
    """Every state of the free units, the others at their values."""
    device = model.weight.device
    row = torch.full((model.n_units,), torch.nan, dtype=torch.float64, device=device)
    if clamp is not None:
        row = as_tensor(clamp, "clamp", like=row)
        _check_clamp(model, row)
    free = row.isnan().nonzero()[:, 0]
    support = torch.tensor(model.unit.support, dtype=torch.float64, device=device)
    n_states = float(len(support)) ** len(free)
    if n_states > _MAX_STATES:
        raise ValueError(
            f"the {len(free)} free units have {n_states:.3g} states; enumeration is feasible up "
            f"to {_MAX_STATES:.3g} (20 binary units)"
        )
    states = row.repeat(int(n_states), 1)
    if len(free):
        grid = torch.cartesian_prod(*[support] * len(free))
        states[:, free] = grid.view(-1, len(free))
    return states


def _check_clamp(model: BoltzmannMachine, clamp: Tensor) -> None:
    if clamp.shape != (model.n_units,):
        raise ValueError(f"clamp must have shape ({model.n_units},), got {tuple(clamp.shape)}")
    low, high = min(model.unit.support), max(model.unit.support)
    if not bool((clamp.isnan() | ((clamp >= low) & (clamp <= high))).all()):
        raise ValueError(f"clamp must hold values in [{low:g}, {high:g}]")

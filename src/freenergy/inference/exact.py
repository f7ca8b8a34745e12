"""Exact statistics of a small model, by summing over every state of its smaller layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from freenergy.models import RBM, Unit

__all__ = ["MAX_STATES", "ExactStatistics", "exact", "is_enumerable"]

MAX_STATES = 2**26
"""States of the smaller layer beyond which enumeration is refused."""

# Small enough to stay in cache: larger blocks cost more in page faults than they save in calls.
_CHUNK_ELEMENTS = 2**17


@dataclass(frozen=True, eq=False)
class ExactStatistics:
    r"""Thermodynamics and moments of a model at one inverse temperature, without error.

    Attributes
    ----------
    beta : float
        Inverse temperature.
    log_partition : float
        :math:`\ln Z(\beta)`.
    free_energy : float
        :math:`F = -\ln Z / \beta`.
    energy : float
        :math:`U = \langle E \rangle`.
    entropy : float
        :math:`S = \beta (U - F)`, in nats.
    heat_capacity : float
        :math:`C = \beta^2 (\langle E^2 \rangle - \langle E \rangle^2)`.
    visible, hidden : Tensor
        Means :math:`\langle v \rangle`, :math:`\langle h \rangle`.
    correlation : Tensor of shape (n_visible, n_hidden)
        :math:`\langle v_i h_j \rangle`.
    """

    beta: float
    log_partition: float
    free_energy: float
    energy: float
    entropy: float
    heat_capacity: float
    visible: Tensor
    hidden: Tensor
    correlation: Tensor

    def __repr__(self) -> str:
        return (
            f"ExactStatistics(beta={self.beta:g}, log_partition={self.log_partition:.6g}, "
            f"free_energy={self.free_energy:.6g}, energy={self.energy:.6g}, "
            f"entropy={self.entropy:.6g}, heat_capacity={self.heat_capacity:.6g})"
        )


def is_enumerable(model: RBM, max_states: float = 2**18) -> bool:
    """Whether :func:`exact` takes no more than about a second: the smaller layer has few states.

    Parameters
    ----------
    model : RBM
    max_states : float, default=2**18
        Of the smaller layer.

    Returns
    -------
    bool

    Examples
    --------
    >>> is_enumerable(RBM(784, 16)), is_enumerable(RBM(784, 500))
    (True, False)
    """
    n_states = min(
        _n_states(model.visible, model.n_visible), _n_states(model.hidden, model.n_hidden)
    )
    return n_states <= max_states


@torch.no_grad()
def exact(model: RBM, beta: float = 1.0) -> ExactStatistics:
    r"""Enumerate a small RBM: :math:`\ln Z`, :math:`F`, :math:`U`, :math:`S`, :math:`C`, moments.

    The smaller layer is enumerated in chunks; given its state the other layer factorises, so that
    its sums are closed forms. Double precision throughout, whatever the model's. The cost is
    ``n_states * n_visible * n_hidden``: about 25 binary units on the smaller side are feasible.

    Parameters
    ----------
    model : RBM
    beta : float, default=1
        Inverse temperature, not negative.

    Returns
    -------
    ExactStatistics

    Raises
    ------
    ValueError
        When the smaller layer has more states than ``MAX_STATES``, or ``beta`` is negative or
        not finite.

    Examples
    --------
    >>> from freenergy.models import RBM
    >>> round(exact(RBM(4, 3), beta=0.0).log_partition / math.log(2), 6)
    7.0
    """
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(f"beta must be finite and not negative, got {beta}")
    weight, a, b = (
        p.detach().double() for p in (model.weight, model.visible_bias, model.hidden_bias)
    )
    hidden_is_smaller = _n_states(model.hidden, model.n_hidden) <= _n_states(
        model.visible, model.n_visible
    )
    if hidden_is_smaller:
        sums = _enumerate(model.hidden, b, model.visible, a, weight.T, beta)
    else:
        sums = _enumerate(model.visible, a, model.hidden, b, weight, beta)
    log_z, energy, energy_square, summed, other, correlation = sums
    visible, hidden = (other, summed) if hidden_is_smaller else (summed, other)
    return ExactStatistics(
        beta=beta,
        log_partition=log_z,
        free_energy=-log_z / beta if beta > 0 else -math.inf,
        energy=energy,
        entropy=log_z + beta * energy,
        heat_capacity=beta**2 * max(energy_square - energy**2, 0.0),
        visible=visible,
        hidden=hidden,
        correlation=correlation.T if hidden_is_smaller else correlation,
    )


def _n_states(unit: Unit, n_units: int) -> float:
    try:
        return float(len(unit.support)) ** n_units
    except OverflowError:
        return math.inf


def _states(unit: Unit, n_units: int, start: int, stop: int, device: torch.device) -> Tensor:
    """States ``start`` to ``stop`` of a layer, counted in base ``len(support)``."""
    base = len(unit.support)
    index = torch.arange(start, stop, device=device)[:, None]
    powers = base ** torch.arange(n_units, device=device)
    digits = index.div(powers, rounding_mode="floor").remainder(base)
    return torch.tensor(unit.support, dtype=torch.float64, device=device)[digits]


def _enumerate(
    unit: Unit, bias: Tensor, other_unit: Unit, other_bias: Tensor, weight: Tensor, beta: float
) -> tuple[float, float, float, Tensor, Tensor, Tensor]:
    """Sum over the states of the layer whose rows ``weight`` has: weighted averages of all."""
    n_units, n_other = weight.shape
    n_states = _n_states(unit, n_units)
    if n_states > MAX_STATES:
        raise ValueError(
            f"the smaller layer has {n_units} units and {n_states:.3g} states; enumeration is "
            f"feasible up to {MAX_STATES:.3g} (about 25 binary units)"
        )
    chunk = max(1, _CHUNK_ELEMENTS // max(n_units, n_other))
    # Averages are kept relative to the largest log-weight met so far, so nothing overflows.
    top, total = -math.inf, 0.0
    averages: list[Tensor] = []
    for start in range(0, int(n_states), chunk):
        states = _states(unit, n_units, start, min(start + chunk, int(n_states)), weight.device)
        local_field = states @ weight + other_bias
        field = beta * local_field
        log_weight = beta * (states @ bias) + other_unit.log_partition(field).sum(-1)
        mean = other_unit.mean(field)
        energy = -(states @ bias) - (mean * local_field).sum(-1)
        energy_square = energy**2 + (other_unit.variance(field) * local_field**2).sum(-1)
        chunk_top = float(log_weight.max())
        new_top = max(top, chunk_top)
        w = torch.exp(log_weight - new_top)
        decay = math.exp(top - new_top)
        sums = [w @ energy, w @ energy_square, w @ states, w @ mean, (states * w[:, None]).T @ mean]
        if averages:
            sums = [decay * old + new for old, new in zip(averages, sums, strict=True)]
        averages = sums
        total = decay * total + float(w.sum())
        top = new_top
    energy, energy_square, summed, other, correlation = (x / total for x in averages)
    log_z = top + math.log(total)
    return log_z, float(energy), float(energy_square), summed, other, correlation

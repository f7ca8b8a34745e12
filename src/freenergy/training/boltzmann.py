r"""Learning in Boltzmann machines by mean field, after Peterson and Anderson.

The gradient of the log-likelihood in a coupling is a difference of two correlations,

.. math:: \frac{\partial \ln p}{\partial J_{ij}}
          = \beta\,\big(\langle s_i s_j \rangle_\text{clamped}
                    - \langle s_i s_j \rangle_\text{free}\big),

with the visible units held at the data in the first and free in the second. Both are taken from
mean-field states, annealed from high temperature, in place of long Gibbs chains at every update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from freenergy.inference.deterministic_annealing import PairExpansion, default_damping
from freenergy.models import BoltzmannMachine
from freenergy.random import RandomStream
from freenergy.training.options import (
    LoopOptions,
    check_one_of,
    check_positive,
    check_share,
    check_whole,
)
from freenergy.training.rows import Rows

__all__ = ["BoltzmannOptions", "MeanFieldBoltzmannGradient", "initialize_boltzmann"]

CORRELATIONS = ("linear_response", "free_energy")
"""Where the correlations of a mean-field state come from, see :class:`BoltzmannOptions`."""

_KICK = 1e-3
_VERDICTS = ("mean_field_converged", "mean_field_stable")


@dataclass(frozen=True, kw_only=True)
class BoltzmannOptions(LoopOptions):
    r"""Options of a training of a Boltzmann machine by mean field.

    Parameters
    ----------
    mean_field_order : {1, 2}, default=2
        Naive mean field, or TAP with the Onsager term.
    correlation : {"linear_response", "free_energy"}, default="linear_response"
        Correlations of a mean-field state. ``"linear_response"`` adds to :math:`m_i m_j` the
        inverse of the free energy's Hessian, at the cost of a matrix inverse for each state;
        ``"free_energy"`` differentiates the free energy at fixed magnetisations, which gives
        :math:`m_i m_j` at order 1 (Peterson and Anderson) and adds :math:`\beta J_{ij} c_i c_j` at
        order 2. A machine without hidden units and inputs learns nothing useful from
        :math:`m_i m_j` alone: one state cannot have the correlations of the data.
    n_states : int, default=10
        States of the free phase. With ``n_inputs`` there are as many as the batch has rows.
    n_inputs : int, default=0
        The first so many visible units are held at the data in both phases: the machine learns
        the distribution of the other visible units given these.
    persistent : bool, default=False
        Whether the states of the free phase go on from update to update at the training
        temperature, or are annealed afresh. Not with ``n_inputs``.
    hottest : float, default=10.0
        Where annealing starts, in units of the training temperature :math:`1/\beta`.
    n_temperatures : int, default=8
        Of the geometric schedule that ends at :math:`1/\beta`; 1 is a quench.
    damping : float or None, default=None
        Share of the old magnetisation that each update keeps, in [0, 1); None is 0 at order 1 and
        0.5 at order 2.
    tolerance : float, default=1e-5
        Largest change of a magnetisation at which a state counts as converged.
    max_iter : int, default=50
        Largest number of sweeps at each temperature.

    Raises
    ------
    ValueError
        When an option is impossible; the message names it.

    Examples
    --------
    >>> BoltzmannOptions(mean_field_order=1).correlation
    'linear_response'
    >>> BoltzmannOptions(hottest=0.5)
    Traceback (most recent call last):
        ...
    ValueError: hottest must be at least 1, got 0.5
    """

    mean_field_order: int = 2
    correlation: str = "linear_response"
    n_states: int = 10
    n_inputs: int = 0
    persistent: bool = False
    hottest: float = 10.0
    n_temperatures: int = 8
    damping: float | None = None
    tolerance: float = 1e-5
    max_iter: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("mean_field_order", self.mean_field_order, (1, 2))
        check_one_of("correlation", self.correlation, CORRELATIONS)
        for name in ("n_states", "n_temperatures", "max_iter"):
            check_whole(name, getattr(self, name), 1)
        check_whole("n_inputs", self.n_inputs, 0)
        check_positive("tolerance", self.tolerance)
        check_positive("hottest", self.hottest)
        if self.damping is not None:
            check_share("damping", self.damping)
        if self.hottest < 1:
            raise ValueError(f"hottest must be at least 1, got {self.hottest}")
        if self.persistent and self.n_inputs:
            raise ValueError("persistent has no effect with n_inputs, whose states are annealed")
        # A column of the weights above the diagonal is not what one unit receives.
        check_one_of("weight_constraint", self.weight_constraint, (None, "frobenius"))

    @property
    def inverse_temperatures(self) -> list[float]:
        """The annealing schedule, from hot to cold."""
        factors = np.geomspace(1.0, self.hottest, self.n_temperatures)
        return [self.beta / float(factor) for factor in reversed(factors)]


class MeanFieldBoltzmannGradient:
    r"""Gradient estimator of a Boltzmann machine: both phases by annealed mean field.

    It writes the gradient of the *negative* log-likelihood into the parameters' ``.grad``, so
    that any torch optimiser can follow it. Visible units that the data hold are exact; without
    hidden units the clamped phase is the average over the batch. The free phase is the plain
    average over the states that annealing reached: they are not weighted by their free energies.

    Parameters
    ----------
    model : BoltzmannMachine
    options : BoltzmannOptions
    random : RandomStream
        Source of the states' starts and kicks, on the model's device.

    Raises
    ------
    ValueError
        When the machine has no visible unit beyond ``n_inputs``.

    References
    ----------
    Peterson and Anderson, *A mean field theory learning algorithm for neural networks*, Complex
    Systems 1, 1987; Kappen and Rodriguez, *Efficient learning in Boltzmann machines using linear
    response theory*, Neural Computation 10, 1998.

    Examples
    --------
    >>> import torch
    >>> from freenergy.models import BoltzmannMachine
    >>> from freenergy.random import RandomStream
    >>> machine = BoltzmannMachine(4, 2)
    >>> gradient = MeanFieldBoltzmannGradient(machine, BoltzmannOptions(), RandomStream(0))
    >>> gradient.compute(torch.ones(10, 4))
    >>> machine.weight.grad.shape, sorted(gradient.measure())
    (torch.Size([6, 6]), ['mean_field_converged', 'mean_field_stable'])
    """

    def __init__(
        self, model: BoltzmannMachine, options: BoltzmannOptions, random: RandomStream
    ) -> None:
        if options.n_inputs >= model.n_visible:
            raise ValueError(
                f"n_inputs={options.n_inputs} leaves none of the {model.n_visible} visible units "
                f"to be learned"
            )
        self.model = model
        self.options = options
        self.random = random
        self._states: Tensor | None = None
        if options.persistent:
            low, high = min(model.unit.support), max(model.unit.support)
            states = random.uniform_(model.bias.detach().new_empty(options.n_states, model.n_units))
            self._states = states.mul_(high - low).add_(low)
        # Of each kind of verdict the states it held for, and all states, since the last reading.
        self._tally = torch.zeros(len(_VERDICTS), 2, dtype=torch.float64)

    @torch.no_grad()
    def compute(self, batch: Tensor) -> None:
        """Write the gradient for a batch of shape (n, n_visible) into the parameters' ``.grad``."""
        model, beta = self.model, self.options.beta
        if batch.dim() != 2 or batch.shape[1] != model.n_visible:
            raise ValueError(
                f"a batch must have shape (n, {model.n_visible}), got {tuple(batch.shape)}"
            )
        clamped_mean, clamped = self._phase(self._clamp(batch, model.n_visible), len(batch))
        if self.options.n_inputs:
            free_mean, free = self._phase(self._clamp(batch, self.options.n_inputs), len(batch))
        else:
            free_mean, free = self._phase(None, self.options.n_states)
        model.weight.grad = beta * (free - clamped) * model.pairs
        model.bias.grad = beta * (free_mean - clamped_mean)

    def measure(self) -> dict[str, Any]:
        """Shares of the states since the last call that converged, and that were stable."""
        counts = zip(_VERDICTS, self._tally.tolist(), strict=True)
        shares = {name: found / total for name, (found, total) in counts if total}
        self._tally.zero_()
        return shares

    def state(self) -> dict[str, Tensor]:
        """Tensors that must persist between updates, by name."""
        states = {} if self._states is None else {"states": self._states}
        return {"tally": self._tally, **states}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from tensors that :meth:`state` returned."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    def _clamp(self, batch: Tensor, n_held: int) -> Tensor:
        """The first units at the data, NaN for the others."""
        shape = len(batch), self.model.n_units
        clamp = self.model.bias.detach().new_full(shape, torch.nan)
        clamp[:, :n_held] = batch[:, :n_held]
        return clamp

    def _phase(self, clamp: Tensor | None, n_states: int) -> tuple[Tensor, Tensor]:
        """Means and second moments of one phase, averaged over its states."""
        if clamp is not None and not bool(clamp.isnan().any()):
            return clamp.mean(0), clamp.T @ clamp / len(clamp)
        options, beta = self.options, self.options.beta
        expansion = PairExpansion(self.model, options.mean_field_order, clamp)
        m = self._anneal(expansion, clamp, n_states)
        if options.correlation == "free_energy":
            covariance = expansion.reaction_covariance(m, beta)
        else:
            covariance, stable = expansion.mean_response(m, beta)
            self._count("mean_field_stable", stable)
        return m.mean(0), covariance.addmm_(m.T, m, alpha=1.0 / len(m))

    def _anneal(self, expansion: PairExpansion, clamp: Tensor | None, n_states: int) -> Tensor:
        """Magnetisations at the training temperature; the persistent ones are those themselves."""
        options, schedule = self.options, self.options.inverse_temperatures
        order, damping = options.mean_field_order, options.damping
        damping = default_damping(order) if damping is None else damping
        if clamp is None and self._states is not None:
            m, schedule = self._states, schedule[-1:]
        else:
            m = self.model.unit.mean(schedule[0] * self.model.bias).repeat(n_states, 1)
            m = m if clamp is None else torch.where(clamp.isnan(), m, clamp)
        residual = m
        for beta in schedule:
            expansion.kick(m, _KICK, self.random)
            _, residual = expansion.relax(m, beta, damping, options.tolerance, options.max_iter)
        self._count("mean_field_converged", residual <= options.tolerance)
        return m

    def _count(self, name: str, found: Tensor) -> None:
        self._tally[_VERDICTS.index(name)] += torch.tensor([int(found.sum()), found.numel()])


@torch.no_grad()
def initialize_boltzmann(
    model: BoltzmannMachine, rows: Rows, random: RandomStream, beta: float = 1.0
) -> None:
    r"""Start a machine at its data: couplings from N(0, 0.01²), visible means those of the data.

    The biases of the visible units are the fields that give the columns' means, with one
    pseudo-count for each value of the unit; those of the hidden units are zero.

    Parameters
    ----------
    model : BoltzmannMachine
        Changed in place.
    rows : Rows
    random : RandomStream
    beta : float, default=1
        Inverse temperature at which the means are those of the data.

    Examples
    --------
    >>> import torch
    >>> from freenergy.models import BoltzmannMachine
    >>> from freenergy.random import RandomStream
    >>> from freenergy.training import as_rows
    >>> machine = BoltzmannMachine(2, 1)
    >>> rows = as_rows(torch.tensor([[1.0, -1.0], [1.0, 1.0]]), like=torch.empty(0))
    >>> initialize_boltzmann(machine, rows, RandomStream(0))
    >>> machine.bias.detach()
    tensor([0.5493, 0.0000, 0.0000])
    """
    draws = random.normal((model.n_units, model.n_units), scale=0.01)
    model.weight.copy_(draws * model.pairs.cpu())
    support = model.unit.support
    mean = rows.mean().double().clamp(min(support), max(support))
    smoothed = (len(rows) * mean + sum(support)) / (len(rows) + len(support))
    model.bias.zero_()
    model.bias[: model.n_visible].copy_(model.unit.field(smoothed) / beta)

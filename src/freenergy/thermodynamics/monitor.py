"""An instrument that reads an RBM after every epoch: likelihood, free energies, entropy."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from freenergy.arrays import as_matrix, as_tensor
from freenergy.inference import (
    Ladder,
    MeanFieldWarning,
    exact,
    is_enumerable,
    mean_field,
    pseudo_log_likelihood,
)
from freenergy.models import RBM
from freenergy.thermodynamics.temperature import effective_temperature

__all__ = ["RBMMonitor", "TemperatureMonitor"]

_QUICK_BOOTSTRAP = 50
_QUICK_UNITS = 16
_PSEUDO_LIKELIHOOD_BUDGET = 5e7


class RBMMonitor:
    r"""Reads a model and returns named numbers for a training history.

    ================================  ===========================================================
    ``weight_norm``                   Frobenius norm of the couplings
    ``pseudo_likelihood``             exact log pseudo-likelihood, mean over rows (binary units)
    ``free_energy``                   mean :math:`F(v)` of the rows
    ``free_energy_gap``               :math:`\langle F\rangle_\text{held out} -
                                      \langle F\rangle_\text{train}`; it grows with overfitting
    ``tap{n}_free_energy``            :math:`\Gamma` of order *n*, mean over states started at
                                      rows of the data; likewise ``_energy``, ``_entropy``
    ``tap{n}_converged``              share of the states that converged
    ``tap{n}_log_partition``          highest :math:`-\beta\Gamma` among those states
    ``log_partition``                 exact :math:`\ln Z`, with ``exact_free_energy``,
                                      ``exact_energy`` and ``exact_entropy``
    ``log_likelihood``                exact mean log-likelihood of the rows
    ================================  ===========================================================

    What concerns held-out rows has the suffix ``_held_out``.

    Parameters
    ----------
    train : array-like or Tensor of shape (n, n_visible)
    held_out : array-like or Tensor of shape (m, n_visible), default=None
    beta : float, default=1
    orders : tuple of {1, 2, 3}, default=(1, 2, 3)
        Orders of the mean-field expansion to follow; may be empty.
    n_states : int, default=100
        Mean-field states, started at the first rows of ``train``.
    max_iter : int, default=200
        Largest number of mean-field sweeps.
    enumerate : bool or None, default=None
        Whether to compute the exact quantities; None does so for a model small enough.
    n_rows : int, default=1000
        At most this many rows of each part are watched.

    Examples
    --------
    >>> import torch
    >>> from freenergy.models import RBM
    >>> monitor = RBMMonitor(torch.ones(10, 6), orders=(2,), enumerate=True)
    >>> record = monitor(RBM(6, 4))
    >>> record["log_likelihood"] < 0
    True
    """

    def __init__(
        self,
        train: ArrayLike | Tensor,
        held_out: ArrayLike | Tensor | None = None,
        *,
        beta: float = 1.0,
        orders: tuple[int, ...] = (1, 2, 3),
        n_states: int = 100,
        max_iter: int = 200,
        enumerate: bool | None = None,
        n_rows: int = 1000,
    ) -> None:
        self.parts = {"": as_tensor(train, "train")[:n_rows]}
        if held_out is not None:
            self.parts["_held_out"] = as_tensor(held_out, "held_out")[:n_rows]
        self.beta = beta
        self.orders = orders
        self.n_states = n_states
        self.max_iter = max_iter
        self.enumerate = enumerate

    @torch.no_grad()
    def __call__(self, model: RBM) -> dict[str, Any]:
        """Named numbers that describe the model now."""
        record: dict[str, Any] = {"weight_norm": float(torch.linalg.vector_norm(model.weight))}
        budget = int(_PSEUDO_LIKELIHOOD_BUDGET / (model.n_visible * model.n_hidden))
        parts = {
            suffix: as_matrix(
                rows, suffix.removeprefix("_") or "train", model.n_visible, model.weight
            )
            for suffix, rows in self.parts.items()
        }
        free_energy = {}
        for suffix, rows in parts.items():
            if len(model.visible.support) == 2:
                score = pseudo_log_likelihood(model, rows[: max(budget, 50)], self.beta)
                record[f"pseudo_likelihood{suffix}"] = float(score.mean())
            free_energy[suffix] = float(model.free_energy(rows, self.beta).mean())
            record[f"free_energy{suffix}"] = free_energy[suffix]
        if "_held_out" in parts:
            record["free_energy_gap"] = free_energy["_held_out"] - free_energy[""]
        for order in self.orders:
            record |= self._mean_field(model, order, parts[""][: self.n_states])
        if is_enumerable(model) if self.enumerate is None else self.enumerate:
            statistics = exact(model, self.beta)
            record["log_partition"] = statistics.log_partition
            record["exact_free_energy"] = statistics.free_energy
            record["exact_energy"] = statistics.energy
            record["exact_entropy"] = statistics.entropy
            record["log_partition_stderr"] = 0.0
            for suffix, value in free_energy.items():
                record[f"log_likelihood{suffix}"] = -self.beta * value - statistics.log_partition
        return record

    def _mean_field(self, model: RBM, order: int, start: Tensor) -> dict[str, float]:
        with warnings.catch_warnings():
            # The history tells what the warnings would, epoch by epoch.
            warnings.simplefilter("ignore", MeanFieldWarning)
            state = mean_field(
                model, order, beta=self.beta, start=start, max_iter=self.max_iter, tolerance=1e-4
            )
        highest = float(state.log_partition.max())
        return {
            f"tap{order}_free_energy": float(state.free_energy.mean()),
            f"tap{order}_energy": float(state.energy.mean()),
            f"tap{order}_entropy": float(state.entropy.mean()),
            f"tap{order}_converged": float(state.converged.double().mean()),
            f"tap{order}_log_partition": highest if math.isfinite(highest) else math.nan,
        }


class TemperatureMonitor:
    """Reads the effective temperature of rows under a model, with the ends of its interval.

    Its record holds ``temperature``, ``temperature_lower`` and ``temperature_upper``: the
    temperature at which the model explains the rows best, relative to that of its training.

    Parameters
    ----------
    rows : array-like or Tensor of shape (n, n_visible)
        States of the visible units; rows held out say more than those learned from.
    beta : float, default=1
        Inverse temperature of the training.
    n_rows : int, default=200
        At most this many rows are read, at 16 random units of each: a look after every epoch
        must be quick, and its interval says how rough it is.

    Examples
    --------
    >>> import torch
    >>> from freenergy.models import RBM
    >>> record = TemperatureMonitor(torch.eye(6).repeat(5, 1))(RBM(6, 4))
    >>> sorted(record)
    ['temperature', 'temperature_lower', 'temperature_upper']
    """

    def __init__(self, rows: ArrayLike | Tensor, *, beta: float = 1.0, n_rows: int = 200) -> None:
        self.rows = as_tensor(rows, "rows")[:n_rows]
        self.beta = beta

    def __call__(self, model: RBM) -> dict[str, Any]:
        """Named numbers that describe the model now."""
        scaled = Ladder.of([model], self.beta).model(0)
        found = effective_temperature(
            scaled,
            self.rows.to(model.weight),
            n_bootstrap=_QUICK_BOOTSTRAP,
            n_units=min(_QUICK_UNITS, model.n_visible),
        )
        values = {
            "temperature": found.temperature,
            "temperature_lower": found.lower,
            "temperature_upper": found.upper,
        }
        return {name: v if math.isfinite(v) else math.nan for name, v in values.items()}

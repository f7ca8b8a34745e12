"""The log-likelihood of rows, with the interval that the partition function leaves it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from freenergy.arrays import as_matrix
from freenergy.inference.partition import LogPartition
from freenergy.models import RBM

__all__ = ["LogLikelihood", "check_states", "log_likelihood"]

_BLOCK_ELEMENTS = 2**24


@dataclass(frozen=True, eq=False)
class LogLikelihood:
    r"""Mean log-likelihood of rows, :math:`\langle -\beta F(v; \beta) \rangle - \ln Z(\beta)`.

    Attributes
    ----------
    mean : float
        In nats for a row.
    lower, upper : float
        Ends of the interval, which is that of :math:`\ln Z`: the mean is over these rows.
    method : str
        How :math:`\ln Z` was found.
    trusted : bool
    reasons : tuple of str
        Why it is not trusted.
    rows_stderr : float
        Standard error of the mean as an estimate for rows not seen (NaN for a single row).
    per_sample : ndarray of shape (n_samples,)
        Log-likelihood of each row.
    log_partition : LogPartition
    """

    mean: float
    lower: float
    upper: float
    method: str
    trusted: bool
    reasons: tuple[str, ...]
    rows_stderr: float
    per_sample: NDArray[np.float64]
    log_partition: LogPartition

    def __repr__(self) -> str:
        text = (
            f"LogLikelihood(mean={self.mean:.2f}, lower={self.lower:.2f}, upper={self.upper:.2f}, "
            f"method={self.method!r}, trusted={self.trusted}"
        )
        return text + (f", reasons={self.reasons!r})" if self.reasons else ")")


def check_states(model: RBM, rows: ArrayLike | Tensor) -> None:
    """Refuse rows that are no states of the visible units, by place.

    Parameters
    ----------
    model : RBM
    rows : array-like or Tensor of shape (n_samples, n_visible)

    Raises
    ------
    ValueError
        When there are no rows, they have another width, or a value is not one of the units'.

    Examples
    --------
    >>> check_states(RBM(3, 2), [[0, 1, 1], [1, 0.5, 0]])
    Traceback (most recent call last):
        ...
    ValueError: column 1 of row 1 is 0.5: only states of 0 and 1 have a likelihood; binarise...
    """
    rows = as_matrix(rows, "rows", model.n_visible)
    rows = rows.to(model.weight) if rows.dtype == torch.bool else rows
    possible = torch.isin(rows, torch.tensor(model.visible.support).to(rows))
    if not bool(possible.all()):
        row, column = (int(i) for i in (~possible).nonzero()[0])
        values = " and ".join(f"{value:g}" for value in model.visible.support)
        raise ValueError(
            f"column {column} of row {row} is {float(rows[row, column]):g}: only states of "
            f"{values} have a likelihood; binarise the rows first"
        )


@torch.no_grad()
def log_likelihood(
    model: RBM, rows: ArrayLike | Tensor, log_partition: LogPartition
) -> LogLikelihood:
    """Mean log-likelihood of rows under a model whose partition function was estimated.

    Parameters
    ----------
    model : RBM
    rows : array-like or Tensor of shape (n_samples, n_visible)
        Values that the visible units can take.
    log_partition : LogPartition
        Of this model; its inverse temperature is used.

    Returns
    -------
    LogLikelihood

    Raises
    ------
    ValueError
        When there are no rows, or a value is not one of the units'.

    Examples
    --------
    >>> import torch
    >>> from freenergy.inference import log_partition
    >>> from freenergy.models import RBM
    >>> rbm = RBM(3, 2)
    >>> _ = torch.nn.init.zeros_(rbm.weight)
    >>> log_likelihood(rbm, torch.ones(4, 3), log_partition(rbm))
    LogLikelihood(mean=-2.08, lower=-2.08, upper=-2.08, method='exact', trusted=True)
    """
    rows = as_matrix(rows, "rows", model.n_visible)
    check_states(model, rows)
    beta = log_partition.beta
    block = max(1, _BLOCK_ELEMENTS // model.n_hidden)
    free_energy = torch.cat(
        [model.free_energy(part.to(model.weight), beta).double() for part in rows.split(block)]
    )
    score = -beta * free_energy.cpu().numpy()
    mean = float(score.mean())
    n = len(score)
    return LogLikelihood(
        mean - log_partition.value,
        mean - log_partition.upper,
        mean - log_partition.lower,
        log_partition.method,
        log_partition.trusted,
        log_partition.reasons,
        float(score.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan,
        score - log_partition.value,
        log_partition,
    )

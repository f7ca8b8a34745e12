r"""The log-likelihood of rows under a VAE, by importance weighting, with its interval.

.. math:: p(x) = \Big\langle \frac{p(x, z)}{q(z \mid x)} \Big\rangle_q, \qquad
          \hat L_K = \ln \frac1K \sum_{k=1}^K w_k, \qquad \langle \hat L_K \rangle \le \ln p(x)

One draw is the evidence lower bound; the bound rises to :math:`\ln p(x)` with the draws.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from freenergy.arrays import as_matrix
from freenergy.distributed import ALONE, Group
from freenergy.models.vae import VAE
from freenergy.random import RandomStream

__all__ = ["ImportanceLogLikelihood", "importance_log_likelihood"]

_BLOCK_ELEMENTS = 2**22
_QUANTILE = 1.96
# Below them the weights have a tail that no draw may have met: see the notes.
_LEAST_SAMPLE_SIZE = 10.0
_LEAST_SHARE = 0.05
_UNTRUSTED_ROWS = 0.01


@dataclass(frozen=True, eq=False)
class ImportanceLogLikelihood:
    r"""Mean log-likelihood of rows, each by the mean of its importance weights.

    Attributes
    ----------
    mean : float
        In nats for a row; in expectation a lower bound.
    lower, upper : float
        Ends of the 95 % interval of the draws; the mean is over these rows.
    method : str
        ``"importance"``.
    trusted : bool
        Whether the weights of the rows are even enough for the interval to hold.
    reasons : tuple of str
        Why it is not trusted.
    rows_stderr : float
        Standard error of the mean as an estimate for rows not seen (NaN for a single row).
    per_sample : ndarray of shape (n_samples,)
        Log-likelihood of each row.
    per_sample_lower, per_sample_upper : ndarray of shape (n_samples,)
        Ends of its 95 % interval.
    effective_sample_size : ndarray of shape (n_samples,)
        Of each row, :math:`(\sum_k w_k)^2 / \sum_k w_k^2`, from 1 to ``n_draws``.
    n_draws : int
        Latent states drawn for each row.
    """

    mean: float
    lower: float
    upper: float
    method: str
    trusted: bool
    reasons: tuple[str, ...]
    rows_stderr: float
    per_sample: NDArray[np.float64]
    per_sample_lower: NDArray[np.float64]
    per_sample_upper: NDArray[np.float64]
    effective_sample_size: NDArray[np.float64]
    n_draws: int

    def __repr__(self) -> str:
        text = (
            f"ImportanceLogLikelihood(mean={self.mean:.2f}, lower={self.lower:.2f}, "
            f"upper={self.upper:.2f}, n_draws={self.n_draws}, trusted={self.trusted}"
        )
        return text + (f", reasons={self.reasons!r})" if self.reasons else ")")


@torch.no_grad()
def importance_log_likelihood(
    model: VAE,
    rows: ArrayLike | Tensor,
    n_samples: int = 1000,
    *,
    random: RandomStream,
    common: bool = False,
    group: Group = ALONE,
) -> ImportanceLogLikelihood:
    r"""Mean log-likelihood of rows by importance weighting with the encoder's distribution.

    Parameters
    ----------
    model : VAE
    rows : array-like or Tensor of shape (n, n_visible)
        With a Bernoulli likelihood, zeros and ones; other values give a bound of the same form
        that is no log-probability.
    n_samples : int, default=1000
        Latent states drawn for each row.
    random : RandomStream
    common : bool, default=False
        The same noise for every row, so that a row's value depends on nothing but the row. The
        errors of the rows then add up in the mean, and the interval says so.
    group : Group, default=ALONE
        Processes that divide the draws. All of them call this with the same model and rows, and
        the result is that of all draws.

    Returns
    -------
    ImportanceLogLikelihood

    Raises
    ------
    ValueError
        When there are no rows, no draws, or the rows have another width.

    Notes
    -----
    The relative variance of a row's mean weight is :math:`s^2 = 1/\mathrm{ESS} - 1/K`. By the delta
    method the error of :math:`\hat L_K` is :math:`s` and its bias :math:`-s^2/2`; upper ends are
    raised by twice that bias. In the mean, what the weights' tails leave out does not average away:
    the lower end adds the errors of the rows in squares, the upper end adds them as they are.

    The mean is trusted where at most 1 % of the rows have an effective sample size below 5 % of
    the draws (and below 10). No number of draws can tell that the encoder overlooks a part of the
    posterior: the interval speaks of what was drawn.

    Memory is bounded: rows and draws are taken in blocks.

    References
    ----------
    Burda, Grosse, Salakhutdinov, *Importance weighted autoencoders*, arXiv:1509.00519.

    Examples
    --------
    >>> import torch
    >>> vae = VAE(4, 2, hidden_sizes=(), latent="bernoulli")
    >>> for parameter in vae.parameters():
    ...     _ = torch.nn.init.zeros_(parameter)
    >>> importance_log_likelihood(vae, torch.ones(3, 4), 50, random=RandomStream(0))
    ImportanceLogLikelihood(mean=-2.77, lower=-2.77, upper=-2.77, n_draws=50, trusted=True)
    """
    rows = as_matrix(rows, "rows", model.n_visible, next(model.parameters()))
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1, got {n_samples}")
    group.check_same(model)
    random, n_own = group.stream(random), group.share(n_samples)
    noise = model.noise(random, (n_own, 1)) if common else None
    n_rows, n_draws = _block(model, len(rows), max(1, n_own))
    parts = [
        _log_weight_sums(model, part, n_own, n_draws, random, noise) for part in rows.split(n_rows)
    ]
    own = tuple(torch.cat(sums).cpu().numpy() for sums in zip(*parts, strict=True))
    log_sum, log_sum_squares = (
        functools.reduce(np.logaddexp, sums) for sums in zip(*group.collect(own), strict=True)
    )
    return group.agree(_summary(log_sum, log_sum_squares, n_samples, common))


def _block(model: VAE, n_rows: int, n_samples: int) -> tuple[int, int]:
    """Rows and draws of one block, which the widest layer makes too large or not."""
    widest = max(model.n_visible, model.n_latent, *model.hidden_sizes)
    states = max(1, _BLOCK_ELEMENTS // widest)
    block = min(n_rows, max(1, states // n_samples))
    return block, min(n_samples, max(1, states // block))


def _log_weight_sums(
    model: VAE,
    rows: Tensor,
    n_samples: int,
    n_draws: int,
    random: RandomStream,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor]:
    r""":math:`\ln \sum_k w_k` and :math:`\ln \sum_k w_k^2` for each row, in double precision."""
    posterior = model.encode(rows)
    log_sum = rows.new_full((len(rows),), -math.inf, dtype=torch.float64)
    log_sum_squares = log_sum.clone()
    for start in range(0, n_samples, n_draws):
        n = min(n_draws, n_samples - start)
        new = model.noise(random, (n, len(rows))) if noise is None else noise[start : start + n]
        z = model.place(posterior, new)
        log_weight = (-model.energy(rows, z) - posterior.log_prob(z)).double()
        log_sum = torch.logaddexp(log_sum, log_weight.logsumexp(0))
        log_sum_squares = torch.logaddexp(log_sum_squares, (2.0 * log_weight).logsumexp(0))
    return log_sum, log_sum_squares


def _summary(
    log_sum: NDArray[np.float64],
    log_sum_squares: NDArray[np.float64],
    n_draws: int,
    common: bool,
) -> ImportanceLogLikelihood:
    n = len(log_sum)
    per_row = log_sum - math.log(n_draws)
    sample_size = np.exp(2.0 * log_sum - log_sum_squares)
    variance = 1.0 / sample_size - 1.0 / n_draws
    # A single draw has no spread that would tell its error; rounding may make it negative.
    variance = np.maximum(0.0, variance) if n_draws > 1 else np.full(n, math.inf)
    error = np.sqrt(variance)
    mean, mean_error = float(per_row.mean()), float(error.mean())
    lower_error = mean_error if common else math.sqrt(float(variance.sum())) / n
    least = max(_LEAST_SAMPLE_SIZE, _LEAST_SHARE * n_draws)
    # Even weights are worth all draws, but for rounding.
    poor = int((sample_size < least * (1.0 - 1e-9)).sum())
    reasons: tuple[str, ...] = ()
    if poor > _UNTRUSTED_ROWS * n:
        advice = (
            "the encoder is far from the posterior; train it longer or give it more hidden units"
            if n_draws >= least
            else "so few tell nothing of the weights' tail; take more"
        )
        reasons = (
            f"the {n_draws} draws of {poor} of {n} rows are worth less than {least:g}: {advice}",
        )
    return ImportanceLogLikelihood(
        mean=mean,
        lower=mean - _QUANTILE * lower_error,
        upper=mean + _QUANTILE * mean_error + float(variance.mean()),
        method="importance",
        trusted=not reasons,
        reasons=reasons,
        rows_stderr=float(per_row.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan,
        per_sample=per_row,
        per_sample_lower=per_row - _QUANTILE * error,
        per_sample_upper=per_row + _QUANTILE * error + variance,
        effective_sample_size=sample_size,
        n_draws=n_draws,
    )

"""How fast chains forget: the autocorrelation time of a series, and whether chains agree."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["autocorrelation_time", "split_r_hat"]

Array = NDArray[np.float64]


def autocorrelation_time(series: Array) -> float:
    r"""Integrated autocorrelation time of stationary chains, in steps.

    .. math:: \tau = 1 + 2 \sum_{t \ge 1} \rho(t)

    A mean over ``n`` steps has the variance of ``n`` / τ independent draws. Correlations are
    averaged over the chains, around the mean of all of them: chains that stay apart keep a
    correlation that does not decay, and τ becomes as long as the series. The sum ends by Geyer's
    initial monotone sequence, which is exact for the reversible chains of block Gibbs sampling:
    sums of two neighbouring correlations are positive and decrease.

    Parameters
    ----------
    series : ndarray of shape (n_chains, n_steps)

    Returns
    -------
    float
        At least 1 (as block Gibbs chains cannot be anticorrelated), and 1 for a constant.

    References
    ----------
    Geyer, *Practical Markov chain Monte Carlo*, Statist. Sci. 7, 1992.

    Examples
    --------
    >>> autocorrelation_time(np.random.default_rng(0).normal(size=(64, 1000))).__round__(1)
    1.0
    >>> autocorrelation_time(np.ones((4, 100)))
    1.0
    """
    series = np.atleast_2d(np.asarray(series, dtype=np.float64))
    n_chains, n = series.shape
    # Brought to unit scale, so that no square overflows.
    centred = series - series.mean()
    scale = float(np.abs(centred).max())
    if scale <= 4 * np.finfo(np.float64).eps * float(np.abs(series).max()):
        return 1.0
    spectrum = np.abs(np.fft.rfft(centred / scale, 2 * n)) ** 2
    covariance = np.fft.irfft(spectrum.sum(0), 2 * n)[:n] / (n_chains * np.arange(n, 0, -1))
    pairs = np.append(covariance / covariance[0], 0.0)[: 2 * ((n + 1) // 2)].reshape(-1, 2).sum(1)
    negative = np.flatnonzero(pairs <= 0)
    pairs = np.minimum.accumulate(pairs[: negative[0] if len(negative) else len(pairs)])
    return max(1.0, 2.0 * float(pairs.sum()) - 1.0)


def split_r_hat(series: Array, noise: float = 0.0) -> float:
    r"""Potential scale reduction of chains that are split in two halves.

    .. math:: \hat R^2 = \frac{\frac{n-1}{n} W + B}{W}

    with the mean variance :math:`W` within the half-chains of ``n`` steps and the variance
    :math:`B` of their means. Chains that all visit the same states have :math:`\hat R^2 \approx
    1 + \tau / n`; chains that stay apart, or drift, much more. It is not ranked: one chain of
    many that is caught far away must be seen.

    Parameters
    ----------
    series : ndarray of shape (n_chains, n_steps)
    noise : float, default=0
        Rounding error of a value: differences below it do not count.

    Returns
    -------
    float
        1 for a constant, infinite for less than four steps.

    References
    ----------
    Gelman et al., *Bayesian data analysis*, 3rd edition, section 11.4.

    Examples
    --------
    >>> draws = np.random.default_rng(0).normal(size=(64, 1000))
    >>> round(split_r_hat(draws), 2), split_r_hat(draws + np.arange(64)[:, None]) > 10
    (1.0, True)
    """
    n = series.shape[1] // 2
    if n < 2:
        return math.inf
    # Brought to unit scale, so that no square overflows.
    centred = series[:, -2 * n :] - series.mean()
    scale = max(float(np.abs(centred).max()), noise)
    if scale == 0.0:
        return 1.0
    halves = (centred / scale).reshape(-1, n)
    floor = max(noise / scale, np.finfo(np.float64).eps) ** 2
    within = float(halves.var(1, ddof=1).mean()) + floor
    between = float(halves.mean(1).var(ddof=1))
    return math.sqrt(((n - 1) / n * within + between) / within)

r"""Differences of free energy from work done in both directions: Bennett's acceptance ratio.

Going from model 0 to model 1 at a state :math:`x` takes the work :math:`w = u_1(x) - u_0(x)`, with
:math:`u = -\ln` of the Boltzmann weight. By Crooks' theorem the distributions of the forward work
and of minus the backward work cross at :math:`\Delta F = -\ln(Z_1/Z_0)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logsumexp

__all__ = ["FreeEnergyDifference", "bennett", "effective_sample_size", "jarzynski"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FreeEnergyDifference:
    r"""A difference of free energies :math:`-\ln(Z_1/Z_0)` with its error.

    Attributes
    ----------
    value : float
    influence : ndarray of shape (n_chains,)
        What each independent chain adds to the error: the value's first-order response to that
        chain, of mean zero. Influences of several differences over the same chains add up.
    overlap : float
        Mean acceptance of the exchange between the two, from 0 (no overlap) to 1 (the same).
    """

    value: float
    influence: Array
    overlap: float

    @property
    def stderr(self) -> float:
        """Standard error over independent chains."""
        return standard_error(self.influence)


def standard_error(influence: Array) -> float:
    """Standard error of a sum of means whose terms have this influence."""
    n = len(influence)
    if n < 2:
        return float("inf")
    return float(np.sqrt(np.sum(influence**2) / (n * (n - 1))))


def bennett(forward: Array, backward: Array) -> FreeEnergyDifference:
    r"""Bennett's acceptance ratio: the best combination of forward and backward work.

    Solves :math:`\langle\sigma(\Delta F - w_F)\rangle_F = \langle\sigma(-\Delta F - w_B)\rangle_B`
    for :math:`\Delta F`, for as many forward as backward works.

    Parameters
    ----------
    forward : array of shape (n_samples, n_chains) or (n_chains,)
        Work :math:`u_1(x) - u_0(x)` at states of model 0. Columns are independent chains.
    backward : array of the same shape
        Work :math:`u_0(x) - u_1(x)` at states of model 1.

    Returns
    -------
    FreeEnergyDifference

    References
    ----------
    Bennett, *Efficient estimation of free energy differences from Monte Carlo data*, J. Comput.
    Phys. 22, 1976; Shirts, Bair, Hooker, Pande, Phys. Rev. Lett. 91, 140601, 2003.

    Examples
    --------
    >>> import numpy as np
    >>> random = np.random.default_rng(0)
    >>> forward = random.normal(2.5, 1.0, 10_000)  # ΔF = 2, variance = 2 (mean - ΔF)
    >>> backward = random.normal(-1.5, 1.0, 10_000)
    >>> abs(bennett(forward, backward).value - 2.0) < 0.05
    True
    """
    forward = np.atleast_2d(np.asarray(forward, dtype=float))
    backward = np.atleast_2d(np.asarray(backward, dtype=float))

    def imbalance(difference: float) -> float:
        return float(expit(difference - forward).mean() - expit(-difference - backward).mean())

    # The root lies between the largest and smallest works of both directions.
    ends = [forward.min(), forward.max(), -backward.max(), -backward.min()]
    low, high = min(ends) - 1.0, max(ends) + 1.0
    while imbalance(low) > 0:
        low -= high - low
    while imbalance(high) < 0:
        high += high - low
    value = float(brentq(imbalance, low, high, xtol=1e-12, rtol=1e-12))
    gain = expit(value - forward)
    loss = expit(-value - backward)
    slope = float((gain * (1.0 - gain)).mean() + (loss * (1.0 - loss)).mean())
    residual = gain.mean(0) - loss.mean(0)
    influence = -residual / slope if slope > 0 else np.full(forward.shape[1], np.inf)
    # The chance that an exchange of a state of 0 with one of 1 is accepted.
    overlap = float(np.exp(np.minimum(0.0, -forward - backward)).mean())
    return FreeEnergyDifference(value, influence, overlap)


def jarzynski(work: Array) -> FreeEnergyDifference:
    r"""Jarzynski's equality: :math:`e^{-\Delta F} = \langle e^{-w} \rangle` over one direction.

    By Jensen's inequality the value lies above the truth on average. ``overlap`` is the effective
    share of the samples, :math:`(\sum e^{-w})^2 / (n \sum e^{-2w})`.

    Parameters
    ----------
    work : array of shape (n_chains,)

    Returns
    -------
    FreeEnergyDifference

    References
    ----------
    Jarzynski, *Nonequilibrium equality for free energy differences*, Phys. Rev. Lett. 78, 1997;
    Neal, *Annealed importance sampling*, Statistics and Computing 11, 2001.

    Examples
    --------
    >>> import numpy as np
    >>> jarzynski(np.full(10, 3.0)).value
    3.0
    """
    work = np.asarray(work, dtype=float)
    value = -float(logsumexp(-work) - np.log(len(work)))
    share = np.exp(value - work)
    return FreeEnergyDifference(value, 1.0 - share, effective_sample_size(-work) / len(work))


def effective_sample_size(log_weight: Array) -> float:
    r"""Kish's effective number of samples, :math:`(\sum_k w_k)^2 / \sum_k w_k^2`.

    Parameters
    ----------
    log_weight : ndarray of shape (n,)
        :math:`\ln w_k`, up to a constant.

    Returns
    -------
    float
        From 1 to n.

    Examples
    --------
    >>> round(effective_sample_size(np.log([1.0, 1.0, 2.0])), 4)
    2.6667
    """
    return float(np.exp(2 * logsumexp(log_weight) - logsumexp(2 * log_weight)))

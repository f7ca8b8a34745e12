r"""Integrals of a Gaussian over a half line, which is what a kink at zero makes of its moments.

A pre-activation :math:`z = m + s\,\xi` with :math:`u = |m| / s` has the part of its density beyond
the kink

.. math:: \phi(u)\, e^{-u y - y^2/2}, \qquad z = \mp s\,y, \quad y > 0

and every moment of a piecewise activation is :math:`\phi(u)` times an integral of this kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, ndtr

__all__ = ["Array", "HalfLine", "density", "exponential_moment", "mills"]

Array = NDArray[Any]

# At 32 nodes the rule has reached rounding, 3e-15 for every u and every rate that is asked for.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(40)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2
# exp(-42) is 6e-19: what lies beyond is lost in rounding.
_EXPONENT = 42.0
_LARGEST_RATE = 0.5
_FARTHEST = 1e100  # has a square, and no density


def density(u: Array) -> Array:
    r"""Standard normal density, :math:`\phi(u) = e^{-u^2/2} / \sqrt{2\pi}`."""
    u = np.clip(u, -_FARTHEST, _FARTHEST)
    return np.exp(-0.5 * u * u) / np.sqrt(2 * np.pi)


def mills(u: Array) -> Array:
    r"""Mills' ratio, :math:`M(u) = \Phi(-u) / \phi(u) = \sqrt{\pi/2}\, \mathrm{erfcx}(u/\sqrt2)`.

    Examples
    --------
    >>> print(f"{mills(np.array(0.0)):.6f}")
    1.253314
    """
    return np.sqrt(np.pi / 2) * erfcx(u / np.sqrt(2))


def exponential_moment(k: int, mean: Array, deviation: Array) -> Array:
    r""":math:`E[e^{k z};\, z < 0]`, without overflow at any deviation.

    .. math:: e^{k m + k^2 s^2 / 2}\, \Phi(-v) = \phi(m/s)\, M(v), \qquad v = m/s + k s
    """
    v = mean / deviation + k * deviation
    exponent = np.minimum(k * mean + 0.5 * (k * deviation) ** 2, 0.0)
    below = np.exp(exponent) * ndtr(-np.minimum(v, 0.0))
    return np.where(v > 0, density(mean / deviation) * mills(np.maximum(v, 0.0)), below)


class HalfLine:
    r"""Integrals :math:`\int_0^\infty p(y)\, e^{-u y - y^2/2}\, dy` for an array of ``u >= 0``.

    Written in Mills' ratio they are differences of almost equal numbers where ``u`` is large or
    the rate of an exponential small. As integrals of a ``p`` with one sign they lose nothing to
    a Gauss rule.
    """

    def __init__(self, u: Array) -> None:
        self.u = u
        self.mills = mills(u)
        # Where the exponent has passed 42, even with the fastest growth that is asked for.
        v = u - 2 * _LARGEST_RATE
        end = 2 * _EXPONENT / (np.hypot(v, np.sqrt(2 * _EXPONENT)) + v)
        self._y = end[..., None] * _NODES
        kernel = np.exp(-u[..., None] * self._y - 0.5 * self._y**2)
        self._kernel = kernel * (end[..., None] * _WEIGHTS)

    def power(self, n: int) -> Array:
        """The integral for :math:`p = y^n`."""
        return (self._kernel * self._y**n).sum(-1)

    def exponential(self, rate: Array) -> tuple[Array, Array]:
        r"""The integrals for :math:`p = e^{r y} - 1` and for its square; ``r`` is at most 1/2."""
        slow = np.clip(rate, -_LARGEST_RATE, _LARGEST_RATE)
        growth = np.expm1(slow[..., None] * self._y)
        first = (self._kernel * growth).sum(-1)
        second = (self._kernel * growth**2).sum(-1)
        near, far = mills(self.u - np.minimum(rate, 0)), mills(self.u - 2 * np.minimum(rate, 0))
        steep = rate < -_LARGEST_RATE
        first = np.where(steep, near - self.mills, first)
        second = np.where(steep, far - 2 * near + self.mills, second)
        return first, second

r"""Expectations over a Gaussian of a function with features and kinks at known places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from freenergy.normalization.half_line import Array, density

__all__ = ["GaussianRule", "differentiate"]

_ORDER = 20
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(_ORDER)
# Beyond 38.5 deviations the density is zero in double precision.
_REACH = 39.0
_GAUSSIAN_EDGES = np.linspace(-_REACH, _REACH, 53)
_FINEST = -6  # the finest panel at a kink is 2**-6 wide


def _differentiation_matrix() -> Array:
    """Slopes at the nodes of the polynomial through values at the nodes."""
    difference = _NODES[:, None] - _NODES
    np.fill_diagonal(difference, 1.0)
    weight = 1 / difference.prod(1)
    matrix: Array = weight / weight[:, None] / difference
    np.fill_diagonal(matrix, 0.0)
    np.fill_diagonal(matrix, -matrix.sum(1))
    return matrix


_DIFFERENTIATION = _differentiation_matrix()


@dataclass(frozen=True, eq=False)
class GaussianRule:
    r"""Nodes and weights for :math:`E\,p(z)`, :math:`z = m + d`, one rule for each Gaussian.

    Gauss–Legendre panels of one and a half deviations around the mean, cut further at every kink
    and at distances :math:`2^j` from it. That resolves a kink, and any function that is smooth on
    the scale of the distance from its kinks, whatever the variance is.

    Attributes
    ----------
    index : Array of int, shape (n_panels,)
        Which Gaussian a panel belongs to.
    mean : Array of shape (n_panels, 1)
    deviate : Array of shape (n_panels, 20)
        :math:`y = (z - m)/s` at the nodes.
    scale : Array of shape (n_panels, 1)
        Standard deviation :math:`s`.
    weight : Array of shape (n_panels, 20)
    width : Array of shape (n_panels,)
        Widths of the panels in :math:`z`.
    size : int
        Number of Gaussians.
    """

    index: Array
    mean: Array
    deviate: Array
    scale: Array
    weight: Array
    width: Array
    size: int

    @classmethod
    def build(cls, mean: Array, deviation: Array, kinks: Sequence[float]) -> GaussianRule:
        """The rule for one-dimensional arrays of means and standard deviations."""
        farthest = float(np.max(np.abs(mean) + _REACH * deviation, initial=1.0))
        level = np.arange(_FINEST, int(np.ceil(np.log2(farthest))) + 1)
        distance = np.concatenate([-(2.0**level), [0.0], 2.0**level])
        edges = [np.broadcast_to(_GAUSSIAN_EDGES, (len(mean), len(_GAUSSIAN_EDGES)))]
        with np.errstate(over="ignore"):
            edges += [(k - mean[:, None] + distance) / deviation[:, None] for k in kinks]
        y = np.sort(np.clip(np.concatenate(edges, axis=1), -_REACH, _REACH), axis=1)
        low, high = y[:, :-1], y[:, 1:]
        index, panel = np.nonzero(high > low)
        low, high = low[index, panel, None], high[index, panel, None]
        deviate = low + (high - low) * ((_NODES + 1) / 2)
        weight = density(deviate) * _WEIGHTS * ((high - low) / 2)
        scale = deviation[index, None]
        width = (scale * (high - low))[:, 0]
        return cls(index, mean[index, None], deviate, scale, weight, width, len(mean))

    def expectation(self, values: Array) -> Array:
        """Sums over the nodes of each Gaussian, shape (size,)."""
        panel = (self.weight * values).sum(1)
        return np.bincount(self.index, weights=panel, minlength=self.size)

    def spread(self, values: Array) -> Array:
        """One value for each Gaussian, repeated along its panels, shape (n_panels, 1)."""
        return values[self.index, None]


def differentiate(function: Callable[[Array], Array], rule: GaussianRule) -> Array:
    r"""Derivative at the nodes of a rule, of the polynomials through the values on its panels.

    Values that are rounded to :math:`\epsilon` leave it an error of :math:`400\epsilon` over the
    width of the panel.
    """
    values = function(rule.mean + rule.scale * rule.deviate)
    slope: Array = values @ _DIFFERENTIATION.T / (rule.width[:, None] / 2)
    return slope

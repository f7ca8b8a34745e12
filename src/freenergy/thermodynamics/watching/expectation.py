r"""What the moment map expects of a layer, given its inputs and its weights.

From the mean :math:`\mu` and variance :math:`\nu` of the activations below, the sums
:math:`\omega`, :math:`\tau` of the weights as they are and the biases *b*, a pre-activation of a
wide layer has

.. math:: E z = \mu\,\omega + \bar b, \qquad
          \operatorname{Var} z = \nu\,\tau + \mu^2 \operatorname{Var}\omega + \operatorname{Var} b

over rows and units, when weights and inputs know nothing of each other. That is so at
initialisation; how far a trained layer is from it tells how much its weights have learned of their
inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freenergy.thermodynamics.watching.history import History

__all__ = ["DOMAINS", "Expectation", "domain", "expect"]

Array = NDArray[np.float64]

DOMAINS = {
    "theorem 1": "the map contracts towards mean 0 and variance 1",
    "theorem 2": "the variance is large and shrinks",
    "theorem 3": "the variance is small and grows",
    "outside": "nothing is promised",
}
"""Where a SELU layer can be, and what Klambauer et al. prove of it."""


@dataclass(frozen=True, eq=False)
class Expectation:
    """Predicted numbers of a layer, one for each record; NaN where nothing can be predicted.

    Attributes
    ----------
    mean, variance : ndarray
        Of the pre-activations.
    activation_mean, activation_variance : ndarray
        Behind the activation.
    gradient_variance : ndarray
        From that of the layer above, where only an activation and dropout lie between.
    """

    mean: Array
    variance: Array
    activation_mean: Array
    activation_variance: Array
    gradient_variance: Array


def expect(history: History, layer: int) -> Expectation:
    """What the moment map expects of one layer.

    Parameters
    ----------
    history : History
    layer : int
        Place among ``history.layers``.

    Returns
    -------
    Expectation
    """
    column = {
        name: history.series(layer, name)
        for name in (
            "input_mean", "input_variance", "weight_sum", "weight_sum_variance",
            "weight_square_sum", "bias_mean", "bias_variance",
            "norm_scale", "norm_shift", "norm_shift_variance",
        )
    }  # fmt: skip
    with np.errstate(over="ignore", invalid="ignore"):
        mean = column["input_mean"] * column["weight_sum"] + column["bias_mean"]
        variance = (
            column["input_variance"] * column["weight_square_sum"]
            + column["input_mean"] ** 2 * column["weight_sum_variance"]
            + column["bias_variance"]
        )
    if history.layers[layer].normalization:
        mean = column["norm_shift"]
        variance = column["norm_scale"] + column["norm_shift_variance"]
    nothing = np.full(len(mean), np.nan)
    theory = history.layers[layer].theory
    usable = np.isfinite(mean) & np.isfinite(variance)
    after_mean, after_variance, gradient = nothing, nothing.copy(), nothing.copy()
    if theory is not None and usable.any():
        response = theory.response(mean[usable], variance[usable])
        after_mean, slope = nothing.copy(), nothing.copy()
        after_mean[usable], after_variance[usable] = response.mean, response.variance
        slope[usable] = response.square_slope
        gradient = slope * _from_above(history, layer)
    return Expectation(mean, variance, after_mean, after_variance, gradient)


def _from_above(history: History, layer: int) -> Array:
    """Variance of the gradient that the layer above sends down to these activations."""
    nothing = np.full(len(history.records), np.nan)
    above = [i for i, other in enumerate(history.layers) if other.below == layer]
    if len(above) != 1 or history.layers[above[0]].normalization:
        return nothing
    other = history.layers[above[0]]
    tau = history.series(above[0], "weight_square_sum")
    return history.series(above[0], "gradient_variance") * tau * other.reach * other.gain


def domain(mean: float, variance: float, weight_sum: float, weight_square_sum: float) -> str:
    r"""In which domain of the theorems on SELU a layer is, a key of :data:`DOMAINS`.

    Parameters
    ----------
    mean, variance : float
        Of the layer's inputs, :math:`\mu` and :math:`\nu`.
    weight_sum, weight_square_sum : float
        Means over units, :math:`\omega` and :math:`\tau`. Those of a single unit with random
        weights scatter: its own :math:`\omega` has a standard deviation of about one.

    References
    ----------
    Klambauer et al., *Self-normalizing neural networks*, arXiv:1706.02515, theorems 1-3.

    Examples
    --------
    >>> domain(0.0, 1.0, 0.0, 1.0), domain(0.0, 4.0, 0.0, 1.0), domain(0.0, 0.1, 0.0, 1.0)
    ('theorem 1', 'theorem 2', 'theorem 3')
    >>> domain(0.0, 1.0, 0.0, 1 / 3)
    'outside'
    """
    tau = weight_square_sum
    if not abs(weight_sum) <= 0.1:
        return "outside"
    if abs(mean) <= 0.1 and 0.8 <= variance <= 1.5 and 0.95 <= tau <= 1.1:
        return "theorem 1"
    if abs(mean) <= 1 and 3 <= variance <= 16 and 0.8 <= tau <= 1.25:
        return "theorem 2"
    small = 0.02 <= variance <= 0.16 and 0.8 <= tau <= 1.25
    if abs(mean) <= 0.1 and (small or (0.02 <= variance <= 0.24 and 0.9 <= tau <= 1.25)):
        return "theorem 3"
    return "outside"

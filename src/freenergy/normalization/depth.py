r"""Mean, variance and gradient of a deep net at initialisation, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from freenergy.normalization.activations import get_activation
from freenergy.normalization.fluctuations import (
    LayerNoise,
    gradient_spread,
    layer_noise,
    signal_spread,
)
from freenergy.normalization.half_line import Array
from freenergy.normalization.moments import ActivationLike, backward_gain, moment_map

__all__ = ["INITIALIZATIONS", "DepthProfile", "predict_depth"]

_WEIGHT_VARIANCE: dict[str, Callable[[float, float], float]] = {
    "lecun_normal": lambda n_in, n_out: 1 / n_in,
    "he_normal": lambda n_in, n_out: 2 / n_in,
    "glorot_normal": lambda n_in, n_out: 2 / (n_in + n_out),
    "torch_default": lambda n_in, n_out: 1 / (3 * n_in),
}

INITIALIZATIONS = tuple(_WEIGHT_VARIANCE)
"""Names that :func:`predict_depth` knows; the first three also without ``_normal``."""

_SHORT = {name.removesuffix("_normal"): name for name in INITIALIZATIONS if "_normal" in name}


@dataclass(frozen=True, eq=False)
class DepthProfile:
    """What an untrained net does to a signal, entry 0 for the input and one more for each layer.

    Attributes
    ----------
    mean, variance : Array of shape (depth + 1,)
        Of the activations, over units and inputs together.
    gradient_variance : Array of shape (depth + 1,)
        Of the gradient with respect to them, in units of that at the last layer.
    signal_spread : Array of shape (depth + 1,) or None
        Standard deviation over nets of the given width of the logarithm of the second moment
        (variance and squared mean together), for one input. None where no width was given.
    gradient_spread : Array of shape (depth + 1,) or None
        The same of the gradient's variance.
    """

    mean: Array
    variance: Array
    gradient_variance: Array
    signal_spread: Array | None = None
    gradient_spread: Array | None = None

    def __repr__(self) -> str:
        return (
            f"DepthProfile(depth={len(self.mean) - 1}, mean={self.mean[-1]:.4g}, "
            f"variance={self.variance[-1]:.4g}, "
            f"gradient_variance[0]={self.gradient_variance[0]:.4g})"
        )


def predict_depth(
    activation: ActivationLike,
    init: str | tuple[float, float] = "lecun_normal",
    depth: int = 32,
    *,
    mean: float = 0.0,
    variance: float = 1.0,
    n_in: int | None = None,
    width: int | None = None,
) -> DepthProfile:
    r"""Moments of activations and gradients through a wide net at initialisation.

    An initialisation by name draws independent weights, whose sum fluctuates from unit to unit
    by as much as the sum of their squares: :math:`z \sim N(0, \tau(\nu + \mu^2))` over units and
    inputs. The part :math:`\tau\mu^2` is constant over the inputs of one unit. A pair stands for
    weights with exactly these sums, :math:`z \sim N(\mu\omega, \nu\tau)`. Gradients go back by
    :math:`n_\text{out} \sigma_w^2\, E f'^2` a layer.

    These are averages over nets. The logarithms of the second moment and of the gradient's variance
    in a single net of finite width stray from them: without a stable fixed point as far as a random
    walk, for ReLU by :math:`\sqrt{5\,\text{depth}/\text{width}}`. With ``width`` the profile has
    these deviations, for one input; an average over inputs that differ strays less. Biases are
    zero.

    Parameters
    ----------
    activation : str, Activation or callable
    init : {"lecun_normal", "he_normal", "glorot_normal", "torch_default"} or pair of floats
        Weight variances :math:`1/n_\text{in}`, :math:`2/n_\text{in}`,
        :math:`2/(n_\text{in} + n_\text{out})`, :math:`1/(3 n_\text{in})`; or
        :math:`(\omega, \tau)`, the same in every layer. ``"lecun"``, ``"he"`` and ``"glorot"``,
        the names of :class:`freenergy.MLPClassifier`, are the first three: the variance counts,
        not the shape (there Glorot's for sigmoids is a third of that).
    depth : int, default=32
        Number of layers.
    mean, variance : float
        Of the input.
    n_in, width : int, optional
        Number of inputs, and of units in each layer; ``n_in`` is ``width`` by default.

    Returns
    -------
    DepthProfile

    Raises
    ------
    ValueError
        When the initialisation is not known, or the number of inputs is given without a width.

    References
    ----------
    Poole et al., *Exponential expressivity in deep neural networks through transient chaos*,
    arXiv:1606.05340; Schoenholz et al., *Deep information propagation*, arXiv:1611.01232; Hanin and
    Rolnick, *How to start training*, arXiv:1803.01719, for the effect of a finite width.

    Examples
    --------
    >>> predict_depth("selu")
    DepthProfile(depth=32, mean=..., variance=1, gradient_variance[0]=9.135)
    >>> predict_depth("selu", "torch_default").variance[-1] < 1e-5
    np.True_
    >>> print(f"{predict_depth('relu', 'he_normal', width=1024).signal_spread[-1]:.2f}")
    0.40
    """
    if n_in is not None and width is None:
        raise ValueError(f"n_in={n_in} needs the width of the layers too")
    f = get_activation(activation)
    moments = [(float(mean), float(variance))]
    gains = []
    noise: list[LayerNoise] = []
    for layer in range(depth):
        ratio = 1.0 if width is None or n_in is None or layer else width / n_in
        omega, tau, fluctuation = _weight_sums(init, ratio)
        here = (*moments[-1], omega, tau, fluctuation)
        # backward_gain counts the incoming weights; a unit below has `ratio` times as many.
        gains.append(float(backward_gain(f, *here)) * ratio)
        after = moment_map(f, *here)
        if width is not None:
            mu, nu = moments[-1]
            noise.append(layer_noise(f, mu * omega, nu * tau + mu**2 * fluctuation))
        moments.append((float(after.mean), float(after.variance)))
    means, variances = np.array(moments).T
    gradient = np.append(np.cumprod(gains[::-1])[::-1], 1.0)
    if width is None:
        return DepthProfile(means, variances, gradient)
    spreads = signal_spread(noise, width), gradient_spread(noise, width)
    return DepthProfile(means, variances, gradient, *spreads)


def _weight_sums(init: str | tuple[float, float], ratio: float) -> tuple[float, float, float]:
    """Sum, squared sum, and variance of the sum, with ``ratio`` outputs to an input."""
    if not isinstance(init, str):
        return float(init[0]), float(init[1]), 0.0
    init = _SHORT.get(init, init)
    if init not in _WEIGHT_VARIANCE:
        known = ", ".join(repr(name) for name in INITIALIZATIONS)
        raise ValueError(f"unknown init {init!r}: use one of {known}, or the sums (omega, tau)")
    tau = _WEIGHT_VARIANCE[init](1.0, ratio)
    return 0.0, tau, tau

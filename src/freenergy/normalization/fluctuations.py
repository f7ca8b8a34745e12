r"""How far one net of finite width strays from the moment map, the average over nets.

Given the layer below, the units of a layer are independent draws, so that the mean of their squares
has a relative error of :math:`\sqrt{c/n}`. The next layer scales the deviation of the logarithm by
:math:`k = \partial\ln E f^2/\partial\ln q` and adds its own.

No module here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from freenergy.normalization.activations import Activation, CallableActivation
from freenergy.normalization.half_line import Array
from freenergy.normalization.moments import moment_jacobian, moment_map

__all__ = ["LayerNoise", "gradient_spread", "layer_noise", "signal_spread"]


@dataclass(frozen=True)
class LayerNoise:
    r"""What one layer does to deviations, for :math:`z \sim N(m, x)`, times its width.

    Attributes
    ----------
    forward, backward : float
        Variance of the logarithm of :math:`\sum f^2` and of :math:`\sum f'^2 g^2` over :math:`n`
        units, :math:`g` normal: :math:`E f^4/(E f^2)^2 - 1` and
        :math:`3 E f'^4/(E f'^2)^2 - 1`.
    both : float
        Their covariance.
    forward_slope, backward_slope : float
        :math:`\partial\ln E f^2/\partial\ln x` and :math:`\partial\ln E f'^2/\partial\ln x`.
    """

    forward: float
    backward: float
    both: float
    forward_slope: float
    backward_slope: float


def layer_noise(activation: Activation, mean: float, variance: float) -> LayerNoise:
    """The deviations of a layer whose pre-activations have this mean and variance.

    All are NaN where the layer's signal is zero, as far as double precision shows.

    Examples
    --------
    >>> from freenergy.normalization import get_activation
    >>> noise = layer_noise(get_activation("relu"), 0.0, 1.0)
    >>> print(f"{noise.forward:.1f} {noise.backward:.1f} {noise.both:.1f}")
    5.0 5.0 1.0
    """
    kinks = getattr(activation, "kinks", (0.0,))

    def expected(function: CallableActivation) -> tuple[float, float, float]:
        """Mean, variance, and the slope of the mean in the variance of z."""
        moments = moment_map(function, mean, variance, 1.0, 1.0)
        slope = moment_jacobian(function, mean, variance, 1.0, 1.0)[0, 1]
        return float(moments.mean), float(moments.variance), float(slope)

    # In units of its own size, since the fourth power of a faint signal underflows.
    signal = moment_map(activation, mean, variance, 1.0, 1.0)
    size = float(np.hypot(signal.mean, np.sqrt(signal.variance)))
    if size == 0:
        return LayerNoise(*[np.nan] * 5)

    def square(z: Array) -> Array:
        return (activation(z) / size) ** 2

    def slope_square(z: Array) -> Array:
        return activation.derivative(z) ** 2

    f2, f4, f2_slope = expected(CallableActivation(square, kinks=kinks))
    d2, d4, d2_slope = expected(CallableActivation(slope_square, kinks=kinks))
    product, _, _ = expected(CallableActivation(lambda z: square(z) * slope_square(z), kinks=kinks))
    return LayerNoise(
        forward=f4 / f2**2,
        backward=3 * d4 / d2**2 + 2,
        both=product / (f2 * d2) - 1,
        forward_slope=variance * f2_slope / f2,
        backward_slope=variance * d2_slope / d2,
    )


def signal_spread(layers: list[LayerNoise], width: int) -> Array:
    """Standard deviation over nets of ln E h², entry 0 for the input."""
    variances = [0.0]
    for layer in layers:
        variances.append(layer.forward_slope**2 * variances[-1] + layer.forward / width)
    return np.sqrt(variances)


def gradient_spread(layers: list[LayerNoise], width: int) -> Array:
    """Standard deviation over nets of the logarithm of a gradient's variance, entry 0 for inputs.

    A deviation of the signal in one layer changes the slopes in all that follow it.
    """
    depth = len(layers)
    spread = np.zeros(depth + 1)
    # What a unit deviation of the signal behind a layer makes of the slopes above it.
    echo, above = np.zeros(depth + 1), 0.0
    for here in range(depth - 1, -1, -1):
        layer = layers[here]
        above = layer.backward_slope + layer.forward_slope * above
        echo[here] = above
    passed = 0.0  # the noise of the layers above, and its echoes there
    for here in range(depth - 1, -1, -1):
        layer, after = layers[here], echo[here + 1]
        passed += (layer.backward + 2 * after * layer.both + after**2 * layer.forward) / width
        spread[here] = passed
    below = signal_spread(layers, width)
    return np.sqrt(spread + (echo * below) ** 2)

r"""Activation functions and what they do to a Gaussian: mean, variance and their slopes.

Each activation answers :meth:`Activation.response` for pre-activations
:math:`z \sim N(m, x)`, elementwise on arrays: in closed form where the function is piecewise
linear or exponential, by quadrature otherwise. A variance is never the difference of a second
moment and a squared mean: it is taken around :math:`f(m)`, so that a tiny one keeps its relative
accuracy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, ndtr

from freenergy.normalization.half_line import (
    Array,
    HalfLine,
    density,
    exponential_moment,
    mills,
)
from freenergy.normalization.quadrature import GaussianRule, differentiate

__all__ = [
    "SELU_ALPHA",
    "SELU_SCALE",
    "Activation",
    "CallableActivation",
    "GaussianResponse",
    "PiecewiseLinear",
    "ScaledELU",
    "Sigmoid",
    "Tanh",
    "get_activation",
]

SELU_ALPHA = 1.6732632423543773
SELU_SCALE = 1.0507009873554805

_SMALLEST_DEVIATION = 1e-150  # its square is still a number
_LARGEST_RATIO = 1e100  # |m|/s, whose square is still a number
_SERIES = 0.5  # deviation below which differences of exponentials are taken by quadrature


@dataclass(frozen=True, eq=False)
class GaussianResponse:
    r"""What :math:`f(z)` does with :math:`z \sim N(m, x)`; each attribute has the shape of *m*.

    Attributes
    ----------
    mean : Array
        :math:`E f`.
    variance : Array
        :math:`\operatorname{Var} f`.
    slope : Array
        :math:`E f' = \partial_m E f`.
    curvature : Array
        :math:`E f'' = 2\,\partial_x E f`, in which a kink counts as a delta function.
    square_slope : Array
        :math:`E f'^2`, which multiplies the variance of a gradient on its way back.
    covariance : Array
        :math:`\operatorname{Cov}(f, f') = \tfrac12 \partial_m \operatorname{Var} f`.
    variance_slope : Array
        :math:`\partial_x \operatorname{Var} f = E f'^2 + \operatorname{Cov}(f, f'')`.
    """

    mean: Array
    variance: Array
    slope: Array
    curvature: Array
    square_slope: Array
    covariance: Array
    variance_slope: Array


class Activation(ABC):
    """A function of a unit's pre-activation, on NumPy arrays, and its moments over a Gaussian."""

    name: str
    _chunk = 8192  # Gaussians whose nodes are held in memory at a time

    @abstractmethod
    def __call__(self, z: ArrayLike) -> Array:
        """Value :math:`f(z)`."""

    @abstractmethod
    def derivative(self, z: ArrayLike) -> Array:
        """Derivative :math:`f'(z)`; at a kink, that of the left side."""

    @abstractmethod
    def _respond(self, mean: Array, deviation: Array) -> GaussianResponse:
        """The response for one-dimensional arrays and deviations above zero."""

    def response(self, mean: ArrayLike, variance: ArrayLike) -> GaussianResponse:
        r"""Moments of :math:`f(z)`, :math:`z \sim N(m, x)`, with their derivatives.

        Parameters
        ----------
        mean, variance : array-like
            :math:`m` and :math:`x \ge 0`, broadcast against each other; computed in double
            precision whatever theirs is.

        Returns
        -------
        GaussianResponse

        Raises
        ------
        ValueError
            When a variance is negative or not a number.

        Examples
        --------
        >>> response = get_activation("relu").response(0.0, 1.0)
        >>> print(f"{response.mean:.6f} {response.variance:.6f} {response.square_slope}")
        0.398942 0.340845 0.5
        """
        m, x = np.broadcast_arrays(
            np.asarray(mean, dtype=np.float64), np.asarray(variance, dtype=np.float64)
        )
        if not (x >= 0).all():
            raise ValueError(f"a variance must be zero or more, got {float(x[~(x >= 0)][0])}")
        s = np.maximum(np.sqrt(x), _SMALLEST_DEVIATION)
        cuts = range(self._chunk, m.size, self._chunk)
        chunks = [
            self._respond(*chunk)
            for chunk in zip(np.split(m.ravel(), cuts), np.split(s.ravel(), cuts), strict=True)
        ]
        parts = {
            f.name: np.concatenate([getattr(c, f.name) for c in chunks]).reshape(m.shape)[()]
            for f in fields(GaussianResponse)
        }
        parts["variance"] = np.where(x > 0, parts["variance"], 0.0)[()]
        return GaussianResponse(**parts)


def _by_side(
    mean: Array,
    deviation: Array,
    below: Callable[[Array, Array], GaussianResponse],
    above: Callable[[Array, Array], GaussianResponse],
) -> GaussianResponse:
    """One response from those of the negative means and of the others."""
    negative = mean < 0
    parts: dict[str, Array] = {f.name: np.empty_like(mean) for f in fields(GaussianResponse)}
    for side, respond in ((negative, below), (~negative, above)):
        response = respond(mean[side], deviation[side])
        for name, whole in parts.items():
            whole[side] = getattr(response, name)
    return GaussianResponse(**parts)


@dataclass(frozen=True)
class PiecewiseLinear(Activation):
    r"""A kink at zero, :math:`f(z) = a z` below and :math:`f(z) = b z` above.

    With :math:`a = 0, b = 1` it is ReLU, with a small *a* the leaky one, with :math:`a = b` linear.

    Parameters
    ----------
    negative_slope, positive_slope : float
    name : str

    Examples
    --------
    >>> get_activation("leaky_relu")(np.array([-2.0, 3.0]))
    array([-0.02,  3.  ])
    """

    negative_slope: float = 0.0
    positive_slope: float = 1.0
    name: str = "piecewise_linear"

    def __call__(self, z: ArrayLike) -> Array:
        z = np.asarray(z)
        return np.where(z > 0, self.positive_slope * z, self.negative_slope * z)

    def derivative(self, z: ArrayLike) -> Array:
        return np.where(np.asarray(z) > 0, self.positive_slope, self.negative_slope)

    def _respond(self, mean: Array, deviation: Array) -> GaussianResponse:
        a, b = self.negative_slope, self.positive_slope
        return _by_side(
            mean,
            deviation,
            lambda m, s: _bent_line(m, s, a, b, 1.0),
            lambda m, s: _bent_line(m, s, b, a, -1.0),
        )


def _bent_line(m: Array, s: Array, near: float, far: float, sign: float) -> GaussianResponse:
    """Two slopes: the one on the side of the mean, and the one beyond the kink, at ``sign`` z."""
    u = np.minimum(np.abs(m) / s, _LARGEST_RATIO)
    half, phi, jump = HalfLine(u), density(u), far - near
    first, second = half.power(1), half.power(2)
    beyond = phi * half.mills  # the probability of the far side
    shift = jump * s * phi * first
    # Around f(m): s y on the near side; far s y' + near |m| on the other.
    far_first = phi * (far * s * first + near * np.abs(m) * half.mills)
    far_second = phi * (
        (far * s) ** 2 * second
        + 2 * far * near * s * np.abs(m) * first
        + (near * m) ** 2 * half.mills
    )
    near_second = (near * s) ** 2 * (ndtr(u) - u * phi)
    slope = near * ndtr(u) + far * beyond
    square_slope = near**2 * ndtr(u) + far**2 * beyond
    mean = near * m + sign * shift
    curvature = sign * jump * phi / s
    return GaussianResponse(
        mean=mean,
        variance=near_second + far_second - shift**2,
        slope=slope,
        curvature=curvature,
        square_slope=square_slope,
        covariance=sign * jump * (far_first - shift * beyond),
        variance_slope=square_slope - mean * curvature,
    )


@dataclass(frozen=True)
class ScaledELU(Activation):
    r"""Exponential linear unit, :math:`\lambda z` above zero, :math:`\lambda\alpha(e^z - 1)` below.

    Parameters
    ----------
    alpha : float
        :math:`\alpha \ge 0`.
    scale : float
        :math:`\lambda`.
    name : str

    Raises
    ------
    ValueError
        When ``alpha`` is negative: the function would not be monotone.

    References
    ----------
    Clevert, Unterthiner, Hochreiter, *Fast and accurate deep network learning by exponential
    linear units*, arXiv:1511.07289; Klambauer et al., *Self-normalizing neural networks*,
    arXiv:1706.02515.

    Examples
    --------
    >>> get_activation("selu")(np.array([-1e4, 0.0, 1.0])).round(4)
    array([-1.7581,  0.    ,  1.0507])
    """

    alpha: float = 1.0
    scale: float = 1.0
    name: str = "scaled_elu"

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise ValueError(f"alpha must be zero or more, got {self.alpha}")

    def __call__(self, z: ArrayLike) -> Array:
        z = np.asarray(z)
        return self.scale * np.where(z > 0, z, self.alpha * np.expm1(np.minimum(z, 0)))

    def derivative(self, z: ArrayLike) -> Array:
        z = np.asarray(z)
        return self.scale * np.where(z > 0, 1.0, self.alpha * np.exp(np.minimum(z, 0)))

    def _respond(self, mean: Array, deviation: Array) -> GaussianResponse:
        unit = _by_side(mean, deviation, self._on_exponential, self._on_line)
        scale = self.scale
        return GaussianResponse(
            mean=scale * unit.mean,
            variance=scale**2 * unit.variance,
            slope=scale * unit.slope,
            curvature=scale * unit.curvature,
            square_slope=scale**2 * unit.square_slope,
            covariance=scale**2 * unit.covariance,
            variance_slope=scale**2 * unit.variance_slope,
        )

    def _on_line(self, m: Array, s: Array) -> GaussianResponse:
        r"""At :math:`\lambda = 1` and a mean above zero: around :math:`f(m) = m`."""
        alpha, u = self.alpha, np.minimum(m / s, _LARGEST_RATIO)
        half, phi = HalfLine(u), density(u)
        e1, e2 = half.exponential(-s)
        shift = phi * (alpha * e1 + s * half.power(1))
        square = s**2 * (ndtr(u) - u * phi) + phi * (
            alpha**2 * e2 - 2 * alpha * m * e1 + m**2 * half.mills
        )
        # f' is 1 but beyond the kink, where it is alpha e^z.
        excess = phi * ((alpha - 1) * half.mills + alpha * e1)
        product = phi * (
            alpha**2 * e2 + alpha * (alpha - 1 - m) * e1 - m * (alpha - 1) * half.mills
        )
        square_slope = ndtr(u) + alpha**2 * phi * mills(u + 2 * s)
        curvature = phi * (alpha * mills(u + s) + (1 - alpha) / s)
        return GaussianResponse(
            mean=m + shift,
            variance=square - shift**2,
            slope=ndtr(u) + alpha * phi * mills(u + s),
            curvature=curvature,
            square_slope=square_slope,
            covariance=product - shift * excess,
            variance_slope=square_slope + alpha**2 * phi * (e1 + e2) - (m + shift) * curvature,
        )

    def _on_exponential(self, m: Array, s: Array) -> GaussianResponse:
        r"""At :math:`\lambda = 1` and a mean below zero: around :math:`f(m)` or :math:`-\alpha`."""
        alpha = self.alpha
        u = np.minimum(-m / s, _LARGEST_RATIO)
        half, phi = HalfLine(u), density(u)
        first, second = exponential_moment(1, m, s), exponential_moment(2, m, s)
        slope = alpha * first + phi * half.mills
        square_slope = alpha**2 * second + phi * half.mills
        # Around -alpha, f is its own derivative below zero.
        above = alpha * first + phi * (s * half.power(1) + alpha * half.mills)
        square = alpha**2 * second + phi * (
            s**2 * half.power(2) + 2 * alpha * s * half.power(1) + alpha**2 * half.mills
        )
        product = alpha**2 * second + phi * (s * half.power(1) + alpha * half.mills)
        narrow = s < _SERIES
        shift, variance, covariance = self._near_own_value(m, np.minimum(s, _SERIES), half, phi)
        above = np.where(narrow, alpha * np.exp(m) + shift, above)
        mean = np.where(narrow, alpha * np.expm1(m) + shift, above - alpha)
        kink = (1 - alpha) * phi / s
        return GaussianResponse(
            mean=mean,
            variance=np.where(narrow, variance, square - above**2),
            slope=slope,
            curvature=alpha * first + kink,
            square_slope=square_slope,
            covariance=np.where(narrow, covariance, product - above * slope),
            variance_slope=square_slope + alpha * (alpha * second - above * first) - mean * kink,
        )

    def _near_own_value(
        self, m: Array, s: Array, half: HalfLine, phi: Array
    ) -> tuple[Array, Array, Array]:
        r""":math:`E f - f(m)`, :math:`\operatorname{Var} f`, :math:`\operatorname{Cov}(f, f')`.

        For a narrow Gaussian: the exponential over the whole line, less what it would have had
        above zero, where the line has its place.
        """
        alpha, e, em = self.alpha, np.exp(m), np.expm1(m)
        e1, e2 = half.exponential(s)
        whole1 = np.expm1(0.5 * s**2)
        whole2 = np.expm1(2 * s**2) - 2 * whole1
        below1 = alpha * (e * whole1 - phi * (e1 - em * half.mills))
        below2 = alpha**2 * (e**2 * whole2 - phi * (e2 - 2 * em * e1 + em**2 * half.mills))
        above1 = phi * (s * half.power(1) - alpha * em * half.mills)
        above2 = phi * (
            s**2 * half.power(2)
            - 2 * alpha * em * s * half.power(1)
            + (alpha * em) ** 2 * half.mills
        )
        shift = below1 + above1
        excess = below1 + (1 - alpha * e) * phi * half.mills
        product = below2 + (1 - alpha * e) * above1
        return shift, below2 + above2 - shift**2, product - shift * excess


class _Integrated(Activation):
    """An activation whose moments are taken by quadrature, and their slopes by Stein's lemma."""

    kinks: tuple[float, ...] = (0.0,)
    _chunk = 256

    def increment(self, m: Array, d: Array) -> Array:
        """:math:`f(m + d) - f(m)`."""
        return self(m + d) - self(m)

    def _slope_at(self, rule: GaussianRule) -> Array:
        return self.derivative(rule.mean + rule.scale * rule.deviate)

    def _respond(self, mean: Array, deviation: Array) -> GaussianResponse:
        r"""By :math:`\partial_m E p = E[y p]/s` and :math:`\partial_x E p = E[(y^2-1) p]/2x`."""
        m, s = mean, deviation
        rule = GaussianRule.build(m, s, self.kinks)
        y = rule.deviate
        g = self.increment(rule.mean, rule.scale * y)
        if not np.isfinite(g).all():
            z = float((rule.mean + rule.scale * y)[~np.isfinite(g)][0])
            raise ValueError(f"activation {self.name!r} must be finite everywhere, not so at {z}")
        shift = rule.expectation(g)
        square = (g - rule.spread(shift)) ** 2
        return GaussianResponse(
            mean=self(m) + shift,
            variance=rule.expectation(square),
            slope=rule.expectation(y * g) / s,
            curvature=rule.expectation((y**2 - 1) * g) / s**2,
            square_slope=rule.expectation(self._slope_at(rule) ** 2),
            covariance=rule.expectation(y * square) / (2 * s),
            variance_slope=rule.expectation((y**2 - 1) * square) / (2 * s**2),
        )


@dataclass(frozen=True)
class Sigmoid(_Integrated):
    r"""Logistic function, :math:`f(z) = 1 / (1 + e^{-z})`.

    Examples
    --------
    >>> response = Sigmoid().response(0.0, 1.0)
    >>> float(response.mean)
    0.5
    """

    name: str = "sigmoid"

    def __call__(self, z: ArrayLike) -> Array:
        value: Array = expit(np.asarray(z))
        return value

    def derivative(self, z: ArrayLike) -> Array:
        z = np.asarray(z)
        value: Array = expit(z) * expit(-z)
        return value

    def increment(self, m: Array, d: Array) -> Array:
        # 1 - exp(-|d|) times the two tails: no difference of nearly equal values.
        low, high = np.minimum(m, m + d), np.maximum(m, m + d)
        value: Array = -np.sign(d) * np.expm1(-np.abs(d)) * expit(high) * expit(-low)
        return value


@dataclass(frozen=True)
class Tanh(_Integrated):
    r"""Hyperbolic tangent, :math:`f(z) = 2\sigma(2z) - 1`."""

    name: str = "tanh"

    def __call__(self, z: ArrayLike) -> Array:
        return np.tanh(np.asarray(z))

    def derivative(self, z: ArrayLike) -> Array:
        return 4 * Sigmoid().derivative(2 * np.asarray(z))

    def increment(self, m: Array, d: Array) -> Array:
        return 2 * Sigmoid().increment(2 * m, 2 * d)


@dataclass(frozen=True)
class CallableActivation(_Integrated):
    r"""Any function of a NumPy array, by quadrature.

    A variance is good to the rounding of the function's values over their spread; where the
    deviation falls below 1e-4 give the slope too, which is otherwise that of the polynomials
    through the function's values.

    Parameters
    ----------
    function : callable
        Elementwise, finite to 39 deviations from the mean, and smooth on the scale of the
        distance from its kinks.
    slope : callable, optional
        Its derivative.
    kinks : tuple of float, default=(0,)
        Where the function bends or has its finest features.
    name : str

    Examples
    --------
    >>> square = CallableActivation(np.square)
    >>> response = square.response(0.0, 1.0)
    >>> print(f"{response.mean:.6f} {response.variance:.6f} {response.square_slope:.6f}")
    1.000000 2.000000 4.000000
    """

    function: Callable[[Array], Array]
    slope: Callable[[Array], Array] | None = None
    kinks: tuple[float, ...] = (0.0,)
    name: str = "callable"

    def __call__(self, z: ArrayLike) -> Array:
        return np.asarray(self.function(np.asarray(z, dtype=np.float64)))

    def derivative(self, z: ArrayLike) -> Array:
        if self.slope is None:
            raise ValueError(f"activation {self.name!r} has no derivative: give it a slope")
        return np.asarray(self.slope(np.asarray(z, dtype=np.float64)))

    def _slope_at(self, rule: GaussianRule) -> Array:
        return differentiate(self, rule) if self.slope is None else super()._slope_at(rule)


_ACTIVATIONS: dict[str, Activation] = {
    "identity": PiecewiseLinear(1.0, 1.0, "identity"),
    "relu": PiecewiseLinear(0.0, 1.0, "relu"),
    "leaky_relu": PiecewiseLinear(0.01, 1.0, "leaky_relu"),
    "elu": ScaledELU(1.0, 1.0, "elu"),
    "selu": ScaledELU(SELU_ALPHA, SELU_SCALE, "selu"),
    "logistic": Sigmoid("logistic"),
    "sigmoid": Sigmoid(),
    "tanh": Tanh(),
}


def get_activation(activation: str | Activation | Callable[[Array], Array]) -> Activation:
    """The activation of that name; a callable is wrapped, an :class:`Activation` is returned.

    Raises
    ------
    ValueError
        When no activation has that name.

    Examples
    --------
    >>> get_activation("selu")
    ScaledELU(alpha=1.67326324235437..., scale=1.0507009873554805, name='selu')
    """
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, str):
        if activation in _ACTIVATIONS:
            return _ACTIVATIONS[activation]
        known = ", ".join(repr(name) for name in _ACTIVATIONS)
        raise ValueError(f"unknown activation {activation!r}: use one of {known} or a function")
    return CallableActivation(activation, name=getattr(activation, "__name__", "callable"))

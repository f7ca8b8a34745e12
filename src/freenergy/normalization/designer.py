r"""Designing self-normalisation: the scaled ELU of a wanted fixed point, and its dropout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from freenergy.normalization.activations import SELU_ALPHA, SELU_SCALE, ScaledELU
from freenergy.normalization.half_line import Array, HalfLine, density, exponential_moment

__all__ = ["AlphaDropout", "SELUParameters", "alpha_dropout", "design_selu"]

_NARROW = 0.5  # deviation below which 1 - exp(z) is taken as one function, not as a difference


@dataclass(frozen=True)
class SELUParameters:
    r"""Parameters of :math:`\lambda z` above zero, :math:`\lambda\alpha(e^z - 1)` below."""

    alpha: float
    scale: float

    @property
    def activation(self) -> ScaledELU:
        """The function itself."""
        return ScaledELU(self.alpha, self.scale)


def design_selu(
    mean: float = 0.0,
    variance: float = 1.0,
    weight_sum: float = 0.0,
    weight_square_sum: float = 1.0,
) -> SELUParameters:
    r"""The scaled ELU whose moment map has a given fixed point.

    With :math:`A, P` the first two moments of :math:`z_+` and :math:`B, Q` those of
    :math:`(1 - e^z)\,1_{z<0}`, a fixed point demands

    .. math::

        \frac{A - \alpha B}{\sqrt{P + \alpha^2 Q}} = k = \frac{\mu}{\sqrt{\nu + \mu^2}}, \qquad
        \lambda = \sqrt{\frac{\nu + \mu^2}{P + \alpha^2 Q}}

    The left side falls with :math:`\alpha`, so there is one solution or none. Whether the fixed
    point is stable is another question: see :func:`fixed_point`.

    Parameters
    ----------
    mean, variance : float
        The wanted fixed point.
    weight_sum, weight_square_sum : float
        Of a unit's incoming weights, :math:`\omega` and :math:`\tau`.

    Returns
    -------
    SELUParameters

    Raises
    ------
    ValueError
        When the variance or ``weight_square_sum`` is not positive, or when no
        :math:`\alpha \ge 0` gives this mean at this variance.

    References
    ----------
    Klambauer et al., *Self-normalizing neural networks*, arXiv:1706.02515, equation 14.

    Examples
    --------
    >>> parameters = design_selu()
    >>> print(f"{parameters.alpha:.12f} {parameters.scale:.12f}")
    1.673263242354 1.050700987355
    """
    for name, value in (("variance", variance), ("weight_square_sum", weight_square_sum)):
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    m, s = np.asarray(mean * weight_sum), np.asarray(np.sqrt(variance * weight_square_sum))
    line1, line2, bend1, bend2 = (float(v) for v in _sides(m, s))
    k = mean / np.sqrt(variance + mean**2)
    highest, lowest = line1 / np.sqrt(line2), -bend1 / np.sqrt(bend2)
    if not lowest < k <= highest:
        raise ValueError(
            f"no scaled ELU has the mean {mean:g} at the variance {variance:g}: the mean over the "
            f"root of the second moment must be from {lowest:.4g} to {highest:.4g}, got {k:.4g}"
        )
    root = np.sqrt(bend1**2 * line2 + bend2 * line1**2 - k**2 * line2 * bend2)
    # Of the two forms of the root, the one that adds.
    if k >= 0:
        alpha = (line1**2 - k**2 * line2) / (line1 * bend1 + k * root)
    else:
        alpha = (line1 * bend1 - k * root) / (bend1**2 - k**2 * bend2)
    alpha = max(float(alpha), 0.0)
    scale = np.sqrt((variance + mean**2) / (line2 + alpha**2 * bend2))
    return SELUParameters(alpha, float(scale))


def _sides(m: Array, s: Array) -> tuple[Array, Array, Array, Array]:
    r"""First two moments of :math:`z_+`, then of :math:`(1 - e^z) 1_{z<0}`."""
    u = np.abs(m) / s
    half, phi = HalfLine(u), density(u)
    if m >= 0:
        first, second = half.exponential(-s)
        line1 = m * ndtr(u) + s * phi
        line2 = (m**2 + s**2) * ndtr(u) + m * s * phi
        return line1, line2, -phi * first, phi * second
    line1, line2 = s * phi * half.power(1), s**2 * phi * half.power(2)
    if s < _NARROW:
        # Both sides together, less the upper one, which is the smaller of the two.
        both = ScaledELU().response(m, s**2)
        return line1, line2, line1 - both.mean, both.variance + both.mean**2 - line2
    one, two = exponential_moment(1, m, s), exponential_moment(2, m, s)
    return line1, line2, ndtr(u) - one, two - 2 * one + ndtr(u)


@dataclass(frozen=True)
class AlphaDropout:
    r"""Affine correction behind alpha dropout, :math:`a\,x + b`.

    Attributes
    ----------
    a, b : float
    dropped : float
        Value of a dropped unit, :math:`\alpha'`.
    """

    a: float
    b: float
    dropped: float


def alpha_dropout(
    keep: float,
    *,
    mean: float = 0.0,
    variance: float = 1.0,
    alpha: float = SELU_ALPHA,
    scale: float = SELU_SCALE,
) -> AlphaDropout:
    r"""Correction that keeps mean and variance when units are dropped to :math:`\alpha'`.

    A unit is set to :math:`\alpha' = -\lambda\alpha`, the lowest value of a scaled ELU, with
    probability :math:`1 - q`; then :math:`x \to a x + b` with

    .. math::

        a = \left(q + \frac{q(1-q)(\alpha' - \mu)^2}{\nu}\right)^{-1/2}, \qquad
        b = \mu - a\,(q\mu + (1-q)\alpha')

    Parameters
    ----------
    keep : float
        Probability :math:`0 < q \le 1` that a unit is kept.
    mean, variance : float
        To be kept, those of the activations.
    alpha, scale : float
        Of the activation; SELU's as a rule.

    Returns
    -------
    AlphaDropout

    Raises
    ------
    ValueError
        When ``keep`` is not in (0, 1] or the variance not positive.

    References
    ----------
    Klambauer et al., *Self-normalizing neural networks*, arXiv:1706.02515, section "New dropout
    technique".

    Examples
    --------
    >>> correction = alpha_dropout(0.9)
    >>> print(f"{correction.a:.5f} {correction.b:.5f}")
    0.92128 0.16197
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be above 0 and at most 1, got {keep}")
    if not variance > 0:
        raise ValueError(f"variance must be positive, got {variance}")
    dropped = -scale * alpha
    a = (keep + keep * (1 - keep) * (dropped - mean) ** 2 / variance) ** -0.5
    return AlphaDropout(a, mean - a * (keep * mean + (1 - keep) * dropped), dropped)

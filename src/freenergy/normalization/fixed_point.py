r"""Where a deep net's activations settle: fixed points of the moment map, and their basins."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from freenergy.normalization.activations import Activation, get_activation
from freenergy.normalization.half_line import Array
from freenergy.normalization.moments import (
    ActivationLike,
    backward_gain,
    moment_jacobian,
    moment_map,
)

__all__ = ["Basin", "FixedPoint", "basin", "critical_weight_square_sum", "fixed_point"]

_RANGE = 1e30  # a moment that has changed by this factor is gone, or without bound
_TOLERANCE = 1e-10
_MARGINAL = 1e-6


@dataclass(frozen=True)
class FixedPoint:
    r"""Where the iterated moment map went.

    Attributes
    ----------
    mean, variance : float
        The fixed point, or where the iteration stopped.
    status : {"converged", "erased", "diverged", "not converged"}
        ``"erased"``: the variance fell below 1e-30 of its start, so that every input ends in the
        same activations. ``"diverged"``: the second moment grew beyond 1e30 of its start.
    contraction_rate : float
        Spectral norm of the Jacobian: below 1 the map contracts around the point. Without a
        fixed point of positive variance, the factor by which a layer changes the variance.
    spectral_radius : float
        Largest modulus of an eigenvalue: deviations shrink by this factor a layer in the end.
    stable : bool
        Spectral radius below 1. Where it is 1, as for ReLU behind He's weights, a
        deviation stays.
    backward_gain : float
        Factor of a gradient's variance for each layer, :math:`\tau E f'^2`.
    n_iter : int
    activation : Activation
    weight_sum, weight_square_sum, weight_sum_variance : float
    jacobian : Array of shape (2, 2)
        Not a number where the variance is zero: the mean goes with the square root of it.
    """

    mean: float
    variance: float
    status: str
    contraction_rate: float
    spectral_radius: float
    stable: bool
    backward_gain: float
    n_iter: int
    activation: Activation
    weight_sum: float
    weight_square_sum: float
    weight_sum_variance: float
    jacobian: Array = field(compare=False)

    def __repr__(self) -> str:
        # What the iteration stops at is no nearer to zero than its tolerance.
        mean = self.mean if abs(self.mean) > _TOLERANCE * np.sqrt(self.variance) else 0.0
        return (
            f"FixedPoint(status={self.status!r}, mean={mean:.6g}, "
            f"variance={self.variance:.6g}, contraction_rate={self.contraction_rate:.4f}, "
            f"spectral_radius={self.spectral_radius:.4f}, stable={self.stable}, "
            f"backward_gain={self.backward_gain:.4f}, n_iter={self.n_iter})"
        )


def fixed_point(
    activation: ActivationLike,
    weight_sum: float = 0.0,
    weight_square_sum: float = 1.0,
    weight_sum_variance: float = 0.0,
    *,
    start: tuple[float, float] = (0.0, 1.0),
    max_iter: int = 2000,
) -> FixedPoint:
    r"""Iterate the moment map, layer after layer, and say where it goes.

    Newton's method polishes what the iteration has found, and finds nothing of its own.

    Parameters
    ----------
    activation : str, Activation or callable
    weight_sum, weight_square_sum, weight_sum_variance : float
        See :func:`moment_map`.
    start : tuple of two floats, default=(0, 1)
        Mean and variance of the input.
    max_iter : int, default=2000
        Layers at most.

    Returns
    -------
    FixedPoint

    Raises
    ------
    ValueError
        When the variance of the start is not positive.

    References
    ----------
    Klambauer et al., *Self-normalizing neural networks*, arXiv:1706.02515, theorem 1.

    Examples
    --------
    >>> point = fixed_point("selu")
    >>> print(f"{point.contraction_rate:.4f} {point.spectral_radius:.4f} {point.stable}")
    0.7877 0.7826 True
    >>> fixed_point("selu", weight_square_sum=1 / 3).status
    'erased'
    """
    if not start[1] > 0:
        raise ValueError(f"the variance of the start must be positive, got {start[1]}")
    f = get_activation(activation)
    weights = (float(weight_sum), float(weight_square_sum), float(weight_sum_variance))
    widest = _RANGE * start[1] + _RANGE * start[0] ** 2
    mean, variance, previous, status, n_iter = *start, start[1], "not converged", 0
    while status == "not converged" and n_iter < max_iter:
        n_iter += 1
        moments = moment_map(f, mean, variance, *weights)
        old_mean, previous = mean, variance
        mean, variance = float(moments.mean), float(moments.variance)
        if not variance + mean**2 < widest:
            status = "diverged"
        elif variance <= start[1] / _RANGE:
            status = "erased"
            mean = mean if abs(mean) > 1e-12 * np.sqrt(start[1]) else 0.0
        elif _close((old_mean, previous), (mean, variance), _TOLERANCE):
            status = "converged"
            mean, variance = _polish(f, mean, variance, weights)
    return _describe(f, mean, variance, variance / previous, status, n_iter, weights)


def _describe(
    f: Activation,
    mean: float,
    variance: float,
    growth: float,
    status: str,
    n_iter: int,
    weights: tuple[float, float, float],
) -> FixedPoint:
    if status in ("converged", "not converged"):
        jacobian = moment_jacobian(f, mean, variance, *weights)
        rate = float(np.linalg.norm(jacobian, 2))
        radius = float(np.abs(np.linalg.eigvals(jacobian)).max())
    else:
        jacobian = np.full((2, 2), np.nan)
        rate = radius = growth
    gain = float(backward_gain(f, mean, variance, *weights))
    return FixedPoint(
        mean=mean,
        variance=0.0 if status == "erased" else variance,
        status=status,
        contraction_rate=rate,
        spectral_radius=radius,
        stable=status in ("converged", "erased") and radius < 1 - _MARGINAL,
        backward_gain=gain,
        n_iter=n_iter,
        activation=f,
        weight_sum=weights[0],
        weight_square_sum=weights[1],
        weight_sum_variance=weights[2],
        jacobian=jacobian,
    )


def _close(a: tuple[float, float], b: tuple[float, float], tolerance: float) -> bool:
    """Equal means on the scale of the deviation, and equal variances on their own."""
    near_mean = abs(a[0] - b[0]) <= tolerance * np.sqrt(b[1])
    return bool(near_mean and abs(a[1] - b[1]) <= tolerance * b[1])


def _polish(
    f: Activation, mean: float, variance: float, weights: tuple[float, float, float]
) -> tuple[float, float]:
    """Newton's steps on the last digits, which a slow contraction leaves undone."""
    for _ in range(5):
        jacobian = moment_jacobian(f, mean, variance, *weights)
        slack = np.eye(2) - jacobian
        if np.abs(np.linalg.eigvals(slack)).min() < _MARGINAL:
            break
        moments = moment_map(f, mean, variance, *weights)
        step = np.linalg.solve(slack, [moments.mean - mean, moments.variance - variance])
        moved = (mean + float(step[0]), variance + float(step[1]))
        if not (moved[1] > 0 and _close((mean, variance), moved, 1e-3)):
            break
        mean, variance = moved
    return mean, variance


@dataclass(frozen=True, eq=False)
class Basin:
    """From where on a grid the iterated moment map reaches a fixed point.

    A finding on a grid, after a finite number of layers; between its points nothing is proved.

    Attributes
    ----------
    means : Array of shape (n_means,)
    variances : Array of shape (n_variances,)
    reached : Array of bool, shape (n_means, n_variances)
    box : tuple of four floats, or None
        Lowest and highest mean, lowest and highest variance of the largest rectangle of grid
        points that all reach it; None when no point does.
    n_iter : int
        Layers that were iterated.
    """

    means: Array
    variances: Array
    reached: Array
    box: tuple[float, float, float, float] | None
    n_iter: int

    def __repr__(self) -> str:
        n, m = self.reached.shape
        box = "None" if self.box is None else "({:.4g}, {:.4g}, {:.4g}, {:.4g})".format(*self.box)
        return (
            f"Basin(reached={int(self.reached.sum())}/{n * m} points, box={box}, "
            f"n_iter={self.n_iter})"
        )


def basin(
    point: FixedPoint,
    means: ArrayLike | None = None,
    variances: ArrayLike | None = None,
    *,
    n_iter: int = 300,
    tolerance: float = 1e-3,
) -> Basin:
    r"""From which means and variances the moment map reaches a fixed point, on a grid.

    Parameters
    ----------
    point : FixedPoint
        Converged or erased.
    means, variances : array-like, optional
        The grid; as a rule 21 means from −3 to 3 and 25 variances from 1e-3 to 1e3.
    n_iter : int, default=300
        Layers to iterate.
    tolerance : float, default=1e-3
        How near the variance has to come, as a share of its own, and the mean, as a share of the
        deviation. For a point that is erased, how near both have to come.

    Returns
    -------
    Basin

    Raises
    ------
    ValueError
        When the iteration that gave ``point`` has not settled.

    Examples
    --------
    >>> basin(fixed_point("selu"), [-1.0, 0.0, 1.0], [0.1, 1.0, 10.0])
    Basin(reached=9/9 points, box=(-1, 1, 0.1, 10), n_iter=300)
    """
    if point.status not in ("converged", "erased"):
        raise ValueError(f"no fixed point was found: the iteration has {point.status}")
    mu = np.linspace(-3, 3, 21) if means is None else np.asarray(means, dtype=np.float64)
    nu = np.logspace(-3, 3, 25) if variances is None else np.asarray(variances, dtype=np.float64)
    mean, variance = (grid.ravel() for grid in np.meshgrid(mu, nu, indexing="ij"))
    weights = (point.weight_sum, point.weight_square_sum, point.weight_sum_variance)
    for _ in range(n_iter):
        moments = moment_map(point.activation, mean, variance, *weights)
        # A bound that lets what diverges stay a number.
        mean, variance = np.clip(moments.mean, -1e60, 1e60), np.minimum(moments.variance, 1e120)
    unit = 1.0 if point.status == "erased" else point.variance
    reached = np.abs(variance - point.variance) <= tolerance * unit
    reached &= np.abs(mean - point.mean) <= tolerance * np.sqrt(unit)
    reached = reached.reshape(len(mu), len(nu))
    return Basin(mu, nu, reached, _largest_box(mu, nu, reached), n_iter)


def _largest_box(
    means: Array, variances: Array, reached: Array
) -> tuple[float, float, float, float] | None:
    """The rectangle of grid points with most points, all of them reached."""
    most, corners = 0, None
    for i in range(len(means)):
        for j in range(i, len(means)):
            whole = np.flatnonzero(reached[i : j + 1].all(0))
            for run in np.split(whole, np.flatnonzero(np.diff(whole) > 1) + 1):
                if len(run) * (j + 1 - i) > most:
                    most, corners = len(run) * (j + 1 - i), (i, j, run[0], run[-1])
    if corners is None:
        return None
    i, j, low, high = corners
    return float(means[i]), float(means[j]), float(variances[low]), float(variances[high])


def critical_weight_square_sum(activation: ActivationLike, fluctuating: bool = True) -> float:
    r"""The :math:`\tau` below which a small input is erased, at :math:`\omega = 0`.

    .. math:: \tau_c = \lim_{x \to 0} x / E[f(z)^2], \qquad z \sim N(0, x)

    Parameters
    ----------
    activation : str, Activation or callable
        With :math:`f(0) = 0`.
    fluctuating : bool, default=True
        For independent weights. Otherwise for weights with exactly the sum zero, behind which
        the mean is lost, and the variance of *f* stands for the second moment.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        When :math:`f(0)` is not 0.

    Examples
    --------
    >>> print(f"{critical_weight_square_sum('selu'):.4f}")
    0.4768
    """
    f = get_activation(activation)
    if float(f(0.0)) != 0.0:
        raise ValueError(f"activation {f.name!r} has f(0) = {float(f(0.0))}, not 0")
    x = 1e-30
    response = f.response(0.0, x)
    moment = response.variance + (response.mean**2 if fluctuating else 0.0)
    return float(x / moment)

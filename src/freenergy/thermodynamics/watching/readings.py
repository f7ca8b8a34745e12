r"""Numbers from the samples of one layer in one pass.

With weights :math:`w_{jk}` of unit *j*, pre-activations :math:`z_{ij}` of row *i* and the loss *L*:

=========================  =====================================================================
``mean``, ``variance``     of :math:`z_{ij}` over rows and units together
``signal``                 :math:`\langle \operatorname{Var}_i z_{ij} \rangle_j`: the part of the
                           variance that depends on the input, which a spread of biases is not
``p15``, ``p50``, ``p85``  percentiles of :math:`z_{ij}`
``saturated``              share of :math:`z_{ij}` where the slope of the activation is below a
                           twentieth of its largest
``gradient_variance``      of :math:`\partial L / \partial z_{ij}`
``gradient_square``        :math:`\sum_{ij} (\partial L / \partial z_{ij})^2` over all rows, places
                           and units, by proportion
``n_sites``, ``n_rows``    rows times places, each of which has a :math:`z_{ij}` of every unit; rows
``row_weight``             *c*, where :math:`\partial L / \partial z_{ij} = c\,(p_{ij} - y_{ij})` as
                           behind a log loss, with :math:`p` the softmax or sigmoid of :math:`z`
``input_mean`` ...         of the layer's inputs, likewise
``weight_sum``             :math:`\omega`: mean over units of :math:`\omega_j = \sum_k w_{jk}`, and
                           ``weight_sum_variance`` over them
``weight_square_sum``      :math:`\tau`: mean of :math:`\tau_j = \sum_k w_{jk}^2`, and its standard
                           deviation ``weight_square_sum_spread``
``temperature``            :math:`T = 1/\sqrt\tau`, see :attr:`Reading.temperature`
``update_ratio``           :math:`\lVert w_{t+1} - w_t \rVert / \lVert w_t \rVert`
``distance``               :math:`\lVert w_t - w_0 \rVert`, from the first pass that was read
=========================  =====================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import scipy.special
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from freenergy.thermodynamics.watching.layers import Bounds, bounds
from freenergy.thermodynamics.watching.sampling import LayerSampler
from freenergy.thermodynamics.watching.tracing import LayerTrace

__all__ = ["PERCENTILES", "QUANTITIES", "Reading", "read"]

Array = NDArray[np.float64]

PERCENTILES = (15.0, 50.0, 85.0)
"""Of the pre-activations: the median, and about a standard deviation to either side."""

_MISFIT = 1e-3  # of a gradient to that of a log loss, as a share of its norm
_LEAST_SPREAD = 1e-3
_MAX_SORTED = 4096  # values whose percentiles a watch takes: they are right to half a percent


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What one layer did in one pass; NaN where it cannot be said. See the module's table.

    Attributes
    ----------
    positive : ndarray of bool or None
        Units that were above zero in some of the rows.
    norm_scale, norm_shift, norm_shift_variance : float
        Mean squared scale of a normalisation in between, mean and variance of its shifts.
    infinite : str
        What was not finite: ``"weights"``, ``"pre-activations"``, ``"gradients"`` or nothing.
    """

    mean: float = math.nan
    variance: float = math.nan
    signal: float = math.nan
    p15: float = math.nan
    p50: float = math.nan
    p85: float = math.nan
    saturated: float = math.nan
    gradient_variance: float = math.nan
    gradient_square: float = math.nan
    n_sites: float = math.nan
    n_rows: float = math.nan
    row_weight: float = math.nan
    input_mean: float = math.nan
    input_variance: float = math.nan
    input_signal: float = math.nan
    weight_sum: float = math.nan
    weight_sum_variance: float = math.nan
    weight_square_sum: float = math.nan
    weight_square_sum_spread: float = math.nan
    weight_norm: float = math.nan
    update_ratio: float = math.nan
    distance: float = math.nan
    bias_mean: float = 0.0
    bias_variance: float = 0.0
    norm_scale: float = math.nan
    norm_shift: float = 0.0
    norm_shift_variance: float = 0.0
    positive: NDArray[np.bool_] | None = None
    infinite: str = ""

    @property
    def temperature(self) -> float:
        r"""The scale of the fields, inverted: :math:`T = 1 / \sqrt\tau`.

        A unit's field is :math:`z = \lvert w \rvert\, (\hat w \cdot x) + b` with a unit vector
        :math:`\hat w`, so that :math:`f(z) = f(\beta\, \hat w \cdot x + b)` with
        :math:`\beta = 1/T = \lvert w \rvert`. With the root mean square over units,
        :math:`1/T = \sqrt\tau = \lVert W \rVert_F / \sqrt{n_\text{units}}`, proportional to the
        norm of the weights: larger weights are a colder net, whose units are surer.
        """
        tau = self.weight_square_sum
        return 1.0 / math.sqrt(tau) if tau > 0 else math.inf

    def to_dict(self) -> dict[str, float]:
        """All numbers by name."""
        return {name: getattr(self, name) for name in QUANTITIES}


QUANTITIES = (
    *(f.name for f in fields(Reading) if f.name not in ("positive", "infinite")),
    "temperature",
)
"""Names of the numbers of a reading."""


@torch.no_grad()
def read(
    trace: LayerTrace,
    sampler: LayerSampler,
    after: Tensor | None = None,
    start: Tensor | None = None,
    *,
    max_sorted: int = _MAX_SORTED,
) -> Reading:
    """The numbers that samples give.

    Parameters
    ----------
    trace : LayerTrace
    sampler : LayerSampler
    after : Tensor or None, default=None
        The weights of now, in which the update by the pass has come.
    start : Tensor or None, default=None
        The weights of the first pass that was read.
    max_sorted : int, default=4096
        Percentiles are those of about so many of the values.

    Returns
    -------
    Reading
    """
    values: dict[str, Any] = {}
    # Squares of what is beyond all bounds overflow: the reading says so, no warning need.
    with np.errstate(over="ignore", invalid="ignore"):
        if trace.outputs is not None:
            values |= _of_outputs(_array(trace.outputs), bounds(trace.activation), max_sorted)
        if trace.inputs is not None:
            names = ("input_mean", "input_variance", "input_signal")
            values |= dict(zip(names, _moments(_array(trace.inputs)), strict=True))
        if trace.gradients is not None:
            centre, spread, _ = _moments(_array(trace.gradients))
            values["gradient_variance"] = spread
            values |= {"n_sites": float(trace.n_sites), "n_rows": float(trace.n_rows)}
            if sampler.units is None and trace.outputs is not None:
                values["row_weight"] = _row_weight(
                    _array(trace.outputs), _array(trace.gradients), trace.activation
                )
            n_values = trace.n_sites * sampler.layer.n_units
            values["gradient_square"] = n_values * (spread + centre**2)
        if trace.weights is not None:
            values |= _of_weights(trace.weights, after, start, sampler.layer.n_units)
        for name, vector in (("bias", trace.biases), ("norm_shift", trace.shift)):
            if vector is not None:
                here = _array(vector)
                mean = "norm_shift" if name == "norm_shift" else "bias_mean"
                values |= {mean: float(here.mean()), f"{name}_variance": float(here.var())}
    if sampler.layer.normalization:
        scale = np.ones(1) if trace.scale is None else _array(trace.scale)
        values["norm_scale"] = float(np.mean(scale**2))
    # Sums that are finite have finite parts; only others are worth a look at each of them.
    checked = ("variance", "input_variance", "gradient_variance", "weight_square_sum")
    suspicious = any(not math.isfinite(values.get(name, 0.0)) for name in checked)
    suspicious |= not math.isfinite(values.get("bias_variance", 0.0))
    return Reading(**values, infinite=_not_finite(trace) if suspicious else "")


def _array(tensor: Tensor) -> Array:
    array: Array = tensor.detach().to("cpu", torch.float64).numpy()
    return array


def _not_finite(trace: LayerTrace) -> str:
    """What is not finite, the cause before what follows from it."""
    parts = (
        ("weights", trace.weights),
        ("weights", trace.biases),
        ("inputs", trace.inputs),
        ("pre-activations", trace.outputs),
        ("gradients", trace.gradients),
    )
    for name, tensor in parts:
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            return name
    return ""


def _moments(values: Array) -> tuple[float, float, float]:
    """Mean, variance, and mean over units of the variance between rows."""
    centres = values.mean(axis=0)
    signal = float(np.square(values - centres).mean())
    return float(centres.mean()), signal + float(centres.var()), signal


def _row_weight(z: Array, gradients: Array, activation: nn.Module | None) -> float:
    """The factor of the gradient of a log loss, NaN where the gradient has another form.

    That of a summed loss is 1, that of a mean 1/n. Labels need not be known: in each row, or each
    entry, the gradient is negative at the one that is right and only there.
    """
    if activation is not None and not isinstance(activation, nn.Sigmoid):
        return math.nan
    met = gradients.any(axis=1)
    z, gradients = z[met], gradients[met]
    size = float(np.linalg.norm(gradients)) if len(z) else 0.0
    if not (0 < size < math.inf and np.isfinite(z).all()):
        return math.nan
    for p, y in _log_losses(z, gradients, softmax=activation is None and z.shape[1] > 1):
        r = p - y
        c = float((gradients * r).sum() / np.square(r).sum())
        # Other losses may look alike where all outputs are equal.
        if p.std() > _LEAST_SPREAD and np.linalg.norm(gradients - c * r) <= _MISFIT * size:
            return c
    return math.nan


def _log_losses(z: Array, gradients: Array, *, softmax: bool) -> Iterator[tuple[Array, Array]]:
    """Probabilities and labels as they would be, of one class in a row and of each by itself."""
    if softmax:
        labels = np.zeros_like(z)
        labels[np.arange(len(z)), gradients.argmin(axis=1)] = 1.0
        yield scipy.special.softmax(z, axis=1), labels
    yield scipy.special.expit(z), (gradients < 0).astype(np.float64)


def _of_outputs(z: Array, limits: Bounds, max_sorted: int) -> dict[str, Any]:
    mean, variance, signal = _moments(z)
    found: dict[str, Any] = {"mean": mean, "variance": variance, "signal": signal}
    flat = z.ravel()
    # An odd stride visits all units, where one that divides their number would not.
    few = flat[:: 2 * (flat.size // (2 * max_sorted)) + 1]
    found |= dict(zip(("p15", "p50", "p85"), _percentiles(few), strict=True))
    if limits.saturates:
        found["saturated"] = float(((z < limits.low) | (z > limits.high)).mean())
    if limits.rectifies:
        found["positive"] = (z > 0).any(axis=0)
    return found


def _percentiles(values: Array) -> list[float]:
    """NumPy's percentiles, in a third of its time: a watch takes them of every layer."""
    places = np.array(PERCENTILES) / 100 * (len(values) - 1)
    low, high = np.floor(places).astype(int), np.ceil(places).astype(int)
    ordered = np.partition(values, np.unique([low, high]))
    return [float(p) for p in ordered[low] + (places - low) * (ordered[high] - ordered[low])]


def _of_weights(
    weights: Tensor, after: Tensor | None, start: Tensor | None, n_units: int
) -> dict[str, float]:
    """Numbers of the watched units' weights; norms are those of the whole layer, by proportion."""
    sums, squares = weights.sum(1), weights.square().sum(1)
    if not bool(torch.isfinite(squares).all()):  # too large for the squares of single precision
        weights = weights.double()
        sums, squares = weights.sum(1), weights.square().sum(1)
    numbers = [
        sums.mean(),
        sums.var(correction=0),
        squares.mean(),
        squares.std(correction=0),
        squares.sum().sqrt(),
    ]
    for other in (after, start):
        numbers.append(
            torch.full_like(numbers[0], math.nan)
            if other is None or other.shape != weights.shape
            # The module may have moved to another device since.
            else torch.linalg.vector_norm(other.to(weights) - weights)
        )
    omega, omega_variance, tau, spread, norm, step, distance = torch.stack(numbers).tolist()
    whole = math.sqrt(n_units / max(len(weights), 1))
    return {
        "weight_sum": omega,
        "weight_sum_variance": omega_variance,
        "weight_square_sum": tau,
        "weight_square_sum_spread": spread,
        "weight_norm": norm * whole,
        "update_ratio": step / norm if norm > 0 else (math.inf if step > 0 else math.nan),
        "distance": distance * whole,
    }

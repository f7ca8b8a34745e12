"""Which layers of a module can be watched, and what is known of their activations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from freenergy.normalization import Activation, CallableActivation, PiecewiseLinear, ScaledELU
from freenergy.normalization.activations import get_activation

__all__ = [
    "ACTIVATIONS",
    "AFFINE",
    "NORMALIZATIONS",
    "TRANSPARENT",
    "Bounds",
    "WatchedLayer",
    "bounds",
    "entries",
    "find_layers",
    "measure",
    "stored_weight",
    "theory",
    "unit_weights",
    "unwatched",
]

SATURATED_SLOPE = 0.05
"""A unit is saturated where its slope is below this share of the largest one: a twentieth of the
gradient comes through, and a weight must wait twenty times as long."""

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
NORMALIZATIONS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
TRANSPARENT = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)
ACTIVATIONS = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU,
    nn.LogSigmoid, nn.Mish, nn.PReLU, nn.RReLU, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid,
    nn.Softplus, nn.Softsign, nn.Tanh, nn.Tanhshrink,
)  # fmt: skip


@dataclass(eq=False)
class WatchedLayer:
    r"""An affine layer, and what follows it on the way of the data.

    Attributes
    ----------
    name : str
        Its path in the module, and ``"(itself)"`` for the module.
    kind : str
        Its class.
    n_units, fan_in : int
        Units or channels, and weights of each.
    reach : float
        Units that an input reaches for each weight that a unit has: the factor beside
        :math:`\tau` by which the variance of a gradient is multiplied on its way back.
    readable_weights : bool
        False where a parametrization computes the weights: to look at them may change them.
    trainable : bool
        Whether the weights ask for a gradient.
    activation : str
        Class of the activation; ``"unknown"`` until a module takes the layer's output.
    normalization : str
        Class of the normalisation between the layer and its activation, or empty.
    order : int
        Place among the layers as they are called, -1 before the first call.
    below : int
        The layer whose activations this one takes, where nothing unknown lies between, or -1.
    calls : int
        Calls in the last pass that was sampled.
    part : str
        Of a module that is called part by part, the part in which the layer is; empty in others.
    """

    name: str
    kind: str
    n_units: int
    fan_in: int
    reach: float
    readable_weights: bool = True
    trainable: bool = True
    activation: str = "unknown"
    normalization: str = ""
    order: int = -1
    below: int = -1
    calls: int = 0
    part: str = ""
    gain: float = field(default=1.0, repr=False)
    theory: Activation | None = field(default=None, repr=False)

    def __str__(self) -> str:
        parts = [self.kind, self.normalization, self.activation]
        return f"{self.name} ({', '.join(p for p in parts if p and p != 'unknown')})"


def find_layers(module: nn.Module) -> list[tuple[nn.Module, WatchedLayer]]:
    """The affine layers of a module with real weights, in the order in which it names them.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    >>> [str(layer) for _, layer in find_layers(net)]
    ['0 (Linear)', '2 (Linear)']
    """
    found: list[tuple[nn.Module, WatchedLayer]] = []
    called = entries(module)
    for name, part in module.named_modules():
        if not isinstance(part, AFFINE):
            continue
        # To read a weight that is computed may change it, as spectral normalisation does.
        if parametrize.is_parametrized(part, "weight") or part.weight.is_floating_point():
            layer = WatchedLayer(name or "(itself)", type(part).__name__, 0, 0, 0.0)
            measure(part, layer)
            outer = (path for path in called if path and f"{name}.".startswith(f"{path}."))
            layer.part = next(outer, "")
            found.append((part, layer))
    return found


def entries(module: nn.Module) -> dict[str, nn.Module]:
    """What is called in a pass, by path: the module, or its parts where it cannot be called itself.

    Examples
    --------
    >>> list(entries(nn.Sequential(nn.Linear(1, 1))))
    ['']
    >>> list(entries(nn.ModuleDict({"encoder": nn.Linear(2, 1), "decoder": nn.Linear(1, 2)})))
    ['encoder', 'decoder']
    """
    found: dict[str, nn.Module] = {}
    for name, part in module.named_modules():
        if _callable(part) and not any(
            name.startswith(f"{outer}.") or not outer for outer in found
        ):
            found[name] = part
    return found


def _callable(module: nn.Module) -> bool:
    return "forward" in vars(module) or type(module).forward is not nn.Module.forward


def measure(part: nn.Module, layer: WatchedLayer) -> None:
    """Write down the sizes of a layer as it is now: one may be cut down while it is watched."""
    layer.n_units, layer.fan_in = _sizes(part)
    layer.reach = _reach(part)
    layer.readable_weights = not parametrize.is_parametrized(part, "weight")
    stored = stored_weight(part)
    layer.trainable = stored is None or stored.requires_grad


def stored_weight(part: nn.Module) -> nn.Parameter | None:
    """The parameter that the weights are, or that pruning makes them of; None for others."""
    own = dict(part.named_parameters(recurse=False))
    return own.get("weight", own.get("weight_orig"))


def _sizes(part: nn.Module) -> tuple[int, int]:
    """Units, and weights of each: those that are there, whatever the layer says of itself."""
    stored = stored_weight(part)
    if stored is not None and not isinstance(part, TRANSPOSED):
        return stored.shape[0], stored[0].numel()
    if isinstance(part, nn.Linear):
        return part.out_features, part.in_features
    assert isinstance(part, nn.modules.conv._ConvNd)
    return part.out_channels, part.in_channels // part.groups * math.prod(part.kernel_size)


def unwatched(module: nn.Module) -> list[str]:
    """Modules with parameters of their own that are neither affine nor normalise, by path.

    Examples
    --------
    >>> unwatched(nn.ModuleDict({"memory": nn.LSTM(3, 4), "out": nn.Linear(4, 1)}))
    ['memory (LSTM)']
    """
    known = (*NORMALIZATIONS, *ACTIVATIONS)
    names = []
    for name, part in module.named_modules():
        own = [p for p in part.parameters(recurse=False) if p is not None]
        affine = isinstance(part, AFFINE) and (not own or own[0].is_floating_point())
        inner = isinstance(part, parametrize.ParametrizationList) or ".parametrizations." in name
        if own and not affine and not inner and not isinstance(part, known):
            names.append(f"{name or '(itself)'} ({type(part).__name__})")
    return names


def unit_weights(part: nn.Module) -> Tensor:
    """Weights of shape (units, fan-in), a view where the layout allows.

    Examples
    --------
    >>> unit_weights(nn.ConvTranspose2d(4, 6, 3, groups=2)).shape
    torch.Size([6, 18])
    """
    weight, mask, whole = (
        getattr(part, name, None) for name in ("weight", "weight_mask", "weight_orig")
    )
    if isinstance(mask, Tensor) and isinstance(whole, Tensor):
        # What a pruned layer calls its weights is their product in the pass before.
        weight = whole * mask
    assert isinstance(weight, Tensor)
    weight = weight.detach()
    if isinstance(part, TRANSPOSED):
        # (in, out / groups, ...): the inputs of a group stand in one block.
        blocks = weight.unflatten(0, (part.groups, -1)).transpose(1, 2)
        weight = blocks.reshape(part.out_channels, -1)
    return weight.flatten(1)


def _reach(part: nn.Module) -> float:
    if isinstance(part, nn.Linear):
        return part.out_features / part.in_features
    assert isinstance(part, nn.modules.conv._ConvNd)
    ratio = part.out_channels / part.in_channels
    stride = math.prod(part.stride)
    return ratio * stride if isinstance(part, TRANSPOSED) else ratio / stride


@dataclass(frozen=True)
class Bounds:
    """Where an activation is saturated, and whether a unit can fall silent.

    Attributes
    ----------
    low, high : float
        Pre-activations outside are saturated; infinite where there is no such side.
    rectifies : bool
        Exactly zero, with no gradient, for pre-activations that are not positive.
    """

    low: float = -math.inf
    high: float = math.inf
    rectifies: bool = False

    @property
    def saturates(self) -> bool:
        """Whether there is a saturated side."""
        return math.isfinite(self.low) or math.isfinite(self.high)


def bounds(activation: nn.Module | None) -> Bounds:
    r"""Bounds of an activation, from its slope.

    Sigmoid: :math:`4\sigma(1-\sigma) < 0.05` beyond :math:`\pm 4.36`; tanh: :math:`1 - t^2` beyond
    half of that; ELU, SELU and CELU: :math:`e^{z/a} < 0.05` below :math:`-3.00\,a`.

    Examples
    --------
    >>> round(bounds(nn.Tanh()).high, 2), round(bounds(nn.SELU()).low, 2)
    (2.18, -3.0)
    >>> bounds(nn.ReLU()).rectifies
    True
    """
    edge = 2 * math.atanh(math.sqrt(1 - SATURATED_SLOPE))
    if isinstance(activation, nn.Sigmoid):
        return Bounds(-edge, edge)
    if isinstance(activation, nn.Tanh):
        return Bounds(-edge / 2, edge / 2)
    if isinstance(activation, nn.ELU | nn.SELU):
        return Bounds(low=math.log(SATURATED_SLOPE))
    if isinstance(activation, nn.CELU):
        return Bounds(low=activation.alpha * math.log(SATURATED_SLOPE))
    return Bounds(rectifies=isinstance(activation, nn.ReLU | nn.ReLU6))


def theory(activation: nn.Module) -> Activation:
    """The activation as the moment map knows it; any elementwise module goes by quadrature.

    Examples
    --------
    >>> theory(nn.LeakyReLU(0.2))
    PiecewiseLinear(negative_slope=0.2, positive_slope=1.0, name='leaky_relu')
    """
    for kind, name in ((nn.ReLU, "relu"), (nn.SELU, "selu"), (nn.Tanh, "tanh")):
        if isinstance(activation, kind) and not isinstance(activation, nn.ReLU6):
            return get_activation(name)
    if isinstance(activation, nn.Sigmoid):
        return get_activation("sigmoid")
    if isinstance(activation, nn.LeakyReLU):
        return PiecewiseLinear(float(activation.negative_slope), 1.0, "leaky_relu")
    if isinstance(activation, nn.RReLU):
        return PiecewiseLinear((activation.lower + activation.upper) / 2, 1.0, "rrelu")
    if isinstance(activation, nn.PReLU):
        return PiecewiseLinear(float(activation.weight.detach().mean()), 1.0, "prelu")
    if isinstance(activation, nn.ELU):
        return ScaledELU(float(activation.alpha), 1.0, "elu")
    return _by_quadrature(activation)


def _by_quadrature(activation: nn.Module) -> Activation:
    name = type(activation).__name__.lower()
    return CallableActivation(_OnArrays(activation), kinks=tuple(_kinks(activation)), name=name)


@dataclass(frozen=True)
class _OnArrays:
    """A module as a function of arrays."""

    module: nn.Module

    def __call__(self, z: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            values = self.module(torch.from_numpy(np.array(z, dtype=np.float64)))
        return np.asarray(values.numpy())


def _kinks(activation: nn.Module) -> Iterator[float]:
    yield 0.0
    if isinstance(activation, nn.Hardtanh):
        yield from (float(activation.min_val), float(activation.max_val))
    elif isinstance(activation, nn.Hardsigmoid | nn.Hardswish):
        yield from (-3.0, 3.0)

"""One training pass that is read: what flows forward through the layers, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from freenergy.thermodynamics.watching.layers import (
    ACTIVATIONS,
    NORMALIZATIONS,
    TRANSPARENT,
    theory,
)
from freenergy.thermodynamics.watching.sampling import LayerSampler, SiteSampler

__all__ = ["LayerTrace", "Pass"]


@dataclass(eq=False)
class LayerTrace:
    """What a pass left of one layer: samples, to be made into numbers later.

    Attributes
    ----------
    weights : Tensor or None
        Copy from before the pass.
    inputs, outputs, gradients : Tensor or None
        Of shape (sites, units); outputs are pre-activations, gradients those of the loss.
    n_sites, n_rows : int
        Rows times places that a unit has a pre-activation for, and rows; 0 where none were seen.
    scale, shift : Tensor or None
        Of a normalisation between the layer and its activation.
    activation : nn.Module or None
    """

    weights: Tensor | None = None
    biases: Tensor | None = None
    inputs: Tensor | None = None
    outputs: Tensor | None = None
    gradients: Tensor | None = None
    n_sites: int = 0
    n_rows: int = 0
    scale: Tensor | None = None
    shift: Tensor | None = None
    activation: nn.Module | None = None
    handle: RemovableHandle | None = None


@dataclass(frozen=True)
class _Origin:
    """Where a tensor comes from: a layer, how far behind it, and what dropout did on the way.

    The tensor is held so that no other takes its identity while the pass goes on.
    """

    tensor: Tensor
    layer: int
    activated: bool
    gain: float = 1.0


@dataclass(eq=False)
class Pass:
    """Hooks for one pass forward and back; outputs are followed from module to module.

    Parameters
    ----------
    step : int
    samplers : list of LayerSampler
    sites : SiteSampler
    clock : callable
        Wraps a hook so that its time is counted.
    """

    step: int
    samplers: list[LayerSampler]
    sites: SiteSampler
    clock: Callable[[Callable[..., None]], Callable[..., None]]
    traces: list[LayerTrace] = field(default_factory=list)
    n_called: int = 0
    returned: bool = False
    has_gradient: bool = False
    waited: int = 0
    _in_parts: bool = False
    _versions: int = -1
    _origins: dict[int, _Origin] = field(default_factory=dict)
    _handles: list[RemovableHandle] = field(default_factory=list)

    def begin(self, root: nn.Module, entry: nn.Module) -> None:
        """Copy the weights, and hook the modules that are followed.

        Parameters
        ----------
        root : nn.Module
        entry : nn.Module
            Whose call is the pass: the root, or that of its parts which is called first.
        """
        self._in_parts = entry is not root
        self._versions = _versions(root)
        for sampler in self.samplers:
            trace = LayerTrace()
            sampler.layer.calls = 0
            trace.weights = sampler.weights()
            bias = getattr(sampler.part, "bias", None)
            trace.biases = None if bias is None else bias.detach().clone()
            self.traces.append(trace)
        index = {id(sampler.part): i for i, sampler in enumerate(self.samplers)}
        for part in root.modules():
            if id(part) in index:
                hook = self._affine_hook(index[id(part)])
            elif isinstance(part, NORMALIZATIONS):
                hook = self._after_normalization
            elif isinstance(part, ACTIVATIONS):
                hook = self._after_activation
            elif isinstance(part, TRANSPARENT):
                hook = self._after_transparent
            else:
                continue
            timed = self.clock(hook)
            self._handles.append(part.register_forward_hook(timed, with_kwargs=True))
        self._handles.append(entry.register_forward_hook(lambda *_: self._return()))

    def _return(self) -> None:
        """The call that is the pass came to its end; parts that follow it belong to it too."""
        self.returned = True
        if not self._in_parts:
            self.end_forward()

    def end_forward(self) -> None:
        """Unhook the modules, and let go of what they passed on."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._origins = [], {}

    def drop(self) -> None:
        """Unhook everything."""
        self.end_forward()
        for trace in self.traces:
            if trace.handle is not None:
                trace.handle.remove()

    # ---- hooks -----------------------------------------------------------------------------------

    def _affine_hook(self, index: int) -> Callable[..., None]:
        def hook(part: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._after_affine(index, _first(args, kwargs), output)

        return hook

    def _after_affine(self, index: int, given: Any, output: Any) -> None:
        sampler, trace = self.samplers[index], self.traces[index]
        sampler.layer.calls += 1
        if sampler.layer.calls > 1 or not _readable(output) or not _readable(given):
            return
        sampler.to(output.device)
        layer = sampler.layer
        layer.order = self.n_called
        self.n_called += 1
        origin = self._origins.get(id(given))
        linked = origin is not None and origin.activated
        layer.below = origin.layer if origin is not None and linked else -1
        layer.gain = origin.gain if origin is not None and linked else 1.0
        columns = sampler.view(given.detach())
        if columns.shape[1] == sampler.n_inputs:
            trace.inputs = self.sites.take(columns, sampler.inputs)
        self._read(index, output)
        self._origins[id(output)] = _Origin(output, index, False)

    def _after_normalization(self, part: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        origin = self._origins.get(id(_first(args, kwargs)))
        if origin is None or origin.activated or not _readable(output):
            return
        trace, layer = self.traces[origin.layer], self.samplers[origin.layer].layer
        layer.normalization = type(part).__name__
        trace.scale, trace.shift = (
            None if p is None else p.detach().clone()
            for p in (getattr(part, "weight", None), getattr(part, "bias", None))
        )
        self._read(origin.layer, output)
        self._origins[id(output)] = _Origin(output, origin.layer, False)

    def _after_activation(self, part: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        origin = self._origins.get(id(_first(args, kwargs)))
        if origin is None or origin.activated or not isinstance(output, Tensor):
            return
        trace, layer = self.traces[origin.layer], self.samplers[origin.layer].layer
        trace.activation = part
        if layer.theory is None or layer.activation != type(part).__name__:
            layer.activation, layer.theory = type(part).__name__, theory(part)
        self._origins[id(output)] = _Origin(output, origin.layer, True)

    def _after_transparent(self, part: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        origin = self._origins.get(id(_first(args, kwargs)))
        if origin is None or not isinstance(output, Tensor):
            return
        gain = origin.gain * _dropout_gain(part)
        self._origins[id(output)] = _Origin(output, origin.layer, origin.activated, gain)

    def _read(self, index: int, output: Tensor) -> None:
        """Take the samples of a pre-activation, and of its gradient when that comes."""
        sampler, trace = self.samplers[index], self.traces[index]
        if output.shape[1 if sampler.dims else -1] != sampler.layer.n_units:
            return
        trace.outputs = self.sites.take(sampler.view(output.detach()), sampler.units)
        trace.n_sites = output.numel() // sampler.layer.n_units
        trace.n_rows = len(output) if output.dim() > 1 else 1
        if trace.handle is not None:
            trace.handle.remove()
        if not output.requires_grad:
            return

        def keep(gradient: Tensor) -> None:
            trace.gradients = self.sites.take(sampler.view(gradient.detach()), sampler.units)
            self.has_gradient = True
            if self._in_parts:
                self.end_forward()

        trace.handle = output.register_hook(self.clock(keep))

    # ---- the weights that follow -----------------------------------------------------------------

    def updated(self, root: nn.Module) -> bool:
        """Whether an update has come since the pass began, one that changes nothing included."""
        if _versions(root) != self._versions:
            return True
        # What is written past autograd, through ``.data``, leaves no other trace.
        return any(
            trace.weights is not None and _differ(trace.weights, sampler.weights())
            for trace, sampler in zip(self.traces, self.samplers, strict=True)
        )

    @property
    def can_learn(self) -> bool:
        """Whether there is a weight that an update could change."""
        return any(
            trace.weights is not None and sampler.layer.trainable
            for trace, sampler in zip(self.traces, self.samplers, strict=True)
        )


def _differ(before: Tensor, now: Tensor | None) -> bool:
    return now is None or now.device != before.device or not torch.equal(before, now)


def _versions(root: nn.Module) -> int:
    """A count that grows whenever a parameter is written to."""
    return sum(p._version for p in root.parameters() if not p.is_inference())


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()), None)


def _readable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0


def _dropout_gain(part: nn.Module) -> float:
    """Factor of the variance of a gradient that goes back through dropout."""
    if not isinstance(part, nn.modules.dropout._DropoutNd) or not part.training:
        return 1.0
    keep = 1.0 - part.p
    if keep <= 0:
        return 1.0
    if isinstance(part, nn.AlphaDropout | nn.FeatureAlphaDropout):
        negative = 1.0507009873554805 * 1.6732632423543773
        return 1.0 / (1.0 + negative**2 * (1.0 - keep))
    return 1.0 / keep

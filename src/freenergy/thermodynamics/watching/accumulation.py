r"""What comes to the gradients between two updates, and whether the one used before is in it.

Torch adds to ``.grad`` until somebody clears it. With :math:`g` the gradient that an update has
used, :math:`s` what backward passes have added since, and :math:`g'` what the next update uses,

.. math:: g' \propto s \quad\text{where it was cleared}, \qquad
          g' \propto g + s \quad\text{where it was not}.

Several passes for one update add up in :math:`s` either way, so that gradients which are gathered
on purpose are told apart; the factor is that of clipping or of a loss that is scaled. Nothing in
this depends on the learning rate or on the optimiser.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["GradientSum", "Sums"]

_ENTRIES = 256  # of a gradient, that stand for it
_TOLERANCE = 1e-4
_APART = 20.0  # tolerances by which the two cases must differ
_SMALLEST_SHARE = 1e-3  # of the whole that what was added must have


@dataclass(frozen=True)
class Sums:
    """What was seen of the gradients between two updates.

    Attributes
    ----------
    step : int
        Of the first pass behind the first of them.
    carried : dict of int to float
        Layers whose gradient had the one of the update before in it; with its norm over that of
        what was added since.
    cleared : tuple of int
        Layers where it had not.
    """

    step: int
    carried: Mapping[int, float]
    cleared: tuple[int, ...]


@dataclass(eq=False)
class _Tracked:
    """A parameter, and some entries of its gradient."""

    parameter: nn.Parameter
    before: Tensor
    value: Tensor
    version: int
    added: Tensor | None = None
    handle: RemovableHandle | None = None


class GradientSum:
    """Follows gradients from behind an update to the next one.

    Parameters
    ----------
    step : int
        Of the pass that begins.
    parameters : dict of int to Parameter
        One of each layer.
    clock : callable
        Wraps a hook so that its time is counted.

    Examples
    --------
    >>> from freenergy.thermodynamics.watching.accumulation import GradientSum
    >>> w = nn.Parameter(torch.ones(3))
    >>> (torch.tensor([1.0, 2.0, 3.0]) @ w).backward()
    >>> follower = GradientSum(2, {0: w}, lambda hook: hook)
    >>> (torch.tensor([1.0, 0.0, -1.0]) @ w).backward()
    >>> with torch.no_grad():
    ...     _ = w.sub_(0.1 * w.grad)
    >>> follower.updated, list(follower.result().carried)
    (True, [0])
    """

    def __init__(
        self,
        step: int,
        parameters: Mapping[int, nn.Parameter],
        clock: Callable[[Callable[..., None]], Callable[..., None]],
    ) -> None:
        self.step = step
        self.waited = 0
        self._cleared: list[int] = []
        self._tracked: dict[int, _Tracked] = {}
        for layer, parameter in parameters.items():
            if not parameter.requires_grad:
                continue
            before = _some(parameter.grad)
            if before is None or not bool(before.any()):
                self._cleared.append(layer)
                continue
            value = _some(parameter)
            assert value is not None
            tracked = _Tracked(parameter, before, value, parameter._version)
            tracked.handle = parameter.register_hook(clock(_adder(tracked)))
            self._tracked[layer] = tracked

    @property
    def updated(self) -> bool:
        """Whether the next update has come, or none need be waited for."""
        return not self._tracked or any(map(_moved, self._tracked.values()))

    def drop(self) -> None:
        """Unhook everything."""
        for tracked in self._tracked.values():
            if tracked.handle is not None:
                tracked.handle.remove()

    def result(self) -> Sums:
        """What the gradients of the update are made of; a layer where nothing can be said lacks."""
        self.drop()
        carried, cleared = {}, list(self._cleared)
        for layer, tracked in self._tracked.items():
            used = _some(tracked.parameter.grad)
            if used is None:
                cleared.append(layer)
            elif tracked.added is not None:
                found = _is_carried(tracked.before, tracked.added, used, tracked.parameter.dtype)
                if found:
                    carried[layer] = float(tracked.before.norm() / tracked.added.norm())
                elif found is False:
                    cleared.append(layer)
        return Sums(self.step, carried, tuple(sorted(cleared)))


def _some(values: Tensor | None) -> Tensor | None:
    """Entries that are spread over a tensor, in double precision."""
    if values is None or values.layout != torch.strided:
        return None
    flat = values.detach().reshape(-1)
    return flat[:: max(len(flat) // _ENTRIES, 1)].double()


def _adder(tracked: _Tracked) -> Callable[..., None]:
    def add(gradient: Tensor) -> None:
        more = _some(gradient)
        if more is not None:
            tracked.added = more if tracked.added is None else tracked.added + more

    return add


def _moved(tracked: _Tracked) -> bool:
    if tracked.parameter._version != tracked.version:
        return True
    value = _some(tracked.parameter)  # what is written through ``.data`` leaves no other trace
    return value is None or not torch.equal(value, tracked.value)


def _is_carried(before: Tensor, added: Tensor, used: Tensor, dtype: torch.dtype) -> bool | None:
    """Whether an earlier gradient is in the one that was used; None where it cannot be told."""
    if not len(before) == len(added) == len(used):
        return None
    tolerance = max(_TOLERANCE, 4 * torch.finfo(dtype).eps)
    together, size = before + added, float(used.norm())
    share = float(added.norm()) / size if size > 0 else math.nan
    if not (math.isfinite(share) and share > 0):
        return None
    if share >= _SMALLEST_SHARE and _off(used, together) <= tolerance:
        if _off(used, added) >= _APART * tolerance:
            return True
        # Both point one way, as in full batches at a small rate: the lengths tell, unless clipped.
        same_length = float((used - together).norm()) <= tolerance * size
        if same_length and share >= 0.01 and float((used - added).norm()) >= 0.1 * size:
            return True
    return False if _off(used, added) <= tolerance else None


def _off(values: Tensor, line: Tensor) -> float:
    """How far a vector is from a multiple of another one, as a share of its length."""
    square = float(line @ line)
    if square == 0:
        return math.inf
    rest = values - (float(values @ line) / square) * line
    return float(rest.norm() / values.norm())

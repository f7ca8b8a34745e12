"""A few rows and units of what passes through a layer, chosen from a stream of their own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from freenergy.random import RandomStream
from freenergy.thermodynamics.watching.layers import WatchedLayer, measure, unit_weights

__all__ = ["LayerSampler", "SiteSampler", "channels_last"]

_MAX_WEIGHTS = 2**17  # of a layer, that are copied at a time
_MAX_INPUTS = 128


class SiteSampler:
    """Rows of a pass, and places within them: the same for every layer of one shape.

    Parameters
    ----------
    n_sites : int
    random : RandomStream
    """

    def __init__(self, n_sites: int, random: RandomStream) -> None:
        self.n_sites = n_sites
        self.random = random
        self._rows: dict[tuple[int, torch.device], Tensor] = {}
        self._places: dict[tuple[int, int, torch.device], Tensor] = {}

    def take(self, values: Tensor, units: Tensor | None) -> Tensor:
        """Sites by units, shape (n, units), from values of shape (rows, units, places)."""
        n_rows, _, n_places = values.shape
        rows = self._chosen_rows(n_rows, n_places, values.device)
        if n_places == 1:
            sites = values[:, :, 0].index_select(0, rows)
        else:
            sites = values[rows, :, self._chosen_places(len(rows), n_places, values.device)]
        return sites if units is None else sites.index_select(1, units)

    def _chosen_rows(self, n: int, n_places: int, device: torch.device) -> Tensor:
        key = (n if n_places == 1 else -n, device)
        if key not in self._rows:
            if n_places == 1 or n >= self.n_sites:
                rows = self.random.permutation(n)[: self.n_sites]
            else:  # a small batch of images has many places in each
                rows = self.random.integers(0, max(n, 1), self.n_sites if n else 0)
            self._rows[key] = rows.to(device)
        return self._rows[key]

    def _chosen_places(self, n: int, n_places: int, device: torch.device) -> Tensor:
        key = (n, n_places, device)
        if key not in self._places:
            self._places[key] = self.random.integers(0, n_places, n).to(device)
        return self._places[key]


def channels_last(values: Tensor, convolution: bool, dims: int) -> Tensor:
    """A view of shape (rows, units, places), with one place behind a linear layer.

    Parameters
    ----------
    values : Tensor
    convolution : bool
        Whether units stand before the places, as in images; at the end otherwise.
    dims : int
        Number of dimensions of a place.
    """
    if not convolution:
        return values.reshape(-1, values.shape[-1], 1)
    if values.dim() == dims + 1:
        values = values[None]
    return values.flatten(2)


@dataclass(eq=False)
class LayerSampler:
    """Which units of a layer are watched, all along.

    Parameters
    ----------
    part : nn.Module
        The layer itself.
    layer : WatchedLayer
    units, inputs : Tensor or None
        Of the outputs and of the inputs; None for all.
    weight_units : Tensor or None
        Whose weights are read.
    n_inputs : int
        Among which ``inputs`` were chosen.
    """

    part: nn.Module
    layer: WatchedLayer
    units: Tensor | None
    inputs: Tensor | None
    weight_units: Tensor | None
    n_inputs: int

    @classmethod
    def choose(
        cls, part: nn.Module, layer: WatchedLayer, n_units: int, random: RandomStream
    ) -> LayerSampler:
        """A choice of at most so many units."""
        units = _choice(layer.n_units, n_units, random)
        readable = max(_MAX_WEIGHTS // max(layer.fan_in, 1), 1)
        weight_units = units
        if min(layer.n_units, n_units) > readable:
            weight_units = _choice(layer.n_units, readable, random)
        n_inputs = _n_inputs(part, layer)
        return cls(
            part, layer, units, _choice(n_inputs, _MAX_INPUTS, random), weight_units, n_inputs
        )

    def refit(self, n_units: int, random: RandomStream) -> None:
        """Choose anew where the layer has been cut down, or got other weights, since."""
        before = (self.layer.n_units, self.layer.fan_in)
        measure(self.part, self.layer)
        if (self.layer.n_units, self.layer.fan_in) != before:
            chosen = LayerSampler.choose(self.part, self.layer, n_units, random)
            self.units, self.weight_units = chosen.units, chosen.weight_units
            self.inputs, self.n_inputs = chosen.inputs, chosen.n_inputs

    @property
    def dims(self) -> int:
        """Dimensions of a place: 0 for a linear layer, 2 for images."""
        return 0 if isinstance(self.part, nn.Linear) else len(self.part.kernel_size)  # type: ignore[arg-type]

    def view(self, values: Tensor) -> Tensor:
        """Outputs or inputs of the layer, of shape (rows, units, places)."""
        return channels_last(values, self.dims > 0, self.dims)

    def to(self, device: torch.device) -> None:
        """Move the choices to where the layer is."""
        for name in ("units", "inputs", "weight_units"):
            chosen = getattr(self, name)
            if chosen is not None and chosen.device != device:
                setattr(self, name, chosen.to(device))

    def weights(self) -> Tensor | None:
        """A copy of the weights of the watched units, shape (units, fan-in), not below float32.

        None where they are computed, or no longer of the size for which the units were chosen.
        """
        if not self.layer.readable_weights or parametrize.is_parametrized(self.part, "weight"):
            return None
        weight = unit_weights(self.part)
        if weight.shape != (self.layer.n_units, self.layer.fan_in):
            return None
        if self.weight_units is not None:
            weight = weight.index_select(0, self.weight_units.to(weight.device))
            return weight if weight.dtype.itemsize >= 4 else weight.float()
        return weight.clone() if weight.dtype.itemsize >= 4 else weight.float()


def _n_inputs(part: nn.Module, layer: WatchedLayer) -> int:
    """Columns or channels that the layer takes."""
    n_in = layer.fan_in if isinstance(part, nn.Linear) else part.in_channels
    assert isinstance(n_in, int)
    return n_in


def _choice(n: int, wanted: int, random: RandomStream) -> Tensor | None:
    return None if n <= wanted else random.permutation(n)[:wanted].sort().values

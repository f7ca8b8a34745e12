"""What a watch has seen: the layers, and their readings pass by pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from freenergy.thermodynamics.watching.accumulation import Sums
from freenergy.thermodynamics.watching.layers import WatchedLayer
from freenergy.thermodynamics.watching.readings import Reading

__all__ = ["History", "Record"]

Array = NDArray[np.float64]

_MAX_RECORDS = 400
_KEPT_WHOLE = 20  # records of the start that are never thinned out


@dataclass(frozen=True, eq=False)
class Record:
    """The readings of one pass, one for each layer.

    Attributes
    ----------
    step : int
        Number of the pass among those of training, from 1.
    readings : tuple of Reading
    """

    step: int
    readings: tuple[Reading, ...]

    @property
    def whole(self) -> bool:
        """Whether the pass went forward and back, and everything in it was finite."""
        flowed = any(np.isfinite(r.gradient_variance) for r in self.readings)
        return flowed and not any(r.infinite for r in self.readings)


@dataclass(eq=False)
class History:
    """Layers and records, in the order of time.

    Attributes
    ----------
    layers : list of WatchedLayer
    records : list of Record
    unwatched : list of str
        Modules with parameters that are not read.
    sums : list of Sums
        What was seen of the gradients between two updates.
    """

    layers: list[WatchedLayer]
    records: list[Record]
    unwatched: list[str]
    sums: list[Sums] = field(default_factory=list)

    def add(self, record: Record) -> None:
        """Append a record; of very many, every second one beyond the start is let go."""
        self.records.append(record)
        if len(self.records) > _MAX_RECORDS:
            self.records = self.records[:_KEPT_WHOLE] + self.records[_KEPT_WHOLE::2]

    @property
    def steps(self) -> Array:
        """Steps of the records."""
        return np.array([record.step for record in self.records], dtype=np.float64)

    @property
    def called(self) -> list[int]:
        """Layers that took part, in the order in which they were called."""
        seen = [i for i, layer in enumerate(self.layers) if layer.order >= 0]
        return sorted(seen, key=lambda i: self.layers[i].order)

    @property
    def chains(self) -> list[list[int]]:
        """Layers that took part, net by net: one list, or one for each part that is called."""
        nets: dict[str, list[int]] = {}
        for i in self.called:
            nets.setdefault(self.layers[i].part, []).append(i)
        return list(nets.values())

    @property
    def hidden(self) -> list[int]:
        """Layers that took part, without the last of each net, whose outputs are those of it."""
        last = {chain[-1] for chain in self.chains}
        return [i for i in self.called if i not in last]

    @property
    def never_called(self) -> list[str]:
        """Layers that took no part."""
        return [layer.name for layer in self.layers if layer.order < 0]

    def series(self, layer: int, quantity: str, records: Sequence[Record] | None = None) -> Array:
        """A number of one layer over the records."""
        chosen = self.records if records is None else records
        return np.array(
            [float(getattr(record.readings[layer], quantity)) for record in chosen],
            dtype=np.float64,
        )

    def middle(self, layers: Sequence[int], quantity: str, records: Sequence[Record]) -> Array:
        """The median of a number over records, for each of some layers; NaN where there is none."""
        table = np.array([self.series(i, quantity, records) for i in layers])
        known = np.isfinite(table).any(axis=1) if table.size else np.zeros(len(layers), bool)
        values = np.full(len(layers), np.nan)
        if known.any():
            values[known] = np.nanmedian(table[known], axis=1)
        return values

    def distances(self) -> tuple[Array, Array]:
        r"""Updates since the first record, and :math:`\\lVert w_t - w_0 \\rVert` of all layers."""
        if not self.records:
            return np.zeros(0), np.zeros(0)
        squares = np.zeros(len(self.records))
        for i in range(len(self.layers)):
            squares += np.nan_to_num(self.series(i, "distance")) ** 2
        times = self.steps - self.records[0].step
        return times[1:], np.sqrt(squares[1:])

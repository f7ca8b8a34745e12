"""Rows and labels as they are read: refused by shard, column and row where they are no good."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from freenergy.data.errors import DataError
from freenergy.data.items import IterableSource
from freenergy.data.sources import Source

__all__ = ["RowCheck", "check_labels", "check_threshold"]

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, eq=False)
class RowCheck:
    """What values of a source must be.

    Attributes
    ----------
    source : Source or IterableSource
    bounds : (float, float) or None
        What finite values must lie in, as they are stored.
    undecided : bool
        Whether the first rows of pixels, which are to be binarised, were 0 and 1 only.
    """

    source: Source | IterableSource
    bounds: tuple[float, float] | None = None
    undecided: bool = False

    def check(self, rows: Array, start: int) -> None:
        """Refuse the first bad value of rows, of which the first has the number ``start``.

        Raises
        ------
        DataError
            Which names shard, column and row.
        """
        rows = rows.reshape(len(rows), -1)
        low, high = rows.min(), rows.max()
        if not (math.isfinite(low) and math.isfinite(high)):
            self._refuse(rows, ~np.isfinite(rows), start, "remove or impute it")
        if self.undecided and high > 1:
            advice = "give full_scale=255 if these are pixels, or else full_scale=1"
            self._refuse(rows, rows > 1, start, f"the first rows are 0 and 1 only; {advice}")
        if self.bounds is not None:
            least, most = self.bounds
            if low < least or high > most:
                advice = (
                    f"outside [{least:g}, {most:g}]: scale the data to this range (full_scale), or "
                    "binarise it"
                )
                self._refuse(rows, (rows < least) | (rows > most), start, advice)

    def _refuse(self, rows: Array, bad: Array, start: int, advice: str) -> None:
        row, column = divmod(int(np.argmax(bad)), rows.shape[1])
        value = float(rows[row, column])
        shard, inside = self.source.place(start + row)
        kind = f"the value {value:g}"
        if not math.isfinite(value):
            kind = "NaN" if math.isnan(value) else "infinity"
        name = f"column {column}"
        if self.source.columns is not None:
            name = f"column {self.source.columns[column]!r} (index {column})"
        raise DataError(f"{shard} has {kind} in {name}, row {inside}: {advice}")


def check_labels(source: Source | IterableSource, labels: Array, start: int) -> Array:
    """The labels, if no row is without; the first row has the number ``start``.

    Raises
    ------
    DataError
        Which names shard and row.
    """
    bad = np.zeros(labels.shape, dtype=bool)
    if labels.dtype.kind == "f":
        bad = ~np.isfinite(labels)
    elif labels.dtype == object:
        bad = np.array([label is None or label != label for label in labels.ravel()])
    if bad.any():
        row = int(np.argmax(bad.reshape(len(labels), -1).any(1)))
        shard, inside = source.place(start + row)
        raise DataError(
            f"{shard} has {labels[row]} for the label of row {inside}: remove the row, or give "
            "it a label"
        )
    return labels


def check_threshold(binarize: float, dtype: np.dtype[Any], full_scale: float) -> None:
    """Refuse a threshold that all values lie on one side of, as far as their type tells.

    Raises
    ------
    DataError
        Which says where values lie.
    """
    least, most = -math.inf, math.inf
    if full_scale != 1.0:
        least, most = 0.0 if dtype.kind in "bu" else -1.0, 1.0
    elif dtype.kind in "iu":
        least, most = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    if least <= binarize <= most:
        return
    divided = "" if full_scale == 1.0 else f" after division by {full_scale:g}"
    raise DataError(
        f"binarize={binarize:g} is compared with values{divided}, which lie in [{least:g}, "
        f"{most:g}]: it lies {'above' if binarize > most else 'below'} all of them; give one "
        "between, such as 0.5"
    )

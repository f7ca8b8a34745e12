"""The rows of a run of the command line: loaded, or streamed where they are too many."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from freenergy import data
from freenergy.data import DataError, DataStream
from freenergy.models import Unit
from freenergy.studies.results import split_held_out
from freenergy.training import Rows, StreamedRows, as_rows

__all__ = ["RunData", "is_in_store", "is_streamed", "open_data", "to_unit"]

_MOST_HELD_OUT = 10_000
_LOOKED_AT = 1000
_MOST_BYTES = 2**28
_STORES = (".h5", ".hdf5", ".zarr")


@dataclass(frozen=True, eq=False)
class RunData:
    """Rows to learn from and rows held out, with values in [0, 1].

    Attributes
    ----------
    name : str
    fingerprint : str
        Of the data before they were divided.
    train : ndarray of shape (n, n_features), or DataStream
    held_out : ndarray of shape (m, n_features)
    image_shape : tuple of int or None
    is_binarized : bool
        Whether a threshold made 0 or 1 of other values; of a stream as a sample tells.
    """

    name: str
    fingerprint: str
    train: np.ndarray | DataStream
    held_out: np.ndarray
    image_shape: tuple[int, ...] | None
    is_binarized: bool = False

    @property
    def width(self) -> int:
        """Number of columns."""
        return int(self.held_out.shape[1])

    def rows(self, unit: Unit, like: torch.Tensor, start_rows: int | None = None) -> Rows:
        """The rows to learn from as a trainer takes them, as values of a binary unit."""
        if isinstance(self.train, DataStream):
            ends = min(unit.support), max(unit.support)
            return StreamedRows(self.train.onto(*ends), like, start_rows=start_rows)
        return as_rows(to_unit(self.train, unit), like)

    def learned_from(self) -> np.ndarray:
        """The rows to learn from; of a stream a sample of evenly spaced blocks."""
        if isinstance(self.train, DataStream):
            return self.train.sample(_MOST_HELD_OUT).rows
        return self.train


def is_streamed(name: str) -> bool:
    """Whether a name is that of data that are streamed: folders, stores, and large files."""
    known = name.lower().replace("_", "-")
    path = Path(name).expanduser()
    if known in data.NAMES:
        return False
    if path.is_dir() or is_in_store(name):
        return True
    if path.suffix.lower() not in (".npy", ".parquet") or not path.is_file():
        return False
    return path.stat().st_size > data.LARGE_BYTES


def is_in_store(name: str) -> bool:
    """Whether a name is that of a store, or of an array in one."""
    return any(f"{ending}:" in f"{name.lower()}:" for ending in _STORES)


def open_data(name: str, binarize: float | None, labels: str | None = None) -> RunData:
    """The rows of a known set, a file, a folder of shards or a store.

    Parameters
    ----------
    name : str
        As for :func:`freenergy.data.load` or :func:`freenergy.data.stream`.
    binarize : float or None
    labels : str, default=None
        What of the data is no feature, as for :func:`freenergy.data.stream`.

    Returns
    -------
    RunData
        Of a stream a fifth of the rows is held out, but at most 10 000 of them.

    Raises
    ------
    ValueError
        When the data cannot be used, or are fewer than ten rows.
    """
    if not is_streamed(name):
        if labels is not None:
            raise DataError(f"labels have no effect on {name}, which is loaded as a whole")
        dataset = data.load(name, binarize=binarize)
        train, held_out = split_held_out(dataset)
        return RunData(
            dataset.name,
            dataset.fingerprint,
            train,
            held_out,
            dataset.image_shape,
            dataset.is_binarized,
        )
    found = data.stream(name, binarize=binarize, labels=labels).within(0.0, 1.0)
    n = found.n_rows or 0
    if n < 10:
        raise DataError(f"{name} has {n} rows; at least 10 are needed to hold some out")
    most = max(1, _MOST_BYTES // (found.width * found.dtype.itemsize))
    kept, rest = found.split(min(max(2, n // 5), _MOST_HELD_OUT, most))
    held_out = rest.sample(_MOST_HELD_OUT).rows.astype(np.float32)
    stem = Path(name.partition(":")[0]).stem
    is_binarized = False
    if binarize is not None:
        stored = replace(kept, threshold=None, bounds=None).sample(_LOOKED_AT).rows
        is_binarized = bool(((stored != 0) & (stored != 1)).any())
    return RunData(stem, found.fingerprint, kept, held_out, found.image_shape, is_binarized)


def to_unit(rows: np.ndarray, unit: Unit) -> torch.Tensor:
    """Rows in [0, 1] as values of a binary unit."""
    low, high = min(unit.support), max(unit.support)
    return torch.from_numpy(rows) * (high - low) + low

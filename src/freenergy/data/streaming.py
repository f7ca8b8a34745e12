"""Data that need not fit into memory, opened as a stream."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from freenergy.data.checks import check_threshold
from freenergy.data.data_stream import DataStream
from freenergy.data.errors import DataError
from freenergy.data.items import IterableSource
from freenergy.data.opening import is_source, open_source
from freenergy.data.ranges import Ranges
from freenergy.data.sources import BLOCKS_IN_BUFFER, Source
from freenergy.data.statistics import Standardization

__all__ = ["LARGE_BYTES", "as_stream", "stream"]

LARGE_BYTES = 2**28
"""Memory maps (but uint8: all) and files beyond this are streamed, smaller ones are loaded."""

_BUFFER_BYTES = 2**28
# Narrow rows would make buffers of so many that drawing places costs more than reading.
_MOST_BUFFERED = 2**20
_PIXELS = 255.0


def stream(
    what: Any,
    *,
    labels: Any = None,
    binarize: float | None = None,
    standardize: bool | Standardization = False,
    full_scale: float | None = None,
    buffer_bytes: int = _BUFFER_BYTES,
    n_readers: int = 2,
) -> DataStream:
    """Rows that are read while they are learned from, in memory that buffers bound.

    Parameters
    ----------
    what : path, array, torch Dataset, IterableDataset or DataLoader, h5py or zarr array
        A path is that of an ``.npy`` or ``.parquet`` file, of a folder of such shards (read in
        the order of their names), or ``FILE.h5:/inside`` or ``STORE.zarr:/inside``, where the
        part from the colon can be left out if there is one array only. Rows of more than one
        dimension are flattened. A row group of Parquet is never divided, and a chunk of HDF5 or
        Zarr only where the buffer would not hold it.
    labels : str, path or array, default=None
        The name of a Parquet column, or of an array in the same HDF5 file or Zarr store, which
        may be given as ``FILE.h5:/inside`` too; or ``.npy`` shards; or an array. A torch Dataset
        has them in its items ``(row, label)``.
    binarize : float, default=None
        Make every value 1 where it is greater than this threshold, and 0 elsewhere; values are
        divided by ``full_scale`` before.
    standardize : bool or Standardization, default=False
        Shift and scale each column to mean 0 and variance 1, in a first pass over the rows; or as
        another stream's ``standardization`` says.
    full_scale : float, default=None
        Values are divided by it. None is 255 for uint8 whose first rows go beyond 0 and 1, and
        1 otherwise.
    buffer_bytes : int, default=2**28
        Size of the buffer in which rows are mixed. A block that is read at once is a 32nd of it.
    n_readers : int, default=2
        Threads that read ahead; the order of the rows does not depend on it.

    Returns
    -------
    DataStream
        What ``fit`` of every estimator takes for its ``X``.

    Raises
    ------
    DataError
        When the data cannot be used; the message names the shard.

    Examples
    --------
    >>> rows = stream(np.arange(12.0).reshape(6, 2), binarize=5.5)
    >>> rows
    DataStream('ndarray', n_rows=6, width=2)
    >>> [block.rows.tolist() for block in rows.blocks()]
    [[[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]]
    """
    if binarize is not None and standardize is not False:
        raise DataError("binarize and standardize exclude each other; drop one of them")
    for name, value in (("binarize", binarize), ("full_scale", full_scale)):
        if value is not None and (isinstance(value, bool | np.bool) or not math.isfinite(value)):
            raise DataError(f"{name}={value} is not a number; give one such as 0.5")
    if full_scale is not None and full_scale <= 0:
        raise DataError(f"full_scale={full_scale} must be positive")
    for name, count in (("buffer_bytes", buffer_bytes), ("n_readers", n_readers)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise DataError(f"{name} must be a whole number of at least 1, got {count!r}")
    source = open_source(what, labels)
    width = math.prod(source.shape[1:])
    buffer_rows = min(_MOST_BUFFERED, max(1, buffer_bytes // (width * source.dtype.itemsize)))
    block_rows = max(1, buffer_rows // BLOCKS_IN_BUFFER)
    scale = _full_scale(source, block_rows) if full_scale is None else float(full_scale)
    if binarize is not None:
        check_threshold(binarize, source.dtype, scale)
    ranges: Ranges = ()
    if isinstance(source, Source):
        cuts = source.cuts(block_rows)
        ranges = tuple(zip(cuts, [*cuts[1:], len(source)], strict=True))
    found = DataStream(
        source,
        ranges,
        block_rows,
        buffer_rows,
        n_readers,
        full_scale=scale,
        is_scale_guessed=full_scale is None,
        threshold=binarize,
    )
    if standardize is False:
        return found
    return found.standardized(standardize if isinstance(standardize, Standardization) else None)


def as_stream(what: Any) -> DataStream | None:
    """A stream as it is, or of what is read in blocks by its nature; None for anything else."""
    if isinstance(what, DataStream):
        return what
    # Pixels are scaled in a stream only, which must not hang on how many there are.
    mapped = isinstance(what, np.memmap) and (what.nbytes > LARGE_BYTES or what.dtype == np.uint8)
    return stream(what) if mapped or is_source(what) else None


def _full_scale(source: Source | IterableSource, block_rows: int) -> float:
    if source.dtype != np.uint8:
        return 1.0
    if isinstance(source, IterableSource):
        first = source.pull(block_rows)
        source.restart()
    else:
        first = source.read(0, min(len(source), block_rows))
    return _PIXELS if first is not None and first.rows.max() > 1 else 1.0

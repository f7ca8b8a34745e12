"""Rows that lie somewhere, read a block at a time: arrays, binary files, and shards of them."""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from freenergy.data.errors import DataError, blaming

__all__ = [
    "BLOCKS_IN_BUFFER",
    "ArraySource",
    "BinaryFile",
    "Block",
    "Labelled",
    "Shards",
    "Source",
    "along_chunks",
    "joined",
    "npy_file",
    "without_column",
]

Array = NDArray[Any]

BLOCKS_IN_BUFFER = 32
"""Blocks that are read at once are about that many times smaller than what mixes their rows."""


class Block(NamedTuple):
    """Contiguous rows as they are stored, with their labels where the source has them.

    Attributes
    ----------
    rows : ndarray of shape (n, ...)
    labels : ndarray of shape (n,) or (n, n_outputs), or None
    """

    rows: Array
    labels: Array | None = None


class Source(ABC):
    """Rows of a known number, of which any block can be read; nothing is kept of what was read.

    Attributes
    ----------
    name : str
        For messages, such as the path of a file.
    shape : tuple of int
        Rows first.
    dtype : numpy.dtype
    columns : tuple of str or None
        Their names, where they have some.
    concurrent : bool
        Whether several threads may read at once.
    has_labels : bool
        Whether blocks have labels.
    is_divisible : bool
        Whether a part of a block is read without reading all of it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    columns: tuple[str, ...] | None = None
    concurrent: bool = True
    has_labels: bool = False
    is_divisible: bool = True

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def read(self, start: int, stop: int) -> Block:
        """The rows from ``start`` to ``stop``, which is excluded."""

    def cuts(self, n_rows: int) -> list[int]:
        """Where blocks of about ``n_rows`` rows start that are read without waste."""
        return list(range(0, len(self), n_rows))

    def place(self, row: int) -> tuple[str, int]:
        """The name of the shard that a row is in, and its number there."""
        return self.name, row

    def parts(self) -> list[tuple[str, int]]:
        """Names and lengths of the shards."""
        return [(Path(self.name).name, len(self))]


class ArraySource(Source):
    """An array, or what is sliced like one: a dataset of h5py, an array of zarr.

    Examples
    --------
    >>> source = ArraySource(np.arange(6).reshape(3, 2), "numbers")
    >>> source.read(1, 3).rows
    array([[2, 3],
           [4, 5]])
    """

    def __init__(self, array: Any, name: str) -> None:
        self.array = array
        self.name = name
        self.shape = tuple(array.shape)
        self.dtype = np.dtype(array.dtype)
        chunks = getattr(array, "chunks", None)
        self._chunk = int(chunks[0]) if chunks else 1
        self.is_divisible = self._chunk == 1

    def read(self, start: int, stop: int) -> Block:
        with blaming(self.name):
            return Block(np.asarray(self.array[start:stop]))

    def cuts(self, n_rows: int) -> list[int]:
        return along_chunks(len(self), n_rows, self._chunk)


class BinaryFile(Source):
    """Rows of a file without compression, read past any memory map.

    What a process reads through a map counts as its own memory until the system takes it back.

    Parameters
    ----------
    path : path-like
    shape : tuple of int
    dtype : numpy.dtype
    offset : int
        Bytes before the first row.
    """

    def __init__(
        self, path: str | Path, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int
    ) -> None:
        self.name = str(path)
        self.shape = shape
        self.dtype = dtype
        self.offset = offset
        self._row = int(np.prod(shape[1:], dtype=np.int64))

    @classmethod
    def of_map(cls, array: np.memmap[Any, Any]) -> BinaryFile | None:
        """The rows of a memory map; None where they are not contiguous, or not in the file."""
        mapped, path = getattr(array, "_mmap", None), array.filename
        if mapped is None or path is None or array.mode == "c" or not array.flags.c_contiguous:
            return None
        first = np.frombuffer(mapped, np.uint8).__array_interface__["data"][0]
        begin = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
        offset = begin + array.__array_interface__["data"][0] - first
        return cls(str(path), array.shape, array.dtype, offset)

    def read(self, start: int, stop: int) -> Block:
        count = (stop - start) * self._row
        at = self.offset + start * self._row * self.dtype.itemsize
        with blaming(self.name):
            values = np.fromfile(self.name, self.dtype, count, offset=at)
        if len(values) < count:
            raise DataError(f"{self.name} ends before row {stop}; it was cut short: write it again")
        return Block(values.reshape(stop - start, *self.shape[1:]))


def npy_file(path: Path) -> Source:
    """The array of an .npy file, of which only the header is read."""
    with blaming(path):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    source = BinaryFile.of_map(array) if isinstance(array, np.memmap) else None
    if source is not None:
        return source
    if array.size and not array.flags.c_contiguous:
        raise DataError(
            f"{path} is stored column by column, so that a row is spread over the whole file; "
            "write it again with numpy.ascontiguousarray"
        )
    return ArraySource(array, str(path))


class Shards(Source):
    """Sources one after the other.

    Parameters
    ----------
    sources : sequence of Source
        At least one; rows of one shape, type and naming.

    Raises
    ------
    DataError
        When one does not fit the first; the message names it.

    Examples
    --------
    >>> parts = [ArraySource(np.full((2, 3), k), f"part {k}") for k in range(3)]
    >>> shards = Shards(parts)
    >>> shards.read(1, 3).rows[:, 0], shards.place(4)
    (array([0, 1]), ('part 2', 0))
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        first = sources[0]
        for source in sources[1:]:
            _check_alike(source, first)
        self.sources = list(sources)
        self._ends = list(accumulate(len(source) for source in sources))
        self.name = str(Path(first.name).parent)
        self.shape = (self._ends[-1], *first.shape[1:])
        self.dtype = first.dtype
        self.columns = first.columns
        self.concurrent = all(source.concurrent for source in sources)
        self.is_divisible = all(source.is_divisible for source in sources)

    def read(self, start: int, stop: int) -> Block:
        parts = []
        while start < stop:
            source, begin = self._at(start)
            end = min(len(source), begin + stop - start)
            parts.append(source.read(begin, end))
            start += end - begin
        return joined(parts)

    def cuts(self, n_rows: int) -> list[int]:
        # No block in two shards: many small ones are many small blocks.
        begins = [0, *self._ends[:-1]]
        return [
            begin + cut
            for begin, source in zip(begins, self.sources, strict=True)
            for cut in source.cuts(n_rows)
        ]

    def place(self, row: int) -> tuple[str, int]:
        source, inside = self._at(row)
        return source.place(inside)

    def parts(self) -> list[tuple[str, int]]:
        return [part for source in self.sources for part in source.parts()]

    def _at(self, row: int) -> tuple[Source, int]:
        k = bisect_right(self._ends, row)
        return self.sources[k], row - (self._ends[k - 1] if k else 0)


class Labelled(Source):
    """Rows with labels that lie elsewhere.

    Parameters
    ----------
    rows, labels : Source
        Of the same length; labels of shape (n,) or (n, n_outputs), where (n, 1) is read as (n,).

    Raises
    ------
    DataError
        When the lengths differ.
    """

    def __init__(self, rows: Source, labels: Source) -> None:
        if len(labels) != len(rows) or len(labels.shape) > 2:
            raise DataError(
                f"the labels {labels.name} have shape {labels.shape} for the {len(rows)} rows of "
                f"{rows.name}; give one for each row"
            )
        self.rows, self.labels = rows, labels
        self.name, self.shape, self.dtype = rows.name, rows.shape, rows.dtype
        self.columns = rows.columns
        self.concurrent = rows.concurrent and labels.concurrent
        self.is_divisible = rows.is_divisible
        self.has_labels = True

    def read(self, start: int, stop: int) -> Block:
        labels = self.labels.read(start, stop).rows
        return Block(self.rows.read(start, stop).rows, without_column(labels))

    def cuts(self, n_rows: int) -> list[int]:
        return self.rows.cuts(n_rows)

    def place(self, row: int) -> tuple[str, int]:
        return self.rows.place(row)

    def parts(self) -> list[tuple[str, int]]:
        return self.rows.parts()


def without_column(labels: Array) -> Array:
    """Labels of shape (n, 1) as those of shape (n,); all others as they are."""
    return labels.reshape(-1) if labels.shape[1:] == (1,) else labels


def along_chunks(n: int, n_rows: int, chunk: int) -> list[int]:
    """Where blocks of whole chunks start; only a chunk that the buffer would not hold is divided.

    A chunk that two blocks share is decompressed for each.

    Examples
    --------
    >>> along_chunks(100, 20, 16), along_chunks(100, 20, 40), along_chunks(100, 1, 100)
    ([0, 16, 32, 48, 64, 80, 96], [0, 40, 80], [0, 32, 64, 96])
    """
    step = max(1, n_rows // chunk) * chunk
    return list(range(0, n, min(step, n_rows * BLOCKS_IN_BUFFER)))


def joined(blocks: Sequence[Block]) -> Block:
    """Blocks one after the other, as one."""
    if len(blocks) == 1:
        return blocks[0]
    labels = [block.labels for block in blocks if block.labels is not None]
    rows = np.concatenate([block.rows for block in blocks])
    return Block(rows, np.concatenate(labels) if labels else None)


def _check_alike(source: Source, first: Source) -> None:
    if source.shape[1:] != first.shape[1:]:
        raise DataError(
            f"{source.name} has rows of shape {source.shape[1:]}, but {first.name} has "
            f"{first.shape[1:]}; give shards of one width"
        )
    if source.dtype != first.dtype:
        raise DataError(
            f"{source.name} has values of type {source.dtype}, but {first.name} has {first.dtype}; "
            "write all shards with one type"
        )
    if source.columns != first.columns:
        raise DataError(
            f"{source.name} does not have the columns of {first.name} in their order; write all "
            "shards with the same columns"
        )

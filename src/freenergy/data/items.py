"""Rows of torch's data sets: items by number, and items that come one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from freenergy.data.errors import DataError, reason_of
from freenergy.data.sources import ArraySource, Block, Labelled, Source, without_column

__all__ = [
    "ItemSource",
    "IterableSource",
    "is_iterable_data",
    "is_torch_data",
    "item_source",
]

Array = NDArray[Any]


def item_source(dataset: Any) -> Source:
    """A torch Dataset of known length, whose items are rows or pairs (row, label)."""
    if type(dataset) is TensorDataset and len(dataset.tensors) in (1, 2):
        name = type(dataset).__name__
        rows, *labels = (ArraySource(t.detach().cpu().numpy(), name) for t in dataset.tensors)
        return Labelled(rows, labels[0]) if labels else rows
    return ItemSource(dataset)


class ItemSource(Source):
    """A torch Dataset of known length, read by one thread item by item.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
        Its items are rows, or pairs of a row and its label; tensors, arrays or numbers.
    """

    concurrent = False  # Nobody promises that ``__getitem__`` may be called by several threads.

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.name = type(dataset).__name__
        n = len(dataset)
        if n == 0:
            raise DataError(f"{self.name} is empty")
        row, label = _as_pair(self._items(0, 1)[0], self.name)
        self.has_labels = label is not None
        self.shape = (n, *row.shape)
        self.dtype = row.dtype

    def read(self, start: int, stop: int) -> Block:
        pairs = [_as_pair(item, self.name) for item in self._items(start, stop)]
        return _stacked(pairs, self, start)

    def _items(self, start: int, stop: int) -> Any:
        many = getattr(self.dataset, "__getitems__", None)
        try:
            if many is not None:
                return many(list(range(start, stop)))
            return [self.dataset[k] for k in range(start, stop)]
        except Exception as error:
            raise _failed(f"items {start} to {stop - 1} of {self.name}", error) from error


class IterableSource:
    """An IterableDataset, or the batches of a DataLoader: rows in the order in which they come.

    Parameters
    ----------
    dataset : torch.utils.data.IterableDataset or torch.utils.data.DataLoader

    Attributes
    ----------
    shape : tuple of int
        Of the rows, with -1 for their number, which nobody knows.
    n_read : int
        Rows that were pulled since the first one.
    """

    columns = None

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.name = type(dataset).__name__
        self._in_batches = isinstance(dataset, DataLoader) and dataset.batch_size is not None
        self._iterator: Iterator[Any] | None = None
        self.n_read = 0
        first = next(iter(self._rows()), None)
        if first is None:
            raise DataError(f"{self.name} is empty")
        row, label = first
        self.has_labels = label is not None
        self.shape = (-1, *row.shape)
        self.dtype = row.dtype

    def restart(self) -> None:
        """Begin at the first row again."""
        self._iterator = None

    def pull(self, n_rows: int) -> Block | None:
        """The next rows, at most so many; None at the end, until :meth:`restart`."""
        if self._iterator is None:
            self._iterator, self.n_read = self._rows(), 0
        pairs = list(islice(self._iterator, n_rows))
        if not pairs:
            return None
        block = _stacked(pairs, self, self.n_read)
        self.n_read += len(pairs)
        return block

    def place(self, row: int) -> tuple[str, int]:
        """The name, and the number of a row since the beginning."""
        return self.name, row

    def _rows(self) -> Iterator[tuple[Array, Array | None]]:
        try:
            for item in self.dataset:
                if not self._in_batches:
                    yield _as_pair(item, self.name)
                    continue
                rows, labels = _as_pair(item, self.name)
                for k, row in enumerate(rows):
                    yield row, None if labels is None else labels[k]
        except DataError:
            raise
        except Exception as error:
            raise _failed(self.name, error) from error


def is_torch_data(what: object) -> bool:
    """Whether something is one of torch's data sets or loaders."""
    return isinstance(what, torch.utils.data.Dataset | DataLoader)


def is_iterable_data(what: object) -> bool:
    """Whether rows come one after the other only."""
    return isinstance(what, IterableDataset | DataLoader)


def _as_pair(item: Any, name: str) -> tuple[Array, Array | None]:
    if isinstance(item, tuple | list) and len(item) in (1, 2) and not np.isscalar(item[0]):
        row, label = item[0], item[1] if len(item) == 2 else None
        return _as_array(row, name), None if label is None else _as_array(label, name)
    return _as_array(item, name), None


def _as_array(value: Any, name: str) -> Array:
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype == object:
        raise DataError(
            f"{name} has items of type {type(value).__name__}; give tensors, or pairs of a row "
            "and its label"
        )
    return array


def _stacked(
    pairs: list[tuple[Array, Array | None]], source: ItemSource | IterableSource, start: int
) -> Block:
    for k, (row, label) in enumerate(pairs):
        if row.shape != source.shape[1:] or (label is not None) != source.has_labels:
            raise DataError(
                f"item {start + k} of {source.name} has shape {row.shape} instead of "
                f"{source.shape[1:]}, or a label where the first has none"
            )
        if not np.can_cast(row.dtype, source.dtype, "same_kind"):
            raise DataError(
                f"item {start + k} of {source.name} has type {row.dtype} instead of {source.dtype}"
            )
    rows = np.stack([row for row, _ in pairs]).astype(source.dtype, copy=False)
    labels = [label for _, label in pairs if label is not None]
    return Block(rows, without_column(np.stack(labels)) if labels else None)


def _failed(what: str, error: Exception) -> DataError:
    return DataError(f"{what} cannot be read ({type(error).__name__}: {reason_of(error)})")

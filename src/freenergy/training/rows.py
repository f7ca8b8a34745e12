"""Rows of data as a trainer asks for them: tensors, sparse matrices and streams alike."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from freenergy.data import Block, ColumnStatistics, DataError, DataStream
from freenergy.data.shares import Portion
from freenergy.data.statistics import counts_of_all, pooled
from freenergy.distributed import ALONE, group_now
from freenergy.random import RandomStream
from freenergy.training.transfer import placed, sent

__all__ = [
    "DenseRows",
    "LabelledBatch",
    "LabelledRows",
    "Part",
    "Rows",
    "SparseRows",
    "StreamedRows",
    "as_part",
    "as_rows",
    "label_counts",
    "rows_in",
]

T = TypeVar("T")

_BLOCK = 4096
_BLOCK_ELEMENTS = 2**22


class Part(NamedTuple):
    """The rows of a batch that one of several processes takes.

    Attributes
    ----------
    batch : Tensor or LabelledBatch
        Its own rows; there may be none.
    n_rows : int
        Rows of the whole batch.
    """

    batch: Any
    n_rows: int


class Rows(Protocol):
    """What training needs of its data."""

    @property
    def width(self) -> int:
        """Number of columns."""
        ...

    @property
    def n_rows(self) -> int | None:
        """Number of rows; None where nobody knows."""
        ...

    @property
    def total(self) -> float:
        """Sum of the rows' weights, on which the means rest."""
        ...

    @property
    def resident(self) -> bool:
        """Whether all rows lie where the model does."""
        ...

    def __len__(self) -> int: ...

    def batches(
        self, size: int, order: RandomStream | None = None, limit: int | None = None
    ) -> Generator[Any]:
        """Batches of one epoch, at most ``limit``; without ``order`` as the rows lie."""
        ...

    def parts(
        self,
        size: int,
        portion: Portion,
        order: RandomStream | None = None,
        limit: int | None = None,
    ) -> Generator[Part]:
        """One process's parts of the same batches."""
        ...

    def some(self, n_rows: int) -> Any:
        """Up to so many rows that stand for all, to watch a model with."""
        ...

    def take(self, index: Tensor | slice) -> Tensor:
        """Dense rows, on the model's device and in its precision."""
        ...

    def part(self, index: Tensor) -> Rows:
        """The rows at these positions, as rows again."""
        ...

    def mean(self) -> Tensor:
        """Mean of each column."""
        ...


class _RowsInMemory:
    """What rows that are all at hand have in common."""

    def __len__(self) -> int:
        raise NotImplementedError

    def take(self, index: Tensor | slice) -> Any:
        """The rows at these positions."""
        raise NotImplementedError

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self)

    @property
    def total(self) -> float:
        """Number of rows, each of which has a weight of one."""
        return float(len(self))

    @property
    def resident(self) -> bool:
        """Whether all rows lie where the model does."""
        return False

    @property
    def home(self) -> torch.device:
        """Where the rows lie, and positions are looked up."""
        return torch.device("cpu")

    def batches(
        self, size: int, order: RandomStream | None = None, limit: int | None = None
    ) -> Generator[Any]:
        """Batches of one epoch, in an order drawn uniformly from all."""
        for index, _ in self._places(size, order, limit, slice):
            yield self.take(index)

    def parts(
        self,
        size: int,
        portion: Portion,
        order: RandomStream | None = None,
        limit: int | None = None,
    ) -> Generator[Part]:
        """One process's parts of the same batches; no other rows are touched."""
        for index, n_rows in self._places(size, order, limit, portion):
            yield Part(self.take(index), n_rows)

    def _places(
        self, size: int, order: RandomStream | None, limit: int | None, portion: Portion
    ) -> Generator[tuple[Tensor | slice, int]]:
        """Positions of a portion of each batch, and the number of rows of all of it."""
        n = len(self)
        # The order within one batch makes no difference, so none is drawn for it.
        # It is brought to the rows whole: for each batch, the host would wait for the device.
        shuffled = order is not None and n > size
        permutation = order.permutation(n).to(self.home) if order is not None and shuffled else None
        for start in range(0, n if limit is None else min(n, limit * size), size):
            n_rows = min(size, n - start)
            own = portion(n_rows)
            part = slice(start + (own.start or 0), start + own.stop)
            yield part if permutation is None else permutation[part], n_rows

    def some(self, n_rows: int) -> Any:
        """The first rows."""
        return self.take(slice(0, n_rows))


class DenseRows(_RowsInMemory):
    """Rows of one tensor.

    Parameters
    ----------
    data : Tensor
        On the device of the model, or on the host where it is too large for that.
    like : Tensor or None, default=None
        On the device of the model; None is ``data``.
    """

    def __init__(self, data: Tensor, like: Tensor | None = None) -> None:
        self.data = data
        self.like = data if like is None else like.detach()

    @property
    def resident(self) -> bool:
        """Whether all rows lie where the model does."""
        return self.data.device == self.like.device

    @property
    def home(self) -> torch.device:
        """Where the rows lie."""
        return self.data.device

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.data.shape[1]

    def __len__(self) -> int:
        return len(self.data)

    def take(self, index: Tensor | slice) -> Tensor:
        """The rows at these positions."""
        if isinstance(index, slice):
            return sent(self.data[index], self.like)
        # Several times as fast as indexing, for the rows of a batch.
        return sent(self.data.index_select(0, index.to(self.data.device)), self.like)

    def part(self, index: Tensor) -> DenseRows:
        """The rows at these positions, as rows again."""
        return DenseRows(self.data[index], self.like)

    def mean(self) -> Tensor:
        """Mean of each column, summed in double precision."""
        # In blocks: torch copies what it sums in another precision.
        total = self.data.new_zeros(self.width, dtype=torch.float64)
        for block in self.data.split(max(1, _BLOCK_ELEMENTS // max(1, self.width))):
            total += block.sum(0, dtype=torch.float64)
        return (total / len(self)).to(self.data)


class SparseRows(_RowsInMemory):
    """Rows of a CSR matrix; only the batch at hand is ever dense."""

    def __init__(self, data: sp.csr_array, dtype: torch.dtype, device: torch.device) -> None:
        self.data = data
        self.dtype = dtype
        self.device = device

    @property
    def width(self) -> int:
        """Number of columns."""
        return int(self.data.shape[1])

    def __len__(self) -> int:
        return int(self.data.shape[0])

    def take(self, index: Tensor | slice) -> Tensor:
        """The rows at these positions, dense."""
        rows = self.data[index if isinstance(index, slice) else index.numpy()]
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        return sent(torch.from_numpy(rows.toarray()), like)

    def part(self, index: Tensor) -> SparseRows:
        """The rows at these positions, as rows again."""
        return SparseRows(self.data[index.numpy()], self.dtype, self.device)

    def mean(self) -> Tensor:
        """Mean of each column, summed in double precision."""
        # SciPy's own sum runs in the matrix's precision, whatever its ``dtype`` says.
        total = np.bincount(self.data.indices, weights=self.data.data, minlength=self.width)
        return torch.from_numpy(total / len(self)).to(device=self.device, dtype=self.dtype)


class LabelledBatch(NamedTuple):
    """Rows with their labels and weights, as a supervised gradient takes them.

    Attributes
    ----------
    rows : Tensor of shape (n, n_features)
    labels : Tensor
        Of shape (n,): the classes' numbers, -1 where a row has none; or the targets of a
        regression.
    weights : Tensor of shape (n,) or None
        Of the rows in the mean; None is one for each.
    """

    rows: Tensor
    labels: Tensor
    weights: Tensor | None


class LabelledRows(_RowsInMemory):
    """Rows with a label each, and perhaps a weight.

    Examples
    --------
    >>> import torch
    >>> rows = LabelledRows(DenseRows(torch.eye(3)), torch.tensor([0, 1, -1]))
    >>> rows.take(slice(1, 3)).labels
    tensor([ 1, -1])
    """

    def __init__(self, rows: Rows, labels: Tensor, weights: Tensor | None = None) -> None:
        self.rows = rows
        self.labels = labels
        self.weights = weights

    @property
    def width(self) -> int:
        """Number of columns, without the labels."""
        return self.rows.width

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def resident(self) -> bool:
        """Whether all rows lie where the model does."""
        return self.rows.resident

    @property
    def home(self) -> torch.device:
        """Where rows and labels lie; the host, where they do not lie together."""
        home = getattr(self.rows, "home", torch.device("cpu"))
        return home if home == self.labels.device else torch.device("cpu")

    def take(self, index: Tensor | slice) -> LabelledBatch:
        """The rows at these positions, with labels and weights."""
        weights = None if self.weights is None else self.weights[index]
        return LabelledBatch(self.rows.take(index), self.labels[index], weights)

    def part(self, index: Tensor) -> LabelledRows:
        """The rows at these positions, as labelled rows again."""
        weights = None if self.weights is None else self.weights[index]
        return LabelledRows(self.rows.part(index), self.labels[index], weights)

    def shuffled(self, random: RandomStream) -> LabelledRows:
        """The same rows with their labels in a random order, and the weights in their places."""
        order = random.permutation(len(self)).to(self.labels.device)
        return LabelledRows(self.rows, self.labels[order], self.weights)

    @property
    def total(self) -> float:
        """Sum of the weights, the number of rows where none has one."""
        return float(len(self) if self.weights is None else self.weights.double().sum())

    def class_shares(self, n_classes: int) -> Tensor:
        """Weight of each class among the labelled rows, with one pseudo-count for each."""
        labelled = self.labels >= 0
        weights = None if self.weights is None else self.weights[labelled].double()
        counts = torch.bincount(self.labels[labelled], weights, n_classes).double() + 1.0
        return counts / counts.sum()

    def mean(self) -> Tensor:
        """Weighted mean of each column, summed in double precision."""
        if self.weights is None:
            return self.rows.mean()
        total = self.weights.new_zeros(self.width, dtype=torch.float64)
        for start in range(0, len(self), _BLOCK):
            part = slice(start, start + _BLOCK)
            total += self.weights[part].double() @ self.rows.take(part).double()
        return (total / self.total).to(self.weights)


class StreamedRows:
    """Rows of a stream; only buffers and the batch at hand are in memory.

    Parameters
    ----------
    stream : DataStream
        Where its labels are encoded, batches are :class:`LabelledBatch`.
    like : Tensor
        Has the precision and the device of the batches.
    start_rows : int, default=None
        About so many rows are enough for the means; None reads all.

    Examples
    --------
    >>> import numpy as np
    >>> from freenergy.data import stream
    >>> rows = StreamedRows(stream(np.eye(4)), torch.empty(0))
    >>> [batch.shape for batch in rows.batches(3, RandomStream(0))]
    [torch.Size([3, 4]), torch.Size([1, 4])]
    """

    def __init__(self, stream: DataStream, like: Tensor, *, start_rows: int | None = None) -> None:
        self.stream = stream
        self.like = like.detach()
        self.start_rows = start_rows
        self._statistics: ColumnStatistics | None = None
        self._dtype = np.dtype(np.float64 if like.dtype == torch.float64 else np.float32)

    @property
    def rows(self) -> StreamedRows:
        """The same rows without their labels."""
        return StreamedRows(replace(self.stream, encode=None), self.like)

    def labelled_only(self) -> StreamedRows:
        """The rows that have a label, for batches."""
        n = None
        if self.n_rows is not None and self.stream.encode is not None:
            labels, counts = label_counts(self.stream)
            known = self.stream.encode(labels) >= 0
            if known.all():
                return self
            n = int(counts[known].sum())
        return StreamedRows(self.stream.labelled_only(n), self.like, start_rows=self.start_rows)

    @property
    def width(self) -> int:
        """Number of columns, without labels."""
        return self.stream.width

    @property
    def n_rows(self) -> int | None:
        """Number of rows; None where nobody knows."""
        return self.stream.n_rows

    @property
    def statistics(self) -> ColumnStatistics:
        """Means of the columns and counts of the labels, in one pass that is made once.

        The processes of a group divide it among themselves: each of them has to ask.
        """
        if self._statistics is None:
            self._statistics = self._counted()
        return self._statistics

    def _counted(self) -> ColumnStatistics:
        def count(portion: Portion) -> ColumnStatistics:
            counted = self.stream.encode is not None
            return self.stream.statistics(
                n_rows=self.start_rows, count_labels=counted, portion=portion
            )

        parts = [part for part in _of_each(self.stream, count) if part.n_rows]
        return parts[0] if len(parts) == 1 else pooled(parts)

    @property
    def total(self) -> float:
        """Number of rows that the means rest on."""
        return float(self.statistics.n_rows)

    @property
    def resident(self) -> bool:
        """Whether all rows lie where the model does."""
        return False

    def __len__(self) -> int:
        n = self.n_rows
        if n is None:
            raise ValueError(f"nobody knows how many rows {self.stream.name} has")
        return n

    def batches(
        self, size: int, order: RandomStream | None = None, limit: int | None = None
    ) -> Generator[Any]:
        """Batches of one epoch, mixed by block and buffer."""
        with closing(self.stream.batches(size, order, limit)) as blocks:
            for block in blocks:
                yield self._batch(Block(self.stream.values(block.rows, self._dtype), block.labels))

    def parts(
        self,
        size: int,
        portion: Portion,
        order: RandomStream | None = None,
        limit: int | None = None,
    ) -> Generator[Part]:
        """One process's parts of the same batches; where rows are mixed, it reads no others.

        How many rows of a batch are its own is left to chance.
        """
        with closing(self.stream.parts(size, portion, order, limit)) as parts:
            for (rows, labels), n_rows in parts:
                block = Block(self.stream.values(rows, self._dtype), labels)
                yield Part(self._batch(block), n_rows)

    def some(self, n_rows: int) -> Any:
        """Rows of evenly spaced blocks."""
        return self._batch(self.stream.sample(n_rows))

    def take(self, index: Tensor | slice) -> Any:
        """The rows of a slice, where they fit into memory."""
        if not isinstance(index, slice) or index.step not in (None, 1):
            raise TypeError("a stream gives contiguous rows only")
        start, stop, _ = index.indices(len(self))
        return self._batch(self.stream.read(start, stop))

    def part(self, index: Tensor) -> StreamedRows:
        """Not of a stream: see :meth:`split`."""
        raise TypeError("a stream is not divided row by row; split it")

    def split(self, n_held_out: int) -> tuple[StreamedRows, StreamedRows]:
        """Rows to learn from, and rows held out of evenly spaced blocks."""
        kept, held_out = (
            StreamedRows(part, self.like, start_rows=self.start_rows)
            for part in self.stream.split(n_held_out)
        )
        return kept, held_out

    def mean(self) -> Tensor:
        """Mean of each column, summed in double precision."""
        return torch.from_numpy(self.statistics.mean).to(self.like)

    def class_shares(self, n_classes: int) -> Tensor:
        """Share of each class among the labelled rows, with one pseudo-count for each."""
        counts = torch.ones(n_classes, dtype=torch.float64)
        for label, count in zip(*self.statistics.labels, strict=True):
            if label >= 0:
                counts[int(label)] += int(count)
        return (counts / counts.sum()).to(self.like.device)

    def _batch(self, block: Block) -> Any:
        rows = sent(torch.from_numpy(block.rows), self.like)
        if self.stream.encode is None or block.labels is None:
            return rows
        labels = torch.from_numpy(block.labels).to(self.like.device)
        return LabelledBatch(rows, labels if labels.dtype == torch.int64 else labels.to(rows), None)


def label_counts(stream: DataStream) -> tuple[np.ndarray, np.ndarray]:
    """Distinct labels of a stream, and how many rows have them.

    The processes of a group divide the counting among themselves: each of them has to ask.
    """
    return counts_of_all(_of_each(stream, stream.label_counts))


def _of_each(stream: DataStream, work: Callable[[Portion], T]) -> list[T]:
    """What each process finds in its portion of a stream; what one of them refuses, all refuse."""
    # Rows without numbers are not divided: each process finds all that there is.
    group = group_now() if stream.n_rows is not None else ALONE
    own: T | DataError
    try:
        own = work(group.portion)
    except DataError as error:
        own = error
    found: list[T] = []
    for part in group.collect(own):
        if isinstance(part, DataError):
            raise part
        found.append(part)
    return found


def rows_in(batch: Any) -> int:
    """Number of rows of a batch, labelled or not; all of them where it is a part of one."""
    if isinstance(batch, Part):
        return batch.n_rows
    return len(batch.rows if isinstance(batch, LabelledBatch) else batch)


def as_part(batch: Any) -> Part:
    """A batch as the part of one that it is, or as all of it.

    Examples
    --------
    >>> as_part(torch.eye(3)).n_rows, as_part(Part(torch.eye(3), 7)).n_rows
    (3, 7)
    """
    return batch if isinstance(batch, Part) else Part(batch, rows_in(batch))


def as_rows(
    data: np.ndarray | Tensor | sp.sparray | sp.spmatrix | DataStream, like: Tensor
) -> Rows:
    """Rows of any kind of data, with the precision and device of ``like``.

    Examples
    --------
    >>> import numpy as np, torch
    >>> rows = as_rows(np.eye(3), like=torch.empty(0))
    >>> rows.take(slice(0, 1))
    tensor([[1., 0., 0.]])
    """
    if isinstance(data, DataStream):
        return StreamedRows(data, like)
    if sp.issparse(data):
        return SparseRows(sp.csr_array(data), like.dtype, like.device)
    if not isinstance(data, Tensor):
        with warnings.catch_warnings():
            # Arrays of a memory map or a dataframe are read-only; rows are never written to.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            data = torch.from_numpy(np.ascontiguousarray(data))
    return DenseRows(placed(data, like), like)

"""A stream of rows that need not fit into memory: blocks, batches, samples and statistics."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from freenergy.data.checks import RowCheck, check_labels
from freenergy.data.errors import DataError
from freenergy.data.items import IterableSource
from freenergy.data.ranges import SPREAD, Ranges, divided, drawn, few_of, within
from freenergy.data.reading import in_batches, mixed, read_ahead, taken
from freenergy.data.shares import NOT_HELD, Held, Portion, own_part
from freenergy.data.sources import (
    BLOCKS_IN_BUFFER,
    ArraySource,
    Block,
    Labelled,
    Source,
    joined,
    without_column,
)
from freenergy.data.statistics import (
    ColumnStatistics,
    Standardization,
    counted,
    moments,
    pooled,
    standardization,
)
from freenergy.distributed import ALONE
from freenergy.random import RandomStream

__all__ = ["DataStream"]

Array: TypeAlias = NDArray[Any]
Encoder: TypeAlias = Callable[[Array], Array]
"""Takes labels as they are stored, returns numbers, one or several for each row."""

_MOST_HELD_TOGETHER = 2**30
_SAMPLED = 64
# Reading one row by itself costs about as much as so many in a block.
_SPARSE = 32


@dataclass(frozen=True, eq=False, repr=False)
class DataStream:
    """Rows read in blocks, checked, transformed, and mixed; :func:`freenergy.data.stream` makes it.

    Attributes
    ----------
    source : Source or IterableSource
        Where they lie.
    ranges : tuple of (int, int)
        The blocks, first row and end; empty where rows come one after the other only.
    block_rows, buffer_rows : int
        Rows that are read at once, and that are mixed.
    n_readers : int
    full_scale : float
        What values are divided by.
    is_scale_guessed : bool
        Whether the first rows said it.
    threshold : float or None
        What values must be greater than, once divided, to become 1.
    standardization : Standardization or None
    span : (float, float)
        What 0 and 1 become at last.
    bounds : (float, float) or None
        What values must lie in, before ``span``; checked as they are read.
    encode : callable or None
        Makes numbers of the labels; without it they are left out of batches.
    keep : callable or None
        Of encoded labels, whether their rows come into batches; the others are passed over.
    n_kept : int or None
        How many come into batches, where some are passed over and their number is known.
    """

    source: Source | IterableSource
    ranges: Ranges
    block_rows: int
    buffer_rows: int
    n_readers: int
    full_scale: float = 1.0
    is_scale_guessed: bool = False
    threshold: float | None = None
    standardization: Standardization | None = None
    span: tuple[float, float] = (0.0, 1.0)
    bounds: tuple[float, float] | None = None
    encode: Encoder | None = None
    keep: Encoder | None = None
    n_kept: int | None = None

    @property
    def name(self) -> str:
        """Where the rows come from."""
        return self.source.name

    @property
    def width(self) -> int:
        """Number of columns."""
        return math.prod(self.source.shape[1:])

    @property
    def n_rows(self) -> int | None:
        """Number of rows; None where nobody knows."""
        if isinstance(self.source, IterableSource):
            return None
        if self.keep is not None:
            return self.n_kept
        return sum(stop - start for start, stop in self.ranges)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values that are given out: float64 where they are stored so, else float32."""
        stored = self.source.dtype.newbyteorder("=")
        return np.dtype(np.float64 if stored == np.float64 else np.float32)

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Names of the columns, where they have some."""
        return self.source.columns

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """The shape of a row that is stored with more than one dimension."""
        return self.source.shape[1:] if len(self.source.shape) > 2 else None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the shape, the type, the shards' names and lengths, and of sampled rows.

        Sixteen places, evenly spaced, are read with up to 64 rows each: it tells other data from
        these without reading them all, and may miss a change between those places. Of rows that
        come one after the other the first 64 are read, which are others each time where a loader
        shuffles them.
        """
        digest = hashlib.sha256(f"{self.source.dtype.str} {self.source.shape}\n".encode())
        digest.update(f"{self.full_scale} {self.threshold}\n".encode())
        if self.standardization is not None:
            digest.update(self.standardization.mean.tobytes())
            digest.update(self.standardization.scale.tobytes())
        if isinstance(self.source, Source):
            digest.update(repr(self.source.parts()).encode())
        for rows, labels in self._samples():
            digest.update(rows.tobytes())
            digest.update(b"" if labels is None else repr(labels.tolist()).encode())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"DataStream({self.name!r}, n_rows={self.n_rows}, width={self.width})"

    # ---- the same rows, otherwise ----------------------------------------------------------------

    def within(self, low: float, high: float) -> DataStream:
        """The same rows, whose values are checked to lie in ``[low, high]`` as they are read."""
        if self.standardization is not None:
            raise DataError(
                f"{self.name} is standardised, so that values lie outside [{low:g}, {high:g}]; "
                "binarise it instead"
            )
        return replace(self, bounds=(low, high))

    def onto(self, low: float, high: float) -> DataStream:
        """The same rows with ``low`` in place of 0 and ``high`` in place of 1."""
        return replace(self, span=(low, high))

    def encoded(self, encode: Encoder) -> DataStream:
        """The same rows with labels as numbers.

        Raises
        ------
        DataError
            When there are no labels.
        """
        if not self.has_labels:
            raise DataError(f"{self.name} has no labels; name them: stream(..., labels=...)")
        return replace(self, encode=encode)

    def labelled_only(self, n_rows: int | None) -> DataStream:
        """Batches without the rows whose encoded label is less than zero; so many are left."""
        return replace(self, keep=lambda labels: labels >= 0, n_kept=n_rows)

    def labelled(self, labels: Any) -> DataStream:
        """The same rows with these labels, one for each row that lies there."""
        if isinstance(self.source, IterableSource):
            raise DataError(f"labels of {self.name} must be part of its items: pairs (row, label)")
        if not np.ndim(labels):
            raise DataError(
                f"labels of {self.name} are one for each row, got {labels!r}: give an array, or "
                "the name of a column, file or folder to freenergy.data.stream(..., labels=...)"
            )
        rows = self.source.rows if isinstance(self.source, Labelled) else self.source
        return replace(self, source=Labelled(rows, ArraySource(np.asarray(labels), "labels")))

    @property
    def has_labels(self) -> bool:
        """Whether rows have labels."""
        return self.source.has_labels

    def standardized(self, by: Standardization | None = None) -> DataStream:
        """The same rows with columns of mean 0 and variance 1, or shifted and scaled ``by`` those.

        Raises
        ------
        DataError
            When the widths differ, or a value is not finite.
        """
        if by is None:
            by = standardization(self.statistics(variances=True))
        if by.mean.shape != (self.width,):
            raise DataError(
                f"{self.name} has {self.width} columns, but the standardization has {by.mean.size}"
            )
        return replace(self, standardization=by)

    def split(self, n_held_out: int) -> tuple[DataStream, DataStream]:
        """Rows to learn from, and rows held out: the ends of some blocks, evenly spaced.

        Parameters
        ----------
        n_held_out : int
            Between 1 and the number of rows minus 1.

        Returns
        -------
        kept, held_out : DataStream
        """
        n = self.n_rows
        if n is None:
            raise DataError(f"no rows of {self.name} can be held out: it has no known length")
        if not 0 < n_held_out < n:
            raise DataError(f"{n_held_out} of {n} rows of {self.name} cannot be held out")
        kept, held_out = divided(self.ranges, n_held_out)
        return replace(self, ranges=kept), replace(self, ranges=held_out)

    # ---- reading ---------------------------------------------------------------------------------

    def blocks(self) -> Generator[Block]:
        """All rows in the order in which they lie, transformed, a block at a time."""
        with closing(self._stored()) as blocks:
            for block in blocks:
                yield Block(self.values(block.rows), block.labels)

    def batches(
        self, size: int, order: RandomStream | None = None, limit: int | None = None
    ) -> Generator[Block]:
        """Batches of rows as they are stored, for one epoch; see :meth:`values`.

        Blocks are read in a random order, and their rows mixed in the buffer. Rows that all fit
        into it come in the order of rows in memory, to the bit; rows that have no known number are
        mixed in the buffer alone.

        Parameters
        ----------
        size : int
            Rows of a batch; the last one may have fewer.
        order : RandomStream, default=None
            None leaves the rows in the order in which they lie.
        limit : int, default=None
            At most so many batches. No more blocks are read than they need, and rows that come one
            after the other go on in the next epoch where this one stopped.
        """
        n_rows = None if limit is None else limit * size
        if not self._is_mixed(size):
            order = None
        with closing(self._epoch(order, n_rows)) as stored:
            blocks = stored if order is None else self._mixed(stored, order, n_rows)
            yield from islice(in_batches(blocks, size), limit)

    def parts(
        self,
        size: int,
        portion: Portion,
        order: RandomStream | None = None,
        limit: int | None = None,
    ) -> Generator[tuple[Block, int]]:
        """One process's parts of the same batches, and how many rows the batches have.

        The rows of a batch are those of one process, whatever the number of processes. Each of them
        reads its portion of every block, or whole blocks in its turn where a part of a block cannot
        be read alone, and holds its share of the buffer. How many rows of a batch are among them is
        left to chance. Rows that are not mixed, that come one after the other only, or of which
        some are passed over, are read by all processes; each takes its portion of every batch.

        Parameters
        ----------
        size, order, limit
            As for :meth:`batches`.
        portion : callable
            From a number of things to the slice of them that is this process's.
        """
        together = isinstance(self.source, IterableSource) or self.keep is not None
        if together or order is None or not self._is_mixed(size):
            with closing(self.batches(size, order, limit)) as batches:
                for rows, labels in batches:
                    own = portion(len(rows))
                    yield Block(rows[own], None if labels is None else labels[own]), len(rows)
            return
        n_rows = None if limit is None else limit * size
        blocks = self._own(self._epoch_ranges(order, n_rows), portion)
        # A batch, what is left of a block at both ends of the buffer, and the block that is read.
        waiting = size + 2 * self._step(n_rows) + max(b - a for a, b in self.ranges)
        held = Held(self._capacity(n_rows) + waiting, lambda: self._checked_rows(0, 1))
        places = self._mixed(held.numbered(blocks), order, n_rows)
        with closing(blocks):
            for numbers, _ in islice(in_batches(places, size), limit):
                yield held.take(numbers[numbers != NOT_HELD]), len(numbers)

    def values(self, rows: Array, dtype: np.dtype[Any] | None = None) -> Array:
        """Rows as they are stored, transformed to what is learned from."""
        wanted = self.dtype if dtype is None else dtype
        # In single precision, what is small beside the mean or the threshold would be lost.
        exact = self.standardization is None and (
            self.threshold is None or np.can_cast(self.source.dtype, wanted)
        )
        found = rows.reshape(len(rows), self.width).astype(wanted if exact else np.float64)
        if self.full_scale != 1.0:
            found /= found.dtype.type(self.full_scale)
        if self.threshold is not None:
            found = found > self.threshold
        elif self.standardization is not None:
            found -= self.standardization.mean
            found /= self.standardization.scale
        found = found.astype(wanted, copy=False)
        low, high = self.span
        if (low, high) != (0.0, 1.0):
            found *= high - low
            found += low
        return found

    def read(self, start: int, stop: int) -> Block:
        """The rows at these positions, transformed.

        Raises
        ------
        DataError
            When they would not fit into memory, or have no positions.
        """
        if self.n_rows is None:
            raise DataError(f"{self.name} gives rows in its own order only; use sample(n_rows)")
        stop = min(stop, self.n_rows)
        self._check_size(stop - start)
        return self._together(self._stored(within(self.ranges, start, stop)))

    def sample(self, n_rows: int) -> Block:
        """Up to so many rows from evenly spaced blocks, or the first ones, transformed."""
        self._check_size(n_rows)
        if isinstance(self.source, IterableSource):
            return self._together(self._first_rows(self.source, n_rows))
        n = self.n_rows
        if n is None or n <= n_rows:
            return self.read(0, n_rows)
        return self._together(self._stored(self.split(n_rows)[1].ranges))

    def draw(self, n_rows: int, random: RandomStream) -> Block:
        """Rows drawn uniformly from all, without replacement, in the order in which they lie.

        Each set of so many rows is as likely as any other. Where single rows can be read, no others
        are; else every block is, once.

        Parameters
        ----------
        n_rows : int
            All rows are taken where they are no more.
        random : RandomStream

        Returns
        -------
        Block
            Transformed.

        Raises
        ------
        DataError
            When they would not fit into memory, or nobody knows how many rows there are.
        """
        n = self.n_rows
        if n is None or isinstance(self.source, IterableSource):
            raise DataError(f"no rows of {self.name} can be drawn: it has no known length")
        n_rows = min(n, n_rows)
        self._check_size(n_rows)
        ends = np.cumsum([0, *(stop - start for start, stop in self.ranges)])
        places = drawn(n, n_rows, random)
        own = np.split(places, np.searchsorted(places, ends[1:-1]))
        jobs = (
            partial(self._checked_rows, *piece)
            for (start, stop), first, found in zip(self.ranges, ends, own, strict=False)
            for piece in self._pieces(start, stop, found - first)
        )
        return self._together(read_ahead(jobs, self.n_readers if self.source.concurrent else 1))

    def statistics(
        self,
        *,
        n_rows: int | None = None,
        variances: bool = False,
        count_labels: bool = False,
        portion: Portion = ALONE.portion,
    ) -> ColumnStatistics:
        """Moments of the transformed columns in double precision, in one pass.

        Parameters
        ----------
        n_rows : int, default=None
            About so many rows, in evenly spaced blocks, are enough; None reads all. Of rows whose
            number is not known, the first ones are read, and never more than the buffer holds.
        variances : bool, default=False
            Beside the means.
        count_labels : bool, default=False
            Count the distinct labels too.
        portion : callable, optional
            As for :meth:`parts`: of several processes, each reads its portion of the rows, those
            that come one after the other excepted. The default is all of them.

        Returns
        -------
        ColumnStatistics
        """
        moments_of = partial(self._moments, variances=variances, count_labels=count_labels)
        if isinstance(self.source, IterableSource):
            n = self.buffer_rows if n_rows is None else min(self.buffer_rows, n_rows)
            with closing(self._first_rows(self.source, n)) as blocks:
                return pooled(moments_of(block) for block in blocks)
        ranges = self.ranges
        if n_rows is not None and n_rows < len(self.source):
            needed = math.ceil(n_rows * len(ranges) / len(self.source))
            ranges = tuple(ranges[k] for k in few_of(ranges, needed))
        own = tuple((a, b) for a, b in self._own_ranges(ranges, portion) if a < b)
        with closing(self._stored(own, moments_of)) as parts:
            return pooled(parts)

    def label_counts(self, portion: Portion = ALONE.portion) -> tuple[Array, Array]:
        """Distinct labels as they are stored, and how many rows have them.

        Of rows whose number is not known, those of the first buffer. Of several processes each
        counts its ``portion``, as in :meth:`statistics`.
        """
        ranges = self.ranges
        if not isinstance(self.source, IterableSource):
            ranges = tuple((a, b) for a, b in self._own_ranges(ranges, portion) if a < b)
        with closing(self._label_blocks(ranges)) as parts:
            return counted(parts)

    def read_labels(self) -> Array:
        """The labels of all rows as they are stored, in the order in which they lie.

        Raises
        ------
        DataError
            When there are none, or the rows have no order that a second pass would follow.
        """
        if isinstance(self.source, IterableSource):
            raise DataError(
                f"{self.name} gives rows in its own order only, which may be another one in each "
                "pass; give a torch Dataset with a length, or rows and labels as arrays"
            )
        with closing(self._label_blocks(self.ranges)) as parts:
            return np.concatenate(list(parts))

    # ---- inside ----------------------------------------------------------------------------------

    def _label_blocks(self, ranges: Ranges) -> Generator[Array]:
        """Labels as they are stored; of rows whose number is not known, those of a buffer."""
        if not self.has_labels:
            raise DataError(f"{self.name} has no labels; name them: stream(..., labels=...)")
        if isinstance(self.source, Labelled):
            # The rows themselves need not be read for it.
            labels = self.source.labels
            jobs = (partial(labels.read, start, stop) for start, stop in ranges)
            with closing(read_ahead(jobs, 1)) as found:
                for block, (start, _) in zip(found, ranges, strict=True):
                    yield without_column(check_labels(self.source, block.rows, start))
            return
        plain = replace(self, encode=lambda labels: labels)
        stored = plain._stored(ranges)
        if isinstance(self.source, IterableSource):
            stored = plain._first_rows(self.source, self.buffer_rows)
        with closing(stored) as blocks:
            for block in blocks:
                yield block.labels

    def _moments(self, block: Block, *, variances: bool, count_labels: bool) -> ColumnStatistics:
        labels = block.labels if count_labels else None
        rows = self.values(block.rows, np.dtype(np.float64) if variances else None)
        return moments(rows, labels, variances=variances)

    def _samples(self) -> Iterator[Block]:
        """Rows as they are stored, which tell these data from others."""
        if isinstance(self.source, IterableSource):
            self.source.restart()
            first = self.source.pull(_SAMPLED)
            self.source.restart()
            yield from [] if first is None else [first]
            return
        for start in np.linspace(0, max(0, len(self.source) - _SAMPLED), SPREAD).astype(int):
            yield self.source.read(int(start), min(int(start) + _SAMPLED, len(self.source)))

    def _check_size(self, n_rows: int) -> None:
        size = n_rows * self.width * self.dtype.itemsize
        if size > _MOST_HELD_TOGETHER:
            raise DataError(
                f"{n_rows} rows of {self.name} together take {size / 1e9:.3g} GB; give fewer rows, "
                "as an array or a part of the stream"
            )

    def _together(self, stored: Generator[Block]) -> Block:
        with closing(stored):
            return joined([Block(self.values(b.rows), b.labels) for b in stored])

    def _epoch(self, order: RandomStream | None, n_rows: int | None) -> Generator[Block]:
        if isinstance(self.source, IterableSource):
            if n_rows is None:
                self.source.restart()
            return self._pulled(self.source, n_rows)
        return self._stored(self._epoch_ranges(order, n_rows))

    def _epoch_ranges(self, order: RandomStream | None, n_rows: int | None) -> Ranges:
        """The blocks of an epoch in the order in which they are read."""
        ranges = list(self.ranges)
        # What the buffer holds is mixed uniformly by it, as rows in memory are.
        fits = n_rows is None and (self.n_rows or 0) <= self.buffer_rows
        if order is not None and len(ranges) > 1 and not fits:
            ranges = [ranges[k] for k in order.permutation(len(ranges)).tolist()]
        if n_rows is not None and self.keep is None:
            ends = np.cumsum([stop - start for start, stop in ranges])
            ranges = ranges[: int(np.searchsorted(ends, n_rows)) + 1]
        return tuple(ranges)

    def _own(self, ranges: Ranges, portion: Portion) -> Generator[tuple[int, int, Block | None]]:
        """Of each block its length, where this process's part of it begins, and that part."""
        own = list(self._own_ranges(ranges, portion))
        with closing(self._stored(tuple((a, b) for a, b in own if a < b))) as found:
            for (start, stop), (first, last) in zip(ranges, own, strict=True):
                yield stop - start, first - start, next(found) if first < last else None

    def _own_ranges(self, ranges: Ranges, portion: Portion) -> Iterator[tuple[int, int]]:
        assert isinstance(self.source, Source)
        is_divisible = self.source.is_divisible
        for number, (start, stop) in enumerate(ranges):
            yield own_part(start, stop, number, portion, is_divisible=is_divisible)

    def _pieces(
        self, start: int, stop: int, wanted: Array
    ) -> Iterator[tuple[int, int, Callable[[Block], Block]]]:
        """What to read for some rows of a block, and what takes them from it."""
        assert isinstance(self.source, Source)
        if self.source.is_divisible and len(wanted) * _SPARSE < stop - start:
            for row in wanted.tolist():
                yield start + row, start + row + 1, lambda block: block
        elif len(wanted):
            yield start, stop, partial(taken, index=wanted)

    def _is_mixed(self, size: int) -> bool:
        """Whether an order makes a difference: not within one batch."""
        return self.n_rows is None or self.n_rows > size

    def _mixed(
        self, blocks: Iterable[Block], order: RandomStream, n_rows: int | None
    ) -> Iterator[Block]:
        # Places are drawn from the whole buffer for each block: not for a few rows only.
        even = in_batches(blocks, self._step(n_rows))
        return mixed(even, self._capacity(n_rows), order)

    def _step(self, n_rows: int | None) -> int:
        """Rows that go into the full buffer at once."""
        return max(1, self._capacity(n_rows) // BLOCKS_IN_BUFFER)

    def _capacity(self, n_rows: int | None) -> int:
        """Rows of the buffer: every block fits, and no more than there are."""
        largest = max((stop - start for start, stop in self.ranges), default=self.block_rows)
        n = n_rows if isinstance(self.source, IterableSource) else self.n_rows
        return max(largest, self.buffer_rows if n is None else min(self.buffer_rows, n))

    def _stored(
        self,
        ranges: Ranges | None = None,
        finish: Callable[[Block], Any] = lambda block: block,
    ) -> Generator[Any]:
        """Blocks as stored, checked and read ahead; ``finish`` is done on the reading threads."""
        if isinstance(self.source, IterableSource):
            self.source.restart()
            return self._pulled(self.source, None)
        jobs = (
            partial(self._checked_rows, start, stop, finish)
            for start, stop in (self.ranges if ranges is None else ranges)
        )
        return read_ahead(jobs, self.n_readers if self.source.concurrent else 1)

    def _checked_rows(
        self, start: int, stop: int, finish: Callable[[Block], Any] = lambda block: block
    ) -> Any:
        assert isinstance(self.source, Source)
        return finish(self._checked(self.source.read(start, stop), start))

    def _first_rows(self, source: IterableSource, n_rows: int) -> Generator[Block]:
        """The first rows; whoever reads next begins with them again."""
        source.restart()
        try:
            yield from self._pulled(source, n_rows)
        finally:
            source.restart()

    def _pulled(self, source: IterableSource, n_rows: int | None) -> Generator[Block]:
        """The next rows of a source without numbers, at most ``n_rows``, up to its end."""
        sizes = _repeated(self.block_rows, n_rows)
        size = next(sizes)
        first = source.pull(size)
        if first is None:
            # The end of the data was the end of the epoch before.
            source.restart()
            first = source.pull(size)
        if first is None:
            raise DataError(f"{source.name} has no rows any more; make it start anew at each pass")
        done = source.n_read
        yield self._checked(first, done - len(first.rows))
        with closing(read_ahead((partial(source.pull, k) for k in sizes), 1)) as blocks:
            for block in blocks:
                if block is None:
                    return
                yield self._checked(block, done)
                done += len(block.rows)

    def _checked(self, block: Block, start: int) -> Block:
        """The block, if its values are finite and within bounds; its labels as numbers."""
        self._row_check().check(block.rows, start)
        labels = block.labels
        if self.encode is not None and labels is not None:
            labels = self.encode(check_labels(self.source, labels, start))
            if self.keep is not None:
                kept = self.keep(labels)
                return Block(block.rows[kept], labels[kept])
        return Block(block.rows, labels)

    def _row_check(self) -> RowCheck:
        undecided = (
            self.is_scale_guessed
            and self.source.dtype == np.uint8
            and self.full_scale == 1.0
            and self.threshold is not None
        )
        bounds = None
        if self.bounds is not None and self.threshold is None:
            bounds = (self.bounds[0] * self.full_scale, self.bounds[1] * self.full_scale)
        return RowCheck(self.source, bounds, undecided)


def _repeated(size: int, total: int | None) -> Iterator[int]:
    """``size`` again and again until ``total`` is reached; for ever where there is none."""
    while total is None or total > 0:
        yield size if total is None else min(size, total)
        total = None if total is None else total - size

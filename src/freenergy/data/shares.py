"""What one of several processes reads of the blocks that all of them learn from, and holds.

All processes mix the same places in the same way, by the seed alone; each puts rows only into those
places whose rows it reads itself.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from freenergy.data.sources import Block

__all__ = ["NOT_HELD", "Held", "Portion", "own_part"]

Array: TypeAlias = NDArray[Any]
Portion: TypeAlias = Callable[[int], slice]
"""Which of so many things are this process's: contiguous ones, as many for each process."""

NOT_HELD = -1
"""In the place of a row that another process reads."""

# Multiples of the golden ratio fall evenly onto a circle, however many are taken.
_GOLDEN = 0.6180339887498949
_FINE = 2**40
# Of fewer rows, portions would be too unequal.
_LEAST_DIVIDED = 256


def own_part(
    start: int, stop: int, number: int, portion: Portion, *, is_divisible: bool
) -> tuple[int, int]:
    """What a process reads of a block: its portion of many rows, or in its turn all of them.

    Parameters
    ----------
    start, stop : int
        The block.
    number : int
        Of the block in the order of reading.
    portion : callable
    is_divisible : bool
        Whether a part of a block is read without reading all of it.

    Examples
    --------
    >>> def half(n):
    ...     return slice(n // 2, n)
    >>> own_part(1000, 2000, 0, half, is_divisible=True)
    (1500, 2000)
    >>> turns = [own_part(0, 9, k, half, is_divisible=False) for k in range(6)]
    >>> [stop - start for start, stop in turns]
    [0, 9, 0, 9, 0, 0]
    """
    if is_divisible and stop - start >= _LEAST_DIVIDED:
        own = portion(stop - start)
        return start + own.start, start + own.stop
    own = portion(_FINE)
    is_own = own.start <= int(number * _GOLDEN % 1.0 * _FINE) < own.stop
    return (start, stop) if is_own else (start, start)


class Held:
    """Rows that were read and wait for their batch, under numbers that stand for them.

    Parameters
    ----------
    n_rows : int
        The most that are held at once. Memory is taken for those that there are.
    example : callable
        Gives a block of the same kind, where there is need of one before any row is held.
    """

    def __init__(self, n_rows: int, example: Callable[[], Block]) -> None:
        self._free = np.arange(n_rows)
        self._n_free = n_rows
        self._example = example
        self._held: Block | None = None

    def put(self, block: Block) -> Array:
        """Hold the rows of a block; the numbers that stand for them."""
        held = self._made_for(block)
        n = self._n_free - len(block.rows)
        # The last that were taken: their memory is used again first.
        numbers = self._free[n : self._n_free].copy()
        self._n_free = n
        held.rows[numbers] = block.rows
        if held.labels is not None:
            held.labels[numbers] = block.labels
        return numbers

    def take(self, numbers: Array) -> Block:
        """The rows that these numbers stand for, which are held no longer."""
        held = self._held or self._made_for(self._example())
        n = self._n_free + len(numbers)
        self._free[self._n_free : n] = numbers
        self._n_free = n
        return Block(held.rows[numbers], None if held.labels is None else held.labels[numbers])

    def numbered(self, blocks: Generator[tuple[int, int, Block | None]]) -> Iterable[Block]:
        """Numbers in place of rows: of each block its length, where the own part begins, and that.

        Yields
        ------
        Block
            Whose rows are numbers, :data:`NOT_HELD` where another process reads the row.
        """
        with closing(blocks):
            for n_rows, begin, own in blocks:
                numbers = np.full(n_rows, NOT_HELD)
                if own is not None:
                    numbers[begin : begin + len(own.rows)] = self.put(own)
                yield Block(numbers)

    def _made_for(self, block: Block) -> Block:
        if self._held is None:
            # Memory that nothing was written to takes no place.
            n = len(self._free)
            rows = np.empty((n, *block.rows.shape[1:]), block.rows.dtype)
            labels = block.labels
            if labels is not None:
                labels = np.empty((n, *labels.shape[1:]), labels.dtype)
            self._held = Block(rows, labels)
        return self._held

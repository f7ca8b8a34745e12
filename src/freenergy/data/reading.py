"""Blocks read ahead on threads, mixed in a buffer, and cut into batches.

Blocks are taken in the order in which they were asked for, whatever thread read them, so that the
result depends on the seed alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from freenergy.data.sources import Block, joined
from freenergy.random import RandomStream

__all__ = ["in_batches", "mixed", "read_ahead", "taken"]

T = TypeVar("T")


def read_ahead(jobs: Iterable[Callable[[], T]], n_threads: int) -> Generator[T]:
    """Results of jobs in their order; while one is used, the next few are worked on.

    What a job raises is raised where its result would have come. Closed early, jobs that have not
    begun are dropped.

    Examples
    --------
    >>> list(read_ahead([lambda k=k: k * k for k in range(5)], n_threads=2))
    [0, 1, 4, 9, 16]
    """
    with ThreadPoolExecutor(n_threads, thread_name_prefix="freenergy-read") as pool:
        pending: deque[Future[T]] = deque()
        try:
            for job in jobs:
                pending.append(pool.submit(job))
                if len(pending) > n_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def mixed(blocks: Iterable[Block], capacity: int, random: RandomStream) -> Iterator[Block]:
    """Rows of blocks in a random order, as far as a buffer of ``capacity`` rows mixes them.

    Once the buffer is full, the rows of each block take the places of as many rows drawn at random
    from it, and those are given out. The rest follows at the end in a random order. All rows that
    fit into the buffer are in an order drawn uniformly from all.

    Parameters
    ----------
    blocks : iterable of Block
        None larger than ``capacity``.
    capacity : int
    random : RandomStream

    Yields
    ------
    Block
        In all, each row once.
    """
    buffer: Block | None = None
    filled, step = 0, 1
    for block in blocks:
        step = max(step, len(block.rows))
        if buffer is None:
            buffer = _empty_like(block, capacity)
        room = min(capacity - filled, len(block.rows))
        _put(buffer, slice(filled, filled + room), taken(block, slice(0, room)))
        filled += room
        rest = taken(block, slice(room, None))
        if len(rest.rows):
            places = random.permutation(capacity)[: len(rest.rows)].numpy()
            drawn = taken(buffer, places)
            _put(buffer, places, rest)
            yield drawn
    if buffer is not None:
        order = random.permutation(filled).numpy()
        for start in range(0, filled, step):
            yield taken(buffer, order[start : start + step])


def in_batches(blocks: Iterable[Block], size: int) -> Iterator[Block]:
    """The same rows in the same order, ``size`` at a time; the last batch may be smaller.

    Examples
    --------
    >>> blocks = [Block(np.zeros((3, 1))), Block(np.ones((2, 1)))]
    >>> [batch.rows[:, 0].tolist() for batch in in_batches(blocks, 2)]
    [[0.0, 0.0], [0.0, 1.0], [1.0]]
    """
    parts: list[Block] = []
    waiting = 0
    for block in blocks:
        start = 0
        while waiting + len(block.rows) - start >= size:
            stop = start + size - waiting
            parts.append(taken(block, slice(start, stop)))
            yield joined(parts)
            parts, waiting, start = [], 0, stop
        if start < len(block.rows):
            parts.append(taken(block, slice(start, None)))
            waiting += len(block.rows) - start
    if parts:
        yield joined(parts)


def _empty_like(block: Block, n_rows: int) -> Block:
    rows = np.empty((n_rows, *block.rows.shape[1:]), block.rows.dtype)
    labels = block.labels
    if labels is None:
        return Block(rows)
    return Block(rows, np.empty((n_rows, *labels.shape[1:]), labels.dtype))


def taken(block: Block, index: slice | np.ndarray) -> Block:
    """Some rows of a block, with their labels."""
    return Block(block.rows[index], None if block.labels is None else block.labels[index])


def _put(block: Block, index: slice | np.ndarray, other: Block) -> None:
    block.rows[index] = other.rows
    if block.labels is not None:
        block.labels[index] = other.labels

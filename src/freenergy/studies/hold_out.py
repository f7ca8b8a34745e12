"""How many rows of a run are held out, and those of a stream."""

from __future__ import annotations

from pathlib import Path

from freenergy.data import DataError, DataStream

__all__ = ["FEWEST", "MOST_BYTES", "MOST_HELD_OUT", "check_enough", "hold_out", "short_name"]

FEWEST = 10
"""Rows that are needed, so that some can be held out."""
MOST_HELD_OUT = 10_000
"""Rows that are held out of what is streamed."""
MOST_BYTES = 2**28
"""What rows of a stream that are held together take."""


def check_enough(n_rows: int, name: str) -> None:
    """Refuse too few rows.

    Raises
    ------
    DataError
        When there are fewer than ten.
    """
    if n_rows < FEWEST:
        raise DataError(f"{name} has {n_rows} rows; at least {FEWEST} are needed to hold some out")


def hold_out(found: DataStream, name: str, n: int) -> tuple[DataStream, DataStream]:
    """Rows to learn from, and ``n`` held out, but at least 2, and no more than 10 000 or 256 MiB.

    Raises
    ------
    DataError
        When there are fewer than ten rows, or nobody knows how many.
    """
    check_enough(found.n_rows or 0, name)
    most = max(1, MOST_BYTES // (found.width * found.dtype.itemsize))
    return found.split(min(max(2, n), MOST_HELD_OUT, most))


def short_name(name: str) -> str:
    """The name of a file without its place and ending, nor what is meant in it.

    Examples
    --------
    >>> short_name("data/spikes.h5:/trials")
    'spikes'
    """
    return Path(name.partition(":")[0]).stem

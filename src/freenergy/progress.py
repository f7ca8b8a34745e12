"""Progress of long work: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Reporter"]

_LINE_EVERY = 5.0


class Reporter:
    """Tells how far a piece of work is.

    Parameters
    ----------
    stream : text file, default=sys.stderr
        A bar is drawn when it is a terminal; else a line is written every five seconds at most,
        and at the end of each piece.

    Examples
    --------
    >>> import io
    >>> log = io.StringIO()
    >>> with Reporter(log).task("count", total=2, unit="epochs") as advance:
    ...     advance(1)
    ...     advance(1, "score = 3")
    >>> print(log.getvalue().split(",")[0])
    count: 2/2 epochs
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = sys.stderr if stream is None else stream

    def line(self, text: str) -> None:
        """Write one line."""
        print(text, file=self.stream, flush=True)

    @contextmanager
    def task(self, label: str, total: int, unit: str = "", done: int = 0) -> Iterator[Any]:
        """A piece of work of ``total`` units; yields ``advance(n, note="")``."""
        if self.stream.isatty():
            with self._bar(label, total, unit, done) as advance:
                yield advance
        else:
            with self._lines(label, total, unit, done) as advance:
                yield advance

    @contextmanager
    def _bar(self, label: str, total: int, unit: str, done: int) -> Iterator[Any]:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=Console(file=self.stream)) as progress:
            task = progress.add_task(label, total=total, completed=done, note="")

            def advance(n: int, note: str = "") -> None:
                progress.advance(task, n)
                if note:
                    progress.update(task, note=note)

            yield advance

    @contextmanager
    def _lines(self, label: str, total: int, unit: str, done: int) -> Iterator[Any]:
        begin = last = time.monotonic()
        text = ""
        completed = reported = done

        def report() -> None:
            nonlocal last, reported
            last, reported = time.monotonic(), completed
            count = f"{completed}/{total} {unit}".rstrip()
            note = f", {text}" if text else ""
            self.line(f"{label}: {count}{note}, {last - begin:.1f} s")

        def advance(n: int, note: str = "") -> None:
            nonlocal completed, text
            completed += n
            text = note or text
            if time.monotonic() - last >= _LINE_EVERY:
                report()

        try:
            yield advance
        finally:
            if completed != reported:
                report()

"""Progress: lines in a log, a bar on a terminal, and the last word in both."""

from __future__ import annotations

import io
import re
import sys

import pytest

from freenergy import progress
from freenergy.progress import Reporter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def plain(stream: io.StringIO) -> str:
    """What a terminal shows, without its control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())


# ---- a log ---------------------------------------------------------------------------------------


def test_a_log_gets_a_line_every_five_seconds_and_one_at_the_end(clock):
    log = io.StringIO()
    with Reporter(log).task("PCD, seed 0", total=20, unit="epochs") as advance:
        for epoch in range(20):
            clock.now += 2
            advance(1, f"score {epoch}")
    assert lines(log) == [
        "PCD, seed 0: 3/20 epochs, score 2, 6.0 s",
        "PCD, seed 0: 6/20 epochs, score 5, 12.0 s",
        "PCD, seed 0: 9/20 epochs, score 8, 18.0 s",
        "PCD, seed 0: 12/20 epochs, score 11, 24.0 s",
        "PCD, seed 0: 15/20 epochs, score 14, 30.0 s",
        "PCD, seed 0: 18/20 epochs, score 17, 36.0 s",
        "PCD, seed 0: 20/20 epochs, score 19, 40.0 s",
    ]


def test_a_line_that_was_just_written_is_not_repeated_at_the_end(clock):
    log = io.StringIO()
    with Reporter(log).task("count", total=2, unit="rows") as advance:
        clock.now += 6
        advance(2)
    assert lines(log) == ["count: 2/2 rows, 6.0 s"]


def test_quick_work_is_one_line():
    log = io.StringIO()
    with Reporter(log).task("count", total=1000, unit="rows") as advance:
        for _ in range(100):
            advance(10, "fast")
    (line,) = lines(log)
    assert re.fullmatch(r"count: 1000/1000 rows, fast, \d+\.\d s", line)


def test_a_note_stays_until_the_next(clock):
    log = io.StringIO()
    with Reporter(log).task("count", total=3) as advance:
        advance(1, "first")
        advance(1)
        clock.now += 5
        advance(1)
    assert lines(log) == ["count: 3/3, first, 5.0 s"]


def test_work_that_goes_on_starts_where_it_stopped(clock):
    log = io.StringIO()
    with Reporter(log).task("run", total=10, unit="epochs", done=7) as advance:
        advance(1)
    assert lines(log) == ["run: 8/10 epochs, 0.0 s"]
    with Reporter(log).task("run", total=10, unit="epochs", done=10):
        pass
    assert len(lines(log)) == 1, "nothing is said where nothing was done"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_last_state_is_told_when_work_fails(clock, error):
    log = io.StringIO()

    def work():
        with Reporter(log).task("run", total=10, unit="epochs") as advance:
            advance(3, "score 1")
            clock.now += 1
            raise error

    with pytest.raises(error):
        work()
    assert lines(log) == ["run: 3/10 epochs, score 1, 1.0 s"]


def test_lines_are_flushed_at_once():
    flushed = []

    class Log(io.StringIO):
        def flush(self) -> None:
            flushed.append(self.getvalue())

    Reporter(Log()).line("done")
    assert flushed[-1] == "done\n"


def test_standard_error_is_the_default(capsys):
    reporter = Reporter()
    assert reporter.stream is sys.stderr
    reporter.line("hello")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


# ---- a terminal ----------------------------------------------------------------------------------


def test_a_terminal_gets_a_bar_that_ends_full(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    terminal = Terminal()
    with Reporter(terminal).task("PCD, seed 0", total=20, unit="epochs", done=5) as advance:
        for epoch in range(15):
            advance(1, f"score {epoch}")
    assert "\x1b[" in terminal.getvalue()
    last = plain(terminal).strip().splitlines()[-1]
    assert "PCD, seed 0" in last
    assert "20/20 epochs" in re.sub(r" +", " ", last)
    assert "score 14" in last
    assert "━" in last


def test_brackets_in_a_label_or_note_are_not_taken_for_markup(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    terminal = Terminal()
    with Reporter(terminal).task("runs/[red]a[/red]", total=1) as advance:
        advance(1, "[bold]note[/bold]")
    assert "runs/[red]a[/red]" in plain(terminal)
    assert "[bold]note[/bold]" in plain(terminal)


def test_a_bar_is_left_in_order_when_work_fails(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()

    def work():
        with Reporter(terminal).task("run", total=10, unit="epochs") as advance:
            advance(3)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert re.search(r"3/10\s+epochs", plain(terminal).strip().splitlines()[-1])
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h")

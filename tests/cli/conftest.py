"""The command line, called in this process."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from freenergy import cli


class Result(NamedTuple):
    """What a command gave."""

    code: int
    out: str
    err: str

    def assert_one_line(self, *words: str, code: int = 2) -> None:
        """It failed with one line, in which these words are."""
        assert self.code == code
        assert self.out == ""
        (line,) = self.err.splitlines()
        assert line.startswith("freenergy: ")
        for word in words:
            assert word in line


@pytest.fixture(scope="session")
def call() -> Callable[..., int]:
    """``call("train", ...)``: the exit code."""

    def start(*arguments: object) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["freenergy", *map(str, arguments)])
            patch.setattr(warnings, "showwarning", warnings.showwarning)  # main replaces it
            with warnings.catch_warnings(), pytest.raises(SystemExit) as stop:
                cli.main()
        return stop.value.code

    return start


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, call) -> Callable[..., Result]:
    """``run("train", ...)`` in an empty folder: exit code, output and errors."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("COLUMNS", "100")

    def start(*arguments: object) -> Result:
        code = call(*arguments)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Result(code, captured.out, captured.err)

    return start


@pytest.fixture(scope="session")
def patterns() -> Callable[[int, int], tuple[np.ndarray, np.ndarray]]:
    """``patterns(n, seed)``: noisy rows of three classes, and their classes."""
    means = np.random.default_rng(0).random((3, 6)) < 0.5

    def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 3, n)
        return (means[y] ^ (rng.random((n, 6)) < 0.1)).astype(np.float32), y

    return draw


@pytest.fixture(scope="session")
def data(tmp_path_factory, patterns) -> Path:
    """A small file with labels and a test set."""
    path = tmp_path_factory.mktemp("data") / "patterns.npz"
    (x, y), (x_test, y_test) = patterns(80, 1), patterns(40, 2)
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return path

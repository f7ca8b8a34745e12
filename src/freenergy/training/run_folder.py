"""What the folders of all kinds of run have in common: where things lie, and whose it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from freenergy.files import write_atomically

__all__ = ["RunError", "RunFolder"]

T = TypeVar("T")


class RunError(ValueError):
    """A run directory is missing, damaged, taken already, or does not fit what is asked."""


class RunFolder:
    """A folder that holds one run.

    Parameters
    ----------
    path : path-like

    Attributes
    ----------
    path, config_path, model_path, metrics_path, report_path : Path
        Of the folder, its configuration (JSON), the model, one JSON object for each epoch, and
        the page about the run.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config_path = self.path / "run.json"
        self.model_path = self.path / "model.safetensors"
        self.metrics_path = self.path / "metrics.jsonl"
        self.report_path = self.path / "report.html"

    def begin(self, config: str) -> None:
        """Write the configuration into a folder that holds no run.

        Raises
        ------
        RunError
            When the folder holds a run already, or cannot be written.
        """
        if self.config_path.exists() or self.model_path.exists():
            raise RunError(
                f"{self.path} already holds a run: continue it with 'freenergy train --resume "
                f"{self.path}', or choose another folder with --out"
            )
        self.replace_config(config)

    def replace_config(self, config: str) -> None:
        """Write another configuration.

        Raises
        ------
        RunError
            When the folder cannot be written.
        """
        try:
            write_atomically(self.config_path, config)
        except OSError as error:
            raise RunError(f"cannot write to {self.path} ({error.strerror})") from error

    def read_config(self, read: Callable[[str], T]) -> T:
        """What a reader makes of the configuration.

        Raises
        ------
        RunError
            When the folder is no run, or its configuration is damaged.
        """
        if not self.config_path.is_file():
            raise RunError(f"{self.path} holds no run (there is no {self.config_path.name} in it)")
        try:
            return read(self.config_path.read_text(encoding="utf-8"))
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(f"{self.config_path} is damaged ({error})") from error

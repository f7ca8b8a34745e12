"""The folder of a study: what it was started for, and how much of it is done."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from freenergy.files import write_atomically
from freenergy.training import RunError
from freenergy.training.run import versions

__all__ = ["Finished", "NothingFinished", "Plan", "claim", "finished", "read_plan", "study_of"]

Settings = TypeVar("Settings")

_ABANDONED = 3600.0  # seconds without a write after which nobody writes a file any more


@dataclass(frozen=True)
class Plan(Generic[Settings]):
    """What a folder was started for, so that it is only continued for the same.

    Attributes
    ----------
    study : str
        Which one.
    data : dict
        Name, sizes and binarisation of the data set.
    settings : dataclass
    command : str
        For the record, as are the versions.
    versions : dict of str
    """

    study: str
    data: dict[str, Any]
    settings: Settings
    command: str = field(compare=False, default="")
    # Every training of a study has one thread, see freenergy.studies.parallel.
    versions: dict[str, str] = field(
        compare=False, default_factory=lambda: versions() | {"threads": "1"}
    )


def claim(directory: Path, plan: Plan[Any]) -> None:
    """Start a study in a folder, or go on with the same.

    Raises
    ------
    RunError
        When the folder holds something else.
    """
    path = _path(directory)
    if (directory / "run.json").exists():
        raise RunError(f"{directory} holds a run; choose another folder with --out")
    if not path.exists():
        write_atomically(path, json.dumps(dataclasses.asdict(plan), indent=2) + "\n")
    elif read_plan(directory, plan.study, type(plan.settings)) != plan:
        raise RunError(
            f"{directory} holds a study of other data or settings; choose another folder with --out"
        )
    _remove_leftovers(directory)


def _remove_leftovers(directory: Path) -> None:
    """Remove what a process that was killed was writing.

    Another process may be writing here now. That takes seconds, and touches the file all along.
    """
    for path in directory.glob(".*.tmp"):
        with suppress(FileNotFoundError):  # the other process has finished it
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()


def study_of(directory: str | os.PathLike[str]) -> str:
    """Which study a folder holds.

    Raises
    ------
    RunError
        When it holds none, or a damaged one.
    """
    path = _path(Path(directory))
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["study"])
    except FileNotFoundError:
        raise RunError(f"{directory} holds no study (there is no {path.name} in it)") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error})") from error


def read_plan(
    directory: str | os.PathLike[str], study: str, settings: type[Settings]
) -> Plan[Settings]:
    """What a folder was started for.

    Raises
    ------
    RunError
        When the folder holds no study, another one, or a damaged one.
    """
    path = _path(Path(directory))
    if not path.is_file():
        raise RunError(f"{directory} holds no study (there is no {path.name} in it)")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["study"] != study:
            raise RunError(f"{directory} holds another study, {values['study']!r}")
        options = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values["settings"].items()
        }
        return Plan(
            study, values["data"], settings(**options), values["command"], values["versions"]
        )
    except RunError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error})") from error


def _path(directory: Path) -> Path:
    return directory / "study.json"


class NothingFinished(RunError):
    """A study has nothing to show yet."""


@dataclass(frozen=True)
class Finished:
    """How much of a study is there to be shown.

    Attributes
    ----------
    names : tuple of str
        What is compared, as far as the first seed of it is done.
    seeds : tuple of int
        Those that all of ``names`` have.
    missing : str
        What else was to be done, in words; empty where that is nothing.
    """

    names: tuple[str, ...]
    seeds: tuple[int, ...]
    missing: str


def finished(
    directory: Path,
    names: Sequence[str],
    seeds: Sequence[int],
    is_done: Callable[[str, int], bool],
) -> Finished:
    """The part of a comparison in which every name has every seed, so that seeds stay paired.

    Parameters
    ----------
    directory : Path
    names : sequence of str
        What is compared.
    seeds : sequence of int
        At least one.
    is_done : callable
        Whether a name's training with a seed is finished.

    Raises
    ------
    NothingFinished
        When no name has its first seed.

    Examples
    --------
    >>> done = {("CD", 0), ("PCD", 0), ("CD", 1)}
    >>> finished(Path("runs/a"), ["CD", "PCD"], [0, 1], lambda *pair: pair in done)
    Finished(names=('CD', 'PCD'), seeds=(0,), missing='PCD with seed 1')
    """
    lacking = {name: [seed for seed in seeds if not is_done(name, seed)] for name in names}
    shown = tuple(name for name in names if seeds[0] not in lacking[name])
    if not shown:
        raise NothingFinished(
            f"the study in {directory} has nothing to show yet; run it again with the same "
            "options and --out, and it goes on"
        )
    common = tuple(seed for seed in seeds if all(seed not in lacking[name] for name in shown))
    missing = "; ".join(
        f"{name} with seed{'s' if len(left) > 1 else ''} {', '.join(map(str, left))}"
        for name, left in lacking.items()
        if left
    )
    return Finished(shown, common, missing)

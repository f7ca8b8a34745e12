"""What the commands share: options, and how their values are read."""

from __future__ import annotations

import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import torch
import typer

from freenergy import data
from freenergy.progress import Reporter

__all__ = [
    "BinarizeOption",
    "Interrupted",
    "StreamOption",
    "absolute",
    "checked_device",
    "checked_dtype",
    "command_line",
    "new_folder",
    "read_threshold",
    "tell_binarized",
    "typed_options",
]

StreamOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="digits, mnist, fashion-mnist, cifar10, or a path: of a file, of a folder of .npy or "
        ".parquet shards, FILE.h5:/inside or STORE.zarr:/inside.",
    ),
]
BinarizeOption = Annotated[
    str,
    typer.Option(
        help="Values above this become 1, others 0, pixels of type uint8 after division by 255; "
        "'none' keeps grey values."
    ),
]


class Interrupted(Exception):
    """Ctrl-C, with what to type to go on."""


def read_threshold(text: str) -> float | None:
    """The number that ``--binarize`` gives, or None."""
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--binarize takes a number or 'none', got {text!r}") from None


def tell_binarized(name: str, threshold: float, reporter: Reporter) -> None:
    """Say that values other than 0 and 1 were made such."""
    reporter.line(
        f"{name} has values other than 0 and 1: those above {threshold:g} became 1, others 0; "
        "--binarize none keeps grey values"
    )


def absolute(name: str) -> str:
    """A path that still holds from another folder; a known name as it is."""
    known = name.lower().replace("_", "-")
    return known if known in data.NAMES else str(Path(name).expanduser().resolve())


def checked_dtype(name: str) -> str:
    """What ``--dtype`` gives, if it is one."""
    if name not in ("float32", "float64"):
        raise ValueError(f"--dtype takes float32 or float64, got {name!r}")
    return name


def checked_device(name: str) -> str:
    """The device that ``--device`` gives, if it is here."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ValueError(f"--device takes cpu, cuda or auto, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda was asked for, but torch finds no GPU; use auto")
    return name


def new_folder(label: str) -> Path:
    """A folder for what has been given none."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{label}-{stamp}"


def command_line() -> str:
    """The command as it was typed."""
    return shlex.join(["freenergy", *sys.argv[1:]])


def typed_options(context: typer.Context) -> dict[str, str]:
    """The options that were typed, by name, each with the flag that it has on the command line."""
    found = {}
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            found[parameter.name or ""] = parameter.opts[0]
    return found

"""Tensors and plain values in one safe file: written atomically, checked when read."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from freenergy.files import write_atomically

__all__ = ["CheckpointError", "load_checkpoint", "save_checkpoint"]

_FORMAT = "freenergy checkpoint 1"


class CheckpointError(ValueError):
    """A checkpoint file is missing, damaged, or not one of freenergy's."""


def _digest(tensors: dict[str, Tensor], values: str) -> str:
    digest = hashlib.sha256(values.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def save_checkpoint(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], values: dict[str, Any]
) -> None:
    """Write tensors and JSON values to one safetensors file.

    Both go into the same file, so a process killed at any moment leaves the old state or the new
    one. The file's metadata holds the values and a SHA-256 of everything.

    Parameters
    ----------
    path : path-like
    tensors : dict of Tensor
    values : dict
        Plain values that JSON can hold.

    Examples
    --------
    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "model.safetensors"
    ...     save_checkpoint(path, {"x": torch.ones(2)}, {"epoch": 3})
    ...     load_checkpoint(path)
    ({'x': tensor([1., 1.])}, {'epoch': 3})
    """
    tensors = {name: t.detach().contiguous().cpu() for name, t in tensors.items()}
    text = json.dumps(values)
    metadata = {"format": _FORMAT, "values": text, "sha256": _digest(tensors, text)}
    write_atomically(path, save(tensors, metadata))


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_checkpoint` wrote, and check it.

    Nothing in the file is ever executed.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    tensors : dict of Tensor
    values : dict

    Raises
    ------
    CheckpointError
        When the file is missing, cut short, altered, or of another kind; the message names it.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "state.safetensors"
    ...     save_checkpoint(path, {"chain": torch.ones(2)}, {"epoch": 3})
    ...     tensors, values = load_checkpoint(path)
    >>> tensors["chain"], values["epoch"]
    (tensor([1., 1.]), 3)
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        # In one read: a running training replaces the file, and a reader that opened it by name
        # for the header and again for the tensors could get two states.
        content = path.read_bytes()
        tensors = load(content)
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); delete it and train again, or restore a copy"
        ) from error
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"{path} was not written by freenergy (or by a newer version)")
    if metadata.get("sha256") != _digest(tensors, metadata.get("values", "")):
        raise CheckpointError(
            f"{path} is damaged (its checksum does not match); delete it and train again, or "
            "restore a copy"
        )
    return tensors, json.loads(metadata["values"])

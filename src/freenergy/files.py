"""Files: values as JSON can hold them, and writing that leaves the old content or the new one."""

from __future__ import annotations

import math
import os
import secrets
from pathlib import Path
from typing import Any

__all__ = ["as_json", "write_atomically"]

_BINARY = getattr(os, "O_BINARY", 0)  # Windows would else translate line ends.


def write_atomically(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Replace a file's content in one step, durable when the call returns.

    The content goes to a temporary file in the same folder, is flushed to the disk, and takes the
    name of the target. Missing parent folders are made.

    Parameters
    ----------
    path : path-like
    content : bytes or str
        Text is written as UTF-8.

    Returns
    -------
    Path

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomically(Path(folder) / "note.txt", "done").read_text()
    'done'
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    # Made by os.open, which gives the new file the permissions that any new file would have.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def as_json(value: Any) -> Any:
    """A value as JSON can hold it: arrays become lists, and what is not finite None.

    Parameters
    ----------
    value :
        Numbers, strings, arrays and tensors, in dicts, lists and tuples.

    Returns
    -------
    Plain numbers, strings, dicts and lists.

    Examples
    --------
    >>> import numpy as np
    >>> as_json({"x": np.array([0.5, np.nan]), "n": np.int64(2), "sizes": (3, 4)})
    {'x': [0.5, None], 'n': 2, 'sizes': [3, 4]}
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {name: as_json(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flush_folder(folder: Path) -> None:
    """Make a new name in a folder durable, where the system can (Windows cannot open folders)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""The one error of data that cannot be used, and how a parser's error becomes one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["DataError", "blaming", "reason_of"]


class DataError(ValueError):
    """Data that cannot be used, in one line that says what to do about it.

    Examples
    --------
    >>> from freenergy.data import load
    >>> load("mnits")
    Traceback (most recent call last):
        ...
    freenergy.data.errors.DataError: no data called 'mnits'; did you mean 'mnist'? ...
    """


@contextmanager
def blaming(path: Path | str) -> Iterator[None]:
    """Turn what a parser raises into a :class:`DataError` that names the file."""
    try:
        yield
    except (DataError, ImportError):
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there any more; put it back, or start anew") from error
    except Exception as error:  # damage can surface anywhere in a parser, as any exception
        raise DataError(
            f"cannot read {path}: it is damaged, or holds Python objects, which are never loaded "
            f"({reason_of(error)}); write it again"
        ) from error


def reason_of(error: Exception) -> str:
    """The first line of an error's message, or its kind."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__

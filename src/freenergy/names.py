"""Names that were mistyped."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean"]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question about the nearest of some names, or nothing where none is near.

    Examples
    --------
    >>> did_you_mean("Activaton", ["activation", "alpha"])
    "did you mean 'activation'? "
    """
    original = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), original, n=2)
    return f"did you mean {' or '.join(repr(original[key]) for key in near)}? " if near else ""

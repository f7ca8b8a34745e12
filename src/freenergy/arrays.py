"""What a user hands over as numbers: tensors, arrays, lists and tables alike become tensors."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

__all__ = ["as_matrix", "as_tensor"]

_KNOWN_TO_TORCH = frozenset(
    ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
)


def as_tensor(values: ArrayLike | Tensor, name: str, like: Tensor | None = None) -> Tensor:
    """Numbers as a tensor, which shares its memory with them where it can.

    Parameters
    ----------
    values : array-like or Tensor
        Real numbers.
    name : str
        What an error calls them.
    like : Tensor, default=None
        Gives precision and device; None keeps their own.

    Returns
    -------
    Tensor

    Raises
    ------
    TypeError
        When they are no real numbers.
    ValueError
        When rows have different lengths.

    Examples
    --------
    >>> as_tensor([[1, 0], [0, 1]], "rows", like=torch.empty(0))
    tensor([[1., 0.],
            [0., 1.]])
    >>> as_tensor(["up", "down"], "rows")
    Traceback (most recent call last):
        ...
    TypeError: rows must be a dense array of real numbers, got list of <U4
    """
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(_numbers(values, name))
    if tensor.is_complex() or tensor.layout != torch.strided:
        raise TypeError(
            f"{name} must be a dense array of real numbers, got a {tensor.layout} tensor of "
            f"{tensor.dtype}"
        )
    return tensor if like is None else tensor.to(like)


def as_matrix(
    values: ArrayLike | Tensor,
    name: str,
    n_columns: int,
    like: Tensor | None = None,
    *,
    empty: bool = False,
) -> Tensor:
    """Rows of so many numbers each, as :func:`as_tensor`.

    Parameters
    ----------
    values : array-like or Tensor of shape (n, n_columns)
    name : str
        What an error calls them.
    n_columns : int
    like : Tensor, default=None
        Gives precision and device; None keeps their own.
    empty : bool, default=False
        Whether there may be no row at all.

    Returns
    -------
    Tensor of shape (n, n_columns)

    Raises
    ------
    TypeError
        When they are no real numbers.
    ValueError
        When they have another shape.

    Examples
    --------
    >>> as_matrix([[1.0, 0.0, 1.0]], "rows", 2)
    Traceback (most recent call last):
        ...
    ValueError: rows must have shape (n, 2) with n > 0, got (1, 3)
    """
    tensor = as_tensor(values, name, like)
    if tensor.dim() != 2 or tensor.shape[1] != n_columns or (len(tensor) == 0 and not empty):
        some = "" if empty else " with n > 0"
        raise ValueError(
            f"{name} must have shape (n, {n_columns}){some}, got {tuple(tensor.shape)}"
        )
    return tensor


def _numbers(values: ArrayLike, name: str) -> NDArray[np.generic]:
    """An array that torch can take over: its own kinds of numbers, in order, and writable."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} must be an array with rows of one length: {error}") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{name} must be a dense array of real numbers, got {type(values).__name__} of "
            f"{array.dtype}"
        )
    dtype = array.dtype.name if array.dtype.name in _KNOWN_TO_TORCH else "float64"
    return np.require(array, dtype, ("C", "W"))

"""Checks of user input that name the column and say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp

from freenergy.data import DataStream

__all__ = ["check_finite", "check_range", "unchanged_on_error", "within"]

# SciPy has no type information of its own, so a union with its classes would say no more.
Matrix: TypeAlias = Any


@contextmanager
def unchanged_on_error(
    estimator: Any, *, but: tuple[type[BaseException], ...] = ()
) -> Iterator[None]:
    """Put an estimator's attributes back when an error leaves the block, ``but`` for some kinds."""
    before = dict(vars(estimator))
    try:
        yield
    except but:
        raise
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


def _column(index: int, names: np.ndarray | None) -> str:
    return f"column {index}" if names is None else f"column {str(names[index])!r} (index {index})"


def _first(X: Matrix, bad: np.ndarray) -> tuple[int, int, float]:
    """Row, column and value of the first marked entry in row order."""
    position = int(np.argmax(bad))
    if sp.issparse(X):
        row = int(np.searchsorted(X.indptr, position, side="right")) - 1
        return row, int(X.indices[position]), float(X.data[position])
    row, column = divmod(position, X.shape[1])
    return row, column, float(X[row, column])


def _values(X: Matrix) -> np.ndarray:
    return X.data if sp.issparse(X) else X.ravel()


def check_finite(
    X: Matrix,
    names: np.ndarray | None = None,
    *,
    allow_nan: bool = False,
    hint: str = "remove or impute it",
) -> None:
    """Refuse NaN and infinities by name of column.

    Parameters
    ----------
    X : ndarray or CSR matrix of shape (n_samples, n_features)
    names : ndarray of str, default=None
        Of the columns, where they have names.
    allow_nan : bool, default=False
        Refuse infinities only.
    hint : str
        What to do about a NaN.

    Raises
    ------
    ValueError

    Examples
    --------
    >>> check_finite(np.array([[0.0, np.nan]]), np.array(["age", "height"]))
    Traceback (most recent call last):
        ...
    ValueError: Input X contains NaN in column 'height' (index 1), first in row 0: remove...
    """
    values = _values(X)
    # One sum is enough to tell that all is finite, unless it overflows.
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(values.sum(dtype=np.float64)):
            return
    bad = np.isinf(values) if allow_nan else ~np.isfinite(values)
    if not bad.any():
        return
    row, column, value = _first(X, bad)
    kind = "NaN" if np.isnan(value) else "infinity"
    raise ValueError(
        f"Input X contains {kind} in {_column(column, names)}, first in row {row}: "
        f"{hint if kind == 'NaN' else 'remove or impute it'}"
    )


def check_range(X: Matrix, low: float, high: float, names: np.ndarray | None = None) -> None:
    """Refuse values outside ``[low, high]`` by name of column.

    Parameters
    ----------
    X : ndarray or CSR matrix of shape (n_samples, n_features)
    low, high : float
    names : ndarray of str, default=None
        Of the columns, where they have names.

    Raises
    ------
    ValueError

    Examples
    --------
    >>> check_range(np.array([[0.0, 255.0]]), 0, 1)
    Traceback (most recent call last):
        ...
    ValueError: Input X has the value 255 in column 1, row 0, outside [0, 1]: scale the data...
    """
    values = _values(X)
    if values.size == 0 or (values.min() >= low and values.max() <= high):
        return
    row, column, value = _first(X, (values < low) | (values > high))
    raise ValueError(
        f"Input X has the value {value:g} in {_column(column, names)}, row {row}, outside "
        f"[{low:g}, {high:g}]: scale the data to this range, for example with "
        "sklearn.preprocessing.MinMaxScaler(clip=True), or binarise it"
    )


def within(X: Matrix, low: float, high: float, names: np.ndarray | None = None) -> Matrix:
    """Rows whose values lie in ``[low, high]``: checked at once, those of a stream as it is read.

    Parameters
    ----------
    X : ndarray, CSR matrix or DataStream
    low, high : float
    names : ndarray of str, default=None
        Of the columns, where they have names.

    Raises
    ------
    ValueError
        As :func:`check_range`.

    Examples
    --------
    >>> within(np.eye(2), 0.0, 1.0)
    array([[1., 0.],
           [0., 1.]])
    """
    if isinstance(X, DataStream):
        return X.within(low, high)
    check_range(X, low, high, names)
    return X

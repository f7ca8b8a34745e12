"""Checks of user input that name the column and say what to do."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp

from freenergy.data import DataStream

__all__ = [
    "check_finite",
    "check_range",
    "check_targets",
    "is_missing",
    "naming_columns",
    "refuse_dates",
    "unchanged_on_error",
    "warn_the_caller",
    "within",
]

# SciPy has no type information of its own, so a union with its classes would say no more.
Matrix: TypeAlias = Any


@contextmanager
def unchanged_on_error(
    estimator: Any, *, but: tuple[type[BaseException], ...] = ()
) -> Iterator[None]:
    """Put an estimator's attributes back when an error leaves the block, ``but`` for some kinds."""
    before, seed = dict(vars(estimator)), getattr(estimator, "random_state", None)
    draws = seed.get_state() if isinstance(seed, np.random.RandomState) else None
    try:
        yield
    except but:
        raise
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        if isinstance(seed, np.random.RandomState) and draws is not None:
            # The fitted model goes on to draw from it.
            seed.set_state(draws)
        raise


def warn_the_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called the package, however deep inside of it this happens."""
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and _is_own(frame):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def _is_own(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] == "freenergy"


def is_missing(value: Any) -> bool:
    """Whether a single value stands for none: None, NaN, or what pandas has for them."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float | np.floating) and bool(np.isnan(value))


def check_targets(y: Any) -> None:
    """Refuse targets of which some are missing, by their row.

    Raises
    ------
    ValueError

    Examples
    --------
    >>> check_targets(["cat", None, "dog", None])
    Traceback (most recent call last):
        ...
    ValueError: y has missing values, 2 in all, the first in row 1: leave such rows out of X and y
    """
    if y is None or sp.issparse(y):
        return
    if hasattr(y, "isna"):
        missing = np.asarray(y.isna())
    else:
        values = np.asarray(y)
        if values.dtype.kind == "f":
            missing = np.isnan(values)
        elif values.dtype.kind == "O":
            missing = np.array([is_missing(v) for v in values.ravel()], dtype=bool)
            missing = missing.reshape(values.shape)
        else:
            return
    if missing.any():
        raise ValueError(
            f"y has missing values, {int(missing.sum())} in all, the first in row "
            f"{int(np.argwhere(missing)[0][0])}: leave such rows out of X and y"
        )


def refuse_dates(X: Any) -> None:
    """Refuse columns of a dataframe that hold points or spans of time, by their name.

    Raises
    ------
    ValueError
    """
    for name, kind in _kinds_of_columns(X):
        if not kind.lower().startswith(("date", "time", "period", "duration")):
            continue
        seconds = not kind.lower().startswith(("date", "timestamp", "period"))
        raise ValueError(
            f"column {name!r} holds {'times' if seconds else 'dates'} ({kind}), which are no "
            "numbers: make numbers of them, for example "
            + ("their seconds or days" if seconds else "days since the first one")
            + ", or leave the column out"
        )


def _kinds_of_columns(X: Any) -> list[tuple[str, str]]:
    """Names and types of the columns of a dataframe; what a column of objects holds."""
    if not (hasattr(X, "columns") and hasattr(X, "dtypes")):
        return []
    kinds = [str(kind) for kind in X.dtypes]
    if hasattr(X, "iloc") and "object" in kinds:
        import pandas as pd

        inferred = pd.api.types.infer_dtype
        kinds = [
            inferred(X.iloc[:, i], skipna=True) if kind == "object" else kind
            for i, kind in enumerate(kinds)
        ]
    return list(zip(map(str, X.columns), kinds, strict=True))


@contextmanager
def naming_columns(X: Any) -> Iterator[None]:
    """Say which column of a dataframe holds what is no number, where an error leaves the block.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"age": [7, 8], "town": ["Bonn", "Jena"]})
    >>> with naming_columns(frame):
    ...     frame.to_numpy(dtype=float)
    Traceback (most recent call last):
        ...
    ValueError: column 'town' has 'Bonn' in row 0, which is no number: encode the column or leave...
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        found = _no_number(X)
        if found is None:
            raise
        name, value, row = found
        raise ValueError(
            f"column {name!r} has {value!r} in row {row}, which is no number: encode the column or "
            "leave it out"
        ) from error


def _no_number(X: Any) -> tuple[str, Any, int] | None:
    """Column, value and row of the first value in a dataframe that is no number."""
    if not (hasattr(X, "columns") and hasattr(X, "dtypes")):
        return None
    for name in X.columns:
        column = np.asarray(X[name])
        for row, value in enumerate([] if column.dtype.kind in "biuf" else column.astype(object)):
            try:
                if not is_missing(value):
                    float(value)
            except (TypeError, ValueError):
                return str(name), value, row
    return None


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
    cure = "; pixels of type uint8 are divided by 255 in freenergy.data.stream(X)"
    pixels = low == 0 and values.min() >= 0 and values.max() <= 255 and not (values % 1).any()
    raise ValueError(
        f"Input X has the value {value:g} in {_column(column, names)}, row {row}, outside "
        f"[{low:g}, {high:g}]: scale the data to this range, for example with "
        "sklearn.preprocessing.MinMaxScaler(clip=True), or binarise it"
        f"{cure if pixels else ''}"
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

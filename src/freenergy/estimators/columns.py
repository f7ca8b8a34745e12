"""Columns of a table as numbers for a net: categories one-hot, missing numbers filled in."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils.validation import check_array

from freenergy.estimators.validation import Matrix, check_finite, is_missing, warn_the_caller

__all__ = ["ColumnEncoder", "Table", "categorical_columns", "read_table"]

FROM_DTYPE = "from_dtype"


@dataclass(frozen=True)
class Table:
    """Rows whose columns are told apart.

    Attributes
    ----------
    numbers : ndarray or CSR matrix of shape (n, n_numeric)
        NaN where a number is missing.
    categories : ndarray of object, shape (n, n_categorical)
        None where a category is missing.
    """

    numbers: Matrix
    categories: np.ndarray

    def part(self, mask: np.ndarray) -> Table:
        """The rows that a mask marks."""
        return Table(self.numbers[mask], self.categories[mask])


@dataclass(frozen=True)
class ColumnEncoder:
    """What makes numbers of a table: learned once from rows, then fixed.

    The numeric columns come first, in their order, then a column of zeros and ones for each one
    that had gaps, which says where, and then the columns of the categories. A missing category is
    a category of its own where the rows had it; one that the rows did not have becomes zeros.

    Attributes
    ----------
    names : tuple of str
        Of all columns of the table.
    categorical : tuple of int
        Positions of the columns that hold categories.
    categories : tuple of tuple
        Those of each such column.
    means : tuple of float or None
        Of the numeric columns, in place of missing numbers; None refuses these.
    gaps : tuple of bool
        Which of the numeric columns had missing numbers.

    Examples
    --------
    >>> rows = np.array([["red", 1.0], ["blue", np.nan], [None, 3.0]], dtype=object)
    >>> table = read_table(rows, (0,), ("colour", "size"))
    >>> encoder = ColumnEncoder.learn(table, ("colour", "size"), (0,), impute=True)
    >>> encoder.feature_names
    ['size', 'missingindicator_size', 'colour_blue', 'colour_red', 'colour_None']
    >>> encoder.encode(table)
    array([[1., 0., 0., 1., 0.],
           [2., 1., 1., 0., 0.],
           [3., 0., 0., 0., 1.]])
    """

    names: tuple[str, ...]
    categorical: tuple[int, ...]
    categories: tuple[tuple[Any, ...], ...]
    means: tuple[float, ...] | None
    gaps: tuple[bool, ...]

    @classmethod
    def learn(
        cls,
        table: Table,
        names: Sequence[str],
        categorical: tuple[int, ...],
        *,
        impute: bool,
        weights: np.ndarray | None = None,
    ) -> Self:
        """The encoder of these rows, each of which counts as often as its weight says.

        Columns without any number, or with one value only, are told of by a warning.
        """
        encoded = [names[i] for i in categorical]
        numeric = [name for i, name in enumerate(names) if i not in categorical]
        categories: tuple[tuple[Any, ...], ...] = ()
        if categorical:
            found = OneHotEncoder().fit(table.categories).categories_
            categories = tuple(tuple(column) for column in found)
        _warn(
            "have one value only",
            [n for n, c in zip(encoded, categories, strict=True) if len(c) == 1]
            + _constant(table.numbers, numeric),
        )
        means, gaps = None, (False,) * len(numeric)
        if impute:
            values, missing, empty = _means(table.numbers, weights)
            _warn(
                "have no number at all, and 0 is taken",
                [name for name, nothing in zip(numeric, empty, strict=True) if nothing],
            )
            means, gaps = tuple(values.tolist()), tuple(missing.tolist())
        return cls(tuple(names), categorical, categories, means, gaps)

    def encode(self, table: Table) -> Matrix:
        """Numbers of the rows of a table.

        Raises
        ------
        ValueError
            When a number is missing and they are not imputed, or infinite; the column is named.
        """
        numbers = table.numbers
        names = np.asarray(self._numeric_names, dtype=object)
        if self.means is None:
            check_finite(numbers, names, hint="remove it, or set missing='impute'")
        else:
            check_finite(numbers, names, allow_nan=True)
            if len(names):
                numbers = self._imputer.transform(numbers).astype(numbers.dtype, copy=False)
        if not self.categorical:
            return numbers
        indicators = self._one_hot.transform(table.categories)
        return np.hstack([numbers, indicators.astype(numbers.dtype, copy=False)])

    @property
    def feature_names(self) -> list[str]:
        """Names of the encoded columns."""
        names = list(self._numeric_names)
        if self.means is not None and names:
            names = self._imputer.get_feature_names_out(np.asarray(names, dtype=object)).tolist()
        if self.categorical:
            encoded = np.asarray([self.names[i] for i in self.categorical], dtype=object)
            names += self._one_hot.get_feature_names_out(encoded).tolist()
        return names

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "names": list(self.names),
            "categorical": list(self.categorical),
            "categories": [list(column) for column in self.categories],
            "means": None if self.means is None else list(self.means),
            "gaps": list(self.gaps),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The encoder whose :meth:`to_dict` this was."""
        return cls(
            names=tuple(values["names"]),
            categorical=tuple(values["categorical"]),
            categories=tuple(tuple(column) for column in values["categories"]),
            means=None if values["means"] is None else tuple(values["means"]),
            gaps=tuple(values["gaps"]),
        )

    @property
    def _numeric_names(self) -> list[str]:
        return [name for i, name in enumerate(self.names) if i not in self.categorical]

    # scikit-learn's transformers hold what they learned in private attributes, so that a file
    # cannot give it back to them. They learn it again instead, from rows made for that.

    @cached_property
    def _imputer(self) -> SimpleImputer:
        means, gaps = np.asarray(self.means), np.asarray(self.gaps)
        rows = np.stack([means, np.where(gaps, np.nan, means)])
        return SimpleImputer(add_indicator=True).fit(rows)

    @cached_property
    def _one_hot(self) -> OneHotEncoder:
        categories = [np.array(column, dtype=object) for column in self.categories]
        first = np.array([[column[0] for column in self.categories]], dtype=object)
        return OneHotEncoder(
            categories=categories, handle_unknown="ignore", sparse_output=False
        ).fit(first)


def categorical_columns(X: Any, asked: Any, names: Sequence[str] | None) -> tuple[int, ...]:
    """Positions of the columns that hold categories.

    Parameters
    ----------
    X : array-like, sparse matrix or dataframe of shape (n, n_features)
    asked : "from_dtype", sequence of str, int or bool, or None
        ``"from_dtype"``: columns of a dataframe that hold categories, strings, or booleans some
        of which are missing. A sequence names further ones beside those.
    names : sequence of str or None
        Of the columns.

    Raises
    ------
    ValueError
        When there is no such column.

    Examples
    --------
    >>> categorical_columns(np.eye(3), [True, False, True], None)
    (0, 2)
    """
    if asked is None:
        return ()
    if isinstance(asked, str):
        if asked != FROM_DTYPE:
            raise ValueError(
                f"categorical_features must be {FROM_DTYPE!r}, a sequence of names, positions or "
                f"booleans, or None, got {asked!r}"
            )
        return _from_dtype(X)
    given = list(np.asarray(asked, dtype=object).ravel())
    width = np.shape(X)[1] if len(np.shape(X)) > 1 else 0
    if given and all(isinstance(item, bool | np.bool_) for item in given):
        if len(given) != width:
            raise ValueError(
                f"categorical_features as a mask must have one boolean for each of {width} "
                f"columns, got {len(given)}"
            )
        marked = {i for i, marked in enumerate(given) if marked}
        return tuple(sorted(marked | set(_from_dtype(X))))
    known = {} if names is None else {name: i for i, name in enumerate(names)}
    positions = {_position(item, known, width) for item in given}
    if positions and sp.issparse(X):
        raise ValueError("categorical_features needs dense rows, got a sparse matrix")
    # A string is no number, whether its column was named or not.
    return tuple(sorted(positions | set(_from_dtype(X))))


def _position(item: Any, known: dict[str, int], width: int) -> int:
    if isinstance(item, str):
        if item not in known:
            raise ValueError(
                f"categorical_features has {item!r}, which is no column of X"
                + ("" if known else ": its columns have no names; give positions")
            )
        return known[item]
    if isinstance(item, int | np.integer) and -width <= item < width:
        return int(item) % width
    raise ValueError(
        f"categorical_features has {item!r}, which is no position among {width} columns"
    )


def read_table(X: Any, categorical: tuple[int, ...], names: Sequence[str]) -> Table:
    """The columns of rows, numbers and categories apart.

    Parameters
    ----------
    X : array-like, sparse matrix or dataframe of shape (n, n_features)
    categorical : tuple of int
    names : sequence of str
        For messages.

    Raises
    ------
    ValueError
        When a column holds what it should not; the message names it.
    """
    if sp.issparse(X):
        return Table(_checked_numbers(X), np.empty((X.shape[0], 0), dtype=object))
    frame = _as_pandas(X)
    if frame is None:
        rows = check_array(X, dtype=object if categorical else None, ensure_all_finite=False)
        columns = [rows[:, i] for i in range(rows.shape[1])]
        numeric: Any = rows[:, [i for i in range(rows.shape[1]) if i not in categorical]]
    else:
        columns = [frame.iloc[:, i] for i in range(frame.shape[1])]
        numeric = frame.iloc[:, [i for i in range(frame.shape[1]) if i not in categorical]]
        numeric = _without_objects(numeric)
    found = [_categories(columns[i], names[i]) for i in categorical]
    categories = np.empty((len(columns[0]), len(found)), dtype=object)
    for i, column in enumerate(found):
        categories[:, i] = column
    return Table(_checked_numbers(numeric), categories)


def _checked_numbers(X: Any) -> Matrix:
    if X.shape[1] == 0:
        return check_array(np.zeros((X.shape[0], 1)))[:, :0]
    return check_array(
        X,
        accept_sparse="csr",
        dtype=(np.float64, np.float32),
        ensure_all_finite=False,
        ensure_min_features=0,
        input_name="X",
    )


def _categories(column: Any, name: str) -> np.ndarray:
    """The values of one column as Python's own, None where one is missing."""
    if hasattr(column, "isna"):
        missing = column.isna().to_numpy()
        values = column.astype(object).to_numpy(copy=True)
    else:
        missing = np.array([is_missing(value) for value in column], dtype=bool)
        values = np.array(column, dtype=object)
    values[missing] = None
    types = set(map(type, values[~missing].tolist()))
    if any(issubclass(found, np.generic) for found in types):
        own = (value.item() if isinstance(value, np.generic) else value for value in values)
        values = np.fromiter(own, object, len(values))
    kinds = {_kind(found) for found in types}
    if "other" in kinds or len(kinds) > 1:
        what = "strings and numbers" if "other" not in kinds else "neither strings nor numbers"
        raise ValueError(
            f"column {name!r} is to hold categories, but has {what} in it: make strings of them"
        )
    return values


def _kind(found: type) -> str:
    if issubclass(found, str):
        return "string"
    numbers = (bool, int, float, np.bool_, np.integer, np.floating)
    return "number" if issubclass(found, numbers) else "other"


def _as_pandas(X: Any) -> Any:
    """A dataframe of pandas, or of what turns into one, such as polars; None for anything else."""
    if hasattr(X, "iloc"):
        return X
    return X.to_pandas() if hasattr(X, "to_pandas") and hasattr(X, "columns") else None


def _from_dtype(X: Any) -> tuple[int, ...]:
    if not hasattr(X, "iloc") and hasattr(X, "dtypes") and hasattr(X, "to_pandas"):
        # Of polars, which is turned into pandas only where it must be.
        if all(kind.is_numeric() for kind in X.dtypes):
            return ()
        X = X.to_pandas()
    if not hasattr(X, "iloc"):
        return ()
    return tuple(i for i in range(X.shape[1]) if _holds_categories(X.iloc[:, i]))


def _holds_categories(column: Any) -> bool:
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        return True
    kind = pd.api.types.infer_dtype(column, skipna=True)
    if kind == "boolean":
        # Zeros and ones as they stand, as scikit-learn has them.
        return bool(column.isna().any())
    return kind in ("string", "mixed", "mixed-integer", "empty") and not (
        pd.api.types.is_numeric_dtype(column.dtype)
    )


def _without_objects(frame: Any) -> Any:
    """Columns of numbers as objects, which pandas makes where some are missing, as numbers."""
    import pandas as pd

    changed = {}
    for i, kind in enumerate(frame.dtypes):
        if not (pd.api.types.is_object_dtype(kind) or isinstance(kind, pd.StringDtype)):
            continue
        try:
            changed[i] = pd.to_numeric(frame.iloc[:, i])
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"column {frame.columns[i]!r} has values that are no numbers ({error}); set "
                "categorical_features='from_dtype', or name it there"
            ) from error
    if not changed:
        return frame
    columns = [changed.get(i, frame.iloc[:, i]) for i in range(frame.shape[1])]
    return pd.concat(columns, axis=1)


def _means(
    numbers: Matrix, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of the numbers that are there, which columns have gaps, and which nothing else."""
    counted = np.ones(numbers.shape[0]) if weights is None else weights
    missing = numbers.copy() if sp.issparse(numbers) else np.isnan(numbers)
    filled = numbers.copy()
    if sp.issparse(numbers):
        missing.data = np.isnan(numbers.data)
        filled.data[missing.data] = 0.0
    else:
        filled[missing] = 0.0
    present = counted.sum() - missing.T @ counted
    gaps = np.asarray(missing.sum(0)).ravel() > 0
    empty = np.asarray(missing.sum(0)).ravel() == numbers.shape[0]
    total = filled.T.astype(np.float64) @ counted
    return np.where(empty, 0.0, total / np.where(empty, 1.0, present)), gaps, empty


def _constant(numbers: Matrix, names: list[str]) -> list[str]:
    if sp.issparse(numbers) or not len(names):
        return []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN")
        same = np.nanmax(numbers, axis=0) == np.nanmin(numbers, axis=0)
    gaps = np.isnan(numbers).any(axis=0)
    return [name for name, equal, gap in zip(names, same, gaps, strict=True) if equal and not gap]


def _warn(what: str, names: list[str]) -> None:
    if names:
        listed = ", ".join(map(repr, names))
        warn_the_caller(f"columns of X {what}: {listed}. Nothing can be learned from them")

"""Rows and labels for a run of an estimator: from known sets, files, tables, stores and shards."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.utils.multiclass import type_of_target

from freenergy import data
from freenergy.data import DataError, Dataset, DataStream
from freenergy.data.errors import blaming
from freenergy.estimators.columns import categorical_columns
from freenergy.estimators.validation import check_finite, check_targets
from freenergy.names import did_you_mean
from freenergy.studies.estimator_models import Model
from freenergy.studies.hold_out import MOST_HELD_OUT, check_enough, hold_out, short_name
from freenergy.studies.run_data import is_streamed

__all__ = ["ModelData", "given_rows", "open_model_data"]

Rows: TypeAlias = Any
"""An array, a dataframe, or a stream."""

_SHARE = 0.2
_TABLES = (".csv", ".parquet")
_TEST_SET = "the test set of the data"


@dataclass(frozen=True, eq=False)
class ModelData:
    """Rows to learn from and rows held out, with their labels.

    Attributes
    ----------
    name : str
    fingerprint : str
        Of rows and labels before they were divided.
    x : array, dataframe or DataStream
        What is learned from.
    y : ndarray or None
        Labels of ``x``; None where there are none, or where a stream has its own.
    x_held_out : array or dataframe
    y_held_out : ndarray or None
    held_out : str
        Where the held-out rows come from, in words.
    image_shape : tuple of int or None
    is_binarized : bool
        Whether a threshold made 0 or 1 of other values.
    dtype : str
        Of the numbers, and so of the model; a stream has its own.
    """

    name: str
    fingerprint: str
    x: Rows
    y: np.ndarray | None
    x_held_out: Rows
    y_held_out: np.ndarray | None
    held_out: str
    image_shape: tuple[int, ...] | None = None
    is_binarized: bool = False
    dtype: str = "float32"


@dataclass(frozen=True, eq=False)
class _Loaded:
    """Data in memory, not divided yet."""

    name: str
    fingerprint: str
    x: Rows
    y: np.ndarray | None
    x_test: Rows | None = None
    y_test: np.ndarray | None = None
    image_shape: tuple[int, ...] | None = None
    is_binarized: bool = False


def open_model_data(
    model: Model,
    name: str,
    *,
    labels: str | None = None,
    binarize: float | None = None,
    dtype: str = "float32",
    settings: Mapping[str, Any] | None = None,
) -> ModelData:
    """What a model learns from, and what it is judged by.

    Parameters
    ----------
    model : Model
    name : str
        As for :func:`freenergy.data.load` or :func:`freenergy.data.stream`.
    labels : str, default=None
        The column of a table or of Parquet shards, an array of the same store or ``.npz`` file, or
        an ``.npy`` file of labels.
    binarize : float, default=None
    dtype : {"float32", "float64"}, default="float32"
        Of the numbers, and of the model.
    settings : mapping, default=None
        Parameters of the model that are not at their defaults. Where they are given, and do not say
        what to do about a missing number, one is refused by its row in the file, of which the rows
        that are learned from know nothing any more.

    Returns
    -------
    ModelData
        Held out is the test set of the data, or else a fifth of the rows: drawn with seed 0, in
        proportion to the classes; of a stream from evenly spaced blocks, at most 10 000.

    Raises
    ------
    DataError
        When the data cannot be used, or have no labels where the model needs them.
    """
    if is_streamed(name):
        return _streamed(model, name, labels, binarize, dtype)
    found = _loaded(model, name, labels, binarize, dtype)
    _check_targets(model, name, found.y)
    if settings is not None:
        _check_complete(model, found.x, settings)
    if model.learns == "classes" and found.y is not None and len(set(found.y.flat)) == 1:
        raise DataError(
            f"{model.name} learns to tell classes apart, and all labels of {name} are "
            f"{found.y.tolist()[0]!r}"
        )
    check_enough(len(found.x), found.name)
    return replace(_divided(model, found), dtype=dtype)


def given_rows(
    model: Model,
    name: str,
    *,
    labels: str | None = None,
    binarize: float | None = None,
    dtype: str = "float32",
) -> tuple[str, Rows, np.ndarray | None]:
    """Rows to measure a model with: the test set of known data, all rows of a file.

    Parameters
    ----------
    model, name, labels, binarize, dtype
        As for :func:`open_model_data`.

    Returns
    -------
    name : str
    x : array or dataframe
        Of a stream at most 10 000 rows, from evenly spaced blocks.
    y : ndarray or None

    Raises
    ------
    DataError
        As in :func:`open_model_data`.
    """
    if is_streamed(name):
        stream = data.stream(name, labels=labels, binarize=binarize)
        _check_labels(model, stream, name)
        return short_name(name), *_sampled(stream, MOST_HELD_OUT)
    found = _loaded(model, name, labels, binarize, dtype)
    x, y = found.x, found.y
    if found.x_test is not None and not (model.learns_labels and found.y_test is None):
        x, y = found.x_test, found.y_test
    _check_targets(model, name, y)
    return found.name, x, y


def _without_labels(model: Model, name: str) -> str:
    path = Path(name)
    how = {
        ".csv": "--labels COLUMN",
        ".parquet": "--labels COLUMN",
        ".npz": "--labels FILE.npy, or store them there as y_train or y",
    }.get(path.suffix.lower(), "--labels FILE.npy")
    if path.is_dir():
        how = "--labels, a column of Parquet shards or a folder of .npy shards"
    if ".h5" in name or ".hdf5" in name or ".zarr" in name:
        how = "--labels /ARRAY, an array of the same store"
    return f"{model.name} learns from labels, and {name} has none: name them with {how}"


def _check_targets(model: Model, name: str, y: np.ndarray | None) -> None:
    """Refuse what the model cannot learn, in the words of the command line."""
    if model.learns_labels and y is None:
        raise DataError(_without_labels(model, name))
    if y is None or not model.learns_labels:
        return
    try:
        check_targets(y)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from None
    if (
        model.learns == "classes"
        and y.dtype.kind == "f"
        and type_of_target(y).startswith("continuous")
    ):
        raise DataError(
            f"{model.name} tells classes apart, and a label of {name} is "
            f"{y.flat[np.argmax(y.ravel() != np.floor(y.ravel()))]:.6g}: give "
            "classes, or train --model mlp-regressor"
        )
    if model.learns == "numbers" and y.dtype.kind not in "biuf":
        raise DataError(
            f"{model.name} learns numbers, and a label of {name} is {str(y.flat[0])!r}: give a "
            "column of numbers, or train --model mlp-classifier"
        )


def _check_complete(model: Model, x: Rows, settings: Mapping[str, Any]) -> None:
    """Refuse a table with a missing number; other data are checked as they are loaded."""
    if not hasattr(x, "iloc") or settings.get("missing") == "impute":
        return
    names = list(x.columns)
    asked = settings.get("categorical_features", model.parameters.get("categorical_features"))
    categories = categorical_columns(x, asked, names)
    values = np.zeros(x.shape)
    for i, kind in enumerate(x.dtypes):
        if kind.kind == "f" and i not in categories:
            values[:, i] = x.iloc[:, i].to_numpy(dtype=np.float64, na_value=np.nan)
    instead = ", or --set missing=impute" if "missing" in model.parameters else ""
    check_finite(values, np.array(names), hint=f"remove the row{instead}")


def _check_labels(model: Model, stream: DataStream, name: str) -> None:
    if model.learns_labels and not stream.has_labels:
        raise DataError(_without_labels(model, name))


# ---- streams -------------------------------------------------------------------------------------


def _streamed(
    model: Model, name: str, labels: str | None, binarize: float | None, dtype: str
) -> ModelData:
    found = data.stream(name, binarize=binarize, labels=labels)
    if found.dtype != np.dtype(dtype) and dtype != "float32":
        raise DataError(f"{name} is streamed in the precision that it has: drop --dtype {dtype}")
    _check_labels(model, found, name)
    kept, rest = hold_out(found, name, round(_SHARE * (found.n_rows or 0)))
    x, y = _sampled(rest, MOST_HELD_OUT)
    return ModelData(
        short_name(name),
        found.fingerprint,
        kept,
        None,
        x,
        y,
        f"{len(x)} of {found.n_rows} rows, from evenly spaced blocks",
        found.image_shape,
        dtype=str(found.dtype),
    )


def _sampled(stream: DataStream, n: int) -> tuple[Rows, np.ndarray | None]:
    """Some rows and, where there are any, their labels as they are stored."""
    block = (stream.encoded(_flattened) if stream.has_labels else stream).sample(n)
    if stream.columns is None:
        return block.rows, block.labels
    import pandas as pd  # Columns have names in Parquet alone, which comes with it.

    return pd.DataFrame(block.rows, columns=list(stream.columns)), block.labels


def _flattened(labels: np.ndarray) -> np.ndarray:
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


# ---- data in memory ------------------------------------------------------------------------------


def _loaded(
    model: Model, name: str, labels: str | None, binarize: float | None, dtype: str
) -> _Loaded:
    path = Path(name).expanduser()
    if path.suffix.lower() in _TABLES and path.is_file():
        if labels is not None:
            return _of_table(path, labels, binarize, dtype)
        if model.learns_labels:
            raise DataError(_without_labels(model, name))
    dataset = data.load(name, binarize=binarize)
    y, y_test = dataset.y_train, dataset.y_test
    digest = ""
    if labels is not None:
        y, y_test = _labels_beside(path, dataset, labels), None
        digest = hashlib.sha256(repr((y.dtype.str, y.tolist())).encode()).hexdigest()
    return _Loaded(
        dataset.name,
        f"{dataset.fingerprint}{digest}",
        dataset.x_train.astype(dtype, copy=False),
        _flat(y),
        None if dataset.x_test is None else dataset.x_test.astype(dtype, copy=False),
        _flat(y_test),
        dataset.image_shape,
        dataset.is_binarized,
    )


def _labels_beside(path: Path, dataset: Dataset, labels: str) -> np.ndarray:
    """Labels that do not lie where the loader looks for them."""
    inside = _array_inside(path, labels)
    if inside is not None:
        y = inside
    elif dataset.y_train is not None:
        raise DataError(f"{dataset.name} has labels of its own: drop --labels")
    else:
        y = _read_labels(labels)
    if len(y) != len(dataset.x_train):
        raise DataError(f"{labels} has {len(y)} labels for {len(dataset.x_train)} rows of {path}")
    return y


def _array_inside(path: Path, name: str) -> np.ndarray | None:
    """The array of that name in an ``.npz`` file."""
    if path.suffix.lower() != ".npz":
        return None
    with blaming(path), np.load(path, allow_pickle=False) as stored:
        return stored[name] if name in stored.files else None


def _read_labels(labels: str) -> np.ndarray:
    path = Path(labels).expanduser()
    if path.suffix.lower() != ".npy":
        raise DataError(f"--labels takes an .npy file here, got {labels}")
    if not path.is_file():
        raise DataError(f"no file {labels} with labels")
    with blaming(path):
        y: np.ndarray = np.load(path, allow_pickle=False)
    if y.ndim not in (1, 2) or not len(y):
        raise DataError(f"{labels} has shape {y.shape}; give one label per row")
    return y


def _flat(y: np.ndarray | None) -> np.ndarray | None:
    return y if y is None else _flattened(y)


def _of_table(path: Path, labels: str, binarize: float | None, dtype: str) -> _Loaded:
    """A table, of which one column is the labels; its numbers in one precision."""
    frame = _read_table(path)
    columns = [str(column) for column in frame.columns]
    if labels not in columns:
        raise DataError(
            f"{path} has no column {labels!r}; {did_you_mean(labels, columns)}it has "
            f"{', '.join(columns[:8])}{', ...' if len(columns) > 8 else ''}"
        )
    import pandas as pd

    frame.columns = columns
    digest = hashlib.sha256(repr([columns, labels, dtype, binarize]).encode())
    digest.update(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes())
    target = frame.pop(labels)
    if not len(frame.columns):
        raise DataError(f"{path} has no column but {labels!r}: there is nothing to learn from")
    for column in frame.columns:
        if pd.api.types.is_numeric_dtype(frame[column].dtype):
            frame[column] = frame[column].to_numpy(dtype=dtype, na_value=np.nan)
    if binarize is not None:
        frame = _binarized(frame, binarize, path)
    y = target.to_numpy()
    if pd.api.types.is_integer_dtype(target.dtype) and not target.isna().any():
        y = target.to_numpy(dtype=np.int64)
    elif pd.api.types.is_numeric_dtype(target.dtype):
        y = target.to_numpy(dtype=np.float64, na_value=np.nan)
    elif all(isinstance(label, str) for label in y):
        y = y.astype(str)
    return _Loaded(path.stem, digest.hexdigest(), frame, y, is_binarized=binarize is not None)


def _binarized(frame: Any, threshold: float, path: Path) -> Any:
    words = [name for name, kind in frame.dtypes.items() if kind.kind != "f"]
    if words:
        raise DataError(f"{path} has a column {words[0]!r} without numbers: drop --binarize")
    if frame.isna().to_numpy().any():
        raise DataError(f"{path} has missing values; fill them before you binarize")
    return (frame > threshold).astype(frame.dtypes.iloc[0])


def _read_table(path: Path) -> Any:
    try:
        # Only here: pandas is an extra.
        import pandas as pd

        with blaming(path), warnings.catch_warnings():
            # Rows longer than the header: their first or last values would be lost.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            if path.suffix.lower() == ".csv":
                return pd.read_csv(path, index_col=False)
            return pd.read_parquet(path)
    except ImportError as error:
        raise DataError(f"reading {path} needs: pip install freenergy[tables]") from error


def _divided(model: Model, found: _Loaded) -> ModelData:
    """Rows held out: the test set where its rows have what is needed, or drawn ones."""
    common = (found.image_shape, found.is_binarized)
    if found.x_test is not None and not (model.learns_labels and found.y_test is None):
        return ModelData(
            found.name,
            found.fingerprint,
            found.x,
            found.y,
            found.x_test,
            found.y_test,
            _TEST_SET,
            *common,
        )
    strata = _strata(found.y) if model.learns == "classes" else None
    kept, rest = train_test_split(
        np.arange(len(found.x)), test_size=_SHARE, random_state=0, stratify=strata
    )
    words = "a fifth of the rows, drawn with seed 0"
    if strata is not None:
        words += " in proportion to the classes"
    y = found.y
    return ModelData(
        found.name,
        found.fingerprint,
        _at(found.x, kept),
        None if y is None else y[kept],
        _at(found.x, rest),
        None if y is None else y[rest],
        words,
        *common,
    )


def _strata(y: np.ndarray | None) -> np.ndarray | None:
    """What to draw in proportion to; None where a class is too small for that."""
    if y is None or y.ndim != 1:
        return None
    try:
        _, counts = np.unique(y, return_counts=True)
    except TypeError:  # Labels of several kinds, which the estimator refuses in its own words.
        return None
    enough = counts.min() >= 2 and len(counts) <= _SHARE * len(y)
    return y if enough else None


def _at(x: Rows, places: np.ndarray) -> Rows:
    return x.iloc[places] if hasattr(x, "iloc") else x[places]

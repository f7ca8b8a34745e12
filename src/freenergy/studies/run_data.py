"""The rows of a run of the command line: loaded, or streamed where they are too many.

A study compares trainings on equal rows, and judges them by what needs all rows at once. Of data
that are streamed it learns from rows that were drawn, always the same ones.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from freenergy import data
from freenergy.data import DataError, Dataset, DataStream, Drawn
from freenergy.models import Unit
from freenergy.progress import Reporter
from freenergy.random import RandomStream
from freenergy.studies.hold_out import (
    FEWEST,
    MOST_BYTES,
    MOST_HELD_OUT,
    check_enough,
    hold_out,
    short_name,
)
from freenergy.studies.results import split_held_out
from freenergy.training import Rows, StreamedRows, as_rows

__all__ = [
    "RunData",
    "StudyData",
    "data_of_study",
    "drawn_from",
    "is_in_store",
    "is_streamed",
    "open_data",
    "open_dataset",
    "reopen_data",
    "rows_in_words",
    "to_unit",
]

StudyData: TypeAlias = Dataset | DataStream | str | os.PathLike[str]
"""What a study is of: a data set, a stream, or the name of either."""

_LOOKED_AT = 1000
_STORES = (".h5", ".hdf5", ".zarr")


@dataclass(frozen=True, eq=False)
class RunData:
    """Rows to learn from and rows held out, with values in [0, 1].

    Attributes
    ----------
    name : str
    fingerprint : str
        Of the data before they were divided.
    train : ndarray of shape (n, n_features), or DataStream
    held_out : ndarray of shape (m, n_features)
    image_shape : tuple of int or None
    is_binarized : bool
        Whether a threshold made 0 or 1 of other values; of a stream as a sample tells.
    """

    name: str
    fingerprint: str
    train: np.ndarray | DataStream
    held_out: np.ndarray
    image_shape: tuple[int, ...] | None
    is_binarized: bool = False

    @property
    def width(self) -> int:
        """Number of columns."""
        return int(self.held_out.shape[1])

    def rows(self, unit: Unit, like: torch.Tensor, start_rows: int | None = None) -> Rows:
        """The rows to learn from as a trainer takes them, as values of a binary unit."""
        if isinstance(self.train, DataStream):
            ends = min(unit.support), max(unit.support)
            return StreamedRows(self.train.onto(*ends), like, start_rows=start_rows)
        return as_rows(to_unit(self.train, unit), like)

    def learned_from(self) -> np.ndarray:
        """The rows to learn from; of a stream a sample of evenly spaced blocks."""
        if isinstance(self.train, DataStream):
            return self.train.sample(MOST_HELD_OUT).rows
        return self.train


def is_streamed(name: str) -> bool:
    """Whether a name is that of data that are streamed: folders, stores, and large files."""
    known = name.lower().replace("_", "-")
    path = Path(name).expanduser()
    if known in data.NAMES:
        return False
    if path.is_dir() or is_in_store(name):
        return True
    if path.suffix.lower() not in (".npy", ".parquet") or not path.is_file():
        return False
    return path.stat().st_size > data.LARGE_BYTES


def is_in_store(name: str) -> bool:
    """Whether a name is that of a store, or of an array in one."""
    return any(f"{ending}:" in f"{name.lower()}:" for ending in _STORES)


def open_data(name: str, binarize: float | None, labels: str | None = None) -> RunData:
    """The rows of a known set, a file, a folder of shards or a store.

    Parameters
    ----------
    name : str
        As for :func:`freenergy.data.load` or :func:`freenergy.data.stream`.
    binarize : float or None
    labels : str, default=None
        What of the data is no feature, as for :func:`freenergy.data.stream`.

    Returns
    -------
    RunData
        Of a stream a fifth of the rows is held out, but at most 10 000 of them.

    Raises
    ------
    ValueError
        When the data cannot be used, or are fewer than ten rows.
    """
    if not is_streamed(name):
        if labels is not None:
            raise DataError(
                f"labels have no effect on {name}, which is loaded as a whole: leave the column "
                "out of the file, or give a folder of Parquet shards"
            )
        return _loaded(data.load(name, binarize=binarize))
    found = data.stream(name, binarize=binarize, labels=labels).within(0.0, 1.0)
    kept, rest = hold_out(found, name, (found.n_rows or 0) // 5)
    held_out = rest.sample(MOST_HELD_OUT).rows.astype(np.float32)
    shape, fingerprint = found.image_shape, found.fingerprint
    return RunData(short_name(name), fingerprint, kept, held_out, shape, _is_binarized(kept))


def reopen_data(stored: dict[str, Any]) -> RunData:
    """The rows of a run by what it has kept of them, those of a study's run included.

    Raises
    ------
    ValueError
        When they cannot be used. Whether they are the same tells the fingerprint.
    """
    name, binarize, drawn = stored["name"], stored.get("binarize"), stored.get("drawn")
    if drawn is None:
        return open_data(name, binarize, stored.get("labels"))
    return _loaded(open_dataset(name, binarize, drawn["labels"], drawn["n_drawn"]))


def _loaded(dataset: Dataset) -> RunData:
    train, held_out = split_held_out(dataset)
    return RunData(
        dataset.name,
        dataset.fingerprint,
        train,
        held_out,
        dataset.image_shape,
        dataset.is_binarized,
    )


# ---- studies -------------------------------------------------------------------------------------


def open_dataset(
    name: str | os.PathLike[str],
    binarize: float | None = None,
    labels: str | None = None,
    n_rows: int | None = None,
) -> Dataset:
    """The data set of a study: loaded, or drawn from what is streamed.

    Parameters
    ----------
    name : str or path-like
        As for :func:`freenergy.data.load` or :func:`freenergy.data.stream`.
    binarize : float, default=None
    labels : str, default=None
        Of data that are streamed, where their labels are; see :func:`freenergy.data.stream`.
    n_rows : int, default=None
        So many rows are drawn from data that are streamed, uniformly and without replacement; None
        draws as many as take 256 MiB. An ``.npy`` or ``.parquet`` file is streamed where ``labels``
        or ``n_rows`` is given.

    Returns
    -------
    Dataset
        The same rows each time. A fifth of those that were drawn, but at most 10 000, are its test
        set.

    Raises
    ------
    ValueError
        When the data cannot be used, or are fewer than ten rows.
    """
    name = os.fspath(name)
    asked = labels is not None or n_rows is not None
    in_blocks = Path(name).suffix.lower() in (".npy", ".parquet")
    if is_streamed(name) or (asked and in_blocks):
        found = data.stream(name, binarize=binarize, labels=labels)
        return _drawn(found, short_name(name), labels, n_rows)
    if asked:
        what = "labels" if labels is not None else "a number of rows"
        raise DataError(f"{what} cannot be chosen of {name}, which is loaded as a whole")
    return data.load(name, binarize=binarize)


def data_of_study(
    what: StudyData,
    source: str | None = None,
    binarize: float | None = None,
    reporter: Reporter | None = None,
) -> tuple[Dataset, str]:
    """The data set that a study is of, drawn where need be, and what it is called in records."""
    if isinstance(what, Dataset):
        dataset = what
    elif isinstance(what, DataStream):
        dataset = _drawn(what, short_name(what.name))
    else:
        dataset, source = open_dataset(what, binarize), source or os.fspath(what)
    if dataset.drawn is not None and dataset.x_test is not None:
        sizes = {"n_train": len(dataset.x_train), "n_held_out": len(dataset.x_test)}
        words = rows_in_words(sizes | drawn_from(dataset))
        (reporter or Reporter()).line(f"{dataset.name}: {words}")
    return dataset, source or dataset.name


def drawn_from(dataset: Dataset) -> dict[str, Any]:
    """What a study keeps of how its rows were drawn; nothing where they were not."""
    if dataset.drawn is None:
        return {}
    n_held_out = 0 if dataset.x_test is None else len(dataset.x_test)
    drawn = {"n_drawn": len(dataset.x_train) + n_held_out, **dataclasses.asdict(dataset.drawn)}
    return {"drawn": drawn}


def rows_in_words(stored: dict[str, Any]) -> str:
    """How many rows a study learns from and holds out, and what they were drawn from.

    Examples
    --------
    >>> rows_in_words({"n_train": 800, "n_held_out": 200})
    '800 rows to learn from, 200 held out'
    >>> drawn = {"n_drawn": 1000, "n_rows": 5000}
    >>> rows_in_words({"n_train": 800, "n_held_out": 200, "drawn": drawn})
    '800 rows to learn from, 200 held out (of 1000 drawn at random from 5000)'
    """
    words = f"{stored['n_train']} rows to learn from, {stored['n_held_out']} held out"
    drawn = stored.get("drawn")
    if drawn is None or drawn["n_drawn"] == drawn["n_rows"]:
        return words
    return f"{words} (of {drawn['n_drawn']} drawn at random from {drawn['n_rows']})"


def _drawn(
    found: DataStream, name: str, labels: str | None = None, n_rows: int | None = None
) -> Dataset:
    """Rows drawn from a stream, in a random order, some of them held out."""
    if n_rows is not None and n_rows < FEWEST:
        raise DataError(f"{n_rows} rows are too few to hold some out; take at least {FEWEST}")
    found = found.within(0.0, 1.0)
    if found.has_labels:
        found = found.encoded(lambda y: y)  # So that a label that is missing is found.
    most = max(FEWEST, MOST_BYTES // (found.width * np.dtype(np.float32).itemsize))
    rows, labels_ = found.draw(most if n_rows is None else n_rows, RandomStream(0))
    check_enough(len(rows), name)
    order = RandomStream(1).permutation(len(rows)).numpy()
    n_held_out = min(math.ceil(len(rows) / 5), MOST_HELD_OUT)
    test, train = order[:n_held_out], order[n_held_out:]
    y = None if labels_ is None else _typed(labels_)
    return Dataset(
        name,
        rows[train].astype(np.float32, copy=False),
        None if y is None else y[train],
        rows[test].astype(np.float32, copy=False),
        None if y is None else y[test],
        found.image_shape,
        _is_binarized(found),
        Drawn(found.n_rows or 0, labels),
    )


def _typed(labels: np.ndarray) -> np.ndarray:
    """Labels of a type that a data set has."""
    if labels.dtype.kind in "iu":
        return labels.astype(np.int64)
    return np.array(labels.tolist()) if labels.dtype == object else labels


def _is_binarized(found: DataStream) -> bool:
    """Whether a threshold makes 0 or 1 of other values, as a sample tells."""
    if found.threshold is None:
        return False
    stored = replace(found, threshold=None, bounds=None).sample(_LOOKED_AT).rows
    return bool(((stored != 0) & (stored != 1)).any())


def to_unit(rows: np.ndarray, unit: Unit) -> torch.Tensor:
    """Rows in [0, 1] as values of a binary unit."""
    low, high = min(unit.support), max(unit.support)
    return torch.from_numpy(rows) * (high - low) + low

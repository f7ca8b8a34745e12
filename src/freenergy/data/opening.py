"""What a user names or hands over, as a source of rows."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from torch import Tensor

from freenergy.data.errors import DataError
from freenergy.data.items import IterableSource, is_iterable_data, is_torch_data, item_source
from freenergy.data.sources import ArraySource, BinaryFile, Labelled, Shards, Source, npy_file
from freenergy.data.stores import ParquetFile, hdf5_array, zarr_array
from freenergy.names import did_you_mean

__all__ = ["is_source", "open_source"]

_STORE = re.compile(r"(?P<path>.+\.(?P<kind>h5|hdf5|zarr))/?(:(?P<inside>.*))?", re.IGNORECASE)
_FILES = (".npy", ".parquet")
_KINDS = ".npy, .parquet, .h5, .hdf5 or .zarr"


def is_source(what: object) -> bool:
    """Whether this is read in blocks: a path, a data set of torch, an array of h5py or zarr."""
    return isinstance(what, str | os.PathLike) or is_torch_data(what) or _is_stored_array(what)


def open_source(what: Any, labels: Any = None) -> Source | IterableSource:
    """Open rows that lie somewhere; of files nothing but the headers is read.

    Parameters
    ----------
    what : path, array, torch Dataset, IterableDataset or DataLoader, h5py or zarr array
        As for :func:`freenergy.data.stream`.
    labels : str, path or array, default=None
        As for :func:`freenergy.data.stream`.

    Returns
    -------
    Source or IterableSource

    Raises
    ------
    DataError
        When it cannot be used; the message names the shard.

    Examples
    --------
    >>> open_source(np.zeros((5, 2))).shape
    (5, 2)
    """
    if is_torch_data(what):
        if labels is not None:
            raise DataError("labels of a torch Dataset are part of its items: pairs (row, label)")
        source = IterableSource(what) if is_iterable_data(what) else item_source(what)
    elif isinstance(what, str | os.PathLike):
        source = _open_path(os.fspath(what), labels)
    else:
        source = _with_labels(_open_array(what), labels)
    _check_rows(source)
    return source


def _open_array(what: Any) -> Source:
    if sp.issparse(what):
        raise DataError(
            "a sparse matrix stays sparse until its batch already: pass it to fit as it is"
        )
    if isinstance(what, np.memmap):
        return BinaryFile.of_map(what) or ArraySource(what, str(what.filename or "memory map"))
    if isinstance(what, Tensor):
        what = what.detach().cpu().numpy()
    if isinstance(what, np.ndarray) or _is_stored_array(what):
        return ArraySource(what, getattr(what, "name", None) or type(what).__name__)
    raise DataError(
        f"{type(what).__name__} cannot be streamed; give a path, an array, or a torch Dataset"
    )


def _is_stored_array(what: object) -> bool:
    origin = type(what).__module__.partition(".")[0]
    return origin in ("h5py", "zarr") and hasattr(what, "shape") and hasattr(what, "dtype")


def _open_path(name: str, labels: Any) -> Source:
    expanded = os.path.expanduser(name)
    store = _STORE.fullmatch(expanded)
    path, inside, open_array = Path(expanded), None, zarr_array
    if store is not None:
        path, inside, open_array = _opened_store(store)
    elif not any((path / f).exists() for f in ("zarr.json", ".zarray", ".zgroup")):
        return _open_files(path, name, labels)
    beside = _inside(path, labels)
    rows = open_array(path, inside, beside=beside)
    return Labelled(rows, open_array(path, beside)) if beside else _with_labels(rows, labels)


def _opened_store(store: re.Match[str]) -> tuple[Path, str | None, Callable[..., Source]]:
    """Where a store lies, what of it is meant, and what opens it."""
    path = Path(store["path"])
    if not path.exists():
        raise DataError(f"no file {path}; give a {_KINDS} path that exists")
    open_array = zarr_array if store["kind"].lower() == "zarr" else hdf5_array
    return path, store["inside"] or None, open_array


def _inside(path: Path, labels: Any) -> str | None:
    """The name of labels within this store, be it given with the store's own or without."""
    if not isinstance(labels, str):
        return None
    store = _STORE.fullmatch(os.path.expanduser(labels))
    if store is None:
        return labels
    return store["inside"] if Path(store["path"]).resolve() == path.resolve() else None


def _open_files(path: Path, name: str, labels: Any) -> Source:
    files = _shards_of(path) if path.is_dir() else [path]
    if not path.exists():
        near = ""
        with suppress(OSError):
            others = (p for p in path.parent.iterdir() if p.is_dir() or p.suffix in _FILES)
            near = did_you_mean(path.name, [other.name for other in others])
        raise DataError(f"no file or folder {name}; {near}give a {_KINDS} path that exists")
    if path.is_file() and path.suffix.lower() not in _FILES:
        whole = path.suffix.lower() in (".csv", ".npz")
        cure = f"give freenergy.data.load({name!r}).x_train, or " if whole else "give "
        raise DataError(f"cannot read {name} in blocks: {cure}{_KINDS}, or a folder of shards")
    if files[0].suffix.lower() == ".parquet":
        column = labels if isinstance(labels, str) else None
        rows = _concatenated([_checked(ParquetFile(file, column)) for file in files])
        if column is None:
            return _with_labels(rows, labels)
        targets: list[Source] = [ParquetFile(file, column, only_label=True) for file in files]
        return Labelled(rows, _concatenated(targets))
    return _with_labels(_concatenated([_checked(npy_file(file)) for file in files]), labels)


def _shards_of(folder: Path) -> list[Path]:
    """The files of a folder in the order of their names, all of one kind."""
    files = sorted(f for f in folder.iterdir() if not f.name.startswith((".", "_")))
    if not files:
        raise DataError(f"{folder} is an empty folder; give one with .npy or .parquet shards")
    for file in files:
        if file.suffix.lower() not in (".npy", ".parquet") or not file.is_file():
            raise DataError(f"{file} is no .npy or .parquet shard; keep nothing else in the folder")
        if file.suffix.lower() != files[0].suffix.lower():
            raise DataError(
                f"{file} is not of the kind of {files[0]}; keep shards of one kind in a folder"
            )
    return files


def _concatenated(sources: list[Source]) -> Source:
    return sources[0] if len(sources) == 1 else Shards(sources)


def _with_labels(rows: Source, labels: Any) -> Source:
    if labels is None:
        return rows
    if isinstance(labels, str | os.PathLike):
        store = _STORE.fullmatch(os.path.expanduser(os.fspath(labels)))
        if store is not None:
            place, inside, open_array = _opened_store(store)
            return Labelled(rows, open_array(place, inside))
        path = Path(labels).expanduser()
        if not path.exists():
            raise DataError(f"no file or folder {labels} with the labels of {rows.name}")
        files = _shards_of(path) if path.is_dir() else [path]
        return Labelled(rows, _concatenated([npy_file(file) for file in files]))
    return Labelled(rows, ArraySource(np.asarray(labels), "labels"))


def _checked(source: Source) -> Source:
    _check_rows(source)
    return source


def _check_rows(source: Source | IterableSource) -> None:
    """What can be told of rows without reading them."""
    if source.dtype.kind not in "biuf":
        raise DataError(f"{source.name} has values of type {source.dtype}; give real numbers")
    if len(source.shape) < 2:
        raise DataError(f"{source.name} has shape {source.shape}; give (rows, features)")
    if 0 in source.shape:
        raise DataError(f"{source.name} is empty, shape {source.shape}; give at least one row")

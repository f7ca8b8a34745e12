"""Parquet tables, and arrays within HDF5 files and Zarr stores, read a block at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from freenergy.data.errors import DataError, blaming
from freenergy.data.sources import ArraySource, Block, Source, along_chunks

__all__ = ["Hdf5Array", "ParquetFile", "hdf5_array", "zarr_array"]


class ParquetFile(Source):
    """Numeric columns of a Parquet file; a row group is the least that is read.

    Parameters
    ----------
    path : Path
    label : str, default=None
        A column that is no feature.
    only_label : bool, default=False
        Read that column alone, of whatever type, in the shape (n,).

    Raises
    ------
    DataError
        When there is no such column, or a feature is not numeric.
    """

    is_divisible = False

    def __init__(self, path: Path, label: str | None = None, *, only_label: bool = False) -> None:
        try:
            import pyarrow.parquet as pq
        except ImportError as error:
            raise DataError(f"reading {path} needs: pip install freenergy[tables]") from error
        self.name = str(path)
        self._parquet = pq
        with blaming(path), pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
        if label is not None and label not in schema.names:
            raise DataError(f"{path} has no column {label!r} for the labels")
        features = [name for name in schema.names if name != label]
        self._wanted = [label] if only_label else features
        self._only_label = only_label
        groups = [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)]
        self._ends = list(accumulate(groups))
        self.shape: tuple[int, ...] = (metadata.num_rows,)
        types = [_numpy_type(schema.field(name).type) for name in self._wanted]
        self.dtype = np.dtype(object)
        if not only_label:
            others = [n for n, t in zip(features, types, strict=True) if t.kind not in "biuf"]
            if others:
                names = ", ".join(others[:6]) + (", ..." if len(others) > 6 else "")
                raise DataError(
                    f"{path} has columns that are not numeric; encode or drop them: {names}"
                )
            self.columns = tuple(features)
            self.shape = (metadata.num_rows, len(features))
            self.dtype = np.result_type(*types) if types else self.dtype

    def read(self, start: int, stop: int) -> Block:
        begins = [0, *self._ends[:-1]]
        groups = [
            k
            for k, (begin, end) in enumerate(zip(begins, self._ends, strict=True))
            if begin < stop and start < end
        ]
        with blaming(self.name), self._parquet.ParquetFile(self.name) as file:
            table = file.read_row_groups(groups, columns=self._wanted, use_threads=False)
        first = begins[groups[0]]
        table = table.slice(start - first, stop - start)
        if len(table) < stop - start:
            raise DataError(f"{self.name} ends before row {stop}; write it again")
        if self._only_label:
            return Block(table.column(self._wanted[0]).to_numpy())
        rows = np.empty((len(table), len(self._wanted)), self.dtype)
        for k, name in enumerate(self._wanted):
            column = table.column(name)
            if column.null_count and self.dtype.kind != "f":
                row = start + int(np.argmax(column.is_null().to_numpy()))
                raise DataError(
                    f"{self.name} has no value in column {name!r}, first in row {row}: remove or "
                    "impute it"
                )
            rows[:, k] = column.to_numpy()
        return Block(rows)

    def cuts(self, n_rows: int) -> list[int]:
        found = [0]
        for begin, end in zip([0, *self._ends[:-1]], self._ends, strict=True):
            if end - found[-1] > n_rows and begin > found[-1]:
                found.append(begin)
        return found


class Hdf5Array(Source):
    """A dataset in an HDF5 file, which is opened for each block and not kept open.

    Parameters
    ----------
    path : Path
    inside : str
        Path of the dataset in the file.
    """

    def __init__(self, path: Path, inside: str) -> None:
        self.path, self.inside = path, inside
        self.name = f"{path}:{inside}"
        with _opened_hdf5(path) as file:
            array = ArraySource(file[inside], self.name)
            self.shape, self.dtype, self._chunk = array.shape, array.dtype, array._chunk
            self.is_divisible = array.is_divisible

    def read(self, start: int, stop: int) -> Block:
        with blaming(self.name), _opened_hdf5(self.path) as file:
            return Block(np.asarray(file[self.inside][start:stop]))

    def cuts(self, n_rows: int) -> list[int]:
        return along_chunks(len(self), n_rows, self._chunk)


def hdf5_array(path: Path, inside: str | None, *, beside: str | None = None) -> Source:
    """The dataset of a file that is named, or the only one; ``beside`` are labels, not meant."""
    found: dict[str, int] = {}

    def visit(name: str, item: Any) -> None:
        if hasattr(item, "shape"):
            found["/" + name] = len(item.shape)

    with _opened_hdf5(path) as file:
        file.visititems(visit)
    return Hdf5Array(path, _chosen(path, inside, list(found), beside))


def zarr_array(path: Path, inside: str | None, *, beside: str | None = None) -> Source:
    """The array of a store that is named, or the only one."""
    try:
        import zarr
    except ImportError as error:
        raise DataError(f"reading {path} needs: pip install freenergy[zarr]") from error
    with blaming(path):
        node = zarr.open(store=str(path), mode="r")
        if isinstance(node, zarr.Array):
            if inside is not None:
                raise DataError(f"{path} is one array; drop {inside!r}")
            return ArraySource(node, str(path))
        arrays = {f"/{name}": node[name] for name, _ in node.members(max_depth=None)}
        arrays = {name: item for name, item in arrays.items() if isinstance(item, zarr.Array)}
        name = _chosen(path, inside, sorted(arrays), beside)
        return ArraySource(arrays[name], f"{path}:{name}")


def _chosen(path: Path, inside: str | None, found: Sequence[str], beside: str | None) -> str:
    names = [name for name in found if beside is None or name != "/" + beside.strip("/")]
    if inside is not None:
        wanted = "/" + inside.strip("/")
        if wanted not in found:
            raise DataError(f"{path} has no array {inside!r}; it has {', '.join(found) or 'none'}")
        return wanted
    if len(names) != 1:
        raise DataError(
            f"{path} holds {', '.join(names) or 'no array'}; name the array to learn from as in "
            f"{path.name}:/x"
        )
    return names[0]


def _opened_hdf5(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise DataError(f"reading {path} needs: pip install freenergy[hdf5]") from error
    with blaming(path):
        return h5py.File(path, "r")


def _numpy_type(arrow: Any) -> np.dtype[Any]:
    try:
        return np.dtype(arrow.to_pandas_dtype())
    except (NotImplementedError, TypeError):
        return np.dtype(object)

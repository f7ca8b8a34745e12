"""The same rows in every kind of file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROWS = np.random.default_rng(0).integers(0, 2, (230, 6)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 3, 230)


def npy_shards(folder: Path) -> tuple[Any, Any]:
    (folder / "x").mkdir()
    (folder / "y").mkdir()
    for k, part in enumerate(np.array_split(np.arange(230), [50, 51, 200])):
        np.save(folder / "x" / f"{k}.npy", ROWS[part])
        np.save(folder / "y" / f"{k}.npy", LABELS[part])
    return folder / "x", folder / "y"


def npy_file(folder: Path) -> tuple[Any, Any]:
    np.save(folder / "x.npy", ROWS)
    return folder / "x.npy", LABELS


def memory_map(folder: Path) -> tuple[Any, Any]:
    np.save(folder / "x.npy", np.concatenate([ROWS[:7], ROWS, ROWS[:5]]))
    return np.load(folder / "x.npy", mmap_mode="r")[7:-5], LABELS


def parquet(folder: Path) -> tuple[Any, Any]:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(ROWS, columns=list("abcdef")).assign(label=LABELS)
    (folder / "t").mkdir()
    frame[:90].to_parquet(folder / "t" / "0.parquet", row_group_size=40)
    frame[90:].to_parquet(folder / "t" / "1.parquet", row_group_size=1000)
    return folder / "t", "label"


def hdf5(folder: Path) -> tuple[Any, Any]:
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset("set/x", data=ROWS, chunks=(16, 6), compression="gzip")
        file["set/y"] = LABELS
    return f"{folder / 'x.h5'}:/set/x", "set/y"


def zarr(folder: Path) -> tuple[Any, Any]:
    package = pytest.importorskip("zarr")
    group = package.open_group(str(folder / "x.zarr"), mode="w")
    group.create_array("x", data=ROWS, chunks=(32, 6))
    group.create_array("y", data=LABELS)
    return folder / "x.zarr", "y"


def torch_dataset(folder: Path) -> tuple[Any, Any]:
    import torch

    class Items(torch.utils.data.Dataset):
        def __len__(self):
            return 230

        def __getitem__(self, k):
            return torch.from_numpy(ROWS[k]), int(LABELS[k])

    return Items(), None


def tensor_dataset(folder: Path) -> tuple[Any, Any]:
    import torch

    data = torch.utils.data.TensorDataset(torch.from_numpy(ROWS), torch.from_numpy(LABELS))
    return data, None


KINDS = {
    make.__name__: make
    for make in (
        npy_shards,
        npy_file,
        memory_map,
        parquet,
        hdf5,
        zarr,
        torch_dataset,
        tensor_dataset,
    )
}


@pytest.fixture
def rows() -> np.ndarray:
    """230 rows of six zeros and ones."""
    return ROWS.copy()


@pytest.fixture
def labels() -> np.ndarray:
    """A class of three for each row."""
    return LABELS.copy()


@pytest.fixture(params=KINDS)
def stored(request, tmp_path) -> tuple[Any, Any]:
    """The rows in one kind of file or another, and what names their labels."""
    return KINDS[request.param](tmp_path)


@pytest.fixture
def made(tmp_path) -> Callable[[str], tuple[Any, Any]]:
    """``made("hdf5")``, the rows in files of that kind."""
    return lambda kind: KINDS[kind](tmp_path)

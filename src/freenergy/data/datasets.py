"""Names and paths to arrays.

One function, :func:`load`, takes the name of a known set or the path of a file and gives back a
:class:`Dataset`: rows × features, as float32. Nothing that is read can run code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import fetch_openml, load_digits
from sklearn.model_selection import train_test_split

from freenergy.data.errors import DataError, blaming, reason_of
from freenergy.names import did_you_mean

__all__ = ["NAMES", "Dataset", "Drawn", "load"]

Array = NDArray[Any]

_FIELDS = ("x_train", "y_train", "x_test", "y_test")
_ENDINGS = (".npz", ".npy", ".csv", ".parquet")
_ENDINGS_TEXT = ".npz, .npy, .csv or .parquet"
_STREAMED = (
    "folders of .npy or .parquet, .h5 and .zarr are taken by freenergy.data.stream, freenergy "
    "train and freenergy study"
)


@dataclass(frozen=True)
class Drawn:
    """Where rows were drawn from.

    Attributes
    ----------
    n_rows : int
        Of all rows there.
    labels : str or None
        What there is no feature, by its name.
    """

    n_rows: int
    labels: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Arrays to learn from and, where the source has them, labels and a test set.

    Attributes
    ----------
    name : str
        The name it was loaded by, or the name of its file.
    x_train, x_test : float32 array of shape (n_rows, n_features)
        Images are flattened, in C order. ``x_test`` is None where there is no test set.
    y_train, y_test : array of shape (n_rows,) or (n_rows, n_outputs)
        Labels, one per row, or None; integer labels are int64.
    image_shape : tuple of int
        The shape of one row as an image, ``(height, width)`` or ``(channels, height, width)``;
        None for tables.
    is_binarized : bool
        Whether a threshold made 0 or 1 of other values.
    drawn : Drawn or None
        Out of how many rows these were drawn; None where they are all that there are.

    Examples
    --------
    >>> import numpy as np
    >>> Dataset("pairs", np.zeros((4, 2), dtype=np.float32))
    Dataset('pairs', train=(4, 2), labels=False)
    """

    name: str
    x_train: NDArray[np.float32]
    y_train: Array | None = None
    x_test: NDArray[np.float32] | None = None
    y_test: Array | None = None
    image_shape: tuple[int, ...] | None = None
    is_binarized: bool = False
    drawn: Drawn | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the four arrays, the same on every machine.

        A resumed run compares it to know that it sees the data it started with. It is computed at
        each access, since the arrays can be written to.

        Examples
        --------
        >>> load("digits").fingerprint == load("digits").fingerprint
        True
        >>> load("digits").fingerprint == load("digits", binarize=0.5).fingerprint
        False
        """
        digest = hashlib.sha256()
        for field in _FIELDS:
            array = getattr(self, field)
            if array is None:
                digest.update(f"{field} none\n".encode())
                continue
            little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
            # The header tells apart arrays with the same bytes in another shape or type.
            digest.update(f"{field} {little.dtype.str} {little.shape}\n".encode())
            digest.update(little.reshape(-1).view(np.uint8))
        return digest.hexdigest()

    def __repr__(self) -> str:
        parts = [repr(self.name), f"train={self.x_train.shape}"]
        if self.x_test is not None:
            parts.append(f"test={self.x_test.shape}")
        parts.append(f"labels={self.y_train is not None}")
        if self.image_shape is not None:
            parts.append(f"image_shape={self.image_shape}")
        if self.drawn is not None:
            parts.append(f"drawn from {self.drawn.n_rows}")
        return f"Dataset({', '.join(parts)})"


@dataclass(frozen=True)
class _Images:
    """Where a known set of images lies, and what it must look like."""

    files: tuple[str, ...]
    """Names in the folder FREENERGY_DATA, the first that exists is read."""
    openml: str
    n_train: int
    """Rows of the OpenML copy that come before its test set."""
    n_test: int
    image_shape: tuple[int, ...]


_IMAGES = {
    "mnist": _Images(("mnist.npz",), "mnist_784", 60_000, 10_000, (28, 28)),
    "fashion-mnist": _Images(("fashion-mnist.npz",), "Fashion-MNIST", 60_000, 10_000, (28, 28)),
    "cifar10": _Images(("cifar10.npz", "cifar10_10k.npz"), "CIFAR_10", 50_000, 10_000, (3, 32, 32)),
}

NAMES = ("digits", *_IMAGES)
"""The names that :func:`load` knows."""


def load(name_or_path: str | os.PathLike[str], *, binarize: float | None = None) -> Dataset:
    """Load a known dataset, or a file.

    Parameters
    ----------
    name_or_path : str or path-like
        One of :data:`NAMES`, or the path of a file:

        - ``.npz``: ``x_train`` and, if present, ``y_train``, ``x_test``, ``y_test``; or ``X`` and
          ``y``; or one array under any name. Capital and small letters are the same.
        - ``.npy``: one array.
        - ``.csv``, ``.parquet``: numeric columns (``pip install freenergy[tables]``). The first
          line of a csv file is its header, unless it holds numbers.

        "digits" comes with scikit-learn. The other names are looked for in the folder that the
        environment variable ``FREENERGY_DATA`` names (``mnist.npz``, ``fashion-mnist.npz``,
        ``cifar10.npz`` or ``cifar10_10k.npz``), then fetched from OpenML, once.
    binarize : float, optional
        Make every value 1 where it is greater than this threshold, and 0 elsewhere; images of
        type uint8 are brought to [0, 1] before.

    Returns
    -------
    Dataset
        Images of type uint8 are brought from 0..255 to [0, 1] (unless they are 0 and 1 already,
        as in a mask); any other values stay as they are. Store categories as another integer type.

    Raises
    ------
    DataError
        If there is no such data, or it cannot be used.

    Examples
    --------
    >>> load("digits")
    Dataset('digits', train=(1437, 64), test=(360, 64), labels=True, image_shape=(8, 8))
    >>> np.unique(load("digits", binarize=0.5).x_train)
    array([0., 1.], dtype=float32)
    """
    threshold = _check_threshold(binarize)
    name = os.fspath(name_or_path)
    known = name.lower().replace("_", "-")
    # A Path is always a file, so that a file named like a known set can be reached.
    if isinstance(name_or_path, str) and known in NAMES:
        return _digits(threshold) if known == "digits" else _images(known, threshold)
    path = _check_path(name)
    return _dataset(path.stem, _read(path), str(path), threshold)


def _check_threshold(binarize: float | None) -> float | None:
    if binarize is None:
        return None
    # True would pass for 1.0, and nothing in [0, 1] is greater than that.
    if isinstance(binarize, bool | np.bool) or not math.isfinite(binarize):
        raise DataError(f"binarize={binarize} is not a threshold; give a number such as 0.5")
    return float(binarize)


# ---- known sets ----------------------------------------------------------------------------------


def _digits(threshold: float | None) -> Dataset:
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        x / 16, y, train_size=1437, test_size=360, stratify=y, random_state=0
    )
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    return _dataset("digits", arrays, "digits", threshold, image_shape=(8, 8))


def _images(name: str, threshold: float | None) -> Dataset:
    path = _find_in_folder(name)
    arrays = _fetch(name) if path is None else _read(path)
    source = f"OpenML {_IMAGES[name].openml}" if path is None else str(path)
    return _dataset(name, arrays, source, threshold, image_shape=_IMAGES[name].image_shape)


def _find_in_folder(name: str) -> Path | None:
    folder = os.environ.get("FREENERGY_DATA")
    if not folder:
        return None
    if not os.path.isdir(os.path.expanduser(folder)):
        # A slip in the variable must not start a large download.
        raise DataError(f"FREENERGY_DATA names no folder: {folder}; correct it, or unset it")
    paths = (Path(folder).expanduser() / file for file in _IMAGES[name].files)
    return next((path for path in paths if path.is_file()), None)


def _fetch(name: str) -> dict[str, Array]:
    images = _IMAGES[name]
    try:
        x, y = fetch_openml(
            images.openml,
            version=1,
            return_X_y=True,
            as_frame=False,
            # The pure Python parser is far slower, but pandas is an extra.
            parser="pandas" if importlib.util.find_spec("pandas") else "liac-arff",
        )
    except (OSError, HTTPException, ValueError) as error:
        raise DataError(
            f"cannot fetch {name!r} from OpenML ({reason_of(error)}); connect to the network, or "
            f"set FREENERGY_DATA to a folder that holds {' or '.join(images.files)}"
        ) from error
    if len(x) != images.n_train + images.n_test:
        raise DataError(
            f"OpenML {images.openml} has {len(x)} rows instead of "
            f"{images.n_train + images.n_test}; clear scikit-learn's cache and load it again"
        )
    # OpenML keeps the original order, the training set first, and the labels as text.
    x, y, n = x.astype(np.uint8), y.astype(np.int64), images.n_train
    return {"x_train": x[:n], "y_train": y[:n], "x_test": x[n:], "y_test": y[n:]}


# ---- files ---------------------------------------------------------------------------------------


def _check_path(name: str) -> Path:
    expanded = os.path.expanduser(name)
    path = Path(expanded)
    if os.path.isdir(expanded):
        raise DataError(
            f"{name} is a folder; give the path of one {_ENDINGS_TEXT} file in it, or read it as "
            f"shards: {_STREAMED}"
        )
    if not os.path.isfile(expanded):
        raise DataError(_missing(name, path))
    if path.suffix.lower() not in _ENDINGS:
        raise DataError(f"cannot read {name}: give a {_ENDINGS_TEXT} file; {_STREAMED}")
    return path


def _missing(name: str, path: Path) -> str:
    if path.suffix.lower() not in _ENDINGS and path.name == name:
        what, names = f"no data called {name!r}", list(NAMES)
        advice = f"known names are {', '.join(NAMES)}; or give a {_ENDINGS_TEXT} file"
    else:
        what, names = f"no file {name}", []
        advice = f"give a {_ENDINGS_TEXT} file that exists, or one of {', '.join(NAMES)}"
    with suppress(OSError):
        names += [file.name for file in path.parent.iterdir() if file.suffix.lower() in _ENDINGS]
    return f"{what}; {did_you_mean(path.name, names)}{advice}; {_STREAMED}"


def _read(path: Path) -> dict[str, Array]:
    """The arrays of a file under the names of :class:`Dataset`, as they are stored."""
    if path.suffix.lower() in (".csv", ".parquet"):
        return {"x_train": _read_table(path)}
    with blaming(path):
        stored = np.load(path, allow_pickle=False)
    if isinstance(stored, np.ndarray):
        return {"x_train": stored}
    with stored:
        keys = _choose(stored.files, path)
        with blaming(path):
            return {field: stored[key] for field, key in keys.items()}


def _choose(stored: list[str], path: Path) -> dict[str, str]:
    """Which array of an archive is which field; the others are not even read."""
    keys = {key.lower(): key for key in stored}
    if "x_train" in keys:
        return {field: keys[field] for field in _FIELDS if field in keys}
    if "x" in keys:
        return {"x_train": keys["x"]} | ({"y_train": keys["y"]} if "y" in keys else {})
    if len(stored) == 1:
        return {"x_train": stored[0]}
    names = ", ".join(stored[:6]) + (", ..." if len(stored) > 6 else "")
    raise DataError(
        f"{path} holds {names or 'no array'}; name the array to learn from 'x_train' or 'X'"
    )


def _read_table(path: Path) -> Array:
    try:
        # Only here: pandas is an extra.
        import pandas as pd

        with blaming(path):
            frame = _read_csv(path, pd) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except ImportError as error:
        raise DataError(f"reading {path} needs: pip install freenergy[tables]") from error
    numeric = pd.api.types.is_numeric_dtype
    others = [str(column) for column, dtype in frame.dtypes.items() if not numeric(dtype)]
    if others and not frame.empty:
        names = ", ".join(others[:6]) + (", ..." if len(others) > 6 else "")
        raise DataError(f"{path} has columns that are not numeric; encode or drop them: {names}")
    # The one type that means more than its values, see _to_float.
    if all(dtype == np.uint8 for dtype in frame.dtypes):
        return np.asarray(frame.to_numpy())
    return np.asarray(frame.to_numpy(dtype=np.float64, na_value=np.nan))


def _read_csv(path: Path, pd: Any) -> Any:
    # A header may be absent, and a row of data must not be lost to it. The first line is a header
    # if it has text, or counts 0, 1, 2, ... as pandas names columns without names.
    first = pd.read_csv(path, header=None, nrows=1).dropna(axis="columns")
    has_text = not all(pd.api.types.is_numeric_dtype(dtype) for dtype in first.dtypes)
    counts = first.shape[1] > 2 and first.iloc[0].tolist() == list(range(first.shape[1]))
    with warnings.catch_warnings():
        # Rows longer than the header: their first or last values would be lost.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        frame = pd.read_csv(path, header=0 if has_text or counts else None, index_col=False)
    if str(frame.columns[0]) == "Unnamed: 0":
        # Row numbers would be learned as a feature.
        raise DataError(f"{path} has a first column without a name; write it without the index")
    return frame


# ---- arrays --------------------------------------------------------------------------------------


def _dataset(
    name: str,
    arrays: Mapping[str, Array],
    source: str,
    threshold: float | None,
    image_shape: tuple[int, ...] | None = None,
) -> Dataset:
    """Check the arrays, and convert them to what :class:`Dataset` promises."""
    stored = {field: arrays[field] for field in ("x_train", "x_test") if field in arrays}
    for field, array in stored.items():
        _check_features(array, f"{field} of {source}")
    shape = stored["x_train"].shape[1:]
    n_features = math.prod(shape if image_shape is None else image_shape)
    for field, array in stored.items():
        if math.prod(array.shape[1:]) != n_features:
            raise DataError(
                f"{field} of {source} has {math.prod(array.shape[1:])} features per row instead of "
                f"{n_features}; give arrays that agree"
            )
    x = _to_float(stored, source)
    is_binarized = False
    if threshold is not None:
        is_binarized = any(bool(((a != 0) & (a != 1)).any()) for a in x.values())
        x = {field: _binarize(array, threshold, source) for field, array in x.items()}
    return Dataset(
        name=name,
        x_train=x["x_train"],
        y_train=_labels(arrays, "y_train", "x_train", source),
        x_test=x.get("x_test"),
        y_test=_labels(arrays, "y_test", "x_test", source),
        image_shape=image_shape or (shape if len(shape) > 1 else None),
        is_binarized=is_binarized,
    )


def _check_features(array: Array, what: str) -> None:
    if array.dtype.kind not in "biuf":
        raise DataError(f"{what} has type {array.dtype}; give real numbers")
    if array.ndim < 2:
        raise DataError(f"{what} has shape {array.shape}; give (rows, features)")
    if array.size == 0:
        raise DataError(f"{what} is empty, shape {array.shape}; give at least one row and column")


def _to_float(stored: Mapping[str, Array], source: str) -> dict[str, NDArray[np.float32]]:
    """Rows of float32; uint8 beyond 0 and 1 is taken for the intensity of pixels."""
    # One decision for both sets, or they could end up on different scales.
    scaled = any(array.dtype == np.uint8 and array.max() > 1 for array in stored.values())
    if scaled and any(array.dtype != np.uint8 for array in stored.values()):
        raise DataError(f"{source} has uint8 images in one of x_train and x_test; give both as one")
    rows = {}
    for field, array in stored.items():
        x = np.ascontiguousarray(array.reshape(len(array), -1), dtype=np.float32)
        rows[field] = np.divide(x, 255, out=x) if scaled else x
    return rows


def _binarize(x: NDArray[np.float32], threshold: float, source: str) -> NDArray[np.float32]:
    # A missing value would silently become 0.
    if np.isnan(x).any():
        raise DataError(f"{source} has missing values; fill them before you binarize")
    least, most = min(0.0, float(x.min())), max(1.0, float(x.max()))
    if not least <= threshold <= most:
        raise DataError(
            f"binarize={threshold:g} is compared with the values of {source} (pixels of type uint8 "
            f"after division by 255), which lie in [{least:g}, {most:g}]; give one between, such "
            "as 0.5"
        )
    return (x > threshold).astype(np.float32)


def _labels(arrays: Mapping[str, Array], field: str, rows: str, source: str) -> Array | None:
    if field not in arrays:
        return None
    y, n_rows = arrays[field], len(arrays[rows]) if rows in arrays else 0
    if y.ndim not in (1, 2) or len(y) != n_rows:
        raise DataError(
            f"{field} of {source} has shape {y.shape} for {n_rows} rows; give one label per row"
        )
    # Small unsigned integers wrap around in arithmetic.
    return y.astype(np.int64) if y.dtype.kind in "iu" else y

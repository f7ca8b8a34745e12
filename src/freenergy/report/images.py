"""Many small images as one: an array becomes a grid, the grid a PNG, the PNG a data URI."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ImageGrid", "data_uri", "encode_png", "tile"]

# From blue through near-white to red, at equal steps from -1 to 1: told apart with any colour
# vision, and equally dark at both ends, so that neither sign looks stronger than the other.
_DIVERGING = ((8, 48, 107), (66, 136, 196), (247, 247, 247), (221, 98, 74), (110, 6, 26))


def _levels(*stops: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Spread colours over levels 1 to 255; level 0 is the transparent one."""
    positions = np.linspace(1, 255, len(stops))
    channels = [
        np.interp(np.arange(256), positions, channel) for channel in zip(*stops, strict=True)
    ]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


_DIVERGING_LEVELS = _levels(*_DIVERGING)
_GREY_LEVELS = _levels((0, 0, 0), (255, 255, 255))


@dataclass(frozen=True, slots=True, eq=False)
class ImageGrid:
    """Images side by side: samples, digits, filters.

    Parameters
    ----------
    title : str
        The title above the grid.
    images : array-like of shape (n, height, width) or (n, height, width, 3)
        Grey or colour images with values in [0, 1] (others are clipped), or of 8-bit integers.
        A NaN leaves its pixel empty.
    n_columns : int, optional
        Images in a row. By default the grid comes out wider than high by about a half.
    symmetric : bool, default=False
        Signed values, such as filters: zero is white, the largest magnitude in the grid is full
        red or blue.
    note : str, default=""
        A remark below the grid.

    Examples
    --------
    >>> grid = ImageGrid("Filters", np.linspace(-1, 1, 32).reshape(2, 4, 4), symmetric=True)
    >>> grid.images.shape
    (2, 4, 4)
    >>> ImageGrid("Filters", np.zeros((4, 4)))
    Traceback (most recent call last):
        ...
    ValueError: ImageGrid 'Filters': images has shape (4, 4), not (n, height, width[, 3])
    """

    title: str
    images: ArrayLike
    n_columns: int | None = None
    symmetric: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        owner = f"ImageGrid {self.title!r}"
        given = np.asarray(self.images)
        if given.ndim not in (3, 4) or (given.ndim == 4 and given.shape[3] != 3):
            raise ValueError(
                f"{owner}: images has shape {given.shape}, not (n, height, width[, 3])"
            )
        if self.symmetric and given.ndim == 4:
            raise ValueError(f"{owner}: colour images cannot be symmetric")
        if self.n_columns is not None and self.n_columns < 1:
            raise ValueError(f"{owner}: n_columns is {self.n_columns}, not a positive integer")
        images = given.astype(np.float64)
        if given.dtype == np.uint8 and not self.symmetric:
            images /= 255
        images.flags.writeable = False
        object.__setattr__(self, "images", images)


def data_uri(grid: ImageGrid) -> tuple[str, int, int, float]:
    """Draw a grid that holds an image as one PNG.

    Returns
    -------
    uri : str
        The image as a data URI.
    width, height : int
        Its size in pixels.
    scale : float
        The magnitude drawn in full colour.

    Examples
    --------
    >>> uri, width, height, scale = data_uri(ImageGrid("Zeros", np.zeros((2, 3, 3)), n_columns=2))
    >>> uri[:22], width, height
    ('data:image/png;base64,', 7, 3)
    """
    images = np.asarray(grid.images)
    finite = np.isfinite(images)
    scale = 1.0
    if grid.symmetric:
        scale = float(np.max(np.abs(images), where=finite, initial=0.0)) or 1.0
    values = np.where(finite, images, 0.0)
    if images.ndim == 4:
        levels = np.rint(255 * np.clip(values, 0, 1))
        opacity = 255 * finite.all(axis=-1, keepdims=True)
        pixels = np.concatenate([levels, opacity], axis=-1).astype(np.uint8)
        png = encode_png(tile(pixels, grid.n_columns))
    else:
        # Levels count from 1, since 0 is transparent. There are 255 of them: an odd number, so
        # that one stands for zero itself.
        part = (values / scale + 1) / 2 if grid.symmetric else np.clip(values, 0, 1)
        pixels = np.where(finite, 1 + np.rint(254 * part), 0).astype(np.uint8)[..., None]
        colours = _DIVERGING_LEVELS if grid.symmetric else _GREY_LEVELS
        png = encode_png(tile(pixels, grid.n_columns), colours)
    width, height = struct.unpack(">II", png[16:24])
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}", width, height, scale


def tile(pixels: NDArray[np.uint8], n_columns: int | None = None) -> NDArray[np.uint8]:
    """Lay images out in rows, one pixel of zeros (that is, transparent) apart.

    Parameters
    ----------
    pixels : ndarray of shape (n, height, width, channels)
        The images.
    n_columns : int, optional
        Images in a row. By default the grid is about half as wide again as it is high, with few
        places left empty.

    Returns
    -------
    ndarray of shape (grid height, grid width, channels)

    Examples
    --------
    >>> tile(np.full((6, 2, 2, 1), 255, dtype=np.uint8), n_columns=3).shape
    (5, 8, 1)
    """
    n, height, width, channels = pixels.shape
    columns = min(n_columns or _columns(n, (height + 1) / (width + 1)), n)
    rows = math.ceil(n / columns)
    cells = np.zeros((rows * columns, height + 1, width + 1, channels), dtype=np.uint8)
    cells[:n, :height, :width] = pixels
    cells = cells.reshape(rows, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    return cells.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]


def _columns(n: int, aspect: float) -> int:
    wanted = math.sqrt(1.5 * n * aspect)
    choices = range(max(1, math.floor(0.75 * wanted)), math.ceil(1.4 * wanted) + 1)
    return min(choices, key=lambda columns: (-n % columns, abs(columns - wanted)))


def encode_png(pixels: NDArray[np.uint8], palette: NDArray[np.uint8] | None = None) -> bytes:
    """Encode an image as PNG.

    Parameters
    ----------
    pixels : ndarray of shape (height, width, 4) or (height, width, 1)
        Red, green, blue and opacity, or places in the palette.
    palette : ndarray of shape (n_colours, 3), optional
        Red, green and blue of each place. The first is transparent.

    Examples
    --------
    >>> encode_png(np.zeros((1, 1, 4), dtype=np.uint8))[1:4]
    b'PNG'
    """
    height, width, channels = pixels.shape
    # Each row starts with its filter type; type 0, the bytes as they are, suits pixel art.
    rows = np.zeros((height, 1 + width * channels), dtype=np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    colour_type = 6 if palette is None else 3
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0))]
    if palette is not None:
        parts += [chunk(b"PLTE", palette.tobytes()), chunk(b"tRNS", b"\0")]
    parts += [chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)

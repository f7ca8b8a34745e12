"""Pixels arrive as they were sent."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
import pytest

from freenergy.report import ImageGrid
from freenergy.report.images import data_uri, tile


def decode(uri: str) -> np.ndarray:
    """Decode the two kinds of PNG that are written, as red, green, blue and opacity."""
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, place = {}, 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack(">I", data[place + 8 + length : place + 12 + length])
        assert checksum == zlib.crc32(kind + body)
        chunks[kind], place = body, place + 12 + length
    assert list(chunks)[-1] == b"IEND"
    width, height, depth, colour_type = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert depth == 8
    channels = {3: 1, 6: 4}[colour_type]
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), dtype=np.uint8)
    rows = rows.reshape(height, 1 + width * channels)
    assert (rows[:, 0] == 0).all()
    pixels = rows[:, 1:].reshape(height, width, channels)
    if colour_type == 6:
        return pixels
    palette = np.frombuffer(chunks[b"PLTE"], dtype=np.uint8).reshape(-1, 3)
    opacity = np.where(pixels == 0, 0, 255).astype(np.uint8)
    assert chunks[b"tRNS"] == b"\0"
    return np.concatenate([palette[pixels[..., 0]], opacity], axis=-1)


def picture(images, **options):
    return decode(data_uri(ImageGrid("grid", images, **options))[0])


def test_grey_runs_from_black_to_white():
    image = picture([[[0.0, 0.5, 1.0, 7.0, -7.0]]])
    assert image[0, :, 0].tolist() == pytest.approx([0, 127.5, 255, 255, 0], abs=1)
    assert (image[..., 0] == image[..., 2]).all()
    assert (image[..., 3] == 255).all()


def test_bytes_and_truth_values_are_grey_levels():
    assert picture(np.array([[[0, 255]]], dtype=np.uint8))[0, :, 0].tolist() == [0, 255]
    assert picture(np.array([[[False, True]]]))[0, :, 0].tolist() == [0, 255]


def test_signed_images_are_white_at_zero_blue_below_and_red_above():
    image = picture([[[-2.0, 0.0, 2.0]]], symmetric=True).astype(int)
    negative, zero, positive = image[0]
    assert zero.tolist() == [247, 247, 247, 255]
    assert negative[2] > negative[0] + 50
    assert positive[0] > positive[2] + 50


def test_the_scale_of_signed_images_is_their_largest_magnitude():
    *_, scale = data_uri(ImageGrid("grid", [[[1.0, -3.0, np.nan]]], symmetric=True))
    assert scale == 3
    *_, scale = data_uri(ImageGrid("grid", np.zeros((1, 2, 2)), symmetric=True))
    assert scale == 1


def test_colours_are_kept():
    image = picture([[[[1.0, 0.0, 0.5]]]])
    assert image[0, 0].tolist() == [255, 0, 128, 255]


def test_missing_pixels_and_the_gaps_between_images_are_transparent():
    image = picture([[[1.0, np.nan]], [[1.0, 1.0]], [[1.0, 1.0]]], n_columns=2)
    assert image[..., 3].tolist() == [
        [255, 0, 0, 255, 255],
        [0, 0, 0, 0, 0],
        [255, 255, 0, 0, 0],
    ]


@pytest.mark.parametrize("n", [1, 2, 7, 10, 60, 100, 500])
def test_a_grid_is_wider_than_high_and_holds_every_image(n):
    image = tile(np.ones((n, 8, 8, 1), dtype=np.uint8))
    height, width = image.shape[:2]
    assert image.sum() == 64 * n
    if n > 2:
        assert 0.8 <= width / height <= 4

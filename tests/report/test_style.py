"""The palette can be read: against the page, and with any colour vision."""

from __future__ import annotations

import re
from importlib import resources
from itertools import combinations

import numpy as np
import pytest

from freenergy.report.figures import N_COLOURS

# Machado, Oliveira & Fernandes (2009), full dichromacy, on linear RGB.
VISIONS = {
    "trichromat": np.eye(3),
    "protanope": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranope": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanope": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}


def themes() -> dict[str, dict[str, np.ndarray]]:
    """Read the colours of the light and the dark theme, as linear RGB."""
    css = resources.files("freenergy.report").joinpath("page.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root[^{]*\{([^}]*)\}", css)
    )
    assert light.keys() == dark.keys()
    return {
        name: {key: linear(value) for key, value in colours.items()}
        for name, colours in (("light", light), ("dark", dark))
    }


def linear(colour: str) -> np.ndarray:
    channels = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    weights = np.array([0.2126, 0.7152, 0.0722])
    low, high = sorted([one @ weights, other @ weights])
    return (high + 0.05) / (low + 0.05)


def oklab(colour: np.ndarray) -> np.ndarray:
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    opponents = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return opponents @ np.cbrt(cones @ np.clip(colour, 0, 1))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_and_text_stand_out(theme):
    colours = themes()[theme]
    for index in range(N_COLOURS):
        assert contrast(colours[f"series-{index}"], colours["card"]) >= 3
    for background in ("page", "card"):
        for text in ("ink", "muted", "link"):
            assert contrast(colours[text], colours[background]) >= 4.5
    for status in ("supported", "contradicted", "undecided", "info"):
        assert contrast(colours[status], colours[f"{status}-tint"]) >= 4.5
        assert contrast(colours["ink"], colours[f"{status}-tint"]) >= 7


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_are_told_apart_with_any_colour_vision(theme, vision):
    colours = themes()[theme]
    assert f"series-{N_COLOURS}" not in colours
    seen = [oklab(VISIONS[vision] @ colours[f"series-{index}"]) for index in range(N_COLOURS)]
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) >= 0.07

"""What the study "conjecture" claims of a station, and the numbers that decide each claim."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from freenergy.studies.verdict import Claim

__all__ = [
    "ACCURACY",
    "ALIGNS",
    "BEYOND_MEANS",
    "CORE_CLAIMS",
    "DIFFERENCE",
    "FALLS",
    "FOR_A_WHILE",
    "RANDOM",
    "SHUFFLED",
    "WALK",
    "History",
    "StationResult",
    "average",
    "concordance",
    "curve",
    "deepest",
    "drop",
    "station_claims",
]

History = list[dict[str, Any]]

FALLS = "lowers the free energy F"
DIFFERENCE = "lowers the free-energy difference ΔF"
FOR_A_WHILE = "lowers ΔF at least for a while"
ALIGNS = "steps along the mean-field step"
BEYOND_MEANS = "does so beyond the common means"
ACCURACY = "gains accuracy as ΔF falls"

CORE_CLAIMS = (DIFFERENCE, ALIGNS)
"""The claims that the conjecture stands or falls with."""

SHUFFLED, WALK, RANDOM = "shuffled labels", "a random walk", "a random direction"
"""The controls: trainings, walks, and directions where there is nothing to find."""


@dataclass(frozen=True)
class StationResult:
    """What one station and its controls gave, over the seeds.

    Attributes
    ----------
    name : str
    backpropagation : bool
    trained : list of list of dict
        The readings of each seed, the first before training.
    walk : list of list of dict
        Readings of the random walk that goes as far from reading to reading.
    shuffled : list of list of dict
        Readings of the training on shuffled labels; empty where labels are not looked at.
    """

    name: str
    backpropagation: bool
    trained: list[History]
    walk: list[History]
    shuffled: list[History] = field(default_factory=list)

    def __repr__(self) -> str:
        return (
            f"StationResult({self.name!r}, {len(self.trained)} seeds, "
            f"{len(self.trained[0])} readings)"
        )


def curve(histories: list[History], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs, and the readings of a quantity: shape (n_seeds, n_readings); empty without it."""
    if not histories or key not in histories[0][0]:
        return np.empty(0), np.empty((len(histories), 0))
    epochs = [record["epoch"] for record in histories[0]]
    values = [[_number(record[key]) for record in history] for history in histories]
    return np.array(epochs), np.array(values)


def drop(histories: list[History], key: str) -> np.ndarray:
    """The first reading of a quantity less the last, one value for each seed."""
    values = curve(histories, key)[1]
    return values[:, 0] - values[:, -1]


def deepest(histories: list[History], key: str) -> np.ndarray:
    """How far below its first reading a quantity has ever been, one value for each seed."""
    values = curve(histories, key)[1]
    return values[:, 0] - values.min(1)


def average(histories: list[History], key: str) -> np.ndarray:
    """Mean over the readings since training began, one value for each seed."""
    return curve(histories, key)[1][:, 1:].mean(1)


def concordance(histories: list[History], rising: str, falling: str) -> np.ndarray:
    """How far one quantity rises as another falls: Spearman's correlation, its sign reversed.

    Zero where one of them never changes. One value for each seed.
    """
    pairs = zip(curve(histories, rising)[1], curve(histories, falling)[1], strict=True)
    return np.array([_reversed_rank_correlation(x, y) for x, y in pairs])


def _reversed_rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return math.nan
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return -float(spearmanr(x, y).statistic)


def station_claims(station: StationResult, source: str) -> list[Claim]:
    """What is claimed of one station, each claim with its controls.

    Parameters
    ----------
    station : StationResult
    source : {"exact", "tap"}
        Whose free energies and directions decide. Where the mean field cannot be trusted, its
        claims carry a doubt.

    Returns
    -------
    list of Claim
    """
    difference, cosine = f"{source}_difference", f"{source}_cosine"
    doubt = _doubt(station) if source == "tap" else ""
    return [
        _fall(station, FALLS, drop, f"{source}_free_energy", doubt),
        _fall(station, DIFFERENCE, drop, difference, doubt),
        _fall(station, FOR_A_WHILE, deepest, difference, doubt),
        _direction(station, ALIGNS, cosine, doubt),
        _direction(station, BEYOND_MEANS, f"{cosine}_centred", doubt),
        _gain(station, ACCURACY, difference, doubt),
    ]


def _fall(
    station: StationResult,
    statement: str,
    measure: Callable[[list[History], str], np.ndarray],
    key: str,
    doubt: str,
) -> Claim:
    """That a quantity falls over the training, and not so in the controls."""
    controls = {WALK: measure(station.walk, key)}
    if station.shuffled:
        controls[SHUFFLED] = measure(station.shuffled, key)
    return Claim(station.name, statement, measure(station.trained, key), controls, "nats", doubt)


def _direction(station: StationResult, statement: str, key: str, doubt: str) -> Claim:
    """That steps point one way, and not so random ones or those for shuffled labels."""
    controls = {RANDOM: average(station.trained, f"{key}_random")}
    if station.shuffled:
        controls[SHUFFLED] = average(station.trained, f"{key}_shuffled")
    return Claim(station.name, statement, average(station.trained, key), controls, "", doubt)


def _gain(station: StationResult, statement: str, falling: str, doubt: str) -> Claim:
    """That accuracy rises as a quantity falls, and not so in the control."""
    control, histories = (SHUFFLED, station.shuffled) if station.shuffled else (WALK, station.walk)
    controls = {control: concordance(histories, "accuracy", falling)}
    effect = concordance(station.trained, "accuracy", falling)
    return Claim(station.name, statement, effect, controls, "", doubt)


def _doubt(station: StationResult) -> str:
    """Why the mean field of a station cannot be trusted, where it cannot."""
    runs = [*station.trained, *station.walk, *station.shuffled]
    share = np.mean([record["tap_trusted"] for history in runs for record in history])
    if share == 1:
        return ""
    return (
        f"The mean field cannot be trusted at {1 - share:.0%} of the readings (no state converged, "
        "a negative entropy, or beyond Plefka's condition)."
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)

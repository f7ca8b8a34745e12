"""Rough and smoothed: the energy minima and mean-field states of the RBMs that a study trained.

Peterson and Anderson (1987) found the landscape of the mean-field free energy smoother than that of
the energy; here both are counted for one model, from the same starts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from freenergy.files import write_atomically
from freenergy.models import RBM
from freenergy.report import Curve, LineChart, Section, Table
from freenergy.studies.parallel import one_thread
from freenergy.thermodynamics import landscape
from freenergy.training import RunError

__all__ = ["landscape_section", "read_landscape", "run_landscape"]

_TEMPERATURES = (0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
_ORDER = 1  # The Onsager term often keeps cold states from converging, which then count for less.


def run_landscape(
    model: RBM,
    rows: torch.Tensor,
    path: str | os.PathLike[str],
    *,
    temperatures: Sequence[float] = _TEMPERATURES,
    n_starts: int = 200,
) -> dict[str, Any]:
    """Count minima and states from rows of the data, unless a file holds that already.

    Parameters
    ----------
    model : RBM
        Trained at the inverse temperature 1.
    rows : Tensor of shape (n, n_visible)
        Starts are drawn from them.
    path : path-like
        Where to store the counts.
    temperatures : sequence of float
    n_starts : int, default=200

    Returns
    -------
    dict
        As :meth:`freenergy.thermodynamics.Landscape.to_dict` gives it.

    Raises
    ------
    RunError
        When the file is damaged.
    """
    path = Path(path)
    if not path.exists():
        with one_thread():
            found = landscape(model, temperatures, order=_ORDER, n_starts=n_starts, rows=rows)
        write_atomically(path, json.dumps(found.to_dict(), allow_nan=False) + "\n")
    return read_landscape(path)


def read_landscape(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The counts that :func:`run_landscape` stored.

    Raises
    ------
    RunError
        When the file is damaged.
    """
    try:
        found = dict(json.loads(Path(path).read_text(encoding="utf-8")))
        landscape_section(found, "")
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path} is damaged ({error}); delete it and run the study again") from error
    return found


def landscape_section(found: dict[str, Any], method: str) -> Section:
    """The counts over temperature, and what lies between the states."""
    temperatures, points = found["temperatures"], found["fixed_points"]
    minima = found["minima"]["count"]
    share = Curve(
        "states over minima",
        temperatures,
        _numbers(found["smoothing"]),
        lower=_numbers(found["smoothing_lower"]),
        upper=_numbers(found["smoothing_upper"]),
    )
    rows = [
        [
            point["temperature"],
            point["count"]["found"],
            f"{100 * point['converged']:.0f} %",
            point["mean_rounded_energy"],
            _median(point["barriers"]),
        ]
        for point in points
    ]
    return Section(
        f"The landscape, rough and smoothed: {method}",
        [
            LineChart(
                "How much smoother the free energy is",
                "temperature T",
                "distinct states / distinct minima",
                [share],
                log_x=True,
            ),
            Table(
                ["T", "states", "converged", "energy, rounded", "median barrier of F"],
                rows,
                caption=(
                    f"From {found['n_starts']} rows of the data; "
                    f"{minima['found']} distinct minima of the energy, "
                    f"{found['minima']['mean_energy']:.1f} on average over the starts"
                ),
                note="; ".join(found["reasons"]),
            ),
        ],
        intro=(
            "Minima of the energy E(s), where no flip of a unit lowers it, beside fixed points of "
            "the naive mean-field free energy F(m, T), from the same starts; T = 1 is the "
            "temperature of training. The energy of the rounded states says whether the smoother "
            "landscape leads lower than the descents of the energy do. The counts grow with the "
            "number of starts."
        ),
    )


def _numbers(values: list[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _median(values: list[float | None]) -> float | None:
    finite = [value for value in values if value is not None]
    return float(torch.tensor(finite).median()) if finite else None

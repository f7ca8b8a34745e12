"""Studies with planted results, and a small data set for real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from freenergy.data import Dataset
from freenergy.studies.learning import LearningSettings, LearningStudy
from freenergy.studies.results import MethodResult

N_EPOCHS = 4


def make_history(final: float, seed: int, *, exact: bool = True, **last: float) -> list[dict]:
    """Records whose judged quantity rises to ``final``, read after every second epoch."""
    records: list[dict[str, Any]] = []
    for epoch in range(1, N_EPOCHS + 1):
        record: dict[str, Any] = {"epoch": epoch, "learning_rate": 0.1, "seconds": 0.25}
        if epoch % 2 == 0:
            value = final - (N_EPOCHS - epoch)
            record |= {
                "pseudo_likelihood": value / 2,
                "pseudo_likelihood_held_out": value / 2 if exact else value,
                "free_energy_gap": 0.1 * seed,
                "weight_norm": float(epoch),
            }
            for order in (1, 2, 3):
                record |= {f"tap{order}_{n}": -1.0 * order for n in ("free_energy", "energy")}
                record |= {f"tap{order}_entropy": 2.0, f"tap{order}_converged": 1.0}
            if exact:
                record |= {"log_likelihood": value + 1, "log_likelihood_held_out": value}
                record |= {f"exact_{n}": -2.0 for n in ("free_energy", "energy", "entropy")}
        records.append(record)
    records[-1] |= last
    return records


def make_study(
    results: dict[str, Sequence[float]],
    *,
    exact: bool = True,
    image_shape: tuple[int, ...] | None = (2, 3),
    accuracy: float | None = 0.875,
) -> LearningStudy:
    """A study in which each method ends at these values, one for each seed."""
    random = np.random.default_rng(0)
    width = int(np.prod(image_shape or (6,)))
    methods = [
        MethodResult(
            name,
            [make_history(value, seed, exact=exact) for seed, value in enumerate(values)],
            accuracy,
            random.normal(size=(5, width)),
            random.uniform(size=(48, width)),
        )
        for name, values in results.items()
    ]
    n_seeds = len(next(iter(results.values())))
    settings = LearningSettings(
        n_hidden=5, n_epochs=N_EPOCHS, seeds=tuple(range(n_seeds)), methods=tuple(results)
    )
    data = {
        "name": "patterns",
        "binarize": 0.5,
        "fingerprint": "0123456789abcdef",
        "n_train": 80,
        "n_held_out": 20,
        "n_visible": width,
    }
    command = "freenergy study --data patterns.npz"
    pixels = None if accuracy is None else 0.75
    return LearningStudy(
        data, image_shape, settings, methods, {"torch": "2.0"}, command, pixel_accuracy=pixels
    )


def make_dataset(n: int = 80, *, labels: bool = True, test: bool = True) -> Dataset:
    """Noisy copies of three patterns of 2 × 3 pixels."""
    rng = np.random.default_rng(0)
    patterns = rng.random((3, 6)) < 0.5
    y = rng.integers(0, 3, n + 40)
    x = (patterns[y] ^ (rng.random((n + 40, 6)) < 0.05)).astype(np.float32)
    return Dataset(
        "patterns",
        x[:n],
        y[:n] if labels else None,
        x[n:] if test else None,
        y[n:] if labels and test else None,
        (2, 3),
    )


@pytest.fixture(scope="session")
def planted() -> Callable[..., LearningStudy]:
    return make_study


@pytest.fixture(scope="session")
def history() -> Callable[..., list[dict]]:
    return make_history


@pytest.fixture(scope="session")
def dataset() -> Callable[..., Dataset]:
    return make_dataset

"""What studies and the command line share: the result of one method, and pieces to make it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split

from freenergy.data import Dataset
from freenergy.estimators.validation import check_finite, check_range
from freenergy.inference import gibbs
from freenergy.models import RBM
from freenergy.random import RandomStream
from freenergy.studies.assessment import Assessment

__all__ = ["MethodResult", "describe", "filters", "samples", "split_held_out"]


@dataclass(frozen=True)
class MethodResult:
    """What one method gave, over its seeds.

    Attributes
    ----------
    name : str
    histories : list of list of dict
        The training records of each seed.
    accuracy : float or None
        Held-out accuracy of logistic regression on the hidden activations of the first seed.
    filters : ndarray of shape (n, n_visible)
        Weights of some hidden units of the first seed.
    samples : ndarray of shape (n, n_visible)
        States of chains of the first seed's model, long after a random start.
    assessment : Assessment or None
        How good the first seed's model is, where that was measured.
    """

    name: str
    histories: list[list[dict[str, Any]]]
    accuracy: float | None
    filters: np.ndarray
    samples: np.ndarray
    assessment: Assessment | None = None

    def final(self, key: str) -> np.ndarray:
        """The last reading of a quantity, one value for each seed."""
        return np.array([history[-1].get(key, math.nan) for history in self.histories])

    def curve(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Epochs, and the readings of a quantity: shape (n_seeds, n_readings)."""
        first = self.histories[0]
        epochs = [record["epoch"] for record in first if key in record]
        values = [[record[key] for record in h if key in record] for h in self.histories]
        return np.array(epochs), np.array(values)

    @property
    def seconds(self) -> float:
        """Time of training, without readings, mean over seeds."""
        return float(np.mean([sum(r["seconds"] for r in h) for h in self.histories]))


def split_held_out(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from, and held-out rows: the test set, or a fifth of the rows without one.

    Raises
    ------
    ValueError
        When there are fewer than ten rows, or values that 0/1 units cannot take.
    """
    if len(dataset.x_train) < 10:
        raise ValueError(
            f"{dataset.name} has {len(dataset.x_train)} rows; at least 10 are needed to hold some "
            "out"
        )
    for part in (dataset.x_train, dataset.x_test):
        if part is not None:
            check_finite(part)
            check_range(part, 0.0, 1.0)
    if dataset.x_test is not None:
        return dataset.x_train, dataset.x_test
    train, held_out = train_test_split(dataset.x_train, test_size=0.2, random_state=0)
    return train, held_out


def describe(record: dict[str, Any]) -> str:
    """The most telling number of a training record, in words; nothing where none was read."""
    for key, words in (
        ("log_likelihood_held_out", "held-out log-likelihood {:.2f}"),
        ("log_likelihood", "log-likelihood {:.2f}"),
        ("pseudo_likelihood_held_out", "held-out pseudo-likelihood {:.2f}"),
        ("pseudo_likelihood", "pseudo-likelihood {:.2f}"),
    ):
        if key in record:
            return words.format(record[key])
    return ""


def filters(model: RBM, n: int = 48) -> np.ndarray:
    """Weights of the ``n`` hidden units with the largest norm, one row each."""
    weight = model.weight.detach().T
    order = torch.linalg.vector_norm(weight, dim=1).argsort(descending=True)[:n]
    return weight[order].cpu().numpy()


def samples(model: RBM, beta: float = 1.0, n: int = 48, n_steps: int = 1000) -> np.ndarray:
    """Probabilities of the upper value of each visible unit in ``n`` chains, long after a start."""
    state = gibbs(model, n, n_steps, beta=beta, random=RandomStream(0))
    low, high = min(model.visible.support), max(model.visible.support)
    with torch.no_grad():
        mean = model.visible_mean(state.hidden, beta)
    return ((mean - low) / (high - low)).cpu().numpy()

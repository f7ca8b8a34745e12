"""Classes, and the weights of classes, as a file can hold them."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from freenergy.estimators.base import TorchEstimator, plain

__all__ = ["StoredClasses", "label_column"]

_LONGEST_COLUMN = 2**20


def label_column(labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Distinct labels as a column of about a million rows would have them, or of fewer.

    Each stands there twice where that is so: whoever tells the kind of targets by such a column
    doubts classes that hardly any two rows share.

    Parameters
    ----------
    labels : ndarray of shape (n_classes,)
    counts : ndarray of shape (n_classes,)
        Rows that have them.

    Examples
    --------
    >>> label_column(np.array(["ant", "bee"]), np.array([1, 2])).tolist()
    ['ant', 'bee', 'bee']
    >>> len(label_column(np.arange(2), np.array([10**12, 10**12])))
    1048576
    """
    most = max(2, _LONGEST_COLUMN // max(1, len(labels)))
    return np.repeat(labels, np.minimum(counts, most))


class StoredClasses(TorchEstimator):
    """Base of estimators with ``classes_`` and ``class_weight``, which JSON has no form for."""

    classes_: np.ndarray

    def _stored_parameters(self) -> dict[str, Any]:
        parameters = super()._stored_parameters()
        weights = parameters["class_weight"]
        if isinstance(weights, dict):
            # As pairs: the keys of a JSON object are strings, those of classes need not be.
            parameters["class_weight"] = [[plain(k), plain(v)] for k, v in weights.items()]
        return parameters

    @classmethod
    def _from_parameters(cls, parameters: dict[str, Any]) -> Self:
        weights = parameters["class_weight"]
        if isinstance(weights, list):
            weights = dict(weights)
        return super()._from_parameters({**parameters, "class_weight": weights})

    def _stored_classes(self) -> dict[str, Any]:
        """The classes for JSON."""
        classes = [plain(label) for label in self.classes_.tolist()]
        return {"classes": classes, "classes_dtype": self.classes_.dtype.str}

    def _restore_classes(self, spec: dict[str, Any]) -> None:
        self.classes_ = np.asarray(spec["classes"], dtype=np.dtype(spec["classes_dtype"]))

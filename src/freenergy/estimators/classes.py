"""Classes, and the weights of classes, as a file can hold them."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from freenergy.estimators.base import TorchEstimator, plain

__all__ = ["StoredClasses"]


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

"""An estimator in the middle of its fit, to be measured there."""

from __future__ import annotations

import copy
from typing import TypeVar

from freenergy.estimators.base import TorchEstimator
from freenergy.training.trainer import Trainer

__all__ = ["snapshot"]

Estimator = TypeVar("Estimator", bound=TorchEstimator)


def snapshot(estimator: Estimator, trainer: Trainer) -> Estimator:
    """The same estimator with the model of a training that goes on, which it has only at its end.

    It is no copy of the model: what it predicts changes with the training.

    Parameters
    ----------
    estimator : TorchEstimator
        In its ``fit``, such as from ``on_train_begin`` of its callback on.
    trainer : Trainer
        What the callback is given.

    Returns
    -------
    estimator
        Fitted, as far as the training is.

    Examples
    --------
    >>> import numpy as np
    >>> import freenergy as fe
    >>> class Accuracies(list):
    ...     def __call__(self, trainer):
    ...         self.append(snapshot(net, trainer).score(X, y))
    >>> X, y = np.eye(2).repeat(10, axis=0), np.arange(2).repeat(10)
    >>> found = Accuracies()
    >>> net = fe.RBMClassifier(4, n_iter=2, callback=found, random_state=0)
    >>> net.fit(X, y).score(X, y) == found[-1]
    True
    """
    made = copy.copy(estimator)
    made.model_ = trainer.model
    made._trainer = trainer
    return made

"""Gradient estimators by name."""

from __future__ import annotations

from freenergy.models import RBM
from freenergy.random import RandomStream
from freenergy.training.gradients import (
    ContrastiveDivergence,
    ExtendedMeanField,
    GradientEstimator,
    PersistentContrastiveDivergence,
)
from freenergy.training.options import TrainingOptions
from freenergy.training.trajectory import TrajectoryTempering

__all__ = ["gradient_estimator"]

_ESTIMATORS: dict[str, type[GradientEstimator]] = {
    "cd": ContrastiveDivergence,
    "pcd": PersistentContrastiveDivergence,
    "emf": ExtendedMeanField,
    "ptt": TrajectoryTempering,
}


def gradient_estimator(
    model: RBM, options: TrainingOptions, random: RandomStream
) -> GradientEstimator:
    """The estimator that ``options.method`` names.

    Parameters
    ----------
    model : RBM
    options : TrainingOptions
    random : RandomStream
        Source of the chains' draws, on the model's device.

    Returns
    -------
    GradientEstimator

    Examples
    --------
    >>> import torch
    >>> from freenergy.models import RBM
    >>> from freenergy.random import RandomStream
    >>> from freenergy.training import TrainingOptions
    >>> rbm = RBM(4, 3)
    >>> estimator = gradient_estimator(rbm, TrainingOptions(method="cd"), RandomStream(0))
    >>> estimator.compute(torch.ones(10, 4))
    >>> rbm.weight.grad.shape
    torch.Size([4, 3])
    """
    return _ESTIMATORS[options.method](model, options, random)

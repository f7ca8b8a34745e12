"""Energy-based networks with the instruments of statistical mechanics, on PyTorch.

``import freenergy as fe``: the estimators stand here; the floors below them are
:mod:`~freenergy.models`, :mod:`~freenergy.inference`, :mod:`~freenergy.thermodynamics`,
:mod:`~freenergy.training`, :mod:`~freenergy.normalization`, :mod:`~freenergy.data` and
:mod:`~freenergy.report`.
"""

from freenergy import data, inference, models, normalization, thermodynamics, training
from freenergy._version import __version__
from freenergy.estimators import (
    BernoulliRBM,
    MLPClassifier,
    MLPRegressor,
    RBMClassifier,
    UnrolledRBMClassifier,
    VariationalAutoencoder,
)

__all__ = [
    "BernoulliRBM",
    "MLPClassifier",
    "MLPRegressor",
    "RBMClassifier",
    "UnrolledRBMClassifier",
    "VariationalAutoencoder",
    "__version__",
    "data",
    "inference",
    "models",
    "normalization",
    "thermodynamics",
    "training",
]

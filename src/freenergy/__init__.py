"""Energy-based networks with the instruments of statistical mechanics, on PyTorch.

``import freenergy as fe``: the estimators stand here; the floors below them are
:mod:`~freenergy.models`, :mod:`~freenergy.inference`, :mod:`~freenergy.thermodynamics`,
:mod:`~freenergy.training`, :mod:`~freenergy.normalization`, :mod:`~freenergy.data`,
:mod:`~freenergy.distributed` and :mod:`~freenergy.report`. Each is imported when it is first used,
so that the theory of :mod:`~freenergy.normalization` loads without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from freenergy._version import __version__

if TYPE_CHECKING:
    from freenergy import (
        data,
        distributed,
        inference,
        models,
        normalization,
        thermodynamics,
        training,
    )
    from freenergy.estimators import (
        BernoulliRBM,
        MLPClassifier,
        MLPRegressor,
        RBMClassifier,
        UnrolledRBMClassifier,
        VariationalAutoencoder,
        load,
    )
    from freenergy.thermodynamics import watch

__all__ = [
    "BernoulliRBM",
    "MLPClassifier",
    "MLPRegressor",
    "RBMClassifier",
    "UnrolledRBMClassifier",
    "VariationalAutoencoder",
    "__version__",
    "data",
    "distributed",
    "inference",
    "load",
    "models",
    "normalization",
    "thermodynamics",
    "training",
    "watch",
]

_ROOMS = (
    "data",
    "distributed",
    "inference",
    "models",
    "normalization",
    "thermodynamics",
    "training",
)
_HOME = dict.fromkeys(__all__, "freenergy.estimators") | {
    "watch": "freenergy.thermodynamics",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOME[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)

"""Any estimator from its file, by the name that stands in it."""

from __future__ import annotations

import os
from pathlib import Path

from freenergy.estimators.base import TorchEstimator
from freenergy.estimators.bernoulli_rbm import BernoulliRBM
from freenergy.estimators.mlp_classifier import MLPClassifier
from freenergy.estimators.mlp_regressor import MLPRegressor
from freenergy.estimators.rbm_classifier import RBMClassifier
from freenergy.estimators.unrolled_rbm_classifier import UnrolledRBMClassifier
from freenergy.estimators.variational_autoencoder import VariationalAutoencoder
from freenergy.training.checkpoint import CheckpointError, load_checkpoint

__all__ = ["load", "saved_class"]

# A name in a file picks one of these, and nothing else can be picked by it.
_KNOWN: dict[str, type[TorchEstimator]] = {
    kind.__name__: kind
    for kind in (
        BernoulliRBM,
        MLPClassifier,
        MLPRegressor,
        RBMClassifier,
        UnrolledRBMClassifier,
        VariationalAutoencoder,
    )
}


def load(path: str | os.PathLike[str], *, device: str | None = None) -> TorchEstimator:
    """Read the estimator that a file holds, whichever it is; nothing in the file is executed.

    Parameters
    ----------
    path : path-like
        A file that ``save`` of an estimator wrote, or the folder of a run of ``freenergy train``
        that has one.
    device : str, default=None
        Where to put the model; None is where it was trained.

    Returns
    -------
    estimator
        Fitted, of the class that was saved.

    Raises
    ------
    CheckpointError
        When the file is missing or damaged, or holds no estimator; the message says what opens it.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import freenergy as fe
    >>> X, y = np.eye(4).repeat(5, axis=0), np.arange(4).repeat(5)
    >>> net = fe.MLPClassifier((8,), solver="lbfgs", random_state=0).fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     net.save(f"{folder}/net.safetensors")
    ...     found = fe.load(f"{folder}/net.safetensors")
    >>> type(found).__name__, bool((found.predict(X) == net.predict(X)).all())
    ('MLPClassifier', True)
    """
    file = _file(path)
    name = saved_class(file)
    if name is None:
        raise CheckpointError(
            f"{file} holds no estimator; a model of an RBM's run is opened by "
            f"freenergy.training.load_model({os.fspath(path)!r})"
        )
    if name not in _KNOWN:
        raise CheckpointError(
            f"{file} holds a {name}, which this version of freenergy does not know; it knows "
            f"{', '.join(_KNOWN)}"
        )
    return _KNOWN[name].load(file, device=device)


def saved_class(path: str | os.PathLike[str]) -> str | None:
    """Name of the class of the estimator that a file holds; None where it holds none.

    Raises
    ------
    CheckpointError
        When the file is missing or damaged.
    """
    _, values = load_checkpoint(_file(path))
    saved = values.get("estimator")
    name = saved.get("class") if isinstance(saved, dict) else None
    return name if isinstance(name, str) else None


def _file(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path / "model.safetensors" if path.is_dir() else path

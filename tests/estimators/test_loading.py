"""A file says which estimator it holds, and nothing in it can be anything else."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch

import freenergy as fe
from freenergy.estimators.loading import saved_class
from freenergy.training import (
    CheckpointError,
    RunConfig,
    RunDirectory,
    TrainingOptions,
    as_rows,
    load_checkpoint,
    save_checkpoint,
)

RNG = np.random.default_rng(0)
X = (RNG.random((60, 6)) < 0.5).astype(float)
Y = X[:, 0] + X[:, 1]

FITS = {
    "BernoulliRBM": lambda: fe.BernoulliRBM(3, n_iter=2, random_state=0).fit(X),
    "RBMClassifier": lambda: fe.RBMClassifier(3, n_iter=2, random_state=0).fit(X, Y),
    "UnrolledRBMClassifier": lambda: fe.UnrolledRBMClassifier(
        fe.BernoulliRBM(3, n_iter=1), n_iter=2, random_state=0
    ).fit(X, Y),
    "MLPClassifier": lambda: fe.MLPClassifier((4,), solver="lbfgs", random_state=0).fit(X, Y),
    "MLPRegressor": lambda: fe.MLPRegressor(
        hidden_layer_sizes=(4,), solver="lbfgs", random_state=0
    ).fit(X, Y),
    "VariationalAutoencoder": lambda: fe.VariationalAutoencoder(
        2, hidden_layer_sizes=(4,), n_iter=2, random_state=0
    ).fit(X),
}


def seen(estimator) -> np.ndarray:
    """What an estimator makes of the rows."""
    method = "predict" if hasattr(estimator, "predict") else "transform"
    return getattr(estimator, method)(X)


@pytest.mark.filterwarnings("ignore:lbfgs failed")
@pytest.mark.parametrize("name", FITS)
def test_every_estimator_comes_back_as_itself(name, tmp_path):
    fitted, path = FITS[name](), tmp_path / "model.safetensors"
    fitted.save(path)
    assert saved_class(path) == name
    for place in (path, str(path), tmp_path):  # A run's folder has its model under this name.
        found = fe.load(place, device="cpu")
        assert type(found) is type(fitted)
        np.testing.assert_array_equal(seen(found), seen(fitted))


def test_all_estimators_of_the_package_can_be_loaded():
    assert set(FITS) == {n for n in fe.estimators.__all__ if n != "load"}


def test_the_run_of_an_rbm_is_opened_by_something_else(tmp_path):
    rows = as_rows(X, like=torch.empty(0))
    config = RunConfig({"name": "x"}, 6, 4, TrainingOptions(n_epochs=1), seed=0)
    run = RunDirectory.create(tmp_path, config)
    run.train(config.build(rows), rows)
    with pytest.raises(CheckpointError, match=r"holds no estimator; .*load_model\('"):
        fe.load(tmp_path)


@pytest.mark.parametrize("name", ["os.system", "TorchEstimator", "Pipeline", "", None, 3, ["a"]])
def test_a_name_that_is_none_of_the_estimators_is_refused(name, tmp_path):
    path = tmp_path / "model.safetensors"
    FITS["BernoulliRBM"]().save(path)
    tensors, values = load_checkpoint(path)
    values["estimator"]["class"] = name
    save_checkpoint(path, tensors, values)
    with pytest.raises(CheckpointError, match=r"does not know|holds no estimator"):
        fe.load(path)


class Trap:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_what_is_no_file_of_ours_is_refused_and_never_run(tmp_path):
    trap, path = tmp_path / "sprung", tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        fe.load(path)
    for content in (pickle.dumps(Trap(trap)), b"", json.dumps({"class": "x"}).encode()):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="is damaged"):
            fe.load(path)
    torch.save(Trap(trap), path)
    with pytest.raises(CheckpointError):
        fe.load(path)
    trap.unlink(missing_ok=True)  # torch.save alone may have called it; loading must not.
    with pytest.raises(CheckpointError):
        fe.load(path)
    assert not trap.exists()

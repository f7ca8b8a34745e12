"""Many fits at once: worker processes, of Dask too, find what one process finds, to the bit."""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import pickle
import signal
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cloudpickle
import joblib
import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import cross_val_score

import freenergy as fe
from freenergy.data import Dataset
from freenergy.progress import Reporter
from freenergy.studies.learning import LearningSettings, run_learning
from freenergy.studies.parallel import Job, run_jobs
from freenergy.training import load_model

EXAMPLE = Path(__file__).parents[1] / "examples" / "grid_search_dask.py"

ESTIMATORS: dict[str, BaseEstimator] = {
    "BernoulliRBM": fe.BernoulliRBM(4, n_iter=2, random_state=0),
    "RBMClassifier": fe.RBMClassifier(4, n_iter=2, random_state=0),
    "UnrolledRBMClassifier": fe.UnrolledRBMClassifier(n_iter=2, random_state=0),
    "MLPClassifier": fe.MLPClassifier((4,), dropout=0.1, solver="sgd", max_iter=2, random_state=0),
    "MLPRegressor": fe.MLPRegressor(
        hidden_layer_sizes=(4,), normalization="batch", max_iter=2, random_state=0
    ),
    "VariationalAutoencoder": fe.VariationalAutoencoder(2, n_iter=2, random_state=0),
}
PROBES = {"BernoulliRBM": "transform", "VariationalAutoencoder": "transform"}


def mean_score(model, X, y):
    return model.score_samples(X).mean() if hasattr(model, "score_samples") else model.score(X, y)


def patterns(n_rows: int, n_columns: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Rows of zeros and ones whose class shows in every column."""
    random, y = np.random.default_rng(0), np.arange(n_rows) % 2
    chance = np.where(y[:, None] == 1, 0.8, 0.2)
    return (random.random((n_rows, n_columns)) < chance).astype(np.float32), y


def parameters(model: BaseEstimator) -> list[torch.Tensor]:
    return [p.detach() for p in model.model_.parameters()]


def assert_same_bits(one: BaseEstimator, other: BaseEstimator) -> None:
    for a, b in zip(parameters(one), parameters(other), strict=True):
        assert torch.equal(a, b)


# ---- estimators that travel ----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("travel", [pickle, cloudpickle])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_travels_before_and_after_fit(name, travel):
    X, y = patterns(40)
    model = clone(ESTIMATORS[name])
    there = travel.loads(travel.dumps(model))
    assert repr(there) == repr(model)
    model.fit(X, y)
    assert_same_bits(there.fit(X, y), model)
    probe = PROBES.get(name, "predict")
    back = travel.loads(travel.dumps(there))
    np.testing.assert_array_equal(getattr(back, probe)(X), getattr(model, probe)(X))
    unfitted = clone(back)
    assert not hasattr(unfitted, "model_")
    assert unfitted.get_params() == model.get_params()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_worker_processes_find_the_scores_of_one_process():
    X, y = patterns(40)
    for name, model in ESTIMATORS.items():
        with joblib.parallel_config("loky", inner_max_num_threads=1):
            alone, shared = (
                cross_val_score(model, X, y, cv=2, n_jobs=n, scoring=mean_score) for n in (1, 2)
            )
        np.testing.assert_array_equal(alone, shared, err_msg=name)
        assert np.isfinite(alone).all()


# ---- Dask ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dask(tmp_path_factory) -> Iterator[None]:
    """Joblib's work goes to a cluster of two processes on this machine."""
    distributed = pytest.importorskip("distributed", reason="needs freenergy[dask]")
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            local_directory=tmp_path_factory.mktemp("dask"),
            silence_logs=logging.CRITICAL,
        ) as cluster,
        distributed.Client(cluster),
    ):
        yield


def load_example():
    spec = importlib.util.spec_from_file_location("grid_search_dask", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_grid_searches_of_the_example_find_the_same_on_a_cluster(dask):
    digits = fe.data.load("digits", binarize=0.5)
    rows, labels = digits.x_train[:300], digits.y_train[:300]
    example = load_example()
    for name, here in example.searches().items():
        here.fit(rows, labels)
        there = example.searches()[name]
        with joblib.parallel_config("dask"):
            there.fit(rows, labels)
        for key in (k for k in here.cv_results_ if k.endswith("_test_score")):
            np.testing.assert_array_equal(here.cv_results_[key], there.cv_results_[key])
        assert there.best_params_ == here.best_params_
        models = [
            getattr(s.best_estimator_, "steps", [("", s.best_estimator_)])[0][1]
            for s in (here, there)
        ]
        assert_same_bits(*models)


@pytest.mark.slow
def test_a_study_on_a_cluster_leaves_the_bits_of_one_process(dask, tmp_path):
    X, y = patterns(60)
    data = Dataset("patterns", X[:40], y[:40], X[40:], y[40:])
    settings = LearningSettings(
        n_hidden=3, n_epochs=2, seeds=(0, 1), methods=("PCD", "EMF (TAP2)"), assessed=("PCD",)
    )
    quiet = Reporter(io.StringIO())
    here = run_learning(data, tmp_path / "here", settings, reporter=quiet)
    with joblib.parallel_config("dask"):
        there = run_learning(data, tmp_path / "there", settings, reporter=quiet)
    for name in settings.methods:
        one, other = (study.result(name).final(study.judge) for study in (here, there))
        np.testing.assert_array_equal(one, other)
    for run in ("pcd-seed0", "pcd-seed1", "emf-tap2-seed0", "emf-tap2-seed1"):
        one, other = (load_model(tmp_path / place / run) for place in ("here", "there"))
        assert all(map(torch.equal, one.parameters(), other.parameters()))


@pytest.mark.slow
def test_a_job_whose_worker_is_killed_is_done_by_another(dask, tmp_path):
    def work(path: Path) -> str:
        if not path.exists():
            path.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "at last"

    log = io.StringIO()
    with joblib.parallel_config("dask"):
        run_jobs(
            [Job("once more", partial(work, tmp_path / "tried"))], "jobs", reporter=Reporter(log)
        )
    assert (tmp_path / "tried").exists()
    assert log.getvalue().startswith("jobs: 1/1 jobs, once more: at last")


@pytest.mark.slow
def test_large_arrays_go_to_the_cluster_once_and_not_with_every_job(dask):
    rows = np.ones((2000, 2000))  # 32 MB; Dask warns of jobs beyond 10 MB

    def work(rows: np.ndarray, k: int) -> str:
        return f"{k * rows.sum():.0f}"

    log = io.StringIO()
    with joblib.parallel_config("dask"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_jobs(
            [Job(str(k), partial(work, rows, k)) for k in range(4)], "jobs", reporter=Reporter(log)
        )
    assert "4/4 jobs" in log.getvalue()
    assert not [warning for warning in caught if "large graph" in str(warning.message)]

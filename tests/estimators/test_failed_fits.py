"""A fit or a partial_fit that fails leaves a fitted estimator as it was, to the bit."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import freenergy as fe
from freenergy.random import RandomStream
from freenergy.training.perceptron import PerceptronTrainer
from freenergy.training.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(0)
X = RNG.integers(0, 2, (40, 6)).astype(float)
Y = np.arange(40) % 2

QUICK = {"n_iter": 2, "random_state": 0, "batch_size": 10, "momentum": 0.5, "optimizer": "sgd"}
NET = {"hidden_layer_sizes": (4, 3), "max_iter": 2, "random_state": 0, "batch_size": 10}


def machine(**parameters: Any) -> fe.BernoulliRBM:
    return fe.BernoulliRBM(4, n_iter=2, random_state=0, momentum=0.5, **parameters)


def generator() -> np.random.RandomState:
    return np.random.RandomState(3)


MAKES = {
    "rbm": machine,
    "rbm of mean fields": lambda: machine(method="emf", centered=True),
    "rbm with a generator": lambda: machine().set_params(random_state=generator()),
    "rbm classifier": lambda: fe.RBMClassifier(4, objective="hybrid", **QUICK),
    "unrolled rbm": lambda: fe.UnrolledRBMClassifier(machine(), depth=2, dropout=0.1, **QUICK),
    "autoencoder": lambda: fe.VariationalAutoencoder(2, hidden_layer_sizes=(3,), **QUICK),
    "net": lambda: fe.MLPClassifier(**NET, dropout=0.1),
    "net with batch normalisation": lambda: fe.MLPClassifier(
        **NET, normalization="batch", solver="sgd", learning_rate="invscaling"
    ),
    "net with a generator": lambda: fe.MLPClassifier(**NET | {"random_state": generator()}),
    "warm net": lambda: fe.MLPClassifier(**NET, warm_start=True),
    "net for tables": lambda: fe.MLPRegressor(**NET, categorical_features=[0], missing="impute"),
}

ALL = pytest.mark.parametrize("name", MAKES)
DENSITIES = ("rbm", "rbm of mean fields", "rbm with a generator", "autoencoder")
NETS = ("net", "net with batch normalisation", "net with a generator", "warm net", "net for tables")


def fitted(name: str) -> Any:
    """An estimator that was fitted, and then given another learning rate."""
    estimator = MAKES[name]()
    fit = estimator.fit(X, Y)
    rate = "learning_rate_init" if hasattr(fit, "learning_rate_init") else "learning_rate"
    return fit.set_params(**{rate: 0.02, "batch_size": 8})


def within(value: Any) -> Any:
    """A copy of all that a value holds, which ``==`` and NumPy can compare."""
    if isinstance(value, Trainer):
        tensors, values = value.state()
        return [within(tensors), within(values), value.options, value.monitors, value.group.size]
    if isinstance(value, nn.Module):
        return [within(dict(value.state_dict())), value.training]
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, RandomStream):
        return within(value.state())
    if isinstance(value, fe.BernoulliRBM):
        return within(vars(value))
    if dataclasses.is_dataclass(value):
        return within(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {name: within(held) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [within(held) for held in value]
    return copy.deepcopy(value)


def call(estimator: Any, method: str, rows: np.ndarray, targets: np.ndarray) -> Any:
    return getattr(estimator, method)(rows, targets)


def nan() -> np.ndarray:
    rows = X.copy()
    rows[3, 2] = np.inf
    rows[5, 1] = np.nan
    return rows


WRONG = {
    "not a number": (nan(), Y),
    "no rows": (X[:0], Y[:0]),
    "no columns": (X[:, :0], Y),
}
WRONG_TARGETS = {"too few": (X, Y[:-1]), "missing": (X, np.where(Y > 0, np.nan, 0.0))}
OTHER_WIDTH, OTHER_CLASSES, ONE_CLASS = (X[:, :-1], Y), (X, Y + 1), (X, np.zeros(40, int))


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@ALL
def test_rows_that_are_refused_change_nothing(name, method, wrong, same):
    estimator = fitted(name)
    before, model = within(vars(estimator)), estimator.model_
    with pytest.raises(ValueError, match=r"contains|0 sample|0 feature|0 columns"):
        call(estimator, method, *wrong)
    same(within(vars(estimator)), before)
    assert estimator.model_ is model


@pytest.mark.parametrize("wrong", WRONG_TARGETS.values(), ids=WRONG_TARGETS)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("name", [name for name in MAKES if name not in DENSITIES])
def test_targets_that_are_refused_change_nothing(name, method, wrong, same):
    estimator = fitted(name)
    before = within(vars(estimator))
    with pytest.raises(ValueError, match=r"y has missing values|inconsistent numbers"):
        call(estimator, method, *wrong)
    same(within(vars(estimator)), before)


@ALL
def test_rows_that_do_not_fit_the_model_change_nothing(name, same):
    estimator = fitted(name)
    before = within(vars(estimator))
    with pytest.raises(ValueError, match="expecting 6 features"):
        estimator.partial_fit(*OTHER_WIDTH)
    if hasattr(estimator, "classes_"):
        with pytest.raises(ValueError, match="classes"):
            estimator.partial_fit(*OTHER_CLASSES)
    if getattr(estimator, "warm_start", False):
        for rows in (OTHER_WIDTH, OTHER_CLASSES, ONE_CLASS):
            with pytest.raises(ValueError, match=r"features|classes"):
                estimator.fit(*rows)
    same(within(vars(estimator)), before)


@pytest.mark.parametrize("name", ["rbm classifier", "unrolled rbm"])
def test_one_class_changes_nothing(name, same):
    estimator = fitted(name)
    before = within(vars(estimator))
    with pytest.raises(ValueError, match="at least two classes"):
        estimator.fit(*ONE_CLASS)
    same(within(vars(estimator)), before)


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@ALL
def test_an_interrupted_first_pass_changes_nothing(name, method, same, monkeypatch):
    estimator = fitted(name)
    before, other = within(vars(estimator)), copy.deepcopy(estimator)
    with monkeypatch.context() as patch:
        for kind in (Trainer, PerceptronTrainer):
            patch.setattr(kind, "update", interrupted(kind.update))
        with pytest.raises(KeyboardInterrupt):
            call(estimator, method, X, Y)
    same(within(vars(estimator)), before)
    # Nor is anything out of sight left behind that a later update would start from.
    for each in (estimator, other):
        each.partial_fit(X, Y)
    same(within(vars(estimator)), within(vars(other)))


def interrupted(update: Any) -> Any:
    def once(trainer: Trainer, batch: Any) -> None:
        update(trainer, batch)
        raise KeyboardInterrupt

    return once


@ALL
def test_an_estimator_that_was_never_fitted_stays_so(name, same, monkeypatch):
    estimator = MAKES[name]()
    before = within(vars(estimator))
    for kind in (Trainer, PerceptronTrainer):
        monkeypatch.setattr(kind, "update", interrupted(kind.update))
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(X, Y)
    same(within(vars(estimator)), before)


def failing(trainer: Trainer) -> None:
    raise OSError("the disk is full")


@pytest.mark.parametrize(
    ("name", "method"), [(name, "fit") for name in MAKES] + [(name, "partial_fit") for name in NETS]
)
def test_a_callback_that_fails_changes_nothing(name, method, same):
    estimator = fitted(name).set_params(callback=failing)
    before = within(vars(estimator))
    with pytest.raises(OSError, match="the disk is full"):
        call(estimator, method, X, Y)
    same(within(vars(estimator)), before)


@ALL
def test_an_update_that_diverges_changes_nothing(name, same):
    estimator = fitted(name)
    rate = "learning_rate_init" if hasattr(estimator, "learning_rate_init") else "learning_rate"
    estimator.set_params(**{rate: 1e300})
    before = within(vars(estimator))
    with pytest.raises(fe.training.DivergenceError, match=rf"Lower {rate} \(now 1e\+300\)"):
        estimator.partial_fit(X, Y)
    same(within(vars(estimator)), before)

"""What estimators say: a line for each pass, from one process, and advice in their own words."""

from __future__ import annotations

import re
import threading
from typing import Any

import numpy as np
import pytest

import freenergy as fe
from freenergy.distributed import ALONE, Group
from freenergy.estimators.divergence import advice_for_divergence
from freenergy.training import trainer
from freenergy.training.trainer import DivergenceError

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = np.random.default_rng(0).integers(0, 2, (40, 6)).astype(float)
Y = np.arange(40) % 2

QUICK = {"n_iter": 2, "random_state": 0, "batch_size": 10}
NET = {"hidden_layer_sizes": (4,), "max_iter": 2, "random_state": 0, "batch_size": 10}


def machine(**parameters: Any) -> fe.BernoulliRBM:
    return fe.BernoulliRBM(4, **QUICK | parameters)


def unrolled(rbm: Any, **parameters: Any) -> fe.UnrolledRBMClassifier:
    return fe.UnrolledRBMClassifier(rbm, depth=2, optimizer="sgd", **QUICK | parameters)


# ---- a line for each pass ------------------------------------------------------------------------

TALKING = {
    "rbm": lambda: machine(verbose=1),
    "rbm classifier": lambda: fe.RBMClassifier(4, verbose=1, **QUICK),
    "unrolled rbm": lambda: unrolled(machine(verbose=1), verbose=1),
    "autoencoder": lambda: fe.VariationalAutoencoder(2, verbose=1, **QUICK),
    "net": lambda: fe.MLPClassifier(verbose=True, **NET),
    "net that holds rows out": lambda: fe.MLPRegressor(verbose=True, early_stopping=True, **NET),
}


@pytest.mark.parametrize("name", TALKING)
def test_of_several_processes_the_first_one_prints(name, together, monkeypatch, capsys):
    here = threading.local()
    monkeypatch.setattr(trainer, "group_now", lambda: getattr(here, "group", ALONE))

    def work(group: Group) -> None:
        here.group = group
        TALKING[name]().fit(X, Y)

    TALKING[name]().fit(X, Y)
    alone = capsys.readouterr().out
    together(2, work)
    lines = [re.sub(r"[\d.-]+s?\b", "#", out) for out in (alone, capsys.readouterr().out)]
    assert lines[0].count("Iteration") == (4 if name == "unrolled rbm" else 2)
    assert lines[0] == lines[1]


# ---- divergence ----------------------------------------------------------------------------------

DIVERGING = {
    "rbm": lambda: machine(learning_rate=1e300, momentum=0.5),
    "rbm in a ball": lambda: machine(learning_rate=1e300, weight_constraint="l2", max_norm=1e200),
    "rbm classifier": lambda: fe.RBMClassifier(4, learning_rate=1e300, optimizer="sgd", **QUICK),
    "unrolled rbm": lambda: unrolled(machine(), learning_rate=1e300, momentum=0.9),
    "autoencoder": lambda: fe.VariationalAutoencoder(
        2, learning_rate=1e300, likelihood="gaussian", **QUICK
    ),
    "net": lambda: fe.MLPClassifier(learning_rate_init=1e300, solver="sgd", **NET),
    "net without momentum": lambda: fe.MLPRegressor(learning_rate_init=1e300, **NET),
    "net in a ball": lambda: fe.MLPRegressor(
        learning_rate_init=1e300, solver="rmsprop", normalization="max_norm", **NET
    ),
}
CONSTRAINT = "set weight_constraint='l2' and max_norm"
ADVICE = {
    "rbm": f"Lower learning_rate (now 1e+300) or momentum (now 0.5), or {CONSTRAINT}",
    "rbm in a ball": "Lower learning_rate (now 1e+300) or max_norm (now 1e+200)",
    "rbm classifier": (
        f"Lower learning_rate (now 1e+300), standardise the columns of X, or {CONSTRAINT}"
    ),
    "unrolled rbm": "Lower learning_rate (now 1e+300) or momentum (now 0.9)",
    "autoencoder": "Lower learning_rate (now 1e+300), or standardise the columns of X",
    "net": "Lower learning_rate_init (now 1e+300) or momentum (now 0.9), standardise the columns "
    "of X, or set normalization='max_norm'",
    "net without momentum": "Lower learning_rate_init (now 1e+300), standardise the columns of X, "
    "or set normalization='max_norm'",
    "net in a ball": "Lower learning_rate_init (now 1e+300) or momentum (now 0.9) or max_norm "
    "(now 3), or standardise the columns of X",
}


@pytest.mark.parametrize("name", DIVERGING)
def test_advice_for_divergence_names_what_the_estimator_has_and_its_training_heeds(name):
    estimator = DIVERGING[name]()
    assert advice_for_divergence(estimator) == ADVICE[name]
    named = set(re.findall(r"\b[a-z]+_[a-z_]+\b", ADVICE[name]))
    assert named <= set(estimator.get_params()) | {"max_norm"}


@pytest.mark.parametrize("name", [name for name in DIVERGING if "ball" not in name])
def test_a_fit_that_diverges_says_so_in_the_words_of_the_estimator(name):
    with pytest.raises(DivergenceError) as error:
        DIVERGING[name]().fit(X, Y)
    assert "diverged in epoch 1" in error.value.event
    assert error.value.advice == ADVICE[name]
    assert str(error.value) == f"{error.value.event}. {ADVICE[name]}"
    # What the trainer said is not lost.
    assert isinstance(error.value.__cause__, DivergenceError)


@pytest.mark.parametrize("name", [name for name in DIVERGING if "net" not in name])
def test_an_update_that_diverges_says_the_same(name):
    estimator = DIVERGING[name]()
    rate = estimator.learning_rate
    estimator.set_params(learning_rate=1e-3).fit(X, Y)
    with pytest.raises(DivergenceError) as error:
        estimator.set_params(learning_rate=rate).partial_fit(X, Y)
    assert error.value.advice == ADVICE[name]


def test_a_pretraining_that_diverges_says_whose_parameters_are_meant():
    with pytest.raises(DivergenceError) as error:
        unrolled(machine(learning_rate=1e300)).fit(X, Y)
    assert error.value.event.startswith("rbm, in the pretraining: the parameters diverged")
    assert error.value.advice == f"In rbm, lower learning_rate (now 1e+300), or {CONSTRAINT}"

"""The perceptrons as drop-ins for scikit-learn's: its tests, its checks, its very updates."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import neural_network
from sklearn.datasets import load_iris, make_multilabel_classification, make_regression
from sklearn.utils.estimator_checks import parametrize_with_checks

import freenergy as fe

NAMES = ("MLPClassifier", "MLPRegressor")

# ---- scikit-learn's own tests --------------------------------------------------------------------

LEFT_OUT = {
    "test_fit": "it assigns coefs_ and private attributes before training",
    "test_gradient": "it calls the private method _loss_grad_lbfgs",
    "test_learning_rate_warmstart": "it reads the private attribute _optimizer",
    "test_adaptive_learning_rate": "it reads the private attribute _optimizer",
    "test_n_iter_no_change": "it reads the private attribute _no_improvement_count",
    "test_n_iter_no_change_inf": "it reads the private attribute _no_improvement_count",
    "test_predict_proba_multilabel": (
        "it expects labels whose probabilities both round to 1 to have equal logarithms"
    ),
}


def functions_of_scikit_learn() -> dict[str, Any]:
    """The names of its test_mlp.py, with our classes in the place of its own."""
    package = importlib.util.find_spec("sklearn.neural_network")
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "tests" / "test_mlp.py"
    if not path.exists():
        return {}
    source = path.read_text(encoding="utf-8")
    original = "from sklearn.neural_network import MLPClassifier, MLPRegressor"
    assert source.count(original) == 1
    source = source.replace(original, "from freenergy import MLPClassifier, MLPRegressor")
    # A fixture that is known to scikit-learn's configuration of pytest alone.
    source = re.sub(
        r"^(def \w+)\(global_random_seed\)", r"\1(global_random_seed=42)", source, flags=re.M
    )
    source = re.sub(r"^@pytest\.mark\.thread_unsafe.*\n", "", source, flags=re.MULTILINE)
    namespace: dict[str, Any] = {"__name__": "sklearn_test_mlp"}
    exec(compile(source, str(path), "exec"), namespace)
    return {k: v for k, v in namespace.items() if k.startswith("test_")}


THEIRS = functions_of_scikit_learn()
for _name, _test in THEIRS.items():
    if _name not in LEFT_OUT:
        globals()[_name.replace("test_", "test_scikit_learn_", 1)] = _test


def test_scikit_learns_tests_were_found():
    if not THEIRS:
        pytest.skip("this installation of scikit-learn has no neural_network/tests/test_mlp.py")
    assert LEFT_OUT.keys() < THEIRS.keys()
    assert len(THEIRS) >= 40


# ---- the common checks ---------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(
    [
        fe.MLPClassifier(hidden_layer_sizes=(20,), learning_rate_init=0.05, max_iter=15),
        fe.MLPRegressor(hidden_layer_sizes=(20,), learning_rate_init=0.05, max_iter=15),
    ]
)
def test_common_checks(estimator, check):
    check(estimator)


# ---- parameters, attributes, updates -------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_shared_parameters_have_the_same_names_defaults_and_order(name):
    ours = inspect.signature(getattr(fe, name)).parameters
    theirs = inspect.signature(getattr(neural_network, name)).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    for shared, parameter in theirs.items():
        assert ours[shared].default == parameter.default
        assert ours[shared].kind == parameter.kind
    assert all(ours[p].kind is inspect.Parameter.KEYWORD_ONLY for p in list(ours)[len(theirs) :])


def problem(kind):
    if kind == "multilabel":
        X, y = make_multilabel_classification(60, 5, n_classes=3, random_state=0)
        return X / 10, y
    X, y = load_iris(return_X_y=True)
    if kind == "binary":
        return X, np.where(y > 0, "yes", "no")
    if kind == "numbers":
        X, y = make_regression(80, 4, n_targets=2, random_state=0)
        return X, y / y.std()
    if kind == "counts":
        return X, y
    return X, np.array(["a", "b", "c"])[y]


PROBLEMS = {
    "binary": (NAMES[0], {}),
    "multiclass": (NAMES[0], {}),
    "multilabel": (NAMES[0], {}),
    "numbers": (NAMES[1], {}),
    "counts": (NAMES[1], {"loss": "poisson"}),
}


def fitted_pair(kind, *, weighted=False, seed=0, **options):
    """Both libraries' nets, trained from the same seed on batches in the order of the rows."""
    name, loss = PROBLEMS[kind]
    X, y = problem(kind)
    weights = np.random.default_rng(1).integers(1, 4, len(X)).astype(float) if weighted else None
    given = {"hidden_layer_sizes": (6, 5), "batch_size": 40, "shuffle": False, "max_iter": 6}
    given |= {"random_state": seed} | loss | options
    return [
        getattr(module, name)(**given).fit(X, y, sample_weight=weights)
        for module in (fe, neural_network)
    ], X


def assert_same_parameters(ours, theirs, atol):
    for found, expected in zip(
        ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


quiet = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@quiet
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.3, "learning_rate_init": 0.02},
        {"nesterovs_momentum": False, "activation": "tanh"},
        {"momentum": 0.0, "activation": "logistic"},
        {"learning_rate": "invscaling", "power_t": 0.3},
        {"learning_rate": "adaptive", "tol": 1.0, "n_iter_no_change": 1, "max_iter": 8},
    ],
)
def test_updates_of_sgd_are_those_of_scikit_learn(kind, options, weighted):
    (ours, theirs), X = fitted_pair(kind, weighted=weighted, solver="sgd", **options)
    assert_same_parameters(ours, theirs, 1e-11)
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-9)
    assert (ours.n_iter_, ours.t_, ours.best_loss_) == (
        theirs.n_iter_, theirs.t_, pytest.approx(theirs.best_loss_, rel=1e-9),
    )  # fmt: skip
    np.testing.assert_array_equal(ours.predict(X).shape, theirs.predict(X).shape)
    if hasattr(ours, "predict_proba"):
        np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
        np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-10)


@quiet
@pytest.mark.parametrize("kind", PROBLEMS)
def test_updates_of_adam_are_those_of_scikit_learn_but_for_its_epsilon(kind):
    """Torch adds epsilon after the correction of the bias; with 10⁻¹⁴ that makes no difference."""
    (ours, theirs), _ = fitted_pair(kind, alpha=0.1, epsilon=1e-14, activation="tanh")
    assert_same_parameters(ours, theirs, 1e-9)
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-9)


@quiet
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "counts"])
def test_lbfgs_goes_the_way_of_scikit_learn(kind, weighted):
    (ours, theirs), _ = fitted_pair(
        kind, weighted=weighted, solver="lbfgs", alpha=0.1, max_iter=15, activation="tanh"
    )
    assert_same_parameters(ours, theirs, 1e-8)
    assert ours.loss_ == pytest.approx(theirs.loss_, rel=1e-9)
    assert ours.n_iter_ == theirs.n_iter_


@quiet
@pytest.mark.parametrize("kind", PROBLEMS)
def test_public_methods_and_attributes_are_all_there(kind):
    (ours, theirs), _ = fitted_pair(kind)
    public = {name for name in dir(theirs) if not name.startswith("_")}
    assert public - set(dir(ours)) == set()
    for name in ("n_layers_", "n_outputs_", "out_activation_", "n_features_in_"):
        assert getattr(ours, name) == getattr(theirs, name)

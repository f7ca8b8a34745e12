"""A drop-in for scikit-learn's class: its own tests, its common checks, its very updates."""

from __future__ import annotations

import importlib.util
import inspect
import pickle
import re
from pathlib import Path
from types import FunctionType
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn import neural_network
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import freenergy as fe

METHODS = ("pcd", "cd", "emf")

# ---- scikit-learn's own tests --------------------------------------------------------------------

LEFT_OUT = {
    "test_transform": "it calls the private method _mean_hiddens",
    "test_sample_hiddens": "it calls the private methods _mean_hiddens and _sample_hiddens",
}


def functions_of_scikit_learn() -> dict[str, FunctionType]:
    """The functions of its test_rbm.py, with our class in the place of its own."""
    package = importlib.util.find_spec("sklearn.neural_network")
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "tests" / "test_rbm.py"
    if not path.exists():
        return {}
    source = path.read_text(encoding="utf-8")
    original = "from sklearn.neural_network import BernoulliRBM"
    assert source.count(original) == 1
    source = source.replace(original, "from freenergy import BernoulliRBM")
    # A mark that is known to scikit-learn's configuration of pytest alone.
    source = re.sub(r"^@pytest\.mark\.thread_unsafe.*\n", "", source, flags=re.MULTILINE)
    namespace: dict[str, Any] = {"__name__": "sklearn_test_rbm"}
    exec(compile(source, str(path), "exec"), namespace)
    return {k: v for k, v in namespace.items() if k.startswith("test_")}


THEIRS = functions_of_scikit_learn()
for _name, _test in THEIRS.items():
    if _name not in LEFT_OUT:
        globals()[_name.replace("test_", "test_scikit_learn_", 1)] = _test


def test_scikit_learns_tests_were_found():
    if not THEIRS:
        pytest.skip("this installation of scikit-learn has no neural_network/tests/test_rbm.py")
    assert LEFT_OUT.keys() < THEIRS.keys()
    assert len(THEIRS) >= 14


# ---- the common checks ---------------------------------------------------------------------------


# The checks feed values far outside [0, 1], which fit refuses by default: hence validate_range.
@parametrize_with_checks(
    [
        fe.BernoulliRBM(n_components=5, n_iter=2, validate_range=False, method=method)
        for method in METHODS
    ]
)
def test_common_checks(estimator, check):
    check(estimator)


# ---- parameters and attributes -------------------------------------------------------------------


def test_shared_parameters_have_the_same_names_defaults_and_order():
    ours = inspect.signature(fe.BernoulliRBM).parameters
    theirs = inspect.signature(neural_network.BernoulliRBM).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default
        assert ours[name].kind == parameter.kind
    assert all(p.kind is p.KEYWORD_ONLY for p in list(ours.values())[1:])


def test_public_methods_and_attributes_are_all_there(binary):
    X = binary()
    ours, theirs = (
        module.BernoulliRBM(n_components=4, n_iter=2, random_state=0).fit(X)
        for module in (fe, neural_network)
    )
    public = {name for name in dir(theirs) if not name.startswith("_")}
    assert public - set(dir(ours)) == set()
    fitted = {name for name in vars(theirs) if name.endswith("_")}
    assert fitted == {
        "components_",
        "intercept_hidden_",
        "intercept_visible_",
        "h_samples_",
        "n_features_in_",
    }
    for name in fitted - {"n_features_in_"}:
        a, b = getattr(ours, name), getattr(theirs, name)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
    for name in ("transform", "score_samples", "gibbs"):
        a, b = getattr(ours, name)(X), getattr(theirs, name)(X)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_updates_are_those_of_scikit_learn(binary, dtype):
    """From one start, with one RandomState: weights, biases and chains after every batch."""
    X = binary(200, 12).astype(dtype)
    ours = fe.BernoulliRBM(
        n_components=7, batch_size=10, learning_rate=0.2, random_state=np.random.RandomState(3)
    )
    theirs = neural_network.BernoulliRBM(
        n_components=7, batch_size=10, learning_rate=0.2, random_state=np.random.RandomState(3)
    )
    ours.partial_fit(X[:10])
    theirs.partial_fit(X[:10])
    # The starts differ in the visible biases alone (ours are at the means of the data).
    first = np.abs(ours.components_ - theirs.components_).max()
    assert first < 0.2 * 0.5
    for name in ("components_", "intercept_hidden_", "intercept_visible_", "h_samples_"):
        setattr(theirs, name, getattr(ours, name).copy())
    for start in range(10, 200, 10):
        batch = X[start : start + 10]
        ours.partial_fit(batch)
        theirs.partial_fit(batch)
        np.testing.assert_array_equal(ours.h_samples_, theirs.h_samples_)
        for name in ("components_", "intercept_hidden_", "intercept_visible_"):
            np.testing.assert_allclose(
                getattr(ours, name),
                getattr(theirs, name),
                atol=1e-5 if dtype is np.float32 else 1e-13,
                err_msg=name,
            )
    np.testing.assert_array_equal(ours.gibbs(X), theirs.gibbs(X))
    np.testing.assert_allclose(ours.transform(X), theirs.transform(X), rtol=1e-4)


# ---- at home among its tools ---------------------------------------------------------------------


def test_parameters_are_stored_untouched_and_cloned():
    seed = np.random.RandomState(0)
    given = {"n_components": np.int64(3), "random_state": seed, "beta": "?", "max_norm": None}
    rbm = fe.BernoulliRBM(**given)
    assert all(getattr(rbm, name) is value for name, value in given.items())
    assert rbm.get_params().keys() == inspect.signature(fe.BernoulliRBM).parameters.keys()
    copy = clone(rbm.set_params(method="emf", beta=2.0))
    assert (copy.method, copy.beta, copy.n_components) == ("emf", 2.0, 3)
    assert not hasattr(copy, "components_")
    with pytest.raises(ValueError, match="Invalid parameter 'temperature'"):
        rbm.set_params(temperature=1.0)
    assert repr(fe.BernoulliRBM(3, method="cd")) == "BernoulliRBM(method='cd', n_components=3)"


def test_features_help_a_classifier_in_a_grid_search():
    X, y = load_digits(return_X_y=True)
    X, y = X[:600] / 16, y[:600]
    pipeline = make_pipeline(
        fe.BernoulliRBM(n_iter=10, random_state=0), LogisticRegression(max_iter=1000)
    )
    search = GridSearchCV(
        pipeline,
        {"bernoullirbm__n_components": [2, 40], "bernoullirbm__method": ["pcd", "emf"]},
        cv=2,
    )
    search.fit(X, y)
    assert search.best_params_["bernoullirbm__n_components"] == 40
    assert search.best_score_ > 0.5
    assert search.best_estimator_[0].components_.shape == (40, 64)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_copy_by_pickle_or_joblib_goes_on_to_the_same_bits(
    binary, small, contents, same, tmp_path, method
):
    X = binary()
    rbm = small(method=method, momentum=0.5).fit(X)
    joblib.dump(rbm, tmp_path / "rbm.joblib")
    copies = [pickle.loads(pickle.dumps(rbm)), joblib.load(tmp_path / "rbm.joblib")]
    samples = [model.partial_fit(X[:20]).sample(5, n_steps=10) for model in (rbm, *copies)]
    for model, sample in zip(copies, samples[1:], strict=True):
        same(contents(model), contents(rbm))
        same(sample, samples[0])

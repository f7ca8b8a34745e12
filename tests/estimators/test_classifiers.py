"""What both classifiers promise: scikit-learn's rules, weights, seeds and files."""

from __future__ import annotations

import copy
import math
import pickle
import re
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris
from sklearn.ensemble import BaggingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import freenergy as fe
from freenergy.estimators import base
from freenergy.training import CheckpointError, DivergenceError, StopTraining, save_checkpoint

KINDS = ("rbm", "unrolled")
COLUMNS = ["red", "green", "blue", "cyan", "pink", "grey"]
SPARSE = [sp.csr_array, sp.csr_matrix, sp.csc_array, sp.coo_array]


def small_rbm(**parameters) -> fe.BernoulliRBM:
    return fe.BernoulliRBM(**{"n_components": 5, "n_iter": 1, "batch_size": 20, **parameters})


def make(kind: str, **parameters) -> fe.RBMClassifier | fe.UnrolledRBMClassifier:
    """A quick classifier."""
    common = {"n_iter": 3, "batch_size": 20, "learning_rate": 0.05, "random_state": 0}
    if kind == "rbm":
        return fe.RBMClassifier(**{"n_components": 5, **common, **parameters})
    return fe.UnrolledRBMClassifier(**{"rbm": small_rbm(), **common, **parameters})


def able(kind: str):
    """One that learns easy classes in a fraction of a second."""
    common = {"n_iter": 15, "learning_rate": 0.1}
    if kind == "rbm":
        return make(kind, **common)
    return make(kind, depth=1, rbm=small_rbm(n_components=12), **common)


def labelled(n: int = 60, d: int = 6, n_classes: int = 3, seed: int = 0, flips: float = 0.1):
    """Noisy copies of one pattern for each class."""
    rng = np.random.default_rng([seed, n, d])
    patterns = rng.random((n_classes, d)) < 0.5
    y = rng.permutation(np.arange(n) % n_classes)
    return (patterns[y] ^ (rng.random((n, d)) < flips)).astype(float), y


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def state_of(contents):
    """Everything in a classifier, its nested parameters by name."""

    def everything(clf):
        found = contents(clf)
        return found | {"rbm": None, "parameters": repr(clf.get_params())}

    return everything


# ---- scikit-learn's common checks ----------------------------------------------------------------

# The checks feed values far outside [0, 1], which only the conditional likelihood takes by default.
FREE = {"n_iter": 10, "batch_size": 50, "validate_range": False}
OUTSIDE = small_rbm(n_components=12, batch_size=200, validate_range=False)


@parametrize_with_checks(
    [
        fe.RBMClassifier(n_components=4, n_iter=12, learning_rate=0.2, batch_size=200),
        fe.RBMClassifier(n_components=4, n_iter=8, learning_rate=0.2, hidden="spin"),
        fe.UnrolledRBMClassifier(OUTSIDE, depth=1, learning_rate=0.1, **FREE),
        fe.UnrolledRBMClassifier(
            OUTSIDE, depth=1, pretrain=False, tied=False, learning_rate=0.1, **FREE
        ),
    ]
)
def test_common_checks(estimator, check):
    check(estimator)


# ---- among scikit-learn's tools ------------------------------------------------------------------


def test_grid_search_over_the_steps_of_a_pipeline(kind):
    X, y = load_iris(return_X_y=True)
    pipeline = make_pipeline(MinMaxScaler(clip=True), able(kind))
    width = "n_components" if kind == "rbm" else "rbm__n_components"
    step = type(pipeline[1]).__name__.lower()
    search = GridSearchCV(pipeline, {f"{step}__{width}": [1, 12]}, cv=2).fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_score_ > 0.8
    best = search.best_estimator_[1]
    assert best.get_params()[width] == search.best_params_[f"{step}__{width}"]
    assert cross_val_score(pipeline, X, y, cv=2).min() > 0.8


def test_meta_estimators_clone_weigh_and_calibrate(kind):
    X, y = labelled(120)
    clf = able(kind)
    calibrated = CalibratedClassifierCV(clf, cv=2).fit(X, y, sample_weight=np.ones(len(X)))
    assert_allclose(calibrated.predict_proba(X).sum(1), 1)
    assert calibrated.score(X, y) > 0.8
    bagged = BaggingClassifier(clf, n_estimators=2, random_state=0).fit(X, y)
    assert bagged.score(X, y) > 0.8
    assert not hasattr(clf, "classes_")


def test_parameters_are_stored_untouched_and_cloned(kind):
    clf = make(kind, beta=2.0) if kind == "rbm" else make(kind, damping=0.5, rbm=small_rbm(beta=2))
    fresh = clone(clf)
    assert repr(fresh.get_params()) == repr(clf.get_params())
    assert not hasattr(fresh.fit(*labelled()), "beta_")
    assert not hasattr(clf, "model_")
    with pytest.raises(ValueError, match="Invalid parameter 'temperature'"):
        clf.set_params(temperature=1.0)


# ---- probabilities -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probabilities_sum_to_one_and_predictions_are_the_most_probable(kind, dtype):
    X, y = labelled()
    X = X.astype(dtype)
    clf = make(kind).fit(X, y)
    p, log_p = clf.predict_proba(X), clf.predict_log_proba(X)
    assert p.shape == log_p.shape == (60, 3)
    assert p.dtype == log_p.dtype == dtype
    assert_allclose(p.sum(1), 1, rtol=1e-6 if dtype is np.float32 else 1e-14)
    assert_array_equal(np.exp(log_p), p)
    assert_array_equal(clf.predict(X), clf.classes_[p.argmax(1)])
    assert all(
        q.dtype == (torch.float32 if dtype is np.float32 else torch.float64)
        for q in clf.model_.parameters()
    )
    # What is learned in one precision is told in it, whatever the rows come in.
    assert clf.predict_proba(X.astype(np.float64)).dtype == dtype


def test_more_passes_learn_the_classes(kind):
    X, y = labelled(200, flips=0.05)
    clf = able(kind).fit(X, y)
    assert clf.score(X, y) > 0.95
    loss = clf.history_["loss"]
    assert loss[-1] < 0.3 < loss[0]
    p = clf.predict_proba(X)[np.arange(200), y]
    assert loss[-1] == pytest.approx(-np.log(p).mean(), rel=1e-9)
    assert clf.history_["accuracy"][-1] == pytest.approx(clf.score(X, y))


@pytest.mark.parametrize(
    "names",
    [
        ["one", "three", "two"],
        np.array([-1, 0, 1]),
        np.array([-2.0, 1.0, 7.0]),
        np.array(["a", "b", "c"], dtype=object),
    ],
    ids=str,
)
def test_classes_come_back_as_they_were_given(kind, names, tmp_path):
    X, y = labelled()
    names = np.asarray(names)
    clf, plain = make(kind, unlabeled=None).fit(X, names[y]), make(kind).fit(X, y)
    assert_array_equal(clf.classes_, names)
    assert clf.classes_.dtype == names.dtype
    assert_array_equal(clf.predict(X), names[plain.predict(X)])
    clf.save(tmp_path / "clf")
    loaded = type(clf).load(tmp_path / "clf")
    assert_array_equal(loaded.classes_, names)
    assert loaded.classes_.dtype == names.dtype


@pytest.mark.parametrize(
    "as_labels",
    [
        lambda y: y > 0,
        lambda y: pd.Series(np.where(y > 0, "yes", "no"), dtype="string"),
        lambda y: pd.Series(np.where(y > 0, "yes", "no")).astype("category"),
        lambda y: list(np.where(y > 0, "yes", "no")),
        lambda y: np.where(y > 0, 1, -1),
    ],
    ids=["bool", "pandas string", "category", "list", "signs"],
)
def test_two_classes_of_any_kind(kind, as_labels):
    X, y = labelled(n_classes=2)
    labels = as_labels(y)
    clf = make(kind).fit(X, labels)
    assert len(clf.classes_) == 2
    assert_allclose(clf.predict_proba(X), make(kind).fit(X, y).predict_proba(X), rtol=1e-13)
    assert set(clf.predict(X)) <= set(np.asarray(labels))
    assert clf.score(X, labels) == np.mean(clf.predict(X) == np.asarray(labels))


def test_extreme_values_have_finite_probabilities(kind):
    X, y = labelled()
    options = {} if kind == "rbm" else {"validate_range": False}
    for scale in (1.0, 1e4, -1e4):
        clf = make(kind, **options).fit(scale * X, y)
        for rows in (scale * X, -1e4 * X, 1e4 * X):
            log_p = clf.predict_log_proba(rows)
            assert np.isfinite(log_p).all()
            assert_allclose(clf.predict_proba(rows).sum(1), 1)


def test_degenerate_tables(kind):
    """Two rows, one column, constant columns."""
    X, y = labelled()
    for rows, labels in ((X[:3], [0, 1, 2]), (X[:, :1], y), (np.ones_like(X), y), (0 * X, y)):
        clf = make(kind).fit(rows, labels)
        assert np.isfinite(clf.predict_log_proba(rows)).all()
    one = clone(clf).set_params(**{"n_components" if kind == "rbm" else "rbm__n_components": 1})
    assert np.isfinite(one.fit(X[:, :1], y).predict_log_proba(X[:, :1])).all()


# ---- rows in all shapes --------------------------------------------------------------------------


@pytest.mark.parametrize("form", SPARSE)
def test_sparse_rows_give_what_dense_rows_give(kind, form):
    X, y = labelled()
    X[3] *= 0.5
    options = {"early_stopping": True, "class_weight": "balanced"}
    dense, sparse = make(kind, **options).fit(X, y), make(kind, **options).fit(form(X), y)
    assert_allclose(sparse.predict_proba(form(X)), dense.predict_proba(X), rtol=1e-10)
    for clf, rows in ((dense, X), (sparse, form(X))):
        clf.set_params(class_weight=None).partial_fit(rows, y)
    assert_allclose(sparse.predict_proba(X), dense.predict_proba(X), rtol=1e-10)


def test_columns_of_a_dataframe_are_known_by_name(kind):
    X, y = labelled()
    frame = pd.DataFrame(X, columns=COLUMNS)
    clf = make(kind).fit(frame, y)
    assert list(clf.feature_names_in_) == COLUMNS
    assert_array_equal(clf.predict_proba(frame), make(kind).fit(X, y).predict_proba(X))
    for call in (clf.predict_proba, lambda f: clf.partial_fit(f, y)):
        with pytest.raises(ValueError, match="feature names should match"):
            call(frame[COLUMNS[::-1]])
    frame.loc[3, "blue"] = np.nan
    with pytest.raises(ValueError, match=r"NaN in column 'blue' \(index 2\)"):
        clf.fit(frame, y)


def test_locked_reversed_and_mapped_arrays_are_taken_in_silence(kind, tmp_path):
    X, y = labelled()
    expected = make(kind).fit(X, y).predict_proba(X)
    joblib.dump((X, y), tmp_path / "rows")
    mapped = joblib.load(tmp_path / "rows", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_array_equal(make(kind).fit(*mapped).predict_proba(mapped[0]), expected)
        make(kind).fit(X[::-1, ::-1], y[::-1]).predict(X[:, ::-1])
    assert_array_equal(X, labelled()[0])


def test_rows_are_answered_in_blocks_as_in_one(kind, monkeypatch):
    X, y = labelled(57)
    clf = make(kind).fit(X, y)
    whole = clf.predict_proba(X)
    monkeypatch.setattr(base, "_BLOCK_ELEMENTS", 60)
    for rows in (X, sp.csr_array(X)):
        assert_allclose(clf.predict_proba(rows), whole, rtol=1e-13)


# ---- weights -------------------------------------------------------------------------------------

WEIGHTS = np.random.default_rng(5).integers(0, 4, 60)


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("batch_size", [10, 100])
def test_rows_without_weight_are_as_rows_removed(kind, early_stopping, batch_size, state_of, same):
    X, y = labelled()
    options = {"early_stopping": early_stopping, "batch_size": batch_size}
    on = WEIGHTS > 0
    weighted = make(kind, **options).fit(X, y, sample_weight=WEIGHTS)
    removed = make(kind, **options).fit(X[on], y[on], sample_weight=WEIGHTS[on])
    same(state_of(weighted), state_of(removed))


def test_whole_weights_are_repetitions(kind):
    """In one batch; in several the rows meet in other batches, so that only the average agrees."""
    X, y = labelled()
    rows, labels = X.repeat(WEIGHTS, axis=0), y.repeat(WEIGHTS)
    options = {"batch_size": 1000, "n_iter": 10}
    if kind == "unrolled":
        options["rbm"] = small_rbm(batch_size=1000)
    weighted = make(kind, **options).fit(X, y, sample_weight=WEIGHTS)
    repeated = make(kind, **options).fit(rows, labels)
    assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), rtol=1e-9)
    assert weighted.history_["loss"] == pytest.approx(repeated.history_["loss"], rel=1e-9)
    plain = make(kind, **options).fit(X, y)
    assert np.abs(weighted.predict_proba(X) - plain.predict_proba(X)).max() > 0.01


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("batch_size", [1, 6, 18])
def test_weights_pull_as_hard_in_small_batches_as_in_one(kind, batch_size, early_stopping):
    """At a rate near zero the steps of a pass add up to the step along the whole gradient."""
    X, y = labelled(120)
    X, y = (X[:60], y[:60]) if early_stopping else (X[:54], y[:54])
    rare = (y != 0) | (np.arange(len(y)) % 6 == 0)
    y = np.where(rare, y, 1)  # Class 0 is rare, and weighs as much as the others in all.
    weights = np.random.default_rng(0).exponential(size=len(y))
    options = {"optimizer": "sgd", "shuffle": False, "class_weight": "balanced"}
    options |= {"early_stopping": early_stopping}
    if kind == "unrolled":
        options["depth"] = 1

    def step(size, rate):
        start, end = (
            make(kind, n_iter=n, batch_size=size, learning_rate=rate, **options)
            .fit(X, y, weights)
            .model_.state_dict()
            for n in (0, 1)
        )
        return np.concatenate([(end[name] - start[name]).numpy().ravel() for name in end])

    whole = step(54, 1e-7 * 54 / batch_size)
    assert_allclose(step(batch_size, 1e-7), whole, rtol=0, atol=1e-3 * np.abs(whole).max())


def test_an_update_takes_weights_as_they_are(kind):
    """Of two updates with half of the rows each, as of one with all: no half has its own mean."""
    X, y = labelled()
    weights = np.where(y == 0, 5.0, 0.2)
    order = np.argsort(y, kind="stable")  # The rows that weigh much meet in one half.
    halves = order[:30], order[30:]

    def step(*parts, rate):
        clf = make(kind, optimizer="sgd", n_iter=0, learning_rate=rate).fit(X, y)
        before = {name: p.clone() for name, p in clf.model_.state_dict().items()}
        for part in parts:
            clf.partial_fit(X[part], y[part], sample_weight=weights[part])
        after = clf.model_.state_dict()
        return np.concatenate([(after[n] - before[n]).numpy().ravel() for n in after])

    whole = step(order, rate=2e-5)
    assert_allclose(step(*halves, rate=1e-5), whole, rtol=0, atol=1e-3 * np.abs(whole).max())


@pytest.mark.parametrize("batch_size", [10, 100])
def test_equal_weights_are_none(kind, batch_size):
    X, y = labelled()  # As many rows of each class, whose shares then have no need of smoothing.
    plain = make(kind, batch_size=batch_size).fit(X, y).predict_proba(X)
    for weight in (1, 3.0, 1e-3, 7.7e6):
        weighted = make(kind, batch_size=batch_size).fit(X, y, np.full(60, weight))
        assert_allclose(weighted.predict_proba(X), plain, rtol=1e-9)


def test_class_weights_are_weights_of_rows(kind):
    X, y = labelled()
    names = np.array(["a", "b", "c"])[y]
    by_class = {"a": 2.0, "b": 0.5, "c": 1.0}
    rows = np.array([by_class[name] for name in names])
    expected = make(kind).fit(X, names, rows).predict_proba(X)
    found = make(kind, class_weight=by_class).fit(X, names).predict_proba(X)
    assert_array_equal(found, expected)
    both = make(kind, class_weight=by_class).fit(X, names, WEIGHTS).predict_proba(X)
    assert_array_equal(both, make(kind).fit(X, names, rows * WEIGHTS).predict_proba(X))


def test_balanced_weights_give_every_class_the_same_share(kind):
    X, y = labelled(90)
    keep = (y != 0) | (np.arange(90) % 3 == 0)
    X, y = X[keep], y[keep]
    count = np.bincount(y)
    rows = (len(y) / (3 * count))[y]
    found = make(kind, class_weight="balanced").fit(X, y).predict_proba(X)
    assert_allclose(found, make(kind).fit(X, y, rows).predict_proba(X), rtol=1e-10)
    # Balanced in the weights that count, not in the number of rows.
    weights = np.where(y == 1, 2, 1)
    weighted = make(kind, class_weight="balanced").fit(X, y, weights).predict_proba(X)
    total = np.bincount(y, weights)
    rows = weights * (weights.sum() / (3 * total))[y]
    assert_allclose(weighted, make(kind).fit(X, y, rows).predict_proba(X), rtol=1e-10)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (-1, "[Nn]egative values in data passed to `sample_weight`"),
        (np.nan, "contains NaN"),
        (0, "must contain at least one non-zero number"),
        ("one class", "leave rows of fewer than two classes"),
        ("short", r"sample_weight.shape == \(3,\)"),
    ],
)
def test_weights_that_cannot_be_are_refused(kind, weights, message, state_of, same):
    X, y = labelled()
    given = {"one class": (y == 1).astype(float), "short": np.ones(3)}
    sample_weight = given.get(weights, np.full(60, weights if weights != "one class" else 1))
    clf = make(kind).fit(X, y)
    before = state_of(clf)
    with pytest.raises(ValueError, match=message):
        clf.fit(X, y, sample_weight)
    same(state_of(clf), before)


@pytest.mark.parametrize("given", ["even", {0: -1.0}, {0: math.nan}, {"a": 2.0}, 3])
def test_class_weights_that_cannot_be_are_refused(kind, given):
    X, y = labelled()
    with pytest.raises(ValueError, match="class_weight"):
        make(kind, class_weight=given).fit(X, y)


def test_an_update_weighs_classes_that_its_batch_lacks(kind):
    X, y = labelled()
    clf = make(kind, class_weight={0: 2.0}).partial_fit(X, y, classes=[0, 1, 2])
    clf.partial_fit(X[y == 1], y[y == 1])
    assert np.isfinite(clf.predict_proba(X)).all()


# ---- what is refused -----------------------------------------------------------------------------


def bad_inputs() -> dict[str, tuple[object, object, str]]:
    X, y = labelled()

    def at(value):
        Z = X.copy()
        Z[3, 2] = value
        return Z

    gap = np.where(np.arange(60) == 3, np.nan, y.astype(float))
    return {
        "NaN": (at(np.nan), y, "NaN in column 2, first in row 3"),
        "infinity": (at(np.inf), y, "infinity in column 2"),
        "sparse NaN": (sp.csr_array(at(np.nan)), y, "NaN in column 2, first in row 3"),
        "empty": (X[:0], y[:0], "minimum of 1 is required"),
        "one dimension": (X[0], y, "Expected 2D array"),
        "text": (np.full(X.shape, "a"), y, "convert string"),
        "short y": (X, y[:-1], "inconsistent numbers of samples"),
        "no y": (X, None, "requires y to be passed"),
        "y NaN": (X, gap, "y has missing values, 1 in all"),
        "two columns of y": (X, np.stack([y, y], 1), "y should be a 1d array"),
    }


@pytest.mark.parametrize("action", ["fit", "partial_fit"])
@pytest.mark.parametrize("case", bad_inputs())
def test_bad_input_is_refused_and_leaves_the_model(kind, case, action, state_of, same):
    X, y = labelled()
    bad, labels, message = bad_inputs()[case]
    clf = make(kind).fit(X, y)
    before = state_of(clf)
    with pytest.raises(ValueError, match=message):
        getattr(clf, action)(bad, labels)
    same(state_of(clf), before)
    fresh = make(kind)
    before = set(vars(fresh))
    with pytest.raises(ValueError, match=message):
        fresh.fit(bad, labels)
    assert set(vars(fresh)) == before


@pytest.mark.parametrize("case", ["NaN", "infinity", "sparse NaN", "empty", "text"])
def test_questions_about_bad_rows_are_refused(kind, case):
    X, y = labelled()
    bad, _, message = bad_inputs()[case]
    clf = make(kind).fit(X, y)
    for call in (clf.predict, clf.predict_proba, clf.predict_log_proba):
        with pytest.raises(ValueError, match=message):
            call(bad)
        with pytest.raises(ValueError, match=r"5 features, but \w+ is expecting 6"):
            call(X[:, :5])


def test_what_is_no_classification_is_refused(kind, state_of, same):
    X, y = labelled()
    clf = make(kind).fit(X, y)
    before = state_of(clf)
    for labels, message in (
        (np.ones(60), "at least two classes in y, but the data contains 1 class$"),
        (np.linspace(0, 1, 60), "Unknown label type: continuous"),
    ):
        with pytest.raises(ValueError, match=message):
            clf.fit(X, labels)
    with pytest.raises(ValueError, match="5 features, but"):
        clf.partial_fit(X[:, :5], y)
    with pytest.raises(ValueError, match=r"label 7 of row 2 is none of the classes \[0, 1, 2\]"):
        clf.partial_fit(X[:3], [0, 1, 7])
    with pytest.raises(ValueError, match=r"label 'a' of row 0 is none of the classes \[0, 1, 2\]"):
        clf.partial_fit(X[:2], ["a", "b"])
    with pytest.raises(ValueError, match="are not those of the first call"):
        clf.partial_fit(X, y, classes=[0, 1])
    same(state_of(clf), before)
    assert clf.fit(X[:, :5], y % 2).n_features_in_ == 5


def test_the_first_update_needs_all_classes(kind):
    X, y = labelled()
    with pytest.raises(ValueError, match="classes must be given in the first call"):
        make(kind).partial_fit(X, y)
    with pytest.raises(ValueError, match="class_weight='balanced' needs all labels at once"):
        make(kind, class_weight="balanced").partial_fit(X, y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match="at least two classes"):
        make(kind).partial_fit(X, 0 * y, classes=[0])
    clf = make(kind).partial_fit(X[y < 2], y[y < 2], classes=[0, 1, 2])
    assert clf.predict_proba(X).shape == (60, 3)
    assert (clf.n_iter_, clf.history_) == (0, {})


IMPOSSIBLE = {
    "learning_rate": [0.0, math.nan, "fast", None],
    "batch_size": [0, 10.0, None],
    "n_iter": [-1, 1.5, None],
    "random_state": [-1, 1.5, "seed", 2**32],
    "optimizer": ["Adam", None],
    "momentum": [-0.1, 1.0],
    "learning_rate_decay": [-1.0],
    "l1": [-1.0],
    "l2": [math.inf],
    "n_iter_no_change": [0, 1.5],
    "tol": [-1.0, None],
    "validation_fraction": [0.0, 1.0, -0.1, "half", None],
    "unlabeled": [[1]],
    "device": ["tpu?"],
    "callback": [3],
}
OWN = {
    "rbm": {
        "n_components": [0, 2.5, True],
        "objective": ["Hybrid", None],
        "generative_weight": [-1.0],
        "hidden": ["potts", None],
        "n_steps": [0],
        "n_chains": [0, "all"],
        "beta": [0.0, math.nan],
        "weight_constraint": ["l3"],
        "max_norm": [1.0],
    },
    "unrolled": {
        "rbm": [3, "rbm", fe.RBMClassifier()],
        "depth": [0, 1.5, None],
        "order": [0, 4],
        "damping": [1.0, -0.1],
        "dropout": [1.0, -0.1, None],
        "release_after": [-1, 0.5],
    },
}
EACH = [
    (kind, name, value)
    for kind in KINDS
    for name, values in (IMPOSSIBLE | OWN[kind]).items()
    for value in values
]


@pytest.fixture(scope="module")
def fitted():
    return {kind: make(kind, early_stopping=True).fit(*labelled()) for kind in KINDS}


@pytest.mark.parametrize(("kind", "name", "value"), EACH)
def test_impossible_parameters_are_named_and_leave_the_model(kind, name, value, fitted):
    X, y = labelled()
    clf = copy.deepcopy(fitted[kind])
    clf.set_params(**{name: value})
    before, answers = dict(vars(clf)), fitted[kind].predict_proba(X)
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        clf.fit(X, y)
    assert vars(clf) == before
    assert_array_equal(clf.predict_proba(X), answers)


def test_nothing_is_answered_before_a_fit(kind, tmp_path):
    X, clf = labelled()[0], make(kind)
    for call in (clf.predict, clf.predict_proba, clf.predict_log_proba):
        with pytest.raises(NotFittedError):
            call(X)
    with pytest.raises(NotFittedError):
        clf.save(tmp_path / "x")


# ---- rows without labels -------------------------------------------------------------------------


def test_the_label_that_marks_rows_without_one_may_be_any(kind):
    X, y = labelled()
    hidden = np.arange(60) % 3 == 0
    names = np.array(["a", "b", "c"], dtype=object)[y]
    found = []
    for labels, mark in (
        (np.where(hidden, -1, y), -1),
        (np.where(hidden, "?", names), "?"),
        (np.where(hidden, 99, y).astype(float), 99),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clf = make(kind, unlabeled=mark).fit(X, labels)
        assert len(clf.classes_) == 3
        found.append(clf.predict_proba(X))
    assert_array_equal(found[0], found[1])
    assert_array_equal(found[0], found[2])
    assert len(make(kind, unlabeled=None).fit(X, np.where(hidden, -1, y)).classes_) == 4


def test_minus_one_beside_two_classes_from_zero_on_marks_rows_without_one(kind):
    X, y = labelled()
    partly = np.where(np.arange(60) % 3 == 0, -1, y)
    with pytest.warns(UserWarning, match="20 rows have the label -1 and are taken for rows with"):
        clf = make(kind).fit(X, partly)
    assert clf.classes_.tolist() == [0, 1, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said = make(kind, unlabeled=-1).fit(X, partly)
        clf.partial_fit(X, partly)
        said.partial_fit(X, partly)
    assert_array_equal(clf.predict_proba(X), said.predict_proba(X))


def test_minus_one_is_a_class_where_labels_are_signs(kind):
    X, y = labelled(n_classes=2)
    signs = 2 * y - 1
    clf = make(kind).fit(X, signs).partial_fit(X, signs)
    assert clf.classes_.tolist() == [-1, 1]
    listed = make(kind).partial_fit(X[:9], np.repeat([0, 1, -1], 3), classes=[-1, 0, 1])
    assert listed.classes_.tolist() == [-1, 0, 1]


def test_two_classes_are_needed_beside_the_mark(kind):
    X, y = labelled(n_classes=2)
    with pytest.raises(ValueError, match=r"contains 1 class beside the label -1, .* unlabeled=Non"):
        make(kind, unlabeled=-1).fit(X, np.where(y > 0, 1, -1))
    with pytest.raises(ValueError, match="contains 0 classes beside the label -1"):
        make(kind, unlabeled=-1).fit(X, np.full(60, -1))


def test_readings_are_of_labelled_rows_wherever_they_stand(kind):
    X, y = labelled(1300)
    y[:1200] = -1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clf = make(kind, unlabeled=-1, n_iter=1).fit(X, y)
    p = clf.predict_proba(X[1200:])[np.arange(100), y[1200:]]
    assert clf.history_["loss"] == pytest.approx([-np.log(p).mean()], rel=1e-9)


# ---- early stopping, interruption, divergence ----------------------------------------------------


def test_early_stopping_keeps_the_best_pass(kind):
    X, y = labelled(200, flips=0.3)
    options = {"early_stopping": True, "validation_fraction": 0.3, "n_iter": 40, "batch_size": 10}
    clf = make(kind, n_iter_no_change=4, **options).fit(X, y)
    held_out = clf.history_["accuracy_held_out"]
    assert clf.n_iter_ == len(held_out) == len(clf.history_["loss"]) < 40
    best = int(np.argmax(held_out))
    assert best < clf.n_iter_ - 1
    assert max(held_out[-4:]) <= max(held_out[:-4]) + 1e-4
    # The model is that of the best pass to the bit: a run that ends there is the same.
    short = make(kind, **{**options, "n_iter": best + 1}).fit(X, y)
    assert_array_equal(clf.predict_proba(X), short.predict_proba(X))
    assert short.history_["accuracy_held_out"] == held_out[: best + 1]


def test_rows_are_held_out_in_proportion_to_their_classes(kind):
    X, y = labelled(300)
    keep = (y == 0) | (np.arange(300) % 4 == 0)
    X, y = X[keep], y[keep]
    clf = make(kind, early_stopping=True, validation_fraction=0.2, n_iter=1)
    clf.fit(X, y)
    seen = {}
    clf._held_out_classes, whole = (
        lambda rows: seen.setdefault("parts", whole(rows)),
        (clf._held_out_classes),
    )
    clf.fit(X, y)
    learned, held_out = (part.numpy() for part in seen["parts"])
    assert sorted([*learned, *held_out]) == list(range(len(y)))
    assert len(held_out) == round(0.2 * len(y))
    assert_allclose(np.bincount(y[held_out]), 0.2 * np.bincount(y), atol=1)


def test_too_few_rows_to_hold_any_out(kind):
    X, _ = labelled()
    with pytest.raises(ValueError, match=r"validation_fraction=0\.1 of 4 rows leaves"):
        make(kind, early_stopping=True).fit(X[:4], [0, 1, 2, 0])
    with pytest.raises(ValueError, match=r"2 labelled rows leaves fewer than two classes"):
        make(kind, early_stopping=True, validation_fraction=0.5).fit(X[:2], [0, 1])


@pytest.mark.parametrize("early_stopping", [False, True])
def test_ctrl_c_keeps_the_last_complete_pass(kind, early_stopping):
    X, y = labelled()

    def interrupt(trainer):
        if trainer.epoch == 3:
            raise KeyboardInterrupt

    options = {"early_stopping": early_stopping, "n_iter_no_change": 99, "random_state": 1}
    with pytest.warns(UserWarning, match="interrupted; the model of pass 3 is kept"):
        clf = make(kind, n_iter=9, callback=interrupt, **options).fit(X, y)
    assert clf.n_iter_ == 3
    good = make(kind, n_iter=2 if early_stopping else 3, **options).fit(X, y)
    assert_array_equal(clf.predict_proba(X), good.predict_proba(X))
    stream = [c.set_params(callback=None).partial_fit(X, y).predict_proba(X) for c in (clf, good)]
    assert_array_equal(stream[0], stream[1])


def test_a_callback_may_stop_and_its_failure_leaves_the_old_model(kind, state_of, same):
    X, y = labelled()

    def stop(trainer):
        if trainer.epoch == 2:
            raise StopTraining("enough")

    with pytest.warns(UserWarning, match="enough"):
        clf = make(kind, n_iter=9, callback=stop).fit(X, y)
    assert clf.n_iter_ == 2

    def fail(trainer):
        raise OSError("no space left")

    clf.set_params(callback=fail)
    before = state_of(clf)
    with pytest.raises(OSError, match="no space left"):
        clf.fit(X[:, :5], y % 2)
    same(state_of(clf), before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_learning_rate_beyond_all_bounds_diverges(kind, dtype):
    X, y = labelled()
    X = X.astype(dtype)
    clf = make(kind, learning_rate=1e30, optimizer="sgd")
    with pytest.raises(DivergenceError, match=r"epoch 1; .*learning_rate \(now 1e\+30"):
        clf.fit(X, y)
    start = make(kind, n_iter=0, optimizer="sgd").fit(X, y)
    assert_array_equal(clf.predict_proba(X), start.predict_proba(X))
    assert clf.n_iter_ == 0


def test_an_update_that_diverges_is_undone(kind, state_of, same):
    X, y = labelled()
    clf = make(kind, optimizer="sgd", momentum=0.5).fit(X, y)
    before = state_of(clf)
    clf.set_params(learning_rate=1e30)
    with pytest.raises(DivergenceError, match=r"was undone\. Lower learning_rate"):
        clf.partial_fit(X, y)
    clf.set_params(learning_rate=0.05)
    same(state_of(clf), before)


def test_verbose_prints_a_line_for_each_pass(kind, capsys):
    X, y = labelled()
    loud = make(kind, verbose=1, early_stopping=True).fit(X, y)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for i, line in enumerate(lines, 1):
        assert re.fullmatch(
            rf"\[\w+\] Iteration {i}, loss = \d\.\d{{6}}, held-out accuracy = \d\.\d{{4}}, "
            r"time = \d+\.\d\ds",
            line,
        )
    assert_array_equal(
        make(kind, early_stopping=True).fit(X, y).predict_proba(X), loud.predict_proba(X)
    )
    assert capsys.readouterr().out == ""


# ---- updates -------------------------------------------------------------------------------------


def test_an_update_is_a_pass_in_one_batch(kind):
    X, y = labelled()
    options = {"batch_size": 100, "n_iter": 1}
    by_pass = make(kind, **options).fit(X, y)
    by_update = make(kind, **options).partial_fit(X, y, classes=[0, 1, 2])
    assert_array_equal(by_update.predict_proba(X), by_pass.predict_proba(X))
    for clf in (by_pass, by_update):
        clf.partial_fit(X[:20], y[:20], sample_weight=WEIGHTS[:20])
    assert_array_equal(by_update.predict_proba(X), by_pass.predict_proba(X))


def test_what_a_started_training_cannot_take_over_is_refused(kind):
    X, y = labelled()
    clf = make(kind).fit(X, y)
    clf.set_params(l2=50.0)
    with pytest.raises(ValueError, match=r"^l2 changed since training started"):
        clf.partial_fit(X, y)
    clf.set_params(l2=0.0, learning_rate=1e-12)
    before = clf.predict_proba(X)
    assert_allclose(clf.partial_fit(X, y).predict_proba(X), before, atol=1e-9)


# ---- seeds ---------------------------------------------------------------------------------------


def test_one_seed_gives_the_same_bits_and_another_others(kind, state_of, same):
    X, y = labelled()
    first = make(kind, random_state=7, early_stopping=True).fit(X, y)
    same(state_of(make(kind, random_state=7, early_stopping=True).fit(X, y)), state_of(first))
    same(state_of(first.fit(X, y)), state_of(first))
    other = make(kind, random_state=8, early_stopping=True).fit(X, y)
    assert not (other.predict_proba(X) == first.predict_proba(X)).any()


def test_a_random_state_is_used_up_and_repeatable(kind):
    X, y = labelled()
    host = np.random.RandomState(7)
    first, second = (make(kind, random_state=host).fit(X, y).predict_proba(X) for _ in range(2))
    assert not (first == second).any()
    again = make(kind, random_state=np.random.RandomState(7)).fit(X, y)
    assert_array_equal(again.predict_proba(X), first)


def test_no_random_state_honours_numpys_global_seed(kind):
    X, y = labelled()
    found = []
    for seed in (3, 3, 4):
        np.random.seed(seed)  # noqa: NPY002
        found.append(make(kind, random_state=None).fit(X, y).predict_proba(X))
    assert_array_equal(found[0], found[1])
    assert not (found[0] == found[2]).any()


def test_the_global_streams_are_left_alone(kind):
    X, y = labelled()
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    options = (
        {"dropout": 0.5, "release_after": 1} if kind == "unrolled" else {"objective": "hybrid"}
    )
    make(kind, **options).fit(X, y).partial_fit(X, y).predict(X)
    assert_array_equal(torch.get_rng_state(), before[0])
    assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


# ---- files ---------------------------------------------------------------------------------------

VARIANTS = {
    "rbm": [
        {},
        {"objective": "hybrid", "generative_weight": 0.5, "beta": 1.5, "hidden": "spin"},
        {"objective": "generative", "n_chains": 7, "optimizer": "sgd", "momentum": 0.5},
    ],
    "unrolled": [
        {},
        {"tied": False, "depth": 3, "order": 2, "damping": 0.3, "dropout": 0.4},
        {"release_after": 1, "dropout": 0.2, "rbm": None, "pretrain": False},
    ],
}


@pytest.mark.parametrize(
    ("kind", "options"), [(kind, options) for kind in KINDS for options in VARIANTS[kind]]
)
@pytest.mark.parametrize("seed", [5, None, "RandomState"])
def test_a_saved_classifier_goes_on_to_the_same_bits(kind, options, seed, state_of, same, tmp_path):
    X, y = labelled()
    frame = pd.DataFrame(X.astype(np.float32), columns=COLUMNS)
    names = np.array(["a", "b", "c"])[y]
    random_state = np.random.RandomState(5) if seed == "RandomState" else seed
    clf = make(kind, random_state=random_state, class_weight={"a": np.float32(2)}, **options)
    clf.set_params(l2=np.float32(0.01)).fit(frame, names)
    clf.save(tmp_path / "clf.safetensors")
    loaded = type(clf).load(tmp_path / "clf.safetensors")
    assert list(loaded.feature_names_in_) == COLUMNS
    assert loaded.random_state == (None if seed == "RandomState" else seed)
    assert loaded.class_weight == {"a": 2.0}
    assert_array_equal(loaded.predict_proba(frame), clf.predict_proba(frame))
    assert repr(loaded.history_) == repr(clf.history_)
    for _ in range(2):
        for model in (clf, loaded):
            model.partial_fit(frame, names)
    assert_array_equal(loaded.predict_proba(frame), clf.predict_proba(frame))
    a, b = clf._trainer.state()[0], loaded._trainer.state()[0]
    same({k: v.numpy() for k, v in b.items()}, {k: v.numpy() for k, v in a.items()})


def test_parameters_come_back_from_a_file(kind, tmp_path):
    X, y = labelled()
    clf = make(kind, class_weight={0: 1, 2: 0.5}, n_iter=np.int64(2), unlabeled=-1)
    if kind == "unrolled":
        clf.set_params(rbm__beta=1.5, rbm__method="emf", rbm__n_iter=np.int64(2))
    clf.fit(X, y).save(tmp_path / "clf")
    loaded = type(clf).load(tmp_path / "clf")
    found, expected = loaded.get_params(), clf.get_params()
    assert {**found, "rbm": None} == {**expected, "rbm": None}
    assert loaded.n_iter_ == 2
    assert loaded.n_features_in_ == 6
    assert not hasattr(loaded, "feature_names_in_")
    assert_array_equal(clone(loaded).fit(X, y).predict_proba(X), clf.predict_proba(X))
    elsewhere = type(clf).load(tmp_path / "clf", device="auto")
    assert elsewhere.device == "auto"


def test_damaged_and_foreign_files_are_refused_by_name(kind, tmp_path):
    path = tmp_path / "clf.safetensors"
    clf = make(kind).fit(*labelled())
    clf.save(path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(10):
        altered = bytearray(content)
        altered[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        for damaged in (bytes(altered), content[: rng.integers(len(content))]):
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=r"clf\.safetensors"):
                type(clf).load(path)
    path.write_bytes(content)
    for other in (fe.BernoulliRBM, *({fe.RBMClassifier, fe.UnrolledRBMClassifier} - {type(clf)})):
        with pytest.raises(CheckpointError, match=rf"clf\.safetensors holds no {other.__name__}"):
            other.load(path)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        type(clf).load(tmp_path / "missing")
    save_checkpoint(path, {}, {"estimator": {"class": type(clf).__name__}})
    with pytest.raises(CheckpointError, match=rf"holds no {type(clf).__name__} that can be read"):
        type(clf).load(path)


def test_a_file_holds_what_was_trained_whatever_was_set_since(kind, tmp_path):
    X, y = labelled()
    clf = make(kind).fit(X, y)
    expected = clf.predict_proba(X)
    changes = {"batch_size": 7, "l2": 3.0, "optimizer": "sgd"}
    changes |= {"beta": 3.0, "hidden": "spin"} if kind == "rbm" else {"depth": 9, "order": 3}
    clf.set_params(**changes)
    assert_array_equal(clf.predict_proba(X), expected)
    clf.save(tmp_path / "clf")
    assert_array_equal(type(clf).load(tmp_path / "clf").predict_proba(X), expected)


def test_a_pickle_goes_on_to_the_same_bits_and_carries_no_data(kind):
    X, y = labelled(3000)
    clf = make(kind, n_iter=1, early_stopping=True).fit(X, y)
    content = pickle.dumps(clf)
    assert len(content) < 50_000
    again = pickle.loads(content)
    for model in (clf, again):
        model.partial_fit(X[:20], y[:20])
    assert_array_equal(again.predict_proba(X), clf.predict_proba(X))

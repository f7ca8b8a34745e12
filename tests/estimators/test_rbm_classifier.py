"""The discriminative RBM as a classifier: probabilities by free energies, three objectives."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import freenergy as fe
from freenergy.random import RandomStream
from freenergy.training import LabelledRows, Trainer, as_rows, initialize
from freenergy.training.discriminative import DiscriminativeGradient, DiscriminativeOptions

VALUES = {"bernoulli": (0.0, 1.0), "spin": (-1.0, 1.0), "binomial(3)": (0.0, 1.0, 2.0, 3.0)}
OBJECTIVES = pytest.mark.parametrize("objective", ["discriminative", "hybrid", "generative"])


def make(**parameters) -> fe.RBMClassifier:
    """A quick classifier."""
    defaults = {"n_components": 5, "n_iter": 3, "batch_size": 20, "learning_rate": 0.05}
    return fe.RBMClassifier(**{**defaults, "random_state": 0, **parameters})


def labelled(n: int = 60, d: int = 6, n_classes: int = 3, seed: int = 0, flips: float = 0.1):
    """Noisy copies of one pattern for each class."""
    rng = np.random.default_rng([seed, n, d])
    patterns = rng.random((n_classes, d)) < 0.5
    y = rng.permutation(np.arange(n) % n_classes)
    return (patterns[y] ^ (rng.random((n, d)) < flips)).astype(float), y


def log_sum_exp(x: np.ndarray, axis: int) -> np.ndarray:
    top = x.max(axis, keepdims=True)
    return np.log(np.exp(x - top).sum(axis)) + np.squeeze(top, axis)


# ---- what is told of rows ------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("hidden", VALUES)
@OBJECTIVES
def test_probabilities_and_free_energies_by_a_sum_over_all_hidden_states(objective, hidden, beta):
    """F(x, y) = -(1/beta) ln sum_h exp(-beta E(x, y, h)), and p(y|x) its softmax over y."""
    X, y = labelled()
    clf = make(objective=objective, hidden=hidden, beta=beta, n_components=4).fit(X, y)
    a, b, d, W, U = (
        getattr(clf.model_, name).detach().numpy()
        for name in ("visible_bias", "hidden_bias", "label_bias", "weight", "label_weight")
    )
    h = np.array(list(itertools.product(VALUES[hidden], repeat=4)))
    # E(x, y, h) = -a.x - d_y - (b + x W + U_y).h
    field = (X @ W + b)[:, None, :] + U
    energy = -(X @ a)[:, None, None] - d[:, None] - field @ h.T
    F = -log_sum_exp(-beta * energy, 2) / beta
    marginal = -log_sum_exp(-beta * F, 1) / beta
    log_p = -beta * F + beta * marginal[:, None]
    assert_allclose(clf.predict_log_proba(X), log_p, rtol=1e-12, atol=1e-12)
    assert_allclose(clf.free_energy(X), marginal, rtol=1e-12)
    for k in range(3):
        assert_allclose(clf.free_energy(X, np.full(60, k)), F[:, k], rtol=1e-12)
    # The loss is a difference of free energies.
    difference = beta * (clf.free_energy(X, y) - clf.free_energy(X))
    assert_allclose(difference, -clf.predict_log_proba(X)[np.arange(60), y], atol=1e-12)
    assert clf.history_["loss"][-1] == pytest.approx(difference.mean(), rel=1e-9)
    assert (difference > 0).all()


def test_the_free_energy_of_labels_of_any_kind():
    X, y = labelled()
    names = np.array(["a", "b", "c"])
    clf, plain = make().fit(X, names[y]), make().fit(X, y)
    assert_array_equal(clf.free_energy(X, names[y]), plain.free_energy(X, y))
    assert_array_equal(clf.free_energy(X, list(names[y])), plain.free_energy(X, y))
    for labels, message in (
        (names, r"y must have shape \(60,\), got \(3,\)"),
        (y, r"label \d of row 0 is none of the classes \['a', 'b', 'c'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            clf.free_energy(X, labels)


def test_extreme_rows_have_finite_free_energies():
    X, y = labelled()
    for hidden, scale in itertools.product(VALUES, (1e4, -1e4)):
        clf = make(hidden=hidden).fit(scale * X, y)
        F = clf.free_energy(scale * X), clf.free_energy(scale * X, y)
        assert np.isfinite(F).all()
        # exp(-beta F(x)) is a sum over classes, which each term is below, to rounding.
        assert (F[1] - F[0] >= -1e-9 * np.abs(F[0])).all()


# ---- what is learned -----------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
@OBJECTIVES
def test_a_model_starts_at_the_shares_of_the_classes_and_the_means_of_the_rows(objective, beta):
    X, y = labelled(90)
    keep = (y != 0) | (np.arange(90) % 3 == 0)
    X, y = X[keep], y[keep]
    clf = make(objective=objective, n_iter=0, beta=beta).fit(X, y)
    shares = (np.bincount(y) + 1) / (len(y) + 3)
    means = (X.sum(0) + 1) / (len(y) + 2)
    model = clf.model_
    assert_allclose(model.label_bias.detach(), np.log(shares) / beta, rtol=1e-12)
    assert_allclose(model.visible_bias.detach(), np.log(means / (1 - means)) / beta, rtol=1e-12)
    assert_array_equal(model.hidden_bias.detach(), 0)
    assert 0 < float(model.label_weight.detach().abs().max()) < 0.05
    # Weights so small change next to nothing: every row has the classes' shares.
    assert_allclose(clf.predict_proba(X), np.tile(shares, (len(y), 1)), atol=0.02)
    assert clf.history_ == {}
    assert clf.n_iter_ == 0


@OBJECTIVES
def test_every_objective_learns_the_classes(objective):
    X, y = labelled(200, flips=0.05)
    clf = make(objective=objective, n_iter=25, generative_weight=0.1).fit(X, y)
    assert clf.score(X, y) > 0.9
    assert set(clf.history_) == {"epoch", "updates", "learning_rate", "seconds", "loss", "accuracy"}
    assert all(len(numbers) == 25 for numbers in clf.history_.values())


def test_the_generative_part_learns_where_the_rows_are():
    """Rows of the training data are likelier than their complements under p(x), not else."""
    X, y = labelled(200, flips=0.05)

    def gap(clf) -> float:
        return float((clf.free_energy(1 - X) - clf.free_energy(X)).mean())

    options = {"n_iter": 30, "learning_rate": 0.02}
    generative = gap(make(objective="generative", **options).fit(X, y))
    hybrid = gap(make(objective="hybrid", generative_weight=1.0, **options).fit(X, y))
    start = gap(make(n_iter=0).fit(X, y))
    assert generative > start + 1
    assert hybrid > start + 1


@OBJECTIVES
def test_the_estimator_is_the_trainer_with_another_face(objective):
    X, y = labelled(55)
    weights = np.random.default_rng(1).uniform(0.5, 2, 55)
    settings = {"objective": objective, "momentum": 0.5, "optimizer": "sgd", "beta": 1.5}
    clf = make(hidden="spin", **settings).fit(X, y, weights)
    rows = LabelledRows(
        as_rows(X, torch.empty(0, dtype=torch.float64)),
        torch.from_numpy(y),
        torch.from_numpy(weights),
    )
    model = fe.models.DiscriminativeRBM(6, 3, 5, hidden="spin", dtype=torch.float64)
    random = RandomStream(0)
    initialize(model, rows, random, 1.5)
    options = DiscriminativeOptions(n_epochs=3, batch_size=20, learning_rate=0.05, **settings)
    gradient = DiscriminativeGradient(model, options, random)
    order = RandomStream(np.random.SeedSequence([0, 1]))
    of_mean_one = LabelledRows(rows.rows, rows.labels, rows.weights / rows.weights.mean())
    Trainer(model, options, random, gradient=gradient, order=order).fit(of_mean_one)
    for name, parameter in model.named_parameters():
        assert_array_equal(clf.model_.get_parameter(name).detach(), parameter.detach())


def test_a_constraint_holds_after_every_pass_and_update():
    X, y = labelled()
    clf = make(weight_constraint="l2", max_norm=0.1, learning_rate=0.5).fit(X, y)
    for _ in range(3):
        norms = torch.linalg.vector_norm(clf.model_.weight.detach(), dim=0)
        assert float(norms.max()) <= 0.1 * (1 + 1e-12)
        clf.partial_fit(X, y)


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["hybrid", "generative"])
def test_a_model_of_the_rows_needs_rows_that_it_can_model(objective):
    X, y = labelled()
    with pytest.raises(ValueError, match=r"value 3 in column \d, row \d+, outside \[0, 1\]"):
        make(objective=objective).fit(3 * X, y)
    grey = make(objective=objective).fit(0.5 * X, y)
    assert np.isfinite(grey.predict_proba(X)).all()
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        grey.partial_fit(-X, y)


def test_the_conditional_likelihood_takes_any_number():
    X, y = labelled(200, flips=0.05)
    clf = make(n_iter=25).fit(5 * X - 2, y)
    assert clf.score(5 * X - 2, y) > 0.9


# ---- rows without labels -------------------------------------------------------------------------


def test_the_discriminative_objective_learns_nothing_from_rows_without_labels():
    X, y = labelled()
    hidden = np.arange(60) % 3 == 0
    with pytest.warns(UserWarning, match=r"20 rows have the label unlabeled=-1, and nothing is"):
        clf = make(unlabeled=-1).fit(X, np.where(hidden, -1, y))
    plain = make().fit(X[~hidden], y[~hidden])
    assert_array_equal(clf.predict_proba(X), plain.predict_proba(X))
    assert_array_equal(clf.free_energy(X), plain.free_energy(X))
    with (
        pytest.warns(UserWarning, match="60 rows have the label"),
        pytest.raises(ValueError, match="no row has both a label and a positive weight"),
    ):
        clf.partial_fit(X, np.full(60, -1))


def test_unlabelled_rows_help_where_labels_are_rare():
    """Two noisy patterns, 400 rows, of which four have a label."""
    n, d, n_labelled = 400, 30, 4
    accuracy = {"all": [], "labelled": []}
    for seed in range(3):
        rng = np.random.default_rng(seed)
        cluster = np.arange(n) % 2
        pattern = (rng.random(d) < 0.5) ^ (cluster[:, None] == 1)
        X = (pattern ^ (rng.random((n, d)) < 0.3)).astype(float)
        y = np.where(np.arange(n) < n_labelled, cluster, -1)
        clf = make(
            objective="hybrid",
            generative_weight=1.0,
            n_components=8,
            n_iter=30,
            learning_rate=0.01,
            unlabeled=-1,
            random_state=seed,
        )
        for name, part in (("all", slice(None)), ("labelled", slice(n_labelled))):
            clf.fit(X[part], y[part])
            accuracy[name].append(clf.score(X[n_labelled:], cluster[n_labelled:]))
    assert np.mean(accuracy["all"]) > 0.9
    assert np.mean(accuracy["all"]) > np.mean(accuracy["labelled"]) + 0.1


@pytest.mark.parametrize("objective", ["hybrid", "generative"])
def test_an_update_may_have_no_labels_at_all(objective):
    X, y = labelled()
    clf = make(objective=objective, unlabeled=-1).fit(X, y)
    before = clf.free_energy(X)
    clf.partial_fit(X, np.full(60, -1))
    assert (clf.free_energy(X) != before).all()
    assert np.isfinite(clf.predict_log_proba(X)).all()

"""Scores of rows held out: the numbers of closed forms, and intervals that cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, log_loss, mean_squared_error, r2_score

import freenergy as fe
from freenergy.studies.estimator_models import MODELS
from freenergy.studies.estimator_scores import Score, Scores, quick_scores, score
from freenergy.training import RunError

CLASSES = MODELS["mlp-classifier"]


class Fixed:
    """A classifier or regressor whose predictions are given with the rows."""

    def __init__(self, classes=None) -> None:
        self.classes_ = None if classes is None else np.asarray(classes)

    def predict(self, x):
        if self.classes_ is None:
            return x[:, 0]
        return self.classes_[x.argmax(axis=1)]

    def predict_log_proba(self, x):
        return np.log(x)

    def score(self, x, y):
        return float((self.predict(x) == y).mean())


def probabilities(n: int, k: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(k), n)


def test_accuracy_loss_and_confusion_are_those_of_the_definitions():
    p, y = probabilities(200, 3, 0), np.random.default_rng(1).choice(["a", "b", "c"], 200)
    model = Fixed(["a", "b", "c"])
    found = score(CLASSES, model, "rows", p, y)
    accuracy, loss = found.scores
    assert accuracy.value == pytest.approx((model.predict(p) == y).mean(), abs=1e-15)
    assert loss.value == pytest.approx(log_loss(y, p), rel=1e-12)
    np.testing.assert_array_equal(found.confusion, confusion_matrix(y, model.predict(p)))
    assert found.classes == ("a", "b", "c")
    for recall, counts in zip(found.recalls, found.confusion, strict=True):
        place = found.classes.index(recall.name)
        assert recall.value == counts[place] / sum(counts)
    assert found.words.startswith("Held-out accuracy 0.")
    losses = -np.log(p[np.arange(200), [found.classes.index(label) for label in y]])
    half = 1.96 * losses.std(ddof=1) / math.sqrt(200)
    assert (loss.lower, loss.upper) == pytest.approx((loss.value - half, loss.value + half))


@pytest.mark.parametrize("n", [1, 10, 1000])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_interval_of_a_share_is_wilsons(n, share):
    hits = round(share * n)
    y = np.repeat([0, 1], [hits, n - hits])
    p = np.tile([0.9, 0.1], (n, 1))  # Always class 0.
    (found, *_) = score(CLASSES, Fixed([0, 1]), "rows", p, y).scores
    z, s = 1.959963984540054, hits / n
    centre = (s + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(s * (1 - s) / n + z**2 / (4 * n**2))
    expected = (max(0.0, centre - half), min(1.0, centre + half))
    assert (found.lower, found.upper) == pytest.approx(expected, abs=1e-9)
    assert found.lower <= found.value <= found.upper


def test_labels_that_were_not_learned_are_errors_and_rows_without_a_label_no_rows():
    model = Fixed([0, 1])
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.9, 0.1], [0.7, 0.3]])
    found = score(CLASSES, model, "rows", p, np.array([0, 1, 7, 1]))
    assert (found.rows, found.scores[0].value) == (4, 0.5)
    assert "7" in found.remarks[0]
    assert np.sum(found.confusion) == 3
    model.unlabeled = "auto"
    found = score(CLASSES, model, "rows", p, np.array([0, -1, -1, 0]))
    assert (found.rows, found.scores[0].value) == (2, 1.0)
    with pytest.raises(ValueError, match="no row has a label"):
        score(CLASSES, model, "rows", p, np.full(4, -1))
    # A training whose few held-out rows are all without one goes on.
    assert quick_scores(CLASSES, p, np.full(4, -1))(model) == {}
    # Where -1 is a class, it marks nothing.
    assert score(CLASSES, Fixed([-1, 1]), "rows", p, np.array([-1, 1, 1, 1])).rows == 4


def test_a_matrix_of_labels_is_judged_row_by_row_and_label_by_label():
    X = np.random.default_rng(0).random((80, 5))
    Y = (X[:, :3] > 0.5).astype(int)
    net = fe.MLPClassifier((8,), solver="lbfgs", max_iter=30, random_state=0)
    with pytest.warns(match="lbfgs failed"):
        net.fit(X, Y)
    found = score(CLASSES, net, "rows", X, Y)
    assert found.scores[0].value == net.score(X, Y)
    single = [s.value for s in found.scores[1:]]
    np.testing.assert_allclose(single, (net.predict(X) == Y).mean(axis=0), rtol=1e-12)
    assert quick_scores(CLASSES, X, Y)(net) == {"accuracy_test": net.score(X, Y)}


@pytest.mark.parametrize("outputs", [1, 2])
def test_regression_is_judged_by_what_it_explains(outputs):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(300, outputs)) * [1.0, 10.0][:outputs]
    predicted = truth + rng.normal(size=truth.shape)

    class Regressor:
        def predict(self, x):
            return x if outputs > 1 else x[:, 0]

    y = truth if outputs > 1 else truth[:, 0]
    r2, rmse = score(MODELS["mlp-regressor"], Regressor(), "rows", predicted, y).scores
    assert r2.value == pytest.approx(r2_score(truth, predicted), rel=1e-12)
    assert rmse.value == pytest.approx(math.sqrt(mean_squared_error(truth, predicted)), rel=1e-12)
    # The error of a mean of n squares of normal numbers is sqrt(2/n), of its root half of it.
    half = 1.96 * 0.5 * math.sqrt(2.0 / truth.size)
    assert rmse.upper - rmse.lower == pytest.approx(2 * half, rel=0.25)
    assert r2.lower < r2.value < r2.upper
    again = score(MODELS["mlp-regressor"], Regressor(), "rows", predicted, y)
    assert again.scores == (r2, rmse)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_regression_worse_than_the_mean_is_told_what_to_do(sign):
    class Regressor:
        def predict(self, x):
            return sign * x[:, 0]

    x = np.linspace(-1.0, 1.0, 20)[:, None]
    found = score(MODELS["mlp-regressor"], Regressor(), "rows", x, x[:, 0])
    assert (found.scores[0].value < 0) == any("standardise" in r for r in found.remarks)
    assert (found.scores[0].value < 0) == (sign < 0)


def test_a_constant_target_explains_nothing_and_has_no_interval():
    class Regressor:
        def predict(self, x):
            return x[:, 0]

    r2, rmse = score(
        MODELS["mlp-regressor"], Regressor(), "rows", np.ones((9, 1)), np.zeros(9)
    ).scores
    assert math.isnan(r2.value)
    assert math.isnan(r2.lower)
    assert (rmse.value, rmse.lower, rmse.upper) == (1.0, 1.0, 1.0)


def test_a_density_is_judged_by_its_likelihood_and_its_bound():
    X = (np.random.default_rng(0).random((300, 6)) < 0.3).astype(float)
    vae = fe.VariationalAutoencoder(2, hidden_layer_sizes=(8,), n_iter=5, random_state=0).fit(X)
    found = score(MODELS["vae"], vae, "rows", X, None, seed=3)
    likelihood, bound = found.scores
    expected = vae.log_likelihood(X, n_draws=100, random_state=3)
    assert (likelihood.value, likelihood.lower) == (expected.mean, expected.lower)
    assert likelihood.trusted == expected.trusted
    # The free energy bounds it from the other side.
    assert -bound.upper < likelihood.value
    assert bound.value == pytest.approx(
        vae.free_energy(X, n_draws=10, random_state=3).mean(), rel=1e-6
    )
    # Grey values have a bound, and no likelihood.
    (only,) = score(MODELS["vae"], vae, "rows", np.full((50, 6), 0.5), None).scores
    assert only.name == "free energy"


def test_scores_outlive_their_file():
    found = Scores(
        "x", 3, (Score("R²", math.nan), Score("b", 1.0, 0.5, 1.5, "nats", "how", False)),
        ("a", "b"), ((1, 0), (1, 1)), ("a remark",),
    )  # fmt: skip
    back = Scores.from_json(found.to_json())
    assert back.to_json() == found.to_json()
    assert back.scores[1] == found.scores[1]
    assert math.isnan(back.scores[0].value)
    assert back.confusion == found.confusion
    assert "not to be trusted" in found.scores[1].words
    for text in ("", "[]", "{}", '{"data": 1}', found.to_json()[:-40]):
        with pytest.raises(RunError, match="holds no scores"):
            Scores.from_json(text)

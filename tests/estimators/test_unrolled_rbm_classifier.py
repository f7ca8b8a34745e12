"""The unrolled RBM as a classifier: mean-field layers, pretraining, and the RBM that remains."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator

import freenergy as fe
from freenergy.estimators.unrolled_rbm_classifier import _repeated
from freenergy.inference import MeanFieldWarning, mean_field
from freenergy.models import unroll
from freenergy.thermodynamics import RBMMonitor
from freenergy.training import DivergenceError, LabelledRows, StopTraining, as_rows
from freenergy.training.trainer import Trainer


def small_rbm(**parameters) -> fe.BernoulliRBM:
    defaults = {"n_components": 5, "n_iter": 2, "batch_size": 20, "learning_rate": 0.3}
    return fe.BernoulliRBM(**{**defaults, **parameters})


def make(**parameters) -> fe.UnrolledRBMClassifier:
    """A quick classifier."""
    defaults = {"n_iter": 3, "batch_size": 20, "learning_rate": 0.05, "random_state": 0}
    return fe.UnrolledRBMClassifier(**{"rbm": small_rbm(), **defaults, **parameters})


def labelled(n: int = 60, d: int = 6, n_classes: int = 3, seed: int = 0, flips: float = 0.1):
    """Noisy copies of one pattern for each class."""
    rng = np.random.default_rng([seed, n, d])
    patterns = rng.random((n_classes, d)) < 0.5
    y = rng.permutation(np.arange(n) % n_classes)
    return (patterns[y] ^ (rng.random((n, d)) < flips)).astype(float), y


def weights_of(model) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# ---- the layers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("beta", "damping"), [(1.0, 0.0), (1.5, 0.3)])
@pytest.mark.parametrize("tied", [True, False])
def test_before_backpropagation_the_layers_are_mean_field_sweeps(order, beta, damping, tied):
    X, y = labelled()
    rbm = small_rbm(beta=beta, n_iter=10)
    clf = make(rbm=rbm, depth=4, order=order, damping=damping, tied=tied, n_iter=0).fit(X, y)
    pretrained = rbm.set_params(random_state=0).fit(X)
    assert_array_equal(clf.fold().weight.detach(), pretrained.model_.weight.detach())
    v = torch.from_numpy(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MeanFieldWarning)
        swept = mean_field(
            pretrained.model_,
            order,
            beta=beta,
            start=v,
            max_iter=4,
            tolerance=0.0,
            damping=damping,
        )
    hidden = clf.model_.hidden(v).detach()
    assert_allclose(hidden, swept.hidden, rtol=0, atol=1e-13)
    net = unroll(pretrained.model_, 4, order=order, beta=beta, damping=damping, tied=tied)
    assert_array_equal(hidden, net.hidden(v).detach())
    assert_allclose(clf.predict_proba(X), 1 / 3, rtol=1e-14)


def test_the_net_is_the_formula_of_the_docstring():
    X, y = labelled()
    clf = make(depth=3).fit(X, y)
    machine = clf.model_.machines[0]
    W, a, b = (
        p.detach().numpy() for p in (machine.weight, machine.visible_bias, machine.hidden_bias)
    )
    U, d = (p.detach().numpy() for p in (clf.model_.head.weight, clf.model_.head.bias))
    h = sigmoid(b + X @ W)
    for _ in range(2):
        h = sigmoid(b + sigmoid(a + h @ W.T) @ W)
    logits = h @ U.T + d
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert_allclose(clf.predict_proba(X), p, rtol=1e-12)


# ---- the pretraining -----------------------------------------------------------------------------


def test_the_pretraining_is_that_of_the_rbm_alone():
    X, y = labelled()
    clf = make(n_iter=0).fit(X, y)
    alone = small_rbm(random_state=0).fit(X)
    assert_array_equal(clf.fold().weight.detach().T, alone.components_)
    for name in ("epoch", "learning_rate"):
        assert clf.pretraining_history_[name] == alone.history_[name]
    own = make(rbm=small_rbm(random_state=9), n_iter=0).fit(X, y)
    expected = small_rbm(random_state=9).fit(X).components_
    assert_array_equal(own.fold().weight.detach().T, expected, "a seed of its own")
    assert not hasattr(clf.rbm, "components_")


@pytest.mark.parametrize("d", [6, 400])
def test_without_pretraining_the_weights_start_with_the_variance_for_sigmoid_nets(d):
    X, y = labelled(30, d)
    clf = make(pretrain=False, rbm=small_rbm(n_components=300), n_iter=0).fit(X, y)
    W = clf.fold().weight.detach().numpy()
    n = W.size
    assert W.var() == pytest.approx(32 / (d + 300), rel=5 * (2 / n) ** 0.5)
    assert abs(W.mean()) < 5 * (32 / (d + 300) / n) ** 0.5
    means = (X.sum(0) + 1) / 32
    assert_allclose(clf.fold().visible_bias.detach(), np.log(means / (1 - means)), rtol=1e-12)
    assert clf.pretraining_history_ == {}


def test_a_frozen_rbm_is_taken_as_it_is_and_left_as_it_was():
    X, y = labelled()
    rbm = small_rbm(random_state=3, n_iter=5).fit(X)
    before = rbm.components_.copy()
    clf = make(rbm=FrozenEstimator(rbm), n_iter=0).fit(X, y)
    assert_array_equal(clf.fold().weight.detach().T, before)
    clf.set_params(n_iter=3).fit(X, y)
    trained = clf.fold().weight.detach().numpy().T
    assert (trained != before).any()
    assert_array_equal(rbm.components_, before)
    assert_array_equal(rbm.model_.weight.detach().T, before)
    for frozen, error, message in (
        (small_rbm(), NotFittedError, "not fitted"),
        (small_rbm().fit(X[:, :5]), ValueError, "trained on 5 features, but X has 6"),
    ):
        with pytest.raises(error, match=message):
            make(rbm=FrozenEstimator(frozen)).fit(X, y)
    with pytest.raises(ValueError, match="pretrain=False would pass over a trained rbm"):
        make(rbm=FrozenEstimator(rbm), pretrain=False).fit(X, y)


def test_rows_without_labels_take_part_in_the_pretraining_alone():
    X, y = labelled()
    hidden = np.arange(60) % 2 == 0
    clf = make(unlabeled=-1).fit(X, np.where(hidden, -1, y))
    rbm = small_rbm(random_state=0).fit(X)
    labelled_only = make(rbm=FrozenEstimator(rbm)).fit(X[~hidden], y[~hidden])
    assert_array_equal(clf.predict_proba(X), labelled_only.predict_proba(X))
    fewer = make().fit(X[~hidden], y[~hidden])
    assert (clf.predict_proba(X) != fewer.predict_proba(X)).all()
    with pytest.warns(UserWarning, match="30 rows have the label unlabeled=-1, and nothing"):
        make(unlabeled=-1, pretrain=False).fit(X, np.where(hidden, -1, y))


def test_ctrl_c_in_the_pretraining_ends_all_and_leaves_the_old_model(contents, same):
    X, y = labelled()
    clf = make().fit(X, y)
    before = contents(clf) | {"rbm": None}

    def interrupt(trainer):
        raise KeyboardInterrupt

    clf.rbm.callback = interrupt
    with pytest.raises(KeyboardInterrupt):
        clf.fit(X[:, :5], y % 2)
    same(contents(clf) | {"rbm": None}, before)


def test_a_pretraining_that_diverges_says_whose_rate_is_too_high():
    X, y = labelled()
    clf = make(rbm=small_rbm(learning_rate=1e30))
    with pytest.raises(DivergenceError, match=r"^rbm, in the pretraining: .*\(now 1e\+30\)"):
        clf.fit(X, y)
    assert not hasattr(clf, "model_")


# ---- weights in the pretraining ------------------------------------------------------------------


def counts_of(weights) -> list[int]:
    """How often each row is taken."""
    n = len(weights)
    eye = torch.eye(n, dtype=torch.float64)
    rows = LabelledRows(
        as_rows(eye, eye),
        torch.zeros(n, dtype=torch.int64),
        None if weights is None else torch.as_tensor(weights, dtype=torch.float64),
    )
    found = _repeated(rows)
    return found.take(slice(0, len(found))).sum(0).int().tolist()


def test_weights_become_numbers_of_copies():
    assert counts_of([3, 1, 2]) == [3, 1, 2]
    assert counts_of([30, 10, 20]) == [3, 1, 2], "only the ratios matter"
    assert counts_of([0.3, 0.3, 0.3]) == [1, 1, 1]
    assert counts_of([1.5, 0.5, 1.0, 1.0]) == [2, 0, 1, 1]
    assert sum(counts_of([1e6, 1, 1])) == 3, "too many copies are scaled down"
    assert sum(counts_of([1e300, 1e300, 1.0])) == 3
    weights = np.random.default_rng(0).random(500)
    counts = np.array(counts_of(weights))
    assert counts.sum() == 500
    # Every running sum is right to half a row.
    error = np.cumsum(counts) - np.cumsum(weights) * 500 / weights.sum()
    assert np.abs(error).max() <= 0.5 + 1e-9


# ---- the RBM that the net defines ----------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"tied": False}, {"release_after": 1}, {"order": 2}])
@pytest.mark.parametrize("beta", [1.0, 1.5])
def test_the_history_tells_the_thermodynamics_of_the_folded_machine(options, beta):
    X, y = labelled(30)
    clf = make(rbm=small_rbm(beta=beta), depth=3, **options).fit(X, y)
    monitor = RBMMonitor(torch.from_numpy(X), beta=beta, orders=(2,), n_states=20, enumerate=False)
    expected = monitor(clf.fold())
    names = ["weight_norm", "free_energy"] + [
        f"tap2_{name}" for name in ("free_energy", "energy", "entropy", "log_partition")
    ]
    for name in names:
        values = clf.history_[f"rbm_{name}"]
        assert len(values) == 3
        assert values[-1] == pytest.approx(expected[name], rel=1e-9), name
        assert values[0] != values[-1]
    # F = U - S / beta, to the order of the expansion.
    free_energy, energy, entropy = (
        np.array(clf.history_[f"rbm_tap2_{name}"]) for name in ("free_energy", "energy", "entropy")
    )
    assert_allclose(free_energy, energy - entropy / beta, rtol=1e-10)


def test_values_out_of_range_are_taken_where_asked():
    X, y = labelled()
    with pytest.raises(ValueError, match=r"value 3 in column \d, row \d+, outside \[0, 1\]"):
        make().fit(3 * X, y)
    clf = make(validate_range=False).fit(5 * X - 2, y)
    assert np.isfinite(clf.predict_log_proba(5 * X - 2)).all()
    assert np.isfinite(clf.history_["rbm_tap2_entropy"]).all()


# ---- tied, untied, released ----------------------------------------------------------------------


def test_layers_share_or_own_their_weights():
    X, y = labelled()
    assert len(make(depth=3).fit(X, y).model_.machines) == 1
    untied = make(depth=3, tied=False).fit(X, y)
    first, second, third = (m.weight.detach() for m in untied.model_.machines)
    assert (first != second).any()
    assert (second != third).any()
    assert_allclose(untied.fold().weight.detach(), (first + second + third) / 3, rtol=1e-12)


def test_a_released_net_is_tied_until_then():
    X, y = labelled()
    tied = make(depth=3, n_iter=2).fit(X, y)
    released = make(depth=3, n_iter=4, release_after=2).fit(X, y)
    assert released.history_["loss"][:2] == tied.history_["loss"]
    assert released.history_["epoch"] == [1, 2, 3, 4]
    assert (len(tied.model_.machines), len(released.model_.machines)) == (1, 3)
    assert not released.model_.tied
    # Every layer has left the shared weights for its own.
    shared = tied.model_.machines[0].weight.detach()
    assert all((m.weight.detach() != shared).any() for m in released.model_.machines)
    at_once = make(depth=3, release_after=0).fit(X, y)
    assert_allclose(
        at_once.predict_proba(X), make(depth=3, tied=False).fit(X, y).predict_proba(X), rtol=1e-12
    )
    never = make(depth=3, release_after=9).fit(X, y)
    assert_array_equal(never.predict_proba(X), make(depth=3).fit(X, y).predict_proba(X))
    with pytest.raises(ValueError, match="release_after has no effect with tied=False"):
        make(tied=False, release_after=1).fit(X, y)


def test_ctrl_c_before_the_release_keeps_the_tied_net():
    X, y = labelled()

    def interrupt(trainer):
        if trainer.epoch == 1:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted; the model of pass 1 is kept"):
        clf = make(depth=3, release_after=2, n_iter=4, callback=interrupt).fit(X, y)
    assert_array_equal(clf.predict_proba(X), make(depth=3, n_iter=1).fit(X, y).predict_proba(X))


def test_a_callback_that_stops_before_the_release_ends_training():
    X, y = labelled()

    def stop(trainer):
        raise StopTraining

    clf = make(depth=3, release_after=1, n_iter=4, callback=stop).fit(X, y)
    assert clf.n_iter_ == 1
    assert clf.model_.tied


def test_the_learning_rate_falls_across_the_release_as_without_one():
    X, y = labelled()
    options = {"n_iter": 6, "learning_rate_decay": 0.5}
    rates = [
        make(**options, **more).fit(X, y).history_["learning_rate"]
        for more in ({}, {"release_after": 3})
    ]
    assert rates[0] == rates[1]
    cosine = make(n_iter=6, schedule="cosine", release_after=3).fit(X, y)
    assert cosine.history_["learning_rate"] == pytest.approx(
        list(0.025 * (1 + np.cos(np.pi * np.arange(6) / 6)))
    )


def test_early_stopping_counts_from_the_release():
    X, y = labelled(100, flips=0.3)
    clf = make(
        depth=2, release_after=5, n_iter=30, early_stopping=True, n_iter_no_change=2, batch_size=50
    ).fit(X, y)
    assert not clf.model_.tied
    assert 7 <= clf.n_iter_ <= 30
    assert len(clf.history_["accuracy_held_out"]) == clf.n_iter_


# ---- dropout -------------------------------------------------------------------------------------


def test_dropout_is_for_training_alone(monkeypatch):
    X, y = labelled()
    clf = make(dropout=0.5).fit(X, y)
    assert_array_equal(clf.predict_proba(X), clf.predict_proba(X))
    assert not clf.model_.training
    plain = make().fit(X, y)
    assert (clf.predict_proba(X) != plain.predict_proba(X)).any()
    again = make(dropout=0.5).fit(X, y)
    assert_array_equal(again.predict_proba(X), clf.predict_proba(X))
    # The masks go on across the release instead of starting anew.
    masks = []
    update = Trainer.update

    def spy(self, batch):
        masks.append(self.gradient.state()["draws"].clone())
        update(self, batch)

    monkeypatch.setattr(Trainer, "update", spy)
    make(dropout=0.5, release_after=1, n_iter=2, pretrain=False).fit(X, y)
    assert len({mask.numpy().tobytes() for mask in masks}) == len(masks) == 6


def test_an_unfitted_net_cannot_be_folded():
    with pytest.raises(NotFittedError):
        make().fold()

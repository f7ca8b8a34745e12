"""MLPClassifier and MLPRegressor beyond scikit-learn's: depth, norms, weights, files, resuming."""

from __future__ import annotations

import pickle
import re
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import freenergy as fe
from freenergy.training.checkpoint import CheckpointError
from freenergy.training.stopping import StopTraining
from freenergy.training.trainer import DivergenceError

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

DIGITS, NUMBERS = load_digits(return_X_y=True)
DIGITS = DIGITS / 16
IRIS, KINDS = load_iris(return_X_y=True)

BOTH = pytest.mark.parametrize("make", [fe.MLPClassifier, fe.MLPRegressor])


def few(make, **options):
    """A small estimator that trains for a few passes."""
    given = {"hidden_layer_sizes": (8, 6), "batch_size": 50, "max_iter": 4, "random_state": 0}
    return make(**(given | options))


def parameters(estimator):
    return [p.detach().numpy().copy() for p in estimator.model_.state_dict().values()]


def assert_same_bits(a, b):
    for x, y in zip(parameters(a), parameters(b), strict=True):
        np.testing.assert_array_equal(x, y)


# ---- learning ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "activation", ["identity", "sigmoid", "logistic", "tanh", "relu", "leaky_relu", "elu", "selu"]
)
def test_every_activation_learns(activation):
    clf = fe.MLPClassifier((20,), activation, max_iter=60, learning_rate_init=0.01, random_state=0)
    assert clf.fit(IRIS, KINDS).score(IRIS, KINDS) > 0.94


@pytest.mark.parametrize("solver", ["adam", "sgd", "rmsprop", "lbfgs"])
@BOTH
def test_every_solver_learns(make, solver):
    rate = 0.05 if solver == "sgd" else 0.01
    model = make(hidden_layer_sizes=(20,), activation="tanh", batch_size=20)
    model.set_params(solver=solver, learning_rate_init=rate, max_iter=100, random_state=0)
    scaled = make_pipeline(StandardScaler(), model)
    assert scaled.fit(IRIS, KINDS).score(IRIS, KINDS) > 0.93


@pytest.mark.parametrize("normalization", ["batch", "ghost_batch", "max_norm", "self"])
def test_every_normalisation_learns(normalization):
    activation = "selu" if normalization == "self" else "relu"
    clf = fe.MLPClassifier((40, 40), activation, max_iter=60, random_state=0, dropout=0.1)
    clf.set_params(normalization=normalization)
    assert clf.fit(DIGITS, NUMBERS).score(DIGITS, NUMBERS) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "selu"])
def test_32_hidden_layers_train_with_nothing_else_set(activation):
    clf = fe.MLPClassifier((40,) * 32, activation, max_iter=40, random_state=0)
    assert clf.fit(DIGITS, NUMBERS).score(DIGITS, NUMBERS) > 0.93
    # Under Glorot's start, relus have learned little by then.
    if activation == "relu":
        shallow = clone(clf).set_params(init="glorot", max_iter=10).fit(DIGITS, NUMBERS)
        assert shallow.score(DIGITS, NUMBERS) < 0.5


def test_logits_of_saturated_units_have_finite_log_probabilities():
    clf = few(fe.MLPClassifier).fit(IRIS, KINDS)
    logs = clf.predict_log_proba(IRIS * 1e4)
    assert np.isfinite(logs).all()
    assert logs.min() < -750.0
    np.testing.assert_allclose(np.exp(logs).sum(1), 1.0, rtol=1e-12)


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_log_probabilities_of_logistic_outputs_are_finite_too(kind):
    y = KINDS > 0 if kind == "binary" else np.c_[KINDS > 0, KINDS > 1].astype(int)
    clf = few(fe.MLPClassifier).fit(IRIS, y)
    logs, probabilities = clf.predict_log_proba(IRIS * 1e4), clf.predict_proba(IRIS)
    assert np.isfinite(logs).all()
    assert logs.min() < -750.0
    np.testing.assert_allclose(clf.predict_log_proba(IRIS), np.log(probabilities), rtol=1e-9)
    assert probabilities.shape == (150, 2)


def test_poisson_means_are_positive_and_refuse_negative_targets():
    model = few(fe.MLPRegressor, loss="poisson").fit(IRIS, KINDS)
    assert (model.predict(IRIS) > 0).all()
    with pytest.raises(ValueError, match="targets that are not negative, got -1"):
        few(fe.MLPRegressor, loss="poisson").fit(IRIS, KINDS - 1)


# ---- seeds ---------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_one_seed_gives_the_same_bits_and_leaves_torch_alone(make, dropout):
    before = torch.get_rng_state()
    a, b, c = (few(make, dropout=dropout, random_state=s).fit(IRIS, KINDS) for s in (0, 0, 1))
    assert_same_bits(a, b)
    assert not np.array_equal(a.coefs_[0], c.coefs_[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_sparse_rows_and_dense_rows_give_the_same_bits():
    for solver in ("adam", "lbfgs"):
        a, b = (
            few(fe.MLPClassifier, solver=solver).fit(X, KINDS) for X in (IRIS, sp.csc_array(IRIS))
        )
        assert_same_bits(a, b)
        np.testing.assert_array_equal(a.predict_proba(IRIS), a.predict_proba(sp.csr_array(IRIS)))


# ---- weights -------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_a_weight_of_two_counts_a_row_twice_and_zero_not_at_all(make, solver):
    counts = np.random.default_rng(0).integers(0, 3, 150)
    options = {"solver": solver, "batch_size": "auto", "alpha": 0.5}
    a = few(make, **options).fit(IRIS, KINDS, sample_weight=counts)
    b = few(make, **options).fit(IRIS.repeat(counts, 0), KINDS.repeat(counts))
    for x, y in zip(parameters(a), parameters(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-9)


def test_weights_of_classes_are_weights_of_their_rows():
    factors = {0: 1.0, 1: 2.0, 2: 0.5}
    a = few(fe.MLPClassifier, class_weight=factors).fit(IRIS, KINDS)
    b = few(fe.MLPClassifier).fit(IRIS, KINDS, [factors[k] for k in KINDS])
    assert_same_bits(a, b)


def test_balanced_weights_make_classes_of_any_size_count_the_same():
    kept = np.r_[0:50, 50:60, 100:105]
    a = few(fe.MLPClassifier, class_weight="balanced").fit(IRIS[kept], KINDS[kept])
    weights = 65 / 3 / np.array([50, 10, 5])[KINDS[kept]]
    b = few(fe.MLPClassifier).fit(IRIS[kept], KINDS[kept], weights)
    for x, y in zip(parameters(a), parameters(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-12)


# ---- normalisation -------------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", ["batch", "ghost_batch"])
def test_stored_statistics_are_those_of_all_training_rows(normalization):
    clf = few(fe.MLPClassifier, normalization=normalization).fit(IRIS, KINDS)
    fields, first = IRIS @ clf.coefs_[0] + clf.intercepts_[0], clf.model_[1]
    assert isinstance(first, nn.BatchNorm1d)
    np.testing.assert_allclose(first.running_mean, fields.mean(0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(first.running_var, fields.var(0, ddof=1), rtol=1e-10)


def test_with_early_stopping_they_are_those_of_the_rows_learned_from():
    clf = few(fe.MLPClassifier, normalization="batch", early_stopping=True).fit(IRIS, KINDS)
    fields, first = IRIS @ clf.coefs_[0] + clf.intercepts_[0], clf.model_[1]
    # The 135 rows are unknown here, but their mean is near that of all, and not the same.
    gap = np.abs(first.running_mean.numpy() - fields.mean(0)) / fields.std(0)
    assert (gap > 1e-9).all()
    assert (gap < 0.2).all()


def test_a_last_batch_of_one_row_does_no_harm():
    clf = few(fe.MLPClassifier, normalization="batch", batch_size=149).fit(IRIS, KINDS)
    assert np.isfinite(clf.loss_curve_).all()


def test_incoming_weights_of_hidden_units_stay_in_the_ball():
    clf = few(fe.MLPClassifier, normalization="max_norm", max_norm=0.4).fit(IRIS, KINDS)
    for W in clf.coefs_[:-1]:
        assert np.linalg.norm(W, axis=0).max() <= 0.4 * (1 + 1e-12)
    free = few(fe.MLPClassifier).fit(IRIS, KINDS)
    assert np.linalg.norm(free.coefs_[0], axis=0).max() > 0.4


def test_prediction_drops_no_units():
    clf = few(fe.MLPClassifier, dropout=0.5).fit(IRIS, KINDS)
    np.testing.assert_array_equal(clf.predict_proba(IRIS), clf.predict_proba(IRIS))


# ---- stopping ------------------------------------------------------------------------------------


@BOTH
def test_early_stopping_keeps_the_best_pass(make):
    kept = []
    model = few(
        make,
        early_stopping=True,
        max_iter=30,
        learning_rate_init=0.1,
        n_iter_no_change=5,
        callback=lambda trainer: kept.append(
            [p.detach().clone() for p in trainer.model.parameters()]
        ),
    ).fit(IRIS, KINDS)
    best = int(np.argmax(model.validation_scores_))
    assert best < model.n_iter_ - 1
    assert model.best_validation_score_ == max(model.validation_scores_)
    for p, expected in zip(model.model_.parameters(), kept[best], strict=True):
        assert torch.equal(p, expected)
    assert len(model.loss_curve_) == model.n_iter_ == len(kept)


def test_the_maximum_of_passes_is_warned_of():
    with pytest.warns(ConvergenceWarning, match="Maximum iterations"):
        few(fe.MLPClassifier).fit(IRIS, KINDS)


def test_a_callback_may_stop_training():
    def stop(trainer):
        if trainer.epoch == 2:
            raise StopTraining

    assert few(fe.MLPClassifier, callback=stop).fit(IRIS, KINDS).n_iter_ == 2


def test_an_interrupted_training_keeps_the_last_pass():
    def interrupt(trainer):
        if trainer.epoch == 2:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted"):
        clf = few(fe.MLPClassifier, callback=interrupt).fit(IRIS, KINDS)
    two = few(fe.MLPClassifier, max_iter=2).fit(IRIS, KINDS)
    assert_same_bits(clf, two)


def test_divergence_is_told_as_a_value_error_and_keeps_the_last_good_pass():
    model = few(fe.MLPRegressor, activation="identity", solver="sgd", learning_rate_init=1e3)
    with pytest.raises(ValueError, match="non-finite parameter weights") as caught:
        model.fit(IRIS, KINDS)
    assert isinstance(caught.value, DivergenceError)
    assert np.isfinite(model.predict(IRIS)).all()
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("normalization", [None, "max_norm"])
def test_advice_for_divergence_names_parameters_that_there_are(early_stopping, normalization):
    model = few(fe.MLPRegressor, activation="identity", solver="sgd", learning_rate_init=1e30)
    model.set_params(early_stopping=early_stopping, normalization=normalization, batch_size=10)
    if early_stopping:
        with pytest.warns(ConvergenceWarning, match="the best pass is kept") as caught:
            model.fit(IRIS, KINDS)
        words = next(str(w.message) for w in caught if "diverged" in str(w.message))
    else:
        with pytest.raises(fe.estimators.mlp.MLPDivergenceError) as error:
            model.fit(IRIS, KINDS)
        words = str(error.value)
    assert "Lower learning_rate_init (now 1e+30) or momentum (now 0.9)" in words
    assert "learning_rate (" not in words
    assert "weight_constraint" not in words
    assert ("set normalization='max_norm'" in words) == (normalization is None)
    named = set(re.findall(r"\b[a-z]+_[a-z_]+\b", words))
    assert named <= set(model.get_params()) | {"max_norm"}


def test_warnings_stand_at_the_line_that_called(recwarn):
    few(fe.MLPClassifier).fit(IRIS, KINDS)
    few(fe.MLPClassifier, solver="lbfgs").fit(IRIS, KINDS)
    few(fe.MLPClassifier, batch_size=1000).partial_fit(IRIS, KINDS, classes=[0, 1, 2])
    assert [w.filename for w in recwarn] == [__file__] * 3


def test_after_divergence_the_stored_statistics_are_those_of_all_rows():
    def spoil(trainer):
        if trainer.epoch == 3:
            model.learning_rate_init = 1e30

    model = few(fe.MLPRegressor, normalization="batch", solver="sgd", callback=spoil, max_iter=9)
    with pytest.raises(DivergenceError):
        model.fit(IRIS, KINDS)
    fields, first = IRIS @ model.coefs_[0] + model.intercepts_[0], model.model_[1]
    np.testing.assert_allclose(first.running_mean, fields.mean(0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(first.running_var, fields.var(0, ddof=1), rtol=1e-10)


# ---- going on ------------------------------------------------------------------------------------


@BOTH
def test_passes_of_partial_fit_are_those_of_fit(make):
    a = few(make, shuffle=True, max_iter=5).fit(IRIS, KINDS)
    b = few(make, shuffle=True)
    for _ in range(5):
        b.partial_fit(IRIS, KINDS, **({"classes": [0, 1, 2]} if make is fe.MLPClassifier else {}))
    assert_same_bits(a, b)
    assert a.loss_curve_ == b.loss_curve_
    assert a.t_ == b.t_ == 750


@BOTH
@pytest.mark.parametrize("solver", ["adam", "sgd", "rmsprop"])
def test_a_saved_net_goes_on_to_the_same_bits(make, solver, tmp_path):
    options = {"solver": solver, "dropout": 0.2, "normalization": "batch"}
    if solver == "sgd":
        options["learning_rate"] = "invscaling"
    whole = few(make, **options).fit(IRIS, KINDS)
    whole.save(tmp_path / "net.safetensors")
    loaded = make.load(tmp_path / "net.safetensors")
    assert_same_bits(whole, loaded)
    np.testing.assert_array_equal(whole.predict(IRIS), loaded.predict(IRIS))
    for model in (whole, loaded, pickle.loads(pickle.dumps(whole))):
        model.partial_fit(IRIS, KINDS)
    assert_same_bits(whole, loaded)
    for name in ("n_iter_", "t_", "loss_", "loss_curve_", "best_loss_", "out_activation_"):
        assert getattr(whole, name) == getattr(loaded, name), name


@pytest.mark.parametrize("sizes", [np.array([8, 6]), (np.int64(8), 6), range(6, 8)])
def test_sizes_of_any_sequence_are_kept_in_a_file(sizes, tmp_path):
    net = few(fe.MLPClassifier, hidden_layer_sizes=sizes).fit(IRIS, KINDS)
    net.save(tmp_path / "net.safetensors")
    loaded = fe.MLPClassifier.load(tmp_path / "net.safetensors")
    assert loaded.hidden_layer_sizes == tuple(sizes)
    assert_same_bits(net.partial_fit(IRIS, KINDS), loaded.partial_fit(IRIS, KINDS))


def test_the_record_of_passes_costs_partial_fit_nothing():
    net = few(fe.MLPClassifier)
    for _ in range(3):
        net.partial_fit(IRIS, KINDS, classes=[0, 1, 2])
    assert "history_" not in vars(net)
    assert net.history_["loss"] == net.loss_curve_
    assert not hasattr(few(fe.MLPClassifier), "history_")


def test_a_file_keeps_strings_for_classes_and_weights_by_class(tmp_path):
    names = np.array(["setosa", "versicolor", "virginica"])
    clf = few(fe.MLPClassifier, class_weight={"setosa": 2.0, "versicolor": 1.0, "virginica": 1.0})
    clf.fit(IRIS, names[KINDS]).save(tmp_path / "net.safetensors")
    loaded = fe.MLPClassifier.load(tmp_path / "net.safetensors")
    assert loaded.get_params() == clf.get_params()
    np.testing.assert_array_equal(loaded.predict(IRIS), clf.predict(IRIS))
    with pytest.raises(CheckpointError, match="holds no MLPRegressor"):
        fe.MLPRegressor.load(tmp_path / "net.safetensors")


def test_lbfgs_is_saved_too(tmp_path):
    clf = few(fe.MLPClassifier, solver="lbfgs").fit(IRIS, KINDS)
    clf.save(tmp_path / "net.safetensors")
    loaded = fe.MLPClassifier.load(tmp_path / "net.safetensors")
    assert_same_bits(clf, loaded)
    assert (loaded.loss_, loaded.n_iter_) == (clf.loss_, clf.n_iter_)


@BOTH
def test_a_warm_start_goes_on_from_the_weights_there_are(make):
    model = few(make, warm_start=True, max_iter=20).fit(IRIS, KINDS)
    last = model.loss_
    model.set_params(max_iter=1).fit(IRIS, KINDS)
    assert model.loss_ < 1.05 * last
    assert len(model.loss_curve_) == 21
    assert model.n_iter_ == 1


def test_a_warm_start_refuses_another_architecture():
    clf = few(fe.MLPClassifier, warm_start=True).fit(IRIS, KINDS)
    before = parameters(clf)
    with pytest.raises(ValueError, match="hidden_layer_sizes changed since training started"):
        clf.set_params(hidden_layer_sizes=(3,)).fit(IRIS, KINDS)
    for x, y in zip(before, parameters(clf), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_failed_partial_fit_changes_nothing():
    clf = few(fe.MLPClassifier).fit(IRIS, KINDS)
    before, seen = parameters(clf), clf.t_
    with pytest.raises(ValueError, match=r"`y` has classes not in `self.classes_`"):
        clf.partial_fit(IRIS, KINDS + 1)
    with pytest.raises(ValueError, match="solver changed"):
        clf.set_params(solver="sgd").partial_fit(IRIS, KINDS)
    for x, y in zip(before, parameters(clf), strict=True):
        np.testing.assert_array_equal(x, y)
    assert clf.t_ == seen


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "adagrad"}, "solver must be one of"),
        ({"learning_rate": "cyclic"}, "learning_rate must be one of"),
        ({"activation": "softplus"}, "activation must be one of"),
        ({"normalization": "layer"}, "normalization must be one of"),
        ({"normalization": "self"}, "needs activation='selu'"),
        ({"ghost_batch_size": 1}, "ghost_batch_size must be a whole number of at least 2"),
        ({"init": "zero"}, "init must be one of"),
        ({"hidden_layer_sizes": (5, 0)}, "hidden_layer_sizes"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"max_norm": 0.0}, "max_norm must be positive"),
        ({"alpha": -1.0}, "alpha must not be negative"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_iter": 0}, "max_iter"),
        ({"tol": -1.0}, "tol"),
        ({"callback": 3}, "callback"),
        ({"n_iter_no_change": 0}, "n_iter_no_change"),
        ({"validation_fraction": 1.0, "early_stopping": True}, "validation_fraction"),
        ({"validation_fraction": 0, "early_stopping": True}, "hold out validation_fraction=0 of"),
        ({"solver": "lbfgs", "dropout": 0.1}, "lbfgs' minimises one smooth function"),
        ({"device": "nowhere"}, "device"),
    ],
)
@BOTH
def test_impossible_parameters_are_named(make, options, message):
    with pytest.raises(ValueError, match=message):
        few(make, **options).fit(IRIS, KINDS)


def test_class_weight_needs_one_class_per_row():
    y = np.c_[KINDS > 0, KINDS > 1].astype(int)
    with pytest.raises(ValueError, match="class_weight needs one class for each row"):
        few(fe.MLPClassifier, class_weight="balanced").fit(IRIS, y)


@BOTH
def test_nan_is_refused_by_its_column(make):
    X = IRIS.copy()
    X[3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN in column 2, first in row 3"):
        few(make).fit(X, KINDS)


# ---- a cosine ------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["adam", "sgd", "rmsprop"])
def test_a_cosine_takes_the_rate_to_zero_and_makes_every_pass(solver):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), rng.normal(size=40)
    rates = []

    def note(trainer):
        rates.append(trainer.optimizer.param_groups[0]["lr"])

    net = fe.MLPRegressor(
        hidden_layer_sizes=(4,), solver=solver, learning_rate="cosine", max_iter=30, tol=1.0
    )
    net.set_params(learning_rate_init=0.01, batch_size=10, random_state=0, callback=note)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.fit(x, y)
    # The last of four batches of each pass.
    times = np.arange(30) + 0.75
    np.testing.assert_allclose(rates, 0.005 * (1 + np.cos(np.pi * times / 30)), rtol=1e-12)
    assert net.n_iter_ == 30
    with pytest.raises(ValueError, match="partial_fit does not know how many passes"):
        net.partial_fit(x, y)


def test_a_cosine_goes_on_after_a_kill_and_not_to_more_passes(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), rng.normal(size=40)

    def net(folder, **changes):
        parameters = {"max_iter": 6, "learning_rate": "cosine", "random_state": 0}
        return fe.MLPRegressor(
            hidden_layer_sizes=(4,), checkpoint_dir=folder, **parameters | changes
        )

    def interrupt(trainer):
        if trainer.epoch == 3:
            raise KeyboardInterrupt

    whole = net(tmp_path / "a").fit(x, y)
    with pytest.warns(UserWarning, match="interrupted"):
        net(tmp_path / "b", callback=interrupt).fit(x, y)
    resumed = net(tmp_path / "b").fit(x, y)
    np.testing.assert_array_equal(whole.coefs_[0], resumed.coefs_[0])
    with pytest.raises(ValueError, match="max_iter"):
        net(tmp_path / "b", max_iter=9).fit(x, y)

"""The estimator: what it learns, what it tells, and what it refuses without losing its model."""

from __future__ import annotations

import math
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import freenergy as fe
from freenergy.estimators import base
from freenergy.inference import exact
from freenergy.random import RandomStream
from freenergy.training import (
    CheckpointError,
    DivergenceError,
    Trainer,
    TrainingOptions,
    as_rows,
    gradient_estimator,
    load_model,
    save_checkpoint,
)

METHODS = pytest.mark.parametrize("method", ["pcd", "cd", "emf"])
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
SPARSE = [sp.csr_array, sp.csr_matrix, sp.csc_array, sp.coo_array, sp.lil_matrix]
COLUMNS = ["red", "green", "blue", "cyan", "pink", "grey"]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# ---- what is learned -----------------------------------------------------------------------------


@METHODS
@DTYPES
def test_attributes_have_the_documented_shapes_and_the_datas_precision(
    binary, small, method, dtype
):
    X = binary().astype(dtype)
    rbm = small(method=method, n_chains=7).fit(X)
    shapes = {"components_": (4, 6), "intercept_hidden_": (4,), "intercept_visible_": (6,)}
    if method != "cd":
        shapes["h_samples_"] = (7, 4)
    for name, shape in shapes.items():
        assert getattr(rbm, name).shape == shape
        assert getattr(rbm, name).dtype == dtype
    assert hasattr(rbm, "h_samples_") == (method != "cd")
    assert rbm.n_features_in_ == 6
    assert not hasattr(rbm, "feature_names_in_")
    assert rbm.transform(X).dtype == rbm.free_energy(X).dtype == dtype
    assert rbm.score_samples(X).dtype == rbm.sample(3).dtype == dtype
    assert rbm.model_.weight.shape == (6, 4)
    assert_array_equal(rbm.components_.T, rbm.model_.weight.detach())


@METHODS
def test_history_has_a_number_for_each_pass(binary, small, method, capsys):
    rbm = small(method=method, learning_rate=0.3, learning_rate_decay=0.5).fit(binary())
    assert list(rbm.history_) == ["epoch", "updates", "learning_rate", "seconds"]
    assert rbm.history_["epoch"] == [1, 2, 3]
    assert rbm.history_["learning_rate"] == pytest.approx([0.3, 0.2, 0.15])
    assert small(n_iter=0).fit(binary()).history_ == {}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_a_model_starts_at_the_means_of_the_data(binary, small, beta):
    X = binary(100)
    rbm = small(n_iter=0, beta=beta).fit(X)
    p = (X.sum(0) + 1) / 102
    assert_allclose(rbm.intercept_visible_, np.log(p / (1 - p)) / beta, rtol=1e-12)
    assert_array_equal(rbm.intercept_hidden_, 0)
    assert 0 < np.abs(rbm.components_).max() < 0.05


@pytest.mark.parametrize("options", [{}, {"beta": 0.5}, {"beta": 2.0}, {"centered": True}])
@METHODS
def test_fitting_raises_the_likelihood(binary, small, method, options):
    X = binary(300)
    beta = options.get("beta", 1.0)

    def log_likelihood(rbm) -> float:
        return -beta * float(rbm.free_energy(X).mean()) - exact(rbm.model_, beta).log_partition

    start = small(n_iter=0, method=method, **options).fit(X)
    rate = 0.1 / beta**2
    fitted = small(n_iter=40, learning_rate=rate, n_steps=2, method=method, **options).fit(X)
    assert log_likelihood(fitted) > log_likelihood(start) + 0.1


@METHODS
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_partial_fit_is_one_update_by_hand(binary, small, method, momentum):
    X = binary(25)
    options = {"method": method, "momentum": momentum, "l2": 0.01, "l1": 0.01, "batch_size": 5}
    rbm = small(learning_rate=0.2, n_iter=0, **options).fit(X)
    # The same start by the same draws, followed in NumPy.
    twin = small(learning_rate=0.2, n_iter=0, **options).fit(X)
    gradient, model = twin._trainer.gradient, twin.model_
    velocity = 0.0
    for part in (X, X[:7], X[7:]):
        rbm.partial_fit(part)
        gradient.compute(torch.from_numpy(part.copy()))
        weight = model.weight.detach().numpy()
        slope = model.weight.grad.numpy() + 0.01 * np.sign(weight) + 0.01 * weight
        velocity = momentum * velocity + slope
        if momentum == 0.0:
            model.visible_bias.detach().numpy()[:] -= 0.2 * model.visible_bias.grad.numpy()
            model.hidden_bias.detach().numpy()[:] -= 0.2 * model.hidden_bias.grad.numpy()
        weight -= 0.2 * velocity
        assert_allclose(rbm.components_.T, weight, atol=1e-14)
        if momentum:
            break
        assert_allclose(rbm.intercept_visible_, model.visible_bias.detach(), atol=1e-14)


def test_partial_fit_starts_a_model_and_goes_on_with_one(binary, small, same, contents):
    X = binary(10)
    one, other = small(n_iter=1), small(n_iter=1)
    one.partial_fit(X)
    other.fit(X)
    for name in ("components_", "intercept_hidden_", "intercept_visible_", "h_samples_"):
        assert_array_equal(getattr(one, name), getattr(other, name))
    one.partial_fit(X)
    other.partial_fit(X)
    assert_array_equal(one.components_, other.components_)
    before = one.components_.copy()
    one.set_params(learning_rate=1e-9).partial_fit(X)
    assert np.abs(one.components_ - before).max() < 1e-8


def test_a_second_fit_starts_anew(binary, small, contents, same):
    X = binary()
    again = small(method="cd").fit(binary(30, 5))
    again.set_params(method="pcd").fit(X)
    same(contents(again), contents(small(method="pcd").fit(X)))
    again.set_params(method="cd").fit(X)
    assert not hasattr(again, "h_samples_"), "chains of another method's fit are not its own"


def test_one_seed_gives_the_same_bits(binary, small, contents, same):
    X = binary()
    first = small(random_state=7).fit(X)
    same(contents(small(random_state=7).fit(X)), contents(first))
    same(contents(first.fit(X)), contents(small(random_state=7).fit(X)))
    same(contents(small(random_state=np.int64(7)).fit(X))["components_"], first.components_)
    assert not (small(random_state=8).fit(X).components_ == first.components_).any()


def test_a_random_state_is_used_up_and_repeatable(binary, small):
    X = binary()
    host = np.random.RandomState(7)
    first, second = (small(random_state=host).fit(X).components_ for _ in range(2))
    assert not (first == second).any()
    again = small(random_state=np.random.RandomState(7)).fit(X).components_
    assert_array_equal(again, first)


def test_no_random_state_honours_numpys_global_seed(binary, small):
    X, found = binary(), []
    for seed in (3, 3, 4):
        np.random.seed(seed)  # noqa: NPY002
        rbm = small(random_state=None).fit(X)
        found.append((rbm.components_, rbm.score_samples(X)))
    assert_array_equal(found[0][0], found[1][0])
    assert_array_equal(found[0][1], found[1][1])
    assert not (found[0][0] == found[2][0]).any()


@METHODS
@pytest.mark.parametrize("make", SPARSE)
@DTYPES
def test_sparse_data_give_what_dense_data_give(binary, small, method, make, dtype):
    X = binary().astype(dtype)
    X[3] *= 0.5  # grey
    dense, sparse = small(method=method).fit(X), small(method=method).fit(make(X))
    assert_allclose(sparse.components_, dense.components_, rtol=1e-5, atol=1e-7)
    assert sparse.components_.dtype == dtype
    for name in ("transform", "free_energy", "score_samples", "gibbs", "partial_fit"):
        found, expected = getattr(sparse, name)(make(X)), getattr(dense, name)(X)
        if name == "partial_fit":
            found, expected = found.components_, expected.components_
        assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_rows_are_answered_in_blocks_as_in_one(binary, small, monkeypatch):
    X = binary(57)
    rbm = small().fit(X)
    names = ("transform", "free_energy")
    whole = [getattr(rbm, name)(X) for name in names] + [rbm.score_samples(X, method="exact")]
    monkeypatch.setattr(base, "_BLOCK_ELEMENTS", 60)
    for Z in (X, sp.csr_array(X)):
        parts = [getattr(rbm, name)(Z) for name in names] + [rbm.score_samples(Z, method="exact")]
        for part, expected in zip(parts, whole, strict=True):
            assert_allclose(part, expected, rtol=1e-14)
        assert rbm.gibbs(Z).shape == X.shape


def test_the_data_are_left_as_they_were(binary, small):
    X = binary()
    before = X.copy()
    for method in ("pcd", "cd", "emf"):
        rbm = small(method=method, persistent=False, batch_size=len(X)).fit(X).partial_fit(X)
        rbm.sample(start=X)
        rbm.gibbs(X)
        rbm.score_samples(X)
    assert_array_equal(X, before)


def test_arrays_in_reverse_and_read_only_ones_are_taken_in_silence(binary, small):
    X = binary()
    locked = X.copy()
    locked.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_array_equal(small().fit(locked).components_, small().fit(X).components_)
        small().fit(X[::-1, ::-1]).transform(X[:, ::-1])


# ---- dataframes ----------------------------------------------------------------------------------


def test_a_column_of_text_is_named():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"old": [0.0, 1.0, 1.0], "town": [1, None, "Jena"], "code": list("abc")})
    with pytest.raises(ValueError, match="column 'town' has 'Jena' in row 2, which is no number"):
        fe.BernoulliRBM(2).fit(frame)
    with pytest.raises(ValueError, match="column 'code' has 'a' in row 0"):
        fe.BernoulliRBM(2).fit(frame[["old", "code"]])
    numbers = pd.DataFrame({"one": pd.Series(["1", 0, 1], dtype=object), "two": [1, 0, 1]})
    fe.BernoulliRBM(2, n_iter=1).fit(numbers)


def test_pixels_in_memory_are_refused_with_the_cure(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 4), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"uint8 are divided by 255 in freenergy.data.stream\(X\)"):
        fe.BernoulliRBM(2).fit(pixels)
    with pytest.raises(ValueError, match=r"or binarise it$"):
        fe.BernoulliRBM(2).fit(pixels - 0.5)
    np.save(tmp_path / "u8.npy", pixels)
    mapped = np.load(tmp_path / "u8.npy", mmap_mode="r")
    models = [
        fe.BernoulliRBM(2, n_iter=2, random_state=0).fit(what)
        for what in (fe.data.stream(pixels), mapped, str(tmp_path / "u8.npy"))
    ]
    for other in models[1:]:
        np.testing.assert_array_equal(models[0].components_, other.components_)


def test_columns_of_a_dataframe_are_known_by_name(binary, small):
    frame = pd.DataFrame(binary(), columns=COLUMNS)
    rbm = small().fit(frame)
    assert list(rbm.feature_names_in_) == COLUMNS
    assert_array_equal(rbm.transform(frame), small().fit(binary()).transform(binary()))
    assert list(rbm.get_feature_names_out()) == [f"bernoullirbm{i}" for i in range(4)]
    out = rbm.set_output(transform="pandas").transform(frame)
    assert isinstance(out, pd.DataFrame)
    assert list(out.columns) == list(rbm.get_feature_names_out())
    assert list(out.index) == list(frame.index)
    for call in (rbm.transform, rbm.partial_fit, rbm.gibbs, rbm.free_energy, rbm.score_samples):
        with pytest.raises(ValueError, match="feature names should match"):
            call(frame[COLUMNS[::-1]])
    small().fit(frame).fit(binary(30, 5))  # names are forgotten with the old model


@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN"), (2.0, "the value 2"), (-0.1, "-0.1")])
def test_the_message_names_the_column_of_a_dataframe(binary, small, value, what):
    frame = pd.DataFrame(binary(), columns=COLUMNS)
    frame.loc[3, "blue"] = value
    with pytest.raises(ValueError, match=rf"{what} in column 'blue' \(index 2\)"):
        small().fit(frame)


# ---- what is told of rows ------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
@DTYPES
def test_hidden_probabilities_and_free_energies_at_the_models_temperature(
    binary, small, table, beta, dtype
):
    X = binary().astype(dtype)
    rbm = small(beta=beta, n_iter=20).fit(X)
    W, a, b = rbm.components_, rbm.intercept_visible_, rbm.intercept_hidden_
    tolerance = 1e-4 if dtype is np.float32 else 1e-11
    assert_allclose(rbm.transform(X), sigmoid(beta * (X @ W.T + b)), rtol=tolerance)
    reference = table(rbm.model_, beta)
    index = {tuple(v): i for i, v in enumerate(reference.v)}
    rows = [index[tuple(v)] for v in X.astype(float)]
    assert_allclose(rbm.free_energy(X), reference.free_energy[rows], rtol=tolerance, atol=tolerance)
    assert a.shape == (6,)
    # ln p(v) = -beta F(v) - ln Z
    log_p = -beta * rbm.free_energy(X).astype(float) - reference.log_partition
    assert_allclose(log_p, reference.log_marginal[rows], atol=20 * tolerance)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_scores_by_one_unit_average_to_the_exact_ones(binary, small, table, beta):
    X = np.unique(binary(), axis=0)[:8]
    rbm = small(beta=beta, n_iter=30).fit(binary())
    found = rbm.score_samples(X, method="exact")
    reference = table(rbm.model_, beta)
    log_p = {tuple(v): p for v, p in zip(reference.v, reference.log_marginal, strict=True)}
    expected = []
    for v in X:
        total = 0.0
        for i in range(6):
            flipped = v.copy()
            flipped[i] = 1 - flipped[i]
            total += log_p[tuple(v)] - np.logaddexp(log_p[tuple(v)], log_p[tuple(flipped)])
        expected.append(total)
    assert_allclose(found, expected, atol=1e-12)
    draws = []
    for seed in range(400):
        rbm.random_state = seed
        draws.append(rbm.score_samples(X))
    draws = np.array(draws)
    assert draws.std(0).min() > 0.01
    error = draws.std(0) / 20
    assert (np.abs(draws.mean(0) - expected) < 4.5 * error).all()


def test_scores_are_repeatable_for_an_int_and_for_equal_rows(binary, small):
    X = np.repeat(binary(3), 2, axis=0)
    rbm = small().fit(binary())
    assert_array_equal(rbm.score_samples(X), rbm.score_samples(X))
    assert_array_equal(rbm.score_samples(X)[::2], rbm.score_samples(X)[1::2])
    with pytest.raises(ValueError, match="method must be 'stochastic' or 'exact', got 'all'"):
        rbm.score_samples(X, method="all")


def test_a_gibbs_step_gives_booleans_of_the_conditional_distribution(binary, small):
    rbm = small(n_iter=20, beta=1.5).fit(binary())
    v = np.tile(binary(1), (20_000, 1))
    stepped = rbm.gibbs(v)
    assert (stepped.dtype, stepped.shape) == (bool, v.shape)
    # <v_i> after v -> h -> v, by a sum over the hidden states.
    p = rbm.transform(v[:1])[0]
    states = np.array(np.meshgrid(*[[0, 1]] * 4)).reshape(4, -1).T
    weight = np.prod(np.where(states == 1, p, 1 - p), axis=1)
    mean = weight @ sigmoid(1.5 * (states @ rbm.components_ + rbm.intercept_visible_))
    assert_allclose(stepped.mean(0), mean, atol=4.5 * 0.5 / 20_000**0.5)
    assert not (rbm.gibbs(v) == stepped).all()


# ---- samples -------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.7, 1.5])
def test_samples_follow_the_model(binary, small, beta):
    rbm = small(n_iter=20, beta=beta).fit(binary())
    samples = rbm.sample(10_000, n_steps=60, random_state=1)
    assert set(np.unique(samples)) == {0.0, 1.0}
    assert samples.shape == (10_000, 6)
    reference = exact(rbm.model_, beta)
    assert_allclose(samples.mean(0), reference.visible, atol=4.5 * 0.5 / 100)
    pairs = rbm.transform(samples).T @ samples / 10_000
    assert_allclose(pairs, reference.correlation.T, atol=4.5 * 0.5 / 100)


def test_samples_are_seeded_and_go_on_without_a_seed(binary, small):
    rbm = small().fit(binary())
    first = rbm.sample(50, n_steps=5, random_state=3)
    assert_array_equal(rbm.sample(50, n_steps=5, random_state=3), first)
    host = np.random.RandomState(3)
    drawn = [rbm.sample(50, n_steps=5, random_state=host) for _ in range(2)]
    assert (drawn[0] != drawn[1]).any()
    drawn = [rbm.sample(50, n_steps=5) for _ in range(2)]
    assert (drawn[0] != drawn[1]).any()
    repeated = small().fit(binary()).sample(50, n_steps=5)
    assert_array_equal(repeated, drawn[0])


@pytest.mark.parametrize("make", [np.asarray, sp.csr_array, lambda x: pd.DataFrame(x)])
def test_samples_may_start_at_rows(binary, small, make):
    rbm = small().fit(binary())
    start = make(binary(7))
    samples = rbm.sample(start=start, n_steps=2, random_state=0)
    assert samples.shape == (7, 6)
    assert set(np.unique(samples)) <= {0.0, 1.0}
    assert_array_equal(rbm.sample(start=start, n_steps=0), binary(7))


def test_numbers_of_samples(binary, small):
    rbm = small().fit(binary())
    assert rbm.sample().shape == (1, 6)
    assert rbm.sample(np.int64(3), n_steps=1).shape == (3, 6)
    with pytest.raises(ValueError, match="at least one chain"):
        rbm.sample(0)
    with pytest.raises(ValueError, match="n_steps must not be negative"):
        rbm.sample(3, n_steps=-1)
    with pytest.raises(TypeError):
        rbm.sample(2.5)


# ---- what is refused -----------------------------------------------------------------------------


def bad_inputs(X) -> dict[str, tuple[object, str]]:
    def at(value, row=3, column=2):
        Z = X.copy()
        Z[row, column] = value
        return Z

    return {
        "NaN": (at(np.nan), "NaN in column 2, first in row 3"),
        "infinity": (at(np.inf), "infinity in column 2"),
        "negative": (at(-0.1), r"value -0.1 in column 2, row 3, outside \[0, 1\]"),
        "two": (at(2), "value 2 in column 2, row 3"),
        "sparse NaN": (sp.csr_array(at(np.nan)), "NaN in column 2, first in row 3"),
        "sparse negative": (sp.csc_array(at(-0.1)), "value -0.1 in column 2, row 3"),
        "empty": (X[:0], "minimum of 1 is required"),
        "no columns": (X[:, :0], r"(0 feature|minimum of 1 is required)"),
        "one dimension": (X[0], "Expected 2D array"),
        "three dimensions": (X[None], "dim 3"),
        "text": (np.full(X.shape, "a"), "convert string"),
        "complex": (X + 1j, "Complex data"),
    }


@pytest.mark.parametrize("action", ["fit", "partial_fit"])
@pytest.mark.parametrize("kind", bad_inputs(np.zeros((5, 4))))
def test_bad_input_is_refused_and_leaves_the_model(binary, small, contents, same, kind, action):
    X = binary()
    bad, message = bad_inputs(X)[kind]
    rbm = small().fit(X)
    before, answers = contents(rbm), rbm.transform(X)
    with pytest.raises(ValueError, match=message):
        getattr(rbm, action)(bad)
    same(contents(rbm), before)
    assert_array_equal(rbm.transform(X), answers)
    same(contents(rbm.partial_fit(X)), contents(small().fit(X).partial_fit(X)))
    fresh = small()
    with pytest.raises(ValueError, match=message):
        getattr(fresh, action)(bad)
    assert vars(fresh) == vars(small())
    with pytest.raises(NotFittedError):
        fresh.transform(X)


def test_input_of_another_width_is_refused_and_leaves_the_model(binary, small, contents, same):
    rbm = small().fit(binary())
    before = contents(rbm)
    other = binary(10, 5)
    calls = [rbm.partial_fit, rbm.transform, rbm.gibbs, rbm.free_energy, rbm.score_samples]
    for call in [*calls, lambda x: rbm.sample(start=x)]:
        with pytest.raises(ValueError, match="5 features, but BernoulliRBM is expecting 6"):
            call(other)
    same(contents(rbm), before)
    assert rbm.fit(other).n_features_in_ == 5


@pytest.mark.parametrize("kind", ["NaN", "infinity", "sparse NaN", "empty", "text"])
def test_questions_about_bad_rows_are_refused(binary, small, contents, same, kind):
    bad, message = bad_inputs(binary())[kind]
    rbm = small().fit(binary())
    before = contents(rbm)
    calls = [rbm.transform, rbm.gibbs, rbm.free_energy, rbm.score_samples]
    for call in [*calls, lambda x: rbm.sample(start=x)]:
        with pytest.raises(ValueError, match=message):
            call(bad)
    same(contents(rbm), before)


def test_values_out_of_range_are_taken_where_asked(binary, small):
    X = binary() * 3 - 1
    rbm = small(validate_range=False).fit(X)
    assert np.isfinite(rbm.components_).all()
    with pytest.raises(ValueError, match="NaN in column 0"):
        rbm.fit(np.where(np.arange(6) == 0, np.nan, X))


IMPOSSIBLE = {
    "n_components": [0, -1, 2.5, "many", None, True],
    "learning_rate": [0.0, -0.1, math.nan, math.inf, "fast", None],
    "batch_size": [0, 10.0, "ten", None],
    "n_iter": [-1, 1.5, "ten", None],
    "random_state": [-1, 1.5, "seed", 2**32, True],
    "method": ["PCD", None, 3],
    "n_steps": [0, 1.0],
    "n_chains": [0, "all"],
    "mean_field_order": [0, 4, 2.0],
    "beta": [0.0, -1.0, math.nan, "hot"],
    "momentum": [-0.1, 1.0, "high"],
    "learning_rate_decay": [-1.0, math.nan],
    "l1": [-1.0, None],
    "l2": [-1.0, math.inf],
    "weight_constraint": ["l3", 2],
    "max_norm": [1.0],  # without a constraint
    "damping": [1.0, -0.1],
    "sparsity_target": [0.0, 0.1],  # without a cost
    "sparsity_cost": [-1.0, 0.1],  # without a target
    "device": ["tpu?", "nowhere:1"],
}


@pytest.mark.parametrize("action", ["fit", "partial_fit"])
@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in IMPOSSIBLE.items() for value in values]
)
def test_impossible_parameters_are_named_and_leave_the_model(
    binary, small, contents, same, name, value, action
):
    X = binary()
    rbm = small().fit(X)
    if action == "partial_fit" and name in ("n_components", "random_state", "device"):
        rbm = small()  # these only matter at the start
    fitted = hasattr(rbm, "model_")
    good = getattr(rbm, name)
    before = contents(rbm) if fitted else None
    rbm.set_params(**{name: value})
    with pytest.raises(ValueError, match=rf"^{name} "):
        getattr(rbm, action)(X)
    rbm.set_params(**{name: good})
    if fitted:
        same(contents(rbm), before)
    else:
        assert vars(rbm) == vars(small())


def test_nothing_is_answered_before_a_fit(binary, small, tmp_path):
    X, rbm = binary(), small()
    for call in (rbm.transform, rbm.gibbs, rbm.free_energy, rbm.score_samples):
        with pytest.raises(NotFittedError):
            call(X)
    for call in (rbm.sample, rbm.get_feature_names_out, lambda: rbm.save(tmp_path / "x")):
        with pytest.raises(NotFittedError):
            call()


# ---- failures on the way -------------------------------------------------------------------------


@METHODS
def test_a_fit_that_diverges_keeps_the_last_good_model(binary, small, method, monkeypatch):
    X = binary()
    options = {"method": method, "n_iter": 5}
    update, calls = Trainer.update, []

    def diverge_in_the_third_pass(self, batch):
        calls.append(batch)
        update(self, batch)
        if len(calls) == 15:
            self.model.hidden_bias.data[1] = math.nan

    monkeypatch.setattr(Trainer, "update", diverge_in_the_third_pass)
    rbm = small(**options)
    with pytest.raises(DivergenceError, match=r"in epoch 3; .*learning_rate \(now 0\.1\)"):
        rbm.fit(X)
    monkeypatch.undo()
    good = small(method=method, n_iter=2).fit(X)
    assert_array_equal(rbm.components_, good.components_)
    assert_array_equal(rbm.transform(X), good.transform(X))
    assert rbm.history_["epoch"] == [1, 2]
    assert_array_equal(rbm.partial_fit(X).components_, good.partial_fit(X).components_)


@METHODS
@pytest.mark.parametrize("rate", [1e30, 1e300])
@DTYPES
def test_a_learning_rate_beyond_all_bounds_diverges(binary, small, method, rate, dtype):
    rbm = small(method=method, learning_rate=rate)
    with pytest.raises(DivergenceError, match=r"epoch 1; .*learning_rate \(now 1e\+30"):
        rbm.fit(binary().astype(dtype))
    assert np.isfinite(rbm.transform(binary())).all()


@METHODS
def test_an_update_that_diverges_is_undone(binary, small, contents, same, method):
    X = binary().astype(np.float32)
    rbm = small(method=method, momentum=0.5).fit(X)
    before = contents(rbm)
    rbm.set_params(learning_rate=1e300)
    with pytest.raises(DivergenceError, match=r"learning_rate \(now 1e\+300\)"):
        rbm.partial_fit(X)
    rbm.set_params(learning_rate=0.1)
    same(contents(rbm), before)
    fresh = small(method=method, learning_rate=1e300)
    with pytest.raises(DivergenceError):
        fresh.partial_fit(X)
    assert vars(fresh) == vars(small(method=method, learning_rate=1e300))


@METHODS
def test_ctrl_c_ends_a_fit_with_the_last_complete_pass(binary, small, method, monkeypatch):
    X = binary()
    update, calls = Trainer.update, []

    def interrupt_in_the_third_pass(self, batch):
        calls.append(batch)
        update(self, batch)
        if len(calls) == 15:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "update", interrupt_in_the_third_pass)
    rbm = small(method=method, n_iter=5)
    with pytest.warns(UserWarning, match="interrupted; the model of pass 2 is kept"):
        assert rbm.fit(X) is rbm
    monkeypatch.undo()
    good = small(method=method, n_iter=2).fit(X)
    assert_array_equal(rbm.components_, good.components_)
    assert_array_equal(rbm.partial_fit(X).components_, good.partial_fit(X).components_)


def test_ctrl_c_in_an_update_undoes_it(binary, small, contents, same, monkeypatch):
    X = binary()
    rbm = small(momentum=0.5).fit(X)
    before = contents(rbm)
    update = Trainer.update

    def interrupt(self, batch):
        update(self, batch)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        rbm.partial_fit(X)
    same(contents(rbm), before)


def test_verbose_prints_scikit_learns_line_and_changes_nothing(
    binary, small, contents, same, capsys
):
    X = binary(1200, 20)
    loud, quiet = small(verbose=1).fit(X), small(verbose=0).fit(X)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for i, line in enumerate(lines, 1):
        pattern = (
            rf"\[BernoulliRBM\] Iteration {i}, pseudo-likelihood = (-\d+\.\d\d), time = \d+\.\d\ds"
        )
        score = re.fullmatch(pattern, line)
        assert score
        assert float(score[1]) == round(loud.history_["pseudo_likelihood"][i - 1], 2)
    assert loud.history_["pseudo_likelihood"][-1] == pytest.approx(
        quiet.score_samples(X, method="exact").mean(), abs=1.0
    )
    assert "pseudo_likelihood" not in quiet.history_
    assert_array_equal(loud.components_, quiet.components_)
    assert_array_equal(loud.sample(5, n_steps=3), quiet.sample(5, n_steps=3))
    loud.verbose = 0
    same(contents(loud)["state"], contents(quiet)["state"])


# ---- saving --------------------------------------------------------------------------------------


@METHODS
@DTYPES
@pytest.mark.parametrize("seed", [5, None, "RandomState"])
def test_a_saved_estimator_goes_on_to_the_same_bits(
    binary, small, contents, same, tmp_path, method, dtype, seed
):
    X = pd.DataFrame(binary().astype(dtype), columns=COLUMNS)
    random_state = np.random.RandomState(5) if seed == "RandomState" else seed
    rbm = small(method=method, momentum=0.5, centered=True, beta=1.5, random_state=random_state)
    rbm.set_params(n_components=np.int64(4), l2=np.float32(0.01)).fit(X)
    rbm.save(tmp_path / "rbm.safetensors")
    loaded = fe.BernoulliRBM.load(tmp_path / "rbm.safetensors")
    if seed == "RandomState":
        assert loaded.random_state is None
        loaded.random_state = rbm.random_state
    same(contents(loaded), contents(rbm))
    assert list(loaded.feature_names_in_) == COLUMNS
    assert_array_equal(loaded.transform(X), rbm.transform(X))
    for _ in range(2):
        rbm.partial_fit(X)
        loaded.partial_fit(X)
    if seed != "RandomState":
        same(contents(loaded), contents(rbm))
    assert_array_equal(loaded.components_, rbm.components_)
    assert_array_equal(loaded.sample(4, n_steps=5), rbm.sample(4, n_steps=5))


def test_a_saved_estimator_is_also_a_model_file(binary, small, tmp_path):
    rbm = small().fit(binary())
    rbm.save(str(tmp_path / "folder" / "rbm.safetensors"))
    model = load_model(tmp_path / "folder" / "rbm.safetensors")
    assert bool((model.weight == rbm.model_.weight).all())
    loaded = fe.BernoulliRBM.load(tmp_path / "folder" / "rbm.safetensors")
    assert loaded.get_params() == rbm.get_params()
    assert not hasattr(loaded, "feature_names_in_")


def test_damaged_and_foreign_files_are_refused_by_name(binary, small, tmp_path):
    path = tmp_path / "rbm.safetensors"
    small().fit(binary()).save(path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(50):
        altered = bytearray(content)
        altered[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        for damaged in (bytes(altered), content[: rng.integers(len(content))]):
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=r"rbm\.safetensors"):
                fe.BernoulliRBM.load(path)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        fe.BernoulliRBM.load(tmp_path / "missing")
    save_checkpoint(path, {"x": torch.ones(1)}, {"estimator": {"class": "Other"}})
    message = r"rbm\.safetensors holds no BernoulliRBM, but Other: open it with Other\.load$"
    with pytest.raises(CheckpointError, match=message):
        fe.BernoulliRBM.load(path)
    save_checkpoint(path, {"model.weight": torch.ones(1, 1)}, {"model": {}, "options": {}})
    message = r"holds no BernoulliRBM, but the model of a run .*training\.load_model\('.*rbm.saf"
    with pytest.raises(CheckpointError, match=message):
        fe.BernoulliRBM.load(path)
    save_checkpoint(path, {"x": torch.ones(1)}, {})
    with pytest.raises(CheckpointError, match=r"rbm\.safetensors holds no BernoulliRBM"):
        fe.BernoulliRBM.load(path)


def test_a_callback_that_fails_leaves_the_estimator_as_it_was(binary, small):
    def fail(_trainer):
        raise OSError("no space left")

    X = binary()
    with pytest.raises(OSError, match="no space left"):
        (rbm := small(callback=fail)).fit(X)
    with pytest.raises(NotFittedError):
        rbm.transform(X)
    before = (rbm := small().fit(X)).transform(X)
    with pytest.raises(OSError, match="no space left"):
        rbm.set_params(callback=fail).fit(X[:, :2])
    assert_array_equal(rbm.transform(X), before)


@pytest.mark.parametrize("seed", [0, np.random.RandomState(0), None], ids=str)
def test_no_row_is_both_learned_from_and_held_out(small, seed):
    parts = small(validation_fraction=0.2, random_state=seed)._held_out(50)
    assert [len(part) for part in parts] == [40, 10]
    assert_array_equal(torch.cat(parts).sort().values, torch.arange(50))


def test_a_failed_save_leaves_the_old_file(binary, small, tmp_path, monkeypatch):
    path = tmp_path / "rbm.safetensors"
    rbm = small().fit(binary())
    rbm.save(path)
    before = path.read_bytes()

    def fail(*_args):
        raise OSError("no space left")

    monkeypatch.setattr("freenergy.files.os.replace", fail)
    with pytest.raises(OSError, match="no space left"):
        rbm.partial_fit(binary()).save(path)
    assert path.read_bytes() == before


# ---- one model under both faces ------------------------------------------------------------------


@METHODS
def test_the_estimator_is_the_trainer_with_another_face(binary, small, method):
    X = binary(55)
    rbm = small(method=method, n_iter=3, momentum=0.5, centered=True).fit(X)
    rows = as_rows(X, torch.empty(0, dtype=torch.float64))
    model = fe.models.RBM(6, 4, dtype=torch.float64)
    random = RandomStream(0)
    fe.training.initialize(model, rows, random)
    options = TrainingOptions(
        method=method, n_epochs=3, batch_size=10, learning_rate=0.1, momentum=0.5, centered=True
    )
    order = RandomStream(np.random.SeedSequence([0, 1]))
    Trainer(model, options, random, order=order).fit(rows)
    assert_array_equal(rbm.components_.T, model.weight.detach())
    kind = type(gradient_estimator(model, options, random))
    assert type(rbm._trainer.gradient) is kind


def test_devices_are_checked(binary, small):
    assert small(device="auto").fit(binary()).model_.weight.device.type in ("cpu", "cuda")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device 'cuda' was asked for, but torch finds no GPU"):
            small(device="cuda").fit(binary())


def test_products_of_fewer_bits_need_single_precision(binary, small):
    x = binary()
    with pytest.raises(ValueError, match="precision='bf16' is for models in float32"):
        small(precision="bf16").fit(x)
    found = small(precision="bf16").fit(x.astype(np.float32))
    plain = small().fit(x.astype(np.float32))
    assert found.components_.dtype == np.float32
    assert 0 < np.abs(found.components_ - plain.components_).max() < 0.1
    with pytest.raises(ValueError, match="precision must be one of"):
        small(precision="half").fit(x)


def test_another_precision_is_no_way_to_go_on(binary, small):
    x = binary().astype(np.float32)
    rbm = small().partial_fit(x)
    with pytest.raises(ValueError, match="precision changed since training started"):
        rbm.set_params(precision="bf16").partial_fit(x)


def test_the_precision_is_stored_with_the_estimator(binary, small, tmp_path):
    rbm = small(precision="bf16").fit(binary().astype(np.float32))
    rbm.save(tmp_path / "rbm.safetensors")
    other = fe.BernoulliRBM.load(tmp_path / "rbm.safetensors")
    assert (other.precision, other._trainer.options.precision) == ("bf16", "bf16")
    assert clone(other).precision == "bf16"

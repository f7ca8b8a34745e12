"""The estimator: scikit-learn's conventions, likelihoods with intervals, files, what it refuses."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from freenergy.estimators.variational_autoencoder import VariationalAutoencoder
from freenergy.training.checkpoint import CheckpointError
from freenergy.training.trainer import DivergenceError

LATENTS = pytest.mark.parametrize("latent", ["gaussian", "bernoulli"])
LIKELIHOODS = pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
COLUMNS = ["red", "green", "blue", "cyan", "pink", "grey"]


def small(**parameters) -> VariationalAutoencoder:
    """A quick estimator."""
    defaults = {"n_components": 2, "hidden_layer_sizes": (5,), "n_iter": 3, "random_state": 0}
    return VariationalAutoencoder(**{**defaults, **parameters})


def weights(vae: VariationalAutoencoder) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in vae.model_.parameters()])


@parametrize_with_checks(
    [
        # The checks feed values far outside [0, 1], which fit refuses by default.
        VariationalAutoencoder(3, hidden_layer_sizes=(5,), n_iter=2, validate_range=False),
        VariationalAutoencoder(
            3, hidden_layer_sizes=(), n_iter=2, latent="bernoulli", likelihood="gaussian"
        ),
    ]
)
def test_common_checks(estimator, check):
    check(estimator)


# ---- what is learned and told --------------------------------------------------------------------


@LATENTS
@LIKELIHOODS
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_have_the_documented_shapes_and_the_datas_precision(
    binary, latent, likelihood, dtype
):
    X = binary().astype(dtype)
    vae = small(latent=latent, likelihood=likelihood).fit(X)
    codes = vae.transform(X)
    assert codes.shape == (60, 2)
    assert vae.inverse_transform(codes).shape == vae.sample(60).shape == (60, 6)
    for result in (codes, vae.inverse_transform(codes), vae.sample(3), vae.free_energy(X)):
        assert result.dtype == dtype
    assert vae.score_samples(X).shape == vae.free_energy(X).shape == (60,)
    assert vae.score(X) == pytest.approx(vae.score_samples(X).mean(), rel=1e-6)
    assert hasattr(vae, "noise_variance_") == (likelihood == "gaussian")
    assert list(vae.get_feature_names_out()) == [
        "variationalautoencoder0",
        "variationalautoencoder1",
    ]
    if likelihood == "bernoulli":
        assert set(np.unique(vae.sample(50))) <= {0.0, 1.0}
    if latent == "bernoulli":
        assert ((codes >= 0) & (codes <= 1)).all()


def test_transform_is_the_posterior_mean_and_inverse_transform_the_decoders():
    X = np.random.default_rng(0).integers(0, 2, (20, 6)).astype(float)
    vae = small(latent="bernoulli", hidden_layer_sizes=()).fit(X)
    encoder, decoder = vae.model_.encoder[0], vae.model_.decoder[0]
    W, b = encoder.weight.detach().numpy(), encoder.bias.detach().numpy()
    codes = expit(X @ W.T + b)
    assert_allclose(vae.transform(X), codes, rtol=1e-12)
    V, a = decoder.weight.detach().numpy(), decoder.bias.detach().numpy()
    assert_allclose(vae.inverse_transform(codes), expit(codes @ V.T + a), rtol=1e-12)


def test_history_has_the_parts_of_every_pass(binary, capsys):
    vae = small(validation_fraction=0.2, verbose=1).fit(binary())
    assert vae.history_["epoch"] == [1, 2, 3]
    for suffix in ("", "_held_out"):
        free_energy, energy, entropy = (
            np.array(vae.history_[name + suffix]) for name in ("free_energy", "energy", "entropy")
        )
        assert_allclose(free_energy, energy - entropy, rtol=1e-12)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("[VariationalAutoencoder] Iteration 1, free energy = ")
    assert "free_energy_held_out" not in small().fit(binary()).history_


@LATENTS
def test_training_lowers_the_free_energy_and_the_likelihood_lies_below_it(latent):
    X = (load_digits().data[:500] > 7).astype(float)
    options = {"latent": latent, "n_components": 6, "hidden_layer_sizes": (40,), "batch_size": 50}
    start = small(n_iter=0, **options).fit(X)
    vae = small(n_iter=15, learning_rate=0.01, **options).fit(X)
    assert vae.free_energy(X).mean() < start.free_energy(X).mean() - 2
    assert vae.score(X) > -vae.free_energy(X).mean()
    found = vae.log_likelihood(X[:100])
    assert found.lower < found.mean < found.upper
    assert found.mean == pytest.approx(vae.score_samples(X[:100], n_draws=1000).mean(), abs=0.3)
    assert found.n_draws == 1000


def test_the_likelihood_of_bernoulli_latents_is_the_sum_over_their_states(binary):
    X = binary()
    vae = small(latent="bernoulli", n_iter=30, learning_rate=0.02).fit(X)
    rows = torch.from_numpy(X)
    with torch.no_grad():
        energy = vae.model_.energy(rows, vae.model_.latent_states()[:, None])
    exact = torch.logsumexp(-energy, 0).numpy()
    found = vae.log_likelihood(X, n_draws=4000)
    assert found.trusted
    assert found.lower < exact.mean() < found.upper
    assert_allclose(vae.score_samples(X, n_draws=4000), exact, atol=0.1)


def test_scores_are_the_same_for_a_row_wherever_it_stands(binary):
    X = binary()
    vae = small().fit(X)
    for method in (vae.score_samples, vae.free_energy):
        assert_allclose(method(X)[20:30], method(X[20:30]), rtol=1e-12)
        assert_array_equal(method(X), method(X))
        assert not np.array_equal(method(X), method(X, random_state=1))


def test_samples_go_on_or_start_at_a_seed(binary):
    vae = small().fit(binary())
    assert_array_equal(vae.sample(20, random_state=3), vae.sample(20, random_state=3))
    assert not np.array_equal(vae.sample(20), vae.sample(20))


# ---- seeds, streams, files -----------------------------------------------------------------------


@LATENTS
def test_one_seed_gives_the_same_bits_and_leaves_the_global_streams_alone(binary, latent):
    X = binary()
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one, other = (small(latent=latent).fit(X) for _ in range(2))
    assert_array_equal(weights(one), weights(other))
    assert_array_equal(one.sample(5), other.sample(5))
    assert not np.array_equal(weights(one), weights(small(random_state=1, latent=latent).fit(X)))
    assert bool((torch.get_rng_state() == before[0]).all())
    assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


@LATENTS
@LIKELIHOODS
def test_a_file_or_a_pickle_goes_on_to_the_same_bits(binary, latent, likelihood, tmp_path):
    X = pd.DataFrame(binary(), columns=COLUMNS)
    options = {"latent": latent, "likelihood": likelihood, "learn_noise": likelihood == "gaussian"}
    vae = small(noise_variance=0.3, **options).fit(X)
    vae.save(tmp_path / "vae.safetensors")
    loaded = VariationalAutoencoder.load(tmp_path / "vae.safetensors")
    copies = (loaded, pickle.loads(pickle.dumps(vae)))
    assert loaded.get_params() == vae.get_params()
    assert list(loaded.feature_names_in_) == COLUMNS
    assert loaded.history_ == vae.history_
    expected = vae.partial_fit(X[:20]).sample(5)
    for other in copies:
        assert_array_equal(other.partial_fit(X[:20]).sample(5), expected)
        assert_array_equal(weights(other), weights(vae))
        assert_array_equal(other.transform(X), vae.transform(X))


def test_a_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        VariationalAutoencoder.load(tmp_path / "nothing")


def test_partial_fit_starts_a_model_and_goes_on_with_one(binary):
    X = binary(10)
    one, other = small(n_iter=1).partial_fit(X), small(n_iter=1).fit(X)
    assert_array_equal(weights(one), weights(other))
    one.partial_fit(X)
    assert not np.array_equal(weights(one), weights(other))


@pytest.mark.parametrize(
    "change",
    [{"n_components": 3}, {"hidden_layer_sizes": (4,)}, {"latent": "bernoulli"}, {"l2": 1}],
)
def test_what_training_cannot_take_over_is_refused_by_name(binary, change):
    vae = small().fit(binary())
    before = weights(vae)
    vae.set_params(**change)
    with pytest.raises(ValueError, match=f"{next(iter(change))} changed since training started"):
        vae.partial_fit(binary())
    assert_array_equal(weights(vae), before)


# ---- input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", [sp.csr_array, sp.csc_matrix, sp.coo_array])
def test_sparse_rows_give_the_same_as_dense_ones(binary, container):
    X = binary()
    dense, sparse = small().fit(X), small().fit(container(X))
    assert_allclose(weights(sparse), weights(dense), rtol=1e-9, atol=1e-12)
    assert_allclose(dense.transform(container(X)), dense.transform(X))
    assert dense.log_likelihood(container(X)).mean == dense.log_likelihood(X).mean


def test_bad_values_are_named_and_leave_the_estimator_as_it_was(binary):
    X = pd.DataFrame(binary(), columns=COLUMNS)
    vae = small().fit(X)
    before = weights(vae)
    for value, message in ((np.nan, "NaN in column 'blue'"), (7.0, "value 7 in column 'blue'")):
        bad = X.copy()
        bad.iloc[3, 2] = value
        with pytest.raises(ValueError, match=message):
            vae.fit(bad)
    assert_array_equal(weights(vae), before)
    grey = X.copy()
    grey.iloc[3, 2] = 0.5
    assert np.isfinite(vae.score_samples(grey)).all()
    with pytest.raises(ValueError, match=r"column 2 of row 3 is 0.5: only zeros and ones"):
        vae.log_likelihood(grey)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_components": 0}, "n_components must be a whole number"),
        ({"hidden_layer_sizes": (5, 0)}, "each of hidden_layer_sizes must be a whole number"),
        ({"hidden_layer_sizes": 5}, r"a sequence of numbers of units such as \(256,\), got 5"),
        ({"hidden_layer_sizes": "55"}, "a sequence of numbers of units"),
        ({"latent": "spin"}, "latent must be one of"),
        ({"likelihood": "poisson"}, "likelihood must be one of"),
        ({"n_iter": -1}, "n_iter must be a whole number"),
        ({"learning_rate": 0}, "learning_rate must be positive"),
        ({"noise_variance": -1.0}, "noise_variance must be positive"),
        ({"noise_variance": 1e-20}, "noise_variance must lie between"),
        ({"n_draws": 0}, "n_draws must be a whole number"),
        ({"n_draws": 1, "latent": "bernoulli"}, "n_draws must be at least 2"),
        ({"optimizer": "lbfgs"}, "optimizer must be one of"),
        ({"start": "pca"}, "start must be 'random' or a freenergy.models.RBM"),
        ({"monitors": print}, "monitors must be a sequence"),
        ({"validation_fraction": 1.0}, "leaves no rows"),
        ({"device": "abacus"}, "not known to torch"),
        ({"random_state": -1}, "random_state must be a whole number"),
    ],
)
def test_impossible_parameters_are_refused_by_name(binary, parameters, message):
    vae = small(**parameters)
    with pytest.raises(ValueError, match=message):
        vae.fit(binary())
    with pytest.raises(NotFittedError):
        vae.transform(binary())


def test_a_callback_that_fails_leaves_the_estimator_as_it_was(binary):
    def fail(_trainer):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        (vae := small(callback=fail)).fit(binary())
    with pytest.raises(NotFittedError):
        vae.transform(binary())
    X = binary()
    before = (vae := small().fit(X)).transform(X)
    with pytest.raises(OSError, match="no space left"):
        vae.set_params(callback=fail).fit(X[:, :2])
    assert_array_equal(vae.transform(X), before)


def test_latent_states_need_the_models_width(binary):
    vae = small().fit(binary())
    with pytest.raises(ValueError, match="latent states must have 2 columns, got 3"):
        vae.inverse_transform(np.zeros((1, 3)))


@LATENTS
@LIKELIHOODS
def test_one_row_and_constant_columns_are_learned(latent, likelihood):
    for X in (np.ones((1, 4)), np.zeros((30, 4)), np.eye(1, 4)):
        vae = small(latent=latent, likelihood=likelihood).fit(X)
        assert np.isfinite(weights(vae)).all()
        assert np.isfinite(vae.score_samples(X)).all()
        assert np.isfinite(vae.log_likelihood(X, n_draws=20).mean)


@LATENTS
def test_values_of_ten_thousand_stay_finite(latent):
    X = np.random.default_rng(0).choice([-1e4, 1e4], (40, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae = small(latent=latent, likelihood="gaussian", noise_variance=1e8).fit(X)
    assert np.isfinite(vae.score_samples(X)).all()
    assert vae.inverse_transform(vae.transform(X)).shape == (40, 4)


def test_a_rate_far_too_high_ends_with_the_last_good_model(binary):
    vae = small(optimizer="sgd", learning_rate=1e30, likelihood="gaussian")
    with pytest.raises(DivergenceError, match="diverged in epoch 1"):
        vae.fit(binary())
    assert np.isfinite(weights(vae)).all()


# ---- at home among other estimators --------------------------------------------------------------


def test_grid_search_finds_the_latents_that_explain_the_rows(binary):
    """Three patterns with a flip in ten: one latent is too few, three are enough."""
    X = binary(240)
    search = GridSearchCV(
        small(latent="bernoulli", n_iter=25, learning_rate=0.02, hidden_layer_sizes=()),
        {"n_components": [1, 4]},
        cv=2,
    ).fit(X)
    assert search.best_params_ == {"n_components": 4}
    assert search.score(X) > X.shape[1] * -np.log(2)


def test_codes_help_a_classifier():
    X, y = load_digits(return_X_y=True)
    vae = VariationalAutoencoder(10, n_iter=15, batch_size=50, random_state=0)
    vae.set_output(transform="pandas")
    pipeline = make_pipeline(vae, LogisticRegression(max_iter=1000))
    assert pipeline.fit(X[:800] / 16, y[:800]).score(X[800:1200] / 16, y[800:1200]) > 0.7


# ---- unravelled from an RBM ----------------------------------------------------------------------


def unravelled(machine, **parameters) -> VariationalAutoencoder:
    options = {"latent": "bernoulli", "hidden_layer_sizes": (), "n_components": 3}
    return small(start=machine, **{**options, **parameters})


def test_a_model_starts_at_an_rbm(rbm, binary, tmp_path):
    X, machine = binary(), rbm(6, 3)
    vae = unravelled(machine, n_iter=0).fit(X)
    assert_allclose(vae.transform(X), machine.hidden_mean(torch.from_numpy(X)).detach())
    assert unravelled(machine).fit(X.astype(np.float32)).transform(X).dtype == np.float32
    trained = clone(vae).set_params(n_iter=10, learning_rate=0.01).fit(X)
    assert trained.free_energy(X).mean() < vae.free_energy(X).mean()
    assert_allclose(vae.transform(X), machine.hidden_mean(torch.from_numpy(X)).detach())
    trained.save(tmp_path / "vae.safetensors")
    loaded = VariationalAutoencoder.load(tmp_path / "vae.safetensors")
    assert loaded.start == "random"
    assert isinstance(trained.start, type(machine))
    assert_array_equal(loaded.transform(X), trained.transform(X))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"latent": "gaussian"}, "set latent='bernoulli', likelihood='bernoulli'"),
        ({"hidden_layer_sizes": (3,)}, "hidden_layer_sizes="),
        ({"n_components": 2}, "6 visible and 3 hidden units, but X has 6 columns and n_components"),
    ],
)
def test_an_rbm_unravels_to_one_shape_only(rbm, binary, parameters, message):
    with pytest.raises(ValueError, match=message):
        unravelled(rbm(6, 3), **parameters).fit(binary())

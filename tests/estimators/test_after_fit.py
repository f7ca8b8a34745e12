"""What an estimator does after it was fitted: changed parameters, files, blocks of rows."""

import pickle

import numpy as np
import pytest
import torch

from freenergy import BernoulliRBM
from freenergy.estimators import base


@pytest.fixture
def X():
    return np.random.default_rng(0).integers(0, 2, (40, 6)).astype(float)


@pytest.fixture
def rbm(X):
    return BernoulliRBM(3, n_iter=2, random_state=0).fit(X)


@pytest.mark.parametrize(
    "change",
    [{"l2": 50.0}, {"momentum": 0.9}, {"centered": True}, {"method": "emf"}, {"beta": 2.0}],
)
def test_what_training_cannot_take_over_is_refused_by_name(rbm, X, change):
    before = rbm.components_.copy()
    rbm.set_params(**change)
    with pytest.raises(ValueError, match=f"^{next(iter(change))} changed since training started"):
        rbm.partial_fit(X)
    np.testing.assert_array_equal(rbm.components_, before)


def test_the_learning_rate_may_change_between_updates(rbm, X):
    before = rbm.components_.copy()
    rbm.set_params(learning_rate=1e-9).partial_fit(X)
    np.testing.assert_allclose(rbm.components_, before, atol=1e-8)


@pytest.mark.parametrize("change", [{"method": "emf"}, {"batch_size": 50}, {"n_chains": 3}])
def test_a_file_holds_what_was_trained_whatever_was_set_since(rbm, X, change, tmp_path):
    expected = rbm.transform(X)
    rbm.set_params(**change).save(tmp_path / "rbm.safetensors")
    loaded = BernoulliRBM.load(tmp_path / "rbm.safetensors")
    np.testing.assert_array_equal(loaded.transform(X), expected)


def test_a_fitted_model_keeps_its_temperature(rbm, X):
    expected = rbm.transform(X), rbm.free_energy(X)
    rbm.set_params(beta=2.0)
    np.testing.assert_array_equal(rbm.transform(X), expected[0])
    np.testing.assert_array_equal(rbm.free_energy(X), expected[1])


def test_a_model_is_loaded_where_it_is_wanted(X, tmp_path):
    rbm = BernoulliRBM(3, n_iter=1, device=torch.device("cpu")).fit(X)
    rbm.save(tmp_path / "rbm.safetensors")
    assert BernoulliRBM.load(tmp_path / "rbm.safetensors", device="auto").device == "auto"


def test_the_constraint_holds_after_every_update(X):
    rbm = BernoulliRBM(3, weight_constraint="l2", max_norm=0.05, random_state=0)
    for _ in range(20):
        rbm.partial_fit(X)
    assert np.linalg.norm(rbm.components_, axis=1).max() <= 0.05 * (1 + 1e-12)


def test_the_score_of_a_row_is_the_same_in_every_block(rbm, X, monkeypatch):
    rows = np.repeat(X[:1], 30, axis=0)
    monkeypatch.setattr(base, "_BLOCK_ELEMENTS", 42)
    assert len(set(rbm.score_samples(rows))) == 1


def test_a_pickle_does_not_carry_the_data():
    X = np.random.default_rng(0).integers(0, 2, (5000, 20)).astype(float)
    rbm = BernoulliRBM(2, random_state=0).partial_fit(X)
    assert len(pickle.dumps(rbm)) < 50_000


def test_fit_leaves_the_global_streams_alone(X):
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    BernoulliRBM(3, n_iter=1, random_state=0).fit(X)
    assert bool((torch.get_rng_state() == before[0]).all())
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002

"""A started training goes on with the model it has: parameters that ask for another are refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.frozen import FrozenEstimator

import freenergy as fe

RNG = np.random.default_rng(0)
X = RNG.integers(0, 2, (40, 6)).astype(float)
Y = np.arange(40) % 2

QUICK = {"random_state": 0, "n_iter": 2}


def machine(**parameters):
    return fe.BernoulliRBM(**{"n_components": 5, "n_iter": 1, "random_state": 0, **parameters})


def unrolled(**parameters):
    return fe.UnrolledRBMClassifier(**{"rbm": machine(), "depth": 2, **QUICK, **parameters})


def noisy(**parameters):
    parameters = {"likelihood": "gaussian", "hidden_layer_sizes": (4,), **parameters}
    return fe.VariationalAutoencoder(2, **QUICK, **parameters)


def perceptron(make, **parameters):
    return make(hidden_layer_sizes=(4, 3), random_state=0, max_iter=2, **parameters)


def weights(estimator) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in estimator.model_.parameters()])


def fitted(estimator):
    return estimator.fit(X, Y)


CHANGES = [
    (machine, {"n_components": 4}),
    (lambda: fe.RBMClassifier(5, **QUICK), {"n_components": 4}),
    (lambda: fe.RBMClassifier(5, **QUICK), {"hidden": "spin"}),
    (unrolled, {"depth": 3}),
    (unrolled, {"order": 2}),
    (unrolled, {"tied": False}),
    (unrolled, {"damping": 0.5}),
    (unrolled, {"dropout": 0.5}),
    (unrolled, {"input_dropout": 0.5}),
    (unrolled, {"rbm__n_components": 4}),
    (unrolled, {"rbm__beta": 2.0}),
    (lambda: unrolled(tied=False), {"tied": True}),
    (noisy, {"n_components": 3}),
    (noisy, {"hidden_layer_sizes": (5,)}),
    (noisy, {"latent": "bernoulli"}),
    (noisy, {"likelihood": "bernoulli"}),
    (noisy, {"activation": "relu"}),
    (noisy, {"noise_variance": 0.5}),
    (noisy, {"learn_noise": True}),
    (lambda: noisy(learn_noise=True), {"noise_variance": 0.5}),
    (lambda: perceptron(fe.MLPClassifier), {"hidden_layer_sizes": (4, 4)}),
    (lambda: perceptron(fe.MLPRegressor), {"activation": "tanh"}),
    (lambda: perceptron(fe.MLPRegressor), {"dropout": 0.5}),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("make", "change"), CHANGES)
def test_another_model_is_refused_by_name_and_nothing_changes(make, change):
    estimator = fitted(make())
    before, name = weights(estimator), next(iter(change))
    old = {name: estimator.get_params()[name]}
    estimator.set_params(**change)
    message = f"^{name} changed since training started; set the old value again, or call fit"
    with pytest.raises(ValueError, match=message):
        estimator.partial_fit(X, Y)
    assert_array_equal(weights(estimator), before)
    estimator.set_params(**old).partial_fit(X, Y)
    assert not np.array_equal(weights(estimator), before)


@pytest.mark.parametrize(("make", "change"), [c for c in CHANGES if c[0] in (unrolled, noisy)])
def test_what_came_from_a_file_or_a_pickle_refuses_the_same(make, change, tmp_path):
    estimator = fitted(make())
    estimator.save(tmp_path / "estimator.safetensors")
    loaded = type(estimator).load(tmp_path / "estimator.safetensors")
    for copy in (loaded, pickle.loads(pickle.dumps(estimator))):
        copy.partial_fit(X, Y)
        with pytest.raises(ValueError, match=f"^{next(iter(change))} changed since"):
            copy.set_params(**change).partial_fit(X, Y)


def test_all_changes_are_named_at_once():
    estimator = fitted(unrolled()).set_params(l2=1.0, depth=3, damping=0.5)
    with pytest.raises(ValueError, match=r"^l2, depth, damping changed since training started"):
        estimator.partial_fit(X, Y)


def test_layers_that_were_released_go_on_as_they_are():
    estimator = fitted(unrolled(release_after=1))
    assert not estimator.model_.tied
    before = weights(estimator)
    assert not np.array_equal(weights(estimator.partial_fit(X, Y)), before)


def test_a_machine_that_was_trained_before_says_its_own_size():
    estimator = fitted(unrolled(rbm=FrozenEstimator(machine(beta=1.5).fit(X))))
    estimator.rbm.estimator.set_params(n_components=9)
    before = weights(estimator)
    assert not np.array_equal(weights(estimator.partial_fit(X, Y)), before)
    estimator.set_params(rbm=FrozenEstimator(machine(n_components=4, beta=1.5).fit(X)))
    with pytest.raises(ValueError, match=r"^rbm__n_components changed since training started"):
        estimator.partial_fit(X, Y)


def test_the_default_machine_is_no_change():
    rbm = fe.BernoulliRBM(256, n_iter=0, random_state=0)
    estimator = fitted(unrolled(rbm=rbm)).set_params(rbm=None)
    estimator.partial_fit(X, Y)


def test_an_unravelled_machine_has_no_noise_that_could_change():
    rbm = machine().fit(X)
    estimator = fe.VariationalAutoencoder(
        5,
        hidden_layer_sizes=(),
        latent="bernoulli",
        noise_variance=0.3,
        start=rbm.model_,
        **QUICK,
    ).fit(X)
    estimator.partial_fit(X)

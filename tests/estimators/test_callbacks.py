"""What a callback hears of a training, and that an instrument's hooks see its forward passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_iris
from torch import nn

import freenergy as fe
from freenergy.training import Trainer

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

IRIS, KINDS = load_iris(return_X_y=True)
DIGITS, NUMBERS = load_digits(return_X_y=True)
DIGITS, NUMBERS = DIGITS[:200] / 16, NUMBERS[:200]
BOTH = pytest.mark.parametrize("make", [fe.MLPClassifier, fe.MLPRegressor])


class Listener:
    """Notes what it is told, and hooks itself to the model at the start."""

    def __init__(self):
        self.heard, self.models, self.rows = [], [], 0

    def on_train_begin(self, trainer):
        assert isinstance(trainer, Trainer)
        self.heard.append(("begin", trainer.epoch))
        self.models.append(trainer.model)
        first = next(m for m in trainer.model.modules() if isinstance(m, nn.Linear))
        first.register_forward_hook(self.count)

    def count(self, module, inputs, output):
        if torch.is_grad_enabled():
            self.rows += len(output)

    def __call__(self, trainer):
        self.heard.append(("pass", trainer.epoch))


def few(make, **options):
    given = {"hidden_layer_sizes": (5,), "batch_size": 50, "max_iter": 2, "random_state": 0}
    return make(**(given | options))


@BOTH
@pytest.mark.parametrize("options", [{}, {"dropout": 0.1}, {"normalization": "batch"}])
def test_it_hears_of_the_start_once_and_its_hooks_see_every_row(make, options):
    listener = Listener()
    model = few(make, callback=listener, **options).fit(IRIS, KINDS)
    assert listener.heard == [("begin", 0), ("pass", 1), ("pass", 2)]
    assert listener.models == [model.model_]
    assert listener.rows == 300


@BOTH
def test_lbfgs_tells_of_its_start_and_goes_through_the_module(make):
    listener = Listener()
    model = few(make, callback=listener, solver="lbfgs").fit(IRIS, KINDS)
    assert listener.heard == [("begin", 0)]
    assert listener.models == [model.model_]
    assert listener.rows >= 150 * model.n_iter_


@BOTH
def test_partial_fit_tells_of_its_first_call(make):
    listener, classes = Listener(), {"classes": [0, 1, 2]} if make is fe.MLPClassifier else {}
    model = few(make, callback=listener)
    for _ in range(3):
        model.partial_fit(IRIS, KINDS, **classes)
    assert listener.heard == [("begin", 0), ("pass", 1), ("pass", 2), ("pass", 3)]
    other = Listener()
    model.set_params(callback=other).partial_fit(IRIS, KINDS)
    assert other.heard == [("begin", 3), ("pass", 4)]


@BOTH
def test_partial_fit_of_a_fitted_or_loaded_net(make, tmp_path):
    listener = Listener()
    model = few(make, callback=listener).fit(IRIS, KINDS).partial_fit(IRIS, KINDS)
    assert [what for what, _ in listener.heard] == ["begin", "pass", "pass", "pass"]
    model.save(tmp_path / "net.safetensors")
    loaded, other = make.load(tmp_path / "net.safetensors"), Listener()
    loaded.set_params(callback=other).partial_fit(IRIS, KINDS).partial_fit(IRIS, KINDS)
    assert [what for what, _ in other.heard] == ["begin", "pass", "pass"]


@BOTH
def test_a_warm_start_is_a_start(make):
    listener = Listener()
    model = few(make, callback=listener, warm_start=True).fit(IRIS, KINDS).fit(IRIS, KINDS)
    assert [what for what, _ in listener.heard] == ["begin", "pass", "pass"] * 2
    assert listener.models[-1] is model.model_


def test_a_resumed_fit_tells_of_its_start_with_the_state_of_the_folder(tmp_path):
    few(fe.MLPClassifier, checkpoint_dir=tmp_path).fit(IRIS, KINDS)
    listener = Listener()
    few(fe.MLPClassifier, checkpoint_dir=tmp_path, max_iter=3, callback=listener).fit(IRIS, KINDS)
    assert listener.heard == [("begin", 2), ("pass", 3)]


@pytest.mark.parametrize(
    ("estimator", "n_starts"),
    [
        (fe.BernoulliRBM(4, n_iter=2), 1),
        (fe.RBMClassifier(4, n_iter=2), 1),
        (fe.VariationalAutoencoder(2, n_iter=2), 1),
        (fe.UnrolledRBMClassifier(fe.BernoulliRBM(4, n_iter=1), n_iter=2), 1),
        # The layers that are released are another module, which must be watched anew.
        (fe.UnrolledRBMClassifier(fe.BernoulliRBM(4, n_iter=1), n_iter=2, release_after=1), 2),
    ],
)
def test_the_other_estimators_tell_of_their_start_too(estimator, n_starts):
    heard = []

    class Begins:
        def on_train_begin(self, trainer):
            heard.append(("begin", trainer.epoch))

        def __call__(self, trainer):
            heard.append(("pass", trainer.epoch))

    estimator.set_params(callback=Begins(), random_state=0).fit(DIGITS, NUMBERS)
    assert heard[0] == ("begin", 0)
    assert [h for h in heard if h[0] == "pass"] == [("pass", 1), ("pass", 2)]
    assert len(heard) == 2 + n_starts


@BOTH
def test_a_listener_changes_nothing(make):
    watched, alone = (
        few(make, callback=c, dropout=0.2).fit(IRIS, KINDS) for c in (Listener(), None)
    )
    for one, other in zip(watched.coefs_, alone.coefs_, strict=True):
        np.testing.assert_array_equal(one, other)


@BOTH
def test_an_error_at_the_start_leaves_the_estimator_as_it_was(make):
    class Fails(Listener):
        def on_train_begin(self, trainer):
            raise RuntimeError("no")

    model = few(make, callback=Fails())
    with pytest.raises(RuntimeError, match="no"):
        model.fit(IRIS, KINDS)
    assert not hasattr(model, "model_")

"""Where models live: ``device="auto"`` is a GPU where torch finds one, for every estimator."""

from __future__ import annotations

import sys

import pytest
import torch

import freenergy as fe
from freenergy.cli.options import checked_device
from freenergy.estimators.base import as_device

ESTIMATORS = [
    fe.BernoulliRBM,
    fe.MLPClassifier,
    fe.MLPRegressor,
    fe.RBMClassifier,
    fe.UnrolledRBMClassifier,
    fe.VariationalAutoencoder,
]


@pytest.fixture(params=[False, True], ids=["without a GPU", "with a GPU"])
def gpu(request, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param)
    return request.param


@pytest.mark.parametrize("find", [as_device, lambda name: torch.device(checked_device(name))])
def test_auto_is_a_gpu_where_there_is_one(gpu, find):
    assert find("auto").type == ("cuda" if gpu else "cpu")
    assert find("cpu").type == "cpu"
    if gpu:
        assert find("cuda").type == "cuda"
    else:
        with pytest.raises(ValueError, match="torch finds no GPU"):
            find("cuda")


@pytest.mark.filterwarnings("ignore")  # One pass is not enough for anything.
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda kind: kind.__name__)
def test_every_estimator_takes_the_device_that_auto_names(estimator, binary, monkeypatch):
    asked = []

    def found(name):
        asked.append(name)
        return torch.device("cpu")

    for name, module in list(sys.modules.items()):
        if name.startswith("freenergy.estimators") and hasattr(module, "as_device"):
            monkeypatch.setattr(module, "as_device", found)
    passes = "max_iter" if "max_iter" in estimator().get_params() else "n_iter"
    x = binary()
    estimator(device="auto", random_state=0, **{passes: 1}).fit(x, (x[:, 0] > 0.5).astype(int))
    assert set(asked) == {"auto"}

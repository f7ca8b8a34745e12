"""Fits that are killed, interrupted or called again end in the bits of one that was left alone."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.frozen import FrozenEstimator

import freenergy as fe
from freenergy.distributed import launch
from freenergy.training import CheckpointError, StopTraining, load_checkpoint, save_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

DIGITS, NUMBERS = load_digits(return_X_y=True)
DIGITS, NUMBERS = DIGITS[:300] / 16, NUMBERS[:300]
IRIS, KINDS = load_iris(return_X_y=True)
SEED = {"random_state": 0}
MLP = {"hidden_layer_sizes": (8, 6), "batch_size": 50, "learning_rate_init": 0.01, **SEED}
RBM = {"n_components": 6, "batch_size": 50, "learning_rate": 0.1, **SEED}
EVERYTHING = {
    "normalization": "batch",
    "dropout": 0.1,
    "early_stopping": True,
    "n_iter_no_change": 3,
    "max_iter": 25,
}

# Of each kind of estimator, one with all that a training can remember.
ESTIMATORS = {
    "rbm": fe.BernoulliRBM(n_iter=8, momentum=0.5, validation_fraction=0.1, verbose=1, **RBM),
    "rbm, tempering": fe.BernoulliRBM(n_iter=5, method="ptt", optimizer="adam", **RBM),
    "rbm, mean field": fe.BernoulliRBM(n_iter=6, method="emf", learning_rate_decay=0.1, **RBM),
    "rbm, cosine": fe.BernoulliRBM(n_iter=6, schedule="cosine", **RBM),
    "classifier": fe.RBMClassifier(
        n_iter=15, objective="hybrid", early_stopping=True, n_iter_no_change=2, **RBM
    ),
    "unrolled": fe.UnrolledRBMClassifier(
        fe.BernoulliRBM(n_components=6, n_iter=4),
        n_iter=8,
        early_stopping=True,
        n_iter_no_change=2,
        dropout=0.1,
        release_after=3,
        **SEED,
    ),
    "autoencoder": fe.VariationalAutoencoder(
        3, hidden_layer_sizes=(6,), n_iter=5, validation_fraction=0.1, **SEED
    ),
    "mlp": fe.MLPClassifier(**MLP, **EVERYTHING),
    "mlp, ghosts": fe.MLPClassifier(
        **(MLP | EVERYTHING | {"normalization": "ghost_batch", "activation": "selu"})
    ),
    "mlp, rmsprop": fe.MLPRegressor(**MLP, max_iter=6, solver="rmsprop", normalization="max_norm"),
    "mlp, invscaling": fe.MLPRegressor(**MLP, max_iter=6, solver="sgd", learning_rate="invscaling"),
    "mlp, adaptive": fe.MLPClassifier(
        **MLP, max_iter=25, solver="sgd", learning_rate="adaptive", n_iter_no_change=1, tol=0.02
    ),
}
ALL = pytest.mark.parametrize("name", ESTIMATORS)


class Interrupt:
    """Ctrl-C after so many passes."""

    def __init__(self, passes):
        self.passes = passes

    def __call__(self, trainer):
        if trainer.epoch == self.passes:
            raise KeyboardInterrupt


def made(name, **parameters):
    return clone(ESTIMATORS[name]).set_params(**parameters)


def state_of(estimator):
    """Model, optimiser, streams, histories and fitted attributes, but for the clock."""
    tensors, values = estimator._trainer.state()
    del values["options"]["n_epochs"]
    values["history"] = [
        {name: value for name, value in record.items() if name != "seconds"}
        for record in values["history"]
    ]
    values |= {
        name: getattr(estimator, name, None)
        for name in ("n_iter_", "t_", "loss_", "best_loss_", "best_validation_score_")
    }
    return {n: t.numpy() for n, t in tensors.items()}, json.dumps(values)


def assert_same_bits(one, other):
    (tensors, values), (expected, expected_values) = state_of(one), state_of(other)
    assert tensors.keys() == expected.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, expected[key], err_msg=key)
    assert values == expected_values


def passes_in(folder):
    return load_checkpoint(folder / "fit.safetensors")[1]["epoch"]


# ---- to the same bits ----------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("passes", [1, 4])
def test_an_interrupted_fit_goes_on_to_the_bits_of_an_undisturbed_one(name, passes, tmp_path):
    whole = made(name).fit(DIGITS, NUMBERS)
    cut = made(name, checkpoint_dir=tmp_path, callback=Interrupt(passes))
    try:
        with pytest.warns(UserWarning, match="interrupted"):
            cut.fit(DIGITS, NUMBERS)
    except KeyboardInterrupt:
        assert name == "unrolled"  # The pretraining is not a fit of its own.
    assert_same_bits(made(name, checkpoint_dir=tmp_path).fit(DIGITS, NUMBERS), whole)


@pytest.mark.parametrize("name", ["classifier", "mlp"])
def test_early_stopping_waits_as_long_over_an_interruption(name, tmp_path):
    whole = made(name, tol=0.02).fit(DIGITS, NUMBERS)
    n_passes = len(next(iter(whole.history_.values())))
    assert 4 < n_passes < whole.get_params().get("max_iter", 15)
    for passes in range(2, n_passes + 1, max(1, n_passes // 6)):
        folder = tmp_path / str(passes)
        with pytest.warns(UserWarning, match="interrupted"):
            made(name, tol=0.02, checkpoint_dir=folder, callback=Interrupt(passes)).fit(
                DIGITS, NUMBERS
            )
        assert_same_bits(made(name, tol=0.02, checkpoint_dir=folder).fit(DIGITS, NUMBERS), whole)


def fit_in_a_process_that_is_killed(estimator, folder, seed, times):
    """Kill the fit at random moments behind passes that it has stored; how often it was half-way"""
    random, path = np.random.default_rng(seed), folder / "fit.safetensors"
    half_way = 0
    for _ in range(times):
        process = multiprocessing.get_context("fork").Process(
            target=estimator.fit, args=(DIGITS, NUMBERS)
        )
        before = path.stat().st_mtime_ns if path.exists() else None
        process.start()
        # A copy of a process with threads may wait for them for ever.
        end = time.monotonic() + 20.0
        while process.is_alive() and time.monotonic() < end:
            if (path.stat().st_mtime_ns if path.exists() else None) != before:
                break
            time.sleep(0.001)
        time.sleep(random.uniform(0.0, 0.01))
        process.kill()
        process.join()
        half_way += process.exitcode == -signal.SIGKILL
    return half_way


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot copy a process")
@pytest.mark.parametrize("name", ["rbm", "classifier", "mlp"])
@pytest.mark.parametrize("seed", range(3))
def test_a_fit_killed_at_random_moments_ends_in_the_same_bits(name, seed, tmp_path):
    longer = {"max_iter": 40} if name == "mlp" else {"n_iter": 40}
    whole = made(name, **longer).fit(DIGITS, NUMBERS)
    estimator = made(name, checkpoint_dir=tmp_path, **longer)
    assert fit_in_a_process_that_is_killed(estimator, tmp_path, seed, 5) >= 2
    assert passes_in(tmp_path) > 0
    assert_same_bits(estimator.fit(DIGITS, NUMBERS), whole)
    assert {path.name for path in tmp_path.iterdir()} == {"fit.json", "fit.safetensors"}


@ALL
def test_a_complete_fit_is_loaded_and_not_trained_again(name, tmp_path):
    whole = made(name, checkpoint_dir=tmp_path).fit(DIGITS, NUMBERS)

    def refuse(trainer):
        raise AssertionError("it trains")

    again = made(name, checkpoint_dir=tmp_path, callback=refuse).fit(DIGITS, NUMBERS)
    assert_same_bits(again, whole)
    assert_same_bits(made(name).fit(DIGITS, NUMBERS), whole)


@ALL
def test_a_fit_with_more_passes_goes_on_where_those_are_the_same(name, tmp_path):
    passes = "max_iter" if name.startswith("mlp") else "n_iter"
    short = made(name, checkpoint_dir=tmp_path, **{passes: 4}).fit(DIGITS, NUMBERS)
    longer = made(name, checkpoint_dir=tmp_path)
    if name in ("unrolled", "rbm, cosine"):
        with pytest.raises(CheckpointError, match=r"n_iter is 4 there and [68] here, and all"):
            longer.fit(DIGITS, NUMBERS)
        return
    assert_same_bits(longer.fit(DIGITS, NUMBERS), made(name).fit(DIGITS, NUMBERS))
    assert passes_in(tmp_path) > 4
    with pytest.raises(CheckpointError, match=rf"it has made \d+ passes, and {passes} is 4 here"):
        clone(short).fit(DIGITS, NUMBERS)


def test_a_fit_that_stopped_early_stays_where_it_stopped(tmp_path):
    clf = made("mlp", checkpoint_dir=tmp_path).fit(DIGITS, NUMBERS)
    assert clf.n_iter_ < 25
    stopped = passes_in(tmp_path)
    longer = made("mlp", checkpoint_dir=tmp_path, max_iter=60).fit(DIGITS, NUMBERS)
    assert passes_in(tmp_path) == stopped
    assert_same_bits(longer, clf)


def test_a_callback_that_stops_the_training_ends_it_for_good(tmp_path):
    def stop(trainer):
        if trainer.epoch == 2:
            raise StopTraining("enough")

    rbm = made("rbm", callback=stop, checkpoint_dir=tmp_path)
    with pytest.warns(UserWarning, match="enough"):
        rbm.fit(DIGITS)
    assert_same_bits(made("rbm", checkpoint_dir=tmp_path).fit(DIGITS), rbm)


def test_a_diverging_fit_keeps_the_last_good_pass(tmp_path):
    model = fe.MLPRegressor(**MLP, activation="identity", solver="sgd", max_iter=4)
    model.set_params(learning_rate_init=1e3, checkpoint_dir=tmp_path)
    for _ in range(2):
        with pytest.raises(ValueError, match="non-finite parameter weights"):
            model.fit(IRIS, KINDS)
    assert np.isfinite(model.predict(IRIS)).all()


@pytest.mark.parametrize("make", [fe.MLPClassifier, fe.MLPRegressor])
def test_a_minimum_of_lbfgs_is_loaded(make, tmp_path):
    model = make(**MLP, solver="lbfgs", max_iter=10, checkpoint_dir=tmp_path).fit(IRIS, KINDS)
    calls = []
    again = clone(model)
    again.set_params(callback=type("Begin", (), {"__call__": 0, "on_train_begin": calls.append})())
    assert_same_bits(again.fit(IRIS, KINDS), model)
    assert calls == []
    with pytest.raises(CheckpointError, match="max_iter is 10 there and 20 here"):
        again.set_params(max_iter=20).fit(IRIS, KINDS)


def test_partial_fit_goes_on_from_a_resumed_fit(tmp_path):
    whole = made("mlp").fit(DIGITS, NUMBERS)
    with pytest.warns(UserWarning, match="interrupted"):
        made("mlp", checkpoint_dir=tmp_path, callback=Interrupt(2)).fit(DIGITS, NUMBERS)
    resumed = made("mlp", checkpoint_dir=tmp_path).fit(DIGITS, NUMBERS)
    for model in (whole, resumed):
        model.set_params(early_stopping=False).partial_fit(DIGITS, NUMBERS)
    assert_same_bits(resumed, whole)


# ---- what is refused -----------------------------------------------------------------------------

OTHERS = {
    "mlp": [{"dropout": 0.2}, {"hidden_layer_sizes": (8, 7)}, {"tol": 0.1}, {"random_state": 1}],
    "rbm": [{"n_components": 7}, {"learning_rate": 0.2}, {"validation_fraction": 0.2}],
    "unrolled": [{"rbm__n_iter": 5}, {"depth": 3}],
}


@pytest.mark.parametrize(("name", "other"), [(n, o) for n, all_ in OTHERS.items() for o in all_])
def test_other_parameters_are_named(name, other, tmp_path):
    made(name, checkpoint_dir=tmp_path).fit(DIGITS, NUMBERS)
    before = (tmp_path / "fit.safetensors").read_bytes()
    message = rf"{next(iter(other)).partition('__')[0]} is .* there .* here.*another folder.*delete"
    with pytest.raises(CheckpointError, match=message):
        made(name, checkpoint_dir=tmp_path, **other).fit(DIGITS, NUMBERS)
    assert (tmp_path / "fit.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["rbm", "unrolled"])
def test_parameters_that_an_earlier_version_did_not_have_are_at_their_defaults(name, tmp_path):
    made(name, checkpoint_dir=tmp_path).fit(DIGITS, NUMBERS)
    path = tmp_path / "fit.safetensors"
    tensors, values = load_checkpoint(path)
    machine = values["fit"]["parameters"]
    if name == "unrolled":
        machine = machine["rbm"][1]
    assert machine.pop("sparsity_cost") == 0.0
    assert machine.pop("sparsity_target") is None
    save_checkpoint(path, tensors, values)
    made(name, checkpoint_dir=tmp_path).fit(DIGITS, NUMBERS)
    sparse = {"sparsity_cost": 1.0, "sparsity_target": 0.1}
    if name == "unrolled":
        sparse = {f"rbm__{option}": value for option, value in sparse.items()}
    with pytest.raises(CheckpointError, match="holds another fit"):
        made(name, checkpoint_dir=tmp_path, **sparse).fit(DIGITS, NUMBERS)


def test_a_stream_of_other_rows_of_the_same_data_is_told_apart(tmp_path):
    rows = fe.data.stream(DIGITS, buffer_bytes=2**14)
    one, other = (rows.split(n)[0] for n in (20, 21))
    made("rbm", checkpoint_dir=tmp_path).fit(one)
    with pytest.raises(CheckpointError, match="the data"):
        made("rbm", checkpoint_dir=tmp_path).fit(other)


def test_other_data_are_noticed(tmp_path):
    weights = np.ones(len(DIGITS))
    made("mlp", checkpoint_dir=tmp_path).fit(DIGITS, NUMBERS, sample_weight=weights)
    rows, labels, weights_ = DIGITS.copy(), NUMBERS.copy(), weights.copy()
    rows[-1, 20] += 1e-9
    labels[0] += 1
    weights_[5] = 2.0
    for data in (
        (rows, NUMBERS, weights),
        (DIGITS, labels, weights),
        (DIGITS, NUMBERS, weights_),
        (DIGITS[:-1], NUMBERS[:-1], weights[:-1]),
        (DIGITS, NUMBERS + 10, weights),
        (DIGITS.astype(np.float32), NUMBERS, weights),
    ):
        with pytest.raises(CheckpointError, match=r"the data \(rows, labels or weights\) are oth"):
            made("mlp", checkpoint_dir=tmp_path).fit(*data)


def test_sparse_rows_are_told_apart_too(tmp_path):
    rbm = made("rbm", checkpoint_dir=tmp_path)
    rbm.fit(sp.csr_array(DIGITS))
    assert_same_bits(made("rbm", checkpoint_dir=tmp_path).fit(sp.csr_array(DIGITS)), rbm)
    with pytest.raises(CheckpointError, match=r"the data.*In a grid search .*checkpoint_dir=None"):
        rbm.fit(sp.csr_array(DIGITS[::-1]))


def test_another_class_is_told_apart(tmp_path):
    fe.MLPClassifier(**MLP, max_iter=2, checkpoint_dir=tmp_path).fit(IRIS, KINDS)
    with pytest.raises(CheckpointError, match="of a MLPClassifier, not of a MLPRegressor"):
        fe.MLPRegressor(**MLP, max_iter=2, checkpoint_dir=tmp_path).fit(IRIS, KINDS)


@pytest.mark.parametrize("cut", [0, 100, -1])
def test_a_damaged_file_is_named(cut, tmp_path):
    made("rbm", checkpoint_dir=tmp_path).fit(DIGITS)
    path = tmp_path / "fit.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"fit\.safetensors is damaged .* delete it"):
        made("rbm", checkpoint_dir=tmp_path).fit(DIGITS)


@pytest.mark.parametrize("seed", [None, np.random.RandomState(0)])
@pytest.mark.parametrize("name", ["rbm", "mlp", "autoencoder"])
def test_a_seed_must_be_given(name, seed, tmp_path):
    with pytest.raises(ValueError, match="checkpoint_dir needs random_state to be an int"):
        made(name, checkpoint_dir=tmp_path, random_state=seed).fit(DIGITS, NUMBERS)


def test_a_warm_start_has_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="warm_start goes on from the net in memory"):
        made("mlp", checkpoint_dir=tmp_path, warm_start=True).fit(DIGITS, NUMBERS)


def test_a_folder_that_cannot_be_written_is_named_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file' cannot be written"):
        made("rbm", checkpoint_dir=tmp_path / "file").fit(DIGITS)


# ---- what the folder says ------------------------------------------------------------------------


def test_the_folder_says_what_it_holds(tmp_path):
    made("mlp", checkpoint_dir=tmp_path / "new" / "folder").fit(DIGITS, NUMBERS)
    note = json.loads((tmp_path / "new" / "folder" / "fit.json").read_text())
    assert note["estimator"] == "MLPClassifier"
    assert note["parameters"]["hidden_layer_sizes"] == [8, 6]
    assert note["versions"]["torch"] == torch.__version__
    assert note["n_passes"] == 25
    stored = load_checkpoint(tmp_path / "new" / "folder" / "fit.safetensors")[1]["fit"]
    assert note.items() <= stored.items()


def test_another_version_is_told_where_the_fit_goes_on(tmp_path, monkeypatch):
    made("rbm", checkpoint_dir=tmp_path, n_iter=2).fit(DIGITS)
    monkeypatch.setattr(torch, "__version__", "0.1")
    with pytest.warns(UserWarning, match=r"written with torch .* \(now 0.1\)"):
        made("rbm", checkpoint_dir=tmp_path).fit(DIGITS)


def test_a_saved_estimator_has_no_folder(tmp_path):
    rbm = made("rbm", checkpoint_dir=tmp_path / "folder").fit(DIGITS)
    rbm.save(tmp_path / "rbm.safetensors")
    assert fe.BernoulliRBM.load(tmp_path / "rbm.safetensors").checkpoint_dir is None


def test_a_frozen_machine_is_part_of_the_fit(tmp_path):
    machines = [made("rbm", random_state=seed).fit(DIGITS) for seed in (0, 1)]
    nets = [
        fe.UnrolledRBMClassifier(FrozenEstimator(m), n_iter=2, checkpoint_dir=tmp_path, **SEED)
        for m in machines
    ]
    nets[0].fit(DIGITS, NUMBERS)
    nets[0].fit(DIGITS, NUMBERS)
    with pytest.raises(CheckpointError, match="rbm is"):
        nets[1].fit(DIGITS, NUMBERS)


# ---- several processes ---------------------------------------------------------------------------

JOB = """
import numpy as np
import freenergy as fe

def fit(folder):
    own = f"{folder}/{fe.distributed.group_now().rank}"
    X = np.random.default_rng(0).normal(size=(60, 4))
    options = dict(solver="sgd", learning_rate="invscaling", batch_size=20, random_state=0)
    # Begun, gone on with, and found complete.
    for n in (2, 4, 4):
        net = fe.MLPClassifier((6,), max_iter=n, checkpoint_dir=own, **options).fit(X, X[:, 0] > 0)
    return [*net.coefs_, np.array(net.loss_curve_), net.t_]
"""


@pytest.mark.slow
def test_the_first_process_says_where_all_go_on(tmp_path, monkeypatch):
    """The folder need not be on the machines of the others, whose rates would be others there."""
    (tmp_path / "job_of_checkpoints.py").write_text(JOB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    job = importlib.import_module("job_of_checkpoints")
    first, second = launch(job.fit, 2, str(tmp_path / "two"))
    assert not (tmp_path / "two" / "1").exists()
    for one, other, expected in zip(first, second, job.fit(str(tmp_path / "one")), strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(one, expected, rtol=0, atol=1e-12)

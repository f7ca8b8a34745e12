"""How good a fitted estimator is: ln Z, likelihood, temperature, held-out rows, early stopping."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import freenergy as fe
from freenergy.inference import exact
from freenergy.inference.partition import log_partition
from freenergy.thermodynamics import EffectiveTemperature, RBMMonitor, TemperatureMonitor
from freenergy.training import EntropyCollapse, StopTraining

BETAS = pytest.mark.parametrize("beta", [1.0, 2.0])


@pytest.fixture
def X(binary):
    return binary(60, 6)


@pytest.fixture(scope="module")
def ptt(binary):
    """A training by PTT with held-out rows, that a test may read, but must not change."""
    rbm = fe.BernoulliRBM(
        5,
        method="ptt",
        n_iter=60,
        learning_rate=0.1,
        n_chains=40,
        beta=1.5,
        random_state=0,
        validation_fraction=0.25,
    )
    return rbm.fit(binary(200, 8))


# ---- ln Z and the likelihood ---------------------------------------------------------------------


@BETAS
def test_a_small_model_has_an_exact_partition_function(small, X, beta):
    rbm = small(beta=beta).fit(X)
    truth = exact(rbm.model_, beta).log_partition
    found = rbm.log_partition()
    assert (found.method, found.trusted, found.beta) == ("exact", True, beta)
    assert found.value == found.lower == found.upper == pytest.approx(truth, rel=1e-12)


@BETAS
@pytest.mark.parametrize("method", ["ais", "reverse_ais", "bar", "ptt", "tap"])
def test_every_method_can_be_asked_for(small, X, beta, method):
    rbm = small(beta=beta).fit(X)
    truth = exact(rbm.model_, beta).log_partition
    for rows in (None, X):
        found = rbm.log_partition(rows, method=method, n_chains=32)
        assert found.method == method
        assert found.trusted, found
        assert found.value == pytest.approx(truth, abs=0.05)
        assert found.beta == beta


def test_the_options_reach_the_estimate(small, X):
    rbm = small().fit(X)
    found = rbm.log_partition(method="ptt", width=1e-7, time_budget=0.1, n_chains=16)
    assert not found.trusted
    assert "more than the 1e-07 asked for" in found.reasons[-1]
    options = {"method": "bar", "n_chains": 16}
    first, again, other = (rbm.log_partition(random_state=s, **options) for s in (1, 1, 2))
    assert first.value == again.value != other.value
    assert len(first.diagnostics["forward_work"]) == 16
    with pytest.raises(ValueError, match="method must be one of auto, exact"):
        rbm.log_partition(method="guess")


@BETAS
def test_the_likelihood_is_that_of_the_free_energy(small, X, beta):
    rbm = small(beta=beta).fit(X)
    found = rbm.log_likelihood(X)
    expected = -beta * rbm.free_energy(X) - exact(rbm.model_, beta).log_partition
    assert_allclose(found.per_sample, expected, rtol=1e-9)
    assert found.mean == pytest.approx(expected.mean(), rel=1e-9)
    assert (found.method, found.trusted) == ("exact", True)


def test_every_kind_of_rows_has_the_same_likelihood(small, X):
    names = [f"x{i}" for i in range(6)]
    expected = small().fit(X).log_likelihood(X)
    framed = small().fit(pd.DataFrame(X, columns=names))
    for rbm, rows in (
        (small().fit(X), sparse.csr_matrix(X)),
        (small().fit(sparse.csr_matrix(X)), X),
        (small().fit(X), X.tolist()),
        (small().fit(X), X.astype(bool)),
        (framed, pd.DataFrame(X, columns=names)),
    ):
        found = rbm.log_likelihood(rows)
        assert_allclose(found.per_sample, expected.per_sample, rtol=1e-9)
        for method in ("ptt", "bar"):
            z = rbm.log_partition(rows, method=method, n_chains=16)
            assert z.value == pytest.approx(found.log_partition.value, abs=0.1)
    with pytest.raises(ValueError, match="feature names"):
        framed.log_likelihood(pd.DataFrame(X, columns=names[::-1]))


def test_single_precision_stays(small, X):
    rbm = small().fit(X.astype(np.float32))
    assert rbm.model_.weight.dtype == torch.float32
    expected = -rbm.free_energy(X) - exact(rbm.model_).log_partition
    assert_allclose(rbm.log_likelihood(X).per_sample, expected, rtol=1e-5)


def test_a_partition_function_found_before_is_taken(small, X, monkeypatch):
    rbm = small().fit(X)
    z = rbm.log_partition(X, method="bar", n_chains=16)
    monkeypatch.setattr(rbm, "log_partition", lambda *_, **__: pytest.fail("found again"))
    found = rbm.log_likelihood(X, log_partition=z)
    assert found.log_partition is z
    assert found.lower == pytest.approx(found.mean - (z.upper - z.value))


def test_options_are_those_of_the_partition_function(small, X):
    found = small().fit(X).log_likelihood(X, method="ptt", n_chains=16, random_state=3)
    assert found.method == "ptt"


def test_what_has_no_likelihood_is_refused(small, X):
    rbm = small().fit(X)
    grey = X.copy()
    grey[5, 2] = 0.5
    with pytest.raises(ValueError, match=r"column 2 of row 5 is 0\.5: only states of 0 and 1"):
        rbm.log_likelihood(grey)
    with pytest.raises(ValueError, match="6 features"):
        rbm.log_likelihood(X[:, :4])
    with pytest.raises(ValueError, match="NaN in column 1"):
        rbm.log_partition(np.where(np.arange(6) == 1, np.nan, X))
    for name in ("log_likelihood", "log_partition", "effective_temperature"):
        with pytest.raises(NotFittedError):
            getattr(fe.BernoulliRBM(), name)(X)


def test_measuring_changes_nothing(small, X, contents, same):
    rbm = small().fit(X)
    before = contents(rbm)
    rbm.log_partition(X, method="bar", n_chains=16)
    rbm.log_likelihood(X)
    rbm.effective_temperature(X)
    same(contents(rbm), before)


# ---- effective temperature -----------------------------------------------------------------------


@BETAS
def test_a_model_has_the_temperature_that_it_was_scaled_to(small, X, beta):
    """Doubling the parameters is halving the temperature of the model."""
    rbm = small(beta=beta, n_iter=100, learning_rate=0.2 / beta).fit(X)
    found = rbm.effective_temperature(X)
    assert isinstance(found, EffectiveTemperature)
    assert found.lower <= found.temperature <= found.upper
    with torch.no_grad():
        for parameter in rbm.model_.parameters():
            parameter.mul_(2)
    colder = rbm.effective_temperature(X)
    assert colder.temperature == pytest.approx(2 * found.temperature, rel=0.02)


def test_samples_of_the_model_are_at_its_temperature(small, X):
    rbm = small(beta=2.0, n_iter=60).fit(X)
    rows = rbm.sample(4000, n_steps=200, random_state=1)
    found = rbm.effective_temperature(rows)
    assert found.lower <= 1.0 <= found.upper
    assert found.temperature == pytest.approx(1.0, abs=0.15)


# ---- rows held out, monitors and callbacks -------------------------------------------------------


def test_rows_are_held_out(small, X):
    rbm = small(validation_fraction=0.25, batch_size=5).fit(X)
    history = rbm.history_
    assert {"free_energy", "free_energy_held_out"} <= history.keys()
    assert len(history["free_energy_held_out"]) == 3
    assert all(math.isfinite(value) for value in history["free_energy_held_out"])
    # Every row is used once: the weighted mean is that of all rows.
    mean = 0.75 * history["free_energy"][-1] + 0.25 * history["free_energy_held_out"][-1]
    assert mean == pytest.approx(rbm.free_energy(X).mean(), rel=1e-9)
    assert "free_energy" not in small().fit(X).history_


def test_the_rows_that_are_held_out_follow_the_seed(small, X):
    histories = [
        small(validation_fraction=0.25, random_state=seed).fit(X).history_ for seed in (1, 1, 2)
    ]
    first, again, other = (history["free_energy_held_out"] for history in histories)
    assert first == again != other


def test_held_out_rows_are_not_learned(small):
    """A pixel that is only on in the held-out rows is never learned."""
    X = np.zeros((40, 5))
    rbm = small(validation_fraction=0.5, n_iter=1)
    held_out = rbm._held_out(40)[1].numpy()
    X[held_out, 2] = 1.0
    X[:, 1] = 1.0
    rbm.fit(X)
    assert rbm.intercept_visible_[2] < -1
    assert rbm.intercept_visible_[1] > 1


def test_sparse_rows_are_held_out(small, X):
    dense, rows = (small(validation_fraction=0.2).fit(x) for x in (X, sparse.csr_matrix(X)))
    assert_allclose(rows.components_, dense.components_, rtol=1e-9)
    assert_allclose(rows.history_["free_energy_held_out"], dense.history_["free_energy_held_out"])


@pytest.mark.parametrize("share", [0.001, 0.999, 1.0, -0.1, 2, math.nan])
def test_impossible_shares_are_refused(small, X, share):
    with pytest.raises(ValueError, match="validation_fraction="):
        small(validation_fraction=share).fit(X)


def test_monitors_write_to_the_history(small, X):
    rows = torch.from_numpy(X)
    monitors = [RBMMonitor(rows), TemperatureMonitor(rows, n_rows=60), lambda model: {"mine": 7.0}]
    rbm = small(monitors=monitors).fit(X)
    plain = small().fit(X)
    assert rbm.history_["mine"] == [7.0] * 3
    expected = rbm.log_likelihood(X).mean
    assert rbm.history_["log_likelihood"][-1] == pytest.approx(expected, rel=1e-6)
    assert_array_equal(rbm.components_, plain.components_)
    assert set(rbm.history_) > set(plain.history_)


def test_monitors_and_callbacks_do_not_go_into_files(small, X, tmp_path):
    rbm = small(monitors=[lambda model: {}], callback=lambda trainer: None).fit(X)
    rbm.save(tmp_path / "rbm.safetensors")
    loaded = fe.BernoulliRBM.load(tmp_path / "rbm.safetensors")
    assert (list(loaded.monitors), loaded.callback) == ([], None)
    assert_array_equal(loaded.transform(X), rbm.transform(X))


def test_a_callback_sees_every_pass_and_may_stop(small, X):
    seen = []

    def callback(trainer):
        seen.append((trainer.epoch, trainer.history[-1]["epoch"]))
        if trainer.epoch == 2:
            raise StopTraining("enough")

    with pytest.warns(UserWarning, match="^enough$"):
        rbm = small(n_iter=9, callback=callback).fit(X)
    assert seen == [(1, 1), (2, 2)]
    assert rbm.history_["epoch"] == [1, 2]
    assert_array_equal(rbm.components_, small(n_iter=2).fit(X).components_)


def test_a_collapse_of_the_entropy_stops_fit(small):
    """One pattern alone, learned ever more surely, leaves no entropy."""
    X = np.tile([1.0, 0.0, 1.0, 1.0, 0.0, 1.0], (40, 1))
    rbm = small(
        n_components=2,
        n_iter=100,
        learning_rate=1.0,
        monitors=[RBMMonitor(torch.from_numpy(X))],
        callback=EntropyCollapse(fraction=0.3, patience=2),
    )
    with pytest.warns(UserWarning, match="the entropy collapsed: exact_entropy is"):
        rbm.fit(X)
    entropy = np.array(rbm.history_["exact_entropy"])
    assert 2 < len(entropy) < 100
    low = entropy <= 0.3 * entropy[0]
    assert low[-2:].all()
    assert not (low[:-2] & low[1:-1]).any(), "it stopped at the first two in a row"
    # The estimator holds what was trained.
    assert rbm.log_likelihood(X).trusted


def test_an_entropy_that_nobody_reads_is_named(small, X):
    with pytest.raises(ValueError, match="EntropyCollapse needs 'exact_entropy'"):
        small(callback=EntropyCollapse()).fit(X)


def test_parameters_can_be_cloned(small):
    monitors = (TemperatureMonitor(torch.zeros(3, 6)),)
    rbm = small(monitors=monitors, callback=EntropyCollapse(), validation_fraction=0.1)
    again = clone(rbm)
    assert again.validation_fraction == 0.1
    assert again.callback == rbm.callback
    assert len(again.monitors) == 1


# ---- trajectory tempering ------------------------------------------------------------------------


def test_ptt_knows_its_likelihood(ptt, binary):
    history = ptt.history_
    names = {
        "log_likelihood",
        "log_likelihood_held_out",
        "log_partition",
        "log_partition_stderr",
        "ladder_rungs",
        "exchange_acceptance",
        "arrival_time",
    }
    assert names <= history.keys()
    assert all(len(history[name]) == 60 for name in names)
    truth = exact(ptt.model_, 1.5).log_partition
    last = {name: history[name][-1] for name in names | {"free_energy", "free_energy_held_out"}}
    assert 0 < last["log_partition_stderr"] < 0.2
    assert last["log_partition"] == pytest.approx(truth, abs=5 * last["log_partition_stderr"])
    for suffix in ("", "_held_out"):
        expected = -1.5 * last[f"free_energy{suffix}"] - last["log_partition"]
        assert last[f"log_likelihood{suffix}"] == pytest.approx(expected, rel=1e-9)
    X = binary(200, 8)
    weighted = 0.75 * last["log_likelihood"] + 0.25 * last["log_likelihood_held_out"]
    gap = last["log_partition"] - truth
    assert weighted + gap == pytest.approx(ptt.log_likelihood(X).mean, rel=1e-6)
    assert history["ladder_rungs"][-1] >= history["ladder_rungs"][0] >= 2
    assert history["log_likelihood_held_out"][-1] > history["log_likelihood_held_out"][0]


def test_without_held_out_rows_there_is_no_likelihood_of_them(small, X):
    history = small(method="ptt").fit(X).history_
    assert "log_likelihood" in history
    assert not any(name.endswith("_held_out") for name in history)
    assert "log_partition" not in small(validation_fraction=0.2).fit(X).history_


def test_ptt_is_climbed_along_its_own_training(ptt, binary, monkeypatch):
    from freenergy.estimators import bernoulli_rbm

    ladders = []

    def spy(*args, **kwargs):
        ladders.append(kwargs["ladder"])
        return log_partition(*args, **kwargs)

    monkeypatch.setattr(bernoulli_rbm, "log_partition", spy)
    truth = exact(ptt.model_, 1.5).log_partition
    found = ptt.log_partition(binary(200, 8), method="ptt")
    assert found.trusted, found
    assert found.value == pytest.approx(truth, abs=4 * found.stderr)
    assert ptt.log_partition(method="bar", n_chains=16).method == "bar"
    assert ladders[0] is not None
    assert len(ladders[0]) == ptt.history_["ladder_rungs"][-1]
    assert ladders[1] is None


def test_climbing_a_ladder_leaves_the_training_as_it_was(ptt, contents, same):
    before = contents(ptt)
    ptt.log_partition(method="ptt", n_chains=16)
    after = contents(ptt)
    # Readings may be NaN, before anything was exchanged or climbed; they are of the past.
    one, other = (found["values"].pop("history") for found in (before, after))
    for record, expected in zip(one, other, strict=True):
        assert_allclose(record["log_partition"], expected["log_partition"])
    same(after, before)


@pytest.mark.parametrize("sparse_rows", [False, True])
def test_ptt_goes_on_from_a_file_to_the_same_bits(small, X, tmp_path, contents, same, sparse_rows):
    rows = sparse.csr_matrix(X) if sparse_rows else X
    rbm = small(method="ptt", n_iter=8, learning_rate=0.5, n_chains=20).fit(rows)
    rbm.save(tmp_path / "rbm.safetensors")
    loaded = fe.BernoulliRBM.load(tmp_path / "rbm.safetensors")
    same(contents(loaded), contents(rbm))
    options = {"method": "ptt", "n_chains": 16}
    assert loaded.log_partition(**options).value == rbm.log_partition(**options).value
    for _ in range(12):
        rbm.partial_fit(rows)
        loaded.partial_fit(rows)
    same(contents(loaded), contents(rbm))
    assert loaded.log_partition(**options).value == rbm.log_partition(**options).value


def test_ptt_by_partial_fit_alone_has_a_ladder(small, X):
    rbm = small(method="ptt", n_chains=20, learning_rate=0.5)
    for _ in range(60):
        rbm.partial_fit(X)
    truth = exact(rbm.model_).log_partition
    found = rbm.log_partition(method="ptt", n_chains=32)
    assert found.value == pytest.approx(truth, abs=4 * found.stderr)


def test_a_changed_model_is_the_top_of_its_ladder(small, X):
    """The last rung is always the model itself."""
    rbm = small(method="ptt", n_chains=20).fit(X)
    with torch.no_grad():
        rbm.model_.visible_bias.add_(0.5)
    truth = exact(rbm.model_).log_partition
    found = rbm.log_partition(method="ptt", n_chains=64)
    assert found.value == pytest.approx(truth, abs=4 * found.stderr)

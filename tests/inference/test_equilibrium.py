"""The certificate of equilibrium against exact relaxation times, and models known to be stuck."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
import torch

import freenergy as fe
from freenergy.data import load
from freenergy.inference.equilibrium import Certificate, certify
from freenergy.inference.mixing import autocorrelation_time, split_r_hat
from freenergy.models import RBM
from freenergy.random import RandomStream

SEEDS = range(20)


def planted(depth: float, n_blocks: int = 1, tilt: float = 0.0, dtype=torch.float64) -> RBM:
    """Blocks of 8 + 6 spins that all agree with each other: two states for each block."""
    n_visible, n_hidden = 8 * n_blocks, 6 * n_blocks
    model = RBM(n_visible, n_hidden, visible="spin", hidden="spin", dtype=dtype)
    blocks = torch.block_diag(*[torch.full((8, 6), depth)] * n_blocks)
    with torch.no_grad():
        model.weight.copy_(blocks)
        model.visible_bias.fill_(tilt)
    return model


def spins(n: int, n_visible: int, seed: int = 0) -> torch.Tensor:
    return 2.0 * RandomStream(seed).integers(0, 2, n * n_visible).view(n, n_visible) - 1


def exact_times(model: RBM, reference, observables: np.ndarray) -> np.ndarray:
    """Integrated autocorrelation times from P = Σ_h p(h|v) p(v'|h), by linear algebra.

    ``Σ_t P^t f = (1 - P + 1 p)^{-1} f`` for a function of mean zero; observables are columns.
    """
    joint = reference.probability
    p = joint.sum(1)
    transition = (joint / p[:, None]) @ (joint / joint.sum(0)).T
    f = observables - p @ observables
    summed = np.linalg.solve(np.eye(len(p)) - transition + p, f)
    return 2 * (p @ (f * summed)) / (p @ f**2) - 1


# --- autocorrelation time and R-hat --------------------------------------------------------------


def autoregressive(phi: float, n_chains: int, n_steps: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(n_steps, n_chains)) * math.sqrt(1 - phi**2)
    x = np.empty((n_steps, n_chains))
    x[0] = rng.normal(size=n_chains)
    for t in range(1, n_steps):
        x[t] = phi * x[t - 1] + noise[t]
    return x.T


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, 0.98])
def test_an_autoregressive_chain_has_its_closed_form(phi):
    x = autoregressive(phi, 64, 4000)
    assert autocorrelation_time(x) == pytest.approx((1 + phi) / (1 - phi), rel=0.1)
    assert autocorrelation_time(1e200 * x + 1e200) == pytest.approx(autocorrelation_time(x))


def test_chains_that_stay_apart_never_decorrelate():
    x = autoregressive(0.5, 16, 500) + 5 * np.arange(16)[:, None]
    assert 400 < autocorrelation_time(x) < 1000


def test_r_hat_of_stationary_chains_follows_from_their_autocorrelation_time():
    """R-hat² = 1 + τ/n over halves of n steps, which is what the limits of the label rest on."""
    for phi in (0.0, 0.8, 0.95):
        r_hat = split_r_hat(autoregressive(phi, 200, 1000))
        assert r_hat**2 - 1 == pytest.approx((1 + phi) / (1 - phi) / 500, abs=0.015)


def test_r_hat_sees_one_chain_of_many_a_drift_and_no_rounding():
    x = autoregressive(0.5, 64, 400)
    assert split_r_hat(x) < 1.02
    apart = x.copy()
    apart[0] += 20
    assert split_r_hat(apart) > 1.5
    assert split_r_hat(x + np.linspace(0, 5, 400)) > 1.3
    still = np.full((64, 400), 100.0) + 1e-5 * np.arange(64)[:, None]
    assert split_r_hat(still, noise=1e-3) == pytest.approx(1.0, abs=0.05)
    assert split_r_hat(still) > 1e3
    assert split_r_hat(np.zeros((4, 100))) == 1.0
    assert split_r_hat(np.zeros((4, 3))) == math.inf


@pytest.mark.parametrize("seed", range(3))
def test_the_time_agrees_with_the_exact_spectrum_of_the_chain(rbm, table, seed):
    model = rbm(7, 5, visible="spin", hidden="spin", scale=0.55, bias=0.1, seed=seed)
    reference, data = table(model, 0.9), spins(50, 7)
    left = np.linalg.svd(model.weight.detach().numpy())[0][:, :4]
    observables = np.column_stack(
        [reference.free_energy, reference.v @ data.mean(0).numpy(), reference.v @ left]
    )
    exact = exact_times(model, reference, observables)
    found = certify(model, data, beta=0.9, n_steps=3000, n_chains=128, random=seed)
    assert exact.max() > 2
    assert found.autocorrelation_time == pytest.approx(exact.max(), rel=0.15)
    assert found.slowest.split()[0] == ["free", "overlap", *["projection"] * 4][int(exact.argmax())]
    mean = float(reference.probability.sum(1) @ reference.free_energy)
    assert found.energy_from_data == pytest.approx(mean, abs=0.1)
    assert found.energy_from_random == pytest.approx(mean, abs=0.1)


# --- the label -----------------------------------------------------------------------------------


def test_models_that_mix_are_in_equilibrium_whatever_the_seed(rbm):
    """τ is about 3 and 10 steps: no alarm in any of 40 runs, from data that are not the model's."""
    for model in (rbm(20, 10, scale=0.6), planted(0.16)):
        data = (spins(100, model.n_visible) > 0).double()
        labels = [certify(model, data, n_steps=400, random=seed).reasons for seed in SEEDS]
        assert not any(labels)


@pytest.mark.parametrize("n_blocks", [1, 3])
def test_planted_states_that_no_chain_leaves_are_seen_whatever_the_seed(n_blocks):
    """Also where the data hold all the states in the right shares, so that the groups agree."""
    model = planted(1.0, n_blocks)
    signs = spins(200, n_blocks).repeat_interleave(8, 1)
    for seed in SEEDS:
        found = certify(model, signs, n_steps=200, random=seed)
        assert not found.is_equilibrium
        assert not found.resolved
        assert found.autocorrelation_time > 20
        assert found.r_hat > 2
        assert abs(found.energy_gap) < 5 * max(found.energy_gap_error, 0.05)
        assert "method='ptt'" in found.advice


def test_temperature_decides(rbm):
    model, data = planted(1.0), spins(50, 8)
    cold, warm = (certify(model, data, beta=beta, n_steps=300) for beta in (1.0, 0.1))
    assert (cold.label, warm.label) == ("out of equilibrium", "equilibrium")
    assert (cold.beta, warm.beta) == (1.0, 0.1)


def test_the_gap_is_data_minus_random_and_exact_for_frozen_chains():
    """Data in the shallow of two wells; random chains fall in both."""
    model = planted(1.0, tilt=0.05)
    up, down = (model.free_energy(s * torch.ones(1, 8).double()).item() for s in (1, -1))
    found = certify(model, -torch.ones(5, 8), n_steps=200)
    assert up < found.energy_from_random < down
    assert found.energy_from_data == pytest.approx(down, abs=0.05)
    assert found.energy_gap > 0.5
    assert any("chains from the data and from random differ" in r for r in found.reasons)
    assert found.advice.startswith("Train with more steps per update")


def test_a_run_too_short_is_not_trusted_and_says_how_to_tell():
    model, data = planted(0.2), spins(50, 8)
    assert certify(model, data, n_steps=4000).is_equilibrium
    short = certify(model, data, n_steps=60)
    assert not short.is_equilibrium
    assert not short.resolved
    assert "60 steps are too few" in short.reasons[0]


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return (load("digits").x_train > 0.5).astype(np.float32)


def train(digits: np.ndarray, **options) -> fe.BernoulliRBM:
    return fe.BernoulliRBM(16, batch_size=50, random_state=0, **options).fit(digits)


def test_a_model_trained_slowly_is_certified_with_its_chains(digits):
    model = train(digits, n_steps=10, learning_rate=0.05, n_iter=8, centered=True)
    data, chains = torch.from_numpy(digits), torch.as_tensor(model.h_samples_)
    for seed in range(3):
        found = certify(model.model_, data, chains=chains, n_steps_per_update=10, random=seed)
        assert found.reasons == ()
        assert found.n_chains == 96
        assert abs(found.chain_lag) < 0.5
        assert abs(found.data_lag) < 1
        assert found.n_updates == found.autocorrelation_time / 10


def test_training_too_fast_leaves_its_chains_behind(digits):
    """The model mixes, but its training took for it what it is not: a flatterer.

    At this rate the weights move away under the chains, which therefore, like the data, lie far
    above the free energy of the model.
    """
    model = train(digits, n_steps=1, learning_rate=1.0, n_iter=40)
    data, chains = torch.from_numpy(digits), torch.as_tensor(model.h_samples_)
    for seed in range(5):
        found = certify(model.model_, data, chains=chains, random=seed)
        assert not found.is_equilibrium
        assert found.chain_lag > 1
        assert "the chains of the training lie +" in found.reasons[-1]
        assert found.advice.startswith("Train with more steps per update")
    alone = certify(model.model_, data)
    assert alone.chain_lag is None
    assert alone.energy_from_chains is None
    assert alone.data_lag > 1
    if alone.is_equilibrium:
        assert "it is not a model of the data" in alone.advice


# --- edges ---------------------------------------------------------------------------------------


def numbers(certificate: Certificate) -> list[float]:
    return [x for x in certificate.to_dict().values() if isinstance(x, float)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [0.0, 500.0])
def test_a_model_without_couplings_is_in_equilibrium_at_once(dtype, bias):
    """With zero biases its free energy is a constant; with large ones every observable is."""
    model = RBM(12, 7, dtype=dtype)
    with torch.no_grad():
        model.weight.zero_()
        model.visible_bias.fill_(bias)
    found = certify(model, torch.eye(12), n_steps=50)
    assert found.is_equilibrium
    assert found.autocorrelation_time < 1.6
    assert found.r_hat == pytest.approx(1.0, abs=0.05)
    assert all(map(math.isfinite, numbers(found)))


def test_rows_may_come_as_an_array(rbm):
    model, data = rbm(8, 5), spins(20, 8) > 0
    options = {"n_steps": 100, "chains": data.float()}
    found = certify(model, data.float(), **options)
    options["chains"] = data.double().numpy()
    assert repr(certify(model, data.double().numpy(), **options)) == repr(found)


@pytest.mark.parametrize("scale", [1e2, 1e6, 1e30, 1e37])
def test_huge_weights_freeze_the_chains(rbm, scale):
    model = rbm(30, 20, scale=1.0, dtype=torch.float32)
    with torch.no_grad():
        model.weight.mul_(scale)
    found = certify(model, (spins(50, 30) > 0).float(), n_steps=100)
    assert not found.is_equilibrium
    assert found.autocorrelation_time > 10
    assert all(map(math.isfinite, numbers(found)))


@pytest.mark.parametrize("n_steps", [1, 2, 3, 4, 5, 8, 10, 12])
@pytest.mark.parametrize("n_chains", [1, 2, 3, 64])
def test_tiny_runs_are_never_certified_for_a_stuck_model(n_steps, n_chains):
    found = certify(planted(1.0), spins(4, 8), n_steps=n_steps, n_chains=n_chains)
    assert found.label == "out of equilibrium"
    assert (found.n_steps, found.n_chains) == (n_steps, n_chains)
    assert all(map(math.isfinite, numbers(found)))
    assert "nan" not in repr(found)


@pytest.mark.parametrize("n_chains", [1, 2, 7, 8])
def test_few_chains_prove_nothing(n_chains):
    found = certify(planted(0.05), spins(4, 8), n_chains=n_chains)
    assert found.resolved
    assert found.is_equilibrium == (n_chains == 8)
    if n_chains < 8:
        assert found.reasons[0].startswith(f"so few chains ({n_chains}) may all be in one state")


def test_the_budget_ends_the_run(rbm):
    begin = time.monotonic()
    found = certify(rbm(20, 10), torch.eye(20), n_steps=10**7, time_budget=0.3)
    assert time.monotonic() - begin < 5
    assert 1 <= found.n_steps < 10**6


def test_chains_may_be_of_either_layer(rbm, random):
    model, data = rbm(12, 6, scale=0.3), torch.eye(12)
    visible = torch.ones(40, 12)
    hidden = model.sample_hidden(visible.double(), random)
    for chains in (visible, hidden):
        found = certify(model, data, chains=chains, n_chains=20, n_steps=300)
        assert found.n_chains == 30
        assert found.energy_from_chains == pytest.approx(found.energy_from_data, abs=0.3)
    far = certify(model, data, chains=visible, n_steps=300)
    exact = model.free_energy(visible[:1].double()).item() - far.energy_from_data
    assert far.chain_lag * exact > 0


@pytest.mark.parametrize("units", [("ternary", "spin"), ("bernoulli", "ternary")], ids="-".join)
def test_other_units(rbm, units):
    model = rbm(8, 5, visible=units[0], hidden=units[1], scale=0.3)
    assert certify(model, torch.zeros(3, 8), n_steps=300).is_equilibrium


def test_one_seed_gives_one_certificate_and_touches_no_model(rbm):
    model, data = rbm(12, 6), torch.eye(12)
    before = model.weight.detach().clone()
    first, again = (certify(model, data, n_steps=50, random=3) for _ in range(2))
    stream = certify(model, data, n_steps=50, random=RandomStream(3))
    assert first.to_dict() == again.to_dict() == stream.to_dict()
    assert first.to_dict() != certify(model, data, n_steps=50, random=4).to_dict()
    assert torch.equal(model.weight, before)
    assert torch.equal(data, torch.eye(12))
    assert model.weight.grad is None


def test_a_certificate_goes_through_json_and_is_readable(rbm):
    for found in (
        certify(rbm(12, 6), torch.eye(12), n_steps=100),
        certify(planted(1.0), spins(4, 8), n_steps=3, chains=spins(4, 8)),
    ):
        text = json.dumps(found.to_dict(), allow_nan=False)
        back = Certificate.from_dict(json.loads(text))
        assert back.to_dict() == found.to_dict()
        assert repr(back) == repr(found)
        assert found.label in repr(found)
    assert found.r_hat == back.r_hat == math.inf
    assert "autocorrelation_time>=" in repr(found)
    with pytest.raises(AttributeError):
        found.label = "equilibrium"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": torch.zeros(3, 5)}, "data must have rows of 6 visible units"),
        ({"data": torch.zeros(0, 6)}, "data must have rows of 6 visible units"),
        ({"data": torch.full((2, 6), math.nan)}, "data has values that are not finite"),
        ({"chains": torch.zeros(3, 5)}, "chains must have rows of 4 hidden or 6 visible"),
        ({"beta": 0.0}, "beta must be finite and positive"),
        ({"n_steps": 0}, "n_steps must be at least 1, got 0"),
        ({"n_chains": 0}, "n_chains must be at least 1, got 0"),
        ({"n_steps_per_update": 0}, "n_steps_per_update must be at least 1"),
        ({"time_budget": 0.0}, "time_budget must be positive"),
    ],
)
def test_impossible_requests_are_refused(rbm, options, message):
    with pytest.raises(ValueError, match=message):
        certify(rbm(6, 4), **({"data": torch.zeros(3, 6)} | options))


def test_a_model_that_diverged_is_refused(rbm):
    model = rbm(6, 4)
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="weight has values that are not finite"):
        certify(model, torch.zeros(3, 6))

"""Training by the variational free energy: its start, its gradient, and what it reaches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.datasets import load_digits

from freenergy.inference.importance import importance_log_likelihood
from freenergy.models.vae import VAE
from freenergy.random import RandomStream
from freenergy.training.rows import as_rows
from freenergy.training.trainer import Trainer
from freenergy.training.vae import (
    VariationalGradient,
    VariationalMonitor,
    VariationalOptions,
    initialize_variational,
)

DOUBLE = torch.empty(0, dtype=torch.float64)


@pytest.fixture(autouse=True)
def seeded():
    """A new module starts from torch's global stream."""
    torch.manual_seed(0)


def start(rows: np.ndarray, options: VariationalOptions, **shape) -> tuple[Trainer, object]:
    """A trainer at its start, and its rows."""
    data = as_rows(rows, DOUBLE)
    model = VAE(rows.shape[1], **shape, dtype=torch.float64)
    random = RandomStream(0)
    initialize_variational(model, data, random)
    gradient = VariationalGradient(model, options, random)
    return Trainer(model, options, random, gradient=gradient, order=RandomStream(1)), data


def binary(n: int = 60, seed: int = 0) -> np.ndarray:
    """Two patterns of six columns, one flip in ten."""
    rng = np.random.default_rng(seed)
    pattern = np.array([[1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 0]])[rng.integers(0, 2, n)]
    return (pattern ^ (rng.random((n, 6)) < 0.1)).astype(float)


# ---- the start -----------------------------------------------------------------------------------


def test_a_model_starts_at_the_means_of_the_columns():
    rows = binary()
    rows[:, 5] = 1.0
    trainer, _ = start(rows, VariationalOptions(), n_latent=2, hidden_sizes=(4,))
    with torch.no_grad():
        at_zero = trainer.model.decode(torch.zeros(2, dtype=torch.float64)).mean
    assert_allclose(at_zero, (rows.sum(0) + 1) / 62, rtol=1e-12)
    shifted = 100.0 * binary() - 7.0
    trainer, _ = start(
        shifted, VariationalOptions(), n_latent=2, hidden_sizes=(), likelihood="gaussian"
    )
    assert_allclose(trainer.model.decoder[0].bias.detach(), shifted.mean(0), rtol=1e-12)


def test_weights_start_with_glorots_spread_and_one_seed_gives_the_same_bits():
    rows = as_rows(np.zeros((5, 200)), DOUBLE)
    models = [VAE(200, 50, hidden_sizes=(100,), latent="bernoulli").double() for _ in range(2)]
    for model in models:
        initialize_variational(model, rows, RandomStream(3))
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(one, other)
    first = models[0].encoder[0].weight.detach()
    assert float(first.std()) == pytest.approx(math.sqrt(2 / 300), rel=0.03)
    assert not models[0].prior_field.any()


# ---- the gradient --------------------------------------------------------------------------------


def test_a_few_bernoulli_latents_are_enumerated_and_take_no_draws():
    model = VAE(6, 5, latent="bernoulli", dtype=torch.float64)
    batch, random = torch.from_numpy(binary(20)), RandomStream(0)
    before = random.state()
    VariationalGradient(model, VariationalOptions(), random).compute(batch)
    assert random.state() == before
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.exact_free_energy(batch).free_energy.mean().backward()
    for grad, parameter in zip(found, model.parameters(), strict=True):
        assert torch.equal(grad, parameter.grad)


@pytest.mark.parametrize(
    ("latent", "n_latent", "n_draws", "expected"),
    [
        ("gaussian", 2, None, 1),
        ("gaussian", 2, 3, 3),
        ("bernoulli", 6, None, 4),
        ("bernoulli", 2, 2, 2),
    ],
)
def test_the_gradient_is_that_of_the_mean_free_energy(latent, n_latent, n_draws, expected):
    model = VAE(6, n_latent, latent=latent, dtype=torch.float64)
    batch, options = torch.from_numpy(binary(20)), VariationalOptions(n_draws=n_draws, beta=0.5)
    gradient = VariationalGradient(model, options, RandomStream(4))
    # Twice: gradients are written, not added up.
    gradient.compute(batch)
    gradient.random = RandomStream(4)
    gradient.compute(batch)
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    result = model.free_energy(batch, RandomStream(4), expected, beta=0.5)
    result.free_energy.mean().backward()
    for grad, parameter in zip(found, model.parameters(), strict=True):
        assert_allclose(grad, parameter.grad, rtol=1e-12)
    measured = gradient.measure()
    for name, value in measured.items():
        assert value == pytest.approx(float(getattr(result, name).detach().mean()), rel=1e-12)
    assert measured["free_energy"] == pytest.approx(measured["energy"] - measured["entropy"] / 0.5)
    assert gradient.measure() == {}


def test_one_draw_of_bernoulli_latents_is_refused_before_training():
    model = VAE(6, 2, latent="bernoulli")
    with pytest.raises(ValueError, match="n_draws must be at least 2 with Bernoulli latents"):
        VariationalGradient(model, VariationalOptions(n_draws=1), RandomStream(0))


def test_options_are_those_of_the_loop_and_of_the_draws():
    options = VariationalOptions(n_draws=3, l2=0.1)
    assert VariationalOptions.from_dict(options.to_dict()) == options
    with pytest.raises(ValueError, match="weight_constraint='l2' has no meaning"):
        VariationalOptions(weight_constraint="l2", max_norm=1.0)
    with pytest.raises(ValueError, match="n_draws must be a whole number"):
        VariationalOptions(n_draws=1.5)


# ---- what training reaches -----------------------------------------------------------------------


def test_a_linear_vae_learns_the_likelihood_of_probabilistic_pca():
    """Tipping & Bishop's closed form is the maximum, and F = −ln p there: the bound is tight."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(5, 2)))[0]
    rows = 1.7 * rng.normal(size=(300, 2)) @ axes.T + rng.normal(size=(300, 5))
    rows += rng.normal(size=5)
    eigenvalues = np.linalg.eigvalsh(np.cov(rows.T, ddof=0))[::-1]
    noise = eigenvalues[2:].mean()
    maximum = -0.5 * (np.log(eigenvalues[:2]).sum() + 3 * math.log(noise))
    maximum -= 2.5 * (math.log(2 * math.pi) + 1)
    options = VariationalOptions(
        n_epochs=400, batch_size=300, learning_rate=0.03, learning_rate_decay=0.002, n_draws=8
    )
    trainer, data = start(
        rows,
        options,
        n_latent=2,
        hidden_sizes=(),
        likelihood="gaussian",
        learn_noise=True,
    )
    trainer.fit(data)
    model, x = trainer.model, data.take(slice(0, 300))
    found = importance_log_likelihood(model, x, 500, random=RandomStream(0))
    assert found.trusted
    assert found.mean == pytest.approx(maximum, abs=0.005)
    with torch.no_grad():
        bound = -float(model.free_energy(x, RandomStream(0), 500).free_energy.mean())
    assert bound == pytest.approx(maximum, abs=0.02)
    assert float(model.log_noise_variance.detach().exp()) == pytest.approx(noise, rel=0.03)


@pytest.mark.parametrize(("latent", "gain"), [("gaussian", 6.0), ("bernoulli", 3.0)])
def test_training_lowers_the_free_energy_of_held_out_digits(latent, gain):
    rows = np.random.default_rng(0).permutation(load_digits().data / 16 > 0.5).astype(float)
    options = VariationalOptions(n_epochs=12, batch_size=50, learning_rate=0.005)
    trainer, data = start(rows[:1200], options, n_latent=8, hidden_sizes=(40,), latent=latent)
    trainer.monitors = (VariationalMonitor(torch.from_numpy(rows[1200:])),)
    with torch.no_grad():
        before = trainer.monitors[0](trainer.model)["free_energy_held_out"]
    trainer.fit(data)
    after = [record["free_energy_held_out"] for record in trainer.history]
    assert after[-1] < after[0] < before
    assert after[-1] < before - gain
    for record in trainer.history:
        for suffix in ("", "_held_out"):
            parts = (record[name + suffix] for name in ("energy", "entropy"))
            assert record["free_energy" + suffix] == pytest.approx(next(parts) - next(parts))


def test_the_monitor_reads_without_moving_the_training():
    options = VariationalOptions(n_epochs=3, batch_size=10)
    weights = []
    for monitors in ((), (VariationalMonitor(torch.from_numpy(binary(5))),)):
        trainer, data = start(binary(), options, n_latent=2)
        trainer.monitors = monitors
        trainer.fit(data)
        weights.append(trainer.model.encoder[0].weight.detach())
    assert torch.equal(*weights)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
@pytest.mark.parametrize("latent", ["gaussian", "bernoulli"])
def test_a_training_resumes_to_the_same_bits(optimizer, latent):
    def make(n_epochs):
        options = VariationalOptions(
            n_epochs=n_epochs, batch_size=16, optimizer=optimizer, learning_rate=0.01, n_draws=2
        )
        return start(binary(), options, n_latent=3, hidden_sizes=(4,), latent=latent)

    whole, data = make(6)
    whole.fit(data)
    first, _ = make(3)
    first.fit(data)
    second, _ = make(6)
    second.restore(*first.state())
    second.fit(data)
    for one, other in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [r["free_energy"] for r in whole.history] == [r["free_energy"] for r in second.history]


def test_a_reading_between_updates_survives_a_restore():
    model = VAE(6, 2, dtype=torch.float64)
    gradient = VariationalGradient(model, VariationalOptions(), RandomStream(0))
    gradient.compute(torch.from_numpy(binary(20)))
    stored = {name: t.clone() for name, t in gradient.state().items()}
    expected = gradient.measure()
    gradient.restore(stored)
    assert gradient.measure() == expected

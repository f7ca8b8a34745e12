"""The likelihood by importance weighting: bounds, limits, intervals, and when not to trust it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import multivariate_normal

from freenergy.inference import importance
from freenergy.inference.importance import importance_log_likelihood
from freenergy.models.vae import VAE
from freenergy.random import RandomStream

NOISE = 0.5


@pytest.fixture(autouse=True)
def seeded():
    """A new module starts from torch's global stream."""
    torch.manual_seed(0)


def linear_gaussian(seed: int, error: float, n_rows: int = 40):
    """A linear-Gaussian VAE, rows of its own, and their exact ln p.

    Two latents with orthogonal weights; the encoder is the posterior but for normal errors of
    this scale in its means' slopes and in its log-variances.
    """
    rng = np.random.default_rng(seed)
    weight = np.linalg.qr(rng.normal(size=(6, 2)))[0] * rng.uniform(1, 2, 2)
    mean = rng.normal(size=6)
    precision = 1 + (weight**2).sum(0) / NOISE
    gain = weight.T / NOISE / precision[:, None] + error * rng.normal(size=(2, 6))
    model = VAE(
        6,
        2,
        hidden_sizes=(),
        likelihood="gaussian",
        noise_variance=NOISE,
        dtype=torch.float64,
    )
    encoder, decoder = model.encoder[0], model.decoder[0]
    log_variance = -np.log(precision) + error * rng.normal(size=2)
    with torch.no_grad():
        for parameter, value in (
            (encoder.weight, np.vstack([gain, np.zeros((2, 6))])),
            (encoder.bias, np.concatenate([-gain @ mean, log_variance])),
            (decoder.weight, weight),
            (decoder.bias, mean),
        ):
            parameter.copy_(torch.from_numpy(value))
    exact = multivariate_normal(mean, weight @ weight.T + NOISE * np.eye(6))
    rows = exact.rvs(n_rows, random_state=seed).reshape(n_rows, 6)
    return model, torch.from_numpy(rows), np.atleast_1d(exact.logpdf(rows))


def bernoulli(seed: int = 0):
    """Bernoulli latents, zeros and ones, and ln p by the sum over the latent states."""
    model = VAE(6, 3, hidden_sizes=(4,), latent="bernoulli", dtype=torch.float64)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(size=tuple(parameter.shape))))
        rows = torch.from_numpy(rng.integers(0, 2, (30, 6)).astype(float))
        exact = torch.logsumexp(-model.energy(rows, model.latent_states()[:, None]), 0)
    return model, rows, exact.numpy()


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("n_samples", [2, 100])
def test_with_the_posterior_every_draw_gives_the_likelihood(n_samples, common):
    model, rows, exact = linear_gaussian(0, error=0.0)
    random = RandomStream(0)
    found = importance_log_likelihood(model, rows, n_samples, random=random, common=common)
    assert_allclose(found.per_sample, exact, rtol=1e-12)
    assert found.mean == pytest.approx(exact.mean(), rel=1e-12)
    assert_allclose(found.effective_sample_size, n_samples, rtol=1e-9)
    assert found.upper - found.lower < 1e-5
    assert found.n_draws == n_samples


def test_the_bound_rises_with_the_draws_to_the_likelihood():
    """ELBO < L_4 < L_64 < L_4096 = ln p, each mean over 2000 rows far beyond its error."""
    model, rows, exact = linear_gaussian(1, error=0.1, n_rows=2000)
    means = {}
    for k in (1, 4, 64, 4096):
        part = slice(None) if k < 4096 else slice(0, 200)
        found = importance_log_likelihood(model, rows[part], k, random=RandomStream(k))
        means[k] = found.mean - exact[part].mean()
    assert means[1] < means[4] - 0.05 < means[64] - 0.06
    assert means[64] < 0
    assert means[4096] == pytest.approx(0, abs=0.01)
    with torch.no_grad():
        elbo = -float(model.free_energy(rows, RandomStream(0), 50).free_energy.mean())
    assert means[1] == pytest.approx(elbo - exact.mean(), abs=0.1)


def test_bernoulli_latents_agree_with_the_sum_over_their_states():
    model, rows, exact = bernoulli()
    found = importance_log_likelihood(model, rows, 20_000, random=RandomStream(0))
    assert found.lower < exact.mean() < found.upper
    inside = (found.per_sample_lower < exact) & (exact < found.per_sample_upper)
    assert inside.mean() >= 0.85
    assert found.upper - found.lower < 0.1


@pytest.mark.parametrize("common", [False, True])
def test_trusted_intervals_hold_the_truth(common):
    """60 models, from an exact encoder to one whose weights have no variance."""
    n_trusted = n_inside = 0
    for seed in range(60):
        error = (0.02, 0.05, 0.1)[seed % 3]
        model, rows, exact = linear_gaussian(seed, error)
        random = RandomStream(seed)
        found = importance_log_likelihood(model, rows, 300, random=random, common=common)
        n_trusted += found.trusted
        n_inside += found.trusted and found.lower <= exact.mean() <= found.upper
    assert n_trusted > 20
    assert n_inside >= 0.95 * n_trusted


def test_intervals_of_rows_hold_the_truth_where_the_weights_are_even():
    inside = []
    for seed in range(20):
        model, rows, exact = linear_gaussian(seed, 0.03)
        found = importance_log_likelihood(model, rows, 500, random=RandomStream(seed))
        even = found.effective_sample_size > 250
        inside.append(((found.per_sample_lower <= exact) & (exact <= found.per_sample_upper))[even])
    share = np.concatenate(inside)
    assert len(share) > 300
    assert 0.92 < share.mean() < 0.98


def test_an_encoder_far_off_is_not_trusted():
    model, rows, exact = linear_gaussian(0, error=1.0)
    found = importance_log_likelihood(model, rows, 1000, random=RandomStream(0))
    assert not found.trusted
    assert found.mean < exact.mean() - 1
    assert "of 40 rows are worth less than 50" in found.reasons[0]
    assert "trusted=False, reasons=" in repr(found)


def test_one_draw_has_no_error_and_no_trust():
    model, rows, _ = linear_gaussian(0, error=0.1)
    found = importance_log_likelihood(model, rows, 1, random=RandomStream(0))
    assert (found.lower, found.upper) == (-math.inf, math.inf)
    assert not found.trusted


def test_too_few_draws_are_not_blamed_on_the_encoder():
    model, rows, _ = linear_gaussian(0, 0.0)
    few, enough = (
        importance_log_likelihood(model, rows, n, random=RandomStream(0)) for n in (9, 10)
    )
    assert not few.trusted
    assert few.reasons[0].endswith("so few tell nothing of the weights' tail; take more")
    assert enough.trusted, "the encoder is the posterior"


def test_common_noise_makes_a_row_independent_of_the_others():
    model, rows, _ = linear_gaussian(0, error=0.1)
    whole, part = (
        importance_log_likelihood(model, x, 50, random=RandomStream(7), common=True)
        for x in (rows, rows[30:])
    )
    assert_allclose(whole.per_sample[30:], part.per_sample, rtol=1e-12)
    independent = importance_log_likelihood(model, rows, 50, random=RandomStream(7))
    assert whole.mean - whole.lower > 2 * (independent.mean - independent.lower)


@pytest.mark.parametrize("elements", [1, 60, 700])
def test_blocks_change_nothing_but_the_order_of_sums(monkeypatch, elements):
    model, rows, _ = linear_gaussian(0, error=0.1)
    expected = importance_log_likelihood(model, rows, 30, random=RandomStream(7), common=True)
    monkeypatch.setattr(importance, "_BLOCK_ELEMENTS", elements)
    found = importance_log_likelihood(model, rows, 30, random=RandomStream(7), common=True)
    assert_allclose(found.per_sample, expected.per_sample, rtol=1e-12)
    assert_allclose(found.effective_sample_size, expected.effective_sample_size, rtol=1e-9)


def test_one_seed_gives_the_same_bits_and_rows_have_draws_of_their_own():
    model, rows, _ = linear_gaussian(0, error=0.1)
    rows = rows[:1].expand(5, 6)
    first, again = (
        importance_log_likelihood(model, rows, 20, random=RandomStream(7)) for _ in range(2)
    )
    assert_array_equal(first.per_sample, again.per_sample)
    assert len(set(first.per_sample)) == 5


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("latent", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_saturated_units_stay_finite(latent, likelihood, extreme):
    model = VAE(6, 2, hidden_sizes=(), latent=latent, likelihood=likelihood)
    with torch.no_grad():
        for network in (model.encoder, model.decoder):
            network[0].bias.fill_(extreme)
    found = importance_log_likelihood(model, torch.eye(6), 50, random=RandomStream(0))
    assert np.isfinite([found.mean, found.lower, found.upper]).all()
    assert (found.effective_sample_size >= 1 - 1e-9).all()


def test_a_single_row_has_no_error_of_the_rows():
    model, rows, _ = linear_gaussian(0, error=0.1)
    one = importance_log_likelihood(model, rows[:1], 50, random=RandomStream(0))
    assert math.isnan(one.rows_stderr)
    all_rows = importance_log_likelihood(model, rows, 50, random=RandomStream(0))
    assert all_rows.rows_stderr == pytest.approx(all_rows.per_sample.std(ddof=1) / math.sqrt(40))


def test_the_interval_is_that_of_the_weights_spread_raised_by_twice_the_bias():
    """By the delta method, from the effective sample size; for one row the mean's is the row's."""
    model, rows, _ = linear_gaussian(0, 0.3, n_rows=1)
    found = importance_log_likelihood(model, rows, 200, random=RandomStream(0))
    variance = 1 / found.effective_sample_size[0] - 1 / 200
    assert 1e-3 < variance < 0.1
    width = 1.96 * math.sqrt(variance)
    assert found.lower == pytest.approx(found.mean - width, abs=1e-12)
    assert found.upper == pytest.approx(found.mean + width + variance, abs=1e-12)
    assert (found.lower, found.upper) == pytest.approx(
        (found.per_sample_lower[0], found.per_sample_upper[0]), abs=1e-12
    )


def test_rows_and_draws_are_needed():
    model, rows, _ = linear_gaussian(0, error=0.1)
    with pytest.raises(ValueError, match=r"rows must have shape \(n, 6\) with n > 0, got \(0, 6\)"):
        importance_log_likelihood(model, rows[:0], random=RandomStream(0))
    with pytest.raises(ValueError, match=r"got \(40, 5\)"):
        importance_log_likelihood(model, rows[:, :5], random=RandomStream(0))
    with pytest.raises(ValueError, match="n_samples must be at least 1, got 0"):
        importance_log_likelihood(model, rows, 0, random=RandomStream(0))


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize(("size", "n_draws"), [(3, 200), (3, 2)])
def test_the_draws_of_several_processes_count_together(together, common, size, n_draws):
    model, rows, _ = linear_gaussian(0, 0.3, 6)

    def work(group):
        return importance_log_likelihood(
            model, rows, n_draws, random=RandomStream(1), common=common, group=group
        )

    def weights(group):
        random, n = group.stream(RandomStream(1)), group.share(n_draws)
        posterior = model.encode(rows)
        noise = model.noise(random, (n, 1) if common else (n, len(rows)))
        z = model.place(posterior, noise)
        # Distributions do not take an empty set of states.
        own = -model.energy(rows, z) - posterior.log_prob(z) if n else torch.empty(0, len(rows))
        return group.join(own)

    log_weight = together(size, torch.no_grad()(weights))[0]
    assert log_weight.shape == (n_draws, 6)
    found = together(size, work)
    share = torch.softmax(log_weight, 0)
    for result in found:
        assert_allclose(result.per_sample, log_weight.logsumexp(0) - math.log(n_draws))
        assert_allclose(result.effective_sample_size, 1 / (share**2).sum(0))
        assert (result.lower, result.upper) == (found[0].lower, found[0].upper)
        assert result.n_draws == n_draws


def test_one_and_three_processes_find_the_likelihood(together):
    for seed in range(4):
        model, rows, exact = linear_gaussian(seed, 0.1, 20)

        def work(group, model=model, rows=rows):
            return importance_log_likelihood(model, rows, 400, random=RandomStream(0), group=group)

        one, three = together(1, work)[0], together(3, work)[0]
        assert one.mean != three.mean
        for result in (one, three):
            assert result.trusted
            # The interval is of 95 %; half of it more on either side holds but once in 300 times.
            slack = 0.25 * (result.upper - result.lower)
            assert result.lower - slack < exact.mean() < result.upper + slack

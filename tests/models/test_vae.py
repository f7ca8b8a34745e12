"""The negative evidence lower bound as a free energy: closed forms, enumeration, extreme fields."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.special import expit, xlogy
from scipy.stats import multivariate_normal

from freenergy.models.vae import VAE, unravel
from freenergy.random import RandomStream

NOISE = 0.3


def linear_gaussian(seed: int = 0, n_visible: int = 5, n_latent: int = 2) -> VAE:
    """x = W z + m + noise, with orthogonal columns of W and the exact posterior as its encoder."""
    rng = np.random.default_rng([seed, n_visible, n_latent])
    columns = np.linalg.qr(rng.normal(size=(n_visible, n_latent)))[0]
    weight = columns * rng.uniform(0.5, 2.0, n_latent)
    mean = rng.normal(size=n_visible)
    model = VAE(
        n_visible,
        n_latent,
        hidden_sizes=(),
        likelihood="gaussian",
        noise_variance=NOISE,
        dtype=torch.float64,
    )
    precision = 1 + (weight**2).sum(0) / NOISE
    gain = weight.T / NOISE / precision[:, None]
    with torch.no_grad():
        model.decoder[0].weight.copy_(torch.from_numpy(weight))
        model.decoder[0].bias.copy_(torch.from_numpy(mean))
        model.encoder[0].weight[:n_latent] = torch.from_numpy(gain)
        model.encoder[0].weight[n_latent:] = 0
        model.encoder[0].bias[:n_latent] = torch.from_numpy(-gain @ mean)
        model.encoder[0].bias[n_latent:] = torch.from_numpy(-np.log(precision))
    return model


def marginal(model: VAE):
    """The distribution of the rows of a linear-Gaussian model."""
    weight, mean = (p.detach().numpy() for p in (model.decoder[0].weight, model.decoder[0].bias))
    variance = math.exp(float(model.log_noise_variance))
    return multivariate_normal(mean, weight @ weight.T + variance * np.eye(len(mean)))


@pytest.fixture(autouse=True)
def seeded():
    """A new module starts from torch's global stream."""
    torch.manual_seed(0)


@pytest.fixture
def sigma_points(monkeypatch):
    """Noise whose first three moments are those of N(0, 1): quadratic means become exact."""

    def noise(self, random, shape):
        points = math.sqrt(self.n_latent) * torch.eye(self.n_latent, dtype=torch.float64)
        return torch.cat([points, -points])[:, None].expand(-1, shape[1], -1)

    monkeypatch.setattr(VAE, "noise", noise)


def make_bernoulli(seed: int = 0, **options) -> VAE:
    """Six columns, three Bernoulli latents, parameters of order one."""
    options = {"hidden_sizes": (4,), "latent": "bernoulli", **options}
    model = VAE(6, 3, dtype=torch.float64, **options)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(np.asarray(rng.normal(size=parameter.shape))))
    return model


def binary(n: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 2, (n, 6)).astype(float))


def by_hand(model: VAE, x: torch.Tensor) -> dict[str, np.ndarray]:
    """Energy, entropy and ln q of every latent state, in NumPy from the layers' outputs."""
    with torch.no_grad():
        q = expit(model.encoder(x).numpy())
        states = np.array(list(itertools.product((0.0, 1.0), repeat=model.n_latent)))
        p = expit(model.decoder(torch.from_numpy(states)).numpy())[:, None]
    prior = expit(model.prior_field.detach().numpy())

    def log_mass(value, probability):
        return (xlogy(value, probability) + xlogy(1 - value, 1 - probability)).sum(-1)

    energy = -log_mass(states, prior)[:, None] - log_mass(x.numpy(), p)
    log_q = log_mass(states[:, None], q)
    weight = np.exp(log_q)
    return {
        "energy": (weight * energy).sum(0),
        "entropy": -(weight * log_q).sum(0),
        "log_likelihood": np.log(np.exp(-energy).sum(0)),
        "all_energies": energy,
    }


# ---- Gaussian latents against the linear-Gaussian model ------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_with_the_posterior_the_free_energy_is_minus_the_log_likelihood(seed, sigma_points):
    model = linear_gaussian(seed)
    x = torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (20, 5)))
    found = model.free_energy(x, RandomStream(0))
    assert_allclose(found.free_energy.detach(), -marginal(model).logpdf(x), rtol=1e-12)


def test_any_other_distribution_costs_its_divergence_from_the_posterior(sigma_points):
    model = linear_gaussian()
    x = torch.from_numpy(np.random.default_rng(1).normal(0, 3, (20, 5)))
    posterior = model.encode(x)
    mean, variance = posterior.mean.detach(), posterior.variance.detach()
    with torch.no_grad():
        model.encoder[0].bias += torch.tensor([0.4, -0.7, 0.9, -1.3], dtype=torch.float64)
        other = model.encode(x)
        ratio = other.variance / variance
        divergence = ratio - 1 - ratio.log() + (other.mean - mean) ** 2 / variance
        found = model.free_energy(x, RandomStream(0))
    expected = -marginal(model).logpdf(x) + 0.5 * divergence.sum(-1).numpy()
    assert_allclose(found.free_energy, expected, rtol=1e-12)


def test_with_the_posterior_the_gradient_is_that_of_the_likelihood(sigma_points):
    model = linear_gaussian()
    x = torch.from_numpy(np.random.default_rng(2).normal(0, 2, (20, 5)))
    model.free_energy(x, RandomStream(0)).free_energy.mean().backward()
    # It is a minimum in the encoder ...
    for parameter in model.encoder.parameters():
        assert_allclose(parameter.grad, 0, atol=1e-12)
    # ... so that the decoder alone feels the change of ln p.
    weight = model.decoder[0].weight.detach().clone().requires_grad_()
    bias = model.decoder[0].bias.detach().clone().requires_grad_()
    covariance = weight @ weight.T + NOISE * torch.eye(5, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(bias, covariance)
    (-exact.log_prob(x).mean()).backward()
    assert_allclose(model.decoder[0].weight.grad, weight.grad, atol=1e-11)
    assert_allclose(model.decoder[0].bias.grad, bias.grad, atol=1e-11)


def test_draws_give_the_free_energy_on_average():
    model, n = linear_gaussian(), 20_000
    x = torch.from_numpy(np.random.default_rng(3).normal(0, 2, (1, 5)))
    with torch.no_grad():
        draws = model.free_energy(x.expand(n, 5), RandomStream(0)).free_energy
    z = (float(draws.mean()) + marginal(model).logpdf(x)) / float(draws.std() / math.sqrt(n))
    assert abs(z) < 4


def test_samples_have_the_models_mean_and_covariance():
    model, n = linear_gaussian(), 200_000
    rows = model.sample(n, RandomStream(0)).numpy()
    expected = marginal(model)
    assert_allclose(rows.mean(0), expected.mean, atol=5 * rows.std(0).max() / math.sqrt(n))
    assert_allclose(np.cov(rows.T), expected.cov, atol=0.05)


# ---- Bernoulli latents against enumeration -------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_enumeration_gives_energy_and_entropy(seed):
    model, x = make_bernoulli(seed), binary(10, seed)
    found, expected = model.exact_free_energy(x), by_hand(model, x)
    assert_allclose(found.energy.detach(), expected["energy"], rtol=1e-12)
    assert_allclose(found.entropy.detach(), expected["entropy"], rtol=1e-12)
    assert_allclose(found.free_energy.detach(), expected["energy"] - expected["entropy"])
    assert (found.free_energy.detach().numpy() > -expected["log_likelihood"]).all()


def test_the_energy_of_a_state_is_minus_its_log_probability():
    model, x = make_bernoulli(), binary(7)
    energy = model.energy(x, model.latent_states()[:, None])
    assert_allclose(energy.detach(), by_hand(model, x)["all_energies"], rtol=1e-12)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_draws_of_bernoulli_latents_give_the_enumerated_value(likelihood):
    model, n = make_bernoulli(likelihood=likelihood), 20_000
    x = binary(1)
    with torch.no_grad():
        exact = model.exact_free_energy(x)
        drawn = model.free_energy(x.expand(n, 6), RandomStream(0))
    assert_allclose(drawn.entropy, float(exact.entropy), rtol=1e-12)
    z = (drawn.energy.mean() - exact.energy[0]) / (drawn.energy.std() / math.sqrt(n))
    assert abs(float(z)) < 4


@pytest.mark.parametrize("n_samples", [2, 5])
def test_the_gradient_of_bernoulli_latents_is_unbiased(n_samples):
    model, x, n = make_bernoulli(), binary(1), 400
    parameters = list(model.parameters())
    exact = torch.autograd.grad(model.exact_free_energy(x).free_energy.sum(), parameters)
    random, draws = RandomStream(1), []
    for _ in range(n):
        # A batch of one row many times: the mean of 50 gradients at once.
        value = model.free_energy(x.expand(50, 6), random, n_samples).free_energy.mean()
        draws.append(torch.autograd.grad(value, parameters))
    for i, reference in enumerate(exact):
        samples = torch.stack([draw[i] for draw in draws])
        error = samples.std(0) / math.sqrt(n)
        # What has no spread (the prior's field: its part is closed) is exact.
        assert bool(((samples.mean(0) - reference).abs() <= 4.5 * error + 1e-12).all())
        assert float(reference.abs().max()) > 10 * float(error.max())


def test_the_score_adds_nothing_to_the_value():
    model, x = make_bernoulli(), binary(5)
    with_gradient = model.free_energy(x, RandomStream(0), 3).free_energy.detach()
    with torch.no_grad():
        assert_allclose(model.free_energy(x, RandomStream(0), 3).free_energy, with_gradient)


def test_one_draw_of_bernoulli_latents_has_a_value_but_no_gradient():
    model, x = make_bernoulli(), binary(5)
    with pytest.raises(ValueError, match="needs n_samples of at least 2, got 1"):
        model.free_energy(x, RandomStream(0))
    with torch.no_grad():
        assert bool(model.free_energy(x, RandomStream(0)).free_energy.isfinite().all())


# ---- temperature ---------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.4, 1.0, 3.0])
def test_the_boltzmann_distribution_minimises_the_free_energy_at_its_temperature(beta):
    """One latent unit: any q is a field, and the best one is βΔE."""
    model = VAE(6, 1, hidden_sizes=(), latent="bernoulli", dtype=torch.float64)
    x = binary(1)
    with torch.no_grad():
        model.prior_field.fill_(0.7)
        model.decoder[0].weight.fill_(0.1)
        energy = model.energy(x, model.latent_states())
        floor = -torch.logsumexp(-beta * energy, 0) / beta
        model.encoder[0].weight.zero_()
        for shift in (0.0, 0.5, -0.5):
            model.encoder[0].bias.fill_(float(beta * (energy[0] - energy[1])) + shift)
            found = float(model.exact_free_energy(x, beta=beta).free_energy)
            if shift == 0.0:
                assert found == pytest.approx(float(floor), abs=1e-12)
            else:
                assert found > float(floor) + 1e-3


@pytest.mark.parametrize("latent", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_free_energy_is_energy_minus_temperature_times_entropy(latent, beta):
    model = VAE(6, 3, latent=latent, dtype=torch.float64)
    found = model.free_energy(binary(4), RandomStream(0), 2, beta=beta)
    assert_allclose(*(t.detach() for t in (found.free_energy, found.energy - found.entropy / beta)))


# ---- unravelled from an RBM ----------------------------------------------------------------------


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_an_unravelled_rbm_keeps_both_conditionals(rbm, beta):
    machine, x = rbm(6, 3), binary(8)
    model = unravel(machine, x, beta=beta)
    with torch.no_grad():
        h = model.latent_states()
        assert_allclose(model.encode(x).mean, machine.hidden_mean(x, beta), rtol=1e-12)
        assert_allclose(model.decode(h).mean, machine.visible_mean(h, beta), rtol=1e-12)


def test_the_prior_of_an_unravelled_rbm_is_the_best_factorial_one(rbm):
    machine, x = rbm(6, 3, scale=1.0), binary(8).repeat(100_000, 1)
    field = unravel(machine, x).prior_field.detach().clone()
    x = x[:8]
    model = unravel(machine, x)
    with torch.no_grad():
        # The pseudo-counts are nothing beside so many rows.
        model.prior_field.copy_(field)
    model.exact_free_energy(x).free_energy.mean().backward()
    assert_allclose(model.prior_field.grad, 0, atol=1e-5)


def test_without_rows_the_prior_is_that_of_the_visible_biases(rbm):
    machine = rbm(6, 3)
    with torch.no_grad():
        expected = machine.hidden_field(machine.visible_bias.sigmoid())
    assert_allclose(unravel(machine).prior_field.detach(), expected.detach(), rtol=1e-12)


def test_unravelling_copies_the_weights_and_leaves_the_global_stream_alone(rbm):
    machine = rbm(6, 3)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model = unravel(machine)
    assert torch.equal(torch.get_rng_state(), before)
    expected = machine.weight.detach().clone()
    with torch.no_grad():
        model.decoder[0].weight.add_(1.0)
    assert torch.equal(machine.weight, expected)


def test_only_an_rbm_of_zeros_and_ones_unravels(rbm):
    with pytest.raises(ValueError, match="hidden ones are spin"):
        unravel(rbm(6, 3, hidden="spin"))


# ---- extremes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("latent", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_saturated_units_stay_finite_with_their_gradients(dtype, likelihood, latent, extreme):
    model = VAE(6, 3, hidden_sizes=(), latent=latent, likelihood=likelihood, dtype=dtype)
    with torch.no_grad():
        for network in (model.encoder, model.decoder):
            network[0].bias.fill_(extreme)
    found = model.free_energy(binary(4).to(dtype), RandomStream(0), 2)
    found.free_energy.sum().backward()
    for part in (found.free_energy, found.energy, found.entropy):
        assert bool(part.isfinite().all())
    for parameter in model.parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all())


def test_a_saturated_bernoulli_unit_has_no_entropy_and_a_prior_may_rule_it_out():
    model = VAE(6, 3, hidden_sizes=(), latent="bernoulli", dtype=torch.float64)
    with torch.no_grad():
        model.encoder[0].bias.fill_(1e4)
        model.prior_field.fill_(-1e4)
        found = model.exact_free_energy(binary(2))
    assert_allclose(found.entropy, 0, atol=1e-300)
    assert_allclose(found.energy, 3e4, rtol=1e-3)


@pytest.mark.parametrize("latent", ["gaussian", "bernoulli"])
def test_rows_far_outside_stay_finite(latent):
    model = VAE(6, 3, latent=latent, likelihood="gaussian")
    rows = torch.full((2, 6), 1e4)
    assert bool(model.free_energy(rows, RandomStream(0), 2).free_energy.isfinite().all())


# ---- interface -----------------------------------------------------------------------------------


@pytest.mark.parametrize("latent", ["gaussian", "bernoulli"])
def test_one_seed_gives_the_same_bits_and_common_noise_the_same_rows(latent):
    model, x = VAE(6, 3, latent=latent, dtype=torch.float64), binary(5)
    with torch.no_grad():
        first, again = (model.free_energy(x, RandomStream(3), 4).free_energy for _ in range(2))
        assert torch.equal(first, again)
        whole, part = (
            model.free_energy(rows, RandomStream(3), 4, common=True).free_energy
            for rows in (x, x[3:])
        )
    assert_allclose(whole[3:], part, rtol=1e-13)
    assert torch.equal(model.sample(4, RandomStream(5)), model.sample(4, RandomStream(5)))


@pytest.mark.parametrize("activation", ["tanh", "relu", "logistic", "softplus", "selu"])
def test_the_nets_are_torchs_layers_as_torch_starts_them(activation):
    names = {"tanh": "Tanh", "relu": "ReLU", "logistic": "Sigmoid", "softplus": "Softplus"}
    phi = getattr(torch.nn, names.get(activation, "SELU"))
    torch.manual_seed(3)
    model = VAE(6, 2, hidden_sizes=(5, 4), activation=activation, dtype=torch.float64)
    torch.manual_seed(3)
    for net, (first, second, third, last) in (
        (model.encoder, (6, 5, 4, 4)),
        (model.decoder, (2, 4, 5, 6)),
    ):
        layers = [
            torch.nn.Linear(first, second, dtype=torch.float64),
            phi(),
            torch.nn.Linear(second, third, dtype=torch.float64),
            phi(),
            torch.nn.Linear(third, last, dtype=torch.float64),
        ]
        assert [type(layer) for layer in net] == [type(layer) for layer in layers]
        expected = torch.nn.Sequential(*layers).state_dict()
        assert list(net.state_dict()) == list(expected)
        for name, tensor in net.state_dict().items():
            assert torch.equal(tensor, expected[name])


def test_a_model_says_what_it_is():
    model = VAE(6, 2, hidden_sizes=())
    assert "n_visible=6, n_latent=2, latent='gaussian', likelihood='bernoulli'" in repr(model)
    found = repr(model.free_energy(binary(3).float(), RandomStream(0)))
    assert found.startswith("VariationalFreeEnergy(mean of 3 rows: free_energy=")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_latent": 0}, "at least one unit in each layer"),
        ({"hidden_sizes": (3, 0)}, "at least one unit in each layer"),
        ({"latent": "spin"}, "latent must be one of 'gaussian', 'bernoulli', got 'spin'"),
        ({"likelihood": "poisson"}, "likelihood must be one of"),
        ({"activation": "step"}, "activation must be one of"),
        ({"noise_variance": 0.0}, "noise_variance must lie between 1e-13 and 1e13, got 0"),
        ({"noise_variance": math.inf}, "noise_variance must lie between .*, got inf"),
    ],
)
def test_an_impossible_model_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        VAE(**{"n_visible": 4, "n_latent": 2, **options})


def test_what_cannot_be_enumerated_or_drawn_is_refused():
    with pytest.raises(ValueError, match="2 gaussian latents cannot be enumerated"):
        VAE(4, 2).exact_free_energy(torch.ones(1, 4))
    with pytest.raises(ValueError, match="13 bernoulli latents cannot be enumerated"):
        VAE(4, 13, latent="bernoulli").latent_states()
    with pytest.raises(ValueError, match="n_samples must be at least 1, got 0"):
        VAE(4, 2).free_energy(torch.ones(1, 4), RandomStream(0), 0)

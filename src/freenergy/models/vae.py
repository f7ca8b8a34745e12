r"""The variational autoencoder: a model whose training objective *is* a variational free energy.

With the energy :math:`E(x, z) = -\ln p(x, z)` of a row and its latent state, any distribution
:math:`q(z \mid x)` has :math:`F = \langle E \rangle_q - S(q) \ge -\ln p(x)`, and equality holds for
the Boltzmann distribution of :math:`E`, the posterior. The negative evidence lower bound is this F.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils import skip_init

from freenergy.arrays import as_matrix
from freenergy.models.mlp import ACTIVATIONS, layered, linear_layers
from freenergy.models.rbm import RBM
from freenergy.random import RandomStream

__all__ = ["VAE", "VariationalFreeEnergy", "unravel"]

_LATENTS = ("gaussian", "bernoulli")
_LIKELIHOODS = ("bernoulli", "gaussian")
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": ACTIVATIONS["tanh"],
    "relu": ACTIVATIONS["relu"],
    "logistic": ACTIVATIONS["logistic"],
    "softplus": nn.Softplus,
    "selu": ACTIVATIONS["selu"],
}

# Squares of such deviations stay finite in single precision.
_SMALLEST_VARIANCE = 1e-13
_LARGEST_LOG_VARIANCE = -math.log(_SMALLEST_VARIANCE)
_MOST_ENUMERATED = 12


@dataclass(frozen=True, eq=False)
class VariationalFreeEnergy:
    r"""Variational free energy of each row and its two parts, :math:`F = U - TS`.

    Attributes
    ----------
    free_energy : Tensor of shape (n,)
        In nats. At :math:`T = 1` an upper bound of :math:`-\ln p(x)`, in expectation over the
        draws. Its gradient is unbiased.
    energy : Tensor of shape (n,)
        :math:`U = \langle -\ln p(x, z) \rangle_q`.
    entropy : Tensor of shape (n,)
        Of :math:`q(z \mid x)`; for Gaussian latents differential, which may be negative.
    """

    free_energy: Tensor
    energy: Tensor
    entropy: Tensor

    def __repr__(self) -> str:
        parts = ", ".join(
            f"{name}={float(getattr(self, name).detach().double().mean()):.2f}"
            for name in ("free_energy", "energy", "entropy")
        )
        return f"VariationalFreeEnergy(mean of {len(self.energy)} rows: {parts})"


class VAE(nn.Module):
    r"""Variational autoencoder with Gaussian or Bernoulli latent units.

    .. math:: E(x, z) = -\ln p(z) - \ln p(x \mid z), \qquad
              F(x) = \langle E(x, z) \rangle_q - T S(q) \ge -T \ln \int e^{-E(x, z) / T} \, dz

    The encoder gives :math:`q(z \mid x)`, which is factorial: :math:`N(\mu, \sigma^2)` with
    :math:`(\mu, \ln \sigma^2)` its outputs, or Bernoulli with its outputs as fields. The decoder
    gives the fields (or means) of :math:`p(x \mid z)`. The prior is :math:`N(0, 1)`, or Bernoulli
    with learned fields.

    Parameters
    ----------
    n_visible, n_latent : int
        Numbers of columns and of latent units.
    hidden_sizes : sequence of int, default=(256,)
        Hidden layers of the encoder; the decoder has them in reverse. Empty: both are linear.
    latent : {"gaussian", "bernoulli"}, default="gaussian"
    likelihood : {"bernoulli", "gaussian"}, default="bernoulli"
        Of a column given the latent state. Bernoulli takes values in [0, 1]; only for zeros and
        ones is it a probability.
    activation : {"tanh", "relu", "logistic", "softplus", "selu"}, default="tanh"
    noise_variance : float, default=1.0
        Variance of the Gaussian likelihood, one for all columns; from 1e-13 to 1e13.
    learn_noise : bool, default=False
        Whether that variance is learned, from this start.
    dtype, device :
        Of the parameters, as in :class:`torch.nn.Linear`.

    Attributes
    ----------
    encoder, decoder : Sequential
    prior_field : Parameter of shape (n_latent,)
        Of Bernoulli latents only.
    log_noise_variance : Parameter of shape ()
        Of the Gaussian likelihood only.

    Raises
    ------
    ValueError
        When a size or a name is impossible.

    References
    ----------
    Kingma, Welling, *Auto-encoding variational Bayes*, arXiv:1312.6114;
    Hinton, van Camp, *Keeping neural networks simple by minimizing the description length of the
    weights*, COLT 1993.

    Examples
    --------
    >>> import torch
    >>> from freenergy.random import RandomStream
    >>> vae = VAE(6, 2, hidden_sizes=(5,))
    >>> result = vae.free_energy(torch.eye(6), RandomStream(0))
    >>> result.free_energy.shape
    torch.Size([6])
    >>> torch.allclose(result.free_energy, result.energy - result.entropy)
    True
    """

    def __init__(
        self,
        n_visible: int,
        n_latent: int,
        *,
        hidden_sizes: Sequence[int] = (256,),
        latent: str = "gaussian",
        likelihood: str = "bernoulli",
        activation: str = "tanh",
        noise_variance: float = 1.0,
        learn_noise: bool = False,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__()
        if min(n_visible, n_latent, *hidden_sizes) < 1:
            raise ValueError(
                "a VAE needs at least one unit in each layer, got "
                f"n_visible={n_visible}, n_latent={n_latent}, hidden_sizes={tuple(hidden_sizes)}"
            )
        _check_name("latent", latent, _LATENTS)
        _check_name("likelihood", likelihood, _LIKELIHOODS)
        _check_name("activation", activation, tuple(_ACTIVATIONS))
        if not _SMALLEST_VARIANCE <= noise_variance <= 1.0 / _SMALLEST_VARIANCE:
            raise ValueError(
                f"noise_variance must lie between 1e-13 and 1e13, got {noise_variance:g}"
            )
        self.n_visible, self.n_latent = n_visible, n_latent
        self.hidden_sizes = tuple(hidden_sizes)
        self.latent, self.likelihood, self.activation = latent, likelihood, activation
        self.noise_variance, self.learn_noise = noise_variance, learn_noise
        n_outputs = n_latent if latent == "bernoulli" else 2 * n_latent
        hidden = self.hidden_sizes
        self.encoder = _perceptron((n_visible, *hidden, n_outputs), activation, dtype, device)
        self.decoder = _perceptron((n_latent, *hidden[::-1], n_visible), activation, dtype, device)
        if latent == "bernoulli":
            self.prior_field = nn.Parameter(torch.zeros(n_latent, dtype=dtype, device=device))
        if likelihood == "gaussian":
            start = torch.full((), math.log(noise_variance), dtype=dtype, device=device)
            self.log_noise_variance = nn.Parameter(start, requires_grad=learn_noise)

    def encode(self, x: Tensor) -> Distribution:
        r"""The latent distribution :math:`q(z \mid x)` of rows of shape (..., n_visible)."""
        outputs = self.encoder(x)
        if self.latent == "bernoulli":
            return _independent(Bernoulli(logits=outputs, validate_args=False))
        mean, log_variance = outputs.chunk(2, -1)
        return _independent(Normal(mean, _deviation(log_variance), validate_args=False))

    def decode(self, z: Tensor) -> Distribution:
        r"""The distribution :math:`p(x \mid z)` for latent states of shape (..., n_latent)."""
        outputs = self.decoder(z)
        if self.likelihood == "bernoulli":
            return _independent(Bernoulli(logits=outputs, validate_args=False))
        scale = _deviation(self.log_noise_variance).expand_as(outputs)
        return _independent(Normal(outputs, scale, validate_args=False))

    def prior(self) -> Distribution:
        """The distribution of latent states before any row is seen."""
        if self.latent == "bernoulli":
            return _independent(Bernoulli(logits=self.prior_field, validate_args=False))
        zeros = next(self.decoder.parameters()).new_zeros(self.n_latent)
        return _independent(Normal(zeros, torch.ones_like(zeros), validate_args=False))

    def energy(self, x: Tensor, z: Tensor) -> Tensor:
        r"""Energy of rows with their latent states, :math:`E(x, z) = -\ln p(x, z)`, in nats.

        Parameters
        ----------
        x : Tensor of shape (..., n_visible)
        z : Tensor of shape (..., n_latent)
            Leading dimensions broadcast against those of ``x``.

        Returns
        -------
        Tensor of shape (...)
        """
        return -(self.prior().log_prob(z) + self.decode(z).log_prob(x))

    def free_energy(
        self,
        x: Tensor,
        random: RandomStream,
        n_samples: int = 1,
        *,
        beta: float = 1.0,
        common: bool = False,
    ) -> VariationalFreeEnergy:
        r"""Variational free energy of each row, :math:`\langle E \rangle_q - S(q) / \beta`.

        The entropy and the prior's part of the energy are closed forms; only
        :math:`\langle -\ln p(x \mid z) \rangle_q` is a mean over draws.

        Parameters
        ----------
        x : Tensor of shape (n, n_visible)
        random : RandomStream
        n_samples : int, default=1
            Draws for each row.
        beta : float, default=1.0
            Inverse temperature. (The β of a β-VAE is another: it multiplies the prior's part of
            the energy too.)
        common : bool, default=False
            The same noise for every row, so that a row's value depends on nothing but the row.

        Returns
        -------
        VariationalFreeEnergy

        Raises
        ------
        ValueError
            When a gradient is asked of a single draw of Bernoulli latents.

        Notes
        -----
        Gaussian latents are reparametrised, :math:`z = \mu + \sigma \epsilon`. For Bernoulli
        latents the gradient in the encoder is that of the score function with the mean of the
        other draws as the baseline, :math:`\sum_k (f_k - \bar f) \nabla \ln q(z_k) / (K - 1)`,
        unbiased from :math:`K = 2` draws on.

        References
        ----------
        Kingma, Welling, arXiv:1312.6114; Kool, van Hoof, Welling, *Buy 4 REINFORCE samples, get a
        baseline for free!*, ICLR workshop 2019.
        """
        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, got {n_samples}")
        posterior = self.encode(x)
        z = self.place(posterior, self.noise(random, (n_samples, 1 if common else len(x))))
        misfit = -self.decode(z).log_prob(x)
        energy = self._prior_energy(posterior) + misfit.mean(0)
        if self.latent == "bernoulli" and energy.requires_grad:
            if n_samples == 1:
                raise ValueError(
                    "the gradient of Bernoulli latents needs n_samples of at least 2, got 1; for "
                    "the value alone, call it under torch.no_grad()"
                )
            advantage = (misfit - misfit.mean(0)).detach() / (n_samples - 1)
            score = (advantage * posterior.log_prob(z)).sum(0)
            # Nothing is added to the value, only to the gradient.
            energy = energy + (score - score.detach())
        entropy = posterior.entropy()
        return VariationalFreeEnergy(energy - entropy / beta, energy, entropy)

    def exact_free_energy(self, x: Tensor, *, beta: float = 1.0) -> VariationalFreeEnergy:
        """As :meth:`free_energy`, with every state of at most 12 Bernoulli latents in the mean.

        Raises
        ------
        ValueError
            When the latent states cannot be enumerated.
        """
        posterior = self.encode(x)
        z = self.latent_states()[:, None]
        misfit = -self.decode(z).log_prob(x)
        mean_misfit = (posterior.log_prob(z).exp() * misfit).sum(0)
        energy, entropy = self._prior_energy(posterior) + mean_misfit, posterior.entropy()
        return VariationalFreeEnergy(energy - entropy / beta, energy, entropy)

    def latent_states(self) -> Tensor:
        """Every state of the Bernoulli latents, shape (2 ** n_latent, n_latent).

        Raises
        ------
        ValueError
            When the latents are Gaussian, or more than 12.
        """
        if self.latent != "bernoulli" or self.n_latent > _MOST_ENUMERATED:
            raise ValueError(
                f"{self.n_latent} {self.latent} latents cannot be enumerated: at most "
                f"{_MOST_ENUMERATED} Bernoulli ones can; use draws"
            )
        states = list(itertools.product((0.0, 1.0), repeat=self.n_latent))
        return self.prior_field.new_tensor(states)

    def noise(self, random: RandomStream, shape: tuple[int, ...]) -> Tensor:
        """Normal or uniform draws for :meth:`place`, of shape (*shape, n_latent)."""
        like = next(self.encoder.parameters())
        if self.latent == "bernoulli":
            return random.uniform_(like.new_empty(*shape, self.n_latent))
        return random.normal((*shape, self.n_latent)).to(like)

    def place(self, latent: Distribution, noise: Tensor) -> Tensor:
        r"""Latent states drawn from a distribution: :math:`\mu + \sigma\epsilon`, or :math:`u < q`.

        Parameters
        ----------
        latent : Distribution
            Of :meth:`encode` or :meth:`prior`.
        noise : Tensor of shape (..., n_latent)
            Of :meth:`noise`; broadcasts against the distribution.
        """
        if self.latent == "bernoulli":
            return (noise < latent.mean).to(noise)
        return latent.mean + latent.stddev * noise

    @torch.no_grad()
    def sample(self, n: int, random: RandomStream) -> Tensor:
        """Rows drawn from the model: a latent state of the prior, then its row, (n, n_visible)."""
        visible = self.decode(self.place(self.prior(), self.noise(random, (n,))))
        mean = visible.mean
        if self.likelihood == "bernoulli":
            return random.bernoulli_(mean)
        return mean + visible.stddev * random.normal(tuple(mean.shape)).to(mean)

    def _prior_energy(self, posterior: Distribution) -> Tensor:
        r""":math:`\langle -\ln p(z) \rangle_q` in closed form."""
        mean = posterior.mean
        if self.latent == "bernoulli":
            field = self.prior_field.expand_as(mean)
            return binary_cross_entropy_with_logits(field, mean, reduction="none").sum(-1)
        second_moment = mean.square() + posterior.variance
        return 0.5 * (second_moment + math.log(2 * math.pi)).sum(-1)

    def extra_repr(self) -> str:
        """Sizes and distributions, for ``repr``."""
        return (
            f"n_visible={self.n_visible}, n_latent={self.n_latent}, latent={self.latent!r}, "
            f"likelihood={self.likelihood!r}"
        )


@torch.no_grad()
def unravel(rbm: RBM, rows: ArrayLike | Tensor | None = None, *, beta: float = 1.0) -> VAE:
    r"""An RBM unravelled: one half step is the encoder, the other the decoder.

    .. math:: q(z_j = 1 \mid x) = \sigma\big(\beta (b_j + (W^\top x)_j)\big), \qquad
              p(x_i = 1 \mid z) = \sigma\big(\beta (a_i + (W z)_i)\big)

    Both conditionals are those of the RBM, and the encoder is its exact posterior. What changes is
    the prior: the RBM's marginal :math:`p(h)` is not factorial, that of the VAE is. Its fields are
    those whose means are the mean activations over the rows, which among all factorial priors gives
    these rows the lowest free energy.

    Parameters
    ----------
    rbm : RBM
        With 0/1 units in both layers.
    rows : array-like or Tensor of shape (n, n_visible), default=None
        Where the mean activations are taken, with one pseudo-count for each value. None takes
        the fields at the means :math:`\sigma(\beta a)` that the visible biases alone would give.
    beta : float, default=1.0
        Inverse temperature of the RBM; the VAE carries it in its weights.

    Returns
    -------
    VAE
        Linear encoder and decoder (with weights of their own) and Bernoulli latents.

    Raises
    ------
    ValueError
        When the RBM has other units, or the rows another width.

    References
    ----------
    Hinton, Salakhutdinov, *Reducing the dimensionality of data with neural networks*, Science 313,
    2006.

    Examples
    --------
    >>> import torch
    >>> from freenergy.models import RBM
    >>> rbm, x = RBM(5, 3), torch.eye(5)
    >>> vae = unravel(rbm, x)
    >>> torch.allclose(vae.encode(x).mean, rbm.hidden_mean(x))
    True
    """
    for kind, unit in (("visible", rbm.visible), ("hidden", rbm.hidden)):
        if unit.name != "bernoulli":
            raise ValueError(
                f"only an RBM of 0/1 units can be unravelled, its {kind} ones are {unit.name}"
            )
    vae: VAE = skip_init(
        VAE,
        rbm.n_visible,
        rbm.n_hidden,
        hidden_sizes=(),
        latent="bernoulli",
        dtype=rbm.weight.dtype,
        device=rbm.weight.device,
    )
    for layer, weight, bias in (
        (linear_layers(vae.encoder)[-1], rbm.weight.T, rbm.hidden_bias),
        (linear_layers(vae.decoder)[-1], rbm.weight, rbm.visible_bias),
    ):
        layer.weight.copy_(beta * weight)
        layer.bias.copy_(beta * bias)
    if rows is None:
        visible = rbm.visible.mean(beta * rbm.visible_bias)
        vae.prior_field.copy_(rbm.hidden_field(visible, beta))
    else:
        states = as_matrix(rows, "rows", rbm.n_visible, rbm.weight)
        activations = rbm.hidden_mean(states, beta)
        n = len(activations)
        smoothed = (activations.sum(0, dtype=torch.float64) + 1) / (n + 2)
        vae.prior_field.copy_(torch.logit(smoothed))
    return vae


def _perceptron(
    sizes: Sequence[int],
    activation: str,
    dtype: torch.dtype | None,
    device: str | torch.device | None,
) -> nn.Sequential:
    linear = partial(nn.Linear, dtype=dtype, device=device)
    return layered(sizes, linear, lambda n_units: [_ACTIVATIONS[activation]()])


def _independent(units: Distribution) -> Distribution:
    """Units as one vector: probabilities and entropies add up over the last dimension."""
    return Independent(units, 1, validate_args=False)


def _deviation(log_variance: Tensor) -> Tensor:
    """Standard deviation; bounded, so that its square stays finite in single precision."""
    bounded = log_variance.clamp(-_LARGEST_LOG_VARIANCE, _LARGEST_LOG_VARIANCE)
    return torch.exp(0.5 * bounded)


def _check_name(parameter: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{parameter} must be one of {', '.join(map(repr, known))}, got {value!r}")

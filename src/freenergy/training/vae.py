"""Training of a variational autoencoder: its start, its options, its gradient, its held-out rows.

What is minimised is the mean variational free energy of the rows, the negative evidence lower
bound; its gradient is taken by autograd.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from freenergy.arrays import as_matrix, as_tensor
from freenergy.models.mlp import linear_layers
from freenergy.models.vae import VAE, VariationalFreeEnergy
from freenergy.random import RandomStream
from freenergy.training.options import LoopOptions, check_whole
from freenergy.training.rows import Rows

__all__ = [
    "VariationalGradient",
    "VariationalMonitor",
    "VariationalOptions",
    "initialize_variational",
]

_MOST_ENUMERATED = 5
_PARTS = ("free_energy", "energy", "entropy")


@dataclass(frozen=True, kw_only=True)
class VariationalOptions(LoopOptions):
    r"""Options of the training of a VAE: those of :class:`LoopOptions`, and of the draws.

    Parameters
    ----------
    learning_rate : float, default=0.001
    optimizer : {"adam", "adamw", "sgd", "rmsprop"}, default="adam"
    n_draws : int or None, default=None
        Latent states drawn for each row and update. None: one of Gaussian latents, every state of
        at most 5 Bernoulli latents, and 4 draws of more.

    Raises
    ------
    ValueError
        When an option is impossible; the message names it.

    Examples
    --------
    >>> VariationalOptions().optimizer
    'adam'
    >>> VariationalOptions(n_draws=0)
    Traceback (most recent call last):
        ...
    ValueError: n_draws must be a whole number of at least 1, got 0
    """

    learning_rate: float = 0.001
    optimizer: str = "adam"
    n_draws: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_draws is not None:
            check_whole("n_draws", self.n_draws, 1)
        if self.weight_constraint is not None:
            raise ValueError(
                f"weight_constraint={self.weight_constraint!r} has no meaning for the many layers "
                "of a VAE; use l1 or l2"
            )


@torch.no_grad()
def initialize_variational(
    model: VAE, rows: Rows, random: RandomStream, *, noise_variance: float = 1.0
) -> None:
    r"""Start a VAE at its data: Glorot's weights, zero biases, the decoder at the columns' means.

    The biases of the decoder's last layer are the means of the columns, or with a Bernoulli
    likelihood their fields, with one pseudo-count for each value. The prior of Bernoulli latents is
    uniform.

    Parameters
    ----------
    model : VAE
    rows : Rows
    random : RandomStream
    noise_variance : float, default=1.0
        Start of the variance of a Gaussian likelihood.

    References
    ----------
    Glorot, Bengio, *Understanding the difficulty of training deep feedforward neural networks*,
    AISTATS 2010.

    Examples
    --------
    >>> import torch
    >>> from freenergy.training.rows import as_rows
    >>> vae, rows = VAE(4, 2), as_rows(torch.eye(4), like=torch.empty(0))
    >>> initialize_variational(vae, rows, RandomStream(0))
    >>> vae.decoder[-1].bias.sigmoid()
    tensor([0.3333, 0.3333, 0.3333, 0.3333], grad_fn=<SigmoidBackward0>)
    """
    for layer in linear_layers(model):
        n_out, n_in = layer.weight.shape
        layer.weight.copy_(random.normal((n_out, n_in), math.sqrt(2.0 / (n_in + n_out))))
        layer.bias.zero_()
    mean = rows.mean().double()
    last = linear_layers(model.decoder)[-1].bias
    if model.likelihood == "bernoulli":
        smoothed = (rows.total * mean.clamp(0.0, 1.0) + 1.0) / (rows.total + 2.0)
        last.copy_(torch.logit(smoothed))
    else:
        last.copy_(mean)
        model.log_noise_variance.fill_(math.log(noise_variance))
    if model.latent == "bernoulli":
        model.prior_field.zero_()


class VariationalGradient:
    r"""Gradient of the mean variational free energy of a batch, by autograd.

    Parameters
    ----------
    model : VAE
    options : VariationalOptions
    random : RandomStream
        Source of the latent draws, on the model's device.

    Raises
    ------
    ValueError
        When one draw of Bernoulli latents is asked for, which has no unbiased baseline.

    Examples
    --------
    >>> import torch
    >>> vae = VAE(4, 2)
    >>> gradient = VariationalGradient(vae, VariationalOptions(), RandomStream(0))
    >>> gradient.compute(torch.eye(4))
    >>> sorted(gradient.measure())
    ['energy', 'entropy', 'free_energy']
    """

    def __init__(self, model: VAE, options: VariationalOptions, random: RandomStream) -> None:
        self.model = model
        self.options = options
        self.random = random
        self._enumerates = (
            options.n_draws is None
            and model.latent == "bernoulli"
            and model.n_latent <= _MOST_ENUMERATED
        )
        default = 4 if model.latent == "bernoulli" else 1
        self._n_draws = default if options.n_draws is None else options.n_draws
        if model.latent == "bernoulli" and self._n_draws < 2:
            raise ValueError("n_draws must be at least 2 with Bernoulli latents, got 1")
        # Sums of the parts over rows, and the number of rows, since the last reading.
        device = next(model.parameters()).device
        self._sums = torch.zeros(len(_PARTS) + 1, dtype=torch.float64, device=device)

    def compute(self, batch: Tensor) -> None:
        """Write the gradient for a batch of shape (n, n_visible) into the parameters' ``.grad``."""
        self.model.zero_grad()
        found = self._free_energy(batch)
        found.free_energy.mean().backward()
        parts = [getattr(found, name).detach().sum(dtype=torch.float64) for name in _PARTS]
        self._sums[:-1] += torch.stack(parts)
        self._sums[-1] += len(batch)

    def measure(self) -> dict[str, Any]:
        """Mean ``free_energy``, ``energy`` and ``entropy`` of the rows since the last reading.

        Each row counts with the model that met it: the means cost nothing, and lag by half an
        epoch.
        """
        *sums, n = self._sums.tolist()
        means = {name: total / n for name, total in zip(_PARTS, sums, strict=True)} if n else {}
        self._sums.zero_()
        return means

    def state(self) -> dict[str, Tensor]:
        """Tensors that must persist between updates, by name."""
        return {"sums": self._sums}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from tensors that :meth:`state` returned."""
        self._sums.copy_(state["sums"])

    def _free_energy(self, batch: Tensor) -> VariationalFreeEnergy:
        beta = self.options.beta
        if self._enumerates:
            return self.model.exact_free_energy(batch, beta=beta)
        return self.model.free_energy(batch, self.random, self._n_draws, beta=beta)


class VariationalMonitor:
    """Free energy, energy and entropy of held-out rows after an epoch, with draws of its own.

    Parameters
    ----------
    rows : array-like or Tensor of shape (n, n_visible)
    beta : float, default=1.0
    n_draws : int, default=1
        For each row; the same ones in every reading, so that readings compare.
    suffix : str, default="_held_out"
        Of the names in the history.

    Examples
    --------
    >>> import torch
    >>> sorted(VariationalMonitor(torch.eye(4))(VAE(4, 2)))
    ['energy_held_out', 'entropy_held_out', 'free_energy_held_out']
    """

    def __init__(
        self,
        rows: ArrayLike | Tensor,
        *,
        beta: float = 1.0,
        n_draws: int = 1,
        suffix: str = "_held_out",
    ) -> None:
        self.rows = as_tensor(rows, "rows")
        self.beta = beta
        self.n_draws = n_draws
        self.suffix = suffix

    @torch.no_grad()
    def __call__(self, model: VAE) -> dict[str, float]:
        rows = as_matrix(self.rows, "rows", model.n_visible, next(model.parameters()))
        random = RandomStream(0, rows.device)
        found = model.free_energy(rows, random, self.n_draws, beta=self.beta)
        return {f"{k}{self.suffix}": float(getattr(found, k).double().mean()) for k in _PARTS}

"""The restricted Boltzmann machine: its energy, free energy and conditional distributions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from freenergy.models.units import Unit, get_unit
from freenergy.random import RandomStream

__all__ = ["RBM"]


class RBM(nn.Module):
    r"""Restricted Boltzmann machine with any unit types.

    .. math:: E(v, h) = -a^\top v - b^\top h - v^\top W h, \qquad
              p(v, h) = e^{-\beta E(v, h)} / Z(\beta)

    :math:`\beta = 1/T` is an argument of every method that depends on it. Free energies are in
    units of the energy, so that :math:`F = U - TS` holds as written.

    Parameters
    ----------
    n_visible, n_hidden : int
        Numbers of visible and hidden units.
    visible, hidden : str or Unit, default="bernoulli"
        Unit types: ``"bernoulli"`` (0/1), ``"spin"`` (±1) or a :class:`~freenergy.models.Unit`.
    dtype, device :
        Of the parameters, as in :class:`torch.nn.Linear`.

    Attributes
    ----------
    weight : Parameter of shape (n_visible, n_hidden)
        Couplings :math:`W`, drawn from N(0, 0.01²).
    visible_bias : Parameter of shape (n_visible,)
        Biases :math:`a`, zero.
    hidden_bias : Parameter of shape (n_hidden,)
        Biases :math:`b`, zero.

    Raises
    ------
    ValueError
        When a layer has no unit, or no unit type has that name.

    References
    ----------
    Smolensky, *Information processing in dynamical systems*, 1986;
    Hinton, *Training products of experts by minimizing contrastive divergence*, 2002.

    Examples
    --------
    >>> import torch
    >>> rbm = RBM(3, 2, dtype=torch.float64)
    >>> v, h = torch.tensor([[1.0, 0, 1]]).double(), torch.tensor([[0.0, 1]]).double()
    >>> rbm.energy(v, h).shape
    torch.Size([1])
    >>> bool(rbm.free_energy(v) < rbm.energy(v, h))
    True
    """

    def __init__(
        self,
        n_visible: int,
        n_hidden: int,
        *,
        visible: str | Unit = "bernoulli",
        hidden: str | Unit = "bernoulli",
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__()
        if n_visible < 1 or n_hidden < 1:
            raise ValueError(
                f"an RBM needs at least one visible and one hidden unit, got {n_visible} and "
                f"{n_hidden}"
            )
        self.visible = get_unit(visible)
        self.hidden = get_unit(hidden)
        self.weight = nn.Parameter(torch.empty(n_visible, n_hidden, dtype=dtype, device=device))
        self.visible_bias = nn.Parameter(torch.zeros(n_visible, dtype=dtype, device=device))
        self.hidden_bias = nn.Parameter(torch.zeros(n_hidden, dtype=dtype, device=device))
        # On no device there is nothing to draw, and torch would load seconds of code for it.
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=0.01)

    @property
    def n_visible(self) -> int:
        """Number of visible units."""
        return self.weight.shape[0]

    @property
    def n_hidden(self) -> int:
        """Number of hidden units."""
        return self.weight.shape[1]

    def energy(self, v: Tensor, h: Tensor, beta: float = 1.0) -> Tensor:
        r"""Energy in units of the temperature, :math:`\beta E(v, h)`.

        The joint Boltzmann weight is ``exp(-energy(v, h, beta))``; at the default
        :math:`\beta = 1` this is the plain energy :math:`E(v, h)`.

        Parameters
        ----------
        v : Tensor of shape (..., n_visible)
        h : Tensor of shape (..., n_hidden)
            Leading dimensions broadcast against those of ``v``.
        beta : float, default=1
            Inverse temperature.

        Returns
        -------
        Tensor of shape (...)
        """
        interaction = ((v @ self.weight) * h).sum(-1)
        return -beta * (v @ self.visible_bias + h @ self.hidden_bias + interaction)

    def free_energy(self, v: Tensor, beta: float = 1.0) -> Tensor:
        r"""Free energy of a visible state, the hidden units summed out.

        .. math:: F(v; \beta) = -\frac1\beta \ln \sum_h e^{-\beta E(v, h)}
                  = -a^\top v - \frac1\beta \sum_j \ln z_j\big(\beta (b_j + (v^\top W)_j)\big)

        The marginal weight of ``v`` is ``exp(-beta * free_energy(v, beta))``, which differs from
        the :math:`\beta = 1` free energy times :math:`\beta`.

        Parameters
        ----------
        v : Tensor of shape (..., n_visible)
        beta : float, default=1
            Inverse temperature, positive.

        Returns
        -------
        Tensor of shape (...), in units of the energy.
        """
        log_z = self.hidden.log_partition(self.hidden_field(v, beta)).sum(-1)
        return -(v @ self.visible_bias) - log_z / beta

    def hidden_free_energy(self, h: Tensor, beta: float = 1.0) -> Tensor:
        r"""Free energy of a hidden state, the visible units summed out, as :meth:`free_energy`."""
        log_z = self.visible.log_partition(self.visible_field(h, beta)).sum(-1)
        return -(h @ self.hidden_bias) - log_z / beta

    def hidden_field(self, v: Tensor, beta: float = 1.0, out: Tensor | None = None) -> Tensor:
        r"""Field on the hidden units, :math:`\beta (b + W^\top v)`, shape (..., n_hidden)."""
        return _affine(self.hidden_bias, v, self.weight, beta, out)

    def visible_field(self, h: Tensor, beta: float = 1.0, out: Tensor | None = None) -> Tensor:
        r"""Field on the visible units, :math:`\beta (a + W h)`, shape (..., n_visible)."""
        return _affine(self.visible_bias, h, self.weight.T, beta, out)

    def hidden_mean(self, v: Tensor, beta: float = 1.0) -> Tensor:
        r"""Conditional means :math:`\langle h_j \rangle` given ``v``, shape (..., n_hidden)."""
        return self.hidden.mean(self.hidden_field(v, beta))

    def visible_mean(self, h: Tensor, beta: float = 1.0) -> Tensor:
        r"""Conditional means :math:`\langle v_i \rangle` given ``h``, shape (..., n_visible)."""
        return self.visible.mean(self.visible_field(h, beta))

    @torch.no_grad()
    def sample_hidden(
        self, v: Tensor, random: RandomStream, beta: float = 1.0, out: Tensor | None = None
    ) -> Tensor:
        """Hidden states drawn given ``v``, shape (..., n_hidden)."""
        field = self.hidden_field(v, beta, out)
        return self.hidden.sample(field, random, field)

    @torch.no_grad()
    def sample_visible(
        self, h: Tensor, random: RandomStream, beta: float = 1.0, out: Tensor | None = None
    ) -> Tensor:
        """Visible states drawn given ``h``, shape (..., n_visible)."""
        field = self.visible_field(h, beta, out)
        return self.visible.sample(field, random, field)

    def extra_repr(self) -> str:
        """Sizes and unit types, for ``repr``."""
        return (
            f"n_visible={self.n_visible}, n_hidden={self.n_hidden}, "
            f"visible={self.visible.name!r}, hidden={self.hidden.name!r}"
        )


def _affine(bias: Tensor, x: Tensor, weight: Tensor, beta: float, out: Tensor | None) -> Tensor:
    """``beta * (bias + x @ weight)`` in one product where the input is a matrix."""
    if x.dim() == 2:
        return torch.addmm(bias, x, weight, beta=beta, alpha=beta, out=out)
    return torch.mul(x @ weight + bias, beta, out=out)

"""The Boltzmann machine: any symmetric couplings between its units, visible and hidden."""

from __future__ import annotations

from typing import Self

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from freenergy.arrays import as_matrix, as_tensor
from freenergy.models.rbm import RBM
from freenergy.models.units import Unit, get_unit
from freenergy.random import RandomStream

__all__ = ["BoltzmannMachine"]


class BoltzmannMachine(nn.Module):
    r"""Boltzmann machine: units of one type, coupled in pairs, none with itself.

    .. math:: E(s) = -b^\top s - \tfrac12 s^\top J s
                   = -\sum_i b_i s_i - \sum_{i<j} J_{ij} s_i s_j, \qquad
              p(s) = e^{-\beta E(s)} / Z(\beta)

    The state holds the visible units first, then the hidden ones. :math:`\beta = 1/T` is an
    argument of every method that depends on it.

    Parameters
    ----------
    n_visible : int
        Number of visible units.
    n_hidden : int, default=0
        Number of hidden units.
    unit : str or Unit, default="spin"
        Type of all units: ``"spin"`` (±1), ``"bernoulli"`` (0/1) or a
        :class:`~freenergy.models.Unit`.
    connected : array-like or Tensor of bool, shape (n_units, n_units), default=None
        Symmetric; which pairs of units have a coupling. None couples every pair.
    dtype, device :
        Of the parameters, as in :class:`torch.nn.Linear`.

    Attributes
    ----------
    weight : Parameter of shape (n_units, n_units)
        Couplings :math:`J_{ij}` of the connected pairs :math:`i < j`, drawn from N(0, 0.01²); all
        other entries are zero, and have no effect. Each pair stands once, so that
        :attr:`coupling` is symmetric with a zero diagonal whatever an optimiser does, and a decay
        or a norm counts a pair once.
    bias : Parameter of shape (n_units,)
        Biases :math:`b`, zero.
    pairs : Tensor of bool, shape (n_units, n_units)
        Where ``weight`` has a coupling, above the diagonal.
    blocks : tuple of Tensor
        The units in groups without couplings inside, whose units may be updated at once: the two
        layers of a restricted machine, one unit each where every pair is coupled.

    Raises
    ------
    ValueError
        When a size or ``connected`` is impossible.

    References
    ----------
    Ackley, Hinton and Sejnowski, *A learning algorithm for Boltzmann machines*, Cognitive
    Science 9, 1985.

    Examples
    --------
    >>> import torch
    >>> machine = BoltzmannMachine(3, 1, dtype=torch.float64)
    >>> machine
    BoltzmannMachine(n_visible=3, n_hidden=1, unit='spin', n_pairs=6)
    >>> machine.energy(torch.ones(2, 4).double()).shape
    torch.Size([2])
    """

    pairs: Tensor

    def __init__(
        self,
        n_visible: int,
        n_hidden: int = 0,
        *,
        unit: str | Unit = "spin",
        connected: ArrayLike | Tensor | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__()
        if n_visible < 1 or n_hidden < 0:
            raise ValueError(
                f"a Boltzmann machine needs at least one visible unit and no negative number of "
                f"hidden ones, got {n_visible} and {n_hidden}"
            )
        n_units = n_visible + n_hidden
        adjacency = _adjacency(n_units, connected)
        self.n_visible, self.n_hidden = n_visible, n_hidden
        self.unit = get_unit(unit)
        self.blocks = _independent_blocks(adjacency)
        self.register_buffer("pairs", adjacency.triu(1).to(device), persistent=False)
        self.weight = nn.Parameter(torch.empty(n_units, n_units, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.zeros(n_units, dtype=dtype, device=device))
        # On no device there is nothing to draw, and torch would load seconds of code for it.
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=0.01)
        with torch.no_grad():
            self.weight.mul_(self.pairs)

    @classmethod
    def from_coupling(
        cls,
        coupling: ArrayLike | Tensor,
        bias: ArrayLike | Tensor | None = None,
        *,
        n_hidden: int = 0,
        unit: str | Unit = "spin",
        connected: ArrayLike | Tensor | None = None,
    ) -> Self:
        r"""The machine with this matrix of couplings.

        Parameters
        ----------
        coupling : array-like or Tensor of shape (n_units, n_units)
            :math:`J`, symmetric with a zero diagonal; its precision is the machine's.
        bias : array-like or Tensor of shape (n_units,), default=None
            :math:`b`; None is zero.
        n_hidden : int, default=0
            How many of the units, the last ones, are hidden.
        unit, connected :
            As in the class. A pair that is not connected must have no coupling.

        Returns
        -------
        BoltzmannMachine

        Raises
        ------
        ValueError
            When the matrix is no such matrix, or has a coupling where none may be.

        Examples
        --------
        >>> import torch
        >>> ring = torch.tensor([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]])
        >>> machine = BoltzmannMachine.from_coupling(-ring)
        >>> machine.energy(torch.tensor([1.0, 1, -1])).item()
        -1.0
        """
        coupling = as_tensor(coupling, "coupling")
        if not coupling.is_floating_point():
            coupling = coupling.to(torch.get_default_dtype())
        _check_coupling(coupling)
        if bias is not None:
            bias = as_tensor(bias, "bias", like=coupling)
            if bias.shape != coupling.shape[:1]:
                raise ValueError(
                    f"bias must have shape ({len(coupling)},), got {tuple(bias.shape)}"
                )
        # A new machine draws its couplings; who brings their own must not move torch's stream.
        with torch.random.fork_rng(devices=[]):
            machine = cls(
                len(coupling) - n_hidden,
                n_hidden,
                unit=unit,
                connected=connected,
                dtype=coupling.dtype,
            ).to(coupling.device)
        with torch.no_grad():
            machine.weight.copy_(coupling * machine.pairs)
            if bias is not None:
                machine.bias.copy_(bias)
        if not torch.equal(machine.coupling, coupling):
            raise ValueError("coupling must be zero where connected is False")
        return machine

    @classmethod
    def from_rbm(cls, rbm: RBM) -> Self:
        """The same distribution as an RBM's: couplings between the layers only.

        Raises
        ------
        ValueError
            When the layers of the RBM have different unit types.

        Examples
        --------
        >>> import torch
        >>> from freenergy.models import RBM
        >>> rbm = RBM(3, 2)
        >>> machine = BoltzmannMachine.from_rbm(rbm)
        >>> v, h = torch.ones(1, 3), torch.ones(1, 2)
        >>> torch.allclose(machine.energy(torch.cat([v, h], -1)), rbm.energy(v, h))
        True
        """
        if rbm.visible != rbm.hidden:
            raise ValueError(
                f"the units of a Boltzmann machine are of one type, but the RBM's are "
                f"{rbm.visible.name!r} and {rbm.hidden.name!r}"
            )
        n, weight = rbm.n_visible, rbm.weight.detach()
        coupling = weight.new_zeros(n + rbm.n_hidden, n + rbm.n_hidden)
        coupling[:n, n:], coupling[n:, :n] = weight, weight.T
        connected = torch.zeros_like(coupling, dtype=torch.bool)
        connected[:n, n:] = connected[n:, :n] = True
        bias = torch.cat([rbm.visible_bias, rbm.hidden_bias]).detach()
        return cls.from_coupling(
            coupling, bias, n_hidden=rbm.n_hidden, unit=rbm.visible, connected=connected
        )

    @property
    def n_units(self) -> int:
        """Number of units, visible and hidden."""
        return self.n_visible + self.n_hidden

    @property
    def coupling(self) -> Tensor:
        """Couplings :math:`J` as a matrix of shape (n_units, n_units), differentiable."""
        upper = self.weight * self.pairs
        return upper + upper.T

    def energy(self, s: Tensor, beta: float = 1.0) -> Tensor:
        r"""Energy in units of the temperature, :math:`\beta E(s)`.

        The Boltzmann weight is ``exp(-energy(s, beta))``; at the default :math:`\beta = 1` this
        is the plain energy :math:`E(s)`.

        Parameters
        ----------
        s : Tensor of shape (..., n_units)
        beta : float, default=1
            Inverse temperature.

        Returns
        -------
        Tensor of shape (...)
        """
        return -beta * (s @ self.bias + 0.5 * ((s @ self.coupling) * s).sum(-1))

    def local_field(self, s: Tensor, beta: float = 1.0) -> Tensor:
        r"""Field on each unit from all others, :math:`\beta (b + J s)`, shape (..., n_units)."""
        return beta * (self.bias + s @ self.coupling)

    def conditional_mean(self, s: Tensor, beta: float = 1.0) -> Tensor:
        r"""Means :math:`\langle s_i \rangle` given all other units, shape (..., n_units)."""
        return self.unit.mean(self.local_field(s, beta))

    @torch.no_grad()
    def gibbs_sweep(
        self,
        s: ArrayLike | Tensor,
        random: RandomStream,
        beta: float = 1.0,
        *,
        n_sweeps: int = 1,
        held: ArrayLike | Tensor | None = None,
    ) -> Tensor:
        """Draw every unit in turn given all others, in parallel chains.

        Parameters
        ----------
        s : array-like or Tensor of shape (n_chains, n_units)
            States to start from; left as they are.
        random : RandomStream
            Source of the draws, on the model's device.
        beta : float, default=1
            Inverse temperature.
        n_sweeps : int, default=1
            Times that every unit is drawn.
        held : array-like or Tensor of bool, shape (n_units,), default=None
            Units that keep their values.

        Returns
        -------
        Tensor of shape (n_chains, n_units)

        Raises
        ------
        ValueError
            When the shape of ``s`` or of ``held`` does not fit.

        Examples
        --------
        >>> import torch
        >>> from freenergy.random import RandomStream
        >>> machine = BoltzmannMachine(3)
        >>> machine.gibbs_sweep(torch.ones(10, 3), RandomStream(0), n_sweeps=5).shape
        torch.Size([10, 3])
        """
        s = as_matrix(s, "s", self.n_units, self.weight).clone()
        blocks = [block.to(s.device) for block in self.blocks]
        if held is not None:
            held = as_tensor(held, "held").to(s.device).bool()
            if held.shape != (self.n_units,):
                raise ValueError(f"held must have shape ({self.n_units},), got {tuple(held.shape)}")
            blocks = [block[~held[block]] for block in blocks]
        coupling = self.coupling
        for _ in range(n_sweeps):
            for block in blocks:
                field = beta * (self.bias[block] + s @ coupling[:, block])
                s[:, block] = self.unit.sample(field, random, field)
        return s

    def extra_repr(self) -> str:
        """Sizes and unit type, for ``repr``."""
        return (
            f"n_visible={self.n_visible}, n_hidden={self.n_hidden}, unit={self.unit.name!r}, "
            f"n_pairs={int(self.pairs.sum())}"
        )


def _adjacency(n_units: int, connected: ArrayLike | Tensor | None) -> Tensor:
    """Which pairs are coupled, checked, on the CPU."""
    if connected is None:
        return ~torch.eye(n_units, dtype=torch.bool)
    connected = as_tensor(connected, "connected")
    if connected.shape != (n_units, n_units):
        raise ValueError(
            f"connected must have shape ({n_units}, {n_units}), got {tuple(connected.shape)}"
        )
    adjacency = connected.bool().cpu()
    if not torch.equal(adjacency, adjacency.T):
        raise ValueError("connected must be symmetric: a coupling acts on both of its units")
    return adjacency & ~torch.eye(n_units, dtype=torch.bool)


def _check_coupling(coupling: Tensor) -> None:
    if coupling.dim() != 2 or coupling.shape[0] != coupling.shape[1]:
        raise ValueError(f"coupling must be a square matrix, got shape {tuple(coupling.shape)}")
    if bool(coupling.diagonal().any()):
        raise ValueError("coupling must have a zero diagonal: no unit is coupled to itself")
    if not torch.equal(coupling, coupling.T):
        difference = float((coupling - coupling.T).abs().max())
        raise ValueError(
            f"coupling must be symmetric, but differs from its transpose by up to {difference:g}"
        )


def _independent_blocks(adjacency: Tensor) -> tuple[Tensor, ...]:
    """Groups of units without couplings inside, by giving each unit the first colour free."""
    colour = torch.full((len(adjacency),), -1)
    for i, neighbours in enumerate(adjacency):
        taken = set(colour[neighbours].tolist())
        colour[i] = next(c for c in range(len(adjacency)) if c not in taken)
    return tuple((colour == c).nonzero()[:, 0] for c in range(int(colour.max()) + 1))

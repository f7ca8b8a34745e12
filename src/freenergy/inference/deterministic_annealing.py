r"""Mean field of a Boltzmann machine, followed from high to low temperature.

With couplings between any two units the free energy at given magnetisations is, to second order
in the couplings,

.. math::

    \beta\Gamma(m) = -S_0(m) - \beta\Big(\sum_i b_i m_i + \tfrac12 \sum_{ij} J_{ij} m_i m_j\Big)
        - \frac{\beta^2}{4} \sum_{ij} J_{ij}^2 \kappa_2(m_i) \kappa_2(m_j)

The last sum, the Onsager term, is that of order 2 (TAP). Its sum counts each pair twice, so that
on two layers it is the term of an RBM, which has 1/2. The next order also has triangles of
couplings, which an RBM has not; it is left out.

At high temperature :math:`\Gamma` has one minimum. Deterministic annealing follows it while the
temperature is lowered: the magnetisations settle first in what all good states share, and only
later in its details. A quench settles in the nearest of many minima instead.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from freenergy.arrays import as_tensor
from freenergy.distributed import ALONE, Group
from freenergy.inference.mean_field import NegativeEntropyWarning, NotConvergedWarning
from freenergy.models import BoltzmannMachine
from freenergy.random import RandomStream

__all__ = [
    "AnnealedMeanField",
    "LinearResponse",
    "PairExpansion",
    "anneal_mean_field",
    "linear_response",
]


@dataclass(frozen=True, eq=False)
class AnnealedMeanField:
    r"""Mean-field states of a Boltzmann machine along a schedule of temperatures.

    The split into energy and entropy is the thermodynamic one, :math:`U = \partial(\beta\Gamma)
    / \partial\beta` at fixed magnetisations and :math:`S = \beta(U - \Gamma)`: with :math:`O_2`
    the Onsager term as it stands in :math:`\beta\Gamma`, :math:`\beta U = O_1 + 2 O_2` and
    :math:`S = S_0 + O_2`.

    Attributes
    ----------
    temperature : Tensor of shape (n_temperatures,)
        In the order in which they were followed.
    magnetization : Tensor of shape (n_temperatures, n_states, n_units)
        Means; where a unit is clamped, its value.
    free_energy, energy, entropy : Tensor of shape (n_temperatures, n_states)
        :math:`\Gamma`, :math:`U` in units of the energy, :math:`S` in nats.
    converged : Tensor of bool, shape (n_temperatures, n_states)
    n_iter : Tensor of int, shape (n_temperatures, n_states)
        Sweeps until the tolerance was reached, or all that were made.
    residual : Tensor of shape (n_temperatures, n_states)
        Largest change of a magnetisation by an undamped update, in the last sweep made.
    order : int
    """

    temperature: Tensor
    magnetization: Tensor
    free_energy: Tensor
    energy: Tensor
    entropy: Tensor
    converged: Tensor
    n_iter: Tensor
    residual: Tensor
    order: int

    @property
    def final(self) -> Tensor:
        """Magnetisations at the last temperature, shape (n_states, n_units)."""
        return self.magnetization[-1]

    @property
    def log_partition(self) -> Tensor:
        r"""Estimate :math:`-\beta\Gamma` of :math:`\ln Z`, shape (n_temperatures, n_states)."""
        return -self.free_energy / self.temperature[:, None]

    @property
    def best(self) -> int:
        """The state whose free energy at the last temperature is lowest."""
        return int(self.free_energy[-1].argmin())

    def __repr__(self) -> str:
        first, last, best = float(self.temperature[0]), float(self.temperature[-1]), self.best
        return (
            f"AnnealedMeanField(order={self.order}, temperature={first:g} to {last:g}, "
            f"n_states={self.free_energy.shape[1]}, "
            f"free_energy={float(self.free_energy[-1, best]):.6g}, "
            f"energy={float(self.energy[-1, best]):.6g}, "
            f"entropy={float(self.entropy[-1, best]):.6g}, "
            f"converged={int(self.converged.sum())}/{self.converged.numel()})"
        )


@dataclass(frozen=True, eq=False)
class LinearResponse:
    r"""Covariances of the units in mean-field states, :math:`C = (\partial^2 \beta\Gamma)^{-1}`.

    Attributes
    ----------
    covariance : Tensor of shape (n_states, n_units, n_units)
        Zero for a state that is not stable.
    stable : Tensor of bool, shape (n_states,)
        Whether the Hessian is positive definite, the state a minimum.
    """

    covariance: Tensor
    stable: Tensor

    def __repr__(self) -> str:
        n_states, n_units, _ = self.covariance.shape
        return (
            f"LinearResponse(n_states={n_states}, n_units={n_units}, "
            f"stable={int(self.stable.sum())}/{n_states})"
        )


class PairExpansion:
    r"""The expansion for one machine: sweeps, terms of :math:`\beta\Gamma`, its Hessian.

    Made from the couplings as they stand: make another after the model has changed.

    Parameters
    ----------
    model : BoltzmannMachine
    order : {1, 2}, default=2
        1 is naive mean field, 2 adds the Onsager reaction term (TAP).
    clamp : Tensor of shape (n_states, n_units), default=None
        Values at which units are held, NaN where a unit is free. A clamped unit is a constant: it
        has no entropy, no variance and no reaction on its neighbours.

    Raises
    ------
    ValueError
        When ``order`` is neither 1 nor 2.

    References
    ----------
    Thouless, Anderson and Palmer, *Solution of 'Solvable model of a spin glass'*, Phil. Mag. 35,
    1977; Plefka, *Convergence condition of the TAP equation*, J. Phys. A 15, 1982.

    Examples
    --------
    Two spins without fields: at zero magnetisation only the Onsager term knows of their coupling.

    >>> import torch
    >>> from freenergy.models import BoltzmannMachine
    >>> pair = BoltzmannMachine.from_coupling(torch.tensor([[0.0, 0.2], [0.2, 0.0]]))
    >>> expansion = PairExpansion(pair, order=2)
    >>> expansion.terms(torch.zeros(1, 2), beta=1.0) + 0.0
    tensor([[-1.3863,  0.0000, -0.0200]])
    """

    def __init__(
        self, model: BoltzmannMachine, order: int = 2, clamp: Tensor | None = None
    ) -> None:
        if order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {order!r}")
        self.unit = model.unit
        self.order = order
        self.coupling = model.coupling.detach()
        self.square = self.coupling**2
        self.bias = model.bias.detach()
        self.free = None if clamp is None else clamp.isnan()
        blocks = [block.to(self.bias.device) for block in model.blocks]
        anywhere = torch.ones_like(self.bias, dtype=torch.bool)
        if self.free is not None:
            anywhere = self.free.any(0)
            blocks = [block[anywhere[block]] for block in blocks]
        self._free_units = anywhere.nonzero()[:, 0]
        self._blocks = [
            (block, self.bias[block], self.coupling[:, block], self.square[:, block])
            for block in blocks
            if len(block)
        ]

    def cumulant2(self, m: Tensor) -> Tensor:
        """Variances of the units at these means, zero where they are clamped."""
        c = self.unit.cumulant2(m)
        return c if self.free is None else c * self.free

    def sweep(self, m: Tensor, beta: float, damping: float = 0.0) -> Tensor:
        r"""Update each unit in turn, in place, :math:`m \to d\,m + (1-d)\,m'`.

        Units without couplings among them are updated together, which is the same.

        Parameters
        ----------
        m : Tensor of shape (n_states, n_units)
        beta, damping : float

        Returns
        -------
        Tensor of shape (n_states,)
            Largest change of a magnetisation by the undamped update :math:`m'`.
        """
        residual = m.new_zeros(len(m))
        c = self.cumulant2(m) if self.order == 2 else m
        for block, bias, coupling, square in self._blocks:
            old = m[:, block]
            field = torch.addmm(bias, m, coupling, beta=beta, alpha=beta)
            if self.order == 2:
                reaction = self.unit.cumulant2_slope(old) * (c @ square)
                field.add_(reaction, alpha=0.5 * beta**2)
            change = self.unit.mean(field) - old
            if self.free is not None:
                change *= self.free[:, block]
            residual = torch.maximum(residual, change.abs().amax(-1))
            new = old.add_(change, alpha=1.0 - damping)
            m[:, block] = new
            if self.order == 2:
                cumulant = self.unit.cumulant2(new)
                c[:, block] = cumulant if self.free is None else cumulant * self.free[:, block]
        return residual

    def kick(self, m: Tensor, share: float, random: RandomStream) -> None:
        """Move free magnetisations this share of the way to a random point, in place."""
        low, high = min(self.unit.support), max(self.unit.support)
        target = random.uniform_(torch.empty_like(m)).mul_(high - low).add_(low)
        if self.free is not None:
            target = torch.where(self.free, target, m)
        m.lerp_(target, share)

    def relax(
        self, m: Tensor, beta: float, damping: float, tolerance: float, max_iter: int
    ) -> tuple[Tensor, Tensor]:
        """Sweep in place until every state has converged: the sweeps each took, its residual."""
        n_iter = torch.full((len(m),), max_iter, device=m.device)
        residual = m.new_full((len(m),), torch.inf)
        for iteration in range(1, max_iter + 1):
            residual = self.sweep(m, beta, damping)
            n_iter = torch.where(residual <= tolerance, n_iter.clamp(max=iteration), max_iter)
            if bool((residual <= tolerance).all()):
                break
        return n_iter, residual

    def terms(self, m: Tensor, beta: float) -> Tensor:
        r"""Terms of :math:`\beta\Gamma` by order, :math:`-S_0, O_1, O_2`, (n_states, order + 1)."""
        entropy = self.unit.entropy(m)
        if self.free is not None:
            entropy = torch.where(self.free, entropy, 0.0)
        terms = [-entropy.sum(-1)]
        terms.append(-beta * (m @ self.bias + 0.5 * ((m @ self.coupling) * m).sum(-1)))
        if self.order == 2:
            c = self.cumulant2(m)
            terms.append(-(beta**2) / 4 * ((c @ self.square) * c).sum(-1))
        return torch.stack(terms, dim=-1)

    def linear_response(self, m: Tensor, beta: float) -> LinearResponse:
        """Covariances of the units in each of these states, see :func:`linear_response`."""
        units, covariance, stable = self._free_covariance(m, beta)
        whole = m.new_zeros(len(m), m.shape[1], m.shape[1])
        whole[:, units[:, None], units] = covariance
        return LinearResponse(whole, stable)

    def mean_response(self, m: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """Average of these covariances over the states, and which of the states are stable."""
        units, covariance, stable = self._free_covariance(m, beta)
        whole = torch.zeros_like(self.coupling)
        whole[units[:, None], units] = covariance.mean(0)
        return whole, stable

    def _free_covariance(self, m: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        r"""Units that are free in some state, their covariances, and which states are stable.

        With :math:`c` the variances, :math:`C = \sqrt c\,(1 - M)^{-1} \sqrt c`, which stays
        finite where units are saturated or clamped:

        .. math::

            M_{ij} = \sqrt{c_i c_j}\,\big(\beta J_{ij}
                     + \tfrac12 \beta^2 J_{ij}^2 \kappa_2'(m_i) \kappa_2'(m_j)\big), \qquad
            M_{ii} = \tfrac12 \beta^2\, c_i \kappa_2''(m_i) \sum_j J_{ij}^2 c_j
        """
        units = self._free_units
        m, c = m[:, units], self.cumulant2(m)[:, units]
        interaction = beta * self.coupling[units[:, None], units]
        square = self.square[units[:, None], units]
        diagonal = torch.ones_like(c)
        if self.order == 2:
            slope = self.unit.cumulant2_slope(m)
            pairs = slope[:, :, None] * slope[:, None, :]
            interaction = interaction + 0.5 * beta**2 * square * pairs
            # κ₃' = κ₂'² + κ₂ κ₂'': the product c κ₂'' is finite where the unit is saturated.
            curvature = torch.where(c > 0, self.unit.cumulant3_slope(m) - slope**2, 0.0)
            diagonal -= 0.5 * beta**2 * curvature * (c @ square)
        root = c.clamp(min=0).sqrt()
        scale = root[:, :, None] * root[:, None, :]
        hessian = -scale * interaction
        hessian.diagonal(dim1=-2, dim2=-1).add_(diagonal)
        factor, failed = torch.linalg.cholesky_ex(hessian)
        stable = failed == 0
        identity = torch.eye(len(units), dtype=c.dtype, device=c.device)
        inverse = torch.cholesky_inverse(torch.where(stable[:, None, None], factor, identity))
        return units, torch.where(stable[:, None, None], scale * inverse, 0.0), stable

    def reaction_covariance(self, m: Tensor, beta: float) -> Tensor:
        r"""Covariance at fixed magnetisations, averaged over states, (n_units, n_units).

        .. math:: -\frac{1}{\beta}\frac{\partial(\beta\Gamma)}{\partial J_{ij}} - m_i m_j
                  = \beta J_{ij}\, c_i c_j

        at order 2, and zero at order 1, which knows of no correlations.
        """
        if self.order == 1:
            return torch.zeros_like(self.coupling)
        c = self.cumulant2(m)
        return beta * self.coupling * (c.T @ c) / len(m)


@torch.no_grad()
def anneal_mean_field(
    model: BoltzmannMachine,
    temperatures: Sequence[float] | ArrayLike | Tensor,
    *,
    clamp: ArrayLike | Tensor | None = None,
    order: int = 2,
    damping: float | None = None,
    tolerance: float | None = None,
    max_iter: int = 1000,
    start: ArrayLike | Tensor | None = None,
    n_starts: int | None = None,
    kick: float = 1e-3,
    random: RandomStream | None = None,
    group: Group = ALONE,
) -> AnnealedMeanField:
    r"""Follow the mean-field states of a Boltzmann machine through a schedule of temperatures.

    At each temperature, units are updated one after the other,

    .. math:: m_i \leftarrow \Big\langle s_i \Big\rangle_{f_i}, \qquad
              f_i = \beta \Big(b_i + \sum_j J_{ij} m_j\Big)
              + \tfrac12 \beta^2 \kappa_2'(m_i) \sum_j J_{ij}^2 \kappa_2(m_j),

    until they stand still; the state reached is the start at the next temperature. Naive updates
    (without the last term) never raise :math:`\Gamma`, so that they always settle.

    Parameters
    ----------
    model : BoltzmannMachine
    temperatures : sequence of float
        Positive, in units of the energy, in the order to be followed: from high to low for
        annealing; a single one is a quench.
    clamp : array-like or Tensor of shape (n_units,) or (n_states, n_units), default=None
        Values at which units are held, NaN where a unit is free. Rows of data with NaN for the
        hidden units give the clamped phase of learning, one state for each row.
    order : {1, 2}, default=2
        Naive mean field, or TAP with the Onsager term.
    damping : float, default=None
        Share of the old magnetisation that each update keeps, in [0, 1). None is 0 at order 1
        and 0.5 at order 2, whose undamped updates may oscillate.
    tolerance : float, default=None
        Largest change of a magnetisation by an undamped update at which a state counts as
        converged; None is 1e-10 in double and 1e-5 in single precision.
    max_iter : int, default=1000
        Largest number of sweeps at each temperature.
    start : array-like or Tensor of shape (n_states, n_units), default=None
        Magnetisations to start from. None starts every unit in the field of its bias alone.
    n_starts : int, default=None
        Number of states where there is no ``start``; None is one for each row of ``clamp``, or
        one.
    kick : float, default=1e-3
        Before each temperature magnetisations move by this share of the way to a random point.
        Without kicks a state stays on a symmetric point that has become unstable.
    random : RandomStream, default=None
        Source of the kicks, on the model's device; None makes none.
    group : Group, default=ALONE
        Processes that divide the states. All of them call this with the same values, and the
        result has all states.

    Returns
    -------
    AnnealedMeanField

    Raises
    ------
    ValueError
        When an option or a shape is impossible.

    Warns
    -----
    NotConvergedWarning
        When some state did not converge at some temperature; its values are those of the last
        sweep.
    NegativeEntropyWarning
        When the entropy of some state is negative, a sign that the expansion has broken down.

    References
    ----------
    Peterson and Anderson, *A mean field theory learning algorithm for neural networks*, Complex
    Systems 1, 1987.

    Examples
    --------
    Below its critical temperature, 1, a ferromagnet of many spins chooses a side:

    >>> import torch
    >>> from freenergy.models import BoltzmannMachine
    >>> from freenergy.random import RandomStream
    >>> coupling = (1 - torch.eye(100).double()) / 99
    >>> ferromagnet = BoltzmannMachine.from_coupling(coupling)
    >>> states = anneal_mean_field(ferromagnet, [2.0, 0.5], order=1, random=RandomStream(0))
    >>> states.magnetization.mean(-1).abs()[:, 0].round(decimals=4) + 0.0
    tensor([0.0000, 0.9575], dtype=torch.float64)
    """
    schedule = _schedule(model, temperatures)
    damping = default_damping(order) if damping is None else damping
    _check_options(damping, max_iter, kick)
    clamp, m = _start(model, float(schedule[0]), clamp, start, n_starts)
    if tolerance is None:
        tolerance = 1e-10 if m.dtype == torch.float64 else 1e-5
    group.check_same(model)
    own = group.portion(len(m))
    m, clamp = m[own], None if clamp is None else clamp[own]
    random = None if random is None else group.stream(random)
    expansion = PairExpansion(model, order, clamp)
    orders = torch.arange(order + 1, device=m.device, dtype=m.dtype)
    states, terms, n_iter, residual = [], [], [], []
    for temperature in schedule.tolist():
        if random is not None and kick > 0:
            expansion.kick(m, kick, random)
        steps, rest = expansion.relax(m, 1.0 / temperature, damping, tolerance, max_iter)
        states.append(m.clone())
        terms.append(expansion.terms(m, 1.0 / temperature))
        n_iter.append(steps)
        residual.append(rest)
    contributions, rest, steps, m = (
        group.join(torch.stack(parts), axis=1) for parts in (terms, residual, n_iter, states)
    )
    result = AnnealedMeanField(
        temperature=schedule,
        magnetization=m,
        free_energy=contributions.sum(-1) * schedule[:, None],
        energy=(contributions * orders).sum(-1) * schedule[:, None],
        entropy=(contributions * (orders - 1)).sum(-1),
        converged=rest <= tolerance,
        n_iter=steps,
        residual=rest,
        order=order,
    )
    _warn(result)
    return result


@torch.no_grad()
def linear_response(
    model: BoltzmannMachine,
    magnetization: ArrayLike | Tensor,
    beta: float = 1.0,
    *,
    order: int = 2,
    clamp: ArrayLike | Tensor | None = None,
) -> LinearResponse:
    r"""Covariances of the units in mean-field states, by linear response.

    .. math:: \langle s_i s_j \rangle - m_i m_j \approx \frac{\partial m_i}{\partial(\beta b_j)}
              = \Big[\frac{\partial^2 \beta\Gamma}{\partial m \, \partial m}\Big]^{-1}_{ij}

    The magnetisations themselves know of no correlations; how they answer to a field does.

    Parameters
    ----------
    model : BoltzmannMachine
    magnetization : array-like or Tensor of shape (n_states, n_units)
        Converged states.
    beta : float, default=1
        Inverse temperature at which they converged.
    order : {1, 2}, default=2
        Order at which they converged.
    clamp : array-like or Tensor of shape (n_units,) or (n_states, n_units), default=None
        As in :func:`anneal_mean_field`. The covariances of clamped units are zero.

    Returns
    -------
    LinearResponse

    Raises
    ------
    ValueError
        When an option or a shape is impossible.

    References
    ----------
    Kappen and Rodriguez, *Efficient learning in Boltzmann machines using linear response theory*,
    Neural Computation 10, 1998.

    Examples
    --------
    >>> import torch
    >>> from freenergy.models import BoltzmannMachine
    >>> pair = BoltzmannMachine.from_coupling(torch.tensor([[0.0, 0.1], [0.1, 0.0]]))
    >>> linear_response(pair, torch.zeros(1, 2), order=1).covariance[0, 0, 1]
    tensor(0.1010)
    """
    clamp, m = _start(model, 1.0 / beta, clamp, magnetization, None, name="magnetization")
    return PairExpansion(model, order, clamp).linear_response(m, beta)


def default_damping(order: int) -> float:
    """None for naive updates, which always settle; one half for those of order 2, which may not."""
    return 0.0 if order == 1 else 0.5


def _schedule(
    model: BoltzmannMachine, temperatures: Sequence[float] | ArrayLike | Tensor
) -> Tensor:
    schedule = as_tensor(temperatures, "temperatures", model.bias)
    if schedule.dim() != 1 or len(schedule) == 0:
        raise ValueError("temperatures must be a sequence of at least one temperature")
    if not bool((schedule > 0).all() & schedule.isfinite().all()):
        raise ValueError(f"temperatures must be positive and finite, got {schedule.tolist()}")
    return schedule


def _check_options(damping: float, max_iter: int, kick: float) -> None:
    if not 0 <= damping < 1:
        raise ValueError(f"damping must lie in [0, 1), got {damping}")
    if not 0 <= kick < 1:
        raise ValueError(f"kick must lie in [0, 1), got {kick}")
    if max_iter < 1:
        raise ValueError(f"max_iter must be at least 1, got {max_iter}")


def _start(
    model: BoltzmannMachine,
    temperature: float,
    clamp: ArrayLike | Tensor | None,
    start: ArrayLike | Tensor | None,
    n_starts: int | None,
    *,
    name: str = "start",
) -> tuple[Tensor | None, Tensor]:
    """The clamped values, one row for each state, and the magnetisations to start from."""
    n_units, bias = model.n_units, model.bias.detach()
    clamp = None if clamp is None else as_tensor(clamp, "clamp", bias)
    start = None if start is None else as_tensor(start, name, bias)
    if clamp is not None and (clamp.dim() not in (1, 2) or clamp.shape[-1] != n_units):
        raise ValueError(
            f"clamp must have shape ({n_units},) or (n_states, {n_units}), got {tuple(clamp.shape)}"
        )
    if start is not None and (start.dim() != 2 or start.shape[1] != n_units):
        raise ValueError(f"{name} must have shape (n_states, {n_units}), got {tuple(start.shape)}")
    if start is not None and n_starts is not None:
        raise ValueError("give start or n_starts, not both")
    rows = None if clamp is None or clamp.dim() == 1 else len(clamp)
    n_states = n_starts if start is None else len(start)
    if n_states is None:
        n_states = 1 if rows is None else rows
    if n_states < 1 or rows not in (None, n_states):
        raise ValueError(f"{n_states} states do not fit {rows} rows of clamped values")
    m = model.unit.mean(bias / temperature).repeat(n_states, 1) if start is None else start.clone()
    if clamp is not None:
        clamp = clamp.expand(n_states, n_units)
        m = torch.where(clamp.isnan(), m, clamp)
    low, high = min(model.unit.support), max(model.unit.support)
    if not bool(((m >= low) & (m <= high)).all()):
        raise ValueError(f"{name} and clamp must hold values in [{low:g}, {high:g}]")
    return clamp, m


def _warn(result: AnnealedMeanField) -> None:
    if not bool(result.converged.all()):
        warnings.warn(
            "some mean-field states did not converge (see converged and residual of the result); "
            "raise damping or max_iter, or end at a higher temperature",
            NotConvergedWarning,
            stacklevel=4,
        )
    if bool((result.entropy < -math.sqrt(torch.finfo(result.entropy.dtype).eps)).any()):
        warnings.warn(
            "the mean-field entropy of some states is negative: the coupling is too strong for "
            "the expansion, and its free energy should not be trusted",
            NegativeEntropyWarning,
            stacklevel=4,
        )

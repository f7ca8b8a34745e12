r"""The free-energy landscape of a model: its mean-field states, their weights, their number.

At strong coupling the mean-field free energy has many minima. Each is a state with an entropy of
its own, and together they make the model:

.. math::

    Z \approx \sum_s e^{-\beta\Gamma_s}, \qquad w_s = e^{-\beta\Gamma_s} / Z, \qquad
    S = \underbrace{\sum_s w_s S_s}_{\text{within the states}}
        \underbrace{- \sum_s w_s \ln w_s}_{\text{complexity}}
"""

from __future__ import annotations

import math
import numbers
import warnings
from dataclasses import dataclass
from functools import partial

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from freenergy.arrays import as_tensor
from freenergy.inference.mean_field import (
    MeanField,
    MeanFieldWarning,
    NotConvergedWarning,
    mean_field,
)
from freenergy.models import RBM, Unit
from freenergy.random import RandomStream

__all__ = ["MeanFieldStates", "mean_field_states"]

# How far a start is moved, in parts of the way to a random point: off the ridges between states
# that a symmetric model has at states of round numbers, too little to change anything else.
_NUDGE = 0.01

_POWER_ITERATIONS = 100


@dataclass(frozen=True, eq=False)
class MeanFieldStates:
    r"""The distinct mean-field states of a model, the heaviest first.

    Averages over states are those of the model as far as all its heavy states were found and each
    is within the reach of the expansion: see ``n_converged``, ``unseen``, ``negative_entropy`` and
    ``beyond_plefka``. No state is left out of the sums for these alarms.

    Attributes
    ----------
    visible : Tensor of shape (n_states, n_visible)
        Magnetisations of the visible units.
    hidden : Tensor of shape (n_states, n_hidden)
        Magnetisations of the hidden units.
    free_energy, energy, entropy : Tensor of shape (n_states,)
        :math:`\Gamma`, :math:`U` in units of the energy, and :math:`S` in nats, within the state,
        split as in :class:`~freenergy.inference.MeanField`.
    weight : Tensor of shape (n_states,)
        :math:`e^{-\beta\Gamma}`, normalised over the states.
    plefka : Tensor of shape (n_states,)
        Spectral norm of :math:`\beta^2 \kappa_2(m_i) W_{ij}^2 \kappa_2(m_j)`. The expansion
        converges only where it is below 1 (Plefka's condition); beyond, a state may be an
        artefact of the cut at low order, with any :math:`\ln Z` and even a positive entropy.
    basin : Tensor of int, shape (n_states,)
        How many starts led to the state.
    n_starts, n_converged : int
        Starts, and those that led to a fixed point. The others are left out.
    order : int
    beta : float
    """

    visible: Tensor
    hidden: Tensor
    free_energy: Tensor
    energy: Tensor
    entropy: Tensor
    weight: Tensor
    plefka: Tensor
    basin: Tensor
    n_starts: int
    n_converged: int
    order: int
    beta: float

    @property
    def n_states(self) -> int:
        """Number of distinct states."""
        return len(self.free_energy)

    @property
    def log_partition(self) -> float:
        r""":math:`\ln \sum_s e^{-\beta\Gamma_s}`, the estimate of :math:`\ln Z` by all states."""
        if self.n_states == 0:
            return math.nan
        return float(torch.logsumexp(-self.beta * _double(self.free_energy), 0))

    @property
    def complexity(self) -> float:
        r"""Entropy of the choice of state, :math:`-\sum_s w_s \ln w_s`, in nats.

        Its exponential is the effective number of states.
        """
        if self.n_states == 0:
            return math.nan
        return float(torch.special.entr(_double(self.weight)).sum())

    @property
    def within_entropy(self) -> float:
        r"""Mean entropy within a state, :math:`\sum_s w_s S_s`, in nats."""
        return self._average(self.entropy)

    @property
    def total_entropy(self) -> float:
        r"""Entropy of the whole, ``within_entropy + complexity``.

        With ``mean_energy`` it satisfies :math:`S = \beta U + \ln Z`.
        """
        return self.within_entropy + self.complexity

    @property
    def mean_energy(self) -> float:
        r"""Energy of the whole, :math:`\sum_s w_s U_s`."""
        return self._average(self.energy)

    @property
    def unseen(self) -> float:
        """Estimate (Good and Turing) of the share of starts that would lead to a new state.

        States found by one start only, as a share of the starts that converged. Near 0 the list
        of states is complete for starts of this kind; otherwise make more of them.
        """
        return self._share(self.basin == 1, self.n_converged)

    @property
    def negative_entropy(self) -> float:
        """Share of the states whose entropy is negative: there the expansion has broken down."""
        return self._share(self.entropy < 0, self.n_states)

    @property
    def beyond_plefka(self) -> float:
        """Share of the states beyond the convergence of the expansion, see ``plefka``."""
        return self._share(self.plefka >= 1, self.n_states)

    def _average(self, values: Tensor) -> float:
        if self.n_states == 0:
            return math.nan
        return float(_double(self.weight) @ _double(values))

    def _share(self, those: Tensor, n: int) -> float:
        return int(those.sum()) / n if n else math.nan

    def __repr__(self) -> str:
        return (
            f"MeanFieldStates(order={self.order}, beta={self.beta:g}, n_states={self.n_states}, "
            f"log_partition={self.log_partition:.6g}, within_entropy={self.within_entropy:.6g}, "
            f"complexity={self.complexity:.6g}, unseen={self.unseen:.3g}, "
            f"negative_entropy={self.negative_entropy:.3g}, "
            f"beyond_plefka={self.beyond_plefka:.3g}, "
            f"converged={self.n_converged}/{self.n_starts})"
        )


@torch.no_grad()
def mean_field_states(
    model: RBM,
    order: int = 2,
    *,
    beta: float = 1.0,
    starts: ArrayLike | Tensor | int = 100,
    random: RandomStream | None = None,
    damping: float = 0.5,
    tolerance: float | None = None,
    max_iter: int = 5000,
    separation: float = 0.01,
) -> MeanFieldStates:
    r"""Find the distinct mean-field states of an RBM from many starts, and weigh them.

    Each start first falls to a minimum at order 1, where every half-sweep lowers a bound on the
    free energy; the higher terms are switched on there. From anywhere else they can hold the
    magnetisations near their middle, in a state that the model does not have.

    Parameters
    ----------
    model : RBM
    order : {1, 2, 3}, default=2
        Naive mean field, TAP with the Onsager term, or TAP to third order.
    beta : float, default=1
        Inverse temperature, positive.
    starts : int, or array-like or Tensor of shape (n_starts, n_visible), default=100
        Visible magnetisations to start from: rows of the data find the states that hold the data.
        A number makes as many random ones, uniform over the range of the units. All are moved by
        a hundredth towards a random point, lest one stays on a ridge between two states.
    random : RandomStream, default=None
        Source of these draws; None is a stream of seed 0, so that a model always reads the same.
    damping, tolerance, max_iter :
        As in :func:`~freenergy.inference.mean_field`. Near a transition states need thousands of
        sweeps. More damping than ½ brings more starts to converge at strong coupling, but mostly
        to states beyond Plefka's condition.
    separation : float, default=0.01
        States are the same when no magnetisation differs by more than this part of its range.

    Returns
    -------
    MeanFieldStates
        Without any state, and with NaN for its averages, when no start converged.

    Raises
    ------
    ValueError
        When an option or the shape of ``starts`` is impossible.

    Warns
    -----
    NotConvergedWarning
        When no start converged at all. Short of that nothing is warned of: the result tells how
        many did, and which states are doubtful.

    References
    ----------
    Plefka, *Convergence condition of the TAP equation*, J. Phys. A 15, 1982;
    Bray and Moore, *Metastable states in spin glasses*, J. Phys. C 13, 1980.

    Examples
    --------
    Eight spins that follow one hidden spin point up or down:

    >>> import torch
    >>> from freenergy.models import RBM
    >>> rbm = RBM(8, 1, visible="spin", hidden="spin", dtype=torch.float64)
    >>> _ = torch.nn.init.constant_(rbm.weight, 1.5)
    >>> states = mean_field_states(rbm)
    >>> states.n_states, round(states.complexity / math.log(2), 6)
    (2, 1.0)
    >>> round(states.log_partition, 3)
    13.082
    """
    _validate(beta, separation)
    visible = _starting_points(model, starts, RandomStream(0) if random is None else random)
    solve = partial(
        mean_field, model, beta=beta, damping=damping, tolerance=tolerance, max_iter=max_iter
    )
    with warnings.catch_warnings():
        # The result tells what the warnings would, state by state.
        warnings.simplefilter("ignore", MeanFieldWarning)
        state = solve(1, start=visible)
        origin = torch.arange(len(visible), device=state.visible.device)
        if order != 1:
            # Starts that met already need not be followed one by one.
            leader, origin = _distinct(model, state, origin, separation)
            # A model that is not a number has no states; as a start it would be refused.
            start = state.visible[leader].nan_to_num(nan=_range(model.visible)[0])
            state = solve(order, start=start)
    result = _collect(model, state, origin, separation)
    if result.n_converged == 0:
        warnings.warn(
            "no mean-field state converged, the landscape is empty; lower order or beta, or raise "
            "max_iter",
            NotConvergedWarning,
            stacklevel=3,
        )
    return result


def _validate(beta: float, separation: float) -> None:
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta must be positive and finite, got {beta}")
    if not 0 < separation < 1:
        raise ValueError(f"separation must lie between 0 and 1, got {separation}")


def _starting_points(model: RBM, starts: ArrayLike | Tensor | int, random: RandomStream) -> Tensor:
    if isinstance(starts, numbers.Integral):
        if starts < 1:
            raise ValueError(f"starts must be at least 1, got {starts}")
        return _uniform(model, int(starts), random)
    visible = as_tensor(starts, "starts", model.weight)
    if visible.dim() != 2 or visible.shape[1] != model.n_visible or len(visible) == 0:
        raise ValueError(
            f"starts must have shape (n_starts, {model.n_visible}), got {tuple(visible.shape)}"
        )
    return visible.lerp(_uniform(model, len(visible), random), _NUDGE)


def _uniform(model: RBM, n: int, random: RandomStream) -> Tensor:
    low, span = _range(model.visible)
    draws = torch.empty(n, model.n_visible, device=random.device, dtype=model.weight.dtype)
    return random.uniform_(draws).mul_(span).add_(low).to(model.weight.device)


def _range(unit: Unit) -> tuple[float, float]:
    """Lowest value of a unit, and how far it is to the highest."""
    return min(unit.support), max(unit.support) - min(unit.support)


def _distinct(
    model: RBM, state: MeanField, among: Tensor, separation: float
) -> tuple[Tensor, Tensor]:
    """The groups of like states: the first of each by free energy, and every state's group.

    A state joins the lowest one within reach, so that the groups do not depend on the order of
    the starts. The cost is that of comparing every state with every group.
    """
    parts = ((state.visible, model.visible), (state.hidden, model.hidden))
    points = torch.cat([m / _range(unit)[1] for m, unit in parts], dim=-1)
    group = torch.full_like(state.n_iter, -1)
    left = among[state.free_energy[among].argsort()]
    leaders: list[Tensor] = []
    while len(left) > 0:
        near = (points[left] - points[left[0]]).abs().amax(-1) <= separation
        near[0] = True  # also where it is not a number
        group[left[near]] = len(leaders)
        leaders.append(left[0])
        left = left[~near]
    return torch.stack(leaders) if leaders else left, group


def _collect(model: RBM, state: MeanField, origin: Tensor, separation: float) -> MeanFieldStates:
    """The landscape of the converged states; start *i* led to ``state[origin[i]]``."""
    leader, group = _distinct(model, state, state.converged.nonzero().flatten(), separation)
    found = group[origin]
    visible, hidden = state.visible[leader], state.hidden[leader]
    free_energy = state.free_energy[leader]
    return MeanFieldStates(
        visible=visible,
        hidden=hidden,
        free_energy=free_energy,
        energy=state.energy[leader],
        entropy=state.entropy[leader],
        weight=torch.softmax(-state.beta * free_energy, 0),
        plefka=_plefka(model, visible, hidden, state.beta),
        basin=torch.bincount(found[found >= 0], minlength=len(leader)),
        n_starts=len(origin),
        n_converged=int((found >= 0).sum()),
        order=state.order,
        beta=state.beta,
    )


def _plefka(model: RBM, visible: Tensor, hidden: Tensor, beta: float) -> Tensor:
    r"""Spectral norm of :math:`\beta^2 \kappa_2(m_i) W_{ij}^2 \kappa_2(m_j)`, for each state.

    Power iteration: the matrix has no negative entry, so that the vector of ones cannot be
    orthogonal to the leading one. Every iterate is a bound from below.
    """
    square = (beta * model.weight) ** 2
    v, h = model.visible.cumulant2(visible), model.hidden.cumulant2(hidden)
    vector, norm = torch.ones_like(h), torch.zeros_like(h[:, 0])
    tiny = torch.finfo(vector.dtype).tiny
    for _ in range(_POWER_ITERATIONS):
        vector = vector / torch.linalg.vector_norm(vector, dim=-1, keepdim=True).clamp_min(tiny)
        image = v * ((vector * h) @ square.T)
        norm = torch.linalg.vector_norm(image, dim=-1)
        # Rescaled first: far from the transition the square of the norm would underflow.
        image = image / norm[:, None].clamp_min(tiny)
        vector = h * ((image * v) @ square)
    return norm


def _double(values: Tensor) -> Tensor:
    return values.cpu().double()

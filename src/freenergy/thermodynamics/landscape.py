r"""The landscape that a model has, and the smoother one that mean field sees at a temperature.

The energy :math:`E(s)` of a strongly coupled model is rough: from every start a descent ends in
another minimum. The mean-field free energy :math:`F(m, T)` averages over the states within reach
of a temperature; its minima merge as :math:`T` rises, until one is left. Both are counted here
from the same starts, and the passes between their minima are bounded from above.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln
from torch import Tensor

from freenergy.files import as_json
from freenergy.inference import MeanFieldStates, MeanFieldWarning, mean_field_states
from freenergy.inference.mean_field import PlefkaExpansion
from freenergy.models import RBM, Unit
from freenergy.random import RandomStream

__all__ = [
    "Barrier",
    "Descent",
    "DistinctCount",
    "EnergyMinima",
    "FixedPoints",
    "Landscape",
    "barrier",
    "descend",
    "free_energy_barrier",
    "landscape",
]

Array = NDArray[np.float64]
State = tuple[Tensor, Tensor]

_N_BOOTSTRAP = 500
# Draws that are made at once, at 8 bytes.
_MAX_DRAWS = 2**20
_POINTS_OF_A_LINE = 33
# Beyond these shares a count tells of the starts, or of the solver, and not of the landscape.
_MAX_UNSEEN = 0.1
_MIN_CONVERGED = 0.95


@dataclass(frozen=True, eq=False)
class Descent:
    """Where zero-temperature descents of the energy ended, one per start.

    Attributes
    ----------
    visible : Tensor of shape (n_starts, n_visible)
    hidden : Tensor of shape (n_starts, n_hidden)
    energy : Tensor of shape (n_starts,)
        :math:`E(v, h)`, in double precision like the states.
    n_sweeps : Tensor of int, shape (n_starts,)
        The last sweep that changed anything.
    converged : Tensor of bool, shape (n_starts,)
        Whether the last sweep made changed nothing: then no single flip lowers the energy.
    flat : Tensor of bool, shape (n_starts,)
        Whether some flip costs nothing: the end is one of several states of a plateau.
    """

    visible: Tensor
    hidden: Tensor
    energy: Tensor
    n_sweeps: Tensor
    converged: Tensor
    flat: Tensor

    def __repr__(self) -> str:
        n = len(self.energy)
        return (
            f"Descent(n_starts={n}, energy={float(self.energy.min()):.6g}.."
            f"{float(self.energy.max()):.6g}, converged={int(self.converged.sum())}/{n}, "
            f"flat={int(self.flat.sum())}, n_sweeps={int(self.n_sweeps.max())})"
        )


@dataclass(frozen=True, eq=False)
class Barrier:
    """Highest point of a path between two states, for each of some pairs.

    Attributes
    ----------
    peak : Tensor of shape (n_pairs,)
        The largest value on the path, its ends included.
    start, end : Tensor of shape (n_pairs,)
        The values at the ends.
    """

    peak: Tensor
    start: Tensor
    end: Tensor

    @property
    def height(self) -> Tensor:
        """From the higher of the two ends to the peak, shape (n_pairs,)."""
        return self.peak - torch.maximum(self.start, self.end)

    def __repr__(self) -> str:
        return f"Barrier(n_pairs={len(self.peak)}, height={_spread(self.height.numpy(force=True))})"


@dataclass(frozen=True)
class DistinctCount:
    r"""How many distinct states some starts found, and how many there may be.

    The number found grows with the number of starts as long as there are states left to find:
    it compares landscapes only at equal numbers of starts.
    A state of which no start was likely to hear leaves no trace: where a few states take nearly
    all starts, the intervals are those of the states found, and too narrow for a rare one more.

    Attributes
    ----------
    found : int
        Distinct states found.
    lower, upper : float
        Interval for the number that as many starts find on average.
    chao1, chao1_lower, chao1_upper : float
        Chao's estimate of the number of all states that such starts can reach, found or not,
        :math:`S + \frac{n-1}{n} \frac{f_1^2}{2 f_2}` with :math:`f_k` the number of states found
        by *k* starts, and its interval. On average it is a lower bound.
    unseen : float
        Share of further starts that would lead to a new state (Good and Turing), :math:`f_1/n`.
        Near 1 neither number says more than that there are many.
    n_starts : int
        Starts that led to a state.
    """

    found: int
    lower: float
    upper: float
    chao1: float
    chao1_lower: float
    chao1_upper: float
    unseen: float
    n_starts: int


@dataclass(frozen=True, eq=False)
class EnergyMinima:
    """The distinct minima of the energy that descents from the starts led to, the lowest first.

    Attributes
    ----------
    visible : Tensor of shape (n_minima, n_visible)
    hidden : Tensor of shape (n_minima, n_hidden)
    energy : ndarray of shape (n_minima,)
    basin : ndarray of int, shape (n_minima,)
        How many starts led to the minimum.
    flat : ndarray of bool, shape (n_minima,)
        Where some flip costs nothing: the state is one of a plateau, that which ties resolved
        towards the low value lead to.
    n_starts : int
    count : DistinctCount
    barriers : ndarray of shape (n_pairs,)
        Heights of the paths of single flips between pairs of minima, bounds from above, see
        :func:`barrier`.
    line_barriers : ndarray of shape (n_pairs,)
        Heights along the straight lines between the same pairs, see :func:`free_energy_barrier`
        at infinite ``beta``: what the barriers of the fixed points become at zero temperature.
    """

    visible: Tensor
    hidden: Tensor
    energy: Array
    basin: NDArray[np.int64]
    flat: NDArray[np.bool_]
    n_starts: int
    count: DistinctCount
    barriers: Array
    line_barriers: Array

    @property
    def share(self) -> Array:
        """Share of the starts that led to each minimum, shape (n_minima,)."""
        return self.basin / self.n_starts

    @property
    def mean_energy(self) -> float:
        """Energy at which the descents ended, averaged over the starts."""
        return _mean(self.energy, self.basin)

    def __repr__(self) -> str:
        return (
            f"EnergyMinima(found={self.count.found}, energy={_spread(self.energy)}, "
            f"mean_energy={self.mean_energy:.6g}, unseen={self.count.unseen:.3g}, "
            f"barriers={_spread(self.barriers)}, flat={int(self.flat.sum())})"
        )


@dataclass(frozen=True, eq=False)
class FixedPoints:
    r"""The distinct fixed points of the mean-field free energy at one temperature.

    Attributes
    ----------
    temperature : float
    states : freenergy.inference.MeanFieldStates
        Magnetisations, free energies, entropies, basins and alarms, the lowest :math:`F` first.
    rounded_energy : ndarray of shape (n_states,)
        Energy of each with every magnetisation rounded to the nearer end of its unit's range.
    count : DistinctCount
    barriers : ndarray of shape (n_pairs,)
        Heights of the naive :math:`F` along straight lines between pairs, whatever the order of
        the states, see :func:`free_energy_barrier`.
    """

    temperature: float
    states: MeanFieldStates
    rounded_energy: Array
    count: DistinctCount
    barriers: Array

    @property
    def free_energy(self) -> Array:
        """Free energies of the distinct fixed points, in units of the energy."""
        return _numbers(self.states.free_energy)

    @property
    def share(self) -> Array:
        """Share of all starts that led to each fixed point, shape (n_states,)."""
        return _numbers(self.states.basin) / self.states.n_starts

    @property
    def converged(self) -> float:
        """Share of the starts that came to a fixed point."""
        return self.states.n_converged / self.states.n_starts

    @property
    def mean_rounded_energy(self) -> float:
        """Energy of the rounded ends, averaged over the starts that converged."""
        return _mean(self.rounded_energy, _numbers(self.states.basin))

    def __repr__(self) -> str:
        return (
            f"FixedPoints(temperature={self.temperature:g}, found={self.count.found}, "
            f"free_energy={_spread(self.free_energy)}, "
            f"mean_rounded_energy={self.mean_rounded_energy:.6g}, "
            f"unseen={self.count.unseen:.3g}, converged={self.converged:.3g}, "
            f"barriers={_spread(self.barriers)})"
        )


@dataclass(frozen=True, eq=False)
class Landscape:
    r"""Minima of the energy beside fixed points of the free energy, from the same starts.

    Attributes
    ----------
    minima : EnergyMinima
    fixed_points : tuple of FixedPoints
        One for each temperature, in the order asked for.
    smoothing : ndarray of shape (n_temperatures,)
        Number of distinct fixed points over that of distinct minima of the energy: 1 is as rough
        as the energy. Where only *k* starts converged, the minima are those that *k* of the
        starts find on average, so that a solver that fails does not pass for a smooth landscape.
        NaN where none did.
    smoothing_lower, smoothing_upper : ndarray of shape (n_temperatures,)
        Interval for other starts. Both counts are resampled independently, although they share
        the starts, which makes it too wide rather than too narrow.
    order : int
        Of the mean-field expansion.
    n_starts : int
    confidence : float
        Nominal coverage of every interval.
    trusted : bool
        Whether the counts tell of the landscape.
    reasons : tuple of str
        Why they do not, with what to do.
    """

    minima: EnergyMinima
    fixed_points: tuple[FixedPoints, ...]
    smoothing: Array
    smoothing_lower: Array
    smoothing_upper: Array
    order: int
    n_starts: int
    confidence: float
    trusted: bool
    reasons: tuple[str, ...]

    @property
    def temperatures(self) -> Array:
        """The temperatures, in the order asked for."""
        return np.array([points.temperature for points in self.fixed_points])

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings and lists for JSON, without states; None for what is not finite."""
        minima = self.minima
        return as_json(
            {
                "order": self.order,
                "n_starts": self.n_starts,
                "confidence": self.confidence,
                "trusted": self.trusted,
                "reasons": self.reasons,
                "minima": {
                    "energy": minima.energy,
                    "share": minima.share,
                    "flat": minima.flat,
                    "mean_energy": minima.mean_energy,
                    "count": vars(minima.count),
                    "barriers": minima.barriers,
                    "line_barriers": minima.line_barriers,
                },
                "fixed_points": [_fixed_points_dict(points) for points in self.fixed_points],
                "temperatures": self.temperatures,
                "smoothing": self.smoothing,
                "smoothing_lower": self.smoothing_lower,
                "smoothing_upper": self.smoothing_upper,
            }
        )

    def __repr__(self) -> str:
        curve = ", ".join(
            f"{points.temperature:g}: {points.count.found}" for points in self.fixed_points
        )
        reasons = f", reasons={self.reasons!r}" if self.reasons else ""
        return (
            f"Landscape(n_starts={self.n_starts}, order={self.order}, "
            f"energy_minima={self.minima.count.found}, fixed_points={{{curve}}}, "
            f"smoothing={_spread(self.smoothing)}, trusted={self.trusted}{reasons})"
        )


def _fixed_points_dict(points: FixedPoints) -> dict[str, Any]:
    return {
        "temperature": points.temperature,
        "free_energy": points.free_energy,
        "rounded_energy": points.rounded_energy,
        "mean_rounded_energy": points.mean_rounded_energy,
        "share": points.share,
        "converged": points.converged,
        "negative_entropy": points.states.negative_entropy,
        "beyond_plefka": points.states.beyond_plefka,
        "count": vars(points.count),
        "barriers": points.barriers,
    }


def _spread(values: Array) -> str:
    return f"{values.min():.5g}..{values.max():.5g}" if len(values) else "none"


def _mean(values: Array, weight: NDArray[Any]) -> float:
    return float(np.average(values, weights=weight)) if len(values) else math.nan


def _numbers(values: Tensor) -> Array:
    return np.asarray(values.double().numpy(force=True))


def _integers(values: Tensor) -> NDArray[np.int64]:
    return np.asarray(values.long().numpy(force=True))


@torch.no_grad()
def descend(model: RBM, start: ArrayLike | Tensor, *, max_sweeps: int = 10_000) -> Descent:
    r"""Descend the energy of an RBM at zero temperature, one layer at a time.

    .. math:: h \leftarrow \arg\min_h E(v, h), \qquad v \leftarrow \arg\min_v E(v, h),

    in turn, until nothing changes. Units of one layer are not coupled, so each half-step is exact:
    a unit takes the end of its range on the side of its field, and the energy never rises. At the
    end no flip of a single unit lowers it. A unit without field, up to the rounding of its sum,
    takes the low end, so that a tie between two states always ends in the same one.

    Parameters
    ----------
    model : RBM
        Its parameters are used in double precision.
    start : array-like or Tensor of shape (n_starts, n_visible)
        Visible states to start from; values between the ends of the range are as good.
    max_sweeps : int, default=10000
        Largest number of sweeps. A handful to some dozens suffice.

    Returns
    -------
    Descent

    Raises
    ------
    ValueError
        For parameters that are not finite, a start of the wrong shape or out of range, or
        ``max_sweeps`` below 1.

    References
    ----------
    Hopfield, *Neural networks and physical systems with emergent collective computational
    abilities*, PNAS 79, 1982.

    Examples
    --------
    Eight spins that follow one hidden spin end up or down:

    >>> from freenergy.models import RBM
    >>> rbm = RBM(8, 1, visible="spin", hidden="spin")
    >>> _ = torch.nn.init.constant_(rbm.weight, 1.5)
    >>> end = descend(rbm, [[1.0] * 5 + [-1.0] * 3, [1.0] * 3 + [-1.0] * 5])
    >>> end.hidden.flatten().tolist(), end.energy.tolist()
    ([1.0, -1.0], [-12.0, -12.0])
    """
    if max_sweeps < 1:
        raise ValueError(f"max_sweeps must be at least 1, got {max_sweeps}")
    model = _in_double(model)
    v = _check_start(model, start)
    h = _lowest(model.hidden, model.hidden_field(v), _rounding(model, hidden=True))
    n_sweeps = torch.zeros(len(v), dtype=torch.long, device=v.device)
    changed = torch.ones_like(n_sweeps, dtype=torch.bool)
    visible_noise, hidden_noise = _rounding(model, hidden=False), _rounding(model, hidden=True)
    for sweep in range(1, max_sweeps + 1):
        new_v = _lowest(model.visible, model.visible_field(h), visible_noise)
        new_h = _lowest(model.hidden, model.hidden_field(new_v), hidden_noise)
        changed = (new_v != v).any(-1) | (new_h != h).any(-1)
        v, h = new_v, new_h
        n_sweeps[changed] = sweep
        if not bool(changed.any()):
            break
    flat = (model.visible_field(h).abs() <= visible_noise).any(-1)
    flat |= (model.hidden_field(v).abs() <= hidden_noise).any(-1)
    return Descent(v, h, model.energy(v, h), n_sweeps, ~changed, flat)


def _in_double(model: RBM) -> RBM:
    """The model in double precision, where the fields of states are exact or nearly."""
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        raise ValueError("the model has parameters that are not finite")
    return model if model.weight.dtype == torch.float64 else copy.deepcopy(model).double()


def _check_start(model: RBM, start: ArrayLike | Tensor) -> Tensor:
    visible = torch.as_tensor(start).to(model.weight)
    if visible.dim() != 2 or visible.shape[1] != model.n_visible or len(visible) == 0:
        raise ValueError(
            f"start must have shape (n_starts, {model.n_visible}), got {tuple(visible.shape)}"
        )
    low, high = _ends(model.visible)
    if not bool(((visible >= low) & (visible <= high)).all()):
        raise ValueError(f"start must hold states, in [{low:g}, {high:g}]")
    return visible


def _ends(unit: Unit) -> tuple[float, float]:
    return min(unit.support), max(unit.support)


def _lowest(unit: Unit, field: Tensor, noise: Tensor) -> Tensor:
    """The values of least energy in these fields, the low one where the field is noise."""
    low, high = _ends(unit)
    return torch.where(field > noise, high, low).to(field.dtype)


def _rounding(model: RBM, *, hidden: bool) -> Tensor:
    r"""Bound on the rounding error of every unit's field, :math:`n\epsilon(|b| + \sum |W x|)`."""
    weight, bias = model.weight.abs(), (model.hidden_bias if hidden else model.visible_bias).abs()
    reach = max(abs(x) for x in (model.visible if hidden else model.hidden).support)
    total = bias + reach * weight.sum(0 if hidden else 1)
    n_terms = 1 + weight.shape[0 if hidden else 1]
    return n_terms * torch.finfo(weight.dtype).eps * total


@torch.no_grad()
def barrier(model: RBM, a: State, b: State) -> Barrier:
    r"""Bound the energy barrier between two states from above, along a path of single flips.

    The path flips the units in which the states differ, each once, the cheapest next one first.
    It is made from either end, and the lower peak counts. The true barrier, the lowest peak of
    all paths of single flips, may be lower: the best path may flip a unit to and fro.

    Parameters
    ----------
    model : RBM
        Its parameters are used in double precision.
    a, b : pair of Tensors, of shape (n_pairs, n_visible) and (n_pairs, n_hidden)
        Visible and hidden states at the ends.

    Returns
    -------
    Barrier
        In units of the energy.

    Raises
    ------
    ValueError
        When the shapes do not fit, or parameters are not finite.

    Examples
    --------
    From all spins up to all down, half of them must turn before the hidden spin does:

    >>> from freenergy.models import RBM
    >>> rbm = RBM(8, 1, visible="spin", hidden="spin")
    >>> _ = torch.nn.init.constant_(rbm.weight, 1.5)
    >>> up = torch.ones(1, 8), torch.ones(1, 1)
    >>> path = barrier(rbm, up, (-up[0], -up[1]))
    >>> path.start.tolist(), path.peak.tolist()
    ([-12.0], [0.0])
    """
    model = _in_double(model)
    a, b = _check_states(model, a, "a"), _check_states(model, b, "b")
    if len(a[0]) != len(b[0]):
        raise ValueError(f"a and b must hold as many states, got {len(a[0])} and {len(b[0])}")
    peak = torch.minimum(_greedy_peak(model, a, b), _greedy_peak(model, b, a))
    return Barrier(peak, model.energy(*a), model.energy(*b))


def _check_states(model: RBM, states: State, name: str) -> State:
    visible, hidden = (torch.as_tensor(x).to(model.weight) for x in states)
    expected = (len(visible), model.n_visible), (len(visible), model.n_hidden)
    if (tuple(visible.shape), tuple(hidden.shape)) != expected:
        raise ValueError(
            f"{name} must be states of shapes (n_pairs, {model.n_visible}) and "
            f"(n_pairs, {model.n_hidden}), got {tuple(visible.shape)} and {tuple(hidden.shape)}"
        )
    return visible, hidden


def _greedy_peak(model: RBM, start: State, goal: State) -> Tensor:
    """Highest energy on the way, by the flip that costs least, for all pairs at once."""
    n = model.n_visible
    step = torch.cat(goal, -1) - torch.cat(start, -1)
    field = torch.cat([model.visible_field(start[1]), model.hidden_field(start[0])], -1)
    energy = model.energy(*start)
    peak = energy.clone()
    rows, columns = model.weight.detach(), model.weight.detach().T.contiguous()
    for _ in range(int((step != 0).sum(-1).amax()) if len(step) else 0):
        cost, unit = torch.where(step != 0, -step * field, torch.inf).min(-1)
        moving = cost.isfinite()
        # A pair that has arrived takes no step: its choice, any unit, moves by zero.
        energy = torch.where(moving, energy + cost, energy)
        peak = torch.maximum(peak, energy)
        size = step.gather(-1, unit[:, None])
        seen = unit < n
        field[seen, n:] += size[seen] * rows[unit[seen]]
        field[~seen, :n] += size[~seen] * columns[unit[~seen] - n]
        step.scatter_(-1, unit[:, None], 0.0)
    return torch.maximum(peak, model.energy(*goal))


@torch.no_grad()
def free_energy_barrier(
    model: RBM,
    a: State,
    b: State,
    *,
    beta: float = 1.0,
    order: int = 1,
    n_points: int = _POINTS_OF_A_LINE,
) -> Barrier:
    r"""Bound the barrier of the mean-field free energy, along straight lines of magnetisation.

    .. math:: \max_{0 \le t \le 1} F\big((1 - t)\,m_a + t\,m_b,\; T\big)

    on a grid of ``n_points`` of *t*, both layers moving together. The lowest pass between the two
    states lies below the line, as far as the grid resolves it.

    Parameters
    ----------
    model : RBM
        Its parameters are used in double precision.
    a, b : pair of Tensors, of shape (n_pairs, n_visible) and (n_pairs, n_hidden)
        Magnetisations at the ends.
    beta : float, default=1
        Inverse temperature. Infinite: the energy itself, :math:`E(m)`.
    order : {1, 2, 3}, default=1
        Of the expansion. At order 1 :math:`F` bounds the free energy at any magnetisation; the
        higher terms hold near the states, and between cold ones they lower it without limit.
    n_points : int, default=33
        Points of the line, its ends included.

    Returns
    -------
    Barrier
        In units of the energy.

    Raises
    ------
    ValueError
        When an option or a shape is impossible.

    Examples
    --------
    Eight spins that follow one hidden spin: the barrier between up and down falls with the
    temperature.

    >>> from freenergy.inference import mean_field
    >>> from freenergy.models import RBM
    >>> rbm = RBM(8, 1, visible="spin", hidden="spin", dtype=torch.float64)
    >>> _ = torch.nn.init.constant_(rbm.weight, 1.5)
    >>> for beta in (0.5, 1.0, math.inf):
    ...     state = mean_field(rbm, 1, beta=min(beta, 99), start=torch.ones(1, 8))
    ...     up, down = (state.visible, state.hidden), (-state.visible, -state.hidden)
    ...     path = free_energy_barrier(rbm, up, down, beta=beta)
    ...     print(round(float(path.height), 2))
    2.75
    6.15
    12.0
    """
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    if n_points < 2:
        raise ValueError(f"n_points must be at least 2, for the ends of the line, got {n_points}")
    model = _in_double(model)
    a, b = _check_states(model, a, "a"), _check_states(model, b, "b")
    if len(a[0]) != len(b[0]):
        raise ValueError(f"a and b must hold as many states, got {len(a[0])} and {len(b[0])}")
    height: Callable[[Tensor, Tensor], Tensor] = model.energy
    if not math.isinf(beta):
        expansion = PlefkaExpansion(model, order, beta)

        def height(v: Tensor, h: Tensor) -> Tensor:
            return expansion.terms(v, h).sum(-1) / beta

    start, end = height(*a), height(*b)
    peak = torch.maximum(start, end)
    for t in torch.linspace(0, 1, n_points, dtype=torch.float64).tolist()[1:-1]:
        peak = torch.maximum(peak, height(a[0].lerp(b[0], t), a[1].lerp(b[1], t)))
    return Barrier(peak, start, end)


@torch.no_grad()
def landscape(
    model: RBM,
    temperatures: Sequence[float] | ArrayLike,
    *,
    n_starts: int = 200,
    order: int = 1,
    rows: ArrayLike | Tensor | None = None,
    random: RandomStream | int | None = 0,
    separation: float = 0.01,
    damping: float = 0.0,
    max_iter: int = 1000,
    n_pairs: int = 50,
    confidence: float = 0.95,
) -> Landscape:
    r"""Count the minima of the energy and of the mean-field free energy from the same starts.

    Each start descends the energy, see :func:`descend`, and solves the mean-field equations at
    every temperature, see :func:`freenergy.inference.mean_field_states`. As :math:`T \to 0` the
    free energy becomes the energy, and its fixed points the minima; as :math:`T` grows they merge.
    At order 1 no sweep raises :math:`F`, and all starts converge, if slowly near a transition. The
    expansion beyond it need not at low temperature, and ``reasons`` then says so.

    Parameters
    ----------
    model : RBM
    temperatures : sequence of float
        Positive; :math:`\beta = 1/T` multiplies the energy, so that the model as trained at
        :math:`\beta = 1` has :math:`T = 1`.
    n_starts : int, default=200
        Starts. More of them find more.
    order : {1, 2, 3}, default=1
        Of the expansion: naive mean field, TAP, or TAP to third order.
    rows : array-like or Tensor of shape (n, n_visible), default=None
        Rows of data, of which ``n_starts`` are drawn, or all where there are fewer. None makes
        random visible states, every unit at either end of its range with equal chance.
    random : RandomStream, int or None, default=0
        Source of the draws, or a seed.
    separation : float, default=0.01
        Fixed points are the same when no magnetisation differs by more than this part of its
        unit's range. Minima of the energy are the same when all units agree. States that differ
        by a permutation or a symmetry of the model are different.
    damping : float, default=0
        Share of the old magnetisation that each mean-field half-sweep keeps. Without damping the
        sweeps become those of the descent as :math:`T \to 0`: what differs is the landscape, not
        the way down.
    max_iter : int, default=1000
        Largest number of mean-field sweeps.
    n_pairs : int, default=50
        Pairs of minima between which barriers are bounded: all where there are no more, else a
        random sample.
    confidence : float, default=0.95
        Coverage of the intervals: percentiles of a bootstrap over starts, which are drawn from
        the basins found and from as many unseen ones as Chao1 estimates, moved to have their
        mean at what was found.

    Returns
    -------
    Landscape

    Raises
    ------
    ValueError
        When an option is out of range, a shape does not fit or a parameter is not finite.

    References
    ----------
    Peterson & Anderson, *A mean field theory learning algorithm for neural networks*, Complex
    Systems 1, 1987; Chao, *Nonparametric estimation of the number of classes in a population*,
    Scand. J. Statist. 11, 1984; Chao et al., *Rarefaction and extrapolation with Hill numbers*,
    Ecol. Monogr. 84, 2014 (the bootstrap).

    Examples
    --------
    Four blocks of spins, each up or down below its critical temperature:

    >>> from freenergy.models import RBM
    >>> rbm = RBM(16, 4, visible="spin", hidden="spin", dtype=torch.float64)
    >>> _ = rbm.weight.data.copy_(2 * torch.eye(4).repeat_interleave(4, 0))
    >>> found = landscape(rbm, [0.1, 1.0, 8.0])
    >>> found.minima.count.found, [points.count.found for points in found.fixed_points]
    (16, [16, 16, 1])
    >>> found.smoothing.tolist()
    [1.0, 1.0, 0.0625]
    """
    asked = _check_temperatures(temperatures)
    _check_options(n_starts, n_pairs, confidence, separation)
    exact = _in_double(model)
    if not isinstance(random, RandomStream):
        random = RandomStream(random, model.weight.device)
    starts = _starts(exact, n_starts, rows, random)
    minima = _minima(exact, descend(exact, starts), n_pairs, confidence, random)
    here = random.state()
    points, curve = [], []
    for temperature in asked:
        # The same draws at every temperature, or the curve would carry their noise.
        random.restore(here)
        with warnings.catch_warnings():
            # The result tells what the warnings would.
            warnings.simplefilter("ignore", MeanFieldWarning)
            states = mean_field_states(
                model,
                order,
                beta=1 / temperature,
                starts=starts,
                random=random,
                damping=damping,
                max_iter=max_iter,
                separation=separation,
            )
        points.append(_fixed_points(exact, temperature, states, n_pairs, confidence, random))
        curve.append(_smoothing(minima.basin, _integers(states.basin), confidence, random))
    reasons = _doubts(minima, points)
    value, lower, upper = np.array(curve).T
    return Landscape(
        minima=minima,
        fixed_points=tuple(points),
        smoothing=value,
        smoothing_lower=lower,
        smoothing_upper=upper,
        order=order,
        n_starts=len(starts),
        confidence=confidence,
        trusted=not reasons,
        reasons=tuple(reasons),
    )


def _check_temperatures(temperatures: Sequence[float] | ArrayLike) -> list[float]:
    asked = np.asarray(temperatures, dtype=float)
    if asked.ndim != 1 or len(asked) == 0:
        raise ValueError(
            f"temperatures must be a sequence of at least one temperature, got shape {asked.shape}"
        )
    bad = asked[~(np.isfinite(asked) & (asked > 0))]
    if len(bad):
        raise ValueError(
            f"temperatures must be finite and positive, got {bad[0]:g} (the minima of the energy "
            "are the limit T = 0)"
        )
    return [float(temperature) for temperature in asked]


def _check_options(n_starts: int, n_pairs: int, confidence: float, separation: float) -> None:
    if n_starts < 1:
        raise ValueError(f"n_starts must be at least 1, got {n_starts}")
    if n_pairs < 0:
        raise ValueError(f"n_pairs must not be negative, got {n_pairs}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if not 0 < separation < 1:
        raise ValueError(f"separation must lie between 0 and 1, got {separation}")


def _starts(
    model: RBM, n_starts: int, rows: ArrayLike | Tensor | None, random: RandomStream
) -> Tensor:
    if rows is not None:
        data = _check_start(model, rows)
        return data[random.permutation(len(data))[:n_starts].to(data.device)]
    low, high = _ends(model.visible)
    draws = torch.empty(n_starts, model.n_visible, dtype=torch.float64, device=random.device)
    return torch.where(random.uniform_(draws) < 0.5, low, high).to(model.weight)


def _minima(
    model: RBM, ends: Descent, n_pairs: int, confidence: float, random: RandomStream
) -> EnergyMinima:
    """The distinct ends, by energy. A descent that was cut short would count like the others."""
    joint = torch.cat([ends.visible, ends.hidden], -1)
    unique, group, basin = joint.unique(dim=0, return_inverse=True, return_counts=True)
    first = torch.empty_like(basin).scatter_(0, group, torch.arange(len(group)).to(group))
    by_energy = ends.energy[first].argsort(stable=True)
    first, counts = first[by_energy], _integers(basin[by_energy])
    visible, hidden = ends.visible[first], ends.hidden[first]
    i, j = _pairs(len(unique), n_pairs, random)
    a, b = (visible[i], hidden[i]), (visible[j], hidden[j])
    return EnergyMinima(
        visible=visible,
        hidden=hidden,
        energy=_numbers(ends.energy[first]),
        basin=counts,
        flat=ends.flat[first].numpy(force=True),
        n_starts=len(joint),
        count=_count(counts, confidence, random),
        barriers=_numbers(barrier(model, a, b).height),
        line_barriers=_numbers(free_energy_barrier(model, a, b, beta=math.inf).height),
    )


def _fixed_points(
    model: RBM,
    temperature: float,
    states: MeanFieldStates,
    n_pairs: int,
    confidence: float,
    random: RandomStream,
) -> FixedPoints:
    rounded = (_rounded(model.visible, states.visible), _rounded(model.hidden, states.hidden))
    i, j = _pairs(states.n_states, n_pairs, random)
    line = free_energy_barrier(
        model,
        (states.visible[i], states.hidden[i]),
        (states.visible[j], states.hidden[j]),
        beta=states.beta,
    )
    return FixedPoints(
        temperature=temperature,
        states=states,
        rounded_energy=_numbers(model.energy(*rounded)),
        count=_count(_integers(states.basin), confidence, random),
        barriers=_numbers(line.height),
    )


def _rounded(unit: Unit, mean: Tensor) -> Tensor:
    low, high = _ends(unit)
    return torch.where(mean > (low + high) / 2, high, low).double()


def _pairs(n: int, n_pairs: int, random: RandomStream) -> tuple[Tensor, Tensor]:
    """All pairs of ``n`` states where there are no more than ``n_pairs``, else random ones."""
    if n * (n - 1) // 2 <= n_pairs:
        i, j = torch.triu_indices(n, n, 1)
        return i, j
    i, j = random.integers(0, n, n_pairs), random.integers(0, n - 1, n_pairs)
    return i, j + (j >= i)


@dataclass(frozen=True, eq=False)
class _Basins:
    """Basins that were found, with their shares as estimated, and those that were not.

    The shares found are lowered by what further starts would find, which is divided evenly among
    the states that Chao1 says are missing.
    """

    share: Array
    n_missing: int

    @classmethod
    def of(cls, basin: NDArray[np.int64]) -> _Basins:
        n = int(basin.sum())
        f1, f2 = int((basin == 1).sum()), int((basin == 2).sum())
        # The share of a missing state, from those found once and twice.
        if f1 == 0:
            deficit = 0.0
        elif f2 > 0:
            deficit = f1 / n * (n - 1) * f1 / ((n - 1) * f1 + 2 * f2)
        else:
            deficit = f1 / n * (n - 1) * (f1 - 1) / ((n - 1) * (f1 - 1) + 2)
        raw = basin / n
        missed = raw * (1 - raw) ** n
        share = raw - (deficit / missed.sum() * missed if deficit else 0.0)
        return cls(share, math.ceil(_chao1(basin) - len(basin)))

    def replicas(self, n: int, random: RandomStream) -> tuple[Array, Array]:
        """Distinct states that ``n`` starts find, and Chao1 of these, in many repetitions."""
        rows = max(1, _MAX_DRAWS // n)
        parts = [
            _tally(self._draw(min(rows, _N_BOOTSTRAP - done), n, random))
            for done in range(0, _N_BOOTSTRAP, rows)
        ]
        found, f1, f2 = np.concatenate(parts, axis=1)
        return found, found + _missing(n, f1, f2)

    def _draw(self, n_rows: int, n: int, random: RandomStream) -> NDArray[np.int64]:
        """The state that each start leads to, shape (n_rows, n); those not found count up."""
        draws = random.uniform_(torch.empty(n_rows, n, dtype=torch.float64, device=random.device))
        u, edge = draws.cpu().numpy(), np.cumsum(self.share)
        if not self.n_missing:
            # The last edge is 1 only up to rounding.
            return np.searchsorted(edge[:-1], u, side="right")
        state = np.searchsorted(edge, u, side="right")
        part = np.maximum(u - edge[-1], 0.0) / (1.0 - edge[-1])
        return state + (part * self.n_missing).astype(np.int64)


def _tally(states: NDArray[np.int64]) -> Array:
    """For each row, how many values it has, and how many of them once and twice."""
    states = np.sort(states, axis=1)
    first = np.ones(states.shape, dtype=bool)
    first[:, 1:] = states[:, 1:] != states[:, :-1]
    begin = np.flatnonzero(first)
    times, row = np.diff(begin, append=states.size), begin // states.shape[1]
    kinds = (row, row[times == 1], row[times == 2])
    return np.stack([np.bincount(x, minlength=len(states)).astype(float) for x in kinds])


def _missing(n: Array | int, f1: Array | int, f2: Array | int) -> Array:
    """States that Chao expects beyond those found, bias-corrected where none was found twice."""
    twice = np.maximum(f2, 1)
    return (n - 1) / n * np.where(f2 == 0, f1 * (f1 - 1.0) / 2, f1 * f1 / (2.0 * twice))


def _chao1(basin: NDArray[np.int64]) -> float:
    """Chao's lower bound on the number of states."""
    f1, f2 = int((basin == 1).sum()), int((basin == 2).sum())
    return len(basin) + float(_missing(int(basin.sum()), f1, f2))


def _count(basin: NDArray[np.int64], confidence: float, random: RandomStream) -> DistinctCount:
    n, found = int(basin.sum()), len(basin)
    if n == 0:
        nan = math.nan
        return DistinctCount(0, nan, nan, nan, nan, nan, nan, 0)
    numbers, estimates = _Basins.of(basin).replicas(n, random)
    chao1 = _chao1(basin)
    # A sample of a sample finds fewer: the spread is right, but not the middle.
    lower, upper = _interval(numbers - numbers.mean() + found, found, confidence)
    chao1_lower, chao1_upper = _interval(estimates - estimates.mean() + chao1, chao1, confidence)
    return DistinctCount(
        found=found,
        lower=max(lower, 1.0),
        upper=min(upper, float(n)),
        chao1=chao1,
        chao1_lower=max(chao1_lower, float(found)),
        chao1_upper=chao1_upper,
        unseen=int((basin == 1).sum()) / n,
        n_starts=n,
    )


def _interval(replicas: Array, value: float, confidence: float) -> tuple[float, float]:
    """Percentiles, with the value itself inside: a mean rounds where replicas hardly differ."""
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(replicas, [tail, 1 - tail])
    return min(float(lower), value), max(float(upper), value)


def _smoothing(
    minima: NDArray[np.int64], points: NDArray[np.int64], confidence: float, random: RandomStream
) -> tuple[float, float, float]:
    """Fixed points per minimum of the energy at equal numbers of starts, and its interval."""
    n = int(points.sum())
    if n == 0:
        return math.nan, math.nan, math.nan
    value = len(points) / _rarefied(minima, n)
    smooth, rough = (_Basins.of(basin).replicas(n, random)[0] for basin in (points, minima))
    ratio = smooth / rough
    return value, *_interval(ratio * (value / ratio.mean()), value, confidence)


def _rarefied(basin: NDArray[np.int64], k: int) -> float:
    r"""States that ``k`` of the starts find on average, :math:`\sum_i 1 - C(n-x_i,k)/C(n,k)`."""
    n = int(basin.sum())
    left = n - basin[n - basin >= k]
    log_missed = gammaln(left + 1) - gammaln(left - k + 1) - gammaln(n + 1) + gammaln(n - k + 1)
    return float(len(basin) - np.exp(log_missed).sum())


def _doubts(minima: EnergyMinima, points: Sequence[FixedPoints]) -> list[str]:
    reasons = []
    if minima.flat.any():
        reasons.append(
            f"{int(minima.flat.sum())} of {minima.count.found} minima of the energy are "
            "degenerate, with flips that cost nothing: their number depends on how ties are "
            "resolved"
        )
    if minima.count.unseen > _MAX_UNSEEN:
        reasons.append(
            f"{minima.count.unseen:.0%} of further starts would find another minimum of the "
            "energy: the number found is that of the starts, raise n_starts"
        )
    for at in points:
        reasons += [f"at T = {at.temperature:g} {reason}" for reason in _doubts_at(at)]
    return reasons


def _doubts_at(points: FixedPoints) -> list[str]:
    reasons = []
    if points.converged < _MIN_CONVERGED:
        reasons.append(
            f"only {points.converged:.0%} of the starts converged: raise max_iter or damping, or "
            "use order 1"
        )
    if points.count.unseen > _MAX_UNSEEN:
        reasons.append(
            f"{points.count.unseen:.0%} of further starts would find another fixed point: raise "
            "n_starts"
        )
    if points.states.beyond_plefka > 0:
        reasons.append(
            f"{points.states.beyond_plefka:.0%} of the fixed points lie beyond the convergence "
            "of the expansion: use order 1 or higher temperatures"
        )
    return reasons

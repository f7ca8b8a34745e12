r"""The landscape that a model has, and the smoother one that mean field sees at a temperature.

The energy :math:`E(s)` of a strongly coupled model is rough: from every start a descent ends in
another minimum. The mean-field free energy :math:`F(m, T)` averages over the states within reach
of a temperature; its minima merge as :math:`T` rises, until one is left. Both are counted here
from the same starts, and the passes between their minima are bounded from above.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from freenergy.files import as_json
from freenergy.inference import MeanFieldStates, MeanFieldWarning, mean_field_states
from freenergy.models import RBM, Unit
from freenergy.random import RandomStream
from freenergy.thermodynamics.barriers import barrier, free_energy_barrier, spread
from freenergy.thermodynamics.counts import DistinctCount, count_distinct, smoothing_ratio
from freenergy.thermodynamics.descent import Descent, check_start, descend, end_values, in_double

__all__ = ["EnergyMinima", "FixedPoints", "Landscape", "landscape"]

Array = NDArray[np.float64]

# Beyond these shares a count tells of the starts, or of the solver, and not of the landscape.
_MAX_UNSEEN = 0.1
_MIN_CONVERGED = 0.95


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
            f"EnergyMinima(found={self.count.found}, energy={spread(self.energy)}, "
            f"mean_energy={self.mean_energy:.6g}, unseen={self.count.unseen:.3g}, "
            f"barriers={spread(self.barriers)}, flat={int(self.flat.sum())})"
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
            f"free_energy={spread(self.free_energy)}, "
            f"mean_rounded_energy={self.mean_rounded_energy:.6g}, "
            f"unseen={self.count.unseen:.3g}, converged={self.converged:.3g}, "
            f"barriers={spread(self.barriers)})"
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
            f"smoothing={spread(self.smoothing)}, trusted={self.trusted}{reasons})"
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


def _mean(values: Array, weight: NDArray[Any]) -> float:
    return float(np.average(values, weights=weight)) if len(values) else math.nan


def _numbers(values: Tensor) -> Array:
    return np.asarray(values.double().numpy(force=True))


def _integers(values: Tensor) -> NDArray[np.int64]:
    return np.asarray(values.long().numpy(force=True))


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
    exact = in_double(model)
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
        curve.append(smoothing_ratio(minima.basin, _integers(states.basin), confidence, random))
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
        data = check_start(model, rows)
        return data[random.permutation(len(data))[:n_starts].to(data.device)]
    low, high = end_values(model.visible)
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
        count=count_distinct(counts, confidence, random),
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
        count=count_distinct(_integers(states.basin), confidence, random),
        barriers=_numbers(line.height),
    )


def _rounded(unit: Unit, mean: Tensor) -> Tensor:
    low, high = end_values(unit)
    return torch.where(mean > (low + high) / 2, high, low).double()


def _pairs(n: int, n_pairs: int, random: RandomStream) -> tuple[Tensor, Tensor]:
    """All pairs of ``n`` states where there are no more than ``n_pairs``, else random ones."""
    if n * (n - 1) // 2 <= n_pairs:
        i, j = torch.triu_indices(n, n, 1)
        return i, j
    i, j = random.integers(0, n, n_pairs), random.integers(0, n - 1, n_pairs)
    return i, j + (j >= i)


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

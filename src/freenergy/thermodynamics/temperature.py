"""Effective temperature: the temperature at which a model would best explain given rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.integrate import cumulative_trapezoid
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq
from torch import Tensor

from freenergy.arrays import as_tensor
from freenergy.inference import exact, is_enumerable
from freenergy.models import RBM, Unit
from freenergy.models.units import BinaryUnit
from freenergy.random import RandomStream

__all__ = ["EffectiveTemperature", "effective_temperature"]

_METHODS = ("pseudo_likelihood", "energy", "structural")
_FEW = 20

# Evaluations of a hidden unit at one beta that are spent unasked, and rows kept in memory.
_BUDGET = 5_000_000
_MAX_ROWS = 100_000
# Small enough to stay in cache: larger blocks cost more in page faults than they save in calls.
_CHUNK_ELEMENTS = 2**17

_NODES_PER_DECADE = 3
# Around the estimate, in ln beta: replicas lie at distances of one standard error, which may be
# of any size, so that the nodes are spaced in proportion to their distance.
_LOCAL_NODES = np.array([0.004, 0.012, 0.036, 0.108, 0.324])

# Of one beta: the slope of each row's log-likelihood, and the standard error of what all share.
_Score = Callable[[float], tuple[np.ndarray, float]]


@dataclass(frozen=True)
class EffectiveTemperature:
    r"""An effective temperature :math:`T = 1/\beta` with its bootstrap interval.

    Attributes
    ----------
    temperature, lower, upper : float
        The estimate and the ends of its interval; 0 and infinity where the interval is open.
    beta, beta_lower, beta_upper : float
        The same as inverse temperatures: ``beta_lower`` is ``1 / upper``.
    confidence : float
        Nominal coverage of the interval.
    method : str
        How it was measured.
    n_samples : int
        Rows used, or hidden units where ``method`` is ``"structural"``.
    trusted : bool
        Whether nothing speaks against estimate and interval.
    reasons : tuple of str
        What speaks against them.
    """

    temperature: float
    lower: float
    upper: float
    beta: float
    beta_lower: float
    beta_upper: float
    confidence: float
    method: str
    n_samples: int
    trusted: bool
    reasons: tuple[str, ...]

    def __repr__(self) -> str:
        reasons = f", reasons={self.reasons}" if self.reasons else ""
        return (
            f"EffectiveTemperature(temperature={self.temperature:.4g}, lower={self.lower:.4g}, "
            f"upper={self.upper:.4g}, confidence={self.confidence:g}, method={self.method!r}, "
            f"n_samples={self.n_samples}, trusted={self.trusted}{reasons})"
        )


@torch.no_grad()
def effective_temperature(
    model: RBM,
    rows: ArrayLike | Tensor,
    method: str = "pseudo_likelihood",
    *,
    n_bootstrap: int = 200,
    confidence: float = 0.95,
    random: RandomStream | int | None = 0,
    n_rows: int | None = None,
    n_units: int | None = None,
    energy_curve: Callable[[float], tuple[float, float]] | None = None,
    bounds: tuple[float, float] = (1e-3, 1e3),
) -> EffectiveTemperature:
    r"""Temperature at which the model would best explain these rows.

    It is 1 for rows that the model draws at equilibrium, above 1 where they are more disordered
    than the model's own states, and below 1 where they are more ordered.

    **"pseudo_likelihood"** maximises the log pseudo-likelihood in :math:`\beta`, the hidden
    units summed out. With :math:`x_j = b_j + (v^\top W)_j`, the step :math:`\delta_i` that flips
    unit *i* and :math:`\ell_i = \ln p(v^{(i)}) / p(v)`, it solves

    .. math:: \sum_{s,i} \sigma(\ell_i)\, \frac{\partial \ell_i}{\partial \beta} = 0, \quad
              \frac{\partial \ell_i}{\partial \beta} = \delta_i a_i + \sum_j \big[
              x_j^{(i)} \langle h_j \rangle_{\beta x_j^{(i)}} - x_j \langle h_j \rangle_{\beta x_j}
              \big].

    The better known :math:`\sum f_i / (1 + e^{\beta f_i}) = 0` with a fixed flip energy
    :math:`f_i` holds only where no hidden unit is coupled: at :math:`\beta \neq 1` the marginal
    weight :math:`e^{-\beta F(v; \beta)}` has :math:`\beta` inside its free energy.

    **"energy"** maximises the likelihood itself, that is, it matches the energy of the rows,
    their hidden units drawn at the same :math:`\beta`, to that of the model:

    .. math:: \frac1n \sum_s \langle E(v_s, h) \rangle_{h \mid v_s; \beta} = U(\beta).

    **"structural"** reads the weights alone. With :math:`p_\mu = (\sum_i w_{i\mu}^2)^2 /
    (n_v \sum_i w_{i\mu}^4)`, the share of weights that matter to hidden unit :math:`\mu`,

    .. math:: T = \frac{p}{W_2}, \quad p = \frac1{n_h} \sum_\mu p_\mu, \quad
              W_2 = \frac1{n_h} \sum_{i\mu} w_{i\mu}^2.

    It is a scale and not calibrated: an equilibrated model does not give 1. It is 1 in the
    random ensemble of Tubiana and Monasson, :math:`w = \xi / \sqrt{n_v}` with
    :math:`\xi = \pm 1` in a share *p* of the places and 0 elsewhere, and :math:`1/g^2` for
    :math:`w = g \xi / \sqrt{n_v}`; at :math:`\beta`, where the weights are
    :math:`\beta w`, it is :math:`T / \beta^2`. Their visible units are 0/1 and their hidden units
    rectified linear; ±1 units are therefore read in their 0/1 encoding, which doubles the weights
    once for each layer of them, so that one distribution has one temperature. A hidden unit
    without weights has :math:`p_\mu = 0`. The authors' later code measures sparsity with
    :math:`|w|^3` for :math:`w^2` in :math:`p_\mu`; in the ensemble both give *p*.

    The interval is a percentile bootstrap over rows, which must be independent draws: those of
    one Markov chain make it too narrow. On 600 random models of 8×5 and 10×6 units with 300 exact
    draws at :math:`\beta` of 0.5, 1 or 2, 95 % intervals contained :math:`\beta` in 94.7 %
    (pseudo-likelihood) and 95.0 % (energy) of the cases; with 100 draws, in 93.3 % and 93.8 %.
    For "structural" hidden units are resampled, and the rows are only checked.

    Parameters
    ----------
    model : RBM
    rows : array-like or Tensor of shape (n, n_visible)
        States of the visible units.
    method : {"pseudo_likelihood", "energy", "structural"}, default="pseudo_likelihood"
    n_bootstrap : int, default=200
        Replicas of the bootstrap.
    confidence : float, default=0.95
        Nominal coverage of the interval.
    random : RandomStream, int or None, default=0
        Source of the subsets and replicas, or a seed.
    n_rows : int, default=None
        At most this many rows, drawn without replacement. None uses as many as cost 5 million
        evaluations of a hidden unit at each of about 40 values of :math:`\beta`, but no fewer
        than 1000 and no more than 100 000.
    n_units : int, default=None
        Visible units that "pseudo_likelihood" flips in each row, drawn without replacement; the
        estimate remains consistent and the bootstrap covers the choice. None flips as many as
        the same cost allows: all in a small model, 10 with 1000 rows of a 784×500 model.
    energy_curve : callable, default=None
        :math:`U` and its standard error at a given :math:`\beta`, for "energy" where the model
        is too large to enumerate: a smooth curve over ``bounds``, such as one run of parallel
        tempering interpolated in :math:`\beta`. Its error enters the interval. None enumerates,
        at each of those 40 values.
    bounds : tuple of two floats, default=(1e-3, 1e3)
        Range of :math:`\beta` that is searched.

    Returns
    -------
    EffectiveTemperature
        Not to be trusted, with reasons, where no maximum lies between the bounds, where the rows
        are few, all equal or without information about :math:`\beta`. The interval then may be
        open, up to (0, inf).

    Raises
    ------
    ValueError
        For rows of the wrong width or with values that the units do not take (the column is
        named), parameters that are not finite, arguments out of range, units that cannot be
        flipped, and "energy" without a curve for a model that is too large to enumerate.

    References
    ----------
    Besag, *Statistical analysis of non-lattice data*, 1975;
    Tubiana & Monasson, *Emergence of compositional representations in restricted Boltzmann
    machines*, Phys. Rev. Lett. 118, 138301, 2017 (arXiv:1611.06759).

    Examples
    --------
    >>> from freenergy.inference import gibbs
    >>> rbm, random = RBM(8, 5), RandomStream(0)
    >>> _ = torch.nn.init.normal_(rbm.weight, generator=torch.Generator().manual_seed(0))
    >>> rows = gibbs(rbm, 1000, n_steps=100, beta=0.5, random=random).visible
    >>> found = effective_temperature(rbm, rows)
    >>> found.lower < 2 < found.upper
    True
    """
    _check_options(method, n_bootstrap, confidence, n_rows, n_units, bounds)
    states = _check_rows(model, rows)
    random = random if isinstance(random, RandomStream) else RandomStream(random)
    if method == "structural":
        return _structural(model, n_bootstrap, confidence, random)
    n_flips = model.n_visible if method == "pseudo_likelihood" else 1
    affordable = _BUDGET // (n_flips * model.n_hidden)
    limit = n_rows or min(max(1000, affordable), _MAX_ROWS)
    if len(states) > limit:
        states = states[random.permutation(len(states))[:limit].to(states.device)]
    if method == "energy":
        score = _energy_score(model, states, energy_curve)
    else:
        affordable = max(1, _BUDGET // (len(states) * model.n_hidden))
        score = _pseudo_likelihood_score(
            model, states, min(n_units or affordable, model.n_visible), random
        )
    # What is below the rounding of the energies is zero, or else the sign of noise would decide.
    floor = 1e-12 * sum(float(p.double().abs().sum()) for p in model.parameters())
    search = _Search(score, len(states), floor, bounds)
    resampled = search.resample(n_bootstrap, random)
    equal = bool((states == states[0]).all())
    return _summary(search, resampled, equal, confidence, method)


def _check_options(
    method: str,
    n_bootstrap: int,
    confidence: float,
    n_rows: int | None,
    n_units: int | None,
    bounds: tuple[float, float],
) -> None:
    if method not in _METHODS:
        raise ValueError(f"unknown method {method!r}: use one of {', '.join(map(repr, _METHODS))}")
    for name, value in (("n_bootstrap", n_bootstrap), ("n_rows", n_rows), ("n_units", n_units)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if not 0 < bounds[0] < bounds[1] < math.inf:
        raise ValueError(f"bounds must be two positive numbers in ascending order, got {bounds}")


def _check_rows(model: RBM, rows: ArrayLike | Tensor) -> Tensor:
    """The rows in double precision on the model's device, if they are states of the model."""
    rows = as_tensor(rows, "rows")
    if rows.dim() != 2 or rows.shape[1] != model.n_visible:
        raise ValueError(
            f"rows must have shape (n, {model.n_visible}), one column for each visible unit, got "
            f"{tuple(rows.shape)}"
        )
    if len(rows) == 0:
        raise ValueError("at least one row is needed")
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise ValueError("the model has parameters that are not finite: its training diverged")
    states = rows.to(model.weight.device, torch.float64)
    support = torch.tensor(model.visible.support, dtype=torch.float64, device=states.device)
    bad = ~torch.isin(states, support)
    if bool(bad.any()):
        row, column = (int(i) for i in bad.nonzero()[0])
        value = float(states[row, column])
        values = ", ".join(f"{x:g}" for x in model.visible.support)
        cure = "round it to these" if math.isfinite(value) else "remove or impute it"
        raise ValueError(
            f"rows have the value {value:g} in column {column}, first in row {row}, but the "
            f"model's visible units take the values {values}: {cure}"
        )
    return states


def _parameters(model: RBM) -> tuple[Tensor, Tensor, Tensor]:
    a, b, weight = model.visible_bias, model.hidden_bias, model.weight
    return a.double(), b.double(), weight.double()


def _pseudo_likelihood_score(
    model: RBM, states: Tensor, n_units: int, random: RandomStream
) -> _Score:
    r"""Slope in beta of each row's log pseudo-likelihood over ``n_units`` of its units."""
    if len(model.visible.support) != 2:
        raise ValueError(f"pseudo-likelihood by flips needs binary units, not {model.visible}")
    a, b, weight = _parameters(model)
    local_field = torch.addmm(b, states, weight)
    if n_units < model.n_visible:
        order = random.normal((len(states), model.n_visible)).argsort(1)[:, :n_units]
        units = order.to(states.device)
    else:
        units = torch.arange(n_units, device=states.device).expand(len(states), -1)
    step = sum(model.visible.support) - 2.0 * states.gather(1, units)
    block = max(1, _CHUNK_ELEMENTS // (n_units * model.n_hidden))

    def score(beta: float) -> tuple[np.ndarray, float]:
        slopes = []
        for x, i, d in zip(
            local_field.split(block), units.split(block), step.split(block), strict=True
        ):
            moved = x[:, None, :] + d[:, :, None] * weight[i]
            log_z, energy = _hidden_sums(model.hidden, x, beta)
            moved_log_z, moved_energy = _hidden_sums(model.hidden, moved, beta)
            log_ratio = beta * d * a[i] + moved_log_z - log_z[:, None]
            slope = d * a[i] - moved_energy + energy[:, None]
            slopes.append(-(torch.sigmoid(log_ratio) * slope).sum(1))
        return torch.cat(slopes).cpu().numpy(), 0.0

    return score


def _hidden_sums(unit: Unit, local_field: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Hidden units in these fields, which do not contain beta: their ln z and mean energy."""
    field = beta * local_field
    return unit.log_partition(field).sum(-1), -(unit.mean(field) * local_field).sum(-1)


def _energy_score(
    model: RBM, states: Tensor, energy_curve: Callable[[float], tuple[float, float]] | None
) -> _Score:
    """Slope in beta of each row's log-likelihood: the model's energy less the row's."""
    if energy_curve is None and not is_enumerable(model):
        raise ValueError(
            f"method 'energy' needs the mean energy of the model, which has too many units "
            f"({model.n_visible} and {model.n_hidden}) to be enumerated: pass energy_curve, a "
            "function of beta that returns this energy and its standard error, for example from "
            "parallel tempering, or use method 'pseudo_likelihood'"
        )
    a, b, weight = _parameters(model)
    local_field = torch.addmm(b, states, weight)
    visible_energy = -(states @ a)

    def score(beta: float) -> tuple[np.ndarray, float]:
        mean, error = energy_curve(beta) if energy_curve else (exact(model, beta).energy, 0.0)
        if not (math.isfinite(mean) and 0 <= error < math.inf):
            raise ValueError(
                f"energy_curve returned {mean} ± {error} at beta = {beta:.6g}: narrow bounds to "
                "where the curve is known"
            )
        energy = visible_energy - (model.hidden.mean(beta * local_field) * local_field).sum(-1)
        return mean - energy.cpu().numpy(), error

    return score


class _Search:
    """The best ln beta for given rows, and for replicas of them.

    The log-likelihood is not concave in beta, since ⟨E²⟩ − ⟨E⟩² at given rows counts against
    that of the model. A grid over all decades finds the maxima, and the highest is refined.
    """

    def __init__(
        self, score: _Score, n_rows: int, floor: float, bounds: tuple[float, float]
    ) -> None:
        # A curve that is a new simulation at each call must not contradict itself.
        self.score = cache(lambda t: score(math.exp(t)))
        self.n_rows = n_rows
        self.floor = floor
        self.low, self.high = (math.log(beta) for beta in bounds)
        n_nodes = 2 + math.ceil(_NODES_PER_DECADE * (self.high - self.low) / math.log(10))
        self.nodes = np.linspace(self.low, self.high, n_nodes)
        slopes = np.array([self.total(t) for t in self.nodes])
        choice, self.identified = (x[0] for x in _highest(self.nodes, slopes[None], floor))
        self.inside = bool(self.identified and 0 < choice < n_nodes)
        if not self.identified:
            self.best = min(max(0.0, self.low), self.high)
        elif self.inside:
            left = max(i for i in range(choice) if slopes[i] > floor)
            right = min(i for i in range(choice, n_nodes) if slopes[i] < -floor)
            self.best = float(brentq(self.total, self.nodes[left], self.nodes[right], xtol=1e-9))
            self._refine()
        else:
            self.best = self.low if choice == 0 else self.high

    def total(self, t: float) -> float:
        """Slope of the mean log-likelihood of all rows."""
        return float(self.score(float(t))[0].mean())

    def _refine(self) -> None:
        local = self.best + np.concatenate([-_LOCAL_NODES[::-1], [0.0], _LOCAL_NODES])
        local = local[(local > self.low) & (local < self.high)]
        self.nodes = np.union1d(self.nodes, local)

    def resample(self, n_replicas: int, random: RandomStream) -> tuple[np.ndarray, np.ndarray]:
        r"""The best ln beta of each bootstrap replica, and whether it is identified.

        Each replica is solved anew and not by one Newton step, which would miss the skewness and
        the other maxima. That costs no further evaluation of the model: the slope of a replica is
        linear in the slopes of its rows, which are known at the nodes, and is interpolated
        between them by monotone cubics, to well below the standard error.
        """
        scores = [self.score(float(t)) for t in self.nodes]
        by_row = np.stack([slopes for slopes, _ in scores], axis=1)
        # One deviate moves the whole curve: errors of a curve are alike at neighbouring betas.
        deviates = random.normal((n_replicas, 1)).numpy()
        slopes = deviates * np.array([error for _, error in scores])
        for replica in slopes:
            chosen = random.integers(0, self.n_rows, self.n_rows).numpy()
            replica += np.bincount(chosen, minlength=self.n_rows) @ by_row / self.n_rows
        choice, identified = _highest(self.nodes, slopes, self.floor)
        return _roots(self.nodes, slopes, choice), identified


def _highest(nodes: np.ndarray, slopes: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """Which maximum is the highest, for each row of slopes at the nodes, and whether there is any.

    0 stands for the lower end, ``len(nodes)`` for the upper, and k for one between the nodes
    k − 1 and k. A function that has become flat keeps its direction: a likelihood that rises to
    a plateau has its maximum at the end.
    """
    sign = np.sign(np.where(np.abs(slopes) > floor, slopes, 0.0))
    n = len(nodes)
    for k in range(1, n):
        sign[:, k] = np.where(sign[:, k] == 0, sign[:, k - 1], sign[:, k])
    for k in range(n - 1, 0, -1):
        sign[:, k - 1] = np.where(sign[:, k - 1] == 0, sign[:, k], sign[:, k - 1])
    value = cumulative_trapezoid(slopes * np.exp(nodes), nodes, initial=0.0)
    height = np.full((len(slopes), n + 1), -np.inf)
    height[:, 0] = np.where(sign[:, 0] < 0, value[:, 0], -np.inf)
    height[:, n] = np.where(sign[:, -1] > 0, value[:, -1], -np.inf)
    crossing = (sign[:, :-1] > 0) & (sign[:, 1:] < 0)
    peak = np.maximum(value[:, :-1], value[:, 1:])
    height[:, 1:n] = np.where(crossing, peak, -np.inf)
    return height.argmax(1), sign[:, 0] != 0


def _roots(nodes: np.ndarray, slopes: np.ndarray, choice: np.ndarray) -> np.ndarray:
    """Where each interpolated row of slopes falls through zero in the interval of its choice."""
    n = len(nodes)
    interval = np.clip(choice, 1, n - 1) - 1
    coefficients = PchipInterpolator(nodes, slopes, axis=1).c[:, interval, np.arange(len(slopes))]
    low, high = np.zeros(len(slopes)), np.diff(nodes)[interval]
    for _ in range(50):
        middle = 0.5 * (low + high)
        value = np.zeros(len(slopes))
        for coefficient in coefficients:
            value = value * middle + coefficient
        low, high = np.where(value > 0, middle, low), np.where(value > 0, high, middle)
    root = nodes[interval] + low
    return np.where(choice == 0, nodes[0], np.where(choice == n, nodes[-1], root))


def _summary(
    search: _Search,
    resampled: tuple[np.ndarray, np.ndarray],
    equal: bool,
    confidence: float,
    method: str,
) -> EffectiveTemperature:
    replicas, identified = resampled
    low, high = search.low, search.high
    outside = ~identified | (replicas <= low) | (replicas >= high)
    reasons = []
    if not search.identified:
        reasons.append("the rows have the same likelihood at every beta")
    elif search.best <= low:
        reasons.append(
            f"no maximum above beta = {math.exp(low):.4g}: the rows look hotter, or are unlike "
            "anything that the model draws"
        )
    elif search.best >= high:
        reasons.append(
            f"no maximum below beta = {math.exp(high):.4g}: the rows look colder, like ground "
            "states"
        )
    if search.n_rows < _FEW:
        reasons.append(f"fewer than {_FEW} rows: {search.n_rows}")
    if equal:
        reasons.append("all rows are equal, so that resampling them shows no uncertainty")
    if search.inside and outside.any():
        reasons.append(
            f"{outside.sum()} of {len(outside)} bootstrap replicas have no maximum between the "
            "bounds"
        )
    beta_lower, beta_upper = 0.0, math.inf
    if search.identified and not equal:
        tail = 0.5 * (1.0 - confidence)
        # A replica without information belongs to both tails.
        below = np.quantile(np.where(identified, replicas, low), tail, method="lower")
        above = np.quantile(np.where(identified, replicas, high), 1 - tail, method="higher")
        beta_lower = math.exp(min(below, search.best)) if below > low else 0.0
        beta_upper = math.exp(max(above, search.best)) if above < high else math.inf
    return _result(
        math.exp(search.best), beta_lower, beta_upper, confidence, method, search.n_rows, reasons
    )


def _result(
    beta: float,
    beta_lower: float,
    beta_upper: float,
    confidence: float,
    method: str,
    n_samples: int,
    reasons: list[str],
) -> EffectiveTemperature:
    return EffectiveTemperature(
        temperature=_inverse(beta),
        lower=_inverse(beta_upper),
        upper=_inverse(beta_lower),
        beta=beta,
        beta_lower=beta_lower,
        beta_upper=beta_upper,
        confidence=confidence,
        method=method,
        n_samples=n_samples,
        trusted=not reasons,
        reasons=tuple(reasons),
    )


def _inverse(x: float) -> float:
    return 1.0 / x if x > 0 else math.inf


def _structural(
    model: RBM, n_bootstrap: int, confidence: float, random: RandomStream
) -> EffectiveTemperature:
    weight = model.weight.double().cpu().numpy()
    for unit in (model.visible, model.hidden):
        # One distribution, one temperature: a ±1 unit is 2t − 1 with t of 0 or 1.
        weight = weight * unit.span if isinstance(unit, BinaryUnit) else weight
    # Relative to the largest, the fourth power can neither overflow nor vanish.
    largest = np.abs(weight).max(axis=0)
    square = (weight / np.where(largest > 0, largest, 1.0)) ** 2
    norm = square.sum(0)
    share = norm**2 / np.maximum((square**2).sum(0), 1.0) / len(weight)
    power = largest**2 * norm
    chosen = random.integers(0, len(power), n_bootstrap * len(power)).numpy()
    chosen = chosen.reshape(n_bootstrap, -1)
    replicas = _ratio(power[chosen].sum(1), share[chosen].sum(1))
    beta = float(_ratio(power.sum(), share.sum()))
    reasons = []
    if beta == 0:
        reasons.append("all weights are zero")
    if len(power) < _FEW:
        reasons.append(f"fewer than {_FEW} hidden units to resample: {len(power)}")
    beta_lower, beta_upper = 0.0, math.inf
    if beta > 0 and len(power) > 1:
        tail = 0.5 * (1.0 - confidence)
        beta_lower = min(float(np.quantile(replicas, tail, method="lower")), beta)
        beta_upper = max(float(np.quantile(replicas, 1 - tail, method="higher")), beta)
    return _result(beta, beta_lower, beta_upper, confidence, "structural", len(power), reasons)


def _ratio(power: np.ndarray, share: np.ndarray) -> np.ndarray:
    """W₂ / p; zero without any weight."""
    return power / np.where(share > 0, share, 1.0)

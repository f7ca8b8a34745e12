r"""Energy, entropy and heat capacity of a model as functions of its temperature, with errors.

A small model is enumerated. A larger one is simulated at all inverse temperatures at once, by
replica exchange on a ladder that starts at :math:`\beta = 0`, where the units are independent and
everything is known: Bennett's ratio between neighbours carries :math:`\ln Z` up from there, and
the states on each rung give the energy and its variance.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicHermiteSpline, PchipInterpolator
from torch import Tensor

from freenergy.arrays import as_matrix
from freenergy.files import as_json
from freenergy.inference import exact, is_enumerable
from freenergy.inference.annealing import length_profile, sample_base
from freenergy.inference.bridge import standard_error
from freenergy.inference.ladder import temperature_ladder
from freenergy.inference.partition import MAX_DRIFT, MAX_R_HAT, MIN_ARRIVALS, MIN_OVERLAP
from freenergy.inference.tempering import Exchange, Tempering, estimate, temper
from freenergy.models import RBM
from freenergy.random import RandomStream

__all__ = ["Thermodynamics", "energy_curve", "thermodynamics"]

Array = NDArray[np.float64]

_METHODS = ("auto", "exact", "tempering")
_QUANTITIES = ("log_partition", "free_energy", "energy", "entropy", "heat_capacity")

# States that enumeration passes in about a second.
_STATES_PER_SECOND = 2**18
# Below this many standard deviations of the energy times beta, a series is better than sampling.
_SERIES = 1e-4
# Rungs between those that are asked for, all together, and passes that place them.
_MAX_EXTRA_RUNGS = 200
_PASSES = 6
_PILOT_STEPS = 64
_OCTAVES = 10
# Numbers that are kept of a run, rungs times systems times records; beyond, records are thinned.
_MAX_KEPT = 2**22
_MIN_ROUNDS = 128
_MIN_RECORDS = 8
_MAX_ROUNDS = 2**17


@dataclass(frozen=True, eq=False)
class Thermodynamics:
    r"""Thermodynamic functions of a model at several inverse temperatures.

    Every array has one entry for each inverse temperature, in the order asked for.

    Attributes
    ----------
    beta : ndarray of shape (n,)
        Inverse temperatures.
    log_partition : ndarray of shape (n,)
        :math:`\ln Z(\beta)`.
    free_energy : ndarray of shape (n,)
        :math:`F = -\ln Z / \beta`, minus infinity at :math:`\beta = 0`.
    energy : ndarray of shape (n,)
        :math:`U = \langle E \rangle`.
    entropy : ndarray of shape (n,)
        :math:`S = \beta (U - F)`, in nats.
    heat_capacity : ndarray of shape (n,)
        :math:`C = \beta^2 (\langle E^2 \rangle - \langle E \rangle^2)`.
    log_partition_stderr, free_energy_stderr, energy_stderr, entropy_stderr, \
heat_capacity_stderr : ndarray of shape (n,)
        Standard errors; 0 where a value is exact. Errors at different temperatures are
        correlated.
    method : {"exact", "tempering"}
        What gave the values.
    trusted : bool
        Whether every check was passed.
    reasons : tuple of str
        Why it is not trusted, with what to do.
    diagnostics : dict
        Of the simulation: ``rungs`` (inverse temperatures of the ladder), ``acceptance`` (of
        exchanges between neighbours), ``arrivals`` (states per chain that came from
        :math:`\beta = 0` to the last rung), ``n_rounds``, ``drift``, ``n_chains``, ``seconds``.
    """

    beta: Array
    log_partition: Array
    free_energy: Array
    energy: Array
    entropy: Array
    heat_capacity: Array
    log_partition_stderr: Array
    free_energy_stderr: Array
    energy_stderr: Array
    entropy_stderr: Array
    heat_capacity_stderr: Array
    method: str
    trusted: bool
    reasons: tuple[str, ...] = ()
    diagnostics: dict[str, Any] = field(default_factory=dict)

    @property
    def temperature(self) -> Array:
        r""":math:`T = 1/\beta`, infinite at :math:`\beta = 0`."""
        with np.errstate(divide="ignore", over="ignore"):
            return 1.0 / self.beta

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain numbers, strings and lists for JSON; None for what is not finite."""
        return {name: as_json(value) for name, value in vars(self).items()}

    def __repr__(self) -> str:
        text = (
            f"Thermodynamics({len(self.beta)} inverse temperatures from {self.beta.min():g} to "
            f"{self.beta.max():g}, entropy={_range(self.entropy)}, "
            f"entropy_stderr={self.entropy_stderr.max():.2g}, method={self.method!r}, "
            f"trusted={self.trusted}"
        )
        return text + (f", reasons={self.reasons!r})" if self.reasons else ")")


def _range(values: Array) -> str:
    return f"{values.min():.5g}..{values.max():.5g}"


@torch.no_grad()
def thermodynamics(
    model: RBM,
    betas: Sequence[float] | ArrayLike,
    *,
    method: str = "auto",
    n_chains: int = 64,
    time_budget: float = 60.0,
    tolerance: float | None = None,
    data: ArrayLike | Tensor | None = None,
    random: RandomStream | int | None = 0,
) -> Thermodynamics:
    r"""Partition function, energy, entropy and heat capacity at inverse temperatures.

    .. math:: F = -\frac{\ln Z}{\beta}, \quad U = \langle E \rangle =
              -\frac{\partial \ln Z}{\partial \beta}, \quad S = \beta (U - F), \quad
              C = \beta^2 \,\mathrm{var}(E)

    **"exact"** enumerates the smaller layer. **"tempering"** runs ``n_chains`` independent
    systems of replicas on a temperature ladder from :math:`\beta = 0`, with a rung at every
    inverse temperature asked for and as many between them as the exchange needs. The hidden units
    are averaged out: with :math:`x_j = b_j + (v^\top W)_j`, and the mean :math:`m_j` and variance
    :math:`c_j` of :math:`h_j` given :math:`v`,

    .. math:: E(v) = -a^\top v - \sum_j m_j x_j, \quad U = \langle E(v) \rangle, \quad
              \mathrm{var}(E) = \Big\langle \sum_j c_j x_j^2 \Big\rangle + \mathrm{var}(E(v)).

    Standard errors come from the scatter of the independent systems. Each system's response in
    :math:`\ln Z` and in :math:`U` is added before it is squared, so that the errors of :math:`S`
    contain their correlation.
    At :math:`\beta` so small that :math:`\beta^2 \mathrm{var}(E) < 10^{-8}`, zero included, the
    high-temperature series is used, and the error is a bound on its remainder.

    Parameters
    ----------
    model : RBM
    betas : sequence of float
        Inverse temperatures, not negative, in any order; they may be repeated.
    method : {"auto", "exact", "tempering"}, default="auto"
        "auto" enumerates where that takes no longer than ``time_budget``, and at most about a
        second for each inverse temperature.
    n_chains : int, default=64
        Independent systems, each with a replica on every rung.
    time_budget : float, default=60
        Seconds after which no more rounds are started.
    tolerance : float, default=None
        Standard error of the entropy to reach, in nats. None asks for 0.1, or for one part in
        10 000 of the entropy at :math:`\beta = 0` where that is more.
    data : array-like or Tensor of shape (n, n_visible), default=None
        Rows that the model was trained on. Half of the systems start at them: systems that start
        elsewhere must then agree with those.
    random : RandomStream, int or None, default=0
        Source of the draws, or a seed.

    Returns
    -------
    Thermodynamics
        Not to be trusted, with reasons, where neighbours hardly exchange, too few states came up
        the ladder, the first half of the run differs from the second, or ``tolerance`` was not
        reached.

    Raises
    ------
    ValueError
        For inverse temperatures that are missing, negative or not finite, other options out of
        range, data of the wrong width, parameters that are not finite, and "exact" for a model
        that is too large.

    References
    ----------
    Bennett, *Efficient estimation of free energy differences from Monte Carlo data*, J. Comput.
    Phys. 22, 1976; Hukushima & Nemoto, *Exchange Monte Carlo method*, J. Phys. Soc. Jpn. 65, 1996;
    Syed, Bouchard-Côté, Deligiannidis, Doucet, *Non-reversible parallel tempering*, JRSS B 84,
    2022.

    Examples
    --------
    >>> from freenergy.models import RBM
    >>> rbm = RBM(8, 5)
    >>> _ = torch.nn.init.normal_(rbm.weight, generator=torch.Generator().manual_seed(0))
    >>> curves = thermodynamics(rbm, [0.0, 0.5, 1.0])
    >>> round(float(curves.entropy[0] / math.log(2)), 6)
    13.0
    >>> sampled = thermodynamics(rbm, [0.0, 0.5, 1.0], method="tempering")
    >>> bool((abs(sampled.entropy - curves.entropy) <= 4 * sampled.entropy_stderr + 1e-12).all())
    True
    """
    asked = _check_betas(betas)
    _check_options(model, method, n_chains, time_budget, tolerance)
    if data is not None:
        data = as_matrix(data, "data", model.n_visible, model.weight)
    begin = time.monotonic()
    if not isinstance(random, RandomStream):
        random = RandomStream(random, model.weight.device)
    affordable = _STATES_PER_SECOND * min(1.0, time_budget / len(asked))
    if method == "exact" or (method == "auto" and is_enumerable(model, affordable)):
        return _exact(model, asked)
    unique, back = np.unique(asked, return_inverse=True)
    free = _Free.of(model)
    if tolerance is None:
        tolerance = max(0.1, 1e-4 * free.log_partition)
    table = free.series(unique)
    cold = unique * math.sqrt(free.variance) > _SERIES
    reasons: list[str] = []
    diagnostics: dict[str, Any] = {"rungs": np.zeros(1), "acceptance": np.zeros(0)}
    if cold.any():
        simulation = _Simulation(
            model, free, unique[cold], n_chains, random, data, begin, begin + time_budget
        )
        found = simulation.until(tolerance, begin + time_budget)
        table[:, :, cold] = found.table
        reasons = _doubts(simulation, found, tolerance)
        diagnostics = simulation.diagnostics() | {"drift": found.drift, "n_chains": n_chains}
    diagnostics["seconds"] = time.monotonic() - begin
    return _result(asked, table[:, :, back.reshape(-1)], "tempering", reasons, diagnostics)


def _check_betas(betas: Sequence[float] | ArrayLike) -> Array:
    asked = np.asarray(betas, dtype=float)
    if asked.ndim != 1 or len(asked) == 0:
        raise ValueError(
            f"betas must be a sequence of at least one inverse temperature, got shape {asked.shape}"
        )
    bad = asked[~(np.isfinite(asked) & (asked >= 0))]
    if len(bad):
        raise ValueError(f"betas must be finite and not negative, got {bad[0]:g}")
    return asked + 0.0  # A zero without sign.


def _check_options(
    model: RBM,
    method: str,
    n_chains: int,
    time_budget: float,
    tolerance: float | None,
) -> None:
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(_METHODS)}, got {method!r}")
    if n_chains < 2:
        raise ValueError(f"n_chains must be at least 2, for an error of the mean, got {n_chains}")
    if not time_budget > 0:
        raise ValueError(f"time_budget must be positive, got {time_budget}")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        raise ValueError("the model has parameters that are not finite")


def _result(
    beta: Array, table: Array, method: str, reasons: Sequence[str], diagnostics: dict[str, Any]
) -> Thermodynamics:
    """From values and errors of all quantities, shape (2, n_quantities, n)."""
    values = dict(zip(_QUANTITIES, table[0], strict=True))
    errors = {f"{name}_stderr": x for name, x in zip(_QUANTITIES, table[1], strict=True)}
    return Thermodynamics(
        beta,
        **values,
        **errors,
        method=method,
        trusted=not reasons,
        reasons=tuple(reasons),
        diagnostics=diagnostics,
    )


def _exact(model: RBM, asked: Array) -> Thermodynamics:
    found = {beta: exact(model, beta) for beta in dict.fromkeys(asked.tolist())}
    values = np.array([[getattr(found[b], name) for b in asked] for name in _QUANTITIES])
    return _result(asked, np.stack([values, np.zeros_like(values)]), "exact", (), {})


@dataclass(frozen=True)
class _Free:
    """The model at infinite temperature, where its units are independent."""

    log_partition: float
    energy: float
    variance: float

    @classmethod
    def of(cls, model: RBM) -> _Free:
        r"""From the means and variances of free units.

        With :math:`v = \mu + \delta` and :math:`h = \nu + \epsilon` the energy is

        .. math:: E = \mathrm{const} - (a + W\nu) \cdot \delta - (b + \mu^\top W) \cdot \epsilon
                      - \delta^\top W \epsilon,

        whose terms are uncorrelated.
        """
        a, b, weight = (
            p.detach().double() for p in (model.visible_bias, model.hidden_bias, model.weight)
        )
        zero = torch.zeros((), dtype=torch.float64, device=weight.device)
        mu, nu = model.visible.mean(zero), model.hidden.mean(zero)
        s, t = model.visible.variance(zero), model.hidden.variance(zero)
        to_hidden = mu * weight.sum(0)
        log_z = len(a) * model.visible.log_partition(zero)
        log_z += len(b) * model.hidden.log_partition(zero)
        variance = s * ((a + nu * weight.sum(1)) ** 2).sum()
        variance += t * ((b + to_hidden) ** 2).sum() + s * t * (weight**2).sum()
        energy = -mu * a.sum() - nu * (b + to_hidden).sum()
        return cls(float(log_z), float(energy), float(variance))

    def series(self, beta: Array) -> Array:
        r"""High-temperature series to :math:`\beta^2`, and a bound on what it leaves out.

        The energy has degree 2 in independent units, so that its third moment about the mean is
        no more than :math:`8 \sigma^3` (hypercontractivity, for units of two values).
        """
        sigma = math.sqrt(self.variance)
        x = beta * sigma
        log_z = self.log_partition - beta * self.energy + 0.5 * x**2
        energy = self.energy - x * sigma
        values = [
            log_z,
            _over(-log_z, beta, -math.inf),
            energy,
            self.log_partition - 0.5 * x**2,
            x**2,
        ]
        rest = 8.0 * x**3
        errors = [rest / 6, _over(rest / 6, beta, 0.0), 4 * sigma * x**2, rest / 3, rest]
        return np.array([values, errors])


def _over(numerator: Array, beta: Array, at_zero: float) -> Array:
    with np.errstate(over="ignore"):
        return np.divide(numerator, beta, out=np.full_like(beta, at_zero), where=beta > 0)


@dataclass(frozen=True, eq=False)
class _Found:
    """Values and errors at the inverse temperatures, (2, n_quantities, n), and their checks."""

    table: Array
    overlap: float
    drift: float
    r_hat: float

    @property
    def entropy_stderr(self) -> float:
        return float(self.table[1, _QUANTITIES.index("entropy")].max())


class _Simulation:
    """Replica exchange on a temperature ladder with rungs at given inverse temperatures.

    A record is a pair of rounds, since even and odd neighbours take turns. When there are too
    many, neighbouring records become one: their energies are averaged, of their works every other
    is dropped.
    """

    def __init__(
        self,
        model: RBM,
        free: _Free,
        betas: Array,
        n_chains: int,
        random: RandomStream,
        data: Tensor | None,
        begin: float,
        deadline: float,
    ) -> None:
        knots = np.concatenate([[0.0], betas])
        late = begin + 0.3 * (deadline - begin)
        self.rungs, warm = _adapt(model, knots, n_chains, random, data, late)
        self.model = model
        self.free = free
        self.betas = betas
        self.system = Tempering(warm.ladder, warm.visible, random)
        self.asked = np.searchsorted(self.rungs, betas)
        # Second moments are taken about a value near the mean, where nothing cancels.
        self._centre = np.zeros((len(betas), 1))
        self._centre = self._measure()[0].mean(1, keepdims=True)
        self._exchanges: list[list[Exchange]] = []
        self._moments: list[Array] = []
        self._stride = 1
        # An even number, of which two and two become one.
        self._max_records = max(64, 2 * (_MAX_KEPT // (2 * len(self.rungs) * n_chains)))
        self._open = 0

    def until(self, tolerance: float, deadline: float) -> _Found:
        """Make rounds until the entropy is as precise as asked for, or time is up."""
        n_rounds = _MIN_ROUNDS
        while True:
            self._run(n_rounds, deadline)
            found = self._evaluate()
            enough = (
                self.system.arrivals.mean() >= 2 * MIN_ARRIVALS
                and found.drift < MAX_DRIFT
                and found.r_hat < MAX_R_HAT
            )
            late = time.monotonic() > deadline or self.system.n_rounds >= _MAX_ROUNDS
            if (enough and found.entropy_stderr <= tolerance) or late:
                return found
            # An error falls as the inverse root of the rounds.
            missing = (found.entropy_stderr / tolerance) ** 2 - 1.0 if enough else 1.0
            n_rounds = 2 * math.ceil(0.5 * self.system.n_rounds * min(1.0, max(0.2, missing)))

    def diagnostics(self) -> dict[str, Any]:
        """What the ladder did."""
        return {
            "rungs": self.rungs,
            "acceptance": self.system.acceptance,
            "arrivals": float(self.system.arrivals.mean()),
            "n_rounds": self.system.n_rounds,
        }

    def _run(self, n_rounds: int, deadline: float) -> None:
        for _ in range(0, n_rounds, 2):
            pair, moments = [], []
            for _ in range(2):
                pair.append(self.system.round())
                moments.append(self._measure())
            self._keep(pair, 0.5 * (moments[0] + moments[1]))
            if time.monotonic() > deadline and len(self._moments) >= _MIN_RECORDS:
                break

    def _keep(self, pair: list[Exchange], moments: Array) -> None:
        share = moments / self._stride
        if self._open == 0:
            self._exchanges.append(pair)
            self._moments.append(share)
        else:
            self._moments[-1] += share
        self._open = (self._open + 1) % self._stride
        if self._open == 0 and len(self._moments) >= self._max_records:
            merged = zip(self._moments[::2], self._moments[1::2], strict=True)
            self._moments = [0.5 * (first + second) for first, second in merged]
            self._exchanges = self._exchanges[::2]
            self._stride *= 2

    def _measure(self) -> Array:
        """First and second moment of the energy at each asked rung, (2, n, n_chains).

        The hidden units are averaged out. The energies are not multiplied by beta.
        """
        unit, bias = self.model.hidden, self.model.visible_bias
        fields, states = self.system.hidden_field[self.asked], self.system.visible[self.asked]
        local = fields / torch.as_tensor(self.betas).to(fields)[:, None, None]
        energy = -(states @ bias) - (unit.mean(fields) * local).sum(-1)
        variance = (unit.variance(fields) * local**2).sum(-1)
        first = energy.double().cpu().numpy() - self._centre
        return np.stack([first, variance.double().cpu().numpy() + first**2])

    def _evaluate(self) -> _Found:
        """All quantities from the records, less the first fifth, which may remember the start."""
        stop = len(self._moments) - (self._open > 0)  # The last one may not be complete.
        used = slice(stop // 5, stop)
        exchanges = [exchange for pair in self._exchanges[used] for exchange in pair]
        moments = np.array(self._moments[used])
        with np.errstate(invalid="ignore"):  # Without any overlap influences are infinite.
            bridge = estimate(exchanges, len(self.rungs), self.free.log_partition)
        half = len(moments) // 2
        change = moments[:half, 0].mean(0) - moments[half:, 0].mean(0)
        drift = max(bridge.drift, float(_deviation(change).max()))
        n_states = 2 * self._stride * len(moments) * self.system.n_systems
        table = self._table(
            bridge.log_partition[self.asked],
            bridge.influence[self.asked],
            moments.mean(0),
            n_states,
        )
        return _Found(table, float(bridge.overlap.min()), drift, bridge.r_hat)

    def _table(self, log_z: Array, response: Array, moments: Array, n_states: int) -> Array:
        """Values and errors from each system's response in ln Z and its moments of the energy.

        A state that is rarer than one in ``n_states`` may not have been seen at all, and then the
        scatter says nothing of it: in a frozen model it can be zero. Each error contains what one
        more state would change whose energy lies as far off as energies do at higher temperatures.
        """
        beta, (first, second) = self.betas, moments
        shift = first.mean(1)
        deviation = first - shift[:, None]
        error = _errors(deviation)
        energy = self._centre[:, 0] + shift
        # The square of an estimated mean is too large by the square of its error.
        variance = second.mean(1) - shift**2 + error**2
        scatter = second - second.mean(1, keepdims=True) - 2.0 * shift[:, None] * deviation
        values = [log_z, -log_z / beta, energy, log_z + beta * energy, beta**2 * variance]
        unseen = np.maximum.accumulate(np.maximum(variance, self.free.variance))
        unseen_energy = np.sqrt(unseen) / n_states
        # Sums in single precision are rounded, which a small beta does not make smaller.
        eps = torch.finfo(self.model.weight.dtype).eps
        rounding = eps * (abs(self.free.log_partition) + np.abs(log_z))
        log_z_error = np.hypot(_errors(response), rounding)
        errors = [
            log_z_error,
            log_z_error / beta,
            np.hypot(error, eps * np.abs(energy) + unseen_energy),
            np.hypot(
                _errors(response + beta[:, None] * deviation), rounding + beta * unseen_energy
            ),
            beta**2 * np.hypot(_errors(scatter), unseen / n_states),
        ]
        return np.array([values, errors])


def _errors(influences: Array) -> Array:
    return np.array([standard_error(row) for row in influences])


def _deviation(samples: Array) -> Array:
    """Distance from zero of the mean of each row, in its standard errors."""
    mean = samples.mean(1)
    error = _errors(samples - mean[:, None])
    return np.divide(np.abs(mean), error, out=np.zeros_like(mean), where=error > 0)


def _adapt(
    model: RBM,
    knots: Array,
    n_chains: int,
    random: RandomStream,
    data: Tensor | None,
    deadline: float,
) -> tuple[Array, Tempering]:
    """Rungs at the knots, and between them where neighbours would exchange too rarely.

    As :func:`~freenergy.inference.tempering.adapt_ladder`, which may move all rungs but the ends.
    """
    # In even steps of a long ladder the first would pass over all that happens.
    grid = np.union1d(knots, knots[-1] * 0.5 ** np.arange(1, _OCTAVES))
    place, spread = length_profile(temperature_ladder(model, grid), random, _PILOT_STEPS)
    rungs = _divide(
        knots, np.interp(place, np.arange(len(grid)), grid), spread * np.diff(place), 1.0
    )
    ladder = temperature_ladder(model, rungs)
    visible = sample_base(ladder, n_chains, random).expand(len(rungs), -1, -1).clone()
    if data is not None:
        chosen = data[random.integers(0, len(data), n_chains).to(data.device)]
        visible[:, ::2] = chosen[::2]
    system = Tempering(ladder, visible, random)
    for index in range(_PASSES):
        temper(system, 32 * 2**index, max_records=1, deadline=deadline)
        rejected = 1.0 - np.nan_to_num(system.acceptance, nan=0.5)
        even = index > 0 and float(rejected.max()) < 0.6
        if even or time.monotonic() > deadline:
            break
        new = _divide(knots, rungs, rejected, 0.5)
        nearest = np.abs(rungs[None, :] - new[:, None]).argmin(1)
        rungs, states = new, system.visible[nearest]
        system = Tempering(temperature_ladder(model, rungs), states, random)
    return rungs, system


def _divide(knots: Array, grid: Array, length: Array, step: float) -> Array:
    """The knots, and rungs that divide the length between them into even steps.

    ``length`` is that of each interval of the grid, ``step`` the longest step, unless the rungs
    become too many.
    """
    # Strictly increasing, so that it can be inverted.
    total = float(length.sum()) or 1.0
    rising = length + 1e-6 * total * np.diff(grid) / (grid[-1] - grid[0])
    cumulative = np.concatenate([[0.0], np.cumsum(rising)])
    at_knots = np.interp(knots, grid, cumulative)
    step = max(step, float(cumulative[-1]) / _MAX_EXTRA_RUNGS)
    levels = [
        np.linspace(low, high, max(1, math.ceil((high - low) / step)) + 1)[1:-1]
        for low, high in itertools.pairwise(at_knots)
    ]
    return np.union1d(knots, np.interp(np.concatenate(levels), cumulative, grid))


def _doubts(simulation: _Simulation, found: _Found, tolerance: float) -> list[str]:
    """What speaks against the results: the checks of :func:`log_partition`, at all rungs."""
    reasons = []
    arrivals = float(simulation.system.arrivals.mean())
    if found.overlap < MIN_OVERLAP:
        reasons.append("neighbours on the ladder hardly exchange: it has a gap; raise time_budget")
    if arrivals < MIN_ARRIVALS:
        reasons.append(
            f"only {arrivals:.2g} states per chain came up the ladder: the chains did not reach "
            "equilibrium; raise time_budget or lower the largest beta"
        )
    if simulation.system.n_rounds < _MIN_ROUNDS:
        reasons.append(
            f"time was up after {simulation.system.n_rounds} rounds, too few to tell whether the "
            "chains reached equilibrium; raise time_budget"
        )
    if not found.r_hat < MAX_R_HAT:
        reasons.append(
            f"the systems stay in different valleys (R-hat {found.r_hat:.2g}): the chains did not "
            "reach equilibrium"
        )
    if not found.drift < MAX_DRIFT:
        reasons.append("the estimates drift: the chains did not reach equilibrium")
    if not found.entropy_stderr <= tolerance:
        reasons.append(
            f"the standard error of the entropy is up to {found.entropy_stderr:.2g} nats, more "
            f"than the {tolerance:.2g} asked for: raise time_budget or n_chains"
        )
    return reasons


def energy_curve(curves: Thermodynamics) -> Callable[[float], tuple[float, float]]:
    r"""The energy as a function of :math:`\beta`, between the inverse temperatures computed.

    A cubic between neighbours, with the slope :math:`\partial U / \partial \beta = -C / \beta^2`
    at both, limited so that :math:`U` falls wherever the computed energies do (Fritsch & Carlson).
    The standard error is interpolated linearly; the distance from the cubic that ignores the known
    slopes is added to it as an error of interpolation.

    It is what :func:`~freenergy.thermodynamics.effective_temperature` takes as its
    ``energy_curve`` for a model too large to enumerate; its ``bounds`` must then lie within the
    inverse temperatures computed.

    Parameters
    ----------
    curves : Thermodynamics

    Returns
    -------
    callable
        From an inverse temperature to the energy and its standard error; both are NaN outside
        the range computed.

    References
    ----------
    Fritsch & Carlson, *Monotone piecewise cubic interpolation*, SIAM J. Numer. Anal. 17, 1980.

    Examples
    --------
    >>> from freenergy.inference import exact
    >>> from freenergy.models import RBM
    >>> rbm = RBM(8, 5, dtype=torch.float64)
    >>> curve = energy_curve(thermodynamics(rbm, [0.5, 1.0, 1.5]))
    >>> energy, error = curve(0.7)
    >>> abs(energy - exact(rbm, 0.7).energy) < 1e-6, curve(2.0)
    (True, (nan, nan))
    """
    beta, index = np.unique(curves.beta, return_index=True)
    energy, error = curves.energy[index], curves.energy_stderr[index]
    if len(beta) == 1:
        return lambda at: (
            (float(energy[0]), float(error[0])) if at == beta[0] else (math.nan, math.nan)
        )
    plain = PchipInterpolator(beta, energy, extrapolate=False)
    slope = -_over(curves.heat_capacity[index], beta**2, 0.0)
    if beta[0] ** 2 == 0:
        # C / β² is 0 / 0: the slope of a parabola that has the next one.
        slope[0] = 2.0 * (energy[1] - energy[0]) / (beta[1] - beta[0]) - slope[1]
    cubic = CubicHermiteSpline(beta, energy, _limit(slope, beta, energy), extrapolate=False)

    def at(beta_asked: float) -> tuple[float, float]:
        # A search in ln β may miss the ends by the last bit.
        near = min(max(beta_asked, float(beta[0])), float(beta[-1]))
        if math.isclose(near, beta_asked, rel_tol=1e-9):
            beta_asked = near
        value = float(cubic(beta_asked))
        if math.isnan(value):
            return math.nan, math.nan
        between = float(np.interp(beta_asked, beta, error))
        return value, math.hypot(between, value - float(plain(beta_asked)))

    return at


def _limit(slope: Array, x: Array, y: Array) -> Array:
    """Slopes of a cubic that is monotone wherever its points are falling."""
    secants = np.minimum(np.diff(y) / np.diff(x), 0.0)
    before = np.concatenate([secants[:1], secants])
    after = np.concatenate([secants, secants[-1:]])
    return np.clip(slope, 3.0 * np.maximum(before, after), 0.0)

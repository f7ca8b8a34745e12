r"""The partition function with an interval, and a verdict on whether it can be trusted.

One direction of annealing flatters: forward importance sampling misses modes and gives
:math:`\ln Z` too low, its reversal, started from states of the model, too high. Every estimate here
is therefore looked at from both ends, and ``trusted`` is False when they disagree.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from torch import Tensor

from freenergy.arrays import as_tensor
from freenergy.distributed import ALONE, Group
from freenergy.inference.annealing import anneal, even_positions, length_profile, sample_base
from freenergy.inference.bridge import FreeEnergyDifference, bennett, jarzynski
from freenergy.inference.exact import MAX_STATES, exact, is_enumerable
from freenergy.inference.gibbs import gibbs
from freenergy.inference.ladder import Ladder, annealing_ladder, independent_model
from freenergy.inference.states import mean_field_states
from freenergy.inference.tempering import (
    Exchange,
    LadderEstimate,
    Tempering,
    adapt_ladder,
    estimate,
    temper,
)
from freenergy.models import RBM
from freenergy.random import RandomStream

__all__ = ["METHODS", "LogPartition", "log_partition"]

Array = NDArray[np.float64]

METHODS = ("auto", "exact", "tap", "ais", "reverse_ais", "bar", "ptt")

MIN_OVERLAP = 0.02
MIN_ARRIVALS = 4.0
MAX_DRIFT = 4.0
MAX_R_HAT = 1.2
_MIN_SHARE = 0.05
_MIN_SAMPLES = 20.0
_MAX_TEMPERATURES = 2**16
_MAX_RECORDS = 2000
_TAP_STATES = 64
_TAP_SWEEPS = 500
"""Weak couplings, the only ones at which mean field is trusted, need far fewer."""
_MAX_PLEFKA = 0.5


@dataclass(frozen=True, eq=False)
class LogPartition:
    r"""An estimate of :math:`\ln Z` with its interval.

    Attributes
    ----------
    value : float
        In nats.
    lower, upper : float
        Ends of the interval.
    stderr : float
        Standard error; 0 where the value is exact, NaN where the interval is not a statistical
        one.
    method : str
        What gave the value.
    trusted : bool
        Whether every check was passed.
    reasons : tuple of str
        Why it is not trusted, with what to do.
    beta : float
    confidence : float
        Of the interval.
    diagnostics : dict
        Numbers and arrays of the methods that ran: ``forward_work`` and ``backward_work`` (the
        latter with its sign changed, so that both are estimates of the same difference),
        ``forward`` and ``backward`` (the two ends), ``effective_samples``, ``n_temperatures``,
        ``acceptance`` (of neighbours on the ladder), ``arrivals`` and ``arrival_time`` (of
        replicas that climbed it), ``drift``,
        ``r_hat``, ``n_rounds``, ``orders`` (of mean field), ``seconds``.
    """

    value: float
    lower: float
    upper: float
    stderr: float
    method: str
    trusted: bool
    reasons: tuple[str, ...] = ()
    beta: float = 1.0
    confidence: float = 0.95
    diagnostics: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        text = (
            f"LogPartition(value={self.value:.6g}, lower={self.lower:.6g}, "
            f"upper={self.upper:.6g}, method={self.method!r}, trusted={self.trusted}"
        )
        return text + (f", reasons={self.reasons!r})" if self.reasons else ")")


@torch.no_grad()
def log_partition(
    model: RBM,
    method: str = "auto",
    *,
    beta: float = 1.0,
    data: ArrayLike | Tensor | None = None,
    samples: ArrayLike | Tensor | None = None,
    ladder: Ladder | None = None,
    n_chains: int = 64,
    n_temperatures: int | Sequence[float] | None = None,
    width: float = 1.0,
    time_budget: float = 600.0,
    confidence: float = 0.95,
    random: RandomStream | int | None = 0,
    group: Group = ALONE,
) -> LogPartition:
    r"""Estimate :math:`\ln Z(\beta)` with an interval.

    ===============  =============================================================================
    ``exact``        enumeration of the smaller layer, up to about 25 binary units
    ``tap``          mean field to third order; no sampling, only for weak couplings
    ``ais``          annealed importance sampling from an independent model: low on average
    ``reverse_ais``  the same backwards, from samples of the model: high on average
    ``bar``          Bennett's acceptance ratio of the work in both directions
    ``ptt``          replica exchange along ``ladder`` (the checkpoints of a run: parallel
                     trajectory tempering), or, without one, along the line from an independent
                     model (parallel tempering); Bennett's ratio of all neighbours
    ``auto``         the first of exact, tap and ptt that is feasible and trusted
    ===============  =============================================================================

    The samples that the backward direction needs come from replica exchange, unless given.

    Parameters
    ----------
    model : RBM
    method : str, default="auto"
    beta : float, default=1
        Inverse temperature.
    data : array-like or Tensor of shape (n, n_visible), default=None
        Rows that the model was trained on. The independent model takes their means, and a quarter
        of the chains start at them: chains that start elsewhere must then agree with those.
    samples : array-like or Tensor of shape (n, n_visible), default=None
        States believed to follow the model, for ``ais``, ``reverse_ais`` and ``bar``.
    ladder : Ladder, default=None
        From a model without couplings to this one at ``beta``; for ``ptt``.
    n_chains : int, default=64
        Independent chains, or systems of replicas.
    n_temperatures : int or sequence of float, default=None
        Steps of annealing, or the positions themselves, from 0 to 1. None chooses as many as the
        thermodynamic length asks for, and places them by it.
    width : float, default=1
        Width of the interval to reach, in nats.
    time_budget : float, default=600
        Seconds after which no more rounds are started.
    confidence : float, default=0.95
    random : RandomStream, int or None, default=0
        Source of the draws, or a seed.
    group : Group, default=ALONE
        Processes that divide the chains of annealing and replica exchange, such as
        :func:`freenergy.distributed.group_now` tells. All of them must call this, with the same
        model and options; ``n_chains`` are those of all together, and so is the estimate, which
        is the same in each process. The other methods are not divided.

    Returns
    -------
    LogPartition

    Raises
    ------
    ValueError
        When an option is impossible.

    References
    ----------
    Neal, *Annealed importance sampling*, 2001; Grosse, Ghahramani, Adams, arXiv:1511.02543;
    Bennett, J. Comput. Phys. 22, 1976; Béreux et al., arXiv:2405.15376.

    Examples
    --------
    >>> from freenergy.models import RBM
    >>> rbm = RBM(8, 5, dtype=torch.float64)
    >>> result = log_partition(rbm, "ptt", n_chains=32)
    >>> truth = log_partition(rbm, "exact").value
    >>> result.trusted, abs(result.value - truth) < 0.1
    (True, True)
    """
    data = None if data is None else as_tensor(data, "data", model.weight)
    samples = None if samples is None else as_tensor(samples, "samples", model.weight)
    _validate(
        model,
        method,
        beta,
        data,
        samples,
        ladder,
        n_chains,
        n_temperatures,
        width,
        time_budget,
        confidence,
    )
    begin = time.monotonic()
    if not isinstance(random, RandomStream):
        random = RandomStream(random, model.weight.device)
    group.check_same(model)
    if group.rank == 0 and n_chains < group.size and method not in ("exact", "tap"):
        warnings.warn(
            f"{n_chains} chains leave {group.size - n_chains} of {group.size} processes without "
            "any: raise n_chains",
            UserWarning,
            stacklevel=3,
        )
    request = _Request(
        model,
        beta,
        data,
        samples,
        ladder,
        n_chains,
        n_temperatures,
        width,
        begin + time_budget,
        confidence,
        group.stream(random),
        group,
    )
    result = _METHODS[method](request)
    result.diagnostics["seconds"] = time.monotonic() - begin
    return group.agree(result)


@dataclass(frozen=True, eq=False)
class _Request:
    """What is asked for."""

    model: RBM
    beta: float
    data: Tensor | None
    samples: Tensor | None
    ladder: Ladder | None
    n_chains: int
    n_temperatures: int | Sequence[float] | None
    width: float
    deadline: float
    confidence: float
    random: RandomStream
    group: Group

    def line(self) -> Ladder:
        """The line from an independent model with the means of the data, or of short chains."""
        if self.data is not None:
            visible = self.data.mean(0)
            hidden = self.model.hidden_mean(self.data, self.beta).mean(0)
        else:
            chains = gibbs(self.model, 64, 100, beta=self.beta, random=self.random)
            visible = self.model.visible_mean(chains.hidden, self.beta).mean(0)
            hidden = self.model.hidden_mean(chains.visible, self.beta).mean(0)
        means = self.group.agree((visible.cpu(), hidden.cpu()))
        base = independent_model(self.model, *means)
        return annealing_ladder(self.model, base, self.beta)

    def result(
        self,
        value: float,
        stderr: float,
        method: str,
        reasons: Sequence[str],
        diagnostics: dict[str, Any],
        n: int,
    ) -> LogPartition:
        """The interval of a statistical estimate from ``n`` independent chains."""
        half = float(stats.t.ppf(0.5 + self.confidence / 2, max(1, n - 1))) * stderr
        reasons = list(reasons)
        if not 2 * half <= self.width:
            reasons.append(
                f"the interval is {2 * half:.2g} nats wide, more than the {self.width:g} asked "
                "for: raise time_budget or n_chains"
            )
        return LogPartition(
            value,
            value - half,
            value + half,
            stderr,
            method,
            not reasons,
            tuple(reasons),
            self.beta,
            self.confidence,
            diagnostics,
        )


def _exact(request: _Request) -> LogPartition:
    value = exact(request.model, request.beta).log_partition
    return LogPartition(
        value, value, value, 0.0, "exact", True, (), request.beta, request.confidence
    )


def _tap(request: _Request) -> LogPartition:
    """Mean field of all orders; their differences are the only measure of the error."""
    # Random starts as well: a state far from the data may be the heavier one.
    low, high = min(request.model.visible.support), max(request.model.visible.support)
    like = request.model.weight.new_empty(_TAP_STATES, request.model.n_visible)
    starts = low + (high - low) * request.random.uniform_(like)
    if request.data is not None:
        starts = torch.cat([starts[: _TAP_STATES // 2], request.data[: _TAP_STATES // 2]])
    states = [
        mean_field_states(
            request.model,
            order,
            beta=request.beta,
            starts=starts,
            random=request.random,
            max_iter=_TAP_SWEEPS,
        )
        for order in (1, 2, 3)
    ]
    naive, second, third = (state.log_partition for state in states)
    # No theory gives the error of the expansion. This was found on random models within Plefka's
    # condition, where it covers 99 in 100 (benchmarks/partition_coverage.py).
    half = 0.5 * abs(second - naive) + 2.0 * abs(third - second)
    reasons = []
    if any(state.n_converged < state.n_starts for state in states[1:]):
        reasons.append("some mean-field states did not converge")
    if any(state.negative_entropy > 0 for state in states[1:]):
        reasons.append("a mean-field entropy is negative: the coupling is too strong")
    if any(state.n_states != 1 for state in states):
        reasons.append("there is more than one mean-field state: the coupling is too strong")
    if not all(bool((state.plefka < _MAX_PLEFKA).all()) for state in states[1:]):
        reasons.append("the coupling is near or beyond where the expansion converges")
    if not 2 * half <= request.width:
        reasons.append(f"its orders differ by more than {request.width:g} nats allow")
    return LogPartition(
        third,
        third - half,
        third + half,
        math.nan,
        "tap",
        not reasons,
        tuple(reasons),
        request.beta,
        request.confidence,
        {"orders": {1: naive, 2: second, 3: third}},
    )


@dataclass(frozen=True, eq=False)
class _Climb:
    """Replica exchange that was run: its estimate, its checks, its states."""

    system: Tempering
    value: float
    stderr: float
    reasons: list[str]
    diagnostics: dict[str, Any]


def _climb(request: _Request, ladder: Ladder, width: float) -> _Climb:
    """Replica exchange along a ladder until the interval is narrow enough or time is up."""
    group = request.group
    warm = adapt_ladder(
        ladder,
        request.n_chains,
        request.random,
        start=request.data,
        deadline=_part(request.deadline, 0.3),
        group=group,
    )
    system = Tempering(warm.ladder, warm.visible, request.random)
    kept: list[Exchange] = []
    n_rounds, stride, base = 128, 1, system.ladder.base_log_partition()
    while True:
        kept += temper(
            system,
            n_rounds,
            max_records=-(-n_rounds // stride),
            deadline=request.deadline,
            group=group,
        )
        while len(kept) > _MAX_RECORDS:
            # Rounds come in pairs, an even and an odd one.
            kept = [exchange for i, exchange in enumerate(kept) if i // 2 % 2 == 0]
            stride *= 2
        # The first fifth may still remember the start.
        used = kept[len(kept) // 10 * 2 :]
        found = estimate(used, len(system.ladder), base)
        error, flow = float(found.stderr[-1]), system.flow(group)
        enough = (
            flow.arrivals.mean() >= 2 * MIN_ARRIVALS
            and found.drift < MAX_DRIFT
            and found.r_hat < MAX_R_HAT
        )
        late = any(group.collect(time.monotonic() > request.deadline))
        done = (enough and 4.5 * error <= width) or late or system.n_rounds >= 2**17
        if group.agree(done):
            break
        n_rounds = min(n_rounds * 2, 4096)
    arrivals = float(flow.arrivals.mean())
    diagnostics: dict[str, Any] = {
        "ladder_log_partition": float(found.log_partition[-1]),
        "ladder_stderr": error,
        "n_rungs": len(system.ladder),
        "n_rounds": system.n_rounds,
        "acceptance": flow.acceptance,
        "arrivals": arrivals,
        "arrival_time": flow.arrival_time,
        "drift": found.drift,
        "r_hat": found.r_hat,
    }
    reasons = _doubts(found, arrivals)
    return _Climb(system, float(found.log_partition[-1]), error, reasons, diagnostics)


def _doubts(found: LadderEstimate, arrivals: float) -> list[str]:
    """Why an estimate by replica exchange may not be trusted."""
    reasons = []
    if float(found.overlap.min()) < MIN_OVERLAP:
        reasons.append("neighbours on the ladder hardly exchange: it has a gap")
    if arrivals < MIN_ARRIVALS:
        reasons.append(
            f"only {arrivals:.2g} states per chain came up the ladder: the chains "
            "did not reach equilibrium; raise time_budget, or train with method='ptt'"
        )
    if not found.r_hat < MAX_R_HAT:
        reasons.append(
            f"the systems stay in different valleys (R-hat {found.r_hat:.2g}): the chains did not "
            "reach equilibrium; raise time_budget"
        )
    if not found.drift < MAX_DRIFT:
        reasons.append("the estimate drifts: the chains did not reach equilibrium")
    return reasons


def _part(deadline: float, share: float) -> float:
    now = time.monotonic()
    return now + share * max(0.0, deadline - now)


def _ptt(request: _Request) -> LogPartition:
    ladder = request.line() if request.ladder is None else request.ladder
    climb = _climb(request, ladder, request.width)
    return request.result(
        climb.value, climb.stderr, "ptt", climb.reasons, climb.diagnostics, request.n_chains
    )


@dataclass(frozen=True, eq=False)
class _Works:
    """Annealing in both directions."""

    base: float
    forward: Array
    backward: Array
    reasons: list[str]
    diagnostics: dict[str, Any]


def _works(request: _Request) -> _Works:
    """Work of annealing forwards from the independent model and backwards from samples."""
    line, random = request.line(), request.random
    group, n = request.group, request.n_chains
    if request.samples is not None:
        index = group.agree(random.permutation(len(request.samples))[:n])
        if len(index) < n:
            raise ValueError(f"samples has {len(index)} rows, fewer than the {n} chains")
        tops, reasons, diagnostics = request.samples[index[group.portion(n)]], [], {}
    else:
        half = dataclasses.replace(request, deadline=_part(request.deadline, 0.5))
        climb = _climb(half, line, math.inf)
        tops, reasons, diagnostics = climb.system.visible[-1], climb.reasons, climb.diagnostics
    positions = _positions(request, line)
    end = _part(request.deadline, 0.5)
    best = math.inf
    while True:
        begin = time.monotonic()
        up, _ = anneal(line, positions, sample_base(line, group.share(n), random), random)
        down, _ = anneal(line, positions[::-1], tops, random)
        forward, backward = map(np.concatenate, zip(*group.collect((up, down)), strict=True))
        spread = max(float(forward.std()), float(backward.std()))
        # More steps do not help chains that are caught in valleys. Twice the steps take twice the
        # time.
        stuck, best = spread > 0.9 * best, spread
        late = 3.0 * time.monotonic() - 2.0 * begin > end or len(positions) > _MAX_TEMPERATURES
        done = request.n_temperatures is not None or spread <= 1.0 or stuck or late
        if group.agree(done):
            break
        positions = even_positions(line, 2 * len(positions), random, group=group)
    low, high = jarzynski(forward), jarzynski(backward)
    base = line.base_log_partition()
    diagnostics |= {
        "forward_work": forward,
        "backward_work": -backward,
        "forward": base - low.value,
        "forward_stderr": low.stderr,
        "backward": base + high.value,
        "backward_stderr": high.stderr,
        "effective_samples": (low.overlap * n, high.overlap * n),
        "n_temperatures": len(positions),
        "base_log_partition": base,
    }
    return _Works(base, forward, backward, reasons + _disagreement(low, high, n), diagnostics)


def _disagreement(low: FreeEnergyDifference, high: FreeEnergyDifference, n: int) -> list[str]:
    """What speaks against two ends of an annealing: ``low`` overestimates ΔF, ``-high`` under."""
    reasons = []
    for name, end in (("forward", low), ("backward", high)):
        if end.overlap * n < max(_MIN_SAMPLES, _MIN_SHARE * n):
            reasons.append(
                f"{name} annealing rests on {end.overlap * n:.1f} of {n} chains: raise "
                "n_temperatures"
            )
    gap = low.value + high.value
    if abs(gap) > 4.0 * math.hypot(low.stderr, high.stderr):
        reasons.append(
            f"the two ends disagree by {abs(gap):.2g} nats: the chains did not reach equilibrium"
        )
    return reasons


def _positions(request: _Request, line: Ladder) -> Array:
    asked, group = request.n_temperatures, request.group
    if asked is None:
        begin = time.monotonic()
        grid, spread = length_profile(line, request.random, 64, group)
        now = time.monotonic()
        length = float((spread * np.diff(grid)).sum())
        # Both directions must fit into half of the time that is left.
        affordable = 0.25 * max(0.0, request.deadline - now) / max(1e-9, (now - begin) / 64)
        wanted = min(max(50.0, 2 * length**2), affordable, _MAX_TEMPERATURES)
        n = group.agree(max(50, int(wanted)))
        return even_positions(line, n, request.random, group=group)
    if isinstance(asked, numbers.Integral):
        return even_positions(line, int(asked), request.random, group=group)
    return np.asarray(asked, dtype=float)


def _against_ladder(works: _Works, value: float, stderr: float) -> list[str]:
    """The reasons of the works, and whether replica exchange found something else."""
    diagnostics = works.diagnostics
    if "ladder_log_partition" not in diagnostics:
        return works.reasons
    gap = abs(value - diagnostics["ladder_log_partition"])
    if gap <= 4.0 * math.hypot(stderr, diagnostics["ladder_stderr"]):
        return works.reasons
    return [
        *works.reasons,
        f"replica exchange, which gave the samples, differs by {gap:.2g} nats",
    ]


def _ais(request: _Request) -> LogPartition:
    works = _works(request)
    end = jarzynski(works.forward)
    return _annealed(request, works, works.base - end.value, end.stderr, "ais")


def _reverse_ais(request: _Request) -> LogPartition:
    works = _works(request)
    end = jarzynski(works.backward)
    return _annealed(request, works, works.base + end.value, end.stderr, "reverse_ais")


def _bar(request: _Request) -> LogPartition:
    works = _works(request)
    both = bennett(works.forward, works.backward)
    return _annealed(request, works, works.base - both.value, both.stderr, "bar")


def _annealed(
    request: _Request, works: _Works, value: float, stderr: float, method: str
) -> LogPartition:
    reasons = _against_ladder(works, value, stderr)
    return request.result(value, stderr, method, reasons, works.diagnostics, request.n_chains)


def _auto(request: _Request) -> LogPartition:
    if is_enumerable(request.model):
        return _exact(request)
    by_mean_field = request.group.agree(_tap(request))
    return by_mean_field if by_mean_field.trusted else _ptt(request)


_METHODS: dict[str, Callable[[_Request], LogPartition]] = {
    "auto": _auto,
    "exact": _exact,
    "tap": _tap,
    "ais": _ais,
    "reverse_ais": _reverse_ais,
    "bar": _bar,
    "ptt": _ptt,
}


def _validate_temperatures(asked: int | Sequence[float]) -> None:
    if isinstance(asked, numbers.Integral):
        if asked < 1:
            raise ValueError(f"n_temperatures must be at least 1, got {asked}")
        return
    positions = np.asarray(asked, dtype=float)
    if (
        positions.ndim != 1
        or len(positions) < 2
        or positions[0] != 0.0
        or positions[-1] != 1.0
        or not bool((np.diff(positions) >= 0).all())
    ):
        raise ValueError("n_temperatures must be a number, or positions that rise from 0 to 1")


def _validate_ladder(ladder: Ladder, top: Ladder) -> None:
    if (ladder.visible, ladder.hidden) != (top.visible, top.hidden):
        raise ValueError("the ladder has other types of units than the model")
    pairs = (
        (ladder.weight, top.weight),
        (ladder.visible_bias, top.visible_bias),
        (ladder.hidden_bias, top.hidden_bias),
    )
    same = all(
        rungs.shape[1:] == own.shape[1:] and torch.allclose(rungs[-1], own[0])
        for rungs, own in pairs
    )
    if not same:
        raise ValueError("the last rung of the ladder is not this model at this beta")
    ladder.base_log_partition()


def _validate(
    model: RBM,
    method: str,
    beta: float,
    data: Tensor | None,
    samples: Tensor | None,
    ladder: Ladder | None,
    n_chains: int,
    n_temperatures: int | Sequence[float] | None,
    width: float,
    time_budget: float,
    confidence: float,
) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta must be positive and finite, got {beta}")
    if n_chains < 2:
        raise ValueError(f"n_chains must be at least 2, for an error of the mean, got {n_chains}")
    if not width > 0:
        raise ValueError(f"width must be positive, got {width}")
    if not time_budget > 0:
        raise ValueError(f"time_budget must be positive, got {time_budget}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    for name, rows in (("data", data), ("samples", samples)):
        if rows is not None and (rows.dim() != 2 or rows.shape[1] != model.n_visible):
            raise ValueError(
                f"{name} must have shape (n, {model.n_visible}), got {tuple(rows.shape)}"
            )
        if rows is not None and len(rows) == 0:
            raise ValueError(f"{name} is empty")
        if rows is not None and not bool(rows.isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinities: remove or fill them")
    if n_temperatures is not None:
        _validate_temperatures(n_temperatures)
    if ladder is not None:
        _validate_ladder(ladder, Ladder.of([model], beta))
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        raise ValueError("the model has parameters that are not finite")
    if method == "exact" and not is_enumerable(model, MAX_STATES):
        raise ValueError(
            "the smaller layer is too large for enumeration: use method='auto', 'ptt' or 'bar'"
        )

r"""A certificate of equilibrium: whether the Gibbs chains of a model sample the model itself.

A restricted Boltzmann machine that was trained with chains too short for it is a good generator of
data only along the dynamics of its training; its Boltzmann distribution is something else
(Decelle, Furtlehner, Seoane 2021). Its likelihood, its temperature and its samples then mean
nothing. The test is that of every simulation: chains that start at the data, and chains that
start at random, must forget where they came from.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from freenergy.arrays import as_tensor
from freenergy.inference.gibbs import gibbs
from freenergy.inference.mixing import autocorrelation_time, split_r_hat
from freenergy.models import RBM
from freenergy.random import RandomStream

__all__ = ["Certificate", "certify"]

Array = NDArray[np.float64]

_N_PROJECTIONS = 4
_N_ITERATIONS = 20
# A stationary chain of n steps has R-hat² = 1 + 4τ/n over the quarters that are compared here:
# a τ of a tenth of the run gives 1.18. Both limits thus ask for the same length of run.
_MIN_LENGTH = 10.0
_MAX_R_HAT = 1.2
_SLOW_R_HAT = 1.5
# Some twenty gaps are looked at, so that four standard errors would be met by chance once in a
# thousand runs; chains of a good model differ by nothing but their noise.
_MAX_Z = 4.5
_MIN_GAP = 0.1
_MAX_GAP_ERROR = 0.3
# That all of them fall in one of two equal states has a chance of less than one in a hundred.
_MIN_CHAINS = 8
# Chains follow a moving model at a distance, which does little harm while it is within the noise.
_MAX_LAG = 0.5


@dataclass(frozen=True, eq=False)
class Certificate:
    r"""Whether Gibbs chains reach the equilibrium of a model, and the evidence.

    Attributes
    ----------
    label : {"equilibrium", "out of equilibrium"}
        The first only if every check was passed.
    autocorrelation_time : float
        Integrated autocorrelation time :math:`\tau = 1 + 2 \sum_t \rho(t)` of the slowest
        observable, in Gibbs steps. Where ``resolved`` is False it is only a lower bound.
    resolved : bool
        Whether the run was long enough to measure it: at least ten times as long.
    slowest : str
        The observable that it belongs to.
    n_steps_per_update : int
        Gibbs steps :math:`k` that the training made for each update.
    r_hat : float
        Largest split :math:`\hat R` of an observable over the chains of all groups; 1 in
        equilibrium, infinite where the run was too short to tell.
    energy_from_data, energy_from_random : float
        Mean free energy :math:`F(v; \beta)` of the two groups in the second half of the run.
    energy_from_chains : float or None
        The same of the chains of the training, where they were given.
    energy_gap, energy_gap_error : float
        The first minus the second and its standard error, in units of the spread (the standard
        deviation of :math:`F` within the groups).
    data_lag : float
        How far the data lie above the mean free energy that chains reach, in units of the spread.
        No part of the verdict: it is near 0 only for a model that has learnt the data.
    chain_lag : float or None
        The same of the chains of the training, before they were run on.
    n_chains : int
        Chains of all groups.
    n_steps : int
        Steps that were made.
    beta : float
    reasons : tuple of str
        Why the label is "out of equilibrium"; empty for "equilibrium".
    advice : str
        What to do.

    Examples
    --------
    >>> certificate = certify(RBM(8, 5), torch.eye(8), n_steps=100)
    >>> Certificate.from_dict(certificate.to_dict()).is_equilibrium
    True
    """

    label: Literal["equilibrium", "out of equilibrium"]
    autocorrelation_time: float
    resolved: bool
    slowest: str
    n_steps_per_update: int
    r_hat: float
    energy_from_data: float
    energy_from_random: float
    energy_from_chains: float | None
    energy_gap: float
    energy_gap_error: float
    data_lag: float
    chain_lag: float | None
    n_chains: int
    n_steps: int
    beta: float
    reasons: tuple[str, ...]
    advice: str

    @property
    def is_equilibrium(self) -> bool:
        """Whether the label is "equilibrium"."""
        return self.label == "equilibrium"

    @property
    def n_updates(self) -> float:
        r"""Updates of the training within one autocorrelation time, :math:`\tau / k`."""
        return self.autocorrelation_time / self.n_steps_per_update

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an infinite ``r_hat`` becomes None."""
        r_hat = self.r_hat if math.isfinite(self.r_hat) else None
        return asdict(self) | {"r_hat": r_hat, "reasons": list(self.reasons)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The certificate that :meth:`to_dict` wrote."""
        r_hat = math.inf if values["r_hat"] is None else values["r_hat"]
        return cls(**(values | {"r_hat": r_hat, "reasons": tuple(values["reasons"])}))

    def __repr__(self) -> str:
        bound = "" if self.resolved else ">"
        text = (
            f"Certificate(label={self.label!r}, "
            f"autocorrelation_time{bound}={self.autocorrelation_time:.3g}, "
            f"n_steps_per_update={self.n_steps_per_update}, r_hat={self.r_hat:.3g}, "
            f"energy_gap={self.energy_gap:.2g}±{self.energy_gap_error:.1g}, "
            f"n_chains={self.n_chains}, n_steps={self.n_steps}, beta={self.beta:g}"
        )
        return text + (f", reasons={self.reasons!r})" if self.reasons else ")")


@torch.no_grad()
def certify(
    model: RBM,
    data: ArrayLike | Tensor,
    *,
    n_steps_per_update: int = 1,
    beta: float = 1.0,
    n_chains: int = 64,
    n_steps: int = 1000,
    chains: ArrayLike | Tensor | None = None,
    random: RandomStream | int | None = 0,
    time_budget: float | None = None,
) -> Certificate:
    r"""Test whether Gibbs chains forget their start and sample the model.

    Half of the chains start at rows of the data, half at random. Of the second half of their run
    the free energy :math:`F(v; \beta)`, the overlap with the data's mean and the projections on
    the leading singular vectors of :math:`W` are compared. The label is "equilibrium" if, for each
    of these observables,

    - the run is at least ten integrated autocorrelation times long;
    - split :math:`\hat R`, which compares the chains with each other, is below 1.2;
    - the means of the groups do not differ by more than 0.1 of the spread and 4.5 standard errors,
      which are taken from the differences between chains, so that they hold whatever the
      autocorrelation.

    The chains of the training, where given, are a third group. They must moreover lie where the
    model does from the first step: else the training, whose negative phase they were, followed
    the gradient of something else.

    The test can fail a slow model for want of steps: raise ``n_steps`` if the groups agree. It
    cannot see a state of the model that no chain finds within the run.

    Parameters
    ----------
    model : RBM
    data : array-like or Tensor of shape (n, n_visible)
        Rows that the model was trained on.
    n_steps_per_update : int, default=1
        Gibbs steps of the training for each update, for the report; no part of the verdict.
    beta : float, default=1
        Inverse temperature, positive.
    n_chains : int, default=64
        Chains of the first two groups together. Fewer than 8 are never certified.
    n_steps : int, default=1000
        Gibbs steps of each chain.
    chains : array-like or Tensor of shape (n, n_visible) or (n, n_hidden), default=None
        Visible or hidden states of the training's persistent chains; hidden ones where both
        layers are of one size. At most half of ``n_chains`` of them are run on.
    random : RandomStream, int or None, default=0
        Source of the draws, or a seed.
    time_budget : float, default=None
        Seconds after which the run ends where it is.

    Returns
    -------
    Certificate

    Raises
    ------
    ValueError
        When an option is impossible, or shapes do not fit the model, or a value is not finite.

    References
    ----------
    Decelle, Furtlehner, Seoane, *Equilibrium and non-equilibrium regimes in the learning of
    restricted Boltzmann machines*, arXiv:2105.13889; Gelman and Rubin, *Inference from iterative
    simulation using multiple sequences*, 1992.

    Examples
    --------
    >>> rbm = RBM(8, 5)
    >>> certify(rbm, torch.eye(8), n_steps=200).label
    'equilibrium'
    >>> for parameter, value in zip(rbm.parameters(), (10.0, -25.0, -40.0), strict=True):
    ...     _ = torch.nn.init.constant_(parameter, value)
    >>> certify(rbm, torch.eye(8), n_steps=200).label
    'out of equilibrium'
    """
    data = as_tensor(data, "data")
    chains = None if chains is None else as_tensor(chains, "chains")
    _validate(model, data, chains, n_steps_per_update, beta, n_chains, n_steps, time_budget)
    deadline = math.inf if time_budget is None else time.monotonic() + time_budget
    if not isinstance(random, RandomStream):
        random = RandomStream(random, model.weight.device)
    data = data.to(model.weight)
    starts = _starts(model, data, chains, n_chains, beta, random)
    probe = _Probe(model, data, beta, random)
    before = {name: _finite(model.free_energy(x, beta)) for name, x in starts.items()}
    series = _run(model, torch.cat(list(starts.values())), probe, n_steps, beta, random, deadline)
    noise = 8 * torch.finfo(model.weight.dtype).eps
    return _judge(series, before, probe.names, n_steps_per_update, beta, noise)


def _validate(
    model: RBM,
    data: Tensor,
    chains: Tensor | None,
    n_steps_per_update: int,
    beta: float,
    n_chains: int,
    n_steps: int,
    time_budget: float | None,
) -> None:
    if data.dim() != 2 or len(data) == 0 or data.shape[1] != model.n_visible:
        raise ValueError(
            f"data must have rows of {model.n_visible} visible units, got {tuple(data.shape)}"
        )
    if chains is not None and (
        chains.dim() != 2
        or len(chains) == 0
        or chains.shape[1] not in (model.n_visible, model.n_hidden)
    ):
        raise ValueError(
            f"chains must have rows of {model.n_hidden} hidden or {model.n_visible} visible "
            f"units, got {tuple(chains.shape)}"
        )
    named = {"data": data, "chains": chains, **dict(model.named_parameters())}
    for name, tensor in named.items():
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} has values that are not finite")
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta must be finite and positive, got {beta}")
    for name, value in (
        ("n_steps_per_update", n_steps_per_update),
        ("n_chains", n_chains),
        ("n_steps", n_steps),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if time_budget is not None and not time_budget > 0:
        raise ValueError(f"time_budget must be positive, got {time_budget}")


def _starts(
    model: RBM,
    data: Tensor,
    chains: Tensor | None,
    n_chains: int,
    beta: float,
    random: RandomStream,
) -> dict[str, Tensor]:
    """Visible states of each group of chains before the run."""
    n_random = n_chains // 2
    starts = {"data": _choose(data, n_chains - n_random, random)}
    if n_random > 0:
        starts["random"] = gibbs(model, n_random, 0, beta=beta, random=random).visible
    if chains is not None:
        n = min(len(chains), max(1, n_random))
        chosen = _choose(chains.to(model.weight), n, random)
        starts["chains"] = _visible(model, chosen, beta, random)
    return starts


def _choose(rows: Tensor, n: int, random: RandomStream) -> Tensor:
    """Rows drawn at random, each at most once where there are enough."""
    index = random.permutation(len(rows))[:n]
    if len(rows) < n:
        index = random.integers(0, len(rows), n)
    return rows[index.to(rows.device)]


def _visible(model: RBM, chains: Tensor, beta: float, random: RandomStream) -> Tensor:
    """States of the visible layer that belong to states of either layer."""
    if chains.shape[1] == model.n_hidden:
        return model.sample_visible(chains, random, beta)
    return chains


class _Probe:
    """What is read of the chains at each step: one product, beyond the fields there already."""

    def __init__(self, model: RBM, data: Tensor, beta: float, random: RandomStream) -> None:
        self.model, self.beta = model, beta
        support = model.visible.support
        overlap = data.mean(0) - (min(support) + max(support)) / 2
        leading = _leading_directions(model.weight, _N_PROJECTIONS, random)
        self._directions = torch.cat([model.visible_bias[:, None], overlap[:, None], leading], 1)
        self.names = (
            "free energy",
            "overlap with the data's mean",
            *(f"projection on singular vector {k + 1} of W" for k in range(leading.shape[1])),
        )

    def read(self, visible: Tensor, hidden_field: Tensor) -> Tensor:
        """The observables of states and the fields that they give, shape (n_chains, n)."""
        values = visible @ self._directions
        log_z = self.model.hidden.log_partition(hidden_field).sum(-1)
        values[:, 0].add_(log_z, alpha=1.0 / self.beta).neg_()
        return values


def _leading_directions(weight: Tensor, n: int, random: RandomStream) -> Tensor:
    """About the leading left singular vectors, by subspace iteration: a full SVD costs more."""
    n_visible, n_hidden = weight.shape
    n = min(n, n_visible, n_hidden)
    scale = float(weight.abs().max())
    if scale == 0.0:
        return torch.eye(n_visible, n).to(weight)
    weight = weight.detach() / scale
    basis = random.normal((n_hidden, n)).to(weight)
    for _ in range(_N_ITERATIONS):
        left = torch.linalg.qr(weight @ basis)[0]
        basis = weight.T @ left
    return left @ torch.linalg.svd(basis.T, full_matrices=False)[0]


def _run(
    model: RBM,
    visible: Tensor,
    probe: _Probe,
    n_steps: int,
    beta: float,
    random: RandomStream,
    deadline: float,
) -> Array:
    """Run chains and read them: shape (n_observables, n_chains, n_steps)."""
    visible = visible.contiguous()
    field = model.hidden_field(visible, beta)
    readings = []
    # The field that a reading needs is the one that draws the next hidden state.
    for _ in range(n_steps):
        hidden = model.hidden.sample(field, random, field)
        model.sample_visible(hidden, random, beta, out=visible)
        model.hidden_field(visible, beta, out=field)
        readings.append(probe.read(visible, field))
        if time.monotonic() > deadline:
            break
    return _finite(torch.stack(readings).permute(2, 1, 0))


def _finite(values: Tensor) -> Array:
    """As an array; a field that overflows single precision gives an energy that is not finite."""
    return values.double().nan_to_num(0.0, 1e38, -1e38).cpu().numpy()


@dataclass(frozen=True)
class _Gap:
    """Difference between the means of two groups, in units of the spread."""

    observable: str
    groups: tuple[str, str]
    value: float
    error: float

    @property
    def is_open(self) -> bool:
        return abs(self.value) > max(_MIN_GAP, _MAX_Z * self.error)


def _judge(
    series: Array,
    before: dict[str, Array],
    names: tuple[str, ...],
    n_steps_per_update: int,
    beta: float,
    relative_noise: float,
) -> Certificate:
    """The verdict on readings of shape (n_observables, n_chains, n_steps).

    ``before`` holds the free energies of each group's chains before the run.
    """
    n_steps = series.shape[2]
    sizes = {name: len(x) for name, x in before.items()}
    kept = series[:, :, n_steps // 2 :]
    noise = [relative_noise * float(np.abs(x).max()) for x in kept]
    r_hat = max(split_r_hat(x, e) for x, e in zip(kept, noise, strict=True))
    times = [
        1.0 if np.ptp(x) <= e else autocorrelation_time(x) for x, e in zip(kept, noise, strict=True)
    ]
    slowest = int(np.argmax(times))
    gaps = [
        gap
        for name, x, tau, e in zip(names, kept, times, noise, strict=True)
        for gap in _gaps(name, _split(x, sizes), tau, e)
    ]
    energies = _split(kept[0], sizes)
    lags = {name: _lag(energies, x, times[0], noise[0]) for name, x in before.items()}
    resolved = _MIN_LENGTH * times[slowest] < n_steps
    reasons = _reasons(resolved, times[slowest], names[slowest], n_steps, r_hat, gaps)
    n_chains = sizes["data"] + sizes.get("random", 0)
    if n_chains < _MIN_CHAINS:
        reasons.append(
            f"so few chains ({n_chains}) may all be in one state of several: use {_MIN_CHAINS} or "
            "more"
        )
    lag = lags.get("chains")
    followed = lag is None or abs(lag.value) <= max(_MAX_LAG, _MAX_Z * lag.error)
    if lag is not None and not followed:
        reasons.append(
            f"the chains of the training lie {lag.value:+.2g} spreads of the free energy away "
            "from where chains go once the model rests"
        )
    maybe_slow = followed and r_hat < _SLOW_R_HAT and not any(gap.is_open for gap in gaps)
    means = {name: float(x.mean()) for name, x in energies.items()}
    energy_gap = gaps[0] if "random" in sizes else _Gap(names[0], ("data", "data"), 0.0, 0.0)
    return Certificate(
        "out of equilibrium" if reasons else "equilibrium",
        times[slowest],
        resolved,
        names[slowest],
        n_steps_per_update,
        r_hat,
        means["data"],
        means.get("random", means["data"]),
        means.get("chains"),
        energy_gap.value,
        energy_gap.error,
        lags["data"].value,
        None if lag is None else lag.value,
        sum(sizes.values()),
        n_steps,
        beta,
        tuple(reasons),
        _advice(bool(reasons), maybe_slow, lags["data"], times[slowest], n_steps_per_update),
    )


def _split(x: Array, sizes: dict[str, int]) -> dict[str, Array]:
    """Chains by group."""
    parts = np.split(x, np.cumsum(list(sizes.values()))[:-1])
    return dict(zip(sizes, parts, strict=True))


def _spread(groups: dict[str, Array], noise: float) -> float:
    """Standard deviation within the groups, never less than what rounding makes."""
    scale = max(max(float(np.abs(x).max()) for x in groups.values()), np.finfo(np.float64).tiny)
    variance = float(np.mean([(x / scale).var() for x in groups.values()]))
    return max(scale * math.sqrt(variance), noise, np.finfo(np.float64).tiny)


def _gaps(observable: str, groups: dict[str, Array], tau: float, noise: float) -> list[_Gap]:
    """Differences of all pairs of groups."""
    spread = _spread(groups, noise)
    scaled = {name: (x - groups["data"].mean()) / spread for name, x in groups.items()}
    return [
        _Gap(
            observable,
            (a, b),
            float(scaled[a].mean() - scaled[b].mean()),
            math.hypot(_error(scaled[a], tau), _error(scaled[b], tau)),
        )
        for a, b in itertools.combinations(scaled, 2)
    ]


def _error(x: Array, tau: float) -> float:
    """Standard error of the mean of independent chains of unit variance.

    From the differences between them; these say little where the chains are few, and then the
    autocorrelation time says more.
    """
    n_chains, n = x.shape
    between = float(x.mean(1).var(ddof=1)) if n_chains > 1 else 0.0
    return math.sqrt(max(between, float(x.var()) * min(1.0, tau / n)) / n_chains)


def _lag(energies: dict[str, Array], before: Array, tau: float, noise: float) -> _Gap:
    """How far chains were, before the run, from the mean that the first two groups reach."""
    others = {name: x for name, x in energies.items() if name != "chains"}
    spread = _spread(others, noise)
    reached = np.concatenate(list(others.values()))
    origin = reached.mean()
    start, reached = (before - origin) / spread, (reached - origin) / spread
    # Before the run each chain is one draw; the spread, which is 1, guards against few of them.
    error = max(1.0, float(start.std())) / math.sqrt(len(start))
    return _Gap(
        "free energy",
        ("before", "after"),
        float(start.mean()),
        math.hypot(error, _error(reached, tau)),
    )


def _reasons(
    resolved: bool, tau: float, slowest: str, n_steps: int, r_hat: float, gaps: list[_Gap]
) -> list[str]:
    reasons = []
    if not resolved:
        reasons.append(
            f"{n_steps} steps are too few to measure the autocorrelation time of the {slowest}: "
            f"it is {tau:.3g} or more"
        )
    if not r_hat < _MAX_R_HAT:
        reasons.append(f"the chains do not visit the same states: R-hat is {r_hat:.3g}")
    still_open = [gap for gap in gaps if gap.is_open]
    if still_open:
        worst = max(still_open, key=lambda gap: abs(gap.value) / max(gap.error, 1e-300))
        sources = {"data": "the data", "random": "random", "chains": "the training's chains"}
        first, second = (sources[group] for group in worst.groups)
        reasons.append(
            f"chains from {first} and from {second} differ in the {worst.observable} by "
            f"{abs(worst.value):.2g} ± {worst.error:.1g} spreads"
        )
    vague = max((gap.error for gap in gaps), default=0.0)
    if vague > _MAX_GAP_ERROR and not still_open:
        reasons.append(
            f"the chains are too few to compare their starts: the error is {vague:.2g} spreads"
        )
    return reasons


def _advice(failed: bool, maybe_slow: bool, data_lag: _Gap, tau: float, k: int) -> str:
    """What to do, from the least effort on."""
    train = (
        "rain with more steps per update (n_steps), a smaller learning_rate or with "
        "learning_rate_decay, with weight_constraint, or with method='ptt'; or stop earlier."
    )
    if failed:
        again = (
            "Certify again with more n_steps and n_chains: the groups do not contradict each "
            "other. If it stays so: t"
        )
        return (again if maybe_slow else "T") + train
    if data_lag.value > max(1.0, _MAX_Z * data_lag.error):
        return (
            f"The chains sample the model, but it is not a model of the data, which lie "
            f"{data_lag.value:.2g} spreads of the free energy above. If it was trained on them to "
            "the end: t"
        ) + train
    if tau <= k:
        return "Nothing: a chain forgets its start within one update."
    return (
        "Nothing, with persistent chains. Chains that start anew at each update (method='cd') "
        f"would need n_steps of {math.ceil(tau)} or more."
    )

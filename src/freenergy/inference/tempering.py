r"""Replica exchange along a ladder of models: parallel tempering, also in training time.

Each *system* is one replica on every rung. All replicas make Gibbs steps of their own rung, then
neighbours are exchanged with the Metropolis probability, which leaves the product distribution of
all rungs unchanged. A first rung with independent units gives a fresh independent state each time,
so that states which arrive from there at the top are independent of each other.

With the rungs at rising inverse temperature this is parallel tempering; with the checkpoints of a
training run as rungs it is parallel trajectory tempering (Béreux, Decelle, Furtlehner, Seoane,
arXiv:2405.15376), which passes the phase transitions of learning where they are continuous.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from freenergy.arrays import as_tensor
from freenergy.distributed import ALONE, Group
from freenergy.inference.annealing import divide, length_profile, sample_base
from freenergy.inference.bridge import bennett, standard_error
from freenergy.inference.gibbs import gibbs
from freenergy.inference.ladder import Ladder
from freenergy.inference.mixing import split_r_hat
from freenergy.random import RandomStream

__all__ = ["Exchange", "Flow", "LadderEstimate", "Tempering", "adapt_ladder", "estimate", "temper"]

Array = NDArray[np.float64]

_SCOUT_STEPS = 20


@dataclass(frozen=True, eq=False)
class Exchange:
    """One round of exchanges between neighbours.

    Attributes
    ----------
    lower : slice
        The lower rung of each pair.
    forward, backward : Tensor of shape (n_pairs, n_systems)
        Work from the lower to the upper rung at the lower one's states, and back at the upper's.
    """

    lower: slice
    forward: Tensor
    backward: Tensor


@dataclass(frozen=True, eq=False)
class Flow:
    """How replicas pass along a ladder.

    Attributes
    ----------
    acceptance : ndarray of shape (n_rungs - 1,)
        Share of accepted exchanges of each pair of neighbours (NaN before the first try).
    arrivals : ndarray of shape (n_systems,)
        Replicas that came to the last rung from the first.
    arrival_time : float
        Rounds of a system for each replica that comes to the top from the first rung.
    """

    acceptance: Array
    arrivals: Array
    arrival_time: float


class Tempering:
    r"""Systems of replicas on a ladder, and their exchanges.

    Even and odd pairs of neighbours take turns, which carries replicas along the ladder faster
    than random choices (Syed et al., *Non-reversible parallel tempering*, JRSS B 84, 2022).

    Parameters
    ----------
    ladder : Ladder
    visible : array-like or Tensor of shape (n_rungs, n_systems, n_visible)
        States to start from.
    random : RandomStream
    rule : {"free_energy", "energy"}, default="free_energy"
        Exchange visible states by the weight of :math:`v` with the hidden units summed out, or
        joint states by the weight of :math:`(v, h)`. Both are exact; the first accepts more.

    Attributes
    ----------
    visible : Tensor of shape (n_rungs, n_systems, n_visible)
    n_rounds : int
        Rounds so far.
    attempts, accepts : ndarray of shape (n_rungs - 1,)
        Exchanges tried and accepted for each pair of neighbours.
    arrivals : ndarray of shape (n_systems,)
        Replicas that came to the last rung from the first.
    from_base : ndarray of bool, shape (n_rungs, n_systems)
        Whether the replica on each rung was on the first rung since it was last on the top one.
    rounds_counted : float
        Rounds in which ``arrivals`` were counted.

    Raises
    ------
    ValueError
        When the rule is not known, the ladder has one rung, or the states do not fit it.

    Examples
    --------
    >>> from freenergy.inference.ladder import temperature_ladder
    >>> from freenergy.models import RBM
    >>> ladder = temperature_ladder(RBM(6, 4), [0.0, 0.5, 1.0])
    >>> system = Tempering(ladder, torch.zeros(3, 10, 6), RandomStream(0))
    >>> for _ in range(20):
    ...     _ = system.round()
    >>> system.acceptance.shape, bool((system.arrivals > 0).all())
    ((2,), True)
    """

    def __init__(
        self,
        ladder: Ladder,
        visible: ArrayLike | Tensor,
        random: RandomStream,
        rule: str = "free_energy",
    ) -> None:
        if rule not in ("free_energy", "energy"):
            raise ValueError(f"rule must be 'free_energy' or 'energy', got {rule!r}")
        if len(ladder) < 2:
            raise ValueError("a ladder to exchange along needs at least two rungs")
        visible = as_tensor(visible, "visible", ladder.weight)
        n_visible = ladder.weight.shape[1]
        if visible.dim() != 3 or visible.shape[2] != n_visible:
            raise ValueError(
                f"visible must have shape (n_rungs, n_systems, {n_visible}), got "
                f"{tuple(visible.shape)}"
            )
        if visible.shape[0] != len(ladder):
            raise ValueError(
                f"a ladder of {len(ladder)} rungs needs states for each, got {visible.shape[0]}"
            )
        self.ladder = ladder
        self.random = random
        self.rule = rule
        self.visible = visible.clone()
        self._field = ladder.hidden_field(self.visible)
        self.n_rounds = 0
        self.rounds_counted = 0.0
        n_rungs, n_systems = self.visible.shape[:2]
        self.attempts = np.zeros(n_rungs - 1)
        self.accepts = np.zeros(n_rungs - 1)
        self.arrivals = np.zeros(n_systems)
        self.from_base = np.zeros((n_rungs, n_systems), dtype=bool)

    @property
    def n_systems(self) -> int:
        """Number of independent systems."""
        return self.visible.shape[1]

    @property
    def acceptance(self) -> Array:
        """Share of accepted exchanges of each pair of neighbours (NaN before the first try)."""
        return self.flow().acceptance

    @property
    def arrival_time(self) -> float:
        """Rounds of a system for each replica that comes to the top from the first rung."""
        return self.flow().arrival_time

    def flow(self, group: Group = ALONE) -> Flow:
        """How replicas pass along the ladder, in the systems of all processes that call this."""
        own = self.accepts, self.attempts, self.arrivals, self.rounds_counted * self.n_systems
        accepts, attempts, arrivals, rounds = zip(*group.collect(own), strict=True)
        came = np.concatenate(arrivals)
        total = float(came.sum())
        with np.errstate(invalid="ignore"):
            acceptance = np.asarray(sum(accepts) / sum(attempts))
        return Flow(acceptance, came, sum(rounds) / total if total > 0 else math.inf)

    def forget(self, share: float = 0.5) -> None:
        """Let what was counted so far weigh less, where the ladder changes with time."""
        self.rounds_counted *= share
        for counts in (self.attempts, self.accepts, self.arrivals):
            counts *= share

    @property
    def hidden_field(self) -> Tensor:
        """Fields on the hidden units of every rung, (n_rungs, n_systems, n_hidden)."""
        return self._field

    def take_over(self, other: Tempering, rungs: NDArray[np.int64], n_pairs: int) -> None:
        """Go on counting where another ladder of as many systems stopped.

        Parameters
        ----------
        other : Tempering
        rungs : ndarray of int, shape (n_rungs,)
            The rung of the other whose replicas each rung has now.
        n_pairs : int
            Pairs of neighbours, from the first on, that are the same.
        """
        self.n_rounds, self.rounds_counted = other.n_rounds, other.rounds_counted
        self.arrivals = other.arrivals
        self.attempts[:n_pairs] = other.attempts[:n_pairs]
        self.accepts[:n_pairs] = other.accepts[:n_pairs]
        self.from_base = other.from_base[rungs]

    @torch.no_grad()
    def place_top(self, visible: Tensor) -> None:
        """Put other states on the last rung (or the same, after its parameters changed)."""
        self.visible[-1] = visible
        self._field[-1:] = self.ladder[-1:].hidden_field(self.visible[-1:])

    @torch.no_grad()
    def draw_top_hidden(self) -> Tensor:
        """Hidden states of the last rung, drawn given its visible ones."""
        return self.ladder.hidden.sample(self._field[-1], self.random)

    @torch.no_grad()
    def round(self, n_steps: int = 1) -> Exchange:
        """Make Gibbs steps on every rung, then one round of exchanges between neighbours."""
        ladder = self.ladder
        for _ in range(n_steps):
            hidden = ladder.hidden.sample(self._field, self.random, self._field)
            field = ladder.visible_field(hidden)
            self.visible = ladder.visible.sample(field, self.random, field)
            self._field = ladder.hidden_field(self.visible)
        self.from_base[0] = True
        exchange = self._exchange(self.n_rounds % 2)
        self.n_rounds += 1
        self.rounds_counted += 1
        self.arrivals += self.from_base[-1]
        self.from_base[-1] = False
        return exchange

    def _exchange(self, parity: int) -> Exchange:
        ladder, n = self.ladder, len(self.ladder)
        if n == 2:
            parity = 0
        n_pairs = (n - parity) // 2
        low = slice(parity, parity + 2 * n_pairs, 2)
        high = slice(parity + 1, parity + 1 + 2 * n_pairs, 2)
        # The fields that each state gives on its partner's rung are its fields after an exchange,
        # so these products are not lost.
        low_cross = ladder[low].hidden_field(self.visible[high])
        high_cross = ladder[high].hidden_field(self.visible[low])
        low_field, high_field = self._field[low], self._field[high]
        if self.rule == "free_energy":
            forward = ladder[high].free_energy(self.visible[low], high_cross)
            forward -= ladder[low].free_energy(self.visible[low], low_field)
            backward = ladder[low].free_energy(self.visible[high], low_cross)
            backward -= ladder[high].free_energy(self.visible[high], high_field)
        else:
            # The hidden states are drawn for the exchange, and again for the next step: p(h | v)
            # leaves each rung as it is.
            low_hidden = ladder.hidden.sample(low_field, self.random)
            high_hidden = ladder.hidden.sample(high_field, self.random)
            forward = ladder[high].energy(self.visible[low], low_hidden, high_cross)
            forward -= ladder[low].energy(self.visible[low], low_hidden, low_field)
            backward = ladder[low].energy(self.visible[high], high_hidden, low_cross)
            backward -= ladder[high].energy(self.visible[high], high_hidden, high_field)
        draws = self.random.uniform_(torch.empty_like(forward))
        accepted = torch.log(draws) < -(forward + backward)
        choose = accepted[:, :, None]
        self._field[low], self._field[high] = (
            torch.where(choose, low_cross, low_field),
            torch.where(choose, high_cross, high_field),
        )
        self.visible[low], self.visible[high] = (
            torch.where(choose, self.visible[high], self.visible[low]),
            torch.where(choose, self.visible[low], self.visible[high]),
        )
        swapped = accepted.cpu().numpy()
        self.from_base[low], self.from_base[high] = (
            np.where(swapped, self.from_base[high], self.from_base[low]),
            np.where(swapped, self.from_base[low], self.from_base[high]),
        )
        self.attempts[low] += self.n_systems
        self.accepts[low] += swapped.sum(1)
        return Exchange(low, forward, backward)


@dataclass(frozen=True, eq=False)
class LadderEstimate:
    r"""Log-partition functions of the rungs of a ladder, from states in equilibrium on each.

    Attributes
    ----------
    log_partition : ndarray of shape (n_rungs,)
    influence : ndarray of shape (n_rungs, n_systems)
        Response of each to each independent system, of mean zero.
    overlap : ndarray of shape (n_rungs - 1,)
        Mean acceptance of the exchange of neighbours.
    drift : float
        Change of the last log-partition function from the first to the second half of the rounds,
        in standard errors of such a change.
    r_hat : float
        Largest potential scale reduction over the rungs' works: whether all systems visit the same
        states (1), or some stay in valleys of their own (more).
    """

    log_partition: Array
    influence: Array
    overlap: Array
    drift: float
    r_hat: float

    @property
    def stderr(self) -> Array:
        """Standard errors of the log-partition functions."""
        return np.array([standard_error(row) for row in self.influence])


def estimate(
    exchanges: Sequence[Exchange], n_rungs: int, base_log_partition: float
) -> LadderEstimate:
    """Bennett's ratio for each pair of neighbours, added up from the first rung.

    Parameters
    ----------
    exchanges : sequence of Exchange
        Of rounds in equilibrium.
    n_rungs : int
    base_log_partition : float
        Of the first rung.

    Returns
    -------
    LadderEstimate

    Examples
    --------
    >>> from freenergy.inference.ladder import temperature_ladder
    >>> from freenergy.models import RBM
    >>> ladder = temperature_ladder(RBM(6, 4), [0.0, 0.5, 1.0])
    >>> system = Tempering(ladder, torch.zeros(3, 10, 6), RandomStream(0))
    >>> found = estimate(temper(system, 40), len(ladder), ladder.base_log_partition())
    >>> found.log_partition.shape, round(float(found.log_partition[0]) / math.log(2), 6)
    ((3,), 10.0)
    """
    whole = _bridge(exchanges, n_rungs)
    half = len(exchanges) // 2 - len(exchanges) // 2 % 2
    drift = math.nan
    if half >= 2:
        first, second = _bridge(exchanges[:half], n_rungs), _bridge(exchanges[half:], n_rungs)
        change = first[1].sum(0) - second[1].sum(0)
        error = standard_error(change)
        drift = abs(float(first[0].sum() - second[0].sum())) / error if error > 0 else 0.0
    differences, influence, overlap = whole
    zero = np.zeros((1, influence.shape[1]))
    return LadderEstimate(
        base_log_partition - np.concatenate([[0.0], np.cumsum(differences)]),
        -np.concatenate([zero, np.cumsum(influence, axis=0)]),
        overlap,
        drift,
        max(map(split_r_hat, _backward_works(exchanges, n_rungs))),
    )


def _backward_works(exchanges: Sequence[Exchange], n_rungs: int) -> list[Array]:
    """For each pair of neighbours the works at the upper one, (n_systems, n_records)."""
    works: list[list[Array]] = [[] for _ in range(n_rungs - 1)]
    for exchange in exchanges:
        for i, pair in enumerate(range(n_rungs - 1)[exchange.lower]):
            works[pair].append(exchange.backward[i].double().cpu().numpy())
    return [np.array(records).T for records in works]


def _bridge(exchanges: Sequence[Exchange], n_rungs: int) -> tuple[Array, Array, Array]:
    """Free-energy differences of neighbours, their influences and overlaps."""
    forward: list[list[Array]] = [[] for _ in range(n_rungs - 1)]
    backward: list[list[Array]] = [[] for _ in range(n_rungs - 1)]
    for exchange in exchanges:
        pairs = range(n_rungs - 1)[exchange.lower]
        forth, back = exchange.forward.cpu().numpy(), exchange.backward.cpu().numpy()
        for i, pair in enumerate(pairs):
            forward[pair].append(forth[i])
            backward[pair].append(back[i])
    steps = [bennett(np.array(f), np.array(b)) for f, b in zip(forward, backward, strict=True)]
    return (
        np.array([step.value for step in steps]),
        np.array([step.influence for step in steps]),
        np.array([step.overlap for step in steps]),
    )


def temper(
    system: Tempering,
    n_rounds: int,
    *,
    n_steps: int = 1,
    max_records: int = 1000,
    deadline: float = math.inf,
    group: Group = ALONE,
) -> list[Exchange]:
    """Make rounds and keep their exchanges, thinned to about ``max_records``.

    Parameters
    ----------
    system : Tempering
        Goes on in place.
    n_rounds : int
    n_steps : int, default=1
        Gibbs steps of each round.
    max_records : int, default=1000
    deadline : float, default=inf
        A time of :func:`time.monotonic` that ends the run early; at least two rounds are made.
    group : Group, default=ALONE
        Processes that each have systems of their own on this ladder; all of them call this.

    Returns
    -------
    list of Exchange
        Of the systems of all processes, in the order of the ranks.

    Examples
    --------
    >>> from freenergy.inference.ladder import temperature_ladder
    >>> from freenergy.models import RBM
    >>> ladder = temperature_ladder(RBM(6, 4), [0.0, 0.5, 1.0])
    >>> len(temper(Tempering(ladder, torch.zeros(3, 10, 6), RandomStream(0)), 40, max_records=20))
    20
    """
    # Pairs of rounds are kept: even and odd neighbours take turns.
    stride = max(1, math.ceil(n_rounds / max_records))
    kept = []
    for index in range(n_rounds):
        exchange = system.round(n_steps)
        if (index // 2) % stride == 0:
            kept.append(exchange)
        if index >= 1 and index % 2 == 1 and time.monotonic() > deadline:
            break
    return kept if group.size == 1 else _of_all(kept, group)


def _of_all(own: list[Exchange], group: Group) -> list[Exchange]:
    """The exchanges of all processes, in the rounds that each of them made."""
    own = own[: min(group.collect(len(own)))]
    # Even and odd rounds have pairs of their own, maybe not as many.
    works = [
        np.array([torch.stack([x.forward, x.backward]).cpu().numpy() for x in own[parity::2]])
        for parity in (0, 1)
    ]
    halves = [np.concatenate(parts, axis=-1) for parts in zip(*group.collect(works), strict=True)]
    return [Exchange(x.lower, *torch.from_numpy(halves[i % 2][i // 2])) for i, x in enumerate(own)]


def adapt_ladder(
    ladder: Ladder,
    n_systems: int,
    random: RandomStream,
    *,
    rejection: float = 0.5,
    n_passes: int = 4,
    n_rounds: int = 32,
    max_rungs: int = 200,
    start: Tensor | None = None,
    deadline: float = math.inf,
    group: Group = ALONE,
) -> Tempering:
    r"""Place rungs between the ends of a ladder so that neighbours exchange equally often.

    The sum of the rejection rates along a ladder hardly depends on its rungs; dividing it evenly
    into steps of one half is the best for the flow of replicas (Syed et al. 2022). Each pass
    measures the rates, twice as long as the one before, and places the rungs anew.

    Parameters
    ----------
    ladder : Ladder
        The first rung without couplings.
    n_systems : int
    random : RandomStream
    rejection : float, default=0.5
        Rejection rate of neighbours to aim at.
    start : Tensor of shape (n, n_visible), default=None
        Rows at which all rungs of every fourth system start. Half of the systems start at states
        of the first rung, the others at states that short chains of the last rung reach from
        random starts: a valley far from the data and from the first rung must not go unseen.
    group : Group, default=ALONE
        Processes that divide the systems, on one ladder; all of them call this.

    Returns
    -------
    Tempering
        On the adapted ladder, with the states of the last pass; its systems are this process's.

    Examples
    --------
    >>> from freenergy.inference.ladder import temperature_ladder
    >>> from freenergy.models import RBM
    >>> ladder = temperature_ladder(RBM(6, 4), [0.0, 1.0])
    >>> adapt_ladder(ladder, 10, RandomStream(0)).n_systems
    10
    """
    grid, spread = length_profile(ladder, random, 64, group)
    length = float((spread * np.diff(grid)).sum())
    n_rungs = int(min(max_rungs, max(3, math.ceil(length) + 1)))
    positions = group.agree(divide(grid, spread, n_rungs))
    index = np.arange(n_systems)[group.portion(n_systems)]
    visible = sample_base(ladder, len(index), random).expand(len(positions), -1, -1).clone()
    # A process without systems still comes to all meetings.
    far = gibbs(ladder.model(-1), max(1, len(index)), _SCOUT_STEPS, random=random).visible
    visible[:, index % 2 == 0] = far[: len(index)][index % 2 == 0]
    if start is not None:
        chosen = start[random.integers(0, len(start), len(index))].to(visible)
        visible[:, index % 4 == 0] = chosen[index % 4 == 0]
    system = Tempering(ladder.at(positions), visible, random)
    for _ in range(n_passes):
        temper(system, n_rounds, max_records=1, deadline=deadline)
        if any(group.collect(time.monotonic() > deadline)):
            break
        rejected = 1.0 - np.nan_to_num(system.flow(group).acceptance, nan=0.5)
        barrier = float(rejected.sum())
        n_rungs = int(min(max_rungs, max(3, math.ceil(barrier / rejection) + 1)))
        new = group.agree(divide(positions, (rejected + 1e-3) / np.diff(positions), n_rungs))
        # Each new rung starts at the states of the nearest old one.
        nearest = np.abs(positions[None, :] - new[:, None]).argmin(1)
        positions = new
        system = Tempering(ladder.at(positions), system.visible[nearest], random, system.rule)
        n_rounds *= 2
    return system

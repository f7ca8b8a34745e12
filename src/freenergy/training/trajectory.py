r"""Training by parallel trajectory tempering: the model's own past helps its chains to mix.

A ladder is kept of the models that training passed through, from the independent one on. From time
to time all its rungs make a Gibbs step and exchange states with their neighbours; the top rung is
the model being trained, and its replicas are the persistent chains. The exchanges carry fresh
states up, and their works add up to :math:`\ln Z`.

Béreux, Decelle, Furtlehner, Seoane, *Fast training and sampling of restricted Boltzmann machines*,
arXiv:2405.15376.
"""

from __future__ import annotations

import math
import zlib
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from freenergy.distributed import ALONE, Group
from freenergy.inference.bridge import FreeEnergyDifference, bennett, standard_error
from freenergy.inference.ladder import Ladder, independent_model
from freenergy.inference.tempering import Exchange, Tempering
from freenergy.models import RBM
from freenergy.random import RandomStream
from freenergy.training.gradients import PersistentContrastiveDivergence
from freenergy.training.options import TrainingOptions
from freenergy.training.rows import Part

__all__ = ["TrajectoryTempering", "ladder_of"]

_SHARE = 0.3
"""Matrix products spent on the ladder, as a share of those of the updates themselves."""
_ACCEPTANCE = 0.4
"""A model becomes a rung when the exchange with the last one falls below this."""
_DIVERGENCE = 2.0
"""Symmetric Kullback-Leibler divergence of neighbours, in nats, beyond which a gap is filled."""
_MEMORY = 0.5
"""Weight of the past in the running acceptance, for each round of exchanges."""
_FORGET = (0.98, 0.9)
"""Weight of the past in what is counted on the ladder, for each round: two memories.

The longer one gives the value. Replicas that are still on their way move the shorter one first.
"""
_MIN_CHAINS = 40
"""Chains below which the running acceptance is taken over more rounds."""
_MEASURE_STEPS = 10
"""Gibbs steps from which the last rung of the ladder is compared with the current model."""


Works: TypeAlias = list[tuple[Tensor, Tensor]]
"""Of some rounds, the works between two rungs, up and down, one of each system."""


def _bennett(works: Works, group: Group = ALONE) -> FreeEnergyDifference:
    """The free-energy difference that works of all processes give."""
    own = tuple(np.array([pair[i].double().cpu().numpy() for pair in works]) for i in (0, 1))
    forward, backward = (
        np.concatenate(parts, 1) for parts in zip(*group.collect(own), strict=True)
    )
    return bennett(forward, backward)


def ladder_of(state: dict[str, Tensor], like: RBM) -> Ladder:
    """The ladder in a stored state of :class:`TrajectoryTempering`, for models like this one.

    Parameters
    ----------
    state : dict of Tensor
        Of :meth:`TrajectoryTempering.state`.
    like : RBM
        Gives the types of units, precision and device.

    Returns
    -------
    Ladder

    Examples
    --------
    >>> from freenergy.random import RandomStream
    >>> from freenergy.training import TrainingOptions
    >>> rbm = RBM(4, 3)
    >>> gradient = TrajectoryTempering(rbm, TrainingOptions(method="ptt"), RandomStream(0))
    >>> len(ladder_of(gradient.state(), rbm))
    2
    """
    weight, visible_bias, hidden_bias = (
        state[f"ladder_{name}"].to(like.weight, copy=True)
        for name in ("weight", "visible_bias", "hidden_bias")
    )
    return Ladder(weight, visible_bias, hidden_bias, like.visible, like.hidden)


class TrajectoryTempering(PersistentContrastiveDivergence):
    """PCD-k whose chains are exchanged with those of earlier models of the same training.

    Parameters
    ----------
    model : RBM
    options : TrainingOptions
    random : RandomStream
        Source of the chains' draws, on the model's device.

    Examples
    --------
    >>> from freenergy.random import RandomStream
    >>> from freenergy.training import TrainingOptions
    >>> rbm = RBM(4, 3)
    >>> gradient = TrajectoryTempering(rbm, TrainingOptions(method="ptt"), RandomStream(0))
    >>> gradient.compute(torch.ones(10, 4))
    >>> rbm.weight.grad.shape, len(gradient.ladder)
    (torch.Size([4, 3]), 2)
    """

    chain_axes: ClassVar[dict[str, int]] = {
        "chain": 0,
        "ladder_visible": 1,
        "ladder_field": 1,
        "ladder_sums": 3,
        "ladder_from_base": 1,
        "ladder_arrivals": 0,
    }
    recordable: ClassVar[bool] = False  # The ladder grows as the host decides.

    def __init__(self, model: RBM, options: TrainingOptions, random: RandomStream) -> None:
        super().__init__(model, options, random)
        beta, n = options.beta, options.chains
        base = independent_model(
            model, model.visible.mean(beta * model.visible_bias), self._offset_hidden
        )
        ladder = Ladder.of([base]).append(model, beta)
        visible = ladder.visible_bias[:1, None].expand(2, n, -1).clone()
        visible = model.visible.sample(visible, random, visible)
        self._build(ladder, visible)
        self.chain = model.sample_hidden(visible[1], random, beta)
        self._updates = 0
        self._acceptance = 1.0
        # Of the streams that measurements draw from: trainings of other seeds, other noise.
        self._measure_seed = torch.tensor(zlib.crc32(repr(random.state()["host"]).encode()))

    def _build(self, ladder: Ladder, visible: Tensor) -> None:
        """Systems on a ladder, with nothing counted yet."""
        self._system = Tempering(ladder, visible, self.random)
        n_pairs, n = len(ladder) - 2, visible.shape[1]
        # For each pair of finished rungs: Bennett's constant, and for each system the sums of the
        # two averages whose ratio corrects it, which hold for any constant, in each memory.
        zeros = self.model.weight.new_zeros
        self._constant = zeros(n_pairs, dtype=torch.float64)
        self._sums = zeros(len(_FORGET), 2, n_pairs, n, dtype=torch.float64)
        self._rounds = zeros(n_pairs, dtype=torch.float64)

    @property
    def ladder(self) -> Ladder:
        """The rungs so far, from the independent model to the current one."""
        self._system.ladder.set_top(self.model, self.options.beta)
        return self._system.ladder

    @property
    def period(self) -> int:
        """Updates between two rounds on the ladder, so that they cost a fixed share."""
        # In products of as many rows as a batch has.
        chains = self.options.chains / self.options.batch_size
        update = 2 + (2 * self.options.n_steps + 1) * chains
        climb = (3 * len(self._system.ladder) + 2) * chains
        return max(1, math.ceil(climb / (_SHARE * update)))

    @torch.no_grad()
    def compute(self, batch: Tensor | Part) -> None:
        super().compute(batch)
        self._updates += 1
        if self._updates % self.period == 0:
            self._climb()

    def _climb(self) -> None:
        """A round of all rungs, from which the persistent chains go on."""
        system, model, beta = self._system, self.model, self.options.beta
        system.ladder.set_top(model, beta)
        system.place_top(model.sample_visible(self.chain, self.random, beta))
        # The ladder grows and its new rungs are not at rest yet: old rounds count less and less.
        system.forget(_FORGET[0])
        exchange = system.round()
        self._count(exchange)
        self.chain = system.draw_top_hidden()
        n_rungs = len(system.ladder)
        if range(n_rungs - 1)[exchange.lower][-1] == n_rungs - 2:
            accepted = torch.exp(-(exchange.forward[-1] + exchange.backward[-1])).clamp(max=1.0)
            # The fewer chains, the longer the average: a single exchange is a coin.
            n_systems = self._all_chains(system.n_systems)
            share = max(_MEMORY, 1.0 - n_systems / _MIN_CHAINS)
            mean = self._mean(float(accepted.mean()))
            self._acceptance = share * self._acceptance + (1 - share) * mean
            if self._acceptance < _ACCEPTANCE:
                self.add_rung()

    def _count(self, exchange: Exchange) -> None:
        n_finished = len(self._constant)
        self._sums *= self._sums.new_tensor(_FORGET)[:, None, None, None]
        self._rounds *= _FORGET[0]
        for i, pair in enumerate(range(n_finished + 1)[exchange.lower]):
            if pair < n_finished:
                self._add(pair, exchange.forward[i], exchange.backward[i])

    def _add(self, pair: int, forward: Tensor, backward: Tensor) -> None:
        """Count works between finished rungs, one of each system."""
        constant = self._constant[pair]
        self._sums[:, 0, pair] += torch.sigmoid(constant - forward.double())
        self._sums[:, 1, pair] += torch.sigmoid(-constant - backward.double())
        self._rounds[pair] += 1

    @torch.no_grad()
    def add_rung(self) -> None:
        """Make the current model a rung of the ladder, with others below it across a wide gap."""
        system, old = self._system, len(self._system.ladder)
        works = self._works(old - 2, system.visible[old - 2 :], self.random)
        # For works of Gaussian spread the exchange of neighbours whose divergence is J succeeds
        # with probability erfc(√J / 2); J grows with the square of the distance.
        divergence = self._mean(float(np.mean([float(f.mean() + b.mean()) for f, b in works])))
        n_steps = max(1, math.ceil(math.sqrt(max(0.0, divergence) / _DIVERGENCE)))
        gap = np.linspace(old - 2.0, old - 1.0, n_steps + 1)
        positions = np.concatenate([np.arange(old - 1.0), gap[1:], [old - 1.0]])
        nearest = np.rint(positions).astype(int)
        counts = self._constant, self._sums, self._rounds
        self._build(system.ladder.at(positions), system.visible[nearest])
        n = old - 2
        self._constant[:n], self._sums[..., :n, :], self._rounds[:n] = (
            counts[0],
            counts[1],
            counts[2],
        )
        self._system.take_over(system, nearest, n)
        for pair in range(n, n + n_steps):
            works = self._works(pair, self._system.visible[pair : pair + 2], self.random)
            self._constant[pair] = _bennett(works, self.group).value
            for forward, backward in works:
                self._add(pair, forward, backward)
        self._acceptance = 1.0

    def _mean(self, value: float) -> float:
        """The mean of the processes: with one ladder for all, they have to decide alike."""
        return float(self.group.sum_(self._constant.new_tensor([value]))) / self.group.size

    def _works(self, lower: int, visible: Tensor, random: RandomStream) -> Works:
        """Works between a rung and the next, in some Gibbs steps from given states."""
        pair = Tempering(self._system.ladder[lower : lower + 2], visible, random)
        exchanges = [pair.round() for _ in range(_MEASURE_STEPS)]
        return [(exchange.forward[0], exchange.backward[0]) for exchange in exchanges]

    @torch.no_grad()
    def measure(self) -> dict[str, Any]:
        """The log-partition function with its standard error, and how the ladder mixes.

        Nothing that training depends on is changed: the draws come from a stream of their own.
        """
        system, beta = self._system, self.options.beta
        # A seed that ends in zeros, as that of the first process, is the one without them.
        random = RandomStream(
            np.random.SeedSequence([int(self._measure_seed), self._updates, self.group.rank]),
            self.model.weight.device,
        )
        system.ladder.set_top(self.model, beta)
        visible = torch.stack(
            [system.visible[-2], self.model.sample_visible(self.chain, random, beta)]
        )
        works = self._works(len(system.ladder) - 2, visible, random)
        top = _bennett(works, self.group)
        # What the second half of the steps says otherwise, and what the shorter memory does.
        drift = top.value - _bennett(works[_MEASURE_STEPS // 2 :], self.group).value
        log_z, influence = system.ladder.base_log_partition() - top.value, -top.influence
        all_sums = np.concatenate(self.group.collect(self._sums.cpu().numpy()), -1)
        for pair in range(len(self._constant)):
            (forth, back), recent = all_sums[:, :, pair]
            step = math.log(forth.mean() / back.mean())
            log_z += step - float(self._constant[pair])
            drift += math.log(recent[0].mean() / recent[1].mean()) - step
            influence = influence + forth / forth.mean() - back / back.mean()
        return {
            "log_partition": log_z,
            "log_partition_stderr": math.hypot(standard_error(influence), drift),
            "ladder_rungs": len(system.ladder),
            **self._mixing(),
        }

    def _mixing(self) -> dict[str, float]:
        """How replicas pass along the ladder, in all processes."""
        system = self._system
        own = system.accepts, system.attempts, float(system.arrivals.sum())
        accepts, attempts, arrivals = (sum(x) for x in zip(*self.group.collect(own), strict=True))
        with np.errstate(invalid="ignore"):
            acceptance = np.asarray(accepts / attempts)
        rounds = system.rounds_counted * self._all_chains(system.n_systems)
        return {
            "exchange_acceptance": (
                float(np.nanmin(acceptance)) if np.isfinite(acceptance).any() else math.nan
            ),
            "arrival_time": rounds / arrivals if arrivals > 0 else math.inf,
        }

    def _persistent_state(self) -> dict[str, Tensor]:
        system = self._system
        as_tensor = torch.as_tensor
        return {
            "chain": self.chain,
            "ladder_weight": system.ladder.weight,
            "ladder_visible_bias": system.ladder.visible_bias,
            "ladder_hidden_bias": system.ladder.hidden_bias,
            "ladder_visible": system.visible,
            "ladder_field": system.hidden_field,
            "ladder_constant": self._constant,
            "ladder_sums": self._sums,
            "ladder_rounds": self._rounds,
            "ladder_from_base": as_tensor(system.from_base),
            "ladder_arrivals": as_tensor(system.arrivals),
            "ladder_counts": as_tensor(np.stack([system.attempts, system.accepts])),
            "ladder_seed": self._measure_seed,
            "ladder_clock": torch.tensor(
                [system.n_rounds, system.rounds_counted, self._updates, self._acceptance],
                dtype=torch.float64,
            ),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        like = self.model.weight
        self._offset_visible.copy_(state["offset_visible"])
        self._offset_hidden.copy_(state["offset_hidden"])
        self.chain = state["chain"].to(like, copy=True)
        ladder = ladder_of(state, self.model)
        self._build(ladder, state["ladder_visible"])
        for name, target in (
            ("constant", self._constant),
            ("sums", self._sums),
            ("rounds", self._rounds),
        ):
            target.copy_(state[f"ladder_{name}"])
        system = self._system
        # Made afresh they could differ in the last bit: products are rounded by their shapes.
        system.hidden_field.copy_(state["ladder_field"])
        system.from_base = state["ladder_from_base"].cpu().numpy().copy()
        system.arrivals = state["ladder_arrivals"].cpu().numpy().copy()
        system.attempts, system.accepts = state["ladder_counts"].cpu().numpy().copy()
        n_rounds, counted, updates, self._acceptance = state["ladder_clock"].tolist()
        system.n_rounds, system.rounds_counted = int(n_rounds), counted
        self._updates = int(updates)
        self._measure_seed = state["ladder_seed"].cpu().clone()

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
from typing import Any

import numpy as np
import torch
from torch import Tensor

from freenergy.inference.bridge import bennett, standard_error
from freenergy.inference.ladder import Ladder, independent_model
from freenergy.inference.tempering import Exchange, Tempering
from freenergy.models import RBM
from freenergy.random import RandomStream
from freenergy.training.gradients import PersistentContrastiveDivergence
from freenergy.training.options import TrainingOptions

__all__ = ["TrajectoryTempering", "ladder_of"]

_SHARE = 0.35
"""Matrix products spent on the ladder, as a share of those of the updates themselves."""
_ACCEPTANCE = 0.4
"""A model becomes a rung when the exchange with the last one falls below this."""
_DIVERGENCE = 2.0
"""Symmetric Kullback-Leibler divergence of neighbours, in nats, beyond which a gap is filled."""
_MEMORY = 0.5
"""Weight of the past in the running acceptance, for each round of exchanges."""
_FORGET = 0.7
"""Weight of the rounds before, after each epoch."""
_MEASURE_STEPS = 10
"""Gibbs steps from which the last rung of the ladder is compared with the current model."""


def ladder_of(state: dict[str, Tensor], like: RBM) -> Ladder:
    """The ladder in a stored state of :class:`TrajectoryTempering`, for models like this one."""
    weight, visible_bias, hidden_bias = (
        state[f"ladder_{name}"].to(like.weight, copy=True)
        for name in ("weight", "visible_bias", "hidden_bias")
    )
    return Ladder(weight, visible_bias, hidden_bias, like.visible, like.hidden)


class TrajectoryTempering(PersistentContrastiveDivergence):
    """PCD-k whose chains are exchanged with those of earlier models of the same training."""

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

    def _build(self, ladder: Ladder, visible: Tensor) -> None:
        """Systems on a ladder, with nothing counted yet."""
        self._system = Tempering(ladder, visible, self.random)
        n_pairs, n = len(ladder) - 2, visible.shape[1]
        # For each pair of finished rungs: Bennett's constant, and for each system the sums of the
        # two averages whose ratio corrects it, which hold for any constant.
        zeros = self.model.weight.new_zeros
        self._constant = zeros(n_pairs, dtype=torch.float64)
        self._sums = zeros(2, n_pairs, n, dtype=torch.float64)
        self._rounds = zeros(n_pairs, dtype=torch.float64)

    @property
    def ladder(self) -> Ladder:
        """The rungs so far, from the independent model to the current one."""
        self._system.ladder.set_top(self.model, self.options.beta)
        return self._system.ladder

    @property
    def period(self) -> int:
        """Updates between two rounds on the ladder, so that they cost a fixed share."""
        update = 3 + 2 * self.options.n_steps * self.options.chains / self.options.batch_size
        climb = 3 * len(self._system.ladder) * self.options.chains / self.options.batch_size
        return max(1, math.ceil(climb / (_SHARE * update)))

    @torch.no_grad()
    def compute(self, batch: Tensor) -> None:
        super().compute(batch)
        self._updates += 1
        if self._updates % self.period == 0:
            self._climb()

    def _climb(self) -> None:
        """A round of all rungs, from which the persistent chains go on."""
        system, model, beta = self._system, self.model, self.options.beta
        system.ladder.set_top(model, beta)
        system.place_top(model.sample_visible(self.chain, self.random, beta))
        exchange = system.round()
        self._count(exchange)
        self.chain = system.draw_top_hidden()
        n_rungs = len(system.ladder)
        if range(n_rungs - 1)[exchange.lower][-1] == n_rungs - 2:
            accepted = torch.exp(-(exchange.forward[-1] + exchange.backward[-1])).clamp(max=1.0)
            share = _MEMORY
            self._acceptance = share * self._acceptance + (1 - share) * float(accepted.mean())
            if self._acceptance < _ACCEPTANCE:
                self._freeze()

    def _count(self, exchange: Exchange) -> None:
        n_finished = len(self._constant)
        for i, pair in enumerate(range(n_finished + 1)[exchange.lower]):
            if pair < n_finished:
                constant = self._constant[pair]
                self._sums[0, pair] += torch.sigmoid(constant - exchange.forward[i].double())
                self._sums[1, pair] += torch.sigmoid(-constant - exchange.backward[i].double())
                self._rounds[pair] += 1

    def _freeze(self) -> None:
        """Make the current model a rung of the ladder, with others below it across a wide gap."""
        forward, backward = self._works()
        system, old = self._system, len(self._system.ladder)
        # For works of Gaussian spread the exchange of neighbours whose divergence is J succeeds
        # with probability erfc(√J / 2); J grows with the square of the distance.
        divergence = float(forward.mean() + backward.mean())
        n_steps = max(1, math.ceil(math.sqrt(max(0.0, divergence) / _DIVERGENCE)))
        gap = np.linspace(old - 2.0, old - 1.0, n_steps + 1)
        positions = np.concatenate([np.arange(old - 1.0), gap[1:], [old - 1.0]])
        nearest = np.rint(positions).astype(int)
        counts = self._constant, self._sums, self._rounds
        n_rounds, n_counted, arrivals = system.n_rounds, system.rounds_counted, system.arrivals
        attempts, accepts, from_base = system.attempts, system.accepts, system.from_base
        self._build(system.ladder.at(positions), system.visible[nearest])
        n = old - 2
        self._constant[:n], self._sums[:, :n], self._rounds[:n] = (
            counts[0],
            counts[1],
            counts[2],
        )
        system = self._system
        system.n_rounds, system.rounds_counted, system.arrivals = n_rounds, n_counted, arrivals
        system.attempts[:n], system.accepts[:n] = attempts[:n], accepts[:n]
        system.from_base = from_base[nearest]
        for pair in range(n, n + n_steps):
            self._constant[pair] = bennett(*self._works(pair)).value
        self._acceptance = 1.0

    def _works(self, lower: int = -2) -> tuple[np.ndarray, np.ndarray]:
        """Works between a rung and the next in some Gibbs steps; the last two by default."""
        rungs = slice(lower, None if lower == -2 else lower + 2)
        pair = Tempering(self._system.ladder[rungs], self._system.visible[rungs], self.random)
        forward, backward = [], []
        for _ in range(_MEASURE_STEPS):
            exchange = pair.round()
            forward.append(exchange.forward[0].double().cpu().numpy())
            backward.append(exchange.backward[0].double().cpu().numpy())
        return np.array(forward), np.array(backward)

    @torch.no_grad()
    def measure(self) -> dict[str, Any]:
        """The log-partition function with its standard error, and how the ladder mixes."""
        system, model, beta = self._system, self.model, self.options.beta
        system.ladder.set_top(model, beta)
        system.place_top(model.sample_visible(self.chain, self.random, beta))
        top = bennett(*self._works())
        self.chain = system.draw_top_hidden()
        log_z, influence = system.ladder.base_log_partition() - top.value, -top.influence
        for pair in range(len(self._constant)):
            forth, back = (sums[pair].cpu().numpy() for sums in self._sums)
            if not self._rounds[pair]:
                # A rung so new that it made no exchange with the one below.
                log_z -= float(self._constant[pair])
                continue
            log_z += math.log(forth.mean() / back.mean()) - float(self._constant[pair])
            influence = influence + forth / forth.mean() - back / back.mean()
        record = {
            "log_partition": log_z,
            "log_partition_stderr": standard_error(influence),
            "ladder_rungs": len(system.ladder),
            "exchange_acceptance": float(
                np.min(system.accepts / np.maximum(system.attempts, 1.0))
                if system.attempts.all()
                else math.nan
            ),
            "arrival_time": system.arrival_time,
        }
        # Old rounds count less and less: the ladder grows, and new rungs are not at rest yet.
        system.forget(_FORGET)
        self._sums *= _FORGET
        self._rounds *= _FORGET
        return record

    def _persistent_state(self) -> dict[str, Tensor]:
        system = self._system
        as_tensor = torch.as_tensor
        return {
            "chain": self.chain,
            "ladder_weight": system.ladder.weight,
            "ladder_visible_bias": system.ladder.visible_bias,
            "ladder_hidden_bias": system.ladder.hidden_bias,
            "ladder_visible": system.visible,
            "ladder_constant": self._constant,
            "ladder_sums": self._sums,
            "ladder_rounds": self._rounds,
            "ladder_from_base": as_tensor(system.from_base),
            "ladder_arrivals": as_tensor(system.arrivals),
            "ladder_counts": as_tensor(np.stack([system.attempts, system.accepts])),
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
        system.from_base = state["ladder_from_base"].cpu().numpy().copy()
        system.arrivals = state["ladder_arrivals"].cpu().numpy().copy()
        system.attempts, system.accepts = state["ladder_counts"].cpu().numpy().copy()
        n_rounds, counted, updates, self._acceptance = state["ladder_clock"].tolist()
        system.n_rounds, system.rounds_counted = int(n_rounds), counted
        self._updates = int(updates)

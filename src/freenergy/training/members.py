"""What the processes of a group have apart in training, gathered into one state and divided again.

Chains and streams of random numbers are gathered after each epoch into one state that is the same
in all processes. It can be stored, and gone on from with another number of processes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from freenergy.distributed import Group
from freenergy.random import RandomStream
from freenergy.training.rows import Part, rows_in

__all__ = [
    "Members",
    "average_gradient",
    "chain_axes",
    "derived_seed",
    "gradients_of",
    "own_chains",
    "pooled",
]

_GRADIENT = "gradient."


def derived_seed(state: dict[str, Any], *key: int) -> np.random.SeedSequence:
    """A seed that follows from the state of a stream and some numbers, another one for each.

    Examples
    --------
    >>> state = RandomStream(0).state()
    >>> one, same, other = (RandomStream(derived_seed(state, k)) for k in (1, 1, 2))
    >>> one.state() == same.state(), one.state() == other.state()
    (True, False)
    """
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).digest()
    return np.random.SeedSequence([int.from_bytes(digest[:16], "little"), *key])


@dataclass(frozen=True, eq=False)
class Members:
    """What the processes of a group do not have in common, gathered.

    Attributes
    ----------
    chains : dict of Tensor
        The chains of all processes in the order of their ranks, by their names in the state of the
        gradient; empty where this process holds them all itself.
    others : list of dict of Tensor
        Of each process, what else in the state of its gradient is its own.
    random : list of dict
        Of each process, the state of its stream.
    """

    chains: dict[str, Tensor]
    others: list[dict[str, Tensor]]
    random: list[dict[str, Any]]

    @classmethod
    def gather(cls, gradient: Any, random: RandomStream, group: Group) -> Members:
        """Gather them from all processes, each of which has to call this."""
        own = {name: t.detach().cpu() for name, t in gradient.state().items()}
        states, streams = zip(*group.collect((own, random.state())), strict=True)
        axes = chain_axes(gradient)
        chains = {name: torch.cat([s[name] for s in states], axis) for name, axis in axes.items()}
        differing = [
            name
            for name, first in states[0].items()
            if name not in axes and not all(_equal(s[name], first) for s in states)
        ]
        return cls(chains, [{name: s[name] for name in differing} for s in states], list(streams))

    @classmethod
    def read(
        cls, tensors: dict[str, Tensor], values: dict[str, Any], names: Iterable[str] = ()
    ) -> Members | None:
        """Those of a stored state, with chains of these names.

        None where one process alone has written it.
        """
        if "processes" not in values:
            return None
        random = values["processes"]["random"]
        others: list[dict[str, Tensor]] = [{} for _ in random]
        for name, tensor in tensors.items():
            if name.startswith("rank."):
                _, rank, _, own = name.split(".", 3)
                others[int(rank)][own] = tensor
        return cls({name: tensors[_GRADIENT + name] for name in names}, others, random)

    def complete(
        self, tensors: dict[str, Tensor], values: dict[str, Any], group: Group
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state of one process as that of all; the first stands for what is only one's."""
        tensors, values = dict(tensors), values | {"processes": {"random": self.random}}
        if group.size > 1:
            tensors |= {_GRADIENT + name: t for name, t in (self.chains | self.others[0]).items()}
            values["random"] = self.random[0]
        for rank, own in enumerate(self.others):
            tensors |= {f"rank.{rank}.{_GRADIENT}{name}": t for name, t in own.items()}
        return tensors, values


def chain_axes(gradient: Any) -> dict[str, int]:
    """Names of a gradient's tensors that the processes divide, and the axis of their chains."""
    held = gradient.state()
    axes: dict[str, int] = getattr(gradient, "chain_axes", {})
    return {name: axis for name, axis in axes.items() if name in held}


def own_chains(gradient: Any, state: dict[str, Tensor], group: Group) -> dict[str, Tensor]:
    """The state of a gradient with the chains of this process only.

    Raises
    ------
    ValueError
        When there are fewer chains than processes.
    """
    own = dict(state)
    for name, axis in chain_axes(gradient).items():
        n = state[name].shape[axis]
        if n < group.size:
            raise ValueError(f"{n} chains cannot be divided among {group.size} processes")
        part = group.portion(n)
        own[name] = state[name].narrow(axis, part.start, part.stop - part.start)
    return own


def average_gradient(gradient: Any, model: nn.Module, part: Part, group: Group) -> None:
    """The gradient of a batch from the means of the processes over their parts of it.

    A gradient whose mean is not over all rows says by its method ``weigh`` over how many it is.
    """
    weight = 0.0
    if rows_in(part.batch):
        gradient.compute(part.batch)
        weight = getattr(gradient, "weigh", rows_in)(part.batch)
    group.average_(gradients_of(model), weight)


def gradients_of(model: nn.Module) -> list[Tensor]:
    """The ``.grad`` of all parameters that learn, made where absent."""
    gradients = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    return gradients


def pooled(records: Sequence[dict[str, Any]], weights: Sequence[float]) -> dict[str, Any]:
    """Means of what the processes measured, weighted; of what is no number, the first's.

    Examples
    --------
    >>> pooled([{"energy": 1.0}, {"energy": 4.0}], [2, 1])
    {'energy': 2.0}
    """
    pairs = [(r, w) for r, w in zip(records, weights, strict=True) if w > 0]
    total = sum(weight for _, weight in pairs)
    return {
        name: sum(r[name] * w for r, w in pairs) / total if isinstance(value, float) else value
        for name, value in (pairs[0] if pairs else (records[0], 0))[0].items()
    }


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)

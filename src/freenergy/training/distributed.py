r"""Many processes that train one model together, on :mod:`torch.distributed`.

Each process of a :class:`Group` takes its part of every batch and holds its part of the chains; the
parameters are the same in all. For a batch of *n* rows of which process *r* has :math:`n_r`,

.. math:: \frac1n \sum_{i=1}^n g_i = \sum_r \frac{n_r}{n} \Bigl(\frac1{n_r} \sum_{i \in r} g_i\Bigr)

so that one sum over the processes of one flat vector is the gradient of the whole batch, whatever
the sizes of the parts: one *all-reduce* for each update.

What the processes have apart (chains, streams of random numbers) is gathered after each epoch into
one state that is the same in all. It can be stored, and gone on from with another number of
processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from freenergy.random import RandomStream
from freenergy.training.rows import Part, rows_in

__all__ = [
    "ALONE",
    "Group",
    "Members",
    "Processes",
    "alone",
    "derived_seed",
    "group_now",
    "is_launched",
    "launch",
    "launched_rank",
    "session",
]

T = TypeVar("T")

_SEPARATE: ContextVar[bool] = ContextVar("freenergy_alone", default=False)
_GRADIENT = "gradient."
_MEETING_SECONDS, _MEETING_PAUSE = 1800.0, 0.02


class Group:
    """The processes that train one model together; this class is one process alone.

    Attributes
    ----------
    rank : int
        Number of this process, from 0.
    size : int
        Number of processes.

    Examples
    --------
    >>> group = Group()
    >>> group.portion(10), group.agree("yes"), group.collect(3)
    (slice(0, 10, None), 'yes', [3])
    """

    rank: int = 0
    size: int = 1

    def portion(self, n: int) -> slice:
        """Which of ``n`` things are this process's: as many for each, give or take one."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over the processes."""
        return tensor

    def collect(self, value: T) -> list[T]:
        """What every process gives, in the order of their ranks, in all of them."""
        return [value]

    def agree(self, value: T) -> T:
        """What the first process gives, in all of them."""
        return value

    def average_(self, tensors: Sequence[Tensor], weight: float) -> Tensor:
        r"""Replace tensors by their means over the processes, weighted; one sum of a flat vector.

        Parameters
        ----------
        tensors : sequence of Tensor
            Of one precision, on one device.
        weight : float
            Of this process; where it is zero, whatever it has does not count.

        Returns
        -------
        Tensor of shape ()
            Sum of the weights.
        """
        own = tensors[0].new_tensor([weight])
        if self.size == 1:
            return own[0]
        parts = [(t * own if weight else torch.zeros_like(t)).reshape(-1) for t in tensors]
        *means, total = self.sum_(torch.cat([*parts, own])).split([*map(len, parts), 1])
        for tensor, mean in zip(tensors, means, strict=True):
            torch.div(mean.view_as(tensor), total[0], out=tensor)
        return total[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rank={self.rank}, size={self.size})"


ALONE = Group()
"""One process, which has nobody to talk to."""


class Processes(Group):
    """The processes of torch's default process group.

    Raises
    ------
    RuntimeError
        When there is no process group.
    """

    def __init__(self) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "there is no process group: start the program with torchrun, use "
                "freenergy.distributed.launch, or call torch.distributed.init_process_group"
            )
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over the processes."""
        if self.size > 2 or tensor.device.type != "cpu":
            dist.all_reduce(tensor)
            return tensor
        # One message each way: a ring of two would send four, and each of them wakes a thread.
        other = torch.empty_like(tensor)
        swap = [dist.P2POp(dist.isend, tensor, 1 - self.rank)]
        swap.append(dist.P2POp(dist.irecv, other, 1 - self.rank))
        for message in dist.batch_isend_irecv(swap):
            message.wait()
        return tensor.add_(other)

    def collect(self, value: T) -> list[T]:
        """What every process gives, in the order of their ranks, in all of them."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def agree(self, value: T) -> T:
        """What the first process gives, in all of them."""
        found: list[Any] = [value if self.rank == 0 else None]
        dist.broadcast_object_list(found, src=0)
        agreed: T = found[0]
        return agreed


def group_now() -> Group:
    """The processes that a training would be divided among now.

    Returns
    -------
    Group
        That of torch's process group where one is initialised, else one process alone.

    Examples
    --------
    >>> group_now()
    Group(rank=0, size=1)
    """
    if _SEPARATE.get() or not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Processes() if dist.get_world_size() > 1 else ALONE


@contextmanager
def alone() -> Iterator[None]:
    """Trainings in this context are this process's own, whatever process group there is.

    Examples
    --------
    >>> with alone():
    ...     group_now().size
    1
    """
    before = _SEPARATE.set(True)
    try:
        yield
    finally:
        _SEPARATE.reset(before)


def is_launched() -> bool:
    """Whether torchrun, or :func:`launch`, started this process as one of a group."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def launched_rank() -> int:
    """The rank that torchrun gave this process; 0 without it."""
    return int(os.environ["RANK"]) if is_launched() else 0


@contextmanager
def session(device: str = "cpu") -> Iterator[Group]:
    """The process group that torchrun has prepared, from here to the end of the context.

    Without torchrun this is one process alone; a process group that is there already is used, and
    left as it is.

    Parameters
    ----------
    device : str, default="cpu"
        Of the models. On ``"cuda"`` each process takes the GPU of its local rank.

    Yields
    ------
    Group

    Examples
    --------
    >>> with session() as group:
    ...     group.size
    1
    """
    if not is_launched() or dist.is_initialized():
        yield group_now()
        return
    backend = "gloo"
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # States are gathered on the host.
        backend = "cpu:gloo,cuda:nccl"
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://"))
    dist.init_process_group(backend, store=_fresh(store, rank, size), rank=rank, world_size=size)
    try:
        yield group_now()
    finally:
        dist.destroy_process_group()


def _fresh(store: Any, rank: int, size: int) -> Any:
    """A part of a store that no earlier processes have written to.

    The store of torchrun outlives its workers. Those of the next attempt would find the addresses
    of the dead in it, and fail to connect where they ask before the living have answered. So each
    of them sends the first a word of its own, and takes the answer that repeats it.
    """
    from torch.distributed.distributed_c10d import PrefixStore

    word = secrets.token_hex(8)
    if rank > 0:
        store.set(f"freenergy/word/{rank}", word)
    deadline = time.monotonic() + _MEETING_SECONDS
    missing = set(range(1, size)) if rank == 0 else {0}
    while missing:
        if rank > 0:
            told, _, name = store.get(f"freenergy/answer/{rank}").decode().partition(" ")
            if told == word:
                store.set(f"freenergy/taken/{rank}", name)
                return PrefixStore(name, store)
        else:
            missing = {other for other in missing if not _has_taken(store, other, word)}
        if time.monotonic() > deadline:
            raise RuntimeError(f"process {rank} waited in vain for {sorted(missing)} to begin")
        time.sleep(_MEETING_PAUSE)
    return PrefixStore(word, store)


def _has_taken(store: Any, other: int, word: str) -> bool:
    """Answer another process; whether it has taken the first one's word."""
    told = store.get(f"freenergy/word/{other}").decode()
    store.set(f"freenergy/answer/{other}", f"{told} {word}")
    taken = f"freenergy/taken/{other}"
    return bool(store.check([taken])) and store.get(taken).decode() == word


def launch(
    function: Callable[..., T],
    n_processes: int,
    *args: Any,
    device: str = "cpu",
    max_restarts: int = 0,
) -> list[T]:
    """Call a function in several processes of this machine, within a process group of theirs.

    Estimators that are fitted in the function divide their training among the processes. Each
    process gets an equal share of the cores, unless ``OMP_NUM_THREADS`` says otherwise.

    Parameters
    ----------
    function : callable
        At the top level of a module that can be imported: the processes start afresh.
    n_processes : int
    *args :
        Of the function, the same in every process.
    device : str, default="cpu"
        As in :func:`session`.
    max_restarts : int, default=0
        So often all processes are started anew when one of them dies.

    Returns
    -------
    list
        What each process returned, in the order of their ranks.

    Raises
    ------
    torch.distributed.elastic.multiprocessing.errors.ChildFailedError
        When a process fails once more.

    Examples
    --------
    >>> import operator
    >>> launch(operator.add, 2, 3, 4)  # doctest: +SKIP
    [7, 7]
    """
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=n_processes,
        run_id=secrets.token_hex(8),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=max_restarts,
        monitor_interval=0.1,
    )
    found = elastic_launch(config, _member)(function, device, n_processes, args)
    return [found[rank] for rank in sorted(found)]


def _member(function: Callable[..., T], device: str, n_processes: int, args: tuple[Any, ...]) -> T:
    """What each process of :func:`launch` does."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // n_processes))
    with session(device):
        return function(*args)


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

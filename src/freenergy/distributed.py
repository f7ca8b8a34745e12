r"""Many processes that train one model together, on :mod:`torch.distributed`.

Each process of a :class:`Group` takes its part of every batch and holds its part of the chains; the
parameters are the same in all. For a batch of *n* rows of which process *r* has :math:`n_r`,

.. math:: \frac1n \sum_{i=1}^n g_i = \sum_r \frac{n_r}{n} \Bigl(\frac1{n_r} \sum_{i \in r} g_i\Bigr)

so that one sum over the processes of one flat vector is the gradient of the whole batch, whatever
the sizes of the parts: one *all-reduce* for each update.

Whatever is divided (batches, chains, replicas) is divided by :meth:`Group.portion`.

``fit`` divides its work by itself: every process calls it. What measures a model
(:func:`~freenergy.inference.log_partition` and others) may well be called by one process among
many, as by a monitor, and would wait for the others for ever; it is divided only where it is given
``group=group_now()``.
"""

from __future__ import annotations

import os
import secrets
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from freenergy.random import RandomStream

__all__ = [
    "ALONE",
    "Group",
    "Processes",
    "alone",
    "group_now",
    "is_launched",
    "launch",
    "launched_rank",
    "session",
]

T = TypeVar("T")

_SEPARATE: ContextVar[bool] = ContextVar("freenergy_alone", default=False)
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

    def share(self, n: int) -> int:
        """How many of ``n`` things are this process's."""
        own = self.portion(n)
        return int(own.stop - own.start)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over the processes."""
        return tensor

    def collect(self, value: T) -> list[T]:
        """What every process gives, in the order of their ranks, in all of them."""
        return [value]

    def agree(self, value: T) -> T:
        """What the first process gives, in all of them."""
        return value

    def join(self, tensor: Tensor, axis: int = 0) -> Tensor:
        """The tensors of all processes, in the order of their ranks, as one along an axis."""
        if self.size == 1:
            return tensor
        return torch.cat(self.collect(tensor.detach().cpu()), axis).to(tensor.device)

    def check_same(self, model: nn.Module) -> None:
        """Refuse, in all processes, a model that is not the same in each of them.

        Raises
        ------
        ValueError
        """
        if self.size == 1:
            return
        words = (p.detach().cpu().reshape(-1).view(torch.uint8) for p in model.parameters())
        found = self.collect([zlib.crc32(part.numpy().tobytes()) for part in words])
        if any(other != found[0] for other in found):
            raise ValueError(
                "the processes have different models, which cannot be measured together: load the "
                "same one in all of them"
            )

    def stream(self, random: RandomStream) -> RandomStream:
        """Random numbers of this process's own, where several draw side by side.

        They follow from the stream of the first process, which goes on, the number of processes
        and the rank. One process alone draws from the stream itself.
        """
        if self.size == 1:
            return random
        words = self.agree(random.integers(0, 2**31, 4).tolist())
        seed = np.random.SeedSequence(words, spawn_key=(self.size, self.rank))
        return RandomStream(seed, random.device)

    def average_(self, tensors: Sequence[Tensor], weight: float) -> Tensor:
        r"""Replace tensors by their means over the processes, weighted; one sum of a flat vector.

        Parameters
        ----------
        tensors : sequence of Tensor
            Of one precision, on one device.
        weight : float
            Of this process; where it is zero, whatever it has does not count. The means are zero
            where it is zero in all of them.

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
        # Where nobody has a weight, the sums are zero, and so are the means.
        divisor = total[0].clamp_min(torch.finfo(total.dtype).tiny)
        for tensor, mean in zip(tensors, means, strict=True):
            torch.div(mean.view_as(tensor), divisor, out=tensor)
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

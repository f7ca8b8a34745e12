"""Updates recorded once as a CUDA graph, and played again for each batch.

An update of a small model is 25 kernels (PCD-1) to 75 (TAP2, three sweeps) of a few microseconds
each, and a GPU waits for the host to launch them one by one. A graph launches them all at once.
What it costs is that everything is fixed which the host decides: the same kernels read and write
the same addresses in each replay. So

- a batch is copied to one place, from which the recorded kernels read it, and a batch of another
  size (the last of an epoch) takes the plain way;
- numbers that change from update to update, such as the learning rate, are tensors on the device;
- random numbers come from a generator that the graph knows: at each replay it hands on the counter
  at which the draws begin, so that they are those of the plain way;
- memory that the recorded kernels use is kept, even where its owners drop it.

The first updates take the plain way on a stream of their own, in which libraries and optimisers
allocate what they keep. They are updates like all others: nothing is undone before the recording,
which executes nothing.

:class:`Recorder` is all that is asked of a device; CUDA is its only implementation here.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from freenergy.random import RandomStream

__all__ = ["CudaRecorder", "RecordedUpdate", "Recorder", "recorder_for"]

_log = logging.getLogger(__name__)

N_REHEARSALS = 3
"""Updates that take the plain way before one is recorded."""


class Recorder(Protocol):
    """Records what a device does, to play it again."""

    def rehearse(self, work: Callable[[], None]) -> None:
        """Do work as it will be recorded."""
        ...

    def record(self, work: Callable[[], None], random: RandomStream) -> Callable[[], None]:
        """What repeats some work, which is recorded and not done.

        A failure leaves the device, and the stream of random numbers, as they were.
        """
        ...


class CudaRecorder:
    """Records CUDA graphs.

    Parameters
    ----------
    device : torch.device
        A GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # Of the rehearsals and the recording: cuBLAS keeps its workspace by the stream.
        self._stream = torch.cuda.Stream(device)

    def rehearse(self, work: Callable[[], None]) -> None:
        """Do work on the stream of the recording, after all before it and before all after it."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def record(self, work: Callable[[], None], random: RandomStream) -> Callable[[], None]:
        """What replays a graph of the work."""
        graph, state = torch.cuda.CUDAGraph(), random.state()
        current = torch.cuda.current_stream(self.device)
        try:
            with torch.cuda.device(self.device):
                if random.generator is not None:
                    _register(graph, random.generator)
                # Threads that read data ahead may pin memory, which "global" would forbid.
                with torch.cuda.graph(
                    graph, stream=self._stream, capture_error_mode="thread_local"
                ):
                    work()
        except Exception:
            # A capture that fails may neither give the stream back nor the generator.
            torch.cuda.set_stream(current)
            random.renew(state)
            raise
        replay: Callable[[], None] = graph.replay
        return replay


def _register(graph: torch.cuda.CUDAGraph, generator: torch.Generator) -> None:
    """Tell a graph of a generator that its kernels draw from.

    Recent versions of torch find out by themselves, and say so.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph.register_generator_state(generator)


def recorder_for(device: torch.device) -> Recorder | None:
    """What records the updates of a model on a device; None where nothing does.

    Examples
    --------
    >>> recorder_for(torch.device("cpu")) is None
    True
    """
    # ROCm calls itself "cuda" as well, and has graphs.
    return CudaRecorder(device) if device.type == "cuda" else None


class RecordedUpdate:
    """The update of a trainer, recorded for batches of one size.

    Parameters
    ----------
    update : callable
        Follows the gradient of a batch, without asking the device for a number.
    owners : callable
        Gives what holds the tensors that an update reads and writes; it is kept with the
        recording, so that no address goes to other tensors.
    recorder : Recorder
    random : RandomStream
        Source of the update's draws.

    Attributes
    ----------
    failure : str or None
        Why no update will be recorded.
    """

    def __init__(
        self,
        update: Callable[[Tensor], None],
        owners: Callable[[], Any],
        recorder: Recorder,
        random: RandomStream,
    ) -> None:
        self._update = update
        self._owners = owners
        self._recorder = recorder
        self._random = random
        self.failure: str | None = None
        self.forget()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a recording of a device's work cannot be stored")

    def forget(self) -> None:
        """Record anew: tensors were replaced, or will be."""
        self._n_rehearsals = 0
        self._replay: Callable[[], None] | None = None
        self._batch: Tensor | None = None
        self._kept: Any = None

    def __call__(self, batch: Tensor, size: int) -> None:
        """Follow the gradient of a batch, recorded if it has ``size`` rows, as most have."""
        if self.failure is not None or not isinstance(batch, Tensor) or len(batch) != size:
            self._update(batch)
            return
        if self._batch is None or self._batch.shape != batch.shape:
            self.forget()
            self._batch = torch.empty_like(batch, memory_format=torch.contiguous_format)
        if self._n_rehearsals < N_REHEARSALS:
            self._n_rehearsals += 1
            self._recorder.rehearse(lambda: self._update(batch))
            return
        if self._replay is None:
            self._record(self._batch)
        if self._replay is None:
            self._update(batch)
            return
        self._batch.copy_(batch, non_blocking=True)
        self._replay()

    def _record(self, batch: Tensor) -> None:
        try:
            self._replay = self._recorder.record(lambda: self._update(batch), self._random)
            self._kept = self._owners()
        except (RuntimeError, AssertionError) as error:
            self.forget()
            self.failure = _reason(error)
            _log.warning("no CUDA graph of the updates, which go on one by one: %s", self.failure)


def _reason(error: BaseException) -> str:
    """The first line of what went wrong first: the end of a broken capture fails as well."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).splitlines()[0] if str(error) else type(error).__name__

"""Where the rows of a training lie, and how batches come to a GPU while it computes.

Rows that fit lie on the device, all of them. Others stay in the memory of the host: a batch is
gathered there, in memory that the device can read by itself, and is copied on a stream of its own,
one batch ahead of the updates.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Lane", "ahead", "placed", "sent"]

_SHARE = 0.5
"""Of the free memory of a device, for the rows of a training."""


def placed(data: Tensor, like: Tensor) -> Tensor:
    """Rows in the precision of ``like``, on its device where they fit, else on the host.

    Parameters
    ----------
    data : Tensor
    like : Tensor
        Has the precision and the device of the model.

    Returns
    -------
    Tensor

    Examples
    --------
    >>> placed(torch.eye(2, dtype=torch.float64), torch.empty(0)).dtype
    torch.float32
    """
    n_bytes = data.numel() * like.element_size()
    if data.device == like.device or n_bytes <= _SHARE * _free_bytes(like.device):
        return data.to(like.device, like.dtype)
    return data.to("cpu", like.dtype)


def _free_bytes(device: torch.device) -> float:
    """Memory of a GPU that nobody uses; that of other devices is not asked for."""
    if device.type != "cuda":
        return float("inf")
    free, _ = torch.cuda.mem_get_info(device)
    # Torch keeps memory that was freed, for later.
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def sent(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor in the precision and on the device of ``like``; to a GPU without waiting for it.

    Parameters
    ----------
    tensor : Tensor
    like : Tensor

    Returns
    -------
    Tensor

    Examples
    --------
    >>> sent(torch.ones(2, dtype=torch.uint8), torch.empty(0))
    tensor([1., 1.])
    """
    if like.is_cuda and not tensor.is_cuda:
        # From other memory the host itself would have to copy, and to wait for the device.
        return tensor.to(like.dtype).pin_memory().to(like.device, non_blocking=True)
    return tensor.to(like)


class Lane(Protocol):
    """Another stream of a device, on which the next batch comes."""

    def fetch(self, batches: Iterator[Any]) -> Any:
        """Begin to bring the next batch; None where there is no other."""
        ...

    def arrived(self, coming: Any) -> Any:
        """The batch, for work that begins from now on."""
        ...


class _CudaLane:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))

    def fetch(self, batches: Iterator[Any]) -> Any:
        with torch.cuda.stream(self._stream):
            batch = next(batches, None)
            return None if batch is None else (batch, self._stream.record_event())

    def arrived(self, coming: Any) -> Any:
        batch, event = coming
        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)
        for tensor in _tensors(batch):
            # Else its memory would be free for the lane as soon as the host drops it.
            tensor.record_stream(current)
        return batch


def ahead(
    batches: Generator[Any], device: torch.device, lane: Lane | None = None
) -> Generator[Any]:
    """The same batches, of which the next is on its way to a GPU while one is in use.

    Parameters
    ----------
    batches : generator
        Of tensors on the device, or named tuples of them.
    device : torch.device
        Other than a GPU it changes nothing.
    lane : Lane or None, default=None
        None is a stream of the GPU.

    Returns
    -------
    generator
        Closes that of the batches with itself.

    Examples
    --------
    >>> pairs = ((i, i) for i in range(3))
    >>> ahead(pairs, torch.device("cpu")) is pairs
    True
    """
    if lane is None:
        if device.type != "cuda":
            return batches
        lane = _CudaLane(device)
    return _one_ahead(batches, lane)


def _one_ahead(batches: Generator[Any], lane: Lane) -> Generator[Any]:
    with closing(batches):
        coming = lane.fetch(batches)
        while coming is not None:
            # The host gathers the next one while the device is busy with what it was given.
            batch, coming = lane.arrived(coming), lane.fetch(batches)
            yield batch


def _tensors(batch: Any) -> list[Tensor]:
    """The tensors of a batch on a GPU, labelled or a part or not."""
    if isinstance(batch, Tensor):
        return [batch] if batch.is_cuda else []
    return [t for part in batch for t in _tensors(part)] if isinstance(batch, tuple) else []

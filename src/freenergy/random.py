"""One seeded stream of random numbers, on whichever device a model lives."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["RandomStream"]


class RandomStream:
    r"""Seeded draws that fill tensors in place and whose state can be stored.

    Sampling is what a Gibbs step costs beyond its matrix products, so the source matters: on the
    CPU the uniforms are cut from the words of NumPy's SFC64 generator, several times faster than
    ``torch.rand``; on any other device they come from a :class:`torch.Generator`. On a GPU that is
    Philox, a function of a seed and a counter (Salmon et al. 2011): each draw is computed where it
    is used, and a recorded CUDA graph goes on in it at each replay.

    CPU uniforms have 24 random bits for every dtype, so that one seed gives one chain of states
    in single and in double precision. A probability below :math:`2^{-24}` is therefore resolved
    only up to that grid.

    Parameters
    ----------
    seed : int, numpy.random.SeedSequence, numpy.random.RandomState or None
        An integer or a seed sequence seeds a new stream; ``None`` takes entropy from the
        operating system. A ``RandomState`` is *used*, not copied: the draws are its own
        double-precision ones, in order, as in scikit-learn (slower).
    device : str or torch.device, default="cpu"
        Where the tensors to be filled live.

    Examples
    --------
    >>> import torch
    >>> stream = RandomStream(0)
    >>> draws = stream.uniform_(torch.empty(2, 3))
    >>> bool(((0 <= draws) & (draws < 1)).all())
    True
    >>> state = stream.state()
    >>> first = stream.permutation(5)
    >>> stream.restore(state)
    >>> bool((stream.permutation(5) == first).all())
    True
    """

    def __init__(
        self,
        seed: int | np.random.SeedSequence | np.random.RandomState | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self._host: np.random.Generator | np.random.RandomState
        if isinstance(seed, np.random.RandomState):
            self._host = seed
        else:
            self._host = np.random.Generator(np.random.SFC64(seed))
        self._device_generator: torch.Generator | None = None
        if self.device.type != "cpu":
            self._device_generator = self._new_generator()
            self._device_generator.manual_seed(int(self.integers(0, 2**31, 1)))
        self._scratch: dict[torch.dtype, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the scratch memory, which is made again when needed."""
        return vars(self) | {"_scratch": {}}

    @property
    def generator(self) -> torch.Generator | None:
        """Torch's generator, which a recording of draws has to know; None on the CPU."""
        return self._device_generator

    def reseed(self, seed: int | np.random.SeedSequence) -> None:
        """Start anew from another seed, for all who draw from this stream."""
        fresh = type(self)(seed, self.device)
        self._host = fresh._host
        if self._device_generator is not None and fresh._device_generator is not None:
            # The generator stays: a recorded graph may draw from it.
            self._device_generator.set_state(fresh._device_generator.get_state())

    def renew(self, state: dict[str, Any]) -> None:
        """Continue from a state with another generator.

        One that a failed recording left in the middle refuses to draw ever after.
        """
        if self._device_generator is not None:
            self._device_generator = self._new_generator()
        self.restore(state)

    def uniform_(self, out: Tensor) -> Tensor:
        """Fill a tensor with draws from [0, 1)."""
        if self._device_generator is not None:
            return out.uniform_(generator=self._device_generator)
        if isinstance(self._host, np.random.RandomState):
            out.copy_(torch.from_numpy(self._host.uniform(size=tuple(out.shape))))
            # In single precision a draw next to 1 is rounded to 1, which does not belong.
            out.clamp_(max=1.0 - torch.finfo(out.dtype).eps / 2)
        else:
            # Each 64-bit word makes two draws k 2⁻²⁴ + ½, k from −2²³ to 2²³ − 1: exact in single
            # precision, and half the cost of the generator's own method.
            n = out.numel()
            words = torch.from_numpy(
                self._host.bit_generator.random_raw((n + 1) // 2).view(np.int32)
            )
            steps = words[:n].bitwise_right_shift_(8).view(out.shape)
            torch.mul(steps, 2.0**-24, out=out).add_(0.5)
        return out

    def bernoulli_(self, probability: Tensor) -> Tensor:
        """Replace every probability by a draw that is 1 with that probability, else 0."""
        if isinstance(self._host, np.random.RandomState) and self._device_generator is None:
            # Compared in double precision: rounding a draw up to 1.0 would refuse p = 1.
            draws = torch.from_numpy(self._host.uniform(size=tuple(probability.shape)))
            return probability.copy_(draws < probability)
        # Not torch's own bernoulli_: on a GPU it takes the whole process down where p is NaN.
        draws = self.uniform_(self._buffer(probability.shape, probability.dtype))
        return torch.lt(draws, probability, out=probability)

    def normal(self, shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
        """Draws from N(0, scale²) in double precision, on the CPU, of the given shape."""
        return torch.from_numpy(np.asarray(self._host.normal(0.0, scale, shape)))

    def permutation(self, n: int) -> Tensor:
        """A random order of ``range(n)``, on the CPU."""
        return torch.from_numpy(self._host.permutation(n))

    def integers(self, low: int, high: int, n: int) -> Tensor:
        """``n`` integers drawn uniformly from ``low`` (included) to ``high`` (excluded)."""
        if isinstance(self._host, np.random.RandomState):
            return torch.from_numpy(self._host.randint(low, high, n))
        return torch.from_numpy(self._host.integers(low, high, n))

    def state(self) -> dict[str, Any]:
        """The state as plain numbers, strings and lists, ready for JSON."""
        if isinstance(self._host, np.random.RandomState):
            name, keys, position, has_gauss, gauss = self._host.get_state(legacy=True)
            host: dict[str, Any] = {
                "bit_generator": name,
                "state": [[int(k) for k in keys], int(position), int(has_gauss), float(gauss)],
            }
        else:
            raw = self._host.bit_generator.state
            host = {
                "bit_generator": raw["bit_generator"],
                "state": [int(word) for word in raw["state"]["state"]],
                "has_uint32": int(raw["has_uint32"]),
                "uinteger": int(raw["uinteger"]),
            }
        state: dict[str, Any] = {"host": host}
        if self._device_generator is not None:
            state["device"] = self._device_generator.get_state().tolist()
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state that :meth:`state` returned.

        Raises
        ------
        ValueError
            When the state belongs to another kind of generator.
        """
        host = state["host"]
        if isinstance(self._host, np.random.RandomState):
            if host["bit_generator"] != "MT19937":
                raise ValueError("the stored random state is not one of a RandomState")
            keys, position, has_gauss, gauss = host["state"]
            words = np.asarray(keys, dtype=np.uint32)
            self._host.set_state(("MT19937", words, position, has_gauss, gauss))
        else:
            if host["bit_generator"] != "SFC64":
                raise ValueError("the stored random state is not one of a seeded stream (SFC64)")
            self._host.bit_generator.state = {
                "bit_generator": "SFC64",
                "state": {"state": np.asarray(host["state"], dtype=np.uint64)},
                "has_uint32": host["has_uint32"],
                "uinteger": host["uinteger"],
            }
        if self._device_generator is not None:
            if "device" not in state:
                raise ValueError(f"the stored random state was not one of {self.device.type}")
            self._device_generator.set_state(torch.tensor(state["device"], dtype=torch.uint8))

    def _new_generator(self) -> torch.Generator:
        return torch.Generator(self.device)

    def _buffer(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """A view of reusable memory: allocating afresh costs more than the comparison.

        Not on other devices. Their allocators keep memory at hand, and a recorded graph goes on
        writing to the addresses that it was given, which must not go to another tensor.
        """
        if self._device_generator is not None:
            return torch.empty(shape, dtype=dtype, device=self.device)
        size = shape.numel()
        if dtype not in self._scratch or self._scratch[dtype].numel() < size:
            self._scratch[dtype] = torch.empty(size, dtype=dtype, device=self.device)
        return self._scratch[dtype][:size].view(shape)

r"""Precision of the matrix products in an update; parameters and sums stay in single precision.

A product of two matrices costs most of an update, and a GPU has units that multiply faster where
the factors have fewer bits:

===========  ================  ==============================================================
``float32``  23 bits           torch's setting is left alone
``tf32``     10 bits           torch's setting, for the time of the update; GPUs only
``bf16``     7 bits            factors are rounded before each product, on any device
===========  ================  ==============================================================

In all of them the range is that of float32, products are added up in float32, and a state of zeros
and ones is exact. So the error is that of rounding the weights and the means,
:math:`\delta \le 2^{-8}` relative for ``bf16``, at random from one factor to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["RoundedProducts", "check_precision", "products_in", "to_bfloat16"]


def check_precision(precision: str, dtype: torch.dtype) -> None:
    """Refuse a reduced precision for a model that is not in single precision.

    Parameters
    ----------
    precision : {"float32", "tf32", "bf16"}
    dtype : torch.dtype
        Of the model.

    Raises
    ------
    ValueError

    Examples
    --------
    >>> check_precision("bf16", torch.float64)
    Traceback (most recent call last):
        ...
    ValueError: precision='bf16' is for models in float32, this one is in float64: give float32...
    """
    if precision != "float32" and dtype != torch.float32:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"precision={precision!r} is for models in float32, this one is in {name}: give "
            "float32 data, or set precision='float32'"
        )


def products_in(precision: str) -> AbstractContextManager[object]:
    """Matrix products of single precision in this context, in the precision of that name.

    Parameters
    ----------
    precision : {"float32", "tf32", "bf16"}

    Returns
    -------
    context manager
        It leaves torch's settings as they were.

    Examples
    --------
    >>> third = torch.full((1, 1), 1 / 3)
    >>> with products_in("bf16"):
    ...     torch.mm(third, torch.ones(1, 1))
    tensor([[0.3340]])
    """
    if precision == "bf16":
        return RoundedProducts()
    return _tensor_float32() if precision == "tf32" else nullcontext()


@contextmanager
def _tensor_float32() -> Iterator[None]:
    """TF32 by torch's own switch, of which there are two that do not bear each other."""
    switch: Any = torch.backends.cuda.matmul
    if hasattr(switch, "fp32_precision"):  # from 2.9 on
        before, switch.fp32_precision = switch.fp32_precision, "tf32"
        try:
            yield
        finally:
            switch.fp32_precision = before
        return
    setting = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(setting)


def _has_wide_output() -> bool:
    """Whether torch multiplies bf16 matrices into float32, as it does on GPUs from 2.8 on."""
    return hasattr(torch.ops.aten.mm, "dtype")


def to_bfloat16(factor: Tensor) -> Tensor:
    """A factor rounded to bfloat16; as float32 again where torch needs it so.

    Products of such values are exact in float32, so that both ways lead to the same sums.

    Parameters
    ----------
    factor : Tensor

    Returns
    -------
    Tensor

    Examples
    --------
    >>> to_bfloat16(torch.tensor([1.0, 1 / 3])).tolist()
    [1.0, 0.333984375]
    """
    rounded = factor.bfloat16()
    return rounded if factor.is_cuda and _has_wide_output() else rounded.float()


class RoundedProducts(TorchFunctionMode):
    """Products of two float32 matrices in this context, with their factors rounded first.

    Parameters
    ----------
    rounding : callable, default=to_bfloat16
        Gives a rounded copy of a factor.

    Notes
    -----
    A factor of several products, such as the weights, is rounded once, as long as nothing writes
    to it. Fused optimisers write without a sign of it: the context has to end with an update.

    Examples
    --------
    >>> weight = torch.full((2, 2), 0.1)
    >>> with RoundedProducts():
    ...     field = torch.addmm(torch.ones(2), torch.eye(2), weight)
    >>> field[0].tolist() == [1.10009765625] * 2
    True
    """

    def __init__(self, rounding: Callable[[Tensor], Tensor] = to_bfloat16) -> None:
        super().__init__()
        self._rounding = rounding
        # The source too, so that its address cannot go to another tensor meanwhile.
        self._rounded: dict[tuple[Any, ...], tuple[Tensor, int, Tensor]] = {}

    def __exit__(self, *error: Any) -> None:
        self._rounded.clear()
        super().__exit__(*error)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.addmm and self._narrows(*args[1:3]):
            return self._affine(*args, **kwargs)
        if func in _PRODUCTS and self._narrows(*args[:2]):
            product = self._product(*args[:2])
            out = kwargs.get("out")
            return product if out is None else out.copy_(product)
        return func(*args, **kwargs)

    @staticmethod
    def _narrows(*factors: Any) -> bool:
        return len(factors) == 2 and all(
            isinstance(f, Tensor) and f.dim() == 2 and f.dtype == torch.float32 for f in factors
        )

    def _affine(
        self,
        bias: Tensor,
        left: Tensor,
        right: Tensor,
        *,
        beta: float = 1.0,
        alpha: float = 1.0,
        out: Tensor | None = None,
    ) -> Tensor:
        bias = bias if beta == 1.0 else beta * bias
        return torch.add(bias, self._product(left, right), alpha=alpha, out=out)

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        left, right = self._round(left), self._round(right)
        if left.dtype == torch.bfloat16:
            return torch.mm(left, right, out_dtype=torch.float32)
        if left.is_cuda:
            # The factors have fewer bits than TF32 keeps: the same product, and as fast as that.
            with _tensor_float32():
                return torch.mm(left, right)
        return torch.mm(left, right)

    def _round(self, factor: Tensor) -> Tensor:
        # One copy for a matrix and its transpose.
        if factor.stride(0) == 1 and factor.stride(1) != 1:
            return self._round(factor.T).T
        key = factor.data_ptr(), factor.shape, factor.stride()
        source, version, rounded = self._rounded.get(key, (factor, -1, factor))
        if version != source._version:
            rounded = self._rounding(factor)
            self._rounded[key] = factor, factor._version, rounded
        return rounded


_PRODUCTS = (torch.mm, torch.matmul, Tensor.mm, Tensor.matmul, Tensor.__matmul__)

"""Layers that normalise over a batch, and the population statistics that prediction uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import batch_norm

from freenergy.distributed import ALONE, Group

__all__ = [
    "BatchNorm",
    "GhostBatchNorm",
    "of_whole_batches",
    "over_processes",
    "set_population_statistics",
]


class BatchNorm(nn.BatchNorm1d):
    r"""Torch's batch normalisation, for batches of any size.

    .. math:: y = \gamma\, \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    In training :math:`\mu, \sigma^2` are those of the batch, of which a running average is kept.
    A batch of one row has no variance: it is normalised by the running average, and changes
    nothing of it. Within :func:`over_processes` the batch is that of all processes.

    Parameters
    ----------
    num_features : int
    eps : float, default=1e-5
    momentum : float, default=0.1
        Share of the newest batch in the running averages (torch's convention).

    References
    ----------
    Ioffe and Szegedy, *Batch normalization*, ICML 2015.

    Examples
    --------
    >>> import torch
    >>> layer = BatchNorm(2)
    >>> layer(torch.tensor([[3.0, 4.0]])).shape
    torch.Size([1, 2])
    """

    group: Group = ALONE
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        """Normalised rows, shape (n, num_features)."""
        if self.training and self.group.size > 1:
            return self._of_all_processes(x)
        return self._by_running_averages(x) if self.training and len(x) < 2 else super().forward(x)

    def _by_running_averages(self, x: Tensor) -> Tensor:
        return batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )

    def _of_all_processes(self, x: Tensor) -> Tensor:
        n, mean, variance = _moments(x.detach(), self.group)
        if n < 2:
            return self._by_running_averages(x)
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            unbiased = variance * (n / (n - 1))
            self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)
        scale = (variance + self.eps).rsqrt()
        y: Tensor = _Standardised.apply(x, mean, scale, n, self.group)
        return (y * self.weight + self.bias).to(x.dtype)


def _moments(x: Tensor, group: Group) -> tuple[float, Tensor, Tensor]:
    """Number of the rows of all processes, their mean, and their variance with divisor n.

    Each process has a line of one table, so that one sum tells them all of each other's rows; sums
    of squares would lose a variance that is small beside the mean.
    """
    width = x.shape[1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    table = torch.zeros(group.size, 2 * width + 1, dtype=dtype, device=x.device)
    if len(x):
        variance, mean = torch.var_mean(x.to(dtype), 0, correction=0)
        table[group.rank] = torch.cat([mean, variance, mean.new_tensor([len(x)])])
    means, variances, counts = group.sum_(table).split([width, width, 1], 1)
    n = counts.sum()
    share = counts / n
    mean = (share * means).sum(0)
    return float(n), mean, (share * (variances + (means - mean).square())).sum(0)


class _Standardised(torch.autograd.Function):
    r"""Rows with the mean 0 and the variance 1 that they have together with those of others.

    The mean and the variance are functions of all rows :math:`x_i`, so that with
    :math:`y_i = s\,(x_i - \mu)` and the slopes :math:`g_i = \partial L / \partial y_i`

    .. math:: \frac{\partial L}{\partial x_i}
        = s\,\Bigl(g_i - \frac1n \sum_j g_j - \frac{y_i}n \sum_j g_j y_j\Bigr),

    where the sums go over the rows of all processes, and *L* is what these have in common: the sum
    of their losses.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, scale: Tensor, n: float, group: Group) -> Tensor:
        y = (x - mean) * scale
        ctx.save_for_backward(y, scale)
        ctx.n, ctx.group, ctx.dtype = n, group, x.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        y, scale = ctx.saved_tensors
        sums = ctx.group.sum_(torch.cat([slope.sum(0), (slope * y).sum(0)]))
        along_mean, along_scale = (sums / ctx.n).chunk(2)
        found = scale * (slope - along_mean - y * along_scale)
        return found.to(ctx.dtype), None, None, None, None


class GhostBatchNorm(BatchNorm):
    r"""Batch normalisation over small parts of each batch, whose noise regularises large batches.

    Several processes cut each its own part of the batch.

    A batch of *n* rows is cut into :math:`\max(1, \lfloor n / g \rfloor)` parts of nearly the same
    size, each normalised by its own mean and variance. The running averages take the parts one
    after the other, so that they are those of a training with batches of that size.

    Parameters
    ----------
    num_features : int
    ghost_batch_size : int, default=32
        :math:`g`, at least 2.
    eps : float, default=1e-5
    momentum : float, default=0.1

    Raises
    ------
    ValueError
        When ``ghost_batch_size`` is less than 2: one row has no variance.

    References
    ----------
    Hoffer, Hubara, Soudry, *Train longer, generalize better*, arXiv:1705.08741.

    Examples
    --------
    >>> import torch
    >>> layer = GhostBatchNorm(1, ghost_batch_size=2)
    >>> layer(torch.tensor([[0.0], [2.0], [10.0], [30.0]])).squeeze(1).round().tolist()
    [-1.0, 1.0, -1.0, 1.0]
    """

    def __init__(
        self,
        num_features: int,
        ghost_batch_size: int = 32,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        if ghost_batch_size < 2:
            raise ValueError(f"ghost_batch_size must be at least 2, got {ghost_batch_size}")
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.ghost_batch_size = ghost_batch_size

    def forward(self, x: Tensor) -> Tensor:
        """Normalised rows, shape (n, num_features)."""
        n_parts = len(x) // self.ghost_batch_size
        if not self.training or n_parts < 2:
            return super().forward(x)
        return torch.cat([super(GhostBatchNorm, self).forward(p) for p in x.tensor_split(n_parts)])


def of_whole_batches(net: nn.Module) -> list[BatchNorm]:
    """The layers of a net that normalise over all rows of a batch.

    Examples
    --------
    >>> found = of_whole_batches(nn.Sequential(BatchNorm(3), nn.Linear(3, 2), GhostBatchNorm(2)))
    >>> [layer.num_features for layer in found]
    [3]
    """
    found = (layer for layer in net.modules() if isinstance(layer, BatchNorm))
    return [layer for layer in found if not isinstance(layer, GhostBatchNorm)]


@contextmanager
def over_processes(layers: Sequence[BatchNorm], group: Group) -> Iterator[None]:
    """Normalise in training over the rows that all processes have together.

    Every process has to go through the layers, forwards and backwards and as often as the others,
    also one that has no rows. What is followed down must be the sum of the losses of all.

    Parameters
    ----------
    layers : sequence of BatchNorm
        As :func:`of_whole_batches` gives them.
    group : Group
    """
    for layer in layers:
        layer.group = group
    try:
        yield
    finally:
        for layer in layers:
            del layer.group


@torch.no_grad()
def set_population_statistics(net: nn.Sequential, blocks: Iterable[Tensor]) -> None:
    r"""Give each batch normalisation the exact mean and unbiased variance of all rows.

    .. math:: \mu = \frac1n \sum_i x_i, \qquad \sigma^2 = \frac1{n-1} \sum_i (x_i - \mu)^2

    Layer by layer, each behind layers that use their own exact statistics already: what prediction
    computes is then normalised exactly on these rows, however training cut them into batches. For
    ghost batches too it is the statistics of all rows that are stored, whose variance is what the
    unbiased variance of a ghost batch estimates. Sums are in double precision. With a single row,
    the running averages stay.

    Parameters
    ----------
    net : torch.nn.Sequential
        Left in evaluation mode.
    blocks : iterable of Tensor of shape (n_block, n_features)
        The rows, in parts.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Sequential(BatchNorm(1))
    >>> set_population_statistics(net, [torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0]])])
    >>> net[0].running_mean, net[0].running_var
    (tensor([3.]), tensor([7.]))
    """
    net.eval()
    pending: list[nn.Module] = []
    for layer in net:
        if isinstance(layer, nn.BatchNorm1d):
            before = nn.Sequential(*pending)
            blocks = [before(block) for block in blocks]
            _set_statistics(layer, blocks)
            pending = []
        pending.append(layer)


def _set_statistics(layer: nn.BatchNorm1d, blocks: list[Tensor]) -> None:
    n = sum(len(block) for block in blocks)
    if n < 2 or layer.running_mean is None or layer.running_var is None:
        return
    mean = torch.stack([b.sum(0, dtype=torch.float64) for b in blocks]).sum(0) / n
    squares = torch.stack([(b - mean).square().sum(0) for b in blocks]).sum(0)
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(squares / (n - 1))

"""Layers that normalise over a batch, and the population statistics that prediction uses."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

__all__ = ["BatchNorm", "GhostBatchNorm", "set_population_statistics"]


class BatchNorm(nn.BatchNorm1d):
    r"""Torch's batch normalisation, for batches of any size.

    .. math:: y = \gamma\, \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    In training :math:`\mu, \sigma^2` are those of the batch, of which a running average is kept.
    A batch of one row has no variance: it is normalised by the running average, and changes
    nothing of it.

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

    def forward(self, x: Tensor) -> Tensor:
        """Normalised rows, shape (n, num_features)."""
        if self.training and len(x) < 2:
            return batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)


class GhostBatchNorm(BatchNorm):
    r"""Batch normalisation over small parts of each batch, whose noise regularises large batches.

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

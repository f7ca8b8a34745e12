"""Constraints on weights: exact projections and rescalings, the temperature control of a model."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["CONSTRAINTS", "apply_constraint", "project_l1", "project_l2", "rescale_norm"]


def project_l2(weight: Tensor, max_norm: float, dim: int = 0) -> Tensor:
    r"""Euclidean projection of each unit's weight vector on the L2 ball of radius ``max_norm``.

    .. math:: w \to w \min(1, c / \lVert w \rVert_2)

    Parameters
    ----------
    weight : Tensor
    max_norm : float
        Radius :math:`c > 0`.
    dim : int, default=0
        The dimension that runs over a unit's incoming weights.

    Returns
    -------
    Tensor
        Vectors inside the ball are returned to the bit.

    Examples
    --------
    >>> import torch
    >>> project_l2(torch.tensor([[3.0, 0.3], [4.0, 0.4]]), 1.0)
    tensor([[0.6000, 0.3000],
            [0.8000, 0.4000]])
    """
    norm = torch.linalg.vector_norm(weight, dim=dim, keepdim=True)
    inside = norm <= max_norm * (1 + _slack(weight, dim))
    return torch.where(inside, weight, weight * (max_norm / norm.clamp(min=max_norm)))


def project_l1(weight: Tensor, max_norm: float, dim: int = 0) -> Tensor:
    r"""Euclidean projection of each unit's weight vector on the L1 ball of radius ``max_norm``.

    Soft thresholding :math:`w \to \operatorname{sign}(w) \max(|w| - \theta, 0)`, with the
    :math:`\theta` that brings :math:`\lVert w \rVert_1` to ``max_norm``.

    Parameters
    ----------
    weight : Tensor
    max_norm : float
        Radius, positive.
    dim : int, default=0
        The dimension that runs over a unit's incoming weights.

    Returns
    -------
    Tensor
        Vectors inside the ball are returned to the bit.

    References
    ----------
    Duchi et al., *Efficient projections onto the l1-ball for learning in high dimensions*,
    ICML 2008.

    Examples
    --------
    >>> import torch
    >>> project_l1(torch.tensor([[3.0], [-1.0]]), 2.0, dim=0)
    tensor([[2.],
            [-0.]])
    """
    magnitude = weight.abs()
    norm = magnitude.sum(dim=dim, keepdim=True)
    # Measured from the largest entry, of which a difference of c is left at most: sums of entries
    # far beyond c would lose c to rounding.
    below = magnitude - magnitude.amax(dim=dim, keepdim=True)
    n = weight.shape[dim]
    descending = below.sort(dim=dim, descending=True).values
    shape = [1] * weight.dim()
    shape[dim] = n
    rank = torch.arange(1, n + 1, device=weight.device, dtype=weight.dtype).view(shape)
    excess = (descending.cumsum(dim) - max_norm) / rank
    kept = (descending > excess) & (descending > -max_norm)
    theta = excess.gather(dim, kept.sum(dim=dim, keepdim=True).clamp(min=1) - 1)
    shrunk = (below - theta).clamp(min=0)
    # What rounding left of a difference to c, after sums over many terms.
    shrunk *= max_norm / shrunk.sum(dim=dim, keepdim=True)
    inside = norm <= max_norm * (1 + _slack(weight, dim))
    return torch.where(inside, weight, weight.sign() * shrunk)


def _slack(weight: Tensor, dim: int) -> float:
    """Relative rounding of a norm over n terms: within it a projection leaves its own result."""
    return 4 * weight.shape[dim] ** 0.5 * torch.finfo(weight.dtype).eps


def rescale_norm(weight: Tensor, norm: float) -> Tensor:
    r"""Rescale a whole matrix to a fixed Frobenius norm, :math:`W \to c W / \lVert W \rVert_F`.

    The norm of the couplings is an inverse temperature; holding it fixed holds the temperature.

    Raises
    ------
    ValueError
        When the matrix is zero, which no factor can rescale.

    Examples
    --------
    >>> import torch
    >>> rescale_norm(torch.tensor([[3.0, 4.0]]), 10.0)
    tensor([[6., 8.]])
    """
    current = torch.linalg.vector_norm(weight)
    if current == 0:
        raise ValueError("a zero weight matrix cannot be rescaled to a norm")
    return weight * (norm / current)


CONSTRAINTS = ("l1", "l2", "frobenius")
"""Names that :func:`apply_constraint` knows."""


@torch.no_grad()
def apply_constraint(weight: Tensor, constraint: str | None, max_norm: float, dim: int = 0) -> None:
    """Constrain a weight matrix in place: ``"l1"`` or ``"l2"`` per unit, ``"frobenius"`` whole.

    Parameters
    ----------
    weight : Tensor
    constraint : {"l1", "l2", "frobenius"} or None
        None leaves the weights alone.
    max_norm : float
        Largest norm of a unit's vector, or the fixed norm of the matrix.
    dim : int, default=0
        The dimension that runs over a unit's incoming weights.

    Raises
    ------
    ValueError
        When the constraint is not known.
    """
    if constraint is None:
        return
    if constraint == "l1":
        constrained = project_l1(weight, max_norm, dim)
    elif constraint == "l2":
        constrained = project_l2(weight, max_norm, dim)
    elif constraint == "frobenius":
        constrained = rescale_norm(weight, max_norm)
    else:
        known = ", ".join(repr(name) for name in CONSTRAINTS)
        raise ValueError(f"unknown weight_constraint {constraint!r}: use one of {known} or None")
    weight.copy_(constrained)

"""What the Plefka (TAP) expansion adds to the field on a unit, for any unit types."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from freenergy.models.units import Unit

__all__ = ["add_reaction", "check_order"]


def check_order(order: int) -> None:
    """Refuse an order of the expansion that is not 1, 2 or 3.

    Parameters
    ----------
    order : int

    Raises
    ------
    ValueError

    Examples
    --------
    >>> check_order(4)
    Traceback (most recent call last):
        ...
    ValueError: order must be 1, 2 or 3, got 4
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order!r}")


def add_reaction(
    field: Tensor,
    powers: Sequence[Tensor],
    unit: Unit,
    mean: Tensor,
    other_unit: Unit,
    other_mean: Tensor,
    beta: float,
) -> Tensor:
    r"""Add the terms beyond first order to the mean field on one layer, in place.

    The field on a unit at mean :math:`m_i`, made stationary with the other layer held fixed, is

    .. math::

        \beta \Big(b_i + \sum_j W_{ij} m_j\Big)
        + \frac{\beta^2}{2} \kappa_2'(m_i) \sum_j W_{ij}^2 \kappa_2(m_j)
        + \frac{\beta^3}{6} \kappa_3'(m_i) \sum_j W_{ij}^3 \kappa_3(m_j)

    with primes for derivatives in the mean; the first term is what ``field`` comes with.

    Parameters
    ----------
    field : Tensor of shape (..., n)
        First-order field on the layer; changed in place, differentiable all the same.
    powers : sequence of Tensor of shape (n_other, n)
        The couplings, then their squares and cubes elementwise: as many as the order.
    unit, other_unit : Unit
        Types of the units of this layer and of the other one.
    mean : Tensor of shape (..., n)
        Magnetisations of this layer.
    other_mean : Tensor of shape (..., n_other)
        Magnetisations of the other layer.
    beta : float
        Inverse temperature.

    Returns
    -------
    Tensor of shape (..., n)
        ``field`` itself.

    References
    ----------
    Georges and Yedidia, *How to expand around mean-field theory*, J. Phys. A 24, 1991.

    Examples
    --------
    At order 1 the field is complete; at order 2 the other unit reacts to this one:

    >>> import torch
    >>> from freenergy.models import Bernoulli
    >>> W, unit = torch.tensor([[2.0]]), Bernoulli()
    >>> m, other = torch.tensor([0.25]), torch.tensor([0.5])
    >>> add_reaction(torch.zeros(1), [W], unit, m, unit, other, 1.0)
    tensor([0.])
    >>> add_reaction(torch.zeros(1), [W, W**2], unit, m, unit, other, 1.0)
    tensor([0.2500])
    """
    if len(powers) >= 2:
        reaction = other_unit.cumulant2(other_mean) @ powers[1]
        field.addcmul_(unit.cumulant2_slope(mean), reaction, value=0.5 * beta**2)
    if len(powers) >= 3:
        reaction = other_unit.cumulant3(other_mean) @ powers[2]
        field.addcmul_(unit.cumulant3_slope(mean), reaction, value=beta**3 / 6)
    return field

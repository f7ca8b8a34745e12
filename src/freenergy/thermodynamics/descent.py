"""Descents of the energy at zero temperature, to the minima that end them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from freenergy.arrays import as_tensor
from freenergy.models import RBM, Unit

__all__ = ["Descent", "descend"]


@dataclass(frozen=True, eq=False)
class Descent:
    """Where zero-temperature descents of the energy ended, one per start.

    Attributes
    ----------
    visible : Tensor of shape (n_starts, n_visible)
    hidden : Tensor of shape (n_starts, n_hidden)
    energy : Tensor of shape (n_starts,)
        :math:`E(v, h)`, in double precision like the states.
    n_sweeps : Tensor of int, shape (n_starts,)
        The last sweep that changed anything.
    converged : Tensor of bool, shape (n_starts,)
        Whether the last sweep made changed nothing: then no single flip lowers the energy.
    flat : Tensor of bool, shape (n_starts,)
        Whether some flip costs nothing: the end is one of several states of a plateau.
    """

    visible: Tensor
    hidden: Tensor
    energy: Tensor
    n_sweeps: Tensor
    converged: Tensor
    flat: Tensor

    def __repr__(self) -> str:
        n = len(self.energy)
        return (
            f"Descent(n_starts={n}, energy={float(self.energy.min()):.6g}.."
            f"{float(self.energy.max()):.6g}, converged={int(self.converged.sum())}/{n}, "
            f"flat={int(self.flat.sum())}, n_sweeps={int(self.n_sweeps.max())})"
        )


@torch.no_grad()
def descend(model: RBM, start: ArrayLike | Tensor, *, max_sweeps: int = 10_000) -> Descent:
    r"""Descend the energy of an RBM at zero temperature, one layer at a time.

    .. math:: h \leftarrow \arg\min_h E(v, h), \qquad v \leftarrow \arg\min_v E(v, h),

    in turn, until nothing changes. Units of one layer are not coupled, so each half-step is exact:
    a unit takes the end of its range on the side of its field, and the energy never rises. At the
    end no flip of a single unit lowers it. A unit without field, up to the rounding of its sum,
    takes the low end, so that a tie between two states always ends in the same one.

    Parameters
    ----------
    model : RBM
        Its parameters are used in double precision.
    start : array-like or Tensor of shape (n_starts, n_visible)
        Visible states to start from; values between the ends of the range are as good.
    max_sweeps : int, default=10000
        Largest number of sweeps. A handful to some dozens suffice.

    Returns
    -------
    Descent

    Raises
    ------
    ValueError
        For parameters that are not finite, a start of the wrong shape or out of range, or
        ``max_sweeps`` below 1.

    References
    ----------
    Hopfield, *Neural networks and physical systems with emergent collective computational
    abilities*, PNAS 79, 1982.

    Examples
    --------
    Eight spins that follow one hidden spin end up or down:

    >>> from freenergy.models import RBM
    >>> rbm = RBM(8, 1, visible="spin", hidden="spin")
    >>> _ = torch.nn.init.constant_(rbm.weight, 1.5)
    >>> end = descend(rbm, [[1.0] * 5 + [-1.0] * 3, [1.0] * 3 + [-1.0] * 5])
    >>> end.hidden.flatten().tolist(), end.energy.tolist()
    ([1.0, -1.0], [-12.0, -12.0])
    """
    if max_sweeps < 1:
        raise ValueError(f"max_sweeps must be at least 1, got {max_sweeps}")
    model = in_double(model)
    v = check_start(model, start)
    h = _lowest(model.hidden, model.hidden_field(v), _rounding(model, hidden=True))
    n_sweeps = torch.zeros(len(v), dtype=torch.long, device=v.device)
    changed = torch.ones_like(n_sweeps, dtype=torch.bool)
    visible_noise, hidden_noise = _rounding(model, hidden=False), _rounding(model, hidden=True)
    for sweep in range(1, max_sweeps + 1):
        new_v = _lowest(model.visible, model.visible_field(h), visible_noise)
        new_h = _lowest(model.hidden, model.hidden_field(new_v), hidden_noise)
        changed = (new_v != v).any(-1) | (new_h != h).any(-1)
        v, h = new_v, new_h
        n_sweeps[changed] = sweep
        if not bool(changed.any()):
            break
    flat = (model.visible_field(h).abs() <= visible_noise).any(-1)
    flat |= (model.hidden_field(v).abs() <= hidden_noise).any(-1)
    return Descent(v, h, model.energy(v, h), n_sweeps, ~changed, flat)


def in_double(model: RBM) -> RBM:
    """The model in double precision, where the fields of states are exact or nearly."""
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        raise ValueError("the model has parameters that are not finite")
    return model if model.weight.dtype == torch.float64 else copy.deepcopy(model).double()


def check_start(model: RBM, start: ArrayLike | Tensor) -> Tensor:
    """Visible states in the model's precision, if they lie in the range of its units."""
    visible = as_tensor(start, "start", model.weight)
    if visible.dim() != 2 or visible.shape[1] != model.n_visible or len(visible) == 0:
        raise ValueError(
            f"start must have shape (n_starts, {model.n_visible}), got {tuple(visible.shape)}"
        )
    low, high = end_values(model.visible)
    if not bool(((visible >= low) & (visible <= high)).all()):
        raise ValueError(f"start must hold states, in [{low:g}, {high:g}]")
    return visible


def end_values(unit: Unit) -> tuple[float, float]:
    """Lowest and highest value of a unit."""
    return min(unit.support), max(unit.support)


def _lowest(unit: Unit, field: Tensor, noise: Tensor) -> Tensor:
    """The values of least energy in these fields, the low one where the field is noise."""
    low, high = end_values(unit)
    return torch.where(field > noise, high, low).to(field.dtype)


def _rounding(model: RBM, *, hidden: bool) -> Tensor:
    r"""Bound on the rounding error of every unit's field, :math:`n\epsilon(|b| + \sum |W x|)`."""
    weight, bias = model.weight.abs(), (model.hidden_bias if hidden else model.visible_bias).abs()
    reach = max(abs(x) for x in (model.visible if hidden else model.hidden).support)
    total = bias + reach * weight.sum(0 if hidden else 1)
    n_terms = 1 + weight.shape[0 if hidden else 1]
    return n_terms * torch.finfo(weight.dtype).eps * total

"""Unit types: what one unit may be, its statistics in a field, and how it is sampled.

The restricted Boltzmann machine, Gibbs sampling and the mean-field expansions are written once,
against :class:`Unit`. A new type is a new subclass in this file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import softplus

from freenergy.random import RandomStream

__all__ = ["Bernoulli", "BinaryUnit", "Spin", "Unit", "get_unit"]


class Unit(ABC):
    r"""A kind of unit :math:`x`, with its statistics in a field.

    In a field :math:`f` and under a tilt :math:`A` the unit follows

    .. math:: p(x) = e^{f x - A x^2 / 2} / z(f, A),

    where the sum (or integral) runs over the unit's values. The field already carries the
    inverse temperature: in an RBM it is :math:`\beta (b_j + \sum_i v_i W_{ij})`. A tilt is what
    adaptive mean-field theories add to a unit, and the stiffness of one that has its own; a binary
    unit in a Gibbs chain has none.

    Every method works elementwise on tensors of any shape.
    """

    name: str
    support: tuple[float, ...]
    """The values that the unit takes, for exact enumeration and range checks."""

    @abstractmethod
    def log_partition(self, field: Tensor, tilt: Tensor | None = None) -> Tensor:
        r""":math:`\ln z(f, A) = \ln \sum_x e^{f x - A x^2 / 2}`."""

    @abstractmethod
    def mean(self, field: Tensor, tilt: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        r""":math:`\langle x \rangle = \partial \ln z / \partial f`."""

    @abstractmethod
    def variance(self, field: Tensor, tilt: Tensor | None = None) -> Tensor:
        r""":math:`\langle x^2 \rangle - \langle x \rangle^2 = \partial^2 \ln z / \partial f^2`."""

    @abstractmethod
    def sample(self, field: Tensor, random: RandomStream, out: Tensor | None = None) -> Tensor:
        """Draw each unit independently in its field (``out`` may be the field itself)."""

    @abstractmethod
    def field(self, mean: Tensor) -> Tensor:
        """The field that gives this mean, the inverse of :meth:`mean`."""

    @abstractmethod
    def entropy(self, mean: Tensor) -> Tensor:
        r"""Entropy of a free unit held at this mean, :math:`\ln z(f) - f m` at ``f = field(m)``."""

    @abstractmethod
    def cumulant2(self, mean: Tensor) -> Tensor:
        r"""Second cumulant :math:`\kappa_2` as a function of the mean."""

    @abstractmethod
    def cumulant3(self, mean: Tensor) -> Tensor:
        r"""Third cumulant :math:`\kappa_3` as a function of the mean."""

    @abstractmethod
    def cumulant2_slope(self, mean: Tensor) -> Tensor:
        r""":math:`\partial\kappa_2/\partial m = \kappa_3 / \kappa_2`, finite at saturation."""

    @abstractmethod
    def cumulant3_slope(self, mean: Tensor) -> Tensor:
        r""":math:`\partial\kappa_3/\partial m = \kappa_4 / \kappa_2`, finite at saturation."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


class BinaryUnit(Unit):
    r"""A unit with two values, :math:`x = \ell + s t` with :math:`t \in \{0, 1\}`.

    Its square is an affine function of itself, so a tilt only shifts the field,
    :math:`f \to f - A (2\ell + s) / 2`, and the mean fixes every cumulant.
    """

    low: float
    span: float

    def log_partition(self, field: Tensor, tilt: Tensor | None = None) -> Tensor:
        # Beyond its threshold softplus is x itself: the default, 20, would be 2e-9 off.
        shifted = self.span * self._shifted(field, tilt)
        value = self.low * field + softplus(shifted, threshold=40.0)
        return value if tilt is None else value - (0.5 * self.low**2) * tilt

    def mean(self, field: Tensor, tilt: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        active = torch.sigmoid(self._scaled(self._shifted(field, tilt)), out=out)
        if self.span != 1.0:
            active = torch.mul(active, self.span, out=out)
        return active if self.low == 0.0 else torch.add(active, self.low, out=out)

    def variance(self, field: Tensor, tilt: Tensor | None = None) -> Tensor:
        # σ(x)σ(−x) keeps its relative accuracy where σ(x)(1 − σ(x)) rounds to zero.
        x = self._scaled(self._shifted(field, tilt))
        return self.span**2 * torch.sigmoid(x) * torch.sigmoid(-x)

    def sample(self, field: Tensor, random: RandomStream, out: Tensor | None = None) -> Tensor:
        active = random.bernoulli_(torch.sigmoid(self._scaled(field), out=out))
        if self.span != 1.0:
            active = active.mul_(self.span)
        return active if self.low == 0.0 else active.add_(self.low)

    def field(self, mean: Tensor) -> Tensor:
        return torch.logit((mean - self.low) / self.span) / self.span

    def entropy(self, mean: Tensor) -> Tensor:
        p = (mean - self.low) / self.span
        return torch.special.entr(p) + torch.special.entr(1.0 - p)

    def cumulant2(self, mean: Tensor) -> Tensor:
        above = mean if self.low == 0.0 else mean - self.low
        return ((self.low + self.span) - mean) * above

    def cumulant3(self, mean: Tensor) -> Tensor:
        return self.cumulant2(mean) * self.cumulant2_slope(mean)

    def cumulant2_slope(self, mean: Tensor) -> Tensor:
        return torch.sub(2.0 * self.low + self.span, mean, alpha=2.0)

    def cumulant3_slope(self, mean: Tensor) -> Tensor:
        return self.span**2 - 6.0 * self.cumulant2(mean)

    def _scaled(self, field: Tensor) -> Tensor:
        return field if self.span == 1.0 else self.span * field

    def _shifted(self, field: Tensor, tilt: Tensor | None) -> Tensor:
        shift = self.low + 0.5 * self.span
        return field if tilt is None or shift == 0.0 else torch.sub(field, tilt, alpha=shift)


class Bernoulli(BinaryUnit):
    r"""A unit that is 0 or 1: :math:`\ln z = \ln(1 + e^f)`, mean :math:`\sigma(f)`.

    Examples
    --------
    >>> import torch
    >>> unit = Bernoulli()
    >>> unit.mean(torch.tensor([0.0, 2.0]))
    tensor([0.5000, 0.8808])
    >>> unit.log_partition(torch.tensor(0.0))
    tensor(0.6931)
    """

    name = "bernoulli"
    support = (0.0, 1.0)
    low = 0.0
    span = 1.0


class Spin(BinaryUnit):
    r"""A unit that is −1 or +1: :math:`\ln z = \ln 2\cosh f`, mean :math:`\tanh f`.

    Examples
    --------
    >>> import torch
    >>> unit = Spin()
    >>> unit.mean(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 0.7616])
    >>> unit.cumulant2(torch.tensor(0.5))
    tensor(0.7500)
    """

    name = "spin"
    support = (-1.0, 1.0)
    low = -1.0
    span = 2.0


_UNITS: dict[str, type[Unit]] = {"bernoulli": Bernoulli, "spin": Spin}


def get_unit(unit: str | Unit) -> Unit:
    """The unit type of that name; a :class:`Unit` is returned as it is.

    Raises
    ------
    ValueError
        When no unit type has that name.

    Examples
    --------
    >>> get_unit("spin")
    Spin()
    """
    if isinstance(unit, Unit):
        return unit
    if unit not in _UNITS:
        known = ", ".join(repr(name) for name in _UNITS)
        raise ValueError(f"unknown unit type {unit!r}: use one of {known}, or a Unit object")
    return _UNITS[unit]()

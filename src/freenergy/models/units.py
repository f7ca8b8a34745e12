"""Unit types: what one unit may be, its statistics in a field, and how it is sampled.

The restricted Boltzmann machine, Gibbs sampling and the mean-field expansions are written once,
against :class:`Unit`. A new type is a new subclass in this file.
"""

from __future__ import annotations

import math
import numbers
import re
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from freenergy.random import RandomStream

__all__ = ["Bernoulli", "BinaryUnit", "Binomial", "Spin", "Unit", "draw_category", "get_unit"]

_MAX_BINOMIAL = 255
# Newton's method on the logit of the mean converges from one side; for n = 255 the eighth step
# is the last that changes anything.
_NEWTON_STEPS = 9


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


class Binomial(Unit):
    r"""A unit that takes the values 0, 1, ..., n with equal weights.

    .. math:: \ln z(f) = \ln \sum_{x=0}^{n} e^{f x} = \ln \frac{1 - e^{(n + 1) f}}{1 - e^f}

    A sum of *n* independent 0/1 units has the same values with binomial weights, and is another
    unit. For :math:`n = 2^k - 1` this one is the number that *k* independent 0/1 units write in
    base two: in an RBM it stands for *k* of them with couplings :math:`W, 2W, 4W, \dots`

    Every method sums over the values; the cumulants as functions of the mean find its field first.

    Parameters
    ----------
    n : int
        Largest value, from 1 (a :class:`Bernoulli` unit) to 255.

    Raises
    ------
    ValueError
        When ``n`` is not a whole number from 1 to 255.

    References
    ----------
    Cherla, Tran, d'Avila Garcez, Weyde, *Generalising the discriminative restricted Boltzmann
    machine*, arXiv:1604.01806.

    Examples
    --------
    >>> import torch
    >>> unit = Binomial(4)
    >>> unit.mean(torch.tensor([-1e4, 0.0, 1.0]))
    tensor([0.0000, 2.0000, 3.4519])
    >>> unit.log_partition(torch.tensor(0.0)).exp()
    tensor(5.)
    """

    def __init__(self, n: int) -> None:
        whole = isinstance(n, numbers.Integral) and not isinstance(n, bool)
        if not whole or not 1 <= n <= _MAX_BINOMIAL:
            raise ValueError(
                f"the largest value of a binomial unit must be a whole number from 1 to "
                f"{_MAX_BINOMIAL}, got {n!r}"
            )
        self.n = int(n)
        self.name = f"binomial({self.n})"
        self.support = tuple(float(x) for x in range(self.n + 1))

    def log_partition(self, field: Tensor, tilt: Tensor | None = None) -> Tensor:
        exponent = self._exponent(field, tilt)
        # Not torch.logsumexp: its derivative is exp(exponent - ln z), which rounds at the size of
        # ln z; here every difference is from the largest exponent.
        top = exponent.detach().amax(0)
        return top + (exponent - top).exp().sum(0).log()

    def mean(self, field: Tensor, tilt: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        mean = (self._probability(field, tilt) * self._values(field)).sum(0)
        # Rounding could take the sum above n, where no field would give it back.
        mean = mean.clamp(max=self.n)
        return mean if out is None else out.copy_(mean)

    def variance(self, field: Tensor, tilt: Tensor | None = None) -> Tensor:
        return self._central_moment(2, field, tilt)

    def sample(self, field: Tensor, random: RandomStream, out: Tensor | None = None) -> Tensor:
        draws = draw_category(self._exponent(field, None), random, dim=0)
        return draws.to(field.dtype) if out is None else out.copy_(draws)

    def field(self, mean: Tensor) -> Tensor:
        return _FieldOfMean.apply(mean, self)

    def entropy(self, mean: Tensor) -> Tensor:
        # The same on both sides of n/2; below it ln z is small, and loses nothing to f m.
        folded = torch.minimum(mean, self.n - mean)
        field = self._finite_field(folded)
        return self.log_partition(field) - field * folded

    def cumulant2(self, mean: Tensor) -> Tensor:
        return self.variance(self._finite_field(mean))

    def cumulant3(self, mean: Tensor) -> Tensor:
        return self._central_moment(3, self._finite_field(mean))

    def cumulant2_slope(self, mean: Tensor) -> Tensor:
        field = self._unsaturated_field(mean)
        return self._central_moment(3, field) / self.variance(field)

    def cumulant3_slope(self, mean: Tensor) -> Tensor:
        field = self._unsaturated_field(mean)
        variance = self.variance(field)
        return self._central_moment(4, field) / variance - 3.0 * variance

    def __repr__(self) -> str:
        return f"Binomial({self.n})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Binomial) and self.n == other.n

    def __hash__(self) -> int:
        return hash((Binomial, self.n))

    def solve_field(self, mean: Tensor) -> Tensor:
        r"""The field of a mean, without a derivative of its own; :meth:`field` has one.

        Below :math:`n/2` the function :math:`\operatorname{logit}(m(f)/n)` is convex and lies
        above its asymptote :math:`f - \ln n`, so that Newton's method comes down to the root from
        the asymptote's. Above :math:`n/2` the field is that of :math:`n - m` with its sign turned.
        """
        folded = torch.minimum(mean, self.n - mean)
        logit = torch.log(folded) - torch.log(self.n - folded)
        asymptote = logit + math.log(self.n)
        saturated = folded < torch.finfo(mean.dtype).tiny
        target = torch.where(saturated, 0.0, logit)
        field = torch.where(saturated, 0.0, asymptote).clamp(max=0.0)
        for _ in range(_NEWTON_STEPS):
            m = self.mean(field)
            slope = self.n * self.variance(field) / (m * (self.n - m))
            field = field - (torch.log(m) - torch.log(self.n - m) - target) / slope
        field = torch.where(saturated, asymptote, field)
        return torch.where(mean > folded, -field, field)

    def _finite_field(self, mean: Tensor) -> Tensor:
        """The field of a mean, so far out at saturation that one value has all the weight."""
        bound = torch.finfo(mean.dtype).max / (2 * self.n)
        return self.field(mean).clamp(-bound, bound)

    def _unsaturated_field(self, mean: Tensor) -> Tensor:
        """The field of a mean, so near at saturation that the second value has some weight."""
        bound = -0.9 * math.log(torch.finfo(mean.dtype).tiny)
        return self.field(mean).clamp(-bound, bound)

    def _central_moment(self, order: int, field: Tensor, tilt: Tensor | None = None) -> Tensor:
        probability, values = self._probability(field, tilt), self._values(field)
        deviation = values - (probability * values).sum(0)
        return (probability * deviation**order).sum(0)

    def _probability(self, field: Tensor, tilt: Tensor | None = None) -> Tensor:
        """Of each value, along a new first dimension."""
        return torch.softmax(self._exponent(field, tilt), 0)

    def _exponent(self, field: Tensor, tilt: Tensor | None) -> Tensor:
        values = self._values(field)
        return field * values if tilt is None else field * values - 0.5 * tilt * values**2

    def _values(self, like: Tensor) -> Tensor:
        values = torch.arange(self.n + 1, dtype=like.dtype, device=like.device)
        return values.view(-1, *[1] * like.dim())


class _FieldOfMean(torch.autograd.Function):
    """The inverse of a unit's mean, with the derivative of an inverse."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, unit: Binomial) -> Tensor:
        field = unit.solve_field(mean)
        ctx.unit = unit
        ctx.save_for_backward(field)
        return field

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (field,) = ctx.saved_tensors
        return gradients[0] / ctx.unit.variance(field), None


def draw_category(logit: Tensor, random: RandomStream, dim: int = -1) -> Tensor:
    r"""Draw indices along a dimension with probabilities :math:`\propto e^{\text{logit}}`.

    Parameters
    ----------
    logit : Tensor
        Log-weights; their sum along ``dim`` need not be normalised.
    random : RandomStream
        One uniform draw is taken for each index.
    dim : int, default=-1
        The categories; the result is without it.

    Returns
    -------
    Tensor of int64

    Examples
    --------
    >>> import torch
    >>> draw_category(torch.tensor([[0.0, -1e4, -1e4], [-1e4, -1e4, 0.0]]), RandomStream(0))
    tensor([0, 2])
    """
    cumulative = torch.softmax(logit, dim).cumsum(dim)
    n = logit.shape[dim]
    # Relative to the last, so that a category without weight is not drawn for a rounding error.
    edges = cumulative.narrow(dim, 0, n - 1) / cumulative.narrow(dim, n - 1, 1)
    draws = random.uniform_(torch.empty_like(cumulative.select(dim, 0)))
    return (draws.unsqueeze(dim) >= edges).sum(dim)


_UNITS: dict[str, type[Unit]] = {"bernoulli": Bernoulli, "spin": Spin}


def get_unit(unit: str | Unit) -> Unit:
    """The unit type of that name; a :class:`Unit` is returned as it is.

    Parameters
    ----------
    unit : str or Unit
        ``"bernoulli"``, ``"spin"`` or ``"binomial(n)"``.

    Returns
    -------
    Unit

    Raises
    ------
    ValueError
        When no unit type has that name.

    Examples
    --------
    >>> get_unit("spin"), get_unit("binomial(4)")
    (Spin(), Binomial(4))
    """
    if isinstance(unit, Unit):
        return unit
    if unit in _UNITS:
        return _UNITS[unit]()
    if match := re.fullmatch(r"binomial\(([0-9]+)\)", unit):
        return Binomial(int(match[1]))
    known = ", ".join(repr(name) for name in _UNITS)
    raise ValueError(
        f"unknown unit type {unit!r}: use one of {known}, 'binomial(n)' with n a number, or a "
        "Unit object"
    )

r"""Extended mean field: the Plefka (TAP) expansion of the free energy to third order.

The free energy of a model held at given magnetisations is expanded in the inverse temperature:

.. math::

    \beta\Gamma(m) = -S_0(m) - \beta\,(a \cdot m^v + b \cdot m^h + m^v W m^h)
        - \frac{\beta^2}{2} \sum_{ij} W_{ij}^2 \kappa_2(m_i) \kappa_2(m_j)
        - \frac{\beta^3}{6} \sum_{ij} W_{ij}^3 \kappa_3(m_i) \kappa_3(m_j)

with :math:`S_0` the entropy of free units at these means and :math:`\kappa_2, \kappa_3` their
cumulants, which for 0/1 units are :math:`c = m(1-m)` and :math:`2c(\tfrac12 - m)`. A bipartite
graph has no triangles, so nothing else enters below fourth order, whatever the unit type. At a
minimum over the magnetisations :math:`\beta\Gamma \approx -\ln Z`; this is no bound.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from freenergy.arrays import as_tensor
from freenergy.models import RBM, Unit
from freenergy.models.plefka import add_reaction, check_order

__all__ = [
    "MeanField",
    "MeanFieldGradient",
    "MeanFieldWarning",
    "NegativeEntropyWarning",
    "NotConvergedWarning",
    "PlefkaExpansion",
    "mean_field",
    "mean_field_gradient",
]


class MeanFieldWarning(UserWarning):
    """The mean-field expansion should not be trusted for this model at this temperature."""


class NotConvergedWarning(MeanFieldWarning):
    """The fixed-point iteration stopped before it reached its tolerance."""


class NegativeEntropyWarning(MeanFieldWarning):
    """The entropy came out negative: the coupling is too strong for the expansion."""


@dataclass(frozen=True, eq=False)
class MeanField:
    r"""Mean-field states of a model, one per start.

    The split into energy and entropy is the thermodynamic one, :math:`U = \partial(\beta\Gamma)
    / \partial\beta` and :math:`S = \beta(U - \Gamma)`: with :math:`O_n` the order-*n* term as it
    stands in :math:`\beta\Gamma`, :math:`\beta U = O_1 + 2 O_2 + 3 O_3` and
    :math:`S = S_0 + O_2 + 2 O_3`.

    Attributes
    ----------
    visible : Tensor of shape (n_starts, n_visible)
        Magnetisations of the visible units.
    hidden : Tensor of shape (n_starts, n_hidden)
        Magnetisations of the hidden units.
    free_energy, energy, entropy : Tensor of shape (n_starts,)
        :math:`\Gamma`, :math:`U` in units of the energy, :math:`S` in nats.
    contributions : Tensor of shape (n_starts, order + 1)
        Terms of :math:`\beta\Gamma` by order: :math:`-S_0`, then :math:`O_1, O_2, O_3`.
    converged : Tensor of bool, shape (n_starts,)
    n_iter : Tensor of int, shape (n_starts,)
        Sweeps until the tolerance was reached, or all that were made.
    residual : Tensor of shape (n_starts,)
        Largest change of a magnetisation by an undamped half-sweep, in the last sweep made.
    order : int
    beta : float
    """

    visible: Tensor
    hidden: Tensor
    free_energy: Tensor
    energy: Tensor
    entropy: Tensor
    contributions: Tensor
    converged: Tensor
    n_iter: Tensor
    residual: Tensor
    order: int
    beta: float

    @property
    def log_partition(self) -> Tensor:
        r"""Estimate :math:`-\beta\Gamma` of :math:`\ln Z` at each state, shape (n_starts,)."""
        return -self.beta * self.free_energy

    def __repr__(self) -> str:
        n = self.converged.numel()
        return (
            f"MeanField(order={self.order}, beta={self.beta:g}, n_starts={n}, "
            f"free_energy={float(self.free_energy.mean()):.6g}, "
            f"energy={float(self.energy.mean()):.6g}, entropy={float(self.entropy.mean()):.6g}, "
            f"converged={int(self.converged.sum())}/{n}, n_iter={int(self.n_iter.max())})"
        )


@dataclass(frozen=True, eq=False)
class MeanFieldGradient:
    r"""Gradient of the mean-field :math:`\ln Z` with respect to the parameters of an RBM.

    Attributes
    ----------
    weight : Tensor of shape (n_visible, n_hidden)
    visible_bias : Tensor of shape (n_visible,)
    hidden_bias : Tensor of shape (n_hidden,)
    """

    weight: Tensor
    visible_bias: Tensor
    hidden_bias: Tensor

    def __repr__(self) -> str:
        n_visible, n_hidden = self.weight.shape
        return f"MeanFieldGradient(n_visible={n_visible}, n_hidden={n_hidden})"


class PlefkaExpansion:
    r"""The expansion for one model: fields, sweeps, terms of :math:`\beta\Gamma`, gradient.

    The powers of the couplings are computed once; call :meth:`refresh` after the model's weights
    have changed.

    Parameters
    ----------
    model : RBM
    order : {1, 2, 3}
        1 is naive mean field, 2 adds the Onsager reaction term (TAP), 3 the next term.
    beta : float, default=1
        Inverse temperature.

    References
    ----------
    Plefka, *Convergence condition of the TAP equation*, J. Phys. A 15, 1982;
    Georges and Yedidia, *How to expand around mean-field theory*, J. Phys. A 24, 1991;
    Gabrié, Tramel, Krzakala, *Training RBMs via the TAP free energy*, arXiv:1506.02914.

    Examples
    --------
    Without couplings nothing is left beyond the entropy, ln 2 for each of five free units:

    >>> import torch
    >>> from freenergy.models import RBM
    >>> rbm = RBM(3, 2)
    >>> _ = torch.nn.init.zeros_(rbm.weight)
    >>> half = torch.full((1, 3), 0.5), torch.full((1, 2), 0.5)
    >>> PlefkaExpansion(rbm, order=2).terms(*half).detach().round(decimals=4) + 0.0
    tensor([[-3.4657,  0.0000,  0.0000]])
    """

    def __init__(self, model: RBM, order: int = 2, beta: float = 1.0) -> None:
        check_order(order)
        self.model = model
        self.order = order
        self.beta = beta
        self._powers: list[Tensor] = []
        self.refresh()

    def refresh(self) -> None:
        """Recompute the squares and cubes of the couplings from the model's weights."""
        weight = self.model.weight.detach()
        powers = [weight]
        for n in range(1, self.order):
            out = self._powers[n] if self._powers else None
            powers.append(torch.mul(powers[n - 1], weight, out=out))
        self._powers = powers

    def hidden_update(self, visible: Tensor, hidden: Tensor) -> Tensor:
        """Where one undamped half-sweep puts the hidden magnetisations."""
        model = self.model
        return self._update(model.hidden, model.hidden_bias, model.visible, hidden, visible, False)

    def visible_update(self, visible: Tensor, hidden: Tensor) -> Tensor:
        """Where one undamped half-sweep puts the visible magnetisations."""
        model = self.model
        return self._update(model.visible, model.visible_bias, model.hidden, visible, hidden, True)

    def sweep(self, visible: Tensor, hidden: Tensor, damping: float = 0.5) -> None:
        r"""One sequential sweep in place, hidden then visible, :math:`m \to d\,m + (1-d)\,m'`."""
        hidden.lerp_(self.hidden_update(visible, hidden), 1.0 - damping)
        visible.lerp_(self.visible_update(visible, hidden), 1.0 - damping)

    def _update(
        self, unit: Unit, bias: Tensor, other_unit: Unit, m: Tensor, other: Tensor, transpose: bool
    ) -> Tensor:
        """Stationarity of the expansion in one layer, the other held fixed."""
        beta = self.beta
        weight = [p.T if transpose else p for p in self._powers]
        field = torch.addmm(bias, other, weight[0], beta=beta, alpha=beta)
        add_reaction(field, weight, unit, m, other_unit, other, beta)
        return unit.mean(field, out=field)

    def terms(self, visible: Tensor, hidden: Tensor) -> Tensor:
        r"""Terms of :math:`\beta\Gamma` by order, shape (n_starts, order + 1).

        Differentiable in the model's parameters and in the magnetisations.
        """
        model, beta, weight = self.model, self.beta, self.model.weight
        v, h = model.visible, model.hidden
        entropy = v.entropy(visible).sum(-1) + h.entropy(hidden).sum(-1)
        terms = [-entropy, model.energy(visible, hidden, beta)]
        if self.order >= 2:
            pairs = _bilinear(v.cumulant2(visible), weight**2, h.cumulant2(hidden))
            terms.append(-(beta**2) / 2 * pairs)
        if self.order >= 3:
            pairs = _bilinear(v.cumulant3(visible), weight**3, h.cumulant3(hidden))
            terms.append(-(beta**3) / 6 * pairs)
        return torch.stack(terms, dim=-1)

    def weight_gradient(self, visible: Tensor, hidden: Tensor) -> Tensor:
        r"""Gradient of :math:`-\beta\Gamma` in the weights, averaged over states.

        .. math:: \beta \langle m_i m_j \rangle
                  + \beta^2 W_{ij} \langle \kappa_2 \kappa_2 \rangle
                  + \tfrac12 \beta^3 W_{ij}^2 \langle \kappa_3 \kappa_3 \rangle
        """
        gradient = visible.T @ (hidden * (self.beta / len(visible)))
        return self.add_corrections(gradient, visible, hidden)

    def add_corrections(
        self, gradient: Tensor, visible: Tensor, hidden: Tensor, n_states: int | None = None
    ) -> Tensor:
        """Add the terms beyond first order of :meth:`weight_gradient`, in place.

        ``n_states`` is the number that their sum is divided by; None is that of these states.
        """
        if self.order == 1:
            return gradient
        v, h, beta = self.model.visible, self.model.hidden, self.beta
        n = len(visible) if n_states is None else n_states
        pair = v.cumulant2(visible).T @ h.cumulant2(hidden)
        gradient.addcmul_(pair, self._powers[0], value=beta**2 / n)
        if self.order == 3:
            pair = torch.mm(v.cumulant3(visible).T, h.cumulant3(hidden), out=pair)
            gradient.addcmul_(pair, self._powers[1], value=0.5 * beta**3 / n)
        return gradient


def _bilinear(left: Tensor, matrix: Tensor, right: Tensor) -> Tensor:
    return ((left @ matrix) * right).sum(-1)


@torch.no_grad()
def mean_field(
    model: RBM,
    order: int = 2,
    *,
    beta: float = 1.0,
    start: ArrayLike | Tensor | None = None,
    damping: float = 0.5,
    tolerance: float | None = None,
    max_iter: int = 1000,
) -> MeanField:
    r"""Minimise the mean-field free energy of an RBM by damped fixed-point sweeps.

    Parameters
    ----------
    model : RBM
    order : {1, 2, 3}, default=2
        Naive mean field, TAP with the Onsager term, or TAP to third order.
    beta : float, default=1
        Inverse temperature, positive.
    start : array-like or Tensor of shape (n_starts, n_visible), default=None
        Visible magnetisations to start from. Each start leads to one state: starts at rows of
        the data give the states that hold the data. None makes one start, the visible units in
        the field of their biases alone.
    damping : float, default=0.5
        Share of the old magnetisation that each half-sweep keeps, in [0, 1).
    tolerance : float, default=None
        Largest change of a magnetisation by an undamped half-sweep at which a state counts as
        converged; None is 1e-10 in double and 1e-5 in single precision.
    max_iter : int, default=1000
        Largest number of sweeps.

    Returns
    -------
    MeanField

    Raises
    ------
    ValueError
        When an option or the shape of ``start`` is impossible.

    Warns
    -----
    NotConvergedWarning
        When some state did not converge; its values are those of the last sweep.
    NegativeEntropyWarning
        When the entropy of some state is negative, a sign that the expansion has broken down.

    Examples
    --------
    >>> import torch
    >>> from freenergy.inference import exact
    >>> from freenergy.models import RBM
    >>> _ = torch.manual_seed(0)
    >>> rbm = RBM(8, 5, dtype=torch.float64)
    >>> state = mean_field(rbm, order=2)
    >>> bool(abs(state.log_partition[0] - exact(rbm).log_partition) < 1e-6)
    True
    """
    start = None if start is None else as_tensor(start, "start")
    _validate(model, beta, start, damping, max_iter)
    weight = model.weight
    if tolerance is None:
        tolerance = 1e-10 if weight.dtype == torch.float64 else 1e-5
    expansion = PlefkaExpansion(model, order, beta)
    if start is None:
        visible = model.visible.mean(beta * model.visible_bias)[None]
    else:
        visible = start.to(weight).clone()
    hidden = model.hidden_mean(visible, beta)
    n_iter = torch.full((len(visible),), max_iter, device=weight.device)
    residual = weight.new_full((len(visible),), torch.inf)
    for iteration in range(1, max_iter + 1):
        new_hidden = expansion.hidden_update(visible, hidden)
        residual = (new_hidden - hidden).abs().amax(-1)
        hidden.lerp_(new_hidden, 1.0 - damping)
        new_visible = expansion.visible_update(visible, hidden)
        residual = torch.maximum(residual, (new_visible - visible).abs().amax(-1))
        visible.lerp_(new_visible, 1.0 - damping)
        n_iter = torch.where(residual <= tolerance, n_iter.clamp(max=iteration), max_iter)
        if bool((residual <= tolerance).all()):
            break
    contributions = expansion.terms(visible, hidden)
    orders = torch.arange(order + 1, device=weight.device, dtype=weight.dtype)
    free_energy = contributions.sum(-1) / beta
    energy = (contributions * orders).sum(-1) / beta
    result = MeanField(
        visible=visible,
        hidden=hidden,
        free_energy=free_energy,
        energy=energy,
        entropy=(contributions * (orders - 1)).sum(-1),
        contributions=contributions,
        converged=residual <= tolerance,
        n_iter=n_iter,
        residual=residual,
        order=order,
        beta=beta,
    )
    _warn(result)
    return result


def _validate(model: RBM, beta: float, start: Tensor | None, damping: float, max_iter: int) -> None:
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    if not 0 <= damping < 1:
        raise ValueError(f"damping must lie in [0, 1), got {damping}")
    if max_iter < 1:
        raise ValueError(f"max_iter must be at least 1, got {max_iter}")
    if start is not None and (start.dim() != 2 or start.shape[1] != model.n_visible):
        raise ValueError(
            f"start must have shape (n_starts, {model.n_visible}), got {tuple(start.shape)}"
        )
    low, high = min(model.visible.support), max(model.visible.support)
    if start is not None and not bool(((start >= low) & (start <= high)).all()):
        raise ValueError(f"start must hold magnetisations, in [{low:g}, {high:g}]")


def _warn(result: MeanField) -> None:
    # The words of a class are always the same, so that Python shows them once for a place; the
    # numbers are in the result.
    if not bool(result.converged.all()):
        warnings.warn(
            "some mean-field states did not converge (see converged and residual of the result); "
            "raise damping or max_iter, or lower beta",
            NotConvergedWarning,
            stacklevel=4,
        )
    if bool((result.entropy < 0).any()):
        warnings.warn(
            "the mean-field entropy of some states is negative: the coupling is too strong for "
            "the expansion, and its free energy should not be trusted",
            NegativeEntropyWarning,
            stacklevel=4,
        )


def mean_field_gradient(
    model: RBM, state: MeanField, *, autograd: bool = False
) -> MeanFieldGradient:
    r"""Gradient of the mean-field estimate of :math:`\ln Z`, averaged over the states.

    At a stationary point the magnetisations' own dependence on the parameters drops out, so the
    gradient of :math:`-\beta\Gamma` at fixed magnetisations is the whole gradient.

    Parameters
    ----------
    model : RBM
    state : MeanField
        Converged states of the model.
    autograd : bool, default=False
        Differentiate :math:`\Gamma` by automatic differentiation instead of using the closed
        form; both agree.

    Returns
    -------
    MeanFieldGradient

    Examples
    --------
    >>> import torch
    >>> from freenergy.models import RBM
    >>> rbm = RBM(4, 3, dtype=torch.float64)
    >>> state = mean_field(rbm)
    >>> closed, automatic = (mean_field_gradient(rbm, state, autograd=x) for x in (False, True))
    >>> torch.allclose(closed.weight, automatic.weight)
    True
    """
    expansion = PlefkaExpansion(model, state.order, state.beta)
    if autograd:
        with torch.enable_grad():
            log_z = -expansion.terms(state.visible, state.hidden).sum(-1).mean()
            weight, visible_bias, hidden_bias = torch.autograd.grad(
                log_z, (model.weight, model.visible_bias, model.hidden_bias)
            )
        return MeanFieldGradient(weight, visible_bias, hidden_bias)
    with torch.no_grad():
        return MeanFieldGradient(
            expansion.weight_gradient(state.visible, state.hidden),
            state.beta * state.visible.mean(0),
            state.beta * state.hidden.mean(0),
        )

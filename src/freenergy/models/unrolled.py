r"""A restricted Boltzmann machine unrolled into a deep feed-forward net, and folded back.

Mean-field sweeps of a machine are the layers of a sigmoid network. Without corrections,

.. math::

    h_1 = \sigma(\beta(b + W^\top v)), \qquad
    h_{l+1} = \sigma\big(\beta(b + W^\top \sigma(\beta(a + W h_l)))\big),

which backpropagation can train as any multilayer perceptron, while its weights go on defining a
machine with an energy, a free energy and a temperature.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from numbers import Integral

import torch
from torch import Tensor, nn

from freenergy.models.plefka import add_reaction, check_order
from freenergy.models.rbm import RBM
from freenergy.models.units import Unit

__all__ = ["UnrolledRBM", "fold", "unroll"]


class UnrolledRBM(nn.Module):
    r"""Mean-field sweeps of an RBM as the layers of a network; made by :func:`unroll`.

    Layer *l* takes the magnetisations :math:`(v_{l-1}, h_{l-1})` down and up again,

    .. math::

        v_l &= d\,v_{l-1} + (1 - d)\,
            m\big(\beta(a_l + W_l h_{l-1}) + r(v_{l-1}, h_{l-1})\big) \\
        h_l &= d\,h_{l-1} + (1 - d)\,
            m\big(\beta(b_l + W_l^\top v_l) + r(h_{l-1}, v_l)\big)

    with *m* the mean of a unit in its field, *d* the damping and *r* the reaction of the other
    layer, the terms of the Plefka expansion beyond first order. The first layer has nowhere to
    come down from: it starts at the input, :math:`v_1 = v`, and at
    :math:`h_0 = m(\beta(b_1 + W_1^\top v))`, which :math:`h_1` equals at order 1 and, as the
    reaction of a certain unit is zero, for any input in the support of the visible units.

    So :math:`h_n` are the hidden magnetisations after *n* sweeps of
    :func:`~freenergy.inference.mean_field` started at *v*. At order 1 every layer lowers the naive
    mean-field free energy of its own machine.

    A machine is a tied net's only one, or one layer's own in an untied net. Within a layer both
    ways share one matrix: what runs down and up by different ones has no energy, hence neither a
    reaction nor a machine to fold into.

    Parameters
    ----------
    rbm, depth, tied, order, beta, damping, head :
        As in :func:`unroll`.

    Attributes
    ----------
    machines : ModuleList of RBM
        One machine if tied, else one for each layer. The visible biases of the first machine of an
        untied net, which no layer reads, are frozen; so are those of a net of depth 1.
    head : Module or None
        From the last hidden magnetisations to the output.
    depth : int
        Number of hidden layers.
    tied : bool
    order : int
    beta, damping : float

    Raises
    ------
    TypeError, ValueError
        As :func:`unroll`.

    Examples
    --------
    >>> import torch
    >>> from freenergy.inference import mean_field
    >>> rbm, v = RBM(6, 4, dtype=torch.float64), torch.ones(1, 6).double()
    >>> net = UnrolledRBM(rbm, depth=50)
    >>> torch.allclose(net(v), mean_field(rbm, order=1, start=v).hidden)
    True
    """

    def __init__(
        self,
        rbm: RBM,
        depth: int,
        *,
        tied: bool = True,
        order: int = 1,
        beta: float = 1.0,
        damping: float = 0.0,
        head: int | nn.Module | None = None,
    ) -> None:
        super().__init__()
        _validate(rbm, depth, order, beta, damping)
        self.depth = int(depth)
        self.tied = tied
        self.order = order
        self.beta = beta
        self.damping = damping
        self.machines = _copies(rbm, 1 if tied else self.depth, self.depth)
        self.head = _head(head, rbm)

    def forward(self, v: Tensor) -> Tensor:
        """Output of the head, or the last hidden magnetisations where there is none.

        Parameters
        ----------
        v : Tensor of shape (..., n_visible)
            Visible magnetisations, in the range of the visible units.

        Returns
        -------
        Tensor of shape (..., n_classes) or (..., n_hidden)
        """
        hidden = self.hidden(v)
        return hidden if self.head is None else self.head(hidden)

    def hidden(self, v: Tensor) -> Tensor:
        """Hidden magnetisations of the last layer, shape (..., n_hidden)."""
        for hidden in self._sweeps(v):
            last = hidden
        return last

    def layers(self, v: Tensor) -> list[Tensor]:
        """Hidden magnetisations of each layer, first to last, each (..., n_hidden)."""
        return list(self._sweeps(v))

    def untie(self) -> UnrolledRBM:
        """A copy of the net in which every layer owns its machine, the function unchanged.

        Examples
        --------
        >>> import torch
        >>> net = unroll(RBM(4, 3), depth=5)
        >>> released = net.untie()
        >>> len(released.machines)
        5
        >>> v = torch.rand(2, 4)
        >>> bool((net(v) == released(v)).all())
        True
        """
        net = copy.deepcopy(self)
        if net.tied:
            net.machines = _copies(fold(net), net.depth, net.depth)
            net.tied = False
        return net

    def extra_repr(self) -> str:
        """Depth and kind of the sweeps, for ``repr``."""
        return (
            f"depth={self.depth}, tied={self.tied}, order={self.order}, beta={self.beta:g}, "
            f"damping={self.damping:g}"
        )

    def _sweeps(self, v: Tensor) -> Iterator[Tensor]:
        """Hidden magnetisations, layer by layer."""
        couplings = self._couplings()
        machine, powers = next(couplings)
        visible, hidden = v, self._first(machine, powers, v)
        yield hidden
        for machine, powers in couplings:
            visible, hidden = self._sweep(machine, powers, visible, hidden)
            yield hidden

    def _first(self, machine: RBM, powers: list[Tensor], v: Tensor) -> Tensor:
        """Conditional means given the input, and what the reaction of an uncertain input adds."""
        field = machine.hidden_field(v, self.beta)
        hidden = machine.hidden.mean(field)
        if self.order == 1:
            return hidden
        # The reaction is added in place, and the means may need their field for the gradient.
        field = field.clone()
        return self._update(field, powers, machine.hidden, hidden, machine.visible, v)

    def _sweep(
        self, machine: RBM, powers: list[Tensor], visible: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Down to the visible units and up again."""
        down = [power.T for power in powers]
        field = machine.visible_field(hidden, self.beta)
        visible = self._update(field, down, machine.visible, visible, machine.hidden, hidden)
        field = machine.hidden_field(visible, self.beta)
        hidden = self._update(field, powers, machine.hidden, hidden, machine.visible, visible)
        return visible, hidden

    def _update(
        self,
        field: Tensor,
        powers: list[Tensor],
        unit: Unit,
        mean: Tensor,
        other_unit: Unit,
        other_mean: Tensor,
    ) -> Tensor:
        """One damped half-sweep of the layer whose first-order field this is."""
        field = add_reaction(field, powers, unit, mean, other_unit, other_mean, self.beta)
        new = unit.mean(field)
        return torch.lerp(mean, new, 1.0 - self.damping) if self.damping else new

    def _couplings(self) -> Iterator[tuple[RBM, list[Tensor]]]:
        """Each layer's machine and the powers of its weights, taken once for each machine."""
        for machine in self.machines:
            assert isinstance(machine, RBM)
            powers: list[Tensor] = [machine.weight]
            for _ in range(1, self.order):
                powers.append(powers[-1] * machine.weight)
            for _ in range(self.depth if self.tied else 1):
                yield machine, powers


def unroll(
    rbm: RBM,
    depth: int,
    *,
    tied: bool = True,
    order: int = 1,
    beta: float = 1.0,
    damping: float = 0.0,
    head: int | nn.Module | None = None,
) -> UnrolledRBM:
    r"""Unroll mean-field sweeps of an RBM into a deep net, to be trained by backpropagation.

    .. math:: h_1 = \sigma(b + W^\top v), \qquad
              h_{l+1} = \sigma\big(b + W^\top \sigma(a + W h_l)\big)

    for 0/1 units at the defaults; :class:`UnrolledRBM` has the layers of any order, temperature
    and damping. The net works on copies: training it leaves the RBM as it was, and :func:`fold`
    makes an RBM of it again.

    Parameters
    ----------
    rbm : RBM
        Its weights are where the net starts.
    depth : int
        Number of hidden layers, which is the number of sweeps.
    tied : bool, default=True
        Whether all layers share one weight matrix and its biases, or each owns a copy.
    order : {1, 2, 3}, default=1
        1 is naive mean field, a plain sigmoid network; 2 adds the Onsager reaction term (TAP) to
        every layer, 3 the next term.
    beta : float, default=1
        Inverse temperature, positive.
    damping : float, default=0
        Share of the old magnetisation that each half-sweep keeps, in [0, 1): a skip connection.
    head : int or Module, default=None
        What turns the last magnetisations into the output: a number of classes makes a linear
        layer that starts at zero, so that the net starts with equal logits and its first step
        moves the head alone. None leaves the magnetisations as they are.

    Returns
    -------
    UnrolledRBM

    Raises
    ------
    TypeError
        When ``rbm`` is no RBM, ``depth`` no integer, or ``head`` neither a number nor a module.
    ValueError
        When a number is out of its range.

    References
    ----------
    Peterson and Anderson, *A mean field theory learning algorithm for neural networks*, Complex
    Systems 1, 1987 (mean-field equations as a network); Gabrié, Tramel, Krzakala, *Training RBMs
    via the TAP free energy*, arXiv:1506.02914 (the reaction terms); Hershey, Le Roux, Weninger,
    *Deep unfolding*, arXiv:1409.2574 (tied and untied layers of an unrolled inference).

    Examples
    --------
    >>> import torch
    >>> rbm = RBM(6, 4)
    >>> net = unroll(rbm, depth=3, head=10)
    >>> net
    UnrolledRBM(
      depth=3, tied=True, order=1, beta=1, damping=0
      (machines): ModuleList(
        (0): RBM(n_visible=6, n_hidden=4, visible='bernoulli', hidden='bernoulli')
      )
      (head): Linear(in_features=4, out_features=10, bias=True)
    )
    >>> v = torch.rand(2, 6)
    >>> net(v).shape, net.hidden(v).shape, len(net.layers(v))
    (torch.Size([2, 10]), torch.Size([2, 4]), 3)
    >>> bool((fold(net).weight == rbm.weight).all())
    True
    """
    return UnrolledRBM(rbm, depth, tied=tied, order=order, beta=beta, damping=damping, head=head)


def fold(net: UnrolledRBM) -> RBM:
    r"""Fold an unrolled net back into an RBM: its machine, or the average of its machines.

    .. math:: W = \frac1n \sum_{l=1}^n W_l, \qquad b = \frac1n \sum_{l=1}^n b_l, \qquad
              a = \frac1{n-1} \sum_{l=2}^n a_l,

    each over the layers that use it. Copies that are still equal come back to the bit.

    Parameters
    ----------
    net : UnrolledRBM

    Returns
    -------
    RBM
        With parameters of its own; the head is left behind.

    Raises
    ------
    TypeError
        When ``net`` is not an unrolled RBM.

    Examples
    --------
    >>> import torch
    >>> net = unroll(RBM(3, 2), depth=2, tied=False)
    >>> with torch.no_grad():
    ...     net.machines[0].weight.fill_(0.0)
    ...     net.machines[1].weight.fill_(1.0)
    Parameter containing: ...
    >>> fold(net).weight
    Parameter containing:
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000],
            [0.5000, 0.5000]], requires_grad=True)
    """
    if not isinstance(net, UnrolledRBM):
        raise TypeError(f"only an UnrolledRBM can be folded, got {type(net).__name__}: unroll one")
    machines = list(net.machines)
    rbm = copy.deepcopy(machines[-1])
    assert isinstance(rbm, RBM)
    with torch.no_grad():
        for name, parameter in rbm.named_parameters():
            unread = name == "visible_bias" and len(machines) > 1
            copies = [m.get_parameter(name) for m in machines[1 if unread else 0 :]]
            parameter.copy_(_mean(copies))
    return rbm.requires_grad_()


def _mean(copies: list[nn.Parameter]) -> Tensor:
    # About the first, so that equal copies give it back without rounding.
    first = copies[0]
    if len(copies) == 1:
        return first
    return first + torch.stack([other - first for other in copies]).mean(0)


def _copies(rbm: RBM, n_machines: int, depth: int) -> nn.ModuleList:
    """Copies of the machine, with the visible biases frozen that no layer comes down to."""
    machines = nn.ModuleList(copy.deepcopy(rbm).requires_grad_() for _ in range(n_machines))
    if n_machines > 1 or depth == 1:
        machines[0].get_parameter("visible_bias").requires_grad_(False)
    return machines


def _head(head: int | nn.Module | None, rbm: RBM) -> nn.Module | None:
    if head is None or isinstance(head, nn.Module):
        return head
    if isinstance(head, bool) or not isinstance(head, Integral):
        raise TypeError(f"head must be a number of classes, a torch Module or None, got {head!r}")
    if head < 1:
        raise ValueError(f"a head needs at least one class, got {head}")
    # The layer draws a start that is not used: not at the cost of torch's global stream.
    with torch.random.fork_rng(devices=[]):
        linear = nn.Linear(rbm.n_hidden, int(head), dtype=rbm.weight.dtype, device="cpu")
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear.to(rbm.weight.device)


def _validate(rbm: RBM, depth: int, order: int, beta: float, damping: float) -> None:
    if not isinstance(rbm, RBM):
        raise TypeError(f"only an RBM can be unrolled, got {type(rbm).__name__}")
    if isinstance(depth, bool) or not isinstance(depth, Integral):
        raise TypeError(f"depth must be a number of layers, got {depth!r}")
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    check_order(order)
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    if not 0 <= damping < 1:
        raise ValueError(f"damping must lie in [0, 1), got {damping}")

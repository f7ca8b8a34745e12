r"""Ways to train the weights of an RBM: by a free energy, by chains, by backpropagation.

A station owns an RBM's parameters, and perhaps a softmax head; it follows the plain gradient of a
loss of its own by :class:`torch.optim.SGD`, without centring or momentum, so that the directions of
all stations can be compared. Whatever it trains, its weights define an RBM at any time.

=======================  =========================================================================
``EMF (TAP2)``           the extended mean-field gradient of :math:`-\langle\ln p(v)\rangle`
``PCD``                  the same gradient by persistent chains
``Discriminative RBM``   backpropagation of :math:`-\ln p(y|v)` under the energy of (v, y, h)
``Tied unrolled net``    backpropagation through mean-field sweeps of the RBM into a softmax
``Untied unrolled net``  the same with weights of its own for each sweep; their mean is the RBM's
=======================  =========================================================================

The visible biases cancel in the discriminative RBM's loss, so it leaves them where they started.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import skip_init

from freenergy.models import RBM, DiscriminativeRBM, fold, unroll
from freenergy.random import RandomStream
from freenergy.training import TrainingOptions
from freenergy.training.estimators import gradient_estimator

__all__ = [
    "STATIONS",
    "CrossEntropyDescent",
    "LikelihoodAscent",
    "Station",
    "StationKind",
    "StationOptions",
    "Step",
    "fold_steps",
]


class Step(NamedTuple):
    """A direction in the parameters of an RBM."""

    weight: Tensor
    visible_bias: Tensor
    hidden_bias: Tensor


@dataclass(frozen=True)
class StationOptions:
    """What a station is built for.

    Parameters
    ----------
    learning_rate : float
        Of backpropagation.
    likelihood_rate : float
        Of EMF and PCD, whose gradients do not pass through a softmax.
    batch_size : int
        As many chains, or mean-field states, as rows.
    depth : int
        Sweeps of the unrolled nets.
    damping : float
        Share of the old magnetisation that each half-sweep of an unrolled net keeps.
    """

    learning_rate: float
    likelihood_rate: float
    batch_size: int
    depth: int
    damping: float


class Station(ABC):
    """A way to train; see the module's text.

    Parameters
    ----------
    learning_rate : float
        Of the updates.
    """

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate

    @abstractmethod
    def update(self, rows: Tensor, labels: Tensor) -> None:
        """Make one step on a batch of shape (n, n_visible) with its labels, shape (n,)."""

    @abstractmethod
    def steps(self, rows: Tensor, labels: Tensor) -> list[Step]:
        """The negative gradient for a batch, one for each copy of the weights; moves nothing."""

    @abstractmethod
    def rbm(self) -> RBM:
        """The RBM that the weights define now, with parameters of its own."""

    def logits(self, rows: Tensor) -> Tensor | None:
        """What the softmax takes, shape (n, n_classes); None where there is none."""
        return None


class LikelihoodAscent(Station):
    """Follows an estimator of the likelihood's gradient; the labels are not looked at."""

    def __init__(self, model: RBM, options: TrainingOptions, random: RandomStream) -> None:
        super().__init__(options.learning_rate)
        self.estimator = gradient_estimator(model, options, random)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=options.learning_rate, fused=True)

    def update(self, rows: Tensor, labels: Tensor) -> None:
        self.estimator.compute(rows)
        self.optimizer.step()

    def steps(self, rows: Tensor, labels: Tensor) -> list[Step]:
        # On a copy, whose chains and random numbers may go on without those of the training.
        estimator = copy.deepcopy(self.estimator)
        estimator.compute(rows)
        return [_negative([p.grad for p in _parameters(estimator.model)], estimator.model)]

    def rbm(self) -> RBM:
        return copy.deepcopy(self.estimator.model)


class CrossEntropyDescent(Station):
    """Follows the gradient of the cross-entropy of a network, found by automatic differentiation.

    Parameters
    ----------
    network : Module
        Owns all parameters.
    logits : callable
        From rows of shape (n, n_visible) to logits of shape (n, n_classes).
    copies : sequence of Module
        Those parts of the network that have the parameters of an RBM.
    rbm : callable
        Gives the RBM that the network defines.
    learning_rate : float
    """

    def __init__(
        self,
        network: nn.Module,
        logits: Callable[[Tensor], Tensor],
        copies: Sequence[nn.Module],
        rbm: Callable[[], RBM],
        learning_rate: float,
    ) -> None:
        super().__init__(learning_rate)
        self.copies = copies
        self._logits = logits
        self._rbm = rbm
        parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(parameters, lr=learning_rate, fused=True)

    def update(self, rows: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        cross_entropy(self._logits(rows), labels).backward()
        self.optimizer.step()

    def steps(self, rows: Tensor, labels: Tensor) -> list[Step]:
        owned = [_parameters(part) for part in self.copies]
        moving = [p for part in owned for p in part if p.requires_grad]
        loss = cross_entropy(self._logits(rows), labels)
        found = torch.autograd.grad(loss, moving, allow_unused=True)
        gradients = dict(zip(moving, found, strict=True))
        return [
            _negative([gradients.get(p) for p in part], module)
            for part, module in zip(owned, self.copies, strict=True)
        ]

    def rbm(self) -> RBM:
        return self._rbm()

    @torch.no_grad()
    def logits(self, rows: Tensor) -> Tensor:
        return self._logits(rows)


def _parameters(module: nn.Module) -> list[nn.Parameter]:
    return [module.get_parameter(name) for name in Step._fields]


def _negative(gradients: Sequence[Tensor | None], module: nn.Module) -> Step:
    """A step down the gradients; what a loss does not depend on does not move."""
    pairs = zip(gradients, _parameters(module), strict=True)
    return Step(*(torch.zeros_like(p) if g is None else -g for g, p in pairs))


def fold_steps(steps: Sequence[Step]) -> Step:
    """What steps of a net's machines move the RBM by that the net folds into.

    Weights and hidden biases move by the mean over the machines, visible biases by that over all
    but the first of several, whose visible biases no layer reads.

    Examples
    --------
    >>> import torch
    >>> one, two = (Step(*torch.full((3, 1), float(k))) for k in (1, 3))
    >>> [float(part) for part in fold_steps([one, two])]
    [2.0, 3.0, 2.0]
    """
    parts = [torch.stack(part) for part in zip(*steps, strict=True)]
    weight, visible_bias, hidden_bias = parts
    return Step(
        weight.mean(0), visible_bias[-max(len(steps) - 1, 1) :].mean(0), hidden_bias.mean(0)
    )


@dataclass(frozen=True)
class StationKind:
    """How to build a station, and what may be asked of it.

    Parameters
    ----------
    build : callable
        From an RBM to start at, the number of classes, the options and a stream of random numbers
        to a station. The RBM is the station's to train.
    backpropagation : bool
        Whether it follows the gradient of a loss on labels, so that the conjecture is about it.
    """

    build: Callable[[RBM, int, StationOptions, RandomStream], Station]
    backpropagation: bool


def _emf(rbm: RBM, n_classes: int, options: StationOptions, random: RandomStream) -> Station:
    return _likelihood_ascent(rbm, options, random, method="emf", n_steps=3)


def _pcd(rbm: RBM, n_classes: int, options: StationOptions, random: RandomStream) -> Station:
    return _likelihood_ascent(rbm, options, random, method="pcd", n_steps=1)


def _likelihood_ascent(
    rbm: RBM, options: StationOptions, random: RandomStream, *, method: str, n_steps: int
) -> Station:
    training = TrainingOptions(
        method=method,
        n_steps=n_steps,
        batch_size=options.batch_size,
        learning_rate=options.likelihood_rate,
        centered=False,
    )
    return LikelihoodAscent(rbm, training, random)


def _discriminative(
    rbm: RBM, n_classes: int, options: StationOptions, random: RandomStream
) -> Station:
    model = skip_init(
        DiscriminativeRBM,
        rbm.n_visible,
        n_classes,
        rbm.n_hidden,
        dtype=rbm.weight.dtype,
        device=rbm.weight.device,
    )
    with torch.no_grad():
        for mine, given in zip(_parameters(model), _parameters(rbm), strict=True):
            mine.copy_(given)
        model.label_bias.zero_()
        model.label_weight.copy_(_small(model.label_weight, random))
    return CrossEntropyDescent(
        model, model.log_proba, [model], model.marginal_rbm, options.learning_rate
    )


def _unrolled(tied: bool) -> Callable[[RBM, int, StationOptions, RandomStream], Station]:
    def build(rbm: RBM, n_classes: int, options: StationOptions, random: RandomStream) -> Station:
        net = unroll(rbm, options.depth, tied=tied, damping=options.damping, head=n_classes)
        head = net.head
        assert isinstance(head, nn.Linear)
        with torch.no_grad():
            # From zero the first gradient would not reach the RBM's weights at all.
            head.weight.copy_(_small(head.weight, random))
        return CrossEntropyDescent(
            net, net, list(net.machines), lambda: fold(net), options.learning_rate
        )

    return build


def _small(like: Tensor, random: RandomStream) -> Tensor:
    """Draws from N(0, 0.01²), as the weights of an RBM start."""
    return random.normal(tuple(like.shape), scale=0.01)


STATIONS: dict[str, StationKind] = {
    "EMF (TAP2)": StationKind(_emf, backpropagation=False),
    "PCD": StationKind(_pcd, backpropagation=False),
    "Discriminative RBM": StationKind(_discriminative, backpropagation=True),
    "Tied unrolled net": StationKind(_unrolled(True), backpropagation=True),
    "Untied unrolled net": StationKind(_unrolled(False), backpropagation=True),
}
"""What the study compares, by name."""

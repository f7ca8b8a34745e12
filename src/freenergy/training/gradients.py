r"""Estimators of the likelihood gradient: contrastive divergence and the extended mean field.

The gradient of :math:`\langle\ln p(v)\rangle` in the weights is :math:`\beta(\langle v h^\top
\rangle_\text{data} - \langle v h^\top \rangle_\text{model})`. The estimators differ in where the
second average, the negative phase, is taken:

========  =========================================================================
``cd``    chains that start at the batch and make *k* Gibbs steps
``pcd``   chains that persist from update to update and make *k* steps for each
``emf``   magnetisations that minimise the mean-field free energy of order 1, 2 or 3
========  =========================================================================

An estimator writes the gradient of the *negative* log-likelihood into the parameters' ``.grad``,
so that any torch optimiser can follow it.

Both phases are rows of one pair of matrices, :math:`V = [v_\text{data}; v_\text{model}]` and
:math:`H`, with weights :math:`w = \mp\beta/n` on the rows: one product gives both hidden fields and
one, :math:`V^\top \operatorname{diag}(w) H`, the whole gradient.

A penalty on the units' activities *q* adds to the fields of the data's rows, in the same products,
:math:`c\, \frac{q - p}{q (1 - q)} \frac{\partial q}{\partial x}`, the cost's weight *c* times the
derivative of :math:`\mathrm{KL}(p \| q)`. For *q* the running means of the hidden units are taken,
as a batch is too small to tell an activity of some percent.

Where several processes train one model, each has some rows of both phases. The weights are those of
the whole batch and of all chains, so that the processes' gradients add up. The centred gradient is
no sum over rows where the offsets move with the batch; but taken with the offsets of the update
before, :math:`\lambda` and :math:`\mu`, it is, and so are the means that move them by
:math:`\delta\lambda` and :math:`\delta\mu`. What is then missing, as the weights sum to zero, is

.. math:: -\delta\lambda \Bigl(\sum w h\Bigr)^\top - \Bigl(\sum w v\Bigr) \delta\mu^\top
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from freenergy.distributed import ALONE, Group
from freenergy.inference.gibbs import random_hidden
from freenergy.inference.mean_field import PlefkaExpansion
from freenergy.models import RBM
from freenergy.random import RandomStream
from freenergy.training.options import TrainingOptions
from freenergy.training.rows import Part, as_part

__all__ = [
    "ContrastiveDivergence",
    "ExtendedMeanField",
    "GradientEstimator",
    "PersistentContrastiveDivergence",
]

_OFFSET_RATE = 0.01
# Of q (1 - q): a unit that was never on while its mean was taken is not thrown far when it is.
_LEAST_SPREAD = 1e-3


class GradientEstimator(ABC):
    """Base of the estimators: the two phases in one buffer, and the (centred) gradient.

    Parameters
    ----------
    model : RBM
    options : TrainingOptions
    random : RandomStream
        Source of the chains' draws, on the model's device.

    Attributes
    ----------
    group : Group
        The processes whose gradients are added up in :meth:`compute`, which each of them calls.
    """

    chain_axes: ClassVar[dict[str, int]] = {}
    """Names of chains in the state that processes divide, each an attribute, and their axes."""
    recordable: ClassVar[bool] = True
    """Whether an update asks the device for no number, so that a CUDA graph can repeat it."""
    group: Group = ALONE

    def __init__(self, model: RBM, options: TrainingOptions, random: RandomStream) -> None:
        self.model = model
        self.options = options
        self.random = random
        # Offsets start where the model starts: the visible ones follow from the biases, which the
        # trainer set to the data's means; the hidden ones from the visible, so that a flip of the
        # data flips the offsets and changes nothing else.
        with torch.no_grad():
            self._offset_visible = model.visible.mean(options.beta * model.visible_bias)
            self._offset_hidden = model.hidden_mean(self._offset_visible, options.beta)
        self._rows: tuple[int, ...] = ()
        self._buffers: tuple[Tensor, ...] = ()
        self._flat: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the buffers: they hold the last batch, and are made again when needed."""
        buffers = ("_visible", "_hidden", "_field", "_row_weight")
        state = {name: value for name, value in vars(self).items() if name not in buffers}
        return state | {"_rows": (), "_buffers": (), "_flat": None}

    @abstractmethod
    def compute(self, batch: Tensor | Part) -> None:
        """Write the gradient for a batch of shape (n, n_visible) into the parameters' ``.grad``.

        It is that of the whole batch, where several processes have parts of it.
        """

    def state(self) -> dict[str, Tensor]:
        """Tensors that must persist between updates, by name."""
        return {
            "offset_visible": self._offset_visible,
            "offset_hidden": self._offset_hidden,
            **self._persistent_state(),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from tensors that :meth:`state` returned."""
        for name, tensor in self.state().items():
            if name in self.chain_axes and len(tensor) != len(state[name]):
                # Processes divide them, and join them again.
                setattr(self, name, state[name].to(tensor, copy=True))
            else:
                tensor.copy_(state[name])

    def measure(self) -> dict[str, Any]:
        """Numbers that the estimator knows of the model, for the history of an epoch."""
        return {}

    def _persistent_state(self) -> dict[str, Tensor]:
        return {}

    def _all_chains(self, own: int) -> int:
        """Chains of all processes, of which this one has some."""
        return own if self.group.size == 1 else self.options.chains

    def _stack(self, n_data: int, n_model: int, all_data: int, all_model: int) -> None:
        """Buffers for the two phases, the data's rows first, weighted as parts of all."""
        if self._rows == (n_data, n_model, all_data, all_model):
            return
        self._rows = (n_data, n_model, all_data, all_model)
        new, n = self.model.weight.new_empty, n_data + n_model
        if not self._buffers or len(self._buffers[0]) < n:
            widths = (self.model.n_visible, self.model.n_hidden, self.model.n_hidden)
            self._buffers = tuple(new(n, width) for width in widths)
        # Processes that divide a stream have other numbers of rows in every update.
        self._visible, self._hidden, self._field = (buffer[:n] for buffer in self._buffers)
        # Not so the weights: a recorded update reads those of its own rows.
        self._row_weight = new(n)
        self._row_weight[:n_data] = -self.options.beta / all_data
        self._row_weight[n_data:] = self.options.beta / all_model

    def _gradients(self) -> list[Tensor]:
        """Each parameter's ``.grad``, made where absent: at first, and after unpickling."""
        gradients = []
        for parameter in (self.model.weight, self.model.visible_bias, self.model.hidden_bias):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        return gradients

    def _shared_gradients(self) -> tuple[Tensor, list[Tensor]]:
        """One vector to be added up, with the parameters' ``.grad`` and the data's means in it."""
        model = self.model
        parameters = (model.weight, model.visible_bias, model.hidden_bias)
        shapes = [p.shape for p in (*parameters, model.visible_bias, model.hidden_bias)]
        sizes = [shape.numel() for shape in shapes]
        if self._flat is None:
            self._flat = model.weight.new_zeros(sum(sizes))
        parts = [t.view(s) for t, s in zip(self._flat.split(sizes), shapes, strict=True)]
        for parameter, part in zip(parameters, parts, strict=False):
            parameter.grad = part
        return self._flat, parts

    def _write_gradient(self) -> None:
        """The gradient from the stacked phases; the hidden buffer is used up."""
        n_data, _, all_data, _ = self._rows
        pull = self._sparsity_pull(self._hidden[:n_data], all_data)
        if self.group.size > 1:
            *_, visible_mean, hidden_mean = self._shared_gradients()[1]
            torch.sum(self._visible[:n_data], 0, out=visible_mean).div_(all_data)
            torch.sum(self._hidden[:n_data], 0, out=hidden_mean).div_(all_data)
        elif self._moves_offsets:
            self._offset_visible.lerp_(self._visible[:n_data].mean(0), _OFFSET_RATE)
            self._offset_hidden.lerp_(self._hidden[:n_data].mean(0), _OFFSET_RATE)
        weight_grad, visible_grad, hidden_grad = self._gradients()
        if self.options.centered:
            self._hidden.sub_(self._offset_hidden)
        torch.mv(self._visible.T, self._row_weight, out=visible_grad)
        # The weights of all rows sum to zero, so the offset drops out of this sum.
        self._hidden.mul_(self._row_weight[:, None])
        if pull is not None:
            self._hidden[:n_data].add_(pull)
        torch.sum(self._hidden, 0, out=hidden_grad)
        torch.mm(self._visible.T, self._hidden, out=weight_grad)
        if self.options.centered:
            weight_grad.addr_(self._offset_visible, hidden_grad, alpha=-1)

    @property
    def _moves_offsets(self) -> bool:
        return self.options.centered or self.options.sparsity_target is not None

    def _sparsity_pull(self, hidden: Tensor, all_data: int) -> Tensor | None:
        """What the penalty on activities adds to the gradient in the fields of the data's rows."""
        target = self.options.sparsity_target
        if target is None:
            return None
        low, high = min(self.model.hidden.support), max(self.model.hidden.support)
        activity = (self._offset_hidden - low) / (high - low)
        slope = (activity - target) / (activity * (1 - activity)).clamp_min(_LEAST_SPREAD)
        slope *= self.options.sparsity_cost * self.options.beta / (all_data * (high - low))
        return self.model.hidden.cumulant2(hidden).mul_(slope)

    def _add_up(self) -> None:
        """The sum of the processes' gradients, centred at the offsets that all data move."""
        flat, parts = self._shared_gradients()
        weight_grad, visible_grad, hidden_grad, visible_mean, hidden_mean = parts
        self.group.sum_(flat)
        if not self._moves_offsets:
            return
        before = self._offset_visible.clone(), self._offset_hidden.clone()
        self._offset_visible.lerp_(visible_mean, _OFFSET_RATE)
        self._offset_hidden.lerp_(hidden_mean, _OFFSET_RATE)
        if self.options.centered:
            weight_grad.addr_(self._offset_visible - before[0], hidden_grad, alpha=-1)
            weight_grad.addr_(visible_grad, self._offset_hidden - before[1], alpha=-1)

    def _complete_gradient(self) -> None:
        """Add up, and carry the centred weight gradient over to the uncentred model's biases."""
        if self.group.size > 1:
            self._add_up()
        if self.options.centered:
            weight_grad, visible_grad, hidden_grad = self._gradients()
            visible_grad.addmv_(weight_grad, self._offset_hidden, alpha=-1)
            hidden_grad.addmv_(weight_grad.T, self._offset_visible, alpha=-1)


class ContrastiveDivergence(GradientEstimator):
    """CD-k: the chains of each update start at its batch (Hinton 2002).

    Parameters
    ----------
    model : RBM
    options : TrainingOptions
    random : RandomStream
        Source of the chains' draws, on the model's device.

    Examples
    --------
    >>> import torch
    >>> from freenergy.models import RBM
    >>> from freenergy.random import RandomStream
    >>> from freenergy.training import TrainingOptions
    >>> rbm = RBM(4, 3)
    >>> gradient = ContrastiveDivergence(rbm, TrainingOptions(method="cd"), RandomStream(0))
    >>> gradient.compute(torch.ones(10, 4))
    >>> rbm.weight.grad.shape
    torch.Size([4, 3])
    """

    @torch.no_grad()
    def compute(self, batch: Tensor | Part) -> None:
        rows, all_rows = as_part(batch)
        model, beta, n = self.model, self.options.beta, len(rows)
        self._stack(n, n, all_rows, all_rows)
        self._visible[:n].copy_(rows)
        data, chain = self._field[:n], self._field[n:]
        model.hidden_field(self._visible[:n], beta, out=data)
        model.hidden.mean(data, out=self._hidden[:n])
        model.hidden.sample(data, self.random, out=chain)
        for step in range(self.options.n_steps):
            if step > 0:
                model.sample_hidden(self._visible[n:], self.random, beta, out=chain)
            model.sample_visible(chain, self.random, beta, out=self._visible[n:])
        model.hidden_field(self._visible[n:], beta, out=chain)
        model.hidden.mean(chain, out=self._hidden[n:])
        self._write_gradient()
        self._complete_gradient()


class PersistentContrastiveDivergence(GradientEstimator):
    """PCD-k: chains that go on from update to update (Younes 1989; Tieleman 2008).

    The chain is kept by its hidden state, so that the last v → h of an update shares one product
    with the data's.

    Parameters
    ----------
    model : RBM
    options : TrainingOptions
    random : RandomStream
        Source of the chains' draws, on the model's device.

    Examples
    --------
    >>> import torch
    >>> from freenergy.models import RBM
    >>> from freenergy.random import RandomStream
    >>> from freenergy.training import TrainingOptions
    >>> rbm, options = RBM(4, 3), TrainingOptions(n_chains=7)
    >>> gradient = PersistentContrastiveDivergence(rbm, options, RandomStream(0))
    >>> gradient.compute(torch.ones(10, 4))
    >>> rbm.weight.grad.shape, gradient.chain.shape
    (torch.Size([4, 3]), torch.Size([7, 3]))
    """

    chain_axes: ClassVar[dict[str, int]] = {"chain": 0}

    def __init__(self, model: RBM, options: TrainingOptions, random: RandomStream) -> None:
        super().__init__(model, options, random)
        # Zeros (or the lowest value), as scikit-learn's chains: they forget it in a few steps.
        self.chain = model.weight.new_full(
            (options.chains, model.n_hidden), model.hidden.support[0], requires_grad=False
        )

    @torch.no_grad()
    def compute(self, batch: Tensor | Part) -> None:
        rows, all_rows = as_part(batch)
        model, beta, n = self.model, self.options.beta, len(rows)
        self._stack(n, len(self.chain), all_rows, self._all_chains(len(self.chain)))
        self._visible[:n].copy_(rows)
        for step in range(self.options.n_steps):
            if step > 0:
                model.sample_hidden(self._visible[n:], self.random, beta, out=self.chain)
            model.sample_visible(self.chain, self.random, beta, out=self._visible[n:])
        model.hidden_field(self._visible, beta, out=self._field)
        model.hidden.mean(self._field, out=self._hidden)
        model.hidden.sample(self._field[n:], self.random, out=self.chain)
        self._write_gradient()
        self._complete_gradient()

    def _persistent_state(self) -> dict[str, Tensor]:
        return {"chain": self.chain}


class ExtendedMeanField(GradientEstimator):
    """EMF: the negative phase is the gradient of the TAP free energy (Gabrié et al. 2015).

    States are magnetisations of both layers, swept ``n_steps`` times for each update. They
    persist between updates, or start at the rows of each batch.

    Parameters
    ----------
    model : RBM
    options : TrainingOptions
    random : RandomStream
        Source of the chains' draws, on the model's device.

    Examples
    --------
    >>> import torch
    >>> from freenergy.models import RBM
    >>> from freenergy.random import RandomStream
    >>> from freenergy.training import TrainingOptions
    >>> rbm = RBM(4, 3)
    >>> gradient = ExtendedMeanField(rbm, TrainingOptions(method="emf"), RandomStream(0))
    >>> gradient.compute(torch.ones(10, 4))
    >>> rbm.weight.grad.shape
    torch.Size([4, 3])
    """

    chain_axes: ClassVar[dict[str, int]] = {"visible_state": 0, "hidden_state": 0}

    def __init__(self, model: RBM, options: TrainingOptions, random: RandomStream) -> None:
        super().__init__(model, options, random)
        self._expansion = PlefkaExpansion(model, options.mean_field_order, options.beta)
        if not options.persistent:
            return
        # Distinct starts, so that the states can settle in different minima.
        hidden = random_hidden(model, options.chains, random)
        self.visible_state = model.visible_mean(hidden, options.beta).detach()
        self.hidden_state = model.hidden_mean(self.visible_state, options.beta).detach()

    @torch.no_grad()
    def compute(self, batch: Tensor | Part) -> None:
        rows, all_rows = as_part(batch)
        model, options, n = self.model, self.options, len(rows)
        self._expansion.refresh()
        data_field = model.hidden_field(rows, options.beta)
        if options.persistent:
            visible, hidden = self.visible_state, self.hidden_state
            n_states = self._all_chains(len(visible))
        else:
            visible, hidden = rows.clone(), model.hidden.mean(data_field)
            n_states = all_rows
        for _ in range(options.n_steps):
            self._expansion.sweep(visible, hidden, options.damping)
        self._stack(n, len(visible), all_rows, n_states)
        self._visible[:n].copy_(rows)
        self._visible[n:].copy_(visible)
        model.hidden.mean(data_field, out=self._hidden[:n])
        self._hidden[n:].copy_(hidden)
        self._write_gradient()
        self._expansion.add_corrections(self._gradients()[0], visible, hidden, n_states)
        self._complete_gradient()

    def _persistent_state(self) -> dict[str, Tensor]:
        if not self.options.persistent:
            return {}
        return {"visible_state": self.visible_state, "hidden_state": self.hidden_state}

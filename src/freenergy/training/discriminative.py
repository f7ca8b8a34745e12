r"""Gradients of the discriminative RBM: of :math:`p(y \mid x)`, of :math:`p(x, y)`, or of both.

=====================  ==================================================================
``"discriminative"``   :math:`-\ln p(y \mid x)`, exact
``"generative"``       :math:`-\ln p(x, y)`, its negative phase sampled by Gibbs chains
``"hybrid"``           the first plus ``generative_weight`` times the second
=====================  ==================================================================

A row whose label is -1 is known without its class. It counts with :math:`-\ln p(x)` in the
generative term, where the expectation over :math:`p(y \mid x)` takes the place of the class, and
with nothing in the discriminative one.

With :math:`s_j(x, y) = \langle h_j \rangle` given a row and a class, everything that the data say
is a sum :math:`\beta \sum_{i y} D_{iy}\, s(x_i, y)` over rows and classes. The two terms differ in
the coefficients :math:`D`, so that one pass over the data serves both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from freenergy.models import DiscriminativeRBM
from freenergy.models.units import draw_category
from freenergy.random import RandomStream
from freenergy.training.options import (
    LoopOptions,
    check_not_negative,
    check_one_of,
    check_share,
    check_whole,
)
from freenergy.training.rows import LabelledBatch

__all__ = ["OBJECTIVES", "DiscriminativeGradient", "DiscriminativeOptions"]

OBJECTIVES = ("discriminative", "generative", "hybrid")
"""What :class:`DiscriminativeOptions` can ask to be minimised."""


@dataclass(frozen=True, kw_only=True)
class DiscriminativeOptions(LoopOptions):
    r"""Options of the training of a discriminative RBM, beside those of :class:`LoopOptions`.

    Parameters
    ----------
    objective : {"discriminative", "generative", "hybrid"}, default="discriminative"
        What is minimised: :math:`L_\text{disc} = \langle -\ln p(y \mid x) \rangle`,
        :math:`L_\text{gen} = \langle -\ln p(x, y) \rangle`, or
        :math:`L_\text{disc} + \alpha L_\text{gen}`.
    generative_weight : float, default=0.01
        :math:`\alpha` of the hybrid objective.
    n_steps : int, default=1
        Gibbs steps for each update of the generative term.
    n_chains : int or None, default=None
        Persistent chains; None is ``batch_size``.
    persistent : bool, default=True
        Whether the chains go on from update to update (PCD), or start at each batch (CD).
    input_dropout : float, default=0.0
        Share of the values of each row that the discriminative term does not see, in [0, 1).

    Raises
    ------
    ValueError
        When an option is impossible; the message names it.

    References
    ----------
    Larochelle and Bengio, *Classification using discriminative restricted Boltzmann machines*,
    2008.

    Examples
    --------
    >>> DiscriminativeOptions(objective="hybrid").generative_weight
    0.01
    """

    objective: str = "discriminative"
    generative_weight: float = 0.01
    n_steps: int = 1
    n_chains: int | None = None
    persistent: bool = True
    input_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_one_of("objective", self.objective, OBJECTIVES)
        super().__post_init__()
        check_not_negative("generative_weight", self.generative_weight)
        check_whole("n_steps", self.n_steps, 1)
        check_share("input_dropout", self.input_dropout)
        if self.n_chains is not None:
            check_whole("n_chains", self.n_chains, 1)

    @property
    def chains(self) -> int:
        """Number of persistent chains."""
        return self.batch_size if self.n_chains is None else self.n_chains

    @property
    def term_weights(self) -> tuple[float, float]:
        r"""Factors of :math:`L_\text{disc}` and of :math:`L_\text{gen}` in the objective."""
        if self.objective == "generative":
            return 0.0, 1.0
        return 1.0, self.generative_weight if self.objective == "hybrid" else 0.0


@dataclass(frozen=True, eq=False)
class _Phase:
    """One side of the gradient: rows and classes, with what each of them tells the hidden units."""

    rows: Tensor
    row_coefficient: Tensor
    class_coefficient: Tensor
    row_message: Tensor
    class_message: Tensor


class DiscriminativeGradient:
    r"""Gradient of the objective that ``options`` names, for one :class:`DiscriminativeRBM`.

    For a batch of *n* rows with weights :math:`w_i` it is that of
    :math:`\frac1n \sum_i w_i \ell_i`, where :math:`\ell_i` is the loss of one row: over the batches
    of an epoch these add up to the gradient of the weighted loss of all rows. (The mean
    :math:`\sum_i w_i \ell_i / \sum_i w_i` of a batch does not: it takes weight from the heavy rows,
    which bring much of it with them.) A row without a label has no discriminative loss, but counts
    in *n*.

    Parameters
    ----------
    model : DiscriminativeRBM
    options : DiscriminativeOptions
    random : RandomStream
        Source of the chains' draws, on the model's device.

    References
    ----------
    Larochelle and Bengio, *Classification using discriminative restricted Boltzmann machines*,
    2008;
    Larochelle, Mandel, Pascanu, Bengio, *Learning algorithms for the classification restricted
    Boltzmann machine*, 2012.

    Examples
    --------
    >>> import torch
    >>> from freenergy.models import DiscriminativeRBM
    >>> from freenergy.random import RandomStream
    >>> from freenergy.training.rows import LabelledBatch
    >>> model = DiscriminativeRBM(4, 3, 2)
    >>> gradient = DiscriminativeGradient(model, DiscriminativeOptions(), RandomStream(0))
    >>> gradient.compute(LabelledBatch(torch.eye(4), torch.tensor([0, 1, 2, -1]), None))
    >>> model.label_weight.grad.shape
    torch.Size([3, 2])
    """

    chain_axes: ClassVar[dict[str, int]] = {"chain": 0}
    """Chains in the state that several processes divide, and their axis."""

    def __init__(
        self, model: DiscriminativeRBM, options: DiscriminativeOptions, random: RandomStream
    ) -> None:
        self.model = model
        self.options = options
        self.random = random
        self._discriminative, self._generative = options.term_weights
        # Chains are kept by their hidden state, which they soon forget.
        self._chain: Tensor | None = None
        if self._generative > 0 and options.persistent:
            self._chain = model.weight.new_full(
                (options.chains, model.n_hidden), model.hidden.support[0], requires_grad=False
            )

    @torch.no_grad()
    def compute(self, batch: LabelledBatch) -> None:
        """Write the gradient for a batch into the parameters' ``.grad``.

        Parameters
        ----------
        batch : LabelledBatch
            Rows of shape (n, n_visible), labels from 0 or -1 where unknown, and weights or None.
        """
        rows, labels, weights = batch
        weights = rows.new_ones(len(rows)) if weights is None else weights.to(rows)
        share = weights / len(rows)
        factors = self._discriminative, self._generative
        phases = []
        if self.options.input_dropout and self._discriminative > 0:
            # Dropout is for the classes: the generative term sees the rows as they are.
            seen = self._dropped(rows)
            field = self.model.row_field(seen, self.options.beta)
            log_proba = self._log_proba(field)
            phases.append(
                self._data_phase(seen, field, labels, share, log_proba, (self._discriminative, 0.0))
            )
            factors = 0.0, self._generative
        if any(factors):
            field = self.model.row_field(rows, self.options.beta)
            guess = None
            if factors[0] > 0 or bool((labels < 0).any()):
                guess = self._log_proba(field)
            phases.append(self._data_phase(rows, field, labels, share, guess, factors))
            if self._generative > 0:
                phases.append(self._model_phase(field, labels, share, guess))
        self._write_gradient(phases)

    def measure(self) -> dict[str, Any]:
        """Nothing beyond what monitors see."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Tensors that must persist between updates, by name."""
        return {} if self._chain is None else {"chain": self._chain}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from tensors that :meth:`state` returned."""
        if self._chain is not None:
            if len(self._chain) != len(state["chain"]):
                # Processes divide them, and join them again.
                self._chain = self._chain.new_empty(state["chain"].shape)
            self._chain.copy_(state["chain"])

    def _dropped(self, rows: Tensor) -> Tensor:
        """Rows with a share of their values set to zero, the others scaled up."""
        keep = 1.0 - self.options.input_dropout
        return self.random.bernoulli_(torch.full_like(rows, keep)).mul_(rows).div_(keep)

    def _data_phase(
        self,
        rows: Tensor,
        field: Tensor,
        labels: Tensor,
        share: Tensor,
        log_proba: Tensor | None,
        factors: tuple[float, float],
    ) -> _Phase:
        """What the rows say, with the factors of the discriminative and the generative term."""
        discriminative, generative = factors
        row_coefficient = -generative * share
        if log_proba is None:
            return self._phase_of_classes(rows, field, labels, row_coefficient)
        known = (labels >= 0)[:, None]
        proba = log_proba.exp()
        certain = self._one_hot(labels.clamp(min=0)) * known
        class_coefficient = discriminative * (proba * known - certain)
        class_coefficient -= generative * torch.where(known, certain, proba)
        class_coefficient *= share[:, None]
        row_message = torch.empty_like(field)
        class_message = torch.zeros_like(self.model.label_weight)
        for part, fields in self.model.class_fields(field, self.options.beta):
            mean = self.model.hidden.mean(fields, out=fields)
            mean *= class_coefficient[part, :, None]
            torch.sum(mean, 1, out=row_message[part])
            class_message += mean.sum(0)
        return _Phase(rows, row_coefficient, class_coefficient, row_message, class_message)

    def _model_phase(
        self, field: Tensor, labels: Tensor, share: Tensor, log_proba: Tensor | None
    ) -> _Phase:
        """States of the chains, which go on from where they stand or start at the batch."""
        model, beta = self.model, self.options.beta
        if self._chain is None:
            if log_proba is not None:
                labels = torch.where(labels < 0, draw_category(log_proba, self.random), labels)
            hidden = self._sample_hidden(field, labels)
        else:
            hidden = self._chain
            share = (share.sum() / len(hidden)).expand(len(hidden))
        rows, classes = self._sample_row(hidden)
        for _ in range(self.options.n_steps - 1):
            hidden = self._sample_hidden(model.row_field(rows, beta), classes)
            rows, classes = self._sample_row(hidden)
        field = model.row_field(rows, beta)
        if self._chain is not None:
            self._chain.copy_(self._sample_hidden(field, classes))
        return self._phase_of_classes(rows, field, classes, self._generative * share)

    def _phase_of_classes(
        self, rows: Tensor, field: Tensor, classes: Tensor, coefficient: Tensor
    ) -> _Phase:
        """The phase of rows whose classes are known, each with a coefficient of its own."""
        one_hot = self._one_hot(classes)
        mean = self.model.hidden.mean(self._hidden_field(field, classes))
        message = mean.mul_(coefficient[:, None])
        class_coefficient = one_hot * coefficient[:, None]
        return _Phase(rows, coefficient, class_coefficient, message, one_hot.T @ message)

    def _write_gradient(self, phases: list[_Phase]) -> None:
        model, beta = self.model, self.options.beta
        weight, label_weight, visible_bias, label_bias, hidden_bias = map(
            _zero_gradient,
            (
                model.weight,
                model.label_weight,
                model.visible_bias,
                model.label_bias,
                model.hidden_bias,
            ),
        )
        for phase in phases:
            weight.addmm_(phase.rows.T, phase.row_message, alpha=beta)
            label_weight.add_(phase.class_message, alpha=beta)
            visible_bias.addmv_(phase.rows.T, phase.row_coefficient, alpha=beta)
            label_bias.add_(phase.class_coefficient.sum(0), alpha=beta)
            hidden_bias.add_(phase.row_message.sum(0), alpha=beta)

    def _log_proba(self, field: Tensor) -> Tensor:
        return torch.log_softmax(self.model.class_log_weights(field, self.options.beta), -1)

    def _hidden_field(self, field: Tensor, classes: Tensor) -> Tensor:
        return torch.add(field, self.model.label_weight[classes], alpha=self.options.beta)

    def _sample_hidden(self, field: Tensor, classes: Tensor) -> Tensor:
        total = self._hidden_field(field, classes)
        return self.model.hidden.sample(total, self.random, total)

    def _sample_row(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """A row and its class: given the hidden units, neither depends on the other."""
        model, beta = self.model, self.options.beta
        rows = model.sample_visible(hidden, self.random, beta)
        return rows, model.sample_labels(hidden, self.random, beta)

    def _one_hot(self, classes: Tensor) -> Tensor:
        return one_hot(classes, self.model.n_classes).to(self.model.weight.dtype)


def _zero_gradient(parameter: nn.Parameter) -> Tensor:
    """A parameter's ``.grad``, made where absent: at first, and after unpickling."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad.zero_()

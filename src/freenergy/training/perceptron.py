"""Training of multilayer perceptrons: losses, the penalty of the weights, and two ways down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import scipy.optimize
import torch
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    poisson_nll_loss,
)
from torch.nn.utils import get_total_norm, parameters_to_vector

from freenergy.distributed import ALONE, Group
from freenergy.models.mlp import linear_layers
from freenergy.normalization.constraints import apply_constraint
from freenergy.normalization.layers import of_whole_batches, over_processes
from freenergy.random import RandomStream
from freenergy.training.backprop import Backpropagation
from freenergy.training.members import gradients_of
from freenergy.training.options import LoopOptions, check_not_negative, check_positive, check_share
from freenergy.training.rows import LabelledBatch, LabelledRows, as_part
from freenergy.training.trainer import Trainer

__all__ = [
    "LOSSES",
    "PerceptronGradient",
    "PerceptronOptions",
    "PerceptronTrainer",
    "minimize_lbfgs",
]

_OF_TWO_MODES = (nn.BatchNorm1d, nn.Dropout, nn.AlphaDropout)

RowLoss = Callable[[Tensor, Tensor], Tensor]
"""Takes outputs and targets of shape (n, n_outputs), returns the loss of each row."""


def softmax_log_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    r""":math:`-\ln p(y \mid x)` of one class among several, given as a number of shape (n,)."""
    return cross_entropy(outputs, targets, reduction="none")


def logistic_log_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    r""":math:`-\sum_k \ln p(y_k \mid x)` of independent labels 0 or 1."""
    return binary_cross_entropy_with_logits(outputs, targets, reduction="none").sum(1)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    r""":math:`\tfrac12 \sum_k (f_k(x) - y_k)^2`."""
    return 0.5 * (outputs - targets).square().sum(1)


def poisson_deviance(outputs: Tensor, targets: Tensor) -> Tensor:
    r"""Half the deviance, :math:`\sum_k y_k \ln(y_k / \mu_k) - y_k + \mu_k`, :math:`\mu = e^f`."""
    deviance = poisson_nll_loss(outputs, targets, reduction="none")
    return (deviance + torch.xlogy(targets, targets) - targets).sum(1)


LOSSES: dict[str, RowLoss] = {
    "softmax": softmax_log_loss,
    "logistic": logistic_log_loss,
    "identity": squared_error,
    "exp": poisson_deviance,
}
"""Loss of each row by the activation of the outputs, of which it is the canonical one."""


@dataclass(frozen=True, kw_only=True)
class PerceptronOptions(LoopOptions):
    r"""Options of the training of a perceptron: those of :class:`LoopOptions`, and these.

    Parameters
    ----------
    alpha : float, default=0.0001
        Penalty of the weights, :math:`\frac{\alpha}{2 m} \lVert W \rVert^2` for a batch whose rows
        weigh :math:`m` in all, which is scikit-learn's.
    nesterov : bool, default=True
        Whether SGD's momentum is Nesterov's.
    beta_1, beta_2, epsilon : float
        Of Adam; ``epsilon`` of RMSprop too.

    Raises
    ------
    ValueError
        When an option is impossible; the message names it.

    Examples
    --------
    >>> PerceptronOptions(optimizer="adam").beta_2
    0.999
    """

    alpha: float = 1e-4
    nesterov: bool = True
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative("alpha", self.alpha)
        check_share("beta_1", self.beta_1)
        check_share("beta_2", self.beta_2)
        check_positive("epsilon", self.epsilon)


class PerceptronGradient(Backpropagation):
    r"""Gradient of the weighted mean of a loss, which also keeps count of the loss itself.

    Parameters
    ----------
    model : torch.nn.Sequential
    out_activation : str
        Key of :data:`LOSSES`.
    alpha : float
        See :class:`PerceptronOptions`; the gradient of the penalty is left to the optimiser.
    seed : int, default=0
        Of the dropout.

    Attributes
    ----------
    group : Group
        The processes over which :meth:`compute`, which each of them calls, averages. Batch
        normalisation is that of the whole batch in all of them.
    batch_weight : float
        Weight of the rows of the last batch.
    batch_loss : Tensor
        Its loss with the penalty, before the update. A squared error is averaged over the outputs.
    objective : Tensor
        What is minimised: the same, but with a squared error summed over the outputs.

    Examples
    --------
    >>> import torch
    >>> from freenergy.training import LabelledBatch
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 1))
    >>> gradient = PerceptronGradient(net, "identity", alpha=0.0)
    >>> gradient.compute(LabelledBatch(torch.eye(3), torch.zeros(3, 1), None))
    >>> net[0].weight.grad.shape, gradient.batch_weight
    (torch.Size([1, 3]), 3.0)
    """

    group: Group = ALONE
    _sums: bool = False

    def __init__(
        self, model: nn.Sequential, out_activation: str, alpha: float, *, seed: int = 0
    ) -> None:
        super().__init__(model, self._mean_loss, seed=seed)
        self._mean = next(model.parameters()).new_zeros(())
        self._n_outputs = linear_layers(model)[-1].out_features
        self.row_loss = LOSSES[out_activation]
        self.averages_outputs = out_activation == "identity"
        self.alpha = alpha
        self._weights = [layer.weight for layer in linear_layers(model)]
        self._has_modes = any(isinstance(layer, _OF_TWO_MODES) for layer in model)
        self._begin_count()

    def compute(self, batch: Any) -> None:
        """Write the gradient for a batch into the parameters' ``.grad``.

        It is that of the whole batch, where several processes have parts of it.
        """
        part, n_rows = as_part(batch)
        if self.group.size > 1 and (layers := of_whole_batches(self.model)):
            with over_processes(layers, self.group):
                self._compute_sums(part)
        else:
            self._compute_means(part)
        self._count_batch(n_rows)

    def _compute_means(self, batch: LabelledBatch) -> None:
        """From what each process finds for its rows alone."""
        if len(batch.rows):
            self._compute_part(batch)
        else:
            self.batch_weight = 0.0
        if self.group.size > 1:
            self._average()

    def _compute_sums(self, batch: LabelledBatch) -> None:
        """From the sum of the losses of all rows, each of which depends on the other rows too."""
        self._sums = True
        try:
            self._compute_part(batch)
        finally:
            del self._sums
        mean, total = self._mean.reshape(1), self._mean.new_tensor([self.batch_weight])
        sums = [*gradients_of(self.model), mean]
        self.group.average_([*sums, total], 1.0)
        for tensor in sums:
            tensor.div_(total)
        self._mean, self.batch_weight = mean[0], float(total) * self.group.size

    def _compute_part(self, batch: LabelledBatch) -> None:
        if self._has_modes:
            super().compute(batch)
            return
        # To switch the modes of a deep net costs as much as a layer, and here they are the same.
        self.model.zero_grad(set_to_none=True)
        with torch.enable_grad():
            self.loss(self.model, batch).backward()

    def _average(self) -> None:
        """The gradient and the loss of all processes' rows."""
        mean = self._mean.reshape(1)
        total = self.group.average_([*gradients_of(self.model), mean], self.batch_weight)
        self._mean, self.batch_weight = mean[0], float(total)

    def _begin_count(self) -> None:
        self._count = 0
        self._total = torch.zeros((), dtype=torch.float64, device=self._device)

    def _mean_loss(self, model: nn.Sequential, batch: LabelledBatch) -> Tensor:
        outputs = model(batch.rows)
        losses, n = self.row_loss(outputs, batch.labels), len(batch.rows)
        if self._sums:
            weights = torch.ones_like(losses) if batch.weights is None else batch.weights
            self.batch_weight = float(weights.sum())
            total = weights @ losses
            self._mean = total.detach().clone()
            return total
        if batch.weights is None:
            self.batch_weight = float(n)
            mean = losses.mean()
        else:
            self.batch_weight = float(batch.weights.sum())
            mean = (batch.weights @ losses) / self.batch_weight
        self._mean = mean.detach()
        return mean

    @torch.no_grad()
    def _count_batch(self, n: int) -> None:
        """Keep count of the loss of a batch, with the penalty."""
        mean, penalty = self._mean, self._penalty()
        shown = mean / self._n_outputs if self.averages_outputs else mean
        self.batch_loss, self.objective = shown + penalty, mean + penalty
        self._total += n * self.batch_loss
        self._count += n

    def _penalty(self) -> Tensor:
        norm = get_total_norm([weight.detach() for weight in self._weights])
        return (0.5 * self.alpha / self.batch_weight) * norm.square()

    def measure(self) -> dict[str, Any]:
        """Mean loss of the rows since this was last asked, each before the update by its batch."""
        loss = float(self._total) / max(self._count, 1)
        self._begin_count()
        return {"loss": loss}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from tensors that :meth:`state` returned, with a new count."""
        super().restore(state)
        self._begin_count()


class PerceptronTrainer(Trainer):
    """Trainer whose weights decay as scikit-learn's do, and stay within ``max_norm``.

    Parameters
    ----------
    model : torch.nn.Sequential
    options : PerceptronOptions
        With ``weight_constraint``, the incoming weights of each hidden unit are projected after
        each update.
    random : RandomStream
    gradient : PerceptronGradient
    order : RandomStream or None, default=None
        As in :class:`Trainer`.

    Examples
    --------
    >>> import torch
    >>> from freenergy.random import RandomStream
    >>> from freenergy.training import LabelledRows, as_rows
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 1))
    >>> rows = LabelledRows(as_rows(torch.eye(3), like=torch.empty(0)), torch.zeros(3, 1))
    >>> gradient = PerceptronGradient(net, "identity", alpha=0.0)
    >>> options = PerceptronOptions(n_epochs=5, learning_rate=0.1)
    >>> trainer = PerceptronTrainer(net, options, RandomStream(0), gradient=gradient)
    >>> trainer.fit(rows)
    >>> trainer.history[-1]["loss"] < trainer.history[0]["loss"]
    True
    """

    def __init__(
        self,
        model: nn.Sequential,
        options: PerceptronOptions,
        random: RandomStream,
        *,
        gradient: PerceptronGradient,
        order: RandomStream | None = None,
    ) -> None:
        super().__init__(model, options, random, gradient=gradient, order=order)
        self.optimizer = _optimizer(model, options)

    def update(self, batch: Any) -> None:
        """Follow the gradient of one batch, the penalty included, and project."""
        gradient = cast(PerceptronGradient, self.gradient)
        self._compute(batch)
        # The optimiser adds the gradient of the penalty in the same sweep over the weights.
        decay = self.options.alpha / gradient.batch_weight
        self.optimizer.param_groups[0]["weight_decay"] = decay
        self.optimizer.step()
        if self.options.weight_constraint is not None:
            for layer in linear_layers(self.model)[:-1]:
                apply_constraint(
                    layer.weight, self.options.weight_constraint, self.options.max_norm, dim=1
                )

    def constrain(self) -> None:
        """Nothing: each update has done it."""

    def set_rate(self, rate: float) -> None:
        """Learn at another rate from now on; what momentum has gathered goes on as far as before.

        Torch's momentum is in units of the gradient, scikit-learn's in those of the weights.
        """
        before = self.options.learning_rate
        if rate == before:
            return
        self.options = replace(self.options, learning_rate=rate)
        if self.options.optimizer == "sgd":
            for kept in self.optimizer.state.values():
                if kept.get("momentum_buffer") is not None:
                    kept["momentum_buffer"].mul_(before / rate)


def _optimizer(model: nn.Sequential, options: PerceptronOptions) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.dim() > 1]},
        {"params": [p for p in model.parameters() if p.dim() <= 1]},
    ]
    rate, momentum = options.learning_rate, options.momentum
    if options.optimizer == "adam":
        betas = (options.beta_1, options.beta_2)
        return torch.optim.Adam(groups, lr=rate, betas=betas, eps=options.epsilon, fused=True)
    if options.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=rate, momentum=momentum, eps=options.epsilon)
    nesterov = options.nesterov and momentum > 0
    return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=nesterov, fused=True)


def minimize_lbfgs(
    model: nn.Sequential,
    gradient: PerceptronGradient,
    rows: LabelledRows,
    *,
    max_iter: int,
    max_fun: int,
    tol: float,
) -> Any:
    """Minimise the loss of all rows with its penalty by SciPy's L-BFGS-B, in double precision.

    Parameters
    ----------
    model : torch.nn.Sequential
        Changed in place.
    gradient : PerceptronGradient
    rows : LabelledRows
        Dense at once, where they are sparse.
    max_iter, max_fun : int
        Largest numbers of iterations, and of losses computed.
    tol : float
        Stop where no component of the gradient is larger.

    Returns
    -------
    scipy.optimize.OptimizeResult

    References
    ----------
    Byrd, Lu, Nocedal, Zhu, *A limited memory algorithm for bound constrained optimization*, 1995.
    """
    batch = rows.take(slice(0, len(rows)))
    parameters = list(model.parameters())

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        _set_parameters(parameters, theta)
        gradient.compute(batch)
        decay = gradient.alpha / gradient.batch_weight
        slopes = [
            p.grad.add(p, alpha=decay) if p.dim() > 1 else p.grad
            for p in parameters
            if p.grad is not None
        ]
        slope = parameters_to_vector(slopes).detach().double().cpu().numpy()
        return float(gradient.objective), slope

    start = parameters_to_vector(parameters).detach().double().cpu().numpy()
    found = scipy.optimize.minimize(
        objective,
        start,
        method="L-BFGS-B",
        jac=True,
        options={"maxiter": max_iter, "maxfun": max_fun, "gtol": tol},
    )
    _set_parameters(parameters, found.x)
    # The line search may have looked elsewhere last.
    gradient.compute(batch)
    return found


@torch.no_grad()
def _set_parameters(parameters: list[nn.Parameter], values: np.ndarray) -> None:
    parts = torch.from_numpy(values).split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.copy_(part.view_as(parameter))

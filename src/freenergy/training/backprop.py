"""Gradients by backpropagation of a loss that torch can differentiate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from freenergy.training.rows import LabelledBatch

__all__ = ["Backpropagation", "mean_cross_entropy"]


class Backpropagation:
    r"""Gradient of :math:`\text{loss}(\text{model}, \text{batch})` by automatic differentiation.

    Layers that draw random numbers, such as :class:`torch.nn.Dropout`, draw them from a stream of
    torch's own, which is stored with the state: one seed gives the same bits, and the global
    stream of torch is left as it was.

    Parameters
    ----------
    model : nn.Module
    loss : callable
        Takes the model and a batch, and returns a scalar.
    seed : int, default=0
        Of the model's random layers.

    Examples
    --------
    >>> import torch
    >>> from freenergy.training import LabelledBatch
    >>> net = torch.nn.Linear(3, 2)
    >>> gradient = Backpropagation(net, mean_cross_entropy)
    >>> gradient.compute(LabelledBatch(torch.eye(3), torch.tensor([0, 1, -1]), None))
    >>> net.weight.grad.shape
    torch.Size([2, 3])
    """

    def __init__(
        self, model: nn.Module, loss: Callable[[Any, Any], Tensor], *, seed: int = 0
    ) -> None:
        self.model = model
        self.loss = loss
        self._draws = torch.Generator().manual_seed(seed).get_state()

    def compute(self, batch: Any) -> None:
        """Write the gradient for a batch into the parameters' ``.grad``."""
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        before = torch.get_rng_state()
        torch.set_rng_state(self._draws)
        try:
            with torch.enable_grad():
                self.loss(self.model, batch).backward()
            self._draws = torch.get_rng_state()
        finally:
            torch.set_rng_state(before)
            self.model.eval()

    def measure(self) -> dict[str, Any]:
        """Nothing beyond what monitors see."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """The stream of the random layers."""
        return {"draws": self._draws}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from tensors that :meth:`state` returned."""
        self._draws = state["draws"].cpu().clone()


def mean_cross_entropy(model: nn.Module, batch: LabelledBatch) -> Tensor:
    r"""Mean of :math:`-\ln p(y \mid x)` of the labelled rows, of a model that returns logits.

    .. math:: \frac{\sum_i w_i\,(-\ln p(y_i \mid x_i))}{\sum_i w_i}

    Rows whose label is -1 are passed over; where all are, the loss is zero.
    """
    labelled = batch.labels >= 0
    losses = cross_entropy(model(batch.rows[labelled]), batch.labels[labelled], reduction="none")
    weights = torch.ones_like(losses) if batch.weights is None else batch.weights[labelled]
    return (weights * losses).sum() / weights.sum().clamp(min=torch.finfo(losses.dtype).tiny)

"""Gradients by backpropagation of a loss that torch can differentiate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

from freenergy.training.rows import LabelledBatch, rows_in

__all__ = ["Backpropagation", "mean_cross_entropy"]


class Backpropagation:
    r"""Gradient of :math:`\text{loss}(\text{model}, \text{batch})` by automatic differentiation.

    Layers that draw random numbers, such as :class:`torch.nn.Dropout`, draw them from a stream of
    this gradient's own, which is stored with the state: one seed gives the same bits, and the
    global streams of torch are left as they were.

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
        # Random layers draw from the global stream of the device that they run on.
        self._device = next(model.parameters()).device
        self._draws = torch.Generator(self._device).manual_seed(seed).get_state()

    def compute(self, batch: Any) -> None:
        """Write the gradient for a batch into the parameters' ``.grad``."""
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        before = self._global_stream()
        self._set_global_stream(self._draws)
        try:
            with torch.enable_grad():
                self.loss(self.model, batch).backward()
            self._draws = self._global_stream()
        finally:
            self._set_global_stream(before)
            self.model.eval()

    def weigh(self, batch: Any) -> float:
        """Rows that the mean over a batch is taken over: those that have a label, or all."""
        if isinstance(batch, LabelledBatch) and not batch.labels.is_floating_point():
            return float((batch.labels >= 0).sum())
        return float(rows_in(batch))

    def reseed(self, seed: int) -> None:
        """Let the random layers draw from another stream from now on."""
        self._draws = torch.Generator(self._device).manual_seed(seed).get_state()

    def measure(self) -> dict[str, Any]:
        """Nothing beyond what monitors see."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """The stream of the random layers."""
        return {"draws": self._draws}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from tensors that :meth:`state` returned.

        The stream of another kind of device cannot go on here: it then starts from the seed.
        """
        draws = state["draws"].cpu()
        if draws.shape == self._draws.shape:
            self._draws = draws.clone()

    def _global_stream(self) -> Tensor:
        if self._device.type == "cuda":
            return torch.cuda.get_rng_state(self._device)
        return torch.get_rng_state()

    def _set_global_stream(self, state: Tensor) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state, self._device)
        else:
            torch.set_rng_state(state)


def mean_cross_entropy(
    model: nn.Module, batch: LabelledBatch, *, input_dropout: float = 0.0
) -> Tensor:
    r"""Mean of :math:`-\ln p(y \mid x)` times the weight, of a model that returns logits.

    .. math:: \frac1n \sum_{i=1}^n w_i\,(-\ln p(y_i \mid x_i))

    over the *n* rows that have a label. Where the weights of all rows of an epoch have a mean of
    one, the batches' gradients average to that of the weighted mean of all.

    Parameters
    ----------
    model : nn.Module
        From rows of shape (n, n_features) to logits of shape (n, n_classes).
    batch : LabelledBatch
        Rows whose label is -1 are passed over; where all are, the loss is zero.
    input_dropout : float, default=0.0
        Share of the values in the rows that are set to zero, the others scaled up.

    Returns
    -------
    Tensor of shape ()
        In nats.

    Examples
    --------
    Equal logits for two classes:

    >>> import torch
    >>> from freenergy.training import LabelledBatch
    >>> batch = LabelledBatch(torch.ones(2, 3), torch.tensor([0, 1]), torch.tensor([1.5, 0.5]))
    >>> loss = mean_cross_entropy(lambda rows: torch.zeros(len(rows), 2), batch)
    >>> bool(torch.isclose(loss, torch.tensor(2.0).log()))
    True
    """
    labelled = batch.labels >= 0
    rows = dropout(batch.rows[labelled], input_dropout, training=input_dropout > 0)
    losses = cross_entropy(model(rows), batch.labels[labelled], reduction="none")
    if batch.weights is not None:
        losses = losses * batch.weights[labelled]
    return losses.sum() / max(1, len(losses))

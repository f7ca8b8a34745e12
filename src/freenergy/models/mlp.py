"""Multilayer perceptrons, put together from torch's layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from freenergy.normalization.layers import BatchNorm, GhostBatchNorm
from freenergy.random import RandomStream

__all__ = [
    "ACTIVATIONS",
    "INITIALIZATIONS",
    "NORMALIZATIONS",
    "initialize_perceptron",
    "layered",
    "linear_layers",
    "multilayer_perceptron",
]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "logistic": nn.Sigmoid,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
}
"""Activations by name: torch's, with its defaults; ``"logistic"`` is ``"sigmoid"``."""

NORMALIZATIONS = (None, "batch", "ghost_batch", "self", "max_norm")
"""Names that :func:`multilayer_perceptron` knows."""

INITIALIZATIONS = ("auto", "glorot", "he", "lecun")
"""Names that :func:`initialize_perceptron` knows."""

_RECTIFIERS = ("relu", "leaky_relu", "elu")
_SHALLOW = 3


def multilayer_perceptron(
    n_features: int,
    hidden_layer_sizes: Sequence[int],
    n_outputs: int,
    *,
    activation: str = "relu",
    normalization: str | None = None,
    dropout: float = 0.0,
    ghost_batch_size: int = 32,
) -> nn.Sequential:
    r"""A net of :math:`h_l = D\,\phi(N(W_l h_{l-1} + b_l))`, and a linear layer at its end.

    Parameters
    ----------
    n_features, n_outputs : int
    hidden_layer_sizes : sequence of int
        May be empty: a linear model.
    activation : str, default="relu"
        :math:`\phi`, one of :data:`ACTIVATIONS`.
    normalization : {"batch", "ghost_batch", "self", "max_norm"} or None, default=None
        :math:`N`: over the batch or over parts of it. The identity for ``"self"``, which needs
        ``activation="selu"``, and for ``"max_norm"``, which is a matter of training.
    dropout : float, default=0.0
        :math:`D`: share of the hidden units that are dropped in training. For SELU this is alpha
        dropout, which keeps mean and variance.
    ghost_batch_size : int, default=32

    Returns
    -------
    torch.nn.Sequential
        In evaluation mode, its parameters not set yet: see :func:`initialize_perceptron`.

    Raises
    ------
    ValueError
        When a name is not known or does not fit the others.

    References
    ----------
    Klambauer et al., *Self-normalizing neural networks*, NIPS 2017 (SELU, alpha dropout).

    Examples
    --------
    >>> multilayer_perceptron(4, (3,), 2, activation="selu", dropout=0.1)
    Sequential(
      (0): Linear(in_features=4, out_features=3, bias=True)
      (1): SELU()
      (2): AlphaDropout(p=0.1, inplace=False)
      (3): Linear(in_features=3, out_features=2, bias=True)
    )
    """
    if activation not in ACTIVATIONS:
        known = ", ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"activation must be one of {known}, got {activation!r}")
    if normalization not in NORMALIZATIONS:
        known = ", ".join(map(repr, NORMALIZATIONS))
        raise ValueError(f"normalization must be one of {known}, got {normalization!r}")
    if normalization == "self" and activation != "selu":
        raise ValueError(
            f"normalization='self' needs activation='selu', which alone has the fixed point of "
            f"mean 0 and variance 1; got activation={activation!r}"
        )

    def behind(n_units: int) -> list[nn.Module]:
        layers: list[nn.Module] = []
        if normalization == "batch":
            layers.append(BatchNorm(n_units))
        elif normalization == "ghost_batch":
            layers.append(GhostBatchNorm(n_units, ghost_batch_size))
        layers.append(ACTIVATIONS[activation]())
        if dropout > 0:
            layers.append((nn.AlphaDropout if activation == "selu" else nn.Dropout)(dropout))
        return layers

    return layered((n_features, *hidden_layer_sizes, n_outputs), _linear, behind).eval()


def layered(
    sizes: Sequence[int],
    linear: Callable[[int, int], nn.Linear],
    behind: Callable[[int], Iterable[nn.Module]],
) -> nn.Sequential:
    """A net of linear layers, the last of them bare.

    Parameters
    ----------
    sizes : sequence of int
        From the number of inputs to that of outputs.
    linear : callable
        Makes the layer between two sizes.
    behind : callable
        Makes the modules behind a hidden layer of so many units.

    Returns
    -------
    torch.nn.Sequential

    Examples
    --------
    >>> layered((4, 3, 2), torch.nn.Linear, lambda n_units: [torch.nn.Tanh()])
    Sequential(
      (0): Linear(in_features=4, out_features=3, bias=True)
      (1): Tanh()
      (2): Linear(in_features=3, out_features=2, bias=True)
    )
    """
    *hidden, last = pairwise(sizes)
    layers: list[nn.Module] = []
    for n_in, n_out in hidden:
        layers += [linear(n_in, n_out), *behind(n_out)]
    return nn.Sequential(*layers, linear(*last))


def _linear(n_in: int, n_out: int) -> nn.Linear:
    # Without torch's initialisation, which draws from its global stream.
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out)
    assert isinstance(layer, nn.Linear)
    return layer


def linear_layers(net: nn.Module) -> list[nn.Linear]:
    """The linear layers of a net and of its parts, from the first to that of the outputs.

    Parameters
    ----------
    net : torch.nn.Module

    Returns
    -------
    list of torch.nn.Linear

    Examples
    --------
    >>> [layer.out_features for layer in linear_layers(multilayer_perceptron(4, (3, 5), 2))]
    [3, 5, 2]
    """
    return [layer for layer in net.modules() if isinstance(layer, nn.Linear)]


@torch.no_grad()
def initialize_perceptron(
    net: nn.Sequential, random: RandomStream, *, activation: str = "relu", init: str = "auto"
) -> None:
    r"""Draw the weights of a net.

    =========  =======================================================  ======================
    init       weights                                                  biases
    =========  =======================================================  ======================
    "glorot"   uniform in :math:`\pm\sqrt{6 / (n_{in} + n_{out})}`,     as the weights
               with 2 for 6 where ``activation`` is a sigmoid
    "he"       normal, variance :math:`2 / n_{in}`                      0
    "lecun"    normal, variance :math:`1 / n_{in}`                      0
    =========  =======================================================  ======================

    The first is scikit-learn's. The layer of the outputs has variance :math:`1 / n_{in}` with
    ``"he"`` too. ``"auto"`` keeps the signal alive at any depth: ``"lecun"`` for SELU; ``"he"``
    for relu, leaky_relu and elu behind one another in more than three hidden layers, where
    Glorot's halves the differences between rows in each; and ``"glorot"`` elsewhere.

    Parameters
    ----------
    net : torch.nn.Sequential
        As :func:`multilayer_perceptron` gives it; changed in place.
    random : RandomStream
        The draws are the same for every precision and device of the net.
    activation : str, default="relu"
    init : {"auto", "glorot", "he", "lecun"}, default="auto"

    Raises
    ------
    ValueError
        When ``init`` is not known.

    References
    ----------
    Glorot and Bengio, AISTATS 2010; He et al., arXiv:1502.01852; LeCun et al., *Efficient
    BackProp*, 1998.

    Examples
    --------
    >>> from freenergy.random import RandomStream
    >>> net = multilayer_perceptron(100, (100,), 1, activation="selu")
    >>> initialize_perceptron(net, RandomStream(0), activation="selu")
    >>> round(float(net[0].weight.detach().var()) * 100)
    1
    """
    if init not in INITIALIZATIONS:
        known = ", ".join(map(repr, INITIALIZATIONS))
        raise ValueError(f"init must be one of {known}, got {init!r}")
    layers = linear_layers(net)
    if init == "auto":
        init = _fitting(activation, len(layers) - 1)
    for layer in layers:
        shape = (layer.in_features, layer.out_features)
        if init == "glorot":
            factor = 2.0 if activation in ("logistic", "sigmoid") else 6.0
            bound = math.sqrt(factor / sum(shape))
            layer.weight.copy_(_uniform(random, shape, bound).T)
            layer.bias.copy_(_uniform(random, shape[1:], bound))
        else:
            gain = 2.0 if init == "he" and layer is not layers[-1] else 1.0
            layer.weight.copy_(random.normal(shape, math.sqrt(gain / shape[0])).T)
            layer.bias.zero_()


def _fitting(activation: str, n_hidden: int) -> str:
    if activation == "selu":
        return "lecun"
    return "he" if activation in _RECTIFIERS and n_hidden > _SHALLOW else "glorot"


def _uniform(random: RandomStream, shape: tuple[int, ...], bound: float) -> Tensor:
    """Draws from [-bound, bound), in double precision, where the stream lives."""
    draws = torch.empty(shape, dtype=torch.float64, device=random.device)
    return random.uniform_(draws).mul_(2.0 * bound).sub_(bound)

"""One deep net of the study of depth: its kind, its training, and what is read of it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from freenergy.models.mlp import initialize_perceptron, multilayer_perceptron
from freenergy.normalization import predict_depth
from freenergy.normalization.layers import set_population_statistics
from freenergy.random import RandomStream
from freenergy.thermodynamics.watching.diffusion import Distance
from freenergy.thermodynamics.watching.probe import probe
from freenergy.training import DivergenceError, LabelledRows, as_rows
from freenergy.training.perceptron import PerceptronGradient, PerceptronOptions, PerceptronTrainer
from freenergy.training.trainer import Trainer

__all__ = ["KINDS", "Kind", "NetSpec", "Parts", "in_prose", "train_net"]

_BLOCK = 4096
_PROBED_ROWS = 512


class Kind(NamedTuple):
    """How a net keeps its signal alive, or does not."""

    activation: str
    normalization: str | None
    init: str


KINDS = {
    "SELU": Kind("selu", "self", "lecun"),
    "ReLU": Kind("relu", None, "he"),
    "ReLU, batch norm": Kind("relu", "batch", "he"),
    "sigmoid, batch norm": Kind("sigmoid", "batch", "lecun"),
    "tanh": Kind("tanh", None, "lecun"),
    "sigmoid": Kind("sigmoid", None, "lecun"),
}
"""The nets that are compared, by the names that the page gives them."""


def in_prose(kind: str) -> str:
    """The name of a kind without its comma, which would part it in a list."""
    return kind.replace(", ", " with ")


_WEIGHT_SQUARE_SUM = {"he": 2.0, "lecun": 1.0}


@dataclass(frozen=True, kw_only=True)
class NetSpec:
    """A net and how it is trained.

    Attributes
    ----------
    kind : str
        Key of :data:`KINDS`.
    depth, width : int
        Hidden layers, and units in each.
    n_epochs, batch_size : int
    learning_rate : float
        Of Adam.
    max_norm : bool
        Whether the norm of each hidden unit's incoming weights stays within that of the start, 1
        or √2: they turn, but the temperature does not fall.
    dropout : float
        Share of the hidden units.
    alpha_dropout : bool
        Whether a SELU net drops to its negative plateau, or to zero as the others do.
    ghost_batch_size : int or None
        Batch normalisation over parts of the batch, where given.
    all_rows : bool
        Whether all rows are learned from, or the study's share.
    schedule : {"inverse", "cosine"}
        Of the learning rate: constant, or down to zero.
    seed : int
    """

    kind: str
    depth: int
    width: int
    n_epochs: int
    batch_size: int
    learning_rate: float
    max_norm: bool = False
    dropout: float = 0.0
    alpha_dropout: bool = True
    ghost_batch_size: int | None = None
    all_rows: bool = False
    schedule: str = "inverse"
    seed: int = 0

    @property
    def file_name(self) -> str:
        """A name for what is stored of this net."""
        values = dataclasses.asdict(self)
        parts = [values.pop("kind").replace(", ", "-").replace(" ", "-").lower()]
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        parts += [f"{name}={v}" for name, v in values.items() if v != defaults[name]]
        return "_".join(parts).replace("_size", "").replace("learning_rate", "rate") + ".json"


class Parts(NamedTuple):
    """Standardised rows to learn from and to judge by, with their classes."""

    x: np.ndarray
    y: np.ndarray
    x_held_out: np.ndarray
    y_held_out: np.ndarray
    n_classes: int


def train_net(spec: NetSpec, parts: Parts, n_rows: int | None = None) -> dict[str, Any]:
    """Train a net on the first rows, and say how its loss, its signal and its weights went."""
    n_rows = None if spec.all_rows else n_rows
    x, y = torch.from_numpy(parts.x[:n_rows]), torch.from_numpy(parts.y[:n_rows])
    rows = LabelledRows(as_rows(x, x), y)
    held_out = torch.from_numpy(parts.x_held_out), torch.from_numpy(parts.y_held_out)
    net = _build(spec, rows.width, parts.n_classes)
    random = RandomStream(spec.seed)
    initialize_perceptron(
        net, random, activation=KINDS[spec.kind].activation, init=KINDS[spec.kind].init
    )
    options = PerceptronOptions(
        n_epochs=spec.n_epochs,
        batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        optimizer="adam",
        schedule=spec.schedule,
        weight_constraint="l2" if spec.max_norm else None,
        max_norm=math.sqrt(_WEIGHT_SQUARE_SUM[KINDS[spec.kind].init]) if spec.max_norm else None,
    )
    gradient = PerceptronGradient(net, "softmax", options.alpha, seed=spec.seed)
    order = RandomStream(np.random.SeedSequence([spec.seed, 1]))
    trainer = PerceptronTrainer(net, options, random, gradient=gradient, order=order)
    probe = x[:_PROBED_ROWS]
    start = _percentiles(net, probe)
    accuracy: list[float] = []
    distance = Distance(net)
    diverged = ""

    def judge(trainer: Trainer) -> None:
        accuracy.append(_accuracy(net, *held_out))

    try:
        trainer.fit(rows, on_epoch=judge, on_batch=distance.read)
    except DivergenceError as error:
        diverged = str(error)
    set_population_statistics(net, x.split(_BLOCK))
    return {
        "spec": dataclasses.asdict(spec),
        "loss": [record["loss"] for record in trainer.history],
        "seconds": [record["seconds"] for record in trainer.history],
        "accuracy": accuracy,
        "final_accuracy": _accuracy(net, *held_out),
        "chance": float(
            np.unique(parts.y_held_out, return_counts=True)[1].max() / len(parts.y_held_out)
        ),
        "n_rows": len(rows),
        "percentiles_start": start,
        "percentiles_end": _percentiles(net, probe),
        "predicted_deviation": _predicted_deviation(spec, probe),
        "distance": distance.readings,
        "diverged": diverged,
    }


def _build(spec: NetSpec, n_features: int, n_classes: int) -> nn.Sequential:
    kind = KINDS[spec.kind]
    ghost = spec.ghost_batch_size
    net = multilayer_perceptron(
        n_features,
        (spec.width,) * spec.depth,
        n_classes,
        activation=kind.activation,
        normalization=kind.normalization if ghost is None else "ghost_batch",
        dropout=spec.dropout,
        **({} if ghost is None else {"ghost_batch_size": ghost}),
    )
    if not spec.alpha_dropout:
        for k, layer in enumerate(net):
            if isinstance(layer, nn.AlphaDropout):
                net[k] = nn.Dropout(layer.p)
    return net


def _percentiles(net: nn.Sequential, rows: Tensor) -> list[list[float]]:
    """Percentiles of the pre-activations of each hidden layer over units and rows."""
    training = [(layer, layer.training) for layer in net]
    kept = {name: buffer.clone() for name, buffer in net.named_buffers()}
    # With the statistics of these rows, as in training: there are no others at the start.
    for layer in net:
        layer.train(isinstance(layer, nn.BatchNorm1d))
    *hidden, _ = probe(net, rows).values()
    for name, buffer in net.named_buffers():
        buffer.copy_(kept[name])
    for layer, mode in training:
        layer.train(mode)
    return [[reading.p15, reading.p50, reading.p85] for reading in hidden]


def _predicted_deviation(spec: NetSpec, rows: Tensor) -> list[float] | None:
    """Standard deviation of the pre-activations at the start, where the moment map knows it."""
    kind = KINDS[spec.kind]
    if kind.normalization not in (None, "self"):
        return None
    profile = predict_depth(
        kind.activation,
        f"{kind.init}_normal",
        spec.depth,
        mean=float(rows.mean()),
        variance=float(rows.var()),
    )
    second = profile.variance + profile.mean**2
    return [float(s) for s in np.sqrt(_WEIGHT_SQUARE_SUM[kind.init] * second[:-1])]


@torch.no_grad()
def _accuracy(net: nn.Sequential, rows: Tensor, labels: Tensor) -> float:
    net.eval()
    hits = sum(
        int((net(rows[k : k + _BLOCK]).argmax(1) == labels[k : k + _BLOCK]).sum())
        for k in range(0, len(rows), _BLOCK)
    )
    return hits / len(rows)

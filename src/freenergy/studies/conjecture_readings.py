r"""What the study "conjecture" reads of a station: its free energies, and where its step points.

The free energy of the model is :math:`F = -\ln Z`; that of a row with the hidden units summed
out is :math:`F(v)`. Their difference is what learning by EMF lowers, nat for nat:

.. math:: \Delta F = \langle F(v) \rangle_\text{rows} - F = -\langle \ln p(v) \rangle .

*F* alone falls whenever couplings grow, whether or not they have learned anything.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import RidgeClassifier
from torch import Tensor
from torch.nn.functional import cross_entropy

from freenergy.inference import (
    ExactStatistics,
    MeanFieldStates,
    MeanFieldWarning,
    exact,
    mean_field_states,
)
from freenergy.inference.mean_field import PlefkaExpansion
from freenergy.models import RBM
from freenergy.random import RandomStream
from freenergy.studies.stations import Station, Step, fold_steps
from freenergy.training import LabelledRows

__all__ = [
    "Reader",
    "centred",
    "cosine",
    "exact_descent",
    "is_judged_exactly",
    "mean_field_descent",
    "random_spread",
    "random_step",
]

_EXACT_UNITS = 20
_N_STARTS = 20
_MAX_SWEEPS = 500
_TOLERANCE = 1e-6


def is_judged_exactly(model: RBM) -> bool:
    """Whether the smaller layer is small enough to be summed over at every reading."""
    return min(model.n_visible, model.n_hidden) <= _EXACT_UNITS


# ---- directions ----------------------------------------------------------------------------------


@torch.no_grad()
def exact_descent(model: RBM, rows: Tensor, statistics: ExactStatistics) -> Step:
    r"""The negative gradient of :math:`\Delta F` on some rows: data less model.

    .. math:: \langle v_i h_j \rangle_\text{rows} - \langle v_i h_j \rangle_\text{model}
    """
    hidden = model.hidden_mean(rows)
    return Step(
        rows.T @ hidden / len(rows) - statistics.correlation,
        rows.mean(0) - statistics.visible,
        hidden.mean(0) - statistics.hidden,
    )


def mean_field_descent(model: RBM, rows: Tensor, states: MeanFieldStates) -> Step:
    r"""The step of the extended mean field: the negative gradient of its :math:`\Delta F`.

    :math:`\ln Z` is :math:`\ln\sum_s e^{-\Gamma_s}` over the distinct states, each stationary, so
    that only the explicit dependence on the parameters counts. NaN where there are no states.
    """
    if states.n_states == 0:
        return Step(*(torch.full_like(model.get_parameter(p), math.nan) for p in Step._fields))
    expansion = PlefkaExpansion(model, states.order)
    with torch.enable_grad():
        log_z = torch.logsumexp(-expansion.terms(states.visible, states.hidden).sum(-1), 0)
        likelihood = -model.free_energy(rows).mean() - log_z
        parameters = [model.get_parameter(name) for name in Step._fields]
        return Step(*torch.autograd.grad(likelihood, parameters))


def random_step(like: Step, random: RandomStream) -> Step:
    """A direction that is uniform in each parameter, as long there as the given one."""
    draws = [random.normal(tuple(part.shape)).to(part) for part in like]
    return Step(
        *(
            draw * (torch.linalg.vector_norm(part) / torch.linalg.vector_norm(draw))
            for draw, part in zip(draws, like, strict=True)
        )
    )


def cosine(one: Step | Tensor, other: Step | Tensor) -> float:
    r""":math:`\cos\theta = x \cdot y / \|x\|\|y\|`; NaN where one of them is zero.

    Examples
    --------
    >>> cosine(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0])), cosine(*torch.zeros(2, 3))
    (1.0, nan)
    """
    x, y = _flat(one), _flat(other)
    # Scaled first, so that the squares of tiny gradients do not vanish.
    x, y = (z / z.abs().max().clamp_min(torch.finfo(z.dtype).tiny) for z in (x, y))
    norms = float(torch.linalg.vector_norm(x) * torch.linalg.vector_norm(y))
    return float(x @ y) / norms if norms > 0 else math.nan


def _flat(values: Step | Tensor) -> Tensor:
    parts = [values] if isinstance(values, Tensor) else list(values)
    return torch.cat([part.detach().double().flatten() for part in parts])


def centred(weight: Tensor, rows: Tensor) -> Tensor:
    r"""A step of the weights without what the means alone make common to all steps.

    A gradient of the weights is a sum over rows of :math:`v\,\delta^\top`. As far as all rows have
    their mean :math:`\bar v` in common it is :math:`\bar v\,\bar\delta^\top`, and as far as all
    hidden units move alike it is the same vector in each column. Both are taken out:

    .. math:: \Big(1 - \frac{\bar v \bar v^\top}{\bar v^\top \bar v}\Big)\, G\,
              \Big(1 - \frac{\mathbf 1 \mathbf 1^\top}{n_h}\Big)

    Parameters
    ----------
    weight : Tensor of shape (n_visible, n_hidden)
    rows : Tensor of shape (n, n_visible)

    Returns
    -------
    Tensor of shape (n_visible, n_hidden)
    """
    mean = rows.mean(0).to(weight)
    mean = mean / torch.linalg.vector_norm(mean).clamp_min(torch.finfo(weight.dtype).tiny)
    without = weight - torch.outer(mean, mean @ weight)
    return without - without.mean(1, keepdim=True)


def random_spread(step: Step, reference: Step) -> float:
    r"""Standard deviation of the cosine of :func:`random_step` with a reference.

    A parameter of *n* components contributes a cosine of variance :math:`1/n`, in proportion to
    the squared norms there:

    .. math:: \sigma^2 = \sum_p \frac{\|x_p\|^2 \|y_p\|^2}{n_p \|x\|^2 \|y\|^2}
    """
    total = sum(
        float(torch.linalg.vector_norm(x.double()) * torch.linalg.vector_norm(y.double())) ** 2
        / x.numel()
        for x, y in zip(step, reference, strict=True)
    )
    norms = float(
        torch.linalg.vector_norm(_flat(step)) * torch.linalg.vector_norm(_flat(reference))
    )
    return math.sqrt(total) / norms if norms > 0 else math.nan


# ---- the instrument ------------------------------------------------------------------------------


class Reader:
    r"""Reads models and stations, always on the same rows and from the same starts.

    Free energies are read exactly (``exact_``) where the smaller layer can be summed over, and by
    the extended mean field (``tap_``: second order, over its distinct states) where it cannot, and
    of stations in any case:

    ====================  =====================================================================
    ``*_free_energy``     :math:`F = -\ln Z`, with ``*_energy`` and ``*_entropy``
    ``*_difference``      :math:`\Delta F` on held-out rows
    ``tap_trusted``       1 where states were found, with positive entropy, within Plefka's
                          condition; else 0
    ``data_free_energy``  :math:`\langle F(v) \rangle` on held-out rows
    ``weight_norm``       Frobenius norm of the couplings
    ``accuracy``          on held-out rows, of the softmax, or where there is none of a ridge
                          classifier on the hidden means
    ``cross_entropy``     on held-out rows, of the softmax
    ====================  =====================================================================

    For the step of a station, on a fixed batch:

    ========================  =================================================================
    ``*_cosine``              with the step that lowers :math:`\Delta F` on the same rows; also of
                              each parameter, ``*_cosine_weight``, of each layer of an untied net,
                              and ``*_cosine_centred`` of the weights, see :func:`centred`; with
                              the suffix ``_shuffled`` for the step on shuffled labels and
                              ``_random`` for a random direction
    ``*_spread``              of the cosines of random directions
    ``drop``                  by how much the step lowers :math:`\Delta F` on the batch
    ``predicted_drop``        what its slope promises
    ``tap_fidelity``          cosine of the mean-field step with the exact one
    ========================  =================================================================

    Parameters
    ----------
    train, held_out : LabelledRows
    random : RandomStream
        Source of the shuffled labels and of the random directions.
    n_probe : int, default=500
        Rows of the batch, the first of ``train``.
    n_rows : int, default=5000
        At most this many rows are read for free energies and accuracies.
    """

    def __init__(
        self,
        train: LabelledRows,
        held_out: LabelledRows,
        random: RandomStream,
        *,
        n_probe: int = 500,
        n_rows: int = 5000,
    ) -> None:
        self.train = train.take(slice(n_rows))
        self.held_out = held_out.take(slice(n_rows))
        probe = train.part(torch.arange(len(train))[:n_probe])
        self.probe = probe.take(slice(None))
        self.shuffled = probe.shuffled(random).take(slice(None))
        self.random = random

    def model(self, model: RBM) -> dict[str, Any]:
        """Free energies of a model."""
        look = _Look(model, self)
        return look.free_energies() | {"accuracy": look.readout()}

    def outcome(self, station: Station) -> dict[str, Any]:
        """Free energies of a station's model, and the accuracy."""
        look = _Look(station.rbm(), self)
        return look.free_energies() | self._accuracy(station, look)

    def station(self, station: Station) -> dict[str, Any]:
        """All of a station: free energies, accuracy, and where its step points."""
        look = _Look(station.rbm(), self)
        record = look.free_energies() | look.by_mean_field() | look.steps(station)
        return record | self._accuracy(station, look)

    def _accuracy(self, station: Station, look: _Look) -> dict[str, float]:
        logits, labels = station.logits(self.held_out.rows), self.held_out.labels
        if logits is None:
            return {"accuracy": look.readout()}
        known = labels >= 0
        return {
            "accuracy": float((logits.argmax(-1) == labels).double().mean()),
            "cross_entropy": float(cross_entropy(logits[known], labels[known])),
        }


class _Look:
    """One look at a model: the sums and states that its readings need, made once."""

    def __init__(self, model: RBM, reader: Reader) -> None:
        self.reader = reader
        self.double = copy.deepcopy(model).double()
        self.probe = reader.probe.rows.double()
        with torch.no_grad():
            self.data = float(self.double.free_energy(reader.held_out.rows.double()).mean())
        self.statistics = exact(self.double) if is_judged_exactly(model) else None

    @cached_property
    def states(self) -> MeanFieldStates:
        """The mean-field states."""
        return _states(self.double, self.probe)

    def free_energies(self) -> dict[str, float]:
        """By the best means there are."""
        record = {
            "weight_norm": float(torch.linalg.vector_norm(self.double.weight.detach())),
            "data_free_energy": self.data,
        }
        if self.statistics is None:
            return record | self.by_mean_field()
        return record | {
            "exact_free_energy": self.statistics.free_energy,
            "exact_energy": self.statistics.energy,
            "exact_entropy": self.statistics.entropy,
            "exact_difference": self.data + self.statistics.log_partition,
        }

    def by_mean_field(self) -> dict[str, float]:
        """By the extended mean field."""
        return {
            "tap_trusted": float(_is_trusted(self.states)),
            "tap_free_energy": -self.states.log_partition,
            "tap_energy": self.states.mean_energy,
            "tap_entropy": self.states.total_entropy,
            "tap_difference": self.data + self.states.log_partition,
        }

    @torch.no_grad()
    def readout(self) -> float:
        """Accuracy of a linear classifier: what the hidden units hold of the labels."""
        train, held_out = self.reader.train, self.reader.held_out
        features = [
            self.double.hidden_mean(part.rows.double()).numpy() for part in (train, held_out)
        ]
        classifier = RidgeClassifier().fit(features[0], train.labels.numpy())
        return float(np.mean(classifier.predict(features[1]) == held_out.labels.numpy()))

    def steps(self, station: Station) -> dict[str, Any]:
        """Cosines of the station's step, and what a step does."""
        probe, shuffled = self.reader.probe, self.reader.shuffled
        steps = [_double(s) for s in station.steps(probe.rows, probe.labels)]
        others = station.steps(shuffled.rows, shuffled.labels)
        step = fold_steps(steps)
        kinds = {
            "": step,
            "_shuffled": fold_steps([_double(s) for s in others]),
            "_random": random_step(step, self.reader.random),
        }
        references = {"tap": mean_field_descent(self.double, self.probe, self.states)}
        if self.statistics is not None:
            references["exact"] = exact_descent(self.double, self.probe, self.statistics)
        record: dict[str, Any] = {}
        for source, reference in references.items():
            for suffix, direction in kinds.items():
                record |= _cosines(f"{source}_cosine", suffix, direction, reference, self.probe)
            record[f"{source}_spread"] = random_spread(step, reference)
            record[f"{source}_spread_centred"] = _centred_spread(step.weight)
            record |= _layer_cosines(source, steps, reference)
        reference = references.get("exact", references["tap"])
        record["tap_fidelity"] = cosine(references["tap"], reference)
        return record | self._drop(step, reference, station.learning_rate)

    def _drop(self, step: Step, reference: Step, rate: float) -> dict[str, Any]:
        """How far one step lowers the free-energy difference on the rows that it is for."""
        after = copy.deepcopy(self.double)
        with torch.no_grad():
            for name, part in step._asdict().items():
                after.get_parameter(name).add_(part, alpha=rate)
        return {
            "drop": self._difference(self.double) - self._difference(after),
            "predicted_drop": rate * float(_flat(step) @ _flat(reference)),
        }

    @torch.no_grad()
    def _difference(self, model: RBM) -> float:
        data = float(model.free_energy(self.probe).mean())
        if self.statistics is None:
            states = self.states if model is self.double else _states(model, self.probe)
            return data + states.log_partition
        statistics = self.statistics if model is self.double else exact(model)
        return data + statistics.log_partition


def _states(model: RBM, rows: Tensor) -> MeanFieldStates:
    with warnings.catch_warnings():
        # ``tap_trusted`` tells what the warning would.
        warnings.simplefilter("ignore", MeanFieldWarning)
        return mean_field_states(
            model, 2, starts=rows[:_N_STARTS], max_iter=_MAX_SWEEPS, tolerance=_TOLERANCE
        )


def _is_trusted(states: MeanFieldStates) -> bool:
    return states.n_converged > 0 and states.negative_entropy == 0 and states.beyond_plefka == 0


def _centred_spread(weight: Tensor) -> float:
    """As :func:`random_spread`, of weights from which two means were taken."""
    n_visible, n_hidden = weight.shape
    dimensions = (n_visible - 1) * (n_hidden - 1)
    return 1 / math.sqrt(dimensions) if dimensions else math.nan


def _double(step: Step) -> Step:
    return Step(*(part.double() for part in step))


def _cosines(name: str, suffix: str, step: Step, reference: Step, rows: Tensor) -> dict[str, float]:
    found = {f"{name}{suffix}": cosine(step, reference)}
    for parameter, one, other in zip(Step._fields, step, reference, strict=True):
        found[f"{name}_{parameter}{suffix}"] = cosine(one, other)
    one, other = centred(step.weight, rows), centred(reference.weight, rows)
    found[f"{name}_centred{suffix}"] = cosine(one, other)
    return found


def _layer_cosines(source: str, steps: Sequence[Step], reference: Step) -> dict[str, float]:
    """Of the weights of each machine of an untied net."""
    if len(steps) == 1:
        return {}
    return {
        f"{source}_cosine_layer{i}": cosine(step.weight, reference.weight)
        for i, step in enumerate(steps, start=1)
    }

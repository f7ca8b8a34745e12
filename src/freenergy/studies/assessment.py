"""How good is a model really? Its likelihood by every method, its equilibrium, its temperature.

The answer is plain numbers, so that it can be stored beside a run and shown again.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from freenergy.distributed import ALONE, Group
from freenergy.files import as_json
from freenergy.inference import (
    Certificate,
    Ladder,
    LogPartition,
    MeanFieldWarning,
    certify,
    is_enumerable,
    log_likelihood,
    log_partition,
    mean_field_states,
    pseudo_log_likelihood,
)
from freenergy.models import RBM
from freenergy.progress import Reporter
from freenergy.random import RandomStream
from freenergy.thermodynamics import (
    Thermodynamics,
    effective_temperature,
    energy_curve,
    thermodynamics,
)
from freenergy.training import TrainingOptions

__all__ = ["Assessment", "Estimate", "assess", "certify_run"]

_BETAS = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)
"""Inverse temperatures of the curves, relative to that of the training."""
_LABELS = {
    "exact": "exact",
    "ais": "AIS, from below",
    "reverse_ais": "AIS, from above",
    "bar": "BAR, both ends",
    "tap1": "TAP 1 (naive)",
    "tap2": "TAP 2",
    "tap3": "TAP 3",
    "tempering": "parallel tempering",
    "ptt": "PTT, along the training",
}
_START_ROWS = 10_000
_PSEUDO_LIKELIHOOD_BUDGET = 2e8


@dataclass(frozen=True)
class Estimate:
    r"""One method's :math:`\ln Z`, and the mean log-likelihood that follows.

    Attributes
    ----------
    name : str
    log_partition, lower, upper : float
    log_likelihood : float
        Of the held-out rows; its interval is ``log_likelihood_lower`` to ``_upper``.
    log_likelihood_train : float
    trusted : bool
    reasons : list of str
    seconds : float
    """

    name: str
    log_partition: float
    lower: float
    upper: float
    log_likelihood: float
    log_likelihood_lower: float
    log_likelihood_upper: float
    log_likelihood_train: float
    trusted: bool
    reasons: list[str]
    seconds: float

    @property
    def label(self) -> str:
        """The method's name in words."""
        return _LABELS.get(self.name, self.name)


@dataclass(frozen=True)
class Assessment:
    r"""What was found of a model.

    Attributes
    ----------
    beta : float
        Inverse temperature of the training, at which all was measured.
    rows, rows_train : int
        Held-out rows and training rows that were used.
    numbers : dict of float
        Pseudo-likelihood, free energies and weight norm.
    estimates : list of Estimate
    works : dict of list
        Estimates of :math:`\ln Z` from single chains, up and down.
    certificate : dict
        Of :class:`~freenergy.inference.Certificate`.
    temperature : dict of dict
        Effective temperature with its interval, by method.
    curves : dict
        Of :class:`~freenergy.thermodynamics.Thermodynamics`.
    landscape : dict
        The mean-field states.
    rounded : bool
        Whether held-out rows had grey values, which have no likelihood and were rounded.
    """

    beta: float
    rows: int
    rows_train: int
    numbers: dict[str, float]
    estimates: list[Estimate]
    works: dict[str, list[float]]
    certificate: dict[str, Any]
    temperature: dict[str, dict[str, Any]]
    curves: dict[str, Any]
    landscape: dict[str, float]
    rounded: bool = False
    seconds: float = field(default=0.0, compare=False)

    @property
    def best(self) -> Estimate | None:
        """The estimate to go by; None where none is trusted, or those that are contradict.

        The exact one, else the narrowest that rests on samples, else mean field.
        """
        trusted = [e for e in self.estimates if e.trusted]
        sampled = [e for e in trusted if not e.name.startswith("tap")]
        exact = next((e for e in trusted if e.name == "exact"), None)
        if exact is not None:
            return exact
        if any(_contradict(a, b) for a in trusted for b in trusted):
            return None
        return min(sampled or trusted, key=lambda e: e.upper - e.lower, default=None)

    def estimate(self, name: str) -> Estimate | None:
        """The estimate of a method, where it was made."""
        return next((e for e in self.estimates if e.name == name), None)

    def to_json(self) -> str:
        """All numbers as indented JSON; those that are not finite are null."""
        return json.dumps(as_json(dataclasses.asdict(self)), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Assessment:
        """What :meth:`to_json` gave."""
        values = _numbers(json.loads(text))
        values["estimates"] = [Estimate(**estimate) for estimate in values["estimates"]]
        return cls(**values)


def _contradict(one: Estimate, other: Estimate) -> bool:
    """Whether two intervals lie further apart than both are wide."""
    gap = max(one.lower, other.lower) - min(one.upper, other.upper)
    return gap > (one.upper - one.lower) + (other.upper - other.lower)


def assess(
    model: RBM,
    train: Tensor,
    held_out: Tensor,
    *,
    beta: float = 1.0,
    n_steps: int = 1,
    ladder: Ladder | None = None,
    chains: Tensor | None = None,
    time_budget: float = 120.0,
    width: float = 1.0,
    seed: int = 0,
    reporter: Reporter | None = None,
    group: Group = ALONE,
) -> Assessment:
    """Measure a trained model by every method that is feasible.

    Parameters
    ----------
    model : RBM
    train, held_out : Tensor of shape (n, n_visible)
        Values that the visible units can take, for likelihoods; grey values are rounded.
    beta : float, default=1
        Inverse temperature of the training.
    n_steps : int, default=1
        Gibbs steps for each update of the training.
    ladder : Ladder, default=None
        The models that training passed through, where it kept them (``method="ptt"``).
    chains : Tensor, default=None
        Hidden states of the persistent chains of the training.
    time_budget : float, default=120
        Seconds for each of the slow methods.
    width : float, default=1
        Width of the interval of the log-likelihood to reach, in nats.
    seed : int, default=0
    reporter : Reporter, default=None
        None tells of the progress in the first process.
    group : Group, default=ALONE
        Processes that divide the chains of the log-partition functions. All of them call this
        with the same model and options, and get the same assessment.

    Returns
    -------
    Assessment
    """
    if reporter is None:
        reporter = Reporter() if group.rank == 0 else Reporter(io.StringIO())
    begin = time.monotonic()
    grey = not torch.equal(_states(model, held_out), held_out)
    train, held_out = (_states(model, rows) for rows in (train, held_out))
    starts = train[:_START_ROWS].to(model.weight)
    options: dict[str, Any] = {
        "beta": beta,
        "data": starts,
        "time_budget": time_budget,
        "group": group,
    }
    with warnings.catch_warnings(), reporter.task("assessing", 6, "parts") as advance:
        warnings.simplefilter("ignore", MeanFieldWarning)  # told by the numbers
        found, works = _partitions(model, ladder, seed, options | {"width": width}, advance)
        certificate = certify(
            model,
            starts,
            n_steps_per_update=n_steps,
            beta=beta,
            chains=chains,
            random=RandomStream(seed, model.weight.device),
            time_budget=time_budget,
        )
        advance(1, "equilibrium")
        curves = thermodynamics(
            model,
            [beta * share for share in _BETAS],
            time_budget=time_budget,
            random=RandomStream(seed, model.weight.device),
        )
        advance(1, "thermodynamics")
        temperature = _temperatures(model, held_out, beta, curves)
        states = _landscape(model, starts, beta)
        advance(1, "temperature")
    estimates = [_estimate(name, model, z, train, held_out) for name, z in found.items()]
    assessment = Assessment(
        beta=beta,
        rows=len(held_out),
        rows_train=len(train),
        numbers=_plain_numbers(model, train, held_out, beta),
        estimates=estimates,
        works=works,
        certificate=certificate.to_dict(),
        temperature=temperature,
        curves=curves.to_dict(),
        landscape=states,
        rounded=grey,
        seconds=time.monotonic() - begin,
    )
    return group.agree(assessment)


def _partitions(
    model: RBM,
    ladder: Ladder | None,
    seed: int,
    options: dict[str, Any],
    advance: Callable[[float, str], None],
) -> tuple[dict[str, LogPartition], dict[str, list[float]]]:
    """The log-partition function by every method that can be used, and by each annealed chain."""
    found: dict[str, LogPartition] = {}
    if is_enumerable(model):
        found["exact"] = log_partition(model, "exact", beta=options["beta"])
    found |= _mean_field(model, options)
    advance(1, "mean field")
    found["tempering"] = log_partition(model, "ptt", random=seed, **options)
    if ladder is not None:
        found["ptt"] = log_partition(model, "ptt", ladder=ladder, random=seed, **options)
    advance(1, "replica exchange")
    bar = log_partition(model, "bar", random=seed, **options)
    found |= _ends(bar, options["width"])
    advance(1, "annealing")
    works = {
        "up": (bar.diagnostics["base_log_partition"] - bar.diagnostics["forward_work"]).tolist(),
        "down": (bar.diagnostics["base_log_partition"] - bar.diagnostics["backward_work"]).tolist(),
    }
    return found, works


def certify_run(
    model: RBM, rows: Tensor, options: TrainingOptions, *, chains: Tensor | None, seed: int
) -> Certificate:
    """The equilibrium certificate of a training that has just ended.

    Chains that persist only need to mix; those of contrastive divergence start anew for each
    update, so that they must also forget their start within its steps.
    """
    found = certify(
        model,
        _states(model, rows[:_START_ROWS]).to(model.weight),
        n_steps_per_update=options.n_steps if options.method != "emf" else 1,
        beta=options.beta,
        chains=chains,
        random=RandomStream(seed, model.weight.device),
    )
    if options.method == "cd" and found.is_equilibrium:
        tau, k = found.autocorrelation_time, options.n_steps
        if tau > k:
            return dataclasses.replace(
                found,
                label="out of equilibrium",
                reasons=(
                    f"chains that start anew at each update make {k} steps, fewer than the "
                    f"autocorrelation time of {tau:.3g}",
                ),
                advice=f"Train with method='pcd' or 'ptt', or with n_steps of {math.ceil(tau)}.",
            )
    return found


def _states(model: RBM, rows: Tensor) -> Tensor:
    """Rows as states of the visible units: grey values go to the nearer one."""
    low, high = min(model.visible.support), max(model.visible.support)
    middle = 0.5 * (low + high)
    return torch.where(rows > middle, high, low).to(rows)


def _mean_field(model: RBM, options: dict[str, Any]) -> dict[str, LogPartition]:
    """One estimate for each order; only the third has an interval."""
    third = log_partition(model, "tap", **options)
    found = {}
    for order, value in third.diagnostics["orders"].items():
        same = order == 3
        found[f"tap{order}"] = dataclasses.replace(
            third,
            value=value,
            lower=third.lower if same else math.nan,
            upper=third.upper if same else math.nan,
            trusted=third.trusted and same,
            reasons=third.reasons if same else ("a lower order has no interval",),
        )
    return found


def _ends(bar: LogPartition, width: float) -> dict[str, LogPartition]:
    """The two ends of an annealing as estimates of their own."""
    found = {}
    for name, key in (("ais", "forward"), ("reverse_ais", "backward")):
        value, stderr = bar.diagnostics[key], bar.diagnostics[f"{key}_stderr"]
        half = 0.5 * (bar.upper - bar.lower) * (stderr / bar.stderr if bar.stderr > 0 else 1.0)
        narrow = 2 * half <= width
        found[name] = dataclasses.replace(
            bar,
            value=value,
            lower=value - half,
            upper=value + half,
            stderr=stderr,
            method=name,
            trusted=bar.trusted and narrow,
            reasons=(
                bar.reasons
                if narrow
                else (*bar.reasons, f"the interval is {2 * half:.2g} nats wide")
            ),
        )
    return found | {"bar": bar}


def _estimate(
    name: str, model: RBM, found: LogPartition, train: Tensor, held_out: Tensor
) -> Estimate:
    score = log_likelihood(model, held_out, found)
    return Estimate(
        name,
        found.value,
        found.lower,
        found.upper,
        score.mean,
        score.lower,
        score.upper,
        log_likelihood(model, train[:_START_ROWS], found).mean,
        found.trusted,
        list(found.reasons),
        float(found.diagnostics.get("seconds", math.nan)),
    )


@torch.no_grad()
def _plain_numbers(model: RBM, train: Tensor, held_out: Tensor, beta: float) -> dict[str, float]:
    numbers = {"weight_norm": float(torch.linalg.vector_norm(model.weight))}
    budget = max(50, int(_PSEUDO_LIKELIHOOD_BUDGET / (model.n_visible * model.n_hidden)))
    for suffix, rows in (("", held_out), ("_train", train[:_START_ROWS])):
        values = rows.to(model.weight)
        numbers[f"free_energy{suffix}"] = float(model.free_energy(values, beta).double().mean())
        score = pseudo_log_likelihood(model, values[:budget], beta).double()
        numbers[f"pseudo_likelihood{suffix}"] = float(score.mean())
    return numbers


def _temperatures(
    model: RBM, rows: Tensor, beta: float, curves: Thermodynamics
) -> dict[str, dict[str, Any]]:
    """Effective temperatures relative to that of the training."""
    rows = rows.to(model.weight)
    # The energy of the model at other temperatures is known from the curves, and within them.
    bounds = (float(curves.beta.min()), float(curves.beta.max()))
    by_energy = effective_temperature(
        model, rows, "energy", energy_curve=energy_curve(curves), bounds=bounds
    )
    scaled = model if beta == 1.0 else Ladder.of([model], beta).model(0)
    results = {
        "pseudo_likelihood": effective_temperature(scaled, rows),
        "structural": effective_temperature(scaled, rows, "structural"),
    }
    found = {
        name: {
            "temperature": result.temperature,
            "lower": result.lower,
            "upper": result.upper,
            "trusted": result.trusted,
        }
        for name, result in results.items()
    }
    found["energy"] = {
        "temperature": by_energy.temperature * beta,
        "lower": by_energy.lower * beta,
        "upper": by_energy.upper * beta,
        "trusted": by_energy.trusted and curves.trusted,
    }
    return found


def _landscape(model: RBM, starts: Tensor, beta: float) -> dict[str, float]:
    """The states of second-order mean field that hold the data."""
    states = mean_field_states(model, 2, beta=beta, starts=starts[:64], max_iter=1000)
    return {
        "starts": float(states.n_starts),
        "converged": float(states.n_converged),
        "states": float(states.n_states),
        "log_partition": states.log_partition,
        "within_entropy": states.within_entropy,
        "complexity": states.complexity,
        "total_entropy": states.total_entropy,
        "unseen": states.unseen,
        "beyond_plefka": states.beyond_plefka,
    }


def _numbers(value: Any) -> Any:
    """JSON's values, with NaN where a number is missing."""
    if isinstance(value, dict):
        return {key: _numbers(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    return math.nan if value is None else value

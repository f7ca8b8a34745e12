"""What keeps a deep net trainable? The same nets at several depths, one after the other.

The loss of nets with SELU, batch normalisation, ReLU, tanh and sigmoid, with and without a bound on
the norm of each unit's weights; what their pre-activations look like; alpha dropout beside plain
dropout; small and large batches, with and without ghost batches.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from freenergy.data import DataError, Dataset
from freenergy.files import as_json, write_atomically
from freenergy.progress import Reporter
from freenergy.studies.depth_nets import KINDS, NetSpec, Parts, in_prose, train_net
from freenergy.studies.folder import NothingFinished, Plan, claim, read_plan
from freenergy.studies.labelled import split_labelled
from freenergy.studies.parallel import Job, run_jobs
from freenergy.studies.run_data import StudyData, data_of_study, drawn_from
from freenergy.studies.verdict import listed
from freenergy.training import RunError

__all__ = [
    "DepthSettings",
    "DepthStudy",
    "depth_followers",
    "depth_trainings",
    "read_depth",
    "run_depth",
]

_SMALL = 2_000_000
_BATCH_KIND = "ReLU, batch norm"
_RACE = ("SELU", "sigmoid")


@dataclass(frozen=True, kw_only=True)
class DepthSettings:
    """Which nets are trained, and how.

    Parameters
    ----------
    depths : tuple of int
        Numbers of hidden layers.
    width : int
        Units in each.
    n_epochs : int
    batch_size : int
    learning_rates : tuple of float
        Of Adam. Each net takes the one with the lowest training loss at the end.
    dropout : float
        Share of units in the nets with dropout.
    small_batch, large_batch : int
        Of the nets that compare batches; ghost batches are of the small size.
    n_rows : int or None
        At most this many rows to learn from; None takes all.
    race_epochs : int
        Passes of the deepest SELU and sigmoid nets over all rows; 0 leaves them out.
    race_rate : float
        Their learning rate at the start, which a cosine takes to zero.
    seed : int
    """

    depths: tuple[int, ...] = (8, 32)
    width: int = 64
    n_epochs: int = 20
    batch_size: int = 64
    learning_rates: tuple[float, ...] = (3e-4,)
    dropout: float = 0.05
    small_batch: int = 32
    large_batch: int = 512
    n_rows: int | None = None
    race_epochs: int = 0
    race_rate: float = 2e-4
    seed: int = 0

    @classmethod
    def for_data(cls, dataset: Dataset) -> DepthSettings:
        """Settings that fit the size of a data set."""
        if dataset.x_train.size <= _SMALL:
            return cls()
        return cls(
            depths=(8, 16, 32),
            width=256,
            n_epochs=10,
            batch_size=128,
            learning_rates=(1e-3, 1e-4),
            n_rows=10_000,
            race_epochs=12,
        )


@dataclass(frozen=True)
class DepthStudy:
    """The result of the study.

    Attributes
    ----------
    plan : Plan
        What the folder was started for.
    nets : list of dict
        As :func:`~freenergy.studies.depth_nets.train_net` gives them, with the best learning rate
        of each: those that compare kinds and depths.
    dropout : dict of str to dict
        SELU nets by the name of their dropout.
    batches : dict of str to dict
        Nets with batch normalisation by the name of their batches.
    race : dict of str to dict
        The deepest nets on all rows; empty where none were asked for.
    missing : str
        What is not done yet, in words; empty where that is nothing.
    """

    plan: Plan[DepthSettings]
    nets: list[dict[str, Any]]
    dropout: dict[str, dict[str, Any]]
    batches: dict[str, dict[str, Any]]
    race: dict[str, dict[str, Any]]
    missing: str = ""

    @property
    def data(self) -> dict[str, Any]:
        """Name and sizes of the data set."""
        return self.plan.data

    @property
    def settings(self) -> DepthSettings:
        """Which nets were trained."""
        return self.plan.settings

    def net(self, kind: str, depth: int, max_norm: bool = False) -> dict[str, Any] | None:
        """The net of that kind, depth and constraint; None where it is not trained yet."""
        wanted = {"kind": kind, "depth": depth, "max_norm": max_norm}
        return next((net for net in self.nets if wanted.items() <= net["spec"].items()), None)

    @property
    def depths(self) -> list[int]:
        """Numbers of layers of which at least one net is trained, in ascending order."""
        return sorted({net["spec"]["depth"] for net in self.nets})


def run_depth(
    dataset: StudyData,
    directory: str | os.PathLike[str],
    settings: DepthSettings | None = None,
    *,
    n_jobs: int | None = None,
    reporter: Reporter | None = None,
    command: str = "",
    binarize: float | None = None,
    source: str | None = None,
) -> DepthStudy:
    """Train the nets of the study; those that the folder holds already are not trained again.

    Parameters
    ----------
    dataset : Dataset, DataStream, str or path-like
        With values in [0, 1], and labels; as for :func:`~freenergy.studies.learning.run_learning`.
        Rows are standardised by one mean and deviation.
    directory : path-like
    settings : DepthSettings, default=None
        None fits them to the size of the data.
    n_jobs : int, default=None
        See :func:`~freenergy.studies.parallel.run_jobs`.
    reporter : Reporter, default=None
    command, binarize, source
        For the record, see :func:`~freenergy.studies.learning.run_learning`.

    Returns
    -------
    DepthStudy

    Raises
    ------
    DataError
        When the rows have no labels that are classes.
    RunError
        When the folder holds a study of other data or settings, or is damaged.
    """
    dataset, source = data_of_study(dataset, source, binarize, reporter)
    settings = settings or DepthSettings.for_data(dataset)
    run = partial(run_jobs, n_jobs=n_jobs, reporter=reporter)
    record: dict[str, Any] = {"command": command, "binarize": binarize, "source": source}
    run(depth_trainings(dataset, directory, settings, **record), "nets of several depths")
    run(depth_followers(dataset, directory, settings), "max-norm, dropout, batches")
    return read_depth(directory)


def depth_trainings(
    dataset: Dataset,
    directory: str | os.PathLike[str],
    settings: DepthSettings,
    *,
    command: str = "",
    binarize: float | None = None,
    source: str | None = None,
) -> list[Job]:
    """Start a study in a folder, or go on with it: the nets that wait for no other.

    The parameters are those of :func:`run_depth`.
    """
    directory = Path(directory)
    parts = _standardised(dataset)
    data = {
        "name": source or dataset.name,
        "binarize": binarize,
        "fingerprint": dataset.fingerprint,
        "n_train": len(parts.x),
        "n_held_out": len(parts.x_held_out),
    } | drawn_from(dataset)
    claim(directory, Plan("depth", data, settings, command))
    return _jobs([*_race(settings), *_grid(settings)], parts, settings, directory)


def depth_followers(
    dataset: Dataset, directory: str | os.PathLike[str], settings: DepthSettings
) -> list[Job]:
    """The nets whose learning rates those of :func:`depth_trainings` have found.

    Raises
    ------
    RunError
        When they are not finished, or one of their files is damaged.
    """
    directory = Path(directory)
    specs = _followers(settings, _best(_grid(settings), directory))
    return _jobs(specs, _standardised(dataset), settings, directory)


def read_depth(directory: str | os.PathLike[str]) -> DepthStudy:
    """The study that :func:`run_depth` left in a folder, as far as it is finished.

    Raises
    ------
    NothingFinished
        When not one net has been trained at all of its learning rates.
    RunError
        When the folder holds no such study, or a damaged one.
    """
    directory = Path(directory)
    plan = read_plan(directory, "depth", DepthSettings)
    settings = plan.settings
    best = _best(_at_every_rate(_grid(settings), directory), directory)
    if not best:
        raise NothingFinished(
            f"the study in {directory} has nothing to show yet; run it again with the same "
            "options and --out, and it goes on"
        )
    held, race = list(map(_constrained, best)), {spec.kind: spec for spec in _race(settings)}
    dropout, batches = _dropout(settings, best), _batches(settings, best)
    stored = {
        spec: _read(directory, spec)
        for spec in (*held, *dropout.values(), *batches.values(), *race.values())
        if (directory / spec.file_name).exists()
    }
    without = {"none": _of(best, "SELU", min(settings.depths))}
    return DepthStudy(
        plan=plan,
        nets=[*best, *(stored[spec] for spec in held if spec in stored)],
        dropout={name: net for name, net in without.items() if net} | _named(dropout, stored),
        batches=_named(batches, stored),
        race=_named(race, stored),
        missing=_missing(settings, best, stored),
    )


def _at_every_rate(grid: Sequence[NetSpec], directory: Path) -> list[NetSpec]:
    """The nets of which the best learning rate is known."""
    left = {(s.kind, s.depth) for s in grid if not (directory / s.file_name).exists()}
    return [spec for spec in grid if (spec.kind, spec.depth) not in left]


def _named(
    specs: Mapping[str, NetSpec], stored: Mapping[NetSpec, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    return {name: stored[spec] for name, spec in specs.items() if spec in stored}


def _missing(
    settings: DepthSettings,
    best: Sequence[dict[str, Any]],
    stored: Mapping[NetSpec, dict[str, Any]],
) -> str:
    """What is not trained yet, in words."""
    parts = []
    for depth in sorted(settings.depths):
        left = [kind for kind in KINDS if _of(best, kind, depth) is None]
        if left:
            names = "all nets" if len(left) == len(KINDS) else listed(map(in_prose, left))
            parts.append(f"{names} of {depth} layers")
    n_held, n_all = sum(s.max_norm for s in stored), len(KINDS) * len(settings.depths)
    if n_held < n_all:
        parts.append(f"{n_all - n_held} of {n_all} nets with the norm held")
    for words, specs in (
        ("the nets with dropout", _dropout(settings, best)),
        ("the nets that compare batches", _batches(settings, best)),
    ):
        if not specs or not stored.keys() >= set(specs.values()):
            parts.append(words)
    slow = [spec.kind for spec in _race(settings) if spec not in stored]
    if slow:
        parts.append(f"{listed(slow)} on all rows")
    return "; ".join(parts)


def _standardised(dataset: Dataset) -> Parts:
    train, held_out, n_classes = split_labelled(dataset)
    x, x_held_out = (
        part.rows.take(slice(0, len(part))).float().numpy() for part in (train, held_out)
    )
    mean, deviation = x.mean(dtype=np.float64), x.std(dtype=np.float64)
    if deviation == 0:
        raise DataError(f"all values of {dataset.name} are the same: nothing can be learned")
    x, x_held_out = (((part - mean) / deviation).astype(np.float32) for part in (x, x_held_out))
    return Parts(x, train.labels.numpy(), x_held_out, held_out.labels.numpy(), n_classes)


# ---- the nets ------------------------------------------------------------------------------------


def _grid(settings: DepthSettings) -> list[NetSpec]:
    """Every kind at every depth, at each learning rate; the slow ones first."""
    return [
        NetSpec(
            kind=kind,
            depth=depth,
            width=settings.width,
            n_epochs=settings.n_epochs,
            batch_size=settings.batch_size,
            learning_rate=rate,
            seed=settings.seed,
        )
        for depth in sorted(settings.depths, reverse=True)
        for kind in KINDS
        for rate in settings.learning_rates
    ]


def _best(grid: Sequence[NetSpec], directory: Path) -> list[dict[str, Any]]:
    """Of each kind and depth, the net with the lowest training loss at its end."""
    best: dict[tuple[str, int], dict[str, Any]] = {}
    for spec in grid:
        net = _read(directory, spec)
        key = (spec.kind, spec.depth)
        if key not in best or _last_loss(net) < _last_loss(best[key]):
            best[key] = net
    return list(best.values())


def _last_loss(net: dict[str, Any]) -> float:
    return math.inf if net["diverged"] or not net["loss"] else float(net["loss"][-1])


def _of(nets: Sequence[dict[str, Any]], kind: str, depth: int) -> dict[str, Any] | None:
    wanted = {"kind": kind, "depth": depth}
    return next((net for net in nets if wanted.items() <= net["spec"].items()), None)


def _followers(settings: DepthSettings, best: Sequence[dict[str, Any]]) -> list[NetSpec]:
    """What is trained at learning rates that the grid has found."""
    return [
        *map(_constrained, best),
        *_dropout(settings, best).values(),
        *_batches(settings, best).values(),
    ]


def _constrained(net: dict[str, Any]) -> NetSpec:
    return NetSpec(**net["spec"] | {"max_norm": True})


def _dropout(settings: DepthSettings, best: Sequence[dict[str, Any]]) -> dict[str, NetSpec]:
    # Dropout adds up over layers, so that the deepest nets hardly learn with it.
    net = _of(best, "SELU", min(settings.depths))
    if net is None:
        return {}
    spec = net["spec"] | {"dropout": settings.dropout}
    return {
        "alpha dropout": NetSpec(**spec),
        "plain dropout": NetSpec(**spec | {"alpha_dropout": False}),
    }


def _batches(settings: DepthSettings, best: Sequence[dict[str, Any]]) -> dict[str, NetSpec]:
    """The rate grows with the root of the batch, as in Hoffer et al. (2017)."""
    small, large = settings.small_batch, settings.large_batch
    net = _of(best, _BATCH_KIND, min(settings.depths))
    if net is None:
        return {}
    spec = net["spec"]
    rate = spec["learning_rate"]

    def at(size: int) -> dict[str, Any]:
        scaled = rate * math.sqrt(size / spec["batch_size"])
        return spec | {"batch_size": size, "learning_rate": scaled}

    return {
        f"batches of {small}": NetSpec(**at(small)),
        f"batches of {large}": NetSpec(**at(large)),
        f"batches of {large}, ghosts of {small}": NetSpec(
            **at(large) | {"ghost_batch_size": small}
        ),
    }


def _race(settings: DepthSettings) -> list[NetSpec]:
    if settings.race_epochs == 0:
        return []
    return [
        NetSpec(
            kind=kind,
            depth=max(settings.depths),
            width=settings.width,
            n_epochs=settings.race_epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.race_rate,
            all_rows=True,
            schedule="cosine",
            seed=settings.seed,
        )
        for kind in _RACE
    ]


def _jobs(
    specs: Sequence[NetSpec], parts: Parts, settings: DepthSettings, directory: Path
) -> list[Job]:
    """The nets that the folder does not hold yet."""
    paths = {spec: (directory / spec.file_name).absolute() for spec in specs}
    return [
        Job(
            f"{spec.kind}, {spec.depth} layers",
            partial(_train_one, spec, parts, settings.n_rows, path),
        )
        for spec, path in paths.items()
        if not path.exists()
    ]


def _train_one(spec: NetSpec, parts: Parts, n_rows: int | None, path: Path) -> str:
    found = as_json(train_net(spec, parts, n_rows))
    write_atomically(path, json.dumps(found, allow_nan=False) + "\n")
    return f"accuracy {found['final_accuracy']:.3f}"


# ---- the folder ----------------------------------------------------------------------------------


def _read(directory: Path, spec: NetSpec) -> dict[str, Any]:
    path = directory / spec.file_name
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
        stored = NetSpec(**found["spec"])
    except FileNotFoundError:
        raise NothingFinished(
            f"{directory} is not complete: {path.name} is missing; run the study again with the "
            "same options and --out, and it goes on"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}); delete it and run the study again") from error
    if stored != spec:
        raise RunError(f"{path} is of another net; delete it and run the study again")
    return found

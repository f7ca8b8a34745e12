"""Does backpropagation do what the extended mean field does? RBMs trained by both, side by side.

All stations of a seed start from the same weights and see the rows in the same order. What they do
to the free energy of the RBM that their weights define is held against two controls: the same
training on shuffled labels, and a random walk that goes as far between readings.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import skip_init

from freenergy.data import Dataset
from freenergy.files import as_json, write_atomically
from freenergy.models import RBM
from freenergy.progress import Reporter
from freenergy.random import RandomStream
from freenergy.studies.conjecture_claims import (
    CORE_CLAIMS,
    SHUFFLED,
    StationResult,
    station_claims,
)
from freenergy.studies.conjecture_readings import Reader, random_step
from freenergy.studies.folder import Plan, claim, finished, read_plan
from freenergy.studies.labelled import split_labelled
from freenergy.studies.parallel import Job, run_jobs
from freenergy.studies.run_data import StudyData, data_of_study, drawn_from
from freenergy.studies.stations import STATIONS, Station, StationOptions, Step
from freenergy.studies.verdict import Judgement, Status, judge_all
from freenergy.training import DivergenceError, LabelledRows, RunError, initialize
from freenergy.training.trainer import has_diverged

__all__ = [
    "ConjectureSettings",
    "ConjectureStudy",
    "conjecture_trainings",
    "read_conjecture",
    "run_conjecture",
]

_SMALL = 2_000_000
_N_READINGS = 10
# Seeds of the streams of one run; 1 is the order of rows in every run of a seed.
_ORDER, _LABELS, _STATION, _WALK, _READER = 1, 2, 3, 4, 5


@dataclass(frozen=True, kw_only=True)
class ConjectureSettings:
    """How the stations are trained.

    Parameters
    ----------
    n_hidden : int
        Up to 20 the free energies are exact.
    n_epochs : int
    batch_size : int
    learning_rate : float
        Of backpropagation.
    likelihood_rate : float
        Of EMF and PCD.
    depth : int
        Sweeps of the unrolled nets.
    damping : float
        Of these sweeps.
    seeds : tuple of int
    stations : tuple of str
        Names from :data:`~freenergy.studies.stations.STATIONS`.
    n_rows : int or None
        At most this many rows to learn from, drawn at random; None takes all.
    confidence : float
        Of all intervals of the verdict together.
    """

    n_hidden: int = 10
    n_epochs: int = 20
    batch_size: int = 50
    learning_rate: float = 2.0
    likelihood_rate: float = 0.05
    depth: int = 3
    damping: float = 0.5
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    stations: tuple[str, ...] = tuple(STATIONS)
    n_rows: int | None = None
    confidence: float = 0.95

    @classmethod
    def for_data(cls, dataset: Dataset) -> ConjectureSettings:
        """Settings that fit the size of a data set."""
        if dataset.x_train.size <= _SMALL:
            return cls()
        # Gradients of the weights grow with the number of visible units that are on.
        return cls(
            n_hidden=12,
            learning_rate=0.5,
            likelihood_rate=0.005,
            seeds=(0, 1, 2, 3, 4, 5),
            n_rows=5000,
        )


@dataclass(frozen=True)
class ConjectureStudy:
    """The result of the study.

    Attributes
    ----------
    data : dict
        Name, sizes and binarisation of the data set.
    settings : ConjectureSettings
    stations : list of StationResult
    versions : dict of str
    command : str
    missing : str
        What of the study is not done yet, in words; ``settings`` are those of the rest.
    """

    data: dict[str, Any]
    settings: ConjectureSettings
    stations: list[StationResult]
    versions: dict[str, str]
    command: str = ""
    missing: str = ""

    @property
    def exact(self) -> bool:
        """Whether the free energies are exact."""
        return "exact_difference" in self.stations[0].trained[0][0]

    @property
    def source(self) -> str:
        """Prefix of the quantities that decide: ``"exact"``, or ``"tap"`` where that is all."""
        return "exact" if self.exact else "tap"

    def result(self, name: str) -> StationResult:
        """The result of a station."""
        return next(s for s in self.stations if s.name == name)

    @cached_property
    def judgements(self) -> list[Judgement]:
        """Every claim about every station, all judged together."""
        claims = [claim for s in self.stations for claim in station_claims(s, self.source)]
        return judge_all(claims, self.settings.confidence)

    def status(self, name: str) -> Status:
        """What became of the conjecture at one station: of its core claims taken together."""
        statuses = {self.judgement(name, claim).status for claim in CORE_CLAIMS}
        if "contradicted" in statuses:
            return "contradicted"
        return "supported" if statuses == {"supported"} else "undecided"

    def judgement(self, name: str, statement: str) -> Judgement:
        """What became of one claim about one station."""
        return next(
            j for j in self.judgements if (j.claim.subject, j.claim.statement) == (name, statement)
        )

    def __repr__(self) -> str:
        words = "; ".join(
            f"{j.claim.subject} {j.claim.statement}: {j.status}" for j in self.judgements
        )
        return f"ConjectureStudy({self.data['name']!r}, {words})"


# ---- running -------------------------------------------------------------------------------------


def run_conjecture(
    dataset: StudyData,
    directory: str | os.PathLike[str],
    settings: ConjectureSettings | None = None,
    *,
    n_jobs: int | None = None,
    reporter: Reporter | None = None,
    command: str = "",
    binarize: float | None = None,
    source: str | None = None,
) -> ConjectureStudy:
    """Train every station and its controls for every seed, and judge the claims.

    Each training leaves one file under ``directory``; what is done there already is not done
    again, so an interrupted study goes on where it stopped.

    Parameters
    ----------
    dataset : Dataset, DataStream, str or path-like
        With values in [0, 1], and labels; as for :func:`~freenergy.studies.learning.run_learning`.
    directory : path-like
    settings : ConjectureSettings, default=None
        None takes those that fit the data.
    n_jobs : int, default=None
        Processes, see :func:`~freenergy.studies.parallel.run_jobs`; the result does not depend
        on it.
    reporter : Reporter, default=None
    command : str
        For the record.
    binarize : float, default=None
        The threshold that a named set is binarised by. For the record where a Dataset is given.
    source : str, default=None
        For the record: what :func:`freenergy.data.load` was given; None is the set's name.

    Returns
    -------
    ConjectureStudy

    Raises
    ------
    DataError
        When the rows have no labels that are classes.
    DivergenceError
        When a training loses its parameters.
    RunError
        When the folder holds another study.
    """
    dataset, source = data_of_study(dataset, source, binarize, reporter)
    settings = settings or ConjectureSettings.for_data(dataset)
    record: dict[str, Any] = {"command": command, "binarize": binarize, "source": source}
    jobs = conjecture_trainings(dataset, directory, settings, **record)
    run_jobs(jobs, "trainings", n_jobs=n_jobs, reporter=reporter)
    return read_conjecture(directory)


def conjecture_trainings(
    dataset: Dataset,
    directory: str | os.PathLike[str],
    settings: ConjectureSettings,
    *,
    command: str = "",
    binarize: float | None = None,
    source: str | None = None,
) -> list[Job]:
    """Start a study in a folder, or go on with it: the trainings that are not finished.

    The parameters are those of :func:`run_conjecture`.
    """
    directory = Path(directory)
    train, held_out, n_classes = _labelled(dataset, settings.n_rows)
    data = {
        "name": source or dataset.name,
        "binarize": binarize,
        "fingerprint": dataset.fingerprint,
        "n_train": len(train),
        "n_held_out": len(held_out),
        "n_visible": train.width,
        "n_classes": n_classes,
    } | drawn_from(dataset)
    claim(directory, Plan("conjecture", data, settings, command))
    jobs = []
    for seed in settings.seeds:
        for name, shuffled in _trainings(settings):
            path = _path(directory, name, seed, shuffled)
            if not path.exists():
                of = (name, seed, shuffled, train, held_out, n_classes, settings)
                label = f"{name}{', ' + SHUFFLED if shuffled else ''}, seed {seed}"
                jobs.append(Job(label, partial(_train_one, path.absolute(), *of)))
    return jobs


def _train_one(path: Path, *of: Any) -> str:
    """Train one station, store its readings, and say what the last was."""
    found = _Run(*of).readings()
    write_atomically(path, json.dumps(as_json(found), allow_nan=False) + "\n")
    return _describe(found["trained"][-1])


def _trainings(settings: ConjectureSettings) -> Iterator[tuple[str, bool]]:
    """Names of stations, and whether their labels are shuffled."""
    for name in settings.stations:
        yield name, False
        if STATIONS[name].backpropagation:
            yield name, True


def _labelled(dataset: Dataset, n_rows: int | None) -> tuple[LabelledRows, LabelledRows, int]:
    """Rows to learn from, at most ``n_rows``, held-out rows, and the number of classes."""
    train, held_out, n_classes = split_labelled(dataset)
    return train.part(torch.arange(len(train))[:n_rows]), held_out, n_classes


class _Run:
    """One training of one station, with its readings and its random walk."""

    def __init__(
        self,
        name: str,
        seed: int,
        shuffled: bool,
        train: LabelledRows,
        held_out: LabelledRows,
        n_classes: int,
        settings: ConjectureSettings,
    ) -> None:
        self.name = name
        self.settings = settings
        self.train = train.shuffled(_stream(seed, _LABELS)) if shuffled else train
        # The controls are read against the true labels.
        self.reader = Reader(train, held_out, _stream(seed, _READER))
        # A control has no walk beside it, and nobody asks where its steps point.
        self.walk = None if shuffled else _stream(seed, _WALK)
        self.order = _stream(seed, _ORDER)
        self.station = self._build(seed, n_classes)

    def _build(self, seed: int, n_classes: int) -> Station:
        settings, rows = self.settings, self.train.rows
        dtype = rows.take(slice(0)).dtype
        rbm = skip_init(RBM, rows.width, settings.n_hidden, dtype=dtype)
        initialize(rbm, rows, RandomStream(seed))
        options = StationOptions(
            learning_rate=settings.learning_rate,
            likelihood_rate=settings.likelihood_rate,
            batch_size=settings.batch_size,
            depth=settings.depth,
            damping=settings.damping,
        )
        return STATIONS[self.name].build(rbm, n_classes, options, _stream(seed, _STATION))

    def readings(self) -> dict[str, Any]:
        """Train to the end, reading on the way."""
        before = self.station.rbm()
        walker, seconds = self.station.rbm(), 0.0
        history = [self._read(0, seconds)]
        walked = [] if self.walk is None else [self._read_walk(walker, 0)]
        every = max(1, self.settings.n_epochs // _N_READINGS)
        for epoch in range(1, self.settings.n_epochs + 1):
            begin = time.perf_counter()
            self._train_epoch(epoch)
            seconds += time.perf_counter() - begin
            if epoch % every == 0 or epoch == self.settings.n_epochs:
                after = self.station.rbm()
                history.append(self._read(epoch, seconds))
                if self.walk is not None:
                    _walk(walker, before, after, self.walk)
                    walked.append(self._read_walk(walker, epoch))
                before = after
        return {"trained": history} | ({} if self.walk is None else {"walk": walked})

    def _train_epoch(self, epoch: int) -> None:
        n, size = len(self.train), self.settings.batch_size
        permutation = self.order.permutation(n)
        for start in range(0, n, size):
            batch = self.train.take(permutation[start : start + size])
            self.station.update(batch.rows, batch.labels)
        if has_diverged(self.station.rbm()):
            raise DivergenceError(
                f"{self.name} diverged in epoch {epoch}; lower its learning rate (now "
                f"{self.station.learning_rate:g})"
            )

    def _read(self, epoch: int, seconds: float) -> dict[str, Any]:
        record = {"epoch": epoch, "seconds": seconds}
        if self.walk is None:
            return record | self.reader.outcome(self.station)
        return record | self.reader.station(self.station)

    def _read_walk(self, walker: RBM, epoch: int) -> dict[str, Any]:
        return {"epoch": epoch} | self.reader.model(walker)


def _stream(seed: int, purpose: int) -> RandomStream:
    return RandomStream(np.random.SeedSequence([seed, purpose]))


@torch.no_grad()
def _walk(walker: RBM, before: RBM, after: RBM, random: RandomStream) -> None:
    """Move a walker in a random direction, in each parameter as far as a training went."""

    def parameters(model: RBM) -> list[Tensor]:
        return [model.get_parameter(name) for name in Step._fields]

    went = Step(*(b - a for a, b in zip(parameters(before), parameters(after), strict=True)))
    for mine, move in zip(parameters(walker), random_step(went, random), strict=True):
        mine.add_(move)


def _describe(record: dict[str, Any]) -> str:
    key = "exact_difference" if "exact_difference" in record else "tap_difference"
    words = f"ΔF {record[key]:.2f}"
    return words + (f", accuracy {record['accuracy']:.1%}" if "accuracy" in record else "")


# ---- files ---------------------------------------------------------------------------------------


def _path(directory: Path, name: str, seed: int, shuffled: bool) -> Path:
    short = "".join(c for c in name.lower().replace(" ", "-") if c.isalnum() or c == "-")
    return directory / f"{short}{'-shuffled' if shuffled else ''}-seed{seed}.json"


def _read_run(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        histories = [values["trained"], *([values["walk"]] if "walk" in values else [])]
        if not all("epoch" in record for history in histories for record in history):
            raise ValueError("a record has no epoch")
        return dict(values)
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}); delete it and run the study again") from error


def read_conjecture(directory: str | os.PathLike[str]) -> ConjectureStudy:
    """The result of a study from its folder, as far as it is finished.

    Parameters
    ----------
    directory : path-like

    Returns
    -------
    ConjectureStudy
        Its ``missing`` says what is not done.

    Raises
    ------
    RunError
        When the folder holds no study, nothing finished, or something damaged.
    """
    directory = Path(directory)
    plan = read_plan(directory, "conjecture", ConjectureSettings)

    def is_done(name: str, seed: int) -> bool:
        kinds = (False, True) if STATIONS[name].backpropagation else (False,)
        return all(_path(directory, name, seed, shuffled).exists() for shuffled in kinds)

    done = finished(directory, plan.settings.stations, plan.settings.seeds, is_done)
    return ConjectureStudy(
        plan.data,
        dataclasses.replace(plan.settings, stations=done.names, seeds=done.seeds),
        [_read_station(directory, name, done.seeds) for name in done.names],
        plan.versions,
        plan.command,
        done.missing,
    )


def _read_station(directory: Path, name: str, seeds: tuple[int, ...]) -> StationResult:
    kind = STATIONS[name]
    runs = [_read_run(_path(directory, name, seed, False)) for seed in seeds]
    others = seeds if kind.backpropagation else ()
    return StationResult(
        name,
        kind.backpropagation,
        [run["trained"] for run in runs],
        [run["walk"] for run in runs],
        [_read_run(_path(directory, name, seed, True))["trained"] for seed in others],
    )

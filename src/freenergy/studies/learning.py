"""Does learning need samples? RBMs trained by CD, by PCD and by the extended mean field.

Every method starts from the same weights and sees the rows in the same order, for several seeds.
Where the model is small enough, the judge is the exact likelihood of held-out rows.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student_t
from sklearn.linear_model import LogisticRegression
from sklearn.utils.multiclass import type_of_target

from freenergy.data import Dataset
from freenergy.files import write_atomically
from freenergy.models import RBM
from freenergy.progress import Reporter
from freenergy.studies.assessment import Assessment, assess
from freenergy.studies.folder import Plan, claim, finished, read_plan
from freenergy.studies.parallel import Job, one_thread, run_jobs
from freenergy.studies.results import MethodResult, describe, filters, samples, split_held_out
from freenergy.studies.run_data import StudyData, data_of_study, drawn_from
from freenergy.thermodynamics import RBMMonitor, TemperatureMonitor
from freenergy.training import (
    RunConfig,
    RunDirectory,
    RunError,
    TrainingOptions,
    as_rows,
    load_model,
)
from freenergy.training.trainer import Monitor

__all__ = [
    "METHODS",
    "LearningSettings",
    "LearningStudy",
    "first_model",
    "learning_measurements",
    "learning_trainings",
    "read_assessment",
    "read_learning",
    "run_learning",
    "score_features",
]

METHODS: dict[str, dict[str, Any]] = {
    "CD": {"method": "cd", "n_steps": 1},
    "PCD": {"method": "pcd", "n_steps": 1},
    "PTT": {"method": "ptt", "n_steps": 1},
    "EMF (naive)": {"method": "emf", "mean_field_order": 1, "n_steps": 3},
    "EMF (TAP2)": {"method": "emf", "mean_field_order": 2, "n_steps": 3},
    "EMF (TAP3)": {"method": "emf", "mean_field_order": 3, "n_steps": 3},
}
"""What the study compares: a name, and the options that make it."""

_N_READINGS = 20
_LABELLED_ROWS = 10_000


@dataclass(frozen=True, kw_only=True)
class LearningSettings:
    """How the methods are trained.

    Parameters
    ----------
    n_hidden : int
    n_epochs : int
    batch_size : int
    learning_rate, learning_rate_decay : float
    seeds : tuple of int
    methods : tuple of str
        Names from :data:`METHODS`.
    assessed : tuple of str
        Methods whose first seed is assessed by every means.
    time_budget : float
        Seconds for each slow part of an assessment.
    """

    n_hidden: int = 16
    n_epochs: int = 60
    batch_size: int = 50
    learning_rate: float = 0.2
    learning_rate_decay: float = 0.05
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    methods: tuple[str, ...] = tuple(METHODS)
    assessed: tuple[str, ...] = ("PCD", "PTT", "EMF (TAP2)")
    time_budget: float = 60.0

    @classmethod
    def for_data(cls, dataset: Dataset) -> LearningSettings:
        """Settings that fit the size of a data set: exact judging for small, one seed for large."""
        if dataset.x_train.size <= 2_000_000:
            return cls()
        return cls(
            n_hidden=500,
            n_epochs=10,
            batch_size=100,
            learning_rate=0.05,
            learning_rate_decay=0.1,
            seeds=(0,),
            methods=("CD", "PCD", "PTT", "EMF (TAP2)"),
            assessed=("PCD", "PTT"),
        )


@dataclass(frozen=True)
class LearningStudy:
    """The result of the study.

    Attributes
    ----------
    data : dict
        Name, sizes and binarisation of the data set.
    image_shape : tuple of int or None
    settings : LearningSettings
    methods : list of MethodResult
    versions : dict of str
    command : str
    pixel_accuracy : float or None
        Held-out accuracy of logistic regression on the rows themselves.
    missing : str
        What of the study is not done yet, in words; ``settings`` are those of the rest.
    """

    data: dict[str, Any]
    image_shape: tuple[int, ...] | None
    settings: LearningSettings
    methods: list[MethodResult]
    versions: dict[str, str]
    command: str = ""
    pixel_accuracy: float | None = None
    missing: str = ""

    @property
    def exact(self) -> bool:
        """Whether the likelihoods are exact."""
        return "log_likelihood_held_out" in self.methods[0].histories[0][-1]

    @property
    def judge(self) -> str:
        """The quantity that the methods are judged by."""
        return "log_likelihood_held_out" if self.exact else "pseudo_likelihood_held_out"

    def result(self, name: str) -> MethodResult:
        """The result of a method."""
        return next(m for m in self.methods if m.name == name)

    def difference(self, name: str, other: str) -> tuple[float, float]:
        """Mean over seeds of the judge's difference of two methods, and half its 95 % interval.

        Seeds are paired: both methods started from the same weights. With one seed the half-width
        is NaN.
        """
        gaps = self.result(name).final(self.judge) - self.result(other).final(self.judge)
        if len(gaps) < 2:
            return float(gaps.mean()), math.nan
        width = student_t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / math.sqrt(len(gaps))
        return float(gaps.mean()), float(width)


def run_learning(
    dataset: StudyData,
    directory: str | os.PathLike[str],
    settings: LearningSettings | None = None,
    *,
    n_jobs: int | None = None,
    reporter: Reporter | None = None,
    command: str = "",
    binarize: float | None = None,
    source: str | None = None,
) -> LearningStudy:
    """Train every method for every seed, and read off what the report shows.

    Each training is a run directory under ``directory``; what is done there already is not done
    again, so an interrupted study goes on where it stopped.

    Parameters
    ----------
    dataset : Dataset, DataStream, str or path-like
        With values in [0, 1]. Of a stream, and of what a name stands for that is streamed, rows are
        drawn: :func:`~freenergy.studies.run_data.open_dataset`.
    directory : path-like
    settings : LearningSettings, default=None
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
    LearningStudy

    Raises
    ------
    RunError
        When the folder holds another study.
    """
    dataset, source = data_of_study(dataset, source, binarize, reporter)
    settings = settings or LearningSettings.for_data(dataset)
    record: dict[str, Any] = {"command": command, "binarize": binarize, "source": source}
    pool: dict[str, Any] = {"n_jobs": n_jobs, "reporter": reporter}
    run_jobs(learning_trainings(dataset, directory, settings, **record), "trainings", **pool)
    run_jobs(learning_measurements(dataset, directory, settings), "measurements", **pool)
    score_features(dataset, directory, settings, reporter)
    return read_learning(directory)


def learning_trainings(
    dataset: Dataset,
    directory: str | os.PathLike[str],
    settings: LearningSettings,
    *,
    command: str = "",
    binarize: float | None = None,
    source: str | None = None,
) -> list[Job]:
    """Start a study in a folder, or go on with it: the trainings that are not finished.

    The parameters are those of :func:`run_learning`.
    """
    directory = Path(directory)
    train, held_out = split_held_out(dataset)
    data = {
        "name": source or dataset.name,
        "binarize": binarize,
        "image_shape": None if dataset.image_shape is None else list(dataset.image_shape),
        "fingerprint": dataset.fingerprint,
        "n_train": len(train),
        "n_held_out": len(held_out),
        "n_visible": train.shape[1],
    } | drawn_from(dataset)
    plan = Plan("learning", data, settings, command)
    claim(directory, plan)
    return [
        Job(
            f"{name}, seed {seed}",
            partial(_train_one, name, seed, train, held_out, directory.absolute(), plan),
        )
        # By seeds, so that an interrupted study has whole comparisons to show.
        for seed in settings.seeds
        for name in settings.methods
        if not _is_trained(directory, settings, name, seed)
    ]


def learning_measurements(
    dataset: Dataset, directory: str | os.PathLike[str], settings: LearningSettings
) -> list[Job]:
    """The assessments of trained models that are not done yet."""
    train, held_out = split_held_out(dataset)
    jobs = []
    for name in settings.methods:
        path = _run_path(Path(directory), name, settings.seeds[0]).absolute()
        if name in settings.assessed and not RunDirectory(path).assessment_path.exists():
            work = partial(_assess_one, name, train, held_out, path, settings.time_budget)
            jobs.append(Job(f"assessing {name}", work))
    return jobs


def _run_path(directory: Path, name: str, seed: int) -> Path:
    short = name.lower().replace(" ", "-").replace("(", "").replace(")", "")
    return directory / f"{short}-seed{seed}"


def _is_trained(directory: Path, settings: LearningSettings, name: str, seed: int) -> bool:
    run = RunDirectory(_run_path(directory, name, seed))
    return run.checkpoint_path.exists() and len(run.history()) >= settings.n_epochs


def first_model(directory: str | os.PathLike[str], settings: LearningSettings, name: str) -> RBM:
    """The model that a method trained with the first seed."""
    return load_model(_run_path(Path(directory), name, settings.seeds[0]))


def _train_one(
    name: str,
    seed: int,
    train: np.ndarray,
    held_out: np.ndarray,
    directory: Path,
    plan: Plan[LearningSettings],
) -> str:
    """Train one method with one seed, and say how well that went."""
    settings = plan.settings
    options = TrainingOptions(
        n_epochs=settings.n_epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        learning_rate_decay=settings.learning_rate_decay,
        **METHODS[name],
    )
    config = RunConfig(
        plan.data, train.shape[1], settings.n_hidden, options, seed, command=plan.command
    )
    run = RunDirectory(_run_path(directory, name, seed))
    if not run.config_path.exists():
        run = RunDirectory.create(run.path, config)
    rows = as_rows(train, torch.empty(0))
    monitors: list[Monitor] = [RBMMonitor(torch.from_numpy(train), torch.from_numpy(held_out))]
    if seed == settings.seeds[0]:
        monitors.append(TemperatureMonitor(torch.from_numpy(held_out)))
    every = max(1, settings.n_epochs // _N_READINGS)
    trainer = config.build(rows, tuple(monitors), monitor_every=every)
    # A training is short beside the study: it may lose what it did since the last reading.
    run.train(trainer, rows, checkpoint_every=every)
    return describe(trainer.history[-1])


def _assess_one(
    name: str, train: np.ndarray, held_out: np.ndarray, path: Path, time_budget: float
) -> str:
    """Assess a trained method, and say in how many seconds."""
    run = RunDirectory(path)
    found = assess(
        load_model(run.path),
        torch.from_numpy(train),
        torch.from_numpy(held_out),
        n_steps=METHODS[name]["n_steps"],
        ladder=run.ladder(),
        chains=run.chains(),
        time_budget=time_budget,
        reporter=Reporter(io.StringIO()),
    )
    write_atomically(run.assessment_path, found.to_json())
    return f"in {found.seconds:.1f} s"


def read_assessment(run: RunDirectory) -> Assessment | None:
    """What :func:`~freenergy.studies.assessment.assess` found of a run; None before.

    Raises
    ------
    RunError
        When the file is damaged.
    """
    if not run.assessment_path.exists():
        return None
    try:
        return Assessment.from_json(run.assessment_path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(
            f"{run.assessment_path} is damaged ({error}); delete it and evaluate again"
        ) from error


def score_features(
    dataset: Dataset,
    directory: str | os.PathLike[str],
    settings: LearningSettings,
    reporter: Reporter | None = None,
) -> None:
    """Store the accuracies of classifiers on pixels and on features, unless that was done."""
    path = Path(directory) / "accuracy.json"
    if set(_read_accuracies(path)) != {"pixels", *settings.methods}:
        with one_thread():
            found = _accuracies(dataset, Path(directory), settings, reporter or Reporter())
        write_atomically(path, json.dumps(found, indent=2) + "\n")


def _accuracies(
    dataset: Dataset, directory: Path, settings: LearningSettings, reporter: Reporter
) -> dict[str, float]:
    """Held-out accuracy of logistic regression on pixels and on each method's features.

    On 10 000 rows at most, drawn at random; nothing where the labels are no classes.
    """
    x, y, x_test, y_test = dataset.x_train, dataset.y_train, dataset.x_test, dataset.y_test
    if y is None or x_test is None or y_test is None or np.ndim(y) != 1:
        return {}
    chosen = np.random.default_rng(0).permutation(len(y))[:_LABELLED_ROWS]
    classes = type_of_target(y) in ("binary", "multiclass")
    if not classes or len(np.unique(y[chosen])) < 2:
        return {}
    scores = {}
    names = ["pixels", *settings.methods]
    with reporter.task("logistic regression on features", len(names), "methods") as advance:
        for name in names:
            features = [x[chosen], x_test]
            if name != "pixels":
                model = load_model(_run_path(directory, name, settings.seeds[0]))
                with torch.no_grad():
                    features = [model.hidden_mean(torch.from_numpy(x)).numpy() for x in features]
            classifier = LogisticRegression(C=1.0, max_iter=500)
            classifier.fit(features[0], y[chosen])
            scores[name] = float(classifier.score(features[1], y_test))
            advance(1)
    return scores


def _read_accuracies(path: Path) -> dict[str, float]:
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}); delete it and run the study again") from error


def read_learning(directory: str | os.PathLike[str]) -> LearningStudy:
    """The result of a study from its folder, as far as it is finished.

    Parameters
    ----------
    directory : path-like

    Returns
    -------
    LearningStudy
        Its ``missing`` says what is not done.

    Raises
    ------
    RunError, CheckpointError
        When the folder holds no study, nothing finished, or something damaged.
    """
    directory = Path(directory)
    plan = read_plan(directory, "learning", LearningSettings)
    done = finished(
        directory,
        plan.settings.methods,
        plan.settings.seeds,
        partial(_is_trained, directory, plan.settings),
    )
    scores = _read_accuracies(directory / "accuracy.json")
    shape = plan.data["image_shape"]
    return LearningStudy(
        plan.data,
        None if shape is None else tuple(shape),
        dataclasses.replace(plan.settings, methods=done.names, seeds=done.seeds),
        [_read_method(directory, name, done.seeds, scores.get(name)) for name in done.names],
        plan.versions,
        plan.command,
        scores.get("pixels"),
        done.missing,
    )


def _read_method(
    directory: Path, name: str, seeds: tuple[int, ...], accuracy: float | None
) -> MethodResult:
    runs = [RunDirectory(_run_path(directory, name, seed)) for seed in seeds]
    model = load_model(runs[0].path)
    return MethodResult(
        name,
        [run.history() for run in runs],
        accuracy,
        filters(model),
        samples(model),
        read_assessment(runs[0]),
    )

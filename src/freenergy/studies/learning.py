"""Does learning need samples? RBMs trained by CD, by PCD and by the extended mean field.

Every method starts from the same weights and sees the rows in the same order, for several seeds.
Where the model is small enough, the judge is the exact likelihood of held-out rows.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass, field
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
from freenergy.studies.results import MethodResult, describe, filters, samples, split_held_out
from freenergy.thermodynamics import RBMMonitor, TemperatureMonitor
from freenergy.training import (
    RunConfig,
    RunDirectory,
    RunError,
    TrainingOptions,
    as_rows,
    load_model,
)
from freenergy.training.run import versions
from freenergy.training.trainer import Monitor

__all__ = [
    "METHODS",
    "LearningSettings",
    "LearningStudy",
    "first_model",
    "read_assessment",
    "read_learning",
    "run_learning",
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
    """

    data: dict[str, Any]
    image_shape: tuple[int, ...] | None
    settings: LearningSettings
    methods: list[MethodResult]
    versions: dict[str, str]
    command: str = ""
    pixel_accuracy: float | None = None

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


@dataclass(frozen=True)
class _Plan:
    """What a study folder was started for, so that it is only continued for the same."""

    data: dict[str, Any]
    image_shape: tuple[int, ...] | None
    settings: LearningSettings
    command: str = field(compare=False, default="")

    def to_json(self, extra: dict[str, Any]) -> str:
        return json.dumps({**dataclasses.asdict(self), **extra}, indent=2) + "\n"


def run_learning(
    dataset: Dataset,
    directory: str | os.PathLike[str],
    settings: LearningSettings | None = None,
    *,
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
    dataset : Dataset
        With values in [0, 1].
    directory : path-like
    settings : LearningSettings, default=None
        None takes those that fit the data.
    reporter : Reporter, default=None
    command : str
        For the record.
    binarize : float, default=None
        For the record: the threshold that the data set was binarised by.
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
    directory, reporter = Path(directory), reporter or Reporter()
    settings = settings or LearningSettings.for_data(dataset)
    train, held_out = split_held_out(dataset)
    data = {
        "name": source or dataset.name,
        "binarize": binarize,
        "image_shape": None if dataset.image_shape is None else list(dataset.image_shape),
        "fingerprint": dataset.fingerprint,
        "n_train": len(train),
        "n_held_out": len(held_out),
        "n_visible": train.shape[1],
    }
    _claim(directory, _Plan(data, dataset.image_shape, settings, command))
    for name in settings.methods:
        for seed in settings.seeds:
            _train_one(name, seed, train, held_out, data, directory, settings, reporter, command)
    for name in settings.methods:
        if name in settings.assessed:
            _assess_one(name, train, held_out, directory, settings, reporter)
    accuracies = _accuracies(dataset, directory, settings, reporter)
    write_atomically(directory / "accuracy.json", json.dumps(accuracies, indent=2) + "\n")
    return read_learning(directory)


def _claim(directory: Path, plan: _Plan) -> None:
    path = directory / "study.json"
    if (directory / "run.json").exists():
        raise RunError(f"{directory} holds a run; choose another folder with --out")
    if path.exists():
        if _read_plan(path)[0] != plan:
            raise RunError(
                f"{directory} holds a study of other data or settings; choose another folder "
                "with --out"
            )
        return
    write_atomically(path, plan.to_json({"study": "learning", "versions": versions()}))


def _read_plan(path: Path) -> tuple[_Plan, dict[str, str]]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        settings: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values["settings"].items()
        }
        shape = values["image_shape"]
        plan = _Plan(
            values["data"],
            None if shape is None else tuple(shape),
            LearningSettings(**settings),
            values["command"],
        )
        return plan, values["versions"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error})") from error


def _run_path(directory: Path, name: str, seed: int) -> Path:
    short = name.lower().replace(" ", "-").replace("(", "").replace(")", "")
    return directory / f"{short}-seed{seed}"


def first_model(directory: str | os.PathLike[str], settings: LearningSettings, name: str) -> RBM:
    """The model that a method trained with the first seed."""
    return load_model(_run_path(Path(directory), name, settings.seeds[0]))


def _train_one(
    name: str,
    seed: int,
    train: np.ndarray,
    held_out: np.ndarray,
    data: dict[str, Any],
    directory: Path,
    settings: LearningSettings,
    reporter: Reporter,
    command: str,
) -> None:
    options = TrainingOptions(
        n_epochs=settings.n_epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        learning_rate_decay=settings.learning_rate_decay,
        **METHODS[name],
    )
    config = RunConfig(data, train.shape[1], settings.n_hidden, options, seed, command=command)
    path = _run_path(directory, name, seed)
    run = RunDirectory(path)
    if not run.config_path.exists():
        run = RunDirectory.create(path, config)
    rows = as_rows(train, torch.empty(0))
    monitors: list[Monitor] = [RBMMonitor(torch.from_numpy(train), torch.from_numpy(held_out))]
    if seed == settings.seeds[0]:
        monitors.append(TemperatureMonitor(torch.from_numpy(held_out)))
    every = max(1, settings.n_epochs // _N_READINGS)
    trainer = config.build(rows, tuple(monitors), monitor_every=every)
    run.restore(trainer)
    label = f"{name}, seed {seed}"
    with reporter.task(label, settings.n_epochs, "epochs", trainer.epoch) as advance:
        run.train(trainer, rows, on_epoch=lambda t: advance(1, describe(t.history[-1])))


def _assess_one(
    name: str,
    train: np.ndarray,
    held_out: np.ndarray,
    directory: Path,
    settings: LearningSettings,
    reporter: Reporter,
) -> None:
    """Assess the first seed of a method, unless that was done."""
    run = RunDirectory(_run_path(directory, name, settings.seeds[0]))
    if run.assessment_path.exists():
        return
    found = assess(
        load_model(run.path),
        torch.from_numpy(train),
        torch.from_numpy(held_out),
        n_steps=METHODS[name]["n_steps"],
        ladder=run.ladder(),
        chains=run.chains(),
        time_budget=settings.time_budget,
        reporter=reporter,
    )
    write_atomically(run.assessment_path, found.to_json())


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
    """The result of a study from its folder.

    Parameters
    ----------
    directory : path-like

    Returns
    -------
    LearningStudy

    Raises
    ------
    RunError, CheckpointError
        When the folder holds no study, or not a complete and undamaged one.
    """
    directory = Path(directory)
    if not (directory / "study.json").is_file():
        raise RunError(f"{directory} holds no study (there is no study.json in it)")
    plan, versions = _read_plan(directory / "study.json")
    scores = _read_accuracies(directory / "accuracy.json")
    methods = []
    for name in plan.settings.methods:
        paths = [_run_path(directory, name, seed) for seed in plan.settings.seeds]
        runs = [RunDirectory(path) for path in paths]
        histories = [run.history() for run in runs if run.checkpoint_path.exists()]
        n_done = sum(len(history) >= plan.settings.n_epochs for history in histories)
        if n_done < len(runs):
            raise RunError(
                f"the study in {directory} is not complete; go on with "
                f"'freenergy study --out {directory}' and its options"
            )
        model = load_model(paths[0])
        methods.append(
            MethodResult(
                name,
                histories,
                scores.get(name),
                filters(model),
                samples(model),
                read_assessment(runs[0]),
            )
        )
    return LearningStudy(
        plan.data,
        plan.image_shape,
        plan.settings,
        methods,
        versions,
        plan.command,
        scores.get("pixels"),
    )

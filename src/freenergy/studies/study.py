"""``freenergy study``: all its questions on one data set, and the page of their answers."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from freenergy.data import DataError, Dataset
from freenergy.progress import Reporter
from freenergy.report import Page, Section, Text
from freenergy.studies import conjecture_page
from freenergy.studies.blocks import unfinished
from freenergy.studies.conjecture import (
    ConjectureSettings,
    ConjectureStudy,
    conjecture_trainings,
    read_conjecture,
)
from freenergy.studies.depth import (
    DepthSettings,
    DepthStudy,
    depth_followers,
    depth_trainings,
    read_depth,
)
from freenergy.studies.depth_page import depth_sections, depth_verdict
from freenergy.studies.folder import NothingFinished
from freenergy.studies.landscape import landscape_section, read_landscape, run_landscape
from freenergy.studies.learning import (
    LearningSettings,
    LearningStudy,
    first_model,
    learning_measurements,
    learning_trainings,
    read_learning,
    score_features,
)
from freenergy.studies.learning_page import learning_page
from freenergy.studies.parallel import Job, run_jobs
from freenergy.studies.results import split_held_out
from freenergy.studies.run_data import StudyData, data_of_study

__all__ = ["Study", "read_study", "run_study", "study_page"]

_CONJECTURE, _DEPTH, _LANDSCAPE = "conjecture", "depth", "landscape.json"
_OF = "PCD"


@dataclass(frozen=True)
class Study:
    """What the questions found.

    Attributes
    ----------
    learning : LearningStudy
    landscape : dict or None
        Of the first seed's model trained by PCD; None where that was not asked for.
    conjecture : ConjectureStudy or None
        None where the rows have no classes.
    depth : DepthStudy or None
        Likewise.
    missing : tuple of str
        What is not done yet, in words.
    """

    learning: LearningStudy
    landscape: dict[str, Any] | None = None
    conjecture: ConjectureStudy | None = None
    depth: DepthStudy | None = None
    missing: tuple[str, ...] = ()


def run_study(
    dataset: StudyData,
    directory: str | os.PathLike[str],
    settings: LearningSettings | None = None,
    conjecture_settings: ConjectureSettings | None = None,
    depth_settings: DepthSettings | None = None,
    *,
    n_jobs: int | None = None,
    reporter: Reporter | None = None,
    command: str = "",
    binarize: float | None = None,
    source: str | None = None,
) -> Study:
    """Ask every question of a data set; what the folder holds already is not done again.

    The parameters are those of :func:`~freenergy.studies.learning.run_learning`.
    """
    directory, reporter = Path(directory), reporter or Reporter()
    dataset, source = data_of_study(dataset, source, binarize, reporter)
    settings = settings or LearningSettings.for_data(dataset)
    record: dict[str, Any] = {"command": command, "binarize": binarize, "source": source}
    trainings = learning_trainings(dataset, directory, settings, **record)
    asked = conjecture_settings or ConjectureSettings.for_data(dataset)
    deep = depth_settings or DepthSettings.for_data(dataset)
    classes = True
    try:
        trainings += conjecture_trainings(dataset, directory / _CONJECTURE, asked, **record)
        trainings += depth_trainings(dataset, directory / _DEPTH, deep, **record)
    except DataError as error:
        classes = False
        reporter.line(f"whether backprop lowers a free energy, and depth, are left out: {error}")
    run_jobs(trainings, "trainings", n_jobs=n_jobs, reporter=reporter)
    measurements = learning_measurements(dataset, directory, settings)
    measurements += _landscapes(dataset, directory, settings)
    if classes:
        measurements += depth_followers(dataset, directory / _DEPTH, deep)
    run_jobs(measurements, "measurements", n_jobs=n_jobs, reporter=reporter)
    score_features(dataset, directory, settings, reporter)
    return read_study(directory)


def _landscapes(dataset: Dataset, directory: Path, settings: LearningSettings) -> list[Job]:
    """The count of minima and states, unless that was done or no such model was trained."""
    if _OF not in settings.methods or (directory / _LANDSCAPE).exists():
        return []
    rows = split_held_out(dataset)[0]
    return [Job(f"landscape of {_OF}", partial(_survey, directory.absolute(), settings, rows))]


def _survey(directory: Path, settings: LearningSettings, rows: np.ndarray) -> str:
    model = first_model(directory, settings, _OF)
    found = run_landscape(model, torch.from_numpy(rows), directory / _LANDSCAPE)
    return f"{found['minima']['count']['found']} minima of the energy"


def read_study(directory: str | os.PathLike[str]) -> Study:
    """What :func:`run_study` left in a folder, as far as it is finished.

    Raises
    ------
    RunError, CheckpointError
        When the folder holds no study, nothing finished of its first question, or something
        damaged.
    """
    directory = Path(directory)
    learning, missing = read_learning(directory), []
    if learning.missing:
        missing.append(f"Learning: {learning.missing}.")
    assessed = learning.settings.assessed
    left = [m.name for m in learning.methods if m.name in assessed and m.assessment is None]
    if left:
        missing.append(f"Assessments: {', '.join(left)}.")
    landscape = None
    if (directory / _LANDSCAPE).exists():
        landscape = read_landscape(directory / _LANDSCAPE)
    elif _OF in learning.settings.methods:
        missing.append("The landscape.")
    conjecture = None
    if (directory / _CONJECTURE / "study.json").exists():
        try:
            conjecture = read_conjecture(directory / _CONJECTURE)
        except NothingFinished:
            missing.append("The conjecture: all of it.")
        else:
            if conjecture.missing:
                missing.append(f"The conjecture: {conjecture.missing}.")
    depth = None
    if (directory / _DEPTH / "study.json").exists():
        try:
            depth = read_depth(directory / _DEPTH)
        except NothingFinished:
            missing.append("How deep a net can be: all of it.")
        else:
            if depth.missing:
                missing.append(f"How deep a net can be: {depth.missing}.")
    return Study(learning, landscape, conjecture, depth, tuple(missing))


def study_page(study: Study) -> Page:
    """Compose the report: learning, the landscape, what backprop does, and depth."""
    page = learning_page(study.learning)
    sections = [*unfinished(*study.missing), *page.sections]
    if study.landscape is not None:
        sections.append(landscape_section(study.landscape, _OF))
    if study.conjecture is not None:
        sections.append(_answer(study.conjecture))
        sections += conjecture_page.conjecture_sections(study.conjecture)
    if study.depth is not None:
        words = Text(depth_verdict(study.depth).text)
        sections.append(Section("What keeps a deep net trainable?", [words]))
        sections += depth_sections(study.depth)
    return dataclasses.replace(page, sections=sections)


def _answer(study: ConjectureStudy) -> Section:
    return Section(
        "Does backpropagation lower the free energy?",
        [Text(conjecture_page.answer(study))],
        intro=(
            f"From the same initial weights ({study.settings.n_hidden} hidden units, "
            f"{len(study.settings.seeds)} seeds), mean field, sampling and backpropagation learn "
            "the same rows; the free energy is that of the RBM which the weights define."
        ),
    )

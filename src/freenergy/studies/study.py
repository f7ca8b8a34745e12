"""``freenergy study``: all its questions on one data set, and the page of their answers."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from freenergy.data import DataError, Dataset
from freenergy.progress import Reporter
from freenergy.report import Page, Section, Text
from freenergy.studies import conjecture_page
from freenergy.studies.conjecture import (
    ConjectureSettings,
    ConjectureStudy,
    read_conjecture,
    run_conjecture,
)
from freenergy.studies.landscape import landscape_section, read_landscape, run_landscape
from freenergy.studies.learning import (
    LearningSettings,
    LearningStudy,
    first_model,
    read_learning,
    run_learning,
)
from freenergy.studies.learning_page import learning_page
from freenergy.studies.results import split_held_out

__all__ = ["Study", "read_study", "run_study", "study_page"]

_CONJECTURE, _LANDSCAPE = "conjecture", "landscape.json"
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
    """

    learning: LearningStudy
    landscape: dict[str, Any] | None = None
    conjecture: ConjectureStudy | None = None


def run_study(
    dataset: Dataset,
    directory: str | os.PathLike[str],
    settings: LearningSettings | None = None,
    conjecture_settings: ConjectureSettings | None = None,
    *,
    reporter: Reporter | None = None,
    command: str = "",
    binarize: float | None = None,
    source: str | None = None,
) -> Study:
    """Ask every question of a data set; what the folder holds already is not done again.

    The parameters are those of :func:`~freenergy.studies.learning.run_learning`.
    """
    directory, reporter = Path(directory), reporter or Reporter()
    record: dict[str, Any] = {
        "reporter": reporter,
        "command": command,
        "binarize": binarize,
        "source": source,
    }
    learning = run_learning(dataset, directory, settings, **record)
    landscape = None
    if _OF in learning.settings.methods:
        rows = torch.from_numpy(split_held_out(dataset)[0])
        model = first_model(directory, learning.settings, _OF)
        landscape = run_landscape(model, rows, directory / _LANDSCAPE, reporter=reporter)
    try:
        conjecture = run_conjecture(dataset, directory / _CONJECTURE, conjecture_settings, **record)
    except DataError as error:
        reporter.line(f"whether backprop lowers a free energy is left out: {error}")
        conjecture = None
    return Study(learning, landscape, conjecture)


def read_study(directory: str | os.PathLike[str]) -> Study:
    """What :func:`run_study` left in a folder.

    Raises
    ------
    RunError, CheckpointError
        When the folder holds no study, or not a complete and undamaged one.
    """
    directory = Path(directory)
    landscape, conjecture = directory / _LANDSCAPE, directory / _CONJECTURE
    return Study(
        read_learning(directory),
        read_landscape(landscape) if landscape.exists() else None,
        read_conjecture(conjecture) if conjecture.is_dir() else None,
    )


def study_page(study: Study) -> Page:
    """Compose the report: learning without samples, the landscape, and what backprop does."""
    page = learning_page(study.learning)
    sections = list(page.sections)
    if study.landscape is not None:
        sections.append(landscape_section(study.landscape, _OF))
    if study.conjecture is not None:
        sections.append(_answer(study.conjecture))
        sections += conjecture_page.conjecture_sections(study.conjecture)
    return dataclasses.replace(page, sections=sections)


def _answer(study: ConjectureStudy) -> Section:
    found = conjecture_page.verdict(study)
    return Section(
        "Does backpropagation lower the free energy?",
        [Text(f"**{found.status.capitalize()}.** {found.text}")],
        intro=(
            f"From the same initial weights ({study.settings.n_hidden} hidden units, "
            f"{len(study.settings.seeds)} seeds), mean field, sampling and backpropagation learn "
            "the same rows; the free energy is that of the RBM which the weights define."
        ),
    )

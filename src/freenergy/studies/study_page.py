"""The page of ``freenergy study``: all its questions, one after the other."""

from __future__ import annotations

import dataclasses

from freenergy.report import Page, Section, Text
from freenergy.studies import conjecture_page
from freenergy.studies.conjecture import ConjectureStudy
from freenergy.studies.learning import LearningStudy
from freenergy.studies.learning_page import learning_page

__all__ = ["study_page"]


def study_page(learning: LearningStudy, conjecture: ConjectureStudy | None) -> Page:
    """Compose the report of a study: learning without samples, and the conjecture on backprop.

    The second needs labels; None leaves it out.
    """
    page = learning_page(learning)
    if conjecture is None:
        return page
    found = conjecture_page.verdict(conjecture)
    answer = Section(
        "Does backpropagation lower the free energy?",
        [Text(f"**{found.status.capitalize()}.** {found.text}")],
        intro=(
            f"From the same initial weights ({conjecture.settings.n_hidden} hidden units, "
            f"{len(conjecture.settings.seeds)} seeds), mean field, sampling and backpropagation "
            "learn the same rows; the free energy is that of the RBM which the weights define."
        ),
    )
    sections = [*page.sections, answer, *conjecture_page.conjecture_sections(conjecture)]
    return dataclasses.replace(page, sections=sections)

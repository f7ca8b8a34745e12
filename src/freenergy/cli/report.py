"""``freenergy report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freenergy.cli.estimators import write_estimator_report
from freenergy.cli.rbm_run import write_run_report
from freenergy.cli.study import page_of_study
from freenergy.report import write
from freenergy.studies.estimator_run import is_estimator_run
from freenergy.training import RunDirectory

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(help="Run directory, or folder of a study.")],
) -> None:
    """Write the report of a run or of a study again."""
    if (run / "study.json").exists():
        print(f"report: {write(page_of_study(run), run / 'report.html')}")
    elif is_estimator_run(run):
        print(f"report: {write_estimator_report(run)}")
    else:
        print(f"report: {write_run_report(RunDirectory(run))}")

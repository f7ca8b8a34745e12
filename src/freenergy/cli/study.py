"""``freenergy study``."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from freenergy import data
from freenergy.cli.labels import lasting_labels
from freenergy.cli.options import (
    BinarizeOption,
    Interrupted,
    StreamOption,
    absolute,
    command_line,
    new_folder,
    read_threshold,
)
from freenergy.progress import Reporter
from freenergy.report import Page, write
from freenergy.studies.conjecture import ConjectureSettings, read_conjecture, run_conjecture
from freenergy.studies.conjecture_page import conjecture_page
from freenergy.studies.conjecture_page import verdict as conjecture_verdict
from freenergy.studies.depth import DepthSettings, read_depth, run_depth
from freenergy.studies.depth_page import depth_page
from freenergy.studies.folder import study_of
from freenergy.studies.learning import LearningSettings
from freenergy.studies.run_data import open_dataset
from freenergy.studies.study import read_study, run_study, study_page

__all__ = ["page_of_study", "study"]


def study(
    data_name: StreamOption = "digits",
    out: Annotated[
        Path | None, typer.Option(help="Folder; an unfinished study there goes on.")
    ] = None,
    binarize: BinarizeOption = "0.5",
    labels: Annotated[
        str | None,
        typer.Option(
            help="Of shards, tables and stores, where the labels are: a column of Parquet, .npy "
            "shards, or an array of a store (FILE.h5:/y, or /y where it is the same file)."
        ),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            help="Of shards, tables and stores, so many rows are drawn, always the same.",
            show_default="as many as take 256 MiB",
        ),
    ] = None,
    hidden: Annotated[int | None, typer.Option(help="Hidden units.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds.")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Trainings at a time, each in a process.", show_default="number of cores"
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(help="One question alone: conjecture or depth.", show_default="all"),
    ] = None,
) -> None:
    """Train RBMs by CD, PCD, PTT and EMF, compare them and backprop, and deep nets; report."""
    if jobs is not None and jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {jobs}")
    if only not in (None, "conjecture", "depth"):
        raise ValueError(f"--only takes conjecture or depth, got {only!r}")
    if only == "depth":
        for name, value in (("--hidden", hidden), ("--seeds", seeds)):
            if value is not None:
                raise ValueError(f"the study of depth has its own nets: drop {name}")
    threshold = read_threshold(binarize)
    dataset = open_dataset(data_name, threshold, lasting_labels(data_name, labels), rows)
    changes: dict[str, Any] = {}
    for name, value in (("n_hidden", hidden), ("n_epochs", epochs), ("seeds", seeds)):
        if value is not None:
            if value < 1:
                raise ValueError(f"--{name.removeprefix('n_')} must be at least 1, got {value}")
            changes[name] = tuple(range(value)) if name == "seeds" else value
    out = out or new_folder(f"study-{dataset.name}")
    record: dict[str, Any] = {
        "n_jobs": jobs or -1,
        "reporter": Reporter(),
        "command": command_line(),
        "binarize": threshold,
        "source": absolute(data_name),
    }
    try:
        if only is None:
            run_study(dataset, out, *_study_settings(dataset, changes), **record)
        elif only == "conjecture":
            run_conjecture(dataset, out, _study_settings(dataset, changes)[1], **record)
        else:
            run_depth(dataset, out, _study_settings(dataset, changes)[2], **record)
    except KeyboardInterrupt:
        raise Interrupted(
            f"go on with the same command and --out {shlex.quote(str(out))}"
        ) from None
    page = page_of_study(out)
    path = write(page, out / "report.html")
    if page.verdict is not None:
        print(page.verdict.text)
    if only is None and (conjecture := read_study(out).conjecture) is not None:
        status = conjecture_verdict(conjecture).status
        print(f"The conjecture that backprop lowers the free energy: {status}.")
    print(f"report: {path}")


def _study_settings(
    dataset: data.Dataset, changes: dict[str, Any]
) -> tuple[LearningSettings, ConjectureSettings, DepthSettings]:
    """Settings that fit the data, with what was asked for otherwise."""
    conjecture, depth = ConjectureSettings.for_data(dataset), DepthSettings.for_data(dataset)
    small = dict(changes)
    if "n_hidden" in small:
        # Small enough to be judged exactly, whatever the other studies use.
        small["n_hidden"] = min(small["n_hidden"], conjecture.n_hidden)
    deep = {"n_epochs": changes["n_epochs"]} if "n_epochs" in changes else {}
    return (
        dataclasses.replace(LearningSettings.for_data(dataset), **changes),
        dataclasses.replace(conjecture, **small),
        dataclasses.replace(depth, **deep),
    )


def page_of_study(folder: Path) -> Page:
    """The page of a study, of whichever kind its folder holds."""
    kind = study_of(folder)
    if kind == "conjecture":
        return conjecture_page(read_conjecture(folder))
    if kind == "depth":
        return depth_page(read_depth(folder))
    return study_page(read_study(folder))

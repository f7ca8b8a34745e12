"""``freenergy evaluate``."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from freenergy import data, distributed
from freenergy.cli.estimators import evaluate_estimator, holds_estimator
from freenergy.cli.labels import common_labels
from freenergy.cli.options import read_threshold
from freenergy.cli.rbm_run import CERTIFIED_ROWS, data_of_run, options_of
from freenergy.estimators.validation import check_finite, check_range
from freenergy.files import write_atomically
from freenergy.studies.assessment import Assessment, assess
from freenergy.studies.assessment_page import verdict_words
from freenergy.studies.run_data import is_streamed, to_unit
from freenergy.training import RunConfig, RunDirectory, RunError, load_model

__all__ = ["evaluate"]


def evaluate(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="Run directory or checkpoint file.")],
    data_name: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATA]", help="As --data of train; default: the run's own held-out rows."
        ),
    ] = None,
    data_option: Annotated[str | None, typer.Option("--data", help="The same as DATA.")] = None,
    binarize: Annotated[
        str | None, typer.Option(help="As for train; default: the run's.", show_default=False)
    ] = None,
    beta: Annotated[
        float | None, typer.Option(help="Inverse temperature; default: the run's.")
    ] = None,
    time_budget: Annotated[
        float, typer.Option(help="Seconds for each of the slow methods.")
    ] = 300.0,
    width: Annotated[
        float, typer.Option(help="Width of the likelihood's interval to reach, in nats.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of every random number.")] = 0,
    labels: Annotated[
        str | None, typer.Option(help="As for train, of DATA; default: as the run's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Measure a trained model on rows held out.

    Of an RBM: its likelihood by every method, equilibrium, temperature, entropy. Of other models:
    accuracy, errors or likelihood. The result for the run's own held-out rows is kept and shown in
    the run's report.
    """
    if data_option is not None and data_name is not None:
        raise ValueError(
            f"--data {data_option} and DATA {data_name} are the same: drop one of them"
        )
    data_name = data_option or data_name
    if holds_estimator(run):
        if distributed.launched_rank() == 0:  # There is nothing to divide.
            evaluate_estimator(context, run, data_name)
        return
    model = load_model(run)
    config = RunDirectory(run).config() if run.is_dir() else None
    if data_name is None:
        if config is None:
            raise ValueError("a checkpoint file does not name its data: give DATA")
        if binarize is not None:
            raise ValueError("the run's own rows are binarised as they were: drop --binarize")
        if labels is not None:
            raise ValueError("the run's own rows are as they were: drop --labels")
        found_data = data_of_run(config)
        name, values = found_data.name, found_data.held_out
    else:
        own = 0.5 if config is None else config.data.get("binarize")
        threshold = own if binarize is None else read_threshold(binarize)
        if labels is None and config is not None and is_streamed(data_name):
            labels = common_labels(config.data, data_name)
        name, values = _given(data_name, threshold, labels)
    if values.shape[1] != model.n_visible:
        raise ValueError(
            f"{name} has {values.shape[1]} columns, but the model has {model.n_visible} visible "
            "units"
        )
    rows = to_unit(values, model.visible)
    directory = RunDirectory(run) if config is not None else None
    own = options_of(run)
    # The chains and the ladder of the training are at its own temperature.
    climbable = directory is not None and beta in (None, own.beta)
    with distributed.session() as group:
        found = assess(
            model,
            to_unit(_training_rows(config, values), model.visible),
            rows,
            beta=own.beta if beta is None else beta,
            n_steps=own.n_steps,
            ladder=directory.ladder() if directory is not None and climbable else None,
            chains=directory.chains() if directory is not None and climbable else None,
            time_budget=time_budget,
            width=width,
            seed=seed,
            group=group,
        )
    if group.rank > 0:
        return
    if directory is not None and data_name is None and climbable:
        # Of the run itself: its report shows it.
        write_atomically(directory.assessment_path, found.to_json())
    if as_json:
        print(found.to_json(), end="")
    else:
        _print_assessment(found, f"{run} on {name}")


def _given(name: str, threshold: float | None, labels: str | None) -> tuple[str, np.ndarray]:
    """Rows to measure a model with: all those of a file, or a sample of a stream."""
    if is_streamed(name):
        # Labels are no features.
        found = data.stream(name, binarize=threshold, labels=labels).within(0.0, 1.0)
        return found.name, found.sample(CERTIFIED_ROWS).rows.astype(np.float32)
    if labels is not None:
        raise ValueError(f"labels have no effect on {name}, which is loaded as a whole")
    dataset = data.load(name, binarize=threshold)
    values = dataset.x_train if dataset.x_test is None else dataset.x_test
    check_finite(values)
    check_range(values, 0.0, 1.0)
    return dataset.name, values


def _training_rows(config: RunConfig | None, given: np.ndarray) -> np.ndarray:
    """The rows that a run learned from, or the given ones where those are gone."""
    if config is None:
        return given
    try:
        return data_of_run(config).learned_from()
    except (data.DataError, RunError) as error:
        warnings.warn(
            f"the rows that the run learned from are not there ({error}); the given rows stand in "
            "for them",
            stacklevel=2,
        )
        return given


def _print_assessment(found: Assessment, title: str) -> None:
    console = Console()
    table = Table("method", "ln Z", "ln p of a row", "95 % interval", "trusted", title=title)
    for e in found.estimates:
        interval = f"{e.log_likelihood_lower:.3f} … {e.log_likelihood_upper:.3f}"
        table.add_row(
            e.label,
            f"{e.log_partition:.3f}",
            f"{e.log_likelihood:.3f}",
            interval if math.isfinite(e.lower) else "–",
            "yes" if e.trusted else "no",
        )
    console.print(table)
    other = Table("quantity", "value")
    for name, value in _other_numbers(found).items():
        other.add_row(name, value)
    console.print(other)
    console.print(verdict_words(found), highlight=False)


def _other_numbers(found: Assessment) -> dict[str, str]:
    numbers = {name.replace("_", " "): f"{value:.6g}" for name, value in found.numbers.items()}
    for method, t in found.temperature.items():
        words = f"effective temperature, {method.replace('_', ' ')}"
        numbers[words] = f"{t['temperature']:.3g} ({t['lower']:.3g} … {t['upper']:.3g})"
    curves = found.curves
    at = min(range(len(curves["beta"])), key=lambda i: abs(curves["beta"][i] - found.beta))
    for key in ("free_energy", "energy", "entropy", "heat_capacity"):
        error = curves[f"{key}_stderr"][at]
        doubt = "" if curves["trusted"] else " (not trusted)"
        value = f"{curves[key][at]:.6g} ± {error:.2g}{doubt}"
        numbers[key.replace("_", " ") + " of the model"] = value
    for key in ("states", "within_entropy", "complexity"):
        numbers[f"TAP 2 {key.replace('_', ' ')}"] = f"{found.landscape[key]:.6g}"
    numbers["autocorrelation time"] = f"{found.certificate['autocorrelation_time']:.4g} Gibbs steps"
    return numbers

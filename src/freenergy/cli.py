"""The command line: ``freenergy study | train | evaluate | sample | report``."""

from __future__ import annotations

import dataclasses
import io
import math
import shlex
import sys
import warnings
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from freenergy import data, distributed
from freenergy._version import __version__
from freenergy.estimators.validation import check_finite, check_range
from freenergy.files import write_atomically
from freenergy.inference import gibbs
from freenergy.models import Unit, get_unit
from freenergy.progress import Reporter
from freenergy.random import RandomStream
from freenergy.report import Page, write
from freenergy.studies.assessment import Assessment, assess, certify_run
from freenergy.studies.assessment_page import advice_words, state_words, verdict_words
from freenergy.studies.conjecture import ConjectureSettings, read_conjecture, run_conjecture
from freenergy.studies.conjecture_page import conjecture_page
from freenergy.studies.conjecture_page import verdict as conjecture_verdict
from freenergy.studies.depth import DepthSettings, read_depth, run_depth
from freenergy.studies.depth_page import depth_page
from freenergy.studies.folder import study_of
from freenergy.studies.learning import LearningSettings, read_assessment
from freenergy.studies.results import describe
from freenergy.studies.run_data import RunData, is_in_store, is_streamed, open_data, to_unit
from freenergy.studies.run_page import run_page
from freenergy.studies.study import read_study, run_study, study_page
from freenergy.thermodynamics import RBMMonitor, TemperatureMonitor
from freenergy.training import (
    DivergenceError,
    Rows,
    RunConfig,
    RunDirectory,
    RunError,
    Trainer,
    TrainingOptions,
    load_checkpoint,
    load_model,
)

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Restricted Boltzmann machines and the free energy: train, measure, report.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

DataOption = Annotated[
    str,
    typer.Option("--data", help="digits, mnist, fashion-mnist, cifar10, or a path to a file."),
]
StreamOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="digits, mnist, fashion-mnist, cifar10, or a path: of a file, of a folder of .npy or "
        ".parquet shards, FILE.h5:/inside or STORE.zarr:/inside.",
    ),
]
BinarizeOption = Annotated[
    str,
    typer.Option(
        help="Values above this become 1, others 0, pixels of type uint8 after division by 255; "
        "'none' keeps grey values."
    ),
]
_TRAINING = TrainingOptions()
_WATCHED_ROWS = 1000
_CERTIFIED_ROWS = 10_000


@app.command()
def study(
    data_name: DataOption = "digits",
    out: Annotated[
        Path | None, typer.Option(help="Folder; an unfinished study there goes on.")
    ] = None,
    binarize: BinarizeOption = "0.5",
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
    threshold = _threshold(binarize)
    dataset = data.load(data_name, binarize=threshold)
    changes: dict[str, Any] = {}
    for name, value in (("n_hidden", hidden), ("n_epochs", epochs), ("seeds", seeds)):
        if value is not None:
            if value < 1:
                raise ValueError(f"--{name.removeprefix('n_')} must be at least 1, got {value}")
            changes[name] = tuple(range(value)) if name == "seeds" else value
    out = out or _new_folder(f"study-{dataset.name}")
    record: dict[str, Any] = {
        "n_jobs": jobs or -1,
        "reporter": Reporter(),
        "command": _command(),
        "binarize": threshold,
        "source": _absolute(data_name),
    }
    try:
        if only is None:
            run_study(dataset, out, *_study_settings(dataset, changes), **record)
        elif only == "conjecture":
            run_conjecture(dataset, out, _study_settings(dataset, changes)[1], **record)
        else:
            run_depth(dataset, out, _study_settings(dataset, changes)[2], **record)
    except KeyboardInterrupt:
        raise _Interrupted(
            f"go on with the same command and --out {shlex.quote(str(out))}"
        ) from None
    page = _page_of_study(out)
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


def _page_of_study(folder: Path) -> Page:
    kind = study_of(folder)
    if kind == "conjecture":
        return conjecture_page(read_conjecture(folder))
    if kind == "depth":
        return depth_page(read_depth(folder))
    return study_page(read_study(folder))


@app.command()
def train(
    context: typer.Context,
    data_name: StreamOption = "digits",
    out: Annotated[Path | None, typer.Option(help="Run directory to make.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Run directory to go on with.")] = None,
    binarize: BinarizeOption = "0.5",
    labels: Annotated[
        str | None,
        typer.Option(
            help="Column of Parquet shards, or array of a store (FILE.h5:/y, or /y where it is the "
            "same file), that is no feature."
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="cd, pcd, emf or ptt.")] = _TRAINING.method,
    hidden: Annotated[int, typer.Option(help="Hidden units.")] = 256,
    unit: Annotated[
        str, typer.Option(help="Type of the units: bernoulli (0/1) or spin (±1).")
    ] = "bernoulli",
    epochs: Annotated[
        int | None,
        typer.Option(help="Passes over the data; with --resume, a new total.", show_default="10"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows in a batch.")] = _TRAINING.batch_size,
    learning_rate: Annotated[float, typer.Option(help="Step size.")] = 0.05,
    learning_rate_decay: Annotated[
        float, typer.Option(help="Epoch t takes rate/(1 + decay t).")
    ] = 0.0,
    schedule: Annotated[
        str, typer.Option(help="Of the rate: inverse (as above), or cosine, down to zero.")
    ] = _TRAINING.schedule,
    optimizer: Annotated[
        str, typer.Option(help="sgd, adam, adamw or rmsprop.")
    ] = _TRAINING.optimizer,
    momentum: Annotated[float, typer.Option(help="Of the optimiser.")] = _TRAINING.momentum,
    l1: Annotated[float, typer.Option(help="L1 decay of the weights.")] = _TRAINING.l1,
    l2: Annotated[float, typer.Option(help="L2 decay of the weights.")] = _TRAINING.l2,
    steps: Annotated[
        int, typer.Option(help="Gibbs steps or mean-field sweeps of an update.")
    ] = _TRAINING.n_steps,
    chains: Annotated[
        int | None, typer.Option(help="Chains or mean-field states.", show_default="batch size")
    ] = None,
    order: Annotated[
        int, typer.Option(help="Of the mean field: 1, 2 or 3.")
    ] = _TRAINING.mean_field_order,
    persistent: Annotated[
        bool, typer.Option(help="Mean-field states go on between updates, or start at each batch.")
    ] = _TRAINING.persistent,
    damping: Annotated[float, typer.Option(help="Of the mean-field sweeps.")] = _TRAINING.damping,
    centered: Annotated[bool, typer.Option(help="Use the centred gradient.")] = _TRAINING.centered,
    shuffle: Annotated[
        bool, typer.Option(help="Visit the rows in a new order in each epoch.")
    ] = _TRAINING.shuffle,
    updates_per_epoch: Annotated[
        int | None,
        typer.Option(
            help="End each epoch after at most so many updates.", show_default="whole passes"
        ),
    ] = _TRAINING.updates_per_epoch,
    beta: Annotated[float, typer.Option(help="Inverse temperature.")] = _TRAINING.beta,
    weight_constraint: Annotated[
        str | None, typer.Option(help="l1, l2 or frobenius; needs --max-norm.")
    ] = None,
    max_norm: Annotated[float | None, typer.Option(help="Norm that the constraint holds.")] = None,
    seed: Annotated[int, typer.Option(help="Of every random number.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
) -> None:
    """Train one RBM in a run directory, with a checkpoint after every epoch.

    Under torchrun, its processes train the model together; started again, they go on.
    """
    if distributed.is_launched() and out is None and resume is None:
        raise ValueError(
            "several processes need one folder, also when they start again: give --out"
        )
    if resume is not None:
        _refuse_changes(context)
        run = RunDirectory(resume)
        config = run.config()
        rows_of = _data_of(config)
        config = _extended(run, config, epochs)
    else:
        options = TrainingOptions(
            method=method,
            n_epochs=10 if epochs is None else epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            learning_rate_decay=learning_rate_decay,
            schedule=schedule,
            optimizer=optimizer,
            momentum=momentum,
            l1=l1,
            l2=l2,
            n_steps=steps,
            n_chains=chains,
            mean_field_order=order,
            damping=damping,
            persistent=persistent,
            centered=centered,
            shuffle=shuffle,
            updates_per_epoch=updates_per_epoch,
            beta=beta,
            weight_constraint=weight_constraint,
            max_norm=max_norm,
        )
        threshold = _threshold(binarize)
        rows_of = open_data(data_name, threshold, labels)
        config = RunConfig(
            {
                "name": _absolute(data_name),
                "binarize": threshold,
                "labels": _absolute(labels) if labels and is_in_store(labels) else labels,
                "fingerprint": rows_of.fingerprint,
                "image_shape": rows_of.image_shape,
            },
            rows_of.width,
            hidden,
            options,
            seed,
            visible=unit,
            hidden=unit,
            dtype=_dtype(dtype),
            device=_device(device),
            command=_command(),
        )
        run = RunDirectory(out or _new_folder(f"train-{rows_of.name}"))
    with distributed.session(config.device) as group:
        trainer, rows = _trainer(config, rows_of)
        if resume is None and group.rank == 0:
            # Only now: whatever is refused is refused before the folder is made.
            place = RunDirectory.create
            if distributed.is_launched():
                place = RunDirectory.create_or_open
            run = place(run.path, config)
            if rows_of.is_binarized:
                Reporter().line(
                    f"{rows_of.name} has values other than 0 and 1: those above "
                    f"{config.data['binarize']:g} became 1, others 0; --binarize none keeps grey "
                    "values"
                )
        _train_run(run, config, trainer, rows)
    if group.rank == 0:
        print(f"run: {run.path}")
        print(f"report: {_write_run_report(run)}")


def _trainer(config: RunConfig, rows_of: RunData) -> tuple[Trainer, Rows]:
    """The trainer of a run at its start, with its rows."""
    unit, options = get_unit(config.visible), config.options
    like = torch.empty(0, dtype=getattr(torch, config.dtype), device=_device(config.device))
    start_rows = None
    if options.updates_per_epoch is not None:
        start_rows = options.updates_per_epoch * options.batch_size
    rows = rows_of.rows(unit, like, start_rows)
    held_out = to_unit(rows_of.held_out, unit)
    beta = config.options.beta
    monitors = (
        RBMMonitor(rows.some(_WATCHED_ROWS), held_out, beta=beta),
        TemperatureMonitor(_nearest_states(unit, held_out), beta=beta),
    )
    try:
        return config.build(rows, monitors), rows
    except (RuntimeError, MemoryError) as error:
        raise ValueError(
            f"a model of {config.n_visible} × {config.n_hidden} units does not fit into memory"
        ) from error


def _train_run(run: RunDirectory, config: RunConfig, trainer: Trainer, rows: Rows) -> None:
    first = distributed.group_now().rank == 0
    if first:
        run.restore(trainer)
    reporter = Reporter() if first else Reporter(io.StringIO())
    n_epochs = config.options.n_epochs

    def report_epoch(trainer: Trainer) -> None:
        advance(1, describe(trainer.history[-1]))

    try:
        with reporter.task(str(run.path), n_epochs, "epochs", trainer.epoch) as advance:
            run.train(trainer, rows, on_epoch=report_epoch)
    except KeyboardInterrupt:
        # What is stored counts: the last epoch may have been interrupted while it was written.
        done = len(run.history()) if run.checkpoint_path.exists() else 0
        raise _Interrupted(
            f"stopped after epoch {done} of {n_epochs}; go on with: freenergy train "
            f"--resume {shlex.quote(str(run.path))}"
        ) from None
    except DivergenceError as error:
        raise DivergenceError(
            f"{error}. A run keeps its options: start another with freenergy train --out"
        ) from None
    if first:
        _certify(run, config, trainer, rows, reporter)


def _certify(
    run: RunDirectory, config: RunConfig, trainer: Trainer, rows: Rows, reporter: Reporter
) -> None:
    """Store whether the chains of the training were in equilibrium, and say so."""
    if trainer.certificate is None and trainer.epoch > 0:
        certificate = certify_run(
            trainer.model,
            rows.some(_CERTIFIED_ROWS),
            config.options,
            chains=trainer.gradient.state().get("chain"),
            seed=config.seed,
        )
        trainer.certificate = certificate.to_dict()
        run.save(trainer)
    if trainer.certificate is not None:
        words = trainer.certificate
        reporter.line(f"Gibbs chains are {state_words(words)}. {advice_words(words)}")


def _refuse_changes(context: typer.Context) -> None:
    """A resumed run keeps its options: others beside --resume would be passed over in silence."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        typed = source is not None and source.name == "COMMANDLINE"
        if typed and parameter.name not in ("resume", "epochs"):
            raise ValueError(f"a run keeps its options: drop {parameter.opts[0]} beside --resume")


def _data_of(config: RunConfig) -> RunData:
    """The data of a run, as it was when the run started."""
    stored = config.data
    found = open_data(stored["name"], stored.get("binarize"), stored.get("labels"))
    if found.fingerprint != stored.get("fingerprint"):
        raise RunError(f"the data {stored['name']!r} is not what the run started with")
    return found


def _extended(run: RunDirectory, config: RunConfig, epochs: int | None) -> RunConfig:
    """The configuration to go on with; a new number of epochs is written into it."""
    if epochs is not None and epochs != config.options.n_epochs:
        done = len(run.history()) if run.checkpoint_path.exists() else 0
        if epochs < done:
            raise RunError(f"{run.path} has {done} epochs already, more than --epochs {epochs}")
        options = dataclasses.replace(config.options, n_epochs=epochs)
        config = dataclasses.replace(config, options=options)
        if distributed.launched_rank() == 0:
            write_atomically(run.config_path, config.to_json())
    if config.versions.get("threads") != str(torch.get_num_threads()):
        warnings.warn(
            f"the run was started with {config.versions.get('threads')} threads and goes on with "
            f"{torch.get_num_threads()}; the bits may differ",
            stacklevel=2,
        )
    return config


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run directory or checkpoint file.")],
    data_name: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATA]", help="As --data of train; default: the run's own held-out rows."
        ),
    ] = None,
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Measure a trained model: its likelihood by every method, equilibrium, temperature, entropy.

    The result for the run's own held-out rows is kept and shown in the run's report.
    """
    model = load_model(run)
    config = RunDirectory(run).config() if run.is_dir() else None
    if data_name is None:
        if config is None:
            raise ValueError("a checkpoint file does not name its data: give DATA")
        if binarize is not None:
            raise ValueError("the run's own rows are binarised as they were: drop --binarize")
        found_data = _data_of(config)
        name, values = found_data.name, found_data.held_out
    else:
        own = 0.5 if config is None else config.data.get("binarize")
        threshold = own if binarize is None else _threshold(binarize)
        name, values = _given(data_name, threshold)
    if values.shape[1] != model.n_visible:
        raise ValueError(
            f"{name} has {values.shape[1]} columns, but the model has {model.n_visible} visible "
            "units"
        )
    rows = to_unit(values, model.visible)
    directory = RunDirectory(run) if config is not None else None
    own = _options_of(run)
    # The chains and the ladder of the training are at its own temperature.
    climbable = directory is not None and beta in (None, own.beta)
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
    )
    if directory is not None and data_name is None and climbable:
        # Of the run itself: its report shows it.
        write_atomically(directory.assessment_path, found.to_json())
    if as_json:
        print(found.to_json(), end="")
    else:
        _print_assessment(found, f"{run} on {name}")


def _given(name: str, threshold: float | None) -> tuple[str, np.ndarray]:
    """Rows to measure a model with: all those of a file, or a sample of a stream."""
    if is_streamed(name):
        found = data.stream(name, binarize=threshold).within(0.0, 1.0)
        return found.name, found.sample(_CERTIFIED_ROWS).rows.astype(np.float32)
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
        return _data_of(config).learned_from()
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


def _options_of(path: Path) -> TrainingOptions:
    """What a model was trained with, from its run or from the checkpoint file alone."""
    if path.is_dir():
        return RunDirectory(path).config().options
    _, values = load_checkpoint(path)
    return TrainingOptions.from_dict(values["options"]) if "options" in values else _TRAINING


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(help="Run directory or checkpoint file.")],
    n: Annotated[
        int, typer.Option("--n", "-n", help="Number of chains; each gives one row.")
    ] = 100,
    steps: Annotated[int, typer.Option(help="Gibbs steps of each chain.")] = 1000,
    beta: Annotated[
        float | None, typer.Option(help="Inverse temperature; default: the run's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every random number.")] = 0,
    out: Annotated[Path, typer.Option(help="File to write, .npy.")] = Path("samples.npy"),
) -> None:
    """Draw states from a trained model with Gibbs chains that start at random."""
    if out.suffix != ".npy":
        raise ValueError(f"--out must end in .npy, got {out}")
    model = load_model(run)
    beta = _options_of(run).beta if beta is None else beta
    chains = gibbs(model, n, steps, beta=beta, random=RandomStream(seed))
    buffer = io.BytesIO()
    np.save(buffer, chains.visible.numpy(), allow_pickle=False)
    write_atomically(out, buffer.getvalue())
    print(f"samples: {out} ({n} rows of {model.n_visible})")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run directory, or folder of a study.")],
) -> None:
    """Write the report of a run or of a study again."""
    if (run / "study.json").exists():
        print(f"report: {write(_page_of_study(run), run / 'report.html')}")
    else:
        print(f"report: {_write_run_report(RunDirectory(run))}")


def _write_run_report(run: RunDirectory) -> Path:
    config = run.config()
    page = run_page(
        config,
        run.history(),
        load_model(run.path),
        config.data.get("image_shape"),
        assessment=read_assessment(run),
        certificate=run.certificate() if run.checkpoint_path.exists() else None,
    )
    return write(page, run.report_path)


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


class _Interrupted(Exception):
    """Ctrl-C, with what to type to go on."""


def _threshold(text: str) -> float | None:
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--binarize takes a number or 'none', got {text!r}") from None


def _nearest_states(unit: Unit, rows: torch.Tensor) -> torch.Tensor:
    """Rows as states of a binary unit: grey values go to the nearer one."""
    low, high = min(unit.support), max(unit.support)
    return torch.where(rows > 0.5 * (low + high), high, low).to(rows)


def _absolute(name: str) -> str:
    """A path that still holds from another folder; a known name as it is."""
    known = name.lower().replace("_", "-")
    return known if known in data.NAMES else str(Path(name).expanduser().resolve())


def _dtype(name: str) -> str:
    if name not in ("float32", "float64"):
        raise ValueError(f"--dtype takes float32 or float64, got {name!r}")
    return name


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ValueError(f"--device takes cpu, cuda or auto, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda was asked for, but torch finds no GPU; use auto")
    return name


def _new_folder(label: str) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{label}-{stamp}"


def _command() -> str:
    return shlex.join(["freenergy", *sys.argv[1:]])


def main() -> None:
    """Run the command line; errors of the user end in one line and exit code 2."""
    warnings.simplefilter("once", UserWarning)
    warnings.showwarning = _show_warning
    try:
        code = app(standalone_mode=False)
        if code == 130:  # How typer passes Ctrl-C on.
            _fail("interrupted", 130)
    except _Interrupted as stop:
        code = _fail(f"interrupted: {stop}", 130)
    except DivergenceError as error:
        code = _fail(str(error), 1)
    except (ValueError, OSError) as error:
        code = _fail(str(error), 2)
    except Exception as error:
        # Usage errors of the option parser, which carry their own message and exit code.
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()  # Empty where the help itself was printed.
        code = _fail(f"{message} (see freenergy --help)", 2) if message else 2
    sys.exit(code or 0)


def _fail(message: str, code: int) -> int:
    print(f"freenergy: {' '.join(message.split())}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    if distributed.launched_rank() == 0:
        print(f"freenergy: warning: {message}", file=sys.stderr)

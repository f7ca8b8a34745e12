"""Runs of RBMs, as the commands make, go on with and show them."""

from __future__ import annotations

import dataclasses
import io
import shlex
import warnings
from pathlib import Path

import torch

from freenergy import distributed
from freenergy.cli.options import Interrupted, checked_device
from freenergy.files import write_atomically
from freenergy.models import Unit, get_unit
from freenergy.progress import Reporter
from freenergy.report import write
from freenergy.studies.assessment import certify_run
from freenergy.studies.assessment_page import advice_words, state_words
from freenergy.studies.learning import read_assessment
from freenergy.studies.results import describe
from freenergy.studies.run_data import RunData, reopen_data, to_unit
from freenergy.studies.run_page import run_page
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

__all__ = [
    "CERTIFIED_ROWS",
    "TRAINING",
    "data_of_run",
    "extended",
    "options_of",
    "train_run",
    "trainer_of",
    "write_run_report",
]

TRAINING = TrainingOptions()
_WATCHED_ROWS = 1000
CERTIFIED_ROWS = 10_000


def trainer_of(config: RunConfig, rows_of: RunData) -> tuple[Trainer, Rows]:
    """The trainer of a run at its start, with its rows."""
    unit, options = get_unit(config.visible), config.options
    like = torch.empty(0, dtype=getattr(torch, config.dtype), device=checked_device(config.device))
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


def train_run(run: RunDirectory, config: RunConfig, trainer: Trainer, rows: Rows) -> None:
    """Train to the end, from wherever the run is, and certify its chains."""
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
        raise Interrupted(
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
            rows.some(CERTIFIED_ROWS),
            config.options,
            chains=trainer.gradient.state().get("chain"),
            seed=config.seed,
        )
        trainer.certificate = certificate.to_dict()
        run.save(trainer)
    if trainer.certificate is not None:
        words = trainer.certificate
        reporter.line(f"Gibbs chains are {state_words(words)}. {advice_words(words)}")


def data_of_run(config: RunConfig) -> RunData:
    """The data of a run, as it was when the run started."""
    stored = config.data
    found = reopen_data(stored)
    if found.fingerprint != stored.get("fingerprint"):
        raise RunError(f"the data {stored['name']!r} is not what the run started with")
    return found


def extended(run: RunDirectory, config: RunConfig, epochs: int | None) -> RunConfig:
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


def options_of(path: Path) -> TrainingOptions:
    """What a model was trained with, from its run or from the checkpoint file alone."""
    if path.is_dir():
        return RunDirectory(path).config().options
    _, values = load_checkpoint(path)
    return TrainingOptions.from_dict(values["options"]) if "options" in values else TRAINING


def _nearest_states(unit: Unit, rows: torch.Tensor) -> torch.Tensor:
    """Rows as states of a binary unit: grey values go to the nearer one."""
    low, high = min(unit.support), max(unit.support)
    return torch.where(rows > 0.5 * (low + high), high, low).to(rows)


def write_run_report(run: RunDirectory) -> Path:
    """Write the report of a run of an RBM from what is in its folder."""
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

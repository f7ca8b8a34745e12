"""``freenergy train``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from freenergy import distributed
from freenergy.cli.estimators import (
    list_parameters,
    model_named,
    resume_estimator,
    start_estimator,
)
from freenergy.cli.labels import lasting_labels
from freenergy.cli.options import (
    BinarizeOption,
    StreamOption,
    absolute,
    checked_device,
    checked_dtype,
    command_line,
    new_folder,
    read_threshold,
    tell_binarized,
    typed_options,
)
from freenergy.cli.rbm_run import (
    TRAINING,
    data_of_run,
    extended,
    train_run,
    trainer_of,
    write_run_report,
)
from freenergy.progress import Reporter
from freenergy.studies.estimator_models import RBM_MODEL
from freenergy.studies.estimator_run import is_estimator_run
from freenergy.studies.run_data import RunData, open_data
from freenergy.training import RunConfig, RunDirectory, TrainingOptions

__all__ = ["train"]


@dataclass(frozen=True, eq=False)
class _Start:
    """Where a training starts."""

    run: RunDirectory
    config: RunConfig
    rows: RunData
    is_new: bool


def train(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Option(
            help="rbm, rbm-classifier, unrolled-classifier, mlp-classifier, mlp-regressor or vae."
        ),
    ] = RBM_MODEL,
    data_name: StreamOption = "digits",
    out: Annotated[Path | None, typer.Option(help="Run directory to make.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Run directory to go on with.")] = None,
    binarize: BinarizeOption = "0.5",
    labels: Annotated[
        str | None,
        typer.Option(
            help="Column of a table or of Parquet shards, array of a store (FILE.h5:/y, or /y "
            "where it is the same file), or .npy file: what is learned; for vae, and for rbm of "
            "shards and stores, no feature."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Parameter of a model other than rbm, such as hidden_layer_sizes=256,256; can be "
            "given again.",
        ),
    ] = None,
    help_options: Annotated[
        bool, typer.Option("--help-options", help="List what --set takes for --model, and end.")
    ] = False,
    method: Annotated[str, typer.Option(help="cd, pcd, emf or ptt.")] = TRAINING.method,
    hidden: Annotated[int, typer.Option(help="Hidden units.")] = 256,
    unit: Annotated[
        str, typer.Option(help="Type of the units: bernoulli (0/1) or spin (±1).")
    ] = "bernoulli",
    epochs: Annotated[
        int | None,
        typer.Option(help="Passes over the data; with --resume, a new total.", show_default="10"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows in a batch.")] = TRAINING.batch_size,
    learning_rate: Annotated[float, typer.Option(help="Step size.")] = 0.05,
    learning_rate_decay: Annotated[
        float, typer.Option(help="Epoch t takes rate/(1 + decay t).")
    ] = 0.0,
    schedule: Annotated[
        str, typer.Option(help="Of the rate: inverse (as above), or cosine, down to zero.")
    ] = TRAINING.schedule,
    optimizer: Annotated[
        str, typer.Option(help="sgd, adam, adamw or rmsprop.")
    ] = TRAINING.optimizer,
    momentum: Annotated[float, typer.Option(help="Of the optimiser.")] = TRAINING.momentum,
    l1: Annotated[float, typer.Option(help="L1 decay of the weights.")] = TRAINING.l1,
    l2: Annotated[float, typer.Option(help="L2 decay of the weights.")] = TRAINING.l2,
    steps: Annotated[
        int, typer.Option(help="Gibbs steps or mean-field sweeps of an update.")
    ] = TRAINING.n_steps,
    chains: Annotated[
        int | None, typer.Option(help="Chains or mean-field states.", show_default="batch size")
    ] = None,
    order: Annotated[
        int, typer.Option(help="Of the mean field: 1, 2 or 3.")
    ] = TRAINING.mean_field_order,
    persistent: Annotated[
        bool, typer.Option(help="Mean-field states go on between updates, or start at each batch.")
    ] = TRAINING.persistent,
    damping: Annotated[float, typer.Option(help="Of the mean-field sweeps.")] = TRAINING.damping,
    centered: Annotated[bool, typer.Option(help="Use the centred gradient.")] = TRAINING.centered,
    shuffle: Annotated[
        bool, typer.Option(help="Visit the rows in a new order in each epoch.")
    ] = TRAINING.shuffle,
    updates_per_epoch: Annotated[
        int | None,
        typer.Option(
            help="End each epoch after at most so many updates.", show_default="whole passes"
        ),
    ] = TRAINING.updates_per_epoch,
    beta: Annotated[float, typer.Option(help="Inverse temperature.")] = TRAINING.beta,
    weight_constraint: Annotated[
        str | None, typer.Option(help="l1, l2 or frobenius; needs --max-norm.")
    ] = None,
    max_norm: Annotated[float | None, typer.Option(help="Norm that the constraint holds.")] = None,
    sparsity_target: Annotated[
        float | None,
        typer.Option(help="Share of rows for which hidden units are drawn to be on."),
    ] = None,
    sparsity_cost: Annotated[
        float, typer.Option(help="Weight of the penalty that draws them.")
    ] = TRAINING.sparsity_cost,
    seed: Annotated[int, typer.Option(help="Of every random number.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    precision: Annotated[
        str, typer.Option(help="Of matrix products in float32: float32, tf32 or bf16.")
    ] = TRAINING.precision,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
) -> None:
    """Train one model in a run directory, with a checkpoint after every epoch.

    The defaults below are those of an rbm. Other models have their estimator's own: see --model
    NAME --help-options. Their values are binarised for a vae of zeros and ones alone.

    Under torchrun, its processes train the model together; started again, they go on.
    """
    chosen = model_named(model)
    if help_options:
        if chosen is None:
            raise ValueError(
                "--help-options is for other models, such as --model mlp-classifier; those of "
                "--model rbm are listed by freenergy train --help"
            )
        list_parameters(chosen)
        return
    if distributed.is_launched() and out is None and resume is None:
        raise ValueError(
            "several processes need one folder, also when they start again: give --out"
        )
    if resume is not None:
        _refuse_changes(context)
        if is_estimator_run(resume):
            resume_estimator(resume, epochs)
            return
    elif chosen is not None:
        start_estimator(context, chosen)
        return
    elif settings:
        raise ValueError("--set has no meaning for --model rbm, which has options: drop it")
    _train_rbm(_new_rbm(context) if resume is None else _resumed_rbm(resume, epochs))


def _new_rbm(context: typer.Context) -> _Start:
    """A run that is not there yet, by the options of :func:`train`."""
    values = context.params
    same = {field.name for field in dataclasses.fields(TrainingOptions)} & values.keys()
    options = TrainingOptions(
        n_epochs=10 if values["epochs"] is None else values["epochs"],
        n_steps=values["steps"],
        n_chains=values["chains"],
        mean_field_order=values["order"],
        **{name: values[name] for name in same},
    )
    threshold = read_threshold(values["binarize"])
    name, labels = values["data_name"], values["labels"]
    rows = open_data(name, threshold, labels)
    config = RunConfig(
        {
            "name": absolute(name),
            "binarize": threshold,
            "labels": lasting_labels(name, labels),
            "fingerprint": rows.fingerprint,
            "image_shape": rows.image_shape,
        },
        rows.width,
        values["hidden"],
        options,
        values["seed"],
        visible=values["unit"],
        hidden=values["unit"],
        dtype=checked_dtype(values["dtype"]),
        device=checked_device(values["device"]),
        command=command_line(),
    )
    run = RunDirectory(values["out"] or new_folder(f"train-{rows.name}"))
    return _Start(run, config, rows, is_new=True)


def _resumed_rbm(path: Path, epochs: int | None) -> _Start:
    run = RunDirectory(path)
    config = run.config()
    rows = data_of_run(config)
    return _Start(run, extended(run, config, epochs), rows, is_new=False)


def _train_rbm(start: _Start) -> None:
    run, config, rows = start.run, start.config, start.rows
    with distributed.session(config.device) as group:
        trainer, trained_on = trainer_of(config, rows)
        if start.is_new and group.rank == 0:
            # Only now: whatever is refused is refused before the folder is made.
            place = RunDirectory.create
            if distributed.is_launched():
                place = RunDirectory.create_or_open
            run = place(run.path, config)
            if rows.is_binarized:
                tell_binarized(rows.name, config.data["binarize"], Reporter())
        train_run(run, config, trainer, trained_on)
    if group.rank == 0:
        print(f"run: {run.path}")
        print(f"report: {write_run_report(run)}")


def _refuse_changes(context: typer.Context) -> None:
    """A resumed run keeps its options: others beside --resume would be passed over in silence."""
    for name, flag in typed_options(context).items():
        if name not in ("resume", "epochs"):
            raise ValueError(f"a run keeps its options: drop {flag} beside --resume")

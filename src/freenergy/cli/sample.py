"""``freenergy sample``."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from freenergy.cli.estimators import holds_estimator, sample_estimator
from freenergy.cli.rbm_run import options_of
from freenergy.files import write_atomically
from freenergy.inference import gibbs
from freenergy.random import RandomStream
from freenergy.training import load_model

__all__ = ["sample"]


def sample(
    context: typer.Context,
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
    """Draw rows from a trained model: by Gibbs chains that start at random, or independently."""
    if out.suffix != ".npy":
        raise ValueError(f"--out must end in .npy, got {out}")
    if holds_estimator(run):
        sample_estimator(context, run)
        return
    model = load_model(run)
    beta = options_of(run).beta if beta is None else beta
    chains = gibbs(model, n, steps, beta=beta, random=RandomStream(seed))
    buffer = io.BytesIO()
    np.save(buffer, chains.visible.numpy(), allow_pickle=False)
    write_atomically(out, buffer.getvalue())
    print(f"samples: {out} ({n} rows of {model.n_visible})")

"""Test log-likelihoods of RBMs, with intervals, on twelve binary sets of the density literature.

Each model is trained by PCD; from time to time ln Z is estimated, and the epoch with the best mean
log-likelihood of the validation rows is kept. Only that model meets the test rows. Where the hidden
or the visible layer is small ln Z is exact, elsewhere it comes from replica exchange with an
interval and a verdict. Run it with FREENERGY_DATA naming the folder that holds
binary_density.npz (NAME/train, NAME/valid, NAME/test of packed bits, NAME/d columns):

    .venv/bin/python benchmarks/binary_density.py [--only NAME] [--seed 0] [--markdown]
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from freenergy.inference import LogLikelihood, LogPartition, log_likelihood, log_partition
from freenergy.models import RBM
from freenergy.training import Rows, RunConfig, Trainer, TrainingOptions, as_rows


_WINDOW = 8


@dataclass(frozen=True)
class Setting:
    """How one set is learnt; ``every`` so many epochs the validation rows judge."""

    hidden: int
    epochs: int
    every: int
    method: str = "pcd"
    rate: float = 0.05
    decay: float = 0.0
    steps: int = 5
    l1: float = 0.0
    l2: float = 1e-3
    batch: int = 100
    check_seconds: float = 8.0
    final_seconds: float = 60.0


SETTINGS = {
    "ad": Setting(50, 60, 10),
    "book": Setting(50, 60, 10),
    "c20ng": Setting(100, 60, 10),
    "dna": Setting(16, 60, 4),
    "jester": Setting(50, 60, 10),
    "kosarek": Setting(50, 40, 10),
    "moviereview": Setting(16, 60, 4),
    "msnbc": Setting(100, 20, 2),
    "mushrooms": Setting(50, 200, 20),
    "plants": Setting(100, 60, 10),
    "tmovie": Setting(50, 60, 10),
    "voting": Setting(16, 60, 4),
}

# The best published figures of tractable models: nats, model, and where they are printed.
PUBLISHED: dict[str, tuple[float, str]] = {}


@dataclass(frozen=True)
class Split:
    """One set; the rows that train, that choose, and that judge."""

    train: torch.Tensor
    valid: torch.Tensor
    test: torch.Tensor


def load(name: str) -> Split:
    """One set of binary_density.npz, unpacked."""
    folder = os.environ.get("FREENERGY_DATA")
    if folder is None:
        raise SystemExit("let FREENERGY_DATA name the folder that holds binary_density.npz")
    with np.load(Path(folder) / "binary_density.npz") as file:
        width = int(file[f"{name}/d"])
        parts = (
            torch.from_numpy(np.unpackbits(file[f"{name}/{part}"], axis=1)[:, :width])
            for part in ("train", "valid", "test")
        )
        return Split(*(part.float() for part in parts))


def partition(model: RBM, rows: Rows, seconds: float, n_chains: int, seed: int) -> LogPartition:
    """ln Z: exact where possible, or by replica exchange for at most about so many seconds."""
    method = "exact" if min(model.n_hidden, model.n_visible) <= 18 else "ptt"
    data = rows.take(slice(0, len(rows)))
    return log_partition(
        model,
        method,
        data=data,
        n_chains=n_chains,
        width=0.3,
        time_budget=seconds,
        random=seed,
    )


class Average:
    """A running average of a model's parameters, over about the last eighth of the updates.

    The steps of the chains keep the parameters in motion around the optimum; their mean is closer
    to it.
    """

    def __init__(self, model: RBM) -> None:
        self.model = copy.deepcopy(model)
        self.n_updates = 0

    @torch.no_grad()
    def add(self, model: RBM) -> None:
        """Let one more update count."""
        self.n_updates += 1
        weight = (_WINDOW + 1) / (_WINDOW + self.n_updates)
        for mean, new in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(new, weight)


@dataclass(frozen=True)
class Outcome:
    """What one set came to."""

    epoch: int
    valid: LogLikelihood
    test: LogLikelihood
    seconds: float


def run(name: str, setting: Setting, seed: int, verbose: bool = False) -> Outcome:
    """Train, choose the epoch on the validation rows, judge it on the test rows."""
    begin = time.perf_counter()
    split = load(name)
    rows = as_rows(split.train, like=torch.empty(0))
    options = TrainingOptions(
        method=setting.method,
        n_epochs=setting.epochs,
        batch_size=setting.batch,
        learning_rate=setting.rate,
        learning_rate_decay=setting.decay,
        l1=setting.l1,
        l2=setting.l2,
        n_steps=setting.steps,
    )
    config = RunConfig({"name": name}, rows.width, setting.hidden, options, seed)
    trainer = config.build(rows)
    best: tuple[tuple[bool, float], int, dict[str, torch.Tensor]] | None = None

    def check(trainer: Trainer) -> None:
        nonlocal best
        if trainer.epoch % setting.every and trainer.epoch < setting.epochs:
            return
        model = average.model
        found = partition(model, rows, setting.check_seconds, 32, seed)
        valid = log_likelihood(model, split.valid, found)
        if verbose:
            train = log_likelihood(model, split.train, found)
            print(
                f"  {name} epoch {trainer.epoch}: valid {valid.mean:.3f} train {train.mean:.3f} "
                f"± {(found.upper - found.lower) / 2:.2f} {found.trusted} {found.reasons} "
                f"{time.perf_counter() - begin:.0f} s",
                flush=True,
            )
        # A model whose ln Z cannot be trusted is kept only where none can.
        rank = (found.trusted, valid.mean)
        if best is None or rank > best[0]:
            state = {key: value.clone() for key, value in model.state_dict().items()}
            best = (rank, trainer.epoch, state)

    average = Average(trainer.model)
    trainer.fit(rows, on_epoch=check, on_batch=lambda _: average.add(trainer.model))
    assert best is not None
    _, epoch, state = best
    model = average.model
    model.load_state_dict(state)
    found = partition(model, rows, setting.final_seconds, 48, seed + 1)
    return Outcome(
        epoch,
        log_likelihood(model, split.valid, found),
        log_likelihood(model, split.test, found),
        time.perf_counter() - begin,
    )

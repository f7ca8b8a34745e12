"""Test log-likelihoods of RBMs, with intervals, on twelve binary sets of the density literature.

Each model is trained by PCD, trajectory tempering or the exact gradient (see SETTINGS), and its
parameters are averaged; from time to time ln Z is estimated, and the epoch with the best mean
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from freenergy.inference import LogLikelihood, LogPartition, log_likelihood, log_partition
from freenergy.models import RBM
from freenergy.training import RunConfig, TrainingOptions, as_rows

_WINDOW = 8
"""The average of the parameters reaches back over about one in so many updates."""
_ENUMERABLE = 18
"""Units of the smaller layer up to which ln Z is a sum over its states."""
_CANDIDATES = 3
"""Epochs that get a longer look where the look before does not trust its ln Z."""


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
    l2: float = 1e-3
    batch: int = 100
    check_seconds: float = 8.0
    final_seconds: float = 60.0
    width: float = 0.15


SETTINGS = {
    "ad": Setting(12, 60, 10, "exact", rate=0.03, l2=3e-5),
    "book": Setting(200, 75, 15, rate=0.5, decay=0.05, l2=5e-4),
    "c20ng": Setting(200, 50, 10, rate=0.3, decay=0.03, l2=6e-4),
    "dna": Setting(200, 120, 20, rate=0.1, steps=3, l2=1e-3, batch=20),
    "jester": Setting(200, 60, 10, rate=0.3, decay=0.05, l2=1e-3),
    "kosarek": Setting(100, 80, 20, rate=0.5, decay=0.03, l2=1e-4),
    "moviereview": Setting(10, 300, 30, "exact", rate=0.02, l2=3e-3),
    "msnbc": Setting(150, 40, 5, rate=1.0, decay=0.02, steps=3, l2=0.0, batch=50),
    "mushrooms": Setting(100, 240, 60, "ptt", rate=0.1, decay=0.05, steps=10, l2=3e-4, batch=20),
    "plants": Setting(300, 80, 20, rate=0.6, decay=0.05, l2=1e-4),
    "tmovie": Setting(100, 100, 20, rate=0.3, decay=0.05, steps=10, l2=1e-3, batch=50),
    "voting": Setting(12, 100, 20, "exact", rate=0.03, l2=1e-5),
}

# The best figures of tractable models that we know, in nats, recalled and not looked up:
# docs/density.md names the papers.
PUBLISHED = {
    "ad": -14.42,
    "book": -33.55,
    "c20ng": -148.17,
    "dna": -79.05,
    "jester": -51.93,
    "kosarek": -10.55,
    "msnbc": -6.03,
    "plants": -12.26,
    "tmovie": -48.69,
}


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


def partition(
    model: RBM, rows: torch.Tensor, *, seconds: float, width: float, n_chains: int, seed: int
) -> LogPartition:
    """ln Z: exact where possible, or by replica exchange for at most about so many seconds."""
    if min(model.n_hidden, model.n_visible) <= _ENUMERABLE:
        return log_partition(model, "exact")
    return log_partition(
        model,
        "ptt",
        data=rows,
        n_chains=n_chains,
        width=width,
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


def fit_exactly(
    model: RBM,
    rows: torch.Tensor,
    setting: Setting,
    seed: int,
    on_batch: Callable[[], None],
    on_epoch: Callable[[int], None],
) -> None:
    """Follow the exact gradient of the likelihood by Adam: ln Z as a sum over all hidden states.

    For few hidden units on data in valleys so deep that no chain crosses between them.
    """
    random = torch.Generator().manual_seed(seed)
    weight, visible_bias, hidden_bias = model.weight, model.visible_bias, model.hidden_bias
    states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * model.n_hidden)
    optimizer = torch.optim.Adam(model.parameters(), lr=setting.rate, betas=(0.9, 0.99))
    softplus = torch.nn.functional.softplus
    for epoch in range(1, setting.epochs + 1):
        for part in torch.randperm(len(rows), generator=random).split(setting.batch):
            batch = rows[part]
            log_weight = states @ hidden_bias
            log_weight = log_weight + softplus(states @ weight.T + visible_bias).sum(1)
            score = batch @ visible_bias + softplus(batch @ weight + hidden_bias).sum(1)
            loss = log_weight.logsumexp(0) - score.mean() + setting.l2 / 2 * weight.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            on_batch()
        on_epoch(epoch)


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
        method="pcd" if setting.method == "exact" else setting.method,
        n_epochs=setting.epochs,
        batch_size=setting.batch,
        learning_rate=setting.rate,
        learning_rate_decay=setting.decay,
        l2=setting.l2,
        n_steps=setting.steps,
    )
    trainer = RunConfig({"name": name}, rows.width, setting.hidden, options, seed).build(rows)
    average = Average(trainer.model)
    kept: list[tuple[bool, float, int, RBM]] = []

    def count(_: int = 0) -> None:
        average.add(trainer.model)

    def judge(epoch: int) -> None:
        if epoch % setting.every and epoch < setting.epochs:
            return
        found = partition(
            average.model,
            split.train,
            seconds=setting.check_seconds,
            width=1.0,
            n_chains=32,
            seed=seed,
        )
        valid = log_likelihood(average.model, split.valid, found)
        if verbose:
            train = log_likelihood(average.model, split.train, found)
            print(
                f"  {name} epoch {epoch}: valid {valid.mean:.3f}, train {train.mean:.3f}, "
                f"± {(found.upper - found.lower) / 2:.2f}, trusted {found.trusted} "
                f"{' '.join(found.reasons)}, {time.perf_counter() - begin:.0f} s",
                flush=True,
            )
        kept.append((found.trusted, valid.mean, epoch, copy.deepcopy(average.model)))

    if setting.method == "exact":
        fit_exactly(trainer.model, split.train, setting, seed, count, judge)
    else:
        trainer.fit(rows, on_epoch=lambda t: judge(t.epoch), on_batch=count)
    # The best epoch on the validation rows whose ln Z can be trusted, now with more chains and
    # time; where the longer look finds it cannot, the next best.
    kept.sort(key=lambda entry: entry[:2], reverse=True)
    outcomes = []
    for _, _, epoch, model in kept[:_CANDIDATES]:
        found = partition(
            model,
            split.train,
            seconds=setting.final_seconds,
            width=setting.width,
            n_chains=48,
            seed=seed + 1,
        )
        valid = log_likelihood(model, split.valid, found)
        outcomes.append((epoch, model, found, valid))
        if found.trusted:
            break
    epoch, model, found, valid = outcomes[-1] if found.trusted else outcomes[0]
    test = log_likelihood(model, split.test, found)
    return Outcome(epoch, valid, test, time.perf_counter() - begin)


def line(name: str, setting: Setting, outcome: Outcome, split: Split, markdown: bool) -> str:
    """One row of the table: all likelihoods in nats for a test row."""
    test = outcome.test
    published = PUBLISHED.get(name)
    cells = [
        name,
        str(split.train.shape[1]),
        str(len(split.train)),
        str(setting.hidden),
        f"{outcome.epoch}",
        f"{outcome.valid.mean:.2f}",
        f"{test.mean:.3f}",
        "exact" if test.method == "exact" else f"{test.lower:.3f} to {test.upper:.3f}",
        f"{test.rows_stderr:.2f}",
        "yes" if test.trusted else "no",
        "–" if published is None else f"{published:.2f}",
        "–" if published is None else f"{test.mean - published:+.2f}",
        f"{outcome.seconds:.0f} s",
    ]
    if markdown:
        return "| " + " | ".join(cells) + " |"
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=True))


_HEADER = (
    "set",
    "columns",
    "rows",
    "hidden",
    "epoch",
    "valid",
    "test ln p",
    "interval",
    "± rows",
    "trusted",
    "published",
    "difference",
    "time",
)
_WIDTHS = (11, 7, 6, 6, 5, 8, 9, 20, 6, 7, 9, 10, 6)


def main() -> None:
    """Print one line for each set, as it is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=SETTINGS, help="run this set only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", action="store_true", help="print a table in Markdown")
    parser.add_argument("--verbose", action="store_true", help="print what the validation rows say")
    options = parser.parse_args()
    if options.markdown:
        print("| " + " | ".join(_HEADER) + " |\n|" + "---|" * len(_HEADER), flush=True)
    else:
        print("  ".join(c.rjust(w) for c, w in zip(_HEADER, _WIDTHS, strict=True)), flush=True)
    for name, setting in SETTINGS.items():
        if options.only not in (None, name):
            continue
        outcome = run(name, setting, options.seed, options.verbose)
        print(line(name, setting, outcome, load(name), options.markdown), flush=True)
        for reason in outcome.test.reasons:
            print(f"<!-- {name}: {reason} -->" if options.markdown else f"    {reason}", flush=True)


if __name__ == "__main__":
    main()

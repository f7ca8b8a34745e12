"""Weak scaling: several one-thread processes on as many times the rows, against one process.

    python benchmarks/distributed.py --processes 2

An RBM of 784 × 500 units is trained by PCD-1 with 500 rows and 500 chains for each process. A round
trains first in one process, while the others wait, and then in all of them together, where each
update ends with the sum of the gradients. The efficiency is the rate of updates together over the
rate alone, the median over rounds of the ratio within a round.

On a machine that has other work to do, the processes wait for cores and for each other, and the
ratio says nothing. The ratio of processor times for an update is then the better guide: what
communication costs in work, without what it costs in waiting.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from freenergy.models import RBM
from freenergy.random import RandomStream
from freenergy.training import Trainer, TrainingOptions, as_rows, initialize
from freenergy.training.distributed import alone, launch

N_VISIBLE, N_HIDDEN, N_ROWS = 784, 500, 500


class Rate(NamedTuple):
    """Seconds of an update, by the clock and by the processor."""

    clock: float
    processor: float


def make_trainer(n_processes: int) -> Trainer:
    """A trainer at its start, for 500 rows and chains of each process."""
    generator = torch.Generator().manual_seed(0)
    data = (torch.rand((4 * N_ROWS, N_VISIBLE), generator=generator) < 0.3).float()
    model, random = RBM(N_VISIBLE, N_HIDDEN), RandomStream(0)
    initialize(model, as_rows(data, data), random)
    options = TrainingOptions(n_epochs=0, batch_size=N_ROWS * n_processes)
    return Trainer(model, options, random, order=RandomStream(1))


def epoch(trainer: Trainer, n_updates: int) -> Rate:
    """Time of an update of one more epoch of so many updates."""
    size = trainer.options.batch_size
    generator = torch.Generator().manual_seed(1)
    data = (torch.rand((size * n_updates, N_VISIBLE), generator=generator) < 0.3).float()
    trainer.options = dataclasses.replace(trainer.options, n_epochs=trainer.epoch + 1)
    marks: list[Rate] = []

    def mark(_: int) -> None:
        marks.append(Rate(time.perf_counter(), time.process_time()))

    trainer.fit(as_rows(data, data), on_batch=mark)
    first, last = marks[0], marks[-1]
    n = len(marks) - 1
    return Rate((last.clock - first.clock) / n, (last.processor - first.processor) / n)


def member(n_updates: int, n_rounds: int) -> list[tuple[Rate, Rate]]:
    """What each process measures: of each round an update alone, and one together."""
    torch.set_num_threads(1)
    one, all_of_us = make_trainer(1), make_trainer(dist.get_world_size())
    rounds = []
    for _ in range(n_rounds):
        own = Rate(float("nan"), float("nan"))
        if dist.get_rank() == 0:
            with alone():
                own = epoch(one, n_updates)
        dist.barrier()
        rounds.append((own, epoch(all_of_us, n_updates)))
        dist.barrier()
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--updates", type=int, default=30, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="file for the numbers, .json")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    first = launch(member, arguments.processes, arguments.updates, arguments.rounds)[0]
    rounds = first[1:]  # The first one warms up.
    alone_, together = ([r[i] for r in rounds] for i in (0, 1))
    result = {
        "processes": arguments.processes,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "updates_per_second_alone": 1 / statistics.median(r.clock for r in alone_),
        "updates_per_second_together": 1 / statistics.median(r.clock for r in together),
        "efficiency": statistics.median(a.clock / t.clock for a, t in rounds),
        "efficiency_processor": statistics.median(a.processor / t.processor for a, t in rounds),
        "bytes_per_update": 4 * (N_VISIBLE * N_HIDDEN + 2 * (N_VISIBLE + N_HIDDEN)),
    }
    table = Table("quantity", "value", title="Weak scaling, 500 rows and chains for each process")
    for name, value in result.items():
        table.add_row(name.replace("_", " "), f"{value:.4g}")
    Console().print(table)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Weak scaling: several one-thread processes on as many times the rows, against one process.

    python benchmarks/distributed.py --processes 2

An RBM of 784 × 500 units is trained by PCD-1 with as many chains as rows in each process. A round
trains first in one process, while the others wait; then in all of them side by side, each a model
of its own; and then in all of them together, where each update ends with the sum of the gradients.
The efficiency is the rate of updates together over the rate alone, the median over rounds of the
ratio within a round; side by side it is what the machine's memory and cores allow.

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

from freenergy.distributed import alone, launch
from freenergy.models import RBM
from freenergy.random import RandomStream
from freenergy.training import Trainer, TrainingOptions, as_rows, initialize

N_VISIBLE, N_HIDDEN = 784, 500


class Rate(NamedTuple):
    """Seconds of an update, by the clock and by the processor."""

    clock: float
    processor: float


class Round(NamedTuple):
    """An update of one process alone, of all side by side, and of all together."""

    alone: Rate
    beside: Rate
    together: Rate


def make_trainer(n_processes: int, n_rows: int) -> Trainer:
    """A trainer at its start, for so many rows and chains of each process."""
    generator = torch.Generator().manual_seed(0)
    data = (torch.rand((2000, N_VISIBLE), generator=generator) < 0.3).float()
    model, random = RBM(N_VISIBLE, N_HIDDEN), RandomStream(0)
    initialize(model, as_rows(data, data), random)
    options = TrainingOptions(n_epochs=0, batch_size=n_rows * n_processes)
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


def member(n_rows: int, n_updates: int, n_rounds: int) -> list[Round]:
    """What each process measures."""
    torch.set_num_threads(1)
    one, all_of_us = make_trainer(1, n_rows), make_trainer(dist.get_world_size(), n_rows)
    rounds = []
    for _ in range(n_rounds):
        own = Rate(float("nan"), float("nan"))
        if dist.get_rank() == 0:
            with alone():
                own = epoch(one, n_updates)
        dist.barrier()
        with alone():
            beside = epoch(one, n_updates)
        dist.barrier()
        rounds.append(Round(own, beside, epoch(all_of_us, n_updates)))
        dist.barrier()
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="+", default=[500, 1000, 2000], help="a process")
    parser.add_argument("--updates", type=int, default=30, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="file for the numbers, .json")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    columns = ("rows", "alone, ms", "side by side, ms", "together, ms")
    efficiencies = ("side by side", "efficiency", "by processor time")
    title = f"Weak scaling, {arguments.processes} processes on {os.cpu_count()} cores"
    table, results = Table(*columns, *efficiencies, title=title), []
    for n_rows in arguments.rows:
        load = os.getloadavg()[0]
        found = launch(member, arguments.processes, n_rows, arguments.updates, arguments.rounds)
        rounds = found[0][1:]  # The first one warms up.
        clock = [1e3 * statistics.median(r[i].clock for r in rounds) for i in range(3)]
        ratios = [
            statistics.median(r.alone.clock / r.beside.clock for r in rounds),
            statistics.median(r.alone.clock / r.together.clock for r in rounds),
            statistics.median(r.alone.processor / r.together.processor for r in rounds),
        ]
        table.add_row(str(n_rows), *(f"{t:.1f}" for t in clock), *(f"{r:.3f}" for r in ratios))
        names = ("alone_ms", "beside_ms", "together_ms", "beside", "efficiency", "processor")
        results.append(
            {"rows": n_rows, "load": load} | dict(zip(names, clock + ratios, strict=True))
        )
    Console().print(table)
    print(f"{4 * (N_VISIBLE * N_HIDDEN + 2 * (N_VISIBLE + N_HIDDEN)):,} bytes are summed an update")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

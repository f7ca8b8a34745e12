"""An update of several one-thread processes: by itself, side by side, and together.

The part that scaling.py and distributed.py have in common. Processes are started by
``freenergy.distributed.launch``, and train an RBM of 784 × 500 units by PCD-1 with as many chains
as rows. All ratios are taken within one round, in which each way has its turn.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist

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


@dataclass(frozen=True)
class Shared:
    """What an update costs in so many processes; medians over the rounds.

    The ratios are those of one process alone on ``rows_alone`` rows to each of the two others, on
    ``rows_together`` rows in all.
    """

    n_processes: int
    rows_alone: int
    rows_together: int
    alone: Rate
    beside: Rate
    together: Rate
    beside_ratio: float
    ratio: float
    processor_ratio: float
    load: float

    @property
    def gain(self) -> float:
        """How many times as many rows there are together for each process: 1, or 1/n."""
        return self.rows_together / (self.n_processes * self.rows_alone)

    @property
    def efficiency(self) -> float:
        """Rows in a second of each process together, over those of one alone."""
        return self.gain * self.ratio

    @property
    def by_processor(self) -> float:
        """The same by processor time: without what waiting costs."""
        return self.gain * self.processor_ratio


def measure(
    n_processes: int, rows_alone: int, rows_together: int, n_updates: int, n_rounds: int
) -> Shared:
    """Start processes, and let them train in turn and together."""
    os.environ["OMP_NUM_THREADS"] = "1"
    load = os.getloadavg()[0]
    found = launch(member, n_processes, rows_alone, rows_together, n_updates, n_rounds)
    rounds = found[0][1:]  # The first one warms up.
    times = [
        Rate(*(statistics.median(r[i][j] for r in rounds) for j in range(2))) for i in range(3)
    ]
    ratios = (
        statistics.median(r.alone.clock / r.beside.clock for r in rounds),
        statistics.median(r.alone.clock / r.together.clock for r in rounds),
        statistics.median(r.alone.processor / r.together.processor for r in rounds),
    )
    return Shared(n_processes, rows_alone, rows_together, *times, *ratios, load)


def member(rows_alone: int, rows_together: int, n_updates: int, n_rounds: int) -> list[Round]:
    """What each process measures."""
    torch.set_num_threads(1)
    one, all_of_us = make_trainer(rows_alone), make_trainer(rows_together)
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


def make_trainer(n_rows: int) -> Trainer:
    """A trainer at its start, for so many rows and chains of all processes."""
    data = some_rows(2000, 0)
    model, random = RBM(N_VISIBLE, N_HIDDEN), RandomStream(0)
    initialize(model, as_rows(data, data), random)
    options = TrainingOptions(n_epochs=0, batch_size=n_rows)
    return Trainer(model, options, random, order=RandomStream(1))


def epoch(trainer: Trainer, n_updates: int) -> Rate:
    """Time of an update of one more epoch of so many updates."""
    data = some_rows(trainer.options.batch_size * n_updates, 1)
    trainer.options = dataclasses.replace(trainer.options, n_epochs=trainer.epoch + 1)
    marks: list[Rate] = []

    def mark(_: int) -> None:
        marks.append(Rate(time.perf_counter(), time.process_time()))

    trainer.fit(as_rows(data, data), on_batch=mark)
    first, last = marks[0], marks[-1]
    n = len(marks) - 1
    return Rate((last.clock - first.clock) / n, (last.processor - first.processor) / n)


def some_rows(n_rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand((n_rows, N_VISIBLE), generator=generator) < 0.3).float()

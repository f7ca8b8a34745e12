"""How the cost of a training grows with rows, units, batch, steps, and with the processes.

    python benchmarks/scaling.py [--quick] [--markdown] [--out scaling.html]
    python benchmarks/scaling.py --paper        # a model of 10⁹ weights on 64 GPUs

One quantity is varied over more than a decade, the others are held at 784 × 500 units, batches of
100 rows and one step. Each measurement is a process of its own with one thread, forked from this
one, so that nothing is left of the one before. Its time is that of the processor, which other work
on the machine does not enter, but for the caches it takes; the least of some rounds counts. Its
memory is what the peak of its resident set (VmHWM) gained. The exponent is the slope of the
log–log line over its upper half, with the standard error of the fit, beside the slope of the
operations that scaling_paper.py counts, at the same points.

Where rows are read from a file while they are learned from, the peak is that of a whole ``fit``.

Processes need a clock: scaling_processes.py trains in one of them, and in all together, within each
round. With 1000 rows for each of them the time of an update should stay as it is, exponent 0; with
2000 rows in all it should fall as their number grows, exponent −1. Beside it stands the efficiency,
the rate of each process over that of one alone. Where the machine has other work to do, the one by
processor time is the better guide.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table as ConsoleTable

import freenergy as fe
from freenergy.models import RBM
from freenergy.random import RandomStream
from freenergy.report import Curve, LineChart, Page, Section, Table, Verdict, write
from freenergy.training import Trainer, TrainingOptions, as_rows
from scaling_paper import Update, tables
from scaling_paper import markdown as markdown_table
from scaling_processes import Shared, measure

BASE = Update()

CHUNK_SECONDS = 0.03
"""Processor time of the updates between two looks at the clock."""

FILE_WIDTH, FILE_HIDDEN, BUFFER_BYTES = 784, 32, 2**24

ROWS_EACH, ROWS_IN_ALL = 1000, 2000
"""Of an update, as the number of processes grows."""


@dataclass(frozen=True)
class Axis:
    """A quantity that is varied: the cases in rising order, the rows of an epoch for ``rows``."""

    name: str
    label: str
    values: tuple[int, ...]
    base: Update = BASE
    field: str = ""

    def case(self, value: int) -> Update:
        """The update at this value; that of the base where the rows are varied."""
        return replace(self.base, **{self.field: value}) if self.field else self.base

    def n_rows(self, value: int) -> int | None:
        return None if self.field else value

    def operations(self, value: int) -> float:
        case = self.case(value)
        return case.flops * (1.0 if self.field else value / case.batch)

    def held(self, value: int) -> float:
        """Bytes that must be held; with all rows, their order, and a copy of the last weights."""
        case = self.case(value)
        if self.field:
            return case.bytes_held
        return case.bytes_held + value * (4.0 * case.n_visible + 8) + 4.0 * case.n_weights


class Measured(NamedTuple):
    """Seconds of the processor, and bytes by which the peak of the memory rose."""

    seconds: float
    gained: float


@dataclass(frozen=True)
class Line:
    """What was measured along an axis."""

    axis: Axis
    seconds: tuple[float, ...]
    gained: tuple[float, ...]


def axes(quick: bool) -> list[Axis]:
    """What is varied, each over more than a decade."""

    def values(first: int, n: int) -> tuple[int, ...]:
        """Each twice the one before; fewer of the costly ones where it has to be quick."""
        return tuple(first * 2**i for i in range(n - quick * 2))

    mean_field = Update(method="emf", order=2)
    return [
        Axis("rows", "rows (an epoch)", values(800, 7)),
        Axis("visible units", "visible units", values(64, 8), field="n_visible"),
        Axis("hidden units", "hidden units", values(64, 8), field="n_hidden"),
        Axis("batch", "rows of a batch", values(16, 8), field="batch"),
        Axis("k", "Gibbs steps of an update", values(1, 7), field="n_steps"),
        Axis("sweeps", "TAP2 sweeps of an update", values(1, 7), mean_field, "n_steps"),
    ]


# ---- one measurement, in a process of its own ----------------------------------------------------


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a process forked from this one."""
    if not hasattr(os, "fork"):
        raise SystemExit("this benchmark forks its measurements, which this system cannot")
    ours, theirs = multiprocessing.Pipe(duplex=False)

    def work() -> None:
        theirs.send(function(*arguments))
        # What would clean up belongs to the process that was copied.
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise SystemExit(
            "a measurement ended without a result; what it said stands above"
        ) from None
    finally:
        process.join()


def resident_bytes(field: str) -> float:
    """A line of /proc/self/status in bytes: VmRSS now, VmHWM at its peak; NaN without /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return math.nan
    return next(1024.0 * int(x.split()[1]) for x in lines if x.startswith(field + ":"))


def random_rows(n_rows: int, width: int) -> torch.Tensor:
    """Zeros and ones, a third of them ones, made in place."""
    generator = torch.Generator().manual_seed(0)
    return torch.empty(n_rows, width).bernoulli_(0.3, generator=generator)


def make_trainer(case: Update) -> Trainer:
    torch.manual_seed(0)
    options = TrainingOptions(
        n_epochs=1,
        batch_size=case.batch,
        n_chains=case.n_chains or None,
        learning_rate=1e-4,
        method=case.method,
        n_steps=case.n_steps,
        mean_field_order=case.order,
        centered=case.centered,
    )
    return Trainer(RBM(case.n_visible, case.n_hidden), options, RandomStream(0))


def least_seconds(work: Callable[[], None], budget: float) -> float:
    """Processor time of a call, the least of as many as the budget has room for."""
    work()
    times: list[float] = []
    repeats = 1
    begin = time.process_time()
    while not times or time.process_time() - begin < budget:
        start = time.process_time()
        for _ in range(repeats):
            work()
        spent = time.process_time() - start
        times.append(spent / repeats)
        if spent < CHUNK_SECONDS:
            repeats = math.ceil(repeats * CHUNK_SECONDS / max(spent, 1e-4))
    return min(times)


def measure_update(case: Update, budget: float) -> Measured:
    """An update on one batch, again and again."""
    torch.set_num_threads(1)
    warm_up()
    before = resident_bytes("VmRSS")
    trainer, batch = make_trainer(case), random_rows(case.batch, case.n_visible)
    seconds = least_seconds(lambda: trainer.update(batch), budget)
    return Measured(seconds, resident_bytes("VmHWM") - before)


def measure_epoch(case: Update, n_rows: int, budget: float) -> Measured:
    """An epoch of the training loop as users run it, on rows in memory."""
    torch.set_num_threads(1)
    warm_up()
    before = resident_bytes("VmRSS")
    trainer, rows = make_trainer(case), as_rows(random_rows(n_rows, case.n_visible), torch.empty(0))

    def epoch() -> None:
        trainer.epoch = 0
        trainer.fit(rows)

    return Measured(least_seconds(epoch, budget), resident_bytes("VmHWM") - before)


def warm_up() -> None:
    """What the libraries allocate once is no part of a measurement."""
    make_trainer(Update(n_visible=8, n_hidden=8, batch=8)).update(random_rows(8, 8))


def measure_fit(path: Path, streamed: bool) -> Measured:
    """A fit of one pass on the rows of a file of bytes, read as a whole or while it learns."""
    torch.set_num_threads(1)
    model = fe.BernoulliRBM(FILE_HIDDEN, n_iter=1, batch_size=500, random_state=0)
    model.fit(np.eye(8, dtype=np.float32))
    before, start = resident_bytes("VmRSS"), time.process_time()
    if streamed:
        model.fit(fe.data.stream(path, full_scale=1, buffer_bytes=BUFFER_BYTES))
    else:
        model.fit(np.load(path).astype(np.float32))
    return Measured(time.process_time() - start, resident_bytes("VmHWM") - before)


# ---- lines and their exponents -------------------------------------------------------------------


def measure_axis(axis: Axis, rounds: int, budget: float) -> Line:
    """Least time and median memory of each point; the points take turns."""
    found: list[list[Measured]] = [[] for _ in axis.values]
    for _ in range(rounds):
        for value, of_value in zip(axis.values, found, strict=True):
            case, n_rows = axis.case(value), axis.n_rows(value)
            if n_rows is None:
                of_value.append(in_own_process(measure_update, case, budget))
            else:
                of_value.append(in_own_process(measure_epoch, case, n_rows, budget))
    return Line(
        axis,
        tuple(min(m.seconds for m in each) for each in found),
        tuple(float(np.median([m.gained for m in each])) for each in found),
    )


def upper_half(n: int) -> slice:
    """Places of the larger half of n points, the middle one included, three at least."""
    return slice(min(n // 2, max(n - 3, 0)), n)


def exponent(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Slope of ln y over ln x on the upper half of the points, and its standard error."""
    part = upper_half(len(x))
    u, v = np.log(np.asarray(x, float)[part]), np.log(np.asarray(y, float)[part])
    du = u - u.mean()
    slope = float(du @ v / (du @ du))
    residual = v - v.mean() - slope * du
    if len(u) < 3:
        return slope, math.nan
    return slope, float(np.sqrt(residual @ residual / (len(u) - 2) / (du @ du)))


COLUMNS = (
    "grows",
    "from, to",
    "time at its end",
    "Gflop/s",
    "exponent of time",
    "of the operations",
    "memory at its end",
    "exponent of memory",
    "of what is held",
)


def row_of(line: Line) -> list[str]:
    """A line of the table."""
    axis, x = line.axis, line.axis.values
    operations = [axis.operations(value) for value in x]
    held = [axis.held(value) for value in x]
    memory = exponent(x, line.gained) if min(line.gained) > 0 else (math.nan, math.nan)
    return [
        axis.label,
        f"{x[0]:,}, {x[-1]:,}",
        f"{1e3 * line.seconds[-1]:.4g} ms",
        f"{operations[-1] / line.seconds[-1] / 1e9:.0f}",
        with_error(*exponent(x, line.seconds)),
        f"{exponent(x, operations)[0]:.3f}",
        f"{line.gained[-1] / 1e6:.4g} MB",
        with_error(*memory),
        f"{exponent(x, held)[0]:.3f}",
    ]


def with_error(value: float, error: float) -> str:
    """Two points have a slope, but no error."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.3f} ± {error:.3f}" if math.isfinite(error) else f"{value:.3f}"


def local_exponents(line: Line) -> list[str]:
    """Slopes between neighbours."""
    u, v = np.log(line.axis.values), np.log(line.seconds)
    return [f"{slope:.2f}" for slope in np.diff(v) / np.diff(u)]


# ---- rows of a file ------------------------------------------------------------------------------


def measure_files(quick: bool) -> tuple[tuple[int, ...], dict[str, list[float]]]:
    """Numbers of rows, and the peak of memory of a fit on them, in memory and streamed."""
    sizes = tuple(8000 * 2**i for i in range(4 if quick else 5))
    peaks: dict[str, list[float]] = {"in memory": [], "streamed": []}
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for n_rows in sizes:
            path = Path(folder) / f"{n_rows}.npy"
            file = np.lib.format.open_memmap(path, "w+", np.uint8, (n_rows, FILE_WIDTH))
            for start in range(0, n_rows, 8000):
                file[start : start + 8000] = random.random((8000, FILE_WIDTH)) < 0.3
            del file
            for name, streamed in (("in memory", False), ("streamed", True)):
                peaks[name].append(in_own_process(measure_fit, path, streamed).gained)
            path.unlink()
    return sizes, peaks


def file_table(sizes: Sequence[int], peaks: dict[str, list[float]]) -> tuple[list[str], list[Any]]:
    """Peaks in megabytes, with their exponents in the last line."""
    head = ["rows", "float32, MB", *[f"{name}, MB" for name in peaks]]
    rows = [
        [f"{n:,}", f"{4e-6 * n * FILE_WIDTH:.0f}", *[f"{p[i] / 1e6:.0f}" for p in peaks.values()]]
        for i, n in enumerate(sizes)
    ]
    slopes = [with_error(*exponent(sizes, p)) for p in peaks.values()]
    return head, [*rows, ["exponent", "1", *slopes]]


# ---- processes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProcessLine:
    """Updates of more and more processes; ``power`` is the exponent where nothing is lost."""

    label: str
    power: int
    found: tuple[Shared, ...]

    @property
    def values(self) -> list[int]:
        return [1, *(shared.n_processes for shared in self.found)]

    def seconds(self, way: str = "clock") -> list[float]:
        """An update of one process, and of the others together."""
        one = float(np.median([getattr(shared.alone, way) for shared in self.found]))
        return [one, *(getattr(shared.together, way) for shared in self.found)]


def measure_processes(quick: bool) -> list[ProcessLine]:
    """Both lines, from one process to one for each core; none where there is a single core."""
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    sizes = [2**i for i in range(1, (n_cores or 1).bit_length())]
    n_updates, n_rounds = (10, 4) if quick else (30, 7)
    each, in_all = [], []
    for n in sizes:
        each.append(measure(n, ROWS_EACH, n * ROWS_EACH, n_updates, n_rounds))
        in_all.append(measure(n, ROWS_IN_ALL, ROWS_IN_ALL, n_updates, n_rounds))
    if not sizes:
        return []
    return [
        ProcessLine(f"processes, {ROWS_EACH:,} rows each", 0, tuple(each)),
        ProcessLine(f"processes, {ROWS_IN_ALL:,} rows in all", -1, tuple(in_all)),
    ]


PROCESS_COLUMNS = (
    "grows",
    "from, to",
    "time at its start",
    "at its end",
    "exponent",
    "of processor time",
    "ideal",
    "efficiency at its end",
    "by processor time",
)


def process_row(line: ProcessLine) -> list[str]:
    """A line of the table."""
    x, seconds, last = line.values, line.seconds(), line.found[-1]
    return [
        line.label,
        f"{x[0]}, {x[-1]}",
        f"{1e3 * seconds[0]:.4g} ms",
        f"{1e3 * seconds[-1]:.4g} ms",
        with_error(*exponent(x, seconds)),
        with_error(*exponent(x, line.seconds("processor"))),
        str(line.power),
        f"{last.efficiency:.3f}",
        f"{last.by_processor:.3f}",
    ]


def process_chart(lines: Sequence[ProcessLine]) -> LineChart:
    """An update over the number of processes, beside what it would be if nothing were lost."""
    curves = []
    for line in lines:
        x, y = line.values, 1e3 * np.asarray(line.seconds())
        curves.append(Curve(line.label, x, y))
        ideal = y[0] * np.asarray(x, float) ** line.power
        curves.append(Curve(f"{line.label}: nothing lost", x, ideal, dash=True))
    return LineChart(
        "Processes",
        "processes",
        "an update by the clock (ms)",
        curves,
        log_x=True,
        log_y=True,
    )


# ---- what is shown -------------------------------------------------------------------------------


def chart(line: Line) -> LineChart:
    """Time over one quantity, beside the operations at the speed of the last point."""
    x = list(line.axis.values)
    operations = np.array([line.axis.operations(value) for value in x])
    times = 1e3 * np.asarray(line.seconds)
    slope, error = exponent(x, line.seconds)
    return LineChart(
        f"{line.axis.label.capitalize()}: exponent {slope:.2f} ± {error:.2f}",
        line.axis.label,
        "processor time (ms)",
        [
            Curve("measured", x, times),
            Curve("operations", x, operations / operations[-1] * times[-1], dash=True),
        ],
        log_x=True,
        log_y=True,
    )


def memory_chart(line: Line) -> LineChart:
    """Memory over one quantity, beside what must be held."""
    x = list(line.axis.values)
    return LineChart(
        line.axis.label.capitalize(),
        line.axis.label,
        "peak memory (MB)",
        [
            Curve("measured", x, np.asarray(line.gained) / 1e6),
            Curve("held", x, [line.axis.held(value) / 1e6 for value in x], dash=True),
        ],
        log_x=True,
        log_y=True,
    )


Files = tuple[Sequence[int], dict[str, list[float]]]


def page(lines: Sequence[Line], files: Files | None, processes: Sequence[ProcessLine]) -> Page:
    """The report: tables, and the log–log lines."""
    sections = []
    if lines:
        sections = [
            Section("Exponents", [Table(COLUMNS, [row_of(line) for line in lines])]),
            Section("Time", [chart(line) for line in lines]),
            Section("Memory", [memory_chart(line) for line in lines]),
        ]
    if files is not None:
        content = [file_chart(*files), Table(*file_table(*files))]
        sections.append(Section("Rows that stay in their file", content))
    if processes:
        table = Table(PROCESS_COLUMNS, [process_row(line) for line in processes])
        sections.append(Section("Processes", [process_chart(processes), table]))
    return Page(
        "Scaling",
        "Does the cost grow as the work grows?",
        Verdict("info", verdict(lines)),
        sections,
        {"machine": machine(), "command": " ".join(["python", *sys.argv])},
    )


def verdict(lines: Sequence[Line]) -> str:
    """One sentence on all lines."""
    if not lines:
        return "No line was measured beside which operations can be counted."
    gaps = []
    for line in lines:
        x = line.axis.values
        operations = [line.axis.operations(value) for value in x]
        gaps.append(abs(exponent(x, line.seconds)[0] - exponent(x, operations)[0]))
    return (
        "On the upper half of each line the exponent of the time differs from that of the "
        f"operations by at most **{max(gaps):.2f}**."
    )


def file_chart(sizes: Sequence[int], peaks: dict[str, list[float]]) -> LineChart:
    """Memory over the rows of a file."""
    return LineChart(
        "Rows of a file",
        "rows",
        "peak memory of a fit (MB)",
        [Curve(name, sizes, np.asarray(peak) / 1e6) for name, peak in peaks.items()],
        log_x=True,
        log_y=True,
        note=f"The buffer of the stream has {BUFFER_BYTES / 1e6:.0f} MB.",
    )


def machine() -> str:
    """What it ran on."""
    model, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        found = [x.split(":")[1] for x in info.read_text().splitlines() if "model name" in x]
        model = found[0].strip() if found else model
    return f"{model}, 1 thread, torch {torch.__version__}"


def show(head: Sequence[str], rows: Sequence[Sequence[str]], as_markdown: bool) -> None:
    if as_markdown:
        print(markdown_table(head, rows) + "\n")
        return
    table = ConsoleTable(*head)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="shorter lines, in a minute")
    parser.add_argument("--rounds", type=int, default=None, help="3, or 2 with --quick")
    parser.add_argument("--budget", type=float, default=0.3, help="seconds of a measurement")
    parser.add_argument("--only", default="", help="what has this in its name")
    parser.add_argument("--out", type=Path, help="an HTML page with the lines")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    parser.add_argument("--paper", action="store_true", help="the cost on 64 GPUs, on paper")
    options = parser.parse_args()
    if options.paper:
        print(tables())
        return
    rounds = options.rounds or (2 if options.quick else 3)
    chosen = [axis for axis in axes(options.quick) if options.only in axis.name]
    files_too, processes_too = (options.only in name for name in ("rows of a file", "processes"))
    if not (chosen or files_too or processes_too):
        parser.error(f"no line has {options.only!r} in its name")
    lines = []
    for axis in chosen:
        print(f"{axis.label} ...", file=sys.stderr, flush=True)
        lines.append(measure_axis(axis, rounds, options.budget))
    files, processes = None, []
    if files_too:
        print("rows of a file ...", file=sys.stderr, flush=True)
        files = measure_files(options.quick)
    if processes_too:
        # Last: it leaves threads behind, with which this process must not be forked.
        print("processes ...", file=sys.stderr, flush=True)
        processes = measure_processes(options.quick)
    if lines:
        show(COLUMNS, [row_of(line) for line in lines], options.markdown)
    for line in lines:
        print(f"{line.axis.label}: {', '.join(local_exponents(line))}")
    print()
    if files is not None:
        show(*file_table(*files), options.markdown)
    if processes:
        show(PROCESS_COLUMNS, [process_row(line) for line in processes], options.markdown)
        loads = [f"{shared.load:.1f}" for line in processes for shared in line.found]
        print(f"load before each of the processes' measurements: {', '.join(loads)}")
    print(machine())
    if options.json is not None:
        numbers = {x.axis.name: [x.axis.values, x.seconds, x.gained] for x in lines}
        numbers |= {x.label: [asdict(shared) for shared in x.found] for x in processes}
        options.json.write_text(
            json.dumps({"machine": machine(), "lines": numbers, "files": files})
        )
    if options.out is not None:
        print(write(page(lines, files, processes), options.out))


if __name__ == "__main__":
    main()

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
import json
import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

from scaling_processes import N_HIDDEN, N_VISIBLE, measure

COLUMNS = ("rows", "alone, ms", "side by side, ms", "together, ms")
EFFICIENCIES = ("side by side", "efficiency", "by processor time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="+", default=[500, 1000, 2000], help="a process")
    parser.add_argument("--updates", type=int, default=30, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="file for the numbers, .json")
    arguments = parser.parse_args()
    n, updates, rounds = arguments.processes, arguments.updates, arguments.rounds
    title = f"Weak scaling, {n} processes on {os.cpu_count()} cores"
    table, results = Table(*COLUMNS, *EFFICIENCIES, title=title), []
    for n_rows in arguments.rows:
        found = measure(n, n_rows, n_rows * n, updates, rounds)
        clock = [1e3 * way.clock for way in (found.alone, found.beside, found.together)]
        ratios = [found.beside_ratio, found.efficiency, found.by_processor]
        table.add_row(str(n_rows), *(f"{t:.1f}" for t in clock), *(f"{r:.3f}" for r in ratios))
        names = ("alone_ms", "beside_ms", "together_ms", "beside", "efficiency", "processor")
        results.append(
            {"rows": n_rows, "load": found.load} | dict(zip(names, clock + ratios, strict=True))
        )
    Console().print(table)
    print(f"{4 * (N_VISIBLE * N_HIDDEN + 2 * (N_VISIBLE + N_HIDDEN)):,} bytes are summed an update")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

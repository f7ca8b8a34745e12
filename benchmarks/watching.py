"""What it costs to watch a training: the same net trained with and without ``fe.watch``.

    python benchmarks/watching.py [--markdown]

Two copies of a net train by turns, a pass of some batches each, and in a new order in every round,
so that a machine whose speed drifts does not bend the ratio. One copy is watched all along. The
first round, in which the first five steps are read whatever they cost, stands in a column of its
own; the median is over the rounds behind it. Last come the share that the watch itself measured,
and whether both copies ended with the same bits.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.functional import cross_entropy

from freenergy.thermodynamics import watch

COLUMNS = ["net", "ms a step", "watched, ratio", "first round", "read", "own share", "same bits"]


def perceptron(activation: type[nn.Module], depth: int, gain: float) -> nn.Sequential:
    """784 inputs, layers of 256 units, 10 outputs."""
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    n_in = 784
    for n_out in (*[256] * depth, 10):
        layer = nn.Linear(n_in, n_out)
        with torch.no_grad():
            layer.weight.normal_(0, (gain / n_in) ** 0.5, generator=generator)
            layer.bias.zero_()
        layers += [layer, activation()]
        n_in = n_out
    return nn.Sequential(*layers[:-1])


def trainer(net: nn.Module, rows: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """One pass of Adam over the rows, in batches of 128."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)

    def run() -> None:
        for x, y in zip(rows.split(128), labels.split(128), strict=True):
            optimizer.zero_grad()
            cross_entropy(net(x), y).backward()
            optimizer.step()

    return run


def bench(name: str, net: nn.Module, n_batches: int, rounds: int, budget: float) -> list[str]:
    """One row of the table."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.rand(128 * n_batches, 784, generator=generator) + 0.01
    labels = torch.randint(0, 10, (len(rows),), generator=generator)
    warm_up = trainer(copy.deepcopy(net), rows[: 128 * 5], labels[: 128 * 5])
    warm_up()
    twin = copy.deepcopy(net)
    bare, watched = trainer(twin, rows, labels), trainer(net, rows, labels)
    ratios, times = [], []
    with watch(net, budget=budget) as run:
        for turn in range(rounds + 1):
            seconds = {}
            for contestant in (bare, watched) if turn % 2 else (watched, bare):
                begin = time.perf_counter()
                contestant()
                seconds[contestant] = time.perf_counter() - begin
            ratios.append(seconds[watched] / seconds[bare])
            times.append(1e3 * seconds[bare] / n_batches)
    pairs = zip(net.parameters(), twin.parameters(), strict=True)
    same = all(torch.equal(a, b) for a, b in pairs)
    return [
        name,
        f"{statistics.median(times):.2f}",
        f"{statistics.median(ratios[1:]):.3f}",
        f"{ratios[0]:.3f}",
        f"{run.cost.n_read} of {run.cost.n_steps}",
        f"{100 * run.cost.share:.1f} %",
        "yes" if same else "no",
    ]


def main() -> None:
    """Print the table, with --markdown as it stands in the documentation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=100, help="batches of a pass")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--budget", type=float, default=0.05)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    sizes = (options.batches, options.rounds, options.budget)
    rows = [
        bench("784-256×8-10, ReLU", perceptron(nn.ReLU, 8, 2.0), *sizes),
        bench("784-256×32-10, SELU", perceptron(nn.SELU, 32, 1.0), *sizes),
    ]
    machine = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    if options.markdown:
        print(f"{machine}\n")
        for line in [COLUMNS, ["---"] * len(COLUMNS), *rows]:
            print(f"| {' | '.join(line)} |")
        return
    table = Table(*COLUMNS, title=f"Cost of watching, budget {100 * options.budget:g} %")
    for line in rows:
        table.add_row(*line)
    Console().print(table)
    print(machine)


if __name__ == "__main__":
    main()

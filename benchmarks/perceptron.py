"""Time of an epoch of a deep perceptron, beside bare torch and scikit-learn.

    python benchmarks/perceptron.py

A net of 784 inputs, eight hidden layers of 256 relus and 10 classes, on random grey values in
batches of 128, with Adam in single precision. One round runs all contestants one after the other,
a pass each; a ratio is the median over rounds of the ratio within a round, so a machine whose
speed drifts does not bend it.

- *freenergy*: ``MLPClassifier.partial_fit``, with all that it does for a pass: validation of the
  rows, loss and penalty, and the copy that divergence and Ctrl-C go back to.
- *bare torch*: the same net, optimiser, weight decay and size of batches in the shortest loop, rows
  in a new order in each pass, and nothing kept or checked.
- *scikit-learn*: ``MLPClassifier.partial_fit`` of the same shape.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.neural_network import MLPClassifier as PeerClassifier
from torch import nn

import freenergy as fe

N_FEATURES, N_CLASSES, HIDDEN, BATCH_SIZE = 784, 10, (256,) * 8, 128
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
Contestant = Callable[[], object]


def make_data(n_batches: int) -> tuple[np.ndarray, np.ndarray]:
    """Random grey values, none of them zero, and random classes."""
    random = np.random.default_rng(0)
    n = n_batches * BATCH_SIZE
    rows = 1.0 - random.random((n, N_FEATURES), dtype=np.float32)
    return rows, random.integers(N_CLASSES, size=n)


def estimator_epoch(make: type, X: np.ndarray, y: np.ndarray) -> Contestant:
    """A pass of an estimator, ours or scikit-learn's."""
    model = make(HIDDEN, batch_size=BATCH_SIZE, random_state=0)
    classes = np.arange(N_CLASSES)
    return lambda: model.partial_fit(X, y, classes=classes)


def torch_epoch(X: np.ndarray, y: np.ndarray) -> Contestant:
    """The shortest loop that does the same updates."""
    rows, labels = torch.from_numpy(X), torch.from_numpy(y)
    sizes = (N_FEATURES, *HIDDEN)
    layers = [layer for n, m in pairwise(sizes) for layer in (nn.Linear(n, m), nn.ReLU())]
    net = nn.Sequential(*layers, nn.Linear(HIDDEN[-1], N_CLASSES))
    optimizer = torch.optim.Adam(net.parameters(), weight_decay=1e-4 / BATCH_SIZE, fused=True)

    def run() -> None:
        for part in torch.randperm(len(rows)).split(BATCH_SIZE):
            loss = nn.functional.cross_entropy(net(rows[part]), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def measure(
    contestants: dict[str, Contestant], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each contestant's pass in each round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, run in contestants.items():
            begin = clock()
            run()
            seconds[name].append(clock() - begin)
    return {name: times[1:] for name, times in seconds.items()}


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median over rounds of our time by theirs."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def main() -> None:
    """Print the table, or with --json numbers for tools."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=50, help="updates in one pass")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    X, y = make_data(options.batches)
    seconds = measure(
        {
            "freenergy": estimator_epoch(fe.MLPClassifier, X, y),
            "bare torch": torch_epoch(X, y),
            "scikit-learn": estimator_epoch(PeerClassifier, X, y),
        },
        options.rounds,
        CLOCKS[options.clock],
    )
    ours = seconds["freenergy"]
    results = [
        {
            "contestant": name,
            "ms per update": round(1e3 * statistics.median(times) / options.batches, 3),
            "freenergy takes": round(ratio(ours, times), 3),
        }
        for name, times in seconds.items()
    ]
    machine = (
        f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, "
        f"{options.clock} clock"
    )
    if options.json:
        print(json.dumps({"machine": machine, "rows": results}, indent=2))
        return
    table = Table(*results[0], title=f"Update of a perceptron {N_FEATURES}-256×8-{N_CLASSES}")
    for row in results:
        name, each, share = row.values()
        table.add_row(str(name), f"{each:.2f}", f"{share:.2f} ×")
    Console().print(table)
    print(machine)


if __name__ == "__main__":
    main()

"""Time of a training update, beside its matrix products and beside other packages.

    make bench

For MNIST-sized data (784 visible, 500 hidden units) each contestant trains on the same random 0/1
rows. One round runs all contestants of a row one after the other; a ratio is the median over rounds
of the ratio within a round, so a machine whose speed drifts does not bend it.

- *products*: only the matrix products that an update needs, in the form in which they are fastest.
- *scikit-learn*: ``BernoulliRBM.fit``, which is PCD-1, in single precision as ours, and in double
  precision, which is what it computes in unless the data are float32.
- *PCD*, for parallel trajectory tempering: our own PCD with as many Gibbs steps for an update. The
  ladder has 20 rungs, made by training on random batches; a measurement spans three rounds on it.
- *rbms*: the package's own update (``fit_batch_pcd`` and SGD) on batches drawn as it draws them,
  without the file that its training loop rewrites after each update.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from sklearn.neural_network import BernoulliRBM as PeerRBM

from freenergy.models import RBM
from freenergy.random import RandomStream
from freenergy.training import Trainer, TrainingOptions, as_rows, initialize
from freenergy.training.trajectory import TrajectoryTempering

N_VISIBLE, N_HIDDEN, N_RUNGS = 784, 500, 20
Contestant = Callable[[], None]


def make_rows(batch_size: int, n_batches: int) -> torch.Tensor:
    """Random zeros and ones, a third of them ones."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size * n_batches, N_VISIBLE)
    return (torch.rand(shape, generator=generator) < 0.3).float()


def make_trainer(rows: torch.Tensor, **options: object) -> Trainer:
    """A trainer at its start; with a ladder of some length for parallel trajectory tempering."""
    data = as_rows(rows, torch.empty(0))
    model, random = RBM(N_VISIBLE, N_HIDDEN), RandomStream(0)
    initialize(model, data, random)
    trainer = Trainer(model, TrainingOptions(n_epochs=1, **options), random)
    if isinstance(trainer.gradient, TrajectoryTempering):
        batch = rows[: trainer.options.batch_size]
        while len(trainer.gradient.ladder) < N_RUNGS:
            trainer.update(batch)
            trainer.gradient.add_rung()
    return trainer


def freenergy_epoch(rows: torch.Tensor, **options: object) -> Contestant:
    """Our training loop over all rows, batches in a new order each time."""
    data, trainer = as_rows(rows, torch.empty(0)), make_trainer(rows, **options)

    def run() -> None:
        trainer.epoch = 0
        trainer.fit(data)

    return run


def products(rows: torch.Tensor, batch_size: int, options: dict[str, object]) -> Contestant:
    """The matrix products of as many updates, into buffers made beforehand."""
    n, k = batch_size, int(str(options.get("n_steps", 1)))
    weight = torch.randn(N_VISIBLE, N_HIDDEN) * 0.05
    visible, hidden = torch.rand(2 * n, N_VISIBLE).round(), torch.rand(2 * n, N_HIDDEN)
    up, up_both = torch.empty(n, N_HIDDEN), torch.empty(2 * n, N_HIDDEN)
    down, gradient = torch.empty(n, N_VISIBLE), torch.empty(N_VISIBLE, N_HIDDEN)

    def to_visible() -> None:
        torch.mm(hidden[:n], weight.T, out=down)

    def to_hidden() -> None:
        torch.mm(visible[:n], weight, out=up)

    def pcd() -> None:
        for _ in range(k - 1):
            to_visible()
            to_hidden()
        to_visible()
        torch.mm(visible, weight, out=up_both)
        torch.mm(visible.T, hidden, out=gradient)

    def mean_field() -> None:
        order = int(str(options["mean_field_order"]))
        to_hidden()
        for _ in range(k * order):
            to_hidden()
            to_visible()
        torch.mm(visible.T, hidden, out=gradient)
        for _ in range(order - 1):
            torch.mm(visible[:n].T, hidden[:n], out=gradient)

    update = mean_field if options["method"] == "emf" else pcd

    def run() -> None:
        for _ in range(len(rows) // n):
            update()

    return run


def sklearn_epoch(rows: torch.Tensor, batch_size: int, dtype: str) -> Contestant:
    """One pass of scikit-learn's class."""
    peer = PeerRBM(N_HIDDEN, batch_size=batch_size, n_iter=1, random_state=0)
    data = rows.numpy().astype(dtype)
    return lambda: peer.fit(data) and None


def rbms_epoch(rows: torch.Tensor, batch_size: int, k: int) -> Contestant | None:
    """One pass with the package rbms, or None where it is not installed."""
    try:
        from rbms.bernoulli_bernoulli.classes import BBRBM
        from rbms.training.pcd import fit_batch_pcd
    except ImportError:
        return None
    parameters = BBRBM(
        weight_matrix=torch.randn(N_VISIBLE, N_HIDDEN) * 0.05,
        vbias=torch.zeros(N_VISIBLE),
        hbias=torch.zeros(N_HIDDEN),
    )
    for tensor in parameters.parameters():
        tensor.grad = torch.zeros_like(tensor)
    optimizer = torch.optim.SGD(parameters.parameters(), lr=0.01, maximize=True)
    chains = parameters.init_chains(batch_size)
    weights = torch.ones(len(rows))

    def run() -> None:
        nonlocal chains
        with torch.no_grad():
            for _ in range(len(rows) // batch_size):
                index = torch.randperm(len(rows))[:batch_size]
                optimizer.zero_grad(set_to_none=False)
                chains, _logs = fit_batch_pcd(
                    (rows[index], weights[index]), chains, parameters, gibbs_steps=k, beta=1.0
                )
                optimizer.step()

    return run


def measure(contestants: dict[str, Contestant], n_updates: int, rounds: int) -> dict[str, list]:
    """Milliseconds for one update of each contestant, in each round."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    for _ in range(rounds):
        for name, run in contestants.items():
            begin = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - begin) / n_updates)
    return times


CASES: list[tuple[str, dict[str, object]]] = [
    ("PCD-1", {"method": "pcd", "n_steps": 1}),
    ("PCD-10", {"method": "pcd", "n_steps": 10}),
    ("PTT-1", {"method": "ptt", "n_steps": 1}),
    ("PTT-10", {"method": "ptt", "n_steps": 10}),
    ("CD-1", {"method": "cd", "n_steps": 1}),
    ("EMF naive, 3 sweeps", {"method": "emf", "n_steps": 3, "mean_field_order": 1}),
    ("EMF TAP2, 3 sweeps", {"method": "emf", "n_steps": 3, "mean_field_order": 2}),
    ("EMF TAP3, 3 sweeps", {"method": "emf", "n_steps": 3, "mean_field_order": 3}),
]


def bench_case(
    name: str, options: dict[str, object], batch_size: int, n_batches: int, rounds: int
) -> dict[str, object]:
    """One row of the table."""
    rows = make_rows(batch_size, n_batches)
    tempered = options["method"] == "ptt"
    if tempered:
        gradient = make_trainer(rows, batch_size=batch_size, **options).gradient
        assert isinstance(gradient, TrajectoryTempering)
        n_batches = 3 * gradient.period
        rows = make_rows(batch_size, n_batches)
    k = int(str(options["n_steps"]))
    contestants = {
        "freenergy": freenergy_epoch(rows, batch_size=batch_size, **options),
        "products": products(rows, batch_size, options),
    }
    if tempered:
        as_pcd = options | {"method": "pcd"}
        contestants["PCD"] = freenergy_epoch(rows, batch_size=batch_size, **as_pcd)
    if options["method"] == "pcd":
        if k == 1:
            for dtype in ("float32", "float64"):
                contestants[f"scikit-learn {dtype}"] = sklearn_epoch(rows, batch_size, dtype)
        peer = rbms_epoch(rows, batch_size, k)
        if peer is not None:
            contestants["rbms"] = peer
    times = measure(contestants, n_batches, rounds)
    row: dict[str, object] = {"case": name, "batch": batch_size}
    row["ms"] = statistics.median(times["freenergy"])
    if tempered:
        ratios = zip(times["freenergy"], times["PCD"], strict=True)
        row["times PCD"] = statistics.median(a / b for a, b in ratios)
    for other in ("products", "scikit-learn float32", "scikit-learn float64", "rbms"):
        if other not in times:
            continue
        ratios = zip(times["freenergy"], times[other], strict=True)
        if other == "products":
            row["times products"] = statistics.median(a / b for a, b in ratios)
        else:
            row[f"faster than {other}"] = statistics.median(b / a for a, b in ratios)
    return row


COLUMNS = [
    "case",
    "batch",
    "ms",
    "times products",
    "times PCD",
    "faster than scikit-learn float32",
    "faster than scikit-learn float64",
    "faster than rbms",
]


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str("–" if value is None else value)


def machine() -> str:
    """What it ran on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x
        ]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> None:
    """Print the table; with --markdown as it stands in the documentation, with --json for tools."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=20, help="updates in one measurement")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = [
        bench_case(name, case, batch_size, options.batches, options.rounds)
        for batch_size in (100, 500)
        for name, case in CASES
        if options.only in name
    ]
    if options.json:
        print(json.dumps({"machine": machine(), "rows": results}, indent=2))
        return
    cells = [[_cell(row.get(column)) for column in COLUMNS] for row in results]
    if options.markdown:
        print(f"{machine()}\n")
        for line in [COLUMNS, ["---"] * len(COLUMNS), *cells]:
            print(f"| {' | '.join(line)} |")
        return
    table = Table(*COLUMNS, title=f"Update of an RBM with {N_VISIBLE} × {N_HIDDEN} units")
    for line in cells:
        table.add_row(*line)
    Console().print(table)
    print(machine())


if __name__ == "__main__":
    main()

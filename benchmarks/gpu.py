"""Updates per second of a training on a GPU, beside a peer and beside the matrix products alone.

    make bench BENCH=gpu

Each row is one size of model and batch, in one precision, with random 0/1 rows that lie on the
device. One round runs all contestants of a row one after the other; a ratio is the median over
rounds of the ratio within a round.

- *updates/s*: our training loop as users run it, the updates replayed from a CUDA graph.
- *one by one*: the same updates, launched by the host.
- *roofline*: the matrix products of an update alone, in the precision of the row and in the form in
  which they are fastest, into buffers made beforehand. *Share* is their time over ours.
- *rbms*: the package's own update (``fit_batch_pcd`` and SGD) on the same device, in torch's
  default precision, on batches drawn as it draws them.

Without a GPU there is nothing to measure, and it says so; ``--device cpu`` runs a small case, for a
look at the script itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from freenergy.models import RBM
from freenergy.random import RandomStream
from freenergy.training import Trainer, TrainingOptions, as_rows, initialize
from freenergy.training.options import PRECISIONS
from freenergy.training.precision import products_in

Contestant = Callable[[], None]
METHODS: dict[str, dict[str, object]] = {
    "PCD-1": {"method": "pcd"},
    "EMF TAP2, 3 sweeps": {"method": "emf", "n_steps": 3},
}
COLUMNS = [
    "case",
    "units",
    "batch",
    "precision",
    "updates/s",
    "TFLOP/s",
    "roofline, updates/s",
    "share",
    "faster than one by one",
    "faster than rbms",
]


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    n_visible: int
    n_hidden: int
    batch: int
    precision: str

    @property
    def products(self) -> float:
        """Products of one batch with the weights that an update is worth."""
        # PCD-1: down, up for both phases, both phases' gradient. A TAP2 sweep: up and down with the
        # weights and with their squares; beside three of them the data's field, the gradient of
        # both phases, and its correction.
        return 5 if self.name == "PCD-1" else 16

    @property
    def operations(self) -> float:
        """Floating-point operations of the products of an update."""
        return self.products * 2 * self.batch * self.n_visible * self.n_hidden


def random_rows(case: Case, n_batches: int, device: torch.device) -> torch.Tensor:
    """Zeros and ones, a third of them ones."""
    generator = torch.Generator(device).manual_seed(0)
    shape = case.batch * n_batches, case.n_visible
    return (torch.rand(shape, generator=generator, device=device) < 0.3).float()


def make_trainer(case: Case, rows: torch.Tensor) -> Trainer:
    """A trainer at its start."""
    model = RBM(case.n_visible, case.n_hidden, device=rows.device)
    random = RandomStream(0, rows.device)
    initialize(model, as_rows(rows, rows), random)
    options = TrainingOptions(
        n_epochs=1, batch_size=case.batch, precision=case.precision, **METHODS[case.name]
    )
    return Trainer(model, options, random)


def freenergy_epoch(case: Case, rows: torch.Tensor) -> Contestant:
    """Our training loop over all rows."""
    data, trainer = as_rows(rows, rows), make_trainer(case, rows)

    def run() -> None:
        trainer.epoch = 0
        trainer.fit(data)

    return run


def one_by_one(case: Case, rows: torch.Tensor) -> Contestant:
    """The same updates, each launched by the host."""
    trainer = make_trainer(case, rows)

    def run() -> None:
        for batch in rows.split(case.batch):
            trainer.update(batch)

    return run


def products(case: Case, rows: torch.Tensor) -> Contestant:
    """The matrix products of as many updates."""
    n, dtype = case.batch, torch.bfloat16 if case.precision == "bf16" else torch.float32
    weight = torch.randn(case.n_visible, case.n_hidden, device=rows.device).mul_(0.05).to(dtype)
    visible = torch.rand(2 * n, case.n_visible, device=rows.device).round().to(dtype)
    hidden = torch.rand(2 * n, case.n_hidden, device=rows.device).round().to(dtype)
    down, up_both = torch.empty_like(visible[:n]), torch.empty_like(hidden)
    up, gradient = torch.empty_like(hidden[:n]), torch.empty_like(weight)

    def update() -> None:
        if case.name != "PCD-1":
            torch.mm(visible[:n], weight, out=up)
            for _ in range(6):
                torch.mm(visible[:n], weight, out=up)
                torch.mm(hidden[:n], weight.T, out=down)
            torch.mm(visible[:n].T, hidden[:n], out=gradient)
        else:
            torch.mm(hidden[:n], weight.T, out=down)
            torch.mm(visible, weight, out=up_both)
        torch.mm(visible.T, hidden, out=gradient)

    def run() -> None:
        with products_in("tf32" if case.precision == "tf32" else "float32"):
            for _ in range(len(rows) // n):
                update()

    return run


def rbms_epoch(case: Case, rows: torch.Tensor) -> Contestant | None:
    """One pass with the package rbms, or None where it is not installed."""
    try:
        from rbms.bernoulli_bernoulli.classes import BBRBM
        from rbms.training.pcd import fit_batch_pcd
    except ImportError:
        return None
    device = rows.device
    parameters = BBRBM(
        weight_matrix=torch.randn(case.n_visible, case.n_hidden, device=device) * 0.05,
        vbias=torch.zeros(case.n_visible, device=device),
        hbias=torch.zeros(case.n_hidden, device=device),
    )
    for tensor in parameters.parameters():
        tensor.grad = torch.zeros_like(tensor)
    optimizer = torch.optim.SGD(parameters.parameters(), lr=0.01, maximize=True)
    chains = parameters.init_chains(case.batch)
    weights = torch.ones(len(rows), device=device)

    def run() -> None:
        nonlocal chains
        with torch.no_grad():
            for _ in range(len(rows) // case.batch):
                index = torch.randperm(len(rows), device=device)[: case.batch]
                optimizer.zero_grad(set_to_none=False)
                chains, _logs = fit_batch_pcd(
                    (rows[index], weights[index]), chains, parameters, gibbs_steps=1, beta=1.0
                )
                optimizer.step()

    return run


def measure(contestants: dict[str, Contestant], device: torch.device, rounds: int) -> dict:
    """Seconds of each contestant in each round, after two that are not counted."""

    def seconds(run: Contestant) -> float:
        begin = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    times: dict[str, list[float]] = {name: [] for name in contestants}
    for i in range(2 + rounds):
        for name, run in contestants.items():
            found = seconds(run)
            if i >= 2:
                times[name].append(found)
    return times


def bench_case(case: Case, device: torch.device, n_batches: int, rounds: int) -> dict:
    """One row of the table."""
    rows = random_rows(case, n_batches, device)
    contestants = {
        "freenergy": freenergy_epoch(case, rows),
        "one by one": one_by_one(case, rows),
        "products": products(case, rows),
    }
    peer = rbms_epoch(case, rows) if case.name == "PCD-1" else None
    if peer is not None:
        contestants["rbms"] = peer
    times = measure(contestants, device, rounds)

    def ratio(above: str, below: str) -> float:
        return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))

    rate = n_batches / statistics.median(times["freenergy"])
    row: dict[str, object] = {
        "case": case.name,
        "units": f"{case.n_visible} × {case.n_hidden}",
        "batch": case.batch,
        "precision": case.precision,
        "updates/s": rate,
        "TFLOP/s": rate * case.operations / 1e12,
        "roofline, updates/s": n_batches / statistics.median(times["products"]),
        "share": ratio("products", "freenergy"),
        "faster than one by one": ratio("one by one", "freenergy"),
    }
    if peer is not None:
        row["faster than rbms"] = ratio("rbms", "freenergy")
    return row


def machine(device: torch.device) -> str:
    """What it ran on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return f"{name}, torch {torch.__version__}"


def show(rows: list[dict], device: torch.device, markdown: bool) -> None:
    """Print the table."""

    def cell(value: object) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str("–" if value is None else value)

    cells = [[cell(row.get(column)) for column in COLUMNS] for row in rows]
    if markdown:
        print(f"{machine(device)}\n")
        for line in [COLUMNS, ["---"] * len(COLUMNS), *cells]:
            print(f"| {' | '.join(line)} |")
        return
    table = Table(*COLUMNS, title="Updates of an RBM")
    for line in cells:
        table.add_row(*line)
    Console(width=130).print(table)
    print(machine(device))


def main() -> None:
    """Print the table; with --markdown as it stands in the documentation, with --json for tools."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--updates", type=int, default=50, help="updates in one measurement")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.device == "auto" and not torch.cuda.is_available():
        print("No GPU is at hand, so there is nothing to measure (--device cpu: a small case).")
        return
    device = torch.device("cuda" if options.device == "auto" else options.device)
    sizes, batches = ((784, 500), (4096, 4096)), (100, 500, 1000, 4096)
    if device.type != "cuda":
        sizes, batches = ((64, 32),), (20,)
    rows = [
        bench_case(Case(name, *size, batch, precision), device, options.updates, options.rounds)
        for size in sizes
        for batch in batches
        for name in METHODS
        for precision in options.precision
    ]
    if options.json:
        print(json.dumps({"machine": machine(device), "rows": rows}, indent=2))
    else:
        show(rows, device, options.markdown)


if __name__ == "__main__":
    main()

"""What products of fewer bits do to a trained model: its ln Z, and its likelihood.

    make bench BENCH=precision

Digits of 8 × 8 pixels, zeros and ones, are learned by 64 × 16 units, of which all states of the
hidden layer are summed: ln Z is exact. Each training is made in every precision from the same seed,
and differs from that in float32 by what rounding did. Beside it stands how far trainings of
different seeds lie apart. *Weights rounded* is the change of ln Z of one model, that trained in
float32, when its weights are rounded as they are for a product.

TF32 needs a GPU; its rounding to 10 bits of mantissa is done here before each product.
"""

from __future__ import annotations

import argparse
import copy
import statistics

import torch
from rich.console import Console
from rich.table import Table

from freenergy.data import load
from freenergy.inference import exact
from freenergy.models import RBM
from freenergy.random import RandomStream
from freenergy.training import Rows, Trainer, TrainingOptions, as_rows, initialize
from freenergy.training.options import PRECISIONS
from freenergy.training.precision import RoundedProducts, to_bfloat16

N_HIDDEN = 16
METHODS = {
    "PCD-1": {"method": "pcd", "learning_rate": 0.1},
    "EMF TAP2": {"method": "emf", "learning_rate": 0.02, "n_steps": 3},
}


def to_tf32(factor: torch.Tensor) -> torch.Tensor:
    """A single-precision factor with 10 bits of mantissa, to the nearest, ties away from zero."""
    bits = factor.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


ROUNDINGS = {"float32": torch.clone, "tf32": to_tf32, "bf16": to_bfloat16}


class RoundedTrainer(Trainer):
    """TF32 on the CPU; the trainer has the others itself."""

    def update(self, batch: torch.Tensor) -> None:
        """Follow the gradient of one batch."""
        with RoundedProducts(to_tf32):
            super().update(batch)


def trained(rows: Rows, precision: str, seed: int, epochs: int, options: dict) -> RBM:
    """A model of the digits."""
    model, random = RBM(rows.width, N_HIDDEN), RandomStream(seed)
    initialize(model, rows, random)
    given = TrainingOptions(n_epochs=epochs, batch_size=100, precision=precision, **options)
    kind = RoundedTrainer if precision == "tf32" else Trainer
    kind(model, given, random, order=RandomStream(seed + 1000)).fit(rows)
    return model


@torch.no_grad()
def log_partition_and_likelihood(model: RBM, data: torch.Tensor) -> tuple[float, float]:
    """Both exact, in double precision."""
    double = copy.deepcopy(model).double()
    log_z = exact(double).log_partition
    return log_z, -float(double.free_energy(data.double()).mean()) - log_z


@torch.no_grad()
def change_by_rounding(model: RBM, precision: str) -> float:
    """How far ln Z moves when the weights are rounded."""
    whole, rounded = copy.deepcopy(model).double(), copy.deepcopy(model).double()
    rounded.weight.copy_(ROUNDINGS[precision](model.weight.detach()))
    return exact(rounded).log_partition - exact(whole).log_partition


def mean_and_error(values: list[float]) -> str:
    """A mean with its standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):+.4f} ± {error:.4f}"


def main() -> None:
    """Print the table; with --markdown as it stands in the documentation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    data = torch.from_numpy(load("digits").x_train).gt(0.5).float()
    rows = as_rows(data, torch.empty(0))
    columns = [
        "training",
        "precision",
        "ln Z",
        "change of ln Z",
        "ln p",
        "change of ln p",
        "ln p among seeds",
        "ln Z, weights rounded",
    ]
    lines = []
    for name, options in METHODS.items():
        models = {
            precision: [
                trained(rows, precision, seed, arguments.epochs, options)
                for seed in range(arguments.seeds)
            ]
            for precision in PRECISIONS
        }
        found = {
            precision: [log_partition_and_likelihood(model, data) for model in trainings]
            for precision, trainings in models.items()
        }
        for precision, pairs in found.items():
            line = [name, precision]
            for i in (0, 1):
                values = [pair[i] for pair in pairs]
                changes = [v - pair[i] for v, pair in zip(values, found["float32"], strict=True)]
                line += [f"{statistics.mean(values):.2f}", mean_and_error(changes)]
            by_rounding = [change_by_rounding(model, precision) for model in models["float32"]]
            line += [f"± {statistics.stdev(pair[1] for pair in pairs):.3f}"]
            lines.append([*line, mean_and_error(by_rounding)])
    if arguments.markdown:
        for line in [columns, ["---"] * len(columns), *lines]:
            print(f"| {' | '.join(line)} |")
        return
    table = Table(*columns, title=f"{arguments.seeds} trainings of {arguments.epochs} epochs, nats")
    for line in lines:
        table.add_row(*line)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()

"""Do the stated intervals of ln Z cover the truth? Random small models, solved exactly.

The models have 6 to 14 visible and 3 to 10 hidden units of both types, couplings from weak to very
strong, and one in three is planted: a few patterns with deep valleys between them, where annealing
and simple chains fail. For each method: the share of models for which it is trusted, the share of
those whose interval covers the exact value, and the largest error among them.

    .venv/bin/python benchmarks/partition_coverage.py
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
import torch

from freenergy.inference import exact
from freenergy.inference.partition import log_partition
from freenergy.models import RBM

METHODS = ("tap", "ais", "reverse_ais", "bar", "ptt", "auto")


def random_model(seed: int) -> RBM:
    """A small model: its size, unit types, coupling and kind follow from the seed."""
    random = np.random.default_rng(seed)
    n_visible, n_hidden = int(random.integers(6, 15)), int(random.integers(3, 11))
    spin = seed % 2 == 1
    unit = "spin" if spin else "bernoulli"
    # The same numbers couple ±1 units four times as strongly as 0/1 units.
    scale = np.exp(random.uniform(np.log(0.05), np.log(4.0))) / (4.0 if spin else 1.0)
    weight = random.normal(size=(n_visible, n_hidden)) * scale
    if seed % 3 == 0:
        n_patterns = int(random.integers(1, 4))
        left = random.choice([-1.0, 1.0], (n_visible, n_patterns))
        right = random.choice([-1.0, 1.0], (n_patterns, n_hidden))
        weight = 0.1 * weight + scale * left @ right / np.sqrt(n_patterns)
    model = RBM(n_visible, n_hidden, visible=unit, hidden=unit, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(weight))
        model.visible_bias.copy_(torch.from_numpy(random.normal(0.0, 0.5, n_visible)))
        model.hidden_bias.copy_(torch.from_numpy(random.normal(0.0, 0.5, n_hidden)))
        if seed % 3 == 0 and not spin:
            # Symmetric valleys: the fields that make a 0/1 model one of ±1 units.
            model.visible_bias.sub_(model.weight.sum(1) / 2)
            model.hidden_bias.sub_(model.weight.sum(0) / 2)
    return model


def main() -> None:
    """Print one line for each method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="seed of the first model")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--show", action="store_true", help="print every trusted miss")
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = [random_model(options.first + i) for i in range(options.models)]
    truths = [exact(model).log_partition for model in models]
    for method in options.methods.split(","):
        begin = time.perf_counter()
        trusted = covered = 0
        worst = worst_untrusted = 0.0
        for seed, (model, truth) in enumerate(zip(models, truths, strict=True)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = log_partition(model, method, random=seed)
            error = abs(result.value - truth)
            if not result.trusted:
                worst_untrusted = max(worst_untrusted, error)
                continue
            trusted += 1
            inside = result.lower - 1e-9 <= truth <= result.upper + 1e-9
            covered += inside
            worst = max(worst, error)
            if options.show and not inside:
                norm = float(model.weight.norm())
                print(f"  seed {seed} truth {truth:.4f} {result} norm {norm:.2f}")
        share = 100 * covered / trusted if trusted else float("nan")
        print(
            f"{method:12s} trusted {trusted}/{options.models}, covered {share:.1f} % of these, "
            f"largest error trusted {worst:.3f} nats (not trusted {worst_untrusted:.3f}), "
            f"{(time.perf_counter() - begin) / options.models:.2f} s a model",
            flush=True,
        )


if __name__ == "__main__":
    main()

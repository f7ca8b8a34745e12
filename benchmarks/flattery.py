"""A model that flatters itself: PCD-1 at a large learning rate on MNIST, and what is said of it.

Trains 784 × 500 units on MNIST binarised above 0.5 in the way that gives fine-looking likelihoods,
and prints the naive estimate of the test likelihood (annealed importance sampling, 1000 steps), the
verdicts of freenergy, and the estimate by replica exchange. Run it with FREENERGY_DATA naming the
folder that holds mnist.npz, or let it be fetched:

    .venv/bin/python benchmarks/flattery.py
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

import freenergy as fe


def main() -> None:
    """Train, then print what each instrument says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time-budget", type=float, default=120.0)
    options = parser.parse_args()
    mnist = fe.data.load("mnist", binarize=0.5)
    assert mnist.x_test is not None
    rbm = fe.BernoulliRBM(
        500,
        learning_rate=options.learning_rate,
        batch_size=100,
        n_iter=options.epochs,
        random_state=options.seed,
    )
    begin = time.perf_counter()
    rbm.fit(mnist.x_train)
    print(f"training: {time.perf_counter() - begin:.0f} s", flush=True)
    rows = torch.from_numpy(mnist.x_train[:10_000])
    certificate = fe.inference.certify(
        rbm.model_, rows, chains=torch.from_numpy(np.asarray(rbm.h_samples_))
    )
    print(certificate, flush=True)
    for method, extra in (("ais", {"n_temperatures": 1000}), ("ptt", {})):
        found = fe.inference.log_partition(
            rbm.model_, method, data=rows, time_budget=options.time_budget, **extra
        )
        print(method, rbm.log_likelihood(mnist.x_test, log_partition=found), flush=True)
        known = found.diagnostics
        if method == "ais":
            print(
                f"  from below ln Z = {known['forward']:.1f} (spread of the log-weights "
                f"{np.std(known['forward_work']):.1f}), from above {known['backward']:.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

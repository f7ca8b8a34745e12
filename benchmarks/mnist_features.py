"""Features of RBMs on binarised MNIST, judged by logistic regression on top of them.

For each training method: the time of training, and the test accuracy of logistic regression on the
hidden activations (and on the raw pixels). Run it with FREENERGY_DATA naming the folder that holds
mnist.npz, or let it be fetched:

    .venv/bin/python benchmarks/mnist_features.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from sklearn.linear_model import LogisticRegression

import freenergy as fe

N_VALID = 10_000
SPARSE = {"sparsity_target": 0.15, "sparsity_cost": 0.5}
# Its states start at the data, which for features is better than states that persist.
MEAN_FIELD = {"method": "emf", "mean_field_order": 2, "n_steps": 3, "persistent": False}
METHODS: dict[str, dict[str, object]] = {
    "CD-1": {"method": "cd", "learning_rate": 0.1},
    "PCD-1": {"method": "pcd", "learning_rate": 0.1},
    "PCD-1, sparse": {"method": "pcd", "learning_rate": 0.1} | SPARSE,
    # A smaller step: mean field is only true while the couplings are weak.
    "EMF (TAP2)": MEAN_FIELD | {"learning_rate": 0.01},
    # Units that are seldom on fluctuate less, so that larger steps do no harm.
    "EMF (TAP2), sparse": MEAN_FIELD | {"learning_rate": 0.05} | SPARSE,
}


def accuracy(mnist: fe.data.Dataset, features: Callable[[np.ndarray], np.ndarray]) -> float:
    """Test accuracy of multinomial logistic regression on features of the rows."""
    classifier = LogisticRegression(C=0.3, max_iter=300)
    classifier.fit(features(mnist.x_train), mnist.y_train)
    return float(classifier.score(features(mnist.x_test), mnist.y_test))


def main() -> None:
    """Print one line for each method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--hidden", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="run the methods whose name contains this")
    parser.add_argument("--cost", type=float, help="weight of the penalty of the sparse ones")
    parser.add_argument(
        "--validate", action="store_true", help="judge by the last 10 000 training rows"
    )
    options = parser.parse_args()
    mnist = fe.data.load("mnist", binarize=0.5)
    if options.validate:
        x, y = mnist.x_train, mnist.y_train
        mnist = replace(mnist, x_train=x[:-N_VALID], y_train=y[:-N_VALID])
        mnist = replace(mnist, x_test=x[-N_VALID:], y_test=y[-N_VALID:])
    if not options.only:
        print(f"raw pixels         accuracy {100 * accuracy(mnist, np.asarray):.2f} %", flush=True)
    for name, parameters in METHODS.items():
        if options.only not in name:
            continue
        if options.cost is not None and "sparsity_cost" in parameters:
            parameters = parameters | {"sparsity_cost": options.cost}
        rbm = fe.BernoulliRBM(
            options.hidden,
            n_iter=options.epochs,
            batch_size=100,
            random_state=options.seed,
            **parameters,
        )
        begin = time.perf_counter()
        rbm.fit(mnist.x_train)
        seconds = time.perf_counter() - begin
        score = rbm.score_samples(mnist.x_test[:200], method="exact").mean()
        norm, active = np.linalg.norm(rbm.components_), rbm.transform(mnist.x_test).mean()
        print(
            f"{name:18s} accuracy {100 * accuracy(mnist, rbm.transform):.2f} %   "
            f"training {seconds:.0f} s   pseudo-likelihood {score:.1f} nats   "
            f"|W| {norm:.0f}   on {100 * active:.0f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()

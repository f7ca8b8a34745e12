"""Features of RBMs on binarised MNIST, judged by logistic regression on top of them.

For each training method: the time of training, and the test accuracy of logistic regression on the
hidden activations (and on the raw pixels). Run it with FREENERGY_DATA naming the folder that holds
mnist.npz, or let it be fetched:

    .venv/bin/python benchmarks/mnist_features.py
"""

from __future__ import annotations

import argparse
import time

from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import freenergy as fe

METHODS = {
    "CD-1": {"method": "cd"},
    "PCD-1": {"method": "pcd"},
    "EMF naive, 3 sweeps": {"method": "emf", "mean_field_order": 1, "n_steps": 3},
    "EMF TAP2, 3 sweeps": {"method": "emf", "mean_field_order": 2, "n_steps": 3},
    "EMF TAP3, 3 sweeps": {"method": "emf", "mean_field_order": 3, "n_steps": 3},
}


def accuracy(train, y_train, test, y_test) -> float:
    """Test accuracy of multinomial logistic regression on standardised features."""
    scaler = StandardScaler().fit(train)
    classifier = LogisticRegression(C=0.01, max_iter=200)
    classifier.fit(scaler.transform(train), y_train)
    return float(classifier.score(scaler.transform(test), y_test))


def main() -> None:
    """Print one line for each method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--hidden", type=int, default=500)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="run the methods whose name contains this")
    options = parser.parse_args()
    mnist = fe.data.load("mnist", binarize=0.5)
    pixels = (mnist.x_train, mnist.y_train, mnist.x_test, mnist.y_test)
    if not options.only:
        print(f"{'raw pixels':22s} accuracy {100 * accuracy(*pixels):.2f} %", flush=True)
    for name, parameters in METHODS.items():
        if options.only and options.only not in name:
            continue
        rbm = fe.BernoulliRBM(
            options.hidden,
            n_iter=options.epochs,
            batch_size=100,
            learning_rate=options.learning_rate,
            learning_rate_decay=options.decay,
            centered=True,
            random_state=options.seed,
            **parameters,
        )
        begin = time.perf_counter()
        rbm.fit(mnist.x_train)
        seconds = time.perf_counter() - begin
        features = rbm.transform(mnist.x_train), rbm.transform(mnist.x_test)
        score = accuracy(features[0], mnist.y_train, features[1], mnist.y_test)
        print(
            f"{name:22s} accuracy {100 * score:.2f} %   training {seconds:.0f} s   "
            f"exact pseudo-likelihood of 200 test rows "
            f"{rbm.score_samples(mnist.x_test[:200], method='exact').mean():.1f} nats",
            flush=True,
        )


if __name__ == "__main__":
    main()

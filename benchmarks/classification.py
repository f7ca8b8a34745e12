"""Classification of MNIST by discriminative RBMs and unrolled nets, on its own test set.

    .venv/bin/python benchmarks/classification.py
    .venv/bin/python benchmarks/classification.py --only discriminative
    .venv/bin/python benchmarks/classification.py --only labels --seeds 5

Every training uses all 60 000 rows (``labels``: all without their labels, and 1000 with), and is
judged on the test set after its last pass. Settings were chosen by 10 000 rows held out of the
training set; see docs/classification.md for what else was looked at. Times are of the whole ``fit``
on the threads that torch was given.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student_t
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

import freenergy as fe

N_LABELS = 1000

PRETRAINING: dict[str, Any] = {
    "n_components": 500,
    "learning_rate": 0.05,
    "schedule": "cosine",
    "batch_size": 100,
    "n_iter": 10,
    "momentum": 0.5,
    "l2": 1e-4,
    "centered": True,
}
BACKPROP: dict[str, Any] = {
    "depth": 2,
    "tied": False,
    "learning_rate": 0.001,
    "schedule": "cosine",
    "optimizer": "adamw",
    "l2": 0.03,
    "input_dropout": 0.2,
    "dropout": 0.2,
    "n_iter": 15,
}
CLASSIFICATION: dict[str, Any] = {
    "n_components": 500,
    "learning_rate": 0.01,
    "schedule": "cosine",
    "optimizer": "adamw",
    "l2": 0.03,
    "input_dropout": 0.2,
    "n_iter": 16,
}
HYBRID: dict[str, Any] = {
    "objective": "hybrid",
    "generative_weight": 0.01,
    "persistent": False,
    "n_components": 1000,
    "n_iter": 20,
}


def discriminative(seed: int) -> Any:
    return fe.RBMClassifier(**CLASSIFICATION, random_state=seed)


def hybrid(seed: int) -> Any:
    return fe.RBMClassifier(**CLASSIFICATION | HYBRID, random_state=seed)


def unrolled(seed: int) -> Any:
    return fe.UnrolledRBMClassifier(fe.BernoulliRBM(**PRETRAINING), **BACKPROP, random_state=seed)


MODELS: dict[str, Callable[[int], Any]] = {
    "discriminative": discriminative,
    "hybrid": hybrid,
    "unrolled": unrolled,
}


def scores(classifier: Any, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Error in per cent and cross-entropy in nats."""
    log_proba = classifier.predict_log_proba(x)
    labels = np.searchsorted(classifier.classes_, y)
    error = 100 * np.mean(log_proba.argmax(1) != labels)
    return float(error), float(-log_proba[np.arange(len(y)), labels].mean())


def whole_set(name: str, seeds: int, mnist: fe.data.Dataset) -> None:
    for seed in range(seeds):
        begin = time.perf_counter()
        classifier = MODELS[name](seed).fit(mnist.x_train, mnist.y_train)
        seconds = time.perf_counter() - begin
        error, cross_entropy = scores(classifier, mnist.x_test, mnist.y_test)
        print(
            f"{name:16} seed {seed}  error {error:.2f} %  cross-entropy {cross_entropy:.4f}  "
            f"{seconds / 60:.1f} min",
            flush=True,
        )


def few_labels(seeds: int, mnist: fe.data.Dataset) -> None:
    """The same net from a pretrained start and from random ones, on 1000 labels."""
    rbm = FrozenEstimator(fe.BernoulliRBM(**PRETRAINING, random_state=0).fit(mnist.x_train))
    settings = BACKPROP | {"n_iter": 48, "batch_size": 50}
    start = fe.BernoulliRBM(PRETRAINING["n_components"])
    nets = {
        "pretrained": fe.UnrolledRBMClassifier(rbm, **settings),
        "random": fe.UnrolledRBMClassifier(start, pretrain=False, **settings),
        "random, faster": fe.UnrolledRBMClassifier(
            start, pretrain=False, **settings | {"learning_rate": 0.003}
        ),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in nets}
    for seed in range(seeds):
        rows = np.random.default_rng(seed).permutation(len(mnist.x_train))[:N_LABELS]
        for name, net in nets.items():
            fitted = clone(net).set_params(random_state=seed)
            fitted.fit(mnist.x_train[rows], mnist.y_train[rows])
            error, cross_entropy = scores(fitted, mnist.x_test, mnist.y_test)
            found[name].append((error, cross_entropy))
            print(
                f"{name:16} seed {seed}  error {error:.2f} %  cross-entropy {cross_entropy:.4f}",
                flush=True,
            )
    best = np.array(found.pop("pretrained"))
    print(f"pretrained: error {best[:, 0].mean():.2f} %, cross-entropy {best[:, 1].mean():.4f}")
    for name, values in found.items():
        mean, gaps = np.mean(values, 0), np.array(values) - best
        width = student_t.ppf(0.975, seeds - 1) * gaps.std(0, ddof=1) / np.sqrt(seeds)
        print(
            f"{name}: error {mean[0]:.2f} %, cross-entropy {mean[1]:.4f}; more than pretrained by "
            f"{gaps[:, 0].mean():.2f} ± {width[0]:.2f} %, {gaps[:, 1].mean():.4f} ± {width[1]:.4f} "
            f"(95 %, {seeds} paired seeds)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=[*MODELS, "labels"])
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    mnist = fe.data.load("mnist")
    print(f"{torch.get_num_threads()} threads")
    for name in MODELS:
        if arguments.only in (None, name):
            whole_set(name, arguments.seeds, mnist)
    if arguments.only in (None, "labels"):
        few_labels(max(arguments.seeds, 3), mnist)


if __name__ == "__main__":
    main()

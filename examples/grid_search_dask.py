"""Grid searches over an RBM with a classifier behind it and over an MLP, on a Dask cluster.

    pip install "freenergy[dask]"
    python examples/grid_search_dask.py                       # a cluster on this machine
    python examples/grid_search_dask.py tcp://scheduler:8786  # one that is there already

The results are those of the same searches in this process, to the bit.
"""

from __future__ import annotations

import argparse
import time

import joblib
from distributed import Client, LocalCluster
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

import freenergy as fe


def searches() -> dict[str, GridSearchCV]:
    """What is searched, by name."""
    features = make_pipeline(
        fe.BernoulliRBM(32, n_iter=5, random_state=0), LogisticRegression(max_iter=300)
    )
    rbm_grid = {
        "bernoullirbm__method": ["pcd", "emf"],
        "bernoullirbm__learning_rate": [0.02, 0.1],
    }
    net = fe.MLPClassifier((32,), early_stopping=True, n_iter_no_change=3, random_state=0)
    net_grid = {"activation": ["relu", "selu"], "learning_rate_init": [0.01, 0.03]}
    return {
        "RBM and logistic regression": GridSearchCV(features, rbm_grid, cv=3),
        "MLP": GridSearchCV(net, net_grid, cv=3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scheduler", nargs="?", help="address of a Dask scheduler")
    address = parser.parse_args().scheduler
    # One thread for each worker: more fits at once gain more, and sums keep their bits.
    cluster = address or LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    digits = fe.data.load("digits", binarize=0.5)
    with Client(cluster), joblib.parallel_config("dask"):
        for name, search in searches().items():
            begin = time.perf_counter()
            search.fit(digits.x_train, digits.y_train)
            seconds = time.perf_counter() - begin
            score = search.score(digits.x_test, digits.y_test)
            print(f"{name}: {score:.3f} with {search.best_params_}, {seconds:.1f} s")


if __name__ == "__main__":
    main()

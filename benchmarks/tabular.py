"""Perceptrons, forests and boosting on the 50 sets of uci.npz, with equal search budgets.

    .venv/bin/python benchmarks/tabular.py --out runs/tabular
    .venv/bin/python benchmarks/tabular.py --out runs/tabular --jobs 8
    .venv/bin/python benchmarks/tabular.py --out runs/tabular --sets iris flags --budget 3
    .venv/bin/python benchmarks/tabular.py --out runs/again --seed 1
    .venv/bin/python benchmarks/tabular.py --out runs/tabular --report-only

FREENERGY_DATA names the folder of ``uci.npz``. Every set and method is a piece of its own, written
to a file when it is done: the same command goes on after Ctrl-C or a crash, smallest sets first.

A piece: as many configurations as ``--budget`` says learn from 75 % of the training rows and are
judged on the others, drawn in proportion to the classes and the same for all methods. The best
one learns again from all training rows, and the test rows of the set are looked at once. A net is
watched after each pass, and the number of passes is that of the highest average accuracy of
five passes in a row. Inputs have mean 0 and variance 1 on the rows that are learned from.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import sklearn.neural_network
import torch
from joblib import Parallel, delayed
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import freenergy as fe
import tabular_report as report
from freenergy.files import write_atomically
from freenergy.training import DivergenceError

# What a search draws from. A parameter takes the same values in the same order for every method
# that has it, and each of its values equally often, as far as the budget allows.
NET_SPACE: dict[str, tuple[Any, ...]] = {
    "depth": (2, 3, 4, 8, 16, 32),
    "width": (32, 64, 128),
    "learning_rate_init": (3e-4, 1e-3, 3e-3, 1e-2),
    "alpha": (1e-4, 1e-2, 1.0),
}
DROPOUT: dict[str, tuple[Any, ...]] = {"dropout": (0.0, 0.05, 0.2)}
SPACES: dict[str, dict[str, tuple[Any, ...]]] = {
    "self-normalising": NET_SPACE | DROPOUT,
    "batch norm": NET_SPACE | DROPOUT,
    "max-norm": NET_SPACE | DROPOUT | {"max_norm": (1.0, 1.5, 2.0, 3.0)},
    "plain": NET_SPACE | DROPOUT,
    "sklearn MLP": NET_SPACE,
    "random forest": {
        "max_features": ("sqrt", 0.3, 0.6, 1.0),
        "min_samples_leaf": (1, 2, 5),
        "max_depth": (None, 8),
        "criterion": ("gini", "entropy"),
    },
    "boosting": {
        "learning_rate": (0.03, 0.1, 0.3),
        "max_iter": (50, 100, 200),
        "max_leaf_nodes": (7, 15, 31),
        "min_samples_leaf": (5, 20),
        "l2_regularization": (0.0, 1.0),
    },
}
NETS: dict[str, dict[str, Any]] = {
    "self-normalising": {"activation": "selu", "normalization": "self"},
    "batch norm": {"normalization": "batch"},
    "max-norm": {"normalization": "max_norm"},
    "plain": {},
    "sklearn MLP": {},
}
N_TREES = 200
BUDGET = 6
VALIDATION_SHARE = 0.25
# Rows in a batch for training sets of up to so many rows; all nets of a set have the same.
BATCHES = ((1_000, 32), (10_000, 128), (1_000_000_000, 256))
# Passes over the data: about so many updates on all training rows, within these bounds.
N_UPDATES = 800
FEWEST_PASSES, MOST_PASSES = 10, 100
WINDOW = 5
# Training rows up to which sets are put together in a table.
SIZES = (300, 1000)


@dataclass(frozen=True)
class Task:
    """One method on one set: a piece of work with a file of its own."""

    name: str
    method: str
    budget: int
    seed: int = 0

    @property
    def draws(self) -> int:
        """Seed of the rows held out and of the models: the same for all methods of a set."""
        return (crc32(self.name.encode()) + 1000 * self.seed) % 2**31

    def settings(self, n_train: int) -> dict[str, Any]:
        """What the numbers of the piece depend on; a piece with other settings is done again."""
        values: dict[str, Any] = {
            "budget": self.budget,
            "seed": self.seed,
            "space": SPACES[self.method],
            "validation_share": VALIDATION_SHARE,
        }
        if self.method in NETS:
            batch, passes = batch_and_passes(n_train)
            values |= NETS[self.method] | {"batch": batch, "passes": passes, "window": WINDOW}
        if self.method == "random forest":
            values["n_trees"] = N_TREES
        # As a file gives them back.
        settings: dict[str, Any] = json.loads(json.dumps(values))
        return settings

    def path(self, out: Path) -> Path:
        return out / f"{self.name}--{self.method.replace(' ', '-')}.json"


@dataclass(frozen=True)
class Piece:
    """What came out of a task.

    Attributes
    ----------
    name, method : str
    settings : dict
        Of the task.
    n_train, n_test, n_columns, n_classes : int
    right : int
        Right answers on the test rows.
    best : int or None
        Place of the configuration that gave them; None where every one failed.
    records : list of dict
        Parameters, accuracy on the rows held out, passes, seconds and failure of each one.
    seconds : float
    versions : dict
    """

    name: str
    method: str
    settings: dict[str, Any]
    n_train: int
    n_test: int
    n_columns: int
    n_classes: int
    right: int
    best: int | None
    records: list[dict[str, Any]]
    seconds: float
    versions: dict[str, str]

    @property
    def accuracy(self) -> float:
        return self.right / self.n_test


class Diverged(Exception):
    """A net lost its weights: a result of its configuration, unlike any other error."""


class Stopped(BaseException):
    """Ctrl-C within a piece."""


class UnusablePiece(Exception):
    """A file that holds no result of this task; the message says why."""


@dataclass(frozen=True)
class Rows:
    """Inputs and classes of some rows."""

    x: np.ndarray
    y: np.ndarray


def data_file() -> Path:
    folder = os.environ.get("FREENERGY_DATA")
    if not folder or not (Path(folder) / "uci.npz").is_file():
        raise SystemExit("set FREENERGY_DATA to the folder that holds uci.npz")
    return Path(folder) / "uci.npz"


def sets_by_size(file: Path) -> list[str]:
    """Names of the sets, that of the fewest training rows first."""
    with np.load(file) as stored:
        names = {key.rsplit("/", 1)[0] for key in stored.files}
        return sorted(names, key=lambda name: (len(stored[f"{name}/train"]), name))


def read_set(file: Path, name: str) -> tuple[Rows, Rows]:
    """Training rows and test rows of a set."""
    with np.load(file) as stored:
        x, y = stored[f"{name}/X"], stored[f"{name}/y"]
        train, test = stored[f"{name}/train"], stored[f"{name}/test"]
    return Rows(x[train], y[train]), Rows(x[test], y[test])


def draw_configurations(task: Task) -> list[dict[str, Any]]:
    """Random configurations for a set, each value of a parameter equally often as far as it goes.

    The draws of a parameter depend on its name, the set and the seed alone, so that methods that
    share it try the same values.
    """
    columns = {}
    for parameter, values in SPACES[task.method].items():
        names = [crc32(name.encode()) for name in (task.name, parameter)]
        random = np.random.default_rng([*names, task.seed])
        rounds = -(-task.budget // len(values))
        order = np.concatenate([random.permutation(len(values)) for _ in range(rounds)])
        columns[parameter] = [values[k] for k in order[: task.budget]]
    return [{p: column[k] for p, column in columns.items()} for k in range(task.budget)]


def batch_and_passes(n_train: int) -> tuple[int, int]:
    """Rows in a batch, and passes over the data at most, for a set of so many training rows."""
    batch = next(size for limit, size in BATCHES if n_train <= limit)
    passes = round(N_UPDATES * batch / n_train)
    return batch, min(max(passes, FEWEST_PASSES), MOST_PASSES)


def make_net(method: str, chosen: dict[str, Any], seed: int, batch: int, passes: int) -> Any:
    parameters = {name: value for name, value in chosen.items() if name not in ("depth", "width")}
    parameters |= NETS[method]
    parameters |= {
        "hidden_layer_sizes": (chosen["width"],) * chosen["depth"],
        "batch_size": batch,
        "max_iter": passes,
        "n_iter_no_change": float("inf"),
    }
    if method == "sklearn MLP":
        # With a bare seed its partial_fit would take the rows in the same order in each pass.
        state = np.random.RandomState(seed)
        return sklearn.neural_network.MLPClassifier(**parameters, random_state=state)
    return fe.MLPClassifier(**parameters, random_state=seed)


def make_trees(method: str, chosen: dict[str, Any], seed: int) -> Any:
    if method == "random forest":
        return RandomForestClassifier(N_TREES, **chosen, random_state=seed)
    return HistGradientBoostingClassifier(**chosen, early_stopping=False, random_state=seed)


def standardized(learned: Rows, judged: Rows) -> tuple[Rows, Rows]:
    """Both with the means and variances of the rows that are learned from."""
    scaler = StandardScaler().fit(learned.x)
    return (
        Rows(scaler.transform(learned.x), learned.y),
        Rows(scaler.transform(judged.x), judged.y),
    )


@contextmanager
def naming_divergence() -> Iterator[None]:
    """What two libraries raise for weights that are not finite, as one exception."""
    try:
        yield
    except DivergenceError as error:
        raise Diverged(str(error)) from error
    except ValueError as error:
        if "non-finite" not in str(error):
            raise
        raise Diverged(str(error)) from error


def best_pass(curve: Sequence[float]) -> tuple[int, float]:
    """The pass in the middle of the best window of a learning curve, from 1, and the mean there."""
    width = min(WINDOW, len(curve))
    smooth = np.convolve(curve, np.full(width, 1 / width), mode="valid")
    # Rounding of the sum must not decide between windows that are equal.
    best = int(np.argmax(smooth.round(12)))
    return best + width // 2 + 1, float(smooth[best])


def learning_curve(net: Any, learned: Rows, watched: Rows, passes: int) -> list[float]:
    """Accuracy on the rows held out after each pass."""
    classes, curve = np.unique(learned.y), []
    if not isinstance(net, fe.MLPClassifier):
        for _ in range(passes):
            net.partial_fit(learned.x, learned.y, classes=classes)
            curve.append(net.score(watched.x, watched.y))
        return curve
    inputs = torch.from_numpy(watched.x)

    @torch.no_grad()
    def watch(trainer: Any) -> None:
        outputs = trainer.model(inputs)
        found = outputs.argmax(1) if len(classes) > 2 else (outputs[:, 0] > 0).int()
        curve.append(float((classes[found.numpy()] == watched.y).mean()))

    net.set_params(callback=watch).fit(learned.x, learned.y)
    return curve


def judge(task: Task, chosen: dict[str, Any], seed: int, learned: Rows, watched: Rows) -> Any:
    """Accuracy on the rows held out and, for a net, the number of passes that gave it."""
    n_train = len(learned.y) + len(watched.y)
    learned, watched = standardized(learned, watched)
    if task.method not in NETS:
        trees = make_trees(task.method, chosen, seed).fit(learned.x, learned.y)
        return float(trees.score(watched.x, watched.y)), None
    batch, passes = batch_and_passes(n_train)
    net = make_net(task.method, chosen, seed, min(batch, len(learned.y)), passes)
    passes, score = best_pass(learning_curve(net, learned, watched, passes))
    return score, passes


def search(task: Task, train: Rows) -> list[dict[str, Any]]:
    """A record of each configuration; one that fails scores −1, and the reason stands beside it."""
    kept, held = train_test_split(
        np.arange(len(train.y)),
        test_size=VALIDATION_SHARE,
        stratify=train.y,
        random_state=task.draws,
    )
    learned, watched = Rows(train.x[kept], train.y[kept]), Rows(train.x[held], train.y[held])
    records = []
    for k, chosen in enumerate(draw_configurations(task)):
        begin = time.perf_counter()
        record: dict[str, Any] = {"parameters": chosen, "passes": None, "failure": None}
        try:
            with naming_divergence():
                record["score"], record["passes"] = judge(
                    task, chosen, task.draws + k, learned, watched
                )
        except Diverged as error:
            record["score"], record["failure"] = -1.0, str(error)
        record["seconds"] = round(time.perf_counter() - begin, 3)
        records.append(record)
    return records


def count_right(task: Task, records: list[dict[str, Any]], train: Rows, test: Rows) -> Any:
    """Right answers on the test rows of the best configuration that learns from all rows.

    Where the best one fails on all rows the next one follows; where all fail, the most frequent
    class answers, and the configuration is None.
    """
    learned, asked = standardized(train, test)
    batch, _ = batch_and_passes(len(train.y))
    for k in sorted(range(len(records)), key=lambda k: -records[k]["score"]):
        chosen, passes = records[k]["parameters"], records[k]["passes"]
        if records[k]["failure"] is not None:
            continue
        try:
            if task.method in NETS:
                size = min(batch, len(train.y))
                model = make_net(task.method, chosen, task.draws + k, size, passes)
            else:
                model = make_trees(task.method, chosen, task.draws + k)
            with naming_divergence():
                answers = model.fit(learned.x, learned.y).predict(asked.x)
            return k, int((answers == asked.y).sum())
        except Diverged as error:
            records[k]["failure"] = f"on all training rows: {error}"
    frequent = Counter(train.y.tolist()).most_common(1)[0][0]
    return None, int((test.y == frequent).sum())


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Ctrl-C as an exception of its own.

    A ``fit`` takes a KeyboardInterrupt for the wish to keep what it has learned by then, and a net
    cut short would pass for a trained one.
    """

    def stop(number: int, frame: Any) -> None:
        raise Stopped

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def work(task: Task, file: Path, out: Path) -> Piece:
    """Do one piece and write it."""
    begin = time.perf_counter()
    torch.set_num_threads(1)
    train, test = read_set(file, task.name)
    with stopping_at_once(), threadpool_limits(1), warnings.catch_warnings():
        # Nets that use up their passes, which here is as meant.
        warnings.simplefilter("ignore")
        records = search(task, train)
        best, right = count_right(task, records, train, test)
    piece = Piece(
        task.name,
        task.method,
        task.settings(len(train.y)),
        n_train=len(train.y),
        n_test=len(test.y),
        n_columns=train.x.shape[1],
        n_classes=len(np.unique(train.y)),
        right=right,
        best=best,
        records=records,
        seconds=round(time.perf_counter() - begin, 3),
        versions={p: version(p) for p in ("freenergy", "scikit-learn", "torch")},
    )
    write_atomically(task.path(out), json.dumps(asdict(piece), indent=1))
    return piece


def read_piece(task: Task, out: Path) -> Piece:
    """The result of a task that was done before.

    Raises
    ------
    FileNotFoundError
        When it was not.
    UnusablePiece
        When its file is damaged, or of other settings.
    """
    try:
        piece = Piece(**json.loads(task.path(out).read_text()))
        sound = (piece.name, piece.method) == (task.name, task.method)
        sound = sound and 0 <= piece.right <= piece.n_test
        sound = sound and len(piece.records) == piece.settings["budget"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnusablePiece(f"damaged ({type(error).__name__}: {error})") from error
    if not sound:
        raise UnusablePiece("damaged (its numbers do not fit together)")
    if piece.settings != task.settings(piece.n_train):
        raise UnusablePiece("of other settings")
    return piece


def sort_out(tasks: Sequence[Task], out: Path) -> tuple[dict[Task, Piece], list[Task]]:
    """Results that there are, and tasks to do; files that cannot be used are named."""
    done, todo = {}, []
    for task in tasks:
        try:
            done[task] = read_piece(task, out)
        except FileNotFoundError:
            todo.append(task)
        except UnusablePiece as error:
            print(f"{task.path(out)} is {error}: to be done again", file=sys.stderr)
            todo.append(task)
    return done, todo


def describe(piece: Piece) -> str:
    chosen = "no configuration worked"
    if piece.best is not None:
        record = piece.records[piece.best]
        chosen = ", ".join(f"{name} {value}" for name, value in record["parameters"].items())
        chosen += f", {record['passes']} passes" if record["passes"] else ""
    failed = sum(record["failure"] is not None for record in piece.records)
    note = f"; {failed} failed" if failed else ""
    return (
        f"{piece.name}, {piece.method}: {100 * piece.accuracy:.1f} % "
        f"in {piece.seconds:.1f} s ({chosen}{note})"
    )


def do_all(todo: Sequence[Task], file: Path, out: Path, jobs: int) -> Iterable[Piece]:
    """Pieces as they get done."""
    parallel = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)
    return parallel(delayed(work)(task, file, out) for task in todo)


def held_out_table(pieces: Sequence[Piece], parameter: str, depths: Sequence[int]) -> str:
    """Mean accuracy on the rows held out, over the search, of nets of these depths."""
    scores: dict[tuple[str, Any], list[float]] = {}
    for piece in pieces:
        for record in piece.records if piece.method in NETS else ():
            drawn = record["parameters"]
            if parameter in drawn and drawn["depth"] in depths:
                key = piece.method, drawn[parameter]
                scores.setdefault(key, []).append(max(record["score"], 0.0))
    methods = [name for name in NETS if any(method == name for method, _ in scores)]
    values = sorted({value for _, value in scores})
    rows = [
        [name, *[f"{100 * np.mean(scores.get((name, value), np.nan)):.1f}" for value in values]]
        for name in methods
    ]
    return report.markdown([parameter, *map(str, values)], rows)


def choice_table(pieces: Sequence[Piece], methods: Sequence[str]) -> str:
    """What the searches chose, what failed, and the cost."""
    rows = []
    for method in methods:
        own = [piece for piece in pieces if piece.method == method]
        failed = sum(r["failure"] is not None for piece in own for r in piece.records)
        minutes = sum(piece.seconds for piece in own) / 60
        deep, late = "–", "–"
        if method in NETS:
            chosen = [(p.settings, p.records[p.best]) for p in own if p.best is not None]
            deep = str(sum(record["parameters"]["depth"] > 8 for _, record in chosen))
            late = str(sum(r["passes"] > 0.9 * settings["passes"] for settings, r in chosen))
        rows.append([method, deep, late, str(failed), f"{minutes:.1f}"])
    head = ["method", "chosen: over 8 layers", "chosen: last tenth of the passes"]
    return report.markdown([*head, "failed configurations", "minutes"], rows)


def write_report(done: dict[Task, Piece], names: Sequence[str], methods: Sequence[str]) -> str:
    """Tables and tests, of the sets that all methods have finished."""
    found = {(task.name, task.method): piece for task, piece in done.items()}
    complete = [name for name in names if all((name, method) in found for method in methods)]
    head = f"{len(complete)} of {len(names)} sets are complete."
    if not complete:
        return head
    pieces = [[found[name, method] for method in methods] for name in complete]
    accuracies = np.array([[p.accuracy for p in row] for row in pieces])
    sizes = [
        f"{row[0].n_train} + {row[0].n_test}, {row[0].n_columns}, {row[0].n_classes}"
        for row in pieces
    ]
    parts = [head, report.rank_table(methods, accuracies)]
    if len(methods) > 1:
        comparisons = report.compare_all(methods, accuracies)
        parts += [
            report.in_words(methods, accuracies),
            report.win_table(methods, comparisons),
            report.p_value_table(comparisons),
        ]
    parts.append(report.accuracy_table(complete, sizes, methods, accuracies))
    flat = [piece for row in pieces for piece in row]
    n_train = np.array([row[0].n_train for row in pieces])
    parts += ["By training rows:", report.size_table(methods, accuracies, n_train, SIZES)]
    if any(method in NETS for method in methods):
        depths = SPACES["plain"]["depth"]
        parts += ["Accuracy on the rows held out:", held_out_table(flat, "depth", depths)]
        parts += [f"Of {depths[-1]} layers:", held_out_table(flat, "dropout", depths[-1:])]
    parts.append(choice_table(flat, methods))
    return "\n\n".join(parts)


def read_arguments(file: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the pieces")
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--sets", nargs="+", choices=sets_by_size(file), metavar="SET")
    parser.add_argument("--methods", nargs="+", choices=list(SPACES), metavar="METHOD")
    parser.add_argument("--budget", type=int, default=BUDGET, help="configurations of each search")
    parser.add_argument("--seed", type=int, default=0, help="of the search and of the models")
    parser.add_argument("--report-only", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    if arguments.budget < 1:
        parser.error(f"--budget must be at least 1, got {arguments.budget}")
    if arguments.seed < 0:
        parser.error(f"--seed must not be negative, got {arguments.seed}")
    return arguments


def main() -> int:
    file = data_file()
    arguments = read_arguments(file)
    out = arguments.out
    names = [n for n in sets_by_size(file) if n in (arguments.sets or [n])]
    methods = [m for m in SPACES if m in (arguments.methods or [m])]
    budget, seed = arguments.budget, arguments.seed
    tasks = [Task(name, method, budget, seed) for name in names for method in methods]
    done, todo = sort_out(tasks, out)
    status = 0
    if todo and not arguments.report_only:
        print(f"{len(done)} of {len(tasks)} pieces are there", flush=True)
        begin = time.perf_counter()
        try:
            for piece in do_all(todo, file, out, arguments.jobs):
                done[Task(piece.name, piece.method, budget, seed)] = piece
                minutes = (time.perf_counter() - begin) / 60
                count = f"[{len(done)}/{len(tasks)}, {minutes:.1f} min]"
                print(f"{count} {describe(piece)}", flush=True)
        except (KeyboardInterrupt, Stopped):
            print("stopped; the same command goes on from here", file=sys.stderr)
            status = 130
    text = write_report(done, names, methods)
    if not arguments.report_only:
        write_atomically(out / "report.md", text + "\n")
    print(text)
    return status


if __name__ == "__main__":
    sys.exit(main())

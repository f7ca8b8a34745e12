"""How good a fitted estimator is on rows that it has not seen, with intervals."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from freenergy.files import as_json
from freenergy.studies.estimator_models import Model
from freenergy.training import RunError

__all__ = ["Score", "Scores", "quick_scores", "score"]

Vector = NDArray[np.float64]

_CONFIDENCE = 0.95
_NORMAL = 1.96
_REPLICAS = 1000
_MOST_CLASSES = 50
_WATCHED_ROWS = 1000
_LIKELIHOOD_ROWS = 1000
_BOUND_DRAWS = 10


@dataclass(frozen=True)
class Score:
    """One number with its interval.

    Attributes
    ----------
    name : str
    value : float
    lower, upper : float
        Ends of the 95 % interval; NaN where there is none.
    unit : str
    how : str
        What the interval is of.
    trusted : bool
        Whether the interval can be believed.
    rows : int or None
        Number of the rows that it is of, where that is not all of them.

    Examples
    --------
    >>> Score("accuracy", 0.9, 0.8, 0.96)
    Score(accuracy = 0.9, 0.8 … 0.96)
    """

    name: str
    value: float
    lower: float = math.nan
    upper: float = math.nan
    unit: str = ""
    how: str = ""
    trusted: bool = True
    rows: int | None = None

    @property
    def words(self) -> str:
        """The number and its interval."""
        text = f"{self.value:.4g}{f' {self.unit}' if self.unit else ''}"
        if math.isfinite(self.lower) and math.isfinite(self.upper):
            text += f" ({self.lower:.4g} … {self.upper:.4g})"
        return text if self.trusted else f"{text}, not to be trusted"

    def __repr__(self) -> str:
        return f"Score({self.name} = {self.value:.4g}, {self.lower:.4g} … {self.upper:.4g})"


@dataclass(frozen=True)
class Scores:
    """What rows that were held out say of a model.

    Attributes
    ----------
    data : str
        Name of the rows.
    rows : int
        Number of them.
    scores : tuple of Score
        The most telling one first.
    classes : tuple of str
        Of a classifier; those of the matrix.
    confusion : tuple of tuple of int
        Rows of each class (down) by the class that was predicted (across); empty where there are
        too many classes, or no single one for a row.
    remarks : tuple of str
        What is to be known beside the numbers.
    """

    data: str
    rows: int
    scores: tuple[Score, ...]
    classes: tuple[str, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    remarks: tuple[str, ...] = field(default=())

    @property
    def words(self) -> str:
        """The most telling number, in words."""
        first = self.scores[0]
        return f"Held-out {first.name} {first.words}, of {first.rows or self.rows} rows."

    @property
    def recalls(self) -> tuple[Score, ...]:
        """Share of each class's rows that are predicted, where there are any."""
        found = []
        for name, counts, place in zip(self.classes, self.confusion, range(10**9), strict=False):
            if sum(counts):
                found.append(_share(name, counts[place], sum(counts)))
        return tuple(found)

    def to_json(self) -> str:
        """The scores as indented JSON; what is not finite becomes null."""
        return json.dumps(as_json(dataclasses.asdict(self)), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What :meth:`to_json` gave.

        Raises
        ------
        RunError
            When the text is no such thing.
        """
        try:
            values = json.loads(text)
            return cls(
                values["data"],
                values["rows"],
                tuple(_read_score(score) for score in values["scores"]),
                tuple(values["classes"]),
                tuple(tuple(row) for row in values["confusion"]),
                tuple(values["remarks"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"it holds no scores ({error})") from error


def _read_score(values: dict[str, Any]) -> Score:
    """A score whose numbers were written as null where they are not finite."""
    numbers = {name: math.nan for name in ("value", "lower", "upper") if values[name] is None}
    return Score(**(values | numbers))


def score(
    model: Model,
    estimator: Any,
    name: str,
    x: Any,
    y: np.ndarray | None,
    *,
    n_draws: int = 100,
    seed: int = 0,
) -> Scores:
    """Judge a fitted estimator by rows.

    Parameters
    ----------
    model : Model
    estimator : TorchEstimator
        Fitted.
    name : str
        Of the rows.
    x : array or dataframe of shape (n, n_features)
    y : ndarray of shape (n,) or (n, n_outputs), or None
        Their labels, where the model learns from any.
    n_draws : int, default=100
        Of latent states, for each row whose likelihood is estimated.
    seed : int, default=0
        Of the draws that an interval or a likelihood takes.

    Returns
    -------
    Scores
        Accuracies have Wilson's interval, the log loss and the free energy the normal one of a
        mean, coefficients of determination and errors that of a bootstrap over rows. The
        likelihood of an autoencoder has the interval of its draws.

    Raises
    ------
    ValueError
        When the rows are not such as the model takes.
    """
    if model.learns == "rows":
        return _of_density(estimator, name, x, n_draws, seed)
    assert y is not None
    if model.learns == "numbers":
        return _of_numbers(estimator, name, x, y, seed)
    return _of_classes(estimator, name, x, y)


def quick_scores(model: Model, x: Any, y: np.ndarray | None) -> Callable[[Any], dict[str, float]]:
    """A few numbers of an estimator that is still trained, for its learning curve.

    Parameters
    ----------
    model : Model
    x, y
        As in :func:`score`; up to 1000 evenly spaced rows are read.

    Returns
    -------
    callable
        From the estimator to numbers by name; to none where no row has a label.
    """
    places = _spaced(len(x), _WATCHED_ROWS)
    some = x.iloc[places] if hasattr(x, "iloc") else x[places]
    labels = None if y is None else y[places]

    def measure(estimator: Any) -> dict[str, float]:
        if model.learns == "rows":
            values = estimator.free_energy(some, n_draws=_BOUND_DRAWS)
            return {"free_energy_test": float(values.mean(dtype=np.float64))}
        assert labels is not None
        if model.learns == "numbers":
            return {"r2_test": float(estimator.score(some, labels))}
        rows, targets = _with_labels(estimator, some, labels)
        if not len(targets):
            return {}
        found = {"accuracy_test": float(estimator.score(rows, targets))}
        if targets.ndim == 1:
            losses = _losses(estimator, rows, targets)
            found |= {"loss_test": float(losses.mean())} if len(losses) else {}
        return found

    return measure


# ---- classes -------------------------------------------------------------------------------------


def _of_classes(estimator: Any, name: str, x: Any, y: np.ndarray) -> Scores:
    x, y = _with_labels(estimator, x, y)
    if not len(y):
        raise ValueError(f"no row has a label in {name}: nothing tells how good the model is")
    predicted = estimator.predict(x)
    if y.ndim == 2:
        hits = (predicted == y).all(axis=1)
        exact = _share("accuracy of all labels of a row", int(hits.sum()), len(y))
        each = (predicted == y).mean(axis=0)
        single = [
            _share(f"accuracy of label {i}", round(s * len(y)), len(y)) for i, s in enumerate(each)
        ]
        return Scores(name, len(y), (exact, *single))
    classes = estimator.classes_
    hits = predicted == y
    losses = _losses(estimator, x, y)
    found = [_share("accuracy", int(hits.sum()), len(y))]
    if len(losses):
        found.append(_mean("log loss", losses, "nats"))
    unknown = sorted(map(str, set(y.tolist()) - set(classes.tolist())))
    remarks = []
    if unknown:
        remarks.append(
            f"Labels that the model has not learned count as errors: {', '.join(unknown[:6])}."
        )
    confusion = _confusion(classes, y, predicted) if len(classes) <= _MOST_CLASSES else ()
    names = tuple(str(label) for label in classes.tolist())
    return Scores(name, len(y), tuple(found), names, confusion, tuple(remarks))


def _with_labels(estimator: Any, x: Any, y: np.ndarray) -> tuple[Any, np.ndarray]:
    """The rows that have a label, where a mark stands for none."""
    mark = getattr(estimator, "unlabeled", None)
    if mark == "auto":
        mark = None if -1 in estimator.classes_.tolist() else -1
    if mark is None or y.ndim == 2:
        return x, y
    labelled = np.array([label != mark for label in y.tolist()], dtype=bool)
    return x[labelled], y[labelled]


def _losses(estimator: Any, x: Any, y: np.ndarray) -> Vector:
    """−ln p(y|x) of the rows whose class the model knows."""
    known = {label: place for place, label in enumerate(estimator.classes_.tolist())}
    places = np.array([known.get(label, -1) for label in y.tolist()])
    log_p = np.asarray(estimator.predict_log_proba(x), dtype=np.float64)
    rows = np.flatnonzero(places >= 0)
    return np.asarray(-log_p[rows, places[rows]])


def _confusion(
    classes: np.ndarray, y: np.ndarray, predicted: np.ndarray
) -> tuple[tuple[int, ...], ...]:
    place = {label: number for number, label in enumerate(classes.tolist())}
    counts = np.zeros((len(classes), len(classes)), dtype=int)
    for true, found in zip(y.tolist(), predicted.tolist(), strict=True):
        if true in place:
            counts[place[true], place[found]] += 1
    return tuple(tuple(row) for row in counts.tolist())


# ---- numbers and densities -----------------------------------------------------------------------


def _of_numbers(estimator: Any, name: str, x: Any, y: np.ndarray, seed: int) -> Scores:
    truth = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
    predicted = np.asarray(estimator.predict(x), dtype=np.float64).reshape(truth.shape)
    squares = (predicted - truth) ** 2
    random, r2, rmse = np.random.default_rng(seed), [], []
    for _ in range(_REPLICAS):
        # One by one: those of all replicas would take a thousand times the memory.
        places = random.integers(0, len(y), len(y))
        r2.append(_determination(squares[places], truth[places]))
        rmse.append(math.sqrt(squares[places].mean()))
    how, fit = "bootstrap over rows", _determination(squares, truth)
    remarks: tuple[str, ...] = ()
    if fit < 0:
        remarks = (
            "The mean of the labels predicts them better than the model: train for more epochs, or "
            "standardise columns and labels.",
        )
    return Scores(
        name,
        len(y),
        (
            Score("R²", fit, *_middle(r2), how=how),
            Score("root mean squared error", math.sqrt(squares.mean()), *_middle(rmse), how=how),
        ),
        remarks=remarks,
    )


def _determination(squares: np.ndarray, truth: np.ndarray) -> float:
    """Mean over the outputs, as the estimator's own score; NaN where an output is constant."""
    spread = ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
    if not spread.all():
        return math.nan
    return float((1.0 - squares.sum(axis=0) / spread).mean())


def _of_density(estimator: Any, name: str, x: Any, n_draws: int, seed: int) -> Scores:
    bounds = estimator.free_energy(x, n_draws=_BOUND_DRAWS, random_state=seed)
    bound = _mean("free energy", bounds, "nats")
    places = _spaced(len(x), _LIKELIHOOD_ROWS)
    some = x.iloc[places] if hasattr(x, "iloc") else x[places]
    try:
        found = estimator.log_likelihood(some, n_draws=n_draws, random_state=seed)
    except ValueError as error:
        # Grey values have no probability under units of 0 and 1; the free energy they have.
        return Scores(name, len(x), (bound,), remarks=(f"No likelihood is given: {error}.",))
    words = [f"The likelihood is that of {len(some)} rows, with {found.n_draws} draws for each."]
    words += [f"It is not to be trusted: {reason}." for reason in found.reasons]
    likelihood = Score(
        "log-likelihood",
        found.mean,
        found.lower,
        found.upper,
        "nats",
        "draws of latent states",
        found.trusted,
        len(some),
    )
    return Scores(name, len(x), (likelihood, bound), remarks=tuple(words))


# ---- intervals -----------------------------------------------------------------------------------


def _share(name: str, hits: int, n: int) -> Score:
    interval = binomtest(hits, n).proportion_ci(_CONFIDENCE, method="wilson")
    return Score(name, hits / n, float(interval.low), float(interval.high), how="Wilson")


def _mean(name: str, values: np.ndarray, unit: str) -> Score:
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    error = _NORMAL * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    if len(values) < 2:
        return Score(name, mean, unit=unit)
    return Score(name, mean, mean - error, mean + error, unit, "mean over rows")


def _middle(values: list[float]) -> tuple[float, float]:
    """The middle 95 % of the replicas that have a value."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return math.nan, math.nan
    tail = 50.0 * (1.0 - _CONFIDENCE)
    lower, upper = np.percentile(finite, [tail, 100.0 - tail])
    return float(lower), float(upper)


def _spaced(n: int, k: int) -> np.ndarray:
    """At most ``k`` places of ``n``, evenly spaced."""
    return np.unique(np.linspace(0, n - 1, min(n, k)).astype(int))

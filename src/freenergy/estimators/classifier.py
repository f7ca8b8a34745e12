"""What the classifiers share: classes, labels that are missing, weights, and early stopping."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted
from torch import Tensor

from freenergy.data import DataStream, as_stream
from freenergy.estimators.checkpoints import FitCheckpoint
from freenergy.estimators.classes import StoredClasses, label_column
from freenergy.estimators.scoring import rows_and_targets
from freenergy.estimators.validation import unchanged_on_error
from freenergy.training.options import check_not_negative, check_whole
from freenergy.training.rows import LabelledBatch, LabelledRows, StreamedRows, label_counts
from freenergy.training.stopping import EarlyStopping
from freenergy.training.trainer import DivergenceError, Trainer

__all__ = ["ProbabilisticClassifier"]

_WATCHED_ROWS = 1000
_MOST_HELD_OUT = 10_000
_AUTO = "auto"


class ProbabilisticClassifier(ClassifierMixin, StoredClasses):
    """Base of the classifiers: a subclass gives logarithms of probabilities, and starts a trainer.

    Its parameters include ``class_weight``, ``early_stopping``, ``validation_fraction``,
    ``n_iter_no_change``, ``tol``, ``verbose``, ``unlabeled`` and ``callback``.
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Train a new model on rows and their labels.

        Ctrl-C ends training with a warning and the model of the last complete pass.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe, stream} of shape (n_samples, n_features)
            A :func:`freenergy.data.stream`, and whatever it takes, is read while it is learned
            from. Of a stream at most 10 000 rows are held out.
        y : array-like of shape (n_samples,)
            Classes; rows with the label ``unlabeled`` have none. A stream may have its own.
        sample_weight : array-like of shape (n_samples,), default=None
            Not negative. A row with a weight of 2 counts as that row twice, one with 0 as none.
            Only ratios matter: with those of ``class_weight`` the weights are brought to a mean
            of one, and a batch follows the mean of its rows' gradients times their weights.

        Returns
        -------
        estimator
            The fitted estimator itself.

        Raises
        ------
        ValueError
            When ``X`` is empty or has NaN, infinities or values that the model cannot take (the
            column is named), when there are fewer than two classes, or a parameter is impossible.
            A fitted estimator then stays as it was, and so it does when ``callback`` fails.
        DivergenceError
            When the parameters became infinite, NaN or absurdly large. The estimator then holds
            the model of the last good pass.
        """
        diverged: DivergenceError | None = None
        with unchanged_on_error(self):
            self._options()
            stream = as_stream(X)
            if stream is None:
                rows, dtype = self._rows_of_arrays(X, y, sample_weight)
            else:
                rows, dtype = self._rows_of_stream(stream, y, sample_weight)
            checkpoint = self._checkpoint(rows)
            held_out: LabelledRows | StreamedRows | None = None
            if self.early_stopping and isinstance(rows, StreamedRows):
                rows, held_out = rows.split(min(self._n_held_out(len(rows)), _MOST_HELD_OUT))
            elif self.early_stopping:
                kept, watched = self._held_out_classes(rows)
                rows, held_out = rows.part(kept), rows.part(watched)
            trainer = self._start(rows, dtype)
            watch = _Watch(partial(self._log_proba, trainer.options), rows, held_out)
            trainer.monitors = (*trainer.monitors, watch)
            try:
                rows = _of_mean_one(self._learned_from(rows))
                self._learn(trainer, rows, self._stopping(), checkpoint)
            except DivergenceError as error:
                # What was learned before is kept, so that this one leaves the block in peace.
                diverged = error
        if diverged is not None:
            raise diverged
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Make one update with all rows of ``X`` as one batch.

        The first call starts a model; later ones, and those after :meth:`fit`, go on with it.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)
        classes : array-like, default=None
            All classes that there will ever be; required in the first call.
        sample_weight : array-like of shape (n_samples,), default=None
            As they are, with those of ``class_weight``: the update follows the mean of the rows'
            gradients times their weights. Give weights whose mean over all batches is one.

        Returns
        -------
        estimator
            The estimator itself.

        Raises
        ------
        ValueError, DivergenceError
            As :meth:`fit`, and when a label is none of ``classes``. The estimator then stays as it
            was.
        """
        first = not hasattr(self, "model_")
        with unchanged_on_error(self):
            if self.class_weight == "balanced":
                raise ValueError(
                    "class_weight='balanced' needs all labels at once; pass the weights as a dict"
                )
            if first and classes is None:
                raise ValueError("classes must be given in the first call of partial_fit")
            if not first:
                self._refuse_changes()
            matrix, targets = self._validated(X, first, y)
            if first:
                self._set_classes(np.asarray(classes), complete=True)
            elif classes is not None and not np.array_equal(self.classes_, np.unique(classes)):
                raise ValueError(f"classes={classes!r} are not those of the first call")
            rows, dtype = self._labelled(matrix, targets, sample_weight, reset=first)
            trainer = self._start(rows, dtype) if first else self._trainer
            self._update(trainer, rows.take(slice(0, len(rows))))
        self._publish(trainer)
        return self

    def _rows_of_arrays(
        self, X: Any, y: Any, sample_weight: Any
    ) -> tuple[LabelledRows, torch.dtype]:
        """Validated rows with the numbers of their classes, which are set."""
        matrix, targets = self._validated(X, True, y)
        self._set_classes(targets)
        rows, dtype = self._labelled(matrix, targets, sample_weight, reset=True)
        if _n_classes(rows.labels) < 2:
            raise ValueError("sample_weight and class_weight leave rows of fewer than two classes")
        return rows, dtype

    def _rows_of_stream(self, stream: DataStream, y: Any, sample_weight: Any) -> tuple[Any, Any]:
        """A stream with the numbers of its classes, which are set."""
        if sample_weight is not None or self.class_weight is not None:
            raise ValueError("sample_weight and class_weight need arrays: a stream has no weights")
        if y is not None:
            stream = stream.labelled(y)
        self._check_columns(stream, True)
        stream = self._check_values(stream)
        labels, counts = label_counts(stream)
        self._set_classes(labels, counts)
        mark = self._mark()
        if _marked(labels, mark).any() and not self._learns_without_labels():
            raise ValueError(
                f"{stream.name} has rows with the label unlabeled={mark!r}, and nothing is learned "
                "from them here; leave them out"
            )
        encoded = stream.encoded(lambda found: self._numbers_of(found, _marked(found, mark)))
        return self._as_rows(encoded, True)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        check_is_fitted(self)
        best: np.ndarray = self.classes_[self.predict_log_proba(X).argmax(axis=1)]
        return best

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes, in the order of ``classes_``.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        return np.exp(self.predict_log_proba(X))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of :meth:`predict_proba`, finite where those underflow.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        check_is_fitted(self)
        return self._map_rows(X, partial(self._log_proba, self._trainer.options, self.model_))

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Share of the rows whose class is predicted.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe, stream} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,), default=None
            None takes those of a stream with labels.
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        float
        """
        return float(super().score(*rows_and_targets(X, y), sample_weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _options(self) -> Any:
        check_whole("n_iter_no_change", self.n_iter_no_change, 1)
        check_not_negative("tol", self.tol)
        if self.unlabeled is not None and not isinstance(self.unlabeled, numbers.Number | str):
            raise ValueError(f"unlabeled must be one label or None, got {self.unlabeled!r}")
        if self.callback is not None and not callable(self.callback):
            raise ValueError(f"callback must be a callable or None, got {self.callback!r}")
        return super()._options()

    def _start(self, rows: LabelledRows, dtype: torch.dtype) -> Trainer:
        """A trainer at the start of a training on these rows."""
        raise NotImplementedError

    def _log_proba(self, options: Any, model: Any, x: Tensor) -> Tensor:
        """Logarithms of the classes' probabilities, shape (n, n_classes)."""
        raise NotImplementedError

    def _check_values(self, matrix: Any) -> Any:
        """The same rows, without values that the model cannot take."""
        return matrix

    def _learned_from(self, rows: LabelledRows) -> LabelledRows:
        """The rows that the batches are made of."""
        return rows

    def _learn(
        self,
        trainer: Trainer,
        rows: LabelledRows,
        stopping: EarlyStopping | None,
        checkpoint: FitCheckpoint | None,
    ) -> None:
        """Train to the end."""
        if checkpoint is not None:
            checkpoint.memory = stopping
        after, finish = self._after_epoch(stopping), self._finish(stopping)
        self._train(trainer, rows, after, finish, checkpoint)

    def _set_classes(
        self, targets: np.ndarray, counts: np.ndarray | None = None, *, complete: bool = False
    ) -> None:
        """The classes among the labels of rows, or those of a complete list.

        With ``counts``, labels are given once each, with the numbers of their rows.
        """
        guessed = not complete or self.unlabeled != _AUTO
        mark = self._mark_among(targets, counts) if guessed else None
        if counts is not None:
            targets = label_column(targets, counts)
        unlabeled = _marked(targets, mark)
        labeled = targets[~unlabeled]
        check_classification_targets(labeled)
        found = np.unique(labeled)
        if len(found) < 2:
            hint = ""
            if len(labeled) < len(targets):
                hint = (
                    f" beside the label {self.unlabeled!r}, which marks rows without one; pass "
                    "unlabeled=None if it is a class"
                )
            raise ValueError(
                f"{type(self).__name__} needs at least two classes in y, but the data contains "
                f"{len(found)} class{'es' * (len(found) != 1)}{hint}"
            )
        self.classes_ = found

    def _mark_among(self, targets: np.ndarray, counts: np.ndarray | None) -> Any:
        """The label of rows without one, by what the others look like where nobody said it."""
        if self.unlabeled != _AUTO:
            return self.unlabeled
        values = set(targets.tolist())
        whole = all(isinstance(v, int | float) and float(v).is_integer() for v in values)
        classes = values - {-1}
        if -1 not in values or not whole or len(classes) < 2 or min(classes) < 0:
            return None
        marked = _marked(targets, -1)
        n = marked.sum() if counts is None else counts[marked].sum()
        warnings.warn(
            f"{n} rows have the label -1 and are taken for rows without one; pass unlabeled=-1 to "
            "say so, or unlabeled=None if it is a class",
            UserWarning,
            stacklevel=4,
        )
        return -1

    def _mark(self) -> Any:
        """The label of rows without one, once the classes are known."""
        if self.unlabeled != _AUTO:
            return self.unlabeled
        return None if -1 in self.classes_.tolist() else -1

    def _labelled(
        self, matrix: Any, targets: np.ndarray, sample_weight: Any, *, reset: bool
    ) -> tuple[LabelledRows, torch.dtype]:
        matrix = self._check_values(matrix)
        rows, dtype = self._as_rows(matrix, reset)
        unlabeled = _marked(targets, self._mark())
        labels = self._numbers_of(targets, unlabeled)
        weights = self._row_weights(matrix, labels, sample_weight)
        device = rows.take(slice(0, 1)).device
        labelled = LabelledRows(
            rows,
            torch.from_numpy(labels).to(device),
            None if weights is None else torch.from_numpy(weights).to(device, dtype),
        )
        counted = np.ones(len(labels), dtype=bool) if weights is None else weights > 0
        if unlabeled.any() and not self._learns_without_labels():
            self._warn_of_unlabeled(int(unlabeled.sum()))
            counted &= ~unlabeled
        if not counted.any():
            raise ValueError("no row has both a label and a positive weight: nothing to learn from")
        if not counted.all():
            labelled = labelled.part(torch.from_numpy(np.flatnonzero(counted)))
        return labelled, dtype

    def _numbers_of(self, targets: np.ndarray, unlabeled: np.ndarray | None = None) -> np.ndarray:
        """The number of each label's class, from 0; -1 where a row is unlabelled."""
        # By hash, as sorting would not bear labels of another kind.
        known = {label: number for number, label in enumerate(self.classes_.tolist())}
        found = np.asarray([known.get(label, -1) for label in targets.tolist()], dtype=np.int64)
        unknown = found < 0 if unlabeled is None else (found < 0) & ~unlabeled
        if unknown.any():
            row = int(unknown.argmax())
            raise ValueError(
                f"label {targets.tolist()[row]!r} of row {row} is none of the classes "
                f"{self.classes_.tolist()}"
            )
        return found

    def _warn_of_unlabeled(self, n: int) -> None:
        warnings.warn(
            f"{n} rows have the label unlabeled={self._mark()!r}, and nothing is learned from "
            "them here",
            UserWarning,
            stacklevel=4,
        )

    def _learns_without_labels(self) -> bool:
        """Whether rows without a label change what is learned."""
        return False

    def _row_weights(
        self, matrix: Any, labels: np.ndarray, sample_weight: Any
    ) -> np.ndarray | None:
        if sample_weight is None and self.class_weight is None:
            return None
        weights: np.ndarray = _check_sample_weight(
            sample_weight, matrix, dtype=np.float64, ensure_non_negative=True, copy=True
        )
        if self.class_weight is not None:
            labeled = labels >= 0
            weights[labeled] *= self._class_factors(labels, weights)[labels[labeled]]
        return weights

    def _class_factors(self, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The factor of each class that ``class_weight`` asks for."""
        if self.class_weight != "balanced":
            factors: np.ndarray = compute_class_weight(
                self.class_weight, classes=self.classes_, y=self.classes_
            )
            if not (np.isfinite(factors).all() and (factors >= 0).all()):
                raise ValueError(
                    f"class_weight must be finite and not negative, got {self.class_weight!r}"
                )
            return factors
        # Of the rows that count: a class without any has no say in the balance.
        counted = (labels >= 0) & (weights > 0)
        present = np.unique(labels[counted])
        factors = np.ones(len(self.classes_))
        factors[present] = compute_class_weight(
            "balanced", classes=present, y=labels[counted], sample_weight=weights[counted]
        )
        return factors

    def _held_out_classes(self, rows: LabelledRows) -> tuple[Tensor, Tensor]:
        """Positions to learn from, and of labelled rows to hold out, in proportion to the classes.

        Evenly spaced rows are held out of a random order that is sorted by class.
        """
        labels = rows.labels.cpu()
        labeled = torch.nonzero(labels >= 0).squeeze(1)
        kept, watched = self._held_out(len(labeled))
        order = labeled[torch.cat([watched, kept])]
        order = order[labels[order].argsort(stable=True)]
        spaced = (torch.arange(len(watched)) + 0.5) * (len(order) / len(watched))
        learned = torch.ones(len(rows), dtype=torch.bool)
        learned[order[spaced.long()]] = False
        if _n_classes(labels[learned]) < 2:
            raise ValueError(
                f"validation_fraction={self.validation_fraction:g} of {len(labeled)} labelled rows "
                "leaves fewer than two classes to learn from; pass early_stopping=False"
            )
        return torch.nonzero(learned).squeeze(1), torch.nonzero(~learned).squeeze(1)

    def _stopping(self) -> EarlyStopping | None:
        if not self.early_stopping:
            return None
        return EarlyStopping(
            "accuracy_held_out", patience=self.n_iter_no_change, tolerance=self.tol
        )

    def _after_epoch(self, stopping: EarlyStopping | None) -> Callable[[Trainer], None]:
        def after_epoch(trainer: Trainer) -> None:
            if self.verbose and trainer.group.rank == 0:
                self._print_epoch(trainer)
            if self.callback is not None:
                self.callback(trainer)
            if stopping is not None:
                stopping(trainer)

        return after_epoch

    def _finish(self, stopping: EarlyStopping | None) -> Callable[[Trainer], None]:
        def finish(trainer: Trainer) -> None:
            if stopping is not None:
                stopping.restore_best(trainer)

        return finish

    def _print_epoch(self, trainer: Trainer) -> None:
        record = trainer.history[-1]
        held_out = ""
        if "accuracy_held_out" in record:
            held_out = f", held-out accuracy = {record['accuracy_held_out']:.4f}"
        print(
            f"[{type(self).__name__}] Iteration {record['epoch']}, loss = {record['loss']:.6f}"
            f"{held_out}, time = {record['seconds']:.2f}s"
        )

    def _publish(self, trainer: Trainer) -> None:
        super()._publish(trainer)
        self.n_iter_ = len(trainer.history)


def _marked(targets: np.ndarray, mark: Any) -> np.ndarray:
    """Which labels are the mark of a row without one; none where there is no mark."""
    if mark is None:
        return np.zeros(len(targets), dtype=bool)
    return np.asarray([label == mark for label in targets.tolist()], dtype=bool)


def _of_mean_one(rows: Any) -> Any:
    """The same rows, their weights scaled to a mean of one, which the gradients take for granted.

    Scaled batch by batch, heavy rows would lose to the light ones of other batches.
    """
    if isinstance(rows, StreamedRows) or rows.weights is None:
        return rows
    weights = rows.weights.double()
    return LabelledRows(rows.rows, rows.labels, (weights / weights.mean()).to(rows.weights))


def _first_labelled(rows: LabelledRows | StreamedRows) -> LabelledBatch:
    """Some rows that have a label."""
    if isinstance(rows, LabelledRows):
        labeled = torch.nonzero(rows.labels.cpu() >= 0).squeeze(1)
        return rows.take(labeled[:_WATCHED_ROWS])
    found = _labelled_of(rows.some(_WATCHED_ROWS))
    if not len(found.labels):
        with closing(rows.labelled_only().batches(_WATCHED_ROWS)) as batches:
            found = next(batches)
    return found


def _labelled_of(batch: LabelledBatch) -> LabelledBatch:
    labeled = batch.labels >= 0
    weights = None if batch.weights is None else batch.weights[labeled]
    return LabelledBatch(batch.rows[labeled], batch.labels[labeled], weights)


class _Watch:
    """Monitor: loss and accuracy on the first labelled training rows and on those held out."""

    def __init__(
        self,
        log_proba: Callable[[Any, Tensor], Tensor],
        rows: LabelledRows | StreamedRows,
        held_out: LabelledRows | StreamedRows | None,
    ) -> None:
        self.log_proba = log_proba
        self.parts = {"": _first_labelled(rows)}
        if held_out is not None:
            watched = _labelled_of(held_out.take(slice(0, len(held_out))))
            if not len(watched.labels):
                raise ValueError(
                    "none of the rows that are held out has a label; raise validation_fraction, or "
                    "pass early_stopping=False"
                )
            self.parts["_held_out"] = watched

    @torch.no_grad()
    def __call__(self, model: Any) -> dict[str, float]:
        record: dict[str, float] = {}
        for suffix, batch in self.parts.items():
            loss, accuracy = _scores(self.log_proba(model, batch.rows).double(), batch)
            record |= {f"loss{suffix}": loss, f"accuracy{suffix}": accuracy}
        return record


def _n_classes(labels: Tensor) -> int:
    return len(torch.unique(labels[labels >= 0]))


def _scores(log_proba: Tensor, batch: LabelledBatch) -> tuple[float, float]:
    """Weighted means of −ln p(y|x) and of hits, over rows that all have a label."""
    labels = batch.labels
    weights = torch.ones_like(labels) if batch.weights is None else batch.weights
    weights = weights.double() / weights.double().sum()
    loss = -(weights @ log_proba.gather(1, labels[:, None]).squeeze(1))
    accuracy = weights @ (log_proba.argmax(1) == labels).double()
    return float(loss), float(accuracy)

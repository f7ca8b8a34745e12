"""What the classifiers share: classes, labels that are missing, weights, and early stopping."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted
from torch import Tensor

from freenergy.estimators.base import TorchEstimator, plain
from freenergy.estimators.validation import unchanged_on_error
from freenergy.training.rows import LabelledBatch, LabelledRows
from freenergy.training.stopping import EarlyStopping
from freenergy.training.trainer import Trainer

__all__ = ["ProbabilisticClassifier"]

_WATCHED_ROWS = 1000


class ProbabilisticClassifier(ClassifierMixin, TorchEstimator):
    """Base of the classifiers: a subclass gives logarithms of probabilities, and starts a trainer.

    Its parameters include ``class_weight``, ``early_stopping``, ``validation_fraction``,
    ``n_iter_no_change``, ``tol``, ``verbose``, ``unlabeled`` and ``callback``.
    """

    classes_: np.ndarray

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train a new model on rows and their labels.

        Ctrl-C ends training with a warning and the model of the last complete pass.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)
            Classes; rows with the label ``unlabeled`` have none.
        sample_weight : array-like of shape (n_samples,), default=None
            Not negative. A weight of 2 counts as the row twice, one of 0 as its absence.

        Returns
        -------
        estimator
            The fitted estimator itself.

        Raises
        ------
        ValueError
            When ``X`` is empty or has NaN, infinities or values that the model cannot take (the
            column is named), when there are fewer than two classes, or a parameter is impossible.
            A fitted estimator then stays as it was.
        DivergenceError
            When the parameters became infinite, NaN or absurdly large. The estimator then holds
            the model of the last good pass.
        """
        with unchanged_on_error(self):
            self._options()
            matrix, targets = self._validated(X, True, y)
            self._set_classes(targets)
            rows, dtype = self._labelled(matrix, targets, sample_weight, reset=True)
            held_out: LabelledRows | None = None
            if self.early_stopping:
                kept, watched = self._held_out_classes(rows)
                rows, held_out = rows.part(kept), rows.part(watched)
            trainer = self._start(rows, dtype)
            watch = _Watch(partial(self._log_proba, trainer.options), rows, held_out)
            trainer.monitors = (*trainer.monitors, watch)
            stopping = self._stopping()
        self._learn(trainer, rows, stopping)
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
                self._set_classes(np.asarray(classes))
            elif classes is not None and not np.array_equal(self.classes_, np.unique(classes)):
                raise ValueError(f"classes={classes!r} are not those of the first call")
            rows, dtype = self._labelled(matrix, targets, sample_weight, reset=first)
            trainer = self._start(rows, dtype) if first else self._trainer
            self._update(trainer, rows.take(slice(0, len(rows))))
        self._publish(trainer)
        return self

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

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _start(self, rows: LabelledRows, dtype: torch.dtype) -> Trainer:
        """A trainer at the start of a training on these rows."""
        raise NotImplementedError

    def _log_proba(self, options: Any, model: Any, x: Tensor) -> Tensor:
        """Logarithms of the classes' probabilities, shape (n, n_classes)."""
        raise NotImplementedError

    def _check_values(self, matrix: Any) -> None:
        """Refuse values that the model cannot take."""

    def _learn(self, trainer: Trainer, rows: LabelledRows, stopping: EarlyStopping | None) -> None:
        """Train to the end."""
        self._train(trainer, rows, self._after_epoch(stopping), self._finish(stopping))

    def _set_classes(self, targets: np.ndarray) -> None:
        check_classification_targets(targets)
        found = np.unique(targets[~self._is_unlabeled(targets)])
        if len(found) < 2:
            hint = ""
            if len(found) < len(np.unique(targets)):
                hint = (
                    f". The label {self.unlabeled!r} marks rows without a label; pass "
                    "unlabeled=None if it is a class"
                )
            raise ValueError(
                f"{type(self).__name__} needs at least two classes in y, but the data contains "
                f"{len(found)} class{'es' * (len(found) != 1)}{hint}"
            )
        self.classes_ = found

    def _is_unlabeled(self, targets: np.ndarray) -> np.ndarray:
        numeric = np.issubdtype(targets.dtype, np.number)
        if self.unlabeled is None or numeric != isinstance(self.unlabeled, numbers.Number):
            return np.zeros(len(targets), dtype=bool)
        return np.asarray(targets == self.unlabeled)

    def _labelled(
        self, matrix: Any, targets: np.ndarray, sample_weight: Any, *, reset: bool
    ) -> tuple[LabelledRows, torch.dtype]:
        self._check_values(matrix)
        rows, dtype = self._as_rows(matrix, reset)
        unlabeled = self._is_unlabeled(targets)
        labels = np.searchsorted(self.classes_, targets).clip(max=len(self.classes_) - 1)
        unknown = (self.classes_[labels] != targets) & ~unlabeled
        if unknown.any():
            raise ValueError(
                f"label {targets[unknown.argmax()]!r} of row {unknown.argmax()} is none of the "
                f"classes {self.classes_.tolist()}"
            )
        labels[unlabeled] = -1
        if unlabeled.any() and not self._learns_without_labels():
            warnings.warn(
                f"{unlabeled.sum()} rows have the label {self.unlabeled!r}, which marks rows "
                "without one, and nothing is learned from them; pass unlabeled=None if it is a "
                "class",
                UserWarning,
                stacklevel=4,
            )
        weights = self._row_weights(matrix, targets, unlabeled, sample_weight)
        device = rows.take(slice(0, 1)).device
        labelled = LabelledRows(
            rows,
            torch.from_numpy(labels).to(device),
            None if weights is None else torch.from_numpy(weights).to(device, dtype),
        )
        if weights is not None and not weights.all():
            labelled = labelled.part(torch.from_numpy(np.flatnonzero(weights)))
        return labelled, dtype

    def _learns_without_labels(self) -> bool:
        """Whether rows without a label change what is learned."""
        return False

    def _row_weights(
        self, matrix: Any, targets: np.ndarray, unlabeled: np.ndarray, sample_weight: Any
    ) -> np.ndarray | None:
        if sample_weight is None and self.class_weight is None:
            return None
        weights: np.ndarray = _check_sample_weight(
            sample_weight, matrix, dtype=np.float64, ensure_non_negative=True, copy=True
        )
        if self.class_weight is not None:
            labeled = ~unlabeled
            weights[labeled] *= compute_sample_weight(self.class_weight, targets[labeled])
        if not weights.any():
            raise ValueError("sample_weight and class_weight leave no row with a positive weight")
        return weights

    def _held_out_classes(self, rows: LabelledRows) -> tuple[Tensor, Tensor]:
        """Positions to learn from and to hold out; the latter are labelled rows."""
        kept, watched = self._held_out(len(rows))
        labels = rows.labels.cpu()
        labeled = labels[watched] >= 0
        kept, watched = torch.cat([kept, watched[~labeled]]), watched[labeled]
        if len(watched) == 0 or len(torch.unique(labels[kept][labels[kept] >= 0])) < 2:
            raise ValueError(
                f"validation_fraction={self.validation_fraction:g} of {len(rows)} rows leaves too "
                "few labelled rows to learn from or to hold out; pass early_stopping=False"
            )
        return kept, watched

    def _stopping(self) -> EarlyStopping | None:
        if not self.early_stopping:
            return None
        return EarlyStopping(
            "accuracy_held_out", patience=self.n_iter_no_change, tolerance=self.tol
        )

    def _after_epoch(self, stopping: EarlyStopping | None) -> Callable[[Trainer], None]:
        def after_epoch(trainer: Trainer) -> None:
            if self.verbose:
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

    def _stored_parameters(self) -> dict[str, Any]:
        parameters = super()._stored_parameters()
        weights = parameters["class_weight"]
        if isinstance(weights, dict):
            # As pairs: the keys of a JSON object are strings, those of classes need not be.
            parameters["class_weight"] = [[plain(k), plain(v)] for k, v in weights.items()]
        return parameters

    @classmethod
    def _from_parameters(cls, parameters: dict[str, Any]) -> Self:
        weights = parameters["class_weight"]
        if isinstance(weights, list):
            weights = dict(weights)
        return super()._from_parameters({**parameters, "class_weight": weights})

    def _stored_classes(self) -> dict[str, Any]:
        """The classes for JSON."""
        return {"classes": self.classes_.tolist(), "classes_dtype": self.classes_.dtype.str}

    def _restore_classes(self, spec: dict[str, Any]) -> None:
        dtype = object if spec["classes_dtype"] == "|O" else spec["classes_dtype"]
        self.classes_ = np.asarray(spec["classes"], dtype=dtype)


class _Watch:
    """Monitor: loss and accuracy on the first training rows and on those held out."""

    def __init__(
        self,
        log_proba: Callable[[Any, Tensor], Tensor],
        rows: LabelledRows,
        held_out: LabelledRows | None,
    ) -> None:
        self.log_proba = log_proba
        self.parts = {"": rows.take(slice(0, _WATCHED_ROWS))}
        if held_out is not None:
            self.parts["_held_out"] = held_out.take(slice(0, len(held_out)))

    @torch.no_grad()
    def __call__(self, model: Any) -> dict[str, float]:
        record: dict[str, float] = {}
        for suffix, batch in self.parts.items():
            loss, accuracy = _scores(self.log_proba(model, batch.rows).double(), batch)
            record |= {f"loss{suffix}": loss, f"accuracy{suffix}": accuracy}
        return record


def _scores(log_proba: Tensor, batch: LabelledBatch) -> tuple[float, float]:
    """Weighted means of −ln p(y|x) and of hits over the labelled rows; NaN without any."""
    labeled = batch.labels >= 0
    log_proba, labels = log_proba[labeled], batch.labels[labeled]
    weights = None if batch.weights is None else batch.weights[labeled].double()
    if weights is None:
        weights = torch.ones_like(labels, dtype=torch.float64)
    weights = weights / weights.sum()
    loss = -(weights * log_proba.gather(1, labels[:, None]).squeeze(1)).sum()
    accuracy = (weights * (log_proba.argmax(1) == labels)).sum()
    return float(loss), float(accuracy)

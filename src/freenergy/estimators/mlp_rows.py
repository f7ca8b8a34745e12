"""From X, y, weights, gaps and categories to the rows that a perceptron learns from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import (
    _check_sample_weight,
    _check_y,
    check_array,
    check_consistent_length,
    check_is_fitted,
    validate_data,
)
from torch import Tensor, nn

from freenergy.data import DataStream, as_stream
from freenergy.distributed import group_now
from freenergy.estimators.base import TorchEstimator
from freenergy.estimators.classes import label_column
from freenergy.estimators.columns import (
    FROM_DTYPE,
    ColumnEncoder,
    Table,
    categorical_columns,
    read_table,
)
from freenergy.estimators.validation import check_finite, check_targets, refuse_dates
from freenergy.training.rows import DenseRows, LabelledRows, StreamedRows, label_counts

__all__ = ["BLOCK", "MOST_HELD_OUT", "CheckedRows", "PerceptronRows"]

BLOCK = 4096
"""Rows that are predicted at once while training."""

MOST_HELD_OUT = 10_000
"""Rows of a stream that are held in memory."""


@dataclass(frozen=True, eq=False)
class CheckedRows:
    """Validated rows with encoded targets, and which of them are held out.

    Attributes
    ----------
    rows : LabelledRows or StreamedRows
        All of them.
    dtype : torch.dtype
        Precision of the net.
    kept, watched : Tensor or None
        Positions to learn from and to hold out; None where nothing is held out, or the rows are
        a stream.
    """

    rows: Any
    dtype: torch.dtype
    kept: Tensor | None = None
    watched: Tensor | None = None


class PerceptronRows(TorchEstimator):
    """What a perceptron makes of its input: a subclass says what its targets are."""

    model_: nn.Sequential
    out_activation_: str
    n_outputs_: int
    n_features_in_: int
    _columns: ColumnEncoder | None = None
    _categorical: tuple[int, ...] = ()

    def _define_targets(self, y: Any, classes: np.ndarray | None) -> None:
        """Set ``out_activation_`` and ``n_outputs_`` for a new net."""
        raise NotImplementedError

    def _encode(self, y: Any) -> np.ndarray:
        """Targets as numbers: classes as integers, all else as a matrix of floats."""
        raise NotImplementedError

    def _stratified(self, labels: np.ndarray) -> np.ndarray | None:
        """What the held-out rows are drawn in proportion to."""
        return None

    def _row_weights(self, labels: np.ndarray, weights: np.ndarray | None) -> np.ndarray | None:
        """Weights of the rows, those of their classes included."""
        return weights

    def _checked(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        first: bool,
        classes: np.ndarray | None = None,
    ) -> CheckedRows:
        """Validated rows with encoded targets; rows that weigh nothing are left out."""
        stream = as_stream(X)
        if stream is not None:
            return CheckedRows(*self._streamed(stream, y, sample_weight, first, classes))
        found, targets = self._raw(X, y, first)
        if first:
            self._define_targets(targets, classes)
        labels = self._encode(targets)
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(
                sample_weight, targets, dtype=np.float64, ensure_non_negative=True
            )
        weights = self._row_weights(labels, weights)
        if weights is not None and not weights.all():
            counted = weights > 0
            if not counted.any():
                raise ValueError("all rows have a weight of zero: there is nothing to learn from")
            found = found.part(counted) if isinstance(found, Table) else found[counted]
            labels, weights = labels[counted], weights[counted]
        kept, watched = self._places(labels)
        if first and isinstance(found, Table):
            self._learn_columns(found, weights, kept)
        rows, dtype = self._as_rows(self._encoded(found), first)
        device = rows.take(slice(0, 1)).device
        numbers_ = torch.from_numpy(labels).to(device)
        if numbers_.dtype != torch.int64:
            numbers_ = numbers_.to(dtype)
        weighing = None if weights is None else torch.from_numpy(weights).to(device, dtype)
        return CheckedRows(LabelledRows(rows, numbers_, weighing), dtype, kept, watched)

    def _streamed(
        self,
        stream: DataStream,
        y: Any,
        sample_weight: Any,
        first: bool,
        classes: np.ndarray | None,
    ) -> tuple[StreamedRows, torch.dtype]:
        """A stream whose labels are encoded as they are read."""
        self._refuse_with_streams(sample_weight)
        if stream.n_rows is None:
            raise ValueError(
                f"{stream.name} gives rows one after the other, and {type(self).__name__} needs to "
                "know how many: give a torch Dataset with a length, or files"
            )
        if y is not None:
            stream = stream.labelled(y)
        self._check_columns(stream, first)
        if first:
            self._categorical, self._columns = (), None
            targets = stream.sample(BLOCK).labels
            if hasattr(self, "predict_proba") and targets is not None and targets.ndim == 1:
                targets = label_column(*label_counts(stream))
            if targets is not None:
                self._define_targets(targets, classes)
        rows, dtype = self._as_rows(stream.encoded(self._encode), first)
        assert isinstance(rows, StreamedRows)
        return rows, dtype

    def _refuse_with_streams(self, sample_weight: Any) -> None:
        """What needs all rows at once."""
        wrong = {
            "sample_weight": sample_weight is not None,
            "class_weight": getattr(self, "class_weight", None) is not None,
            "solver='lbfgs'": self.solver == "lbfgs",
            "warm_start": self.warm_start,
            "missing='impute'": self.missing == "impute",
            "categorical_features": not (
                self.categorical_features is None or isinstance(self.categorical_features, str)
            ),
        }
        found = [name for name, given in wrong.items() if given]
        if found:
            raise ValueError(f"{', '.join(found)} needs arrays, and has no effect on a stream")

    def _raw(self, X: Any, y: Any, first: bool) -> tuple[Any, Any]:
        """A matrix of finite numbers, or a table where the columns hold more; and targets."""
        numeric_targets = not hasattr(self, "predict_proba")
        refuse_dates(X)
        check_targets(y)
        if first:
            self._categorical = self._found_categorical(X)
            self._columns = None
        else:
            self._refuse_other_columns(X)
        if self._columns is None and not (first and self._needs_encoder()):
            matrix, targets = validate_data(
                self,
                X,
                y,
                reset=first,
                accept_sparse="csr",
                dtype=(np.float64, np.float32),
                multi_output=True,
                y_numeric=numeric_targets,
                ensure_all_finite=False,
            )
            names = getattr(self, "feature_names_in_", None)
            check_finite(matrix, names, hint="remove it, or set missing='impute'")
            return matrix, targets
        table = self._table(X, first, y)
        targets = _check_y(y, multi_output=True, y_numeric=numeric_targets, estimator=self)
        check_consistent_length(table.numbers, targets)
        return table, targets

    def _table(self, X: Any, reset: bool, y: Any = "no_validation") -> Table:
        """The columns of rows, once their number and names were found to be right."""
        if not (issparse(X) or hasattr(X, "columns")):
            X = check_array(X, dtype=None, ensure_all_finite=False)
        validate_data(self, X, y, reset=reset, skip_check_array=True)
        return read_table(X, self._categorical, self._column_names())

    def _column_names(self) -> list[str]:
        names = getattr(self, "feature_names_in_", None)
        return [f"x{i}" for i in range(self.n_features_in_)] if names is None else list(names)

    def _found_categorical(self, X: Any) -> tuple[int, ...]:
        columns = getattr(X, "columns", None)
        names = None if columns is None else [str(name) for name in columns]
        return categorical_columns(X, self.categorical_features, names)

    def _refuse_other_columns(self, X: Any) -> None:
        """What the columns mean is fixed: a change would be passed over in silence."""
        imputes = self._columns is not None and self._columns.means is not None
        changed = ["missing"] if imputes != (self.missing == "impute") else []
        if self._asks_for_others(X):
            changed.append("categorical_features")
        if changed:
            raise ValueError(
                f"{', '.join(changed)} changed since training started; set the old value again, "
                "or call fit to start anew"
            )

    def _asks_for_others(self, X: Any) -> bool:
        """Whether categorical_features names other columns than those that are encoded."""
        asked = self.categorical_features
        if isinstance(asked, str):
            return False
        if asked is None:
            return bool(self._categorical)
        named = self._found_categorical(X)
        if not hasattr(X, "columns"):
            return named != self._categorical
        # Types tell nothing here: those of a part of the rows may be others.
        typed = categorical_columns(X, FROM_DTYPE, None)
        return not set(named) - set(typed) <= set(self._categorical)

    def _needs_encoder(self) -> bool:
        return bool(self._categorical) or self.missing == "impute"

    def _learn_columns(self, table: Table, weights: np.ndarray | None, kept: Tensor | None) -> None:
        """Say how numbers are made of a table, by the rows that are learned from alone."""
        if kept is not None:
            own = kept.numpy()
            table, weights = table.part(own), None if weights is None else weights[own]
        self._columns = ColumnEncoder.learn(
            table,
            self._column_names(),
            self._categorical,
            impute=self.missing == "impute",
            weights=weights,
        )

    def _encoded(self, found: Any) -> Any:
        """Numbers of a table."""
        if not isinstance(found, Table):
            return found
        assert self._columns is not None
        return self._columns.encode(found)

    def _validated(self, X: Any, reset: bool, y: Any = "no_validation") -> Any:
        if self._columns is None:
            return super()._validated(X, reset, y)
        stream = as_stream(X)
        if stream is not None:
            self._check_columns(stream, reset)
        refuse_dates(X)
        return self._encoded(self._table(X, reset))

    def _check_columns(self, stream: DataStream, reset: bool) -> None:
        if not reset and self._columns is not None:
            raise ValueError(
                f"{stream.name} is a stream of numbers, but {type(self).__name__} was fitted on a "
                "table with categories or gaps: read a part of the table at a time and pass that"
            )
        super()._check_columns(stream, reset)

    @property
    def encoded_feature_names_(self) -> list[str]:
        """Names of the columns that the net sees: categories one by one, and gaps."""
        check_is_fitted(self)
        return self._column_names() if self._columns is None else self._columns.feature_names

    def _holds_out(self) -> bool:
        return bool(self.early_stopping and self.solver != "lbfgs")

    def _places(self, labels: np.ndarray) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Positions to learn from, and of rows held out, drawn from the seed.

        They are those of the first of several processes, which may have no seed.
        """
        if not self._holds_out():
            return None, None
        seed = self._seed()
        own = seed if isinstance(seed, np.random.RandomState) else seed % 2**32
        try:
            kept, watched = train_test_split(
                np.arange(len(labels)),
                test_size=self.validation_fraction,
                stratify=self._stratified(labels),
                random_state=own,
            )
        except ValueError as error:
            raise ValueError(
                f"early_stopping cannot hold out validation_fraction={self.validation_fraction:g} "
                f"of {len(labels)} rows ({error}): give more rows, or change one of the two"
            ) from error
        if len(watched) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of "
                "your dataset."
            )
        kept, watched = group_now().agree((kept, watched))
        return torch.from_numpy(kept), torch.from_numpy(watched)

    def _divided(self, checked: CheckedRows) -> tuple[Any, LabelledRows | None]:
        """Rows to learn from, and rows held out."""
        rows = checked.rows
        if checked.kept is not None and checked.watched is not None:
            return rows.part(checked.kept), rows.part(checked.watched)
        if not self._holds_out():
            return rows, None
        n = round(float(self.validation_fraction) * len(rows))
        rows, rest = rows.split(min(max(n, 2), MOST_HELD_OUT))
        batch = rest.take(slice(0, len(rest)))
        return rows, LabelledRows(DenseRows(batch.rows), batch.labels)

    def _outputs(self, X: Any) -> np.ndarray:
        """Outputs of the net before the activation of its last layer, shape (n, n_outputs)."""
        check_is_fitted(self)
        return self._map_rows(X, self.model_)

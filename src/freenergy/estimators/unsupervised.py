"""What the estimators share that learn from rows without labels."""

from __future__ import annotations

from typing import Any, Self

import torch

from freenergy.estimators.base import TorchEstimator
from freenergy.estimators.validation import unchanged_on_error
from freenergy.training.rows import Rows, StreamedRows
from freenergy.training.trainer import Trainer

__all__ = ["UnsupervisedEstimator"]


class UnsupervisedEstimator(TorchEstimator):
    """Base of the estimators of densities: a subclass validates its rows and starts a trainer."""

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Make one update with all rows of ``X`` as one batch.

        The first call starts a model; later ones, and those after :meth:`fit`, go on with it.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)
        y : ignored

        Returns
        -------
        estimator
            The estimator itself.

        Raises
        ------
        ValueError, DivergenceError
            As :meth:`fit`. The estimator then stays as it was.
        """
        first = not hasattr(self, "model_")
        with unchanged_on_error(self):
            if not first:
                self._refuse_changes()
            rows, dtype = self._training_rows(X, reset=first)
            trainer = self._start(rows, dtype) if first else self._trainer
            self._update(trainer, rows.take(slice(0, len(rows))))
        self._publish(trainer)
        return self

    def _training_rows(self, X: Any, reset: bool) -> tuple[Rows, torch.dtype]:
        """Validated rows, and the precision of the model."""
        raise NotImplementedError

    def _divided(self, rows: Rows) -> tuple[Rows, Rows | None]:
        """Rows to learn from, and those held out where ``validation_fraction`` asks for it."""
        if not self.validation_fraction:
            return rows, None
        if isinstance(rows, StreamedRows):
            return rows.split(self._n_held_out(len(rows)))
        kept, watched = self._held_out(len(rows))
        return rows.part(kept), rows.part(watched)

    def _start(self, rows: Rows, dtype: torch.dtype) -> Trainer:
        """A trainer at the start of a training on these rows."""
        raise NotImplementedError

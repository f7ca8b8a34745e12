"""What the multilayer perceptrons share: fit, partial_fit, attributes, checks and files."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from freenergy.data import as_stream
from freenergy.estimators.base import as_array, as_device, plain
from freenergy.estimators.columns import ColumnEncoder
from freenergy.estimators.divergence import in_own_words
from freenergy.estimators.export import PredictionNet, write_onnx
from freenergy.estimators.mlp_training import Course, PerceptronTraining
from freenergy.estimators.validation import unchanged_on_error
from freenergy.models.mlp import linear_layers, multilayer_perceptron
from freenergy.training.options import (
    check_not_negative,
    check_one_of,
    check_positive,
    check_share,
    check_whole,
)
from freenergy.training.perceptron import PerceptronOptions
from freenergy.training.trainer import DivergenceError, Trainer

# Pickles of before the training had a file of its own look for Course here.
__all__ = ["Course", "MLPDivergenceError", "MLPEstimator", "is_stochastic"]

_SOLVERS = ("adam", "sgd", "rmsprop", "lbfgs")
_SCHEDULES = ("constant", "invscaling", "adaptive", "cosine")


class MLPDivergenceError(DivergenceError, ValueError):
    """Training lost its parameters; scikit-learn has a ValueError there."""


class MLPEstimator(PerceptronTraining):
    """Base of the perceptrons: a subclass encodes targets, decodes outputs and scores them."""

    # ---- the public face -------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Train a net on rows and their targets; with ``warm_start``, the net that there is.

        Ctrl-C ends training with a warning and the net of the last complete pass; in the first
        pass, and with L-BFGS, it is passed on, and the estimator stays as it was.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe, stream} of shape (n_samples, n_features)
            A :func:`freenergy.data.stream` of known length, and whatever it takes, is read while
            it is learned from. At most 10 000 rows of a stream are held out.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            A stream may have its own.
        sample_weight : array-like of shape (n_samples,), default=None
            Not negative. A row with a weight of 2 counts as that row twice, one with 0 as none.

        Returns
        -------
        estimator
            The fitted estimator itself.

        Raises
        ------
        ValueError
            When the data cannot be used, or a parameter is impossible; the message names it. A
            fitted estimator then stays as it was.
        MLPDivergenceError
            When the weights became infinite, NaN or absurdly large; it is a ValueError too. The
            estimator then holds the net of the last good pass.
        """
        diverged: DivergenceError | None = None
        with unchanged_on_error(self):
            self._check_parameters()
            first = not (self.warm_start and hasattr(self, "model_"))
            checked = self._checked(X, y, sample_weight, first)
            checkpoint = self._checkpoint(checked.rows)
            rows, held_out = self._divided(checked)
            trainer = self._start(rows, checked.dtype, first)
            try:
                if self.solver == "lbfgs":
                    self._minimize(trainer, rows, checkpoint)
                else:
                    self._descend(trainer, rows, held_out, checkpoint)
            except DivergenceError as error:
                # What was learned before is kept, so that this one leaves the block in peace.
                diverged = error
        if diverged is not None:
            raise _value_error(diverged) from diverged
        return self

    def _partial_fit(
        self, X: Any, y: Any, sample_weight: Any, classes: np.ndarray | None = None
    ) -> Self:
        """One pass over the rows; the first call starts a net."""
        if self.early_stopping:
            raise ValueError("partial_fit does not support early_stopping=True")
        if self.learning_rate == "cosine":
            raise ValueError(
                "partial_fit does not know how many passes there will be, which "
                "learning_rate='cosine' needs: use 'constant'"
            )
        with unchanged_on_error(self):
            self._check_parameters()
            first = not hasattr(self, "model_")
            checked = self._checked(X, y, sample_weight, first, classes)
            if first:
                trainer: Trainer = self._start(checked.rows, checked.dtype, True)
                options = trainer.options
            else:
                trainer, options = self._trainer, self._continued(len(checked.rows))
            self._pass_once(trainer, options, checked.rows)
            self._publish(trainer)
        return self

    def _continued(self, n_rows: int) -> PerceptronOptions:
        """The parameters of now, for the net that there is to go on with."""
        self._course = dataclasses.replace(self._course, n_iter=0)
        self._refuse_other_architecture(self._architecture["n_features"], "call fit")
        asked = self._perceptron_options(n_rows)
        self._refuse_other_optimizer(asked)
        return asked

    def _pass_once(self, trainer: Trainer, options: PerceptronOptions, rows: Any) -> None:
        """One more pass, or none where it fails."""
        before, known = trainer.state(), trainer.options
        try:
            trainer.options = dataclasses.replace(options, n_epochs=trainer.epoch + 1)
            if self._announced != (self.callback, trainer):
                self._announce(trainer)
            trainer.fit(rows, on_epoch=self._after_epoch(len(rows), lambda trainer: None))
        except BaseException as error:
            trainer.restore(*before)
            trainer.options = known
            if isinstance(error, DivergenceError):
                raise _value_error(in_own_words(error, self)) from error
            raise

    def to_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write the net to an ONNX file, which other programs can predict with.

        The input ``rows`` of shape (n, n_encoded) are numbers in single precision, in the order of
        ``encoded_feature_names_``, as :meth:`encode_columns` makes them of a table. A classifier
        has the outputs ``probabilities`` and ``label``, the place of the class in ``classes_`` (0
        or 1 for each column of a matrix of labels); a regressor ``prediction``, of shape
        (n, n_outputs). The names of the columns and the classes stand in the metadata, as JSON.

        Parameters
        ----------
        path : path-like

        Raises
        ------
        ImportError
            Where the packages of the extra ``onnx`` are not installed.
        ValueError
            When the net knows one class only.
        """
        check_is_fitted(self)
        names, classes = self.encoded_feature_names_, getattr(self, "classes_", None)
        kind = getattr(self, "_target_kind", self.out_activation_)
        known = None if classes is None else [plain(label) for label in classes.tolist()]
        if known is not None and len(known) < 2:
            raise ValueError(f"the net knows one class only, {known[0]!r}: nothing to predict")
        net = PredictionNet(self.model_, kind)
        write_onnx(path, net, len(names), feature_names=names, classes=known)

    def encode_columns(self, X: Any) -> Any:
        """The numbers that the net sees: what an ONNX file of it takes as its ``rows``.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)

        Returns
        -------
        {ndarray, sparse matrix} of shape (n_samples, n_encoded)
            With the columns ``encoded_feature_names_``. Numbers of a table stand as they are, in
            their own precision; a sparse matrix stays one.

        Raises
        ------
        ValueError
            When the rows are not such as :meth:`fit` had, or are a stream.

        Examples
        --------
        >>> import freenergy as fe
        >>> rows = [["red", 1.0], ["blue", 3.0], ["red", 2.0], ["blue", 5.0]]
        >>> net = fe.MLPRegressor(categorical_features=[0], solver="lbfgs", max_iter=2000)
        >>> net = net.fit(np.array(rows, dtype=object), [1.0, 3.0, 2.0, 5.0])
        >>> net.encoded_feature_names_
        ['x1', 'x0_blue', 'x0_red']
        >>> net.encode_columns(np.array([["red", 4.0], ["green", 0.5]], dtype=object))
        array([[4. , 0. , 1. ],
               [0.5, 0. , 0. ]])
        """
        check_is_fitted(self)
        if as_stream(X) is not None:
            raise ValueError("encode_columns takes rows, not a stream, whose columns are numbers")
        return self._validated(X, reset=False)

    @property
    def coefs_(self) -> list[np.ndarray]:
        """Weights of each layer, shape (n_in, n_out): views of the net's own on a CPU."""
        return [as_array(layer.weight).T for layer in linear_layers(self.model_)]

    @property
    def intercepts_(self) -> list[np.ndarray]:
        """Biases of each layer, shape (n_out,): views of the net's own on a CPU."""
        return [as_array(layer.bias) for layer in linear_layers(self.model_)]

    @property
    def n_layers_(self) -> int:
        """Number of layers, those of the inputs and of the outputs included."""
        return len(linear_layers(self.model_)) + 1

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.allow_nan = self.missing == "impute"
        return tags

    def _is_extendable(self) -> bool:
        return bool(self.solver != "lbfgs" and self.learning_rate != "cosine")

    def _check_parameters(self) -> None:
        check_one_of("solver", self.solver, _SOLVERS)
        check_one_of("learning_rate", self.learning_rate, _SCHEDULES)
        check_one_of("missing", self.missing, ("error", "impute"))
        for name in ("max_iter", "max_fun"):
            check_whole(name, getattr(self, name), 1)
        for name in ("tol", "power_t"):
            check_not_negative(name, getattr(self, name))
        for name in ("learning_rate_init", "max_norm"):
            check_positive(name, getattr(self, name))
        check_whole("ghost_batch_size", self.ghost_batch_size, 2)
        check_share("dropout", self.dropout)
        check_share("validation_fraction", self.validation_fraction)
        if self.n_iter_no_change != math.inf:
            check_whole("n_iter_no_change", self.n_iter_no_change, 1)
        if self.batch_size != "auto":
            check_whole("batch_size", self.batch_size, 1)
        if self.warm_start and self.checkpoint_dir is not None:
            raise ValueError(
                "warm_start goes on from the net in memory and checkpoint_dir from that in the "
                "folder: use one of them; with checkpoint_dir raise max_iter to train on"
            )
        if self.callback is not None and not callable(self.callback):
            raise ValueError(f"callback must be a callable or None, got {self.callback!r}")
        if self.solver == "lbfgs" and (self.dropout > 0 or self.normalization == "max_norm"):
            raise ValueError(
                "solver='lbfgs' minimises one smooth function: dropout and "
                "normalization='max_norm' need solver='adam', 'sgd' or 'rmsprop'"
            )
        self._hidden_sizes()

    # ---- files -----------------------------------------------------------------------------------

    def _model_spec(self) -> dict[str, Any]:
        return {
            "architecture": self._architecture,
            "out_activation": self.out_activation_,
            "course": dataclasses.asdict(self._course),
            "columns": None if self._columns is None else self._columns.to_dict(),
        }

    def _rebuild(
        self,
        tensors: dict[str, Tensor],
        values: dict[str, Any],
        options: PerceptronOptions,
        seed: int | np.random.RandomState,
    ) -> Trainer:
        spec = values["model"]
        self._architecture = spec["architecture"]
        self._architecture["hidden_layer_sizes"] = tuple(self._architecture["hidden_layer_sizes"])
        self.n_features_in_ = self._architecture["n_features"]
        # Files of before there were tables do not have it.
        if spec.get("columns") is not None:
            self._columns = ColumnEncoder.from_dict(spec["columns"])
            self._categorical = self._columns.categorical
            self.n_features_in_ = len(self._columns.names)
        self.n_outputs_ = self._architecture["n_outputs"]
        self.out_activation_ = spec["out_activation"]
        self._course = Course(**spec["course"])
        dtype = tensors["model.0.weight"].dtype
        net = multilayer_perceptron(**self._architecture).to(as_device(self.device), dtype)
        return self._trainer_of(net, options, seed)


def is_stochastic(estimator: Any) -> bool:
    """Whether the solver goes through the rows in batches, which alone can learn from a part."""
    if estimator.solver == "lbfgs":
        raise AttributeError(
            "partial_fit is only available for stochastic optimizers. lbfgs is not stochastic."
        )
    return True


def _value_error(error: DivergenceError) -> MLPDivergenceError:
    return MLPDivergenceError(
        "Solver produced non-finite parameter weights. The input data may contain large values "
        f"and need to be preprocessed: {error.event}",
        error.advice,
    )

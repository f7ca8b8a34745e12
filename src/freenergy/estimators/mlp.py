"""What the multilayer perceptrons share: parameters, training, attributes and files."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.exceptions import ConvergenceWarning
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
from freenergy.estimators.base import (
    TorchEstimator,
    as_array,
    as_device,
    order_stream,
    plain,
)
from freenergy.estimators.checkpoints import FitCheckpoint
from freenergy.estimators.columns import (
    FROM_DTYPE,
    ColumnEncoder,
    Table,
    categorical_columns,
    read_table,
)
from freenergy.estimators.export import PredictionNet, write_onnx
from freenergy.estimators.validation import (
    check_finite,
    check_targets,
    refuse_dates,
    unchanged_on_error,
    warn_the_caller,
)
from freenergy.models.mlp import initialize_perceptron, linear_layers, multilayer_perceptron
from freenergy.normalization.layers import set_population_statistics
from freenergy.random import RandomStream
from freenergy.training.options import (
    check_not_negative,
    check_one_of,
    check_positive,
    check_share,
    check_whole,
)
from freenergy.training.perceptron import (
    PerceptronGradient,
    PerceptronOptions,
    PerceptronTrainer,
    minimize_lbfgs,
)
from freenergy.training.rows import DenseRows, LabelledRows, StreamedRows
from freenergy.training.stopping import StopTraining
from freenergy.training.trainer import DivergenceError, Trainer

__all__ = ["MLPDivergenceError", "MLPEstimator", "is_stochastic"]

_SOLVERS = ("adam", "sgd", "rmsprop", "lbfgs")
_SCHEDULES = ("constant", "invscaling", "adaptive", "cosine")
_OF_THE_OPTIMIZER = {
    "optimizer": "solver",
    "momentum": "momentum",
    "nesterov": "nesterovs_momentum",
    "beta_1": "beta_1",
    "beta_2": "beta_2",
    "epsilon": "epsilon",
}
_LARGEST_BATCH = 200
_BLOCK = 4096
_MOST_HELD_OUT = 10_000
_MOST_REPEATED = 2**20
_SMALLEST_RATE = 1e-6


class MLPDivergenceError(DivergenceError, ValueError):
    """Training lost its parameters; scikit-learn has a ValueError there."""


@dataclass
class Course:
    """Where a training stands, beyond the state of its trainer.

    Attributes
    ----------
    rows_seen : int
        Rows that all trainings went through, ``t_``.
    n_iter : int
        Passes of the last training.
    waited : int
        Passes in a row that brought no improvement by ``tol``.
    best_loss, best_score : float or None
        Lowest loss of a pass, and highest score of held-out rows.
    rate : float
        Learning rate of the next pass, in units of ``learning_rate_init``.
    last_loss : float or None
        Where L-BFGS arrived.
    """

    rows_seen: int = 0
    n_iter: int = 0
    waited: int = 0
    best_loss: float | None = None
    best_score: float | None = None
    rate: float = 1.0
    last_loss: float | None = None


class _Memory:
    """What a checkpoint keeps beside the trainer: the course, and the state of the best pass."""

    def __init__(
        self, estimator: MLPEstimator, best: tuple[dict[str, Tensor], dict[str, Any]] | None = None
    ) -> None:
        self.estimator = estimator
        self.best = best

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, best = ({}, None) if self.best is None else self.best
        return tensors, {"course": dataclasses.asdict(self.estimator._course), "best": best}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.estimator._course = Course(**values["course"])
        self.best = None if values["best"] is None else (tensors, values["best"])


class MLPEstimator(TorchEstimator):
    """Base of the perceptrons: a subclass encodes targets, decodes outputs and scores them."""

    _options_type = PerceptronOptions
    _passes = "max_iter"

    model_: nn.Sequential
    out_activation_: str
    n_outputs_: int
    n_features_in_: int
    _course: Course
    _columns: ColumnEncoder | None = None
    _categorical: tuple[int, ...] = ()

    # ---- what a subclass says --------------------------------------------------------------------

    def _define_targets(self, y: Any, classes: np.ndarray | None) -> None:
        """Set ``out_activation_`` and ``n_outputs_`` for a new net."""
        raise NotImplementedError

    def _encode(self, y: Any) -> np.ndarray:
        """Targets as numbers: classes as integers, all else as a matrix of floats."""
        raise NotImplementedError

    def _score_outputs(self, outputs: np.ndarray, rows: LabelledRows) -> float:
        """The score of outputs of the net for rows with encoded targets."""
        raise NotImplementedError

    def _stratified(self, labels: np.ndarray) -> np.ndarray | None:
        """What the held-out rows are drawn in proportion to."""
        return None

    def _row_weights(self, labels: np.ndarray, weights: np.ndarray | None) -> np.ndarray | None:
        """Weights of the rows, those of their classes included."""
        return weights

    # ---- the public face -------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Train a net on rows and their targets; with ``warm_start``, the net that there is.

        Ctrl-C ends training with a warning and the net of the last complete pass.

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
            rows, dtype = self._checked(X, y, sample_weight, first)
            checkpoint = self._checkpoint(rows)
            held_out: LabelledRows | None = None
            if self.early_stopping and self.solver != "lbfgs":
                rows, held_out = self._split(rows)
            trainer = self._start(rows, dtype, first)
            try:
                if self.solver == "lbfgs":
                    self._minimize(trainer, rows, checkpoint)
                else:
                    self._descend(trainer, rows, held_out, checkpoint)
            except DivergenceError as error:
                # What was learned before is kept, so that this one leaves the block in peace.
                diverged = error
        if diverged is not None:
            raise MLPDivergenceError(
                "Solver produced non-finite parameter weights. The input data may contain large "
                f"values and need to be preprocessed: {diverged.event}",
                self._advice_for_divergence(),
            ) from diverged
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
            rows, dtype = self._checked(X, y, sample_weight, first, classes)
            trainer = self._start(rows, dtype, True) if first else self._continued(len(rows))
            trainer.options = dataclasses.replace(trainer.options, n_epochs=trainer.epoch + 1)
            before = trainer.state()
            if self._announced != (self.callback, trainer):
                self._announce(trainer)
            try:
                trainer.fit(rows, on_epoch=self._after_epoch(len(rows), lambda trainer: None))
            except BaseException:
                trainer.restore(*before)
                raise
            self._publish(trainer)
        return self

    def _continued(self, n_rows: int) -> Trainer:
        """The trainer that there is, to go on with the parameters of now."""
        self._course = dataclasses.replace(self._course, n_iter=0)
        self._refuse_other_architecture(self._architecture["n_features"], "call fit")
        asked = self._perceptron_options(n_rows)
        self._refuse_other_optimizer(asked)
        self._trainer.options = asked
        return self._trainer

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

    # ---- data ------------------------------------------------------------------------------------

    def _checked(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        first: bool,
        classes: np.ndarray | None = None,
    ) -> tuple[Any, torch.dtype]:
        """Validated rows with encoded targets; rows that weigh nothing are left out."""
        stream = as_stream(X)
        if stream is not None:
            return self._streamed(stream, y, sample_weight, first, classes)
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
        matrix = self._encoded(found, weights, first)
        rows, dtype = self._as_rows(matrix, first)
        device = rows.take(slice(0, 1)).device
        numbers_ = torch.from_numpy(labels).to(device)
        if numbers_.dtype != torch.int64:
            numbers_ = numbers_.to(dtype)
        weighing = None if weights is None else torch.from_numpy(weights).to(device, dtype)
        return LabelledRows(rows, numbers_, weighing), dtype

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
            targets = stream.sample(_BLOCK).labels
            if hasattr(self, "predict_proba") and targets is not None and targets.ndim == 1:
                labels, counts = stream.label_counts()
                most = max(2, _MOST_REPEATED // len(labels))
                targets = np.repeat(labels, np.minimum(counts, most))
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

    def _encoded(self, found: Any, weights: np.ndarray | None = None, learn: bool = False) -> Any:
        """Numbers of a table; the first one says how they are made."""
        if not isinstance(found, Table):
            return found
        if learn:
            self._columns = ColumnEncoder.learn(
                found,
                self._column_names(),
                self._categorical,
                impute=self.missing == "impute",
                weights=weights,
            )
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

    def _split(self, rows: Any) -> tuple[Any, LabelledRows]:
        """Rows to learn from and rows held out, drawn from the seed."""
        if isinstance(rows, StreamedRows):
            n = round(float(self.validation_fraction) * len(rows))
            rows, rest = rows.split(min(max(n, 2), _MOST_HELD_OUT))
            batch = rest.take(slice(0, len(rest)))
            return rows, LabelledRows(DenseRows(batch.rows), batch.labels)
        seed = self._seed()
        own = seed if isinstance(seed, np.random.RandomState) else seed % 2**32
        kept, watched = train_test_split(
            np.arange(len(rows)),
            test_size=self.validation_fraction,
            stratify=self._stratified(as_array(rows.labels)),
            random_state=own,
        )
        if len(watched) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of "
                "your dataset."
            )
        return rows.part(torch.from_numpy(kept)), rows.part(torch.from_numpy(watched))

    def _outputs(self, X: Any) -> np.ndarray:
        """Outputs of the net before the activation of its last layer, shape (n, n_outputs)."""
        check_is_fitted(self)
        return self._map_rows(X, self.model_)

    # ---- training --------------------------------------------------------------------------------

    def _start(self, rows: LabelledRows, dtype: torch.dtype, first: bool) -> PerceptronTrainer:
        """A trainer of a new net, or of a copy of the one that there is."""
        seed = self._seed()
        if first:
            self._course = Course()
            options = self._perceptron_options(len(rows))
            self._architecture = self._chosen_architecture(rows.width)
            net = multilayer_perceptron(**self._architecture).to(as_device(self.device), dtype)
            trainer = self._trainer_of(net, options, seed)
            # scikit-learn's own weights for the same seed.
            own = seed if isinstance(seed, np.random.RandomState) else np.random.RandomState(seed)
            initialize_perceptron(
                net, RandomStream(own), activation=self._architecture["activation"], init=self.init
            )
            return trainer
        self._refuse_other_architecture(rows.width, "pass warm_start=False")
        self._course = dataclasses.replace(self._course, n_iter=0, rate=1.0)
        options = self._perceptron_options(len(rows))
        trainer = self._trainer_of(copy.deepcopy(self.model_), options, seed)
        trainer.history = list(self._trainer.history)
        return trainer

    def _trainer_of(
        self, net: nn.Sequential, options: PerceptronOptions, seed: int | np.random.RandomState
    ) -> PerceptronTrainer:
        draws = 0
        if any(isinstance(layer, nn.Dropout | nn.AlphaDropout) for layer in net):
            draws = seed if isinstance(seed, int) else int(seed.randint(2**31))
        gradient = PerceptronGradient(net, self.out_activation_, options.alpha, seed=draws)
        random = RandomStream(seed, next(net.parameters()).device)
        return PerceptronTrainer(net, options, random, gradient=gradient, order=order_stream(seed))

    def _descend(
        self,
        trainer: PerceptronTrainer,
        rows: LabelledRows,
        held_out: LabelledRows | None,
        checkpoint: FitCheckpoint | None,
    ) -> None:
        """Train pass by pass, and go back to the best one where rows were held out."""
        memory = _Memory(self, trainer.state() if held_out is not None else None)
        if checkpoint is not None:
            checkpoint.memory = memory

        def judge(trainer: Trainer) -> None:
            if held_out is not None and self._judge_score(trainer, held_out):
                memory.best = trainer.state()

        def finish(trainer: Trainer) -> None:
            if memory.best is not None:
                history = trainer.history
                trainer.restore(*memory.best)
                trainer.history = history
            self._measure_population(trainer, rows)

        after_epoch = self._after_epoch(len(rows), judge, warn=True)
        try:
            self._train(trainer, rows, after_epoch, finish, checkpoint)
        except DivergenceError as error:
            if held_out is None:
                # What was published is the net of the last good pass.
                self._measure_population(trainer, rows)
                raise
            warn_the_caller(
                f"{error.event}; the best pass is kept. {self._advice_for_divergence()}",
                ConvergenceWarning,
            )
            self._course.n_iter += 1
            trainer.history.append({"loss": math.nan, "score_held_out": math.nan})
            finish(trainer)
            self._publish(trainer)

    def _advice_for_divergence(self) -> str:
        """What to change, in the names of the parameters of this estimator."""
        advice = f"Lower learning_rate_init (now {self.learning_rate_init:g})"
        if self.solver != "adam" and self.momentum > 0:
            advice += f" or momentum (now {self.momentum:g})"
        if self.normalization == "max_norm":
            return f"{advice} or max_norm (now {self.max_norm:g}), or standardise the columns of X"
        return f"{advice}, standardise the columns of X, or set normalization='max_norm'"

    def _after_epoch(
        self, n_rows: int, judge: Callable[[Any], None], *, warn: bool = False
    ) -> Callable[[Any], None]:
        """What follows each pass: counting, printing, the callback, the rate, and the end."""

        def after_epoch(trainer: PerceptronTrainer) -> None:
            course = self._course
            course.n_iter += 1
            course.rows_seen += n_rows
            judge(trainer)
            record = trainer.history[-1]
            if not self.early_stopping:
                self._judge_loss(record["loss"])
            if self.verbose:
                self._print_epoch(record)
            if self.callback is not None:
                self.callback(trainer)
            if self.solver == "sgd" and self.learning_rate == "invscaling":
                course.rate = (course.rows_seen + 1) ** -float(self.power_t)
            # A cosine is to reach its end, which is no sign of a want of passes.
            planned = self.learning_rate == "cosine"
            if course.waited > self.n_iter_no_change and (self.early_stopping or not planned):
                self._stop_or_slow_down(trainer)
            elif warn and not planned and trainer.epoch == trainer.options.n_epochs:
                _warn_of_maximum(self.max_iter)
            trainer.set_rate(self.learning_rate_init * course.rate)

        return after_epoch

    def _judge_loss(self, loss: float) -> None:
        course = self._course
        best = math.inf if course.best_loss is None else course.best_loss
        course.waited = course.waited + 1 if loss > best - self.tol else 0
        if loss < best:
            course.best_loss = loss

    def _judge_score(self, trainer: Trainer, held_out: LabelledRows) -> bool:
        """Whether this pass scores higher than all before."""
        course = self._course
        score = self._score_outputs(_outputs_of(trainer.model, held_out), held_out)
        trainer.history[-1]["score_held_out"] = score
        best = -math.inf if course.best_score is None else course.best_score
        course.waited = course.waited + 1 if score < best + self.tol else 0
        if score > best:
            course.best_score = score
        return score > best

    def _stop_or_slow_down(self, trainer: Trainer) -> None:
        rate = trainer.options.learning_rate
        adaptive = self.solver == "sgd" and self.learning_rate == "adaptive"
        if not adaptive or rate <= _SMALLEST_RATE:
            raise StopTraining
        self._course.rate /= 5.0
        self._course.waited = 0

    def _print_epoch(self, record: dict[str, Any]) -> None:
        print(f"Iteration {self._course.n_iter}, loss = {record['loss']:.8f}")
        if "score_held_out" in record:
            print(f"Validation score: {record['score_held_out']:.6f}")

    def _minimize(
        self,
        trainer: PerceptronTrainer,
        rows: LabelledRows,
        checkpoint: FitCheckpoint | None,
    ) -> None:
        """Train by L-BFGS, which knows no passes."""
        if checkpoint is not None:
            checkpoint.memory = _Memory(self)
        if checkpoint is None or not checkpoint.restore(trainer):
            self._announce(trainer)
            self._find_minimum(trainer, rows)
            if checkpoint is not None:
                checkpoint.save(trainer, ended=True)
        self._measure_population(trainer, rows)
        self._publish(trainer)

    def _find_minimum(self, trainer: PerceptronTrainer, rows: LabelledRows) -> None:
        gradient: Any = trainer.gradient
        found = minimize_lbfgs(
            trainer.model,
            gradient,
            rows,
            max_iter=self.max_iter,
            max_fun=self.max_fun,
            tol=self.tol,
        )
        if not all(bool(p.isfinite().all()) for p in trainer.model.parameters()):
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large "
                "values and need to be preprocessed."
            )
        if found.status != 0:
            warn_the_caller(
                f"lbfgs failed to converge after {found.nit} iterations ({found.message}): raise "
                "max_iter or max_fun, or scale the data",
                ConvergenceWarning,
            )
        gradient.measure()
        self._course.n_iter = min(int(found.nit), self.max_iter)
        self._course.last_loss = float(gradient.batch_loss)

    def _measure_population(self, trainer: Trainer, rows: LabelledRows | StreamedRows) -> None:
        if isinstance(rows, StreamedRows):
            # The layers need all the rows at once that their statistics are of.
            rows = LabelledRows(DenseRows(rows.some(_MOST_HELD_OUT).rows), torch.empty(0))
        parts = range(0, len(rows), _BLOCK)
        set_population_statistics(
            trainer.model, (rows.rows.take(slice(k, k + _BLOCK)) for k in parts)
        )

    def _publish(self, trainer: Trainer) -> None:
        super()._publish(trainer)
        course, history = self._course, trainer.history
        self.n_iter_, self.t_ = course.n_iter, course.rows_seen
        self.loss_ = course.last_loss
        if self.solver == "lbfgs":
            return
        self.loss_curve_ = [record["loss"] for record in history]
        self.loss_ = self.loss_curve_[-1] if history else None
        self.best_loss_ = course.best_loss
        scores = [r["score_held_out"] for r in history if "score_held_out" in r]
        self.validation_scores_ = scores if self.early_stopping else None
        self.best_validation_score_ = course.best_score

    # ---- parameters ------------------------------------------------------------------------------

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

    def _hidden_sizes(self) -> tuple[int, ...]:
        sizes = self.hidden_layer_sizes
        sizes = tuple(sizes) if isinstance(sizes, Iterable) else (sizes,)
        for n in sizes:
            check_whole("hidden_layer_sizes", n, 1)
        return tuple(int(n) for n in sizes)

    def _chosen_architecture(self, n_features: int) -> dict[str, Any]:
        return {
            "n_features": n_features,
            "hidden_layer_sizes": self._hidden_sizes(),
            "n_outputs": self.n_outputs_,
            "activation": self.activation,
            "normalization": self.normalization,
            "dropout": float(self.dropout),
            "ghost_batch_size": int(self.ghost_batch_size),
        }

    def _refuse_other_architecture(self, n_features: int, cure: str) -> None:
        asked = self._chosen_architecture(n_features)
        changed = [name for name, value in asked.items() if self._architecture[name] != value]
        if changed:
            raise ValueError(
                f"{', '.join(changed)} changed since training started; set the old value again, "
                f"or {cure} to start anew"
            )

    def _refuse_other_optimizer(self, asked: PerceptronOptions) -> None:
        """What the optimiser holds already would be passed over in silence."""
        started = self._trainer.options
        for option, parameter in _OF_THE_OPTIMIZER.items():
            if getattr(started, option) != getattr(asked, option):
                raise ValueError(
                    f"{parameter} changed since training started; set the old value again, or "
                    "call fit to start anew"
                )

    def _perceptron_options(self, n_rows: int) -> PerceptronOptions:
        """The options of a training on so many rows."""
        constraint: dict[str, Any] = {}
        if self.normalization == "max_norm":
            constraint = {"weight_constraint": "l2", "max_norm": float(self.max_norm)}
        stochastic = self.solver if self.solver != "lbfgs" else "sgd"
        return PerceptronOptions(
            n_epochs=int(self.max_iter),
            batch_size=self._batch_rows(n_rows),
            schedule="cosine" if self.learning_rate == "cosine" else "inverse",
            learning_rate=float(self.learning_rate_init) * self._course.rate,
            optimizer=stochastic,
            momentum=0.0 if self.solver in ("adam", "lbfgs") else float(self.momentum),
            shuffle=bool(self.shuffle),
            alpha=float(self.alpha),
            nesterov=bool(self.nesterovs_momentum),
            beta_1=float(self.beta_1),
            beta_2=float(self.beta_2),
            epsilon=float(self.epsilon),
            **constraint,
        )

    def _batch_rows(self, n_rows: int) -> int:
        if self.batch_size == "auto":
            return min(_LARGEST_BATCH, n_rows)
        if self.batch_size > n_rows:
            warn_the_caller(
                f"Got `batch_size` larger than sample size ({self.batch_size} of {n_rows} rows). "
                "It is going to be clipped"
            )
        return min(int(self.batch_size), n_rows)

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


@torch.no_grad()
def _outputs_of(model: nn.Module, rows: LabelledRows) -> np.ndarray:
    parts = range(0, len(rows), _BLOCK)
    return as_array(torch.cat([model(rows.rows.take(slice(k, k + _BLOCK))) for k in parts]))


def _warn_of_maximum(max_iter: int) -> None:
    warn_the_caller(
        f"Stochastic Optimizer: Maximum iterations ({max_iter}) reached and the optimization "
        "hasn't converged yet.",
        ConvergenceWarning,
    )

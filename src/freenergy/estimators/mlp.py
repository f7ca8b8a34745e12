"""What the multilayer perceptrons share: parameters, training, attributes and files."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor, nn

from freenergy.estimators.base import TorchEstimator, as_array, as_device, order_stream
from freenergy.estimators.validation import check_finite, unchanged_on_error
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
from freenergy.training.rows import LabelledRows
from freenergy.training.stopping import StopTraining
from freenergy.training.trainer import DivergenceError, Trainer

__all__ = ["MLPDivergenceError", "MLPEstimator", "is_stochastic"]

_SOLVERS = ("adam", "sgd", "rmsprop", "lbfgs")
_SCHEDULES = ("constant", "invscaling", "adaptive")
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


class MLPEstimator(TorchEstimator):
    """Base of the perceptrons: a subclass encodes targets, decodes outputs and scores them."""

    _options_type = PerceptronOptions

    model_: nn.Sequential
    out_activation_: str
    n_outputs_: int
    n_features_in_: int
    _course: Course

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

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train a net on rows and their targets; with ``warm_start``, the net that there is.

        Ctrl-C ends training with a warning and the net of the last complete pass.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
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
            held_out: LabelledRows | None = None
            if self.early_stopping and self.solver != "lbfgs":
                rows, held_out = self._split(rows)
            trainer = self._start(rows, dtype, first)
            try:
                if self.solver == "lbfgs":
                    self._minimize(trainer, rows)
                else:
                    self._descend(trainer, rows, held_out)
            except DivergenceError as error:
                # What was learned before is kept, so that this one leaves the block in peace.
                diverged = error
        if diverged is not None:
            raise MLPDivergenceError(
                "Solver produced non-finite parameter weights. The input data may contain large "
                f"values and need to be preprocessed: {diverged}"
            ) from diverged
        return self

    def _partial_fit(
        self, X: Any, y: Any, sample_weight: Any, classes: np.ndarray | None = None
    ) -> Self:
        """One pass over the rows; the first call starts a net."""
        if self.early_stopping:
            raise ValueError("partial_fit does not support early_stopping=True")
        with unchanged_on_error(self):
            self._check_parameters()
            first = not hasattr(self, "model_")
            rows, dtype = self._checked(X, y, sample_weight, first, classes)
            trainer = self._start(rows, dtype, True) if first else self._continued(len(rows))
            trainer.options = dataclasses.replace(trainer.options, n_epochs=trainer.epoch + 1)
            before = trainer.state()
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
        asked = self._perceptron_options(n_rows)
        self._refuse_other_optimizer(asked)
        self._trainer.options = asked
        return self._trainer

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
        return tags

    # ---- data ------------------------------------------------------------------------------------

    def _checked(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        first: bool,
        classes: np.ndarray | None = None,
    ) -> tuple[LabelledRows, torch.dtype]:
        """Validated rows with encoded targets; rows that weigh nothing are left out."""
        matrix, targets = validate_data(
            self,
            X,
            y,
            reset=first,
            accept_sparse="csr",
            dtype=(np.float64, np.float32),
            multi_output=True,
            y_numeric=not hasattr(self, "predict_proba"),
            ensure_all_finite=False,
        )
        check_finite(matrix, getattr(self, "feature_names_in_", None))
        if first:
            self._define_targets(targets, classes)
        labels = self._encode(targets)
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(
                sample_weight, matrix, dtype=np.float64, ensure_non_negative=True
            )
        weights = self._row_weights(labels, weights)
        if weights is not None and not weights.all():
            counted = weights > 0
            if not counted.any():
                raise ValueError("all rows have a weight of zero: there is nothing to learn from")
            matrix, labels, weights = matrix[counted], labels[counted], weights[counted]
        rows, dtype = self._as_rows(matrix, first)
        device = rows.take(slice(0, 1)).device
        numbers_ = torch.from_numpy(labels).to(device)
        if numbers_.dtype != torch.int64:
            numbers_ = numbers_.to(dtype)
        weighing = None if weights is None else torch.from_numpy(weights).to(device, dtype)
        return LabelledRows(rows, numbers_, weighing), dtype

    def _split(self, rows: LabelledRows) -> tuple[LabelledRows, LabelledRows]:
        """Rows to learn from and rows held out, drawn from the seed."""
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
        self._refuse_other_architecture(rows.width)
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
        self, trainer: PerceptronTrainer, rows: LabelledRows, held_out: LabelledRows | None
    ) -> None:
        """Train pass by pass, and go back to the best one where rows were held out."""
        best = trainer.state()

        def judge(trainer: Trainer) -> None:
            nonlocal best
            if held_out is not None and self._judge_score(trainer, held_out):
                best = trainer.state()

        def finish(trainer: Trainer) -> None:
            if held_out is not None:
                history = trainer.history
                trainer.restore(*best)
                trainer.history = history
            self._measure_population(trainer, rows)

        try:
            self._train(trainer, rows, self._after_epoch(len(rows), judge, warn=True), finish)
        except DivergenceError as error:
            if held_out is None:
                raise
            warnings.warn(f"{error}; the best pass is kept", ConvergenceWarning, stacklevel=3)
            self._course.n_iter += 1
            trainer.history.append({"loss": math.nan, "score_held_out": math.nan})
            finish(trainer)
            self._publish(trainer)

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
            if course.waited > self.n_iter_no_change:
                self._stop_or_slow_down(trainer)
            elif warn and trainer.epoch == trainer.options.n_epochs:
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

    def _minimize(self, trainer: PerceptronTrainer, rows: LabelledRows) -> None:
        """Train by L-BFGS, which knows no passes."""
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
            warnings.warn(
                f"lbfgs failed to converge after {found.nit} iterations ({found.message}): raise "
                "max_iter or max_fun, or scale the data",
                ConvergenceWarning,
                stacklevel=3,
            )
        gradient.measure()
        self._course.n_iter = min(int(found.nit), self.max_iter)
        self._course.last_loss = float(gradient.batch_loss)
        self._measure_population(trainer, rows)
        self._publish(trainer)

    def _measure_population(self, trainer: Trainer, rows: LabelledRows) -> None:
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

    def _check_parameters(self) -> None:
        check_one_of("solver", self.solver, _SOLVERS)
        check_one_of("learning_rate", self.learning_rate, _SCHEDULES)
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

    def _refuse_other_architecture(self, n_features: int) -> None:
        asked = self._chosen_architecture(n_features)
        changed = [name for name, value in asked.items() if self._architecture[name] != value]
        if changed:
            raise ValueError(
                f"{', '.join(changed)} changed since training started; set the old value again, "
                "or pass warm_start=False to start anew"
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
            warnings.warn(
                f"Got `batch_size` larger than sample size ({self.batch_size} of {n_rows} rows). "
                "It is going to be clipped",
                UserWarning,
                stacklevel=5,
            )
        return min(int(self.batch_size), n_rows)

    # ---- files -----------------------------------------------------------------------------------

    def _model_spec(self) -> dict[str, Any]:
        return {
            "architecture": self._architecture,
            "out_activation": self.out_activation_,
            "course": dataclasses.asdict(self._course),
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
    warnings.warn(
        f"Stochastic Optimizer: Maximum iterations ({max_iter}) reached and the optimization "
        "hasn't converged yet.",
        ConvergenceWarning,
        stacklevel=5,
    )

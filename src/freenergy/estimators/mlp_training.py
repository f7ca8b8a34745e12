"""How a perceptron is trained: to its end, by each solver, with early stopping and a warm start."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from freenergy.estimators.base import as_array, as_device, order_stream
from freenergy.estimators.checkpoints import FitCheckpoint
from freenergy.estimators.mlp_rows import BLOCK, MOST_HELD_OUT, PerceptronRows
from freenergy.estimators.validation import warn_the_caller
from freenergy.models.mlp import initialize_perceptron, multilayer_perceptron
from freenergy.normalization.layers import set_population_statistics
from freenergy.random import RandomStream
from freenergy.training.options import check_whole
from freenergy.training.perceptron import (
    PerceptronGradient,
    PerceptronOptions,
    PerceptronTrainer,
    minimize_lbfgs,
)
from freenergy.training.rows import DenseRows, LabelledRows, StreamedRows
from freenergy.training.stopping import StopTraining
from freenergy.training.trainer import DivergenceError, Trainer

__all__ = ["Course", "PerceptronTraining"]

_OF_THE_OPTIMIZER = {
    "optimizer": "solver",
    "momentum": "momentum",
    "nesterov": "nesterovs_momentum",
    "beta_1": "beta_1",
    "beta_2": "beta_2",
    "epsilon": "epsilon",
}
_LARGEST_BATCH = 200
_SMALLEST_RATE = 1e-6


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
        self,
        estimator: PerceptronTraining,
        best: tuple[dict[str, Tensor], dict[str, Any]] | None = None,
    ) -> None:
        self.estimator = estimator
        self.best = best

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, best = ({}, None) if self.best is None else self.best
        return tensors, {"course": dataclasses.asdict(self.estimator._course), "best": best}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.estimator._course = Course(**values["course"])
        self.best = None if values["best"] is None else (tensors, values["best"])


class PerceptronTraining(PerceptronRows):
    """The trainings of a perceptron: a subclass scores the outputs of its net."""

    _options_type = PerceptronOptions
    _passes = "max_iter"
    _course: Course

    def _score_outputs(self, outputs: np.ndarray, rows: LabelledRows) -> float:
        """The score of outputs of the net for rows with encoded targets."""
        raise NotImplementedError

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
                f"{error.event}; the best pass is kept. {error.advice}",
                ConvergenceWarning,
            )
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
            if self.verbose and trainer.group.rank == 0:
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
            rows = LabelledRows(DenseRows(rows.some(MOST_HELD_OUT).rows), torch.empty(0))
        parts = range(0, len(rows), BLOCK)
        set_population_statistics(
            trainer.model, (rows.rows.take(slice(k, k + BLOCK)) for k in parts)
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


@torch.no_grad()
def _outputs_of(model: nn.Module, rows: LabelledRows) -> np.ndarray:
    parts = range(0, len(rows), BLOCK)
    return as_array(torch.cat([model(rows.rows.take(slice(k, k + BLOCK))) for k in parts]))


def _warn_of_maximum(max_iter: int) -> None:
    warn_the_caller(
        f"Stochastic Optimizer: Maximum iterations ({max_iter}) reached and the optimization "
        "hasn't converged yet.",
        ConvergenceWarning,
    )

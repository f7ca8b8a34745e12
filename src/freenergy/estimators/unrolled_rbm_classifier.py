"""From the RBM to the multilayer perceptron: pretrain, unroll, and train by backpropagation."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn.utils import skip_init

from freenergy.estimators.base import as_device, order_stream
from freenergy.estimators.bernoulli_rbm import BernoulliRBM
from freenergy.estimators.checkpoints import FitCheckpoint
from freenergy.estimators.classifier import ProbabilisticClassifier
from freenergy.estimators.divergence import advice_for_divergence
from freenergy.estimators.validation import within
from freenergy.models import RBM, UnrolledRBM, fold, unroll
from freenergy.random import RandomStream
from freenergy.thermodynamics import RBMMonitor
from freenergy.training.backprop import Backpropagation, mean_cross_entropy
from freenergy.training.options import LoopOptions, check_one_of, check_share, check_whole
from freenergy.training.rows import LabelledRows, Rows, StreamedRows
from freenergy.training.run import model_spec
from freenergy.training.stopping import EarlyStopping, StopTraining
from freenergy.training.trainer import START_SCALE, DivergenceError, Trainer

__all__ = ["PRETRAINING", "UnrolledRBMClassifier"]

_WATCHED_ROWS = 200
_WATCHED_STATES = 20
# More copies of the rows than so many would cost time and memory.
_MOST_REPEATED = 10
# Whole numbers up to here are exact in double precision.
_LARGEST_WHOLE = 2.0**53
# Of a fit: the training of the layers once they are released.
_RELEASED = 1
PRETRAINING: dict[str, Any] = {
    "n_components": 256,
    "learning_rate": 0.05,
    "batch_size": 20,
    "n_iter": 20,
    "centered": True,
}


class UnrolledRBMClassifier(ProbabilisticClassifier):
    r"""A restricted Boltzmann machine unrolled into a deep net, with a softmax on top.

    An RBM is trained on all rows, labelled or not; *n* sweeps of its mean-field equations become
    the *n* hidden layers of a network,

    .. math:: h_1 = \sigma(b + W^\top v), \qquad
              h_{l+1} = \sigma\big(b + W^\top \sigma(a + W h_l)\big), \qquad
              p(y \mid v) = \text{softmax}(U h_n + d)_y,

    which backpropagation trains on the labelled rows. The layers share their weights (``tied``),
    own a copy each, or are released after some passes. All the while the weights define an RBM,
    whose free energy, energy and entropy are recorded.

    Parameters
    ----------
    rbm : BernoulliRBM or None, default=None
        What to pretrain; it is cloned. None is ``BernoulliRBM(256, learning_rate=0.05,
        batch_size=20, n_iter=20, centered=True)``; ``sklearn.frozen.FrozenEstimator(fitted)``
        takes one that is trained already (a saved classifier keeps its parameters alone). Where
        rows have weights, it sees each as often as its weight says, to the next whole number.
    pretrain : bool, default=True
        False leaves the weights of ``rbm`` random, from N(0, 32 / (n_features + n_components)):
        Glorot and Bengio's variance for sigmoid nets, with which one learns without pretraining.
    depth : int, default=2
        Number of hidden layers, which is the number of mean-field sweeps.
    tied : bool, default=True
        Whether the layers share one weight matrix and its biases.
    release_after : int or None, default=None
        For ``tied=True``: after so many passes of ``fit`` every layer owns a copy, and the
        optimiser starts anew. Early stopping counts from there.
    order : {1, 2, 3}, default=1
        1 is a plain sigmoid network; 2 adds the Onsager reaction (TAP) in each layer, 3 the next.
    damping : float, default=0.0
        Share of the old magnetisation that each half-sweep keeps: a skip connection.
    input_dropout, dropout : float, default=0.0
        Shares of the input and of the last hidden layer that are dropped while training.
    learning_rate : float, default=0.005
        Of backpropagation, as are the options below; ``rbm`` has its own.
    batch_size : int, default=100
    n_iter : int, default=100
        Passes over the labelled rows.
    optimizer : {"adam", "adamw", "sgd", "rmsprop"}, default="adam"
    random_state : int, RandomState instance or None, default=None
        One int gives the same bits on the same CPU with the same number of threads. It also seeds
        ``rbm`` where that has no seed.
    class_weight : dict, "balanced" or None, default=None
    unlabeled : int, str or None, default="auto"
        The label of rows that have none: only the pretraining learns from them. None takes every
        label for a class. ``"auto"`` is -1 where the other labels are two or more numbers from 0
        on, with a warning.
    early_stopping : bool, default=False
        Hold out ``validation_fraction`` of the labelled rows, stop when their accuracy does not
        rise by more than ``tol`` in ``n_iter_no_change`` passes, and keep the best pass.
    validation_fraction : float, default=0.1
    n_iter_no_change : int, default=10
    tol : float, default=1e-4
    momentum, learning_rate_decay, l1, l2 : float, default=0.0
    schedule : {"inverse", "cosine"}, default="inverse"
        ``"cosine"`` lowers the learning rate along half a period to zero at the end.
    shuffle : bool, default=True
    updates_per_epoch : int or None, default=None
        End each pass after at most so many updates, for streams too long for whole passes; ``rbm``
        has its own. None visits all rows.
    device : str, default="cpu"
    validate_range : bool, default=True
        Refuse values outside [0, 1], which are no magnetisations of 0/1 units.
    verbose : int, default=0
    callback : callable or None, default=None
        Called with the trainer after each pass; may stop training. Where it has a method
        ``on_train_begin``, that is called with the trainer before its first pass.
    checkpoint_dir : path-like or None, default=None
        Folder in which each pass of :meth:`fit` leaves its state. A fit that was killed, or
        interrupted, goes on from there when it is called again with the same parameters and data,
        to the same bits; one that is complete there is loaded, and goes on where ``n_iter`` was
        raised. Other parameters or data there are refused. Needs an int as ``random_state``. What
        ``callback`` remembers is its own affair. The pretraining has a folder in it.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    model_ : freenergy.models.UnrolledRBM
    pretraining_history_ : dict of list
        The history of ``rbm``.
    history_ : dict of list
        Numbers of each pass by name: ``loss`` and ``accuracy`` as in
        :class:`~freenergy.RBMClassifier`, and of the RBM that the weights define (the average of
        the layers' where they are not tied) ``rbm_free_energy`` (mean :math:`F(v)` of training
        rows), ``rbm_weight_norm``, and by the second order of the mean field
        ``rbm_tap2_free_energy``, ``rbm_tap2_energy``, ``rbm_tap2_entropy``,
        ``rbm_tap2_log_partition`` and ``rbm_tap2_converged``. They read the first 200 rows, or as
        many from all over a stream, their values clipped to [0, 1].
    n_iter_ : int
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features,)
        Only where the columns of ``X`` have names.

    Notes
    -----
    Depth needs couplings: where the weights are small (a short pretraining, a high temperature) the
    sweeps of all rows run to one fixed point and forget their input, and a net of ``depth=2``
    classifies no better than chance. Pretrain longer, or take ``depth=1``.

    References
    ----------
    Hinton and Salakhutdinov, *Reducing the dimensionality of data with neural networks*, Science
    313, 2006 (pretraining); Hershey, Le Roux, Weninger, *Deep unfolding*, arXiv:1409.2574.

    Examples
    --------
    >>> import freenergy as fe
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> rbm = fe.BernoulliRBM(32, learning_rate=0.05, centered=True, random_state=0)
    >>> clf = fe.UnrolledRBMClassifier(rbm, learning_rate=0.02, n_iter=15, random_state=0)
    >>> clf = clf.fit(X / 16, y)
    >>> bool(clf.score(X / 16, y) > 0.85)
    True
    >>> clf.fold().weight.shape
    torch.Size([64, 32])
    """

    _options_type = LoopOptions
    model_: UnrolledRBM

    def __init__(
        self,
        rbm: BernoulliRBM | FrozenEstimator | None = None,
        *,
        pretrain: bool = True,
        depth: int = 2,
        tied: bool = True,
        release_after: int | None = None,
        order: int = 1,
        damping: float = 0.0,
        input_dropout: float = 0.0,
        dropout: float = 0.0,
        learning_rate: float = 0.005,
        batch_size: int = 100,
        n_iter: int = 100,
        optimizer: str = "adam",
        random_state: int | np.random.RandomState | None = None,
        class_weight: dict[Any, float] | str | None = None,
        unlabeled: int | str | None = "auto",
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        momentum: float = 0.0,
        learning_rate_decay: float = 0.0,
        schedule: str = "inverse",
        l1: float = 0.0,
        l2: float = 0.0,
        shuffle: bool = True,
        updates_per_epoch: int | None = None,
        device: str = "cpu",
        validate_range: bool = True,
        verbose: int = 0,
        callback: Callable[[Trainer], None] | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.rbm = rbm
        self.pretrain = pretrain
        self.depth = depth
        self.tied = tied
        self.release_after = release_after
        self.order = order
        self.damping = damping
        self.input_dropout = input_dropout
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.n_iter = n_iter
        self.optimizer = optimizer
        self.random_state = random_state
        self.class_weight = class_weight
        self.unlabeled = unlabeled
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.momentum = momentum
        self.learning_rate_decay = learning_rate_decay
        self.schedule = schedule
        self.l1 = l1
        self.l2 = l2
        self.shuffle = shuffle
        self.updates_per_epoch = updates_per_epoch
        self.device = device
        self.validate_range = validate_range
        self.verbose = verbose
        self.callback = callback
        self.checkpoint_dir = checkpoint_dir

    def fold(self) -> RBM:
        """The RBM that the weights define now: the average of the layers' where they are not tied.

        Returns
        -------
        freenergy.models.RBM
        """
        check_is_fitted(self)
        return fold(self.model_)

    def _options(self) -> LoopOptions:
        check_whole("depth", self.depth, 1)
        check_one_of("order", self.order, (1, 2, 3))
        check_share("damping", self.damping)
        check_share("dropout", self.dropout)
        check_share("input_dropout", self.input_dropout)
        if isinstance(self.rbm, FrozenEstimator) and not self.pretrain:
            raise ValueError("pretrain=False would pass over a trained rbm; drop one of them")
        if self.release_after is not None:
            check_whole("release_after", self.release_after, 0)
            if not self.tied:
                raise ValueError("release_after has no effect with tied=False; drop one of them")
        if not isinstance(_unfrozen(self.rbm), BernoulliRBM | None):
            raise ValueError(f"rbm must be a BernoulliRBM or None, got {self.rbm!r}")
        options: LoopOptions = super()._options()
        return options

    def _check_values(self, matrix: Any) -> Any:
        if not self.validate_range:
            return matrix
        return within(matrix, 0.0, 1.0, getattr(self, "feature_names_in_", None))

    def _is_extendable(self) -> bool:
        # Whether the layers are ever released depends on the number of passes.
        return self.release_after is None and super()._is_extendable()

    def _learns_without_labels(self) -> bool:
        return bool(self.pretrain) and not isinstance(self.rbm, FrozenEstimator)

    def _log_proba(self, options: LoopOptions, model: UnrolledRBM, x: Tensor) -> Tensor:
        return torch.log_softmax(model(x), -1)

    def _start(self, rows: LabelledRows | StreamedRows, dtype: torch.dtype) -> Trainer:
        seed = self._seed()
        rbm = self._pretrained(rows, dtype, seed)
        net = _unrolled(
            rbm.model_.to(as_device(self.device), dtype),
            len(self.classes_),
            self.dropout,
            depth=self.depth,
            tied=self.tied,
            order=self.order,
            beta=rbm._beta,
            damping=self.damping,
        )
        self.pretraining_history_ = rbm.history_
        trainer = self._trainer_of(net, self._options(), seed)
        trainer.monitors = (_Machine(rows, rbm._beta),)
        return trainer

    def _pretrained(
        self,
        rows: LabelledRows | StreamedRows,
        dtype: torch.dtype,
        seed: int | np.random.RandomState,
    ) -> BernoulliRBM:
        """The RBM to unroll; a copy where it was trained before."""
        if isinstance(self.rbm, FrozenEstimator):
            check_is_fitted(self.rbm.estimator)
            rbm = copy.deepcopy(self.rbm.estimator)
            if rbm.model_.n_visible != rows.width:
                raise ValueError(
                    f"rbm was trained on {rbm.model_.n_visible} features, but X has {rows.width}"
                )
            return rbm
        rbm = clone(self.rbm) if self.rbm is not None else BernoulliRBM(**PRETRAINING)
        if rbm.random_state is None:
            rbm.set_params(random_state=seed)
        rbm.set_params(device=self.device)
        if not self.pretrain:
            rbm.set_params(n_iter=0)
        if self.checkpoint_dir is not None and rbm.checkpoint_dir is None:
            rbm.set_params(checkpoint_dir=Path(self.checkpoint_dir) / "pretraining")
        try:
            rbm._fit_rows(_pretraining_rows(rows, rbm), dtype)
        except DivergenceError as error:
            event = f"rbm, in the pretraining: {error.event}"
            raise DivergenceError(event, advice_for_divergence(rbm, of="rbm")) from error
        if not self.pretrain:
            with torch.no_grad():
                scale = 4.0 * math.sqrt(2.0 / sum(rbm.model_.weight.shape))
                rbm.model_.weight.mul_(scale / START_SCALE)
        return rbm

    def _trainer_of(
        self, net: UnrolledRBM, options: LoopOptions, seed: int | np.random.RandomState
    ) -> Trainer:
        net.eval()
        draws = seed if isinstance(seed, int) else int(seed.randint(2**31))
        loss = partial(mean_cross_entropy, input_dropout=self.input_dropout)
        gradient = Backpropagation(net, loss, seed=draws)
        random = RandomStream(seed, next(net.parameters()).device)
        return Trainer(net, options, random, gradient=gradient, order=order_stream(seed))

    def _learned_from(self, rows: Any) -> Any:
        if isinstance(rows, StreamedRows):
            return rows.labelled_only()
        return rows.part(torch.nonzero(rows.labels >= 0).squeeze(1).cpu())

    def _learn(
        self,
        trainer: Trainer,
        rows: LabelledRows,
        stopping: EarlyStopping | None,
        checkpoint: FitCheckpoint | None,
    ) -> None:
        if self.release_after is None or self.release_after >= self.n_iter:
            super()._learn(trainer, rows, stopping, checkpoint)
            return
        monitors = trainer.monitors
        released_before = checkpoint is not None and checkpoint.stored_stage == _RELEASED
        tied = self.release_after > 0 and not released_before
        if tied and not self._learn_tied(trainer, rows, checkpoint):
            return
        if checkpoint is not None:
            checkpoint.stage = _RELEASED
        released = self._trainer_of(trainer.model.untie(), trainer.options, self._seed())
        released.epoch, released.history = trainer.epoch, trainer.history
        released.monitors = monitors
        released.random, released.order = trainer.random, trainer.order
        released.gradient.restore(trainer.gradient.state())
        super()._learn(released, rows, stopping, checkpoint)

    def _learn_tied(
        self, trainer: Trainer, rows: LabelledRows, checkpoint: FitCheckpoint | None
    ) -> bool:
        """Train up to the release; False where a callback or Ctrl-C ended training before."""
        after_epoch, release = self._after_epoch(None), _Release()

        def until_release(trainer: Trainer) -> None:
            after_epoch(trainer)
            if trainer.epoch == self.release_after:
                release.due = True
                raise StopTraining

        if checkpoint is not None:
            checkpoint.memory = release
        self._train(trainer, rows, until_release, checkpoint=checkpoint)
        return release.due

    def _stored_parameters(self) -> dict[str, Any]:
        parameters = super()._stored_parameters()
        rbm = _unfrozen(self.rbm)
        parameters["rbm"] = None if rbm is None else rbm._stored_parameters()
        return parameters

    @classmethod
    def _from_parameters(cls, parameters: dict[str, Any]) -> Self:
        rbm = parameters["rbm"]
        made = None if rbm is None else BernoulliRBM._from_parameters(rbm)
        return super()._from_parameters({**parameters, "rbm": made})

    def _changed_shape(self) -> list[str]:
        loss: Any = cast(Backpropagation, self._trainer.gradient).loss
        trained = self._sweeps() | loss.keywords
        if self.release_after is not None:
            # The layers of one training are tied first and released later.
            del trained["tied"]
        asked = {name: getattr(self, name) for name in trained} | _asked_machine(self.rbm)
        machine: Any = self.model_.machines[0]
        trained |= {"rbm__n_components": machine.n_hidden, "rbm__beta": self.model_.beta}
        return [name for name, value in trained.items() if asked[name] != value]

    def _sweeps(self) -> dict[str, Any]:
        """What the parameters said of the layers when training started."""
        net, dropout = self.model_, 0.0
        if isinstance(net.head, nn.Sequential):
            dropout = float(net.head[0].p)  # type: ignore[arg-type]
        return {
            "depth": net.depth,
            "tied": net.tied,
            "order": net.order,
            "damping": net.damping,
            "dropout": dropout,
        }

    def _model_spec(self) -> dict[str, Any]:
        return {
            "rbm": model_spec(fold(self.model_)),
            **self._sweeps(),
            "beta": self.model_.beta,
            "pretraining_history": self.pretraining_history_,
            **self._stored_classes(),
        }

    def _rebuild(
        self,
        tensors: dict[str, Tensor],
        values: dict[str, Any],
        options: LoopOptions,
        seed: int | np.random.RandomState,
    ) -> Trainer:
        spec = values["model"]
        self._restore_classes(spec)
        self.pretraining_history_ = spec["pretraining_history"]
        rbm = skip_init(
            RBM,
            **spec["rbm"],
            dtype=tensors["model.machines.0.weight"].dtype,
            device=as_device(self.device),
        )
        net = _unrolled(
            rbm,
            len(self.classes_),
            spec["dropout"],
            depth=spec["depth"],
            tied=spec["tied"],
            order=spec["order"],
            beta=spec["beta"],
            damping=spec["damping"],
        )
        self.n_features_in_ = rbm.n_visible
        return self._trainer_of(net, options, seed)


class _Release:
    """Whether the layers are to be released, which a checkpoint keeps."""

    due = False

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"due": self.due}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.due = values["due"]


class _Machine:
    """Monitor: the thermodynamics of the RBM that the net's weights define."""

    def __init__(self, rows: LabelledRows | StreamedRows, beta: float) -> None:
        self.monitor = RBMMonitor(
            rows.rows.some(_WATCHED_ROWS).clamp(0.0, 1.0),
            beta=beta,
            orders=(2,),
            n_states=_WATCHED_STATES,
            enumerate=False,
        )

    def __call__(self, model: UnrolledRBM) -> dict[str, Any]:
        return {f"rbm_{name}": value for name, value in self.monitor(fold(model)).items()}


def _pretraining_rows(rows: LabelledRows | StreamedRows, rbm: BernoulliRBM) -> Rows:
    """All rows, with a label or without, for a training that knows neither labels nor weights."""
    if isinstance(rows, LabelledRows):
        return _repeated(rows)
    found = rows.rows
    if rbm.updates_per_epoch is not None:
        found.start_rows = rbm.updates_per_epoch * rbm.batch_size
    return found


def _repeated(rows: LabelledRows) -> Rows:
    """Rows as often as their weights say, for a training that knows no weights.

    Only the ratios matter. Those of whole numbers are kept, within bounds; other weights are scaled
    to a mean of one, and rounded so that their running sums are right.
    """
    if rows.weights is None:
        return rows.rows
    weights = rows.weights.double().cpu().numpy()
    scale = len(rows) / weights.sum()
    if (weights == weights.round()).all() and weights.max() < _LARGEST_WHOLE:
        unit = np.gcd.reduce(weights.astype(np.int64))
        if weights.sum() <= unit * _MOST_REPEATED * len(rows):
            scale = 1.0 / unit
    ends = torch.from_numpy(np.rint(weights.cumsum() * scale).astype(np.int64))
    counts = ends.diff(prepend=ends.new_zeros(1))
    return rows.rows.part(torch.repeat_interleave(torch.arange(len(rows)), counts))


def _unfrozen(rbm: Any) -> Any:
    return rbm.estimator if isinstance(rbm, FrozenEstimator) else rbm


def _asked_machine(rbm: Any) -> dict[str, Any]:
    """What the parameter ``rbm`` says of the machine to unroll."""
    if isinstance(rbm, FrozenEstimator):
        trained = rbm.estimator
        return {"rbm__n_components": trained.model_.n_hidden, "rbm__beta": trained._beta}
    rbm = BernoulliRBM(**PRETRAINING) if rbm is None else rbm
    return {"rbm__n_components": rbm.n_components, "rbm__beta": rbm.beta}


def _unrolled(rbm: RBM, n_classes: int, dropout: float, **options: Any) -> UnrolledRBM:
    """A net whose softmax layer starts at zero, behind dropout where that is asked for."""
    net = unroll(rbm, head=n_classes, **options)
    if dropout:
        net.head = nn.Sequential(nn.Dropout(dropout), cast(nn.Module, net.head))
    return net

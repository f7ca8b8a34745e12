"""The restricted Boltzmann machine with scikit-learn's interface."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.nn.utils import skip_init

from freenergy.distributed import ALONE, Group
from freenergy.estimators.base import as_array, as_device, order_stream
from freenergy.estimators.unsupervised import UnsupervisedEstimator
from freenergy.estimators.validation import unchanged_on_error, within
from freenergy.inference import (
    Ladder,
    LogLikelihood,
    LogPartition,
    check_states,
    gibbs,
    log_likelihood,
    log_partition,
    pseudo_log_likelihood,
    stochastic_pseudo_log_likelihood,
)
from freenergy.models import RBM
from freenergy.random import RandomStream
from freenergy.thermodynamics import EffectiveTemperature, effective_temperature
from freenergy.training.options import TrainingOptions, check_whole
from freenergy.training.rows import Rows, as_rows
from freenergy.training.run import model_spec
from freenergy.training.trainer import DivergenceError, Monitor, Trainer, initialize

__all__ = ["BernoulliRBM"]

_WATCHED_ROWS = 1000
_START_ROWS = 10_000


class BernoulliRBM(ClassNamePrefixFeaturesOutMixin, TransformerMixin, UnsupervisedEstimator):
    r"""Restricted Boltzmann machine with 0/1 units, a drop-in for scikit-learn's class.

    The parameters down to ``random_state``, the attributes and the methods that scikit-learn's
    ``BernoulliRBM`` has mean the same here. Beyond them there are contrastive divergence and the
    extended mean field beside persistent chains, control of the temperature, samples, free
    energies, and training on a GPU.

    .. math:: E(v, h) = -a^\top v - b^\top h - v^\top W h, \qquad p(v, h) \propto e^{-\beta E}

    Parameters
    ----------
    n_components : int, default=256
        Number of hidden units.
    learning_rate : float, default=0.1
    batch_size : int, default=10
    n_iter : int, default=10
        Passes over the data.
    verbose : int, default=0
        Not zero: print a line after each pass.
    random_state : int, RandomState instance or None, default=None
        An int seeds a fast stream of its own: one seed gives the same bits on the same CPU with
        the same number of threads. The draws of a RandomState instance are used as they come, in
        scikit-learn's order (with ``shuffle=False``, which is how scikit-learn visits the rows).
    method : {"pcd", "cd", "emf", "ptt"}, default="pcd"
        Negative phase: persistent chains (as scikit-learn), chains started at the data, the
        extended mean field, or persistent chains that are exchanged with those of earlier models
        of the same training (parallel trajectory tempering).
    n_steps : int, default=1
        Gibbs steps or mean-field sweeps for each update.
    n_chains : int or None, default=None
        Number of persistent chains or mean-field states; None is ``batch_size``.
    mean_field_order : {1, 2, 3}, default=2
        For ``method="emf"``: naive mean field, TAP, or TAP to third order.
    beta : float, default=1.0
        Inverse temperature of the model, in training and in every method.
    centered : bool, default=False
        Use the centred gradient, which learns better where many pixels are mostly on. False is
        scikit-learn's update.
    optimizer : {"sgd", "adam", "adamw", "rmsprop"}, default="sgd"
        Torch's; scikit-learn follows the plain gradient, as "sgd" does.
    momentum : float, default=0.0
    learning_rate_decay : float, default=0.0
        Pass *t* (from 0) uses ``learning_rate / (1 + learning_rate_decay * t)``.
    schedule : {"inverse", "cosine"}, default="inverse"
        ``"cosine"`` lowers the rate along half a period to zero at the end of the last pass.
    l1, l2 : float, default=0.0
        Weight decay.
    weight_constraint : {"l1", "l2", "frobenius"} or None, default=None
        After each pass: project each hidden unit's weights on the L1 or L2 ball of radius
        ``max_norm``, or rescale all weights to the Frobenius norm ``max_norm``. The norm of the
        weights is an inverse temperature.
    max_norm : float or None, default=None
        Required by ``weight_constraint``.
    sparsity_target : float or None, default=None
        Share of the rows, in (0, 1), for which each hidden unit is drawn to be on. Features that
        are seldom on serve a linear classifier better; 0.15 is a good start.
    sparsity_cost : float, default=0.0
        Weight of the penalty that draws them, :math:`\mathrm{KL}(p \| q_j)` of each unit, beside
        the negative log-likelihood of a row; 0.5 is a good start.
    damping : float, default=0.5
        Of the mean-field sweeps.
    persistent : bool, default=True
        Whether mean-field states go on between updates or start at each batch.
    shuffle : bool, default=True
        Visit the rows in a new order in each pass.
    updates_per_epoch : int or None, default=None
        End each pass after at most so many updates, for streams too long for whole passes, or
        without end. None visits all rows.
    device : str, default="cpu"
        ``"cpu"``, ``"cuda"``, any torch device, or ``"auto"``: a GPU where there is one.
    precision : {"float32", "tf32", "bf16"}, default="float32"
        Of the factors of the matrix products in an update. GPUs multiply faster where they have
        fewer bits; parameters, sums and everything after the fit stay in single precision. Other
        than "float32" it needs float32 data. See :class:`~freenergy.training.TrainingOptions`.
    validation_fraction : float, default=0.0
        Share of the rows of ``fit`` that are held out: their free energy, and with ``"ptt"`` their
        log-likelihood, goes to ``history_``.
    monitors : sequence of callables, default=()
        Instruments that read the model after each pass, such as
        :class:`~freenergy.thermodynamics.TemperatureMonitor`; what they return goes to
        ``history_``.
    callback : callable or None, default=None
        Called with the trainer after each pass; may stop training, as
        :class:`~freenergy.training.EntropyCollapse` does. Where it has a method ``on_train_begin``,
        that is called with the trainer before its first pass.
    checkpoint_dir : path-like or None, default=None
        Folder in which each pass of :meth:`fit` leaves its state. A fit that was killed, or
        interrupted, goes on from there when it is called again with the same parameters and data,
        to the same bits; one that is complete there is loaded, and goes on where ``n_iter`` was
        raised. Other parameters or data there are refused. Needs an int as ``random_state``. What
        ``monitors`` and ``callback`` remember is their own affair.
    validate_range : bool, default=True
        Refuse values outside [0, 1] in ``fit``. False takes any finite value, as scikit-learn
        does, though such values have no meaning for 0/1 units.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        Weights, :math:`W^\top`.
    intercept_hidden_ : ndarray of shape (n_components,)
    intercept_visible_ : ndarray of shape (n_features,)
    h_samples_ : ndarray of shape (n_chains, n_components)
        Hidden states of the persistent chains (of the mean-field states with ``"emf"``); absent
        where nothing persists.
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features,)
        Only where the columns of ``X`` have names.
    history_ : dict of list
        Numbers of each pass by name: ``epoch``, ``learning_rate``, ``seconds``,
        ``pseudo_likelihood`` where ``verbose`` asks for it, and what ``monitors`` return. With
        ``"ptt"`` also ``log_partition`` with ``log_partition_stderr``, ``log_likelihood`` of the
        first training rows, ``ladder_rungs``, ``exchange_acceptance`` and ``arrival_time`` (rounds
        for each state that climbs the ladder: the time to equilibrium). What concerns held-out
        rows has the suffix ``_held_out``.
    model_ : freenergy.models.RBM
        The trained module.

    References
    ----------
    Tieleman, *Training restricted Boltzmann machines using approximations to the likelihood
    gradient*, ICML 2008; Gabrié, Tramel, Krzakala, arXiv:1506.02914; Melchior, Fischer, Wiskott,
    *How to center deep Boltzmann machines*, JMLR 17, 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import freenergy as fe
    >>> X = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1]])
    >>> rbm = fe.BernoulliRBM(n_components=2, random_state=0).fit(X)
    >>> rbm
    BernoulliRBM(n_components=2, random_state=0)
    >>> rbm.transform(X).shape, rbm.sample(5).shape
    ((4, 2), (5, 3))
    """

    _options_type = TrainingOptions
    model_: RBM

    def __init__(
        self,
        n_components: int = 256,
        *,
        learning_rate: float = 0.1,
        batch_size: int = 10,
        n_iter: int = 10,
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
        method: str = "pcd",
        n_steps: int = 1,
        n_chains: int | None = None,
        mean_field_order: int = 2,
        beta: float = 1.0,
        centered: bool = False,
        optimizer: str = "sgd",
        momentum: float = 0.0,
        learning_rate_decay: float = 0.0,
        schedule: str = "inverse",
        l1: float = 0.0,
        l2: float = 0.0,
        weight_constraint: str | None = None,
        max_norm: float | None = None,
        sparsity_target: float | None = None,
        sparsity_cost: float = 0.0,
        damping: float = 0.5,
        persistent: bool = True,
        shuffle: bool = True,
        updates_per_epoch: int | None = None,
        device: str = "cpu",
        precision: str = "float32",
        validation_fraction: float = 0.0,
        monitors: Sequence[Monitor] = (),
        callback: Callable[[Trainer], None] | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        validate_range: bool = True,
    ) -> None:
        self.n_components = n_components
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.n_iter = n_iter
        self.verbose = verbose
        self.random_state = random_state
        self.method = method
        self.n_steps = n_steps
        self.n_chains = n_chains
        self.mean_field_order = mean_field_order
        self.beta = beta
        self.centered = centered
        self.optimizer = optimizer
        self.momentum = momentum
        self.learning_rate_decay = learning_rate_decay
        self.schedule = schedule
        self.l1 = l1
        self.l2 = l2
        self.weight_constraint = weight_constraint
        self.max_norm = max_norm
        self.sparsity_target = sparsity_target
        self.sparsity_cost = sparsity_cost
        self.damping = damping
        self.persistent = persistent
        self.shuffle = shuffle
        self.updates_per_epoch = updates_per_epoch
        self.device = device
        self.precision = precision
        self.validation_fraction = validation_fraction
        self.monitors = monitors
        self.callback = callback
        self.checkpoint_dir = checkpoint_dir
        self.validate_range = validate_range

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train a new model on the rows of ``X``.

        Ctrl-C ends training with a warning and the model of the last complete pass.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe, stream} of shape (n_samples, n_features)
            Values in [0, 1]; grey values count as probabilities of 1. Sparse input stays sparse
            until its batch. A :func:`freenergy.data.stream`, and whatever it takes (a path, a
            torch Dataset, a memory map beyond 256 MiB), is read while it is learned from.
        y : ignored

        Returns
        -------
        BernoulliRBM
            The fitted estimator itself.

        Raises
        ------
        ValueError
            When ``X`` is empty or has NaN, infinities or values outside [0, 1] (the column is
            named), or a parameter is impossible. A fitted estimator then stays as it was, and so
            it does when a monitor or ``callback`` fails.
        DivergenceError
            When the parameters became infinite, NaN or absurdly large. The estimator then holds
            the model of the last good pass.
        """
        with unchanged_on_error(self, but=(DivergenceError,)):
            rows, dtype = self._training_rows(X, reset=True)
            checkpoint = self._checkpoint(rows)
            trainer, rows = self._prepare(rows, dtype)
            self._train(trainer, rows, self._after_epoch, checkpoint=checkpoint)
        return self

    def _fit_rows(self, rows: Rows, dtype: torch.dtype) -> Self:
        """Fit to rows that are validated already, as a part of a larger fit.

        Whatever ends it early, Ctrl-C included, ends the larger one too.
        """
        self._options()
        self.n_features_in_ = rows.width
        checkpoint = self._checkpoint(rows)
        trainer, rows = self._prepare(rows, dtype)
        self._run(trainer, rows, self._after_epoch, checkpoint)
        self._publish(trainer)
        return self

    def _prepare(self, rows: Rows, dtype: torch.dtype) -> tuple[Trainer, Rows]:
        """A trainer with its instruments, and the rows to learn from."""
        rows, held_out = self._divided(rows)
        trainer = self._start(rows, dtype)
        trainer.monitors = self._instruments(trainer, rows, held_out)
        return trainer, rows

    def transform(self, X: Any) -> np.ndarray:
        r"""Activation probabilities of the hidden units, :math:`p(h_j = 1 \mid v)`.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_components)
        """
        return self._map_rows(X, lambda v: self.model_.hidden_mean(v, self._beta))

    def free_energy(self, X: Any) -> np.ndarray:
        r"""Free energy of each row, :math:`F(v; \beta)`; :math:`\ln p(v) = -\beta F - \ln Z`.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        return self._map_rows(X, lambda v: self.model_.free_energy(v, self._beta))

    def score_samples(self, X: Any, *, method: str = "stochastic") -> np.ndarray:
        """Log pseudo-likelihood of each row.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)
        method : {"stochastic", "exact"}, default="stochastic"
            One random unit of each row, as scikit-learn, or all units, without noise, at
            ``n_features`` times the cost.

        Returns
        -------
        ndarray of shape (n_samples,), in nats.
        """
        if method == "exact":
            return self._map_rows(X, lambda v: pseudo_log_likelihood(self.model_, v, self._beta))
        if method != "stochastic":
            raise ValueError(f"method must be 'stochastic' or 'exact', got {method!r}")
        check_is_fitted(self)
        seed = int(check_random_state(self.random_state).randint(2**31))
        device = self._model_device()

        def score(v: Tensor) -> Tensor:
            # One seed for every block of rows: the same row has the same score in each.
            random = RandomStream(seed, device)
            return stochastic_pseudo_log_likelihood(self.model_, v, random, self._beta)

        return self._map_rows(X, score)

    def gibbs(self, v: Any) -> np.ndarray:
        """Make one Gibbs step v → h → v from each row.

        Parameters
        ----------
        v : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of bool, shape (n_samples, n_features)
        """
        stepped = self._map_rows(
            v,
            lambda rows: gibbs(self.model_, rows, 1, beta=self._beta, random=self._random).visible,
        )
        return stepped > 0.5

    def sample(
        self,
        n_samples: int = 1,
        *,
        n_steps: int = 1000,
        start: Any = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> np.ndarray:
        """Draw visible states from the model with parallel Gibbs chains.

        Parameters
        ----------
        n_samples : int, default=1
            Number of chains; each gives one state.
        n_steps : int, default=1000
            Steps of each chain. Chains of a strongly coupled model need many to forget where
            they started.
        start : {array-like, sparse matrix, dataframe}, default=None
            Rows to start from, shape (n_samples, n_features), instead of at random.
        random_state : int, RandomState instance or None, default=None
            None goes on with the estimator's own stream.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Zeros and ones.
        """
        check_is_fitted(self)
        random = self._random
        if random_state is not None:
            random = RandomStream(random_state, self._model_device())
        if start is None:
            n = operator.index(n_samples)
            chains = gibbs(self.model_, n, n_steps, beta=self._beta, random=random)
            return chains.visible.cpu().numpy()
        return self._map_rows(
            start,
            lambda v: gibbs(self.model_, v, n_steps, beta=self._beta, random=random).visible,
        )

    def log_partition(
        self,
        X: Any = None,
        *,
        method: str = "auto",
        n_chains: int = 64,
        width: float = 1.0,
        time_budget: float = 600.0,
        random_state: int | None = 0,
        group: Group = ALONE,
    ) -> LogPartition:
        r"""Estimate :math:`\ln Z` with an interval and a verdict on whether to trust it.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features), default=None
            Rows like those the model was trained on: chains that start at them must agree with
            chains that start elsewhere.
        method : {"auto", "exact", "tap", "ais", "reverse_ais", "bar", "ptt"}, default="auto"
            See :func:`freenergy.inference.log_partition`. With ``"ptt"``, a model trained by
            ``"ptt"`` is climbed along its own training.
        n_chains : int, default=64
        width : float, default=1.0
            Width of the interval to reach, in nats.
        time_budget : float, default=600.0
            Seconds.
        random_state : int or None, default=0
        group : Group, default=ALONE
            Processes that divide the chains; all of them call this. See
            :func:`freenergy.distributed.group_now`.

        Returns
        -------
        LogPartition
        """
        check_is_fitted(self)
        rows = None
        if X is not None:
            matrix = as_rows(self._validated(X, reset=False), self.model_.weight.detach())
            rows = matrix.some(_START_ROWS)
        ladder = getattr(self._trainer.gradient, "ladder", None) if method == "ptt" else None
        return log_partition(
            self.model_,
            method,
            beta=self._beta,
            data=rows,
            ladder=ladder,
            n_chains=n_chains,
            width=width,
            time_budget=time_budget,
            random=RandomStream(random_state, self._model_device()),
            group=group,
        )

    def log_likelihood(
        self, X: Any, *, log_partition: LogPartition | None = None, **options: Any
    ) -> LogLikelihood:
        r"""Mean log-likelihood of 0/1 rows, :math:`-\beta F(v) - \ln Z`, with its interval.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)
            Zeros and ones.
        log_partition : LogPartition, default=None
            What :meth:`log_partition` found; None calls it with these rows and ``options``.

        Returns
        -------
        LogLikelihood
            ``mean``, ``lower``, ``upper``, ``trusted``, and ``per_sample`` for each row.

        Examples
        --------
        >>> import numpy as np
        >>> import freenergy as fe
        >>> X = np.eye(6).repeat(20, axis=0)
        >>> rbm = fe.BernoulliRBM(4, random_state=0).fit(X)
        >>> result = rbm.log_likelihood(X)
        >>> result.method, result.trusted, result.per_sample.shape
        ('exact', True, (120,))
        """
        check_is_fitted(self)
        if log_partition is not None and options:
            raise ValueError(f"{', '.join(options)} has no effect where log_partition is given")
        rows = as_rows(self._validated(X, reset=False), self.model_.weight.detach())
        states = rows.take(slice(0, len(rows)))
        # Before the partition function, which takes its time.
        check_states(self.model_, states)
        found = self.log_partition(X, **options) if log_partition is None else log_partition
        return log_likelihood(self.model_, states, found)

    def effective_temperature(
        self, X: Any, *, method: str = "pseudo_likelihood", **options: Any
    ) -> EffectiveTemperature:
        """The temperature at which the model would explain the rows best; 1 at equilibrium.

        See :func:`freenergy.thermodynamics.effective_temperature` for ``method`` and the options.
        The temperature is relative to that of the training.
        """
        check_is_fitted(self)
        rows = as_rows(self._validated(X, reset=False), self.model_.weight.detach())
        model = self.model_
        if self._beta != 1.0:
            model = Ladder.of([model], self._beta).model(0)
        return effective_temperature(model, rows.take(slice(0, len(rows))), method, **options)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _options(self) -> TrainingOptions:
        check_whole("n_components", self.n_components, 1)
        options: TrainingOptions = super()._options()
        return options

    def _training_rows(self, X: Any, reset: bool) -> tuple[Rows, torch.dtype]:
        self._options()
        matrix = self._validated(X, reset)
        if self.validate_range:
            matrix = within(matrix, 0.0, 1.0, getattr(self, "feature_names_in_", None))
        return self._as_rows(matrix, reset)

    def _start(self, rows: Rows, dtype: torch.dtype) -> Trainer:
        device = as_device(self.device)
        model = skip_init(RBM, rows.width, self.n_components, dtype=dtype, device=device)
        seed = self._seed()
        random = RandomStream(seed, device)
        initialize(model, rows, random, self.beta)
        return Trainer(model, self._options(), random, order=order_stream(seed))

    def _instruments(
        self, trainer: Trainer, rows: Rows, held_out: Rows | None
    ) -> tuple[Monitor, ...]:
        if callable(self.monitors):
            raise ValueError("monitors must be a sequence: put the instrument into a list")
        monitors = list(self.monitors)
        if self.method == "ptt" or held_out is not None:
            monitors.append(_FreeEnergy(rows, held_out, self.beta))
        if self.verbose:
            monitors.append(_PseudoLikelihood(trainer, rows, self.beta))
        return tuple(monitors)

    def _after_epoch(self, trainer: Trainer) -> None:
        if self.verbose and trainer.group.rank == 0:
            self._print_epoch(trainer)
        if self.callback is not None:
            self.callback(trainer)

    def _print_epoch(self, trainer: Trainer) -> None:
        record = trainer.history[-1]
        print(
            f"[{type(self).__name__}] Iteration {record['epoch']}, "
            f"pseudo-likelihood = {record['pseudo_likelihood']:.2f}, "
            f"time = {record['seconds']:.2f}s"
        )

    def _publish(self, trainer: Trainer) -> None:
        """Set the fitted attributes from a trainer, which is kept for ``partial_fit``."""
        super()._publish(trainer)
        model = trainer.model
        self.components_ = as_array(model.weight.T)
        self.intercept_hidden_ = as_array(model.hidden_bias)
        self.intercept_visible_ = as_array(model.visible_bias)
        self._n_features_out = model.n_hidden
        state = trainer.gradient.state()
        self.__dict__.pop("h_samples_", None)  # A fit with another method may have left it.
        for name in ("chain", "hidden_state"):
            if name in state:
                self.h_samples_ = as_array(state[name])

    def _changed_shape(self) -> list[str]:
        return ["n_components"] if self.n_components != self.model_.n_hidden else []

    def _model_spec(self) -> dict[str, Any]:
        return model_spec(self.model_)

    def _rebuild(
        self,
        tensors: dict[str, Tensor],
        values: dict[str, Any],
        options: TrainingOptions,
        seed: int | np.random.RandomState,
    ) -> Trainer:
        model = skip_init(
            RBM,
            **values["model"],
            dtype=tensors["model.weight"].dtype,
            device=as_device(self.device),
        )
        self.n_features_in_ = model.n_visible
        random = RandomStream(seed, model.weight.device)
        return Trainer(model, options, random, order=order_stream(seed))


class _FreeEnergy:
    """Mean free energies of training and held-out rows, from which likelihoods follow."""

    def __init__(self, rows: Rows, held_out: Rows | None, beta: float) -> None:
        self.parts = {"": rows.some(_WATCHED_ROWS)}
        if held_out is not None:
            self.parts["_held_out"] = held_out.some(_WATCHED_ROWS)
        self.beta = beta

    @torch.no_grad()
    def __call__(self, model: RBM) -> dict[str, float]:
        return {
            f"free_energy{suffix}": float(model.free_energy(rows, self.beta).double().mean())
            for suffix, rows in self.parts.items()
        }


class _PseudoLikelihood:
    """Monitor for ``verbose``: has draws of its own, so that watching changes nothing.

    They are new in each pass: with the same units every time, a few of them would stand for all.
    """

    def __init__(self, trainer: Trainer, rows: Rows, beta: float) -> None:
        self.trainer = trainer
        self.rows = rows.some(_WATCHED_ROWS)
        self.beta = beta

    def __call__(self, model: RBM) -> dict[str, float]:
        random = RandomStream(self.trainer.epoch, model.weight.device)
        score = stochastic_pseudo_log_likelihood(model, self.rows, random, self.beta)
        return {"pseudo_likelihood": float(score.mean())}

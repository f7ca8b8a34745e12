"""Classification by free energies: the discriminative RBM with scikit-learn's interface."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.nn.utils import skip_init

from freenergy.estimators.base import as_device, order_stream
from freenergy.estimators.classifier import ProbabilisticClassifier
from freenergy.estimators.validation import within
from freenergy.models import DiscriminativeRBM, get_unit
from freenergy.random import RandomStream
from freenergy.training.discriminative import DiscriminativeGradient, DiscriminativeOptions
from freenergy.training.options import check_whole
from freenergy.training.rows import LabelledRows
from freenergy.training.trainer import Trainer, initialize

__all__ = ["RBMClassifier"]


class RBMClassifier(ProbabilisticClassifier):
    r"""Classification restricted Boltzmann machine: a softmax over free energies.

    .. math:: F(x, y) = -a^\top x - d_y
                  - \frac1\beta \sum_j \ln z\big(\beta (b_j + U_{yj} + (x^\top W)_j)\big), \qquad
              p(y \mid x) = \frac{e^{-\beta F(x, y)}}{\sum_{y'} e^{-\beta F(x, y')}}

    The conditional likelihood is exact: its gradient needs no sampling, and following it lowers
    a difference of free energies, :math:`-\ln p(y|x) = \beta (F(x, y) - F(x))`.

    Parameters
    ----------
    n_components : int, default=256
        Number of hidden units.
    objective : {"discriminative", "hybrid", "generative"}, default="discriminative"
        What is minimised: :math:`-\ln p(y|x)`; that plus ``generative_weight`` times
        :math:`-\ln p(x, y)`; or :math:`-\ln p(x, y)` alone.
    generative_weight : float, default=0.01
        For ``objective="hybrid"``.
    hidden : str, default="bernoulli"
        Type of the hidden units: ``"bernoulli"``, ``"spin"``, or ``"binomial(n)"`` with values 0
        to n.
    learning_rate : float, default=0.005
    batch_size : int, default=100
    n_iter : int, default=100
        Passes over the data.
    optimizer : {"adam", "adamw", "sgd", "rmsprop"}, default="adam"
    random_state : int, RandomState instance or None, default=None
        One int gives the same bits on the same CPU with the same number of threads.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, as elsewhere in scikit-learn.
    unlabeled : int, str or None, default="auto"
        The label of rows that have none: the generative part learns from them. None takes every
        label for a class. ``"auto"`` is -1 where the other labels are two or more numbers from 0
        on, with a warning.
    early_stopping : bool, default=False
        Hold out ``validation_fraction`` of the labelled rows, stop when their accuracy does not
        rise by more than ``tol`` in ``n_iter_no_change`` passes, and keep the best pass.
    validation_fraction : float, default=0.1
    n_iter_no_change : int, default=10
    tol : float, default=1e-4
    n_steps : int, default=1
        Gibbs steps of the generative part for each update.
    n_chains : int or None, default=None
        Persistent chains; None is ``batch_size``.
    persistent : bool, default=True
        Whether the chains go on between updates (PCD) or start at each batch (CD).
    input_dropout : float, default=0.0
        Share of the values of each row that the discriminative part does not see while training.
    beta : float, default=1.0
        Inverse temperature of the model, in training and in every method.
    momentum, learning_rate_decay, l1, l2 : float, default=0.0
    schedule : {"inverse", "cosine"}, default="inverse"
        ``"cosine"`` lowers the learning rate along half a period to zero at the end.
    weight_constraint : {"l1", "l2", "frobenius"} or None, default=None
        Of the weights between rows and hidden units, after each pass.
    max_norm : float or None, default=None
        Required by ``weight_constraint``.
    shuffle : bool, default=True
    updates_per_epoch : int or None, default=None
        End each pass after at most so many updates, for streams too long for whole passes. None
        visits all rows.
    device : str, default="cpu"
        ``"cpu"``, ``"cuda"``, any torch device, or ``"auto"``: a GPU where there is one.
    verbose : int, default=0
        Not zero: print a line after each pass.
    callback : callable or None, default=None
        Called with the trainer after each pass; may stop training. Where it has a method
        ``on_train_begin``, that is called with the trainer before its first pass.
    checkpoint_dir : path-like or None, default=None
        Folder in which each pass of :meth:`fit` leaves its state. A fit that was killed, or
        interrupted, goes on from there when it is called again with the same parameters and data,
        to the same bits; one that is complete there is loaded, and goes on where ``n_iter`` was
        raised. Other parameters or data there are refused. Needs an int as ``random_state``. What
        ``callback`` remembers is its own affair.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    model_ : freenergy.models.DiscriminativeRBM
    history_ : dict of list
        Numbers of each pass by name: ``loss`` (mean :math:`-\ln p(y|x)`, nats) and ``accuracy`` of
        the first 1000 labelled training rows after it, and of held-out rows with the suffix
        ``_held_out``; ``epoch``, ``learning_rate`` and ``seconds``.
    n_iter_ : int
        Passes made, those after the best one included.
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features,)
        Only where the columns of ``X`` have names.

    References
    ----------
    Larochelle and Bengio, *Classification using discriminative restricted Boltzmann machines*,
    ICML 2008; Larochelle, Mandel, Pascanu, Bengio, *Learning algorithms for the classification
    restricted Boltzmann machine*, JMLR 13, 2012.

    Examples
    --------
    >>> import freenergy as fe
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = fe.RBMClassifier(n_components=16, random_state=0).fit(X, y)
    >>> bool(clf.score(X, y) > 0.9)
    True
    >>> clf.predict_proba(X[:2]).shape, clf.free_energy(X[:2]).shape
    ((2, 3), (2,))
    """

    _options_type = DiscriminativeOptions
    model_: DiscriminativeRBM

    def __init__(
        self,
        n_components: int = 256,
        *,
        objective: str = "discriminative",
        generative_weight: float = 0.01,
        hidden: str = "bernoulli",
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
        n_steps: int = 1,
        n_chains: int | None = None,
        persistent: bool = True,
        input_dropout: float = 0.0,
        beta: float = 1.0,
        momentum: float = 0.0,
        learning_rate_decay: float = 0.0,
        schedule: str = "inverse",
        l1: float = 0.0,
        l2: float = 0.0,
        weight_constraint: str | None = None,
        max_norm: float | None = None,
        shuffle: bool = True,
        updates_per_epoch: int | None = None,
        device: str = "cpu",
        verbose: int = 0,
        callback: Callable[[Trainer], None] | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.n_components = n_components
        self.objective = objective
        self.generative_weight = generative_weight
        self.hidden = hidden
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
        self.n_steps = n_steps
        self.n_chains = n_chains
        self.persistent = persistent
        self.input_dropout = input_dropout
        self.beta = beta
        self.momentum = momentum
        self.learning_rate_decay = learning_rate_decay
        self.schedule = schedule
        self.l1 = l1
        self.l2 = l2
        self.weight_constraint = weight_constraint
        self.max_norm = max_norm
        self.shuffle = shuffle
        self.updates_per_epoch = updates_per_epoch
        self.device = device
        self.verbose = verbose
        self.callback = callback
        self.checkpoint_dir = checkpoint_dir

    def free_energy(self, X: Any, y: Any = None) -> np.ndarray:
        r"""Free energies :math:`F(x, y)` of rows with their labels, or :math:`F(x)` without.

        :math:`F(x) = -\frac1\beta \ln \sum_y e^{-\beta F(x, y)}`; their difference is
        :math:`-\ln p(y|x) / \beta`.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,), default=None

        Returns
        -------
        ndarray of shape (n_samples,), in units of the energy
        """
        check_is_fitted(self)
        if y is None:
            return self._map_rows(X, lambda x: self.model_.free_energy(x, beta=self._beta))
        found = self._map_rows(X, lambda x: self.model_.class_free_energies(x, self._beta))
        labels = np.asarray(y)
        if labels.shape != found.shape[:1]:
            raise ValueError(f"y must have shape ({len(found)},), got {labels.shape}")
        index = self._numbers_of(labels)
        chosen: np.ndarray = np.take_along_axis(found, index[:, None], axis=1)[:, 0]
        return chosen

    def _options(self) -> DiscriminativeOptions:
        check_whole("n_components", self.n_components, 1)
        try:
            get_unit(self.hidden)
        except (TypeError, ValueError) as error:
            raise ValueError(f"hidden={self.hidden!r} is no type of units: {error}") from error
        options: DiscriminativeOptions = super()._options()
        return options

    def _check_values(self, matrix: Any) -> Any:
        # The conditional likelihood takes any number: the visible units' own part cancels.
        if self.objective == "discriminative":
            return matrix
        return within(matrix, 0.0, 1.0, getattr(self, "feature_names_in_", None))

    def _learns_without_labels(self) -> bool:
        return self.objective != "discriminative"

    def _log_proba(
        self, options: DiscriminativeOptions, model: DiscriminativeRBM, x: Tensor
    ) -> Tensor:
        return model.log_proba(x, options.beta)

    def _start(self, rows: LabelledRows, dtype: torch.dtype) -> Trainer:
        device = as_device(self.device)
        model = skip_init(
            DiscriminativeRBM,
            rows.width,
            len(self.classes_),
            self.n_components,
            hidden=self.hidden,
            dtype=dtype,
            device=device,
        )
        seed = self._seed()
        random = RandomStream(seed, device)
        initialize(model, rows, random, self.beta)
        return self._trainer_of(model, self._options(), random, seed)

    def _trainer_of(
        self,
        model: DiscriminativeRBM,
        options: DiscriminativeOptions,
        random: RandomStream,
        seed: int | np.random.RandomState,
    ) -> Trainer:
        gradient = DiscriminativeGradient(model, options, random)
        return Trainer(model, options, random, gradient=gradient, order=order_stream(seed))

    def _changed_shape(self) -> list[str]:
        changed = {
            "n_components": self.n_components != self.model_.n_hidden,
            "hidden": get_unit(self.hidden) != self.model_.hidden,
        }
        return [name for name, differs in changed.items() if differs]

    def _model_spec(self) -> dict[str, Any]:
        return {"hidden": self.model_.hidden.name, **self._stored_classes()}

    def _rebuild(
        self,
        tensors: dict[str, Tensor],
        values: dict[str, Any],
        options: DiscriminativeOptions,
        seed: int | np.random.RandomState,
    ) -> Trainer:
        self._restore_classes(values["model"])
        weight = tensors["model.weight"]
        model = skip_init(
            DiscriminativeRBM,
            weight.shape[0],
            len(self.classes_),
            weight.shape[1],
            hidden=values["model"]["hidden"],
            dtype=weight.dtype,
            device=as_device(self.device),
        )
        self.n_features_in_ = model.n_visible
        random = RandomStream(seed, model.weight.device)
        return self._trainer_of(model, options, random, seed)

"""Classification by a multilayer perceptron, with scikit-learn's interface."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from scipy.sparse import issparse
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.base import ClassifierMixin
from sklearn.utils import column_or_1d
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import (
    _check_partial_fit_first_call,
    check_classification_targets,
    type_of_target,
    unique_labels,
)
from torch import Tensor

from freenergy.estimators.base import as_array
from freenergy.estimators.classes import StoredClasses
from freenergy.estimators.mlp import MLPEstimator, is_stochastic
from freenergy.estimators.scoring import rows_and_targets
from freenergy.estimators.validation import unchanged_on_error
from freenergy.training.rows import LabelledRows
from freenergy.training.trainer import Trainer

__all__ = ["MLPClassifier"]


class MLPClassifier(ClassifierMixin, StoredClasses, MLPEstimator):
    r"""Multilayer perceptron for classes: scikit-learn's, on torch, and deep.

    It minimises the log loss with a penalty of the weights,

    .. math:: \frac{1}{m} \sum_i -\ln p(y_i \mid x_i) + \frac{\alpha}{2 m} \lVert W \rVert^2

    over batches of *m* rows. Two classes have one logistic output, several a softmax, and a
    matrix of labels 0 and 1 as many logistic outputs as it has columns.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int or int, default=(100,)
    activation : str, default="relu"
        ``"identity"``, ``"logistic"`` or ``"sigmoid"``, ``"tanh"``, ``"relu"``, ``"leaky_relu"``,
        ``"elu"`` or ``"selu"``.
    solver : {"adam", "sgd", "rmsprop", "lbfgs"}, default="adam"
    alpha : float, default=0.0001
    batch_size : int or "auto", default="auto"
        ``"auto"`` is ``min(200, n_samples)``.
    learning_rate : {"constant", "invscaling", "adaptive", "cosine"}, default="constant"
        For ``solver="sgd"``: constant; ``learning_rate_init / (t + 1)**power_t`` after *t* rows;
        or divided by 5 whenever the loss does not fall for ``n_iter_no_change`` passes. For all
        solvers but L-BFGS: ``"cosine"`` lowers it along half a period to zero at the end of
        ``max_iter`` passes, all of which are made unless ``early_stopping`` ends them.
    learning_rate_init : float, default=0.001
    power_t : float, default=0.5
    max_iter : int, default=200
        Passes over the data, or iterations of L-BFGS.
    shuffle : bool, default=True
    random_state : int, RandomState instance or None, default=None
        One int gives the same bits on the same CPU with the same number of threads.
    tol : float, default=1e-4
    verbose : bool, default=False
    warm_start : bool, default=False
        Whether :meth:`fit` goes on with the net that there is.
    momentum : float, default=0.9
        For ``"sgd"`` and ``"rmsprop"``.
    nesterovs_momentum : bool, default=True
    early_stopping : bool, default=False
        Hold out ``validation_fraction`` of the rows, stop when the accuracy on them does not rise
        by ``tol`` in ``n_iter_no_change`` passes, and keep the best pass. Otherwise the loss
        decides on when to stop, and the last pass is kept. L-BFGS holds no rows out.
    validation_fraction : float, default=0.1
    beta_1, beta_2, epsilon : float, default=0.9, 0.999, 1e-8
        Of Adam.
    n_iter_no_change : int or inf, default=10
    max_fun : int, default=15000
        Losses that L-BFGS may compute.
    normalization : {"batch", "ghost_batch", "self", "max_norm"} or None, default=None
        Batch normalisation, with exact statistics of all rows after :meth:`fit`; over parts of
        ``ghost_batch_size`` rows of each batch; none but SELU's own; or projection of the incoming
        weights of each hidden unit on the ball of radius ``max_norm`` after each update.
    dropout : float, default=0.0
        Share of the hidden units dropped in training; alpha dropout for SELU.
    max_norm : float, default=3.0
    ghost_batch_size : int, default=32
    init : {"auto", "glorot", "he", "lecun"}, default="auto"
        See :func:`~freenergy.models.mlp.initialize_perceptron`: scikit-learn's for up to three
        hidden layers, and one that keeps the signal alive in deeper nets.
    class_weight : dict, "balanced" or None, default=None
    categorical_features : "from_dtype", sequence of str, int or bool, or None, default="from_dtype"
        Columns that hold categories, each of which becomes a column of zeros and ones; those come
        behind the numbers. ``"from_dtype"``: the columns of a dataframe that are categorical, or
        hold strings, or booleans with gaps. Names, positions or a mask add columns to these, such
        as one of numbers that are codes. None encodes none, and refuses strings. A missing
        category is one of its own; a category that no row had which the first call learned from
        becomes zeros. Nothing is scaled.
    missing : {"error", "impute"}, default="error"
        What to do with missing numbers: refuse them by the name of their column, or put the mean
        of the rows there that the first call learned from, with a column of zeros and ones that
        says where for each column that had some.
    device : str, default="cpu"
        ``"cpu"``, ``"cuda"``, any torch device, or ``"auto"``: a GPU where there is one.
    callback : callable or None, default=None
        Called with the trainer after each pass; may stop training. Where it has a method
        ``on_train_begin``, that is called with the trainer before its first pass.
    checkpoint_dir : path-like or None, default=None
        Folder in which each pass of :meth:`fit` leaves its state. A fit that was killed, or
        interrupted, goes on from there when it is called again with the same parameters and data,
        to the same bits; one that is complete there is loaded, and goes on where ``max_iter`` was
        raised. Other parameters or data there are refused. Needs an int as ``random_state``. L-BFGS
        starts from the beginning unless it was complete. What ``callback`` remembers is its own
        affair.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    coefs_, intercepts_ : list of ndarray
        Weights, shape (n_in, n_out), and biases of each layer.
    model_ : torch.nn.Sequential
    loss_ : float
        Of the last pass, with the penalty, as an average over its batches before their updates.
    loss_curve_ : list of float
        Of all passes.
    best_loss_ : float or None
        Lowest of them; None with ``early_stopping``.
    validation_scores_ : list of float or None
        Accuracies on the rows held out.
    best_validation_score_ : float or None
    history_ : dict of list
        Numbers of each pass by name.
    n_iter_, n_layers_, n_outputs_, n_features_in_ : int
    t_ : int
        Rows seen in training.
    out_activation_ : str
    feature_names_in_ : ndarray of shape (n_features,)
        Only where the columns of ``X`` have names.
    encoded_feature_names_ : list of str
        Columns that the net sees.

    Notes
    -----
    Sparse rows stay sparse but for the batch at hand, except with ``solver="lbfgs"``. Weights of
    rows do not enter the statistics of a batch normalisation.

    References
    ----------
    Kingma and Ba, *Adam*, arXiv:1412.6980; Klambauer et al., *Self-normalizing neural networks*,
    NIPS 2017; Hoffer et al., arXiv:1705.08741 (ghost batches).

    Examples
    --------
    >>> import freenergy as fe
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = fe.MLPClassifier(solver="lbfgs", max_iter=1000, random_state=0).fit(X, y)
    >>> bool(clf.score(X, y) > 0.97)
    True
    >>> [w.shape for w in clf.coefs_]
    [(4, 100), (100, 3)]
    """

    loss = "log_loss"
    classes_: np.ndarray

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: int | np.random.RandomState | None = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        normalization: str | None = None,
        dropout: float = 0.0,
        max_norm: float = 3.0,
        ghost_batch_size: int = 32,
        init: str = "auto",
        class_weight: dict[Any, float] | str | None = None,
        categorical_features: Any = "from_dtype",
        missing: str = "error",
        device: str = "cpu",
        callback: Callable[[Trainer], None] | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.normalization = normalization
        self.dropout = dropout
        self.max_norm = max_norm
        self.ghost_batch_size = ghost_batch_size
        self.init = init
        self.class_weight = class_weight
        self.categorical_features = categorical_features
        self.missing = missing
        self.device = device
        self.callback = callback
        self.checkpoint_dir = checkpoint_dir

    @available_if(is_stochastic)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> Self:
        """Make one pass over rows; the first call starts a net, later ones go on with it.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), default=None
        classes : array-like, default=None
            All classes that there will ever be; required in the first call.

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
        with unchanged_on_error(self):
            _check_partial_fit_first_call(self, classes)
            return self._partial_fit(X, y, sample_weight, self.classes_)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, or the labels more probable than not.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs)
        """
        return self._decode(self._outputs(X))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes, in the order of ``classes_``.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Of a matrix of labels: the probability of each label being 1.
        """
        outputs = self._outputs(X)
        if self._target_kind == "multiclass":
            return np.asarray(softmax(outputs, axis=1))
        if self._target_kind == "multilabel":
            return np.asarray(expit(outputs))
        return np.hstack([expit(-outputs), expit(outputs)])

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of :meth:`predict_proba`, finite where those underflow.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        outputs = self._outputs(X)
        if self._target_kind == "multiclass":
            return np.asarray(log_softmax(outputs, axis=1))
        if self._target_kind == "multilabel":
            return np.asarray(log_expit(outputs))
        return np.hstack([log_expit(-outputs), log_expit(outputs)])

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Share of the rows whose class is predicted, or whose labels are all predicted.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe, stream} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            None takes those of a stream with labels.
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        float
        """
        return float(super().score(*rows_and_targets(X, y), sample_weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def _define_targets(self, y: Any, classes: np.ndarray | None) -> None:
        check_classification_targets(y)
        self.classes_ = unique_labels(y) if classes is None else classes
        n = len(self.classes_)
        if type_of_target(y).startswith("multilabel"):
            # Whatever the classes were called, the columns are told by their numbers.
            self._target_kind, n = "multilabel", y.shape[1]
            self.classes_ = np.arange(n)
        else:
            self._target_kind = "multiclass" if n > 2 else "binary"
        self.n_outputs_ = 1 if self._target_kind == "binary" else n
        self.out_activation_ = "softmax" if self._target_kind == "multiclass" else "logistic"

    def _encode(self, y: Any) -> np.ndarray:
        if self._target_kind == "multilabel":
            labels = y.toarray() if issparse(y) else y
            if labels.ndim != 2 or labels.shape[1] != self.n_outputs_:
                raise ValueError(
                    f"y must have one column for each of {self.n_outputs_} labels, got shape "
                    f"{labels.shape}"
                )
            return np.asarray(labels != 0, dtype=np.float64)
        check_classification_targets(y)
        if y.ndim == 2:
            y = column_or_1d(y, warn=True)
        self._check_classes(np.unique(y))
        numbers = np.searchsorted(self.classes_, y)
        if self._target_kind == "multiclass":
            return np.asarray(numbers, dtype=np.int64)
        return np.asarray(numbers == 1, dtype=np.float64)[:, None]

    def _check_classes(self, found: np.ndarray) -> None:
        """Refuse labels that a started net does not know; warm_start asks for all of them."""
        if self.warm_start and set(found.tolist()) != set(self.classes_.tolist()):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous "
                f"call to fit. Previously got {self.classes_}, `y` has {found}"
            )
        if not set(found.tolist()) <= set(self.classes_.tolist()):
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. "
                f"'y' has {found}."
            )

    def _decode(self, outputs: np.ndarray) -> np.ndarray:
        """Predictions from the outputs of the net."""
        if self._target_kind == "multiclass":
            return np.asarray(self.classes_[outputs.argmax(axis=1)])
        positive = outputs > 0
        if self._target_kind == "multilabel":
            return np.asarray(positive, dtype=np.int64)
        # One class alone is always right.
        return np.asarray(self.classes_[np.minimum(positive[:, 0], len(self.classes_) - 1)])

    def _score_outputs(self, outputs: np.ndarray, rows: LabelledRows) -> float:
        """Accuracy; of a matrix of labels, the share of rows whose labels are all right."""
        if not np.isfinite(outputs).all():
            return float("nan")
        labels = as_array(rows.labels)
        found = outputs.argmax(axis=1) if self._target_kind == "multiclass" else outputs > 0
        hits = found == labels
        if hits.ndim == 2:
            hits = hits.all(axis=1)
        weights = None if rows.weights is None else as_array(rows.weights)
        return float(np.average(hits, weights=weights))

    def _stratified(self, labels: np.ndarray) -> np.ndarray | None:
        return labels == 1 if self._target_kind == "binary" else None

    def _row_weights(self, labels: np.ndarray, weights: np.ndarray | None) -> np.ndarray | None:
        if self.class_weight is None:
            return weights
        if self._target_kind == "multilabel":
            raise ValueError("class_weight needs one class for each row; pass sample_weight")
        numbers = labels if labels.ndim == 1 else labels[:, 0].astype(np.int64)
        counted = np.ones(len(numbers)) if weights is None else weights
        if self.class_weight != "balanced":
            factors = compute_class_weight(
                self.class_weight, classes=self.classes_, y=self.classes_
            )
            if not (np.isfinite(factors).all() and (factors >= 0).all()):
                raise ValueError(
                    f"class_weight must be finite and not negative, got {self.class_weight!r}"
                )
            return np.asarray(counted * factors[numbers])
        # Of the rows that count: a class without any has no say in the balance.
        present = np.unique(numbers[counted > 0])
        factors = np.ones(len(self.classes_))
        factors[present] = compute_class_weight(
            "balanced",
            classes=present,
            y=numbers[counted > 0],
            sample_weight=counted[counted > 0],
        )
        return np.asarray(counted * factors[numbers])

    def _model_spec(self) -> dict[str, Any]:
        kind = {"target_kind": self._target_kind}
        return super()._model_spec() | kind | self._stored_classes()

    def _rebuild(
        self,
        tensors: dict[str, Tensor],
        values: dict[str, Any],
        options: Any,
        seed: int | np.random.RandomState,
    ) -> Trainer:
        spec = values["model"]
        self._target_kind = spec["target_kind"]
        self._restore_classes(spec)
        return super()._rebuild(tensors, values, options, seed)

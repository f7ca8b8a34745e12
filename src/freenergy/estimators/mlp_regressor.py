"""Regression by a multilayer perceptron, with scikit-learn's interface."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import column_or_1d
from sklearn.utils.metaestimators import available_if

from freenergy.estimators.base import as_array
from freenergy.estimators.mlp import MLPEstimator, is_stochastic
from freenergy.estimators.scoring import rows_and_targets
from freenergy.training.options import check_one_of
from freenergy.training.rows import LabelledRows
from freenergy.training.trainer import Trainer

__all__ = ["MLPRegressor"]


class MLPRegressor(RegressorMixin, MLPEstimator):
    r"""Multilayer perceptron for numbers: scikit-learn's, on torch, and deep.

    It minimises half the squared error, or half the Poisson deviance of a mean
    :math:`\mu = e^{f(x)}`, with a penalty of the weights,

    .. math:: \frac{1}{m} \sum_i \ell(f(x_i), y_i) + \frac{\alpha}{2 m} \lVert W \rVert^2, \qquad
              \ell = \tfrac12 \lVert f - y \rVert^2
              \;\text{or}\; \sum_k y_k \ln \frac{y_k}{\mu_k} - y_k + \mu_k

    over batches of *m* rows.

    Parameters
    ----------
    loss : {"squared_error", "poisson"}, default="squared_error"
        The second takes targets that are not negative.
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
        Hold out ``validation_fraction`` of the rows, stop when their :math:`R^2` does not rise
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
    coefs_, intercepts_ : list of ndarray
        Weights, shape (n_in, n_out), and biases of each layer.
    model_ : torch.nn.Sequential
    loss_ : float
        Of the last pass, with the penalty, as an average over its batches before their updates. A
        squared error is averaged over the outputs, as scikit-learn shows it.
    loss_curve_ : list of float
        Of all passes.
    best_loss_ : float or None
        Lowest of them; None with ``early_stopping``.
    validation_scores_ : list of float or None
        :math:`R^2` of the rows held out.
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
    >>> from sklearn.datasets import make_regression
    >>> X, y = make_regression(n_samples=200, n_features=20, random_state=1)
    >>> model = fe.MLPRegressor(max_iter=500, tol=0.1, random_state=1, solver="lbfgs").fit(X, y)
    >>> bool(model.score(X, y) > 0.98)
    True
    """

    def __init__(
        self,
        loss: str = "squared_error",
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
        categorical_features: Any = "from_dtype",
        missing: str = "error",
        device: str = "cpu",
        callback: Callable[[Trainer], None] | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.loss = loss
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
        self.categorical_features = categorical_features
        self.missing = missing
        self.device = device
        self.callback = callback
        self.checkpoint_dir = checkpoint_dir

    @available_if(is_stochastic)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Make one pass over rows; the first call starts a net, later ones go on with it.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        estimator
            The estimator itself.

        Raises
        ------
        ValueError, DivergenceError
            As :meth:`fit`. The estimator then stays as it was.
        """
        return self._partial_fit(X, y, sample_weight)

    def predict(self, X: Any) -> np.ndarray:
        """Predicted means.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs)
        """
        means = self._means(self._outputs(X))
        return means[:, 0] if means.shape[1] == 1 else means

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """The coefficient of determination of the predictions.

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

    def _check_parameters(self) -> None:
        check_one_of("loss", self.loss, ("squared_error", "poisson"))
        super()._check_parameters()

    def _means(self, outputs: np.ndarray) -> np.ndarray:
        return np.exp(outputs) if self.out_activation_ == "exp" else outputs

    def _define_targets(self, y: Any, classes: np.ndarray | None) -> None:
        self.n_outputs_ = y.shape[1] if y.ndim == 2 else 1
        self.out_activation_ = "exp" if self.loss == "poisson" else "identity"

    def _encode(self, y: Any) -> np.ndarray:
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        targets = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
        if targets.shape[1] != self.n_outputs_:
            raise ValueError(
                f"y must have {self.n_outputs_} columns, as when training started, got "
                f"{targets.shape[1]}"
            )
        if self.out_activation_ == "exp" and targets.min() < 0:
            raise ValueError(
                f"loss='poisson' needs targets that are not negative, got {targets.min():g}"
            )
        return targets

    def _score_outputs(self, outputs: np.ndarray, rows: LabelledRows) -> float:
        """The coefficient of determination."""
        means = self._means(outputs)
        if not np.isfinite(means).all():
            return float("nan")
        weights = None if rows.weights is None else as_array(rows.weights)
        return float(r2_score(as_array(rows.labels), means, sample_weight=weights))

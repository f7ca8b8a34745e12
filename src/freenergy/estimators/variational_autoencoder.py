"""The variational autoencoder with scikit-learn's interface."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted
from torch import Tensor
from torch.nn.utils import skip_init

from freenergy.estimators.base import as_array, as_device, order_stream
from freenergy.estimators.unsupervised import UnsupervisedEstimator
from freenergy.estimators.validation import unchanged_on_error, within
from freenergy.inference.importance import ImportanceLogLikelihood, importance_log_likelihood
from freenergy.models import RBM
from freenergy.models.vae import VAE, unravel
from freenergy.random import RandomStream
from freenergy.training.options import check_positive, check_whole
from freenergy.training.rows import Rows, as_rows
from freenergy.training.trainer import DivergenceError, Monitor, Trainer
from freenergy.training.vae import (
    VariationalGradient,
    VariationalMonitor,
    VariationalOptions,
    initialize_variational,
)

__all__ = ["VariationalAutoencoder"]

_WATCHED_ROWS = 1000
_START_ROWS = 10_000
_BLOCK_ELEMENTS = 2**22

# Arguments of the model, and the parameters that they come from.
_SHAPE = {
    "n_latent": "n_components",
    "hidden_sizes": "hidden_layer_sizes",
    "latent": "latent",
    "likelihood": "likelihood",
    "activation": "activation",
    "learn_noise": "learn_noise",
    "noise_variance": "noise_variance",
}


class VariationalAutoencoder(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, UnsupervisedEstimator
):
    r"""Variational autoencoder, trained by its variational free energy.

    .. math:: F(x) = \langle -\ln p(x, z) \rangle_q - T S(q) \ge -\ln p(x) \quad (T = 1)

    The encoder's distribution :math:`q(z \mid x)` and the decoder's :math:`p(x \mid z)` are
    multilayer perceptrons, see :class:`freenergy.models.VAE`. The likelihood itself is estimated
    by importance weighting, with an interval.

    Parameters
    ----------
    n_components : int, default=20
        Number of latent units.
    hidden_layer_sizes : sequence of int, default=(256,)
        Of the encoder; the decoder has them in reverse. Empty: both are linear.
    latent : {"gaussian", "bernoulli"}, default="gaussian"
    likelihood : {"bernoulli", "gaussian"}, default="bernoulli"
        Of a column given the latent state: for values in [0, 1], or for any real ones.
    activation : {"tanh", "relu", "logistic", "softplus", "selu"}, default="tanh"
    noise_variance : float, default=1.0
        Of the Gaussian likelihood.
    learn_noise : bool, default=False
        Whether that variance is learned, from this start.
    start : "random" or RBM, default="random"
        An RBM of 0/1 units (such as ``model_`` of a fitted ``BernoulliRBM``) is unravelled: its
        weights are the encoder's and the decoder's start, see :func:`freenergy.models.unravel`.
        This needs ``latent="bernoulli"``, ``likelihood="bernoulli"``, ``hidden_layer_sizes=()``
        and as many components as the RBM has hidden units. A saved file has ``"random"`` for it.
    learning_rate : float, default=0.001
    batch_size : int, default=100
    n_iter : int, default=10
        Passes over the data.
    verbose : int, default=0
        Not zero: print a line after each pass.
    random_state : int, RandomState instance or None, default=None
        An int gives the same bits on the same CPU with the same number of threads.
    n_draws : int or None, default=None
        Latent states drawn for each row and update. None: one of Gaussian latents, every state of
        at most 5 Bernoulli latents, and 4 draws of more. Bernoulli latents need at least 2.
    optimizer : {"adam", "adamw", "sgd", "rmsprop"}, default="adam"
    momentum : float, default=0.0
        Of ``"sgd"`` and ``"rmsprop"``.
    learning_rate_decay : float, default=0.0
        Pass *t* (from 0) uses ``learning_rate / (1 + learning_rate_decay * t)``.
    schedule : {"inverse", "cosine"}, default="inverse"
        ``"cosine"`` lowers the rate along half a period to zero at the end of the last pass.
    l1, l2 : float, default=0.0
        Weight decay.
    beta : float, default=1.0
        Inverse temperature :math:`1/T` of the free energy that is minimised. Only at 1 is it a
        bound of the likelihood.
    shuffle : bool, default=True
        Visit the rows in a new order in each pass.
    updates_per_epoch : int or None, default=None
        End each pass after at most so many updates, for streams too long for whole passes, or
        without end. None visits all rows.
    device : str, default="cpu"
        ``"cpu"``, ``"cuda"``, any torch device, or ``"auto"``: a GPU where there is one.
    validation_fraction : float, default=0.0
        Share of the rows of ``fit`` that are held out: their free energy, energy and entropy go to
        ``history_``.
    monitors : sequence of callables, default=()
        Instruments that read the model after each pass; what they return goes to ``history_``.
    callback : callable or None, default=None
        Called with the trainer after each pass; may stop training. Where it has a method
        ``on_train_begin``, that is called with the trainer before its first pass.
    checkpoint_dir : path-like or None, default=None
        Folder in which each pass of :meth:`fit` leaves its state. A fit that was killed, or
        interrupted, goes on from there when it is called again with the same parameters and data,
        to the same bits; one that is complete there is loaded, and goes on where ``n_iter`` was
        raised. Other parameters or data there are refused. Needs an int as ``random_state``. What
        ``monitors`` and ``callback`` remember is their own affair.
    validate_range : bool, default=True
        With a Bernoulli likelihood, refuse values outside [0, 1] in ``fit``.

    Attributes
    ----------
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features,)
        Only where the columns of ``X`` have names.
    noise_variance_ : float
        Of a Gaussian likelihood.
    history_ : dict of list
        Numbers of each pass by name: ``epoch``, ``learning_rate``, ``seconds``, ``free_energy``,
        ``energy`` and ``entropy`` (means over the pass, each row with the model that met it), and
        what ``monitors`` return. What concerns held-out rows has the suffix ``_held_out``.
    model_ : freenergy.models.VAE
        The trained module.

    References
    ----------
    Kingma, Welling, *Auto-encoding variational Bayes*, arXiv:1312.6114; Burda, Grosse,
    Salakhutdinov, *Importance weighted autoencoders*, arXiv:1509.00519.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.eye(4).repeat(25, axis=0)
    >>> vae = VariationalAutoencoder(2, hidden_layer_sizes=(8,), random_state=0).fit(X)
    >>> vae.transform(X).shape, vae.sample(5).shape
    ((100, 2), (5, 4))
    >>> bool(vae.score(X) > -vae.free_energy(X).mean())
    True
    """

    _options_type = VariationalOptions

    def __init__(
        self,
        n_components: int = 20,
        *,
        hidden_layer_sizes: Sequence[int] = (256,),
        latent: str = "gaussian",
        likelihood: str = "bernoulli",
        activation: str = "tanh",
        noise_variance: float = 1.0,
        learn_noise: bool = False,
        start: str | RBM = "random",
        learning_rate: float = 0.001,
        batch_size: int = 100,
        n_iter: int = 10,
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
        n_draws: int | None = None,
        optimizer: str = "adam",
        momentum: float = 0.0,
        learning_rate_decay: float = 0.0,
        schedule: str = "inverse",
        l1: float = 0.0,
        l2: float = 0.0,
        beta: float = 1.0,
        shuffle: bool = True,
        updates_per_epoch: int | None = None,
        device: str = "cpu",
        validation_fraction: float = 0.0,
        monitors: Sequence[Monitor] = (),
        callback: Callable[[Trainer], None] | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        validate_range: bool = True,
    ) -> None:
        self.n_components = n_components
        self.hidden_layer_sizes = hidden_layer_sizes
        self.latent = latent
        self.likelihood = likelihood
        self.activation = activation
        self.noise_variance = noise_variance
        self.learn_noise = learn_noise
        self.start = start
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.n_iter = n_iter
        self.verbose = verbose
        self.random_state = random_state
        self.n_draws = n_draws
        self.optimizer = optimizer
        self.momentum = momentum
        self.learning_rate_decay = learning_rate_decay
        self.schedule = schedule
        self.l1 = l1
        self.l2 = l2
        self.beta = beta
        self.shuffle = shuffle
        self.updates_per_epoch = updates_per_epoch
        self.device = device
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
            With a Bernoulli likelihood values in [0, 1]; grey values count as probabilities of 1.
            Sparse input stays sparse until its batch. A :func:`freenergy.data.stream`, and
            whatever it takes, is read while it is learned from.
        y : ignored

        Returns
        -------
        VariationalAutoencoder
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
            rows, held_out = self._divided(rows)
            trainer = self._start(rows, dtype)
            trainer.monitors = self._instruments(held_out)
            self._train(trainer, rows, self._after_epoch, checkpoint=checkpoint)
        return self

    def transform(self, X: Any) -> np.ndarray:
        r"""Means of the latent units, :math:`\langle z_j \rangle_{q(z \mid x)}`.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_components)
        """
        return self._map_rows(X, lambda x: self.model_.encode(x).mean)

    @torch.no_grad()
    def inverse_transform(self, X: Any) -> np.ndarray:
        r"""Means of the columns given latent states, :math:`\langle x \rangle_{p(x \mid z)}`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_components)

        Returns
        -------
        ndarray of shape (n_samples, n_features)
        """
        check_is_fitted(self)
        states = torch.from_numpy(check_array(X, dtype=np.float64, copy=True))
        if states.shape[1] != self.model_.n_latent:
            raise ValueError(
                f"latent states must have {self.model_.n_latent} columns, got {states.shape[1]}"
            )
        like = next(self.model_.parameters())
        return as_array(self.model_.decode(states.to(like)).mean)

    def free_energy(self, X: Any, *, n_draws: int = 100, random_state: int = 0) -> np.ndarray:
        r"""Variational free energy of each row, at :math:`\beta = 1` a bound of :math:`-\ln p(x)`.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)
        n_draws : int, default=100
            Latent states drawn for each row, with the same noise for all rows.
        random_state : int, default=0
            Seed of that noise: a row's value depends on nothing else.

        Returns
        -------
        ndarray of shape (n_samples,), in nats.
        """
        check_whole("n_draws", n_draws, 1)

        def free_energy(rows: Tensor) -> Tensor:
            parts = [
                self.model_.free_energy(
                    part, self._stream(random_state), n_draws, beta=self._beta, common=True
                ).free_energy
                for part in rows.split(self._block(n_draws))
            ]
            return torch.cat(parts)

        return self._map_rows(X, free_energy)

    def score_samples(self, X: Any, *, n_draws: int = 100, random_state: int = 0) -> np.ndarray:
        r"""Log-likelihood of each row by importance weighting; in expectation a lower bound.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)
            With a Bernoulli likelihood, zeros and ones; for other values the result is no
            log-probability.
        n_draws : int, default=100
            Latent states drawn for each row, with the same noise for all rows.
        random_state : int, default=0
            Seed of that noise: a row's value depends on nothing else.

        Returns
        -------
        ndarray of shape (n_samples,), in nats.
        """
        check_whole("n_draws", n_draws, 1)

        def score(rows: Tensor) -> Tensor:
            random = self._stream(random_state)
            found = importance_log_likelihood(
                self.model_, rows, n_draws, random=random, common=True
            )
            return torch.from_numpy(found.per_sample).to(rows.dtype)

        return self._map_rows(X, score)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of :meth:`score_samples`, which model selection maximises.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)
        y : ignored

        Returns
        -------
        float
        """
        return float(self.score_samples(X).mean(dtype=np.float64))

    def log_likelihood(
        self, X: Any, *, n_draws: int = 1000, random_state: int = 0
    ) -> ImportanceLogLikelihood:
        r"""Mean log-likelihood of rows with its interval and a verdict on whether to trust it.

        Parameters
        ----------
        X : {array-like, sparse matrix, dataframe} of shape (n_samples, n_features)
            With a Bernoulli likelihood, zeros and ones.
        n_draws : int, default=1000
            Latent states drawn for each row.
        random_state : int, default=0

        Returns
        -------
        ImportanceLogLikelihood
            ``mean``, ``lower``, ``upper``, ``trusted``, and ``per_sample`` for each row; see
            :func:`freenergy.inference.importance_log_likelihood`.

        Raises
        ------
        ValueError
            When a value is neither 0 nor 1 and the likelihood is Bernoulli.
        """
        check_is_fitted(self)
        check_whole("n_draws", n_draws, 1)
        matrix = as_rows(self._validated(X, reset=False), next(self.model_.parameters()).detach())
        rows = matrix.take(slice(0, len(matrix)))
        if self.model_.likelihood == "bernoulli":
            _check_binary(rows)
        return importance_log_likelihood(
            self.model_, rows, n_draws, random=self._stream(random_state)
        )

    def sample(
        self, n_samples: int = 1, *, random_state: int | np.random.RandomState | None = None
    ) -> np.ndarray:
        """Draw independent rows from the model: a latent state of the prior, then its row.

        Parameters
        ----------
        n_samples : int, default=1
        random_state : int, RandomState instance or None, default=None
            None goes on with the estimator's own stream.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
        """
        check_is_fitted(self)
        random = self._random if random_state is None else self._stream(random_state)
        return as_array(self.model_.sample(operator.index(n_samples), random))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _stored_parameters(self) -> dict[str, Any]:
        parameters = super()._stored_parameters()
        # Any sequence of sizes was taken; and an RBM has done its part once training has started.
        parameters["hidden_layer_sizes"] = self.model_.hidden_sizes
        if not isinstance(self.start, str):
            parameters["start"] = "random"
        return parameters

    def _options(self) -> VariationalOptions:
        check_whole("n_components", self.n_components, 1)
        check_positive("noise_variance", self.noise_variance)
        options: VariationalOptions = super()._options()
        return options

    def _training_rows(self, X: Any, reset: bool) -> tuple[Rows, torch.dtype]:
        self._options()
        matrix = self._validated(X, reset)
        if self.validate_range and self.likelihood == "bernoulli":
            matrix = within(matrix, 0.0, 1.0, getattr(self, "feature_names_in_", None))
        return self._as_rows(matrix, reset)

    def _start(self, rows: Rows, dtype: torch.dtype) -> Trainer:
        device, seed = as_device(self.device), self._seed()
        random = RandomStream(seed, device)
        if isinstance(self.start, RBM):
            self._check_start(self.start, rows.width)
            model = unravel(self.start, rows.some(_START_ROWS)).to(device, dtype)
        elif self.start == "random":
            model = skip_init(VAE, **self._spec(rows.width), dtype=dtype, device=device)
            initialize_variational(model, rows, random, noise_variance=model.noise_variance)
        else:
            raise ValueError(
                f"start must be 'random' or a freenergy.models.RBM, got {self.start!r}"
            )
        return _new_trainer(model, self._options(), random, seed)

    def _spec(self, n_visible: int) -> dict[str, Any]:
        """Arguments of the model."""
        if not np.iterable(self.hidden_layer_sizes) or isinstance(self.hidden_layer_sizes, str):
            raise ValueError(
                "hidden_layer_sizes must be a sequence of numbers of units such as (256,), got "
                f"{self.hidden_layer_sizes!r}"
            )
        for size in self.hidden_layer_sizes:
            check_whole("each of hidden_layer_sizes", size, 1)
        return {
            "n_visible": n_visible,
            "n_latent": int(self.n_components),
            "hidden_sizes": tuple(int(size) for size in self.hidden_layer_sizes),
            "latent": self.latent,
            "likelihood": self.likelihood,
            "activation": self.activation,
            "learn_noise": bool(self.learn_noise),
            "noise_variance": float(self.noise_variance),
        }

    def _check_start(self, rbm: RBM, n_visible: int) -> None:
        """An RBM unravels to one shape only, which the parameters must say."""
        asked, given = self._spec(n_visible), (rbm.n_visible, rbm.n_hidden)
        needed = {"latent": "bernoulli", "likelihood": "bernoulli", "hidden_sizes": ()}
        if any(asked[name] != value for name, value in needed.items()):
            raise ValueError(
                "to start at an RBM set latent='bernoulli', likelihood='bernoulli' and "
                "hidden_layer_sizes=()"
            )
        if given != (n_visible, asked["n_latent"]):
            raise ValueError(
                f"the RBM to start at has {given[0]} visible and {given[1]} hidden units, but X "
                f"has {n_visible} columns and n_components is {asked['n_latent']}"
            )

    def _instruments(self, held_out: Rows | None) -> tuple[Monitor, ...]:
        if callable(self.monitors):
            raise ValueError("monitors must be a sequence: put the instrument into a list")
        monitors = list(self.monitors)
        if held_out is not None:
            watched = held_out.some(_WATCHED_ROWS)
            monitors.append(VariationalMonitor(watched, beta=self.beta))
        return tuple(monitors)

    def _after_epoch(self, trainer: Trainer) -> None:
        if self.verbose and trainer.group.rank == 0:
            record = trainer.history[-1]
            print(
                f"[{type(self).__name__}] Iteration {record['epoch']}, "
                f"free energy = {record['free_energy']:.2f}, time = {record['seconds']:.2f}s"
            )
        if self.callback is not None:
            self.callback(trainer)

    @torch.no_grad()
    def _publish(self, trainer: Trainer) -> None:
        super()._publish(trainer)
        model: VAE = trainer.model
        self.n_features_in_ = model.n_visible
        self._n_features_out = model.n_latent
        self.__dict__.pop(
            "noise_variance_", None
        )  # A fit with another likelihood may have left it.
        if model.likelihood == "gaussian":
            self.noise_variance_ = float(model.log_noise_variance.exp())

    def _changed_shape(self) -> list[str]:
        asked, trained = self._spec(self.model_.n_visible), self._model_spec()
        if self.model_.likelihood == "bernoulli":
            # It has no noise, and an unravelled RBM was not told of any.
            asked["noise_variance"] = trained["noise_variance"]
        return [_SHAPE[name] for name in _SHAPE if asked[name] != trained[name]]

    def _model_spec(self) -> dict[str, Any]:
        return {name: getattr(self.model_, name) for name in ("n_visible", *_SHAPE)}

    def _rebuild(
        self,
        tensors: dict[str, Tensor],
        values: dict[str, Any],
        options: VariationalOptions,
        seed: int | np.random.RandomState,
    ) -> Trainer:
        dtype, device = tensors["model.encoder.0.weight"].dtype, as_device(self.device)
        model = skip_init(VAE, **values["model"], dtype=dtype, device=device)
        return _new_trainer(model, options, RandomStream(seed, device), seed)

    def _stream(self, seed: int | np.random.RandomState) -> RandomStream:
        return RandomStream(seed, self._model_device())

    def _block(self, n_draws: int) -> int:
        """Rows that are taken at once, with this many latent states each."""
        widest = max(size for p in self.model_.parameters() for size in p.shape)
        return max(1, _BLOCK_ELEMENTS // (widest * n_draws))


def _new_trainer(
    model: VAE, options: VariationalOptions, random: RandomStream, seed: int | np.random.RandomState
) -> Trainer:
    gradient = VariationalGradient(model, options, random)
    return Trainer(model, options, random, gradient=gradient, order=order_stream(seed))


def _check_binary(rows: Tensor) -> None:
    """Refuse what has no probability, by place."""
    wrong = (rows != 0) & (rows != 1)
    if bool(wrong.any()):
        row, column = (int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"column {column} of row {row} is {float(rows[row, column]):g}: only zeros and ones "
            "have a likelihood; binarise the rows first, or use likelihood='gaussian'"
        )

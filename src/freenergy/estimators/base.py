"""What every estimator shares: validation, seeds, devices, training to the end, and files."""

from __future__ import annotations

import dataclasses
import numbers
import os
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from freenergy._version import __version__
from freenergy.estimators.validation import check_finite
from freenergy.random import RandomStream
from freenergy.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from freenergy.training.options import LoopOptions, check_whole
from freenergy.training.rows import LabelledRows, Rows, as_rows
from freenergy.training.trainer import DivergenceError, Trainer, has_diverged

__all__ = ["TorchEstimator", "as_array", "as_device", "order_stream", "plain"]

_DTYPES = {np.dtype(np.float32): torch.float32, np.dtype(np.float64): torch.float64}
_BLOCK_ELEMENTS = 2**24

# Streams beside the model's own that a seed gives.
_ORDER, _SPLIT = 1, 2


class TorchEstimator(BaseEstimator):
    """Base of the estimators: a subclass says what its model, options and attributes are.

    A subclass sets ``_options_type``, starts a trainer in ``_start`` or rebuilds one in
    ``_rebuild``, and sets its fitted attributes in ``_publish``. Its parameters have the names of
    the options, but for ``n_iter`` (``n_epochs``).
    """

    _options_type: ClassVar[type[LoopOptions]]
    _kept: ClassVar[frozenset[str]] = frozenset(
        {"learning_rate", "learning_rate_decay", "schedule", "n_epochs", "batch_size", "shuffle"}
    )
    """Options that may change between two updates of ``partial_fit``."""

    model_: Any
    _trainer: Trainer
    _random: RandomStream

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file, atomically and without pickle.

        Everything is kept that :meth:`partial_fit` needs to go on to the same bits, save
        ``monitors`` and ``callback``, and a ``random_state`` that is a RandomState instance, which
        becomes None.

        Parameters
        ----------
        path : path-like
        """
        check_is_fitted(self)
        tensors, values = self._trainer.state()
        names = getattr(self, "feature_names_in_", None)
        values |= {
            "model": self._model_spec(),
            "estimator": {
                "class": type(self).__name__,
                "version": __version__,
                "parameters": self._stored_parameters(),
                "feature_names_in": None if names is None else list(names),
            },
        }
        save_checkpoint(path, tensors, values)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str | None = None) -> Self:
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        path : path-like
        device : str, default=None
            Where to put the model; None is where it was trained.

        Returns
        -------
        estimator
            Fitted.

        Raises
        ------
        CheckpointError
            When the file is missing, damaged, or holds another kind of model.
        """
        tensors, values = load_checkpoint(path)
        saved = values.get("estimator", {})
        if saved.get("class") != cls.__name__:
            raise CheckpointError(f"{path} holds no {cls.__name__}")
        try:
            estimator = cls._from_parameters(saved["parameters"])
        except (KeyError, TypeError) as error:
            raise _unreadable(path, cls, error) from error
        if device is not None:
            estimator.set_params(device=device)
        as_device(estimator.device)  # A device that is not here is no fault of the file.
        try:
            legacy = values["random"]["host"]["bit_generator"] == "MT19937"
            seed = np.random.RandomState() if legacy else 0
            options = cls._options_type.from_dict(values["options"])
            trainer = estimator._rebuild(tensors, values, options, seed)
            trainer.restore(tensors, values)
            names = saved["feature_names_in"]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise _unreadable(path, cls, error) from error
        if names is not None:
            estimator.feature_names_in_ = np.asarray(names, dtype=object)
        estimator._publish(trainer)
        return estimator

    def _stored_parameters(self) -> dict[str, Any]:
        """The parameters as JSON can hold them."""
        parameters = self.get_params(deep=False)
        if not isinstance(parameters["random_state"], numbers.Integral):
            parameters["random_state"] = None
        # Instruments are code, which a file of ours never holds.
        for name in ("monitors", "callback"):
            parameters.pop(name, None)
        return {name: plain(value) for name, value in parameters.items()}

    @classmethod
    def _from_parameters(cls, parameters: dict[str, Any]) -> Self:
        """An estimator with stored parameters; JSON has lists where a parameter is a tuple."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in parameters.items()})

    def _model_spec(self) -> dict[str, Any]:
        """What :meth:`_rebuild` needs beside the tensors, for JSON."""
        raise NotImplementedError

    def _rebuild(
        self,
        tensors: dict[str, Tensor],
        values: dict[str, Any],
        options: Any,
        seed: int | np.random.RandomState,
    ) -> Trainer:
        """A trainer of the stored shape, before its state is restored."""
        raise NotImplementedError

    def _publish(self, trainer: Trainer) -> None:
        """Keep a trainer for later, and its history; subclasses set their attributes."""
        trainer.monitors = ()
        self._trainer = trainer
        self._random = trainer.random
        self.model_ = trainer.model
        columns = list(dict.fromkeys(name for record in trainer.history for name in record))
        self.history_ = {name: [record.get(name) for record in trainer.history] for name in columns}

    def _options(self) -> Any:
        check_whole("n_iter", self.n_iter, 0)
        parameters = self.get_params(deep=False)
        parameters["n_epochs"] = parameters["n_iter"]
        options = (field.name for field in dataclasses.fields(self._options_type))
        return self._options_type(**{o: plain(parameters[o]) for o in options if o in parameters})

    def _validated(self, X: Any, reset: bool, y: Any = "no_validation") -> Any:
        """A checked matrix, and with ``y`` also its checked targets."""
        found = validate_data(
            self,
            X,
            y,
            reset=reset,
            accept_sparse="csr",
            dtype=(np.float64, np.float32),
            ensure_all_finite=False,
        )
        matrix = found[0] if isinstance(found, tuple) else found
        check_finite(matrix, getattr(self, "feature_names_in_", None))
        return found

    def _as_rows(self, matrix: Any, reset: bool) -> tuple[Rows, torch.dtype]:
        """A validated matrix in the precision and on the device of the model to be trained."""
        dtype = _DTYPES[matrix.dtype] if reset else next(self.model_.parameters()).dtype
        device = as_device(self.device) if reset else self._model_device()
        return as_rows(matrix, torch.empty(0, dtype=dtype, device=device)), dtype

    def _seed(self) -> int | np.random.RandomState:
        seed = self.random_state
        if isinstance(seed, np.random.RandomState):
            return seed
        if seed is None:
            # From NumPy's global state, so that np.random.seed makes it repeatable.
            return int(check_random_state(None).randint(2**31))
        check_whole("random_state", seed, 0)
        if seed >= 2**32:
            raise ValueError(f"random_state must be less than 2**32, got {seed}")
        return int(seed)

    def _held_out(self, n: int) -> tuple[Tensor, Tensor]:
        """Positions of rows to learn from, and of rows held out, drawn from the seed."""
        share = self.validation_fraction
        if not isinstance(share, numbers.Real):
            raise ValueError(f"validation_fraction must be a number, got {share!r}")
        n_held_out = round(float(share) * n) if 0 < float(share) < 1 else 0
        if not 0 < n_held_out < n:
            raise ValueError(
                f"validation_fraction={share:g} of {n} rows leaves no rows to learn from "
                "or none to hold out"
            )
        seed = self._seed()
        own = seed if isinstance(seed, np.random.RandomState) else [seed, _SPLIT]
        order = _stream(own).permutation(n)
        return order[n_held_out:], order[:n_held_out]

    def _train(
        self,
        trainer: Trainer,
        rows: Rows | LabelledRows,
        on_epoch: Callable[[Trainer], None],
        finish: Callable[[Trainer], None] = lambda trainer: None,
    ) -> bool:
        """Train to the end and publish what came of it, whatever ended it.

        ``finish`` may change the trainer before it is published. False after Ctrl-C.
        """
        complete = True
        try:
            trainer.fit(rows, on_epoch=on_epoch)
        except DivergenceError:
            self._publish(trainer)
            raise
        except KeyboardInterrupt:
            warnings.warn(
                f"training was interrupted; the model of pass {trainer.epoch} is kept",
                UserWarning,
                stacklevel=3,
            )
            complete = False
        finish(trainer)
        self._publish(trainer)
        return complete

    def _update(self, trainer: Trainer, batch: Any) -> None:
        """One update, or none where it fails."""
        before = trainer.state()
        try:
            for group in trainer.optimizer.param_groups:
                group["lr"] = float(self.learning_rate)
            trainer.update(batch)
            trainer.constrain()
            if has_diverged(trainer.model, trainer.options.beta):
                raise DivergenceError(
                    "the parameters diverged in this update, which was undone; lower "
                    f"learning_rate (now {self.learning_rate:g})"
                )
        except BaseException:
            trainer.restore(*before)
            raise

    def _refuse_changes(self) -> None:
        """Parameters that a started training cannot take over would be passed over in silence."""
        started, asked = self._trainer.options.to_dict(), self._options().to_dict()
        changed = [n for n in started if n not in self._kept and started[n] != asked[n]]
        if changed:
            raise ValueError(
                f"{', '.join(changed)} changed since training started; set the old value again, "
                "or call fit to start anew"
            )

    @property
    def _beta(self) -> float:
        """The inverse temperature of the fitted model, whatever ``set_params`` has done since."""
        return float(self._trainer.options.beta)

    def _model_device(self) -> torch.device:
        device: torch.device = next(self.model_.parameters()).device
        return device

    def _map_rows(self, X: Any, function: Callable[[Tensor], Tensor]) -> np.ndarray:
        """Apply a function to validated rows, in blocks."""
        check_is_fitted(self)
        like = next(self.model_.parameters()).detach()
        rows = as_rows(self._validated(X, reset=False), like)
        # In blocks, so that sparse rows are never all dense at once.
        widest = max(size for p in self.model_.parameters() for size in p.shape)
        block = max(1, _BLOCK_ELEMENTS // max(rows.width, widest))
        parts = []
        with torch.no_grad():
            for start in range(0, len(rows), block):
                parts.append(as_array(function(rows.take(slice(start, start + block)))))
        return np.concatenate(parts)


def _unreadable(path: str | os.PathLike[str], kind: type, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} holds no {kind.__name__} that can be read ({error})")


def as_array(tensor: Tensor) -> np.ndarray:
    """A tensor as an array on the host."""
    return tensor.detach().cpu().numpy()


def plain(value: Any) -> Any:
    """A parameter as JSON can hold it."""
    if isinstance(value, torch.device):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value


def order_stream(seed: int | np.random.RandomState) -> RandomStream:
    """The order of rows has a stream of its own, except with a RandomState."""
    return _stream(seed if isinstance(seed, np.random.RandomState) else [seed, _ORDER])


def _stream(seed: list[int] | np.random.RandomState) -> RandomStream:
    own = seed if isinstance(seed, np.random.RandomState) else np.random.SeedSequence(seed)
    return RandomStream(own)


def as_device(device: str | torch.device) -> torch.device:
    """The torch device of that name; ``"auto"`` is a GPU where there is one.

    Raises
    ------
    ValueError
        When torch does not know it, or has no GPU.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is not known to torch") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but torch finds no GPU; use 'auto'")
    return chosen

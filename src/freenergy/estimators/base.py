"""What every estimator shares: validation, seeds, devices, training to the end, and files."""

from __future__ import annotations

import dataclasses
import numbers
import os
from collections.abc import Callable
from contextlib import closing
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from freenergy._version import __version__
from freenergy.data import DataStream, as_stream
from freenergy.distributed import group_now
from freenergy.estimators.checkpoints import (
    FitCheckpoint,
    FitIdentity,
    comparable,
    defaults_of,
    fingerprint,
)
from freenergy.estimators.divergence import advice_for_divergence, in_own_words
from freenergy.estimators.validation import (
    check_finite,
    check_targets,
    naming_columns,
    refuse_dates,
    warn_the_caller,
)
from freenergy.random import RandomStream
from freenergy.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from freenergy.training.options import LoopOptions, check_whole
from freenergy.training.rows import LabelledRows, Rows, StreamedRows, as_rows
from freenergy.training.trainer import DivergenceError, Trainer, has_diverged

__all__ = ["TorchEstimator", "as_array", "as_device", "order_stream", "plain"]

_DTYPES = {np.dtype(np.float32): torch.float32, np.dtype(np.float64): torch.float64}
_BLOCK_ELEMENTS = 2**24
_MOST_RESULT_BYTES = 2**30

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
        {
            "learning_rate",
            "learning_rate_decay",
            "schedule",
            "n_epochs",
            "batch_size",
            "shuffle",
            "updates_per_epoch",
        }
    )
    """Options that may change between two updates of ``partial_fit``."""
    _passes: ClassVar[str] = "n_iter"
    """Name of the parameter that is the number of passes."""

    model_: Any
    _trainer: Trainer
    _random: RandomStream
    _announced: tuple[Any, Any] = (None, None)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file, atomically and without pickle.

        Everything is kept that :meth:`partial_fit` needs to go on to the same bits, save
        ``monitors``, ``callback`` and ``checkpoint_dir``, and a ``random_state`` that is a
        RandomState instance, which becomes None.

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
            raise CheckpointError(f"{path} holds no {cls.__name__}{_instead(path, values)}")
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
        # Instruments are code, which a file of ours never holds; the folder is one fit's alone.
        for name in ("monitors", "callback", "checkpoint_dir"):
            parameters.pop(name, None)
        return {name: _listed(value) for name, value in parameters.items()}

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
        """Keep a trainer for later; subclasses set their attributes."""
        trainer.monitors = ()
        self._trainer = trainer
        self._random = trainer.random
        self.model_ = trainer.model

    @property
    def history_(self) -> dict[str, list[Any]]:
        """Numbers of each pass, by name; None where a pass has none of that name."""
        # Made when asked for: partial_fit would else cost more with each call.
        history = self._trainer.history
        columns = list(dict.fromkeys(name for record in history for name in record))
        return {name: [record.get(name) for record in history] for name in columns}

    def _options(self) -> Any:
        check_whole("n_iter", self.n_iter, 0)
        parameters = self.get_params(deep=False)
        parameters["n_epochs"] = parameters["n_iter"]
        options = (field.name for field in dataclasses.fields(self._options_type))
        return self._options_type(**{o: plain(parameters[o]) for o in options if o in parameters})

    def _validated(self, X: Any, reset: bool, y: Any = "no_validation") -> Any:
        """A checked matrix, and with ``y`` also its checked targets; streams as they are."""
        stream = as_stream(X)
        if stream is not None:
            if not (isinstance(y, str) and y == "no_validation"):
                raise ValueError(f"{type(self).__name__} takes arrays here, not {stream.name}")
            self._check_columns(stream, reset)
            return stream
        refuse_dates(X)
        check_targets(y)
        with naming_columns(X):
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

    def _check_columns(self, stream: DataStream, reset: bool) -> None:
        """Number and names of a stream's columns, as :func:`validate_data` has them."""
        names = None if stream.columns is None else np.asarray(stream.columns, dtype=object)
        if reset:
            self.n_features_in_ = stream.width
            self.__dict__.pop("feature_names_in_", None)
            if names is not None:
                self.feature_names_in_ = names
            return
        if stream.width != self.n_features_in_:
            raise ValueError(
                f"{stream.name} has {stream.width} features, but {type(self).__name__} is "
                f"expecting {self.n_features_in_} features as input"
            )
        known = getattr(self, "feature_names_in_", None)
        if names is not None and known is not None and names.tolist() != list(known):
            raise ValueError(
                f"{stream.name} does not have the columns of the fit in their order: "
                f"{', '.join(map(str, known[:6]))}, ..."
            )

    def _as_rows(self, matrix: Any, reset: bool) -> tuple[Rows, torch.dtype]:
        """A validated matrix in the precision and on the device of the model to be trained."""
        dtype = _DTYPES[matrix.dtype] if reset else next(self.model_.parameters()).dtype
        device = as_device(self.device) if reset else self._model_device()
        like = torch.empty(0, dtype=dtype, device=device)
        if isinstance(matrix, DataStream):
            # Where no pass is whole, the start does not wait for a whole one either.
            updates = getattr(self, "updates_per_epoch", None)
            start_rows = None if updates is None else updates * self._options().batch_size
            return StreamedRows(matrix, like, start_rows=start_rows), dtype
        return as_rows(matrix, like), dtype

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
        """Positions of rows to learn from, and of rows held out, drawn from the seed.

        They are those of the first of several processes: without a seed each would draw others,
        and one would learn from what another holds out.
        """
        n_held_out = self._n_held_out(n)
        seed = self._seed()
        own = seed if isinstance(seed, np.random.RandomState) else [seed, _SPLIT]
        order = group_now().agree(_stream(own).permutation(n))
        return order[n_held_out:], order[:n_held_out]

    def _n_held_out(self, n: int) -> int:
        """How many of ``n`` rows are held out."""
        share = self.validation_fraction
        if not isinstance(share, numbers.Real):
            raise ValueError(f"validation_fraction must be a number, got {share!r}")
        n_held_out = round(float(share) * n) if 0 < float(share) < 1 else 0
        if not 0 < n_held_out < n:
            raise ValueError(
                f"validation_fraction={share:g} of {n} rows leaves no rows to learn from "
                "or none to hold out"
            )
        return n_held_out

    def _train(
        self,
        trainer: Trainer,
        rows: Rows | LabelledRows,
        on_epoch: Callable[[Trainer], None],
        finish: Callable[[Trainer], None] = lambda trainer: None,
        checkpoint: FitCheckpoint | None = None,
    ) -> bool:
        """Train to the end and publish what came of it, whatever ended it.

        ``finish`` may change the trainer before it is published. False after Ctrl-C.
        """
        complete = True
        try:
            self._run(trainer, rows, on_epoch, checkpoint)
        except DivergenceError as error:
            self._publish(trainer)
            raise in_own_words(error, self) from error
        except KeyboardInterrupt:
            if trainer.epoch == 0:
                raise  # There is nothing to keep yet.
            warn_the_caller(f"training was interrupted; the model of pass {trainer.epoch} is kept")
            complete = False
        finish(trainer)
        self._publish(trainer)
        return complete

    def _run(
        self,
        trainer: Trainer,
        rows: Rows | LabelledRows,
        on_epoch: Callable[[Trainer], None],
        checkpoint: FitCheckpoint | None,
    ) -> None:
        """Train to the end, from where a checkpoint stands."""
        if checkpoint is not None:
            if checkpoint.restore(trainer):
                return
            on_epoch = checkpoint.after(on_epoch)
        self._announce(trainer)
        trainer.fit(rows, on_epoch=on_epoch)

    def _announce(self, trainer: Trainer) -> None:
        """Tell the callback of a trainer before its first pass, where it wants to know."""
        self._announced = (self.callback, trainer)
        begin = getattr(self.callback, "on_train_begin", None)
        if begin is not None:
            begin(trainer)

    def _checkpoint(self, rows: Rows | LabelledRows) -> FitCheckpoint | None:
        """The folder of a fit on these rows; None where none is asked for."""
        if self.checkpoint_dir is None:
            return None
        if not isinstance(self.random_state, numbers.Integral):
            raise ValueError(
                "checkpoint_dir needs random_state to be an int, so that a resumed fit is the same "
                f"one; got random_state={self.random_state!r}"
            )
        if rows.n_rows is None and getattr(self, "updates_per_epoch", None) is not None:
            raise ValueError(
                "checkpoint_dir cannot keep where a pass of updates_per_epoch updates ended in "
                "rows that come one after the other: set updates_per_epoch=None, or give a torch "
                "Dataset with a length"
            )
        parameters = self.get_params(deep=False) | {"device": as_device(self.device)}
        n_passes = parameters.pop(self._passes)
        identity = FitIdentity(
            estimator=type(self).__name__,
            parameters=comparable(parameters),
            passes=self._passes,
            n_passes=int(n_passes),
            extendable=self._is_extendable(),
            data=fingerprint(rows, getattr(self, "classes_", None)),
        )
        return FitCheckpoint(self.checkpoint_dir, identity, defaults_of(self))

    def _is_extendable(self) -> bool:
        """Whether a longer fit makes the same passes first."""
        return getattr(self, "schedule", None) != "cosine"

    def _update(self, trainer: Trainer, batch: Any) -> None:
        """One update, or none where it fails."""
        before = trainer.state()
        try:
            trainer.use_rate(float(self.learning_rate))
            trainer.update(batch)
            trainer.constrain()
            if has_diverged(trainer.model, trainer.options.beta):
                event = "the parameters diverged in this update, which was undone"
                raise DivergenceError(event, advice_for_divergence(self))
        except BaseException:
            trainer.restore(*before)
            raise

    def _refuse_changes(self) -> None:
        """Parameters that a started training cannot take over would be passed over in silence."""
        started, asked = self._trainer.options.to_dict(), self._options().to_dict()
        changed = [n for n in started if n not in self._kept and started[n] != asked[n]]
        changed += self._changed_shape()
        if changed:
            raise ValueError(
                f"{', '.join(changed)} changed since training started; set the old value again, "
                "or call fit to start anew"
            )

    def _changed_shape(self) -> list[str]:
        """Parameters that ask for another model than the fitted one."""
        raise NotImplementedError

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
        parts, size = [], 0
        with torch.no_grad(), closing(rows.batches(block)) as batches:
            for batch in batches:
                parts.append(as_array(function(batch)))
                size += parts[-1].nbytes
                if isinstance(rows, StreamedRows):
                    share = 1.0 if rows.n_rows is None else len(parts[0]) / rows.n_rows
                    _check_result(max(size, parts[0].nbytes / share), rows)
        return np.concatenate(parts)


def _check_result(size: float, rows: StreamedRows) -> None:
    if size > _MOST_RESULT_BYTES:
        raise ValueError(
            f"the result for all rows of {rows.stream.name} takes {size / 1e9:.3g} GB or more: go "
            "through the blocks of freenergy.data.stream(...).blocks() instead"
        )


def _instead(path: str | os.PathLike[str], values: dict[str, Any]) -> str:
    """What a file holds that is not what was asked for, and what opens it."""
    kind = values.get("estimator", {}).get("class")
    if kind is not None:
        return f", but {kind}: open it with {kind}.load"
    if "model" in values:
        opener = f"freenergy.training.load_model({os.fspath(path)!r})"
        return f", but the model of a run of freenergy train: open it with {opener}"
    return ""


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


def _listed(value: Any) -> Any:
    """A parameter as JSON can hold it, sequences included."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple | range):
        return [_listed(item) for item in value]
    return plain(value)


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

"""Fits that a killed process leaves resumable: their state in a folder, after each pass.

====================  ============================================================================
``fit.safetensors``   all that the coming passes depend on, with parameters, versions and the
                      fingerprint of the data in its header; replaced in one step after each pass
``fit.json``          the same parameters and versions, for people to read
====================  ============================================================================
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from freenergy.distributed import group_now
from freenergy.files import write_atomically
from freenergy.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from freenergy.training.rows import LabelledRows, Rows, SparseRows, StreamedRows
from freenergy.training.run import versions
from freenergy.training.stopping import StopTraining
from freenergy.training.trainer import Trainer

__all__ = ["FitCheckpoint", "FitIdentity", "Memory", "comparable", "defaults_of", "fingerprint"]

_MEMORY = "memory."
_BLOCK_ELEMENTS = 2**22
# They change nothing in what is learned, or are code.
_OF_NO_CONSEQUENCE = ("callback", "checkpoint_dir", "monitors", "verbose")


class Memory(Protocol):
    """What decides on the end of a training beside the trainer's state, such as its best pass."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, and values for JSON."""
        ...

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        ...


@dataclasses.dataclass(frozen=True)
class FitIdentity:
    """What makes a fit: with the same one, a stored state is one of its passes.

    Attributes
    ----------
    estimator : str
        Name of the class.
    parameters : dict
        All that the bits depend on, as JSON can hold it, but for the number of passes.
    passes : str
        Name of the parameter that is the number of passes.
    n_passes : int
    extendable : bool
        Whether a longer fit makes the same passes first.
    data : str
        Fingerprint of the rows, labels and weights.
    """

    estimator: str
    parameters: dict[str, Any]
    passes: str
    n_passes: int
    extendable: bool
    data: str

    def differences(
        self, other: dict[str, Any], defaults: Mapping[str, dict[str, Any]] | None = None
    ) -> list[str]:
        """What another fit, as JSON gave it back, has otherwise, in words.

        Parameters that an earlier version did not have are at their ``defaults``, of each class.
        """
        if other["estimator"] != self.estimator:
            return [f"it is of a {other['estimator']}, not of a {self.estimator}"]
        ours = json.loads(json.dumps(self.parameters))
        _, theirs = _filled([self.estimator, other["parameters"]], defaults or {})
        theirs.pop(self.passes, None)  # It stands beside the parameters.
        names = sorted(theirs.keys() | ours.keys())
        found = [
            f"{name} is {theirs.get(name)!r} there and {ours.get(name)!r} here"
            for name in names
            if theirs.get(name) != ours.get(name)
        ]
        if other["n_passes"] != self.n_passes and not self.extendable:
            found.append(
                f"{self.passes} is {other['n_passes']} there and {self.n_passes} here, and all "
                "passes depend on it"
            )
        if other["data"] != self.data:
            found.append("the data (rows, labels or weights) are others, or the buffer of a stream")
        return found


class FitCheckpoint:
    """The folder of one fit: says where to go on, and keeps each pass.

    Parameters
    ----------
    folder : path-like
    identity : FitIdentity
    defaults : mapping, default=None
        As :func:`defaults_of` gives them.

    Attributes
    ----------
    memory : Memory or None
        Kept along with the trainer.
    stage : int
        Number of the training within the fit, for a fit of several.

    Raises
    ------
    CheckpointError
        When the folder holds another fit, or a damaged file; the message says what to do.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        identity: FitIdentity,
        defaults: Mapping[str, dict[str, Any]] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.identity = identity
        self._defaults = defaults
        self.memory: Memory | None = None
        self.stage = 0
        self._versions = versions()
        self._stored = self._read()
        if self._stored is not None:
            self._check()
        self._write_note()

    @property
    def path(self) -> Path:
        """The one file that counts."""
        return self.folder / "fit.safetensors"

    @property
    def stored_stage(self) -> int:
        """The training that the stored state is of; -1 where none is stored."""
        return -1 if self._stored is None else int(self._stored[1]["fit"]["stage"])

    def restore(self, trainer: Trainer) -> bool:
        """Bring a trainer to the stored state; True when its training had ended there."""
        if self._stored is None or self.stored_stage != self.stage:
            return False
        tensors, values = self._stored
        fit = values["fit"]
        n_epochs = trainer.options.n_epochs
        try:
            options = type(trainer.options).from_dict(values["options"])
            trainer.options = dataclasses.replace(options, n_epochs=n_epochs)
            trainer.restore(tensors, values)
            if self.memory is not None:
                kept = {
                    name.removeprefix(_MEMORY): tensor
                    for name, tensor in tensors.items()
                    if name.startswith(_MEMORY)
                }
                self.memory.restore(kept, fit["memory"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.path} holds no state that can be gone on from ({error}); delete it and "
                "fit again"
            ) from error
        ended = bool(fit["ended"]) or trainer.epoch >= n_epochs
        if not ended:
            self._warn_of_other_versions(fit["versions"])
        return ended

    def after(self, on_epoch: Callable[[Any], None]) -> Callable[[Any], None]:
        """What follows a pass, and then its state in the folder."""

        def after_epoch(trainer: Trainer) -> None:
            try:
                on_epoch(trainer)
            except StopTraining:
                self.save(trainer, ended=True)
                raise
            self.save(trainer)

        return after_epoch

    def save(self, trainer: Trainer, *, ended: bool = False) -> None:
        """Keep the state of a trainer, and whether its training ends there.

        Of several processes, the first one writes.
        """
        if group_now().rank > 0:
            return
        tensors, values = trainer.state()
        memory: dict[str, Any] = {}
        if self.memory is not None:
            kept, memory = self.memory.state()
            tensors |= {f"{_MEMORY}{name}": tensor for name, tensor in kept.items()}
        fit = dataclasses.asdict(self.identity) | {
            "versions": self._versions,
            "stage": self.stage,
            "ended": ended,
            "memory": memory,
        }
        save_checkpoint(self.path, tensors, values | {"fit": fit})

    def _read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What is stored, as the first of several processes finds it.

        The folder may be on its machine alone, and what the others went on from would differ.
        """
        group = group_now()
        found: tuple[dict[str, Tensor], dict[str, Any]] | CheckpointError | None = None
        if group.rank == 0 and self.path.exists():
            try:
                found = load_checkpoint(self.path)
            except CheckpointError as error:
                found = error
        found = group.agree(found)
        if isinstance(found, CheckpointError):
            raise found
        return found

    def _check(self) -> None:
        """Refuse to go on from, or to replace, the state of another fit."""
        assert self._stored is not None
        _, values = self._stored
        fit = values.get("fit")
        if fit is None:
            raise CheckpointError(f"{self.path} holds no fit; choose another checkpoint_dir")
        differences = self.identity.differences(fit, self._defaults)
        # A file of a single function's minimum counts no passes.
        if not differences and values["epoch"] > self.identity.n_passes:
            differences = [
                f"it has made {values['epoch']} passes, and {self.identity.passes} is "
                f"{self.identity.n_passes} here"
            ]
        if differences:
            raise CheckpointError(
                f"checkpoint_dir {str(self.folder)!r} holds another fit: {'; '.join(differences)}. "
                f"Choose another folder, or delete {self.path.name} in it to start anew. In a grid "
                "search or cross-validation every fit would need a folder of its own: leave "
                "checkpoint_dir=None there, and set it for the final fit"
            )

    def _write_note(self) -> None:
        """Also the first write, which tells a folder that cannot be written before any pass."""
        if group_now().rank > 0:
            return
        note = dataclasses.asdict(self.identity) | {"versions": self._versions}
        try:
            write_atomically(self.folder / "fit.json", json.dumps(note, indent=2) + "\n")
            for leftover in self.folder.glob(f".{self.path.name}.*.tmp"):  # of a killed process
                leftover.unlink()
        except OSError as error:
            raise CheckpointError(
                f"checkpoint_dir {str(self.folder)!r} cannot be written ({error.strerror})"
            ) from error

    def _warn_of_other_versions(self, stored: dict[str, str]) -> None:
        changed = [
            f"{name} {stored.get(name)} (now {now})"
            for name, now in self._versions.items()
            if stored.get(name) != now
        ]
        if changed:
            warnings.warn(
                f"{self.path} was written with {', '.join(changed)}: the fit goes on, perhaps not "
                "to the same bits",
                UserWarning,
                stacklevel=2,
            )


def fingerprint(rows: Rows | LabelledRows, classes: Any = None) -> str:
    """SHA-256 of rows as training sees them, with labels, weights and the names of classes.

    Examples
    --------
    >>> import torch
    >>> from freenergy.training.rows import as_rows
    >>> one, other = (as_rows(np.eye(3) * x, like=torch.empty(0)) for x in (1.0, 2.0))
    >>> fingerprint(one) == fingerprint(one), fingerprint(one) == fingerprint(other)
    (True, False)
    """
    if isinstance(rows, StreamedRows):
        # Of samples: nobody would read all rows a second time for it.
        stream = rows.stream
        # The order of the rows is theirs, and which rows are held out.
        buffer = f"{stream.buffer_rows} {stream.block_rows} {_hash(stream.ranges)}"
        return f"{stream.fingerprint} {buffer} {_described(classes)}"
    digest = hashlib.sha256()
    if isinstance(rows, LabelledRows):
        for name, part in (("labels", rows.labels), ("weights", rows.weights)):
            digest.update(name.encode())
            if part is not None:
                _add(digest, part.cpu().numpy())
        rows = rows.rows
    digest.update(f"rows {len(rows)} {rows.width} {_described(classes)}".encode())
    if isinstance(rows, SparseRows):
        digest.update(str(rows.dtype).encode())
        for part in (rows.data.indptr, rows.data.indices, rows.data.data):
            _add(digest, part)
        return digest.hexdigest()
    block = max(1, _BLOCK_ELEMENTS // max(1, rows.width))
    for start in range(0, len(rows), block):
        _add(digest, rows.take(slice(start, start + block)).cpu().numpy())
    return digest.hexdigest()


def comparable(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters that what is learned depends on, as JSON can hold them.

    Models stand there by a fingerprint, estimators by their own parameters.

    Examples
    --------
    >>> comparable({"sizes": (np.int64(3), 4), "class_weight": {2: 0.5}, "verbose": 1})
    {'sizes': [3, 4], 'class_weight': [[2, 0.5]]}
    """
    return {
        name: _described(value)
        for name, value in parameters.items()
        if name not in _OF_NO_CONSEQUENCE
    }


def defaults_of(estimator: BaseEstimator) -> dict[str, dict[str, Any]]:
    """The defaults of an estimator and of its parts, by class, as :func:`comparable` has them.

    Examples
    --------
    >>> import freenergy as fe
    >>> found = defaults_of(fe.UnrolledRBMClassifier(fe.BernoulliRBM(8)))
    >>> sorted(found), found["BernoulliRBM"]["n_components"]
    (['BernoulliRBM', 'UnrolledRBMClassifier'], 256)
    """
    parts = [p for p in estimator.get_params().values() if isinstance(p, BaseEstimator)]
    found = {}
    for kind in {type(part) for part in (estimator, *parts)}:
        # What has to be given has no default.
        with suppress(TypeError):
            found[kind.__name__] = comparable(kind().get_params(deep=False))
    return found


def _filled(value: Any, defaults: Mapping[str, dict[str, Any]]) -> Any:
    """What stands for estimators, with the parameters that it lacks."""
    if not isinstance(value, list):
        return value
    if len(value) > 1 and isinstance(value[0], str) and isinstance(value[1], dict):
        kind, parameters, *rest = value
        stored = {name: _filled(v, defaults) for name, v in parameters.items()}
        return [kind, defaults.get(kind, {}) | stored, *rest]
    return [_filled(v, defaults) for v in value]


def _described(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return _fingerprint_of_model(value)
    if isinstance(value, BaseEstimator):
        trained = getattr(value, "model_", None)
        own = [trained] if isinstance(trained, nn.Module) else []
        parameters = comparable(value.get_params(deep=False))
        return [type(value).__name__, parameters, *map(_described, own)]
    if isinstance(value, dict):
        # As pairs: the keys of a JSON object are strings, those of class_weight need not be.
        return [[_described(k), _described(v)] for k, v in value.items()]
    if isinstance(value, np.ndarray | np.generic):
        return _described(value.tolist())
    if isinstance(value, list | tuple | range):
        return [_described(v) for v in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _fingerprint_of_model(model: nn.Module) -> str:
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        _add(digest, tensor.cpu().numpy())
    return digest.hexdigest()


def _hash(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _add(digest: Any, array: np.ndarray) -> None:
    # The header tells apart arrays with the same bytes in another shape or type.
    digest.update(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))

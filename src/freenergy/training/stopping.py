"""Reasons to end training early, as callbacks for the trainer's ``on_epoch``."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from freenergy.training.options import check_not_negative, check_whole

if TYPE_CHECKING:
    # The trainer catches StopTraining, so that it imports this module.
    from freenergy.training.trainer import Trainer

__all__ = ["EarlyStopping", "EntropyCollapse", "StopTraining"]

_KEYS = ("exact_entropy", "entropy", "tap2_entropy")


class StopTraining(Exception):
    """Raised by a callback after an epoch to end training there; what was trained is kept.

    The trainer warns with its message, where it has one.
    """


class EarlyStopping:
    """Stop when a number of the history no longer rises, and keep the state of its best epoch.

    Pass it as ``on_epoch``, and call :meth:`restore_best` when training has ended. It remembers
    one training: make another for the next.

    Parameters
    ----------
    key : str
        Name of the number in the records, such as ``"accuracy_held_out"``.
    patience : int, default=10
        Epochs in a row without a rise by more than ``tolerance`` over the last such rise. With
        ``monitor_every`` only epochs that were read count.
    tolerance : float, default=1e-4

    Attributes
    ----------
    best_epoch : int or None
        The first epoch with the largest number (the first of all, while none was a number).
    best_value : float
        That number; minus infinity before it.

    Raises
    ------
    ValueError
        When an option is impossible.

    Examples
    --------
    >>> import torch
    >>> from freenergy.models import RBM
    >>> from freenergy.random import RandomStream
    >>> from freenergy.training import Trainer, TrainingOptions, as_rows
    >>> model, rows = RBM(3, 2), as_rows(torch.eye(3), like=torch.empty(0))
    >>> falling = iter([3.0, 2.0, 1.0, 0.0])
    >>> trainer = Trainer(
    ...     model,
    ...     TrainingOptions(n_epochs=4),
    ...     RandomStream(0),
    ...     monitors=[lambda model: {"score": next(falling)}],
    ... )
    >>> stopping = EarlyStopping("score", patience=2)
    >>> trainer.fit(rows, on_epoch=stopping)
    >>> stopping.restore_best(trainer)
    >>> trainer.epoch, len(trainer.history)
    (1, 3)
    """

    def __init__(self, key: str, *, patience: int = 10, tolerance: float = 1e-4) -> None:
        check_whole("patience", patience, 1)
        check_not_negative("tolerance", tolerance)
        self.key = key
        self.patience = patience
        self.tolerance = tolerance
        self.best_epoch: int | None = None
        self.best_value = -math.inf
        self._trainer: Trainer | None = None
        self._state: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self._passed = -math.inf
        self._waited = 0

    def __call__(self, trainer: Trainer) -> None:
        """Look at the last record of a trainer.

        Raises
        ------
        StopTraining
            When ``patience`` epochs brought nothing.
        ValueError
            When the trainer reads its monitors and none gives the number, or is not the one that
            was looked at before.
        """
        self._check(trainer)
        record = trainer.history[-1]
        if self.key not in record:
            if trainer.epoch % trainer.monitor_every == 0:
                raise ValueError(
                    f"EarlyStopping needs {self.key!r} in the records of training (there: "
                    f"{', '.join(map(repr, record))}); give the trainer a monitor of it, or "
                    "another key"
                )
            return
        value = float(record[self.key])
        # What is not a number is never the best, but a state must be there to go back to.
        if value > self.best_value or self._state is None:
            self.best_value = max(self.best_value, value)
            self.best_epoch, self._state = trainer.epoch, trainer.state()
        if value > self._passed + self.tolerance:
            self._passed, self._waited = value, 0
            return
        self._waited += 1
        if self._waited >= self.patience:
            raise StopTraining

    def restore_best(self, trainer: Trainer) -> None:
        """Bring a trainer back to its best epoch; its history stays whole."""
        self._check(trainer)
        if self._state is not None:
            history = trainer.history
            trainer.restore(*self._state)
            trainer.history = history

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What it remembers of a training: the tensors of the best epoch, and values for JSON."""
        tensors, best = ({}, None) if self._state is None else self._state
        values = {
            "best_epoch": self.best_epoch,
            "best_value": self.best_value,
            "passed": self._passed,
            "waited": self._waited,
            "best": best,
        }
        return tensors, values

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on from what :meth:`state` returned, with a trainer that was restored likewise."""
        self.best_epoch, self.best_value = values["best_epoch"], values["best_value"]
        self._passed, self._waited = values["passed"], values["waited"]
        self._state = None if values["best"] is None else (dict(tensors), values["best"])

    def _check(self, trainer: Trainer) -> None:
        if self._trainer is None:
            self._trainer = trainer
        if self._trainer is not trainer:
            raise ValueError(
                "this EarlyStopping remembers the best epoch of another trainer; make one for each"
            )


@dataclass(frozen=True, kw_only=True)
class EntropyCollapse:
    r"""Stop when the entropy of a model collapses: few states are left, and it overfits them.

    An epoch counts as collapsed when

    .. math:: S \le f \cdot \max(S_\text{first}, 0),

    where :math:`S_\text{first}` is the first entropy in the trainer's history; a negative entropy
    always counts, as there the expansion that gave it has broken down. Pass it as ``on_epoch``:
    it raises :class:`StopTraining` after ``patience`` such records in a row. All that it knows is
    the history of the trainer, so that a run that was resumed stops where one in a single piece
    does.

    Parameters
    ----------
    fraction : float, default=0.05
        :math:`f`, in [0, 1); 0 stops only at an entropy that is not positive.
    patience : int, default=3
        Records in a row. With ``monitor_every`` a record is only an epoch that was read.
    key : str or None, default=None
        Name of the entropy in the records. None is the first present of ``"exact_entropy"``,
        ``"entropy"`` and ``"tap2_entropy"``, which an
        :class:`~freenergy.thermodynamics.RBMMonitor` writes.

    Raises
    ------
    ValueError
        When an option is impossible.

    Examples
    --------
    >>> import torch
    >>> from freenergy.models import RBM
    >>> from freenergy.random import RandomStream
    >>> from freenergy.thermodynamics import RBMMonitor
    >>> from freenergy.training import Trainer, TrainingOptions, as_rows, initialize
    >>> data, random = torch.eye(8).repeat(20, 1), RandomStream(0)
    >>> rbm, rows = RBM(8, 4), as_rows(data, like=data)
    >>> initialize(rbm, rows, random)
    >>> options = TrainingOptions(n_epochs=5)
    >>> trainer = Trainer(rbm, options, random, monitors=[RBMMonitor(data)])
    >>> trainer.fit(rows, on_epoch=EntropyCollapse())
    >>> trainer.epoch
    5
    """

    fraction: float = 0.05
    patience: int = 3
    key: str | None = None

    def __post_init__(self) -> None:
        number = isinstance(self.fraction, numbers.Real) and not isinstance(self.fraction, bool)
        if not number or not 0 <= self.fraction < 1:
            raise ValueError(f"fraction must lie in [0, 1), got {self.fraction!r}")
        check_whole("patience", self.patience, 1)
        if self.key is not None and not isinstance(self.key, str):
            raise ValueError(f"key must be the name of an entropy or None, got {self.key!r}")

    def __call__(self, trainer: Trainer) -> None:
        """Look at the last record of a trainer.

        Raises
        ------
        StopTraining
            When the entropy has collapsed.
        ValueError
            When the trainer reads its monitors and none gives the entropy.
        """
        history = trainer.history
        if not history:
            return
        key = self._key(history[-1])
        if key is None:
            due = trainer.epoch % trainer.monitor_every == 0
            if due:
                raise ValueError(self._missing(history[-1]))
            return
        values = [float(r[key]) for r in history if _is_number(r.get(key))]
        # A value that is not a number says nothing, neither for a collapse nor against one.
        if not values or not _is_number(history[-1][key]):
            return
        threshold = self.fraction * max(values[0], 0.0)
        latest = values[-self.patience :]
        if len(latest) == self.patience and max(latest) <= threshold:
            raise StopTraining(_message(trainer, key, values, threshold))

    def _key(self, record: dict[str, Any]) -> str | None:
        keys = _KEYS if self.key is None else (self.key,)
        return next((key for key in keys if key in record), None)

    def _missing(self, record: dict[str, Any]) -> str:
        wanted = " or ".join(repr(key) for key in (_KEYS if self.key is None else (self.key,)))
        present = ", ".join(repr(name) for name in record if "entropy" in name) or "none"
        return (
            f"EntropyCollapse needs {wanted} in the records of training (entropies there: "
            f"{present}); give the trainer a monitor such as RBMMonitor, or set key"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)


def _message(trainer: Trainer, key: str, values: list[float], threshold: float) -> str:
    options = trainer.options
    constrained = options.weight_constraint is not None
    return (
        f"the entropy collapsed: {key} is {values[-1]:.4g} nats after epoch {trainer.epoch}, at or "
        f"below {threshold:.4g} (it began at {values[0]:.4g}). The model holds few states; "
        + (
            f"lower max_norm (now {options.max_norm:g})"
            if constrained
            else "set weight_constraint and max_norm"
        )
        + f", lower beta (now {options.beta:g}, a higher temperature) or train fewer epochs"
    )

"""What a training run is asked to do, validated once."""

from __future__ import annotations

import dataclasses
import math
import numbers
from dataclasses import dataclass
from typing import Any, Self

from freenergy.normalization.constraints import CONSTRAINTS

__all__ = [
    "METHODS",
    "OPTIMIZERS",
    "PRECISIONS",
    "LoopOptions",
    "TrainingOptions",
    "check_not_negative",
    "check_one_of",
    "check_positive",
    "check_share",
    "check_whole",
]

METHODS = ("cd", "pcd", "emf", "ptt")
"""Gradient estimators that :class:`TrainingOptions` knows."""

OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop")
"""Optimisers that :class:`LoopOptions` knows."""

PRECISIONS = ("float32", "tf32", "bf16")
"""Precisions of matrix products that :class:`TrainingOptions` knows."""


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    r"""Options that every training has, whatever the model.

    Parameters
    ----------
    n_epochs : int, default=10
        Passes over the data.
    batch_size : int, default=100
    learning_rate : float, default=0.01
    learning_rate_decay : float, default=0.0
        Epoch *t* (from 0) uses ``learning_rate / (1 + learning_rate_decay * t)``.
    schedule : {"inverse", "cosine"}, default="inverse"
        ``"cosine"`` lowers the rate along half a period to zero at the end of the last epoch,
        :math:`\eta_t = \tfrac12 \eta (1 + \cos(\pi t / n))` with *t* in epochs and parts of them.
    optimizer : {"sgd", "adam", "adamw", "rmsprop"}, default="sgd"
        Torch's, with its other options at their defaults. With ``"adamw"`` the weights decay by
        ``l2`` times the learning rate in each update, apart from the gradient.
    momentum : float, default=0.0
        As in :class:`torch.optim.SGD` and :class:`torch.optim.RMSprop`; Adam has its own.
    l1, l2 : float, default=0.0
        Decay of the weights (not of the biases): gradients of ``l1 * |W|₁`` and ``l2/2 * |W|₂²``.
    beta : float, default=1.0
        Inverse temperature at which the model is trained.
    weight_constraint : {"l1", "l2", "frobenius"} or None, default=None
        After each epoch: project each hidden unit's weights on the L1 or L2 ball of radius
        ``max_norm``, or rescale the matrix to Frobenius norm ``max_norm``.
    max_norm : float or None, default=None
        Required by ``weight_constraint``.
    shuffle : bool, default=True
        Whether each epoch visits the rows in a new random order.
    updates_per_epoch : int or None, default=None
        End each epoch after at most so many updates, for data too long for whole passes, or
        without end; each epoch then visits other rows. An epoch never goes beyond one pass. None
        visits all rows.

    Raises
    ------
    ValueError
        When an option is impossible; the message names it.

    Examples
    --------
    >>> LoopOptions(learning_rate=0.1, learning_rate_decay=1.0).learning_rate_at(1)
    0.05
    >>> LoopOptions(momentum=1.5)
    Traceback (most recent call last):
        ...
    ValueError: momentum must lie in [0, 1), got 1.5
    """

    n_epochs: int = 10
    batch_size: int = 100
    learning_rate: float = 0.01
    learning_rate_decay: float = 0.0
    schedule: str = "inverse"
    optimizer: str = "sgd"
    momentum: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    beta: float = 1.0
    weight_constraint: str | None = None
    max_norm: float | None = None
    shuffle: bool = True
    updates_per_epoch: int | None = None

    def __post_init__(self) -> None:
        check_one_of("optimizer", self.optimizer, OPTIMIZERS)
        check_one_of("schedule", self.schedule, ("inverse", "cosine"))
        check_one_of("weight_constraint", self.weight_constraint, (None, *CONSTRAINTS))
        check_whole("n_epochs", self.n_epochs, 0)
        check_whole("batch_size", self.batch_size, 1)
        if self.updates_per_epoch is not None:
            check_whole("updates_per_epoch", self.updates_per_epoch, 1)
        for name in ("learning_rate", "beta"):
            check_positive(name, getattr(self, name))
        for name in ("learning_rate_decay", "l1", "l2"):
            check_not_negative(name, getattr(self, name))
        check_share("momentum", self.momentum)
        if self.momentum and self.optimizer in ("adam", "adamw"):
            raise ValueError(
                f"momentum has no effect with optimizer={self.optimizer!r}, which has its own"
            )
        if self.learning_rate_decay and self.schedule == "cosine":
            raise ValueError("learning_rate_decay has no effect with schedule='cosine'")
        if self.weight_constraint is not None:
            if self.max_norm is None:
                raise ValueError(
                    f"weight_constraint={self.weight_constraint!r} needs max_norm, the norm to hold"
                )
            check_positive("max_norm", self.max_norm)
        elif self.max_norm is not None:
            raise ValueError("max_norm has no effect without weight_constraint; set both")

    def learning_rate_at(self, time: float) -> float:
        """The learning rate after so many epochs, and parts of one."""
        if self.schedule == "cosine":
            phase = math.pi * time / max(1, self.n_epochs)
            return 0.5 * self.learning_rate * (1.0 + math.cos(phase))
        return self.learning_rate / (1.0 + self.learning_rate_decay * math.floor(time))

    def to_dict(self) -> dict[str, Any]:
        """All options as plain values, ready for JSON."""
        values = dataclasses.asdict(self)
        # NumPy's numbers, from a grid of options perhaps, become plain ones.
        return {name: v.item() if hasattr(v, "item") else v for name, v in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Options from what :meth:`to_dict` gave.

        Raises
        ------
        ValueError
            When a name is not an option.
        """
        unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"unknown training options: {', '.join(sorted(unknown))}")
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(LoopOptions):
    r"""Options of the training of an RBM: those of :class:`LoopOptions`, and of the negative phase.

    Parameters
    ----------
    method : {"pcd", "cd", "emf", "ptt"}, default="pcd"
        Negative phase: persistent chains, chains started at the batch, the extended mean field, or
        persistent chains exchanged with earlier models of the same training.
    n_steps : int, default=1
        Gibbs steps (cd, pcd, ptt) or mean-field sweeps (emf) for each update.
    n_chains : int or None, default=None
        Persistent chains or mean-field states; None is ``batch_size``. Where the
        negative phase starts at the batch there are as many as it has rows.
    mean_field_order : {1, 2, 3}, default=2
        Of the extended mean field: naive, TAP, or TAP to third order.
    damping : float, default=0.5
        Of the mean-field sweeps.
    persistent : bool, default=True
        Whether mean-field states go on from update to update, or start at each batch.
    centered : bool, default=True
        Subtract running means of the units in the gradient, which makes it invariant to flips (but
        for a sparsity target, which tells on from off).
    sparsity_target : float or None, default=None
        Activity *p* in (0, 1) that each hidden unit is drawn to: the mean of its states over the
        data, as a share of their range. Features that are seldom on serve a linear classifier
        better.
    sparsity_cost : float, default=0.0
        Weight of the penalty on the activities *q*,
        :math:`\sum_j p \ln\frac{p}{q_j} + (1 - p) \ln\frac{1 - p}{1 - q_j}`, which is added to the
        negative log-likelihood of a row.
    precision : {"float32", "tf32", "bf16"}, default="float32"
        Of the factors of the matrix products in an update of a single-precision model:
        ``"float32"`` leaves torch's setting alone, ``"tf32"`` lets a GPU round them to 10 bits of
        mantissa, ``"bf16"`` rounds them to 7 bits, on any device (the products of the ladder of
        ``"ptt"`` stay as they are). Sums, parameters, and all else are float32.

    Raises
    ------
    ValueError
        When an option is impossible; the message names it.

    References
    ----------
    Sparsity: Lee, Ekanadham, Ng, *Sparse deep belief net model for visual area V2*, NIPS 2007;
    Hinton, *A practical guide to training restricted Boltzmann machines*, 2010, section 11.

    Examples
    --------
    >>> TrainingOptions(method="emf", n_steps=3).mean_field_order
    2
    """

    method: str = "pcd"
    n_steps: int = 1
    n_chains: int | None = None
    mean_field_order: int = 2
    damping: float = 0.5
    persistent: bool = True
    centered: bool = True
    sparsity_target: float | None = None
    sparsity_cost: float = 0.0
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_one_of("method", self.method, METHODS)
        check_one_of("precision", self.precision, PRECISIONS)
        super().__post_init__()
        for name in ("n_steps", "mean_field_order"):
            check_whole(name, getattr(self, name), 1)
        check_one_of("mean_field_order", self.mean_field_order, (1, 2, 3))
        if self.n_chains is not None:
            check_whole("n_chains", self.n_chains, 1)
        check_share("damping", self.damping)
        check_not_negative("sparsity_cost", self.sparsity_cost)
        if self.sparsity_target is None:
            if self.sparsity_cost:
                raise ValueError("sparsity_cost needs sparsity_target, the activity to hold")
        elif not 0 < _finite("sparsity_target", self.sparsity_target) < 1:
            raise ValueError(f"sparsity_target must lie in (0, 1), got {self.sparsity_target}")
        elif not self.sparsity_cost:
            raise ValueError("sparsity_target has no effect without sparsity_cost; set both")

    @property
    def chains(self) -> int:
        """Number of chains or mean-field states."""
        return self.batch_size if self.n_chains is None else self.n_chains


def check_one_of(name: str, value: object, known: tuple[object, ...]) -> None:
    """Refuse a value that is not one of those known, by name."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def check_whole(name: str, value: object, least: int) -> None:
    """Refuse what is not an integer of at least ``least``, by name.

    Examples
    --------
    >>> check_whole("batch_size", 10.0, 1)
    Traceback (most recent call last):
        ...
    ValueError: batch_size must be a whole number of at least 1, got 10.0
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < least:  # type: ignore[operator]
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_positive(name: str, value: object) -> None:
    """Refuse what is not a positive, finite number, by name."""
    if _finite(name, value) <= 0:
        raise ValueError(f"{name} must be positive, got {value}")


def check_not_negative(name: str, value: object) -> None:
    """Refuse what is not a finite number of at least 0, by name."""
    if _finite(name, value) < 0:
        raise ValueError(f"{name} must not be negative, got {value}")


def check_share(name: str, value: object) -> None:
    """Refuse what does not lie in [0, 1), by name."""
    if not 0 <= _finite(name, value) < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}")


def _finite(name: str, value: object) -> float:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)  # type: ignore[arg-type]

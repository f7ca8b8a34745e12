"""The training loop, one for every model and every way to its gradient."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from freenergy.distributed import ALONE, Group, group_now
from freenergy.models import RBM, DiscriminativeRBM
from freenergy.normalization.constraints import apply_constraint
from freenergy.random import RandomStream
from freenergy.training.estimators import gradient_estimator
from freenergy.training.graphs import RecordedUpdate, recorder_for
from freenergy.training.members import (
    Members,
    average_gradient,
    chain_axes,
    derived_seed,
    own_chains,
    pooled,
)
from freenergy.training.options import LoopOptions, TrainingOptions
from freenergy.training.precision import check_precision, products_in
from freenergy.training.rows import LabelledRows, Part, Rows, StreamedRows, rows_in
from freenergy.training.stopping import StopTraining
from freenergy.training.transfer import ahead

__all__ = [
    "START_SCALE",
    "DivergenceError",
    "Gradient",
    "Monitor",
    "Trainer",
    "has_diverged",
    "initialize",
]

_log = logging.getLogger(__name__)

START_SCALE = 0.01
"""Standard deviation of the weights at their start."""

Monitor = Callable[[Any], dict[str, Any]]
"""An instrument: reads a model after an epoch and returns named numbers for the history."""


class Gradient(Protocol):
    """A way to the gradient of what is minimised, for one model.

    Where several processes train the model together, the mean of their gradients is taken, each
    weighted by its rows, or by what a method ``weigh(batch)`` says. A gradient with an attribute
    ``group`` does it itself: it is given that :class:`~freenergy.distributed.Group`, and
    batches as :class:`~freenergy.training.rows.Part`. An attribute ``chain_axes`` says which
    tensors of the state the processes divide, and a method ``reseed(seed)`` lets random numbers of
    the gradient's own differ.
    """

    def compute(self, batch: Any) -> None:
        """Write the gradient for a batch, as its rows gave it, into the parameters' ``.grad``."""
        ...

    def measure(self) -> dict[str, Any]:
        """Numbers that the estimator knows of the model, for the history of an epoch."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Tensors that must persist between updates, by name."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from tensors that :meth:`state` returned."""
        ...


class DivergenceError(RuntimeError):
    """Training lost its parameters, see :func:`has_diverged`; the last good ones were restored.

    Attributes
    ----------
    event : str
        What happened.
    advice : str
        What to change, in the names of the options.
    """

    def __init__(self, event: str, advice: str = "") -> None:
        super().__init__(event, advice)
        self.event, self.advice = event, advice

    def __str__(self) -> str:
        return f"{self.event}. {self.advice}" if self.advice else self.event


@torch.no_grad()
def has_diverged(model: nn.Module, beta: float = 1.0) -> bool:
    """Whether a parameter is not finite, or so large that rounding swallows a change of one nat.

    The gradients of sampling are bounded, so that a rate far too high need not end in NaN.
    """
    return not all(
        bool((beta * p.abs() < 1.0 / torch.finfo(p.dtype).eps).all()) for p in model.parameters()
    )


@torch.no_grad()
def initialize(
    model: RBM | DiscriminativeRBM,
    rows: Rows | LabelledRows,
    random: RandomStream,
    beta: float = 1.0,
) -> None:
    r"""Start a model at its data: weights from N(0, 0.01²), visible means those of the data.

    The visible biases are the fields that give the columns' means, for 0/1 units
    :math:`\operatorname{logit}\langle v_i\rangle / \beta`. One pseudo-count for each value of the
    unit keeps a constant column finite. Hidden biases are zero. The weights of labels are drawn as
    the others, and their biases are the logarithms of the classes' shares, smoothed likewise.

    Parameters
    ----------
    model : RBM or DiscriminativeRBM
        Changed in place.
    rows : Rows or LabelledRows
    random : RandomStream
    beta : float, default=1
        Inverse temperature at which the means are those of the data.

    Examples
    --------
    >>> from freenergy.training.rows import as_rows
    >>> rbm, rows = RBM(2, 3), as_rows(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.empty(0))
    >>> initialize(rbm, rows, RandomStream(0))
    >>> rbm.visible_bias.detach().sigmoid()
    tensor([0.7500, 0.5000])
    """
    draws = random.normal((model.n_hidden, model.n_visible), scale=START_SCALE)
    model.weight.copy_(draws.T)
    support = model.visible.support
    pseudo_count = len(support)
    middle = sum(support) / pseudo_count
    mean = rows.mean().double().clamp(min(support), max(support))
    n = rows.total
    smoothed = (n * mean + pseudo_count * middle) / (n + pseudo_count)
    model.visible_bias.copy_(model.visible.field(smoothed) / beta)
    model.hidden_bias.zero_()
    if isinstance(model, DiscriminativeRBM) and isinstance(rows, LabelledRows | StreamedRows):
        model.label_weight.copy_(random.normal(model.label_weight.shape, scale=START_SCALE))
        model.label_bias.copy_(rows.class_shares(len(model.label_bias)).log() / beta)


class Trainer:
    """Trains a model on rows of data, epoch by epoch, and can stop and go on at any epoch.

    Parameters
    ----------
    model : nn.Module
        Trained in place; see :func:`initialize` for the start of an RBM.
    options : LoopOptions
        For an RBM :class:`~freenergy.training.TrainingOptions`.
    random : RandomStream
        Source of the gradient's draws, on the model's device.
    gradient : Gradient or None, default=None
        Way to the gradient; None is the one that ``options.method`` names for an RBM.
    order : RandomStream or None, default=None
        Source of the order of rows; None is ``random``. A stream of its own keeps the order of
        the rows the same for every method.
    monitors : sequence of callables, default=()
        Instruments that read the model after each epoch; see :data:`Monitor`.
    monitor_every : int, default=1
        Read them only after every so many epochs, and after the last.

    Attributes
    ----------
    epoch : int
        Epochs completed.
    history : list of dict
        One record for each completed epoch.
    certificate : dict or None
        Of the equilibrium of the chains at this epoch, where one was made; stored with the state.
    group : Group
        The processes that :meth:`fit` divides its work among, while it runs.

    Examples
    --------
    >>> import torch
    >>> from freenergy.models import RBM
    >>> from freenergy.random import RandomStream
    >>> from freenergy.training import Trainer, TrainingOptions, as_rows, initialize
    >>> rows = as_rows(torch.eye(8).repeat(20, 1), like=torch.empty(0))
    >>> rbm, random = RBM(8, 4), RandomStream(0)
    >>> initialize(rbm, rows, random)
    >>> trainer = Trainer(rbm, TrainingOptions(n_epochs=3), random)
    >>> trainer.fit(rows)
    >>> trainer.epoch, len(trainer.history)
    (3, 3)
    """

    def __init__(
        self,
        model: nn.Module,
        options: LoopOptions,
        random: RandomStream,
        *,
        gradient: Gradient | None = None,
        order: RandomStream | None = None,
        monitors: Sequence[Monitor] = (),
        monitor_every: int = 1,
    ) -> None:
        # Of whatever type the gradient takes.
        self.model: Any = model
        self.options: Any = options
        self.random = random
        self.order = random if order is None else order
        self.monitors = tuple(monitors)
        self.monitor_every = monitor_every
        if gradient is None:
            gradient = gradient_estimator(cast(RBM, model), cast(TrainingOptions, options), random)
        self.gradient = gradient
        check_precision(getattr(options, "precision", "float32"), next(model.parameters()).dtype)
        self._recording = self._new_recording()
        self.optimizer = _optimizer(model, options, recorded=self._recording is not None)
        self._rate = math.nan
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        self.certificate: dict[str, Any] | None = None
        self.group = ALONE
        self._members: Members | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the recording, which is of a device's addresses, and is made again."""
        return vars(self) | {"_recording": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._recording = self._new_recording()

    def fit(
        self,
        rows: Rows | LabelledRows,
        *,
        on_epoch: Callable[[Trainer], None] | None = None,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        """Train until ``options.n_epochs`` epochs are complete.

        Parameters
        ----------
        rows : Rows or LabelledRows
            The data; all rows are visited in each epoch, unless ``options.updates_per_epoch``
            ends it before.
        on_epoch : callable, default=None
            Called with the trainer after each epoch, its record already in ``history``. It may
            raise :class:`~freenergy.training.StopTraining` to end training, with its message as a
            warning where it has one.
        on_batch : callable, default=None
            Called with the number of rows of each batch, for a progress bar.

        Raises
        ------
        DivergenceError
            When the parameters are not finite, or absurdly large, after an epoch.

        Notes
        -----
        Whatever ends an epoch early (divergence, Ctrl-C, a monitor that fails) is passed on with
        model and trainer as they were after the epoch before.

        Where torch's process group is initialised, its processes train the model together. Each has
        to call this with the same rows and options; they all begin at the state of the first, and
        end in one state. Batches are those of one process: ``batch_size`` rows, and ``n_chains``
        chains, are divided. Monitors are read in the first process, which also decides on the end;
        ``on_epoch`` is called in all of them.
        """
        with self._divided(group_now()):
            if self._recording is None or self.group.size > 1:
                place = type(self.gradient).__name__, _device(self.model), self.group.size
                _log.info("no CUDA graph of the updates: %s on %s, processes: %d", *place)
            while self.epoch < self.options.n_epochs:
                good = self.state()
                try:
                    self._run_epoch(rows, on_batch)
                except BaseException:
                    self.restore(*good)
                    raise
                if on_epoch is not None and self._stops(on_epoch):
                    return

    def _stops(self, on_epoch: Callable[[Trainer], None]) -> bool:
        """Whether the first process is told to stop after this epoch."""
        found: StopTraining | None = None
        try:
            on_epoch(self)
        except StopTraining as stop:
            found = stop
        if found is not None and str(found):
            warnings.warn(str(found), UserWarning, stacklevel=3)
        return self.group.agree(found is not None)

    @contextmanager
    def _divided(self, group: Group) -> Iterator[None]:
        """The work divided among processes, which all are in one state before and after."""
        if group.size == 1:
            yield
            return
        try:
            self._join(group)
            yield
        finally:
            self._leave()

    def _join(self, group: Group) -> None:
        if self.order is self.random:
            # The order is common to all processes, other draws are not.
            legacy = self.order.state()["host"]["bit_generator"] == "MT19937"
            self.order = RandomStream(np.random.RandomState() if legacy else 0, self.random.device)
            self.order.restore(self.random.state())
        tensors, meta = group.agree(self.state())
        self._set_group(group)
        self.restore(tensors, meta)
        self._members = Members.gather(self.gradient, self.random, group)

    def _leave(self) -> None:
        whole = self.state()
        self._set_group(ALONE)
        self.restore(*whole)

    def _set_group(self, group: Group) -> None:
        self.group = group
        if hasattr(self.gradient, "group"):
            self.gradient.group = group

    def _run_epoch(self, rows: Rows | LabelledRows, on_batch: Callable[[int], None] | None) -> None:
        begin = time.perf_counter()
        options = self.options
        rate = options.learning_rate_at(self.epoch)
        order = self.order if options.shuffle else None
        n, done, own, updates = _epoch_rows(rows, options), 0, 0, 0
        follow = self._way(n)
        # Closed, so that whatever reads ahead stops with the epoch.
        with closing(self._batches(rows, order)) as batches:
            for batch in batches:
                self.use_rate(options.learning_rate_at(self.epoch + (done / n if n else 0)))
                follow(batch)
                updates += 1
                done += rows_in(batch)
                own += rows_in(batch.batch if isinstance(batch, Part) else batch)
                if on_batch is not None:
                    on_batch(rows_in(batch))
        self.constrain()
        self._average_buffers()
        if self.group.agree(has_diverged(self.model, options.beta)):
            raise DivergenceError(
                f"the parameters diverged in epoch {self.epoch + 1}; the state after epoch "
                f"{self.epoch} was kept",
                f"Lower learning_rate (now {rate:g})"
                + (f" or momentum (now {options.momentum:g})" if options.momentum else "")
                + ("" if options.weight_constraint else ", or set weight_constraint and max_norm"),
            )
        trained = time.perf_counter() - begin
        self.epoch += 1
        self.certificate = None
        record: dict[str, Any] = {"epoch": self.epoch, "updates": updates}
        record |= {"learning_rate": rate, "seconds": trained}
        if self.epoch % self.monitor_every == 0 or self.epoch == options.n_epochs:
            record |= self._measured(own)
            if self.group.rank == 0:
                for monitor in self.monitors:
                    record |= monitor(self.model)
            _add_likelihoods(record, options.beta)
        self.history.append(self.group.agree(record))
        if self.group.size > 1:
            self._members = Members.gather(self.gradient, self.random, self.group)

    def _batches(self, rows: Rows | LabelledRows, order: RandomStream | None) -> Generator[Any]:
        """The batches of an epoch, or this process's parts of them."""
        size, limit = self.options.batch_size, self.options.updates_per_epoch
        if self.group.size == 1:
            batches = rows.batches(size, order, limit)
        else:
            batches = rows.parts(size, self.group.portion, order, limit)
        return batches if rows.resident else ahead(batches, _device(self.model))

    def _new_recording(self) -> RecordedUpdate | None:
        """What records the updates; None where the gradient or the device does not let it."""
        if not getattr(self.gradient, "recordable", False):
            return None
        recorder = recorder_for(_device(self.model))
        if recorder is None:
            return None
        return RecordedUpdate(self.update, self._owners, recorder, self.random)

    def _owners(self) -> list[Any]:
        """All that holds tensors of an update."""
        kept = [dict(state) for state in self.optimizer.state.values()]
        return [vars(self.gradient).copy(), [p.grad for p in self.model.parameters()], kept]

    def _way(self, n_rows: int | None) -> Callable[[Any], None]:
        """How updates are made in an epoch of so many rows: one by one, or recorded."""
        recording, size = self._recording, self.options.batch_size
        if recording is None or self.group.size > 1:
            return self.update
        size = size if n_rows is None else min(size, n_rows)
        return lambda batch: recording(batch, size)

    def _average_buffers(self) -> None:
        """One value for what layers keep of the data, of which each process saw a part."""
        buffers = [b for b in self.model.buffers() if b.is_floating_point()]
        if self.group.size > 1 and buffers:
            self.group.average_(buffers, 1.0)

    def _measured(self, n_rows: int) -> dict[str, Any]:
        """What the gradient measured, in all processes, of which this one saw so many rows."""
        record = self.gradient.measure()
        if self.group.size == 1 or hasattr(self.gradient, "group"):
            return record
        records, weights = zip(*self.group.collect((record, n_rows)), strict=True)
        return pooled(records, weights)

    def _compute(self, batch: Any) -> None:
        """Write the gradient of a batch, of which each process has a part."""
        if self.group.size == 1:
            self._members = None  # They do not go along with what one process does alone.
            self.gradient.compute(batch)
        elif hasattr(self.gradient, "group"):
            self.gradient.compute(batch)
        else:
            average_gradient(self.gradient, self.model, batch, self.group)

    def update(self, batch: Any) -> None:
        """Follow the gradient of one batch: rows of shape (n, n_features), labelled or not."""
        with products_in(getattr(self.options, "precision", "float32")):
            self._compute(batch)
        if self.options.l1 > 0:
            for weight in _weights(self.model):
                if weight.grad is not None:
                    weight.grad.add_(weight.detach().sign(), alpha=self.options.l1)
        self.optimizer.step()

    def use_rate(self, rate: float) -> None:
        """Learn at this rate in the coming updates."""
        groups = self.optimizer.param_groups
        if not isinstance(groups[0]["lr"], Tensor):
            for group in groups:
                group["lr"] = rate
        elif rate != self._rate:
            # One tensor for all groups, from which recorded updates read it.
            groups[0]["lr"].fill_(rate)
        self._rate = rate

    def constrain(self) -> None:
        """Apply the constraint on the weights, where ``options`` asks for one."""
        options, weight = self.options, getattr(self.model, "weight", None)
        if options.weight_constraint is None or options.max_norm is None:
            return
        if not isinstance(weight, Tensor):
            raise TypeError(f"{type(self.model).__name__} has no weights that can be constrained")
        apply_constraint(weight, options.weight_constraint, options.max_norm)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the coming updates depend on: copied tensors, and values for JSON."""
        tensors: dict[str, Tensor] = {}
        # Beside parameters also what layers keep of the data, such as running means.
        tensors |= {f"model.{name}": t for name, t in self.model.state_dict().items()}
        tensors |= {f"gradient.{name}": t for name, t in self.gradient.state().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                if value is not None:
                    tensors[f"optimizer.{key}.{name}"] = value
        meta = {
            "options": self.options.to_dict(),
            "epoch": self.epoch,
            "history": list(self.history),
            "certificate": self.certificate,
            "random": self.random.state(),
            "order": self.order.state(),
        }
        if self._members is not None:
            tensors, meta = self._members.complete(tensors, meta, self.group)
        return {name: t.detach().clone() for name, t in tensors.items()}, meta

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned, to the same bits.

        Another number of processes than that which wrote it divides the chains anew, and draws
        other random numbers, which follow from the stored ones.
        """
        if self._recording is not None:
            self._recording.forget()  # It would go on with the tensors that are replaced here.
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                tensor.copy_(tensors[f"model.{name}"])
        self._restore_gradient(_with_prefix(tensors, "gradient."), tensors, meta)
        stored = _with_prefix(tensors, "optimizer.")
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter] = {
                key: value.to(parameter.device, copy=True)
                for key, value in _of_parameter(stored, name).items()
            }
        self.epoch = meta["epoch"]
        self.history = list(meta["history"])
        self.certificate = meta.get("certificate")
        self.order.restore(meta["order"])

    def _restore_gradient(
        self, state: dict[str, Tensor], tensors: dict[str, Tensor], meta: dict[str, Any]
    ) -> None:
        """The gradient and the stream that it draws from; of several processes, this one's."""
        group = self.group
        names = chain_axes(self.gradient) if group.size > 1 else ()
        self._members = members = Members.read(tensors, meta, names)
        if group.size == 1:
            self.gradient.restore(state)
            self.random.restore(meta["random"])
            return
        known = members is not None and len(members.random) == group.size
        own = members.others[group.rank] if members is not None and known else {}
        self.gradient.restore(own_chains(self.gradient, state, group) | own)
        if members is not None and known:
            self.random.restore(members.random[group.rank])
            return
        self.random.reseed(derived_seed(meta["random"], meta["epoch"], group.size, group.rank))
        reseed = getattr(self.gradient, "reseed", None)
        if reseed is not None:
            reseed(int(self.random.integers(0, 2**31, 1)))


def _epoch_rows(rows: Rows | LabelledRows, options: LoopOptions) -> int | None:
    """Rows that an epoch visits; None where nobody knows."""
    if options.updates_per_epoch is None:
        return rows.n_rows
    most = options.updates_per_epoch * options.batch_size
    return most if rows.n_rows is None else min(rows.n_rows, most)


def _weights(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that decay: matrices, not biases."""
    return [p for p in model.parameters() if p.dim() > 1]


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _optimizer(
    model: nn.Module, options: LoopOptions, *, recorded: bool = False
) -> torch.optim.Optimizer:
    """Torch's optimiser; to be recorded, with its rate and its counters on the device."""
    groups: list[dict[str, Any]] = [
        {"params": _weights(model), "weight_decay": options.l2},
        {"params": [p for p in model.parameters() if p.dim() <= 1]},
    ]
    rate: Any = options.learning_rate
    momentum = options.momentum
    if recorded:
        # In single precision whatever the model's: the fused kernels read it as that.
        rate = torch.tensor(rate, dtype=torch.float32, device=_device(model))
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=momentum, fused=True)
    if options.optimizer == "adam":
        return torch.optim.Adam(groups, lr=rate, fused=True, capturable=recorded)
    if options.optimizer == "adamw":
        # Its own default decays biases as well.
        return torch.optim.AdamW(groups, lr=rate, weight_decay=0.0, fused=True, capturable=recorded)
    # Its plain loop would ask the device for the rate.
    foreach = True if recorded else None
    return torch.optim.RMSprop(
        groups, lr=rate, momentum=momentum, capturable=recorded, foreach=foreach
    )


def _add_likelihoods(record: dict[str, Any], beta: float) -> None:
    """Mean log-likelihoods where a record has a log-partition function and mean free energies."""
    for suffix in ("", "_held_out"):
        free_energy = record.get(f"free_energy{suffix}")
        if free_energy is not None and "log_partition" in record:
            likelihood = -beta * free_energy - record["log_partition"]
            record.setdefault(f"log_likelihood{suffix}", likelihood)


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _of_parameter(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """What an optimiser stores of one parameter, by its own keys, which have no dots."""
    return {
        key: tensor
        for path, tensor in tensors.items()
        for key, _, parameter in [path.partition(".")]
        if parameter == name
    }

"""The instrument itself: attaches to a module, reads what trains, and lets go."""

from __future__ import annotations

import json
import os
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from freenergy.files import as_json, write_atomically
from freenergy.models import RBM, DiscriminativeRBM
from freenergy.random import RandomStream
from freenergy.report import write
from freenergy.thermodynamics.watching.accumulation import GradientSum
from freenergy.thermodynamics.watching.diffusion import Diffusion, compare_growth
from freenergy.thermodynamics.watching.findings import Finding, diagnose
from freenergy.thermodynamics.watching.history import History, Record
from freenergy.thermodynamics.watching.layers import (
    entries,
    find_layers,
    stored_weight,
    unwatched,
)
from freenergy.thermodynamics.watching.page import watch_page
from freenergy.thermodynamics.watching.readings import read
from freenergy.thermodynamics.watching.results import Cost, as_dict, as_text
from freenergy.thermodynamics.watching.sampling import LayerSampler, SiteSampler
from freenergy.thermodynamics.watching.schedule import Schedule
from freenergy.thermodynamics.watching.tracing import LayerTrace, Pass

__all__ = ["Watch", "watch"]

_PATIENCE = 4  # passes after which one that no gradient came back from is no step of training
_ACCUMULATION = 16  # passes after which an update that has not come is none
_MOST_SUMS = 400  # pairs of updates after which nothing new is to be seen


class Watch:
    r"""Watches a module while it trains; made by :func:`watch`.

    Attributes
    ----------
    history : History
        The layers, and what was read of them.
    n_steps : int
        Training passes that were counted.
    """

    def __init__(
        self,
        module: nn.Module | None = None,
        *,
        budget: float = 0.05,
        n_rows: int = 64,
        n_units: int = 128,
        seed: int = 0,
    ) -> None:
        if module is not None:
            _check_watchable(module)
        if not budget > 0:
            raise ValueError(f"budget must be positive, got {budget}")
        for name, value in (("n_rows", n_rows), ("n_units", n_units)):
            if value < 2:
                raise ValueError(f"{name} must be at least 2, got {value}")
        self.budget, self.n_rows, self.n_units, self.seed = budget, n_rows, n_units, seed
        self._given = module
        self._start_anew()

    def _start_anew(self) -> None:
        self.history = History([], [], [])
        self.n_steps = 0
        self._random = RandomStream(self.seed)
        self._schedule = Schedule(self.budget)
        self._module: nn.Module | None = None
        self._in_training = False
        self._handles: list[RemovableHandle] = []
        self._entry: nn.Module | None = None
        self._samplers: list[LayerSampler] | None = None
        self._starts: list[Tensor | None] = []
        self._pass: Pass | None = None
        self._sum: GradientSum | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What was read, without the module and the hooks on it."""
        self._settle()
        apart: dict[str, Any] = {
            "_given": None,
            "_module": None,
            "_handles": [],
            "_entry": None,
            "_samplers": None,
            "_starts": [],
            "_pass": None,
            "_sum": None,
        }
        return vars(self) | apart

    # ---- attaching -------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self.attached:
            raise RuntimeError("this watch is attached already; use another one, or close it first")
        if self._given is not None:
            self.attach(self._given)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def attached(self) -> bool:
        """Whether a module is watched now."""
        return bool(self._handles)

    def attach(self, module: nn.Module, *, in_training: bool = False) -> None:
        """Watch a module from now on; one that was watched before is gone on with.

        An RBM is refused with a TypeError that names the instruments for it.

        Parameters
        ----------
        module : nn.Module
        in_training : bool, default=False
            Count passes in evaluation mode too, as long as gradients are on: a trainer may leave
            a net without dropout in that mode.
        """
        _check_watchable(module)
        if self._module is not module:
            self.close()
            self._start_anew()
            self._module = module
        self._in_training = in_training
        if not self._handles:
            hook = _RootHook(weakref.ref(self))
            self._handles = [
                part.register_forward_pre_hook(hook, prepend=True)
                for part in entries(module).values()
            ]

    def close(self) -> None:
        """Let go of the module; what was read stays."""
        self._settle()
        if self._pass is not None:
            self._pass.drop()
            self._pass = None
        if self._sum is not None:
            self._sum.drop()
            self._sum = None
        if self._handles:
            for handle in self._handles:
                handle.remove()
            self._handles = []
            self._last_look()
        self._schedule.pause()

    def on_train_begin(self, trainer: Any) -> None:
        """Attach to the net of a trainer, before its first pass."""
        self.attach(trainer.model, in_training=True)

    def __call__(self, trainer: Any) -> None:
        """After a pass over the rows: attach where that is not done, and complete the readings."""
        self.attach(trainer.model, in_training=True)
        self._settle()
        # What follows until the next pass is no training step.
        self._schedule.pause()

    # ---- reading ---------------------------------------------------------------------------------

    def _before_pass(self, entry: nn.Module) -> None:
        """Called ahead of every forward pass of the module: cheap where nothing is to be read.

        Of a module that is called part by part, a pass begins with the part that came first.
        """
        if not torch.is_grad_enabled() or not (entry.training or self._in_training):
            return
        if self._entry is None:
            self._entry = entry
        if entry is not self._entry:
            return
        begin = time.perf_counter()
        self._schedule.step(begin)
        self.n_steps += 1
        module = self._module
        assert module is not None
        self._follow_sum()
        if self._is_free(module) and self._schedule.due():
            self._begin_reading(module, entry)
        self._schedule.own_seconds += time.perf_counter() - begin

    def _is_free(self, module: nn.Module) -> bool:
        """Finish the reading of an earlier pass, if it is complete; whether another may begin."""
        if self._samplers is None and not self._discover(module):
            return False
        current = self._pass
        if current is None:
            return True
        current.end_forward()
        if not current.returned:  # it failed, or was left
            self._forget(current)
            self._schedule.cancel_reading()
            return True
        current.waited += 1
        if not current.has_gradient:
            if current.waited >= _PATIENCE:
                self._forget(current)
            return False
        updated = current.updated(module)
        if current.can_learn and current.waited < _ACCUMULATION and not updated:
            return False
        self._finish(current)
        if updated and self._sum is None and len(self.history.sums) < _MOST_SUMS:
            self._sum = GradientSum(self.n_steps, self._weights(), self._schedule.timed)
            self._follow_sum()
        return True

    def _weights(self) -> dict[int, nn.Parameter]:
        """A parameter of each layer, whose gradient stands for that of the layer."""
        assert self._samplers is not None
        found = {}
        for i, sampler in enumerate(self._samplers):
            weight = stored_weight(sampler.part)
            if weight is None:
                weight = next(sampler.part.parameters(), None)
            if weight is not None and sampler.layer.order >= 0:
                found[i] = weight
        return found

    def _follow_sum(self) -> None:
        """See what the gradients of an update were made of, once it has come."""
        if self._sum is None:
            return
        self._sum.waited += 1
        if self._sum.updated:
            self.history.sums.append(self._sum.result())
            self._sum = None
        elif self._sum.waited > _ACCUMULATION:
            self._sum.drop()
            self._sum = None

    def _discover(self, module: nn.Module) -> bool:
        """Find the layers, once those without a size yet have got it."""
        if any(is_lazy(parameter) for parameter in module.parameters()):
            return False
        self._samplers = [
            LayerSampler.choose(part, layer, self.n_units, self._random)
            for part, layer in find_layers(module)
        ]
        self.history.layers = [sampler.layer for sampler in self._samplers]
        self.history.unwatched = unwatched(module)
        return True

    def _begin_reading(self, module: nn.Module, entry: nn.Module) -> None:
        assert self._samplers is not None
        self._schedule.begin_reading()
        for sampler in self._samplers:
            sampler.refit(self.n_units, self._random)
        sites = SiteSampler(self.n_rows, self._random)
        current = Pass(self.n_steps, self._samplers, sites, self._schedule.timed)
        self._pass = current
        current.begin(module, entry)
        if not self._starts:
            self._starts = [trace.weights for trace in current.traces]

    def _finish(self, current: Pass) -> None:
        """Make numbers of the samples of a pass that is over."""
        current.drop()
        readings = []
        for trace, sampler, start in zip(
            current.traces, current.samplers, self._starts, strict=True
        ):
            after = None if trace.weights is None else sampler.weights()
            readings.append(read(trace, sampler, after, start))
        self.history.add(Record(current.step, tuple(readings)))
        self._pass = None
        self._schedule.end_reading()

    def _forget(self, current: Pass) -> None:
        current.drop()
        self._pass = None
        self._schedule.end_reading()

    def _settle(self) -> None:
        """Finish a reading whose pass is over."""
        begin = time.perf_counter()
        if self._pass is not None and self._pass.has_gradient:
            self._finish(self._pass)
        self._schedule.own_seconds += time.perf_counter() - begin

    def _last_look(self) -> None:
        """Read the weights alone as training left them."""
        if self._samplers is None or not self.history.records:
            return
        if self.history.records[-1].step > self.n_steps:
            return
        readings = []
        for sampler, start in zip(self._samplers, self._starts, strict=True):
            sampler.refit(self.n_units, self._random)
            weights = None if start is None else sampler.weights()
            readings.append(read(LayerTrace(weights=weights), sampler, None, start))
        self.history.add(Record(self.n_steps + 1, tuple(readings)))

    # ---- results ---------------------------------------------------------------------------------

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong, the gravest and the first cause ahead; empty when nothing is."""
        self._settle()
        return diagnose(self.history)

    @property
    def cost(self) -> Cost:
        """What the watch took of the training's time, as it measured that itself."""
        schedule = self._schedule
        return Cost(
            self.n_steps,
            schedule.n_read,
            schedule.own_seconds,
            schedule.training_seconds,
            schedule.share,
            self.budget,
        )

    @property
    def diffusion(self) -> Diffusion:
        """How the weights move away from their start."""
        self._settle()
        return compare_growth(*self.history.distances())

    def to_dict(self) -> dict[str, Any]:
        """Everything that was read, predicted and found, ready for JSON."""
        return as_dict(self.history, self.findings, self.cost, self.diffusion)

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write everything that was read, predicted and found to a file, whole or not at all."""
        return write_atomically(path, json.dumps(as_json(self.to_dict()), allow_nan=False) + "\n")

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write a page that needs nothing but itself: findings, and a figure for each quantity."""
        findings = self.findings
        return write(watch_page(self.history, findings, self.cost, self.diffusion), path)

    def __str__(self) -> str:
        return as_text(self.history, self.findings, self.cost, self.diffusion)

    def __repr__(self) -> str:
        return (
            f"Watch({len(self.history.layers)} layers, {self.n_steps} steps, "
            f"{self._schedule.n_read} read, {len(self.findings)} findings)"
        )


def watch(
    module: nn.Module | None = None,
    *,
    budget: float = 0.05,
    n_rows: int = 64,
    n_units: int = 128,
    seed: int = 0,
) -> Watch:
    r"""Watch a module while it trains, and say what goes wrong in which layer.

    Linear and convolutional layers in any nesting are read at some of the training passes: their
    pre-activations, the gradient of the loss with respect to them, their weights and how these
    move. The first passes are read one by one, later ones as the budget allows, and at least one
    whenever the number of steps has grown by the square root of two. Training goes the same way to
    the last bit as without.

    Parameters
    ----------
    module : nn.Module, default=None
        Any module. In training it is called as a whole, or part by part where it cannot be called
        itself, as a VAE's encoder and decoder are. None waits for an estimator whose ``callback``
        the watch is.
    budget : float, default=0.05
        Largest share of the training's time that the watch may take by its own clock. A run of
        some hundred steps may exceed it, as its readings are not left out for their cost.
    n_rows, n_units : int, default=64 and 128
        Rows of a pass, and units of a layer, that are read at most. The units stay the same.
    seed : int, default=0
        Of the choice of rows and units. No other random stream is touched.

    Returns
    -------
    Watch
        A context manager, and a callback of the estimators.

    Raises
    ------
    TypeError
        When ``module`` is no module, or has nothing that can be called, as an RBM.
    ValueError
        When a number is out of its range.

    Notes
    -----
    A step is a forward pass in training mode, with gradients on; of a module in parts it begins
    with the part that was called first. Where a layer is called several
    times in it, its first call is read. Where several passes go to one update, the update is that
    of all of them.

    References
    ----------
    Klambauer et al., *Self-normalizing neural networks*, arXiv:1706.02515; Hoffer et al., *Train
    longer, generalize better*, arXiv:1705.08741.

    Examples
    --------
    >>> import torch
    >>> draws = torch.Generator().manual_seed(0)
    >>> rows = torch.randn(64, 20, generator=draws)
    >>> net = torch.nn.Sequential(
    ...     torch.nn.Linear(20, 50),
    ...     torch.nn.ReLU(),
    ...     torch.nn.Linear(50, 50),
    ...     torch.nn.ReLU(),
    ...     torch.nn.Linear(50, 1),
    ... )
    >>> with torch.no_grad():
    ...     _ = net[2].bias.fill_(-100.0)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    >>> with watch(net) as run:
    ...     for _ in range(5):
    ...         optimizer.zero_grad()
    ...         net(rows).square().mean().backward()
    ...         optimizer.step()
    >>> run.findings[0].layer, run.findings[0].kind
    ('2', 'dead units')
    """
    return Watch(module, budget=budget, n_rows=n_rows, n_units=n_units, seed=seed)


def _check_watchable(module: Any) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"watch takes a torch.nn.Module, got {type(module).__name__}")
    if entries(module):
        return
    words = (
        "watch follows signals through the layers of a net, and neither this "
        f"{type(module).__name__} nor a part of it can be called"
    )
    monitors = "RBMMonitor(rows) and TemperatureMonitor(rows) of freenergy.thermodynamics"
    if isinstance(module, RBM):
        words += f"; an RBM is read by {monitors}: put them into its estimator's monitors"
    elif isinstance(module, DiscriminativeRBM):
        words += f"; {monitors} read its marginal_rbm()"
    raise TypeError(words)


class _RootHook:
    """Tells a watch of a pass, as long as there is one; copies of the module are not watched."""

    def __init__(self, watching: weakref.ref[Watch] | None) -> None:
        self.watching = watching

    def __call__(self, module: nn.Module, args: Any) -> None:
        watching = None if self.watching is None else self.watching()
        if watching is not None:
            watching._before_pass(module)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_RootHook, (None,))

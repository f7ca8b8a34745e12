"""When to look: densely at first, then as a share of the time allows, and never too seldom."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["Schedule"]

DENSE = 5
"""Passes at the start that are read whatever they cost: an initialisation is seen only there."""

GROWTH = 2**0.5
"""Factor in the number of steps after which a pass is read whatever it costs: the readings of a
short run then reach its end, and *n* steps have at most some 2 log2 *n* of them. The last five
span a factor of four."""

MARGIN = 0.5
"""Share of the budget that is spent by the clock. The rest is for what the clock does not see:
the caches that a reading empties, and the memory that it takes and gives back."""

_PAUSE = 10.0  # a step this many times as long as the others is a pause, which buys no readings


class Schedule:
    """A clock of the training and of the instrument, and the choice of the passes to read.

    Parameters
    ----------
    budget : float
        Largest share of the training's time that reading may take.

    Examples
    --------
    >>> schedule = Schedule(0.05)
    >>> schedule.due()
    True
    """

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self.n_steps = 0
        self.n_read = 0
        self.own_seconds = 0.0
        self.training_seconds = 0.0
        self._step_read = self._step_before = 0
        self._began: float | None = None
        self._own_before = 0.0
        self._typical: float | None = None
        self._own_at_read = 0.0
        self._cost = 0.0

    def step(self, now: float) -> None:
        """Count a step, and the time since the one before, less what reading took of it."""
        self.n_steps += 1
        if self._began is not None:
            taken = max(now - self._began - (self.own_seconds - self._own_before), 0.0)
            if self._typical is not None:
                taken = min(taken, _PAUSE * self._typical)
            old = taken if self._typical is None else self._typical
            self._typical = 0.9 * old + 0.1 * taken
            self.training_seconds += taken
        self._began, self._own_before = now, self.own_seconds

    def pause(self) -> None:
        """The time from here to the next step is no training."""
        self._began = None

    def due(self) -> bool:
        """Whether a reading is due now, or the budget allows one."""
        if self.n_read < DENSE or self.n_steps >= GROWTH * self._step_read:
            return True
        allowed = MARGIN * self.budget * self.training_seconds
        return self.own_seconds + self._cost <= allowed

    def begin_reading(self) -> None:
        """Count the cost of a reading from here."""
        self.n_read += 1
        self._step_before, self._step_read = self._step_read, self.n_steps
        self._own_at_read = self.own_seconds

    def end_reading(self) -> None:
        """The reading is done: its cost is what the next one will have."""
        cost = self.own_seconds - self._own_at_read
        self._cost = cost if self.n_read == 1 else 0.5 * (self._cost + cost)

    def cancel_reading(self) -> None:
        """The pass failed before there was anything to read: the next one may be read instead."""
        self.n_read -= 1
        self._step_read = self._step_before

    def timed(self, hook: Callable[..., None]) -> Callable[..., None]:
        """The same hook, whose time counts as the instrument's own."""

        def wrapped(*args: Any) -> None:
            begin = time.perf_counter()
            try:
                hook(*args)
            finally:
                self.own_seconds += time.perf_counter() - begin

        return wrapped

    @property
    def share(self) -> float:
        """Time of reading over time of training without it, NaN before the second step."""
        if self.training_seconds <= 0:
            return float("nan")
        return self.own_seconds / self.training_seconds

"""The independent pieces of a study, on as many processes as are given.

They run on joblib's backend: its own worker processes, or whatever :class:`joblib.parallel_config`
chose around the call, as a cluster of Dask or Ray that shares the study's folder.
"""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache, partial
from multiprocessing import current_process
from typing import Any, NamedTuple

import torch
from joblib import Parallel, delayed, effective_n_jobs
from joblib.externals.loky.process_executor import TerminatedWorkerError
from threadpoolctl import threadpool_limits

from freenergy.progress import Reporter
from freenergy.training import RunError

__all__ = ["Job", "one_thread", "run_jobs"]

_WATCH_EVERY = 1.0


class Job(NamedTuple):
    """A piece of a study that waits for no other.

    Attributes
    ----------
    label : str
        What it is, for the log.
    work : callable
        Does it, leaves what it finds in a file, and says in a few words what that was. It must
        be possible to pickle it, and it must store often enough to be killed at any time. A
        cluster sends large arrays once where they are arguments of a :func:`functools.partial`;
        other jobs may see them too, so that none writes to them.
    """

    label: str
    work: Callable[[], str]


def run_jobs(
    jobs: Sequence[Job],
    label: str,
    *,
    n_jobs: int | None = None,
    reporter: Reporter | None = None,
) -> None:
    """Do every job, in any order.

    Each has one thread, wherever it runs, so that what it finds does not depend on ``n_jobs``.
    Whatever ends the work early (Ctrl-C, an error in a job) ends all jobs.

    Parameters
    ----------
    jobs : sequence of Job
        The longest first, so that none is waited for at the end.
    label : str
        What they are together, for the log.
    n_jobs : int, default=None
        Processes, as joblib counts them: 1 is this one, -1 as many as there are cores, None what
        :class:`joblib.parallel_config` says and else 1.
    reporter : Reporter, default=None

    Raises
    ------
    RunError
        When a worker process was killed.

    Examples
    --------
    >>> import io
    >>> log = io.StringIO()
    >>> jobs = [Job(f"{n} cubed", lambda n=n: str(n**3)) for n in (2, 3)]
    >>> run_jobs(jobs, "powers", reporter=Reporter(log))
    >>> print(log.getvalue().rsplit(",", 1)[0])
    powers: 2/2 jobs, 3 cubed: 27
    """
    if not jobs:
        return
    if n_jobs is not None:
        n_jobs = min(effective_n_jobs(n_jobs), len(jobs))
    with (
        (reporter or Reporter()).task(label, len(jobs), "jobs") as advance,
        closing(_finished(jobs, n_jobs)) as finished,
    ):
        for note in finished:
            advance(1, note)


def _finished(jobs: Sequence[Job], n_jobs: int | None) -> Generator[str, None, None]:
    """The notes of jobs as they end; closed early, it ends the workers."""
    # Small batches lose little beside the length of a job; arrays that workers share may be
    # written to, as torch wants it, each in its own copy.
    parallel = Parallel(n_jobs, return_as="generator_unordered", batch_size=1, mmap_mode="c")
    with one_thread():
        with _interrupts_ignored():
            results = parallel(delayed(_do)(_process(), j.label, *_call(j.work)) for j in jobs)
        try:
            for note, caught in results:
                for warning in caught:
                    warnings.warn(warning, stacklevel=2)
                yield note
        except TerminatedWorkerError as error:
            raise RunError(
                "a worker process ended before its work was done: it was killed, perhaps for want "
                "of memory (a smaller number of jobs needs less). What is finished is stored; the "
                "same call goes on from there"
            ) from error
        finally:
            with warnings.catch_warnings():
                # That results are not waited for is meant.
                warnings.simplefilter("ignore")
                results.close()


def _process() -> tuple[str, int]:
    """Machine and number of this process."""
    return platform.node(), os.getpid()


def _call(work: Callable[[], str]) -> tuple[Any, ...]:
    """A function and its arguments, each by itself: Dask takes no array out of a whole job."""
    if isinstance(work, partial) and not work.keywords:
        return work.func, *work.args
    return (work,)


def _do(
    home: tuple[str, int], label: str, function: Callable[..., str], *arguments: Any
) -> tuple[str, list[Warning | str]]:
    """The note of a job, and the warnings that its own process has nobody to show to."""
    if _process() == home:
        return _note(label, function(*arguments)), []
    _end_with(home[1])
    with one_thread(), warnings.catch_warnings(record=True) as caught:
        note = _note(label, function(*arguments))
    return note, [warning.message for warning in caught]


def _note(label: str, found: str) -> str:
    return f"{label}: {found}" if found else label


@cache
def _end_with(parent: int) -> None:
    """End this process when its parent was killed: a worker of joblib's would outlive it."""
    if not current_process().name.startswith("LokyProcess"):
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_EVERY)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for every library: their number shows in the last bits of a sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Pass over Ctrl-C for a moment, in which processes start that inherit that.

    The interrupted process ends its workers; they are not to complain beside it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

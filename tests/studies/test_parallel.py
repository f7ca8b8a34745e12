"""Independent jobs: each with one thread, wherever it runs, and no process left behind."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch

from freenergy.progress import Reporter
from freenergy.studies.parallel import Job, one_thread, run_jobs
from freenergy.training import DivergenceError, RunError


def run(jobs: list[Job], n_jobs: int | None = None) -> str:
    log = io.StringIO()
    run_jobs(jobs, "trainings", n_jobs=n_jobs, reporter=Reporter(log))
    return log.getvalue()


def leave(path: Path, find: Callable[[], object]) -> Job:
    """A job that leaves in a file what it finds, and says it."""

    def work() -> str:
        path.write_text(str(find()))
        return path.read_text()

    return Job(path.name, work)  # pickled whole: workers cannot import the tests


def test_one_job_at_a_time_stays_in_this_process_with_one_thread(tmp_path):
    def find() -> tuple[int, int]:
        return os.getpid(), torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        log = run([leave(tmp_path / name, find) for name in "ab"], 1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    for name in "ab":
        assert (tmp_path / name).read_text() == str((os.getpid(), 1))
    assert log.startswith(f"trainings: 2/2 jobs, b: ({os.getpid()}, 1), ")


def test_no_jobs_are_no_work_and_no_words():
    assert run([], 2) == ""


def test_several_jobs_have_processes_with_one_thread_each(tmp_path):
    large = np.zeros(300_000)  # enough to be handed over as a file that the processes share

    def find() -> tuple[int, int, float]:
        torch.from_numpy(large)[0] += 1.0  # torch warns of arrays that cannot be written to
        warnings.warn("a word of warning", stacklevel=1)
        time.sleep(0.1)
        return os.getpid(), torch.get_num_threads(), float(large[0])

    jobs = [leave(tmp_path / str(i), find) for i in range(4)]
    with pytest.warns(UserWarning, match="a word of warning") as caught:
        log = run(jobs, 2)
    assert len(caught) == 4
    found = [eval((tmp_path / str(i)).read_text()) for i in range(4)]
    assert os.getpid() not in {process for process, _, _ in found}
    assert {threads for _, threads, _ in found} == {1}
    assert large[0] == 0, "a job has its own copy of what it changes"
    assert log.splitlines()[-1].startswith("trainings: 4/4 jobs, ")


def test_the_context_of_joblib_is_honoured(tmp_path):
    def find() -> str:
        time.sleep(0.1)
        return f"{os.getpid()} {threading.current_thread() is threading.main_thread()}"

    jobs = [leave(tmp_path / name, find) for name in "ab"]
    with joblib.parallel_config("threading", n_jobs=2):
        run(jobs)
    assert {(tmp_path / name).read_text() for name in "ab"} == {f"{os.getpid()} False"}
    run(jobs)
    assert {(tmp_path / name).read_text() for name in "ab"} == {f"{os.getpid()} True"}


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_an_error_in_a_job_arrives_with_its_message(tmp_path, n_jobs):
    def fail() -> None:
        raise DivergenceError("PCD diverged in epoch 3")

    jobs = [leave(tmp_path / "done", lambda: 1), leave(tmp_path / "failed", fail)]
    with pytest.raises(DivergenceError, match="PCD diverged in epoch 3"):
        run(jobs, n_jobs)


@pytest.mark.slow
def test_a_killed_worker_is_named_and_the_next_call_has_others(tmp_path):
    killed = leave(tmp_path / "b", lambda: os.kill(os.getpid(), signal.SIGKILL))
    jobs = [leave(tmp_path / "a", lambda: 1), killed]
    with pytest.raises(RunError, match=r"a worker process ended before its work was done"):
        run(jobs, 2)
    jobs = [leave(tmp_path / name, os.getpid) for name in "cd"]
    assert "2/2 jobs" in run(jobs, 2)


def test_sums_have_the_bits_of_one_thread():
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(2000, 300)))
    with one_thread():
        assert torch.get_num_threads() == 1
        first = rows.T @ rows
        second = torch.from_numpy(rows.numpy().T @ rows.numpy())
    with one_thread():
        assert bool((rows.T @ rows == first).all())
        assert bool((torch.from_numpy(rows.numpy().T @ rows.numpy()) == second).all())


# ---- ends ----------------------------------------------------------------------------------------

# Without ``if __name__ == "__main__"``: a script or a notebook is not started again by its workers.
SCRIPT = """
import sys, time
from pathlib import Path
from freenergy.studies.parallel import Job, run_jobs

def wait(path):
    import os
    path.write_text(str(os.getpid()))
    time.sleep(600)
    return ""

run_jobs([Job("wait", lambda k=k: wait(Path(sys.argv[1]) / k)) for k in "ab"], "waits", n_jobs=2)
"""


@pytest.fixture
def waiting(tmp_path):
    """A script whose two workers are at work, and the processes of these."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a signal to its group does not end the tests
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        files = [tmp_path / name for name in "ab"]
        wait_until(lambda: all(f.exists() and f.read_text() for f in files), process)
        yield process, [int(f.read_text()) for f in files]
    finally:
        process.kill()
        process.communicate()


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


def is_alive(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status != "Z"


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@pytest.mark.slow
@needs_proc
def test_ctrl_c_ends_all_workers_without_a_word_of_theirs(waiting):
    process, workers = waiting
    assert len(set(workers)) == 2
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to the workers as well
    error = process.communicate(timeout=60)[1]
    wait_until(lambda: not any(map(is_alive, workers)))
    assert error.count("Traceback") == 1
    assert error.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.slow
@needs_proc
def test_workers_do_not_outlive_a_killed_parent(waiting):
    process, workers = waiting
    process.kill()
    process.wait()
    begin = time.monotonic()
    wait_until(lambda: not any(map(is_alive, workers)))
    assert time.monotonic() - begin < 30

"""A training that is killed at any moment goes on, and ends with the bits of one left alone."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from freenergy.training import load_checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs the signals of POSIX")

N_EPOCHS, N_KILLS = 60, 10
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
COMMAND = f"train --hidden 24 --batch-size 100 --epochs {N_EPOCHS} --momentum 0.5 --chains 20"

# What `python -m freenergy` does after its imports, which take seconds: in a fork for each line.
SHELL = """
import os, runpy, shlex, sys
import numpy, freenergy.cli
freenergy.BernoulliRBM(1, n_iter=1, method="emf").fit(numpy.eye(2))
print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        sys.argv[1:] = shlex.split(line)
        os.dup2(2, 1)
        runpy.run_module("freenergy", run_name="__main__", alter_sys=True)
    print(pid, flush=True)
    sys.stdin.readline()
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[[str], tuple[int, Callable[[], int]]]]:
    """``run(arguments)`` starts a freenergy process: its id, and a function that waits for it."""
    with subprocess.Popen(
        [sys.executable, "-c", SHELL],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as shell:
        assert shell.stdout.readline() == "ready\n"

        def start(arguments: str) -> tuple[int, Callable[[], int]]:
            return ask(arguments), lambda: ask("wait")

        def ask(line: str) -> int:
            shell.stdin.write(line + "\n")
            shell.stdin.flush()
            return int(shell.stdout.readline())

        yield start
        shell.stdin.close()


@pytest.fixture(scope="module")
def undisturbed(run, tmp_path_factory) -> Callable[[str], tuple[Path, float]]:
    """``undisturbed(method)``: a run left alone, and how long it was until its last epoch."""
    done: dict[str, tuple[Path, float]] = {}

    def train(method: str) -> tuple[Path, float]:
        if method not in done:
            path = tmp_path_factory.mktemp(method) / "run"
            begin = time.time()
            _, wait = run(f"{COMMAND} --method {method} --out {path}")
            assert wait() == 0
            # The last line of metrics: after it the equilibrium is certified and stored.
            done[method] = path, (path / "metrics.jsonl").stat().st_mtime - begin
        return done[method]

    return train


def arguments_to_go_on(path: Path, method: str) -> str:
    """A process killed before it wrote run.json left no run to go on with."""
    started = (path / "run.json").exists()
    return f"train --resume {path}" if started else f"{COMMAND} --method {method} --out {path}"


def epochs_done(path: Path) -> int:
    """By the checkpoint, which is whole at every moment."""
    checkpoint = path / "model.safetensors"
    return load_checkpoint(checkpoint)[1]["epoch"] if checkpoint.exists() else 0


def wait_for_an_epoch(path: Path, after: int) -> None:
    deadline = time.monotonic() + 120
    while epochs_done(path) <= min(after, N_EPOCHS - 1):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def assert_same_run(path: Path, other: Path) -> None:
    (tensors, values), (other_tensors, other_values) = (
        load_checkpoint(p / "model.safetensors") for p in (path, other)
    )
    assert tensors.keys() == other_tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, other_tensors[name], err_msg=name)
    logs = [[json.loads(line) for line in (p / "metrics.jsonl").open()] for p in (path, other)]
    for record in (*values["history"], *other_values["history"], *logs[0], *logs[1]):
        assert record.pop("seconds") > 0
    assert values == other_values
    assert logs[0] == logs[1] == values["history"]
    assert [record["epoch"] for record in logs[0]] == list(range(1, N_EPOCHS + 1))


@pytest.mark.parametrize("method", ["pcd", pytest.param("emf", marks=pytest.mark.slow)])
def test_a_killed_run_resumes_to_the_same_bits(run, undisturbed, tmp_path, method):
    reference, duration = undisturbed(method)
    path = tmp_path / "run"
    epochs = [0]
    for i, moment in enumerate(np.random.default_rng(7).uniform(0, 0.12 * duration, N_KILLS)):
        pid, wait = run(arguments_to_go_on(path, method))
        if i % 2:  # after an epoch at least, however slow the machine is
            wait_for_an_epoch(path, epochs[-1])
            moment /= 5
        time.sleep(moment)
        os.kill(pid, signal.SIGKILL)
        assert wait() == -signal.SIGKILL
        epochs.append(epochs_done(path))
    assert epochs == sorted(epochs)
    assert len({*epochs}) > 2, "kills that all came too early or too late test nothing"
    _, wait = run(arguments_to_go_on(path, method))
    assert wait() == 0
    assert_same_run(path, reference)
    assert (path / "report.html").exists()


def test_ctrl_c_says_how_to_go_on_and_that_works(run, undisturbed, tmp_path):
    reference, _ = undisturbed("pcd")
    path = tmp_path / "a run"
    process = subprocess.Popen(
        [sys.executable, "-m", "freenergy", *shlex.split(COMMAND), "--out", str(path)],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        # A shell may have started the tests with SIGINT ignored, which is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_for_an_epoch(path, 3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    message = errors.splitlines()[-1]
    done = epochs_done(path)
    assert 3 < done < N_EPOCHS
    assert message.startswith(f"freenergy: interrupted: stopped after epoch {done} of {N_EPOCHS}; ")
    advice = message.partition("go on with: freenergy ")[2]
    assert shlex.split(advice) == ["train", "--resume", str(path)]
    _, wait = run(advice)
    assert wait() == 0
    assert_same_run(path, reference)

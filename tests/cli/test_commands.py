"""The command line: what it leaves, what it prints, and one line for every error."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import freenergy as fe
from freenergy import cli
from freenergy.inference import Certificate, exact, pseudo_log_likelihood
from freenergy.studies.assessment import Assessment
from freenergy.training import RunDirectory, Trainer, TrainingOptions, load_model

TRAIN = ("train", "--hidden", "4", "--epochs", "2", "--batch-size", "10")
# A small model is measured in a second; the rest is for machines that are busy.
QUICK = ("--time-budget", "30")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory, call) -> Path:
    """A run that a test may read, but must not change."""
    path = tmp_path_factory.mktemp("trained") / "run"
    assert call(*TRAIN, "--data", data, "--out", path, "--beta", 2.0) == 0
    return path


@pytest.fixture(scope="module")
def studied(data, tmp_path_factory, call) -> Path:
    """A complete study that a test may read, but must not change."""
    path = tmp_path_factory.mktemp("studied") / "study"
    assert call(*STUDY, "--data", data, "--out", path) == 0
    return path


STUDY = ("study", "--epochs", "2", "--seeds", "2", "--hidden", "4", "--jobs", "1")


def assert_same_model(path: Path, other: Path) -> None:
    for a, b in zip(load_model(path).parameters(), load_model(other).parameters(), strict=True):
        assert bool((a == b).all())


# ---- help and version ----------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["study", "train", "evaluate", "sample", "report", "version"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_explains_itself(run, command, flag):
    result = run(command, flag)
    assert (result.code, result.err) == (0, "")
    assert f"freenergy {command}" in result.out
    assert command in run(flag).out


def test_help_of_train_names_the_defaults_that_it_has(run):
    out = " ".join(run("train", "--help").out.split())
    for option in ("--method", "--resume", "--weight-constraint", "--centered", "--no-centered"):
        assert option in out
    assert "[default: pcd]" in out
    assert "[default: (whole passes)]" in re.sub(r"[│\s]+", " ", out)


def test_help_of_study_names_what_is_taken_when_nothing_is_given(run):
    out = re.sub(r"[│\s]+", " ", run("study", "--help").out)
    assert "[default: (number of cores)]" in out
    assert "[default: (all)]" in out


def test_no_command_prints_the_help_alone(run):
    result = run()
    assert (result.code, result.err) == (2, "")
    assert "study" in result.out


def test_the_version_is_printed(run):
    assert run("version") == (0, f"{fe.__version__}\n", "")


def test_the_module_is_the_command(tmp_path):
    """In processes of their own: standard output, one line of error, and exit codes."""
    calls = {("version",): 0, ("train", "--method", "foo"): 2}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "freenergy", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for arguments in calls
    ]
    results = [(p.wait(120), *p.communicate()) for p in processes]
    assert [code for code, *_ in results] == list(calls.values())
    assert results[0][1].strip() == fe.__version__
    message = "freenergy: method must be one of 'cd', 'pcd', 'emf', 'ptt', got 'foo'"
    assert results[1][1:] == ("", f"{message}\n")
    assert list(tmp_path.iterdir()) == []


# ---- train ---------------------------------------------------------------------------------------


def test_train_leaves_a_run_and_says_where(run, data):
    result = run(*TRAIN, "--data", data, "--out", "a run", "--method", "emf", "--order", 3)
    assert result.code == 0
    assert result.out == "run: a run\nreport: a run/report.html\n"
    line, words = result.err.splitlines()
    assert line.startswith("a run: 2/2 epochs, held-out log-likelihood -")
    assert words.startswith("Gibbs chains are in equilibrium.")
    assert sorted(p.name for p in Path("a run").iterdir()) == [
        "metrics.jsonl",
        "model.safetensors",
        "report.html",
        "run.json",
    ]
    config = RunDirectory("a run").config()
    assert (config.n_visible, config.n_hidden, config.seed) == (6, 4, 0)
    assert (config.options.method, config.options.mean_field_order) == ("emf", 3)
    assert config.data["name"] == str(data)
    assert shlex.split(config.command)[-6:] == ["--out", "a run", "--method", "emf", "--order", "3"]
    record = json.loads(Path("a run/metrics.jsonl").read_text().splitlines()[-1])
    assert record["epoch"] == 2
    assert record["log_likelihood_held_out"] < 0
    page = Path("a run/report.html").read_text()
    assert "How did EMF train this RBM?" in page


def test_every_option_of_train_reaches_the_run(run, data):
    options = {
        "--method": "cd",
        "--hidden": 3,
        "--epochs": 1,
        "--batch-size": 7,
        "--learning-rate": 0.02,
        "--learning-rate-decay": 0.3,
        "--optimizer": "rmsprop",
        "--momentum": 0.4,
        "--l1": 0.01,
        "--l2": 0.02,
        "--steps": 2,
        "--chains": 9,
        "--order": 1,
        "--damping": 0.3,
        "--updates-per-epoch": 3,
        "--beta": 1.5,
        "--weight-constraint": "l2",
        "--max-norm": 0.8,
        "--sparsity-target": 0.2,
        "--sparsity-cost": 0.6,
        "--seed": 5,
        "--unit": "spin",
        "--dtype": "float64",
    }
    pairs = [str(x) for pair in options.items() for x in pair]
    flags = ("--no-centered", "--no-persistent", "--no-shuffle")
    assert run("train", *pairs, *flags, "--data", data, "--out", "run").code == 0
    config = RunDirectory("run").config()
    found = config.options
    assert (found.method, found.n_epochs, found.batch_size) == ("cd", 1, 7)
    assert (found.learning_rate, found.learning_rate_decay, found.momentum) == (0.02, 0.3, 0.4)
    assert (found.l1, found.l2, found.n_steps, found.n_chains) == (0.01, 0.02, 2, 9)
    assert (found.mean_field_order, found.damping, found.beta) == (1, 0.3, 1.5)
    assert (found.centered, found.persistent, found.shuffle) == (False, False, False)
    assert (found.weight_constraint, found.max_norm) == ("l2", 0.8)
    assert (found.sparsity_target, found.sparsity_cost) == (0.2, 0.6)
    assert (config.n_hidden, config.seed, config.dtype) == (3, 5, "float64")
    assert (config.visible, config.hidden) == ("spin", "spin")
    assert (found.optimizer, found.updates_per_epoch) == ("rmsprop", 3)
    # No precision is reduced in float64.
    others = "--schedule", "cosine", "--precision", "bf16"
    assert run("train", *others, *TRAIN[1:], "--data", data, "--out", "2").code == 0
    other = RunDirectory("2").config().options
    assert (other.schedule, other.precision) == ("cosine", "bf16")
    left = TrainingOptions().to_dict().items() & found.to_dict().items()
    assert {name for name, _ in left} == {"schedule", "precision"}, (
        "an option that the command line lacks"
    )


@pytest.fixture
def shards(tmp_path, patterns) -> Path:
    """The same patterns in a folder of three .npy shards."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for k, part in enumerate(np.array_split(patterns(300, 1)[0].astype(np.uint8), 3)):
        np.save(folder / f"part-{k}.npy", part)
    return folder


def test_a_folder_of_shards_is_trained_measured_and_resumed_to_the_same_bits(run, shards):
    once = run(*TRAIN, "--data", shards, "--out", "once")
    assert once.code == 0, once.err
    config = RunDirectory("once").config()
    assert config.data["name"] == str(shards)
    assert config.n_visible == 6
    last = RunDirectory("once").history()[-1]
    assert last["pseudo_likelihood_held_out"] > -6 * np.log(2)
    assert run(*TRAIN[:3], "--epochs", 1, *TRAIN[5:], "--data", shards, "--out", "b").code == 0
    resumed = run("train", "--resume", "b", "--epochs", 2)
    assert resumed.code == 0, resumed.err
    for p, q in zip(load_model("once").parameters(), load_model("b").parameters(), strict=True):
        np.testing.assert_array_equal(p.detach(), q.detach())
    measured = run("evaluate", "once", *QUICK, "--json")
    assert measured.code == 0, measured.err
    assert run("evaluate", "once", shards, *QUICK, "--json").code == 0


def test_a_broken_shard_stops_the_run_with_its_name_and_keeps_the_checkpoint(run, shards):
    assert run(*TRAIN, "--data", shards, "--out", "kept").code == 0
    before = (Path("kept") / "model.safetensors").read_bytes()
    whole = np.load(shards / "part-1.npy")
    np.save(shards / "part-1.npy", np.where(whole > 0, np.uint8(7), whole))
    changed = run("train", "--resume", "kept", "--epochs", 3)
    assert (changed.code, "is not what the run started with" in changed.err) == (2, True)
    np.save(shards / "part-1.npy", whole[:, :5])
    narrow = run(*TRAIN, "--data", shards, "--out", "new")
    assert narrow.code == 2
    assert "part-1.npy has rows of shape (5,)" in narrow.err
    np.save(shards / "part-1.npy", np.where(whole > 0, np.nan, whole).astype(np.float32))
    assert "part-1.npy has values of type float32" in run("train", "--data", shards).err
    assert not Path("new").exists()
    assert (Path("kept") / "model.safetensors").read_bytes() == before


def test_stores_and_tables_are_streamed_without_their_labels(run, tmp_path, patterns):
    h5py = pytest.importorskip("h5py")
    pd = pytest.importorskip("pandas")
    x, y = patterns(100, 1)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"], file["y"] = x, y
    (tmp_path / "t").mkdir()
    names = list("abcdef")
    pd.DataFrame(x, columns=names).assign(y=y).to_parquet(tmp_path / "t" / "0.parquet")
    for k, options in enumerate(
        [
            ("--data", f"{tmp_path / 'x.h5'}:/x"),
            ("--data", tmp_path / "x.h5", "--labels", "y"),
            ("--data", "../x.h5", "--labels", "../x.h5:/y"),
            ("--data", tmp_path / "t", "--labels", "y"),
        ]
    ):
        found = run(*TRAIN, *options, "--out", k)
        assert found.code == 0, found.err
    stored = RunDirectory("2").config().data["labels"]
    assert stored == f"{tmp_path / 'x.h5'}:/y", "relative names do not hold elsewhere"
    (tmp_path / "s").mkdir()
    np.save(tmp_path / "s" / "0.npy", x)
    np.save("y.npy", y)
    assert run(*TRAIN, "--data", tmp_path / "s", "--labels", "y.npy", "--out", "s").code == 0
    assert RunDirectory("s").config().data["labels"] == str(Path("y.npy").resolve())
    models = [list(load_model(str(k)).parameters()) for k in range(4)]
    for other in models[1:]:
        for p, q in zip(models[0], other, strict=True):
            np.testing.assert_array_equal(p.detach(), q.detach())
    assert "x.h5 holds /x, /y; name the array" in run("train", "--data", tmp_path / "x.h5").err
    assert "no effect" in run("train", "--data", "digits", "--labels", "y").err
    # Other tables of the kind have the labels where the run's has them.
    (tmp_path / "u").mkdir()
    other = pd.DataFrame(x[::-1], columns=names).assign(label=y)
    other.rename(columns={"label": "y"}).to_parquet(tmp_path / "u" / "0.parquet")
    assert run("evaluate", "3", tmp_path / "u", "--time-budget", 2).code == 0
    other.to_parquet(tmp_path / "u" / "0.parquet")
    assert "has no column 'y'" in run("evaluate", "3", tmp_path / "u").err
    found = run("evaluate", "3", tmp_path / "u", "--labels", "label", "--time-budget", 2)
    assert found.code == 0, found.err
    assert "drop --labels" in run("evaluate", "3", "--labels", "label").err
    assert "no effect" in run("evaluate", "3", "digits", "--labels", "label").err


def test_grey_values_that_become_0_and_1_are_told_of(run, data, shards, tmp_path):
    words = "has values other than 0 and 1: those above 0.5 became 1, others 0; --binarize none"
    for name in (data, shards):
        assert words not in run(*TRAIN, "--data", name).err
    grey = np.random.default_rng(0).random((60, 6)).astype(np.float32)
    (tmp_path / "grey").mkdir()
    np.save(tmp_path / "grey" / "0.npy", grey)
    np.save(tmp_path / "grey.npy", grey)
    for k, name in enumerate((tmp_path / "grey.npy", tmp_path / "grey")):
        assert f"grey {words}" in run(*TRAIN, "--data", name, "--out", k).err
        assert words not in run("train", "--resume", k, "--epochs", 3).err
        assert words not in run(*TRAIN, "--data", name, "--binarize", "none").err


def test_a_run_finds_a_new_folder_without_a_name(run, data):
    result = run(*TRAIN, "--data", data)
    folder = Path(result.out.splitlines()[0].removeprefix("run: "))
    assert folder.parts[0] == "runs"
    assert folder.name.startswith("train-patterns-")
    assert (folder / "report.html").exists()


def test_no_epochs_still_give_a_model_and_a_report(run, data):
    assert run("train", "--epochs", 0, "--hidden", 4, "--data", data, "--out", "run").code == 0
    assert run("evaluate", "run", *QUICK).code == 0
    assert Path("run/report.html").exists()
    # Nothing was trained, so that there are no chains to judge.
    assert RunDirectory("run").certificate() is None


@pytest.mark.parametrize("method", ["cd", "pcd", "ptt", "emf"])
def test_a_run_is_resumed_and_extended_to_the_same_bits(run, data, method):
    common = ("--data", data, "--method", method, "--momentum", 0.5)
    assert run(*TRAIN, *common, "--out", "whole").code == 0
    assert run("train", "--resume", "whole", "--epochs", 5).code == 0
    options = ("train", "--hidden", 4, "--epochs", 5, "--batch-size", 10)
    assert run(*options, *common, "--out", "once").code == 0
    assert_same_model(Path("whole"), Path("once"))
    assert len(Path("whole/metrics.jsonl").read_text().splitlines()) == 5
    # Nothing is left to do: nothing is trained, the report is written again.
    Path("whole/report.html").unlink()
    before = Path("whole/model.safetensors").stat().st_mtime_ns
    result = run("train", "--resume", "whole")
    assert result.code == 0
    assert Path("whole/model.safetensors").stat().st_mtime_ns == before
    assert Path("whole/report.html").exists()


def test_a_run_is_resumed_from_another_folder(run, data, monkeypatch, tmp_path):
    Path("here.npz").write_bytes(data.read_bytes())
    assert run(*TRAIN, "--data", "here.npz", "--out", "run").code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run("train", "--resume", tmp_path / "cwd" / "run", "--epochs", 3).code == 0


def test_paths_from_home_and_names_in_capitals_can_be_resumed(run, data, monkeypatch, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mine.npz").write_bytes(data.read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for i, name in enumerate(("~/mine.npz", "Digits")):
        assert run(*TRAIN, "--data", name, "--out", f"run{i}").code == 0
        assert run("train", "--resume", f"run{i}", "--epochs", 3).code == 0


def test_options_that_a_resumed_run_would_ignore_are_refused(run, data):
    assert run(*TRAIN, "--data", data, "--out", "run").code == 0
    before = Path("run/run.json").read_bytes()
    for option in (["--learning-rate", "0.5"], ["--data", data], ["--no-centered"], ["--seed", 0]):
        result = run("train", "--resume", "run", *option)
        result.assert_one_line("a run keeps its options", str(option[0]).replace("--no-", "--"))
    assert Path("run/run.json").read_bytes() == before


def test_a_run_is_not_shortened(run, data):
    assert run(*TRAIN, "--data", data, "--out", "run").code == 0
    run("train", "--resume", "run", "--epochs", 1).assert_one_line("has 2 epochs already")
    assert RunDirectory("run").config().options.n_epochs == 2


def test_changed_data_are_refused(run, data, patterns):
    Path("mine.npz").write_bytes(data.read_bytes())
    assert run(*TRAIN, "--data", "mine.npz", "--out", "run").code == 0
    before = Path("run/run.json").read_bytes()
    np.savez("mine.npz", x_train=patterns(80, 9)[0])
    message = "is not what the run started with"
    run("train", "--resume", "run", "--epochs", 9).assert_one_line("mine.npz", message)
    assert Path("run/run.json").read_bytes() == before, "a refused resume changes nothing"
    run("evaluate", "run").assert_one_line("mine.npz", message)
    Path("mine.npz").unlink()
    run("train", "--resume", "run").assert_one_line("no file", "mine.npz")


def test_another_number_of_threads_is_warned_of(run, data):
    assert run(*TRAIN, "--data", data, "--out", "run").code == 0
    text = Path("run/run.json").read_text()
    Path("run/run.json").write_text(text.replace('"threads": "1"', '"threads": "64"'))
    result = run("train", "--resume", "run", "--epochs", 3)
    assert result.code == 0
    assert "freenergy: warning: the run was started with 64 threads" in result.err.splitlines()[0]


def test_divergence_has_a_code_of_its_own_and_keeps_the_run(run, data):
    assert run(*TRAIN, "--data", data, "--out", "run", "--learning-rate", 1e30).code == 1
    result = run("train", "--resume", "run")
    result.assert_one_line("diverged in epoch 1", "learning_rate (now 1e+30)", code=1)


def test_ctrl_c_names_the_command_to_go_on_with(run, data, monkeypatch):
    update, calls = Trainer.update, []

    def interrupt(self, batch):
        calls.append(batch)
        if len(calls) == 12:
            raise KeyboardInterrupt
        update(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", interrupt)
        result = run(*TRAIN, "--data", data, "--out", "a run")
    assert result.code == 130
    message = (
        "interrupted: stopped after epoch 1 of 2; go on with: freenergy train --resume 'a run'"
    )
    assert result.err.splitlines()[-1] == f"freenergy: {message}"
    assert run(*shlex.split(message.partition("freenergy ")[2])).code == 0
    assert run(*TRAIN, "--data", data, "--out", "other").code == 0
    assert_same_model(Path("a run"), Path("other"))


def test_ctrl_c_anywhere_ends_in_one_line(run, trained, monkeypatch):
    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.evaluate, "assess", interrupt)
    run("evaluate", trained).assert_one_line("interrupted", code=130)


# ---- what is refused -----------------------------------------------------------------------------

REFUSED = {
    "train --method foo": "method must be one of 'cd', 'pcd', 'emf', 'ptt', got 'foo'",
    "train --batch-size 0": "batch_size must be a whole number of at least 1, got 0",
    "train --batch-size ten": "'--batch-size'",
    "train --weight-constraint l2": "weight_constraint='l2' needs max_norm",
    "train --weight-constraint l3 --max-norm 1": "weight_constraint must be one of",
    "train --max-norm 1": "max_norm has no effect without weight_constraint",
    "train --hidden 0": "n_hidden must be a whole number of at least 1, got 0",
    "train --epochs -1": "n_epochs must be a whole number of at least 0, got -1",
    "train --seed -1": "seed must be a whole number of at least 0, got -1",
    "train --chains 0": "n_chains must be",
    "train --steps 0": "n_steps must be",
    "train --order 4": "mean_field_order must be one of 1, 2, 3, got 4",
    "train --beta 0": "beta must be positive",
    "train --learning-rate nan": "learning_rate must be a finite number",
    "train --unit potts": "unknown unit type 'potts'",
    "train --device tpu": "--device takes cpu, cuda or auto, got 'tpu'",
    "train --binarize half": "--binarize takes a number or 'none', got 'half'",
    "train --binarize nan": "not a threshold",
    "train --data nowhere.npz": "no file nowhere.npz",
    "train --data mnits": "did you mean 'mnist'?",
    "train --data damaged.npz": "cannot read",
    "train --data grey.npz --binarize none": "has the value 7 in column 1, row 0, outside [0, 1]",
    "train --data few.npz": "has 3 rows; at least 10 are needed",
    "train --unknown 1": "No such option: --unknown",
    "train extra": "extra",
    "train --resume nowhere": "nowhere holds no run (there is no run.json in it)",
    "train --resume .": "holds no run",
    "evaluate nowhere": "no checkpoint at nowhere",
    "evaluate .": "no checkpoint at model.safetensors",
    "evaluate damaged.npz": "damaged.npz is damaged",
    "evaluate": "Missing argument",
    "sample nowhere": "no checkpoint at nowhere",
    "sample nowhere --out samples.csv": "--out must end in .npy, got samples.csv",
    "report nowhere": "nowhere holds no run",
    "study --hidden 0": "--hidden must be at least 1, got 0",
    "study --epochs 0": "--epochs must be at least 1, got 0",
    "study --seeds 0": "--seeds must be at least 1, got 0",
    "study --only depth --hidden 8": "the study of depth has its own nets: drop --hidden",
    "study --only depth --seeds 2": "the study of depth has its own nets: drop --seeds",
    "study --data nowhere.npz": "no file nowhere.npz",
    "study --data few.npz": "has 3 rows",
    "study --data grey.npz --binarize none": "outside [0, 1]",
    "foo": "No such command 'foo'",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_a_mistake_is_one_line_and_leaves_nothing(run, arguments):
    Path("damaged.npz").write_bytes(b"PK\x03\x04 not an archive")
    np.savez("grey.npz", x_train=np.full((20, 3), 7.0).cumsum(0).clip(0, 7) * [0, 1, 0])
    np.savez("few.npz", x_train=np.zeros((3, 4)))
    before = sorted(Path().rglob("*"))
    run(*arguments.split()).assert_one_line(REFUSED[arguments])
    assert sorted(Path().rglob("*")) == before


def test_a_folder_that_holds_a_run_is_not_used_again(run, data, trained):
    before = (trained / "run.json").read_bytes()
    result = run(*TRAIN, "--data", data, "--out", trained)
    result.assert_one_line("already holds a run", f"--resume {trained}", "--out")
    assert (trained / "run.json").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_named(run, data):
    Path("file").write_text("")
    run(*TRAIN, "--data", data, "--out", "file/run").assert_one_line("file/run")


@pytest.mark.parametrize("command", ["train --resume", "evaluate", "sample", "report"])
@pytest.mark.parametrize("file", ["model.safetensors", "run.json"])
def test_damage_to_a_run_is_named(run, data, command, file):
    assert run(*TRAIN, "--data", data, "--out", "run").code == 0
    path = Path("run") / file
    path.write_bytes(path.read_bytes()[:-30])
    run(*command.split(), "run").assert_one_line(file, "is damaged")


def test_a_run_before_its_first_epoch_has_the_model_it_starts_from(run, data, monkeypatch):
    def interrupt(self, batch):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", interrupt)
        assert run(*TRAIN, "--data", data, "--out", "run").code == 130
    for command in (("evaluate", *QUICK), ("sample",), ("report",)):
        assert run(command[0], "run", *command[1:]).code == 0
    assert run("train", "--resume", "run").code == 0


def test_a_checkpoint_without_its_configuration_is_not_taken_over(run, data):
    assert run(*TRAIN, "--data", data, "--out", "run").code == 0
    Path("run/run.json").unlink()
    run(*TRAIN, "--data", data, "--out", "run").assert_one_line("already holds a run")


def test_a_run_in_double_precision_goes_on(run, data):
    options = ("--dtype", "float64", "--method", "emf", "--epochs", "1", "--hidden", "3")
    assert run("train", *options, "--data", data, "--out", "run").code == 0
    assert run("train", "--resume", "run", "--epochs", "2").code == 0


def test_a_model_too_large_for_memory_leaves_no_folder(run, data):
    result = run("train", "--hidden", "100000000000000", "--data", data, "--out", "run")
    result.assert_one_line("does not fit into memory")
    assert not Path("run").exists()


def test_a_given_file_is_measured_whole(run, trained, tmp_path):
    rows = np.random.default_rng(0).integers(0, 2, (7, 6)).astype(np.float32)
    np.save(tmp_path / "seven.npy", rows)
    before = sorted(trained.iterdir())
    result = run("evaluate", trained, tmp_path / "seven.npy", "--json", *QUICK)
    found = json.loads(result.out)
    assert (found["rows"], found["rows_train"]) == (7, 80)
    assert sorted(trained.iterdir()) == before, "only the run's own rows belong to its report"
    run("evaluate", trained, "--binarize", "0.3").assert_one_line("drop --binarize")


# ---- evaluate ------------------------------------------------------------------------------------


def estimates_of(values: dict) -> dict[str, dict]:
    return {estimate["name"]: estimate for estimate in values["estimates"]}


def by_hand(path: Path, rows: np.ndarray, beta: float) -> tuple[float, float]:
    """ln Z by enumeration, and the mean of -beta F - ln Z, in double precision."""
    model = load_model(path).double()
    log_z = exact(model, beta).log_partition
    free_energy = model.free_energy(torch.from_numpy(rows).double(), beta).mean().detach()
    return log_z, -beta * float(free_energy) - log_z


@pytest.fixture(scope="module")
def assessed(data, tmp_path_factory, call) -> Path:
    """A run at beta 2 with its assessment, that a test may read, but must not change."""
    path = tmp_path_factory.mktemp("assessed") / "run"
    assert call(*TRAIN, "--data", data, "--out", path, "--beta", 2.0) == 0
    assert call("evaluate", path, *QUICK) == 0
    return path


def test_evaluate_measures_the_held_out_rows_of_the_run(run, data, patterns):
    assert run(*TRAIN, "--data", data, "--out", "run", "--beta", 2.0).code == 0
    result = run("evaluate", "run", "--json", *QUICK)
    assert result.code == 0
    (line,) = result.err.splitlines()
    assert line.startswith("assessing: 6/6 parts")
    values = json.loads(result.out)
    assert (values["beta"], values["rows"], values["rows_train"]) == (2.0, 40, 80)
    model = load_model("run")
    rows, train = (torch.from_numpy(patterns(*x)[0]) for x in ((40, 2), (80, 1)))
    numbers = {"weight_norm": float(model.weight.detach().norm())}
    for suffix, part in (("", rows), ("_train", train)):
        numbers[f"free_energy{suffix}"] = float(model.free_energy(part, 2.0).mean().detach())
        score = pseudo_log_likelihood(model, part, 2.0)
        numbers[f"pseudo_likelihood{suffix}"] = float(score.mean().detach())
    assert values["numbers"] == pytest.approx(numbers, rel=1e-5)
    statistics, curves = exact(model, 2.0), values["curves"]
    at = curves["beta"].index(2.0)
    for name in ("free_energy", "energy", "entropy", "heat_capacity"):
        assert curves[name][at] == pytest.approx(getattr(statistics, name), rel=1e-4), name
    # The same is kept beside the run.
    assert Assessment.from_json(result.out) == Assessment.from_json(
        Path("run/assessment.json").read_text()
    )
    assert Path("run/assessment.json").read_text() == result.out


def test_every_estimate_that_is_trusted_holds_the_exact_likelihood(assessed, patterns):
    values = json.loads((assessed / "assessment.json").read_text())
    found = estimates_of(values)
    methods = {"exact", "tap1", "tap2", "tap3", "tempering", "ais", "reverse_ais", "bar"}
    assert found.keys() == methods
    log_z, score = by_hand(assessed, patterns(40, 2)[0], 2.0)
    train = by_hand(assessed, patterns(80, 1)[0], 2.0)[1]
    best = found["exact"]
    assert best["trusted"] is True
    assert best["reasons"] == []
    for name in ("log_partition", "lower", "upper"):
        assert best[name] == pytest.approx(log_z, rel=1e-6)
    for name in ("log_likelihood", "log_likelihood_lower", "log_likelihood_upper"):
        assert best[name] == pytest.approx(score, rel=1e-5)
    assert best["log_likelihood_train"] == pytest.approx(train, rel=1e-5)
    for name, estimate in found.items():
        assert isinstance(estimate["trusted"], bool)
        assert estimate["trusted"] == (estimate["reasons"] == []), name
        assert estimate["log_partition"] == pytest.approx(log_z, abs=0.02)
        assert estimate["log_likelihood"] == pytest.approx(score, abs=0.02)
        if name in ("tap1", "tap2"):
            assert not estimate["trusted"], "a lower order has no interval"
            assert estimate["lower"] is None
            continue
        # The intervals turn around: a large ln Z is a small likelihood. What is left is single
        # precision.
        lower, upper = (estimate[f"log_likelihood_{end}"] for end in ("lower", "upper"))
        assert lower <= estimate["log_likelihood"] <= upper
        assert upper - lower == pytest.approx(estimate["upper"] - estimate["lower"], abs=1e-6)
        widths = 2.0 * (estimate["upper"] - estimate["lower"]) + 1e-4
        assert abs(estimate["log_partition"] - log_z) < widths, name
    for name in ("tap3", "tempering", "bar"):
        assert found[name]["trusted"], name
    mean = np.mean(values["works"]["up"] + values["works"]["down"])
    assert mean == pytest.approx(log_z, abs=0.02)


def test_evaluate_at_another_temperature_is_not_of_the_run(run, data, patterns):
    assert run(*TRAIN, "--data", data, "--out", "run", "--beta", 2.0).code == 0
    values = json.loads(run("evaluate", "run", "--json", "--beta", 1, *QUICK).out)
    log_z, score = by_hand(Path("run"), patterns(40, 2)[0], 1.0)
    best = estimates_of(values)["exact"]
    assert values["beta"] == 1.0
    assert best["log_partition"] == pytest.approx(log_z, rel=1e-6)
    assert best["log_likelihood"] == pytest.approx(score, rel=1e-5)
    assert abs(score - by_hand(Path("run"), patterns(40, 2)[0], 2.0)[1]) > 1e-3
    assert not Path("run/assessment.json").exists()


def test_evaluate_prints_tables_and_a_verdict(run, assessed):
    result = run("evaluate", assessed, *QUICK)
    assert result.code == 0
    found = Assessment.from_json((assessed / "assessment.json").read_text())
    words = " ".join(result.out.split())
    best, naive = found.estimate("exact"), found.estimate("tap1")
    value = f"{best.log_likelihood:.3f}"
    assert f"│ exact │ {best.log_partition:.3f} │ {value} │ {value} … {value} │ yes │" in words
    start = f"│ TAP 1 (naive) │ {naive.log_partition:.3f} │ {naive.log_likelihood:.3f} │ – │ no │"
    assert start in words
    assert "effective temperature, pseudo likelihood" in words
    assert f"The held-out log-likelihood is {best.log_likelihood:.2f} nats for a row" in words
    assert "Gibbs chains of the model are in equilibrium." in words


def test_the_same_seed_evaluates_to_the_same_numbers(run, assessed):
    options = ("evaluate", assessed, "--json", *QUICK)
    first, again, other = (json.loads(run(*options, "--seed", seed).out) for seed in (1, 1, 2))
    for values in (first, again, other):
        assert values.pop("seconds") > 0
        for estimate in values["estimates"]:
            assert estimate.pop("seconds") > 0
    assert first == again
    assert first["works"] != other["works"]
    assert estimates_of(first)["exact"] == estimates_of(other)["exact"]


def test_the_report_shows_the_assessment(run, data):
    assert run(*TRAIN, "--data", data, "--out", "run").code == 0
    question = "How good is it really?"
    assert question not in Path("run/report.html").read_text()
    assert run("evaluate", "run", *QUICK).code == 0
    assert run("report", "run").code == 0
    page = Path("run/report.html").read_text().replace("−", "-")
    assert question in page
    assert "Equilibrium, temperature and entropy" in page
    best = Assessment.from_json(Path("run/assessment.json").read_text()).best
    assert f"The held-out log-likelihood is {best.log_likelihood:.2f} nats for a row" in page


def test_training_on_makes_the_assessment_old(run, assessed, tmp_path):
    """What was measured of an earlier model must not be shown as the numbers of this one."""
    copied = Path(shutil.copytree(assessed, tmp_path / "copied"))
    assert run("train", "--resume", copied, "--epochs", 3).code == 0
    assert "How good is it really?" not in (copied / "report.html").read_text()


def test_nothing_to_train_keeps_the_assessment(run, assessed, tmp_path):
    copied = Path(shutil.copytree(assessed, tmp_path / "copied"))
    before = (copied / "assessment.json").read_bytes()
    assert run("train", "--resume", copied).code == 0
    assert "How good is it really?" in (copied / "report.html").read_text()
    assert (copied / "assessment.json").read_bytes() == before


def test_other_data_can_be_measured_where_the_run_s_own_are_gone(run, data):
    Path("mine.npz").write_bytes(data.read_bytes())
    assert run(*TRAIN, "--data", "mine.npz", "--out", "run").code == 0
    Path("mine.npz").unlink()
    assert run("evaluate", "run", data, *QUICK).code == 0


@pytest.mark.parametrize("damage", ["truncated", "[]", "null", "{}", '{"estimates": [{}]}'])
def test_a_damaged_assessment_is_named(run, assessed, damage, tmp_path):
    copied = Path(shutil.copytree(assessed, tmp_path / "copied"))
    path = copied / "assessment.json"
    path.write_text(path.read_text()[:-30] if damage == "truncated" else damage)
    message = "delete it and evaluate again"
    run("report", copied).assert_one_line(str(path), "is damaged", message)
    result = run("train", "--resume", copied)
    assert result.code == 2
    assert f"freenergy: {path} is damaged" in result.err.splitlines()[-1]
    # What it advises helps.
    path.unlink()
    assert run("report", copied).code == 0


def test_the_certificate_of_a_run_is_stored_and_shown(run, data):
    result = run(*TRAIN, "--data", data, "--out", "run", "--beta", 2.0)
    certificate = RunDirectory("run").certificate()
    assert Certificate.from_dict(certificate).label == "equilibrium"
    assert (certificate["beta"], certificate["n_steps_per_update"]) == (2.0, 1)
    assert "Gibbs chains are in equilibrium." in result.err
    page = Path("run/report.html").read_text()
    assert "Were the chains in equilibrium?" in page
    assert "Gibbs chains are in equilibrium." in page
    # Nothing to do keeps it; one more epoch makes another.
    assert "Gibbs chains are in equilibrium" in run("train", "--resume", "run").err
    assert RunDirectory("run").certificate() == certificate
    assert run("train", "--resume", "run", "--epochs", 3).code == 0
    assert RunDirectory("run").certificate() not in (None, certificate)


def test_chains_that_start_anew_must_forget_their_start(run, data):
    """CD-1 where the chains need more than a step is out of equilibrium, however well they mix."""
    options = ("--data", data, "--hidden", 8, "--epochs", 30, "--learning-rate", 0.2)
    labels = {}
    for method in ("cd", "pcd"):
        assert run("train", *options, "--method", method, "--out", method).code == 0
        certificate = RunDirectory(Path(method)).certificate()
        labels[method] = certificate["label"], certificate["autocorrelation_time"]
    assert labels["cd"][1] > 1
    assert labels["cd"][0] == "out of equilibrium"
    assert labels["pcd"][0] == "equilibrium"


def test_chains_out_of_equilibrium_are_told(run):
    """Two opposite patterns, learned too fast: no chain goes from one to the other."""
    rng = np.random.default_rng(0)
    pattern = rng.random(30) < 0.5
    rows = pattern ^ (rng.random((100, 1)) < 0.5) ^ (rng.random((100, 30)) < 0.02)
    np.savez("two.npz", x_train=rows.astype(np.float32))
    options = ("--learning-rate", 0.5, "--epochs", 10, "--hidden", 6, "--batch-size", 10)
    result = run("train", *options, "--data", "two.npz", "--out", "run")
    certificate = RunDirectory("run").certificate()
    assert certificate["label"] != "equilibrium"
    assert certificate["reasons"]
    words = f"Gibbs chains are {certificate['label']}."
    assert words in result.err
    assert words[1:] in Path("run/report.html").read_text()


def test_evaluate_takes_other_data_and_a_model_file(run, assessed, data):
    file = assessed / "model.safetensors"
    run("evaluate", file).assert_one_line("a checkpoint file does not name its data: give DATA")
    own = json.loads((assessed / "assessment.json").read_text())
    same = json.loads(run("evaluate", file, data, "--json", "--beta", 2, *QUICK).out)
    # A file has neither training rows nor chains; what is left is the model and the rows.
    for name in ("weight_norm", "free_energy", "pseudo_likelihood"):
        assert same["numbers"][name] == own["numbers"][name]
    best, other = (estimates_of(values)["exact"] for values in (same, own))
    for name in ("log_partition", "log_likelihood", "trusted"):
        assert best[name] == other[name]
    assert (same["rows"], same["rows_train"]) == (40, 40)
    assert json.loads(run("evaluate", file, data, "--json", *QUICK).out)["beta"] == 2.0
    message = "digits has 64 columns, but the model has 6 visible units"
    run("evaluate", assessed, "digits").assert_one_line(message)


@pytest.mark.parametrize("option", ["beta", "time-budget", "width"])
@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_impossible_measurements_are_refused(run, trained, option, value):
    before = sorted(trained.iterdir())
    result = run("evaluate", trained, f"--{option}", value)
    assert (result.code, result.out) == (2, "")
    assert result.err.splitlines()[-1].startswith("freenergy: ")
    assert option.replace("-", "_") in result.err.splitlines()[-1]
    assert sorted(trained.iterdir()) == before


def test_a_model_too_large_to_enumerate_gets_an_interval_or_no_trust(run):
    options = ("--hidden", 30, "--epochs", 1, "--batch-size", 200)
    assert run("train", *options, "--out", "run").code == 0
    values = json.loads(run("evaluate", "run", "--json", "--time-budget", 0.5).out)
    found = estimates_of(values)
    assert "exact" not in found
    assert values["numbers"]["pseudo_likelihood"] < 0
    assert found["tap3"]["log_likelihood"] < 0
    for name, estimate in found.items():
        assert estimate["trusted"] == (not estimate["reasons"]), name
        if estimate["trusted"]:
            assert 0 < estimate["upper"] - estimate["lower"] <= 1.0
    assert "log_likelihood" not in Path("run/metrics.jsonl").read_text()


def test_a_run_of_ptt_is_measured_along_its_training(run, data, patterns):
    assert run(*TRAIN, "--method", "ptt", "--data", data, "--out", "run").code == 0
    record = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    values = json.loads(run("evaluate", "run", "--json", *QUICK).out)
    log_z, score = by_hand(Path("run"), patterns(40, 2)[0], 1.0)
    assert record["log_partition"] == pytest.approx(log_z, abs=0.1)
    estimate = estimates_of(values)["ptt"]
    assert estimate["trusted"] is True
    assert estimate["log_partition"] == pytest.approx(log_z, abs=0.02)
    assert estimate["log_likelihood"] == pytest.approx(score, abs=0.02)
    # Its models are at the temperature of the training.
    hot = json.loads(run("evaluate", "run", "--json", "--beta", 0.5, *QUICK).out)
    assert "ptt" not in estimates_of(hot)


# ---- spins, samples, reports ---------------------------------------------------------------------


def test_spins_are_trained_measured_and_sampled(run, data, patterns):
    options = ("--unit", "spin", "--data", data, "--out", "run", "--learning-rate", 0.02)
    assert run(*TRAIN, *options).code == 0
    model = load_model("run")
    assert (model.visible.name, model.hidden.name) == ("spin", "spin")
    found = estimates_of(json.loads(run("evaluate", "run", "--json", *QUICK).out))
    log_z, score = by_hand(Path("run"), 2 * patterns(40, 2)[0] - 1, 1.0)
    assert found["exact"]["log_partition"] == pytest.approx(log_z, rel=1e-6)
    assert found["exact"]["log_likelihood"] == pytest.approx(score, rel=1e-5)
    assert -6 * np.log(2) < score < 0
    for name in ("tap3", "tempering", "bar"):
        assert found[name]["trusted"], name
        assert found[name]["log_partition"] == pytest.approx(log_z, abs=0.02), name
    assert run("sample", "run", "--n", 50, "--steps", 3).code == 0
    assert set(np.unique(np.load("samples.npy"))) == {-1.0, 1.0}
    assert run("report", "run").code == 0


def test_samples_are_seeded_and_at_the_temperature_of_the_run(run, trained):
    result = run("sample", trained, "--n", 4000, "--steps", 20, "--out", "a/b.npy", "--seed", 3)
    assert (result.code, result.err) == (0, "")
    assert result.out == "samples: a/b.npy (4000 rows of 6)\n"
    samples = np.load("a/b.npy")
    assert samples.shape == (4000, 6)
    model = load_model(trained)
    for beta in (2.0, 0.1):
        visible = exact(model, beta).visible.numpy()
        near = np.abs(samples.mean(0) - visible).max() < 4.5 * 0.5 / 4000**0.5
        assert near == (beta == 2.0)
    run("sample", trained, "--n", 4000, "--steps", 20, "--out", "again.npy", "--seed", 3)
    np.testing.assert_array_equal(np.load("again.npy"), samples)
    run("sample", trained, "--n", 4000, "--steps", 20, "--out", "other.npy", "--seed", 4)
    assert (np.load("other.npy") != samples).any()
    run("sample", trained, "--n", 4000, "--steps", 20, "--out", "hot.npy", "--beta", 0.1)
    hot = exact(model, 0.1).visible.numpy()
    assert np.abs(np.load("hot.npy").mean(0) - hot).max() < 4.5 * 0.5 / 4000**0.5


def test_impossible_samples_are_refused(run, trained):
    run("sample", trained, "--n", 0).assert_one_line("at least one chain")
    run("sample", trained, "--steps", -1).assert_one_line("n_steps must not be negative")
    assert not Path("samples.npy").exists()


def test_report_writes_the_page_again(run, data):
    assert run(*TRAIN, "--data", data, "--out", "run").code == 0
    page = Path("run/report.html").read_bytes()
    Path("run/report.html").unlink()
    assert run("report", "run") == (0, "report: run/report.html\n", "")
    assert len(Path("run/report.html").read_bytes()) == pytest.approx(len(page), rel=0.01)


# ---- study ---------------------------------------------------------------------------------------


@pytest.fixture
def no_training(monkeypatch) -> None:
    def fail(self, batch):
        pytest.fail("trained again")

    monkeypatch.setattr(Trainer, "update", fail)


def test_a_study_trains_every_method_and_prints_its_report(studied, run, data, no_training):
    runs = sorted(path.name for path in studied.iterdir() if path.is_dir())
    methods = ("cd", "emf-naive", "emf-tap2", "emf-tap3", "pcd", "ptt")
    learned = sorted(f"{name}-seed{seed}" for name in methods for seed in (0, 1))
    assert runs == sorted([*learned, "conjecture", "depth"])
    assert (studied / "report.html").exists()
    assert (studied / "landscape.json").exists()
    accuracy = json.loads((studied / "accuracy.json").read_text())
    names = {"pixels", "CD", "PCD", "PTT", "EMF (naive)", "EMF (TAP2)", "EMF (TAP3)"}
    assert set(accuracy) == names
    assert accuracy["pixels"] > 0.7
    found = sorted(path.parent.name for path in studied.glob("*/assessment.json"))
    assert found == ["emf-tap2-seed0", "pcd-seed0", "ptt-seed0"]
    # The same command again reads what is there.
    (studied / "report.html").unlink()
    result = run(*STUDY, "--data", data, "--out", studied)
    assert (result.code, result.err) == (0, "")
    verdict, conjecture, path = result.out.splitlines()
    assert conjecture.startswith("The conjecture that backprop lowers the free energy: ")
    assert path == f"report: {studied / 'report.html'}"
    assert "the exact log-likelihood of held-out rows is" in verdict
    assert "after learning with EMF (TAP2)" in verdict
    page = (studied / "report.html").read_text()
    assert verdict.split(".")[0] in page
    assert "Does backpropagation lower the free energy?" in page
    assert "The landscape, rough and smoothed: PCD" in page
    for name in ("PCD", "PTT", "EMF (TAP2)"):
        assert f"How good is it really?: {name}" in page


def test_the_report_of_a_study_is_written_again(studied, run, no_training):
    (studied / "report.html").unlink(missing_ok=True)
    assert run("report", studied) == (0, f"report: {studied / 'report.html'}\n", "")
    assert (studied / "report.html").exists()


@pytest.mark.parametrize(
    "changes", [("--hidden", 5), ("--epochs", 3), ("--seeds", 3), ("--binarize", 0.3)]
)
def test_a_study_is_only_continued_for_the_same(studied, run, data, no_training, changes):
    result = run(*STUDY, "--data", data, "--out", studied, *changes)
    result.assert_one_line("holds a study of other data or settings", "--out")


def test_an_unfinished_study_goes_on_where_it_stopped(run, data, studied, monkeypatch):
    update, calls = Trainer.update, []

    def interrupt(self, batch):
        calls.append(batch)
        if len(calls) == 30:
            raise KeyboardInterrupt
        update(self, batch)

    arguments = (*STUDY, "--data", data, "--out", "my study")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", interrupt)
        result = run(*arguments)
    assert result.code == 130
    last = result.err.splitlines()[-1]
    assert last == "freenergy: interrupted: go on with the same command and --out 'my study'"
    done = models_of("my study")
    assert len(done) > 2
    # What is finished is shown, and the rest is named.
    assert run("report", "my study").out == "report: my study/report.html\n"
    page = Path("my study/report.html").read_text()
    assert "Not finished" in page
    assert "PCD with seed 1" in page
    assert run(*arguments).code == 0
    assert "Not finished" not in Path("my study/report.html").read_text()
    finished = models_of("my study")
    # But for the last, which was in training.
    assert sum(finished[path] == time for path, time in done.items()) >= len(done) - 1
    for path in sorted(studied.glob("*-seed*")):
        assert_same_model(Path("my study") / path.name, path)


def models_of(study: str) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in Path(study).glob("*-seed*/model.safetensors")}


def test_a_report_of_a_study_with_nothing_done_says_how_to_go_on(studied, run, tmp_path):
    (tmp_path / "study").mkdir()
    shutil.copy(studied / "study.json", tmp_path / "study")
    run("report", tmp_path / "study").assert_one_line("has nothing to show yet; run it again")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
def test_ctrl_c_stops_all_processes_of_a_study(data, tmp_path):
    """In a process group of its own, where SIGINT reaches the workers too, as from a terminal."""
    command = [
        sys.executable,
        "-m",
        "freenergy",
        *STUDY[:-1],
        "2",
        "--data",
        data,
        "--out",
        "study",
    ]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*map(str, command), "--epochs", "100000"],
            stderr=file,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
    try:
        wait_until(lambda: len(list(tmp_path.glob("study/*-seed*/metrics.jsonl"))) == 2, process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
        wait_until(lambda: not group_is_alive(process.pid))
    finally:
        process.kill()
    assert log.read_text().splitlines()[-1] == (
        "freenergy: interrupted: go on with the same command and --out study"
    )
    assert "Traceback" not in log.read_text()


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    end = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < end
        assert process is None or process.poll() is None
        time.sleep(0.05)


def group_is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("jobs", [0, -1])
def test_a_study_needs_a_process(run, jobs):
    run(*STUDY[:-1], jobs).assert_one_line(f"--jobs must be at least 1, got {jobs}")

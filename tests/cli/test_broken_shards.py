"""Shards that break while ``freenergy train`` reads them: one line names them, no epoch is lost."""

from __future__ import annotations

import numpy as np
import pytest

from freenergy.training.trainer import Trainer

CLASSES = np.arange(240) % 3
PATTERNS = np.random.default_rng(0).random((3, 8)) < 0.5
ROWS = (PATTERNS[CLASSES] ^ (np.random.default_rng(1).random((240, 8)) < 0.1)).astype(np.float32)

MODELS = {
    "rbm": ("--hidden", 4, "--epochs", 4),
    "vae": ("--set", "n_components=3", "--set", "n_iter=4"),
    "rbm-classifier": ("--set", "n_components=4", "--set", "n_iter=4"),
    "unrolled-classifier": (
        *("--set", "rbm__n_components=4", "--set", "rbm__n_iter=1", "--set", "n_iter=4"),
        *("--set", "depth=1"),
    ),
    "mlp-classifier": ("--set", "hidden_layer_sizes=4", "--set", "max_iter=4"),
    "mlp-regressor": ("--set", "hidden_layer_sizes=4", "--set", "max_iter=4"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three shards, and their labels, in the folder that the commands run in."""
    monkeypatch.chdir(tmp_path)
    for name, whole in (("x", ROWS), ("y", CLASSES)):
        (tmp_path / name).mkdir()
        for k, part in enumerate(np.array_split(whole, 3)):
            np.save(tmp_path / name / f"{k}.npy", part)
    return tmp_path / "x"


@pytest.fixture
def last(call, capsys):
    """``last("train", ...)``: exit code, and the last line of the errors."""

    def start(*arguments):
        code, found = call(*arguments), capsys.readouterr()
        assert "Traceback" not in found.err
        return code, (found.err.splitlines() or [""])[-1]

    return start


def epochs(monkeypatch, before_epoch=None, happens=lambda: None):
    """The epochs that are begun from now on; what happens before one of them."""
    begun, run_epoch = [], Trainer._run_epoch

    def run(self, *arguments):
        begun.append(self.epoch + 1)
        if len(begun) == before_epoch:
            happens()
        return run_epoch(self, *arguments)

    monkeypatch.setattr(Trainer, "_run_epoch", run)
    return begun


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("fault", ["gone", "NaN", "cut"])
def test_a_shard_that_breaks_midway_is_named_and_costs_one_epoch(
    model, fault, folder, last, monkeypatch
):
    shard, whole = folder / "1.npy", (folder / "1.npy").read_bytes()
    rows = np.load(shard)

    def happens():
        if fault == "gone":
            shard.unlink()
        elif fault == "NaN":
            rows[17, 5] = np.nan
            np.save(shard, rows)
        else:
            shard.write_bytes(whole[:-2000])

    words = {
        "gone": "1.npy is not there any more",
        "NaN": "1.npy has NaN in column 5, row 17",
        "cut": "1.npy ends before row",
    }[fault]
    labels = () if model in ("rbm", "vae") else ("--labels", "y")
    command = ("train", "--model", model, "--data", "x", "--out", "run", *labels, *MODELS[model])
    pretraining = 1 if model == "unrolled-classifier" else 0
    with monkeypatch.context() as patch:
        begun = epochs(patch, 3 + pretraining, happens)
        code, line = last(*command)
    assert (code, begun[-1]) == (2, 3), line
    assert line.startswith("freenergy: ")
    assert words in line
    shard.write_bytes(whole)
    begun = epochs(monkeypatch)
    code, line = last("train", "--resume", "run")
    assert (code, begun) == (0, [3, 4]), line


@pytest.mark.parametrize("model", MODELS)
def test_a_shard_of_another_width_stops_before_anything_is_made(model, folder, last):
    np.save(folder / "1.npy", ROWS[:80, :5])
    labels = () if model in ("rbm", "vae") else ("--labels", "y")
    code, line = last("train", "--model", model, "--data", "x", "--out", "run", *labels)
    assert code == 2
    assert "1.npy has rows of shape (5,), but " in line
    assert not (folder.parent / "run").exists()

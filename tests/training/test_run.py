"""The run directory: what makes a run, and what is left of it at any moment."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from freenergy.inference import exact
from freenergy.training import (
    CheckpointError,
    RunConfig,
    RunDirectory,
    RunError,
    TrainingOptions,
    as_rows,
    load_model,
    save_checkpoint,
)


def make_config(n_epochs: int = 3, **changes) -> RunConfig:
    options = {"method": "pcd", "n_epochs": n_epochs, "batch_size": 10, "learning_rate": 0.1}
    options |= {k: changes.pop(k) for k in list(changes) if hasattr(TrainingOptions, k)}
    settings = {"n_visible": 6, "n_hidden": 4, "seed": 1, **changes}
    return RunConfig({"name": "patterns"}, options=TrainingOptions(**options), **settings)


def norm(model) -> dict:
    return {"norm": float(model.weight.detach().norm()), "undefined": math.nan}


def rows_for(data, config=None):
    dtype = getattr(torch, config.dtype) if config else torch.float32
    return as_rows(data(55), torch.empty(0, dtype=dtype))


def train(run: RunDirectory, data, monitors=(norm,), **hooks):
    config = run.config()
    rows = rows_for(data, config)
    trainer = config.build(rows, monitors)
    run.train(trainer, rows, **hooks)
    return trainer


def metrics(run: RunDirectory) -> list[dict]:
    return [json.loads(line) for line in run.metrics_path.read_text().splitlines()]


def without_clock(records: list[dict]) -> list[dict]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


# ---- configuration -------------------------------------------------------------------------------


def test_a_configuration_survives_json():
    config = make_config(
        momentum=0.9, visible="spin", dtype="float64", command="freenergy train --data 'a b'"
    )
    assert RunConfig.from_json(config.to_json()) == config
    assert config.versions["torch"] == torch.__version__
    assert config.versions["threads"] == str(torch.get_num_threads())


def test_numbers_of_numpy_are_written_as_plain_ones():
    config = make_config(
        seed=np.int64(3), n_hidden=np.int32(7), learning_rate=np.float32(0.5), batch_size=np.int8(5)
    )
    again = RunConfig.from_json(config.to_json())
    assert (again.seed, again.n_hidden, again.options.learning_rate) == (3, 7, 0.5)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"n_hidden": 0}, "n_hidden must be a whole number of at least 1"),
        ({"n_visible": 2.0}, "n_visible must be a whole number"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"seed": None}, "seed must be a whole number"),
        ({"visible": "potts"}, "unknown unit type 'potts'"),
        ({"hidden": "potts"}, "unknown unit type 'potts'"),
        ({"dtype": "float16"}, "dtype must be 'float32' or 'float64', got 'float16'"),
    ],
)
def test_an_impossible_configuration_is_refused_by_name(changes, match):
    with pytest.raises(ValueError, match=match):
        make_config(**changes)
    with pytest.raises(ValueError, match="name"):
        dataclasses.replace(make_config(), data={})


@pytest.mark.parametrize("unit", ["bernoulli", "spin"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_configuration_builds_the_same_start_every_time(data, unit, dtype):
    config = make_config(visible=unit, hidden=unit, dtype=dtype, beta=2.0)
    rows = as_rows(data(55, unit=unit), torch.empty(0, dtype=getattr(torch, dtype)))
    first, second = config.build(rows), config.build(rows)
    assert first.model.visible.name == first.model.hidden.name == unit
    assert str(first.model.weight.dtype) == f"torch.{dtype}"
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert bool((a == b).all())
    other = dataclasses.replace(config, seed=2).build(rows)
    assert not bool((other.model.weight == first.model.weight).any())


@pytest.mark.parametrize("method", ["cd", "pcd", "emf"])
def test_methods_of_one_seed_share_weights_and_order(data, method):
    rows = rows_for(data)
    trainer, reference = make_config(method=method).build(rows), make_config().build(rows)
    assert bool((trainer.model.weight == reference.model.weight).all())
    assert trainer.order.state() == reference.order.state()


# ---- the folder ----------------------------------------------------------------------------------


def test_a_folder_holds_one_run(tmp_path):
    run = RunDirectory.create(tmp_path / "a" / "run", make_config())
    assert run.config() == make_config()
    before = run.config_path.read_bytes()
    with pytest.raises(RunError, match=r"already holds a run: .*--resume .*run.*--out"):
        RunDirectory.create(run.path, make_config(n_epochs=9))
    assert run.config_path.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write to .*file"):
        RunDirectory.create(tmp_path / "file" / "run", make_config())


def test_a_folder_without_a_run_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RunError, match=r"holds no run \(there is no run.json in it\)"):
            RunDirectory(path).config()


def damage(text: str) -> dict[str, bytes]:
    values = json.loads(text)

    def changed(**changes) -> bytes:
        return json.dumps({k: v for k, v in {**values, **changes}.items() if v != "drop"}).encode()

    return {
        "empty": b"",
        "torn": text.encode()[: len(text) // 2],
        "list": b"[1, 2]",
        "number": b"3",
        "null": b"null",
        "not text": b"\xff\xfe\x00",
        "no options": changed(options="drop"),
        "no seed": changed(seed="drop"),
        "no name": changed(data={}),
        "list for data": changed(data=[]),
        "null for options": changed(options=None),
        "unknown option": changed(options={**values["options"], "rate": 1}),
        "unknown field": changed(colour="red"),
        "impossible": changed(options={**values["options"], "beta": -1}),
        "text for a number": changed(n_hidden="many"),
    }


@pytest.mark.parametrize("kind", damage(make_config().to_json()))
def test_a_damaged_configuration_is_named(tmp_path, kind):
    run = RunDirectory.create(tmp_path, make_config())
    run.config_path.write_bytes(damage(run.config_path.read_text())[kind])
    with pytest.raises(RunError, match=r"run\.json is damaged \("):
        run.config()


# ---- training in it ------------------------------------------------------------------------------


def test_a_run_leaves_model_metrics_and_history(tmp_path, data):
    run = RunDirectory.create(tmp_path, make_config())
    epochs = []
    trainer = train(run, data, on_epoch=lambda t: epochs.append(t.epoch))
    assert epochs == [1, 2, 3]
    assert repr(run.history()) == repr(trainer.history)
    assert [record["epoch"] for record in metrics(run)] == [1, 2, 3]
    model = load_model(run.path)
    for name, parameter in trainer.model.named_parameters():
        assert bool((getattr(model, name) == parameter).all())
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "metrics.jsonl",
        "model.safetensors",
        "run.json",
    ]


def test_what_is_not_finite_is_null_in_the_metrics(tmp_path, data):
    run = RunDirectory.create(tmp_path, make_config(n_epochs=1))
    train(run, data, (norm, lambda _: {"bound": -math.inf, "sure": True}))
    (record,) = metrics(run)
    assert record["undefined"] is None
    assert record["bound"] is None
    assert record["sure"] is True
    (record,) = run.history()
    assert math.isnan(record["undefined"])
    assert record["bound"] == -math.inf


def test_metrics_follow_the_history_after_a_stop_anywhere(tmp_path, data):
    """The checkpoint is the truth: lines that it does not know go, lines that were lost return."""
    whole = RunDirectory.create(tmp_path / "whole", make_config(n_epochs=5))
    train(whole, data)
    run = RunDirectory.create(tmp_path / "run", make_config(n_epochs=5))

    class Killed(BaseException):
        pass

    def kill(*_args):
        raise Killed

    class BeforeTheLine(RunDirectory):
        """Dies between the checkpoint of the second epoch and its line of metrics."""

        def _append_metrics(self, record):
            if record["epoch"] == 2:
                kill()
            super()._append_metrics(record)

    with pytest.raises(Killed):
        train(BeforeTheLine(run.path), data)
    assert [len(run.history()), len(metrics(run))] == [2, 1]
    with pytest.raises(Killed):
        train(run, data, on_epoch=lambda t: kill() if t.epoch == 4 else None)
    assert [record["epoch"] for record in metrics(run)] == [1, 2, 3, 4]
    # A torn line, and one of an epoch that the checkpoint never saw.
    with run.metrics_path.open("a") as file:
        file.write('{"epoch": 5, "norm": 0.0}\n{"epo')
    train(run, data)
    assert without_clock(metrics(run)) == without_clock(metrics(whole))
    assert repr(without_clock(run.history())) == repr(without_clock(whole.history()))
    run.metrics_path.unlink()
    train(run, data)
    assert without_clock(metrics(run)) == without_clock(metrics(whole))


@pytest.mark.parametrize("method", ["cd", "pcd", "emf"])
def test_a_run_that_is_resumed_and_extended_ends_with_the_same_bits(tmp_path, data, method):
    options = {"method": method, "momentum": 0.9, "dtype": "float64"}
    whole = RunDirectory.create(tmp_path / "whole", make_config(5, **options))
    train(whole, data)
    run = RunDirectory.create(tmp_path / "run", make_config(2, **options))
    train(run, data)
    run.config_path.write_text(make_config(5, **options).to_json())
    epochs = []
    train(run, data, on_epoch=lambda t: epochs.append(t.epoch))
    assert epochs == [3, 4, 5]
    for a, b in zip(
        load_model(run.path).parameters(), load_model(whole.path).parameters(), strict=True
    ):
        assert bool((a == b).all())
    assert without_clock(metrics(run)) == without_clock(metrics(whole))


def test_a_complete_run_is_not_trained_again(tmp_path, data):
    run = RunDirectory.create(tmp_path, make_config())
    train(run, data)
    before = run.checkpoint_path.read_bytes()
    train(run, data, on_epoch=lambda _: pytest.fail("trained again"))
    assert run.checkpoint_path.read_bytes() == before


def test_a_run_of_no_epochs_still_leaves_its_model(tmp_path, data):
    run = RunDirectory.create(tmp_path, make_config(0))
    trainer = train(run, data)
    assert bool((load_model(run.path).weight == trainer.model.weight).all())
    assert run.history() == []
    assert run.metrics_path.read_text() == ""


def test_there_is_nothing_to_restore_before_the_first_epoch(tmp_path, data, same_state):
    run = RunDirectory.create(tmp_path, make_config())
    trainer = make_config().build(rows_for(data))
    before = trainer.state()
    assert run.restore(trainer) is False
    same_state(trainer.state(), before)


def test_a_damaged_checkpoint_stops_a_resume(tmp_path, data):
    run = RunDirectory.create(tmp_path, make_config())
    train(run, data)
    content = run.checkpoint_path.read_bytes()
    run.checkpoint_path.write_bytes(content[:-10])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        train(run, data)
    assert run.checkpoint_path.read_bytes() == content[:-10]


def test_a_checkpoint_of_another_model_stops_a_resume(tmp_path, data):
    run = RunDirectory.create(tmp_path, make_config())
    train(run, data)
    run.config_path.write_text(make_config(9, n_hidden=5).to_json())
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not fit .*run\.json"):
        train(run, data)
    for changes in ({"method": "emf"}, {"learning_rate": 0.2}, {"n_chains": 3}):
        run.config_path.write_text(make_config(9, **changes).to_json())
        with pytest.raises(CheckpointError, match=r"model\.safetensors does not fit .*run\.json"):
            train(run, data)
    run.config_path.write_text(make_config(4).to_json())
    assert train(run, data).epoch == 4


# ---- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_model_is_loaded_with_its_units_and_precision(tmp_path, data, dtype):
    config = make_config(1, visible="spin", dtype=dtype)
    run = RunDirectory.create(tmp_path, config)
    rows = as_rows(data(55, unit="spin"), torch.empty(0, dtype=getattr(torch, dtype)))
    trainer = config.build(rows)
    run.train(trainer, rows)
    for path in (run.path, str(run.path), run.checkpoint_path):
        model = load_model(path)
        assert repr(model) == repr(trainer.model)
        assert str(model.weight.dtype) == f"torch.{dtype}"
        assert exact(model).log_partition == exact(trainer.model).log_partition


def test_what_holds_no_model_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*nowhere"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*model\.safetensors"):
        load_model(tmp_path)
    spec = {"n_visible": 3, "n_hidden": 2, "visible": "bernoulli", "hidden": "bernoulli"}
    whole = {
        "model.weight": torch.ones(3, 2),
        "model.visible_bias": torch.ones(3),
        "model.hidden_bias": torch.ones(2),
    }
    cases = [
        ({}, {}),
        (whole, {}),
        ({"model.weight": torch.ones(3, 2)}, {"model": spec}),
        (whole, {"model": {**spec, "visible": "potts"}}),
        (whole, {"model": {**spec, "n_hidden": 5}}),
        (whole, {"model": {**spec, "colour": "red"}}),
        (whole, {"model": None}),
    ]
    for tensors, values in cases:
        path = tmp_path / "file.safetensors"
        save_checkpoint(path, tensors, values)
        with pytest.raises(CheckpointError, match=r"file\.safetensors holds no RBM"):
            load_model(path)

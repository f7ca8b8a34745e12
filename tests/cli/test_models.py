"""The command line with models other than RBMs: one run, stopped, gone on with, measured, shown."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import freenergy as fe
from freenergy.studies.estimator_models import MODELS
from freenergy.studies.estimator_run import EstimatorConfig, EstimatorRun
from freenergy.training import RunError, load_checkpoint
from freenergy.training.trainer import Trainer

SMALL = {
    "rbm-classifier": ("--hidden", "4", "--set", "objective=hybrid", "--set", "n_chains=10"),
    "unrolled-classifier": ("--hidden", "4", "--set", "rbm__n_iter=2"),
    "mlp-classifier": ("--hidden", "4", "--set", "dropout=0.2", "--set", "early_stopping=true"),
    "mlp-regressor": ("--hidden", "4"),
    "vae": ("--hidden", "4", "--set", "n_components=2"),
}
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory, call) -> dict[str, Path]:
    """A run of each model that a test may read, but must not change."""
    folder = tmp_path_factory.mktemp("trained")
    for model in MODELS:
        assert call(*command(model, data, folder / model)) == 0
    return {model: folder / model for model in MODELS}


def command(model: str, data: Path, out: Path | str, epochs: int = 6) -> tuple[object, ...]:
    options = ("--epochs", epochs, "--batch-size", 20, "--data", data, "--out", out)
    return ("train", "--model", model, *options, *SMALL[model])


def assert_same_run(path: Path, other: Path) -> None:
    """The same bits in the model and in all that it would go on with, but for the time it took."""
    for file in ("model.safetensors", "checkpoint/fit.safetensors"):
        (tensors, values), (theirs, their_values) = (
            load_checkpoint(p / file) for p in (path, other)
        )
        assert tensors.keys() == theirs.keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, theirs[name]), name
        for record in (*values["history"], *their_values["history"]):
            record.pop("seconds")
        assert values["history"] == their_values["history"]
        assert values["random"] == their_values["random"]
    assert (path / "scores.json").read_bytes() == (other / "scores.json").read_bytes()
    lines = [[json.loads(x) for x in (p / "metrics.jsonl").open()] for p in (path, other)]
    for record in (*lines[0], *lines[1]):
        assert record.pop("seconds") > 0
    assert lines[0] == lines[1]


# ---- a run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_a_run_leaves_its_model_its_numbers_and_its_page(run, data, model, patterns):
    result = run(*command(model, data, "a run"))
    assert (result.code, result.out) == (0, "run: a run\nreport: a run/report.html\n")
    *progress, score = result.err.splitlines()
    assert all(line.startswith("a run: ") for line in progress)
    assert score.startswith("Held-out ")
    assert score.endswith("of 40 rows.")
    assert sorted(p.name for p in Path("a run").iterdir()) == [
        "checkpoint",
        "metrics.jsonl",
        "model.safetensors",
        "report.html",
        "run.json",
        "scores.json",
    ]
    config = EstimatorRun("a run").config()
    assert (config.model, config.seed, config.n_passes) == (model, 0, 6)
    assert config.data["name"] == str(data)
    assert config.data["held_out"] == "the test set of the data"
    assert config.command.startswith(f"freenergy train --model {model} --epochs 6")
    values = json.loads(Path("a run/run.json").read_text())
    assert values["estimator"] == MODELS[model].kind.__name__
    assert values["versions"]["freenergy"] == fe.__version__
    lines = [json.loads(line) for line in Path("a run/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 7))
    assert any(name.endswith("_test") for name in lines[-1])
    page = Path("a run/report.html").read_text()
    assert MODELS[model].kind.__name__ in page
    for words in ("How learning goes", "the test set of the data", f"--model {model}", "torch"):
        assert words in page
    if model.endswith("classifier"):
        assert "by the class that was predicted" in page
    if model == "unrolled-classifier":
        assert "was trained for 2 epochs before" in page
    # What the page says of held-out rows is what the model itself says.
    fitted, (x, y) = fe.load("a run"), patterns(40, 2)
    scores = EstimatorRun("a run").scores()
    if model == "vae":
        assert scores.scores[1].value == pytest.approx(fitted.free_energy(x, n_draws=10).mean())
    else:
        assert scores.scores[0].value == pytest.approx(fitted.score(x, y), rel=1e-6)


def test_the_run_is_the_estimators_own_fit(run, data, patterns):
    options = ("--set", "hidden_layer_sizes=5,4", "--set", "activation=selu", "--seed", 3)
    run(
        "train",
        "--model",
        "mlp-classifier",
        "--data",
        data,
        "--epochs",
        3,
        "--out",
        "run",
        *options,
    )
    net = fe.MLPClassifier((5, 4), "selu", max_iter=3, random_state=3)
    with pytest.warns(match="Maximum iterations"):
        net.fit(*patterns(80, 1))
    for one, other in zip(fe.load("run").coefs_, net.coefs_, strict=True):
        np.testing.assert_array_equal(one, other)


OPTIONS = {
    "batch_size": 7,
    "beta": 0.5,
    "chains": 9,
    "damping": 0.3,
    "epochs": 4,
    "hidden": 3,
    "l1": 0.01,
    "l2": 0.02,
    "learning_rate": 0.02,
    "learning_rate_decay": 0.3,
    "max_norm": 1.5,
    "momentum": 0.4,
    "optimizer": "rmsprop",
    "order": 2,
    "schedule": "cosine",
    "steps": 2,
    "updates_per_epoch": 2,
    "weight_constraint": "l2",
}


@pytest.mark.parametrize("model", MODELS)
def test_options_that_all_models_share_reach_the_estimator_or_are_refused(
    run, data, monkeypatch, model
):
    asked: list[EstimatorConfig] = []

    def stop(self, config, *, or_open=False):
        asked.append(config)
        raise RunError("stop here")

    monkeypatch.setattr(EstimatorRun, "create", stop)
    taken, default = set(), MODELS[model].estimator({}).get_params()
    for option, value in OPTIONS.items():
        flag = f"--{option.replace('_', '-')}"
        needs = option == "max_norm" and "normalization" in default
        own = ("--set", "normalization=max_norm") if needs else ()
        result = run("train", "--model", model, "--data", data, flag, value, *own)
        if "stop here" not in result.err:
            result.assert_one_line(f"{flag} has no meaning for --model {model}: drop it")
            continue
        found = asked.pop().estimator().get_params()
        changed = {name for name, new in found.items() if new != default[name]}
        (name,) = changed - {"rbm", "random_state", "normalization"}
        assert found[name] in (value, (value,))
        taken.add(option)
    assert taken >= {"batch_size", "epochs", "hidden", "learning_rate", "momentum", "optimizer"}
    assert ("beta" in taken) == (model in ("rbm-classifier", "vae"))
    run("train", "--model", model, "--data", data, "--no-shuffle")
    assert asked.pop().parameters["shuffle"] is False


def test_what_a_model_cannot_take_is_named(run, data):
    for flag, value in (("--method", "cd"), ("--unit", "spin"), ("--centered", None)):
        arguments = [flag] if value is None else [flag, value]
        result = run("train", "--model", "vae", "--data", data, *arguments)
        result.assert_one_line(f"{flag} has no meaning for --model vae: drop it")
    result = run("train", "--model", "unrolled-classifier", "--data", data, "--method", "cd")
    result.assert_one_line("or --set rbm__method=... for its pretraining")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "mpl-classifier"), "did you mean 'mlp-classifier'"),
        (("--model", "x"), "--model takes rbm, rbm-classifier"),
        (("--model", "vae", "--set", "activation=foo"), "activation must be one of"),
        (("--model", "vae", "--set", "n_components=2.5"), "n_components must be a whole number"),
        (("--model", "vae", "--set", "n_iter=3", "--epochs", "2"), "are the same: drop one"),
        (("--model", "mlp-classifier", "--set", "solver=foo"), "solver must be one of"),
        (("--model", "mlp-classifier", "--seed", "-1"), "random_state must be a whole number"),
        (("--model", "mlp-classifier", "--epochs", "0"), "max_iter must be a whole number"),
        (("--model", "mlp-classifier", "--device", "tpu"), "--device takes cpu, cuda or auto"),
        (("--model", "mlp-classifier", "--dtype", "float16"), "--dtype takes float32 or float64"),
        (("--model", "mlp-classifier", "--max-norm", 2), "--max-norm needs --set normalization="),
        (("--model", "mlp-classifier", "--binarize", "x"), "--binarize takes a number or 'none'"),
        (("--model", "unrolled-classifier", "--set", "rbm__method=x"), "method must be one of"),
        (("--set", "dropout=0.1"), "--set has no meaning for --model rbm"),
        (("--help-options",), "--model rbm are listed by freenergy train --help"),
    ],
)
def test_what_is_refused_is_refused_in_one_line_and_leaves_no_folder(run, data, arguments, words):
    result = run("train", "--data", data, "--out", "a/run", *arguments)
    result.assert_one_line(words)
    assert not Path("a/run").exists()


def test_a_folder_that_holds_something_else_keeps_it(run, data):
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("keep me")
    result = run("train", "--model", "vae", "--data", data, "--out", "mine", "--set", "latent=x")
    result.assert_one_line("latent")
    assert [p.name for p in Path("mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("model", MODELS)
def test_the_parameters_of_a_model_are_listed(run, model):
    result = run("train", "--model", model, "--help-options")
    assert (result.code, result.err) == (0, "")
    for name in MODELS[model].parameters:
        assert name in result.out


def test_a_divergence_is_told_with_what_to_do(run, data):
    options = ("--set", "solver=sgd", "--learning-rate", "1e30", "--epochs", 5)
    result = run("train", "--model", "mlp-regressor", "--data", data, "--out", "run", *options)
    assert result.code == 1
    line = result.err.splitlines()[-1]
    assert "Lower learning_rate_init" in line
    assert line.endswith("start another with freenergy train --out")


# ---- interrupted and gone on with ----------------------------------------------------------------


def interrupt_at(monkeypatch, n: int) -> None:
    """Ctrl-C in update number ``n``, of whichever training."""
    compute, calls = Trainer._compute, []

    def counting(self, batch):
        calls.append(batch)
        if len(calls) == n:
            signal.raise_signal(signal.SIGINT)
        compute(self, batch)

    monkeypatch.setattr(Trainer, "_compute", counting)


@pytest.mark.parametrize(
    ("model", "update", "done"),
    [
        ("rbm-classifier", 14, 3),
        ("mlp-classifier", 14, 3),
        ("mlp-regressor", 3, 0),
        ("vae", 23, 5),
        ("unrolled-classifier", 6, 0),  # In the pretraining, of 2 epochs of 4 updates.
        ("unrolled-classifier", 23, 3),
    ],
)
def test_a_run_that_was_interrupted_goes_on_to_the_same_bits(
    run, data, trained, monkeypatch, model, update, done
):
    with monkeypatch.context() as patch:
        interrupt_at(patch, update)
        result = run(*command(model, data, "my run"))
    assert result.code == 130
    assert result.out == ""
    assert result.err.splitlines()[-1] == (
        f"freenergy: interrupted: stopped after epoch {done} of 6; go on with: freenergy train "
        "--resume 'my run'"
    )
    assert "training was interrupted" not in result.err
    assert not Path("my run/report.html").exists()
    if done:
        # What there is can be looked at.
        assert len(fe.load("my run").history_["epoch"]) == done
        assert run("report", "my run").code == 0
        assert "Not measured yet" in Path("my run/report.html").read_text()
        assert run("evaluate", "my run").code == 0
    else:
        words = "has no fitted model yet: go on with freenergy train --resume"
        run("evaluate", "my run").assert_one_line(words)
    assert run("train", "--resume", "my run").code == 0
    assert_same_run(Path("my run"), trained[model])
    # Signals are handled as before.
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_longer_run_goes_on_and_is_that_of_the_longer_command(run, data):
    assert run(*command("vae", data, "run", epochs=2)).code == 0
    before = Path("run/scores.json").read_bytes()
    assert run("train", "--resume", "run", "--epochs", 6).code == 0
    assert Path("run/scores.json").read_bytes() != before
    assert run(*command("vae", data, "whole")).code == 0
    (a, _), (b, _) = (load_checkpoint(Path(p) / "model.safetensors") for p in ("run", "whole"))
    assert all(torch.equal(a[name], b[name]) for name in b)
    assert EstimatorRun("run").config().n_passes == 6
    result = run("train", "--resume", "run", "--epochs", 3)
    result.assert_one_line("run has 6 epochs already, more than --epochs 3")
    assert "nothing was added" in run("train", "--resume", "run").err


def test_what_an_earlier_process_left_behind_does_not_stay(run, data, monkeypatch):
    """Scores of an earlier model, and the line of a pass that was not stored."""
    assert run(*command("vae", data, "run", epochs=2)).code == 0
    with Path("run/metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3}\n')
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6)  # In the second of the passes that are to come.
        assert run("train", "--resume", "run", "--epochs", 6).code == 130
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[2]["updates"] == 4
    assert EstimatorRun("run").scores() is None
    assert len(fe.load("run").history_["epoch"]) == 3
    with Path("run/metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4}\n')
    seen: list[int] = []

    def look(self, batch):
        seen.append(len(Path("run/metrics.jsonl").read_text().splitlines()))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_compute", look)
        run("train", "--resume", "run")
    assert seen == [3]


def test_a_run_whose_schedule_counts_its_epochs_takes_no_other_number(run, data):
    options = ("--set", "learning_rate=cosine", "--epochs", 2)
    run("train", "--model", "mlp-classifier", "--data", data, "--out", "run", *options)
    result = run("train", "--resume", "run", "--epochs", 4)
    result.assert_one_line("all epochs of run depend on their number, 2: start another run")
    assert run("train", "--resume", "run").code == 0


def test_a_run_keeps_its_options_and_its_data(run, data, trained, tmp_path, patterns):
    path = trained["vae"]
    run("train", "--resume", path, "--set", "beta=2").assert_one_line("drop --set beside --resume")
    run("train", "--resume", path, "--model", "vae").assert_one_line("drop --model beside")
    result = run(*command("vae", data, path))
    result.assert_one_line("already holds a run", "--resume")
    other = tmp_path / "other.npz"
    np.savez(other, x_train=patterns(80, 1)[0])
    assert run("train", "--model", "vae", "--data", other, "--out", "run", "--epochs", 1).code == 0
    np.savez(other, x_train=patterns(80, 5)[0])
    result = run("train", "--resume", "run", "--epochs", 2)
    result.assert_one_line("is not what the run started with")
    assert EstimatorRun("run").config().n_passes == 1


@pytest.mark.parametrize("damage", ["{", "{}", '{"estimator": 1}', '{"estimator": 1, "model": 2}'])
def test_a_damaged_run_is_named(run, trained, tmp_path, damage):
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "run.json").write_text(damage)
    result = run("train", "--resume", folder)
    result.assert_one_line("run.json is damaged")


# ---- measured, drawn from, shown -----------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_a_run_is_measured_by_its_own_rows_and_by_others(run, data, trained, model, patterns):
    path = trained[model]
    before = EstimatorRun(path).scores()
    found = json.loads(run("evaluate", path, "--json").out)
    assert found["scores"][-1]["value"] == pytest.approx(before.scores[-1].value, rel=1e-6)
    x, y = patterns(40, 9)
    np.savez("others.npz", X=x, y=y)
    other = json.loads(run("evaluate", path, "others.npz", "--json").out)
    assert (other["data"], other["rows"]) == ("others", 40)
    assert (
        run("evaluate", path, "--data", "others.npz", "--json").out
        == json.dumps(other, indent=2) + "\n"
    )
    np.save("x.npy", x)
    np.save("y.npy", y)
    if model != "vae":
        assert other["scores"][0]["value"] == pytest.approx(fe.load(path).score(x, y), rel=1e-6)
        run("evaluate", path, "x.npy").assert_one_line("learns from labels", "--labels FILE.npy")
    again = json.loads(run("evaluate", path, "x.npy", "--labels", "y.npy", "--json").out)
    assert again["scores"] == other["scores"]
    file = json.loads(run("evaluate", path / "model.safetensors", "others.npz", "--json").out)
    assert file == other
    # Other rows are not the run's own.
    assert EstimatorRun(path).scores().data == "patterns"
    table = run("evaluate", path)
    assert (table.code, table.err) == (0, "")
    assert "40 rows." in table.out
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHELASTIC_RUN_ID", "some")
        patch.setenv("RANK", "1")
        assert run("evaluate", path) == (0, "", ""), "the first of several processes speaks"


def test_a_saved_model_of_numbers_is_measured_by_the_numbers_themselves(run):
    """No run says how its rows were read: the model's own likelihood does."""
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    vae = fe.VariationalAutoencoder(
        2, hidden_layer_sizes=(4,), likelihood="gaussian", n_iter=2, random_state=0
    ).fit(x)
    vae.save("vae.safetensors")
    np.save("x.npy", x)
    found = json.loads(run("evaluate", "vae.safetensors", "x.npy", "--json").out)
    assert found["scores"][-1]["value"] == pytest.approx(vae.free_energy(x, n_draws=10).mean())


def test_rows_held_out_without_a_label_cost_the_measurement_alone(run, patterns):
    x, y = patterns(80, 1)
    np.savez("d.npz", x_train=x, y_train=y, x_test=x[:9], y_test=np.full(9, -1))
    result = run(*command("rbm-classifier", "d.npz", "run"), "--set", "unlabeled=-1")
    assert result.code == 0
    assert result.err.splitlines()[-1].startswith("The model is not measured: no row has a label")
    assert len(fe.load("run").history_["epoch"]) == 6
    assert "Not measured yet" in Path("run/report.html").read_text()
    run("evaluate", "run").assert_one_line("no row has a label in d")


def test_measurements_without_meaning_are_refused(run, data, trained):
    path = trained["mlp-classifier"]
    for flag in ("--beta", "--time-budget", "--width"):
        run("evaluate", path, flag, 1).assert_one_line(f"{flag} has no meaning")
    run("evaluate", path, "--binarize", 0.5).assert_one_line("drop --binarize")
    run("evaluate", path, "--labels", "y").assert_one_line("drop --labels")
    run("evaluate", path, data, "--data", data).assert_one_line("drop one of them")
    run("evaluate", path, "digits").assert_one_line("has 64 columns, but the model takes 6")
    run("evaluate", path / "model.safetensors").assert_one_line("does not name its data")


def test_damaged_scores_are_named(run, data):
    assert run(*command("vae", data, "run")).code == 0
    Path("run/scores.json").write_text("{")
    run("report", "run").assert_one_line("scores.json is damaged: delete it and evaluate again")
    assert run("evaluate", "run").code == 0
    assert run("report", "run").code == 0


def test_an_autoencoder_is_drawn_from_and_a_classifier_is_not(run, trained):
    path = trained["vae"]
    result = run("sample", path, "--n", 7, "--seed", 3)
    assert result == (0, "samples: samples.npy (7 rows of 6)\n", "")
    expected = fe.load(path).sample(7, random_state=3)
    np.testing.assert_array_equal(np.load("samples.npy"), expected)
    run("sample", path, "--steps", 3).assert_one_line("--steps has no meaning")
    run("sample", path, "--n", 0).assert_one_line("--n must be at least 1")
    for model in trained.keys() - {"vae"}:
        run("sample", trained[model]).assert_one_line("has no distribution of rows to draw from")


@pytest.mark.parametrize("model", MODELS)
def test_the_page_is_written_again(run, data, model):
    assert run(*command(model, data, "run")).code == 0
    page = Path("run/report.html").read_bytes()
    Path("run/report.html").unlink()
    assert run("report", "run") == (0, "report: run/report.html\n", "")
    assert Path("run/report.html").read_bytes() == page


def test_images_are_shown_as_drawn_and_rebuilt(run):
    x = np.random.default_rng(0).integers(0, 256, (40, 4, 5), dtype=np.uint8)
    np.save("images.npy", x)
    options = ("--data", "images.npy", "--out", "run", "--epochs", 1)
    assert run("train", "--model", "vae", *options).code == 0
    page = Path("run/report.html").read_text()
    for words in ("Drawn from the model", "Held-out rows", "The same rows, rebuilt"):
        assert words in page
    Path("images.npy").unlink()
    result = run("report", "run")
    assert result.code == 0
    assert "the page shows no rows of the data" in result.err
    page = Path("run/report.html").read_text()
    assert "Drawn from the model" in page
    assert "The same rows, rebuilt" not in page


# ---- data of every kind --------------------------------------------------------------------------


def shards(folder: Path, patterns) -> None:
    x, y = patterns(90, 3)
    for part in range(3):
        own = slice(30 * part, 30 * part + 30)
        for kind, array in (("x", x), ("y", y)):
            (folder / kind).mkdir(exist_ok=True)
            np.save(folder / kind / f"{part}.npy", array[own])


@pytest.mark.parametrize("model", ["rbm-classifier", "mlp-classifier", "mlp-regressor", "vae"])
def test_shards_are_learned_from_and_gone_on_with(run, model, patterns):
    shards(Path.cwd(), patterns)
    labels = () if model == "vae" else ("--labels", "y")
    options = ("--data", "x", *labels, "--epochs", 2, "--out", "run", *SMALL[model])
    result = run("train", "--model", model, *options)
    assert result.code == 0
    assert result.err.splitlines()[-1].endswith("of 18 rows.")
    # From another folder too.
    os.chdir("..")
    if model != "vae":
        result = run("evaluate", "cwd/run", "cwd/x")
        result.assert_one_line("a folder of .npy shards")
        assert run("evaluate", "cwd/run", "cwd/x", "--labels", "cwd/y").code == 0
    assert run("train", "--resume", "cwd/run", "--epochs", 3).code == 0
    assert len((Path("cwd/run") / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_table_with_words_is_learned_from_and_others_like_it_are_measured(run):
    pd = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=80), "colour": rng.choice(["red", "blue"], 80)})
    frame["kind"] = np.where((frame["a"] > 0) ^ (frame["colour"] == "red"), "up", "down")
    frame.to_csv("t.csv", index=False)
    Path("kind").mkdir()  # A column is none the less a column.
    options = ("--data", "t.csv", "--labels", "kind", "--out", "run", "--epochs", 60)
    options += ("--learning-rate", 0.05)
    result = run("train", "--model", "mlp-classifier", *options)
    assert result.code == 0
    assert EstimatorRun("run").scores().scores[0].value > 0.85
    assert fe.load("run").encoded_feature_names_ == ["a", "colour_blue", "colour_red"]
    frame.iloc[::-1].to_csv("u.csv", index=False)
    # The column of the labels is that of the run.
    found = json.loads(run("evaluate", "run", "u.csv", "--json").out)
    assert (found["rows"], found["classes"]) == (80, ["down", "up"])
    os.chdir("kind")
    assert run("train", "--resume", "../run", "--epochs", 61).code == 0
    os.chdir("..")
    result = run("train", "--model", "rbm-classifier", *options[:-2], "--out", "x")
    result.assert_one_line("column 'colour' has")


# ---- processes of their own ----------------------------------------------------------------------


def test_under_torchrun_the_folder_has_to_be_named(run, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
    monkeypatch.setenv("RANK", "0")
    run("train", "--model", "vae").assert_one_line("several processes need one folder")


def spawn(*arguments: object, processes: int = 0) -> subprocess.Popen[str]:
    own = [sys.executable, "-m", "freenergy"]
    if processes:
        group = ["--standalone", f"--nproc-per-node={processes}", "--max-restarts=9"]
        own = [sys.executable, "-m", "torch.distributed.run", *group, "--monitor-interval=0.1"]
        own += ["-m", "freenergy"]
    return subprocess.Popen(
        [*own, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def wait_for_lines(process: subprocess.Popen[str], folder: Path, n: int) -> None:
    end, metrics = time.monotonic() + 120, folder / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < n:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)


LONG = ("--epochs", 40, "--hidden", 256, "--batch-size", 50, "--set", "dropout=0.2")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path):
    train = ("train", "--model", "mlp-classifier", *LONG, "--set", "early_stopping=true")
    train += ("--set", "n_iter_no_change=40")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert spawn(*train, "--out", whole).wait(120) == 0
    command: tuple[object, ...] = (*train, "--out", killed)
    for lines in (2, 11, 23):
        process = spawn(*command)
        wait_for_lines(process, killed, lines)
        process.kill()
        process.communicate()
        command = ("train", "--resume", killed)
    process = spawn(*command)
    assert process.wait(120) == 0, process.communicate()[1]
    assert_same_run(killed, whole)


@pytest.mark.slow
def test_torchrun_trains_what_one_process_trains(tmp_path, call):
    """Where nothing is drawn: a VAE of up to 5 Bernoulli latents sums over all their states."""
    train = ("train", "--model", "vae", "--set", "latent=bernoulli", "--set", "n_components=3")
    train += ("--epochs", 3, "--hidden", 16, "--batch-size", 90)
    two = spawn(*train, "--out", tmp_path / "two", processes=2)
    out, errors = two.communicate(timeout=300)
    assert two.returncode == 0, errors
    # The first process alone speaks.
    assert out == f"run: {tmp_path}/two\nreport: {tmp_path}/two/report.html\n"
    assert call(*train, "--out", tmp_path / "one") == 0
    (a, _), (b, _) = (load_checkpoint(tmp_path / p / "model.safetensors") for p in ("one", "two"))
    for name in (name for name in a if name.startswith("model.")):
        np.testing.assert_allclose(b[name], a[name], rtol=0, atol=2e-5, err_msg=name)
    one, other = (EstimatorRun(tmp_path / p).scores() for p in ("one", "two"))
    assert other.scores[0].value == pytest.approx(one.scores[0].value, abs=0.01)
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
def test_a_worker_that_is_killed_is_started_again_and_the_run_goes_on(tmp_path):
    train = ("train", "--model", "mlp-classifier", *LONG)
    whole = spawn(*train, "--out", tmp_path / "whole", processes=2)
    assert whole.wait(300) == 0
    agent = spawn(*train, "--out", tmp_path / "killed", processes=2)
    wait_for_lines(agent, tmp_path / "killed", 5)
    found = subprocess.run(["pgrep", "-P", str(agent.pid), "-f", "freenergy"], capture_output=True)
    os.kill(int(found.stdout.split()[0]), signal.SIGKILL)
    _, errors = agent.communicate(timeout=300)
    assert agent.returncode == 0, errors
    assert_same_run(tmp_path / "killed", tmp_path / "whole")

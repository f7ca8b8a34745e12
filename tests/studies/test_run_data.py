"""Studies of data that are streamed: always the same rows of them, with their labels."""

from __future__ import annotations

import io
import json
import sys
import warnings

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from freenergy import cli
from freenergy.data import DataError, stream
from freenergy.progress import Reporter
from freenergy.report import render
from freenergy.studies import run_data
from freenergy.studies.conjecture import ConjectureSettings, run_conjecture
from freenergy.studies.depth import DepthSettings, run_depth
from freenergy.studies.learning import LearningSettings, run_learning
from freenergy.studies.run_data import open_dataset, reopen_data, rows_in_words
from freenergy.studies.study import run_study, study_page
from freenergy.training import RunError

CLASSES = np.repeat([0, 1, 2], 100)  # Sorted, as files often are.
PATTERNS = np.random.default_rng(0).random((3, 12)) < 0.5
ROWS = (PATTERNS[CLASSES] ^ (np.random.default_rng(1).random((300, 12)) < 0.1)).astype(np.float32)
LEARNING = LearningSettings(
    n_hidden=3, n_epochs=2, seeds=(0, 1), methods=("PCD", "EMF (TAP2)"), assessed=()
)
CONJECTURE = ConjectureSettings(n_hidden=3, n_epochs=2, seeds=(0, 1))
DEPTH = DepthSettings(
    depths=(2,), width=4, n_epochs=1, batch_size=20, small_batch=10, large_batch=40
)


@pytest.fixture
def shards(tmp_path):
    """A folder of shards, and one of their labels."""
    for name, whole in (("x", ROWS), ("y", CLASSES)):
        (tmp_path / name).mkdir()
        for k, part in enumerate(np.array_split(whole, 3)):
            np.save(tmp_path / name / f"{k}.npy", part)
    return tmp_path / "x"


def labels_of(folder):
    return str(folder.parent / "y")


def pairs(x, y):
    return sorted((*row, label) for row, label in zip(x.tolist(), y.tolist(), strict=True))


# ---- rows that are drawn -------------------------------------------------------------------------


def test_data_that_fit_are_taken_whole_and_a_fifth_is_held_out(shards):
    found = open_dataset(shards, labels=labels_of(shards))
    assert (found.name, len(found.x_train), len(found.x_test)) == ("x", 240, 60)
    x, y = np.r_[found.x_train, found.x_test], np.r_[found.y_train, found.y_test]
    assert pairs(x, y) == pairs(ROWS, CLASSES)
    assert np.bincount(found.y_test, minlength=3).min() > 10, (
        "of sorted data all classes are held out"
    )
    assert found.fingerprint == open_dataset(str(shards), labels=labels_of(shards)).fingerprint
    assert (found.drawn.n_rows, found.x_train.dtype, found.y_train.dtype) == (300, "f4", "i8")


def test_of_more_rows_the_same_are_drawn_each_time(shards, monkeypatch):
    one, other = (open_dataset(shards, labels=labels_of(shards), n_rows=100) for _ in range(2))
    assert (len(one.x_train), len(one.x_test)) == (80, 20)
    assert one.fingerprint == other.fingerprint
    assert set(pairs(one.x_train, one.y_train)) <= set(pairs(ROWS, CLASSES))
    assert np.bincount(one.y_train, minlength=3).min() > 15
    monkeypatch.setattr(run_data, "MOST_BYTES", 100 * 12 * 4)
    assert open_dataset(shards, labels=labels_of(shards)).fingerprint == one.fingerprint
    monkeypatch.setattr(run_data, "MOST_HELD_OUT", 7)
    assert len(open_dataset(shards).x_test) == 7
    assert open_dataset(shards).y_train is None


@pytest.mark.parametrize("kind", ["npy", "parquet", "h5", "zarr", "uint8"])
def test_the_same_names_are_taken_as_for_train(kind, tmp_path):
    name, labels = tmp_path / f"x.{kind}", None
    if kind == "npy":
        np.save(name, ROWS)
        np.save(tmp_path / "y.npy", CLASSES)
        labels = str(tmp_path / "y.npy")
    elif kind == "parquet":
        pd = pytest.importorskip("pandas")
        frame = pd.DataFrame(ROWS, columns=list("abcdefghijkl"))
        frame.assign(kind=np.array(["ant", "bee", "cat"])[CLASSES]).to_parquet(name)
        labels = "kind"
    elif kind == "h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(name, "w") as file:
            file["x"], file["y"] = ROWS, CLASSES
        labels = "y"
    elif kind == "zarr":
        zarr = pytest.importorskip("zarr")
        group = zarr.open_group(str(name), mode="w")
        group.create_array("x", data=ROWS)
        group.create_array("y", data=CLASSES)
        name, labels = f"{name}:/x", "y"
    else:
        name = tmp_path / "x.npy"
        np.save(name, (200 * ROWS).astype(np.uint8).reshape(300, 3, 4))
    found = open_dataset(name, 0.5, labels, 300)
    x, y = np.r_[found.x_train, found.x_test], CLASSES
    if labels is not None:
        y = np.unique(np.r_[found.y_train, found.y_test], return_inverse=True)[1]
    order = np.lexsort(ROWS.T), np.lexsort(x.T)
    assert_array_equal(ROWS[order[0]], x[order[1]])
    assert np.bincount(y).tolist() == [100] * 3
    assert found.image_shape == ((3, 4) if kind == "uint8" else None)
    assert found.is_binarized == (kind == "uint8")
    assert found.name == "x"
    if kind == "parquet":
        assert set(found.y_train) == {"ant", "bee", "cat"}
    stored = {"name": str(name), "binarize": 0.5, **run_data.drawn_from(found)}
    again = reopen_data(json.loads(json.dumps(stored)))
    assert again.fingerprint == found.fingerprint
    assert_array_equal(again.held_out, found.x_test)


def test_what_cannot_be_drawn_is_said_in_one_line(shards):
    with pytest.raises(DataError, match="labels cannot be chosen of digits, which is loaded"):
        open_dataset("digits", labels="y")
    with pytest.raises(DataError, match="a number of rows cannot be chosen of digits"):
        open_dataset("digits", n_rows=50)
    with pytest.raises(DataError, match="9 rows are too few to hold some out; take at least 10"):
        open_dataset(shards, n_rows=9)
    np.save(shards / "1.npy", 3 * ROWS[:100])
    with pytest.raises(DataError, match=r"1\.npy has the value 3 in column .*: outside \[0, 1\]"):
        open_dataset(shards)
    assert open_dataset(shards, 0.5).is_binarized
    labels = np.where(np.arange(300) == 120, np.nan, CLASSES)
    with pytest.raises(DataError, match=r"1\.npy has nan for the label of row 20"):
        run_conjecture(stream(shards, binarize=0.5, labels=labels), shards.parent / "out")
    for k in (1, 2):
        (shards / f"{k}.npy").unlink()
    np.save(shards / "0.npy", ROWS[:9])
    with pytest.raises(DataError, match="x has 9 rows; at least 10 are needed"):
        open_dataset(shards)
    assert open_dataset("digits", 0.5).drawn is None


# ---- studies of them -----------------------------------------------------------------------------


def study(data, directory, log=None):
    reporter = Reporter(io.StringIO() if log is None else log)
    return run_study(data, directory, LEARNING, CONJECTURE, DEPTH, reporter=reporter)


def test_a_study_of_a_stream_says_what_was_drawn_and_goes_on_with_the_same(
    shards, tmp_path, monkeypatch
):
    monkeypatch.setattr(run_data, "MOST_BYTES", 150 * 12 * 4)
    data, log, out = stream(shards, labels=CLASSES), io.StringIO(), tmp_path / "out"
    found = study(data, out, log)
    words = "120 rows to learn from, 30 held out (of 150 drawn at random from 300)"
    assert f"x: {words}" in log.getvalue()
    assert found.learning.pixel_accuracy > 0.7
    assert found.depth is not None
    assert found.missing == ()
    page = render(study_page(found))
    assert page.count(words) == 3
    for folder in (out, out / "conjecture", out / "depth"):
        plan = json.loads((folder / "study.json").read_text())
        assert plan["data"]["drawn"] == {"n_drawn": 150, "n_rows": 300, "labels": None}
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    (out / "conjecture" / "pcd-seed1.json").unlink()
    again = study(stream(shards, labels=CLASSES), out)
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert again.conjecture.missing == ""
    np.save(shards / "2.npy", 1.0 - ROWS[:100])
    with pytest.raises(RunError, match="holds a study of other data"):
        study(stream(shards, labels=CLASSES), out)


def test_without_labels_what_needs_them_is_left_out_in_a_sentence(shards, tmp_path):
    log = io.StringIO()
    found = study(str(shards), tmp_path / "out", log)
    assert "x has no labels" in log.getvalue()
    assert "or say where they are (--labels" in log.getvalue()
    assert (found.conjecture, found.depth) == (None, None)
    assert found.learning.data["name"] == str(shards)
    for one in (run_conjecture, run_depth):
        with pytest.raises(DataError, match="x has no labels"):
            one(shards, tmp_path / "other", reporter=Reporter(log))


def test_every_study_takes_a_stream(shards, tmp_path):
    data, quiet = stream(shards, labels=CLASSES), {"reporter": Reporter(io.StringIO())}
    learned = run_learning(data, tmp_path / "a", LEARNING, **quiet)
    assert (learned.data["n_train"], learned.pixel_accuracy > 0.7) == (240, True)
    assert run_depth(data, tmp_path / "b", DEPTH, **quiet).data["n_held_out"] == 60
    assert "drawn" not in rows_in_words(learned.data), "all that there are"


def call(capsys, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["freenergy", *map(str, arguments)])
        patch.setattr(warnings, "showwarning", warnings.showwarning)
        with warnings.catch_warnings(), pytest.raises(SystemExit) as stop:
            cli.main()
    found = capsys.readouterr()
    assert "Traceback" not in found.err
    return stop.value.code, found.out, found.err


def test_the_command_draws_the_rows_that_it_is_asked_for(shards, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ("study", "--data", "x", "--out", "s", "--epochs", 1, "--seeds", 1, "--jobs", 1)
    only = ("--only", "conjecture", "--labels", "y")
    code, out, err = call(capsys, *command, *only, "--rows", 100)
    assert code == 0, err
    assert "x: 80 rows to learn from, 20 held out (of 100 drawn at random from 300)" in err
    page = (tmp_path / "s" / "report.html").read_text()
    assert "20 held out (of 100 drawn at random from 300)" in page
    code, out, err = call(capsys, *command, *only, "--rows", 90)
    assert (code, out) == (2, "")
    assert "holds a study of other data or settings" in err
    code, out, err = call(capsys, *command[:4], "t", "--only", "depth")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("freenergy: x has no labels")
    code, out, err = call(capsys, "study", "--rows", 50)
    assert (code, out, len(err.splitlines())) == (2, "", 1)


def test_a_model_of_a_study_is_measured_on_the_rows_that_were_held_out(shards, tmp_path, capsys):
    np.save(tmp_path / "rows.npy", ROWS)
    data = open_dataset(tmp_path / "rows.npy", labels=labels_of(shards), n_rows=100)
    quiet = {"reporter": Reporter(io.StringIO()), "source": str(tmp_path / "rows.npy")}
    run_learning(data, tmp_path / "out", LEARNING, **quiet)
    path = tmp_path / "out" / "pcd-seed0"
    code, out, err = call(capsys, "evaluate", path, "--time-budget", 30, "--json")
    assert code == 0, err
    assert json.loads(out)
    np.save(tmp_path / "rows.npy", ROWS[::-1])
    code, out, err = call(capsys, "evaluate", path)
    assert code == 2
    assert "is not what the run started with" in err

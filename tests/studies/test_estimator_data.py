"""Rows and labels for a run, from wherever they lie, and which of them are held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from freenergy import data
from freenergy.data import DataError
from freenergy.studies.estimator_data import given_rows, open_model_data
from freenergy.studies.estimator_models import MODELS

CLASSIFIER, REGRESSOR, VAE = (MODELS[n] for n in ("mlp-classifier", "mlp-regressor", "vae"))
N = 60


def rows(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose first value is their number, so that each is known again."""
    rng = np.random.default_rng(seed)
    x = rng.random((N, 4)).astype(np.float32)
    x[:, 0] = np.arange(N)
    return x, np.repeat([0, 1, 2], [30, 20, 10])


@pytest.fixture
def folder(tmp_path) -> Path:
    x, y = rows()
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    np.savez(tmp_path / "own.npz", X=x, y=y, other=y[::-1])
    np.savez(tmp_path / "tested.npz", x_train=x[:40], x_test=x[40:], y_train=y[:40], y_test=y[40:])
    np.savez(tmp_path / "half.npz", x_train=x[:40], x_test=x[40:], y_train=y[:40])
    for part in range(3):
        own = slice(20 * part, 20 * part + 20)
        for kind, array in (("shards", x), ("labels", y)):
            (tmp_path / kind).mkdir(exist_ok=True)
            np.save(tmp_path / kind / f"{part}.npy", array[own])
    return tmp_path


def numbers(x) -> list[int]:
    return np.asarray(x)[:, 0].astype(int).tolist()


@pytest.mark.parametrize(
    ("name", "labels"), [("x.npy", "y.npy"), ("own.npz", None), ("half.npz", None)]
)
def test_a_fifth_is_held_out_once_and_in_proportion(folder, name, labels):
    labels = None if labels is None else str(folder / labels)
    found = open_model_data(CLASSIFIER, str(folder / name), labels=labels)
    n = 40 if name == "half.npz" else N  # Test rows without labels judge no classifier.
    kept, held_out = numbers(found.x), numbers(found.x_held_out)
    assert sorted(kept + held_out) == list(range(n))
    assert len(held_out) == n // 5
    _, y = rows()
    np.testing.assert_array_equal(found.y, y[kept])
    np.testing.assert_array_equal(found.y_held_out, y[held_out])
    share = np.bincount(y[:n]) / n
    counts = np.bincount(found.y_held_out, minlength=len(share))
    assert np.abs(counts - share * len(held_out)).max() <= 1
    again = open_model_data(CLASSIFIER, str(folder / name), labels=labels)
    assert numbers(again.x_held_out) == held_out
    assert again.fingerprint == found.fingerprint
    assert "in proportion to the classes" in found.held_out


def test_the_test_set_is_what_is_held_out_where_there_is_one(folder):
    found = open_model_data(CLASSIFIER, str(folder / "tested.npz"))
    assert (numbers(found.x), numbers(found.x_held_out)) == (list(range(40)), list(range(40, 60)))
    assert found.held_out == "the test set of the data"
    # A density needs no labels of it.
    assert len(open_model_data(VAE, str(folder / "half.npz")).x_held_out) == 20


def test_other_labels_are_other_data(folder):
    name, y = str(folder / "x.npy"), str(folder / "y.npy")
    one = open_model_data(CLASSIFIER, name, labels=y).fingerprint
    np.save(folder / "z.npy", rows()[1][::-1])
    assert open_model_data(CLASSIFIER, name, labels=str(folder / "z.npy")).fingerprint != one
    other = open_model_data(CLASSIFIER, str(folder / "own.npz"), labels="other")
    _, own = rows()
    np.testing.assert_array_equal(other.y, own[::-1][numbers(other.x)])


def test_streams_keep_their_labels_and_some_rows_in_memory(folder):
    shards, labels = str(folder / "shards"), str(folder / "labels")
    found = open_model_data(CLASSIFIER, shards, labels=labels)
    assert isinstance(found.x, data.DataStream)
    assert found.y is None
    kept = [b for block in found.x.blocks() for b in numbers(block.rows)]
    held_out = numbers(found.x_held_out)
    assert sorted(kept + held_out) == list(range(N))
    np.testing.assert_array_equal(found.y_held_out, rows()[1][held_out])
    assert found.held_out.startswith("12 of 60 rows")
    name, x, y = given_rows(CLASSIFIER, shards, labels=labels)
    assert (name, numbers(x)) == ("shards", list(range(N)))
    np.testing.assert_array_equal(y, rows()[1])


@pytest.mark.parametrize(
    ("model", "name", "labels", "message"),
    [
        (CLASSIFIER, "x.npy", None, "learns from labels, and .* has none: .*--labels FILE.npy"),
        (CLASSIFIER, "shards", None, "has none: .*a folder of .npy shards"),
        (CLASSIFIER, "own.npz", "y.npy", "has labels of its own: drop --labels"),
        (CLASSIFIER, "x.npy", "class", "--labels takes an .npy file here, got class"),
        (CLASSIFIER, "x.npy", "gone.npy", "no file gone.npy with labels"),
        (CLASSIFIER, "x.npy", "tested.npz", "takes an .npy file here"),
    ],
)
def test_labels_that_are_missing_or_of_no_use_are_told_in_one_line(
    folder, model, name, labels, message
):
    with pytest.raises(DataError, match=message) as error:
        open_model_data(model, str(folder / name), labels=labels)
    assert "\n" not in str(error.value)


def test_labels_must_be_as_many_as_the_rows(folder):
    np.save(folder / "y.npy", np.arange(7))
    with pytest.raises(DataError, match="has 7 labels for 60 rows"):
        open_model_data(CLASSIFIER, str(folder / "x.npy"), labels=str(folder / "y.npy"))


def test_python_objects_are_never_loaded_as_labels(folder):
    np.save(folder / "y.npy", np.array([{"a": 1}] * N, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="Python objects, which are never loaded"):
        open_model_data(CLASSIFIER, str(folder / "x.npy"), labels=str(folder / "y.npy"))


def test_words_are_no_numbers_to_predict(folder):
    np.save(folder / "y.npy", np.array(["up", "down"] * 30))
    with pytest.raises(DataError, match=r"learns numbers, and a label of .* is 'up'"):
        open_model_data(REGRESSOR, str(folder / "x.npy"), labels=str(folder / "y.npy"))


def test_numbers_are_no_classes(folder):
    y = np.arange(N) % 3.0
    y[7] = 0.25
    np.save(folder / "y.npy", y)
    with pytest.raises(DataError, match=r"a label of .* is 0.25: .*train --model mlp-regressor"):
        open_model_data(CLASSIFIER, str(folder / "x.npy"), labels=str(folder / "y.npy"))


@pytest.mark.parametrize("model", [CLASSIFIER, REGRESSOR])
def test_a_label_that_is_missing_is_named_by_its_row_in_the_file(folder, model):
    y = np.arange(N) % 3.0
    y[17] = np.nan
    np.save(folder / "y.npy", y)
    with pytest.raises(DataError, match=r"x\.npy: y has missing values, 1 in all, .* row 17"):
        open_model_data(model, str(folder / "x.npy"), labels=str(folder / "y.npy"))


def test_a_number_that_is_missing_is_named_by_its_row_in_the_file(table):
    pd = pytest.importorskip("pandas")
    frame = pd.read_csv(table)
    number = next(c for c in frame if c != "class" and frame[c].dtype.kind == "f")
    frame.loc[23, number] = np.nan
    frame.to_csv(table, index=False)
    found = f"NaN in column '{number}' .index 0., first in row 23: remove the row"
    with pytest.raises(ValueError, match=f"{found}, or --set missing=impute$"):
        open_model_data(CLASSIFIER, str(table), labels="class", settings={})
    with pytest.raises(ValueError, match=f"{found}$"):
        open_model_data(VAE, str(table), labels="class", settings={})
    # A category that is missing is one of its own, and numbers can be imputed.
    for settings in ({"missing": "impute"}, {"categorical_features": [0]}):
        found = open_model_data(CLASSIFIER, str(table), labels="class", settings=settings)
        assert found.x[number].isna().sum() + found.x_held_out[number].isna().sum() == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_precision_is_that_of_the_rows(folder, dtype):
    found = open_model_data(VAE, str(folder / "x.npy"), dtype=dtype)
    assert found.x.dtype == found.x_held_out.dtype == np.dtype(dtype)
    assert found.dtype == dtype


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_stream_has_a_precision_of_its_own(tmp_path, dtype):
    np.save(tmp_path / "0.npy", rows()[0].astype(dtype))
    found = open_model_data(VAE, str(tmp_path))
    assert found.x.dtype == np.dtype(found.dtype) == np.dtype(dtype)


def test_few_rows_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((9, 2)))
    with pytest.raises(DataError, match="has 9 rows; at least 10"):
        open_model_data(VAE, str(tmp_path / "x.npy"))


def test_one_class_is_refused_where_classes_are_learned(folder):
    np.save(folder / "y.npy", np.full(N, 3))
    where = {"name": str(folder / "x.npy"), "labels": str(folder / "y.npy")}
    with pytest.raises(DataError, match=r"all labels of .*x.npy are 3"):
        open_model_data(CLASSIFIER, **where)
    # What is known already may be measured on them.
    assert len(given_rows(CLASSIFIER, **where)[2]) == N


def test_a_class_of_one_row_does_not_stop_the_division(folder):
    y = np.zeros(N, dtype=int)
    y[0] = 1
    np.save(folder / "y.npy", y)
    found = open_model_data(CLASSIFIER, str(folder / "x.npy"), labels=str(folder / "y.npy"))
    assert found.held_out == "a fifth of the rows, drawn with seed 0"


# ---- tables --------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    pd = pytest.importorskip("pandas")
    x, y = rows()
    frame = pd.DataFrame(x, columns=["number", "a", "b", "c"])
    frame["colour"] = np.where(x[:, 1] > 0.5, "red", "blue")
    frame["class"] = np.array(["low", "middle", "high"])[y]
    frame.to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_column_of_a_table_is_the_labels_and_no_feature(table, ending):
    pd = pytest.importorskip("pandas")
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
        pd.read_csv(table).to_parquet(table.with_suffix(ending))
    found = open_model_data(CLASSIFIER, str(table.with_suffix(ending)), labels="class")
    assert list(found.x.columns) == ["number", "a", "b", "c", "colour"]
    assert {str(kind) for kind in found.x.dtypes[:4]} == {"float32"}
    _, y = rows()
    expected = np.array(["low", "middle", "high"])[y]
    np.testing.assert_array_equal(found.y, expected[numbers(found.x[["number"]])])
    assert found.y.dtype.kind == "U"


def test_a_table_needs_its_labels_named_rightly(table):
    with pytest.raises(DataError, match="has none: name them with --labels COLUMN"):
        open_model_data(CLASSIFIER, str(table))
    with pytest.raises(DataError, match="no column 'clas'; did you mean 'class'"):
        open_model_data(CLASSIFIER, str(table), labels="clas")
    with pytest.raises(DataError, match="a column 'colour' without numbers: drop --binarize"):
        open_model_data(CLASSIFIER, str(table), labels="class", binarize=0.5)


def test_a_table_that_changes_has_another_fingerprint(table):
    pd = pytest.importorskip("pandas")
    one = open_model_data(CLASSIFIER, str(table), labels="class").fingerprint
    assert open_model_data(CLASSIFIER, str(table), labels="class").fingerprint == one
    assert open_model_data(CLASSIFIER, str(table), labels="colour").fingerprint != one
    frame = pd.read_csv(table)
    frame.loc[3, "a"] += 1.0
    frame.to_csv(table, index=False)
    assert open_model_data(CLASSIFIER, str(table), labels="class").fingerprint != one


def test_gaps_in_a_table_stay_gaps(table):
    pd = pytest.importorskip("pandas")
    frame = pd.read_csv(table)
    frame.loc[3, "a"] = np.nan
    frame.to_csv(table, index=False)
    found = open_model_data(CLASSIFIER, str(table), labels="class")
    whole = pd.concat([found.x, found.x_held_out])
    assert int(whole["a"].isna().sum()) == 1
    with pytest.raises(DataError, match="missing values"):
        open_model_data(VAE, str(drop(table, "colour")), labels="class", binarize=0.5)


def drop(table: Path, column: str) -> Path:
    pd = pytest.importorskip("pandas")
    pd.read_csv(table).drop(columns=column).to_csv(table, index=False)
    return table

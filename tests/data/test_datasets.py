"""Names and paths to arrays: what is promised of a Dataset, and what is refused."""

import os
import pickle
import sys
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freenergy.data import DataError, Dataset, datasets, load


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """No test reads what the machine happens to have, and none downloads."""

    def fail(*args, **kwargs):
        raise URLError("no network in the tests")

    monkeypatch.setattr(datasets, "fetch_openml", fail)
    monkeypatch.delenv("FREENERGY_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def images(rng, n, shape):
    """Images of uint8 that use the whole range."""
    x = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    x.flat[:2] = 0, 255
    return x


# ---- digits --------------------------------------------------------------------------------------


def test_digits_are_float32_rows_in_the_unit_interval():
    digits = load("digits")
    assert digits.x_train.shape == (1437, 64)
    assert digits.x_test.shape == (360, 64)
    assert digits.image_shape == (8, 8)
    for x in (digits.x_train, digits.x_test):
        assert x.dtype == np.float32
        assert x.flags.c_contiguous
        assert x.min() == 0
        assert x.max() == 1


def test_digits_split_is_stratified_and_complete():
    digits = load("digits")
    for y in (digits.y_train, digits.y_test):
        assert y.dtype == np.int64
        assert np.ptp(np.bincount(y) / len(y)) < 0.012
    rows = np.concatenate([digits.x_train, digits.x_test])
    whole = datasets.load_digits().data / 16
    assert sorted(map(bytes, rows)) == sorted(map(bytes, whole.astype(np.float32)))


def test_digits_split_never_changes():
    """Results are compared across versions and machines on this very split."""
    assert load("digits").fingerprint == (
        "c8d7ce1877c01dbda36792d675f45f0731190d2b0d2197be40ab2213f2258e9d"
    )


@pytest.mark.parametrize("name", ["digits", "DIGITS"])
def test_a_name_may_be_written_in_capitals(name):
    assert load(name).name == "digits"


def test_repr_is_one_short_line():
    assert repr(load("digits")) == (
        "Dataset('digits', train=(1437, 64), test=(360, 64), labels=True, image_shape=(8, 8))"
    )
    assert repr(Dataset("x", np.zeros((2, 3), np.float32))) == (
        "Dataset('x', train=(2, 3), labels=False)"
    )


def test_a_dataset_is_frozen():
    with pytest.raises(AttributeError):
        load("digits").name = "other"


# ---- fingerprint ---------------------------------------------------------------------------------


def test_fingerprint_is_that_of_the_values_not_of_their_layout():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    same = [x.copy(), np.asfortranarray(x), x.astype(">f4"), np.repeat(x, 2, axis=0)[::2]]
    assert {Dataset("any name", y).fingerprint for y in same} == {Dataset("x", x).fingerprint}


def test_fingerprint_sees_every_difference():
    x, y = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([0, 1])
    different = [
        Dataset("x", x),
        Dataset("x", x + np.float32(1e-6)),
        Dataset("x", x.reshape(3, 2)),
        Dataset("x", x.view(np.int32)),
        Dataset("x", x, y_train=y),
        Dataset("x", x, y_train=1 - y),
        Dataset("x", x, y_train=y.astype(bool)),
        Dataset("x", x, y_train=np.array(["no", "yes"])),
        Dataset("x", x, x_test=x),
        Dataset("x", x, x_test=x, y_test=y),
        Dataset("x", x, x_test=x, y_train=y),
    ]
    assert len({dataset.fingerprint for dataset in different}) == len(different)


def test_fingerprint_follows_a_change_in_place():
    digits = load("digits")
    before = digits.fingerprint
    digits.x_train[0, 0] += 1
    assert digits.fingerprint != before


# ---- values --------------------------------------------------------------------------------------


def test_uint8_images_are_scaled_and_remember_their_shape(rng, tmp_path):
    x = images(rng, 5, (4, 6))
    np.save(tmp_path / "x.npy", x)
    loaded = load(tmp_path / "x.npy")
    assert loaded.image_shape == (4, 6)
    np.testing.assert_allclose(loaded.x_train, x.reshape(5, 24) / 255, rtol=1e-6)


def test_uint8_zeros_and_ones_are_not_pixels(tmp_path):
    x = np.array([[0, 1], [1, 1]], dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    np.testing.assert_array_equal(load(tmp_path / "x.npy").x_train, x)


def test_train_and_test_share_one_scale(tmp_path):
    """Here the test set alone would look like zeros and ones."""
    train, test = np.array([[0, 255]], np.uint8), np.array([[0, 1]], np.uint8)
    np.savez(tmp_path / "x.npz", x_train=train, x_test=test)
    np.testing.assert_array_equal(load(tmp_path / "x.npz").x_test, np.float32([[0, 1]]) / 255)
    np.savez(tmp_path / "x.npz", x_train=train, x_test=test.astype(np.float32))
    with pytest.raises(DataError, match="uint8 images in one of"):
        load(tmp_path / "x.npz")


@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.float16, np.float64, ">f8"])
def test_other_types_keep_their_values(dtype, tmp_path):
    x = np.array([[-3, 0], [200, 255]], dtype=dtype)
    np.save(tmp_path / "x.npy", x)
    loaded = load(tmp_path / "x.npy")
    np.testing.assert_array_equal(loaded.x_train, x)
    assert loaded.x_train.dtype == np.dtype(np.float32)
    assert loaded.image_shape is None


def test_a_square_width_is_not_guessed_to_be_an_image(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 16)))
    assert load(tmp_path / "x.npy").image_shape is None


def test_binarize_is_strictly_greater(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[0.2, 0.5, 0.7]]))
    assert load(tmp_path / "x.npy", binarize=0.5).x_train.tolist() == [[0, 0, 1]]


def test_binarize_acts_after_scaling_on_both_sets(rng, tmp_path):
    x = images(rng, 6, (2, 2))
    np.savez(tmp_path / "x.npz", x_train=x[:4], x_test=x[4:])
    loaded = load(tmp_path / "x.npz", binarize=0.5)
    np.testing.assert_array_equal(loaded.x_train, x[:4].reshape(4, 4) > 127)
    np.testing.assert_array_equal(loaded.x_test, x[4:].reshape(2, 4) > 127)
    assert loaded.x_train.dtype == loaded.x_test.dtype == np.float32


@pytest.mark.parametrize("threshold", [True, False, np.True_, float("nan"), float("inf")])
def test_binarize_refuses_what_is_no_threshold(threshold):
    with pytest.raises(DataError, match=r"give a number such as 0\.5"):
        load("digits", binarize=threshold)


def test_binarize_refuses_what_all_values_lie_below_or_above(rng, tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, rng.integers(0, 256, (6, 4), dtype=np.uint8))
    for threshold in (128, -0.1):
        with pytest.raises(
            DataError, match=r"uint8 after division by 255\), which lie in \[0, 1\]"
        ):
            load(path, binarize=threshold)
    np.save(path, rng.random((6, 4)) * 300)
    assert load(path, binarize=128).x_train.max() == 1


def test_binarize_refuses_missing_values(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[0.0, np.nan]]))
    assert np.isnan(load(tmp_path / "x.npy").x_train[0, 1])
    with pytest.raises(DataError, match="missing values"):
        load(tmp_path / "x.npy", binarize=0.5)


# ---- numpy files ---------------------------------------------------------------------------------


def test_npz_with_the_four_arrays(rng, tmp_path):
    x, y = images(rng, 6, (3, 4, 4)), np.arange(6, dtype=np.uint8)
    np.savez(tmp_path / "six.npz", x_train=x[:4], y_train=y[:4], x_test=x[4:], y_test=y[4:])
    loaded = load(str(tmp_path / "six.npz"))
    assert (loaded.name, loaded.image_shape) == ("six", (3, 4, 4))
    assert (loaded.x_train.shape, loaded.x_test.shape) == ((4, 48), (2, 48))
    np.testing.assert_array_equal(loaded.y_test, [4, 5])
    assert loaded.y_train.dtype == np.int64


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("X", "y"), True),
        (("x", "Y"), True),
        (("X_train", "Y_train"), True),
        (("X", "note"), False),
        (("anything",), False),
    ],
)
def test_npz_names(names, labels, tmp_path):
    arrays = dict(zip(names, (np.ones((2, 3)), np.array([1, 2])), strict=False))
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    loaded = load(tmp_path / "x.npz")
    assert loaded.x_train.shape == (2, 3)
    assert (loaded.y_train is not None) == labels
    assert loaded.x_test is None


@pytest.mark.parametrize(
    "y", [np.array(["a", "b"]), np.array([0.5, 1.5]), np.array([True, False]), np.eye(2)]
)
def test_labels_other_than_integers_are_kept(y, tmp_path):
    np.savez(tmp_path / "x.npz", X=np.ones((2, 3)), y=y)
    loaded = load(tmp_path / "x.npz").y_train
    np.testing.assert_array_equal(loaded, y)
    assert loaded.dtype == y.dtype


def test_npz_without_an_array_to_learn_from(tmp_path):
    np.savez(tmp_path / "x.npz", **{f"a{i}": np.ones((2, 3)) for i in range(9)})
    with pytest.raises(DataError, match=r"holds a0, a1, .*, \.\.\.; name the array .* 'x_train'"):
        load(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz")
    with pytest.raises(DataError, match="holds no array"):
        load(tmp_path / "x.npz")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("ending", ["npy", "npz"])
@pytest.mark.parametrize("key", ["x_train", "y_train"])
def test_loading_runs_no_code(ending, key, tmp_path):
    path, bomb = tmp_path / f"x.{ending}", np.array([[Bomb()]], dtype=object)
    if ending == "npy":
        np.save(path, bomb, allow_pickle=True)
    else:
        np.savez(path, **{"x_train": np.ones((1, 1)), key: bomb})
    with pytest.raises(DataError, match="Python objects, which are never loaded"):
        load(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="Python objects, which are never loaded"):
        load(path)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("ending", ["npy", "npz", "parquet"])
def test_a_damaged_file_is_named(ending, tmp_path):
    if ending == "parquet":
        pytest.importorskip("pyarrow", reason="needs freenergy[tables]")
    for content in (b"", b"not what it says", b"PK\x03\x04 and no more", b"\x93NUMPY\x01\x00"):
        path = tmp_path / f"x.{ending}"
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"cannot read .*x\.{ending}: it is damaged") as caught:
            load(path)
        assert "\n" not in str(caught.value)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ending=st.sampled_from(["npy", "npz"]), random=st.randoms(use_true_random=False))
@pytest.mark.filterwarnings("ignore")
def test_damage_anywhere_is_an_error_or_harmless(ending, random, tmp_path):
    """No flipped byte and no missing end may surface as anything but a DataError."""
    path, x = tmp_path / f"x.{ending}", np.linspace(0, 1, 40).reshape(10, 4)
    np.save(path, x) if ending == "npy" else np.savez_compressed(path, X=x, y=np.arange(10))
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content[: random.choice([len(content), random.randrange(len(content))])])
    with suppress(DataError):
        assert load(path).x_train.ndim == 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": np.ones(3)}, r"x_train of .*x\.npz has shape \(3,\); give \(rows, features\)"),
        ({"X": np.array(1.0)}, r"has shape \(\)"),
        ({"X": np.ones((0, 3))}, r"is empty, shape \(0, 3\)"),
        ({"X": np.ones((3, 0))}, r"is empty, shape \(3, 0\)"),
        ({"X": np.array([["a"]])}, "has type <U1; give real numbers"),
        ({"X": np.ones((2, 2), complex)}, "has type complex128"),
        ({"X": np.ones((2, 2)), "y": np.ones(3)}, r"y_train .* has shape \(3,\) for 2 rows"),
        ({"X": np.ones((2, 2)), "y": np.array(1)}, r"y_train .* has shape \(\) for 2 rows"),
        ({"x_train": np.ones((2, 2)), "y_test": np.ones(2)}, "y_test .* for 0 rows"),
        (
            {"x_train": np.ones((2, 2)), "x_test": np.ones((2, 3))},
            "x_test .* has 3 features per row instead of 2",
        ),
        ({"x_train": np.ones((2, 2)), "x_test": np.ones((0, 2))}, "x_test .* is empty"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / "x.npz")
    assert "\n" not in str(caught.value)


# ---- paths ---------------------------------------------------------------------------------------


def test_an_unknown_name_gets_the_nearest_ones():
    with pytest.raises(DataError, match=r"no data called 'Mnits'; did you mean 'mnist'\? known"):
        load("Mnits")
    with pytest.raises(DataError, match="no data called 'zzz'; known names are digits, mnist"):
        load("zzz")


def test_a_missing_file_gets_the_nearest_ones(tmp_path):
    np.save(tmp_path / "Spikes.npy", np.ones((2, 2)))
    with pytest.raises(DataError, match=r"no file .*spike\.npy; did you mean 'Spikes\.npy'\?"):
        load(tmp_path / "spike.npy")
    with pytest.raises(DataError, match=r"no file .*there\.npy; give a \.npz, \.npy, \.csv or"):
        load(tmp_path / "not" / "there.npy")
    with pytest.raises(DataError, match="no data called ''"):
        load("")
    with pytest.raises(DataError, match="no file"):
        load("x" * 5000 + ".npy")


@pytest.mark.parametrize("name", ["nowhere", "nowhere.npz", ".", "x.toml"])
def test_what_else_is_taken_is_said(name, tmp_path):
    (tmp_path / "x.toml").touch()
    with pytest.raises(DataError, match=r"folders .*\.h5 and \.zarr are taken by .*data\.stream"):
        load(str(tmp_path / name))


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["model.pkl", "model.pt", "table.xlsx", "noending"])
def test_an_unsupported_ending_lists_the_supported_ones(name, tmp_path):
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match=r"give a \.npz, \.npy, \.csv or \.parquet file"):
        load(tmp_path / name)
    assert not Path("exploded").exists()


def test_endings_may_be_capitals_and_home_is_expanded(tmp_path, monkeypatch):
    with open(tmp_path / "X.NPY", "wb") as file:
        np.save(file, np.ones((2, 2)))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("~/X.NPY").name == "X"


def test_a_path_is_never_a_name(tmp_path):
    with pytest.raises(DataError, match="no data called 'digits'"):
        load(Path("digits"))


# ---- tables --------------------------------------------------------------------------------------


@pytest.fixture
def pd():
    pytest.importorskip("pyarrow", reason="needs freenergy[tables]")
    return pytest.importorskip("pandas", reason="needs freenergy[tables]")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables_hold_numbers_of_any_type(ending, pd, tmp_path):
    frame = pd.DataFrame({"a": [0.5, 1.5], "b": [1, 300], "c": [True, False], "d": [2, None]})
    frame["d"] = frame["d"].astype("Int64")
    path = tmp_path / f"x.{ending}"
    frame.to_csv(path, index=False) if ending == "csv" else frame.to_parquet(path)
    loaded = load(path)
    np.testing.assert_array_equal(loaded.x_train, [[0.5, 1, 1, 2], [1.5, 300, 0, np.nan]])
    assert loaded.image_shape is None


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_columns_that_are_not_numeric_are_named(ending, pd, tmp_path):
    frame = pd.DataFrame({"a": [1, 2], "city": ["x", "y"], "day": ["2020-01-01", "2020-01-02"]})
    if ending == "parquet":
        frame["day"] = pd.to_datetime(frame["day"])
    path = tmp_path / f"x.{ending}"
    frame.to_csv(path, index=False) if ending == "csv" else frame.to_parquet(path)
    with pytest.raises(DataError, match=r"not numeric; encode or drop them: city, day$"):
        load(path)


def test_a_table_of_uint8_is_scaled_like_an_array(pd, rng, tmp_path):
    x = images(rng, 3, (4,))
    pd.DataFrame(x, columns=list("abcd")).to_parquet(tmp_path / "x.parquet")
    np.save(tmp_path / "x.npy", x)
    assert load(tmp_path / "x.parquet").fingerprint == load(tmp_path / "x.npy").fingerprint


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a,b\n1,2\n3,4\n", 2),
        ("1,2\n3,4\n", 2),
        ("0,1\n3,4\n", 2),  # data, since two numbers count nothing
        ("1,,2\n3,4,5\n", 2),
        ("0,1,2\n3,4,5\n", 1),  # how pandas writes columns without names
        ("label,0,1\n3,4,5\n", 1),
        ("\ufeffa,b\n1,2\n", 1),
    ],
)
def test_a_csv_file_may_lack_its_header(text, rows, pd, tmp_path):
    (tmp_path / "x.csv").write_text(text, encoding="utf-8")
    assert len(load(tmp_path / "x.csv").x_train) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2,\n3,4,5\n", "Length of header"),
        ("", "cannot read .*x.csv"),
        ("a,b\n", "is empty"),
        ("a,b\n1,2\n1,2,3,4\n", "cannot read .*x.csv"),
        ("a,b\n1,2,3\n4,5,6\n", "Length of header .* does not match length of data"),
        (",a,b\n0,1,2\n", "first column without a name"),
        (",0,1,2\n0,1,2,3\n", "first column without a name"),
        ("a;b\n1;2\n", "not numeric; .* a;b"),
    ],
)
def test_a_csv_file_that_would_be_misread_is_refused(text, message, pd, tmp_path):
    (tmp_path / "x.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load(tmp_path / "x.csv")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_without_pandas_the_extra_is_named(ending, tmp_path, monkeypatch):
    (tmp_path / f"x.{ending}").write_text("a,b\n1,2\n")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(DataError, match=r"pip install freenergy\[tables\]"):
        load(tmp_path / f"x.{ending}")


# ---- the folder and OpenML -----------------------------------------------------------------------


def test_the_folder_comes_before_openml(rng, tmp_path, monkeypatch):
    x = images(rng, 4, (28, 28))
    np.savez(tmp_path / "fashion-mnist.npz", x_train=x, y_train=np.arange(4), x_test=x[:1])
    monkeypatch.setenv("FREENERGY_DATA", str(tmp_path))
    loaded = load("Fashion_MNIST")
    assert (loaded.name, loaded.image_shape) == ("fashion-mnist", (28, 28))
    np.testing.assert_allclose(loaded.x_train, x.reshape(4, 784) / 255, rtol=1e-6)


def test_the_whole_cifar10_comes_before_the_small_one(rng, tmp_path, monkeypatch):
    monkeypatch.setenv("FREENERGY_DATA", str(tmp_path))
    np.savez(tmp_path / "cifar10_10k.npz", x_train=images(rng, 2, (3, 32, 32)))
    assert load("cifar10").x_train.shape == (2, 3072)
    np.savez(tmp_path / "cifar10.npz", x_train=images(rng, 3, (3, 32, 32)))
    assert load("cifar10").x_train.shape == (3, 3072)
    assert load("cifar10").image_shape == (3, 32, 32)


def test_flat_images_get_the_shape_of_their_name(rng, tmp_path, monkeypatch):
    monkeypatch.setenv("FREENERGY_DATA", str(tmp_path))
    np.savez(tmp_path / "mnist.npz", x_train=images(rng, 2, (784,)))
    assert load("mnist").image_shape == (28, 28)
    np.savez(tmp_path / "mnist.npz", x_train=images(rng, 2, (10, 10)))
    with pytest.raises(DataError, match="has 100 features per row instead of 784"):
        load("mnist")


def test_a_wrong_folder_does_not_start_a_download(tmp_path, monkeypatch):
    monkeypatch.setenv("FREENERGY_DATA", str(tmp_path / "typo"))
    with pytest.raises(DataError, match="FREENERGY_DATA names no folder"):
        load("mnist")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_without_folder_and_network_the_error_says_what_to_do(name):
    with pytest.raises(DataError, match=rf"cannot fetch '{name}' .*FREENERGY_DATA .* {name}\.npz"):
        load(name)


def test_openml_gives_the_same_dataset_as_the_folder(rng, tmp_path, monkeypatch):
    known = datasets._Images(("mnist.npz",), "mnist_784", n_train=7, n_test=3, image_shape=(28, 28))
    monkeypatch.setitem(datasets._IMAGES, "mnist", known)
    x, y = images(rng, 10, (28, 28)), np.arange(10)
    np.savez(tmp_path / "mnist.npz", x_train=x[:7], y_train=y[:7], x_test=x[7:], y_test=y[7:])

    def fetch(name, **options):
        assert name == "mnist_784"
        assert options["return_X_y"]
        return x.reshape(10, 784).astype(np.int64), y.astype(str).astype(object)

    monkeypatch.setattr(datasets, "fetch_openml", fetch)
    from_openml = load("mnist")
    monkeypatch.setenv("FREENERGY_DATA", str(tmp_path))
    assert load("mnist").fingerprint == from_openml.fingerprint
    assert from_openml.y_test.tolist() == [7, 8, 9]


def test_an_openml_copy_cut_short_is_refused(monkeypatch):
    monkeypatch.setattr(
        datasets, "fetch_openml", lambda *args, **kwargs: (np.zeros((5, 784)), np.zeros(5))
    )
    with pytest.raises(DataError, match="has 5 rows instead of 70000"):
        load("mnist")


# ---- the real sets, where they are --------------------------------------------------------------

FOLDER = Path(
    os.environ.get("FREENERGY_DATA") or Path(__file__).parents[3] / "shared" / "data"
).absolute()


@pytest.mark.parametrize(
    ("name", "file", "n_features", "mean"),
    [
        ("mnist", "mnist.npz", 784, 0.1307),
        ("fashion-mnist", "fashion-mnist.npz", 784, 0.2860),
        ("cifar10", "cifar10_10k.npz", 3072, 0.4734),
    ],
)
def test_real_images(name, file, n_features, mean, monkeypatch):
    if not (FOLDER / file).is_file():
        pytest.skip(f"no {file}: set FREENERGY_DATA to a folder that holds it")
    monkeypatch.setenv("FREENERGY_DATA", str(FOLDER))
    loaded = load(name)
    assert loaded.x_train.shape[1] == loaded.x_test.shape[1] == n_features
    assert (loaded.x_train.min(), loaded.x_train.max()) == (0, 1)
    assert loaded.x_train.mean(dtype=np.float64) == pytest.approx(mean, abs=0.01)
    assert set(loaded.y_train) == set(loaded.y_test) == set(range(10))

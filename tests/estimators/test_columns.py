"""Dataframes with categories and gaps: what the net sees of them, in fit, in predict, in files."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils.estimator_checks import parametrize_with_checks

import freenergy as fe
from freenergy.estimators.columns import ColumnEncoder, read_table

pd = pytest.importorskip("pandas")

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

BOTH = pytest.mark.parametrize("make", [fe.MLPClassifier, fe.MLPRegressor])
N = 60


def few(make=fe.MLPClassifier, **options):
    given = {"hidden_layer_sizes": (6,), "batch_size": 20, "max_iter": 5, "random_state": 0}
    return make(**(given | options))


def people(n=N, seed=0):
    """Four columns of which two have gaps; the target needs the city and the age."""
    random = np.random.default_rng(seed)
    city = random.choice(["Paris", "Rome", "Wien"], n).astype(object)
    city[::7] = None
    age = random.normal(size=n)
    age[::5] = np.nan
    frame = pd.DataFrame(
        {
            "city": city,
            "age": age,
            "height": random.normal(size=n),
            "smokes": pd.Series(random.choice(["yes", "no"], n), dtype="category"),
        }
    )
    return frame, ((frame["city"] == "Rome") ^ (frame["height"] > 0)).to_numpy().astype(int)


FRAME, TARGET = people()
COMPLETE = FRAME.assign(age=FRAME["age"].fillna(0.0))
ENCODED = [
    "age",
    "height",
    "missingindicator_age",
    "city_Paris",
    "city_Rome",
    "city_Wien",
    "city_None",
    "smokes_no",
    "smokes_yes",
]


def parameters(model):
    return [p.detach().numpy().copy() for p in model.model_.parameters()]


def assert_same_bits(one, other):
    for a, b in zip(parameters(one), parameters(other), strict=True):
        np.testing.assert_array_equal(a, b)


# ---- what the net sees ---------------------------------------------------------------------------


@BOTH
def test_a_dataframe_is_encoded_as_scikit_learns_transformers_encode_it(make):
    model = few(make, missing="impute").fit(FRAME, TARGET)
    assert model.encoded_feature_names_ == ENCODED
    assert model.n_features_in_ == 4
    assert model.feature_names_in_.tolist() == list(FRAME)
    numbers = make_column_transformer(
        (SimpleImputer(add_indicator=True), ["age", "height"]),
        (OneHotEncoder(sparse_output=False), ["city", "smokes"]),
    ).fit_transform(FRAME)
    plain = few(make).fit(numbers, TARGET)
    np.testing.assert_allclose(model.predict(FRAME), plain.predict(numbers), rtol=1e-12)
    for ours, theirs in zip(parameters(model), parameters(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-13)


@BOTH
def test_plain_numbers_stay_what_they_are(make):
    numbers = COMPLETE[["age", "height"]]
    framed = few(make).fit(numbers, TARGET)
    with pytest.warns(UserWarning, match="valid feature names"):
        np.testing.assert_array_equal(framed.predict(numbers.to_numpy()), framed.predict(numbers))
    assert_same_bits(framed, few(make).fit(numbers.to_numpy(), TARGET))
    assert framed.encoded_feature_names_ == ["age", "height"]
    assert few(make).fit(numbers.to_numpy(), TARGET).encoded_feature_names_ == ["x0", "x1"]


@pytest.mark.parametrize(
    ("values", "categorical"),
    [
        (pd.Series(["a", "b"] * 30), True),
        (pd.Series(["a", "b"] * 30, dtype=object), True),
        (pd.Series(["a", None] * 30, dtype="category"), True),
        (pd.Series([1, 2] * 30, dtype="category"), True),
        (pd.Series([True, None] * 30, dtype="boolean"), True),
        (pd.Series([True, None] * 30, dtype=object), True),
        (pd.Series([True, False] * 30), False),
        (pd.Series([True, False] * 30, dtype=object), False),
        (pd.Series([1, 2] * 30, dtype="Int64"), False),
        (pd.Series([1, 2] * 30, dtype=object), False),
        (pd.Series([1.5, None] * 30, dtype=object), False),
        (pd.Series([1.5, pd.NA] * 30, dtype="Float64"), False),
    ],
    ids=str,
)
def test_types_tell_categories_from_numbers(values, categorical):
    frame = pd.DataFrame({"x": values, "height": COMPLETE["height"]})
    model = few(missing="impute").fit(frame, TARGET)
    names = model.encoded_feature_names_
    assert (("x" in names), names[0] == "height") == (not categorical, categorical)
    assert np.isfinite(model.predict_proba(frame)).all()


def test_booleans_without_gaps_are_zeros_and_ones_as_in_scikit_learn():
    frame = pd.DataFrame({"x": [True, False] * 30, "height": COMPLETE["height"]})
    assert few().fit(frame, TARGET).encoded_feature_names_ == ["x", "height"]
    assert_same_bits(few().fit(frame, TARGET), few().fit(frame.to_numpy(float), TARGET))


@pytest.mark.parametrize(
    "asked",
    [["city", "smokes"], [0, 3], [-4, -1], [True, False, False, True], "from_dtype", ["city"], []],
)
def test_columns_are_named_by_name_place_or_mask(asked):
    model = few(categorical_features=asked, missing="impute").fit(FRAME, TARGET)
    assert model.encoded_feature_names_ == ENCODED


@BOTH
@pytest.mark.parametrize("asked", [["visits"], [4], [-1], [False, False, False, False, True]])
def test_what_is_named_comes_beside_what_the_types_say(make, asked, tmp_path):
    frame = FRAME.assign(visits=np.arange(N) % 3)
    model = few(make, categorical_features=asked, missing="impute").fit(frame, TARGET)
    assert model.encoded_feature_names_ == [*ENCODED, "visits_0", "visits_1", "visits_2"]
    model.partial_fit(frame, TARGET)
    model.save(tmp_path / "net.safetensors")
    again = make.load(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(again.predict(frame), model.predict(frame))
    # In other rows the strings may be missing, so that their types say nothing.
    gaps = frame.assign(city=np.nan)
    again.partial_fit(gaps, TARGET)
    assert again.encoded_feature_names_ == model.encoded_feature_names_


@BOTH
def test_the_columns_that_the_net_sees_are_given_out(make):
    model = few(make, missing="impute").fit(FRAME, TARGET)
    numbers = model.encode_columns(FRAME)
    assert numbers.shape == (N, len(model.encoded_feature_names_))
    with torch.no_grad():
        outputs = model.model_(torch.from_numpy(numbers)).numpy()
    np.testing.assert_allclose(outputs, model._outputs(FRAME), rtol=1e-12)
    city = numbers[:, model.encoded_feature_names_.index("city_Rome")]
    np.testing.assert_array_equal(city, FRAME["city"] == "Rome")
    with pytest.raises(ValueError, match="feature names should match"):
        model.encode_columns(FRAME[["age", "city"]])
    bare = few(make).fit(COMPLETE[["height"]].to_numpy(), TARGET)
    np.testing.assert_array_equal(
        bare.encode_columns(COMPLETE[["height"]].to_numpy()), COMPLETE[["height"]]
    )


@pytest.mark.parametrize("make", [fe.MLPClassifier, fe.MLPRegressor, fe.RBMClassifier])
@pytest.mark.parametrize(
    ("values", "words"),
    [
        (pd.date_range("2024-01-01", periods=N), "dates .* days since the first one"),
        (pd.date_range("2024-01-01", periods=N, tz="UTC"), "dates .*datetime64.*UTC"),
        (pd.date_range("2024-01-01", periods=N).date, "dates"),
        (pd.timedelta_range(0, periods=N, freq="h"), "times .* their seconds or days"),
        (pd.period_range("2024-01", periods=N, freq="M"), "dates .*period"),
    ],
    ids=["dates", "zoned", "objects", "spans", "periods"],
)
def test_columns_of_dates_are_refused_by_name(make, values, words):
    frame = COMPLETE[["height", "age"]].abs().clip(upper=1.0)
    with_dates = frame.assign(since=values)
    model = make(random_state=0)
    with pytest.raises(ValueError, match=f"column 'since' holds {words}"):
        model.fit(with_dates, TARGET)
    fitted = few().fit(frame.assign(since=range(N)), TARGET)
    with pytest.raises(ValueError, match="column 'since' holds"):
        fitted.predict(with_dates)
    table = few().fit(COMPLETE[["city"]].assign(since=range(N)), TARGET)
    with pytest.raises(ValueError, match="column 'since' holds"):
        table.predict(COMPLETE[["city"]].assign(since=values))


@pytest.mark.parametrize("make", [fe.MLPClassifier, fe.MLPRegressor, fe.RBMClassifier])
@pytest.mark.parametrize(
    "gap", [lambda y: y.astype(float), lambda y: y.astype(object), pd.Series, list], ids=range(4)
)
def test_missing_targets_are_told_with_their_row(make, gap):
    targets = gap(TARGET)
    if isinstance(targets, pd.Series):
        targets = targets.astype("Int64")
        targets[7] = targets[9] = pd.NA
    else:
        numbers = isinstance(targets, np.ndarray) and targets.dtype.kind == "f"
        targets[7] = targets[9] = np.nan if numbers else None
    rows = COMPLETE[["height", "age"]].abs().clip(upper=1.0)
    with pytest.raises(ValueError, match="y has missing values, 2 in all, the first in row 7"):
        make(random_state=0).fit(rows, targets)


def test_numbers_can_be_categories():
    codes = np.c_[np.arange(N) % 3, np.linspace(-1, 1, N)]
    model = few(categorical_features=[0]).fit(codes, TARGET)
    assert model.encoded_feature_names_ == ["x1", "x0_0.0", "x0_1.0", "x0_2.0"]
    frame = pd.DataFrame({"a": codes[:, 0].astype(int), "b": codes[:, 1]})
    assert_same_bits(few(categorical_features=["a"]).fit(frame, TARGET), model)


def test_without_categorical_features_strings_are_refused_as_scikit_learn_does():
    with pytest.raises(ValueError, match="could not convert string to float"):
        few(categorical_features=None).fit(
            FRAME[["city"]].dropna(), TARGET[: FRAME["city"].count()]
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"categorical_features": ["town"]}, "'town', which is no column of X"),
        ({"categorical_features": [7]}, "7, which is no position among 4 columns"),
        ({"categorical_features": [True]}, "one boolean for each of 4 columns, got 1"),
        ({"categorical_features": "all"}, "categorical_features must be 'from_dtype'"),
        ({"missing": "drop"}, "missing must be one of"),
    ],
)
def test_impossible_parameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        few(**options).fit(FRAME, TARGET)


def test_a_column_of_mixed_or_strange_values_is_named():
    for values in (["a", 1] * 30, [(1,), (2,)] * 30):
        frame = COMPLETE.assign(city=pd.Series(values, dtype=object))
        with pytest.raises(ValueError, match="column 'city' is to hold categories, but has"):
            few(categorical_features=["city", "smokes"]).fit(frame, TARGET)


# ---- gaps ----------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("numeric", [True, False])
def test_missing_numbers_are_refused_by_name_until_asked_for(make, numeric):
    frame = FRAME[["age", "height"]] if numeric else FRAME
    with pytest.raises(ValueError, match=r"NaN in column 'age' .*set missing='impute'"):
        few(make).fit(frame, TARGET)
    model = few(make).fit(COMPLETE[frame.columns], TARGET)
    with pytest.raises(ValueError, match="NaN in column 'age'"):
        model.predict(frame)


def test_numbers_of_numpy_in_a_column_of_objects_are_categories():
    rows = np.empty((6, 2), dtype=object)
    rows[:, 0] = [np.int64(k % 3) for k in range(6)]
    rows[:, 1] = np.arange(6.0)
    found = read_table(rows, (0,), ("kind", "size"))
    assert [type(value) for value in found.categories[:, 0]] == [int] * 6
    lists = np.empty((6, 1), dtype=object)
    lists[:, 0] = [[k] for k in range(6)]
    with pytest.raises(ValueError, match=r"column 'kind' .* neither strings nor numbers"):
        read_table(lists, (0,), ("kind",))


@pytest.mark.parametrize("missing", ["error", "impute"])
def test_infinities_are_always_refused_by_name(missing):
    frame = COMPLETE.copy()
    frame.loc[3, "height"] = -np.inf
    with pytest.raises(ValueError, match=r"infinity in column 'height' .*first in row 3"):
        few(missing=missing).fit(frame, TARGET)


def test_a_gap_in_a_column_that_had_none_becomes_its_mean():
    model = few(missing="impute").fit(COMPLETE, TARGET)
    assert not any(name.startswith("missing") for name in model.encoded_feature_names_)
    gap, mean = COMPLETE.copy(), COMPLETE.copy()
    gap["height"] = np.nan
    mean["height"] = COMPLETE["height"].mean()
    np.testing.assert_allclose(model.predict_proba(gap), model.predict_proba(mean), rtol=1e-12)


def test_a_gap_in_a_column_that_had_some_is_told_to_the_net():
    model = few(missing="impute", max_iter=50).fit(FRAME, TARGET)
    gap = FRAME.assign(age=np.nan)
    mean = FRAME.assign(age=FRAME["age"].mean())
    assert np.abs(model.predict_proba(gap) - model.predict_proba(mean)).max() > 1e-3


def test_a_category_that_was_not_there_becomes_zeros():
    model = few(missing="impute").fit(FRAME.dropna(), TARGET[FRAME.notna().all(axis=1)])
    names = model.encoded_feature_names_
    assert "city_None" not in names
    zeros = np.zeros((1, len(names)))
    zeros[0, : len(["age", "height"])] = [0.5, -0.5]
    zeros[0, names.index("smokes_no")] = 1.0
    expected = model._decode(few_outputs(model, zeros))
    for city in ("Berlin", None, 3):
        row = pd.DataFrame({"city": [city], "age": 0.5, "height": -0.5, "smokes": ["no"]})
        row["city"] = row["city"].astype(object)
        np.testing.assert_array_equal(model.predict(row), expected)
        np.testing.assert_allclose(model._outputs(row), few_outputs(model, zeros))


def few_outputs(model, numbers):
    with torch.no_grad():
        return model.model_(torch.from_numpy(numbers)).numpy()


def test_the_mean_is_that_of_rows_that_count():
    weights = np.arange(N) % 3.0
    model = few(missing="impute").fit(FRAME, TARGET, sample_weight=weights)
    repeated = np.repeat(np.arange(N), weights.astype(int))
    again = few(missing="impute").fit(FRAME.iloc[repeated], TARGET[repeated])
    np.testing.assert_allclose(model._columns.means, again._columns.means, rtol=1e-12)
    assert model._columns.categories == again._columns.categories
    # A category that only a row without weight has was not seen.
    odd = FRAME.copy()
    odd.loc[0, "city"] = "Nowhere"
    assert (
        "city_Nowhere"
        not in few(missing="impute").fit(odd, TARGET, sample_weight=weights).encoded_feature_names_
    )


def test_sparse_rows_keep_their_gaps_and_stay_sparse():
    dense = np.random.default_rng(0).normal(size=(N, 3)) * (np.arange(N * 3).reshape(N, 3) % 2)
    dense[::6, 1] = np.nan
    one, other = (few(missing="impute").fit(X, TARGET) for X in (dense, sp.csr_array(dense)))
    np.testing.assert_allclose(one._columns.means, other._columns.means, rtol=1e-12)
    assert one.encoded_feature_names_ == other.encoded_feature_names_
    np.testing.assert_allclose(
        one.predict_proba(dense), other.predict_proba(sp.csr_array(dense)), rtol=1e-9
    )
    assert sp.issparse(other._validated(sp.csr_array(dense), reset=False))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_precision_is_that_of_the_numbers(dtype):
    frame = FRAME.astype({"age": dtype, "height": dtype})
    model = few(missing="impute").fit(frame, TARGET)
    assert model.predict_proba(frame).dtype == dtype
    assert parameters(model)[0].dtype == dtype


# ---- columns that say nothing --------------------------------------------------------------------


def test_constant_and_empty_columns_are_told_and_survived():
    frame = FRAME.assign(land="AT", empty=np.nan, one=1.0)
    with pytest.warns(UserWarning, match="columns of X") as told:
        model = few(missing="impute").fit(frame, TARGET)
    messages = "; ".join(str(w.message) for w in told)
    assert "have one value only: 'land', 'one'" in messages
    assert "have no number at all, and 0 is taken: 'empty'" in messages
    assert np.isfinite(model.predict_proba(frame.assign(empty=3.0))).all()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "columns of X")
        few(missing="impute").fit(FRAME, TARGET)


def test_a_frame_of_categories_alone_and_of_no_rows():
    model = few().fit(FRAME[["city", "smokes"]], TARGET)
    assert model.encoded_feature_names_ == [n for n in ENCODED if "_" in n and "miss" not in n]
    with pytest.raises(ValueError, match="0 sample"):
        few().fit(FRAME[["city", "smokes"]].iloc[:0], TARGET[:0])


# ---- rows held out -------------------------------------------------------------------------------


STOPPING = {"missing": "impute", "early_stopping": True, "validation_fraction": 0.3}


def places(make, target):
    """Which rows are learned from, and which are held out."""
    numbers = np.arange(len(target), dtype=float)[:, None]
    found = few(make, **STOPPING)._checked(numbers, target, None, True)
    return found.kept.numpy(), found.watched.numpy()


@BOTH
def test_means_and_categories_are_learned_without_the_rows_held_out(make):
    kept, watched = places(make, TARGET)
    assert sorted([*kept, *watched]) == list(range(N))
    frame = FRAME.copy()
    # Only the rows held out have this city, a gap in this column, and numbers as large as these.
    frame.loc[watched[:3], "city"] = "Nowhere"
    frame.loc[watched[0], "height"] = np.nan
    frame.loc[watched[1:], "height"] += 1e6
    weights = np.linspace(0.5, 2.0, N)
    model = few(make, **STOPPING).fit(frame, TARGET, sample_weight=weights)
    alone = few(make, missing="impute").fit(
        frame.iloc[kept], TARGET[kept], sample_weight=weights[kept]
    )
    assert model._columns == alone._columns
    assert "city_Nowhere" not in model.encoded_feature_names_
    assert "missingindicator_height" not in model.encoded_feature_names_
    # They are judged as rows are at prediction.
    once = few(make, **STOPPING, max_iter=1).fit(frame, TARGET, sample_weight=weights)
    expected = once.score(frame.iloc[watched], TARGET[watched], weights[watched])
    assert once.validation_scores_ == pytest.approx([expected], rel=1e-12)


@BOTH
def test_what_is_learned_does_not_depend_on_the_numbers_of_rows_held_out(make):
    _, watched = places(make, TARGET)
    other = FRAME.copy()
    other.loc[watched, "age"] = np.where(other.loc[watched, "age"].isna(), 7.0, 1e3)
    one, two = (few(make, **STOPPING, max_iter=1).fit(X, TARGET) for X in (FRAME, other))
    assert one._columns == two._columns
    assert one.loss_curve_ == two.loss_curve_


# ---- the encoder is fixed at the first call ------------------------------------------------------


def test_partial_fit_keeps_the_first_encoder():
    model = few(missing="impute").partial_fit(FRAME, TARGET, classes=[0, 1])
    before = model._columns
    other = FRAME.assign(city="Berlin", height=np.nan, age=100.0)
    model.partial_fit(other, TARGET)
    assert model._columns is before
    assert model.encoded_feature_names_ == ENCODED
    twice = few(missing="impute", max_iter=2, batch_size=20).fit(FRAME, TARGET)
    again = few(missing="impute").partial_fit(FRAME, TARGET, classes=[0, 1])
    assert_same_bits(again.partial_fit(FRAME, TARGET), twice)


def test_a_warm_start_keeps_the_first_encoder_and_a_new_fit_does_not():
    model = few(missing="impute", warm_start=True).fit(FRAME, TARGET)
    model.fit(FRAME.assign(city="Rome"), TARGET)
    assert model.encoded_feature_names_ == ENCODED
    numbers = COMPLETE[["height"]]
    assert model.set_params(warm_start=False).fit(numbers, TARGET).encoded_feature_names_ == [
        "height"
    ]
    assert model.n_features_in_ == 1


@pytest.mark.parametrize(
    "change",
    [
        {"missing": "error"},
        {"categorical_features": ["height"]},
        {"categorical_features": None},
    ],
)
def test_what_columns_mean_cannot_change_on_the_way(change):
    model = few(missing="impute", categorical_features=["city", "smokes"]).fit(FRAME, TARGET)
    with pytest.raises(ValueError, match=f"{next(iter(change))} changed since training started"):
        model.set_params(**change).partial_fit(FRAME, TARGET)
    with pytest.raises(ValueError, match="missing changed since training started"):
        few().fit(COMPLETE, TARGET).set_params(missing="impute").partial_fit(FRAME, TARGET)


def test_other_columns_are_refused_as_scikit_learn_does():
    model = few(missing="impute").fit(FRAME, TARGET)
    with pytest.raises(ValueError, match="feature names should match those"):
        model.predict(FRAME.rename(columns={"city": "town"}))
    with pytest.raises(ValueError, match="feature names should match those"):
        model.predict(FRAME[["age", "city", "height", "smokes"]])
    with pytest.raises(ValueError, match="feature names should match those"):
        model.predict(FRAME[["city", "age"]])
    with (
        pytest.raises(ValueError, match="has 3 features, but MLPClassifier is expecting 4"),
        pytest.warns(UserWarning, match="valid feature names"),
    ):
        model.predict(FRAME.to_numpy()[:, :3])
    with pytest.warns(UserWarning, match="valid feature names"):
        bare = model.predict_proba(FRAME.to_numpy())
    np.testing.assert_array_equal(bare, model.predict_proba(FRAME))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.fit(FRAME, TARGET[:-1])


def test_a_failed_fit_leaves_the_encoder():
    model = few(missing="impute").fit(FRAME, TARGET)
    with pytest.raises(ValueError, match="NaN in column 'age'"):
        model.set_params(missing="error").fit(FRAME, TARGET)
    assert model.encoded_feature_names_ == ENCODED
    assert model.predict(FRAME).shape == (N,)


# ---- files, copies, searches ---------------------------------------------------------------------


@BOTH
def test_a_file_keeps_the_encoder(make, tmp_path):
    model = few(make, missing="impute", categorical_features=["city", "smokes"])
    model.fit(FRAME, TARGET).save(tmp_path / "net.safetensors")
    loaded = make.load(tmp_path / "net.safetensors")
    unseen, _ = people(40, seed=1)
    unseen.loc[3, ["city", "height"]] = ["Berlin", np.nan]
    for other in (loaded, pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other.predict(unseen), model.predict(unseen))
        assert other.encoded_feature_names_ == ENCODED
        assert other.n_features_in_ == 4
    for each in (model, loaded):
        each.partial_fit(FRAME, TARGET)
    assert_same_bits(loaded, model)


def test_the_encoder_is_rebuilt_from_plain_values_to_the_bit():
    random = np.random.default_rng(0)
    numbers = random.normal(size=(50, 4)) * 10.0 ** np.array([-300, -5, 5, 300])
    numbers[random.random(numbers.shape) < 0.2] = np.nan
    table = read_table(numbers, (), list("abcd"))
    encoder = ColumnEncoder.learn(table, list("abcd"), (), impute=True)
    again = ColumnEncoder.from_dict(encoder.to_dict())
    assert again == encoder
    np.testing.assert_array_equal(again.encode(table), encoder.encode(table))
    filled = np.where(np.isnan(numbers), np.nanmean(numbers, axis=0), numbers)
    np.testing.assert_allclose(encoder.encode(table)[:, :4], filled, rtol=1e-14)
    np.testing.assert_array_equal(encoder.encode(table)[:, 4:], np.isnan(numbers))


def test_it_works_in_searches_and_pipelines():
    search = GridSearchCV(
        few(missing="impute", max_iter=20), {"hidden_layer_sizes": [(2,), (20,)]}, cv=2
    ).fit(FRAME, TARGET)
    assert search.predict(FRAME).shape == (N,)
    assert np.isfinite(cross_val_score(make_pipeline(few(missing="impute")), FRAME, TARGET)).all()
    copy = clone(few(categorical_features=["city"], missing="impute"))
    assert (copy.categorical_features, copy.missing) == (["city"], "impute")


def test_a_net_learns_from_categories_and_gaps():
    frame, target = people(400)
    model = few(missing="impute", hidden_layer_sizes=(20,), max_iter=150, learning_rate_init=0.01)
    unseen, truth = people(400, seed=2)
    assert model.fit(frame, target).score(unseen, truth) > 0.95


def test_allow_nan_is_what_the_tags_say():
    assert few(missing="impute").__sklearn_tags__().input_tags.allow_nan
    assert not few().__sklearn_tags__().input_tags.allow_nan


@parametrize_with_checks(
    [
        make(hidden_layer_sizes=(10,), max_iter=60, missing="impute", learning_rate_init=0.01)
        for make in (fe.MLPClassifier, fe.MLPRegressor)
    ]
)
def test_common_checks_with_gaps(estimator, check):
    check(estimator)


def test_frames_of_polars_are_taken_too():
    polars = pytest.importorskip("polars")
    pytest.importorskip("pyarrow")
    frame = polars.DataFrame(
        {name: FRAME[name].astype(object).where(FRAME[name].notna(), None) for name in FRAME}
    )
    ours, theirs = (few(missing="impute").fit(X, TARGET) for X in (frame, FRAME))
    assert_same_bits(ours, theirs)
    assert ours.encoded_feature_names_ == ENCODED


def test_dates_of_polars_are_refused_by_name_too():
    polars = pytest.importorskip("polars")
    days = np.datetime64("2024-01-01") + np.arange(N)
    frame = polars.DataFrame({"height": FRAME["height"].to_numpy(), "since": days})
    with pytest.raises(ValueError, match="column 'since' holds dates"):
        few().fit(frame, TARGET)
    spans = frame.with_columns(polars.col("since") - polars.col("since").min())
    with pytest.raises(ValueError, match="column 'since' holds times"):
        few().fit(spans, TARGET)

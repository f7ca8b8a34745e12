"""Nets as ONNX files predict what the estimators predict."""

from __future__ import annotations

import itertools
import json
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris

import freenergy as fe
from freenergy.estimators.export import PredictionNet
from freenergy.models.mlp import ACTIVATIONS, NORMALIZATIONS

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

IRIS, KINDS = load_iris(return_X_y=True)
TARGETS = {
    "multiclass": KINDS,
    "binary": np.array(["other", "setosa"])[(KINDS == 0).astype(int)],
    "multilabel": np.c_[KINDS > 0, KINDS > 1, KINDS == 1].astype(int),
}
COMBINATIONS = [
    (a, n) for a, n in itertools.product(ACTIVATIONS, NORMALIZATIONS) if n != "self" or a == "selu"
]


def few(make=fe.MLPClassifier, **options):
    given = {"hidden_layer_sizes": (8, 6), "batch_size": 50, "max_iter": 20, "random_state": 0}
    return make(**(given | options))


@pytest.fixture
def evaluated(tmp_path):
    """``evaluated(model, rows)``: metadata and outputs of the model's file for rows."""
    reference = pytest.importorskip(
        "onnx.reference", reason="needs onnx: pip install freenergy[onnx]"
    )
    pytest.importorskip("onnxscript", reason="needs onnxscript: pip install freenergy[onnx]")
    import onnx

    def evaluated(model, rows):
        model.to_onnx(tmp_path / "net.onnx")
        stored = onnx.load(tmp_path / "net.onnx")
        run = reference.ReferenceEvaluator(stored)
        outputs = dict(zip(run.output_names, run.run(None, {"rows": rows}), strict=True))
        assert "encode_columns(X)" in stored.doc_string
        return {p.key: p.value for p in stored.metadata_props}, outputs, run

    return evaluated


# ---- what is written, without the format ---------------------------------------------------------


@pytest.mark.parametrize(("activation", "normalization"), COMBINATIONS)
def test_the_net_that_is_written_predicts_what_the_estimator_predicts(activation, normalization):
    dropout = {"dropout": 0.1, "max_iter": 5}
    options = dropout | {"activation": activation, "normalization": normalization}
    for kind, y in TARGETS.items():
        clf = few(**options).fit(IRIS, y)
        net = PredictionNet(clf.model_, kind)
        probabilities, labels = (t.detach().numpy() for t in net(torch.tensor(IRIS).float()))
        np.testing.assert_allclose(probabilities, clf.predict_proba(IRIS), atol=1e-5)
        predicted = labels if kind == "multilabel" else clf.classes_[labels]
        np.testing.assert_array_equal(predicted, clf.predict(IRIS))
    model = few(fe.MLPRegressor, **options).fit(IRIS, KINDS)
    (found,) = PredictionNet(model.model_, "identity")(torch.tensor(IRIS).float())
    np.testing.assert_allclose(found.detach().numpy()[:, 0], model.predict(IRIS), atol=1e-5)


def test_the_estimators_own_net_stays_as_it_was():
    clf = few(normalization="ghost_batch").fit(IRIS, KINDS)
    before = {name: t.clone() for name, t in clf.model_.state_dict().items()}
    with torch.no_grad():
        for p in PredictionNet(clf.model_, "multiclass").parameters():
            p.zero_()
    for name, tensor in clf.model_.state_dict().items():
        assert torch.equal(tensor, before[name])


# ---- the format ----------------------------------------------------------------------------------


# Every one of both in one combination at least; the others where there is time.
QUICK = {("selu", n) for n in ("self", "batch")} | {
    *zip(("relu", "elu", "tanh"), ("ghost_batch", "max_norm", None), strict=True),
    *zip(("sigmoid", "leaky_relu", "identity", "logistic"), itertools.repeat(None), strict=False),
}


@pytest.mark.parametrize(
    ("activation", "normalization"),
    [pytest.param(*c, marks=() if c in QUICK else pytest.mark.slow) for c in COMBINATIONS],
)
def test_probabilities_and_labels_of_any_number_of_rows(activation, normalization, evaluated):
    clf = few(activation=activation, normalization=normalization, dropout=0.1).fit(IRIS, KINDS)
    rows = IRIS.astype(np.float32)
    metadata, found, run = evaluated(clf, rows)
    np.testing.assert_allclose(found["probabilities"], clf.predict_proba(IRIS), atol=1e-5)
    np.testing.assert_array_equal(clf.classes_[found["label"]], clf.predict(IRIS))
    assert json.loads(metadata["classes"]) == [0, 1, 2]
    for n in (1, 2, 7):
        probabilities, labels = run.run(None, {"rows": rows[:n]})
        np.testing.assert_allclose(probabilities, clf.predict_proba(IRIS[:n]), atol=1e-5)
        assert labels.shape == (n,)


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_logistic_outputs(kind, evaluated):
    clf = few().fit(IRIS, TARGETS[kind])
    metadata, found, _ = evaluated(clf, IRIS.astype(np.float32))
    np.testing.assert_allclose(found["probabilities"], clf.predict_proba(IRIS), atol=1e-5)
    classes = np.array(json.loads(metadata["classes"]))
    labels = found["label"] if kind == "multilabel" else classes[found["label"]]
    np.testing.assert_array_equal(labels, clf.predict(IRIS))


@pytest.mark.parametrize(("loss", "n_outputs"), [("squared_error", 1), ("poisson", 2)])
def test_predictions_of_numbers(loss, n_outputs, evaluated):
    y = np.c_[KINDS, KINDS**2][:, :n_outputs]
    model = few(fe.MLPRegressor, loss=loss, solver="lbfgs").fit(IRIS, y.squeeze())
    _, found, _ = evaluated(model, IRIS.astype(np.float32))
    assert found["prediction"].shape == (150, n_outputs)
    expected = model.predict(IRIS).reshape(150, -1)
    np.testing.assert_allclose(found["prediction"], expected, rtol=1e-5, atol=1e-5)


def test_saturated_fields_stay_finite(evaluated):
    clf = few(activation="relu").fit(IRIS, KINDS)
    rows = np.concatenate([IRIS * 1e4, IRIS * -1e4]).astype(np.float32)
    _, found, _ = evaluated(clf, rows)
    assert np.isfinite(found["probabilities"]).all()
    np.testing.assert_allclose(found["probabilities"], clf.predict_proba(rows), atol=1e-5)


def test_columns_of_a_table_are_encoded_before(evaluated):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"width": IRIS[:, 1], "kind": np.array(["a", "b", None] * 50)})
    frame.loc[::9, "width"] = np.nan
    clf = few(missing="impute").fit(frame, KINDS)
    metadata, found, _ = evaluated(clf, clf.encode_columns(frame).astype(np.float32))
    assert json.loads(metadata["feature_names"]) == clf.encoded_feature_names_
    np.testing.assert_allclose(found["probabilities"], clf.predict_proba(frame), atol=1e-5)


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named_with_the_way_to_it(package, tmp_path, monkeypatch):
    if package == "onnxscript":
        pytest.importorskip("onnx", reason="needs onnx: pip install freenergy[onnx]")
    monkeypatch.setitem(sys.modules, package, None)
    clf = few(max_iter=1).fit(IRIS, KINDS)
    with pytest.raises(ImportError, match=rf"needs {package}.* pip install freenergy\[onnx\]"):
        clf.to_onnx(tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_one_class_alone_is_refused(tmp_path):
    clf = few(max_iter=1).fit(IRIS, np.zeros(150, dtype=int))
    with pytest.raises(ValueError, match="one class only, 0"):
        clf.to_onnx(tmp_path / "net.onnx")

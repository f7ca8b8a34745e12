"""What can be typed for a model: values by their kind, names by their spelling."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import BaseEstimator

import freenergy as fe
from freenergy.studies.estimator_models import MODELS, parsed, written

# Words such as "inf" and "1e5" are numbers, "none" and "true" have a meaning.
WORDS = st.from_regex(r"\A[b-hj-mo-su-z][a-z_]{0,8}\Z").filter(lambda word: word != "false")
ONE = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), WORDS)


@given(st.one_of(ONE, st.lists(ONE, min_size=2, max_size=4).map(tuple)))
def test_what_is_written_is_read_back_as_it_was(value):
    found = parsed(written(value))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("__import__('os').getcwd()", "__import__('os').getcwd()"),
        ("(3)", (3,)),
        ("(64, 32)", (64, 32)),
        ("()", ()),
        (" 0.5 ", 0.5),
        (".5", 0.5),
        ("-1", -1),
        ("TRUE", True),
        ("1e400", math.inf),
        ("binomial(4)", "binomial(4)"),
        ("cuda:0", "cuda:0"),
        ("0x10", "0x10"),
    ],
)
def test_values_are_read_and_never_executed(text, value):
    assert parsed(text) == value


def test_weights_of_classes_are_pairs():
    assert parsed("0:1,spam:2.5,a:b:3", pairs=True) == {0: 1, "spam": 2.5, "a:b": 3}
    assert parsed("balanced", pairs=True) == "balanced"
    found = MODELS["mlp-classifier"].settings(["class_weight=0:1,1:3"])
    assert found == {"class_weight": {0: 1, 1: 3}}


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_listed_with_its_default_and_a_meaning(name):
    model = MODELS[name]
    rows = model.described()
    assert [row[0] for row in rows] == list(model.parameters)
    for parameter, default, meaning in rows:
        assert meaning, parameter
        assert ":math:" not in meaning
        # The default that is listed can be typed, and is taken over as it is.
        if default != "none":
            assert model.settings([f"{parameter}={default}"]) == {
                parameter: model.parameters[parameter]
            }
    made = model.estimator({})
    assert isinstance(made, BaseEstimator)
    unset = model.kind().get_params(deep=False).keys() - model.parameters.keys()
    assert unset <= {
        *("callback", "checkpoint_dir", "device", "monitors", "random_state", "rbm", "start"),
        *("verbose", "warm_start"),
    }


def test_the_machine_to_unroll_is_the_estimators_own_but_for_what_is_set():
    model = MODELS["unrolled-classifier"]
    made = model.estimator({"rbm__n_iter": 3, "depth": 4})
    assert (made.rbm.n_iter, made.depth) == (3, 4)
    doc = fe.BernoulliRBM(256, learning_rate=0.05, batch_size=20, n_iter=20, centered=True)
    assert model.estimator({}).rbm.get_params() == doc.get_params()


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        ("vae", ["beta"], "--set takes name=value, got 'beta'"),
        ("vae", ["bta=1"], "has no parameter 'bta'; did you mean 'beta'"),
        ("vae", ["zzz=1"], "has no parameter 'zzz'; --help-options lists them"),
        ("vae", ["beta=1", "beta=2"], "--set beta is given twice"),
        ("vae", ["beta=hot"], "--set beta takes a number, got 'hot'"),
        ("vae", ["beta=true"], "--set beta takes a number, got True"),
        ("vae", ["shuffle=1"], "--set shuffle takes true or false, got 1"),
        ("vae", ["activation=relu,tanh"], "--set activation takes one value"),
        ("vae", ["random_state=1"], "random_state has an option of its own: --seed"),
        ("mlp-classifier", ["device=cpu"], "device has an option of its own: --device"),
        ("mlp-classifier", ["callback=print"], "has no parameter 'callback'"),
        ("mlp-classifier", ["checkpoint_dir=/"], "has no parameter 'checkpoint_dir'"),
        ("unrolled-classifier", ["rbm=none"], "has no parameter 'rbm'"),
        ("unrolled-classifier", ["rbm__callback=x"], "has no parameter 'rbm__callback'"),
    ],
)
def test_what_cannot_be_set_is_refused_with_advice(model, given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MODELS[model].settings(given)


def test_one_size_is_a_sequence_of_sizes():
    assert MODELS["vae"].settings(["hidden_layer_sizes=64"]) == {"hidden_layer_sizes": (64,)}
    assert MODELS["vae"].settings(["hidden_layer_sizes="]) == {"hidden_layer_sizes": ()}

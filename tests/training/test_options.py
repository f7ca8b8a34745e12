"""Training options: what is impossible is refused by name, once, before anything starts."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from freenergy.training import TrainingOptions

IMPOSSIBLE = [
    ("method", "CD"),
    ("method", None),
    ("n_epochs", -1),
    ("n_epochs", 1.5),
    ("n_epochs", True),
    ("n_epochs", "ten"),
    ("n_epochs", math.inf),
    ("batch_size", 0),
    ("batch_size", 10.0),
    ("batch_size", None),
    ("learning_rate", 0.0),
    ("learning_rate", -0.1),
    ("learning_rate", math.nan),
    ("learning_rate", math.inf),
    ("learning_rate", "0.1"),
    ("learning_rate", None),
    ("learning_rate_decay", -0.1),
    ("learning_rate_decay", math.inf),
    ("momentum", 1.0),
    ("momentum", -0.1),
    ("momentum", math.nan),
    ("momentum", "high"),
    ("l1", -1e-3),
    ("l2", -1e-3),
    ("l2", math.nan),
    ("n_steps", 0),
    ("n_chains", 0),
    ("n_chains", 2.0),
    ("mean_field_order", 0),
    ("mean_field_order", 4),
    ("mean_field_order", 2.0),
    ("mean_field_order", True),
    ("damping", 1.0),
    ("damping", -0.5),
    ("sparsity_target", 0.0),
    ("sparsity_target", 1.0),
    ("sparsity_target", math.nan),
    ("sparsity_cost", -1.0),
    ("beta", 0.0),
    ("beta", -1.0),
    ("beta", math.inf),
    ("weight_constraint", "l3"),
    ("optimizer", "lion"),
    ("schedule", "linear"),
]


@pytest.mark.parametrize(("name", "value"), IMPOSSIBLE)
def test_an_impossible_option_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} must ") as caught:
        TrainingOptions(**{name: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, "1"])
def test_the_norm_of_a_constraint_is_positive(value):
    with pytest.raises(ValueError, match=r"^max_norm must be"):
        TrainingOptions(weight_constraint="l2", max_norm=value)


def test_a_constraint_and_its_norm_belong_together():
    with pytest.raises(ValueError, match="weight_constraint='l1' needs max_norm"):
        TrainingOptions(weight_constraint="l1")
    with pytest.raises(ValueError, match="max_norm has no effect without weight_constraint"):
        TrainingOptions(max_norm=1.0)
    assert TrainingOptions(weight_constraint="frobenius", max_norm=2).max_norm == 2


def test_an_activity_and_the_weight_of_its_penalty_belong_together():
    with pytest.raises(ValueError, match="sparsity_target has no effect without sparsity_cost"):
        TrainingOptions(sparsity_target=0.1)
    with pytest.raises(ValueError, match="sparsity_cost needs sparsity_target"):
        TrainingOptions(sparsity_cost=1.0)
    assert TrainingOptions(sparsity_target=0.1, sparsity_cost=1).sparsity_cost == 1


def test_numbers_of_numpy_are_numbers():
    options = TrainingOptions(
        n_epochs=np.int64(3), learning_rate=np.float32(0.5), momentum=np.float64(0.9), beta=2
    )
    assert options.learning_rate_at(0) == 0.5
    with pytest.raises(ValueError, match="batch_size"):
        TrainingOptions(batch_size=np.int32(0))


def test_options_are_named_and_fixed():
    with pytest.raises(TypeError):
        TrainingOptions("cd")  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainingOptions().beta = 2.0  # type: ignore[misc]


def test_numbers_of_numpy_become_plain_ones_in_a_dict():
    options = TrainingOptions(n_epochs=np.int64(3), l2=np.float32(0.01), shuffle=np.bool(False))
    text = json.dumps(options.to_dict())
    assert TrainingOptions.from_dict(json.loads(text)) == options


def test_options_survive_json():
    options = TrainingOptions(
        method="emf", learning_rate=1 / 3, n_chains=7, weight_constraint="l1", max_norm=0.1
    )
    assert TrainingOptions.from_dict(json.loads(json.dumps(options.to_dict()))) == options
    assert TrainingOptions.from_dict({}) == TrainingOptions()


def test_unknown_options_are_refused_by_name():
    with pytest.raises(ValueError, match="unknown training options: epochs, rate"):
        TrainingOptions.from_dict({"rate": 1.0, "epochs": 3, "beta": 1.0})


def test_there_are_as_many_chains_as_rows_in_a_batch_unless_told():
    assert TrainingOptions(batch_size=30).chains == 30
    assert TrainingOptions(batch_size=30, n_chains=4).chains == 4


def test_the_learning_rate_decays_hyperbolically():
    options = TrainingOptions(learning_rate=0.3, learning_rate_decay=0.5)
    rates = [options.learning_rate_at(t) for t in range(4)]
    assert rates == pytest.approx([0.3, 0.2, 0.15, 0.12])
    assert TrainingOptions(learning_rate=0.3).learning_rate_at(100) == 0.3


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam_takes_no_momentum_that_it_would_pass_over(optimizer):
    with pytest.raises(ValueError, match=f"momentum has no effect with optimizer='{optimizer}'"):
        TrainingOptions(optimizer=optimizer, momentum=0.5)


def test_the_cosine_goes_from_the_whole_rate_to_none():
    options = TrainingOptions(learning_rate=0.2, schedule="cosine", n_epochs=4)
    assert options.learning_rate_at(0) == 0.2
    assert options.learning_rate_at(2) == pytest.approx(0.1)
    assert options.learning_rate_at(3.5) == pytest.approx(0.1 * (1 + math.cos(math.pi * 7 / 8)))
    assert options.learning_rate_at(4) == pytest.approx(0.0, abs=1e-16)
    with pytest.raises(ValueError, match="learning_rate_decay has no effect"):
        TrainingOptions(schedule="cosine", learning_rate_decay=0.1)


def test_the_inverse_rate_stays_within_an_epoch():
    options = TrainingOptions(learning_rate=0.2, learning_rate_decay=1.0)
    assert [options.learning_rate_at(t) for t in (0, 0.9, 1, 1.5)] == [0.2, 0.2, 0.1, 0.1]

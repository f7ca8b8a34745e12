"""The training loop: where it starts, what one update is, and that it can stop and go on."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from freenergy.inference import exact
from freenergy.models import RBM, DiscriminativeRBM
from freenergy.random import RandomStream
from freenergy.training import (
    DivergenceError,
    LabelledRows,
    Trainer,
    TrainingOptions,
    as_rows,
    gradient_estimator,
    initialize,
)
from freenergy.training.rows import DenseRows
from freenergy.training.trainer import START_SCALE, has_diverged

METHODS = ("cd", "pcd", "emf")
EMF = [{"method": "emf", "mean_field_order": order} for order in (1, 2, 3)]
VARIANTS = [
    {"method": "cd"},
    {"method": "cd", "n_steps": 2, "momentum": 0.5},
    {"method": "pcd"},
    {"method": "pcd", "n_chains": 7, "momentum": 0.9, "centered": False},
    {"method": "emf"},
    {"method": "emf", "mean_field_order": 3, "momentum": 0.9, "l2": 1e-3},
    {"method": "pcd", "optimizer": "adam", "l1": 1e-4},
    {"method": "emf", "optimizer": "rmsprop", "momentum": 0.5},
    {"method": "cd", "optimizer": "adamw", "l2": 0.1},
    {"method": "emf", "persistent": False, "centered": False, "l1": 1e-3},
    {"method": "pcd", "centered": False, "sparsity_target": 0.1, "sparsity_cost": 1.0},
]


def name_of(options: dict) -> str:
    return "-".join(f"{k}={v}" for k, v in options.items())


def rows_of(data):
    return as_rows(data, like=data)


def log_likelihood(model, data, beta: float = 1.0) -> float:
    """The exact mean over rows."""
    free_energy = float(model.free_energy(data, beta).mean().detach())
    return -beta * free_energy - exact(model, beta).log_partition


# ---- the start -----------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("unit", ["bernoulli", "spin"])
def test_a_model_starts_at_the_means_of_the_data(data, table, unit, beta):
    rows = data(300, unit=unit)
    model = RBM(6, 4, visible=unit, hidden=unit, dtype=torch.float64)
    initialize(model, rows_of(rows), RandomStream(0), beta)
    low, high = model.visible.support
    # One pseudo-count for each of the two values of a unit.
    mean = (rows.sum(0).numpy() + low + high) / 302
    p = (mean - low) / (high - low)
    expected = np.log(p / (1 - p)) / (high - low) / beta
    assert_allclose(model.visible_bias.detach().numpy(), expected, rtol=1e-12)
    assert_array_equal(model.hidden_bias.detach().numpy(), 0)
    # The couplings of the start are too weak to move the marginals.
    assert_allclose(table(model, beta).visible, rows.mean(0), atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_weights_start_small_and_random_in_both_precisions(dtype):
    model = RBM(50, 40, dtype=dtype)
    initialize(model, as_rows(torch.ones(3, 50), model.weight.detach()), RandomStream(1))
    weight = model.weight.detach().double().numpy()
    assert abs(weight.mean()) < 4 * 0.01 / 2000**0.5
    assert weight.std() == pytest.approx(0.01, rel=0.1)
    other = RBM(50, 40)
    initialize(other, as_rows(torch.ones(3, 50), other.weight.detach()), RandomStream(1))
    assert_allclose(weight, other.weight.detach().numpy(), rtol=1e-6)


@pytest.mark.parametrize(("unit", "off", "on"), [("bernoulli", 0, 1), ("spin", -1, 1)])
def test_a_constant_column_starts_finite(unit, off, on):
    rows = torch.tensor([[off, on, off], [off, on, on]] * 10).double()
    model = RBM(3, 2, visible=unit, dtype=torch.float64)
    initialize(model, rows_of(rows), RandomStream(0))
    start = model.visible_bias.detach()
    assert bool(torch.isfinite(start).all())
    share = (model.visible.mean(start) - off) / (on - off)
    assert_allclose(share, [1 / 22, 21 / 22, 1 / 2], rtol=1e-12)


def test_values_beyond_those_of_the_unit_start_finite():
    model = RBM(2, 2, dtype=torch.float64)
    rows = torch.tensor([[300.0, -40.0]] * 5).double()
    initialize(model, rows_of(rows), RandomStream(0))
    assert bool(torch.isfinite(model.visible_bias).all())


LABELS = torch.arange(300) % 7 % 3


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("visible", ["bernoulli", "spin"])
def test_a_model_of_labels_starts_at_the_shares_of_the_classes(data, visible, beta, weighted):
    x = data(300, unit=visible)
    counts = torch.arange(300) % 4 if weighted else torch.ones(300, dtype=torch.int64)
    rows = LabelledRows(rows_of(x), LABELS, counts.double() if weighted else None)
    repeated = LabelledRows(
        rows_of(x.repeat_interleave(counts, 0)), LABELS.repeat_interleave(counts)
    )
    models = []
    for start in (rows, repeated):
        model = DiscriminativeRBM(6, 3, 4, visible=visible, dtype=torch.float64)
        initialize(model, start, RandomStream(0), beta)
        models.append(model)
    for name, parameter in models[0].named_parameters():
        other = models[1].get_parameter(name)
        assert_allclose(parameter.detach(), other.detach(), rtol=1e-12, err_msg=name)
    # Against the rows themselves: the mean of each column, the share of each class.
    n = int(counts.sum())
    total = counts.double() @ x
    low, high = model.visible.support
    mean = (total + low + high) / (n + 2)
    assert_allclose(model.visible_mean(torch.zeros(4).double(), beta).detach(), mean, rtol=1e-12)
    shares = (torch.bincount(LABELS, counts.double()) + 1) / (n + 3)
    p = model.label_log_proba(torch.zeros(4).double(), beta).exp().detach()
    assert_allclose(p, shares, rtol=1e-12)
    assert_array_equal(model.hidden_bias.detach(), 0)


def test_the_couplings_start_at_one_scale_and_those_of_rows_as_without_labels(data):
    x = data(60, 40)
    plain, model = RBM(40, 30, dtype=torch.float64), DiscriminativeRBM(40, 25, 30)
    initialize(plain, rows_of(x), RandomStream(1))
    rows = LabelledRows(as_rows(x, torch.empty(0)), torch.arange(60) % 25)
    initialize(model, rows, RandomStream(1))
    assert_allclose(model.weight.detach(), plain.weight.detach(), rtol=1e-6)
    for weight in (model.weight, model.label_weight):
        values = weight.detach().numpy()
        assert values.std() == pytest.approx(START_SCALE, rel=5 / (2 * values.size) ** 0.5)
        assert abs(values.mean()) < 5 * START_SCALE / values.size**0.5


def test_a_class_without_rows_starts_finite():
    x = torch.eye(4).double()
    model = DiscriminativeRBM(4, 5, 2, dtype=torch.float64)
    initialize(model, LabelledRows(rows_of(x), torch.tensor([0, 0, 1, -1])), RandomStream(0))
    shares = torch.softmax(model.label_bias.detach(), 0)
    assert_allclose(shares, np.array([3, 2, 1, 1, 1]) / 8, rtol=1e-12)


# ---- one update ----------------------------------------------------------------------------------


@pytest.mark.parametrize("l1", [0.0, 0.02])
@pytest.mark.parametrize("l2", [0.0, 0.05])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("method", METHODS)
def test_training_is_gradient_descent_by_hand(start, data, method, momentum, l1, l2):
    """Momentum, decay of weights and of the rate, order and partial batches, update by update."""
    x = data(23)
    options = {
        "method": method,
        "batch_size": 10,
        "n_epochs": 3,
        "learning_rate": 0.3,
        "learning_rate_decay": 0.7,
        "momentum": momentum,
        "l1": l1,
        "l2": l2,
    }
    trainer = start(x, seed=5, **options)
    # The same start, with the parameters followed in NumPy.
    twin = start(x, seed=5, **options)
    gradient, order = twin.gradient, twin.order
    names = ("weight", "visible_bias", "hidden_bias")
    p = {name: getattr(twin.model, name).detach().numpy() for name in names}  # shares memory
    velocity = dict.fromkeys(names, 0.0)
    trainer.fit(rows_of(x))
    for epoch in range(3):
        rate = 0.3 / (1 + 0.7 * epoch)
        permutation = order.permutation(23)
        for batch in (permutation[:10], permutation[10:20], permutation[20:]):
            gradient.compute(x[batch])
            for name in names:
                g = getattr(twin.model, name).grad.numpy().copy()
                if name == "weight":
                    g += l1 * np.sign(p[name]) + l2 * p[name]
                velocity[name] = momentum * velocity[name] + g
                p[name] -= rate * velocity[name]
        assert trainer.history[epoch]["learning_rate"] == pytest.approx(rate, rel=1e-15)
    for name in names:
        assert_allclose(
            getattr(trainer.model, name).detach().numpy(), p[name], atol=1e-13, err_msg=name
        )


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("unit", ["bernoulli", "spin"])
@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize(
    "options",
    [{"method": "cd"}, {"method": "pcd"}, *EMF],
    ids=name_of,
)
def test_training_raises_the_likelihood(start, data, rbm, options, centered, unit, beta):
    # Around one pattern: with several, naive mean field is in one valley at a time.
    x = data(100, unit=unit, n_patterns=1)
    rate = (0.2 if unit == "bernoulli" else 0.05) / beta**2
    trainer = start(
        x, unit=unit, n_epochs=20, learning_rate=rate, centered=centered, beta=beta, **options
    )
    elsewhere = rbm(6, 4, visible=unit, hidden=unit, scale=0.5 / beta, bias=1 / beta)
    trainer.model.load_state_dict(elsewhere.state_dict())
    before = log_likelihood(trainer.model, x, beta)
    trainer.fit(rows_of(x))
    assert log_likelihood(trainer.model, x, beta) > before + 1.0


@pytest.mark.parametrize("unit", ["bernoulli", "spin"])
@pytest.mark.parametrize("method", METHODS)
def test_sparsity_holds_the_activities_near_their_target(start, data, method, unit):
    x, found = data(200, unit=unit), {}
    for cost in (0.0, 5.0):
        target = 0.2 if cost else None
        options = {"sparsity_target": target, "sparsity_cost": cost}
        trainer = start(x, unit=unit, method=method, n_epochs=60, learning_rate=0.05, **options)
        trainer.fit(rows_of(x))
        model = trainer.model
        low, high = model.hidden.support
        activity = (model.hidden_mean(x).detach().mean(0).numpy() - low) / (high - low)
        found[cost] = np.abs(activity - 0.2).max()
    # Units of ±1 push harder against the penalty.
    assert found[5.0] < (0.01 if unit == "bernoulli" else 0.2)
    assert found[0.0] > 3 * found[5.0]


@pytest.mark.parametrize("method", ["cd", "pcd"])
def test_training_learns_correlations(start, data, method):
    """Beyond what independent units can say, towards the entropy of the data."""
    x = data(100)
    options = {"learning_rate": 0.5, "learning_rate_decay": 0.05, "n_epochs": 80}
    trainer = start(x, method=method, **options)
    trainer.fit(rows_of(x))
    p = x.mean(0)
    independent = float((torch.special.entr(p) + torch.special.entr(1 - p)).sum())
    counts = torch.unique(x, dim=0, return_counts=True)[1] / 100
    entropy = float(torch.special.entr(counts).sum())
    assert -independent + 0.5 < log_likelihood(trainer.model, x) < -entropy


def test_decay_pulls_the_weights_and_not_the_biases(start, data):
    x = data(60)
    norms = {}
    for name in ("none", "l1", "l2"):
        options = {} if name == "none" else {name: 0.1}
        trainer = start(x, method="emf", n_epochs=100, **options)
        trainer.fit(rows_of(x))
        norms[name] = float(trainer.model.weight.detach().norm())
        assert float(trainer.model.visible_bias.detach().abs().max()) > 0.2
    assert norms["l1"] < norms["none"] / 5
    assert norms["l2"] < norms["none"] / 5


# ---- epochs --------------------------------------------------------------------------------------


class Recorded(DenseRows):
    """Rows that note which of them were asked for."""

    def __init__(self, data):
        super().__init__(data)
        self.taken = []

    def take(self, index):
        self.taken.append(
            np.arange(len(self))[index if isinstance(index, slice) else index.numpy()]
        )
        return super().take(index)


def test_each_epoch_visits_every_row_once_in_a_new_order(start, data):
    rows = Recorded(data(23))
    start(rows, n_epochs=2).fit(rows)
    assert [len(part) for part in rows.taken] == [10, 10, 3] * 2
    first, second = np.concatenate(rows.taken[:3]), np.concatenate(rows.taken[3:])
    assert sorted(first) == sorted(second) == list(range(23))
    assert list(first) != list(second)
    assert list(first) != list(range(23))


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_rows_is_the_same_for_every_method(start, data, method):
    rows, reference = Recorded(data(23)), Recorded(data(23))
    start(rows, method=method, n_epochs=2).fit(rows)
    start(reference, n_epochs=2).fit(reference)
    assert_array_equal(np.concatenate(rows.taken), np.concatenate(reference.taken))


def test_without_shuffling_rows_come_in_their_own_order(start, data):
    rows = Recorded(data(23))
    start(rows, n_epochs=2, shuffle=False).fit(rows)
    assert_array_equal(np.concatenate(rows.taken), [*range(23)] * 2)


@pytest.mark.parametrize("batch_size", [23, 24, 1000])
def test_a_batch_may_be_larger_than_the_data(start, data, batch_size):
    rows = Recorded(data(23))
    trainer = start(rows, n_epochs=2, batch_size=batch_size, n_chains=5)
    order = trainer.order.state()
    trainer.fit(rows)
    assert_array_equal(np.concatenate(rows.taken), [*range(23)] * 2)
    assert trainer.order.state() == order, "no draw is spent on the order within one batch"


def test_hooks_hear_of_every_batch_and_every_epoch(start, data):
    x, batches, epochs = data(23), [], []
    trainer = start(x, n_epochs=2)

    def on_epoch(trainer):
        epochs.append((trainer.epoch, len(trainer.history), trainer.history[-1]["epoch"]))

    trainer.fit(rows_of(x), on_batch=batches.append, on_epoch=on_epoch)
    assert batches == [10, 10, 3, 10, 10, 3]
    assert epochs == [(1, 1, 1), (2, 2, 2)]


def test_no_epochs_change_nothing(start, data, same_state):
    x = data(23)
    trainer = start(x, n_epochs=0, momentum=0.9)
    before = trainer.state()
    trainer.fit(rows_of(x))
    same_state(trainer.state(), before)
    assert trainer.history == []


def test_what_is_trained_already_is_not_trained_again(start, data, same_state):
    x = data(23)
    trainer = start(x, n_epochs=2)
    trainer.fit(rows_of(x))
    before = trainer.state()
    trainer.fit(rows_of(x))
    same_state(trainer.state(), before)


def test_monitors_read_every_so_many_epochs_and_after_the_last(data):
    x = data(23)
    model = RBM(6, 4, dtype=torch.float64)
    norms, options = [], TrainingOptions(n_epochs=7, batch_size=10)

    def norm(model):
        norms.append(float(model.weight.detach().norm()))
        return {"norm": norms[-1]}

    monitors = (norm, lambda model: {"half": model.n_hidden / 2})
    trainer = Trainer(model, options, RandomStream(0), monitors=monitors, monitor_every=3)
    trainer.fit(rows_of(x))
    read = [record["epoch"] for record in trainer.history if "norm" in record]
    assert read == [record["epoch"] for record in trainer.history if "half" in record] == [3, 6, 7]
    assert [r["norm"] for r in trainer.history if "norm" in r] == norms
    assert norms[-1] == float(model.weight.detach().norm())
    assert [record["epoch"] for record in trainer.history] == list(range(1, 8))
    json.dumps(trainer.history)


def test_the_time_of_an_epoch_is_that_of_training_alone(start, data):
    x = data(23)
    trainer = start(x, n_epochs=1)
    trainer.monitors = (lambda _model: time.sleep(0.5) or {},)
    trainer.fit(rows_of(x))
    assert 0 < trainer.history[0]["seconds"] < 0.5


def test_watching_does_not_change_what_is_learned(start, data, same_state):
    x = data(23)
    watched, alone = start(x, n_epochs=2), start(x, n_epochs=2)
    watched.monitors = (lambda model: {"log_likelihood": log_likelihood(model, x)},)
    watched.fit(rows_of(x))
    alone.fit(rows_of(x))
    for trainer in (watched, alone):
        trainer.history = []
    same_state(watched.state(), alone.state())


# ---- constraints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("constraint", ["l1", "l2", "frobenius"])
def test_constraints_hold_after_every_epoch(start, data, method, constraint):
    x, norms, free_norms = data(60), [], []

    def norm(weight):
        if constraint == "frobenius":
            return float(weight.norm())
        return float(torch.linalg.vector_norm(weight, ord=int(constraint[1]), dim=0).max())

    options = {"method": method, "n_epochs": 20, "learning_rate": 0.5}
    trainer = start(x, weight_constraint=constraint, max_norm=0.7, **options)
    trainer.fit(rows_of(x), on_epoch=lambda t: norms.append(norm(t.model.weight.detach())))
    free = start(x, **options)
    free.fit(rows_of(x), on_epoch=lambda t: free_norms.append(norm(t.model.weight.detach())))
    assert free_norms[-1] > 1.0, "the constraint must bind"
    if constraint == "frobenius":
        assert_allclose(norms, 0.7, rtol=1e-12)
    else:
        assert max(norms) < 0.7 * (1 + 1e-12)
        assert norms[-1] > 0.7 * (1 - 1e-12)


# ---- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rate", [1e10, 1e30, 1e300])
def test_divergence_is_reported_and_the_last_good_state_kept(start, data, same_state, method, rate):
    x = data(60).float()
    options = {"method": method, "momentum": 0.5}
    trainer = start(x, n_epochs=3, **options)
    trainer.fit(rows_of(x))
    good = trainer.state()
    wild = start(x, n_epochs=9, learning_rate=rate, **options)
    wild.restore(*good)
    with pytest.raises(DivergenceError, match="in epoch 4; the state after epoch 3") as caught:
        wild.fit(rows_of(x))
    assert f"learning_rate (now {rate:g})" in str(caught.value)
    assert "momentum (now 0.5)" in str(caught.value)
    assert "weight_constraint" in str(caught.value)
    same_state(wild.state(), good)
    # What was kept is usable: at a sane rate training goes on as if nothing had happened.
    tame, undisturbed = (start(x, n_epochs=5, **options) for _ in range(2))
    tame.restore(*wild.state())
    undisturbed.fit(rows_of(x))
    tame.fit(rows_of(x))
    same_state(tame.state(), undisturbed.state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["weight", "visible_bias", "hidden_bias"])
def test_a_model_has_diverged_where_a_nat_is_lost_to_rounding(rbm, name, dtype):
    model = rbm(6, 4, dtype=dtype)
    last = getattr(model, name).detach().view(-1)[-1:]
    one = torch.ones(1, dtype=dtype)
    for value in (float("nan"), float("inf"), -float("inf"), 1e8 if dtype.itemsize == 4 else 1e17):
        last[:] = value
        assert has_diverged(model)
        assert not bool((last + one > last) & (last - one < last))
    for value in (0.0, 1e3, -1e6):
        last[:] = value
        assert not has_diverged(model)
        assert bool((last + one > last) & (last - one < last))
    last[:] = 1e6 if dtype.itemsize == 4 else 1e15
    assert has_diverged(model, beta=100.0)


def test_advice_on_divergence_names_only_what_was_used(start, data):
    x = data(60).float()
    options = {"learning_rate": 1e300, "weight_constraint": "l2", "max_norm": 1.0}
    with pytest.raises(DivergenceError) as caught:
        start(x, **options).fit(rows_of(x))
    assert "momentum" not in str(caught.value)
    assert "weight_constraint" not in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_epoch_that_is_cut_short_is_undone(start, data, same_state, method, error):
    x, seen = data(55), []
    options = {"method": method, "momentum": 0.9, "n_epochs": 4}
    undisturbed = start(x, **options)
    undisturbed.fit(rows_of(x))
    trainer = start(x, **options)

    def interrupt(n):
        seen.append(n)
        if len(seen) in (3, 17):  # in the first epoch, and in what is then the third
            raise error

    after = {}
    reference = start(x, **options)
    reference.fit(rows_of(x), on_epoch=lambda t: after.update({t.epoch: t.state()}))
    after[0] = start(x, **options).state()
    for epoch in (0, 2):
        with pytest.raises(error):
            trainer.fit(rows_of(x), on_batch=interrupt)
        assert trainer.epoch == epoch
        same_state(trainer.state(), after[epoch])
    trainer.fit(rows_of(x), on_batch=interrupt)
    same_state(trainer.state(), undisturbed.state())


def test_a_monitor_that_fails_undoes_its_epoch(start, data, same_state):
    x = data(23)
    trainer = start(x, n_epochs=2)
    before = trainer.state()

    def broken(_model):
        raise ZeroDivisionError

    trainer.monitors = (broken,)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(rows_of(x))
    same_state(trainer.state(), before)


# ---- stopping and going on -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_a_restored_trainer_goes_on_to_the_same_bits(start, data, same_state, options, dtype):
    x = data(55).to(dtype)
    whole = start(x, n_epochs=4, **options)
    whole.fit(rows_of(x))
    first = start(x, n_epochs=2, **options)
    first.fit(rows_of(x))
    tensors, values = first.state()
    # Another seed: all that matters comes from the state, which passes through JSON.
    second = start(x, seed=99, n_epochs=4, **options)
    second.restore(tensors, json.loads(json.dumps(values)))
    same_state(second.state(), first.state())
    second.fit(rows_of(x))
    same_state(second.state(), whole.state())
    moved = float((whole.model.weight.detach() - first.model.weight.detach()).abs().max())
    assert moved > 1e-4


def test_one_stream_of_numpy_may_serve_chains_and_order(data, same_state):
    x = data(55)

    def trainer(n_epochs):
        model, stream = RBM(6, 4, dtype=torch.float64), RandomStream(np.random.RandomState(3))
        initialize(model, rows_of(x), stream)
        return Trainer(model, TrainingOptions(n_epochs=n_epochs, batch_size=10), stream)

    whole, first, second = trainer(4), trainer(2), trainer(4)
    whole.fit(rows_of(x))
    first.fit(rows_of(x))
    tensors, values = first.state()
    second.restore(tensors, json.loads(json.dumps(values)))
    second.fit(rows_of(x))
    same_state(second.state(), whole.state())


def test_a_state_is_a_copy(start, data):
    x = data(55)
    trainer = start(x, n_epochs=3, momentum=0.5, method="emf")
    trainer.fit(rows_of(x))
    tensors, values = trainer.state()
    before = {name: t.clone() for name, t in tensors.items()}
    longer = start(x, n_epochs=6, momentum=0.5, method="emf")
    longer.restore(tensors, values)
    longer.fit(rows_of(x))
    assert all(bool((tensors[name] == before[name]).all()) for name in tensors)
    assert len(values["history"]) == 3


def test_a_state_holds_all_that_the_next_update_needs(start, data):
    x = data(55)
    trainer = start(x, n_epochs=1, momentum=0.5, method="pcd")
    assert not any(name.startswith("optimizer") for name in trainer.state()[0])
    trainer.fit(rows_of(x))
    parameters = {"weight", "visible_bias", "hidden_bias"}
    kinds = ("model", "optimizer.momentum_buffer")
    expected = {f"{kind}.{name}" for kind in kinds for name in parameters}
    expected |= {"gradient.chain", "gradient.offset_visible", "gradient.offset_hidden"}
    assert set(trainer.state()[0]) == expected


def test_seeds_give_models_and_one_seed_one_model(start, data):
    x = data(55)
    weights = []
    for seed in (0, 0, 1):
        trainer = start(x, seed=seed, n_epochs=2)
        trainer.fit(rows_of(x))
        weights.append(trainer.model.weight.detach())
    assert bool((weights[0] == weights[1]).all())
    assert not bool((weights[0] == weights[2]).any())


def test_an_estimator_is_chosen_by_its_name(rbm):
    kinds = {
        type(gradient_estimator(rbm(3, 2), TrainingOptions(method=m), RandomStream(0))).__name__
        for m in METHODS
    }
    assert kinds == {
        "ContrastiveDivergence",
        "PersistentContrastiveDivergence",
        "ExtendedMeanField",
    }


def test_the_cosine_falls_from_update_to_update(start, data):
    x = data(40)
    trainer = start(x, n_epochs=2, batch_size=10, learning_rate=0.1, schedule="cosine")
    rates = []
    step = trainer.optimizer.step

    def spy():
        rates.extend({group["lr"] for group in trainer.optimizer.param_groups})
        step()

    trainer.optimizer.step = spy
    trainer.fit(rows_of(x))
    assert_allclose(rates, 0.05 * (1 + np.cos(np.pi * np.arange(8) / 8)))

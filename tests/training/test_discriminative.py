"""Gradients of the discriminative RBM against autograd, enumeration and their phases apart."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

from freenergy.models import DiscriminativeRBM
from freenergy.random import RandomStream
from freenergy.training import Trainer
from freenergy.training.discriminative import (
    OBJECTIVES,
    DiscriminativeGradient,
    DiscriminativeOptions,
)
from freenergy.training.rows import DenseRows, LabelledBatch, LabelledRows

PARAMETERS = ("weight", "label_weight", "visible_bias", "label_bias", "hidden_bias")
HIDDEN = pytest.mark.parametrize("hidden", ["bernoulli", "spin", "binomial(3)"])
BETAS = pytest.mark.parametrize("beta", [0.6, 1.0, 1.7])


def make_model(sizes=(5, 3, 4), *, scale=0.4, seed=0, dtype=torch.float64, **units):
    """A model with normal weights and biases of this standard deviation."""
    rng = np.random.default_rng([seed, *sizes])
    model = DiscriminativeRBM(*sizes, dtype=dtype, **units)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(0, scale, tuple(parameter.shape))))
    return model


def make_batch(n=9, *, seed=0, unlabelled=False, weighted=False, unit="bernoulli") -> LabelledBatch:
    """Random rows and classes of the model's default sizes; weights have a mean of one."""
    rng = np.random.default_rng([seed, n])
    rows = torch.from_numpy((rng.random((n, 5)) < 0.4).astype(float))
    labels = torch.from_numpy(rng.integers(0, 3, n))
    if unlabelled:
        labels[::3] = -1
    weights = None
    if weighted:
        weights = torch.from_numpy(rng.random(n))
        weights /= weights.mean()
    return LabelledBatch(2 * rows - 1 if unit == "spin" else rows, labels, weights)


def estimator(model, seed=0, **options) -> DiscriminativeGradient:
    return DiscriminativeGradient(model, DiscriminativeOptions(**options), RandomStream(seed))


def gradient(model) -> dict[str, np.ndarray]:
    return {name: getattr(model, name).grad.numpy().copy() for name in PARAMETERS}


def found(model, batch, seed=0, **options) -> dict[str, np.ndarray]:
    """The gradient that a new estimator writes for one batch."""
    estimator(model, seed, **options).compute(batch)
    return gradient(model)


def log_partition(model, beta: float) -> Tensor:
    """ln Z, by the sum over every row and class."""
    values = itertools.product(model.visible.support, repeat=model.n_visible)
    rows = torch.tensor(list(values), dtype=torch.float64)
    return torch.logsumexp(-beta * model.free_energy(rows, beta=beta), 0)


def loss(model, batch, beta, discriminative=0.0, generative=0.0, log_z=0.0) -> Tensor:
    """The mean of loss times weight over the batch, row by row as in the paper."""
    rows, labels, weights = batch
    weights = torch.ones(len(rows)).double() if weights is None else weights
    total = torch.zeros(()).double()
    for x, y, w in zip(rows, labels.tolist(), weights, strict=True):
        if y < 0:
            total = total + w * generative * (beta * model.free_energy(x, beta=beta) + log_z)
            continue
        joint = beta * model.free_energy(x, torch.tensor(y), beta)
        total = total + w * discriminative * (joint - beta * model.free_energy(x, beta=beta))
        total = total + w * generative * (joint + log_z)
    return total / len(rows)


def autograd(model, value: Tensor) -> dict[str, np.ndarray]:
    gradients = torch.autograd.grad(
        value, [getattr(model, name) for name in PARAMETERS], materialize_grads=True
    )
    return {name: g.numpy() for name, g in zip(PARAMETERS, gradients, strict=True)}


# The exact part


@HIDDEN
@BETAS
@pytest.mark.parametrize("unlabelled", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_discriminative_gradient_is_that_of_the_cross_entropy(
    hidden, beta, unlabelled, weighted
):
    model = make_model(hidden=hidden, scale=1.0)
    batch = make_batch(unlabelled=unlabelled, weighted=weighted)
    expected = autograd(model, loss(model, batch, beta, discriminative=1.0))
    for name, value in found(model, batch, beta=beta).items():
        assert_allclose(value, expected[name], rtol=0, atol=1e-13, err_msg=name)
        # The visible biases say nothing of the class: theirs is exactly zero.
        assert (value == 0).all() if name == "visible_bias" else np.abs(value).max() > 1e-3


def test_the_cross_entropy_is_the_softmax_of_free_energies():
    """The reference of this file, against the library's own loss."""
    model, (rows, labels, _), beta = make_model(), make_batch(), 1.7
    expected = torch.nn.functional.nll_loss(model.log_proba(rows, beta), labels)
    ours = loss(model, LabelledBatch(rows, labels, None), beta, discriminative=1.0)
    assert float(ours.detach()) == pytest.approx(float(expected.detach()), rel=1e-13)


@HIDDEN
@BETAS
@pytest.mark.parametrize("objective", ["generative", "hybrid"])
def test_what_the_data_say_has_no_noise(hidden, beta, objective):
    """With the same chains two batches differ by their exact parts, labelled rows or not."""
    model = make_model(hidden=hidden, scale=0.8)
    batches = [
        make_batch(9, unlabelled=True, weighted=True),
        make_batch(14, unlabelled=True),
        make_batch(6),
    ]
    options = {"objective": objective, "generative_weight": 0.3, "beta": beta, "n_chains": 5}
    factors = (0.0, 1.0) if objective == "generative" else (1.0, 0.3)
    first, *others = (found(model, batch, **options) for batch in batches)
    exact, *others_exact = (autograd(model, loss(model, b, beta, *factors)) for b in batches)
    for other, other_exact in zip(others, others_exact, strict=True):
        for name in PARAMETERS:
            difference = exact[name] - other_exact[name]
            assert np.abs(difference).max() > 0.01
            assert_allclose(first[name] - other[name], difference, rtol=0, atol=1e-13)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_weight_of_a_row_is_how_often_it_occurs(objective):
    model, (rows, labels, _) = make_model(scale=1.0), make_batch(unlabelled=True)
    times = torch.tensor([2, 1, 0, 3, 1, 0, 1, 2, 5])
    repeated = LabelledBatch(
        rows.repeat_interleave(times, 0), labels.repeat_interleave(times), None
    )
    options = {"objective": objective, "n_chains": 7}
    expected = found(model, repeated, **options)
    of_mean_one = times.double() / times.double().mean()
    for scale in (1.0, 1e-3):
        weighted = found(model, LabelledBatch(rows, labels, scale * of_mean_one), **options)
        for name, value in weighted.items():
            assert_allclose(value, scale * expected[name], rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [1, 2, 4, 7])
@pytest.mark.parametrize("generative", [False, True])
def test_the_batches_of_an_epoch_add_up_to_the_whole(size, generative):
    """Rare classes of great weight included: a batch has no right to a mean of its own.

    Of the generative term the part that the data say, without chains, which are the same.
    """
    model, whole = make_model(scale=1.0), make_batch(28, unlabelled=generative)
    weights = torch.tensor([9.0, 0.5, 0.1]).double()[whole.labels]
    whole = whole._replace(weights=weights / weights.mean())
    factors = {"discriminative": 1.0, "generative": 0.5 * generative}
    options = {"objective": "hybrid", "generative_weight": 0.5} if generative else {}

    def said(batch):
        """The gradient without what the chains add, which is that of a batch of free rows."""
        value = found(model, batch, **options)
        if generative:
            silent = LabelledBatch(batch.rows, torch.full_like(batch.labels, -1), batch.weights)
            base = found(model, silent, objective="generative")
            ours = autograd(model, loss(model, silent, 1.0, 0.0, 1.0))
            value = {k: v - 0.5 * (base[k] - ours[k]) for k, v in value.items()}
        return value

    epoch = dict.fromkeys(PARAMETERS, 0.0)
    for start in range(0, 28, size):
        part = LabelledBatch(*(t[start : start + size] for t in whole))
        for name, value in said(part).items():
            epoch[name] = epoch[name] + value * (size / 28)
    expected = autograd(model, loss(model, whole, 1.0, **factors))
    for name in PARAMETERS:
        assert_allclose(epoch[name], expected[name], rtol=0, atol=1e-13, err_msg=name)


def test_a_hybrid_without_its_generative_term_is_discriminative():
    model, batch = make_model(), make_batch(unlabelled=True, weighted=True)
    hybrid = estimator(model, objective="hybrid", generative_weight=0.0)
    assert hybrid.state() == {}, "no chain is kept"
    hybrid.compute(batch)
    value = gradient(model)
    for name, expected in found(model, batch).items():
        assert (value[name] == expected).all()


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_batch_that_says_nothing_has_no_gradient(objective, persistent):
    model = make_model()
    rows, labels, _ = make_batch()
    silent = [LabelledBatch(rows, labels, torch.zeros(9).double())]
    if objective == "discriminative":
        silent.append(LabelledBatch(rows, torch.full((9,), -1), None))
    for batch in silent:
        for name, value in found(model, batch, objective=objective, persistent=persistent).items():
            assert (value == 0).all(), name


# The negative phase


@HIDDEN
@BETAS
@pytest.mark.parametrize("persistent", [True, False])
def test_long_chains_give_the_exact_gradient(hidden, beta, persistent):
    """Of -ln p(x, y) and of -ln p(x) where the class is unknown, both terms together."""
    model, n = make_model(hidden=hidden, scale=0.35), 20_000
    distinct = make_batch(8, unlabelled=True, weighted=True)
    batch = LabelledBatch(*(t.repeat(n // 8, *[1] * (t.dim() - 1)) for t in distinct))
    options = {"objective": "hybrid", "generative_weight": 0.5, "n_steps": 25, "n_chains": n}
    value = found(model, batch, beta=beta, persistent=persistent, **options)
    expected = autograd(model, loss(model, distinct, beta, 1.0, 0.5, log_partition(model, beta)))
    # Means of independent chains, of values that span 1 (0/1), 2 (±1) or 3 (0 to 3). Chains that
    # start at rows of unequal weights count for fewer.
    weights = batch.weights
    alive = n if persistent else float(weights.sum() ** 2 / weights.square().sum())
    spread = {"bernoulli": 0.5, "spin": 1.0, "binomial(3)": 1.5}[hidden]
    error = beta * 0.5 * spread / alive**0.5
    for name in PARAMETERS:
        assert np.abs(value[name] - expected[name]).max() < 4.5 * error, name
    assert max(np.abs(g).max() for g in expected.values()) > 10 * error


def test_a_generative_objective_without_classes_learns_the_rows():
    """The gradient of the exact -<ln p(x)>, all labels unknown."""
    model, n = make_model(scale=0.35), 20_000
    batch = make_batch(8)._replace(labels=torch.full((8,), -1))
    value = found(model, batch, objective="generative", n_steps=25, n_chains=n)
    expected = autograd(model, loss(model, batch, 1.0, 0.0, 1.0, log_partition(model, 1.0)))
    for name in PARAMETERS:
        assert np.abs(value[name] - expected[name]).max() < 4.5 * 0.5 / n**0.5, name


def chain_by_hand(model, batch, beta, n_steps, n_chains, persistent):
    """Where the chains of one update end, with the stream of the estimator."""
    random, (rows, labels, _) = RandomStream(0), batch
    if persistent:
        low = model.hidden.support[0]
        h = torch.full((n_chains, model.n_hidden), low, dtype=torch.float64)
    else:
        proba = model.log_proba(rows, beta).exp()
        y = labels.clone()
        if (labels < 0).any():
            draws = random.uniform_(torch.empty(len(rows)).double())
            y[labels < 0] = (draws[:, None] >= proba.cumsum(1)[:, :-1]).sum(1)[labels < 0]
        h = model.sample_hidden(rows, y, random, beta)
    for step in range(n_steps):
        if step:
            h = model.sample_hidden(x, y, random, beta)  # noqa: F821
        x = model.sample_visible(h, random, beta)
        y = model.sample_labels(h, random, beta)
    return x, y


@pytest.mark.parametrize("unlabelled", [False, True])
@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("persistent", [True, False])
def test_the_generative_gradient_is_that_of_its_phases(persistent, n_steps, unlabelled):
    """Minus the free energies of the chains' ends: each weighs as the row that it started at."""
    model, beta = make_model(visible="spin", hidden="spin"), 1.3
    batch = make_batch(unit="spin", unlabelled=unlabelled, weighted=True)
    with torch.no_grad():
        x, y = chain_by_hand(model, batch, beta, n_steps, 6, persistent)
    ends = LabelledBatch(x, y, None if persistent else batch.weights)
    difference = loss(model, batch, beta, 0.0, 1.0) - loss(model, ends, beta, 0.0, 1.0)
    expected = autograd(model, difference)
    options = {"objective": "generative", "n_steps": n_steps, "n_chains": 6}
    value = found(model, batch, beta=beta, persistent=persistent, **options)
    for name in PARAMETERS:
        assert np.abs(expected[name]).max() > 0.01
        assert_allclose(value[name], expected[name], rtol=0, atol=1e-14, err_msg=name)


def test_persistent_chains_need_one_step_an_update():
    """At parameters that stand still they reach equilibrium; chains from the batch do not."""
    model, n = make_model(scale=1.2), 16_000
    batch = make_batch(16)
    expected = autograd(model, loss(model, batch, 1.0, 0.0, 1.0, log_partition(model, 1.0)))
    estimate = estimator(model, objective="generative", n_chains=n)
    for _ in range(60):
        estimate.compute(batch)
    error = np.abs(gradient(model)["weight"] - expected["weight"]).max()
    many = LabelledBatch(batch.rows.repeat(1000, 1), batch.labels.repeat(1000), None)
    biased = found(model, many, objective="generative", persistent=False)
    assert error < 4.5 * 0.5 / n**0.5
    assert np.abs(biased["weight"] - expected["weight"]).max() > 3 * error


# Extremes


@HIDDEN
@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_fields_give_finite_gradients(hidden, persistent, dtype):
    model = make_model(hidden=hidden, scale=1e4, dtype=dtype)
    batch = make_batch(unlabelled=True)
    batch = batch._replace(rows=batch.rows.to(dtype))
    options = {"objective": "hybrid", "generative_weight": 1.0, "persistent": persistent}
    largest = max(abs(x) for x in model.hidden.support)
    for name, value in found(model, batch, **options).items():
        assert np.isfinite(value).all(), name
        assert np.abs(value).max() <= 2 * largest + 1e-5


def test_one_row_and_constant_columns_are_enough():
    model = make_model()
    for row in (torch.zeros(1, 5).double(), torch.ones(1, 5).double()):
        batch = LabelledBatch(row, torch.tensor([1]), None)
        expected = autograd(model, loss(model, batch, 1.0, discriminative=1.0))
        for name, value in found(model, batch).items():
            assert_allclose(value, expected[name], rtol=0, atol=1e-14)


def test_a_row_that_is_certain_of_its_class_has_no_gradient():
    model, (rows, _, _) = make_model(), make_batch()
    with torch.no_grad():
        model.label_bias[2] += 1e4
    value = found(model, LabelledBatch(rows, torch.full((9,), 2), None))
    assert all((g == 0).all() for g in value.values())


# What an update leaves behind


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("persistent", [True, False])
def test_a_restored_estimator_goes_on_to_the_bit(objective, persistent):
    model, batches = make_model(), [make_batch(seed=seed, unlabelled=True) for seed in range(4)]
    options = {"objective": objective, "persistent": persistent, "n_chains": 3}
    estimate = estimator(model, **options)
    for batch in batches[:2]:
        estimate.compute(batch)
    state = {name: t.clone() for name, t in estimate.state().items()}
    stream = estimate.random.state()
    for batch in batches[2:]:
        estimate.compute(batch)
    expected = gradient(model)
    again = estimator(model, seed=9, **options)
    again.restore(state)
    again.random.restore(stream)
    for batch in batches[2:]:
        again.compute(batch)
    for name, value in gradient(model).items():
        assert (value == expected[name]).all()
    chains = {"chain"} if persistent and objective != "discriminative" else set()
    assert set(state) == chains


def test_the_chain_holds_states_of_the_hidden_units():
    model = make_model(hidden="binomial(3)")
    estimate = estimator(model, objective="hybrid", n_chains=50)
    assert estimate.state()["chain"].shape == (50, 4)
    estimate.compute(make_batch())
    assert set(estimate.state()["chain"].unique().tolist()) == {0, 1, 2, 3}
    assert estimator(model, objective="generative", batch_size=7).state()["chain"].shape[0] == 7


# Dropout


def test_dropout_is_the_discriminative_gradient_of_the_rows_that_are_left():
    model, batch = make_model(), make_batch(unlabelled=True, weighted=True)
    share = 0.3
    kept = RandomStream(4).bernoulli_(torch.full_like(batch.rows, 1 - share))
    expected = found(model, batch._replace(rows=batch.rows * kept / (1 - share)))
    value = found(model, batch, seed=4, input_dropout=share)
    for name, tensor in value.items():
        assert_allclose(tensor, expected[name], rtol=1e-13, atol=1e-15)


def test_dropout_and_the_generative_term_add_up():
    """The data phase of a hybrid is that of its two terms, each with the rows that it sees."""
    model, batch = make_model(), make_batch()
    weight, share = 0.4, 0.5
    hybrid = found(
        model, batch, seed=4, objective="hybrid", generative_weight=weight, input_dropout=share
    )
    dropped = found(model, batch, seed=4, input_dropout=share)
    stream = estimator(model, seed=4, objective="generative")
    stream._dropped(batch.rows)  # the draws that dropout makes first
    stream.compute(batch)
    for name, value in gradient(model).items():
        assert_allclose(hybrid[name], dropped[name] + weight * value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_batch_is_left_as_it_was(objective):
    batch = make_batch(unlabelled=True, weighted=True)
    before = [t.clone() for t in batch]
    found(make_model(), batch, objective=objective, n_steps=2)
    found(make_model(), batch, objective=objective, n_steps=2, persistent=False)
    assert all(bool((a == b).all()) for a, b in zip(batch, before, strict=True))


# Training


def parity(n=300) -> tuple[Tensor, Tensor]:
    """Rows of six bits; the class is whether the first two differ, which no linear rule finds."""
    rng = np.random.default_rng(0)
    rows = torch.from_numpy((rng.random((n, 6)) < 0.5).astype(float))
    return rows, (rows[:, 0] != rows[:, 1]).long()


def train(rows, labels, *, seed=0, hidden="bernoulli", **options) -> Trainer:
    model = make_model((6, 2, 12), scale=0.1, seed=seed, hidden=hidden)
    settings = DiscriminativeOptions(batch_size=20, **options)
    random = RandomStream(seed)
    gradient = DiscriminativeGradient(model, settings, random)
    trainer = Trainer(model, settings, random, gradient=gradient)
    trainer.fit(LabelledRows(DenseRows(rows), labels))
    return trainer


@pytest.mark.parametrize(
    ("objective", "hidden"),
    [
        ("discriminative", "bernoulli"),
        ("discriminative", "spin"),
        ("discriminative", "binomial(3)"),
        ("hybrid", "bernoulli"),
    ],
)
def test_the_parity_of_two_bits_is_learnt(objective, hidden):
    rows, labels = parity()
    trainer = train(
        rows,
        labels,
        objective=objective,
        hidden=hidden,
        n_epochs=25,
        learning_rate=0.3,
        momentum=0.9,
    )
    assert bool((trainer.model.log_proba(rows).argmax(1) == labels).all())
    log_proba = trainer.model.log_proba(rows).detach()
    assert float(-log_proba.gather(1, labels[:, None]).mean()) < 0.1


def test_rows_without_a_class_bring_the_model_nearer_to_their_distribution():
    """Six labelled rows of 300 and a generative term: -<ln p(x)> falls, and is exact here."""
    rows, labels = parity()
    rows[:, 2:] = rows[:, :1]  # four copies of the first bit
    labels[6:] = -1
    trainer = train(rows, labels, objective="generative", n_epochs=30, learning_rate=0.1)

    def score(model) -> float:
        with torch.no_grad():
            log_p = -model.free_energy(rows) - log_partition(model, 1.0)
        return float(log_p.mean())

    # Two free bits: -2 ln 2 is the best there is; a model that knows nothing gives -6 ln 2.
    assert score(trainer.model) > -2.5 * math.log(2)
    assert score(make_model((6, 2, 12), scale=0.1)) < -5.5 * math.log(2)


# Options


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"objective": "joint"}, "objective must be one of 'discriminative', 'generative'"),
        ({"generative_weight": -0.1}, "generative_weight must not be negative, got -0.1"),
        ({"generative_weight": math.nan}, "generative_weight must be a finite number"),
        ({"n_steps": 0}, "n_steps must be a whole number of at least 1, got 0"),
        ({"n_chains": 0}, "n_chains must be a whole number of at least 1, got 0"),
        ({"learning_rate": 0}, "learning_rate must be positive"),
    ],
)
def test_impossible_options_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        DiscriminativeOptions(**option)


def test_options_can_be_stored():
    options = DiscriminativeOptions(objective="hybrid", generative_weight=0.2, n_chains=4)
    assert DiscriminativeOptions.from_dict(options.to_dict()) == options
    assert options.chains == 4
    assert DiscriminativeOptions(batch_size=12).chains == 12
    assert options.term_weights == (1.0, 0.2)
    assert DiscriminativeOptions(objective="generative").term_weights == (0.0, 1.0)
    assert DiscriminativeOptions().term_weights == (1.0, 0.0)

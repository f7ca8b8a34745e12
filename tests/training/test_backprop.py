"""Backpropagation as a gradient: its formula, weights, and the stream of random layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from freenergy.random import RandomStream
from freenergy.training import LabelledBatch, LabelledRows, LoopOptions, Trainer, as_rows
from freenergy.training.backprop import Backpropagation, mean_cross_entropy


def net(d: int = 4, n_classes: int = 3, dropout: float = 0.0, seed: int = 0) -> nn.Module:
    """A softmax regression, behind dropout where asked, with normal weights."""
    linear = nn.utils.skip_init(nn.Linear, d, n_classes, dtype=torch.float64)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(size=tuple(parameter.shape))))
    return nn.Sequential(nn.Dropout(dropout), linear) if dropout else linear


def batch(n: int = 20, d: int = 4, weighted: bool = False, seed: int = 1) -> LabelledBatch:
    rng = np.random.default_rng(seed)
    weights = torch.from_numpy(rng.uniform(0.1, 3, n)) if weighted else None
    rows, labels = rng.normal(size=(n, d)), rng.integers(0, 3, n)
    return LabelledBatch(torch.from_numpy(rows), torch.from_numpy(labels), weights)


def gradients(model: nn.Module) -> list[np.ndarray]:
    return [p.grad.numpy().copy() for p in model.parameters()]


@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_of_a_softmax_is_the_difference_of_probabilities_by_hand(weighted):
    """d loss / d logits = sum_i w_i (p(y|x_i) - [y = y_i]) / n."""
    model, data = net(), batch(weighted=weighted)
    Backpropagation(model, mean_cross_entropy).compute(data)
    W, b = (p.detach().numpy() for p in (model.weight, model.bias))
    X, y = data.rows.numpy(), data.labels.numpy()
    w = np.ones(20) if data.weights is None else data.weights.numpy()
    p = np.exp(X @ W.T + b)
    p /= p.sum(1, keepdims=True)
    slope = (w / 20)[:, None] * (p - np.eye(3)[y])
    assert_allclose(model.weight.grad, slope.T @ X, atol=1e-15)
    assert_allclose(model.bias.grad, slope.sum(0), atol=1e-15)
    loss = float(mean_cross_entropy(model, data).detach())
    assert loss == pytest.approx(-(w / 20) @ np.log(p[np.arange(20), y]), rel=1e-14)


def gradients_of(data):
    model = net()
    Backpropagation(model, mean_cross_entropy).compute(data)
    return gradients(model)


def test_a_weight_of_mean_one_counts_as_repetitions():
    data, counts = batch(), torch.arange(20) % 4
    repeated = LabelledBatch(
        data.rows.repeat_interleave(counts, 0), data.labels.repeat_interleave(counts), None
    )
    weights = counts / counts.double().mean()
    for scale in (1.0, 1e-5):
        weighted = gradients_of(data._replace(weights=scale * weights))
        for one, two in zip(gradients_of(repeated), weighted, strict=True):
            assert_allclose(two, scale * one, atol=1e-15)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_batches_of_an_epoch_add_up_to_the_whole(size):
    """A rare class of great weight included: a batch has no right to a mean of its own."""
    data = batch()
    weights = torch.tensor([20.0, 1.0, 0.3], dtype=torch.float64)[data.labels]
    data = data._replace(weights=weights / weights.mean())
    parts = [
        gradients_of(LabelledBatch(*(t[start : start + size] for t in data)))
        for start in range(0, 20, size)
    ]
    for whole, *of_batches in zip(gradients_of(data), *parts, strict=True):
        assert_allclose(np.mean(of_batches, 0), whole, atol=1e-15)


def test_rows_without_labels_are_passed_over():
    data = batch(weighted=True)
    hidden = torch.arange(20) % 3 == 0
    model, other = net(), net()
    labels = torch.where(hidden, -1, data.labels)
    Backpropagation(model, mean_cross_entropy).compute(data._replace(labels=labels))
    part = LabelledBatch(data.rows[~hidden], data.labels[~hidden], data.weights[~hidden])
    Backpropagation(other, mean_cross_entropy).compute(part)
    for one, two in zip(gradients(model), gradients(other), strict=True):
        assert_array_equal(one, two)


@pytest.mark.parametrize(
    "change",
    [{"labels": torch.full((20,), -1)}, {"weights": torch.zeros(20, dtype=torch.float64)}],
    ids=["no labels", "no weights"],
)
def test_a_batch_that_says_nothing_has_no_gradient(change):
    model = net()
    Backpropagation(model, mean_cross_entropy).compute(batch()._replace(**change))
    for gradient in gradients(model):
        assert_array_equal(gradient, 0)


def test_extreme_logits_have_a_finite_gradient():
    data = batch()
    model = net()
    Backpropagation(model, mean_cross_entropy).compute(data._replace(rows=1e4 * data.rows))
    assert all(np.isfinite(g).all() for g in gradients(model))


def test_a_second_gradient_takes_the_place_of_the_first():
    model = net()
    gradient = Backpropagation(model, mean_cross_entropy)
    gradient.compute(batch())
    first = gradients(model)
    gradient.compute(batch(seed=2))
    gradient.compute(batch())
    for one, two in zip(gradients(model), first, strict=True):
        assert_array_equal(one, two)
    with torch.no_grad():
        gradient.compute(batch())
    assert_array_equal(gradients(model)[0], first[0])
    assert gradient.measure() == {}


def test_random_layers_draw_from_a_stream_of_their_own():
    data = batch()

    def steps(seed: int, n: int = 3) -> list[np.ndarray]:
        model = net(dropout=0.5)
        gradient = Backpropagation(model, mean_cross_entropy, seed=seed)
        found = []
        for _ in range(n):
            gradient.compute(data)
            found.append(gradients(model)[0])
        return found

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = steps(1)
    assert_array_equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    for one, two in zip(steps(1), first, strict=True):
        assert_array_equal(one, two)
    assert (first[0] != first[1]).any(), "each update has draws of its own"
    assert (steps(2, 1)[0] != first[0]).any()


def test_a_model_is_left_as_it_predicts():
    """Random layers are on in the gradient alone, whatever happens there."""
    model = net(dropout=0.5)
    gradient = Backpropagation(model, mean_cross_entropy)
    gradient.compute(batch())
    assert not any(layer.training for layer in model.modules())

    def fail(_model, _batch):
        torch.rand(3)
        raise OSError("no space left")

    broken = Backpropagation(model, fail)
    before, draws = torch.get_rng_state(), broken.state()["draws"].clone()
    with pytest.raises(OSError, match="no space left"):
        broken.compute(batch())
    assert_array_equal(torch.get_rng_state(), before)
    assert_array_equal(broken.state()["draws"], draws)
    assert not any(layer.training for layer in model.modules())


def test_half_of_the_inputs_dropped_average_to_the_whole():
    data = batch(4)
    model = net()
    torch.manual_seed(0)
    dropped = torch.stack(
        [mean_cross_entropy(model, data, input_dropout=0.3).detach() for _ in range(20)]
    )
    assert len(set(dropped.tolist())) > 10
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x)
            return torch.zeros(len(x), 3, dtype=x.dtype)

    for _ in range(4000):
        mean_cross_entropy(Spy(), data, input_dropout=0.3)
    mean = torch.stack(seen).mean(0)
    error = data.rows.abs() * (0.3 / 0.7 / 4000) ** 0.5
    assert bool(((mean - data.rows).abs() < 4.5 * error).all())


def trainer(seed: int = 0) -> Trainer:
    model = net(dropout=0.5)
    gradient = Backpropagation(model, mean_cross_entropy, seed=seed)
    options = LoopOptions(n_epochs=4, batch_size=5, optimizer="adam", learning_rate=0.1)
    return Trainer(model, options, RandomStream(0), gradient=gradient)


def rows() -> LabelledRows:
    data = batch()
    return LabelledRows(as_rows(data.rows, data.rows), data.labels)


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_a_training_goes_on_to_the_same_bits(epoch, same_state):
    whole, begun, resumed = trainer(), trainer(), trainer(seed=9)

    def interrupt(trainer):
        if trainer.epoch == epoch:
            raise KeyboardInterrupt

    whole.fit(rows())
    if epoch:
        with pytest.raises(KeyboardInterrupt):
            begun.fit(rows(), on_epoch=interrupt)
    resumed.restore(*begun.state())
    resumed.fit(rows())
    same_state(resumed.state(), whole.state())


def test_running_means_of_a_layer_belong_to_the_state(same_state):
    """An epoch that is undone must not leave its statistics behind, nor a resumed one lack them."""

    def normalized() -> Trainer:
        torch.manual_seed(4)
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
        gradient = Backpropagation(model, mean_cross_entropy)
        options = LoopOptions(n_epochs=2, batch_size=5, learning_rate=0.1)
        return Trainer(model, options, RandomStream(0), gradient=gradient)

    whole, resumed = normalized(), normalized()
    begin = whole.state()
    whole.fit(rows())
    assert bool((whole.model[1].running_mean != 0).all())
    resumed.restore(*whole.state())
    same_state(resumed.state(), whole.state())
    assert_array_equal(resumed.model[1].running_var, whole.model[1].running_var)
    whole.restore(*begin)
    assert not bool(whole.model[1].running_mean.any())


def test_the_stream_of_another_kind_of_device_starts_anew():
    gradient = Backpropagation(net(), mean_cross_entropy, seed=3)
    own = gradient.state()["draws"].clone()
    gradient.restore({"draws": torch.zeros(16, dtype=torch.uint8)})
    assert_array_equal(gradient.state()["draws"], own)

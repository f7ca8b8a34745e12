"""The discriminative RBM against sums over all its states, written from the energy alone."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from freenergy.models import DiscriminativeRBM
from freenergy.random import RandomStream

VALUES = {
    "bernoulli": (0.0, 1.0),
    "spin": (-1.0, 1.0),
    "ternary": (-1.0, 0.0, 1.0),
    "binomial(3)": (0.0, 1.0, 2.0, 3.0),
}
HIDDEN = pytest.mark.parametrize("hidden", ["bernoulli", "spin", "binomial(3)"])
BETAS = pytest.mark.parametrize("beta", [0.4, 1.0, 1.7])


def make_model(
    n_visible=4,
    n_classes=3,
    n_hidden=3,
    *,
    scale=0.7,
    seed=0,
    dtype=torch.float64,
    **units,
) -> DiscriminativeRBM:
    """A model with normal weights and biases of this standard deviation."""
    rng = np.random.default_rng([seed, n_visible, n_classes, n_hidden])
    model = DiscriminativeRBM(n_visible, n_classes, n_hidden, dtype=dtype, **units)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(0, scale, tuple(parameter.shape))))
    return model


class JointTable:
    """Every state (x, y, h) with its energy and its Boltzmann weight."""

    def __init__(self, model: DiscriminativeRBM, beta: float) -> None:
        W, U, a, d, b = (
            p.detach().numpy()
            for p in (
                model.weight,
                model.label_weight,
                model.visible_bias,
                model.label_bias,
                model.hidden_bias,
            )
        )
        self.x = np.array(list(itertools.product(VALUES[model.visible.name], repeat=len(a))))
        self.h = np.array(list(itertools.product(VALUES[model.hidden.name], repeat=len(b))))
        energy = np.empty((len(self.x), len(d), len(self.h)))
        for (i, x), y, (k, h) in itertools.product(
            enumerate(self.x), range(len(d)), enumerate(self.h)
        ):
            energy[i, y, k] = -a @ x - d[y] - b @ h - x @ W @ h - U[y] @ h
        self.beta, self.energy = beta, energy
        self.weight = np.exp(-beta * energy)

    @property
    def class_free_energies(self) -> np.ndarray:
        return -np.log(self.weight.sum(2)) / self.beta

    @property
    def free_energy(self) -> np.ndarray:
        return -np.log(self.weight.sum((1, 2))) / self.beta

    @property
    def log_proba(self) -> np.ndarray:
        """ln p(y|x)."""
        joint = self.weight.sum(2)
        return np.log(joint / joint.sum(1, keepdims=True))

    @property
    def hidden_mean(self) -> np.ndarray:
        """<h> given x and y."""
        return self.weight @ self.h / self.weight.sum(2)[..., None]

    @property
    def visible_mean(self) -> np.ndarray:
        """<x> given h."""
        joint = self.weight.sum(1)
        return joint.T @ self.x / joint.sum(0)[:, None]

    @property
    def label_proba(self) -> np.ndarray:
        """p(y|h)."""
        joint = self.weight.sum(0)
        return (joint / joint.sum(0)).T


def tensor(x) -> torch.Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


@torch.no_grad()
@HIDDEN
@BETAS
@pytest.mark.parametrize("visible", ["bernoulli", "spin"])
def test_everything_is_a_partial_sum_over_the_joint_states(visible, hidden, beta):
    model = make_model(visible=visible, hidden=hidden)
    table = JointTable(model, beta)
    x, h, y = tensor(table.x), tensor(table.h), torch.arange(3)
    energy = model.energy(x[:, None, None], y[:, None], h, beta)
    assert_allclose(energy, beta * table.energy, rtol=1e-12, atol=1e-13)
    assert_allclose(model.class_free_energies(x, beta), table.class_free_energies, rtol=1e-12)
    assert_allclose(model.free_energy(x[:, None], y, beta), table.class_free_energies, rtol=1e-12)
    assert_allclose(model.free_energy(x, beta=beta), table.free_energy, rtol=1e-12)
    assert_allclose(model.log_proba(x, beta), table.log_proba, rtol=1e-11)
    assert_allclose(model.hidden_mean(x[:, None], y, beta), table.hidden_mean, atol=1e-13)
    assert_allclose(model.visible_mean(h, beta), table.visible_mean, atol=1e-13)
    assert_allclose(model.label_log_proba(h, beta).exp(), table.label_proba, atol=1e-13)


@torch.no_grad()
def test_a_user_defined_unit_works_in_both_layers(ternary):
    model = make_model(visible=ternary, hidden=ternary)
    table = JointTable(model, 0.8)
    x, h = tensor(table.x), tensor(table.h)
    assert_allclose(model.log_proba(x, 0.8), table.log_proba, rtol=1e-11)
    assert_allclose(model.visible_mean(h, 0.8), table.visible_mean, atol=1e-13)


@torch.no_grad()
def test_the_loss_of_the_classes_is_a_difference_of_free_energies():
    model, beta = make_model(hidden="spin"), 1.7
    x, y = tensor(JointTable(model, beta).x), torch.arange(16) % 3
    loss = beta * (model.free_energy(x, y, beta) - model.free_energy(x, beta=beta))
    chosen = model.log_proba(x, beta)[torch.arange(16), y]
    assert_allclose(loss, -chosen, rtol=1e-12)
    assert float(loss.min()) > 0


@torch.no_grad()
def test_the_visible_biases_say_nothing_of_the_class():
    model = make_model()
    x = tensor(JointTable(model, 1.0).x)
    before = model.log_proba(x)
    model.visible_bias.fill_(1e12)
    assert bool((model.log_proba(x) == before).all())
    # The free energies with the biases have lost the digits in which the classes differ.
    lost = torch.log_softmax(-model.class_free_energies(x), -1) - before
    assert float(lost.abs().max()) > 1e-5


@torch.no_grad()
def test_a_hidden_unit_from_0_to_3_is_two_bits():
    model = make_model(hidden="binomial(3)")
    bits = make_model(n_hidden=6)
    for name in ("weight", "label_weight", "hidden_bias"):
        one = model.get_parameter(name)
        bits.get_parameter(name).copy_(torch.cat([one, 2 * one], -1))
    bits.visible_bias.copy_(model.visible_bias)
    bits.label_bias.copy_(model.label_bias)
    x = tensor(JointTable(model, 1.0).x)
    assert_allclose(model.class_free_energies(x, 1.3), bits.class_free_energies(x, 1.3), rtol=1e-13)


@torch.no_grad()
def test_without_couplings_to_the_classes_their_biases_decide():
    model, beta = make_model(), 0.6
    model.label_weight.zero_()
    x = tensor(JointTable(model, 1.0).x)
    expected = torch.log_softmax(beta * model.label_bias, 0).expand(16, 3)
    assert_allclose(model.log_proba(x, beta), expected, rtol=1e-13)


@torch.no_grad()
def test_the_rbm_of_its_rows_is_the_one_whose_hidden_units_feel_no_class():
    model = make_model(visible="spin", hidden="binomial(3)")
    state = torch.get_rng_state()
    rows = model.marginal_rbm()
    assert bool((torch.get_rng_state() == state).all()), "reading a model draws nothing"
    assert repr(rows) == "RBM(n_visible=4, n_hidden=3, visible='spin', hidden='binomial(3)')"
    x = tensor(JointTable(model, 1.0).x)
    field = rows.hidden_field(x, 0.7)
    assert_allclose(
        model.hidden_field(x, torch.full((16,), 2), 0.7) - field,
        (0.7 * model.label_weight[2]).expand(16, 3),
        atol=1e-14,
    )
    rows.weight.zero_()
    assert float(model.weight.abs().max()) > 0, "a copy"
    model.label_weight.zero_()
    model.label_bias.zero_()
    free_energy = model.marginal_rbm().free_energy(x, 0.7) - math.log(3) / 0.7
    assert_allclose(model.free_energy(x, beta=0.7), free_energy, rtol=1e-13)


@torch.no_grad()
@HIDDEN
def test_draws_have_their_conditional_distributions(hidden, random):
    model, beta, n = make_model(hidden=hidden), 1.4, 100_000
    table = JointTable(model, beta)
    x, h = tensor(table.x[[6]]).expand(n, 4), tensor(table.h[[5]]).expand(n, 3)
    y = torch.full((n,), 2)

    def z(values, mean):
        return float(((values.mean(0) - tensor(mean)) / (values.std(0) / n**0.5)).abs().max())

    assert z(model.sample_hidden(x, y, random, beta), table.hidden_mean[6, 2]) < 4
    assert z(model.sample_visible(h, random, beta), table.visible_mean[5]) < 4
    labels = model.sample_labels(h, random, beta)
    assert labels.dtype == torch.int64
    assert z(torch.nn.functional.one_hot(labels, 3).double(), table.label_proba[5]) < 4
    out = torch.empty(n, 4).double()
    assert model.sample_visible(h, RandomStream(1), beta, out) is out
    assert bool((out == model.sample_visible(h, RandomStream(1), beta)).all())


@pytest.mark.parametrize("n_hidden", [3, 40_000])
def test_blocks_of_rows_are_the_rows(n_hidden):
    """Of the large model one row makes a block; gradients pass through the blocks."""
    model = make_model(n_visible=6, n_classes=4, n_hidden=n_hidden, scale=0.02)
    x = torch.bernoulli(torch.full((7, 6), 0.5), generator=torch.Generator().manual_seed(0))
    x = x.double()
    whole = model.log_proba(x)
    field = model.row_field(x, 1.0)[:, None] + model.label_weight
    plain = torch.log_softmax(
        torch.nn.functional.softplus(field, threshold=40).sum(-1) + model.label_bias, -1
    )
    assert_allclose(whole.detach(), plain.detach(), rtol=1e-10)
    found = torch.autograd.grad(whole[:, 1].sum(), tuple(model.parameters()), allow_unused=True)
    expected = torch.autograd.grad(plain[:, 1].sum(), tuple(model.parameters()), allow_unused=True)
    for (name, _), ours, theirs in zip(model.named_parameters(), found, expected, strict=True):
        if name == "visible_bias":
            assert ours is None
        else:
            assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(), (5,), (2, 5), (0,)])
def test_leading_dimensions_are_kept(shape):
    model = make_model()
    x, h = torch.ones(*shape, 4).double(), torch.ones(*shape, 3).double()
    y = torch.zeros(shape, dtype=torch.int64)
    assert model.energy(x, y, h).shape == shape
    assert model.free_energy(x).shape == shape
    assert model.free_energy(x, y).shape == shape
    assert model.class_free_energies(x).shape == (*shape, 3)
    assert model.log_proba(x, 0.7).shape == (*shape, 3)
    assert model.hidden_mean(x, y).shape == (*shape, 3)
    assert model.visible_mean(h).shape == (*shape, 4)
    assert model.label_log_proba(h).shape == (*shape, 3)
    assert model.sample_hidden(x, y, RandomStream(0)).shape == (*shape, 3)
    assert model.sample_visible(h, RandomStream(0)).shape == (*shape, 4)
    assert model.sample_labels(h, RandomStream(0)).shape == shape


@HIDDEN
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_fields_stay_finite_and_choose_the_lowest_energy(hidden, dtype):
    model = make_model(hidden=hidden, scale=1e4, dtype=dtype)
    x = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)), dtype=dtype)
    low, high = VALUES[hidden][0], VALUES[hidden][-1]
    with torch.no_grad():
        field = (x @ model.weight + model.hidden_bias)[:, None] + model.label_weight
        best = torch.maximum(low * field, high * field).sum(-1) + model.label_bias
        expected = -best - (x @ model.visible_bias)[:, None]
    rounding = 8 * torch.finfo(dtype).eps * float(expected.abs().max())
    found = model.class_free_energies(x).detach()
    assert_allclose(found, expected, rtol=0, atol=rounding)
    log_proba = model.log_proba(x)
    assert bool(log_proba.isfinite().all())
    assert bool((log_proba.argmax(1) == best.argmax(1)).all())
    log_proba.sum().backward()
    for name, parameter in model.named_parameters():
        if name != "visible_bias":
            assert bool(parameter.grad.isfinite().all())
    y = model.sample_labels(
        model.sample_hidden(x, best.argmax(1), RandomStream(0)), RandomStream(0)
    )
    assert y.shape == (16,)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_class_that_does_not_exist_is_refused(label):
    """A row without a label, -1, must not be taken for one of the last class."""
    model, x, h = make_model(), torch.ones(2, 4).double(), torch.ones(2, 3).double()
    y = torch.tensor([0, label])
    for ask in (
        lambda: model.energy(x, y, h),
        lambda: model.free_energy(x, y),
        lambda: model.hidden_mean(x, y),
        lambda: model.sample_hidden(x, y, RandomStream(0)),
    ):
        with pytest.raises(ValueError, match=rf"numbered from 0 to 2, got .*{label}"):
            ask()


def test_a_new_model_has_small_couplings_and_no_biases():
    torch.manual_seed(0)
    model = DiscriminativeRBM(200, 50, 100)
    for weight in (model.weight, model.label_weight):
        assert float(weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    for bias in (model.visible_bias, model.label_bias, model.hidden_bias):
        assert not bias.any()
    assert DiscriminativeRBM(2, 2, 2, dtype=torch.float64).label_weight.dtype == torch.float64
    assert (model.n_visible, model.n_classes, model.n_hidden) == (200, 50, 100)
    assert repr(DiscriminativeRBM(7, 3, 2, hidden="binomial(4)")) == (
        "DiscriminativeRBM(n_visible=7, n_classes=3, n_hidden=2, visible='bernoulli', "
        "hidden='binomial(4)')"
    )


@pytest.mark.parametrize("sizes", [(0, 2, 1), (1, 1, 1), (1, 2, 0)])
def test_a_model_needs_units_and_two_classes(sizes):
    with pytest.raises(ValueError, match="one visible unit, two classes and one hidden"):
        DiscriminativeRBM(*sizes)

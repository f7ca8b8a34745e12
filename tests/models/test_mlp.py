"""Multilayer perceptrons: their layers, and starts that keep the signal alive."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import neural_network
from torch import nn

from freenergy.models import VAE, initialize_perceptron, multilayer_perceptron
from freenergy.models.mlp import ACTIVATIONS, linear_layers
from freenergy.normalization.layers import BatchNorm, GhostBatchNorm
from freenergy.random import RandomStream


def started(sizes, activation="relu", init="auto", seed=0, n_outputs=1, n_features=300):
    net = multilayer_perceptron(n_features, sizes, n_outputs, activation=activation).double()
    initialize_perceptron(net, RandomStream(seed), activation=activation, init=init)
    return net


def kinds(net):
    return [type(layer) for layer in net]


# ---- layers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_layers_come_in_the_order_linear_normalisation_activation_dropout(activation):
    phi = ACTIVATIONS[activation]
    drop = nn.AlphaDropout if activation == "selu" else nn.Dropout
    make = multilayer_perceptron
    assert kinds(make(3, (4,), 2, activation=activation)) == [nn.Linear, phi, nn.Linear]
    for normalization, norm in (("batch", BatchNorm), ("ghost_batch", GhostBatchNorm)):
        net = make(3, (4,), 2, activation=activation, normalization=normalization, dropout=0.1)
        assert kinds(net) == [nn.Linear, norm, phi, drop, nn.Linear]


def test_no_hidden_layer_is_a_linear_model():
    assert kinds(multilayer_perceptron(3, (), 2)) == [nn.Linear]


def test_linear_layers_are_found_in_order_in_the_parts_of_a_model():
    model = VAE(6, 2, hidden_sizes=(5, 4))
    expected = [model.encoder[0], model.encoder[2], model.encoder[4]]
    expected += [model.decoder[0], model.decoder[2], model.decoder[4]]
    assert all(a is b for a, b in zip(linear_layers(model), expected, strict=True))


def test_max_norm_and_self_add_no_layer():
    plain = multilayer_perceptron(3, (4,), 2, activation="selu")
    for normalization in ("max_norm", "self"):
        net = multilayer_perceptron(3, (4,), 2, activation="selu", normalization=normalization)
        assert kinds(net) == kinds(plain)


def test_ghost_batches_have_the_size_asked_for():
    net = multilayer_perceptron(3, (4,), 2, normalization="ghost_batch", ghost_batch_size=7)
    assert net[1].ghost_batch_size == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "softplus"}, "activation must be one of 'identity'.*got 'softplus'"),
        ({"normalization": "layer"}, "normalization must be one of None.*got 'layer'"),
        ({"normalization": "self"}, "normalization='self' needs activation='selu'"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        multilayer_perceptron(3, (4,), 2, **options)


# ---- starts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("init", "gain"), [("lecun", 1.0), ("he", 2.0)])
def test_normal_starts_have_the_variance_of_their_fan_in(init, gain):
    net = started((400, 400), init=init, n_outputs=300)
    first, second, last = linear_layers(net)
    # Variances of 10⁵ draws have a relative error of 0.45 %.
    for layer, expected in ((first, gain / 300), (second, gain / 400), (last, 1.0 / 400)):
        assert float(layer.weight.detach().var()) == pytest.approx(expected, rel=0.02)
        assert (
            abs(float(layer.weight.detach().mean())) < 5 * (expected / layer.weight.numel()) ** 0.5
        )
        assert not layer.bias.any()


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
def test_glorot_is_the_start_of_scikit_learn(activation):
    X, y = np.random.default_rng(0).normal(size=(5, 7)), np.arange(5.0)
    theirs = neural_network.MLPRegressor(
        hidden_layer_sizes=(4, 3), activation=activation, learning_rate_init=1e-300, max_iter=1,
        random_state=3,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="Maximum iterations"):
        theirs.fit(X, y)
    net = multilayer_perceptron(7, (4, 3), 1, activation=activation).double()
    initialize_perceptron(net, RandomStream(np.random.RandomState(3)), activation=activation)
    for layer, W, b in zip(linear_layers(net), theirs.coefs_, theirs.intercepts_, strict=True):
        np.testing.assert_allclose(layer.weight.detach().numpy().T, W, rtol=0, atol=1e-15)
        np.testing.assert_allclose(layer.bias.detach().numpy(), b, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("activation", "n_hidden", "init"),
    [
        ("selu", 1, "lecun"),
        ("relu", 3, "glorot"),
        ("relu", 4, "he"),
        ("leaky_relu", 4, "he"),
        ("elu", 4, "he"),
        ("tanh", 4, "glorot"),
        ("sigmoid", 4, "glorot"),
    ],
)
def test_auto_takes_what_fits_activation_and_depth(activation, n_hidden, init):
    auto, named = (started((5,) * n_hidden, activation, i, n_features=6) for i in ("auto", init))
    for a, b in zip(auto.parameters(), named.parameters(), strict=True):
        assert torch.equal(a, b)


def signals(activation, init):
    """Activations of each of 32 layers, for inputs of mean 0 and variance 1."""
    net = started((300,) * 32, activation, init)
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(200, 300)))
    found = []
    with torch.no_grad():
        for layer in net[:-1]:
            x = layer(x)
            if not isinstance(layer, nn.Linear):
                found.append(x)
    return found


def second_moments(activation, init):
    return [float(x.square().mean()) for x in signals(activation, init)]


def test_glorot_halves_what_tells_rows_apart_in_each_layer_of_relus():
    variances = [float(x.var(0).mean()) for x in signals("relu", "glorot")]
    assert variances[-1] < 0.6**31 * variances[0]


@pytest.mark.parametrize("activation", ["selu", "relu", "leaky_relu", "tanh"])
def test_the_signal_lives_through_32_layers(activation):
    moments = second_moments(activation, "auto")
    assert min(moments) > 0.02
    assert max(moments) < 5.0


def test_selu_holds_mean_0_and_variance_1_from_layer_to_layer():
    moments = second_moments("selu", "auto")
    assert all(0.7 < m < 1.4 for m in moments)


def test_the_draws_are_the_same_in_both_precisions():
    nets = [multilayer_perceptron(6, (5,), 2).to(dtype=d) for d in (torch.float32, torch.float64)]
    for init in ("glorot", "he"):
        for net in nets:
            initialize_perceptron(net, RandomStream(0), init=init)
        for a, b in zip(*(net.parameters() for net in nets), strict=True):
            assert torch.equal(a, b.float())


def test_torchs_global_stream_is_left_alone():
    before = torch.get_rng_state()
    started((5, 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_start_is_refused():
    with pytest.raises(ValueError, match=r"init must be one of 'auto', 'glorot'.*got 'zero'"):
        started((5,), init="zero")

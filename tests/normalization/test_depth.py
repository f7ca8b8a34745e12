"""What is predicted for deep nets, against nets that were drawn and measured."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from freenergy.models.mlp import initialize_perceptron, multilayer_perceptron
from freenergy.normalization import get_activation, predict_depth
from freenergy.normalization.fluctuations import gradient_spread, layer_noise, signal_spread
from freenergy.random import RandomStream

WIDTH, DEPTH, SEEDS = 1024, 32, range(3)
CASES = {
    "selu": ("lecun_normal", 1.0),
    "relu": ("he_normal", 2.0),
    "tanh": ("lecun_normal", 1.0),
}


def second_moments(
    name: str, tau: float, weights: list[np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, variance, and mean squared gradient of every layer, for 48 inputs at once."""
    f, factor = get_activation(name), np.sqrt(tau / WIDTH)
    activation = rng.normal(size=(48, WIDTH))
    layers, slopes = [activation], []
    for weight in weights:
        z = factor * activation @ weight
        activation = f(z)
        layers.append(activation)
        slopes.append(f.derivative(z))
    gradient = rng.normal(size=activation.shape)
    squares = [np.mean(gradient**2)]
    for weight, slope in zip(reversed(weights), reversed(slopes), strict=True):
        gradient = factor * (gradient * slope) @ weight.T
        squares.append(np.mean(gradient**2))
    means, variances = (np.array([p(a) for a in layers]) for p in (np.mean, np.var))
    return means, variances, np.array(squares[::-1]) / squares[0]


@functools.cache
def measured() -> dict[str, np.ndarray]:
    """For each net, shape (n_seeds, 3, depth + 1); the nets of a seed share their weights."""
    found: dict[str, list[tuple[np.ndarray, ...]]] = {name: [] for name in CASES}
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        weights = [rng.standard_normal((WIDTH, WIDTH)) for _ in range(DEPTH)]
        for name, (_, tau) in CASES.items():
            found[name].append(second_moments(name, tau, weights, rng))
    return {name: np.array(nets) for name, nets in found.items()}


@pytest.mark.parametrize("name", ["selu", "tanh"])
def test_variance_of_activations_and_gradients_within_five_per_cent(name):
    """32 layers of 1024 units, averaged over three nets."""
    predicted = predict_depth(name, CASES[name][0], DEPTH)
    _, variance, gradient = measured()[name].mean(0)
    assert_allclose(variance, predicted.variance, rtol=0.05)
    assert_allclose(gradient, predicted.gradient_variance, rtol=0.05)


def test_relu_keeps_its_second_moment_layer_by_layer():
    """Nothing calls a second moment back, so that a net of finite width strays from it.

    A layer multiplies it by 1 ± √(5/1024), 7 % : over 32 layers and three nets the factor of one
    layer is known to 0.7 %, the product of 32 to 40 % in each net. Gradients of 48 directions
    average more.
    """
    predicted = predict_depth("relu", "he_normal", DEPTH)
    mean, variance, gradient = measured()["relu"].transpose(1, 0, 2)
    log_second = np.log(variance + mean**2)
    assert_allclose(predicted.variance[1:] + predicted.mean[1:] ** 2, 1.0)
    assert abs(np.diff(log_second).mean()) < 3 * np.sqrt(5 / WIDTH / DEPTH / len(SEEDS))
    assert np.abs(log_second).max() < 3 * np.sqrt(5 * DEPTH / WIDTH)
    layer = np.exp(np.log(gradient[:, 0]).mean() / DEPTH)
    assert layer == pytest.approx(1.0, abs=0.01)
    assert_allclose(predicted.gradient_variance, 1.0)


def test_a_mean_of_activations_is_spread_over_units_by_independent_weights():
    """Without μ² in the variance of z, He's weights would lose a third of it in each layer."""
    exact_sums = predict_depth("relu", (0.0, 2.0), 10)
    assert_allclose(exact_sums.variance[2:] / exact_sums.variance[1:-1], 1 - 1 / np.pi)


# Deviations of single nets


def drawn_logarithms(
    name: str, tau: float, width: int, depth: int, n_nets: int
) -> tuple[np.ndarray, np.ndarray]:
    """ln E h² and ln E g² of nets with one input each, shape (n_nets, depth + 1)."""
    f, rng = get_activation(name), np.random.default_rng(0)
    h = rng.normal(size=(n_nets, 1, width))
    h /= np.sqrt((h**2).mean(-1, keepdims=True))
    signal, slopes, weights = [h], [], []
    for _ in range(depth):
        weights.append(rng.normal(scale=np.sqrt(tau / width), size=(n_nets, width, width)))
        z = signal[-1] @ weights[-1]
        slopes.append(f.derivative(z))
        signal.append(f(z))
    gradient = [rng.normal(size=h.shape)]
    for weight, slope in zip(reversed(weights), reversed(slopes), strict=True):
        gradient.append((gradient[-1] * slope) @ weight.swapaxes(1, 2))
    ln_signal, ln_gradient = (
        np.log([(layer**2).mean((1, 2)) for layer in layers]).T for layers in (signal, gradient)
    )
    return ln_signal, (ln_gradient - ln_gradient[:, :1])[:, ::-1]


@pytest.mark.parametrize(
    ("name", "init", "tau"),
    [("relu", "he_normal", 2.0), ("selu", "lecun_normal", 1.0), ("selu", "he_normal", 2.0),
     ("tanh", "lecun_normal", 1.0), ("sigmoid", "lecun_normal", 1.0)],
)  # fmt: skip
def test_nets_of_finite_width_stray_as_far_as_predicted(name, init, tau):
    """The deviation of 500 nets is known to 3 %; second orders in 1/width add a few."""
    width, depth = 64, 6
    profile = predict_depth(name, init, depth, width=width)
    signal, gradient = drawn_logarithms(name, tau, width, depth, 500)
    assert_allclose(signal.std(0)[1:], profile.signal_spread[1:], rtol=0.12)
    assert_allclose(gradient.std(0)[:-1], profile.gradient_spread[:-1], rtol=0.12)


@pytest.mark.parametrize("name", ["tanh", "selu", "sigmoid"])
@pytest.mark.parametrize("noisy", [1, 3])
def test_a_deviation_of_the_signal_goes_on_to_the_gradient_as_the_moment_map_says(name, noisy):
    """Noise in one layer alone, against the derivative of all that lies above it."""
    depth, variance, step = 6, 0.7, 1e-4
    profile = predict_depth(name, "lecun_normal", depth, variance=variance)
    second = profile.variance + profile.mean**2
    layers = [layer_noise(get_activation(name), 0.0, q) for q in second[:-1]]
    quiet = [replace(layer, forward=0.0, backward=0.0, both=0.0) for layer in layers]
    quiet[noisy - 1] = replace(quiet[noisy - 1], forward=layers[noisy - 1].forward)

    def above(sign):
        moved = second[noisy] * np.exp(sign * step)
        rest = predict_depth(name, "lecun_normal", depth - noisy, variance=moved)
        return np.log(rest.gradient_variance[0]), np.log(rest.variance[-1] + rest.mean[-1] ** 2)

    slopes = (np.array(above(1)) - np.array(above(-1))) / (2 * step)
    deviation = np.sqrt(layers[noisy - 1].forward / 50)
    assert gradient_spread(quiet, 50)[0] == pytest.approx(abs(slopes[0]) * deviation, rel=1e-5)
    assert signal_spread(quiet, 50)[-1] == pytest.approx(abs(slopes[1]) * deviation, rel=1e-5)


def test_rectified_nets_stray_as_a_random_walk():
    profile = predict_depth("relu", "he_normal", 32, width=1024)
    walk = np.sqrt(5 * np.arange(33) / 1024)
    assert_allclose(profile.signal_spread, walk, rtol=1e-12)
    assert_allclose(profile.gradient_spread, walk[::-1], rtol=1e-12)
    assert predict_depth("relu", "he_normal", 3).signal_spread is None


@pytest.mark.parametrize(("name", "shrinks", "adds"), [("tanh", 3, 2), ("relu", 6, 5)])
def test_faint_signals_stray_as_others_do(name, shrinks, adds):
    """At a variance of 1e-190 the fourth moment is below double precision; tanh is linear there."""
    depth = round(190 * np.log(10) / np.log(shrinks))
    profile = predict_depth(name, "torch_default", depth, width=64)
    steps = np.diff(profile.signal_spread**2)
    assert steps[-1] == pytest.approx(adds / 64, rel=1e-6)
    assert np.isfinite(profile.gradient_spread).all()


# Predictions


def test_gradients_of_selu_grow_nine_fold_in_32_layers():
    profile = predict_depth("selu", "lecun_normal", 32)
    assert_allclose(profile.variance, 1.0, rtol=1e-13)
    assert profile.gradient_variance[0] == pytest.approx(1.0715749924558**32)
    assert profile.gradient_variance[0] == pytest.approx(9.135, abs=1e-3)


def test_a_framework_default_leaves_a_millionth_of_the_variance():
    profile = predict_depth("selu", "torch_default", 32)
    assert profile.variance[-1] == pytest.approx(1.17e-6, rel=5e-3)


def test_he_weights_blow_selu_up():
    profile = predict_depth("selu", "he_normal", 32)
    assert profile.variance[-1] == pytest.approx(192.7, abs=0.05)
    assert profile.gradient_variance[0] == pytest.approx(4219, abs=0.5)


def test_exact_sums_are_the_moment_map():
    profile = predict_depth("selu", (0.0, 9 / 16), 400)
    assert profile.variance[-1] == pytest.approx(0.0268, abs=5e-5)


def test_sizes_count_for_the_first_layer():
    """Glorot: τ = 2 n_in/(n_in + n_out) forwards, 2 n_out/(n_in + n_out) backwards."""
    linear = predict_depth("identity", "glorot_normal", 3, n_in=100, width=300)
    assert_allclose(linear.variance, [1, 0.5, 0.5, 0.5])
    assert_allclose(linear.gradient_variance, [1.5, 1, 1, 1])
    lecun = predict_depth("identity", "lecun_normal", 2, n_in=100, width=300)
    assert_allclose(lecun.variance, 1.0)
    assert_allclose(lecun.gradient_variance, [3, 1, 1])


@pytest.mark.parametrize("init", ["lecun", "he", "glorot"])
def test_the_names_of_the_perceptrons_mean_the_same_weights(init):
    """In a net as MLPClassifier draws it the signal goes where it is predicted to go."""
    short, long = (predict_depth("tanh", name, 6, width=400) for name in (init, f"{init}_normal"))
    np.testing.assert_array_equal(short.variance, long.variance)
    net = multilayer_perceptron(400, (400,) * 6, 1, activation="tanh")
    initialize_perceptron(net, RandomStream(0), activation="tanh", init=init)
    for layer in net[::2]:
        torch.nn.init.zeros_(layer.bias)
    rows = torch.randn(200, 400, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = net[:12](rows).var().item()
    assert found == pytest.approx(short.variance[-1], rel=0.1)


def test_no_layers_change_nothing():
    profile = predict_depth("selu", depth=0, mean=0.3, variance=2.0)
    assert (profile.mean.tolist(), profile.variance.tolist()) == ([0.3], [2.0])
    assert profile.gradient_variance.tolist() == [1.0]


def test_unknown_names_and_half_of_the_sizes_are_refused():
    with pytest.raises(ValueError, match="unknown init 'xavier': use one of 'lecun_normal'"):
        predict_depth("selu", "xavier")
    with pytest.raises(ValueError, match="n_in=3 needs the width of the layers too"):
        predict_depth("selu", n_in=3)

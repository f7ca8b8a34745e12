"""The moment map against its equations at high precision, where plain evaluation fails too."""

from __future__ import annotations

import functools
import subprocess
import sys

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from freenergy.normalization import (
    SELU_ALPHA,
    SELU_SCALE,
    Activation,
    CallableActivation,
    PiecewiseLinear,
    ScaledELU,
    Sigmoid,
    Tanh,
    backward_gain,
    get_activation,
    moment_jacobian,
    moment_map,
)

ACCURACY = 1e-12
DERIVATIVES = ("slope", "curvature", "covariance", "variance_slope")


def normal_cdf(t):
    return mp.erfc(-t / mp.sqrt(2)) / 2


def normal_density(t):
    return mp.exp(-t * t / 2) / mp.sqrt(2 * mp.pi)


def half_line_moments(m, x):
    """E z and E z² over z > 0."""
    s = mp.sqrt(x)
    t = m / s
    first = m * normal_cdf(t) + s * normal_density(t)
    return first, (m * m + x) * normal_cdf(t) + m * s * normal_density(t)


def elu_moments(m, x, alpha, scale):
    """Mean, variance and E f'² as in the paper, term by term."""
    alpha, scale, s = mp.mpf(alpha), mp.mpf(scale), mp.sqrt(x)
    first, second = half_line_moments(m, x)
    e0, e1, e2 = (mp.exp(k * m + k * k * x / 2) * normal_cdf(-(m + k * x) / s) for k in (0, 1, 2))
    mean = scale * (first + alpha * (e1 - e0))
    square = scale**2 * (second + alpha**2 * (e2 - 2 * e1 + e0))
    return mean, square - mean**2, scale**2 * (normal_cdf(m / s) + alpha**2 * e2)


def linear_moments(m, x, below, above):
    a, b, t = mp.mpf(below), mp.mpf(above), m / mp.sqrt(x)
    first, second = half_line_moments(m, x)
    mean = b * first + a * (m - first)
    square = b**2 * second + a**2 * (m * m + x - second)
    return mean, square - mean**2, b**2 * normal_cdf(t) + a**2 * normal_cdf(-t)


CASES = [
    (get_activation("selu"), functools.partial(elu_moments, alpha=SELU_ALPHA, scale=SELU_SCALE)),
    (get_activation("elu"), functools.partial(elu_moments, alpha=1, scale=1)),
    (ScaledELU(0.3, 2.0), functools.partial(elu_moments, alpha=0.3, scale=2)),
    (ScaledELU(30.0), functools.partial(elu_moments, alpha=30, scale=1)),
    (get_activation("relu"), functools.partial(linear_moments, below=0, above=1)),
    (PiecewiseLinear(0.01, 1.0), functools.partial(linear_moments, below=0.01, above=1)),
    (PiecewiseLinear(-1.0, 1.0), functools.partial(linear_moments, below=-1, above=1)),
    (PiecewiseLinear(3.0, 0.5), functools.partial(linear_moments, below=3, above=0.5)),
]
EVERY_CASE = pytest.mark.parametrize(
    ("activation", "reference"), CASES, ids=lambda v: str(v) if isinstance(v, Activation) else ""
)


def points() -> tuple[np.ndarray, np.ndarray]:
    """Pre-activations of all sizes, and at all distances from the kink."""
    pairs = []
    for x in 10.0 ** np.array([-12, -5, -0.7, 0, 1, 3, 12]):
        ratios = np.array([1e-3, 0.7, 4.0, 12.0, 37.0]) * np.sqrt(x)
        means = np.concatenate([[0.0], ratios, [1e-6, 1.0, 30.0, 1e4]])
        pairs += [(sign * m, x) for m in means for sign in (1, -1)]
    return tuple(np.array(pairs).T)


def digits(m: float, x: float) -> int:
    """What the differences in the equations on paper cancel, and forty more."""
    n = 40 + 2 * np.log10(1 + m * m / x) + abs(np.log10(x))
    return int(n) if m > 0 else int(n + min(m * m / x / 4.6, 300) + min(abs(m), 300))


# Values


@EVERY_CASE
def test_mean_variance_and_gain_are_those_of_the_equations(activation, reference):
    """For means of ±1e4, variances from 1e-12 to 1e12, and 37 deviations from the kink."""
    m, x = points()
    response = activation.response(m, x)
    n_compared = 0
    for i in range(len(m)):
        with mp.workdps(digits(m[i], x[i])):
            mean, variance, gain = reference(mp.mpf(m[i]), mp.mpf(x[i]))
            if variance < 1e-290:  # at the edge of the double-precision numbers
                assert response.variance[i] < 1e-289
                continue
            n_compared += 1
            assert abs(response.variance[i] / variance - 1) < ACCURACY, (m[i], x[i])
            assert abs(response.mean[i] - mean) < ACCURACY * (abs(mean) + mp.sqrt(variance))
            assert abs(response.square_slope[i] / gain - 1) < ACCURACY, (m[i], x[i])
    assert n_compared > 95


@EVERY_CASE
def test_derivatives_are_those_of_the_equations(activation, reference):
    """∂ₘE f = E f', ∂ₓE f = E f''/2, ∂ₘVar f = 2 Cov(f, f'), ∂ₓVar f, by tiny differences."""
    m, x = (values[::9] for values in points())
    response = activation.response(m, x)
    for i in range(len(m)):
        with mp.workdps(digits(m[i], x[i]) + 100):
            mi, xi = mp.mpf(m[i]), mp.mpf(x[i])
            _, variance, gain = reference(mi, xi)
            if min(variance, gain) < 1e-250:
                continue
            dm, dx = mp.mpf(10) ** -50 * mp.sqrt(xi), mp.mpf(10) ** -50 * xi
            up, down = reference(mi + dm, xi), reference(mi - dm, xi)
            more, less = reference(mi, xi + dx), reference(mi, xi - dx)
            expected = (
                (up[0] - down[0]) / (2 * dm),
                (more[0] - less[0]) / dx,
                (up[1] - down[1]) / (4 * dm),
                (more[1] - less[1]) / (2 * dx),
            )
            sizes = mp.sqrt(gain), mp.sqrt(gain / xi), mp.sqrt(gain * variance), gain
            for name, value, size in zip(DERIVATIVES, expected, sizes, strict=True):
                error = abs(getattr(response, name)[i] - value)
                assert error < ACCURACY * size, (name, m[i], x[i])


@pytest.mark.parametrize(
    ("activation", "function"),
    [(Tanh(), mp.tanh), (Sigmoid(), lambda z: 1 / (1 + mp.exp(-z)))],
    ids=["tanh", "sigmoid"],
)
@pytest.mark.parametrize(
    ("m", "x"), [(0.5, 1e-12), (3.0, 1.0), (-5.0, 9.0), (-30.0, 4.0), (2.0, 1e4), (-1e6, 1e12)]
)
def test_smooth_activations_agree_with_quadrature_at_high_precision(activation, function, m, x):
    with mp.workdps(60):
        s, own = mp.sqrt(mp.mpf(x)), function(mp.mpf(m))
        edges = [-20, -10, -5, -2, 0, 2, 5, 10, 20]
        features = [(mp.mpf(z) - mp.mpf(m)) / s for z in (-60, -20, -6, -2, 0, 2, 6, 20, 60)]
        cuts = sorted({*map(mp.mpf, edges), *(y for y in features if abs(y) < 20)})
    response = activation.response(m, x)
    size = mp.sqrt(mp.mpf(response.variance))
    with mp.workdps(20):
        # In units of their size, as the tolerance of the integrals is absolute.
        def deviation(y):
            with mp.workdps(60):
                return (function(m + s * y) - own) / size

        def expectation(p):
            return mp.quad(lambda y: p(deviation(y)) * normal_density(y), cuts)

        first = expectation(lambda g: g)
        variance = expectation(lambda g: (g - first) ** 2)
        assert abs(variance - 1) < ACCURACY
        mean = own + first * size
        assert abs(response.mean - mean) < ACCURACY * (abs(mean) + size)


def test_quadrature_agrees_with_the_closed_form_across_the_kink():
    """SELU as any function, of which only the kink is known."""
    m = np.tile([-8.0, -0.3, 0.0, 0.2, 5.0], 7)
    x = np.repeat([1e-2, 0.1, 1.0, 30.0, 1e4, 1e8, 1e12], 5)
    selu = get_activation("selu")
    exact, found = selu.response(m, x), CallableActivation(selu).response(m, x)
    size = np.sqrt(exact.variance)
    assert_allclose(found.mean, exact.mean, rtol=1e-10, atol=1e-12)
    assert_allclose(found.variance, exact.variance, rtol=1e-9)
    assert_allclose(found.square_slope, exact.square_slope, rtol=1e-9)
    assert_allclose(found.slope, exact.slope, rtol=1e-9)
    assert np.abs(found.covariance - exact.covariance).max() < 1e-9 * size.max()
    assert_allclose(found.variance_slope, exact.variance_slope, rtol=1e-8)


def test_slopes_by_steins_lemma_are_those_of_the_smooth_function():
    m, x = np.array([0.3, -2.0, 0.0]), np.array([0.5, 4.0, 100.0])
    tanh = Tanh().response(m, x)
    first = CallableActivation(Tanh().derivative).response(m, x)
    assert_allclose(tanh.slope, first.mean, rtol=1e-13)
    assert_allclose(tanh.square_slope, first.variance + first.mean**2, rtol=1e-13)
    assert_allclose(tanh.curvature, first.slope, rtol=1e-12, atol=1e-15)


def test_polynomials_have_the_moments_of_the_normal_distribution():
    """E z² = m² + x, Var z² = 2x² + 4m²x, E (2z)² = 4(m² + x)."""
    m, x = np.array([0.0, 1.5, -3.0]), np.array([2.0, 0.1, 7.0])
    response = CallableActivation(np.square).response(m, x)
    assert_allclose(response.mean, m**2 + x, rtol=1e-13)
    assert_allclose(response.variance, 2 * x**2 + 4 * m**2 * x, rtol=1e-12)
    assert_allclose(response.square_slope, 4 * (m**2 + x), rtol=1e-11)
    assert_allclose(response.slope, 2 * m, rtol=1e-12, atol=1e-13)
    assert_allclose(response.covariance, 4 * m * x, rtol=1e-11, atol=1e-12)


def test_kinks_may_lie_anywhere():
    """Hard tanh is a difference of two ReLUs, with the slope 1 where |z| < 1."""
    m, x = np.array([0.0, 0.4, -3.0, 0.7]), np.array([1.0, 1e-4, 25.0, 1e8])
    hard = CallableActivation(lambda z: np.clip(z, -1, 1), kinks=(-1.0, 1.0)).response(m, x)
    relu = get_activation("relu")
    up, down = relu.response(m + 1, x), relu.response(m - 1, x)
    assert_allclose(hard.mean, up.mean - down.mean - 1, rtol=1e-12, atol=1e-11)
    assert_allclose(hard.slope, up.slope - down.slope, rtol=1e-11)
    assert_allclose(hard.square_slope, hard.slope, rtol=1e-10)


# Relations between activations


sizes = st.floats(-12, 12).map(lambda e: 10.0**e)
means = st.tuples(st.floats(-8, 4), st.sampled_from([-1, 1])).map(lambda p: p[1] * 10.0 ** p[0])


@given(means, sizes, sizes)
def test_piecewise_linear_activations_know_no_unit(m, x, c):
    f = PiecewiseLinear(0.2, 1.3)
    one, other = f.response(m, x), f.response(c * m, c**2 * x)
    assert_allclose(other.mean, c * one.mean, rtol=1e-9, atol=1e-12 * c * np.sqrt(one.variance))
    assert_allclose(other.variance, c**2 * one.variance, rtol=1e-12)


@given(means, sizes)
def test_turning_the_input_exchanges_the_slopes(m, x):
    one, other = PiecewiseLinear(0.2, 1.3).response(m, x), PiecewiseLinear(1.3, 0.2).response(-m, x)
    assert_array_equal(one.mean, -other.mean)
    assert_array_equal(one.variance, other.variance)
    assert_array_equal(one.covariance, -other.covariance)


@given(means, sizes)
def test_an_elu_without_its_exponential_is_relu(m, x):
    elu, relu = ScaledELU(0.0).response(m, x), PiecewiseLinear().response(m, x)
    for name in ("mean", "variance", "slope", "square_slope"):
        assert_allclose(getattr(elu, name), getattr(relu, name), rtol=1e-11, atol=1e-300)


@given(means, sizes)
def test_the_identity_keeps_what_it_gets(m, x):
    moments = moment_map("identity", m, x, weight_sum=0.5, weight_square_sum=2.0)
    assert_allclose([moments.mean, moments.variance], [0.5 * m, 2 * x], rtol=1e-14)


@given(means, sizes)
def test_the_logistic_function_is_a_rescaled_tanh(m, x):
    tanh, sigmoid = Tanh().response(m, x), Sigmoid().response(2 * m, 4 * x)
    assert_allclose(tanh.variance, 4 * sigmoid.variance, rtol=1e-12, atol=1e-300)
    assert_allclose(tanh.mean, 2 * sigmoid.mean - 1, rtol=1e-11, atol=1e-14)


@given(means, sizes, st.sampled_from(["selu", "relu", "tanh"]))
def test_no_variance_is_negative_and_none_larger_than_a_slope_allows(m, x, name):
    """Poincaré's inequality: Var f ≤ x E f'²."""
    response = get_activation(name).response(m, x)
    assert 0 <= response.variance <= x * response.square_slope * (1 + 1e-9)
    assert np.isfinite(response.mean)


# The map


def test_selu_keeps_zero_mean_and_unit_variance():
    moments = moment_map("selu", 0.0, 1.0)
    assert abs(moments.mean) < 2e-15
    assert abs(moments.variance - 1) < 2e-15


def test_jacobian_and_gain_of_selu_have_the_published_values():
    """Klambauer et al.: the Jacobian at the fixed point has the spectral norm 0.7877."""
    jacobian = moment_jacobian("selu", 0.0, 1.0)
    assert_allclose(jacobian, [[0.0, 0.088834], [0.0, 0.782648]], atol=1e-6)
    assert np.linalg.norm(jacobian, 2) == pytest.approx(0.7877, abs=5e-5)
    assert backward_gain("selu", 0.0, 1.0) == pytest.approx(1.0716, abs=5e-5)
    assert backward_gain("relu", 0.0, 1.0, 0.0, 2.0) == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("name", ["selu", "leaky_relu", "tanh"])
def test_jacobian_is_the_slope_of_the_map(name):
    """Central differences of fourth order in every argument that counts."""
    rng = np.random.default_rng(0)
    mean, variance = rng.normal(size=20), rng.uniform(0.2, 4, 20)
    weights = rng.normal(size=20), rng.uniform(0.5, 2, 20), rng.uniform(0, 2, 20)

    def difference(direction, h=1e-3):
        def at(k):
            d = k * h
            moments = moment_map(
                name, mean + d * direction[0], variance + d * direction[1], *weights
            )
            return np.stack([moments.mean, moments.variance])

        return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * h)

    jacobian = moment_jacobian(name, mean, variance, *weights)
    assert jacobian.shape == (20, 2, 2)
    assert_allclose(jacobian[:, :, 0].T, difference((1, 0)), atol=2e-10)
    assert_allclose(jacobian[:, :, 1].T, difference((0, 1)), atol=2e-9)


def test_a_fluctuating_weight_sum_adds_the_squared_mean():
    """Normal means of normal distributions: z ~ N(μω, ντ + μ² Var ω), drawn in two steps."""
    nodes, weight = np.polynomial.hermite_e.hermegauss(60)
    weight /= weight.sum()
    mu, nu, omega, tau, fluctuation = 0.7, 0.4, 0.3, 1.2, 0.5
    at_sum = moment_map("tanh", mu, nu, omega + np.sqrt(fluctuation) * nodes, tau)
    mean = weight @ at_sum.mean
    variance = weight @ (at_sum.variance + (at_sum.mean - mean) ** 2)
    whole = moment_map("tanh", mu, nu, omega, tau, fluctuation)
    assert_allclose([whole.mean, whole.variance], [mean, variance], rtol=1e-12)


def test_single_precision_is_computed_in_double():
    """Where the equations on paper overflow (a variance of 50) or give NaN (400)."""
    mean = np.array([0.0, -0.5, 3.0, 0.0, -1e4], dtype=np.float32)
    variance = np.array([50.0, 400.0, 1e12, 1e-12, 0.0], dtype=np.float32)
    for name in ("selu", "elu", "relu", "leaky_relu", "tanh", "sigmoid"):
        single = moment_map(name, mean, variance, np.float32(1))
        double = moment_map(name, mean.astype(float), variance.astype(float), 1.0)
        assert single.mean.dtype == single.variance.dtype == np.float64
        assert_array_equal(single.mean, double.mean)
        assert_array_equal(single.variance, double.variance)
        assert np.isfinite([single.mean, single.variance]).all()


@pytest.mark.parametrize("name", ["selu", "relu", "leaky_relu", "tanh", "sigmoid"])
def test_a_constant_input_becomes_the_constant_that_the_function_makes_of_it(name):
    z = np.array([-1e4, -2.0, 0.0, 0.3, 1e4])
    f = get_activation(name)
    moments = moment_map(f, z, 0.0, 1.0, 1.0)
    assert_allclose(moments.mean, f(z), rtol=1e-15, atol=1e-140)
    assert_array_equal(moments.variance, 0.0)


@pytest.mark.parametrize("name", ["selu", "leaky_relu", "tanh"])
def test_many_points_are_the_same_as_few(name):
    m, x = np.linspace(-3, 3, 8500 if name != "tanh" else 300), 0.7
    whole, part = moment_map(name, m, x, 1.0), moment_map(name, m[-7:], x, 1.0)
    assert_array_equal(whole.variance[-7:], part.variance)


def test_arguments_broadcast():
    moments = moment_map("selu", np.zeros((3, 1)), np.ones(4), 0.0, np.full((2, 1, 1), 0.9))
    assert moments.mean.shape == moments.variance.shape == (2, 3, 4)
    assert moment_jacobian("selu", np.zeros((3, 1)), np.ones(4)).shape == (3, 4, 2, 2)
    assert moment_map("selu", [], []).mean.shape == (0,)
    assert moment_map("tanh", [], []).mean.shape == (0,)


# Derivatives and values of the functions themselves


@pytest.mark.parametrize(
    "name", ["identity", "relu", "leaky_relu", "elu", "selu", "tanh", "logistic"]
)
def test_derivatives_of_the_functions(name):
    f = get_activation(name)
    z = np.array([-1e4, -30.0, -2.0, -1e-3, 1e-3, 0.5, 2.0, 30.0, 1e4])
    h = 1e-5
    assert_allclose(f.derivative(z), (f(z + h) - f(z - h)) / (2 * h), atol=1e-8)


# Errors, and what is imported


@pytest.mark.parametrize("variance", [-1.0, np.nan])
def test_an_impossible_variance_is_named(variance):
    with pytest.raises(ValueError, match=f"variance must be zero or more, got {variance}"):
        moment_map("selu", 0.0, [1.0, variance])
    with pytest.raises(ValueError, match="weight_square_sum must be zero or more"):
        moment_map("selu", 0.0, 1.0, 0.0, variance)
    with pytest.raises(ValueError, match="a variance must be zero or more"):
        Tanh().response(0.0, variance)


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match="unknown activation 'gelu': use one of 'identity'"):
        get_activation("gelu")
    with pytest.raises(ValueError, match="alpha must be zero or more, got -1"):
        ScaledELU(-1.0)
    with pytest.raises(ValueError, match="activation 'sin' has no derivative: give it a slope"):
        get_activation(np.sin).derivative(0.0)


def test_a_function_that_overflows_is_named():
    def softplus(z):
        with np.errstate(over="ignore"):
            return np.log1p(np.exp(z))

    with pytest.raises(ValueError, match="activation 'softplus' must be finite everywhere, not"):
        moment_map(softplus, 0.0, 1e4)
    assert moment_map(lambda z: np.logaddexp(0, z), 0.0, 1e4).mean > 39


def test_a_slope_that_is_given_is_used():
    f = CallableActivation(np.sin, np.cos)
    assert f.response(0.0, 1e-10).square_slope == pytest.approx(1 - 1e-10, abs=1e-14)


def test_the_moment_map_needs_no_torch():
    script = """
import sys
sys.modules["torch"] = None
from freenergy.normalization import design_selu, fixed_point, moment_map, predict_depth
from freenergy.normalization.moments import moment_map
assert fixed_point("selu").stable
"""
    subprocess.run([sys.executable, "-c", script], check=True)

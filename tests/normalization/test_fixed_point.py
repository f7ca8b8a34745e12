"""Where deep nets settle: the theorems on SELU on grids, and nets that erase or diverge."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from freenergy.normalization import (
    PiecewiseLinear,
    basin,
    critical_weight_square_sum,
    fixed_point,
    get_activation,
    moment_jacobian,
    moment_map,
)


def grid(*ranges: tuple[float, float, int]) -> list[np.ndarray]:
    return np.meshgrid(*(np.linspace(*r) for r in ranges), indexing="ij", sparse=True)


def test_a_mean_of_rounding_errors_is_printed_as_zero():
    point = fixed_point("selu")
    assert 0 < abs(point.mean) < 1e-12
    assert "mean=0, variance=1," in repr(point)
    assert "mean=0.56419," in repr(fixed_point("relu", 0.0, 2.0, 2.0))


# Theorems of Klambauer et al. 2017, on grids


def test_theorem_1_the_domain_maps_into_itself():
    """With the paper's bounds: −0.03106 < μ̃ < 0.06773 and 0.80009 < ν̃ < 1.48617."""
    inside = grid((-0.1, 0.1, 11), (0.8, 1.5, 15), (-0.1, 0.1, 11), (0.95, 1.1, 11))
    moments = moment_map("selu", *inside)
    assert moments.mean.min() == pytest.approx(-0.03106, abs=1e-5)
    assert moments.mean.max() == pytest.approx(0.06773, abs=1e-5)
    assert moments.variance.min() > 0.80009
    assert moments.variance.max() < 1.48617


def test_theorem_1_the_map_contracts_on_the_domain():
    inside = grid((-0.1, 0.1, 11), (0.8, 1.5, 15), (-0.1, 0.1, 11), (0.95, 1.1, 11))
    norms = np.linalg.norm(moment_jacobian("selu", *inside), 2, axis=(-2, -1))
    assert norms.max() == pytest.approx(0.8976, abs=1e-4)


@pytest.mark.parametrize("omega", [-0.1, 0.0, 0.1])
@pytest.mark.parametrize("tau", [0.95, 1.0, 1.1])
def test_theorem_1_there_is_a_stable_fixed_point_in_the_domain(omega, tau):
    point = fixed_point("selu", omega, tau)
    assert point.status == "converged"
    assert point.stable
    assert abs(point.mean) < 0.1
    assert 0.8 < point.variance < 1.5
    box = basin(point, np.linspace(-0.1, 0.1, 5), np.linspace(0.8, 1.5, 5), n_iter=60)
    assert box.reached.all()


def test_theorem_2_large_variances_shrink():
    large = grid((-1, 1, 11), (3, 16, 27), (-0.1, 0.1, 11), (0.8, 1.25, 11))
    ratio = moment_map("selu", *large).variance / large[1]
    assert ratio.max() == pytest.approx(0.9601, abs=1e-4)


def test_theorem_2_needs_more_than_one_layer_to_come_below_three():
    """16 becomes 9.02, 5.6, 3.8, and only then 2.9."""
    mean, variance, path = 0.0, 16.0, []
    for _ in range(4):
        moments = moment_map("selu", mean, variance)
        mean, variance = float(moments.mean), float(moments.variance)
        path.append(variance)
    assert_allclose(path, [9.017, 5.620, 3.846, 2.852], atol=1e-3)


def test_theorem_3_small_variances_grow():
    for small in (
        grid((-0.1, 0.1, 11), (0.02, 0.16, 15), (-0.1, 0.1, 11), (0.8, 1.25, 11)),
        grid((-0.1, 0.1, 11), (0.02, 0.24, 15), (-0.1, 0.1, 11), (0.9, 1.25, 11)),
    ):
        assert (moment_map("selu", *small).variance / small[1]).min() > 1.15


def test_theorem_3_ends_below_its_domain():
    """A tiny variance around a negative pre-activation shrinks: f' falls below 1 at z < −0.564."""
    shrinking = moment_map("selu", -6.0, 1e-6, 0.1, 0.95)
    assert shrinking.variance < 0.93 * 1e-6


# Fixed points


def test_selu_at_its_fixed_point():
    point = fixed_point("selu", start=(0.5, 3.0))
    assert abs(point.mean) < 1e-14
    assert point.variance == pytest.approx(1.0, abs=1e-14)
    assert point.contraction_rate == pytest.approx(0.7877, abs=5e-5)
    assert point.spectral_radius == pytest.approx(0.782648, abs=5e-7)
    assert point.backward_gain == pytest.approx(1.0716, abs=5e-5)
    assert point.stable
    assert repr(point).startswith("FixedPoint(status='converged', mean=")


@pytest.mark.parametrize(
    ("fluctuation", "variance"), [(0.0, 0.0268), (9 / 16, 0.0398)], ids=["sum zero", "independent"]
)
def test_gain_three_quarters_keeps_little(fluctuation, variance):
    """The gain that frameworks give for SELU: τ = (3/4)² settles at 0.027."""
    point = fixed_point("selu", 0.0, 9 / 16, fluctuation)
    assert point.stable
    assert point.variance == pytest.approx(variance, abs=5e-5)
    moments = moment_map("selu", point.mean, point.variance, 0.0, 9 / 16, fluctuation)
    assert_allclose([moments.mean, moments.variance], [point.mean, point.variance], rtol=1e-12)


@pytest.mark.parametrize("independent", [False, True])
def test_a_framework_default_erases_the_input_of_selu(independent):
    """τ = 1/3 is below the critical value, .4768 for independent weights."""
    point = fixed_point("selu", 0.0, 1 / 3, 1 / 3 if independent else 0.0)
    assert point.status == "erased"
    assert (point.mean, point.variance) == (0.0, 0.0)
    critical = critical_weight_square_sum("selu", independent)
    # Far down, SELU is two straight lines, and a layer keeps τ/τc of the variance.
    assert point.contraction_rate == pytest.approx(1 / 3 / critical, rel=1e-6)


@pytest.mark.parametrize(("independent", "value"), [(True, 0.4768), (False, 0.4956)])
def test_critical_weights_separate_keeping_from_erasing(independent, value):
    critical = critical_weight_square_sum("selu", independent)
    assert critical == pytest.approx(value, abs=5e-5)
    for factor, status in ((0.9, "erased"), (1.1, "converged")):
        tau = factor * critical
        assert fixed_point("selu", 0.0, tau, tau * independent).status == status


def test_critical_weights_of_straight_lines_at_zero():
    """E f² = x (a² + b²)/2 of two slopes; 1/f'(0)² of a smooth function."""
    assert critical_weight_square_sum(PiecewiseLinear(0.5, 2.0)) == pytest.approx(2 / 4.25)
    assert critical_weight_square_sum("relu") == pytest.approx(2.0)
    assert critical_weight_square_sum("tanh") == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"activation 'sigmoid' has f\(0\) = 0.5, not 0"):
        critical_weight_square_sum("sigmoid")


def test_he_weights_leave_relu_where_it_is():
    """Any second moment is kept, E f² = 1 here; with exact sums of zero the mean is lost."""
    point = fixed_point("relu", 0.0, 2.0, 2.0)
    assert point.variance == pytest.approx(1 - 1 / np.pi)
    assert point.mean == pytest.approx(1 / np.sqrt(np.pi))
    assert point.spectral_radius == pytest.approx(1.0)
    assert point.backward_gain == pytest.approx(1.0)
    assert not point.stable
    erased = fixed_point("relu", 0.0, 2.0)
    assert erased.status == "erased"
    assert erased.contraction_rate == pytest.approx(1 - 1 / np.pi)


def test_he_weights_make_selu_diverge():
    """Far out SELU is half a straight line: E f² grows by λ² a layer."""
    point = fixed_point("selu", 0.0, 2.0, 2.0)
    assert point.status == "diverged"
    assert point.contraction_rate == pytest.approx(1.0507009873554805**2, rel=1e-6)
    assert not point.stable
    with pytest.raises(ValueError, match="no fixed point was found: the iteration has diverged"):
        basin(point)


def test_tanh_at_its_critical_weights_does_not_settle():
    """The variance falls as 1/(2 l), x → x − 2x²: after 300 layers it still moves."""
    point = fixed_point("tanh", max_iter=300)
    assert point.status == "not converged"
    assert point.variance * 2 * 300 == pytest.approx(1.0, abs=0.02)
    assert not point.stable


def test_an_unstable_fixed_point_is_called_unstable():
    """ω = 1 keeps (0, 1) a fixed point of SELU, from which every deviation grows."""
    point = fixed_point("selu", 1.0, 1.0)
    assert point.spectral_radius > 1
    assert not point.stable
    pushed = fixed_point("selu", 1.0, 1.0, start=(1e-3, 1.0))
    assert abs(pushed.mean) > 1


def test_a_function_that_forgets_has_a_mean_all_the_same():
    point = fixed_point("sigmoid")
    assert (point.mean, point.variance, point.status) == (0.5, 0.0, "erased")
    # f'(0)² = 1/16 of a variance is left by each layer.
    assert point.contraction_rate == pytest.approx(1 / 16)


def test_the_start_must_vary():
    with pytest.raises(ValueError, match="the variance of the start must be positive, got 0"):
        fixed_point("selu", start=(0.0, 0.0))


# Basins


def test_selu_reaches_its_fixed_point_from_everywhere_on_the_grid():
    found = basin(fixed_point("selu"), n_iter=100)
    assert found.reached.all()
    assert_allclose(found.box, (-3.0, 3.0, 1e-3, 1e3))
    assert repr(found).startswith("Basin(reached=525/525 points, box=(-3, 3, 0.001, 1000)")


def test_a_basin_ends_where_the_fixed_point_does_not_attract():
    """ω = 1 with SELU: negative means end at μ = f(μ), without variance; positive ones run away."""
    point = fixed_point("selu", 1.0, 0.9, start=(-0.5, 0.5))
    assert point.status == "erased"
    assert get_activation("selu")(point.mean) == pytest.approx(point.mean, rel=1e-12)
    found = basin(point, [-2.0, -1.0, -0.5, 1.0, 3.0], [0.1, 0.5])
    assert found.reached.all(1).tolist() == [True, True, True, False, False]
    assert found.box == (-2.0, -0.5, 0.1, 0.5)
    assert fixed_point("selu", 1.0, 0.9, start=(1.0, 0.5)).status == "diverged"


def test_two_attractors_share_the_plane():
    """tanh at ω = 1.5, τ = 3 keeps the variance of a small mean, and erases a large one's."""
    moving, still = (fixed_point("tanh", 1.5, 3.0, start=(m, 0.5)) for m in (0.0, 2.0))
    assert (moving.status, still.status) == ("converged", "erased")
    means = np.array([0.0, 0.5, 1.0, 2.0, 3.0])
    one, other = (basin(point, means, [0.2, 0.5], n_iter=150) for point in (moving, still))
    assert not (one.reached & other.reached).any()
    assert one.reached[0].all()
    assert other.reached[-1].all()


def test_only_the_start_itself_keeps_its_place_where_nothing_attracts():
    found = basin(fixed_point("relu", 0.0, 2.0, 2.0), [0.0], [0.5, 1.0, 2.0], n_iter=20)
    assert found.reached.tolist() == [[False, True, False]]
    assert basin(fixed_point("relu", 0.0, 2.0, 2.0), [0.0], [0.5], n_iter=20).box is None

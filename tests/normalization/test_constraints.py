"""Projections: the nearest point of the ball, to the bit where there is nothing to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose
from scipy.optimize import brentq

from freenergy.normalization import apply_constraint, project_l1, project_l2, rescale_norm
from freenergy.normalization.constraints import CONSTRAINTS

BALLS = pytest.mark.parametrize(
    ("project", "ord"), [(project_l1, 1), (project_l2, 2)], ids=["l1", "l2"]
)
radii = st.sampled_from([0.1, 1.0, 3.7])
matrices = st.tuples(st.integers(1, 9), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(-10, 10, allow_subnormal=False))
)


def tensor(x) -> torch.Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


def norms(w: torch.Tensor, ord: int) -> np.ndarray:
    """Norms of the columns; NumPy adds in pairs, hence precisely, along contiguous rows only."""
    rows = np.ascontiguousarray(w.double().numpy().T)
    return np.linalg.norm(rows, ord=ord, axis=1)


def reference(w: np.ndarray, c: float, ord: int) -> np.ndarray:
    """Projection of one vector: a factor, or the soft threshold found as a root."""
    if np.linalg.norm(w, ord) <= c:
        return w
    if ord == 2:
        return w * c / np.linalg.norm(w)

    def excess(theta):
        return np.maximum(np.abs(w) - theta, 0).sum() - c

    theta = brentq(excess, 0, np.abs(w).max(), xtol=1e-15)
    return np.sign(w) * np.maximum(np.abs(w) - theta, 0)


@BALLS
@given(w=matrices, c=radii)
def test_the_projection_is_that_of_each_vector(project, ord, w, c):
    found = project(tensor(w), c).numpy()
    for column, expected in zip(found.T, w.T, strict=True):
        assert_allclose(column, reference(expected, c, ord), rtol=0, atol=1e-13)


@BALLS
@given(w=matrices, c=radii)
def test_the_projection_is_the_nearest_point_of_the_ball(project, ord, w, c):
    """(w − p)·(q − p) ≤ 0 for every q of the ball; the largest w·q there is a dual norm."""
    p = project(tensor(w), c).numpy()
    for x, y in zip(w.T, p.T, strict=True):
        normal = x - y
        dual = np.linalg.norm(normal, {1: np.inf, 2: 2}[ord])
        assert c * dual - normal @ y < 1e-12 * (1 + np.abs(x).max())


@BALLS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(w=matrices, c=radii, scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_a_projection_lies_in_the_ball_and_stays_there(project, ord, dtype, w, c, scale):
    once = project(tensor(scale * w).to(dtype), c)
    assert once.dtype == dtype
    assert norms(once, ord).max() <= c * (1 + 8 * torch.finfo(dtype).eps)
    assert torch.equal(project(once, c), once)


@BALLS
@given(w=matrices, c=radii)
def test_vectors_inside_are_left_alone_to_the_bit(project, ord, w, c):
    before = tensor(w)
    inside = torch.from_numpy(norms(before, ord) <= c)
    assume(bool(inside.any()))
    assert torch.equal(project(before, c)[:, inside], before[:, inside])


@BALLS
@given(w=matrices, c=radii)
def test_vectors_outside_come_to_the_surface(project, ord, w, c):
    outside = norms(tensor(w), ord) > c
    assume(outside.any())
    found = norms(project(tensor(w), c), ord)[outside]
    assert_allclose(found, c, rtol=1e-14)


@BALLS
@given(w=matrices, c=radii)
def test_either_dimension_may_run_over_the_inputs(project, ord, w, c):
    w = tensor(w)
    assert_allclose(project(w.T.contiguous(), c, dim=1), project(w, c, dim=0).T, rtol=1e-14)
    assert torch.equal(project(w.T, c, dim=-1), project(w.T, c, dim=1))


@BALLS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [3, 784, 20_000])
@pytest.mark.parametrize("scale", [1.0, 1e3, 1e8, 1e15])
def test_long_and_large_vectors_come_to_the_surface_and_stay(project, ord, dtype, n, scale):
    """Far out, a threshold found from sums of the entries would lose the radius to rounding."""
    w = torch.randn(n, 3, generator=torch.Generator().manual_seed(n), dtype=dtype) * scale
    once = project(w, 0.7)
    eps = torch.finfo(dtype).eps
    assert_allclose(norms(once, ord), 0.7, rtol=n**0.5 * eps)
    assert torch.equal(project(once, 0.7), once)
    if ord == 1:
        far_below_the_largest = w.abs() < w.abs().amax(0) - 0.7
        assert not once[far_below_the_largest].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [784, 20_000])
def test_one_large_entry_over_many_small_ones_keeps_the_norm(dtype, n):
    """The threshold comes from a sum many times c: its rounding must not reach the norm."""
    w = 2.8 / n * torch.rand(n, 5, generator=torch.Generator().manual_seed(n), dtype=dtype)
    w[0] = 0.42
    once = project_l1(w, 0.7)
    assert int((once != 0).sum(0).min()) > n / 20
    assert_allclose(norms(once, 1), 0.7, rtol=8 * torch.finfo(dtype).eps)
    assert torch.equal(project_l1(once, 0.7), once)


def test_l1_needs_no_sum_of_entries_near_the_largest_float():
    w = torch.full((500, 2), 1e38)
    w[7, 1] = 2e38
    expected = torch.zeros(500, 2)
    expected[:, 0] = 0.7 / 500
    expected[7, 1] = 0.7
    assert_allclose(project_l1(w, 0.7), expected, rtol=1e-6)


@BALLS
@pytest.mark.parametrize("n", [1, 16, 784])
def test_no_more_than_rounding_passes_for_inside(project, ord, n):
    w = torch.rand(n, 200, generator=torch.Generator().manual_seed(n)).double()
    excess = torch.linspace(0, 1e-11, 200).double()
    w *= 0.7 * (1 + excess) / torch.from_numpy(norms(w, ord))
    assert norms(project(w, 0.7), ord).max() <= 0.7 * (1 + 8 * n**0.5 * 2.3e-16)


@BALLS
def test_zero_vectors_stay_zero(project, ord):
    w = torch.zeros(4, 3)
    w[:, 1] = 5.0
    found = project(w, 1.0)
    assert torch.equal(found[:, [0, 2]], torch.zeros(4, 2))
    assert not found.isnan().any()
    assert_allclose(found[:, 1], {1: [0.25] * 4, 2: [0.5] * 4}[ord], rtol=1e-6)


def test_l1_makes_small_entries_zero_and_l2_does_not():
    w = tensor([[3.0], [0.2], [-2.0]])
    assert_allclose(project_l1(w, 2.0), [[1.5], [0.0], [-0.5]], atol=1e-15)
    assert bool((project_l2(w, 2.0) != 0).all())


def test_l1_ignores_the_order_of_equal_entries():
    w = tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    assert_allclose(project_l1(w, 1.5), w / 2, atol=1e-15)


def test_the_input_is_left_as_it_was():
    for project in (project_l1, project_l2):
        w = tensor([[3.0], [4.0]])
        project(w, 1.0)
        assert w.tolist() == [[3.0], [4.0]]


@given(w=matrices, c=radii)
def test_rescaling_fixes_the_frobenius_norm_and_keeps_the_direction(w, c):
    assume(np.linalg.norm(w) > 1e-100)
    found = rescale_norm(tensor(w), c).numpy()
    assert np.linalg.norm(found) == pytest.approx(c, rel=1e-14)
    assert_allclose(found / c, w / np.linalg.norm(w), rtol=1e-13, atol=1e-15)


def test_a_zero_matrix_has_no_direction():
    with pytest.raises(ValueError, match="zero weight matrix cannot be rescaled"):
        rescale_norm(torch.zeros(3, 2), 1.0)


@pytest.mark.parametrize(
    ("constraint", "function"),
    [("l1", project_l1), ("l2", project_l2), ("frobenius", lambda w, c, dim: rescale_norm(w, c))],
)
@pytest.mark.parametrize("dim", [0, 1])
def test_constraints_are_applied_in_place_by_name(constraint, function, dim):
    weight = torch.nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    before = weight.detach().clone()
    assert apply_constraint(weight, constraint, 0.8, dim) is None
    assert torch.equal(weight, function(before, 0.8, dim))
    assert not torch.equal(weight, before)
    assert weight.requires_grad
    assert weight.grad_fn is None
    assert constraint in CONSTRAINTS


def test_no_constraint_leaves_the_weights_alone():
    weight = torch.full((3, 2), 9.0)
    apply_constraint(weight, None, 1.0)
    assert bool((weight == 9).all())


def test_an_unknown_constraint_is_named():
    with pytest.raises(ValueError, match=r"unknown weight_constraint 'l3': .*'l1', 'l2', 'frob"):
        apply_constraint(torch.ones(2, 2), "l3", 1.0)

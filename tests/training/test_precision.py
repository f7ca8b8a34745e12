"""Products of fewer bits: what is rounded, what is not, and what it does to ln Z."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from freenergy.inference import exact
from freenergy.models import RBM
from freenergy.random import RandomStream
from freenergy.training import Trainer, TrainingOptions, as_rows, gradient_estimator, initialize
from freenergy.training.precision import RoundedProducts, check_precision, products_in, to_bfloat16


def matrices(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def rounded(tensor):
    return tensor.bfloat16().double()


@settings(deadline=None, max_examples=50)
@given(st.floats(1, 2, width=32), st.integers(-60, 60), st.sampled_from([-1, 1]))
def test_a_factor_is_off_by_half_a_unit_in_the_last_of_eight_bits(mantissa, power, sign):
    value = torch.tensor(sign * mantissa * 2.0**power)
    assert abs(float(to_bfloat16(value)) - float(value)) <= abs(float(value)) * 2.0**-8


def test_products_are_those_of_rounded_factors_summed_in_single_precision():
    x, w, bias = matrices((20, 300), (300, 30), (30,))
    with products_in("bf16"):
        found = torch.addmm(bias, x, w), torch.mm(x, w), x @ w, x.mm(w), torch.matmul(x, w)
    exact_product = rounded(x) @ rounded(w)
    for product in found[1:]:
        assert product.dtype == torch.float32
        # Rounding of sums of 300 terms, not of results to 8 bits.
        assert_allclose(product, exact_product, atol=3e-5)
    assert_allclose(found[0], exact_product + bias, atol=3e-5)
    distance = (found[1].double() - x.double() @ w.double()).abs()
    assert float(distance.max()) > 1e-2
    assert bool((distance <= 2.0**-6.99 * (x.abs().double() @ w.abs().double())).all())


def test_states_of_zeros_and_ones_are_exact():
    states = (torch.rand(20, 300, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    with products_in("bf16"):
        counts = states @ states.T
    assert_array_equal(counts, states @ states.T)


@pytest.mark.parametrize(("beta", "alpha"), [(1.0, 1.0), (0.5, 0.5), (1.0, -2.0), (0.0, 3.0)])
def test_fields_are_written_where_they_belong(beta, alpha):
    x, w, bias = matrices((20, 30), (40, 30), (40,))
    out = torch.empty(50, 40)
    part = out[10:30]
    with products_in("bf16"):
        found = torch.addmm(bias, x, w.T, beta=beta, alpha=alpha, out=part)
    assert found.data_ptr() == part.data_ptr()
    expected = beta * bias + alpha * (rounded(x) @ rounded(w).T)
    assert_allclose(part, expected, atol=2e-5)
    gradient = torch.empty(30, 40)
    with products_in("bf16"):
        torch.mm(x.T, part, out=gradient)
    assert_allclose(gradient, rounded(x).T @ rounded(part), atol=2e-4)


def test_a_factor_that_was_written_to_is_rounded_again():
    x, w = matrices((20, 30), (30, 40))
    with products_in("bf16"):
        torch.mm(x, w)
        x[3:].mul_(2.0)
        torch.sigmoid(x, out=x)
        torch.mm(w.T, x.T)
        w.T.add_(1.0)
        found = torch.mm(x, w)
    assert_allclose(found, rounded(x) @ rounded(w), atol=2e-5)


def test_a_factor_is_rounded_once_for_all_its_products():
    calls = []

    def rounding(factor):
        calls.append(factor.shape)
        return to_bfloat16(factor)

    x, y, w = matrices((20, 30), (10, 40), (30, 40))
    with RoundedProducts(rounding):
        x @ w
        y @ w.T
        x.T @ (x @ w)
    assert sorted(calls) == [(10, 40), (20, 30), (20, 40), (30, 40)]


def test_other_products_stay_as_they_are():
    x, w = (t.double() for t in matrices((20, 30), (30, 40)))
    batched, vector = matrices((2, 20, 30), (30,))
    with products_in("bf16"):
        found = x @ w, batched @ batched.mT, batched[0] @ vector
    for product, expected in zip(
        found, (x @ w, batched @ batched.mT, batched[0] @ vector), strict=True
    ):
        assert_array_equal(product, expected)


def test_outside_of_the_context_nothing_is_rounded():
    x, w = matrices((20, 30), (30, 40))
    with products_in("float32"):
        assert_array_equal(x @ w, torch.mm(x, w))
    with pytest.raises(ZeroDivisionError), products_in("bf16"):
        raise ZeroDivisionError
    assert_allclose(x @ w, x.double() @ w.double(), atol=2e-5)


@pytest.mark.parametrize("before", ["none", "ieee", "tf32"])
def test_torch_s_switch_is_on_for_the_time_of_an_update(monkeypatch, before):
    switch = SimpleNamespace(fp32_precision=before)
    monkeypatch.setattr(torch.backends.cuda, "matmul", switch)
    for error in (False, True):
        try:
            with products_in("tf32"):
                assert switch.fp32_precision == "tf32"
                if error:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        assert switch.fp32_precision == before


def test_the_older_switch_is_used_where_torch_has_no_other(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace())
    setting, seen = ["medium"], []
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: setting[0])
    monkeypatch.setattr(
        torch, "set_float32_matmul_precision", lambda name: setting.__setitem__(0, name)
    )
    with products_in("tf32"):
        seen.append(setting[0])
    assert (seen, setting) == (["high"], ["medium"])


# ---- in training ---------------------------------------------------------------------------------


def test_double_precision_is_not_reduced(data):
    for precision in ("tf32", "bf16"):
        with pytest.raises(ValueError, match=f"precision='{precision}' is for models in float32"):
            Trainer(RBM(3, 2).double(), TrainingOptions(precision=precision), RandomStream(0))
    check_precision("float32", torch.float64)
    with pytest.raises(ValueError, match="precision must be one of 'float32', 'tf32', 'bf16'"):
        TrainingOptions(precision="half")


@pytest.mark.parametrize("method", ["cd", "pcd", "emf"])
def test_a_gradient_of_rounded_products_is_close_to_the_exact_one(data, method):
    rows = data(200, 30).float()
    model = RBM(30, 20)
    initialize(model, as_rows(rows, rows), RandomStream(0))
    with torch.no_grad():
        model.weight.mul_(30.0)
    grads = []
    for precision in ("float32", "bf16"):
        random = RandomStream(1)
        gradient = gradient_estimator(model, TrainingOptions(method=method), random)
        with products_in(precision):
            gradient.compute(rows)
        grads.append(model.weight.grad.double().clone())
        assert model.weight.grad.dtype == torch.float32
    scale = float(grads[0].abs().mean())
    distance = (grads[1] - grads[0]).abs()
    assert 0 < float(distance.mean()) < 0.05 * scale


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("method", ["pcd", "emf"])
def test_what_rounding_does_to_ln_z(data, method, precision):
    """The change that the documentation states, on a model that all states can be summed of."""
    rows = data(300, 12, n_patterns=4).float()
    results = []
    for used in ("float32", precision):
        model, random = RBM(12, 6), RandomStream(0)
        initialize(model, as_rows(rows, rows), random)
        options = TrainingOptions(
            method=method, n_epochs=40, batch_size=50, learning_rate=0.1, precision=used
        )
        Trainer(model, options, random, order=RandomStream(5)).fit(as_rows(rows, rows))
        assert model.weight.dtype == torch.float32
        double = model.double()
        log_z = exact(double).log_partition
        likelihood = -float(double.free_energy(rows.double()).mean().detach()) - log_z
        results.append((log_z, likelihood))
    (log_z, likelihood), (other_log_z, other_likelihood) = results
    if precision == "float32":
        assert results[0] == results[1]
        return
    assert 0 < abs(other_log_z - log_z) < 0.1
    assert abs(other_likelihood - likelihood) < 0.02

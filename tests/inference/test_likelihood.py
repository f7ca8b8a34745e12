"""The log-likelihood of rows from ln Z: exact by hand, and only for states that the units have."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from freenergy.inference import exact
from freenergy.inference import likelihood as module
from freenergy.inference.likelihood import LogLikelihood, log_likelihood
from freenergy.inference.partition import LogPartition, log_partition

UNITS = pytest.mark.parametrize("unit", ["bernoulli", "spin"])
BETAS = pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])


def rows_of(model, n: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    values = np.random.default_rng(seed).choice(model.visible.support, (n, model.n_visible))
    return torch.from_numpy(values).to(dtype)


def estimate(value=5.0, lower=4.0, upper=7.0, **changes) -> LogPartition:
    """An interval that is not symmetric."""
    options = {"stderr": 0.5, "method": "bar", "trusted": True} | changes
    return LogPartition(value, lower, upper, **options)


@UNITS
@BETAS
def test_the_likelihood_is_that_of_the_table_of_states(rbm, table, unit, beta):
    model = rbm(6, 4, visible=unit, hidden=unit)
    reference = table(model, beta)
    rows = torch.from_numpy(reference.v)[::3]
    found = log_likelihood(model, rows, log_partition(model, "exact", beta=beta))
    expected = reference.log_marginal[::3]
    assert_allclose(found.per_sample, expected, rtol=1e-12)
    assert found.mean == pytest.approx(expected.mean(), rel=1e-12)
    assert found.lower == found.mean == found.upper
    assert (found.method, found.trusted, found.reasons) == ("exact", True, ())
    error = expected.std(ddof=1) / math.sqrt(len(expected))
    assert found.rows_stderr == pytest.approx(error, rel=1e-9)


@UNITS
@BETAS
def test_the_probabilities_of_all_states_sum_to_one(rbm, unit, beta):
    model = rbm(6, 4, visible=unit, hidden=unit, scale=1.0)
    support = model.visible.support
    states = torch.tensor(list(itertools.product(support, repeat=6)))
    found = log_likelihood(model, states, log_partition(model, beta=beta))
    assert np.exp(found.per_sample).sum() == pytest.approx(1.0, rel=1e-9)


def test_units_of_two_types_are_those_of_the_visible_layer(rbm):
    model = rbm(5, 4, visible="spin", hidden="bernoulli")
    z = log_partition(model)
    assert log_likelihood(model, rows_of(model, 4), z).mean < 0
    with pytest.raises(ValueError, match="column 0 of row 0 is 0: only states of -1 and 1 have"):
        log_likelihood(model, torch.zeros(2, 5), z)


def test_the_interval_turns_around(rbm):
    """A large ln Z is a small likelihood."""
    model = rbm(6, 4)
    z = estimate()
    found = log_likelihood(model, rows_of(model, 9), z)
    assert found.lower == pytest.approx(found.mean - (z.upper - z.value))
    assert found.upper == pytest.approx(found.mean + (z.value - z.lower))
    assert found.lower < found.mean < found.upper
    assert found.log_partition is z


def test_what_ln_z_says_of_itself_is_kept(rbm):
    z = estimate(method="ais", trusted=False, reasons=("the two ends disagree",))
    found = log_likelihood(rbm(6, 4), torch.zeros(3, 6), z)
    assert (found.method, found.trusted, found.reasons) == ("ais", False, z.reasons)
    assert "trusted=False, reasons=('the two ends disagree',))" in repr(found)


def test_the_mean_is_that_of_the_rows(rbm):
    model = rbm(6, 4)
    z, rows = log_partition(model), rows_of(model, 50)
    found = log_likelihood(model, rows, z)
    assert found.per_sample.shape == (50,)
    assert found.mean == pytest.approx(found.per_sample.mean(), rel=1e-12)
    for i in (0, 17, 49):
        alone = log_likelihood(model, rows[i : i + 1], z)
        assert alone.mean == pytest.approx(found.per_sample[i], rel=1e-12)
        assert alone.per_sample.shape == (1,)
        assert math.isnan(alone.rows_stderr)


def test_one_row_warns_of_nothing(rbm, recwarn):
    model = rbm(6, 4)
    log_likelihood(model, torch.ones(1, 6), log_partition(model))
    assert not list(recwarn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows_dtype", [torch.float32, torch.float64, torch.int64])
def test_every_number_type_gives_the_same(rbm, dtype, rows_dtype):
    model = rbm(6, 4, dtype=dtype)
    rows = rows_of(model, 30).to(rows_dtype)
    found = log_likelihood(model, rows, log_partition(model))
    truth = rbm(6, 4)
    free_energy = truth.free_energy(rows.double()).detach().numpy()
    expected = -free_energy - exact(truth).log_partition
    assert_allclose(found.per_sample, expected, rtol=1e-5 if dtype == torch.float32 else 1e-12)
    assert found.per_sample.dtype == np.float64
    assert type(found.mean) is float


def test_rows_of_bool_are_zeros_and_ones(rbm):
    model = rbm(6, 4)
    rows, z = rows_of(model, 30), log_partition(model)
    assert log_likelihood(model, rows.bool(), z).mean == log_likelihood(model, rows, z).mean


def test_blocks_of_rows_change_nothing(rbm, monkeypatch):
    model = rbm(6, 4)
    z, rows = log_partition(model), rows_of(model, 31)
    whole = log_likelihood(model, rows, z)
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 12)
    blocks = log_likelihood(model, rows, z)
    assert_allclose(blocks.per_sample, whole.per_sample, rtol=1e-12)


@pytest.mark.parametrize("value", [0.5, -1.0, 2.0, math.nan, math.inf, 1e-9])
def test_values_that_are_no_states_are_refused_by_column(rbm, value):
    model = rbm(6, 4)
    rows = rows_of(model, 5)
    rows[3, 4] = value
    message = f"column 4 of row 3 is {value:g}: only states of 0 and 1 have a likelihood; binarise"
    with pytest.raises(ValueError, match=message):
        log_likelihood(model, rows, log_partition(model))


@pytest.mark.parametrize("shape", [(0, 6), (6,), (3, 5), (2, 3, 6), ()])
def test_other_shapes_are_refused(rbm, shape):
    model = rbm(6, 4)
    with pytest.raises(ValueError, match=r"rows must have shape \(n, 6\) with n > 0, got"):
        log_likelihood(model, torch.zeros(shape), log_partition(model))


def test_a_result_is_described():
    z = estimate()
    found = LogLikelihood(-85.1234, -86.5, -84.0, "bar", True, (), 0.3, np.zeros(2), z)
    assert repr(found) == (
        "LogLikelihood(mean=-85.12, lower=-86.50, upper=-84.00, method='bar', trusted=True)"
    )

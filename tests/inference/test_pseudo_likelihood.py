"""Pseudo-likelihoods against the conditional probabilities of the table of joint states."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.stats import chisquare

from freenergy.inference import (
    pseudo_likelihood,
    pseudo_log_likelihood,
    stochastic_pseudo_log_likelihood,
)
from freenergy.inference.pseudo_likelihood import _unit_of_each_row
from freenergy.random import RandomStream

UNITS = pytest.mark.parametrize(
    "units", list(itertools.product(("bernoulli", "spin"), repeat=2)), ids="-".join
)


def conditionals(reference) -> np.ndarray:
    """ln p(v_i | the others) for every row of the table and every unit, from p(v) alone."""
    log_p = {tuple(v): x for v, x in zip(reference.v, reference.log_marginal, strict=True)}
    total = reference.v.min() + reference.v.max()
    rows = []
    for v in reference.v:
        row = []
        for i in range(len(v)):
            flipped = v.copy()
            flipped[i] = total - v[i]
            here, there = log_p[tuple(v)], log_p[tuple(flipped)]
            row.append(here - np.logaddexp(here, there))
        rows.append(row)
    return np.array(rows)


@UNITS
@pytest.mark.parametrize("beta", [0.4, 1.0, 2.0])
def test_pseudo_likelihood_is_the_sum_of_log_conditionals(rbm, table, units, beta):
    model = rbm(6, 4, visible=units[0], hidden=units[1], scale=1.0)
    reference = table(model, beta)
    found = pseudo_log_likelihood(model, torch.from_numpy(reference.v), beta)
    assert_allclose(found, conditionals(reference).sum(1), rtol=1e-12)


def test_pseudo_likelihood_of_a_unit_that_a_user_defines_as_hidden_layer(rbm, table):
    model = rbm(5, 3, hidden="ternary", scale=1.0)
    reference = table(model, 0.7)
    found = pseudo_log_likelihood(model, torch.from_numpy(reference.v), 0.7)
    assert_allclose(found, conditionals(reference).sum(1), rtol=1e-12)


@UNITS
def test_without_couplings_pseudo_likelihood_is_the_likelihood(rbm, table, units):
    model = rbm(6, 4, visible=units[0], hidden=units[1], scale=0.0, bias=1.5)
    reference = table(model, 1.3)
    found = pseudo_log_likelihood(model, torch.from_numpy(reference.v), 1.3)
    assert_allclose(found, reference.log_marginal, atol=1e-12)


@pytest.mark.parametrize("elements", [1, 100, 333])
def test_the_blocks_do_not_matter(rbm, elements, monkeypatch):
    model = rbm(11, 4, scale=1.0)
    v = torch.rand(9, 11, generator=torch.Generator().manual_seed(0)).round().double()
    whole = pseudo_log_likelihood(model, v, 0.8)
    monkeypatch.setattr(pseudo_likelihood, "_CHUNK_ELEMENTS", elements)
    assert_allclose(pseudo_log_likelihood(model, v, 0.8), whole, rtol=1e-14)


@UNITS
def test_grey_values_are_flipped_to_their_mirror_image(rbm, units):
    """Each unit's term is ln σ(β [F(flipped) − F(v)]), as for a binary value."""
    model, beta = rbm(6, 4, visible=units[0], hidden=units[1], scale=1.0), 0.7
    v = torch.rand(5, 6, generator=torch.Generator().manual_seed(0)).double()
    expected = torch.zeros(5).double()
    terms = []
    with torch.no_grad():
        for i in range(6):
            flipped = v.clone()
            flipped[:, i] = sum(model.visible.support) - v[:, i]
            x = beta * (model.free_energy(flipped, beta) - model.free_energy(v, beta))
            terms.append(-torch.log1p(torch.exp(-x)))
            expected += terms[-1]
    assert_allclose(pseudo_log_likelihood(model, v, beta), expected, rtol=1e-12)

    unit = _unit_of_each_row(v, 6, RandomStream(4))
    score = stochastic_pseudo_log_likelihood(model, v, RandomStream(4), beta)
    assert_allclose(score, 6 * torch.stack(terms)[unit, torch.arange(5)], rtol=1e-12)


@UNITS
def test_a_model_sure_of_its_data_stays_finite(rbm, units):
    model = rbm(6, 4, visible=units[0], hidden=units[1], scale=1e3)
    v = torch.tensor(list(itertools.product(model.visible.support, repeat=6))).double()
    found = pseudo_log_likelihood(model, v)
    assert bool(torch.isfinite(found).all())
    assert float(found.max()) <= 0


def test_no_rows_give_no_scores(rbm, random):
    model, none = rbm(6, 4), torch.zeros(0, 6).double()
    assert pseudo_log_likelihood(model, none).shape == (0,)
    assert stochastic_pseudo_log_likelihood(model, none, random).shape == (0,)


def rows_of_interest(n: int, low: float = 0.0) -> torch.Tensor:
    """Rows that a hash could treat badly: all off, all on, one on, halves, and random ones."""
    rows = torch.rand(12, n, generator=torch.Generator().manual_seed(1)).round().double()
    rows[0], rows[1], rows[2] = 0, 1, 0
    rows[2, 0] = 1
    rows[3], rows[4] = 0, 0
    rows[3, -1] = 1
    rows[4, ::2] = 1
    return low + (1 - low) * rows


@UNITS
@pytest.mark.parametrize("beta", [0.4, 2.0])
def test_the_stochastic_version_is_unbiased_over_seeds(rbm, units, beta):
    """For each row alone; 12 rows, |z| below 4."""
    model, n = rbm(7, 4, visible=units[0], hidden=units[1], scale=1.0, bias=1.0), 1000
    v = rows_of_interest(7, model.visible.support[0])
    scores = torch.stack(
        [stochastic_pseudo_log_likelihood(model, v, RandomStream(s), beta) for s in range(n)]
    )
    exact = pseudo_log_likelihood(model, v, beta)
    z = (scores.mean(0) - exact) / (scores.std(0) / n**0.5)
    assert float(z.abs().max()) < 4


def test_a_score_depends_on_the_row_not_on_its_place(rbm):
    model = rbm(16, 4, scale=1.0)
    v = torch.rand(200, 16, generator=torch.Generator().manual_seed(0)).round().double()

    def scores(rows: torch.Tensor) -> torch.Tensor:
        return stochastic_pseudo_log_likelihood(model, rows, RandomStream(7), 0.8)

    whole = scores(v)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(2))
    assert_allclose(scores(v[order]), whole[order], rtol=1e-12)
    assert_allclose(scores(v[50:60]), whole[50:60], rtol=1e-12)
    assert_allclose(scores(torch.cat([v, v])), whole.repeat(2), rtol=1e-12)
    assert_allclose(scores(v.flip(1).flip(1).contiguous()), whole, rtol=1e-12)
    other = stochastic_pseudo_log_likelihood(model, v, RandomStream(8), 0.8)
    assert (other - whole).abs().max() > 0.1


def test_the_data_are_left_as_they_were(rbm, random):
    model = rbm(6, 4)
    v = torch.ones(5, 6).double()
    stochastic_pseudo_log_likelihood(model, v, random)
    pseudo_log_likelihood(model, v)
    assert bool((v == 1).all())


def test_single_precision_and_a_negative_zero_choose_the_same_units():
    v = rows_of_interest(30)
    chosen = _unit_of_each_row(v, 30, RandomStream(0))
    assert torch.equal(_unit_of_each_row(v.float(), 30, RandomStream(0)), chosen)
    negative = torch.where(v == 0, -0.0, v)
    assert torch.equal(_unit_of_each_row(negative, 30, RandomStream(0)), chosen)


@pytest.mark.parametrize("n", [3, 8, 25])
@pytest.mark.parametrize("low", [0.0, -1.0])
def test_each_row_gets_each_unit_as_often_over_seeds(n, low):
    """The smallest of 12 p-values; all-off rows have nothing for the multipliers to act on."""
    v = rows_of_interest(n, low)
    n_seeds = 100 * n
    units = np.array([_unit_of_each_row(v, n, RandomStream(s)).numpy() for s in range(n_seeds)])
    p = [chisquare(np.bincount(column, minlength=n)).pvalue for column in units.T]
    assert units.min() == 0
    assert units.max() == n - 1
    assert min(p) > 1e-3 / 12


def test_two_rows_get_independent_units():
    """Also two that differ in one unit only, or hardly: all 16 pairs are as likely."""
    v = torch.zeros(5, 4).double()
    v[1, 0] = v[2, 3] = 1
    v[3, 0], v[4, 0] = 0.3, 0.3001
    units = np.array([_unit_of_each_row(v, 4, RandomStream(s)).numpy() for s in range(3000)])
    for i, j in itertools.combinations(range(5), 2):
        assert chisquare(np.bincount(4 * units[:, i] + units[:, j], minlength=16)).pvalue > 1e-4


@pytest.mark.parametrize(
    ("n", "kind"),
    [(7, "grey"), (25, "bits"), (64, "spins"), (64, "sparse"), (100, "bits"), (100, "grey")],
)
def test_over_random_rows_each_unit_is_chosen_as_often(n, kind):
    rng = np.random.default_rng(0)
    rows = rng.random((20_000, n))
    if kind != "grey":
        rows = (rows < (0.1 if kind == "sparse" else 0.5)).astype(float)
    # Equal rows choose alike.
    rows = np.unique(2 * rows - 1 if kind == "spins" else rows, axis=0)
    v = torch.from_numpy(rows)
    p = []
    for seed in range(5):
        units = _unit_of_each_row(v, n, RandomStream(seed)).numpy()
        p.append(chisquare(np.bincount(units, minlength=n)).pvalue)
    assert min(p) > 1e-3 / 5


def test_the_stochastic_version_takes_a_random_state_too(rbm):
    model, v = rbm(7, 4, scale=1.0), rows_of_interest(7)
    n = 500
    scores = torch.stack(
        [
            stochastic_pseudo_log_likelihood(model, v, RandomStream(np.random.RandomState(s)))
            for s in range(n)
        ]
    )
    z = (scores.mean(0) - pseudo_log_likelihood(model, v)) / (scores.std(0) / n**0.5)
    assert float(z.abs().max()) < 4


def test_units_without_a_flip_are_refused(rbm, random):
    model, v = rbm(5, 3, visible="ternary"), torch.zeros(2, 5).double()
    with pytest.raises(ValueError, match=r"needs binary units, not Ternary\(\)"):
        pseudo_log_likelihood(model, v)
    with pytest.raises(ValueError, match="needs binary units"):
        stochastic_pseudo_log_likelihood(model, v, random)

"""Free-energy differences from works whose distributions are known in closed form.

Gaussian works obey Crooks' theorem when the forward mean is ΔF + s²/2 and the backward mean
−ΔF + s²/2, both of variance s².
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import erfc, expit

from freenergy.inference.bridge import (
    FreeEnergyDifference,
    bennett,
    effective_sample_size,
    jarzynski,
    standard_error,
)


def gaussian_works(seed, difference: float, spread: float, shape) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    forward = rng.normal(difference + spread**2 / 2, spread, shape)
    backward = rng.normal(-difference + spread**2 / 2, spread, shape)
    return forward, backward


def z_scores(estimate, difference, spread, shape, n_seeds: int) -> np.ndarray:
    found = [estimate(*gaussian_works(seed, difference, spread, shape)) for seed in range(n_seeds)]
    return np.array([(f.value - difference) / f.stderr for f in found])


# ---- Bennett -------------------------------------------------------------------------------------


@pytest.mark.parametrize("difference", [-30.0, 0.0, 2.0, 500.0])
@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
def test_bennett_finds_the_difference_of_gaussian_works(difference, spread):
    forward, backward = gaussian_works(1, difference, spread, 20_000)
    found = bennett(forward, backward)
    assert abs(found.value - difference) < 4 * found.stderr
    assert found.stderr < 0.15


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0, 3.0])
def test_the_overlap_of_gaussian_works_is_that_of_the_exchange(spread):
    """w_F + w_B is N(s², 2s²), so <min(1, e^-(w_F + w_B))> = erfc(s/2)."""
    found = bennett(*gaussian_works(2, 1.0, spread, 100_000))
    assert found.overlap == pytest.approx(erfc(spread / 2), abs=0.006)


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("shape", [(60,), (3, 60), (200, 40)], ids=str)
def test_the_error_is_the_spread_over_repetitions(spread, shape):
    z = z_scores(bennett, -3.0, spread, shape, 300)
    # The standard deviation of 300 draws is good to 4 %, their mean to 0.06.
    assert 0.85 < z.std() < 1.17
    assert abs(z.mean()) < 0.25


def test_the_error_knows_that_samples_of_one_chain_are_alike():
    """Each column repeated ten times in its chain says nothing new."""
    forward, backward = gaussian_works(3, 1.0, 1.5, (1, 50))
    once = bennett(forward, backward)
    often = bennett(np.repeat(forward, 10, 0), np.repeat(backward, 10, 0))
    assert often.value == pytest.approx(once.value, abs=1e-10)
    assert often.stderr == pytest.approx(once.stderr, rel=1e-8)
    # As 500 chains they would pass for ten times the data.
    apart = bennett(np.repeat(forward, 10, 1), np.repeat(backward, 10, 1))
    assert apart.stderr == pytest.approx(once.stderr / math.sqrt(10), rel=0.02)


def test_the_influence_of_a_chain_is_what_the_estimate_owes_it():
    """Weigh one chain a little more: the value moves by its influence (a derivative)."""
    forward, backward = gaussian_works(4, 0.7, 1.5, (3, 8))
    found = bennett(forward, backward)
    assert found.influence.shape == (8,)
    assert found.influence.mean() == pytest.approx(0.0, abs=1e-9)
    copies = 4000
    for chain in range(8):
        often = [np.tile(w, (1, copies)) for w in (forward, backward)]
        heavier = [
            np.concatenate([many, w[:, [chain] * 8]], 1)
            for many, w in zip(often, (forward, backward), strict=True)
        ]
        step = 8 / (8 * copies)  # of the weight of this chain, relative to all
        moved = bennett(*heavier).value - found.value
        assert moved / step == pytest.approx(found.influence[chain], rel=2e-3, abs=1e-4)


def test_swapping_the_directions_changes_the_sign_alone():
    forward, backward = gaussian_works(5, 2.0, 1.5, (4, 30))
    ahead, back = bennett(forward, backward), bennett(backward, forward)
    assert back.value == pytest.approx(-ahead.value, abs=1e-10)
    assert_allclose(back.influence, -ahead.influence, atol=1e-8)
    assert back.stderr == pytest.approx(ahead.stderr, rel=1e-8)
    assert back.overlap == ahead.overlap
    assert abs(ahead.value - 2.0) < 1.0 < abs(back.value - 2.0)


@pytest.mark.parametrize("shift", [-1e4, -3.0, 0.5, 1e4])
def test_a_shift_of_the_works_is_a_shift_of_the_difference(shift):
    """The energy of one model may be counted from another zero."""
    forward, backward = gaussian_works(6, 2.0, 1.5, (4, 30))
    found, moved = bennett(forward, backward), bennett(forward + shift, backward - shift)
    assert moved.value == pytest.approx(found.value + shift, abs=1e-8)
    assert moved.stderr == pytest.approx(found.stderr, rel=1e-6)
    assert moved.overlap == pytest.approx(found.overlap, abs=1e-8)


def test_bennett_solves_the_condition_of_detailed_balance():
    forward, backward = gaussian_works(7, 2.0, 2.5, (4, 30))
    value = bennett(forward, backward).value
    given, taken = expit(value - forward).mean(), expit(-value - backward).mean()
    assert given == pytest.approx(taken, rel=1e-9)
    assert abs(expit(-value - forward).mean() - expit(value - backward).mean()) > 0.1


@pytest.mark.parametrize("work", [-1e4, -3.0, 0.0, 1e-3, 1e4])
def test_work_without_spread_is_the_difference(work):
    """A quasi-static process: what is done forth is given back."""
    for n in (1, 10):
        found = bennett(np.full(n, work), np.full(n, -work))
        assert found.value == pytest.approx(work, abs=1e-8)
        assert found.overlap == 1.0
        if n > 1:
            assert found.stderr == pytest.approx(0.0, abs=1e-8)


def test_one_chain_has_a_value_but_no_error():
    found = bennett(np.array([2.5]), np.array([-1.5]))
    assert found.value == pytest.approx(2.0, abs=1e-9)  # halfway between 2.5 and 1.5
    assert found.stderr == math.inf
    assert standard_error(np.zeros(1)) == math.inf


@pytest.mark.parametrize(("forth", "back"), [(1e4, 1e4), (1e4, -50.0), (3e3, 9e3)])
def test_works_that_do_not_overlap_are_met_in_the_middle_with_no_certainty(forth, back):
    """Dissipation of 1e4 nats each way: the answer lies between them, and anything may be true."""
    rng = np.random.default_rng(8)
    forward, backward = forth + rng.normal(size=40), back + rng.normal(size=40)
    with np.errstate(all="raise", under="ignore"):
        found = bennett(forward, backward)
    assert -back - 5 < found.value < forth + 5
    assert found.overlap < 1e-6
    assert not found.stderr < 1.0


def test_a_few_outliers_of_huge_work_do_not_hide_the_difference():
    forward, backward = gaussian_works(9, 2.0, 1.0, 20_000)
    forward[:20], backward[20:40] = 1e4, 1e4
    found = bennett(forward, backward)
    assert abs(found.value - 2.0) < 0.05
    assert math.isfinite(found.stderr)


# ---- Jarzynski -----------------------------------------------------------------------------------


def test_jarzynski_lies_above_on_average_and_the_mean_of_the_exponentials_does_not():
    difference, spread, n = 1.0, 2.0, 10
    works = [gaussian_works(seed, difference, spread, n) for seed in range(4000)]
    forward = np.array([jarzynski(w).value for w, _ in works])
    backward = np.array([jarzynski(w).value for _, w in works])
    error = forward.std() / math.sqrt(len(forward))
    assert forward.mean() > difference + 10 * error
    # The other direction bounds it from the other side: -ΔF from above, ΔF from below.
    assert -backward.mean() < difference - 10 * error
    # e^-ΔF itself has no bias; at a spread of 2 the error of this mean is 4 %.
    ratio = np.exp(difference - forward)
    assert abs(ratio.mean() - 1.0) < 4 * ratio.std() / math.sqrt(len(ratio))
    # The mean work is larger still: the second law.
    assert np.mean([w.mean() for w, _ in works]) == pytest.approx(difference + 2.0, abs=0.05)


def test_the_error_of_jarzynski_is_the_spread_over_repetitions():
    z = z_scores(lambda forward, _: jarzynski(forward), 3.0, 0.7, (400,), 300)
    assert 0.85 < z.std() < 1.17
    assert abs(z.mean()) < 0.3


def test_the_influence_of_a_work_is_what_the_estimate_owes_it():
    work, _ = gaussian_works(10, 1.0, 1.0, 12)
    found = jarzynski(work)
    assert found.influence.mean() == pytest.approx(0.0, abs=1e-12)
    for chain in range(12):
        weight = np.ones(12)
        weight[chain] += 1e-6
        moved = -math.log((weight * np.exp(-work)).sum() / weight.sum()) - found.value
        assert moved / (1e-6 / 12) == pytest.approx(found.influence[chain], abs=1e-4)


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_works_whose_exponentials_overflow_have_a_difference(shift):
    work, _ = gaussian_works(11, 0.0, 1.0, 100)
    with np.errstate(over="raise", invalid="raise"):
        found, moved = jarzynski(work), jarzynski(work + shift)
    assert moved.value == pytest.approx(found.value + shift, abs=1e-8)
    assert moved.stderr == pytest.approx(found.stderr, rel=1e-8)
    assert moved.overlap == pytest.approx(found.overlap, rel=1e-8)


def test_one_work_or_equal_works_are_their_own_difference():
    found = jarzynski(np.array([3.5]))
    assert (found.value, found.stderr, found.overlap) == (3.5, math.inf, pytest.approx(1.0))
    same = jarzynski(np.full(10, -1e4))
    assert same.value == pytest.approx(-1e4)
    assert same.stderr == pytest.approx(0.0, abs=1e-8)


def test_bennett_needs_less_than_jarzynski():
    """The optimal combination has the smaller error, most of all where work is dissipated."""
    ratio = []
    for spread in (1.0, 2.0):
        errors = []
        for seed in range(300):
            forward, backward = gaussian_works(seed, 1.0, spread, 100)
            errors.append([bennett(forward, backward).value, jarzynski(forward).value])
        one, other = (np.array(errors) - 1.0).std(0)
        ratio.append(other / one)
    assert 1.0 < ratio[0] < ratio[1]


# ---- effective samples ---------------------------------------------------------------------------


def test_the_effective_sample_size_counts_equal_weights():
    for n in (1, 7):
        assert effective_sample_size(np.zeros(n)) == pytest.approx(n)
        assert effective_sample_size(np.full(n, 1e4)) == pytest.approx(n)
    # Three of equal weight and any number that weigh nothing.
    assert effective_sample_size(np.array([-2.0, -2, -2, -1e4, -1e5])) == pytest.approx(3)
    weight = np.array([1.0, 2.0, 3.0])
    assert effective_sample_size(np.log(weight)) == pytest.approx(36 / 14)


def test_the_effective_share_of_gaussian_works_is_that_of_the_log_normal():
    """(<e^-w>)² / <e^-2w> = e^(-s²)."""
    forward, _ = gaussian_works(12, 5.0, 0.8, 200_000)
    assert jarzynski(forward).overlap == pytest.approx(math.exp(-0.64), abs=0.01)


def test_influences_of_a_chain_of_differences_add_up():
    """The same chains on three rungs: errors are those of the sum, correlations included."""
    rng = np.random.default_rng(13)
    z = []
    for _ in range(300):
        x = rng.normal(size=(3, 50))
        common = rng.normal(size=(3, 50))
        parts = [
            bennett(1.5 + common + 0.2 * x, -0.5 + common),
            bennett(1.5 - 0.8 * common + 0.2 * x, -0.5 - 0.8 * common),
        ]
        total = FreeEnergyDifference(
            sum(p.value for p in parts), np.sum([p.influence for p in parts], axis=0), 0.0
        )
        z.append((total.value, total.stderr, math.hypot(*(p.stderr for p in parts))))
    value, stderr, apart = np.array(z).T
    assert 0.85 < value.std() / stderr.mean() < 1.17
    # As if they were independent, the error would be another.
    assert not 0.8 < value.std() / apart.mean() < 1.25

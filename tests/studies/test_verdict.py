"""Verdicts follow from intervals, and are rarely wrong however many claims are made."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.stats import ttest_1samp, ttest_rel

from freenergy.studies.verdict import Claim, Interval, judge, judge_all

ABOVE, BELOW, ACROSS = Interval(2, 1, 3), Interval(-2, -3, -1), Interval(0.5, -1, 2)
UNKNOWN, ALONE = Interval(math.nan, math.nan, math.nan), Interval(2, math.nan, math.nan)
EFFECT = [2.0, 2.1, 1.9, 2.2, 1.8]
NOTHING = [0.1, -0.1, 0.0, 0.05, -0.05]


def opposite(values):
    return [-value for value in values]


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_the_interval_is_that_of_students_t(confidence):
    found = Interval.of(EFFECT, confidence)
    expected = ttest_1samp(EFFECT, 0).confidence_interval(confidence)
    assert_allclose([found.lower, found.upper], expected, rtol=1e-12)
    assert found.mean == pytest.approx(2.0)


def test_one_value_or_none_and_what_is_not_a_number_have_no_interval():
    for values, mean in (([3.0], 3.0), ([], math.nan), ([1.0, math.nan], math.nan)):
        found = Interval.of(values)
        assert found.mean == pytest.approx(mean, nan_ok=True)
        assert math.isnan(found.lower)
        assert math.isnan(found.upper)
        assert not found.decided
    assert Interval.of([1.0, 1.0]) == Interval(1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("effect", "excess", "status", "reason"),
    [
        (ABOVE, {}, "supported", "Above zero."),
        (ABOVE, {"a walk": ABOVE}, "supported", "Above zero, and above a walk."),
        (ABOVE, {"a": ABOVE, "b": ABOVE}, "supported", "Above zero, and above a and b."),
        (ABOVE, {"a": ABOVE, "b": ACROSS}, "undecided", "Above zero, but not clearly above b."),
        (ABOVE, {"a": ABOVE, "b": BELOW}, "contradicted", "Above zero, but below b."),
        (ACROSS, {}, "undecided", "The interval holds zero."),
        (ACROSS, {"a": ABOVE}, "undecided", "The interval holds zero."),
        (ACROSS, {"a": BELOW}, "contradicted", "Not clearly above zero, and below a."),
        (BELOW, {}, "contradicted", "Below zero: the opposite holds."),
        (BELOW, {"a": ABOVE}, "contradicted", "Below zero: the opposite holds."),
        (ALONE, {}, "undecided", "One seed gives no interval; run more."),
        (UNKNOWN, {}, "undecided", "Some readings are not a number."),
        (ABOVE, {"a": UNKNOWN}, "undecided", "Some readings are not a number."),
        (Interval(0, 0, 0), {}, "undecided", "The interval holds zero."),
    ],
)
def test_the_verdict_follows_from_the_intervals(effect, excess, status, reason):
    assert judge(effect, excess) == (status, reason)
    assert judge(effect, excess, "The readings are wrong.") == (
        "undecided",
        "The readings are wrong.",
    )


def test_a_clear_effect_above_its_controls_is_supported_and_its_opposite_contradicted():
    (found,) = judge_all([Claim("descent", "falls", EFFECT, {"a walk": NOTHING})])
    assert found.status == "supported"
    (found,) = judge_all([Claim("ascent", "falls", opposite(EFFECT), {"a walk": NOTHING})])
    assert found.status == "contradicted"
    (found,) = judge_all([Claim("a walk", "falls", NOTHING, {"a walk": NOTHING[::-1]})])
    assert found.status == "undecided"


def test_an_effect_that_the_control_has_as_well_is_not_supported():
    (found,) = judge_all([Claim("weights", "grow", EFFECT, {"a walk": EFFECT[::-1]})])
    assert found.status == "undecided"
    stronger = [3 * value for value in EFFECT]
    (found,) = judge_all([Claim("weights", "grow", EFFECT, {"a walk": stronger})])
    assert found.status == "contradicted"
    assert found.reason == "Above zero, but below a walk."


def test_the_excess_over_a_control_is_paired_by_seed():
    control = [1.9, 2.05, 1.7, 2.1, 1.75]
    (found,) = judge_all([Claim("a", "b", EFFECT, {"c": control})], confidence=0.9)
    expected = ttest_rel(EFFECT, control).confidence_interval(0.95)
    assert_allclose([found.excess["c"].lower, found.excess["c"].upper], expected, rtol=1e-12)


def test_every_further_interval_makes_all_of_them_wider():
    claim = Claim("a", "b", EFFECT, {"c": NOTHING})
    assert claim.n_intervals == 2
    for n in (1, 10):
        found = judge_all([claim] * n)[0]
        assert found.effect == Interval.of(EFFECT, 1 - 0.05 / (2 * n))
    alone, among = judge_all([claim])[0], judge_all([claim] * 10)[0]
    assert among.effect.lower < alone.effect.lower


def test_where_there_is_nothing_to_find_a_verdict_is_rarer_than_the_level():
    random = np.random.default_rng(0)
    n_families, n_wrong = 400, 0
    for _ in range(n_families):
        draws = random.normal(size=(15, 2, 6))
        claims = [Claim("a", "b", effect, {"c": control}) for effect, control in draws]
        n_wrong += any(j.status != "undecided" for j in judge_all(claims))
    # Four standard deviations above the 5 % that are allowed.
    assert n_wrong <= 0.05 * n_families + 4 * math.sqrt(0.05 * 0.95 * n_families)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8))
def test_a_claim_and_its_opposite_never_both_hold(values):
    swapped = {"supported": "contradicted", "contradicted": "supported", "undecided": "undecided"}
    (found,) = judge_all([Claim("a", "b", values)])
    (other,) = judge_all([Claim("a", "b", opposite(values))])
    assert other.status == swapped[found.status]


def test_a_control_without_a_partner_for_each_seed_is_refused():
    with pytest.raises(ValueError, match=r"control 'c' has shape \(2,\) where the effect has"):
        Claim("a", "b", EFFECT, {"c": [1.0, 2.0]})


def test_a_judgement_reads_as_what_was_judged():
    (found,) = judge_all([Claim("descent", "falls", EFFECT)])
    assert repr(found).startswith("Judgement(descent falls: supported, effect=Interval(+2 from +1.")

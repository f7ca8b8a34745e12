"""The content says what is wrong with it when it is made, not when it is drawn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from freenergy.report import (
    BarChart,
    Curve,
    HistogramChart,
    ImageGrid,
    LineChart,
    Page,
    Section,
    Table,
    Text,
    Verdict,
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Curve("CD", [1, 2], [1]), "Curve 'CD': y has 1 values where x has 2"),
        (lambda: Curve("CD", [1, 2], [1, 2], lower=[1]), "lower has 1 values where x has 2"),
        (lambda: Curve("CD", [1], [1], [2], [1]), "lower is above upper at index 0: 2 > 1"),
        (lambda: Curve("CD", [[1]], [[1]]), "x has 2 dimensions where one is expected"),
        (lambda: Curve("CD", ["a"], [1]), "x is not a sequence of real numbers"),
        (lambda: BarChart("b", "y", ["a"], [1, 2]), "values has 2 values where labels has 1"),
        (lambda: BarChart("b", "y", ["a"], [1], errors=[-1]), "errors has a negative value"),
        (lambda: BarChart("b", "y", ["a"], [1], errors=[1], lower=[0]), "not both"),
        (lambda: BarChart("b", "y", ["a"], [1], lower=[2], upper=[1]), "lower is above upper"),
        (lambda: HistogramChart("h", "x", {"s": ["a"]}), "series 's' is not a sequence"),
        (lambda: ImageGrid("i", np.zeros((2, 3, 3, 4))), r"shape \(2, 3, 3, 4\)"),
        (lambda: ImageGrid("i", np.zeros((2, 3, 3, 3)), symmetric=True), "cannot be symmetric"),
        (lambda: ImageGrid("i", np.zeros((2, 3, 3)), n_columns=0), "not a positive integer"),
        (lambda: Table(["a", "b"], [[1, 2], [1]]), "row 1 has 1 cells where there are 2 columns"),
        (lambda: Verdict("maybe", "perhaps"), "status 'maybe' is none of supported"),
    ],
)
def test_content_that_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: LineChart("c", "x", "y", [[1, 2, 3]]),
        lambda: Section("s", [{"title": "not a block"}]),
        lambda: Page("p", sections=[Text("not a section")]),
    ],
)
def test_content_of_another_kind_is_refused(make):
    with pytest.raises(TypeError):
        make()


def test_content_is_frozen_and_does_not_follow_the_arrays_it_was_made_of():
    y = np.array([1.0, 2.0])
    curve = Curve("CD", [1, 2], y)
    y[0] = 99
    assert list(curve.y) == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        curve.y[0] = 99
    with pytest.raises(dataclasses.FrozenInstanceError):
        curve.name = "PCD"


def test_missing_values_are_allowed_everywhere():
    assert np.isnan(Curve("CD", [1, 2], [None, np.nan]).y).all()
    BarChart("b", "y", ["a"], [np.nan], errors=[np.nan])
    HistogramChart("h", "x", {"s": [np.nan]}, markers={"m": np.inf})

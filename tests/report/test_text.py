"""Text is escaped, numbers are rounded."""

from __future__ import annotations

import numpy as np
import pytest

from freenergy.report.text import inline, is_number, number, slug


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (9.99996, "10.00"),
        (0.00123456, "0.001235"),
        (0.00099, "9.900×10⁻⁴"),
        (-1.5e12, "−1.500×10¹²"),
        (123456.7, "123\N{NARROW NO-BREAK SPACE}457"),
        (np.float32(0.5), "0.5000"),
        (np.int64(-60000), "−60\N{NARROW NO-BREAK SPACE}000"),
        (2024, "2024"),
        (0.0, "0"),
        (-0.0, "0"),
        (-np.inf, "−∞"),
        (np.bool_(False), "no"),
        ("1.23456", "1.23456"),
    ],
)
def test_numbers_have_four_digits_and_integers_all_of_theirs(value, text):
    assert number(value) == text


def test_truth_values_are_not_numbers():
    assert is_number(np.float32(1))
    assert is_number(np.int8(1))
    assert not is_number(np.bool_(True))
    assert not is_number(True)
    assert not is_number(None)


def test_markup_cannot_smuggle_elements():
    assert inline("**<b>** `<i>`") == "<strong>&lt;b&gt;</strong> <code>&lt;i&gt;</code>"


def test_markup_in_code_stays_as_it_is():
    assert inline("`a**2 * b**2`") == "<code>a**2 * b**2</code>"
    assert inline("**use `fit`**") == "<strong>use <code>fit</code></strong>"


def test_unpaired_markup_stays_as_it_is():
    assert inline("2 ** 3, a ` b") == "2 ** 3, a ` b"


def test_slugs_are_unique_and_never_empty():
    taken: list[str] = []
    for title in ("β?", "β", "…", "!"):
        taken.append(slug(title, taken))
    assert taken == ["β", "β-2", "section", "section-2"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("-0.5 and (-3)", "−0.5 and (−3)"),
        ("**by -.5 nats**", "<strong>by −.5 nats</strong>"),
        ("`-0.5` is code", "<code>-0.5</code> is code"),
        ("CD-1, 2024-05-01, 1e-7, --steps, a-b", "CD-1, 2024-05-01, 1e-7, --steps, a-b"),
    ],
)
def test_a_hyphen_ahead_of_a_number_is_a_minus_sign(text, shown):
    assert inline(text) == shown

"""Pages: their words follow from the numbers, and every page can be written."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from freenergy.inference.equilibrium import _advice, _Gap
from freenergy.report import HistogramChart, ImageGrid, LineChart, Table, render
from freenergy.report.text import inline
from freenergy.studies.assessment import Assessment, assess
from freenergy.studies.assessment_page import advice_words, assessment_sections, verdict_words
from freenergy.studies.blocks import band, filter_grid, provenance, sample_grid
from freenergy.studies.learning_page import learning_page, verdict
from freenergy.studies.results import MethodResult
from freenergy.studies.run_page import run_page
from freenergy.training import RunConfig, TrainingOptions

PCD = [-20.0, -21.0, -19.5, -20.5, -20.2]


def differing(planted, gaps, **options):
    """A study in which TAP2 ends this far above PCD."""
    n = len(gaps)
    tap2 = [value + gap for value, gap in zip(PCD[:n], gaps, strict=True)]
    return planted({"CD": PCD[:n], "PCD": PCD[:n], "EMF (TAP2)": tap2}, **options)


def blocks(page, kind):
    return [block for section in page.sections for block in section.blocks if type(block) is kind]


# ---- the verdict ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gaps", "status", "words"),
    [
        ([0.1, -0.1, 0.0, 0.2, -0.2], "supported", "Yes."),
        ([2.1, 1.9, 2.0, 2.2, 1.8], "supported", "Yes."),
        ([-0.5, -0.6, -0.4, -0.5, -0.5], "supported", "Yes."),
        ([-3.1, -2.9, -3.0, -3.2, -2.8], "contradicted", "No, not here:"),
        ([-1.3, -1.2, -1.4, -1.3, -1.3], "contradicted", "No, not here:"),
        ([-4.0, 2.0, -3.0, 3.0, -1.0], "undecided", "These runs cannot tell."),
        ([-0.9, -1.1, -1.0, -1.05, -0.95], "contradicted", "No, not here:"),
        ([-2.0, 0.5, -1.8, 0.3, -0.4], "undecided", "These runs cannot tell."),
        ([-1.0] * 5, "contradicted", "No, not here:"),
    ],
)
def test_the_verdict_follows_from_the_interval(planted, gaps, status, words):
    study = differing(planted, gaps)
    found = verdict(study)
    assert found.status == status
    assert found.text.startswith(words)
    gap, width = study.difference("EMF (TAP2)", "PCD")
    higher = "higher" if gap >= 0 else "lower"
    assert f"is {abs(np.mean(gaps)):.2f} nats {higher} after learning with EMF" in found.text
    assert f"95 % interval {gap - width:+.2f} to {gap + width:+.2f}, over 5" in found.text
    assert "On patterns, the exact log-likelihood of held-out rows" in found.text
    assert ("keeps up, and draws no samples" in found.text) == (status == "supported")
    holds_zero = gap - width <= 0 <= gap + width
    alike = "The runs do not tell the two apart." in found.text
    assert alike == (status == "supported" and holds_zero)


@pytest.mark.parametrize("gap", [-9.0, 0.0, 9.0])
def test_one_seed_decides_nothing(planted, gap):
    found = verdict(differing(planted, [gap]))
    assert found.status == "undecided"
    higher = "lower" if gap < 0 else "higher"
    assert f"is {abs(gap):.2f} nats {higher} after learning with EMF (TAP2)" in found.text
    assert "This is one seed" in found.text
    assert "Run more seeds to decide." in found.text


@pytest.mark.parametrize("gap", [-9.0, 0.0, 9.0])
def test_a_pseudo_likelihood_decides_nothing(planted, gap):
    found = verdict(differing(planted, [gap + 0.1, gap - 0.1, gap], exact=False))
    assert found.status == "undecided"
    assert "the pseudo-likelihood of held-out rows is" in found.text
    assert f"(difference {gap:+.2f}" in found.text
    assert "decides nothing" in found.text


@pytest.mark.parametrize("methods", [["CD", "PCD"], ["EMF (TAP2)", "CD"]])
def test_without_both_methods_nothing_is_judged(planted, methods):
    found = verdict(planted({name: [-1.0, -2.0] for name in methods}))
    assert found.status == "info"
    assert "did not run both PCD and EMF (TAP2)" in found.text


def test_what_is_not_a_number_decides_nothing(planted):
    found = verdict(differing(planted, [0.0, math.nan, 0.1]))
    assert found.status == "undecided"
    assert "one seed" not in found.text


# ---- the page of the study -----------------------------------------------------------------------


def test_the_page_shows_every_method(planted):
    study = differing(planted, [0.1, -0.1, 0.0, 0.2, -0.2])
    page = learning_page(study)
    assert page.verdict == verdict(study)
    (table,) = blocks(page, Table)
    assert [row[0] for row in table.rows] == ["CD", "PCD", "EMF (TAP2)"]
    held_out = table.columns.index("held-out ln p")
    assert table.rows[1][held_out] == f"{np.mean(PCD):.2f} ± {np.std(PCD, ddof=1):.2f}"
    assert table.rows[1][table.columns.index("accuracy (%)")] == "87.5"
    assert "reaches 75.0 %" in table.note
    assert "standard deviation over seeds" in table.note
    charts = {chart.title: chart for chart in blocks(page, LineChart)}
    chart = charts["Held-out log-likelihood, exact"]
    assert [curve.name for curve in chart.curves] == ["CD", "PCD", "EMF (TAP2)"]
    np.testing.assert_allclose(chart.curves[1].y, [np.mean(PCD) - 2, np.mean(PCD)])
    np.testing.assert_allclose(chart.curves[1].upper, [max(PCD) - 2, max(PCD)])
    for quantity in "FUS":
        curves = charts[f"{quantity}, trained by PCD"].curves
        assert [curve.name for curve in curves] == ["naive", "TAP2", "TAP3", "exact"]
        assert [curve.dash for curve in curves] == [False, False, False, True]
    grids = blocks(page, ImageGrid)
    assert [grid.images.shape for grid in grids] == [(5, 2, 3)] * 3 + [(48, 2, 3)] * 3
    document = render(page)
    assert inline(page.verdict.text) in document
    assert "**PCD** by chains" in page.sections[0].intro
    assert "PTT" not in page.sections[0].intro
    assert "freenergy study --data patterns.npz" in document


def test_a_page_claims_no_likelihood_that_was_not_computed(planted):
    page = learning_page(differing(planted, [0.1, -0.1], exact=False))
    (table,) = blocks(page, Table)
    assert not any("exact" in column for column in table.columns)
    assert not any("exact" in chart.title for chart in blocks(page, LineChart))
    document = render(page)
    assert "no likelihood is claimed here" in document
    assert "no likelihood is claimed here" not in render(learning_page(differing(planted, [0, 1])))


def test_one_seed_has_no_spread_and_no_band(planted):
    page = learning_page(differing(planted, [0.5]))
    (table,) = blocks(page, Table)
    assert table.rows[1][1] == "-20.00"
    assert "standard deviation" not in table.note
    assert all(c.lower is None for chart in blocks(page, LineChart) for c in chart.curves)
    assert render(page)


@pytest.mark.parametrize("shape", [None, (1, 2, 3), (6,)])
def test_rows_that_are_no_grey_images_are_not_shown_as_images(planted, shape):
    page = learning_page(differing(planted, [0.5, 0.4], image_shape=shape))
    assert blocks(page, ImageGrid) == []
    assert render(page)


def test_what_is_missing_is_left_out_of_the_table(planted):
    page = learning_page(differing(planted, [0.5, 0.4], accuracy=None))
    (table,) = blocks(page, Table)
    assert {row[table.columns.index("accuracy (%)")] for row in table.rows} == {"–"}
    assert "Logistic regression on the pixels" not in table.note


# ---- the page of a run ---------------------------------------------------------------------------


def make_config(n_epochs: int = 4, **options) -> RunConfig:
    return RunConfig(
        {"name": "patterns", "fingerprint": "0123456789abcdef", "binarize": 0.5},
        6,
        4,
        TrainingOptions(method="emf", n_epochs=n_epochs, **options),
        seed=3,
        command="freenergy train",
    )


def test_a_run_has_a_page(rbm, history):
    page = run_page(make_config(), history(-5.0, 0), rbm(6, 4), (2, 3))
    assert page.question == "How did EMF train this RBM?"
    assert page.verdict.status == "info"
    assert "4 of 4 epochs" in page.verdict.text
    assert "Exact held-out log-likelihood -5.00 nats." in page.verdict.text
    charts = {chart.title: chart for chart in blocks(page, LineChart)}
    curves = charts["Log-likelihood, exact"].curves
    assert [curve.name for curve in curves] == ["train", "held out"]
    assert [curve.y[-1] for curve in curves] == [-4.0, -5.0]
    (table,) = blocks(page, Table)
    assert ["method", "emf"] in [list(row) for row in table.rows]
    assert [grid.images.shape for grid in blocks(page, ImageGrid)] == [(4, 2, 3), (48, 2, 3)]
    document = render(page)
    assert "RBM on patterns" in document
    assert "freenergy train" in document


def test_a_run_that_stopped_early_says_how_far_it_came(rbm, history):
    page = run_page(make_config(9), history(-5.0, 0, exact=False), rbm(6, 4))
    assert "4 of 9 epochs" in page.verdict.text
    assert "Held-out pseudo-likelihood -5.00 nats." in page.verdict.text
    assert "xact held-out" not in page.verdict.text
    assert render(page)


def test_a_run_without_an_epoch_has_a_page(rbm):
    page = run_page(make_config(0), [], rbm(6, 4), (2, 3))
    assert "0 of 0 epochs" in page.verdict.text
    assert render(page)


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ({"tap2_entropy": -0.1}, "The entropy of order 2 mean field is negative: do not trust it."),
        ({"tap3_entropy": -0.1}, "The entropy of order 3 mean field is negative"),
        ({"tap1_converged": 0.5}, "states of order 1 often did not converge"),
        ({"tap3_converged": 0.89}, "states of order 3 often did not converge"),
    ],
)
def test_alarms_are_told(rbm, history, last, words):
    page = run_page(make_config(), history(-5.0, 0, **last), rbm(6, 4))
    assert words in page.verdict.text
    quiet = run_page(make_config(), history(-5.0, 0), rbm(6, 4))
    assert "order" not in quiet.verdict.text


def test_samples_of_a_page_are_those_of_the_run_s_temperature(rbm, history):
    model = rbm(6, 4, scale=2.0)
    grids = [
        blocks(run_page(make_config(beta=beta), history(-5.0, 0), model, (2, 3)), ImageGrid)[1]
        for beta in (1.0, 0.01)
    ]
    # Near infinite temperature every probability is near one half.
    assert np.abs(grids[1].images - 0.5).max() < 0.05
    assert np.abs(grids[0].images - 0.5).max() > 0.4


# ---- the assessment ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def assessment(rbm) -> Assessment:
    rows = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (60, 6)).astype(np.float32))
    return assess(rbm(6, 4, scale=0.3), rows[:40], rows[40:], time_budget=60.0)


def test_an_assessment_is_shown_with_every_estimate(rbm, history, assessment):
    plain = run_page(make_config(), history(-5.0, 0), rbm(6, 4))
    page = run_page(make_config(), history(-5.0, 0), rbm(6, 4), assessment=assessment)
    titles = [section.title for section in page.sections]
    new = [title for title in titles if title not in [s.title for s in plain.sections]]
    assert new == ["How good is it really?", "Equilibrium, temperature and entropy"]
    table = next(t for t in blocks(page, Table) if t.columns[0] == "method")
    assert [row[0] for row in table.rows] == [e.label for e in assessment.estimates]
    assert [row[4] == "yes" for row in table.rows] == [e.trusted for e in assessment.estimates]
    (works,) = blocks(page, HistogramChart)
    assert [len(values) for values in works.series.values()] == [
        len(assessment.works[end]) for end in ("up", "down")
    ]
    document = render(page)
    best = assessment.estimate("exact")
    words = f"The held-out log-likelihood is {best.log_likelihood:.2f} nats for a row"
    assert inline(words) in document


def test_the_words_name_what_is_not_trusted(assessment):
    words = verdict_words(assessment)
    assert "(exact, without error)" in words
    assert "Not to be trusted: TAP 1 (naive), TAP 2." in words
    doubtful = [
        dataclasses.replace(e, trusted=False, reasons=[f"{e.name} fails"])
        for e in assessment.estimates
    ]
    nothing = dataclasses.replace(assessment, estimates=doubtful)
    assert nothing.best is None
    words = verdict_words(nothing)
    assert words.startswith("No estimate of the likelihood can be trusted here: ")
    assert "bar fails" in words
    assert "nats for a row" not in words
    for section in assessment_sections(nothing, "PCD"):
        assert section.title.endswith(": PCD")


def test_the_narrowest_trusted_estimate_is_the_best(assessment):
    rest = [e for e in assessment.estimates if e.name != "exact"]
    best = dataclasses.replace(assessment, estimates=rest).best
    assert best.trusted
    assert best.upper - best.lower == min(e.upper - e.lower for e in rest if e.trusted)


@pytest.mark.parametrize(
    ("shift", "words"), [(0.25, "0.25 nats higher"), (-0.61, "0.61 nats lower")]
)
def test_training_rows_are_higher_or_lower(assessment, shift, words):
    moved = [
        dataclasses.replace(e, log_likelihood_train=e.log_likelihood + shift)
        for e in assessment.estimates
    ]
    found = verdict_words(dataclasses.replace(assessment, estimates=moved))
    assert f"On training rows it is {words}. " in found


@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("lag", [0.0, 9.0])
@pytest.mark.parametrize("tau", [0.5, 5.0])
def test_advice_is_in_the_options_of_the_command_line(failed, lag, tau):
    advice = _advice(failed, failed, _Gap("free energy", ("data", "chains"), lag, 1.0), tau, 1)
    words = advice_words({"advice": advice}).replace("inference.certify) with more n_steps", "")
    for name in ("n_steps", "learning_rate", "weight_constraint", "method="):
        assert name not in words
    if not failed and lag == 0 and tau > 1:
        assert words.endswith("(--method cd) would need --steps 5 or more.")


@pytest.mark.parametrize("label", ["equilibrium", "out of equilibrium", "undecided"])
def test_a_certificate_is_shown(rbm, history, assessment, label):
    certificate = assessment.certificate | {"label": label, "advice": "do so"}
    page = run_page(make_config(), history(-5.0, 0), rbm(6, 4), certificate=certificate)
    assert "Were the chains in equilibrium?" in [section.title for section in page.sections]
    document = render(page)
    state = "in equilibrium" if label == "equilibrium" else label
    assert f"Gibbs chains are {state}." in document
    assert "What to do: do so" in document


def test_an_assessment_says_how_long_it_took(assessment):
    assert assessment.seconds > 0


# ---- blocks --------------------------------------------------------------------------------------


def test_a_band_is_the_mean_and_the_range_of_the_seeds(history):
    histories = [history(value, 0) for value in (-5.0, -6.0, -10.0)]
    method = MethodResult("PCD", histories, None, np.zeros((0, 6)), np.zeros((0, 6)))
    (curve,) = band("name", method, "log_likelihood_held_out", dash=True)
    np.testing.assert_allclose(curve.x, [2, 4])
    np.testing.assert_allclose(curve.y, [-9, -7])
    np.testing.assert_allclose(curve.lower, [-12, -10])
    np.testing.assert_allclose(curve.upper, [-7, -5])
    assert (curve.name, curve.dash) == ("name", True)
    assert band("name", method, "unknown") == []
    (alone,) = band("name", dataclasses.replace(method, histories=histories[:1]), "weight_norm")
    assert alone.lower is None
    np.testing.assert_allclose(alone.y, [2, 4])


def test_images_are_rows_in_the_shape_of_the_data(history):
    rows = np.arange(12.0).reshape(2, 6)
    method = MethodResult("PCD", [history(-5.0, 0)], None, rows - 6, rows / 12)
    (grid,) = filter_grid(method, (2, 3))
    np.testing.assert_array_equal(grid.images[1], [[0, 1, 2], [3, 4, 5]])
    assert grid.symmetric
    (grid,) = sample_grid(method, [3, 2])
    np.testing.assert_allclose(grid.images[0], np.array([[0, 1], [2, 3], [4, 5]]) / 12)
    assert not grid.symmetric


def test_provenance_names_data_seeds_and_versions():
    found = provenance(
        {"name": "x", "fingerprint": "0123456789abcdef"}, {"torch": "2.0"}, "", (0, 1)
    )
    assert found["data"] == "x (sha256 0123456789ab…)"
    assert found["seeds"] == "0, 1"
    assert found["command"] == "(from Python)"
    assert found["torch"] == "2.0"

"""The page of the conjecture: its words follow from planted numbers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from freenergy.report import LineChart, Table, render
from freenergy.studies.conjecture import ConjectureSettings, ConjectureStudy
from freenergy.studies.conjecture_claims import ALIGNS, DIFFERENCE, SHUFFLED, StationResult
from freenergy.studies.conjecture_page import answer, conjecture_page, verdict

N_SEEDS = 6
EPOCHS = (0, 1, 2, 3)
PARTS = ("", "_weight", "_hidden_bias", "_visible_bias", "_centred")


def histories(fall, cosine, *, gain=0.2, growth=4.0, source="exact", steps=True, layers=0):
    """Readings whose ΔF falls by ``fall``, whose F falls by ``growth``, at this mean cosine."""
    random = np.random.default_rng(0)
    found = []
    for noise in np.linspace(0.97, 1.03, N_SEEDS):
        history = []
        for epoch in EPOCHS:
            t = epoch / EPOCHS[-1]
            record = {"epoch": epoch, "seconds": 0.1 * epoch, "weight_norm": 1.0 + epoch}
            for kind in {source, "tap"}:
                record |= {
                    f"{kind}_difference": 20.0 - fall * noise * t,
                    f"{kind}_free_energy": -30.0 - growth * noise * t,
                    f"{kind}_energy": -10.0,
                    f"{kind}_entropy": 20.0,
                }
                if steps:
                    record |= {f"{kind}_cosine{part}": cosine * noise for part in PARTS}
                    for i in range(1, layers + 1):
                        record[f"{kind}_cosine_layer{i}"] = cosine * noise
                    for part in ("", "_centred"):
                        record[f"{kind}_cosine{part}_shuffled"] = 0.01 * random.normal()
                        record[f"{kind}_cosine{part}_random"] = 0.01 * random.normal()
                        record[f"{kind}_spread{part}"] = 0.05
            record |= {"data_free_energy": -10.0, "accuracy": 0.1 + gain * t, "tap_trusted": 1.0}
            if steps:
                record |= {"drop": 0.01, "predicted_drop": 0.011, "tap_fidelity": 0.99}
            history.append(record)
        found.append(history)
    return found


def station(name, fall, cosine, *, backpropagation=True, **options):
    control = {**options, "steps": False, "layers": 0}
    return StationResult(
        name,
        backpropagation,
        histories(fall, cosine, **options),
        histories(-0.5, 0.0, **control | {"gain": 0.0, "growth": 3.0}),
        histories(0.1, 0.0, **control | {"gain": 0.01}) if backpropagation else [],
    )


def study(*stations, **changes):
    names = tuple(s.name for s in stations)
    data = {"name": "patterns", "n_train": 80, "n_held_out": 20, "n_visible": 6, "n_classes": 3}
    settings = ConjectureSettings(seeds=tuple(range(N_SEEDS)), stations=names, **changes)
    return ConjectureStudy(data, settings, list(stations), {"torch": "2.0"}, "freenergy study")


def emf(**options):
    return station("EMF (TAP2)", 4.0, 0.95, backpropagation=False, **options)


def blocks(page, kind):
    return [block for section in page.sections for block in section.blocks if type(block) is kind]


# ---- the verdict ---------------------------------------------------------------------------------


def test_nets_that_all_do_as_the_mean_field_support_the_conjecture():
    found = verdict(study(emf(), station("one", 3.0, 0.6), station("two", 2.0, 0.4)))
    assert found.status == "supported"
    assert found.text.startswith("Yes. On patterns, of the RBM that the weights define: one lowers")
    assert "lowers the free-energy difference ΔF by 3.00 nats" in found.text
    assert "F = −ln Z alone" not in found.text


@pytest.mark.parametrize(("fall", "cosine"), [(-3.0, 0.6), (3.0, -0.6), (-3.0, -0.6)])
def test_one_net_that_does_otherwise_contradicts_it(fall, cosine):
    found = verdict(study(emf(), station("one", 3.0, 0.6), station("two", fall, cosine)))
    assert found.status == "contradicted"
    assert found.text.startswith("No, not always: two does otherwise.")
    both = verdict(study(station("one", -1.0, 0.6), station("two", fall, cosine)))
    assert both.text.startswith("No, not always: one and two do otherwise.")


def test_a_net_that_does_no_more_than_its_controls_leaves_it_undecided():
    found = verdict(study(emf(), station("one", 3.0, 0.6), station("two", 3.0, 0.0)))
    assert found.status == "undecided"
    assert found.text.startswith("These runs cannot tell.")
    assert "(undecided: the interval holds zero)" in found.text


def test_a_fall_that_shuffled_labels_bring_as_well_is_not_supported():
    one = station("one", 3.0, 0.6)
    object.__setattr__(one, "shuffled", histories(3.05, 0.0, steps=False))
    assert verdict(study(one)).status != "supported"
    object.__setattr__(one, "shuffled", histories(6.0, 0.0, steps=False))
    found = study(one)
    assert found.judgement("one", DIFFERENCE).reason == f"Above zero, but below {SHUFFLED}."
    assert verdict(found).status == "contradicted"


def test_a_direction_that_shuffled_labels_have_as_well_is_not_supported():
    one = station("one", 3.0, 0.6)
    for history in one.trained:
        for record in history:
            record["exact_cosine_shuffled"] = record["exact_cosine"] + 0.1
    judgement = study(one).judgement("one", ALIGNS)
    assert judgement.status == "contradicted"
    assert judgement.reason == f"Above zero, but below {SHUFFLED}."


def test_a_free_energy_that_falls_alone_is_pointed_out():
    found = verdict(study(emf(), station("one", -3.0, 0.2), station("two", 3.0, 0.2)))
    assert "The free energy F = −ln Z alone falls for one, but as weights grow" in found.text
    assert "alone" not in verdict(study(station("one", -3.0, 0.2, growth=-1.0))).text


def test_the_mean_field_itself_is_the_positive_control():
    found = verdict(study(emf(), station("one", 3.0, 0.6)))
    assert "For comparison, EMF (TAP2) itself: ΔF -4.00 nats" in found.text
    assert "(supported), cosine +0.95" in found.text
    assert "comparison" not in verdict(study(station("one", 3.0, 0.6))).text


def test_the_number_of_claims_is_told():
    found = verdict(study(emf(), station("one", 3.0, 0.6)))
    # Two intervals for each claim of the mean field; three, and two for accuracy, of the net.
    assert "12 claims with 29 intervals over 6 seeds are judged together, at 95 % for" in found.text


def test_without_backpropagation_nothing_is_judged():
    assert verdict(study(emf())).status == "info"


# ---- the page ------------------------------------------------------------------------------------


def test_an_unfinished_study_says_what_is_missing_and_how_to_go_on():
    whole = study(emf(), station("one", 3.0, 0.6))
    assert "Not finished" not in render(conjecture_page(whole))
    page = render(conjecture_page(dataclasses.replace(whole, missing="PCD with seed 1")))
    assert "<p>PCD with seed 1.</p>" in page
    assert "with the same options and <code>--out</code>: it goes on" in page


def test_the_answer_is_the_verdict_paragraph_by_paragraph():
    result = study(emf(), station("one", 3.0, 0.6), station("two", -1.0, 0.3))
    first, one, two, remarks = answer(result)
    assert first == "**Contradicted.** No, not always: two does otherwise."
    words = f"{first} {one} {two} {remarks}"
    assert words == f"**Contradicted.** {verdict(result).text}"


def test_the_page_shows_every_claim_with_its_intervals():
    result = study(emf(), station("one", 3.0, 0.6), station("untied", 1.0, 0.3, layers=3))
    page = conjecture_page(result)
    assert page.verdict == verdict(result)
    table = blocks(page, Table)[0]
    assert len(table.rows) == len(result.judgements) == 18
    row = next(r for r in table.rows if r[:2] == ("one", ALIGNS))
    judgement = result.judgement("one", ALIGNS)
    effect = judgement.effect
    assert row[3] == f"{effect.mean:+.3g} ({effect.lower:+.3g} to {effect.upper:+.3g})"
    assert row[2] == "supported"
    assert row[-1] == "Above zero, and above a random direction and shuffled labels."
    assert "All 46 intervals of the 18 claims hold together with 95 %" in table.note
    document = render(page)
    assert "Does backpropagation do what the extended mean field does" in document


def test_charts_show_stations_controls_and_chance():
    result = study(emf(), station("untied", 1.0, 0.3, layers=3))
    charts = {chart.title: chart for chart in blocks(conjecture_page(result), LineChart)}
    everyone = charts["Free-energy difference ΔF = ⟨F(v)⟩ − F, held out"]
    assert [c.name for c in everyone.curves] == ["EMF (TAP2)", "untied"]
    against = charts["ΔF, untied"].curves
    assert [(c.name, c.dash) for c in against] == [
        ("trained", False),
        (SHUFFLED, True),
        ("random walk", True),
    ]
    _, fallen = np.asarray(against[0].y)[[0, -1]]
    assert fallen == pytest.approx(19.0, abs=0.05)
    cosine = charts["Cosine, all parameters: untied"].curves
    assert [c.name for c in cosine] == ["true labels", SHUFFLED, "a random direction"]
    np.testing.assert_allclose(cosine[-1].upper, 0.1)
    np.testing.assert_allclose(cosine[-1].lower, -0.1)
    parts = charts["Cosine, part by part: untied"].curves
    assert [c.name for c in parts][-1] == "weights of layer 3"
    assert len(charts["Cosine, part by part: EMF (TAP2)"].curves) == 3
    assert "Cosine of the mean-field step with the exact one" in charts


def test_readings_that_are_missing_leave_gaps():
    one = station("one", 3.0, 0.6)
    for history in one.trained:
        history[0] |= {"exact_cosine_visible_bias": None, "exact_cosine": None}
        for record in history:
            record["exact_cosine_visible_bias"] = None
    charts = {c.title: c for c in blocks(conjecture_page(study(one)), LineChart)}
    parts = charts["Cosine, part by part: one"].curves
    assert "visible biases" not in [c.name for c in parts]
    assert math.isnan(np.asarray(charts["Cosine, all parameters: one"].curves[0].y)[0])
    assert study(one).judgement("one", ALIGNS).status == "supported"


def test_a_study_of_large_models_says_that_its_judge_is_the_mean_field():
    one = station("one", 3.0, 0.6, source="tap")
    for runs in (one.trained, one.walk, one.shuffled):
        for history in runs:
            for record in history:
                for key in [key for key in record if key.startswith("exact")]:
                    del record[key]
    result = study(one)
    assert not result.exact
    document = render(conjecture_page(result))
    assert "Free energies are those of the mean field (TAP2)" in document
    assert "The mean-field free energy is no bound." in document
    assert verdict(result).status == "supported"
    one.trained[0][2]["tap_trusted"] = 0.0
    assert verdict(study(one)).status == "undecided"


def test_one_seed_is_drawn_without_a_band():
    one = station("one", 3.0, 0.6)
    alone = StationResult("one", True, one.trained[:1], one.walk[:1], one.shuffled[:1])
    page = conjecture_page(study(alone))
    assert page.verdict.status == "undecided"
    curve = blocks(page, LineChart)[0].curves[0]
    assert curve.lower is None
    assert render(page)

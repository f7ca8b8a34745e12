"""All questions of one data set, in one folder and on one page."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from freenergy.data import Dataset
from freenergy.files import as_json
from freenergy.models import RBM
from freenergy.random import RandomStream
from freenergy.report import LineChart, Table, render
from freenergy.studies.conjecture import ConjectureSettings
from freenergy.studies.depth import DepthSettings
from freenergy.studies.landscape import landscape_section, read_landscape, run_landscape
from freenergy.studies.learning import LearningSettings
from freenergy.studies.study import read_study, run_study, study_page
from freenergy.training import RunError, load_model


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = (rng.random((60, 6)) < np.where(y[:, None] == 1, 0.8, 0.2)).astype(np.float32)
    return Dataset("patterns", x[:40], y[:40], x[40:], y[40:])


def run(dataset, path, **options):
    learning = LearningSettings(
        n_hidden=3, n_epochs=2, seeds=(0, 1), methods=("PCD", "EMF (TAP2)"), assessed=("PCD",)
    )
    conjecture = ConjectureSettings(n_hidden=3, n_epochs=2, seeds=(0, 1))
    depth = DepthSettings(
        depths=(2,), width=4, n_epochs=1, batch_size=20, small_batch=10, large_batch=40
    )
    return run_study(dataset, path, learning, conjecture, depth, **options)


def test_a_study_asks_every_question_once(dataset, tmp_path):
    study = run(dataset, tmp_path)
    page = study_page(study)
    titles = [section.title for section in page.sections]
    assert "Does backpropagation lower the free energy?" in titles
    assert any("rough and smoothed: PCD" in title for title in titles)
    assert "What keeps a deep net trainable?" in titles
    assert titles.index("Does backpropagation lower the free energy?") < titles.index("The claims")
    assert len(render(page)) > 10_000
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.json") if p.name != "accuracy.json"}
    assert run(dataset, tmp_path).landscape == study.landscape
    assert {p: p.stat().st_mtime_ns for p in times} == times, "what is done is not done again"
    assert [s.title for s in study_page(read_study(tmp_path)).sections] == titles


def test_the_number_of_processes_does_not_show_in_a_bit(dataset, tmp_path):
    one, two = (run(dataset, tmp_path / str(n), n_jobs=n) for n in (1, 2))
    assert timeless(one.learning.methods) == timeless(two.learning.methods)
    assert timeless(one.conjecture.stations) == timeless(two.conjecture.stations)
    assert one.landscape == two.landscape
    assert timeless([one.depth]) == timeless([two.depth])
    assert one.learning.pixel_accuracy == two.learning.pixel_accuracy
    for name in ("pcd-seed0", "pcd-seed1", "emf-tap2-seed0", "emf-tap2-seed1"):
        models = [load_model(tmp_path / n / name).state_dict() for n in ("1", "2")]
        assert all(bool((models[0][key] == models[1][key]).all()) for key in models[0])


def timeless(results) -> list:
    """All numbers of methods or stations, without what a clock gave."""

    def without(value):
        if isinstance(value, dict):
            return {k: without(v) for k, v in value.items() if k not in ("seconds", "loop_time")}
        return [without(v) for v in value] if isinstance(value, list) else value

    found = [without(as_json(dataclasses.asdict(result))) for result in results]
    assert all(found)
    return found


def test_an_interrupted_study_shows_what_is_done(dataset, tmp_path):
    whole = run(dataset, tmp_path)
    assert whole.missing == ()
    assert "Not finished" not in [s.title for s in study_page(whole).sections]
    (tmp_path / "conjecture" / "pcd-seed1.json").unlink()
    (tmp_path / "landscape.json").unlink()
    tanh = sorted((tmp_path / "depth").glob("tanh*"), key=lambda path: len(path.name))
    tanh[0].unlink()
    study = read_study(tmp_path)
    assert study.missing == (
        "The landscape.",
        "The conjecture: PCD with seed 1.",
        "How deep a net can be: tanh of 2 layers; 1 of 6 nets with the norm held.",
    )
    first = study_page(study).sections[0]
    assert first.title == "Not finished"
    assert first.blocks[0].paragraphs == study.missing
    assert "Does backpropagation lower" in render(study_page(study))
    shutil.rmtree(tmp_path / "emf-tap2-seed0")
    (tmp_path / "pcd-seed0" / "assessment.json").unlink()
    for path in (tmp_path / "conjecture").glob("*-seed*.json"):
        path.unlink()
    study = read_study(tmp_path)
    assert study.conjecture is None
    assert [m.name for m in study.learning.methods] == ["PCD"]
    assert study.missing[0] == "Learning: EMF (TAP2) with seed 0."
    assert study.missing[1] == "Assessments: PCD."
    assert "The conjecture: all of it." in study.missing
    assert "the study did not run both" in render(study_page(study)).lower()
    again = run(dataset, tmp_path)
    assert again.missing == ()
    assert again.landscape == whole.landscape


def test_rows_without_classes_leave_the_conjecture_out(dataset, tmp_path, capsys):
    study = run(dataclasses.replace(dataset, y_train=None, y_test=None), tmp_path)
    assert study.conjecture is None
    assert study.depth is None
    assert "backprop" in capsys.readouterr().err
    assert "The claims" not in [s.title for s in study_page(study).sections]
    assert read_study(tmp_path).conjecture is None


def test_a_damaged_landscape_is_named(tmp_path):
    path = tmp_path / "landscape.json"
    for content in ("{", "[]", "{}", '{"temperatures": [1.0], "fixed_points": 3}'):
        path.write_text(content)
        with pytest.raises(RunError, match=r"landscape\.json is damaged"):
            read_landscape(path)


def test_the_landscape_of_free_units_has_one_state_at_every_temperature(tmp_path):
    model = RBM(4, 3)
    with torch.no_grad():
        model.weight.zero_()
        model.visible_bias.fill_(0.3)
        model.hidden_bias.fill_(-0.2)
    rows = RandomStream(0).bernoulli_(torch.full((30, 4), 0.5))
    found = run_landscape(model, rows, tmp_path / "l.json", temperatures=(0.1, 1.0), n_starts=20)
    section = landscape_section(found, "PCD")
    chart, table = section.blocks
    assert isinstance(chart, LineChart)
    assert isinstance(table, Table)
    np.testing.assert_allclose(chart.curves[0].y, 1.0)
    assert [row[:3] for row in table.rows] == [(0.1, 1, "100 %"), (1.0, 1, "100 %")]
    assert "1 distinct minima of the energy, -1.2 on average" in table.caption
    json.loads((tmp_path / "l.json").read_text())

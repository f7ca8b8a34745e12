"""The study "learning": its bookkeeping, its statistics, and that it goes on where it stopped."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import ttest_rel
from sklearn.linear_model import LogisticRegression

from freenergy.data import Dataset
from freenergy.inference import exact
from freenergy.progress import Reporter
from freenergy.studies import learning
from freenergy.studies.assessment import Assessment
from freenergy.studies.learning import (
    METHODS,
    LearningSettings,
    read_assessment,
    read_learning,
    run_learning,
)
from freenergy.studies.results import describe, filters, samples, split_held_out
from freenergy.training import CheckpointError, RunDirectory, RunError, Trainer, load_model

SETTINGS = LearningSettings(n_hidden=4, n_epochs=3, batch_size=10, seeds=(0, 1))


def run(dataset, path, settings=SETTINGS, **options):
    return run_learning(dataset, path, settings, reporter=Reporter(io.StringIO()), **options)


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory) -> Path:
    """A complete study that a test may read, but must not change."""
    path = tmp_path_factory.mktemp("study") / "study"
    run(dataset(), path, command="freenergy study", binarize=0.5)
    return path


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "study"))


# ---- settings and rows ---------------------------------------------------------------------------


def test_large_data_get_settings_that_end_today(dataset):
    assert LearningSettings.for_data(dataset()) == LearningSettings()
    large = Dataset("large", np.zeros((20_000, 101), dtype=np.float32))
    settings = LearningSettings.for_data(large)
    assert settings.n_hidden == 500
    assert len(settings.seeds) == 1
    assert {"PCD", "EMF (TAP2)"} < set(settings.methods) < set(METHODS)


def test_rows_are_held_out_once_for_all(dataset):
    whole = dataset()
    train, held_out = split_held_out(whole)
    assert train is whole.x_train
    assert held_out is whole.x_test
    alone = dataset(50, test=False)
    parts = split_held_out(alone)
    assert [len(part) for part in parts] == [40, 10]
    for part, again in zip(parts, split_held_out(alone), strict=True):
        assert_array_equal(part, again)
    together = np.concatenate(parts)
    assert_array_equal(np.sort(together, axis=0), np.sort(alone.x_train, axis=0))


def test_rows_that_cannot_be_learned_are_refused(dataset):
    with pytest.raises(ValueError, match="patterns has 9 rows; at least 10 are needed"):
        split_held_out(dataset(9))
    for value, message in ((2.0, "value 2 in column 3, row 1"), (np.nan, "NaN in column 3")):
        for name in ("x_train", "x_test"):
            good = dataset()
            rows = getattr(good, name).copy()
            rows[1, 3] = value
            with pytest.raises(ValueError, match=message):
                split_held_out(dataclasses.replace(good, **{name: rows}))


# ---- what is read off ----------------------------------------------------------------------------


def test_readings_are_found_by_name(planted):
    study = planted({"PCD": [-5.0, -6.0, -7.0], "CD": [-8.0, -9.0, -9.5]})
    method = study.result("PCD")
    assert_array_equal(method.final("log_likelihood_held_out"), [-5, -6, -7])
    assert_array_equal(method.final("log_likelihood"), [-4, -5, -6])
    assert np.isnan(method.final("unknown")).all()
    epochs, values = method.curve("log_likelihood_held_out")
    assert_array_equal(epochs, [2, 4])
    assert_array_equal(values, [[-7, -5], [-8, -6], [-9, -7]])
    assert method.curve("unknown")[0].size == 0
    assert method.seconds == pytest.approx(1.0)


def test_the_judge_is_the_exact_likelihood_where_there_is_one(planted):
    results = {"PCD": [-5.0, -6.0], "EMF (TAP2)": [-5.5, -6.5]}
    study, large = planted(results), planted(results, exact=False)
    assert (study.exact, study.judge) == (True, "log_likelihood_held_out")
    assert (large.exact, large.judge) == (False, "pseudo_likelihood_held_out")
    assert large.difference("EMF (TAP2)", "PCD")[0] == pytest.approx(-0.5)


def test_the_difference_is_the_first_minus_the_second_with_a_paired_interval(planted):
    a, b = [-5.0, -6.2, -7.1, -5.5], [-5.5, -6.1, -8.0, -6.4]
    study = planted({"EMF (TAP2)": a, "PCD": b})
    gap, width = study.difference("EMF (TAP2)", "PCD")
    interval = ttest_rel(a, b).confidence_interval(0.95)
    assert gap == pytest.approx(0.55)
    assert_allclose([gap - width, gap + width], [interval.low, interval.high], rtol=1e-12)
    assert study.difference("PCD", "EMF (TAP2)") == pytest.approx((-gap, width))


def test_one_seed_gives_no_interval(planted):
    gap, width = planted({"EMF (TAP2)": [-5.0], "PCD": [-6.5]}).difference("EMF (TAP2)", "PCD")
    assert gap == 1.5
    assert math.isnan(width)


def test_the_most_telling_number_is_described():
    record = {"epoch": 1, "pseudo_likelihood": -3.0}
    assert describe({"epoch": 1}) == ""
    assert describe(record) == "pseudo-likelihood -3.00"
    record["pseudo_likelihood_held_out"] = -3.456
    assert describe(record) == "held-out pseudo-likelihood -3.46"
    record["log_likelihood"] = -2.0
    assert describe(record) == "log-likelihood -2.00"
    record["log_likelihood_held_out"] = -2.5
    assert describe(record) == "held-out log-likelihood -2.50"


def test_filters_are_the_strongest_units(rbm):
    model = rbm(6, 9)
    found = filters(model, 4)
    weight = model.weight.detach().numpy().T
    norms = np.sort(np.linalg.norm(weight, axis=1))[::-1]
    assert_allclose(np.linalg.norm(found, axis=1), norms[:4])
    assert all((weight == row).all(1).any() for row in found)
    assert filters(model).shape == (9, 6)


@pytest.mark.parametrize("beta", [0.5, 2.0])
@pytest.mark.parametrize("unit", ["bernoulli", "spin"])
def test_samples_are_probabilities_at_the_temperature_of_the_model(rbm, unit, beta):
    model = rbm(6, 4, visible=unit, hidden=unit, scale=0.3)
    found = samples(model, beta, n=4000, n_steps=20)
    low, high = model.visible.support
    expected = (exact(model, beta).visible.numpy() - low) / (high - low)
    assert_allclose(found.mean(0), expected, atol=4.5 * 0.5 / 4000**0.5)
    assert 0 <= found.min() < found.max() <= 1
    assert_array_equal(samples(model, beta), samples(model, beta))


# ---- running -------------------------------------------------------------------------------------


def test_a_study_is_a_folder_of_runs(finished, dataset):
    study = read_learning(finished)
    assert [method.name for method in study.methods] == list(METHODS)
    assert study.settings == SETTINGS
    assert study.image_shape == (2, 3)
    assert study.command == "freenergy study"
    assert study.versions["torch"] == torch.__version__
    train, held_out = split_held_out(dataset())
    assert study.data == {
        "name": "patterns",
        "binarize": 0.5,
        "image_shape": [2, 3],
        "fingerprint": dataset().fingerprint,
        "n_train": len(train),
        "n_held_out": len(held_out),
        "n_visible": 6,
    }
    paths = sorted(path for path in finished.iterdir() if path.is_dir())
    assert len(paths) == len(METHODS) * 2
    for path in paths:
        config = RunDirectory(path).config()
        assert (config.n_visible, config.n_hidden) == (6, 4)
        assert path.name.endswith(f"-seed{config.seed}")
        assert config.options.learning_rate == SETTINGS.learning_rate
    assert SLUGS.keys() == METHODS.keys()
    named = {name: (finished / f"{slug}-seed1") for name, slug in SLUGS.items()}
    for name, path in named.items():
        options = RunDirectory(path).config().options.to_dict()
        assert METHODS[name].items() <= options.items()
        final = study.result(name).histories[1][-1]
        model, rows = load_model(path), torch.from_numpy(held_out)
        expected = -float(model.free_energy(rows).mean().detach()) - exact(model).log_partition
        assert final["log_likelihood_held_out"] == pytest.approx(expected, rel=1e-5)


SLUGS = {
    "CD": "cd",
    "PCD": "pcd",
    "PTT": "ptt",
    "EMF (naive)": "emf-naive",
    "EMF (TAP2)": "emf-tap2",
    "EMF (TAP3)": "emf-tap3",
}


def test_the_first_seed_of_some_methods_is_assessed(finished, dataset):
    study, (_, held_out) = read_learning(finished), split_held_out(dataset())
    assert {m.name for m in study.methods if m.assessment} == set(SETTINGS.assessed)
    written = {path.parent.name for path in finished.glob("*/assessment.json")}
    assert written == {f"{SLUGS[name]}-seed0" for name in SETTINGS.assessed}
    for name in SETTINGS.assessed:
        found, path = study.result(name).assessment, finished / f"{SLUGS[name]}-seed0"
        assert found == read_assessment(RunDirectory(path))
        model = load_model(path).double()
        log_z = exact(model).log_partition
        rows = torch.from_numpy(held_out).double()
        expected = -float(model.free_energy(rows).mean().detach()) - log_z
        assert found.best.name == "exact"
        assert found.best.log_partition == pytest.approx(log_z, rel=1e-6)
        assert found.best.log_likelihood == pytest.approx(expected, rel=1e-5)
        assert found.certificate["n_steps_per_update"] == METHODS[name]["n_steps"]
        # Only a training by PTT left a ladder to climb.
        climbed = found.estimate("ptt")
        assert (climbed is not None) == (name == "PTT")
        for estimate in filter(None, (climbed, found.estimate("tempering"))):
            assert estimate.trusted, estimate
            assert estimate.log_partition == pytest.approx(log_z, abs=0.05)


def test_an_assessment_survives_its_file(finished):
    found = read_learning(finished).result("PTT").assessment
    again = Assessment.from_json(found.to_json())
    assert again.to_json() == found.to_json()
    assert again.best == found.best
    # What is not a number is null in the file, and not a number again after it.
    assert "NaN" not in found.to_json()
    assert math.isnan(again.estimate("tap1").lower)


def test_assessments_that_are_done_are_not_done_again(copied, dataset, monkeypatch):
    calls = []
    assess = learning.assess
    monkeypatch.setattr(
        learning, "assess", lambda *args, **kwargs: calls.append(args) or assess(*args, **kwargs)
    )
    (copied / "pcd-seed0" / "assessment.json").unlink()
    kept = (copied / "ptt-seed0" / "assessment.json").read_bytes()
    again = run(dataset(), copied, binarize=0.5)
    assert len(calls) == 1
    assert again.result("PCD").assessment is not None
    assert (copied / "ptt-seed0" / "assessment.json").read_bytes() == kept


def test_features_are_judged_by_a_classifier_that_sees_no_test_rows(finished, dataset):
    data, study = dataset(), read_learning(finished)
    classifier = LogisticRegression(max_iter=500).fit(data.x_train, data.y_train)
    assert study.pixel_accuracy == classifier.score(data.x_test, data.y_test)
    for name in ("CD", "EMF (TAP2)"):
        method = study.result(name)
        with torch.no_grad():
            model = load_model(finished / f"{SLUGS[name]}-seed0")
            parts = [model.hidden_mean(torch.from_numpy(x)) for x in (data.x_train, data.x_test)]
        classifier = LogisticRegression(max_iter=500).fit(parts[0], data.y_train)
        assert method.accuracy == classifier.score(parts[1], data.y_test)
        assert_array_equal(method.filters, filters(model))
        assert_array_equal(method.samples, samples(model))


def test_without_labels_there_is_no_accuracy(dataset, tmp_path):
    settings = dataclasses.replace(SETTINGS, methods=("CD",), seeds=(0,))
    study = run(dataset(labels=False), tmp_path, settings)
    assert study.pixel_accuracy is None
    assert study.methods[0].accuracy is None


def test_long_studies_are_read_about_twenty_times(dataset, tmp_path):
    settings = dataclasses.replace(SETTINGS, methods=("CD",), seeds=(0,), n_epochs=45)
    study = run(dataset(labels=False), tmp_path, settings)
    epochs, _ = study.methods[0].curve("log_likelihood_held_out")
    assert_array_equal(epochs, [*range(2, 45, 2), 45])
    assert len(study.methods[0].histories[0]) == 45


def test_what_is_done_is_not_done_again(copied, dataset, monkeypatch):
    monkeypatch.setattr(Trainer, "update", lambda *_: pytest.fail("trained again"))
    before = read_learning(copied)
    again = run(dataset(), copied, command="another command", binarize=0.5)
    assert [m.histories for m in again.methods] == [m.histories for m in before.methods]
    assert again.command == "freenergy study", "the record is of the command that started it"


def test_an_interrupted_study_ends_as_one_left_alone(copied, finished, dataset):
    for name in ("emf-tap2-seed1", "emf-tap3-seed0"):
        shutil.rmtree(copied / name)
    (copied / "accuracy.json").unlink()
    # One run stopped after its first epoch, another before it.
    run_path = copied / "emf-tap3-seed1"
    (run_path / "model.safetensors").unlink()
    again, study = run(dataset(), copied, binarize=0.5), read_learning(finished)
    for one, other in zip(again.methods, study.methods, strict=True):
        assert one.accuracy == other.accuracy
        assert_array_equal(one.samples, other.samples)
        assert_array_equal(
            one.final("log_likelihood_held_out"), other.final("log_likelihood_held_out")
        )


@pytest.mark.parametrize(
    "change",
    [
        {"n_hidden": 5},
        {"n_epochs": 4},
        {"seeds": (0, 2)},
        {"methods": ("CD", "PCD")},
        "data",
        "bin",
    ],
    ids=str,
)
def test_a_folder_is_only_continued_for_the_same_study(copied, dataset, change):
    before = (copied / "study.json").read_bytes()
    data, settings, binarize = dataset(), SETTINGS, 0.5
    if change == "data":
        data = dataset(79)
    elif change == "bin":
        binarize = None
    else:
        settings = dataclasses.replace(settings, **change)
    with pytest.raises(RunError, match="holds a study of other data or settings; choose another"):
        run(data, copied, settings, binarize=binarize)
    assert (copied / "study.json").read_bytes() == before


# ---- what is refused -----------------------------------------------------------------------------


def test_a_folder_without_a_study_is_named(tmp_path):
    with pytest.raises(RunError, match=r"holds no study \(there is no study.json in it\)"):
        read_learning(tmp_path)


def test_an_incomplete_study_shows_what_every_method_has(copied, finished):
    shutil.rmtree(copied / "pcd-seed1")
    study, whole = read_learning(copied), read_learning(finished)
    assert study.missing == "PCD with seed 1"
    assert whole.missing == ""
    assert study.settings == dataclasses.replace(SETTINGS, seeds=(0,))
    assert [m.name for m in study.methods] == list(METHODS)
    for one, other in zip(study.methods, whole.methods, strict=True):
        assert one.histories == other.histories[:1]
        assert one.assessment == other.assessment


def test_a_method_without_its_first_seed_is_not_shown(copied):
    shutil.rmtree(copied / "pcd-seed0")
    study = read_learning(copied)
    assert study.missing == "PCD with seed 0"
    assert [m.name for m in study.methods] == [name for name in METHODS if name != "PCD"]
    assert all(len(m.histories) == 2 for m in study.methods)


def test_a_study_with_nothing_to_show_says_how_to_go_on(copied):
    for path in copied.glob("*-seed0"):
        shutil.rmtree(path)
    with pytest.raises(RunError, match=r"has nothing to show yet; run it again with the same"):
        read_learning(copied)


def test_a_run_that_was_interrupted_is_not_shown_and_ends_as_one_left_alone(
    copied, finished, dataset, monkeypatch
):
    stop_after_one_epoch(copied / "pcd-seed1", dataset(), monkeypatch)
    assert read_learning(copied).missing == "PCD with seed 1"
    again = run(dataset(), copied, binarize=0.5)
    assert_same_bits(again, read_learning(finished))


def stop_after_one_epoch(path, dataset, monkeypatch):
    shutil.rmtree(path)
    updates = []

    def stop(self, batch):
        if len(updates) == len(dataset.x_train) // SETTINGS.batch_size:
            raise KeyboardInterrupt
        updates.append(update(self, batch))

    update = Trainer.update
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", stop)
        with pytest.raises(KeyboardInterrupt):
            run(dataset, path.parent, binarize=0.5)
    assert len(RunDirectory(path).history()) == 1


def assert_same_bits(study, other):
    for mine, theirs in zip(study.methods, other.methods, strict=True):
        assert timeless(mine.histories) == timeless(theirs.histories)
        assert mine.accuracy == theirs.accuracy
        assert_array_equal(mine.samples, theirs.samples)


def timeless(histories):
    return [[r | {"seconds": 0.0} for r in history] for history in histories]


def test_a_killed_training_loses_no_more_than_the_last_readings(dataset, tmp_path):
    """Checkpoints are as rare as readings; all that a run stores stays whole."""
    settings = dataclasses.replace(SETTINGS, methods=("CD",), seeds=(0,), n_epochs=45)
    whole = run(dataset(labels=False), tmp_path / "whole", settings)
    saved = []
    save = RunDirectory.save

    class Killed(BaseException):
        pass

    def kill(self, trainer):
        if len(saved) == 4:
            raise Killed
        saved.append(trainer.epoch)
        save(self, trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "save", kill)
        with pytest.raises(Killed):
            run(dataset(labels=False), tmp_path / "killed", settings)
    assert saved == [0, 2, 4, 6]
    again = run(dataset(labels=False), tmp_path / "killed", settings)
    assert_same_bits(again, whole)
    lines = (tmp_path / "killed" / "cd-seed0" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, 46))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"{}", b'{"settings": {"n_hidden": 1, "colour": 2}}']
)
def test_a_damaged_plan_is_named(copied, content, dataset):
    (copied / "study.json").write_bytes(content)
    with pytest.raises(RunError, match=r"study\.json is damaged"):
        read_learning(copied)
    with pytest.raises(RunError, match=r"study\.json is damaged"):
        run(dataset(), copied)


def test_a_damaged_run_is_named(copied):
    path = copied / "pcd-seed1" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"pcd-seed1/model\.safetensors is damaged"):
        read_learning(copied)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"estimates": [{}]}', b"\xff"])
def test_a_damaged_assessment_is_named(copied, content):
    (copied / "ptt-seed0" / "assessment.json").write_bytes(content)
    message = r"ptt-seed0/assessment\.json is damaged .*; delete it and evaluate again"
    with pytest.raises(RunError, match=message):
        read_learning(copied)


def test_a_study_that_was_never_assessed_can_still_be_read(copied):
    for path in copied.glob("*/assessment.json"):
        path.unlink()
    assert all(method.assessment is None for method in read_learning(copied).methods)


def test_a_study_that_was_never_scored_can_still_be_read(copied):
    (copied / "accuracy.json").unlink()
    study = read_learning(copied)
    assert study.pixel_accuracy is None
    assert json.loads((copied / "study.json").read_text())["study"] == "learning"

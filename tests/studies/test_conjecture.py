"""The study "conjecture": planted answers are found, and an interrupted study goes on."""

from __future__ import annotations

import copy
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
from scipy.stats import spearmanr

from freenergy.data import DataError, Dataset
from freenergy.inference import exact
from freenergy.progress import Reporter
from freenergy.studies import conjecture
from freenergy.studies.conjecture import (
    ConjectureSettings,
    ConjectureStudy,
    read_conjecture,
    run_conjecture,
)
from freenergy.studies.conjecture_claims import (
    ACCURACY,
    ALIGNS,
    BEYOND_MEANS,
    CORE_CLAIMS,
    DIFFERENCE,
    FALLS,
    FOR_A_WHILE,
    RANDOM,
    SHUFFLED,
    WALK,
    StationResult,
    average,
    concordance,
    curve,
    deepest,
    drop,
)
from freenergy.studies.conjecture_page import verdict
from freenergy.studies.conjecture_readings import exact_descent, random_step
from freenergy.studies.stations import STATIONS, Station, StationKind, Step
from freenergy.training import DivergenceError, LabelledRows, RunError

SETTINGS = ConjectureSettings(n_hidden=3, n_epochs=2, batch_size=20, seeds=(0, 1))
BACKPROPAGATION = [name for name, kind in STATIONS.items() if kind.backpropagation]


def run(dataset, path, settings=SETTINGS, **options):
    return run_conjecture(dataset, path, settings, reporter=Reporter(io.StringIO()), **options)


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory) -> Path:
    """A complete study that a test may read, but must not change."""
    path = tmp_path_factory.mktemp("study") / "study"
    run(dataset(), path, command="freenergy study", binarize=0.5)
    return path


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "study"))


# ---- planted answers -----------------------------------------------------------------------------


class Along(Station):
    """Follows the gradient of the exact likelihood, times a sign, in steps of length one."""

    sign = 1.0

    def __init__(self, rbm, rate, random):
        super().__init__(rate)
        self.model, self.random = rbm, random

    def steps(self, rows, labels):
        step = exact_descent(self.model, rows.to(self.model.weight), exact(self.model))
        length = math.sqrt(sum(float((part**2).sum()) for part in step))
        return [Step(*(self.sign / length * part.float() for part in step))]

    @torch.no_grad()
    def update(self, rows, labels):
        (step,) = self.steps(rows, labels)
        for name, part in step._asdict().items():
            self.model.get_parameter(name).add_(part, alpha=self.learning_rate)

    def rbm(self):
        return copy.deepcopy(self.model)


class Against(Along):
    """The planted counter-example: every step raises the free-energy difference."""

    sign = -1.0


class Lost(Along):
    """Steps as long as those of the likelihood, in random directions."""

    def steps(self, rows, labels):
        (step,) = super().steps(rows, labels)
        return [random_step(step, self.random)]


@pytest.fixture
def planted(monkeypatch, dataset, tmp_path):
    def study(kind, *, backpropagation, **changes) -> ConjectureStudy:
        def build(rbm, n_classes, options, random):
            return kind(rbm, options.learning_rate, random)

        monkeypatch.setitem(STATIONS, "planted", StationKind(build, backpropagation))
        options = {"n_hidden": 3, "n_epochs": 40, "batch_size": 80, "learning_rate": 0.1}
        options |= {"seeds": tuple(range(5)), "stations": ("planted",)}
        settings = ConjectureSettings(**(options | changes))
        return run(dataset(), tmp_path / "study", settings)

    return study


def statuses(study):
    return {j.claim.statement: j.status for j in study.judgements}


def test_steps_that_raise_the_free_energy_difference_contradict_the_conjecture(planted):
    study = planted(Against, backpropagation=True)
    found = statuses(study)
    assert found[DIFFERENCE] == found[ALIGNS] == found[BEYOND_MEANS] == "contradicted"
    assert study.status("planted") == "contradicted"
    assert study.judgement("planted", DIFFERENCE).effect.upper < 0
    assert study.judgement("planted", ALIGNS).effect.mean == pytest.approx(-1, abs=1e-5)
    said = verdict(study)
    assert said.status == "contradicted"
    assert said.text.startswith("No, not always: planted does otherwise.")
    assert "planted raises the free-energy difference ΔF by" in said.text


def test_the_likelihood_itself_is_supported(planted):
    study = planted(Along, backpropagation=False)
    found = statuses(study)
    for claim in (DIFFERENCE, FOR_A_WHILE, ALIGNS, BEYOND_MEANS):
        assert found[claim] == "supported", study.judgement("planted", claim)
    assert study.status("planted") == "supported"
    assert study.judgement("planted", ALIGNS).effect.mean == pytest.approx(1, abs=1e-5)
    assert verdict(study).status == "info"


def test_a_random_walk_is_not_supported(planted):
    study = planted(Lost, backpropagation=True)
    found = statuses(study)
    assert "supported" not in {found[claim] for claim in (DIFFERENCE, *CORE_CLAIMS, FOR_A_WHILE)}
    assert verdict(study).status != "supported"


def test_what_labels_do_not_change_is_not_credited_to_them(planted):
    """The likelihood on shuffled labels does as well: there is no excess over that control."""
    study = planted(Along, backpropagation=True, n_epochs=10)
    judgement = study.judgement("planted", DIFFERENCE)
    assert judgement.effect.mean > 0
    assert judgement.excess[SHUFFLED].mean == 0
    assert judgement.status == "undecided"


def test_one_seed_decides_nothing(planted):
    study = planted(Against, backpropagation=True, seeds=(0,), n_epochs=2)
    assert set(statuses(study).values()) == {"undecided"}
    assert verdict(study).status == "undecided"


def test_parameters_that_are_lost_are_reported(planted):
    with pytest.raises(DivergenceError, match=r"planted diverged in epoch 1; .*\(now 1e\+09\)"):
        planted(Against, backpropagation=False, learning_rate=1e9)


# ---- measures ------------------------------------------------------------------------------------

HISTORIES = [
    [{"epoch": e, "F": f, "right": r} for e, f, r in zip((0, 2, 4), fs, rs, strict=True)]
    for fs, rs in (((5.0, 2.0, 3.0), (0.1, 0.6, 0.4)), ((4.0, None, 8.0), (0.1, 0.2, 0.3)))
]


def test_measures_are_read_off_the_histories():
    epochs, values = curve(HISTORIES, "F")
    assert_array_equal(epochs, [0, 2, 4])
    assert_array_equal(values, [[5, 2, 3], [4, math.nan, 8]])
    assert_array_equal(drop(HISTORIES, "F"), [2, -4])
    assert_array_equal(deepest(HISTORIES, "F"), [3, math.nan])
    assert_array_equal(average(HISTORIES, "F"), [2.5, math.nan])
    assert curve(HISTORIES, "unknown")[0].size == curve([], "F")[0].size == 0


def test_concordance_is_the_rank_correlation_of_a_rise_with_a_fall():
    assert_array_equal(concordance(HISTORIES, "right", "F"), [1, math.nan])
    assert_array_equal(concordance(HISTORIES, "epoch", "right"), [-0.5, -1])
    still = [[{"epoch": 0, "x": 1.0}, {"epoch": 1, "x": 1.0}]]
    assert_array_equal(concordance(still, "epoch", "x"), [0])
    values = np.random.default_rng(0).normal(size=(2, 20))
    history = [{"epoch": i, "x": x, "y": y} for i, (x, y) in enumerate(values.T)]
    expected = -spearmanr(*values).statistic
    assert_allclose(concordance([history], "x", "y"), [expected])


# ---- running -------------------------------------------------------------------------------------


def test_every_station_is_trained_with_its_controls(finished, dataset):
    study = read_conjecture(finished)
    assert [station.name for station in study.stations] == list(STATIONS)
    assert study.settings == SETTINGS
    assert study.command == "freenergy study"
    assert study.exact
    assert study.source == "exact"
    assert study.data == {
        "name": "patterns",
        "binarize": 0.5,
        "fingerprint": dataset().fingerprint,
        "n_train": 80,
        "n_held_out": 40,
        "n_visible": 6,
        "n_classes": 3,
    }
    for station in study.stations:
        runs = [station.trained, station.walk]
        assert station.backpropagation == (station.name in BACKPROPAGATION)
        assert bool(station.shuffled) == station.backpropagation
        for histories in runs + ([station.shuffled] if station.shuffled else []):
            assert len(histories) == 2
            assert [record["epoch"] for record in histories[0]] == [0, 1, 2]


def test_all_stations_of_a_seed_start_from_the_same_rbm(finished):
    study = read_conjecture(finished)
    for key in ("exact_difference", "exact_free_energy", "weight_norm"):
        for seed in range(2):
            starts = {
                history[seed][0][key]
                for s in study.stations
                for history in (s.trained, s.walk, s.shuffled)
                if history
            }
            assert len(starts) == 1
        firsts = [s.trained[seed][0][key] for s in study.stations for seed in range(2)]
        assert len(set(firsts)) == 2


def test_shuffled_training_differs_in_its_labels_alone(dataset):
    parts = conjecture._labelled(dataset(), None)
    true, shuffled = (conjecture._Run("PCD", 0, flag, *parts, SETTINGS) for flag in (False, True))
    assert shuffled.train.rows is true.train.rows
    agree = (shuffled.train.labels == true.train.labels).double().mean()
    assert 0.1 < float(agree) < 0.6, "one in three agrees by chance"
    assert_array_equal(shuffled.train.labels.sort().values, true.train.labels.sort().values)
    assert_array_equal(shuffled.order.permutation(9), true.order.permutation(9))
    # It is read against the true labels.
    assert_array_equal(shuffled.reader.train.labels, true.train.labels)
    assert_array_equal(shuffled.reader.held_out.labels, true.reader.held_out.labels)


def test_a_walk_goes_as_far_as_its_training(dataset):
    train, held_out, n_classes = conjecture._labelled(dataset(), None)
    training = conjecture._Run("PCD", 0, False, train, held_out, n_classes, SETTINGS)
    before, walker = training.station.rbm(), training.station.rbm()
    training._train_epoch(1)
    after = training.station.rbm()
    conjecture._walk(walker, before, after, training.walk)
    for name in Step._fields:
        start, end, lost = (m.get_parameter(name).detach() for m in (before, after, walker))
        assert float((lost - start).norm()) == pytest.approx(float((end - start).norm()), rel=1e-5)
        assert not torch.allclose(lost, end)


def test_every_claim_has_a_control(finished):
    study = read_conjecture(finished)
    assert len(study.judgements) == 6 * len(STATIONS)
    for judgement in study.judgements:
        claim = judgement.claim
        over_training = claim.statement in (FALLS, DIFFERENCE, FOR_A_WHILE)
        expected = {WALK} if over_training else {RANDOM}
        if claim.subject in BACKPROPAGATION:
            expected = {SHUFFLED} if claim.statement == ACCURACY else expected | {SHUFFLED}
        elif claim.statement == ACCURACY:
            expected = {WALK}
        assert set(claim.controls) == expected, judgement


def test_the_same_seed_gives_the_same_bits(finished, dataset, tmp_path):
    again, study = run(dataset(), tmp_path / "again", binarize=0.5), read_conjecture(finished)
    for one, other in zip(again.stations, study.stations, strict=True):
        for key in ("exact_difference", "exact_cosine", "accuracy"):
            assert_array_equal(curve(one.trained, key)[1], curve(other.trained, key)[1])


def test_what_is_done_is_not_done_again(copied, dataset, monkeypatch):
    gone = copied / "pcd-seed1.json"
    kept = gone.read_bytes()
    gone.unlink()
    calls = []
    train = conjecture._Run._train_epoch
    monkeypatch.setattr(
        conjecture._Run, "_train_epoch", lambda self, e: calls.append(self.name) or train(self, e)
    )
    run(dataset(), copied, binarize=0.5)
    assert calls == ["PCD"] * SETTINGS.n_epochs
    old, new = (json.loads(text) for text in (kept, gone.read_bytes()))
    for record in [*old["trained"], *new["trained"]]:
        del record["seconds"]
    assert new == old


def test_an_interrupted_training_leaves_no_file(copied, dataset, monkeypatch):
    path = copied / "pcd-seed1.json"
    path.unlink()

    def interrupt(self, epoch):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conjecture._Run, "_train_epoch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(dataset(), copied, binarize=0.5)
    assert not path.exists()
    study = read_conjecture(copied)
    assert study.missing == "PCD with seed 1"
    assert study.settings == dataclasses.replace(SETTINGS, seeds=(0,))
    assert all(len(s.trained) == len(s.walk) == 1 for s in study.stations)
    assert run(dataset(), copied, binarize=0.5).missing == ""


def test_a_net_without_its_controls_is_not_shown(copied):
    (copied / "tied-unrolled-net-shuffled-seed0.json").unlink()
    study = read_conjecture(copied)
    assert study.missing == "Tied unrolled net with seed 0"
    assert "Tied unrolled net" not in {station.name for station in study.stations}
    assert {len(station.trained) for station in study.stations} == {2}
    assert verdict(study).text.startswith(("No", "Yes", "These runs cannot tell"))


def test_a_study_with_nothing_to_show_says_how_to_go_on(copied):
    for path in copied.glob("*-seed0.json"):
        path.unlink()
    with pytest.raises(RunError, match="has nothing to show yet; run it again with the same"):
        read_conjecture(copied)


def test_large_models_are_judged_by_the_mean_field_and_only_where_it_is_trusted(dataset, tmp_path):
    rng = np.random.default_rng(0)
    x = (rng.random((60, 22)) < 0.5).astype(np.float32)
    large = Dataset("noise", x, rng.integers(0, 2, 60))
    settings = dataclasses.replace(
        SETTINGS, n_hidden=21, stations=("EMF (TAP2)",), likelihood_rate=0.01
    )
    study = run(large, tmp_path, settings)
    assert not study.exact
    assert study.source == "tap"
    assert not any(j.claim.doubt for j in study.judgements)
    (station,) = study.stations
    station.walk[0][-1]["tap_trusted"] = 0.0
    doubted = dataclasses.replace(study, stations=[station])
    for judgement in doubted.judgements:
        assert judgement.status == "undecided"
        assert "cannot be trusted at 8% of the readings" in judgement.reason


def test_settings_follow_the_size_of_the_data(dataset):
    assert ConjectureSettings.for_data(dataset()) == ConjectureSettings()
    large = ConjectureSettings.for_data(Dataset("large", np.zeros((20_001, 100), np.float32)))
    assert large.n_rows == 5000
    assert large.n_hidden <= 20


def array_of(rows: LabelledRows) -> torch.Tensor:
    return rows.take(slice(None)).rows


def test_rows_are_reduced_at_random_and_labels_stay_with_them(dataset):
    whole = dataset()
    train, held_out, n_classes = conjecture._labelled(whole, 30)
    assert (len(train), len(held_out), n_classes) == (30, 40, 3)
    pairs = {
        (*row, label) for row, label in zip(whole.x_train.tolist(), whole.y_train, strict=True)
    }
    assert {
        (*r, y) for r, y in zip(array_of(train).tolist(), train.labels.tolist(), strict=True)
    } <= pairs


def test_without_a_test_set_labels_are_held_out_with_their_rows(dataset):
    whole = dataset(50, test=False)
    train, held_out, _ = conjecture._labelled(whole, None)
    assert (len(train), len(held_out)) == (40, 10)
    given = [(*row, y) for row, y in zip(whole.x_train.tolist(), whole.y_train, strict=True)]
    found = [
        (*row, y)
        for part in (train, held_out)
        for row, y in zip(array_of(part).tolist(), part.labels.tolist(), strict=True)
    ]
    assert sorted(found) == sorted(given)


def test_labels_of_any_kind_become_places_in_their_list(dataset):
    whole = dataset()
    names = np.array(["cat", "dog", "eel"])
    named = dataclasses.replace(whole, y_train=names[whole.y_train], y_test=names[whole.y_test])
    for one, other in zip(
        conjecture._labelled(named, None)[:2], conjecture._labelled(whole, None)[:2], strict=True
    ):
        assert_array_equal(one.labels, other.labels)
    strange = dataclasses.replace(named, y_test=np.full(40, "fox"))
    assert bool((conjecture._labelled(strange, None)[1].labels == -1).all())


# ---- what is refused -----------------------------------------------------------------------------


def test_data_without_classes_are_refused(dataset, tmp_path):
    whole = dataset()
    for changes, message in (
        ({"y_train": None}, "patterns has no labels"),
        ({"y_test": None}, "patterns has no labels"),
        ({"y_train": np.linspace(0, 1, 80)}, "are no classes"),
        ({"y_train": np.zeros((80, 2), int)}, "are no classes"),
        ({"y_train": np.zeros(80, int)}, "have the label 0; two are needed"),
    ):
        with pytest.raises(DataError, match=message):
            run(dataclasses.replace(whole, **changes), tmp_path / "study")
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("change", [{"n_hidden": 5}, {"seeds": (0, 2)}, "data", "bin"], ids=str)
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


def test_folders_of_something_else_are_named(tmp_path, dataset):
    with pytest.raises(RunError, match=r"holds no study \(there is no study.json in it\)"):
        read_conjecture(tmp_path)
    (tmp_path / "study.json").write_text('{"study": "learning"}')
    with pytest.raises(RunError, match="holds another study, 'learning'"):
        read_conjecture(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RunError, match="holds a run; choose another folder"):
        run(dataset(), tmp_path)


@pytest.mark.parametrize(
    "name", ["study.json", "pcd-seed1.json", "tied-unrolled-net-shuffled-seed0.json"]
)
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"{}", b"\xff", b'{"trained": [1]}']
)
def test_damaged_files_are_named(copied, name, content):
    (copied / name).write_bytes(content)
    with pytest.raises(RunError, match=rf"{name.replace('.', '.')} is damaged"):
        read_conjecture(copied)


def test_a_result_reads_as_its_verdicts(finished):
    study = read_conjecture(finished)
    assert repr(study).startswith(
        "ConjectureStudy('patterns', EMF (TAP2) lowers the free energy F:"
    )
    assert repr(study.stations[0]) == "StationResult('EMF (TAP2)', 2 seeds, 3 readings)"
    assert isinstance(study.result("PCD"), StationResult)

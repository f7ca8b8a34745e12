"""The study of depth: what it trains, what it keeps, and what its page says."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from torch import nn

from freenergy.data import DataError, Dataset
from freenergy.report import LineChart, Table, render
from freenergy.studies import depth_nets
from freenergy.studies.depth import DepthSettings, depth_followers, read_depth, run_depth
from freenergy.studies.depth_nets import KINDS, NetSpec, Parts, train_net
from freenergy.studies.depth_page import depth_page, depth_sections, depth_verdict
from freenergy.studies.folder import NothingFinished
from freenergy.training import RunError

SMALL = DepthSettings(
    depths=(2, 4),
    width=16,
    n_epochs=2,
    batch_size=40,
    small_batch=16,
    large_batch=64,
    learning_rates=(1e-2, 1e-3),
    race_epochs=2,
    n_rows=200,
)


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return Dataset("digits", (x[:300] / 16).astype(np.float32), y_train=y[:300])


@pytest.fixture(scope="module")
def study(digits, tmp_path_factory):
    return run_depth(digits, tmp_path_factory.mktemp("depth"), SMALL)


def spec(**changes):
    values = {
        "kind": "SELU",
        "depth": 4,
        "width": 16,
        "n_epochs": 1,
        "batch_size": 50,
        "learning_rate": 1e-3,
    }
    return NetSpec(**values | changes)


def normal_parts(n, width, n_classes=3):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, width)).astype(np.float32)
    y = rng.integers(n_classes, size=n)
    return Parts(x, y, x[:20], y[:20], n_classes)


# ---- one net -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SELU", "ReLU", "tanh", "sigmoid"])
def test_pre_activations_of_a_wide_net_start_where_the_moment_map_puts_them(kind):
    found = train_net(spec(kind=kind, width=400, n_epochs=0), normal_parts(512, 400))
    low, _, high = np.array(found["percentiles_start"]).T
    predicted = 1.0364334 * np.array(found["predicted_deviation"])
    # Units of a layer share a few inputs' second moment: 1 ± √(5/400) in each, or less.
    np.testing.assert_allclose((high - low) / 2, predicted, rtol=0.15)


@pytest.mark.parametrize("kind", ["ReLU, batch norm", "sigmoid, batch norm"])
def test_batch_normalisation_puts_half_of_the_pre_activations_above_zero_in_any_layer(kind):
    found = train_net(spec(kind=kind, n_epochs=0, depth=6), normal_parts(512, 30))
    assert np.abs(np.array(found["percentiles_start"])[:, 1]).max() < 0.3
    assert found["predicted_deviation"] is None


def test_norms_that_are_held_do_not_grow_and_others_do():
    parts = normal_parts(200, 20)
    for kind, bound in (("SELU", 1.0), ("ReLU", np.sqrt(2.0))):
        free = spec(kind=kind, n_epochs=20, learning_rate=1e-2)
        held = dataclasses.replace(free, max_norm=True)
        largest = {}
        for one in (free, held):
            nets = []

            def keep(*args, nets=nets, build=depth_nets._build):
                nets.append(build(*args))
                return nets[-1]

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(depth_nets, "_build", keep)
                train_net(one, parts)
            layers = [m for m in nets[0] if isinstance(m, nn.Linear)][:-1]
            largest[one] = max(float(m.weight.detach().norm(dim=1).max()) for m in layers)
        assert largest[held] <= bound + 1e-5 < largest[free]


def test_plain_dropout_sends_units_to_zero_and_alpha_dropout_does_not():
    net = depth_nets._build(spec(dropout=0.2), 5, 3)
    assert any(isinstance(m, nn.AlphaDropout) for m in net)
    net = depth_nets._build(spec(dropout=0.2, alpha_dropout=False), 5, 3)
    dropouts = [m for m in net if isinstance(m, nn.Dropout)]
    assert len(dropouts) == 4
    assert all(m.p == 0.2 for m in dropouts)


def test_one_seed_gives_the_same_record():
    first, second = (
        train_net(spec(kind="ReLU, batch norm", dropout=0.1), normal_parts(100, 8))
        for _ in range(2)
    )
    for record in (first, second):
        del record["seconds"]
    assert first == second


def test_a_net_that_diverges_says_so_and_keeps_its_record():
    parts = normal_parts(100, 8)
    found = train_net(spec(kind="ReLU", learning_rate=1e9), parts)
    assert "diverged in epoch 1" in found["diverged"]
    assert found["loss"] == []


# ---- the study -----------------------------------------------------------------------------------


def test_every_kind_is_trained_at_every_depth_with_and_without_a_bound(study):
    for kind in KINDS:
        for depth in SMALL.depths:
            for bound in (False, True):
                net = study.net(kind, depth, bound)
                assert len(net["loss"]) == SMALL.n_epochs
                assert net["n_rows"] == 200
    assert {net["n_rows"] for net in study.race.values()} == {240}
    assert list(study.dropout) == ["none", "alpha dropout", "plain dropout"]
    sizes = [net["spec"]["batch_size"] for net in study.batches.values()]
    assert sizes == [16, 64, 64]


def test_each_net_takes_the_rate_with_the_lowest_training_loss(study, tmp_path, digits):
    rates = {net["spec"]["learning_rate"] for net in study.nets}
    assert rates <= {1e-2, 1e-3}
    other = dataclasses.replace(SMALL, learning_rates=(1e-3,), depths=(2,), race_epochs=0)
    slow = run_depth(digits, tmp_path, other)
    for kind in KINDS:
        best, one = study.net(kind, 2), slow.net(kind, 2)
        assert best["loss"][-1] <= one["loss"][-1]


def test_what_is_stored_is_not_trained_again(tmp_path, digits):
    settings = dataclasses.replace(SMALL, depths=(2,), learning_rates=(1e-3,), race_epochs=0)
    first = run_depth(digits, tmp_path, settings)
    files = sorted(tmp_path.glob("*.json"))
    gone = next(p for p in files if p.name.startswith("tanh"))
    gone.unlink()
    assert gone.name.split("_")[0] in read_depth(tmp_path).missing
    with pytest.raises(RunError, match=f"not complete: {gone.name.split('=')[0]}"):
        depth_followers(digits, tmp_path, settings)
    times = {p: p.stat().st_mtime_ns for p in files if p != gone}
    second = run_depth(digits, tmp_path, settings)
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert first.net("tanh", 2)["loss"] == second.net("tanh", 2)["loss"]


def test_an_unfinished_study_shows_what_is_done(study, tmp_path, digits):
    files: dict[str, Path] = {}
    run_depth(digits, tmp_path, SMALL)
    everything = sorted(tmp_path.glob("*_*.json"))
    kept = tmp_path / "kept"
    kept.mkdir()
    for path in everything:
        files[path.name] = path.rename(kept / path.name)
    with pytest.raises(NothingFinished, match="nothing to show yet; run it again with the same"):
        read_depth(tmp_path)

    def give(*starts: str, without: tuple[str, ...] = ()) -> str:
        """Put back the nets of these names; the page as far as it goes."""
        for name, path in files.items():
            if name.startswith(starts) and not any(part in name for part in without):
                shutil.copy(path, tmp_path / name)
        found = read_depth(tmp_path)
        page = render(depth_page(found))
        assert ("Not finished" in page) == bool(found.missing)
        assert ("and <code>--out</code>: it goes on" in page) == bool(found.missing)
        return found.missing

    # One net, at one of its learning rates only, is not shown as the best of both.
    shutil.copy(next(kept.glob("tanh_depth=2*rate=0.001*")), tmp_path)
    with pytest.raises(NothingFinished):
        read_depth(tmp_path)
    free = [f"{kind}_depth={d}" for kind in ("selu", "tanh") for d in (2, 4)]
    assert give(*free[:1], without=("max_norm", "dropout")) == (
        "ReLU, ReLU with batch norm, sigmoid with batch norm, tanh and sigmoid of 2 layers; "
        "all nets of 4 layers; 12 of 12 nets with the norm held; the nets with dropout; "
        "the nets that compare batches; SELU and sigmoid on all rows"
    )
    assert give(*free, without=("max_norm", "dropout")).startswith(
        "ReLU, ReLU with batch norm, sigmoid with batch norm and sigmoid of 2 layers; ReLU, "
    )
    assert "sigmoid on all rows" in give("relu", "selu", "sigmoid-b", without=("max_norm",))
    assert give("s", "t", "r", without=("max_norm",)) == "12 of 12 nets with the norm held"
    assert not give("")
    whole = read_depth(tmp_path)
    for name in ("dropout", "batches", "race"):
        assert list(getattr(whole, name)) == list(getattr(study, name))


def test_the_verdict_is_of_the_deepest_nets_that_are_trained(study):
    shallow = [net for net in study.nets if net["spec"]["depth"] == 2]
    words = depth_verdict(dataclasses.replace(study, nets=shallow, race={})).text
    assert "with 2 hidden layers of 16" in words


def test_other_settings_and_damaged_files_are_named(tmp_path, digits):
    settings = dataclasses.replace(SMALL, depths=(2,), learning_rates=(1e-3,), race_epochs=0)
    run_depth(digits, tmp_path, settings)
    with pytest.raises(RunError, match="other data or settings"):
        run_depth(digits, tmp_path, dataclasses.replace(settings, width=8))
    path = next(tmp_path.glob("selu*"))
    path.write_text(path.read_text()[:50])
    with pytest.raises(RunError, match=f"{path.name} is damaged"):
        read_depth(tmp_path)
    for content in ("[1]", "{}", '{"spec": {"kind": "SELU"}}', '{"spec": {"new": 1}}'):
        path.write_text(content)
        with pytest.raises(RunError, match=f"{path.name} is damaged"):
            read_depth(tmp_path)
    with pytest.raises(RunError, match="holds no study"):
        read_depth(tmp_path / "nowhere")


def test_rows_without_contrast_or_labels_are_refused(tmp_path, digits):
    flat = dataclasses.replace(digits, x_train=np.full_like(digits.x_train, 0.5))
    with pytest.raises(DataError, match="all values of digits are the same"):
        run_depth(flat, tmp_path, SMALL)
    with pytest.raises(DataError, match="no labels"):
        run_depth(dataclasses.replace(digits, y_train=None), tmp_path, SMALL)


# ---- the page ------------------------------------------------------------------------------------


def test_the_verdict_names_the_nets_at_chance(study):
    nets = json.loads(json.dumps(study.nets))
    for net in nets:
        net["chance"] = 0.1
        net["final_accuracy"] = 0.12 if net["spec"]["kind"] == "sigmoid" else 0.95
    planted = dataclasses.replace(study, nets=nets)
    words = depth_verdict(planted).text
    assert "SELU (95.0 %)" in words
    assert "sigmoid stayed at chance (10.0 %)" in words
    assert "with 4 hidden layers of 16" in words
    assert "ReLU with batch norm (95.0 %), sigmoid with batch norm (95.0 %) and tanh" in words


def test_a_net_that_diverged_neither_learned_nor_stayed_at_chance(study):
    nets = json.loads(json.dumps(study.nets))
    for net in nets:
        net["chance"], net["final_accuracy"] = 0.1, 0.95
        if net["spec"]["kind"] == "ReLU, batch norm":
            net |= {"final_accuracy": 0.05, "diverged": "the parameters diverged in epoch 1"}
    words = depth_verdict(dataclasses.replace(study, nets=nets)).text
    assert "; ReLU with batch norm diverged." in words
    assert "chance" not in words


def test_the_page_has_a_figure_for_each_question(study):
    sections = depth_sections(study)
    assert "What keeps a deep net trainable?" in render(depth_page(study))
    charts = [b for s in sections for b in s.blocks if isinstance(b, LineChart)]
    titles = {chart.title for chart in charts}
    assert {"2 layers", "4 layers", "SELU", "sigmoid", "Distance from the start"} <= titles
    table = next(b for s in sections for b in s.blocks if isinstance(b, Table) and len(b.rows) > 6)
    assert len(table.rows) == len(KINDS) * len(SMALL.depths)


def test_a_name_stands_once_in_the_legend_of_a_signal(study):
    charts = [b for s in depth_sections(study) for b in s.blocks if isinstance(b, LineChart)]
    chart = next(chart for chart in charts if chart.title == "tanh")
    names = [curve.name for curve in chart.curves]
    assert names == ["at the start", "trained", "predicted"]
    edges = chart.curves[-1].y
    np.testing.assert_allclose(
        edges[:4], 1.0364334 * np.array(study.net("tanh", 4)["predicted_deviation"])
    )
    np.testing.assert_allclose(edges[5:], -edges[:4])


def test_the_page_shows_nets_that_diverged_before_their_first_update(study):
    batches = json.loads(json.dumps(study.batches))
    for net in batches.values():
        net |= {"distance": [], "loss": [], "accuracy": [], "diverged": "at once"}
    assert "It cannot be told" in render(depth_page(dataclasses.replace(study, batches=batches)))


def test_a_study_without_a_race_has_no_section_on_it(study):
    sections = depth_sections(dataclasses.replace(study, race={}))
    assert len(sections) == len(depth_sections(study)) - 1

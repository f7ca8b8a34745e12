"""The tabular benchmark: ranks and tests against known values, blind searches, pieces that last."""

import dataclasses
import importlib.util
import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import chi2, norm

FOLDER = Path(__file__).parents[2] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Before it runs: the one imports the other, and dataclasses look their module up.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


report = load("tabular_report")
tabular = load("tabular")

accuracies = arrays(
    float, st.tuples(st.integers(1, 8), st.integers(1, 5)), elements=st.sampled_from([0.2, 0.5, 1])
)


class TestRanks:
    def test_equal_methods_share_the_mean_of_their_ranks(self):
        found = report.ranks(np.array([[0.9, 0.8, 0.9, 0.1], [0.5, 0.5, 0.5, 0.5]]))
        np.testing.assert_array_equal(found, [[1.5, 3.0, 1.5, 4.0], [2.5, 2.5, 2.5, 2.5]])

    @given(accuracies)
    def test_the_ranks_of_a_set_have_the_same_sum_with_ties_and_without(self, values):
        n = values.shape[1]
        np.testing.assert_allclose(report.ranks(values).sum(1), n * (n + 1) / 2)


class TestHolm:
    def test_known_values(self):
        # 4 × 0.005, 3 × 0.01, 2 × 0.03, and 0.04, which may not fall below the one before it.
        found = report.holm([0.01, 0.04, 0.03, 0.005])
        np.testing.assert_allclose(found, [0.03, 0.06, 0.06, 0.02])

    def test_never_above_one(self):
        np.testing.assert_array_equal(report.holm([0.6, 0.9]), [1.0, 1.0])

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
    def test_between_the_raw_value_and_that_of_bonferroni(self, p_values):
        p = np.array(p_values)
        adjusted = report.holm(p)
        assert (adjusted >= p).all()
        assert (adjusted <= np.minimum(1, len(p) * p) + 1e-15).all()
        assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


class TestSignedRanks:
    def test_one_that_always_wins_has_the_largest_sum_of_ranks(self):
        n = 12
        first = np.arange(1, n + 1) / 100
        z = (n * (n + 1) / 4) / np.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        np.testing.assert_allclose(
            report.signed_rank_p(first, np.zeros(n)), 2 * norm.sf(z), rtol=1e-12
        )

    def test_two_sided(self):
        random = np.random.default_rng(0)
        first, second = random.random((2, 20))
        assert report.signed_rank_p(first, second) == report.signed_rank_p(second, first)

    def test_equal_sets_count_half_for_each_side(self):
        # Four equal sets share ranks 1 to 4, and the others have 5 to 12, all for the first.
        first, second = np.array([1.0] * 4 + list(range(2, 10))), np.ones(12)
        total, mean = sum(range(5, 13)) + (1 + 2 + 3 + 4) / 2, 12 * 13 / 4
        variance = 12 * 13 * 25 / 24 - (4**3 - 4) / 48
        expected = 2 * norm.sf((total - mean) / np.sqrt(variance))
        np.testing.assert_allclose(report.signed_rank_p(first, second), expected, rtol=1e-12)

    def test_what_is_equal_everywhere_does_not_differ(self):
        assert report.signed_rank_p(np.ones(5), np.ones(5)) == 1.0


class TestComparisons:
    def test_wins_equal_sets_and_losses_are_those_of_the_first(self):
        values = np.array([[0.9, 0.8, 0.8], [0.7, 0.9, 0.9], [0.5, 0.4, 0.6]])
        counts = [(c.wins, c.ties, c.losses) for c in report.compare_all("abc", values)]
        assert counts == [(2, 0, 1), (1, 0, 2), (0, 2, 1)]

    def test_friedman_statistic_without_ties(self):
        random = np.random.default_rng(1)
        values = np.array([random.permutation(4) / 4 for _ in range(15)])
        n, k = values.shape
        mean = report.ranks(values).mean(0)
        statistic = 12 * n / (k * (k + 1)) * ((mean**2).sum() - k * (k + 1) ** 2 / 4)
        np.testing.assert_allclose(report.friedman_p(values), chi2.sf(statistic, k - 1), rtol=1e-10)
        assert report.friedman_p(np.full((3, 3), 0.5)) == 1.0

    @pytest.mark.parametrize(
        ("gap", "better", "worse"), [(0.1, "new", "old"), (-0.1, "old", "new")]
    )
    def test_the_words_name_the_better_one(self, gap, better, worse):
        old = np.linspace(0.3, 0.8, 30)
        text = report.in_words(["old", "new"], np.stack([old, old + gap], 1))
        assert f"{better} is better than {worse} (won 30, equal 0, lost 0" in text
        assert "0 of the 1 pairs" in text

    def test_what_is_not_shown_is_not_called_equal(self):
        values = np.random.default_rng(2).random((20, 3))
        text = report.in_words("abc", values)
        assert "no difference is shown" in text
        assert "3 of the 3 pairs cannot be told apart" in text
        assert "is better" not in text

    def test_tables_mark_the_best_and_count_both_ways(self):
        values = np.array([[0.5, 0.75], [1.0, 1.0]])
        table = report.accuracy_table(["x", "y"], ["", ""], ["a", "b"], values)
        assert "| x |  | 50.0 | **75.0** |" in table
        assert "| y |  | **100.0** | **100.0** |" in table
        wins = report.win_table(["a", "b"], report.compare_all(["a", "b"], values))
        assert "| a | – | 0/1/1 |" in wins
        assert "| b | 1/1/0 | – |" in wins
        assert report.rank_table(["a", "b"], values).splitlines()[2].startswith("| b | 1.25 | 87.5")

    def test_sets_are_put_together_by_size(self):
        values = np.array([[0.5, 0.6], [0.7, 0.6], [0.9, 0.8]])
        table = report.size_table(["a", "b"], values, np.array([10, 11, 500]), [10, 20, 30])
        assert table.splitlines()[2:] == [
            "| up to 10 | 1 | 2.00 | 1.00 |",
            "| up to 20 | 1 | 1.00 | 2.00 |",
            "| more | 1 | 1.00 | 2.00 |",
        ]


def draw(*arguments, **keywords):
    return tabular.draw_configurations(tabular.Task(*arguments, **keywords))


class TestSearch:
    def test_methods_try_the_same_values_of_what_they_share(self):
        nets = [draw("iris", method, 6) for method in tabular.NETS]
        shared = [[{p: c[p] for p in tabular.NET_SPACE} for c in drawn] for drawn in nets]
        assert all(drawn == shared[0] for drawn in shared)
        dropouts = [[c["dropout"] for c in drawn] for drawn in nets if "dropout" in drawn[0]]
        assert len(dropouts) == 4
        assert all(drawn == dropouts[0] for drawn in dropouts)

    def test_every_depth_is_tried_equally_often(self):
        drawn = draw("iris", "plain", 12)
        depths = sorted(c["depth"] for c in drawn)
        assert depths == sorted(2 * tabular.NET_SPACE["depth"])

    def test_sets_draw_on_their_own_and_a_larger_budget_adds(self):
        iris, flags = (draw(n, "boosting", 6) for n in ("iris", "flags"))
        assert iris != flags
        assert draw("iris", "boosting", 9)[:6] == iris
        assert draw("iris", "boosting", 6, seed=1) != iris

    @pytest.mark.parametrize(
        ("rows", "expected"),
        [(60, (32, 100)), (500, (32, 51)), (5000, (128, 20)), (32_561, (256, 10))],
    )
    def test_about_as_many_updates_within_bounds_of_passes(self, rows, expected):
        assert tabular.batch_and_passes(rows) == expected

    def test_a_plateau_beats_a_spike(self):
        curve = [0.5] * 4 + [1.0] + [0.5] * 10 + [0.8] * 5 + [0.5] * 4
        assert tabular.best_pass(curve) == (18, pytest.approx(0.8))

    def test_of_equal_windows_the_first(self):
        assert tabular.best_pass([0.1] + [0.7] * 30) == (4, pytest.approx(0.7))
        assert tabular.best_pass([0.3, 0.6]) == (2, pytest.approx(0.45))

    def test_inputs_have_the_scale_of_what_is_learned_from(self):
        random = np.random.default_rng(3)
        learned = tabular.Rows(random.normal(5, 3, (50, 2)), np.zeros(50))
        judged = tabular.Rows(np.array([[5.0, 5.0]]), np.zeros(1))
        scaled, other = tabular.standardized(learned, judged)
        np.testing.assert_allclose(scaled.x.mean(0), 0, atol=1e-12)
        np.testing.assert_allclose(scaled.x.std(0), 1)
        expected = (5 - learned.x.mean(0)) / learned.x.std(0)
        np.testing.assert_allclose(other.x[0], expected)

    def test_only_lost_weights_are_a_result(self):
        for error in (
            tabular.DivergenceError("gone"),
            ValueError("Solver produced non-finite parameter weights."),
        ):
            with pytest.raises(tabular.Diverged), tabular.naming_divergence():
                raise error
        with pytest.raises(ValueError, match="classes"), tabular.naming_divergence():
            raise ValueError("classes must be passed")


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Two sets that can be learned, in a file such as the benchmark reads."""
    random = np.random.default_rng(0)
    content = {}
    for name, n in (("large", 80), ("small", 48)):
        y = np.arange(n, dtype=np.uint8) % 3
        order = random.permutation(n).astype(np.int32)
        content |= {
            f"{name}/X": (random.normal(size=(n, 4)) + 2 * y[:, None]).astype(np.float32),
            f"{name}/y": y,
            f"{name}/train": order[: 3 * n // 4],
            f"{name}/test": order[3 * n // 4 :],
        }
    np.savez(tmp_path / "uci.npz", **content)
    monkeypatch.setenv("FREENERGY_DATA", str(tmp_path))
    monkeypatch.setattr(tabular, "N_TREES", 5)
    monkeypatch.setattr(tabular, "MOST_PASSES", 15)
    monkeypatch.setitem(tabular.NET_SPACE, "depth", (1, 2))
    for method in tabular.NETS:
        monkeypatch.setitem(tabular.SPACES[method], "depth", (1, 2))
        monkeypatch.setitem(tabular.SPACES[method], "learning_rate_init", (0.01, 0.02))
    monkeypatch.setitem(tabular.SPACES["boosting"], "max_iter", (5,))
    return content, tmp_path / "uci.npz"


def run(monkeypatch, out, *arguments):
    monkeypatch.setattr(sys, "argv", ["tabular.py", "--out", str(out), *arguments])
    return tabular.main()


@pytest.mark.parametrize("method", list(tabular.SPACES))
class TestPieces:
    def test_each_method_learns(self, stored, tmp_path, method):
        piece = tabular.work(tabular.Task("large", method, 2), stored[1], tmp_path)
        assert piece.accuracy > 0.6
        assert piece.best is not None
        assert piece.records[piece.best]["score"] == max(r["score"] for r in piece.records)

    def test_the_search_is_blind_to_the_test_rows(self, stored, tmp_path, method):
        content, file = stored
        task = tabular.Task("small", method, 2)
        before = tabular.work(task, file, tmp_path)
        content["small/y"][content["small/test"]] = 0
        content["small/X"][content["small/test"]] += 100
        np.savez(file, **content)
        after = tabular.work(task, file, tmp_path)
        for record in before.records + after.records:
            del record["seconds"]
        assert after.records == before.records
        assert after.best == before.best


class TestDivergence:
    def spoil(self, monkeypatch, *places):
        inner = tabular.draw_configurations

        def drawn(task):
            configurations = inner(task)
            for place in places:
                configurations[place]["learning_rate_init"] = 1e30
            return configurations

        monkeypatch.setattr(tabular, "draw_configurations", drawn)

    @pytest.mark.parametrize("method", ["plain", "sklearn MLP"])
    def test_counts_as_the_worst_and_says_why(self, stored, tmp_path, monkeypatch, method):
        self.spoil(monkeypatch, 0)
        piece = tabular.work(tabular.Task("small", method, 2), stored[1], tmp_path)
        assert piece.best == 1
        assert piece.records[0]["score"] == -1.0
        assert "non-finite" in piece.records[0]["failure"]
        assert "1 failed" in tabular.describe(piece)

    def test_without_any_net_the_most_frequent_class_answers(self, stored, tmp_path, monkeypatch):
        content, file = stored
        self.spoil(monkeypatch, 0, 1)
        piece = tabular.work(tabular.Task("small", "plain", 2), file, tmp_path)
        y = content["small/y"]
        frequent = np.bincount(y[content["small/train"]]).argmax()
        assert piece.best is None
        assert piece.right == (y[content["small/test"]] == frequent).sum()


class TestGoingOn:
    methods = ("--methods", "random forest", "plain", "--budget", "2")

    def test_what_is_done_is_not_done_again(self, stored, tmp_path, monkeypatch, capsys):
        out = tmp_path / "out"
        assert run(monkeypatch, out, *self.methods, "--sets", "small") == 0
        assert run(monkeypatch, out, *self.methods) == 0
        printed = capsys.readouterr().out
        assert "2 of 4 pieces are there" in printed
        assert printed.count("small, plain") == 1
        assert "2 of 2 sets are complete" in printed
        monkeypatch.setattr(tabular, "work", None)
        assert run(monkeypatch, out, *self.methods) == 0

    def test_a_damaged_piece_is_named_and_done_again(self, stored, tmp_path, monkeypatch, capsys):
        out = tmp_path / "out"
        run(monkeypatch, out, *self.methods)
        files = sorted(out.glob("*.json"))
        assert len(files) == 4
        good = [file.read_text() for file in files]
        files[0].write_text(good[0][:100])
        files[1].write_text(json.dumps(json.loads(good[1]) | {"right": 1000}))
        files[2].write_text("[]")
        capsys.readouterr()
        run(monkeypatch, out, *self.methods)
        complaints = capsys.readouterr().err
        assert [f.name in complaints for f in files] == [True, True, True, False]
        for file, content in zip(files, good, strict=True):
            again, before = json.loads(file.read_text()), json.loads(content)
            assert again["right"] == before["right"]

    def test_a_piece_of_other_settings_does_not_count(self, stored, tmp_path, monkeypatch, capsys):
        task = tabular.Task("small", "random forest", 2)
        tabular.work(task, stored[1], tmp_path)
        done, todo = tabular.sort_out([dataclasses.replace(task, budget=3), task], tmp_path)
        assert list(done) == [task]
        assert [t.budget for t in todo] == [3]
        assert "of other settings" in capsys.readouterr().err

    def test_ctrl_c_leaves_no_net_cut_short(self):
        before = signal.getsignal(signal.SIGINT)
        drawn = draw("small", "plain", 1)[0]
        net = tabular.make_net("plain", drawn, seed=0, batch=10, passes=10)
        net.set_params(callback=lambda trainer: signal.raise_signal(signal.SIGINT))
        with pytest.raises(tabular.Stopped), tabular.stopping_at_once():
            net.fit(np.eye(20), np.arange(20) % 2)
        assert signal.getsignal(signal.SIGINT) is before

    @pytest.mark.parametrize("error", [KeyboardInterrupt, tabular.Stopped])
    def test_ctrl_c_keeps_what_is_done(self, stored, tmp_path, monkeypatch, capsys, error):
        work = tabular.work

        def interrupted(task, file, out):
            if task.name == "large":
                raise error
            return work(task, file, out)

        monkeypatch.setattr(tabular, "work", interrupted)
        out = tmp_path / "out"
        assert run(monkeypatch, out, *self.methods) == 130
        printed = capsys.readouterr()
        assert "goes on from here" in printed.err
        assert "1 of 2 sets are complete" in printed.out
        assert "1 of 2 sets are complete" in (out / "report.md").read_text()
        assert {file.name.split("--")[0] for file in out.glob("*.json")} == {"small"}

    def test_report_only_measures_nothing(self, stored, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(tabular, "work", None)
        assert run(monkeypatch, tmp_path / "out", *self.methods, "--report-only") == 0
        assert "0 of 2 sets are complete" in capsys.readouterr().out

    def test_smallest_sets_first(self, stored):
        assert tabular.sets_by_size(stored[1]) == ["small", "large"]

    def test_without_data_it_says_what_to_set(self, monkeypatch):
        monkeypatch.delenv("FREENERGY_DATA", raising=False)
        with pytest.raises(SystemExit, match=r"FREENERGY_DATA.*uci\.npz"):
            tabular.data_file()

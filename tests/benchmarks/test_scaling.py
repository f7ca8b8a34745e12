"""The scaling benchmark: operations as torch counts them, exponents, and numbers on paper."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import linregress
from torch.utils.flop_counter import FlopCounterMode

FOLDER = Path(__file__).parents[2] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Before it runs: the one imports the other, and dataclasses look their module up.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


paper = load("scaling_paper")
processes = load("scaling_processes")
scaling = load("scaling")

methods = [
    {"method": "pcd", "n_steps": 1},
    {"method": "pcd", "n_steps": 7},
    {"method": "pcd", "n_steps": 2, "n_chains": 11},
    {"method": "cd", "n_steps": 3},
    {"method": "emf", "order": 1, "n_steps": 3},
    {"method": "emf", "order": 2, "n_steps": 5},
    {"method": "emf", "order": 3, "n_steps": 2, "n_chains": 4},
]


@pytest.mark.parametrize("options", methods, ids=str)
def test_the_operations_are_those_that_torch_counts(options):
    case = paper.Update(n_visible=31, n_hidden=17, batch=5, **options)
    trainer, batch = scaling.make_trainer(case), scaling.random_rows(5, 31)
    trainer.update(batch)
    with FlopCounterMode(display=False) as counter:
        trainer.update(batch)
    assert counter.get_total_flops() == case.flops


def test_what_is_held_are_the_tensors_of_model_and_gradient():
    for options in methods[:2]:
        case = paper.Update(n_visible=310, n_hidden=170, batch=50, **options)
        trainer, batch = scaling.make_trainer(case), scaling.random_rows(50, 310)
        trainer.update(batch)
        held = [trainer.model.weight, trainer.model.weight.grad, batch]
        held += [t for t in vars(trainer.gradient).values() if isinstance(t, torch.Tensor)]
        vectors = sum(4 * t.numel() for t in held if t.dim() == 1)
        assert sum(4 * t.numel() for t in held) - vectors == case.bytes_held


class TestExponent:
    @given(st.floats(-3, 3), st.floats(0.1, 10), st.integers(3, 9))
    def test_of_a_power_law_it_is_the_power_without_error(self, power, factor, n):
        x = 2.0 ** np.arange(n)
        slope, error = scaling.exponent(x, factor * x**power)
        assert slope == pytest.approx(power, abs=1e-10)
        assert error == pytest.approx(0, abs=1e-7)

    def test_a_fixed_cost_beside_it_does_not_show_in_the_upper_half(self):
        x = 10.0 ** np.arange(8)
        assert scaling.exponent(x, 100 + x)[0] == pytest.approx(1, abs=0.01)
        assert scaling.exponent(x[:3], 100 + x[:3])[0] < 0.5

    def test_slope_and_error_are_those_of_ordinary_least_squares(self):
        random = np.random.default_rng(0)
        x = 2.0 ** np.arange(9)
        y = x * np.exp(random.normal(0, 0.1, 9))
        found = linregress(np.log(x[4:]), np.log(y[4:]))
        assert scaling.exponent(x, y) == pytest.approx((found.slope, found.stderr))


@pytest.mark.parametrize("quick", [False, True])
def test_every_axis_spans_a_decade_and_varies_one_quantity(quick):
    for axis in scaling.axes(quick):
        assert axis.values[-1] >= 10 * axis.values[0]
        ends = axis.case(axis.values[0]), axis.case(axis.values[-1])
        differing = [k for k, v in vars(ends[0]).items() if v != vars(ends[1])[k]]
        assert differing == [axis.field] * bool(axis.field)
        assert axis.operations(axis.values[-1]) > axis.operations(axis.values[0])


MEASURE = """
import numpy as np
import scaling

def allocate(n_bytes):
    before = scaling.resident_bytes("VmRSS")
    block = np.ones(n_bytes // 8)
    del block  # the peak stays
    return scaling.resident_bytes("VmHWM") - before

for n_bytes in (80_000_000, 40_000_000):
    gained = scaling.in_own_process(allocate, n_bytes)
    assert abs(gained / n_bytes - 1) < 0.05, gained
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_is_the_peak_of_its_own_process():
    # In a process that has no threads yet: a copy of one that has may wait for them for ever.
    subprocess.run([sys.executable, "-c", MEASURE], cwd=FOLDER, check=True, timeout=120)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_page_and_a_table_of_short_lines(tmp_path, monkeypatch, capsys):
    axis = scaling.Axis("units", "hidden units", (2, 20, 40), field="n_hidden")
    monkeypatch.setattr(scaling, "axes", lambda quick: [axis])
    monkeypatch.setattr(
        scaling, "measure_files", lambda quick: ((1, 2, 4), {"streamed": [3.0] * 3})
    )
    found = [shared(2, 500, 1000), shared(4, 500, 2000)]
    line = scaling.ProcessLine("processes, 500 rows each", 0, tuple(found))
    monkeypatch.setattr(scaling, "measure_processes", lambda quick: [line])
    out = tmp_path / "page.html"
    monkeypatch.setattr(
        sys,
        "argv",
        ["scaling.py", "--rounds", "1", "--budget", "0.01", "--markdown", "--out", str(out)],
    )
    scaling.main()
    printed = capsys.readouterr().out
    assert "| hidden units | 2, 40 |" in printed
    assert "| exponent | 1 | 0.000 ± 0.000 |" in printed
    assert "| processes, 500 rows each | 1, 4 | 20 ms | 25 ms |" in printed
    assert "Does the cost grow as the work grows?" in out.read_text()


# ---- processes -----------------------------------------------------------------------------------


def shared(n, rows_alone, rows_together, seconds=0.025, processor=0.022):
    alone, together = processes.Rate(0.02, 0.02), processes.Rate(seconds, processor)
    ratios = 1.0, 0.02 / seconds, 0.02 / processor
    return processes.Shared(n, rows_alone, rows_together, alone, alone, together, *ratios, load=0.0)


@pytest.mark.parametrize("n", [2, 4])
def test_the_efficiency_is_one_where_each_process_does_as_many_rows_a_second(n):
    weak = shared(n, 500, n * 500, seconds=0.02, processor=0.025)
    assert (weak.efficiency, weak.by_processor) == pytest.approx((1.0, 0.8))
    strong = shared(n, 2000, 2000, seconds=0.02 / n, processor=0.02 / n)
    assert (strong.efficiency, strong.by_processor) == pytest.approx((1.0, 1.0))
    assert shared(n, 2000, 2000, seconds=0.02).efficiency == pytest.approx(1 / n)


def test_the_exponents_of_processes_are_those_of_their_times():
    each = [shared(n, 500, n * 500, seconds=0.02 * n**0.1) for n in (2, 4, 8)]
    line = scaling.ProcessLine("each", 0, tuple(each))
    assert line.values == [1, 2, 4, 8]
    assert scaling.exponent(line.values, line.seconds())[0] == pytest.approx(0.1)
    assert scaling.process_row(line)[4] == "0.100 ± 0.000"
    # Two points have no error.
    two = scaling.ProcessLine("two", -1, (shared(2, 2000, 2000, seconds=0.01),))
    assert scaling.process_row(two)[4] == "-1.000"


@pytest.mark.slow
def test_processes_are_measured_in_turn(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = processes.measure(2, 50, 100, n_updates=3, n_rounds=3)
    assert found.n_processes == 2
    times = [found.alone, found.beside, found.together]
    assert all(0 < seconds < 10 for way in times for seconds in way)
    assert found.efficiency == found.ratio > 0


# ---- on paper ------------------------------------------------------------------------------------


class TestPaper:
    update = replace(paper.MODEL, batch=1024)

    def test_pcd_1_is_ten_operations_for_a_row_and_a_weight(self):
        assert self.update.flops == 10 * 1024 * 1e9

    def test_the_ring_carries_nearly_twice_the_gradient(self):
        cluster = replace(paper.H100, network_rate=1e9, network_share=1.0)
        assert paper.reduce_seconds(self.update, cluster) == pytest.approx(4 * 2 * 63 / 64)
        assert paper.reduce_seconds(self.update, replace(cluster, n_gpus=1)) == 0

    def test_one_gpu_alone_computes_all_the_time(self):
        found = paper.cost(self.update, replace(paper.H100, n_gpus=1))
        assert found.efficiency == 1
        assert found.update == found.products + found.others

    @given(st.integers(100, 10**6), st.integers(100, 10**5))
    def test_where_the_reduction_becomes_the_bound_does_not_depend_on_the_model(self, n, m):
        other = paper.Update(n_visible=n, n_hidden=m)
        expected = paper.critical_batch(paper.MODEL, paper.H100)
        assert paper.critical_batch(other, paper.H100) == pytest.approx(expected)
        # Products of b rows take 10 b P / rate, the ring 2 (63/64) 4 P / bus.
        by_hand = 2 * 63 / 64 * 4 / (0.8 * 400e9) * 0.6 * 494.7e12 / 10
        assert expected == pytest.approx(by_hand)

    def test_at_that_batch_the_two_take_equal_times(self):
        batch = round(paper.critical_batch(paper.MODEL, paper.H100))
        update = replace(paper.MODEL, batch=batch)
        seconds = paper.product_seconds(update, paper.H100)
        assert seconds == pytest.approx(paper.reduce_seconds(update, paper.H100), rel=1e-3)

    def test_each_remedy_shortens_the_reduction_as_it_says(self):
        small = replace(paper.MODEL, batch=256)
        plain = paper.cost(small, paper.H100)
        halved = paper.cost(small, replace(paper.H100, gradient_bytes=2))
        rarer = paper.cost(small, paper.H100, updates_per_reduction=8)
        assert halved.reduction == pytest.approx(plain.reduction / 2)
        assert rarer.reduction == pytest.approx(plain.reduction / 8)
        beside = paper.cost(small, paper.H100, hidden_share=1.0)
        assert beside.update == pytest.approx(max(plain.reduction, plain.products + plain.others))
        assert plain.update > halved.update > rarer.update

    def test_a_split_of_the_hidden_units_pays_with_the_fields_on_the_visible_ones(self):
        small = replace(paper.MODEL, batch=256)
        split = paper.cost(small, paper.H100, split=8)
        exposed = split.update - split.products - split.others - split.reduction
        # 2048 rows of 10⁵ numbers of 4 bytes, 7/4 times over a link of 360 GB/s.
        assert exposed == pytest.approx(7 / 4 * 2048 * 4e5 / 360e9)

    def test_a_pass_is_as_many_updates_as_there_are_batches(self):
        found = paper.cost(self.update, paper.H100)
        assert found.epoch == pytest.approx(found.update * 1e9 / 65536)

    def test_few_rows_are_bound_by_reading_the_weights(self):
        few = replace(paper.MODEL, batch=1)
        seconds = paper.product_seconds(few, paper.H100)
        assert seconds == pytest.approx(3 * 4e9 / (0.8 * 3.35e12))

    def test_adam_holds_two_more_copies_of_the_weights(self):
        plain, adam = (sum(paper.memory_parts(self.update, m).values()) for m in (0, 2))
        assert adam - plain == 8e9

    def test_all_of_it_is_printed(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["scaling.py", "--paper"])
        scaling.main()
        printed = capsys.readouterr().out
        assert "1e+10 operations a row, 1e+19 a pass; a gradient of 4 GB" in printed
        assert "| as it is |" in printed

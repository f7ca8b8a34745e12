"""What is drawn is what was measured: gaps, intervals, and one colour for one name."""

from __future__ import annotations

import json

import numpy as np
import pytest

from freenergy.report import BarChart, Curve, HistogramChart, LineChart
from freenergy.report.figures import MAX_POINTS, N_COLOURS, Palette, draw


def lines(*curves, **options):
    return LineChart("title", "x (unit)", "y (unit)", curves, **options)


def drawn(chart):
    return draw(chart, Palette([chart]))


def traces(chart):
    return drawn(chart).figure["data"]


def test_values_that_are_not_finite_become_null_in_json():
    (trace,) = traces(lines(Curve("CD", [1, 2, 3, np.inf], [1, np.nan, -np.inf, 4])))
    assert trace["y"] == [1, None, None, None]
    assert trace["x"] == [1, 2, 3, None]
    assert "NaN" not in json.dumps(trace, allow_nan=False)


def test_a_point_between_gaps_is_seen():
    y = np.sin(np.arange(200.0))
    assert traces(lines(Curve("a", np.arange(200), y)))[0]["mode"] == "lines"
    y[[99, 101]] = np.nan
    assert traces(lines(Curve("a", np.arange(200), y)))[0]["mode"] == "lines+markers"


def test_a_band_is_one_polygon_for_each_stretch():
    x = np.arange(5.0)
    y = np.array([0, 1, np.nan, 3, 4])
    band, line = traces(lines(Curve("a", x, y, y - 1, y + 1)))
    assert band["x"] == [0, 1, 1, 0, None, 3, 4, 4, 3]
    assert band["y"] == [1, 2, 0, -1, None, 4, 5, 3, 2]
    assert band["meta"]["series"] == line["meta"]["series"]


def test_bands_lie_below_all_lines():
    y = np.zeros(3)
    chart = lines(Curve("a", y, y, y, y), Curve("b", y, y, y, y))
    assert ["fill" in trace for trace in traces(chart)] == [True, True, False, False]
    assert [entry.traces for entry in drawn(chart).legend] == [(0, 2), (1, 3)]


def test_an_interval_with_one_end_reaches_to_the_line():
    band, _ = traces(lines(Curve("a", [0, 1], [5, 6], lower=[1, 2])))
    assert band["y"] == [5, 6, 2, 1]


def test_the_interval_of_a_single_point_is_an_error_bar():
    _, line = traces(lines(Curve("a", [1], [5], [3], [6])))
    assert (line["error_y"]["array"], line["error_y"]["arrayminus"]) == ([1], [2])


def test_a_logarithmic_axis_says_what_it_cannot_show():
    chart = lines(Curve("a", [1, 2, 3], [0, 1, 10], [-1, 0.5, 5], [2, 2, 20]), log_y=True)
    drawing = drawn(chart)
    band, line = drawing.figure["data"]
    assert line["y"] == [None, 1, 10]
    assert min(band["y"]) == 0.5
    assert "1 point at or below zero" in drawing.notes[0]
    assert "Intervals that reach zero" in drawing.notes[1]


def test_a_long_curve_keeps_its_extremes_and_its_gaps():
    n = 50_000
    y = np.random.default_rng(0).normal(size=n)
    y[[12_345, 23_456]] = 100, -100
    y[40_000:40_050] = np.nan
    (trace,) = traces(lines(Curve("a", np.arange(n), y)))
    assert len(trace["y"]) <= MAX_POINTS
    assert {100, -100, None} <= set(trace["y"])
    assert trace["x"][0] == 0
    assert trace["x"][-1] == n - 1
    assert trace["x"] == sorted(trace["x"])


def test_an_empty_curve_is_named_and_an_empty_chart_is_not_drawn():
    full, empty = Curve("full", [1], [1]), Curve("empty", [1, 2], [np.nan, np.nan])
    assert drawn(lines(full, empty)).notes == ("No data: empty.",)
    for chart in (
        lines(empty),
        lines(),
        BarChart("b", "y", [], []),
        BarChart("b", "y", ["a"], [np.nan]),
        HistogramChart("h", "x", {}),
        HistogramChart("h", "x", {"s": [np.nan]}, markers={"m": 1}),
    ):
        assert drawn(chart).figure is None


def test_a_name_has_one_colour_on_the_whole_page():
    def curve(name, **options):
        return Curve(name, [1, 2], [1, 2], **options)

    charts = [
        lines(curve("CD"), curve("PCD")),
        lines(curve("PCD"), curve("test", group="CD", dash=True)),
        BarChart("b", "y", ["exact", "PCD", "CD"], [1, 2, 3]),
        HistogramChart("h", "x", {"PCD": [1, 2], "data": [1, 2]}, markers={"CD": 1.5}),
    ]
    palette = Palette(charts)
    cd, pcd = palette["CD"].colour, palette["PCD"].colour
    assert cd != pcd
    colours = [
        [trace["meta"].get("series") for trace in draw(chart, palette).figure["data"]]
        for chart in charts
    ]
    assert colours[0] == [cd, pcd]
    assert colours[1] == [pcd, cd]
    assert colours[3][0] == pcd
    assert colours[3][2] == cd
    bars = draw(charts[2], palette).figure["data"][0]["meta"]["bars"]
    assert bars == [None, pcd, cd]
    for chart in (charts[0], charts[1], charts[3]):
        for entry in draw(chart, palette).legend:
            assert entry.style.colour in (cd, pcd, palette["data"].colour)


def test_names_in_one_chart_never_look_alike():
    many = lines(*(Curve(str(index), [1], [1]) for index in range(2 * N_COLOURS + 3)))
    styles = [entry.style for entry in drawn(many).legend]
    assert len({(style.colour, style.dash) for style in styles}) == len(styles)


def test_colours_run_out_only_within_a_chart():
    charts = [lines(*(Curve(f"{n}-{i}", [1], [1]) for i in range(N_COLOURS))) for n in range(3)]
    palette = Palette(charts)
    for chart in charts:
        styles = [palette[curve.name] for curve in chart.curves]
        assert {style.dash for style in styles} == {"solid"}
        assert {style.colour for style in styles} == set(range(N_COLOURS))


def test_a_bar_chart_of_many_long_names_lies_on_its_side():
    upright = BarChart("b", "y", ["CD", "PCD"], [1, 2], errors=[0.5, 0.5])
    lying = BarChart("b", "y", [f"a rather long name {i}" for i in range(20)], range(20))
    assert traces(upright)[0]["orientation"] == "v"
    assert traces(upright)[1]["error_y"]["array"] == [0.5, 0.5]
    assert traces(lying)[0]["orientation"] == "h"
    assert drawn(lying).height > 500


def test_an_interval_need_not_hold_the_length_of_its_bar():
    errors = traces(BarChart("b", "y", ["a"], [1], lower=[2], upper=[4]))[1]
    assert (errors["y"], errors["error_y"]["array"]) == ([3], [1])


def test_histograms_show_fractions_in_common_bins():
    random = np.random.default_rng(0)
    series = {"few": random.normal(size=100), "many": random.normal(3, 1, size=10_000)}
    few, many = traces(HistogramChart("h", "x", series))
    assert few["x"] == many["x"]
    for trace in (few, many):
        assert np.sum(trace["y"]) == pytest.approx(1)
        assert trace["y"][0] == trace["y"][-1] == 0


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [0, 1e300], [1, 2, 1e12]])
def test_a_histogram_of_odd_values_is_drawn(values):
    (trace,) = traces(HistogramChart("h", "x", {"s": values}))
    assert np.sum(trace["y"]) == pytest.approx(1)


def test_a_histogram_says_what_it_leaves_out():
    chart = HistogramChart("h", "x", {"s": [1, 2, np.nan], "none": []}, markers={"m": np.nan})
    assert drawn(chart).notes == ("s: 1 of 3 values not finite.", "No data: none.", "m: –.")


def test_names_are_text_to_plotly_too():
    (trace,) = traces(lines(Curve("<b>a</b> & b", [1], [1])))
    assert trace["name"] == "&lt;b&gt;a&lt;/b&gt; &amp; b"


def test_figures_are_valid(page):
    go = pytest.importorskip("plotly.graph_objects")
    charts = [
        block
        for section in page.sections
        for block in section.blocks
        if isinstance(block, LineChart | BarChart | HistogramChart)
    ]
    palette = Palette(charts)
    for chart in charts:
        figure = draw(chart, palette).figure
        if figure is not None:
            go.Figure(figure)  # raises for a property that Plotly does not know


def axis(x, y=None, **options):
    figure = drawn(lines(Curve("a", x, x if y is None else y), **options)).figure
    return figure["layout"]["xaxis"]


@pytest.mark.parametrize(
    ("x", "ticks"),
    [
        ([0.5, 0.7, 1, 3, 10], ["0.5", "1", "2", "5", "10"]),
        ([0.03, 0.1, 3], ["0.05", "0.1", "0.2", "0.5", "1", "2"]),
        ([400, 1100], ["500", "1000"]),
    ],
)
def test_ticks_of_short_logarithmic_axes_are_whole_numbers_and_not_last_digits(x, ticks):
    found = axis(x, log_x=True)
    assert found["ticktext"] == ticks
    assert found["tickvals"] == [float(tick) for tick in ticks]


def test_long_logarithmic_axes_have_powers_and_very_short_ones_what_plotly_thinks():
    assert axis([1, 1e4], log_x=True)["dtick"] == 1
    for x in ([1, 1e9], [400, 900]):
        assert not {"dtick", "tickvals"} & set(axis(x, log_x=True))


def test_a_few_epochs_have_no_ticks_between_them():
    assert axis([1, 2, 3])["dtick"] == 1
    for x in ([1, 2.5], [1, 60], [2]):
        assert "dtick" not in axis(x, y=np.ones(len(x)))

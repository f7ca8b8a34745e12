"""The page: its words follow from the findings, and a browser draws all of it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from torch import nn

from freenergy.report import LineChart, Table, render
from freenergy.thermodynamics import watch
from freenergy.thermodynamics.watching.page import watch_page

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def page_of(run):
    return watch_page(run.history, run.findings, run.cost, run.diffusion)


def blocks(page, kind):
    return [
        block for section in page.sections for block in section.blocks if isinstance(block, kind)
    ]


@pytest.fixture(scope="module")
def deep(net, train):
    """A deep net with a fault, as it stands after a while."""
    return train(net(nn.SELU, 32, 32, torch_default=True), 24)


def test_the_verdict_is_the_first_finding(deep):
    verdict = page_of(deep).verdict
    assert verdict.status == "contradicted"
    assert verdict.text.startswith("**Vanishing signal in layer `0`.**")
    assert deep.findings[0].suggestion in verdict.text


def test_a_healthy_net_gets_a_yes(net, train):
    page = page_of(train(net(nn.ReLU, 2), 9))
    assert page.verdict.status == "supported"
    assert page.verdict.text == "Yes. Nothing was found wrong in 3 layers."


def test_a_net_that_was_only_read_at_the_start_gets_no_yes(net, train):
    module = net(nn.ReLU, 2)
    run = train(module, 6, budget=1e-9)
    with run:
        for _ in range(24):  # passes in training mode whose gradient nobody asks for
            module(torch.ones(2, 20))
    verdict = page_of(run).verdict
    assert verdict.status == "undecided"
    assert verdict.text.startswith("Nothing was found wrong in 3 layers up to step 5 of 30.")
    assert run.to_dict()["verdict"] == verdict.text
    assert "no gradient came back" in str(run)


def test_a_short_run_is_judged_up_to_its_end(net, train):
    run = train(net(nn.ReLU, 2), 94, budget=1e-9)
    steps = [record.step for record in run.history.records]
    assert steps == [1, 2, 3, 4, 5, 8, 12, 17, 25, 36, 51, 73, 95]
    assert page_of(run).verdict.text == "Yes. Nothing was found wrong in 3 layers."
    assert run.diffusion.n_points >= 8
    assert run.diffusion.span > 20


def test_without_a_pass_there_is_a_page_that_says_so(tmp_path):
    run = watch(nn.Linear(2, 2))
    assert page_of(run).verdict.status == "undecided"
    assert "No training pass" in run.report(tmp_path / "empty.html").read_text()


def test_every_finding_stands_on_the_page_in_its_order(deep):
    document = render(page_of(deep))
    places = [document.find(html.escape(f.evidence, quote=True)) for f in deep.findings]
    assert all(place > 0 for place in places)
    assert places == sorted(places)
    assert "training passes were read" in document


def test_measured_stands_beside_predicted_at_start_and_end(deep):
    charts = {chart.title: chart for chart in blocks(page_of(deep), LineChart)}
    variance = charts["Variance of pre-activations"]
    names = [(curve.group, curve.name, curve.dash) for curve in variance.curves]
    assert names == [
        ("start", "measured", False),
        ("start", "predicted", True),
        ("end", "measured", False),
        ("end", "predicted", True),
    ]
    first = [r.variance for r in deep.history.records[0].readings]
    np.testing.assert_allclose(variance.curves[0].y, first)
    assert len(variance.curves[0].x) == 33
    assert "Variance of the gradient" in charts


def test_a_deep_net_shows_few_layers_step_by_step(deep):
    page = page_of(deep)
    charts = [c for c in blocks(page, LineChart) if c.title.startswith("Layer ")]
    assert len(charts) == 6
    intro = next(s.intro for s in page.sections if s.title.startswith("Pre-activations, step"))
    assert "6 of 33 layers (32 hidden ones and the outputs)" in intro
    assert charts[0].title == "Layer 1 · 0"
    assert charts[-1].title == "Layer 33 · 64"
    band = charts[0].curves[0]
    assert (band.lower <= band.y).all()
    assert (band.y <= band.upper).all()


def test_the_table_has_every_layer_and_the_domains_of_selu(deep, net, train):
    (table,) = blocks(page_of(deep), Table)
    assert len(table.rows) == 33
    assert table.columns[-1] == "domain"
    assert table.rows[0][-1].startswith("outside")
    assert "theorem 1: the map contracts" in table.note
    (plain,) = blocks(page_of(train(net(nn.ReLU, 2), 3)), Table)
    assert "domain" not in plain.columns


def test_names_cannot_break_the_page():
    class Net(nn.ModuleDict):
        def forward(self, x):
            return self["<script>"](x)

    module = Net({"<script>": nn.Linear(3, 2)})
    with watch(module) as run:
        module(torch.ones(4, 3)).sum().backward()
    assert "<script>" not in render(page_of(run)).split("<body>")[1].split("</main>")[0]


def test_a_page_of_what_is_not_finite_can_be_written(net, train):
    rows = torch.full((256, 20), torch.inf)
    run = train(net(nn.ReLU, 2), 4, rows=rows)
    assert "not finite" in render(page_of(run))


PROBE = """<script>
addEventListener("error", (event) => (document.title = "failed: " + event.message));
addEventListener("load", () => setTimeout(() => {
  const right = (e) => Math.ceil(e.getBoundingClientRect().right);
  const result = document.createElement("pre");
  result.textContent = JSON.stringify({
    title: document.title,
    plots: document.querySelectorAll(".plot").length,
    drawn: document.querySelectorAll(".plot .main-svg .scatterlayer .trace").length,
    width: innerWidth,
    figures: Math.max(...[...document.querySelectorAll("figure")].map(right)),
  });
  (parent === window ? document : parent.document).body.append(result);
}, 1500));
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on the path")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_draws_every_figure_within_its_window(deep, tmp_path, width):
    document = deep.report(tmp_path / "run.html").read_text(encoding="utf-8")
    probed = document.replace("<head>", "<head>" + PROBE, 1)
    (tmp_path / "probed.html").write_text(probed, encoding="utf-8")
    # Chromium does not make its window as narrow as a telephone, but a frame can be.
    frame = f'<iframe src="probed.html" width="{width}" height="800"></iframe>'
    (tmp_path / "around.html").write_text(f"<!DOCTYPE html><body>{frame}</body>")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1800,1000", "--virtual-time-budget=30000", "--dump-dom",
        (tmp_path / "around.html").as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    (result,) = map(json.loads, re.findall(r"<pre>(.*?)</pre>", shown, re.DOTALL))
    assert result["title"] == "A training, watched"
    assert result["plots"] == len(blocks(page_of(deep), LineChart))
    assert result["drawn"] > result["plots"]
    assert result["width"] == width
    assert result["figures"] <= width

"""A page in a real browser: drawn without an error, and never wider than its window."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from freenergy.report import write

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on the path")

WIDTHS = {"laptop": 1280, "phone": 390}

# Ahead of the page's own scripts, so that it sees their errors; reports to the page around it.
PROBE = """<script>
(() => {
  const errors = [];
  addEventListener("error", (event) => errors.push(String(event.message)));
  addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
  addEventListener("securitypolicyviolation", (event) => errors.push(event.blockedURI));
  console.error = (...parts) => errors.push(parts.join(" "));
  const traces = (plot) => plot.querySelectorAll(".scatterlayer .trace, .barlayer .trace").length;
  const drawn = (plot) => plot.querySelector(".main-svg") && traces(plot);
  function report() {
    const plots = [...document.querySelectorAll(".plot")];
    const root = document.documentElement;
    const right = (element) => Math.ceil(element.getBoundingClientRect().right);
    const before = plots.map(traces);
    const button = document.querySelector(".legend button");
    button.click();
    const hidden = [button.getAttribute("aria-pressed"), traces(plots[0])];
    button.click();
    parent.postMessage({
      name: window.name,
      errors,
      hidden,
      shown: traces(plots[0]),
      width: innerWidth,
      scrollWidth: root.scrollWidth,
      traces: before,
      plots: plots.map((p) => [p.querySelector(".main-svg").clientWidth, p.clientWidth]),
      figures: [...document.querySelectorAll("figure")].map(right),
      columns: getComputedStyle(document.querySelector(".grid")).gridTemplateColumns.split(" "),
      requests: performance.getEntriesByType("resource").map((entry) => entry.name.slice(0, 40)),
    }, "*");
  }
  let attempts = 0;
  const timer = setInterval(() => {
    const plots = [...document.querySelectorAll(".plot")];
    if ((plots.length && plots.every(drawn)) || ++attempts > 200) {
      clearInterval(timer);
      setTimeout(report, 500);
    }
  }, 50);
})();
</script>"""

# Chromium does not make its window as narrow as a telephone, but a frame can be.
AROUND = """<!DOCTYPE html>
<body><script>
addEventListener("message", (event) => {
  const result = document.createElement("pre");
  result.textContent = JSON.stringify(event.data);
  document.body.append(result);
});
</script>
%s
</body>"""


@pytest.fixture(scope="module")
def seen(page, tmp_path_factory) -> dict[str, dict]:
    """What the browser says of the page at either width."""
    folder = tmp_path_factory.mktemp("browser")
    path = write(page, folder / "page.html")
    document = path.read_text(encoding="utf-8")
    probed = folder / "probed.html"
    probed.write_text(document.replace("<head>", "<head>" + PROBE, 1), encoding="utf-8")
    frames = "\n".join(
        f'<iframe name="{name}" src="probed.html" width="{width}" height="800"></iframe>'
        for name, width in WIDTHS.items()
    )
    around = folder / "around.html"
    around.write_text(AROUND % frames, encoding="utf-8")
    output = browse(around, folder / "profile")
    results = map(html.unescape, re.findall(r"<pre>(.*?)</pre>", output, re.DOTALL))
    return {result["name"]: result for result in map(json.loads, results)}


def browse(path: Path, profile: Path) -> str:
    """Give the document as it is after its scripts have run."""
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
        "--window-size=1800,1000",
        "--virtual-time-budget=30000",
        "--dump-dom",
        path.as_uri(),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.fixture(params=list(WIDTHS))
def result(seen, request):
    assert request.param in seen, "the page did not report; its scripts did not run to the end"
    return seen[request.param]


def test_no_script_fails_and_nothing_is_blocked(result):
    assert result["errors"] == []


def test_nothing_is_loaded(result):
    assert [name for name in result["requests"] if not name.startswith(("data:", "blob:"))] == []


def test_every_chart_draws_its_traces(result):
    # Two bands and two lines twice, a line, a band and a line, bars and intervals, bars, and a
    # distribution with its marker.
    assert result["traces"] == [4, 4, 1, 2, 2, 1, 2]


def test_nothing_is_wider_than_the_window(result):
    assert result["width"] == WIDTHS[result["name"]]
    assert result["scrollWidth"] <= result["width"]
    assert max(result["figures"]) <= result["width"]
    for drawn, room in result["plots"]:
        assert 0 < drawn <= room


def test_the_legend_hides_a_curve_with_its_band_and_shows_it_again(result):
    assert result["hidden"] == ["false", 2]
    assert result["shown"] == 4


def test_charts_stand_in_two_columns_where_there_is_room(seen):
    assert len(seen["laptop"]["columns"]) == 2
    assert len(seen["phone"]["columns"]) == 1

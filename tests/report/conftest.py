"""A page with one block of every kind, and what can go wrong in each."""

from __future__ import annotations

import numpy as np
import pytest

from freenergy.report import (
    BarChart,
    Curve,
    HistogramChart,
    ImageGrid,
    LineChart,
    Page,
    Section,
    Table,
    Text,
    Verdict,
)


@pytest.fixture(scope="session")
def page() -> Page:
    random = np.random.default_rng(0)
    epoch = np.arange(1, 31)

    def learning(name: str, level: float, **options: object) -> Curve:
        y = level - 40 * np.exp(-epoch / 6)
        return Curve(name, epoch, y, y - 1, y + 2, **options)

    gap = np.sin(np.linspace(0, 20, 3000))
    gap[1000:1100] = np.nan
    curves = Section(
        "Curves & </script> bands",
        [
            Text(["Prose with `code` & **bold**.", "<script>alert(1)</script>"]),
            LineChart("Learning", "epoch", "nats", [learning("CD", -101), learning("PCD", -90)]),
            LineChart(
                "Families",
                "epoch",
                "nats",
                [learning("train", -80, group="CD"), learning("test", -84, group="CD", dash=True)],
                note="A note with `code`.",
            ),
            LineChart("A gap", "step", "m", [Curve("</script><!--", np.arange(3000), gap)]),
            LineChart(
                "Logarithmic",
                "a very long label that says what was counted and in which unit it was counted",
                "rate",
                [Curve("PCD", [1, 10, 1e5], [0, 1e-3, 1e-6], [-1, 1e-4, 1e-7], [1, 1e-2, 1e-5])],
                log_x=True,
                log_y=True,
            ),
            LineChart("Empty", "epoch", "nats", [Curve("CD", [], [])]),
        ],
        intro="An introduction.",
    )
    long_names = [f"a data set with a rather long name {index}" for index in range(12)]
    bars = Section(
        "Bars and tables",
        [
            BarChart("Upright", "nats", ["CD", "exact"], [-101.3, -89.9], errors=[0.4, 0]),
            BarChart("Sideways", "%", long_names, random.uniform(50, 99, 12)),
            Table(
                ["method", *(f"column number {index}" for index in range(10))],
                [["CD", *random.normal(size=10)], ["a_very_long_unbroken_name" * 3, *range(10)]],
                caption="A wide table",
            ),
        ],
    )
    pictures = Section(
        "Distributions and pictures",
        [
            HistogramChart("Energies", "nats", {"data": random.normal(size=400)}, {"PCD": 0.5}),
            ImageGrid("Digits", random.uniform(size=(20, 8, 8))),
            ImageGrid("Filters", random.normal(size=(500, 28, 28)), symmetric=True),
            ImageGrid("Colours", random.uniform(size=(6, 4, 4, 3)), n_columns=4),
        ],
    )
    return Page(
        "A study",
        "Does <one page> hold everything & nothing else?",
        Verdict("supported", "It **does**."),
        [curves, bars, pictures, Section("Method", [Text("None.")])],
        {"command": "freenergy study " + "x" * 200, "seed": 0},
    )

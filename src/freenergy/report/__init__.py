"""Results in, one HTML file out: text, tables, charts and images on a page that works offline.

The room knows nothing of the rest of freenergy. A study builds its content from the small
dataclasses below and hands it to :func:`write`.
"""

from freenergy.report.charts import BarChart, Curve, HistogramChart, LineChart
from freenergy.report.html import render, write
from freenergy.report.images import ImageGrid
from freenergy.report.page import Block, Page, Section, Table, Text, Verdict

__all__ = [
    "BarChart",
    "Block",
    "Curve",
    "HistogramChart",
    "ImageGrid",
    "LineChart",
    "Page",
    "Section",
    "Table",
    "Text",
    "Verdict",
    "render",
    "write",
]

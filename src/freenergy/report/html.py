"""A page as one HTML file that holds all it needs: styles, scripts, figures and images."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from itertools import groupby, starmap
from pathlib import Path

import numpy as np

from freenergy.files import write_atomically
from freenergy.report.figures import Chart, Drawing, LegendEntry, Palette, Style, draw
from freenergy.report.images import ImageGrid, data_uri
from freenergy.report.page import Block, Page, Section, Table, Text, Verdict
from freenergy.report.text import escape, inline, is_amount, is_number, number, slug

__all__ = ["render", "write"]

_VERDICTS = {
    "supported": ("✓", "Supported"),
    "contradicted": ("✗", "Contradicted"),
    "undecided": ("?", "Undecided"),
    "info": ("i", "In short"),
}
_MIN_CONTENTS = 4  # sections from which a table of contents helps

# Nothing may be loaded from anywhere: the browser itself holds the page to that.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)

_DASHES = {
    "solid": "",
    "dash": "6 4",
    "dot": "2 3",
    "dashdot": "7 3 2 3",
    "longdashdot": "10 3 2 3",
}
_MARKS = {
    "circle": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "square": "M-3.5-3.5h7v7h-7z",
    "diamond": "M0-5L5 0L0 5L-5 0z",
    "triangle-up": "M0-4.5L4.5 3.5h-9z",
    "triangle-down": "M0 4.5L4.5-3.5h-9z",
    "cross": "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
    "hexagon": "M-4.5 0L-2.2-4h4.4L4.5 0L2.2 4h-4.4z",
    "x": "M-4-2L-2-4L0-2L2-4L4-2L2 0L4 2L2 4L0 2L-2 4L-4 2L-2 0z",
}


def render(page: Page) -> str:
    """Write a page as HTML.

    The same page always gives the same text. Prose may hold ```code``` and ``**bold**``; all else
    is escaped.

    Parameters
    ----------
    page : Page
        The content.

    Returns
    -------
    str
        A whole HTML document that loads nothing from anywhere.

    Examples
    --------
    >>> from freenergy.report import Page, Section, Text
    >>> document = render(Page("Warm-up", sections=[Section("Notes", [Text("1 < 2")])]))
    >>> "<p>1 &lt; 2</p>" in document
    True
    """
    return _Writer(page).document()


def write(page: Page, path: str | os.PathLike[str]) -> Path:
    """Write a page to a file, whole or not at all.

    A reader of the file never sees half a page, and a failure leaves an older one as it was.

    Parameters
    ----------
    page : Page
        The content.
    path : str or path-like
        The file; its folder is made where it is missing.

    Returns
    -------
    pathlib.Path
        The file.

    Examples
    --------
    >>> import tempfile
    >>> from freenergy.report import Page
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write(Page("Warm-up"), f"{folder}/reports/warm-up.html")
    ...     path.name, path.is_file()
    ('warm-up.html', True)
    """
    return write_atomically(path, render(page))


class _Writer:
    """Writes one page: the palette and the figures are shared by all of its parts."""

    def __init__(self, page: Page) -> None:
        self._page = page
        charts = [block for s in page.sections for block in s.blocks if isinstance(block, Chart)]
        self._palette = Palette(charts)
        self._figures: list[dict[str, object]] = []
        self._n_ids = 0
        self._anchors: list[str] = []
        for section in page.sections:
            self._anchors.append(slug(section.title, taken=self._anchors))

    def document(self) -> str:
        page = self._page
        parts = [self._header(), self._contents(), self._main(), self._footer()]
        body = "\n".join(part for part in parts if part)
        return (
            "<!DOCTYPE html>\n"
            '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            '<meta name="generator" content="freenergy">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            f"<title>{escape(page.title)}</title>\n"
            f"<style>\n{_resource('page.css')}</style>\n</head>\n<body>\n"
            f"{body}\n{self._scripts()}</body>\n</html>\n"
        )

    # --- parts of the page

    def _header(self) -> str:
        page = self._page
        if page.question:
            eyebrow = f'<p class="eyebrow">{inline(page.title)}</p>\n'
            headline = eyebrow + f"<h1>{inline(page.question)}</h1>"
        else:
            headline = f"<h1>{inline(page.title)}</h1>"
        verdict = _verdict(page.verdict) if page.verdict is not None else ""
        return f"<header>\n<hgroup>\n{headline}\n</hgroup>\n{verdict}</header>"

    def _contents(self) -> str:
        sections = self._page.sections
        if len(sections) < _MIN_CONTENTS:
            return ""
        # One line for "Samples: CD", "Samples: PCD" and so on, where the first of them stands.
        families: dict[str, list[tuple[str, str]]] = {}
        for section, anchor in zip(sections, self._anchors, strict=True):
            stem, _, name = section.title.rpartition(": ")
            families.setdefault(stem or anchor, []).append((name, anchor))
        lines = "\n".join(starmap(_contents_line, families.items()))
        return f'<nav aria-label="Contents">\n<ol>\n{lines}\n</ol>\n</nav>'

    def _main(self) -> str:
        sections = zip(self._page.sections, self._anchors, strict=True)
        body = "\n".join(self._section(section, anchor) for section, anchor in sections)
        scriptless = _NO_SCRIPT if self._figures else ""
        return f"<main>\n{scriptless}{body}\n</main>"

    def _footer(self) -> str:
        if not self._page.provenance:
            return ""
        pairs = "\n".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
            for name, value in self._page.provenance.items()
        )
        return (
            '<footer aria-labelledby="provenance">\n'
            '<h2 id="provenance">Where this comes from</h2>\n'
            f"<dl>\n{pairs}\n</dl>\n</footer>"
        )

    def _scripts(self) -> str:
        if not self._figures:  # a page without charts needs no script and stays small
            return ""
        figures = _json_in_script(self._figures)
        return (
            f'<script type="application/json" id="figures">{figures}</script>\n'
            f"<script>{_plotly()}</script>\n<script>\n{_resource('page.js')}</script>\n"
        )

    # --- sections and blocks

    def _section(self, section: Section, anchor: str) -> str:
        heading = f"{escape(anchor)}-heading"
        intro = f'<p class="intro">{inline(section.intro)}</p>\n' if section.intro else ""
        blocks = "\n".join(self._blocks(section.blocks))
        return (
            f'<section id="{escape(anchor)}" aria-labelledby="{heading}">\n'
            f'<h2 id="{heading}">{inline(section.title)}</h2>\n{intro}{blocks}\n</section>'
        )

    def _blocks(self, blocks: Sequence[Block]) -> Iterator[str]:
        """Write blocks in order; neighbouring figures share a grid."""
        for in_grid, run in groupby(blocks, key=lambda block: not isinstance(block, Text | Table)):
            parts = [self._block(block) for block in run]
            body = "\n".join(parts)
            yield f'<div class="grid">\n{body}\n</div>' if in_grid else body

    def _block(self, block: Block) -> str:
        if isinstance(block, Text):
            return "\n".join(f"<p>{inline(paragraph)}</p>" for paragraph in block.paragraphs)
        if isinstance(block, Table):
            return self._table(block)
        if isinstance(block, ImageGrid):
            return self._images(block)
        return self._chart(block)

    def _table(self, table: Table) -> str:
        columns = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
        classes = [' class="number"' if _numeric(column) else "" for column in columns]
        head = "".join(
            f'<th scope="col"{css}>{inline(name)}</th>'
            for name, css in zip(table.columns, classes, strict=True)
        )
        rows = "\n".join(
            "<tr>"
            + "".join(
                f"<td{css}>{inline(number(cell))}</td>"
                for cell, css in zip(row, classes, strict=True)
            )
            + "</tr>"
            for row in table.rows
        )
        label = escape(table.caption or "Table")
        body = (
            f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"
            if table.rows
            else _NO_DATA
        )
        # A part that scrolls must be reachable by keyboard, and then needs a name.
        region = f'role="region" tabindex="0" aria-label="{label}"'
        scroller = f'<div class="scroller" {region}>\n{body}\n</div>'
        return self._figure("table", table.caption, scroller, [table.note])

    def _images(self, grid: ImageGrid) -> str:
        images = np.asarray(grid.images)
        if not images.size:
            return self._figure("images", grid.title, _NO_DATA, [grid.note])
        uri, width, height, scale = data_uri(grid)
        n, pixel_height, pixel_width = images.shape[:3]
        count = f"{n} image{'' if n == 1 else 's'} of {pixel_height} × {pixel_width} pixels"
        dense = " dense" if width > 340 else ""
        body = (
            f'<img class="pixels{dense}" src="{uri}" width="{width}" height="{height}" '
            f'style="--pixels: {width}" alt="{escape(grid.title)}: {count}">'
        )
        if grid.symmetric:
            ends = number(-scale), number(scale)
            body += (
                f'\n<p class="scale"><span>{ends[0]}</span><span class="ramp"></span>'
                f"<span>{ends[1]}</span></p>"
            )
        return self._figure("images", grid.title, body, [grid.note])

    def _chart(self, chart: Chart) -> str:
        drawing = draw(chart, self._palette)
        notes = [*drawing.notes, chart.note]
        if drawing.figure is None:
            return self._figure("chart", chart.title, _NO_DATA, notes)
        index = len(self._figures)
        self._figures.append(drawing.figure)
        height = f' style="height: {drawing.height}px"' if drawing.height else ""
        body = (
            f"{_legend(drawing, index)}"
            f'<div class="plot" role="img" data-figure="{index}"{height} '
            f'aria-label="{escape(drawing.description)}"></div>'
        )
        return self._figure("chart", chart.title, body, notes)

    def _figure(self, kind: str, title: str, body: str, notes: Sequence[str]) -> str:
        remarks = "\n".join(f'<p class="note">{inline(note)}</p>' for note in notes if note)
        self._n_ids += 1
        name = f"figure-{self._n_ids}"
        labelled, caption = "", ""
        if title:
            labelled = f' aria-labelledby="{name}"'
            caption = f'<figcaption id="{name}">{inline(title)}</figcaption>\n'
        return f'<figure class="{kind}"{labelled}>\n{caption}{body}\n{remarks}</figure>'


def _contents_line(stem: str, entries: Sequence[tuple[str, str]]) -> str:
    """One section, or several whose titles begin alike."""
    links = [f'<a href="#{escape(anchor)}">{inline(name)}</a>' for name, anchor in entries]
    if len(links) == 1 and stem == entries[0][1]:
        return f"<li>{links[0]}</li>"
    if len(links) == 1:
        name, anchor = entries[0]
        return f'<li><a href="#{escape(anchor)}">{inline(f"{stem}: {name}")}</a></li>'
    colon = "" if stem.endswith("?") else ":"
    return f'<li class="several">{inline(stem)}{colon} {" ".join(links)}</li>'


_NO_DATA = '<p class="empty">No data</p>'
_NO_SCRIPT = '<noscript><p class="empty">The charts need JavaScript.</p></noscript>\n'


def _verdict(verdict: Verdict) -> str:
    mark, word = _VERDICTS[verdict.status]
    return (
        f'<section class="verdict {verdict.status}" aria-label="Verdict">\n'
        f'<p class="status"><span aria-hidden="true">{mark}</span> {word}</p>\n'
        f"<p>{inline(verdict.text)}</p>\n</section>\n"
    )


def _numeric(column: Sequence[object]) -> bool:
    """Tell whether a column holds amounts, and nothing but amounts and empty cells."""
    present = [cell for cell in column if cell is not None]
    return bool(present) and all(is_number(cell) or is_amount(cell) for cell in present)


def _legend(drawing: Drawing, figure: int) -> str:
    """Write a legend as buttons that show and hide their curves, families under their name."""
    if not drawing.legend:
        return ""
    families: dict[str | None, list[LegendEntry]] = {}
    for entry in drawing.legend:
        families.setdefault(entry.group, []).append(entry)
    parts = []
    for family, entries in families.items():
        buttons = "\n".join(_legend_button(entry, figure) for entry in entries)
        if family is not None:
            name = escape(family)
            buttons = (
                f'<span class="family" role="group" aria-label="{name}">'
                f"<b>{name}</b>\n{buttons}</span>"
            )
        parts.append(buttons)
    label = 'role="group" aria-label="Curves, shown or hidden"'
    return f'<div class="legend" {label}>\n' + "\n".join(parts) + "\n</div>\n"


def _legend_button(entry: LegendEntry, figure: int) -> str:
    traces = json.dumps(entry.traces)
    return (
        f'<button type="button" aria-pressed="true" data-figure="{figure}" data-traces="{traces}">'
        f"{_swatch(entry.style, entry.marked)}{escape(entry.name)}</button>"
    )


def _swatch(style: Style, marked: bool) -> str:
    mark = f'<path d="{_MARKS[style.symbol]}"/>' if marked else ""
    return (
        f'<svg class="swatch" style="--series: var(--series-{style.colour})" '
        f'viewBox="-14 -6 28 12" aria-hidden="true">'
        f'<line x1="-14" x2="14" stroke-dasharray="{_DASHES[style.dash]}"/>{mark}</svg>'
    )


def _json_in_script(value: object) -> str:
    """Write JSON that cannot end, or otherwise upset, the script element around it."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _resource(name: str) -> str:
    return resources.files("freenergy.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    # Imported late: a page without charts does without it.
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())

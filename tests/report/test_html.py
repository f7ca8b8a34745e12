"""One file, all of it escaped, nothing loaded, written whole or not at all."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from freenergy.report import (
    Curve,
    ImageGrid,
    LineChart,
    Page,
    Section,
    Table,
    Text,
    Verdict,
    render,
    write,
)
from freenergy.report.html import _plotly

VOID = {"meta", "img", "br", "path", "line"}


class Outline(HTMLParser):
    """Elements, attributes and text of a document; fails on one that is not well nested."""

    def __init__(self, document: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.feed(document)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)

    def all(self, tag, **attributes):
        return [
            found
            for name, found in self.elements
            if name == tag and attributes.items() <= found.items()
        ]


@pytest.fixture(scope="module")
def document(page):
    return render(page)


@pytest.fixture(scope="module")
def outline(document):
    return Outline(document)


def document_of(*blocks, **options):
    return render(Page("title", sections=[Section("section", blocks)], **options))


def test_a_page_is_well_formed_and_its_names_are_unique(outline):
    identifiers = [found["id"] for _, found in outline.elements if "id" in found]
    assert len(identifiers) == len(set(identifiers))
    for _, found in outline.elements:
        if "aria-labelledby" in found:
            assert found["aria-labelledby"] in identifiers
        if (found.get("href") or "").startswith("#"):
            assert found["href"][1:] in identifiers


def test_a_page_loads_nothing(document, outline):
    assert document.count(_plotly()) == 1
    for tag, found in outline.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            if name in found:
                assert re.match(r"#|data:image/png;base64,", found[name]), (tag, found)
    own = document.replace(_plotly(), "")
    assert not re.search(r"https?:|url\(|@import", own)
    (policy,) = outline.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none';")


def test_all_text_is_escaped(document, outline):
    own = document.replace(_plotly(), "")
    assert "<script>alert" not in own
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in own
    assert len(outline.all("script")) == 3
    hostile = '"><img src=x onerror=alert(1)>'
    blocks = [
        LineChart(
            hostile, hostile, hostile, [Curve(hostile, [1], [1], group=hostile)], note=hostile
        ),
        ImageGrid(hostile, np.zeros((1, 1, 1)), note=hostile),
        Table([hostile], [[hostile]], caption=hostile, note=hostile),
        Text(hostile),
    ]
    section = Section(hostile, blocks, intro=hostile)
    verdict = Verdict("info", hostile)
    document = render(Page(hostile, hostile, verdict, [section] * 4, {hostile: hostile}))
    for found in Outline(document).all("img"):
        assert "onerror" not in found


def test_figures_are_json_that_cannot_end_its_script(outline, document):
    (figures,) = re.findall(
        r'<script type="application/json" id="figures">(.*?)</script>', document
    )
    assert not re.search(r"[<>&]", figures)

    def refuse(constant):
        raise AssertionError(constant)

    names = [
        trace.get("name")
        for figure in json.loads(figures, parse_constant=refuse)
        for trace in figure["data"]
    ]
    assert "&lt;/script&gt;&lt;!--" in names
    assert len(outline.all("div", **{"class": "plot"})) == len(json.loads(figures))


def test_the_question_is_the_headline_and_the_verdict_follows(document, outline):
    assert outline.text["h1"] == ["Does <one page> hold everything & nothing else?"]
    assert outline.text["title"] == ["A study"]
    assert document.index("</h1>") < document.index("verdict supported") < document.index("<main")
    assert Outline(render(Page("Only a title"))).text["h1"] == ["Only a title"]


def test_more_than_three_sections_get_a_table_of_contents():
    def links(n):
        page = Page("title", sections=[Section("Same title", []) for _ in range(n)])
        return [found["href"] for found in Outline(render(page)).all("a")]

    assert links(3) == []
    assert links(4) == ["#same-title", "#same-title-2", "#same-title-3", "#same-title-4"]


def test_sections_whose_titles_begin_alike_share_a_line_of_the_contents():
    titles = ["First", "Samples: CD", "Filters: CD", "Samples: PCD", "Alone: of its kind"]
    document = render(Page("title", sections=[Section(title, []) for title in titles]))
    contents = document[document.index("<nav") : document.index("</nav>")]
    lines = re.findall(r"<li.*?</li>", contents)
    assert [re.sub(r"<.*?>", "", line) for line in lines] == [
        "First",
        "Samples: CD PCD",
        "Filters: CD",
        "Alone: of its kind",
    ]
    links = [found["href"] for found in Outline(document).all("a")]
    assert links == ["#first", "#samples-cd", "#samples-pcd", "#filters-cd", "#alone-of-its-kind"]


def test_columns_of_amounts_with_their_errors_stand_to_the_right():
    rows = [["a", "-1.20 ± 0.03", "3 … 4"], ["b", "–", "x"], ["c", 2.5, None]]
    found = Outline(document_of(Table(["name", "amount", "range"], rows)))
    assert len(found.all("td", **{"class": "number"})) == 3


def test_neighbouring_figures_share_a_grid_and_tables_stand_alone():
    chart = LineChart("chart", "x", "y", [Curve("CD", [1], [1])])
    image = ImageGrid("image", np.zeros((1, 2, 2)))
    found = Outline(document_of(chart, image, Text("text"), chart, Table(["a"], [[1]])))
    assert len(found.all("div", **{"class": "grid"})) == 2


def test_a_page_without_charts_is_small():
    assert len(document_of(Text("text"), LineChart("empty", "x", "y", []))) < 20_000


def test_what_is_empty_says_so():
    empty = [
        LineChart("chart", "x", "y", []),
        Table(["a"], []),
        ImageGrid("image", np.zeros((0, 2, 2))),
    ]
    assert document_of(*empty).count(">No data<") == 3


def test_columns_of_numbers_are_aligned_to_the_right():
    rows = [["CD", 1.23456, 1], ["PCD", None, True]]
    found = Outline(document_of(Table(["name", "number", "mixed"], rows)))
    assert [cell.get("class") for cell in found.all("td")] == [None, "number", None] * 2
    assert found.text["td"] == ["CD", "1.235", "1", "PCD", "yes"]


def test_images_are_crisp_and_described(outline):
    descriptions = [found["alt"] for found in outline.all("img")]
    assert "Filters: 500 images of 28 × 28 pixels" in descriptions
    assert all("pixels" in found["class"].split() for found in outline.all("img"))
    (style,) = outline.text["style"]
    assert "image-rendering: pixelated" in style


def test_charts_are_described_and_legends_are_buttons(outline):
    plots = outline.all("div", **{"class": "plot"})
    assert all(found["role"] == "img" and found["aria-label"] for found in plots)
    assert plots[0]["aria-label"] == "Line chart of nats against epoch. Curves: CD, PCD."
    buttons = outline.all("button", **{"data-figure": "0"})
    assert [json.loads(found["data-traces"]) for found in buttons] == [[0, 2], [1, 3]]
    assert all(found["aria-pressed"] == "true" for found in buttons)


def test_provenance_is_a_definition_list(outline):
    assert outline.text["dt"] == ["command", "seed"]
    assert outline.text["dd"][1] == "0"
    assert Outline(render(Page("title"))).all("footer") == []


def test_the_same_page_gives_the_same_file(page, document):
    assert render(page) == document


def test_a_page_is_little_more_than_its_library(document):
    assert len(document) - len(_plotly()) < 700_000


def test_a_file_is_written_in_utf8_with_its_folder(tmp_path):
    path = write(Page("Wie groß ist β?"), tmp_path / "new" / "folder" / "page.html")
    assert "<h1>Wie groß ist β?</h1>" in path.read_text(encoding="utf-8")
    assert os.listdir(path.parent) == ["page.html"]


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "page.html"
    write(Page("old"), path)
    old = path.read_bytes()

    def fail(*arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="the disk is full"):
        write(Page("new"), path)
    assert os.listdir(tmp_path) == ["page.html"]
    assert path.read_bytes() == old


def test_a_page_that_cannot_be_rendered_touches_no_file(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write(Page("a lone surrogate: \ud800"), tmp_path / "folder" / "page.html")
    assert os.listdir(tmp_path) == []

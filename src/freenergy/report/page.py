"""What a page says: a question, its verdict, the evidence, and where the numbers come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from freenergy.report.charts import BarChart, HistogramChart, LineChart
from freenergy.report.images import ImageGrid

__all__ = ["Block", "Page", "Section", "Table", "Text", "Verdict"]

Status: TypeAlias = Literal["supported", "contradicted", "undecided", "info"]


@dataclass(frozen=True, slots=True)
class Text:
    """Paragraphs of plain text.

    Prose anywhere on a page may hold ```code``` between backticks and ``**bold**`` between pairs
    of asterisks. Everything else stands as it is.

    Parameters
    ----------
    paragraphs : str or sequence of str
        The paragraphs.

    Examples
    --------
    >>> Text("One paragraph with `code`.").paragraphs
    ('One paragraph with `code`.',)
    """

    paragraphs: str | Sequence[str]

    def __post_init__(self) -> None:
        given = self.paragraphs
        paragraphs = (given,) if isinstance(given, str) else tuple(given)
        object.__setattr__(self, "paragraphs", paragraphs)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of numbers and words under column names.

    Numbers are written with four significant digits, integers in full, and a column that holds
    only numbers is aligned to the right.

    Parameters
    ----------
    columns : sequence of str
        The names of the columns.
    rows : sequence of sequences
        The cells; ``None`` leaves one empty.
    caption : str, default=""
        The caption above the table.
    note : str, default=""
        A remark below it.

    Examples
    --------
    >>> Table(["method", "nats"], [["CD", -101.3], ["PCD", -89.9]]).columns
    ('method', 'nats')
    >>> Table(["method", "nats"], [["CD"]], caption="Test set")
    Traceback (most recent call last):
        ...
    ValueError: Table 'Test set': row 0 has 1 cells where there are 2 columns
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        columns = tuple(str(column) for column in self.columns)
        rows = tuple(tuple(row) for row in self.rows)
        for index, row in enumerate(rows):
            if len(row) != len(columns):
                raise ValueError(
                    f"Table {self.caption!r}: row {index} has {len(row)} cells "
                    f"where there are {len(columns)} columns"
                )
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "rows", rows)


Block: TypeAlias = Text | Table | LineChart | BarChart | HistogramChart | ImageGrid
"""Anything that a section may hold."""


@dataclass(frozen=True, slots=True)
class Section:
    """A titled part of a page.

    Parameters
    ----------
    title : str
        The heading.
    blocks : sequence of Text, Table, LineChart, BarChart, HistogramChart or ImageGrid
        The content, from top to bottom. Charts and images that follow one another stand side by
        side where the window is wide enough.
    intro : str, default=""
        A paragraph below the heading: what the section shows.

    Examples
    --------
    >>> Section("Method", [Text("Exact enumeration.")], intro="How it was measured.").title
    'Method'
    """

    title: str
    blocks: Sequence[Block]
    intro: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        for index, block in enumerate(self.blocks):
            if not isinstance(block, get_args(Block)):
                raise TypeError(
                    f"Section {self.title!r}: block {index} is a {type(block).__name__}, "
                    "which a page cannot show"
                )


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to a page's question, in words.

    Parameters
    ----------
    status : {"supported", "contradicted", "undecided", "info"}
        What the evidence says of the claim; ``"info"`` where there is no claim to judge.
    text : str
        The answer.

    Examples
    --------
    >>> Verdict("supported", "PCD wins on **all 12** data sets.").status
    'supported'
    >>> Verdict("maybe", "")
    Traceback (most recent call last):
        ...
    ValueError: status 'maybe' is none of supported, contradicted, undecided, info
    """

    status: Status
    text: str

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            choices = ", ".join(get_args(Status))
            raise ValueError(f"status {self.status!r} is none of {choices}")


@dataclass(frozen=True, slots=True)
class Page:
    """A whole report.

    Parameters
    ----------
    title : str
        The short name of the study, also the title of the browser window.
    question : str, default=""
        The question, in one sentence. It is the headline; without one the title is.
    verdict : Verdict, optional
        The answer, on a coloured card below the question.
    sections : sequence of Section
        The evidence. More than three get a table of contents.
    provenance : mapping of str to object
        Where the numbers come from (versions, seed, command, machine, date), at the foot.

    Examples
    --------
    >>> page = Page("Warm-up", "Does it run?", Verdict("info", "It does."), [], {"seed": 0})
    >>> page.provenance
    {'seed': 0}
    """

    title: str
    question: str = ""
    verdict: Verdict | None = None
    sections: Sequence[Section] = ()
    provenance: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sections", tuple(self.sections))
        object.__setattr__(self, "provenance", dict(self.provenance))
        for section in self.sections:
            if not isinstance(section, Section):
                raise TypeError(f"Page {self.title!r}: {section!r} is not a Section")

"""Parts of the page: sections of tables, figures, legends and notes. All text in them is escaped when rendered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, and additions to the text."""

    text: str
    interval: str = ""
    sign: int = 0
    """1 or -1 if the 95 % interval lies above or below 0, otherwise 0. A sign prints the number bold, with an arrow."""
    tag: str = ""
    """A label after the text, such as `research only`."""
    why: str = ""
    """Reason for a dash as text."""


@dataclass(frozen=True)
class Table:
    """A table with a header row. The first cell of a row names the row."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    words: frozenset[int] = frozenset()
    """Indices of the columns of text, set flush left. All other columns but the first hold numbers."""
    folded: bool = False
    """Whether the table is closed until the reader opens it."""
    note: str = ""
    groups: Mapping[int, str] = field(default_factory=dict)
    """Title of a group of rows by the index of its first row."""
    meanings: Mapping[str, str] = field(default_factory=dict)
    """Meaning of columns by title, a sentence each. The page shows them over the titles and in a folded list."""

    @property
    def cells(self) -> list[list[Cell]]:
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Figure:
    """A picture, with a description for readers who cannot see it."""

    kind: ClassVar[str] = "figure"
    source: str  # data URI
    alt: str
    caption: str
    width: int  # px at which its text is 11 pt


@dataclass(frozen=True)
class Note:
    """A sentence, or a list of sentences."""

    kind: ClassVar[str] = "note"
    lines: Sequence[str]


@dataclass(frozen=True)
class Legend:
    """Meaning of colours: pairs of a name and a colour."""

    kind: ClassVar[str] = "legend"
    entries: Sequence[tuple[str, str]]


Block = Table | Figure | Note | Legend


@dataclass(frozen=True)
class Section:
    """A part of the page: a text on how to read the section, then its blocks."""

    id: str
    title: str
    how: str
    blocks: Sequence[Block] = field(default_factory=list)

"""What the page is made of: sections of tables, figures and notes. All text in them is escaped when rendered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, and what stands beside it."""

    text: str
    interval: str = ""
    sign: int = 0
    """1 or -1 where the 95 % interval lies above or below 0: the number is then printed bold, with an arrow."""
    tag: str = ""
    """A label after the text, such as `research only`."""
    why: str = ""
    """Why the text is a dash."""


@dataclass(frozen=True)
class Table:
    """A table with a header row; the first cell of every row names it."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    words: frozenset[int] = frozenset()
    """Columns of text, set flush left; all others but the first hold numbers."""
    folded: bool = False
    """Whether the reader opens it."""
    note: str = ""
    meanings: Mapping[str, str] = field(default_factory=dict)
    """What columns mean, a sentence each: shown over their heads, and in a list that the reader opens."""

    @property
    def cells(self) -> list[list[Cell]]:
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Figure:
    """A picture with its description for those who cannot see it."""

    kind: ClassVar[str] = "figure"
    source: str  # data URI
    alt: str
    caption: str
    width: int  # px at which its text is 11 pt


@dataclass(frozen=True)
class Note:
    """A sentence, or a list of them."""

    kind: ClassVar[str] = "note"
    lines: Sequence[str]


@dataclass(frozen=True)
class Legend:
    """What colours mean: pairs of a name and a colour."""

    kind: ClassVar[str] = "legend"
    entries: Sequence[tuple[str, str]]


Block = Table | Figure | Note | Legend


@dataclass(frozen=True)
class Section:
    """A part of the page: how to read it, then its blocks."""

    id: str
    title: str
    how: str
    blocks: Sequence[Block] = field(default_factory=list)

"""The journal of a reviewer: a line for every pair that was shown and for every answer, never changed afterwards.

An answer is confirmed to the page after its line is on the disk. The table of verdicts is derived from all journals.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from pipeline.errors import BadInput
from pipeline.lock import alone
from pipeline.store import schema
from pipeline.store.tables import write_table
from pipeline.store.verdicts import STALE, Slots

REVIEWER = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
"""Names of reviewers, which become names of files. Small letters alone, since some disks take `Ann` for `ann`."""
TABLE = "verdicts.parquet"
"""Table of verdicts in the folder of a review."""
PATIENCE_S = 10.0
"""Seconds to wait for another server that writes the table."""

Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Answer = Literal["a", "b", "equal", "unusable"]
Side = Literal["left", "right"]
Draw = Literal["audit", "doubt", "repeat"]


class _Line(BaseModel):
    """A line of a journal."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    time: datetime = Field(default_factory=lambda: datetime.now(UTC))


class Shown(_Line):
    """A pair of masks that was drawn for the reviewer. Fields are columns of schema `VERDICTS`."""

    line: Literal["shown"] = "shown"
    showing: Id
    case_id: str
    group: str
    split: str
    mask_a: str
    mask_b: str
    a_side: Side
    draw: Draw
    target: str
    stratum: str
    disagreement: int
    population: int | None = None
    undone: Id | None = None
    """Showing of the same pair whose answer was undone. The pair is shown again before all others."""

    @property
    def pair(self) -> tuple[str, str, str]:
        """Case and masks."""
        return self.case_id, self.mask_a, self.mask_b


class Answered(_Line):
    """An answer to a pair that was shown."""

    line: Literal["answer"] = "answer"
    showing: Id
    answer: Answer
    seconds: Annotated[float, Field(ge=0)]


class Skipped(_Line):
    """A pair that was shown and left without an answer."""

    line: Literal["skip"] = "skip"
    showing: Id


class Undone(_Line):
    """The last answer or skip counts no longer."""

    line: Literal["undo"] = "undo"
    showing: Id


class SetAside(_Line):
    """Answers count no longer, because their masks are gone."""

    line: Literal["discard"] = "discard"
    showings: tuple[Id, ...]


Line = Shown | Answered | Skipped | Undone | SetAside
_LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="line")])


@dataclass
class History:
    """What the lines of one journal come to."""

    shown: dict[str, Shown] = field(default_factory=dict)
    closed: dict[str, Answered | Skipped] = field(default_factory=dict)
    """Answers and skips that count, by showing, in the order in which they were given."""
    gone: set[str] = field(default_factory=set)
    """Showings that were undone or set aside."""

    def add(self, line: Line) -> None:
        """Take up one more line. Raises `ValueError` for a line that cannot follow the lines before it."""
        if isinstance(line, Shown):
            if line.showing in self.shown:
                raise ValueError(f"showing {line.showing} is there twice")
            self.shown[line.showing] = line
        elif isinstance(line, SetAside):
            for showing in line.showings:
                self._close(showing)
        elif line.showing not in self.shown:
            raise ValueError(f"showing {line.showing} was never shown")
        elif isinstance(line, Undone):
            self._close(line.showing)
        elif line.showing in self.closed or line.showing in self.gone:
            raise ValueError(f"showing {line.showing} was answered before")
        else:
            self.closed[line.showing] = line

    def _close(self, showing: str) -> None:
        if showing not in self.closed:
            raise ValueError(f"showing {showing} has no answer that counts")
        del self.closed[showing]
        self.gone.add(showing)

    @property
    def counted(self) -> list[tuple[Shown, Answered]]:
        """Pairs with the answers that count, in the order of the answers."""
        return [(self.shown[key], given) for key, given in self.closed.items() if isinstance(given, Answered)]

    @property
    def waiting(self) -> list[Shown]:
        """Pairs without an answer, in the order in which they are shown: first what was undone, the last undo first."""
        left = [one for key, one in self.shown.items() if key not in self.closed and key not in self.gone]
        return [one for one in reversed(left) if one.undone] + [one for one in left if not one.undone]

    @property
    def last(self) -> str | None:
        """Showing of the answer or skip that an undo takes back."""
        return next(reversed(self.closed), None)


def read_journal(path: Path) -> tuple[History, int]:
    """What a journal comes to, and the length in bytes of its whole lines.

    A line without an end was never confirmed, and is left out. Raises `BadInput` with the number of a damaged line.
    """
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    history = History()
    for number, text in enumerate(content[:whole].splitlines(), start=1):
        try:
            history.add(_LINE.validate_json(text))
        except ValueError as error:
            found = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise BadInput(
                f"{path}: line {number}: expected a line as `segpref review` writes it, found an error: {found}; "
                "restore the file from a backup, or remove the line"
            ) from error
    return history, whole


class Journal:
    """A journal that this process alone writes."""

    def __init__(self, path: Path) -> None:
        """Open or create the journal at `path`, whose lock this process holds. A torn last line is cut off."""
        new = not path.exists()
        self.path = path
        # Without a buffer, bytes that a full disk refused are nowhere but with the caller.
        self._file = path.open("ab", buffering=0)
        if new:
            # A new name is safe on the disk only after its folder is.
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        self.history, self._length = read_journal(path)
        self.torn = path.stat().st_size - self._length
        """Number of bytes of a last line that was torn by a crash."""
        self._cut()

    def _cut(self) -> None:
        self._file.truncate(self._length)
        os.fsync(self._file.fileno())

    def write(self, *lines: Line) -> None:
        """Append lines. All are on the disk when the method returns. A write that fails leaves the file as before."""
        text = b"".join(line.model_dump_json(exclude_none=True).encode() + b"\n" for line in lines)
        # A cut that failed too may have left part of a line.
        self._file.truncate(self._length)
        try:
            rest = memoryview(text)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError:
            self._cut()
            raise
        self._length += len(text)
        for line in lines:
            self.history.add(line)

    def close(self) -> None:
        self._file.close()


def journal_file(folder: Path, reviewer: str) -> Path:
    """Journal of a reviewer in the folder of a review. Raises `BadInput` for a name that is no name of a file."""
    if not REVIEWER.fullmatch(reviewer):
        raise BadInput(
            f"reviewer: expected 1 to 40 small letters, digits, '-' and '_', found {reviewer[:60]!r}; choose another "
            "name"
        )
    return folder / "journal" / f"{reviewer}.jsonl"


@contextmanager
def opened(folder: Path, reviewer: str) -> Iterator[Journal]:
    """Journal of a reviewer, for this process alone. Raises `BadInput` if another process has it open."""
    path = journal_file(folder, reviewer)
    path.parent.mkdir(parents=True, exist_ok=True)
    with alone(path, f"the journal of reviewer '{reviewer}'"):
        journal = Journal(path)
        try:
            yield journal
        finally:
            journal.close()


def histories(folder: Path) -> dict[str, History]:
    """What the journals of a review come to, by reviewer.

    Raises `BadInput` for a damaged journal, and for a file whose name is no journal's.
    """
    found = {}
    for path in sorted((folder / "journal").glob("*.jsonl")):
        if not REVIEWER.fullmatch(path.stem):
            raise BadInput(
                f"{path}: expected the journal of a reviewer, whose name has 1 to 40 small letters, digits, '-' and "
                f"'_', found '{path.stem}'; move the file elsewhere, or give it the name of its reviewer"
            )
        found[path.stem] = read_journal(path)[0]
    return found


def check_masks(folder: Path, slots: Slots, discard: bool) -> int:
    """Refuse answers on masks that are gone, or set them aside with `discard`. Return the number set aside.

    Raises `BadInput` with the first of such answers, and as `histories` does.
    """
    aside, faults = 0, []
    for name, history in histories(folder).items():
        stale = _stale(history, slots)
        if stale and discard:
            with opened(folder, name) as journal:
                if now := _stale(journal.history, slots):
                    journal.write(SetAside(showings=tuple(now)))
                    aside += len(now)
        else:
            where = journal_file(folder, name)
            faults += [f"{where}: verdict on showing {showing}: {fault}" for showing, fault in stale.items()]
    if faults:
        others = f" ({len(faults)} such verdicts)" if len(faults) > 1 else ""
        raise BadInput(f"{faults[0]}{others}; {STALE}")
    return aside


def _stale(history: History, slots: Slots) -> dict[str, str]:
    """What is wrong with the masks of an answer, by showing."""
    return {shown.showing: fault for shown, _ in history.counted if (fault := slots.fault(*shown.pair))}


def verdicts(histories: dict[str, History]) -> pl.DataFrame:
    """Table of schema `VERDICTS`."""
    rows = [
        {
            **shown.model_dump(include=set(schema.VERDICTS.columns)),
            "reviewer": reviewer,
            "number": number,
            **given.model_dump(include={"answer", "seconds", "time"}),
        }
        for reviewer, history in histories.items()
        for number, (shown, given) in enumerate(history.counted, start=1)
    ]
    return pl.DataFrame(rows, schema=schema.VERDICTS.columns)


def write_verdicts(folder: Path) -> int:
    """Derive the table of verdicts from all journals of a review, and return the number of verdicts.

    No table is written before the first verdict. Raises `BadInput` if another process keeps the table locked.
    """
    path = folder / TABLE
    until = time.monotonic() + PATIENCE_S
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(alone(path))
                break
            except BadInput:
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
        # The journals are read under the lock, so that an older state never replaces a newer one.
        table = verdicts(histories(folder))
        if len(table) or path.exists():
            write_table(table, schema.VERDICTS, path, "segpref review")
    return len(table)

"""Patient, split and site of the cases, from a CSV beside the data."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from pipeline.cases.files.checks import case_id_of, check_case_id, inside
from pipeline.cases.readers.reader import CaseTable, Source
from pipeline.errors import BadInput
from pipeline.store.schema import SPLITS
from pipeline.store.tables import ROW, read_foreign_table

_UNKNOWN = frozenset(("na", "n/a", "#n/a", "<na>", "nan", "null", "none", "unknown", "missing", "-", "?", "."))
"""Words, in lower case, with which programs and people write that a patient or site is unknown."""
_NUMBER = re.compile(r"(?=.*\d)\+?(?P<sign>-?)0*(?P<whole>\d*)(?P<rest>\.\d*)?")
"""A plain number. Pseudonyms of letters and digits, such as `12e4567`, are no numbers."""


def described(sources: Sequence[Source], root: Path, table: CaseTable | None) -> tuple[list[Source], list[str]]:
    """Cases sorted by case id, with group, split and site from the table, and notes on names and doubtful cells.

    The reader calls a case by the name of its file, and `case_id_of` makes the case id. The table may hold the names or
    the ids. A missing row, column or cell keeps the value from the reader, and so does a group or site that is a word
    for unknown, such as `NA`. Raises `BadInput` for an unsafe or repeated case id, and for a table with missing
    columns, repeated or unknown cases, or a split that does not exist.
    """
    first: dict[str, Source] = {}
    notes = []
    if renamed := [source.case_id for source in sources if case_id_of(source.case_id) != source.case_id]:
        notes.append(
            f"{root}: {len(renamed)} names became case ids of plain characters, e.g. '{renamed[0]}' became "
            f"'{case_id_of(renamed[0])}'; `sources` of the cases table names the files"
        )
    for source in (replace(source, case_id=case_id_of(source.case_id)) for source in sources):
        check_case_id(source.case_id, root / source.image)
        if other := first.get(source.case_id):
            found = f"for {other.image} and {source.image}; rename one of them"
            if other.image == source.image:
                found = f"{source.image} twice; remove one entry"
            raise BadInput(f"{root}: case id '{source.case_id}' is expected once, found {found}")
        first[source.case_id] = source
    if table is None:
        return [first[case_id] for case_id in sorted(first)], notes
    frame = _frame(inside(root, table.file, "case_table.file"), table)
    if len(unknown := frame.filter(~pl.col("case_id").is_in(list(first)))):
        row, case_id = unknown.row(0)[:2]
        raise BadInput(
            f"{root / table.file}: expected cases of the data set, found {len(unknown)} unknown in column "
            f"'{table.case}', e.g. '{case_id}' in row {row}; remove these rows, or add the files"
        )
    for field, column in (("group", table.group), ("site", table.site)):
        if column is not None:
            notes += _doubts(frame, field, f"{table.file}: column '{column}'")
            is_known = ~pl.col(field).str.to_lowercase().is_in(list(_UNKNOWN))
            frame = frame.with_columns(pl.when(is_known).then(field))
    rows = {row["case_id"]: row for row in frame.iter_rows(named=True)}
    return [_merged(first[case_id], rows.get(case_id, {})) for case_id in sorted(first)], notes


def _merged(source: Source, row: Mapping[str, str | None]) -> Source:
    return replace(
        source,
        group=row.get("group") or source.group,
        split=row.get("split") or source.split,
        site=row.get("site") or source.site,
    )


def _frame(file: Path, table: CaseTable) -> pl.DataFrame:
    """Number of the row, and `case_id`, `group`, `split` and `site` as text, without the columns that are not named."""
    if not file.is_file():
        raise BadInput(
            f"{file}: expected a CSV file in UTF-8, found none; correct `case_table.file`, or remove `case_table` if "
            "every case is its own patient"
        )
    content = read_foreign_table(file, ROW)
    named = {"case_id": table.case, "group": table.group, "split": table.split, "site": table.site}
    columns = {field: column for field, column in named.items() if column is not None}
    if missing := [column for column in columns.values() if column not in content.columns]:
        raise BadInput(f"{file}: expected the columns {missing}, found {content.columns[1:]}; correct `case_table`")
    frame = content.select(ROW, *(pl.col(column).cast(pl.String).alias(field) for field, column in columns.items()))
    frame = frame.with_columns(pl.col("case_id").map_elements(case_id_of, pl.String))
    where: dict[str | None, int] = {}
    for number, case_id in frame.select(ROW, "case_id").iter_rows():
        if case_id is None:
            raise BadInput(
                f"{file}: row {number}, column '{table.case}': expected the id of a case, found an empty cell; correct "
                "or remove the row"
            )
        if case_id in where:
            raise BadInput(
                f"{file}: expected one row per case, found rows {where[case_id]} and {number} for '{case_id}'; keep "
                "one of them"
            )
        where[case_id] = number
    if "split" in frame.columns and len(wrong := frame.filter(~pl.col("split").is_in(SPLITS))):
        row = wrong.row(0, named=True)
        raise BadInput(
            f"{file}: row {row[ROW]}: case '{row['case_id']}': column '{table.split}' expected {', '.join(SPLITS)} or "
            f"nothing, found '{row['split']}'; correct the cell"
        )
    return frame


def _doubts(frame: pl.DataFrame, field: str, where: str) -> list[str]:
    """Notes on words for unknown, and on values that may be one value written in two ways."""
    what = {"group": "patient", "site": "site"}[field]
    written: dict[str, dict[str, int]] = defaultdict(dict)
    words: list[tuple[int, str]] = []
    for number, value in frame.select(ROW, field).drop_nulls().iter_rows():
        if value.lower() in _UNKNOWN:
            words.append((number, value))
        else:
            written[_meant(value)].setdefault(value, number)
    notes = []
    if words:
        number, word = words[0]
        effect = ", and each of these cases is a patient of its own" if field == "group" else ""
        notes.append(
            f"{where}: {len(words)} cells such as '{word}' (row {number}) are read as unknown{effect}; fill in the "
            f"{what} if it is known"
        )
    if doubtful := [list(ways.items()) for ways in written.values() if len(ways) > 1]:
        (one, first), (other, second) = doubtful[0][:2]
        others = f" ({len(doubtful)} such {what}s)" if len(doubtful) > 1 else ""
        effect = ", which may be in different splits" if field == "group" else ""
        notes.append(
            f"{where}: '{one}' (row {first}) and '{other}' (row {second}) may be one {what} written in two ways, and "
            f"are read as two{effect}{others}; write each {what} in one way"
        )
    return notes


def _meant(value: str) -> str:
    """The same text for values that a reader would take for one: `7` and `007`, `P7` and `p7`."""
    text = " ".join(unicodedata.normalize("NFKC", value).casefold().split())
    number = _NUMBER.fullmatch(text)
    return f"{number['sign']}{number['whole'] or 0}{(number['rest'] or '').rstrip('0').rstrip('.')}" if number else text

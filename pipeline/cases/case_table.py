"""Patient, split and site of the cases, from a CSV beside the data."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.cases.files.checks import check_case_id, inside
from pipeline.cases.readers.reader import CaseTable, Source
from pipeline.errors import BadInput
from pipeline.store.schema import SPLITS


def described(sources: Sequence[Source], root: Path, table: CaseTable | None) -> list[Source]:
    """Cases sorted by case id, with group, split and site from the table.

    A missing row, column or cell keeps the value from the reader. Raises `BadInput` for an unsafe or repeated case id,
    and for a table with missing columns, repeated or unknown cases, or a split that does not exist.
    """
    first: dict[str, Source] = {}
    for source in sources:
        check_case_id(source.case_id, source.image)
        if other := first.get(source.case_id):
            raise BadInput(
                f"{root}: case id '{source.case_id}' is expected once, found for {other.image} and {source.image}; "
                "rename one of them"
            )
        first[source.case_id] = source
    rows = {} if table is None else _rows(inside(root, table.file, "case_table.file"), table)
    if table is not None and (unknown := sorted(set(rows) - set(first))):
        raise BadInput(
            f"{root / table.file}: expected cases of the data set, found {len(unknown)} unknown in column "
            f"'{table.case}', e.g. '{unknown[0]}'; remove these rows, or add the files"
        )
    return [_merged(first[case_id], rows.get(case_id, {})) for case_id in sorted(first)]


def _merged(source: Source, row: dict[str, str]) -> Source:
    return replace(
        source,
        group=row.get("group", source.group),
        split=row.get("split", source.split),
        site=row.get("site", source.site),
    )


def _rows(file: Path, table: CaseTable) -> dict[str, dict[str, str]]:
    """Values of `group`, `split` and `site` in the table, by case id. Empty cells are left out."""
    columns = {
        field: column
        for field, column in (("group", table.group), ("split", table.split), ("site", table.site))
        if column is not None
    }
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            content = csv.DictReader(lines)
            header = list(content.fieldnames or [])
            cells = list(content)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(
            f"{file}: expected a CSV file in UTF-8 ({error}); correct `case_table.file`, or remove "
            "`case_table` if every case is its own patient"
        ) from error
    if missing := [column for column in (table.case, *columns.values()) if column not in header]:
        raise BadInput(f"{file}: expected the columns {missing}, found {header}; correct `case_table`")
    counts = Counter(row[table.case] for row in cells)
    if repeated := [case for case, count in counts.items() if count > 1]:
        raise BadInput(
            f"{file}: expected one row per case, found {counts[repeated[0]]} for '{repeated[0]}'; keep one of them"
        )
    rows = {
        row[table.case]: {field: text for field, column in columns.items() if (text := (row[column] or "").strip())}
        for row in cells
    }
    for case, row in rows.items():
        if row.get("split", SPLITS[0]) not in SPLITS:
            raise BadInput(
                f"{file}: case '{case}': column '{table.split}' expected {', '.join(SPLITS)} or nothing, "
                f"found '{row['split']}'; correct the cell"
            )
    return rows

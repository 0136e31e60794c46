"""Reading and writing the Parquet tables of the data contract."""

from __future__ import annotations

import csv
import errno
import os
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import polars as pl

from pipeline.errors import BadInput
from pipeline.store import schema
from pipeline.store.schema import TableSchema


def write_table(frame: pl.DataFrame, table: TableSchema, path: Path, made_by: object) -> None:
    """Write a table of the contract: checked, sorted by key, byte-stable, renamed into place when complete.

    The metadata of the file holds the `repr` of `made_by`. Raises `BadInput` for missing columns, nulls in columns that
    are not optional, NaN, and repeated keys.
    """
    missing = set(table.columns) - set(frame.columns)
    if missing:
        raise BadInput(f"{path}: table '{table.name}' lacks the columns {sorted(missing)}")
    frame = frame.select(pl.col(name).cast(dtype) for name, dtype in table.columns.items()).sort(table.key)
    for name, dtype in table.columns.items():
        if name not in table.optional and frame[name].null_count():
            raise BadInput(f"{path}: column '{name}' of table '{table.name}' has {frame[name].null_count()} nulls")
        if dtype == pl.Float64 and frame[name].is_nan().any():
            raise BadInput(f"{path}: column '{name}' of table '{table.name}' holds NaN; unknown values are null")
    if (repeated := frame.select(table.key).is_duplicated()).any():
        row = frame.filter(repeated).row(0, named=True)
        raise BadInput(f"{path}: key {table.key} of table '{table.name}' is repeated: {[row[k] for k in table.key]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        frame.write_parquet(
            partial,
            compression="zstd",
            compression_level=3,
            row_group_size=schema.ROW_GROUP,
            statistics=True,
            metadata={"schema": table.name, "version": str(schema.VERSION), "made_by": repr(made_by)},
        )
    except pl.exceptions.PolarsError as error:
        # On a full disk Polars says "File out of specification", and nothing of the disk.
        if shutil.disk_usage(path.parent).free < _FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    partial.replace(path)


_FULL = 1 << 20
"""Free bytes below which a disk is full."""


def scan_table(path: Path, table: TableSchema, to_do: str = "run `dvc repro`") -> pl.LazyFrame:
    """Lazy table of the contract. Errors say `to_do`, which makes the table anew.

    Raises `BadInput` for a missing or unreadable file, and for another schema name, version or column type.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such table; run the stage that writes it with `dvc repro`")
    try:
        found = pl.read_parquet_metadata(path)
        columns = pl.read_parquet_schema(path)
    except pl.exceptions.PolarsError as error:
        raise BadInput(f"{path}: not a readable Parquet file ({error}); remove it and {to_do}") from error
    for key, expected in (("schema", table.name), ("version", str(schema.VERSION))):
        if found.get(key) != expected:
            raise BadInput(f"{path}: expected {key} '{expected}', found '{found.get(key)}'; {to_do}")
    for name, dtype in table.columns.items():
        if columns.get(name) != dtype:
            raise BadInput(f"{path}: expected column '{name}' of type {dtype}, found {columns.get(name)}")
    return pl.scan_parquet(path)


def read_table(path: Path, table: TableSchema, to_do: str = "run `dvc repro`") -> pl.DataFrame:
    """Table of the contract, sorted by key. Raises `BadInput` as `scan_table` does."""
    return scan_table(path, table, to_do).select(list(table.columns)).collect()


ROW = "row of the file"
"""Name for the column with the number of a row, which no table of a user has."""


def read_foreign_table(path: Path, row: str | None = None) -> pl.DataFrame:
    """A table made by another tool: Parquet if the suffix is `.parquet`, else CSV with a header and text columns.

    Cells of a CSV file are stripped of spaces, and empty cells are null. Empty rows, and columns without a name, are
    left out. `row` names a further column with the number of each row as a spreadsheet counts: the header of a CSV file
    is row 1. Raises `BadInput` for a missing or unreadable file, for files of other formats by the name of the format,
    for other separators than commas, for a column that is there twice, and for rows of other lengths than the header.
    """
    refuse_no_table(path)
    if path.suffix == ".parquet":
        try:
            frame = pl.read_parquet(path)
        except pl.exceptions.PolarsError as error:
            raise BadInput(f"{path}: not a readable Parquet file ({error}); write it again") from error
        return frame if row is None else frame.with_row_index(row, offset=1)
    _refuse_other_format(path)
    with path.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.reader(lines, strict=True)
        try:
            return _frame(enumerate(reader, start=1), path, row)
        except csv.Error as error:
            raise BadInput(f"{path}: {_CSV}, found {error} in line {reader.line_num}; {_SAVE}") from error
        except UnicodeDecodeError as error:
            # The error knows its place in a piece of the file only.
            before, _, _ = path.read_bytes().decode("utf-8", errors="replace").partition("\ufffd")
            found = f"the byte {error.object[error.start]:#04x} in line {before.count(chr(10)) + 1}"
            raise BadInput(f"{path}: {_CSV}, found {found}; {_SAVE}") from error


def refuse_no_table(path: Path) -> None:
    """Refuse a missing table of the user."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file; paths are relative to the folder of params.yaml")


_CSV = "expected a CSV file in UTF-8"
_SAVE = "save it as CSV in UTF-8 (`CSV UTF-8` in a spreadsheet), with commas between the columns and decimal points"
_FORMATS = {
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
    b"PK\x03\x04": "a workbook (.xlsx) or another ZIP archive",
    b"\xd0\xcf\x11\xe0": "a workbook (.xls)",
    b"\x1f\x8b": "a compressed file",
}
"""Kinds of files that are taken for CSV files, by their first bytes."""
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "'|'"}
_BLOCK = 100_000


def _refuse_other_format(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(1024)
    if head.startswith(b"PAR1"):
        raise BadInput(f"{path}: {_CSV}, found a Parquet file; name it .parquet")
    found = next((kind for magic, kind in _FORMATS.items() if head.startswith(magic)), None)
    # No text in UTF-8 holds bytes of 0. UTF-16 without a mark of its own has one for every letter.
    if found or b"\0" in head:
        raise BadInput(f"{path}: {_CSV}, found {found or 'text in UTF-16, or a damaged file'}; {_SAVE}")


def _frame(rows: Iterator[tuple[int, list[str]]], path: Path, row: str | None) -> pl.DataFrame:
    """Table of the rows of a CSV file, each with its number. The first row that is not empty is the header."""
    filled = ((number, [cell.strip() for cell in cells]) for number, cells in rows if any(map(str.strip, cells)))
    _, header = next(filled, (0, []))
    if not header:
        raise BadInput(f"{path}: {_CSV} with a header, found an empty file; {_SAVE}")
    text = ",".join(header)
    for mark, name in _SEPARATORS.items():
        if text.count(mark) > text.count(","):
            raise BadInput(f"{path}: expected commas between the columns, found {name} in {text!r:.80}; {_SAVE}")
    names = [name for name in header if name]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(
            f"{path}: expected different names of columns, found '{twice[0]}' twice; rename or remove one of them"
        )
    places = [place for place, name in enumerate(header) if name]
    schema = {**({} if row is None else {row: pl.Int64()}), **dict.fromkeys(names, pl.String())}
    parts = [pl.DataFrame(schema=schema)]
    while block := list(islice(filled, _BLOCK)):
        for number, cells in block:
            if len(cells) != len(header):
                raise BadInput(
                    f"{path}: row {number}: expected {len(header)} cells as in the header, found {len(cells)} "
                    f"({', '.join(cells):.80}); correct the row"
                )
        columns = {header[place]: [cells[place] or None for _, cells in block] for place in places}
        numbers = {} if row is None else {row: [number for number, _ in block]}
        parts.append(pl.DataFrame({**numbers, **columns}, schema=schema))
    return pl.concat(parts)


def made_by(path: Path) -> str:
    """The `repr` of the `made_by` that a table was written with; empty if the metadata holds none."""
    return pl.read_parquet_metadata(path).get("made_by", "")

"""Reading and writing the Parquet tables of the data contract."""

from __future__ import annotations

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
    frame.write_parquet(
        partial,
        compression="zstd",
        compression_level=3,
        row_group_size=schema.ROW_GROUP,
        statistics=True,
        metadata={"schema": table.name, "version": str(schema.VERSION), "made_by": repr(made_by)},
    )
    partial.replace(path)


def scan_table(path: Path, table: TableSchema) -> pl.LazyFrame:
    """Lazy table of the contract.

    Raises `BadInput` for a missing or unreadable file, and for another schema name, version or column type.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such table; run the stage that writes it with `dvc repro`")
    try:
        found = pl.read_parquet_metadata(path)
        columns = pl.read_parquet_schema(path)
    except pl.exceptions.PolarsError as error:
        raise BadInput(f"{path}: not a readable Parquet file ({error}); remove it and run `dvc repro`") from error
    for key, expected in (("schema", table.name), ("version", str(schema.VERSION))):
        if found.get(key) != expected:
            raise BadInput(f"{path}: expected {key} '{expected}', found '{found.get(key)}'; run `dvc repro`")
    for name, dtype in table.columns.items():
        if columns.get(name) != dtype:
            raise BadInput(f"{path}: expected column '{name}' of type {dtype}, found {columns.get(name)}")
    return pl.scan_parquet(path)


def read_table(path: Path, table: TableSchema) -> pl.DataFrame:
    """Table of the contract, sorted by key. Raises `BadInput` as `scan_table` does."""
    return scan_table(path, table).select(list(table.columns)).collect()


def read_foreign_table(path: Path) -> pl.DataFrame:
    """A table made by another tool: Parquet if the suffix is `.parquet`, else CSV with a header and text columns.

    Raises `BadInput` for a missing or unreadable file.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file; paths are relative to the folder of params.yaml")
    try:
        return pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise BadInput(f"{path}: not a readable Parquet or CSV file: {error}") from error


def made_by(path: Path) -> str:
    """The `repr` of the `made_by` that a table was written with; empty if the metadata holds none."""
    return pl.read_parquet_metadata(path).get("made_by", "")

"""Reading and writing tables, arrays and manifests: the only file that opens Parquet or Zarr."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from pipeline.errors import BadInput
from pipeline.store import schema
from pipeline.store.schema import Array, Table

if TYPE_CHECKING:
    import zarr

MANIFEST = "manifest.json"


# ---- tables ----------------------------------------------------------------------------------------------------


def write_table(frame: pl.DataFrame, table: Table, path: Path, made_by: object) -> None:
    """Write a table of the contract: checked, sorted by key, byte-stable, renamed into place when complete.

    `made_by` is kept as its `repr` in the file's metadata. Raises `BadInput` for missing columns, nulls where the
    contract has none, NaN, and repeated keys.
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


def scan_table(path: Path, table: Table) -> pl.LazyFrame:
    """Lazy table of the contract, after checking the file's schema name, version and columns."""
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


def read_table(path: Path, table: Table) -> pl.DataFrame:
    """Table of the contract, in key order."""
    return scan_table(path, table).select(list(table.columns)).collect()


def read_foreign_table(path: Path) -> pl.DataFrame:
    """A table made by another tool: Parquet by its suffix, else CSV with a header, all of its columns text."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file; paths are relative to the folder of params.yaml")
    try:
        return pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise BadInput(f"{path}: not a readable Parquet or CSV file: {error}") from error


def made_by(path: Path) -> str:
    """The `repr` of what made a table."""
    return pl.read_parquet_metadata(path).get("made_by", "")


# ---- arrays ----------------------------------------------------------------------------------------------------


def _layout(array: Array, shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunk shape, one case deep (many for the small matrices), and the shape of whole chunks that hold a case."""
    if array is schema.DISAGREEMENT:
        chunk = [1, *shape[1:]]
    else:
        n_space = len(shape) - (len(array.axes) - 1)
        edge = schema.CHUNK[n_space]
        middle = [length if n_space == 2 else 1 for length in shape[1:-n_space]]
        chunk = [1, *middle, *(min(edge, length) for length in shape[-n_space:])]
    case_shape = [-(-length // edge) * edge for length, edge in zip(shape[1:], chunk[1:], strict=True)]
    return tuple(chunk), tuple(case_shape)


def cases_per_shard(n_cases: int, bytes_per_case: int) -> int:
    """Cases in one shard; it depends on the data alone, so any number of workers writes the same files."""
    if bytes_per_case > schema.SLAB_BYTES:
        return 1
    return max(1, min(-(-n_cases // schema.SHARDS), schema.SHARD_BYTES // max(1, bytes_per_case)))


@dataclass(frozen=True)
class Slabs:
    """How large cases are cut into shards: `rows` voxels each along the spatial axis `axis`."""

    axis: int
    rows: int

    @classmethod
    def of(cls, space: Sequence[int], bytes_per_voxel: int) -> Slabs | None:
        """Slabs of cases padded to `space`, or None where a case is small enough to be written at once."""
        if np.prod(space) * bytes_per_voxel <= schema.SLAB_BYTES:
            return None
        axis = int(np.argmax(space))
        edge = min(schema.CHUNK[len(space)], space[axis])
        thin = edge * bytes_per_voxel * int(np.prod(space)) // space[axis]
        return cls(axis, edge * max(1, schema.SLAB_BYTES // thin))


def create_array(folder: Path, array: Array, shape: Sequence[int], cases: int, slabs: Slabs | None = None) -> None:
    """Create an empty array whose shards hold `cases` cases, or one slab; until a shard is written it reads as fill."""
    import zarr
    from zarr.codecs import BloscCodec

    chunk, case_shape = _layout(array, shape)
    if array is schema.DISAGREEMENT:
        chunk = (cases, *chunk[1:])
    elif slabs is not None:
        n_space = len(shape) - (len(array.axes) - 1)
        along = len(case_shape) - n_space + slabs.axis
        case_shape = tuple(
            min(slabs.rows, length) if axis == along else length for axis, length in enumerate(case_shape)
        )
    zarr.create_array(
        zarr.storage.LocalStore(folder / f"{array.name}.zarr"),
        shape=tuple(shape),
        dtype=array.dtype,
        chunks=chunk,
        shards=(cases, *case_shape),
        fill_value=array.fill,
        compressors=BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=np.dtype(array.dtype).itemsize),
        attributes={"schema": array.name, "version": schema.VERSION, "axes": list(array.axes)},
        overwrite=True,
    )


def shard_cases(array: zarr.Array) -> int:
    """Cases in one shard of an array of the contract."""
    assert array.shards is not None
    return array.shards[0]


def open_array(folder: Path, array: Array, mode: str = "r") -> zarr.Array:
    """Open an array of the contract, after checking its name and version."""
    import zarr

    path = folder / f"{array.name}.zarr"
    if not (path / "zarr.json").is_file():
        raise BadInput(f"{path}: no such array; run the stage that writes it with `dvc repro`")
    opened = zarr.open_array(zarr.storage.LocalStore(path), mode=mode)
    found = (opened.attrs.get("schema"), opened.attrs.get("version"))
    if found != (array.name, schema.VERSION):
        raise BadInput(f"{path}: expected {(array.name, schema.VERSION)}, found {found}; run `dvc repro`")
    return opened


# ---- manifests -------------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: object) -> None:
    """Sorted, indented JSON, renamed into place; NaN and infinity are refused."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")
    partial.replace(path)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def write_manifest(folder: Path, made_by: object) -> None:
    """Hash every file of a finished store; written last: a store without it is unfinished."""
    files = {path.relative_to(folder).as_posix(): sha256(path) for path in _files(folder)}
    write_json(folder / MANIFEST, {"version": schema.VERSION, "made_by": repr(made_by), "sha256": files})


def check_manifest(folder: Path, content: bool = False) -> None:
    """Raise `BadInput` for an unfinished store, another version, and missing or (`content`) changed files."""
    path = folder / MANIFEST
    if not path.is_file():
        raise BadInput(f"{folder}: no {MANIFEST}: the store is missing or unfinished; run `dvc repro`")
    manifest = json.loads(path.read_text())
    if manifest["version"] != schema.VERSION:
        raise BadInput(f"{path}: expected version {schema.VERSION}, found {manifest['version']}; run `dvc repro`")
    for name, expected in manifest["sha256"].items():
        if not (folder / name).is_file():
            raise BadInput(f"{folder / name}: listed in {MANIFEST} but missing; run `dvc checkout` or `dvc repro`")
        if content and sha256(folder / name) != expected:
            raise BadInput(f"{folder / name}: differs from its SHA-256 in {MANIFEST}; run `dvc checkout`")

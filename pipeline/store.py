"""Reading and writing tables, arrays and manifests: the only file that opens Parquet or Zarr."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from pipeline import schema
from pipeline.errors import BadInput
from pipeline.schema import Array, Table

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
    """Chunk and shard shape: a chunk is one case (many for the small matrices), a shard is whole cases."""
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
    return max(1, min(-(-n_cases // schema.SHARDS), schema.SHARD_BYTES // max(1, bytes_per_case)))


def create_array(folder: Path, array: Array, shape: Sequence[int], cases: int) -> None:
    """Create an empty array whose shards hold `cases` cases; until a shard is written it reads as the fill value."""
    import zarr
    from zarr.codecs import BloscCodec

    chunk, case_shape = _layout(array, shape)
    if array is schema.DISAGREEMENT:
        chunk = (cases, *chunk[1:])
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


# ---- stores ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A row of the cases table."""

    case_id: str
    case: int
    group: str
    split: str
    has_label: bool
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    original_shape: tuple[int, ...]
    original_spacing_mm: tuple[float, ...] | None
    affine: tuple[float, ...] | None

    @classmethod
    def of(cls, row: Iterable[Any]) -> Case:
        """The case of a row that holds these columns in this order."""
        fields: Any = (tuple(value) if isinstance(value, list) else value for value in row)
        return cls(*fields)

    @property
    def space(self) -> tuple[Any, ...]:
        """What is real on the padded working grid."""
        return tuple(slice(0, length) for length in self.shape)

    @property
    def resampled(self) -> bool:
        """Whether the working grid is not the source's grid."""
        return self.shape != self.original_shape


@dataclass(frozen=True)
class CaseStore:
    """The folder that `prepare` writes: `cases.parquet`, images, labels and, after resampling, truth."""

    folder: Path

    def __reduce__(self) -> tuple[type[CaseStore], tuple[Path]]:
        return CaseStore, (self.folder,)  # arrays are opened in the worker

    @cached_property
    def table(self) -> pl.DataFrame:
        check_manifest(self.folder)
        return read_table(self.folder / "cases.parquet", schema.CASES)

    @cached_property
    def info(self) -> dict:
        """`cases.json`: class names, channel names."""
        return json.loads((self.folder / "cases.json").read_text())

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, background first."""
        return self.info["class_names"]

    @cached_property
    def all(self) -> list[Case]:
        """All cases in the order of the arrays."""
        columns = list(Case.__dataclass_fields__)
        rows: Iterable[tuple[Any, ...]] = self.table.sort("case").select(columns).iter_rows()
        return [Case.of(row) for row in rows]

    def split(self, *names: str) -> list[Case]:
        """Cases of these splits, in the order of the arrays."""
        return [case for case in self.all if case.split in names]

    @cached_property
    def _images(self) -> zarr.Array:
        return open_array(self.folder, schema.IMAGES)

    @cached_property
    def _labels(self) -> zarr.Array:
        return open_array(self.folder, schema.LABELS)

    @cached_property
    def _truth(self) -> zarr.Array:
        return open_array(self.folder, schema.TRUTH)

    @property
    def channels(self) -> int:
        return self._images.shape[1]

    @property
    def padded(self) -> tuple[int, ...]:
        """Spatial shape of the arrays."""
        return self._images.shape[2:]

    def image(self, case: Case) -> np.ndarray:
        """f32 `[channel, *space]` on the working grid, without padding."""
        return np.asarray(self._images[(case.case, slice(None), *case.space)])

    def label(self, case: Case) -> np.ndarray:
        """u8 `[*space]` on the working grid; raises `BadInput` where there is none."""
        if not case.has_label:
            raise BadInput(
                f"{self.folder}: case '{case.case_id}' has no label; only labelled cases have a truth to read"
            )
        return np.asarray(self._labels[(case.case, *case.space)])

    def truth(self, case: Case) -> np.ndarray:
        """u8 `[*space]` on the source's grid: what metrics are measured on."""
        if not case.resampled:
            return self.label(case)
        if not case.has_label:
            raise BadInput(
                f"{self.folder}: case '{case.case_id}' has no label; only labelled cases have a truth to read"
            )
        space: tuple[Any, ...] = tuple(slice(0, length) for length in case.original_shape)
        return np.asarray(self._truth[(case.case, *space)])


@dataclass(frozen=True)
class ProposalStore:
    """The folder that `propose` writes: `proposals.parquet`, masks, mean probability and disagreement."""

    folder: Path

    def __reduce__(self) -> tuple[type[ProposalStore], tuple[Path]]:
        return ProposalStore, (self.folder,)

    @cached_property
    def table(self) -> pl.DataFrame:
        check_manifest(self.folder)
        return read_table(self.folder / "proposals.parquet", schema.PROPOSALS)

    @cached_property
    def _masks(self) -> zarr.Array:
        return open_array(self.folder, schema.MASKS)

    @cached_property
    def _probability(self) -> zarr.Array:
        return open_array(self.folder, schema.PROBABILITY)

    @cached_property
    def _disagreement(self) -> zarr.Array:
        return open_array(self.folder, schema.DISAGREEMENT)

    def case_ids(self) -> list[str]:
        """Cases that have proposals."""
        return self.table["case_id"].unique(maintain_order=True).to_list()

    def masks(self, case: Case, slots: Sequence[int] | None = None) -> np.ndarray:
        """u8 `[proposal, *space]`, without padding; `slots` chooses and orders proposals."""
        block = np.asarray(self._masks[(case.case, slice(None), *case.space)])
        return block if slots is None else block[list(slots)]

    def mask_hashes(self, case: Case) -> list[str]:
        """One short hash per proposal: whether a score that came from outside is of this very mask."""
        return [hashlib.blake2b(mask.tobytes(), digest_size=8).hexdigest() for mask in self.masks(case)]

    def probability(self, case: Case) -> np.ndarray:
        """f32 `[class, *space]`, the mean over proposals that have probabilities, in steps of 1/255."""
        return np.asarray(self._probability[(case.case, slice(None), *case.space)]).astype(np.float32) / 255

    def disagreement(self, case: Case) -> np.ndarray:
        """u32 `[proposal, proposal]`: voxels on which two proposals differ."""
        return np.asarray(self._disagreement[case.case])

    def disagreement_of(self, rows: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """|D| of many pairs: array rows and two slots each, all `[n]`; one read per shard."""
        out = np.empty(len(rows), np.int64)
        step = self._disagreement.chunks[0]
        order = np.argsort(rows, kind="stable")
        bounds = np.searchsorted(rows[order], np.arange(0, self._disagreement.shape[0] + step, step))
        for start, (low, high) in enumerate(pairwise(bounds.tolist())):
            if low < high:
                block = np.asarray(self._disagreement[start * step : (start + 1) * step])
                at = order[low:high]
                out[at] = block[rows[at] - start * step, first[at], second[at]]
        return out

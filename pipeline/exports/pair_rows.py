"""Rows of an exported pair set, and the Parquet shards that hold the rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.exports.pair_files import Pictures, Volumes
from pipeline.pairs.masks import pair_masks
from pipeline.store.cases import Case, CaseStore
from pipeline.store.manifest import sha256
from pipeline.store.proposals import ProposalStore

SHARD_BYTES = 256 * 2**20
"""Largest number of bytes of image files in a shard. A single pair may be larger."""
GROUP_BYTES = 32 * 2**20
"""Largest number of bytes of image files in a row group. A row group is in memory while it is made or read."""


class Column(NamedTuple):
    """Type and meaning of a column of the shards."""

    type: pa.DataType
    meaning: str


_FILE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
_TEXT, _REAL, _REALS = pa.string(), pa.float64(), pa.list_(pa.float64())

COLUMNS = {
    "image": Column(_FILE, "image on the working grid"),
    "chosen": Column(_FILE, "preferred mask: class indices on the grid of the image; 255 is unknown"),
    "rejected": Column(_FILE, "the other mask"),
    "scale": Column(_REALS, "per channel: intensity per number of `image` (PNG only)"),
    "offset": Column(_REALS, "per channel: intensity of the number 0 (PNG only)"),
    "margin": Column(_REAL, "score of the chosen mask minus score of the rejected mask, in units of the judge"),
    "p_correct": Column(_REAL, "P(the order is right) by the audit of the judge; null if not estimated"),
    "judge": Column(_TEXT, "name of the judge"),
    "strategy": Column(_TEXT, "kind of the strategy that made pairs from scores"),
    "case_id": Column(_TEXT, "case; several pairs may share one"),
    "group": Column(_TEXT, "patient or exam; the case if unknown"),
    "spacing_mm": Column(_REALS, "edges of a voxel along the axes of the masks; null if unknown"),
    "class_names": Column(pa.list_(pa.string()), "names of the class indices, background first"),
    "chosen_score": Column(_REAL, "score of the chosen mask; higher is better"),
    "rejected_score": Column(_REAL, "score of the rejected mask"),
    "disagreement": Column(pa.int64(), "number of voxels on which the masks differ, without voxels that are 255"),
    "chosen_sampler": Column(_TEXT, "what made the chosen mask"),
    "rejected_sampler": Column(_TEXT, "what made the rejected mask"),
}
"""Columns of the shards. `scale` and `offset` are in shards with PNG alone."""

_OF_PAIR = (
    *("margin", "p_correct", "judge", "strategy", "case_id", "chosen_score", "rejected_score", "disagreement"),
    *("chosen_sampler", "rejected_sampler"),
)


def columns_of(files: Pictures | Volumes) -> dict[str, Column]:
    """The columns of shards with files of this form."""
    without = () if isinstance(files, Pictures) else ("scale", "offset")
    return {name: column for name, column in COLUMNS.items() if name not in without}


def rows_of(
    pairs: pl.DataFrame, cases: CaseStore, proposals: ProposalStore, files: Pictures | Volumes
) -> Iterator[dict[str, Any]]:
    """One row per pair of a table of schema `PAIRS`, in its order. One image and two masks are read at a time.

    Raises `BadInput` if the cases or the proposals are not those of the pairs.
    """
    for (case_id,), of_case in pairs.group_by("case_id", maintain_order=True):
        case = cases.case(str(case_id))
        image = files.image(cases.image(case), case)
        for pair in of_case.to_dicts():
            yield image | _masks(pair, case, proposals, files) | _facts(pair, case, cases)


def _masks(pair: dict[str, Any], case: Case, proposals: ProposalStore, files: Pictures | Volumes) -> dict[str, Any]:
    chosen, rejected = pair_masks(pair, case, proposals)
    return {
        "chosen": files.mask(chosen, case, f"{pair['chosen']:02d}"),
        "rejected": files.mask(rejected, case, f"{pair['rejected']:02d}"),
    }


def _facts(pair: dict[str, Any], case: Case, cases: CaseStore) -> dict[str, Any]:
    spacing = None if case.spacing_mm is None else list(case.spacing_mm)
    of_case = {"group": case.group, "spacing_mm": spacing, "class_names": cases.class_names}
    return of_case | {name: pair[name] for name in _OF_PAIR}


def write_shards(rows: Iterable[dict[str, Any]], files: Pictures | Volumes, folder: Path) -> list[str]:
    """Write the rows to shards in a new folder. Return the names of the shards: `train-NUMBER-of-TOTAL-HASH.parquet`.

    The metadata of the shards tells the package `datasets` to decode the image files. Equal rows give equal bytes and
    names. HASH belongs to the content of all shards: `datasets` knows a data set that it has loaded before by the name
    of the folder and the names of its files, and would take another content under the same names for the old one.
    """
    folder.mkdir()
    written = []
    for number, placed in groupby(_placed(rows), itemgetter(0)):
        written.append(folder / f"{number:05d}.partial")
        with pq.ParquetWriter(written[-1], _schema(files), compression="zstd") as writer:
            for _, members in groupby(placed, itemgetter(1)):
                writer.write_table(pa.Table.from_pylist([row for *_, row in members], _schema(files)))
    content = hashlib.sha256("".join(sha256(shard) for shard in written).encode()).hexdigest()[:16]
    names = [f"train-{number:05d}-of-{len(written):05d}-{content}.parquet" for number in range(len(written))]
    for shard, name in zip(written, names, strict=True):
        shard.rename(folder / name)
    return names


def _schema(files: Pictures | Volumes) -> pa.Schema:
    columns = {name: column.type for name, column in columns_of(files).items()}
    if isinstance(files, Pictures) and files.listed:
        columns["image"] = pa.list_(_FILE)
    return pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": files.features}})})


def _placed(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Number of the shard, number of the row group, and the row itself."""
    shard = group = in_shard = in_group = 0
    for row in rows:
        size = _size(row)
        if in_shard and in_shard + size > SHARD_BYTES:
            shard, group, in_shard, in_group = shard + 1, group + 1, 0, 0
        elif in_group and in_group + size > GROUP_BYTES:
            group, in_group = group + 1, 0
        in_shard, in_group = in_shard + size, in_group + size
        yield shard, group, row


def _size(row: dict[str, Any]) -> int:
    """Bytes of the image files of a row."""
    images = row["image"] if isinstance(row["image"], list) else [row["image"]]
    return sum(len(file["bytes"]) for file in (*images, row["chosen"], row["rejected"]))

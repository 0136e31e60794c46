"""Writing the case store from a raw data set: images, labels, splits and the source files of every case."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from pipeline.cases.boxes import Crops, crops_of
from pipeline.cases.case_table import described
from pipeline.cases.data_checks import check_axes, check_voxels, names_of
from pipeline.cases.duplicates import duplicates, duplicates_text, pixel_hash, with_duplicates_grouped
from pipeline.cases.files.image_file import is_volume
from pipeline.cases.grid import to_working
from pipeline.cases.nnunet_split import with_given_split
from pipeline.cases.preprocess import Preprocess, one_orientation
from pipeline.cases.readers import Reader
from pipeline.cases.readers.reader import Source, stamps
from pipeline.cases.splits import Splits, assign
from pipeline.errors import BadInput
from pipeline.execution import CaseFailures, Execution, Limits, Shard, run, shards_of
from pipeline.store import schema
from pipeline.store.arrays import cases_per_shard, create_array, open_array
from pipeline.store.cases import Case, is_known
from pipeline.store.manifest import MANIFEST, sha256, write_json, write_manifest
from pipeline.store.tables import write_table
from pipeline.workspace import publish, workspace

if TYPE_CHECKING:
    from pipeline.cases.preprocess_of_plans import PreprocessOfPlans

_FLAGS = ("foreground", "only_ignore", "lost")
"""Flags of the label of a case, for the notes. The case table has no such column."""

_BLACK_AND_WHITE = (
    "if masks are stored as 0 and 255, set `foreground_above: 127` (layout `folders`), or save class indices"
)
"""Advice on labels that hold 255 where a class is meant."""

_WORKING_COPIES = 3
"""Memory of a shard in work, in multiples of the raw bytes of its cases.

The shard holds the blocks, the compressed copies of the blocks, and the case that is read.
"""


@dataclass(frozen=True)
class _Planned:
    """A case as a row of the store, and the source to read the case from."""

    case: Case
    source: Source


@dataclass(frozen=True)
class _PrepareShard:
    """Task that reads the cases of a shard and writes the shard of every array.

    Every array is written in one assignment, so that a Zarr shard is compressed and written once.
    """

    reader: Reader
    preprocess: Preprocess
    folder: Path
    channels: int
    padded: tuple[int, ...]
    truth: tuple[int, ...] | None  # padded shape on the source's grid; None if no case is resampled

    def __call__(self, shard: Shard) -> pl.DataFrame:
        cases: tuple[_Planned, ...] = shard.members
        first, count = cases[0].case.case, len(cases)
        blocks = {schema.IMAGES: _filled(schema.IMAGES, (count, self.channels, *self.padded))}
        blocks[schema.LABELS] = _filled(schema.LABELS, (count, *self.padded))
        if self.truth is not None:
            blocks[schema.TRUTH] = _filled(schema.TRUTH, (count, *self.truth))
        failures = CaseFailures()
        rows = []
        for place, planned in enumerate(cases):
            with failures.of(planned.source.case_id):
                rows.append(self._case(planned, place, blocks))
        failures.raise_any()
        for array, block in blocks.items():
            open_array(self.folder, array, "r+")[first : first + count] = block
        columns = {**schema.CASES.columns, **dict.fromkeys(_FLAGS, pl.Boolean()), "pixels": pl.String()}
        return pl.DataFrame(rows, schema=columns)

    def _case(self, planned: _Planned, place: int, blocks: dict[schema.ArraySchema, np.ndarray]) -> dict[str, Any]:
        """Read a case into its place in the blocks. Returns the row of the case table, three flags of the label, and
        the hash `pixels` of the image.

        `foreground`: the label holds a class above 0. `only_ignore`: the label holds 255, and 0 elsewhere. `lost`: the
        label is 255 everywhere on the working grid.
        """
        case, source = planned.case, planned.source
        image, label = self.reader.read(source)
        check_voxels(image, label, source, self.channels, self.reader.path)
        _put(self.preprocess.image(image, case), blocks[schema.IMAGES][place])
        lost = False
        if label is not None:
            working = to_working(label, case)
            lost = not is_known(working)
            _put(working, blocks[schema.LABELS][place])
            if self.truth is not None:
                _put(label, blocks[schema.TRUTH][place])
        files = source.files
        return {
            **asdict(case),
            "site": source.site,
            "sources": files,
            "sha256": [sha256(self.reader.path / file) for file in files],
            "pixels": pixel_hash(image),
            "only_ignore": label is not None
            and bool((label == schema.UNKNOWN).any() and (label == schema.UNKNOWN)[label > 0].all()),
            "lost": lost,
            "foreground": label is not None and bool(((label > 0) & (label != schema.UNKNOWN)).any()),
        }


def prepare(
    reader: Reader, knobs: Preprocess | PreprocessOfPlans, splits: Splits, out: Path, execution: Execution
) -> None:
    """Write `cases.parquet`, `cases.json`, images, labels and, if a case is resampled, truth; the manifest last.

    Cases are sorted by split, then by case id. The label of a case without a label is 255 everywhere. Raises one
    `BadInput` with every bad case. `out` is written only if all cases are good. The store holds the block that plans
    ask for, as if the block were in `params.yaml`.
    """
    class_names, channel_names = names_of(reader)
    sources, on_table = described(reader.scan(), reader.path, reader.case_table)
    sources = with_given_split(sources, splits.given, reader.path)
    check_axes(sources, reader)
    if splits.duplicates == "group":
        sources = with_duplicates_grouped(sources, reader, execution)
    assigned, on_splits = assign(sources, splits)
    notes = [*on_table, *on_splits]
    for note in notes:
        print(note, file=sys.stderr)
    used = [source for source in sources if source.case_id in assigned]
    preprocess = knobs.for_sources(used)
    orientation = one_orientation(sources) if preprocess.orientation is None else preprocess.orientation
    plan = _planned(used, assigned, preprocess, crops_of(used, reader, preprocess, execution))
    cases = [planned.case for planned in plan]
    padded = _longest(case.shape for case in cases)
    original = _longest(case.original_shape for case in cases)
    truth = original if any(case.resampled for case in cases) else None
    channels = len(channel_names)
    case_bytes = 4 * channels * int(np.prod(padded)) + (int(np.prod(original)) if truth else 0)
    size = cases_per_shard(len(plan), case_bytes)
    arrays = {schema.IMAGES: (len(plan), channels, *padded), schema.LABELS: (len(plan), *padded)}
    if truth is not None:
        arrays[schema.TRUTH] = (len(plan), *truth)

    read = stamps([planned.source for planned in plan], reader.path)
    with workspace("prepare", __name__, (reader, class_names, preprocess, splits, plan, read), inputs=[]) as work:
        if not any((work / "done").glob("*.arrow")):
            for array, shape in arrays.items():
                create_array(work, array, shape, size)
        rows = run(
            _PrepareShard(reader, preprocess, work, channels, padded, truth),
            shards_of(plan, size, key=lambda planned: planned.case.case),
            work,
            execution,
            "prepare",
            Limits(_WORKING_COPIES * size * case_bytes),
        )
        notes += _label_notes(rows, reader)
        repeated = duplicates(dict(rows.select("case_id", "pixels").iter_rows()))
        notes += _duplicate_notes(repeated, assigned, splits, reader.path)
        _clear(out)
        for array in arrays:
            publish(work / f"{array.name}.zarr", out / f"{array.name}.zarr")
        made_by = (reader.model_dump(exclude={"path"}), preprocess, splits)
        write_table(rows, schema.CASES, out / "cases.parquet", made_by)
        info = {
            "class_names": class_names,
            "channel_names": channel_names,
            "kind": reader.kind,
            "notes": notes,
            "preprocess": preprocess.model_dump(mode="json"),
            "orientation": orientation,
            "convert": getattr(reader, "channels", None),
            "files": _family(plan),
            "mask_values": None if getattr(reader, "foreground_above", None) is None else [0, 255],
            "duplicates": repeated,
        }
        write_json(out / "cases.json", info)
        write_manifest(out, made_by)


def _planned(
    sources: Sequence[Source], assigned: Mapping[str, str], preprocess: Preprocess, crops: Crops
) -> list[_Planned]:
    """Cases of assigned sources in the order of the arrays: by split, then by case id."""
    order = sorted(sources, key=lambda source: (schema.SPLITS.index(assigned[source.case_id]), source.case_id))
    return [
        _Planned(case_of(row, assigned[source.case_id], source, preprocess, crops[source.case_id]), source)
        for row, source in enumerate(order)
    ]


def _label_notes(rows: pl.DataFrame, reader: Reader) -> list[str]:
    """Notes on labels of nothing but background and 255, and on labels of 255 alone; the notes are printed too.

    Raises `BadInput` where no label has foreground. The advice fits the knobs of the reader.
    """
    above = getattr(reader, "foreground_above", None)
    if rows["has_label"].any() and not rows["foreground"].any():
        if above is not None:
            raise BadInput(
                f"{reader.path}: expected foreground in at least one label, found no pixel brighter than "
                f"{above} (`foreground_above`); lower the number, or correct the masks"
            )
        raise BadInput(
            f"{reader.path}: expected foreground in at least one label, found only 0 and {schema.UNKNOWN} "
            f"(ignore); {_BLACK_AND_WHITE}"
        )
    notes = []
    if doubtful := sorted(rows.filter("only_ignore")["case_id"]):
        notes.append(
            f"labels: {len(doubtful)} cases hold only background and 255 (ignore), e.g. '{doubtful[0]}'; "
            f"{_BLACK_AND_WHITE}"
        )
    if lost := sorted(rows.filter("lost")["case_id"]):
        notes.append(
            f"labels: {len(lost)} cases hold only 255 (ignore) on the working grid, e.g. '{lost[0]}'; validation and "
            "judges leave them out"
        )
    for note in notes:
        print(note, file=sys.stderr)
    return notes


def _duplicate_notes(
    repeated: Sequence[Sequence[str]], assigned: Mapping[str, str], splits: Splits, data_root: Path
) -> list[str]:
    """Note on images that occur more than once; the note is printed too. Raises `BadInput` if they are refused."""
    if not repeated:
        return []
    found = duplicates_text(repeated, assigned)
    if splits.duplicates == "refuse":
        raise BadInput(
            f"{data_root}: expected every image once (splits.duplicates: refuse), found that {found}; remove the "
            "copies, or set splits.duplicates: group"
        )
    way_out = "" if splits.duplicates == "group" else "; set splits.duplicates: group, or remove the copies"
    note = f"duplicates: {found}{way_out}"
    print(note, file=sys.stderr)
    return [note]


def case_of(row: int, split: str, source: Source, preprocess: Preprocess, crop: tuple[int, ...] | None = None) -> Case:
    """The case of a source, with the working grid. `row` is the row of the case in the arrays, `crop` the column."""
    grid = preprocess.grid(source, crop)
    return Case(
        case_id=source.case_id,
        case=row,
        group=source.group or source.case_id,
        split=split,
        has_label=source.label is not None,
        shape=grid.shape,
        spacing_mm=grid.spacing_mm,
        original_shape=source.shape,
        original_spacing_mm=source.spacing_mm,
        affine=source.affine,
        orientation=grid.orientation,
        crop=grid.crop,
    )


def _clear(out: Path) -> None:
    """Remove an earlier store. The manifest goes first, so that a half-written store never looks finished."""
    out.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST, "cases.parquet", "cases.json"):
        (out / name).unlink(missing_ok=True)
    for array in (schema.IMAGES, schema.LABELS, schema.TRUTH):
        if (path := out / f"{array.name}.zarr").exists():
            shutil.rmtree(path)


def _filled(array: schema.ArraySchema, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, array.fill, array.dtype)


def _put(values: np.ndarray, padded: np.ndarray) -> None:
    padded[tuple(slice(0, length) for length in values.shape)] = values


def _longest(shapes: Any) -> tuple[int, ...]:
    return tuple(max(lengths) for lengths in zip(*shapes, strict=True))


def _family(plan: Sequence[_Planned]) -> str | None:
    """Family of the image files: `nifti` (with NRRD and MetaImage) or `pictures`, which order axes differently.

    None for cases without files.
    """
    image = plan[0].source.image
    return None if not image else "nifti" if is_volume(image) else "pictures"

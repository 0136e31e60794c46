"""The cases on disk: case table, images, labels and truth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from pipeline.errors import BadInput
from pipeline.store import schema
from pipeline.store.arrays import open_array, read_array
from pipeline.store.manifest import check_manifest, read_json, write_json
from pipeline.store.tables import read_table

if TYPE_CHECKING:
    import zarr

INPUT = "input.json"
"""File beside the weights of a model. The file describes the images of the model and their preprocessing."""

INPUT_KEYS = ("class_names", "channel_names", "preprocess", "orientation", "convert", "files", "mask_values")
"""Keys of `input.json`.

- `class_names`, `channel_names`: names of classes and channels.
- `preprocess`: the knobs of `preprocess`.
- `orientation`: orientation of volumes on the working grid, such as `RAS`; `unknown` if the files have no orientation;
  null for 2D images.
- `convert`: `grey` or `rgb` if the reader converts images, else null.
- `files`: `nifti` (also for NRRD and MetaImage) or `pictures`; null for phantoms.
- `mask_values`: value of each class in the user's mask files; null if they hold class indices.
"""


Where = tuple[slice, ...]
"""A box of the working grid, one slice per spatial axis."""


@dataclass(frozen=True)
class Case:
    """A row of the case table. Fields are the columns of `schema.CASES` but `site`, `sources` and `sha256`."""

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
    orientation: tuple[int, ...] | None = None
    crop: tuple[int, ...] | None = None

    @classmethod
    def of(cls, row: Iterable[Any]) -> Case:
        """The case of a row whose columns are the fields in their order."""
        fields: Any = (tuple(value) if isinstance(value, list) else value for value in row)
        return cls(*fields)

    @property
    def space(self) -> tuple[Any, ...]:
        """Box of the case on the padded working grid. Voxels beyond the box are padding."""
        return tuple(slice(0, length) for length in self.shape)

    @property
    def box(self) -> tuple[slice, ...]:
        """Box of the source's grid that the working grid covers, one slice per source axis."""
        if self.crop is None:
            return tuple(slice(0, length) for length in self.original_shape)
        return tuple(slice(*ends) for ends in zip(self.crop[::2], self.crop[1::2], strict=True))

    @property
    def cropped_shape(self) -> tuple[int, ...]:
        """Voxels of `box` per source axis."""
        return tuple(part.stop - part.start for part in self.box)

    @property
    def resampled(self) -> bool:
        """Whether the working grid differs from the source's grid in voxels or in axes."""
        return self.shape != self.original_shape or self.orientation is not None or self.crop is not None


@dataclass(frozen=True)
class Volume:
    """Part of an array that belongs to a case, `[*lead, *space]` without padding. Slicing reads from disk."""

    array: zarr.Array
    case: Case
    space: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.array.shape[1 : self.array.ndim - len(self.space)], *self.space)

    def __getitem__(self, where: Any) -> np.ndarray:
        """Values of the box `where`, one slice per axis or one slice for all axes, clipped to the case."""
        every = where if isinstance(where, tuple) else (where,) * len(self.shape)
        ends: Any = (slice(*part.indices(length)[:2]) for part, length in zip(every, self.shape, strict=True))
        return read_array(self.array, (self.case.case, *ends))


Values = Volume | np.ndarray
"""Image or label of a case, on disk or in memory. Slices read the values."""


def fits(space: Sequence[int], window: Sequence[int]) -> bool:
    """Whether a case of shape `space` is at most as large as the window along every axis."""
    return all(have <= want for have, want in zip(space, window, strict=True))


_ROWS = 32


def is_known(label: Values) -> bool:
    """Whether a label u8 `[*space]` says anything: at least one voxel is not 255.

    A case without a known voxel has no Dice: two empty masks would be compared, which agree perfectly.
    """
    # A few rows at a time: most labels are known in their first rows, and a large label stays on disk.
    rest = (slice(None),) * (len(label.shape) - 1)
    starts = range(0, label.shape[0], _ROWS)
    return any(bool((label[(slice(start, start + _ROWS), *rest)] != schema.UNKNOWN).any()) for start in starts)


@dataclass(frozen=True)
class LabelledCases:
    """Cases with their images and labels, each in memory or left on disk."""

    cases: Sequence[Case]
    images: Sequence[Values]  # f32 [channel, *space]
    labels: Sequence[Values]  # u8 [*space]

    @property
    def groups(self) -> list[str]:
        """Patient or exam of each case."""
        return [case.group for case in self.cases]

    def known(self) -> LabelledCases:
        """The cases whose label is known somewhere. Raises `BadInput` if there are none."""
        rows = [row for row in zip(self.cases, self.images, self.labels, strict=True) if is_known(row[2])]
        if not rows:
            raise BadInput(
                f"expected a label with at least one known voxel, found {schema.UNKNOWN} (unknown) "
                f"everywhere in all {len(self.cases)} cases; correct their labels"
            )
        return LabelledCases(*zip(*rows, strict=True))


@dataclass(frozen=True)
class CaseStore:
    """The folder that `prepare` writes: `cases.parquet`, images, labels and, if a case is resampled, truth."""

    folder: Path

    def __reduce__(self) -> tuple[type[CaseStore], tuple[Path]]:
        return type(self), (self.folder,)  # opened arrays do not travel: the worker opens them again

    @cached_property
    def table(self) -> pl.DataFrame:
        """The case table. Raises `BadInput` if the store is unfinished or of another version."""
        check_manifest(self.folder)
        return read_table(self.folder / "cases.parquet", schema.CASES)

    @cached_property
    def info(self) -> dict:
        """Content of `cases.json`: kind of the reader, notes of `prepare` and the keys `INPUT_KEYS`."""
        return read_json(self.folder / "cases.json", "class_names", "channel_names")

    def write_input(self, folder: Path) -> None:
        """Write `input.json` beside the weights of a model of these cases.

        With `input.json` a model folder predicts without the case store.
        """
        if missing := [key for key in INPUT_KEYS if key not in self.info]:
            raise BadInput(f"{self.folder / 'cases.json'}: lacks {missing}; run `dvc repro` to prepare the cases again")
        write_json(folder / INPUT, {key: self.info[key] for key in INPUT_KEYS})

    @cached_property
    def image_hashes(self) -> dict[str, str]:
        """First 16 digits of the SHA-256 of the first image file, by case id. Cases without a file are left out."""
        rows = self.table.filter(pl.col("sha256").list.len() > 0)
        return dict(zip(rows["case_id"], rows["sha256"].list.first().str.slice(0, 16), strict=True))

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, background first."""
        return self.info["class_names"]

    @property
    def rgb(self) -> bool:
        """Whether the channels are red, green and blue."""
        return self.info["channel_names"] == ["red", "green", "blue"]

    @cached_property
    def all(self) -> list[Case]:
        """All cases in the order of the arrays."""
        columns = list(Case.__dataclass_fields__)
        rows: Iterable[tuple[Any, ...]] = self.table.sort("case").select(columns).iter_rows()
        return [Case.of(row) for row in rows]

    @cached_property
    def _by_id(self) -> dict[str, Case]:
        return {case.case_id: case for case in self.all}

    def case(self, case_id: str) -> Case:
        """The case of an id. Raises `BadInput` for an unknown id."""
        if case_id not in self._by_id:
            raise BadInput(
                f"{self.folder}: expected a case '{case_id}', found none of this id; the id is of another run, or of "
                "cases that were prepared anew: run `dvc repro`"
            )
        return self._by_id[case_id]

    def split(self, *names: str) -> list[Case]:
        """Cases of these splits, in the order of the arrays."""
        return [case for case in self.all if case.split in names]

    def known(self, *names: str) -> list[Case]:
        """Cases of these splits whose label is known somewhere on the working grid, in the order of the arrays."""
        return [case for case in self.split(*names) if case.has_label and is_known(self.stored_label(case))]

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
        """Image f32 `[channel, *space]` on the working grid, without padding."""
        return read_array(self._images, (case.case, slice(None), *case.space))

    def volume(self, case: Case) -> Volume:
        """Image f32 `[channel, *space]` on the working grid, left on disk."""
        return Volume(self._images, case, case.shape)

    def stored_label(self, case: Case, source_grid: bool = False) -> Volume:
        """Label u8 `[*space]`, left on disk. Every label of the store is read through this method.

        The grid is the working grid, or the source's grid with `source_grid`. Raises `BadInput` for a case without a
        label.
        """
        if not case.has_label:
            raise BadInput(
                f"{self.folder}: case '{case.case_id}' has no label; only labelled cases have a truth to read"
            )
        if source_grid and case.resampled:
            return Volume(self._truth, case, case.original_shape)
        return Volume(self._labels, case, case.shape)

    def label(self, case: Case) -> np.ndarray:
        """Label u8 `[*space]` on the working grid. Raises `BadInput` for a case without a label."""
        return self.stored_label(case)[:]

    def truth(self, case: Case) -> np.ndarray:
        """Label u8 `[*space]` on the source's grid, for metrics. Raises `BadInput` for a case without a label."""
        return self.stored_label(case, source_grid=True)[:]

    def image_for(self, case: Case, window: Sequence[int]) -> Values:
        """Image, in memory if the case fits the window, else left on disk."""
        return self.image(case) if fits(case.shape, window) else self.volume(case)

    def with_labels(self, cases: Sequence[Case], window: Sequence[int]) -> LabelledCases:
        """Images and labels of cases, in memory if a case fits the window, else left on disk.

        Raises `BadInput` for a case without a label.
        """
        labels = [self.label(case) if fits(case.shape, window) else self.stored_label(case) for case in cases]
        return LabelledCases(cases, [self.image_for(case, window) for case in cases], labels)

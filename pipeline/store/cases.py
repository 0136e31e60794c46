"""The preference data set on disk: cases with images and labels, and their proposals."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from pipeline.errors import BadInput
from pipeline.store import schema
from pipeline.store.arrays import open_array
from pipeline.store.manifest import check_manifest, write_json
from pipeline.store.tables import read_table

if TYPE_CHECKING:
    import zarr

INPUT = "input.json"
"""Beside the weights of a model: what its images are, and how they are brought to it."""

INPUT_KEYS = ("class_names", "channel_names", "preprocess", "orientation", "convert", "files")
"""Names of classes and channels; the knobs of `preprocess`; the orientation that volumes have on the working grid
(`RAS` and the like, `unknown` where files do not say it, null for images); `grey` or `rgb` if the reader converts;
`nifti` or `pictures`, null for phantoms."""


Where = tuple[slice, ...]
"""A box of the working grid, one slice per spatial axis."""


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
    orientation: tuple[int, ...] | None = None

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
        """Whether the working grid is not the source's grid: other voxels, or other axes."""
        return self.shape != self.original_shape or self.orientation is not None


@dataclass(frozen=True)
class Volume:
    """A case's part of an array, `[*lead, *space]` without padding, read where it is asked for."""

    array: zarr.Array
    case: Case
    space: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.array.shape[1 : self.array.ndim - len(self.space)], *self.space)

    def __getitem__(self, where: Any) -> np.ndarray:
        """One slice per axis, or one for all; they end where the case ends."""
        every = where if isinstance(where, tuple) else (where,) * len(self.shape)
        ends: Any = (slice(*part.indices(length)[:2]) for part, length in zip(every, self.shape, strict=True))
        return np.asarray(self.array[(self.case.case, *ends)])


Values = Volume | np.ndarray
"""Of one case, on disk or in memory: what is needed is read by slices."""


def fits(space: Sequence[int], window: Sequence[int]) -> bool:
    """Whether a case is no larger than the window."""
    return all(have <= want for have, want in zip(space, window, strict=True))


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
        """`cases.json`: what the reader says of the data set, and `INPUT_KEYS`."""
        return json.loads((self.folder / "cases.json").read_text())

    def write_input(self, folder: Path) -> None:
        """Write `input.json` beside the weights of a model of these cases: with it, the folder alone can predict."""
        if missing := [key for key in INPUT_KEYS if key not in self.info]:
            raise BadInput(f"{self.folder / 'cases.json'}: lacks {missing}; run `dvc repro` to prepare the cases again")
        write_json(folder / INPUT, {key: self.info[key] for key in INPUT_KEYS})

    @cached_property
    def image_hashes(self) -> dict[str, str]:
        """By case id, the start of the SHA-256 of the image's (first) file; phantoms have no file and are left out."""
        rows = self.table.filter(pl.col("sha256").list.len() > 0)
        return dict(zip(rows["case_id"], rows["sha256"].list.first().str.slice(0, 16), strict=True))

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

    def volume(self, case: Case) -> Volume:
        """The image f32 `[channel, *space]` on the working grid, left on disk."""
        return Volume(self._images, case, case.shape)

    def label(self, case: Case) -> np.ndarray:
        """u8 `[*space]` on the working grid; raises `BadInput` where there is none."""
        return self.label_volume(case)[:]

    def label_volume(self, case: Case) -> Volume:
        """The label u8 `[*space]` on the working grid, left on disk; raises `BadInput` where there is none."""
        if not case.has_label:
            raise BadInput(
                f"{self.folder}: case '{case.case_id}' has no label; only labelled cases have a truth to read"
            )
        return Volume(self._labels, case, case.shape)

    def image_for(self, case: Case, window: Sequence[int]) -> Values:
        """The image, in memory if it fits the window, else left on disk."""
        return self.image(case) if fits(case.shape, window) else self.volume(case)

    def label_for(self, case: Case, window: Sequence[int]) -> Values:
        """The label, in memory if it fits the window, else left on disk; raises `BadInput` where there is none."""
        return self.label(case) if fits(case.shape, window) else self.label_volume(case)

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

"""Contract of the readers: a reader lists the cases of a raw data set and reads a case at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from pipeline.knobs import Knobs


@dataclass(frozen=True)
class Source:
    """A case of a raw data set before its voxels are read."""

    case_id: str
    shape: tuple[int, ...]  # spatial, in voxels of the source's grid
    image: str  # file of the first channel, relative to the data root; empty if the case has no file
    label: str | None  # file of the label; None: the case has no label and belongs to the pool
    spacing_mm: tuple[float, ...] | None = None  # one voxel edge per axis; None if unknown
    affine: tuple[float, ...] | None = None  # 16 numbers, row by row; None if the file has no orientation
    group: str | None = None  # patient or exam; None: the case is a group of its own
    split: str | None = None  # fixed split; None: `splits` assigns the case
    site: str | None = None  # hospital or scanner
    beside: tuple[str, ...] = ()  # other files of the case: further channels, then spacing

    @property
    def files(self) -> list[str]:
        """All files of the case, relative to the data root: image, label, then all others."""
        return [file for file in (self.image, self.label, *self.beside) if file]


def stamps(sources: Iterable[Source], root: Path) -> list[tuple[str, int, int]]:
    """Path, size and modification time of every file of these cases. A changed file discards unfinished work."""
    files = (file for source in sources for file in source.files)
    return [(file, (stat := (root / file).stat()).st_size, stat.st_mtime_ns) for file in files]


class CaseTable(Knobs):
    """File and columns of a CSV beside the data, with patient, split and site of the cases."""

    file: str
    """Path of the CSV, relative to `data.path`."""
    case: str = "case_id"
    """Column with the case id."""
    group: str | None = None
    """Column with the patient or exam. A case with an empty cell, or a word for unknown such as `NA`, is a group of its
    own. Null: no column."""
    split: str | None = None
    """Column with labelled, pool, validation or test. `splits` assigns cases with an empty cell. Null: no column."""
    site: str | None = None
    """Column with the hospital or scanner. Null: no column."""


class Reader(Protocol):
    """A raw data set. Readers are frozen knobs with a literal `kind`."""

    @property
    def kind(self) -> str:
        """Name of the kind in `params.yaml`."""
        ...

    @property
    def path(self) -> Path:
        """Data root, which DVC watches."""
        ...

    @property
    def case_table(self) -> CaseTable | None:
        """CSV beside the data, or None."""
        ...

    def class_names(self) -> list[str]:
        """Names of the classes, background first."""
        ...

    def channel_names(self) -> list[str]:
        """Names of the image channels."""
        ...

    def scan(self) -> list[Source]:
        """All cases, without reading voxels. Raises one `BadInput` for the faults of the data set."""
        ...

    def read(self, source: Source) -> tuple[np.ndarray, np.ndarray | None]:
        """Image f32 `[channel, *space]` and label u8 `[*space]` or None. Raises `BadInput` that names the file."""
        ...

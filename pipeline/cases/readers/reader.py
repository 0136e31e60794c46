"""What a reader is: it finds the cases of a raw data set and reads one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from pipeline.knobs import Knobs


@dataclass(frozen=True)
class Source:
    """A case of a raw data set before its voxels are read."""

    case_id: str
    shape: tuple[int, ...]  # spatial, on the source's grid
    image: str  # file of the first channel, relative to the data root; empty if the case is made, not read
    label: str | None  # None: the case belongs to the pool
    spacing_mm: tuple[float, ...] | None = None
    affine: tuple[float, ...] | None = None
    group: str | None = None
    split: str | None = None
    site: str | None = None
    beside: tuple[str, ...] = ()  # other files of the case: further channels, then spacing


class CaseTable(Knobs):
    """Columns of a CSV beside the data that says more about the cases."""

    file: str
    """Relative to `data.path`."""
    case: str = "case_id"
    """Column with the case id."""
    group: str | None = None
    """Column with the patient or exam; an empty cell is a group of its own."""
    split: str | None = None
    """Column with labelled, pool, validation or test; an empty cell is split by `splits`."""
    site: str | None = None
    """Column with the hospital or scanner."""


class Reader(Protocol):
    """A raw data set: frozen knobs with a literal `kind`."""

    dimensions: ClassVar[tuple[int, ...]]

    @property
    def kind(self) -> str:
        """Name of the kind in `params.yaml`."""
        ...

    @property
    def path(self) -> Path:
        """Data root; DVC depends on it."""
        ...

    @property
    def case_table(self) -> CaseTable | None:
        """CSV beside the data."""
        ...

    def class_names(self) -> list[str]:
        """Names of the classes, background first."""
        ...

    def channel_names(self) -> list[str]:
        """Names of the image channels."""
        ...

    def scan(self) -> list[Source]:
        """All cases, without reading voxels; raises `BadInput` for what is wrong with the set as a whole."""
        ...

    def read(self, source: Source) -> tuple[np.ndarray, np.ndarray | None]:
        """Image f32 `[channel, *space]` and label u8 `[*space]` or None; raises `BadInput` naming the file."""
        ...

"""Masks that another tool made: one file per case and source, or one file per class."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline.cases.files.checks import brighter, inside
from pipeline.cases.files.image_file import read_mask
from pipeline.cases.grid import to_working
from pipeline.errors import BadInput
from pipeline.knobs import Knobs, Name
from pipeline.proposals.samplers.sampler import CaseModels, Draw, Setup
from pipeline.store.cases import Case
from pipeline.store.schema import UNKNOWN

if TYPE_CHECKING:
    from torch import Tensor

_CASE = "{case_id}"
_SHOWN = 10
Class = Annotated[int, Field(ge=0)]


class Masks(Knobs):
    """Where the masks of one source are, on the grid and with the axes of the raw images."""

    path: str
    """Folder below `propose.imports`."""
    file: str | None = None
    """File of a case below `path`, with `{case_id}` in it. Null: `{case_id}.nii.gz` or, with `classes`, the folder
    `{case_id}`."""
    classes: Annotated[dict[str, Annotated[int, Field(ge=1)]], Field(min_length=1)] | None = None
    """For one file per class, as TotalSegmentator writes them: the class of each file in the folder of a case, e.g.
    `{liver.nii.gz: 1}`. All that is not 0 is inside; no voxel may be in files of two classes."""
    values: dict[Class, Class] | None = None
    """For label maps with other numbers: the class of each value, all others are background. Null: values are classes,
    and 255 is unknown."""
    foreground_above: Class | None = None
    """For masks stored as 0 and 255: larger values are class 1, all others background."""

    @model_validator(mode="after")
    def _one_way(self) -> Masks:
        if self.file is not None and _CASE not in self.file:
            raise ValueError(f"file: expected {_CASE} in it, found '{self.file}'")
        if sum(way is not None for way in (self.classes, self.values, self.foreground_above)) > 1:
            raise ValueError("expected one of classes, values and foreground_above, found several")
        return self

    def files(self, imports: Path, case_id: str) -> dict[Path, int | None]:
        """Files of a case, each with its class, or None for a label map."""
        name = (self.file or (f"{_CASE}.nii.gz" if self.classes is None else _CASE)).replace(_CASE, case_id)
        where = f"{self.path}/{name}"
        found: dict[str, int | None] = {where: None}
        if self.classes is not None:
            found = {f"{where}/{file}": label for file, label in self.classes.items()}
        return {inside(imports, file, "propose.samplers"): label for file, label in found.items()}

    def read(self, imports: Path, case: Case, classes: int) -> np.ndarray:
        """Label u8 `[*source]`; raises `BadInput` for another grid, other values, and two classes in one voxel."""
        out = np.zeros(case.original_shape, np.uint8)
        for file, label in self.files(imports, case.case_id).items():
            values = read_mask(file, case.case_id, case.original_shape, case.affine, UNKNOWN + 1, ignore=None)
            if label is None:
                return self._label(values, file, case.case_id, classes)
            found = np.unique(values)
            if len(found) > 2 or (len(found) == 2 and found[0] != 0):
                raise BadInput(
                    f"{file}: case '{case.case_id}': expected 0 and one other value in a file of one class, found "
                    f"{found[:5].tolist()}; save it as a binary mask"
                )
            shared = (values != 0) & (out != 0) & (out != label)
            if shared.any():
                raise BadInput(
                    f"{file}: case '{case.case_id}': expected voxels of class {label} alone, found {shared.sum()} that "
                    f"are in a file of class {int(out[shared][0])} too; overlapping masks are not supported, decide "
                    "for one class"
                )
            out[values != 0] = label
        return out

    def _label(self, values: np.ndarray, file: Path, case_id: str, classes: int) -> np.ndarray:
        if self.foreground_above is not None:
            return brighter(values, self.foreground_above, file, case_id)
        if self.values is not None:
            table = np.zeros(UNKNOWN + 1, np.uint8)
            table[list(self.values)] = list(self.values.values())
            return table[values]
        found = np.unique(values).tolist()
        if wrong := [value for value in found if value >= classes and value != UNKNOWN]:
            raise BadInput(
                f"{file}: case '{case_id}': expected labels 0 to {classes - 1} (and {UNKNOWN} for unknown), found "
                f"{wrong[:5]}; set `values`, or correct the mask"
            )
        if UNKNOWN in found and set(found) <= {0, UNKNOWN}:
            raise BadInput(
                f"{file}: case '{case_id}': found {found} alone, and {UNKNOWN} means unknown; set `foreground_above: "
                "127` if it is the foreground"
            )
        return values


class Imported(Knobs):
    """One proposal per source. Without a base segmenter the first source is slot 0, and the mean of the masks is the
    probability; with one, masks do not count in the mean probability."""

    kind: Literal["imported"]
    sources: Annotated[dict[Name, Masks], Field(min_length=1)]
    """By name, in the order of the proposals; the name is the setting of the proposal."""
    missing: Literal["error", "slot_0"] = "error"
    """Where a source has no mask of a case: an error, or slot 0 again, a duplicate that mining drops but that judges of
    agreement count."""

    def settings(self, name: str, setup: Setup) -> list[str]:
        key = f"propose.samplers.{name}.sources"
        if not setup.imports.is_dir():
            raise BadInput(
                f"propose.imports: expected the folder of the imported masks, found '{setup.imports}', which is none; "
                "set it"
            )
        for source, masks in self.sources.items():
            classes = [*(masks.classes or {}).values(), *(masks.values or {}).values()]
            if beyond := [label for label in classes if label >= setup.classes]:
                raise BadInput(f"{key}.{source}: expected classes 0 to {setup.classes - 1}, found {beyond}; correct it")
            if beyond := [value for value in masks.values or {} if value > UNKNOWN]:
                raise BadInput(f"{key}.{source}: expected values 0 to {UNKNOWN}, found {beyond}; renumber the masks")
            absent = [file for case in setup.cases for file in masks.files(setup.imports, case.case_id)]
            absent = [file for file in absent if not file.is_file()]
            first = not setup.base and source == next(iter(self.sources))
            if absent and (self.missing == "error" or first):
                shown = ", ".join(file.as_posix() for file in absent[:_SHOWN])
                advice = "" if first else ", or set `missing: slot_0`"
                raise BadInput(
                    f"{key}.{source}: expected a mask of every case, found {len(absent)} files missing: {shown}"
                    f"{', ...' if len(absent) > _SHOWN else ''}; add them{advice}"
                )
        return list(self.sources)

    def draw(self, name: str, case: CaseModels) -> Iterator[Draw]:
        for source, masks in self.sources.items():
            files = masks.files(case.imports, case.case_id)
            if self.missing == "slot_0" and case.draws and not all(file.is_file() for file in files):
                yield Draw(case.draws[0].mask, name, source)
                continue
            mask = case.whole_mask((name, source), partial(self._read, masks, case))
            yield Draw(mask, name, source, _votes(mask, case.classes) if case.base is None else None)

    @staticmethod
    def _read(masks: Masks, case: CaseModels) -> np.ndarray:
        mask = to_working(masks.read(case.imports, case.row, case.classes), case.row)
        if (mask == UNKNOWN).all():
            file = next(iter(masks.files(case.imports, case.case_id)))
            raise BadInput(f"{file}: case '{case.case_id}': every voxel is unknown (255); remove it")
        return mask

    def files(self, setup: Setup) -> list[Path]:
        """The files that proposals follow from: those of all cases and sources that are there."""
        found = [
            file
            for masks in self.sources.values()
            for case in setup.cases
            for file in masks.files(setup.imports, case.case_id)
        ]
        return [file for file in found if file.is_file()]


def _votes(mask: np.ndarray, classes: int) -> Tensor:
    """f32 `[class, *space]`: 1 for the class of the voxel; 0 for all classes where it is unknown."""
    import torch

    return torch.from_numpy(np.stack([mask == label for label in range(classes)])).float()

"""Sampler `imported`: masks of other tools, one file per case and source, or one file per class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline.cases.files.checks import inside, whole_numbers
from pipeline.cases.files.image_file import bright_mask, mask_values
from pipeline.cases.grid import to_working
from pipeline.errors import BadInput
from pipeline.knobs import Knobs, Name
from pipeline.proposals.samplers.sampler import CaseModels, Draw, Passes, Setup
from pipeline.store.cases import Case
from pipeline.store.schema import UNKNOWN

if TYPE_CHECKING:
    from torch import Tensor

_CASE = "{case_id}"
_SHOWN = 10
Class = Annotated[int, Field(ge=0)]


class Masks(Knobs):
    """Files of one source of masks, on the grid and with the axes of the raw images."""

    path: str
    """Folder of the source below `propose.imports`."""
    file: str | None = None
    """File of a case below `path`, with the placeholder `{case_id}`. With `classes`, the folder of a case. Null:
    `{case_id}.nii.gz` or, with `classes`, the folder `{case_id}`."""
    classes: Annotated[dict[str, Annotated[int, Field(ge=1)]], Field(min_length=1)] | None = None
    """Class of each file in the folder of a case, e.g. `{liver.nii.gz: 1}`, if the source has one file per class, as
    TotalSegmentator writes. Voxels other than 0 are inside. No voxel may be inside two classes."""
    values: dict[int, Class] | None = None
    """Class of each value, for label maps with other numbers, of any size and sign. All other values are background.
    Null: values are classes, and 255 is unknown."""
    foreground_above: Class | None = None
    """Threshold for masks that are stored as 0 and 255, in any colour or format. Larger values are class 1, all other
    values background."""

    @model_validator(mode="after")
    def _one_way(self) -> Masks:
        if self.file is not None and _CASE not in self.file:
            raise ValueError(f"file: expected a name with {_CASE}, found '{self.file}'")
        if sum(way is not None for way in (self.classes, self.values, self.foreground_above)) > 1:
            raise ValueError("expected at most one of classes, values and foreground_above, found several; keep one")
        return self

    def files(self, imports: Path, case_id: str) -> dict[Path, int | None]:
        """Class of each file of a case. The class of a label map is None."""
        name = (self.file or (f"{_CASE}.nii.gz" if self.classes is None else _CASE)).replace(_CASE, case_id)
        where = f"{self.path}/{name}"
        found: dict[str, int | None] = {where: None}
        if self.classes is not None:
            found = {f"{where}/{file}": label for file, label in self.classes.items()}
        return {inside(imports, file, "propose.samplers"): label for file, label in found.items()}

    def read(self, imports: Path, case: Case, classes: int) -> np.ndarray:
        """Label map u8 `[*source]`. Raises `BadInput` for another grid, other values and two classes in one voxel."""
        out = np.zeros(case.original_shape, np.uint8)
        for file, label in self.files(imports, case.case_id).items():
            grid, spacing = (case.original_shape, case.affine), case.original_spacing_mm
            if self.foreground_above is not None:
                return bright_mask(file, case.case_id, *grid, self.foreground_above, spacing)
            values = whole_numbers(mask_values(file, case.case_id, *grid, spacing), file, case.case_id)
            if label is None:
                return self._label(values, file, case.case_id, classes)
            found = np.unique(values)
            if len(found) > 2 or (len(found) == 2 and found[0] != 0):
                raise BadInput(
                    f"{file}: case '{case.case_id}': expected 0 and one other value in a file of one class, found "
                    f"{found[:5].tolist()}; save the file as a binary mask"
                )
            shared = (values != 0) & (out != 0) & (out != label)
            if shared.any():
                raise BadInput(
                    f"{file}: case '{case.case_id}': expected voxels of class {label} only, found {shared.sum()} "
                    f"voxels that are in a file of class {int(out[shared][0])} too; masks may not overlap, choose one "
                    "class per voxel"
                )
            out[values != 0] = label
        return out

    def _label(self, values: np.ndarray, file: Path, case_id: str, classes: int) -> np.ndarray:
        if self.values is not None:
            out = np.zeros(values.shape, np.uint8)
            for value, label in self.values.items():
                out[values == value] = label
            return out
        found = [int(value) for value in np.unique(values)]
        if wrong := [value for value in found if value not in range(classes) and value != UNKNOWN]:
            raise BadInput(
                f"{file}: case '{case_id}': expected labels 0 to {classes - 1} (and {UNKNOWN} for unknown), found "
                f"{wrong[:5]}; set `values`, or correct the mask"
            )
        if UNKNOWN in found and set(found) <= {0, UNKNOWN}:
            raise BadInput(
                f"{file}: case '{case_id}': expected classes, found only {found}, and {UNKNOWN} means unknown; set "
                "`foreground_above: 127` if this value is the foreground"
            )
        return values.astype(np.uint8)


class Imported(Knobs):
    """One proposal per source of masks.

    With a base segmenter, masks do not count in the mean probability. Without a base segmenter, the first source is
    slot 0, and the mean probability is the mean of the masks.
    """

    kind: Literal["imported"]
    sources: Annotated[dict[Name, Masks], Field(min_length=1)]
    """Sources by name, in the order of the proposals. The name is the setting of the proposal."""
    missing: Literal["error", "slot_0"] = "error"
    """Reaction to a case without a mask of a source: an error, or slot 0 once more. Mining drops this duplicate, but
    judge `agreement` counts duplicates by default. Without a base segmenter the first source needs a mask of every
    case."""

    def settings(self, name: str, setup: Setup) -> list[str]:
        key = f"propose.samplers.{name}.sources"
        if not setup.imports.is_dir():
            raise BadInput(
                f"propose.imports: expected the folder of the imported masks, found '{setup.imports}', which is no "
                "folder; set the path"
            )
        for source, masks in self.sources.items():
            classes = [*(masks.classes or {}).values(), *(masks.values or {}).values()]
            if beyond := [label for label in classes if label >= setup.classes]:
                raise BadInput(
                    f"{key}.{source}: expected classes 0 to {setup.classes - 1}, found {beyond}; correct the classes"
                )
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

    def forward_passes(self, name: str, setup: Setup, before: Sequence[Passes | None]) -> list[Passes | None]:
        return [None] * len(self.sources)

    def draw(self, name: str, case: CaseModels) -> Iterator[Draw]:
        for source, masks in self.sources.items():
            files = masks.files(case.imports, case.case_id)
            if self.missing == "slot_0" and case.draws and not all(file.is_file() for file in files):
                yield Draw(case.draws[0].mask, name, source)
                continue
            mask = case.whole_mask((name, source), partial(self._read, masks, case))
            if case.base is None:
                yield Draw(mask, name, source, _votes(mask, case.classes), counts=True)
            else:
                yield Draw(mask, name, source)

    @staticmethod
    def _read(masks: Masks, case: CaseModels) -> np.ndarray:
        mask = to_working(masks.read(case.imports, case.row, case.classes), case.row)
        if (mask == UNKNOWN).all():
            file = next(iter(masks.files(case.imports, case.case_id)))
            raise BadInput(
                f"{file}: case '{case.case_id}': expected classes, found every voxel unknown (255); remove the file"
            )
        return mask

    def files(self, setup: Setup) -> list[Path]:
        """Files that the proposals follow from: the existing files of all cases and sources."""
        found = [
            file
            for masks in self.sources.values()
            for case in setup.cases
            for file in masks.files(setup.imports, case.case_id)
        ]
        return [file for file in found if file.is_file()]


def _votes(mask: np.ndarray, classes: int) -> Tensor:
    """One-hot f32 `[class, *space]` of a label map u8 `[*space]`. An unknown voxel is 0 for every class."""
    import torch

    return torch.from_numpy(np.stack([mask == label for label in range(classes)])).float()

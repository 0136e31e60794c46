"""Reader of the Medical Segmentation Decathlon: NIfTI files that `dataset.json` lists."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from pipeline.cases.files import nifti
from pipeline.cases.files.checks import inside, json_object, present, stated_number
from pipeline.cases.files.image_file import read_mask
from pipeline.cases.readers.reader import CaseTable, Source
from pipeline.errors import BadInput
from pipeline.execution import CaseFailures
from pipeline.knobs import Knobs

_LISTS = {"training": "numTraining", "test": "numTest"}
"""Keys of `dataset.json` that list cases, each with the key of the number of its cases."""


class Decathlon(Knobs):
    """Layout of the Medical Segmentation Decathlon: `dataset.json` lists NIfTI files.

    Cases under `training` have a label. Cases under `test` belong to the pool. Files under other keys are refused. Axes
    are in the order of the file. With several modalities, the last axis of the file is the channels.
    """

    kind: Literal["decathlon"] = "decathlon"
    path: Path
    """Folder that holds `dataset.json`."""
    case_table: CaseTable | None = None
    """CSV with patients, splits or sites. Null: no CSV."""

    def class_names(self) -> list[str]:
        """Names under `labels` of `dataset.json`, whose keys count from 0. Background is first."""
        return self._numbered("labels")

    def channel_names(self) -> list[str]:
        """Names under `modality` of `dataset.json`, whose keys count from 0."""
        return self._numbered("modality")

    def scan(self) -> list[Source]:
        """All listed cases, with the grids from the headers of the images."""
        channels = len(self.channel_names())
        sources: list[Source] = []
        failures = CaseFailures()
        for image, label in self._listed():
            with failures.of(PurePosixPath(image).name):
                sources.append(self._source(image, label, channels))
        failures.raise_any()
        return sources

    def read(self, source: Source) -> tuple[np.ndarray, np.ndarray | None]:
        """Image f32 `[channel, *space]` with intensities as stored, and label u8 `[*space]` or None."""
        image = nifti.image(self.path / source.image, source.case_id, source.shape)
        if source.label is None:
            return image, None
        classes, grid = len(self.class_names()), (source.shape, source.affine)
        file, spacing = self.path / source.label, source.spacing_mm
        return image, read_mask(file, source.case_id, *grid, classes, spacing_mm=spacing)

    def _source(self, image: str, label: str | None, channels: int) -> Source:
        case_id = _stem(image)
        header = nifti.header(inside(self.path, image, self._index), case_id, channels)
        if label is not None:
            present(inside(self.path, label, self._index), case_id)
        return Source(
            case_id=case_id,
            shape=header.shape,
            image=str(PurePosixPath(image)),
            label=None if label is None else str(PurePosixPath(label)),
            spacing_mm=header.spacing_mm,
            affine=header.affine,
        )

    def _listed(self) -> list[tuple[str, str | None]]:
        """Paths of image and label of each case, as written in `dataset.json`. The label is None under `test`.

        Raises `BadInput` for files under any other key, whose cases would be lost, and for numbers of cases that
        disagree with the lists.
        """
        content = self._content()
        for key, value in content.items():
            if key not in _LISTS and isinstance(value, list | dict) and ".nii" in json.dumps(value).lower():
                raise BadInput(
                    f"{self._index}: expected cases under `training` and `test` alone, found files under `{key}`; move "
                    "the cases to `training`, and set their splits in the case table"
                )
        found = {key: self._entries(key, content.get(key)) for key in _LISTS}
        for key, number in _LISTS.items():
            # macOS stores file attributes in files with this prefix
            kept = [entry for entry in found[key] if not PurePosixPath(entry[0]).name.startswith("._")]
            expected = stated_number(content, number, self._index)
            if expected not in (None, len(kept), len(found[key])):
                raise BadInput(
                    f"{self._index}: `{number}` expected {expected} cases under `{key}`, found {len(kept)}; add the "
                    "missing cases, or correct the number"
                )
            found[key] = kept
        return [*found["training"], *found["test"]]

    def _entries(self, key: str, entries: Any) -> list[tuple[str, str | None]]:
        """Paths of image and label of each entry of a list. Null is an empty list."""
        if not isinstance(entries, list | None):
            raise BadInput(f"{self._index}: `{key}` expected a list of cases, found {entries!r:.80}; correct the list")
        pairs = []
        for entry in entries or []:
            files = {"image": entry} if isinstance(entry, str) else entry
            image, label = (files.get("image"), files.get("label")) if isinstance(files, dict) else (None, None)
            if isinstance(image, list):
                raise BadInput(
                    f"{self._index}: `{key}` expected one file under `image`, found {image!r}; save the channels as "
                    "the last axis of one file, or use the layout of nnU-Net"
                )
            if not isinstance(image, str):
                raise BadInput(
                    f"{self._index}: expected entries with `image` and `label`, found {entry!r}; correct the list"
                )
            if not isinstance(label, str | None):
                raise BadInput(
                    f"{self._index}: `{key}` expected one file under `label` of '{image}', found {label!r}; save the "
                    "classes in one file"
                )
            if label is not None and key == "test":
                raise BadInput(
                    f"{self._index}: `test` expected images alone, which join the pool, found the label '{label}'; "
                    "move the case to `training`, and set its split in the case table"
                )
            pairs.append((image, label))
        return pairs

    def _numbered(self, key: str) -> list[str]:
        found = self._content().get(key)
        names = found if isinstance(found, dict) else {}
        numbers = [str(number) for number in range(len(names))]
        if not names or set(names) != set(numbers) or not all(isinstance(name, str) for name in names.values()):
            raise BadInput(
                f'{self._index}: `{key}` expected names under the keys "0", "1", ... without gaps, found {found!r}; '
                "renumber them (unions of labels are not supported)"
            )
        return [names[number] for number in numbers]

    @property
    def _index(self) -> Path:
        return self.path / "dataset.json"

    def _content(self) -> dict[str, Any]:
        return json_object(self._index)


def _stem(image: str) -> str:
    name = PurePosixPath(image).name
    return next((name.removesuffix(ending) for ending in nifti.ENDINGS if name.endswith(ending)), name)

"""Reader of nnU-Net v2 raw data: a file per channel, and a label named after the case."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.cases.files import image_file, nifti, picture, tiff
from pipeline.cases.files.checks import (
    inside,
    json_object,
    refuse_dicom,
    refuse_no_file,
    refuse_other_shape,
    stated_number,
)
from pipeline.cases.readers.reader import CaseTable, Source
from pipeline.errors import BadInput
from pipeline.execution import CaseFailures
from pipeline.knobs import Knobs

_ENDINGS = (*image_file.VOLUMES, *tiff.ENDINGS, *(e for e in picture.ENDINGS if e not in picture.LOSSY))
_IGNORE = "ignore"


class NnUNet(Knobs):
    """Raw layout of nnU-Net v2: a folder with `dataset.json`, `imagesTr`, `labelsTr`, `imagesTs`; a file per channel.

    Images are named `CASE_0000.nii.gz`, with the number of the channel, and labels `CASE.nii.gz`. `file_ending` may
    also be that of NRRD (`.nrrd`), MetaImage (`.mha`), TIFF or pictures without loss. Cases of `imagesTs` without a
    label belong to the pool. The spacing of a TIFF stack is read from `CASE.json`, in mm. The `ignore` label becomes
    255.
    Source of the format: nnU-Net's documentation, `dataset_format.md`.
    """

    kind: Literal["nnunet"] = "nnunet"
    path: Path
    """Folder that holds `dataset.json`."""
    case_table: CaseTable | None = None
    """CSV with patients, splits or sites. Null: no CSV."""
    labels_ts: Literal["pool", "test"] = "pool"
    """Split of the `imagesTs` cases that have a label in `labelsTs`."""

    def class_names(self) -> list[str]:
        """Names under `labels` of `dataset.json` by value, without `ignore`. Refuses regions and version 1."""
        return self._labels()[0]

    def channel_names(self) -> list[str]:
        """Names under `channel_names` of `dataset.json`, whose keys count from 0."""
        content = self._content()
        found = content.get("channel_names")
        if found is None and "modality" in content:
            raise self._version_1("`modality` where `channel_names` belongs")
        names = found if isinstance(found, dict) else {}
        numbers = [str(number) for number in range(len(names))]
        if not names or set(names) != set(numbers) or not all(isinstance(name, str) for name in names.values()):
            raise BadInput(
                f'{self._index}: `channel_names` expected names under the keys "0", "1", ... without gaps, found '
                f"{found!r}; renumber them"
            )
        return [names[number] for number in numbers]

    def scan(self) -> list[Source]:
        """All cases of `imagesTr` and `imagesTs`, with the grids from the headers of the images."""
        self._labels()
        channels = len(self.channel_names())
        training = self._cases("imagesTr", "labelsTr", channels, None)
        expected = self._check_number(training)
        if expected != sum(source.label is not None for source in training):
            self._refuse_lost_label(training, "labelsTr", "move its images to imagesTs, or lower `numTraining`")
        others = self._cases("imagesTs", "labelsTs", channels, self.labels_ts)
        if self.labels_ts == "test":
            self._refuse_lost_label(others, "labelsTs", "move its images to another folder")
        return [*training, *others]

    def read(self, source: Source) -> tuple[np.ndarray, np.ndarray | None]:
        """Image f32 `[channel, *space]` with intensities as stored, and label u8 `[*space]` or None."""
        files = [source.image, *(name for name in source.beside if not name.endswith(".json"))]
        image = np.concatenate([image_file.image(self.path / name, source.case_id, source.shape) for name in files])
        if source.label is None:
            return image, None
        names, ignore = self._labels()
        file, grid = self.path / source.label, (source.shape, source.affine)
        return image, image_file.read_mask(file, source.case_id, *grid, len(names), ignore, source.spacing_mm)

    def _cases(self, images: str, labels: str, channels: int, split: str | None) -> list[Source]:
        """Cases of a folder of images. Cases that have a label get `split`, if `split` is not None."""
        files: dict[str, dict[int, str]] = defaultdict(dict)
        for name, stem in self._stems(images):
            if not (parts := re.fullmatch(r"(.+)_(\d{4})", stem)):
                raise BadInput(
                    f"{self.path / images / name}: expected a name like CASE_0000{self._ending()}, with the number of "
                    "the channel; rename the file"
                )
            files[parts[1]][int(parts[2])] = name
        labelled = {stem: f"{labels}/{name}" for name, stem in self._stems(labels)}
        if alone := sorted(set(labelled) - set(files)):
            raise BadInput(
                f"{self.path / labelled[alone[0]]}: expected an image '{alone[0]}_0000{self._ending()}' in "
                f"{self.path / images}, found none ({len(alone)} labels without image); add the image, or remove the "
                "label"
            )
        failures = CaseFailures()
        sources = []
        for case_id, of_case in sorted(files.items()):
            with failures.of(case_id):
                label = labelled.get(case_id)
                source = self._source(case_id, images, of_case, label, channels)
                sources.append(source if label is None or split is None else replace(source, split=split))
        failures.raise_any()
        return sources

    def _source(self, case_id: str, images: str, files: dict[int, str], label: str | None, channels: int) -> Source:
        numbers = sorted(files)
        if numbers != list(range(len(numbers))):
            missing = next(number for number in range(len(numbers)) if number not in files)
            raise BadInput(
                f"{self.path / images}: case '{case_id}': expected the file {case_id}_{missing:04d}{self._ending()}, "
                f"found the channels {numbers}; add it, or renumber the files"
            )
        names = [f"{images}/{files[number]}" for number in numbers]
        headers = [image_file.header(self.path / name, case_id) for name in names]
        first = headers[0]
        for name, header in zip(names, headers, strict=True):
            refuse_other_shape(header.shape, first.shape, self.path / name, case_id)
            nifti.refuse_other_grid(header, first, self.path / name, case_id)
        if (found := sum(header.channels for header in headers)) != channels:
            raise BadInput(
                f"{self.path / images}: case '{case_id}': expected {channels} channels (`channel_names`; a colour "
                f"picture has 3), found {found} in {', '.join(files[number] for number in numbers)}; add the missing "
                "files, or correct dataset.json"
            )
        beside = self.path / images / f"{case_id}.json"
        spacing = tiff.spacing(beside, case_id, len(first.shape)) if self._ending() in tiff.ENDINGS else None
        return Source(
            case_id=case_id,
            shape=first.shape,
            image=names[0],
            label=label,
            spacing_mm=first.spacing_mm if spacing is None else spacing,
            affine=first.affine,
            beside=(*names[1:], *(() if spacing is None else (f"{images}/{case_id}.json",))),
        )

    def _stems(self, folder: str) -> list[tuple[str, str]]:
        """Names of the files of a folder, each with and without ending. Empty for a missing folder."""
        path, ending = inside(self.path, folder, "data"), self._ending()
        found = []
        for file in sorted(path.iterdir()) if path.is_dir() else []:
            if file.name.startswith(".") or file.name.endswith(".json"):
                continue
            refuse_no_file(file)
            if not file.name.endswith(ending):
                refuse_dicom(file)
                raise BadInput(
                    f"{file}: expected only files ending in {ending} (`file_ending`) in {path}; convert or move it"
                )
            found.append((file.name, file.name.removesuffix(ending)))
        return found

    def _refuse_lost_label(self, sources: Sequence[Source], labels: str, otherwise: str) -> None:
        """Refuse a case without a label among cases with labels: a lost file would only make a split smaller."""
        without = [source.case_id for source in sources if source.label is None]
        if without and len(without) < len(sources):
            raise BadInput(
                f"{self.path / labels}: case '{without[0]}': expected a label like {len(sources) - len(without)} other "
                f"cases, found none ({len(without)} cases without); add the label, {otherwise}"
            )

    def _check_number(self, training: Sequence[Source]) -> int | None:
        """Refuse a data set with missing or surplus cases, as nnU-Net's own check does. Returns `numTraining`.

        `numTraining` may count cases without a label or leave them out.
        """
        expected = stated_number(self._content(), "numTraining", self._index)
        counts = (len(training), sum(source.label is not None for source in training))
        if expected is not None and expected not in counts:
            raise BadInput(
                f"{self._index}: `numTraining` expected {expected} cases in imagesTr, found {counts[0]} ({counts[1]} "
                "with label); fetch the missing files, or correct the number"
            )
        return expected

    def _ending(self) -> str:
        found = self._content().get("file_ending")
        if found not in _ENDINGS:
            raise BadInput(
                f"{self._index}: `file_ending` expected one of {', '.join(_ENDINGS)}, found {found!r}; convert the "
                "files (e.g. with SimpleITK to .nii.gz) and correct dataset.json"
            )
        return found

    def _labels(self) -> tuple[list[str], int | None]:
        """Names of the classes, background first, and the value of the `ignore` label, or None."""
        content = self._content()
        found = content.get("labels")
        labels = dict(found) if isinstance(found, dict) else {}
        if any(isinstance(value, str) and value.isdecimal() for value in labels.values()):
            raise BadInput(
                f"{self._index}: `labels` expected numbers without quotes, found {found!r}; remove the quotes"
            )
        if labels and all(isinstance(name, str) for name in labels.values()):
            raise self._version_1('`labels` as {"0": name} where {name: 0} belongs')
        if regions := sorted(name for name, value in labels.items() if isinstance(value, list)):
            raise BadInput(
                f"{self._index}: `labels` expected one number for each class, found the regions "
                f"{', '.join(map(repr, regions))}; regions (unions of labels) are not supported: name the labels "
                "that the files hold, and remove `regions_class_order`"
            )
        ignore = labels.pop(_IGNORE, None)
        numbers = [value for value in labels.values() if type(value) is int]
        counted = sorted(numbers) == list(range(len(labels))) and len(numbers) > 0
        if not counted or ignore not in (None, len(labels)) or isinstance(ignore, bool):
            raise BadInput(
                f"{self._index}: `labels` expected names with the values 0, 1, ... without gaps, and '{_IGNORE}' with "
                f"the highest, found {found!r}; renumber them"
            )
        return sorted(labels, key=lambda name: labels[name]), ignore

    def _version_1(self, found: str) -> BadInput:
        return BadInput(
            f"{self._index}: expected dataset.json of nnU-Net version 2, found {found}; read the Medical Segmentation "
            "Decathlon with `kind: decathlon`, or convert with nnUNetv2_convert_old_nnUNet_dataset"
        )

    @property
    def _index(self) -> Path:
        return self.path / "dataset.json"

    def _content(self) -> dict[str, Any]:
        content = json_object(self._index)
        if "dataset" in content:
            raise BadInput(
                f"{self._index}: expected the cases in imagesTr and labelsTr, found file lists (`dataset`), which are "
                "not supported; link the files into these folders and remove the key"
            )
        return content

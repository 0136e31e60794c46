"""Medical Segmentation Decathlon: NIfTI files that `dataset.json` lists."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

import numpy as np

from pipeline.cases.checks import class_indices, inside, refuse_dicom
from pipeline.cases.reader import CaseTable, Source
from pipeline.errors import BadInput
from pipeline.execution import CaseFailures
from pipeline.knobs import Knobs

_SUFFIXES = (".nii.gz", ".nii")
_IN_MM = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
_AFFINE_TOLERANCE = 1e-3


class Decathlon(Knobs):
    """A folder with `dataset.json`: cases under `training` have a label, cases under `test` belong to the pool.

    Axes are in the order of the file. Several modalities are the last axis of the file.
    """

    kind: Literal["decathlon"] = "decathlon"
    path: Path
    """Folder that holds `dataset.json`."""
    case_table: CaseTable | None = None
    """CSV with patients, splits or sites."""

    dimensions: ClassVar[tuple[int, ...]] = (2, 3)

    def class_names(self) -> list[str]:
        """`labels` of `dataset.json`, whose keys count from 0."""
        return self._numbered("labels")

    def channel_names(self) -> list[str]:
        """`modality` of `dataset.json`, whose keys count from 0."""
        return self._numbered("modality")

    def scan(self) -> list[Source]:
        """All listed cases, from the headers of their images."""
        channels = len(self.channel_names())
        sources: list[Source] = []
        failures = CaseFailures()
        for image, label in self._listed():
            name = PurePosixPath(image).name
            if name.startswith("._"):  # macOS keeps file attributes in these
                continue
            with failures.of(name):
                sources.append(self._source(image, label, channels))
        failures.raise_any()
        _one_orientation(sources, self.path)
        return sources

    def read(self, source: Source) -> tuple[np.ndarray, np.ndarray | None]:
        """Image f32 `[channel, *space]` and label u8 `[*space]` or None."""
        file = self.path / source.image
        nifti = _opened(file, source.case_id)
        image = _voxels(nifti, file, source.case_id).astype(np.float32)
        image = image.reshape(*source.shape, -1)  # a single channel and a single slice have axes of length 1
        image = np.ascontiguousarray(np.moveaxis(image, -1, 0))
        if source.label is None:
            return image, None
        file = self.path / source.label
        nifti = _opened(file, source.case_id)
        if _trimmed(nifti.shape, len(source.shape)) != source.shape:
            raise BadInput(
                f"{file}: case '{source.case_id}': expected the image's shape {source.shape}, found {nifti.shape}; "
                "resample the label to the image's grid"
            )
        expected = np.asarray(source.affine, np.float64).reshape(4, 4)
        if (off := float(np.abs(nifti.affine - expected).max())) > _AFFINE_TOLERANCE:
            raise BadInput(
                f"{file}: case '{source.case_id}': expected the image's affine within {_AFFINE_TOLERANCE:g}, found a "
                f"difference of {off:g}; resample the label to the image's grid, or correct its header"
            )
        values = _voxels(nifti, file, source.case_id).reshape(source.shape)
        return image, class_indices(values, len(self.class_names()), file, source.case_id)

    def _source(self, image: str, label: str | None, channels: int) -> Source:
        case_id = _stem(image)
        nifti = _opened(inside(self.path, image, "dataset.json"), case_id)
        if label is not None:
            _present(inside(self.path, label, "dataset.json"), case_id)
        found = nifti.shape
        if channels > 1 and (len(found) < 3 or found[-1] != channels):
            raise BadInput(
                f"{self.path / image}: case '{case_id}': expected {channels} channels (`modality`) as the last axis, "
                f"found shape {found}; correct dataset.json or the file"
            )
        space = found[:-1] if channels > 1 else _trimmed(found, 3)
        shape = _trimmed(space, 2)
        if len(shape) not in self.dimensions or 0 in shape:
            raise BadInput(
                f"{self.path / image}: case '{case_id}': expected an image or a volume with {channels} channels, found "
                f"shape {found}; correct `modality` in dataset.json, or split the file"
            )
        unit = _IN_MM[nifti.header.get_xyzt_units()[0]]
        spacing = tuple(float(f"{zoom * unit:.6g}") for zoom in nifti.header.get_zooms()[: len(shape)])
        if not all(0 < length < np.inf for length in spacing):
            raise BadInput(
                f"{self.path / image}: case '{case_id}': expected voxel edges above 0, found {spacing}; "
                "correct `pixdim`"
            )
        return Source(
            case_id=case_id,
            shape=shape,
            image=str(PurePosixPath(image)),
            label=None if label is None else str(PurePosixPath(label)),
            spacing_mm=spacing,
            affine=tuple(float(value) for value in nifti.affine.ravel()),
        )

    def _listed(self) -> list[tuple[str, str | None]]:
        """Image and label of each case, as `dataset.json` names them."""
        content = self._content()
        entries = [*content.get("training", []), *content.get("test", [])]
        named = [{"image": entry} if isinstance(entry, str) else entry for entry in entries]
        for entry in named:
            if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
                raise BadInput(
                    f"{self._index}: expected entries with `image` and `label`, found {entry!r}; correct the list"
                )
        labelled = len(content.get("training", []))
        return [(entry["image"], entry.get("label") if row < labelled else None) for row, entry in enumerate(named)]

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
        try:
            content = json.loads(self._index.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise BadInput(f"{self._index}: expected the JSON index of the data set ({error}); check `path`") from error
        if not isinstance(content, dict):
            raise BadInput(f"{self._index}: expected a JSON object, found {type(content).__name__}; check the file")
        return content


def _one_orientation(sources: Sequence[Source], root: Path) -> None:
    """Axes must mean the same in every volume: flips, sided classes and resizing act on them."""
    from nibabel import aff2axcodes

    first: dict[str, Source] = {}
    for source in sources:
        if len(source.shape) == 3:
            axes = "".join(aff2axcodes(np.asarray(source.affine).reshape(4, 4)))
            first.setdefault(axes, source)
    if len(first) > 1:
        (one, a), (two, b) = list(first.items())[:2]
        raise BadInput(
            f"{root}: expected one orientation, found {one} (case '{a.case_id}') and {two} (case '{b.case_id}'); "
            "bring all files to one with nibabel.as_closest_canonical"
        )


def _stem(image: str) -> str:
    name = PurePosixPath(image).name
    return next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name)


def _trimmed(shape: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """Shape without trailing axes of length 1, down to this many axes."""
    while len(shape) > axes and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _present(file: Path, case_id: str) -> None:
    if not file.is_file():
        raise BadInput(f"{file}: case '{case_id}': expected a file, found none; add it, or remove it from dataset.json")


def _opened(file: Path, case_id: str) -> Any:
    """NIfTI file of which only the header is read."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    refuse_dicom(file)
    _present(file, case_id)
    try:
        opened = nibabel.load(file)
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error) as error:
        raise BadInput(f"{file}: case '{case_id}': expected NIfTI, found an unreadable file ({error})") from error
    if not isinstance(opened, nibabel.Nifti1Image):
        raise BadInput(f"{file}: case '{case_id}': expected NIfTI, found {type(opened).__name__}; convert it")
    if opened.get_data_dtype().kind not in "iufb":
        raise BadInput(
            f"{file}: case '{case_id}': expected real numbers, found type {opened.get_data_dtype()}; save "
            "one channel per modality"
        )
    return opened


def _voxels(nifti: Any, file: Path, case_id: str) -> np.ndarray:
    try:
        return np.asanyarray(nifti.dataobj)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise BadInput(
            f"{file}: case '{case_id}': expected {nifti.shape} voxels, found a truncated or damaged file ({error}); "
            "fetch it again"
        ) from error

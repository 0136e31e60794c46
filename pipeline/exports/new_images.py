"""New images for a trained model: one file or all files of a folder, with the channels in one file or in several."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from pipeline.cases.files import image_file, nifti, tiff
from pipeline.cases.files.checks import refuse_dicom, refuse_long_name
from pipeline.cases.files.header import Header
from pipeline.cases.voxels import DOCUMENTS
from pipeline.errors import BadInput

_CHANNEL = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class NewImage:
    """An image: its name, and the files of its channels."""

    case_id: str
    files: tuple[Path, ...]

    @property
    def spacing_file(self) -> Path | None:
        """JSON file with the spacing of a TIFF, beside the TIFF; None for other images and without such a file."""
        beside = self.files[0].with_name(f"{self.case_id}.json")
        return beside if image_file.ending_of(self.files[0]) in tiff.ENDINGS and beside.is_file() else None


def new_images(given: Path, channels: int, axes: int, out: Path) -> tuple[list[NewImage], list[str]]:
    """Images of a file or folder, and an error message per bad file.

    `channels` and `axes` are the numbers of channels and spatial axes of the model.
    Files named CASE_0000, CASE_0001, ... are the channels of one image. A numbered file that holds all channels is an
    image of its own. For a model of one channel, CASE_0000 is the image CASE if all files of the folder have the number
    0000 (nnU-Net's names). Hidden files, the JSON beside a TIFF and the folder `out` are skipped. `DOCUMENTS` are
    skipped with a warning. Raises `BadInput` if there is no image.
    """
    if given.is_file():
        refuse_long_name(image_file.stem_of(given), given)
        files, failures = _with_siblings(given, channels, axes), list[str]()
    elif given.is_dir():
        files, failures = _images_of(given, out)
    else:
        raise BadInput(f"{given}: expected an image file or a folder of images, found neither; correct the path")
    if not files and not failures:
        raise BadInput(f"{given}: expected images ({', '.join(image_file.ENDINGS)}), found none; check the folder")
    numbered = {file: _CHANNEL.fullmatch(image_file.stem_of(file)) for file in files}
    one = channels == 1 and given.is_dir() and all(match and match[2] == "0000" for match in numbered.values())
    groups: dict[str, list[Path]] = defaultdict(list)
    for file, match in numbered.items():
        part = match is not None and (one or (channels > 1 and not _holds_all(file, channels, axes)))
        groups[match[1] if part and match is not None else image_file.stem_of(file)].append(file)
    return [NewImage(case_id, tuple(sorted(group))) for case_id, group in sorted(groups.items())], failures


def headers_of(image: NewImage, channels: int) -> list[Header]:
    """Headers of the files of an image. Raises `BadInput` for files on different grids and for missing channels."""
    several = len(image.files) > 1
    if several:
        numbers = [match and int(match[2]) for match in map(_CHANNEL.fullmatch, map(image_file.stem_of, image.files))]
        if numbers != list(range(len(numbers))):
            raise BadInput(
                f"{image.files[0].parent}: case '{image.case_id}': expected one file, or the channels "
                f"{image.case_id}_0000 and on without gaps, found {', '.join(file.name for file in image.files)}; "
                "rename or remove files"
            )
    headers = [_header(file, image.case_id, 1 if several else channels) for file in image.files]
    for file, header in zip(image.files, headers, strict=True):
        if header.shape != headers[0].shape:
            raise BadInput(
                f"{file}: case '{image.case_id}': expected the shape {headers[0].shape} of {image.files[0].name}, "
                f"found {header.shape}; resample the channels to one grid"
            )
        nifti.refuse_other_grid(header, headers[0], file, image.case_id)
    return headers


def _header(file: Path, case_id: str, channels: int) -> Header:
    if image_file.ending_of(file) in nifti.ENDINGS:
        return nifti.header(file, case_id, channels, "give a file with the channels of the model, or one file for each")
    return image_file.header(file, case_id)


def _holds_all(file: Path, channels: int, axes: int) -> bool:
    """Whether a file with a channel number in its name holds all channels.

    False for an unreadable file, whose error is raised when the file is read.
    """
    try:
        header = _header(file, image_file.stem_of(file), channels)
    except BadInput:
        return False
    return header.channels == channels and len(header.shape) == axes


def _with_siblings(given: Path, channels: int, axes: int) -> list[Path]:
    """The file, and the files of the other channels if the file holds one of several channels."""
    ending = image_file.ending_of(given)
    match = _CHANNEL.fullmatch(image_file.stem_of(given))
    if match is None or channels == 1 or _holds_all(given, channels, axes):
        return [given]
    names = (given.with_name(f"{match[1]}_{number:04d}{given.name[-len(ending) :]}") for number in range(channels))
    return [file for file in names if file.is_file()]


def _images_of(folder: Path, out: Path) -> tuple[list[Path], list[str]]:
    files: list[Path] = []
    failures: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or _beside_tiff(path) or path.resolve() == out.resolve():
            continue
        try:
            if not path.is_file():
                raise BadInput(f"{path}: expected an image, found a folder; give the inner folder itself, or move it")
            refuse_dicom(path)
            if path.suffix.lower() in DOCUMENTS:
                print(f"warning: {path}: skipped, is no image", file=sys.stderr)
                continue
            refuse_long_name(image_file.stem_of(path), path)
            files.append(path)
        except BadInput as error:
            failures.append(str(error))
    return files, failures


def _beside_tiff(path: Path) -> bool:
    if path.suffix != ".json":
        return False
    stems = (path.stem, f"{path.stem}_0000")
    return any(path.with_name(f"{stem}{ending}").is_file() for stem in stems for ending in tiff.ENDINGS)

"""Reader of pictures, TIFF stacks and volumes: a folder of images and a folder of masks, paired by file name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline.cases.files import image_file
from pipeline.cases.files.checks import inside, refuse_no_file
from pipeline.cases.readers.reader import CaseTable, Source
from pipeline.cases.voxels import converted
from pipeline.errors import BadInput
from pipeline.execution import CaseFailures
from pipeline.knobs import Knobs

_KINDS = {1: "grey", 3: "rgb"}
_CHANNELS = {"grey": ["grey"], "rgb": ["red", "green", "blue"]}


class Folders(Knobs):
    """Pictures, TIFF stacks or volumes: a folder of images, and a folder of masks with the same names.

    Images are PNG, JPEG, BMP or TIFF, or all are NIfTI, NRRD or MetaImage, and so are the masks. The endings of image
    and mask may differ. Masks hold the class index of each pixel, or are black and white (`foreground_above`). A TIFF
    file may hold a stack of slices and any number of channels. Images without a mask belong to the pool. The spacing
    of pictures and TIFF is unknown.
    """

    kind: Literal["folders"] = "folders"
    path: Path
    """Folder that holds the folders of images and masks."""
    case_table: CaseTable | None = None
    """CSV with patients, splits or sites. Null: no CSV."""
    images: str = "images"
    """Folder of the images, below `path`."""
    masks: str | None = "masks"
    """Folder of the masks, below `path`. Null if no image has a mask."""
    classes: Annotated[tuple[str, ...], Field(min_length=2)] = ("background", "foreground")
    """Names of the classes, background first."""
    channels: Literal["grey", "rgb"] | None = None
    """Kind that all images are converted to. Null keeps images as stored, and refuses a data set of both kinds."""
    foreground_above: Annotated[int, Field(ge=0)] | None = None
    """Threshold for masks stored as 0 and 255, in any colour or format. Brighter pixels are class 1, all others
    background. Null: masks hold class indices."""

    @model_validator(mode="after")
    def _two_classes(self) -> Folders:
        if self.foreground_above is not None and len(self.classes) != 2:
            raise ValueError(
                f"foreground_above makes 2 classes, found {len(self.classes)} in `classes`; name two classes, or "
                "remove foreground_above"
            )
        return self

    def class_names(self) -> list[str]:
        """Names of the classes, background first."""
        return list(self.classes)

    def channel_names(self) -> list[str]:
        """One grey channel, or red, green and blue. If `channels` is null, the channels of the first image."""
        return _CHANNELS[self.channels] if self.channels else _names_of(self._first_channels())

    def scan(self) -> list[Source]:
        """All images with their masks, with the grids from the headers of the images."""
        images = self._images()
        masks = {} if self.masks is None else self._stems(self.masks)
        if alone := sorted(set(masks) - set(images)):
            raise BadInput(
                f"{self.path / masks[alone[0]]}: expected an image '{alone[0]}' in {self.path / self.images}, found "
                f"none ({len(alone)} masks without image); add the image, or remove the mask"
            )
        self._refuse_mixture([*images.values(), *masks.values()])
        first = self._first_channels()
        failures = CaseFailures()
        sources = []
        for stem, file in images.items():
            with failures.of(stem):
                header = image_file.header(self.path / file, stem)
                if self.channels is None and header.channels != first:
                    found, expected = (_KINDS.get(n, f"{n}-channel") for n in (header.channels, first))
                    raise BadInput(
                        f"{self.path / file}: case '{stem}': expected a {expected} image like the first, "
                        f"{next(iter(images.values()))}, found {found}; set `channels: grey` or `rgb` to convert all"
                    )
                sources.append(Source(stem, header.shape, file, masks.get(stem), header.spacing_mm, header.affine))
        failures.raise_any()
        return sources

    def read(self, source: Source) -> tuple[np.ndarray, np.ndarray | None]:
        """Image f32 `[channel, *space]` with intensities as stored, and label u8 `[*space]` or None."""
        file = self.path / source.image
        image = image_file.image(file, source.case_id, source.shape)
        if self.channels is not None:
            image = _converted(image, self.channels, file, source.case_id)
        return image, None if source.label is None else self._mask(self.path / source.label, source)

    def _mask(self, file: Path, source: Source) -> np.ndarray:
        grid = (source.shape, source.affine)
        if self.foreground_above is None:
            return image_file.read_mask(file, source.case_id, *grid, len(self.classes), spacing_mm=source.spacing_mm)
        return image_file.bright_mask(file, source.case_id, *grid, self.foreground_above, source.spacing_mm)

    def _images(self) -> dict[str, str]:
        images = self._stems(self.images)
        if not images:
            raise BadInput(
                f"{self.path / self.images}: expected images ({', '.join(image_file.ENDINGS)}), found none; check "
                "`path`"
            )
        return images

    def _stems(self, folder: str) -> dict[str, str]:
        """Path of each file in a folder, relative to the data root, by stem. Sorted by file name."""
        path = inside(self.path, folder, "data")
        if not path.is_dir():
            raise BadInput(f"{path}: expected a folder of images, found none; check `path`, `images` and `masks`")
        found: dict[str, str] = {}
        for file in sorted(path.iterdir()):
            if file.name.startswith("."):  # macOS and editors store hidden files beside the data
                continue
            refuse_no_file(file)
            stem = image_file.stem_of(file)
            if stem in found:
                raise BadInput(
                    f"{file}: expected one file for case '{stem}', found {Path(found[stem]).name} as well; remove one "
                    "of them"
                )
            found[stem] = f"{folder}/{file.name}"
        return found

    def _refuse_mixture(self, files: Sequence[str]) -> None:
        """Refuse volumes beside pictures or TIFF, whose axes are in another order."""
        volumes = [file for file in files if image_file.is_volume(file)]
        others = [file for file in files if not image_file.is_volume(file)]
        if volumes and others:
            raise BadInput(
                f"{self.path / volumes[0]}: expected the order of axes of {others[0]} (rows, columns), found a file of "
                "NIfTI, NRRD or MetaImage (x, y, z); convert one kind to the other, or keep them in two data sets"
            )

    def _first_channels(self) -> int:
        stem, file = next(iter(self._images().items()))
        return image_file.header(self.path / file, stem).channels


def _names_of(channels: int) -> list[str]:
    return _CHANNELS[_KINDS[channels]] if channels in _KINDS else [f"channel_{channel}" for channel in range(channels)]


def _converted(image: np.ndarray, kind: str, file: Path, case_id: str) -> np.ndarray:
    """Image f32 `[channel, *space]` converted to `grey` or `rgb`. Refuses images without 1 or 3 channels."""
    if len(image) not in _KINDS:
        raise BadInput(
            f"{file}: case '{case_id}': expected 1 or 3 channels for `channels: {kind}`, found {len(image)}; set "
            "`channels` to null to keep all"
        )
    return converted(image, kind)

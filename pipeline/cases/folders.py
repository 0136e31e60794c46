"""Pictures: a folder of images and a folder of masks, paired by their names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline.cases.checks import class_indices, inside, refuse_dicom
from pipeline.cases.reader import CaseTable, Source
from pipeline.errors import BadInput
from pipeline.execution import CaseFailures
from pipeline.knobs import Knobs

_LOSSY = (".jpg", ".jpeg")
_SUFFIXES = (".png", ".bmp", *_LOSSY)
_CHANNELS = {"grey": ["grey"], "rgb": ["red", "green", "blue"]}
_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_WIDE_MODES = ("I", "F")
_ORIENTATION = 0x0112
_UPRIGHT = 1


class Folders(Knobs):
    """PNG, JPEG or BMP images; masks of the same stem hold the class index of each pixel.

    Images without a mask belong to the pool. Spacing is unknown.
    """

    kind: Literal["folders"] = "folders"
    path: Path
    """Folder that holds both folders."""
    case_table: CaseTable | None = None
    """CSV with patients, splits or sites."""
    images: str = "images"
    """Folder of the images, below `path`."""
    masks: str = "masks"
    """Folder of the masks, below `path`."""
    classes: Annotated[tuple[str, ...], Field(min_length=2)] = ("background", "foreground")
    """Names of the classes, background first."""
    channels: Literal["grey", "rgb"] | None = None
    """Converts all images; null keeps them as they are, and then a set of both kinds is refused."""
    foreground_above: Annotated[int, Field(ge=0)] | None = None
    """For masks stored as 0 and 255: brighter pixels are class 1, all others background. Null: class indices."""

    dimensions: ClassVar[tuple[int, ...]] = (2,)

    @model_validator(mode="after")
    def _two_classes(self) -> Folders:
        if self.foreground_above is not None and len(self.classes) != 2:
            raise ValueError(f"foreground_above makes 2 classes, found {len(self.classes)} in `classes`")
        return self

    def class_names(self) -> list[str]:
        """`classes`."""
        return list(self.classes)

    def channel_names(self) -> list[str]:
        """The one grey channel, or red, green and blue; without `channels`, as the first image has it."""
        return _CHANNELS[self.channels or self._first_kind()]

    def scan(self) -> list[Source]:
        """All images with their masks, from the headers of the images."""
        images, masks = self._images(), self._stems(self.masks)
        if alone := sorted(set(masks) - set(images)):
            raise BadInput(
                f"{self.path / masks[alone[0]]}: expected an image '{alone[0]}' in {self.path / self.images}, found "
                f"none ({len(alone)} masks without image); add the image, or remove the mask"
            )
        first = self._first_kind()
        failures = CaseFailures()
        sources = []
        for stem, file in images.items():
            with failures.of(stem), _opened(self.path / file, stem) as picture:
                if self.channels is None and (kind := _kind(picture)) != first:
                    raise BadInput(
                        f"{self.path / file}: case '{stem}': expected a {first} image like the first, "
                        f"{next(iter(images.values()))}, found {kind}; set `channels: grey` or `rgb` to convert all"
                    )
                sources.append(Source(stem, (picture.height, picture.width), file, masks.get(stem)))
        failures.raise_any()
        return sources

    def read(self, source: Source) -> tuple[np.ndarray, np.ndarray | None]:
        """Image f32 `[channel, row, column]` with intensities as stored, and label u8 `[row, column]` or None."""
        file = self.path / source.image
        with _opened(file, source.case_id) as picture:
            image = _pixels(picture, self.channels or _kind(picture), file, source.case_id)
        if source.label is None:
            return image, None
        file = self.path / source.label
        with _opened(file, source.case_id) as mask:
            values = self._mask(mask, file, source.case_id)
        if values.shape != source.shape:
            raise BadInput(
                f"{file}: case '{source.case_id}': expected the image's shape {source.shape}, found {values.shape}; "
                "resample the mask to the image"
            )
        return image, class_indices(values, len(self.classes), file, source.case_id)

    def _mask(self, mask: Any, file: Path, case_id: str) -> np.ndarray:
        if self.foreground_above is not None:
            grey = mask if mask.mode in _GREY_MODES and mask.mode != "LA" else mask.convert("L")
            return (_array(grey, file, case_id) > self.foreground_above).astype(np.uint8)
        if file.suffix.lower() in _LOSSY:
            raise BadInput(
                f"{file}: case '{case_id}': expected class indices in a lossless format, found JPEG; save masks as "
                "PNG, or set `foreground_above`"
            )
        if mask.mode not in ("P", *_GREY_MODES) or mask.mode == "LA":
            raise BadInput(
                f"{file}: case '{case_id}': expected one channel of class indices, found mode {mask.mode}; save the "
                "index of the class per pixel (overlapping masks are not supported)"
            )
        return _array(mask, file, case_id)

    def _images(self) -> dict[str, str]:
        images = self._stems(self.images)
        if not images:
            raise BadInput(
                f"{self.path / self.images}: expected images ({', '.join(_SUFFIXES)}), found none; check `path`"
            )
        return images

    def _stems(self, folder: str) -> dict[str, str]:
        """File below the data root for each stem, in order of the stems."""
        path = inside(self.path, folder, "data")
        if not path.is_dir():
            raise BadInput(f"{path}: expected a folder of pictures, found none; check `path`, `images` and `masks`")
        found: dict[str, str] = {}
        for file in sorted(path.iterdir()):
            if file.name.startswith("."):  # macOS and editors keep hidden files beside the data
                continue
            if file.suffix.lower() not in _SUFFIXES or not file.is_file():
                refuse_dicom(file)
                raise BadInput(f"{file}: expected only {', '.join(_SUFFIXES)} in {path}; convert or move it")
            if file.stem in found:
                raise BadInput(
                    f"{file}: expected one file for case '{file.stem}', found {Path(found[file.stem]).name} as well; "
                    "remove one of them"
                )
            found[file.stem] = f"{folder}/{file.name}"
        return found

    def _first_kind(self) -> str:
        stem, file = next(iter(self._images().items()))
        with _opened(self.path / file, stem) as picture:
            return _kind(picture)


def _kind(picture: Any) -> str:
    return "grey" if picture.mode in _GREY_MODES else "rgb"


def _opened(file: Path, case_id: str) -> Any:
    """Picture of which only the header is read."""
    from PIL import Image

    try:
        picture = Image.open(file)
        # PNG may hold the tag behind the pixels, so asking for it would read them all.
        orientation = picture.getexif().get(_ORIENTATION, _UPRIGHT) if picture.format == "JPEG" else _UPRIGHT
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadInput(f"{file}: case '{case_id}': expected a picture, found an unreadable file ({error})") from error
    if orientation != _UPRIGHT:
        raise BadInput(
            f"{file}: case '{case_id}': expected an upright picture, found EXIF orientation {orientation}; rotate the "
            "pixels and drop the tag, so that image and mask agree"
        )
    return picture


def _pixels(picture: Any, kind: str, file: Path, case_id: str) -> np.ndarray:
    """Image f32 `[channel, row, column]`, converted to grey or rgb."""
    wide = picture.mode.startswith(_WIDE_MODES)
    if kind == "grey":
        return _array(picture, file, case_id, None if wide else "L")[None].astype(np.float32)
    if wide:
        raise BadInput(
            f"{file}: case '{case_id}': expected 8 bits per channel for `channels: rgb`, found mode "
            f"{picture.mode}; convert it"
        )
    return np.ascontiguousarray(np.moveaxis(_array(picture, file, case_id, "RGB"), -1, 0), dtype=np.float32)


def _array(picture: Any, file: Path, case_id: str, mode: str | None = None) -> np.ndarray:
    try:
        return np.asarray(picture if mode is None else picture.convert(mode))
    except (OSError, SyntaxError, ValueError) as error:
        raise BadInput(
            f"{file}: case '{case_id}': expected {picture.height} x {picture.width} pixels, found a truncated or "
            f"damaged file ({error}); fetch it again"
        ) from error

"""PNG, BMP and JPEG files: size, pixels and masks of class indices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cases.checks import present, refuse_dicom
from pipeline.cases.reader import Header
from pipeline.errors import BadInput

LOSSY = (".jpg", ".jpeg")
ENDINGS = (".png", ".bmp", *LOSSY)

_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_WIDE_MODES = ("I", "F")
_ORIENTATION = 0x0112
_UPRIGHT = 1


def header(file: Path, case_id: str) -> Header:
    """One channel of grey, or red, green and blue; rows and columns; no spacing."""
    with _opened(file, case_id) as picture:
        return Header(1 if picture.mode in _GREY_MODES else 3, (picture.height, picture.width))


def image(file: Path, case_id: str) -> np.ndarray:
    """Image f32 `[channel, row, column]` with intensities as stored; transparency is dropped."""
    with _opened(file, case_id) as picture:
        if picture.mode.startswith(_WIDE_MODES):
            return _array(picture, file, case_id)[None].astype(np.float32)
        if picture.mode in _GREY_MODES:
            return _array(picture, file, case_id, "L")[None].astype(np.float32)
        return np.ascontiguousarray(np.moveaxis(_array(picture, file, case_id, "RGB"), -1, 0), dtype=np.float32)


def brightness(file: Path, case_id: str) -> np.ndarray:
    """Grey values `[row, column]` of a mask that is bright where its class is, in any colour or format.

    One bit per pixel is 0 and 255, as viewers show it.
    """
    with _opened(file, case_id) as picture:
        plain = picture.mode in _GREY_MODES and picture.mode not in ("LA", "1")
        return _array(picture, file, case_id, None if plain else "L")


def mask(file: Path, case_id: str) -> np.ndarray:
    """Class indices `[row, column]` as stored; raises `BadInput` for JPEG and for colours."""
    if file.suffix.lower() in LOSSY:
        raise BadInput(
            f"{file}: case '{case_id}': expected class indices in a lossless format, found JPEG; save masks as "
            "PNG, or set `foreground_above`"
        )
    with _opened(file, case_id) as picture:
        if picture.mode not in ("P", *_GREY_MODES) or picture.mode == "LA":
            raise BadInput(
                f"{file}: case '{case_id}': expected one channel of class indices, found mode {picture.mode}; save the "
                "index of the class per pixel (overlapping masks are not supported)"
            )
        return _array(picture, file, case_id)


def _opened(file: Path, case_id: str) -> Any:
    """Picture of which only the header is read."""
    from PIL import Image

    refuse_dicom(file)
    present(file, case_id)
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


def _array(picture: Any, file: Path, case_id: str, mode: str | None = None) -> np.ndarray:
    try:
        return np.asarray(picture if mode is None else picture.convert(mode))
    except (OSError, SyntaxError, ValueError) as error:
        raise BadInput(
            f"{file}: case '{case_id}': expected {picture.height} x {picture.width} pixels, found a truncated or "
            f"damaged file ({error}); fetch it again"
        ) from error

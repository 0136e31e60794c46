"""Reading PNG, BMP and JPEG files: size, pixels and masks of class indices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cases.files.checks import present, refuse_dicom
from pipeline.cases.files.header import Header
from pipeline.cases.voxels import GREY_MODES, pixels
from pipeline.errors import BadInput

LOSSY = (".jpg", ".jpeg")
ENDINGS = (".png", ".bmp", *LOSSY)

_ORIENTATION = 0x0112
_UPRIGHT = 1


def header(file: Path, case_id: str) -> Header:
    """Channels (1 for grey, 3 for red, green and blue) and shape (rows, columns) of a picture, without spacing."""
    with _opened(file, case_id) as picture:
        return Header(1 if picture.mode in GREY_MODES else 3, (picture.height, picture.width))


def image(file: Path, case_id: str) -> np.ndarray:
    """Image f32 `[channel, row, column]` with intensities as stored. Transparency is dropped."""
    with _opened(file, case_id) as picture:
        return _array(picture, file, case_id, pixels)


def brightness(file: Path, case_id: str) -> np.ndarray:
    """Grey values `[row, column]` of a mask whose foreground is bright, in any colour mode or format.

    A picture with one bit per pixel has the values 0 and 255, as in viewers.
    """
    with _opened(file, case_id) as picture:
        plain = picture.mode in GREY_MODES and picture.mode not in ("LA", "1")
        return _array(picture, file, case_id, np.asarray if plain else lambda found: np.asarray(found.convert("L")))


def mask(file: Path, case_id: str) -> np.ndarray:
    """Class indices `[row, column]` of a mask as stored. Raises `BadInput` for JPEG and for several channels."""
    if file.suffix.lower() in LOSSY:
        raise BadInput(
            f"{file}: case '{case_id}': expected class indices in a lossless format, found JPEG; save masks as "
            "PNG, or set `foreground_above`"
        )
    with _opened(file, case_id) as picture:
        if picture.mode not in ("P", *GREY_MODES) or picture.mode == "LA":
            raise BadInput(
                f"{file}: case '{case_id}': expected one channel of class indices, found mode {picture.mode}; save the "
                "index of the class per pixel (overlapping masks are not supported)"
            )
        return _array(picture, file, case_id)


def _opened(file: Path, case_id: str) -> Any:
    """Opened picture. Only the header is read. Raises `BadInput` if the EXIF tag of a JPEG rotates the pixels."""
    from PIL import Image

    refuse_dicom(file)
    present(file, case_id)
    try:
        picture = Image.open(file)
        # PNG may store the tag after the pixels, and reading the tag would then read all pixels.
        orientation = picture.getexif().get(_ORIENTATION, _UPRIGHT) if picture.format == "JPEG" else _UPRIGHT
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadInput(
            f"{file}: case '{case_id}': expected a picture, found an unreadable file ({error}); save the picture again"
        ) from error
    if orientation != _UPRIGHT:
        raise BadInput(
            f"{file}: case '{case_id}': expected an upright picture, found EXIF orientation {orientation}; rotate the "
            "pixels and drop the tag, so that image and mask agree"
        )
    return picture


def _array(picture: Any, file: Path, case_id: str, read: Callable[[Any], np.ndarray] = np.asarray) -> np.ndarray:
    try:
        return read(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise BadInput(
            f"{file}: case '{case_id}': expected {picture.height} x {picture.width} pixels, found a truncated or "
            f"damaged file ({error}); fetch it again"
        ) from error

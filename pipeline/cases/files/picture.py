"""Reading PNG, BMP, JPEG and WebP files: size, pixels and masks. The content decides the format, not the ending."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cases.files.checks import present, refuse_dicom, refuse_inverted
from pipeline.cases.files.header import Header
from pipeline.cases.voxels import GREY_MODES, TOO_LARGE, picture_fault, pixels, raw_mode, verify
from pipeline.errors import BadInput

LOSSY = (".jpg", ".jpeg")
ENDINGS = (".png", ".bmp", *LOSSY)

_LOSSLESS = ("PNG", "BMP")
"""Formats of Pillow that keep class indices. WebP may be lossless, but its file does not say so."""
_STRETCH = {"L;2": 85, "L;4": 17}
"""Factor by which Pillow stretches grey of 2 and 4 bits to 0 to 255."""
_OPAQUE = 255


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

    A picture with one bit per pixel has the values 0 and 255, as in viewers. Raises `BadInput` for transparency, since
    the mask may be drawn in it.
    """
    with _opened(file, case_id) as picture:
        _refuse_transparency(picture, file, case_id)
        plain = picture.mode in GREY_MODES and picture.mode not in ("LA", "1")
        return _array(picture, file, case_id, np.asarray if plain else lambda found: np.asarray(found.convert("L")))


def mask(file: Path, case_id: str) -> np.ndarray:
    """Class indices `[row, column]` of a mask as stored: grey values, or the indices of a colour table.

    Raises `BadInput` for lossy formats, for several channels and for a colour table that contradicts its indices.
    """
    with _opened(file, case_id) as picture:
        if picture.format not in _LOSSLESS:
            raise BadInput(
                f"{file}: case '{case_id}': expected class indices in a lossless format, found {picture.format}, "
                "which changes pixels; save the mask as PNG from its source. A mask of black and white is read by "
                "`foreground_above` (layout `folders`, sampler `imported`)"
            )
        if picture.mode not in ("P", *GREY_MODES) or picture.mode == "LA":
            _refuse_transparency(picture, file, case_id)
            raise BadInput(
                f"{file}: case '{case_id}': expected one channel of class indices, found mode {picture.mode}; save the "
                "index of the class per pixel (overlapping masks are not supported)"
            )
        stretch = _STRETCH.get(raw_mode(picture), 1)
        values = _array(picture, file, case_id)
        if picture.mode == "P":
            picture.apply_transparency()
            colours = np.array(picture.getpalette("RGBA"), np.uint8).reshape(-1, 4)
            refuse_inverted(values, colours, file, case_id)
        return values // stretch if stretch > 1 else values


def _refuse_transparency(picture: Any, file: Path, case_id: str) -> None:
    """Refuse a mask that is not opaque everywhere: it may be drawn in the alpha channel."""
    if not picture.has_transparency_data:
        return
    alpha = _array(picture, file, case_id, lambda found: np.asarray(found.convert("RGBA").getchannel("A")))
    if alpha.min() < _OPAQUE:
        raise BadInput(
            f"{file}: case '{case_id}': expected an opaque mask, found alpha from {alpha.min()} to {alpha.max()}; save "
            "the mask as grey. If it is drawn in the alpha channel, save that channel, e.g. with Pillow: "
            'Image.open(file).convert("RGBA").getchannel("A").save(file)'
        )


def _opened(file: Path, case_id: str) -> Any:
    """Opened picture. Only the header is read. Raises `BadInput` for every fault of `picture_fault`."""
    from PIL import Image

    refuse_dicom(file)
    present(file, case_id)
    try:
        picture = Image.open(file)
        fault = picture_fault(picture)
    except Image.DecompressionBombError as error:
        raise BadInput(f"{file}: case '{case_id}': {TOO_LARGE} ({error})") from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise BadInput(
            f"{file}: case '{case_id}': expected a picture, found an unreadable file ({error}); save the picture again"
        ) from error
    if fault is not None:
        picture.close()
        raise BadInput(f"{file}: case '{case_id}': {fault}")
    return picture


def _array(picture: Any, file: Path, case_id: str, read: Callable[[Any], np.ndarray] = np.asarray) -> np.ndarray:
    """What `read` makes of the pixels of a picture, whose checksums and late tags are checked."""
    try:
        verify(file)
        values = read(picture)
        fault = picture_fault(picture)
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise BadInput(
            f"{file}: case '{case_id}': expected {picture.height} x {picture.width} pixels, found a truncated or "
            f"damaged file ({error}); fetch it again"
        ) from error
    if fault is not None:
        raise BadInput(f"{file}: case '{case_id}': {fault}")
    return values

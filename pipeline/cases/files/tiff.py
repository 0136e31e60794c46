"""Reading TIFF files: pictures and stacks of slices, with channels if the file names the channel axis."""

from __future__ import annotations

import logging
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cases.files.checks import json_object, present, refuse_dicom, refuse_inverted
from pipeline.cases.files.header import Header
from pipeline.cases.voxels import converted, turned_fault
from pipeline.errors import BadInput

ENDINGS = (".tif", ".tiff")

_CHANNEL = "CS"
"""Letters of tifffile for the axis of channels."""
_SLICE = "ZIQ"
"""Letters of tifffile for the axis of slices: declared slices, a series of pages, and an axis without a name."""
_GREY, _RGB, _PALETTE = 1, 2, 3
"""Photometric interpretations of TIFF: 0 is black, red with green and blue, and indices of a colour table."""
_COLOURS = 3
_LOSSLESS = (
    *("NONE", "CCITTRLE", "CCITT_T4", "CCITTFAX3", "CCITT_T6", "CCITTFAX4", "CCIRLEW", "LZW", "PACKBITS"),
    *("ADOBE_DEFLATE", "DEFLATE", "LZMA", "ZSTD", "ZSTD_DEPRECATED", "PNG", "JBIG", "JBIG2"),
)
"""Compressions of tifffile that keep class indices."""
_ORIENTATION = 274
_DAMAGE = (
    *(OSError, EOFError, ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError),
    *(ValueError, struct.error, zlib.error),
)
"""Errors of tifffile on damaged files: it does not check most tags before it computes with them."""


def header(file: Path, case_id: str) -> Header:
    """Channels and shape of a TIFF file: (rows, columns) or (slices, rows, columns), without spacing.

    Raises `BadInput` for other axes, such as time, and for several images in a file.
    """
    with _opened(file, case_id) as series:
        return _header(series, file, case_id)


def image(file: Path, case_id: str) -> np.ndarray:
    """Image f32 `[channel, *space]` with intensities as stored. Refuses colour tables and inverted grey."""
    with _opened(file, case_id) as series:
        found = _header(series, file, case_id)
        _refuse_photometric(series, (_GREY, _RGB), "grey where bright is large, or RGB", file, case_id)
        voxels = _ordered(series, file, case_id).astype(np.float32)
    return np.ascontiguousarray(voxels.reshape(found.channels, *found.shape))


def brightness(file: Path, case_id: str) -> np.ndarray:
    """Grey values `[*space]` of a mask whose foreground is bright: grey as stored, or the luma of RGB.

    A file with one bit per voxel has the values 0 and 255, as in viewers. Refuses colour tables, inverted grey and
    alpha channels.
    """
    with _opened(file, case_id) as series:
        found = _header(series, file, case_id)
        _refuse_photometric(series, (_GREY, _RGB), "a mask of grey where bright is large, or of RGB", file, case_id)
        if found.channels != (_COLOURS if series.keyframe.photometric == _RGB else 1):
            raise BadInput(
                f"{file}: case '{case_id}': expected grey or RGB without alpha, found {found.channels} channels (axes "
                f"{series.axes}); save the mask as grey, or the channel in which it is drawn"
            )
        values = _ordered(series, file, case_id).reshape(found.channels, *found.shape)
    if values.dtype == bool:
        values = values * np.uint8(255)
    return converted(values, "grey")[0]


def mask(file: Path, case_id: str) -> np.ndarray:
    """Class indices `[*space]` of a mask as stored: grey values, or the indices of a colour table.

    Raises `BadInput` for several channels, for lossy compression, for grey where 0 is white, and for a colour table
    that contradicts its indices.
    """
    with _opened(file, case_id) as series:
        if (found := _header(series, file, case_id)).channels > 1:
            raise BadInput(
                f"{file}: case '{case_id}': expected one channel of class indices, found {found.channels} (axes "
                f"{series.axes}); save the index of the class per voxel (overlapping masks are not supported)"
            )
        _refuse_photometric(series, (_GREY, _PALETTE), "class indices where 0 is black", file, case_id)
        if (compression := _name(series.keyframe.compression)) not in _LOSSLESS:
            raise BadInput(
                f"{file}: case '{case_id}': expected class indices in a lossless compression, found {compression}; "
                "save the mask from its source with deflate or uncompressed"
            )
        values = _ordered(series, file, case_id).reshape(found.shape)
        if series.keyframe.photometric == _PALETTE:
            refuse_inverted(values, _colours(series, file, case_id), file, case_id)
        return values


def _colours(series: Any, file: Path, case_id: str) -> np.ndarray:
    """Colour table u8 `[entry, 3]`. A file holds 16 bits per colour."""
    if (found := series.keyframe.colormap) is None:
        raise BadInput(f"{file}: case '{case_id}': expected a colour table, found none; fetch the file again")
    return (np.asarray(found).T >> 8).astype(np.uint8)


def _refuse_photometric(series: Any, allowed: tuple[int, ...], expected: str, file: Path, case_id: str) -> None:
    """Refuse a file with a page of another kind of colour."""
    # A page that an OME file names and lacks is None, and reading its voxels is refused.
    for page in filter(None, series.pages):
        if (found := page.aspage().photometric) not in allowed:
            raise BadInput(f"{file}: case '{case_id}': expected {expected}, found {_name(found)}; convert it")


def _name(found: Any) -> str:
    """Name of a tag's value. A value that TIFF does not know is a number without a name."""
    return str(getattr(found, "name", found))


def spacing(beside: Path, case_id: str, axes: int) -> tuple[float, ...] | None:
    """Spacing in mm in the order of the axes, from the JSON file beside a stack. None without the file.

    Source of the format: nnU-Net's documentation, `dataset_format.md`.
    """
    if not beside.is_file():
        return None
    found: Any = json_object(beside).get("spacing")
    edges = found if isinstance(found, list) else []
    numbers = [edge for edge in edges if isinstance(edge, (int, float)) and 0 < edge < np.inf]
    if len(numbers) != len(edges) or len(edges) != axes:
        raise BadInput(
            f"{beside}: case '{case_id}': expected `spacing` with {axes} numbers above 0, found {found!r}; correct it"
        )
    return tuple(float(edge) for edge in numbers)


def _header(series: Any, file: Path, case_id: str) -> Header:
    sizes = dict(zip(series.axes, series.shape, strict=True))
    channel = [axis for axis in series.axes if axis in _CHANNEL]
    slices = [axis for axis in series.axes if axis in _SLICE]
    if len(channel) > 1 or len(slices) > 1 or set(series.axes) - {*channel, *slices} != {"Y", "X"}:
        raise BadInput(
            f"{file}: case '{case_id}': expected the axes YX or ZYX, with C or S for channels, found {series.axes} of "
            f"shape {series.shape}; save one image or stack per file, e.g. with tifffile and its metadata 'axes'"
        )
    if series.dtype.kind not in "iufb":
        raise BadInput(f"{file}: case '{case_id}': expected real numbers, found type {series.dtype}; convert it")
    return Header(sizes[channel[0]] if channel else 1, tuple(sizes[axis] for axis in (*slices, "Y", "X")))


def _ordered(series: Any, file: Path, case_id: str) -> np.ndarray:
    """Voxels with the axes in the order channel, slice, row, column."""
    try:
        values = series.asarray()
        if values.shape != series.shape:
            raise ValueError(f"found {values.shape}")
    except _DAMAGE as error:
        raise BadInput(
            f"{file}: case '{case_id}': expected {series.shape} voxels, found a truncated or damaged file, or a "
            f"compression or depth that is not installed ({error}); fetch it again, or save it with deflate or "
            "uncompressed, and 8 or 16 bits"
        ) from error
    rank = {axis: place for place, axis in enumerate((*_CHANNEL, *_SLICE, "Y", "X"))}
    return values.transpose(sorted(range(values.ndim), key=lambda axis: rank[series.axes[axis]]))


@contextmanager
def _opened(file: Path, case_id: str) -> Iterator[Any]:
    """Context with the only series of a TIFF file. Only the tags are read.

    Raises `BadInput` for several series and for a tag that turns a page.
    """
    import tifffile

    refuse_dicom(file)
    present(file, case_id)
    # A file that is cut off between two pages opens as a shorter stack. tifffile reports the fault in its log only.
    complaints = _Complaints()
    logger = logging.getLogger("tifffile")
    logger.addHandler(complaints)
    try:
        opened = tifffile.TiffFile(file)
        series = opened.series
        pages: list[Any] = [page.aspage() for one in series for page in one.pages if page is not None]
        turns = [page.tags.valueof(_ORIENTATION) for page in pages]
    except _DAMAGE as error:
        raise BadInput(
            f"{file}: case '{case_id}': expected TIFF, found an unreadable file ({error}); fetch the file again"
        ) from error
    finally:
        logger.removeHandler(complaints)
    with opened:
        if complaints.found:
            raise BadInput(
                f"{file}: case '{case_id}': expected a whole TIFF, found a truncated or damaged file "
                f"({complaints.found[0]}); fetch it again"
            )
        if len(series) != 1:
            raise BadInput(
                f"{file}: case '{case_id}': expected one image or stack in the file, found {len(series)} of the shapes "
                f"{[one.shape for one in series]}; save one per file"
            )
        for fault in filter(None, map(turned_fault, turns)):
            raise BadInput(f"{file}: case '{case_id}': {fault}")
        yield series[0]


class _Complaints(logging.Handler):
    """Handler that collects the errors that the thread of its creation logs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.found.append(record.getMessage())

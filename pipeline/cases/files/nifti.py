"""Reading NIfTI files: grid, voxels, and masks on the grid of an image."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cases.files.checks import present, refuse_dicom, refuse_other_shape
from pipeline.cases.files.header import Header
from pipeline.cases.voxels import nifti_affine, nifti_edges, nifti_voxels
from pipeline.errors import BadInput

ENDINGS = (".nii.gz", ".nii")

_AFFINE_TOLERANCE = 1e-3
_DAMAGE = (OSError, EOFError, ValueError, zlib.error)
_GZIP = b"\x1f\x8b"
_PIECE = 1 << 20


def header(
    file: Path, case_id: str, channels: int = 1, remedy: str = "correct the channels in dataset.json, or the file"
) -> Header:
    """Grid of an image (2D) or volume (3D). With several channels, the last axis of the file is the channels.

    `remedy` is the advice in the message about a file with other channels. The affine is None if `sform_code` and
    `qform_code` are 0, because the directions of the axes are then unknown. Raises `BadInput` for other shapes, for a
    header that contradicts itself (see `nifti_edges` and `nifti_affine`), for a file with fewer bytes than its shape
    needs, and for a file that is not NIfTI or does not hold real numbers.
    """
    with _damage_first(file, case_id):
        nifti = _opened(file, case_id)
        found = nifti.shape
        if channels > 1 and (len(found) < 3 or found[-1] != channels):
            raise BadInput(
                f"{file}: case '{case_id}': expected {channels} channels as the last axis, found shape {found}; "
                f"{remedy}"
            )
        shape = _trimmed(found[:-1] if channels > 1 else found, 2)
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise BadInput(
                f"{file}: case '{case_id}': expected an image or a volume with {channels} channels, found shape "
                f"{found}; {remedy}"
            )
        with _named(file, case_id):
            affine = nifti_affine(nifti, len(shape))
            return Header(channels, shape, nifti_edges(nifti, len(shape)), affine)


def image(file: Path, case_id: str, shape: tuple[int, ...]) -> np.ndarray:
    """Image f32 `[channel, *space]` with intensities as stored. `shape` is the shape in the header."""
    voxels = _voxels(file, case_id).astype(np.float32)
    # Reshaping adds the channel axis of a single channel and drops trailing axes of length 1.
    return np.ascontiguousarray(np.moveaxis(voxels.reshape(*shape, -1), -1, 0))


def mask(
    file: Path,
    case_id: str,
    shape: tuple[int, ...],
    affine: tuple[float, ...] | None,
    spacing_mm: tuple[float, ...] | None = None,
) -> np.ndarray:
    """Values `[*space]` of a mask as stored. Raises `BadInput` if the grid differs from the image's.

    The grid is shape and affine, or shape and spacing if the affine of the image is unknown.
    """
    with _damage_first(file, case_id):
        nifti = _opened(file, case_id)
        refuse_other_shape(_trimmed(nifti.shape, len(shape)), shape, file, case_id)
        if affine is not None:
            refuse_other_affine(tuple(nifti.affine.ravel()), affine, file, case_id)
        elif spacing_mm is not None:
            with _named(file, case_id):
                found = nifti_edges(nifti, len(shape))
            refuse_other_spacing(found, spacing_mm, file, case_id)
    return _voxels(file, case_id).reshape(shape)


def refuse_other_affine(
    found: tuple[float, ...] | None, expected: tuple[float, ...] | None, file: Path, case_id: str
) -> None:
    """Refuse an affine that differs from the image's by more than 1e-3 in a number, or if only one affine exists."""
    off = np.inf if found is None or expected is None else float(np.abs(np.subtract(found, expected)).max())
    if found != expected and not off <= _AFFINE_TOLERANCE:
        raise BadInput(
            f"{file}: case '{case_id}': expected the image's affine within {_AFFINE_TOLERANCE:g}, found a difference "
            f"of {off:g}; resample the file to the image's grid, or correct the header"
        )


def refuse_other_spacing(
    found: tuple[float, ...] | None, expected: tuple[float, ...] | None, file: Path, case_id: str
) -> None:
    """Refuse voxel edges in mm that differ from the image's by more than 1e-3. Unknown edges pass.

    For images without an affine. The edges in the header of NIfTI may differ from its affine by 1 %.
    """
    if found is None or expected is None:
        return
    if not np.allclose(found, expected, rtol=0, atol=_AFFINE_TOLERANCE):
        image, here = (", ".join(f"{edge:g}" for edge in edges) for edges in (expected, found))
        raise BadInput(
            f"{file}: case '{case_id}': expected the image's voxel edges ({image}) mm within {_AFFINE_TOLERANCE:g}, "
            f"found ({here}); resample the file to the image's grid, or correct the header"
        )


def refuse_other_grid(found: Header, image: Header, file: Path, case_id: str) -> None:
    """Refuse a channel with another affine, or without affines with another spacing, than the first channel."""
    refuse_other_affine(found.affine, image.affine, file, case_id)
    if image.affine is None:
        refuse_other_spacing(found.spacing_mm, image.spacing_mm, file, case_id)


def _trimmed(shape: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """Shape without trailing axes of length 1, but with at least `axes` axes."""
    while len(shape) > axes and shape[-1] == 1:
        shape = shape[:-1]
    return shape


@contextmanager
def _damage_first(file: Path, case_id: str) -> Iterator[None]:
    """Context that refuses a damaged file as damaged where its header is refused.

    The header of a damaged file may be wrong. The advice to correct the header would keep the damage.
    """
    try:
        yield
    except BadInput:
        if file.is_file() and _is_compressed(file):
            with _readable("a whole file", file, case_id):
                _length(file)
        raise


@contextmanager
def _named(file: Path, case_id: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise BadInput(f"{file}: case '{case_id}': {error}") from error


@contextmanager
def _readable(expected: str, file: Path, case_id: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise BadInput(
            f"{file}: case '{case_id}': expected {expected}, found a truncated or damaged file ({error}); fetch it "
            "again"
        ) from error


def _opened(file: Path, case_id: str) -> Any:
    """Opened NIfTI file with all bytes that its shape needs. Only the header is read."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    refuse_dicom(file)
    present(file, case_id)
    try:
        opened = nibabel.load(file)
    except (ImageFileError, HeaderDataError, *_DAMAGE) as error:
        raise BadInput(
            f"{file}: case '{case_id}': expected NIfTI, found an unreadable file ({error}); fetch the file again"
        ) from error
    if not isinstance(opened, nibabel.Nifti1Image):
        raise BadInput(f"{file}: case '{case_id}': expected NIfTI, found {type(opened).__name__}; convert it")
    if opened.get_data_dtype().kind not in "iufb":
        raise BadInput(
            f"{file}: case '{case_id}': expected real numbers, found type {opened.get_data_dtype()}; save "
            "one channel per modality"
        )
    _refuse_short(opened, file, case_id)
    return opened


def _refuse_short(nifti: Any, file: Path, case_id: str) -> None:
    """Refuse a file with fewer bytes than its shape needs, before an array of this shape is made."""
    needed = nifti.dataobj.offset + int(np.prod(nifti.shape, dtype=object)) * nifti.get_data_dtype().itemsize
    with _readable(f"{nifti.shape} voxels", file, case_id):
        if _is_compressed(file):
            with file.open("rb") as stream:
                stream.seek(-4, 2)
                # The last bytes of gzip are the length modulo 2^32, of the last part if the file has several parts.
                if int.from_bytes(stream.read(), "little") == needed:
                    return
        if (found := _length(file) if _is_compressed(file) else file.stat().st_size) < needed:
            raise EOFError(f"{needed} bytes are needed, {found} bytes are there")


def _is_compressed(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(_GZIP)) == _GZIP


def _length(file: Path) -> int:
    """Length in bytes of the content of a gzip file, whose checksum is compared."""
    with gzip.open(file) as stream:
        return sum(map(len, iter(lambda: stream.read(_PIECE), b"")))


def _voxels(file: Path, case_id: str) -> np.ndarray:
    nifti = _opened(file, case_id)
    with _readable(f"{nifti.shape} voxels", file, case_id):
        return nifti_voxels(file)

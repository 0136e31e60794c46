"""Reading NIfTI files: grid, voxels, and masks on the grid of an image."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cases.files.checks import present, refuse_dicom, refuse_other_shape
from pipeline.cases.files.header import Header
from pipeline.cases.voxels import nifti_affine, nifti_edges
from pipeline.errors import BadInput

ENDINGS = (".nii.gz", ".nii")

_AFFINE_TOLERANCE = 1e-3


def header(
    file: Path, case_id: str, channels: int = 1, remedy: str = "correct the channels in dataset.json, or the file"
) -> Header:
    """Grid of an image (2D) or volume (3D). With several channels, the last axis of the file is the channels.

    `remedy` is the advice in the message about a file with other channels. The affine is None if `sform_code` and
    `qform_code` are 0, because the directions of the axes are then unknown. Raises `BadInput` for other shapes, for
    voxel edges that are not finite and above 0, and for a file that is not NIfTI or does not hold real numbers.
    """
    nifti = _opened(file, case_id)
    found = nifti.shape
    if channels > 1 and (len(found) < 3 or found[-1] != channels):
        raise BadInput(
            f"{file}: case '{case_id}': expected {channels} channels as the last axis, found shape {found}; {remedy}"
        )
    shape = _trimmed(found[:-1] if channels > 1 else found, 2)
    if len(shape) not in (2, 3) or 0 in shape:
        raise BadInput(
            f"{file}: case '{case_id}': expected an image or a volume with {channels} channels, found shape {found}; "
            f"{remedy}"
        )
    spacing = nifti_edges(nifti, len(shape))
    if not all(0 < length < np.inf for length in spacing):
        raise BadInput(
            f"{file}: case '{case_id}': expected voxel edges above 0, found {spacing}; correct `pixdim` in the header"
        )
    return Header(channels, shape, spacing, nifti_affine(nifti))


def image(file: Path, case_id: str, shape: tuple[int, ...]) -> np.ndarray:
    """Image f32 `[channel, *space]` with intensities as stored. `shape` is the shape in the header."""
    voxels = _voxels(_opened(file, case_id), file, case_id).astype(np.float32)
    # Reshaping adds the channel axis of a single channel and drops trailing axes of length 1.
    return np.ascontiguousarray(np.moveaxis(voxels.reshape(*shape, -1), -1, 0))


def mask(file: Path, case_id: str, shape: tuple[int, ...], affine: tuple[float, ...] | None) -> np.ndarray:
    """Values `[*space]` of a mask as stored. Raises `BadInput` if shape or affine differ from the image's."""
    nifti = _opened(file, case_id)
    refuse_other_shape(_trimmed(nifti.shape, len(shape)), shape, file, case_id)
    if affine is not None:
        refuse_other_affine(tuple(nifti.affine.ravel()), affine, file, case_id)
    return _voxels(nifti, file, case_id).reshape(shape)


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


def _trimmed(shape: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """Shape without trailing axes of length 1, but with at least `axes` axes."""
    while len(shape) > axes and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _opened(file: Path, case_id: str) -> Any:
    """Opened NIfTI file. Only the header is read."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    refuse_dicom(file)
    present(file, case_id)
    try:
        opened = nibabel.load(file)
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error) as error:
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
    return opened


def _voxels(nifti: Any, file: Path, case_id: str) -> np.ndarray:
    try:
        return np.asanyarray(nifti.dataobj)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise BadInput(
            f"{file}: case '{case_id}': expected {nifti.shape} voxels, found a truncated or damaged file ({error}); "
            "fetch it again"
        ) from error

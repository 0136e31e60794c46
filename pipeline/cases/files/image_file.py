"""Images and masks of all supported formats.

The ending of the file name decides between NIfTI, NRRD, MetaImage, TIFF and pictures. What a picture is follows from
its content.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.cases.files import attached, mask_file, nifti, picture, tiff
from pipeline.cases.files.checks import brighter, class_indices, refuse_dicom, refuse_other_shape
from pipeline.cases.files.header import Header
from pipeline.errors import BadInput
from pipeline.store.schema import UNKNOWN

VOLUMES = (*nifti.ENDINGS, *attached.ENDINGS)
"""Endings of formats with the axes x, y and z. All other formats have the axes (slice,) row and column."""
ENDINGS = (*VOLUMES, *tiff.ENDINGS, *picture.ENDINGS)

_ONE_CHANNEL = "save each channel as a file of its own (layout `nnunet`), or use the layout `decathlon`"
"""Advice on a NIfTI file with a fourth axis."""


def ending_of(file: Path) -> str:
    """Ending of a file name, one of `ENDINGS`. Raises `BadInput` for DICOM and all other endings."""
    found = next((ending for ending in ENDINGS if file.name.lower().endswith(ending)), None)
    if found is None:
        refuse_dicom(file)
        attached.refuse_detached(file)
        raise BadInput(
            f"{file}: expected {', '.join(ENDINGS)}, found '{file.suffix}'; convert it, e.g. to .nii.gz, or move it"
        )
    return found


def stem_of(file: Path) -> str:
    """Name of a file without its ending. Raises `BadInput` as `ending_of` does."""
    return file.name[: -len(ending_of(file))]


def is_volume(file: str | Path) -> bool:
    """Whether the ending of a file is one of `VOLUMES`."""
    return str(file).lower().endswith(VOLUMES)


def header(file: Path, case_id: str) -> Header:
    """Channels and grid of an image file. A file of `VOLUMES` has one channel here."""
    ending = ending_of(file)
    if ending in nifti.ENDINGS:
        return nifti.header(file, case_id, remedy=_ONE_CHANNEL)
    if ending in attached.ENDINGS:
        return attached.header(file, case_id)
    return tiff.header(file, case_id) if ending in tiff.ENDINGS else picture.header(file, case_id)


def image(file: Path, case_id: str, shape: tuple[int, ...]) -> np.ndarray:
    """Image f32 `[channel, *space]` with intensities as stored. `shape` is the shape in the header."""
    ending = ending_of(file)
    if ending in nifti.ENDINGS:
        return nifti.image(file, case_id, shape)
    if ending in attached.ENDINGS:
        return attached.image(file, case_id, shape)
    return tiff.image(file, case_id) if ending in tiff.ENDINGS else picture.image(file, case_id)


def read_mask(
    file: Path,
    case_id: str,
    shape: tuple[int, ...],
    affine: tuple[float, ...] | None,
    classes: int,
    ignore: int | None = UNKNOWN,
    spacing_mm: tuple[float, ...] | None = None,
) -> np.ndarray:
    """Label u8 `[*space]` on the grid of the image with this shape and affine. 255 where the file holds `ignore`.

    Raises `BadInput` for another grid (see `mask_values`), and for values that are not a class.
    """
    return class_indices(mask_values(file, case_id, shape, affine, spacing_mm), classes, file, case_id, ignore)


def mask_values(
    file: Path,
    case_id: str,
    shape: tuple[int, ...],
    affine: tuple[float, ...] | None,
    spacing_mm: tuple[float, ...] | None = None,
    bright: bool = False,
) -> np.ndarray:
    """Values `[*space]` of a mask as stored, of any number type. With `bright`, grey values of pictures in any colour.

    `shape`, `affine` and `spacing_mm` are of the image; None: unknown. Raises `BadInput` for another shape, and in
    files of `VOLUMES` for another affine, or for another spacing if the image has no affine. With `bright`,
    transparency is refused too.
    """
    ending = ending_of(file)
    if ending in nifti.ENDINGS:
        values = nifti.mask(file, case_id, shape, affine, spacing_mm)
    elif ending in attached.ENDINGS:
        values = attached.mask(file, case_id, shape, affine, spacing_mm)
    else:
        kind = tiff if ending in tiff.ENDINGS else picture
        values = kind.brightness(file, case_id) if bright else kind.mask(file, case_id)
    refuse_other_shape(values.shape, shape, file, case_id)
    return values


def bright_mask(
    file: Path,
    case_id: str,
    shape: tuple[int, ...],
    affine: tuple[float, ...] | None,
    above: int,
    spacing_mm: tuple[float, ...] | None = None,
) -> np.ndarray:
    """Label u8 `[*space]`: 1 where a mask of black and white is brighter than `above`, else 0.

    Raises `BadInput` for another grid, for transparency, and for a mask of class indices.
    """
    return brighter(mask_values(file, case_id, shape, affine, spacing_mm, bright=True), above, file, case_id)


def mask_ending(image: Path) -> str:
    """Ending of the mask file of an image: that of NIfTI, NRRD or MetaImage, `.tif` for TIFF, else `.png`."""
    ending = ending_of(image)
    return ending if ending in attached.ENDINGS else mask_file.mask_ending(image)


def write_mask(mask: np.ndarray, image: Path, path: Path) -> None:
    """Write a label map u8 `[*space]` to `path`, whose ending is `mask_ending(image)`, on the grid of the image."""
    write = attached.write_mask if ending_of(image) in attached.ENDINGS else mask_file.write_mask
    write(mask, image, path)


def probability_ending(image: Path) -> str:
    """Ending of the file with class probabilities of an image: that of NIfTI for NIfTI, else `.npz`."""
    ending = ending_of(image)
    return ending if ending in nifti.ENDINGS else ".npz"

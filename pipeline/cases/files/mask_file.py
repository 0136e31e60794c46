"""Writing masks and class probabilities on the grid of an image file, in the format of the image file.

This file imports nothing of the library. An exported bundle holds a copy of this file, so that the bundle and the
library write the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_GEOMETRY = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "xyzt_units"),
)
"""Fields of a NIfTI header with the geometry. Free text is not copied, because free text may name a patient."""


def mask_ending(image: Path) -> str:
    """Ending of the mask file of an image: `.nii.gz` or `.nii` as the image, `.tif` for TIFF, else `.png`."""
    name = image.name.lower()
    for ending in (".nii.gz", ".nii"):
        if name.endswith(ending):
            return ending
    return ".tif" if name.endswith((".tif", ".tiff")) else ".png"


def in_values(mask: np.ndarray, values: Sequence[int] | None) -> np.ndarray:
    """A mask u8 of class indices with the value of each class in place of its index. None keeps the indices."""
    return mask if values is None else np.asarray(values, np.uint8)[mask]


def write_mask(mask: np.ndarray, image: Path, path: Path) -> None:
    """Write a label map u8 `[*space]` to `path`, whose ending is `mask_ending(image)`.

    The file is renamed into place when complete.
    """
    ending = mask_ending(image)
    if ending == ".png":
        from PIL import Image

        into_place(path, ".png", lambda partial: Image.fromarray(mask).save(partial))
    elif ending == ".tif":
        from tifffile import imwrite

        axes = {"axes": "ZYX"[-mask.ndim :]}
        into_place(
            path,
            ending,
            lambda partial: imwrite(partial, mask, photometric="minisblack", compression="zlib", metadata=axes),
        )
    else:
        into_place(path, ending, lambda partial: _save(mask, image, partial))


def write_probability(probability: np.ndarray, image: Path, path: Path) -> None:
    """Write class probabilities f32 `[class, *space]` to `path`.

    For a NIfTI image the file is NIfTI with the axes x, y, z, class. For any other image the file is `.npz` with the
    array `probability` and the axes class, then those of the image. The file is renamed into place when complete.
    """
    ending = mask_ending(image)
    if not ending.startswith(".nii"):
        into_place(path, ".npz", lambda partial: np.savez_compressed(partial, probability=probability))
        return
    space = (*probability.shape[1:], 1)[:3]
    values = np.moveaxis(probability, 0, -1).reshape(*space, len(probability))
    into_place(path, ending, lambda partial: _save(values, image, partial))


def _save(values: np.ndarray, image: Path, path: Path) -> None:
    """Write a NIfTI file of values `[*space]` or `[x, y, z, class]` with the geometry fields of the image's header."""
    import nibabel

    like: Any = nibabel.load(image)
    kind = nibabel.Nifti2Image if isinstance(like, nibabel.Nifti2Image) else nibabel.Nifti1Image
    header = kind.header_class()
    header.set_data_dtype(values.dtype)
    if values.ndim == 2 and like.ndim > 2 and like.shape[2] == 1:
        values = values[..., None]  # the image of a single slice has a third axis
    header.set_data_shape(values.shape)
    for field in _GEOMETRY:
        header[field] = like.header[field]
    header["pixdim"][:4] = like.header["pixdim"][:4]
    nibabel.save(kind(values, None, header), path)


def into_place(path: Path, ending: str, write: Callable[[Path], object]) -> None:
    """Make the file `path` by `write`, which writes a file in work. The file appears when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name.removesuffix(ending)}{ending}")
    write(partial)
    partial.replace(path)

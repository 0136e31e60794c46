"""Voxels of opened image files on the working grid, and class probabilities back on the grid of the image.

This file imports nothing of the library. An exported bundle holds a copy of this file, so that the bundle and the
library compute the same.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")
"""Pillow's modes of pictures with one channel. Pictures of all other modes are read as red, green and blue."""
DOCUMENTS = (".txt", ".md", ".csv", ".tsv", ".json", ".yaml", ".yml", ".xml", ".html", ".pdf", ".docx", ".xlsx")
"""Endings of files beside images that are not images. Files with these endings are skipped with a warning.

Files with any other ending are refused. An image of an unsupported format would otherwise be left without a mask.
"""
FORMATS = ("PNG", "BMP", "JPEG", "MPO", "WEBP")
"""Pillow's formats that are read, whatever the ending of the file. MPO, which phones write as JPEG, holds several
pictures, and is listed so that the message names them.

GIF is left out, because its writers renumber the colours: a class index would not survive.
"""
TOO_LARGE = "expected a picture that Pillow opens, found too many pixels; save it as TIFF, or cut it into tiles"
"""Message on a picture above Pillow's limit, which is 179 million pixels. TIFF has no such limit."""
_WIDE_MODES = ("I", "F")
_WIDE_PIXELS = ";16B"
_ORIENTATION = 0x0112
_TURNED = range(2, 9)
_LUMA = np.array([19595, 38470, 7471]) / 65536
_IN_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""Millimetres of a unit of space by its code in a NIfTI header: unknown (read as mm), metre, millimetre, micron."""
_SPACE = 7  # bits of the unit of space; the other bits are of the unit of time
_EDGE_TOLERANCE = 0.01
"""Tolerated difference of a voxel edge from its length in the sform, as a share. Headers round .9765625 to .98."""
_LEAST_VOLUME = 1e-3
"""Least volume of a voxel over the product of its edges. Sheared volumes have a volume above one half."""
_PIECE = 1 << 20
_CLIP = (0.5, 99.5)
_UNIT = 255.0


# ---- files -----------------------------------------------------------------------------------------------------


def nifti_edges(nifti: Any, axes: int) -> tuple[float, ...]:
    """Voxel edges in mm of the first `axes` axes of an opened NIfTI file. A file without a unit is in mm.

    Raises `ValueError` for an undefined unit, for edges in the file that are not finite and above 0, and for edges that
    differ from the sform by more than 1 %.
    """
    unit = int(nifti.header["xyzt_units"]) & _SPACE
    if unit not in _IN_MM:
        raise ValueError(
            "expected the unit 0 (unknown, read as mm), 1 (m), 2 (mm) or 3 (micron) in `xyzt_units`, found "
            f"{unit}; correct the header"
        )
    edges = _stored_edges(nifti)[:axes]
    if not all(0 < edge < np.inf for edge in edges):
        raise ValueError(f"expected voxel edges above 0, found {_listed(edges)}; correct `pixdim` in the header")
    if nifti.header["sform_code"] > 0:
        columns = np.linalg.norm(nifti.affine[:3, :axes], axis=0)
        if not all(abs(edge - column) <= _EDGE_TOLERANCE * column for edge, column in zip(edges, columns, strict=True)):
            raise ValueError(
                f"expected the same voxel edges twice in the header, found {_listed(edges)} in `pixdim` and "
                f"{_listed(columns)} in the sform; correct the wrong one, or set sform_code to 0 if the sform is wrong"
            )
    # As stored, in single precision: nnU-Net decides by these values where two grids are equally near.
    return tuple(edge * _IN_MM[unit] for edge in edges)


def nifti_affine(nifti: Any, axes: int = 3) -> tuple[float, ...] | None:
    """Affine of an opened NIfTI file as 16 numbers, row by row.

    None if `sform_code` and `qform_code` are 0, because the directions of the axes are then unknown. Raises
    `ValueError` for numbers that are not finite, and if the first `axes` axes do not have `axes` directions.
    """
    sform, qform = (int(nifti.header[f"{form}_code"]) for form in ("sform", "qform"))
    if not (sform > 0 or qform > 0):
        return None
    affine = nifti.affine
    if not np.isfinite(affine).all() or not spans(affine[:3, :axes]):
        form = "sform" if sform > 0 else "qform"
        qform_too = f" and a qform_code of {qform}; set sform_code to 0 to use the qform" if sform > 0 < qform else ""
        raise ValueError(
            f"expected {'three' if axes == 3 else 'two'} directions in the {form}, found {affine[:3].tolist()} with "
            f"{form}_code {sform or qform}{qform_too or '; correct the header'}"
        )
    return tuple(float(value) for value in affine.ravel())


def spans(columns: np.ndarray) -> bool:
    """Whether the columns `[space, axis]` of an affine are as many directions as there are axes."""
    volume = np.sqrt(max(0.0, np.linalg.det(columns.T @ columns)))
    return bool(volume > _LEAST_VOLUME * np.prod(np.linalg.norm(columns, axis=0)))


def nifti_voxels(file: Path) -> np.ndarray:
    """Voxels `[*axes]` of a NIfTI file as stored, with its scale factor applied.

    A compressed file is read to its end, where its checksum is. Raises `OSError`, `EOFError`, `ValueError` or
    `zlib.error` for a damaged file.
    """
    import nibabel

    nifti: Any = nibabel.load(file)
    if file.suffix.lower() != ".gz":
        return np.asanyarray(nifti.dataobj)
    with gzip.open(file) as stream:
        # The library alone would stop behind the last voxel, so the checksum would never be compared.
        voxels = np.asanyarray(type(nifti).from_stream(stream).dataobj)
        while stream.read(_PIECE):
            pass
    return voxels


def _stored_edges(nifti: Any) -> list[float]:
    """`pixdim` of all axes as in the file. An opened file has 1 where the file has 0, and no negative edges."""
    with nifti.file_map["image"].get_prepare_fileobj("rb") as stream:
        header = type(nifti.header).from_fileobj(stream, check=False)
    return [float(edge) for edge in header["pixdim"][1:]]


def _listed(edges: Sequence[float] | np.ndarray) -> str:
    return f"({', '.join(f'{edge:g}' for edge in edges)})"


def picture_fault(picture: Any) -> str | None:
    """Reason why the pixels that Pillow reads would not be the picture, or None. The text ends with what to do.

    Faults are another format, a tag that turns the pixels, several frames, and 16 bits per pixel that Pillow cuts to 8.
    A PNG may hold its tags after the pixels, and these are seen only when the pixels have been read.
    """
    if picture.format not in FORMATS:
        rename = "rename it to .tif" if picture.format == "TIFF" else "convert it to PNG"
        return f"expected a file of the format {', '.join(FORMATS)}, found {picture.format}; {rename}"
    tags_are_read = picture.format != "PNG" or "exif" in picture.info or not picture.tile
    if tags_are_read and (turned := turned_fault(picture.getexif().get(_ORIENTATION))):
        return turned
    if (frames := getattr(picture, "n_frames", 1)) > 1:
        return f"expected one picture in the file, found {frames} ({picture.format}); save each as a file of its own"
    if raw_mode(picture).endswith(_WIDE_PIXELS) and not picture.mode.startswith(_WIDE_MODES):
        return (
            f"expected 8 bits per channel, or 16 bits of grey without alpha, found 16 bits ({raw_mode(picture)}), of "
            "which 8 would be lost; save it as TIFF"
        )
    return None


def turned_fault(orientation: object) -> str | None:
    """Fault of a picture whose orientation tag has this value, or None if viewers show the pixels as stored."""
    if orientation not in _TURNED:
        return None
    return (
        f"expected an upright picture, found orientation {orientation} in its tags; rotate the pixels and drop the "
        "tag, so that image and mask agree"
    )


def raw_mode(picture: Any) -> str:
    """Pillow's name of the pixels in the file, e.g. `L;2` for 2 bits. Empty once the pixels are read."""
    arguments = picture.tile[0][3] if picture.tile else ""
    return str(arguments if isinstance(arguments, str) else arguments[0])


def verify(file: Any) -> None:
    """Compare the checksums of a picture file, before which Pillow stops when it reads pixels.

    Only PNG has checksums. Raises `SyntaxError` or `OSError` for a damaged file.
    """
    from PIL import Image

    with Image.open(file) as whole:
        whole.verify()


def pixels(picture: Any) -> np.ndarray:
    """Intensities f32 `[channel, row, column]` of an opened picture as stored. Transparency is dropped."""
    if picture.mode.startswith(_WIDE_MODES):
        return np.asarray(picture)[None].astype(np.float32)
    if picture.mode in GREY_MODES:
        return np.asarray(picture.convert("L"))[None].astype(np.float32)
    return np.ascontiguousarray(np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0), dtype=np.float32)


def converted(image: np.ndarray, kind: str) -> np.ndarray:
    """Image f32 `[channel, *space]` of 1 or 3 channels, converted to `grey` or `rgb`.

    Grey is the luma of ITU-R 601, rounded as Pillow does. RGB repeats the grey channel.
    """
    if len(image) == {"grey": 1, "rgb": 3}[kind]:
        return image
    if kind == "rgb":
        return np.repeat(image, 3, axis=0)
    return np.floor(np.tensordot(_LUMA, image.astype(np.float64), 1) + 0.5)[None].astype(np.float32)


# ---- grids -----------------------------------------------------------------------------------------------------


def to_ras(affine: Sequence[float]) -> tuple[int, ...] | None:
    """Nearest RAS axis of each axis of a volume, from 1, negative if reversed. None if the volume is RAS already.

    `affine` has 16 numbers, row by row. Raises `ValueError` for an affine without three directions.
    """
    from nibabel import io_orientation

    found = io_orientation(np.asarray(affine, np.float64).reshape(4, 4))
    if not np.isfinite(found).all():
        raise ValueError(f"expected an affine with three directions, found {list(affine)}")
    orientation = tuple(int((axis + 1) * sign) for axis, sign in found)
    return None if orientation == (1, 2, 3) else orientation


def working_axes(orientation: Sequence[int] | None, axes: int) -> list[int]:
    """Source axis of each working axis, from 0."""
    return list(range(axes)) if orientation is None else np.argsort(np.abs(orientation)).tolist()


def voxels_at(shape: Sequence[int], edges: Sequence[float], spacing: Sequence[float]) -> tuple[int, ...]:
    """Shape of a grid with voxel edges as near as possible to `spacing` that covers a grid of `shape` and `edges`."""
    each = zip(shape, edges, spacing, strict=True)
    # In nnU-Net's order of operations, which decides where two lengths are equally near.
    return tuple(max(1, round(edge / asked * length)) for length, edge, asked in each)


def turned(values: np.ndarray, orientation: Sequence[int] | None) -> np.ndarray:
    """Values `[*source]` with the axes in the order and direction of the working axes.

    The same array is returned if `orientation` is None.
    """
    if orientation is None:
        return values
    return np.ascontiguousarray(values[_steps(orientation)].transpose(working_axes(orientation, values.ndim)))


def resized(channel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Values f32 resampled linearly to a shape, with anti-aliasing. The same array if the shape is equal."""
    if channel.shape == shape:
        return channel
    from skimage.transform import resize

    return resize(channel, shape, order=1, mode="edge", anti_aliasing=True, preserve_range=True).astype(np.float32)


def back(
    probability: np.ndarray, original_shape: Sequence[int], orientation: Sequence[int] | None = None
) -> np.ndarray:
    """Probability f32 `[class, *source]` from `[class, *working]`, interpolated linearly between voxel centres.

    The same array is returned if the grids are equal.
    """
    before = tuple(original_shape[axis] for axis in working_axes(orientation, len(original_shape)))
    if probability.shape[1:] != before:
        import torch
        from torch.nn.functional import interpolate

        mode = {2: "bilinear", 3: "trilinear"}[len(before)]
        working = torch.from_numpy(np.ascontiguousarray(probability, dtype=np.float32))
        probability = interpolate(working[None], size=before, mode=mode, align_corners=False)[0].numpy()
    if orientation is None:
        return probability
    turned_back = np.transpose(probability, [0, *(abs(axis) for axis in orientation)])
    return np.ascontiguousarray(turned_back[(slice(None), *_steps(orientation))])


def _steps(orientation: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(None, None, -1 if axis < 0 else 1) for axis in orientation)


# ---- intensities -----------------------------------------------------------------------------------------------


def on_working_grid(
    image: np.ndarray,
    normalise: Sequence[str | Mapping[str, Any]],
    shape: tuple[int, ...],
    orientation: Sequence[int] | None,
) -> np.ndarray:
    """Image f32 `[channel, *working]` from `[channel, *source]`, resampled and then normalised.

    `normalise` has one entry per channel.
    """
    each = zip(image, normalise, strict=True)
    return np.stack([normalised(resized(turned(channel, orientation), shape), how) for channel, how in each])


def normalised(channel: np.ndarray, how: str | Mapping[str, Any]) -> np.ndarray:
    """Intensities f32 of a channel, normalised as `preprocess.normalise` describes.

    `how` is the name of a normalisation, or the keys `range`, `to` and `clip` of a fixed range. A constant channel
    becomes 0, except with `unit` and a fixed range. Raises `ValueError` for `unit` if intensities are not from 0 to
    255.
    """
    values = channel.astype(np.float64)
    if not isinstance(how, str):
        (low, high), (bottom, top) = how["range"], how["to"]
        scaled = (values - low) / (high - low) * (top - bottom) + bottom
        return (scaled.clip(bottom, top) if how["clip"] else scaled).astype(np.float32)
    if how == "unit":
        if values.min() < 0 or values.max() > _UNIT:
            raise ValueError(
                f"preprocess.normalise 'unit' expected intensities from 0 to 255, found {values.min():g} to "
                f"{values.max():g}; use another normalisation"
            )
        return (values / _UNIT).astype(np.float32)
    if how == "percentile":
        values = values.clip(*np.percentile(values, _CLIP))
    low, high = values.min(), values.max()
    if low == high:
        return np.zeros(channel.shape, np.float32)
    if how == "minmax":
        return ((values - low) / (high - low)).astype(np.float32)
    return ((values - values.mean()) / values.std()).astype(np.float32)

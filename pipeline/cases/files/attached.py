"""Reading and writing NRRD (`.nrrd`) and MetaImage (`.mha`): grid, voxels, and masks on the grid of an image.

The library decodes both itself: SimpleITK reads a damaged compressed `.mha` as other voxels, without an error.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.cases.files.checks import present, refuse_dicom, refuse_other_shape
from pipeline.cases.files.header import Header
from pipeline.cases.files.mask_file import into_place
from pipeline.cases.files.nifti import refuse_other_affine, refuse_other_spacing
from pipeline.cases.files.text_headers import TextHeader, metaimage, nrrd
from pipeline.errors import BadInput

ENDINGS = (".nrrd", ".mha")
_DETACHED = (".nhdr", ".mhd")

_NRRD_GEOMETRY = {
    **{"space": "space", "spacedimension": "space dimension", "spacedirections": "space directions"},
    **{"spaceorigin": "space origin", "spaceunits": "space units", "spacings": "spacings", "units": "units"},
    **{"kinds": "kinds", "centers": "centers", "centerings": "centerings"},
}
_META_GEOMETRY = (
    *("TransformMatrix", "Offset", "CenterOfRotation", "AnatomicalOrientation", "ElementSpacing", "ElementSize"),
    "DistanceUnits",
)
"""Fields with the geometry. Free text is not copied to masks, because free text may name a patient."""
_DAMAGE = (OSError, EOFError, ValueError, zlib.error)
_PIECE = 1 << 20
_EITHER = 32 + zlib.MAX_WBITS
"""Window of zlib that finds out whether data are of zlib or gzip, as MetaIO does."""


def refuse_detached(file: Path) -> None:
    """Refuse a header whose voxels are in another file: a change of the other file would not be seen."""
    if file.suffix.lower() in _DETACHED:
        raise BadInput(
            f"{file}: expected image and header in one file, found a header ({file.suffix}) whose voxels are in "
            "another file; save the image as .nrrd or .mha, e.g. with SimpleITK"
        )


def header(file: Path, case_id: str) -> Header:
    """Grid of an image (2D) or volume (3D). A third axis of length 1 is left out.

    The affine is None if the directions of the axes are not stated. Raises `BadInput` for what `text_headers` refuses,
    and for a file with more or fewer bytes of voxels than its header states.
    """
    found = _header(file, case_id)
    spacing = None if found.spacing_mm is None else found.spacing_mm[: len(found.shape)]
    return Header(1, found.shape, spacing, found.affine)


def image(file: Path, case_id: str, shape: tuple[int, ...]) -> np.ndarray:
    """Image f32 `[1, *space]` with intensities as stored. `shape` is the shape in the header."""
    return np.ascontiguousarray(_voxels(file, case_id).astype(np.float32).reshape(1, *shape))


def mask(
    file: Path,
    case_id: str,
    shape: tuple[int, ...],
    affine: tuple[float, ...] | None,
    spacing_mm: tuple[float, ...] | None = None,
) -> np.ndarray:
    """Values `[*space]` of a mask as stored. Raises `BadInput` if the grid differs from the image's, as in NIfTI."""
    found = header(file, case_id)
    refuse_other_shape(found.shape, shape, file, case_id)
    if affine is not None:
        refuse_other_affine(found.affine, affine, file, case_id)
    else:
        refuse_other_spacing(found.spacing_mm, spacing_mm, file, case_id)
    return _voxels(file, case_id).reshape(shape)


def write_mask(mask: np.ndarray, image: Path, path: Path) -> None:
    """Write a label map u8 `[*space]` to `path`, in the format of `image` and with the geometry of its header.

    The voxels are compressed. The file is renamed into place when complete.
    """
    like = _header(image, path.stem)
    voxels = mask.tobytes("F")
    content = (_as_nrrd if _is_nrrd(image) else _as_metaimage)(like, voxels)
    into_place(path, path.suffix, lambda partial: partial.write_bytes(content))


def _as_nrrd(like: TextHeader, voxels: bytes) -> bytes:
    lines = [
        *("NRRD0004", "type: unsigned char", f"dimension: {len(like.sizes)}", f"sizes: {_listed(like)}"),
        *(f"{name}: {like.fields[field]}" for field, name in _NRRD_GEOMETRY.items() if field in like.fields),
        *("encoding: gzip", "", ""),
    ]
    return "\n".join(lines).encode() + gzip.compress(voxels, mtime=0)


def _as_metaimage(like: TextHeader, voxels: bytes) -> bytes:
    packed = zlib.compress(voxels)
    lines = [
        *("ObjectType = Image", f"NDims = {len(like.sizes)}", "BinaryData = True", "BinaryDataByteOrderMSB = False"),
        *("CompressedData = True", f"CompressedDataSize = {len(packed)}"),
        *(f"{name} = {like.fields[name]}" for name in _META_GEOMETRY if name in like.fields),
        *(f"DimSize = {_listed(like)}", "ElementType = MET_UCHAR", "ElementDataFile = LOCAL", ""),
    ]
    return "\n".join(lines).encode() + packed


def _listed(like: TextHeader) -> str:
    return " ".join(map(str, like.sizes))


def _is_nrrd(file: Path) -> bool:
    return file.name.lower().endswith(".nrrd")


def _header(file: Path, case_id: str) -> TextHeader:
    """Header of a file with all bytes that its shape needs. The voxels are not decoded if the bytes can be counted."""
    refuse_dicom(file)
    present(file, case_id)
    try:
        with file.open("rb") as stream:
            found = (nrrd if _is_nrrd(file) else metaimage)(stream)
    except (ValueError, OSError) as error:
        raise BadInput(f"{file}: case '{case_id}': {error}") from error
    with _readable(found, file, case_id):
        there = file.stat().st_size - found.start
        if found.packing is None:
            _equal(found.needed, there)
        elif found.packing == "zlib" and found.packed is not None:
            _equal(found.packed, there)
        elif found.packing == "gzip" and _last_length(file) != found.needed % (1 << 32):
            with file.open("rb") as stream:
                _equal(found.needed, sum(map(len, _unpacked(stream, found.start))))
    return found


def _voxels(file: Path, case_id: str) -> np.ndarray:
    """Voxels `[*axes]` as stored, with the axes of the file. Compressed voxels are read to their checksum."""
    found = _header(file, case_id)
    with _readable(found, file, case_id), file.open("rb") as stream:
        stream.seek(found.start)
        if found.packing == "gzip":
            content = b"".join(_unpacked(stream, found.start))
        elif found.packing == "zlib":
            decoder = zlib.decompressobj(_EITHER)
            content = decoder.decompress(stream.read(), found.needed + 1)
            if len(content) == found.needed and not decoder.eof:
                raise EOFError("the checksum behind the voxels is not there")
            if decoder.unused_data:
                raise EOFError(f"{len(decoder.unused_data)} bytes follow the voxels")
        else:
            content = stream.read()
        _equal(found.needed, len(content))
    return np.frombuffer(content, found.dtype).reshape(found.sizes, order="F")


def _last_length(file: Path) -> int:
    """Length that the last bytes of gzip state, modulo 2^32."""
    with file.open("rb") as stream:
        stream.seek(-4, 2)
        return int.from_bytes(stream.read(), "little")


def _unpacked(stream: BinaryIO, start: int) -> Iterator[bytes]:
    """Pieces of the content of gzip behind a byte of a file. The checksum is compared behind the last piece."""
    stream.seek(start)
    with gzip.open(stream) as packed:
        yield from iter(lambda: packed.read(_PIECE), b"")


def _equal(needed: int, found: int) -> None:
    if found != needed:
        raise EOFError(f"{needed} bytes are needed, {'more' if found > needed else found} bytes are there")


@contextmanager
def _readable(found: TextHeader, file: Path, case_id: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise BadInput(
            f"{file}: case '{case_id}': expected {found.sizes} voxels of {found.dtype}, found a truncated or damaged "
            f"file, or a wrong header ({error}); fetch it again"
        ) from error

"""Text headers of NRRD and MetaImage files: grid, type and place of the voxels that follow in the same file.

Axes are in the order of the file, fastest first, as in NIfTI. Affines lead to NIfTI's space: right, anterior, superior.
Sources of the formats: teem.sourceforge.net/nrrd/format.html, and `metaImage.cxx` of ITK's MetaIO.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal

import numpy as np

from pipeline.cases.voxels import spans

Fields = dict[str, str]

_LONGEST_LINE = 1 << 16
_MOST_LINES = 10_000
_NRRD = re.compile(rb"NRRD000[1-5]\s*")
_SPACES = {
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1, -1, 1)),
    **dict.fromkeys(("right-anterior-superior", "ras"), (1, 1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1, 1, 1)),
}
"""Signs from the spaces of NRRD to right, anterior, superior."""
_LPS = _SPACES["lps"]
"""Signs from ITK's space, which is that of MetaImage and of 2D NRRD files."""
_NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), "i8"),
    **dict.fromkeys(("int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    **{"float": "f4", "double": "f8"},
}
_META_TYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4"},
    # MetaIO stores a long in 4 bytes on every machine.
    **{"MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8"},
    **{"MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
_META_NAMES = {
    **dict.fromkeys(("Rotation", "Orientation"), "TransformMatrix"),
    **dict.fromkeys(("Position", "Origin"), "Offset"),
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
"""Keys of MetaImage with another name for the same field."""
_SPATIAL = ("domain", "space", "???", "none")
_MM = ("mm", "millimeter", "millimeters", "millimetre", "millimetres")
_UNIT_TOLERANCE = 0.01
_ONE_FILE = "save image and header in one file, e.g. with SimpleITK"


@dataclass(frozen=True)
class TextHeader:
    """What the text of a file states about the voxels that follow."""

    fields: Fields  # all fields, as written
    sizes: tuple[int, ...]  # voxels along each axis, fastest first
    dtype: np.dtype
    start: int  # first byte behind the header
    packing: Literal["gzip", "zlib"] | None
    packed: int | None  # bytes of the compressed voxels; None if the header does not say
    spacing_mm: tuple[float, ...] | None  # one voxel edge per axis; None if unknown
    affine: tuple[float, ...] | None  # 16 numbers, row by row; None if the directions of the axes are unknown

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the image: a third axis of length 1 is left out."""
        return self.sizes[:2] if self.sizes[2:] == (1,) else self.sizes

    @property
    def needed(self) -> int:
        """Bytes of the voxels without compression."""
        return int(np.prod(self.sizes, dtype=object)) * self.dtype.itemsize


# ---- NRRD ------------------------------------------------------------------------------------------------------


def nrrd(stream: BinaryIO) -> TextHeader:
    """Header of an NRRD file. Names of fields are in small letters, without spaces.

    The affine is None without `space directions`. Raises `ValueError`, which says what to do, for a header that is
    broken, for voxels in another file, for axes that are not spatial, and for a `space` that is not one of the
    patient's three. 2D images, for which NRRD has no such space, are in ITK's.
    """
    if not _NRRD.fullmatch(found := stream.readline(_LONGEST_LINE)):
        raise ValueError(f"expected NRRD, found a file that begins with {found[:12]!r}; fetch the file again")
    fields = _nrrd_fields(stream)
    if "datafile" in fields:
        raise ValueError(f"expected the voxels behind the header, found `data file: {fields['datafile']}`; {_ONE_FILE}")
    axes = _axes(fields, "dimension", "sizes")
    kinds = fields.get("kinds", "domain").lower().split()
    if other := [kind for kind in kinds if kind not in _SPATIAL]:
        raise ValueError(
            f"expected axes of space (`kinds: {' '.join(['domain'] * axes)}`), found '{other[0]}' in `kinds: "
            f"{fields['kinds']}`; save one image of numbers per file, without axes of channels, segments or time"
        )
    for field in ("spaceunits", "units"):
        units = fields.get(field, "").replace('"', " ").lower().split()
        if other := [unit for unit in units if unit not in _MM]:
            raise ValueError(f"expected millimetres, found the unit '{other[0]}'; save the file in mm")
    for field in ("lineskip", "byteskip"):
        if fields.get(field, "0") != "0":
            raise ValueError(f"expected voxels right behind the header, found `{field}: {fields[field]}`; {_ONE_FILE}")
    packings: dict[str, Literal["gzip"] | None] = {"raw": None, "gzip": "gzip", "gz": "gzip"}
    if (encoding := _stated(fields, "encoding").lower()) not in packings:
        raise ValueError(f"expected the encoding raw or gzip, found '{encoding}'; save the file with gzip")
    spacing, affine = _nrrd_grid(fields, axes)
    dtype = _dtype(_NRRD_TYPES, _stated(fields, "type").lower(), fields, "endian", {"little": "<", "big": ">"})
    sizes = _whole(fields, "sizes")
    return TextHeader(fields, sizes, dtype, stream.tell(), packings[encoding], None, spacing, affine)


def _nrrd_fields(stream: BinaryIO) -> Fields:
    fields: Fields = {}
    for line in _lines(stream):
        if not line:
            return fields
        name, colon, value = line.partition(":")
        if line.startswith("#") or value.startswith("="):  # comments, and keys that users invent
            continue
        _put(fields, "".join(name.lower().split()), value if colon else None, line)
    raise ValueError("expected an empty line behind the header, found none; fetch the file again")


def _nrrd_grid(fields: Fields, axes: int) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Spacing and affine, as far as they are known."""
    edges = _numbers(fields, "spacings", axes) if "spacings" in fields else (np.nan,) * axes
    directions = fields.get("spacedirections")
    if directions is None:
        return (None if np.isnan(edges).all() else _edges(edges, "spacings")), None
    if not np.isnan(edges).all():
        raise ValueError(
            f"expected the voxel edges once, found `spacings: {fields['spacings']}` beside `space directions`; remove "
            "`spacings`"
        )
    vectors = [_floats(vector, "space directions") for vector in re.findall(r"\(([^()]*)\)", directions)]
    if "none" in directions.lower() or [len(vector) for vector in vectors] != [axes] * axes:
        raise ValueError(
            f"expected {axes} vectors of {axes} numbers in `space directions`, found {directions}; save one image of "
            "numbers per file, with a direction for each axis"
        )
    space = fields.get("space", "").lower()
    signs = _SPACES.get(space) if axes == 3 else _LPS if not space else None
    if signs is None:
        expected = " or ".join(name for name in _SPACES if "-" in name) if axes == 3 else "none for an image of 2 axes"
        raise ValueError(
            f"expected the `space` {expected}, found {repr(space) if space else 'none'}, so that left and right are "
            "unknown; correct `space`, or state voxel edges as `spacings` in place of `space directions`"
        )
    columns = np.array(vectors).T
    origin = _floats(fields["spaceorigin"].strip("()"), "space origin") if "spaceorigin" in fields else (0.0,) * axes
    if len(origin) != axes:
        raise ValueError(f"expected {axes} numbers in `space origin`, found {fields['spaceorigin']}; correct it")
    affine = _affine(columns, origin, signs, "space directions")
    return _edges(np.linalg.norm(columns, axis=0), "space directions"), affine


# ---- MetaImage -------------------------------------------------------------------------------------------------


def metaimage(stream: BinaryIO) -> TextHeader:
    """Header of a MetaImage file (`.mha`). The affine is None without `TransformMatrix`.

    Raises `ValueError`, which says what to do, for a header that is broken, for voxels in another file, for several
    numbers per voxel, and for an intensity function, which ITK does not apply.
    """
    fields = _meta_fields(stream)
    if (place := fields["ElementDataFile"]) != "LOCAL":
        raise ValueError(f"expected the voxels behind the header, found `ElementDataFile = {place}`; {_ONE_FILE}")
    axes = _axes(fields, "NDims", "DimSize")
    for field, usual in (
        ("ElementNumberOfChannels", 1),
        ("HeaderSize", 0),
        ("ElementToIntensityFunctionSlope", 1),
        ("ElementToIntensityFunctionOffset", 0),
    ):
        if field in fields and _numbers(fields, field, 1) != (usual,):
            raise ValueError(
                f"expected `{field} = {usual}`, found {fields[field]}; save one plain number per voxel, e.g. with "
                "SimpleITK"
            )
    if (unit := fields.get("DistanceUnits", "mm")) not in ("mm", "?"):
        raise ValueError(f"expected millimetres, found `DistanceUnits = {unit}`; save the file in mm")
    if not _true(fields, "BinaryData"):
        raise ValueError("expected `BinaryData = True`, found voxels as text; save the file as binary")
    spacing, affine = _meta_grid(fields, axes)
    order = {"true": ">", "t": ">", "1": ">", "false": "<", "f": "<", "0": "<"}
    dtype = _dtype(_META_TYPES, _stated(fields, "ElementType"), fields, "BinaryDataByteOrderMSB", order)
    packing: Literal["zlib"] | None = "zlib" if _true(fields, "CompressedData") else None
    packed = _whole(fields, "CompressedDataSize")[0] if packing and "CompressedDataSize" in fields else None
    return TextHeader(fields, _whole(fields, "DimSize"), dtype, stream.tell(), packing, packed, spacing, affine)


def _meta_fields(stream: BinaryIO) -> Fields:
    fields: Fields = {}
    for line in _lines(stream):
        name, equals, value = line.partition("=")
        if not equals and not fields:
            raise ValueError(f"expected MetaImage, found a file that begins with {line[:12]!r}; fetch the file again")
        name = name.strip()
        _put(fields, _META_NAMES.get(name, name), value if equals else None, line)
        if name == "ElementDataFile":  # the last field
            return fields
    raise ValueError("expected `ElementDataFile = LOCAL` behind the header, found none; fetch the file again")


def _meta_grid(fields: Fields, axes: int) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Spacing and affine, as far as they are known."""
    stated = next((field for field in ("ElementSpacing", "ElementSize") if field in fields), None)
    spacing = None if stated is None else _edges(_numbers(fields, stated, axes), stated)
    if "TransformMatrix" not in fields:
        return spacing, None
    if stated is None:
        raise ValueError("expected `ElementSpacing` beside `TransformMatrix`, found none; save the spacing")
    # The file lists the direction of each axis in turn.
    directions = np.reshape(_numbers(fields, "TransformMatrix", axes * axes), (axes, axes)).T
    if not (np.abs(np.linalg.norm(directions, axis=0) - 1) <= _UNIT_TOLERANCE).all():
        raise ValueError(
            f"expected directions of length 1 in `TransformMatrix`, found {fields['TransformMatrix']}; correct them, "
            "and state the voxel edges in `ElementSpacing` alone"
        )
    origin = _numbers(fields, "Offset", axes) if "Offset" in fields else (0.0,) * axes
    return spacing, _affine(directions * _numbers(fields, stated, axes), origin, _LPS, "TransformMatrix")


def _true(fields: Fields, field: str) -> bool:
    return fields.get(field, "False")[:1] in ("T", "t", "1")


# ---- both ------------------------------------------------------------------------------------------------------


def _lines(stream: BinaryIO) -> Iterator[str]:
    """Lines of a header without their ends. Raises `ValueError` for what is no text of headers."""
    for _ in range(_MOST_LINES):
        line = stream.readline(_LONGEST_LINE)
        if not line.endswith(b"\n"):
            return
        yield line.decode("utf-8", "replace").strip()


def _put(fields: Fields, name: str, value: str | None, line: str) -> None:
    if value is None or name in fields:
        found = f"the line '{line:.40}'" if value is None else f"'{name}' twice"
        raise ValueError(f"expected each field of the header once, with a value, found {found}; correct the header")
    fields[name] = value.strip()


def _stated(fields: Fields, field: str) -> str:
    if field not in fields:
        raise ValueError(f"expected `{field}` in the header, found none; fetch the file again, or save it again")
    return fields[field]


def _floats(text: str, field: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.replace(",", " ").split())
    except ValueError as error:
        raise ValueError(f"expected numbers in `{field}`, found {text}; correct the header") from error


def _numbers(fields: Fields, field: str, count: int) -> tuple[float, ...]:
    found = _floats(_stated(fields, field), field)
    if len(found) != count:
        raise ValueError(f"expected {count} numbers in `{field}`, found {fields[field]}; correct the header")
    return found


def _whole(fields: Fields, field: str) -> tuple[int, ...]:
    """Whole numbers above 0."""
    words = _stated(fields, field).split()
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ValueError(f"expected whole numbers above 0 in `{field}`, found {fields[field]}; correct the header")
    return tuple(map(int, words))


def _axes(fields: Fields, number: str, sizes: str) -> int:
    """Number of axes, 2 or 3."""
    axes, lengths = _whole(fields, number)[0], _whole(fields, sizes)
    if axes not in (2, 3) or len(lengths) != axes:
        raise ValueError(
            f"expected an image or a volume, found `{number}` {axes} and `{sizes}` {' '.join(map(str, lengths))}; save "
            "one channel and one time per file"
        )
    return axes


def _dtype(types: Mapping[str, str], name: str, fields: Fields, order: str, signs: Mapping[str, str]) -> np.dtype:
    if name not in types:
        raise ValueError(f"expected voxels of real numbers, found the type '{name}'; convert the file")
    if np.dtype(types[name]).itemsize == 1:
        return np.dtype(types[name])
    if (found := _stated(fields, order).lower()) not in signs:
        raise ValueError(f"expected `{order}` {' or '.join(signs)}, found '{found}'; correct the header")
    return np.dtype(signs[found] + types[name])


def _edges(edges: Sequence[float] | np.ndarray, field: str) -> tuple[float, ...]:
    if not all(0 < edge < np.inf for edge in edges):
        found = ", ".join(f"{edge:g}" for edge in edges)
        raise ValueError(f"expected voxel edges above 0, found ({found}) in `{field}`; correct the header")
    # Twelve digits, because lengths of directions have rounding in the last ones: 2.5 may be 2.5000000000000004.
    return tuple(float(f"{edge:.12g}") for edge in edges)


def _affine(columns: np.ndarray, origin: Sequence[float], signs: Sequence[int], field: str) -> tuple[float, ...]:
    """Affine to right, anterior, superior, in the precision of NIfTI's header.

    `columns`: f64 `[space, axis]`, the step of a voxel in mm. `signs` lead from the space of the file.
    """
    axes = len(origin)
    affine = np.eye(4)
    affine[:axes, :axes], affine[:axes, 3] = columns, origin
    affine[:axes] *= np.array(signs[:axes])[:, None]
    affine += 0.0  # 0 in place of -0
    if not np.isfinite(affine).all() or not spans(affine[:3, :axes]):
        raise ValueError(
            f"expected {'three' if axes == 3 else 'two'} directions in `{field}`, found {affine[:axes].tolist()}; "
            "correct the header"
        )
    return tuple(float(value) for value in affine.astype(np.float32).ravel())

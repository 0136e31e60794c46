"""Sharded Zarr arrays of the data contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import BadInput
from pipeline.store import schema
from pipeline.store.schema import ArraySchema

if TYPE_CHECKING:
    import zarr


def _layout(array: ArraySchema, shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunk shape, one case deep (many for the small matrices), and the shape of whole chunks that hold a case."""
    if array is schema.DISAGREEMENT:
        chunk = [1, *shape[1:]]
    else:
        n_space = len(shape) - (len(array.axes) - 1)
        edge = schema.CHUNK[n_space]
        middle = [length if n_space == 2 else 1 for length in shape[1:-n_space]]
        chunk = [1, *middle, *(min(edge, length) for length in shape[-n_space:])]
    case_shape = [-(-length // edge) * edge for length, edge in zip(shape[1:], chunk[1:], strict=True)]
    return tuple(chunk), tuple(case_shape)


def cases_per_shard(n_cases: int, bytes_per_case: int) -> int:
    """Cases in one shard; it depends on the data alone, so any number of workers writes the same files."""
    if bytes_per_case > schema.SLAB_BYTES:
        return 1
    return max(1, min(-(-n_cases // schema.SHARDS), schema.SHARD_BYTES // max(1, bytes_per_case)))


@dataclass(frozen=True)
class Slabs:
    """How large cases are cut into shards: `rows` voxels each along the spatial axis `axis`."""

    axis: int
    rows: int

    @classmethod
    def of(cls, space: Sequence[int], bytes_per_voxel: int) -> Slabs | None:
        """Slabs of cases padded to `space`, or None where a case is small enough to be written at once."""
        if np.prod(space) * bytes_per_voxel <= schema.SLAB_BYTES:
            return None
        axis = int(np.argmax(space))
        edge = min(schema.CHUNK[len(space)], space[axis])
        thin = edge * bytes_per_voxel * int(np.prod(space)) // space[axis]
        return cls(axis, edge * max(1, schema.SLAB_BYTES // thin))


def create_array(
    folder: Path, array: ArraySchema, shape: Sequence[int], cases: int, slabs: Slabs | None = None
) -> None:
    """Create an empty array whose shards hold `cases` cases, or one slab; until a shard is written it reads as fill."""
    import zarr
    from zarr.codecs import BloscCodec

    chunk, case_shape = _layout(array, shape)
    if array is schema.DISAGREEMENT:
        chunk = (cases, *chunk[1:])
    elif slabs is not None:
        n_space = len(shape) - (len(array.axes) - 1)
        along = len(case_shape) - n_space + slabs.axis
        case_shape = tuple(
            min(slabs.rows, length) if axis == along else length for axis, length in enumerate(case_shape)
        )
    zarr.create_array(
        zarr.storage.LocalStore(folder / f"{array.name}.zarr"),
        shape=tuple(shape),
        dtype=array.dtype,
        chunks=chunk,
        shards=(cases, *case_shape),
        fill_value=array.fill,
        compressors=BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=np.dtype(array.dtype).itemsize),
        attributes={"schema": array.name, "version": schema.VERSION, "axes": list(array.axes)},
        overwrite=True,
    )


def shard_cases(array: zarr.Array) -> int:
    """Cases in one shard of an array of the contract."""
    assert array.shards is not None
    return array.shards[0]


def open_array(folder: Path, array: ArraySchema, mode: str = "r") -> zarr.Array:
    """Open an array of the contract, after checking its name and version."""
    import zarr

    path = folder / f"{array.name}.zarr"
    if not (path / "zarr.json").is_file():
        raise BadInput(f"{path}: no such array; run the stage that writes it with `dvc repro`")
    opened = zarr.open_array(zarr.storage.LocalStore(path), mode=mode)
    found = (opened.attrs.get("schema"), opened.attrs.get("version"))
    if found != (array.name, schema.VERSION):
        raise BadInput(f"{path}: expected {(array.name, schema.VERSION)}, found {found}; run `dvc repro`")
    return opened

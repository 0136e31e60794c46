"""Sharded Zarr arrays of the data contract: layout, creation and opening."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import BadInput
from pipeline.store import schema
from pipeline.store.schema import ArraySchema

if TYPE_CHECKING:
    import zarr


def _layout(array: ArraySchema, shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunk shape for a case, and the shape of the whole chunks that hold a case, without the case axis.

    A chunk holds voxels of one case only. `create_array` joins the small disagreement matrices of several cases into
    one chunk.
    """
    if array is schema.DISAGREEMENT:
        chunk = [1, *shape[1:]]
    else:
        # "*space" is one entry of `axes` and stands for several axes of `shape`.
        n_space = len(shape) - (len(array.axes) - 1)
        edge = schema.CHUNK[n_space]
        # In 3D a chunk holds one proposal, so that a few slots are read alone (`ProposalStore.masks`).
        middle = [length if n_space == 2 else 1 for length in shape[1:-n_space]]
        chunk = [1, *middle, *(min(edge, length) for length in shape[-n_space:])]
    case_shape = [-(-length // edge) * edge for length, edge in zip(shape[1:], chunk[1:], strict=True)]
    return tuple(chunk), tuple(case_shape)


def cases_per_shard(n_cases: int, bytes_per_case: int) -> int:
    """Number of cases in a shard.

    `bytes_per_case` is the raw size of a case in all arrays that are written together. The number of cases depends on
    the data alone, so any number of workers writes the same files.
    """
    if bytes_per_case > schema.SLAB_BYTES:
        return 1
    return max(1, min(-(-n_cases // schema.SHARDS), schema.SHARD_BYTES // max(1, bytes_per_case)))


@dataclass(frozen=True)
class Slabs:
    """Cut of a large case into shards of `rows` voxels along the spatial axis `axis`."""

    axis: int
    rows: int

    @classmethod
    def of(cls, space: Sequence[int], bytes_per_voxel: int) -> Slabs | None:
        """Slabs of cases padded to `space`. None if a case is at most `SLAB_BYTES` and is written at once."""
        if np.prod(space) * bytes_per_voxel <= schema.SLAB_BYTES:
            return None
        axis = int(np.argmax(space))
        edge = min(schema.CHUNK[len(space)], space[axis])
        # Raw bytes of a slab that is one chunk thick, the thinnest slab of whole chunks.
        thin = edge * bytes_per_voxel * int(np.prod(space)) // space[axis]
        return cls(axis, edge * max(1, schema.SLAB_BYTES // thin))


def create_array(
    folder: Path, array: ArraySchema, shape: Sequence[int], cases: int, slabs: Slabs | None = None
) -> None:
    """Create an empty array whose shards hold `cases` cases or one slab. An unwritten shard reads as the fill value.

    Every chunk has a checksum, since compressed noise reads as other noise where a bit is flipped.
    """
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

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
        compressors=(
            BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=np.dtype(array.dtype).itemsize),
            Crc32cCodec(),
        ),
        attributes={"schema": array.name, "version": schema.VERSION, "axes": list(array.axes)},
        overwrite=True,
    )


def shard_cases(array: zarr.Array) -> int:
    """Number of cases in a shard of an array of the contract."""
    assert array.shards is not None
    return array.shards[0]


def open_array(folder: Path, array: ArraySchema, mode: str = "r") -> zarr.Array:
    """Open an array of the contract. Raises `BadInput` if the array is missing or has another name or version."""
    import zarr

    path = folder / f"{array.name}.zarr"
    if not (path / "zarr.json").is_file():
        raise BadInput(f"{path}: no such array; run the stage that writes it with `dvc repro`")
    opened = zarr.open_array(zarr.storage.LocalStore(path), mode=mode)
    found = (opened.attrs.get("schema"), opened.attrs.get("version"))
    if found != (array.name, schema.VERSION):
        raise BadInput(
            f"{path}: expected name and version {(array.name, schema.VERSION)}, found {found}; run `dvc repro`"
        )
    return opened


def read_array(array: zarr.Array, where: Any) -> np.ndarray:
    """Values of an opened array at an index of slices, numbers and lists of numbers, one per axis.

    Raises `BadInput` for a damaged file.
    """
    try:
        return np.asarray(array[where])
    except (ValueError, RuntimeError) as error:  # of the checksum, and of the compression
        path = Path(array.store.root)  # type: ignore[attr-defined]
        raise BadInput(
            f"{path}: expected the values that were written, found damaged files ({error}); remove {path.parent} and "
            "run `dvc checkout`, or `dvc repro`"
        ) from error

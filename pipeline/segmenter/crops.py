"""Crops of cases that are larger than the window, without a whole case in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from pipeline.store.cases import Where
from pipeline.store.schema import CHUNK


class Spots:
    """Random draws from the voxels of a case for which `inside` is true, counted block by block.

    `inside` returns bool `[*box]` for a box of the case. Only counts are kept in memory. A draw evaluates `inside` on
    one block again.
    """

    def __init__(self, space: Sequence[int], inside: Callable[[Where], np.ndarray]) -> None:
        # Blocks are the chunks of the arrays on disk, so that no chunk is read twice.
        edge, self.inside = CHUNK[len(space)], inside
        steps = [range(0, length, edge) for length in space]
        self.blocks: list[Where] = [
            tuple(slice(first, min(first + edge, length)) for first, length in zip(corner, space, strict=True))
            for corner in product(*steps)
        ]
        self.before = np.cumsum([0, *(np.count_nonzero(inside(block)) for block in self.blocks)])

    @property
    def total(self) -> int:
        """Number of voxels for which `inside` is true."""
        return int(self.before[-1])

    def draw(self, generator: np.random.Generator) -> list[int] | None:
        """Position of a voxel drawn uniformly from those for which `inside` is true. None if there is no such voxel."""
        if not self.total:
            return None
        number = int(generator.integers(self.total))
        at = int(np.searchsorted(self.before, number, side="right")) - 1
        block = self.blocks[at]
        voxel = np.argwhere(self.inside(block))[number - self.before[at]]
        return [part.start + int(offset) for part, offset in zip(block, voxel, strict=True)]


def around(centre: Sequence[int], space: Sequence[int], window: Sequence[int]) -> Where:
    """Box of the window around a voxel, moved inside the case. Along axes shorter than the window, the whole axis."""
    starts = [
        int(np.clip(middle - want // 2, 0, max(0, have - want)))
        for middle, have, want in zip(centre, space, window, strict=True)
    ]
    return tuple(slice(start, min(start + want, have)) for start, want, have in zip(starts, window, space, strict=True))


def anywhere(space: Sequence[int], window: Sequence[int], generator: np.random.Generator) -> Where:
    """Box of the window around a random voxel of the whole case."""
    return around([int(generator.integers(length)) for length in space], space, window)

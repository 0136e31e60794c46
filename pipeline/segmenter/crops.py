"""Where cases larger than the window are cut, without holding any of them whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from pipeline.store.cases import Where
from pipeline.store.schema import CHUNK


class Spots:
    """The voxels of a case that `inside` calls wanted, counted block by block, so that one can be drawn at random.

    `inside` gives bool `[*box]` for a box of the case. Only counts are kept; a draw reads one block again.
    """

    def __init__(self, space: Sequence[int], inside: Callable[[Where], np.ndarray]) -> None:
        edge, self.inside = CHUNK[len(space)], inside
        steps = [range(0, length, edge) for length in space]
        self.blocks: list[Where] = [
            tuple(slice(first, min(first + edge, length)) for first, length in zip(corner, space, strict=True))
            for corner in product(*steps)
        ]
        self.before = np.cumsum([0, *(np.count_nonzero(inside(block)) for block in self.blocks)])

    @property
    def total(self) -> int:
        """Voxels that are wanted."""
        return int(self.before[-1])

    def draw(self, generator: np.random.Generator) -> list[int] | None:
        """One of them, each as likely as the next; None where there is none."""
        if not self.total:
            return None
        number = int(generator.integers(self.total))
        at = int(np.searchsorted(self.before, number, side="right")) - 1
        block = self.blocks[at]
        voxel = np.argwhere(self.inside(block))[number - self.before[at]]
        return [part.start + int(offset) for part, offset in zip(block, voxel, strict=True)]


def around(centre: Sequence[int], space: Sequence[int], window: Sequence[int]) -> Where:
    """The box of a window around a voxel, moved inside the case; along axes shorter than the window, all of it."""
    starts = [
        int(np.clip(middle - want // 2, 0, max(0, have - want)))
        for middle, have, want in zip(centre, space, window, strict=True)
    ]
    return tuple(slice(start, min(start + want, have)) for start, want, have in zip(starts, window, space, strict=True))


def anywhere(space: Sequence[int], window: Sequence[int], generator: np.random.Generator) -> Where:
    """The box of a window around a voxel drawn from the whole case."""
    return around([int(generator.integers(length)) for length in space], space, window)

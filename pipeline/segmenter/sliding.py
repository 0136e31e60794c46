"""Inference by windows over cases of any size, some rows at a time: memory grows with the rows, not with the case."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.store.cases import Values

BAND_BYTES = 2**21
"""Rows are handed on in bands of about as many bytes of float32 values per class."""


@dataclass(frozen=True)
class View:
    """How a network sees an image: flipped along spatial axes, turned by quarters in the plane of the last two, and
    times a factor."""

    flips: tuple[int, ...] = ()
    turns: int = 0
    factor: float = 1.0

    def there(self, image: Tensor) -> Tensor:
        """`[channel, *space]` as the network sees it."""
        image = image.flip([axis + 1 for axis in self.flips]) if self.flips else image
        image = torch.rot90(image, self.turns, (-2, -1)) if self.turns else image
        return image * self.factor if self.factor != 1 else image

    def back(self, logits: Tensor) -> Tensor:
        """`[output, *space]` of what the network saw, on the grid of the image."""
        logits = torch.rot90(logits, -self.turns, (-2, -1)) if self.turns else logits
        return logits.flip([axis + 1 for axis in self.flips]) if self.flips else logits

    def window(self, window: Sequence[int]) -> tuple[int, ...]:
        """The network's window, which turns with the image: else it would see other cuts of it than of the case."""
        return (*window[:-2], window[-1], window[-2]) if self.turns % 2 else tuple(window)

    def backwards(self, dimensions: int) -> set[int]:
        """Axes of the image whose far end comes first in the view."""
        turned = {1: {dimensions - 1}, 2: {dimensions - 2, dimensions - 1}, 3: {dimensions - 2}}
        return set(self.flips) ^ turned.get(self.turns, set())


PLAIN = View()


def pad_to(image: Tensor, window: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the last axes of an image at their ends up to the window; axes that are longer stay."""
    n = len(window)
    missing = [max(0, want - have) for want, have in zip(window, image.shape[-n:], strict=True)]
    return nn.functional.pad(image, [edge for length in reversed(missing) for edge in (0, length)], value=value)


def longest(space: Sequence[int]) -> int:
    """The axis along which a case is cut: its longest, so that what is held at a time is smallest."""
    return int(np.argmax(space))


class Sliding:
    """Logits of one case by windows with half overlap and Gaussian blending, from its first row to its last.

    Equal to MONAI's `sliding_window_inference(overlap=0.5, mode="gaussian")` up to the order of the sums. Only rows on
    which windows are still to come, or that nobody has asked for, are held: in memory or, between two calls, in the
    file `park`. `forward` gives the logits f32 `[output, *cut]` of one window of the image.
    """

    def __init__(
        self,
        forward: Callable[[Tensor, View], Tensor],
        image: Values,
        window: Sequence[int],
        view: View = PLAIN,
        axis: int | None = None,
        park: Path | None = None,
    ) -> None:
        self.forward, self.image, self.window, self.view, self.park = forward, image, tuple(window), view, park
        space = tuple(image.shape[1:])
        self.axis = longest(space) if axis is None else axis
        self.cut = tuple(min(have, want) for have, want in zip(space, window, strict=True))
        backwards = view.backwards(len(space))
        corners = [
            _starts(have, want, axis in backwards) for axis, (have, want) in enumerate(zip(space, window, strict=True))
        ]
        self.steps = corners.pop(self.axis)
        self.length = space[self.axis]
        self.beside = [length for axis, length in enumerate(space) if axis != self.axis]
        self.corners = list(product(*corners))
        self.weights = self._weights() if len(self.steps) * len(self.corners) > 1 else torch.ones(self.cut)
        self.done = 0  # windows along the axis
        self.first = self.last = 0  # the first row that is held, and the one behind the last
        self.outputs = 0
        self._held: Tensor | None = None  # f32 [row, output + 1, *beside], sums of weighted logits and of weights

    @property
    def finished(self) -> int:
        """Rows on which no further window lies."""
        return self.steps[self.done] if self.done < len(self.steps) else self.length

    def rows(self, start: int, stop: int) -> Tensor:
        """Logits f32 `[output, *space]` of these rows of the axis; rows before them can no longer be asked for."""
        while self.finished < stop:
            self._advance(start)
        part = torch.empty((stop - start, *self._shape()))
        self._read(start, part)
        return (part[:, :-1] / part[:, -1:]).movedim(0, self.axis + 1)

    def _advance(self, keep: int) -> None:
        """Add the windows of the next step to the rows from `keep` on."""
        start = self.steps[self.done]
        stop = start + self.cut[self.axis]
        cut = [slice(None)] * len(self.cut)
        cut[self.axis] = slice(start, stop)
        slab = torch.from_numpy(np.ascontiguousarray(self.image[(slice(None), *cut)]))
        grown: Tensor | None = None
        for corner in self.corners:
            place = list(corner)
            place.insert(self.axis, 0)
            box = tuple(slice(at, at + size) for at, size in zip(place, self.cut, strict=True))
            logits = self.forward(slab[(slice(None), *box)], self.view).cpu()
            if grown is None:
                grown = self._grown(keep, stop, len(logits))
            beside = tuple(part for axis, part in enumerate(box) if axis != self.axis)
            here = grown[(slice(start - keep, stop - keep), slice(None), *beside)]
            here[:, :-1] += (logits * self.weights).movedim(self.axis + 1, 0)
            here[:, -1] += self.weights.movedim(self.axis, 0)
        assert grown is not None
        self.done, self.first, self.last = self.done + 1, keep, stop
        if self.park is None:
            self._held = grown
        else:
            grown.numpy().tofile(self.park)

    def _grown(self, keep: int, stop: int, outputs: int) -> Tensor:
        """What is held from row `keep` on, with room up to `stop`."""
        self.outputs = outputs
        grown = torch.zeros((stop - keep, *self._shape()))
        if self.done:
            self._read(keep, grown[: self.last - keep])
        return grown

    def _shape(self) -> tuple[int, ...]:
        return self.outputs + 1, *self.beside

    def _read(self, start: int, into: Tensor) -> None:
        """Copy what is held of the rows from `start` on."""
        if self.park is None:
            assert self._held is not None
            into.copy_(self._held[start - self.first : start - self.first + len(into)])
        else:
            with self.park.open("rb") as file:
                file.seek((start - self.first) * 4 * int(np.prod(self._shape())))
                if file.readinto(into.numpy().reshape(-1).view(np.uint8).data) != into.nbytes:
                    raise OSError(f"{self.park}: expected {into.nbytes} more bytes; is the disk full?")

    def _weights(self) -> Tensor:
        """How much each voxel of a window counts, f32 `[*cut]`."""
        from monai.data.utils import compute_importance_map

        whole = compute_importance_map(self.view.window(self.window), mode="gaussian")[None]
        seen = self.view.there(torch.zeros((1, *self.cut))).shape[1:]
        return self.view.back(whole[(slice(None), *(slice(0, length) for length in seen))])[0]


def _starts(have: int, want: int, backwards: bool) -> list[int]:
    """First voxels of the windows along an axis, half a window apart, the last one at the end of the case."""
    last = max(0, have - want)
    starts = [*range(0, last, max(1, want // 2)), last]
    return sorted(last - start for start in starts) if backwards else starts


def bands_of(start: int, stop: int, space: Sequence[int], axis: int) -> Iterator[tuple[int, int]]:
    """First and last row, exclusive, of each band between two rows of an axis."""
    rows = max(1, BAND_BYTES * space[axis] // (4 * int(np.prod(space))))
    for first in range(start, stop, rows):
        yield first, min(first + rows, stop)

"""Sliding-window inference over cases of any size, some rows at a time: memory grows with the rows, not the case."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.segmenter.planned import centre_weights, even_starts
from pipeline.store.cases import Values

BAND_BYTES = 2**21
"""Size of a band of rows, in bytes of its float32 values per class. A band has at least one row."""


@dataclass(frozen=True)
class View:
    """Transformation of an image for one forward pass: flips, then quarter turns, then a factor on intensities."""

    flips: tuple[int, ...] = ()  # spatial axes
    turns: int = 0  # quarter turns in the plane of the last two axes
    factor: float = 1.0

    def there(self, image: Tensor) -> Tensor:
        """Image `[channel, *view]` that the network gets, from an image `[channel, *space]`."""
        image = image.flip([axis + 1 for axis in self.flips]) if self.flips else image
        image = torch.rot90(image, self.turns, (-2, -1)) if self.turns else image
        return image * self.factor if self.factor != 1 else image

    def back(self, logits: Tensor) -> Tensor:
        """Logits `[output, *space]` on the grid of the image, from logits `[output, *view]`: turns and flips undone."""
        logits = torch.rot90(logits, -self.turns, (-2, -1)) if self.turns else logits
        return logits.flip([axis + 1 for axis in self.flips]) if self.flips else logits

    def window(self, window: Sequence[int]) -> tuple[int, ...]:
        """Window in the view. The window turns with the image, so that every view is cut where the case is cut."""
        return (*window[:-2], window[-1], window[-2]) if self.turns % 2 else tuple(window)

    def mirrored(self, dimensions: int) -> set[int]:
        """Axes of the image that the view mirrors, so that the sided classes of the axis change places.

        Two quarter turns are flips of the last two axes. Flips along an axis that is turned twice cancel out. An odd
        number of turns mixes two axes, so neither of them is mirrored by the turn.
        """
        return set(self.flips) ^ ({dimensions - 2, dimensions - 1} if self.turns == 2 else set())

    def backwards(self, dimensions: int) -> set[int]:
        """Axes of the image that run backwards in the view."""
        # A quarter turn swaps the last two axes and reverses one of them; a flip of a reversed axis cancels out.
        turned = {1: {dimensions - 1}, 2: {dimensions - 2, dimensions - 1}, 3: {dimensions - 2}}
        return set(self.flips) ^ turned.get(self.turns, set())


PLAIN = View()
"""The image as it is."""


def pad_to(image: Tensor, window: Sequence[int], value: float = 0.0) -> Tensor:
    """Image whose last axes are padded with `value` at their ends up to the window. Longer axes keep their length."""
    n = len(window)
    missing = [max(0, want - have) for want, have in zip(window, image.shape[-n:], strict=True)]
    # torch pads from the last axis to the first.
    return nn.functional.pad(image, [edge for length in reversed(missing) for edge in (0, length)], value=value)


def pad_around(image: Tensor, window: Sequence[int]) -> Tensor:
    """Image whose last axes are padded with 0 on both sides up to the window, as nnU-Net pads. See `place_in`."""
    space = image.shape[-len(window) :]
    edges = [
        edge
        for want, have, part in zip(window, space, place_in(window, space, True), strict=True)
        for edge in (max(0, want - have) - part.start, part.start)
    ]
    # torch pads from the last axis to the first.
    return nn.functional.pad(image, edges[::-1])


def place_in(window: Sequence[int], space: Sequence[int], around: bool) -> tuple[slice, ...]:
    """Place of a padded image of shape `space` in the window: at the start of each axis, or `around`: in the middle.

    If the missing voxels are an odd number, one more is after the image than before it.
    """
    starts = [max(0, want - have) // 2 if around else 0 for want, have in zip(window, space, strict=True)]
    return tuple(slice(start, start + have) for start, have in zip(starts, space, strict=True))


def longest(space: Sequence[int]) -> int:
    """Axis along which a case is cut into rows: the longest axis, so that a row has the fewest voxels."""
    return int(np.argmax(space))


class Sliding:
    """Logits of one case by windows with half overlap and Gaussian blending, from the first row to the last.

    A row is one position along `axis` (null: the longest axis). The logits equal MONAI's
    `sliding_window_inference(overlap=0.5, mode="gaussian")` up to the order of sums. Rows are held until their last
    window is added and `rows` has passed them: in memory or, between two calls, in the file `park`. `forward` returns
    the logits f32 `[output, *cut]` of one window of the image, where `cut` is the window clipped to the case.
    `planned`: windows lie at even distances, with the weights of nnU-Net, for a network of nnU-Net's plans.
    """

    def __init__(
        self,
        forward: Callable[[Tensor, View], Tensor],
        image: Values,
        window: Sequence[int],
        view: View = PLAIN,
        axis: int | None = None,
        park: Path | None = None,
        planned: bool = False,
    ) -> None:
        self.forward, self.image, self.window, self.view, self.park = forward, image, tuple(window), view, park
        self.planned = planned
        space = tuple(image.shape[1:])
        self.axis = longest(space) if axis is None else axis
        self.cut = tuple(min(have, want) for have, want in zip(space, window, strict=True))
        # The last window is moved back inside the case. In a flipped view that is the first window of the image.
        backwards = view.backwards(len(space))
        starts = even_starts if planned else half_starts
        corners = [
            _turned(starts(have, want), have - want, axis in backwards)
            for axis, (have, want) in enumerate(zip(space, window, strict=True))
        ]
        self.steps = corners.pop(self.axis)
        self.length = space[self.axis]
        self.beside = [length for axis, length in enumerate(space) if axis != self.axis]
        self.corners = list(product(*corners))
        # A single window needs no blending: dividing by weights of 1 leaves its logits exact.
        self.weights = self._weights() if len(self.steps) * len(self.corners) > 1 else torch.ones(self.cut)
        self.done = 0  # steps along the axis whose windows are added
        self.first = self.last = 0  # first row that is held, and the end of the held rows (exclusive)
        self.outputs = 0
        self._held: Tensor | None = None  # f32 [row, output + 1, *beside], sums of weighted logits and of weights

    @property
    def finished(self) -> int:
        """Number of rows, from the first on, that no further window covers."""
        return self.steps[self.done] if self.done < len(self.steps) else self.length

    def rows(self, start: int, stop: int) -> Tensor:
        """Logits f32 `[output, *space]` of the rows from `start` to `stop` (exclusive). Earlier rows are dropped."""
        while self.finished < stop:
            self._advance(start)
        part = torch.empty((stop - start, *self._shape()))
        self._read(start, part)
        # Sums of weighted logits by the sum of weights, the last channel.
        return (part[:, :-1] / part[:, -1:]).movedim(0, self.axis + 1)

    def _advance(self, keep: int) -> None:
        """Run the windows of the next step, and hold the rows from `keep` on."""
        start = self.steps[self.done]
        stop = start + self.cut[self.axis]
        cut = [slice(None)] * len(self.cut)
        cut[self.axis] = slice(start, stop)
        # One read from disk serves all windows of the step.
        slab = torch.from_numpy(np.ascontiguousarray(self.image[(slice(None), *cut)]))
        grown: Tensor | None = None
        for corner in self.corners:
            place = list(corner)
            place.insert(self.axis, 0)
            box = tuple(slice(at, at + size) for at, size in zip(place, self.cut, strict=True))
            logits = self.forward(slab[(slice(None), *box)], self.view).cpu()
            # The number of outputs is known only after the first forward pass.
            if grown is None:
                grown = self._grown(keep, stop, len(logits))
            beside = tuple(part for axis, part in enumerate(box) if axis != self.axis)
            # Rows are the first axis of the held sums, so that a run of rows is one block of the file.
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
        """Held sums from row `keep` on, f32 `[row, output + 1, *beside]`, with zeros for the rows up to `stop`."""
        self.outputs = outputs
        grown = torch.zeros((stop - keep, *self._shape()))
        if self.done:
            self._read(keep, grown[: self.last - keep])
        return grown

    def _shape(self) -> tuple[int, ...]:
        return self.outputs + 1, *self.beside

    def _read(self, start: int, into: Tensor) -> None:
        """Copy the held sums of the rows from `start` on into `into`."""
        if self.park is None:
            assert self._held is not None
            into.copy_(self._held[start - self.first : start - self.first + len(into)])
        else:
            with self.park.open("rb") as file:
                # 4 bytes per float32.
                file.seek((start - self.first) * 4 * int(np.prod(self._shape())))
                if file.readinto(into.numpy().reshape(-1).view(np.uint8).data) != into.nbytes:
                    raise OSError(f"{self.park}: expected {into.nbytes} more bytes, found fewer; is the disk full?")

    def _weights(self) -> Tensor:
        """Weight of each voxel of a window in the blend, f32 `[*cut]`, Gaussian as in MONAI or as in nnU-Net."""
        from monai.data.utils import compute_importance_map

        window = self.view.window(self.window)
        whole = centre_weights(window) if self.planned else compute_importance_map(window, mode="gaussian")
        # The network blends in its view, where a small case is padded: cut there, then turn back.
        seen = self.view.there(torch.zeros((1, *self.cut))).shape[1:]
        return self.view.back(whole[place_in(window, seen, self.planned)][None])[0]


def half_starts(have: int, want: int) -> list[int]:
    """First voxels of the windows along an axis: half a window apart, with the last window at the end of the case."""
    last = max(0, have - want)
    return [*range(0, last, max(1, want // 2)), last]


def _turned(starts: list[int], last: int, backwards: bool) -> list[int]:
    """First voxels of windows. `backwards` mirrors them: the window at the start is then the last of the view."""
    return sorted(max(0, last) - start for start in starts) if backwards else starts


def bands_of(start: int, stop: int, space: Sequence[int], axis: int) -> Iterator[tuple[int, int]]:
    """Bands of about `BAND_BYTES` between two rows of an axis: first row, and last row (exclusive)."""
    rows = max(1, BAND_BYTES * space[axis] // (4 * int(np.prod(space))))
    for first in range(start, stop, rows):
        yield first, min(first + rows, stop)

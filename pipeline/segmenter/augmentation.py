"""Augmentation of labelled cases and the flips that preference training shares with it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, combinations
from typing import TYPE_CHECKING

from pipeline.errors import BadInput
from pipeline.knobs import Knobs

if TYPE_CHECKING:
    from torch import Tensor


class Augmentation(Knobs):
    """How labelled cases are varied in training. Students' pool images are only flipped."""

    flips: tuple[int, ...] = (0, 1)
    """Spatial axes along which an image may be flipped."""
    swap_labels: tuple[tuple[int, int, int], ...] = ()
    """(axis, class, class): sided classes that change places when that axis is flipped."""
    rotate_degrees: float = 15.0
    """Largest rotation (in 3D about each axis)."""
    scale: float = 0.15
    """Largest relative zoom."""
    intensity: float = 0.2
    """Largest relative change of contrast, and of brightness in units of the batch's standard deviation."""
    noise: float = 0.1
    """Largest standard deviation of added noise, in units of the normalised image."""

    def check(self, dimensions: int) -> None:
        """Raise `BadInput` for flips along axes that the data does not have."""
        if beyond := [axis for axis in self.flips if not 0 <= axis < dimensions]:
            raise BadInput(f"augmentation.flips: expected axes 0 to {dimensions - 1} of this data, found {beyond}")

    @property
    def unsided(self) -> tuple[int, ...]:
        """Axes of `flips` across which no class is sided: flipped along these, labels keep their classes."""
        return tuple(axis for axis in self.flips if axis not in {axis for axis, _, _ in self.swap_labels})

    def views(self) -> list[tuple[int, ...]]:
        """Every combination of flips, the identity first."""
        return [view for view in chain.from_iterable(combinations(self.flips, n) for n in range(len(self.flips) + 1))]

    def swap(self, labels: Tensor, view: Sequence[int]) -> Tensor:
        """Exchange sided classes in labels that were flipped along these axes."""
        for axis, first, second in self.swap_labels:
            if axis in view:
                one, two = labels == first, labels == second
                labels = labels.masked_fill(one, second).masked_fill(two, first)
        return labels

    def swap_classes(self, probability: Tensor, view: Sequence[int]) -> Tensor:
        """Exchange the channels of sided classes in `[class, *space]` that was flipped along these axes."""
        order = list(range(len(probability)))
        for axis, first, second in self.swap_labels:
            if axis in view:
                order[first], order[second] = order[second], order[first]
        return probability[order]


def flip(batch: Tensor, view: Sequence[int], dimensions: int) -> Tensor:
    """Flip the spatial axes of a batch; the last `dimensions` axes are space."""
    return batch.flip([axis - dimensions for axis in view]) if view else batch

"""Knobs of augmentation, and the flips that training on pool images shares with them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain, combinations
from typing import TYPE_CHECKING

from pipeline.errors import BadInput
from pipeline.knobs import Knobs

if TYPE_CHECKING:
    from torch import Tensor


class Augmentation(Knobs):
    """Random variation of labelled cases in training.

    Pool images of the base's mean teacher are varied in the same way, and so are those of students that have their
    labels. Pool images of all other students are flipped, and varied in intensity by `training.views` alone: a rotation
    would interpolate masks and disagreement regions.
    """

    flips: tuple[int, ...] = (0, 1)
    """Axes of the working grid along which an image may be flipped, from 0. An empty list flips nothing."""
    swap_labels: tuple[tuple[int, int, int], ...] = ()
    """Classes of opposite sides, such as left and right, as `[axis, class, class]`. A flip along the axis exchanges the
    two classes."""
    rotate_degrees: float = 15.0
    """Largest angle of rotation in degrees, in 3D about each axis. Images are turned in mm, or in voxels if the spacing
    is unknown."""
    scale: float = 0.15
    """Largest relative zoom, in and out. 0.15 is 15 %."""
    intensity: float = 0.2
    """Largest relative change of contrast, and largest change of brightness in standard deviations of the batch."""
    noise: float = 0.1
    """Largest standard deviation of added noise, in intensities of the normalised image."""

    def check(self, dimensions: int, classes: int) -> None:
        """Raise `BadInput` for axes and classes that the data does not have. `classes` counts the background."""
        check_axes("augmentation.flips", self.flips, dimensions)
        for entry in self.swap_labels:
            axis, *pair = entry
            if not (0 <= axis < dimensions and all(0 < label < classes for label in pair) and pair[0] != pair[1]):
                raise BadInput(
                    f"augmentation.swap_labels: expected an axis 0 to {dimensions - 1} and two of the classes "
                    f"{list(range(1, classes))} of this data, found {entry}; correct the entry"
                )

    @property
    def unsided(self) -> tuple[int, ...]:
        """Axes of `flips` without an entry in `swap_labels`. Labels that are flipped along them keep their classes."""
        return tuple(axis for axis in self.flips if axis not in {axis for axis, _, _ in self.swap_labels})

    def views(self) -> list[tuple[int, ...]]:
        """All combinations of flips, beginning with no flip."""
        return [view for view in chain.from_iterable(combinations(self.flips, n) for n in range(len(self.flips) + 1))]

    def swap(self, labels: Tensor, view: Sequence[int]) -> Tensor:
        """Labels that were flipped along the axes `view`, with the classes of opposite sides exchanged."""
        for axis, first, second in self.swap_labels:
            if axis in view:
                one, two = labels == first, labels == second
                labels = labels.masked_fill(one, second).masked_fill(two, first)
        return labels

    def swap_classes(self, probability: Tensor, view: Sequence[int]) -> Tensor:
        """Probabilities `[class, *space]` that were flipped along `view`, with classes of opposite sides exchanged."""
        return swapped_classes(probability, self.swap_labels, view)


def check_axes(knob: str, axes: Collection[int], dimensions: int) -> None:
    """Raise `BadInput` for axes of a knob that data of `dimensions` spatial axes does not have."""
    if beyond := sorted(axis for axis in axes if not 0 <= axis < dimensions):
        raise BadInput(f"{knob}: expected axes 0 to {dimensions - 1} of this data, found {beyond}; correct the axes")


SwapLabels = tuple[tuple[int, int, int], ...]
"""(axis, class, class): sided classes that change places when an image is flipped along that axis."""


def swapped_classes(probability: Tensor, swap_labels: SwapLabels, axes: Collection[int]) -> Tensor:
    """Probabilities `[class, *space]` that were flipped along `axes`, with the sided classes in their new places."""
    order = list(range(len(probability)))
    for axis, first, second in swap_labels:
        if axis in axes:
            order[first], order[second] = order[second], order[first]
    return probability[order]


def flip(batch: Tensor, view: Sequence[int], dimensions: int) -> Tensor:
    """Batch flipped along the spatial axes `view`. Its last `dimensions` axes are spatial."""
    return batch.flip([axis - dimensions for axis in view]) if view else batch

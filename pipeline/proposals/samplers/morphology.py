"""Sampler `morphology`: slot 0, usually the base prediction, with another outline, components or holes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.proposals.samplers.sampler import CaseModels, Draw, Passes, Setup
from pipeline.store.schema import UNKNOWN

Radius = Annotated[float, Field(gt=0)]
_OUTLINES = ("erode", "dilate", "open", "close")


class Morphology(Knobs):
    """Slot 0 with the outline of the foreground moved by a ball, without some components, or with holes filled.

    The outline moves for the foreground as a whole, so borders between classes stay. A new foreground voxel takes the
    class of the nearest foreground voxel (the lowest class of several equally near). A component has one class, and its
    voxels touch by face, edge or corner. A removed component takes the most frequent label of its neighbours (the
    lowest label of several equally frequent). Voxels outside the image and voxels that are 255 erode nothing, and 255
    stays 255. A case without foreground, or without such components or holes, keeps its mask: the proposal is a
    duplicate, which mining drops.
    """

    kind: Literal["morphology"]
    erode: tuple[Radius, ...] = (1.0,)
    """Radii in voxels, one proposal each. The foreground shrinks."""
    dilate: tuple[Radius, ...] = (1.0,)
    """Radii in voxels, one proposal each. The foreground grows."""
    open: tuple[Radius, ...] = ()
    """Radii in voxels, one proposal each. Erosion, then dilation: thin parts vanish."""
    close: tuple[Radius, ...] = ()
    """Radii in voxels, one proposal each. Dilation, then erosion: narrow gaps fill."""
    largest_component: bool = True
    """Whether to propose slot 0 with only the largest component of each class (the first of several equally large)."""
    fill_holes: bool = True
    """Whether to propose slot 0 with holes filled: background that foreground encloses becomes foreground."""
    drop_component: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """Ranks by size, one proposal each without the component of this rank. Rank 1 is the smallest component of all
    classes. The largest component of each class has no rank and stays."""

    def settings(self, name: str, setup: Setup) -> list[str]:
        return [
            *(f"{kind}={radius:g}" for kind in _OUTLINES for radius in getattr(self, kind)),
            *(["largest_component"] if self.largest_component else []),
            *(["fill_holes"] if self.fill_holes else []),
            *(f"drop_component={rank}" for rank in self.drop_component),
        ]

    def forward_passes(self, name: str, setup: Setup, before: Sequence[Passes | None]) -> list[Passes | None]:
        return [before[0]] * len(self.settings(name, setup))

    def draw(self, name: str, case: CaseModels) -> Iterator[Draw]:
        if not case.draws:
            raise BadInput(
                f"propose.samplers.{name}: expected slot 0 before this sampler, found none; list it after imported "
                "masks"
            )
        for setting, change in self._changes():

            def changed(change: Callable[[np.ndarray], np.ndarray] = change) -> np.ndarray:
                return change(case.first_mask())

            yield Draw(case.whole_mask((name, setting), changed), name, setting)

    def _changes(self) -> Iterator[tuple[str, Callable[[np.ndarray], np.ndarray]]]:
        """Setting of each proposal, and the function that changes the mask u8 `[*space]` of the whole case."""
        for kind in _OUTLINES:
            for radius in getattr(self, kind):
                yield f"{kind}={radius:g}", partial(moved, kind=kind, radius=radius)
        if self.largest_component:
            yield "largest_component", partial(without_components, rank=None)
        if self.fill_holes:
            yield "fill_holes", filled
        for rank in self.drop_component:
            yield f"drop_component={rank}", partial(without_components, rank=rank)


def moved(mask: np.ndarray, kind: str, radius: float) -> np.ndarray:
    """Label map u8 `[*space]` whose foreground is eroded, dilated, opened or closed by a ball of `radius` voxels."""
    inside = (mask != 0) & (mask != UNKNOWN)
    # Only background erodes, because voxels outside the image and voxels that are 255 may be foreground.
    background = mask == 0
    match kind:
        case "erode":
            inside &= ~_grown(background, radius)
        case "dilate":
            inside = _grown(inside, radius)
        case "open":
            inside = _grown(inside & ~_grown(background, radius), radius)
        case "close":
            # The edge is continued in a margin, so that foreground that grows beyond the image can shrink back.
            margin = int(np.ceil(radius)) + 1
            grown = _grown(np.pad(inside, margin, mode="edge"), radius)
            inside |= ~_grown(~grown, radius)[(slice(margin, -margin),) * mask.ndim]
    return _labelled(mask, inside)


def filled(mask: np.ndarray) -> np.ndarray:
    """Label map u8 `[*space]` with holes filled. A hole is background that foreground encloses across faces.

    A filled voxel takes the class of the nearest foreground voxel.
    """
    from scipy.ndimage import binary_fill_holes

    return _labelled(mask, binary_fill_holes((mask != 0) & (mask != UNKNOWN)))


def without_components(mask: np.ndarray, rank: int | None) -> np.ndarray:
    """Label map u8 `[*space]` without the component of size `rank`, or with the largest component of each class only.

    Rank 1 is the smallest component. None keeps the largest components only, and these have no rank.
    """
    from scipy.ndimage import binary_dilation, find_objects, label

    everywhere = np.ones((3,) * mask.ndim)
    found = []
    for value in np.unique(mask[(mask != 0) & (mask != UNKNOWN)]).tolist():
        components, _ = label(mask == value, everywhere)
        sizes = np.bincount(components.ravel())[1:]
        boxes = find_objects(components)
        largest = int(sizes.argmax())
        found += [(int(sizes[n]), components, n + 1, boxes[n]) for n in range(len(sizes)) if n != largest]
    found.sort(key=lambda component: component[0])
    out = mask.copy()
    for _, components, number, box in found if rank is None else found[rank - 1 : rank]:
        around = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box)
        part = components[around] == number
        neighbours = mask[around][binary_dilation(part, everywhere) & ~part]
        # Without a neighbour other than 255 the component becomes background.
        out[around][part] = np.bincount(neighbours[neighbours != UNKNOWN], minlength=1).argmax()
    return out


def _grown(inside: np.ndarray, radius: float) -> np.ndarray:
    """Voxels at most `radius` voxels from a voxel of `inside`, bool `[*space]`. An empty mask stays empty."""
    from scipy.ndimage import distance_transform_edt

    return distance_transform_edt(~inside) <= radius if inside.any() else inside


def _labelled(mask: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Label map u8 `[*space]` with foreground `inside`. New voxels take the nearest class of `mask`. 255 stays 255."""
    from scipy.ndimage import distance_transform_edt

    new = inside & (mask == 0)
    out = np.where(inside | (mask == UNKNOWN), mask, 0).astype(np.uint8)
    if new.any():
        nearest = np.full(int(new.sum()), np.inf)
        label = np.zeros(len(nearest), np.uint8)
        for value in np.unique(mask[(mask != 0) & (mask != UNKNOWN)]).tolist():
            distance = distance_transform_edt(mask != value)[new]
            label[distance < nearest] = value
            nearest = np.minimum(nearest, distance)
        out[new] = label
    return out

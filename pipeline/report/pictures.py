"""Slices of images and masks in the orientation of a page, and outlines on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.cases.on_page import OnPage
from pipeline.measures.overlap import region
from pipeline.report.figures import GREEN, ORANGE, PURPLE, RED, SKY, YELLOW
from pipeline.store import schema

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OUTLINES = (ORANGE, SKY, YELLOW, PURPLE, GREEN)
"""Colours of the foreground classes, in order. The list repeats for further classes."""
MARGIN = 0.25
"""Margin of the picture around the masks, as a share of the extent of the masks."""
LEAST = 24
"""Smallest edge of a picture in voxels, if the image is that large."""


class Plane(NamedTuple):
    """Image, masks and maps of one slice, with rows and columns as on the page."""

    image: np.ndarray  # [row, column] or [row, column, 3], 0 to 1
    masks: np.ndarray  # u8 [mask, row, column]
    maps: np.ndarray  # [map, row, column]
    aspect: float  # height of a voxel over its width
    where: str  # text on the position of the slice; empty for a 2D image


def plane_of(
    image: np.ndarray,
    masks: np.ndarray,
    differ: np.ndarray,
    page: OnPage,
    colour: bool,
    maps: np.ndarray | None = None,
) -> Plane:
    """Picture of an image f32 `[channel, *space]` with masks u8 `[mask, *space]` and maps `[map, *space]`.

    A volume is shown by one slice. The slice is the one with the most voxels of `differ`, bool `[*space]`. The picture
    is cropped to the masks and to `differ`, with a margin. `colour` shows three channels as red, green and blue.
    Without `colour` the first channel is shown.
    """
    maps = np.zeros((0, *differ.shape)) if maps is None else maps
    index = int(page.laid(differ[None])[0].sum(axis=(1, 2)).argmax())
    where = "" if page.cut is None else f", slice {index + 1} of {differ.shape[page.cut]} along axis {page.cut + 1}"
    shown, masks, maps, differ = (
        page.laid(block)[:, index] for block in (image if colour else image[:1], masks, maps, differ[None])
    )
    differ = differ[0]
    box = _box(differ | _foreground(masks).any(axis=0))
    low, high = np.percentile(shown, (1, 99))
    scaled = np.clip((shown - low) / max(float(high - low), 1e-6), 0, 1)
    picture = np.moveaxis(scaled, 0, -1) if colour else scaled[0]
    return Plane(picture[box], masks[:, *box], maps[:, *box], page.aspect, where)


def _foreground(masks: np.ndarray) -> np.ndarray:
    return (masks != 0) & (masks != schema.UNKNOWN)


def _box(inside: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the bounding box of a region (bool `[row, column]`), with a margin.

    An empty region gives the whole picture.
    """
    ends = []
    for axis, length in enumerate(inside.shape):
        filled = np.flatnonzero(inside.any(axis=1 - axis))
        first, last = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, length)
        extra = max(int(MARGIN * (last - first)), (LEAST - (last - first) + 1) // 2)
        ends.append(slice(max(0, first - extra), min(length, last + extra)))
    return ends[0], ends[1]


def show(at: Axes, plane: Plane, title: str) -> None:
    """Draw the image of a plane."""
    at.imshow(plane.image, cmap="gray", vmin=0, vmax=1, aspect=plane.aspect, interpolation="nearest")
    at.set_title(title)
    at.set_axis_off()


def outline(at: Axes, mask: np.ndarray, classes: int) -> None:
    """Draw the outline of every foreground class of a mask u8 `[row, column]`."""
    height, width = mask.shape
    # A border of one voxel closes the outlines at the edge of the picture.
    rows, columns = np.arange(-1, height + 1), np.arange(-1, width + 1)
    for label in range(1, classes):
        inside = np.pad(mask == label, 1)
        if inside.any():
            at.contour(columns, rows, inside, levels=[0.5], colors=colour_of(label), linewidths=1.8)
    at.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def draw_pair(drawn: Figure, plane: Plane, samplers: tuple[str, str], classes: int) -> None:
    """Draw image, chosen mask, rejected mask and disagreement region side by side.

    The masks of the plane are the chosen and the rejected mask. `samplers` are the samplers of both.
    """
    axes = drawn.subplots(1, 4)
    titles = ("image", f"chosen: {samplers[0]}", f"rejected: {samplers[1]}", "disagreement")
    for at, title in zip(axes, titles, strict=True):
        show(at, plane, title)
    for at, mask in zip(axes[1:3], plane.masks, strict=True):
        outline(at, mask, classes)
    differ = region(*plane.masks)
    tint = np.zeros((*differ.shape, 4))
    tint[differ] = [*(int(RED[i : i + 2], 16) / 255 for i in (1, 3, 5)), 0.75]
    axes[3].imshow(tint, aspect=plane.aspect, interpolation="nearest")


def draw_legend(drawn: Figure, class_names: Sequence[str]) -> None:
    """Draw the colours of the foreground classes and of the disagreement region below the pictures."""
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=name) for name, colour in legend(class_names)]
    drawn.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))


def legend(class_names: Sequence[str]) -> list[tuple[str, str]]:
    """Name and colour of every foreground class and of the disagreement region."""
    classes = [(name, colour_of(label)) for label, name in enumerate(class_names) if label]
    return [*classes, ("disagreement region", RED)]


def colour_of(label: int) -> str:
    """Colour of a foreground class."""
    return OUTLINES[(label - 1) % len(OUTLINES)]


def height_of(plane: Plane, width: float) -> float:
    """Height in inches of a picture of this width, between 0.5 and 1.5 times the width."""
    rows, columns = plane.masks.shape[1:]
    return min(max(width * rows * plane.aspect / columns, 0.5 * width), 1.5 * width)

"""Image and masks of a pair as slices in the orientation of a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.measures.overlap import region
from pipeline.store.schema import UNKNOWN

_OPPOSITE = dict(zip("LRAPSI", "RLPAIS", strict=True))
_RIGHTWARDS, _DOWNWARDS = "LP", "PI"
"""Directions that go to the right and down on a page, as radiologists look at slices."""
_WORDS = {
    "L": "left of the patient",
    "R": "right of the patient",
    "A": "front",
    "P": "back",
    "S": "head",
    "I": "feet",
}
STORED = "as stored: the files do not say how the patient lies"
MOST = 65535
"""Largest number of a pixel."""
WINDOW = (1, 99)
"""Percentiles of the intensities that the page shows as black and white at first.

The window spans the percentiles of the image and those inside the masks, so that no small bright organ is all white.
"""


class View(NamedTuple):
    """Slices of a pair. A 2D image has one slice. Rows go down and columns to the right on the page."""

    image: np.ndarray  # u16 [slice, channel, row, column]
    masks: np.ndarray  # u8 [slice, mask, row, column]
    differ: list[int]  # voxels of D of each slice
    first: int  # slice with the most voxels of D
    aspect: float  # height of a voxel over its width
    scale: list[tuple[float, float]]  # by channel: intensities of the numbers 0 and MOST
    window: list[tuple[float, float]]  # by channel: intensities that are black and white at first
    edges: tuple[str, str, str, str] | None  # directions at the left, right, top and bottom; None if unknown
    display: str  # how the slices lie, in words; empty for a 2D image


def view_of(
    image: np.ndarray, masks: np.ndarray, spacing: Sequence[float] | None, orientation: str | None, rgb: bool
) -> View:
    """View of an image f32 `[channel, *space]` and masks u8 `[mask, *space]`.

    A volume is cut across its axis of largest spacing (of equal axes the last). `orientation` has a letter per axis of
    the volume, the direction in which the axis goes, such as `RAS`; any other text means that it is unknown. A volume
    of known orientation lies as radiologists look at it: axial and coronal slices have the patient's right on the left
    of the page. `rgb` gives all channels one window. Unknown spacing counts as 1.
    """
    steps = tuple(spacing or (1.0,) * (image.ndim - 1))
    differ = region(*masks)
    if image.ndim == 3:
        blocks = [image[:, None], masks[:, None], differ[None, None]]
        edges, display, aspect = None, "", steps[0] / steps[1]
    else:
        axis = max(range(3), key=lambda a: (steps[a], a))
        known = orientation if orientation and set(orientation) <= set(_OPPOSITE) and len(orientation) == 3 else None
        rows, columns, flip_rows, flip_columns = _page(axis, known)
        blocks = []
        for block in (image, masks, differ[None]):
            turned = block.transpose(0, 1 + axis, 1 + rows, 1 + columns)
            blocks.append(turned[:, :, :: -1 if flip_rows else 1, :: -1 if flip_columns else 1])
        aspect = steps[rows] / steps[columns]
        edges, display = None, STORED
        if known:
            right, down = (
                known[a] if not flip else _OPPOSITE[known[a]]
                for a, flip in ((columns, flip_columns), (rows, flip_rows))
            )
            edges = (_OPPOSITE[right], right, _OPPOSITE[down], down)
            display = f"radiological: {_WORDS[edges[0]]} on the left of the page"
    pixels, scale = _numbers(blocks[0])
    per_slice = blocks[2][0].sum(axis=(1, 2))
    return View(
        image=np.ascontiguousarray(pixels.swapaxes(0, 1)),
        masks=np.ascontiguousarray(blocks[1].swapaxes(0, 1)),
        differ=per_slice.tolist(),
        first=int(per_slice.argmax()),
        aspect=float(aspect),
        scale=scale,
        window=_windows(image, np.any((masks > 0) & (masks < UNKNOWN), axis=0), rgb),
        edges=edges,
        display=display,
    )


def _page(axis: int, orientation: str | None) -> tuple[int, int, bool, bool]:
    """Axes of rows and columns of a slice across `axis`, and whether each is reversed."""
    one, two = (a for a in range(3) if a != axis)
    if orientation is None:
        # A volume stores x before y, with y upwards.
        return two, one, True, False
    # Left and right lie across the page. In a sagittal slice, front and back do.
    columns = next((a for a in (one, two) if orientation[a] in "LR"), None)
    if columns is None:
        columns = next(a for a in (one, two) if orientation[a] in "AP")
    rows = two if columns == one else one
    return rows, columns, orientation[rows] not in _DOWNWARDS, orientation[columns] not in _RIGHTWARDS


def _numbers(image: np.ndarray) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Channels `[channel, ...]` as numbers u16 from their smallest to their largest intensity, and both of each."""
    out, scale = np.empty(image.shape, np.uint16), []
    for channel, values in enumerate(image):
        low, high = float(values.min()), float(values.max())
        out[channel] = np.rint((values - low) * (MOST / max(high - low, 1e-12)))
        scale.append((low, high))
    return out, scale


def _windows(image: np.ndarray, inside: np.ndarray, rgb: bool) -> list[tuple[float, float]]:
    found = []
    for part in [image] * len(image) if rgb else [one[None] for one in image]:
        values = [part, part[:, inside]] if inside.any() else [part]
        edges = np.array([np.percentile(each, WINDOW) for each in values])
        low, high = float(edges[:, 0].min()), float(edges[:, 1].max())
        found.append((low, high if high > low else low + 1.0))
    return found

"""Image and masks of a pair as slices in the orientation of a page."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.cases.on_page import OnPage
from pipeline.measures.overlap import region
from pipeline.store.schema import UNKNOWN

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
    display: str  # how the slices lie, in words; empty for a 2D picture


def view_of(image: np.ndarray, masks: np.ndarray, page: OnPage, rgb: bool) -> View:
    """View of an image f32 `[channel, *space]` and masks u8 `[mask, *space]`. `rgb` gives all channels one window."""
    blocks = [page.laid(block) for block in (image, masks, region(*masks)[None])]
    pixels, scale = _numbers(blocks[0])
    per_slice = blocks[2][0].sum(axis=(1, 2))
    return View(
        image=np.ascontiguousarray(pixels.swapaxes(0, 1)),
        masks=np.ascontiguousarray(blocks[1].swapaxes(0, 1)),
        differ=per_slice.tolist(),
        first=int(per_slice.argmax()),
        aspect=float(page.aspect),
        scale=scale,
        window=_windows(image, np.any((masks > 0) & (masks < UNKNOWN), axis=0), rgb),
        edges=page.edges,
        display=page.display,
    )


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

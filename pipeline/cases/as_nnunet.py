"""Preparation of images as in nnU-Net v2: the box of non-zero voxels, and resampling by splines.

Source: `cropping.py` and `default_resampling.py` of nnU-Net 2.8.1, with the arguments of its default plans.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_LEAST_DEVIATION = 1e-8
_ANISOTROPIC = 3.0
"""Longest voxel edge over the shortest above which slices are resampled one by one."""


def nonzero_box(image: np.ndarray) -> tuple[slice, ...]:
    """Smallest box of space outside which an image `[channel, *space]` is 0 in all channels; all of an image of 0."""
    found = (image != 0).any(0)
    box = []
    for axis, length in enumerate(found.shape):
        rows = np.flatnonzero(found.any(tuple(other for other in range(found.ndim) if other != axis)))
        box.append(slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0, length))
    return tuple(box)


def inside(image: np.ndarray) -> np.ndarray:
    """Voxels bool `[*space]` of an image `[channel, *space]` that count for `zscore_nonzero`: not 0, or a hole.

    A voxel is 0 if it is 0 in all channels. Holes are zeros that non-zero voxels enclose. A picture has no holes,
    because nnU-Net sees a picture as a volume of one slice, which leaves every pixel open.
    """
    from scipy.ndimage import binary_fill_holes

    found = (image != 0).any(0)
    return binary_fill_holes(found) if found.ndim == 3 else found


def zscore_inside(channel: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Intensities f32 with mean 0 and standard deviation 1 within `where`, bool of the same shape, and 0 elsewhere."""
    values = channel[where].astype(np.float64)
    found = np.zeros(channel.shape, np.float32)
    if len(values):
        found[where] = (values - values.mean()) / max(float(values.std()), _LEAST_DEVIATION)
    return found


def slice_axis(now: Sequence[float], then: Sequence[float]) -> int | None:
    """Axis along which slices lie that are resampled one by one. None if the volume is resampled as a whole.

    `now` and `then` are the voxel edges before and after. The first that is anisotropic decides. Its longest edge
    names the axis, and two longest edges name none.
    """
    for edges in (now, then):
        if max(edges) / min(edges) > _ANISOTROPIC:
            longest = [axis for axis, edge in enumerate(edges) if edge == max(edges)]
            return longest[0] if len(longest) == 1 else None
    return None


def splined(channel: np.ndarray, shape: tuple[int, ...], axis: int | None, order: int) -> np.ndarray:
    """Values f32 `[*shape]` of a channel, by splines of an order, without anti-aliasing.

    With an `axis` of 3D volumes, each slice is resampled in its plane, and the nearest slice is taken along the axis.
    The same array is returned if the shape is equal.
    """
    if channel.shape == shape:
        return channel
    from skimage.transform import resize

    values = channel.astype(np.float64)
    if axis is None or channel.ndim == 2:
        return resize(values, shape, order, mode="edge", anti_aliasing=False).astype(np.float32)
    plane = tuple(length for place, length in enumerate(shape) if place != axis)
    slices = [resize(one, plane, order, mode="edge", anti_aliasing=False) for one in np.moveaxis(values, axis, 0)]
    # Centre of each new slice in slices of before; a centre between two takes the later one.
    centres = len(slices) / shape[axis] * (np.arange(shape[axis]) + 0.5) - 0.5
    nearest = np.floor(centres + 0.5).astype(int).clip(0, len(slices) - 1)
    return np.stack([slices[place] for place in nearest], axis).astype(np.float32)

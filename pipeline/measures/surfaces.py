"""Agreement of a predicted mask with the truth: distances between surfaces, and components.

The surface of a mask is the set of its voxels with a face neighbour outside the mask, as in MONAI. Beyond the image is
outside. No measure is NaN: two empty masks agree perfectly, and one empty mask gives the worst value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def surface_metrics(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance: float
) -> tuple[float, float, float]:
    """NSD, HD95 and ASSD of two boolean masks `[*space]`, 2D or 3D. Distances are in the unit of `spacing`.

    NSD is the share of surface voxels of both masks that are at most `tolerance` from the other surface. HD95 is the
    maximum of the two directed 95th percentiles. ASSD is the mean over the surface voxels of both masks together. Both
    empty: (1, 0, 0). One empty: (0, diagonal, diagonal), with the diagonal of the image's extent. The values equal
    MONAI's compute_surface_dice, compute_hausdorff_distance(percentile=95) and
    compute_average_surface_distance(symmetric=True) where MONAI's values are defined.
    """
    filled = prediction.any(), truth.any()
    if not any(filled):
        return 1.0, 0.0, 0.0
    if not all(filled):
        diagonal = math.hypot(*(length * step for length, step in zip(prediction.shape, spacing, strict=True)))
        return 0.0, diagonal, diagonal
    box = _bounding_box(prediction | truth)
    ours, theirs = _surface(prediction[box]), _surface(truth[box])
    there, back = _distances(ours, theirs, spacing), _distances(theirs, ours, spacing)
    both = np.concatenate([there, back])
    # Float32 hides the rounding of index times spacing, so that a voxel exactly at the tolerance counts.
    nsd = float(np.mean(both.astype(np.float32) <= np.float32(tolerance)))
    return nsd, float(max(np.percentile(there, 95), np.percentile(back, 95))), float(both.mean())


def component_f1(prediction: np.ndarray, truth: np.ndarray, overlap: float) -> float:
    """F1 of the connected components of two boolean masks `[*space]`: 2 TP / (2 TP + FP + FN), without units.

    A predicted and a true component are a true positive if their IoU is above `overlap`. From 0.5 on, no component can
    have two matches, so no assignment is needed. Both masks empty: 1. One empty: 0.
    Voxels are connected by face, edge or corner (8 or 26 neighbours). With faces alone, every voxel that hangs on a
    ragged outline by a corner would be a false positive. Objects that touch are one component: two touching nuclei
    count once, and a prediction that separates them has at most one match. Components are parts of masks, not annotated
    instances. The cost is up to 0.1 s per million voxels of the box around both masks, half of `surface_metrics`, and
    20 bytes per voxel.
    """
    from scipy.ndimage import label as numbered

    both = prediction | truth
    if not both.any():
        return 1.0
    box = _bounding_box(both)
    touching = np.ones((3,) * truth.ndim)
    (ours, n_ours), (theirs, n_theirs) = (numbered(mask[box], touching) for mask in (prediction, truth))
    shared = prediction[box] & truth[box]
    # One number per pair of overlapping components, in int64, because int32 may not hold the number of pairs.
    pair, intersection = np.unique(ours[shared].astype(np.int64) * (n_theirs + 1) + theirs[shared], return_counts=True)
    first, second = np.divmod(pair, n_theirs + 1)
    union = np.bincount(ours.ravel())[first] + np.bincount(theirs.ravel())[second] - intersection
    return 2 * int(np.count_nonzero(intersection / union > overlap)) / (n_ours + n_theirs)


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)


def _surface(mask: np.ndarray) -> np.ndarray:
    """Voxels of the mask with a face neighbour outside the mask.

    Beyond the array is outside. There is no mask beyond the box around both masks, so cropping changes nothing.
    """
    interior = mask.copy()
    for axis in range(mask.ndim):
        shifted, original = np.moveaxis(interior, axis, 0), np.moveaxis(mask, axis, 0)
        shifted[1:] &= original[:-1]
        shifted[:-1] &= original[1:]
        shifted[[0, -1]] = False
    return mask & ~interior


def _distances(surface: np.ndarray, other: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Distance of each voxel of a surface to the nearest voxel of the other surface, in no particular order.

    Voxels on both surfaces have distance 0 and need no search.
    """
    from scipy.spatial import cKDTree

    apart = np.argwhere(surface & ~other)
    distances = np.zeros(np.count_nonzero(surface))
    if len(apart):
        tree = cKDTree(np.argwhere(other) * spacing, balanced_tree=False, compact_nodes=False)
        distances[: len(apart)] = tree.query(apart * spacing)[0]
    return distances

"""How well a predicted mask matches the truth: overlap, distances between surfaces, volume, components.

Surfaces are the voxels of a mask with a face neighbour outside it, as in MONAI; beyond the image is outside.
Never NaN: both masks empty is a perfect answer, one empty the worst answer possible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import label as numbered
from scipy.spatial import cKDTree


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Dice of two boolean masks: 2 |P and T| / (|P| + |T|); 1 if both are empty."""
    total = int(np.count_nonzero(prediction) + np.count_nonzero(truth))
    return 2 * int(np.count_nonzero(prediction & truth)) / total if total else 1.0


def surface_metrics(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance: float
) -> tuple[float, float, float]:
    """NSD, HD95 and ASSD of two boolean masks `[*space]`, 2D or 3D; distances in the unit of `spacing`.

    NSD is the share of surface voxels of both masks at most `tolerance` from the other surface. HD95 is the maximum
    of the two directed 95th percentiles. ASSD is the mean over the surface voxels of both masks together.
    Both empty: (1, 0, 0). One empty: (0, diagonal, diagonal) with the diagonal of the image's extent.
    Equal to MONAI's compute_surface_dice, compute_hausdorff_distance(percentile=95) and
    compute_average_surface_distance(symmetric=True) where those are defined.
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
    # In float32 a voxel exactly at the tolerance counts, whatever the last bit of index times spacing.
    nsd = float(np.mean(both.astype(np.float32) <= np.float32(tolerance)))
    return nsd, float(max(np.percentile(there, 95), np.percentile(back, 95))), float(both.mean())


def component_f1(prediction: np.ndarray, truth: np.ndarray, overlap: float) -> float:
    """F1 of the connected components of two boolean masks `[*space]`: 2 TP / (2 TP + FP + FN), without units.

    A predicted and a true component are a true positive if their IoU is above `overlap`; from 0.5 on no component can
    have two matches, so nothing has to be assigned. Both masks empty: 1. One empty: 0.
    Components touch by face, edge or corner (8 or 26 neighbours): by faces alone, every voxel that hangs on a ragged
    outline by its corner would be a false positive. Objects that touch are one component: two touching nuclei count
    once, and a prediction that parts them has at most one match. Components are of masks, not of annotated instances.
    Costs up to 0.1 s per million voxels of the box around both masks, half of `surface_metrics`, and 20 bytes each.
    """
    both = prediction | truth
    if not both.any():
        return 1.0
    box = _bounding_box(both)
    touching = np.ones((3,) * truth.ndim)
    (ours, n_ours), (theirs, n_theirs) = (numbered(mask[box], touching) for mask in (prediction, truth))
    shared = prediction[box] & truth[box]
    # One number per pair of overlapping components; int64, since there may be more pairs than int32 holds.
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
    """Voxels of the mask with a face neighbour outside it.

    Beyond the array is outside: beyond the box around both masks there is no mask, so cropping to it changes nothing.
    """
    interior = mask.copy()
    for axis in range(mask.ndim):
        shifted, original = np.moveaxis(interior, axis, 0), np.moveaxis(mask, axis, 0)
        shifted[1:] &= original[:-1]
        shifted[:-1] &= original[1:]
        shifted[[0, -1]] = False
    return mask & ~interior


def _distances(surface: np.ndarray, other: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Distance of each voxel of a surface to the nearest voxel of the other; those on both need no search."""
    apart = np.argwhere(surface & ~other)
    distances = np.zeros(np.count_nonzero(surface))
    if len(apart):
        tree = cKDTree(np.argwhere(other) * spacing, balanced_tree=False, compact_nodes=False)
        distances[: len(apart)] = tree.query(apart * spacing)[0]
    return distances

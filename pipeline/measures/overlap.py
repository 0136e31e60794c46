"""Overlap and disagreement of many masks of one case.

Masks are packed to one bit per voxel. Counts of bits are exact for any number of voxels, and faster than one-hot matrix
products in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from pipeline.store.schema import UNKNOWN


def region(chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """Disagreement region bool `[*space]` of two label maps. Voxels that are 255 in either map are outside."""
    return (chosen != rejected) & (chosen != UNKNOWN) & (rejected != UNKNOWN)


def first_equal(masks: np.ndarray) -> np.ndarray:
    """First slot with the same mask, i64 `[K]`, for masks u8 `[K, *space]`.

    Masks are compared voxel by voxel. |D| = 0 does not mean equal masks, because D leaves out voxels that are 255.
    """
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(mask.tobytes(), slot) for slot, mask in enumerate(masks)], np.int64)


def _packed(masks: np.ndarray) -> np.ndarray:
    """Booleans `[K, *space]` as bits of words u64 `[K, words]`, padded with zeros."""
    packed = np.packbits(masks.reshape(len(masks), -1), axis=1)
    return np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.uint64)


def _shared(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Number of voxels in both masks, i64 `[K, L]`, for packed masks `[K, words]` and `[L, words]`."""
    return np.stack([np.bitwise_count(row & second).sum(axis=1, dtype=np.int64) for row in first])


def dice(shared: Any, total: Any) -> np.ndarray:
    """Dice f64 of masks, 2 |P and T| / (|P| + |T|), from the voxels in both masks and the sum of the sizes of both.

    Two empty masks agree perfectly: 1. Every Dice between masks in this library is computed here. Both counts may be
    arrays of one shape; they may be weighted.
    """
    total = np.asarray(total)
    return np.divide(2 * np.asarray(shared), total, out=np.ones(total.shape), where=total > 0)


def mask_dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Dice of two boolean masks."""
    total = np.count_nonzero(prediction) + np.count_nonzero(truth)
    return float(dice(np.count_nonzero(prediction & truth), total))


def pairwise_dice(masks: np.ndarray, n_classes: int) -> np.ndarray:
    """Dice between all pairs of label maps u8 `[K, *space]`, f64 `[K, K]`, mean over the foreground classes.

    A class that is empty in both maps counts as 1. Voxels that are 255 in either map do not count.
    """
    unknown = masks == UNKNOWN
    known = _packed(~unknown) if unknown.any() else None
    overlaps = []
    for label in range(1, n_classes):
        bits = _packed(masks == label)
        # Without voxels of 255, the size of a mask does not depend on the other mask, which halves the work.
        size = np.bitwise_count(bits).sum(axis=1, dtype=np.int64)[:, None] if known is None else _shared(bits, known)
        overlaps.append((_shared(bits, bits), size + size.T))
    return dice_from_counts(overlaps)


def disagreement(masks: np.ndarray) -> np.ndarray:
    """Number of voxels on which two label maps u8 `[K, *space]` differ, u32 `[K, K]`.

    Voxels that are 255 in either map do not count.
    """
    known = masks != UNKNOWN
    highest = int(masks.max(initial=0, where=known))
    # Two labels differ where any of their binary digits differs.
    planes = [_packed((masks >> digit) & 1) for digit in range(highest.bit_length())]
    valid = _packed(known)
    counts = np.zeros((len(masks), len(masks)), np.uint32)
    for k in range(len(masks)):
        differs = np.zeros_like(valid)
        for plane in planes:
            differs |= plane ^ plane[k]
        counts[k] = np.bitwise_count(differs & valid & valid[k]).sum(axis=1, dtype=np.int64)
    return counts


def overlaps_to(mask: np.ndarray, masks: np.ndarray, n_classes: int) -> np.ndarray:
    """Overlap counts i64 `[foreground class, 2, K]` of a label map u8 `[*space]` with each of u8 `[K, *space]`.

    The two counts are the voxels in both masks, and the sum of the sizes of both masks. Voxels that are 255 in either
    map do not count. The counts of the parts of a case add up to the counts of the case.
    """
    known, each_known = _packed(mask[None] != UNKNOWN), _packed(masks != UNKNOWN)
    overlaps = []
    for label in range(1, n_classes):
        one, each = _packed(mask[None] == label), _packed(masks == label)
        total = _shared(one, each_known) + _shared(known, each)
        overlaps.append((_shared(one, each)[0], total[0]))
    return np.array(overlaps)


def dice_from_counts(overlaps: Iterable[Any]) -> np.ndarray:
    """Dice from the two counts of each foreground class, as `overlaps_to` gives them; mean over the classes."""
    return np.mean([dice(shared, total) for shared, total in overlaps], axis=0)


def dice_to(mask: np.ndarray, masks: np.ndarray, n_classes: int) -> np.ndarray:
    """Dice f64 `[K]` of a label map u8 `[*space]`, often the truth, with each label map of u8 `[K, *space]`.

    Mean over the foreground classes. A class that is empty in both maps counts as 1. Voxels that are 255 in either map
    do not count.
    """
    return dice_from_counts(overlaps_to(mask, masks, n_classes))

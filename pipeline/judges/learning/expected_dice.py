"""Expected Dice and error probability of a mask under class probabilities of the truth."""

from __future__ import annotations

import numpy as np

from pipeline.store.schema import UNKNOWN

NETWORKS_FILE = "error_map.json"
"""File beside the networks: held-out patients of each network and its measures on these patients; written last."""


def expected_dice(p: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Expected Dice f64 `[class - 1]` of a mask u8 `[*space]` under probabilities f32 `[class, *space]`.

    One value per foreground class. 1 for a class that is certainly absent and empty in the mask; NaN without a known
    voxel. The formula is in `ErrorMap`.
    """
    known = mask != UNKNOWN
    if not known.any():
        return np.full(len(p) - 1, np.nan)
    scores = []
    for label in range(1, len(p)):
        inside = mask == label
        # The largest p of a voxel stands for the probability that the class is present at all.
        there = float(p[label][known].max())
        size = np.count_nonzero(inside)
        if size:
            volume = p[label][known].sum(dtype=np.float64) / there if there else 0.0
            scores.append(2 * p[label][inside].sum(dtype=np.float64) / (size + volume))
        else:
            scores.append(1 - there)
    return np.array(scores)


def error_of(p: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Error probability f32 `[*space]` of a mask u8 `[*space]` under probabilities f32 `[class, *space]`.

    NaN where the mask is 255.
    """
    known = mask != UNKNOWN
    right = np.take_along_axis(p, np.where(known, mask, 0)[None].astype(np.intp), 0)[0]
    return np.where(known, np.clip(1 - right, 0, 1), np.nan).astype(np.float32)

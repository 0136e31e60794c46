"""Folds that keep the cases of a patient together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.seeding import numpy_generator


def folds_by_group(groups: Sequence[str] | np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold of each value i64 `[n]`, from the group of each value. Groups stay whole.

    Groups are spread at random and evenly over the folds. There are at most as many folds as groups.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    order = numpy_generator(seed, "audit", "folds").permutation(len(names))
    fold = np.empty(len(names), np.int64)
    fold[order] = np.arange(len(names)) % min(folds, max(1, len(names)))
    return fold[member]

"""Agreement with the sibling proposals (Roy et al. 2019)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from pipeline.judges.judge import Evidence, JudgeKnobs
from pipeline.measures.overlap import pairwise_dice


class Agreement(JudgeKnobs):
    """Mean Dice with the other proposals of the case: it picks the medoid. Abstains where there is no other.

    By default every other proposal is a sibling and all weigh equally. Equal masks of one sampler have equal scores.
    """

    kind: Literal["agreement"]
    duplicates: Literal["keep", "drop"] = "keep"
    """`drop`: a mask that was proposed several times is one sibling, of the sampler that proposed it first, and none
    of its own copies, so that a sampler which repeats itself does not become the medoid by that."""
    others: bool = False
    """Siblings of other samplers only: a sampler cannot vouch for itself."""
    balanced: bool = False
    """Every sampler weighs equally, however many proposals it has: the mean over samplers of the mean over its
    siblings."""

    def score(self, evidence: Evidence) -> np.ndarray:
        dice = pairwise_dice(evidence.masks, evidence.classes)
        sibling = ~np.eye(len(dice), dtype=bool)  # [proposal, sibling]
        if self.duplicates == "drop":
            original = evidence.originals
            sibling = (original == np.arange(len(dice))) & (original[:, None] != original)
        sampler = np.unique(evidence.samplers, return_inverse=True)[1]  # a number per sampler, [proposal]
        if self.others:
            sibling &= sampler[:, None] != sampler
        weight = sibling.astype(np.float64)
        if self.balanced:
            same = (sampler[:, None] == sampler).astype(np.float64)
            siblings = weight @ same  # of the column's sampler, [proposal, sibling]; at least one where it is a sibling
            weight /= np.maximum(siblings, 1)
        total = _sum(weight)
        return np.divide(_sum(weight * dice), total, out=np.full(len(dice), np.nan), where=total > 0)


def _sum(values: np.ndarray) -> np.ndarray:
    # In order of size: the same values in other places have the same sum to the last bit, so ties stay ties.
    return np.sort(values, axis=1).sum(1)

"""Judge `agreement`: mean Dice of a proposal with its sibling proposals (Roy et al. 2019)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from pipeline.judges.judge import Evidence, JudgeKnobs
from pipeline.measures.overlap import pairwise_dice


class Agreement(JudgeKnobs):
    """Mean Dice (0 to 1, mean over foreground classes) with the sibling proposals of the case.

    The judge prefers the medoid of the proposals, and abstains on a proposal without siblings. By default every other
    proposal of the case is a sibling, and all siblings weigh equally. Equal masks of one sampler have equal scores.
    """

    kind: Literal["agreement"]
    duplicates: Literal["keep", "drop"] = "keep"
    """`drop` counts a mask that was proposed several times as one sibling, owned by the sampler that proposed it first.
    Copies of a mask are no siblings of each other, so a sampler that repeats a mask does not make it the medoid.
    `keep` counts every proposal."""
    others: bool = False
    """`true` counts only proposals of other samplers as siblings: a sampler cannot vouch for its own proposals."""
    balanced: bool = False
    """`true` lets every sampler weigh equally, whatever its number of proposals. The score is then the mean over
    samplers of the mean over the sampler's siblings."""

    def score(self, evidence: Evidence) -> np.ndarray:
        dice = pairwise_dice(evidence.masks, evidence.classes)
        sibling = ~np.eye(len(dice), dtype=bool)  # [proposal, sibling]
        if self.duplicates == "drop":
            original = evidence.originals
            sibling = (original == np.arange(len(dice))) & (original[:, None] != original)
        sampler = np.unique(evidence.samplers, return_inverse=True)[1]  # number of the sampler, [proposal]
        if self.others:
            sibling &= sampler[:, None] != sampler
        weight = sibling.astype(np.float64)
        if self.balanced:
            same = (sampler[:, None] == sampler).astype(np.float64)
            # Siblings of the column's sampler [proposal, sibling]; a count of 0 meets weight 0 only.
            siblings = weight @ same
            weight /= np.maximum(siblings, 1)
        total = _sum(weight)
        return np.divide(_sum(weight * dice), total, out=np.full(len(dice), np.nan), where=total > 0)


def _sum(values: np.ndarray) -> np.ndarray:
    # Summed in order of size: equal values in other places have the same sum to the last bit, so ties stay ties.
    return np.sort(values, axis=1).sum(1)

"""Agreement with the sibling proposals (Roy et al. 2019)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from pipeline.judges.judge import Evidence, JudgeKnobs
from pipeline.overlap import pairwise_dice


class Agreement(JudgeKnobs):
    """Mean Dice with the other proposals of the case: it picks the medoid. Abstains on a single proposal."""

    kind: Literal["agreement"]

    def score(self, evidence: Evidence) -> np.ndarray:
        dice = pairwise_dice(evidence.masks, evidence.classes)
        count = len(dice)
        if count < 2:
            return np.full(count, np.nan)
        return (dice.sum(1) - dice.diagonal()) / (count - 1)

"""Expected Dice under the mean probability of the proposals."""

from __future__ import annotations

from typing import Literal

import numpy as np

from pipeline.judges.judge import Evidence, JudgeKnobs


class ExpectedDice(JudgeKnobs):
    """`2 sum(p y) / (sum p + sum y)` per foreground class, averaged; 1 where both sums are 0.

    Likes large masks where the probability is diffuse.
    """

    kind: Literal["expected_dice"]

    def score(self, evidence: Evidence) -> np.ndarray:
        probability = evidence.probability.reshape(evidence.classes, -1).astype(np.float64)
        masks = evidence.masks.reshape(len(evidence.masks), -1)
        scores = []
        for label in range(1, evidence.classes):
            inside = (masks == label).astype(np.float64)
            total = probability[label].sum() + inside.sum(1)
            overlap = 2 * inside @ probability[label]
            scores.append(np.where(total > 0, overlap / np.where(total > 0, total, 1), 1.0))
        return np.mean(scores, axis=0)

"""Judge `expected_dice`: expected Dice of a proposal under the mean probability of the proposals."""

from __future__ import annotations

from typing import Literal

import numpy as np

from pipeline.judges.judge import Evidence, JudgeKnobs
from pipeline.measures.overlap import dice
from pipeline.store.schema import UNKNOWN


class ExpectedDice(JudgeKnobs):
    """`2 sum(p y) / (sum p + sum y)` of mean probability p and mask y, mean over foreground classes (0 to 1).

    A class counts as 1 if both `sum p` and `sum y` are 0. Voxels that are 255 in a mask count in no sum of the mask.
    The judge favours large masks where the probability is diffuse.
    """

    kind: Literal["expected_dice"]

    def score(self, evidence: Evidence) -> np.ndarray:
        # Sums of whole steps of 1/255 are exact, so that equal scores are ties to the last bit.
        steps = np.rint(evidence.probability * 255).astype(np.uint8)
        return np.array([_mean(steps, mask) for mask in evidence.masks])


def _mean(steps: np.ndarray, mask: np.ndarray) -> float:
    """Score of one label map u8 `[*space]` under probabilities u8 `[class, *space]` in steps of 1/255."""
    known = mask != UNKNOWN
    scores = []
    for label in range(1, len(steps)):
        inside = mask == label
        total = int(steps[label][known].sum(dtype=np.int64)) + 255 * int(inside.sum())
        scores.append(dice(int(steps[label][inside].sum(dtype=np.int64)), total))
    return float(np.mean(scores))

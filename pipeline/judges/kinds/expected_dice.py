"""Expected Dice under the mean probability of the proposals."""

from __future__ import annotations

from typing import Literal

import numpy as np

from pipeline.judges.judge import Evidence, JudgeKnobs
from pipeline.store.schema import UNKNOWN


class ExpectedDice(JudgeKnobs):
    """`2 sum(p y) / (sum p + sum y)` per foreground class, averaged; 1 where both sums are 0.

    Voxels that are 255 in a mask count in neither of its sums. Likes large masks where the probability is diffuse.
    """

    kind: Literal["expected_dice"]

    def score(self, evidence: Evidence) -> np.ndarray:
        # Whole steps of 1/255 have exact sums, so that proposals with equal scores are ties to the last bit.
        steps = np.rint(evidence.probability * 255).astype(np.uint8)
        return np.array([_mean(steps, mask) for mask in evidence.masks])


def _mean(steps: np.ndarray, mask: np.ndarray) -> float:
    """Mean over the foreground classes of u8 `[class, *space]` for one label map."""
    known = mask != UNKNOWN
    scores = []
    for label in range(1, len(steps)):
        inside = mask == label
        total = int(steps[label][known].sum(dtype=np.int64)) + 255 * int(inside.sum())
        overlap = 2 * int(steps[label][inside].sum(dtype=np.int64))
        scores.append(overlap / total if total else 1.0)
    return float(np.mean(scores))

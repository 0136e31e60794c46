"""Judge `likelihood`: likelihood of a proposal under the mean probability of the proposals."""

from __future__ import annotations

from typing import Literal

import numpy as np

from pipeline.judges.judge import Evidence, JudgeKnobs
from pipeline.store.schema import UNKNOWN


class Likelihood(JudgeKnobs):
    """Mean log-probability per voxel (nats) of the proposal's classes, on the union of the proposals' foregrounds.

    Voxels outside the union are background in every proposal and cannot tell proposals apart. All proposals of a case
    share the region, so mean and sum order the proposals alike, and the mean also compares cases. Voxels that are 255
    in any proposal lie outside the region. An empty region is a tie: every proposal has 0. The judge inherits the
    over-confidence of the networks.
    """

    kind: Literal["likelihood"]

    def score(self, evidence: Evidence) -> np.ndarray:
        masks = evidence.masks.reshape(len(evidence.masks), -1)
        region = np.flatnonzero((masks != 0).any(0) & (masks != UNKNOWN).all(0))
        if not len(region):
            return np.zeros(len(masks))
        steps = np.rint(evidence.probability.reshape(evidence.classes, -1)[:, region] * 255).astype(np.uint8)
        # A stored 0 stands for any probability below half a step, a stored 255 for any above 1 less half a step.
        # Neither is certainty.
        log = np.log(np.clip(np.arange(256) / 255, 1 / 510, 1 - 1 / 510))
        at = np.arange(len(region))
        # Counting equal probabilities first makes the sum independent of their places, so ties stay ties.
        counts = np.stack([np.bincount(steps[mask[region], at], minlength=256) for mask in masks])
        return (counts * log).sum(1) / len(region)

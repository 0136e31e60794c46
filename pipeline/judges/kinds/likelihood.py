"""Likelihood of a proposal under the mean probability of the proposals."""

from __future__ import annotations

from typing import Literal

import numpy as np

from pipeline.judges.judge import Evidence, JudgeKnobs
from pipeline.store.schema import UNKNOWN


class Likelihood(JudgeKnobs):
    """Mean log-probability per voxel (nats) of the proposal's classes, on the union of the proposals' foregrounds.

    Voxels outside the union are background in every proposal and could not tell them apart. The region is one for all
    proposals of a case, so that mean and sum order them alike; the mean also compares cases. Voxels that are 255 in
    any proposal are outside. An empty region is a tie: 0 for all. Inherits the networks' over-confidence.
    """

    kind: Literal["likelihood"]

    def score(self, evidence: Evidence) -> np.ndarray:
        masks = evidence.masks.reshape(len(evidence.masks), -1)
        region = np.flatnonzero((masks != 0).any(0) & (masks != UNKNOWN).all(0))
        if not len(region):
            return np.zeros(len(masks))
        steps = np.rint(evidence.probability.reshape(evidence.classes, -1)[:, region] * 255).astype(np.uint8)
        # A stored 0 is anything below half a step, and 1 anything above all but half a step: neither is certainty.
        log = np.log(np.clip(np.arange(256) / 255, 1 / 510, 1 - 1 / 510))
        at = np.arange(len(region))
        # Counting equal probabilities first makes the sum independent of where they are: ties stay ties.
        counts = np.stack([np.bincount(steps[mask[region], at], minlength=256) for mask in masks])
        return (counts * log).sum(1) / len(region)

"""Judge `entropy`: certainty of the mean probability at the border of a proposal, or inside the proposal."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from pipeline.judges.judge import Evidence, JudgeKnobs
from pipeline.store.schema import UNKNOWN


class Entropy(JudgeKnobs):
    """Minus the mean entropy (nats) of the mean probability in a region of the proposal.

    Every foreground class has a region of its own, and the score is the mean over the classes whose region holds a
    voxel. The judge abstains if no region holds a voxel: on empty masks, with `boundary` on full masks, and with
    `interior` on masks that lie within `band` of their border. The image edge and voxels that are 255 in the proposal
    form no border, and voxels that are 255 do not count. The judge favours eroded masks, and every mask whose border
    lies where all members agree.
    """

    kind: Literal["entropy"]
    region: Literal["boundary", "interior"] = "boundary"
    """`boundary`: voxels within `band` of the border of a class, on both sides. `interior`: voxels of the class that
    are not within `band` of its border."""
    band: Annotated[int, Field(ge=1)] = 2
    """Width of the boundary on each side, in voxels of the working grid, counted in steps along the axes."""

    def score(self, evidence: Evidence) -> np.ndarray:
        probability = evidence.probability.astype(np.float64)
        # 0 log 0 is 0.
        entropy = -(probability * np.log(np.where(probability > 0, probability, 1.0))).sum(0)
        return np.array([-self._mean(entropy, mask, evidence.classes) for mask in evidence.masks])

    def _mean(self, entropy: np.ndarray, mask: np.ndarray, classes: int) -> float:
        """Mean over classes of the mean of `entropy` `[*space]` in the region of the class; NaN without a region."""
        found = []
        for label in range(1, classes):
            inside = mask == label
            if not inside.any():
                continue
            # Dilation is expensive: a box with this margin holds the whole region.
            around = _box(inside, self.band)
            region = self._region(inside[around], (mask[around] != label) & (mask[around] != UNKNOWN))
            if region.any():
                found.append(entropy[around][region].mean())
        return float(np.mean(found)) if found else np.nan

    def _region(self, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
        from scipy.ndimage import binary_dilation

        near_outside = binary_dilation(outside, iterations=self.band)
        if self.region == "interior":
            return inside & ~near_outside
        return (inside & near_outside) | (outside & binary_dilation(inside, iterations=self.band))


def _box(inside: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Smallest box around the True voxels (at least one), widened by `margin` voxels on each side within the image."""
    axes = range(inside.ndim)
    lines = [np.flatnonzero(inside.any(tuple(other for other in axes if other != axis))) for axis in axes]
    return tuple(slice(max(0, int(line[0]) - margin), int(line[-1]) + margin + 1) for line in lines)

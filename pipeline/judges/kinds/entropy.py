"""Uncertainty of the mean probability where a proposal has its border, or inside it."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from pipeline.judges.judge import Evidence, JudgeKnobs
from pipeline.store.schema import UNKNOWN


class Entropy(JudgeKnobs):
    """Minus the mean entropy (nats) of the mean probability in a region of the proposal.

    Per foreground class that has such a region, averaged over those classes; abstains where none has one: empty
    masks, for `boundary` full ones, for `interior` those thinner than the band. The image's edge and voxels that are
    255 in the proposal are no border, and the latter do not count. Likes eroded masks, and every mask whose border
    lies where all members agree.
    """

    kind: Literal["entropy"]
    region: Literal["boundary", "interior"] = "boundary"
    """`boundary`: voxels within `band` of the border of a class, on both sides; `interior`: the rest of the class."""
    band: Annotated[int, Field(ge=1)] = 2
    """Voxels of the working grid, counted along the axes."""

    def score(self, evidence: Evidence) -> np.ndarray:
        probability = evidence.probability.astype(np.float64)
        entropy = -(probability * np.log(np.where(probability > 0, probability, 1.0))).sum(0)
        return np.array([-self._mean(entropy, mask, evidence.classes) for mask in evidence.masks])

    def _mean(self, entropy: np.ndarray, mask: np.ndarray, classes: int) -> float:
        """Mean of `entropy` `[*space]` in the regions of the classes of a label map; NaN without a region."""
        found = []
        for label in range(1, classes):
            inside = mask == label
            if not inside.any():
                continue
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
    """The smallest box around what is True, and `margin` voxels more on each side."""
    axes = range(inside.ndim)
    lines = [np.flatnonzero(inside.any(tuple(other for other in axes if other != axis))) for axis in axes]
    return tuple(slice(max(0, int(line[0]) - margin), int(line[-1]) + margin + 1) for line in lines)

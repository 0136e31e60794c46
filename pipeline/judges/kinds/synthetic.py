"""True Dice with planted errors, for research: a judge whose reliability is known because it is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from pipeline.judges.judge import Evidence, JudgeInputs, JudgeKnobs
from pipeline.measures.overlap import dice_to
from pipeline.seeding import numpy_generator
from pipeline.store.schema import UNKNOWN


class Synthetic(JudgeKnobs):
    """True Dice (mean over foreground classes) with planted errors; abstains on cases without truth.

    Errors add up in the order of the knobs. With flips alone, every pair of one case that differs in true Dice is
    wrong with probability `flip`; all pairs of a case are wrong together. Margins and ties are as without errors, so
    `top_bottom` mines the same pairs, turned around, and its expected noise rate is `flip`; a strategy that treats top
    and bottom differently mines other cases after a flip and has another rate (`top_base` skips cases with the base on
    top). With `large_above` that holds in the cases above it, and the rate elsewhere is 0.
    `SyntheticScores.error_rates` gives the probability for every pair under all knobs.
    """

    kind: Literal["synthetic"]
    research: ClassVar[bool] = True
    size_bias: float = 0.0
    """Dice added per relative volume: foreground over the mean foreground of the case's proposals, minus 1; nothing
    where all are empty."""
    gaussian: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of independent noise on every distinct mask, in Dice."""
    flip: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Probability that the ranking of a case is reversed: its scores are mirrored between their extremes."""
    large_above: Annotated[float, Field(ge=0)] | None = None
    """Errors only in cases of large disagreement: |D| of the truly best and worst proposal (the first ones if several)
    over the base prediction's foreground, at least one voxel, exceeds this. null: errors in all cases."""
    draw: int = 0
    """Judges with the same number share their draws, so that more noise is more of the same; another number is
    independent noise."""

    def ready(self, given: JudgeInputs) -> SyntheticScores:
        return SyntheticScores(self, given.seed)


@dataclass(frozen=True)
class SyntheticScores:
    """Scores with errors that depend on seed and case alone."""

    knobs: Synthetic
    seed: int

    def score(self, evidence: Evidence) -> np.ndarray:
        truth = evidence.truth()
        if truth is None:
            return np.full(len(evidence.masks), np.nan)
        dice = dice_to(truth, evidence.masks, evidence.classes)
        if not self._noisy(evidence, dice):
            return dice
        what = (self.seed, evidence.case.case_id, "synthetic", self.knobs.draw)
        noise = numpy_generator(*what, "gaussian").standard_normal(len(dice))[evidence.originals]
        scores = self._biased(evidence, dice) + self.knobs.gaussian * noise
        flipped = numpy_generator(*what, "flip").random() < self.knobs.flip
        return scores.max() + scores.min() - scores if flipped else scores

    def error_rates(self, evidence: Evidence) -> np.ndarray:
        """Probability that two proposals are in the wrong order, f64 `[proposal, proposal]`, before any draw.

        1/2 for a pair that a size bias alone makes equal. NaN where true Dice is equal, or there is no truth. Exact
        for pairs chosen without their scores; with gaussian noise, mining by score picks pairs whose noise is large.
        """
        from scipy.special import ndtr

        truth = evidence.truth()
        if truth is None:
            return np.full((len(evidence.masks),) * 2, np.nan)
        dice = dice_to(truth, evidence.masks, evidence.classes)
        gap = dice[:, None] - dice
        rate = np.zeros_like(gap)
        if self._noisy(evidence, dice):
            biased = self._biased(evidence, dice)
            kept = (biased[:, None] - biased) * np.sign(gap)  # of the gap in the right direction
            spread = np.sqrt(2) * self.knobs.gaussian
            rate = ndtr(-kept / spread) if spread > 0 else (1 - np.sign(kept)) / 2
            rate = rate * (1 - self.knobs.flip) + (1 - rate) * self.knobs.flip
        return np.where(gap == 0, np.nan, rate)

    def _noisy(self, evidence: Evidence, dice: np.ndarray) -> bool:
        """Whether the case is one with errors."""
        if self.knobs.large_above is None:
            return True
        differ = int(evidence.disagreement[dice.argmax(), dice.argmin()])
        return differ > self.knobs.large_above * max(1, int(_volumes(evidence)[0]))

    def _biased(self, evidence: Evidence, dice: np.ndarray) -> np.ndarray:
        volumes = _volumes(evidence)
        mean = volumes.mean()
        return dice if mean == 0 else dice + self.knobs.size_bias * (volumes / mean - 1)


def _volumes(evidence: Evidence) -> np.ndarray:
    """Foreground voxels, f64 `[proposal]`."""
    masks = evidence.masks.reshape(len(evidence.masks), -1)
    return ((masks != 0) & (masks != UNKNOWN)).sum(1).astype(np.float64)

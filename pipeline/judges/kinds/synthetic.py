"""Judge `synthetic`: true Dice with planted errors, for research only; its reliability is set, hence known."""

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
    """True Dice (mean over foreground classes) with planted errors; the judge abstains on cases without truth.

    Errors add up in the order of the knobs. With `flip` alone, every pair of one case that differs in true Dice is in
    the wrong order with probability `flip`, and all pairs of a case are wrong together. A flip keeps margins and ties,
    so `top_bottom` mines the same pairs in reverse, and the expected noise rate of `top_bottom` is `flip`. A strategy
    that treats top and bottom differently mines other cases after a flip and has another noise rate: `top_base`, for
    example, skips cases with the base on top. With `large_above` these rates hold for the cases above the threshold,
    and the noise rate of all other cases is 0. `SyntheticScores.error_rates` gives the error probability of every pair
    under all knobs.
    """

    kind: Literal["synthetic"]
    research: ClassVar[bool] = True
    size_bias: float = 0.0
    """Dice added per unit of relative volume. Relative volume is the foreground of a proposal over the mean foreground
    of the case's proposals, minus 1. Nothing is added if all proposals are empty."""
    gaussian: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation in Dice of the noise, which is drawn independently for every distinct mask."""
    flip: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Probability that the ranking of a case is reversed. A reversal mirrors the scores of the case between their
    lowest and highest value."""
    large_above: Annotated[float, Field(ge=0)] | None = None
    """Threshold that limits errors to cases of large disagreement: |D| of the truly best and the truly worst proposal
    (the first ones if several), over the foreground voxels of the base prediction (at least 1), must exceed this
    number. null plants errors in all cases."""
    draw: int = 0
    """Number of the random draws. Judges with the same number share their draws, so a larger `gaussian` or `flip`
    enlarges the same errors. Judges with different numbers have independent errors."""

    def ready(self, given: JudgeInputs) -> SyntheticScores:
        return SyntheticScores(self, given.seed)


@dataclass(frozen=True)
class SyntheticScores:
    """Scores with planted errors; the random draws depend on seed, `draw` and case alone."""

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
        """Probability that two proposals are in the wrong order, f64 `[proposal, proposal]`, before any random draw.

        A pair that the size bias alone makes equal has 1/2. A pair of equal true Dice has NaN, and so has every pair
        of a case without truth. The probabilities are exact for pairs chosen without their scores. With gaussian
        noise, mining by score picks pairs whose noise is large.
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
            kept = (biased[:, None] - biased) * np.sign(gap)  # gap after the size bias, positive if in the right order
            # Difference of two independent noises.
            spread = np.sqrt(2) * self.knobs.gaussian
            rate = ndtr(-kept / spread) if spread > 0 else (1 - np.sign(kept)) / 2
            # A flip turns wrong pairs right and right pairs wrong.
            rate = rate * (1 - self.knobs.flip) + (1 - rate) * self.knobs.flip
        return np.where(gap == 0, np.nan, rate)

    def _noisy(self, evidence: Evidence, dice: np.ndarray) -> bool:
        """Whether errors are planted in this case."""
        if self.knobs.large_above is None:
            return True
        differ = int(evidence.disagreement[dice.argmax(), dice.argmin()])
        return differ > self.knobs.large_above * max(1, int(_volumes(evidence)[0]))

    def _biased(self, evidence: Evidence, dice: np.ndarray) -> np.ndarray:
        volumes = _volumes(evidence)
        mean = volumes.mean()
        return dice if mean == 0 else dice + self.knobs.size_bias * (volumes / mean - 1)


def _volumes(evidence: Evidence) -> np.ndarray:
    """Number of foreground voxels, f64 `[proposal]`."""
    masks = evidence.masks.reshape(len(evidence.masks), -1)
    return ((masks != 0) & (masks != UNKNOWN)).sum(1).astype(np.float64)

"""Judge `fixed`: always the same sampler. Every other judge has to beat it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.errors import BadInput
from pipeline.judges.judge import Evidence, JudgeInputs, JudgeKnobs
from pipeline.knobs import BEST
from pipeline.measures.intervals import group_means
from pipeline.measures.overlap import dice_to
from pipeline.store.manifest import write_json

RANKING_FILE = "ranking.json"
"""File with the score of every proposal, by sampler and setting."""


class Fixed(JudgeKnobs):
    """Score that depends on the sampler of a proposal alone, and not on the image.

    With `best`, the score of a sampler is its mean Dice on labelled cases, from models that have not seen the cases;
    the mean is over patients. A sampler without out-of-fold proposals abstains.
    """

    kind: Literal["fixed"]
    proposal: str = BEST
    """`best`, or the sampler and the setting of the preferred proposal, such as `mean fitted`. The preferred proposal
    scores 1 and all others score 0."""

    @property
    def learns(self) -> bool:
        return self.proposal == BEST

    def ready(self, given: JudgeInputs) -> FixedScores:
        names = given.proposals.names
        if self.proposal == BEST:
            measured = self._measured(given)
            scores = {name: measured[name] for name in names if name in measured}
        else:
            given.proposals.slot(self.proposal)  # raises for a name that no proposal has
            scores = {name: float(name == self.proposal) for name in names}
        write_json(given.models / RANKING_FILE, scores)
        return FixedScores(tuple(scores.get(name, np.nan) for name in names))

    def _measured(self, given: JudgeInputs) -> dict[str, float]:
        """Mean Dice on the labelled cases by sampler and setting."""
        cases = given.learned_from(self.kind)
        classes = len(given.cases.class_names)
        dice = np.stack([dice_to(given.cases.label(case), given.out_of_fold.masks(case), classes) for case in cases])
        means = np.stack([group_means(of_slot, [case.group for case in cases]).mean() for of_slot in dice.T])
        found = dict(zip(given.out_of_fold.names, means.tolist(), strict=True))
        if not set(found) & set(given.proposals.names):
            raise BadInput(
                f"{given.out_of_fold.folder}: judge 'fixed' expects out-of-fold proposals of the samplers of the pool, "
                f"found {sorted(found)}; the pool has {given.proposals.names}"
            )
        return found


@dataclass(frozen=True)
class FixedScores:
    """One score per slot, the same in every case. Equal masks have the highest score of their slots."""

    scores: tuple[float, ...]

    def score(self, evidence: Evidence) -> np.ndarray:
        scores = np.array(self.scores)
        of_mask = np.full(len(scores), np.nan)
        # Mining leaves duplicates out, so the first slot with a mask speaks for all slots with the mask.
        np.fmax.at(of_mask, evidence.originals, scores)
        return of_mask[evidence.originals]

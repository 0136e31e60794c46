"""Judge `oracle`: true Dice, for research only; the ceiling of every judge."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from pipeline.judges.judge import Evidence, JudgeKnobs
from pipeline.measures.overlap import dice_to


class Oracle(JudgeKnobs):
    """Dice with the truth (0 to 1), mean over foreground classes; the judge abstains on cases without truth."""

    kind: Literal["oracle"]
    research: ClassVar[bool] = True

    def score(self, evidence: Evidence) -> np.ndarray:
        truth = evidence.truth()
        if truth is None:
            return np.full(len(evidence.masks), np.nan)
        return dice_to(truth, evidence.masks, evidence.classes)

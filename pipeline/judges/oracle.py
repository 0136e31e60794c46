"""True Dice, for research: the ceiling of every judge."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.judges.judge import Evidence
from pipeline.knobs import Knobs
from pipeline.overlap import dice_to
from pipeline.store import CaseStore, ProposalStore


class Oracle(Knobs):
    """Mean Dice over foreground classes with the truth; abstains where there is none."""

    kind: Literal["oracle"]

    def ready(self, cases: CaseStore, proposals: ProposalStore, models: Path, seed: int) -> Oracle:
        return self

    def score(self, evidence: Evidence) -> np.ndarray:
        truth = evidence.truth()
        if truth is None:
            return np.full(len(evidence.masks), np.nan)
        return dice_to(truth, evidence.masks, evidence.classes)

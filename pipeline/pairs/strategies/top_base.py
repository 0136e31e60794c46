"""Strategy `top_base`: the judge's best proposals over the base prediction."""

from __future__ import annotations

from typing import Literal

import numpy as np

from pipeline.pairs.strategies.strategy import Candidates, Scored, StrategyKnobs, ranked, together


class TopBase(StrategyKnobs):
    """The judge's best proposals over the base prediction, if their scores are above the score of the base.

    A voxel of D is active if the base differs from chosen there. The base is the rejected mask, so every voxel of D is
    active.
    """

    kind: Literal["top_base"]

    def candidates(self, scored: Scored, seed: int) -> Candidates:
        # Slot 0, the base prediction, is left out of the ranking. Slots of the ranking are therefore one too low.
        ranking = ranked(scored.scores[:, 1:])
        _, order, count = ranking
        judged = ~np.isnan(scored.scores[:, 0])
        found = []
        for rank in range(min(self.max_pairs_per_case, order.shape[1])):
            row = np.flatnonzero(judged & (count > rank))
            found.append(Candidates(row, 1 + order[row, rank], np.zeros_like(row), ranking.tied(row, rank)))
        return together(found)

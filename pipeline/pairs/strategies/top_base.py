"""The judge's best proposals over the base prediction."""

from __future__ import annotations

from typing import Literal

import numpy as np

from pipeline.pairs.strategies.strategy import Candidates, Scored, StrategyKnobs, ranked, together


class TopBase(StrategyKnobs):
    """The judge's best proposals over the base prediction, where it scores them above it: all of D is active."""

    kind: Literal["top_base"]

    def candidates(self, scored: Scored, seed: int) -> Candidates:
        ranking = ranked(scored.scores[:, 1:])
        _, order, count = ranking
        judged = ~np.isnan(scored.scores[:, 0])
        found = []
        for rank in range(min(self.max_pairs_per_case, order.shape[1])):
            row = np.flatnonzero(judged & (count > rank))
            found.append(Candidates(row, 1 + order[row, rank], np.zeros_like(row), ranking.tied(row, rank)))
        return together(found)

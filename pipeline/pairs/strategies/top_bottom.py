"""Strategy `top_bottom`: the judge's best proposal over the judge's worst proposal."""

from __future__ import annotations

from typing import Literal

import numpy as np

from pipeline.pairs.strategies.strategy import Candidates, Scored, StrategyKnobs, ranked, together


class TopBottom(StrategyKnobs):
    """The judge's best proposal over the judge's worst proposal.

    Further pairs are the second best over the second worst proposal, and so on.
    """

    kind: Literal["top_bottom"]

    def candidates(self, scored: Scored, seed: int) -> Candidates:
        ranking = ranked(scored.scores)
        _, order, count = ranking
        found = []
        for rank in range(min(self.max_pairs_per_case, order.shape[1] // 2)):
            row = np.flatnonzero(count // 2 > rank)
            last = count[row] - 1 - rank
            tie = ranking.tied(row, rank) | ranking.tied(row, last)
            found.append(Candidates(row, order[row, rank], order[row, last], tie))
        return together(found)

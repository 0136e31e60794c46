"""Strategy `top_random`: the judge's best proposal over other proposals drawn at random."""

from __future__ import annotations

from typing import Literal

import numpy as np

from pipeline.pairs.strategies.strategy import Candidates, Scored, StrategyKnobs, ranked, shuffled, together


class TopRandom(StrategyKnobs):
    """The judge's best proposal over other proposals drawn at random."""

    kind: Literal["top_random"]

    def candidates(self, scored: Scored, seed: int) -> Candidates:
        ranking = ranked(scored.scores)
        _, order, count = ranking
        rest = scored.scores.copy()
        np.put_along_axis(rest, order[:, :1], np.nan, axis=1)
        drawn = shuffled(seed, self.kind, scored.case_id, rest)
        found = []
        for turn in range(min(self.max_pairs_per_case, order.shape[1] - 1)):
            row = np.flatnonzero(count - 1 > turn)
            found.append(Candidates(row, order[row, 0], drawn[row, turn], ranking.tied(row, 0)))
        return together(found)

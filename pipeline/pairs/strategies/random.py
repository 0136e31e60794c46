"""Strategy `random`: two proposals drawn at random, the proposal with the higher score chosen."""

from __future__ import annotations

from typing import Literal

import numpy as np

from pipeline.pairs.strategies.strategy import Candidates, Scored, StrategyKnobs, shuffled, together


class Random(StrategyKnobs):
    """Two proposals drawn at random, the proposal with the higher score chosen. Baseline for mining by rank.

    Further pairs are drawn from the remaining proposals.
    """

    kind: Literal["random"]

    def candidates(self, scored: Scored, seed: int) -> Candidates:
        scores = scored.scores
        drawn = shuffled(seed, self.kind, scored.case_id, scores)
        count = np.count_nonzero(~np.isnan(scores), axis=1)
        found = []
        for turn in range(min(self.max_pairs_per_case, scores.shape[1] // 2)):
            row = np.flatnonzero(count // 2 > turn)
            one, two = drawn[row, 2 * turn], drawn[row, 2 * turn + 1]
            better = scores[row, one] > scores[row, two]
            tie = scores[row, one] == scores[row, two]
            found.append(Candidates(row, np.where(better, one, two), np.where(better, two, one), tie))
        return together(found)

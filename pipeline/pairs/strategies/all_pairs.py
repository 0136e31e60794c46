"""Strategy `all_pairs`: every proposal over every proposal with a lower score."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from pipeline.pairs.strategies.strategy import Candidates, Scored, StrategyKnobs, ranked, together


class AllPairs(StrategyKnobs):
    """Every proposal over every proposal with a lower score, the widest margins first.

    If the limit `max_pairs_per_case` falls among pairs of equal margin, all pairs of this margin are dropped.
    """

    kind: Literal["all_pairs"]
    max_pairs_per_case: Annotated[int, Field(ge=1)] = 6
    """Largest number of pairs per case."""

    def candidates(self, scored: Scored, seed: int) -> Candidates:
        _, order, count = ranked(scored.scores)
        slots, most = order.shape[1], self.max_pairs_per_case
        # For the pair with rank a from the top and rank b from the bottom, (a+1)(b+1) - 1 others are at least as wide.
        # Only the `most` + 1 widest pairs matter: the last of them shows whether the limit cuts equal margins apart.
        ranks = [(a, b) for a in range(slots) for b in range(slots - 1 - a) if (a + 1) * (b + 1) <= most + 1]
        above, below = np.array(ranks, np.int64).reshape(-1, 2).T
        last = count[:, None] - 1 - below
        valid = above < last
        chosen, rejected = order[:, above], np.take_along_axis(order, np.where(valid, last, 0), axis=1)
        best, worst = (np.take_along_axis(scored.scores, slot, axis=1) for slot in (chosen, rejected))
        margin = np.where(valid, best - worst, -np.inf)
        widest = np.argsort(-margin, axis=1, kind="stable")
        margin = np.take_along_axis(margin, widest, axis=1)
        beyond = margin[:, most] if margin.shape[1] > most else np.full(len(margin), -np.inf)
        found = []
        for turn in range(min(most, margin.shape[1])):
            row = np.flatnonzero(margin[:, turn] > -np.inf)
            at = widest[row, turn]
            found.append(Candidates(row, chosen[row, at], rejected[row, at], margin[row, turn] == beyond[row]))
        return together(found)

"""Strategy `top_quantile`: the judge's best proposal over a proposal well below the mean score."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from pipeline.pairs.strategies.strategy import Candidates, Scored, StrategyKnobs, ranked, together


class TopQuantile(StrategyKnobs):
    """The judge's best proposal over the proposal whose score is nearest to mean - `deviations` x standard deviation.

    Mean and population standard deviation are over the scores of the case. Among many proposals the worst proposal is
    an outlier that teaches nothing. Further pairs reject the next nearest proposals. Equally near proposals tie.
    """

    kind: Literal["top_quantile"]
    deviations: Annotated[float, Field(ge=0)] = 2.0
    """Distance of the rejected proposal's score below the mean, in standard deviations."""

    def candidates(self, scored: Scored, seed: int) -> Candidates:
        scores = scored.scores
        ranking = ranked(scores)
        _, order, count = ranking
        some = np.maximum(count, 1)[:, None]
        mean = np.nansum(scores, axis=1, keepdims=True) / some
        deviation = np.sqrt(np.nansum((scores - mean) ** 2, axis=1, keepdims=True) / some)
        distance = np.abs(scores - (mean - self.deviations * deviation))
        # The top pick is the chosen mask and cannot be rejected as well.
        np.put_along_axis(distance, order[:, :1], np.nan, axis=1)
        nearness = ranked(-distance)
        found = []
        for turn in range(min(self.max_pairs_per_case, order.shape[1] - 1)):
            row = np.flatnonzero(nearness.known > turn)
            tie = ranking.tied(row, 0) | nearness.tied(row, turn)
            found.append(Candidates(row, order[row, 0], nearness.order[row, turn], tie))
        return together(found)

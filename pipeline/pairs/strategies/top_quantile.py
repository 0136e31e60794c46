"""The judge's best proposal over one well below the mean."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from pipeline.pairs.strategies.strategy import Candidates, Scored, StrategyKnobs, ranked, together


class TopQuantile(StrategyKnobs):
    """The judge's best proposal over the one whose score is nearest to the mean less some standard deviations.

    Among many proposals the worst is an outlier that nobody needs to be warned of. Mean and (population) standard
    deviation are those of the case's scores. Further pairs reject the next nearest. Two that are equally near tie.
    """

    kind: Literal["top_quantile"]
    deviations: Annotated[float, Field(ge=0)] = 2.0
    """Standard deviations below the mean at which the rejected proposal is sought."""

    def candidates(self, scored: Scored, seed: int) -> Candidates:
        scores = scored.scores
        ranking = ranked(scores)
        _, order, count = ranking
        some = np.maximum(count, 1)[:, None]
        mean = np.nansum(scores, axis=1, keepdims=True) / some
        deviation = np.sqrt(np.nansum((scores - mean) ** 2, axis=1, keepdims=True) / some)
        distance = np.abs(scores - (mean - self.deviations * deviation))
        np.put_along_axis(distance, order[:, :1], np.nan, axis=1)
        nearness = ranked(-distance)
        found = []
        for turn in range(min(self.max_pairs_per_case, order.shape[1] - 1)):
            row = np.flatnonzero(nearness.known > turn)
            tie = ranking.tied(row, 0) | nearness.tied(row, turn)
            found.append(Candidates(row, order[row, 0], nearness.order[row, turn], tie))
        return together(found)

"""Strategy `reviewed`: the pairs that reviewers have ordered."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.knobs import Knobs
from pipeline.pairs.strategies.all_pairs import AllPairs
from pipeline.pairs.strategies.random import Random
from pipeline.pairs.strategies.top_base import TopBase
from pipeline.pairs.strategies.top_bottom import TopBottom
from pipeline.pairs.strategies.top_quantile import TopQuantile
from pipeline.pairs.strategies.top_random import TopRandom


class Reviewed(Knobs):
    """The pairs on which reviewers preferred one mask, by the answers in `review.verdicts`.

    The mask with more answers is chosen. Masks with equally many answers, as after contradicting repeats, make no pair,
    and neither do the answers `equal` and `unusable`. In the pair table the score of a mask is the number of answers
    that prefer the mask to the other mask of the pair, the margin is the difference of the two numbers, and `judge` is
    `none`. With the probability e that an answer is wrong, `p_correct` of a margin m is (1 - e)^m / ((1 - e)^m + e^m).
    The audit estimates e from pairs of the draw `audit` that were shown twice: e is the mean of the Jeffreys
    distribution, so few such pairs never make `p_correct` 1. `p_correct` is null without such pairs, and if at least
    half of them were answered otherwise the second time.

    Alone, the strategy needs the judge `none`. With `otherwise`, the judge of the pair set orders the cases on which no
    pair of reviewers is there. A pair of the judge on which reviewers preferred no mask is left out.
    """

    kind: Literal["reviewed"]
    min_disagreement: Annotated[int, Field(ge=1)] = 1
    """Smallest size |D| of the disagreement region, in voxels of the working grid."""
    otherwise: (
        Annotated[TopBottom | TopBase | TopRandom | TopQuantile | Random | AllPairs, Field(discriminator="kind")] | None
    ) = None
    """Strategy for the cases without a pair of reviewers, by the scores of `judge`. Null: only pairs of reviewers."""

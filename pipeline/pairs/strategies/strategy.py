"""Mining strategies: which two proposals of a case are compared, by the scores of one judge."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import numpy as np
import polars as pl
from pydantic import Field

from pipeline.knobs import Knobs
from pipeline.seeding import seed_of


class Scored(NamedTuple):
    """The scores of one judge for a block of cases; NaN for duplicates and where the judge abstained."""

    case_id: pl.Series  # [case]
    scores: np.ndarray  # f64 [case, slot]


class Candidates(NamedTuple):
    """Possible pairs, all `[candidate]`; those of one case beside each other, the first choice first."""

    row: np.ndarray  # case in the block
    chosen: np.ndarray  # slot
    rejected: np.ndarray  # slot
    tie: np.ndarray  # another proposal could stand in for one of the two: only its index would decide


class _Strategy(Knobs):
    """Filters that every strategy has; all but `keep_fraction` look at one pair at a time."""

    min_margin: Annotated[float, Field(ge=0)] = 0.0
    """Least difference of the two scores; equal scores never make a pair."""
    min_p_correct: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Least calibrated probability that the order is right. Null: one half where the audit could calibrate, and no
    filter where it could not; 0 reports `p_correct` and keeps even pairs that are more likely wrong than right."""
    min_disagreement: Annotated[int, Field(ge=1)] = 1
    """Least |D| in voxels of the working grid."""
    max_pairs_per_case: Annotated[int, Field(ge=1)] = 1
    """Most pairs of one case."""
    keep_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the split's cases with a pair left that are kept, rounded, at least one case: those whose widest margin
    is largest. Cases that share the margin at the cut are dropped together, so fewer may be kept."""


class TopBottom(_Strategy):
    """The judge's best proposal over its worst; further pairs are second best over second worst, and so on."""

    kind: Literal["top_bottom"]

    def candidates(self, scored: Scored, seed: int) -> Candidates:
        ranking = _ranked(scored.scores)
        _, order, count = ranking
        found = []
        for rank in range(min(self.max_pairs_per_case, order.shape[1] // 2)):
            row = np.flatnonzero(count // 2 > rank)
            last = count[row] - 1 - rank
            tie = ranking.tied(row, rank) | ranking.tied(row, last)
            found.append(Candidates(row, order[row, rank], order[row, last], tie))
        return _together(found)


class TopBase(_Strategy):
    """The judge's best proposals over the base prediction, where it scores them above it: all of D is active."""

    kind: Literal["top_base"]

    def candidates(self, scored: Scored, seed: int) -> Candidates:
        ranking = _ranked(scored.scores[:, 1:])
        _, order, count = ranking
        judged = ~np.isnan(scored.scores[:, 0])
        found = []
        for rank in range(min(self.max_pairs_per_case, order.shape[1])):
            row = np.flatnonzero(judged & (count > rank))
            found.append(Candidates(row, 1 + order[row, rank], np.zeros_like(row), ranking.tied(row, rank)))
        return _together(found)


class TopRandom(_Strategy):
    """The judge's best proposal over others drawn at random."""

    kind: Literal["top_random"]

    def candidates(self, scored: Scored, seed: int) -> Candidates:
        ranking = _ranked(scored.scores)
        _, order, count = ranking
        rest = scored.scores.copy()
        np.put_along_axis(rest, order[:, :1], np.nan, axis=1)
        drawn = _shuffled(seed, self.kind, scored.case_id, rest)
        found = []
        for turn in range(min(self.max_pairs_per_case, order.shape[1] - 1)):
            row = np.flatnonzero(count - 1 > turn)
            found.append(Candidates(row, order[row, 0], drawn[row, turn], ranking.tied(row, 0)))
        return _together(found)


class TopQuantile(_Strategy):
    """The judge's best proposal over the one whose score is nearest to the mean less some standard deviations.

    Among many proposals the worst is an outlier that nobody needs to be warned of. Mean and (population) standard
    deviation are those of the case's scores. Further pairs reject the next nearest. Two that are equally near tie.
    """

    kind: Literal["top_quantile"]
    deviations: Annotated[float, Field(ge=0)] = 2.0
    """Standard deviations below the mean at which the rejected proposal is sought."""

    def candidates(self, scored: Scored, seed: int) -> Candidates:
        scores = scored.scores
        ranking = _ranked(scores)
        _, order, count = ranking
        some = np.maximum(count, 1)[:, None]
        mean = np.nansum(scores, axis=1, keepdims=True) / some
        deviation = np.sqrt(np.nansum((scores - mean) ** 2, axis=1, keepdims=True) / some)
        distance = np.abs(scores - (mean - self.deviations * deviation))
        np.put_along_axis(distance, order[:, :1], np.nan, axis=1)
        nearness = _ranked(-distance)
        found = []
        for turn in range(min(self.max_pairs_per_case, order.shape[1] - 1)):
            row = np.flatnonzero(nearness.known > turn)
            tie = ranking.tied(row, 0) | nearness.tied(row, turn)
            found.append(Candidates(row, order[row, 0], nearness.order[row, turn], tie))
        return _together(found)


class Random(_Strategy):
    """Two proposals drawn at random, the better scored one chosen: what mining by rank has to beat.

    Further pairs are drawn from the proposals that are left.
    """

    kind: Literal["random"]

    def candidates(self, scored: Scored, seed: int) -> Candidates:
        scores = scored.scores
        drawn = _shuffled(seed, self.kind, scored.case_id, scores)
        count = np.count_nonzero(~np.isnan(scores), axis=1)
        found = []
        for turn in range(min(self.max_pairs_per_case, scores.shape[1] // 2)):
            row = np.flatnonzero(count // 2 > turn)
            one, two = drawn[row, 2 * turn], drawn[row, 2 * turn + 1]
            better = scores[row, one] > scores[row, two]
            tie = scores[row, one] == scores[row, two]
            found.append(Candidates(row, np.where(better, one, two), np.where(better, two, one), tie))
        return _together(found)


class AllPairs(_Strategy):
    """Every proposal over every lower scored one, the widest margins first.

    Where more pairs have one margin than `max_pairs_per_case` leaves room for, none of these is taken.
    """

    kind: Literal["all_pairs"]
    max_pairs_per_case: Annotated[int, Field(ge=1)] = 6
    """Most pairs of one case."""

    def candidates(self, scored: Scored, seed: int) -> Candidates:
        _, order, count = _ranked(scored.scores)
        slots, most = order.shape[1], self.max_pairs_per_case
        # The pair of the a-th from the top and the b-th from the bottom has (a+1)(b+1) - 1 pairs that are as wide.
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
        return _together(found)


class NoPairs(Knobs):
    """An empty pair set, for students that need no pairs."""

    kind: Literal["none"]


Mined = TopBottom | TopBase | TopRandom | TopQuantile | Random | AllPairs
"""The strategies that make pairs."""

Strategy = Annotated[
    TopBottom | TopBase | TopRandom | TopQuantile | Random | AllPairs | NoPairs, Field(discriminator="kind")
]


class _Ranking(NamedTuple):
    """Proposals of each case, best first. The order among equal scores is arbitrary: no pair may depend on it."""

    scores: np.ndarray  # f64 [case, slot]
    order: np.ndarray  # slots [case, rank], those without a score last
    known: np.ndarray  # number of scored proposals [case]

    def tied(self, row: np.ndarray, rank: int | np.ndarray) -> np.ndarray:
        """Whether the proposals `[n]` of these cases and ranks share their score with a neighbour in rank."""
        at, last = np.broadcast_to(rank, row.shape), self.order.shape[1] - 1
        score = self._score(row, at)
        above = (at > 0) & (self._score(row, np.maximum(at - 1, 0)) == score)
        return above | ((at < last) & (self._score(row, np.minimum(at + 1, last)) == score))

    def _score(self, row: np.ndarray, rank: np.ndarray) -> np.ndarray:
        return self.scores[row, self.order[row, rank]]


def _ranked(scores: np.ndarray) -> _Ranking:
    return _Ranking(scores, np.argsort(-scores, axis=1), np.count_nonzero(~np.isnan(scores), axis=1))


def _shuffled(seed: int, what: str, case_ids: pl.Series, scores: np.ndarray) -> np.ndarray:
    """Slots `[case, turn]` in a random order that depends on seed, case and slot alone; those without a score last.

    Keys are splitmix64 (Steele, Lea and Flood 2014) of the case's seed.
    """
    state = np.array([seed_of(seed, what, case_id) for case_id in case_ids], np.uint64)[:, None]
    mixed: np.ndarray = state + np.arange(1, scores.shape[1] + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    keys = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.float64)
    keys[np.isnan(scores)] = np.inf
    return np.argsort(keys, axis=1, kind="stable")


def _together(found: list[Candidates]) -> Candidates:
    """The turns of a strategy in one, those of a case beside each other in the order of the turns."""
    if len(found) == 1:
        return found[0]
    if not found:
        empty = np.zeros(0, np.int64)
        return Candidates(empty, empty, empty, empty.astype(bool))
    row, chosen, rejected, tie = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(row, kind="stable")
    return Candidates(row[order], chosen[order], rejected[order], tie[order])

"""Mining strategies: which two proposals of a case are compared, by the scores of one judge."""

from __future__ import annotations

from typing import Annotated, NamedTuple

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


class StrategyKnobs(Knobs):
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


class Ranking(NamedTuple):
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


def ranked(scores: np.ndarray) -> Ranking:
    return Ranking(scores, np.argsort(-scores, axis=1), np.count_nonzero(~np.isnan(scores), axis=1))


def shuffled(seed: int, what: str, case_ids: pl.Series, scores: np.ndarray) -> np.ndarray:
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


def together(found: list[Candidates]) -> Candidates:
    """The turns of a strategy in one, those of a case beside each other in the order of the turns."""
    if len(found) == 1:
        return found[0]
    if not found:
        empty = np.zeros(0, np.int64)
        return Candidates(empty, empty, empty, empty.astype(bool))
    row, chosen, rejected, tie = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(row, kind="stable")
    return Candidates(row[order], chosen[order], rejected[order], tie[order])

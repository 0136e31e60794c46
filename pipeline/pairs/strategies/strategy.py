"""Base class of the mining strategies: which two proposals of a case are compared, by the scores of one judge."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import numpy as np
import polars as pl
from pydantic import Field

from pipeline.knobs import Knobs
from pipeline.seeding import seed_of


class Scored(NamedTuple):
    """Scores of one judge for a block of cases."""

    case_id: pl.Series  # [case]
    scores: np.ndarray  # f64 [case, slot]; NaN for duplicates and where the judge abstained


class Candidates(NamedTuple):
    """Possible pairs, all arrays `[candidate]`. Candidates of a case lie beside each other, the first choice first."""

    row: np.ndarray  # index of the case in the block
    chosen: np.ndarray  # slot
    rejected: np.ndarray  # slot
    tie: np.ndarray  # bool; another proposal fits as well as one of the two, and only the index would decide


class StrategyKnobs(Knobs):
    """Filters of every strategy. All filters but `keep_fraction` look at one case at a time."""

    min_margin: Annotated[float, Field(ge=0)] = 0.0
    """Smallest difference of the two scores, in units of the score. Equal scores never make a pair."""
    min_p_correct: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Smallest calibrated probability that the order is right. Null means one half if the audit calibrated the pair
    set, and no filter otherwise. With 0, even pairs that are more likely wrong than right are kept, and `p_correct` is
    reported. The probability is fitted to validation labels, so only with 0 is a student on the pairs a candidate for
    promotion."""
    min_disagreement: Annotated[int, Field(ge=1)] = 1
    """Smallest size |D| of the disagreement region, in voxels of the working grid."""
    max_pairs_per_case: Annotated[int, Field(ge=1)] = 1
    """Largest number of pairs per case."""
    keep_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the cases with pairs that is kept: the cases whose widest margin is largest. The number of cases is
    rounded and at least one. Cases that share the margin at the cut are all dropped, so fewer cases, or none, may be
    kept."""

    @property
    def least_p_correct(self) -> float:
        """Smallest `p_correct` of a pair of a calibrated pair set."""
        return 0.5 if self.min_p_correct is None else self.min_p_correct


class Ranking(NamedTuple):
    """Proposals of each case, best first. The order among equal scores is arbitrary, so no pair may depend on it."""

    scores: np.ndarray  # f64 [case, slot]
    order: np.ndarray  # i64 [case, rank], slots; slots without a score come last
    known: np.ndarray  # i64 [case], number of scored proposals

    def tied(self, row: np.ndarray, rank: int | np.ndarray) -> np.ndarray:
        """Whether the proposal at each row and rank shares its score with a neighbour in rank, bool `[n]`."""
        at, last = np.broadcast_to(rank, row.shape), self.order.shape[1] - 1
        score = self._score(row, at)
        above = (at > 0) & (self._score(row, np.maximum(at - 1, 0)) == score)
        return above | ((at < last) & (self._score(row, np.minimum(at + 1, last)) == score))

    def _score(self, row: np.ndarray, rank: np.ndarray) -> np.ndarray:
        return self.scores[row, self.order[row, rank]]


def ranked(scores: np.ndarray) -> Ranking:
    """Ranking of scores f64 `[case, slot]`; NaN stands for a slot without a score."""
    return Ranking(scores, np.argsort(-scores, axis=1), np.count_nonzero(~np.isnan(scores), axis=1))


def shuffled(seed: int, what: str, case_ids: pl.Series, scores: np.ndarray) -> np.ndarray:
    """Slots i64 `[case, turn]` in random order; slots without a score come last.

    The order depends on `seed`, `what`, the case and the slot alone. Slots are sorted by keys of splitmix64 (Steele,
    Lea and Flood 2014), started from a seed of the case.
    """
    state = np.array([seed_of(seed, what, case_id) for case_id in case_ids], np.uint64)[:, None]
    mixed: np.ndarray = state + np.arange(1, scores.shape[1] + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    keys = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.float64)
    keys[np.isnan(scores)] = np.inf
    return np.argsort(keys, axis=1, kind="stable")


def together(found: list[Candidates]) -> Candidates:
    """Candidates of all turns of a strategy, grouped by case, and within a case in the order of the turns."""
    if len(found) == 1:
        return found[0]
    if not found:
        empty = np.zeros(0, np.int64)
        return Candidates(empty, empty, empty, empty.astype(bool))
    row, chosen, rejected, tie = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(row, kind="stable")
    return Candidates(row[order], chosen[order], rejected[order], tie[order])

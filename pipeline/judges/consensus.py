"""Consensus: one score per proposal out of those of several judges, computed in the panel.

What is combined are within-case ranks: scores of different judges have different units, and only the order of the
proposals of one case matters to mining. Ranked are the distinct masks that every named judge has scored, mean ranks
for ties, scaled so that the lowest has 0 and the highest 1 (a single one: 1/2). A proposal that a named judge abstained
on is null; duplicates have the score of the first proposal with their mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, NamedTuple

import numpy as np
import polars as pl
from pydantic import Field, field_validator

from pipeline.errors import BadInput
from pipeline.knobs import Knobs, Name
from pipeline.measures.ranking import _order, within_case_spearman

BLOCK = 32_768
"""Cases combined at a time: what bounds the memory."""


class ScoredBlock(NamedTuple):
    """Scores of several judges, and the truth where it may be read; slots that are no ranked proposal are NaN."""

    scores: np.ndarray  # f64 [judge, case, slot]
    true_dice: np.ndarray  # f64 [case, slot]; NaN outside validation
    group: np.ndarray  # patient or exam, [case]


class _Consensus(Knobs):
    """Mean of the within-case ranks, with a weight per judge and case, and an abstention where they disagree."""

    judges: Annotated[tuple[Name, ...], Field(min_length=2)]
    """Names of judges or score tables."""

    @field_validator("judges")
    @classmethod
    def _distinct(cls, judges: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(judges)) < len(judges):
            raise ValueError(f"expected different judges, found {list(judges)}")
        return judges

    def weights(self, judged: ScoredBlock) -> np.ndarray:
        """Weight of each judge, f64 `[judge, case]`."""
        return np.ones(judged.scores.shape[:2])

    def abstains(self, spread: np.ndarray) -> np.ndarray:
        """Where the judges disagree too much, by the largest less the smallest rank."""
        return np.zeros(spread.shape, bool)


class RankMean(_Consensus):
    """Mean over the judges of the within-case ranks."""

    kind: Literal["rank_mean"]


class Weighted(_Consensus):
    """Mean of the within-case ranks, judges weighing by their reliability on validation.

    A judge's weight is its mean within-case Spearman with true Dice over validation cases, and 0 if that is negative or
    unknown; where no judge has a weight, the entry abstains. It reads validation labels: a validation case has weights
    from the other patients (with a single patient, from that one), so that the audit does not meet its own labels.
    """

    kind: Literal["weighted"]

    def weights(self, judged: ScoredBlock) -> np.ndarray:
        known = np.flatnonzero(~np.isnan(judged.true_dice).all(1))
        if not len(known):
            raise BadInput("no validation proposals to weigh the judges by; add 'validation' to propose.splits")
        rho = within_case_spearman(judged.scores[:, known], judged.true_dice[known])
        _, group = np.unique(judged.group[known], return_inverse=True)
        weights = np.empty(judged.scores.shape[:2])
        for judge, values in enumerate(rho):
            measured = ~np.isnan(values)
            total, count = values[measured].sum(), measured.sum()
            in_group = np.bincount(group[measured], values[measured], minlength=group.max() + 1)[group]
            n_in_group = np.bincount(group[measured], minlength=group.max() + 1)[group]
            weights[judge] = total / max(count, 1)
            others = count - n_in_group
            weights[judge, known] = np.where(
                others > 0, (total - in_group) / np.maximum(others, 1), total / max(count, 1)
            )
        # Rounded, because what is left of a difference of equal sums is no reliability.
        return np.maximum(np.round(weights, 12), 0)


class Unanimous(_Consensus):
    """Mean of the within-case ranks; abstains on proposals whose ranks differ by more than `max_spread`."""

    kind: Literal["unanimous"]
    max_spread: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Largest rank less smallest rank, of at most 1."""

    def abstains(self, spread: np.ndarray) -> np.ndarray:
        return spread > self.max_spread + 1e-12  # fractions that are equal may differ in the last bit


JudgeConsensus = Annotated[RankMean | Weighted | Unanimous, Field(discriminator="kind")]


def check_consensus(entries: Mapping[str, JudgeConsensus], judges: Iterable[str]) -> None:
    """Raise `BadInput` for an entry with the name of a judge or score table, or one that names no such judge."""
    known = list(judges)
    for name, knobs in entries.items():
        if name in known:
            raise BadInput(f"consensus.{name}: a judge or score table has the same name; choose another")
        for judge in knobs.judges:
            if judge not in known:
                raise BadInput(f"consensus.{name}.judges: no judge '{judge}'; there are {known}")


def with_consensus(panel: pl.DataFrame, entries: Mapping[str, JudgeConsensus]) -> pl.DataFrame:
    """Panel rows with a column `score_NAME` f64 per entry; `true_dice` is null outside validation. Sorts by case.

    Needs `case`, `proposal`, `group`, `duplicate_of`, `true_dice` and the `score_` columns of the named judges.
    """
    if not entries or not len(panel):
        return panel.with_columns(pl.lit(None, pl.Float64).alias(f"score_{name}") for name in entries)
    panel = panel.sort("case", "proposal")
    case, slot = panel["case"].to_numpy(), panel["proposal"].to_numpy()
    first = np.flatnonzero(np.append(True, case[1:] != case[:-1]))
    row = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(case))))
    shape = (len(first), 1 + int(slot.max()))
    distinct = panel["duplicate_of"].is_null().to_numpy()
    original = panel["duplicate_of"].fill_null(panel["proposal"]).to_numpy()
    group = panel["group"].gather(first).rank("dense").to_numpy()

    def aligned(column: str) -> np.ndarray:
        """The column of the distinct masks, `[case, slot]`."""
        values = np.full(shape, np.nan)
        values[row[distinct], slot[distinct]] = panel[column].to_numpy()[distinct]
        return values

    columns = {f"score_{judge}" for knobs in entries.values() for judge in knobs.judges} | {"true_dice"}
    blocks = {column: aligned(column) for column in sorted(columns)}
    found = []
    for name, knobs in entries.items():
        scores = np.stack([blocks[f"score_{judge}"] for judge in knobs.judges])
        try:
            combined = combine(knobs, ScoredBlock(scores, blocks["true_dice"], group))
        except BadInput as error:
            raise BadInput(f"consensus.{name}: {error}") from error
        found.append(pl.Series(f"score_{name}", combined[row, original]).fill_nan(None))
    return panel.with_columns(found)


def combine(knobs: JudgeConsensus, judged: ScoredBlock) -> np.ndarray:
    """Scores of one entry, f64 `[case, slot]` in 0..1; NaN where it abstains."""
    weights = knobs.weights(judged)
    out = np.empty(judged.scores.shape[1:])
    for start in range(0, len(out), BLOCK):
        block = slice(start, start + BLOCK)
        order, steps = _order(judged.scores[:, block])
        weight = weights[:, block, None]
        total = weight.sum(0)
        # Whole numbers until the one division: proposals of equal mean rank are ties to the last bit.
        mean = (weight * order).sum(0) / np.where(total > 0, total, np.nan) / (2 * steps)
        mean[knobs.abstains((order.max(0) - order.min(0)) / (2 * steps))] = np.nan
        mean[np.isnan(judged.scores[:, block]).any(0)] = np.nan
        out[block] = np.round(0.5 + mean, 12)
    return out

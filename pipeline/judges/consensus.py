"""Consensus entries of the panel: one score per proposal, combined from the scores of several judges.

A consensus combines within-case ranks. Scores of different judges have different units, and only the order of the
proposals of one case matters to mining. The ranks are those of the distinct masks that every named judge has scored.
Equal scores share their mean rank. Ranks are scaled: the lowest possible rank is 0, the highest is 1, and a single mask
has 1/2. A proposal on which a named judge abstained has null. A duplicate has the score of the first proposal with the
same mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, NamedTuple

import numpy as np
import polars as pl
from pydantic import Field, field_validator

from pipeline.errors import BadInput
from pipeline.judges.judge import JudgeKnobs
from pipeline.knobs import Knobs, Name
from pipeline.measures.ranking import centred_ranks, within_case_spearman

BLOCK = 32_768
"""Cases that are combined at a time: a bound on memory."""


class ScoredBlock(NamedTuple):
    """Scores of several judges with true Dice; NaN in slots without a distinct mask and where a judge abstained."""

    scores: np.ndarray  # f64 [judge, case, slot]
    true_dice: np.ndarray  # f64 [case, slot]; NaN outside validation
    group: np.ndarray  # number of the patient or exam, [case]


class _Consensus(Knobs):
    """Base of the consensus entries: mean of the within-case ranks, with hooks for weights and abstention."""

    judges: Annotated[tuple[Name, ...], Field(min_length=2)]
    """Names of judges or score tables, at least two and all different."""

    @field_validator("judges")
    @classmethod
    def _distinct(cls, judges: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(judges)) < len(judges):
            raise ValueError(f"expected different judges, found {list(judges)}")
        return judges

    def weights(self, judged: ScoredBlock) -> np.ndarray:
        """Weight of each judge in each case, f64 `[judge, case]`; equal by default."""
        return np.ones(judged.scores.shape[:2])

    def abstains(self, spread: np.ndarray) -> np.ndarray:
        """Whether the entry abstains, bool `[case, slot]`, by largest less smallest scaled rank; never by default."""
        return np.zeros(spread.shape, bool)


class RankMean(_Consensus):
    """Mean over the judges of the within-case ranks (0 to 1); all judges weigh equally."""

    kind: Literal["rank_mean"]


class Weighted(_Consensus):
    """Mean of the within-case ranks (0 to 1), judges weighted by their reliability on validation.

    The weight of a judge is its mean within-case Spearman correlation with true Dice over validation patients, and 0 if
    this mean is negative or unknown. The entry abstains where every judge has weight 0. The entry reads validation
    labels. The weights of a validation case come from the other patients (with a single patient, from this patient), so
    that the audit of a case does not meet the labels of the case. The entry needs validation proposals; otherwise the
    stage ends with an error.
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
            cases = np.bincount(group[measured], minlength=group.max() + 1)
            of_group = np.bincount(group[measured], values[measured], len(cases)) / np.maximum(cases, 1)
            total, count = of_group.sum(), np.count_nonzero(cases)
            weights[judge] = total / max(count, 1)
            # A validation case is weighted by the other groups: the total less the mean of its own group.
            others = (count - (cases > 0))[group]
            weights[judge, known] = np.where(
                others > 0, (total - of_group[group]) / np.maximum(others, 1), total / max(count, 1)
            )
        # Rounded: the rounding error of a difference of equal sums is no reliability.
        return np.maximum(np.round(weights, 12), 0)


class Unanimous(_Consensus):
    """Mean of the within-case ranks (0 to 1); abstains on proposals whose ranks differ by more than `max_spread`."""

    kind: Literal["unanimous"]
    max_spread: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Most that the largest and the smallest scaled rank of a proposal may differ, from 0 to 1."""

    def abstains(self, spread: np.ndarray) -> np.ndarray:
        return spread > self.max_spread + 1e-12  # tolerance: equal fractions may differ in the last bit


JudgeConsensus = Annotated[RankMean | Weighted | Unanimous, Field(discriminator="kind")]


def reads_truth(name: str, judges: Mapping[str, JudgeKnobs], entries: Mapping[str, JudgeConsensus]) -> bool:
    """Whether a judge reads the truth of the cases that it scores.

    A consensus entry reads the truth if one of its judges does. A score table reads no truth.
    """
    if name in entries:
        return any(reads_truth(one, judges, entries) for one in entries[name].judges)
    return name in judges and judges[name].research


def check_consensus(entries: Mapping[str, JudgeConsensus], judges: Iterable[str]) -> None:
    """Raise `BadInput` for an entry that has the name of a judge or score table, or that names an unknown judge."""
    known = list(judges)
    for name, knobs in entries.items():
        if name in known:
            raise BadInput(f"consensus.{name}: a judge or score table has the same name; choose another")
        for judge in knobs.judges:
            if judge not in known:
                raise BadInput(f"consensus.{name}.judges: no judge '{judge}'; there are {known}")


def with_consensus(panel: pl.DataFrame, entries: Mapping[str, JudgeConsensus]) -> pl.DataFrame:
    """Panel rows with a further column `score_NAME` f64 per entry, sorted by case and proposal.

    Reads the columns `case`, `proposal`, `group`, `duplicate_of`, `true_dice` (null outside validation) and `score_` of
    the named judges. Without entries or rows the order is unchanged. Raises `BadInput` if an entry has no weights.
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
        """Values of the column for distinct masks, f64 `[case, slot]`; NaN in all other slots."""
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
    """Scores of one entry, f64 `[case, slot]` from 0 to 1; NaN where the entry abstains."""
    weights = knobs.weights(judged)
    out = np.empty(judged.scores.shape[1:])
    for start in range(0, len(out), BLOCK):
        block = slice(start, start + BLOCK)
        order, steps = centred_ranks(judged.scores[:, block])
        weight = weights[:, block, None]
        total = weight.sum(0)
        # Orders are whole numbers and scores are rounded, so proposals of equal mean rank are ties to the last bit.
        mean = (weight * order).sum(0) / np.where(total > 0, total, np.nan) / (2 * steps)
        mean[knobs.abstains((order.max(0) - order.min(0)) / (2 * steps))] = np.nan
        mean[np.isnan(judged.scores[:, block]).any(0)] = np.nan
        out[block] = np.round(0.5 + mean, 12)
    return out

"""Measures of a judge: how its scores rank the proposals of a validation case, and the validation cases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from pipeline.errors import BadInput
from pipeline.measures.intervals import (
    Interval,
    bootstrap_interval,
    resampled_interval,
    share_interval,
    weighted_interval,
)
from pipeline.measures.ranking import (
    aurc,
    auroc,
    best_fixed,
    differences,
    kendall,
    pair_error,
    rightness,
    top_value,
    within_case_spearman,
)
from pipeline.store import schema
from pipeline.store.proposals import ProposalStore


class ValidationScores(NamedTuple):
    """True Dice and scores of the proposals of labelled validation cases."""

    case: np.ndarray  # i64 [case], row of the case in the arrays
    group: np.ndarray  # [case], patient or exam
    voxels: np.ndarray  # f64 [case], number of voxels of the case, at least 1
    dice: np.ndarray  # f64 [case, slot], true Dice
    distinct: np.ndarray  # bool [case, slot], false for a duplicate of an earlier slot
    scores: dict[str, np.ndarray]  # name of the judge -> f64 [case, slot]; NaN if the judge abstained
    slots: list[str]  # [slot], sampler and setting


class Sizes(NamedTuple):
    """Bins of `AUDIT_BINS`."""

    gaps: Sequence[float]  # inner edges of the gap in true Dice, increasing
    disagreements: int  # number of quantile bins of |D|


BIN_SIZES = Sizes((0.01, 0.02, 0.05, 0.1), 5)
"""Edges in true Dice around the gaps that matter to a user, and as many bins of |D| as pairs of few cases can fill."""


def validation_scores(panel: pl.DataFrame, judges: Iterable[str]) -> ValidationScores:
    """True Dice and scores of `judges` from panel rows, in any order, that all have a true Dice.

    Raises `BadInput` if a case lacks a slot.
    """
    rows = panel.sort("case", "proposal")
    slots = int(rows["proposal"].max()) + 1 if len(rows) else 1  # type: ignore[arg-type]
    proposal = rows["proposal"].to_numpy()
    if len(rows) % slots or (proposal.reshape(-1, slots) != np.arange(slots)).any():
        raise BadInput(
            f"panel: expected the proposals 0 to {slots - 1} of every validation case, found {len(rows)} rows of "
            f"{rows['case'].n_unique()} cases; run `dvc repro panel`"
        )

    def block(values: pl.Series) -> np.ndarray:
        return values.to_numpy().reshape(-1, slots)

    first = rows.gather_every(slots)
    settings = rows.head(slots).select("sampler", "setting").rows()
    return ValidationScores(
        first["case"].to_numpy().astype(np.int64),
        first["group"].to_numpy(),
        block(rows["voxels"].list.sum()).max(axis=1, initial=1).astype(np.float64),
        block(rows["true_dice"]),
        block(rows["duplicate_of"].is_null()),
        {name: block(rows[f"score_{name}"].cast(pl.Float64).fill_null(float("nan"))) for name in judges},
        [sampler if sampler == setting else f"{sampler} {setting}" for sampler, setting in settings],
    )


def audit_judge(
    name: str, cases: ValidationScores, folds: int, failure_below: float, draws: int, seed: int
) -> dict[str, object]:
    """One row of `AUDIT_JUDGES` without its verdict.

    Duplicates of a mask count once. Proposals on which the judge abstained do not count.

    Measures over the cases with at least two distinct, scored proposals:
    `spearman`, `kendall`, `pair_error`: order by score against order by true Dice.
    `lift`: true Dice of the top pick minus true Dice of the base. `top_beats_base`: share of cases with a lift above 0.
    `headroom`: true Dice of the best proposal minus true Dice of the base.
    `lift_over_headroom`: sum of the lifts over sum of the headrooms.
    `lift_over_fixed`: true Dice of the top pick minus true Dice of the slot that is best on other patients.
    `regret`: true Dice of the best proposal minus true Dice of the top pick.
    `gap_weighted_accuracy`: sum of the gaps in true Dice of the rightly ordered pairs over the sum of all gaps.

    Measures between cases, from score and true Dice of slot 0 in the cases where slot 0 is scored; cases count equally:
    `auroc`: area under the ROC curve for a true Dice below `failure_below`; null if all cases fail or none does.
    `aurc`: area under the risk-coverage curve with the risk 1 - true Dice.

    Intervals are 95 % bootstraps by patient. A measure without data is null. The ends of an interval are null if the
    interval rests on too few patients.
    """
    score = np.where(cases.distinct, cases.scores[name], np.nan)
    kept = np.count_nonzero(~np.isnan(score), axis=1) > 1
    out: dict[str, object] = {
        "judge": name,
        "cases": int(kept.sum()),
        "abstained": float(np.isnan(cases.scores[name]).mean()),
        "fixed_sampler": None,
    }
    within = _within(score[kept], cases.dice[kept])
    gain, worth = within["lift"], within["headroom"]
    group = cases.group[kept]
    within["lift_over_fixed"] = gain
    if kept.any():
        fixed, slot = best_fixed(cases.dice[kept], group, folds, seed)
        within["lift_over_fixed"] = gain - (fixed - cases.dice[kept, 0])
        out["fixed_sampler"] = cases.slots[slot]
    for measure, values in within.items():
        known = ~np.isnan(values)
        ends = share_interval if measure == "top_beats_base" else bootstrap_interval
        out |= named(measure, ends(values[known], group[known], draws, seed))
    out |= named("lift_over_headroom", weighted_interval(gain, worth, group, draws, seed))
    ordered = differences(score[kept]), differences(cases.dice[kept])
    right, stake = rightness(*ordered), np.abs(ordered[1])
    asked = ~np.isnan(right)
    won, all_of_it = (np.where(asked, part, 0.0).sum(1) for part in (right * stake, stake))
    out |= named("gap_weighted_accuracy", weighted_interval(won, all_of_it, group, draws, seed))
    return out | _between(cases.scores[name][:, 0], cases.dice[:, 0], cases.group, failure_below, draws, seed)


def headroom(cases: ValidationScores, draws: int, seed: int) -> dict[str, float | None]:
    """Mean of true Dice of the best proposal minus true Dice of the base, over all cases; no judge is involved."""
    best = cases.dice.max(axis=1, initial=0) - cases.dice[:, 0]
    return named("headroom", bootstrap_interval(best, cases.group, draws, seed))


def _within(score: np.ndarray, dice: np.ndarray) -> dict[str, np.ndarray]:
    """Measures of each case by name, f64 `[case]`; NaN if a measure has no value for a case."""
    order, gap = differences(score), differences(dice)
    top, base, best = top_value(score, dice), dice[:, 0], dice.max(axis=1, initial=0)
    return {
        "spearman": within_case_spearman(score[None], dice)[0],
        "kendall": kendall(order, gap),
        "pair_error": pair_error(rightness(order, gap)),
        "lift": top - base,
        "top_beats_base": np.where(top > base, 1.0, 0.0),
        "headroom": best - base,
        "regret": best - top,
    }


def _between(
    score: np.ndarray, dice: np.ndarray, groups: np.ndarray, failure_below: float, draws: int, seed: int
) -> dict[str, float | None]:
    """Columns of `auroc` and `aurc`, from score and true Dice of the base, both f64 `[case]`."""
    scored = ~np.isnan(score)
    score, dice, groups = score[scored], dice[scored], groups[scored]
    failed = dice < failure_below
    # The spread of AUROC rests on the rarer kind of case, failures or others.
    telling = min(len(np.unique(groups[failed])), len(np.unique(groups[~failed])))
    area = resampled_interval(lambda weight: auroc(score, failed, weight), groups, draws, seed, telling)
    risk = resampled_interval(lambda weight: aurc(score, 1 - dice, weight), groups, draws, seed)
    return named("auroc", area) | named("aurc", risk)


def named(measure: str, estimate: Interval) -> dict[str, float | None]:
    """Columns of a measure: its value and the two ends of its interval."""
    return dict(zip((measure, f"{measure}_low", f"{measure}_high"), estimate, strict=True))


def audit_bins(cases: ValidationScores, proposals: ProposalStore, sizes: Sizes, draws: int, seed: int) -> pl.DataFrame:
    """Rows of `AUDIT_BINS`: pair accuracy of every judge by gap in true Dice, and by |D| as a share of the case.

    The pairs are all pairs of distinct proposals of a case that differ in true Dice. A pair with an abstention is left
    out of the rows of that judge. A bin reaches from above its lower edge up to its upper edge. All judges have the
    same bins: the edges of the gap are `sizes.gaps`, the edges of |D| are quantiles over all pairs.
    Pairs count equally. Equal scores count as one half right. A bin without a pair has no row.
    """
    # Rounding removes differences in the last bits between proposals of equal true Dice.
    gap = np.round(np.abs(differences(np.where(cases.distinct, cases.dice, np.nan))), 12)
    row, pair = np.nonzero(gap > 0)
    slots = np.triu_indices(cases.dice.shape[1], 1)
    share = proposals.disagreement_of(cases.case[row], slots[0][pair], slots[1][pair]) / cases.voxels[row]
    known = share > 0
    row, pair, share = row[known], pair[known], share[known]
    inner = np.quantile(share, np.linspace(0, 1, sizes.disagreements + 1)[1:-1]) if len(share) else np.zeros(0)
    parts = [
        ("gap", gap[row, pair], np.array([0.0, *sizes.gaps, 1.0])),
        ("disagreement", share, np.unique([0.0, *inner, share.max(initial=0)])),
    ]
    rows = []
    for name, scores in cases.scores.items():
        score = np.where(cases.distinct, scores, np.nan)
        right = rightness(differences(score), differences(cases.dice))[row, pair]
        scored = ~np.isnan(right)
        for by, value, edges in parts:
            bins = max(1, len(edges) - 1)
            at = row[scored] * bins + np.searchsorted(edges[1:-1], value[scored])
            shape = len(cases.case), bins
            count, won = (
                np.bincount(at, of_pair, minlength=shape[0] * bins).reshape(shape)
                for of_pair in (np.ones(len(at)), right[scored])
            )
            for index in np.flatnonzero(count.any(axis=0)):
                found = weighted_interval(won[:, index], count[:, index], cases.group, draws, seed)
                rows.append(
                    {"judge": name, "by": by, "bin": int(index), "above": edges[index], "up_to": edges[index + 1]}
                    | {"count": int(count[:, index].sum())}
                    | named("accuracy", found)
                )
    return pl.DataFrame(rows, schema=schema.AUDIT_BINS.columns)

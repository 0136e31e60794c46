"""How well a judge's scores rank: the proposals of each case against their true Dice, and the cases against each other.

Blocks are f64 `[case, slot]`, NaN where a slot is no distinct mask or the judge abstained; within-case Spearman is
`consensus.within_case_spearman`. What has no value for a case is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.measures.folds import folds_by_group


def differences(values: np.ndarray) -> np.ndarray:
    """First less second of all pairs of slots of a case, f64 `[case, pair]`; NaN where one of them is."""
    first, second = np.triu_indices(values.shape[1], 1)
    return values[:, first] - values[:, second]


def rightness(order: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Whether a difference of scores has the sign of that of true Dice, `[case, pair]`: 1 or 0, 1/2 for equal scores.

    NaN where true Dice is equal, or one of the differences is NaN.
    """
    agree = np.sign(order) * np.sign(gap)
    return np.where(gap == 0, np.nan, (agree + 1) / 2)


def kendall(order: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Tau-b `[case]` of differences `[case, pair]`: agreeing less disagreeing pairs over those untied in each.

    NaN where score or truth is constant. Kendall, The Treatment of Ties in Ranking Problems, Biometrika 33, 1945.
    """
    known = ~np.isnan(order) & ~np.isnan(gap)
    a, b = (np.where(known, np.sign(part), 0.0) for part in (order, gap))
    untied = np.sqrt(np.count_nonzero(a, axis=1) * np.count_nonzero(b, axis=1))
    return _ratio((a * b).sum(1), untied)


def pair_error(right: np.ndarray) -> np.ndarray:
    """Share `[case]` of the pairs of different true Dice that are ordered wrongly, from `rightness`."""
    asked = ~np.isnan(right)
    return _ratio(np.where(asked, 1 - right, 0).sum(1), asked.sum(1))


def top_value(score: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """True Dice `[case]` of the top pick; the mean over proposals that share the highest score, NaN without a score."""
    scored = np.where(np.isnan(score), -np.inf, score)
    top = (scored == scored.max(1, keepdims=True)) & ~np.isnan(score)
    return _ratio(np.where(top, truth, 0).sum(1), top.sum(1))


def best_fixed(dice: np.ndarray, groups: Sequence[str] | np.ndarray, folds: int, seed: int) -> tuple[np.ndarray, int]:
    """True Dice `[case]` of always taking one slot, chosen on the other folds, and the slot chosen on all cases.

    `dice` is `[case, proposal]`. With a single group the slot is chosen on that group itself.
    """
    fold = folds_by_group(groups, folds, seed)
    chosen = np.empty(len(dice))
    for index in np.unique(fold):
        inside = fold == index
        rest = dice[~inside] if (~inside).any() else dice
        chosen[inside] = dice[inside, rest.mean(0).argmax()]
    return chosen, int(dice.mean(0).argmax())


def auroc(score: np.ndarray, failed: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """P(a failed case has a lower score than one that did not fail), equal scores counting one half: f64 `[draw]`.

    Score f64 and failed bool `[case]`, without NaN; weight f64 `[draw, case]`. NaN where one of the two has no weight.
    Hanley and McNeil, The meaning and use of the area under a ROC curve, Radiology 143, 1982.
    """
    failures, others = (_by_score(score, weight * kind) for kind in (failed, ~failed))
    below = failures.cumsum(1) - failures / 2
    return _ratio((others * below).sum(1), failures.sum(1) * others.sum(1))


def aurc(score: np.ndarray, risk: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Area under the risk-coverage curve: mean over k = 1..n of the mean risk of the k cases of highest score.

    Score and risk f64 `[case]`, without NaN; weight `[draw, case]` in whole numbers, how often a case counts. The
    expected value over all orders of the cases that share a score. Lower is better; a constant score gives the mean
    risk. Geifman, Uziel and El-Yaniv, Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers, ICLR 2019.
    """
    count, total = (_by_score(-score, weight * of_case) for of_case in (np.ones_like(risk), risk))
    until, risked = count.cumsum(1), total.cumsum(1)
    before, risked_before = until - count, risked - total
    # At the k-th position the risks sum to those before the tied cases and (k - before) times their mean. Divided by k
    # that is the mean plus (risks before - before * mean) / k, whose sum is a difference of harmonic numbers.
    mean = _ratio(total, count, where_zero=0.0)
    harmonic = np.append(0.0, np.cumsum(1 / np.arange(1, int(until.max(initial=0)) + 1)))
    steps = harmonic[until.astype(np.int64)] - harmonic[before.astype(np.int64)]
    return _ratio((total + (risked_before - before * mean) * steps).sum(1), weight.sum(1))


def _by_score(score: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums of `[draw, case]` over the cases that share a score, `[draw, score]` by increasing score."""
    order = np.argsort(score, kind="stable")
    start = np.flatnonzero(np.diff(score[order], prepend=np.nan) != 0)
    return np.add.reduceat(values[:, order], start, axis=1)


def _ratio(top: np.ndarray, bottom: np.ndarray, where_zero: float = np.nan) -> np.ndarray:
    return np.divide(top, bottom, out=np.full(np.shape(top), where_zero), where=np.asarray(bottom) > 0)


def within_case_spearman(scores: np.ndarray, true_dice: np.ndarray) -> np.ndarray:
    """Rank correlation f64 `[judge, case]` of scores `[judge, case, slot]` with true Dice `[case, slot]`, ties mean.

    Over the proposals that all judges scored; NaN where the score or the truth does not differ.
    """
    order, _ = _order(np.concatenate([scores, true_dice[None]]))
    order = order.astype(np.float64)
    score, truth = order[:-1], order[-1]
    spread = np.sqrt((score**2).sum(2) * (truth**2).sum(1))
    return np.divide((score * truth).sum(2), spread, out=np.full(spread.shape, np.nan), where=spread > 0)


def _order(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower less higher scores of the same judge and case, i32 `[judge, case, slot]`, and ranks less 1 `[case, 1]`.

    Only of slots that every judge scored; 0 for the others, and at least 1 rank. Twice the mean rank less its mean.
    """
    joint = ~np.isnan(scores).any(0)
    slots = np.ascontiguousarray(np.moveaxis(np.where(joint, scores, np.nan), 2, 0))  # [slot, judge, case]
    order = np.zeros(slots.shape, np.int32)
    for slot in range(1, len(slots)):
        before, this = slots[:slot], slots[slot]
        differ = (this > before).view(np.int8) - (this < before).view(np.int8)
        order[slot] += differ.sum(0, dtype=np.int32)
        order[:slot] -= differ
    return np.moveaxis(order, 0, 2), np.maximum(joint.sum(1, keepdims=True) - 1, 1)

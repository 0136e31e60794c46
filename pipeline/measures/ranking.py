"""Ranking ability of a judge: the proposals of each case against true Dice, and the cases against each other.

Scores and true Dice are f64 `[case, slot]`. The score of a slot is NaN if the slot repeats an earlier mask, or if the
judge abstained. A measure that has no value for a case is NaN for that case.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.measures.folds import folds_by_group
from pipeline.measures.intervals import mean_over_groups


def differences(values: np.ndarray) -> np.ndarray:
    """First minus second value of all pairs of slots of a case, f64 `[case, pair]`. NaN if either value is NaN."""
    first, second = np.triu_indices(values.shape[1], 1)
    return values[:, first] - values[:, second]


def rightness(order: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Whether a difference of scores has the sign of the difference of true Dice, f64 `[case, pair]`.

    1 for the same sign, 0 for the opposite sign, 1/2 for equal scores. NaN for equal true Dice, and if either
    difference is NaN. `order` holds the differences of scores, `gap` the differences of true Dice.
    """
    agree = np.sign(order) * np.sign(gap)
    return np.where(gap == 0, np.nan, (agree + 1) / 2)


def kendall(order: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Kendall's tau-b f64 `[case]` from the differences of scores and of true Dice, both `[case, pair]`.

    (agreeing - disagreeing pairs) / sqrt(pairs untied in score * pairs untied in true Dice). NaN if the score or true
    Dice is constant. Kendall, The Treatment of Ties in Ranking Problems, Biometrika 33, 1945.
    """
    known = ~np.isnan(order) & ~np.isnan(gap)
    a, b = (np.where(known, np.sign(part), 0.0) for part in (order, gap))
    untied = np.sqrt(np.count_nonzero(a, axis=1) * np.count_nonzero(b, axis=1))
    return _ratio((a * b).sum(1), untied)


def pair_error(right: np.ndarray) -> np.ndarray:
    """Share f64 `[case]` of wrongly ordered pairs among the pairs of different true Dice, from `rightness`.

    Equal scores count one half. NaN for a case whose proposals all have equal true Dice.
    """
    asked = ~np.isnan(right)
    return _ratio(np.where(asked, 1 - right, 0).sum(1), asked.sum(1))


def top_value(score: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """True Dice f64 `[case]` of the proposal with the highest score.

    The mean over all proposals that share the highest score. NaN for a case without a score.
    """
    scored = np.where(np.isnan(score), -np.inf, score)
    top = (scored == scored.max(1, keepdims=True)) & ~np.isnan(score)
    return _ratio(np.where(top, truth, 0).sum(1), top.sum(1))


def best_fixed(dice: np.ndarray, groups: Sequence[str] | np.ndarray, folds: int, seed: int) -> tuple[np.ndarray, int]:
    """True Dice f64 `[case]` of always picking the same slot, and the best slot over all cases.

    `dice` is `[case, proposal]`, without NaN. The best slot has the highest mean over patients. The slot for a case is
    the best slot on the other folds. With a single group, the slot is the best slot on that group.
    """
    fold = folds_by_group(groups, folds, seed)
    groups, chosen = np.asarray(groups), np.empty(len(dice))

    def best(rows: np.ndarray) -> int:
        return int(np.argmax([mean_over_groups(of_slot, groups[rows]) for of_slot in dice[rows].T]))

    everyone = np.ones(len(dice), bool)
    for index in np.unique(fold):
        inside = fold == index
        chosen[inside] = dice[inside, best(everyone if inside.all() else ~inside)]
    return chosen, best(everyone)


def auroc(score: np.ndarray, failed: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """P(a failed case has a lower score than a case that did not fail), f64 `[draw]`. Equal scores count one half.

    Score f64 and failed bool are `[case]`, without NaN. Weight is f64 `[draw, case]`. NaN for a draw in which either
    kind of case has no weight. Hanley and McNeil, The meaning and use of the area under a ROC curve, Radiology 143,
    1982.
    """
    failures, others = (_by_score(score, weight * kind) for kind in (failed, ~failed))
    # For each score, the weight of the failed cases below the score plus half the weight at the score.
    below = failures.cumsum(1) - failures / 2
    return _ratio((others * below).sum(1), failures.sum(1) * others.sum(1))


def aurc(score: np.ndarray, risk: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Area under the risk-coverage curve, f64 `[draw]`: mean over k = 1..n of the mean risk of the k top cases.

    The k top cases are the k cases of highest score. Score and risk are f64 `[case]`, without NaN. Weight is
    `[draw, case]` in whole numbers, the number of times that a case counts. The result is the expected value over all
    orders of the cases that share a score. Lower is better. A constant score gives the mean risk. Geifman, Uziel and
    El-Yaniv, Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers, ICLR 2019.
    """
    count, total = (_by_score(-score, weight * of_case) for of_case in (np.ones_like(risk), risk))
    until, risked = count.cumsum(1), total.cumsum(1)
    before, risked_before = until - count, risked - total
    # At position k among tied cases, the expected sum of risks is risked_before + (k - before) * mean.
    # Divided by k, the sum is mean + (risked_before - before * mean) / k.
    # Adding up 1 / k over the tied positions gives a difference of two harmonic numbers.
    mean = _ratio(total, count, where_zero=0.0)
    harmonic = np.append(0.0, np.cumsum(1 / np.arange(1, int(until.max(initial=0)) + 1)))
    steps = harmonic[until.astype(np.int64)] - harmonic[before.astype(np.int64)]
    return _ratio((total + (risked_before - before * mean) * steps).sum(1), weight.sum(1))


def _by_score(score: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums of values `[draw, case]` over the cases that share a score, `[draw, score]` by increasing score."""
    order = np.argsort(score, kind="stable")
    start = np.flatnonzero(np.diff(score[order], prepend=np.nan) != 0)
    return np.add.reduceat(values[:, order], start, axis=1)


def _ratio(top: np.ndarray, bottom: np.ndarray, where_zero: float = np.nan) -> np.ndarray:
    return np.divide(top, bottom, out=np.full(np.shape(top), where_zero), where=np.asarray(bottom) > 0)


def within_case_spearman(scores: np.ndarray, true_dice: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation f64 `[judge, case]` of scores `[judge, case, slot]` with true Dice `[case, slot]`.

    Only proposals that all judges scored are ranked. Ties have the mean rank. NaN if the score or true Dice is
    constant.
    """
    order, _ = centred_ranks(np.concatenate([scores, true_dice[None]]))
    order = order.astype(np.float64)
    score, truth = order[:-1], order[-1]
    spread = np.sqrt((score**2).sum(2) * (truth**2).sum(1))
    return np.divide((score * truth).sum(2), spread, out=np.full(spread.shape, np.nan), where=spread > 0)


def centred_ranks(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centred ranks i32 `[judge, case, slot]` of scores, and the number of ranked slots minus 1, `[case, 1]`.

    The centred rank of a slot is the number of lower scores minus the number of higher scores of the same judge and
    case, which is twice the difference of the slot's rank to the mean rank (ties have the mean rank). Only slots that
    every judge scored are ranked. All other slots are 0. The second result is at least 1.
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

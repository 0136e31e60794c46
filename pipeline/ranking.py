"""How well a judge's scores rank the proposals of one case, against their true Dice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from pipeline.calibration import folds_by_group


def spearman(score: np.ndarray, truth: np.ndarray) -> float | None:
    """Rank correlation `[proposal]` with mean ranks for ties; None where either is constant."""
    a, b = (pl.Series(values).rank("average").to_numpy() for values in (score, truth))
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def kendall(score: np.ndarray, truth: np.ndarray) -> float | None:
    """Tau-b `[proposal]`: agreeing less disagreeing pairs over those untied in each; None where either is constant."""
    first, second = np.triu_indices(len(score), 1)
    a, b = (np.sign(values[first] - values[second]) for values in (score, truth))
    untied = np.count_nonzero(a) * np.count_nonzero(b)
    return float((a * b).sum() / np.sqrt(untied)) if untied else None


def pair_error(score: np.ndarray, truth: np.ndarray) -> float | None:
    """Share of proposal pairs of different true Dice that the score orders wrongly; equal scores count one half."""
    first, second = np.triu_indices(len(score), 1)
    gap, order = truth[first] - truth[second], score[first] - score[second]
    differ = gap != 0
    if not differ.any():
        return None
    wrong = np.sign(gap[differ]) * np.sign(order[differ])
    return float(np.where(wrong < 0, 1.0, np.where(wrong == 0, 0.5, 0.0)).mean())


def top_value(score: np.ndarray, truth: np.ndarray) -> float:
    """True Dice of the top pick; the mean over proposals that share the highest score."""
    return float(truth[score == score.max()].mean())


def best_fixed(dice: np.ndarray, groups: Sequence[str], folds: int, seed: int) -> tuple[np.ndarray, int]:
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

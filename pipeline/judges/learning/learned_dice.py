"""Losses and measures of the Dice that a network predicts for masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.measures.intervals import mean_over_groups

if TYPE_CHECKING:
    from torch import Tensor


SCALE = 0.05
"""Difference of predicted Dice that counts as a sure order: the unit of the logistic loss of a pair."""


DECAY = 0.98
"""Decay of the moving average of the weights: share of the average that a step keeps."""


def ranking_loss(predicted_dice: Tensor, dice: Tensor, image: Tensor) -> Tensor:
    """Logistic loss of the order of masks of one image, pairs weighted by their gap in true Dice.

    `predicted_dice` and `dice` f32 `[n]` are means over classes, `image` i64 `[n]` numbers the image of each mask. The
    loss is 0 if no two masks of an image differ in true Dice.
    """
    import torch

    first, second = torch.triu_indices(len(dice), len(dice), 1)
    same = (image[first] == image[second]).to(dice.device)
    gap = (dice[first] - dice[second]) * same
    margin = (predicted_dice[first] - predicted_dice[second]) * gap.sign() / SCALE
    return (gap.abs() * torch.nn.functional.softplus(-margin)).sum() / gap.abs().sum().clamp_min(1e-6)


def reliability(
    predicted_dice: Sequence[np.ndarray], truths: Sequence[np.ndarray], groups: Sequence[str]
) -> dict[str, float | None]:
    """Measures of predicted Dice against true Dice, both f64 `[n, class - 1]` per case with slot 0 first.

    `error` is the mean absolute error of the Dice of a class. `pair_accuracy` is the share of pairs in the right order;
    None if no case has proposals that differ in true Dice. `lift` is the mean true Dice of the top pick less the mean
    true Dice of slot 0. All are means over the cases of a patient, then over patients.
    """
    from pipeline.measures.ranking import differences, pair_error, rightness, top_value

    lifts, wrong = [], []
    for found, truth in zip(predicted_dice, truths, strict=True):
        score, dice = found.mean(1)[None], truth.mean(1)[None]
        lifts.append(top_value(score, dice)[0] - dice[0, 0])
        wrong.append(pair_error(rightness(differences(score), differences(dice)))[0])
    asked = ~np.isnan(wrong)
    errors = [np.abs(p - t).mean() for p, t in zip(predicted_dice, truths, strict=True)]
    wrong_pairs = mean_over_groups(np.array(wrong)[asked], np.asarray(groups)[asked])
    return {
        "error": mean_over_groups(errors, groups),
        "pair_accuracy": 1 - wrong_pairs if asked.any() else None,
        "lift": mean_over_groups(lifts, groups),
    }


def soft_pick(predicted_dice: Sequence[np.ndarray], truths: Sequence[np.ndarray], groups: Sequence[str]) -> float:
    """Mean over patients of the true Dice of the proposals, weighted by the softmax of their scores over `SCALE`.

    The value is a smoothed Dice of the top pick. With few cases the top pick itself hardly tells weights apart.
    """
    picks = []
    for found, truth in zip(predicted_dice, truths, strict=True):
        score = found.mean(1)
        weight = np.exp((score - score.max()) / SCALE)
        picks.append(float((weight * truth.mean(1)).sum() / weight.sum()))
    return mean_over_groups(picks, groups)

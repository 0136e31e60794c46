"""Offsets on the logits of the foreground classes, fitted to masks of cases.

An offset is given as the threshold t of a class: log((1 - t) / t) is added to the logit of the class. In a task of two
classes a voxel is then foreground if its probability is at least t. A threshold of one half leaves the logits as they
are.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.measures.intervals import group_means
from pipeline.measures.overlap import dice_from_counts, overlaps_to

if TYPE_CHECKING:
    from torch import Tensor

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Thresholds to compare for every class. Finer steps would fit the noise of a few dozen patients."""
FEWEST = 8
"""Number of patients below which nothing is fitted: the standard error would be as wide as the grid."""
HALF = 0.5
"""Threshold that leaves the logits as they are."""


def offset_of(threshold: float) -> float:
    """Offset on the logit of a class, in nats."""
    return log((1 - threshold) / threshold)


def mask_at(probability: Tensor, thresholds: Sequence[float]) -> np.ndarray:
    """Label map u8 `[*space]` of class probabilities f32 `[class, *space]`, with one threshold per foreground class.

    The most probable class after the offsets of the thresholds. Ties go to the foreground, as with `p >= t`.
    """
    import torch

    odds = torch.tensor([(1 - t) / t for t in thresholds], dtype=probability.dtype)
    # The odds of a class are multiplied instead of adding to logarithms, which would be infinite at probability 0.
    foreground = (probability[1:] * odds.view(-1, *([1] * (probability.ndim - 1)))).max(0)
    mask = torch.where(foreground.values >= probability[0], 1 + foreground.indices, 0)
    return mask.to(torch.uint8).numpy()


def overlaps_at_thresholds(probability: Tensor, label: np.ndarray) -> np.ndarray:
    """Overlap counts i64 `[foreground class, 2, foreground class * threshold]` of a case or of a part of a case.

    Column `c * len(THRESHOLDS) + t` is the mask with threshold t for foreground class c, and one half for all others.
    The counts of the parts of a case add up. `label` is u8 `[*space]`.
    """
    foreground = len(probability) - 1
    tried = []
    # One mask at a time: all masks together would be the largest array of a case.
    for label_of in range(foreground):
        for threshold in THRESHOLDS:
            thresholds = [HALF] * foreground
            thresholds[label_of] = threshold
            tried.append(overlaps_to(label, mask_at(probability, thresholds)[None], len(probability)))
    return np.concatenate(tried, axis=2)


def dice_at_thresholds(overlaps: np.ndarray) -> np.ndarray:
    """Dice f64 `[foreground class, threshold]`, mean over the foreground classes, from `overlaps_at_thresholds`."""
    return dice_from_counts(overlaps).reshape(-1, len(THRESHOLDS))


class Curve(NamedTuple):
    """Mean Dice over patients at every threshold of a class, and how far the difference to the best can be chance."""

    mean: np.ndarray  # f64 [threshold]
    error: np.ndarray
    """Standard error of the difference to the best threshold over the same patients, f64 `[threshold]`. The patients
    are the same because Dice differs more between patients than between thresholds. NaN for a single patient."""

    @property
    def within(self) -> np.ndarray:
        """Whether a threshold is within one standard error of the best, bool `[threshold]`."""
        return self.mean.max() - self.mean <= self.error + 1e-12


def threshold_curve(dice: np.ndarray, groups: Sequence[str]) -> Curve:
    """Curve of a class from the Dice f64 `[case, threshold]` of cases and their patients."""
    means = np.stack([group_means(values, groups) for values in dice.T])  # [threshold, patient]
    mean, count = means.mean(1), means.shape[1]
    if count < 2:
        return Curve(mean, np.full(len(mean), np.nan))
    return Curve(mean, (means[mean.argmax()] - means).std(1, ddof=1) / np.sqrt(count))


class Choice(NamedTuple):
    """Thresholds chosen on cases with masks to agree with."""

    thresholds: tuple[float, ...]  # one per foreground class
    patients: int
    note: str | None  # reason why nothing was fitted


def chosen_thresholds(dice: np.ndarray, groups: Sequence[str], fewest: int = FEWEST) -> Choice:
    """Threshold of every class from the Dice f64 `[case, foreground class, threshold]` of cases and their patients.

    The threshold of a class is the value nearest to one half whose mean Dice is within one standard error of the best
    (Breiman et al., Classification and Regression Trees, 1984, section 3.4.3). Means are over patients. Below `fewest`
    patients all thresholds are one half.
    """
    count = len(set(groups))
    if count < fewest:
        note = f"expected at least {fewest} patients to fit a threshold on, found {count}: the threshold is .5"
        return Choice((HALF,) * dice.shape[1], count, note)
    # From one half outwards: a threshold further away must be better.
    order = sorted(range(len(THRESHOLDS)), key=lambda at: (abs(THRESHOLDS[at] - HALF), THRESHOLDS[at]))
    thresholds = []
    for of_class in dice.swapaxes(0, 1):
        within = threshold_curve(of_class, groups).within
        thresholds.append(THRESHOLDS[next(at for at in order if within[at])])
    return Choice(tuple(thresholds), count, None)

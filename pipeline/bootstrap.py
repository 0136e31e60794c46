"""Means over patients and their 95 % intervals, from resampling patients with replacement (percentile bootstrap)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.seeding import numpy_generator

BLOCK = 2**22
"""Resampled groups held in memory at a time."""


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval; None where there is nothing to average or to resample."""

    mean: float | None
    low: float | None
    high: float | None


def group_means(values: Sequence[float] | np.ndarray, groups: Sequence | np.ndarray) -> np.ndarray:
    """Mean of each group's values, f64 `[groups]`, in sorted order of the groups."""
    member, _ = _numbered(groups)
    return np.bincount(member, np.asarray(values, np.float64)) / np.bincount(member)


def interval(values: Sequence[float] | np.ndarray, groups: Sequence | np.ndarray, draws: int, seed: int) -> Interval:
    """Mean over patients of the mean over their cases, f64 `[n]` and the group of each, with its interval.

    Resamples whole groups, since cases of one patient are not independent. One group says nothing about the spread
    between patients: low and high are None. No value: all three are None. A paired difference is `interval(a - b)`.
    Which patients a draw takes depends on `seed` and the number of groups alone, so metrics share their resamples.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return Interval(None, None, None)
    means = group_means(values, groups)
    return _with_ends(
        float(means.mean()), [means[chosen].mean(axis=1) for chosen in _resamples(len(means), draws, seed)]
    )


def crossed_interval(
    values: Sequence[Sequence[float]] | np.ndarray, groups: Sequence | np.ndarray, draws: int, seed: int
) -> Interval:
    """Mean over seeds and patients, f64 `[seeds, n]` and the group of each of the n cases, with its interval.

    Patients are crossed with seeds, since every seed is measured on the same ones. A draw takes as many patients as
    there are, the same ones for all of its seeds, and independently as many seeds: its value is the mean over the
    drawn seeds of the mean over the drawn patients. Of two seeds or a few the interval is too narrow: resampling S
    values gives (S - 1) / S of their variance. One seed: `interval` over patients alone, which says nothing about
    the spread between seeds. One patient: low and high are None. No seed or no case: all three are None.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2 or not values.size:
        return interval(values.ravel(), groups if values.size else [], draws, seed)
    means = np.stack([group_means(row, groups) for row in values])
    generator = numpy_generator(seed, "bootstrap seeds", len(means))
    drawn = []
    for chosen in _resamples(means.shape[1], draws, seed):
        of_seed = np.stack([row[chosen].mean(axis=1) for row in means], axis=1)
        seeds = generator.integers(len(means), size=of_seed.shape)
        drawn.append(np.take_along_axis(of_seed, seeds, axis=1).mean(axis=1))
    return _with_ends(float(means.mean()), drawn)


def weighted_interval(
    numerator: Sequence[float] | np.ndarray,
    denominator: Sequence[float] | np.ndarray,
    groups: Sequence | np.ndarray,
    draws: int,
    seed: int,
    minus: tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray] | None = None,
) -> Interval:
    """Ratio of sums, sum(numerator) / sum(denominator), with its interval; all f64 `[n]`.

    `minus`, another numerator and denominator, gives the difference of two ratios under the same resamples.
    Denominators are never negative. All three are None where a denominator sums to 0; draws in which one does are
    left out. One group: low and high are None.
    """
    if not len(groups):
        return Interval(None, None, None)
    member, n_groups = _numbered(groups)
    terms = [
        np.stack([np.bincount(member, np.asarray(part, np.float64)) for part in ratio])
        for ratio in ((numerator, denominator), minus)
        if ratio is not None
    ]

    def statistic(chosen: np.ndarray) -> np.ndarray:
        sums = [term[:, chosen].sum(axis=-1) for term in terms]
        whole = np.all([bottom > 0 for _, bottom in sums], axis=0)
        ratios = [top[whole] / bottom[whole] for top, bottom in sums]
        return ratios[0] - ratios[1] if minus is not None else ratios[0]

    mean = statistic(np.arange(n_groups)[None])
    if not len(mean):
        return Interval(None, None, None)
    return _with_ends(float(mean[0]), [statistic(chosen) for chosen in _resamples(n_groups, draws, seed)])


def _numbered(groups: Sequence | np.ndarray) -> tuple[np.ndarray, int]:
    """Number of each value's group, in sorted order of the groups, and the number of groups."""
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    return member, len(names)


def _resamples(n_groups: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks `[draws, n_groups]` of group numbers drawn with replacement; none for a single group."""
    if n_groups < 2:
        return
    generator = numpy_generator(seed, "bootstrap", n_groups)
    step = max(1, BLOCK // n_groups)
    for start in range(0, draws, step):
        yield generator.integers(n_groups, size=(min(step, draws - start), n_groups))


def _with_ends(mean: float, drawn: list[np.ndarray]) -> Interval:
    if not sum(map(len, drawn)):
        return Interval(mean, None, None)
    low, high = np.percentile(np.concatenate(drawn), (2.5, 97.5))
    return Interval(mean, float(low), float(high))

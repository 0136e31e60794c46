"""Means over patients and their 95 % intervals, from resampling patients with replacement.

The ends are those of the expanded percentile interval (Hesterberg, What Teachers Should Know About the Bootstrap, The
American Statistician 69, 2015, section 5.4). Plain percentiles are too narrow for few patients, for two reasons.
Resampling n values gives (n - 1) / n of their variance, and plain percentiles use a normal quantile instead of a t
quantile. No end lies beyond the values of the resamples. So with two to four patients even an interval from the lowest
to the highest resample holds the truth less often than in 95 of 100 cases, and no such interval is given: see `LEAST`.

Several seeds are too few values to resample. `crossed_interval` is a t interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.seeding import numpy_generator

BLOCK = 2**22
"""Largest number of resampled groups or cases held in memory at a time."""

LEAST = 5
"""Number of patients that a 95 % interval by resampling needs. For four normal values even the extremes hold the mean
in only 85 of 100 cases, for two values in 50."""


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval. None if there is nothing to average, or too little to resample."""

    mean: float | None
    low: float | None
    high: float | None


def group_means(values: Sequence[float] | np.ndarray, groups: Sequence | np.ndarray) -> np.ndarray:
    """Mean of the values `[n]` of each group, f64 `[groups]`, in sorted order of the groups."""
    member, _ = _numbered(groups)
    return np.bincount(member, np.asarray(values, np.float64)) / np.bincount(member)


def mean_over_groups(values: Sequence[float] | np.ndarray, groups: Sequence | np.ndarray) -> float:
    """Mean over patients of the mean over the cases of a patient, from values `[n]` and the group of each value.

    Validation chooses by this mean, and results are reported by it, so that a patient with many cases does not decide
    alone. NaN without a value.
    """
    return float(group_means(values, groups).mean()) if len(groups) else float("nan")


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, groups: Sequence | np.ndarray, draws: int, seed: int
) -> Interval:
    """Mean over patients of the mean over their cases, with its interval, from values f64 `[n]` and their groups.

    Whole groups are resampled, because cases of one patient are not independent. With fewer than `LEAST` groups, low
    and high are None. Without a value, all three are None. The
    interval of a paired difference is `bootstrap_interval(a - b, ...)`. The patients of a draw depend on `seed` and the
    number of groups alone, so all metrics of the same cases share their resamples.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return Interval(None, None, None)
    means = group_means(values, groups)
    drawn = [means[chosen].mean(axis=1) for chosen in _resamples(len(means), draws, seed)]
    return _with_ends(float(means.mean()), drawn, tail(len(means)))


def share_interval(
    values: Sequence[float] | np.ndarray, groups: Sequence | np.ndarray, draws: int, seed: int
) -> Interval:
    """As `bootstrap_interval`, for shares: values are 1 (yes), 0 (no) or one half.

    If all values are 0, or all are 1, no resample differs, and 0 wrong of 5 would look as certain as 0 of 500. The far
    end is then the end of the exact binomial interval for n groups: 1 - .025^(1/n) if all are 0, .025^(1/n) if all are
    1 (Clopper and Pearson, Biometrika 26, 1934). The interval of 0 of 20 is [0, .168].
    """
    found = bootstrap_interval(values, groups, draws, seed)
    if found.low is None or found.mean not in (0.0, 1.0):
        return found
    far = 0.025 ** (1 / _numbered(groups)[1])
    return Interval(0.0, 0.0, 1 - far) if found.mean == 0 else Interval(1.0, far, 1.0)


def crossed_interval(
    values: Sequence[Sequence[float]] | np.ndarray, groups: Sequence | np.ndarray, draws: int, seed: int
) -> Interval:
    """Mean over seeds and patients, with its interval, from f64 `[seeds, n]` and the group of each of the n cases.

    Patients are crossed with seeds, because every seed is measured on the same patients. The half width h adds the
    spread between the means of S seeds and the spread between the means of P patients, each with its own quantile of
    Student's t: h^2 = t_(S-1)^2 var(seed means) / S + t_(P-1)^2 var(patient means) / P. For normal effects of seeds and
    patients this interval holds the truth in at least 95 of 100 cases, whatever the two effects are (Banerjee,
    Approximate Confidence Interval for Linear Functions of Means of k Populations, Sankhya 22, 1960). Both variances
    hold the residual, so the interval is too wide where the residual is large. Resampling two to four seeds is no
    alternative: with so few values it gives too little spread.

    With one seed, the interval is `bootstrap_interval` over patients alone, with `draws` and `seed`. It says nothing
    about the spread between seeds. With one patient, low and high are None. Without a seed or a case, all three are
    None.
    """
    from scipy.special import stdtrit

    values = np.asarray(values, np.float64)
    if len(values) < 2 or not values.size:
        return bootstrap_interval(values.ravel(), groups if values.size else [], draws, seed)
    means = np.stack([group_means(row, groups) for row in values])
    mean, count = float(means.mean()), np.array(means.shape)
    if count[1] < 2:
        return Interval(mean, None, None)
    variance = np.array([means.mean(axis).var(ddof=1) for axis in (1, 0)]) / count
    half = float(np.sqrt((stdtrit(count - 1, 0.025) ** 2 * variance).sum()))
    return Interval(mean, mean - half, mean + half)


def weighted_interval(
    numerator: Sequence[float] | np.ndarray,
    denominator: Sequence[float] | np.ndarray,
    groups: Sequence | np.ndarray,
    draws: int,
    seed: int,
    minus: tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray] | None = None,
) -> Interval:
    """Ratio of sums, sum(numerator) / sum(denominator), with its interval, from f64 `[n]` each.

    `minus`, another numerator and denominator, gives the difference of two ratios under the same resamples.
    Denominators are at least 0. All three are None if a denominator sums to 0. Draws in which a denominator sums to 0
    are left out. A group whose values are all 0 has no influence. With fewer than `LEAST` groups of influence, low and
    high are None.
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
        sums = [tuple(part[chosen].sum(axis=1) for part in term) for term in terms]
        whole = np.all([bottom > 0 for _, bottom in sums], axis=0)
        ratios = [top[whole] / bottom[whole] for top, bottom in sums]
        return ratios[0] - ratios[1] if minus is not None else ratios[0]

    mean = statistic(np.arange(n_groups)[None])
    if not len(mean):
        return Interval(None, None, None)
    telling = np.count_nonzero(np.any(np.concatenate(terms) != 0, axis=0))
    drawn = [statistic(chosen) for chosen in _resamples(n_groups, draws, seed)]
    return _with_ends(float(mean[0]), drawn, tail(int(telling)))


def resampled_interval(
    statistic: Callable[[np.ndarray], np.ndarray],
    groups: Sequence | np.ndarray,
    draws: int,
    seed: int,
    telling: int | None = None,
) -> Interval:
    """A statistic of cases that count equally, with its interval, by resampling whole groups.

    `statistic` takes the number of times that each case is in a draw, f64 `[draw, n]`, and returns f64 `[draw]`, NaN
    for a draw without a value. The mean of the interval is the statistic with every case once. If the mean is NaN, or
    without a case, all three are None. Draws without a value are left out. `telling` is the number of groups that
    determine the spread, if fewer than all, e.g. the groups of the rarer class. With fewer than `LEAST` groups, low
    and high are None.
    """
    if not len(groups):
        return Interval(None, None, None)
    member, n_groups = _numbered(groups)
    value = float(statistic(np.ones((1, len(member))))[0])
    if np.isnan(value):
        return Interval(None, None, None)
    drawn = []
    for chosen in _resamples(n_groups, draws, seed, len(member)):
        # One `bincount` counts all draws of the block: the groups of each draw have numbers of their own.
        first = np.arange(len(chosen))[:, None] * n_groups
        times = np.bincount((first + chosen).ravel(), minlength=len(chosen) * n_groups).reshape(-1, n_groups)
        found = statistic(times[:, member].astype(np.float64))
        drawn.append(found[~np.isnan(found)])
    return _with_ends(value, drawn, tail(n_groups if telling is None else telling))


class LowerBounds(NamedTuple):
    """Means of several candidates over the same patients, and simultaneous one-sided 95 % lower bounds of the means."""

    mean: np.ndarray
    """f64 `[candidate]`."""
    low: np.ndarray
    """f64 `[candidate]`; NaN without a bound."""


def simultaneous_lower_bounds(values: np.ndarray, draws: int, seed: int) -> LowerBounds:
    """Means over patients and their lower bounds, which all hold together in 95 % of samples, from f64
    `[candidate, patient]`.

    The bound of the best of many candidates would be too high if it were computed as if the candidate were the only
    one. So one quantile serves all candidates: that of the largest studentised deviation. In each of `draws` resamples
    of the patients, the same for all candidates, t_j* = (mean_j* - mean_j) / se_j*, where se_j* is the standard error
    in the resample. With q, the 95 % quantile of max_j t_j*, the bound is low_j = mean_j - q se_j (Westfall and Young,
    Resampling-Based Multiple Testing, Wiley 1993; Romano and Wolf, Exact and Approximate Stepdown Methods for Multiple
    Hypothesis Testing, Journal of the American Statistical Association 100, 2005; here in a single step).

    Equal candidates count as one. A candidate whose values are all equal has no spread, so its bound is its mean, and
    it leaves the bounds of others as they are. In a resample whose values are all equal, se_j takes the place of se_j*.
    A candidate with NaN has the mean NaN and no bound, and leaves the bounds of others as they are. With fewer than two
    patients there is no bound. Without a candidate the arrays are empty.
    """
    values = np.asarray(values, np.float64)
    count, n = values.shape
    if n < 2:
        return LowerBounds(values.mean(axis=1) if n else np.full(count, np.nan), np.full(count, np.nan))
    mean, low = values.mean(axis=1), np.full(count, np.nan)
    error = values.std(axis=1, ddof=1) / np.sqrt(n)
    known = ~np.isnan(mean)
    spread = known & (np.ptp(values, axis=1) > 0)
    low[known] = mean[known]
    if not spread.any():
        return LowerBounds(mean, low)
    # In units of the standard error, no rounding error of a large mean looks like spread.
    scaled = (values[spread] - mean[spread, None]) / error[spread, None]
    largest = []
    for chosen in _resamples(n, draws, seed, n):
        first = np.arange(len(chosen))[:, None] * n
        times = np.bincount((first + chosen).ravel(), minlength=len(chosen) * n).reshape(-1, n)
        deviation = times @ scaled.T / n
        variance = (times @ (scaled**2).T / n - deviation**2) / (n - 1)
        own = np.sqrt(np.where(variance > 1e-9, variance, 1.0))
        largest.append((deviation / own).max(axis=1))
    # The higher of two neighbouring resamples, so that at most 5 % of the resamples lie above the quantile.
    quantile = np.quantile(np.concatenate(largest), 0.95, method="higher")
    low[spread] = mean[spread] - quantile * error[spread]
    return LowerBounds(mean, low)


def tail(groups: int) -> float | None:
    """Share of resamples below the low end, equal to the share above the high end. None for fewer than `LEAST` groups.

    Phi(sqrt(n / (n - 1)) t) for n groups, where t is the 2.5 % quantile of Student's t with n - 1 degrees of freedom.
    The share is below .025 for every n.
    """
    from scipy.special import ndtr, stdtrit

    return float(ndtr(np.sqrt(groups / (groups - 1)) * stdtrit(groups - 1, 0.025))) if groups >= LEAST else None


def _numbered(groups: Sequence | np.ndarray) -> tuple[np.ndarray, int]:
    """Index of the group of each value `[n]`, in sorted order of the groups, and the number of groups."""
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    return member, len(names)


def _resamples(n_groups: int, draws: int, seed: int, width: int = 0) -> Iterator[np.ndarray]:
    """Blocks `[draws, n_groups]` of group indices, resampled with replacement. No block for a single group.

    `width` is the number of values that a draw holds in memory, if there are more values than groups.
    """
    if n_groups < 2:
        return
    generator = numpy_generator(seed, "bootstrap", n_groups)
    step = max(1, BLOCK // max(n_groups, width))
    for start in range(0, draws, step):
        yield generator.integers(n_groups, size=(min(step, draws - start), n_groups))


def _with_ends(mean: float, drawn: list[np.ndarray], outside: float | None) -> Interval:
    if outside is None or not sum(map(len, drawn)):
        return Interval(mean, None, None)
    low, high = np.quantile(np.concatenate(drawn), (outside, 1 - outside))
    return Interval(mean, float(low), float(high))

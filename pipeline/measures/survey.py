"""Shares estimated from a survey: pairs drawn at random within strata, answered by people who err at times.

The interval is that of Korn and Graubard (Survey Methodology 24, 1998): the exact binomial interval (Clopper and
Pearson, Biometrika 26, 1934) of the effective number of answers. The interval holds for few answers and for shares near
0, where an interval of a normal distribution does not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.measures.intervals import LEAST, Interval

_GRID = (np.arange(200) + 0.5) / 200
"""Probabilities at which the distributions of two unknown numbers are combined."""


class Sampled(NamedTuple):
    """A share in a population, as a survey shows the share."""

    share: float
    effective: float
    """Effective number of answers: as many answers of a simple random draw would show the share as exactly."""
    groups: int


class Repeats(NamedTuple):
    """Pairs that a reviewer saw twice."""

    shown: float
    differ: float
    """Number of pairs with another answer the second time. A preference that became a tie, or the reverse, counts one
    half."""

    @property
    def error(self) -> float | None:
        """Error rate e of a reviewer, from P(another answer) = 2 e (1 - e). None without a pair, and for a reviewer
        whose second answer is no better than a coin."""
        return float(_error(self.differ / self.shown)) if self.shown and self.differ < self.shown / 2 else None

    @property
    def errors(self) -> np.ndarray:
        """Values that e may have with equal probability, f64 `[200]`, in ascending order.

        The share of other answers has its Jeffreys distribution, cut off where e is one half.
        """
        from scipy.special import betainc, betaincinv

        a, b = self.differ + 0.5, self.shown - self.differ + 0.5
        return _error(betaincinv(a, b, _GRID * betainc(a, b, 0.5)))

    @property
    def expected_error(self) -> float | None:
        """Probability that one answer is wrong: the mean of `errors`. None where `error` is None.

        The mean is never 0. Few repeats without another answer do not make a reviewer who never errs.
        """
        return None if self.error is None else float(self.errors.mean())


def sampled_share(values: np.ndarray, weight: np.ndarray, stratum: np.ndarray, group: np.ndarray) -> Sampled | None:
    """Share of a population from answers `[n]`: 1 (yes), 0 (no) or one half; NaN outside the domain of the share.

    `weight` f64: pairs of the population per answer, N_h / n_h in stratum h. The share is the ratio of the weighted
    sums over the domain. Its variance is that of the linearised ratio: residuals from the mean of the stratum are
    summed over each group, since answers on one patient are not independent, and the sums are taken as independent. The
    residual of a lone answer of a stratum is taken from the whole share. The effective number of answers is
    share (1 - share) / variance, reduced where groups hold several answers (t quantiles, as Korn and Graubard do). The
    number is at most (sum of weights)^2 / (sum of squared weights): a stratum with a large weight and few answers that
    agree would otherwise look certain. If all answers agree, the number is at most the number of groups.

    None without an answer inside the domain.
    """
    from scipy.special import stdtrit

    inside = ~np.isnan(values)
    if not inside.any():
        return None
    used = np.where(inside, weight, 0.0)
    total = used.sum()
    share = float((used * np.where(inside, values, 0.0)).sum() / total)
    residual = np.where(inside, values - share, 0.0)
    _, of, count = np.unique(stratum, return_inverse=True, return_counts=True)
    mean = np.bincount(of, residual) / count
    lone = count[of] < 2
    spread = np.sqrt(count[of] / np.maximum(count[of] - 1, 1))
    residual = np.where(lone, residual, (residual - mean[of]) * spread)
    names, member = np.unique(group, return_inverse=True)
    groups = len(np.unique(member[inside]))
    sums = np.bincount(member, weight * residual / total, len(names))
    answers = int(inside.sum())
    # The residuals are those of single answers. Fewer groups than answers lose further degrees of freedom.
    variance = float((sums**2).sum()) * groups / max(groups - 1, 1) * (answers - 1) / answers
    most = float(total**2 / (used**2).sum())
    agree = not 0 < share < 1 or variance == 0
    effective = min(most, groups) if agree else min(most, share * (1 - share) / variance)
    if 1 < groups < answers:
        effective *= float(stdtrit(answers - 1, 0.025) / stdtrit(groups - 1, 0.025)) ** 2
    return Sampled(share, effective, groups)


def share_ends(found: Sampled) -> Interval:
    """The share with its 95 % interval. Without ends for fewer than `LEAST` groups."""
    if found.groups < LEAST:
        return Interval(found.share, None, None)
    low, high = _ends(found.share * found.effective, found.effective, np.array([0.025]))
    return Interval(found.share, float(low[0]), float(1 - high[0]))


def reviewer_error(repeats: Repeats) -> Interval:
    """Error rate of a reviewer with its 95 % interval, from the exact interval of the share of other answers."""
    if repeats.error is None:
        return Interval(None, None, None)
    low, high = _ends(repeats.differ, repeats.shown, np.array([0.025]))
    return Interval(repeats.error, float(_error(low[0])), float(_error(1 - high[0])))


def corrected_share(found: Sampled, repeats: Repeats) -> Interval:
    """Share p of pairs that a judge orders wrongly, from the share q on which a reviewer says so.

    A reviewer with the error rate e, whose errors are independent of those of the judge, says so with q = p (1 - e) +
    (1 - p) e. So p = (q - e) / (1 - 2 e), between 0 and 1 (Rogan and Gladen, American Journal of Epidemiology 107,
    1978). Neither q nor e is known. The ends of the interval of p are quantiles of p over all combinations of q and e.
    For q, the lower end takes the distribution of the lower ends of its exact intervals, the upper end that of the
    upper ends. For e, both take the Jeffreys distribution of the share of other answers, cut off where e is one half.

    Without pairs that were shown twice, q is returned, with its interval. If the second answers are no better than a
    coin, by chance or not, the share is that of the median of the distribution of e, and the interval is wide. Without
    ends for fewer than `LEAST` groups.
    """
    if not repeats.shown:
        return share_ends(found)
    errors = repeats.errors
    error = float(np.median(errors)) if repeats.error is None else repeats.error
    share = float(_turned(np.array(found.share), np.array(error)))
    if found.groups < LEAST:
        return Interval(share, None, None)
    q_low, q_high = _ends(found.share * found.effective, found.effective, _GRID)
    low = float(np.quantile(_turned(q_low[:, None], errors), 0.025))
    high = float(np.quantile(_turned(1 - q_high[:, None], errors), 0.975))
    return Interval(share, min(share, low), max(share, high))


def _error(differ: np.ndarray | float) -> np.ndarray:
    return (1 - np.sqrt(1 - 2 * np.minimum(differ, 0.5))) / 2


def _turned(q: np.ndarray, error: np.ndarray) -> np.ndarray:
    return np.clip((q - error) / (1 - 2 * error), 0, 1)


def _ends(yes: float, n: float, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of the lower ends of the exact intervals of `yes` of n, and of 1 - the upper ends."""
    from scipy.special import betaincinv

    def lower(yes: float) -> np.ndarray:
        return np.zeros_like(at) if yes <= 0 else betaincinv(yes, n - yes + 1, at)

    return lower(yes), lower(n - yes)

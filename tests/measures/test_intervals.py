"""Intervals from resampled patients, and from patients crossed with seeds, on numbers worked by hand."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.measures.intervals import (
    Interval,
    bootstrap_interval,
    crossed_interval,
    resampled_interval,
    share_interval,
    simultaneous_lower_bounds,
    tail,
    weighted_interval,
)
from pipeline.seeding import numpy_generator

FIVE = list("abcde")
"""The fewest patients that have an interval. Of their resamples, a share of .00095 is left out at either end. Three of
one kind are drawn alone in .6^5 = .078 of the resamples, two of another kind in .4^5 = .010: both are ends."""


def test_degenerate_intervals():
    """One patient with cases 1 and 2 has a mean and no spread; nothing at all has no mean. Four are too few."""
    assert bootstrap_interval([1.0, 2.0], ["a", "a"], 100, 0) == Interval(1.5, None, None)
    assert bootstrap_interval([], [], 100, 0) == Interval(None, None, None)
    assert bootstrap_interval([3.0] * 4, FIVE[:4], 100, 0) == Interval(3.0, None, None)
    assert bootstrap_interval([3.0] * 5, FIVE, 100, 0) == Interval(3.0, 3.0, 3.0)
    assert weighted_interval([1.0], [4.0], ["a"], 100, 0) == Interval(0.25, None, None)
    assert weighted_interval([0.0, 0.0], [0.0, 0.0], ["a", "b"], 100, 0) == Interval(None, None, None)
    assert weighted_interval([], [], [], 100, 0) == Interval(None, None, None)


def test_a_share_that_is_nought_or_one_is_not_certain():
    """0 of 20: 1 - .025^(1/20) = .1684, and 20 of 20 from .8316; cases of one patient count once."""
    twenty = [str(i) for i in range(20)]
    assert share_interval([0.0] * 20, twenty, 100, 0) == pytest.approx((0, 0, 0.16843), abs=1e-5)
    assert share_interval([1.0] * 20, twenty, 100, 0) == pytest.approx((1, 0.83157, 1), abs=1e-5)
    assert share_interval([0.0] * 40, twenty * 2, 100, 0) == share_interval([0.0] * 20, twenty, 100, 0)
    mixed = [0.0] * 19 + [0.5]
    assert share_interval(mixed, twenty, 100, 0) == bootstrap_interval(mixed, twenty, 100, 0)
    assert share_interval([0.0], ["a"], 100, 0) == Interval(0.0, None, None)
    assert share_interval([], [], 100, 0) == Interval(None, None, None)


def test_mean_is_over_patients_and_not_over_cases():
    """Patients a, b and c with cases 0, 0, 0 and d and e with 1: 2/5, not 2/11."""
    values, groups = [0] * 9 + [1] * 2, list("abc" * 3 + "de")
    assert bootstrap_interval(values, groups, 2000, 0) == Interval(0.4, 0.0, 1.0)


def test_interval_is_seeded():
    values, groups = list(range(9)), list(range(9))
    assert bootstrap_interval(values, groups, 200, 1) == bootstrap_interval(values, groups, 200, 1)
    assert bootstrap_interval(values, groups, 200, 1) != bootstrap_interval(values, groups, 200, 2)


def test_blocks_of_resamples_cover_all_draws(monkeypatch):
    """Memory is bounded by blocks, and their size does not show in the result."""
    values, groups = np.linspace(0, 1, 30), list(range(30))
    whole = bootstrap_interval(values, groups, 500, 0)
    monkeypatch.setattr("pipeline.measures.intervals.BLOCK", 30 * 64)
    assert bootstrap_interval(values, groups, 500, 0) == whole


PATIENT = list("aabbccde")
WRONG, WEIGHT = [10, 0] * 3 + [0, 0], [10, 30] * 3 + [60, 60]


def test_ratio_of_sums():
    """Wrong |D| 10 of 10 + 30 in each of a, b and c, 0 of 60 in d and e: 30/240. Resamples from 0/60 to 10/40."""
    found = weighted_interval(WRONG, WEIGHT, PATIENT, 2000, 0)
    assert found == pytest.approx(Interval(0.125, 0.0, 0.25))


def test_difference_of_two_ratios_shares_its_resamples():
    """e_D = 30/240 against e = 3/8. k of a, b, c: 10 k / (40 k + 60 (5 - k)) - k / (k + 5), lowest for k = 4."""
    found = weighted_interval(WRONG, WEIGHT, PATIENT, 2000, 0, minus=([1, 0] * 3 + [0, 0], [1] * 8))
    assert found == pytest.approx(Interval(-0.25, 40 / 220 - 4 / 9, 0.0))


def test_resamples_without_weight_are_left_out():
    """Patient f has no weight: draws of f alone have no ratio, all others give 1/2."""
    found = weighted_interval([1, 2, 3, 1, 1, 0], [2, 4, 6, 2, 2, 0], [*FIVE, "f"], 500, 0)
    assert found == Interval(0.5, 0.5, 0.5)


def test_patients_without_weight_show_no_spread():
    """Of a alone there is a ratio: however many others have none, nothing is known about the spread."""
    assert weighted_interval([1, 0, 0], [2, 0, 0], ["a", "b", "c"], 500, 0) == Interval(0.5, None, None)
    gains = [1, -1, 1, -1, 1]
    assert weighted_interval(gains, [2, 0, 0, 0, 0], FIVE, 500, 0).low is not None, "a gain is weight"


# ---- a statistic of weighted cases ------------------------------------------------------------------------------


def mean_of(values):
    """The mean as a statistic of how often each case is drawn."""
    return lambda times: times @ np.asarray(values) / times.sum(1)


def test_a_statistic_is_resampled_by_patient():
    """Cases 0, 0 of each of a, b and c, 1 of d and of e: 2/8. Draws of the first alone give 0, of the others 1."""
    assert resampled_interval(mean_of([0] * 6 + [1, 1]), PATIENT, 2000, 0) == pytest.approx((0.25, 0, 1))


def test_the_mean_as_a_statistic_is_that_of_interval():
    """With a case per patient both are means over the same draws."""
    values, groups = [0.1, 0.5, 0.2, 0.9, 0.3, 0.4], list("abcdef")
    assert resampled_interval(mean_of(values), groups, 300, 3) == pytest.approx(
        bootstrap_interval(values, groups, 300, 3)
    )


def test_draws_without_a_value_are_left_out():
    """Only draws with case b have a value, 5."""
    found = resampled_interval(lambda times: np.where(times[:, 1] > 0, 5.0, np.nan), FIVE, 100, 0)
    assert found == Interval(5.0, 5.0, 5.0)


def test_a_statistic_without_value_or_spread():
    assert resampled_interval(mean_of([]), [], 100, 0) == Interval(None, None, None)
    assert resampled_interval(lambda times: np.full(len(times), np.nan), ["a"], 9, 0) == Interval(None, None, None)
    assert resampled_interval(mean_of([1, 3]), ["a", "a"], 100, 0) == Interval(2.0, None, None)
    assert resampled_interval(mean_of([1, 3, 2, 2, 2]), FIVE, 100, 0, telling=4) == Interval(2.0, None, None)


def test_the_rarer_class_widens():
    """Ends that rest on five of forty patients are further out than those that rest on all."""
    values, groups = np.linspace(0, 1, 40), range(40)
    found = [resampled_interval(mean_of(values), groups, 4000, 0, telling) for telling in (5, None)]
    ends = [x for x in (found[0].low, found[1].low, found[1].high, found[0].high) if x is not None]
    assert len(ends) == 4
    assert ends == sorted(set(ends))


# ---- ends ------------------------------------------------------------------------------------------------------


def test_tail():
    """Five patients: the 2.5 % quantile of t with 4 degrees of freedom is -2.7764, times sqrt(5/4) is -3.1042, below
    which a normal variable lies with probability .000954. Many patients: .025. Four: too few."""
    assert tail(5) == pytest.approx(0.000954, abs=1e-6)
    assert tail(10**6) == pytest.approx(0.025, abs=1e-6)
    assert tail(4) is None
    assert tail(1) is None


def test_fewer_patients_are_further_out():
    tails = [x for n in range(5, 200) if (x := tail(n)) is not None]
    assert len(tails) == 195
    assert all(few < more < 0.025 for few, more in pairwise(tails))


def test_five_patients_give_all_that_they_can():
    """The lowest and the highest of the resamples."""
    assert bootstrap_interval([0, 0, 0, 1, 1], FIVE, 2000, 0) == Interval(0.4, 0.0, 1.0)


def test_ends_are_the_outer_fortieths():
    """Resampled means of 50 zeros and 50 ones are Binomial(100, 1/2) / 100: .0231 is what is left of 1/40 for 100
    patients; 1.8 % lie below .40 and 2.8 % up to it."""
    found = bootstrap_interval(np.repeat([0, 1], 50), np.arange(100), 8000, 0)
    assert found == pytest.approx(Interval(0.5, 0.4, 0.6), abs=0.0101)


def test_interval_covers_the_known_mean():
    """100 sets of 40 patients with 2 cases each, mean 0: about 95 of the intervals hold 0."""
    covered = 0
    for repeat in range(100):
        generator = numpy_generator(repeat, "coverage")
        values = generator.standard_normal((40, 1)) + 0.3 * generator.standard_normal((40, 2))
        _, low, high = bootstrap_interval(values.ravel(), np.repeat(np.arange(40), 2), 500, repeat)
        assert low is not None
        assert high is not None
        covered += low <= 0 <= high
    assert 90 <= covered <= 99


def test_interval_of_few_patients_covers_the_known_mean():
    """300 sets of 6 patients, mean 0: plain percentiles hold it in about 84 of 100, the expanded ones in 91."""
    expanded = plain = 0
    for repeat in range(300):
        values = numpy_generator(repeat, "few").standard_normal(6)
        _, low, high = bootstrap_interval(values, range(6), 300, repeat)
        assert low is not None
        assert high is not None
        expanded += low <= 0 <= high
        chosen = numpy_generator(repeat, "few, plain").integers(6, size=(300, 6))
        low, high = np.quantile(values[chosen].mean(1), (0.025, 0.975))
        plain += low <= 0 <= high
    assert expanded >= 0.88 * 300
    assert plain <= expanded - 9


def test_ratio_of_few_patients_covers_the_known_one():
    """300 sets of 8 patients whose |D| are lognormal and of whom 30 % are wrong: at least 80 of 100 hold .3."""
    covered = 0
    for repeat in range(300):
        generator = numpy_generator(repeat, "few ratios")
        weight = generator.lognormal(0, 1, 8)
        _, low, high = weighted_interval(weight * (generator.random(8) < 0.3), weight, range(8), 300, repeat)
        assert low is not None
        assert high is not None
        covered += low <= 0.3 <= high
    assert covered >= 0.8 * 300


# ---- patients crossed with seeds -------------------------------------------------------------------------------


T1, T2 = 12.706205, 4.302653
"""Quantiles .975 of Student's t with 1 and 2 degrees of freedom."""


def test_the_spreads_of_seeds_and_patients_are_added():
    """Gains of patient a in two seeds: 0 and 2, of b: 4 and 6, of c: 8 and 10. Means of seeds are 4 and 6, of patients
    1, 5 and 9. h^2 = T1^2 2 / 2 + T2^2 16 / 3."""
    half = (T1**2 * 2 / 2 + T2**2 * 16 / 3) ** 0.5
    found = crossed_interval([[0, 4, 8], [2, 6, 10]], ["a", "b", "c"], 1, 0)
    assert found == pytest.approx(Interval(5.0, 5 - half, 5 + half))


def test_without_spread_between_patients_seeds_remain():
    """Every patient gains 1 in seed 1 and 3 in seed 2. Without spread between seeds, the t interval of the patients."""
    found = crossed_interval([[1, 1, 1], [3, 3, 3]], ["a", "b", "c"], 1, 0)
    assert found == pytest.approx(Interval(2.0, 2 - T1, 2 + T1))
    half = T2 * (16 / 3) ** 0.5
    assert crossed_interval([[1, 5, 9]] * 4, ["a", "b", "c"], 1, 0) == pytest.approx(Interval(5.0, 5 - half, 5 + half))


def test_one_seed_is_the_interval_over_patients():
    values, groups = [0.1, 0.5, 0.2, 0.9], ["a", "a", "b", "c"]
    assert crossed_interval([values], groups, 500, 3) == bootstrap_interval(values, groups, 500, 3)


def test_mean_of_crossed_values_is_over_patients_and_not_over_cases():
    """Patient a: 0 in three cases, then 3 in each; b: 1, then 5. (0 + 1)/2 and (3 + 5)/2: 2.25; over cases 15/8."""
    found = crossed_interval([[0, 0, 0, 1], [3, 3, 3, 5]], ["a", "a", "a", "b"], 100, 0)
    assert found.mean == 2.25


def test_degenerate_crossings():
    """One patient says nothing about others; nothing has no mean."""
    assert crossed_interval([[1.0, 2.0], [3.0, 4.0]], ["a", "a"], 100, 0) == Interval(2.5, None, None)
    assert crossed_interval([], [], 100, 0) == Interval(None, None, None)
    assert crossed_interval([[], []], [], 100, 0) == Interval(None, None, None)
    assert crossed_interval([], ["a"], 100, 0) == Interval(None, None, None)


def test_neither_scale_nor_order_nor_place_plays_a_part():
    values = numpy_generator(0, "crossed").standard_normal((3, 30))
    mean, low, high = crossed_interval(values, list(range(30)), 1, 0)
    assert crossed_interval(values[::-1], list(range(30)), 1, 5) == pytest.approx((mean, low, high))
    assert low is not None
    assert high is not None
    assert crossed_interval(10 * values + 1, list(range(30)), 1, 0) == pytest.approx(
        (10 * mean + 1, 10 * low + 1, 10 * high + 1)
    )


@pytest.mark.parametrize("shares", [(0.0, 1.0, 0.0), (0.3, 0.4, 0.3), (0.9, 0.1, 0.0), (0.05, 0.05, 0.9)])
@pytest.mark.parametrize("seeds", [2, 3, 4])
def test_crossed_intervals_of_few_seeds_cover_the_known_mean(seeds, shares):
    """300 sets of 2 to 4 seeds and 40 patients, mean 0, by shares of seeds, patients and residual in the variance.

    Of 300 intervals that each cover with probability .95, fewer than 274 do so once in 389 times (binomial).
    """
    held = 0
    for repeat in range(300):
        draw = numpy_generator(repeat, "crossed coverage", seeds).standard_normal
        effects = draw((seeds, 1)), draw((1, 40)), draw((seeds, 40))
        values = sum(share**0.5 * effect for share, effect in zip(shares, effects, strict=True))
        _, low, high = crossed_interval(values, np.arange(40), 1, 0)
        assert low is not None
        assert high is not None
        held += low <= 0 <= high
    assert held >= 274


# ---- lower bounds of several candidates --------------------------------------------------------------------------


def test_the_bound_of_one_candidate():
    """Gains 0, 0 and 3: mean 1, standard error sqrt(3) / sqrt(3) = 1. A draw has k times the 3, k ~ Binomial(3, 1/3).

    k = 1: t = 0. k = 2: (2 - 1) / 1 = 1. k = 0 and 3 have no spread of their own: (0 - 1) / 1 and (3 - 1) / 1 = 2.
    P(t = 2) = 1/27 = .037 and P(t >= 1) = 7/27, so q = 1 and the bound is 1 - 1 = 0.
    """
    found = simultaneous_lower_bounds(np.array([[0, 0, 3]]), 4000, 0)
    assert found.mean == pytest.approx([1])
    assert found.low == pytest.approx([0])


def test_a_second_candidate_lowers_the_bound_of_the_first():
    """As above, and a second candidate gains in another patient: max t = 2 in 2/27 = .074 of the draws, so q = 2."""
    found = simultaneous_lower_bounds(np.array([[0, 0, 3], [0, 3, 0]]), 4000, 0)
    assert found.low == pytest.approx([-1, -1])


def test_an_equal_candidate_changes_no_bound():
    """The patients of a draw are the same for all candidates, so the largest deviation is that of one."""
    values = numpy_generator(0, "candidates").standard_normal((1, 20))
    alone = simultaneous_lower_bounds(values, 500, 0).low
    assert simultaneous_lower_bounds(np.repeat(values, 3, axis=0), 500, 0).low == pytest.approx(np.repeat(alone, 3))


def test_candidates_without_spread_or_value_leave_the_others_alone():
    """Equal gains: the bound is the mean. A patient without a value: no bound."""
    values = numpy_generator(0, "candidates").standard_normal(20)
    alone = simultaneous_lower_bounds(values[None], 500, 0).low[0]
    unknown = np.where(np.arange(20) == 3, np.nan, values)
    found = simultaneous_lower_bounds(np.stack([np.zeros(20), values, unknown, np.full(20, 0.1)]), 500, 0)
    assert found.low == pytest.approx([0, alone, np.nan, 0.1], nan_ok=True)
    assert found.mean == pytest.approx([0, values.mean(), np.nan, 0.1], nan_ok=True)


def test_without_candidates_or_with_too_few_patients_there_is_no_bound():
    assert [part.shape for part in simultaneous_lower_bounds(np.zeros((0, 20)), 100, 0)] == [(0,), (0,)]
    one = simultaneous_lower_bounds(np.array([[0.5], [0.1]]), 100, 0)
    assert one.mean.tolist() == [0.5, 0.1]
    assert np.isnan(one.low).all()
    assert np.isnan(simultaneous_lower_bounds(np.zeros((2, 0)), 100, 0)).all()


_GAINS = arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(2, 12)), elements=st.integers(-50, 50))


@given(_GAINS, st.integers(1, 20), st.integers(-50, 50))
def test_bounds_follow_unit_and_shift(values, unit, shift):
    plain, moved = (simultaneous_lower_bounds(each, 60, 0) for each in (values, unit * values + shift))
    assert moved.low == pytest.approx(unit * plain.low + shift, abs=1e-6)


@given(_GAINS)
def test_one_more_candidate_raises_no_bound(values):
    """And the order of the candidates has no influence."""
    every, fewer = simultaneous_lower_bounds(values, 60, 0), simultaneous_lower_bounds(values[:-1], 60, 0)
    assert (every.low[:-1] <= fewer.low + 1e-9).all()
    assert simultaneous_lower_bounds(values[::-1], 60, 0).low == pytest.approx(every.low[::-1])


def test_bounds_of_several_candidates_hold_together():
    """300 sets of 20 patients and 6 candidates that share half of their variance, all of mean 0.

    All bounds lie at or below 0 in about 95 of 100 sets. Bounds of single candidates all do in about 80.
    """
    together = alone = 0
    for repeat in range(300):
        generator = numpy_generator(repeat, "candidates")
        values = generator.standard_normal((1, 20)) + generator.standard_normal((6, 20))
        together += (simultaneous_lower_bounds(values, 400, repeat).low <= 0).all()
        alone += all(simultaneous_lower_bounds(row[None], 400, repeat).low[0] <= 0 for row in values)
    assert 0.92 * 300 <= together <= 0.98 * 300
    assert alone <= 0.87 * 300

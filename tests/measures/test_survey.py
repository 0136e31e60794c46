"""Shares from answers that were drawn within strata: numbers worked by hand, and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.measures.survey import Repeats, corrected_share, reviewer_error, sampled_share, share_ends


def simple(values: list[float], group: list[int] | None = None):
    """Answers of a simple random draw, one per patient unless groups are given."""
    n = len(values)
    return sampled_share(np.array(values), np.ones(n), np.zeros(n), np.arange(n) if group is None else np.array(group))


def test_a_simple_draw_has_the_exact_binomial_interval():
    """2 of 20: the variance is .09 / 19, as of 19 answers. Clopper and Pearson: 2 of 20 is in [.012, .317]."""
    found = simple([1, 1] + [0] * 18)
    assert (found.share, found.groups) == (pytest.approx(0.1), 20)
    assert found.effective == pytest.approx(19)
    exact = share_ends(found._replace(effective=20.0))
    assert exact == pytest.approx((0.1, 0.01235, 0.31698), abs=1e-5)


def test_no_error_among_20_answers_is_no_certainty():
    """0 of 20: the upper end is 1 - .025^(1/20) = .1684."""
    assert share_ends(simple([0.0] * 20)) == pytest.approx((0, 0, 0.16843), abs=1e-5)
    assert share_ends(simple([1.0] * 20)) == pytest.approx((1, 0.83157, 1), abs=1e-5)


def test_an_answer_weighs_as_the_pairs_that_it_stands_for():
    """Stratum A: 90 pairs, 1 of 3 wrong. Stratum B: 10 pairs, 2 of 2 wrong. Share: (90 / 3 + 10) / 100 = .4."""
    values, weight = np.array([1.0, 0, 0, 1, 1]), np.array([30.0, 30, 30, 5, 5])
    found = sampled_share(values, weight, np.array(list("AAABB")), np.arange(5))
    assert found.share == pytest.approx(0.4)
    assert found.effective <= 100**2 / (3 * 30**2 + 2 * 5**2)


def test_an_answer_outside_the_domain_keeps_the_weights_of_the_others():
    """One of the three answers of A is unusable. The other two still stand for 30 pairs each: (30 + 10) / 70."""
    values, weight = np.array([1.0, 0, np.nan, 1, 1]), np.array([30.0, 30, 30, 5, 5])
    found = sampled_share(values, weight, np.array(list("AAABB")), np.arange(5))
    assert found.share == pytest.approx(40 / 70)
    assert sampled_share(np.array([np.nan]), np.ones(1), np.zeros(1), np.zeros(1)) is None


def test_a_stratum_that_few_answers_speak_for_is_not_certain():
    """5 answers stand for 90 % of the pairs, and all agree. The errors of the other 45 answers must not hide that."""
    values = np.array([0.0] * 5 + [1.0] * 20 + [0.0] * 25)
    weight = np.array([180.0] * 5 + [100 / 45] * 45)
    found = sampled_share(values, weight, np.array([0] * 5 + [1] * 45), np.arange(50))
    assert found.effective < 6.2
    assert share_ends(found).high > 0.4


def test_answers_on_one_patient_are_not_independent():
    """10 patients with 5 equal answers each say as much as 10 answers, and not as 50."""
    values = np.repeat([1.0, 1, 0, 0, 0, 0, 0, 0, 0, 0], 5)
    found = simple(values.tolist(), np.repeat(np.arange(10), 5).tolist())
    assert found.effective < 10
    assert share_ends(found).high > share_ends(simple(values.tolist())).high
    assert share_ends(simple([1.0, 0, 0, 0])) == (0.25, None, None), "four patients have no interval"


def test_the_error_of_a_reviewer_from_pairs_shown_twice():
    """P(another answer) = 2 e (1 - e): 18 of 100 is e = .1. Half or more is a coin."""
    assert Repeats(100, 18).error == pytest.approx(0.1)
    assert (Repeats(10, 5).error, Repeats(0, 0).error) == (None, None)
    assert (Repeats(10, 5).expected_error, Repeats(0, 0).expected_error) == (None, None)


def test_few_repeats_make_no_reviewer_who_never_errs():
    """Of 1, 10 and 1000 repeats none differs: e is near 1/10, 1/40 and 1/4000. With 180 of 1000, both are .1."""
    found = [Repeats(shown, 0).expected_error for shown in (1, 10, 1000)]
    assert found == pytest.approx([0.1, 0.025, 0.00025], rel=0.2)
    assert Repeats(1000, 180).expected_error == pytest.approx(0.1, abs=0.002)
    mean, low, high = reviewer_error(Repeats(10, 0))
    # 0 of 10: up to .3085 have another answer, which is e = (1 - sqrt(1 - .617)) / 2.
    assert (mean, low, high) == pytest.approx((0, 0, 0.19057), abs=1e-4)


def test_the_error_of_the_reviewer_is_taken_out():
    """A reviewer with e = .1 says of 26 of 100 pairs that they are wrong: (.26 - .1) / .8 = .2 are."""
    found = simple([1.0] * 26 + [0.0] * 74)
    share, low, high = corrected_share(found, Repeats(1000, 180))
    assert share == pytest.approx(0.2)
    assert low < 0.2 < high
    assert corrected_share(found, Repeats(0, 0)) == share_ends(found), "nothing is known of the reviewer"
    coin = corrected_share(found, Repeats(10, 6))
    assert coin.low < 0.01, "nearly all answers against the judge may be errors of such a reviewer"
    wide = corrected_share(found, Repeats(10, 2))
    assert wide.high - wide.low > high - low, "fewer repeats say less of the reviewer"


def test_fewer_errors_than_those_of_the_reviewer_are_none():
    assert corrected_share(simple([1.0] * 2 + [0.0] * 48), Repeats(100, 18))[:2] == (0, 0)


@settings(max_examples=60)
@given(yes=st.integers(0, 40), no=st.integers(0, 40), shown=st.integers(0, 20), differ=st.integers(0, 20))
def test_an_interval_holds_its_share_and_turns_with_it(yes: int, no: int, shown: int, differ: int):
    if yes + no < 5:
        return
    repeats = Repeats(shown, min(differ, shown))
    one = corrected_share(simple([1.0] * yes + [0.0] * no), repeats)
    assert 0 <= one.low <= one.mean <= one.high <= 1
    other = corrected_share(simple([0.0] * yes + [1.0] * no), repeats)
    assert (1 - other.mean, 1 - other.high, 1 - other.low) == pytest.approx(one, abs=1e-9)


def test_the_interval_holds_the_truth():
    """300 surveys of 50 answers with 5 repeats: a judge with 20 % of wrong pairs, a reviewer who errs on 10 %."""
    generator, inside = np.random.default_rng(1), []
    for _ in range(300):
        wrong, errs = generator.random(50) < 0.2, generator.random(50) < 0.1
        differ = ((generator.random(5) < 0.1) != (generator.random(5) < 0.1)).sum()
        found = corrected_share(simple((wrong ^ errs).astype(float).tolist()), Repeats(5, differ))
        inside.append(found.low <= 0.2 <= found.high)
    assert np.mean(inside) >= 0.93

"""Ranks of the proposals of a case, and of cases among each other, on numbers worked by hand."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.measures.ranking import aurc, auroc, best_fixed, differences, kendall, pair_error, rightness, top_value

N = float("nan")
ONCE = np.ones((1, 3))


def case(*values: float) -> np.ndarray:
    """A block of one case."""
    return np.array([values], np.float64)


def error(score: np.ndarray, truth: np.ndarray) -> float:
    return float(pair_error(rightness(differences(score), differences(truth)))[0])


def tau(score: np.ndarray, truth: np.ndarray) -> float:
    return float(kendall(differences(score), differences(truth))[0])


# ---- within a case ---------------------------------------------------------------------------------------------


def test_differences_and_rightness():
    """Slots 0-1, 0-2, 1-2. The second pair has equal scores; slot 2 has no score in the second case."""
    score = np.array([[0.1, 0.5, 0.1], [0.1, 0.5, N]])
    truth = np.array([[0.2, 0.1, 0.4], [0.3, 0.3, 0.9]])
    order = differences(score)
    assert order[0] == pytest.approx([-0.4, 0, 0.4])
    assert np.isnan(order[1]).tolist() == [False, True, True]
    right = rightness(order, differences(truth))
    assert right[0].tolist() == [0, 0.5, 0]
    assert np.isnan(right[1]).all(), "equal truth, and no score"


def test_kendall():
    """Pairs of (1, 2, 2) and (1, 2, 3): two agree, one is tied in the first alone: 2 / sqrt(2 x 3) = .816."""
    assert tau(case(0.1, 0.5, 0.9), case(0.2, 0.3, 0.4)) == pytest.approx(1)
    assert tau(case(0.9, 0.5, 0.1), case(0.2, 0.3, 0.4)) == pytest.approx(-1)
    assert tau(case(0.5, 0.9, 0.9), case(0.4, 0.8, 1.0)) == pytest.approx(2 / 6**0.5)
    assert tau(case(0.5, N, 0.9, 0.9), case(0.4, 0.0, 0.8, 1.0)) == pytest.approx(2 / 6**0.5)
    assert np.isnan(tau(case(0.5, 0.5), case(0.4, 0.8)))
    assert np.isnan(tau(case(0.4, 0.8), case(0.5, 0.5)))


def test_pair_error():
    """Three pairs, one of them tied by the score: 1/2 of 3. Pairs of equal truth are not asked for."""
    assert error(case(0.5, 0.9, 0.9), case(0.4, 0.8, 1.0)) == pytest.approx(0.5 / 3)
    assert error(case(0.1, 0.2, 0.3), case(0.3, 0.2, 0.1)) == 1
    assert error(case(0.1, 0.2, 0.3), case(0.5, 0.5, 0.9)) == 0
    assert np.isnan(error(case(0.1, 0.2), case(0.5, 0.5)))


def test_top_value():
    """The mean of all that share the highest score; slots without a score do not count."""
    truth = case(0.7, 0.6, 0.8)
    assert top_value(case(0.1, 0.9, 0.5), truth)[0] == pytest.approx(0.6)
    assert top_value(case(0.9, 0.9, 0.5), truth)[0] == pytest.approx(0.65)
    assert top_value(case(0.1, 0.5, N), truth)[0] == pytest.approx(0.6)
    assert np.isnan(top_value(case(N, N, N), truth)[0])


def test_the_best_fixed_slot_is_chosen_on_the_other_patients():
    """Patient a (two cases) is best with slot 0, patient b with slot 1: each gets the other's choice.

    Slot 0 has the mean 2/3 over the three cases, and (.9 + 0) / 2 over patients. Slot 1 has (0 + 1) / 2 over patients.
    """
    dice = np.array([[0.9, 0.0], [0.9, 0.0], [0.0, 1.0]])
    chosen, slot = best_fixed(dice, ["a", "a", "b"], 2, seed=0)
    assert chosen.tolist() == [0, 0, 0]
    assert slot == 1


def test_the_best_fixed_slot_of_the_other_folds_is_a_mean_over_patients():
    """Case c of a patient of its own: of a (three cases) slot 0 is .6 better, of b (one case) slot 1 is .8 better."""
    dice = np.array([[0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.1, 0.9], [0.3, 0.4]])
    chosen, _ = best_fixed(dice, ["a", "a", "a", "b", "c"], 3, seed=0)
    assert chosen[4] == 0.4


def test_a_single_patient_chooses_for_itself():
    chosen, slot = best_fixed(np.array([[1.0, 0.0], [0.4, 0.6]]), ["a", "a"], 5, seed=0)
    assert (chosen.tolist(), slot) == ([1.0, 0.4], 0)


# ---- between cases ---------------------------------------------------------------------------------------------


def test_auroc():
    """Failures score .1 and .5, the others .5 and .9: of four pairs three are right and one is a tie: 3.5 / 4."""
    score, failed = np.array([0.1, 0.5, 0.5, 0.9]), np.array([True, True, False, False])
    assert auroc(score, failed, np.ones((1, 4)))[0] == pytest.approx(3.5 / 4)
    assert auroc(-score, failed, np.ones((1, 4)))[0] == pytest.approx(0.5 / 4)
    assert auroc(np.zeros(4), failed, np.ones((1, 4)))[0] == pytest.approx(0.5)


def test_auroc_of_drawn_cases():
    """The failure at .5 twice and that at .1 not at all: a tie and a right pair, each twice: 3/4. One class: none."""
    score, failed = np.array([0.1, 0.5, 0.5, 0.9]), np.array([True, True, False, False])
    found = auroc(score, failed, np.array([[0.0, 2, 1, 1], [1, 1, 0, 0]]))
    assert found[0] == pytest.approx(0.75)
    assert np.isnan(found[1])


def test_aurc():
    """Risks 0, .3, .6 in the order of trust: means 0, .15, .3, together .15. The other way: .6, .45, .3: .45."""
    risk = np.array([0.6, 0.0, 0.3])
    assert aurc(np.array([0.1, 0.9, 0.5]), risk, ONCE)[0] == pytest.approx(0.15)
    assert aurc(np.array([0.9, 0.1, 0.5]), risk, ONCE)[0] == pytest.approx(0.45)


def test_aurc_of_tied_cases_is_the_mean_over_their_orders():
    """Risk 0 first, then .3 and .6 in either order: (0 + .15 + .3) / 3 and (0 + .3 + .3) / 3: .175. All tied: .3."""
    risk = np.array([0.6, 0.0, 0.3])
    assert aurc(np.array([0.5, 0.9, 0.5]), risk, ONCE)[0] == pytest.approx(0.175)
    assert aurc(np.zeros(3), risk, ONCE)[0] == pytest.approx(0.3)


def test_aurc_of_drawn_cases():
    """The riskless case twice, that of .6 once: means 0, 0, .2: together 1/15."""
    found = aurc(np.array([0.1, 0.9, 0.5]), np.array([0.6, 0.0, 0.3]), np.array([[1.0, 2.0, 0.0]]))
    assert found == pytest.approx([0.2 / 3])


CASES = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.1, 0.4, 0.9]), st.integers(0, 2)))


@settings(max_examples=60)
@given(cases=CASES.filter(lambda cases: 0 < sum(times for _, _, times in cases) < 7))
def test_weights_repeat_cases_and_ties_are_averaged(cases):
    """AURC is the mean of the plain definition over all orders that the scores allow; AUROC counts the pairs."""
    score, risk, times = (np.array(column) for column in zip(*cases, strict=True))
    weight = times[None].astype(np.float64)
    each = np.repeat(np.arange(len(times)), times)
    orders = [np.array(o) for o in permutations(each) if all(np.diff(score[np.array(o)]) <= 0)]
    position = np.arange(1, len(each) + 1)
    plain = np.mean([(risk[order].cumsum() / position).mean() for order in orders])
    assert aurc(score, risk, weight)[0] == pytest.approx(plain)
    failed = risk > 0.5
    pairs = [(np.sign(score[b] - score[a]) + 1) / 2 for a in each[failed[each]] for b in each[~failed[each]]]
    assert auroc(score, failed, weight)[0] == pytest.approx(np.mean(pairs) if pairs else N, nan_ok=True)

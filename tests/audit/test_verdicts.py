"""What is said of judges and pair sets, rule by rule."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from pipeline.audit.verdicts import (
    AuditWarning,
    Validation,
    constant_picks,
    headroom_verdict,
    judge_verdict,
    noise_verdict,
    nothing_known,
    percent_text,
    points_text,
    warnings,
)
from pipeline.store import schema

N = None


def ends(measure: str, value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {measure: value, f"{measure}_low": low, f"{measure}_high": high}


GOOD: dict[str, Any] = {
    **dict.fromkeys(schema.AUDIT_JUDGES.columns),
    **{"judge": "j", "cases": 40, "abstained": 0.0, "fixed_sampler": "ensemble mean"},
    **ends("lift", 0.008, 0.003, 0.013),
    **ends("lift_over_fixed", -0.003, -0.005, -0.001),
    **ends("headroom", 0.05, 0.04, 0.06),
}
BEATS = "top pick beats the base by +0.8 [+0.3, +1.3] Dice points"
OTHERS, BEST = "the sampler that is best on other patients", "on all patients 'ensemble mean' is best"
LESS = f"worse than {OTHERS} (-0.3 [-0.5, -0.1] Dice points; {BEST})"
WRONG = "29 % [20, 38] of its top_bottom pairs are wrong"
ANCHORED = "do not train on it without an anchor"


def tried(name: str = "top_bottom", *noise: float | None, mined: int = 40) -> dict[str, Any]:
    """A row of `AUDIT_STRATEGIES`, with a noise rate of .29 [.20, .38] unless said otherwise."""
    return {"strategy": name, "mined": mined, **ends("noise_rate", *(noise or (0.29, 0.2, 0.38)))}


def verdict(*strategies: dict[str, Any], groups: int = 40, research: bool = False, **given: Any) -> str:
    return judge_verdict(GOOD | given, strategies or [tried()], groups, research)


def test_numbers_with_their_intervals():
    assert points_text(GOOD, "lift") == "+0.8 [+0.3, +1.3]"
    assert points_text(ends("lift", 0.0123), "lift") == "+1.2"
    assert points_text(ends("lift", None), "lift") == "unknown"
    assert percent_text(tried(), "noise_rate") == "29 % [20, 38]"


@pytest.mark.parametrize(
    ("room", "groups", "said"),
    [
        ((0.02, 0.005, 0.03), 9, "headroom left: the best proposals are +2.0 [+0.5, +3.0] Dice points above the base"),
        ((0.003, 0.001, 0.0049), 9, "no headroom shown: the best proposals are +0.3 [+0.1, +0.5] Dice points"),
        ((0.004, 0.001, 0.006), 9, "headroom not shown: the best proposals are +0.4 [+0.1, +0.6] Dice points"),
        ((0.02, None, None), 4, "headroom unknown: the best proposals are +2.0 Dice points above the base, on 4 pat"),
        ((None, None, None), 0, "headroom unknown: no validation case with a label has proposals"),
    ],
)
def test_what_proposals_leave_to_learn(room, groups, said):
    """Half a point is the least that is of use: at the lower end it is left, below it at the upper end it is not."""
    assert headroom_verdict(ends("headroom", *room), groups).startswith(said)


# ---- a judge ---------------------------------------------------------------------------------------------------


def test_a_judge_worth_training_on_with_an_anchor():
    assert verdict() == f"{BEATS}, {LESS}; {WRONG}; {ANCHORED}"


@pytest.mark.parametrize(
    ("lift", "said"),
    [
        ((0.008, -0.001, 0.017), "top pick is not shown to beat the base (+0.8 [-0.1, +1.7] Dice points)"),
        ((0.008, 0.0, 0.017), "top pick is not shown to beat the base (+0.8 [+0.0, +1.7] Dice points)"),
        ((-0.01, -0.02, -0.001), "top pick is worse than the base (-1.0 [-2.0, -0.1] Dice points)"),
        ((0.008,), "top pick is not shown to beat the base (+0.8 Dice points)"),
    ],
)
def test_a_judge_that_is_not_shown_to_beat_the_base(lift, said):
    found = verdict(**ends("lift", *lift))
    assert found.startswith(f"{said}, ")
    assert found.endswith("; do not train on it")


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ((0.002, 0.001, 0.003), f"better than {OTHERS} (+0.2 [+0.1, +0.3] Dice points; {BEST})"),
        ((0.002, -0.001, 0.005), f"not shown to differ from {OTHERS} (+0.2 [-0.1, +0.5] Dice points; {BEST})"),
        ((-0.003,), f"not shown to differ from {OTHERS} (-0.3 Dice points; {BEST})"),
    ],
)
def test_against_the_best_fixed_sampler(over, said):
    assert verdict(**ends("lift_over_fixed", *over)) == f"{BEATS}, {said}; {WRONG}; {ANCHORED}"


def test_pairs_that_may_be_a_coin_s():
    coin = tried("top_base", 0.45, 0.35, 0.55)
    said = "45 % [35, 55] of its top_base pairs are wrong"
    assert (
        verdict(coin)
        == f"{BEATS}, {LESS}; {said}; do not train on it: too few patients to tell its pairs from a coin's"
    )
    worse = tried("top_base", 0.5, 0.4, 0.6)
    assert verdict(worse).endswith("do not train on it, its pairs are not clearly better than a coin's")
    both = "29 % [20, 38] of its top_bottom and 45 % [35, 55] of its top_base pairs are wrong"
    assert verdict(tried(), coin) == f"{BEATS}, {LESS}; {both}; {ANCHORED}, nor on its top_base pairs"
    assert verdict(tried("top_base", 0.4, 0.3, 0.5)).endswith("coin's"), "the end is not below one half"


def test_strategies_that_mine_nothing_are_named():
    found = verdict(tried(), tried("top_base", None, mined=0))
    assert found == f"{BEATS}, {LESS}; {WRONG}; no top_base pair could be mined; {ANCHORED}"
    assert verdict(tried("top_base", None, mined=0)).endswith(
        "do not train on it, its pairs are not clearly better than a coin's"
    )


@pytest.mark.parametrize(("high", "said"), [(0.4, ANCHORED), (0.5, "too few patients to tell its pairs from a coin's")])
def test_without_strategies_all_pairs_decide(high, said):
    found = judge_verdict(GOOD | ends("pair_error", 0.3, 0.2, high), [], 40, research=False)
    assert found.startswith(f"{BEATS}, {LESS}; do not train")
    assert found.endswith(said)


@pytest.mark.parametrize(("high", "empty"), [(0.004, True), (0.005, False)])
def test_without_headroom_there_is_nothing_to_gain(high, empty):
    found = verdict(**ends("headroom", 0.002, 0.001, high))
    nothing = "no headroom: the best proposals are +0.2 [+0.1, +0.4] Dice points above the base; " + WRONG
    assert found == (f"{nothing}; nothing can be gained by training on it" if empty else verdict())


@pytest.mark.parametrize(("share", "said"), [(0.004, ""), (0.006, "; abstains on 1 % of the proposals")])
def test_abstentions_are_counted(share, said):
    assert verdict(abstained=share) == f"{BEATS}, {LESS}; {WRONG}{said}; {ANCHORED}"


def test_a_judge_that_scores_nothing():
    assert verdict(cases=0) == "nothing is known: it scored no two distinct proposals of any validation case"


def test_a_judge_that_knows_the_truth_is_for_research():
    assert verdict(research=True) == f"research only, it knows the truth; {BEATS}, {LESS}; {WRONG}"
    assert verdict(research=True, cases=0).startswith("research only, it knows the truth; nothing is known")


def test_few_patients_are_said_to_be_few():
    assert verdict(groups=9) == f"{BEATS}, {LESS}; {WRONG}; measured on 9 patients or exams only; {ANCHORED}"
    assert verdict(groups=10) == verdict()


def test_without_intervals_nothing_is_shown():
    """As of four patients."""
    few = ends("lift", 0.008) | ends("lift_over_fixed", -0.003) | ends("headroom", 0.05)
    assert verdict(tried("top_bottom", 0.29, None, None), groups=4, **few) == (
        f"top pick is not shown to beat the base (+0.8 Dice points), not shown to differ from {OTHERS} (-0.3 Dice "
        f"points; {BEST}); 29 % of its top_bottom pairs are wrong; measured on 4 patients or exams only; "
        "do not train on it: too few patients to tell its pairs from a coin's"
    )


# ---- a pair set ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.01, 0.2, "RN-DPO"),
        (-0.2, -0.01, "DPO"),
        (-0.1, 0.2, "undecided"),
        (0.0, 0.2, "undecided"),
        (None, None, "undecided"),
    ],
)
def test_whom_the_noise_favours(low, high, said):
    assert noise_verdict(ends("noise_difference", 0.1, low, high)) == said


CLEAN = ends("noise_rate", 0.2, 0.1, 0.3)


def warned(
    judge: dict[str, Any], pairs: dict[str, Any], groups: int = 40, empty: int = 0, **notes: str | None
) -> list[AuditWarning]:
    """One judge `j` and one pair set `p`, null but for what is given."""
    rows = (
        ({"judge": "j", "cases": 4, "abstained": 0.0}, judge, schema.AUDIT_JUDGES),
        ({"pairs": "p", "judge": "j", "strategy": "top_base", "mined": 9}, pairs, schema.AUDIT_PAIRS),
    )
    one, two = (pl.DataFrame([dict.fromkeys(t.columns) | row | given], schema=t.columns) for row, given, t in rows)
    return warnings(one, two, Validation(50, groups, empty), notes)


def of_p(text: str) -> AuditWarning:
    return {"pairs": "p", "text": f"pair set 'p': {text}"}


def test_a_good_judge_and_clean_pairs_have_no_warning():
    assert warned(GOOD, CLEAN, p=None) == []


@pytest.mark.parametrize(
    ("lift", "said"),
    [((0.0123, -0.004, 0.03), "+1.2 [-0.4, +3.0]"), ((0.01,), "+1.0"), ((None,), "unknown")],
)
def test_a_judge_whose_lift_may_be_0(lift, said):
    text = f"the top pick of judge 'j' is not shown to beat the base (lift {said} Dice points)"
    assert warned(ends("lift", *lift), CLEAN) == [of_p(text)]


@pytest.mark.parametrize(("end", "said"), [((0.1, 0.5), "29 % [10, 50]"), ((None, None), "29 %")])
def test_pairs_that_may_be_coin_flips(end, said):
    text = (
        f"{said} of its validation pairs are ordered wrongly, not clearly below one half; do not train on it without "
        "an anchor"
    )
    assert warned(GOOD, ends("noise_rate", 0.29, *end)) == [of_p(text)]


def test_an_empty_pair_set_is_only_called_empty():
    text = "nothing could be mined on validation, so nothing is known about it"
    assert warned({}, {"mined": 0}) == [of_p(text)]


def test_notes_on_the_calibration_are_repeated():
    assert warned(GOOD, CLEAN, p="drawn towards one half") == [of_p("drawn towards one half")]


def test_few_patients_are_a_warning_about_all():
    (few,) = warned(GOOD, CLEAN, groups=9)
    assert few == {
        "pairs": None,
        "text": "validation has 9 patients or exams: so few show little, fewer than 5 nothing; label more validation "
        "cases before believing a judge",
    }


def test_cases_without_foreground_are_a_warning_about_all():
    (empty,) = warned(GOOD, CLEAN, empty=3)
    assert empty == {
        "pairs": None,
        "text": "3 of 50 validation cases have no foreground: a class that is absent counts 1 where the mask has "
        "none of it, else 0, so few such cases may decide lift, headroom and noise",
    }


def test_nothing_known_is_one_warning():
    ((pairs, text),) = [(warning["pairs"], warning["text"]) for warning in nothing_known()]
    assert pairs is None
    assert str(text).endswith("label some cases and add 'validation' to propose.splits")


def test_a_judge_that_always_picks_one_proposal_is_named():
    """Over two cases: `j` picks slot 1 in both, `k` another one in each; ties go to the first slot."""
    rows = pl.DataFrame(
        {
            "case_id": ["a", "a", "b", "b"],
            "sampler": ["base", "mean"] * 2,
            "setting": ["base", "p>=0.3"] * 2,
            "score_j": [0.1, 0.2, 0.4, 0.5],
            "score_k": [0.1, 0.2, 0.5, 0.5],
            "score_none": [None, 0.2, None, None],
        }
    )
    found = constant_picks(rows, {"p": "j", "q": "k", "r": "none"})
    assert [(one["pairs"], one["text"]) for one in found] == [
        (
            "p",
            "pair set 'p': judge 'j' picks 'mean p>=0.3' in all 2 validation cases, so its pairs prefer one fixed "
            "proposal and say nothing of single images",
        )
    ]

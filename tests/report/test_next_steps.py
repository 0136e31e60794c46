"""What to do next: every rule on numbers worked by hand, with the case beside it to which the rule does not apply."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.measures.numbers import Estimate
from pipeline.promotion.knobs import Promotion
from pipeline.promotion.record import Comparison, Considered, PromotionRecord
from pipeline.report.arms import Results
from pipeline.report.headline import Headline
from pipeline.report.next_steps import next_steps
from pipeline.report.step_numbers import FixedProposal, Judged, Numbers, TrainedStudent, UsedPairs, best_judge
from pipeline.segmenter.validation_curve import ValidationCurve
from tests.fixtures.reporting import GAINS, NO_PAIRS, STUDENTS, Built, build

MINUS = "\N{MINUS SIGN}"
RISEN = ValidationCurve({0: 0.7, 100: 0.75, 200: 0.74}, 100)
SHOWN, NOT_SHOWN = Estimate(0.03, 0.01, 0.05), Estimate(0.003, -0.006, 0.012)
SEED = "Repeat the run with another seed"


def considered(name: str, gain: float, bound: float | None = 0.005) -> Considered:
    over_base = Comparison(gain=gain, lower_bound=bound, share_worse=0.0)
    return Considered(name=name, candidate=True, reason="a reason", over_base=over_base)


def record(*students: Considered, promoted: str | None = None, patients: int = 31) -> PromotionRecord:
    return PromotionRecord(
        promoted=promoted,
        reason="a reason",
        limits="limits",
        patients=patients,
        knobs=Promotion(),
        worse_by=0.02,
        students=students,
    )


def numbers(**given: Any) -> Numbers:
    """Numbers of a run to which no rule applies but that of the seed."""
    plain: dict[str, Any] = {
        "promotion": record(considered("rn_dpo", -0.01, -0.02)),
        "base": RISEN,
        "students": {"rn_dpo": TrainedStudent(RISEN, True)},
        "fixed": None,
        "headroom": Estimate(0.07, 0.05, 0.09),
        "judges": [Judged("agreement", SHOWN, NOT_SHOWN, 60, "use an anchor")],
        "used": {"favourite": UsedPairs("agreement", ("rn_dpo",))},
        "continued": True,
    }
    return Numbers(**plain | given)


def first(**given: Any) -> str:
    return next_steps(numbers(**given))[0]


def test_another_seed_is_always_left() -> None:
    (said,) = next_steps(numbers())
    assert said.startswith(f"{SEED}, and compare both (segpref compare): 1 seed")


def test_too_few_patients_to_promote() -> None:
    """14 of 15."""
    few = record(considered("rn_dpo", 0.02, None), patients=14)
    assert first(promotion=few) == (
        "Label more validation cases: validation has 14 patients, and a promotion needs 15 (promotion.min_patients)."
    )
    enough = record(considered("rn_dpo", -0.02, None), patients=15)
    assert first(promotion=enough).startswith(SEED)
    none = few.model_copy(update={"students": (few.students[0].model_copy(update={"candidate": False}),)})
    assert first(promotion=none).startswith(SEED)


@pytest.mark.parametrize(
    ("has_arm", "imitated_by", "action"),
    [
        (
            False,
            (),
            "Add the proposal 'flips mean' as an arm (kind: proposal) and a student of it (kind: imitate)",
        ),
        (True, (), "Let a student imitate the proposal 'flips mean' (kind: imitate)"),
        (True, ("copy", "other"), "Bring 'copy' and 1 more nearer to the target 'flips mean' by more steps or images"),
        (
            True,
            ("sft",),
            "Bring 'sft' nearer to the target 'flips mean' by a lower learning rate ('sft' was best at step 100 of "
            "200)",
        ),
    ],
)
def test_a_fixed_proposal_gains_more_untrained_than_any_student(has_arm, imitated_by, action) -> None:
    """+2.8 against +0.4 of the best of two students."""
    fixed = FixedProposal("flips mean", Estimate(0.028, 0.01, 0.05), has_arm, imitated_by)
    two = {name: TrainedStudent(RISEN, True) for name in ("rn_dpo", "sft")}
    promotion = record(considered("rn_dpo", 0.004), considered("sft", -0.01, -0.02))
    assert first(fixed=fixed, students=two, promotion=promotion) == (
        f"{action}: untrained it gains +2.8 [+1.0, +5.0] Dice points on validation, and the best student, 'rn_dpo', "
        "gains +0.40."
    )


@pytest.mark.parametrize(
    ("lift", "gain"),
    [
        (Estimate(0.028, 0.01, 0.05), 0.028),  # a student gains as much
        (Estimate(0.028, -0.01, 0.06), 0.004),  # the lift is not shown to be above 0
        (Estimate(0.028), 0.004),  # too few patients for an interval
    ],
)
def test_a_fixed_proposal_that_is_not_shown_to_be_better(lift, gain) -> None:
    fixed = FixedProposal("flips mean", lift, False, ())
    assert first(fixed=fixed, promotion=record(considered("rn_dpo", gain))).startswith(SEED)


def test_a_fixed_proposal_without_a_trained_student() -> None:
    fixed = FixedProposal("flips mean", SHOWN, False, ())
    assert first(fixed=fixed, students={}).endswith("on validation, and no student was trained.")


def test_a_base_that_was_best_at_its_last_step() -> None:
    """Steps 0, 100 and 200 with Dice 20, 72.7 and 73.9."""
    rising = ValidationCurve({0: 0.2, 100: 0.727, 200: 0.739}, 200)
    assert first(base=rising) == (
        "Train the base longer (base.optimisation.steps): it was best at its last step, 200, with validation Dice 73.9 "
        "after 72.7 at step 100. Until then a gain may come from longer training alone."
    )
    assert first(base=None).startswith(SEED)


def test_no_headroom() -> None:
    """The upper end of +0.4 is below half a point. An upper end of +0.5 is not."""
    assert first(headroom=Estimate(0.002, -0.001, 0.004)) == (
        f"Add samplers (propose.samplers): the best proposals are +0.2 [{MINUS}0.1, +0.4] Dice points above the base, "
        "less than 0.5, so no judge can find much better masks."
    )
    assert first(headroom=Estimate(0.002, -0.001, 0.005)).startswith(SEED)
    assert first(headroom=Estimate(None)).startswith(SEED)


def test_a_judge_without_lift_whose_pairs_a_student_used() -> None:
    weak = Judged("shape", NOT_SHOWN, NOT_SHOWN, 60, "do not train on it")
    strong = Judged("agreement", SHOWN, NOT_SHOWN, 60, "use an anchor")
    used = {"mined": UsedPairs("shape", ("a", "b", "c")), "more": UsedPairs("shape", ("d",))}
    assert first(judges=[strong, weak], used=used) == (
        f"Do not train 'a' and 2 more on pair set 'mined': judge 'shape' is not shown to beat the base (lift +0.3 "
        f"[{MINUS}0.6, +1.2] Dice points), and judge 'agreement' is (+3.0 [+1.0, +5.0]). The same holds for 1 more."
    )
    assert first(judges=[weak], used={"mined": used["mined"]}).endswith("and no other judge is.")
    assert first(judges=[strong, weak]).startswith(SEED)


def test_a_student_that_was_best_before_any_training() -> None:
    """73.9 at the start, then 73.1 and 73.6. `supervised` is no such student: its pairs cannot be changed."""
    flat = ValidationCurve({0: 0.739, 100: 0.731, 200: 0.736}, 0)
    students = {"rn_dpo": TrainedStudent(flat, True), "supervised": TrainedStudent(flat, False)}
    promotion = record(considered("rn_dpo", -0.01, -0.02), considered("supervised", -0.01, -0.02))
    assert first(students=students, promotion=promotion) == (
        "Change the pairs or targets of 'rn_dpo': training on them never raised validation Dice, which was 73.9 at "
        "step 0 of 200 and at most 73.6 later."
    )
    assert first(students={"supervised": students["supervised"]}, promotion=promotion).startswith(SEED)


def test_a_better_judge_that_no_student_used() -> None:
    better = Judged("pairwise", SHOWN, Estimate(0.02, 0.001, 0.042), 60, "use an anchor")
    agreement = numbers().judges[0]
    assert first(judges=[better, agreement]) == (
        "Train on pairs of judge 'pairwise': its top picks are +2.0 [+0.1, +4.2] Dice points above the best fixed "
        "proposal, and no pair set of a student has this judge."
    )
    assert first(judges=[better], used={"p": UsedPairs("pairwise", ("rn_dpo",))}).startswith(SEED)


def test_the_best_judge_is_one_that_is_shown_to_beat_the_fixed_proposal() -> None:
    """`fixed` always takes the same proposal. `wide` has the larger lift, and `sure` alone is shown to be better."""
    fixed = Judged("fixed", Estimate(0.06, 0.05, 0.07), SHOWN, 60, "", fixed=True)
    wide = Judged("wide", Estimate(0.05, 0.01, 0.09), NOT_SHOWN, 60, "")
    sure = Judged("sure", Estimate(0.04, 0.03, 0.05), SHOWN, 60, "")
    assert best_judge([fixed, wide, sure]) == sure
    assert best_judge([fixed, wide]) == wide
    assert best_judge([fixed]) is None


def test_the_number_of_patients_that_would_show_a_gain() -> None:
    """+1.2 with a bound of -0.3 on 31 patients: 31 (1.5 / 1.2)^2 = 48.4, so 49. For +0.5 and -1.0 it would be 280."""
    near = record(considered("far", 0.005, -0.01), considered("rn_dpo", 0.012, -0.003))
    assert first(promotion=near) == (
        "Label validation cases of about 49 patients instead of 31: 'rn_dpo' gains +1.20 Dice points with a lower "
        f"bound of {MINUS}0.30, which would then be above 0 if gain and spread stay the same."
    )
    assert first(promotion=record(considered("rn_dpo", 0.005, -0.01))).startswith(SEED)
    assert first(promotion=record(considered("rn_dpo", 0.012, 0.003))).startswith(SEED)


def test_a_run_without_continued_training() -> None:
    assert first(continued=False) == (
        "Add the student 'supervised: {pairs: none, objective: {kind: supervised}}': without it, a gain of the trained "
        "student may come from longer training alone."
    )


def test_a_promoted_student_is_used_and_starts_the_next_round_if_there_is_headroom() -> None:
    promoted = record(considered("rn_dpo", 0.03), promoted="rn_dpo")
    assert first(promotion=promoted) == (
        "Use 'rn_dpo' (segpref predict), or start the next round from it (segpref next-round): the "
        "best proposals are +7.0 [+5.0, +9.0] Dice points above the base."
    )
    assert next_steps(numbers(promotion=promoted, headroom=Estimate(0.001, 0.0, 0.002)))[1] == (
        "Use 'rn_dpo' (segpref predict)."
    )


def test_students_that_were_best_at_their_last_step() -> None:
    rising = ValidationCurve({0: 0.7, 100: 0.72, 200: 0.75}, 200)
    students = {name: TrainedStudent(rising, True) for name in ("rn_dpo", "sft")}
    promotion = record(considered("rn_dpo", -0.01, -0.02), considered("sft", -0.01, -0.02))
    assert first(students=students, promotion=promotion) == (
        "Train students longer (training.optimisation.steps): 'rn_dpo' and 1 more were best at the last step, 200, "
        "with validation Dice 75.0 after 70.0 at step 0."
    )


def test_the_most_important_step_comes_first() -> None:
    """Too few patients, then the fixed proposal, then the base."""
    few = record(considered("rn_dpo", 0.0, None), patients=6)
    rising = ValidationCurve({0: 0.2, 100: 0.7}, 100)
    fixed = FixedProposal("flips mean", SHOWN, False, ())
    said = next_steps(numbers(promotion=few, base=rising, fixed=fixed, continued=False))
    starts = ("Label more", "Add the proposal", "Train the base", "Add the student", SEED)
    assert len(said) == len(starts)
    assert all(sentence.startswith(start) for sentence, start in zip(said, starts, strict=True))


# ---- from the files of a run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The base has 3 of the 6 pixels of the truth (Dice 2/3), 's 1' has 5 (10/11) and 's 2' has 10 (3/4)."""
    return build(tmp_path_factory.mktemp("run"))


def test_the_numbers_of_a_run(built: Built) -> None:
    """The lift of 's 1' is 10/11 - 2/3 in all five cases. Students that learned from truth of the pool are left out."""
    found = Numbers.of(built.run)
    assert found.fixed is not None
    assert (found.fixed.name, found.fixed.has_arm, found.fixed.imitated_by) == ("s 1", False, ())
    assert found.fixed.lift == pytest.approx((10 / 11 - 2 / 3,) * 3)
    assert found.base == ValidationCurve({0: 0.1, 6: 0.5}, 6)
    assert found.students == {
        name: TrainedStudent(ValidationCurve({0: 0.5, 2: 0.6, 4: 0.55}, 2), name == "rn_cdpo")
        for name in ("supervised", "rn_cdpo")
    }
    assert found.used == {"mined": UsedPairs("agreement", ("rn_cdpo",))}
    assert [judge.name for judge in found.judges] == ["agreement"]
    assert found.continued


def test_students_that_imitate_the_fixed_proposal_are_found(tmp_path: Path) -> None:
    """By their objective, and by a term of their anchor."""
    term = {"imitate": {"proposal": "s 1"}}
    students = {
        "copy": {"pairs": "none", "objective": {"kind": "imitate", "proposal": "s 1"}, "anchor": None},
        "other": {"pairs": "none", "objective": {"kind": "imitate", "proposal": "s 2"}, "anchor": term},
        "rn_cdpo": STUDENTS["rn_cdpo"],
    }
    gains = {name: GAINS["rn_cdpo"] for name in students}
    fixed = Numbers.of(build(tmp_path, students=students, gains=gains).run).fixed
    assert fixed is not None
    assert fixed.imitated_by == ("copy", "other")


def headline(built: Built) -> Headline:
    return Headline.of(built.run, Results.of(built.run))


def test_without_a_promotion_the_best_student_on_validation_is_named(built: Built) -> None:
    """rn_cdpo gains 20 in each case, and supervised +10 -10 +10 -10 0. The oracle gains more and is for research."""
    assert re.fullmatch(
        r"No student .* \(15\)\. Best on validation, measured on test: "
        r"student 'rn_cdpo' gains \+20\.0 \[\+20\.0, \+20\.0\] Dice points "
        r"over the base and \+20\.0 \[\+1[0-9]\.., \+2[0-9]\..\] over 'supervised', on 5 test cases\. "
        r"Candidates: .*'rn_cdpo'.*\. Earlier runs and rounds on the same validation cases are not corrected for\.",
        headline(built).model,
    )


@pytest.mark.parametrize(
    ("gain", "answer"),
    [
        ((0.2,) * 5, "Yes: student 'rn_cdpo' gains +20.0 [+20.0, +20.0]"),
        ((0.2, -0.2, 0.1, -0.1, 0.0), "Not shown on test: student 'rn_cdpo' gains 0.0"),
        ((-0.1,) * 5, f"No: student 'rn_cdpo' gains {MINUS}10.0 [{MINUS}10.0, {MINUS}10.0]"),
    ],
)
def test_test_says_whether_the_promoted_student_is_better(tmp_path: Path, gain, answer) -> None:
    made = build(tmp_path, students={"rn_cdpo": STUDENTS["rn_cdpo"]}, gains={"rn_cdpo": gain})
    promoted = record(considered("rn_cdpo", 0.0394, 0.0248), promoted="rn_cdpo")
    promoted.save(tmp_path / "promoted")
    found = headline(Built(tmp_path, replace(made.run, promoted=tmp_path / "promoted")))
    assert found.model.startswith(answer)
    assert found.model.endswith(
        "Validation chose it: +3.94 on 31 cases, with a lower bound of +2.48. Candidates: 'rn_cdpo'. "
        "Earlier runs and rounds on the same validation cases are not corrected for."
    )


def test_the_judge_has_its_lift_over_the_fixed_proposal_and_the_advice_of_the_audit(built: Built) -> None:
    assert headline(built).judge == (
        "'agreement': its top picks are +2.0 [+1.0, +3.0] Dice points against the best fixed sampler and "
        "+2.0 [+1.0, +3.0] against the base, on 3 validation cases. Audit: verdict <on> agreement."
    )


def test_a_run_without_students_and_judges_says_so(tmp_path: Path) -> None:
    found = headline(build(tmp_path, scorers={}, pairs={"none": NO_PAIRS}, students={}))
    assert found.model == "params.yaml has no students, so no model was compared with the base."
    assert found.judge == "params.yaml has no judges and no score tables."
    assert found.steps

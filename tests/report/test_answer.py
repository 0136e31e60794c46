"""The answer of a run in the report: arms with their gains, worst cases, and F1 of components where it was measured."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import polars as pl
import pytest

from pipeline.evaluation.evaluate import summary
from pipeline.evaluation.metrics import Evaluation
from pipeline.measures.numbers import Estimate
from pipeline.promotion.record import Comparison
from pipeline.report.answer import answer, gains_table, gap_recovered, objective_text
from pipeline.report.arms import Results, shown_student
from pipeline.report.blocks import Note, Section, Table
from pipeline.report.promotion import promotion
from pipeline.report.run import Arm, Run
from pipeline.report.worst_cases import worst_cases
from pipeline.store import schema
from tests.fixtures.reporting import FULL, GAINS, STUDENTS, Built, build, row_of, table

TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"
KNOBS = Evaluation(nsd_tolerance=1.0, bootstrap=50, components=True, component_overlap=0.6)


def results(run: Run) -> Section:
    return answer(run, Results.of(run))


def gains(run: Run) -> Table:
    found = gains_table(run, Results.of(run))
    assert found is not None
    return found


def test_an_objective_that_makes_its_pairs_says_who_ranks_them() -> None:
    knobs = {"kind": "mapo", "link": {"kind": "sigmoid"}, "normaliser": "region"}
    assert objective_text({**knobs, "ranker": "truth"}) == f"mapo by truth: sigmoid {TIMES} region"
    assert objective_text({**knobs, "ranker": {"kind": "agreement"}}) == f"mapo by agreement: sigmoid {TIMES} region"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("run"))


def test_results_of_removed_students_are_not_shown(built: Built) -> None:
    kept = {name: student for name, student in built.run.params.students.items() if name != "supervised"}
    run = replace(built.run, params=built.run.params.model_copy(update={"students": kept}))
    arms = gains(run)
    assert {row[0].text for row in arms.cells} == {"base", "rn_cdpo", "oracle_dpo", "full"}


def test_arms_show_dice_in_points_with_signed_gains(built: Built) -> None:
    """Base: mean of .3 .4 .5 .6 is .45, so 45.0; rn_cdpo adds .2 to each case: 65.0, gain +20.0 [+20.0, +20.0]."""
    arms = gains(built.run)
    assert row_of(arms, "base")["test Dice"].text == "45.0"
    student = row_of(arms, "rn_cdpo")
    assert student["test Dice"].text == "65.0"
    gain = student["over base"]
    assert (gain.text, gain.interval, gain.sign) == ("+20.0", "[+20.0, +20.0]", 1)
    assert student["cases worse"].text == "0 of 5"
    recipe = row_of(table(results(built.run), "Recipe of each student"), "rn_cdpo")
    assert (recipe["pair set"].text, recipe["judge"].text) == ("mined", "agreement")
    assert recipe["objective"].text == f"cdpo (e 0.2) {TIMES} region"
    assert recipe["anchor"].text == "supervised 1"
    assert recipe["best step"].text == "2 of 4"
    further = row_of(table(results(built.run), "Further test results of all arms"), "rn_cdpo")
    assert (further["peak"].text, further["drop"].text) == ("66.0", "+1.0")


def test_a_gain_whose_interval_includes_zero_is_not_marked(built: Built) -> None:
    """Gains +.1 -.1 +.1 -.1: mean 0, and two of four patients lose more than two points."""
    student = row_of(gains(built.run), "supervised")
    assert (student["over base"].text, student["over base"].sign) == ("0.0", 0)
    assert student["cases worse"].text == "2 of 5"


def test_gap_recovered_is_the_share_of_full_supervision_s_gain(built: Built) -> None:
    """.2 of .4 is 50 %."""
    arms = table(results(built.run), "Further test results of all arms")
    found = {name: row_of(arms, name)["gap recovered"].text for name in ("base", *STUDENTS)}
    assert found == {"base": "—", "supervised": "0 %", "rn_cdpo": "50 %", "oracle_dpo": "75 %", "full": "—"}


def test_gap_recovered_is_left_out_where_full_supervision_is_not_shown_to_gain(tmp_path: Path) -> None:
    made = build(tmp_path, gains={**GAINS, "full": (0.5, -0.2, 0.4, -0.1, 0.15)})
    arms = table(results(made.run), "Further test results of all arms")
    assert {row_of(arms, name)["gap recovered"].text for name in ("base", *STUDENTS)} == {"—"}
    assert "is not shown to be above 0" in arms.meanings["gap recovered"]


# ---- rivals ------------------------------------------------------------------------------------------------------

PROPOSALS = {
    "ensemble": {"pairs": "none", "objective": {"kind": "proposal", "pick": "ensemble mean"}},
    "first": {"pairs": "none", "objective": {"kind": "proposal", "pick": "ensemble member_1"}},
}
ALL = {**STUDENTS, "sft": {"pairs": "mined", "objective": {"kind": "sft"}, "anchor": None}, **PROPOSALS}
RIVALRY: dict[str, tuple[float, ...]] = {
    **GAINS,
    "supervised": (0.3,) * 5,
    "rn_cdpo": (0.2,) * 5,
    "sft": (0.35,) * 5,
    "ensemble": (0.1,) * 5,
    "first": (0.15,) * 5,
}


@pytest.fixture(scope="module")
def rivalry(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Of two fixed proposals, `ensemble` is better on validation and `first` on test."""
    validated = {"ensemble": (0.9,) * 5, "first": (0.1,) * 5}
    return build(tmp_path_factory.mktemp("rivalry"), students=ALL, gains=RIVALRY, validated=validated)


def test_arms_come_in_the_groups_of_their_families(rivalry: Built) -> None:
    """An arm whose judge reads the truth of the pool is a ceiling, whatever its objective."""
    arms = gains(rivalry.run)
    assert [row[0].text for row in arms.cells] == [
        *("base", "ensemble", "first", "supervised", "sft", "rn_cdpo", "full", "oracle_dpo"),
    ]
    groups = {0: "No training", 3: "Labels only", 4: "Imitation", 5: "Preference", 6: "Ceilings"}
    assert arms.groups == groups


def test_an_arm_below_continued_training_is_never_marked_as_good(rivalry: Built) -> None:
    """rn_cdpo gains 20 over the base and loses 10 to supervised (30); sft gains 5 over supervised."""
    arms = gains(rivalry.run)
    student = row_of(arms, "rn_cdpo")
    assert (student["over base"].text, student["over base"].sign) == ("+20.0", 0)
    assert (student["over supervised"].text, student["over supervised"].sign) == (f"{MINUS}10.0", -1)
    good = row_of(arms, "sft")
    assert (good["over base"].sign, good["over supervised"].text) == (1, "+5.0")
    assert good["over supervised"].sign == 1
    itself = row_of(arms, "supervised")
    assert (itself["over base"].sign, itself["over supervised"].text) == (0, "—")


def test_the_best_fixed_proposal_is_chosen_on_validation(rivalry: Built) -> None:
    """`first` is better on test, so it gains 5 over the rival; sft gains 35 - 10 = 25."""
    arms = gains(rivalry.run)
    found = {name: row_of(arms, name)["over fixed proposal"].text for name in ("ensemble", "first", "sft", "base")}
    assert found["ensemble"] == "—"
    assert found["first"] == "+5.0"
    assert found["sft"] == "+25.0"
    assert found["base"] == f"{MINUS}10.0"
    assert "The fixed proposal is 'ensemble' (ensemble mean), the best such arm on validation." in arms.note
    assert "7 arms were compared" in arms.note


def test_passes_of_a_prediction_are_those_of_its_network_or_of_its_proposal(rivalry: Built) -> None:
    """Base and two members for the mean of the ensemble, one network for all others."""
    arms = gains(rivalry.run)
    passes = {row[0].text: row_of(arms, row[0].text)["passes"].text for row in arms.cells}
    assert passes == {**dict.fromkeys(["base", *ALL], "1"), "ensemble": "3"}


def test_without_continued_training_the_base_decides(tmp_path: Path) -> None:
    students = {name: student for name, student in STUDENTS.items() if name != "supervised"}
    arms = gains(build(tmp_path, students=students).run)
    assert not {"over supervised", "over fixed proposal"} & set(arms.columns)
    assert row_of(arms, "rn_cdpo")["over base"].sign == 1
    assert "gain over the base lies above 0" in arms.meanings["\N{BLACK UP-POINTING TRIANGLE}"]


def test_arms_of_other_numbers_of_steps_than_continued_training_are_named(built: Built, tmp_path: Path) -> None:
    """All have 4 steps, and `full` then has 8."""
    assert "'supervised' is 4 steps of training continued on the labels. 4 arms" in gains(built.run).note
    shutil.copytree(built.run.students, tmp_path / "students")
    record = built.run.record("full").model_copy(update={"steps": 8})
    record.save(tmp_path / "students/full")
    note = gains(replace(built.run, students=tmp_path / "students")).note
    assert "Other arms trained other numbers of steps: 'full' 8." in note


def test_a_pair_set_of_labelled_cases_uses_no_truth_of_the_pool(built: Built) -> None:
    """The offline form of MAPO: the oracle orders masks of labelled cases."""
    pairs = dict(built.run.params.pairs)
    pairs["ceiling"] = pairs["ceiling"].model_copy(update={"split": "labelled"})
    run = replace(built.run, params=built.run.params.model_copy(update={"pairs": pairs}))
    assert {arm.name: arm.family for arm in run.arms}["oracle_dpo"] == "preference"


@pytest.mark.parametrize(
    ("full", "expected"),
    [
        (Estimate(0.4, 0.1, 0.6), 0.5),
        (Estimate(0.4, -0.1, 0.6), None),  # includes 0
        (Estimate(-0.4, -0.6, -0.1), None),  # full supervision hurts: a share of it means nothing
        (Estimate(0.4), None),  # a single patient has no interval
        (None, None),
    ],
)
def test_gap_recovered(full: Estimate | None, expected: float | None) -> None:
    assert gap_recovered(0.2, full) == expected


def test_arms_that_learned_from_the_pool_s_truth_are_marked(built: Built) -> None:
    arms = gains(built.run)
    tags = {name: row_of(arms, name)["arm"].tag for name in ("base", *STUDENTS)}
    assert tags == {
        "base": "",
        "supervised": "",
        "rn_cdpo": "",
        "oracle_dpo": "research only",
        "full": "research only",
    }


def test_unbounded_links_are_told_from_objectives_without_a_link(built: Built) -> None:
    pushed = table(results(built.run), "Preference push on each student")
    assert row_of(pushed, "oracle_dpo")["aimed shift"].text == "unbounded"
    assert row_of(pushed, "supervised")["aimed shift"].text == "—"
    assert row_of(pushed, "rn_cdpo")["flipped share"].text == "25 %"


@pytest.mark.parametrize(
    ("link", "normaliser", "said"),
    [
        ({"kind": "cdpo", "e": "calibrated"}, "region", "per pair"),
        ({"kind": "cdpo", "e": "votes"}, "voxel", "per voxel"),
        ({"kind": "robust", "e": "calibrated"}, "region", "unbounded"),
    ],
)
def test_error_rates_of_pairs_and_voxels_give_each_a_shift(tmp_path: Path, link, normaliser, said) -> None:
    objective = {"kind": "preference", "link": link, "normaliser": normaliser}
    students = {**STUDENTS, "rn_cdpo": {**STUDENTS["rn_cdpo"], "objective": objective}}
    pushed = table(results(build(tmp_path, students=students).run), "Preference push on each student")
    assert row_of(pushed, "rn_cdpo")["aimed shift"].text == said


def test_worst_cases_are_of_the_best_practical_student(tmp_path: Path) -> None:
    """supervised gains .2 on average, so it is shown; t2 loses most (-.1), and 'x' has the lowest Dice (.3 + .1)."""
    made = build(tmp_path, gains={**GAINS, "supervised": (0.1, 0.6, -0.1, 0.3, 0.2), "rn_cdpo": (0.0,) * 5})
    found = worst_cases(made.run)
    assert found.blocks[0].lines[0].startswith("'supervised' is shown")  # type: ignore[union-attr]
    losses = table(found, "Largest losses against the base").cells
    assert [c.text for c in losses[0]] == ["t2", "50.0", "40.0", f"{MINUS}10.0", "p2"]
    assert [row[0].text for row in table(found, "Lowest Dice").cells[:2]] == ["<b>x", "t2"]


def test_a_student_of_validation_labels_is_not_the_best_on_validation(tmp_path: Path) -> None:
    """It has trained on the cases on which it looks best. Without a candidate nobody is shown."""
    spent = {"pairs": "none", "objective": {**FULL, "kind": "validation_labels"}}
    gained = {**GAINS, "spent": (0.4,) * 5}
    for name in ("both", "alone"):
        (tmp_path / name).mkdir()
    made = build(tmp_path / "both", students={**STUDENTS, "spent": spent}, gains=gained)
    shown = shown_student(made.run)
    assert shown is not None
    assert shown.name == "rn_cdpo"
    found = worst_cases(made.run).blocks[0].lines[0]  # type: ignore[union-attr]
    assert found == "'rn_cdpo' is shown: on validation it is the best of all candidates for promotion."
    alone = build(tmp_path / "alone", students={"spent": spent}, gains=gained)
    assert shown_student(alone.run) is None
    assert "No student is a candidate" in worst_cases(alone.run).blocks[0].lines[0]  # type: ignore[union-attr]


def test_the_promoted_student_is_shown(tmp_path: Path) -> None:
    """Even where another candidate is better on validation."""
    run = build(tmp_path).run
    record = run.promotion.model_copy(update={"promoted": "supervised"})
    record.save(tmp_path / "promoted")
    promoted = replace(run, promoted=tmp_path / "promoted")
    assert worst_cases(promoted).blocks[0].lines[0] == "'supervised' is shown: it is the promoted student."  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({"kind": "sft"}, "sft"),
        ({"kind": "preference", "link": {"kind": "sigmoid"}, "normaliser": "none"}, f"sigmoid {TIMES} none"),
        (
            {"kind": "preference", "link": {"kind": "ipo", "tau": 0.5}, "normaliser": "region"},
            f"ipo (tau 0.5) {TIMES} region",
        ),
    ],
)
def test_objectives_are_named_by_link_and_normaliser(knobs: dict[str, Any], expected: str) -> None:
    assert objective_text(knobs) == expected


# ---- promotion ---------------------------------------------------------------------------------------------------


def test_all_students_are_listed_with_their_gain_and_the_reason(built: Built) -> None:
    """rn_cdpo gains .2 in each case. Five patients give no bound, and supervised loses .1 in two of them."""
    found = promotion(built.run)
    (students,) = (block for block in found.blocks if isinstance(block, Table))
    assert {row[0].text for row in students.cells} == set(STUDENTS)
    student = row_of(students, "rn_cdpo")
    assert (student["gain"].text, student["lower bound"].text, student["worse"].text) == ("+20.00", "—", "0 %")
    assert student["lower bound"].why == "no candidate, or too few patients"
    assert student["decision"].text == "validation has 5 patients, fewer than promotion.min_patients (15)"
    assert row_of(students, "supervised")["worse"].text == "40 %"
    assert row_of(students, "full")["decision"].text == ("no candidate: objective 'full' uses the labels of split pool")
    last = found.blocks[-1]
    assert isinstance(last, Note)
    assert "Earlier runs and rounds on the same validation cases are not corrected for" in last.lines[0]


def test_the_first_base_has_columns_of_its_own(built: Built, tmp_path: Path) -> None:
    record = built.run.promotion
    both = [
        one.model_copy(update={"over_first_base": Comparison(gain=-0.01, lower_bound=-0.02, share_worse=0.25)})
        for one in record.students
    ]
    record.model_copy(update={"students": tuple(both)}).save(tmp_path)
    (students,) = (b for b in promotion(replace(built.run, promoted=tmp_path)).blocks if isinstance(b, Table))
    row = row_of(students, "rn_cdpo")
    assert (row["gain, first base"].text, row["lower bound, first base"].text) == (f"{MINUS}1.00", f"{MINUS}2.00")
    assert row["gain"].text == "+20.00"


# ---- F1 of components ------------------------------------------------------------------------------------------------


def run_of(f1: float | None) -> Run:
    """A run whose base has this F1 in both test cases and classes."""
    rows = [
        {
            **{"case_id": case, "class": label, "group": case, "dice": 0.5, "dice_peak": 0.5},
            **{"nsd": 0.5, "hd95": 2.0, "assd": 1.0, "f1": f1, "distance_unit": "px"},
            **{"volume_error": 0.0, "absolute_volume_error": 0.0},
            **{"truth_empty": False, "prediction_empty": False},
        }
        for case in ("a", "b")
        for label in (1, 2)
    ]
    metrics = summary(pl.DataFrame(rows, schema=schema.EVALUATION.columns), None, KNOBS)
    cases = SimpleNamespace(class_names=["background", "nucleus", "gland"])
    nothing = SimpleNamespace(promoted=None, students=())
    return cast(Run, SimpleNamespace(arms=[Arm("base", metrics)], cases=cases, units="cases", promotion=nothing))


def tables(section: Section) -> dict[str, Table]:
    return {block.caption: block for block in section.blocks if isinstance(block, Table)}


def test_f1_is_a_column_and_a_table_where_it_was_measured() -> None:
    run = run_of(0.25)
    arms = tables(results(run))["Further test results of all arms"]
    assert [cell.text for cell in arms.cells[0]][list(arms.columns).index("F1")] == "25.0"
    assert "IoU is above 0.6" in arms.meanings["F1"]
    by_class = tables(worst_cases(run))["F1 of components by class, points"]
    assert by_class.rows == [["base", "25.0", "25.0"]]


def test_f1_is_nowhere_where_it_was_not_measured() -> None:
    run = run_of(None)
    arms = tables(results(run))["Further test results of all arms"]
    assert "F1" not in arms.columns
    assert "F1" not in arms.meanings
    assert not any("F1" in caption for caption in tables(worst_cases(run)))


def test_cases_that_were_not_measured_are_named(built: Built) -> None:
    assert "Not measured" not in gains(built.run).note
    run = replace(built.run, evaluation=built.run.evaluation)
    run.arms[0].metrics["unmeasured"] = 2
    assert gains(run).note.endswith("Not measured: 2 test cases whose truth is unknown everywhere.")

"""What the report says of judges, pair sets and their calibration: the audit's numbers, and why some are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.report.audit_figures import (
    CalibrationCurve,
    Distribution,
    accuracies,
    distributions,
    lifts,
    reliabilities,
)
from pipeline.report.audit_measures import LIFT, OF_JUDGES, gaps
from pipeline.report.blocks import Figure, Note, Section
from pipeline.report.calibration import calibration
from pipeline.report.headline import Headline
from pipeline.report.judges import fixed_lift, judges
from pipeline.report.page import Head, render
from pipeline.report.pair_sets import pair_sets
from pipeline.store.schema import AUDIT_JUDGES
from tests.fixtures.reporting import (
    HEADROOM,
    JUDGES,
    PAIRS,
    Audited,
    Built,
    Scene,
    bin_row,
    build,
    fit,
    judge_row,
    knot_rows,
    pairs_row,
    plain_audit,
    plain_scene,
    row_of,
    table,
)

MINUS = "\N{MINUS SIGN}"
SCORERS = {
    "agreement": {"kind": "agreement"},
    "entropy": {"kind": "entropy"},
    "oracle": {"kind": "oracle"},
    "shape": {"kind": "shape"},
}


def made(folder: Path, scorers: dict[str, Any] = JUDGES, sets: dict[str, Any] = PAIRS, **replaced: Any) -> Built:
    """A run without students whose audit has some tables replaced."""
    audited = plain_audit(scorers, sets)
    parts = {**vars(audited), **replaced}
    scores = {name: [[0.1, 0.9, 0.2, 0.9]] * 9 for name in scorers}
    plain = plain_scene({})
    scene = Scene(plain.splits, plain.truth, plain.proposed, scores)
    return build(folder, scorers=scorers, pairs=sets, students={}, audited=Audited(**parts), scene=scene)


def words(section: Section) -> str:
    return " ".join(line for block in section.blocks if isinstance(block, Note) for line in block.lines)


def captions(section: Section) -> list[str]:
    return [block.caption for block in section.blocks if isinstance(block, Figure)]


# ---- judges ------------------------------------------------------------------------------------------------------


def test_judges_come_by_lift_with_those_that_read_the_truth_last(tmp_path: Path) -> None:
    """shape +3.0, agreement +1.0, entropy unknown; the oracle has +9.0 and stands apart all the same."""
    rows = [
        judge_row("agreement", lift=(0.01, -0.01, 0.03), lift_over_fixed=(-0.01, -0.02, 0.01)),
        judge_row("entropy", cases=0),
        judge_row("oracle", lift=(0.09, 0.05, 0.1)),
        judge_row("shape", lift=(0.03, 0.01, 0.05), headroom=(0.08, 0.05, 0.1)),
    ]
    section = judges(made(tmp_path, SCORERS, judges=rows).run)
    verdicts = table(section, "Verdict of the audit on each judge")
    assert [row[0].text for row in verdicts.cells] == ["shape", "agreement", "entropy", "oracle"]
    assert [row[0].tag for row in verdicts.cells] == ["", "", "", "research only"]
    best = row_of(verdicts, "shape")
    assert best["verdict"].text == "verdict <on> shape"
    assert (best["lift@1"].text, best["lift@1"].interval, best["lift@1"].sign) == ("+3.0", "[+1.0, +5.0]", 1)
    assert row_of(table(section, "Top pick of each judge"), "shape")["headroom"].text == "8.0"
    assert row_of(verdicts, "agreement")["lift@1"].sign == 0


def test_the_lift_of_the_best_fixed_sampler_is_what_is_left_of_the_judge_s(tmp_path: Path) -> None:
    """A lift of 1.0 that is 1.0 less than the fixed sampler's: the fixed sampler has 2.0."""
    rows = [judge_row("agreement", lift=(0.01, 0.0, 0.02), lift_over_fixed=(-0.01, -0.02, 0.01))]
    tops = table(judges(made(tmp_path, judges=rows).run), "Top pick of each judge")
    fixed = row_of(tops, "agreement")["best fixed sampler"]
    assert (fixed.text, fixed.interval) == ("+2.0", "s 1")
    assert fixed_lift(judge_row("agreement", lift=(0.01, 0.0, 0.02))) is None


def test_every_measure_of_the_audit_is_a_column_with_its_meaning(tmp_path: Path) -> None:
    section = judges(made(tmp_path).run)
    top = table(section, "Top pick of each judge")
    order = table(section, "Order of proposals and cases")
    assert {measure.title for measure in OF_JUDGES} <= {*top.columns, *order.columns}
    measured = {name.removesuffix("_low") for name in AUDIT_JUDGES.columns if name.endswith("_low")}
    assert {measure.column for measure in OF_JUDGES} == measured
    assert {*top.meanings, *order.meanings} >= {measure.title for measure in OF_JUDGES}


def test_the_page_explains_columns_and_dashes(tmp_path: Path) -> None:
    page = render([judges(made(tmp_path, bins=[]).run)], Head(Headline("", "", []), None, {"data": "test"}))
    meaning = "True Dice of the best proposal minus true Dice of the top pick, in points."
    assert f"<dt>regret</dt><dd>{meaning}</dd>" in page
    assert '<th scope="col" class="number" title="True Dice of the best proposal minus' in page
    assert '<span title="needs a case with two scored proposals that differ in true Dice">—</span>' in page
    assert "verdict &lt;on&gt; agreement" in page


def test_dashes_are_explained_by_measure_and_by_judge() -> None:
    """a lacks everything, b has a lift without an interval and no AUROC; c has all."""
    whole = (0.1, 0.0, 0.2)
    rows = {
        "a": judge_row("a", cases=0),
        "b": judge_row("b", lift=(0.1, None, None)),
        "c": judge_row("c", lift=whole, auroc=whole),
    }
    auroc = next(measure for measure in OF_JUDGES if measure.column == "auroc")
    assert gaps((LIFT, auroc), rows) == (
        "Nothing could be measured for a: the measures need a validation case with two distinct proposals that the "
        "judge scored. Not measured for b: 'AUROC'. Needed: scored base predictions on both sides of "
        "audit.failure_below. No interval: the measure has a value for too few patients (groups)."
    )
    assert gaps((LIFT,), {"c": rows["c"]}) == ""


def test_intervals_of_too_few_patients_are_not_shown(tmp_path: Path) -> None:
    """The audit gives no ends then, and no gain is marked."""
    rows = [row | {"lift_low": None, "lift_high": None} for row in plain_audit(JUDGES, PAIRS).judges]
    found = row_of(table(judges(made(tmp_path, judges=rows).run), "Verdict of the audit on each judge"), "agreement")[
        "lift@1"
    ]
    assert (found.text, found.interval, found.sign) == ("+2.0", "no interval", 0)


def test_accuracy_by_gap_and_by_region_has_a_figure_each(tmp_path: Path) -> None:
    by_gap, by_region = captions(judges(made(tmp_path).run))[1:3]
    assert by_gap.startswith("Pair accuracy by the gap in true Dice")
    assert by_region.startswith("Pair accuracy by the size of the disagreement region")


def test_the_headroom_is_said_first(tmp_path: Path) -> None:
    block = judges(made(tmp_path).run).blocks[0]
    assert isinstance(block, Note)
    assert block.lines == ["Headroom left: the best proposals are +10.0 [+5.0, +15.0] Dice points above the base."]


def test_a_judge_without_bins_is_not_drawn(tmp_path: Path) -> None:
    empty = judges(made(tmp_path, bins=[]).run)
    assert "The audit has no pairs of proposals to sort by the gap in true Dice" in words(empty)
    assert not any(caption.startswith("Pair accuracy") for caption in captions(empty))


def test_an_audit_of_nothing_says_so(tmp_path: Path) -> None:
    nothing: dict[str, Any] = {"judges": [], "pairs": [], "strategies": [], "bins": [], "knots": [], "reliability": []}
    summary = {"validation_cases": 0, "headroom": HEADROOM, "calibration": {}, "warnings": []}
    run = made(tmp_path, **nothing, summary=summary).run
    assert "no judge, because no labelled validation case has proposals" in words(judges(run))
    assert "no pair set, because no labelled validation case has proposals" in words(pair_sets(run))
    assert "The pairs of 'mined' have no p_correct: the audit has no curve for it." in words(calibration(run))


# ---- pair sets ---------------------------------------------------------------------------------------------------


def test_pair_sets_name_their_students_their_noise_and_whom_it_favours(tmp_path: Path) -> None:
    """Noise 30 %, weighted by |D| 45 %: large regions are noisier by 15 points, which RN-DPO does not feel."""
    audited = plain_audit(JUDGES, PAIRS)
    audited.pairs = [
        pairs_row(
            *("mined", "agreement", "RN-DPO"),
            noise_rate=(0.3, 0.2, 0.4),
            weighted_noise=(0.45, 0.3, 0.6),
            noise_difference=(0.15, 0.05, 0.25),
            lift_top_quarter=(0.04, 0.01, 0.07),
        ),
        pairs_row("ceiling", "oracle", None, mined=0),
    ]
    audited.summary["warnings"] = [{"pairs": "mined", "text": "noisy"}]
    section = pair_sets(build(tmp_path, audited=audited).run)
    noise = table(section, "Noise of the pairs")
    found = row_of(noise, "mined")
    assert found["students"].text == "rn_cdpo"
    assert found["pair set"].tag == "see warnings"
    assert (found["noise rate, %"].text, found["weighted by |D|, %"].text) == ("30", "45")
    assert (found["difference"].text, found["difference"].sign) == ("+15.0", 0)
    assert found["favours"].text == "RN-DPO"
    empty = row_of(noise, "ceiling")
    assert empty["pair set"].tag == "research only"
    assert (empty["favours"].text, empty["favours"].why) == ("—", "needs a pair mined on validation")
    taught = table(section, "Content of the pairs")
    assert row_of(taught, "mined")["lift, top quarter"].sign == 1
    assert "Nothing could be measured for ceiling" in taught.note


def test_a_pair_set_that_no_student_uses_says_so(tmp_path: Path) -> None:
    noise = table(pair_sets(made(tmp_path).run), "Noise of the pairs")
    assert row_of(noise, "mined")["students"].text == "no student"


def test_standard_strategies_are_folded_with_research_last(tmp_path: Path) -> None:
    found = table(pair_sets(made(tmp_path, SCORERS).run), "Every judge with the standard strategies")
    assert found.folded
    assert [row[0].text for row in found.cells] == ["agreement", "entropy", "shape", "oracle"]
    assert row_of(found, "shape")["noise rate, %"].text == "20"


def test_strategies_of_removed_judges_are_not_shown(tmp_path: Path) -> None:
    more = plain_audit(SCORERS, PAIRS)
    found = table(pair_sets(made(tmp_path, strategies=more.strategies).run), "Every judge with the standard strategies")
    assert {row[0].text for row in found.cells} == {"agreement", "oracle"}


# ---- calibration -------------------------------------------------------------------------------------------------


def test_a_pair_set_without_a_curve_gives_its_reason(tmp_path: Path) -> None:
    knots = knot_rows("mined", "agreement", (0.1, 0.55), (0.8, 0.7))
    fits = {"mined": fit(None, "1 validation case"), "ceiling": fit(None, "no pair at all")}
    summary = {"validation_cases": 1, "headroom": HEADROOM, "calibration": fits, "warnings": []}
    section = calibration(made(tmp_path, knots=knots, reliability=[], summary=summary).run)
    assert "Pair set 'ceiling' has no curve: no pair at all." in words(section)
    assert "The pairs of 'ceiling' have no p_correct: no pair at all." in words(section)
    fitted = table(section, "Calibration of each pair set")
    assert row_of(fitted, "mined")["ECE"].text == "—"
    assert fitted.note == "No ECE and Brier score for ceiling, mined: both need two groups with pairs."
    assert captions(section)[0].startswith("Two panels for each pair set")


def test_cases_that_p_correct_cost_are_counted(tmp_path: Path) -> None:
    """The curve is .3 everywhere, so all three cases of the pool are left out of 'mined' and none of 'ceiling'."""
    knots = [*knot_rows("mined", "agreement", (0.1, 0.3)), *knot_rows("ceiling", "oracle", (0.1, 0.9))]
    filtered = {**PAIRS, "mined": {"judge": "agreement", "strategy": {"kind": "top_bottom"}}}
    section = calibration(made(tmp_path, sets=filtered, knots=knots).run)
    assert (
        "Pair set 'mined' has no pairs: 3 cases were mined, and 3 of them were left out because their order is too "
        "likely wrong." in words(section)
    )
    drawn = [block for block in section.blocks if isinstance(block, Figure)][1]
    assert "ceiling: median 0.90, 0 of 3 cases left out" in drawn.alt


# ---- charts ------------------------------------------------------------------------------------------------------

SVG = "data:image/svg+xml;base64,"


def test_a_forest_takes_rows_without_interval_fixed_sampler_or_headroom() -> None:
    rows = [judge_row("a", lift=(0.1, None, None)), judge_row("b", lift=(-0.1, -0.2, -0.05))]
    assert lifts(rows, [False, True], "alt", "caption").source.startswith(SVG)


def test_bins_may_differ_between_judges_and_lack_their_accuracy() -> None:
    """The others are drawn behind a judge only where all have the same bins: more lines, so a larger picture."""
    bins = [bin_row("a", "gap", place, 5, (0.6, 0.5, 0.7)) for place in range(3)]
    alike = {name: bins for name in "abc"}
    unknown = [{**row, "accuracy": None} for row in bins]
    other = {**alike, "b": [{**row, "above": row["above"] + 0.001} for row in bins]}
    pictures = [accuracies(panels, "gap", "alt", "caption").source for panels in (alike, other)]
    assert len(pictures[0]) > len(pictures[1])
    assert accuracies({"a": unknown}, "gap", "alt", "caption").source.startswith(SVG)


@pytest.mark.parametrize("bins", [0, 1, 3])
@pytest.mark.parametrize("mined", [[], [0.3], [0.2, 0.9]])
def test_calibration_of_few_bins_knots_and_pairs(bins: int, mined: list[float]) -> None:
    p = np.linspace(0.5, 0.9, bins)
    one = CalibrationCurve(None, "j", p, p, np.arange(1, bins + 1), np.array([0.1]), np.array([0.6]), np.array(mined))
    assert reliabilities({"a $b$": one}, "alt", "caption").source.startswith(SVG)


def test_p_correct_of_one_pair_below_one_half() -> None:
    one = Distribution(np.array([0.12]), 3, 4, 0.0)
    assert distributions({"a": one}, "alt", "caption").source.startswith(SVG)

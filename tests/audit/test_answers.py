"""Noise of judges and pair sets by answers of reviewers, worked by hand, and what the audit makes of the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.audit.answers import Answers, Measured, answers_row, by_judge, by_pairs
from pipeline.audit.audit import Audit, run_audit
from pipeline.measures.intervals import Interval
from pipeline.measures.survey import Repeats
from pipeline.pairs.calibration import Isotonic, curve_of
from pipeline.pairs.mine import PairSet
from pipeline.pairs.reviewed import curves_of
from pipeline.store import schema
from pipeline.store.proposals import Data
from pipeline.store.tables import read_table, write_table
from tests.fixtures.answering import answered, write_answers
from tests.fixtures.auditing import stores
from tests.fixtures.builders import panel_of

NOTHING_KNOWN = Interval(None, None, None)
SCORES = pl.DataFrame(
    {"case_id": ["c"] * 4, "proposal": [0, 1, 2, 3], "score": [0.9, 0.5, 0.5, None]},
    schema_overrides={"proposal": pl.Int32()},
)
"""Judge: mask 0 over the masks 1 and 2, which tie. The judge abstains on mask 3."""
PAIRS = pl.DataFrame(
    {"case_id": ["c", "c"], "chosen": [2, 0], "rejected": [1, 3]},
    schema_overrides={"chosen": pl.Int32(), "rejected": pl.Int32()},
)


def said(a: int, b: int, answer: str, case: str = "c", **columns: Any) -> dict[str, Any]:
    return {"case_id": case, "slot_a": a, "slot_b": b, "answer": answer, **columns}


def test_what_an_answer_says_of_a_judge():
    """Right, wrong, one half for `equal`; nothing without a preference of the judge or of the reviewer."""
    told = [
        said(0, 1, "a"),
        said(0, 2, "b"),
        said(0, 1, "equal"),
        said(0, 1, "unusable"),
        said(1, 2, "a"),
        said(0, 3, "a"),
    ]
    assert by_judge(answered(told), SCORES) == pytest.approx([0, 1, 0.5, *[float("nan")] * 3], nan_ok=True)


def test_what_an_answer_says_of_a_pair_set():
    told = [said(1, 2, "b"), said(1, 2, "a"), said(0, 3, "equal"), said(0, 1, "a"), said(1, 2, "unusable")]
    assert by_pairs(answered(told), PAIRS) == pytest.approx([0, 1, 0.5, *[float("nan")] * 2], nan_ok=True)


def test_pairs_shown_twice():
    """Same, other, a preference that became a tie, two ties, one unusable. The pair of the draw `doubt` is left out."""
    firsts = ["a", "a", "b", "equal", "a", "a"]
    seconds = ["a", "b", "equal", "equal", "unusable", "b"]
    draws = ["audit"] * 5 + ["doubt"]
    told = [said(0, 1, one, f"c{at}", draw=draw) for at, (one, draw) in enumerate(zip(firsts, draws, strict=True))]
    told += [said(0, 1, one, f"c{at}", draw="repeat", population=None) for at, one in enumerate(seconds)]
    answers = Answers(answered(told))
    assert answers.repeats == Repeats(3, 1.5)
    state = answers.state()
    assert (state["repeats"], state["same"], state["answers"]) == (6, 2, 12)
    assert state["by_draw"] == {"audit": 5, "doubt": 1, "repeat": 6}
    assert state["by_answer"] == {"a": 5, "b": 3, "equal": 3, "unusable": 1}


def test_a_repeat_is_held_against_the_showing_of_its_target():
    """The same pair was answered for `doubt`, then for the audit, then again: the last two answers are compared."""
    told = [said(0, 1, "b", draw="doubt", target="panel", population=None), said(0, 1, "a")]
    told.append(said(0, 1, "a", draw="repeat", population=None))
    assert Answers(answered(told)).repeats == Repeats(1, 0)


def row_of(told: list[dict[str, Any]], name: str = "j", least: int = 5, pairs: int | None = None) -> dict[str, Any]:
    answers = Answers(answered(told))
    cases = sorted({row["case_id"] for row in told})
    scores = pl.concat([SCORES.with_columns(case_id=pl.lit(case)) for case in cases])
    one = Measured("judge", name, by_judge(answers.drawn, scores), Interval(0.3, 0.2, 0.4), name, pairs)
    return answers_row(one, answers, least)


def many(wrong: int, right: int, **columns: Any) -> list[dict[str, Any]]:
    """Answers on as many patients that call the judge wrong, then right."""
    start = columns.pop("start", 0)
    return [said(0, 1, "b" if at < wrong else "a", f"c{start + at}", **columns) for at in range(wrong + right)]


def test_the_sentence_on_a_judge():
    """2 of 10 are wrong. Nothing is known of the reviewer, so nothing is corrected."""
    row = row_of(many(2, 8))
    assert (row["noise"], row["observed"], row["on_labels"]) == (pytest.approx(0.2), pytest.approx(0.2), 0.3)
    ends = f"[{100 * row['noise_low']:.0f}, {100 * row['noise_high']:.0f}]"
    assert row["verdict"] == (
        f"after 10 answers: 20 % {ends} of its pairs are wrong, errors of the reviewer included, because no pair was "
        "shown twice"
    )
    twice = [{**row, "draw": "repeat", "answer": "a", "population": None} for row in many(2, 0)]
    assert row_of(many(2, 8) + twice)["verdict"].endswith(
        "from a reviewer whose second answers are so far no better than a coin's: show more pairs again (segpref "
        "review --repeats)"
    )
    assert row_of(many(2, 1))["verdict"] == "no estimate: 3 answers where 5 are asked for (audit.least_answers)"
    assert row_of(many(2, 1))["noise"] is None


def test_strata_weigh_as_their_pairs():
    """Stratum A has 900 pairs and no error in 5 answers, stratum B has 100 pairs and 5 errors in 5: 100 of 1000."""
    told = many(0, 5, stratum="A", population=900) + many(5, 0, start=5, stratum="B", population=100)
    assert row_of(told)["noise"] == pytest.approx(0.1)


def test_an_unusable_pair_stands_for_other_unusable_pairs():
    """Stratum A: 4 of 8 answers are unusable, so about half of its 800 pairs are. Noise: 100 / (400 + 100)."""
    told = many(0, 4, stratum="A", population=800) + many(5, 0, start=8, stratum="B", population=100)
    told += [said(0, 1, "unusable", f"c{at}", stratum="A", population=800) for at in range(4, 8)]
    row = row_of(told)
    assert (row["noise"], row["unusable"], row["answers"]) == (pytest.approx(0.2), 4, 9)


def test_pairs_that_were_chosen_for_doubt_do_not_count():
    told = many(2, 8) + many(10, 0, start=20, draw="doubt", population=None)
    assert row_of(told)["noise"] == pytest.approx(0.2)


def test_the_draw_of_another_judge_is_named():
    """Three answers of its own are too few, so those of `other` are used. With five of its own these are."""
    told = many(0, 3) + many(4, 4, start=3, target="other")
    row = row_of(told)
    assert (row["drawn_for"], row["answers"], row["noise"]) == ("other", 8, 0.5)
    assert "of its pairs are wrong, among the pairs that were drawn for 'other'" in row["verdict"]
    assert row_of(told, least=3)["drawn_for"] == "j"


def test_a_set_that_was_mined_anew_since_is_named():
    assert row_of(many(2, 8), pairs=90)["verdict"].endswith("; drawn from 100 pairs, of which there are 90 now")
    assert "drawn from" not in row_of(many(2, 8), pairs=100)["verdict"]


LENGTHS = [[8, 2, 12]] * 24
RANKED = [[0.9, 0.1, 0.5]] * 24
TOP_BOTTOM = PairSet.model_validate({"judge": "j", "strategy": {"kind": "top_bottom"}})
REVIEWED = PairSet.model_validate({"judge": "none", "strategy": {"kind": "reviewed"}})
BESIDE = PairSet.model_validate({"judge": "j", "strategy": {"kind": "reviewed", "otherwise": {"kind": "top_base"}}})
MIXED = PairSet.model_validate({"judge": "j", "strategy": {"kind": "reviewed", "otherwise": {"kind": "top_bottom"}}})


def audited(folder: Path, told: list[dict[str, Any]], split: str = "pool", **knobs: Any) -> dict[str, Any]:
    cases, proposals = stores(folder, LENGTHS, split=split)
    panel = panel_of(cases, proposals, {"j": RANKED})
    if split == "pool":
        panel = panel.with_columns(true_dice=pl.lit(None, pl.Float64))
    write_table(panel, schema.panel(["j"]), folder / "panel.parquet", "test")
    data = Data(cases, proposals, write_answers(folder / "verdicts.parquet", told, cases, proposals))
    sets = {"p": TOP_BOTTOM, "q": REVIEWED, "both": BESIDE, "mixed": MIXED}
    run_audit(folder / "panel.parquet", {"j": False}, sets, data, Audit(bootstrap=50, **knobs), 0, folder / "audit")
    return json.loads((folder / "audit/summary.json").read_text())


def told_of(wrong: int, split: str = "pool") -> list[dict[str, Any]]:
    """The judge prefers mask 0 to mask 1 in 24 cases. The reviewer sees four of these twice."""
    given = {"target": "p", "population": 24, "split": split}
    told = [said(0, 1, "b" if at < wrong else "a", f"c{at}", **given) for at in range(24)]
    return told + [said(0, 1, "a", f"c{at}", draw="repeat", **given) for at in range(20, 24)]


def test_an_audit_without_labels(tmp_path: Path):
    """3 of 24 pairs are wrong, and four repeats are the same. No validation case has a label."""
    told = [{**row, "number": at} for at, row in enumerate(told_of(3), start=1)]
    summary = audited(tmp_path, told)
    found = read_table(tmp_path / "audit/answers.parquet", schema.AUDIT_ANSWERS)
    rows = {(row["kind"], row["name"]): row for row in found.iter_rows(named=True)}
    for key in (("judge", "j"), ("pairs", "p")):
        assert (rows[key]["noise"], rows[key]["answers"], rows[key]["on_labels"]) == (pytest.approx(0.125), 24, None)
        assert rows[key]["noise_low"] < 0.125 < rows[key]["noise_high"]
    assert rows["pairs", "q"]["verdict"] == (
        "its pairs are answers of reviewers, who gave the same answer to 4 of 4 pairs that were shown twice"
    )
    assert (summary["review"]["answers"], summary["review"]["same"]) == (28, 4)
    assert "answers of reviewers alone" in summary["warnings"][0]["text"]
    # All pairs of the judge have one margin, so the curve is level: (21 + 1) / (24 + 2).
    calibration = read_table(tmp_path / "audit/calibration.parquet", schema.CALIBRATION)
    assert summary["calibration"]["p"]["source"] == "answers"
    assert curve_of(calibration, "p").p.tolist() == pytest.approx([22 / 26])
    reviewers, judge = curves_of(tmp_path / "audit", "both")
    # The four repeats are alike: the mean of e over Beta(1/2, 9/2) of the share of other answers is .0545.
    assert reviewers.p[1] == pytest.approx(1 - 0.0545, abs=0.0002)
    assert judge is None, "mask 0, the base, is on top: the strategy has no pair"


@pytest.mark.parametrize("split", ["pool", "validation"])
def test_the_pairs_of_a_judge_beside_those_of_reviewers(tmp_path: Path, split: str):
    """3 of 24 pairs that the judge orders are wrong. On labelled cases the set has pairs of reviewers instead."""
    told = [{**row, "number": at, "target": "mixed"} for at, row in enumerate(told_of(3, split), start=1)]
    audited(tmp_path, told, split=split)
    found = read_table(tmp_path / "audit/answers.parquet", schema.AUDIT_ANSWERS)
    row = found.row(by_predicate=(pl.col("kind") == "pairs") & (pl.col("name") == "mixed"), named=True)
    assert (row["noise"], row["answers"], row["drawn_for"]) == (pytest.approx(0.125), 24, "mixed")
    assert row["verdict"].startswith("after 24 answers: 12 % [")
    assert row["verdict"].endswith("] of the pairs of its judge are wrong")
    assert row["on_labels"] is None


def test_too_few_answers_calibrate_nothing(tmp_path: Path):
    told = [{**row, "number": at} for at, row in enumerate(told_of(3), start=1)]
    summary = audited(tmp_path, told, calibration=Isotonic(min_cases=25))
    assert summary["calibration"]["p"]["source"] is None
    assert "no pair of labelled validation cases" in summary["calibration"]["p"]["note"]


def test_labels_and_answers_stand_side_by_side(tmp_path: Path):
    """The truth is mask 0, and the reviewer errs on 6 of 24: these are wrong pairs of `q`, and `p` has none."""
    told = [{**row, "number": at} for at, row in enumerate(told_of(6, "validation"), start=1)]
    summary = audited(tmp_path, told, split="validation")
    pairs = {row["pairs"]: row for row in read_table(tmp_path / "audit/pairs.parquet", schema.AUDIT_PAIRS).to_dicts()}
    assert (pairs["q"]["mined"], pairs["q"]["noise_rate"]) == (24, 0.25)
    assert (pairs["p"]["mined"], pairs["p"]["noise_rate"]) == (24, 0)
    answers = read_table(tmp_path / "audit/answers.parquet", schema.AUDIT_ANSWERS)
    assert answers.filter(name="q")["on_labels"].to_list() == [0.25]
    assert summary["calibration"]["p"]["source"] == "labels"

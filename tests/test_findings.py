"""What stages say of their results: texts from outputs with numbers worked by hand, and what a line must never do."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline import findings
from pipeline.segmenter.knobs import MODELS
from pipeline.segmenter.student_record import STUDENT_FILE
from pipeline.store import schema
from pipeline.store.manifest import write_json
from pipeline.store.tables import write_table
from stages import say
from tests.fixtures.builders import bars, case_store, no_proposals, proposal_store
from tests.fixtures.phantoms import disc
from tests.fixtures.reporting import build, judge_row, pairs_row
from tests.fixtures.trained import RECORDED

# ---- the line of a stage -----------------------------------------------------------------------------------------


def test_every_line_stands_behind_the_name_of_the_stage(capsys: pytest.CaptureFixture[str]) -> None:
    say("mine favourite", "104 pairs")
    say("check", findings.check_findings, ["one", "two"])
    printed = capsys.readouterr()
    assert printed.out == "mine favourite: 104 pairs\ncheck: 2 notes\ncheck: note: one\ncheck: note: two\n"
    assert not printed.err


def test_a_mistake_in_the_findings_fails_no_stage_and_is_not_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    say("panel", lambda: f"{1 / 0}")
    assert capsys.readouterr().out == (
        "panel: finished, but its findings cannot be said (ZeroDivisionError: division by zero)\n"
    )


def test_a_terminal_without_a_character_fails_no_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """ASCII has no typographic minus."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    say("evaluate a", "gain \N{MINUS SIGN}0.5")
    assert written.getvalue() == b"evaluate a: gain ?0.5\n"


# ---- texts -------------------------------------------------------------------------------------------------------


def test_cases_are_counted_by_split_and_measured(tmp_path: Path) -> None:
    """Two cases of one patient, one case without a mask, and images of 6x8 and 4x5 pixels. One channel."""
    labels = [disc((4, 5), 1.0), disc((6, 8), 2.0), None]
    cases = case_store(tmp_path, labels, ["labelled", "test", "pool"], groups=["p", "p", "q"], space=(5, 5))
    assert findings.prepare_findings(cases) == (
        "3 cases of 2 patients, 2 with mask: labelled 1, pool 1, validation 0, test 1; 1 channel; 4x5 to 6x8 pixels"
    )


def test_resampled_volumes_without_stated_patients(tmp_path: Path) -> None:
    """The working grid is said too. A case that is its own group is no stated patient."""
    cases = case_store(tmp_path, [disc((4, 4, 2), 1.0)], ["test"])
    table = cases.table.with_columns(original_shape=pl.Series([[8, 8, 2]], dtype=pl.List(pl.Int32)))
    write_table(table, schema.CASES, tmp_path / "cases.parquet", "a test")
    assert findings.prepare_findings(type(cases)(tmp_path)) == (
        "1 case, 1 with mask: labelled 0, pool 0, validation 0, test 1; 1 channel; 8x8x2 voxels, resampled to "
        "4x4x2 voxels"
    )


@pytest.mark.parametrize(
    ("models", "rows", "said"),
    [
        (
            {"members": ["member_1", "member_2"], "folds": {"fold_0": {"members": ["member_1"]}}, "snapshots": []},
            "base,0,,0.1,false\nbase,50,0.9,0.812,true\nbase,100,0.8,0.8,false\nfold_0,100,0.1,0.9,true\n",
            "base, 2 members, 1 fold of 1 member; best validation Dice of the base 81.2 points at step 50 of 100",
        ),
        (
            {"members": [], "folds": {}, "snapshots": [], "imported": {"kind": "checkpoint", "notes": []}},
            "base,0,,0.5,true\n",
            "imported (checkpoint), 0 members, 0 folds; validation Dice 50.0 points",
        ),
        ({"members": [], "folds": {}, "snapshots": []}, "", "no base: all masks are imported"),
    ],
)
def test_models_of_the_base(tmp_path: Path, models: dict[str, Any], rows: str, said: str) -> None:
    write_json(tmp_path / MODELS, models)
    (tmp_path / "base.csv").write_text(f"model,step,loss,validation_dice,best\n{rows}")
    assert findings.base_findings(tmp_path, tmp_path / "base.csv") == said


def test_proposals_of_a_case_and_how_many_differ(tmp_path: Path) -> None:
    """Four proposals; in one case the last repeats the first: 4 and 3 distinct ones, 3.5 on average."""
    proposals = proposal_store(tmp_path / "a", [bars([3, 4, 5, 6]), bars([3, 4, 5, 3])])
    said = "1 sampler and the base: 4 proposals of each of 2 cases, 3.5 distinct on average"
    assert findings.propose_findings(proposals, no_proposals(tmp_path / "b")) == said
    out_of_fold = proposal_store(tmp_path / "c", [bars([3, 4])])
    assert findings.propose_findings(proposals, out_of_fold) == (
        f"{said}; out of fold 2 proposals of each of 1 case, 2.0 distinct on average"
    )


def test_scores_and_abstentions(tmp_path: Path) -> None:
    """One of four proposals has no score: a quarter."""
    rows = [{"case_id": c, "proposal": p, "judge": "j", "score": s} for c, p, s in (("a", 0, 1.0), ("a", 1, None))]
    rows += [{"case_id": "b", "proposal": p, "judge": "j", "score": 0.5} for p in (0, 1)]
    write_table(pl.DataFrame(rows, schema=schema.SCORES.columns), schema.SCORES, tmp_path / "j.parquet", "a test")
    assert findings.judge_findings(tmp_path / "j.parquet") == "3 scores of 2 cases, abstains on 25 % of the proposals"


def test_pairs_and_why_a_case_has_none(tmp_path: Path) -> None:
    found = {"pairs": 12, "cases": 10, "cases_with_pairs": 6, "dropped": {"tie": 1, "base_is_top": 3}}
    write_json(tmp_path / "a.drops.json", found)
    said = findings.mine_findings(tmp_path / "a.drops.json", "top_base")
    assert said == "12 pairs of 6 of 10 cases; without a pair: base_is_top 3, tie 1"
    assert findings.mine_findings(tmp_path / "nowhere.json", "none") == "no pairs: the strategy is none"


HISTORY = "step,loss,validation_dice\n0,,0.8\n50,0.2,0.83\n100,0.1,0.82\n"


@pytest.mark.parametrize(
    ("record", "history", "said"),
    [
        (
            {"best_step": 50, "steps": 100, "pairs_mined": 7},
            HISTORY,
            "from 'base': validation Dice 80.0 points at the start, best 83.0 at step 50, last 82.0 at step 100; "
            "7 pairs",
        ),
        (
            {"best_step": 0, "steps": 100, "stopped": "KL too high", "interpolated": 0.5},
            HISTORY,
            "from 'base': validation Dice 80.0 points at the start, best 80.0 at step 0, last 82.0 at step 100; "
            "stopped: KL too high; then mixed with the base, share 0.5",
        ),
        (
            {"best_step": 0, "steps": 0, "slot": 3, "proposal": "mean fitted"},
            "step,validation_dice\n0,0.84\n",
            "no training, proposal 'mean fitted'; validation Dice 84.0 points",
        ),
        (
            {"best_step": 0, "steps": 0, "offsets": [0.5, -1.0]},
            "step,validation_dice\n0,\n",
            "no training, weights of 'base'; logits shifted by +0.50, -1.00; validation Dice \N{EM DASH} points",
        ),
    ],
)
def test_training_says_start_best_and_last(tmp_path: Path, record: dict[str, Any], history: str, said: str) -> None:
    """An unknown Dice is a dash."""
    write_json(tmp_path / STUDENT_FILE, RECORDED | record)
    (tmp_path / "history.csv").write_text(history)
    assert findings.train_findings(tmp_path, tmp_path / "history.csv", "base") == said


def test_test_results_with_and_without_an_interval() -> None:
    content = {
        "dice": {"mean": 0.812, "low": 0.8, "high": 0.82},
        "gain_over_base": {"dice": {"mean": -0.004, "low": -0.01, "high": 0.001}},
        "cases": 40,
        "groups": 12,
        "unmeasured": 1,
    }
    assert findings.evaluate_findings(content) == (
        "Dice 81.2 [80.0, 82.0] points on 40 test cases of 12 patients, \N{MINUS SIGN}0.4 [\N{MINUS SIGN}1.0, +0.1] "
        "points over the base; 1 case not measured, whose truth is unknown everywhere"
    )
    few = {"dice": {"mean": 0.5, "low": None, "high": None}, "cases": 2, "groups": 2, "unmeasured": 0}
    assert findings.evaluate_findings(few, "validation") == "Dice 50.0 [\N{EM DASH}] points on 2 validation cases"


def test_the_audit_has_a_line_per_judge_and_pair_set(tmp_path: Path) -> None:
    """Warnings of a pair set stand in the line of the pair set; of a pair set without pairs there is nothing else."""
    judges = pl.DataFrame([judge_row("agreement")], schema=schema.AUDIT_JUDGES.columns)
    write_table(judges, schema.AUDIT_JUDGES, tmp_path / "judges.parquet", "a test")
    rows = [
        pairs_row("a", "agreement", "RN-DPO", noise_rate=(0.3, 0.2, 0.4)),
        pairs_row("b", "agreement", None, mined=0),
    ]
    pairs = pl.DataFrame(rows, schema=schema.AUDIT_PAIRS.columns)
    write_table(pairs, schema.AUDIT_PAIRS, tmp_path / "pairs.parquet", "a test")
    warnings = [{"pairs": None, "text": "few"}, {"pairs": "a", "text": "pair set 'a': weak"}]
    content = {"validation_cases": 5, "groups": 1, "headroom": {"verdict": "headroom left"}, "warnings": warnings}
    write_json(tmp_path / "summary.json", content)
    assert findings.audit_findings(tmp_path) == [
        "5 validation cases of 1 patient; headroom left",
        "warning: few",
        "judge agreement: verdict <on> agreement",
        "pair set a: 3 pairs tried; 30 % [20, 40] of its validation pairs are wrong; the noise favours RN-DPO; "
        "warning: weak",
        "pair set b: nothing was mined on validation",
    ]


def test_the_report_names_base_student_judge_and_page(tmp_path: Path) -> None:
    """Three patients are too few to promote a student. The judge that reads the truth is no judge to take."""
    run = build(tmp_path).run
    mean = np.mean([0.3, 0.4, 0.5, 0.6, 0.45])
    said = findings.report_findings(run, Path("reports/index.html"))
    assert said.startswith(f"test Dice of the base {100 * mean:.1f} [")
    assert said.endswith(
        "; no student was promoted; judge with the highest lift: agreement, +2.0 [+1.0, +3.0] Dice points; "
        "reports/index.html"
    )

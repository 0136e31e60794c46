"""What the audit writes, and its knobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from pipeline.audit.audit import Audit, run_audit
from pipeline.pairs.calibration import curve_of
from pipeline.pairs.mine import PairSet, calibration_of, mine_to
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import Data, ProposalStore
from pipeline.store.tables import read_table, write_table
from tests.fixtures.auditing import PAIR_SCORES, PAIRED, TOP_BOTTOM, stores
from tests.fixtures.builders import bars, panel_of

KNOBS = Audit(bootstrap=200)


def audited(
    folder: Path, cases: CaseStore, proposals: ProposalStore, sets: dict[str, PairSet], **given: Any
) -> dict[str, Any]:
    """Audit the panel of judge `j` and return the summary."""
    panel = panel_of(cases, proposals, {"j": PAIR_SCORES})
    write_table(panel, schema.panel(["j"]), folder / "panel.parquet", "test")
    knobs = given.pop("knobs", KNOBS)
    research = {"j": "j" in given.pop("research", ())}
    run_audit(folder / "panel.parquet", research, sets, Data(cases, proposals), knobs, 0, folder / "audit", **given)
    return json.loads((folder / "audit/summary.json").read_text())


TABLES = {
    "judges": schema.AUDIT_JUDGES,
    "strategies": schema.AUDIT_STRATEGIES,
    "bins": schema.AUDIT_BINS,
    "pairs": schema.AUDIT_PAIRS,
    "calibration": schema.CALIBRATION,
    "reliability": schema.RELIABILITY,
}


def tables_of(folder: Path) -> dict[str, pl.DataFrame]:
    return {name: read_table(folder / f"audit/{name}.parquet", table) for name, table in TABLES.items()}


def test_the_audit_writes_its_tables(tmp_path):
    """Pair sets of strategy `none` are not tried. Four cases of twenty leave a fifth of .5833 - .5: p = .5167.

    `top_bottom` mines all cases, `top_base` those where the base is not on top, all but c2.
    """
    cases, proposals = stores(tmp_path, PAIRED)
    none = PairSet.model_validate({"judge": "none", "strategy": {"kind": "none"}})
    summary = audited(tmp_path, cases, proposals, {"none": none, "p": TOP_BOTTOM})
    tables = tables_of(tmp_path)
    assert tables["judges"]["judge"].to_list() == ["j"]
    for name in ("pairs", "calibration", "reliability"):
        assert set(tables[name]["pairs"]) == {"p"}
    assert tables["strategies"].select("judge", "strategy", "mined").rows() == [
        ("j", "top_base", 3),
        ("j", "top_bottom", 4),
    ]
    measures = [name for name in schema.AUDIT_PAIRS.columns if name not in ("pairs", "judge", "strategy")]
    assert tables["strategies"].filter(strategy="top_bottom").select(measures).equals(tables["pairs"].select(measures))
    assert set(tables["bins"]["by"]) == {"gap", "disagreement"}
    curve = curve_of(tables["calibration"], "p")
    assert curve is not None
    assert curve(np.array([0.8])) == pytest.approx([0.5 + (3.5 / 6 - 0.5) / 5])
    assert tables["reliability"]["count"].sum() == 4
    assert (summary["validation_cases"], summary["groups"]) == (4, 4)
    # Best less base: 1 - 8/12, 0, 1 - 4/10 and 0.
    assert summary["headroom"]["headroom"] == pytest.approx((1 / 3 + 0.6) / 4)
    assert summary["headroom"]["verdict"].endswith("Dice points above the base, on 4 patients or exams only")
    assert summary["calibration"]["p"]["groups"] == 4
    assert list(summary["calibration"]) == ["p"]
    assert [warning["pairs"] for warning in summary["warnings"]] == [None, "p", "p", "p"]
    few, lift, noise, shrunk = (warning["text"] for warning in summary["warnings"])
    assert few.startswith("validation has 4 patients or exams: so few show little")
    assert "not shown to beat the base" in lift
    assert "38 % of its validation pairs are ordered wrongly" in noise
    assert shrunk.startswith("pair set 'p': 4 validation cases (those of one group count once) where 20 are asked for")


def test_a_verdict_names_the_strategies_of_the_judge(tmp_path):
    """Of `top_base` c0 is right, c1 and c3 are wrong."""
    cases, proposals = stores(tmp_path, PAIRED)
    audited(tmp_path, cases, proposals, {})
    said = tables_of(tmp_path)["judges"]["verdict"].item()
    assert "38 % of its top_bottom and 67 % of its top_base pairs are wrong" in said
    assert not said.startswith("research only")


def test_a_judge_for_research_is_called_that(tmp_path):
    cases, proposals = stores(tmp_path, PAIRED)
    audited(tmp_path, cases, proposals, {}, research=["j"])
    assert tables_of(tmp_path)["judges"]["verdict"].item().startswith("research only, it knows the truth; ")


def test_strategies_are_chosen(tmp_path):
    knobs = Audit.model_validate_json('{"bootstrap": 10, "strategies": {"all": {"kind": "all_pairs"}}}')
    cases, proposals = stores(tmp_path, PAIRED)
    audited(tmp_path, cases, proposals, {}, knobs=knobs)
    assert tables_of(tmp_path)["strategies"].select("judge", "strategy").rows() == [("j", "all")]


def test_the_calibration_depends_on_its_own_knobs_alone(tmp_path):
    """Mining starts again where its bytes change: not for another number of resamples."""
    cases, proposals = stores(tmp_path, PAIRED)
    audited(tmp_path, cases, proposals, {"p": TOP_BOTTOM})
    file = tmp_path / "audit/calibration.parquet"
    before = file.read_bytes()
    audited(tmp_path, cases, proposals, {"p": TOP_BOTTOM}, knobs=Audit(bootstrap=10, strategies={}))
    assert file.read_bytes() == before


def test_without_labelled_validation_cases_nothing_is_known(tmp_path):
    """Empty tables and one warning; mining then works, and p_correct is null."""
    cases, proposals = stores(tmp_path, PAIRED, split="pool")
    summary = audited(tmp_path, cases, proposals, {"p": TOP_BOTTOM})
    assert {len(table) for table in tables_of(tmp_path).values()} == {0}
    (warning,) = summary.pop("warnings")
    room = {"headroom": None, "headroom_low": None, "headroom_high": None}
    room["verdict"] = "headroom unknown: no validation case with a label has proposals"
    assert summary == {"validation_cases": 0, "groups": 0, "calibration": {}, "headroom": room, "review": None}
    assert warning["pairs"] is None
    assert warning["text"].startswith("nothing is known about the judges and the pair sets: no validation case")
    out = tmp_path / "pairs.parquet"
    mine_to(
        tmp_path / "panel.parquet",
        ["j"],
        proposals,
        TOP_BOTTOM,
        0,
        out,
        calibration_of(tmp_path / "audit", "p", TOP_BOTTOM),
    )
    assert read_table(out, schema.PAIRS)["p_correct"].to_list() == [None] * 4


def test_validation_cases_without_a_truth_are_left_out(tmp_path):
    """The truth of c2 and c3 is unknown: the audit is of c0 and c1, which are right."""
    cases, proposals = stores(tmp_path, PAIRED)
    truth = pl.when(pl.col("case") < 2).then("true_dice")
    panel = panel_of(cases, proposals, {"j": PAIR_SCORES}).with_columns(truth.alias("true_dice"))
    write_table(panel, schema.panel(["j"]), tmp_path / "panel.parquet", "test")
    data = Data(cases, proposals)
    run_audit(tmp_path / "panel.parquet", {"j": False}, {"p": TOP_BOTTOM}, data, KNOBS, 0, tmp_path / "audit")
    summary = json.loads((tmp_path / "audit/summary.json").read_text())
    assert (summary["validation_cases"], summary["calibration"]["p"]["cases"]) == (2, 2)
    row = tables_of(tmp_path)["pairs"].row(0, named=True)
    assert (row["mined"], row["noise_rate"]) == (2, 0)


def test_cases_without_foreground_are_counted(tmp_path):
    """Foreground of unknown truth is none."""
    label = np.where(bars([8])[0] > 0, schema.UNKNOWN, 0).astype(np.uint8)
    cases, proposals = stores(tmp_path, PAIRED, label=label)
    said = [warning["text"] for warning in audited(tmp_path, cases, proposals, {})["warnings"]]
    assert any(text.startswith("4 of 4 validation cases have no foreground") for text in said)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ('{"failure_below": 1.0}', "failure_below"),
        ('{"strategies": {"n": {"kind": "none"}}}', "strategies.n"),
        ('{"strategies": {"a b": {"kind": "top_base"}}}', "strategies"),
    ],
)
def test_knobs_out_of_range_are_refused(given, said):
    with pytest.raises(ValidationError, match=said):
        Audit.model_validate_json(given)

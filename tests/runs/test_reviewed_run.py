"""A run with answers of reviewers, from the pool to the report and the card of a student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import read_table
from tests.fixtures.answering import write_answers
from tests.fixtures.chain import TINY, commands, invoke, run_chain, with_changes, write_params

ANCHORED = {"objective": {"kind": "preference"}, "anchor": {"supervised": 1.0}}
TOP_BASE = {"kind": "top_base", "min_p_correct": 0.0}
REVIEWED: dict[str, Any] = {
    "review": {"verdicts": "review/verdicts.parquet"},
    "experts": {"clinician": {"kind": "expert", "least": 6}},
    "pairs": {
        **TINY["pairs"],
        "answered": {"judge": "none", "strategy": {"kind": "reviewed"}},
        "both": {"judge": "clinician", "strategy": {"kind": "reviewed", "otherwise": TOP_BASE}},
    },
    "audit": {"bootstrap": 50, "least_answers": 5},
    "students": {"answered": {"pairs": "answered", **ANCHORED}, "both": {"pairs": "both", **ANCHORED}},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A tiny run whose reviewer saw the first two distinct masks of eight pool cases, and two of these cases twice."""
    folder = tmp_path_factory.mktemp("reviewed") / "project"
    run_chain(folder, with_changes(students={}), skip=("evaluate", "validate", "promote", "report"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cases, proposals = CaseStore(Path("data/cases")), ProposalStore(Path("data/proposals"))
        rows: list[dict[str, Any]] = []
        for at, case in enumerate(cases.split("pool")[:8]):
            a, b, *_ = proposals.distinct(case)
            seen = {"case_id": case.case_id, "slot_a": a, "slot_b": b, "target": "agreement"}
            rows.append({**seen, "answer": "b" if at % 4 else "a", "number": at + 1})
            if at < 2:
                rows.append({**rows[-1], "draw": "repeat", "population": None, "number": 9 + at})
        write_answers(Path("review/verdicts.parquet"), rows, cases, proposals)
        write_params(folder, with_changes(**REVIEWED))
        again = ("expert", "panel", "audit", "mine", "train", "evaluate", "validate", "promote", "report", "check")
        for line in commands(with_changes(**REVIEWED)):
            name = line.split()[2].removeprefix("stages.")
            if name in again or line.startswith("python -m stages.judge clinician"):
                invoke(line)
        invoke("python -m stages.export both --format safetensors --out exported")
    return folder


def test_the_answers_reach_panel_audit_and_pairs(finished: Path):
    panel = pl.read_parquet(finished / "data/panel.parquet")
    assert panel["score_clinician"].null_count() == 0
    answers = read_table(finished / "audit/answers.parquet", schema.AUDIT_ANSWERS)
    found = answers.filter(kind="judge", name="agreement").to_dicts()[0]
    assert found["verdict"].startswith(f"after {found['answers']} answers: ")
    pairs = read_table(finished / "data/pairs/answered.parquet", schema.PAIRS)
    assert (len(pairs), pairs["judge"].unique().to_list(), pairs["margin"].sum()) == (8, ["none"], 10.0)
    both = read_table(finished / "data/pairs/both.parquet", schema.PAIRS)
    assert both.filter(strategy="reviewed").select("case_id", "chosen").equals(pairs.select("case_id", "chosen"))
    assert set(both["strategy"]) <= {"reviewed", "top_base"}


def test_the_report_and_the_card_say_what_rests_on_answers(finished: Path):
    page = (finished / "reports/index.html").read_text()
    assert "Answers of reviewers" in page
    assert "10 answers of 1 reviewer on 8 cases" in page
    assert "Pair set &#39;answered&#39; has 8 pairs by 10 answers of reviewers; learned by answered." in page
    facts = json.loads((finished / "exported/model_card.json").read_text())
    assert facts["review"] == {
        "pairs": {"pairs": 8, "answers": 10, "reviewers": 1},
        "experts": {"clinician": {"answers": 10, "reviewers": 1}},
    }
    card = (finished / "exported/MODEL_CARD.md").read_text()
    assert (
        "- 8 pairs rest on 10 answers of 1 reviewer\n- expert clinician learned from 10 answers of 1 reviewer\n" in card
    )

"""Judge `expert`: what it learns from answers, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.execution import Execution, Runtime
from pipeline.judges.judge import Evidence, JudgeInputs
from pipeline.judges.kinds.expert import EXPERT_FILE, Expert, Preferences
from pipeline.judges.score import JudgeFiles, judge
from pipeline.store import schema
from pipeline.store.proposals import Data
from pipeline.store.tables import read_table
from tests.fixtures.answering import answered, write_answers
from tests.fixtures.builders import bars, case_store, no_proposals, proposal_store

LENGTHS = [[8, 3, 13], [9, 4, 14], [10, 5, 15], [7, 2, 12]] * 3
KNOBS: dict[str, Any] = {"kind": "expert", "least": 8, "ridges": (0.01,)}


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> JudgeInputs:
    """Twelve patients without a label, and a reviewer who always prefers the longer bar, which is in slot 2."""
    folder = tmp_path_factory.mktemp("expert")
    cases = case_store(folder / "cases", [bars([9])[0]] * 12, ["pool"] * 12)
    proposals = proposal_store(folder / "proposals", [bars(lengths) for lengths in LENGTHS])
    rows = [{"case_id": f"c{at}", "slot_a": a, "slot_b": 2, "answer": "b"} for at in range(8) for a in (0, 1)]
    path = write_answers(folder / "verdicts.parquet", rows, cases, proposals)
    (folder / "models").mkdir()
    return JudgeInputs(cases, proposals, no_proposals(folder / "none"), folder / "models", Compute(), 0, (), path)


def test_the_expert_learns_what_reviewers_prefer(given: JudgeInputs):
    """In cases with answers, whose own answers are left out, and in cases that nobody has seen. No label, no folds."""
    scorer = Expert(**KNOBS, samplers=False).ready(given)
    for case in given.cases.all:
        scores = scorer.score(Evidence(given.cases, given.proposals, case))
        assert scores.argmax() == 2
        assert scores.sum() == pytest.approx(0, abs=1e-9)
    told = json.loads((given.models / EXPERT_FILE).read_text())
    assert {name: told[name] for name in ("answers", "preferring", "cases", "groups", "reviewers")} == {
        "answers": 16,
        "preferring": 16,
        "cases": 8,
        "groups": 8,
        "reviewers": 1,
    }
    assert told["features"]["volume"]["weight"] > 0


def test_a_case_is_scored_without_its_own_answers(given: JudgeInputs, tmp_path: Path):
    """The reviewer turns on one patient alone. The scores of this patient stay as they are, those of others change."""
    table = pl.read_parquet(given.verdicts)
    turned = table.with_columns(
        pl.when(pl.col("case_id") == "c0").then(pl.lit("a")).otherwise(pl.col("answer").cast(pl.String)).alias("answer")
    )
    rows = [{**row, "slot_a": at % 2, "slot_b": 2} for at, row in enumerate(turned.to_dicts())]
    other = replace(given, verdicts=write_answers(tmp_path / "verdicts.parquet", rows, given.cases, given.proposals))
    # One feature spread and one penalty, so that only the weights could differ.
    one, two = (Expert(**KNOBS, samplers=False).ready(each) for each in (given, other))
    for at, same in ((0, True), (1, False), (11, False)):
        evidence = Evidence(given.cases, given.proposals, given.cases.all[at])
        assert np.allclose(one.score(evidence), two.score(evidence), rtol=0, atol=1e-9) == same, at


def test_the_stage_writes_a_score_of_every_proposal(given: JudgeInputs, tmp_path: Path, monkeypatch):
    """Under any scheduler the same bytes. An expert sees no label, and needs none."""
    monkeypatch.chdir(tmp_path)
    found = []
    for scheduler in ("synchronous", "threads"):
        out = tmp_path / f"{scheduler}.parquet"
        runtime = Runtime(Compute(), 0, Execution(scheduler=scheduler, progress="none"))
        data = Data(given.cases, given.proposals, given.verdicts)
        judge("e", Expert(**KNOBS), data, given.out_of_fold, JudgeFiles(tmp_path / "models", out), runtime)
        found.append(out.read_bytes())
    assert found[0] == found[1]
    assert read_table(tmp_path / "threads.parquet", schema.SCORES)["score"].null_count() == 0


def test_an_equal_answer_is_half_a_preference_for_each():
    values = np.array([[0.0], [1.0], [3.0]])
    table = answered(
        [
            {"case_id": "c", "slot_a": 0, "slot_b": 1, "answer": "b"},
            {"case_id": "c", "slot_a": 0, "slot_b": 2, "answer": "equal"},
        ]
    )
    pairs = Preferences.of(values, np.array([0, 1, 2]), table, "g")
    assert sorted(zip(pairs.difference[:, 0].tolist(), pairs.weight.tolist(), strict=True)) == [
        (-3.0, 0.25),
        (1.0, 0.5),
        (3.0, 0.25),
    ]
    # One answer in the right order and one `equal`: (1 + 1/2) / 2.
    assert pairs.measured(np.array([1.0]))["pair_accuracy"] == 0.75


def test_too_few_answers_are_refused(given: JudgeInputs):
    message = (
        r"verdicts.parquet: a judge of kind 'expert' learns from answers of reviewers; expected at least 17 answers "
        r"that prefer a mask, of at least 2 patients, found 16 answers of 8 patients; answer more pairs, set `least` "
    )
    with pytest.raises(BadInput, match=message):
        Expert(**{**KNOBS, "least": 17}).ready(given)

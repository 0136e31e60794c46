"""What `dvc repro` runs after a change of judges: exactly what must run, and never the proposals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.chain import TINY, checkout, dvc, stages_run, with_changes, write_params

TARGETS = ("audit", "mine", "evaluate")
"""All but the report, which any of these changes remakes."""


@pytest.fixture(scope="module")
def dvc_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dvc") / "project"
    checkout(folder, with_changes(judges={**TINY["judges"], "spare": {"kind": "agreement"}}))
    ran = stages_run(dvc(folder, "repro", *TARGETS))
    assert {"prepare", "base", "propose", "judge@spare", "evaluate@rn_dpo"} <= ran
    return folder


def test_a_judge_swap_runs_exactly_what_must_run(dvc_run: Path) -> None:
    """One DVC project through every kind of swap; proposals and the base are never remade."""
    base = {"panel", "audit"}
    mines = {"mine@none", "mine@mined"}
    student = {"train@rn_dpo", "evaluate@rn_dpo"}

    def repro(params: dict[str, Any]) -> set[str]:
        write_params(dvc_run, params)
        return stages_run(dvc(dvc_run, "repro", *TARGETS))

    def pairs(judge: str) -> dict[str, Any]:
        return {**TINY["pairs"], "mined": {**TINY["pairs"]["mined"], "judge": judge}}

    judges = {**TINY["judges"], "spare": {"kind": "agreement"}}
    assert repro(with_changes(judges=judges)) == set(), "nothing changed"

    swapped = with_changes(judges=judges, pairs=pairs("expected_dice"))
    # The curves of all pair sets are one file: all are mined again, and those with equal bytes stop there.
    assert repro(swapped) == {"audit"} | mines | student, "another judge for a pair set"

    removed = with_changes(pairs=pairs("expected_dice"))
    assert repro(removed) == base | mines, "a removed judge: pairs have equal bytes, so no student is trained"
    assert "score_spare" not in pl.read_parquet(dvc_run / "data/panel.parquet").columns

    (dvc_run / "pipeline/judges/unused.py").write_text('"""A judge that no entry uses."""\n')
    assert repro(removed) == set(), "a new judge file alone"

    added = with_changes(pairs=pairs("expected_dice"), judges={**TINY["judges"], "second": {"kind": "agreement"}})
    assert repro(added) == base | mines | {"judge@second"}, "an added judge"

    sheet = pl.read_parquet(dvc_run / "data/proposals/proposals.parquet").select("case_id", "proposal")
    (dvc_run / "qc").mkdir()
    sheet.with_columns(score=pl.col("proposal").cast(pl.Float64)).write_csv(dvc_run / "qc/scores.csv")
    table = {"kind": "table", "path": "qc/scores.csv"}
    listed = with_changes(judges=added["judges"], pairs=pairs("tool"), tables={"tool": table})
    assert repro(listed) == base | mines | student | {"table@tool"}, "scores of another tool"

    knob = {**listed, "tables": {"tool": {**table, "higher_is_better": False}}}
    assert repro(knob) == base | mines | student | {"table@tool"}, "a changed knob of a judge"

    sheet.with_columns(score=(pl.col("proposal") - 3.0).abs()).write_csv(dvc_run / "qc/scores.csv")
    assert repro(knob) == base | mines | student | {"table@tool"}, "a changed file of scores"

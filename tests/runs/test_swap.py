"""What `dvc repro` runs after a change of judges: exactly what must run, and never the proposals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.fixtures.chain import TINY, checkout, locked, repro, with_changes, write_params

pytestmark = pytest.mark.first

TARGETS = ("audit", "mine", "evaluate")
"""All but the report, which any of these changes remakes."""
BASE = {**TINY["base"], "folds": 2}
"""With out-of-fold proposals from the start, so that a learned judge finds them."""
LEARNED = {
    "kind": "quality",
    "networks": 1,
    "network": {"name": "DenseNet", "arguments": {"init_features": 4, "growth_rate": 2, "block_config": [1, 1]}},
    "optimisation": {"steps": 2, "learning_rate": 1e-3, "evaluate_every": 1},
    "batch": 4,
}
KEPT = ("models/base", "data/proposals", "data/out_of_fold")


def made(folder: Path) -> dict[str, int]:
    """When each file of the base and of the proposals was written, in nanoseconds."""
    files = (path for kept in KEPT for path in (folder / kept).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}


@pytest.fixture(scope="module")
def dvc_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dvc") / "project"
    checkout(folder, with_changes(base=BASE, judges={**TINY["judges"], "spare": {"kind": "agreement"}}))
    ran = repro(folder, *TARGETS)
    assert {"prepare", "base", "propose", "judge@spare", "evaluate@rn_dpo"} <= ran
    return folder


def test_a_judge_swap_runs_exactly_what_must_run(dvc_run: Path) -> None:
    """One DVC project through every kind of swap; proposals and the base are never remade."""
    base = {"panel", "audit"}
    mines = {"mine@none", "mine@mined"}
    student = {"train@rn_dpo", "evaluate@rn_dpo"}
    written, hashed = made(dvc_run), locked(dvc_run, "base", "propose")
    assert {Path(path).parts[1] for path in written} == {"base", "proposals", "out_of_fold"}

    def ran(**changes: Any) -> set[str]:
        write_params(dvc_run, with_changes(base=BASE, **changes))
        return repro(dvc_run, *TARGETS)

    def pairs(judge: str) -> dict[str, Any]:
        return {**TINY["pairs"], "mined": {**TINY["pairs"]["mined"], "judge": judge}}

    judges = {**TINY["judges"], "spare": {"kind": "agreement"}}
    # The curves of all pair sets are one file: all are mined again, and those with equal bytes stop there.
    assert ran(judges=judges, pairs=pairs("expected_dice")) == {"audit"} | mines | student, "another judge for a set"

    removed: dict[str, Any] = {"pairs": pairs("expected_dice")}
    assert ran(**removed) == base | mines, "a removed judge: pairs have equal bytes, so no student is trained"
    assert "score_spare" not in pl.read_parquet(dvc_run / "data/panel.parquet").columns

    judges = {"learned": LEARNED, "expected_dice": {"kind": "expected_dice"}}
    swapped = {"judges": judges, "pairs": pairs("learned")}
    # An untrained network may order proposals as expected_dice does; then the student's bytes are equal and stop there.
    found = ran(**swapped) | {"evaluate@rn_dpo"}
    assert found == base | mines | student | {"judge@learned"}, "agreement swapped for a learned judge"
    assert (dvc_run / "models/judges/learned/judge.json").is_file()

    consensus = {"both": {"kind": "rank_mean", "judges": ["learned", "expected_dice"]}}
    assert ran(**swapped, consensus=consensus) == base | mines, "a consensus entry runs no judge"
    assert "score_both" in pl.read_parquet(dvc_run / "data/panel.parquet").columns

    sheet = pl.read_parquet(dvc_run / "data/proposals/proposals.parquet").select("case_id", "proposal")
    (dvc_run / "qc").mkdir()
    sheet.with_columns(score=pl.col("proposal").cast(pl.Float64)).write_csv(dvc_run / "qc/scores.csv")
    table = {"kind": "table", "path": "qc/scores.csv"}
    listed: dict[str, Any] = {"judges": judges, "pairs": pairs("tool")}
    assert ran(**listed, tables={"tool": table}) == base | mines | student | {"table@tool"}, "scores of another tool"

    listed["tables"] = {"tool": {**table, "higher_is_better": False}}
    assert ran(**listed) == base | mines | student | {"table@tool"}, "a changed knob of a judge"

    sheet.with_columns(score=(pl.col("proposal") - 3.0).abs()).write_csv(dvc_run / "qc/scores.csv")
    assert ran(**listed) == base | mines | student | {"table@tool"}, "a changed file of scores"

    assert made(dvc_run) == written, "neither base nor proposals were written again"
    assert locked(dvc_run, "base", "propose") == hashed

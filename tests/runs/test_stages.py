"""The chain as a user runs it: its outputs, determinism, and what the labels of the pool may reach."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import polars as pl
import pytest

from pipeline.promotion.record import PromotionRecord
from tests.fixtures.chain import ROOT, TINY, commands, hashes, run_chain, with_changes
from tests.fixtures.phantoms import poison_labels, write_folders

EXPECTED = {
    "data/proposals/proposals.parquet",
    "data/scores/agreement.parquet",
    "data/panel.parquet",
    "data/pairs/mined.parquet",
    "data/pairs/mined.drops.json",
    "models/base/base.safetensors",
    "models/base/member_1.safetensors",
    "models/students/rn_dpo/best.safetensors",
    "models/students/rn_dpo/student.json",
    "models/promoted/promotion.json",
    "history/rn_dpo.csv",
    "audit/judges.parquet",
    "evaluation/rn_dpo.json",
    "evaluation/rn_dpo.parquet",
    "metrics/rn_dpo.json",
    "validation/base.parquet",
    "validation/rn_dpo.parquet",
    "reports/curves.csv",
    "reports/index.html",
}

SAID = "said.txt"
"""What the stages of the first run wrote on standard output."""

pytestmark = pytest.mark.first


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain") / "first"
    with redirect_stdout(io.StringIO()) as said:
        run_chain(folder, TINY)
    (folder / SAID).write_text(said.getvalue())
    return folder


def test_the_chain_ends_with_pairs_students_and_a_report(first_run: Path) -> None:
    assert set(hashes(first_run)) >= EXPECTED
    pairs = pl.read_parquet(first_run / "data/pairs/mined.parquet")
    assert len(pairs)
    assert (pairs["chosen_score"] > pairs["rejected_score"]).all()
    assert not (first_run / ".work").exists() or not any((first_run / ".work").iterdir())


def test_every_stage_says_what_came_of_it(first_run: Path) -> None:
    """Progress is off, so the findings are all that is printed. Numbers are those of the files."""
    lines = (first_run / SAID).read_text().splitlines()
    names = list(dict.fromkeys(line.partition(": ")[0] for line in lines))
    called = [line.split()[2:4] for line in commands(TINY)]
    assert names == [
        stage.removeprefix("stages.") + (f" {entry}" if not entry.startswith("--") else "") for stage, entry in called
    ]
    assert not [line for line in lines if "cannot be said" in line]
    said = dict(line.split(": ", 1) for line in lines)
    assert said["prepare"] == (
        "28 cases of 13 patients, 28 with mask: labelled 6, pool 10, validation 6, test 6; 1 channel; 32x32 pixels"
    )
    assert said["mine mined"].startswith(f"{len(pl.read_parquet(first_run / 'data/pairs/mined.parquet'))} pairs of ")
    tables = [pl.read_parquet(first_run / f"validation/{name}.parquet") for name in ("base", "rn_dpo")]
    base, student = (100 * table.group_by("group").agg(pl.col("dice").mean())["dice"].mean() for table in tables)
    found = re.match(r"Dice ([\d.]+) \[—\] points on 6 validation cases of 3 patients, (\S+) ", said["validate rn_dpo"])
    assert found is not None
    gain = float(found[2].replace("\N{MINUS SIGN}", "-"))
    assert (float(found[1]), gain) == pytest.approx((student, student - base), abs=0.051)
    assert said["report"].endswith("; reports/index.html")


def test_metrics_are_few_flat_numbers_that_dvc_can_show(first_run: Path) -> None:
    """The Dice is that of the summary beside the evaluation table."""
    for name in ("base", "supervised", "rn_dpo"):
        metrics = json.loads((first_run / f"metrics/{name}.json").read_text())
        assert 3 <= len(metrics) <= 6
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in metrics.values())
        summary = json.loads((first_run / f"evaluation/{name}.json").read_text())
        assert metrics["dice"] == summary["dice"]["mean"] == summary["sustained"]
        assert ("gain" in metrics) == (name != "base")


def test_students_are_measured_on_validation_and_compared(first_run: Path) -> None:
    """By their last weights alone, so peak and Dice are equal. Three patients are too few to promote one."""
    cases = pl.read_parquet(first_run / "data/cases/cases.parquet").filter(pl.col("split") == "validation")
    tables = {name: pl.read_parquet(first_run / f"validation/{name}.parquet") for name in ("base", "rn_dpo")}
    for table in tables.values():
        assert set(table["case_id"]) == set(cases["case_id"])
        assert table["dice"].equals(table["dice_peak"].alias("dice"))
    record = PromotionRecord.of(first_run / "models/promoted")
    assert record is not None
    assert [student.name for student in record.students] == ["rn_dpo", "supervised"]
    assert all(student.candidate for student in record.students)
    assert record.promoted is None
    assert "validation has 3 patients, fewer than promotion.min_patients (15)" in record.reason
    gain = (tables["rn_dpo"]["dice"] - tables["base"]["dice"]).mean()
    assert record.students[0].over_base.gain == pytest.approx(gain)


def test_the_notebook_reads_the_tables_and_shows_pairs(first_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user opens `docs/tables.ipynb` beside a finished run. It is kept without outputs."""
    nbclient, _ = pytest.importorskip("nbclient"), pytest.importorskip("duckdb")
    import nbformat

    notebook = nbformat.read(ROOT / "docs/tables.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell for cell in code if cell.outputs or cell.execution_count]
    (first_run / "docs").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    place = {"metadata": {"path": str(first_run / "docs")}}
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in code for output in cell.outputs]
    pairs = pl.read_parquet(first_run / "data/pairs/mined.parquet")
    assert any(f"mined: {len(pairs)} pairs" in output.get("text", "") for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert all(cell.outputs for cell in code[1:])


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_every_output_has_equal_bytes_again_and_on_any_scheduler(
    first_run: Path, tmp_path: Path, scheduler: str
) -> None:
    """The first run was synchronous."""
    again = tmp_path / "again"
    skip: tuple[str, ...] = ()
    if scheduler == "threads":
        # Two models never share a process, so under threads they are trained as they are under processes.
        skip = ("base",)
        shutil.copytree(first_run / "models/base", again / "models/base")
        (again / "history").mkdir()
        shutil.copy(first_run / "history/base.csv", again / "history")
    # Slots per case are small here, so that every store has several shards to share out.
    run_chain(again, with_changes(execution={"scheduler": scheduler, "workers": 2, "progress": "none"}), skip)
    expected, found = (hashes(folder, without="") for folder in (first_run, again))
    assert found == expected


def test_labels_of_the_pool_reach_the_oracle_and_nothing_else(tmp_path: Path) -> None:
    params = with_changes(
        data={"kind": "folders", "path": "raw", "classes": ["background", "disc"]},
        splits={"labelled": 5, "pool": 8, "validation": 5, "test": 4},
        promotion={"min_patients": 5, "bootstrap": 50},
        judges={"agreement": {"kind": "agreement"}, "oracle": {"kind": "oracle"}},
        pairs={**TINY["pairs"], "ceiling": {"judge": "oracle", "strategy": {"kind": "top_bottom"}}},
        students={
            **TINY["students"],
            "ceiling": {"pairs": "ceiling", "objective": {"kind": "preference"}, "anchor": None},
            "full": {"pairs": "none", "objective": {"kind": "full", "optimisation": TINY["training"]["optimisation"]}},
        },
    )
    write_folders(tmp_path / "clean" / "raw", cases=22, shape=(24, 24))
    shutil.copytree(tmp_path / "clean", tmp_path / "poisoned")
    run_chain(tmp_path / "clean", params, skip=("report",))
    cases = pl.read_parquet(tmp_path / "clean/data/cases/cases.parquet")
    poison_labels(tmp_path / "poisoned/raw", cases.filter(pl.col("split") == "pool")["case_id"])
    run_chain(tmp_path / "poisoned", params, skip=("report",))
    clean, poisoned = (hashes(tmp_path / name) for name in ("clean", "poisoned"))
    changed = {path for path in clean if clean[path] != poisoned[path]}
    assert {
        "data/scores/oracle.parquet",
        "data/pairs/ceiling.parquet",
        "models/students/full/last.safetensors",
    } <= changed
    descendants = {
        path for path in clean if path.split("/")[-1].split(".")[0] in ("oracle", "ceiling", "full", "panel")
    } | {path for path in clean if path.startswith(("models/students/ceiling/", "models/students/full/"))}
    # The record shows the gains of these students too, and the manifest has the hash of the record.
    record_files = {f"models/promoted/{name}.json" for name in ("promotion", "manifest")}
    assert changed <= descendants | record_files
    assert "models/promoted/last.safetensors" in clean
    records = [PromotionRecord.of(tmp_path / name / "models/promoted") for name in ("clean", "poisoned")]
    chosen = [
        (record.promoted, record.reason, [student for student in record.students if student.candidate])
        for record in records
        if record is not None
    ]
    assert chosen[0] == chosen[1]
    assert [student.name for student in chosen[0][2]] == ["rn_dpo", "supervised"]
    assert all(student.over_base.lower_bound is not None for student in chosen[0][2])
    panels = [pl.read_parquet(tmp_path / name / "data/panel.parquet") for name in ("clean", "poisoned")]
    assert panels[0].drop("score_oracle").equals(panels[1].drop("score_oracle"))

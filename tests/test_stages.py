"""The chain as a user runs it: determinism, what labels may reach, what a swap reruns, and resuming."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from tests.chain import TINY, checkout, dvc, hashes, run_chain, stages_run, with_changes, write_params
from tests.phantoms import poison_labels, write_folders

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
    "history/rn_dpo.csv",
    "audit/judges.parquet",
    "evaluation/rn_dpo.parquet",
    "metrics/rn_dpo.json",
    "reports/index.html",
}


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain") / "first"
    run_chain(folder, TINY)
    return folder


def test_the_chain_ends_with_pairs_students_and_a_report(first_run: Path) -> None:
    assert set(hashes(first_run)) >= EXPECTED
    pairs = pl.read_parquet(first_run / "data/pairs/mined.parquet")
    assert len(pairs)
    assert (pairs["chosen_score"] > pairs["rejected_score"]).all()
    assert not (first_run / ".work").exists() or not any((first_run / ".work").iterdir())


@pytest.mark.parametrize(("scheduler", "workers"), [("synchronous", 1), ("threads", 2), ("processes", 2)])
def test_every_output_has_equal_bytes_again_and_on_any_scheduler(
    first_run: Path, tmp_path: Path, scheduler: str, workers: int
) -> None:
    execution = {"scheduler": scheduler, "workers": workers, "progress": "none"}
    # Slots per case are small here, so that every store has several shards to share out.
    run_chain(tmp_path / "again", with_changes(execution=execution))
    expected, found = (hashes(folder, without="") for folder in (first_run, tmp_path / "again"))
    assert found == expected


def test_labels_of_the_pool_reach_the_oracle_and_nothing_else(tmp_path: Path) -> None:
    params = with_changes(
        data={"kind": "folders", "path": "raw", "classes": ["background", "disc"]},
        splits={"labelled": 5, "pool": 8, "validation": 4, "test": 4},
        judges={"agreement": {"kind": "agreement"}, "oracle": {"kind": "oracle"}},
    )
    write_folders(tmp_path / "clean" / "raw", cases=21, shape=(24, 24))
    shutil.copytree(tmp_path / "clean", tmp_path / "poisoned")
    run_chain(tmp_path / "clean", params, skip=("report",))
    cases = pl.read_parquet(tmp_path / "clean/data/cases/cases.parquet")
    poison_labels(tmp_path / "poisoned/raw", cases.filter(pl.col("split") == "pool")["case_id"])
    run_chain(tmp_path / "poisoned", params, skip=("report",))
    clean, poisoned = (hashes(tmp_path / name) for name in ("clean", "poisoned"))
    changed = {path for path in clean if clean[path] != poisoned[path]}
    assert changed == {"data/scores/oracle.parquet", "data/panel.parquet"}
    panels = [pl.read_parquet(tmp_path / name / "data/panel.parquet") for name in ("clean", "poisoned")]
    assert panels[0].drop("score_oracle").equals(panels[1].drop("score_oracle"))


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

    def repro(params: dict) -> set[str]:
        write_params(dvc_run, params)
        return stages_run(dvc(dvc_run, "repro", *TARGETS))

    def pairs(judge: str) -> dict:
        return {**TINY["pairs"], "mined": {"judge": judge, "strategy": {"kind": "top_bottom"}}}

    judges = {**TINY["judges"], "spare": {"kind": "agreement"}}
    assert repro(with_changes(judges=judges)) == set(), "nothing changed"

    swapped = with_changes(judges=judges, pairs=pairs("expected_dice"))
    assert repro(swapped) == {"audit", "mine@mined"} | student, "another judge for a pair set"

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


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", *arguments],
        cwd=folder,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_after_a_shard(folder: Path, target: str, work: str) -> list[str]:
    """`kill -9` of a whole `dvc repro` once a shard is done; the names of the finished shards."""
    running = start(folder, target)
    deadline = time.monotonic() + 120
    done: list[Path] = []
    while not done:
        assert running.poll() is None, "the stage ended before it could be killed; make it longer"
        assert time.monotonic() < deadline
        done = list((folder / ".work" / work).glob("*/done/*.arrow"))
        time.sleep(0.002)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    return sorted(path.name for path in (folder / ".work" / work).glob("*/done/*.arrow"))


def test_a_killed_stage_resumes_with_equal_bytes_but_not_after_a_change_of_code(tmp_path: Path) -> None:
    many = {"kind": "mc_dropout", "rates": [0.3], "passes": 30, "at": "all"}
    params = with_changes(
        data={**TINY["data"], "cases": 120},
        splits={"labelled": 6, "pool": 90, "validation": 10, "test": 6},
        propose={"samplers": {"dropout": many}},
    )
    folder = tmp_path / "project"
    checkout(folder, params)
    dvc(folder, "repro", "base")

    finished = kill_after_a_shard(folder, "propose", "propose")
    assert not (folder / "data/proposals").exists()
    (work,) = (folder / ".work/propose").iterdir()
    before = {name: (work / "done" / name).stat().st_mtime_ns for name in finished}
    # A second kill proves that finished shards are kept, not made again.
    kill_after = kill_after_a_shard(folder, "propose", "propose")
    assert set(finished) <= set(kill_after)
    assert all((work / "done" / name).stat().st_mtime_ns == stamp for name, stamp in before.items())
    dvc(folder, "repro", "judge@agreement")
    resumed = hashes(folder)

    other = tmp_path / "uninterrupted"
    checkout(other, params)
    dvc(other, "repro", "judge@agreement")
    assert hashes(other) == resumed

    with (folder / "pipeline/samplers/mc_dropout.py").open("a") as file:
        file.write("\n# Another version.\n")
    kill_after_a_shard(folder, "propose", "propose")
    (fresh,) = (folder / ".work/propose").iterdir()
    assert fresh.name != work.name
    with (folder / "pipeline/samplers/mc_dropout.py").open("a") as file:
        file.write("# And another.\n")
    dvc(folder, "repro", "judge@agreement")
    assert hashes(folder) == resumed

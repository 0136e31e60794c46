"""A second round that starts from the last student: the same test cases, the student's bits, a report and an audit."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from tests.fixtures.chain import TINY, run_chain, with_changes


def test_a_round_starts_from_the_student_of_the_last_one(tmp_path: Path) -> None:
    """The round of docs/models.md: the parameters again with another `model` and `base`, and late steps as proposals.

    The student is one of a preference objective. The run goes through to its report.
    """
    first, second = tmp_path / "round_1", tmp_path / "round_2"
    # Six patients of validation: fewer than five show nothing.
    sizes = {"data": {**TINY["data"], "cases": 36}, "splits": {**TINY["splits"], "validation": 12}}
    training = {**TINY["training"], "optimisation": {**TINY["training"]["optimisation"], "steps": 20}}
    students = {"rn_dpo": TINY["students"]["rn_dpo"]}
    run_chain(first, with_changes(**sizes, training=training, students=students), skip=("report",))
    student = first / "models/students/rn_dpo"
    steps = json.loads((student / "student.json").read_text())["late"]
    assert len(steps) > 1
    base = {"kind": "checkpoint", "snapshots": steps}
    samplers = {**TINY["propose"]["samplers"], "snapshots": {"kind": "snapshots"}}
    samplers.pop("ensemble")
    changes = {
        "model": "../round_1/models/students/rn_dpo",
        "base": base,
        "propose": {**TINY["propose"], "samplers": samplers},
    }
    run_chain(second, with_changes(**sizes, training=training, students=students, **changes))
    assert (second / "models/base/base.safetensors").read_bytes() == (student / "last.safetensors").read_bytes()
    for step in steps:
        assert (second / f"models/base/{step}.safetensors").read_bytes() == (
            student / f"{step}.safetensors"
        ).read_bytes()
    cases = [pl.read_parquet(folder / "data/cases/cases.parquet") for folder in (first, second)]
    assert cases[0].equals(cases[1])
    proposals = pl.read_parquet(second / "data/proposals/proposals.parquet")
    assert proposals.filter(sampler="snapshots")["setting"].unique().sort().to_list() == steps
    # What the first round measured for the student's last step is what the second starts from.
    history = pl.read_csv(first / "history/rn_dpo.csv")
    (start,) = pl.read_csv(second / "history/base.csv")["validation_dice"]
    assert start == history["validation_dice"][-1]
    headroom = json.loads((second / "audit/summary.json").read_text())["headroom"]
    assert headroom["verdict"].startswith(("headroom left: ", "headroom not shown: ", "no headroom shown: "))
    verdict = headroom["verdict"][0].upper() + headroom["verdict"][1:]
    assert verdict in (second / "reports/index.html").read_text()
    assert (second / "metrics/rn_dpo.json").is_file()

"""What reruns after an edit of code, and what does not: real DVC, with stages that only write their outputs."""

from __future__ import annotations

import hashlib
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.fixtures.chain import ROOT, TINY, checkout, repro, with_changes, write_params

CDPO = {"kind": "preference", "link": {"kind": "cdpo"}}
PARAMS = with_changes(
    students={
        **TINY["students"],
        "rn_cdpo": {"pairs": "mined", "objective": CDPO, "anchor": {"supervised": 1.0}},
        "mapo": {"pairs": "none", "objective": {"kind": "mapo", "ranker": {"kind": "agreement"}}, "anchor": None},
    }
)
STUDENTS = set(PARAMS["students"])
CHOSEN = {"promote", "report"}
"""Stages that follow from every student."""


def followed(*students: str) -> set[str]:
    """Stages that rerun after training of these students."""
    return {f"{stage}@{name}" for stage in ("train", "evaluate", "validate") for name in students} | CHOSEN


TRAINED = followed(*STUDENTS)


def write_outputs(command: str) -> None:
    """Stands for a stage: its outputs hold a hash of the code, of the command and of the stage's parameters.

    So the outputs change where the code or the parameters do, and never else; what a stage reads is left out, but for
    the file of pairs.
    """
    _, _, module, *arguments = shlex.split(command)
    stage = module.removeprefix("stages.")
    options = dict(pairwise(arguments))
    written = ("--out", "--metrics", "--history", "--out-of-fold", "--notes")
    outs = [Path(options[name]) for name in written if name in options]
    name = arguments[0] if not arguments[0].startswith("--") else ""
    if stage == "judge":
        outs = [outs[0], Path("models/judges") / name]
    if stage == "mine":
        outs.append(outs[0].with_suffix(".drops.json"))
    if stage == "evaluate":
        outs.append(outs[0].with_suffix(".json"))
    if stage == "audit":
        outs = [outs[0] / "calibration.parquet"]
    content = f"{command} {code_of(stage, name)} {read(options.get('--pairs'))} {knobs_of(stage, name)}"
    for out in outs:
        out.parent.mkdir(parents=True, exist_ok=True)
        # The mark of `check` is always empty, so that the base does not follow from the code of the check.
        out.write_text("" if out.name == "checked" else hashlib.sha256(content.encode()).hexdigest())


def code_of(stage: str, name: str) -> str:
    found = [f"provenance/{stage}/{name}.json", f"provenance/{stage}.json"]
    return next(read(file) for file in found if Path(file).is_file())


def read(file: str | None) -> str:
    return "" if file is None else Path(file).read_text()


def knobs_of(stage: str, name: str) -> Any:
    """The judge of a pair set: the one parameter that these tests change."""
    pairs = YAML(typ="safe").load(Path("params.yaml"))["pairs"]
    return pairs if stage == "audit" else pairs[name] if stage == "mine" else ""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has nothing left to do. Every test edits the project once more and runs what follows."""
    folder = tmp_path_factory.mktemp("provenance") / "project"
    checkout(folder, PARAMS)
    assert rerun(folder) == {
        "prepare",
        "base",
        "propose",
        "panel",
        "audit",
        "evaluate_base",
        "validate_base",
    } | TRAINED | {*("judge@agreement", "judge@expected_dice", "mine@none", "mine@mined")}
    assert rerun(folder) == set()
    return folder


def rerun(folder: Path) -> set[str]:
    return repro(folder, run_stage=write_outputs)


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text, f"{file} has no '{old}'"
    file.write_text(text.replace(old, new, 1))


def test_a_project_without_students_runs_to_its_report(tmp_path: Path) -> None:
    """`promote` depends on the folder of the students, which git keeps."""
    checkout(tmp_path / "project", with_changes(students={}))
    ran = rerun(tmp_path / "project")
    assert CHOSEN | {"validate_base", "evaluate_base"} <= ran
    assert not [name for name in ran if name.startswith(("train@", "validate@", "evaluate@"))]


def add_code(file: Path) -> None:
    file.write_text(file.read_text() + "\n_ANOTHER_VERSION = True\n")


def test_words_rerun_nothing(project: Path) -> None:
    """A comment, a docstring and a reformatted line, in files that all stages use."""
    change(project / "pipeline/store/schema.py", "VERSION = ", "# A comment.\nVERSION = ")
    change(project / "pipeline/seeding.py", '"""', '"""Words. ')
    change(project / "pipeline/students/student.py", '    """', '    """Words. ')
    change(project / "pipeline/measures/overlap.py", "\n\n\ndef ", "\n\n\n\n\ndef ")
    assert rerun(project) == set()


NEW_KINDS = {
    "judges/kinds": ("expected_dice", "ExpectedDice"),
    "proposals/samplers": ("snapshots", "Snapshots"),
    "pairs/strategies": ("random", "Random"),
    "students/links": ("hinge", "Hinge"),
    "students/objectives": ("distill", "Distill"),
    "cases/readers": ("phantom", "Phantom"),
}
"""Per family a kind to copy: its file, and its class."""


def test_a_new_kind_of_every_family_reruns_nothing(project: Path) -> None:
    """One more file, with its line in the union: until params.yaml names the kind, no result follows from it."""
    for family, (kind, name) in NEW_KINDS.items():
        folder = project / "pipeline" / family
        text = (folder / f"{kind}.py").read_text()
        assert f'Literal["{kind}"]' in text
        text = text.replace(f'"{kind}"', f'"own_{kind}"').replace(f"class {name}(", f"class Own{name}(")
        (folder / f"own_{kind}.py").write_text(text)
        package = ".".join(("pipeline", *family.split("/")))
        line = f"from {package}.{kind} import {name}\n"
        change(folder / "__init__.py", line, f"{line}from {package}.own_{kind} import Own{name}\n")
        listed = (folder / "__init__.py").read_text()
        union = listed[listed.rindex("Annotated[") :]
        (folder / "__init__.py").write_text(listed.replace(union, re.sub(rf"\b{name}\b", f"Own{name} | {name}", union)))
    assert rerun(project) == set()


def test_kinds_that_params_does_not_name_rerun_nothing(project: Path) -> None:
    assert "morphology" not in {sampler["kind"] for sampler in PARAMS["propose"]["samplers"].values()}
    assert "shape" not in {judge["kind"] for judge in PARAMS["judges"].values()}
    add_code(project / "pipeline/proposals/samplers/morphology.py")
    add_code(project / "pipeline/judges/kinds/shape.py")
    assert rerun(project) == set()


def test_a_judge_that_an_entry_uses_reruns_that_entry(project: Path) -> None:
    """And not the other judge, nor students, but the student that ranks its own hypotheses with this kind of judge."""
    add_code(project / "pipeline/judges/kinds/agreement.py")
    ran = rerun(project)
    assert {"judge@agreement", "audit"} <= ran, "the verdict depends on `research` of the class"
    assert followed("mapo") <= ran
    assert not ran & {"propose", "judge@expected_dice", "train@supervised", "train@rn_dpo", "train@rn_cdpo"}


def test_a_link_reruns_the_students_that_use_it(project: Path) -> None:
    add_code(project / "pipeline/students/links/cdpo.py")
    assert rerun(project) == followed("rn_cdpo")


def test_a_default_of_all_students_reruns_all_students(project: Path) -> None:
    change(project / "pipeline/students/student.py", "average: ", "another: int = 0\n    average: ")
    assert rerun(project) == TRAINED


def test_another_judge_for_a_pair_set_reruns_audit_mining_and_its_students(project: Path) -> None:
    """Proposals, scores and the students of other pair sets stay."""
    mined = {**PARAMS["pairs"]["mined"], "judge": "expected_dice"}
    write_params(project, {**PARAMS, "pairs": {**PARAMS["pairs"], "mined": mined}})
    # The curves of all pair sets are one file, so that all are mined again; those with equal bytes stop there.
    assert rerun(project) == {"audit", "mine@none", "mine@mined"} | followed("rn_dpo", "rn_cdpo")


def test_a_figure_of_the_report_reruns_the_report(project: Path) -> None:
    add_code(project / "pipeline/report/figures.py")
    assert rerun(project) == {"report"}


def test_the_rule_of_promotion_reruns_the_choice_and_no_measure(project: Path) -> None:
    """The students stay as measured, and the report shows the new choice."""
    add_code(project / "pipeline/promotion/promote.py")
    assert rerun(project) == CHOSEN


def test_reading_parameters_ordering_work_and_saying_what_happens_rerun_nothing(project: Path) -> None:
    for name in ("params", "execution", "workspace", "progress", "findings"):
        add_code(project / f"pipeline/{name}.py")
    assert rerun(project) == set()


def test_the_files_say_which_code_made_a_result(project: Path) -> None:
    """They are the same when stage `provenance` runs from a checkout elsewhere."""
    written = {path.relative_to(project).as_posix() for path in (project / "provenance").rglob("*.json")}
    assert {f"provenance/train/{name}.json" for name in STUDENTS} <= written
    assert str(ROOT) not in (project / "provenance/train/rn_cdpo.json").read_text()
    assert "pipeline/students/links/cdpo.py" in (project / "provenance/train/rn_cdpo.json").read_text()


def test_a_sampler_in_use_reruns_proposals(project: Path) -> None:
    """The last test, because the stages after the proposals are left to do."""
    add_code(project / "pipeline/proposals/samplers/threshold.py")
    assert repro(project, "propose", run_stage=write_outputs) == {"propose"}

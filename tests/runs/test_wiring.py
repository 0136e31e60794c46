"""dvc.yaml, stages/, params.yaml and the families agree with each other and with the imports."""

from __future__ import annotations

import ast
import re
import typing
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.cases.readers import Reader
from pipeline.judges.kinds import Judge
from pipeline.params import Params, load_params
from pipeline.proposals.samplers import Sampler
from pipeline.students.objectives import Objective

ROOT = Path(__file__).parents[2]
STAGES: dict[str, Any] = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
FAMILIES = {"cases": Reader, "judges": Judge, "objectives": Objective, "samplers": Sampler}
PLUMBING = {f"pipeline/{name}.py" for name in ("arm", "errors", "execution", "knobs", "params")}
"""Typed reading and order of work: they cannot change a result, as dvc.yaml says."""


def members(family: Any) -> list[type]:
    return list(typing.get_args(typing.get_args(family)[0]))


def imported(file: str) -> set[str]:
    """Files of the library that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "pipeline":
            folder = Path(*node.module.split("."))
            candidates = [folder.with_suffix(".py"), *(folder / f"{alias.name}.py" for alias in node.names)]
            found |= {path.as_posix() for path in candidates if (ROOT / path).is_file()}
    return found


def closure(*files: str) -> set[str]:
    """Files that these files use, without the unions of the families and without plumbing."""
    seen: set[str] = set()
    waiting = set(files)
    while waiting:
        new = {path for file in waiting for path in imported(file)} - seen - PLUMBING
        seen |= new
        waiting = new
    return seen


def body(name: str) -> dict[str, Any]:
    return STAGES[name].get("do", STAGES[name])


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_depends_on_the_code_that_it_uses(name: str) -> None:
    stage = body(name)
    command = re.match(r"python -m stages\.(\w+)", stage["cmd"])
    assert command is not None
    file = f"stages/{command[1]}.py"
    listed = set(stage["deps"])
    assert len(listed) == len(stage["deps"]), f"{name}: deps that are listed twice"
    assert file in listed
    kinds = [file]
    for folder, family in FAMILIES.items():
        if any(dep.startswith(f"pipeline/{folder}/${{") for dep in listed):
            kinds += [
                f"pipeline/{folder}/{member.model_fields['kind'].annotation.__args__[0]}.py"
                for member in members(family)
            ]
    if name == "table":
        kinds = [file, "pipeline/judges/kinds/table.py"]
    if whole := {"propose": "samplers", "base": "bases"}.get(name):
        kinds += [f"pipeline/{whole}/{path.name}" for path in (ROOT / "pipeline" / whole).glob("[a-z]*.py")]
    used = closure(*kinds) | set(kinds)
    folders = [dep for dep in listed if (ROOT / dep).is_dir()]
    missing = {path for path in used if path not in listed and not any(path.startswith(f"{f}/") for f in folders)}
    if kinds != [file] and name not in ("table", "propose", "base"):
        missing -= set(kinds)  # one file of the family is named by its kind
    assert not missing, f"{name}: add to deps in dvc.yaml: {sorted(missing)}"
    unused = {dep for dep in listed if dep.endswith(".py") and "$" not in dep and dep not in used}
    assert not unused, f"{name}: deps that the stage does not use: {sorted(unused)}"


@pytest.mark.parametrize("folder", FAMILIES)
def test_the_name_of_a_kind_is_the_name_of_its_file(folder: str) -> None:
    for member in members(FAMILIES[folder]):
        kind = member.model_fields["kind"].annotation.__args__[0]
        assert member.__module__ == f"pipeline.{folder}.{kind}"


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_described_and_their_parameters_exist(name: str) -> None:
    stage = body(name)
    assert stage["desc"].endswith(".")
    for key in stage["params"]:
        assert key.split(".")[0] in Params.model_fields, key
    if "foreach" in STAGES[name]:
        assert STAGES[name]["foreach"].strip("${}") in Params.model_fields


def test_speed_is_no_stage_s_parameter() -> None:
    assert not any("execution" in body(name)["params"] for name in STAGES)


def test_every_output_is_ignored_by_git_but_metrics() -> None:
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split()}
    for name in STAGES:
        for out in body(name).get("outs", []):
            assert out.split("/")[0] in ignored, out


def test_the_library_does_not_know_the_stages() -> None:
    for path in (ROOT / "pipeline").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) stages", path.read_text(), re.M), path


@pytest.mark.parametrize(
    "file", ["params.yaml", *sorted(f"examples/{p.name}" for p in (ROOT / "examples").glob("*.yaml"))]
)
def test_shipped_parameters_are_valid(file: str) -> None:
    assert load_params(ROOT / file).students

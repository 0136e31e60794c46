"""dvc.yaml, stages/, params.yaml and the families agree with each other."""

from __future__ import annotations

import ast
import inspect
import json
import re
import typing
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import grimp
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from pipeline.cases.readers import Reader
from pipeline.check import check_paths
from pipeline.judges.kinds import Judge
from pipeline.knobs import Knobs
from pipeline.pairs.review_knobs import Review
from pipeline.pairs.strategies import Strategy
from pipeline.params import Params, load_params
from pipeline.proposals.samplers import Sampler
from pipeline.provenance import stages_and_knobs
from pipeline.students.links import Link
from pipeline.students.objectives import Objective
from segpref import SECTIONS, command, main, names

ROOT = Path(__file__).parents[2]
STAGES: dict[str, Any] = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
FAMILIES = {
    "cases.readers": Reader,
    "judges.kinds": Judge,
    "pairs.strategies": Strategy,
    "proposals.samplers": Sampler,
    "students.links": Link,
    "students.objectives": Objective,
}
PROVENANCE_OF = {
    "evaluate_base": "evaluate",
    "evaluate": "evaluate",
    "validate_base": "validate",
    "validate": "validate",
}
"""Stages whose file in provenance/ has another name: base and students are measured by the same code."""


def members(family: Any) -> list[type]:
    return list(typing.get_args(typing.get_args(family)[0]))


def body(name: str) -> dict[str, Any]:
    return STAGES[name].get("do", STAGES[name])


def test_no_line_names_a_file_of_code() -> None:
    """Three folders for stage `provenance`, and no other dependency of any stage is code."""
    for name in STAGES:
        code = [dep for dep in body(name)["deps"] if dep.startswith(("pipeline", "stages", "kinds"))]
        assert code == (["pipeline", "stages", "kinds"] if name == "provenance" else [])
    assert ".py" not in (ROOT / "dvc.yaml").read_text()


@pytest.mark.parametrize("name", [name for name in STAGES if name != "provenance"])
def test_every_stage_depends_on_its_own_provenance(name: str) -> None:
    stage, params = body(name), load_params(ROOT / "params.yaml")
    command = re.match(r"python -m stages\.(\w+)", stage["cmd"])
    assert command is not None
    listed = [dep for dep in stage["deps"] if dep.startswith("provenance/")]
    own = PROVENANCE_OF.get(name, f"{name}/${{key}}" if "foreach" in STAGES[name] else name)
    assert listed == [f"provenance/{own}.json"]
    written = {title: module for title, module, _ in stages_and_knobs(params)}
    entries = getattr(params, STAGES[name]["foreach"].strip("${}")) if "foreach" in STAGES[name] else [""]
    for key in entries:
        assert written[own.replace("${key}", key)] == command[1]


def test_every_block_but_execution_may_choose_code() -> None:
    """`provenance` depends on every block of params.yaml; `seed`, `model` and `review` choose no kind."""
    assert set(STAGES["provenance"]["params"]) == set(Params.model_fields) - {"execution", "seed", "model", "review"}


def test_what_provenance_leaves_out_has_no_default_that_changes_a_result() -> None:
    """params.py only reads: its defaults are empty, or say that nothing is read. Speed is no result."""
    defaults = {name: field.default for name, field in Params.model_fields.items() if not field.is_required()}
    empty = {"tables": {}, "experts": {}, "consensus": {}}
    assert defaults == {"model": Path("raw/none"), "review": Review(), **empty}
    assert not any("execution" in body(name)["params"] for name in STAGES)


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline").rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_packages_only_list(path: Path) -> None:
    """No result follows from an `__init__.py`: it has imports, unions and assignments of names, but no definitions."""
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.Expr)
    assert all(isinstance(node, allowed) for node in ast.parse(path.read_text()).body)


def test_no_module_is_imported_by_a_name_that_is_made_at_run_time() -> None:
    """The import graph would not see such a module, and its edits would rerun nothing.

    `code_of` looks for the files of own kinds itself.
    """
    for path in {*(ROOT / "pipeline").rglob("*.py")} - {ROOT / "pipeline/own_kinds.py"}:
        assert not re.search(r"\b(import_module|__import__)\b", path.read_text()), path


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Not even through a function's body or a union; imports for type checkers alone do not run."""
    graph = grimp.build_graph("pipeline", "stages", exclude_type_checking_imports=True, cache_dir=None)
    order = TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules})
    order.prepare()  # raises CycleError with the circle


@pytest.mark.parametrize("folder", FAMILIES)
def test_the_name_of_a_kind_is_the_name_of_its_file(folder: str) -> None:
    for member in members(FAMILIES[folder]):
        assert issubclass(member, Knobs)
        kind = member.model_fields["kind"].annotation.__args__[0]  # type: ignore[union-attr]
        assert member.__module__ == f"pipeline.{folder}.{kind}"


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_described_and_their_parameters_exist(name: str) -> None:
    stage = body(name)
    assert stage["desc"].endswith(".")
    for key in stage["params"]:
        assert key.split(".")[0] in Params.model_fields, key
    if "foreach" in STAGES[name]:
        assert STAGES[name]["foreach"].strip("${}") in Params.model_fields


MODULES = sorted({body(name)["cmd"].split()[2].removeprefix("stages.") for name in STAGES})


@pytest.mark.parametrize("module", MODULES)
def test_a_stage_lists_the_blocks_that_it_reads(module: str) -> None:
    """Else an edit of a block would leave an old result. Stages of one module read different parts of params.yaml."""
    code = (ROOT / f"stages/{module}.py").read_text()
    if module == "check":
        # `check_paths` runs in stage `provenance`.
        code += (ROOT / "pipeline/check.py").read_text().replace(inspect.getsource(check_paths), "")
    # Speed is no result, and the files of `model` are a dependency.
    read = set(re.findall(r"\bparams\.(\w+)", code)) & set(Params.model_fields) - {"execution", "model"}
    stages = [body(name) for name in STAGES if body(name)["cmd"].split()[2] == f"stages.{module}"]
    assert read <= {key.split(".")[0] for stage in stages for key in stage["params"]}


def test_every_output_is_ignored_by_git_but_metrics() -> None:
    ignored = {line.strip("/*") for line in (ROOT / ".gitignore").read_text().split()}
    for name in STAGES:
        for out in body(name).get("outs", []):
            assert out.split("/")[0] in ignored, out


def test_plots_are_of_outputs_and_have_their_template() -> None:
    """A plot of a file that no stage writes would be left out without a word."""
    ignored = (ROOT / ".gitignore").read_text().split(), (ROOT / ".dvcignore").read_text().split()
    assert "/dvc_plots" in ignored[0]
    assert "/dvc_plots/" in ignored[1]
    outs = [Path(out) for name in STAGES for out in body(name).get("outs", [])]
    for plot in YAML(typ="safe").load(ROOT / "dvc.yaml")["plots"]:
        ((file, drawn),) = plot.items()
        assert [out for out in outs if out == Path(file) or out in Path(file).parents], file
        template = json.loads((ROOT / f".dvc/plots/{drawn['template']}.json").read_text())
        assert template["encoding"]["color"]["field"] == "model"


def test_new_answers_rerun_the_expert_and_what_uses_the_answers_and_nothing_else() -> None:
    """Stages downstream of `review.verdicts`, by the files that they read and write, for every name of a `foreach`."""
    reads = {name: body(name)["deps"] for name in STAGES}
    stale, changed = {"${review.verdicts}"}, set()
    while more := [name for name in STAGES if name not in changed and _reads(reads[name], stale)]:
        changed |= set(more)
        stale |= {out if isinstance(out, str) else next(iter(out)) for name in more for out in body(name)["outs"]}
    assert changed == {
        *("expert", "panel", "audit", "mine"),
        # DVC compares bytes: a student reruns if its own pairs have changed.
        *("train", "evaluate", "validate", "promote", "report"),
    }
    direct = {name for name in STAGES if "${review.verdicts}" in reads[name]}
    assert direct == {"expert", "audit", "mine"}
    # The pairs of one set are one file, so only the students of this set depend on the file.
    assert "data/pairs/${item.pairs}.parquet" in reads["train"]
    assert "data/pairs" not in reads["train"]


def _reads(deps: list[str], stale: set[str]) -> bool:
    """Whether one of the files or folders was written anew, or holds or lies in one that was."""

    def fixed(path: str) -> str:
        return re.sub(r"\$\{(key|item\.pairs)\}", "NAME", path)

    paths = [(Path(fixed(dep)), Path(fixed(out))) for dep in deps for out in stale]
    return any(dep == out or out in dep.parents or dep in out.parents for dep, out in paths)


def test_no_output_lies_inside_another() -> None:
    outs = [Path(out) for name in STAGES for out in body(name).get("outs", [])]
    assert not [out for out in outs if any(other in out.parents for other in outs)]


def test_nothing_of_test_reaches_the_choice_of_a_student() -> None:
    """`promote` and the stages before it depend on no output of the stages that measure on test."""
    of_test = {"evaluation", "metrics", "reports"}
    for name in ("validate_base", "validate", "promote"):
        assert not of_test & {dep.split("/")[0] for dep in body(name)["deps"]}


@pytest.mark.parametrize(
    "file", ["params.yaml", *sorted(f"examples/{p.name}" for p in (ROOT / "examples").glob("*.yaml"))]
)
def test_shipped_parameters_are_valid(file: str) -> None:
    assert load_params(ROOT / file).students


def test_the_program_shows_every_command() -> None:
    shown = [name for section in SECTIONS.values() for name in section]
    assert sorted(shown) == names()
    help_text = CliRunner().invoke(command("predict"), ["--help"]).output
    assert "Trained model and new images" in help_text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prdict"], "No such command 'prdict'. Did you mean 'predict'?"),
        (["nextround"], "No such command 'nextround'. Did you mean 'next-round'?"),
        (["zzz"], "No such command 'zzz'.\n"),
    ],
)
def test_a_misspelt_command(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert said in capsys.readouterr().err

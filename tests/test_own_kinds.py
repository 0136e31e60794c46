"""Kinds in the folder `kinds` of a project: they join the families, run in workers and count as code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.errors import BadInput
from pipeline.judges.judge import JudgeKnobs
from pipeline.judges.kinds.agreement import Agreement
from pipeline.own_kinds import load_own_kinds
from pipeline.params import load_params
from pipeline.source_code import code_of
from tests.fixtures.chain import TINY

JUDGE = """
from typing import Literal

from kinds._helper import constant
from pipeline.judges.judge import Evidence, JudgeKnobs


class Constant(JudgeKnobs):
    kind: Literal["constant"]
    value: float = 0.5

    def score(self, evidence: Evidence):
        return constant(len(evidence.masks), self.value)
"""
HELPER = """
import numpy as np


def constant(count, value):
    return np.full(count, value)
"""
READER = """
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.cases.readers.reader import CaseTable, Source
from pipeline.knobs import Knobs


class Squares(Knobs):
    kind: Literal["squares"] = "squares"
    path: Path = Path("raw/none")
    case_table: CaseTable | None = None

    def class_names(self):
        return ["background", "square"]

    def channel_names(self):
        return ["grey"]

    def scan(self):
        return [Source(f"case_{i}", (16, 16), "", "drawn") for i in range(12)]

    def read(self, source):
        mask = np.zeros((16, 16), np.uint8)
        mask[4:12, 4:12] = 1
        return mask[None].astype(np.float32), mask
"""

Project = Callable[..., Path]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with files in `kinds` and changes of the knobs. Afterwards no own kind is left."""

    def make(files: dict[str, str], judges: dict[str, object] | None = None, **blocks: object) -> Path:
        (tmp_path / "kinds").mkdir(exist_ok=True)
        for name, text in files.items():
            (tmp_path / "kinds" / name).write_text(text)
        with (tmp_path / "params.yaml").open("w") as file:
            YAML().dump({**TINY, **blocks, "judges": {**TINY["judges"], **(judges or {})}}, file)
        monkeypatch.chdir(tmp_path)
        return tmp_path / "params.yaml"

    return make


@pytest.fixture(autouse=True)
def _nothing_stays(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    load_own_kinds(tmp_path_factory.mktemp("empty"))


def test_an_own_judge_is_a_judge(project: Project) -> None:
    judges = {"mine": {"kind": "constant", "value": 2.0}}
    params = load_params(project({"constant.py": JUDGE, "_helper.py": HELPER}, judges=judges))
    assert type(params.judges["mine"]).__name__ == "Constant"
    assert params.judges["mine"].value == 2.0  # type: ignore[union-attr]
    assert type(params.judges["agreement"]) is Agreement


def test_an_own_kind_may_import_by_the_name_of_the_installation(project: Project) -> None:
    """The module is the same one, so the class is a judge."""
    files = {"constant.py": JUDGE.replace("from pipeline", "from segpref.pipeline"), "_helper.py": HELPER}
    params = load_params(project(files, judges={"mine": {"kind": "constant"}}))
    assert isinstance(params.judges["mine"], JudgeKnobs)
    assert "pipeline/judges/judge.py" in code_of("pipeline.judges.score", params.judges)
    assert not [name for name in sys.modules if name.startswith("segpref.") and sys.modules[name].__name__ == name]


def test_an_own_reader_is_a_reader(project: Project) -> None:
    params = load_params(project({"squares.py": READER}, data={"kind": "squares"}))
    assert len(params.data.scan()) == 12


def test_knobs_of_an_own_kind_are_checked(project: Project) -> None:
    file = project({"constant.py": JUDGE, "_helper.py": HELPER}, judges={"mine": {"kind": "constant", "valu": 2.0}})
    with pytest.raises(BadInput, match=r"params.yaml: judges.mine.valu: unknown key; remove it or correct"):
        load_params(file)


def test_an_own_kind_runs_in_worker_processes(project: Project) -> None:
    judges = {"mine": {"kind": "constant", "value": 2.0}}
    judge = load_params(project({"constant.py": JUDGE, "_helper.py": HELPER}, judges=judges)).judges["mine"]
    with get_context("spawn").Pool(1) as pool:
        assert pool.map(repr, [judge]) == [repr(judge)]


def test_files_of_an_own_kind_count_as_code(project: Project) -> None:
    file = project(
        {"constant.py": JUDGE, "_helper.py": HELPER, "other.py": "A = 1"}, judges={"mine": {"kind": "constant"}}
    )
    params = load_params(file)
    before = code_of("pipeline.judges.score", params.judges)
    own = {name for name in before if name.startswith("kinds/")}
    assert own == {"kinds/constant.py", "kinds/_helper.py"}
    assert "pipeline/judges/judge.py" in before
    (file.parent / "kinds/_helper.py").write_text(HELPER.replace("full(count, value)", "full(count, value + 1)"))
    after = code_of("pipeline.judges.score", params.judges)
    assert {name for name in before if before[name] != after[name]} == {"kinds/_helper.py"}


FAULTS = {
    "syntax": ("a.py", "class A(", r"kinds/a.py: expected a module that can be imported, found SyntaxError: .*line 1"),
    "import": (
        "a.py",
        "import nothing_like_it",
        r"kinds/a.py: expected .*, found ModuleNotFoundError: No module named",
    ),
    "name": (
        "a.py",
        JUDGE.replace('"constant"', '"agreement"').replace("kinds._helper", "numpy").replace("constant\n", "full\n"),
        r"kinds/a.py: Constant: expected a new name, found kind 'agreement', which pipeline.judges.kinds.agreement has",
    ),
    "family": (
        "a.py",
        "from typing import Literal\nfrom pipeline.knobs import Knobs\nclass A(Knobs):\n    kind: Literal['a']\n",
        r"kinds/a.py: A: expected a member of a family \(judge, link, objective, reader, sampler, strategy\), found a",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_own_kinds_are_named(fault: str, project: Project) -> None:
    name, text, message = FAULTS[fault]
    with pytest.raises(BadInput, match=message):
        load_params(project({name: text}))


def test_kinds_of_another_project_are_gone(project: Project, tmp_path: Path) -> None:
    file = project({"constant.py": JUDGE, "_helper.py": HELPER}, judges={"mine": {"kind": "constant"}})
    load_params(file)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/params.yaml").write_text(file.read_text())
    with pytest.raises(BadInput, match=r"judges.mine.kind: found 'constant', expected one of"):
        load_params(tmp_path / "other/params.yaml")


STUDENT = TINY["students"]["rn_dpo"]
OWN = {
    "sampler": (
        "pipeline.proposals.samplers.ensemble import Ensemble",
        {"propose": {**TINY["propose"], "samplers": {"mine": {"kind": "own"}}}},
        lambda params: params.propose.samplers["mine"],
    ),
    "strategy": (
        "pipeline.pairs.strategies.top_bottom import TopBottom",
        {"pairs": {**TINY["pairs"], "mined": {"judge": "agreement", "strategy": {"kind": "own"}}}},
        lambda params: params.pairs["mined"].strategy,
    ),
    "link": (
        "pipeline.students.links.sigmoid import Sigmoid",
        {"students": {"mine": {**STUDENT, "objective": {"kind": "preference", "link": {"kind": "own"}}}}},
        lambda params: params.students["mine"].objective.link,
    ),
    "objective": (
        "pipeline.students.objectives.supervised import Supervised",
        {"students": {"mine": {"pairs": "none", "objective": {"kind": "own"}}}},
        lambda params: params.students["mine"].objective,
    ),
}


@pytest.mark.parametrize("family", OWN)
def test_an_own_kind_joins_every_family(family: str, project: Project) -> None:
    line, blocks, taken = OWN[family]
    name = line.rpartition(" ")[2]
    text = f"from typing import Literal\nfrom {line}\n\nclass Own({name}):\n    kind: Literal['own'] = 'own'\n"
    assert type(taken(load_params(project({"own.py": text}, **blocks)))).__module__ == "kinds.own"

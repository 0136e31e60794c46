"""`params.yaml` as typed, frozen models; every error names the key path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError, model_validator

from pipeline.audit.audit import Audit
from pipeline.cases.preprocess import Preprocess
from pipeline.cases.readers import Reader
from pipeline.cases.splits import Splits
from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.evaluation.metrics import Evaluation
from pipeline.execution import Execution, Runtime
from pipeline.judges.consensus import JudgeConsensus, check_consensus
from pipeline.judges.kinds import Judge
from pipeline.judges.kinds.table import ScoreTable
from pipeline.knobs import NOTHING, Knobs, Name
from pipeline.pairs.mine import PairSet
from pipeline.pairs.strategies.none import NoPairs
from pipeline.proposals.propose import Propose
from pipeline.segmenter.augmentation import Augmentation
from pipeline.segmenter.imported import AnyBase
from pipeline.segmenter.imported.program import ImportedProgram
from pipeline.segmenter.knobs import Base
from pipeline.students.student import Student, Training

T = TypeVar("T")


class Params(Knobs):
    """All of `params.yaml`."""

    seed: int
    """Of every random draw."""
    data: Reader
    preprocess: Preprocess
    splits: Splits
    augmentation: Augmentation
    model: Path = NOTHING
    """File or folder of a base that is not trained here; DVC watches it. `raw/none` where the base is trained here."""
    base: AnyBase | None
    """Null where there is no model: all masks are imported, and there are no students."""
    propose: Propose
    judges: dict[Name, Judge]
    tables: dict[Name, ScoreTable] = {}
    consensus: dict[Name, JudgeConsensus] = {}
    """Scores that combine those of judges and tables, computed in the panel."""
    audit: Audit
    pairs: dict[Name, PairSet]
    training: Training
    students: dict[Name, Student]
    evaluation: Evaluation
    compute: Compute
    execution: Execution

    @property
    def runtime(self) -> Runtime:
        """What every stage that computes is run with."""
        return Runtime(self.compute, self.seed, self.execution)

    @property
    def judge_names(self) -> list[str]:
        """Judges, score tables and consensus entries, in the order of the panel's columns."""
        return [*self.judges, *self.tables, *self.consensus]

    def reads_truth(self, judge: str) -> bool:
        """Whether a judge, or one that a consensus entry names, looks at the truth of the cases that it scores."""
        if judge in self.consensus:
            return any(self.reads_truth(one) for one in self.consensus[judge].judges)
        return judge in self.judges and self.judges[judge].research

    @model_validator(mode="after")
    def _names(self) -> Params:
        for name, judge in self.judges.items():
            if judge.kind == "table":
                raise ValueError(f"judges.{name}: kind 'table' belongs under tables:, so that DVC watches its file")
        if both := sorted(self.judges.keys() & self.tables.keys()):
            raise ValueError(f"tables.{both[0]}: a judge has the same name")
        check_consensus(self.consensus, [*self.judges, *self.tables])
        for name, pairs in self.pairs.items():
            empty = isinstance(pairs.strategy, NoPairs)
            if empty != (pairs.judge == "none"):
                raise ValueError(f"pairs.{name}: judge 'none' and strategy 'none' go together")
            if not empty and pairs.judge not in self.judge_names:
                raise ValueError(f"pairs.{name}.judge: no judge '{pairs.judge}'; there are {self.judge_names}")
        if self.base is None and self.students:
            raise ValueError("students: without a model (base: null) there is nothing to train; set students: {}")
        if isinstance(self.base, Base | None):
            if self.model != NOTHING:
                raise ValueError(
                    f"model: '{self.model}' is read by no base that is trained here; set base.kind to checkpoint, "
                    f"bundle or program, or model to {NOTHING}"
                )
        elif self.model == NOTHING:
            raise ValueError(f"model: expected the file or folder of a {self.base.kind}, found {NOTHING}")
        for name, sampler in self.propose.samplers.items():
            if isinstance(self.base, ImportedProgram) and sampler.kind == "mc_dropout":
                raise ValueError(
                    f"propose.samplers.{name}: a base of kind 'program' has no layers to drop features of; remove it"
                )
        for name, student in self.students.items():
            if isinstance(self.base, ImportedProgram) and student.objective.feeds != "nothing":
                raise ValueError(
                    f"students.{name}: a base of kind 'program' proposes but cannot be trained; use kind checkpoint or "
                    "bundle, or only students that train nothing (threshold, proposal)"
                )
            feeds, kind = student.objective.feeds, student.objective.kind
            if feeds in ("pairs", "pool") and "anchor" not in student.model_fields_set:
                raise ValueError(f"students.{name}.anchor: missing: {{supervised: 1.0}}, or null for the unsafe way")
            if feeds not in ("pairs", "pool"):
                for key in ("anchor", "stopping"):
                    if getattr(student, key) is not None:
                        raise ValueError(f"students.{name}.{key}: '{kind}' takes no pool images; remove it")
            if feeds in ("truth", "nothing"):
                for key in ("average", "interpolate"):
                    if getattr(student, key) is not None:
                        raise ValueError(f"students.{name}.{key}: '{kind}' is not trained like the others; remove it")
            if student.average is not None and student.objective.teacher_decay is not None:
                raise ValueError(f"students.{name}.average: '{kind}' has its own moving average; remove it")
            if student.stopping is not None and student.stopping.patience is not None and kind != "preference":
                raise ValueError(f"students.{name}.stopping.patience: '{kind}' has no rewards; use kl or volume_ratio")
            if name == "base":
                raise ValueError("students.base: 'base' is the base segmenter; choose another name")
            if student.pairs not in self.pairs:
                raise ValueError(f"students.{name}.pairs: no pair set '{student.pairs}'; there are {list(self.pairs)}")
            if (student.objective.feeds == "pairs") == isinstance(self.pairs[student.pairs].strategy, NoPairs):
                needs = "needs pairs" if student.objective.feeds == "pairs" else "uses no pairs"
                raise ValueError(
                    f"students.{name}.pairs: objective '{student.objective.kind}' {needs}, not '{student.pairs}'"
                )
        return self


def load_params(path: Path) -> Params:
    """Read and check the whole file; raises `BadInput` with one line per problem: key path, problem, what was found."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if not path.is_file():
        raise BadInput(f"{path}: no such file; run from the folder that holds params.yaml")
    try:
        content: Any = YAML(typ="safe").load(path)
        # Dates are the only values of YAML 1.2 that JSON lacks; no knob is one.
        return Params.model_validate_json(json.dumps(content, default=str))
    except YAMLError as error:
        raise BadInput(f"{path}: not valid YAML: {error}") from error
    except ValidationError as error:
        raise BadInput.all(f"{path}: {_describe(problem, content)}" for problem in error.errors()) from error


def _describe(problem: Any, content: Any) -> str:
    # Discriminated unions put the kind into the location; it is no key of the file.
    keys: list[str] = []
    at: Any = content
    for part in problem["loc"]:
        if (isinstance(at, dict) and part in at) or (isinstance(at, list) and isinstance(part, int) and part < len(at)):
            at = at[part]
        elif problem["type"] not in ("missing", "extra_forbidden") or part != problem["loc"][-1]:
            continue
        keys.append(str(part))
    where = ".".join(keys) or "the file"
    match problem["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key; remove it or correct its spelling"
        case "missing":
            return f"{where}: missing"
        case "value_error":
            return str(problem["ctx"]["error"])
        case "union_tag_invalid":
            return f"{where}.kind: found '{problem['ctx']['tag']}', expected one of {problem['ctx']['expected_tags']}"
        case "union_tag_not_found":
            return f"{where}.kind: missing"
    return f"{where}: {problem['msg'].removeprefix('Input ')}, found {json.dumps(problem['input'], default=str)}"


def entry(block: Mapping[str, T], name: str, title: str) -> T:
    """The entry of a dictionary of `params.yaml`; an unknown name lists the known ones."""
    if name not in block:
        raise BadInput(f"params.yaml: {title} has no entry '{name}'; there are {list(block)}")
    return block[name]

"""`params.yaml` as typed, frozen knobs. Every error names the key path."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError, model_validator

from pipeline.audit.audit import Audit
from pipeline.cases.preprocess import Preprocess
from pipeline.cases.preprocess_of_plans import PreprocessOfPlans
from pipeline.cases.readers import Reader
from pipeline.cases.splits import Splits
from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.evaluation.metrics import Evaluation
from pipeline.execution import Execution, Runtime
from pipeline.judges.consensus import JudgeConsensus, check_consensus
from pipeline.judges.kinds import Judge
from pipeline.judges.kinds.expert import Expert
from pipeline.judges.kinds.table import ScoreTable
from pipeline.knobs import NOTHING, Knobs, Name, blocks_in, kind_of
from pipeline.own_kinds import load_own_kinds
from pipeline.pairs.mine import PairSet
from pipeline.pairs.review_knobs import Review
from pipeline.pairs.strategies.none import NoPairs
from pipeline.pairs.strategies.reviewed import Reviewed
from pipeline.promotion.knobs import Promotion
from pipeline.proposals.knobs import Propose
from pipeline.segmenter.augmentation import Augmentation
from pipeline.segmenter.imported import AnyBase
from pipeline.segmenter.imported.nnunet import NnUNetFolder
from pipeline.segmenter.imported.program import ImportedProgram
from pipeline.segmenter.knobs import Base
from pipeline.students.student import Student, Training

T = TypeVar("T")
_SUBJECT = re.compile(r"^(Input|String|Value) ")
"""First word of Pydantic's messages. The key path is the subject here."""

RESERVED = {"base": "the base segmenter", "promoted": "the student that is promoted"}
"""Names that `export` uses for models that are no entry of `students`."""


class Params(Knobs):
    """All blocks of `params.yaml`."""

    seed: int
    """Seed of base training, proposals, judges, audit, mining and students. Phantoms and splits have seeds of their
    own."""
    data: Reader
    """Raw data set. The kind is the layout of its files."""
    preprocess: Preprocess | Literal["plans"]
    """A block, or the word `plans` for a base of kind `nnunet`. With `plans`, the stage `prepare` takes the block from
    `plans.json` of the folder `model`. The configuration is the one that the folder's name ends with, or the only one
    of the plans. `preprocess` in `data/cases/cases.json` is the block."""
    splits: Splits
    augmentation: Augmentation
    model: Path = NOTHING
    """File or folder of a base that is not trained here. DVC watches the path. `raw/none` if the base is trained
    here."""
    base: AnyBase | None
    """Base segmenter. Null if there is no model: all masks are imported, and there are no students."""
    propose: Propose
    judges: dict[Name, Judge]
    """Judges by name. A judge scores every proposal; a higher score is better."""
    tables: dict[Name, ScoreTable] = {}
    """Score tables by name: files with scores from outside the pipeline. A table is used like a judge."""
    review: Review = Review()
    experts: dict[Name, Expert] = {}
    """Experts by name: judges that learn from the answers of reviewers. An expert is used like a judge."""
    consensus: dict[Name, JudgeConsensus] = {}
    """Consensus entries by name: scores that the stage `panel` combines from the scores of judges, tables and experts.
    An entry is used like a judge."""
    audit: Audit
    pairs: dict[Name, PairSet]
    """Pair sets by name. Students learn from the pairs of a set."""
    training: Training
    students: dict[Name, Student]
    """Students by name. Each student is trained and measured on its own. `{}`: no students."""
    evaluation: Evaluation
    promotion: Promotion
    compute: Compute
    execution: Execution

    @property
    def runtime(self) -> Runtime:
        """Compute knobs, seed and execution of the stages that train or infer."""
        return Runtime(self.compute, self.seed, self.execution)

    @property
    def preprocessing(self) -> Preprocess | PreprocessOfPlans:
        """The block `preprocess`, or where its plans are."""
        return PreprocessOfPlans(model=self.model) if isinstance(self.preprocess, str) else self.preprocess

    @property
    def scored(self) -> dict[str, Judge]:
        """Judges, score tables and experts by name: everything whose scores are a table of their own."""
        return {**self.judges, **self.tables, **self.experts}

    @property
    def judge_names(self) -> list[str]:
        """Names of judges, score tables, experts and consensus entries, in the order of the panel's columns."""
        return [*self.scored, *self.consensus]

    @model_validator(mode="after")
    def _judges_have_one_place(self) -> Params:
        for name, judge in self.judges.items():
            for kind, block in (("table", "tables"), ("expert", "experts")):
                if judge.kind == kind:
                    raise ValueError(
                        f"judges.{name}: kind '{kind}' belongs under {block}:, so that DVC watches its file; move the "
                        "entry"
                    )
        if both := sorted(self.judges.keys() & self.tables.keys()):
            raise ValueError(f"tables.{both[0]}: a judge has the same name; choose another name")
        if both := sorted(self.experts.keys() & {*self.judges, *self.tables}):
            raise ValueError(f"experts.{both[0]}: a judge or score table has the same name; choose another name")
        check_consensus(self.consensus, list(self.scored))
        return self

    @model_validator(mode="after")
    def _pair_sets_have_judges(self) -> Params:
        for name, pairs in self.pairs.items():
            alone = isinstance(pairs.strategy, Reviewed) and pairs.strategy.otherwise is None
            if alone and pairs.judge != "none":
                raise ValueError(
                    f"pairs.{name}: found judge '{pairs.judge}', which strategy 'reviewed' does not ask without "
                    "`otherwise`; set judge: none, or give `otherwise` the strategy of the judge"
                )
            empty = alone or isinstance(pairs.strategy, NoPairs)
            if empty != (pairs.judge == "none"):
                raise ValueError(
                    f"pairs.{name}: expected judge 'none' and strategy 'none' together, found one without the other; "
                    "change one of the two"
                )
            if not empty and pairs.judge not in self.judge_names:
                close = _close(pairs.judge, self.judge_names)
                raise ValueError(
                    f"pairs.{name}.judge: found '{pairs.judge}', expected one of {self.judge_names}{close}"
                )
        return self

    @model_validator(mode="after")
    def _base_has_its_model(self) -> Params:
        if self.base is None and self.students:
            raise ValueError("students: base is null, so there is no model to train; set students: {}")
        if isinstance(self.base, Base | None):
            if self.model != NOTHING:
                raise ValueError(
                    f"model: found '{self.model}', but only a base of kind checkpoint, bundle, nnunet or program "
                    f"reads a model; set base.kind to one of these kinds, or set model to {NOTHING}"
                )
        elif self.model == NOTHING:
            raise ValueError(f"model: expected the file or folder of a {self.base.kind}, found {NOTHING}; set the path")
        return self

    @model_validator(mode="after")
    def _plans_are_of_the_base(self) -> Params:
        if self.preprocess == "plans" and not isinstance(self.base, NnUNetFolder):
            found = "null" if self.base is None else f"of kind {self.base.kind}"
            raise ValueError(
                f"preprocess: 'plans' are those of a base of kind nnunet, found a base {found}; set base.kind "
                "to nnunet and model to the results folder, or give preprocess a block"
            )
        return self

    @model_validator(mode="after")
    def _programs_have_no_layers(self) -> Params:
        if not isinstance(self.base, ImportedProgram):
            return self
        for name, sampler in self.propose.samplers.items():
            if sampler.kind == "mc_dropout":
                raise ValueError(
                    f"propose.samplers.{name}: mc_dropout needs layers, and a base of kind 'program' has none; "
                    "remove the sampler"
                )
        for name, student in self.students.items():
            if student.objective.feeds != "nothing":
                raise ValueError(
                    f"students.{name}: a base of kind 'program' cannot be trained; set base.kind to checkpoint or "
                    "bundle, or keep only students that train nothing (objectives threshold and proposal)"
                )
        return self

    @model_validator(mode="after")
    def _students_have_pair_sets(self) -> Params:
        for name, student in self.students.items():
            if name in RESERVED:
                raise ValueError(f"students.{name}: the name '{name}' belongs to {RESERVED[name]}; choose another name")
            if student.pairs not in self.pairs:
                close = _close(student.pairs, list(self.pairs))
                raise ValueError(
                    f"students.{name}.pairs: found '{student.pairs}', expected one of {list(self.pairs)}{close}"
                )
            wants_pairs = student.objective.feeds == "pairs"
            if wants_pairs == isinstance(self.pairs[student.pairs].strategy, NoPairs):
                needs = "a pair set with pairs" if wants_pairs else "a pair set of strategy 'none'"
                raise ValueError(
                    f"students.{name}.pairs: objective '{student.objective.kind}' expects {needs}, found "
                    f"'{student.pairs}'"
                )
        return self


def load_params(path: Path) -> Params:
    """All knobs from a YAML file. Raises `BadInput` with one line per mistake: key path, problem and value."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if not path.is_file():
        raise BadInput(f"{path}: no such file; run from the folder that holds params.yaml")
    load_own_kinds(path.parent)
    try:
        # The parser in C, which DVC uses, leaves the character of a mistake out of its message.
        content: Any = YAML(typ="safe", pure=True).load(path)
        # `default=str` is for dates, the only values of YAML 1.2 that JSON lacks. No knob is a date.
        text = json.dumps(content, default=str)
    except YAMLError as error:
        raise BadInput(f"{path}: not valid YAML: {_broken(error)}") from error
    except (ValueError, TypeError) as error:
        found = "an entry that holds itself" if "Circular" in str(error) else str(error).splitlines()[0]
        raise BadInput(
            f"{path}: not valid YAML: expected text as keys, and values that JSON has too, found {found}; correct the "
            "key or the value"
        ) from error
    try:
        return Params.model_validate_json(text)
    except ValidationError as error:
        raise BadInput.all(f"{path}: {mistake}" for mistake in _mistakes(error, content)) from error


def _broken(error: Any) -> str:
    """A fault of YAML in one line, with its place and what to do."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"found {str(error).splitlines()[0]}; save the file as UTF-8"
    found = str(error.problem).splitlines()[0]
    found = found if found.startswith("found ") else f"found an error: {found}"
    return f"{found} (line {mark.line + 1}, column {mark.column + 1}); correct the line"


def _mistakes(error: ValidationError, content: Any) -> Iterator[str]:
    """One line per mistake. All that a knob could be is one line, left out beside a mistake of its key or inside it."""
    found: dict[tuple[str, str], list[str]] = {}
    for problem in error.errors():
        where, text, value = _described(problem, content)
        found.setdefault((where, value), []).append(text)
    for (where, value), texts in found.items():
        key = f"{where}: " if where else ""
        if not value:
            yield from (f"{key}{text}" for text in texts)
        elif (where, "") not in found and not any(inner.startswith(f"{where}.") for inner, _ in found):
            first, *others = texts
            yield (
                key + ", or ".join([first, *(text.removeprefix("should be ") for text in others)]) + f", found {value}"
            )


def _described(problem: Any, content: Any) -> tuple[str, str, str]:
    """Key path of a mistake, what is wrong, and the value as JSON. The value is empty if the text needs no value."""
    # Pydantic puts the kind of a discriminated union into the location. The kind is no key of the file, so the kind is
    # left out.
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
            close = _close(keys[-1], _keys_at(problem["loc"]))
            return where, f"unknown key; remove it or correct its spelling{close}", ""
        case "missing":
            return where, "missing; add the key", ""
        case "value_error":
            # Errors of one block start with the key inside the block; errors of the whole file name the whole path.
            return ".".join(keys), str(problem["ctx"]["error"]), ""
        case "union_tag_invalid":
            tag, expected = problem["ctx"]["tag"], problem["ctx"]["expected_tags"]
            close = _close(tag, [one.strip("' ") for one in expected.split(",")])
            return f"{where}.kind", f"found '{tag}', expected one of {expected}{close}", ""
        case "union_tag_not_found":
            return f"{where}.kind", "missing; add the key", ""
    return where, _SUBJECT.sub("", problem["msg"]), json.dumps(problem["input"], default=str)


def _close(word: str, known: Sequence[str]) -> str:
    """What a misspelt word may mean, as the end of a message. Empty without a similar known word."""
    close = get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _keys_at(place: Sequence[str | int]) -> list[str]:
    """Keys that the file may have where Pydantic found another key. `place` ends with the other key."""
    blocks: list[type[Knobs]] = [Params]
    for part in place[:-1]:
        if inside := [block for block in blocks if part in block.model_fields]:
            fields = [block.model_fields[str(part)] for block in inside]
            blocks = [each for field in fields for each in blocks_in(field.annotation)]
        elif kinds := [block for block in blocks if kind_of(block) == part]:
            blocks = kinds
    return sorted({key for block in blocks for key in block.model_fields})


def entry(block: Mapping[str, T], name: str, title: str) -> T:
    """Entry `name` of a dictionary of `params.yaml`. Raises `BadInput` with the known names for an unknown name."""
    if name not in block:
        close = _close(name, list(block))
        raise BadInput(f"params.yaml: {title} has no entry '{name}'; the entries are {list(block)}{close}")
    return block[name]

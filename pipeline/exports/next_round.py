"""Project of the next round: its base is the promoted student, its members are students of the same recipe."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cases.preprocess import Preprocess
from pipeline.errors import BadInput
from pipeline.judges.kinds.fixed import RANKING_FILE, Fixed
from pipeline.knobs import BEST, NOTHING
from pipeline.pairs.strategies.reviewed import Reviewed
from pipeline.params import Params, load_params
from pipeline.project.start import commit
from pipeline.promotion.record import PROMOTION_FILE, PromotionRecord
from pipeline.proposals.fit_thresholds import FITTED_FILE, samplers_to_fit
from pipeline.proposals.plan import first_names, names_of
from pipeline.proposals.samplers import Sampler
from pipeline.proposals.samplers.ensemble import Ensemble
from pipeline.proposals.samplers.imported import Imported
from pipeline.proposals.samplers.mean import Mean
from pipeline.proposals.samplers.regions import RegionsSampler
from pipeline.proposals.samplers.sampler import Setup
from pipeline.proposals.samplers.snapshots import Snapshots
from pipeline.segmenter.architecture import ARCHITECTURE
from pipeline.segmenter.models import Model
from pipeline.segmenter.seen import Seen
from pipeline.segmenter.student_record import StudentRecord
from pipeline.store.cases import INPUT, CaseStore
from pipeline.store.manifest import check_manifest, read_json
from pipeline.store.proposals import proposal_name

if TYPE_CHECKING:
    from pipeline.students.student import Student

PROJECT = ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore", "raw/none")
"""Files of a project that are not its data, its knobs or its results."""
IF_THERE = ("pipeline", "stages", "segpref.py", "kinds", "params.schema.json", "models/students/.gitkeep", ".dvc/plots")
"""Further files and folders: the code of a clone, own kinds, a file that keeps a folder in git, templates of plots."""
PROMOTED = Path("models/promoted")
"""Folder of the promoted student in the project of this round."""
MODEL, FIRST_BASE = Path("raw/model"), Path("raw/first_base.parquet")
"""Files of the new project: the models that its base consists of, and the validation table of the first base."""


@dataclass
class NextRound:
    """The new project: names of its models, and what could not be carried over."""

    base: str
    """Name of the promoted student."""
    members: dict[str, str]
    """Student by the name of the member that it becomes."""
    removed: list[str] = field(default_factory=list)
    """What was removed from `params.yaml`, one line each with the reason."""


def next_round(project: Path, folder: Path) -> NextRound:
    """Make the project of the next round in `folder`: same code, data, splits and seed, with another base.

    A student has no folds. So fitted thresholds and the preferred sampler of judge `fixed` are carried over as numbers
    and names, and everything that needs folds is removed: learned judges, and the consensus entries, pair sets and
    students that use them. Scores and answers about the masks of this round are removed in the same way. Raises
    `BadInput` if nothing was promoted, if the audit shows no headroom, or if `folder` exists.
    """
    params = load_params(project / "params.yaml")
    promoted = _promoted(project, params)
    _check_headroom(project)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder}: expected a folder that is new or empty, found other content; name another folder")
    made = NextRound(promoted, _members(params, promoted))
    _refuse_offsets(project, made)
    content, notes = _params(project, folder, params, made)
    made.removed = notes
    # Checked before a file is written, so that a refused round leaves no folder behind.
    with tempfile.TemporaryDirectory() as scratch:
        _write_params(content, Path(scratch))
    _copy_code(project, folder)
    students = {name: project / "models/students" / student for name, student in made.members.items()}
    copy_models({"base": project / PROMOTED, **students}, folder / MODEL)
    first = params.promotion.first_base
    table = project / "validation/base.parquet" if first == NOTHING else project / first
    shutil.copy(table, folder / FIRST_BASE)
    _write_params(content, folder)
    commit(folder, "Next round")
    return made


def _promoted(project: Path, params: Params) -> str:
    folder = project / PROMOTED
    record = PromotionRecord.of(folder)
    if record is None:
        raise BadInput(
            f"{folder / PROMOTION_FILE}: no such file; a next round starts from a promoted student, so run `dvc repro` "
            "first"
        )
    if record.promoted is None:
        raise BadInput(
            f"{folder}: expected a promoted student, found none: {record.reason} Another round needs a student that is "
            "better than its base"
        )
    if record.promoted not in params.students:
        raise BadInput(
            f"{project / 'params.yaml'}: expected the promoted student '{record.promoted}' under students, found "
            f"{list(params.students)}; put its entry back, or run `dvc repro` to promote another"
        )
    check_manifest(folder)
    return record.promoted


def _check_headroom(project: Path) -> None:
    path = project / "audit/summary.json"
    verdict = read_json(path, "headroom")["headroom"]["verdict"]
    if verdict.startswith("no headroom shown"):
        raise BadInput(f"{path}: {verdict}; another round has nothing to learn from")


def _members(params: Params, promoted: str) -> dict[str, str]:
    """Students of the recipe of the promoted one that start from other models, by the name of their member."""

    def recipe(student: Student) -> Student:
        return student.model_copy(update={"start": "base"})

    best = params.students[promoted]
    same = {
        student.start: name
        for name, student in params.students.items()
        if name != promoted and recipe(student) == recipe(best) and student.start != best.start
    }
    # The promoted student is the base now, so the student that started from the base takes the name of its start.
    if "base" in same:
        same[best.start] = same.pop("base")
    # Names of folds belong to trained bases.
    numbers = (f"member_{number}" for number in count(1))
    free = (name for name in numbers if name not in same)
    return {next(free) if start.startswith("fold_") else start: name for start, name in same.items()}


def _refuse_offsets(project: Path, made: NextRound) -> None:
    """Raise `BadInput` if the base or a member of the new round would lose the offsets of its student."""
    for name in (made.base, *made.members.values()):
        folder = project / PROMOTED if name == made.base else project / "models/students" / name
        record = StudentRecord.of(folder)
        if record is not None and any(record.offsets or ()):
            raise BadInput(
                f"{folder}: expected a student without offsets of its own, found {list(record.offsets or ())}; a base "
                "has no offsets, so the next round would start from another model than the promoted one; remove "
                f"`offsets` from students.{name} and run `dvc repro`"
            )


def copy_models(students: Mapping[str, Path], out: Path) -> None:
    """Copy the last weights of students into one model folder `out`. `students` has their folders by the new name.

    A student whose network is another one than that of `base` gets a folder of its own in `out`.
    """
    architecture = Model(students["base"], "last").architecture
    for role, folder in students.items():
        source = Model(folder, "last")
        own = source.architecture != architecture
        target = Model(out / role, "base") if own else Model(out, role)
        target.folder.mkdir(parents=True, exist_ok=True)
        for file in (ARCHITECTURE, INPUT):
            shutil.copy(source.folder / file, target.folder / file)
        shutil.copy(source.weights, target.folder / f"{target.name}{source.weights.suffix}")
    Seen.of_all(list(students.values())).save(out)


def _params(project: Path, folder: Path, params: Params, made: NextRound) -> tuple[Any, list[str]]:
    """Content of the new `params.yaml`, with the comments of the old one, and a line for everything that is removed."""
    from ruamel.yaml import YAML

    content = YAML().load(project / "params.yaml")
    content["model"] = MODEL.as_posix()
    content["base"] = {"kind": "checkpoint", "weights": "base", "members": list(made.members)}
    content.setdefault("promotion", {})["first_base"] = FIRST_BASE.as_posix()
    _move_paths(content, project, folder)
    notes = [*_block_of_plans(content, params, project), *_without_answers(content, params)]
    notes += _without_models(content, params, made)
    proposals = _proposals(content, params, project, made)
    notes += _numbers_for_folds(content, params, project, proposals)
    notes += _without_folds(content, params, made, proposals)
    return content, notes


def _proposals(content: Any, params: Params, project: Path, made: NextRound) -> list[str]:
    """Names of the proposals of the new round."""
    setup = Setup(len(CaseStore(project / "data/cases").class_names), members=tuple(made.members))
    names = first_names(setup)
    for name in content["propose"]["samplers"]:
        sampler = _with_members(params.propose.samplers[name], made)
        if isinstance(sampler, Imported):
            # The new project has the same files, but its folder is not there yet.
            names += [proposal_name(name, source) for source in sampler.sources]
        else:
            names += names_of(name, sampler, setup, names)
    return names


def _with_members(sampler: Sampler, made: NextRound) -> Sampler:
    """The sampler with those of its listed members that the new base has."""
    if not isinstance(sampler, Ensemble | Mean) or sampler.members is None:
        return sampler
    return sampler.model_copy(update={"members": tuple(name for name in sampler.members if name in made.members)})


def _move_paths(content: Any, project: Path, folder: Path) -> None:
    """Make the relative paths of data and imports relative to the new project."""
    for block, key in ((content["data"], "path"), (content["propose"], "imports")):
        path = Path(block.get(key, NOTHING))
        if path != NOTHING and not path.is_absolute():
            block[key] = Path(os.path.relpath(project / path, folder)).as_posix()


def _block_of_plans(content: Any, params: Params, project: Path) -> Iterator[str]:
    """Replace `preprocess: plans` by its block: the new base has no plans."""
    if params.preprocess == "plans":
        file = project / "data/cases/cases.json"
        block = Preprocess.model_validate_json(json.dumps(read_json(file, "preprocess")["preprocess"]))
        content["preprocess"] = block.stated
        yield "preprocess: the block of the plans is carried over, because a student has no plans"


def _without_answers(content: Any, params: Params) -> Iterator[str]:
    """Set the table of answers aside: the masks of the next round are others."""
    if params.review.verdicts != NOTHING:
        content["review"]["verdicts"] = NOTHING.as_posix()
        yield f"review.verdicts: {params.review.verdicts} is about the masks of this round"


def _without_models(content: Any, params: Params, made: NextRound) -> Iterator[str]:
    """Remove samplers whose models the new base lacks, and the names of such models."""
    samplers = content["propose"]["samplers"]
    for name, sampler in params.propose.samplers.items():
        left = _with_members(sampler, made)
        if isinstance(sampler, Snapshots):
            del samplers[name]
            yield f"propose.samplers.{name}: the new base has no snapshots"
        elif isinstance(sampler, RegionsSampler):
            del samplers[name]
            yield f"propose.samplers.{name}: a model of regions is fitted on folds, and the new base has none"
        elif isinstance(left, Ensemble) and not left.chosen(tuple(made.members)):
            del samplers[name]
            yield f"propose.samplers.{name}: no student of the promoted recipe started from one of its members"
        elif isinstance(sampler, Ensemble | Mean) and left != sampler:
            lost = [member for member in sampler.members or () if member not in made.members]
            samplers[name]["members"] = [member for member in sampler.members or () if member in made.members]
            yield f"propose.samplers.{name}.members: no student of the promoted recipe started from {lost}"


def _numbers_for_folds(content: Any, params: Params, project: Path, proposals: Sequence[str]) -> Iterator[str]:
    """Fitted thresholds and the best sampler as numbers and names, since the new base has no folds to fit them on.

    `proposals` has the names of the proposals of the new round.
    """
    if fits := samplers_to_fit(params.propose.samplers):
        fitted = read_json(project / "data/proposals" / FITTED_FILE)
        for name in fits:
            content["propose"]["samplers"][name]["fitted"] = fitted[name]["thresholds"]
            yield f"propose.samplers.{name}.fitted: the thresholds {fitted[name]['thresholds']} are carried over"
    for name, judge in params.judges.items():
        if isinstance(judge, Fixed) and judge.learns:
            ranking = read_json(project / "models/judges" / name / RANKING_FILE)
            left = [proposal for proposal in ranking if proposal in proposals]
            # Without one, the judge leaves.
            if left:
                best = max(left, key=lambda proposal: ranking[proposal])
                content["judges"][name]["proposal"] = best
                yield (
                    f"judges.{name}.proposal: '{best}', the best on labelled cases of the proposals of the new round, "
                    "is carried over"
                )


def _without_folds(content: Any, params: Params, made: NextRound, proposals: Sequence[str]) -> Iterator[str]:
    """Remove everything that needs folds, masks of this round or a proposal that is gone, and what uses the removed."""
    judges: set[str] = set()
    for name, judge in params.judges.items():
        if isinstance(judge, Fixed):
            if (proposal := content["judges"][name].get("proposal", BEST)) not in proposals:
                judges.add(name)
                yield f"judges.{name}: its proposal '{proposal}' is gone"
        elif judge.learns:
            judges.add(name)
            yield f"judges.{name}: it learns from proposals of models that have not seen a case, and a student has none"
    for name in params.tables:
        judges.add(name)
        yield f"tables.{name}: its scores are of the masks of this round"
    for name in params.experts:
        judges.add(name)
        yield f"experts.{name}: it learns from answers on masks of this round"
    for name, entry in params.consensus.items():
        if used := sorted(judges & set(entry.judges)):
            judges.add(name)
            yield f"consensus.{name}: it combines {', '.join(used)}"
    pairs = {name for name, one in params.pairs.items() if one.judge in judges}
    yield from (f"pairs.{name}: judge {params.pairs[name].judge} is removed" for name in sorted(pairs))
    reviewed = {name for name, one in params.pairs.items() if isinstance(one.strategy, Reviewed)} - pairs
    yield from (f"pairs.{name}: its pairs are of masks of this round" for name in sorted(reviewed))
    pairs |= reviewed
    students = {}
    for name, student in params.students.items():
        if reason := _student_gone(student, pairs, made, proposals):
            students[name] = reason
            yield f"students.{name}: {reason}"
    for block, names in (
        ("judges", judges & set(params.judges)),
        ("tables", judges & set(params.tables)),
        ("experts", judges & set(params.experts)),
        ("consensus", judges & set(params.consensus)),
        ("pairs", pairs),
        ("students", set(students)),
    ):
        for name in names:
            del content[block][name]


def _student_gone(student: Student, pairs: set[str], made: NextRound, proposals: Sequence[str]) -> str | None:
    """Why a student cannot be trained in the next round; None if it can."""
    if student.pairs in pairs:
        return f"pair set {student.pairs} is removed"
    if student.start not in ("base", *made.members):
        return f"the new base has no model '{student.start}'"
    if student.offsets == "held_out":
        return "its offsets need a fold, and a student has no folds"
    if lost := [proposal for proposal in student.proposals if proposal not in proposals]:
        return f"proposal '{lost[0]}' is gone"
    return None


def _copy_code(project: Path, folder: Path) -> None:
    for name in (*PROJECT, *IF_THERE):
        source = project / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
        elif name in PROJECT:
            raise BadInput(f"{source}: no such file; run from the folder that holds params.yaml")


def _write_params(content: Mapping[str, Any], folder: Path) -> None:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 120
    with (folder / "params.yaml").open("w") as file:
        yaml.dump(content, file)
    load_params(folder / "params.yaml")  # raises for a block that does not fit the others

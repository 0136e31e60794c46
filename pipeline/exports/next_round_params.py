"""`params.yaml` of the next round: what is carried over, and what is removed by name with its reason."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cases.preprocess import Preprocess
from pipeline.judges.kinds.fixed import RANKING_FILE, Fixed
from pipeline.knobs import BEST, NOTHING
from pipeline.pairs.strategies.reviewed import Reviewed
from pipeline.params import Params
from pipeline.proposals.fit_thresholds import FITTED_FILE, samplers_to_fit
from pipeline.proposals.plan import names_of_all
from pipeline.proposals.samplers import Sampler
from pipeline.proposals.samplers.ensemble import Ensemble
from pipeline.proposals.samplers.mean import FITTED, Mean
from pipeline.proposals.samplers.regions import COMPOSED, RegionsSampler
from pipeline.proposals.samplers.sampler import Setup
from pipeline.proposals.samplers.snapshots import Snapshots
from pipeline.segmenter.offsets import HALF
from pipeline.store.cases import CaseStore
from pipeline.store.manifest import read_json
from pipeline.store.proposals import proposal_name

if TYPE_CHECKING:
    from pipeline.students.student import Student

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
    instead: dict[str, str] = field(default_factory=dict)
    """Proposal to take in place of a composed one that the new base cannot make, by the name of the composed one."""


def next_params(project: Path, folder: Path, params: Params, made: NextRound) -> tuple[Any, list[str]]:
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
    notes += _numbers_for_folds(content, params, project, made, proposals)
    notes += _without_folds(content, params, made, proposals)
    return content, notes


def _proposals(content: Any, params: Params, project: Path, made: NextRound) -> list[str]:
    """Names of the proposals of the new round."""
    setup = Setup(len(CaseStore(project / "data/cases").class_names), members=tuple(made.members))
    left = {name: _with_members(params.propose.samplers[name], made) for name in content["propose"]["samplers"]}
    # Without cases, no imported file is looked at: the new project has the same files.
    return names_of_all(left, setup)


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
            # The fixed proposal may be that of an earlier sampler of regions.
            made.instead[proposal_name(name, COMPOSED)] = made.instead.get(sampler.fixed, sampler.fixed)
        elif isinstance(left, Ensemble) and not left.chosen(tuple(made.members)):
            del samplers[name]
            yield f"propose.samplers.{name}: no student of the promoted recipe started from one of its members"
        elif isinstance(left, Ensemble | Mean) and left != sampler:
            lost = [member for member in samplers[name]["members"] if member not in made.members]
            samplers[name]["members"] = list(left.members or ())
            yield f"propose.samplers.{name}.members: no student of the promoted recipe started from {lost}"


def _numbers_for_folds(
    content: Any, params: Params, project: Path, made: NextRound, proposals: Sequence[str]
) -> Iterator[str]:
    """Thresholds and the best sampler as numbers and names, since the new base has no folds to fit them on.

    `proposals` has the names of the proposals of the new round.
    """
    samplers = params.propose.samplers
    cut = {name: one for name, one in samplers.items() if isinstance(one, Mean) and one.fitted}
    if reason := _own_half(params, made.base, cut):
        classes = len(CaseStore(project / "data/cases").class_names)
        for name in cut:
            content["propose"]["samplers"][name]["fitted"] = [HALF] * (classes - 1)
            yield f"propose.samplers.{name}.fitted: {HALF} for every class, because {reason}"
    elif fits := samplers_to_fit(samplers):
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


def _own_half(params: Params, promoted: str, cut: Mapping[str, Mean]) -> str | None:
    """Why the fitted thresholds of this round are within the promoted student, in words; None if they are not.

    The masks at a threshold of .4 are those of such a student at .5, so .4 would move the outline a second time.
    """
    student = params.students[promoted]
    if student.offsets is not None:
        return f"offsets of its own are in the last layer of student '{promoted}'"
    composed = [name for name, one in params.propose.samplers.items() if isinstance(one, RegionsSampler)]
    moved = {*(proposal_name(name, FITTED) for name in cut), *(proposal_name(name, COMPOSED) for name in composed)}
    whole = (target.proposal for target in student.targets if target.where == "everywhere")
    if learned := sorted(moved.intersection(whole)):
        return f"student '{promoted}' imitated '{learned[0]}', whose threshold is its own .5 now"
    return None


def _without_folds(content: Any, params: Params, made: NextRound, proposals: Sequence[str]) -> Iterator[str]:
    """Remove everything that needs folds, masks of this round or a proposal that is gone, and what uses the removed."""
    judges: set[str] = set()
    for name, judge in params.judges.items():
        if isinstance(judge, Fixed):
            proposal = content["judges"][name].get("proposal", BEST)
            if other := made.instead.get(proposal):
                content["judges"][name]["proposal"] = other
                yield f"judges.{name}: prefers '{other}', which is what '{proposal}' is where nothing is composed"
                proposal = other
            if proposal not in proposals:
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
        else:
            yield from _imitating(content["students"][name], name, made.instead)
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


def _imitating(entry: Any, name: str, instead: Mapping[str, str]) -> Iterator[str]:
    """Let a student imitate another proposal in place of one that the new base cannot make."""
    for block in (entry["objective"], (entry.get("anchor") or {}).get("imitate") or {}):
        lost: str = block.get("proposal", "")
        if proposal := instead.get(lost):
            block["proposal"] = proposal
            yield f"students.{name}: imitates '{proposal}', which is what '{lost}' is where nothing is composed"


def _student_gone(student: Student, pairs: set[str], made: NextRound, proposals: Sequence[str]) -> str | None:
    """Why a student cannot be trained in the next round; None if it can."""
    if student.pairs in pairs:
        return f"pair set {student.pairs} is removed"
    if student.start not in ("base", *made.members):
        return f"the new base has no model '{student.start}'"
    if student.offsets == "held_out":
        return "its offsets need a fold, and a student has no folds"
    imitated = {target.proposal for target in student.targets}
    wanted = [made.instead.get(name, name) if name in imitated else name for name in student.proposals]
    if lost := [proposal for proposal in wanted if proposal not in proposals]:
        return f"proposal '{lost[0]}' is gone"
    return None

"""Stage `check`: what a run cannot do with its cases, all at once and before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from pipeline.errors import BadInput
from pipeline.judges.judge import JudgeKnobs
from pipeline.judges.kinds.fixed import Fixed
from pipeline.knobs import NOTHING
from pipeline.measures.intervals import LEAST
from pipeline.pairs.strategies.reviewed import Reviewed
from pipeline.params import Params
from pipeline.promotion.candidates import of_pairs
from pipeline.proposals.fit_regions import regions_to_fit, whole_cases_needed
from pipeline.proposals.fit_thresholds import samplers_to_fit
from pipeline.proposals.plan import first_names, names_of, names_of_all
from pipeline.proposals.samplers.mean import Mean
from pipeline.proposals.samplers.sampler import Setup
from pipeline.proposals.samplers.snapshots import Snapshots
from pipeline.proposals.samplers.tta import TTA
from pipeline.segmenter.base import folds_objection, model_names
from pipeline.segmenter.imported import AnyBase
from pipeline.segmenter.imported.checkpoint import Checkpoint
from pipeline.segmenter.imported.nnunet import NnUNetFolder
from pipeline.segmenter.imported.nnunet_folds import SPLITS_FILE
from pipeline.segmenter.knobs import Base
from pipeline.segmenter.offsets import FEWEST
from pipeline.segmenter.seen import SEEN
from pipeline.store.cases import Case, CaseStore
from pipeline.students.objectives.objective import PoolObjective
from pipeline.students.objectives.proposal import Proposal


def check(params: Params, cases: CaseStore) -> list[str]:
    """Notes on what the run can do only in part. Raises `BadInput` with everything that the run cannot do."""
    splits = {split: cases.split(split) for split in ("labelled", "pool", "validation", "test")}
    out_of_fold = _out_of_fold(params, cases)
    problems = [
        *_of_splits(params, splits),
        *_of_axes(params, len(cases.all[0].shape), len(cases.class_names)),
        *_of_proposals(params, len(cases.class_names)),
        *_of_judges(params, out_of_fold),
        *_of_review(params),
        *_of_pairs(params, splits),
        *_of_students(params, splits),
    ]
    if problems:
        raise BadInput.all(f"params.yaml: {problem}" for problem in problems)
    patients = {split: len({case.group for case in cases.known(split)}) for split in ("validation", "test")}
    return [
        *_notes(params, len({case.group for case in cases.known("labelled") if case.case_id in out_of_fold})),
        *_notes_on_size(params, cases),
        *_notes_on_validation(params, patients["validation"]),
        *_notes_on_pairs(params),
        *_notes_on_test(patients["test"]),
        *_notes_on_flips(params),
        *_notes_on_views(params, cases),
    ]


def _notes_on_validation(params: Params, patients: int) -> Iterator[str]:
    """What so few validation patients cannot show."""
    if params.students and patients < params.promotion.min_patients:
        yield (
            f"splits.validation: {patients} patients are fewer than promotion.min_patients "
            f"({params.promotion.min_patients}), so no student can be promoted; give validation more labelled patients"
        )
    few = [name for name, pairs in params.pairs.items() if pairs.judge != "none"]
    if patients >= params.audit.calibration.min_cases:
        few = []
    if few:
        yield (
            f"splits.validation: {patients} patients are few to calibrate pairs on (pair sets {', '.join(few)}), so "
            "p_correct is drawn towards one half; give validation more labelled patients"
        )


def _notes_on_pairs(params: Params) -> Iterator[str]:
    """Students that no run promotes, because labels of the pool or of validation made their pairs."""
    students: dict[str, list[str]] = {}
    for name, student in params.students.items():
        if reason := of_pairs(student, params.pairs[student.pairs], params.judges, params.consensus):
            students.setdefault(reason, []).append(name)
    for reason, names in students.items():
        yield f"students {', '.join(names)}: no candidate for promotion: {reason}"


def check_paths(params: Params) -> None:
    """Raise one `BadInput` with every path of `params.yaml` that is not there, and what may be meant.

    A path that DVC can fetch, because a file `.dvc` beside it says so, passes.
    """
    paths = {
        "data.path": params.data.path,
        "model": params.model,
        "propose.imports": params.propose.imports,
        "promotion.first_base": params.promotion.first_base,
        **{f"tables.{name}.path": table.path for name, table in params.tables.items()},
        "review.verdicts": params.review.verdicts,
    }
    if missing := [said for key, path in paths.items() if (said := _missing(key, path))]:
        raise BadInput.all(missing)


def _missing(key: str, path: Path) -> str | None:
    if path.exists() or any(
        each.with_name(f"{each.name}.dvc").is_file() for each in (path, *path.parents) if each.name
    ):
        return None
    there = next(each for each in path.parents if each.is_dir())
    wanted = path.relative_to(there).parts[0]
    names = sorted(each.name for each in there.iterdir() if not each.name.startswith("."))
    close = get_close_matches(wanted, names, n=1)
    found = f"none: {there} has no '{wanted}'" if there != Path() else "none"
    return f"params.yaml: {key}: expected a file or folder, found {found}; " + (
        f"did you mean '{there / close[0]}'?" if close else "correct the path, or put the files there"
    )


def _notes_on_test(patients: int) -> Iterator[str]:
    if 0 < patients < LEAST:
        yield f"splits.test: {patients} patients are fewer than {LEAST}, so results on test have no intervals"


def _notes_on_flips(params: Params) -> Iterator[str]:
    """Samplers that flip images along axes along which no model has seen a flipped image."""
    seen = set(params.augmentation.flips)
    if not isinstance(params.base, Base):
        return
    for name, sampler in params.propose.samplers.items():
        if isinstance(sampler, TTA | Mean):
            asked = {axis for axes in sampler.flips for axis in axes}
            if more := sorted(asked - seen):
                yield (
                    f"propose.samplers.{name}: flips along axes {more}, and augmentation.flips has {sorted(seen)}, so "
                    "the models have not seen such images; give both the same axes"
                )


def _notes_on_views(params: Params, cases: CaseStore) -> Iterator[str]:
    """Strong views of a scanner for what may be photographs. Slices of scans may be saved in colour too."""
    modality = params.training.views.modality
    if params.students and cases.rgb and modality in ("mri", "ct"):
        yield (
            f"training.views.modality: pool images are varied as those of '{modality}', and these have the channels "
            "red, green and blue; if they are photographs, set photograph"
        )


def _of_splits(params: Params, splits: Mapping[str, Sequence[Case]]) -> Iterator[str]:
    needed = ["validation", "test"] if params.base is not None else []
    if isinstance(params.base, Base):
        needed.insert(0, "labelled")
    if isinstance(params.base, Base) and (objection := folds_objection(params.base, splits["labelled"])):
        yield objection
    for split in needed:
        if not splits[split]:
            yield f"splits.{split}: expected at least one case, found none; the base is trained or measured there"
        if without := [case.case_id for case in splits[split] if not case.has_label]:
            yield (
                f"splits.{split}: expected cases with a mask, found {len(without)} without (first: '{without[0]}'); "
                "add the masks, or move the cases to the pool"
            )


def _of_axes(params: Params, dimensions: int, classes: int) -> Iterator[str]:
    sided = params.augmentation.swap_labels
    checks: list[Callable[[], None]] = [partial(params.augmentation.check, dimensions, classes)]
    for name, sampler in params.propose.samplers.items():
        if isinstance(sampler, TTA | Mean):
            checks.append(partial(sampler.check, name, dimensions, sided))
    for one in checks:
        try:
            one()
        except BadInput as error:
            yield str(error)


def _of_proposals(params: Params, classes: int) -> Iterator[str]:
    """Samplers that the models do not serve, and names of proposals that no sampler makes."""
    setup = _setup(params.base, classes)
    names, unknown = first_names(setup), set[str]()
    for name, sampler in params.propose.samplers.items():
        try:
            # Without cases, no imported file is looked at. `propose` depends on the files, and looks.
            made = names_of(name, sampler, setup, names)
        except BadInput as error:
            # The error of a sampler hides which proposals it would make.
            unknown.add(name)
            yield str(error)
            continue
        if isinstance(sampler, Snapshots):
            # Steps that become snapshots of a trained base are known after its training.
            unknown.add(name)
        names += made
    asked = [
        (f"judges.{name}.proposal", judge.proposal)
        for name, judge in params.judges.items()
        if isinstance(judge, Fixed) and not judge.learns
    ]
    asked += [(f"students.{name}", one) for name, student in params.students.items() for one in student.proposals]
    for key, proposal in asked:
        if proposal not in names and proposal.split(" ")[0] not in unknown:
            close = get_close_matches(proposal, names, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "name one of them, or add its sampler"
            yield f"{key}: expected a proposal of propose.samplers, one of {names}, found '{proposal}'; {hint}"


def _setup(base: AnyBase | None, classes: int) -> Setup:
    """Models that samplers draw from, by name, as far as the knobs say. A sampler may name folds as members."""
    match base:
        case None:
            return Setup(classes, base=False)
        case Base():
            members = tuple(name for name in model_names(base) if name != "base")
            return Setup(classes, members=members, snapshots=("snapshot",) * bool(base.snapshots))
        case Checkpoint():
            return Setup(classes, members=base.members, snapshots=base.snapshots)
        case NnUNetFolder():
            # Whether a fold held a labelled case out is known after the import.
            return Setup(classes, members=(*base.member_names, *(f"fold_{fold}" for fold in base.folds)))
        case _:
            return Setup(classes)


def _out_of_fold(params: Params, cases: CaseStore) -> set[str]:
    """Ids of the labelled cases that get proposals out of fold."""
    if isinstance(params.base, NnUNetFolder):
        return set(params.base.held_out(params.model, cases))
    folds = isinstance(params.base, Base) and params.base.folds > 1
    return {case.case_id for case in cases.split("labelled")} if folds else set()


def _way_to_folds(params: Params) -> str | None:
    """What gives labelled cases proposals out of fold. None for a base that cannot have folds."""
    if isinstance(params.base, NnUNetFolder):
        if (params.model / SEEN).is_file():
            return None
        if not (file := params.model / SPLITS_FILE).is_file():
            return f"copy {SPLITS_FILE} of the training to {file}"
        return f"put cases into the split labelled that one of base.folds held out (`val` in {file})"
    return "set base.folds to at least 2" if isinstance(params.base, Base) else None


def _of_judges(params: Params, out_of_fold: Collection[str]) -> Iterator[str]:
    if out_of_fold:
        return
    advice = f"{way}, or remove" if (way := _way_to_folds(params)) else "remove"
    for name, judge in params.judges.items():
        if isinstance(judge, JudgeKnobs) and judge.learns:
            sets = [pairs for pairs, one in params.pairs.items() if name in _judges_of(params, one.judge)]
            users = [f"pairs.{pairs}" for pairs in sets]
            users += [f"students.{student}" for student, one in params.students.items() if one.pairs in sets]
            users += [f"consensus.{entry}" for entry, one in params.consensus.items() if name in one.judges]
            yield (
                f"judges.{name}: kind '{judge.kind}' learns from proposals of models that have not seen a labelled "
                f"case, found none; {advice} the judge" + (f" and {', '.join(users)}" if users else "")
            )


def _of_review(params: Params) -> Iterator[str]:
    """Experts and pair sets that need answers of reviewers where no table of answers is named."""
    if params.review.verdicts != NOTHING:
        return
    needed = {f"experts.{name}": "an expert learns from" for name in params.experts}
    reviewed = (name for name, pairs in params.pairs.items() if isinstance(pairs.strategy, Reviewed))
    needed |= {f"pairs.{name}": "strategy 'reviewed' makes pairs of" for name in reviewed}
    for key, need in needed.items():
        yield (
            f"{key}: {need} the answers of reviewers, found review.verdicts: {NOTHING}; answer pairs first, and set "
            "review.verdicts to the table of the answers, or remove the entry and what uses the entry"
        )


def _of_pairs(params: Params, splits: Mapping[str, Sequence[Case]]) -> Iterator[str]:
    for name, pairs in params.pairs.items():
        if pairs.judge == "none":
            continue
        if pairs.split not in params.propose.splits:
            yield f"pairs.{name}: expected proposals of split '{pairs.split}'; add '{pairs.split}' to propose.splits"
        if not splits[pairs.split]:
            yield f"pairs.{name}: expected cases in split '{pairs.split}', found none; change `splits`"
        research = [judge for judge in _judges_of(params, pairs.judge) if _is_research(params, judge)]
        labelled = sum(case.has_label for case in splits[pairs.split])
        if research and splits[pairs.split] and not labelled:
            yield (
                f"pairs.{name}: judge '{research[0]}' reads the truth of split '{pairs.split}', where no case has a "
                "mask; remove the pair set and its students, which are for research"
            )


def _of_students(params: Params, splits: Mapping[str, Sequence[Case]]) -> Iterator[str]:
    for name, student in params.students.items():
        objective, key = student.objective, f"students.{name}"
        for split in objective.labels_from:
            without = [case.case_id for case in splits[split] if not case.has_label]
            if without and split == "pool":
                yield (
                    f"{key}: objective '{objective.kind}' learns from the masks of split '{split}', found "
                    f"{len(without)} of {len(splits[split])} cases without (first: '{without[0]}'); remove the "
                    "student, which is for research"
                )
        if objective.feeds == "pool" and not splits["pool"]:
            yield f"{key}: objective '{objective.kind}' learns from the pool, found no pool case; change `splits`"
        elif student.offsets == "pool" and not splits["pool"]:
            yield f"{key}: offsets are fitted on the pool, found no pool case; change `splits`, or remove `offsets`"
        if student.reads_proposals and "pool" not in params.propose.splits:
            yield f"{key}: expected proposals of split 'pool' to learn from; add 'pool' to propose.splits"
        calibrated = isinstance(objective, PoolObjective) and objective.needs_p_correct
        if calibrated and "validation" not in params.propose.splits:
            yield (
                f"{key}: a calibrated link needs p_correct, which the audit fits on proposals of split 'validation'; "
                "add 'validation' to propose.splits, or give `e` a number"
            )
        supervised = objective.feeds == "labelled" or (student.anchor is not None and student.anchor.supervised > 0)
        if supervised and not splits["labelled"]:
            yield f"{key}: expected labelled cases to learn from, found none; set anchor.supervised to 0"
        if isinstance(objective, Proposal):
            for split in ("validation", "test"):
                if split not in params.propose.splits:
                    yield f"{key}: expected proposals of split '{split}'; add '{split}' to propose.splits"
        if (known := _starts(params.base)) and student.start not in known:
            yield f"{key}.start: expected one of {known}, found '{student.start}'"


def _starts(base: AnyBase | None) -> list[str]:
    """Names of the models that a student may start from. Empty if they are known only after the import."""
    if isinstance(base, Base):
        return model_names(base)
    return ["base", *base.members] if isinstance(base, Checkpoint) else []


def _notes(params: Params, patients: int) -> Iterator[str]:
    """Notes on samplers that are not fitted. `patients` have a labelled case with proposals out of fold."""
    fits = samplers_to_fit(params.propose.samplers)
    way = _way_to_folds(params)
    for name in fits:
        if not patients:
            yield (
                f"propose.samplers.{name}: no labelled case has proposals out of fold, so the threshold is not fitted "
                f"and stays .5; {way or 'give `fitted` as numbers if you know better ones'}"
            )
        elif patients < FEWEST:
            yield (
                f"propose.samplers.{name}: {patients} labelled patients with proposals out of fold are fewer than "
                f"{FEWEST}, so the threshold is not fitted and stays .5"
            )
    for name, sampler in regions_to_fit(params.propose.samplers).items():
        if not patients:
            yield (
                f"propose.samplers.{name}: no labelled case has proposals out of fold, so no model of regions is "
                f"fitted and the mask is that of '{sampler.fixed}'" + (f"; {way}" if way else "")
            )
        elif patients < FEWEST:
            yield (
                f"propose.samplers.{name}: {patients} labelled patients with proposals out of fold are fewer than "
                f"{FEWEST}, so no model of regions is fitted and the mask is that of '{sampler.fixed}'"
            )


def _notes_on_size(params: Params, cases: CaseStore) -> Iterator[str]:
    """Samplers that compose nothing because cases are large."""
    slots = len(names_of_all(params.propose.samplers, _setup(params.base, len(cases.class_names))))
    if note := whole_cases_needed(cases, slots):
        for name, sampler in regions_to_fit(params.propose.samplers).items():
            yield f"propose.samplers.{name}: {note}; the mask is that of '{sampler.fixed}'"


def _judges_of(params: Params, name: str) -> list[str]:
    """The judge of this name, or the judges that a consensus entry of this name combines."""
    return list(params.consensus[name].judges) if name in params.consensus else [name]


def _is_research(params: Params, name: str) -> bool:
    return name in params.judges and params.judges[name].research

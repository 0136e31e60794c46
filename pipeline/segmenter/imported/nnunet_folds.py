"""Cases that the folds of an nnU-Net were trained on, by case id, from `splits_final.json` in the results folder.

nnU-Net keeps the file beside the preprocessed images. It must be copied into the results folder, because DVC watches
the path `model` alone: a file elsewhere could change, or be missing on another machine, without a word.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Literal

from pipeline.cases.files.checks import case_id_of, json_content, json_object, stated_number
from pipeline.cases.nnunet_split import cases_of_fold, stated_folds
from pipeline.errors import BadInput
from pipeline.segmenter.seen import SEEN, Seen

if TYPE_CHECKING:
    from pipeline.store.cases import Case, CaseStore

SPLITS_FILE = "splits_final.json"


@dataclass(frozen=True)
class FoldCases:
    """Ids of the cases that a fold was trained on, and of the cases under `val`."""

    train: frozenset[str]
    val: frozenset[str]


@dataclass(frozen=True)
class Folds:
    """Cases of the folds in use, by fold (`fold_0`)."""

    file: Path
    cases_of: Mapping[str, FoldCases]
    unlisted: tuple[str, ...]
    """Folds without lists of their own: `all`, and numbers behind the end of the file. nnU-Net trains the first on all
    cases of the data set and the others on a random part of them, whatever the file names. Every training case counts
    as trained on."""

    @classmethod
    def of(cls, model: Path, folds: Sequence[int | Literal["all"]]) -> Folds | None:
        """Lists of these folds. None if the folder has no `splits_final.json`, or has a `seen.json`.

        A `seen.json` says what the networks of an export have seen. The lists of nnU-Net do not: students train on all
        labelled cases of their project. Raises `BadInput` for a damaged file, for lists that are not those of the
        training, and for a fold without lists if a training case may be unnamed.
        """
        file = model / SPLITS_FILE
        if not file.is_file() or (model / SEEN).is_file():
            return None
        stated = stated_folds(file, f"copy {SPLITS_FILE} there")
        listed = [cases_of_fold(file, stated, number) for number in range(len(stated))]
        every = frozenset(case_id for one in listed for ids in one.values() for case_id in ids)
        cases_of, unlisted = {}, []
        for fold in folds:
            summary = model / f"fold_{fold}" / "validation" / "summary.json"
            validated = _validated(summary, model) if summary.is_file() else None
            if fold == "all" or fold >= len(listed):
                unlisted.append(f"fold_{fold}")
                known = every | (validated or frozenset())
                _refuse_unnamed(model, fold, len(known), summary)
                cases_of[f"fold_{fold}"] = FoldCases(known, known)
                continue
            train, val = (frozenset(listed[fold][key]) for key in ("train", "val"))
            if validated is not None:
                _refuse_other_split(f"{file}: fold {fold}", val, validated, summary)
            cases_of[f"fold_{fold}"] = FoldCases(train, val)
        return cls(file, cases_of, tuple(unlisted))

    @property
    def trained(self) -> frozenset[str]:
        """Ids of the cases that any of the folds was trained on."""
        return frozenset().union(*(fold.train for fold in self.cases_of.values()))

    @property
    def validated(self) -> frozenset[str]:
        """Ids of the cases that any of the folds was validated on."""
        return frozenset().union(*(fold.val for fold in self.cases_of.values()))

    @property
    def held(self) -> frozenset[str]:
        """Ids of the cases that a fold held out."""
        return frozenset().union(*(fold.val - fold.train for fold in self.cases_of.values()))

    def held_out(self, cases: CaseStore) -> dict[str, str]:
        """Fold of each labelled case that a fold held out: the first fold that was trained on no case of its patient.

        Cases without such a fold are left out.
        """
        trained = {name: _groups(cases.all, fold.train) for name, fold in self.cases_of.items()}
        found = {}
        for case in cases.split("labelled"):
            for name, fold in self.cases_of.items():
                if case.case_id in fold.val and case.group not in trained[name]:
                    found[case.case_id] = name
                    break
        return found

    def seen(self, cases: CaseStore, chosen: bool) -> Seen:
        """Images of these cases that the folds were trained on and, if weights were `chosen` by `val`, those of `val`.

        Cases of the training that are not here have no image. The list is not complete, because nnU-Net does not say
        with which weights a training started.
        """
        hashes = cases.image_hashes
        learned, by = (
            frozenset(hashes[case_id] for case_id in ids & hashes.keys())
            for ids in (self.trained, self.validated if chosen else frozenset())
        )
        return Seen(learned, by)

    def notes(self, cases: CaseStore) -> list[str]:
        """What follows for these cases: labelled cases out of fold, pool cases of the training, names in no list."""
        named, names = self.trained | self.validated, ", ".join(self.cases_of)
        notes = []
        if self.unlisted:
            notes.append(
                f"{self.file} has no lists of {', '.join(self.unlisted)}, so every case of the training data counts as "
                "trained on, and no case as held out"
            )
        if not any(case.case_id in named for case in cases.all):
            notes.append(
                f"{self.file} names none of the {len(cases.all)} cases under {names}, so all cases count as new to the "
                "model and no labelled case gets proposals out of fold; cases are compared by name: if these are cases "
                "of its training under other names, measures are too good"
            )
            return notes
        notes += self._on_labelled(cases, named)
        pool = cases.split("pool")
        if known := [case.case_id for case in pool if case.case_id in self.trained]:
            notes.append(
                f"{len(known)} of {len(pool)} pool cases (first: '{known[0]}') are of the training of {names}, so "
                "proposals of these cases are better than those of new images, and pairs of them teach less than the "
                "audit says; keep them out of the pool"
            )
        return notes

    def _on_labelled(self, cases: CaseStore, named: Collection[str]) -> list[str]:
        labelled, found = cases.split("labelled"), self.held_out(cases)
        if not labelled:
            return []
        others = [case.case_id for case in labelled if case.case_id not in found]
        known = [case_id for case_id in others if case_id in named]
        unnamed = [case_id for case_id in others if case_id not in named]
        reasons = (
            (known, f"no fold in use ({', '.join(self.cases_of)}) held out the case and its patient"),
            (unnamed, f"{self.file} does not name the case"),
        )
        text = (
            f"{len(found)} of {len(labelled)} labelled cases have proposals out of fold, by a fold that held them out"
        )
        for ids, reason in reasons:
            if ids:
                text += f"; {len(ids)} without, because {reason} (first: '{ids[0]}')"
        notes = [text]
        if found and len(self.cases_of) > 1:
            notes.append(
                f"proposals out of fold are of one network, and the pool can have means of {len(self.cases_of)}: "
                "learned judges and thresholds of samplers `mean` are fitted on the proposals of one network, and "
                "regions are not composed over such a mean; with `members: []` a sampler `mean` takes one network in "
                "the pool too"
            )
        return notes


def _groups(cases: Sequence[Case], ids: Collection[str]) -> set[str]:
    return {case.group for case in cases if case.case_id in ids}


def _refuse_other_split(where: str, val: frozenset[str], validated: frozenset[str], summary: Path) -> None:
    """Refuse lists that were made anew after the training, by the cases that the fold itself was validated on."""
    lacking, more = val - validated, validated - val
    if lacking or more:
        raise BadInput(
            f"{where}: expected the lists of the training, found {len(lacking)} cases under `val` on which the fold "
            f"was not validated{_first(lacking)}, and {len(more)} others on which it was{_first(more)} ({summary}); "
            "fetch the file of the training, or remove the summary if an earlier training left cases in it"
        )


def _first(ids: Collection[str]) -> str:
    return f" (first: '{min(ids)}')" if ids else ""


def _refuse_unnamed(model: Path, fold: int | Literal["all"], known: int, summary: Path) -> None:
    """Refuse a fold that was trained on cases whose names are unknown: as measured cases they would count as new."""
    index = model / "dataset.json"
    trained = stated_number(json_object(index), "numTraining", index)
    if trained is None or known < trained:
        raise BadInput(
            f"{model / SPLITS_FILE}: fold_{fold}: expected the names of all {trained or 'its'} training cases "
            f"(`numTraining` of {index}), because nnU-Net trains this fold on cases that the file need not name, found "
            f"{known}; fetch {summary} of the training too, or add the other cases to a `train` of this copy, which "
            "nnU-Net does not read"
        )


def _validated(summary: Path, model: Path) -> frozenset[str]:
    """Ids of the cases on which nnU-Net validated a fold after its training."""
    ending = str(json_object(model / "dataset.json").get("file_ending", ""))
    content = json_content(summary, "nnU-Net's summary of a validation", "fetch it again")
    try:
        # The paths are those of the machine of the training.
        files = [PureWindowsPath(row["prediction_file"]).name for row in content["metric_per_case"]]
    except (KeyError, TypeError) as error:
        raise BadInput(f"{summary}: expected a `prediction_file` in each `metric_per_case`; fetch it again") from error
    return frozenset(case_id_of(name.removesuffix(ending)) for name in files)

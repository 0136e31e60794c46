"""Splits from nnU-Net's `splits_final.json`, so that a comparison with nnU-Net uses the same cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.cases.files.checks import case_id_of, inside, json_content
from pipeline.cases.readers.reader import Source
from pipeline.errors import BadInput
from pipeline.knobs import Knobs


class GivenSplit(Knobs):
    """A fold of a file `[{"train": [case ids], "val": [case ids]}, ...]`."""

    file: str = "splits_final.json"
    """Path of the file, relative to `data.path`."""
    fold: Annotated[int, Field(ge=0)] = 0
    """Index of the fold in the file, from 0."""
    train: Literal["labelled", "pool", "free"] = "labelled"
    """Split of the fold's training cases. `free`: the counts of `splits` assign the training cases, like cases that
    the file does not name."""
    val: Literal["validation", "test", "free"] = "validation"
    """Split of the fold's validation cases. `free`: the counts of `splits` assign the validation cases."""


def with_given_split(sources: Sequence[Source], given: GivenSplit | None, root: Path) -> list[Source]:
    """The cases with the splits of the fold. Cases that the fold does not name keep their split.

    Raises `BadInput` for a broken file, a missing fold, unknown or repeated cases, and for a case whose split in the
    case table or data set differs from the fold.
    """
    if given is None:
        return list(sources)
    file = inside(root, given.file, "splits.given.file")
    fold = _fold(file, given.fold)
    if unknown := sorted({*fold["train"], *fold["val"]} - {source.case_id for source in sources}):
        raise BadInput(
            f"{file}: fold {given.fold}: expected cases of the data set, found {len(unknown)} unknown, e.g. "
            f"'{unknown[0]}'; add the files, or use the splits file of this data set"
        )
    counts = Counter([*fold["train"], *fold["val"]])
    if repeated := sorted(case_id for case_id, count in counts.items() if count > 1):
        raise BadInput(
            f"{file}: fold {given.fold}: expected every case once in train or val, found '{repeated[0]}' twice; "
            "correct the fold"
        )
    split = {
        case_id: one
        for key, one in (("train", given.train), ("val", given.val))
        if one != "free"
        for case_id in fold[key]
    }
    for source in sources:
        if source.case_id in split and source.split not in (None, split[source.case_id]):
            raise BadInput(
                f"{file}: fold {given.fold}: case '{source.case_id}' is in split {split[source.case_id]}, expected "
                f"{source.split}, its split in the case table or data set; remove the case from one of the two"
            )
    return [replace(source, split=split.get(source.case_id, source.split)) for source in sources]


def _fold(file: Path, number: int) -> dict[str, list[str]]:
    folds = stated_folds(file, "copy splits_final.json there, or correct `splits.given.file`")
    if number >= len(folds):
        raise BadInput(
            f"{file}: expected a list with fold {number}, found {len(folds)} folds; correct `splits.given.fold`"
        )
    return cases_of_fold(file, folds, number)


def stated_folds(file: Path, advice: str) -> list[Any]:
    """Entries of `splits_final.json`, one per fold. `advice` says what to do about a missing file.

    Raises `BadInput` for a missing or damaged file, and for content that is no list.
    """
    folds = json_content(file, "nnU-Net's splits as JSON", advice)
    if not isinstance(folds, list):
        raise BadInput(
            f"{file}: expected a list with one entry per fold, found {type(folds).__name__}; fetch "
            "splits_final.json of the training"
        )
    return folds


def cases_of_fold(file: Path, folds: Sequence[Any], number: int) -> dict[str, list[str]]:
    """Case ids of a fold under `train` and `val`. Raises `BadInput` for an entry that has no such lists."""
    fold = folds[number]
    lists = [fold.get(key) for key in ("train", "val")] if isinstance(fold, dict) else [None]
    if not all(isinstance(ids, list) and all(isinstance(case_id, str) for case_id in ids) for ids in lists):
        raise BadInput(f"{file}: fold {number}: expected lists of case ids under `train` and `val`; correct the file")
    return {key: [case_id_of(name) for name in fold[key]] for key in ("train", "val")}

"""Images that a model, or a model it started from, was trained or selected on: `seen.json`.

The stage `base` refuses a model that has seen an image of a patient of the test split, or that was trained on an image
of a patient of the validation split.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import BadInput
from pipeline.store.manifest import write_json

if TYPE_CHECKING:
    from pipeline.store.cases import CaseStore

SEEN = "seen.json"
"""File beside the weights of a model. An image is listed by the first 16 digits of the SHA-256 of its (first) file, not
by its name. An image that is saved again with other bytes is another image."""

_KEEP_SPLITS = (
    "keep the splits of the model's run: the same `splits` for the same cases, or a case table with the splits of the "
    "earlier cases; to use the model nevertheless, list 'seen' under base.ignore (kind 'checkpoint') or move the file "
    f"away from its {SEEN} (kinds 'program' and 'nnunet')"
)


@dataclass(frozen=True)
class Seen:
    """Images that a model, or a model it started from, was trained or selected on."""

    learned: frozenset[str] = frozenset()
    """Images that the weights were trained on."""
    chosen_by: frozenset[str] = frozenset()
    """Images by whose measures steps, thresholds or weights were selected."""
    complete: bool = False
    """Whether both lists are complete. False if the model started from a model without a list."""

    @classmethod
    def of(cls, model: Path) -> Seen:
        """List in a model folder, or beside the file of a model. Empty and incomplete if there is no `seen.json`.

        Raises `BadInput` for a `seen.json` with other content.
        """
        path = (model if model.is_dir() else model.parent) / SEEN
        if not path.is_file():
            return cls()
        try:
            content = json.loads(path.read_text())
            return cls(frozenset(content["learned"]), frozenset(content["chosen_by"]), content["complete"])
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"{path}: expected a list of the images that a model has seen, found other content; remove the file"
            ) from error

    @classmethod
    def of_all(cls, models: Sequence[Path]) -> Seen:
        """Images that any of the models has seen. Complete if the lists of all models are."""
        each = [cls.of(model) for model in models]
        learned = frozenset().union(*(one.learned for one in each))
        chosen_by = frozenset().union(*(one.chosen_by for one in each))
        return cls(learned, chosen_by, all(one.complete for one in each))

    def save(self, folder: Path) -> None:
        """Write `seen.json`."""
        content = {"learned": sorted(self.learned), "chosen_by": sorted(self.chosen_by), "complete": self.complete}
        write_json(folder / SEEN, content)

    def joined(self, other: Seen) -> Seen:
        """This record with the images of another. It is as complete as this record."""
        return Seen(self.learned | other.learned, self.chosen_by | other.chosen_by, self.complete)

    def also(self, cases: CaseStore, learned: Sequence[str], chosen_by: Sequence[str]) -> Seen:
        """This record with the images of the splits `learned` and `chosen_by`. Cases without a file add no image."""
        more, by = (
            {cases.image_hashes[case.case_id] for case in cases.split(*splits) if case.case_id in cases.image_hashes}
            for splits in (learned, chosen_by)
        )
        return Seen(self.learned | more, self.chosen_by | by, self.complete)

    def leaks(self, cases: CaseStore) -> str | None:
        """Numbers of test cases that the model has seen and of validation cases in its training, in words.

        None if there are none. A case counts if the model has seen any image of its patient among `cases`.
        """
        found = []
        for split, seen in (("test", self.learned | self.chosen_by), ("validation", self.learned)):
            groups = {case.group for case in cases.all if cases.image_hashes.get(case.case_id) in seen}
            here = cases.split(split)
            if known := [case.case_id for case in here if case.group in groups]:
                found.append(f"{len(known)} of {len(here)} {split} cases (first: '{known[0]}')")
        return " and ".join(found) or None

    def check(self, cases: CaseStore, model: Path, allowed: bool, to_do: str | None = None) -> list[str]:
        """Notes on leaked cases, if leaks are allowed. Raises `BadInput` for a leak that is not allowed.

        `to_do` says in the message what to do. None: how the splits of an earlier run of this project are kept.
        """
        leaks = self.leaks(cases)
        if leaks is None:
            return []
        if allowed:
            return [f"the model has seen {leaks}, so measures on these cases are too good"]
        raise BadInput(
            f"model: {model}: expected a model that has not seen the test cases and was not trained on validation "
            f"cases, found {leaks} that the model, or a model it started from, has seen; measures on these cases would "
            f"be too good; {to_do or _KEEP_SPLITS}"
        )

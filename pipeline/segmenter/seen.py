"""Which images a model has seen, so that no later run measures it on them unnoticed."""

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
"""Beside the weights of a model. An image is known by the start of its file's SHA-256, whatever it is called: a file
that is saved anew is another one."""


@dataclass(frozen=True)
class Seen:
    """Images that a model, or one that it started from, has seen."""

    learned: frozenset[str] = frozenset()
    """Its weights follow from these."""
    chosen_by: frozenset[str] = frozenset()
    """Steps, thresholds or weights were chosen by how it did on these."""
    complete: bool = False
    """Whether that is all: false where it started from a model of which nothing is known."""

    @classmethod
    def of(cls, model: Path) -> Seen:
        """Of a model's folder, or of the folder of a model's file; nothing is known where there is no list.

        Raises `BadInput` for a file of this name that is no such list.
        """
        path = (model if model.is_dir() else model.parent) / SEEN
        if not path.is_file():
            return cls()
        try:
            content = json.loads(path.read_text())
            return cls(frozenset(content["learned"]), frozenset(content["chosen_by"]), content["complete"])
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"{path}: expected a list of what a model has seen, found other content; remove it"
            ) from error

    def save(self, folder: Path) -> None:
        """Write `seen.json`."""
        content = {"learned": sorted(self.learned), "chosen_by": sorted(self.chosen_by), "complete": self.complete}
        write_json(folder / SEEN, content)

    def also(self, cases: CaseStore, learned: Sequence[str], chosen_by: Sequence[str]) -> Seen:
        """And the images of these splits."""
        more, by = (
            {cases.image_hashes[case.case_id] for case in cases.split(*splits) if case.case_id in cases.image_hashes}
            for splits in (learned, chosen_by)
        )
        return Seen(self.learned | more, self.chosen_by | by, self.complete)

    def leaks(self, cases: CaseStore) -> str | None:
        """How many cases of test it has seen, and of validation it has learned from, in words; None if there is none.

        A case counts too where another image of its patient, among these cases, has been seen.
        """
        found = []
        for split, seen in (("test", self.learned | self.chosen_by), ("validation", self.learned)):
            groups = {case.group for case in cases.all if cases.image_hashes.get(case.case_id) in seen}
            here = cases.split(split)
            if known := [case.case_id for case in here if case.group in groups]:
                found.append(f"{len(known)} of {len(here)} {split} cases (first: '{known[0]}')")
        return " and ".join(found) or None

    def check(self, cases: CaseStore, model: Path, allowed: bool) -> list[str]:
        """A note on what has leaked where that is allowed; raises `BadInput` where it is not."""
        leaks = self.leaks(cases)
        if leaks is None:
            return []
        if allowed:
            return [f"the model had seen {leaks} before: what is measured on them is too good"]
        raise BadInput(
            f"model: {model}: expected a model that has not seen the test cases nor learned from validation, found "
            f"{leaks} that it, or a model that it started from, has seen: what is measured on them would be too good; "
            "keep the splits of its run (the same `splits` for the same cases, else the splits of the old cases in a "
            "case table), or, if that is meant, list 'seen' under base.ignore (kind 'checkpoint') or move the file "
            f"away from its {SEEN} (kind 'program')"
        )

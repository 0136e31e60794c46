"""Verdicts of reviewers on pairs of masks, read beside the proposals that hold these masks."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pipeline.errors import BadInput
from pipeline.knobs import NOTHING
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import read_table

_SLOTS = {"slot_a": pl.Int32(), "slot_b": pl.Int32()}


class Slots:
    """Slots of masks by their hash, for the cases that are asked for. A case is read once."""

    def __init__(self, cases: CaseStore, proposals: ProposalStore) -> None:
        self._cases = {case.case_id: case for case in cases.all}
        self._proposals = proposals
        self._proposed = set(proposals.case_ids())
        self._known: dict[str, dict[str, int]] = {}

    def of(self, case_id: str) -> dict[str, int] | None:
        """First slot of each mask of a case, by hash. None for an unknown case and for a case without proposals."""
        if case_id not in self._proposed:
            return None
        if case_id not in self._known:
            hashes = self._proposals.mask_hashes(self._cases[case_id])
            # Of equal masks the first slot stays, as in `ProposalStore.distinct`.
            self._known[case_id] = {found: slot for slot, found in reversed(list(enumerate(hashes)))}
        return self._known[case_id]

    def fault(self, case_id: str, mask_a: str, mask_b: str) -> str | None:
        """What was expected and found of two masks that nobody may judge now; None if both are proposals of the case.

        Nobody judges masks of test cases.
        """
        known = self.of(case_id)
        if known is None:
            return f"expected a case with proposals, found '{case_id}', which has none"
        if self._cases[case_id].split == "test":
            return f"expected a case outside of the test split, found '{case_id}', which is a test case now"
        missing = [found for found in (mask_a, mask_b) if found not in known]
        return f"expected masks of case '{case_id}', found the hash {missing[0]} of another mask" if missing else None


STALE = (
    "cases or proposals were made anew since the review; run `segpref review --discard-stale` to set such verdicts "
    "aside, or restore the data"
)
"""What to do about verdicts on masks that nobody may judge now."""


def read_verdicts(path: Path, cases: CaseStore, proposals: ProposalStore) -> pl.DataFrame:
    """Table of schema `VERDICTS`, with the columns `slot_a` and `slot_b`: the slots of the two masks.

    Masks are found by hash, so `slot_a` can be larger than `slot_b` where the slots have changed places since the
    review. `group` and `split` are those of the case now. The path `raw/none` gives an empty table.

    Raises `BadInput` for a missing table or a table of another version, for a case that is unknown or has no proposals,
    for a mask that is no proposal of its case, and for a test case.
    """
    if path == NOTHING:
        return pl.DataFrame(schema={**schema.VERDICTS.columns, **_SLOTS})
    if not path.is_file():
        raise BadInput(f"{path}: no such table; answer pairs with `segpref review`, or set the path to {NOTHING}")
    table = read_table(path, schema.VERDICTS, "run `segpref review --table`, which writes the table anew")
    slots = Slots(cases, proposals)
    faults = []
    for row in table.select("reviewer", "number", "case_id", "mask_a", "mask_b").iter_rows():
        if fault := slots.fault(*row[2:]):
            faults.append(f"verdict {row[1]} of reviewer '{row[0]}': {fault}")
    if faults:
        others = f" ({len(faults)} of {len(table)} verdicts)" if len(faults) > 1 else ""
        raise BadInput(f"{path}: {faults[0]}{others}; {STALE}")
    now = cases.table.select("case_id", "group", "split")
    table = table.drop("group", "split").join(now, on="case_id", how="left", maintain_order="left")
    found = {
        f"slot_{side}": [(slots.of(case) or {})[mask] for case, mask in table.select("case_id", f"mask_{side}").rows()]
        for side in "ab"
    }
    return table.select(list(schema.VERDICTS.columns)).with_columns(
        pl.Series(name, values, _SLOTS[name]) for name, values in found.items()
    )

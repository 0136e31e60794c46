"""The answers of reviewers on pairs of masks, with the slots of the masks among the proposals of today."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pipeline.errors import BadInput
from pipeline.knobs import NOTHING
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import read_table

SLOTS: dict[str, pl.DataType] = {"slot_a": pl.Int32(), "slot_b": pl.Int32()}
"""Columns beside those of `VERDICTS`: first slot with mask `a` and with mask `b`."""


def read_verdicts(path: Path, cases: CaseStore, proposals: ProposalStore) -> pl.DataFrame:
    """Answers of schema `VERDICTS`, with the columns `slot_a` and `slot_b`. `raw/none` gives an empty table.

    Raises `BadInput` for a case that is unknown or has no proposals, and for a mask that no proposal of the case has.
    """
    if path == NOTHING:
        return pl.DataFrame(schema=schema.VERDICTS.columns | SLOTS)
    table = read_table(path, schema.VERDICTS)
    known = {case.case_id: case for case in cases.all}
    there = set(proposals.case_ids())
    slot_of: dict[str, dict[str, int]] = {}
    slots: list[tuple[int, int]] = []
    for row in table.iter_rows(named=True):
        name = row["case_id"]
        if name not in known or name not in there:
            raise BadInput(
                f"{path}: reviewer '{row['reviewer']}', answer {row['number']}: expected a case with proposals, found "
                f"'{name}'; the answers belong to other cases: set review.verdicts to raw/none, or to the table of "
                "these cases"
            )
        if name not in slot_of:
            hashes = proposals.mask_hashes(known[name])
            slot_of[name] = {one: slot for slot, one in reversed(list(enumerate(hashes)))}
        for mask in (row["mask_a"], row["mask_b"]):
            if mask not in slot_of[name]:
                raise BadInput(
                    f"{path}: reviewer '{row['reviewer']}', answer {row['number']}: expected masks of proposals of "
                    f"case '{name}', found mask {mask}, which no proposal has now; the masks were made anew since: "
                    "review the new masks, or set review.verdicts to raw/none"
                )
        slots.append((slot_of[name][row["mask_a"]], slot_of[name][row["mask_b"]]))
    return pl.concat([table, pl.DataFrame(slots, schema=SLOTS, orient="row")], how="horizontal")

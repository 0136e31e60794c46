"""Stage `panel`: every judged proposal with all scores, and true Dice for validation proposals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from pipeline.judges.consensus import JudgeConsensus, check_consensus, with_consensus
from pipeline.measures.overlap import dice_to
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import read_table, write_table


def true_dice(cases: CaseStore, proposals: ProposalStore) -> pl.DataFrame:
    """True Dice of validation proposals on the working grid, mean over foreground classes.

    Columns `case_id`, `proposal`, `true_dice`. A case whose label is unknown everywhere has no rows.
    """
    classes = len(cases.class_names)
    known = set(proposals.case_ids())
    rows = [
        (case.case_id, slot, dice)
        for case in cases.known("validation")
        if case.case_id in known
        for slot, dice in enumerate(dice_to(cases.label(case), proposals.masks(case), classes).tolist())
    ]
    types = {"case_id": pl.String(), "proposal": pl.Int32(), "true_dice": pl.Float64()}
    return pl.DataFrame(rows, schema=types, orient="row")


def build_panel(
    cases: CaseStore,
    proposals: ProposalStore,
    scores: Path,
    judges: Sequence[str],
    out: Path,
    consensus: Mapping[str, JudgeConsensus] | None = None,
) -> None:
    """Write the panel: proposals with the scores of these judges, the consensus scores and true Dice.

    Proposals of test cases are left out. A judge without an entry in `judges` is not read, even if its score table is
    still on disk. Raises `BadInput` for a missing score table and for consensus entries that do not fit the judges.
    """
    entries = consensus or {}
    check_consensus(entries, judges)
    key = ["case_id", "proposal"]
    placed = cases.table.filter(pl.col("split") != "test").select("case_id", "case", "group", "split")
    frame = proposals.table.join(placed, on="case_id")
    for name in judges:
        table = read_table(scores / f"{name}.parquet", schema.SCORES)
        frame = frame.join(table.select(*key, pl.col("score").alias(f"score_{name}")), on=key, how="left")
    frame = frame.join(true_dice(cases, proposals), on=key, how="left")
    frame = with_consensus(frame, entries)
    write_table(frame, schema.panel([*judges, *entries]), out, (tuple(judges), dict(entries)))

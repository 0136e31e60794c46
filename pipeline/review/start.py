"""The pairs of a review, from the tables of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from pipeline.errors import BadInput
from pipeline.judges.consensus import reads_truth
from pipeline.pairs.mine import calibration_of
from pipeline.pairs.reviewed import judged
from pipeline.params import Params, entry
from pipeline.review.draw import Draws, doubtful, pairs_of_judge, pairs_of_set, stratified
from pipeline.store import schema
from pipeline.store.proposals import Data, ProposalStore
from pipeline.store.tables import scan_table


@dataclass(frozen=True)
class Wanted:
    """What a reviewer is asked about."""

    target: str | None = None
    """Pair set, or else judge, whose pairs are audited. None: the first pair set with pairs."""
    draw: Literal["audit", "doubt", "both"] = "audit"
    split: Literal["pool", "validation"] = "pool"
    repeats: float = 0.1
    """Share of the pairs that are shown again."""


def draws_of(params: Params, panel_file: Path, data: Data, audit: Path, wanted: Wanted) -> Draws:
    """Pairs that can be drawn.

    Raises `BadInput` for the panel of other proposals, for an unknown target, and for a draw that has no pair.
    """
    panel, proposals = scan_table(panel_file, schema.panel(params.judge_names)).drop("true_dice"), data.proposals
    _refuse_other_proposals(panel, panel_file, data)
    target = wanted.target or _first(params)
    audited = doubts = None
    if wanted.draw != "doubt":
        pairs = _pairs(params, panel, proposals, audit, target, wanted.split)
        audited = _some(stratified(pairs, params.seed, target), f"'{target}' has no pair in the {wanted.split}")
    if wanted.draw != "audit":
        plain = [name for name in params.judge_names if name not in params.consensus]
        judges = [name for name in plain if not reads_truth(name, params.judges, params.consensus)]
        found = doubtful(panel, proposals, judges, wanted.split)
        doubts = _some(found, f"the judges {judges} order all pairs of the {wanted.split} alike")
    return Draws(target, audited, doubts, wanted.repeats, params.seed, wanted.split, params.audit.least_answers)


def _refuse_other_proposals(panel: pl.LazyFrame, file: Path, data: Data) -> None:
    """Raise `BadInput` unless the panel has the rows of the proposals, with the voxels and the Dice of every mask."""
    placed = data.cases.table.filter(pl.col("split") != "test").select("case_id", "case", "split")
    wanted = data.proposals.table.join(placed, on="case_id").sort(schema.PROPOSALS.key)
    found = panel.select(wanted.columns).sort(schema.PROPOSALS.key).collect()
    if found.equals(wanted):
        return
    rows = zip(wanted.iter_rows(), found.iter_rows(), strict=False)
    first = next((f"case '{one[0]}'" for one, other in rows if one != other), f"{len(found)} for {len(wanted)} masks")
    raise BadInput(
        f"{file}: expected scores of the proposals in {data.proposals.folder}, found scores of others (first "
        f"difference: {first}); cases or proposals were made anew since; run `dvc repro panel`"
    )


def _first(params: Params) -> str:
    """The first pair set with pairs of a judge."""
    named = [name for name, pairs in params.pairs.items() if judged(pairs)]
    if not named:
        raise BadInput("review: params.yaml has no pair set with pairs of a judge; name a judge: --target NAME")
    return named[0]


def _pairs(
    params: Params, panel: pl.LazyFrame, proposals: ProposalStore, audit: Path, target: str, split: str
) -> pl.DataFrame:
    if (named := params.pairs.get(target)) is not None:
        if (pairs := judged(named)) is None:
            raise BadInput(
                f"review: --target {target}: expected a pair set with pairs of a judge, found strategy "
                f"'{named.strategy.kind}'; choose another pair set, or a judge"
            )
        calibration = calibration_of(audit, target, pairs)
        return pairs_of_set(panel, proposals, pairs, split, params.seed, calibration)
    known = {name: name for name in (*params.pairs, *params.judge_names)}
    judge = entry(known, target, "pairs, judges, tables, experts or consensus")
    return pairs_of_judge(panel, proposals, judge, split)


def _some(pairs: pl.DataFrame, otherwise: str) -> pl.DataFrame:
    if not len(pairs):
        raise BadInput(f"review: {otherwise}, so there is nothing to review; choose another target, draw or split")
    return pairs

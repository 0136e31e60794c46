"""Mining: which two proposals of a case make a preference, by the scores of one judge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import polars as pl
from pydantic import Field

from pipeline import schema
from pipeline.dataset import ProposalStore
from pipeline.errors import BadInput
from pipeline.knobs import Knobs, Name
from pipeline.seeding import seed_of
from pipeline.store import scan_table, write_json, write_table

BLOCK = 32_768
"""Cases mined at a time: what bounds the memory."""


class Scored(NamedTuple):
    """The scores of one judge for a block of cases; NaN for duplicates and where the judge abstained."""

    case_id: pl.Series  # [case]
    scores: np.ndarray  # f64 [case, slot]


class Candidates(NamedTuple):
    """Possible pairs, all `[candidate]`; those of one case best first."""

    row: np.ndarray  # case in the block
    chosen: np.ndarray  # slot
    rejected: np.ndarray  # slot
    tie: np.ndarray  # another proposal of the case has the score of chosen or rejected


class _Mining(Knobs):
    """Thresholds that every strategy has."""

    min_margin: Annotated[float, Field(ge=0)] = 0.0
    """Least difference of the two scores; equal scores never make a pair."""
    min_disagreement: Annotated[int, Field(ge=1)] = 1
    """Least |D| in voxels of the working grid."""
    max_pairs_per_case: Annotated[int, Field(ge=1)] = 1
    """Most pairs of one case."""


class TopBottom(_Mining):
    """The judge's best proposal over its worst; further pairs are second best over second worst, and so on."""

    kind: Literal["top_bottom"]

    def candidates(self, scored: Scored, seed: int) -> Candidates:
        order, tied, count = _ranked(scored.scores)
        found = []
        for rank in range(min(self.max_pairs_per_case, order.shape[1] // 2)):
            row = np.flatnonzero(count // 2 > rank)
            last = count[row] - 1 - rank
            tie = tied[row, rank] | tied[row, last]
            found.append(Candidates(row, order[row, rank], order[row, last], tie))
        return _together(found)


class TopBase(_Mining):
    """The judge's best proposals over the base prediction, where it scores them above it: all of D is active."""

    kind: Literal["top_base"]

    def candidates(self, scored: Scored, seed: int) -> Candidates:
        order, tied, count = _ranked(scored.scores[:, 1:])
        judged = ~np.isnan(scored.scores[:, 0])
        found = []
        for rank in range(min(self.max_pairs_per_case, order.shape[1])):
            row = np.flatnonzero(judged & (count > rank))
            found.append(Candidates(row, 1 + order[row, rank], np.zeros_like(row), tied[row, rank]))
        return _together(found)


class TopRandom(_Mining):
    """The judge's best proposal over others drawn at random."""

    kind: Literal["top_random"]

    def candidates(self, scored: Scored, seed: int) -> Candidates:
        order, tied, count = _ranked(scored.scores)
        keys = _keys(seed, scored.case_id, order.shape[1])
        keys[np.isnan(scored.scores)] = np.inf
        np.put_along_axis(keys, order[:, :1], np.inf, axis=1)
        drawn = np.argsort(keys, axis=1, kind="stable")
        found = []
        for turn in range(min(self.max_pairs_per_case, order.shape[1] - 1)):
            row = np.flatnonzero(count - 1 > turn)
            found.append(Candidates(row, order[row, 0], drawn[row, turn], tied[row, 0]))
        return _together(found)


class NoPairs(Knobs):
    """An empty pair set, for students that need no pairs."""

    kind: Literal["none"]


Strategy = Annotated[TopBottom | TopBase | TopRandom | NoPairs, Field(discriminator="kind")]


def _ranked(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slots best first and whether a neighbour has the same score, `[case, rank]`; scored proposals `[case]`."""
    order = np.argsort(-scores, axis=1, kind="stable")  # NaN last
    ranked = np.take_along_axis(scores, order, axis=1)
    same = ranked[:, 1:] == ranked[:, :-1]
    tied = np.zeros(scores.shape, bool)
    tied[:, 1:] |= same
    tied[:, :-1] |= same
    return order, tied, (~np.isnan(scores)).sum(1)


def _keys(seed: int, case_ids: pl.Series, slots: int) -> np.ndarray:
    """Random f64 `[case, slot]` that depend on seed, case and slot alone (splitmix64 of the case's seed)."""
    state = np.array([seed_of(seed, "top_random", case_id) for case_id in case_ids], np.uint64)[:, None]
    mixed = state + np.arange(1, slots + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.float64)


def _together(found: list[Candidates]) -> Candidates:
    """All ranks, those of a case beside each other."""
    if not found:
        empty = np.zeros(0, np.int64)
        return Candidates(empty, empty, empty, empty.astype(bool))
    row, chosen, rejected, tie = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(row, kind="stable")
    return Candidates(row[order], chosen[order], rejected[order], tie[order])


class PairSet(Knobs):
    """Preferences of one judge, mined by one strategy."""

    judge: Name
    """Name of a judge, of a score table, or `none`."""
    strategy: Strategy


def mine(
    panel: pl.LazyFrame, proposals: ProposalStore, pairs: PairSet, split: str, seed: int
) -> tuple[pl.DataFrame, dict[str, object]]:
    """Pairs of a split (schema `PAIRS`) and a counted reason for every case without a pair.

    Duplicates and proposals without a score are left out before ranking. Reasons are those of a case's first
    candidate: `fewer_than_two_scored`, `base_is_top`, `tie`, `margin`, `disagreement`.
    """
    strategy = pairs.strategy
    nothing: dict[str, object] = {"cases": 0, "cases_with_pairs": 0, "pairs": 0, "dropped": {}}
    if isinstance(strategy, NoPairs):
        return pl.DataFrame(schema=schema.PAIRS.columns), nothing
    score = f"score_{pairs.judge}"
    if score not in panel.collect_schema():
        raise BadInput(f"pairs: judge '{pairs.judge}' is not in the panel; name an entry of judges or tables")
    n_cases = 0
    tables: list[pl.DataFrame] = []
    reasons: list[pl.Series] = []
    for block in _blocks(panel.select(*_COLUMNS, pl.col(score).alias("score")), split):
        found = _candidates(block, proposals, strategy, seed)
        kept = found.filter(pl.col("reason").is_null())
        without = found.filter(~pl.col("case").is_in(kept["case"].unique().implode())).unique("case", keep="first")
        n_cases += block["case"].n_unique()
        tables.append(kept)
        reasons.append(without["reason"])
    if not tables:
        return pl.DataFrame(schema=schema.PAIRS.columns), nothing
    table = (
        pl.concat(tables)
        .sort(schema.PAIRS.key)
        .select(
            "case_id",
            "case",
            "chosen",
            "rejected",
            "chosen_score",
            "rejected_score",
            "margin",
            pl.lit(None, pl.Float64).alias("p_correct"),
            "disagreement",
            "chosen_sampler",
            "rejected_sampler",
            pl.lit(pairs.judge).alias("judge"),
            pl.lit(strategy.kind).alias("strategy"),
        )
    )
    dropped = dict(pl.concat(reasons).value_counts(name="cases").sort("reason").iter_rows())
    with_pairs = table["case"].n_unique()
    if silent := n_cases - with_pairs - sum(dropped.values()):
        dropped["fewer_than_two_scored"] = silent
    return table, {"cases": n_cases, "cases_with_pairs": with_pairs, "pairs": len(table), "dropped": dropped}


_COLUMNS = ("case_id", "case", "split", "proposal", "sampler", "duplicate_of")


def _blocks(rows: pl.LazyFrame, split: str) -> Iterator[pl.DataFrame]:
    """Rows of a split, whole cases and some at a time, each with the slots 0, 1, ... in order.

    A panel file is in that order; a frame in another one is sorted first. Slices come before the filter, so that each
    reads its own row groups.
    """
    key = rows.select("case", "proposal").collect()
    if not len(key):
        return
    total, slots = len(key), 1 + key["proposal"].to_numpy().max()
    whole = total % slots == 0
    if whole:
        case, proposal = (key[name].to_numpy().reshape(-1, slots) for name in ("case", "proposal"))
        whole = bool((proposal == np.arange(slots)).all() and (case == case[:, :1]).all())
        del case, proposal
    del key
    if not whole:
        rows = rows.sort("case_id", "proposal")
    for start in range(0, total, BLOCK * slots):
        block = rows.slice(start, BLOCK * slots).filter(pl.col("split") == split).collect()
        if len(block):
            yield block


def _candidates(
    block: pl.DataFrame, proposals: ProposalStore, strategy: TopBottom | TopBase | TopRandom, seed: int
) -> pl.DataFrame:
    """Candidates of a block with their scores, samplers and |D|, and the reason why one is no pair (null: it is)."""
    slots = 1 + block["proposal"].to_numpy().max()
    score = pl.when(pl.col("duplicate_of").is_null()).then("score").cast(pl.Float64)
    scores = block.select(score.fill_null(float("nan"))).to_series().to_numpy().reshape(-1, slots)
    scored = Scored(block["case_id"].gather_every(slots), scores)
    found = strategy.candidates(scored, seed)
    case = block["case"].gather_every(slots).to_numpy()[found.row]
    chosen_score, rejected_score = scores[found.row, found.chosen], scores[found.row, found.rejected]
    reason = (
        pl.when(pl.col("margin") < 0)
        .then(pl.lit("base_is_top"))
        .when(pl.col("tie") | (pl.col("margin") == 0))
        .then(pl.lit("tie"))
        .when(pl.col("margin") < strategy.min_margin)
        .then(pl.lit("margin"))
        .when(pl.col("disagreement") < strategy.min_disagreement)
        .then(pl.lit("disagreement"))
    )
    return pl.DataFrame(
        {
            "case_id": scored.case_id.gather(found.row),
            "case": case,
            "chosen": found.chosen.astype(np.int32),
            "rejected": found.rejected.astype(np.int32),
            "chosen_score": chosen_score,
            "rejected_score": rejected_score,
            "margin": chosen_score - rejected_score,
            "tie": found.tie,
            "disagreement": proposals.disagreement_of(case, found.chosen, found.rejected),
            "chosen_sampler": block["sampler"].gather(found.row * slots + found.chosen),
            "rejected_sampler": block["sampler"].gather(found.row * slots + found.rejected),
        }
    ).with_columns(reason.alias("reason"))


def mine_to(
    panel_file: Path, judges: list[str], proposals: ProposalStore, pairs: PairSet, seed: int, out: Path
) -> None:
    """Mine the pool and write `NAME.parquet` and, beside it, `NAME.drops.json`."""
    panel = scan_table(panel_file, schema.panel(judges)).drop("true_dice")
    table, drops = mine(panel, proposals, pairs, "pool", seed)
    write_table(table, schema.PAIRS, out, pairs)
    write_json(out.with_suffix(".drops.json"), drops)

"""Mining: which two proposals of a case make a preference, by the scores of one judge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import polars as pl
from pydantic import Field

from pipeline import schema
from pipeline.errors import BadInput
from pipeline.knobs import Knobs, Name
from pipeline.seeding import seed_of
from pipeline.store import ProposalStore, scan_table, write_json, write_table


def _ranked(expr: pl.Expr) -> pl.Expr:
    """Best score first; the slot only makes the order of ties total, they are dropped."""
    return expr.sort_by("score", "proposal", descending=[True, False])


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

    def candidates(self, rows: pl.LazyFrame, seed: int) -> pl.LazyFrame:
        ranks = pl.min_horizontal(pl.lit(self.max_pairs_per_case, pl.UInt32), pl.len() // 2)
        tied = pl.col("score").is_duplicated()
        return _explode(
            rows.group_by("case").agg(
                *(_ranked(pl.col(c)).head(ranks).alias(f"chosen_{c}") for c in _ROW),
                *(_ranked(pl.col(c)).tail(ranks).reverse().alias(f"rejected_{c}") for c in _ROW),
                (_ranked(tied).head(ranks) | _ranked(tied).tail(ranks).reverse()).alias("tie"),
            )
        )


class TopBase(_Mining):
    """The judge's best proposals over the base prediction, where it scores them above it: all of D is active."""

    kind: Literal["top_base"]

    def candidates(self, rows: pl.LazyFrame, seed: int) -> pl.LazyFrame:
        base = rows.filter(pl.col("proposal") == 0).select("case", *(pl.col(c).alias(f"rejected_{c}") for c in _ROW))
        ranked = (
            rows.filter(pl.col("proposal") != 0)
            .group_by("case")
            .agg(
                *(_ranked(pl.col(c)).head(self.max_pairs_per_case).alias(f"chosen_{c}") for c in _ROW),
                _ranked(pl.col("score").is_duplicated()).head(self.max_pairs_per_case).alias("tie"),
            )
        )
        return _explode(ranked).join(base, on="case")


class TopRandom(_Mining):
    """The judge's best proposal over others drawn at random."""

    kind: Literal["top_random"]

    def candidates(self, rows: pl.LazyFrame, seed: int) -> pl.LazyFrame:
        # A key per proposal from its own hash: no order of rows, no library version and no worker changes the draw.
        eager = rows.collect()
        keys = [
            seed_of(seed, "top_random", case_id, proposal)
            for case_id, proposal in eager.select("case_id", "proposal").iter_rows()
        ]
        drawn = eager.with_columns(pl.Series("key", keys, pl.Int64)).lazy()
        top = drawn.group_by("case").agg(
            *(_ranked(pl.col(c)).first().alias(f"chosen_{c}") for c in _ROW),
            _ranked(pl.col("score").is_duplicated()).first().alias("tie"),
        )
        others = (
            drawn.join(top.select("case", "chosen_proposal"), on="case")
            .filter(pl.col("proposal") != pl.col("chosen_proposal"))
            .group_by("case")
            .agg(pl.col(c).sort_by("key").head(self.max_pairs_per_case).alias(f"rejected_{c}") for c in _ROW)
        )
        return _explode(others).join(top, on="case")


class NoPairs(Knobs):
    """An empty pair set, for students that need no pairs."""

    kind: Literal["none"]


Strategy = Annotated[TopBottom | TopBase | TopRandom | NoPairs, Field(discriminator="kind")]

_ROW = ("case_id", "proposal", "score", "sampler")


def _explode(grouped: pl.LazyFrame) -> pl.LazyFrame:
    lists = [name for name in grouped.collect_schema().names() if name != "case"]
    return grouped.explode(lists)


class PairSet(Knobs):
    """Preferences of one judge, mined by one strategy."""

    judge: Name
    """Name of a judge, of a score table, or `none`."""
    strategy: Strategy


def mine(
    panel: pl.LazyFrame, proposals: ProposalStore, pairs: PairSet, split: str, seed: int
) -> tuple[pl.DataFrame, dict[str, object]]:
    """Pairs of a split (schema `PAIRS`) and a counted reason for every case without a pair.

    Duplicates and proposals without a score are left out before ranking. Reasons are those of a case's
    candidate with the largest margin: `fewer_than_two_scored`, `tie`, `base_is_top`, `margin`, `disagreement`.
    """
    if isinstance(pairs.strategy, NoPairs):
        return pl.DataFrame(schema=schema.PAIRS.columns), {"cases": 0, "cases_with_pairs": 0, "pairs": 0, "dropped": {}}
    score = f"score_{pairs.judge}"
    if score not in panel.collect_schema():
        raise BadInput(f"pairs: judge '{pairs.judge}' is not in the panel; name an entry of judges or tables")
    here = panel.filter(pl.col("split") == split)
    rows = here.filter(pl.col("duplicate_of").is_null() & pl.col(score).is_not_null()).select(
        "case", "case_id", "proposal", "sampler", pl.col(score).alias("score")
    )
    strategy = pairs.strategy
    found = (
        strategy.candidates(rows, seed)
        .filter(pl.col("chosen_proposal") != pl.col("rejected_proposal"))
        .with_columns((pl.col("chosen_score") - pl.col("rejected_score")).alias("margin"))
        .collect(engine="streaming")
        .sort("case", "chosen_proposal", "rejected_proposal")
    )
    size = proposals.disagreement_of(*(found[c].to_numpy() for c in ("case", "chosen_proposal", "rejected_proposal")))
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
    found = found.with_columns(pl.Series("disagreement", size)).with_columns(reason.alias("reason"))
    kept = found.filter(pl.col("reason").is_null())
    table = kept.select(
        pl.col("chosen_case_id").alias("case_id"),
        "case",
        pl.col("chosen_proposal").alias("chosen"),
        pl.col("rejected_proposal").alias("rejected"),
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
    n_cases = here.select(pl.col("case").n_unique()).collect().item()
    without = (
        found.filter(~pl.col("case").is_in(kept["case"].unique().implode()))
        .sort("margin", descending=True, maintain_order=True)
        .unique("case", keep="first", maintain_order=True)
    )
    dropped = dict(without["reason"].value_counts(sort=True).sort("reason").iter_rows())
    if silent := n_cases - found["case"].n_unique():
        dropped["fewer_than_two_scored"] = silent
    return table, {
        "cases": n_cases,
        "cases_with_pairs": kept["case"].n_unique(),
        "pairs": len(kept),
        "dropped": dropped,
    }


def mine_to(
    panel_file: Path, judges: list[str], proposals: ProposalStore, pairs: PairSet, seed: int, out: Path
) -> None:
    """Mine the pool and write `NAME.parquet` and, beside it, `NAME.drops.json`."""
    panel = scan_table(panel_file, schema.panel(judges)).drop("true_dice")
    table, drops = mine(panel, proposals, pairs, "pool", seed)
    write_table(table, schema.PAIRS, out, pairs)
    write_json(out.with_suffix(".drops.json"), drops)


def regions(masks: np.ndarray, chosen: int, rejected: int) -> np.ndarray:
    """bool `[*space]`: the disagreement region of two slots of `masks`."""
    one, two = masks[chosen], masks[rejected]
    return (one != two) & (one != schema.UNKNOWN) & (two != schema.UNKNOWN)

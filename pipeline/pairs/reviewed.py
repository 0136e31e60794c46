"""Pairs of reviewers: the pairs that strategy `reviewed` makes of their answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from pipeline.pairs.calibration import Curve, curve_of
from pipeline.pairs.mine import PairSet, mine
from pipeline.pairs.strategies.reviewed import Reviewed
from pipeline.store import schema
from pipeline.store.manifest import write_json
from pipeline.store.proposals import Data, ProposalStore
from pipeline.store.tables import read_table, scan_table, write_table
from pipeline.store.verdicts import read_verdicts

MOST = 20
"""Margin from which `p_correct` of a pair of reviewers is level."""


_PLACE = ["case_id", "slot_a", "slot_b"]


class Curves(NamedTuple):
    """Curves from the margin of a pair to P(the order is right). A curve is None if it is unknown."""

    reviewers: Curve | None = None
    judge: Curve | None = None


def judged(pairs: PairSet) -> PairSet | None:
    """The part of a pair set that a judge orders: all, the strategy `otherwise` of `reviewed`, or nothing."""
    if not isinstance(pairs.strategy, Reviewed):
        return None if pairs.judge == "none" else pairs
    otherwise = pairs.strategy.otherwise
    return None if otherwise is None else pairs.model_copy(update={"strategy": otherwise})


def reviewer_curve(error: float | None) -> Curve | None:
    """P(the order is right) by margin, from the probability e that an answer is wrong; None if e is unknown.

    With m more answers for chosen than for rejected, P = (1 - e)^m / ((1 - e)^m + e^m): all answers err independently,
    and either mask is as likely the better one. The curve is exact at whole margins.
    """
    if error is None:
        return None
    margin = np.arange(MOST + 1, dtype=np.float64)
    right, wrong = (1 - error) ** margin, error**margin
    return Curve(margin, right / (right + wrong))


def read_answers(data: Data) -> pl.DataFrame:
    """Answers of `read_verdicts`, with the mask of the lower slot as mask `a`.

    Slots may have changed places since the review. Raises `BadInput` as `read_verdicts` does.
    """
    found = read_verdicts(data.verdicts, data.cases, data.proposals)
    turned = pl.col("slot_a") > pl.col("slot_b")
    other = pl.col("answer").cast(pl.String).replace({"a": "b", "b": "a"}).cast(found.schema["answer"])
    return found.with_columns(
        pl.when(turned).then(other).otherwise("answer").alias("answer"),
        pl.min_horizontal("slot_a", "slot_b").alias("slot_a"),
        pl.max_horizontal("slot_a", "slot_b").alias("slot_b"),
        *(
            pl.when(turned).then(f"mask_{second}").otherwise(f"mask_{first}").alias(f"mask_{first}")
            for first, second in ("ab", "ba")
        ),
    )


def preferences(answers: pl.DataFrame) -> pl.DataFrame:
    """Pairs of masks with the number of answers for each mask, from `read_answers`.

    Columns `case_id`, `chosen`, `rejected`, `chosen_score`, `rejected_score` (numbers of answers, f64). Equal
    numbers are a tie, and `chosen` is then the lower slot.
    """
    decided = answers.filter(pl.col("answer").is_in(["a", "b"]))
    counted = decided.group_by("case_id", "slot_a", "slot_b").agg(
        (pl.col("answer") == "a").sum().cast(pl.Float64).alias("a"),
        (pl.col("answer") == "b").sum().cast(pl.Float64).alias("b"),
    )
    first = pl.col("a") >= pl.col("b")
    return counted.select(
        "case_id",
        chosen=pl.when(first).then("slot_a").otherwise("slot_b"),
        rejected=pl.when(first).then("slot_b").otherwise("slot_a"),
        chosen_score=pl.max_horizontal("a", "b"),
        rejected_score=pl.min_horizontal("a", "b"),
    ).sort("case_id", "chosen", "rejected")


def mine_reviewed(
    panel: pl.LazyFrame,
    proposals: ProposalStore,
    pairs: PairSet,
    split: str,
    seed: int,
    answers: pl.DataFrame,
    curves: Curves,
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Pairs of a split (schema `PAIRS`) and counts, as `mine` gives them, for strategy `reviewed`.

    Further reasons of cases without a pair: `not_reviewed` (no answer), `undecided` (no answer prefers a mask). `tie`:
    as many answers for the one mask as for the other. With `otherwise`, the cases without a pair of reviewers are
    those of the judge, with the reasons of the judge. A pair of the judge on which reviewers preferred no mask is left
    out.
    """
    strategy = pairs.strategy
    assert isinstance(strategy, Reviewed)
    rows = panel.filter(pl.col("split") == split).select("case_id", "case", "proposal", "sampler").collect()
    here = rows.select("case_id", "case").unique()
    seen = answers.filter(pl.col("case_id").is_in(here["case_id"].implode()))
    counted = preferences(seen).join(here, on="case_id", how="left", maintain_order="left")
    found = counted.with_columns(
        margin=pl.col("chosen_score") - pl.col("rejected_score"),
        disagreement=proposals.disagreement_of(*(counted[name].to_numpy() for name in ("case", "chosen", "rejected"))),
        judge=pl.lit("none"),
        strategy=pl.lit(strategy.kind),
    )
    curve = curves.reviewers
    p = None if curve is None else curve(found["margin"].to_numpy())
    found = found.with_columns(p_correct=pl.lit(p, pl.Float64) if p is None else pl.Series(p, dtype=pl.Float64))
    for side in ("chosen", "rejected"):
        of_side = rows.select("case_id", "proposal", pl.col("sampler").alias(f"{side}_sampler"))
        found = found.join(of_side, left_on=["case_id", side], right_on=["case_id", "proposal"], how="left")
    kept = found.filter(pl.col("margin") > 0, pl.col("disagreement") >= strategy.min_disagreement)
    table = kept.select(pl.col(name).cast(dtype) for name, dtype in schema.PAIRS.columns.items())
    with_pair = set(table["case_id"])
    rest = judged(pairs)
    reasons: dict[str, int] = {}
    if rest is None:
        tied = set(found.filter(pl.col("margin") == 0)["case_id"]) - with_pair
        small = set(found.filter(pl.col("margin") > 0)["case_id"]) - with_pair - tied
        answered = set(seen["case_id"])
        reasons = {
            "not_reviewed": len(here) - len(answered),
            "undecided": len(answered - with_pair - tied - small),
            "tie": len(tied),
            "disagreement": len(small),
        }
    else:
        other = panel.filter(~pl.col("case_id").is_in(list(with_pair)))
        by_judge, drops = mine(other, proposals, rest, split, seed, curves.judge)
        # On these pairs reviewers preferred no mask, so a judge is not asked either.
        undecided = seen.select("case_id", "slot_a", "slot_b").unique()
        kept_of_judge = _slots_of(by_judge).join(undecided, on=_PLACE, how="anti").select(by_judge.columns)
        lost = by_judge["case_id"].n_unique() - kept_of_judge["case_id"].n_unique()
        table = pl.concat([table, kept_of_judge])
        reasons = dict(drops["dropped"]) | {"undecided": lost}  # type: ignore[call-overload]
    behind = seen.filter(pl.col("answer").is_in(["a", "b"])).join(_slots_of(kept), on=_PLACE, how="semi")
    return table.sort(schema.PAIRS.key), {
        "cases": len(here),
        "cases_with_pairs": table["case_id"].n_unique(),
        "pairs": len(table),
        "dropped": {name: count for name, count in reasons.items() if count},
        "reviewed": {"pairs": len(kept), "answers": len(behind), "reviewers": behind["reviewer"].n_unique()},
    }


def _slots_of(pairs: pl.DataFrame) -> pl.DataFrame:
    """Pairs with the columns `slot_a` and `slot_b`: the lower and the higher of the two slots."""
    two = ("chosen", "rejected")
    return pairs.with_columns(slot_a=pl.min_horizontal(two), slot_b=pl.max_horizontal(two))


def mine_reviewed_to(
    panel_file: Path, judges: list[str], data: Data, pairs: PairSet, seed: int, out: Path, curves: Curves
) -> None:
    """Write the pairs to `out`, and the counts of `mine_reviewed` to `NAME.drops.json` beside `out`."""
    panel = scan_table(panel_file, schema.panel(judges)).drop("true_dice")
    answers = read_answers(data)
    table, drops = mine_reviewed(panel, data.proposals, pairs, pairs.split, seed, answers, curves)
    write_table(table, schema.PAIRS, out, pairs)
    write_json(out.with_suffix(".drops.json"), drops)


def curves_of(audit: Path, name: str) -> Curves:
    """Curves of a pair set of strategy `reviewed` in the folder of the audit."""
    table = read_table(audit / "calibration.parquet", schema.CALIBRATION)
    return Curves(curve_of(table, name, reviewed=True), curve_of(table, name))

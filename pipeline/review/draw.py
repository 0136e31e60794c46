"""Which pair a reviewer sees next: pairs at random for an audit, pairs on which judges disagree, and repeated pairs.

Every function is pure: a draw follows from tables, from what was shown before, and from a seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import polars as pl

from pipeline.errors import BadInput
from pipeline.pairs.calibration import Curve
from pipeline.pairs.mine import PairSet, mine
from pipeline.review.journal import Draw, History, Shown, Side
from pipeline.seeding import numpy_generator
from pipeline.store.proposals import ProposalStore

REPEAT_AFTER = 5
"""Least number of pairs between a pair and its repetition."""
DOUBTS_PER_CASE = 20
"""Pairs of a case that can be drawn because judges disagree: those that are worth most."""
JUDGES_OF_DOUBT = "panel"
"""Target of draw `doubt`, whose pairs are those of no single judge."""

Pair = tuple[str, int, int]
"""Case and slots, the lower slot first."""


class Drawn(NamedTuple):
    """A pair that was drawn."""

    case_id: str
    slot_a: int
    slot_b: int
    disagreement: int
    stratum: str
    population: int | None

    @property
    def pair(self) -> Pair:
        return self.case_id, self.slot_a, self.slot_b


# ---- the pairs of a target ---------------------------------------------------------------------------------------


def pairs_of_set(
    panel: pl.LazyFrame, proposals: ProposalStore, pairs: PairSet, split: str, seed: int, calibration: Curve | None
) -> pl.DataFrame:
    """Pairs that a pair set has in a split: `case_id`, `slot_a`, `slot_b`, `better`, `margin`, `disagreement`.

    `slot_a` is the lower slot, and `better` is the chosen one. A pair set of the pool has in validation the pairs that
    its strategy mines there.
    """
    mined, _ = mine(panel, proposals, pairs, split, seed, calibration)
    return mined.select(
        "case_id",
        pl.min_horizontal("chosen", "rejected").alias("slot_a"),
        pl.max_horizontal("chosen", "rejected").alias("slot_b"),
        pl.col("chosen").alias("better"),
        "margin",
        "disagreement",
    )


def pairs_of_judge(panel: pl.LazyFrame, proposals: ProposalStore, judge: str, split: str) -> pl.DataFrame:
    """All pairs of two distinct proposals that a judge orders: columns as of `pairs_of_set`.

    Proposals without a score, pairs of equal scores, and pairs that differ only on unknown voxels are left out.
    """
    pairs = _all_pairs(panel, proposals, [judge], split).drop_nulls()
    difference = pl.col(f"{judge}_a") - pl.col(f"{judge}_b")
    return pairs.filter(difference != 0).select(
        "case_id",
        "slot_a",
        "slot_b",
        pl.when(difference > 0).then("slot_a").otherwise("slot_b").alias("better"),
        difference.abs().alias("margin"),
        "disagreement",
    )


def _all_pairs(panel: pl.LazyFrame, proposals: ProposalStore, judges: Sequence[str], split: str) -> pl.DataFrame:
    """Pairs of distinct proposals of each case, with the scores `JUDGE_a` and `JUDGE_b` and |D|, which is not 0."""
    rows = (
        panel.filter((pl.col("split") == split) & pl.col("duplicate_of").is_null())
        .select("case_id", "case", "proposal", *(pl.col(f"score_{name}").alias(name) for name in judges))
        .collect()
    )
    named = [rows.rename({"proposal": f"slot_{side}", **{name: f"{name}_{side}" for name in judges}}) for side in "ab"]
    pairs = named[0].join(named[1].drop("case"), on="case_id").filter(pl.col("slot_a") < pl.col("slot_b"))
    pairs = pairs.sort("case", "slot_a", "slot_b")
    differ = proposals.disagreement_of(*(pairs[name].to_numpy() for name in ("case", "slot_a", "slot_b")))
    return pairs.with_columns(pl.Series("disagreement", differ, pl.Int64)).filter(pl.col("disagreement") > 0)


# ---- audit: at random within strata ------------------------------------------------------------------------------


def stratified(pairs: pl.DataFrame, *seed: object) -> pl.DataFrame:
    """Pairs with `stratum` and `population` (pairs of the stratum), in the order in which a stratum is drawn.

    Strata are thirds of the margin and halves of |D|. Ties at a cut go to the lower part, so strata can differ in size.
    """
    if not len(pairs):
        return pairs.with_columns(pl.lit("").alias("stratum"), pl.lit(0).alias("population"))
    margin, size = pl.col("margin"), pl.col("disagreement")
    third = 1 + sum((margin > margin.quantile(cut, "lower")).cast(pl.Int8) for cut in (1 / 3, 2 / 3))
    half = 1 + (size > size.median()).cast(pl.Int8)
    named = pairs.with_columns(pl.format("margin {}/3, |D| {}/2", third, half).alias("stratum"))
    order = numpy_generator(*seed, "review").permutation(len(pairs))
    return named.with_columns(pl.len().over("stratum").alias("population"))[order]


def next_of_strata(frame: pl.DataFrame, drawn: Collection[Pair]) -> Drawn | None:
    """The next pair of `stratified`, without replacement; None if all pairs were drawn.

    `drawn` has the pairs that were drawn for the same target, also those of another split, which count for nothing. A
    stratum without any comes first. Then comes the stratum whose share of the draws is furthest below its share of the
    pairs. A pair that was answered for another reason keeps its place: without such pairs, the draw would not be a
    random draw from the stratum.
    """
    keys = {name: frame.schema[name] for name in ("case_id", "slot_a", "slot_b")}
    known = frame.join(pl.DataFrame(list(drawn), keys, orient="row"), on=list(keys), how="semi")
    shown = Counter(known["stratum"].to_list())
    sizes = frame.group_by("stratum").agg(pl.col("population").first()).sort("stratum").rows()
    total, draws = len(frame), sum(shown[name] for name, _ in sizes)

    def due(size: tuple[str, int]) -> tuple[bool, float]:
        have = shown[size[0]]
        return have == 0, size[1] / total * (draws + 1) - have

    for name, _ in sorted(sizes, key=due, reverse=True):
        for row in frame.filter(pl.col("stratum") == name).select(Drawn._fields).iter_rows():
            if (found := Drawn(*row)).pair not in drawn:
                return found
    return None


# ---- doubt: where judges disagree ----------------------------------------------------------------------------------


def doubtful(panel: pl.LazyFrame, proposals: ProposalStore, judges: Sequence[str], split: str) -> pl.DataFrame:
    """Pairs on which judges disagree, worth most first: `case_id`, `slot_a`, `slot_b`, `disagreement`, `stratum`.

    A pair is worth 4 p (1 - p) |D|, where p is the share of the judges with an opinion that prefer the first mask. A
    judge has no opinion if it abstained or gave equal scores. `stratum` counts the votes of the majority and of the
    minority. Raises `BadInput` for fewer than two judges.
    """
    if len(judges) < 2:
        raise BadInput(
            f"review: draw 'doubt' needs two judges or tables that do not read the truth, found {list(judges)}; add "
            "a judge to params.yaml, or draw 'audit'"
        )
    pairs = _all_pairs(panel, proposals, judges, split)
    for_a, for_b = (
        pl.sum_horizontal((pl.col(f"{name}_{one}") > pl.col(f"{name}_{other}")).fill_null(False) for name in judges)
        for one, other in ("ab", "ba")
    )
    votes = pairs.select(
        "case_id", "slot_a", "slot_b", "disagreement", for_a.cast(pl.Int64).alias("x"), for_b.cast(pl.Int64).alias("y")
    ).filter((pl.col("x") > 0) & (pl.col("y") > 0))
    x, y = pl.col("x"), pl.col("y")
    worth = 4 * x * y / (x + y) ** 2 * pl.col("disagreement")
    most, least = pl.max_horizontal("x", "y"), pl.min_horizontal("x", "y")
    ranked = votes.with_columns(worth.alias("worth"), pl.format("votes {}:{}", most, least).alias("stratum"))
    ranked = ranked.sort("worth", "case_id", "slot_a", "slot_b", descending=[True, False, False, False])
    ranked = ranked.group_by("case_id", maintain_order=True).head(DOUBTS_PER_CASE)
    ranked = ranked.sort("worth", "case_id", "slot_a", "slot_b", descending=[True, False, False, False])
    return ranked.select("case_id", "slot_a", "slot_b", "disagreement", "stratum").with_columns(
        pl.lit(None, pl.Int64).alias("population")
    )


def next_doubt(frame: pl.DataFrame, seen: Collection[Pair]) -> Drawn | None:
    """The pair of `doubtful` that is worth most among those of the cases with the fewest pairs in `seen`."""
    of_case = Counter(case for case, _, _ in seen)
    best: Drawn | None = None
    for row in frame.select(Drawn._fields).iter_rows():
        if (found := Drawn(*row)).pair in seen:
            continue
        if not of_case[found.case_id]:
            return found
        if best is None or of_case[found.case_id] < of_case[best.case_id]:
            best = found
    return best


# ---- the next pair of a reviewer -----------------------------------------------------------------------------------


def next_repeat(history: History, share: float, *seed: object) -> Shown | None:
    """An earlier pair to show again, or None: about a share of the pairs, each once, and none of the last five.

    Skipped pairs are not repeated.
    """
    rng = numpy_generator(*seed, "repeat", len(history.shown))
    if rng.random() >= share:
        return None
    again = {one.pair for one in history.shown.values() if one.draw == "repeat"}
    recent = {one.pair for one in list(history.shown.values())[-REPEAT_AFTER:]}
    open_to = [one for one, _ in history.counted if one.pair not in again and one.pair not in recent]
    return open_to[int(rng.integers(len(open_to)))] if open_to else None


def side_of(*seed: object) -> Side:
    """Side on which mask `a` is shown."""
    return "left" if numpy_generator(*seed, "side").integers(2) else "right"


@dataclass(frozen=True)
class Draws:
    """The pairs that can be drawn, and how often each draw is made."""

    target: str
    """Pair set or judge whose pairs are drawn."""
    audit: pl.DataFrame | None
    """Pairs of the target as of `stratified`. None: no draw `audit`."""
    doubt: pl.DataFrame | None
    """Pairs as of `doubtful`. None: no draw `doubt`."""
    repeats: float
    """Share of the pairs that are shown again."""
    seed: int
    split: str
    """Split whose cases are shown."""
    least: int
    """Answers below which the audit makes no estimate."""

    @property
    def targets(self) -> set[tuple[str, str]]:
        """Draw and target of pairs that this review shows."""
        audit = set() if self.audit is None else {("audit", self.target)}
        return audit if self.doubt is None else {*audit, ("doubt", JUDGES_OF_DOUBT)}

    def next(self, counts: Counts) -> tuple[Draw, str, Drawn] | None:
        """Draw, target and pair. Draws alternate where both are made; where one has no pair left, the other is made."""
        audit = self.audit is not None and next_of_strata(self.audit, counts.audited)
        if audit and (self.doubt is None or counts.drawn["audit"] <= counts.drawn["doubt"]):
            return "audit", self.target, audit
        if self.doubt is not None and (doubt := next_doubt(self.doubt, counts.seen)):
            return "doubt", JUDGES_OF_DOUBT, doubt
        return ("audit", self.target, audit) if audit else None


@dataclass(frozen=True)
class Counts:
    """What was drawn before."""

    seen: Collection[Pair]
    """Pairs of every draw and target, of all reviewers."""
    audited: Collection[Pair]
    """Pairs that were drawn for the audited target, of all reviewers."""
    drawn: Counter[str]
    """Number of pairs of this review and of this reviewer by draw."""

"""Noise of judges and pair sets by the answers of reviewers, which needs no label.

- Only pairs of the draw `audit` count: they were drawn at random within strata, so an answer stands for N_h / n_h pairs
  of its stratum. Pairs of the draw `doubt` were chosen because judges disagree on them.
- An answer counts for a judge if the judge scores both masks and prefers one, and for a pair set if the pair is one of
  the set. An answer against the preference is 1, an answer for the preference 0. The answer `equal` is one half, as two
  masks of equal true Dice are on labelled cases: either order would be a coin's. The answer `unusable` is left out,
  because nothing is said of the order. The number of both is in the table.
- A judge or pair set is measured on the pairs that were drawn for it. Without enough of these it is measured on the
  pairs that were drawn for another judge or pair set, which the column `drawn_for` names. The estimate is then about
  pairs that could be drawn there.
- The error rate of a reviewer comes from pairs of the draw `audit` that were shown twice. All reviewers have one rate,
  all pairs have one rate, and errors are independent of each other and of the errors of a judge. A reviewer who
  overlooks the same faults as a judge, twice, makes the judge look better than the judge is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from pipeline.audit.judges import named
from pipeline.audit.verdicts import AuditRow, percent_text
from pipeline.measures.intervals import Interval
from pipeline.measures.survey import Repeats, corrected_share, reviewer_error, sampled_share, share_ends
from pipeline.store import schema

_PLACE = ("case_id", "slot_a", "slot_b")


@dataclass(frozen=True)
class Answers:
    """Answers of reviewers, from `read_answers`."""

    table: pl.DataFrame

    @cached_property
    def drawn(self) -> pl.DataFrame:
        """Answers on pairs of the draw `audit`, with `weight`: pairs of the stratum per answer, N_h / n_h.

        The population of a stratum may have changed between two sessions. N_h is then the mean over the answers.
        """
        found = self.table.filter(pl.col("draw") == "audit")
        # The cases of another split are another population.
        found = found.with_columns(pl.format("{} {}", "split", "stratum").alias("stratum"))
        place = ("target", "stratum")
        return found.with_columns(weight=pl.col("population").mean().over(place) / pl.len().over(place))

    @cached_property
    def _twice(self) -> pl.DataFrame:
        """Repeats with the answer of the same reviewer that they repeat, and the draw of the first showing.

        A repeat has the target of the first showing. A pair that was drawn for two targets has two first showings.
        """
        place = ["reviewer", "target", *_PLACE]
        first = self.table.filter(pl.col("draw") != "repeat").sort("reviewer", "number")
        first = first.unique(place, keep="first", maintain_order=True)
        again = self.table.filter(pl.col("draw") == "repeat")
        return again.join(first.select(*place, before="answer", drawn="draw"), on=place, how="inner")

    @cached_property
    def repeats(self) -> Repeats:
        """Pairs of the draw `audit` that were shown twice and on which at least one of two answers prefers a mask."""
        both = self._twice.filter(pl.col("drawn") == "audit").select("before", "answer")
        shown, differ = 0, 0.0
        for before, after in both.iter_rows():
            if "unusable" in (before, after) or before == after == "equal":
                continue
            shown += 1
            differ += 0.0 if before == after else 0.5 if "equal" in (before, after) else 1.0
        return Repeats(shown, differ)

    def state(self) -> dict[str, Any]:
        """State of the review for `summary.json`: numbers of answers, and how often a reviewer repeats an answer."""
        same = self._twice.filter(pl.col("before") == pl.col("answer"))
        counts = {name: int((self.table["answer"] == name).sum()) for name in schema.ANSWERS}
        by_draw = {name: int((self.table["draw"] == name).sum()) for name in ("audit", "doubt", "repeat")}
        seconds = self.table["seconds"].median() if len(self.table) else None
        error = reviewer_error(self.repeats)
        reviewers = [
            {
                "answers": len(part),
                "repeats": int((self._twice["reviewer"] == name).sum()),
                "same": int((same["reviewer"] == name).sum()),
                "median_seconds": part["seconds"].median(),
            }
            for (name,), part in self.table.group_by("reviewer", maintain_order=True)
        ]
        return {
            "answers": len(self.table),
            "cases": self.table["case_id"].n_unique(),
            "groups": self.table["group"].n_unique(),
            "by_answer": counts,
            "by_draw": by_draw,
            "repeats": len(self._twice),
            "same": len(same),
            "reviewer_error": dict(zip(("mean", "low", "high"), error, strict=True)),
            "median_seconds": seconds,
            # Without names: the report and the cards may be shared.
            "reviewers": reviewers,
        }


def by_judge(answers: pl.DataFrame, scores: pl.DataFrame) -> np.ndarray:
    """What each answer says of a judge, f64 `[answer]`: 1 against, 0 for the judge; NaN if the answer does not count.

    `scores`: columns `case_id`, `proposal` and `score` of the judge.
    """
    found = answers.select(*_PLACE, "answer")
    for side in ("a", "b"):
        of_side = scores.select("case_id", pl.col("proposal").alias(f"slot_{side}"), pl.col("score").alias(side))
        found = found.join(of_side, on=["case_id", f"slot_{side}"], how="left", maintain_order="left")
    return _against(found["answer"], (found["a"] - found["b"]).sign())


def by_pairs(answers: pl.DataFrame, pairs: pl.DataFrame) -> np.ndarray:
    """What each answer says of a pair set, as `by_judge`. `pairs`: columns `case_id`, `chosen` and `rejected`."""
    chosen, rejected = pl.col("chosen"), pl.col("rejected")
    prefers = pairs.select(
        "case_id",
        slot_a=pl.min_horizontal(chosen, rejected),
        slot_b=pl.max_horizontal(chosen, rejected),
        prefers=pl.when(chosen < rejected).then(1.0).otherwise(-1.0),
    )
    found = answers.select(*_PLACE, "answer").join(prefers, on=_PLACE, how="left", maintain_order="left")
    return _against(found["answer"], found["prefers"])


def _against(answer: pl.Series, prefers: pl.Series) -> np.ndarray:
    """`prefers`: 1 if mask `a` is preferred, -1 if mask `b` is, 0 or null for no preference."""
    said = answer.cast(pl.String).replace_strict({"a": 1.0, "b": -1.0, "equal": 0.0, "unusable": None}).to_numpy()
    sign = prefers.cast(pl.Float64).fill_null(0.0).to_numpy()
    return np.where((sign == 0) | np.isnan(said.astype(np.float64)), np.nan, (1 - sign * said) / 2)


@dataclass(frozen=True)
class Measured:
    """A judge or a pair set that answers are held against."""

    kind: str
    """`judge` or `pairs`."""
    name: str
    against: np.ndarray
    """What each answer of `Answers.drawn` says, f64 `[answer]`, from `by_judge` or `by_pairs`."""
    on_labels: Interval
    """Noise on labelled validation cases; None without such cases."""
    own: str | None = None
    """Target of the draw that was made for the judge or pair set. None for a judge that has the name of a pair set,
    because a review of that name draws pairs of the set."""
    pairs: int | None = None
    """Number of pairs of a pair set today."""
    measures: str = "its pairs"
    """Pairs that the noise is of, for the verdict."""


def answers_row(one: Measured, answers: Answers, least: int) -> dict[str, Any]:
    """One row of `AUDIT_ANSWERS`. With fewer than `least` answers there is no estimate, and `verdict` says so."""
    drawn = answers.drawn
    counted = drawn.with_columns(against=one.against)
    known = counted.filter(pl.col("against").is_not_nan())
    target = _target(known, one.own, least)
    mine = counted.filter(pl.col("target").is_in([] if target is None else [target]))
    used = mine.filter(pl.col("against").is_not_nan())
    share = sampled_share(*(mine[name].to_numpy() for name in ("against", "weight", "stratum", "group")))
    enough = share is not None and len(used) >= least
    nothing = Interval(None, None, None)
    row: dict[str, Any] = {
        "kind": one.kind,
        "name": one.name,
        "drawn_for": target,
        "answers": len(used),
        "groups": used["group"].n_unique(),
        "equal": int((used["answer"] == "equal").sum()),
        "unusable": int((mine["answer"] == "unusable").sum()),
        "repeats": answers.repeats.shown,
        **named("noise", corrected_share(share, answers.repeats) if enough and share else nothing),
        **named("observed", share_ends(share) if enough and share else nothing),
        **named("reviewer_error", reviewer_error(answers.repeats)),
        # Labels measure the pairs of `own`. Beside the noise of other pairs they would be read as the same share.
        **named("on_labels", one.on_labels if target in (None, one.own) else nothing),
    }
    row["verdict"] = _verdict(row, one, mine, least)
    return row


def _target(known: pl.DataFrame, own: str | None, least: int) -> str | None:
    """Judge or pair set whose draw is used: the own draw if it has enough answers, else the draw with most answers."""
    counts = dict(known.group_by("target").len().sort("target").iter_rows())
    if not counts:
        return None
    if own is not None and counts.get(own, 0) >= least:
        return own
    return max(counts, key=lambda target: (counts[target], target == own))


def _verdict(row: AuditRow, one: Measured, drawn: pl.DataFrame, least: int) -> str:
    many = f"{row['answers']} answer{'' if row['answers'] == 1 else 's'}"
    if row["answers"] < least:
        return f"no estimate: {many} where {least} are asked for (audit.least_answers)"
    said = f"after {many}: {percent_text(row, 'noise')} of {one.measures} are wrong"
    if row["drawn_for"] != one.own:
        said += f", among the pairs that were drawn for '{row['drawn_for']}'"
    if not row["repeats"]:
        said += ", errors of the reviewer included, because no pair was shown twice"
    elif row["reviewer_error"] is None:
        said += ", from a reviewer whose second answers are so far no better than a coin's: show more pairs again"
        said += " (segpref review --repeats)"
    if row["noise_low"] is None:
        said += ", without an interval, because few patients were seen"
    strata = drawn.group_by("stratum").agg(pl.col("population").mean())
    population = round(float(strata["population"].sum()))
    if one.pairs is not None and row["drawn_for"] == one.own and population != one.pairs:
        said += f"; drawn from {population} pairs, of which there are {one.pairs} now"
    return said


def reviewed_row(name: str, answers: Answers, on_labels: Interval) -> dict[str, Any]:
    """Row of `AUDIT_ANSWERS` for a pair set whose pairs are answers: strategy `reviewed` without `otherwise`."""
    state = answers.state()
    nothing = Interval(None, None, None)
    return {
        "kind": "pairs",
        "name": name,
        "drawn_for": None,
        "answers": 0,
        "groups": 0,
        "equal": 0,
        "unusable": 0,
        "repeats": answers.repeats.shown,
        **named("noise", nothing),
        **named("observed", nothing),
        **named("reviewer_error", reviewer_error(answers.repeats)),
        **named("on_labels", on_labels),
        "verdict": f"its pairs are answers of reviewers, who gave the same answer to {state['same']} of "
        f"{state['repeats']} pairs that were shown twice",
    }


def on_labels(rows: Mapping[str, AuditRow], name: str, measure: str) -> Interval:
    """A measure of the audit on labelled validation cases, by the name of the judge or pair set."""
    row = rows.get(name)
    return (
        Interval(None, None, None)
        if row is None
        else Interval(*(row[f"{measure}{end}"] for end in ("", "_low", "_high")))
    )

"""How far judges and pair sets can be believed, from the audit on validation cases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from pipeline import schema
from pipeline.report.blocks import Block, Cell, Note, Section, Table
from pipeline.report.figures import scatters
from pipeline.report.numbers import Estimate, case_means, cell, inline, interval, percent
from pipeline.report.run import Run, read_json
from pipeline.store import read_table

REASONS = {
    "fewer_than_two_scored": "fewer than two scored proposals",
    "tie": "tie of scores",
    "base_is_top": "base is the top pick",
    "margin": "margin too small",
    "p_correct": "order too likely wrong",
    "fraction": "not among the widest margins",
    "disagreement": "disagreement too small",
}


def judges(run: Run) -> Section:
    """Judges and pair sets against the truth of validation cases, and what was mined from the pool."""
    blocks: list[Block] = []
    audited = read_table(run.audit / "judges.parquet", schema.AUDIT_JUDGES)
    found = {row["judge"]: row for row in audited.iter_rows(named=True)}
    rows = [found[name] for name in run.params.judge_names if name in found]
    if rows:
        blocks += [_judges_table(run, rows), Note([judge_sentence(row) for row in rows])]
        clouds = {name: cloud for name in run.params.judge_names if len((cloud := _cloud(run, name))[0])}
        if clouds:
            caption = (
                "One point per validation proposal: score and true Dice, each minus the mean of its case. A judge that "
                "orders the proposals of a case rightly gives a cloud that rises to the right."
            )
            blocks.append(
                scatters(
                    clouds,
                    "score, centred",
                    "true Dice, points",
                    f"Scatter plots of score against true Dice for {', '.join(clouds)}. {caption}",
                    caption,
                )
            )
    else:
        blocks.append(Note(["params.yaml has no judges and no score tables."]))
    blocks += _pair_sets(run)
    how = (
        "Lift is what decides: the true Dice of a judge's top pick minus that of the base, in points. Rank correlation "
        "and errors can look good when one bad proposal is always ranked last. Brackets are 95 % intervals by patient."
    )
    return Section("judges", "Judges and pair sets", how, blocks)


def _judges_table(run: Run, rows: list[dict[str, Any]]) -> Table:
    columns = [
        *("judge", "kind", "cases", "lift", "lift over best fixed", "best fixed proposal", "headroom"),
        *("top beats base, %", "pair error, %", "Spearman", "abstained"),
    ]
    cells = [
        [
            Cell(row["judge"], tag="research only" if run.reads_truth(row["judge"]) else ""),
            run.kind_of(row["judge"]),
            str(row["cases"]),
            cell(Estimate.column(row, "lift"), signed=True),
            cell(Estimate.column(row, "lift_over_fixed"), signed=True),
            row["fixed_sampler"] or "",
            cell(Estimate.column(row, "headroom")),
            cell(Estimate.column(row, "top_beats_base"), digits=0),
            cell(Estimate.column(row, "pair_error"), digits=0),
            cell(Estimate.column(row, "spearman"), 1, 2),
            percent(row["abstained"]),
        ]
        for row in rows
    ]
    note = (
        "Best fixed: always taking the same sampler and setting, chosen on other validation cases; a judge that does "
        "not beat it is not needed. Headroom: best proposal minus base. Pair error: share of two proposals of a case "
        "that the score orders wrongly; a coin has 50 %."
    )
    return Table("Judges on validation cases", columns, cells, frozenset({1, 5}), note=note)


def judge_sentence(row: Mapping[str, Any]) -> str:
    """What a row of `AUDIT_JUDGES` says, in plain words."""
    name = row["judge"]
    lift, fixed, wrong = (Estimate.column(row, measure) for measure in ("lift", "lift_over_fixed", "pair_error"))
    if lift.mean is None:
        return f"{name}: no validation case has two distinct proposals that it scored, so nothing is known about it."
    verdict = {1: "is better than the base", -1: "is worse than the base", 0: "is not shown to differ from the base"}
    parts = [f"{name}: its top pick {verdict[lift.sign]} ({inline(lift, signed=True)} points)"]
    if row["headroom"]:
        parts.append(f"finds {percent(lift.mean / row['headroom'])} of the headroom")
    if fixed.mean is not None:
        against = {1: "beats", -1: "is worse than", 0: "is not shown to differ from"}
        parts.append(f"{against[fixed.sign]} always taking '{row['fixed_sampler']}'")
    if wrong.mean is not None:
        coin = Estimate(*(None if end is None else end - 0.5 for end in wrong)).sign
        than = {1: "worse than a coin", -1: "better than a coin", 0: "not shown to differ from a coin"}
        parts.append(
            f"orders {percent(wrong.mean)} {interval(wrong, digits=0)} of proposals wrongly against each other, "
            f"{than[coin]}"
        )
    return ", ".join(parts[:-1]) + f" and {parts[-1]}." if len(parts) > 1 else f"{parts[0]}."


def _cloud(run: Run, judge: str) -> tuple[np.ndarray, np.ndarray]:
    """Score and true Dice (points) of validation proposals, each minus its case mean; duplicates count once."""
    column = pl.col(f"score_{judge}")
    rows = run.panel.filter(
        (pl.col("split") == "validation") & pl.col("duplicate_of").is_null() & column.is_not_null()
    ).select("case", "proposal", column.alias("score"), pl.col("true_dice") * 100)
    found = rows.collect().sort("case", "proposal")
    score, dice = (_centred(found["case"].to_numpy(), found[name].to_numpy()) for name in ("score", "true_dice"))
    return score, dice


def _centred(cases: np.ndarray, values: np.ndarray) -> np.ndarray:
    means, member = case_means(cases, values)
    return values - means[member]


def _pair_sets(run: Run) -> list[Block]:
    if not run.mined:
        return [Note(["params.yaml has no pair sets."])]
    audited = read_table(run.audit / "pairs.parquet", schema.AUDIT_PAIRS)
    found = {row["pairs"]: row for row in audited.iter_rows(named=True)}
    noise = [
        [
            row["pairs"],
            row["judge"],
            row["strategy"],
            str(row["mined"]),
            *(
                cell(Estimate.column(row, measure), digits=0)
                for measure in ("noise_rate", "weighted_noise", "voxel_noise", "active_share")
            ),
            cell(Estimate.column(row, "lift"), signed=True),
        ]
        for row in (found[name] for name in run.mined if name in found)
    ]
    drops = {name: read_json(run.pairs / f"{name}.drops.json") for name in run.mined}
    mined = [
        [name, str(drop["pairs"]), f"{drop['cases_with_pairs']} of {drop['cases']}", _reasons(drop["dropped"])]
        for name, drop in drops.items()
    ]
    return [
        Table(
            "Pair sets, mined the same way on validation cases",
            [
                *("pair set", "judge", "strategy", "pairs", "noise rate, %", "noise weighted by |D|, %"),
                *("voxel noise, %", "active share, %", "lift of chosen"),
            ],
            noise,
            frozenset({1, 2}),
            note=(
                "Noise rate: pairs whose chosen mask is truly worse; RN-DPO feels it. Weighted by |D|: the same with "
                "large regions counting more; DPO feels it. Voxel noise: share of D on which chosen is not the truth. "
                "Active share: share of D on which the base differs from chosen, the only place to learn something."
            ),
        ),
        Table(
            "Pairs mined from the pool",
            ["pair set", "pairs", "cases with pairs", "why the other cases have none"],
            mined,
            frozenset({3}),
        ),
    ]


def _reasons(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{REASONS.get(reason, reason)}: {n}" for reason, n in dropped.items()) or "every case has pairs"

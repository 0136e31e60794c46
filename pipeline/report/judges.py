"""Section on the judges: verdicts, measures and charts from the audit on validation cases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from pipeline.measures.numbers import Estimate, percent, points
from pipeline.report.audit_figures import accuracies, lifts
from pipeline.report.audit_measures import LIFT, OF_ORDER, OF_TOP_PICK, OVER_FIXED, RESEARCH, SCORED, gaps, meanings
from pipeline.report.blocks import Block, Cell, Note, Section, Table
from pipeline.report.cells import case_means, inline
from pipeline.report.figures import scatters
from pipeline.report.run import Run
from pipeline.store import schema

BY = {
    "gap": ("gap in true Dice, points", "the gap in true Dice between the two masks, in points"),
    "disagreement": ("|D|, % of the case", "the size of the disagreement region |D|, in per cent of the case's voxels"),
}


def judges(run: Run) -> Section:
    """Verdict, lift and all measures of every judge, and its pair accuracy by gap in true Dice and by |D|."""
    found = {row["judge"]: row for row in run.audited("judges", schema.AUDIT_JUDGES).iter_rows(named=True)}
    rows = [found[name] for name in run.params.judge_names if name in found]
    rows.sort(key=lambda row: (run.reads_truth(row["judge"]), row["lift"] is None, -(row["lift"] or 0.0)))
    verdict = run.summary["headroom"]["verdict"]
    blocks: list[Block] = [Note([f"{verdict[:1].upper()}{verdict[1:]}."])]
    if rows:
        blocks += [_verdicts(run, rows), *_forest(run, rows), *_measures(run, rows), *_bins(run, rows)]
        blocks += _clouds(run, [row["judge"] for row in rows])
    elif run.params.judge_names:
        blocks.append(Note(["The audit measured no judge, because no labelled validation case has proposals."]))
    else:
        blocks.append(Note(["params.yaml has no judges and no score tables."]))
    how = (
        f"Judges are measured on {run.summary['validation_cases']} labelled validation cases, whose proposals are made "
        "exactly as for the pool. Lift decides: true Dice of a judge's top pick minus true Dice of the base, in "
        "points. Rank correlation and errors also look good if one bad proposal is always ranked last. Brackets hold "
        "95 % intervals by patient."
    )
    return Section("judges", "Reliability of the judges", how, blocks)


def fixed_lift(row: Mapping[str, Any]) -> float | None:
    """Lift of always taking the best fixed sampler, on the cases of this judge; None without a lift of the judge."""
    if row["lift"] is None or row["lift_over_fixed"] is None:
        return None
    return row["lift"] - row["lift_over_fixed"]


def _name(run: Run, judge: str) -> Cell:
    return Cell(judge, tag=RESEARCH if run.reads_truth(judge) else "")


def _verdicts(run: Run, rows: list[dict[str, Any]]) -> Table:
    cells: list[list[Cell | str]] = [
        [_name(run, row["judge"]), LIFT.cell(row), OVER_FIXED.cell(row), row["verdict"]] for row in rows
    ]
    columns = ["judge", LIFT.title, OVER_FIXED.title, "verdict"]
    shown = (LIFT, OVER_FIXED)
    note = " ".join(
        part
        for part in (
            "The judge with the largest lift comes first. Judges that read the truth come last, as ceilings.",
            gaps(shown, {row["judge"]: row for row in rows}),
        )
        if part
    )
    caption = "Verdict of the audit on each judge"
    return Table(caption, columns, cells, frozenset({3}), note=note, meanings=meanings(shown))


def _why_no_fixed(row: Mapping[str, Any]) -> str:
    return f"needs {SCORED}" if fixed_lift(row) is None else ""


def _forest(run: Run, rows: list[dict[str, Any]]) -> list[Block]:
    known = [row for row in rows if row["lift"] is not None]
    if not known:
        return []
    spoken = "; ".join(f"{row['judge']} {inline(Estimate.column(row, 'lift'), signed=True)}" for row in known)
    caption = (
        "Lift@1 with its 95 % interval. A point is filled and coloured if its interval excludes 0. Dashed line: lift "
        "of the best fixed sampler on the cases of that judge. Diamond: headroom, the lift of a perfect judge. Judges "
        "below the grey line read the truth."
    )
    return [lifts(known, [run.reads_truth(row["judge"]) for row in known], f"Forest plot: {spoken}.", caption)]


def _measures(run: Run, rows: list[dict[str, Any]]) -> list[Block]:
    """Tables of all measures: measures of the top pick, then measures of the order of proposals and cases."""
    named = {row["judge"]: row for row in rows}
    top: list[list[Cell | str]] = [
        [
            _name(run, row["judge"]),
            run.kind_of(row["judge"]),
            str(row["cases"]),
            percent(row["abstained"]),
            *(measure.cell(row) for measure in OF_TOP_PICK),
            Cell(points(fixed_lift(row), signed=True), row["fixed_sampler"] or "", why=_why_no_fixed(row)),
        ]
        for row in rows
    ]
    order: list[list[Cell | str]] = [
        [_name(run, row["judge"]), *(measure.cell(row) for measure in OF_ORDER)] for row in rows
    ]
    said = {
        "cases": "Validation cases with at least two distinct proposals that the judge scored.",
        "abstained": "Share of the proposals without a score.",
        **meanings(OF_TOP_PICK),
        "best fixed sampler": "Lift of always taking one sampler and setting without a judge, chosen on other "
        "validation cases. The name is the choice on all validation cases.",
    }
    titles = [measure.title for measure in OF_TOP_PICK]
    return [
        Table(
            "Top pick of each judge",
            ["judge", "kind", "cases", "abstained", *titles, "best fixed sampler"],
            top,
            frozenset({1}),
            note=gaps(OF_TOP_PICK, named),
            meanings=said,
        ),
        Table(
            "Order of proposals and cases",
            ["judge", *(measure.title for measure in OF_ORDER)],
            order,
            folded=True,
            note=gaps(OF_ORDER, named),
            meanings=meanings(OF_ORDER),
        ),
    ]


def _bins(run: Run, rows: list[dict[str, Any]]) -> list[Block]:
    """Charts of the pair accuracy of every judge by gap in true Dice, and by |D|."""
    bins = run.audited("bins", schema.AUDIT_BINS)
    found: list[Block] = []
    for by, (label, words) in BY.items():
        panels = {
            row["judge"]: of_judge.sort("bin").to_dicts()
            for row in rows
            if len(of_judge := bins.filter((pl.col("judge") == row["judge"]) & (pl.col("by") == by)))
        }
        if not panels:
            found.append(Note([f"The audit has no pairs of proposals to sort by {words}."]))
            continue
        caption = (
            f"Pair accuracy by {words}. Pair accuracy is the share of pairs of proposals of a case in which the judge "
            "puts the truly better proposal first, with its 95 % interval. The dotted line is a coin. Pale lines are "
            "the other judges. Grey numbers count pairs."
        )
        found.append(accuracies(panels, label, f"Charts for {', '.join(panels)}. {caption}", caption))
    return found


def _clouds(run: Run, names: list[str]) -> list[Block]:
    clouds = {name: cloud for name in names if len((cloud := _cloud(run, name))[0])}
    if not clouds:
        return []
    caption = (
        "One point per validation proposal: score and true Dice, each minus the mean of its case. A judge that "
        "orders the proposals of a case rightly gives a cloud that rises to the right."
    )
    alt = f"Scatter plots of score against true Dice for {', '.join(clouds)}. {caption}"
    return [scatters(clouds, "score, centred", "true Dice, points", alt, caption)]


def _cloud(run: Run, judge: str) -> tuple[np.ndarray, np.ndarray]:
    """Score and true Dice (points) of validation proposals, f64 `[proposal]`, each minus the mean of its case.

    Duplicates count once.
    """
    column = pl.col(f"score_{judge}")
    rows = run.panel.filter(
        (pl.col("split") == "validation")
        & pl.col("duplicate_of").is_null()
        & column.is_not_null()
        & pl.col("true_dice").is_not_null()
    ).select("case", "proposal", column.alias("score"), pl.col("true_dice") * 100)
    found = rows.collect().sort("case", "proposal")
    score, dice = (_centred(found["case"].to_numpy(), found[name].to_numpy()) for name in ("score", "true_dice"))
    return score, dice


def _centred(cases: np.ndarray, values: np.ndarray) -> np.ndarray:
    means, member = case_means(cases, values)
    return values - means[member]

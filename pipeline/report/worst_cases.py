"""Section on the worst test cases of the best student, and on single classes."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from pipeline.measures.numbers import decimal, points
from pipeline.report.arms import has_f1, shown_student
from pipeline.report.blocks import Block, Note, Section, Table
from pipeline.report.run import Run

WORST = 6
"""Number of test cases in each list of worst cases."""


def worst_cases(run: Run) -> Section:
    """Test cases with the largest losses and the lowest Dice of one student, and results per class.

    The student is the promoted one, or the best candidate.
    """
    best = shown_student(run)
    blocks: list[Block] = []
    if best is not None:
        key = ["case_id", "group"]
        why = (
            "it is the promoted student."
            if best.name == run.promotion.promoted
            else "on validation it is the best of all candidates for promotion."
        )
        both = (
            run.evaluated(best.name)
            .group_by(key)
            .agg(pl.col("dice").mean())
            .join(run.evaluated("base").group_by("case_id").agg(pl.col("dice").mean().alias("base")), on="case_id")
            .with_columns((pl.col("dice") - pl.col("base")).alias("change"))
        )
        blocks = [
            Note([f"'{best.name}' is shown: {why}"]),
            _cases_table("Largest losses against the base", both.sort("change", "case_id")),
            _cases_table("Lowest Dice", both.sort("dice", "case_id")),
        ]
    else:
        blocks.append(Note(["No student is a candidate for promotion, so no cases are listed."]))
    blocks += _class_tables(run)
    how = (
        "Look at these cases first: the mean can rise while single patients lose. Dice of a case is the mean over its "
        "classes, in points. Predictions are not stored, so there are no pictures."
    )
    return Section("cases", "Worst cases and single classes", how, blocks)


def _cases_table(caption: str, cases: pl.DataFrame) -> Table:
    rows = [
        [row["case_id"], points(row["base"]), points(row["dice"]), points(row["change"], signed=True), row["group"]]
        for row in cases.head(WORST).iter_rows(named=True)
    ]
    return Table(caption, ["case", "Dice, base", "Dice, student", "change", "group"], rows, frozenset({4}))


def _class_tables(run: Run) -> list[Block]:
    names = run.cases.class_names
    unit = run.arms[0].metrics["distance_unit"]
    labels = sorted(int(label) for label in run.arms[0].metrics["classes"])
    measures: list[tuple[str, str, Callable[[float | None], str]]] = [
        ("Dice by class, points", "dice", points),
        ("Dice by class over the cases that have it, points", "dice_with_truth", points),
        ("NSD by class, points", "nsd", points),
        (f"HD95 by class, {unit}", "hd95", lambda value: decimal(value, 2)),
        (f"ASSD by class, {unit}", "assd", lambda value: decimal(value, 2)),
    ]
    if has_f1(run.arms):
        measures.append(("F1 of components by class, points", "f1", points))
    return [
        Table(
            caption,
            ["arm", *(names[label] for label in labels)],
            [[arm.name, *(write(arm.metrics["classes"][str(label)][measure]) for label in labels)] for arm in run.arms],
            folded=measure != "dice",
        )
        for caption, measure, write in measures
    ]

"""Section on the promotion: gains of the students on validation, their lower bounds, and the decision."""

from __future__ import annotations

from pipeline.measures.numbers import NO_VALUE, decimal, percent, points
from pipeline.promotion.record import Comparison
from pipeline.report.blocks import Block, Cell, Note, Section, Table
from pipeline.report.run import Run

MEASURED = ("gain", "lower bound", "worse")
"""Columns of a student against one base, on validation."""


def promotion(run: Run) -> Section:
    """Students with their gain on validation, its lower bound, the share of patients that became worse, and reasons."""
    record = run.promotion
    first = any(student.over_first_base for student in record.students)
    columns = [
        "arm",
        "gain",
        "lower bound",
        "worse",
        *(f"{name}, first base" for name in MEASURED if first),
        "decision",
    ]
    rows: list[list[Cell | str]] = []
    for student in record.students:
        compared = [student.over_base, *([student.over_first_base] if first else [])]
        decision = student.reason if student.candidate else f"no candidate: {student.reason}"
        tag = "promoted" if student.name == record.promoted else ""
        cells = [cell for found in compared for cell in _comparison(found)]
        rows.append([Cell(student.name, tag=tag), *cells, decision])
    caption = f"Students on {record.patients} validation patients, last weights"
    meanings = {
        "gain": "Mean over patients of the Dice of the student minus that of the base, in points.",
        "lower bound": "One-sided 95 % lower bound of the gain, corrected for all candidates together, in points.",
        "worse": f"Share of the patients that lost more than {points(record.worse_by)} points of Dice. The limit is "
        f"{percent(record.knobs.max_worse)}.",
    }
    blocks: list[Block] = [Note([record.reason])]
    if rows:
        blocks.append(Table(caption, columns, rows, frozenset({len(columns) - 1}), meanings=meanings))
    blocks.append(Note([record.limits]))
    how = (
        "Test cases are for reporting alone, so validation chooses the student that may replace the base. A candidate "
        "needs a lower bound above 0, and few patients that became worse. The largest lower bound decides. A student "
        "is no candidate if it learned from labels that a user does not have, or from the labels of validation."
    )
    return Section("promotion", "Student that may replace the base", how, blocks)


def _comparison(found: Comparison | None) -> list[Cell | str]:
    """Cells of a student against one base."""
    if found is None:
        return [NO_VALUE] * len(MEASURED)
    why = "no candidate, or too few patients" if found.lower_bound is None else ""
    bound = None if found.lower_bound is None else 100 * found.lower_bound
    # Two decimals, so that a bound that is not above 0 does not look as if it were.
    return [
        decimal(100 * found.gain, 2, signed=True),
        Cell(decimal(bound, 2, signed=True), why=why),
        percent(found.share_worse),
    ]

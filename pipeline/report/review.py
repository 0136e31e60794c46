"""Section on the review: its answers, how often a reviewer repeats an answer, and the noise that the answers show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.measures.numbers import NO_VALUE, Estimate, decimal
from pipeline.report.blocks import Block, Cell, Note, Section, Table
from pipeline.report.cells import cell, inline
from pipeline.report.run import Run
from pipeline.store import schema


def review(run: Run) -> Section | None:
    """State of the review, and noise of judges and pair sets by answers beside that by labels. None without answers."""
    state = run.summary.get("review")
    if state is None:
        return None
    rows = [row for row in run.audited("answers", schema.AUDIT_ANSWERS).iter_rows(named=True) if _is_there(run, row)]
    blocks: list[Block] = [Note(_said(state)), _reviewers(state)]
    if rows:
        blocks.append(_noise(rows))
    blocks += _uses(run)
    how = (
        "Reviewers looked at two masks of an image and said which is better, without seeing the judge's opinion. Their "
        "answers on pairs that were drawn at random show how often a judge is wrong, without a label. Every answer is "
        "weighted by the number of pairs of its stratum. The error rate of the reviewers is estimated from pairs that "
        "were shown twice, and is taken out; after few such pairs it is uncertain, and the intervals are wide. Errors "
        "of reviewers and judge are assumed to be independent: a fault that both overlook is not seen."
    )
    return Section("review", "Answers of reviewers", how, blocks)


def _is_there(run: Run, row: Mapping[str, Any]) -> bool:
    return row["name"] in (run.params.judge_names if row["kind"] == "judge" else run.params.pairs)


def _said(state: Mapping[str, Any]) -> list[str]:
    answers, draws = state["by_answer"], state["by_draw"]
    many = len(state["reviewers"])
    error = Estimate.read(state["reviewer_error"])
    lines = [
        f"{state['answers']} answers of {many} reviewer{'s' * (many > 1)} on {state['cases']} cases: "
        f"{answers['a'] + answers['b']} prefer a mask, {answers['equal']} see no difference, {answers['unusable']} "
        "call both masks unusable.",
        f"Draws: {draws['audit']} pairs at random (audit), {draws['doubt']} on which judges disagree (doubt), "
        f"{draws['repeat']} shown again.",
    ]
    if state["repeats"]:
        lines.append(f"Of {state['repeats']} pairs that were shown twice, {state['same']} have the same answer.")
    if error.mean is not None:
        lines.append(f"Error rate of a reviewer by these pairs: {inline(error, digits=0)} %.")
    return lines


def _reviewers(state: Mapping[str, Any]) -> Table:
    rows: list[list[Cell | str]] = [
        [
            f"reviewer {number}",
            str(one["answers"]),
            f"{one['same']} of {one['repeats']}" if one["repeats"] else NO_VALUE,
            decimal(one["median_seconds"]),
        ]
        for number, one in enumerate(state["reviewers"], start=1)
    ]
    said = {
        "same again": "Pairs that were shown twice and got the same answer twice.",
        "seconds": "Median time from a pair's appearance to the answer.",
    }
    return Table("Reviewers", ["reviewer", "answers", "same again", "seconds"], rows, meanings=said)


def _noise(rows: list[dict[str, Any]]) -> Table:
    cells: list[list[Cell | str]] = [
        [
            Cell(row["name"], tag="pair set" if row["kind"] == "pairs" else "judge"),
            str(row["answers"]),
            *(cell(Estimate.column(row, measure), digits=0) for measure in ("noise", "observed", "on_labels")),
            row["verdict"],
        ]
        for row in rows
    ]
    said = {
        "answers": "Answers that count: on pairs of the draw `audit` on which the judge prefers a mask, or that are in "
        "the pair set.",
        "noise": "Share of wrong pairs in per cent, by the answers, without the error rate of the reviewers.",
        "as answered": "The same share before the error rate of the reviewers is taken out.",
        "on labels": "The same share on labelled validation cases: pair error of a judge, noise rate of a pair set. "
        "Empty where the answers are on the pairs of another target.",
    }
    columns = ["judge or pair set", "answers", "noise", "as answered", "on labels", "verdict"]
    return Table("Noise by answers and by labels", columns, cells, frozenset({5}), meanings=said)


def _uses(run: Run) -> list[Block]:
    """What rests on the answers: pair sets with pairs of reviewers, and curves that were fitted to answers."""
    lines = []
    for name in run.mined:
        found = run.drops_of(name).get("reviewed")
        if found:
            students = ", ".join(run.trained_on(name)) or "no student"
            lines.append(
                f"Pair set '{name}' has {found['pairs']} pairs by {found['answers']} answers of reviewers; learned by "
                f"{students}."
            )
    lines += [
        f"p_correct of pair set '{name}' comes from {summary['groups']} patients with answers, for want of labels."
        for name, summary in run.summary["calibration"].items()
        if summary.get("source") == "answers" and name in run.params.pairs
    ]
    return [Note(lines)] if lines else []

"""Section on the pair sets: noise and content on validation cases from the audit, and the numbers of mined pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.measures.numbers import NO_VALUE
from pipeline.report.audit_measures import CONTENT, FAVOURED, MINED, NOISE, RESEARCH, Measure, gaps, meanings
from pipeline.report.blocks import Block, Cell, Note, Section, Table
from pipeline.report.run import Run
from pipeline.store import schema

REASONS = {
    "fewer_than_two_scored": "fewer than two scored proposals",
    "tie": "tie of scores",
    "base_is_top": "base is the top pick",
    "margin": "margin too small",
    "p_correct": "order too likely wrong",
    "fraction": "not among the widest margins",
    "disagreement": "disagreement too small",
    "not_reviewed": "no answer of a reviewer",
    "undecided": "reviewers prefer no mask",
}
ACROSS = ("noise_rate", "weighted_noise", "voxel_noise", "active_share", "lift", "lift_top_quarter", "lift_rest")
"""Measures of the table that compares judges and standard strategies."""


def pair_sets(run: Run) -> Section:
    """Noise, content and number of pairs of every pair set, and every judge with the standard strategies."""
    blocks: list[Block] = []
    if run.mined:
        found = {row["pairs"]: row for row in run.audited("pairs", schema.AUDIT_PAIRS).iter_rows(named=True)}
        rows = {name: found[name] for name in run.mined if name in found}
        if rows:
            blocks += [_noise(run, rows), _content(run, rows)]
        else:
            blocks.append(Note(["The audit measured no pair set, because no labelled validation case has proposals."]))
        blocks.append(_yield(run))
    else:
        blocks.append(Note(["params.yaml has no pair sets."]))
    blocks += _strategies(run)
    how = (
        "Every pair set is mined from validation cases exactly as from the pool. The pairs are then compared with the "
        "truth. D is the region on which chosen and rejected differ. Read the noise rate first. Then read the active "
        "share and the lift of chosen over the base: they show whether the pairs can teach anything."
    )
    return Section("pairs", "Noise and content of the pair sets", how, blocks)


def _noise(run: Run, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    warned = {warning.pairs for warning in run.warnings}
    cells: list[list[Cell | str]] = [
        [
            _name(run, name, "see warnings" if name in warned else ""),
            ", ".join(run.trained_on(name)) or "no student",
            row["judge"],
            row["strategy"],
            str(row["mined"]),
            *(measure.cell(row) for measure in NOISE),
            _favoured(row),
        ]
        for name, row in rows.items()
    ]
    columns = ["pair set", "students", "judge", "strategy", "pairs", *(measure.title for measure in NOISE), "favours"]
    said = {"pairs": "Pairs mined on validation cases.", **meanings(NOISE), "favours": FAVOURED}
    words = frozenset({1, 2, 3, len(columns) - 1})
    return Table("Noise of the pairs", columns, cells, words, note=gaps(NOISE, rows), meanings=said)


def _name(run: Run, pairs: str, tag: str = "") -> Cell:
    truth = RESEARCH if run.reads_truth(run.params.pairs[pairs].judge) else ""
    return Cell(pairs, tag=", ".join(part for part in (tag, truth) if part))


def _favoured(row: Mapping[str, Any]) -> Cell:
    return Cell(row["verdict"] or NO_VALUE, why="" if row["verdict"] else f"needs {MINED}")


def _content(run: Run, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    cells: list[list[Cell | str]] = [
        [_name(run, name), *(measure.cell(row) for measure in CONTENT)] for name, row in rows.items()
    ]
    columns = ["pair set", *(measure.title for measure in CONTENT)]
    return Table("Content of the pairs", columns, cells, note=gaps(CONTENT, rows), meanings=meanings(CONTENT))


def _yield(run: Run) -> Table:
    cells: list[list[Cell | str]] = []
    for name in run.mined:
        drops = run.drops_of(name)
        cases = f"{drops['cases_with_pairs']} of {drops['cases']}"
        cells.append([_name(run, name), str(drops["pairs"]), cases, _reasons(drops["dropped"])])
    columns = ["pair set", "pairs", "cases with pairs", "reasons of the cases without pairs"]
    return Table("Pairs mined for training", columns, cells, frozenset({3}))


def _reasons(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{REASONS.get(reason, reason)}: {n}" for reason, n in dropped.items()) or "every case has pairs"


def _strategies(run: Run) -> list[Block]:
    """Table of every judge with every standard strategy. Judges that read the truth come last."""
    names = run.params.judge_names
    table = run.audited("strategies", schema.AUDIT_STRATEGIES)
    rows = {f"{row['judge']} · {row['strategy']}": row for row in table.iter_rows(named=True) if row["judge"] in names}
    if not rows:
        return []
    ordered = sorted(rows, key=lambda key: (run.reads_truth(rows[key]["judge"]), names.index(rows[key]["judge"])))
    shown = _shown()
    cells: list[list[Cell | str]] = [
        [
            Cell(rows[key]["judge"], tag=RESEARCH if run.reads_truth(rows[key]["judge"]) else ""),
            rows[key]["strategy"],
            str(rows[key]["mined"]),
            *(measure.cell(rows[key]) for measure in shown),
            _favoured(rows[key]),
        ]
        for key in ordered
    ]
    columns = ["judge", "strategy", "pairs", *(measure.title for measure in shown), "favours"]
    return [
        Table(
            "Every judge with the standard strategies",
            columns,
            cells,
            frozenset({1, len(columns) - 1}),
            folded=True,
            note=gaps(shown, rows),
            meanings={**meanings(shown), "favours": FAVOURED},
        )
    ]


def _shown() -> list[Measure]:
    known = {measure.column: measure for measure in (*NOISE, *CONTENT)}
    return [known[column] for column in ACROSS]

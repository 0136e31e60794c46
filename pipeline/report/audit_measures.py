"""The measures of the audit: what each means, how the page writes it, and what it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.measures.numbers import Estimate
from pipeline.report.blocks import Cell
from pipeline.report.cells import cell

NO_INTERVAL = "no interval"
RESEARCH = "research only"


@dataclass(frozen=True)
class Measure:
    """A measure of an audit table, with its 95 % interval in the columns `_low` and `_high`."""

    column: str
    title: str
    meaning: str
    """One sentence."""
    needs: str
    """What was missing where it is null."""
    scale: float = 100
    digits: int = 0
    signed: bool = False
    marked: bool = False
    """Whether above 0 is good and below 0 bad, so that an interval without 0 is printed bold."""

    def cell(self, row: Mapping[str, Any]) -> Cell:
        """The estimate of a row; a dash with its reason where it is null."""
        estimate = Estimate.column(row, self.column)
        if estimate.mean is None:
            return Cell(cell(estimate).text, why=f"needs {self.needs}")
        found = cell(estimate, self.scale, self.digits, self.signed)
        return replace(found, sign=found.sign if self.marked else 0, interval=found.interval or NO_INTERVAL)


SCORED = "a validation case with two distinct proposals that the judge scored"
UNEQUAL = "a case with two scored proposals that differ in true Dice"
MINED = "a pair mined on validation"

LIFT = Measure(
    "lift",
    "lift@1",
    "True Dice of the judge's top pick minus that of the base, in points: about what a student can gain from it.",
    SCORED,
    digits=1,
    signed=True,
    marked=True,
)
HEADROOM = Measure(
    "headroom", "headroom", "True Dice of the best proposal minus that of the base, in points.", SCORED, digits=1
)
OF_JUDGES = (
    LIFT,
    Measure(
        "lift_over_fixed",
        "over best fixed",
        "True Dice of the top pick minus that of always taking the same sampler and setting (chosen on other "
        "validation cases), in points: a judge that does not beat it is not needed.",
        SCORED,
        digits=1,
        signed=True,
        marked=True,
    ),
    Measure(
        "lift_over_headroom", "of headroom, %", "Lift as a share of the headroom.", "headroom above 0", signed=True
    ),
    Measure(
        "top_beats_base", "top beats base, %", "Share of cases whose top pick is truly better than the base.", SCORED
    ),
    HEADROOM,
    Measure(
        "regret", "regret", "True Dice of the best proposal minus that of the top pick, in points.", SCORED, digits=1
    ),
    Measure(
        "spearman",
        "Spearman",
        "Rank correlation of score and true Dice among the proposals of one case, mean over cases: 1 is a perfect "
        "order, 0 a random one.",
        UNEQUAL + " and in score",
        1,
        2,
    ),
    Measure(
        "kendall",
        "Kendall",
        "Tau-b of score and true Dice among the proposals of one case: agreeing minus disagreeing pairs, as a share.",
        UNEQUAL + " and in score",
        1,
        2,
    ),
    Measure(
        "pair_error",
        "pair error, %",
        "Share of two proposals of a case that the score orders wrongly; a coin has 50 %.",
        UNEQUAL,
    ),
    Measure(
        "gap_weighted_accuracy",
        "gap-weighted accuracy, %",
        "Share of pairs of proposals ordered rightly, each counting as much as its two masks differ in true Dice; a "
        "coin has 50 %.",
        UNEQUAL,
    ),
    Measure(
        "auroc",
        "AUROC",
        "Between cases: how well the score of the base prediction tells failures (Dice below audit.failure_below) from "
        "the others; a coin has 0.5.",
        "scored base predictions on both sides of audit.failure_below",
        1,
        2,
    ),
    Measure(
        "aurc",
        "AURC",
        "Between cases: mean risk (1 - Dice of the base, in points) when only the cases with the highest scores are "
        "kept, over all shares kept; lower is better.",
        "a scored base prediction",
        digits=1,
    ),
)
OF_TOP_PICK, OF_ORDER = OF_JUDGES[:6], OF_JUDGES[6:]

NOISE = (
    Measure(
        "noise_rate",
        "noise rate, %",
        "Share of pairs whose chosen mask is truly worse than the rejected one; this is what RN-DPO feels.",
        MINED,
    ),
    Measure(
        "weighted_noise",
        "weighted by |D|, %",
        "The noise rate, each pair counting as much as its disagreement region has voxels; this is what DPO feels.",
        MINED,
    ),
    Measure(
        "noise_difference",
        "difference",
        "Noise weighted by |D| minus the plain share of wrong pairs, in per cent points; above 0 large regions are the "
        "noisier ones.",
        MINED,
        signed=True,
        digits=1,
    ),
)
FAVOURED = "RN-DPO where the interval of the difference lies above 0, DPO where it lies below 0, otherwise undecided."
LIFT_OF_CHOSEN = Measure(
    "lift",
    "lift of chosen",
    "True Dice of the chosen mask minus that of the base, in points.",
    MINED,
    digits=1,
    signed=True,
    marked=True,
)
KNOWN_VOXELS = "a disagreement region with known truth"
CONTENT = (
    Measure(
        "voxel_noise",
        "voxel noise, %",
        "Share of D on which chosen is not the truth, every pair counting once (RN-DPO).",
        KNOWN_VOXELS,
    ),
    Measure(
        "weighted_voxel_noise",
        "voxel noise weighted by |D|, %",
        "The same over all voxels, so that large regions count more (DPO).",
        KNOWN_VOXELS,
    ),
    Measure("rejected_right", "rejected right, %", "Share of D on which the rejected mask is the truth.", KNOWN_VOXELS),
    Measure(
        "neither_right",
        "neither right, %",
        "Share of D on which neither mask is the truth; with two classes it is 0.",
        KNOWN_VOXELS,
    ),
    Measure(
        "active_share",
        "active share, %",
        "Share of D on which the base differs from chosen: the only place where there is something to learn.",
        MINED,
    ),
    LIFT_OF_CHOSEN,
    Measure(
        "lift_top_quarter",
        "lift, top quarter",
        "Lift of chosen in the quarter of the cases with the widest margins: where it is much larger than in the rest, "
        "keep_fraction pays.",
        "cases with pairs on both sides of the cut by margin",
        digits=1,
        signed=True,
        marked=True,
    ),
    Measure(
        "lift_rest",
        "lift, rest",
        "Lift of chosen in all other cases.",
        "cases with pairs on both sides of the cut by margin",
        digits=1,
        signed=True,
        marked=True,
    ),
    Measure(
        "volume_bias",
        "volume bias, %",
        "Foreground volume of chosen minus that of rejected over their mean: above 0 the pairs teach larger masks.",
        MINED,
        signed=True,
    ),
)


def meanings(measures: Sequence[Measure]) -> dict[str, str]:
    """The sentence of each measure by its title."""
    return {measure.title: measure.meaning for measure in measures}


def gaps(measures: Sequence[Measure], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Sentences on why values and intervals of the named rows are missing; empty where none is."""
    said = []
    nothing = [name for name, row in rows.items() if all(row[measure.column] is None for measure in measures)]
    if nothing:
        said.append(f"Nothing could be measured for {_of(nothing, rows)}: it takes {measures[0].needs}.")
    missing: dict[tuple[str, str], list[str]] = {}
    for measure in measures:
        lacking = [name for name, row in rows.items() if row[measure.column] is None and name not in nothing]
        if lacking:
            missing.setdefault((_of(lacking, rows), measure.needs), []).append(f"'{measure.title}'")
    said += [
        f"Not measured for {of}: {', '.join(titles)}, which takes {needs}." for (of, needs), titles in missing.items()
    ]
    if any(
        row[measure.column] is not None and row[f"{measure.column}_low"] is None
        for row in rows.values()
        for measure in measures
    ):
        said.append(f"{NO_INTERVAL.capitalize()}: too few patients (groups) in whom it could be measured.")
    return " ".join(said)


def _of(names: Sequence[str], rows: Mapping[str, Any]) -> str:
    return "any of them" if len(names) == len(rows) > 1 else ", ".join(names)

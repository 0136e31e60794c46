"""The measures of the audit: title, meaning, format and required data of each measure."""

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
    """A measure of an audit table. Its 95 % interval is in the columns `COLUMN_low` and `COLUMN_high`."""

    column: str
    title: str
    meaning: str
    """Meaning of the measure, in one to three sentences."""
    needs: str
    """Data that the measure needs. These data were missing if the measure is null."""
    scale: float = 100
    digits: int = 0
    signed: bool = False
    marked: bool = False
    """Whether values above 0 are good and values below 0 bad. An interval that excludes 0 is then printed bold."""

    def cell(self, row: Mapping[str, Any]) -> Cell:
        """Cell of the measure in a row of the table; a dash with its reason if the measure is null."""
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
    "True Dice of the judge's top pick minus true Dice of the base, in points. A student can gain about this much.",
    SCORED,
    digits=1,
    signed=True,
    marked=True,
)
OVER_FIXED = Measure(
    "lift_over_fixed",
    "over best fixed",
    "True Dice of the top pick minus true Dice of the best fixed sampler, in points. The best fixed sampler is one "
    "sampler and setting, chosen on other validation cases. A judge that does not beat it is not needed.",
    SCORED,
    digits=1,
    signed=True,
    marked=True,
)
HEADROOM = Measure(
    "headroom", "headroom", "True Dice of the best proposal minus true Dice of the base, in points.", SCORED, digits=1
)
OF_JUDGES = (
    LIFT,
    OVER_FIXED,
    Measure(
        "lift_over_headroom", "of headroom, %", "Lift as a share of the headroom.", "headroom above 0", signed=True
    ),
    Measure(
        "top_beats_base", "top beats base, %", "Share of cases whose top pick is truly better than the base.", SCORED
    ),
    HEADROOM,
    Measure(
        "regret",
        "regret",
        "True Dice of the best proposal minus true Dice of the top pick, in points.",
        SCORED,
        digits=1,
    ),
    Measure(
        "spearman",
        "Spearman",
        "Rank correlation of score and true Dice among the proposals of one case, mean over cases. 1 is a perfect "
        "order, 0 a random order.",
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
        "Share of the pairs of proposals of a case that the score orders wrongly. A coin has 50 %.",
        UNEQUAL,
    ),
    Measure(
        "gap_weighted_accuracy",
        "gap-weighted accuracy, %",
        "Share of the pairs of proposals of a case that the score orders rightly, each pair weighted by its gap in "
        "true Dice. A coin has 50 %.",
        UNEQUAL,
    ),
    Measure(
        "auroc",
        "AUROC",
        "Between cases: how well the score of the base prediction tells failures (Dice below audit.failure_below) from "
        "other cases. A coin has 0.5.",
        "scored base predictions on both sides of audit.failure_below",
        1,
        2,
    ),
    Measure(
        "aurc",
        "AURC",
        "Between cases: mean risk (1 - Dice of the base, in points) of the cases with the highest scores, averaged "
        "over all shares of cases. Lower is better.",
        "a scored base prediction",
        digits=1,
    ),
)
OF_TOP_PICK, OF_ORDER = OF_JUDGES[:6], OF_JUDGES[6:]

NOISE = (
    Measure(
        "noise_rate",
        "noise rate, %",
        "Share of pairs whose chosen mask is truly worse than the rejected mask. RN-DPO feels this noise.",
        MINED,
    ),
    Measure(
        "weighted_noise",
        "weighted by |D|, %",
        "The noise rate, each pair weighted by the number of voxels in its disagreement region. DPO feels this noise.",
        MINED,
    ),
    Measure(
        "noise_difference",
        "difference",
        "Noise weighted by |D| minus the plain share of wrong pairs, in percentage points. Above 0, large regions are "
        "noisier than small regions.",
        MINED,
        signed=True,
        digits=1,
    ),
)
FAVOURED = "RN-DPO if the interval of the difference lies above 0, DPO if it lies below 0, otherwise undecided."
LIFT_OF_CHOSEN = Measure(
    "lift",
    "lift of chosen",
    "True Dice of the chosen mask minus true Dice of the base, in points.",
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
        "Share of D on which chosen differs from the truth, all pairs weighted equally (RN-DPO).",
        KNOWN_VOXELS,
    ),
    Measure(
        "weighted_voxel_noise",
        "voxel noise weighted by |D|, %",
        "The same share over the voxels of all pairs, so that large regions count more (DPO).",
        KNOWN_VOXELS,
    ),
    Measure(
        "rejected_right", "rejected right, %", "Share of D on which the rejected mask equals the truth.", KNOWN_VOXELS
    ),
    Measure(
        "neither_right",
        "neither right, %",
        "Share of D on which neither mask equals the truth. With two classes this share is 0.",
        KNOWN_VOXELS,
    ),
    Measure(
        "active_share",
        "active share, %",
        "Share of D on which the base differs from chosen. Only there is something to learn.",
        MINED,
    ),
    LIFT_OF_CHOSEN,
    Measure(
        "lift_top_quarter",
        "lift, top quarter",
        "Lift of chosen in the quarter of the cases with the widest margins. If this lift is much larger than the lift "
        "in the rest, use keep_fraction.",
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
        "Foreground volume of chosen minus foreground volume of rejected, as a share of their mean. Above 0, the pairs "
        "teach larger masks.",
        MINED,
        signed=True,
    ),
)


def meanings(measures: Sequence[Measure]) -> dict[str, str]:
    """Meaning of each measure by title."""
    return {measure.title: measure.meaning for measure in measures}


def gaps(measures: Sequence[Measure], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Reasons for missing values and intervals in the named rows, in sentences. Empty if nothing is missing."""
    said = []
    nothing = [name for name, row in rows.items() if all(row[measure.column] is None for measure in measures)]
    if nothing:
        said.append(f"Nothing could be measured for {_of(nothing, rows)}: the measures need {measures[0].needs}.")
    missing: dict[tuple[str, str], list[str]] = {}
    for measure in measures:
        lacking = [name for name, row in rows.items() if row[measure.column] is None and name not in nothing]
        if lacking:
            missing.setdefault((_of(lacking, rows), measure.needs), []).append(f"'{measure.title}'")
    said += [f"Not measured for {of}: {', '.join(titles)}. Needed: {needs}." for (of, needs), titles in missing.items()]
    if any(
        row[measure.column] is not None and row[f"{measure.column}_low"] is None
        for row in rows.values()
        for measure in measures
    ):
        said.append(f"{NO_INTERVAL.capitalize()}: the measure has a value for too few patients (groups).")
    return " ".join(said)


def _of(names: Sequence[str], rows: Mapping[str, Any]) -> str:
    return "any of them" if len(names) == len(rows) > 1 else ", ".join(names)

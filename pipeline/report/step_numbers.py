"""Numbers of a run that the rules on what to do next read: of validation alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import polars as pl

from pipeline.evaluation.evaluate import BOOTSTRAP_SEED
from pipeline.measures.intervals import bootstrap_interval
from pipeline.measures.numbers import Estimate
from pipeline.promotion.record import PromotionRecord
from pipeline.report.cases_and_proposals import lifts
from pipeline.report.run import Arm, Run
from pipeline.segmenter.validation_curve import ValidationCurve
from pipeline.store import schema
from pipeline.students.imitation import Target


class Judged(NamedTuple):
    """A judge that a user could have, on validation."""

    name: str
    lift: Estimate
    """True Dice of the top pick minus that of the base."""
    over_fixed: Estimate
    """True Dice of the top pick minus that of the fixed proposal that is best on other patients."""
    cases: int
    advice: str
    """Last clause of the verdict of the audit."""
    fixed: bool = False
    """Whether the judge always takes the same proposal."""


class FixedProposal(NamedTuple):
    """The fixed proposal with the highest mean Dice on validation."""

    name: str
    lift: Estimate
    """True Dice minus that of the base, mean over validation patients."""
    has_arm: bool
    """Whether an arm takes the proposal, so that it is measured on test."""
    imitated_by: tuple[str, ...]
    """Students that imitate the proposal."""


class TrainedStudent(NamedTuple):
    """A student that a user could have, trained on the labels of the labelled split alone."""

    curve: ValidationCurve
    uses_pool: bool
    """Whether the student learned from pairs or from other targets on pool images."""


class UsedPairs(NamedTuple):
    """The judge of a pair set, and the students that trained on the pair set."""

    judge: str
    students: tuple[str, ...]


@dataclass(frozen=True)
class Numbers:
    """All numbers that the rules read."""

    promotion: PromotionRecord
    base: ValidationCurve | None
    """None for a base that was not trained in the run."""
    students: Mapping[str, TrainedStudent]
    fixed: FixedProposal | None
    headroom: Estimate
    """True Dice of the best proposal minus that of the base, on validation."""
    judges: Sequence[Judged]
    """The judge with the largest lift first."""
    used: Mapping[str, UsedPairs]
    """Pair sets that students trained on, without those of judges that read the truth."""
    continued: bool
    """Whether the run has an arm of continued training."""

    @classmethod
    def of(cls, run: Run) -> Numbers:
        used = {
            name: UsedPairs(run.params.pairs[name].judge, run.trained_on(name))
            for name in run.mined
            if run.trained_on(name) and not run.reads_truth(run.params.pairs[name].judge)
        }
        students = {
            arm.name: TrainedStudent(curve, arm.student.objective.feeds in ("pairs", "pool"))
            for arm in run.arms
            if arm.student is not None
            and not arm.research
            and arm.student.objective.feeds != "truth"
            and (curve := run.student_curve(arm.name)) is not None
        }
        return cls(
            run.promotion,
            run.base_curve,
            students,
            _fixed_proposal(run),
            Estimate.column(run.summary["headroom"], "headroom"),
            judged(run),
            used,
            any(arm.student is not None and arm.student.objective.kind == "supervised" for arm in run.arms),
        )

    def gain(self, student: str) -> float:
        """Gain of a student over the base in Dice, mean over validation patients."""
        return self.promotion.student(student).over_base.gain

    def judge(self, name: str) -> Judged | None:
        return next((one for one in self.judges if one.name == name), None)


def judged(run: Run) -> list[Judged]:
    """Judges that were measured and do not read the truth, the largest lift first."""
    names = run.params.judge_names
    found = [
        Judged(
            row["judge"],
            Estimate.column(row, "lift"),
            Estimate.column(row, "lift_over_fixed"),
            row["cases"],
            row["verdict"].split("; ")[-1],
            run.kind_of(row["judge"]) == "fixed",
        )
        for row in run.audited("judges", schema.AUDIT_JUDGES).iter_rows(named=True)
        if row["judge"] in names and not run.reads_truth(row["judge"]) and row["lift"] is not None
    ]
    return sorted(found, key=lambda one: -(one.lift.mean or 0.0))


def best_judge(judges: Sequence[Judged]) -> Judged | None:
    """The judge with the largest lift of those that are shown to beat the best fixed proposal, or else of all.

    A judge that always takes the same proposal is left out. None without another judge.
    """
    real = [one for one in judges if not one.fixed]
    return next((one for one in real if one.over_fixed.sign == 1), real[0] if real else None)


def _fixed_proposal(run: Run) -> FixedProposal | None:
    """None without a proposal on validation beside the base. Of equally good proposals, one that an arm uses."""
    slot = ("proposal", "sampler", "setting", "group")
    by_patient = lifts(run).drop_nulls("lift").group_by(slot).agg(pl.col("lift").mean()).sort(slot).collect()
    of_slot = by_patient.filter(pl.col("proposal") > 0).partition_by("proposal", maintain_order=True)
    if not of_slot:
        return None
    means = [float(rows["lift"].to_numpy().mean()) for rows in of_slot]
    found = []
    for rows in (rows for rows, mean in zip(of_slot, means, strict=True) if mean == max(means)):
        sampler, setting = rows.select("sampler", "setting").row(0)
        name = sampler if sampler == setting else f"{sampler} {setting}"
        draws = run.params.evaluation.bootstrap
        lift = Estimate(*bootstrap_interval(rows["lift"].to_numpy(), rows["group"].to_list(), draws, BOOTSTRAP_SEED))
        taken = any(run.record(arm.name).proposal == name for arm in run.arms[1:])
        imitated_by = tuple(arm.name for arm in run.arms[1:] if name in _imitated(arm))
        found.append(FixedProposal(name, lift, taken, imitated_by))
    return max(found, key=lambda one: (bool(one.imitated_by), one.has_arm))


def _imitated(arm: Arm) -> list[str]:
    """Proposals that an arm imitates by its objective or by its anchor."""
    student = arm.student
    parts = [] if student is None else [student.objective, student.anchor.imitate if student.anchor else None]
    return [part.proposal for part in parts if isinstance(part, Target)]


# ---- rules -------------------------------------------------------------------------------------------------------

"""The arms of a run by family, each against the base, continued training and the best fixed proposal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from pipeline.evaluation.evaluate import BOOTSTRAP_SEED, gain_per_case, mean_over_patients, means_per_case
from pipeline.measures.intervals import bootstrap_interval
from pipeline.measures.numbers import Estimate
from pipeline.report.run import Arm, Run
from pipeline.students.objectives.objective import ArmFamily


@dataclass(frozen=True)
class ComparedArm:
    """An arm with its gains in sustained test Dice. A gain is None over an arm that the run lacks, and over itself."""

    arm: Arm
    over_base: Estimate | None
    over_supervised: Estimate | None
    over_proposal: Estimate | None
    better: bool
    """Whether the gain over the rival that decides has an interval above 0. Continued training decides, or the base in
    a run without continued training."""

    @property
    def name(self) -> str:
        return self.arm.name


@dataclass(frozen=True)
class Results:
    """All arms with their gains, and the arms that every arm is compared with. None: the run has no such arm."""

    arms: Sequence[ComparedArm]
    """The base first, in the order of the families and then of `params.yaml`."""
    supervised: Arm | None
    """Continued training on the labels."""
    proposal: Arm | None
    """Fixed proposal with the highest Dice on validation."""

    @classmethod
    def of(cls, run: Run) -> Results:
        """Results of a run. Of several arms with the same objective, the best on validation is the rival."""
        supervised, proposal = _best(run, "supervised"), _best(run, "proposal")
        order = get_args(ArmFamily)
        arms = sorted(run.arms, key=lambda arm: order.index(arm.family))
        return cls([_compared(run, arm, supervised, proposal) for arm in arms], supervised, proposal)

    @property
    def students(self) -> Sequence[ComparedArm]:
        """All arms but the base."""
        return [one for one in self.arms if one.arm.student]


def _compared(run: Run, arm: Arm, supervised: Arm | None, proposal: Arm | None) -> ComparedArm:
    over_base = arm.gain if arm.student else None
    over_supervised, over_proposal = (_gain(run, arm, rival) for rival in (supervised, proposal))
    decides = over_base if supervised is None else over_supervised
    better = decides is not None and decides.mean is not None and decides.mean > 0 and decides.sign == 1
    return ComparedArm(arm, over_base, over_supervised, over_proposal, better)


def _gain(run: Run, arm: Arm, rival: Arm | None) -> Estimate | None:
    """Sustained test Dice of an arm minus that of its rival, over the same patients, with its 95 % interval."""
    if rival is None or arm.name == rival.name:
        return None
    gain = gain_per_case(run.evaluated(arm.name), run.evaluated(rival.name))
    draws = run.params.evaluation.bootstrap
    return Estimate(*bootstrap_interval(gain["dice"].to_numpy(), gain["group"].to_list(), draws, BOOTSTRAP_SEED))


def _best(run: Run, kind: str) -> Arm | None:
    """Arm of an objective with the highest mean Dice over validation patients, or the first of several equally high."""
    return best_on_validation(
        run, [arm for arm in run.arms if arm.student is not None and arm.student.objective.kind == kind]
    )


def best_on_validation(run: Run, arms: Sequence[Arm]) -> Arm | None:
    """Arm with the highest mean Dice over validation patients, or the first of several equally high; None of none."""
    if len(arms) < 2:
        return arms[0] if arms else None
    return max(arms, key=lambda arm: mean_over_patients(means_per_case(run.validated(arm.name)), "dice"))


def shown_student(run: Run) -> Arm | None:
    """The promoted student, else the candidate for promotion with the highest Dice on validation; None without one.

    A student that used labels of validation looks best there, so only candidates are compared.
    """
    record = run.promotion
    names = {one.name for one in record.students if one.candidate} if record.promoted is None else {record.promoted}
    return best_on_validation(run, [arm for arm in run.arms if arm.name in names])


def first_of_family(arms: Sequence[ComparedArm]) -> dict[int, str]:
    """Title of each family by the index of its first arm."""
    families = [compared.arm.family for compared in arms]
    return {families.index(family): family.capitalize() for family in dict.fromkeys(families)}


def has_f1(arms: list[Arm]) -> bool:
    """Whether F1 of components was measured, which is an option of `evaluation:`."""
    return all("f1" in arm.metrics for arm in arms)

"""Training on the validation labels, which otherwise serve to audit judges and to choose steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from pipeline.students.objectives.extra_labels import ExtraLabels
from pipeline.students.objectives.objective import ArmFamily

if TYPE_CHECKING:
    from pipeline.students.start import Arm, Start


class ValidationLabels(ExtraLabels):
    """DiceCE on labelled and validation cases, from the base: the gain of the validation labels without preferences.

    No cases are left to choose a step by. The arm therefore trains all steps, and the last weights are also the best.
    """

    kind: Literal["validation_labels"]
    family: ClassVar[ArmFamily] = "labels only"
    split: ClassVar[str] = "validation"

    @model_validator(mode="after")
    def _no_patience(self) -> ValidationLabels:
        if self.optimisation.patience is not None:
            raise ValueError(
                "objective 'validation_labels' trains on the cases that patience would measure; remove `patience`"
            )
        return self

    def train(self, start: Start) -> Arm:
        arm = super().train(start)
        # Validation cases are training cases here: the best step on them would be the most overfitted step.
        arm.weights.best, arm.weights.best_step = arm.weights.last, int(arm.weights.history[-1]["step"] or 0)
        return arm

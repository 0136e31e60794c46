"""Training on the validation labels, which otherwise serve to audit judges and to choose steps."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from pipeline.students.objectives.extra_labels import ExtraLabels


class ValidationLabels(ExtraLabels):
    """DiceCE on labelled and validation cases, from the base: the gain of the validation labels without preferences.

    No cases are left to choose a step by. The arm therefore trains all steps, and the last weights are also the best.
    """

    kind: Literal["validation_labels"]
    split: ClassVar[str] = "validation"

    @model_validator(mode="after")
    def _no_patience(self) -> ValidationLabels:
        if self.optimisation.patience is not None:
            raise ValueError(
                "objective 'validation_labels' trains on the cases that patience would measure; remove `patience`"
            )
        return self

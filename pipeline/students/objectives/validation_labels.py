"""The validation labels spent on training instead of on judging judges and stopping."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from pipeline.students.objectives.extra_labels import ExtraLabels


class ValidationLabels(ExtraLabels):
    """DiceCE on labelled and validation cases, from the base: the gain that these labels give without this pipeline.

    No cases are left to choose a step by, so the arm trains all steps, and its best weights are its last.
    """

    kind: Literal["validation_labels"]
    split: ClassVar[str] = "validation"

    @model_validator(mode="after")
    def _no_patience(self) -> ValidationLabels:
        if self.optimisation.patience is not None:
            raise ValueError("objective 'validation_labels' trains on what patience would look at; remove `patience`")
        return self

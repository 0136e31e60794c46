"""The validation labels spent on training instead of on judging judges and stopping."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.segmenter.knobs import Optimisation
from pipeline.students.objectives.objective import Feed, ObjectiveKnobs


class ValidationLabels(ObjectiveKnobs):
    """DiceCE on labelled and validation cases, from the base: what the same labels give without this pipeline.

    Nothing is left to choose a step by, so that it trains all steps and its best weights are its last.
    """

    kind: Literal["validation_labels"]
    feeds: ClassVar[Feed] = "truth"
    split: ClassVar[str] = "validation"
    optimisation: Optimisation
    """Its own, because more labels take more steps; without patience."""
    batch: Annotated[int, Field(gt=0)] = 8
    """Cases per step."""

    @model_validator(mode="after")
    def _no_patience(self) -> ValidationLabels:
        if self.optimisation.patience is not None:
            raise ValueError("objective 'validation_labels' trains on what patience would look at; remove `patience`")
        return self

"""Input and output of every arm: the start of a student, and the student that the arm makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.compute import Compute
from pipeline.segmenter.augmentation import Augmentation
from pipeline.segmenter.loop import State, TrainedWeights
from pipeline.segmenter.models import Model
from pipeline.store.proposals import Data

if TYPE_CHECKING:
    from pipeline.students.student import Student, Training


@dataclass(frozen=True)
class Start:
    """Everything that a student starts from."""

    name: str
    student: Student
    base: Model
    """The student starts from these weights: the base, or a member of the base. The frozen model is also the reference
    of preference."""
    data: Data
    pairs: Path
    """File of the student's pair set."""
    training: Training
    augmentation: Augmentation
    compute: Compute
    seed: int

    @property
    def labelled_views(self) -> bool:
        """Whether labelled images are varied as strongly as pool images."""
        own = self.student.labelled_views
        return self.training.views.labelled if own is None else own


@dataclass(frozen=True)
class Arm:
    """The student that an arm makes: weights with their history, and numbers for the student's record."""

    weights: TrainedWeights
    numbers: dict[str, Any] = field(default_factory=dict)
    """Fields of `StudentRecord`, and further numbers of the objective."""

    @classmethod
    def untrained(cls, state: State | None, validation_dice: float, **numbers: Any) -> Arm:
        """An arm without training. The history has one row, with the validation Dice at step 0.

        `state` has the weights, and is empty for an exported network without a state dict. None for an arm without
        weights.
        """
        history: list[dict[str, float | None]] = [{"step": 0, "validation_dice": validation_dice}]
        weights = state or {}
        return cls(TrainedWeights(weights, weights, {0: weights}, {}, history), numbers)

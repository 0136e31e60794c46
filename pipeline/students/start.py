"""Input and output of every arm: everything that a student starts from, and the student that the arm makes."""

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
    """The student starts from the base; the base is also the reference of preference."""
    data: Data
    pairs: Path
    """File of the student's pair set."""
    training: Training
    augmentation: Augmentation
    compute: Compute
    seed: int


@dataclass(frozen=True)
class Arm:
    """A student that is made: weights with their history, and numbers for the student's record."""

    weights: TrainedWeights
    numbers: dict[str, Any] = field(default_factory=dict)
    """Fields of `StudentRecord`."""
    has_weights: bool = True
    """Whether weights are written; an arm that takes a proposal has none."""

    @classmethod
    def untrained(cls, state: State | None, validation_dice: float, **numbers: Any) -> Arm:
        """An arm without training, with these weights or none: the history is the validation Dice at step 0.

        The state of a program is empty; None is an arm without weights.
        """
        history: list[dict[str, float | None]] = [{"step": 0, "validation_dice": validation_dice}]
        weights = state or {}
        return cls(TrainedWeights(weights, weights, {0: weights}, {}, history), numbers, state is not None)

"""Continued supervised training with as many steps as the other arms: the arm that preference has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pipeline.students.objectives.objective import ArmFamily, Feed, ObjectiveKnobs

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.segmenter.loop import HistoryRow
    from pipeline.students.start import Arm, Start


class Supervised(ObjectiveKnobs):
    """DiceCE on the labelled cases, from the base, with the steps and step sizes of all students."""

    kind: Literal["supervised"]
    family: ClassVar[ArmFamily] = "labels only"
    feeds: ClassVar[Feed] = "labelled"

    def train(self, start: Start) -> Arm:
        from pipeline.segmenter.losses import deep_dice_ce
        from pipeline.students.loop import StudentTraining

        training = StudentTraining(start, needs_labels=True)

        def step_loss(step: int) -> tuple[Tensor, HistoryRow]:
            batch = training.labelled_batch()
            return deep_dice_ce(batch.heads, batch.labels), {}

        return training.fit(step_loss)

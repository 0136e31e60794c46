"""Continued supervised training with as many steps: what every preference arm has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pipeline.students.objectives.objective import Feed, HistoryRow, LabelledBatch, ObjectiveKnobs

if TYPE_CHECKING:
    from torch import Tensor


class Supervised(ObjectiveKnobs):
    """DiceCE on the labelled cases, from the base, with the steps and step sizes of the other students."""

    kind: Literal["supervised"]
    feeds: ClassVar[Feed] = "labelled"

    def __call__(self, batch: LabelledBatch) -> tuple[Tensor, HistoryRow]:
        from pipeline.segmenter.losses import deep_dice_ce

        return deep_dice_ce(batch.heads, batch.labels), {}

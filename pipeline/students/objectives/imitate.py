"""Imitation of one proposal, or of the mean of the proposals, on all pool images, without any judge."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pipeline.students.imitation import Target
from pipeline.students.objectives.objective import ArmFamily, Feed, PoolObjective

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.segmenter.loop import HistoryRow
    from pipeline.students.batch import PoolBatch


class Imitate(PoolObjective, Target):
    """DiceCE or cross-entropy between the student and a proposal that always comes from the same sampler.

    With `loss: cross_entropy` and `proposal: mean`, this objective is `distill`.
    """

    kind: Literal["imitate"]
    family: ClassVar[ArmFamily] = "imitation"
    needs_reference: ClassVar[bool] = False
    feeds: ClassVar[Feed] = "pool"

    @property
    def targets(self) -> tuple[Target, ...]:
        return (Target(proposal=self.proposal, loss=self.loss, where=self.where),)

    def __call__(self, batch: PoolBatch) -> tuple[Tensor, HistoryRow]:
        from pipeline.students.imitation import imitation_loss

        return imitation_loss(batch, self.targets[0]), {}

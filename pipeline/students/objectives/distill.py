"""Distillation: the student learns the mean probability of the proposals, without any judge."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pipeline.students.objectives.objective import ArmFamily, Feed, PoolObjective

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.segmenter.loop import HistoryRow
    from pipeline.students.batch import PoolBatch


class Distill(PoolObjective):
    """Soft cross-entropy to the mean probability of the proposals (Hinton et al. 2015), in nats, mean over voxels.

    Without this arm, a gain from ensemble or consensus proposals cannot be credited to preference.
    """

    kind: Literal["distill"]
    family: ClassVar[ArmFamily] = "imitation"
    needs_reference: ClassVar[bool] = False
    feeds: ClassVar[Feed] = "pool"
    needs_probability: ClassVar[bool] = True

    def __call__(self, batch: PoolBatch) -> tuple[Tensor, HistoryRow]:
        from pipeline.segmenter.losses import soft_cross_entropy

        assert batch.probability is not None
        assert batch.known is not None
        return soft_cross_entropy(batch.logits, batch.probability, batch.known), {}

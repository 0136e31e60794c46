"""Pseudo-labels: supervised training on the predictions of the base for the pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.students.objectives.objective import ArmFamily, Feed, PoolObjective

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.segmenter.loop import HistoryRow
    from pipeline.students.batch import PoolBatch


class PseudoLabel(PoolObjective):
    """DiceCE between the student and the most probable class of the base on the same image (Lee 2013)."""

    kind: Literal["pseudo_label"]
    family: ClassVar[ArmFamily] = "imitation"
    feeds: ClassVar[Feed] = "pool"
    confidence: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Least probability of the base's class. Less certain voxels count in no term; 0 takes all voxels."""

    def __call__(self, batch: PoolBatch) -> tuple[Tensor, HistoryRow]:
        import torch

        from pipeline.segmenter.losses import dice_ce, log_probability
        from pipeline.store.schema import UNKNOWN

        assert batch.known is not None
        probability, label = log_probability(batch.reference).exp().max(1)
        sure = batch.known & (probability >= self.confidence)
        label = torch.where(sure, label, UNKNOWN).to(torch.uint8)
        return dice_ce(batch.logits, label), {"pseudo_labelled": float(sure.sum() / batch.known.sum().clamp(min=1))}

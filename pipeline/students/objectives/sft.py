"""Imitation of the judge's choice: supervised training on the chosen mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pipeline.students.objectives.objective import ArmFamily, Feed, PoolObjective

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.segmenter.loop import HistoryRow
    from pipeline.students.batch import PoolBatch


class ImitateChosen(PoolObjective):
    """DiceCE between the student and the chosen mask of each pair, as if the chosen mask were the label.

    The loss is 0 for a batch without a pair.
    """

    kind: Literal["sft"]
    family: ClassVar[ArmFamily] = "imitation"
    needs_reference: ClassVar[bool] = False
    feeds: ClassVar[Feed] = "pairs"

    def __call__(self, batch: PoolBatch) -> tuple[Tensor, HistoryRow]:
        from pipeline.segmenter.losses import dice_ce
        from pipeline.students.pair_loss import disagreement_region

        # A term on the pool adds images without pairs, and a batch may hold nothing else.
        if not len(batch.image):
            return 0 * batch.logits.sum(), {}
        size = disagreement_region(batch.chosen, batch.rejected).flatten(1).sum(1).float()
        return dice_ce(batch.logits[batch.image], batch.chosen), {"disagreement": float(size.mean())}

"""Imitation of the judge's choice: supervised training on the chosen mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pipeline.knobs import Knobs
from pipeline.objectives.objective import Feed, PairBatch, PairStatistics, Row

if TYPE_CHECKING:
    from torch import Tensor


class Imitation(Knobs):
    """DiceCE between the student and the chosen mask of each pair, as if it were the truth."""

    kind: Literal["sft"]
    feeds: ClassVar[Feed] = "pairs"

    def bind(self, pairs: PairStatistics) -> Imitation:
        return self

    def __call__(self, batch: PairBatch) -> tuple[Tensor, Row]:
        from pipeline.segmentation_loss import dice_ce

        return dice_ce(batch.logits[batch.image], batch.chosen), {"disagreement": _mean_size(batch)}

    def diagnose(self, batch: PairBatch) -> Row:
        return {}

    def summary(self) -> dict[str, float | None]:
        return {}


def _mean_size(batch: PairBatch) -> float:
    from pipeline.losses import disagreement_region

    return float(disagreement_region(batch.chosen, batch.rejected).flatten(1).sum(1).float().mean())

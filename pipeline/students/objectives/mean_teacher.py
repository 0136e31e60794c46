"""Mean teacher: the common way to learn from unlabelled images without preferences."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pipeline.segmenter.knobs import Consistency
from pipeline.students.objectives.objective import ArmFamily, Feed, PoolObjective

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.segmenter.loop import HistoryRow
    from pipeline.students.batch import PoolBatch


class MeanTeacher(PoolObjective):
    """Consistency of the student on noised pool images with its moving average on the clean images.

    The term is the squared difference of the class probabilities (Tarvainen & Valpola 2017). The weight of the term
    rises over the first 40 % of the steps. The moving average is the student that is kept.
    """

    kind: Literal["mean_teacher"]
    family: ClassVar[ArmFamily] = "imitation"
    needs_reference: ClassVar[bool] = False
    feeds: ClassVar[Feed] = "pool"
    consistency: Consistency = Consistency()
    """Decay of the moving average, weight of the term, and noise on the images of the student."""

    @property
    def image_noise(self) -> float:
        return self.consistency.noise

    @property
    def teacher_decay(self) -> float | None:
        return self.consistency.decay

    def __call__(self, batch: PoolBatch) -> tuple[Tensor, HistoryRow]:
        from pipeline.segmenter.losses import consistency, ramp_up

        assert batch.teacher is not None
        assert batch.known is not None
        term = consistency(batch.logits, batch.teacher, batch.known)
        return self.consistency.weight * ramp_up(batch.progress) * term, {"consistency": float(term.detach())}

"""Contract of the objective family: an arm trains a student, or makes a student of the base without training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from pipeline.knobs import Knobs

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.segmenter.loop import HistoryRow
    from pipeline.students.batch import PairStatistics, PoolBatch
    from pipeline.students.start import Arm, Start

Feed = Literal["pairs", "pool", "labelled", "truth", "nothing"]
"""Pool images with mined pairs · all pool images · labelled cases · cases with truth, on a schedule of their own ·
nothing: the base itself, used in another way."""


class ObjectiveKnobs(Knobs, ABC):
    """Base class of all objectives. An objective does the work of its arm in `train`."""

    feeds: ClassVar[Feed]
    """The cases that the objective learns from."""

    @property
    def learns_from(self) -> tuple[str, ...]:
        """Splits that the weights of the student follow from."""
        return {"pairs": ("labelled", "pool"), "pool": ("labelled", "pool"), "labelled": ("labelled",)}.get(
            self.feeds, ()
        )

    @property
    def teacher_decay(self) -> float | None:
        """Decay of the moving average that the objective reads as `teacher` and that is the student; None for none."""
        return None

    @abstractmethod
    def train(self, start: Start) -> Arm:
        """Weights of the student, and numbers for its record; raises `BadInput` where the data lack something."""


class PoolObjective(ObjectiveKnobs):
    """Base class of objectives that are fed by pool images, with or without pairs, in the common loop.

    Called with a batch, the objective that `bind` returns gives the loss to minimise, and numbers for the history.
    """

    needs_probability: ClassVar[bool] = False
    """Whether the objective reads the mean probability of the proposals."""

    @property
    def image_noise(self) -> float:
        """Standard deviation of the noise on the student's pool images, in units of the normalised image."""
        return 0.0

    @property
    def needs_p_correct(self) -> bool:
        """Whether the objective reads `e`, which takes a calibrated pair set."""
        return False

    @property
    def needs_votes(self) -> bool:
        """Whether the objective reads `voxel_e`."""
        return False

    def bind(self, pairs: PairStatistics) -> BoundObjective:
        """The objective for a pair set. By default the statistics of the pairs change nothing."""
        return Unbound(self)

    def loss(self, batch: PoolBatch) -> tuple[Tensor, HistoryRow]:
        """Loss of a batch, and numbers for the history, for objectives that need no statistics of pairs."""
        raise NotImplementedError(f"objective '{type(self).__name__}' must define `loss` or `bind`")

    def train(self, start: Start) -> Arm:
        from pipeline.students.loop import train_on_pool

        return train_on_pool(self, start)


class BoundObjective(Protocol):
    """An objective that is ready to train."""

    def __call__(self, batch: PoolBatch) -> tuple[Tensor, HistoryRow]:
        """Loss of a batch, and numbers for the history."""
        ...

    def diagnose(self, batch: PoolBatch) -> HistoryRow:
        """Numbers for the history that are worth computing at evaluations only."""
        ...

    def summary(self) -> dict[str, float | None]:
        """Numbers for the student's record."""
        ...


class Unbound:
    """An objective that is the same for every pair set."""

    def __init__(self, objective: PoolObjective) -> None:
        self.objective = objective

    def __call__(self, batch: PoolBatch) -> tuple[Tensor, HistoryRow]:
        return self.objective.loss(batch)

    def diagnose(self, batch: PoolBatch) -> HistoryRow:
        return {}

    def summary(self) -> dict[str, float | None]:
        return {}

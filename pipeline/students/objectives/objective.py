"""Contract of the objective family: an arm trains a student, or makes a student from the base without training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from pipeline.knobs import Knobs

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.segmenter.loop import HistoryRow
    from pipeline.students.batch import PairStatistics, PoolBatch
    from pipeline.students.imitation import Target
    from pipeline.students.start import Arm, Start

Feed = Literal["pairs", "pool", "labelled", "truth", "nothing"]
"""Cases that an objective learns from.

- `pairs`: images with mined pairs.
- `pool`: all pool images.
- `labelled`: labelled cases.
- `truth`: labelled cases and the cases of a further split with labels, on a schedule of the objective's own.
- `nothing`: no cases for training. The validation cases may select a slot or offsets.
"""


ArmFamily = Literal["no training", "labels only", "imitation", "preference", "ceilings"]
"""Families of arms, in the order of the report.

- `no training`: the base, or a proposal, or the base at other thresholds.
- `labels only`: training on labelled cases, without any pool image.
- `imitation`: training on pool images towards masks or probabilities that count as the truth.
- `preference`: training on pairs of masks by a preference loss.
- `ceilings`: training on the truth of the pool, which is not available in practice.
"""


class ObjectiveKnobs(Knobs, ABC):
    """Base class of all objectives. An objective does the work of its arm in `train`."""

    feeds: ClassVar[Feed]
    """The cases that the objective learns from."""
    family: ClassVar[ArmFamily]
    """Family of the arm. An arm whose judge reads the truth of the pool is a ceiling, whatever its objective."""
    has_weights: ClassVar[bool] = True
    """Whether the student has weights of its own. An arm that takes a proposal of every case has none."""

    @property
    def learns_from(self) -> tuple[str, ...]:
        """Splits that the weights of the student depend on. `seen.json` lists their images."""
        return {"pairs": ("labelled", "pool"), "pool": ("labelled", "pool"), "labelled": ("labelled",)}.get(
            self.feeds, ()
        )

    @property
    def labels_from(self) -> tuple[str, ...]:
        """Splits whose labels the objective uses, to train or to select offsets or a slot.

        `promote` takes only students of objectives that use no labels but those of the labelled split.
        """
        return {"truth": self.learns_from, "nothing": ("validation",)}.get(self.feeds, ("labelled",))

    @property
    def teacher_decay(self) -> float | None:
        """Decay of the moving average that is both the `teacher` of the batches and the student that is kept.

        None: the objective needs no teacher.
        """
        return None

    @abstractmethod
    def train(self, start: Start) -> Arm:
        """The student: weights, history and numbers for the record. Raises `BadInput` if the data lack something."""


class PoolObjective(ObjectiveKnobs):
    """Base class of objectives that learn from pool images, with or without pairs. `train_on_pool` is the default arm.

    An objective defines `__call__`. An objective that needs the sizes of the pairs before training defines `bind`
    instead.
    """

    needs_reference: ClassVar[bool] = True
    """Whether the loss reads the logits of the frozen start, `PoolBatch.reference`."""
    needs_probability: ClassVar[bool] = False
    """Whether the objective reads the mean probability of the proposals."""

    @property
    def targets(self) -> tuple[Target, ...]:
        """What the objective reads of `PoolBatch.targets`."""
        return ()

    @property
    def image_noise(self) -> float:
        """Standard deviation of the noise on the pool images of the student, in units of the normalised image."""
        return 0.0

    @property
    def needs_p_correct(self) -> bool:
        """Whether the objective reads `PoolBatch.e`, which needs a calibrated pair set."""
        return False

    @property
    def needs_votes(self) -> bool:
        """Whether the objective reads `PoolBatch.voxel_e`."""
        return False

    def bind(self, pairs: PairStatistics) -> BoundObjective:
        """The objective for a pair set. By default, the statistics of the pairs change nothing."""
        return self

    def __call__(self, batch: PoolBatch) -> tuple[Tensor, HistoryRow]:
        """Loss of a batch, and numbers for the history."""
        raise NotImplementedError(f"objective '{type(self).__name__}' must define `__call__` or `bind`")

    def diagnose(self, batch: PoolBatch) -> HistoryRow:
        """Numbers for the history that are computed at evaluations only, because of their cost."""
        return {}

    def summary(self) -> dict[str, float | None]:
        """Numbers for the student's record."""
        return {}

    def train(self, start: Start) -> Arm:
        from pipeline.students.loop import train_on_pool

        return train_on_pool(self, start)


class BoundObjective(Protocol):
    """An objective that is ready to train."""

    def __call__(self, batch: PoolBatch) -> tuple[Tensor, HistoryRow]:
        """Loss of a batch, and numbers for the history."""
        ...

    def diagnose(self, batch: PoolBatch) -> HistoryRow:
        """Numbers for the history that are computed at evaluations only, because of their cost."""
        ...

    def summary(self) -> dict[str, float | None]:
        """Numbers for the student's record."""
        ...

"""What an objective is: the main term of a student's loss, and which cases feed it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from pipeline.knobs import Knobs

if TYPE_CHECKING:
    from torch import Tensor

HistoryRow = dict[str, float | None]
Feed = Literal["pairs", "pool", "labelled", "truth", "nothing"]
"""Pool images with mined pairs · all pool images · labelled cases · cases with truth, on a schedule of its own ·
nothing: the base as it is, used in another way."""


@dataclass(frozen=True)
class PoolBatch:
    """One forward pass of pool images with all their pairs, padded to the window.

    Optional parts are there only where the objective or its anchor asks for them.
    """

    logits: Tensor  # [image, output, *space], with gradient
    reference: Tensor  # [image, output, *space], of the frozen base
    chosen: Tensor  # u8 [pair, *space]
    rejected: Tensor  # u8 [pair, *space]
    image: Tensor  # i64 [pair]
    voxels: Tensor  # i64 [pair], valid voxels of the pair's image
    known: Tensor | None = None  # bool [image, *space], False in the padding
    probability: Tensor | None = None  # f32 [image, class, *space], mean of the proposals
    teacher: Tensor | None = None  # [image, output, *space], logits of the student's moving average
    e: Tensor | None = None  # f32 [pair], 1 - p_correct clipped; None where the pair set is not calibrated
    voxel_e: Tensor | None = None  # f32 [pair, *space], error probability on D by the votes of the proposals
    classes: tuple[str, ...] = ()  # names of the classes, background first
    progress: float = 1.0  # share of the steps that are done
    images: Tensor | None = None  # f32 [image, channel, *space], without noise
    moving: Tensor | None = None  # [image, output, *space], of the moving average that pairs refer to


@dataclass(frozen=True)
class PairStatistics:
    """What is known of a pair set before training; `[pair]` each."""

    size: np.ndarray  # |D|
    voxels: np.ndarray  # of the pair's image
    dimensions: int


@dataclass(frozen=True)
class LabelledBatch:
    """One forward pass of labelled cases."""

    heads: Sequence[tuple[float, Tensor]]  # weight and logits of every head, the main one first
    labels: Tensor  # u8 [image, *space]
    images: Tensor  # f32 [image, channel, *space]

    @property
    def logits(self) -> Tensor:
        """Of the main head."""
        return self.heads[0][1]


class ObjectiveKnobs(Knobs):
    """Knobs of an objective: what most objectives need, which is little.

    One fed by pairs, pool or labelled cases is called with a batch, and returns the loss to minimise and numbers
    for the history. `diagnose` gives numbers worth computing at evaluations only, `summary` those of the record.
    """

    feeds: ClassVar[Feed]
    needs_probability: ClassVar[bool] = False
    """Whether it reads the mean probability of the proposals."""

    @property
    def image_noise(self) -> float:
        """Standard deviation of the noise on the student's pool images, in units of the normalised image."""
        return 0.0

    @property
    def needs_p_correct(self) -> bool:
        """Whether it reads `e`, which takes a calibrated pair set."""
        return False

    @property
    def needs_votes(self) -> bool:
        """Whether it reads `voxel_e`."""
        return False

    @property
    def teacher_decay(self) -> float | None:
        """Decay of the moving average of the student that it reads as `teacher`, and which is then the student."""
        return None

    def bind(self, pairs: PairStatistics) -> Any:
        """The objective for a pair set."""
        return self

    def diagnose(self, batch: PoolBatch) -> HistoryRow:
        return {}

    def summary(self) -> dict[str, float | None]:
        return {}

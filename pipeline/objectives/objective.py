"""What an objective is: the main term of a student's loss, and which cases feed it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Row = dict[str, float | None]
Feed = Literal["pairs", "labelled", "truth"]
"""Pool images with mined pairs · labelled cases · labelled cases and the pool's truth (research only)."""


@dataclass(frozen=True)
class PairBatch:
    """One forward pass of pool images with all their pairs, padded to the window."""

    logits: Tensor  # [image, output, *space], with gradient
    reference: Tensor  # [image, output, *space], of the frozen base
    chosen: Tensor  # u8 [pair, *space]
    rejected: Tensor  # u8 [pair, *space]
    image: Tensor  # i64 [pair]
    voxels: Tensor  # i64 [pair], valid voxels of the pair's image


@dataclass(frozen=True)
class PairStatistics:
    """What is known of a pair set before training; `[pair]` each."""

    size: np.ndarray  # |D|
    voxels: np.ndarray  # of the pair's image
    dimensions: int


@dataclass(frozen=True)
class LabelledBatch:
    """One forward pass of labelled cases."""

    logits: Tensor
    labels: Tensor  # u8 [image, *space]


class Bound(Protocol):
    """An objective that knows its pair set."""

    def __call__(self, batch: PairBatch) -> tuple[Tensor, Row]:
        """Loss to minimise and numbers for the history."""
        ...

    def diagnose(self, batch: PairBatch) -> Row:
        """Numbers that are worth computing at evaluations only; no gradients are kept."""
        ...

    def summary(self) -> dict[str, float | None]:
        """Numbers for the student's record, such as the effective beta."""
        ...

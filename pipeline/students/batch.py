"""Batches of one training step, and statistics of the pairs before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.students.imitation import Target


@dataclass(frozen=True)
class PoolBatch:
    """One forward pass of images with all their pairs, padded to the window.

    `probability`, `teacher`, `voxel_e` and `moving` are None and `targets` is empty, unless the objective or its anchor
    asks for the part. Batches of training have `known` and `images`.
    """

    logits: Tensor  # [image, output, *space] of the policy, with gradient
    reference: Tensor  # [image, output, *space], logits of the frozen base; without values if the loss reads none
    chosen: Tensor  # u8 [pair, *space]
    rejected: Tensor  # u8 [pair, *space]
    image: Tensor  # i64 [pair], index of the pair's image in the batch
    voxels: Tensor  # i64 [pair], valid voxels of the pair's image
    known: Tensor | None = None  # bool [image, *space], False in the padding and where the label is unknown
    probability: Tensor | None = None  # f32 [image, class, *space], mean of the proposals
    teacher: Tensor | None = None  # [image, output, *space], logits of the student's moving average
    e: Tensor | None = None  # f32 [pair], 1 - p_correct, clipped; None if the pair set is not calibrated
    voxel_e: Tensor | None = None  # f32 [pair, *space], error rate of a voxel by the votes of the proposals
    targets: Mapping[Target, Tensor] = field(default_factory=dict)  # u8 [image, *space] each, masks to imitate
    classes: tuple[str, ...] = ()  # names of the classes, background first
    progress: float = 1.0  # share of the steps that are done, 0 to 1
    images: Tensor | None = None  # f32 [image, channel, *space], without noise and strong views
    moving: Tensor | None = None  # [image, output, *space], logits of a moving reference; None: pairs use `reference`


@dataclass(frozen=True)
class LabelledBatch:
    """One forward pass of labelled cases."""

    heads: Sequence[tuple[float, Tensor]]  # weight and logits of every head, the main head first
    labels: Tensor  # u8 [image, *space]
    images: Tensor  # f32 [image, channel, *space]

    @property
    def logits(self) -> Tensor:
        """Logits of the main head."""
        return self.heads[0][1]


@dataclass(frozen=True)
class PairStatistics:
    """Sizes of the pairs before training, for the match of beta across normalisers; all arrays are i64 `[pair]`."""

    size: np.ndarray  # |D|
    voxels: np.ndarray  # valid voxels of the pair's image
    dimensions: int  # spatial axes

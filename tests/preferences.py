"""Preference objectives and small batches of pairs for tests."""

from __future__ import annotations

from math import exp, log
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from pipeline.links import Link, Normaliser
from pipeline.objectives.objective import PairStatistics, PoolBatch
from pipeline.objectives.preference import Preference

LINKS = [get_args(link.model_fields["kind"].annotation)[0] for link in get_args(get_args(Link)[0])]
NORMALISERS = get_args(Normaliser)


def statistics(*size: int, voxels: int = 1000, dimensions: int = 2) -> PairStatistics:
    return PairStatistics(np.array(size, np.int64), np.full(len(size), voxels, np.int64), dimensions)


def preference(**knobs) -> Preference:
    """Validated as from `params.yaml`, where a link is a block."""
    return Preference.model_validate({"kind": "preference", **knobs})


def bars(*lengths: int, width: int = 64) -> Tensor:
    """Masks u8 `[len(lengths), width]` whose first `length` voxels are 1."""
    return (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).byte()


def batch(shift: Tensor, chosen: Tensor, rejected: Tensor, image: list[int], **more) -> PoolBatch:
    """Policy logits `shift` `[image, output, *space]` against a reference of 0."""
    voxels = torch.full((len(image),), shift[0, 0].numel())
    return PoolBatch(shift, torch.zeros_like(shift), chosen, rejected, torch.tensor(image), voxels, **more)


def softplus(h: float) -> float:
    """`-logsig(-h)`."""
    return log(1 + exp(h))

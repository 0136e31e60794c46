"""The supervised loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pipeline.schema import UNKNOWN


def dice_ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Soft Dice over foreground classes plus cross-entropy, mean over the batch.

    `logits` `[image, output, *space]`, `labels` u8 `[image, *space]`; voxels of 255 count in neither term. A class
    that is absent from an image contributes its false positives only (smooth term 1 in both parts of the fraction).
    """
    logits = logits.float()
    known = labels != UNKNOWN
    truth = torch.where(known, labels, 0).long()
    sigmoid_head = logits.shape[1] == 1
    both = torch.cat([torch.zeros_like(logits), logits], dim=1) if sigmoid_head else logits
    log_p = torch.log_softmax(both, dim=1)
    count = known.sum().clamp(min=1)
    entropy = -(log_p.gather(1, truth[:, None])[:, 0] * known).sum() / count
    p = (log_p.exp() * known[:, None])[:, 1:]
    t = (one_hot(truth, log_p.shape[1]).movedim(-1, 1) * known[:, None])[:, 1:]
    space = tuple(range(2, p.ndim))
    dice = (2 * (p * t).sum(space) + 1) / (p.sum(space) + t.sum(space) + 1)
    return entropy + (1 - dice).mean()

"""Functions of logits: class probabilities, logits per class, most probable classes, logits with offsets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def probability(logits: Tensor) -> Tensor:
    """Class probabilities `[class, *space]` of logits `[output, *space]`. A single output is a sigmoid head."""
    if logits.shape[0] == 1:
        foreground = torch.sigmoid(logits)
        return torch.cat([1 - foreground, foreground])
    return torch.softmax(logits, dim=0)


def class_logits(logits: Tensor) -> Tensor:
    """Logits `[image, class, *space]` of a batch `[image, output, *space]`.

    A sigmoid head x becomes the logits 0 and x, whose softmax is sigmoid(x).
    """
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def predicted_classes(logits: Tensor) -> Tensor:
    """Most probable class u8 `[image, *space]` of a batch of logits `[image, output, *space]`."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).to(torch.uint8)
    return logits.max(dim=1).indices.to(torch.uint8)


def shifted(logits: Tensor, offsets: Sequence[float]) -> Tensor:
    """Logits `[output, *space]` with one offset added to each foreground class. Empty `offsets` add nothing."""
    if not offsets:
        return logits
    each = torch.tensor(offsets if logits.shape[0] == 1 else [0.0, *offsets], dtype=logits.dtype, device=logits.device)
    return logits + each.view(-1, *([1] * (logits.ndim - 1)))


def labels(probability: Tensor) -> np.ndarray:
    """Most probable class u8 `[*space]` of class probabilities or logits `[class, *space]`."""
    # max in place of argmax, which is ten times slower over the first axis.
    return probability.max(dim=0).indices.to(torch.uint8).cpu().numpy()

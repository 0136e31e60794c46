"""Logits in other forms: class probabilities, most probable classes, logits with offsets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def probability(logits: Tensor) -> Tensor:
    """Class probabilities `[class, *space]` of logits `[output, *space]`; one output is a sigmoid head."""
    if logits.shape[0] == 1:
        foreground = torch.sigmoid(logits)
        return torch.cat([1 - foreground, foreground])
    return torch.softmax(logits, dim=0)


def predicted_classes(logits: Tensor) -> Tensor:
    """Most probable class u8 `[image, *space]` of a batch of logits `[image, output, *space]`."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).to(torch.uint8)
    return logits.max(dim=1).indices.to(torch.uint8)


def shifted(logits: Tensor, offsets: Sequence[float]) -> Tensor:
    """Logits `[output, *space]` with these added to the foreground classes; none added where there are no offsets."""
    if not offsets:
        return logits
    each = torch.tensor(offsets if logits.shape[0] == 1 else [0.0, *offsets], dtype=logits.dtype, device=logits.device)
    return logits + each.view(-1, *([1] * (logits.ndim - 1)))


def labels(probability: Tensor) -> np.ndarray:
    """Most probable class u8 `[*space]` of class probabilities or logits `[class, *space]`."""
    # Not argmax, which is ten times slower over the first axis.
    return probability.max(dim=0).indices.to(torch.uint8).cpu().numpy()

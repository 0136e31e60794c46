"""Losses without pairs: against labels, against soft targets, and against the prediction of another model."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

import torch
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

from pipeline.segmenter.logits import class_logits
from pipeline.store.schema import UNKNOWN


def dice_ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Soft Dice loss over foreground classes plus cross-entropy in nats.

    `logits` `[image, output, *space]`, `labels` u8 `[image, *space]`. Voxels of 255 count in neither term. The Dice
    loss is 1 - (2 sum(p t) + 1) / (sum p + sum t + 1), mean over images and foreground classes. A class that is absent
    from an image contributes false positives only. Cross-entropy is the mean over the known voxels of the batch.
    """
    logits = logits.float()
    known = labels != UNKNOWN
    truth = torch.where(known, labels, 0).long()
    log_p = log_probability(logits)
    count = known.sum().clamp(min=1)
    entropy = -(log_p.gather(1, truth[:, None])[:, 0] * known).sum() / count
    p = (log_p.exp() * known[:, None])[:, 1:]
    t = (one_hot(truth, log_p.shape[1]).movedim(-1, 1) * known[:, None])[:, 1:]
    space = tuple(range(2, p.ndim))
    dice = (2 * (p * t).sum(space) + 1) / (p.sum(space) + t.sum(space) + 1)
    return entropy + (1 - dice).mean()


def deep_dice_ce(heads: Sequence[tuple[float, Tensor]], labels: Tensor) -> Tensor:
    """Weighted sum of `dice_ce` over heads `(weight, logits)`.

    Labels u8 `[image, *space]` are resized to each head by nearest neighbour, as in nnU-Net.
    """
    losses = [weight * dice_ce(logits, _resized(labels, logits.shape[2:])) for weight, logits in heads]
    return torch.stack(losses).sum()


def _resized(labels: Tensor, space: Sequence[int]) -> Tensor:
    if labels.shape[1:] == tuple(space):
        return labels
    return interpolate(labels[:, None].float(), tuple(space), mode="nearest-exact")[:, 0].to(labels.dtype)


def soft_cross_entropy(logits: Tensor, probability: Tensor, known: Tensor) -> Tensor:
    """Cross-entropy with class probabilities as target, mean over known voxels, in nats.

    `logits` `[image, output, *space]`, `probability` `[image, class, *space]`, `known` bool `[image, *space]`.
    Probabilities are stored in steps of 1/255 and may not add up to 1, so targets are scaled to a sum of 1. The loss is
    0 without known voxels.
    """
    target = probability / probability.sum(1, keepdim=True).clamp(min=1e-6)
    entropy = -(target * log_probability(logits)).sum(1)
    return (entropy * known).sum() / known.sum().clamp(min=1)


def consistency(logits: Tensor, teacher: Tensor, known: Tensor) -> Tensor:
    """Squared difference of two models' class probabilities, summed over classes, mean over known voxels.

    Both logits `[image, output, *space]`, `known` bool `[image, *space]`. The loss is 0 without known voxels (Tarvainen
    & Valpola 2017).
    """
    difference = (log_probability(logits).exp() - log_probability(teacher).exp()).square().sum(1)
    return (difference * known).sum() / known.sum().clamp(min=1)


def ramp_up(progress: float, length: float = 0.4) -> float:
    """Weight `exp(-5 (1 - t)^2)`, t = min(1, progress / length), which rises from e^-5 to 1 (Laine & Aila 2017).

    `progress` and `length` are shares of the steps.
    """
    return exp(-5 * (1 - min(1.0, progress / length)) ** 2)


def log_probability(logits: Tensor) -> Tensor:
    """Log class probabilities f32 `[image, class, *space]`. A single output is a sigmoid head."""
    logits = logits.float()
    return torch.log_softmax(class_logits(logits), dim=1)

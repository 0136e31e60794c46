"""Preference losses: link x normaliser over pairs of masks of one image.

A segmenter factorises over voxels, so the partition terms cancel in the difference of two masks of one image
(Kalisch et al., arXiv 2601.23222, build on this):

    binary:   delta = sum_{i in D} (w_i - l_i) (z_i - r_i)
    softmax:  delta = sum_{i in D} [(z_{i,w_i} - z_{i,l_i}) - (r_{i,w_i} - r_{i,l_i})]
    h = beta * delta / N(D),  loss = link(h)

with policy logits z, reference logits r, chosen mask w, rejected mask l, and disagreement region D = {i: w_i != l_i}.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.links import Normaliser
from pipeline.schema import UNKNOWN


@dataclass(frozen=True)
class Margins:
    """What a pair's loss is made of; every field is `[pair]`."""

    delta: Tensor  # difference of the log-ratios of chosen and rejected mask
    size: Tensor  # |D| in voxels
    image: Tensor  # image of the pair in the batch


def disagreement_region(chosen: Tensor, rejected: Tensor) -> Tensor:
    """bool `[pair, *space]`: where two masks differ; voxels that are 255 in either are outside."""
    return (chosen != rejected) & (chosen != UNKNOWN) & (rejected != UNKNOWN)


def signed_regions(chosen: Tensor, rejected: Tensor, outputs: int) -> Tensor:
    """f32 `[pair, output * voxels]` of {-1, 0, 1}: +1 where a logit counts for chosen, -1 where for rejected.

    Constant during training; `margins` multiplies it with the logits.
    """
    region = disagreement_region(chosen, rejected)
    classes = torch.ones(1, dtype=torch.uint8) if outputs == 1 else torch.arange(outputs, dtype=torch.uint8)
    classes = classes.to(chosen.device).view(1, -1, *([1] * (chosen.ndim - 1)))
    signed = (chosen[:, None] == classes).float() - (rejected[:, None] == classes).float()
    return (signed * region[:, None]).flatten(1)


def margins(logits: Tensor, reference: Tensor, chosen: Tensor, rejected: Tensor, image: Tensor) -> Margins:
    """Delta and |D| of all pairs from one forward pass of their images.

    `logits`, `reference` `[image, output, *space]` of any float type (they are compared in float32), `chosen`,
    `rejected` u8 `[pair, *space]`, `image` i64 `[pair]`, sorted or not. One output channel is a binary head.
    """
    outputs = logits.shape[1]
    shift = (logits.float() - reference.float()).flatten(1)
    signed = signed_regions(chosen, rejected, outputs)
    size = disagreement_region(chosen, rejected).flatten(1).sum(1)
    delta = torch.zeros(len(image), device=logits.device)
    for index in range(len(logits)):
        mine = (image == index).nonzero()[:, 0]
        if len(mine):
            # A matrix product over the image's pairs: no copy of the logits per pair.
            delta = delta.index_put((mine,), signed[mine] @ shift[index])
    return Margins(delta, size, image)


# ---- normalisers -----------------------------------------------------------------------------------------------


def normaliser_value(kind: Normaliser, size: Tensor, floor: int, voxels: Tensor | int) -> Tensor:
    """N(D) f32 `[pair]` for |D| `[pair]`; `voxels` is the number of valid voxels of each pair's image."""
    if kind == "none":
        return torch.ones_like(size, dtype=torch.float32)
    if kind == "image":
        return torch.as_tensor(voxels, dtype=torch.float32, device=size.device).expand(size.shape)
    floored = size.clamp(min=floor).float()
    return floored if kind == "region" else floored.sqrt()


def reduce_pairs(loss: Tensor, size: Tensor, logits: Tensor) -> Tensor:
    """Mean over the pairs that disagree somewhere; a zero that keeps the graph where none does."""
    alive = size > 0
    if not alive.any():
        return 0 * logits.float().sum()
    return loss[alive].mean()


def restricted_rewards(logits: Tensor, reference: Tensor, chosen: Tensor, rejected: Tensor, image: Tensor) -> Tensor:
    """Log-ratios policy / reference of chosen and rejected, summed over D: f32 `[2, pair]`; row 0 - row 1 = delta."""
    if logits.shape[1] == 1:
        logits, reference = (torch.cat([torch.zeros_like(x), x], dim=1) for x in (logits, reference))
    ratio = torch.log_softmax(logits.float(), dim=1) - torch.log_softmax(reference.float(), dim=1)
    region = disagreement_region(chosen, rejected)
    rows = []
    for mask in (chosen, rejected):
        classes = torch.where(region, mask, 0).long()[:, None]
        rows.append((ratio[image].gather(1, classes)[:, 0] * region).flatten(1).sum(1))
    return torch.stack(rows)


def kl_to_reference(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(policy || reference) per voxel f32 `[image, *space]`, in nats."""
    if logits.shape[1] == 1:
        logits, reference = (torch.cat([torch.zeros_like(x), x], dim=1) for x in (logits, reference))
    p, q = torch.log_softmax(logits.float(), dim=1), torch.log_softmax(reference.float(), dim=1)
    return (p.exp() * (p - q)).sum(1)

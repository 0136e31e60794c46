"""Preference loss of pairs of masks of one image, from logits to one number.

A segmenter factorises over voxels, so the partition terms cancel in the difference of two masks of one image
(Kalisch et al., arXiv 2601.23222, build on this):

    binary:   delta = sum_{i in D} (w_i - l_i) (z_i - r_i)
    softmax:  delta = sum_{i in D} [(z_{i,w_i} - z_{i,l_i}) - (r_{i,w_i} - r_{i,l_i})]
    h = beta * delta / N(D),  loss = link(h)

z are the logits of the policy, r those of the reference, w is the chosen mask, l the rejected mask, and
D = {i: w_i != l_i} is the disagreement region. N(D) = 1 is DPO, N(D) = |D| is RN-DPO. The link of both is -logsig(h).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.store.schema import UNKNOWN

if TYPE_CHECKING:
    from pipeline.students.links.link import LossOfMargin
    from pipeline.students.objectives.preference import Normaliser


@dataclass(frozen=True)
class Terms:
    """The voxels of all disagreement regions of a batch, pair after pair; a pair's shifts add up to its delta."""

    shift: Tensor  # f32 [voxel], logits moved towards chosen since the reference
    place: Tensor  # i64 [voxel], index into a flattened [pair, *space]
    part: Tensor  # u8 [voxel], foreground class from 0: of chosen, or of rejected where chosen is background
    sizes: Tensor  # i64 [pair, foreground class], voxels of each part of D

    @property
    def size(self) -> Tensor:
        """|D| i64 `[pair]`."""
        return self.sizes.sum(1)

    def total(self, values: Tensor) -> Tensor:
        """Sum of `[voxel]` over the D of each pair: `[pair]`, 0 where D is empty."""
        if not len(self.size):
            return values.new_zeros(0)
        # Pieces and not `index_add`, whose order of summation is not fixed on a GPU.
        return torch.stack([piece.sum() for piece in values.split(self.size.tolist())])

    def total_by_part(self, values: Tensor) -> Tensor:
        """Sum of `[voxel]` over each part of D: `[pair, foreground class]`."""
        classes = range(self.sizes.shape[1])
        return torch.stack([self.total(torch.where(self.part == one, values, 0)) for one in classes], dim=1)


def disagreement_region(chosen: Tensor, rejected: Tensor) -> Tensor:
    """bool `[pair, *space]`: where two masks differ; voxels that are 255 in either are outside."""
    return (chosen != rejected) & (chosen != UNKNOWN) & (rejected != UNKNOWN)


def pair_terms(logits: Tensor, reference: Tensor, chosen: Tensor, rejected: Tensor, image: Tensor) -> Terms:
    """The terms of delta of all pairs from one forward pass of their images; work and memory grow with |D|.

    `logits`, `reference` `[image, output, *space]` of any float type (they are compared in float32), `chosen`,
    `rejected` u8 `[pair, *space]`, `image` i64 `[pair]`, sorted or not. One output channel is a binary head.
    """
    outputs, voxels, pairs = logits.shape[1], logits[0, 0].numel(), len(image)
    region = disagreement_region(chosen, rejected).flatten(1)
    size, numbers = region.sum(1), torch.arange(pairs, device=image.device)
    place = region.flatten().nonzero()[:, 0]
    w, x = chosen.flatten()[place], rejected.flatten()[place]
    part = torch.where(w > 0, w, x) - 1
    classes = max(1, outputs - 1)
    cell = (numbers * classes).repeat_interleave(size) + part
    sizes = torch.bincount(cell, minlength=pairs * classes).view(pairs, classes)
    # Index of output 0 of each voxel in the flattened logits.
    first = place + ((image * outputs - numbers) * voxels).repeat_interleave(size)
    # Gradients of several pairs meet in one voxel, so the logits are float32 before they are picked.
    moved = (logits.float() - reference.float()).flatten()
    if outputs == 1:
        shift = moved[first] * (w.float() - x.float())
    else:
        shift = moved[first.add(w.long(), alpha=voxels)] - moved[first.add(x.long(), alpha=voxels)]
    return Terms(shift, place, part, sizes)


def normaliser_value(kind: Normaliser, size: Tensor, floor: int, voxels: Tensor | int) -> Tensor:
    """N(D) f32 `[pair]` for |D| `[pair]`; `voxels` is the number of valid voxels of each pair's image."""
    if kind == "none":
        return torch.ones_like(size, dtype=torch.float32)
    if kind == "image":
        return torch.as_tensor(voxels, dtype=torch.float32, device=size.device).expand(size.shape)
    floored = size.clamp(min=floor).float()
    return floored.sqrt() if kind == "sqrt_region" else floored


def pair_losses(terms: Terms, n: Tensor, beta: float, link: LossOfMargin, e: Tensor | None = None) -> Tensor:
    """Loss f32 `[pair]` of N(D) f32 `[pair]`; without meaning where D is empty. `e` is the error rate `[pair]`."""
    shift = terms.total(terms.shift) / n  # delta / N(D), the mean logit shift on D where N(D) = |D|
    return link(beta * shift, shift, e)  # link(h) with h = beta * delta / N(D)


def part_losses(terms: Terms, n: Tensor, beta: float, link: LossOfMargin, e: Tensor | None = None) -> Tensor:
    """Loss f32 `[pair]`, the mean over the foreground classes in D: each part of D has its own N, and its own link.

    `n` is f32 `[pair, foreground class]`, `e` is `[pair]`. Without meaning where D is empty.
    """
    shift = terms.total_by_part(terms.shift) / n
    there = terms.sizes > 0
    losses = link(beta * shift, shift, None if e is None else e[:, None])
    return (losses * there).sum(1) / there.sum(1).clamp(min=1)


def voxel_losses(terms: Terms, n: Tensor, beta: float, link: LossOfMargin, voxel_e: Tensor | None = None) -> Tensor:
    """Loss f32 `[pair]`: the sum over D of link(beta * shift of the voxel), divided by N(D) f32 `[pair]`.

    `voxel_e` is the error rate f32 `[pair, *space]`.
    """
    e = None if voxel_e is None else voxel_e.flatten()[terms.place]
    return terms.total(link(beta * terms.shift, terms.shift, e)) / n


def reduce_pairs(loss: Tensor, size: Tensor, logits: Tensor, dr: float | None = None) -> Tensor:
    """Mean over the pairs that disagree somewhere; a zero that keeps the graph where none does.

    With `dr` = b it is `-b log mean exp(-loss / b)` (Dr. DPO, Wu et al. 2024): pairs of large loss count less,
    down to the least loss alone for b near 0, and the plain mean for b without end.
    """
    alive = size > 0
    if not alive.any():
        return 0 * logits.float().sum()
    if dr is None:
        return loss[alive].mean()
    return -dr * (torch.logsumexp(-loss[alive] / dr, 0) - log(int(alive.sum())))


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

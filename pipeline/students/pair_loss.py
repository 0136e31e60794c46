"""Preference loss of pairs of masks of one image, from logits to one number.

RN-DPO divides the preference update by the size of the disagreement region (Kalisch et al. 2026, arXiv 2601.23222). The
equations are DPO (Rafailov et al. 2023, eq. 7) for a segmenter. A segmenter factorises over voxels, so the partition
terms cancel in the difference of two masks of one image:

    binary:   delta = sum_{i in D} (w_i - l_i) (z_i - r_i)
    softmax:  delta = sum_{i in D} [(z_{i,w_i} - z_{i,l_i}) - (r_{i,w_i} - r_{i,l_i})]
    h = beta * delta / N(D),  loss = link(h)

z are the logits of the policy, r are the logits of the reference, w is the chosen mask, l is the rejected mask, and
D = {i: w_i != l_i} is the disagreement region. N(D) = 1 is DPO, N(D) = |D| is RN-DPO. The link of both is -logsig(h),
in `links/sigmoid.py`.

Order of the steps: `pair_terms` (delta, voxel by voxel), `normaliser_value` (N), `pair_losses` (h and the link),
`reduce_pairs` (one number).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.segmenter.logits import class_logits
from pipeline.store.schema import UNKNOWN

if TYPE_CHECKING:
    from pipeline.students.links.link import LossOfMargin
    from pipeline.students.objectives.preference import Normaliser


@dataclass(frozen=True)
class Terms:
    """Terms of delta, one per voxel of every disagreement region of a batch, pair after pair.

    D has one part per foreground class. A voxel belongs to the class of chosen, or to the class of rejected where
    chosen is background.
    """

    shift: Tensor  # f32 [voxel], term of delta: move of the logits towards chosen since the reference
    place: Tensor  # i64 [voxel], index into a flattened [pair, *space]
    part: Tensor  # u8 [voxel], foreground class of the voxel, from 0
    sizes: Tensor  # i64 [pair, foreground class], voxels of each part of D

    @property
    def size(self) -> Tensor:
        """|D| i64 `[pair]`: the sum of `sizes` over the parts of D."""
        return self.sizes.sum(1)

    def total(self, values: Tensor) -> Tensor:
        """Sum of `[voxel]` over the D of each pair: `[pair]`, 0 if D is empty. `total(shift)` is delta."""
        if not len(self.size):
            return values.new_zeros(0)
        # `index_add` would sum in an order that is not fixed on a GPU.
        return torch.stack([piece.sum() for piece in values.split(self.size.tolist())])

    def total_by_part(self, values: Tensor) -> Tensor:
        """Sum of `[voxel]` over each part of D: `[pair, foreground class]`."""
        classes = range(self.sizes.shape[1])
        return torch.stack([self.total(torch.where(self.part == one, values, 0)) for one in classes], dim=1)


def disagreement_region(chosen: Tensor, rejected: Tensor) -> Tensor:
    """D as bool `[pair, *space]`: voxels on which two masks differ. Voxels that are 255 in either mask are outside."""
    return (chosen != rejected) & (chosen != UNKNOWN) & (rejected != UNKNOWN)


def pair_terms(logits: Tensor, reference: Tensor, chosen: Tensor, rejected: Tensor, image: Tensor) -> Terms:
    """The terms of delta of all pairs, from one forward pass of the images.

    The difference of the logits is as large as the images. The terms are as many as the voxels of D.
    `logits` and `reference` are `[image, output, *space]` of any float type and are subtracted in float32. One output
    is a binary head. `chosen` and `rejected` are u8 `[pair, *space]`. `image` i64 `[pair]` is the index of the pair's
    image, in any order.
    """
    outputs, voxels, pairs = logits.shape[1], logits[0, 0].numel(), len(image)
    region = disagreement_region(chosen, rejected).flatten(1)
    size, numbers = region.sum(1), torch.arange(pairs, device=image.device)
    # Masks that agree on a voxel cancel there, so only voxels of D are gathered.
    # `nonzero` gives the voxels pair after pair, on which `repeat_interleave` and `Terms.total` rely.
    place = region.flatten().nonzero()[:, 0]
    # x is l of the equations, the rejected class.
    w, x = chosen.flatten()[place], rejected.flatten()[place]
    part = torch.where(w > 0, w, x) - 1
    classes = max(1, outputs - 1)
    # A pair has one cell per class, so that one count serves all pairs.
    cell = (numbers * classes).repeat_interleave(size) + part
    sizes = torch.bincount(cell, minlength=pairs * classes).view(pairs, classes)
    # Index of output 0 in the flattened logits: image * outputs * voxels + voxel, where voxel = place - pair * voxels.
    first = place + ((image * outputs - numbers) * voxels).repeat_interleave(size)
    # Float32 before the pick: bf16 rounds small shifts to 0.
    # The gradients of several pairs add up in one voxel. The sum is in float32.
    moved = (logits.float() - reference.float()).flatten()
    if outputs == 1:
        shift = moved[first] * (w.float() - x.float())  # (w_i - l_i) (z_i - r_i)
    else:
        # (z_{i,w_i} - r_{i,w_i}) - (z_{i,l_i} - r_{i,l_i})
        shift = moved[first.add(w.long(), alpha=voxels)] - moved[first.add(x.long(), alpha=voxels)]
    return Terms(shift, place, part, sizes)


def normaliser_value(kind: Normaliser, size: Tensor, floor: int, voxels: Tensor | int) -> Tensor:
    """N(D) f32 of the shape of `size`, which is |D| of pairs or of the parts of D.

    `floor` is the smallest |D| to divide by, in voxels. `voxels` is the number of valid voxels of each pair's image.
    Kind `voxel` divides by the N of `region`.
    """
    if kind == "none":
        return torch.ones_like(size, dtype=torch.float32)  # DPO (Rafailov et al. 2023): N(D) = 1
    if kind == "image":
        # An ablation: if all images have one size, only beta is rescaled.
        # `expand` fits `[pair]` alone. Parts of D need kind `region`, which `PairObjective` checks.
        return torch.as_tensor(voxels, dtype=torch.float32, device=size.device).expand(size.shape)
    # A floor, because a D of a few voxels would be pushed as much as a missed organ.
    floored = size.clamp(min=floor).float()
    # RN-DPO (Kalisch et al. 2026): N(D) = |D|. Above the floor, pairs of equal h push with equal L1 norm.
    # The root: with equal L2 norm.
    return floored.sqrt() if kind == "sqrt_region" else floored


def pair_losses(terms: Terms, n: Tensor, beta: float, link: LossOfMargin, e: Tensor | None = None) -> Tensor:
    """Loss f32 `[pair]`: link(h) with h = beta * delta / N(D); without meaning if D is empty.

    `n` is N(D) times the factor that matches beta, f32 `[pair]`. `e` is the error rate f32 `[pair]`, for links that
    read an error rate.
    """
    # A link gets h and the shift, because IPO has its target in units of the shift.
    shift = terms.total(terms.shift) / n  # delta / N(D), the mean logit shift on D if N(D) = |D|
    return link(beta * shift, shift, e)  # link(h); RN-DPO: -logsig(beta * delta / |D|)


def part_losses(terms: Terms, n: Tensor, beta: float, link: LossOfMargin, e: Tensor | None = None) -> Tensor:
    """Loss f32 `[pair]`: the mean of link(beta * delta / N) over the parts of D; 0 if D is empty.

    Every part has a delta and an N of its own. `n` is N times the factor that matches beta, f32 `[pair, foreground
    class]`. `e` is the error rate f32 `[pair]`.
    """
    shift = terms.total_by_part(terms.shift) / n
    there = terms.sizes > 0
    losses = link(beta * shift, shift, None if e is None else e[:, None])
    # A part without voxels does not count: link(0) is not 0.
    return (losses * there).sum(1) / there.sum(1).clamp(min=1)


def voxel_losses(terms: Terms, n: Tensor, beta: float, link: LossOfMargin, voxel_e: Tensor | None = None) -> Tensor:
    """Loss f32 `[pair]`: the sum over D of link(beta * shift of the voxel), divided by N(D); 0 if D is empty.

    The link is inside the sum, so a large shift on one voxel cannot make up for a small shift on another voxel. `n` is
    N(D) f32 `[pair]`. `voxel_e` is the error rate f32 `[pair, *space]`.
    """
    e = None if voxel_e is None else voxel_e.flatten()[terms.place]
    return terms.total(link(beta * terms.shift, terms.shift, e)) / n


def reduce_pairs(loss: Tensor, size: Tensor, logits: Tensor, dr: float | None = None) -> Tensor:
    """Mean loss of the pairs whose D is not empty; 0 if every D is empty.

    With `dr` = b the result is `-b log mean exp(-loss / b)` (Dr. DPO, Wu et al. 2024): pairs of large loss count less.
    For b near 0 the least loss alone counts, and for large b the result nears the mean.
    """
    alive = size > 0
    if not alive.any():
        # A zero that depends on the logits, because the optimiser asks for a gradient.
        return 0 * logits.float().sum()
    if dr is None:
        return loss[alive].mean()
    return -dr * (torch.logsumexp(-loss[alive] / dr, 0) - log(int(alive.sum())))


def restricted_rewards(logits: Tensor, reference: Tensor, chosen: Tensor, rejected: Tensor, image: Tensor) -> Tensor:
    """Log-ratios policy / reference of chosen (row 0) and rejected (row 1), summed over D: f32 `[2, pair]`.

    Row 0 minus row 1 is delta. The arguments have the shapes of `pair_terms`.
    """
    logits, reference = class_logits(logits), class_logits(reference)
    ratio = torch.log_softmax(logits.float(), dim=1) - torch.log_softmax(reference.float(), dim=1)
    region = disagreement_region(chosen, rejected)
    rows = []
    for mask in (chosen, rejected):
        classes = torch.where(region, mask, 0).long()[:, None]
        # Summed over D alone: over a whole image, equal sums outside D would swallow a small delta in rounding.
        rows.append((ratio[image].gather(1, classes)[:, 0] * region).flatten(1).sum(1))
    return torch.stack(rows)


def kl_to_reference(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(policy || reference) of the class probabilities, per voxel: f32 `[image, *space]`, in nats."""
    logits, reference = class_logits(logits), class_logits(reference)
    p, q = torch.log_softmax(logits.float(), dim=1), torch.log_softmax(reference.float(), dim=1)
    return (p.exp() * (p - q)).sum(1)

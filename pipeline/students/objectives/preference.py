"""Preference objectives: any link with any normaliser. DPO and RN-DPO are two settings of the same objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pipeline.students.links import Link
from pipeline.students.links.ipo import IPO
from pipeline.students.links.noisy import NoisyLink
from pipeline.students.links.sigmoid import Sigmoid
from pipeline.students.objectives.objective import Feed, PoolObjective

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.segmenter.loop import HistoryRow
    from pipeline.students.batch import PairStatistics, PoolBatch
    from pipeline.students.pair_loss import Terms

FLOOR = {2: 16, 3: 32}
"""Voxels below which a disagreement region counts as this large, per number of spatial axes."""


Normaliser = Literal["none", "region", "sqrt_region", "image", "voxel"]
"""N(D): 1 (DPO) · max(|D|, floor) (RN-DPO) · its square root · voxels of the image (an ablation) · as `region`, but
the link goes inside: the sum over D of link(beta d_i) over max(|D|, floor), so no voxel stands in for others."""


class PairObjective(PoolObjective):
    """`link(beta * delta / N(D))` on pairs of masks (Kalisch et al., arXiv 2601.23222: N = |D|)."""

    link: Link = Sigmoid()
    """sigmoid (DPO), cdpo, robust, ipo or hinge."""
    normaliser: Normaliser = "region"
    """none (DPO), region (RN-DPO), sqrt_region, image, or voxel (the link of every voxel, then the mean over D)."""
    beta: Annotated[float, Field(gt=0)] = 3.0
    """Strength: h = beta times the mean logit shift on D, under `region`."""
    beta_unit: Literal["matched", "own"] = "matched"
    """`matched`: beta means the same for every normaliser, because N(D) is rescaled so that its mean over the pair set
    is that of `region` (for `none`: beta / mean |D|). `own`: h = beta * delta / N(D) as written."""
    floor: Annotated[int, Field(ge=1)] | None = None
    """Smallest |D| that `region`, `sqrt_region` and `voxel` divide by; null: 16 pixels in 2D, 32 voxels in 3D."""
    divide_by_beta: bool = False
    """Divide the loss by beta: at step 0 a pair pushes as much whatever beta is, and so against the anchor."""
    dr: Annotated[float, Field(gt=0)] | None = None
    """Dr. DPO (Wu et al. 2024): `-b log mean exp(-loss / b)` over the pairs of a step with b = `dr`, so that pairs of
    large loss, which may be wrong, count less; null: the mean. A step with one pair is the same for every b."""
    reference_free: bool = False
    """An ablation: reference logits count as 0, as in SimPO and CPO, so h is the student's own margin on D, is not 0
    at step 0, and `aimed_shift` is a margin."""
    per_class: bool = False
    """Split D by foreground class (that of chosen; of rejected where chosen is background): each part is divided by its
    own size, has its own link, and a pair's loss is the mean over its parts, so that a small class is not drowned.
    Needs `region`; two classes have one part, and nothing changes."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        e = self._e
        if e == "votes" and self.normaliser != "voxel":
            raise ValueError("link.e: 'votes' gives an e to every voxel, which takes normaliser 'voxel'")
        if e == "calibrated" and self.normaliser == "voxel":
            raise ValueError(
                "link.e: 'calibrated' is the error of a pair's order, not of its voxels; with normaliser 'voxel' give "
                "'votes' or a number"
            )
        if self.per_class and self.normaliser != "region":
            raise ValueError(
                f"per_class: takes normaliser 'region', not '{self.normaliser}': parts divide by their size"
            )
        if self.divide_by_beta and isinstance(self.link, IPO):
            raise ValueError("divide_by_beta: beta plays no part in link 'ipo'; set tau instead")
        return self

    @property
    def _e(self) -> float | str | None:
        return self.link.e if isinstance(self.link, NoisyLink) else None

    @property
    def needs_p_correct(self) -> bool:
        return self._e == "calibrated"

    @property
    def needs_votes(self) -> bool:
        return self._e == "votes"

    def bind(self, pairs: PairStatistics) -> BoundPreference:
        """The objective for a pair set: finds the factor that matches beta."""
        import torch

        from pipeline.students.pair_loss import normaliser_value

        floor = self.floor or FLOOR[pairs.dimensions]
        factor = 1.0
        seen = pairs.size > 0  # a crop may hold nothing of a pair; such pairs count nowhere
        if self.beta_unit == "matched" and seen.any():
            size, voxels = torch.tensor(pairs.size[seen]), torch.tensor(pairs.voxels[seen])
            own = normaliser_value(self.normaliser, size, floor, voxels)
            factor = float(normaliser_value("region", size, floor, voxels).double().mean() / own.double().mean())
        return BoundPreference(self, floor, factor, float(np.mean(pairs.size[seen])) if seen.any() else 0.0)


class Preference(PairObjective):
    """`link(beta * delta / N(D))` on the pairs of a pair set (Kalisch et al., arXiv 2601.23222: N = |D|)."""

    kind: Literal["preference"]
    feeds: ClassVar[Feed] = "pairs"


@dataclass(frozen=True)
class BoundPreference:
    """A preference objective with its floor and the factor on N(D)."""

    knobs: PairObjective
    floor: int
    factor: float
    mean_size: float

    def __call__(self, batch: PoolBatch) -> tuple[Tensor, HistoryRow]:
        """Loss, and numbers of the pairs that disagree in this batch; rewards are of whole pairs, split or not.

        Per class: `disagreement/NAME`, its voxels of D, and `push/NAME`, the L1 norm of the loss's gradient in the
        logits of these voxels, pair by pair (under a mean: the mean push of a pair; where the gradient is wanted).
        """
        from pipeline.students.pair_loss import pair_terms, reduce_pairs

        terms = pair_terms(batch.logits, self._reference(batch), batch.chosen, batch.rejected, batch.image)
        loss = reduce_pairs(self._pair_losses(terms, batch), terms.size, batch.logits, self.knobs.dr)
        if self.knobs.divide_by_beta:
            loss = loss / self.knobs.beta
        alive = terms.size > 0
        if not alive.any():
            return loss, {}
        h = self.knobs.beta * terms.total(terms.shift.detach()) / self.normaliser(terms.size, batch.voxels)
        sizes = terms.sizes[alive].float().mean(0)
        row: HistoryRow = {
            "rewards/margins": float(h[alive].mean()),
            "rewards/accuracies": float((h[alive] > 0).float().mean()),
            "disagreement": float(sizes.sum()),
        }
        if names := batch.classes[1:]:
            row |= {f"disagreement/{name}": value for name, value in zip(names, sizes.tolist(), strict=True)}
            if loss.requires_grad:
                push = self._push(loss, terms, batch)
                row |= {f"push/{name}": value for name, value in zip(names, push, strict=True)}
        return loss, row

    def _pair_losses(self, terms: Terms, batch: PoolBatch) -> Tensor:
        """Loss f32 `[pair]`, without meaning where D is empty."""
        from pipeline.students.pair_loss import pair_losses, part_losses, voxel_losses

        link, beta = self.knobs.link, self.knobs.beta
        if self.knobs.per_class:
            return part_losses(terms, self.normaliser(terms.sizes, batch.voxels), beta, link, batch.e)
        n = self.normaliser(terms.size, batch.voxels)
        if self.knobs.normaliser == "voxel":
            return voxel_losses(terms, n, beta, link, batch.voxel_e)
        return pair_losses(terms, n, beta, link, batch.e)

    @staticmethod
    def _push(loss: Tensor, terms: Terms, batch: PoolBatch) -> list[float]:
        from torch.autograd import grad

        (slope,) = grad(loss, terms.shift, retain_graph=True)
        # A voxel of D moves one logit of a binary head, and two of a softmax head.
        moved = min(2, batch.logits.shape[1])
        return (moved * terms.total_by_part(slope.abs()).sum(0)).tolist()

    def diagnose(self, batch: PoolBatch) -> HistoryRow:
        """Rewards of chosen and rejected: their log-ratios on D times beta / N, averaged over pairs that disagree."""
        from pipeline.students.pair_loss import disagreement_region, restricted_rewards

        size = disagreement_region(batch.chosen, batch.rejected).flatten(1).sum(1)
        if not size.any():
            return {}
        rewards = restricted_rewards(batch.logits, self._reference(batch), batch.chosen, batch.rejected, batch.image)
        rewards = self.knobs.beta * rewards / self.normaliser(size, batch.voxels)
        chosen, rejected = rewards[:, size > 0].mean(1).tolist()
        return {"rewards/chosen": chosen, "rewards/rejected": rejected}

    def _reference(self, batch: PoolBatch) -> Tensor:
        from torch import zeros_like

        if self.knobs.reference_free:
            return zeros_like(batch.logits)
        return batch.reference if batch.moving is None else batch.moving

    def normaliser(self, size: Tensor, voxels: Tensor) -> Tensor:
        """N(D) including the matching factor, f32 `[pair]`."""
        from pipeline.students.pair_loss import normaliser_value

        return normaliser_value(self.knobs.normaliser, size, self.floor, voxels) * self.factor

    def summary(self) -> dict[str, float | None]:
        """Beta as applied to delta / N(D), and the mean logit shift on D that the link aims at."""
        return {
            "beta_own": self.knobs.beta / self.factor,
            "mean_disagreement": self.mean_size,
            "aimed_shift": self.knobs.link.aimed_shift(self.knobs.beta),
        }

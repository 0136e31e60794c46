"""Preference objectives: any link with any normaliser; DPO and RN-DPO are two settings of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from pipeline.knobs import Knobs
from pipeline.links import Link, Normaliser, Sigmoid
from pipeline.objectives.objective import Feed, PairBatch, PairStatistics, Row

if TYPE_CHECKING:
    from torch import Tensor

FLOOR = {2: 16, 3: 32}
"""Voxels below which a disagreement region counts as this large, per number of spatial axes."""


class Preference(Knobs):
    """`link(beta * delta / N(D))` on the pairs of a pair set (Kalisch et al., arXiv 2601.23222: N = |D|)."""

    kind: Literal["preference"]
    feeds: ClassVar[Feed] = "pairs"
    link: Link = Sigmoid()
    """sigmoid (DPO), cdpo or ipo."""
    normaliser: Normaliser = "region"
    """none (DPO), region (RN-DPO), sqrt_region or image."""
    beta: Annotated[float, Field(gt=0)] = 3.0
    """Strength: h = beta times the mean logit shift on D, under `region`."""
    beta_unit: Literal["matched", "own"] = "matched"
    """`matched`: beta means the same for every normaliser, because N(D) is rescaled so that its mean over the pair set
    is that of `region` (for `none`: beta / mean |D|). `own`: h = beta * delta / N(D) as written."""
    floor: Annotated[int, Field(ge=1)] | None = None
    """Smallest |D| of `region` and `sqrt_region`; null: 16 pixels in 2D, 32 voxels in 3D."""

    def bind(self, pairs: PairStatistics) -> BoundPreference:
        """The objective for a pair set: finds the factor that matches beta."""
        import torch

        from pipeline.losses import normaliser_value

        floor = self.floor or FLOOR[pairs.dimensions]
        factor = 1.0
        seen = pairs.size > 0  # a crop may hold nothing of a pair; such pairs count nowhere
        if self.beta_unit == "matched" and seen.any():
            size, voxels = torch.tensor(pairs.size[seen]), torch.tensor(pairs.voxels[seen])
            own = normaliser_value(self.normaliser, size, floor, voxels)
            factor = float(normaliser_value("region", size, floor, voxels).double().mean() / own.double().mean())
        return BoundPreference(self, floor, factor, float(np.mean(pairs.size[seen])) if seen.any() else 0.0)


@dataclass(frozen=True)
class BoundPreference:
    """A preference objective with its floor and the factor on N(D)."""

    knobs: Preference
    floor: int
    factor: float
    mean_size: float

    def __call__(self, batch: PairBatch) -> tuple[Tensor, Row]:
        from pipeline.losses import margins, reduce_pairs

        found = margins(batch.logits, batch.reference, batch.chosen, batch.rejected, batch.image)
        n = self.normaliser(found.size, batch.voxels)
        shift = found.delta / n
        h = self.knobs.beta * shift
        loss = reduce_pairs(self.knobs.link(h, shift), found.size, batch.logits)
        alive = found.size > 0
        seen = h.detach()[alive]
        if not len(seen):
            return loss, {}
        return loss, {
            "rewards/margins": float(seen.mean()),
            "rewards/accuracies": float((seen > 0).float().mean()),
            "disagreement": float(found.size[alive].float().mean()),
        }

    def diagnose(self, batch: PairBatch) -> Row:
        """Rewards of chosen and rejected: their log-ratios on D times beta / N, averaged over pairs that disagree."""
        from pipeline.losses import disagreement_region, restricted_rewards

        size = disagreement_region(batch.chosen, batch.rejected).flatten(1).sum(1)
        if not size.any():
            return {}
        rewards = restricted_rewards(batch.logits, batch.reference, batch.chosen, batch.rejected, batch.image)
        rewards = self.knobs.beta * rewards / self.normaliser(size, batch.voxels)
        chosen, rejected = rewards[:, size > 0].mean(1).tolist()
        return {"rewards/chosen": chosen, "rewards/rejected": rejected}

    def normaliser(self, size: Tensor, voxels: Tensor) -> Tensor:
        """N(D) including the matching factor, f32 `[pair]`."""
        from pipeline.losses import normaliser_value

        return normaliser_value(self.knobs.normaliser, size, self.floor, voxels) * self.factor

    def summary(self) -> dict[str, float | None]:
        """Beta as applied to delta / N(D), and the mean logit shift on D that the link aims at."""
        return {
            "beta_own": self.knobs.beta / self.factor,
            "mean_disagreement": self.mean_size,
            "aimed_shift": self.knobs.link.aimed_shift(self.knobs.beta),
        }

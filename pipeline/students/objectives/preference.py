"""Preference objectives: any link with any normaliser. DPO and RN-DPO are two settings of the same objective.

The loss is computed in `students/pair_loss.py`. This file has the knobs, the match of beta and the numbers for the
history.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pipeline.students.links import Link
from pipeline.students.links.ipo import IPO
from pipeline.students.links.noisy import NoisyLink
from pipeline.students.links.sigmoid import Sigmoid
from pipeline.students.objectives.objective import ArmFamily, Feed, PoolObjective

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.segmenter.loop import HistoryRow
    from pipeline.students.batch import PairStatistics, PoolBatch
    from pipeline.students.pair_loss import Terms

FLOOR = {2: 16, 3: 32}
"""Default floor, by number of spatial axes: the smallest |D| that N(D) divides by, in voxels."""


Normaliser = Literal["none", "region", "sqrt_region", "image", "voxel"]
"""Kind of N(D).

- `none`: 1 (DPO).
- `region`: max(|D|, floor) (RN-DPO).
- `sqrt_region`: the square root of max(|D|, floor).
- `image`: valid voxels of the image (an ablation).
- `voxel`: max(|D|, floor), with the link inside the sum. The loss is the sum over D of link(beta d_i) divided by N(D),
  where d_i is the term of delta of a voxel. A large shift on one voxel cannot make up for a small shift on another
  voxel.
"""


class PairObjective(PoolObjective):
    """`link(beta * delta / N(D))` on pairs of masks. RN-DPO is N(D) = |D| (Kalisch et al., arXiv 2601.23222)."""

    family: ClassVar[ArmFamily] = "preference"
    link: Link = Sigmoid()
    """Loss from the margin h. `sigmoid` is the link of DPO and RN-DPO."""
    normaliser: Normaliser = "region"
    """Kind of N(D): `none` is DPO and `region` is RN-DPO. `voxel` takes the link of every voxel, then the sum over D
    divided by max(|D|, floor)."""
    beta: Annotated[float, Field(gt=0)] = 3.0
    """Strength of the preference. Under `region`, h is beta times the mean logit shift on D if |D| is at least
    the floor."""
    beta_unit: Literal["matched", "own"] = "matched"
    """`matched` multiplies N(D) by one factor, so that beta means the same for every normaliser. The factor makes the
    mean of N(D) over the pair set equal to the mean under `region`. For `none`, the factor is the mean of max(|D|,
    floor). `own` leaves h = beta * delta / N(D) without rescaling."""
    floor: Annotated[int, Field(ge=1)] | None = None
    """Smallest |D| that `region`, `sqrt_region` and `voxel` divide by. Null: 16 pixels in 2D, 32 voxels in 3D."""
    divide_by_beta: bool = False
    """Whether the loss is divided by beta.

    The push of a pair at step 0, and its weight against the anchor, then do not depend on beta.
    """
    dr: Annotated[float, Field(gt=0)] | None = None
    """Temperature b of Dr. DPO (Wu et al. 2024): the loss of a step is `-b log mean exp(-loss / b)` over its pairs.

    Pairs of large loss, which may be wrong, count less. Null: the mean. A step with one pair is the same for every b.
    """
    reference_free: bool = False
    """An ablation: reference logits count as 0, as in SimPO and CPO.

    h is then the margin of the student on D and is not 0 at step 0, and `aimed_shift` is a margin.
    """
    per_class: bool = False
    """Whether D is split by foreground class: the class of chosen, or of rejected where chosen is background.

    Each part is divided by its own size and has its own link, and the loss of a pair is the mean over its parts. A
    small class is then not drowned by a large class. Needs normaliser `region`. With two classes nothing changes,
    because D has one part.
    """

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        e = self._e
        if e == "votes" and self.normaliser != "voxel":
            raise ValueError("link.e: 'votes' gives every voxel an error rate, which needs normaliser 'voxel'")
        if e == "calibrated" and self.normaliser == "voxel":
            raise ValueError(
                "link.e: 'calibrated' is the error rate of the order of a pair, not of voxels; with normaliser 'voxel' "
                "set e to 'votes' or a number"
            )
        if self.per_class and self.normaliser != "region":
            raise ValueError(
                f"per_class: needs normaliser 'region', found '{self.normaliser}': parts are divided by their size"
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
        """The objective for a pair set, with the factor on N(D) that matches beta.

        The factor is 1 for beta_unit `own`, for the normalisers `region` and `voxel`, and if every D is empty.
        """
        import torch

        from pipeline.students.pair_loss import normaliser_value

        floor = self.floor or FLOOR[pairs.dimensions]
        factor = 1.0
        seen = pairs.size > 0  # pairs that do not differ inside their crop are ignored in training too
        if self.beta_unit == "matched" and seen.any():
            size, voxels = torch.tensor(pairs.size[seen]), torch.tensor(pairs.voxels[seen])
            own = normaliser_value(self.normaliser, size, floor, voxels)
            factor = float(normaliser_value("region", size, floor, voxels).double().mean() / own.double().mean())
        return BoundPreference(self, floor, factor, float(np.mean(pairs.size[seen])) if seen.any() else 0.0)


class Preference(PairObjective):
    """`link(beta * delta / N(D))` on a pair set. RN-DPO is N(D) = |D| (Kalisch et al., arXiv 2601.23222)."""

    kind: Literal["preference"]
    feeds: ClassVar[Feed] = "pairs"


@dataclass(frozen=True)
class BoundPreference:
    """A preference objective that is ready to train: its floor, and the factor on N(D) that matches beta."""

    knobs: PairObjective
    floor: int  # voxels
    factor: float
    mean_size: float  # mean |D| of the pairs that differ, in voxels

    def __call__(self, batch: PoolBatch) -> tuple[Tensor, HistoryRow]:
        """Loss of a batch, and numbers for the history from the pairs that differ; no numbers if no pair differs.

        Rewards are of whole pairs, also under `per_class`. `disagreement/NAME` is the mean number of voxels of the
        class in D. `push/NAME` is the sum over pairs of the L1 norm of the gradient of the step's loss in the logits of
        the voxels. If the loss is a mean over pairs, `push/NAME` is the mean push of a pair. `push/NAME` is absent if
        the loss has no gradient.
        """
        from pipeline.students.pair_loss import pair_terms, reduce_pairs

        terms = pair_terms(batch.logits, self._reference(batch), batch.chosen, batch.rejected, batch.image)
        loss = reduce_pairs(self._pair_losses(terms, batch), terms.size, batch.logits, self.knobs.dr)
        if self.knobs.divide_by_beta:
            loss = loss / self.knobs.beta
        alive = terms.size > 0
        if not alive.any():
            return loss, {}
        # h of the whole pair: the losses of `voxel` and `per_class` have other margins.
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
        """Loss f32 `[pair]`; without meaning if D is empty."""
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
        """L1 norm of the gradient of the loss in the logits, per foreground class."""
        from torch.autograd import grad

        # The graph is kept, because the training step runs through it again.
        (slope,) = grad(loss, terms.shift, retain_graph=True)
        # A voxel of D moves one logit of a binary head, and two of a softmax head.
        moved = min(2, batch.logits.shape[1])
        return (moved * terms.total_by_part(slope.abs()).sum(0)).tolist()

    def diagnose(self, batch: PoolBatch) -> HistoryRow:
        """Rewards of chosen and rejected: log-ratios on D times beta / N(D), mean over the pairs that differ."""
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
        """N(D) times the factor that matches beta, f32 of the shape of `size`."""
        from pipeline.students.pair_loss import normaliser_value

        return normaliser_value(self.knobs.normaliser, size, self.floor, voxels) * self.factor

    def summary(self) -> dict[str, float | None]:
        """Beta as applied to delta / N(D), mean |D| in voxels, and the shift that the link aims at (`aimed_shift`)."""
        return {
            "beta_own": self.knobs.beta / self.factor,
            "mean_disagreement": self.mean_size,
            "aimed_shift": self.knobs.link.aimed_shift(self.knobs.beta),
        }

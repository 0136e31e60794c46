"""Imitation on pool images: a student learns a proposal, or the mean of the proposals, as if it were the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pipeline.knobs import MEAN, Knobs

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.students.batch import PoolBatch


class Target(Knobs):
    """The masks or probabilities that a student imitates on pool images, and the loss."""

    proposal: str = MEAN
    """`mean`: the mean probability of the proposals. Any other value is the sampler and the setting of a proposal, such
    as `mean fitted` or `ensemble mean`."""
    loss: Literal["dice_ce", "cross_entropy"] = "dice_ce"
    """`dice_ce`: soft Dice loss plus cross-entropy to a mask, which for `mean` is the most probable class.
    `cross_entropy`: cross-entropy in nats, mean over voxels; for `mean` to the probabilities themselves."""
    where: Literal["everywhere", "agreement"] = "everywhere"
    """Voxels of the loss: all of them, or those on which all proposals of the image agree."""

    @property
    def soft(self) -> bool:
        """Whether the loss reads the mean probability and not a mask."""
        return self.proposal == MEAN and self.loss == "cross_entropy"


class PoolTerm(Target):
    """Imitation beside another objective, as a term of the anchor."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the term."""

    @property
    def target(self) -> Target:
        """What is imitated, without the weight."""
        return Target(proposal=self.proposal, loss=self.loss, where=self.where)


def imitation_loss(batch: PoolBatch, target: Target) -> Tensor:
    """Loss of a batch that has `batch.targets[target]` and, for a soft target, `batch.probability`.

    Voxels of 255 in the target do not count. The loss is 0 if no voxel counts.
    """
    from torch.nn.functional import one_hot

    from pipeline.segmenter.logits import class_logits
    from pipeline.segmenter.losses import dice_ce, soft_cross_entropy
    from pipeline.store.schema import UNKNOWN

    mask = batch.targets[target]
    if target.loss == "dice_ce":
        return dice_ce(batch.logits, mask)
    known = mask != UNKNOWN
    if target.soft:
        assert batch.probability is not None
        return soft_cross_entropy(batch.logits, batch.probability, known)
    classes = class_logits(batch.logits).shape[1]
    certain = one_hot(mask.where(known, 0).long(), classes).movedim(-1, 1).float()
    return soft_cross_entropy(batch.logits, certain, known)

"""The base with logit offsets tuned on validation: the cheapest way to make masks larger or smaller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.measures.intervals import mean_over_groups
from pipeline.measures.overlap import dice_to
from pipeline.students.objectives.objective import ArmFamily, Feed, ObjectiveKnobs

if TYPE_CHECKING:
    from pipeline.compute import Compute
    from pipeline.segmenter.models import Model
    from pipeline.store.cases import CaseStore
    from pipeline.students.start import Arm, Start


TURNS = 2
"""Turns over the classes: an offset of one class moves the best offset of the others a little."""


class TunedThreshold(ObjectiveKnobs):
    """The base with an offset on the logit of every foreground class, tuned by mean Dice over validation patients."""

    kind: Literal["threshold"]
    family: ClassVar[ArmFamily] = "no training"
    feeds: ClassVar[Feed] = "nothing"
    offsets: Annotated[tuple[float, ...], Field(min_length=1)] = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
    """Offsets to compare for every class, in logits; 0 is always compared too. The threshold t of a binary task is the
    offset log((1 - t) / t)."""

    def train(self, start: Start) -> Arm:
        from pipeline.students.start import Arm

        offsets, dice = self.tuned(start.data.cases, start.base, start.compute)
        return Arm.untrained(start.base.load(start.compute.device).state_dict(), dice, offsets=offsets)

    def tuned(self, cases: CaseStore, base: Model, compute: Compute) -> tuple[tuple[float, ...], float]:
        """Offset per foreground class, and mean Dice over validation patients with the offsets, on the working grid.

        Cases whose label is unknown everywhere do not count. Classes are tuned in turn, from offset 0. Only a higher
        Dice replaces the current offset of a class. Of offsets with the same highest Dice, the offset nearest to 0 is
        taken.
        """
        from pipeline.segmenter.logits import labels, probability, shifted

        validation, classes = cases.known("validation"), base.architecture.classes
        # One prediction per case serves all offsets.
        segmenter = base.segmenter(compute)
        logits = [segmenter.logits(cases.image(case)).cpu() for case in validation]
        truths = [cases.label(case) for case in validation]

        def mean_dice(offsets: Sequence[float]) -> float:
            masks = [labels(probability(shifted(each, offsets))) for each in logits]
            each = [dice_to(truth, mask[None], classes)[0] for truth, mask in zip(truths, masks, strict=True)]
            return mean_over_groups(each, [case.group for case in validation])

        # From 0 outwards: an offset further from 0 must have a higher Dice.
        tried = sorted({0.0, *self.offsets}, key=lambda offset: (abs(offset), offset))
        offsets = [0.0] * (classes - 1)
        best = mean_dice(offsets)
        for _ in range(TURNS):
            before = list(offsets)
            for label in range(classes - 1):
                for offset in tried:
                    candidate = [*offsets[:label], offset, *offsets[label + 1 :]]
                    if (dice := mean_dice(candidate)) > best:
                        best, offsets = dice, candidate
            # A turn that changes nothing would be repeated by the next turn.
            if offsets == before:
                break
        return tuple(offsets), best

"""One proposal of every case, without training: the mean of an ensemble or of flips, or the best fixed sampler."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from pipeline.errors import BadInput
from pipeline.knobs import BEST
from pipeline.measures.intervals import mean_over_groups
from pipeline.measures.overlap import dice_to
from pipeline.students.objectives.objective import ArmFamily, Feed, ObjectiveKnobs

if TYPE_CHECKING:
    from pipeline.store.proposals import Data
    from pipeline.students.start import Arm, Start


class Proposal(ObjectiveKnobs):
    """The proposal in the same slot of every test case: a judge that always takes one sampler.

    Test cases need proposals: add `test` to `propose.splits`.
    """

    kind: Literal["proposal"]
    family: ClassVar[ArmFamily] = "no training"
    feeds: ClassVar[Feed] = "nothing"
    has_weights: ClassVar[bool] = False
    pick: str = BEST
    """`best` takes the slot with the highest mean Dice over validation patients. Any other value is the sampler and the
    setting of a slot, such as `ensemble mean`."""

    def train(self, start: Start) -> Arm:
        from pipeline.students.start import Arm

        slot, title, dice = self.picked(start.data)
        return Arm.untrained(None, dice, slot=slot, proposal=title)

    def picked(self, data: Data) -> tuple[int, str, float]:
        """Slot, sampler and setting of the slot, and mean Dice of the slot over validation patients.

        Of slots with equal Dice, the first is taken. Validation cases without proposals do not count, nor do cases
        whose label is unknown everywhere. Raises `BadInput` if no validation case is left, or if no slot has the name
        in `pick`.
        """
        cases, proposals = data.cases, data.proposals
        names = proposals.names
        known = set(proposals.case_ids())
        validation = [case for case in cases.known("validation") if case.case_id in known]
        if not validation:
            raise BadInput("objective 'proposal': validation has no proposals; add 'validation' to propose.splits")
        if self.pick != BEST and self.pick not in names:
            raise BadInput(f"objective 'proposal': pick: no proposal '{self.pick}'; there are {names}")
        classes = len(cases.class_names)
        dice = np.stack([dice_to(cases.label(case), proposals.masks(case), classes) for case in validation])
        groups = [case.group for case in validation]
        means = np.array([mean_over_groups(of_slot, groups) for of_slot in dice.T])
        slot = int(means.argmax()) if self.pick == BEST else names.index(self.pick)
        return slot, names[slot], float(means[slot])

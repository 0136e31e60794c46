"""One proposal of every case as it is: ensembles, flips or the best fixed sampler, without training."""

from __future__ import annotations

from typing import ClassVar, Literal

from pipeline.students.objectives.objective import Feed, ObjectiveKnobs


class Proposal(ObjectiveKnobs):
    """Takes the same slot of every test case: always taking the ensemble's mean is a judge too.

    Test cases must be proposed for: `propose.splits` with `test`.
    """

    kind: Literal["proposal"]
    feeds: ClassVar[Feed] = "nothing"
    pick: str = "best"
    """`best`: the slot with the highest mean Dice on validation; else sampler and setting, as in `ensemble mean`."""

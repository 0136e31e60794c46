"""What links for noisy pairs share: the error rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pipeline.errors import BadInput
from pipeline.knobs import Knobs

if TYPE_CHECKING:
    from torch import Tensor


ErrorRate = Annotated[float, Field(gt=0, lt=0.5)] | Literal["calibrated", "votes"]
"""A number, or `calibrated`: 1 - p_correct of each pair, or `votes`: of each voxel, by the case's proposals."""


class NoisyLink(Knobs):
    """What links for pairs of which a share `e` is wrongly ordered have in common."""

    e: ErrorRate = 0.2
    """Assumed share of wrongly ordered pairs; `calibrated`: of each pair, from the audit; `votes` (normaliser `voxel`
    only): of each voxel of D, the rejected class's share of the proposals that vote for either class."""

    def error(self, e: Tensor | None) -> Tensor | float:
        """The knob where it is a number, else the batch's; raises `BadInput` where the batch has none."""
        if not isinstance(self.e, str):
            return self.e
        if e is None:
            found = "p_correct of its pairs is null" if self.e == "calibrated" else "its batches carry no votes"
            raise BadInput(f"link.e: '{self.e}' needs an error probability, and {found}; give e a number below 0.5")
        return e

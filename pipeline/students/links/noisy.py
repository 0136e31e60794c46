"""Base class of the links for noisy pairs, which have an error rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pipeline.errors import BadInput
from pipeline.knobs import Knobs

if TYPE_CHECKING:
    from torch import Tensor


ErrorRate = Annotated[float, Field(gt=0, lt=0.5)] | Literal["calibrated", "votes"]
"""A number above 0 and below one half, `calibrated` or `votes`; see `NoisyLink.e`."""


class NoisyLink(Knobs):
    """Base class of links for pairs of which a share `e` is ordered wrongly."""

    e: ErrorRate = 0.2
    """Error rate: the assumed share of wrongly ordered pairs, `calibrated` or `votes`.

    `calibrated` gives each pair an error rate of its own, 1 - p_correct from the audit. `votes` (normaliser `voxel`
    only) gives each voxel of D an error rate of its own: of the proposals that vote for the class of chosen or for the
    class of rejected, the share that votes for the class of rejected.
    """

    def error(self, e: Tensor | None) -> Tensor | float:
        """The knob if the knob is a number, else `e` of the batch. Raises `BadInput` if the batch has no `e`."""
        if not isinstance(self.e, str):
            return self.e
        if e is None:
            found = "p_correct of its pairs is null" if self.e == "calibrated" else "its batches carry no votes"
            raise BadInput(f"link.e: '{self.e}' needs an error probability, and {found}; give e a number below 0.5")
        return e

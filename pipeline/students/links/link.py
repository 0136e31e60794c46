"""Contract of the link family: the loss of a pair from its margin h."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class LossOfMargin(Protocol):
    """Loss from the margin h of a pair, or of a voxel under normaliser `voxel`. Low: chosen is preferred.

    `h` = beta * shift and `shift` = delta / N have one shape, and the loss has the same shape. `e` is the error rate of
    each margin, of a shape that broadcasts. Only a link whose knob `e` is not a number reads `e`.
    """

    def __call__(self, h: Tensor, shift: Tensor, e: Tensor | None = None) -> Tensor: ...

    def aimed_shift(self, beta: float) -> float | None:
        """Mean logit shift on D at which the slope is 0. None: no such shift, or another shift for every pair."""
        ...

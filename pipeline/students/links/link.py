"""Contract of the link family: the loss of a pair from its margin h."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class LossOfMargin(Protocol):
    """Loss of a pair (of a voxel, under `voxel`) from its margin; low means that chosen is preferred.

    `h` = beta * shift and `shift` = delta / N have one shape; `e` is the error probability of each, of a shape that
    broadcasts to theirs, and plays a part only in links whose own `e` is no number. Returns their shape.
    """

    def __call__(self, h: Tensor, shift: Tensor, e: Tensor | None = None) -> Tensor: ...

    def aimed_shift(self, beta: float) -> float | None:
        """Mean logit shift on D at which the slope is 0; null = unbounded, or another one for every pair."""
        ...

"""Contract of the link family: the loss of a pair from its margin h."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class LossOfMargin(Protocol):
    """Loss from the margin h of a pair, or of a voxel under normaliser `voxel`. Low: chosen is preferred.

    `shift` is delta / N, with N times the factor that matches beta. Under normaliser `voxel`, `shift` is the term of
    delta of a voxel. `h` = beta * shift and the loss have the shape of `shift`. `e` is the error rate of each margin,
    of a shape that broadcasts. Only a link whose knob `e` is not a number reads `e`.
    """

    def __call__(self, h: Tensor, shift: Tensor, e: Tensor | None = None) -> Tensor: ...

    def aimed_shift(self, beta: float) -> float | None:
        """`shift` at which the slope is 0. None: no such shift, or another shift for every pair.

        Under `region`, `shift` is the mean logit shift on D if |D| is at least the floor.
        """
        ...

"""The link of SLiC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipeline.knobs import Knobs

if TYPE_CHECKING:
    from torch import Tensor


class Hinge(Knobs):
    """`relu(1 - h)`: SLiC (Zhao et al. 2023); a slope of -1 up to h = 1 and none beyond."""

    kind: Literal["hinge"] = "hinge"

    def __call__(self, h: Tensor, shift: Tensor, e: Tensor | None = None) -> Tensor:
        return (1 - h).relu()

    def aimed_shift(self, beta: float) -> float | None:
        """1 / beta."""
        return 1 / beta

"""Link `hinge`: SLiC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipeline.knobs import Knobs

if TYPE_CHECKING:
    from torch import Tensor


class Hinge(Knobs):
    """`relu(1 - h)`: SLiC (Zhao et al. 2023). The slope is -1 below h = 1 and 0 above."""

    kind: Literal["hinge"] = "hinge"

    def __call__(self, h: Tensor, shift: Tensor, e: Tensor | None = None) -> Tensor:
        return (1 - h).relu()

    def aimed_shift(self, beta: float) -> float | None:
        """1 / beta, which is h = 1."""
        return 1 / beta

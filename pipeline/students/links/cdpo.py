"""Link `cdpo`: conservative DPO."""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING, Literal

from pipeline.students.links.noisy import NoisyLink

if TYPE_CHECKING:
    from torch import Tensor


class ConservativeDPO(NoisyLink):
    """`-(1-e) logsig(h) - e logsig(-h)`: cDPO (Mitchell 2023). The loss is least at h = log((1-e)/e)."""

    kind: Literal["cdpo"] = "cdpo"

    def __call__(self, h: Tensor, shift: Tensor, e: Tensor | None = None) -> Tensor:
        from torch.nn.functional import logsigmoid

        error = self.error(e)
        return -(1 - error) * logsigmoid(h) - error * logsigmoid(-h)

    def aimed_shift(self, beta: float) -> float | None:
        """log((1-e)/e) / beta; None if `e` is not a number."""
        return None if isinstance(self.e, str) else log((1 - self.e) / self.e) / beta

"""The link of robust DPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipeline.students.links.noisy import NoisyLink

if TYPE_CHECKING:
    from torch import Tensor


class RobustDPO(NoisyLink):
    """`[-(1-e) logsig(h) + e logsig(-h)] / (1-2e)`: rDPO (Chowdhury et al. 2024): its mean over flipped orders is
    `sigmoid` on the true ones. Falls for ever, by e / (1-2e) at least, and is unbounded below."""

    kind: Literal["robust"] = "robust"

    def __call__(self, h: Tensor, shift: Tensor, e: Tensor | None = None) -> Tensor:
        from torch.nn.functional import logsigmoid

        error = self.error(e)
        return (-(1 - error) * logsigmoid(h) + error * logsigmoid(-h)) / (1 - 2 * error)

    def aimed_shift(self, beta: float) -> float | None:
        return None

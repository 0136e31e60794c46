"""Link `robust`: robust DPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipeline.students.links.noisy import NoisyLink

if TYPE_CHECKING:
    from torch import Tensor


class RobustDPO(NoisyLink):
    """`[-(1-e) logsig(h) + e logsig(-h)] / (1-2e)`: rDPO (Chowdhury et al. 2024).

    If a share e of the orders is flipped, the mean of the loss is the loss of `sigmoid` on the true orders. The loss is
    unbounded below: the slope is at most -e / (1-2e).
    """

    kind: Literal["robust"] = "robust"

    def __call__(self, h: Tensor, shift: Tensor, e: Tensor | None = None) -> Tensor:
        from torch.nn.functional import logsigmoid

        error = self.error(e)
        return (-(1 - error) * logsigmoid(h) + error * logsigmoid(-h)) / (1 - 2 * error)

    def aimed_shift(self, beta: float) -> float | None:
        return None

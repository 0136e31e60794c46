"""Link `sigmoid`: DPO and RN-DPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipeline.knobs import Knobs

if TYPE_CHECKING:
    from torch import Tensor


class Sigmoid(Knobs):
    """`-logsig(h)` with h = beta * delta / N(D): DPO (Rafailov et al. 2023, eq. 7).

    The slope is -1/2 at h = 0 and nears 0 for large h. No finite h has the least loss.
    """

    kind: Literal["sigmoid"] = "sigmoid"

    def __call__(self, h: Tensor, shift: Tensor, e: Tensor | None = None) -> Tensor:
        from torch.nn.functional import logsigmoid

        return -logsigmoid(h)  # log(1 + e^-h), stable for every h

    def aimed_shift(self, beta: float) -> float | None:
        return None

"""The link of DPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipeline.knobs import Knobs

if TYPE_CHECKING:
    from torch import Tensor


class Sigmoid(Knobs):
    """`-logsig(h)`: DPO (Rafailov et al. 2023, eq. 7); its optimum is unbounded."""

    kind: Literal["sigmoid"] = "sigmoid"

    def __call__(self, h: Tensor, shift: Tensor, e: Tensor | None = None) -> Tensor:
        from torch.nn.functional import logsigmoid

        return -logsigmoid(h)

    def aimed_shift(self, beta: float) -> float | None:
        return None

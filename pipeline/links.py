"""The two choices that make a preference objective: a link and a normaliser."""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pipeline.knobs import Knobs

if TYPE_CHECKING:
    from torch import Tensor

Normaliser = Literal["none", "region", "sqrt_region", "image"]
"""N(D): 1 (DPO) · max(|D|, floor) (RN-DPO) · its square root · voxels of the image (an ablation)."""


class Sigmoid(Knobs):
    """`-logsig(h)`: DPO (Rafailov et al. 2023, eq. 7); its optimum is unbounded."""

    kind: Literal["sigmoid"] = "sigmoid"

    def __call__(self, h: Tensor, shift: Tensor) -> Tensor:
        from torch.nn.functional import logsigmoid

        return -logsigmoid(h)

    def aimed_shift(self, beta: float) -> float | None:
        """Mean logit shift on D at the optimum; null = unbounded."""
        return None


class ConservativeDPO(Knobs):
    """`-(1-e) logsig(h) - e logsig(-h)`: cDPO (Mitchell 2023); stops at h = log((1-e)/e)."""

    kind: Literal["cdpo"] = "cdpo"
    e: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    """Assumed share of wrongly ordered pairs."""

    def __call__(self, h: Tensor, shift: Tensor) -> Tensor:
        from torch.nn.functional import logsigmoid

        return -(1 - self.e) * logsigmoid(h) - self.e * logsigmoid(-h)

    def aimed_shift(self, beta: float) -> float | None:
        """log((1-e)/e) / beta."""
        return log((1 - self.e) / self.e) / beta


class IPO(Knobs):
    """`(delta/N - 1/(2 tau))^2`: IPO (Azar et al. 2023, eq. 17); stops at a mean logit shift of 1/(2 tau) on D."""

    kind: Literal["ipo"] = "ipo"
    tau: Annotated[float, Field(gt=0)] = 0.5
    """Regularisation; beta only scales the reported rewards."""

    def __call__(self, h: Tensor, shift: Tensor) -> Tensor:
        return (shift - 1 / (2 * self.tau)) ** 2

    def aimed_shift(self, beta: float) -> float | None:
        """1 / (2 tau)."""
        return 1 / (2 * self.tau)


Link = Annotated[Sigmoid | ConservativeDPO | IPO, Field(discriminator="kind")]
"""Takes h and delta/N, both `[pair]`, and returns the loss `[pair]`; low means that chosen is preferred."""

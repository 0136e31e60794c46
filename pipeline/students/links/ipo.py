"""Link `ipo`: IPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pipeline.knobs import Knobs

if TYPE_CHECKING:
    from torch import Tensor


class IPO(Knobs):
    """`(delta/N - 1/(2 tau))^2`: IPO (Azar et al. 2023, eq. 17).

    The loss is least at delta/N = 1/(2 tau). h plays no part.
    """

    kind: Literal["ipo"] = "ipo"
    tau: Annotated[float, Field(gt=0)] = 0.5
    """Strength of the regularisation. Beta only scales the reported rewards."""

    def __call__(self, h: Tensor, shift: Tensor, e: Tensor | None = None) -> Tensor:
        return (shift - 1 / (2 * self.tau)) ** 2

    def aimed_shift(self, beta: float) -> float | None:
        """1 / (2 tau)."""
        return 1 / (2 * self.tau)

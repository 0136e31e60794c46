"""The two choices that make a preference objective: a link and a normaliser."""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import Field

from pipeline.errors import BadInput
from pipeline.knobs import Knobs

if TYPE_CHECKING:
    from torch import Tensor

Normaliser = Literal["none", "region", "sqrt_region", "image", "voxel"]
"""N(D): 1 (DPO) · max(|D|, floor) (RN-DPO) · its square root · voxels of the image (an ablation) · as `region`, but
the link goes inside: the sum over D of link(beta d_i) over max(|D|, floor), so no voxel stands in for others."""

ErrorRate = Annotated[float, Field(gt=0, lt=0.5)] | Literal["calibrated", "votes"]
"""A number, or `calibrated`: 1 - p_correct of each pair, or `votes`: of each voxel, by the case's proposals."""


class LossOfMargin(Protocol):
    """Loss of a pair (of a voxel, under `voxel`) from its margin; low means that chosen is preferred.

    `h` = beta * shift and `shift` = delta / N have one shape; `e` is the error probability of each, of a shape that
    broadcasts to theirs, and plays a part only in links whose own `e` is no number. Returns their shape.
    """

    def __call__(self, h: Tensor, shift: Tensor, e: Tensor | None = None) -> Tensor: ...

    def aimed_shift(self, beta: float) -> float | None:
        """Mean logit shift on D at which the slope is 0; null = unbounded, or another one for every pair."""
        ...


class Sigmoid(Knobs):
    """`-logsig(h)`: DPO (Rafailov et al. 2023, eq. 7); its optimum is unbounded."""

    kind: Literal["sigmoid"] = "sigmoid"

    def __call__(self, h: Tensor, shift: Tensor, e: Tensor | None = None) -> Tensor:
        from torch.nn.functional import logsigmoid

        return -logsigmoid(h)

    def aimed_shift(self, beta: float) -> float | None:
        return None


class NoisyLink(Knobs):
    """What links for pairs of which a share `e` is wrongly ordered have in common."""

    e: ErrorRate = 0.2
    """Assumed share of wrongly ordered pairs; `calibrated`: of each pair, from the audit; `votes` (normaliser `voxel`
    only): of each voxel of D, the rejected class's share of the proposals that vote for either class."""

    def error(self, e: Tensor | None) -> Tensor | float:
        """The knob where it is a number, else the batch's; raises `BadInput` where the batch has none."""
        if not isinstance(self.e, str):
            return self.e
        if e is None:
            found = "p_correct of its pairs is null" if self.e == "calibrated" else "its batches carry no votes"
            raise BadInput(f"link.e: '{self.e}' needs an error probability, and {found}; give e a number below 0.5")
        return e


class ConservativeDPO(NoisyLink):
    """`-(1-e) logsig(h) - e logsig(-h)`: cDPO (Mitchell 2023); stops at h = log((1-e)/e)."""

    kind: Literal["cdpo"] = "cdpo"

    def __call__(self, h: Tensor, shift: Tensor, e: Tensor | None = None) -> Tensor:
        from torch.nn.functional import logsigmoid

        error = self.error(e)
        return -(1 - error) * logsigmoid(h) - error * logsigmoid(-h)

    def aimed_shift(self, beta: float) -> float | None:
        """log((1-e)/e) / beta where e is one number."""
        return None if isinstance(self.e, str) else log((1 - self.e) / self.e) / beta


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


class IPO(Knobs):
    """`(delta/N - 1/(2 tau))^2`: IPO (Azar et al. 2023, eq. 17); stops at a mean logit shift of 1/(2 tau) on D."""

    kind: Literal["ipo"] = "ipo"
    tau: Annotated[float, Field(gt=0)] = 0.5
    """Regularisation; beta only scales the reported rewards."""

    def __call__(self, h: Tensor, shift: Tensor, e: Tensor | None = None) -> Tensor:
        return (shift - 1 / (2 * self.tau)) ** 2

    def aimed_shift(self, beta: float) -> float | None:
        """1 / (2 tau)."""
        return 1 / (2 * self.tau)


class Hinge(Knobs):
    """`relu(1 - h)`: SLiC (Zhao et al. 2023); a slope of -1 up to h = 1 and none beyond."""

    kind: Literal["hinge"] = "hinge"

    def __call__(self, h: Tensor, shift: Tensor, e: Tensor | None = None) -> Tensor:
        return (1 - h).relu()

    def aimed_shift(self, beta: float) -> float | None:
        """1 / beta."""
        return 1 / beta


Link = Annotated[Sigmoid | ConservativeDPO | RobustDPO | IPO | Hinge, Field(discriminator="kind")]
"""Every member is a `LossOfMargin`."""

"""What a sampler is: it draws hard masks of one case from trained models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipeline.recipe import Compute

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Draw:
    """One proposal of one case."""

    mask: np.ndarray  # u8 [*space]
    sampler: str
    setting: str
    probability: Tensor | None = None
    """f32 `[class, *space]` if this draw is a prediction of its own, which then counts in the mean probability."""


@dataclass
class CaseModels:
    """One case with the models that may propose for it, and what was drawn so far (slot 0: the base)."""

    case_id: str
    image: np.ndarray  # f32 [channel, *space]
    base: nn.Module
    members: dict[str, nn.Module]
    window: Sequence[int]
    compute: Compute
    seed: int
    swap_labels: tuple[tuple[int, int, int], ...] = ()  # (axis, class, class) that change places in a flip
    draws: list[Draw] = field(default_factory=list)

    def predict(self, network: nn.Module, image: np.ndarray | None = None) -> Tensor:
        """Class probabilities `[class, *space]` of this case, or of a varied image of it."""
        from pipeline.segmenter import predict, probability

        return probability(predict(network, self.image if image is None else image, self.window, self.compute)).cpu()

    def predict_flipped(self, network: nn.Module, axes: Sequence[int]) -> Tensor:
        """Class probabilities `[class, *space]` of the image flipped along these axes, brought back to this case."""
        image = np.flip(self.image, tuple(axis + 1 for axis in axes))
        found = self.predict(network, image).flip([axis + 1 for axis in axes])
        order = list(range(len(found)))
        for axis, first, second in self.swap_labels:
            if axis in axes:
                order[first], order[second] = order[second], order[first]
        return found[order]

    def base_probability(self) -> Tensor:
        """Class probabilities of the base prediction."""
        found = self.draws[0].probability
        assert found is not None
        return found

    def mean_probability(self) -> Tensor:
        """Mean over the draws that are predictions of their own."""
        import torch

        found = [draw.probability for draw in self.draws if draw.probability is not None]
        return torch.stack(found).mean(0)


class Sampler(Protocol):
    """Frozen knobs with a literal `kind`; `name` is the sampler's key in `params.yaml`."""

    @property
    def kind(self) -> str:
        """Name of the kind in `params.yaml`."""
        ...

    def settings(self, members: Sequence[str]) -> list[str]:
        """What it draws, in order: the same for every case, so that every case has equally many proposals."""
        ...

    def draw(self, name: str, case: CaseModels) -> Iterator[Draw]:
        """One draw per setting."""
        ...


def drawn(name: str, setting: str, probability: Tensor, own: bool = True) -> Draw:
    """The draw of class probabilities; `own` says whether it counts in the mean probability."""
    from pipeline.segmenter import labels

    return Draw(labels(probability), name, setting, probability if own else None)

"""Networks whose answer is known, and a case for samplers to draw from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.recipe import Compute
from pipeline.samplers.sampler import CaseModels, drawn
from pipeline.seeding import numpy_generator


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def small(dimensions: int, outputs: int, seed: int = 0) -> nn.Module:
    """Two convolutions of width 3."""
    conv = nn.Conv2d if dimensions == 2 else nn.Conv3d
    return seeded(lambda: nn.Sequential(conv(1, 4, 3, padding=1), nn.ReLU(), conv(4, outputs, 3, padding=1)), seed)


class Constant(nn.Module):
    """Logits of these class probabilities at every voxel; a single number is the foreground of a sigmoid head."""

    def __init__(self, *probability: float) -> None:
        super().__init__()
        p = torch.tensor(probability)
        self.logits = torch.logit(p) if len(p) == 1 else p.log()

    def forward(self, image: Tensor) -> Tensor:
        return self.logits.view(1, -1, *([1] * (image.ndim - 2))).expand(len(image), -1, *image.shape[2:])


class Ramp(nn.Module):
    """Sigmoid head: foreground in the second half of the first spatial axis, whatever the image."""

    def forward(self, image: Tensor) -> Tensor:
        length = image.shape[2]
        ramp = torch.where(torch.arange(length) < length / 2, -1.0, 2.0)
        return ramp.view(1, 1, length, *([1] * (image.ndim - 3))).expand(len(image), 1, *image.shape[2:])


def noise(space: Sequence[int], case_id: str = "c0") -> np.ndarray:
    return numpy_generator("samplers", case_id).normal(size=(1, *space)).astype(np.float32)


def models(
    base: nn.Module, image: np.ndarray, case_id: str = "c0", members: dict[str, nn.Module] | None = None, seed: int = 0
) -> CaseModels:
    """A case whose slot 0 is drawn."""
    case = CaseModels(case_id, image, base, members or {}, image.shape[1:], Compute(), seed)
    case.draws.append(drawn("base", "base", case.predict(base)))
    return case

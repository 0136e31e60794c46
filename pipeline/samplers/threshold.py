"""Other thresholds of the base's foreground probability: nested masks that only differ in size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from pipeline.knobs import Knobs
from pipeline.samplers.sampler import CaseModels, Draw


class Threshold(Knobs):
    """Foreground where 1 - P(background) reaches the threshold; there, the most probable foreground class."""

    kind: Literal["threshold"]
    thresholds: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.2, 0.35, 0.65, 0.8)
    """0.5 is the base prediction itself in binary tasks."""

    def settings(self, members: Sequence[str]) -> list[str]:
        return [f"p>={threshold:g}" for threshold in self.thresholds]

    def draw(self, name: str, case: CaseModels) -> Iterator[Draw]:
        import torch

        probability = case.base_probability()
        foreground = 1 + probability[1:].argmax(0)
        for threshold, setting in zip(self.thresholds, self.settings(()), strict=True):
            mask = torch.where(1 - probability[0] >= threshold, foreground, 0)
            yield Draw(mask.to(torch.uint8).numpy(), name, setting)

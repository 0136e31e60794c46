"""Test-time augmentation: the base sees a flipped, turned or re-scaled image, and its answer is turned back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.samplers.sampler import CaseModels, Draw, Setup, drawn

if TYPE_CHECKING:
    from torch import Tensor


class TTA(Knobs):
    """One proposal per varied image, and one of their mean with the base."""

    kind: Literal["tta"]
    flips: tuple[tuple[int, ...], ...] = ((0,), (1,), (0, 1))
    """Sets of spatial axes flipped together; sided classes (`augmentation.swap_labels`) change places with them."""
    quarter_turns: tuple[Literal[1, 2, 3], ...] = ()
    """Rotations by 90 degrees in the plane of the last two axes."""
    intensity: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Factors on the normalised image."""
    mean: bool = True
    """Whether the mean of the base and all varied images is a proposal too."""

    def settings(self, name: str, setup: Setup) -> list[str]:
        setup.needs_base(name)
        return [
            *(f"flip={''.join(map(str, axes))}" for axes in self.flips),
            *(f"turn={turn}" for turn in self.quarter_turns),
            *(f"intensity={factor:g}" for factor in self.intensity),
            *(["mean"] if self.mean else []),
        ]

    def draw(self, name: str, case: CaseModels) -> Iterator[Draw]:
        if beyond := {axis for axes in self.flips for axis in axes if not 0 <= axis < case.image.ndim - 1}:
            raise BadInput(
                f"case '{case.case_id}': sampler '{name}' flips axes {sorted(beyond)}, the image has axes 0 to "
                f"{case.image.ndim - 2}; correct `flips`"
            )
        total, count = case.base_probability(), 1
        for setting, probability in self._varied(case):
            total, count = total + probability, count + 1
            yield drawn(name, setting, probability)
        if self.mean:
            yield drawn(name, "mean", total / count, own=False)

    def _varied(self, case: CaseModels) -> Iterator[tuple[str, Tensor]]:
        """Setting and class probabilities `[class, *space]` of each varied image, brought back to this case."""
        import torch

        base = case.segmenter
        for axes in self.flips:
            yield f"flip={''.join(map(str, axes))}", case.predict_flipped(base, axes)
        for turn in self.quarter_turns:
            image = np.rot90(case.image, turn, (-2, -1))
            # The window turns with the image: else the network would see other cuts of it than of the case.
            window = base.window if turn == 2 else (*base.window[:-2], base.window[-1], base.window[-2])
            turned = case.predict(replace(base, window=window), image)
            yield f"turn={turn}", torch.rot90(turned, -turn, (-2, -1))
        for factor in self.intensity:
            yield f"intensity={factor:g}", case.predict(base, (case.image * factor).astype(np.float32))

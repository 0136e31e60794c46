"""Sampler `threshold`: the base at other thresholds of foreground probability, and with offsets on its logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.proposals.samplers.sampler import CaseModels, Draw, Passes, Setup, drawn

if TYPE_CHECKING:
    from torch import Tensor


Offsets = Sequence[Mapping[int, float]]
"""Entries of offsets on the logits of classes, keyed by class. One proposal per entry."""


class Threshold(Knobs):
    """One proposal per threshold of the foreground probability, and one proposal per entry of logit offsets.

    With a threshold a voxel is foreground, of the most probable foreground class, if 1 - P(background) is at least the
    threshold. These proposals are nested and only differ in size. With offsets a voxel has the most probable class
    after the offsets.
    """

    kind: Literal["threshold"]
    thresholds: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.2, 0.35, 0.65, 0.8)
    """Thresholds of the foreground probability, above 0 and below 1. In binary tasks 0.5 is the base prediction
    itself."""
    offsets: tuple[dict[Annotated[int, Field(ge=0)], float], ...] = ()
    """Offset per class, e.g. `{2: 1.5}`, one proposal per entry. Offsets are added to the logits of these classes, and
    the background is class 0. An offset of log(n) makes a class n times as likely against each other class."""

    def settings(self, name: str, setup: Setup) -> list[str]:
        setup.needs_base(name)
        check_offsets(name, self.offsets, setup.classes)
        return cut_settings(self.thresholds, self.offsets)

    def forward_passes(self, name: str, setup: Setup, before: Sequence[Passes | None]) -> list[Passes | None]:
        return [before[0]] * (len(self.thresholds) + len(self.offsets))

    def draw(self, name: str, case: CaseModels) -> Iterator[Draw]:
        yield from cut(name, case.base_probability(), self.thresholds, self.offsets)


def check_offsets(name: str, offsets: Offsets, classes: int) -> None:
    """Raise `BadInput` for an entry without offsets, or with an offset of a class that does not exist."""
    for entry in offsets:
        if not entry or (beyond := [label for label in entry if label >= classes]):
            raise BadInput(
                f"propose.samplers.{name}.offsets: expected offsets of the classes 0 to {classes - 1}, found "
                f"{beyond if entry else entry}; correct the entry"
            )


def cut_settings(thresholds: Sequence[float], offsets: Offsets) -> list[str]:
    """Names of the proposals at these thresholds and offsets, in the order of `cut`."""
    return [*(f"p>={threshold:g}" for threshold in thresholds), *map(_setting, offsets)]


def cut(name: str, probability: Tensor, thresholds: Sequence[float], offsets: Offsets) -> Iterator[Draw]:
    """One draw per threshold, and one per entry of offsets, of class probabilities f32 `[class, *space]`.

    The draws do not count in the mean probability of the case.
    """
    rules = [
        *(partial(above, threshold=threshold) for threshold in thresholds),
        *(partial(with_offsets, offsets=entry) for entry in offsets),
    ]
    for setting, rule in zip(cut_settings(thresholds, offsets), rules, strict=True):
        yield drawn(name, setting, probability, False, rule)


def above(probability: Tensor, threshold: float) -> np.ndarray:
    """Label map u8 `[*space]` of class probabilities f32 `[class, *space]` at a threshold of foreground probability.

    A voxel is foreground, of the most probable foreground class, if 1 - P(background) is at least the threshold.
    """
    import torch

    foreground = 1 + probability[1:].max(0).indices
    return torch.where(1 - probability[0] >= threshold, foreground, 0).to(torch.uint8).numpy()


def with_offsets(probability: Tensor, offsets: Mapping[int, float]) -> np.ndarray:
    """Most probable class u8 `[*space]` after offsets on the logits of classes, which are keyed by class."""
    import torch

    # Log-probabilities equal logits up to a constant per voxel, also for a sigmoid head.
    logits = probability.log()
    added = torch.tensor([offsets.get(label, 0.0) for label in range(len(logits))], dtype=logits.dtype)
    return (logits + added.view(-1, *([1] * (logits.ndim - 1)))).max(0).indices.to(torch.uint8).numpy()


def _setting(offsets: Mapping[int, float]) -> str:
    """Name of the proposal with these offsets, which are keyed by class."""
    return "logit " + " ".join(f"{label}:{offset:+g}" for label, offset in sorted(offsets.items()))

"""Other thresholds of the base's foreground probability, and other weights of its classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.proposals.samplers.sampler import CaseModels, Draw, Setup


class Threshold(Knobs):
    """Foreground where 1 - P(background) reaches the threshold, of the most probable foreground class: nested masks
    that only differ in size. And the most probable class after offsets on the logits, for one class at a time."""

    kind: Literal["threshold"]
    thresholds: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.2, 0.35, 0.65, 0.8)
    """0.5 is the base prediction itself in binary tasks."""
    offsets: tuple[dict[Annotated[int, Field(ge=0)], float], ...] = ()
    """One proposal per entry, e.g. `{2: 1.5}`: this is added to the logits of these classes, background included. An
    offset of log(n) makes a class n times as likely against all others."""

    def settings(self, name: str, setup: Setup) -> list[str]:
        setup.needs_base(name)
        for offsets in self.offsets:
            if not offsets or (beyond := [label for label in offsets if label >= setup.classes]):
                raise BadInput(
                    f"propose.samplers.{name}.offsets: expected offsets of the classes 0 to {setup.classes - 1}, found "
                    f"{beyond if offsets else offsets}; correct it"
                )
        return [*(f"p>={threshold:g}" for threshold in self.thresholds), *map(_setting, self.offsets)]

    def draw(self, name: str, case: CaseModels) -> Iterator[Draw]:
        import torch

        probability = case.base_probability()
        foreground = 1 + probability[1:].max(0).indices
        for threshold in self.thresholds:
            mask = torch.where(1 - probability[0] >= threshold, foreground, 0)
            yield Draw(mask.to(torch.uint8).numpy(), name, f"p>={threshold:g}")
        if not self.offsets:
            return
        # Log-probabilities are the logits up to a constant per voxel, of a sigmoid head too.
        logits = probability.log()
        for offsets in self.offsets:
            added = torch.tensor([offsets.get(label, 0.0) for label in range(len(logits))], dtype=logits.dtype)
            mask = (logits + added.view(-1, *([1] * (logits.ndim - 1)))).max(0).indices
            yield Draw(mask.to(torch.uint8).numpy(), name, _setting(offsets))


def _setting(offsets: dict[int, float]) -> str:
    return "logit " + " ".join(f"{label}:{offset:+g}" for label, offset in sorted(offsets.items()))

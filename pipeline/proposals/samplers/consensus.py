"""Sampler `consensus`: majority vote and mean probability of the proposals of earlier samplers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.proposals.samplers.sampler import CaseModels, Draw, Passes, Setup, drawn
from pipeline.store.schema import UNKNOWN


class ConsensusSampler(Knobs):
    """Combinations of the proposals that come before this sampler. 255 where all of these proposals are unknown."""

    kind: Literal["consensus"]
    of: tuple[Literal["majority", "mean"], ...] = ("majority", "mean")
    """Combinations, one proposal each. `majority`: the most frequent class per voxel, and the lowest of several equally
    frequent classes. `mean`: the most probable class of the mean probability."""

    def settings(self, name: str, setup: Setup) -> list[str]:
        return list(self.of)

    def forward_passes(self, name: str, setup: Setup, before: Sequence[Passes | None]) -> list[Passes | None]:
        known = [passes for passes in before if passes is not None]
        # Predictions of single networks count in the mean probability. Imported masks count only without a base.
        single = [passes for passes in known if len(passes) == 1]
        all_known = len(known) == len(before)
        of: dict[str, Passes | None] = {
            "majority": frozenset().union(*known) if all_known else None,
            "mean": frozenset().union(*single) if setup.base else None,
        }
        return [of[setting] for setting in self.of]

    def draw(self, name: str, case: CaseModels) -> Iterator[Draw]:
        if not case.draws:
            raise BadInput(
                f"propose.samplers.{name}: expected proposals before this sampler, found none; list it after other "
                "samplers"
            )
        unknown = np.logical_and.reduce([draw.mask == UNKNOWN for draw in case.draws])
        for setting in self.of:
            if setting == "mean":
                draw = drawn(name, setting, case.mean_probability(), counts=False)
            else:
                mask = _majority([draw.mask for draw in case.draws], case.classes)
                # On the source's grid, the masks of the draws on that grid vote.
                voted = None if case.source_masks is None else _majority(case.source_masks, case.classes)
                draw = Draw(mask, name, setting, source_mask=voted)
            draw.mask[unknown] = UNKNOWN
            yield draw


def _majority(masks: list[np.ndarray], classes: int) -> np.ndarray:
    """Most frequent class u8 `[*space]` of masks u8 `[*space]`. 255 is no class.

    Votes are counted one class at a time, because the votes of all classes at once would be the largest array here.
    """
    best = np.zeros(masks[0].shape, np.uint8)
    most = np.zeros(masks[0].shape, np.int32)
    for label in range(classes):
        votes = np.zeros(masks[0].shape, np.int32)
        for mask in masks:
            votes += mask == label
        best[votes > most] = label
        most = np.maximum(most, votes)
    return best

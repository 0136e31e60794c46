"""What the proposals drawn so far agree on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from pipeline.knobs import Knobs
from pipeline.samplers.sampler import CaseModels, Draw, drawn


class Consensus(Knobs):
    """Combinations of the draws of the samplers listed before this one."""

    kind: Literal["consensus"]
    of: tuple[Literal["majority", "mean"], ...] = ("majority", "mean")
    """`majority`: most frequent class per voxel (the lowest class where several are); `mean`: the mean probability's
    most probable class."""

    def settings(self, members: Sequence[str]) -> list[str]:
        return list(self.of)

    def draw(self, name: str, case: CaseModels) -> Iterator[Draw]:
        masks = np.stack([draw.mask for draw in case.draws])
        mean = case.mean_probability()
        for setting in self.of:
            if setting == "mean":
                yield drawn(name, setting, mean, own=False)
            else:
                votes = np.stack([(masks == label).sum(0) for label in range(len(mean))])
                yield Draw(votes.argmax(0).astype(np.uint8), name, setting)

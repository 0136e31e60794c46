"""Other models trained on the same cases: each one's prediction, and the mean of all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.samplers.sampler import CaseModels, Draw, drawn


class Ensemble(Knobs):
    """One proposal per member of the base stage, and one of the mean of the base and all members."""

    kind: Literal["ensemble"]
    mean: bool = True
    """Whether the mean is a proposal."""

    def settings(self, members: Sequence[str]) -> list[str]:
        if not members:
            raise BadInput("propose: sampler 'ensemble' needs base.members of at least 1, found 0")
        return [*members, *(["mean"] if self.mean else [])]

    def draw(self, name: str, case: CaseModels) -> Iterator[Draw]:
        import torch

        found = [case.base_probability()]
        for member, network in case.members.items():
            found.append(case.predict(network))
            yield drawn(name, member, found[-1])
        if self.mean:
            yield drawn(name, "mean", torch.stack(found).mean(0), own=False)

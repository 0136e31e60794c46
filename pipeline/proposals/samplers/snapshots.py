"""Sampler `snapshots`: predictions of earlier checkpoints of the base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.proposals.samplers.sampler import CaseModels, Draw, Passes, Setup, drawn, pass_of


class Snapshots(Knobs):
    """One proposal per snapshot of the base (`base.snapshots`), in the order of the training steps."""

    kind: Literal["snapshots"]

    def settings(self, name: str, setup: Setup) -> list[str]:
        setup.needs_base(name)
        if not setup.snapshots:
            raise BadInput(f"propose.samplers.{name}: sampler 'snapshots' needs base.snapshots of at least 1, found 0")
        return list(setup.snapshots)

    def forward_passes(self, name: str, setup: Setup, before: Sequence[Passes | None]) -> list[Passes | None]:
        return [frozenset({pass_of(snapshot)}) for snapshot in setup.snapshots]

    def draw(self, name: str, case: CaseModels) -> Iterator[Draw]:
        for snapshot, model in case.snapshots.items():
            yield drawn(name, snapshot, case.predict(model))

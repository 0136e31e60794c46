"""Other models of the base stage: each one's prediction, and the mean of all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.samplers.sampler import CaseModels, Draw, Setup, drawn


class Ensemble(Knobs):
    """One proposal per member of the base stage (other seeds, other architectures, a mean teacher, folds), and one of
    the mean of the base and these members."""

    kind: Literal["ensemble"]
    members: tuple[str, ...] | None = None
    """Names of the members; null: all of them."""
    mean: bool = True
    """Whether the mean is a proposal."""

    def settings(self, name: str, setup: Setup) -> list[str]:
        setup.needs_base(name)
        if not setup.members:
            raise BadInput(
                f"propose.samplers.{name}: sampler 'ensemble' needs members of the base, found none; set base.members, "
                "base.others or base.mean_teacher"
            )
        chosen = self._chosen(setup.members)
        if not chosen or len(set(chosen)) < len(chosen) or set(chosen) - set(setup.members):
            raise BadInput(
                f"propose.samplers.{name}.members: expected some of {list(setup.members)}, each once, found {chosen}"
            )
        return [*chosen, *(["mean"] if self.mean else [])]

    def draw(self, name: str, case: CaseModels) -> Iterator[Draw]:
        total = case.base_probability()
        chosen = self._chosen(tuple(case.members))
        for member in chosen:
            found = case.predict(case.members[member])
            total = total + found
            yield drawn(name, member, found)
        if self.mean:
            yield drawn(name, "mean", total / (1 + len(chosen)), own=False)

    def _chosen(self, members: tuple[str, ...]) -> list[str]:
        return list(members if self.members is None else self.members)

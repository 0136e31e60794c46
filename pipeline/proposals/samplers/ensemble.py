"""Other models of the base stage: each one's prediction, and the mean of all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.proposals.samplers.sampler import CaseModels, Draw, Setup, drawn


class Ensemble(Knobs):
    """One proposal per member of the base stage (other seeds, other architectures, a mean teacher, folds), and one of
    the mean of the base and these members. Folds only where named: no out-of-fold proposal can have them."""

    kind: Literal["ensemble"]
    members: tuple[str, ...] | None = None
    """Names of the members; null: all but the folds."""
    mean: bool = True
    """Whether the mean is a proposal."""

    def settings(self, name: str, setup: Setup) -> list[str]:
        setup.needs_base(name)
        if not setup.members or (self.members is None and not self.chosen(setup.members)):
            raise BadInput(
                f"propose.samplers.{name}: sampler 'ensemble' needs members of the base, found none; set base.members, "
                "base.others or base.mean_teacher"
            )
        chosen = self.chosen(setup.members)
        if not chosen or len(set(chosen)) < len(chosen) or set(chosen) - set(setup.members):
            raise BadInput(
                f"propose.samplers.{name}.members: expected some of {list(setup.members)}, each once, found {chosen}"
            )
        return [*chosen, *(["mean"] if self.mean else [])]

    def draw(self, name: str, case: CaseModels) -> Iterator[Draw]:
        total = case.base_probability()
        chosen = self.chosen(tuple(case.members))
        for member in chosen:
            found = case.predict(case.members[member])
            total = total + found
            yield drawn(name, member, found)
        if self.mean:
            yield drawn(name, "mean", total / (1 + len(chosen)), own=False)

    def chosen(self, members: tuple[str, ...]) -> list[str]:
        """Names of the members that propose, of those that there are."""
        return [m for m in members if not m.startswith("fold_")] if self.members is None else list(self.members)

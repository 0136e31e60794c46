"""Sampler `ensemble`: predictions of the members of the base, and their mean with the base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.proposals.samplers.sampler import BASE_PASS, CaseModels, Draw, Passes, Setup, drawn, pass_of


class Ensemble(Knobs):
    """One proposal per member of the base, and one proposal of the mean over the base and these members.

    Members are models with other seeds, models of other architectures, a mean teacher, and folds. Folds propose only if
    `members` names the folds, because out-of-fold proposals cannot have folds as members.
    """

    kind: Literal["ensemble"]
    members: tuple[str, ...] | None = None
    """Names of the members that propose. Null: all members but the folds."""
    mean: bool = True
    """Whether the mean probability over the base and these members is a proposal too."""

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
            yield drawn(name, "mean", total / (1 + len(chosen)), counts=False)

    def forward_passes(self, name: str, setup: Setup, before: Sequence[Passes | None]) -> list[Passes | None]:
        members = [pass_of(member) for member in self.chosen(setup.members)]
        alone: list[Passes | None] = [frozenset({member}) for member in members]
        return [*alone, *([frozenset({BASE_PASS, *members})] if self.mean else [])]

    def chosen(self, members: tuple[str, ...]) -> list[str]:
        """Names of the members that propose: the names in the knob, or all of `members` but the folds."""
        return [m for m in members if not m.startswith("fold_")] if self.members is None else list(self.members)

"""Which cases get proposals, by which models and samplers: everything that is known before a case is drawn."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import BadInput
from pipeline.execution import Runtime
from pipeline.knobs import BEST, MEAN
from pipeline.proposals.draw_case import BASE_SAMPLER
from pipeline.proposals.fit_regions import FittedRegions, regions_to_fit
from pipeline.proposals.fit_thresholds import FittedThresholds
from pipeline.proposals.knobs import Propose
from pipeline.proposals.samplers import Sampler
from pipeline.proposals.samplers.ensemble import Ensemble
from pipeline.proposals.samplers.imported import Imported
from pipeline.proposals.samplers.mean import Mean
from pipeline.proposals.samplers.regions import RegionsSampler
from pipeline.proposals.samplers.sampler import CaseModels, Setup
from pipeline.proposals.samplers.snapshots import Snapshots
from pipeline.segmenter.augmentation import SwapLabels
from pipeline.store.arrays import Slabs
from pipeline.store.cases import Case, CaseStore
from pipeline.store.proposals import proposal_name

if TYPE_CHECKING:
    from pipeline.segmenter.models import Family

MEASURED = ("validation", "test")
"""Splits whose proposals are measured on the source's grid."""


RESERVED = {
    MEAN: "the mean probability of all proposals in `imitate`",
    BEST: "the best proposal in judge `fixed` and in objective `proposal`",
}
"""Names that no proposal may have, and what they stand for. The name of slot 0 is that of no sampler."""


def first_names(setup: Setup) -> list[str]:
    """Name of slot 0, if slot 0 is the base; else nothing, because the first imported mask is slot 0."""
    return [BASE_SAMPLER] if setup.base else []


def names_of(name: str, sampler: Sampler, setup: Setup, before: Sequence[str]) -> list[str]:
    """Names of the proposals of a sampler. `before` has the names of all earlier proposals.

    Raises `BadInput` if the sampler lacks a model, a mask or an earlier proposal, or if a name stands for something
    else already.
    """
    if name == BASE_SAMPLER:
        raise BadInput(f"propose.samplers: the name '{BASE_SAMPLER}' belongs to slot 0; choose another name")
    names = [proposal_name(name, setting) for setting in sampler.settings(name, setup)]
    if taken := sorted(RESERVED.keys() & set(names)):
        raise BadInput(
            f"propose.samplers.{name}: expected other names of proposals, found '{taken[0]}', which stands for "
            f"{RESERVED[taken[0]]}; choose another name of the sampler"
        )
    if isinstance(sampler, RegionsSampler):
        sampler.fixed_at(name, before)
    return names


def names_of_all(samplers: Mapping[str, Sampler], setup: Setup) -> list[str]:
    """Names of all proposals of a case, by slot. Raises `BadInput` as `names_of` does."""
    names = first_names(setup)
    for name, sampler in samplers.items():
        names += names_of(name, sampler, setup, names)
    return names


@dataclass(frozen=True)
class Plan:
    """Cases that get proposals, with the models and samplers that make the proposals."""

    cases: CaseStore
    proposed_for: tuple[Case, ...]
    family: Family
    families: dict[str, Family]  # by case id, for out-of-fold proposals; other cases use `family`
    knobs: Propose
    swap_labels: SwapLabels
    fitted: FittedThresholds = field(default_factory=FittedThresholds)
    regions: FittedRegions = field(default_factory=FittedRegions)

    @property
    def setup(self) -> Setup:
        return Setup(
            len(self.cases.class_names),
            self.family.base is not None,
            tuple(self.family.members),
            tuple(self.family.snapshots),
            self.proposed_for,
            self.knobs.imports,
        )

    def slots(self) -> int:
        """Number of proposals per case. Raises `BadInput` if a sampler lacks a model or a mask."""
        setup, samplers = self.setup, self.knobs.samplers
        if not setup.base and (not samplers or next(iter(samplers.values())).kind != "imported"):
            raise BadInput(
                "propose.samplers: expected a first sampler of kind 'imported', because base is null, found the kinds "
                f"{[sampler.kind for sampler in samplers.values()]}; import masks, or configure `base`"
            )
        slots = len(names_of_all(samplers, setup))
        # Out of fold, the base prediction alone is less to learn from, and no reason to stop.
        if setup.base and slots < 2 and not self.families:
            raise BadInput(
                "propose.samplers: expected at least two proposals per case, found the base prediction alone; add a "
                "sampler"
            )
        if not setup.base and slots < 2:
            raise BadInput(
                "propose.samplers: expected at least two proposals per case, found one imported mask; add a source or "
                "a sampler"
            )
        return slots

    def names_before(self, name: str, composed: bool = True) -> list[str]:
        """Names of the proposals that come before a sampler, with or without those of samplers `regions`."""
        setup = self.setup
        names = first_names(setup)
        for earlier, sampler in self.knobs.samplers.items():
            if earlier == name:
                break
            if composed or not isinstance(sampler, RegionsSampler):
                names += [proposal_name(earlier, setting) for setting in sampler.settings(earlier, setup)]
        return names

    def without_lost_regions(self) -> Plan:
        """The plan without samplers `regions` whose fixed proposal is not drawn."""
        lost = [n for n, one in regions_to_fit(self.knobs.samplers).items() if one.fixed not in self.names_before(n)]
        return self.without(lost)

    def without(self, names: Collection[str]) -> Plan:
        """The plan without the samplers of these names."""
        samplers = {name: sampler for name, sampler in self.knobs.samplers.items() if name not in names}
        return replace(self, knobs=self.knobs.model_copy(update={"samplers": samplers}))

    def voters(self, name: str) -> list[str]:
        """Names of the proposals that vote for the regions of a sampler. Composed masks do not vote."""
        return self.names_before(name, composed=False)

    @property
    def fold_of(self) -> dict[str, str]:
        """Name of the fold of every labelled case with proposals out of fold."""
        return {case_id: family.fold for case_id, family in self.families.items() if family.fold is not None}

    def on_source_grid(self, case: Case) -> bool:
        """Whether the proposals of a case are wanted on the source's grid too."""
        return case.split in MEASURED and case.resampled

    def source_space(self) -> tuple[int, ...] | None:
        """Largest source grid of the cases whose proposals are wanted on that grid. None without such a case."""
        shapes = [case.original_shape for case in self.proposed_for if self.on_source_grid(case)]
        return tuple(max(lengths) for lengths in zip(*shapes, strict=True)) if shapes else None

    def imported_files(self) -> list[Path]:
        """Files of all imported masks."""
        imported = [sampler for sampler in self.knobs.samplers.values() if isinstance(sampler, Imported)]
        return [file for sampler in imported for file in sampler.files(self.setup)]

    def with_models_in_use(self) -> Plan:
        """The plan without members and snapshots that no sampler draws from. So no unused model is loaded."""
        ensembles = [sampler for sampler in self.knobs.samplers.values() if isinstance(sampler, Ensemble | Mean)]
        by_snapshots = any(isinstance(sampler, Snapshots) for sampler in self.knobs.samplers.values())

        def used(family: Family) -> Family:
            names = {name for ensemble in ensembles for name in ensemble.chosen(tuple(family.members))}
            members = {name: model for name, model in family.members.items() if name in names}
            return replace(family, members=members, snapshots=family.snapshots if by_snapshots else {})

        families = {case_id: used(family) for case_id, family in self.families.items()}
        return replace(self, family=used(self.family), families=families)

    def models(self, case: Case, slabs: Slabs | None, runtime: Runtime) -> CaseModels:
        """The case with the models that it may be predicted by, in memory or, if large, left on disk."""
        family, compute = self.families.get(case.case_id, self.family), runtime.compute
        return CaseModels(
            case,
            self.cases.image(case) if slabs is None else self.cases.volume(case),
            len(self.cases.class_names),
            family.base.segmenter(compute) if family.base else None,
            {name: model.segmenter(compute) for name, model in family.members.items()},
            {name: model.segmenter(compute) for name, model in family.snapshots.items()},
            runtime.seed,
            self.swap_labels,
            self.knobs.imports,
            self.fitted.of(case.case_id),
            self.regions.of(case.case_id),
            source_masks=[] if self.on_source_grid(case) else None,
        )

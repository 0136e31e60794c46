"""What samplers learn from labelled cases before they draw: thresholds of means, and models of regions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl

from pipeline.execution import Limits, Runtime, Shard, run, shards_of
from pipeline.proposals.draw_case import bands, draw
from pipeline.proposals.fit_regions import (
    SEEN,
    FittedRegions,
    fit_regions,
    nothing_composed,
    regions_to_fit,
    row_of,
    whole_cases_needed,
)
from pipeline.proposals.fit_thresholds import FittedThresholds, fit_thresholds, rows_of, samplers_to_fit, write_tried
from pipeline.proposals.plan import Plan
from pipeline.proposals.samplers import Sampler
from pipeline.proposals.samplers.mean import Mean
from pipeline.proposals.samplers.regions import RegionsSampler
from pipeline.segmenter.offsets import dice_at_thresholds, overlaps_at_thresholds
from pipeline.store import schema
from pipeline.store.arrays import Slabs
from pipeline.store.cases import CaseStore
from pipeline.store.manifest import MANIFEST
from pipeline.workspace import workspace

if TYPE_CHECKING:
    from pipeline.segmenter.models import Family


class Fitted(NamedTuple):
    """What is fitted on labelled cases out of fold."""

    thresholds: FittedThresholds
    regions: FittedRegions


def fitted_thresholds(
    plan: Plan, samplers: dict[str, Sampler], of_pool: Family, base: Path, out: Path, runtime: Runtime
) -> FittedThresholds:
    """Thresholds fitted on the labelled cases of a plan out of fold; writes `thresholds.parquet` to `out`.

    `samplers` are those of the pool, whose models `of_pool` has.
    """
    means = samplers_to_fit(plan.knobs.samplers)
    if not means:
        return FittedThresholds()
    block = (means, plan.swap_labels, runtime.compute, runtime.seed)
    with workspace("fit_thresholds", __name__, block, [plan.cases.folder / MANIFEST, base / MANIFEST]) as work:
        task = _TryingThresholds(plan, means, runtime, work)
        limits = Limits(_bytes_whole(plan.cases, 1))
        tried = run(task, _known(plan), work, runtime.execution, "fit thresholds", limits)
        write_tried(tried, out, block)
    return fit_thresholds(tried, means, plan.fold_of, _lacking(plan, samplers, of_pool))


def _lacking(plan: Plan, samplers: dict[str, Sampler], of_pool: Family) -> dict[str, list[str]]:
    """Members that the folds lack, by sampler `mean` of the pool. Samplers without such a member are left out."""
    means = {name: one for name, one in samplers.items() if isinstance(one, Mean)}
    lacking = {
        name: [m for m in mean.chosen(tuple(of_pool.members)) if m not in plan.family.members]
        for name, mean in means.items()
    }
    return {name: members for name, members in lacking.items() if members}


def fitted_regions(
    plan: Plan, samplers: dict[str, Sampler], of_pool: Family, slots: int, base: Path, runtime: Runtime
) -> FittedRegions:
    """Models of regions fitted on the labelled cases of a plan out of fold.

    `samplers` are those of the pool, whose models `of_pool` has, and `slots` its number of proposals per case. Nothing
    is fitted where the pool's fixed proposal is a mean of more models than a fold has: a gain over the smaller mean is
    none over the larger one. Neither is it where cases are drawn in bands.
    """
    of_folds = regions_to_fit(plan.knobs.samplers)
    lacking = _lacking(plan, samplers, of_pool)
    smaller = {name: one for name, one in of_folds.items() if one.fixed.partition(" ")[0] in lacking}
    lost = {name: one for name, one in samplers.items() if name not in of_folds}
    no_proposal = "the models of the folds do not draw the fixed proposal, so no model is fitted"
    unfitted = dict(nothing_composed(lost, no_proposal).gains)
    for name, one in smaller.items():
        note = (
            f"the folds lack the members {lacking[one.fixed.partition(' ')[0]]} of '{one.fixed}', so a gain over this "
            f"mask cannot be measured: the mask is that of '{one.fixed}'"
        )
        unfitted |= nothing_composed({name: one}, note).gains
    plan = plan.without(smaller)
    composing = regions_to_fit(plan.knobs.samplers)
    if not composing:
        return FittedRegions(gains=unfitted)
    if large := whole_cases_needed(plan.cases, max(slots, plan.slots())):
        return FittedRegions(gains={**nothing_composed(composing, large).gains, **unfitted})
    block = (plan.knobs.samplers, plan.swap_labels, runtime.compute, runtime.seed, plan.fitted)
    with workspace("fit_regions", __name__, block, [plan.cases.folder / MANIFEST, base / MANIFEST]) as work:
        limits = Limits(_bytes_whole(plan.cases, plan.slots()))
        seen = run(_SeeingRegions(plan, runtime), _known(plan), work, runtime.execution, "fit regions", limits)
    voters = {name: plan.voters(name) for name in composing}
    found = fit_regions(seen, composing, voters, plan.fold_of, runtime.seed)
    return replace(found, gains={**found.gains, **unfitted})


def _known(plan: Plan) -> list[Shard]:
    """One shard per labelled case of the plan whose label is known somewhere."""
    known = {case.case_id for case in plan.cases.known("labelled")}
    return shards_of([case for case in plan.proposed_for if case.case_id in known], 1)


def _bytes_whole(cases: CaseStore, masks: int) -> int:
    """Bytes of a case that is drawn whole, with `masks` masks and the float32 probabilities of a few predictions."""
    return int(np.prod(cases.padded)) * (2 * masks + 24 * len(cases.class_names))


@dataclass(frozen=True)
class _TryingThresholds:
    """The task of a labelled case: its Dice at every threshold of every mean, by models that have not seen the case."""

    plan: Plan
    means: dict[str, Mean]
    runtime: Runtime
    work: Path

    def __call__(self, shard: Shard) -> pl.DataFrame:
        import torch

        # One thread for any number of workers, because the number of threads changes results in the last bits.
        torch.set_num_threads(1)
        cases, rows = self.plan.cases, []
        slabs = Slabs.of(cases.padded, len(cases.class_names))
        for case in shard.members:
            label = cases.stored_label(case)
            for name, mean in self.means.items():
                models = self.plan.models(case, slabs, self.runtime)
                counts = [
                    overlaps_at_thresholds(mean.probability(name, part), label[part.where])
                    for part in bands(models, slabs, self.work)
                ]
                rows += rows_of(case, name, dice_at_thresholds(np.sum(counts, axis=0)))
        return pl.DataFrame(rows, schema=schema.THRESHOLDS.columns)


@dataclass(frozen=True)
class _SeeingRegions:
    """The task of a labelled case: its regions with features and truth, by models that have not seen the case."""

    plan: Plan
    runtime: Runtime

    def __call__(self, shard: Shard) -> pl.DataFrame:
        import torch

        # One thread for any number of workers, because the number of threads changes results in the last bits.
        torch.set_num_threads(1)
        cases, rows = self.plan.cases, []
        classes = len(cases.class_names)
        for case in shard.members:
            models = self.plan.models(case, None, self.runtime)
            samplers: dict[str, Sampler] = {}
            for name, sampler in self.plan.knobs.samplers.items():
                if isinstance(sampler, RegionsSampler):
                    draw(models, samplers)
                    samplers = {}
                    fixed = models.draws[sampler.fixed_at(name, self.plan.names_before(name))].mask
                    seen = sampler.seen(name, models, self.plan.voters(name))
                    rows.append(row_of(case, name, cases.label(case), fixed, seen, classes))
                samplers[name] = sampler
        return pl.DataFrame(rows, schema=SEEN)

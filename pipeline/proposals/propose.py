"""Stage `propose`: several proposals per case, with mean probability and disagreement."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import polars as pl

from pipeline.errors import BadInput
from pipeline.execution import CaseFailures, Limits, Runtime, Shard, publish, run, shards_of, workspace
from pipeline.knobs import NOTHING, Knobs, Name
from pipeline.proposals.draw_case import BASE_SAMPLER, CaseArrays, bands, draw, draw_case
from pipeline.proposals.fit_regions import SEEN, FittedRegions, fit_regions, nothing_composed, regions_to_fit, row_of
from pipeline.proposals.fit_thresholds import (
    FittedThresholds,
    fit_thresholds,
    not_fitted,
    rows_of,
    samplers_to_fit,
    write_tried,
)
from pipeline.proposals.samplers import Sampler
from pipeline.proposals.samplers.ensemble import Ensemble
from pipeline.proposals.samplers.imported import Imported
from pipeline.proposals.samplers.mean import Mean
from pipeline.proposals.samplers.regions import RegionsSampler
from pipeline.proposals.samplers.sampler import CaseModels, Setup
from pipeline.proposals.samplers.snapshots import Snapshots
from pipeline.segmenter.augmentation import SwapLabels
from pipeline.segmenter.offsets import dice_at_thresholds, overlaps_at_thresholds
from pipeline.store import schema
from pipeline.store.arrays import Slabs, cases_per_shard, create_array, open_array, shard_cases
from pipeline.store.cases import Case, CaseStore
from pipeline.store.manifest import MANIFEST, check_manifest, write_manifest
from pipeline.store.proposals import proposal_name
from pipeline.store.schema import ArraySchema
from pipeline.store.tables import write_table

if TYPE_CHECKING:
    from pipeline.segmenter.models import Family


class Propose(Knobs):
    """Samplers of the proposals, and splits whose cases get proposals."""

    samplers: dict[Name, Sampler]
    """Samplers by name, in the order of the proposals. Slot 0 is always the prediction of the base segmenter. Without a
    base segmenter the first sampler must be of kind `imported`, and its first mask is slot 0."""
    splits: tuple[Literal["labelled", "pool", "validation", "test"], ...] = ("pool", "validation")
    """Splits whose cases get proposals. Students learn from `pool`. `validation` is needed to measure judges,
    `labelled` by pair sets of the labelled split, and `test` by students of objective `proposal`."""
    imports: Path = NOTHING
    """Folder of all imported masks. DVC watches the folder. `raw/none` if no masks are imported."""


class Fitted(NamedTuple):
    """What is fitted on labelled cases out of fold."""

    thresholds: FittedThresholds
    regions: FittedRegions


MEASURED = ("validation", "test")
"""Splits whose proposals are measured on the source's grid."""


def propose(
    cases: CaseStore,
    base: Path,
    knobs: Propose,
    out: Path,
    runtime: Runtime,
    swap_labels: SwapLabels = (),
    fitted: Fitted | None = None,
) -> None:
    """Write the proposals of every case of `knobs.splits`: `proposals.parquet`, the arrays and what was fitted.

    `fitted` is the result of `propose_out_of_fold`. Without it, all thresholds are one half, and no sampler composes
    regions. Raises `BadInput` naming every case that failed, after all other cases have finished. A rerun draws the
    missing shards only.
    """
    from pipeline.segmenter.models import family

    check_manifest(base)
    if fitted is None:
        thresholds = not_fitted(knobs.samplers, len(cases.class_names), _NO_FOLDS)
        fitted = Fitted(thresholds, nothing_composed(knobs.samplers, _NO_REGIONS))
    proposed_for = tuple(cases.split(*knobs.splits))
    plan = _Plan(
        cases, proposed_for, family(base), {}, knobs, swap_labels, fitted.thresholds.of_pool(), fitted.regions.of_pool()
    )
    _write_proposals("propose", plan, base, out, runtime)


_NO_FOLDS = "the base has no folds, so every model has seen the labelled cases: the threshold is .5; set base.folds"
_NO_REGIONS = "the base has no folds, so no model of regions is fitted; set base.folds"


def propose_out_of_fold(
    cases: CaseStore, base: Path, knobs: Propose, out: Path, runtime: Runtime, swap_labels: SwapLabels = ()
) -> Fitted | None:
    """Write proposals of every labelled case, drawn from models that have not seen the case.

    Learned judges train on these proposals. Samplers draw from the model of the fold instead of the base, and from the
    members and snapshots of the fold. A sampler without a model in the folds is left out. Imported masks are left out
    too, because the cases on which their makers trained are unknown. Without folds the stage writes an empty table and
    no array.

    The thresholds of samplers `mean` are fitted first, on the same models. `thresholds.parquet` has the Dice of every
    threshold. Models of samplers `regions` are fitted next, on the proposals of the labelled cases with a known label.
    Returns what was fitted, or None without folds.
    """
    from pipeline.segmenter.models import family, fold_families

    check_manifest(base)
    families = fold_families(base)
    if not families:
        write_table(pl.DataFrame(schema=schema.PROPOSALS.columns), schema.PROPOSALS, out / "proposals.parquet", knobs)
        write_manifest(out, knobs)
        return None
    labelled = tuple(case for case in cases.split("labelled") if case.case_id in families)
    first = families[labelled[0].case_id]
    of_folds = knobs.model_copy(update={"samplers": _of_folds(knobs.samplers, first), "splits": ("labelled",)})
    plan = _Plan(cases, labelled, first, families, of_folds, swap_labels).without_lost_regions()
    if regions_to_fit(knobs.samplers):
        # A fixed proposal that the pool lacks is a mistake, which is found before any case is drawn.
        _Plan(cases, tuple(cases.split(*knobs.splits)), family(base), {}, knobs, swap_labels).slots()
    plan = replace(plan, fitted=_fitted(plan, knobs.samplers, family(base), base, out, runtime))
    plan = replace(plan, regions=_fitted_regions(plan, knobs.samplers, base, runtime))
    _write_proposals("out_of_fold", plan, base, out, runtime)
    return Fitted(plan.fitted, plan.regions)


def _of_folds(samplers: dict[str, Sampler], family: Family) -> dict[str, Sampler]:
    """Samplers that can draw from the models of a fold. Ensembles and means keep the members that the fold has."""
    kept: dict[str, Sampler] = {}
    for name, sampler in samplers.items():
        if isinstance(sampler, Ensemble | Mean):
            members = tuple(m for m in family.members if sampler.members is None or m in sampler.members)
            # A mean of the base and its flips needs no member.
            if members or isinstance(sampler, Mean):
                kept[name] = sampler.model_copy(update={"members": members})
        elif not (isinstance(sampler, Imported) or (isinstance(sampler, Snapshots) and not family.snapshots)):
            kept[name] = sampler
    return kept


def _fitted(
    plan: _Plan, samplers: dict[str, Sampler], of_pool: Family, base: Path, out: Path, runtime: Runtime
) -> FittedThresholds:
    """Thresholds fitted on the labelled cases of a plan out of fold; writes `thresholds.parquet` to `out`.

    `samplers` are those of the pool, whose models `of_pool` has.
    """
    means = samplers_to_fit(plan.knobs.samplers)
    if not means:
        return FittedThresholds()
    block = (means, plan.swap_labels, runtime.compute, runtime.seed)
    with workspace("fit_thresholds", __name__, block, [plan.cases.folder / MANIFEST, base / MANIFEST]) as work:
        known = {case.case_id for case in plan.cases.known("labelled")}
        shards = shards_of([case for case in plan.proposed_for if case.case_id in known], 1)
        task = _TryingThresholds(plan, means, runtime, work)
        limits = Limits(_bytes_whole(plan.cases, 1))
        tried = run(task, shards, work, runtime.execution, "fit thresholds", limits)
        write_tried(tried, out, block)
    lacking = {
        name: [m for m in mean.chosen(tuple(of_pool.members)) if m not in plan.family.members]
        for name, mean in samplers_to_fit(samplers).items()
    }
    fold_of = {case_id: models.base.name for case_id, models in plan.families.items() if models.base is not None}
    return fit_thresholds(tried, means, fold_of, lacking)


def _fitted_regions(plan: _Plan, samplers: dict[str, Sampler], base: Path, runtime: Runtime) -> FittedRegions:
    """Models of regions fitted on the labelled cases of a plan out of fold. `samplers` are those of the pool."""
    composing = regions_to_fit(plan.knobs.samplers)
    lost = {name: one for name, one in samplers.items() if name not in composing}
    unfitted = nothing_composed(lost, "the models of the folds do not draw the fixed proposal, so no model is fitted")
    if not composing:
        return unfitted
    _refuse_large(plan.cases, plan.knobs.samplers, plan.slots())
    block = (plan.knobs.samplers, plan.swap_labels, runtime.compute, runtime.seed, plan.fitted)
    fold_of = {case_id: models.base.name for case_id, models in plan.families.items() if models.base is not None}
    with workspace("fit_regions", __name__, block, [plan.cases.folder / MANIFEST, base / MANIFEST]) as work:
        known = {case.case_id for case in plan.cases.known("labelled")}
        shards = shards_of([case for case in plan.proposed_for if case.case_id in known], 1)
        limits = Limits(_bytes_whole(plan.cases, plan.slots()))
        seen = run(_SeeingRegions(plan, runtime), shards, work, runtime.execution, "fit regions", limits)
    voters = {name: plan.voters(name) for name in composing}
    found = fit_regions(seen, composing, voters, fold_of, runtime.seed)
    return replace(found, gains={**found.gains, **unfitted.gains})


def _bytes_whole(cases: CaseStore, masks: int) -> int:
    """Bytes of a case that is drawn whole, with `masks` masks and the float32 probabilities of a few predictions."""
    return int(np.prod(cases.padded)) * (2 * masks + 24 * len(cases.class_names))


def _refuse_large(cases: CaseStore, samplers: dict[str, Sampler], slots: int) -> None:
    """Raise `BadInput` if cases are so large that they are drawn in bands, and a sampler needs whole cases."""
    composing = regions_to_fit(samplers)
    if composing and Slabs.of(cases.padded, slots + len(cases.class_names)) is not None:
        raise BadInput(
            f"propose.samplers.{next(iter(composing))}: sampler 'regions' needs whole cases, found cases padded to "
            f"{cases.padded} voxels, which {slots} proposals make too large to be drawn whole; remove this sampler or "
            "others, or set a coarser preprocess.spacing"
        )


@dataclass(frozen=True)
class _Plan:
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
        if BASE_SAMPLER in samplers:
            raise BadInput(f"propose.samplers: the name '{BASE_SAMPLER}' belongs to slot 0; choose another name")
        if not setup.base and (not samplers or next(iter(samplers.values())).kind != "imported"):
            raise BadInput(
                "propose.samplers: expected a first sampler of kind 'imported', because base is null, found the kinds "
                f"{[sampler.kind for sampler in samplers.values()]}; import masks, or configure `base`"
            )
        slots = setup.base + sum(len(sampler.settings(name, setup)) for name, sampler in samplers.items())
        if setup.base and slots < 2:
            raise BadInput(
                "propose.samplers: expected at least two proposals per case, found the base prediction alone; add a "
                "sampler"
            )
        if slots < 2:
            raise BadInput(
                "propose.samplers: expected at least two proposals per case, found one imported mask; add a source or "
                "a sampler"
            )
        for name, sampler in regions_to_fit(samplers).items():
            sampler.fixed_at(name, self.names_before(name))
        return slots

    def names_before(self, name: str, composed: bool = True) -> list[str]:
        """Names of the proposals that come before a sampler, with or without those of samplers `regions`."""
        setup = self.setup
        names = [BASE_SAMPLER] if setup.base else []
        for earlier, sampler in self.knobs.samplers.items():
            if earlier == name:
                break
            if composed or not isinstance(sampler, RegionsSampler):
                names += [proposal_name(earlier, setting) for setting in sampler.settings(earlier, setup)]
        return names

    def without_lost_regions(self) -> _Plan:
        """The plan without samplers `regions` whose fixed proposal is not drawn."""
        lost = [n for n, one in regions_to_fit(self.knobs.samplers).items() if one.fixed not in self.names_before(n)]
        samplers = {name: sampler for name, sampler in self.knobs.samplers.items() if name not in lost}
        return replace(self, knobs=self.knobs.model_copy(update={"samplers": samplers}))

    def voters(self, name: str) -> list[str]:
        """Names of the proposals that vote for the regions of a sampler. Composed masks do not vote."""
        return self.names_before(name, composed=False)

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

    def with_models_in_use(self) -> _Plan:
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


@dataclass(frozen=True)
class _TryingThresholds:
    """The task of a labelled case: its Dice at every threshold of every mean, by models that have not seen the case."""

    plan: _Plan
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
                    overlaps_at_thresholds(mean.probability(part), label[part.where])
                    for part in bands(models, slabs, self.work)
                ]
                rows += rows_of(case, name, dice_at_thresholds(np.sum(counts, axis=0)))
        return pl.DataFrame(rows, schema=schema.THRESHOLDS.columns)


@dataclass(frozen=True)
class _SeeingRegions:
    """The task of a labelled case: its regions with features and truth, by models that have not seen the case."""

    plan: _Plan
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


def _write_proposals(stage: str, plan: _Plan, base: Path, out: Path, runtime: Runtime) -> None:
    cases, knobs = plan.cases, plan.knobs
    n_cases, padded, classes = len(cases.all), cases.padded, len(cases.class_names)
    slots, voxels = plan.slots(), int(np.prod(padded))
    source = plan.source_space()
    source_voxels = int(np.prod(source)) if source else 0
    size = cases_per_shard(n_cases, voxels * (slots + classes) + source_voxels * slots)
    slabs = Slabs.of(padded, slots + classes)
    # A sampler that composes nothing copies the fixed proposal, which works in bands too.
    if plan.regions.of_all:
        _refuse_large(cases, knobs.samplers, slots)
    block = (knobs, plan.swap_labels, runtime.compute, runtime.seed, plan.fitted, plan.regions)
    inputs = [cases.folder / MANIFEST, base / MANIFEST, *plan.imported_files()]
    shapes: dict[ArraySchema, tuple[int, ...]] = {
        schema.MASKS: (n_cases, slots, *padded),
        schema.PROBABILITY: (n_cases, classes, *padded),
        schema.DISAGREEMENT: (n_cases, slots, slots),
    }
    if source:
        shapes[schema.SOURCE_MASKS] = (n_cases, slots, *source)
    with workspace(stage, __name__, block, inputs) as work:
        for array, shape in shapes.items():
            if not (work / f"{array.name}.zarr" / "zarr.json").is_file():
                # The slabs are of the working grid. Cases on the source's grid are written whole.
                create_array(work, array, shape, size, None if array is schema.SOURCE_MASKS else slabs)
        task = _Proposing(plan.with_models_in_use(), runtime, work, slabs, tuple(shapes))
        shards = shards_of(plan.proposed_for, size, key=lambda case: case.case)
        # Arrays of a shard count twice, for the blocks and for their encoding. Masks and float32 probabilities count
        # for one case or, of a large case, for the rows of one slab, because a window usually holds no more rows than a
        # slab.
        held = voxels if slabs is None else voxels * slabs.rows // padded[slabs.axis]
        bytes_per_shard = held * (2 * size * (slots + classes) + 2 * slots + 24 * classes)
        if source:
            # A case that is brought back to the source's grid is held whole, with its probabilities on both grids.
            whole = voxels * (2 * slots + 24 * classes) + source_voxels * (2 * size * slots + 8 * classes)
            bytes_per_shard = max(bytes_per_shard, whole + held * 2 * size * (slots + classes))
        rows = run(task, shards, work, runtime.execution, stage, Limits(bytes_per_shard))
        for array in shapes:
            publish(work / f"{array.name}.zarr", out / f"{array.name}.zarr")
        write_table(rows, schema.PROPOSALS, out / "proposals.parquet", block)
        plan.fitted.save(out)
        plan.regions.save(out)
        write_manifest(out, block)


@dataclass(frozen=True)
class _Proposing:
    """The task of a shard: masks, mean probability, disagreement and table rows of its cases."""

    plan: _Plan
    runtime: Runtime
    work: Path
    slabs: Slabs | None  # cut of large cases; None if cases are small
    arrays: tuple[ArraySchema, ...]

    def __call__(self, shard: Shard) -> pl.DataFrame:
        import torch

        # One thread for any number of workers, because the number of threads changes results in the last bits.
        torch.set_num_threads(1)
        arrays = {array.name: open_array(self.work, array, "r+") for array in self.arrays}
        per_shard, slots = shard_cases(arrays["masks"]), arrays["masks"].shape[1]
        start = shard.index * per_shard
        stop = min(start + per_shard, arrays["masks"].shape[0])
        # Slabs of a large case go to the array directly. The small cases of a shard fill blocks that are written once.
        blocks: dict[str, Any] = {
            name: array
            if self.slabs is not None and name != "disagreement"
            else np.full((stop - start, *array.shape[1:]), array.fill_value, array.dtype)
            for name, array in arrays.items()
        }
        rows: list[dict[str, object]] = []
        failures = CaseFailures()
        for case in shard.members:
            with failures.of(case.case_id):
                row = case.case - (start if self.slabs is None else 0)
                target = CaseArrays(blocks["masks"], blocks["probability"], row, blocks.get("source_masks"))
                models = self.plan.models(case, self.slabs, self.runtime)
                samplers = self.plan.knobs.samplers
                of_case, disagreement = draw_case(models, samplers, slots, target, self.slabs, self.work)
                blocks["disagreement"][case.case - start] = disagreement
                rows += of_case
        failures.raise_any()
        for name, array in arrays.items():
            if blocks[name] is not array:
                array[start:stop] = blocks[name]
        return pl.DataFrame(rows, schema=schema.PROPOSALS.columns)

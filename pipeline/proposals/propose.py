"""Stage `propose`: several proposals per case, with mean probability and disagreement."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from pipeline.execution import CaseFailures, Limits, Runtime, Shard, run, shards_of
from pipeline.proposals.draw_case import CaseArrays, draw_case
from pipeline.proposals.fit_regions import nothing_composed
from pipeline.proposals.fit_samplers import Fitted, fitted_regions, fitted_thresholds
from pipeline.proposals.fit_thresholds import not_fitted
from pipeline.proposals.knobs import Propose
from pipeline.proposals.plan import Plan
from pipeline.proposals.samplers import Sampler
from pipeline.proposals.samplers.ensemble import Ensemble
from pipeline.proposals.samplers.imported import Imported
from pipeline.proposals.samplers.mean import Mean
from pipeline.proposals.samplers.snapshots import Snapshots
from pipeline.segmenter.augmentation import SwapLabels
from pipeline.store import schema
from pipeline.store.arrays import Slabs, cases_per_shard, create_array, open_array, shard_cases
from pipeline.store.cases import CaseStore
from pipeline.store.manifest import MANIFEST, check_manifest, write_manifest
from pipeline.store.schema import ArraySchema
from pipeline.store.tables import write_table
from pipeline.workspace import publish, workspace

if TYPE_CHECKING:
    from pipeline.segmenter.models import Family


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
    plan = Plan(
        cases, proposed_for, family(base), {}, knobs, swap_labels, fitted.thresholds.of_pool(), fitted.regions.of_pool()
    )
    _write_proposals("propose", plan, base, out, runtime)


_TO_DO = "set base.folds, or copy splits_final.json into the folder of an nnU-Net"
_NO_FOLDS = f"no fold of the base left out a labelled case, so the threshold is .5; {_TO_DO}"
_NO_REGIONS = f"no fold of the base left out a labelled case, so no model of regions is fitted; {_TO_DO}"


def propose_out_of_fold(
    cases: CaseStore, base: Path, knobs: Propose, out: Path, runtime: Runtime, swap_labels: SwapLabels = ()
) -> Fitted | None:
    """Write proposals of the labelled cases that a fold left out, drawn from models that have not seen the case.

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
    plan = Plan(cases, labelled, first, families, of_folds, swap_labels).without_lost_regions()
    of_pool = family(base)
    # A fixed proposal that the pool lacks is a mistake, which is found before any case is drawn.
    slots = Plan(cases, tuple(cases.split(*knobs.splits)), of_pool, {}, knobs, swap_labels).slots()
    plan = replace(plan, fitted=fitted_thresholds(plan, knobs.samplers, of_pool, base, out, runtime))
    plan = replace(plan, regions=fitted_regions(plan, knobs.samplers, of_pool, slots, base, runtime))
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


def _write_proposals(stage: str, plan: Plan, base: Path, out: Path, runtime: Runtime) -> None:
    cases, knobs = plan.cases, plan.knobs
    n_cases, padded, classes = len(cases.all), cases.padded, len(cases.class_names)
    slots, voxels = plan.slots(), int(np.prod(padded))
    source = plan.source_space()
    source_voxels = int(np.prod(source)) if source else 0
    size = cases_per_shard(n_cases, voxels * (slots + classes) + source_voxels * slots)
    slabs = Slabs.of(padded, slots + classes)
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

    plan: Plan
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

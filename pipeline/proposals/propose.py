"""Stage `propose`: several masks for every image of the pool and of validation, and their disagreement."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from pipeline.errors import BadInput
from pipeline.execution import CaseFailures, Limits, Runtime, Shard, publish, run, shards_of, workspace
from pipeline.knobs import NOTHING, Knobs, Name
from pipeline.proposals.draw_case import BASE_SAMPLER, CaseArrays, draw_case
from pipeline.proposals.samplers import Sampler
from pipeline.proposals.samplers.ensemble import Ensemble
from pipeline.proposals.samplers.imported import Imported
from pipeline.proposals.samplers.sampler import CaseModels, Setup
from pipeline.proposals.samplers.snapshots import Snapshots
from pipeline.store import schema
from pipeline.store.arrays import Slabs, cases_per_shard, create_array, open_array, shard_cases
from pipeline.store.cases import Case, CaseStore
from pipeline.store.manifest import MANIFEST, check_manifest, write_manifest
from pipeline.store.tables import write_table

if TYPE_CHECKING:
    from pipeline.segmenter.models import Family


class Propose(Knobs):
    """Which masks are proposed, and for which cases."""

    samplers: dict[Name, Sampler]
    """By name, in the order of the proposals; slot 0 is always the base prediction or, without a base segmenter, the
    first mask of the first sampler, which then is `imported`."""
    splits: tuple[Literal["labelled", "pool", "validation", "test"], ...] = ("pool", "validation")
    """Validation is needed to measure judges; labelled only by judges or objectives that learn from it; test only to
    measure what one proposal of every case would be worth."""
    imports: Path = NOTHING
    """Folder of all imported masks; DVC watches it. `raw/none` where no masks are imported."""


ARRAYS = (schema.MASKS, schema.PROBABILITY, schema.DISAGREEMENT)
"""Arrays that the stage writes."""
SwapLabels = tuple[tuple[int, int, int], ...]
"""(axis, class, class): sided classes that change places when an image is flipped along that axis."""


def propose(
    cases: CaseStore, base: Path, knobs: Propose, out: Path, runtime: Runtime, swap_labels: SwapLabels = ()
) -> None:
    """Propose masks for every case of the splits, and write `proposals.parquet` and the three arrays.

    Raises `BadInput` naming every case that failed, after the others have finished. A rerun does only what is missing.
    """
    from pipeline.segmenter.models import family

    check_manifest(base)
    proposed_for = tuple(cases.split(*knobs.splits))
    plan = _Plan(cases, proposed_for, family(base), {}, knobs, swap_labels)
    _write_proposals("propose", plan, base, out, runtime)


def propose_out_of_fold(
    cases: CaseStore, base: Path, knobs: Propose, out: Path, runtime: Runtime, swap_labels: SwapLabels = ()
) -> None:
    """Propose masks for every labelled case by models that have not seen the case: learned judges learn from them.

    Samplers draw from the fold's model instead of the base, and from the members and snapshots that the folds have. A
    sampler without such a model is left out. Imported masks are left out too, because nobody knows what their makers
    have seen. Without folds the stage writes an empty table and no array.
    """
    from pipeline.segmenter.models import fold_families

    check_manifest(base)
    families = fold_families(base)
    if not families:
        write_table(pl.DataFrame(schema=schema.PROPOSALS.columns), schema.PROPOSALS, out / "proposals.parquet", knobs)
        write_manifest(out, knobs)
        return
    labelled = tuple(case for case in cases.split("labelled") if case.case_id in families)
    first = families[labelled[0].case_id]
    knobs = knobs.model_copy(update={"samplers": _of_folds(knobs.samplers, first), "splits": ("labelled",)})
    _write_proposals("out_of_fold", _Plan(cases, labelled, first, families, knobs, swap_labels), base, out, runtime)


def _of_folds(samplers: dict[str, Sampler], family: Family) -> dict[str, Sampler]:
    """The samplers that can draw from the models of a fold; an ensemble keeps the members that the fold has."""
    kept: dict[str, Sampler] = {}
    for name, sampler in samplers.items():
        if isinstance(sampler, Ensemble):
            members = tuple(m for m in family.members if sampler.members is None or m in sampler.members)
            if members:
                kept[name] = sampler.model_copy(update={"members": members})
        elif not (isinstance(sampler, Imported) or (isinstance(sampler, Snapshots) and not family.snapshots)):
            kept[name] = sampler
    return kept


@dataclass(frozen=True)
class _Plan:
    """Cases to propose for, and the models and samplers that do."""

    cases: CaseStore
    proposed_for: tuple[Case, ...]
    family: Family
    families: dict[str, Family]  # by case id, instead of `family`
    knobs: Propose
    swap_labels: SwapLabels

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
        """Proposals of every case; raises `BadInput` for models or masks that a sampler lacks."""
        setup, samplers = self.setup, self.knobs.samplers
        if BASE_SAMPLER in samplers:
            raise BadInput(f"propose.samplers: '{BASE_SAMPLER}' is the name of slot 0; choose another name")
        if not setup.base and (not samplers or next(iter(samplers.values())).kind != "imported"):
            raise BadInput(
                "propose.samplers: expected a sampler of kind 'imported' as the first one, since base is null, found "
                f"{[sampler.kind for sampler in samplers.values()]}; import masks, or configure `base`"
            )
        slots = setup.base + sum(len(sampler.settings(name, setup)) for name, sampler in samplers.items())
        if setup.base and slots < 2:
            raise BadInput("propose.samplers: no sampler draws anything; preference needs at least two proposals")
        if slots < 2:
            raise BadInput("propose.samplers: one imported mask alone; preference needs at least two proposals")
        return slots

    def imported_files(self) -> list[Path]:
        """Files of all imported masks."""
        imported = [sampler for sampler in self.knobs.samplers.values() if isinstance(sampler, Imported)]
        return [file for sampler in imported for file in sampler.files(self.setup)]

    def with_models_in_use(self) -> _Plan:
        """Without the members and snapshots that no sampler draws from, so that they are never loaded."""
        ensembles = [sampler for sampler in self.knobs.samplers.values() if isinstance(sampler, Ensemble)]
        by_snapshots = any(isinstance(sampler, Snapshots) for sampler in self.knobs.samplers.values())

        def used(family: Family) -> Family:
            names = {name for ensemble in ensembles for name in ensemble.chosen(tuple(family.members))}
            members = {name: model for name, model in family.members.items() if name in names}
            return replace(family, members=members, snapshots=family.snapshots if by_snapshots else {})

        families = {case_id: used(family) for case_id, family in self.families.items()}
        return replace(self, family=used(self.family), families=families)


def _write_proposals(stage: str, plan: _Plan, base: Path, out: Path, runtime: Runtime) -> None:
    cases, knobs = plan.cases, plan.knobs
    n_cases, padded, classes = len(cases.all), cases.padded, len(cases.class_names)
    slots, voxels = plan.slots(), int(np.prod(padded))
    size = cases_per_shard(n_cases, voxels * (slots + classes))
    slabs = Slabs.of(padded, slots + classes)
    block = (knobs, plan.swap_labels, runtime.compute, runtime.seed)
    inputs = [cases.folder / MANIFEST, base / MANIFEST, *plan.imported_files()]
    shapes = ((n_cases, slots, *padded), (n_cases, classes, *padded), (n_cases, slots, slots))
    with workspace(stage, __name__, block, inputs) as work:
        for array, shape in zip(ARRAYS, shapes, strict=True):
            if not (work / f"{array.name}.zarr" / "zarr.json").is_file():
                create_array(work, array, shape, size, slabs)
        task = _Proposing(plan.with_models_in_use(), runtime, work, slabs)
        shards = shards_of(plan.proposed_for, size, key=lambda case: case.case)
        # The blocks of a shard are held twice, as they are and as they are written. Of one case (or of the rows of a
        # slab, which are no fewer than those that a window holds, as a rule) masks and probabilities are held.
        held = voxels if slabs is None else voxels * slabs.rows // padded[slabs.axis]
        bytes_per_shard = held * (2 * size * (slots + classes) + 2 * slots + 24 * classes)
        rows = run(task, shards, work, runtime.execution, stage, Limits(bytes_per_shard))
        for array in ARRAYS:
            publish(work / f"{array.name}.zarr", out / f"{array.name}.zarr")
        write_table(rows, schema.PROPOSALS, out / "proposals.parquet", block)
        write_manifest(out, block)


@dataclass(frozen=True)
class _Proposing:
    """The task of a shard: masks, mean probability, disagreement and table rows of its cases."""

    plan: _Plan
    runtime: Runtime
    work: Path
    slabs: Slabs | None  # how large cases are cut

    def __call__(self, shard: Shard) -> pl.DataFrame:
        import torch

        # One thread whatever the number of workers: thread counts move the last bits.
        torch.set_num_threads(1)
        arrays = {array.name: open_array(self.work, array, "r+") for array in ARRAYS}
        per_shard, slots = shard_cases(arrays["masks"]), arrays["masks"].shape[1]
        start = shard.index * per_shard
        stop = min(start + per_shard, arrays["masks"].shape[0])
        # A large case writes its slabs itself; the small cases of a shard are written together.
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
                target = CaseArrays(blocks["masks"], blocks["probability"], row)
                models, samplers = self._models(case), self.plan.knobs.samplers
                of_case, disagreement = draw_case(models, samplers, slots, target, self.slabs, self.work)
                blocks["disagreement"][case.case - start] = disagreement
                rows += of_case
        failures.raise_any()
        for name, array in arrays.items():
            if blocks[name] is not array:
                array[start:stop] = blocks[name]
        return pl.DataFrame(rows, schema=schema.PROPOSALS.columns)

    def _models(self, case: Case) -> CaseModels:
        cases, compute = self.plan.cases, self.runtime.compute
        family = self.plan.families.get(case.case_id, self.plan.family)
        return CaseModels(
            case,
            cases.image(case) if self.slabs is None else cases.volume(case),
            len(cases.class_names),
            family.base.segmenter(compute) if family.base else None,
            {name: model.segmenter(compute) for name, model in family.members.items()},
            {name: model.segmenter(compute) for name, model in family.snapshots.items()},
            self.runtime.seed,
            self.plan.swap_labels,
            self.plan.knobs.imports,
        )

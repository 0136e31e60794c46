"""Proposals: several masks for every image of the pool and of validation, and how they differ."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.execution import CaseFailures, Execution, Shard, publish, run, shards_of, workspace
from pipeline.knobs import NOTHING, Knobs, Name
from pipeline.proposals.draw_case import BASE_SAMPLER, draw_case
from pipeline.proposals.samplers import Sampler
from pipeline.proposals.samplers.ensemble import Ensemble
from pipeline.proposals.samplers.imported import Imported
from pipeline.proposals.samplers.sampler import CaseModels, Loaded, Setup
from pipeline.proposals.samplers.snapshots import Snapshots
from pipeline.store import schema
from pipeline.store.arrays import Slabs, cases_per_shard, create_array, open_array, shard_cases
from pipeline.store.cases import Case, CaseStore
from pipeline.store.manifest import MANIFEST, check_manifest, write_manifest
from pipeline.store.tables import write_table

if TYPE_CHECKING:
    from pipeline.segmenter.weights import Family, Model


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


@dataclass(frozen=True)
class _Proposing:
    cases: CaseStore
    family: Family
    families: dict[str, Family]  # by case id, instead of `family`
    knobs: Propose
    swap_labels: tuple[tuple[int, int, int], ...]
    compute: Compute
    seed: int
    work: Path
    slabs: Slabs | None  # how large cases are cut

    def __call__(self, shard: Shard) -> pl.DataFrame:
        import torch

        # One thread whatever the number of workers: thread counts move the last bits.
        torch.set_num_threads(1)
        arrays = {
            a.name: open_array(self.work, a, "r+") for a in (schema.MASKS, schema.PROBABILITY, schema.DISAGREEMENT)
        }
        per_shard = shard_cases(arrays["masks"])
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
                place = case.case - (start if self.slabs is None else 0)
                slots = arrays["masks"].shape[1]
                found, differ = draw_case(
                    self._models(case),
                    self.knobs.samplers,
                    slots,
                    blocks["masks"],
                    blocks["probability"],
                    place,
                    self.slabs,
                    self.work,
                )
                blocks["disagreement"][case.case - start] = differ
                rows += found
        failures.raise_any()
        for name, array in arrays.items():
            if blocks[name] is not array:
                array[start:stop] = blocks[name]
        return pl.DataFrame(rows, schema=schema.PROPOSALS.columns)

    def _models(self, case: Case) -> CaseModels:
        family = self.families.get(case.case_id, self.family)
        return CaseModels(
            case,
            self.cases.image(case) if self.slabs is None else self.cases.volume(case),
            len(self.cases.class_names),
            _loaded(family.base) if family.base else None,
            {name: _loaded(model) for name, model in family.members.items()},
            {name: _loaded(model) for name, model in family.snapshots.items()},
            self.compute,
            self.seed,
            self.swap_labels,
            self.knobs.imports,
        )


def _loaded(model: Model) -> Loaded:
    return Loaded(model.shared(), model.architecture.window)


def _slots(knobs: Propose, setup: Setup) -> int:
    """Proposals of every case; raises `BadInput` for what the samplers lack."""
    if BASE_SAMPLER in knobs.samplers:
        raise BadInput(f"propose.samplers: '{BASE_SAMPLER}' is the name of slot 0; choose another name")
    if not setup.base and (not knobs.samplers or next(iter(knobs.samplers.values())).kind != "imported"):
        raise BadInput(
            "propose.samplers: expected a sampler of kind 'imported' as the first one, since base is null, found "
            f"{[sampler.kind for sampler in knobs.samplers.values()]}; import masks, or configure `base`"
        )
    slots = setup.base + sum(len(sampler.settings(name, setup)) for name, sampler in knobs.samplers.items())
    if setup.base and slots < 2:
        raise BadInput("propose.samplers: no sampler draws anything; preference needs at least two proposals")
    if slots < 2:
        raise BadInput("propose.samplers: one imported mask alone; preference needs at least two proposals")
    return slots


def propose(
    cases: CaseStore,
    base: Path,
    knobs: Propose,
    compute: Compute,
    seed: int,
    out: Path,
    execution: Execution,
    swap_labels: tuple[tuple[int, int, int], ...] = (),
) -> None:
    """Propose masks for every case of the splits and write `proposals.parquet` and the three arrays.

    Raises `BadInput` naming every case that failed, after the others have finished; a rerun does only what is missing.
    """
    from pipeline.segmenter.weights import family

    check_manifest(base)
    models = family(base, compute.device)
    proposed_for = tuple(cases.split(*knobs.splits))
    _make("propose", cases, proposed_for, base, models, {}, knobs, compute, seed, out, execution, swap_labels)


def propose_out_of_fold(
    cases: CaseStore,
    base: Path,
    knobs: Propose,
    compute: Compute,
    seed: int,
    out: Path,
    execution: Execution,
    swap_labels: tuple[tuple[int, int, int], ...] = (),
) -> None:
    """The same for every labelled case, by models that have not seen it: what learned judges learn from.

    Samplers draw from the fold's model instead of the base, and from the members and snapshots that the folds have;
    a sampler that they leave nothing to draw from is left out, as are imported masks, of which nobody knows what they
    have seen. Without folds, an empty table and no array.
    """
    from pipeline.segmenter.weights import fold_families

    check_manifest(base)
    families = fold_families(base, compute.device)
    if not families:
        write_table(pl.DataFrame(schema=schema.PROPOSALS.columns), schema.PROPOSALS, out / "proposals.parquet", knobs)
        write_manifest(out, knobs)
        return
    labelled = tuple(case for case in cases.split("labelled") if case.case_id in families)
    first = families[labelled[0].case_id]
    knobs = knobs.model_copy(update={"samplers": _of_folds(knobs.samplers, first), "splits": ("labelled",)})
    _make("out_of_fold", cases, labelled, base, first, families, knobs, compute, seed, out, execution, swap_labels)


def _of_folds(samplers: dict[str, Sampler], family: Family) -> dict[str, Sampler]:
    """The samplers that can draw from the models of a fold, ensembles of those members that it has."""
    kept: dict[str, Sampler] = {}
    for name, sampler in samplers.items():
        if isinstance(sampler, Ensemble):
            members = tuple(m for m in family.members if sampler.members is None or m in sampler.members)
            if members:
                kept[name] = sampler.model_copy(update={"members": members})
        elif not (isinstance(sampler, Imported) or (isinstance(sampler, Snapshots) and not family.snapshots)):
            kept[name] = sampler
    return kept


def _make(
    stage: str,
    cases: CaseStore,
    proposed_for: tuple[Case, ...],
    base: Path,
    family: Family,
    families: dict[str, Family],
    knobs: Propose,
    compute: Compute,
    seed: int,
    out: Path,
    execution: Execution,
    swap_labels: tuple[tuple[int, int, int], ...],
) -> None:
    n_cases, padded, classes = len(cases.all), cases.padded, len(cases.class_names)
    names = tuple(family.members), tuple(family.snapshots)
    setup = Setup(classes, family.base is not None, *names, proposed_for, knobs.imports)
    slots = _slots(knobs, setup)
    voxels = int(np.prod(padded))
    size = cases_per_shard(n_cases, voxels * (slots + classes))
    slabs = Slabs.of(padded, slots + classes)
    block = (knobs, swap_labels, compute, seed)
    imported = [
        file for sampler in knobs.samplers.values() if isinstance(sampler, Imported) for file in sampler.files(setup)
    ]
    with workspace(stage, __name__, block, [cases.folder / MANIFEST, base / MANIFEST, *imported]) as work:
        for array, shape in (
            (schema.MASKS, (n_cases, slots, *padded)),
            (schema.PROBABILITY, (n_cases, classes, *padded)),
            (schema.DISAGREEMENT, (n_cases, slots, slots)),
        ):
            if not (work / f"{array.name}.zarr" / "zarr.json").is_file():
                create_array(work, array, shape, size, slabs)
        used = {case_id: _used(models, knobs) for case_id, models in families.items()}
        task = _Proposing(cases, _used(family, knobs), used, knobs, swap_labels, compute, seed, work, slabs)
        shards = shards_of(proposed_for, size, key=lambda case: case.case)
        # The blocks of a shard twice, as they are and as they are written; of one case (or of the rows of a slab, which
        # are no fewer than those that a window holds, as a rule), masks and probabilities.
        held = voxels if slabs is None else voxels * slabs.rows // padded[slabs.axis]
        bytes_per_shard = held * (2 * size * (slots + classes) + 2 * slots + 24 * classes)
        rows = run(task, shards, work, execution, stage, bytes_per_shard)
        for array in (schema.MASKS, schema.PROBABILITY, schema.DISAGREEMENT):
            publish(work / f"{array.name}.zarr", out / f"{array.name}.zarr")
        write_table(rows, schema.PROPOSALS, out / "proposals.parquet", block)
        write_manifest(out, block)


def _used(family: Family, knobs: Propose) -> Family:
    """Only the models that a sampler draws from are loaded."""
    names = tuple(family.members)
    ensembles = [sampler for sampler in knobs.samplers.values() if isinstance(sampler, Ensemble)]
    drawn_from = {name for ensemble in ensembles for name in ensemble.chosen(names)}
    members = {name: model for name, model in family.members.items() if name in drawn_from}
    by_snapshots = any(isinstance(sampler, Snapshots) for sampler in knobs.samplers.values())
    return replace(family, members=members, snapshots=family.snapshots if by_snapshots else {})

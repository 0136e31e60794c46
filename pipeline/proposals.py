"""Proposals: several masks for every image of the pool and of validation, and how they differ."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl

from pipeline import schema
from pipeline.dataset import Case, CaseStore
from pipeline.errors import BadInput
from pipeline.execution import CaseFailures, Execution, Shard, publish, run, shards_of, workspace
from pipeline.knobs import Knobs, Name
from pipeline.overlap import dice_to, disagreement
from pipeline.recipe import Compute
from pipeline.samplers import Sampler
from pipeline.samplers.ensemble import Ensemble
from pipeline.samplers.imported import Imported
from pipeline.samplers.sampler import CaseModels, Loaded, Setup, drawn
from pipeline.samplers.snapshots import Snapshots
from pipeline.store import (
    MANIFEST,
    cases_per_shard,
    check_manifest,
    create_array,
    open_array,
    shard_cases,
    write_manifest,
    write_table,
)

if TYPE_CHECKING:
    from pipeline.segmenter import Family, Model

BASE = "base"
"""Sampler and setting of slot 0, where there is a base segmenter."""


class Propose(Knobs):
    """Which masks are proposed, and for which cases."""

    samplers: dict[Name, Sampler]
    """By name, in the order of the proposals; slot 0 is always the base prediction or, without a base segmenter, the
    first mask of the first sampler, which then is `imported`."""
    splits: tuple[Literal["labelled", "pool", "validation", "test"], ...] = ("pool", "validation")
    """Validation is needed to measure judges; labelled only by judges or objectives that learn from it; test only to
    measure what one proposal of every case would be worth."""
    imports: Path = Path("pipeline/samplers/imported.py")
    """Folder of all imported masks; DVC watches it. Without any, a file that is there, as DVC needs."""


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
        blocks = {
            name: np.full((stop - start, *array.shape[1:]), array.fill_value, array.dtype)
            for name, array in arrays.items()
        }
        rows: list[dict[str, object]] = []
        failures = CaseFailures()
        for case in shard.members:
            with failures.of(case.case_id):
                rows += self._propose(case, blocks, case.case - start)
        failures.raise_any()
        for name, array in arrays.items():
            array[start:stop] = blocks[name]
        return pl.DataFrame(rows, schema=schema.PROPOSALS.columns)

    def _propose(self, case: Case, blocks: dict[str, np.ndarray], row: int) -> list[dict[str, object]]:
        family = self.families.get(case.case_id, self.family)
        seen = CaseModels(
            case,
            self.cases.image(case),
            len(self.cases.class_names),
            _loaded(family.base) if family.base else None,
            {name: _loaded(model) for name, model in family.members.items()},
            {name: _loaded(model) for name, model in family.snapshots.items()},
            self.compute,
            self.seed,
            self.swap_labels,
            self.knobs.imports,
        )
        if seen.base is not None:
            seen.keep(drawn(BASE, BASE, seen.predict(seen.base)))
        for name, sampler in self.knobs.samplers.items():
            for draw in sampler.draw(name, seen):
                seen.keep(draw)
        masks = np.stack([draw.mask for draw in seen.draws])
        differ = disagreement(masks)
        dice = dice_to(masks[0], masks, seen.classes)
        blocks["masks"][(row, slice(None), *case.space)] = masks
        blocks["probability"][(row, slice(None), *case.space)] = (seen.mean_probability() * 255).round().numpy()
        blocks["disagreement"][row] = differ
        # Masks that only differ where one of them is unknown are two masks, although no voxel tells them apart.
        first = ((differ == 0) & _same_unknown(masks)).argmax(1)
        return [
            {
                "case_id": case.case_id,
                "proposal": slot,
                "sampler": draw.sampler,
                "setting": draw.setting,
                "voxels": np.bincount(draw.mask[draw.mask != schema.UNKNOWN], minlength=seen.classes).tolist(),
                "dice_to_base": float(dice[slot]),
                "duplicate_of": int(first[slot]) if first[slot] < slot else None,
            }
            for slot, draw in enumerate(seen.draws)
        ]


def _loaded(model: Model) -> Loaded:
    return Loaded(model.shared(), model.architecture.window)


def _same_unknown(masks: np.ndarray) -> np.ndarray:
    """bool `[K, K]`: whether two masks u8 `[K, *space]` are 255 at the same voxels."""
    unknown = (masks == schema.UNKNOWN).reshape(len(masks), -1)
    if not unknown.any():
        return np.ones((len(masks), len(masks)), bool)
    return np.stack([(unknown == one).all(1) for one in unknown])


def _slots(knobs: Propose, setup: Setup) -> int:
    """Proposals of every case; raises `BadInput` for what the samplers lack."""
    if BASE in knobs.samplers:
        raise BadInput(f"propose.samplers: '{BASE}' is the name of slot 0; choose another name")
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
    from pipeline.segmenter import family

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
    from pipeline.segmenter import fold_families

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
    block = (knobs, swap_labels, compute, seed)
    imported = [
        file for sampler in knobs.samplers.values() if isinstance(sampler, Imported) for file in sampler.files(setup)
    ]
    with workspace(stage, block, [cases.folder / MANIFEST, base / MANIFEST, *imported]) as work:
        for array, shape in (
            (schema.MASKS, (n_cases, slots, *padded)),
            (schema.PROBABILITY, (n_cases, classes, *padded)),
            (schema.DISAGREEMENT, (n_cases, slots, slots)),
        ):
            if not (work / f"{array.name}.zarr" / "zarr.json").is_file():
                create_array(work, array, shape, size)
        used = {case_id: _used(models, knobs) for case_id, models in families.items()}
        task = _Proposing(cases, _used(family, knobs), used, knobs, swap_labels, compute, seed, work)
        shards = shards_of(proposed_for, size, key=lambda case: case.case)
        # The blocks of a shard twice, as they are and as they are written; of one case, masks and probabilities.
        bytes_per_shard = voxels * (2 * size * (slots + classes) + 2 * slots + 24 * classes)
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

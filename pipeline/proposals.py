"""Proposals: several masks for every image of the pool and of validation, and how they differ."""

from __future__ import annotations

import json
from dataclasses import dataclass
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
from pipeline.recipe import MODELS, Compute
from pipeline.samplers import Sampler
from pipeline.samplers.sampler import CaseModels, drawn
from pipeline.store import MANIFEST, cases_per_shard, create_array, open_array, shard_cases, write_manifest, write_table

if TYPE_CHECKING:
    from pipeline.segmenter import Model


class Propose(Knobs):
    """Which masks are proposed, and for which cases."""

    samplers: dict[Name, Sampler]
    """By name, in the order of the proposals; slot 0 is always the base prediction."""
    splits: tuple[Literal["labelled", "pool", "validation"], ...] = ("pool", "validation")
    """Validation is needed to measure judges; labelled only by judges or objectives that learn from it."""


@dataclass(frozen=True)
class _Proposing:
    cases: CaseStore
    base: Model
    members: tuple[Model, ...]
    knobs: Propose
    swap_labels: tuple[tuple[int, int, int], ...]
    compute: Compute
    seed: int
    slots: int
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
        seen = CaseModels(
            case.case_id,
            self.cases.image(case),
            self.base.shared(),
            {m.name: m.shared() for m in self.members},
            self.base.architecture.window,
            self.compute,
            self.seed,
            self.swap_labels,
        )
        seen.draws.append(drawn("base", "base", seen.predict(seen.base)))
        for name, sampler in self.knobs.samplers.items():
            seen.draws += list(sampler.draw(name, seen))
        masks = np.stack([draw.mask for draw in seen.draws])
        differ = disagreement(masks)
        classes = self.base.architecture.classes
        dice = dice_to(masks[0], masks, classes)
        blocks["masks"][(row, slice(None), *case.space)] = masks
        blocks["probability"][(row, slice(None), *case.space)] = (seen.mean_probability() * 255).round().numpy()
        blocks["disagreement"][row] = differ
        first = (differ == 0).argmax(1)
        return [
            {
                "case_id": case.case_id,
                "proposal": slot,
                "sampler": draw.sampler,
                "setting": draw.setting,
                "voxels": np.bincount(draw.mask.ravel(), minlength=classes).tolist(),
                "dice_to_base": float(dice[slot]),
                "duplicate_of": int(first[slot]) if first[slot] < slot else None,
            }
            for slot, draw in enumerate(seen.draws)
        ]


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
    from pipeline.segmenter import Model

    names = json.loads((base / MODELS).read_text())["members"]
    needed = names if any(sampler.kind == "ensemble" for sampler in knobs.samplers.values()) else []
    if "base" in knobs.samplers:
        raise BadInput("propose.samplers: 'base' is the name of slot 0; choose another name")
    slots = 1 + sum(len(sampler.settings(names)) for sampler in knobs.samplers.values())
    if slots < 2:
        raise BadInput("propose.samplers: no sampler draws anything; preference needs at least two proposals")
    model = Model(base, "base", compute.device)
    n_cases, padded, classes = len(cases.all), cases.padded, len(cases.class_names)
    voxels = int(np.prod(padded))
    size = cases_per_shard(n_cases, voxels * (slots + classes))
    block = (knobs, swap_labels, compute, seed)
    with workspace("propose", block, [cases.folder / MANIFEST, base / MANIFEST]) as work:
        for array, shape in (
            (schema.MASKS, (n_cases, slots, *padded)),
            (schema.PROBABILITY, (n_cases, classes, *padded)),
            (schema.DISAGREEMENT, (n_cases, slots, slots)),
        ):
            if not (work / f"{array.name}.zarr" / "zarr.json").is_file():
                create_array(work, array, shape, size)
        task = _Proposing(
            cases,
            model,
            tuple(Model(base, name, compute.device) for name in needed),
            knobs,
            swap_labels,
            compute,
            seed,
            slots,
            work,
        )
        shards = shards_of(cases.split(*knobs.splits), size, key=lambda case: case.case)
        rows = run(task, shards, work, execution, "propose", bytes_per_shard=3 * size * voxels * (slots + 4 * classes))
        for array in (schema.MASKS, schema.PROBABILITY, schema.DISAGREEMENT):
            publish(work / f"{array.name}.zarr", out / f"{array.name}.zarr")
        write_table(rows, schema.PROPOSALS, out / "proposals.parquet", block)
        write_manifest(out, block)

"""The base segmenter: trained on the labelled split to its plateau, with its ensemble and folds beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.execution import Execution, Shard, publish, run, shards_of, workspace
from pipeline.seeding import numpy_generator, seed_of
from pipeline.segmenter.architecture import Architecture
from pipeline.segmenter.augmentation import Augmentation
from pipeline.segmenter.knobs import MODELS, Base
from pipeline.segmenter.seen import Seen
from pipeline.segmenter.supervised import architecture_of, train_supervised
from pipeline.segmenter.weights import save_weights
from pipeline.store.cases import CaseStore
from pipeline.store.manifest import MANIFEST, write_json, write_manifest

TEACHER = "mean_teacher"
"""Name of the member that also learns from the images of the pool."""


@dataclass(frozen=True)
class _Training:
    """One model on one part of the labelled cases."""

    cases: CaseStore
    knobs: Base
    augmentation: Augmentation
    compute: Compute
    seed: int
    fold_of: dict[str, int]  # case_id -> fold; a fold's model is trained without it
    work: Path

    def __call__(self, shard: Shard) -> pl.DataFrame:
        (name,) = shard.members
        torch.set_num_threads(self.compute.threads)
        # Dropout layers of a network draw from the global generator; this task has the process for itself.
        torch.manual_seed(seed_of(self.seed, "base", name))
        fold = int(name.split("_")[1]) if name.startswith("fold_") else None
        labelled = [case for case in self.cases.split("labelled") if fold is None or self.fold_of[case.case_id] != fold]
        other = self.knobs.others.get(name)
        architecture = architecture_of(self.cases, other or self.knobs.network)
        trained = train_supervised(
            self.cases,
            labelled,
            architecture,
            self.knobs.optimisation,
            self.knobs.batch,
            self.augmentation,
            self.compute,
            seed_of(self.seed, "base", name),
            snapshots=self.knobs.snapshots if name == "base" or name in fold_names(self.knobs) else 0,
            mean_teacher=self.knobs.mean_teacher if name == TEACHER else None,
        )
        network = architecture.build(0)
        of_fold = f"{name}_" if fold is not None else ""
        states = {name: trained.best, **{f"{of_fold}snapshot_{step:06d}": s for step, s in trained.snapshots.items()}}
        if other is not None:
            architecture.save(self.work / name)
            self.cases.write_input(self.work / name)
            states = {f"{name}/base": trained.best}
        for title, state in states.items():
            network.load_state_dict(state)
            save_weights(network, self.work / f"{title}.safetensors")
        rows = pl.DataFrame(trained.history, infer_schema_length=None)
        return rows.select(
            pl.lit(name).alias("model"),
            pl.col("step").cast(pl.Int64),
            *(pl.col(c).cast(pl.Float64) if c in rows.columns else pl.lit(None, pl.Float64).alias(c) for c in _CURVES),
            (pl.col("step") == trained.best_step).alias("best"),
        )


_CURVES = ("loss", "validation_dice")


def fold_names(knobs: Base) -> list[str]:
    """Names of the models that leave a part of the labelled cases out."""
    return [f"fold_{i}" for i in range(knobs.folds)]


def _try(path: str, architecture: Architecture, compute: Compute) -> None:
    """One forward pass of an empty window: what does not fit is said before any training."""
    if objection := architecture.objection(compute.device):
        raise BadInput(
            f"{path}: {architecture.name} does not run on a window of {list(architecture.window)} on device "
            f"'{compute.device}': {objection}; correct `multiple`, `window` or `arguments`, or compute.device"
        )


def train_base(
    cases: CaseStore,
    knobs: Base | None,
    augmentation: Augmentation,
    compute: Compute,
    seed: int,
    out: Path,
    history: Path,
    execution: Execution,
) -> None:
    """Train base, members and folds, one task per model, and write their weights, `network.json` and history.

    Without knobs there is no model: the folder lists none, and all masks are imported. Raises `BadInput` for a network
    that cannot be built, an empty split and fewer labelled groups than folds.
    """
    history.parent.mkdir(parents=True, exist_ok=True)
    if knobs is None:
        write_json(out / MODELS, {"members": [], "folds": {}, "fold_of": {}, "snapshots": []})
        write_manifest(out, None)
        pl.DataFrame(schema=["model", "step", *_CURVES, "best"]).write_csv(history)
        return
    architecture = architecture_of(cases, knobs.network)
    for path, network in {
        "base.network": knobs.network,
        **{f"base.others.{n}": o for n, o in knobs.others.items()},
    }.items():
        _try(path, architecture_of(cases, network), compute)
    augmentation.check(architecture.dimensions)
    labelled = cases.split("labelled")
    for split in ("labelled", "validation", *(["pool"] if knobs.mean_teacher else [])):
        if not cases.split(split):
            raise BadInput(
                f"base: no case in split '{split}'; set base: null for masks from elsewhere, or change splits"
            )
    groups = sorted({case.group for case in labelled})
    if knobs.folds == 1 or knobs.folds > len(groups):
        raise BadInput(f"base.folds: expected 0 or 2 to {len(groups)} (labelled groups), found {knobs.folds}")
    order = numpy_generator(seed, "folds").permutation(len(groups))
    folds = fold_names(knobs)
    fold_of_group = {groups[g]: i % knobs.folds for i, g in enumerate(order)} if folds else {}
    fold_of = {case.case_id: fold_of_group[case.group] for case in labelled} if folds else {}
    seeds = [f"member_{i}" for i in range(1, knobs.members + 1)]
    members = [*seeds, *knobs.others, *([TEACHER] if knobs.mean_teacher else [])]
    of_folds = [f"{fold}_{member}" for fold in folds for member in seeds[: knobs.fold_members]]
    block = (knobs, augmentation, compute, seed)
    with workspace("base", __name__, block, [cases.folder / MANIFEST]) as work:
        task = _Training(cases, knobs, augmentation, compute, seed, fold_of, work)
        rows = run(task, shards_of(["base", *members, *folds, *of_folds], 1), work, execution, "base", isolated=True)
        snapshots = sorted(path.stem for path in work.glob("*snapshot_*.safetensors"))
        out.mkdir(parents=True, exist_ok=True)
        for name in ("base", *members, *folds, *of_folds, *snapshots):
            if name in knobs.others:
                publish(work / name, out / name)
            else:
                publish(work / f"{name}.safetensors", out / f"{name}.safetensors")
        architecture.save(out)
        cases.write_input(out)
        learned = ("labelled", "pool") if knobs.mean_teacher else ("labelled",)
        Seen(complete=True).also(cases, learned, ("validation",)).save(out)
        models = {
            "members": members,
            "folds": {
                fold: {
                    "members": seeds[: knobs.fold_members],
                    "snapshots": [name.removeprefix(f"{fold}_") for name in snapshots if name.startswith(f"{fold}_")],
                }
                for fold in folds
            },
            "fold_of": {case_id: folds[fold] for case_id, fold in fold_of.items()},
            "snapshots": [name for name in snapshots if name.startswith("snapshot_")],
        }
        write_json(out / MODELS, models)
        write_manifest(out, block)
        rows.write_csv(history)

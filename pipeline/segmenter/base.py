"""Stage `base`: training of the base segmenter, its members and its folds on the labelled split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.execution import Limits, Runtime, Shard, run, shards_of
from pipeline.progress import Style, showing
from pipeline.seeding import numpy_generator, seed_of
from pipeline.segmenter.augmentation import Augmentation
from pipeline.segmenter.knobs import MODELS, Base
from pipeline.segmenter.seen import Seen
from pipeline.segmenter.supervised import Recipe, architecture_of, train_supervised
from pipeline.segmenter.weights import save_weights
from pipeline.store.cases import Case, CaseStore
from pipeline.store.manifest import MANIFEST, write_json, write_manifest
from pipeline.workspace import publish, workspace

TEACHER = "mean_teacher"
"""Name of the member that also learns from pool images."""
CURVES = ("loss", "validation_dice")
"""Columns of the history that hold a measure of each evaluation."""


def train_base(
    cases: CaseStore, knobs: Base | None, augmentation: Augmentation, runtime: Runtime, out: Path, history: Path
) -> None:
    """Train base, members and folds, one task per model, and write their weights and the history of all models.

    `out` also gets `network.json`, `input.json`, `seen.json`, `models.json` and the manifest. Without knobs no model is
    trained: `models.json` lists no model, and all masks are imported. Raises `BadInput` for a network that cannot be
    built, an empty split, and fewer labelled groups than folds.
    """
    history.parent.mkdir(parents=True, exist_ok=True)
    if knobs is None:
        write_json(out / MODELS, {"members": [], "folds": {}, "fold_of": {}, "snapshots": []})
        write_manifest(out, None)
        pl.DataFrame(schema=["model", "step", *CURVES, "best"]).write_csv(history)
        return
    _check(cases, knobs, augmentation, runtime.compute)
    names = _Names.of(knobs)
    fold_of = _fold_of(cases.split("labelled"), knobs.folds, runtime.seed)
    # All that the weights follow from: a killed run is resumed only with an equal block.
    block = (knobs, augmentation, runtime.compute, runtime.seed)
    with workspace("base", __name__, block, [cases.folder / MANIFEST]) as work:
        progress = runtime.execution.progress
        task = _Training(cases, knobs, augmentation, runtime.compute, runtime.seed, fold_of, work, progress)
        # Isolated: training draws from torch's global generator, so no two tasks share a process at one time.
        limits = Limits(isolated=True)
        rows = run(task, shards_of(names.trained, 1), work, runtime.execution, "base", limits, "models")
        # Early stopping decides how many snapshots there are, so they are listed from the disk.
        snapshots = sorted(path.stem for path in work.glob("*snapshot_*.safetensors"))
        out.mkdir(parents=True, exist_ok=True)
        for name in (*names.trained, *snapshots):
            # A model of another architecture has a folder of its own, with its own `network.json`.
            file = name if name in knobs.others else f"{name}.safetensors"
            publish(work / file, out / file)
        architecture_of(cases, knobs.network).save(out)
        cases.write_input(out)
        learned = ("labelled", "pool") if knobs.mean_teacher else ("labelled",)
        Seen(complete=True).also(cases, learned, ("validation",)).save(out)
        write_json(out / MODELS, names.listed(fold_of, snapshots))
        write_manifest(out, block)
        rows.write_csv(history)


@dataclass(frozen=True)
class _Names:
    """Names of the models of a base, by role."""

    members: list[str]
    folds: list[str]
    fold_members: list[str]  # members that every fold has as well

    @classmethod
    def of(cls, knobs: Base) -> _Names:
        seeds = [f"member_{i}" for i in range(1, knobs.members + 1)]
        members = [*seeds, *knobs.others, *([TEACHER] if knobs.mean_teacher else [])]
        return cls(members, fold_names(knobs), seeds[: knobs.fold_members])

    @property
    def trained(self) -> list[str]:
        """All models, in the order of their training."""
        of_folds = [f"{fold}_{member}" for fold in self.folds for member in self.fold_members]
        return ["base", *self.members, *self.folds, *of_folds]

    def listed(self, fold_of: dict[str, int], snapshots: Sequence[str]) -> dict[str, object]:
        """Content of `models.json`."""

        def of_fold(fold: str) -> list[str]:
            return [name.removeprefix(f"{fold}_") for name in snapshots if name.startswith(f"{fold}_")]

        return {
            "members": self.members,
            "folds": {fold: {"members": self.fold_members, "snapshots": of_fold(fold)} for fold in self.folds},
            "fold_of": {case_id: self.folds[fold] for case_id, fold in fold_of.items()},
            "snapshots": [name for name in snapshots if name.startswith("snapshot_")],
        }


def fold_names(knobs: Base) -> list[str]:
    """Names of the fold models. Each fold model leaves out one part of the labelled cases."""
    return [f"fold_{i}" for i in range(knobs.folds)]


def folds_objection(knobs: Base, labelled: Sequence[Case]) -> str | None:
    """Why the labelled cases cannot be split into as many folds; None if they can."""
    groups = len({case.group for case in labelled})
    if knobs.folds == 1 or knobs.folds > groups:
        sizes = f"0 or 2 to {groups}" if groups > 1 else "0"
        return f"base.folds: expected {sizes} ({groups} labelled patients), found {knobs.folds}; set one of these"
    return None


def model_names(knobs: Base) -> list[str]:
    """Names of the models that a student may start from: the base, its members and its folds."""
    names = _Names.of(knobs)
    return ["base", *names.members, *names.folds]


def _fold_of(labelled: Sequence[Case], folds: int, seed: int) -> dict[str, int]:
    """Fold by labelled case id, with all cases of a group in one fold. Empty without folds."""
    if not folds:
        return {}
    groups = sorted({case.group for case in labelled})
    order = numpy_generator(seed, "folds").permutation(len(groups))
    # Groups are dealt in turn, so that folds differ by at most one group.
    fold_of_group = {groups[group]: place % folds for place, group in enumerate(order)}
    return {case.case_id: fold_of_group[case.group] for case in labelled}


def _check(cases: CaseStore, knobs: Base, augmentation: Augmentation, compute: Compute) -> None:
    """Raise `BadInput` for knobs that do not fit the cases or the device, before any training."""
    networks = {"base.network": knobs.network} | {f"base.others.{name}": one for name, one in knobs.others.items()}
    for path, network in networks.items():
        architecture = architecture_of(cases, network)
        if objection := architecture.objection(compute.device):
            raise BadInput(
                f"{path}: {architecture.name} does not run on a window of {list(architecture.window)} on device "
                f"'{compute.device}': {objection}; correct `multiple`, `window` or `arguments`, or compute.device"
            )
    augmentation.check(len(cases.padded), len(cases.class_names))
    for split in ("labelled", "validation", *(["pool"] if knobs.mean_teacher else [])):
        if not cases.split(split):
            raise BadInput(
                f"base: no case in split '{split}'; set base: null if all masks are imported, or change splits"
            )
    if objection := folds_objection(knobs, cases.split("labelled")):
        raise BadInput(objection)


@dataclass(frozen=True)
class _Training:
    """Task that trains one model on its part of the labelled cases."""

    cases: CaseStore
    knobs: Base
    augmentation: Augmentation
    compute: Compute
    seed: int
    fold_of: dict[str, int]  # by case id; the model of a fold is trained without its cases
    work: Path
    progress: Style

    def __call__(self, shard: Shard) -> pl.DataFrame:
        (name,) = shard.members
        with showing(self.progress, f"base/{name}", "validation Dice"):
            return self._trained(name)

    def _trained(self, name: str) -> pl.DataFrame:
        torch.set_num_threads(self.compute.threads)
        # Dropout layers draw from torch's global generator, which isolation gives to this task alone.
        torch.manual_seed(seed_of(self.seed, "base", name))
        fold = int(name.split("_")[1]) if name.startswith("fold_") else None
        labelled = [case for case in self.cases.split("labelled") if fold is None or self.fold_of[case.case_id] != fold]
        other = self.knobs.others.get(name)
        architecture = architecture_of(self.cases, other or self.knobs.network)
        trained = train_supervised(
            Recipe(architecture, self.knobs.optimisation, self.knobs.batch, self.augmentation, self.compute),
            self.cases,
            labelled,
            seed_of(self.seed, "base", name),
            snapshots=self.knobs.snapshots if name == "base" or name in fold_names(self.knobs) else 0,
            mean_teacher=self.knobs.mean_teacher if name == TEACHER else None,
        )
        network = architecture.build(0)
        # Snapshots of a fold carry the name of the fold; those of the base carry none.
        of_fold = f"{name}_" if fold is not None else ""
        states = {name: trained.best, **{f"{of_fold}snapshot_{step:06d}": s for step, s in trained.snapshots.items()}}
        if other is not None:
            architecture.save(self.work / name)
            self.cases.write_input(self.work / name)
            states = {f"{name}/base": trained.best}
        for title, state in states.items():
            network.load_state_dict(state)
            save_weights(network, self.work / f"{title}.safetensors")
        # Row 0 has no loss, so the columns are taken from all rows.
        rows = pl.DataFrame(trained.history, infer_schema_length=None)
        return rows.select(
            pl.lit(name).alias("model"),
            pl.col("step").cast(pl.Int64),
            *(pl.col(c).cast(pl.Float64) if c in rows.columns else pl.lit(None, pl.Float64).alias(c) for c in CURVES),
            (pl.col("step") == trained.best_step).alias("best"),
        )

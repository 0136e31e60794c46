"""Trained models on disk by role: the base, its members, its snapshots, and the folds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn

from pipeline.compute import Compute
from pipeline.segmenter.architecture import ARCHITECTURE, Architecture
from pipeline.segmenter.knobs import MODELS
from pipeline.segmenter.program import FORMATS, load_program
from pipeline.segmenter.segmenter import Segmenter
from pipeline.segmenter.weights import load_weights, per_thread


@dataclass(frozen=True)
class Model:
    """Trained weights on disk; cheap to pickle."""

    folder: Path
    name: str = "base"

    def __reduce__(self) -> tuple[type[Model], tuple[Path, str]]:
        return Model, (self.folder, self.name)

    @cached_property
    def architecture(self) -> Architecture:
        """The network that the weights are of."""
        return Architecture.load(self.folder)

    @property
    def weights(self) -> Path:
        """The file of the weights, or of the program."""
        suffix = FORMATS[self.architecture.arguments["format"]] if self.architecture.program else ".safetensors"
        return self.folder / f"{self.name}{suffix}"

    def load(self, device: str = "cpu") -> nn.Module:
        """A network that nobody else holds, in eval mode."""
        if self.architecture.program:
            return load_program(self.weights, device)
        return load_weights(self.architecture.build(seed=0), self.weights).to(device).eval()

    def segmenter(self, compute: Compute) -> Segmenter:
        """The network that this thread shares, ready to predict: never train it."""
        network = per_thread(self.weights, compute.device, lambda: self.load(compute.device))
        return Segmenter(network, self.architecture, compute)


def member_models(folder: Path) -> dict[str, Model]:
    """Further models of a base folder by name, folds last; one of another architecture has a folder of its own."""
    models = json.loads((folder / MODELS).read_text())
    names = [*models["members"], *models["folds"]]
    return {name: Model(folder / name, "base") if (folder / name).is_dir() else Model(folder, name) for name in names}


def snapshot_models(folder: Path) -> dict[str, Model]:
    """Earlier checkpoints of the base by name, in the order of their steps."""
    names = json.loads((folder / MODELS).read_text())["snapshots"]
    return {name: Model(folder, name) for name in names}


@dataclass(frozen=True)
class Family:
    """A base with its members and snapshots, by name: what proposals are drawn from."""

    base: Model | None
    members: dict[str, Model]
    snapshots: dict[str, Model]


def family(folder: Path) -> Family:
    """The base of a folder and all its relatives; of `base: null`, none."""
    base = Model(folder, "base") if (folder / ARCHITECTURE).is_file() else None
    return Family(base, member_models(folder), snapshot_models(folder))


def fold_families(folder: Path) -> dict[str, Family]:
    """By labelled case id, the models that have not seen it: those of its fold, under the names of their like in the
    base. Of snapshots, those that all folds have: a fold whose training stopped early has fewer."""
    models = json.loads((folder / MODELS).read_text())
    folds = models["folds"]
    kept = [set(fold["snapshots"]) for fold in folds.values()]
    common = sorted(set.intersection(*kept)) if kept else []
    families = {
        fold: Family(
            Model(folder, fold),
            {name: Model(folder, f"{fold}_{name}") for name in relatives["members"]},
            {name: Model(folder, f"{fold}_{name}") for name in common},
        )
        for fold, relatives in folds.items()
    }
    return {case_id: families[fold] for case_id, fold in models["fold_of"].items()}

"""Trained models on disk, by role: base, members, snapshots and folds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.segmenter.architecture import ARCHITECTURE, Architecture
from pipeline.segmenter.knobs import MODELS
from pipeline.segmenter.program import FORMATS, load_program
from pipeline.segmenter.seen import SEEN
from pipeline.segmenter.segmenter import Segmenter
from pipeline.segmenter.weights import load_weights, per_thread
from pipeline.store.manifest import read_json


@dataclass(frozen=True)
class Model:
    """One trained model on disk. Pickling keeps the path only."""

    folder: Path
    name: str = "base"

    def __reduce__(self) -> tuple[type[Model], tuple[Path, str]]:
        return Model, (self.folder, self.name)

    @cached_property
    def architecture(self) -> Architecture:
        """Architecture of the network."""
        return Architecture.load(self.folder)

    @property
    def seen_folder(self) -> Path:
        """Folder with `seen.json`: a member of another architecture lies in a folder inside the folder of the base."""
        inside = not (self.folder / SEEN).is_file() and (self.folder.parent / MODELS).is_file()
        return self.folder.parent if inside else self.folder

    @property
    def weights(self) -> Path:
        """File of the weights, or of the program."""
        suffix = FORMATS[self.architecture.arguments["format"]] if self.architecture.program else ".safetensors"
        return self.folder / f"{self.name}{suffix}"

    def load(self, device: str = "cpu") -> nn.Module:
        """A new copy of the network, in eval mode, which the caller may train."""
        if self.architecture.program:
            return load_program(self.weights, device)
        return load_weights(self.architecture.build(seed=0), self.weights).to(device).eval()

    def segmenter(self, compute: Compute) -> Segmenter:
        """Segmenter with the network that all code of this thread shares. The network must not be trained."""
        network = per_thread(self.weights, compute.device, lambda: self.load(compute.device))
        return Segmenter(network, self.architecture, compute)


def member_models(folder: Path) -> dict[str, Model]:
    """Members and folds of a base folder by name, folds last. A model of another architecture has its own folder."""
    models = read_json(folder / MODELS, "members", "folds")
    names = {name: name for name in models["members"]} | _models_of_folds(models)
    return {title: _stored(folder, name) for title, name in names.items()}


def _stored(folder: Path, name: str) -> Model:
    return Model(folder / name, "base") if (folder / name).is_dir() else Model(folder, name)


def _models_of_folds(models: dict[str, Any]) -> dict[str, str]:
    """Name of the weights of each fold. Imported folds are weights that have another name as base or member."""
    return {fold: one.get("model", fold) for fold, one in models["folds"].items()}


def unseen_labelled(model: Model) -> set[str]:
    """Ids of the labelled cases that a fold has not seen. Empty for models that are no fold."""
    folder = model.seen_folder
    if not (folder / MODELS).is_file():
        return set()
    models = read_json(folder / MODELS, "folds", "fold_of")
    name = model.name if folder == model.folder else model.folder.name
    own = {fold for fold, of_fold in _models_of_folds(models).items() if of_fold == name}
    return {case_id for case_id, fold in models["fold_of"].items() if fold in own}


def start_model(folder: Path, name: str) -> Model:
    """The model of a base folder that a student starts from: `base`, or a member or fold by name.

    Raises `BadInput` with the known names for another name.
    """
    if name == "base":
        return Model(folder)
    members = member_models(folder)
    if name not in members:
        known = ["base", *members]
        raise BadInput(f"{folder}: expected the name of a model to start from, found '{name}'; there are {known}")
    return members[name]


def snapshot_models(folder: Path) -> dict[str, Model]:
    """Snapshots of the base by name, in the order of their steps."""
    names = read_json(folder / MODELS, "snapshots")["snapshots"]
    return {name: Model(folder, name) for name in names}


@dataclass(frozen=True)
class Family:
    """Models that proposals are drawn from: a base, with its members and snapshots by name."""

    base: Model | None
    members: dict[str, Model]
    snapshots: dict[str, Model]
    fold: str | None = None  # name of the fold whose models these are; None: the models of the pool


def family(folder: Path) -> Family:
    """Base of a folder, with members, folds and snapshots. No base if `base` is null."""
    base = Model(folder, "base") if (folder / ARCHITECTURE).is_file() else None
    return Family(base, member_models(folder), snapshot_models(folder))


def fold_families(folder: Path) -> dict[str, Family]:
    """Models that have not seen a labelled case, by case id: the models of the case's fold.

    Labelled cases that no fold has left out are not listed.
    Members and snapshots have the names of the base's members and snapshots. Snapshots that some fold lacks, because
    its training stopped early, are left out.
    """
    models = read_json(folder / MODELS, "folds", "fold_of")
    folds = models["folds"]
    kept = [set(fold["snapshots"]) for fold in folds.values()]
    common = sorted(set.intersection(*kept)) if kept else []
    families = {
        fold: Family(
            _stored(folder, of_fold),
            {name: Model(folder, f"{fold}_{name}") for name in folds[fold]["members"]},
            {name: Model(folder, f"{fold}_{name}") for name in common},
            fold,
        )
        for fold, of_fold in _models_of_folds(models).items()
    }
    return {case_id: families[fold] for case_id, fold in models["fold_of"].items()}

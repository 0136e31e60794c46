"""Base of kind `checkpoint`: a model folder of this project, or a weights file for a named network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from pipeline.cases.preprocess import Preprocess
from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.segmenter.knobs import MODELS, Network
from pipeline.segmenter.student_record import STUDENT_FILE, StudentRecord

if TYPE_CHECKING:
    from pipeline.segmenter.imported.importer import ImportedModel, ImportedNetwork
    from pipeline.store.cases import CaseStore

Stated = Literal["class_names", "channel_names", "preprocess", "orientation", "convert", "files", "seen"]


class Checkpoint(Knobs):
    """Trained weights in a folder of this project (base, student or export), or in a file (safetensors, or a
    `state_dict` saved by torch)."""

    kind: Literal["checkpoint"]
    network: Network | None = None
    """For a file: network of the weights. A folder names its network itself, so leave this knob null."""
    weights: str | None = None
    """For a folder: name of the weights, such as `best` or `step_000160`. Null: `base` of a base, `last` of a student,
    and the only weights of any other folder, such as an export."""
    members: tuple[str, ...] = ()
    """For a folder: names of further weights for the sampler `ensemble`, such as members of a base."""
    snapshots: tuple[str, ...] = ()
    """For a folder: names of further weights for the sampler `snapshots`, such as late steps of a student."""
    ignore: tuple[Stated, ...] = ()
    """Properties of the training data, as stated in a folder, that may differ from this data. A difference changes the
    input of the network or the names of its outputs. `seen` permits test cases that the model has seen and validation
    cases that it was trained on; measures on these cases are then too good."""

    @model_validator(mode="after")
    def _names(self) -> Checkpoint:
        chosen = [*([self.weights] if self.weights else []), *self.members, *self.snapshots]
        if self.network is not None and chosen:
            raise ValueError(
                f"network: a file has one network, and {chosen} are of a folder; remove base.network or the names"
            )
        if twice := sorted({name for name in chosen if chosen.count(name) > 1}):
            raise ValueError(f"weights {twice} are named twice; list every name once")
        for name in (*self.members, *self.snapshots):
            if name in ("base", "mean") or name.startswith("fold_") or Path(name).name != name:
                raise ValueError(f"'{name}' cannot be a relative of the base; name other weights of the folder")
        return self

    def read(self, model: Path, cases: CaseStore, device: str) -> ImportedModel:
        """Networks of the folder or file. Raises `BadInput` with keys and shapes for weights of another network."""
        return self._folder(model, cases) if model.is_dir() else self._file(model, cases)

    def _file(self, model: Path, cases: CaseStore) -> ImportedModel:
        from pipeline.segmenter.architecture import Architecture
        from pipeline.segmenter.imported.importer import ImportedModel, ImportedNetwork
        from pipeline.segmenter.imported.weight_file import SUFFIXES, read_state
        from pipeline.segmenter.weights import load_state

        if model.suffix not in SUFFIXES:
            raise BadInput(
                f"model: {model}: expected a folder with a model, or a file {', '.join(SUFFIXES)}, found "
                f"'{model.suffix}'; save network.state_dict() with torch.save"
            )
        if self.network is None:
            raise BadInput(f"base.network: missing; name the network of the weights in {model}")
        architecture = Architecture.of(self.network, cases.channels, len(cases.class_names), cases.padded)
        state, notes = read_state(model)
        network = load_state(architecture.build(0), state, str(model))
        return ImportedModel(
            ImportedNetwork(architecture, model, network), notes=tuple(notes), may_have_seen="seen" in self.ignore
        )

    def _folder(self, folder: Path, cases: CaseStore) -> ImportedModel:
        from pipeline.segmenter.architecture import ARCHITECTURE
        from pipeline.segmenter.imported.importer import ImportedModel
        from pipeline.segmenter.models import Model

        if not (folder / ARCHITECTURE).is_file():
            raise BadInput(
                f"model: {folder}: expected the folder of a base, a student or an export, found no {ARCHITECTURE}; "
                "name such a folder, or a file of weights with base.network"
            )
        if self.network is not None:
            raise BadInput(f"base.network: {folder} names its network itself; remove base.network")
        if Model(folder).architecture.program:
            raise BadInput(
                f"model: {folder}: expected weights, found a program; name its file in `model`, with kind 'program'"
            )
        _same_input(folder, cases, self.ignore)
        base = _of_folder(folder, self.weights or _usual(folder))
        members = {name: _of_folder(folder, name) for name in self.members}
        snapshots = {name: _of_folder(folder, name) for name in self.snapshots}
        for name, one in snapshots.items():
            if one.architecture != base.architecture:
                raise BadInput(f"base.snapshots: '{name}' is of another network than '{base.source.stem}'; remove it")
        return ImportedModel(base, members, snapshots, may_have_seen="seen" in self.ignore)


def _usual(folder: Path) -> str:
    """Name of the weights that a folder stands for, if none is named."""
    from pipeline.segmenter.imported.importer import listed

    record = StudentRecord.of(folder)
    if record is not None:
        if record.slot is not None or not record.steps:
            raise BadInput(
                f"{folder / STUDENT_FILE}: the student is a tuned threshold or a fixed proposal, without weights of "
                "its own; use its base, or another student"
            )
        return "last"
    if (folder / MODELS).is_file():
        return "base"
    names = sorted(path.stem for path in folder.glob("*.safetensors"))
    if len(names) != 1:
        raise BadInput(f"base.weights: missing; {folder} has {listed(names)}; name one")
    return names[0]


def _of_folder(folder: Path, name: str) -> ImportedNetwork:
    from pipeline.segmenter.imported.importer import ImportedNetwork, listed
    from pipeline.segmenter.models import Model
    from pipeline.segmenter.output_bias import with_offsets

    model = Model(folder / name, "base") if (folder / name).is_dir() else Model(folder, name)
    if not model.weights.is_file():
        names = sorted(path.stem for path in folder.glob("*.safetensors"))
        raise BadInput(f"base: {model.weights}: no such weights; {folder} has {listed(names)}; correct the name")
    # A base has no offsets beside its weights, so those of a student go into the weights.
    network = with_offsets(model)
    return ImportedNetwork(model.architecture, model.weights, model.load() if network is None else network)


def _same_input(folder: Path, cases: CaseStore, ignore: tuple[Stated, ...]) -> None:
    """Raise `BadInput` if a folder states other images than these cases, except for the properties in `ignore`."""
    from pipeline.store.cases import INPUT, INPUT_KEYS
    from pipeline.store.manifest import read_json

    path = folder / INPUT
    if not path.is_file():
        return
    stated = read_json(path)
    for key in INPUT_KEYS:
        # How masks are written says nothing of the images.
        if key != "mask_values" and key not in ignore and _plain(key, stated) != _plain(key, cases.info):
            wanted, found = json.dumps(stated.get(key)), json.dumps(cases.info.get(key))
            to_do = f"set `preprocess: {wanted}`" if key == "preprocess" else "prepare the data as for the model"
            raise BadInput(
                f"{path}: {key}: the model expects {wanted}, found {found} in {cases.folder / 'cases.json'}; {to_do}, "
                f"or list '{key}' under base.ignore if the difference is intended"
            )


def _plain(key: str, info: Mapping[str, Any]) -> Any:
    """Statement of a key, with the defaults of knobs that were added after it was written."""
    value = info.get(key)
    return (
        {**Preprocess().model_dump(mode="json"), **value} if key == "preprocess" and isinstance(value, dict) else value
    )

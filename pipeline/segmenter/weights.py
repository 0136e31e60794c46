"""Trained networks: their weights on disk, and what their logits say."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import BadInput
from pipeline.segmenter.architecture import ARCHITECTURE, Architecture
from pipeline.segmenter.knobs import MODELS
from pipeline.segmenter.program import FORMATS, load_program


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the network's state as safetensors, renamed into place."""
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    # A DynUNet holds its layers under two names each: safetensors takes no tensor twice.
    seen: set[int] = set()
    for name, value in state.items():
        state[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    # Not `save_file`, whose files only their owner can read.
    partial.write_bytes(save(state))
    partial.replace(path)


def load_weights(network: nn.Module, path: Path) -> nn.Module:
    """Load safetensors into the network; a mismatch names keys and shapes. Returns the network."""
    if not path.is_file():
        raise BadInput(f"{path}: no such weights; run the stage that trains them with `dvc repro`")
    return load_state(network, read_safetensors(path), str(path))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a file by name."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise BadInput(f"{path}: not a readable safetensors file ({error}); fetch it or write it again") from error


def load_state(network: nn.Module, found: Mapping[str, Tensor], path: str) -> nn.Module:
    """Load a state into the network; a mismatch names the file's path, keys and shapes. Returns the network."""
    expected = network.state_dict()
    wrong = [f"missing '{name}' {tuple(expected[name].shape)}" for name in expected.keys() - found.keys()]
    wrong += [f"unexpected '{name}' {tuple(found[name].shape)}" for name in found.keys() - expected.keys()]
    wrong += [
        f"'{name}' expected {tuple(expected[name].shape)}, found {tuple(found[name].shape)}"
        for name in expected.keys() & found.keys()
        if expected[name].shape != found[name].shape
    ]
    if wrong:
        raise BadInput(f"{path}: weights of another network: " + "; ".join(sorted(wrong)[:10]))
    network.load_state_dict(dict(found))
    return network


_LOADED = threading.local()


@dataclass(frozen=True)
class Model:
    """Trained weights on disk; cheap to pickle, loaded once per process and thread."""

    folder: Path
    name: str = "base"
    device: str = "cpu"

    def __reduce__(self) -> tuple[type[Model], tuple[Path, str, str]]:
        return Model, (self.folder, self.name, self.device)

    @cached_property
    def architecture(self) -> Architecture:
        return Architecture.load(self.folder)

    @property
    def weights(self) -> Path:
        """The file of the weights, or of the program."""
        suffix = FORMATS[self.architecture.arguments["format"]] if self.architecture.program else ".safetensors"
        return self.folder / f"{self.name}{suffix}"

    def load(self) -> nn.Module:
        """A network of its own, in eval mode."""
        if self.architecture.program:
            return load_program(self.weights, self.device)
        return load_weights(self.architecture.build(seed=0), self.weights).to(self.device).eval()

    def shared(self) -> nn.Module:
        """The network of this thread, in eval mode: never train it."""
        loaded: dict[str, Any] = _LOADED.__dict__
        stat = self.weights.stat() if self.weights.is_file() else None
        key = f"{self.weights.resolve()}:{stat and stat.st_mtime_ns}:{self.device}"
        if key not in loaded:
            loaded[key] = self.load()
        return loaded[key]


def member_models(folder: Path, device: str = "cpu") -> dict[str, Model]:
    """Further models of a base folder by name, folds last; one of another architecture has a folder of its own."""
    models = json.loads((folder / MODELS).read_text())
    names = [*models["members"], *models["folds"]]
    return {
        name: Model(folder / name, "base", device) if (folder / name).is_dir() else Model(folder, name, device)
        for name in names
    }


def snapshot_models(folder: Path, device: str = "cpu") -> dict[str, Model]:
    """Earlier checkpoints of the base by name, in the order of their steps."""
    names = json.loads((folder / MODELS).read_text())["snapshots"]
    return {name: Model(folder, name, device) for name in names}


@dataclass(frozen=True)
class Family:
    """A base with its members and snapshots, by name: what proposals are drawn from."""

    base: Model | None
    members: dict[str, Model]
    snapshots: dict[str, Model]


def family(folder: Path, device: str = "cpu") -> Family:
    """The base of a folder and all its relatives; of `base: null`, none."""
    base = Model(folder, "base", device) if (folder / ARCHITECTURE).is_file() else None
    return Family(base, member_models(folder, device), snapshot_models(folder, device))


def fold_families(folder: Path, device: str = "cpu") -> dict[str, Family]:
    """By labelled case id, the models that have not seen it: those of its fold, under the names of their like in the
    base. Of snapshots, those that all folds have: a fold whose training stopped early has fewer."""
    models = json.loads((folder / MODELS).read_text())
    folds = models["folds"]
    kept = [set(fold["snapshots"]) for fold in folds.values()]
    common = sorted(set.intersection(*kept)) if kept else []
    families = {
        fold: Family(
            Model(folder, fold, device),
            {name: Model(folder, f"{fold}_{name}", device) for name in relatives["members"]},
            {name: Model(folder, f"{fold}_{name}", device) for name in common},
        )
        for fold, relatives in folds.items()
    }
    return {case_id: families[fold] for case_id, fold in models["fold_of"].items()}


def probability(logits: Tensor) -> Tensor:
    """Class probabilities `[class, *space]` of logits `[output, *space]`; one output is a sigmoid head."""
    if logits.shape[0] == 1:
        foreground = torch.sigmoid(logits)
        return torch.cat([1 - foreground, foreground])
    return torch.softmax(logits, dim=0)


def predicted_classes(logits: Tensor) -> Tensor:
    """Most probable class u8 `[image, *space]` of a batch of logits `[image, output, *space]`."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).to(torch.uint8)
    return logits.max(dim=1).indices.to(torch.uint8)


def shifted(logits: Tensor, offsets: Sequence[float]) -> Tensor:
    """Logits `[output, *space]` with these added to the foreground classes; none added where there are no offsets."""
    if not offsets:
        return logits
    each = torch.tensor(offsets if logits.shape[0] == 1 else [0.0, *offsets], dtype=logits.dtype, device=logits.device)
    return logits + each.view(-1, *([1] * (logits.ndim - 1)))


def labels(probability: Tensor) -> np.ndarray:
    """Most probable class u8 `[*space]` of class probabilities or logits `[class, *space]`."""
    # Not argmax, which is ten times slower over the first axis.
    return probability.max(dim=0).indices.to(torch.uint8).cpu().numpy()

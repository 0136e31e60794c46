"""Segmentation networks by name from MONAI, their weights on disk, and inference on whole cases."""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import BadInput
from pipeline.recipe import MODELS, Compute, Network
from pipeline.store import write_json

ARCHITECTURE = "network.json"
_BUILDING = threading.Lock()


@dataclass(frozen=True)
class Architecture:
    """All that is needed to rebuild a network: stored as JSON beside its weights."""

    name: str
    arguments: dict[str, Any]
    dimensions: int
    channels: int
    classes: int
    head: str
    window: tuple[int, ...]

    @classmethod
    def of(cls, knobs: Network, channels: int, classes: int, padded: Sequence[int]) -> Architecture:
        """The network of these knobs for images of `channels` whose largest case is `padded`."""
        if knobs.head == "sigmoid" and classes != 2:
            raise BadInput(f"base.network.head: 'sigmoid' is for 2 classes, the data has {classes}; use 'softmax'")
        window = tuple(padded) if knobs.window is None else knobs.window
        if len(window) != len(padded):
            raise BadInput(f"base.network.window: expected {len(padded)} numbers for this data, found {list(window)}")
        window = tuple(-(-length // knobs.multiple) * knobs.multiple for length in window)
        return cls(knobs.name, knobs.arguments, len(padded), channels, classes, knobs.head, window)

    @property
    def outputs(self) -> int:
        """Output channels: one for a sigmoid head, else one per class."""
        return 1 if self.head == "sigmoid" else self.classes

    def build(self, seed: int) -> nn.Module:
        """The network with initial weights drawn from `seed`; torch's global generator is left as it was."""
        from monai.networks import nets

        kind = getattr(nets, self.name, None)
        if not (inspect.isclass(kind) and issubclass(kind, nn.Module)):
            raise BadInput(f"base.network.name: MONAI has no network '{self.name}'; see monai.networks.nets")
        sizes = {"spatial_dims": self.dimensions, "in_channels": self.channels, "out_channels": self.outputs}
        # The generator is global, so networks are built one at a time.
        with _BUILDING, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                return kind(**sizes, **self.arguments)
            except (TypeError, ValueError) as error:
                raise BadInput(f"base.network.arguments: {self.name} refuses {self.arguments}: {error}") from error

    def save(self, folder: Path) -> None:
        """Write `network.json`."""
        write_json(folder / ARCHITECTURE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Architecture:
        """Read `network.json`."""
        path = folder / ARCHITECTURE
        if not path.is_file():
            raise BadInput(f"{path}: no such model; run the stage that trains it with `dvc repro`")
        content = json.loads(path.read_text())
        return cls(**{**content, "window": tuple(content["window"])})


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the network's state as safetensors, renamed into place."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    save_file({name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}, partial)
    partial.replace(path)


def load_weights(network: nn.Module, path: Path) -> nn.Module:
    """Load safetensors into the network; a mismatch names keys and shapes. Returns the network."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise BadInput(f"{path}: no such weights; run the stage that trains them with `dvc repro`")
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise BadInput(f"{path}: not a readable safetensors file ({error})") from error
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
    network.load_state_dict(found)
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
        return self.folder / f"{self.name}.safetensors"

    def load(self) -> nn.Module:
        """A network of its own, in eval mode."""
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


def pad_to(image: Tensor, window: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the last axes of an image at their ends up to the window; axes that are longer stay."""
    n = len(window)
    missing = [max(0, want - have) for want, have in zip(window, image.shape[-n:], strict=True)]
    return nn.functional.pad(image, [edge for length in reversed(missing) for edge in (0, length)], value=value)


@torch.no_grad()
def predict(network: nn.Module, image: np.ndarray, window: Sequence[int], compute: Compute) -> Tensor:
    """Logits f32 `[output, *space]` of one case `[channel, *space]` of any size, on the compute device.

    One case is one forward pass of the window, whatever else is running: batches would move the last bits.
    Larger cases slide the window with half overlap and Gaussian blending.
    """
    space = image.shape[1:]
    whole = pad_to(torch.from_numpy(np.ascontiguousarray(image)), window)[None].to(compute.device)
    with compute.autocast():
        if tuple(whole.shape[2:]) == tuple(window):
            logits = network(whole)
        else:
            from monai.inferers import sliding_window_inference

            logits = sliding_window_inference(whole, tuple(window), 1, network, overlap=0.5, mode="gaussian")
    return logits[0].float()[(slice(None), *(slice(0, length) for length in space))]


def probability(logits: Tensor) -> Tensor:
    """Class probabilities `[class, *space]` of logits `[output, *space]`; one output is a sigmoid head."""
    if logits.shape[0] == 1:
        foreground = torch.sigmoid(logits)
        return torch.cat([1 - foreground, foreground])
    return torch.softmax(logits, dim=0)


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

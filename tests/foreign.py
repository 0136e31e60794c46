"""Models as others leave them: weights in files of several shapes, MONAI bundles and programs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from pydantic import TypeAdapter
from torch import nn

from pipeline.augmentation import Augmentation
from pipeline.bases import AnyBase
from pipeline.bases.foreign import import_base
from pipeline.dataset import CaseStore
from pipeline.recipe import Compute
from tests.builders import case_store
from tests.networks import noise, seeded
from tests.phantoms import disc

NETWORK = {"name": "UNet", "arguments": {"channels": [4, 8], "strides": [2]}, "multiple": 2}
SPLITS = ["labelled", "labelled", "pool", "validation", "validation"]


def discs(folder: Path, space: tuple[int, ...] = (10, 10), channels: int = 1) -> CaseStore:
    """Five discs in noise of two classes, two of them of validation."""
    labels = [disc(space, 2 + 0.5 * (i % 3)) for i in range(5)]
    images = [
        np.repeat(label[None], channels, 0) + 0.3 * noise((channels, *space), f"c{i}")[0]
        for i, label in enumerate(labels)
    ]
    return case_store(folder, labels, SPLITS, [image.astype(np.float32) for image in images])


def network(outputs: int = 2, channels: int = 1, dimensions: int = 2, seed: int = 3) -> nn.Module:
    """MONAI's own network of `NETWORK`, without anything of this project."""
    from monai.networks.nets import UNet

    sizes: dict[str, Any] = {"spatial_dims": dimensions, "in_channels": channels, "out_channels": outputs}
    return seeded(lambda: UNet(**sizes, channels=(4, 8), strides=(2,)), seed)


def base_of(**block: Any) -> Any:
    """Validated as params.yaml is."""
    return TypeAdapter(AnyBase).validate_json(json.dumps(block))


def imported(folder: Path, cases: CaseStore, model: Path, **block: Any) -> Path:
    """The base folder that the stage makes of a model."""
    out, history = folder / "models/base", folder / "history/base.csv"
    import_base(cases, base_of(**block), model, Augmentation(flips=(0,)), Compute(), out, history)
    return out


def history(folder: Path) -> list[dict[str, Any]]:
    return pl.read_csv(folder / "history/base.csv").to_dicts()


def write_bundle(folder: Path, config: dict[str, Any], state: dict[str, torch.Tensor] | None = None) -> Path:
    """A MONAI bundle with this inference configuration and the weights of `network()`."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs/inference.json").write_text(json.dumps(config))
    torch.save(network().state_dict() if state is None else state, folder / "models/model.pt")
    return folder


class Canary:
    """Pickled, it creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))

"""Networks whose answer is known, and cases for samplers to draw from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from pipeline.dataset import Case
from pipeline.recipe import Compute
from pipeline.samplers import Sampler
from pipeline.samplers.sampler import CaseModels, Draw, Loaded, drawn
from pipeline.seeding import numpy_generator


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def small(dimensions: int, outputs: int, seed: int = 0) -> nn.Module:
    """Two convolutions of width 3."""
    conv = nn.Conv2d if dimensions == 2 else nn.Conv3d
    return seeded(lambda: nn.Sequential(conv(1, 4, 3, padding=1), nn.ReLU(), conv(4, outputs, 3, padding=1)), seed)


def same(one: nn.Module, two: nn.Module) -> bool:
    """Whether all their weights are equal, by name."""
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


class Constant(nn.Module):
    """Logits of these class probabilities at every voxel; a single number is the foreground of a sigmoid head."""

    def __init__(self, *probability: float) -> None:
        super().__init__()
        p = torch.tensor(probability)
        self.logits = torch.logit(p) if len(p) == 1 else p.log()

    def forward(self, image: Tensor) -> Tensor:
        return self.logits.view(1, -1, *([1] * (image.ndim - 2))).expand(len(image), -1, *image.shape[2:])


class Ramp(nn.Module):
    """Sigmoid head: foreground in the second half of the first spatial axis, whatever the image."""

    def forward(self, image: Tensor) -> Tensor:
        length = image.shape[2]
        ramp = torch.where(torch.arange(length) < length / 2, -1.0, 2.0)
        return ramp.view(1, 1, length, *([1] * (image.ndim - 3))).expand(len(image), 1, *image.shape[2:])


def noise(space: Sequence[int], case_id: str = "c0") -> np.ndarray:
    return numpy_generator("samplers", case_id).normal(size=(1, *space)).astype(np.float32)


def row_of(space: Sequence[int], case_id: str = "c0", **columns: Any) -> Case:
    """A case of the pool on this grid, in a store of its own."""
    shape = tuple(space)
    return replace(Case(case_id, 0, case_id, "pool", False, shape, None, shape, None, None), **columns)


def case_of(space: Sequence[int], classes: int = 2, image: np.ndarray | None = None, **fields: Any) -> CaseModels:
    """A case without any model or draw; `fields` of `CaseModels` replace what it has."""
    image = np.zeros((1, *space), np.float32) if image is None else image
    start = CaseModels(row_of(space), image, classes, None, {}, {}, Compute(), 0)
    return replace(start, draws=[], **fields)


def models(
    base: nn.Module,
    image: np.ndarray,
    case_id: str = "c0",
    members: Mapping[str, nn.Module] | None = None,
    seed: int = 0,
    snapshots: Mapping[str, nn.Module] | None = None,
) -> CaseModels:
    """A case whose slot 0 is drawn."""
    space = image.shape[1:]

    def loaded(networks: Mapping[str, nn.Module] | None) -> dict[str, Loaded]:
        return {name: Loaded(network, space) for name, network in (networks or {}).items()}

    case = case_of(
        space,
        image=image,
        row=row_of(space, case_id),
        base=Loaded(base, space),
        members=loaded(members),
        snapshots=loaded(snapshots),
        seed=seed,
    )
    slot = drawn("base", "base", case.predict(case.segmenter))
    assert slot.probability is not None
    case.classes = len(slot.probability)
    case.keep(slot)
    return case


def given(*probabilities: Any, masks: Sequence[Any] = ()) -> CaseModels:
    """A case whose draws are these class probabilities `[class, *space]` and, behind them, these masks."""
    space = np.shape(probabilities[0])[1:] if probabilities else np.shape(masks[0])
    classes = len(probabilities[0]) if probabilities else 1 + int(np.max(masks))
    case = case_of(space, classes)
    for p in probabilities:
        case.keep(drawn("base", "base", torch.tensor(np.array(p))))
    for mask in masks:
        case.keep(Draw(np.array(mask, np.uint8), "s", "1"))
    return case


def sampler_of(kind: str, **knobs: Any) -> Any:
    """Validated as params.yaml is."""
    return TypeAdapter(Sampler).validate_json(json.dumps({"kind": kind, **knobs}))

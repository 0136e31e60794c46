"""Monte-Carlo dropout, injected by hooks, so that any network has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from pydantic import Field

from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.samplers.sampler import CaseModels, Draw, drawn
from pipeline.seeding import torch_generator

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Place = Literal["bottleneck", "all", "own"]
_LAYERS: WeakKeyDictionary[nn.Module, dict[str, list[nn.Module]]] = WeakKeyDictionary()


class MCDropout(Knobs):
    """Passes of the base with dropped feature channels, at a sweep of rates."""

    kind: Literal["mc_dropout"]
    rates: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    """Share of channels dropped, one pass each."""
    passes: Annotated[int, Field(gt=0)] = 1
    """Passes per rate."""
    at: Place = "bottleneck"
    """After the layers of lowest resolution, after all layers but the last, or where the network has dropout itself."""

    def settings(self, members: Sequence[str]) -> list[str]:
        return [f"rate={rate:g} pass={turn}" for rate in self.rates for turn in range(self.passes)]

    def draw(self, name: str, case: CaseModels) -> Iterator[Draw]:
        for rate in self.rates:
            for turn in range(self.passes):
                setting = f"rate={rate:g} pass={turn}"
                generator = torch_generator(case.seed, case.case_id, name, setting)
                with injected_dropout(case.base, case, rate, generator, self.at):
                    yield drawn(name, setting, case.predict(case.base))


@contextmanager
def injected_dropout(
    network: nn.Module, case: CaseModels, rate: float, generator: torch.Generator, at: Place
) -> Iterator[None]:
    """Drop feature channels inside the network, drawn from `generator` (torch's own dropout uses the global one)."""
    import torch
    from torch import nn

    def drop(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        # Convolutions have channels second; layers over tokens have features last.
        channels_last = isinstance(module, nn.Linear) or output.ndim < 4
        shape = output.shape if channels_last else (*output.shape[:2], *([1] * (output.ndim - 2)))
        keep = torch.rand(shape, generator=generator) >= rate
        return output * keep.to(output) / (1 - rate)

    handles = [layer.register_forward_hook(drop) for layer in dropout_layers(network, case, at)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def dropout_layers(network: nn.Module, case: CaseModels, at: Place) -> list[nn.Module]:
    """Layers whose output is dropped; found by one forward pass and kept for the network's life."""
    from torch import nn

    linear = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
    dropout = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
    known = _LAYERS.setdefault(network, {})
    if at not in known:
        kinds = dropout if at == "own" else linear
        seen: dict[nn.Module, tuple[float, int]] = {}
        handles = [
            layer.register_forward_hook(lambda layer, _, output: seen.update({layer: _size(layer, output)}))
            for layer in network.modules()
            if isinstance(layer, kinds)
        ]
        try:
            case.predict(network, np.zeros((case.image.shape[0], *case.window), np.float32))
        finally:
            for handle in handles:
                handle.remove()
        layers = list(seen)
        if at != "own":
            # What has one channel per logit at the end of the network is logits already, not features.
            while layers and seen[layers[-1]][1] == seen[list(seen)[-1]][1]:
                layers.pop()
        if at == "bottleneck":
            lowest = min((seen[layer][0] for layer in layers), default=0.0)
            layers = [layer for layer in layers if seen[layer][0] == lowest]
        if not layers:
            raise BadInput(f"propose: sampler mc_dropout at '{at}': the network has no such layer; use at: all")
        known[at] = layers
    return known[at]


def _size(layer: nn.Module, output: Tensor) -> tuple[float, int]:
    """Positions and channels of an output."""
    from torch import nn

    tokens = isinstance(layer, nn.Linear)
    if tokens:
        return float(np.prod(output.shape[1:-1])), output.shape[-1]
    return float(np.prod(output.shape[2:])), output.shape[1]

"""Sampler `mc_dropout`: Monte-Carlo dropout, injected by hooks into any network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, Literal
from weakref import WeakKeyDictionary

from pydantic import Field

from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.proposals.samplers.sampler import CaseModels, Draw, Passes, Setup, drawn, pass_of
from pipeline.seeding import torch_generator

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pipeline.segmenter.segmenter import Segmenter

Place = Literal["bottleneck", "decoder", "all", "own"]
_BYTES = 2**26
"""Most bytes of logits of the passes that run together. The limit does not change the logits."""


class MCDropout(Knobs):
    """Predictions of the base with dropped features, at a sweep of dropout rates.

    Convolutions lose whole channels. Layers over tokens lose single features of single tokens. The layers before the
    first dropout are computed once per image (or window) for all passes.
    """

    kind: Literal["mc_dropout"]
    rates: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    """Dropout rates: shares of features that are dropped, above 0 and below 1. Each rate has `passes` passes."""
    passes: Annotated[int, Field(gt=0)] = 1
    """Passes per rate, one proposal each."""
    at: Place = "bottleneck"
    """Layers whose outputs get dropout. `bottleneck`: the layers of lowest resolution. `decoder`: the layers after the
    last layer of lowest resolution. `all`: all layers but the last, which give the logits. `own`: the dropout layers of
    the network itself."""

    def settings(self, name: str, setup: Setup) -> list[str]:
        setup.needs_base(name)
        return [setting for setting, _ in self._sweep()]

    def draw(self, name: str, case: CaseModels) -> Iterator[Draw]:
        from pipeline.segmenter.logits import probability
        from pipeline.segmenter.sliding import PLAIN

        plan = plan_for(case.segmenter, self.at)
        sweep = self._sweep()
        together = max(1, _BYTES // (4 * case.classes * prod(case.image.shape[1:])))
        for start in range(0, len(sweep), together):
            part = sweep[start : start + together]

            def with_dropout(part: Sequence[tuple[str, float]] = part) -> Segmenter:
                drops = [(rate, torch_generator(case.seed, case.case_id, name, setting)) for setting, rate in part]
                return replace(case.segmenter, network=dropped(case.segmenter.network, plan, drops))

            logits = case.logits((name, start), with_dropout, PLAIN)
            for (setting, _), of_pass in zip(part, logits.chunk(len(part)), strict=True):
                yield drawn(name, setting, probability(of_pass).cpu())

    def forward_passes(self, name: str, setup: Setup, before: Sequence[Passes | None]) -> list[Passes | None]:
        return [frozenset({pass_of(name, setting)}) for setting, _ in self._sweep()]

    def _sweep(self) -> list[tuple[str, float]]:
        """Setting and rate of every pass."""
        return [(f"rate={rate:g} pass={turn}", rate) for rate in self.rates for turn in range(self.passes)]


@dataclass(frozen=True)
class Plan:
    """Layers of a network whose features are dropped, and modules that compute the same in every pass."""

    layers: tuple[nn.Module, ...]
    """Layers whose outputs get dropout."""
    shared: tuple[nn.Module, ...]
    """Modules that run before any feature is dropped. The first of `layers` can be among these modules."""


_PLANS: WeakKeyDictionary[nn.Module, dict[str, Plan]] = WeakKeyDictionary()


def dropped(network: nn.Module, plan: Plan, drops: Sequence[tuple[float, torch.Generator]]) -> nn.Module:
    """Network that makes several passes of one window in one call: logits `[1, passes * output, *window]`.

    `drops` has the rate and the generator of each pass.
    """
    from torch import nn

    from pipeline.proposals.samplers.shared_passes import recalled, stacked

    class Dropped(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            outputs = []
            with recalled(plan.shared) as next_pass:
                for rate, generator in drops:
                    with injected_dropout(plan.layers, rate, generator):
                        outputs.append(network(image))
                    next_pass()
            return stacked(outputs)

    return Dropped()


@contextmanager
def injected_dropout(layers: Sequence[nn.Module], rate: float, generator: torch.Generator) -> Iterator[None]:
    """Context in which features of these layers are dropped, and all other features are divided by 1 - `rate`.

    Features are drawn from `generator`. torch's own dropout would draw from the global generator, which threads share.
    """
    import torch
    from torch import nn

    def drop(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        # Convolutions have channels in the second axis. Layers over tokens have features in the last axis.
        channels_last = isinstance(module, nn.Linear) or output.ndim < 4
        shape = output.shape if channels_last else (*output.shape[:2], *([1] * (output.ndim - 2)))
        keep = torch.rand(shape, generator=generator) >= rate
        return output * (keep.to(output) / (1 - rate))

    handles = [layer.register_forward_hook(drop) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def plan_for(segmenter: Segmenter, at: Place) -> Plan:
    """Plan of a network in eval mode, from one forward pass of a blank window. The plan is kept as long as the network.

    Raises `BadInput` for a network without a layer at this place.
    """
    import torch
    from torch import nn

    from pipeline.proposals.samplers.shared_passes import done_before, trace

    network = segmenter.network
    known = _PLANS.setdefault(network, {})
    if at not in known:
        linear = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
        dropout = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
        blank = torch.zeros((segmenter.architecture.channels, *segmenter.window))
        calls = trace(network, lambda: segmenter.window_logits(blank))
        kinds = dropout if at == "own" else linear
        seen: dict[nn.Module, tuple[int, int]] = {}
        seen |= {call.module: _size(call.module, call.shape) for call in calls if isinstance(call.module, kinds)}
        layers = list(seen) if at == "own" else _features(seen)
        if at in ("bottleneck", "decoder") and layers:
            lowest = min(seen[layer][0] for layer in layers)
            deepest = [layer for layer in layers if seen[layer][0] == lowest]
            layers = deepest if at == "bottleneck" else layers[layers.index(deepest[-1]) + 1 :]
        if not layers:
            hint = "use at: all" if at != "all" else "remove the sampler (the layers of a program cannot be seen)"
            raise BadInput(f"propose: sampler mc_dropout at '{at}': the network has no such layer; {hint}")
        first = next(position for position, call in enumerate(calls) if call.module in layers)
        known[at] = Plan(tuple(layers), tuple(done_before(calls, first)))
    return known[at]


def _features(seen: dict[nn.Module, tuple[int, int]]) -> list[nn.Module]:
    """Layers without the last layers that have one channel per logit. Outputs of these are logits, not features."""
    layers = list(seen)
    logits = seen[layers[-1]][1] if layers else 0
    while layers and seen[layers[-1]][1] == logits:
        layers.pop()
    return layers


def _size(layer: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    """Number of positions and number of channels of a layer's output for one image.

    All axes but the channels count as positions, because a Transformer may have its windows in the first axis.
    """
    from torch import nn

    channels = shape[-1] if isinstance(layer, nn.Linear) else shape[1]
    return prod(shape) // channels, channels

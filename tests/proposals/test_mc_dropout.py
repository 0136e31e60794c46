"""Monte-Carlo dropout by hooks, on networks that have no dropout of their own, and on those that have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.errors import BadInput
from pipeline.proposals.samplers import mc_dropout
from pipeline.proposals.samplers.mc_dropout import MCDropout, injected_dropout, plan_for
from pipeline.proposals.samplers.sampler import CaseModels
from pipeline.seeding import torch_generator
from pipeline.segmenter.architecture import Architecture
from tests.fixtures.networks import models, noise, seeded, segmenter_of, small


class Tokens(nn.Module):
    """A network of `Linear` layers over pixels as tokens, without any convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(1, 16), nn.Linear(16, 2)

    def forward(self, image: Tensor) -> Tensor:
        tokens = image.flatten(2).transpose(1, 2)
        answer = self.outside(torch.relu(self.inside(tokens)))
        return answer.transpose(1, 2).reshape(len(image), 2, *image.shape[2:])


NETWORKS = {
    "UNet": (
        "UNet",
        {"channels": [4, 8], "strides": [2], "num_res_units": 1},
    ),
    "SegResNet": ("SegResNet", {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}),
    "BasicUNet": ("BasicUNet", {"features": [4, 4, 8, 8, 8, 4]}),
    "UNETR": (
        "UNETR",
        {"img_size": 16, "feature_size": 4, "hidden_size": 12, "mlp_dim": 8, "num_heads": 2},
    ),
    "deep UNet": ("UNet", {"channels": [4, 8, 8], "strides": [2, 2], "num_res_units": 1}),
}


SIDE = {"BasicUNet": 32, "UNETR": 16}
"""Smallest window that the network halves as often as it does."""


def network(name: str, dimensions: int = 2) -> nn.Module:
    if name == "Tokens":
        return seeded(Tokens)
    kind, arguments = NETWORKS[name]
    window = (SIDE.get(name, 8),) * dimensions
    return Architecture(kind, arguments, dimensions, 1, 2, "softmax", window).build(0).eval()


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in network.modules())


def dropout(**knobs: Any) -> MCDropout:
    return MCDropout.model_validate({"kind": "mc_dropout", **knobs})


@pytest.mark.parametrize(
    ("name", "dimensions"), [("UNet", 2), ("UNet", 3), ("SegResNet", 2), ("SegResNet", 3), ("Tokens", 2)]
)
@pytest.mark.parametrize("at", ["bottleneck", "all"])
def test_dropout_reaches_every_kind_of_network(name, dimensions, at):
    """Passes differ from the base and from each other, the network is as before, and the settings name the sweep."""
    case = models(network(name, dimensions), noise((8,) * dimensions))
    before = hooks(case.segmenter.network)
    sampler = dropout(rates=(0.3, 0.5), passes=2, at=at)
    draws = list(sampler.draw("d", case))
    assert [d.setting for d in draws] == ["rate=0.3 pass=0", "rate=0.3 pass=1", "rate=0.5 pass=0", "rate=0.5 pass=1"]
    seen = {p.numpy().tobytes() for p in [case.base_probability(), *(d.probability for d in draws)]}
    assert len(seen) == 5
    assert hooks(case.segmenter.network) == before
    assert case.predict(case.segmenter).equal(case.base_probability())


def test_another_seed_case_or_name_is_another_draw():
    """The same network and image: only what the draw is named after differs."""
    image, base = noise((8, 8)), network("UNet")
    sampler = dropout(rates=(0.5,), at="all")

    def answer(name: str, *named: Any, **seed: int) -> bytes:
        (draw,) = sampler.draw(name, models(base, image, *named, **seed))
        assert draw.probability is not None
        return draw.probability.numpy().tobytes()

    found = {answer("d"), answer("d", seed=1), answer("d", "c1"), answer("e")}
    assert len(found) == 4
    assert answer("d") in found


def test_whole_channels_are_dropped_and_the_rest_scaled():
    """Features of 1 in 64 channels at rate .5: a channel is 0 or 1 / (1 - .5) = 2 at all of its pixels."""
    first, last = nn.Conv2d(1, 64, 1, bias=False), nn.Conv2d(64, 2, 1)
    nn.init.ones_(first.weight)
    between = nn.Identity()
    case = models(nn.Sequential(first, between, last).eval(), np.ones((1, 4, 4), np.float32))
    features: list[Tensor] = []
    between.register_forward_hook(lambda _, __, output: features.append(output[0]))
    with injected_dropout(plan_for(case.segmenter, "all").layers, 0.5, torch_generator(0)):
        case.predict(case.segmenter)
    channels = features[-1].flatten(1)
    assert (channels == channels[:, :1]).all()
    assert set(channels[:, 0].tolist()) == {0.0, 2.0}
    assert 16 < (channels[:, 0] == 0).sum().item() < 48, "half of 64, give or take four standard deviations"


def test_the_bottleneck_is_where_the_resolution_is_lowest():
    """Strides 2 and back: of three layers on 8x8, 4x4 and 8x8 the second; the last makes the logits."""
    layers = (nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 2, stride=2), nn.ConvTranspose2d(4, 2, 2, stride=2))
    case = models(nn.Sequential(*layers).eval(), noise((8, 8)))
    assert plan_for(case.segmenter, "bottleneck").layers == (layers[1],)
    assert plan_for(case.segmenter, "all").layers == (layers[0], layers[1])


def test_own_dropout_layers():
    """They are found, and draw from the generator of the task although the network is in eval mode."""
    own = nn.Dropout2d(0.1)

    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), own, nn.Conv2d(8, 2, 3, padding=1))

    case = models(seeded(make), noise((8, 8)))
    assert plan_for(case.segmenter, "own").layers == (own,)
    draws = list(dropout(rates=(0.5,), at="own").draw("d", case))
    assert not draws[0].probability.equal(case.base_probability())


@pytest.mark.parametrize(("at", "base"), [("own", "SegResNet"), ("all", "one layer")])
def test_a_network_without_such_a_layer_is_refused(at, base):
    case = models(nn.Conv2d(1, 2, 1) if base == "one layer" else network(base), noise((8, 8)))
    before = hooks(case.segmenter.network)
    with pytest.raises(BadInput, match=f"sampler mc_dropout at '{at}': the network has no such layer"):
        list(dropout(at=at).draw("d", case))
    assert hooks(case.segmenter.network) == before


def test_hooks_are_removed_when_a_pass_fails():
    case = models(small(2, 2), noise((8, 8)))
    case.image = np.zeros((3, 8, 8), np.float32)
    with pytest.raises(RuntimeError, match="expected input"):
        list(dropout().draw("d", case))
    assert hooks(case.segmenter.network) == 0


@pytest.mark.parametrize("bad", [{"rates": [0.0]}, {"rates": [1.0]}, {"passes": 0}, {"at": "somewhere"}])
def test_dropout_knobs_outside_their_range(bad):
    with pytest.raises(ValidationError):
        dropout(**bad)


# ---- what is computed once -------------------------------------------------------------------------------------


def all_in_full(case: CaseModels, sampler: MCDropout) -> list[bytes]:
    """The same dropout masks, every pass from the image to the logits."""
    found = []
    for rate in sampler.rates:
        for turn in range(sampler.passes):
            generator = torch_generator(case.seed, case.case_id, "d", f"rate={rate:g} pass={turn}")
            with injected_dropout(plan_for(case.segmenter, sampler.at).layers, rate, generator):
                found.append(case.predict(case.segmenter).numpy().tobytes())
    return found


@pytest.mark.parametrize(
    ("name", "dimensions"),
    [
        ("deep UNet", 2),
        ("deep UNet", 3),
        ("BasicUNet", 2),
        ("BasicUNet", 3),
        ("SegResNet", 2),
        ("SegResNet", 3),
        ("UNETR", 2),
        ("UNETR", 3),
    ],
)
@pytest.mark.parametrize("at", ["bottleneck", "decoder"])
def test_passes_that_share_the_encoder_are_the_passes_in_full(name, dimensions, at):
    """Bit for bit, in every kind of network, and something is shared."""
    case = models(network(name, dimensions), noise((SIDE.get(name, 8),) * dimensions))
    sampler = dropout(rates=(0.3, 0.6), passes=2, at=at)
    assert plan_for(case.segmenter, at).shared
    shared = [d.probability.numpy().tobytes() for d in sampler.draw("d", case)]
    assert shared == all_in_full(case, sampler)
    assert len(set(shared)) == 4
    assert all("forward" not in vars(module) for module in case.segmenter.network.modules())


def test_the_window_that_slides_shares_its_encoder_too():
    """A case of 12x20 under a window of 8x8: each window has its own features."""
    case = models(network("deep UNet"), noise((12, 20)))
    case.base = segmenter_of(case.segmenter.network, (8, 8))
    sampler = dropout(rates=(0.5,), passes=3, at="decoder")
    assert [d.probability.numpy().tobytes() for d in sampler.draw("d", case)] == all_in_full(case, sampler)


def test_passes_in_groups_are_the_passes_together(monkeypatch):
    """Room for the logits of two of five passes: 4 bytes x 2 classes x 64 pixels x 2 = 1024."""
    case = models(network("deep UNet"), noise((8, 8)))
    together = [d.probability.numpy().tobytes() for d in dropout(at="decoder").draw("d", case)]
    monkeypatch.setattr(mc_dropout, "_BYTES", 1024)
    assert [d.probability.numpy().tobytes() for d in dropout(at="decoder").draw("d", case)] == together


def counted(modules: list[nn.Module]) -> tuple[dict[nn.Module, int], list[Any]]:
    """How often each module has computed, whatever recalls it."""
    calls = dict.fromkeys(modules, 0)

    def count(module: nn.Module) -> Any:
        compute = module._conv_forward

        def forward(*args: Any) -> Any:
            calls[module] += 1
            return compute(*args)

        return forward

    for module in modules:
        module._conv_forward = count(module)
    return calls, modules


def test_the_encoder_is_computed_once():
    """Convolutions at 8x8, 4x4 (the lowest), 8x8 and 8x8 (logits), 5 passes: 1, 1, 1 and 5 for the decoder.

    What is dropped behind the third is its output: the third itself is the same in every pass.
    """
    layers = [
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Conv2d(4, 4, 2, stride=2),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 2, 1),
    ]
    case = models(nn.Sequential(*layers).eval(), noise((8, 8)))
    convolutions = [layers[0], layers[1], layers[3], layers[4]]
    assert plan_for(case.segmenter, "decoder").layers == (layers[3],)
    assert plan_for(case.segmenter, "decoder").shared == tuple(layers[:4])
    calls, _ = counted(convolutions)
    list(dropout(at="decoder").draw("d", case))
    assert [calls[layer] for layer in convolutions] == [1, 1, 1, 5]


class InPlace(nn.Module):
    """Changes the features of a layer in place, where no module sees it, before and behind a dropped layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 2, stride=2)
        self.third, self.last = nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Conv2d(4, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        features = self.first(image)
        deep = self.third(torch.relu_(self.second(features)))
        features += deep
        return self.last(torch.relu_(features))


class Popped(nn.Module):
    """An encoder that returns a list, which its caller empties; and a module that runs on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.act = Levels(), nn.LeakyReLU()
        self.up, self.last = nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Conv2d(4, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        levels = self.encoder(self.act(image))
        deep = self.up(levels.pop())
        return self.last(self.act(deep + levels.pop()))


class Levels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 2, stride=2)

    def forward(self, image: Tensor) -> list[Tensor]:
        first = self.first(image)
        return [first, self.second(first)]


@pytest.mark.parametrize("kind", [InPlace, Popped])
@pytest.mark.parametrize("at", ["bottleneck", "decoder"])
def test_features_that_change_behind_a_layer_are_not_shared(kind, at):
    """Whatever a network does to its features, the passes are those in full."""
    case = models(seeded(kind), noise((8, 8)))
    sampler = dropout(rates=(0.5,), passes=3, at=at)
    shared = [d.probability.numpy().tobytes() for d in sampler.draw("d", case)]
    assert shared == all_in_full(case, sampler)
    names = {
        name for name, module in case.segmenter.network.named_modules() if module in plan_for(case.segmenter, at).shared
    }
    assert (
        names
        == {
            (InPlace, "bottleneck"): set(),
            (InPlace, "decoder"): {"third"},
            (Popped, "bottleneck"): {"encoder.first", "encoder.second"},
            (Popped, "decoder"): {"encoder", "up"},
        }[kind, at]
    )


def test_a_network_without_a_decoder_is_refused():
    case = models(small(2, 2), noise((8, 8)))
    with pytest.raises(BadInput, match="sampler mc_dropout at 'decoder': the network has no such layer; use at: all"):
        list(dropout(at="decoder").draw("d", case))

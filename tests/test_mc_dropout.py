"""Monte-Carlo dropout by hooks, on networks that have no dropout of their own, and on those that have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.errors import BadInput
from pipeline.samplers.mc_dropout import MCDropout, dropout_layers, injected_dropout
from pipeline.seeding import torch_generator
from pipeline.segmenter import Architecture
from tests.networks import models, noise, seeded, small


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
}


def network(name: str, dimensions: int = 2) -> nn.Module:
    if name == "Tokens":
        return seeded(Tokens)
    kind, arguments = NETWORKS[name]
    window = (8,) * dimensions
    return Architecture(kind, arguments, dimensions, 1, 2, "softmax", window).build(0).eval()


def dropout(**knobs: Any) -> MCDropout:
    return MCDropout.model_validate({"kind": "mc_dropout", **knobs})


@pytest.mark.parametrize(
    ("name", "dimensions"), [("UNet", 2), ("UNet", 3), ("SegResNet", 2), ("SegResNet", 3), ("Tokens", 2)]
)
@pytest.mark.parametrize("at", ["bottleneck", "all"])
def test_dropout_reaches_every_kind_of_network(name, dimensions, at):
    """Passes differ from the base and from each other, the network is as before, and the settings name the sweep."""
    case = models(network(name, dimensions), noise((8,) * dimensions))
    sampler = dropout(rates=(0.3, 0.5), passes=2, at=at)
    draws = list(sampler.draw("d", case))
    assert [d.setting for d in draws] == ["rate=0.3 pass=0", "rate=0.3 pass=1", "rate=0.5 pass=0", "rate=0.5 pass=1"]
    seen = {d.probability.numpy().tobytes() for d in [*case.draws, *draws]}
    assert len(seen) == 5
    assert not any(module._forward_hooks for module in case.base.modules())
    assert case.predict(case.base).equal(case.base_probability())


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
    with injected_dropout(case.base, case, 0.5, torch_generator(0), "all"):
        case.predict(case.base)
    channels = features[-1].flatten(1)
    assert (channels == channels[:, :1]).all()
    assert set(channels[:, 0].tolist()) == {0.0, 2.0}
    assert 16 < (channels[:, 0] == 0).sum().item() < 48, "half of 64, give or take four standard deviations"


def test_the_bottleneck_is_where_the_resolution_is_lowest():
    """Strides 2 and back: of three layers on 8x8, 4x4 and 8x8 the second; the last makes the logits."""
    layers = (nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 2, stride=2), nn.ConvTranspose2d(4, 2, 2, stride=2))
    case = models(nn.Sequential(*layers).eval(), noise((8, 8)))
    assert dropout_layers(case.base, case, "bottleneck") == [layers[1]]
    assert dropout_layers(case.base, case, "all") == [layers[0], layers[1]]


def test_own_dropout_layers():
    """They are found, and draw from the generator of the task although the network is in eval mode."""
    own = nn.Dropout2d(0.1)

    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), own, nn.Conv2d(8, 2, 3, padding=1))

    case = models(seeded(make), noise((8, 8)))
    assert dropout_layers(case.base, case, "own") == [own]
    draws = list(dropout(rates=(0.5,), at="own").draw("d", case))
    assert not draws[0].probability.equal(case.base_probability())


@pytest.mark.parametrize(("at", "base"), [("own", "SegResNet"), ("all", "one layer")])
def test_a_network_without_such_a_layer_is_refused(at, base):
    case = models(nn.Conv2d(1, 2, 1) if base == "one layer" else network(base), noise((8, 8)))
    with pytest.raises(BadInput, match=f"sampler mc_dropout at '{at}': the network has no such layer"):
        list(dropout(at=at).draw("d", case))
    assert not any(module._forward_hooks for module in case.base.modules())


def test_hooks_are_removed_when_a_pass_fails():
    case = models(small(2, 2), noise((8, 8)))
    case.image = np.zeros((3, 8, 8), np.float32)
    with pytest.raises(RuntimeError, match="expected input"):
        list(dropout().draw("d", case))
    assert not any(module._forward_hooks for module in case.base.modules())


@pytest.mark.parametrize("bad", [{"rates": [0.0]}, {"rates": [1.0]}, {"passes": 0}, {"at": "somewhere"}])
def test_dropout_knobs_outside_their_range(bad):
    with pytest.raises(ValidationError):
        dropout(**bad)

"""Networks by name: what their classes are called with, the windows that they need, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.errors import BadInput
from pipeline.segmenter.architecture import Architecture
from pipeline.segmenter.knobs import Network
from tests.fixtures.networks import noise, same, segmenter_of

TINY = {"channels": [4, 8], "strides": [2]}


def network(**knobs: Any) -> Network:
    return Network(**{"name": "UNet", "arguments": TINY, "multiple": 2, **knobs})


def architecture(dimensions: int = 2, classes: int = 2, **knobs: Any) -> Architecture:
    return Architecture.of(network(**knobs), 1, classes, (8,) * dimensions)


@pytest.mark.parametrize(
    ("window", "padded", "multiple", "expected"),
    [
        (None, (33, 48), 16, (48, 48)),
        (None, (33, 48, 5), 4, (36, 48, 8)),
        ((20, 20), (100, 100), 16, (32, 32)),
        ((20, 20), (100, 100), 1, (20, 20)),
    ],
)
def test_the_window_is_rounded_up(window, padded, multiple, expected):
    """33 to 48 and 48 stays by 16; 33, 48 and 5 to 36, 48 and 8 by 4."""
    found = Architecture.of(network(window=window, multiple=multiple), 1, 2, padded)
    assert (found.window, found.dimensions) == (expected, len(padded))


@pytest.mark.parametrize(("head", "classes", "outputs"), [("sigmoid", 2, 1), ("softmax", 2, 2), ("softmax", 5, 5)])
def test_outputs_of_a_head(head, classes, outputs):
    assert architecture(head=head, classes=classes).outputs == outputs


def test_a_sigmoid_head_has_two_classes():
    with pytest.raises(BadInput, match=r"base.network.head: 'sigmoid' is for 2 classes, the data has 3; use 'softmax'"):
        architecture(head="sigmoid", classes=3)


def test_a_window_of_another_rank():
    with pytest.raises(BadInput, match=r"base.network.window: expected 3 numbers for this data, found \[8, 8\]"):
        architecture(dimensions=3, window=(8, 8))


@pytest.mark.parametrize("name", ["NoSuchNet", "torch"])
def test_an_unknown_network(name):
    with pytest.raises(BadInput, match=f"base.network.name: MONAI has no network '{name}'"):
        architecture(name=name).build(0)


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("UNet", {"channels": [4], "strides": []}, "length of `channels`"),
        ("UNet", {"channles": [4, 8]}, "unexpected keyword argument 'channles'"),
        ("UNet", {"channels": [4, 8], "strides": [2], "act": "no_such_act"}, "no_such_act"),
        ("SegResNet", {"init_filters": 3}, "divisible"),
    ],
)
def test_refused_arguments(name, arguments, reason):
    with pytest.raises(BadInput, match=rf"(?is)base.network.arguments: {name} refuses .*{reason}"):
        architecture(name=name, arguments=arguments).build(0)


def test_building_is_deterministic():
    """Equal seed, equal weights, whatever torch's global generator says; and that generator stays as it was."""
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = architecture().build(7)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(first, architecture().build(7))
    assert not same(first, architecture().build(8))


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize(
    ("name", "arguments"), [("UNet", TINY), ("SegResNet", {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]})]
)
def test_networks_by_name(name, arguments, dimensions):
    """Logits `[class, *space]` of a case that is smaller than the window in the first axis."""
    made = architecture(dimensions, classes=3, name=name, arguments=arguments)
    space = (7, 8, 8)[:dimensions]
    logits = segmenter_of(made.build(0).eval(), made.window).logits(noise(space))
    assert (logits.shape, logits.dtype) == ((3, *space), torch.float32)
    assert logits.isfinite().all()


def test_architecture_round_trip(tmp_path):
    made = architecture(3, classes=4)
    made.save(tmp_path)
    assert Architecture.load(tmp_path) == made
    with pytest.raises(BadInput, match=r"none/network.json: no such model; run the stage that trains it"):
        Architecture.load(tmp_path / "none")


# ---- windows that are found ------------------------------------------------------------------------------------


def found(name: str, arguments: dict[str, Any], *padded: int, **knobs: Any) -> Architecture:
    return Architecture.of(Network(name=name, arguments=arguments, **knobs), 1, 2, padded)


@pytest.mark.parametrize(
    ("strides", "window"),
    [([2], (30, 38)), ([2, 2], (32, 40)), ([2, 2, 2], (32, 40)), ([3], (30, 39)), ([[2, 1]], (30, 37))],
)
def test_the_smallest_multiple_that_runs(strides, window):
    """30 and 37 by 2, 4 and 8; by 3, which is no power of two; and an axis that is not halved."""
    channels = [4] * (len(strides) + 1)
    assert found("UNet", {"channels": channels, "strides": strides}, 30, 37).window == window


def test_a_given_multiple_is_taken():
    assert found("UNet", TINY, 30, 37, multiple=16).window == (32, 48)


def test_a_given_window_is_rounded_up_too():
    assert found("UNet", TINY, 100, 100, window=(31, 31)).window == (32, 32)


def test_normalisation_needs_more_than_one_voxel():
    """8x8 halved three times is one voxel, which instance normalisation refuses: 16x16."""
    arguments = {"channels": [4, 4, 4, 4], "strides": [2, 2, 2]}
    assert found("UNet", arguments, 8, 8).window == (16, 16)
    assert found("UNet", {**arguments, "norm": "batch"}, 8, 8).window == (8, 8)


def test_the_size_of_a_transformer_is_its_window():
    arguments = {"feature_size": 4, "hidden_size": 12, "mlp_dim": 16, "num_heads": 2}
    made = found("UNETR", arguments, 20, 37)
    assert made.window == (32, 48)
    assert made.arguments == {**arguments, "img_size": [32, 48]}


def test_a_plan_for_dynunet():
    """32x40 to 16x20, 8x10 and 4x5; 12x20x20 to 6x10x10, where the first axis stays, and 6x5x5."""
    assert found("DynUNet", {"filters": [4] * 4}, 30, 37).arguments["strides"] == [1, [2, 2], [2, 2], [2, 2]]
    deep = found("DynUNet", {"filters": [4] * 3}, 11, 20, 17)
    assert deep.arguments["strides"] == [1, [2, 2, 2], [1, 2, 2]]
    assert deep.arguments["upsample_kernel_size"] == [[2, 2, 2], [1, 2, 2]]


def test_strides_of_dynunet_may_be_given():
    made = found("DynUNet", {"strides": [1, 2, 2], "filters": [4] * 3}, 30, 37)
    assert made.arguments["kernel_size"] == [3, 3, 3]
    assert made.arguments["upsample_kernel_size"] == [2, 2]


@pytest.mark.parametrize(
    ("name", "arguments", "padded", "message"),
    [
        ("UNet", {}, (8, 8), "refuses .* for 2D images of 1 channels: .*missing 2 required .*'channels' and 'strides'"),
        ("UNet", {**TINY, "strides": [5]}, (8, 8), r"UNet does not run on a window of \[8, 8\], .*with \[128, 128\]"),
        ("Quicknat", {"num_filters": 4}, (8, 8, 8), "name: Quicknat is for 2D images and the data is 3D; choose"),
        ("GlobalNet", {}, (8, 8), "GlobalNet has no argument out_channels or num_classes"),
        ("UNet", {**TINY, "out_channels": 2}, (8, 8), "multiple values for keyword argument 'out_channels'"),
    ],
)
def test_networks_that_cannot_be_used(name, arguments, padded, message):
    with pytest.raises(BadInput, match=rf"(?s)base.network.*{message}"):
        found(name, arguments, *padded)


def test_a_network_that_the_meta_device_cannot_run_is_tried_for_real(monkeypatch):
    """One that asks for a value of its input."""
    from monai.networks import nets

    class Peeking(nets.BasicUNet):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return super().forward(image + image.max().item())

    monkeypatch.setattr(nets, "Peeking", Peeking, raising=False)
    assert found("Peeking", {"features": [4] * 6, "norm": "batch"}, 30, 37).window == (30, 37)


def test_filters_bound_the_levels_of_a_planned_dynunet():
    """64 is halved four times to 4; three filters leave two halvings."""
    strides = {
        count: Architecture.of(
            Network(name="DynUNet", arguments={"filters": [4] * count} if count else {}), 1, 2, (64, 64)
        ).arguments["strides"]
        for count in (0, 3, 5)
    }
    assert strides == {0: [1, *[[2, 2]] * 4], 3: [1, *[[2, 2]] * 2], 5: [1, *[[2, 2]] * 4]}


@pytest.mark.parametrize("content", ['{"name": "UNet"', "[]", '{"layers": 3}'])
def test_another_file_in_place_of_an_architecture(tmp_path, content):
    (tmp_path / "network.json").write_text(content)
    with pytest.raises(BadInput, match=r"network.json: expected .*JSON.*, found .*; fetch it again, or make it again"):
        Architecture.load(tmp_path)

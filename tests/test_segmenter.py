"""Networks by name, their weights on disk, and inference on cases of any size."""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import BadInput
from pipeline.recipe import Compute, Network
from pipeline.segmenter import (
    Architecture,
    Model,
    labels,
    load_weights,
    pad_to,
    predict,
    probability,
    save_weights,
)
from tests.networks import noise, seeded, small

TINY = {"channels": [4, 8], "strides": [2]}


def network(**knobs: Any) -> Network:
    return Network(**{"name": "UNet", "arguments": TINY, "multiple": 2, **knobs})


def architecture(dimensions: int = 2, classes: int = 2, **knobs: Any) -> Architecture:
    return Architecture.of(network(**knobs), 1, classes, (8,) * dimensions)


def same(one: nn.Module, two: nn.Module) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# ---- architecture ----------------------------------------------------------------------------------------------


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
    logits = predict(made.build(0).eval(), noise(space), made.window, Compute())
    assert (logits.shape, logits.dtype) == ((3, *space), torch.float32)
    assert logits.isfinite().all()


# ---- weights ---------------------------------------------------------------------------------------------------


def test_weights_round_trip(tmp_path):
    saved = architecture().build(3)
    path = tmp_path / "models" / "base.safetensors"
    save_weights(saved, path)
    assert same(load_weights(architecture().build(4), path), saved)
    assert [file.name for file in path.parent.iterdir()] == ["base.safetensors"]


def test_architecture_round_trip(tmp_path):
    made = architecture(3, classes=4)
    made.save(tmp_path)
    assert Architecture.load(tmp_path) == made
    with pytest.raises(BadInput, match=r"none/network.json: no such model; run the stage that trains it"):
        Architecture.load(tmp_path / "none")


def test_weights_of_another_network(tmp_path):
    """A convolution with 2 outputs and a bias, read into one with 3 outputs, no bias and a normalisation behind it."""
    path = tmp_path / "w.safetensors"
    save_weights(nn.Sequential(nn.Conv2d(1, 2, 1)), path)
    other = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.InstanceNorm2d(3, affine=True))
    with pytest.raises(BadInput, match=r"w.safetensors: weights of another network: ") as error:
        load_weights(other, path)
    assert str(error.value).split("network: ")[1].split("; ") == [
        "'0.weight' expected (3, 1, 1, 1), found (2, 1, 1, 1)",
        "missing '1.bias' (3,)",
        "missing '1.weight' (3,)",
        "unexpected '0.bias' (2,)",
    ]


@pytest.mark.parametrize("keep", [0, 4, 100])
def test_truncated_weights(tmp_path, keep):
    path = tmp_path / "w.safetensors"
    save_weights(architecture().build(0), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadInput, match=r"w.safetensors: not a readable safetensors file"):
        load_weights(architecture().build(0), path)


def test_missing_weights(tmp_path):
    with pytest.raises(BadInput, match=r"w.safetensors: no such weights; run the stage that trains them"):
        load_weights(nn.Conv2d(1, 1, 1), tmp_path / "w.safetensors")


def model(folder: Path, seed: int) -> Model:
    architecture().save(folder)
    save_weights(architecture().build(seed), folder / "base.safetensors")
    return Model(folder)


def test_a_model_is_shared_within_a_thread_only(tmp_path):
    found = model(tmp_path, 0)
    mine = found.shared()
    assert not mine.training
    assert Model(tmp_path).shared() is mine
    assert pickle.loads(pickle.dumps(found)).shared() is mine
    assert found.load() is not mine
    others: list[nn.Module] = []
    thread = threading.Thread(target=lambda: others.extend([found.shared(), found.shared()]))
    thread.start()
    thread.join()
    assert others[0] is others[1]
    assert others[0] is not mine
    assert same(others[0], mine)


def test_a_shared_model_follows_its_file(tmp_path):
    found = model(tmp_path, 0)
    first = found.shared()
    save_weights(architecture().build(1), found.weights)
    os.utime(found.weights, ns=(1, 1))  # a clock too coarse to tell the two files apart would hide the change
    assert same(found.shared(), architecture().build(1))
    assert not same(found.shared(), first)


# ---- inference -------------------------------------------------------------------------------------------------


def test_padding_is_at_the_ends():
    """2x3 to 3x4: zeros below and to the right; an axis that is longer than the window stays."""
    image = torch.arange(1.0, 7).view(1, 2, 3)
    assert pad_to(image, (3, 4))[0].tolist() == [[1, 2, 3, 0], [4, 5, 6, 0], [0, 0, 0, 0]]
    assert pad_to(image, (1, 4), value=9)[0].tolist() == [[1, 2, 3, 9], [4, 5, 6, 9]]
    masks = torch.ones(1, 1, 2, dtype=torch.uint8)
    assert pad_to(masks, (1, 3), value=255).tolist() == [[[1, 1, 255]]]


@pytest.mark.parametrize("space", [(5, 7), (3, 5, 4)])
def test_a_smaller_case_is_the_padded_forward_cropped(space):
    window = (8,) * len(space)
    net, image = small(len(space), 3), noise(space)
    padded = np.zeros((1, *window), np.float32)
    real: tuple[Any, ...] = tuple(slice(0, length) for length in space)
    padded[(0, *real)] = image[0]
    with torch.no_grad():
        expected = net(torch.from_numpy(padded)[None])[0][(slice(None), *real)]
    assert torch.equal(predict(net, image, window, Compute()), expected)


@pytest.mark.parametrize(
    ("space", "window"), [((19, 11), (8, 8)), ((19, 5), (8, 8)), ((9, 10, 7), (4, 8, 4)), ((9, 3, 4), (4, 4, 4))]
)
def test_a_larger_case_slides(space, window):
    """A network that sees one voxel at a time answers as on the whole image, up to the rounding of the blend."""
    conv = nn.Conv2d if len(space) == 2 else nn.Conv3d
    net, image = seeded(lambda: conv(1, 3, 1)), noise(space)
    with torch.no_grad():
        whole = net(torch.from_numpy(image)[None])[0]
    found = predict(net, image, window, Compute())
    assert found.shape == whole.shape
    assert found.numpy() == pytest.approx(whole.numpy(), abs=1e-5)


def test_a_view_of_an_image_with_negative_strides_is_read():
    image = noise((4, 4))
    net = small(2, 2)
    assert torch.equal(
        predict(net, image[:, ::-1], (4, 4), Compute()), predict(net, image[:, ::-1].copy(), (4, 4), Compute())
    )


def test_probability_of_both_heads():
    """Sigmoid of log 3 is 3/4; softmax of (log 1, log 2, log 5) is (1, 2, 5)/8. Equal logits: the lower class."""
    one = probability(torch.tensor([3.0, 1.0]).log()[None])
    assert one.numpy() == pytest.approx(np.array([[0.25, 0.5], [0.75, 0.5]]))
    assert labels(one).tolist() == [1, 0]
    three = probability(torch.tensor([[1.0, 1.0], [2.0, 1.0], [5.0, 1.0]]).log())
    assert three.numpy() == pytest.approx(np.array([[1 / 8, 1 / 3], [2 / 8, 1 / 3], [5 / 8, 1 / 3]]))
    assert labels(three).tolist() == [2, 0]
    assert labels(three).dtype == np.uint8

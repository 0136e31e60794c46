"""Weights on disk, and inference on cases of any size."""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.segmenter.architecture import Architecture
from pipeline.segmenter.knobs import Network
from pipeline.segmenter.logits import labels, probability
from pipeline.segmenter.models import Model
from pipeline.segmenter.weights import load_state, load_weights, save_weights
from tests.fixtures.networks import same


def architecture() -> Architecture:
    knobs = Network(arguments={"channels": [4, 8], "strides": [2]}, multiple=2)
    return Architecture.of(knobs, 1, 2, (8, 8))


# ---- weights ---------------------------------------------------------------------------------------------------


def test_weights_round_trip(tmp_path):
    saved = architecture().build(3)
    path = tmp_path / "models" / "base.safetensors"
    save_weights(saved, path)
    assert same(load_weights(architecture().build(4), path), saved)
    assert [file.name for file in path.parent.iterdir()] == ["base.safetensors"]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode  # whoever reads the folder reads them


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
        "take the weights of this network, or name the network of the weights",
    ]


def test_every_kind_of_difference_is_shown(tmp_path):
    """Twelve missing names would fill the message, and the names that the file has instead would not be seen."""
    layers = {f"b{row}": nn.Conv2d(1, 1, 1) for row in range(6)}
    save_weights(nn.ModuleDict({f"a{name}": layer for name, layer in layers.items()}), tmp_path / "w.safetensors")
    with pytest.raises(BadInput) as error:
        load_weights(nn.ModuleDict(layers), tmp_path / "w.safetensors")
    said = str(error.value).split("network: ")[1].split("; ")
    assert said == [
        *("missing 'b0.bias' (1,)", "missing 'b0.weight' (1, 1, 1, 1)", "missing 'b1.bias' (1,)"),
        *("missing 'b1.weight' (1, 1, 1, 1)", "8 more missing"),
        *("unexpected 'ab0.bias' (1,)", "unexpected 'ab0.weight' (1, 1, 1, 1)", "unexpected 'ab1.bias' (1,)"),
        *("unexpected 'ab1.weight' (1, 1, 1, 1)", "8 more unexpected"),
        "take the weights of this network, or name the network of the weights",
    ]


@pytest.mark.parametrize(
    ("prefix", "more"),
    [
        ("net.", {}),
        ("model.net.", {}),
        ("net.", {"loss.weight": torch.ones(2)}),  # as in a checkpoint of Lightning
        ("module.", {"n_averaged": torch.tensor(3)}),  # as of torch's AveragedModel
    ],
)
def test_a_prefix_that_is_not_known_is_named(prefix, more):
    network = architecture().build(0)
    state = {f"{prefix}{name}": value for name, value in network.state_dict().items()} | more
    with pytest.raises(BadInput) as error:
        load_state(network, state, "w.pt")
    assert str(error.value).endswith(
        f"; the names of the file begin with '{prefix}', which the network does not have: save the weights under names "
        f"without it, {{name.removeprefix('{prefix}'): value for name, value in state.items()}}"
    )


def test_a_network_without_weights_takes_none_of_a_file():
    load_state(nn.Flatten(), {}, "w.pt")
    with pytest.raises(BadInput, match=r"w.pt: .*a.x"):
        load_state(nn.Flatten(), {"a.x": torch.ones(1)}, "w.pt")


def test_a_prefix_of_another_network_is_named_too():
    network = architecture().build(0)
    with pytest.raises(BadInput, match=r"the names of the file begin with 'encoder\.stage\.', which the network"):
        load_state(network, {"encoder.stage.a": torch.ones(1), "encoder.stage.b": torch.ones(1)}, "w.pt")
    for state in ({"a.x": torch.ones(1), "b.x": torch.ones(1)}, {"model.other": torch.ones(1)}):
        with pytest.raises(BadInput) as error:
            load_state(network, state, "w.pt")
        assert "begin with" not in str(error.value)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_refused_by_key(tmp_path, number, dtype):
    network = architecture().build(0)
    state = {name: value.to(dtype) for name, value in network.state_dict().items()}
    load_state(network, state, "w.pt")
    name = list(state)[1]
    state[name] = state[name].clone()
    state[name].view(-1)[0] = number
    with pytest.raises(
        BadInput, match=rf"w.pt: '{name}': expected finite numbers, found 1 of {state[name].numel()} NaN or infinite; "
    ):
        load_state(network, state, "w.pt")


def test_numbers_that_only_float64_can_hold_are_refused():
    network = architecture().build(0)
    state = {name: value.double() for name, value in network.state_dict().items()}
    name = next(iter(state))
    state[name].view(-1)[0] = 1e300
    with pytest.raises(BadInput, match=rf"'{name}': expected finite numbers, found 1 of"):
        load_state(network, state, "w.pt")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_weights_of_another_type_are_refused_by_key(dtype):
    """Quantised weights without their scales, and masks of weights."""
    network = architecture().build(0)
    state = {name: value.to(dtype) for name, value in network.state_dict().items()}
    name = next(iter(state))
    with pytest.raises(BadInput, match=rf"w.pt: '{name}': expected floats, found {dtype}; save the weights of the"):
        load_state(network, state, "w.pt")


@pytest.mark.parametrize(
    ("change", "kind"),
    [(torch.Tensor.to_sparse, "a sparse tensor"), (lambda value: value.to("meta"), "a tensor without numbers")],
)
def test_tensors_that_hold_no_numbers_one_by_one_are_refused(change, kind):
    network = architecture().build(0)
    state = network.state_dict()
    name = next(iter(state))
    with pytest.raises(BadInput, match=f"w.pt: '{name}': expected floats, found {kind}; save"):
        load_state(network, {**state, name: change(state[name])}, "w.pt")


def test_counters_are_whole_numbers():
    """Those of a batch normalisation, which some programs write as floats."""
    network = nn.BatchNorm2d(2)
    state = network.state_dict()
    assert load_state(nn.BatchNorm2d(2), state, "w.pt").num_batches_tracked == 0
    as_floats = {**state, "num_batches_tracked": torch.tensor(7.0)}
    assert load_state(nn.BatchNorm2d(2), as_floats, "w.pt").num_batches_tracked == 7
    with pytest.raises(BadInput, match="'running_var': expected finite numbers, found 2 of 2 NaN or infinite"):
        load_state(nn.BatchNorm2d(2), {**state, "running_var": torch.full((2,), torch.inf)}, "w.pt")


def tied() -> nn.ModuleDict:
    layer = nn.Conv2d(1, 2, 1)
    return nn.ModuleDict({"one": layer, "two": layer})


def test_a_layer_with_two_names_is_written_once(tmp_path):
    """A weight and a bias of 2 floats: 16 bytes, and the layer is one layer again."""
    network = tied()
    save_weights(network, tmp_path / "w.safetensors")
    content = (tmp_path / "w.safetensors").read_bytes()
    assert len(content) - 8 - int.from_bytes(content[:8], "little") == 16
    found = load_weights(tied(), tmp_path / "w.safetensors")
    assert same(found, network)
    assert found["one"].weight is found["two"].weight
    save_weights(network, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == content


def test_a_part_of_a_tensor_is_written_as_a_tensor(tmp_path):
    """A buffer that is the first number of another buffer."""

    def views() -> nn.Module:
        network = nn.Module()
        network.register_buffer("whole", torch.tensor([1.0, 2.0]))
        network.register_buffer("first", network.whole[:1])
        network.register_buffer("second", network.whole[1:])
        return network

    save_weights(views(), tmp_path / "w.safetensors")
    assert same(load_weights(views(), tmp_path / "w.safetensors"), views())


def test_a_dynunet_is_stored_once(tmp_path):
    from monai.networks.nets import DynUNet

    def made() -> nn.Module:
        return DynUNet(2, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 8, 16), deep_supervision=True)

    network = made()
    save_weights(network, tmp_path / "w.safetensors")
    numbers = sum(value.numel() for value in network.parameters())
    assert sum(value.numel() for value in network.state_dict().values()) > 1.9 * numbers
    assert 4 * numbers < (tmp_path / "w.safetensors").stat().st_size < 4 * numbers + 20_000
    assert same(load_weights(made(), tmp_path / "w.safetensors"), network)


def test_different_weights_of_one_layer_are_refused():
    """torch alone would keep the last of them."""
    state = {name: value.clone() for name, value in tied().state_dict().items()}
    load_state(tied(), state, "w.pt")
    state["two.bias"][1] = 9
    with pytest.raises(BadInput, match=r"w.pt: expected equal weights under the names 'one.bias' and 'two.bias', wh"):
        load_state(tied(), state, "w.pt")


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
    mine = found.segmenter(Compute()).network
    assert not mine.training
    assert Model(tmp_path).segmenter(Compute()).network is mine
    assert pickle.loads(pickle.dumps(found)).segmenter(Compute()).network is mine
    assert found.load() is not mine
    others: list[nn.Module] = []
    thread = threading.Thread(target=lambda: others.extend(found.segmenter(Compute()).network for _ in range(2)))
    thread.start()
    thread.join()
    assert others[0] is others[1]
    assert others[0] is not mine
    assert same(others[0], mine)


def test_a_shared_model_follows_its_file(tmp_path):
    found = model(tmp_path, 0)
    first = found.segmenter(Compute()).network
    save_weights(architecture().build(1), found.weights)
    os.utime(found.weights, ns=(1, 1))  # a clock too coarse to tell the two files apart would hide the change
    assert same(found.segmenter(Compute()).network, architecture().build(1))
    assert not same(found.segmenter(Compute()).network, first)


def test_probability_of_both_heads():
    """Sigmoid of log 3 is 3/4; softmax of (log 1, log 2, log 5) is (1, 2, 5)/8. Equal logits: the lower class."""
    one = probability(torch.tensor([3.0, 1.0]).log()[None])
    assert one.numpy() == pytest.approx(np.array([[0.25, 0.5], [0.75, 0.5]]))
    assert labels(one).tolist() == [1, 0]
    three = probability(torch.tensor([[1.0, 1.0], [2.0, 1.0], [5.0, 1.0]]).log())
    assert three.numpy() == pytest.approx(np.array([[1 / 8, 1 / 3], [2 / 8, 1 / 3], [5 / 8, 1 / 3]]))
    assert labels(three).tolist() == [2, 0]
    assert labels(three).dtype == np.uint8

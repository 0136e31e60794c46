"""A results folder of nnU-Net as the base: the network of its plans, on the axes and with the windows of nnU-Net."""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.evaluation.prediction import class_probabilities
from pipeline.exports.bundle import write_bundle
from pipeline.exports.export import _write_program
from pipeline.exports.predict import ready_model
from pipeline.segmenter.architecture import Architecture
from pipeline.segmenter.heads import all_heads
from pipeline.segmenter.knobs import MODELS
from pipeline.segmenter.models import Model, family
from pipeline.segmenter.planned import centre_weights, even_starts, mirrorings
from pipeline.segmenter.segmenter import Segmenter
from pipeline.segmenter.sliding import View, pad_around, place_in
from pipeline.store.cases import CaseStore
from pipeline.store.manifest import check_manifest
from tests.fixtures.foreign import Canary, base_of, discs, history, imported
from tests.fixtures.networks import Constant, noise, row_of, seeded, small
from tests.fixtures.results_folder import UNET, kwargs_of, plain_network, results_folder

KNOBS: dict[str, Any] = {"kind": "nnunet", "folds": [0, 1], "base_fold": 1}


def pictures(folder: Path, **more: Any) -> Path:
    return results_folder(folder / "nnUNetTrainer__nnUNetPlans__2d", (8, 16), (1.0, 1.0), **more)


def volumes(folder: Path, **more: Any) -> Path:
    name = "nnUNetTrainer__nnUNetPlans__3d_fullres"
    return results_folder(folder / name, (4, 8, 16), **{"spacing": (1.0, 1.0, 1.0), **more})


def stated(cases: CaseStore, **info: Any) -> CaseStore:
    """The cases with other statements in `cases.json`."""
    path = cases.folder / "cases.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **info}))
    return CaseStore(cases.folder)


def prepared(folder: Path, space: tuple[int, ...] = (10, 10), channels: int = 1) -> CaseStore:
    """Discs that `cases.json` says are prepared as in nnU-Net."""
    return stated(discs(folder, space, channels), preprocess={"resample": "nnunet"})


def test_folds_become_base_and_members(tmp_path):
    folder = pictures(tmp_path)
    out = imported(tmp_path, prepared(tmp_path / "cases"), folder, **KNOBS)
    check_manifest(out, content=True)
    found = {"base": Model(out), **family(out).members}
    assert list(found) == ["base", "nnunet_fold_0"]
    for (name, model), fold in zip(found.items(), (1, 0), strict=True):
        expected = plain_network(kwargs_of(2), "PlainConvUNet", 1, 2, fold).state_dict()
        state = model.load().state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in expected), name
    assert found["base"].architecture.window == (8, 16)
    assert [row["model"] for row in history(tmp_path)] == ["base", "nnunet_fold_0"]
    (note,) = [one for one in json.loads((out / MODELS).read_text())["imported"]["notes"] if "trained on" in one]
    assert "measures are too good on images of the training set" in note
    assert note.endswith("copy nnUNet_preprocessed/Dataset001_Discs/splits_final.json into the folder")


def test_a_layer_of_encoder_and_decoder_is_stored_once(tmp_path):
    """nnU-Net names the layers of the encoder four times."""
    out = imported(tmp_path, prepared(tmp_path / "cases"), pictures(tmp_path), **KNOBS)
    numbers = sum(value.numel() for value in Model(out).load().parameters())
    assert 4 * numbers < Model(out).weights.stat().st_size < 4 * numbers + 40_000


@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_the_network_sees_the_axes_of_nnunet(tmp_path, kind):
    """A NIfTI volume [x, y, z] is read as [z, y, x], and transpose_forward 2, 0, 1 makes [x, z, y] of it."""
    strides = [(1, 1, 1), (1, 2, 2)]
    arguments = kwargs_of(3, kind, strides)
    turns = {"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]}
    folder = volumes(tmp_path, kind=kind, arch_kwargs=arguments, schemes=("ZScoreNormalization",) * 2, **turns)
    cases = stated(prepared(tmp_path / "cases", (6, 8, 9), channels=2), channel_names=["channel_0", "channel_1"])
    model = Model(imported(tmp_path, cases, folder, **KNOBS))
    assert model.architecture.window == (4, 16, 8)  # of x, y and z, from patches of x, z and y
    image = torch.from_numpy(noise((2, 4, 16, 8)))
    plain = plain_network(arguments, kind, 2, 2, 1)
    with torch.no_grad():
        expected = plain(image.permute(0, 1, 2, 4, 3))[0].permute(0, 1, 2, 4, 3)
        network = model.load()
        torch.testing.assert_close(network(image), expected)
        # Kernels of 3x3x3 do not commute with a permutation, so other axes are not the same.
        assert not torch.allclose(network(image), plain(image)[0], atol=1e-2)


def test_supervised_losses_use_all_heads(tmp_path):
    """Three stages have heads at full and at half resolution, with the weights 2/3 and 1/3."""
    model = Model(imported(tmp_path, prepared(tmp_path / "cases"), pictures(tmp_path), **KNOBS))
    heads = all_heads(model.load(), torch.from_numpy(noise((1, 8, 16))))
    assert [tuple(head.logits.shape[2:]) for head in heads] == [(8, 16), (4, 8)]
    assert [head.weight for head in heads] == pytest.approx([2 / 3, 1 / 3])


def test_a_copy_learns_on_its_own(tmp_path):
    """A student starts from a copy of the base, and every weight of the copy has a gradient from the heads."""
    folder = volumes(tmp_path, transpose_forward=[1, 0, 2], transpose_backward=[1, 0, 2])
    network = Model(imported(tmp_path, prepared(tmp_path / "cases", (6, 8, 9)), folder, **KNOBS)).load()
    image = torch.from_numpy(noise((1, 16, 4, 8)))
    before = network(image).detach()
    copied = deepcopy(network)
    sum(head.weight * head.logits.square().mean() for head in all_heads(copied, image)).backward()
    assert all(parameter.grad is not None for parameter in copied.parameters())
    torch.optim.SGD(copied.parameters(), 0.1).step()
    assert not torch.allclose(copied(image), before)
    assert torch.equal(network(image), before)


def test_exports_that_would_predict_otherwise_are_refused(tmp_path):
    found = ready_model(imported(tmp_path, prepared(tmp_path / "cases"), pictures(tmp_path), **KNOBS), "base")
    message = rf"expected a network .*, found {UNET}PlainConvUNet, .*; export as safetensors"
    with pytest.raises(BadInput, match=message):
        write_bundle(found, tmp_path / "out", "name", "card")
    with pytest.raises(BadInput, match=message):
        _write_program(found, tmp_path / "out")


def test_an_export_comes_back_as_the_same_base(tmp_path):
    """Through a folder of this project, with layers of two names, axes and mirroring."""
    cases = prepared(tmp_path / "cases")
    first = imported(tmp_path, cases, pictures(tmp_path), **KNOBS)
    second = imported(tmp_path / "2", cases, first, kind="checkpoint", members=["nnunet_fold_0"])
    for name in ("base", "nnunet_fold_0"):
        assert Model(second, name).weights.read_bytes() == Model(first, name).weights.read_bytes()
    assert Model(second).architecture == Model(first).architecture


# ---- windows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("have", "want", "starts"),
    [(110, 64, [0, 23, 46]), (64, 64, [0]), (40, 64, [0]), (65, 64, [0, 1]), (96, 64, [0, 32]), (97, 64, [0, 16, 33])],
)
def test_windows_lie_at_even_distances(have, want, starts):
    """The first row is the example in nnU-Net's source; 16.5 is rounded to the even 16."""
    assert even_starts(have, want) == starts


def test_weights_are_gaussian_around_the_centre():
    """At an eighth of the window from the centre exp(-1/2); 4 deviations away exp(-8), all in half precision."""
    weights = centre_weights((16, 32))
    assert weights[8, 16] == 10
    assert weights[6, 16] == weights[8, 20] == pytest.approx(10 * np.exp(-0.5), rel=1e-3)
    assert weights[0, 16] == pytest.approx(10 * np.exp(-8), rel=1e-3)
    # 10 exp(-24) is 0 in half precision. The smallest other weight is 10 exp(-18), which is 2.6 steps of 2^-24.
    corner = centre_weights((8, 8, 8))
    assert corner[0, 0, 0] == corner[0, 0, 2] == 3 * 2**-24


def test_small_images_are_padded_on_both_sides():
    """Of three missing voxels, one is before the image and two are behind it."""
    assert pad_around(torch.tensor([[1.0, 2.0]]), (1, 5)).tolist() == [[0, 1, 2, 0, 0]]
    assert place_in((1, 5), (1, 2), True) == (slice(0, 1), slice(1, 3))
    assert place_in((1, 5), (1, 2), False) == (slice(0, 1), slice(0, 2))
    assert place_in((1, 5), (1, 9), True) == (slice(0, 1), slice(0, 9))


def planned(network: nn.Module, window: tuple[int, ...], mirror: tuple[int, ...] = ()) -> Segmenter:
    arguments = {"plans": {}, "axes": [], "mirror": list(mirror)}
    return Segmenter(network, Architecture(f"{UNET}X", arguments, len(window), 1, 2, "softmax", window), Compute())


def by_nnunet(network: nn.Module, image: torch.Tensor, window: tuple[int, ...], mirror: tuple[int, ...]) -> Any:
    """Logits as nnU-Net's predictor computes them, of an image padded whole, in single precision."""
    padded = pad_around(image, window)
    space = padded.shape[1:]
    total, weights = torch.zeros((2, *space)), torch.zeros(space)
    blend = centre_weights(window)
    for corner in product(*(even_starts(have, want) for have, want in zip(space, window, strict=True))):
        box = tuple(slice(at, at + length) for at, length in zip(corner, window, strict=True))
        part = padded[(slice(None), *box)][None]
        every = [(), *mirrorings(mirror)]
        flips = [[2 + axis for axis in axes] for axes in every]
        logits = torch.stack([network(part.flip(axes)).flip(axes) for axes in flips]).mean(0)[0]
        total[(slice(None), *box)] += logits * blend
        weights[box] += blend
    return (total / weights)[(slice(None), *place_in(window, image.shape[1:], True))]


@pytest.mark.parametrize("mirror", [(), (0, 1)])
@pytest.mark.parametrize("space", [(8, 12), (5, 12), (5, 31), (21, 31)])
def test_logits_are_blended_as_in_nnunet(space, mirror):
    """Cases that fill the window, that are smaller, smaller along one axis and larger along the other, and larger."""
    network, window = small(2, 2), (8, 12)
    image = torch.from_numpy(noise(space))
    with torch.no_grad():
        expected = by_nnunet(network, image, window, mirror)
        segmenter = planned(network, window, mirror)
        torch.testing.assert_close(segmenter.logits(image.numpy()), expected, rtol=1e-5, atol=1e-5)
        # A mirrored view of the mirrored image has the same windows, up to the odd voxel of padding and rounding.
        view = View(flips=(0, 1))
        if space == (8, 12) and mirror:
            torch.testing.assert_close(segmenter.logits(image.numpy(), view), expected, rtol=1e-5, atol=1e-5)


def test_all_sets_of_axes_are_mirrored():
    assert list(mirrorings((0, 2))) == [(0,), (2,), (0, 2)]
    assert list(mirrorings(())) == []
    # A network without position has the same logits in every mirroring.
    logits = planned(Constant(0.25, 0.75), (4, 4), (0, 1)).logits(np.zeros((1, 4, 4), np.float32))
    assert logits.exp()[1].numpy() == pytest.approx(0.75)


def test_mirroring_can_be_switched_off(tmp_path):
    folder, cases = pictures(tmp_path), prepared(tmp_path / "cases")
    mirrored = Model(imported(tmp_path / "1", cases, folder, **KNOBS)).architecture
    plain = Model(imported(tmp_path / "2", cases, folder, mirror=False, **KNOBS)).architecture
    assert (mirrored.mirror, plain.mirror) == ((0, 1), ())


# ---- preparation of images ---------------------------------------------------------------------------------------


def test_another_preparation_is_refused_with_the_block_to_paste(tmp_path):
    """CT of mean 100 and deviation 50, from -100 to 300: -100 becomes -4 and 300 becomes 4."""
    folder, cases = pictures(tmp_path, schemes=("CTNormalization",)), prepared(tmp_path / "cases")
    with pytest.raises(BadInput, match=r"plans.json: the model prepares images otherwise than the cases") as caught:
        imported(tmp_path, cases, folder, **KNOBS)
    block = json.loads(str(caught.value).split("expected `preprocess: ")[1].split("`, found")[0])
    assert block["normalise"] == {"range": [-100, 300], "to": [-4, 4], "clip": True}
    imported(tmp_path, stated(cases, preprocess=block), folder, **KNOBS)


def test_the_spacing_of_the_plans_is_on_our_axes(tmp_path):
    """Plans of 5, 2 and 1 mm along z, y and x."""
    folder, cases = volumes(tmp_path, spacing=[5.0, 2.0, 1.0]), prepared(tmp_path / "cases", (6, 8, 9))
    with pytest.raises(BadInput, match=r'"spacing":\[1.0,2.0,5.0\],"resize":null,"resample":"nnunet"'):
        imported(tmp_path, cases, folder, **KNOBS)


class Logit(nn.Module):
    """The image as the logits of class 1, and 0 as those of class 0."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(image), image], 1)


def test_logits_and_not_probabilities_are_resampled():
    """Logits 0 and 4 become 0, 1, 3 and 4 on the grid of the source."""
    case = replace(row_of((1, 2)), original_shape=(1, 4))
    image = np.array([[[0.0, 4.0]]], np.float32)
    found = class_probabilities(planned(Logit(), (1, 2)), image, case, None)
    expected = 1 / (1 + np.exp(-np.array([0, 1, 3, 4])))
    assert found[1, 0] == pytest.approx(expected, rel=1e-6)
    # Offsets are of logits: log 3 more of class 1.
    found = class_probabilities(planned(Logit(), (1, 2)), image, case, None, (np.log(3),))
    assert found[1, 0, 0] == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("scheme", "normalise"), [("RescaleTo01Normalization", "minmax"), ("RGBTo01Normalization", "unit")]
)
def test_normalisations_by_their_names(tmp_path, scheme, normalise):
    cases = stated(prepared(tmp_path / "cases"), preprocess={"normalise": normalise, "resample": "nnunet"})
    imported(tmp_path, cases, pictures(tmp_path, schemes=(scheme,)), **KNOBS)


# ---- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, "found regions, which overlap, which is not supp"),
        ({"previous_stage": "3d_lowres"}, "found a stage of a cascade"),
        ({"schemes": ("MyNormalization",)}, "found the normalisation MyNormalization"),
        ({"preprocessor_name": "MyPreprocessor"}, "found preprocessor_name: MyPreprocessor"),
        ({"image_reader_writer": "MyIO"}, "found image_reader_writer: MyIO"),
        ({"resampling_fn_data": "resample_torch_fornnunet"}, "found resampling_fn_data: resample_torch_fornnunet"),
        ({"resampling_fn_data_kwargs": {"order": 1}}, "found resampling_fn_data_kwargs: {'order': 1}"),
        ({"labels": {"background": 0, "a": 1, "b": 2}}, r"weights of another network: 'decoder.seg_layers.0.bias' exp"),
        ({"inherits_from": "3d_fullres"}, "expected a configuration '3d_fullres', found 2d"),
        ({"inherits_from": "2d"}, "names that inherit from each other"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, more, message):
    with pytest.raises(BadInput, match=message):
        imported(tmp_path, prepared(tmp_path / "cases"), pictures(tmp_path, **more), **KNOBS)
    assert not (tmp_path / "models").exists()


def changed(folder: Path, **block: Any) -> Path:
    """The folder with other keys in the block `architecture` of its plans."""
    path = folder / "plans.json"
    plans = json.loads(path.read_text())
    (configuration,) = plans["configurations"].values()
    configuration["architecture"] |= block
    path.write_text(json.dumps(plans))
    return folder


@pytest.mark.parametrize("name", [f"{UNET}UNetDecoder", "os.system", "monai.networks.nets.UNet", "UNet", f"{UNET}nn"])
def test_other_networks_are_named_and_none_is_imported(tmp_path, name):
    folder = changed(pictures(tmp_path), network_class_name=name)
    with pytest.raises(BadInput, match=f"expected a network .*PlainConvUNet or .*, found '{name}'"):
        imported(tmp_path, prepared(tmp_path / "cases"), folder, **KNOBS)


def test_a_network_that_moved_is_found(tmp_path):
    """nnU-Net writes this name for old plans, and looks the class up in the other modules of the package."""
    name = "dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet"
    folder = changed(pictures(tmp_path, kind="ResidualEncoderUNet"), network_class_name=name)
    imported(tmp_path, prepared(tmp_path / "cases"), folder, **KNOBS)


def test_classes_of_other_modules_are_named(tmp_path):
    folder = changed(pictures(tmp_path), arch_kwargs={**kwargs_of(2), "nonlin": "os.system"})
    with pytest.raises(BadInput, match=r"arch_kwargs: nonlin: expected a class of torch.nn, found 'os.system'"):
        imported(tmp_path, prepared(tmp_path / "cases"), folder, **KNOBS)


def test_plans_of_an_old_form(tmp_path):
    folder = pictures(tmp_path)
    plans = json.loads((folder / "plans.json").read_text())
    del plans["configurations"]["2d"]["architecture"]
    plans["configurations"]["2d"]["UNet_class_name"] = "PlainConvUNet"
    (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(BadInput, match="found plans of an old form, without `architecture`"):
        imported(tmp_path, prepared(tmp_path / "cases"), folder, **KNOBS)


def test_a_2d_configuration_on_volumes(tmp_path):
    with pytest.raises(BadInput, match="found a network of 2D windows, and 3D images in the data"):
        imported(tmp_path, prepared(tmp_path / "cases", (6, 8, 9)), pictures(tmp_path), **KNOBS)


def test_files_of_another_family(tmp_path):
    cases = stated(prepared(tmp_path / "cases"), files="nifti")
    with pytest.raises(BadInput, match="trained on files of the family 'pictures', found 'nifti' in the data"):
        imported(tmp_path, cases, pictures(tmp_path), **KNOBS)


def test_classes_in_another_order(tmp_path):
    cases = stated(prepared(tmp_path / "cases"), class_names=["class_1", "background"])
    with pytest.raises(BadInput, match=r"dataset.json: expected the classes .*, in the order of the data"):
        imported(tmp_path, cases, pictures(tmp_path), **KNOBS)


def test_missing_checkpoints_name_those_that_are_there(tmp_path):
    cases, folder = prepared(tmp_path / "cases"), pictures(tmp_path)
    for knobs in ({**KNOBS, "folds": [0, 1, 4]}, {**KNOBS, "checkpoint": "best"}):
        with pytest.raises(BadInput, match=r"no such checkpoint; there are fold_0/checkpoint_final.pth, fold_1/che"):
            imported(tmp_path, cases, folder, **knobs)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    folder = pictures(tmp_path)
    file = folder / "fold_0/checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    torch.save({**content, "logging": Canary(tmp_path / "ran")}, file)
    with pytest.raises(BadInput, match=r"fold_0/checkpoint_final.pth: .*found the code 'posix.mkdir'"):
        imported(tmp_path, prepared(tmp_path / "cases"), folder, **KNOBS)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_another_program(tmp_path):
    folder = pictures(tmp_path)
    torch.save(seeded(lambda: nn.Conv2d(1, 1, 1)).state_dict(), folder / "fold_1/checkpoint_final.pth")
    with pytest.raises(BadInput, match="expected a checkpoint of nnU-Net v2, found no 'network_weights'"):
        imported(tmp_path, prepared(tmp_path / "cases"), folder, **KNOBS)


def test_the_package_is_named_where_it_is_missing(tmp_path, monkeypatch):
    folder, cases = pictures(tmp_path), prepared(tmp_path / "cases")
    for name in [name for name in sys.modules if name.startswith("dynamic_network_architectures")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures", None)
    with pytest.raises(BadInput, match=r"run `pip install 'segpref\[nnunet\]'`"):
        imported(tmp_path, cases, folder, **KNOBS)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"folds": [0, 1], "base_fold": 2}, "base_fold: expected one of the folds"),
        ({"folds": [1]}, "base_fold: expected one of the folds"),
        ({"folds": [0, 0]}, "folds: expected every fold once"),
        ({"folds": []}, "at least 1 item"),
    ],
)
def test_folds_that_are_not_read(knobs, message):
    with pytest.raises(ValidationError, match=message):
        base_of(kind="nnunet", **knobs)
